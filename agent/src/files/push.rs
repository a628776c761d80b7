//! A file arrives: without a name until it is whole, checked and on the disk, and then in one step in its place.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use mcp_spec::image::Digest;
use mcp_spec::name::ServiceName;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, Stat, fallocate, fchmod, linkat,
    openat, renameat_with,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::disk;

use super::error::FileError;
use super::handle::{Folder, Owner, Places, Root, give, owner_of};
use super::intents::Intent;
use super::list::Entry;
use super::path::FilePath;
use super::versions::{Versions, Was};

/// Bytes that are copied at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// A push, as it was signed for, with what the node's owner allows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Push {
    pub(crate) service: ServiceName,
    pub(crate) path: FilePath,
    pub(crate) bytes: u64,
    pub(crate) sha256: Digest,
    /// Permission bits of a new file.
    pub(crate) mode: u32,
    /// Whether they count for a file that is there as well.
    pub(crate) set_mode: bool,
    pub(crate) make_folders: bool,
    /// The owner of a new file, where the definition tells one.
    pub(crate) owner: Option<Owner>,
    pub(crate) allowed: Allowed,
}

/// What a push may take.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Allowed {
    /// Bytes of the service's folder; `None` for any.
    pub(crate) quota: Option<u64>,
    /// Bytes that stay free on the disk.
    pub(crate) reserve: u64,
    /// Bytes of earlier versions that a service keeps.
    pub(crate) keep: u64,
    /// Bytes that other pushes to the service are going to take.
    pub(crate) expected: u64,
}

/// What a push did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pushed {
    pub(crate) replaced: bool,
    pub(crate) can_undo: bool,
    pub(crate) entry: Entry,
}

/// Takes a file in. Blocking.
///
/// # Errors
///
/// [`FileError`]; nothing is changed then, but that folders that were missing may have been made.
pub(crate) fn run(places: &Places, push: &Push, input: &mut dyn Read) -> Result<Pushed, FileError> {
    let root = Root::open(places, &push.service, true)?;
    let Some((parents, name)) = push.path.split() else {
        return Err(FileError::IsFolder {
            place: root.place(&push.path),
        });
    };
    let (near, reached) = root.reach(parents)?;
    if reached < parents.len() && !push.make_folders {
        return Err(FileError::NotFound {
            place: near.place_of(&parents[reached]),
        });
    }
    let there = if reached == parents.len() {
        root.look(&near, name)?
    } else {
        None
    };
    require_room(&root, &near, push, there.as_ref())?;
    let place = root.place(&push.path);
    let arriving = Arriving::new(places, push, parents, &near, reached)?;
    arriving.fill(push, input, &place)?;
    arriving.settle(places, &root, push, &place)
}

fn require_room(
    root: &Root,
    folder: &Folder,
    push: &Push,
    there: Option<&Stat>,
) -> Result<(), FileError> {
    let Allowed {
        quota,
        reserve,
        expected,
        ..
    } = push.allowed;
    let free = folder.free()?;
    if free < push.bytes.saturating_add(reserve) {
        return Err(FileError::Full {
            place: folder.place().to_owned(),
            free,
            bytes: push.bytes,
            reserve,
        });
    }
    if let Some(quota) = quota {
        let replaced = there.map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or_default());
        let held = root.held()?.saturating_sub(replaced);
        let needed = push.bytes.saturating_add(expected);
        if held.saturating_add(needed) > quota {
            return Err(FileError::Quota {
                service: push.service.clone(),
                held,
                bytes: needed,
                quota,
            });
        }
    }
    Ok(())
}

/// A file that has no place yet.
struct Arriving {
    file: File,
    /// Its name in the nearest folder that was there at the start, on file systems without nameless files.
    named: Option<Named>,
}

/// Removes the name where the file does not get its place.
struct Named {
    intent: Intent,
    folder: Folder,
}

impl Drop for Named {
    fn drop(&mut self) {
        if let Err(error) = self.folder.remove(&self.intent.name) {
            tracing::warn!(%error, "what a push left behind cannot be removed");
        }
    }
}

