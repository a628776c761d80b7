//! Back to what a push replaced. What is there now is kept in its turn, so an undo can be undone.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use mcp_spec::image::Digest;
use mcp_spec::name::ServiceName;
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, Stat, fchmod, linkat, openat, renameat_with,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::disk;

use super::error::FileError;
use super::handle::{Folder, Places, Root, give};
use super::intents::Intent;
use super::list::Entry;
use super::path::FilePath;
use super::pull::digest;
use super::push::exchange;
use super::versions::{Versions, Was};

/// What is asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Undo {
    pub(crate) service: ServiceName,
    pub(crate) path: FilePath,
    /// Also where the file was changed since.
    pub(crate) force: bool,
    /// Bytes of earlier versions that a service keeps.
    pub(crate) keep: u64,
}

/// What was put back; `None` where nothing was there before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Undone {
    pub(crate) file: Option<(Entry, Digest)>,
}

/// Undoes a push. Blocking.
///
/// # Errors
///
/// [`FileError`]; nothing is changed then.
pub(crate) fn run(places: &Places, undo: &Undo) -> Result<Undone, FileError> {
    let root = Root::open(places, &undo.service, false)?;
    let place = root.place(&undo.path);
    let Some((parents, name)) = undo.path.split() else {
        return Err(FileError::IsFolder { place });
    };
    let versions = Versions::of(places, &undo.service);
    let nothing_kept = || FileError::NothingKept {
        place: place.clone(),
    };
    let record = versions.get(&undo.path).ok_or_else(nothing_kept)?;
    let folder = root.folder(parents)?;
    let current = match root.look(&folder, name)? {
        None => None,
        Some(_) => {
            let (mut file, stat) = root.read(&folder, name)?;
            let bytes = u64::try_from(stat.st_size).unwrap_or_default();
            Some((digest(&mut file, bytes, &place)?, stat))
        }
    };
    if !undo.force && current.as_ref().map(|(digest, _)| *digest) != record.now {
        return Err(FileError::NotAsPushed { place });
    }
    let intent = Intent::write(places, &undo.service, parents)?;
    let back = Back {
        folder: &folder,
        name,
        place: &place,
        intent: &intent,
    };
    let Some(was) = record.was else {
        let Some((_, stat)) = current else {
            return Err(nothing_kept());
        };
        back.take_away(&stat)?;
        keep(&versions, &back, undo, &stat, None);
        return Ok(Undone { file: None });
    };
    let (own, sha256) = back.bring(&versions, &undo.path, was)?;
    match current {
        Some((_, stat)) => {
            back.or_remove(exchange(&folder, &intent.name, own, name, &stat, &place))?;
            folder.sync()?;
            keep(&versions, &back, undo, &stat, Some(sha256));
        }
        None => {
            let renamed = renameat_with(
                folder.fd(),
                &intent.name,
                folder.fd(),
                name,
                RenameFlags::NOREPLACE,
            );
            back.or_remove(renamed.map_err(|errno| back.failed("put back", errno)))?;
            folder.sync()?;
            if let Err(error) = versions.keep_nothing(&undo.path, sha256) {
                tracing::warn!(%error, place, "the undo cannot be undone");
                drop(versions.forget(&undo.path));
            }
        }
    }
    let stat = folder.stat_of(name.as_bytes())?;
    let stat = stat.ok_or(FileError::Disturbed { place })?;
    let entry = Entry::of(undo.path.to_string(), &stat, false);
    Ok(Undone {
        file: Some((entry, sha256)),
    })
}

/// Keeps what the undo took away. It is done by now: what cannot be kept is no failure.
fn keep(versions: &Versions, back: &Back<'_>, undo: &Undo, stat: &Stat, now: Option<Digest>) {
    let name = &back.intent.name;
    let was = Was::of(stat);
    if let Err(error) = versions.keep(back.folder, name, &undo.path, was, now, undo.keep) {
        tracing::warn!(%error, place = back.place, "the undo cannot be undone");
        drop(versions.forget(&undo.path));
        drop(back.folder.remove(name));
    }
}

