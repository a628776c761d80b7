//! The node's secrets: its age identity, the digests that stand for values, and where values are delivered.
//!
//! Two files of the data directory, each of mode 0600. [`IDENTITY`] holds age identities, one a line, the newest
//! first: the first one's recipient is what others encrypt to, all of them open. [`DIGEST_KEY`] keys the digests
//! by which a changed value is told from an unchanged one; it outlives the identities, so that a new identity changes
//! nothing that runs. Both are read when they are needed: values are opened seldom, and what was rotated or lost
//! counts at once. Opened values live in memory, and nowhere else but in the folder of [`memory`]; what
//! programs print of them is hidden by [`mask`].

pub mod mask;
pub mod memory;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use hmac::{Hmac, Mac as _};
use mcp_seal::{Identity, OpenError, Value};
use mcp_spec::image::Digest;
use mcp_spec::name::{SecretName, ServiceName};
use mcp_spec::secret::secret_at;
use rand::RngCore as _;
use rand::rngs::OsRng;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sha2::Sha256;
use thiserror::Error;
use zeroize::Zeroizing;

use self::mask::Mask;
use crate::disk;

/// The file of the identities.
pub const IDENTITY: &str = "age.key";

/// The file of the key of the digests.
pub const DIGEST_KEY: &str = "secrets-digest.key";

/// Largest identity file that is read, in bytes: some hundred identities with comments.
const MAX_KEY_FILE_BYTES: usize = 16 * 1024;

/// Most outcomes that are remembered; where there are more, all are found out again.
const REMEMBERED: usize = 10_000;

/// Why the node's own keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The file is gone.
    #[error("{} is gone", file.display())]
    Lost {
        /// The file.
        file: PathBuf,
    },
    /// It cannot be read or written.
    #[error("cannot use {}: {cause}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the disk said.
        cause: String,
    },
    /// Others may read it.
    #[error("{} can be read by others (mode {mode:04o})", file.display())]
    Open {
        /// The file.
        file: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else, who may have read or exchanged it.
    #[error("{} belongs to the user {uid}", file.display())]
    Owner {
        /// The file.
        file: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It is a symlink, a folder or a device.
    #[error("{} is no regular file", file.display())]
    NotFile {
        /// The file.
        file: PathBuf,
    },
    /// It holds no key.
    #[error("{} holds no key of this kind", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
    },
}

impl KeyError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Open { file, .. } => format!("chmod 600 {}", file.display()),
            Self::Owner { file, .. } => format!(
                "find out how it came there; where it is the node's own: chown --reference={} {}",
                file.parent().unwrap_or(Path::new(".")).display(),
                file.display()
            ),
            _ => "put the file back from a backup; where there is none, mcp-agent identity rotate makes another \
                  identity, and each secret of this node is set again"
                .to_owned(),
        }
    }
}

/// Why a secret cannot be had on this node.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SecretError {
    /// The node's keys cannot be used.
    #[error("the secret {service}/{name} cannot be opened: {source}")]
    Key {
        /// The service.
        service: ServiceName,
        /// The secret.
        name: SecretName,
        /// Why.
        source: KeyError,
    },
    /// It does not open.
    #[error("the secret {service}/{name} cannot be opened: {source}")]
    Open {
        /// The service.
        service: ServiceName,
        /// The secret.
        name: SecretName,
        /// Why.
        source: OpenError,
    },
}

impl SecretError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Key { source, .. } => source.hint(),
            Self::Open {
                service,
                name,
                source: OpenError::NotForUs,
            } => format!(
                "mcp secret rekey {service} {name}, or mcp secret set {service} {name}; then mcp sync"
            ),
            Self::Open { service, name, .. } => {
                format!("mcp secret set {service} {name}; then mcp sync")
            }
        }
    }
}

/// What became of a sealed file when it was opened: the digest of its value, or why there is none.
type Outcome = Result<Digest, SecretError>;

/// Opens what is sealed to this node.
#[derive(Debug)]
pub struct Keyring {
    data_dir: PathBuf,
    /// The outcomes by what stands for the sealed files. Failures are tried again each time.
    known: Mutex<HashMap<Digest, Outcome>>,
    /// The values that were opened, for what programs print of them.
    mask: Mask,
}

