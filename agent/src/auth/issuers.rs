//! The verifier in use: the public keys of external issuers are read again when their files change, and fetched
//! again from their servers.
//!
//! Keys that come from a server lie in a file of the data directory too, so that an agent that starts while the
//! server is away knows them. Files are looked at every [`LOOK_EVERY`], servers asked every [`FETCH_EVERY`]; a token
//! whose signature counts for nothing causes a look at once, at most every second, and where it names an issuer
//! with a server a fetch, at most every [`FETCH_AGAIN`]: so a new key is believed at its first use, and a withdrawn
//! one no more soon after. Where what comes is refused, the old keys stay.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::keys::{JwkError, read_keys};
use super::online::{Online, Standing};
use super::token::{TokenError, Verifier, claimed};
use super::web::{self, HttpsUrl, WebError};
use super::{Identity, Role};
use crate::blocking::blocking;
use crate::config::{Config, ExternalIssuer};
use crate::{IssuersError, disk, error_chain, verifier};

/// Time between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Least time between two looks that tokens cause.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Time between two fetches of an issuer's keys.
const FETCH_EVERY: Duration = Duration::from_secs(300);
/// Least time between two fetches, whatever tokens come.
const FETCH_AGAIN: Duration = Duration::from_secs(2);
/// Time until the next fetch after one that failed, where no token causes one.
const FETCH_RETRY: Duration = Duration::from_secs(10);

/// The issuers whose tokens count.
#[derive(Debug)]
pub struct Issuers {
    config: Config,
    verifier: ArcSwap<Verifier>,
    looked: Mutex<Looked>,
    external: Vec<External>,
}

/// What is kept of one external issuer.
#[derive(Debug)]
struct External {
    fetched: tokio::sync::Mutex<Option<Fetched>>,
    online: Option<Online>,
}

#[derive(Debug, Clone, Copy)]
struct Fetched {
    at: Instant,
    good: bool,
    /// Whether a token caused it: those are held back by one another, and by no fetch that came by itself.
    caused: bool,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    changed: Vec<Option<SystemTime>>,
}

/// A caller, and whether its issuer stands by the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The caller.
    pub identity: Identity,
    /// Whether the issuer, where it is to be asked, was: one whose issuer is away may look and change nothing.
    pub confirmed: bool,
}

