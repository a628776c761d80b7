//! Where opened values lie for containers: files of a file system that is memory, and nothing else.
//!
//! The engine mounts them from there, as it mounts staged files. After a reboot the folder is empty, and the agent
//! delivers anew before it starts a container. Podman's own secrets lie in plain text on the disk, and docker has
//! none without a swarm: hence this.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use mcp_spec::image::Digest;
use thiserror::Error;

/// `f_type` of tmpfs and ramfs (`statfs(2)`).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// The folder of one agent.
#[derive(Debug, Clone)]
pub struct MemoryFolder {
    /// Folders that may be taken, the best first; a configured one is the only one.
    candidates: Vec<PathBuf>,
    /// The agent's own below it: several agents of a machine do not meet.
    own: String,
}

/// Why there is no place for opened values.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// None of the folders is memory.
    #[error("no folder in memory for secrets: {} is none", shown(folders))]
    NotMemory {
        /// Those that were tried.
        folders: Vec<PathBuf>,
    },
    /// The folder cannot be made.
    #[error("cannot make the folder {} for secrets", folder.display())]
    Make {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else has made it.
    #[error("the folder {} for secrets belongs to another user, or others may enter it", folder.display())]
    Foreign {
        /// The folder.
        folder: PathBuf,
    },
}

fn shown(folders: &[PathBuf]) -> String {
    let folders: Vec<String> = folders.iter().map(|it| it.display().to_string()).collect();
    folders.join(", ")
}

impl MemoryFolder {
    /// The folder of the agent with this data directory: below the configured one, else below `/run/mcp`,
    /// `/run/user/UID` or `/dev/shm`, whichever is memory and can be written.
    #[must_use]
    pub fn new(configured: Option<&Path>, data_dir: &Path) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let candidates = match configured {
            Some(dir) => vec![dir.to_owned()],
            None => vec![
                PathBuf::from("/run/mcp"),
                PathBuf::from(format!("/run/user/{uid}/mcp")),
                PathBuf::from(format!("/dev/shm/mcp-{uid}")),
            ],
        };
        let digest = Digest::of(data_dir.as_os_str().as_encoded_bytes());
        Self {
            candidates,
            own: digest.hex()[..16].to_owned(),
        }
    }

    /// The folder where it is there already: nothing is made. Blocking.
    #[must_use]
    pub fn found(&self) -> Option<PathBuf> {
        let folders = self.candidates.iter().map(|it| it.join(&self.own));
        folders
            .into_iter()
            .find(|folder| folder.is_dir() && is_memory(folder))
    }

    /// The folder, made where it is not there. Blocking.
    ///
    /// # Errors
    ///
    /// [`MemoryError`].
    pub fn ready(&self) -> Result<PathBuf, MemoryError> {
        let mut failed = None;
        for candidate in &self.candidates {
            match ready(candidate, &self.own) {
                Ok(Some(folder)) => return Ok(folder),
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| MemoryError::NotMemory {
            folders: self.candidates.clone(),
        }))
    }
}

/// `None` where the folder is not in memory.
fn ready(candidate: &Path, own: &str) -> Result<Option<PathBuf>, MemoryError> {
    // What is not there yet will be of the file system above it.
    let there = candidate.ancestors().find(|it| it.exists());
    if !there.is_some_and(is_memory) {
        return Ok(None);
    }
    let folder = candidate.join(own);
    for path in [candidate, folder.as_path()] {
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        match builder.create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(MemoryError::Make {
                    folder: path.to_owned(),
                    source: error,
                });
            }
            _ => {}
        }
    }
    // `/dev/shm` is everybody's: what bears the name may be somebody else's.
    let facts = fs::symlink_metadata(&folder).map_err(|source| MemoryError::Make {
        folder: folder.clone(),
        source,
    })?;
    let is_ours = facts.uid() == rustix::process::geteuid().as_raw();
    if !facts.is_dir() || !is_ours || facts.mode() & 0o077 != 0 || !is_memory(&folder) {
        return Err(MemoryError::Foreign { folder });
    }
    Ok(Some(folder))
}

/// Whether a folder is of a file system that is memory.
#[must_use]
pub fn is_memory(path: &Path) -> bool {
    rustix::fs::statfs(path)
        .is_ok_and(|facts| u64::try_from(facts.f_type).is_ok_and(|kind| IN_MEMORY.contains(&kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_on_a_disk_is_refused_and_one_in_memory_is_the_agent_s_alone() {
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let folder = MemoryFolder::new(Some(disk.path()), disk.path());
        assert!(matches!(folder.ready(), Err(MemoryError::NotMemory { .. })));
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let folder = MemoryFolder::new(Some(memory.path()), disk.path());
        let ready = folder.ready().unwrap();
        assert_eq!(fs::metadata(&ready).unwrap().mode() & 0o777, 0o700);
        assert_eq!(folder.ready().unwrap(), ready);
        let other = MemoryFolder::new(Some(memory.path()), memory.path());
        assert_ne!(other.ready().unwrap(), ready);
        fs::remove_dir(&ready).unwrap();
        std::os::unix::fs::symlink("/dev/shm", &ready).unwrap();
        assert!(matches!(folder.ready(), Err(MemoryError::Foreign { .. })));
    }
}