impl Arriving {
    fn new(
        places: &Places,
        push: &Push,
        parents: &[String],
        near: &Folder,
        reached: usize,
    ) -> Result<Self, FileError> {
        let failed = |errno: Errno| FileError::io("make a file in", near.place(), &errno.into());
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let nameless = openat(near.fd(), ".", flags | OFlags::TMPFILE, mode);
        let (fd, named): (OwnedFd, _) = match nameless {
            Ok(fd) => (fd, None),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {
                let intent = Intent::write(places, &push.service, &parents[..reached])?;
                let exclusive = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let fd =
                    openat(near.fd(), &intent.name, flags | exclusive, mode).map_err(failed)?;
                let folder = near.again()?;
                (fd, Some(Named { intent, folder }))
            }
            Err(errno) => return Err(failed(errno)),
        };
        Ok(Self {
            file: File::from(fd),
            named,
        })
    }

    /// Takes the bytes in, and holds them against what was signed.
    fn fill(&self, push: &Push, input: &mut dyn Read, place: &str) -> Result<(), FileError> {
        let failed = |error: &io::Error| FileError::io("write", place, error);
        let other = |what: String| FileError::OtherBytes {
            place: place.to_owned(),
            what,
        };
        if push.bytes > 0 {
            // So that a full disk is found at once; where it cannot be done, writing finds it.
            let room = fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, push.bytes);
            if let Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) = room {
                return Err(failed(&errno.into()));
            }
        }
        let mut file = &self.file;
        let mut hash = Sha256::new();
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut received: u64 = 0;
        loop {
            let read = match input.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(FileError::io("receive", place, &error)),
            };
            received = received.saturating_add(read as u64);
            if received > push.bytes {
                return Err(other(format!("more than {} bytes", push.bytes)));
            }
            hash.update(&chunk[..read]);
            file.write_all(&chunk[..read])
                .map_err(|error| failed(&error))?;
        }
        if received < push.bytes {
            return Err(other(format!("{received} of {} bytes", push.bytes)));
        }
        let found = Digest::from_bytes(hash.finalize().into());
        if found != push.sha256 {
            return Err(other(format!("its digest is {found}")));
        }
        Ok(())
    }

    /// Gives it owner, mode and place.
    fn settle(
        mut self,
        places: &Places,
        root: &Root,
        push: &Push,
        place: &str,
    ) -> Result<Pushed, FileError> {
        let (parents, name) = push.path.split().unwrap_or((&[], ""));
        let folder = root.made(parents, push.owner)?;
        let old = root.look(&folder, name)?;
        match &old {
            Some(old) => {
                give(self.file.as_fd(), Some(owner_of(old)), owner_of(old), place)?;
            }
            None => give(self.file.as_fd(), push.owner, folder.owner()?, place)?,
        }
        let mode = match &old {
            Some(old) if !push.set_mode => old.st_mode,
            _ => push.mode,
        };
        let failed = |errno: Errno| FileError::io("write", place, &errno.into());
        fchmod(&self.file, Mode::from_raw_mode(mode & 0o777)).map_err(failed)?;
        disk::sync(&self.file, Path::new(place))
            .map_err(|error| FileError::io("flush", place, &error))?;
        let versions = Versions::of(places, &push.service);
        let can_undo = match &old {
            None => {
                self.take_free_name(&folder, name, place)?;
                folder.sync()?;
                versions
                    .keep_nothing(&push.path, push.sha256)
                    .map(|()| true)
            }
            Some(old) => {
                let given = self.exchange(places, push, &folder, name, old, place)?;
                folder.sync()?;
                let was = Was::of(old);
                let now = Some(push.sha256);
                let kept = &given.intent.name;
                versions.keep(&folder, kept, &push.path, was, now, push.allowed.keep)
            }
        };
        // The file is in its place by now: what cannot be undone is no failure of the push.
        let can_undo = can_undo.unwrap_or_else(|error| {
            tracing::warn!(%error, place, "the earlier version is not kept");
            drop(versions.forget(&push.path));
            false
        });
        let stat = folder.stat_of(name.as_bytes())?;
        let stat = stat.ok_or_else(|| FileError::Disturbed {
            place: place.to_owned(),
        })?;
        Ok(Pushed {
            replaced: old.is_some(),
            can_undo,
            entry: Entry::of(push.path.to_string(), &stat, false),
        })
    }

    /// Takes a name that nothing has.
    fn take_free_name(
        &mut self,
        folder: &Folder,
        name: &str,
        place: &str,
    ) -> Result<(), FileError> {
        let taken = match self.named.take() {
            None => self.link(folder, name),
            Some(named) => renameat_with(
                named.folder.fd(),
                &named.intent.name,
                folder.fd(),
                name,
                RenameFlags::NOREPLACE,
            ),
        };
        taken.map_err(|errno| match errno {
            Errno::EXIST | Errno::NOENT => FileError::Disturbed {
                place: place.to_owned(),
            },
            errno => FileError::io("name", place, &errno.into()),
        })?;
        self.require_own(folder, name, place)
    }

    /// Gives the nameless file a name.
    fn link(&self, folder: &Folder, name: &str) -> Result<(), Errno> {
        // The magic link is the agent's own handle; it needs no privilege, as AT_EMPTY_PATH does (open(2)).
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, own, folder.fd(), name, AtFlags::SYMLINK_FOLLOW)
    }

    /// Takes the place of `old`, which gets the name that is given back.
    fn exchange(
        &mut self,
        places: &Places,
        push: &Push,
        folder: &Folder,
        name: &str,
        old: &Stat,
        place: &str,
    ) -> Result<Named, FileError> {
        let parents = push.path.split().map_or(&[][..], |(parents, _)| parents);
        let named = match self.named.take() {
            // The folder was there, so the file has its name in it.
            Some(named) if same(&named.folder, folder)? => named,
            Some(_) => {
                return Err(FileError::Disturbed {
                    place: place.to_owned(),
                });
            }
            None => {
                let intent = Intent::write(places, &push.service, parents)?;
                self.link(folder, &intent.name)
                    .map_err(|errno| FileError::io("name", place, &errno.into()))?;
                Named {
                    intent,
                    folder: folder.again()?,
                }
            }
        };
        let own = self
            .file
            .metadata()
            .map_err(|error| FileError::io("look at", place, &error))?;
        let own = (own.dev(), own.ino());
        exchange(folder, &named.intent.name, own, name, old, place)?;
        Ok(named)
    }

    /// Whoever may write into the folder may have put something else under the name while it was
    /// there: then this is no success.
    fn require_own(&self, folder: &Folder, name: &str, place: &str) -> Result<(), FileError> {
        let own = self
            .file
            .metadata()
            .map_err(|error| FileError::io("look at", place, &error))?;
        let there = folder.stat_of(name.as_bytes())?;
        if there.is_some_and(|there| (there.st_dev, there.st_ino) == (own.dev(), own.ino())) {
            return Ok(());
        }
        Err(FileError::Disturbed {
            place: place.to_owned(),
        })
    }
}