/// Why an issuer's keys were not fetched.
#[derive(Debug, Error)]
enum FetchError {
    #[error(transparent)]
    Web(#[from] WebError),
    #[error("{url} answered no keys that count")]
    Keys { url: HttpsUrl, source: JwkError },
    #[error("the keys cannot be kept")]
    Keep(#[source] std::io::Error),
}

fn changed(config: &Config) -> Vec<Option<SystemTime>> {
    let changed =
        |external: &ExternalIssuer| std::fs::metadata(&external.keys.file).ok()?.modified().ok();
    config.auth.external.iter().map(changed).collect()
}

impl Issuers {
    /// Reads the keys that the configuration names.
    ///
    /// # Errors
    ///
    /// [`IssuersError`] where one cannot be used.
    pub fn load(config: &Config) -> Result<Self, IssuersError> {
        let changed = changed(config);
        let external = config.auth.external.iter().map(|issuer| External {
            fetched: tokio::sync::Mutex::new(None),
            online: issuer.validation.clone().map(Online::new),
        });
        Ok(Self {
            verifier: ArcSwap::from_pointee(verifier(config)?),
            looked: Mutex::new(Looked {
                at: Instant::now(),
                changed,
            }),
            external: external.collect(),
            config: config.clone(),
        })
    }

    /// Verifies a token and tells who calls.
    ///
    /// # Errors
    ///
    /// [`TokenError`] with the first thing that is wrong.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Verified, TokenError> {
        let used = self.verifier.load_full();
        let mut verified = used.verify(token, now);
        if verified == Err(TokenError::Signature) {
            if !self.refresh(Instant::now(), LOOK_AGAIN) {
                self.fetch_for(token).await;
            }
            // Another call may have made it anew meanwhile.
            let current = self.verifier.load_full();
            if !Arc::ptr_eq(&used, &current) {
                verified = current.verify(token, now);
            }
        }
        let mut identity = verified?;
        let Some((issuer, online)) = self.asked(&identity.issuer) else {
            return Ok(Verified {
                identity,
                confirmed: true,
            });
        };
        match online.standing(token, &identity.subject).await {
            Standing::Revoked => Err(TokenError::Revoked),
            Standing::Unknown => Ok(Verified {
                identity,
                confirmed: false,
            }),
            Standing::Good(roles) => {
                if let Some(roles) = roles {
                    // The token says what was when it was made, the issuer what is: the lower counts.
                    let now: Option<Role> = roles
                        .iter()
                        .filter_map(|role| issuer.roles.get(role).copied())
                        .max();
                    let now = now.ok_or_else(|| TokenError::NoRole {
                        subject: identity.subject.clone(),
                    })?;
                    identity.role = identity.role.min(now);
                }
                Ok(Verified {
                    identity,
                    confirmed: true,
                })
            }
        }
    }

    /// The issuer of that name, where it is to be asked.
    fn asked(&self, name: &str) -> Option<(&ExternalIssuer, &Online)> {
        let issuers = self.config.auth.external.iter().zip(&self.external);
        let mut asked = issuers.filter_map(|(issuer, external)| {
            (issuer.issuer == name)
                .then_some(external.online.as_ref())
                .flatten()
                .map(|online| (issuer, online))
        });
        asked.next()
    }

    /// Looks after the keys until `shutdown`.
    pub async fn keep(&self, shutdown: CancellationToken) {
        if self.external.is_empty() {
            return shutdown.cancelled().await;
        }
        loop {
            tokio::select! {
                // A look that is given up is made by the next start.
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {
                    self.refresh(Instant::now(), Duration::ZERO);
                    self.fetch_all().await;
                }
            }
        }
    }

    /// Fetches the keys of every server whose turn it is.
    pub async fn fetch_all(&self) {
        let fetches = (0..self.external.len()).map(|index| self.fetch(index, FETCH_EVERY));
        futures_util::future::join_all(fetches).await;
    }

    /// Fetches the keys of the issuer that an unverified token names.
    async fn fetch_for(&self, token: &str) {
        let Some(name) = claimed(token, "iss") else {
            return;
        };
        let named = |issuer: &ExternalIssuer| issuer.issuer == name;
        if let Some(index) = self.config.auth.external.iter().position(named) {
            self.fetch(index, FETCH_AGAIN).await;
        }
    }

    /// Fetches the keys of one issuer, unless that was done less than `least` ago.
    async fn fetch(&self, index: usize, least: Duration) {
        let issuer = &self.config.auth.external[index];
        let Some((url, ca)) = &issuer.keys.server else {
            return;
        };
        // Whoever comes meanwhile waits for the one fetch, which is bounded.
        let mut fetched = self.external[index].fetched.lock().await;
        let caused = least == FETCH_AGAIN;
        let due = fetched.is_none_or(|last| {
            if caused && !last.caused {
                return true;
            }
            let least = if last.good {
                least
            } else {
                least.min(FETCH_RETRY)
            };
            last.at.elapsed() >= least
        });
        if due {
            let result = fetch(url, ca, &issuer.keys.file).await;
            *fetched = Some(Fetched {
                at: Instant::now(),
                good: result.is_ok(),
                caused,
            });
            match result {
                Ok(()) => {
                    self.refresh(Instant::now(), Duration::ZERO);
                }
                Err(error) => tracing::warn!(
                    issuer = issuer.issuer,
                    error = %error_chain(&error),
                    "the issuer's keys were not fetched; the old ones stay"
                ),
            }
        }
    }

    /// Reads the external issuers' files again where one changed, and tells whether one did.
    fn refresh(&self, now: Instant, least: Duration) -> bool {
        let mut looked = self
            .looked
            .lock()
            .expect("nothing panics while it holds this lock");
        if now.duration_since(looked.at) < least {
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
                tracing::info!("the issuers' keys were read again");
                true
            }
            Err(error) => {
                tracing::warn!(error = %error_chain(&error), "an issuer's new keys are refused; the old ones stay");
                false
            }
        }
    }
}

/// Fetches keys and keeps them in `file`, where they differ from what lies there.
async fn fetch(url: &HttpsUrl, ca: &Path, file: &Path) -> Result<(), FetchError> {
    let bytes = web::get(url, ca).await?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    read_keys(&text).map_err(|source| FetchError::Keys {
        url: url.clone(),
        source,
    })?;
    let file = file.to_owned();
    blocking(move || keep(&file, &text))
        .await
        .map_err(FetchError::Keep)
}

fn keep(file: &Path, text: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(file).is_ok_and(|kept| kept == text) {
        return Ok(());
    }
    let beside = file.with_extension("new");
    let mut new = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&beside)?;
    new.write_all(text.as_bytes())?;
    disk::sync(&new, &beside)?;
    disk::rename(&beside, file)?;
    file.parent().map_or(Ok(()), disk::sync_dir)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mcp_spec::duration::Span;

    use super::*;
    use crate::auth::Role;
    use crate::auth::issuer::{Grant, Issuer};

    #[tokio::test]
    async fn a_new_key_of_the_issuer_counts_and_a_broken_file_changes_nothing() {
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
                nodes: [].into(),
                audience: "mcp".to_owned(),
            };
            issuer.issue(&grant, Timestamp::now())
        };
        let verify = async |issuer: &Issuer| issuers.verify(&token(issuer), Timestamp::now()).await;
        assert!(verify(&first).await.unwrap().confirmed);

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
        assert!(!issuers.refresh(later(2), LOOK_AGAIN));
        assert!(verify(&first).await.is_ok());
        write(&second.jwk(), 20);
        assert!(issuers.refresh(later(4), LOOK_AGAIN));
        assert!(verify(&second).await.is_ok());
        assert_eq!(verify(&first).await, Err(TokenError::Signature));
    }
}
