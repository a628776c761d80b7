//! The owners' public keys, as they are given on the command line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mcp_spec::signature::{KeysError, OwnerKeys};
use thiserror::Error;

/// Why an owner's key is refused.
#[derive(Debug, Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("cannot read the public key {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A private key was given.
    #[error("{} is a private key", file.display())]
    Private {
        /// The file.
        file: PathBuf,
    },
    /// The keys are refused.
    #[error("the key in {given} is refused")]
    Keys {
        /// What was given.
        given: String,
        /// Why.
        source: KeysError,
    },
}

impl TrustError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { .. } => {
                "give --trust the path of a .pub file, or the key itself in quotes".to_owned()
            }
            Self::Private { file } => {
                format!("give the public half: --trust {}.pub", file.display())
            }
            Self::Keys { .. } => {
                "make one with: ssh-keygen -t ed25519, and give its .pub file".to_owned()
            }
        }
    }
}

/// Reads keys and files of keys into one set.
pub(crate) fn read(given: &[String]) -> Result<OwnerKeys, TrustError> {
    let mut lines: Vec<String> = Vec::new();
    for text in given {
        let key = text.trim();
        let (name, content) = if key.starts_with("ssh-") || key.starts_with("sk-") {
            ("--trust".to_owned(), key.to_owned())
        } else {
            let file = Path::new(text);
            let content = fs::read_to_string(file).map_err(|source| TrustError::Read {
                file: file.to_owned(),
                source,
            })?;
            if content.contains("PRIVATE KEY-----") {
                return Err(TrustError::Private {
                    file: file.to_owned(),
                });
            }
            (text.clone(), content)
        };
        // Each by itself first, so that the error names what was given.
        let keys = OwnerKeys::parse(&content).map_err(|source| TrustError::Keys {
            given: name,
            source,
        })?;
        for line in keys.to_text().lines() {
            // The same key twice is no mistake on a command line.
            let same = |known: &String| known.split(' ').nth(1) == line.split(' ').nth(1);
            if !lines.iter().any(same) {
                lines.push(line.to_owned());
            }
        }
    }
    OwnerKeys::parse(&lines.join("\n")).map_err(|source| TrustError::Keys {
        given: "--trust".to_owned(),
        source,
    })
}