fn same(one: &Folder, other: &Folder) -> Result<bool, FileError> {
    let (one, other) = (one.stat()?, other.stat()?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Exchanges two names of a folder: `temporary` of the file with the identity `own`, and `name` of `old`. Where
/// either is of something else by now, since whoever may write into the folder put it there, nothing is changed.
///
/// # Errors
///
/// [`FileError::Disturbed`], and what the disk said.
pub(crate) fn exchange(
    folder: &Folder,
    temporary: &str,
    own: (u64, u64),
    name: &str,
    old: &Stat,
    place: &str,
) -> Result<(), FileError> {
    let disturbed = || FileError::Disturbed {
        place: place.to_owned(),
    };
    let swap = || {
        renameat_with(
            folder.fd(),
            temporary,
            folder.fd(),
            name,
            RenameFlags::EXCHANGE,
        )
    };
    swap().map_err(|errno| match errno {
        Errno::NOENT => disturbed(),
        errno => FileError::io("replace", place, &errno.into()),
    })?;
    let is = |name: &str, wanted: (u64, u64)| -> Result<bool, FileError> {
        let stat = folder.stat_of(name.as_bytes())?;
        Ok(stat.is_some_and(|stat| (stat.st_dev, stat.st_ino) == wanted))
    };
    if is(temporary, (old.st_dev, old.st_ino))? && is(name, own)? {
        return Ok(());
    }
    // What stood there is not ours to remove.
    match swap() {
        Ok(()) | Err(Errno::NOENT) => Err(disturbed()),
        Err(errno) => Err(FileError::io("put back", place, &errno.into())),
    }
}