/// A file on its way back.
struct Back<'a> {
    folder: &'a Folder,
    name: &'a str,
    place: &'a str,
    intent: &'a Intent,
}

impl Back<'_> {
    fn failed(&self, doing: &str, errno: Errno) -> FileError {
        match errno {
            Errno::EXIST | Errno::NOENT => FileError::Disturbed {
                place: self.place.to_owned(),
            },
            errno => FileError::io(doing, self.place, &errno.into()),
        }
    }

    /// Leaves no name of the agent's behind where something failed.
    fn or_remove<T>(&self, result: Result<T, FileError>) -> Result<T, FileError> {
        if result.is_err() {
            drop(self.folder.remove(&self.intent.name));
        }
        result
    }

    /// Brings the kept file under the agent's name into the folder; gives its identity and digest.
    fn bring(
        &self,
        versions: &Versions,
        path: &FilePath,
        was: Was,
    ) -> Result<((u64, u64), Digest), FileError> {
        let kept = versions.file(path);
        let failed = |error: &io::Error| FileError::io("read", kept.display().to_string(), error);
        let mut file = File::open(&kept).map_err(|error| failed(&error))?;
        let sha256 = digest(&mut file, was.bytes, self.place)?;
        let linked = linkat(
            CWD,
            &kept,
            self.folder.fd(),
            &self.intent.name,
            AtFlags::empty(),
        );
        if linked.is_ok() {
            let own = file.metadata().map_err(|error| failed(&error))?;
            return Ok(((own.dev(), own.ino()), sha256));
        }
        // Another file system, or a file that may not get a second name.
        io::Seek::rewind(&mut file).map_err(|error| failed(&error))?;
        let copied = self.copy(file, was, sha256);
        Ok((self.or_remove(copied)?, sha256))
    }

    fn copy(&self, from: File, was: Was, sha256: Digest) -> Result<(u64, u64), FileError> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = openat(
            self.folder.fd(),
            &self.intent.name,
            flags,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(|errno| self.failed("make", errno))?;
        let mut file = File::from(made);
        let failed = |error: &io::Error| FileError::io("write", self.place, error);
        io::copy(&mut io::Read::take(from, was.bytes), &mut file).map_err(|e| failed(&e))?;
        io::Seek::rewind(&mut file).map_err(|error| failed(&error))?;
        if digest(&mut file, was.bytes, self.place)? != sha256 {
            return Err(FileError::Changed {
                place: self.place.to_owned(),
            });
        }
        give(file.as_fd(), Some(was.owner), was.owner, self.place)?;
        fchmod(&file, Mode::from_raw_mode(was.mode & 0o777))
            .map_err(|errno| self.failed("write", errno))?;
        disk::sync(&file, Path::new(self.place)).map_err(|error| failed(&error))?;
        let own = file.metadata().map_err(|error| failed(&error))?;
        Ok((own.dev(), own.ino()))
    }

    /// Takes the file away under the agent's name.
    fn take_away(&self, stat: &Stat) -> Result<(), FileError> {
        let rename = |from: &str, to: &str| {
            let flags = RenameFlags::NOREPLACE;
            renameat_with(self.folder.fd(), from, self.folder.fd(), to, flags)
                .map_err(|errno| self.failed("take away", errno))
        };
        rename(self.name, &self.intent.name)?;
        let taken = self.folder.stat_of(self.intent.name.as_bytes())?;
        if taken.is_some_and(|taken| (taken.st_dev, taken.st_ino) == (stat.st_dev, stat.st_ino)) {
            return self.folder.sync();
        }
        // It was exchanged in the last moment, and is not what the undo is about.
        rename(&self.intent.name, self.name)?;
        Err(FileError::Disturbed {
            place: self.place.to_owned(),
        })
    }
}
