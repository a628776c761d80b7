//! What pushes replaced: one earlier version of each pushed file, so that a push can be undone.
//!
//! They lie in `DATA/.file-versions/SERVICE/ID/`, where no container sees them: `file`, and `record.json`, which is
//! written last. A folder without a record is what was cut off, and goes at the next start. A service keeps as many bytes of
//! them as the node's owner allows; the oldest go first.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use mcp_spec::image::Digest;
use mcp_spec::name::ServiceName;
use rustix::fs::{CWD, Stat, renameat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::FileError;
use super::handle::{Folder, Owner, Places, owner_of};
use super::path::FilePath;
use crate::disk;

/// The folder's name; what begins with a dot is in no backup.
const FOLDER: &str = ".file-versions";
/// Largest record that is read.
const MAX_RECORD_BYTES: u64 = 16 * 1024;

/// The version that a push replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Where it was.
    pub(crate) path: FilePath,
    /// What it was; `None` where there was nothing.
    pub(crate) was: Option<Was>,
    /// What took its place; `None` where nothing did.
    pub(crate) now: Option<Digest>,
    /// When, in seconds since 1970.
    at: u64,
}

/// What a kept file is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Was {
    /// Its size.
    pub(crate) bytes: u64,
    /// Its permission bits.
    pub(crate) mode: u32,
    /// Its owner.
    pub(crate) owner: Owner,
}

impl Was {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            bytes: u64::try_from(stat.st_size).unwrap_or_default(),
            mode: stat.st_mode & 0o777,
            owner: owner_of(stat),
        }
    }
}

/// The versions of a service.
#[derive(Debug)]
pub(crate) struct Versions {
    dir: PathBuf,
}

fn failed<'a>(doing: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |error| FileError::io(doing, path.display().to_string(), &error)
}

impl Versions {
    pub(crate) fn of(places: &Places, service: &ServiceName) -> Self {
        Self {
            dir: places.data_dir.join(FOLDER).join(service.as_str()),
        }
    }

    fn slot(&self, path: &FilePath) -> PathBuf {
        let digest = Digest::of(path.to_string().as_bytes());
        self.dir.join(&digest.hex()[..32])
    }

    /// The kept file of a path, by name.
    pub(crate) fn file(&self, path: &FilePath) -> PathBuf {
        self.slot(path).join("file")
    }

    /// What is kept of a path.
    pub(crate) fn get(&self, path: &FilePath) -> Option<Record> {
        read_record(&self.slot(path)).filter(|record| record.path == *path)
    }

    /// Forgets what is kept of a path.
    ///
    /// # Errors
    ///
    /// What the disk said.
    pub(crate) fn forget(&self, path: &FilePath) -> Result<(), FileError> {
        remove(&self.slot(path))
    }

    /// Keeps that there was nothing at a path.
    ///
    /// # Errors
    ///
    /// What the disk said.
    pub(crate) fn keep_nothing(&self, path: &FilePath, now: Digest) -> Result<(), FileError> {
        let slot = self.begin(path)?;
        write_record(&slot, path, None, Some(now))
    }

    /// Takes the file at `name` of `folder` away and keeps it. Gives whether it was: one that is larger than
    /// a service may keep is removed.
    ///
    /// # Errors
    ///
    /// What the disk said.
    pub(crate) fn keep(
        &self,
        folder: &Folder,
        name: &str,
        path: &FilePath,
        was: Was,
        now: Option<Digest>,
        limit: u64,
    ) -> Result<bool, FileError> {
        if was.bytes > limit {
            self.forget(path)?;
            folder.remove(name)?;
            return Ok(false);
        }
        let slot = self.begin(path)?;
        let file = slot.join("file");
        match renameat(folder.fd(), name, CWD, &file) {
            Ok(()) => {}
            Err(Errno::XDEV) => {
                copy_away(folder, name, &file, was)?;
                folder.remove(name)?;
            }
            Err(errno) => return Err(failed("keep", &file)(errno.into())),
        }
        write_record(&slot, path, Some(was), now)?;
        self.make_room(&slot, limit)?;
        Ok(true)
    }

    /// An empty place for a version. Without a record it counts for nothing yet.
    fn begin(&self, path: &FilePath) -> Result<PathBuf, FileError> {
        let slot = self.slot(path);
        remove(&slot)?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&slot)
            .map_err(failed("make", &slot))?;
        Ok(slot)
    }

    /// Removes the oldest until the limit holds.
    fn make_room(&self, newest: &Path, limit: u64) -> Result<(), FileError> {
        let mut all: Vec<(u64, u64, PathBuf)> = slots(&self.dir)
            .into_iter()
            .filter_map(|slot| {
                let record = read_record(&slot)?;
                Some((record.at, record.was.map_or(0, |was| was.bytes), slot))
            })
            .collect();
        all.sort();
        let mut held: u64 = all.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, slot) in all {
            if held <= limit {
                break;
            }
            if slot != newest {
                remove(&slot)?;
                held -= bytes;
            }
        }
        Ok(())
    }
}

/// Removes what was cut off: versions without a record, and those that stand in their old place again.
pub(crate) fn sweep(places: &Places) {
    for service in slots(&places.data_dir.join(FOLDER)) {
        for slot in slots(&service) {
            let linked = fs::symlink_metadata(slot.join("file")).is_ok_and(|it| it.nlink() > 1);
            if (linked || read_record(&slot).is_none())
                && let Err(error) = remove(&slot)
            {
                tracing::warn!(%error, "what a push left behind cannot be removed");
            }
        }
    }
}

fn slots(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn remove(slot: &Path) -> Result<(), FileError> {
    // The record first: what is left of it then is swept.
    match fs::remove_file(slot.join("record.json")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove", slot)(error));
        }
        _ => {}
    }
    match fs::remove_dir_all(slot) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", slot)(error)),
        _ => Ok(()),
    }
}

fn read_record(slot: &Path) -> Option<Record> {
    let file = slot.join("record.json");
    if fs::metadata(&file).ok()?.len() > MAX_RECORD_BYTES {
        return None;
    }
    serde_json::from_slice(&fs::read(file).ok()?).ok()
}

fn write_record(
    slot: &Path,
    path: &FilePath,
    was: Option<Was>,
    now: Option<Digest>,
) -> Result<(), FileError> {
    let at = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let record = Record {
        path: path.clone(),
        was,
        now,
        at,
    };
    let to = slot.join("record.json");
    let beside = slot.join("record.new");
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(&serde_json::to_vec(&record)?)?;
        disk::sync(&file, &beside)?;
        disk::rename(&beside, &to)?;
        disk::sync_dir(slot)
    };
    write().map_err(failed("write", &to))
}

/// The data directory is on another file system than the service.
fn copy_away(folder: &Folder, name: &str, to: &Path, was: Was) -> Result<(), FileError> {
    use rustix::fs::{Mode, OFlags, fchown, openat};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = folder.place_of(name);
    let from = openat(folder.fd(), name, flags, Mode::empty())
        .map_err(|errno| FileError::io("read", place, &errno.into()))?;
    let copy = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(to)?;
        io::copy(&mut io::Read::take(File::from(from), was.bytes), &mut file)?;
        // The record knows the owner as well: an agent without the right to give it away gives it back then.
        let _ = fchown(
            file.as_fd(),
            Some(rustix::fs::Uid::from_raw(was.owner.uid)),
            Some(rustix::fs::Gid::from_raw(was.owner.gid)),
        );
        disk::sync(&file, to)
    };
    copy().map_err(failed("keep", to))
}
