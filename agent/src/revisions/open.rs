//! Making the store, and opening it: what a crash left is cleared away or finished.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use mcp_spec::revision::CommitId;
use mcp_spec::revision::commit::MAX_COMMIT_BYTES;
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::accepted::{AcceptedLog, Past};
use super::durable::{self, Mark};
use super::error::HighWaterTrouble;
use super::history::Verification;
use super::limits::{Clockwork, Limits};
use super::objects::{Kind, ObjectError, Objects};
use super::{ReceiveError, RevisionStore, State, TrustRoots};
use crate::disk;
use crate::secrets::Keyring;

/// Why the store could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is no repository yet.
    #[error("there is no repository in {}", data_dir.display())]
    Missing {
        /// The agent's data directory.
        data_dir: PathBuf,
    },
    /// The repository borrows or rewrites objects, which no repository of the agent's does.
    #[error("{} must not exist: the agent's repository neither borrows nor replaces objects", path.display())]
    Foreign {
        /// The file or directory.
        path: PathBuf,
    },
    /// The accepted head cannot be read.
    #[error("{} is no commit id", path.display())]
    GarbledHead {
        /// The ref's file.
        path: PathBuf,
    },
    /// The repository could not be made.
    #[error("could not make the repository: {reason}")]
    Init {
        /// What git's library said.
        reason: String,
    },
    /// The disk failed.
    #[error("could not {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl OpenError {
    pub(super) fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

impl RevisionStore {
    /// Makes an empty bare repository below the data directory; one that is there stays.
    ///
    /// # Errors
    ///
    /// [`OpenError`] where the disk refuses.
    pub fn init(data_dir: &Path) -> Result<(), OpenError> {
        let repository = data_dir.join("repo.git");
        if repository.exists() {
            return Ok(());
        }
        disk::create_dir(data_dir).map_err(OpenError::io("make the data directory"))?;
        // Made aside and renamed, so that a crash leaves no half of a repository.
        let aside = data_dir.join("repo.git.new");
        remove_dir(&aside).map_err(OpenError::io("clear an unfinished repository"))?;
        gix::ThreadSafeRepository::init_opts(
            &aside,
            gix::create::Kind::Bare,
            gix::create::Options::default(),
            gix::open::Options::isolated(),
        )
        .map_err(|error| OpenError::Init {
            reason: error.to_string(),
        })?;
        sync_tree(&aside).map_err(OpenError::io("flush the new repository"))?;
        disk::rename(&aside, &repository).map_err(OpenError::io("put the repository in place"))?;
        disk::sync_dir(data_dir).map_err(OpenError::io("flush the data directory"))
    }

