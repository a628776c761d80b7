//! Making a new key pair, as `ssh-keygen -t ed25519` lays it out: `PATH` and `PATH.pub`.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ssh_key::{Algorithm, LineEnding, PrivateKey};

use super::{KeySource, Secret, SigningKey};

/// Why a key pair could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateKeyError {
    /// A file of that name is there already; nothing is ever overwritten.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file in the way.
        path: PathBuf,
    },
    /// The file could not be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The library could not make or encode the key.
    #[error("no key could be made")]
    Key {
        /// What the library said.
        source: ssh_key::Error,
    },
}

impl GenerateKeyError {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Exists { path } => Some(format!("use it: --key {}", path.display())),
            Self::Write { .. } => Some("give another place: --key FILE".to_owned()),
            Self::Key { .. } => None,
        }
    }
}

/// Makes a new Ed25519 key without a passphrase at `path` (mode 0600) and `path.pub`; overwrites nothing.
///
/// # Errors
///
/// See [`GenerateKeyError`].
pub fn generate_key(path: &Path, comment: &str) -> Result<SigningKey, GenerateKeyError> {
    let failed = |source| GenerateKeyError::Key { source };
    let mut public_path = path.as_os_str().to_owned();
    public_path.push(".pub");
    let public_path = PathBuf::from(public_path);
    if public_path.symlink_metadata().is_ok() {
        return Err(GenerateKeyError::Exists { path: public_path });
    }
    let mut key = PrivateKey::random(&mut rand::rngs::OsRng, Algorithm::Ed25519).map_err(failed)?;
    key.set_comment(comment);
    if let Some(folder) = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty() && !p.exists())
    {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|source| GenerateKeyError::Write {
                path: folder.to_owned(),
                source,
            })?;
    }
    let private = key.to_openssh(LineEnding::LF).map_err(failed)?;
    write_new(path, 0o600, private.as_bytes())?;
    let mut public = key.public_key().to_openssh().map_err(failed)?;
    public.push('\n');
    write_new(&public_path, 0o644, public.as_bytes())?;
    Ok(SigningKey {
        public: key.public_key().clone(),
        source: KeySource::File(path.to_owned()),
        secret: Secret::Opened(Box::new(key)),
        warnings: Vec::new(),
    })
}

fn write_new(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), GenerateKeyError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => GenerateKeyError::Exists {
            path: path.to_owned(),
        },
        _ => GenerateKeyError::Write {
            path: path.to_owned(),
            source,
        },
    };
    // O_EXCL: neither an existing file nor a symlink is ever followed or overwritten.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.sync_all().map_err(failed)
}
