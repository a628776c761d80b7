//! `mcp-agent trust deny`: one key more on the denylist, also while an agent runs.
//!
//! The list is read anew for each receipt, so a key counts as denied as soon as its line is in place. It is
//! written whole and takes the old one's place in one step: a list cut short would stop every receipt.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use mcp_spec::signature::{
    DeniedKeys, KeyFault, KeysError, OwnerKeys, PublicKey, fingerprint, parse_public_key,
};
use thiserror::Error;

use crate::config::Config;
use crate::disk;
use crate::revisions::RevisionStore;

/// Why a key is not denied. Nothing has changed then.
#[derive(Debug, Error)]
pub enum DenyError {
    /// A file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The key is none.
    #[error("`{given}` is refused")]
    Key {
        /// What was given.
        given: String,
        /// Why.
        source: KeyFault,
    },
    /// A private key was given.
    #[error("{} is a private key", file.display())]
    Private {
        /// The file.
        file: PathBuf,
    },
    /// The denylist, as it is, is refused.
    #[error("{} is refused", file.display())]
    List {
        /// The denylist.
        file: PathBuf,
        /// The line and what is wrong with it.
        source: KeysError,
    },
    /// Somebody else changes the list, or left their lock behind.
    #[error("another one is changing the denylist: {} exists", lock.display())]
    Locked {
        /// The lock file.
        lock: PathBuf,
    },
    /// The denylist cannot be written.
    #[error("cannot write {}", file.display())]
    Write {
        /// The denylist.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl DenyError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { file, .. } => format!(
                "give a .pub file, a public key or its SHA256: fingerprint; and see that {} is there",
                file.display()
            ),
            Self::Key { .. } => {
                "give a public key in quotes, its .pub file, or its SHA256: fingerprint".to_owned()
            }
            Self::Private { file } => format!("give the public half: {}.pub", file.display()),
            Self::List { .. } => {
                "one public key or SHA256: fingerprint a line; until it is mended no revision is taken"
                    .to_owned()
            }
            Self::Locked { lock } => {
                format!("wait for it; if nothing is running: rm {}", lock.display())
            }
            Self::Write { .. } => "run it as the agent's user; look at the disk".to_owned(),
        }
    }
}

/// What became of a denial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denied {
    /// The key, `SHA256:…`.
    pub fingerprint: String,
    /// Whether it was denied before, and nothing changed.
    pub already: bool,
    /// Revisions that it signed and that stay valid to roll back to.
    pub accepted: usize,
    /// Whether it is one of the owners who may introduce a history here.
    pub is_pinned: bool,
    /// Its principal, where the head still lets it sign.
    pub signer: Option<String>,
    /// Whether the head names no owner who is not denied: nobody could change the signers any more.
    pub last_owner: bool,
}

/// Denies a key: a public key, a file that holds one, or a fingerprint.
///
/// # Errors
///
/// [`DenyError`].
pub fn deny(config: &Config, given: &str) -> Result<Denied, DenyError> {
    let (print, comment) = key(given)?;
    let file = &config.trust.denied_keys;
    let already = add(file, &print, &comment)?;
    let read = |file: &Path| {
        fs::read_to_string(file).map_err(|source| DenyError::Read {
            file: file.to_owned(),
            source,
        })
    };
    let denied = DeniedKeys::parse(&read(file)?).map_err(|source| DenyError::List {
        file: file.clone(),
        source,
    })?;
    // What follows only informs: an owners' file or a repository that cannot be read is no reason to fail.
    let owners = read(&config.trust.owners)
        .ok()
        .and_then(|text| OwnerKeys::parse(&text).ok());
    let is_pinned = owners.is_some_and(|owners| {
        let mut keys = owners.iter();
        keys.any(|owner| fingerprint(owner) == print)
    });
    let (accepted, signers) = RevisionStore::look(&config.data_dir, &print).unwrap_or_default();
    let signer = signers
        .iter()
        .flat_map(|signers| signers.iter())
        .find(|signer| signer.fingerprint() == print && signer.may_sign())
        .map(|signer| signer.principal.clone());
    let last_owner = signers.is_some_and(|signers| {
        let mut owners = signers.iter().filter(|signer| signer.is_owner());
        owners.all(|owner| denied.contains(&owner.key))
    });
    Ok(Denied {
        fingerprint: print,
        already,
        accepted,
        is_pinned,
        signer,
        last_owner,
    })
}

