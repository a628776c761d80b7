//! The verifier in use: an external issuer's public key is read again when its file changes.
//!
//! The files are looked at only where a token's signature counts for nothing, and at most every
//! second: a new key is believed at its first use. A removed one is believed until then, so whoever
//! withdraws a key restarts the agent. Where the new file is refused, the old keys stay.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use jiff::Timestamp;

use super::Identity;
use super::token::{TokenError, Verifier};
use crate::config::Config;
use crate::{IssuersError, error_chain, verifier};

/// Least time between two looks at the file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The issuers whose tokens count.
#[derive(Debug)]
pub struct Issuers {
    config: Config,
    verifier: ArcSwap<Verifier>,
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    changed: Option<SystemTime>,
}

fn changed(config: &Config) -> Option<SystemTime> {
    let file = &config.auth.external.as_ref()?.jwks;
    std::fs::metadata(file).ok()?.modified().ok()
}

impl Issuers {
    /// Reads the keys that the configuration names.
    ///
    /// # Errors
    ///
    /// [`IssuersError`] where one cannot be used.
    pub fn load(config: &Config) -> Result<Self, IssuersError> {
        let changed = changed(config);
        Ok(Self {
            verifier: ArcSwap::from_pointee(verifier(config)?),
            looked: Mutex::new(Looked {
                at: Instant::now(),
                changed,
            }),
            config: config.clone(),
        })
    }

    /// Verifies a token and tells who calls.
    ///
    /// # Errors
    ///
    /// [`TokenError`] with the first thing that is wrong.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Identity, TokenError> {
        let verified = self.verifier.load().verify(token, now);
        if verified == Err(TokenError::Signature) && self.refresh(Instant::now()) {
            return self.verifier.load().verify(token, now);
        }
        verified
    }

    /// Reads the external issuer's file again where it changed, and tells whether it did.
    fn refresh(&self, now: Instant) -> bool {
        let mut looked = self
            .looked
            .lock()
            .expect("nothing panics while it holds this lock");
        if now.duration_since(looked.at) < LOOK_EVERY {
            return false;
        }
        looked.at = now;
        let changed = changed(&self.config);
        if changed == looked.changed {
            return false;
        }
        looked.changed = changed;
        match verifier(&self.config) {
            Ok(verifier) => {
                self.verifier.store(Arc::new(verifier));
                tracing::info!("the issuer's keys were read again");
                true
            }
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "the issuer's new keys are refused; the old ones stay");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mcp_spec::duration::Span;

    use super::*;
    use crate::auth::Role;
    use crate::auth::issuer::{Grant, Issuer};

    #[test]
    fn a_new_key_of_the_issuer_counts_and_a_broken_file_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let node = "rift".parse().unwrap();
        let other = "quill".parse().unwrap();
        std::fs::write(path("issuer.key"), Issuer::generate(&node).to_pem()).unwrap();
        let first = Issuer::generate(&other);
        std::fs::write(path("quill.jwk"), first.jwk()).unwrap();
        let text = "node = \"rift\"\ndata_dir = \".\"\n[auth]\nissuer = \"mcp-agent:quill\"\n\
                    jwks = \"quill.jwk\"\n[auth.roles]\nadmin = \"admin\"\n";
        let config = Config::parse(Path::new(&path("agent.toml")), text).unwrap();
        let issuers = Issuers::load(&config).unwrap();
        let token = |issuer: &Issuer| {
            let grant = Grant {
                subject: "alice".to_owned(),
                role: Role::Admin,
                ttl: Span::from_secs(60),
                services: [].into(),
                audience: "mcp".to_owned(),
            };
            issuer.issue(&grant, Timestamp::now())
        };
        let verify = |issuer: &Issuer| issuers.verify(&token(issuer), Timestamp::now());
        assert!(verify(&first).is_ok());

        let second = Issuer::generate(&other);
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        let write = |text: &str, seconds| {
            std::fs::write(path("quill.jwk"), text).unwrap();
            let file = std::fs::File::options()
                .write(true)
                .open(path("quill.jwk"))
                .unwrap();
            let time = SystemTime::now() + Duration::from_secs(seconds);
            file.set_modified(time).unwrap();
        };
        write("broken", 10);
        assert!(!issuers.refresh(later(2)));
        assert!(verify(&first).is_ok());
        write(&second.jwk(), 20);
        assert!(issuers.refresh(later(4)));
        assert!(verify(&second).is_ok());
        assert_eq!(verify(&first), Err(TokenError::Signature));
    }
}
