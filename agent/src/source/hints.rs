//! Tells, by file-system events, that the inbox's branch may have moved.
//!
//! Events are hints that cause a look, and decide nothing. A few folders are watched, none of them with what is
//! below it: those that hold the file of the branch and the packed refs, and the one that holds the repository,
//! so that one that is made, moved or removed is noticed too. Where a folder is missing the nearest above it is
//! watched. [`Hints::arm`] is called before each look, so that what changes after the look is an event.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// What identifies a folder on disk.
type Identity = (u64, u64);

/// The watched folders.
#[derive(Debug)]
pub(super) struct Hints {
    watcher: RecommendedWatcher,
    repository: PathBuf,
    /// The files that decide.
    files: Arc<[PathBuf]>,
    armed: BTreeMap<PathBuf, Identity>,
}

impl Hints {
    /// Prepares the watch of a repository's branch; nothing is watched yet. `moved` is notified of each event
    /// that may matter, from a thread that the watch owns and that ends with it.
    ///
    /// # Errors
    ///
    /// The system's, as where a user has no inotify instance left.
    pub(super) fn new(repository: &Path, branch: &str, moved: Arc<Notify>) -> notify::Result<Self> {
        let files: Arc<[PathBuf]> = Arc::new([
            repository.join("refs/heads").join(branch),
            repository.join("packed-refs"),
            repository.join("objects/info/alternates"),
        ]);
        let watched = Arc::clone(&files);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error is a reason to look too.
            if event.map_or(true, |event| matters(&event, &watched)) {
                moved.notify_one();
            }
        })?;
        Ok(Self {
            watcher,
            repository: repository.to_owned(),
            files,
            armed: BTreeMap::new(),
        })
    }

    /// Watches the folders as they are now; those that were exchanged since are watched anew.
    ///
    /// # Errors
    ///
    /// The first of the system's; the other folders are watched all the same.
    pub(super) fn arm(&mut self) -> notify::Result<()> {
        let mut wanted = BTreeMap::new();
        for file in self.files.iter() {
            for folder in folders(file, &self.repository) {
                wanted.extend(identity(folder).map(|id| (folder.to_owned(), id)));
            }
        }
        let gone: Vec<PathBuf> = self
            .armed
            .iter()
            .filter(|(folder, id)| wanted.get(*folder) != Some(*id))
            .map(|(folder, _)| folder.clone())
            .collect();
        for folder in gone {
            // A folder that is gone has taken its watch along.
            drop(self.watcher.unwatch(&folder));
            self.armed.remove(&folder);
        }
        let mut armed = Ok(());
        for (folder, id) in wanted {
            if self.armed.contains_key(&folder) {
                continue;
            }
            match self.watcher.watch(&folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.armed.insert(folder, id);
                }
                Err(error) => armed = armed.and(Err(error)),
            }
        }
        armed
    }
}

/// The folders whose entries lead to a file: those in the repository, the one around it, and, where that is
/// missing, the nearest above.
fn folders<'a>(file: &'a Path, repository: &'a Path) -> impl Iterator<Item = &'a Path> {
    let inside = file.ancestors().skip(1);
    let inside = inside.take_while(move |folder| folder.starts_with(repository));
    let around = repository
        .ancestors()
        .skip(1)
        .find(|folder| folder.is_dir());
    inside.chain(around)
}

fn identity(folder: &Path) -> Option<Identity> {
    let found = fs::metadata(folder).ok()?;
    found.is_dir().then(|| (found.dev(), found.ino()))
}

/// Whether an event may be about one of the files, or a folder on the way to it.
fn matters(event: &Event, files: &[PathBuf]) -> bool {
    if event.need_rescan() {
        return true;
    }
    let changes = match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    };
    let mut paths = event.paths.iter();
    changes && paths.any(|path| files.iter().any(|file| file.starts_with(path)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    /// Long enough for an event on a machine under load.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn git(dir: &Path, args: &[&str]) {
        let identity = ["-c", "user.name=a", "-c", "user.email=a@example.net"];
        let done = Command::new("git")
            .current_dir(dir)
            .args(identity)
            .args(args)
            .output()
            .unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
    }

    async fn moves(moved: &Notify) {
        tokio::time::timeout(PATIENCE, moved.notified())
            .await
            .expect("no event came");
    }

    /// Lets what is under way come in, and forgets it.
    async fn settle(hints: &mut Hints, moved: &Notify) {
        hints.arm().unwrap();
        let quiet = Duration::from_millis(200);
        while tokio::time::timeout(quiet, moved.notified()).await.is_ok() {}
    }

    #[tokio::test]
    async fn repository_that_is_made_pushed_to_packed_and_made_anew_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let inbox = dir.path().join("git/inbox.git");
        let moved = Arc::new(Notify::new());
        let mut hints = Hints::new(&inbox, "team/main", Arc::clone(&moved)).unwrap();
        settle(&mut hints, &moved).await;
        fs::create_dir(dir.path().join("git")).unwrap();
        moves(&moved).await;
        settle(&mut hints, &moved).await;
        git(dir.path(), &["init", "-q", "--bare", "git/inbox.git"]);
        moves(&moved).await;
        settle(&mut hints, &moved).await;
        git(dir.path(), &["init", "-q", "work"]);
        let work = dir.path().join("work");
        for message in ["first", "second"] {
            git(&work, &["commit", "-q", "--allow-empty", "-m", message]);
            let push = [
                "push",
                "-q",
                "../git/inbox.git",
                "HEAD:refs/heads/team/main",
            ];
            git(&work, &push);
            moves(&moved).await;
            settle(&mut hints, &moved).await;
        }
        git(&inbox, &["pack-refs", "--all"]);
        moves(&moved).await;
        settle(&mut hints, &moved).await;
        // What is not on the way is nothing.
        fs::write(inbox.join("description"), "x").unwrap();
        fs::write(dir.path().join("git/other"), "x").unwrap();
        let quiet = Duration::from_millis(300);
        assert!(tokio::time::timeout(quiet, moved.notified()).await.is_err());

        fs::rename(&inbox, dir.path().join("git/aside.git")).unwrap();
        moves(&moved).await;
        settle(&mut hints, &moved).await;
        fs::rename(dir.path().join("git/aside.git"), &inbox).unwrap();
        moves(&moved).await;
        settle(&mut hints, &moved).await;
        git(&work, &["commit", "-q", "--allow-empty", "-m", "third"]);
        git(
            &work,
            &[
                "push",
                "-q",
                "../git/inbox.git",
                "HEAD:refs/heads/team/main",
            ],
        );
        moves(&moved).await;
    }
}
