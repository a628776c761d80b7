//! Keeping the number of packs small: every push adds one, and every look-up may try them all.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::durable;
use super::limits::{Clockwork, Limits};
use super::pack;
use super::{ReadError, ReceiveError, RevisionStore};
use crate::disk;

/// From so many packs on, a start makes one of them. Git's own `gc.autoPackLimit` is 50.
const MAX_PACKS: usize = 50;

/// Why the packs could not be made one; the repository is as it was.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConsolidateError {
    #[error("could not read the repository")]
    Read(#[from] ReadError),
    #[error("could not index the new pack")]
    Index(#[from] ReceiveError),
    #[error("could not replace the packs")]
    Io(#[from] io::Error),
}

impl RevisionStore {
    /// Makes one pack of all that the head reaches, and removes the others. Only at start, while
    /// nobody reads. A crash leaves an object in two packs, or the first half of a removed one,
    /// which the next start clears.
    pub(super) fn consolidate(&self) -> Result<(), ConsolidateError> {
        let pack_dir = self.objects_dir().join("pack");
        let mut packs = Vec::new();
        for entry in fs::read_dir(&pack_dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == "pack") {
                packs.push(path);
            }
        }
        if packs.len() <= MAX_PACKS {
            return Ok(());
        }
        let limits = Limits {
            pack_bytes: u64::MAX,
            objects: u64::MAX,
            deadline: Duration::from_mins(10),
            ..Limits::default()
        };
        let spooled = self.spool(io::empty(), &limits)?;
        let incoming = io::BufWriter::new(File::create(&spooled.incoming)?);
        if self.pack_since(None, incoming)?.is_none() {
            return Ok(());
        }
        let aside = spooled.incoming.with_extension("packs");
        fs::create_dir(&aside)?;
        let clock = Clockwork::start(&limits);
        let indexed = pack::index(&spooled.incoming, &aside, &limits, &clock)?;
        durable::move_into(&indexed.pack, &pack_dir)?;
        durable::move_into(&indexed.index, &pack_dir)?;
        disk::sync_dir(&pack_dir)?;
        let kept: Option<PathBuf> = indexed.pack.file_name().map(|name| pack_dir.join(name));
        for path in packs {
            if Some(&path) != kept.as_ref() {
                // The index first: a pack without one is cleared at the next start.
                fs::remove_file(path.with_extension("idx"))?;
                fs::remove_file(path)?;
            }
        }
        disk::sync_dir(&pack_dir)?;
        Ok(())
    }
}