    /// Opens the store: clears what a crash left, and holds head, high-water mark and accepted
    /// commits against each other. Where they cannot be brought to agree, the store opens for
    /// reading, and [`RevisionStore::trouble`] tells why it takes no changes.
    ///
    /// # Errors
    ///
    /// [`OpenError`] where nothing can be read.
    pub fn open(data_dir: &Path, trust: TrustRoots) -> Result<Self, OpenError> {
        let store = Self {
            data_dir: data_dir.to_owned(),
            trust: RwLock::new(trust),
            state: RwLock::default(),
            compiled: Mutex::default(),
            shapes: Arc::default(),
            keyring: Keyring::new(data_dir),
            door: Mutex::default(),
            in_doubt: CancellationToken::new(),
            #[cfg(test)]
            crash_before: Mutex::default(),
        };
        let repository = store.repository();
        if !repository.join("objects").is_dir() {
            return Err(OpenError::Missing {
                data_dir: data_dir.to_owned(),
            });
        }
        for path in [
            "objects/info/alternates",
            "shallow",
            "info/grafts",
            "refs/replace",
        ] {
            let path = repository.join(path);
            if path.symlink_metadata().is_ok() {
                return Err(OpenError::Foreign { path });
            }
        }
        let packed = repository.join("packed-refs");
        let refs = match fs::read(&packed) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(OpenError::io("read the packed refs"))?,
        };
        if refs.split(|c| *c == b'\n').any(is_replacement) {
            return Err(OpenError::Foreign { path: packed });
        }
        clear_leftovers(&store).map_err(OpenError::io("clear what an earlier run left"))?;
        let accepted =
            AcceptedLog::read(data_dir).map_err(OpenError::io("read the accepted commits"))?;
        let mark =
            durable::read_mark(data_dir).map_err(OpenError::io("read the high-water mark"))?;
        let head = match durable::read_head(&repository) {
            Ok(head) => head,
            // The mark is never behind the head, so it tells what stood there.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => match mark {
                Mark::At(_) => {
                    let path = repository.join(durable::HEAD_REF);
                    tracing::error!(path = %path.display(), "is no commit id; the high-water mark takes its place");
                    disk::rename(&path, &path.with_extension("garbled"))
                        .map_err(OpenError::io("move the garbled head away"))?;
                    None
                }
                Mark::Missing | Mark::Garbled => {
                    return Err(OpenError::GarbledHead {
                        path: repository.join(durable::HEAD_REF),
                    });
                }
            },
            Err(error) => return Err(OpenError::io("read the head")(error)),
        };
        let mut state = State {
            head,
            accepted,
            past: Past::default(),
            trouble: None,
        };
        state.trouble = store.agree(&mut state, &mark)?;
        let sound = state.trouble.is_none();
        *store.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        if sound && let Err(error) = store.consolidate() {
            // Many packs are slow and nothing worse.
            tracing::warn!(%error, "the packs of the repository could not be made one");
        }
        Ok(store)
    }

    /// Brings head, mark and accepted commits to agreement, or says why they cannot be.
    pub(super) fn agree(
        &self,
        state: &mut State,
        mark: &Mark,
    ) -> Result<Option<HighWaterTrouble>, OpenError> {
        let mark = match (mark, state.head) {
            (Mark::Missing, None) => {
                let Some(known) = state.accepted.newest() else {
                    return Ok(None);
                };
                state.past.keep(&state.accepted.cut_at(None));
                return Ok(Some(HighWaterTrouble::SetBack { known, head: None }));
            }
            (Mark::Missing, Some(head)) => return Ok(Some(HighWaterTrouble::MarkMissing { head })),
            (Mark::Garbled, _) => return Ok(Some(HighWaterTrouble::MarkGarbled)),
            (Mark::At(mark), _) => *mark,
        };
        let diverged = HighWaterTrouble::Diverged {
            mark,
            head: state.head,
        };
        // A repository that was made anew holds nothing of what was accepted.
        if let Err(error) = self.read_commit(mark) {
            return Ok(Some(match error {
                ObjectError::Missing { .. } if state.head != Some(mark) => {
                    state.past.keep(&state.accepted.cut_at(state.head));
                    HighWaterTrouble::SetBack {
                        known: mark,
                        head: state.head,
                    }
                }
                error => HighWaterTrouble::Unverified {
                    head: mark,
                    reason: error.to_string(),
                },
            }));
        }
        // The mark is written first, so it may be ahead, and by a verified descendant alone. The
        // denylist does not count: what is finished here had passed the door.
        match self.catch_up(state, mark) {
            Ok(true) => {}
            Ok(false) => return Ok(Some(diverged)),
            Err(error) => {
                return Ok(Some(HighWaterTrouble::Unverified {
                    head: mark,
                    reason: error.to_string(),
                }));
            }
        }
        if state.head != Some(mark) {
            durable::move_head(
                &self.repository(),
                state.head,
                mark,
                durable::marked_at(&self.data_dir)
                    .map_err(OpenError::io("read the high-water mark"))?,
                "finished after a crash",
            )
            .map_err(OpenError::io("move the head"))?;
            state.head = Some(mark);
        }
        Ok(None)
    }

    fn read_commit(&self, commit: CommitId) -> Result<Vec<u8>, ObjectError> {
        let objects = Objects::open(&self.objects_dir(), MAX_COMMIT_BYTES).map_err(|error| {
            ObjectError::Corrupt {
                id: commit.to_string(),
                reason: error.to_string(),
            }
        })?;
        objects.read_kind(commit.as_bytes(), Kind::Commit)
    }

    /// Verifies what leads to `tip` and is not among the accepted commits, and adds it. `false`
    /// where the tip does not descend from the head.
    fn catch_up(&self, state: &mut State, tip: CommitId) -> Result<bool, ReceiveError> {
        if state.accepted.contains(tip) {
            return Ok(state.head == Some(tip)
                || state
                    .head
                    .is_none_or(|head| state.accepted.ancestry(tip).contains(&head)));
        }
        let limits = Limits::default();
        let clock = Clockwork::start(&limits);
        let objects = Objects::open(
            &self.objects_dir(),
            usize::try_from(limits.object_bytes).unwrap_or(usize::MAX),
        )
        .map_err(ReceiveError::io("open the repository"))?;
        let trust = self.trust();
        let verification = Verification {
            objects: &objects,
            shapes: &self.shapes,
            accepted: &state.accepted,
            past: &state.past,
            trust: &trust,
            limits: &limits,
            clock: &clock,
            denylist: false,
        };
        let new = verification.new_commits(tip)?;
        let revisions = verification.verify(tip, &new)?;
        let records: Vec<_> = revisions
            .into_iter()
            .map(|revision| revision.record)
            .collect();
        if let Some(head) = state.head
            && !state.accepted.contains(head)
            && !records.iter().any(|record| record.commit == head)
        {
            return Ok(false);
        }
        if let Some(head) = state.head
            && state.accepted.contains(head)
            && !new.boundary.contains(&head)
        {
            return Ok(false);
        }
        drop(trust);
        state
            .accepted
            .append(&self.data_dir, records)
            .map_err(ReceiveError::io("write the accepted commits"))?;
        Ok(true)
    }

    /// Ends a stop: the operator has looked, and the present head counts. The mark is set to it, and
    /// what was accepted after it is forgotten. An empty repository takes any history that an owner
    /// introduces from then on.
    ///
    /// # Errors
    ///
    /// [`ReceiveError`] where the head does not verify, or the disk refuses.
    pub fn confirm(&self) -> Result<(), ReceiveError> {
        let _door = self.lock_door();
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        match &state.trouble {
            None => return Ok(()),
            // The mark may be ahead then; only a restart can tell.
            Some(trouble @ HighWaterTrouble::Interrupted { .. }) => {
                return Err(ReceiveError::Halted(trouble.clone()));
            }
            Some(_) => {}
        }
        let Some(head) = state.head else {
            state.accepted.cut_at(None);
            state.past = Past::default();
            state
                .accepted
                .append(&self.data_dir, Vec::new())
                .map_err(ReceiveError::io("write the accepted commits"))?;
            durable::remove_mark(&self.data_dir)
                .map_err(ReceiveError::io("remove the high-water mark"))?;
            state.trouble = None;
            return Ok(());
        };
        self.catch_up(&mut state, head)?;
        if matches!(state.trouble, Some(HighWaterTrouble::SetBack { .. })) {
            state.accepted.cut_at(Some(head));
            state.past = Past::default();
            state
                .accepted
                .append(&self.data_dir, Vec::new())
                .map_err(ReceiveError::io("write the accepted commits"))?;
        }
        durable::write_mark(&self.data_dir, head)
            .map_err(ReceiveError::io("write the high-water mark"))?;
        state.trouble = None;
        Ok(())
    }
}

