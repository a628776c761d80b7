//! Where opened values lie for containers: files of a file system that is memory, and nothing else.
//!
//! The engine mounts them from there, as it mounts staged files. After a reboot the folder is empty, and the agent
//! delivers anew before it starts a container. Podman's own secrets lie in plain text on the disk, and docker has
//! none without a swarm: hence this.
//!
//! Each folder on the way there is opened beneath the handle of the one before, and no symlink is followed. Nobody but
//! root and the agent's own user may be able to exchange one of them: engine and agent come back by the path.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use mcp_spec::image::Digest;
use rustix::fs::{FileType, Mode, OFlags, fstat, fstatfs, mkdirat, open, openat};
use rustix::io::Errno;
use thiserror::Error;

/// `f_type` of tmpfs and ramfs (`statfs(2)`).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Writable by the group or by others.
const OTHERS_WRITE: u32 = 0o022;

/// In a folder with this bit only the owner of an entry, and of the folder, removes or renames it (`/dev/shm`).
const STICKY: u32 = 0o1000;

/// Most times that a folder is gone into again.
const TRIES: usize = 3;

/// The folder of one agent.
#[derive(Debug, Clone)]
pub struct MemoryFolder {
    /// Folders that may be taken, the best first; a configured one is the only one.
    candidates: Vec<PathBuf>,
    /// The agent's own below it: several agents of a machine do not meet.
    own: String,
    /// The agent's user.
    user: u32,
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
    /// Somebody else could put values, or other folders, there.
    #[error("opened secrets are not put below {}: {flaw}", folder.display())]
    Unsafe {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        flaw: Flaw,
    },
}

/// What is wrong with a folder on the way to opened values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Flaw {
    /// It is a symlink, which somebody may turn elsewhere.
    #[error("it is a symlink")]
    Symlink,
    /// It is no folder.
    #[error("it is no folder")]
    NotFolder,
    /// It goes up again.
    #[error("its path is not absolute, or has `..` in it")]
    Path,
    /// It belongs to another user.
    #[error("it belongs to the user {uid}, and neither to root nor to the agent's user {own}")]
    Owner {
        /// Its owner.
        uid: u32,
        /// The agent's user.
        own: u32,
    },
    /// Others may write there, or, of the agent's own, enter it.
    #[error("others may change it (mode {mode:04o})")]
    Mode {
        /// Its permissions.
        mode: u32,
    },
}

impl MemoryError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unsafe { folder, flaw } => {
                let folder = folder.display();
                match flaw {
                    Flaw::Symlink | Flaw::Path => {
                        "name a folder without symlinks and `..` in agent.toml: [secrets] dir".to_owned()
                    }
                    Flaw::NotFolder => format!("remove {folder}: the agent makes it itself"),
                    Flaw::Owner { own, .. } => format!(
                        "find out who made {folder}, then remove it, or chown {own} {folder}; or name another folder in \
                         agent.toml: [secrets] dir"
                    ),
                    Flaw::Mode { .. } => {
                        format!("find out who opened it, look what lies there, then chmod go-w {folder}")
                    }
                }
            }
            _ => "mount a tmpfs on the node for it, and name it in agent.toml: [secrets] dir = \"/run/mcp\""
                .to_owned(),
        }
    }
}

fn shown(folders: &[PathBuf]) -> String {
    let folders: Vec<String> = folders.iter().map(|it| it.display().to_string()).collect();
    folders.join(", ")
}

/// Whether missing folders are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

impl MemoryFolder {
    /// The folder of the agent with this data directory: below the configured one, else below `/run/mcp`,
    /// `/run/user/UID` or `/dev/shm`, whichever is memory and can be written.
    #[must_use]
    pub fn new(configured: Option<&Path>, data_dir: &Path) -> Self {
        Self::of(configured, data_dir, rustix::process::geteuid().as_raw())
    }

