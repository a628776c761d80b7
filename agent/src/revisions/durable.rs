//! Writes that have happened when they return: contents, name and directory are on disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;

use jiff::Timestamp;
use mcp_spec::revision::CommitId;

use crate::disk;

/// Where the accepted head lives, below the repository.
pub(super) const HEAD_REF: &str = "refs/mcp/head";

const HIGH_WATER: &str = "high-water";

/// Puts these bytes at `path`, whole or not at all.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let temporary = dir.join(format!("{}.lock", name.to_string_lossy()));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    disk::sync(&file, &temporary)?;
    disk::rename(&temporary, path)?;
    disk::sync_dir(dir)
}

/// Moves a flushed file into a directory of the same file system. One that is there already stays:
/// a pack is named after the hash of what it holds.
pub(super) fn move_into(file: &Path, dir: &Path) -> io::Result<()> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let target = dir.join(name);
    disk::sync_file(file)?;
    if target.exists() {
        return Ok(());
    }
    disk::rename(file, &target)
}

/// What the high-water file says.
pub(super) enum Mark {
    Missing,
    Garbled,
    At(CommitId),
}

/// Reads the high-water mark.
pub(super) fn read_mark(data_dir: &Path) -> io::Result<Mark> {
    Ok(match read_id(&data_dir.join(HIGH_WATER))? {
        None => Mark::Missing,
        Some(None) => Mark::Garbled,
        Some(Some(commit)) => Mark::At(commit),
    })
}

/// Writes the high-water mark.
pub(super) fn write_mark(data_dir: &Path, commit: CommitId) -> io::Result<()> {
    replace(&data_dir.join(HIGH_WATER), format!("{commit}\n").as_bytes())
}

/// Removes the high-water mark: only where an operator confirms an empty repository.
pub(super) fn remove_mark(data_dir: &Path) -> io::Result<()> {
    match fs::remove_file(data_dir.join(HIGH_WATER)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => disk::sync_dir(data_dir),
    }
}

/// When the mark was written.
pub(super) fn marked_at(data_dir: &Path) -> io::Result<Timestamp> {
    let time = fs::metadata(data_dir.join(HIGH_WATER))?.modified()?;
    Timestamp::try_from(time).map_err(io::Error::other)
}

/// Reads the accepted head; a garbled ref is an error of kind `InvalidData`.
pub(super) fn read_head(repository: &Path) -> io::Result<Option<CommitId>> {
    match read_id(&repository.join(HEAD_REF))? {
        None => Ok(None),
        Some(Some(commit)) => Ok(Some(commit)),
        Some(None) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Moves the head from `old` to `new`, with a line in the reflog.
///
/// Written as git itself writes a loose ref, but for the fsyncs, which gix leaves out: the new
/// value is on disk before it takes the old one's name. The lock file keeps other writers out; its
/// caller holds the store's own lock, and a lock left by a crash was cleared at start.
pub(super) fn move_head(
    repository: &Path,
    old: Option<CommitId>,
    new: CommitId,
    now: Timestamp,
    reason: &str,
) -> io::Result<()> {
    let path = repository.join(HEAD_REF);
    let lock = repository.join(format!("{HEAD_REF}.lock"));
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    disk::create_dir(dir)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&lock)?;
    let result = (|| {
        if read_head(repository)? != old {
            return Err(io::Error::other("the head has moved"));
        }
        let log = repository.join("logs").join(HEAD_REF);
        if let Some(dir) = log.parent() {
            disk::create_dir(dir)?;
        }
        let fresh = !log.exists();
        let before = old.map_or_else(|| "0".repeat(40), |old| old.to_string());
        let line = format!(
            "{before} {new} mcp-agent <mcp-agent@localhost> {} +0000\t{reason}\n",
            now.as_second()
        );
        let mut reflog = OpenOptions::new().append(true).create(true).open(&log)?;
        reflog.write_all(line.as_bytes())?;
        disk::sync(&reflog, &log)?;
        if let (true, Some(dir)) = (fresh, log.parent()) {
            disk::sync_dir(dir)?;
        }
        file.write_all(format!("{new}\n").as_bytes())?;
        disk::sync(&file, &lock)
    })();
    if let Err(error) = result {
        let _ = fs::remove_file(&lock);
        return Err(error);
    }
    disk::rename(&lock, &path)?;
    disk::sync_dir(dir)
}

/// `None` where there is no file, `Some(None)` where it holds no commit id.
fn read_id(path: &Path) -> io::Result<Option<Option<CommitId>>> {
    match fs::read(path) {
        Ok(bytes) => {
            let text = std::str::from_utf8(&bytes).unwrap_or_default();
            Ok(Some(
                text.strip_suffix('\n').and_then(|text| text.parse().ok()),
            ))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
