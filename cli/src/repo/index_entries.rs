//! The index after a commit: the committed paths brought up to date, everything else left as it was.

use std::collections::{HashMap, HashSet};
use std::io::{BufWriter, Write};

use gix::ObjectId;
use gix::bstr::{BStr, ByteSlice};
use gix::index::entry::{Flags, Mode, Stage, Stat};

use super::changes::Content;
use super::{Changes, CommitError, DesiredRepo, LOCK_WAIT, scan};

/// A path that was committed, with what the index is to say of it; `None` for a deletion.
pub(super) struct Committed {
    pub(super) path: String,
    pub(super) now: Option<(Content, Stat)>,
}

/// `index.lock`, held: nobody else changes the index, or commits, until it is dropped or committed.
pub(super) struct IndexLock {
    file: gix::lock::File,
}

pub(super) fn lock(repo: &DesiredRepo) -> Result<IndexLock, CommitError> {
    let path = repo.git.index_path();
    let lock_path = path.with_file_name("index.lock");
    let wait = gix::lock::acquire::Fail::AfterDurationWithBackoff(LOCK_WAIT);
    match gix::lock::File::acquire_to_update_resource(&path, wait, None, 0) {
        Ok(file) => Ok(IndexLock { file }),
        Err(_) if lock_path.exists() => Err(CommitError::IndexLocked { lock: lock_path }),
        Err(source) => Err(CommitError::Index {
            source: source.into(),
        }),
    }
}

impl IndexLock {
    /// Writes the index with the committed paths into the lock file; [`IndexLock::commit`] makes it real.
    pub(super) fn write(
        &mut self,
        repo: &DesiredRepo,
        committed: &[Committed],
        changes: &Changes,
    ) -> Result<(), CommitError> {
        let path = repo.git.index_path();
        let mut index = match path.exists() {
            true => repo.git.open_index().map_err(failed)?,
            false => {
                gix::index::File::from_state(gix::index::State::new(gix::hash::Kind::Sha1), path)
            }
        };
        put_entries(&mut index, committed);
        let verified = refresh_unchanged(&mut index, changes);
        let committed_now: HashSet<&BStr> = committed
            .iter()
            .map(|entry| BStr::new(&entry.path))
            .collect();
        smudge_stale(&mut index, |path| {
            committed_now.contains(path) || verified.contains(path)
        });
        // The cached trees do not know the new entries; git computes them anew.
        index.remove_tree();
        let mut out = BufWriter::with_capacity(64 * 1024, &mut self.file);
        index
            .write_to(&mut out, gix::index::write::Options::default())
            .map_err(failed)?;
        out.flush()
            .map_err(|source| failed(gix::Error::from_error(source)))
    }

    /// Puts the written index in place.
    pub(super) fn commit(self) -> std::io::Result<()> {
        self.file.commit().map(drop).map_err(|error| error.error)
    }
}

fn failed(source: gix::Error) -> CommitError {
    CommitError::Index {
        source: source.into(),
    }
}

fn put_entries(index: &mut gix::index::File, committed: &[Committed]) {
    let gone: HashSet<&BStr> = committed
        .iter()
        .filter(|entry| entry.now.is_none())
        .map(|entry| BStr::new(&entry.path))
        .collect();
    let put: HashMap<&BStr, (Content, Stat)> = committed
        .iter()
        .filter_map(|entry| Some((BStr::new(&entry.path), entry.now?)))
        .collect();
    // Where a file took a folder's place, or the other way round, the old entries go.
    let parents: HashSet<&BStr> = put.keys().flat_map(|path| folders(path)).collect();
    let mut fresh = put.clone();
    index.remove_entries(|_, path, entry| {
        if gone.contains(path)
            || parents.contains(path)
            || folders(path).any(|folder| put.contains_key(folder))
        {
            return true;
        }
        let Some((content, stat)) = put.get(path) else {
            return false;
        };
        if entry.stage() != Stage::Unconflicted {
            return true;
        }
        entry.id = content.blob;
        entry.mode = mode(*content);
        entry.stat = *stat;
        entry.flags.remove(Flags::INTENT_TO_ADD | Flags::EXTENDED);
        fresh.remove(path);
        false
    });
    for (path, (content, stat)) in fresh {
        index.dangerously_push_entry(stat, content.blob, Flags::empty(), mode(content), path);
    }
    index.sort_entries();
}

/// Records the times of files that were read and found unchanged, so that they are not read again.
fn refresh_unchanged<'a>(index: &mut gix::index::File, changes: &'a Changes) -> HashSet<&'a BStr> {
    let mut verified = HashSet::new();
    for (path, blob, stat) in &changes.unchanged {
        let path = BStr::new(path);
        if let Some(entry) = index.entry_mut_by_path_and_stage(path, Stage::Unconflicted)
            && entry.id == *blob
            && !entry.flags.contains(Flags::INTENT_TO_ADD)
        {
            entry.stat = *stat;
            verified.insert(path);
        }
    }
    verified
}

/// Marks entries whose files may have changed within the clock tick in which the old index was
/// written: the new index is younger, so nobody would look at them again. Git does the same
/// (`ce_smudge_racily_clean_entry`): a size of zero makes it compare contents.
fn smudge_stale(index: &mut gix::index::File, is_verified: impl Fn(&BStr) -> bool) {
    let written_seconds = index.timestamp().unix_seconds();
    for (entry, path) in index.entries_mut_with_paths() {
        let is_file = matches!(
            entry.mode,
            Mode::FILE | Mode::FILE_EXECUTABLE | Mode::SYMLINK
        );
        if is_file && i64::from(entry.stat.mtime.secs) >= written_seconds && !is_verified(path) {
            entry.stat.size = 0;
        }
    }
}

fn mode(content: Content) -> Mode {
    match content.executable {
        true => Mode::FILE_EXECUTABLE,
        false => Mode::FILE,
    }
}

/// The folders that a path lies in, without slashes at their ends.
fn folders(path: &BStr) -> impl Iterator<Item = &BStr> {
    path.find_iter("/").map(|at| BStr::new(&path[..at]))
}

/// Whether a managed path is unmerged in the index, left over from a merge or a stash.
pub(super) fn unmerged(repo: &DesiredRepo) -> gix::Result<Option<String>> {
    let index = repo.git.index_or_empty()?;
    let path = index
        .entries()
        .iter()
        .filter(|entry| entry.stage() != Stage::Unconflicted)
        .map(|entry| entry.path(&index).to_string())
        .find(|path| super::is_managed(path));
    Ok(path)
}

/// What a committed file's index entry is made from, read once more at the time of the commit.
pub(super) fn read_for_commit(
    repo: &DesiredRepo,
    path: &str,
    expected: Content,
) -> Result<(Vec<u8>, Stat), CommitError> {
    let changed = || CommitError::ChangedMeanwhile {
        path: path.to_owned(),
    };
    let (bytes, stat) = scan::read_regular(&repo.dir.join(path)).map_err(|_| changed())?;
    let blob: ObjectId =
        gix::objs::compute_hash(gix::hash::Kind::Sha1, gix::objs::Kind::Blob, &bytes).map_err(
            |source| CommitError::Write {
                source: source.into(),
            },
        )?;
    match blob == expected.blob {
        true => Ok((bytes, stat)),
        false => Err(changed()),
    }
}
