//! Folders and files of the inbox, by handle.
//!
//! Whoever owns the inbox can exchange anything in it at any moment. Each name is opened beneath the handle of
//! the repository with `openat2(2)`: no symlink, no magic link, no other file system, nothing above it, and no
//! wait for a pipe. What is read is a regular file, and is known as one by its open handle.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::Errno;

use super::error::InboxError;

/// Beneath a handle, and nowhere else.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// The kernel asks to try again where names moved while it looked.
const TRIES: usize = 32;

/// A folder of the inbox that is open, the repository itself among them.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    /// How it was reached, for messages alone.
    path: PathBuf,
}

impl Folder {
    /// Opens the repository. Its own path is the node owner's word and may lead over symlinks. `None` where
    /// nothing is there.
    pub(super) fn repository(path: &Path) -> Result<Option<Self>, InboxError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self {
                fd,
                path: path.to_owned(),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(refused(path.to_owned(), errno)),
        }
    }

    /// Opens a folder in it; `None` where there is none.
    pub(super) fn folder(&self, name: &str) -> Result<Option<Self>, InboxError> {
        let path = self.path.join(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Ok(self.open(name, flags)?.map(|fd| Self { fd, path }))
    }

    /// Opens a regular file in it; `None` where there is none.
    pub(super) fn file(&self, name: &str) -> Result<Option<File>, InboxError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Some(fd) = self.open(name, flags)? else {
            return Ok(None);
        };
        let stat = fstat(&fd).map_err(|errno| refused(self.path.join(name), errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Ok(Some(File::from(fd))),
            FileType::Directory => Err(self.odd(name, "a folder")),
            _ => Err(self.odd(name, "no regular file")),
        }
    }

    /// The bytes of a regular file in it, at most `limit` of them; `None` where there is none.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, InboxError> {
        let Some(file) = self.file(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| self.unreadable(name, source))?;
        if bytes.len() as u64 > limit {
            return Err(self.odd(name, "too large for what it is"));
        }
        Ok(Some(bytes))
    }

    /// Whether anything is at a name, whatever it is.
    pub(super) fn has(&self, name: &str) -> Result<bool, InboxError> {
        // A handle that reads nothing. A symlink is something too.
        match self.open(name, OFlags::PATH) {
            Err(InboxError::Odd { .. }) => Ok(true),
            opened => Ok(opened?.is_some()),
        }
    }

    /// The names in it that are UTF-8, one by one, in no order.
    pub(super) fn names(
        &self,
    ) -> Result<impl Iterator<Item = Result<String, InboxError>>, InboxError> {
        let place = self.path.clone();
        let entries =
            Dir::read_from(&self.fd).map_err(|errno| refused(self.path.clone(), errno))?;
        Ok(entries.filter_map(move |entry| match entry {
            Ok(entry) => {
                let name = entry.file_name().to_str().ok()?;
                (!matches!(name, "." | "..")).then(|| Ok(name.to_owned()))
            }
            Err(errno) => Some(Err(refused(place.clone(), errno))),
        }))
    }

    fn open(&self, name: &str, flags: OFlags) -> Result<Option<OwnedFd>, InboxError> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut tries = 0;
        loop {
            match openat2(&self.fd, name, flags, Mode::empty(), BENEATH) {
                Err(Errno::AGAIN | Errno::INTR) if tries < TRIES => tries += 1,
                Ok(fd) => return Ok(Some(fd)),
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(refused(self.path.join(name), errno)),
            }
        }
    }

    pub(super) fn odd(&self, name: &str, what: &'static str) -> InboxError {
        let path = self.path.join(name);
        InboxError::Odd { path, what }
    }

    pub(super) fn unreadable(&self, name: &str, source: io::Error) -> InboxError {
        let path = self.path.join(name);
        InboxError::Unreadable { path, source }
    }
}

fn refused(path: PathBuf, errno: Errno) -> InboxError {
    let what = match errno {
        Errno::LOOP => "a symlink",
        Errno::XDEV => "on another file system",
        Errno::NOTDIR => "no folder",
        // A socket, or a pipe without a reader.
        Errno::NXIO => "no regular file",
        Errno::AGAIN => "moved about all the time",
        errno => {
            let source = errno.into();
            return InboxError::Unreadable { path, source };
        }
    };
    InboxError::Odd { path, what }
}
