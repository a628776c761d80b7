//! Folders and files below a service's folder, by handle.
//!
//! A service's folder is opened once, by its name in the folder of services. From there each part of a path is
//! opened beneath the handle of the one before, with `openat2(2)`: no symlink, no magic link, no other file system, nothing
//! above. Once something is open its path means nothing any more: whoever exchanges parents meanwhile, as a container may
//! below its own folder, exchanges names that nobody looks at again.
//!
//! The service's folder itself may be a mount: the node's owner makes those, and no container can. Everything that the agent
//! keeps for itself is known by device and inode, however it was reached.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use mcp_spec::name::ServiceName;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fchmod, fchown, fstat, fstatvfs,
    fsync, mkdirat, openat2, statat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::FileError;
use super::path::{FilePath, MAX_PARTS, OWN_PREFIX};

/// Beneath a handle, and nowhere else.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// The same, where the last part may be a mount.
const MOUNTED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);
/// The kernel asks to try again where names moved while it looked.
const TRIES: usize = 32;
/// Most entries that are counted for a quota.
pub(crate) const MAX_COUNTED: usize = 200_000;

/// Where services' folders are, and what in them is nobody's.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Places {
    /// The folder of the services' folders.
    pub(crate) services_dir: PathBuf,
    /// The agent's own folder.
    pub(crate) data_dir: PathBuf,
    /// Files and folders of the agent that may lie elsewhere.
    pub(crate) protected: Vec<PathBuf>,
}

/// Who owns what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The user.
    pub(crate) uid: u32,
    /// The group.
    pub(crate) gid: u32,
}

/// What identifies something on disk.
type Identity = (u64, u64);

/// A service's folder.
#[derive(Debug)]
pub(crate) struct Root {
    folder: Folder,
    service: ServiceName,
    own: Vec<Identity>,
}

/// A folder that is open.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    /// How it is called in messages.
    place: String,
}

fn identity(stat: &Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// How many names it has.
#[allow(
    clippy::unnecessary_cast,
    reason = "the kernel's own type is narrower on other machines than x86-64"
)]
pub(crate) const fn links(stat: &Stat) -> u64 {
    stat.st_nlink as u64
}

/// What kind of thing it is, in a word.
pub(crate) fn kind(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "folder",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        _ => "device",
    }
}

fn refused(doing: &str, place: &str, errno: Errno) -> FileError {
    let place = place.to_owned();
    match errno {
        Errno::NOENT => FileError::NotFound { place },
        Errno::LOOP => FileError::Link { place },
        Errno::XDEV => FileError::OtherDisk { place },
        Errno::NOTDIR => FileError::NotFolder { place },
        Errno::AGAIN => FileError::Disturbed { place },
        errno => FileError::io(doing, place, &errno.into()),
    }
}

fn open(
    at: BorrowedFd<'_>,
    name: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
    place: &str,
) -> Result<OwnedFd, FileError> {
    let mut tries = 0;
    loop {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat2(at, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
            Ok(fd) => return Ok(fd),
            // A symlink is no folder either, but that is the lesser news.
            Err(Errno::NOTDIR) if is_link(at, name) => {
                return Err(FileError::Link {
                    place: place.to_owned(),
                });
            }
            Err(errno) => return Err(refused("open", place, errno)),
        }
    }
}

