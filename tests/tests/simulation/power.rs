//! What lies on the disk for good, and what a power cut leaves of the rest.
//!
//! A file lasts with the bytes that it held when it was flushed last, a name with the folder that was
//! flushed last. Of everything else a power cut takes what the seed says: the newer state of a file
//! or a folder may have come to the disk, or the older one, or the first half of what was written.
//!
//! The registry's own files are SQLite's business: what it says it has synced is there. Where it says
//! that it does not sync each commit, the log is cut.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use mcp_agent::disk::Step;
use mcp_agent::testing::{Witness, memory_dir};
use tempfile::TempDir;

use super::dice::Dice;
use super::life::Life;

/// A file or a folder, whatever its name: its inode.
type Inode = u64;

#[derive(Default)]
struct Lasting {
    files: HashMap<Inode, Vec<u8>>,
    folders: HashMap<Inode, BTreeMap<OsString, Inode>>,
    /// Steps until the power fails; 0 where it does not.
    fuse: u64,
    /// What was left when it failed.
    left: Option<TempDir>,
}

/// The disk under one data directory.
pub(crate) struct Drive {
    root: std::path::PathBuf,
    lasting: Mutex<Lasting>,
    dice: Dice,
    life: Mutex<Option<Arc<Life>>>,
}

impl fmt::Debug for Drive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drive").finish_non_exhaustive()
    }
}

impl Drive {
    /// A disk on which everything below `root` is there for good.
    pub(crate) fn new(root: &Path, dice: Dice) -> Self {
        let mut lasting = Lasting::default();
        flush_all(root, &mut lasting);
        Self {
            root: root.to_owned(),
            lasting: Mutex::new(lasting),
            dice,
            life: Mutex::default(),
        }
    }

    fn lasting(&self) -> MutexGuard<'_, Lasting> {
        self.lasting.lock().unwrap()
    }

    /// Whose disk it is now.
    pub(crate) fn serves(&self, life: &Arc<Life>) {
        *self.life.lock().unwrap() = Some(Arc::clone(life));
    }

    /// Lets the power fail at the n-th step from now; 0 takes this back.
    pub(crate) fn fail_after(&self, steps: u64) {
        self.lasting().fuse = steps;
    }

    /// What a power cut has left, where there was one.
    pub(crate) fn left(&self) -> Option<TempDir> {
        self.lasting().left.take()
    }

    /// The power fails: the agent is dead, and so is everything that the engine ran.
    pub(crate) fn fail(&self) {
        let Some(life) = self.life.lock().unwrap().take() else {
            return;
        };
        if life.is_over() {
            return;
        }
        life.engine
            .trace
            .line(|| "world: the power fails".to_owned());
        let left = memory_dir();
        {
            let lasting = self.lasting();
            self.copy(&lasting, &self.root, left.path());
        }
        let synced = life
            .registry
            .get()
            .is_none_or(|registry| registry.syncs_commits() == Some(true));
        if !synced {
            self.cut_the_log(left.path());
        }
        self.lasting().left = Some(left);
        life.kill();
        life.engine.harm_all();
        life.engine.go_down(true);
    }

    /// Copies what is left of a folder.
    fn copy(&self, lasting: &Lasting, from: &Path, to: &Path) {
        let mut now = names(from);
        let mut by_inode: BTreeMap<Inode, std::path::PathBuf> = BTreeMap::new();
        for (name, inode) in &now {
            by_inode.insert(*inode, from.join(name));
        }
        let then = fs::metadata(from)
            .ok()
            .and_then(|it| lasting.folders.get(&it.ino()));
        let is_newer_there = self.dice.chance(500);
        match then {
            Some(then) if !is_newer_there => now = self.older(then, &now),
            Some(_) => {}
            // Its own name may have come to the disk, and nothing of what is in it.
            None if !is_newer_there => now.clear(),
            None => {}
        }
        for (name, inode) in now {
            let target = to.join(&name);
            let Some(path) = by_inode.get(&inode) else {
                // It was renamed or removed since, and lasts under its old name.
                if let Some(bytes) = lasting.files.get(&inode) {
                    fs::write(target, bytes).unwrap();
                }
                continue;
            };
            if path.is_dir() {
                fs::create_dir(&target).unwrap();
                self.copy(lasting, path, &target);
            } else if is_registry(&name) {
                if !name.to_string_lossy().ends_with("-shm") {
                    fs::copy(path, target).unwrap();
                }
            } else {
                fs::write(target, self.bytes(lasting, path, inode)).unwrap();
            }
        }
    }

    /// The names that a folder had when it was flushed. SQLite flushes those of its own log itself.
    fn older(
        &self,
        then: &BTreeMap<OsString, Inode>,
        now: &BTreeMap<OsString, Inode>,
    ) -> BTreeMap<OsString, Inode> {
        let mut older = then.clone();
        for (name, inode) in now {
            let is_log = is_registry(name) && then.contains_key(std::ffi::OsStr::new("mcp.db"));
            if is_log {
                older.insert(name.clone(), *inode);
            }
        }
        older
    }

    fn bytes(&self, lasting: &Lasting, path: &Path, inode: Inode) -> Vec<u8> {
        let now = fs::read(path).unwrap();
        let then = lasting.files.get(&inode).cloned().unwrap_or_default();
        if now == then {
            return now;
        }
        match self.dice.below(3) {
            0 => now,
            1 => then,
            _ => now[..now.len() / 2].to_vec(),
        }
    }

    fn cut_the_log(&self, left: &Path) {
        let log = left.join("mcp.db-wal");
        let Ok(bytes) = fs::read(&log) else { return };
        let kept = self.dice.below(u64::try_from(bytes.len()).unwrap() + 1);
        fs::write(log, &bytes[..usize::try_from(kept).unwrap()]).unwrap();
    }
}

impl Witness for Drive {
    fn before(&self, _: Step<'_>) {
        let fails = {
            let mut lasting = self.lasting();
            let fails = lasting.fuse == 1;
            lasting.fuse = lasting.fuse.saturating_sub(1);
            fails
        };
        if fails {
            self.fail();
        }
    }

    fn after(&self, step: Step<'_>) {
        let mut lasting = self.lasting();
        match step {
            Step::SyncFile(path) => {
                let inode = fs::metadata(path).unwrap().ino();
                lasting.files.insert(inode, fs::read(path).unwrap());
            }
            Step::SyncDir(path) => {
                let inode = fs::metadata(path).unwrap().ino();
                lasting.folders.insert(inode, names(path));
            }
            Step::Rename(..) | Step::MakeDir(_) => {}
        }
    }
}

fn is_registry(name: &OsString) -> bool {
    name.to_string_lossy().starts_with("mcp.db")
}

fn names(folder: &Path) -> BTreeMap<OsString, Inode> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (
                entry.file_name(),
                fs::symlink_metadata(entry.path()).unwrap().ino(),
            )
        })
        .collect()
}

fn flush_all(folder: &Path, lasting: &mut Lasting) {
    let inode = fs::metadata(folder).unwrap().ino();
    lasting.folders.insert(inode, names(folder));
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            flush_all(&path, lasting);
        } else {
            let inode = fs::metadata(&path).unwrap().ino();
            lasting.files.insert(inode, fs::read(&path).unwrap());
        }
    }
}
