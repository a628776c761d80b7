//! The operator's signing key: where it is found, how it is opened, and SSHSIG signatures with it.
//!
//! This module owns key files, passphrases and the conversation with an ssh-agent, and is the only
//! one that knows the crate `ssh-key`. It leaves to others what is signed, and where a signature
//! goes: a commit's bytes are the repository's business, a request's the client's.
//!
//! Only Ed25519 keys are taken, since that is all that an agent of MCP accepts. Signatures follow
//! OpenSSH's `PROTOCOL.sshsig` with SHA-512, which is what `git commit -S` with `gpg.format=ssh` writes.

mod generate;
mod load;
mod source;
mod ssh_agent;

pub use generate::{GenerateKeyError, generate_key};
pub use load::{KeyContext, LoadKeyError, PassphraseSource};
pub use source::{FindKeyError, KeySource, find_key};
pub use ssh_agent::AgentError;

use std::fmt;
use std::path::PathBuf;

use ssh_key::{HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};

/// A key that is ready to sign: opened from a file, or held by an ssh-agent.
pub struct SigningKey {
    public: PublicKey,
    source: KeySource,
    secret: Secret,
    warnings: Vec<KeyWarning>,
}

/// Where the private half is.
enum Secret {
    /// In this process; `ssh-key` wipes it when it is dropped.
    Opened(Box<PrivateKey>),
    /// Behind an ssh-agent's socket.
    Agent { socket: PathBuf },
}

/// Something about a key's file that its owner should mend, though it does not stop the work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyWarning {
    /// Others on the machine can read the private key.
    #[error("{} can be read by others (mode {mode:04o}); chmod 600 it", path.display())]
    ReadableByOthers {
        /// The private key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// Why a signature could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// The ssh-agent refused, or could not be talked to.
    #[error("the ssh-agent did not sign with {fingerprint}")]
    Agent {
        /// The key's SHA-256 fingerprint.
        fingerprint: String,
        /// What went wrong.
        source: AgentError,
    },
    /// The signature could not be built: an empty namespace, for one.
    #[error("no signature could be made for the namespace `{namespace}`")]
    Signature {
        /// The namespace that was asked for.
        namespace: String,
        /// What the library said.
        source: ssh_key::Error,
    },
}

impl SignError {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Agent { source, .. } => Some(source.hint()),
            Self::Signature { .. } => None,
        }
    }
}

impl SigningKey {
    /// Opens the key that `source` names; asks for a passphrase only as `context` allows.
    ///
    /// # Errors
    ///
    /// See [`LoadKeyError`]: each variant names the key and has a hint.
    pub fn load(source: &KeySource, context: &KeyContext) -> Result<Self, LoadKeyError> {
        load::load(source, context)
    }

    /// Signs `message` for `namespace` and gives the armoured signature, ending in a newline.
    ///
    /// # Errors
    ///
    /// [`SignError`]: the ssh-agent refused, or the namespace is empty.
    pub fn sign(&self, namespace: &str, message: &[u8]) -> Result<String, SignError> {
        let failed = |source| SignError::Signature {
            namespace: namespace.to_owned(),
            source,
        };
        let signature = match &self.secret {
            Secret::Opened(key) => {
                SshSig::sign(&**key, namespace, HashAlg::Sha512, message).map_err(failed)?
            }
            Secret::Agent { socket } => {
                let data =
                    SshSig::signed_data(namespace, HashAlg::Sha512, message).map_err(failed)?;
                let raw = ssh_agent::sign(socket, &self.public, &data).map_err(|source| {
                    SignError::Agent {
                        fingerprint: self.fingerprint(),
                        source,
                    }
                })?;
                SshSig::new(
                    self.public.key_data().clone(),
                    namespace,
                    HashAlg::Sha512,
                    raw,
                )
                .map_err(failed)?
            }
        };
        let mut armour = signature.to_pem(LineEnding::LF).map_err(failed)?;
        if !armour.ends_with('\n') {
            armour.push('\n');
        }
        Ok(armour)
    }

    /// The public key as it stands in an `allowed_signers` file: `ssh-ed25519 AAAA…`, no comment.
    pub fn public_key(&self) -> String {
        let mut bare = self.public.clone();
        bare.set_comment("");
        bare.to_openssh()
            .expect("an Ed25519 public key always encodes")
            .trim_end()
            .to_owned()
    }

    /// The public key itself, for whoever compares it with others.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The key's fingerprint as `ssh-add -l` shows it: `SHA256:…`.
    pub fn fingerprint(&self) -> String {
        self.public.fingerprint(HashAlg::Sha256).to_string()
    }

    /// The comment that the key carries, often `user@host`; may be empty.
    pub fn comment(&self) -> &str {
        self.public.comment()
    }

    /// Where the key came from.
    pub fn source(&self) -> &KeySource {
        &self.source
    }

    /// What the key's owner should mend.
    pub fn warnings(&self) -> &[KeyWarning] {
        &self.warnings
    }

    /// The value of git's `user.signingkey` with which stock git signs with this same key.
    pub fn git_signing_key(&self) -> String {
        match (&self.secret, &self.source) {
            (_, KeySource::File(path)) => std::path::absolute(path)
                .unwrap_or_else(|_| path.clone())
                .display()
                .to_string(),
            _ => format!("key::{}", self.public_key()),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey")
            .field("fingerprint", &self.fingerprint())
            .field("source", &self.source)
            .field("secret", &"[redacted]")
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