/// The fingerprint of what was given, and the key's comment.
fn key(given: &str) -> Result<(String, String), DenyError> {
    let refused = |source| DenyError::Key {
        given: given.chars().take(200).collect(),
        source,
    };
    let text = given.trim();
    if text.starts_with("SHA256:") {
        let parsed = DeniedKeys::parse(text).map_err(|error| refused(error.fault))?;
        let print = parsed.fingerprints().next().map(ToOwned::to_owned);
        return Ok((
            print.ok_or_else(|| refused(KeyFault::Garbled))?,
            String::new(),
        ));
    }
    let is_key = text.contains(' ') && (text.starts_with("ssh-") || text.starts_with("sk-"));
    let text = if is_key {
        text.to_owned()
    } else {
        let file = Path::new(given);
        let text = fs::read_to_string(file).map_err(|source| DenyError::Read {
            file: file.to_owned(),
            source,
        })?;
        if text.contains("PRIVATE KEY-----") {
            return Err(DenyError::Private {
                file: file.to_owned(),
            });
        }
        text
    };
    let key: PublicKey = parse_public_key(&text).map_err(refused)?;
    Ok((fingerprint(&key), key.comment().trim().to_owned()))
}

/// Adds a line; whether the key stood there before.
fn add(file: &Path, print: &str, comment: &str) -> Result<bool, DenyError> {
    let mut lock = file.as_os_str().to_owned();
    lock.push(".lock");
    let lock = PathBuf::from(lock);
    let unwritten = |source| DenyError::Write {
        file: file.to_owned(),
        source,
    };
    // First of all the list as it is: a lock beside a file that is not there helps nobody.
    let before = fs::metadata(file).map_err(|source| DenyError::Read {
        file: file.to_owned(),
        source,
    })?;
    let mut fresh = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(before.permissions().mode())
        .open(&lock)
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => DenyError::Locked { lock: lock.clone() },
            _ => unwritten(source),
        })?;
    let added = (|| {
        let mut text = fs::read_to_string(file).map_err(|source| DenyError::Read {
            file: file.to_owned(),
            source,
        })?;
        let list = |text: &str| {
            DeniedKeys::parse(text).map_err(|source| DenyError::List {
                file: file.to_owned(),
                source,
            })
        };
        let known = list(&text)?;
        if known.fingerprints().any(|known| known == print) {
            return Ok(true);
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(print);
        if !comment.is_empty() {
            text.push(' ');
            text.push_str(comment);
        }
        text.push('\n');
        list(&text)?;
        fresh.write_all(text.as_bytes()).map_err(unwritten)?;
        // Root may deny for an agent that is another user, which has to read the list.
        let kept = fresh.metadata().map_err(unwritten)?;
        if (kept.uid(), kept.gid()) != (before.uid(), before.gid()) {
            chown(&lock, Some(before.uid()), Some(before.gid())).map_err(unwritten)?;
        }
        fresh
            .set_permissions(before.permissions())
            .map_err(unwritten)?;
        disk::sync(&fresh, &lock).map_err(unwritten)?;
        disk::rename(&lock, file).map_err(unwritten)?;
        if let Some(dir) = file.parent() {
            disk::sync_dir(dir).map_err(unwritten)?;
        }
        Ok(false)
    })();
    if !matches!(added, Ok(false)) {
        drop(fs::remove_file(&lock));
    }
    added
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "SHA256:2HGKIwJ3wtPKzl/5BVyItrKbFw9yOsuPwGxczyjRrrE";
    const TWO: &str = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";

    #[test]
    fn line_is_added_whole_and_once_and_the_mode_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("denied_keys");
        fs::write(&file, format!("# stolen\n{ONE} laptop")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(!add(&file, TWO, "bob").unwrap());
        assert!(add(&file, TWO, "bob").unwrap());
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            format!("# stolen\n{ONE} laptop\n{TWO} bob\n")
        );
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn list_that_is_missing_broken_or_locked_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("denied_keys");
        assert!(matches!(add(&file, ONE, ""), Err(DenyError::Read { .. })));
        assert!(!file.exists());
        fs::write(&file, "nonsense\n").unwrap();
        assert!(matches!(add(&file, ONE, ""), Err(DenyError::List { .. })));
        fs::write(&file, "").unwrap();
        let lock = dir.path().join("denied_keys.lock");
        fs::write(&lock, "").unwrap();
        assert!(matches!(add(&file, ONE, ""), Err(DenyError::Locked { .. })));
        assert!(lock.exists(), "another's lock stays");
        fs::remove_file(&lock).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "");
        assert!(!add(&file, ONE, "").unwrap());
    }

    #[test]
    fn key_is_given_in_three_ways_and_never_its_private_half() {
        assert_eq!(key(ONE).unwrap().0, ONE);
        assert!(matches!(key("SHA256:zz"), Err(DenyError::Key { .. })));
        assert!(matches!(key("/no/such/file"), Err(DenyError::Read { .. })));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("id");
        fs::write(&file, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        assert!(matches!(
            key(file.to_str().unwrap()),
            Err(DenyError::Private { .. })
        ));
    }
}