    /// The folder of an agent that runs as this user.
    #[must_use]
    pub fn of(configured: Option<&Path>, data_dir: &Path, user: u32) -> Self {
        let candidates = match configured {
            Some(dir) => vec![dir.to_owned()],
            None => vec![
                PathBuf::from("/run/mcp"),
                PathBuf::from(format!("/run/user/{user}/mcp")),
                PathBuf::from(format!("/dev/shm/mcp-{user}")),
            ],
        };
        let digest = Digest::of(data_dir.as_os_str().as_encoded_bytes());
        Self {
            candidates,
            own: digest.hex()[..16].to_owned(),
            user,
        }
    }

    /// The folder where it is there already, and safe: nothing is made. Blocking.
    #[must_use]
    pub fn found(&self) -> Option<PathBuf> {
        self.candidates
            .iter()
            .find_map(|it| self.taken(it, Missing::Leave).ok()?)
    }

    /// The folder where it is there, `None` where it would be made; nothing is made. Blocking.
    ///
    /// # Errors
    ///
    /// [`MemoryError`], as [`Self::ready`] would give it.
    pub fn looked_at(&self) -> Result<Option<PathBuf>, MemoryError> {
        for candidate in &self.candidates {
            match self.taken(candidate, Missing::Leave)? {
                Some(folder) => return Ok(Some(folder)),
                None if leads_to_memory(candidate) => return Ok(None),
                None => {}
            }
        }
        Err(self.no_memory())
    }

    /// The folder, made where it is not there. Blocking.
    ///
    /// # Errors
    ///
    /// [`MemoryError`]. One that is not safe is refused, and none after it is tried: a container mounts by a path
    /// that stays.
    pub fn ready(&self) -> Result<PathBuf, MemoryError> {
        let mut failed = None;
        for candidate in &self.candidates {
            match self.taken(candidate, Missing::Make) {
                Ok(Some(folder)) => return Ok(folder),
                Ok(None) => {}
                Err(error @ MemoryError::Unsafe { .. }) => return Err(error),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| self.no_memory()))
    }

    fn no_memory(&self) -> MemoryError {
        MemoryError::NotMemory {
            folders: self.candidates.clone(),
        }
    }

    /// The agent's own folder below a candidate; `None` where that is not in memory, or not there.
    fn taken(&self, candidate: &Path, missing: Missing) -> Result<Option<PathBuf>, MemoryError> {
        let mut attempts = 0;
        loop {
            match walk(candidate, &self.own, missing, self.user) {
                // Another agent's end took an empty folder away while this one went in.
                Err(MemoryError::Make { source, .. })
                    if source.kind() == io::ErrorKind::NotFound && attempts < TRIES =>
                {
                    attempts += 1;
                }
                walked => return walked,
            }
        }
    }
}

/// Goes from `/` to the agent's own folder below a candidate, by handles.
fn walk(
    candidate: &Path,
    own: &str,
    missing: Missing,
    own_user: u32,
) -> Result<Option<PathBuf>, MemoryError> {
    let unsafe_at = |folder: &Path, flaw| MemoryError::Unsafe {
        folder: folder.to_owned(),
        flaw,
    };
    let failed = |folder: &Path, errno: Errno| MemoryError::Make {
        folder: folder.to_owned(),
        source: errno.into(),
    };
    let mut parts = Vec::new();
    let mut components = candidate.components();
    if components.next() != Some(Component::RootDir) {
        return Err(unsafe_at(candidate, Flaw::Path));
    }
    for component in components {
        match component {
            Component::Normal(name) => parts.push(name),
            _ => return Err(unsafe_at(candidate, Flaw::Path)),
        }
    }
    let above = parts.len().saturating_sub(1);
    parts.push(OsStr::new(own));
    let mut path = PathBuf::from("/");
    let root = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut folder = open(&path, root, Mode::empty()).map_err(|errno| failed(&path, errno))?;
    let last = parts.len() - 1;
    for (index, name) in parts.into_iter().enumerate() {
        path.push(name);
        // What is not there yet will be of the file system above it.
        let next = match enter(folder.as_fd(), name) {
            Ok(next) => next,
            Err(Errno::NOENT) if !is_memory_at(folder.as_fd()) => return Ok(None),
            Err(Errno::NOENT) if missing == Missing::Leave => return Ok(None),
            Err(Errno::NOENT) if index < above => return Err(failed(&path, Errno::NOENT)),
            Err(Errno::NOENT) => {
                match mkdirat(&folder, name, Mode::RWXU) {
                    // Somebody was quicker: it is looked at like any other.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(failed(&path, errno)),
                }
                enter(folder.as_fd(), name).map_err(|errno| failed(&path, errno))?
            }
            Err(errno) => return Err(failed(&path, errno)),
        };
        let stat = fstat(&next).map_err(|errno| failed(&path, errno))?;
        let is_own = index == last;
        if let Some(flaw) = flaw(stat.st_mode, stat.st_uid, own_user, index < above, is_own) {
            // A candidate on a disk was never meant for this: the next one is looked at.
            return if is_memory_at(folder.as_fd()) || leads_to_memory(candidate) {
                Err(unsafe_at(&path, flaw))
            } else {
                Ok(None)
            };
        }
        folder = next;
    }
    Ok(is_memory_at(folder.as_fd()).then_some(path))
}

