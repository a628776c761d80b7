//! One agent a data directory: an advisory lock that the kernel lets go with the process.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

/// Why the data directory cannot be had.
#[derive(Debug, Error)]
pub enum LockError {
    /// There is no such folder, or it cannot be written.
    #[error("cannot use the data directory {}", data_dir.display())]
    Open {
        /// The folder.
        data_dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent has it.
    #[error("another agent{} has the data directory {}", by(holder), data_dir.display())]
    Held {
        /// The folder.
        data_dir: PathBuf,
        /// Its process id, where it is known.
        holder: Option<u32>,
    },
}

fn by(holder: &Option<u32>) -> String {
    holder
        .map(|pid| format!(" (process {pid})"))
        .unwrap_or_default()
}

impl LockError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Open { .. } => {
                "make it with mcp-agent init, and run the agent as its owner".to_owned()
            }
            Self::Held { .. } => {
                "one agent a data directory: stop the other one, or give this one its own"
                    .to_owned()
            }
        }
    }

    /// The mend where a command wants the data directory for itself.
    #[must_use]
    pub(crate) fn hint_for_command(&self) -> String {
        match self {
            Self::Held { .. } => {
                "stop the agent first (systemctl stop mcp-agent): containers go on running"
                    .to_owned()
            }
            Self::Open { .. } => self.hint(),
        }
    }
}

/// The lock; dropping it lets the data directory go.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

impl DataDirLock {
    /// Takes the lock, or says at once who has it.
    ///
    /// # Errors
    ///
    /// [`LockError`] where the folder is missing or another process has it.
    pub fn take(data_dir: &Path) -> Result<Self, LockError> {
        let open = |source| LockError::Open {
            data_dir: data_dir.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(data_dir.join("lock"))
            .map_err(open)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = (&file).take(16).read_to_string(&mut text);
                return Err(LockError::Held {
                    data_dir: data_dir.to_owned(),
                    holder: text.trim().parse().ok(),
                });
            }
            Err(errno) => return Err(open(errno.into())),
        }
        // The number is for the other agent's message alone, so its loss harms nothing.
        let _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDirLock::take(folder.path()).unwrap();
        let error = DataDirLock::take(folder.path()).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!(
                "another agent (process {}) has",
                std::process::id()
            )),
            "{error}"
        );
        drop(first);
        assert!(DataDirLock::take(folder.path()).is_ok());
        assert!(matches!(
            DataDirLock::take(&folder.path().join("missing")),
            Err(LockError::Open { .. })
        ));
    }
}