fn is_link(at: BorrowedFd<'_>, name: &[u8]) -> bool {
    statat(at, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| kind(&stat) == "symlink")
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Root {
    /// Opens the folder of a service; with `make` it is made where it is missing, as a first deployment makes it.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub(crate) fn open(
        places: &Places,
        service: &ServiceName,
        make: bool,
    ) -> Result<Self, FileError> {
        let place = service.to_string();
        let base = rustix::fs::open(
            &places.services_dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| {
            FileError::io(
                "open",
                places.services_dir.display().to_string(),
                &errno.into(),
            )
        })?;
        let mut own = Vec::new();
        for path in std::iter::once(&places.data_dir).chain(&places.protected) {
            // What is not there cannot be reached.
            if let Ok(stat) = rustix::fs::stat(path) {
                own.push(identity(&stat));
            }
        }
        let name = service.as_str().as_bytes();
        let opened = match open(base.as_fd(), name, FOLDER, MOUNTED, &place) {
            Err(FileError::NotFound { .. }) if make => {
                let base = Folder {
                    fd: base,
                    place: places.services_dir.display().to_string(),
                };
                base.make(service.as_str(), None, &place)?;
                open(base.fd.as_fd(), name, FOLDER, MOUNTED, &place)?
            }
            opened => opened?,
        };
        let root = Self {
            folder: Folder {
                fd: opened,
                place: format!("{service}:"),
            },
            service: service.clone(),
            own,
        };
        root.spare_own(&root.folder.stat()?, &place)?;
        Ok(root)
    }

    /// Refuses what is the agent's own.
    fn spare_own(&self, stat: &Stat, place: &str) -> Result<(), FileError> {
        if self.own.contains(&identity(stat)) {
            return Err(FileError::Agents {
                place: place.to_owned(),
            });
        }
        Ok(())
    }

    /// How a path of the service is called in messages.
    pub(crate) fn place(&self, path: &FilePath) -> String {
        format!("{}:{path}", self.service)
    }

    /// Opens a folder below, as far as it is there; gives how many parts of it that is.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub(crate) fn reach(&self, parts: &[String]) -> Result<(Folder, usize), FileError> {
        let mut folder = self.folder.again()?;
        for (depth, part) in parts.iter().enumerate() {
            folder = match self.below(&folder, part.as_bytes(), part) {
                Ok(below) => below,
                Err(FileError::NotFound { .. }) => return Ok((folder, depth)),
                Err(error) => return Err(error),
            };
        }
        Ok((folder, parts.len()))
    }

    /// Opens a folder below.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub(crate) fn folder(&self, parts: &[String]) -> Result<Folder, FileError> {
        let (folder, reached) = self.reach(parts)?;
        match parts.get(reached) {
            None => Ok(folder),
            Some(part) => Err(FileError::NotFound {
                place: folder.place_of(part),
            }),
        }
    }

    /// Opens a folder below and makes what is missing, owned by `owner` or by whoever owns the folder above.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub(crate) fn made(&self, parts: &[String], owner: Option<Owner>) -> Result<Folder, FileError> {
        let (mut folder, reached) = self.reach(parts)?;
        for part in &parts[reached..] {
            let place = folder.place_of(part);
            folder.make(part, owner, &place)?;
            folder = self.below(&folder, part.as_bytes(), part)?;
        }
        Ok(folder)
    }

    /// Opens one folder in another.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub(crate) fn below(
        &self,
        folder: &Folder,
        name: &[u8],
        shown: &str,
    ) -> Result<Folder, FileError> {
        let place = folder.place_of(shown);
        let fd = open(folder.fd.as_fd(), name, FOLDER, BENEATH, &place)?;
        let below = Folder { fd, place };
        self.spare_own(&below.stat()?, &below.place)?;
        Ok(below)
    }

    /// What is at a name, which has to be a regular file with this one name; `None` where nothing is.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub(crate) fn look(&self, folder: &Folder, name: &str) -> Result<Option<Stat>, FileError> {
        let place = folder.place_of(name);
        // A handle that reads nothing: opening a FIFO would wait, and opening a device can do anything.
        let flags = OFlags::PATH;
        let fd = match open(folder.fd.as_fd(), name.as_bytes(), flags, BENEATH, &place) {
            Err(FileError::NotFound { .. }) => return Ok(None),
            fd => fd?,
        };
        let stat = fstat(&fd).map_err(|errno| refused("look at", &place, errno))?;
        self.regular(&stat, place)?;
        Ok(Some(stat))
    }

    fn regular(&self, stat: &Stat, place: String) -> Result<(), FileError> {
        self.spare_own(stat, &place)?;
        match kind(stat) {
            "file" if stat.st_nlink == 1 => Ok(()),
            "file" => Err(FileError::HardLinks {
                place,
                links: links(stat),
            }),
            "folder" => Err(FileError::IsFolder { place }),
            "symlink" => Err(FileError::Link { place }),
            kind => Err(FileError::Special {
                place,
                kind: kind.to_owned(),
            }),
        }
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    ///
    /// [`FileError`].
    pub(crate) fn read(&self, folder: &Folder, name: &str) -> Result<(File, Stat), FileError> {
        let place = folder.place_of(name);
        let Some(looked) = self.look(folder, name)? else {
            return Err(FileError::NotFound { place });
        };
        // What was exchanged for a FIFO since is not waited for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = open(folder.fd.as_fd(), name.as_bytes(), flags, BENEATH, &place)?;
        let stat = fstat(&fd).map_err(|errno| refused("look at", &place, errno))?;
        if identity(&stat) != identity(&looked) {
            return Err(FileError::Disturbed { place });
        }
        self.regular(&stat, place)?;
        Ok((File::from(fd), stat))
    }

    /// The bytes of everything below the service's folder.
    ///
    /// # Errors
    ///
    /// [`FileError::Uncounted`] where there is too much to count; what goes meanwhile is no error.
    pub(crate) fn held(&self) -> Result<u64, FileError> {
        let mut counted = 0;
        self.held_in(&self.folder, 0, &mut counted)
    }

    /// One handle a level is open at a time.
    fn held_in(
        &self,
        folder: &Folder,
        depth: usize,
        counted: &mut usize,
    ) -> Result<u64, FileError> {
        let names = folder.names()?;
        *counted += names.len();
        if *counted > MAX_COUNTED {
            return Err(FileError::Uncounted {
                service: self.service.clone(),
                limit: MAX_COUNTED,
            });
        }
        let mut held: u64 = 0;
        for name in names {
            let Some(stat) = folder.stat_of(&name)? else {
                continue;
            };
            held = held.saturating_add(u64::try_from(stat.st_size).unwrap_or_default());
            // What cannot be opened, a mount for one, is not of this folder.
            if kind(&stat) == "folder"
                && depth < MAX_PARTS
                && let Ok(below) = self.below(folder, &name, "…")
            {
                held = held.saturating_add(self.held_in(&below, depth + 1, counted)?);
            }
        }
        Ok(held)
    }
}