/// Whether a candidate is, or would be, of a file system that is memory.
fn leads_to_memory(candidate: &Path) -> bool {
    let there = candidate.ancestors().find(|it| it.exists());
    there.is_some_and(is_memory)
}

/// A handle of what bears the name, whatever it is.
fn enter(folder: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

/// What is wrong with a folder: one `above` may be everybody's where nobody takes away what is another's there,
/// and the agent's `own` is nobody else's at all.
fn flaw(mode: u32, uid: u32, own_user: u32, above: bool, own: bool) -> Option<Flaw> {
    match FileType::from_raw_mode(mode) {
        FileType::Directory => {}
        FileType::Symlink => return Some(Flaw::Symlink),
        _ => return Some(Flaw::NotFolder),
    }
    if uid != own_user && (own || uid != 0) {
        return Some(Flaw::Owner { uid, own: own_user });
    }
    let mode = mode & 0o7777;
    let is_open = if own {
        mode & 0o077 != 0
    } else {
        mode & OTHERS_WRITE != 0 && !(above && mode & STICKY != 0)
    };
    is_open.then_some(Flaw::Mode { mode })
}

fn is_memory_at(folder: BorrowedFd<'_>) -> bool {
    fstatfs(folder)
        .is_ok_and(|facts| u64::try_from(facts.f_type).is_ok_and(|kind| IN_MEMORY.contains(&kind)))
}

/// Whether a folder is of a file system that is memory.
#[must_use]
pub fn is_memory(path: &Path) -> bool {
    rustix::fs::statfs(path)
        .is_ok_and(|facts| u64::try_from(facts.f_type).is_ok_and(|kind| IN_MEMORY.contains(&kind)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};

    use super::*;

    fn flaw_of(folder: &MemoryFolder) -> (PathBuf, Flaw) {
        assert_eq!(folder.found(), None);
        assert!(matches!(
            folder.looked_at(),
            Err(MemoryError::Unsafe { .. })
        ));
        match folder.ready() {
            Err(error @ MemoryError::Unsafe { .. }) => {
                assert!(!error.hint().is_empty());
                let MemoryError::Unsafe { folder, flaw } = error else {
                    unreachable!()
                };
                (folder, flaw)
            }
            other => panic!("{other:?}"),
        }
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_on_a_disk_is_refused_and_one_in_memory_is_the_agent_s_alone() {
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let folder = MemoryFolder::new(Some(disk.path()), disk.path());
        assert!(matches!(folder.ready(), Err(MemoryError::NotMemory { .. })));
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let parent = memory.path().join("mcp");
        let folder = MemoryFolder::new(Some(&parent), disk.path());
        assert_eq!(folder.found(), None);
        assert_eq!(folder.looked_at().unwrap(), None);
        assert!(!parent.exists(), "looking makes nothing");
        let ready = folder.ready().unwrap();
        for made in [&parent, &ready] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o7777, 0o700);
        }
        assert_eq!(folder.ready().unwrap(), ready);
        assert_eq!(folder.found(), Some(ready.clone()));
        assert_eq!(folder.looked_at().unwrap(), Some(ready.clone()));
        let other = MemoryFolder::new(Some(&parent), memory.path());
        assert_ne!(other.ready().unwrap(), ready);
    }

    #[test]
    fn a_symlink_on_the_way_is_refused_wherever_it_leads() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let parent = memory.path().join("mcp");
        let folder = MemoryFolder::new(Some(&parent), memory.path());
        let own = folder.ready().unwrap();
        fs::remove_dir(&own).unwrap();
        let elsewhere = memory.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        mode(&elsewhere, 0o700);
        symlink(&elsewhere, &own).unwrap();
        assert_eq!(flaw_of(&folder), (own.clone(), Flaw::Symlink));
        fs::remove_file(&own).unwrap();
        fs::remove_dir(&parent).unwrap();
        symlink(&elsewhere, &parent).unwrap();
        assert_eq!(flaw_of(&folder), (parent.clone(), Flaw::Symlink));
        // One above, too.
        let below = MemoryFolder::new(Some(&parent.join("deep")), memory.path());
        assert_eq!(flaw_of(&below), (parent.clone(), Flaw::Symlink));
        fs::remove_file(&parent).unwrap();
        fs::write(&parent, "").unwrap();
        assert_eq!(flaw_of(&folder), (parent.clone(), Flaw::NotFolder));
        let up = MemoryFolder::new(Some(&memory.path().join("x/../mcp")), memory.path());
        assert_eq!(flaw_of(&up).1, Flaw::Path);
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_others_may_change_is_refused() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let parent = memory.path().join("mcp");
        let folder = MemoryFolder::new(Some(&parent), memory.path());
        let own = folder.ready().unwrap();
        for open in [0o777, 0o1777, 0o770, 0o702] {
            mode(&parent, open);
            assert_eq!(
                flaw_of(&folder),
                (parent.clone(), Flaw::Mode { mode: open })
            );
        }
        mode(&parent, 0o755);
        assert_eq!(folder.ready().unwrap(), own);
        for open in [0o750, 0o701, 0o777] {
            mode(&own, open);
            assert_eq!(flaw_of(&folder), (own.clone(), Flaw::Mode { mode: open }));
        }
        mode(&own, 0o700);
        mode(memory.path(), 0o777);
        assert_eq!(flaw_of(&folder).0, memory.path());
        // As /dev/shm is: nobody takes away what is another's.
        mode(memory.path(), 0o1777);
        assert_eq!(folder.ready().unwrap(), own);
    }

    #[test]
    fn a_folder_of_another_user_is_refused() {
        let folder = 0o040_700;
        let other = Some(Flaw::Owner { uid: 7, own: 5 });
        for above in [true, false] {
            assert_eq!(flaw(folder, 7, 5, above, false), other);
            assert_eq!(flaw(folder, 0, 5, above, false), None);
            assert_eq!(flaw(folder, 5, 5, above, false), None);
        }
        assert_eq!(flaw(folder, 7, 5, false, true), other);
        assert!(
            flaw(folder, 0, 5, false, true).is_some(),
            "root's is not the agent's"
        );
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let parent = memory.path().join("mcp");
        let folder = MemoryFolder::new(Some(&parent), memory.path());
        let own = folder.ready().unwrap();
        for made in [&own, &parent] {
            chown(made, Some(12_345), None).unwrap();
            let wanted = Flaw::Owner {
                uid: 12_345,
                own: 0,
            };
            assert_eq!(flaw_of(&folder), (made.clone(), wanted));
            chown(made, Some(0), None).unwrap();
        }
        assert_eq!(folder.ready().unwrap(), own);
    }
}