impl Keyring {
    /// The keys of a data directory, whether or not they are there.
    #[must_use]
    pub fn new(data_dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            data_dir: data_dir.to_owned(),
            known: Mutex::default(),
            mask: Mask::default(),
        })
    }

    /// Makes the keys of a node that never had any. An identity that was lost is not replaced: only an
    /// operator can know whether it comes back.
    ///
    /// # Errors
    ///
    /// [`KeyError`] where the disk refuses.
    pub fn ensure(data_dir: &Path) -> Result<(), KeyError> {
        let (identity, key) = (data_dir.join(IDENTITY), data_dir.join(DIGEST_KEY));
        let has_key = key.symlink_metadata().is_ok();
        if Self::is_new(data_dir) {
            write(&identity, &line(&Identity::generate()))?;
        }
        if !has_key {
            let mut bytes = Zeroizing::new([0; 32]);
            OsRng.fill_bytes(bytes.as_mut_slice());
            let text = Zeroizing::new(hex::encode(bytes.as_slice()) + "\n");
            write(&key, &text)?;
        }
        Ok(())
    }

    /// Whether a data directory never had keys: [`Self::ensure`] makes both.
    #[must_use]
    pub fn is_new(data_dir: &Path) -> bool {
        [IDENTITY, DIGEST_KEY]
            .iter()
            .all(|name| data_dir.join(name).symlink_metadata().is_err())
    }

    /// Puts a new identity first, and keeps those that were there, so that what was sealed to them opens
    /// until it is sealed anew. Gives the new recipient.
    ///
    /// # Errors
    ///
    /// [`KeyError`]; the file is then what it was.
    pub fn rotate(data_dir: &Path) -> Result<String, KeyError> {
        let file = data_dir.join(IDENTITY);
        let old = match read(&file) {
            Ok(old) => old,
            Err(KeyError::Lost { .. }) => Zeroizing::default(),
            Err(error) => return Err(error),
        };
        let identity = Identity::generate();
        let mut text = line(&identity);
        text.push_str(&old);
        write(&file, &text)?;
        Ok(identity.recipient())
    }

    /// Forgets all identities but the newest. Gives how many.
    ///
    /// # Errors
    ///
    /// [`KeyError`]; the file is then what it was.
    pub fn forget_old(data_dir: &Path) -> Result<usize, KeyError> {
        let file = data_dir.join(IDENTITY);
        let identities = identities(&file)?;
        let newest = identities
            .first()
            .ok_or_else(|| KeyError::Malformed { file: file.clone() })?;
        write(&file, &line(newest))?;
        Ok(identities.len() - 1)
    }

    /// What others encrypt to.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn recipient(&self) -> Result<String, KeyError> {
        let file = self.data_dir.join(IDENTITY);
        let identities = identities(&file)?;
        let first = identities.first().ok_or(KeyError::Malformed { file })?;
        Ok(first.recipient())
    }

    /// The recipient, where both keys can be used. Blocking.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn usable(&self) -> Result<String, KeyError> {
        let recipient = self.recipient()?;
        digest_key(&self.data_dir.join(DIGEST_KEY))?;
        Ok(recipient)
    }

    /// Opens a sealed file. Blocking.
    ///
    /// # Errors
    ///
    /// [`SecretError`].
    pub fn open(
        &self,
        service: &ServiceName,
        name: &SecretName,
        sealed: &[u8],
    ) -> Result<Value, SecretError> {
        let identities =
            identities(&self.data_dir.join(IDENTITY)).map_err(|source| SecretError::Key {
                service: service.clone(),
                name: name.clone(),
                source,
            })?;
        mcp_seal::open(service, name, sealed, &identities).map_err(|source| SecretError::Open {
            service: service.clone(),
            name: name.clone(),
            source,
        })
    }

    /// What stands for a value on this node: the same for the same value, and without the key nobody can try
    /// values on it. Blocking.
    ///
    /// # Errors
    ///
    /// [`SecretError::Key`].
    pub fn digest_of_value(
        &self,
        service: &ServiceName,
        name: &SecretName,
        value: &Value,
    ) -> Result<Digest, SecretError> {
        let file = self.data_dir.join(DIGEST_KEY);
        let key = digest_key(&file).map_err(|source| SecretError::Key {
            service: service.clone(),
            name: name.clone(),
            source,
        })?;
        let mut mac =
            Hmac::<Sha256>::new_from_slice(key.as_slice()).expect("HMAC takes keys of any length");
        for part in [service.as_str().as_bytes(), name.as_str().as_bytes()] {
            mac.update(part);
            // No name holds it, so no two places give the same bytes.
            mac.update(&[0]);
        }
        mac.update(value.expose());
        let digest = Digest::from_bytes(mac.finalize().into_bytes().into());
        self.mask.learn(digest, value);
        Ok(digest)
    }

    /// What hides the values that were opened.
    #[must_use]
    pub fn mask(&self) -> Mask {
        self.mask.clone()
    }

    /// What stands for the value of the sealed file at a path of the repository. Where it cannot be
    /// opened, something else does, of which [`Self::trouble`] tells why. Blocking.
    #[must_use]
    pub fn digest(&self, path: &str, sealed: &[u8]) -> Digest {
        let stand_in = stand_in(path, sealed);
        let known = |outcome: &Outcome| outcome.as_ref().ok().copied();
        if let Some(digest) = self.lock().get(&stand_in).and_then(known) {
            return digest;
        }
        let Some((service, name)) = secret_at(path) else {
            return stand_in;
        };
        let outcome = self
            .open(&service, &name, sealed)
            .and_then(|value| self.digest_of_value(&service, &name, &value));
        let digest = *outcome.as_ref().unwrap_or(&stand_in);
        let mut known = self.lock();
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(stand_in, outcome);
        digest
    }

    /// Why a digest that [`Self::digest`] gave stands for no value.
    #[must_use]
    pub fn trouble(&self, digest: &Digest) -> Option<SecretError> {
        self.lock().get(digest)?.as_ref().err().cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Outcome>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stands for a sealed file at its path.
fn stand_in(path: &str, sealed: &[u8]) -> Digest {
    let mut bytes = format!("mcp-sealed\0{path}\0").into_bytes();
    bytes.extend_from_slice(sealed);
    Digest::of(&bytes)
}

fn line(identity: &Identity) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(256));
    text.push_str(&format!("# recipient: {}\n", identity.recipient()));
    text.push_str(&identity.to_text());
    text.push('\n');
    text
}

