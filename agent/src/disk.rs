//! The disk, where what is written has to outlast a power cut: flushing, renaming, making folders.
//!
//! Everything that the agent makes last beside its registry goes through here, so that a simulation sees
//! each step, and can take the power away before any of them. All of it is blocking.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// One step by which something is made to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// What was written into a file.
    SyncFile(&'a Path),
    /// The names in a folder: what was made, renamed or removed there.
    SyncDir(&'a Path),
    /// A file or a folder takes another name.
    Rename(&'a Path, &'a Path),
    /// A folder is made.
    MakeDir(&'a Path),
}

/// Flushes what was written into `file`, which lies at `path`.
///
/// # Errors
///
/// What the disk said.
pub fn sync(file: &File, path: &Path) -> io::Result<()> {
    step(Step::SyncFile(path), || file.sync_all())
}

/// Flushes what was written into the file at `path`.
///
/// # Errors
///
/// What the disk said.
pub fn sync_file(path: &Path) -> io::Result<()> {
    sync(&File::open(path)?, path)
}

/// Flushes the names in a folder, so that what was made, renamed or removed there stays so.
///
/// # Errors
///
/// What the disk said.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    let folder = File::open(dir)?;
    step(Step::SyncDir(dir), || folder.sync_all())
}

/// Gives a file or a folder another name. It lasts once the folder is flushed.
///
/// # Errors
///
/// What the disk said.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step(Step::Rename(from, to), || fs::rename(from, to))
}

/// Makes a folder and those above it, each flushed.
///
/// # Errors
///
/// What the disk said.
pub fn create_dir(dir: &Path) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        create_dir(parent)?;
        match step(Step::MakeDir(dir), || fs::create_dir(dir)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync_dir(parent)?,
        }
    }
    Ok(())
}

#[cfg(any(test, feature = "testing"))]
fn step(step: Step<'_>, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let Some(witness) = crate::testing::witness() else {
        return work();
    };
    witness.before(step);
    work()?;
    witness.after(step);
    Ok(())
}

#[cfg(not(any(test, feature = "testing")))]
fn step(_: Step<'_>, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel refuses to flush what has nothing to flush, so it was asked.
    #[test]
    fn flushes_reach_the_kernel() {
        let refused = |done: io::Result<()>| assert!(done.is_err(), "nothing was flushed");
        let null = File::open("/dev/null").unwrap();
        refused(sync(&null, Path::new("/dev/null")));
        refused(sync_file(Path::new("/dev/null")));
        refused(sync_dir(Path::new("/proc")));
    }

    #[test]
    fn folders_are_made_with_those_above_them() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dir(&deep).unwrap();
        create_dir(&deep).unwrap();
        assert!(deep.is_dir());
    }
}
