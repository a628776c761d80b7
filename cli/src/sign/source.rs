//! What names a key: a flag, a setting or git's own configuration, read into a [`KeySource`].

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ssh_key::PublicKey;

/// A key as it is named by a flag or a setting; nothing has been opened yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A private key's file, or a public key's whose private half an ssh-agent or a file beside it holds.
    File(PathBuf),
    /// A key that an ssh-agent holds, by its fingerprint: `ssh-agent:SHA256:…`.
    AgentFingerprint(String),
    /// A key that an ssh-agent holds, by the public key itself: `ssh-ed25519 AAAA…` or git's `key::ssh-ed25519 AAAA…`.
    AgentPublicKey(String),
}

/// Why a text names no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindKeyError {
    /// The text is empty.
    #[error("the name of the signing key is empty")]
    Empty,
    /// `ssh-agent:` is followed by no SHA-256 fingerprint.
    #[error("`{text}` names no key of an ssh-agent")]
    Fingerprint {
        /// What was given.
        text: String,
    },
    /// A public key was given in the text, and does not parse.
    #[error("`{text}` is no public key")]
    PublicKey {
        /// What was given.
        text: String,
        /// What the library said.
        source: ssh_key::Error,
    },
    /// The path starts with `~`, and there is no home directory.
    #[error("`{text}` cannot be found: HOME is not set")]
    NoHome {
        /// What was given.
        text: String,
    },
}

impl FindKeyError {
    /// The next thing to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Empty | Self::PublicKey { .. } => {
                "give the path of an Ed25519 key: --key ~/.ssh/id_ed25519".to_owned()
            }
            Self::Fingerprint { .. } => {
                "write ssh-agent:SHA256:… as `ssh-add -l` shows it".to_owned()
            }
            Self::NoHome { .. } => "give the key's full path".to_owned(),
        }
    }
}

impl FromStr for KeySource {
    type Err = FindKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() {
            return Err(FindKeyError::Empty);
        }
        if let Some(fingerprint) = text.strip_prefix("ssh-agent:") {
            // Base64 of 32 bytes without padding has 43 characters.
            let digest = fingerprint
                .strip_prefix("SHA256:")
                .map(|d| d.trim_end_matches('='));
            return match digest {
                Some(digest) if digest.len() == 43 => {
                    Ok(Self::AgentFingerprint(format!("SHA256:{digest}")))
                }
                _ => Err(FindKeyError::Fingerprint {
                    text: text.to_owned(),
                }),
            };
        }
        let literal = text.strip_prefix("key::").or_else(|| {
            let is_literal = ["ssh-", "sk-ssh-", "ecdsa-", "sk-ecdsa-"]
                .iter()
                .any(|p| text.starts_with(p));
            (is_literal && text.contains(' ')).then_some(text)
        });
        if let Some(literal) = literal {
            return match PublicKey::from_openssh(literal) {
                Ok(_) => Ok(Self::AgentPublicKey(literal.to_owned())),
                Err(source) => Err(FindKeyError::PublicKey {
                    text: text.to_owned(),
                    source,
                }),
            };
        }
        if text == "~" || text.starts_with("~/") {
            let home = std::env::home_dir().ok_or_else(|| FindKeyError::NoHome {
                text: text.to_owned(),
            })?;
            return Ok(Self::File(home.join(text[1..].trim_start_matches('/'))));
        }
        Ok(Self::File(PathBuf::from(text)))
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::AgentFingerprint(fingerprint) => write!(f, "ssh-agent:{fingerprint}"),
            Self::AgentPublicKey(key) => write!(f, "{key}"),
        }
    }
}

/// The key to sign with, by precedence: the flag, the setting of `mcp.toml`, then git's `user.signingkey`.
///
/// `None` where nobody names one. `git` is what git's configuration says for SSH signatures
/// (see [`crate::repo::git_signing_key`]).
///
/// # Errors
///
/// [`FindKeyError`] where the first text that is there names no key.
pub fn find_key(
    explicit: Option<&str>,
    config: Option<&str>,
    git: Option<&str>,
) -> Result<Option<KeySource>, FindKeyError> {
    explicit
        .or(config)
        .or(git)
        .map(KeySource::from_str)
        .transpose()
}