fn unreadable(file: &Path) -> impl Fn(io::Error) -> KeyError + '_ {
    |error| {
        if error.kind() == io::ErrorKind::NotFound {
            KeyError::Lost {
                file: file.to_owned(),
            }
        } else {
            KeyError::Unreadable {
                file: file.to_owned(),
                cause: error.to_string(),
            }
        }
    }
}

/// Reads a key's file that nobody else may read: what was opened is what is looked at and read.
fn read(file: &Path) -> Result<Zeroizing<String>, KeyError> {
    // Where it is a FIFO nobody waits for its other end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(file, flags, Mode::empty()) {
        Err(Errno::LOOP) => {
            return Err(KeyError::NotFile {
                file: file.to_owned(),
            });
        }
        opened => opened.map_err(|errno| unreadable(file)(errno.into()))?,
    };
    let mut opened = fs::File::from(fd);
    let facts = opened.metadata().map_err(unreadable(file))?;
    if !facts.is_file() {
        return Err(KeyError::NotFile {
            file: file.to_owned(),
        });
    }
    let mode = facts.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open {
            file: file.to_owned(),
            mode,
        });
    }
    // Root may look at, and rotate, what is the agent's user's: then the folder is that user's, too.
    let of_folder = || fs::metadata(file.parent().unwrap_or(Path::new(".")));
    let uid = facts.uid();
    if uid != 0
        && uid != rustix::process::geteuid().as_raw()
        && of_folder().map_err(unreadable(file))?.uid() != uid
    {
        return Err(KeyError::Owner {
            file: file.to_owned(),
            uid,
        });
    }
    let malformed = || KeyError::Malformed {
        file: file.to_owned(),
    };
    // Of a fixed length, so that no copy is left behind where it would grow.
    let mut bytes = Zeroizing::new(vec![0; MAX_KEY_FILE_BYTES + 1]);
    let mut length = 0;
    loop {
        match opened.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(file)(error)),
        }
    }
    if length > MAX_KEY_FILE_BYTES {
        return Err(malformed());
    }
    bytes.truncate(length);
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            drop(Zeroizing::new(error.into_bytes()));
            Err(malformed())
        }
    }
}

fn identities(file: &Path) -> Result<Vec<Identity>, KeyError> {
    let malformed = || KeyError::Malformed {
        file: file.to_owned(),
    };
    let text = read(file)?;
    let identities = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| Identity::parse(line).map_err(|_| malformed()))
        .collect::<Result<Vec<_>, _>>()?;
    if identities.is_empty() {
        return Err(malformed());
    }
    Ok(identities)
}

fn digest_key(file: &Path) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let text = read(file)?;
    let mut key = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), key.as_mut_slice()).map_err(|_| KeyError::Malformed {
        file: file.to_owned(),
    })?;
    Ok(key)
}

/// Writes a key's file beside its name and renames it, so that it is there whole or as it was. The owner of
/// one that is replaced stays: root may rotate for the agent's user.
fn write(file: &Path, text: &str) -> Result<(), KeyError> {
    let beside = file.with_extension("key.new");
    let attempt = || -> io::Result<()> {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        out.write_all(text.as_bytes())?;
        let dir = file.parent().unwrap_or(Path::new("."));
        let (is, should) = (fs::metadata(&beside)?, fs::metadata(dir)?);
        if is.uid() != should.uid() {
            std::os::unix::fs::chown(&beside, Some(should.uid()), Some(should.gid()))?;
        }
        disk::sync(&out, &beside)?;
        disk::rename(&beside, file)?;
        disk::sync_dir(dir)
    };
    attempt().map_err(|error| KeyError::Unreadable {
        file: file.to_owned(),
        cause: error.to_string(),
    })
}

#[cfg(test)]
mod tests;