impl Folder {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How it is called in messages.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// How a name in it is called in messages.
    pub(crate) fn place_of(&self, name: &str) -> String {
        if self.place.ends_with(':') {
            format!("{}{name}", self.place)
        } else {
            format!("{}/{name}", self.place)
        }
    }

    pub(crate) fn again(&self) -> Result<Self, FileError> {
        // Not a duplicate: each has a place of its own in the list of names.
        let fd = open(self.fd.as_fd(), b".", FOLDER, MOUNTED, &self.place)?;
        Ok(Self {
            fd,
            place: self.place.clone(),
        })
    }

    pub(crate) fn stat(&self) -> Result<Stat, FileError> {
        fstat(&self.fd).map_err(|errno| refused("look at", &self.place, errno))
    }

    /// What a name is, itself; `None` where it is gone.
    pub(crate) fn stat_of(&self, name: &[u8]) -> Result<Option<Stat>, FileError> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(refused("look at", &self.place, errno)),
        }
    }

    /// The names in it, in no order; none of the agent's own. At most as many as are counted for a quota.
    pub(crate) fn names(&self) -> Result<Vec<Vec<u8>>, FileError> {
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut names = Vec::new();
        let again = self.again()?;
        let mut entries = RawDir::new(&again.fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| refused("list", &self.place, errno))?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") && !name.starts_with(OWN_PREFIX.as_bytes()) {
                names.push(name.to_vec());
            }
            if names.len() > MAX_COUNTED {
                break;
            }
        }
        Ok(names)
    }

    /// Makes a folder in it; one that somebody else made meanwhile is as good.
    fn make(&self, name: &str, owner: Option<Owner>, place: &str) -> Result<(), FileError> {
        match mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => return Ok(()),
            Err(errno) => return Err(refused("make", place, errno)),
            Ok(()) => {}
        }
        let made = open(self.fd.as_fd(), name.as_bytes(), FOLDER, BENEATH, place)?;
        give(made.as_fd(), owner, self.owner()?, place)?;
        // Whatever the process's own mask is.
        fchmod(&made, Mode::from_raw_mode(0o755)).map_err(|errno| refused("make", place, errno))?;
        self.sync()
    }

    /// Who owns it.
    pub(crate) fn owner(&self) -> Result<Owner, FileError> {
        Ok(owner_of(&self.stat()?))
    }

    /// Flushes its names. One that was opened without being read cannot be, and need not.
    pub(crate) fn sync(&self) -> Result<(), FileError> {
        match fsync(&self.fd) {
            Ok(()) | Err(Errno::BADF) => Ok(()),
            Err(errno) => Err(refused("flush", &self.place, errno)),
        }
    }

    /// The bytes that are free for whoever is not root.
    pub(crate) fn free(&self) -> Result<u64, FileError> {
        let told = fstatvfs(&self.fd).map_err(|errno| refused("look at", &self.place, errno))?;
        Ok(told.f_bavail.saturating_mul(told.f_frsize))
    }

    /// Removes a name of a file, where it is there.
    pub(crate) fn remove(&self, name: &str) -> Result<(), FileError> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(refused("remove", &self.place_of(name), errno)),
        }
    }
}

/// Who owns something.
pub(crate) const fn owner_of(stat: &Stat) -> Owner {
    Owner {
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

/// Gives what is open to `owner`; without one, to whom its neighbours belong, as far as the agent can: nobody but root, or
/// root of a user namespace, gives anything away.
pub(crate) fn give(
    fd: BorrowedFd<'_>,
    owner: Option<Owner>,
    like: Owner,
    place: &str,
) -> Result<(), FileError> {
    let wanted = owner.unwrap_or(like);
    let stat = fstat(fd).map_err(|errno| refused("look at", place, errno))?;
    if owner_of(&stat) == wanted {
        return Ok(());
    }
    let user = rustix::fs::Uid::from_raw(wanted.uid);
    let group = rustix::fs::Gid::from_raw(wanted.gid);
    match fchown(fd, Some(user), Some(group)) {
        Ok(()) => Ok(()),
        // EINVAL: the user namespace does not have the id.
        Err(Errno::PERM | Errno::INVAL) if owner.is_none() => Ok(()),
        Err(Errno::PERM | Errno::INVAL) => Err(FileError::Owner {
            place: place.to_owned(),
            uid: wanted.uid,
            gid: wanted.gid,
        }),
        Err(errno) => Err(refused("give", place, errno)),
    }
}