/// Whether a line of the packed refs has another object read in the place of one.
fn is_replacement(line: &[u8]) -> bool {
    let name = line.split(|c| *c == b' ').nth(1);
    name.is_some_and(|name| name.starts_with(b"refs/replace/"))
}

/// Removes locks, quarantined packs, and packs that were moved in without their index. One agent
/// owns a data directory, so whatever is there at start belongs to nobody.
fn clear_leftovers(store: &RevisionStore) -> io::Result<()> {
    let repository = store.repository();
    remove_dir(&store.quarantine_dir())?;
    for dir in [
        store.data_dir.clone(),
        repository.clone(),
        repository.join("refs/mcp"),
        repository.join("logs/refs/mcp"),
    ] {
        for path in entries(&dir)? {
            if path.extension().is_some_and(|end| end == "lock") && path.is_file() {
                fs::remove_file(path)?;
            }
        }
    }
    for path in entries(&repository.join("objects/pack"))? {
        let end = path.extension().and_then(|end| end.to_str());
        let alone = match end {
            Some("pack") => !path.with_extension("idx").exists(),
            Some("idx") => !path.with_extension("pack").exists(),
            Some("keep" | "new") => true,
            _ => false,
        };
        if alone {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn entries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Flushes a fresh directory with all that is in it.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for path in entries(dir)? {
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            disk::sync_file(&path)?;
        }
    }
    disk::sync_dir(dir)
}
