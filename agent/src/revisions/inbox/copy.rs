//! A private copy of the inbox's objects, in the quarantine.
//!
//! Objects are mapped into memory where they are read, and whoever shortens a mapped file ends the process that
//! reads on. So nothing is read in place: packs with their indexes and loose objects are copied, and nothing
//! else is, so that there are no alternates, no multi-pack index, no grafts and no configuration to honour.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::super::limits::{Clockwork, Limits};
use super::error::InboxError;
use super::handle::Folder;

/// Looks at the folder of packs while packs vanish from it: git makes the new one before it removes the old.
const PASSES: usize = 5;

/// Copies what `objects` holds into the folder `to`, which is made. Its files are bounded in number by
/// `limits.objects` and in bytes, as they lie there, by `limits.inflated_bytes`.
pub(super) fn copy(
    inbox: &Path,
    objects: &Folder,
    to: &Path,
    limits: &Limits,
    clock: &Clockwork,
) -> Result<(), InboxError> {
    let mut copying = Copying {
        inbox,
        limits,
        clock,
        files: 0,
        bytes: 0,
    };
    copying.make(to)?;
    // Loose ones first: git packs an object before it removes the loose one, and never the other way.
    for first in 0..=u8::MAX {
        let name = hex::encode([first]);
        if let Some(folder) = objects.folder(&name)? {
            copying.loose(&folder, &to.join(name))?;
        }
    }
    let packs = to.join("pack");
    copying.make(&packs)?;
    for _ in 0..PASSES {
        let Some(folder) = objects.folder("pack")? else {
            break;
        };
        if copying.packs(&folder, &packs)? {
            break;
        }
    }
    Ok(())
}

struct Copying<'a> {
    inbox: &'a Path,
    limits: &'a Limits,
    clock: &'a Clockwork,
    files: u64,
    bytes: u64,
}

impl Copying<'_> {
    fn loose(&mut self, from: &Folder, to: &Path) -> Result<(), InboxError> {
        self.make(to)?;
        for name in from.names()? {
            let name = name?;
            if is_hex(&name, 38) {
                self.file(from, &name, to)?;
            }
        }
        Ok(())
    }

    /// Copies the packs that are not there yet. `false` where one vanished meanwhile.
    fn packs(&mut self, from: &Folder, to: &Path) -> Result<bool, InboxError> {
        let mut complete = true;
        for index in from.names()? {
            let index = index?;
            let Some(name) = index.strip_suffix(".idx") else {
                continue;
            };
            let is_pack = name.strip_prefix("pack-").is_some_and(|id| is_hex(id, 40));
            if !is_pack || to.join(&index).exists() {
                continue;
            }
            let pack = format!("{name}.pack");
            // An index without its pack would be believed.
            complete &= self.file(from, &pack, to)? && self.file(from, &index, to)?;
        }
        Ok(complete)
    }

    /// Copies a file. `false` where it is gone.
    fn file(&mut self, from: &Folder, name: &str, to: &Path) -> Result<bool, InboxError> {
        self.clock.check()?;
        let Some(file) = from.file(name)? else {
            return Ok(false);
        };
        self.files += 1;
        self.bound("objects and packs", self.files, self.limits.objects)?;
        let most = self.limits.inflated_bytes;
        let copied = write(file, most - self.bytes, &to.join(name));
        self.bytes += copied.map_err(|source| InboxError::NotCopied {
            path: self.inbox.to_owned(),
            source,
        })?;
        self.bound("bytes of objects", self.bytes, most)?;
        Ok(true)
    }

    fn bound(&self, what: &'static str, found: u64, limit: u64) -> Result<(), InboxError> {
        let path = || PathBuf::from(self.inbox);
        if found > limit {
            return Err(InboxError::TooLarge {
                path: path(),
                what,
                limit,
            });
        }
        Ok(())
    }

    fn make(&self, dir: &Path) -> Result<(), InboxError> {
        fs::create_dir(dir).map_err(|source| InboxError::NotCopied {
            path: self.inbox.to_owned(),
            source,
        })
    }
}

/// Writes at most one byte more than `left`; a copy that was begun earlier is written over.
fn write(from: File, left: u64, to: &Path) -> io::Result<u64> {
    let mut to = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(to)?;
    io::copy(&mut from.take(left.saturating_add(1)), &mut to)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
}
