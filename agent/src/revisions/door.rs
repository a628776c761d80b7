//! The door itself: quarantine, checks in their order, and the promotion that a crash cannot split.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::PoisonError;

use jiff::Timestamp;
use mcp_spec::name::NodeName;
use mcp_spec::revision::CommitId;
use tempfile::TempDir;

use super::accepted::{Past, Record};
use super::compiled::CompileError;
use super::durable;
use super::error::HighWaterTrouble;
use super::history::Verification;
use super::limits::{Clockwork, Limits};
use super::objects::Objects;
use super::pack::{self, Indexed};
use super::query::ReadError;
use super::{Accepted, OpenError, ReceiveError, RevisionStore, VerifiedRevision};
use crate::disk;

/// The steps of a promotion, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    MovePack,
    MoveIndex,
    WriteMark,
    MoveHead,
    AppendAccepted,
}

/// A pack in its quarantine, which goes with it.
#[derive(Debug)]
pub(super) struct Spooled {
    dir: TempDir,
    pub(super) incoming: PathBuf,
}

impl RevisionStore {
    /// Receives a pack that leads to `new`, checks everything, and moves the head there.
    ///
    /// `old` is the head that the sender built upon: where it is another by now, the push is stale.
    /// A `new` that is the head already is accepted at once, and the pack is not read.
    ///
    /// # Errors
    ///
    /// [`ReceiveError`], by name. Nothing has changed then, and the quarantine is empty; after an
    /// `Io` in the middle of the promotion the next [`RevisionStore::open`] finishes it.
    pub fn receive(
        &self,
        pack: impl Read,
        old: Option<CommitId>,
        new: CommitId,
        node: &NodeName,
        limits: &Limits,
        now: Timestamp,
    ) -> Result<Accepted, ReceiveError> {
        {
            let _door = self.lock_door();
            self.take_up();
        }
        if let Some(accepted) = self.answered_by_head(old, new)? {
            return Ok(accepted);
        }
        // Spooled first: a slow sender keeps nobody else waiting.
        let spooled = self.spool(pack, limits)?;
        let _door = self.lock_door();
        if let Some(accepted) = self.answered_by_head(old, new)? {
            return Ok(accepted);
        }
        self.receive_spooled(spooled, new, node, limits, now)
    }

    /// Takes a pack into a quarantine of its own, bounded and not yet looked at.
    pub(super) fn spool(&self, pack: impl Read, limits: &Limits) -> Result<Spooled, ReceiveError> {
        let dir = self.quarantine_dir();
        disk::create_dir(&dir).map_err(ReceiveError::io("make the quarantine"))?;
        // Removed when it goes out of scope, whatever the verdict.
        let dir = tempfile::Builder::new()
            .prefix("pack-")
            .tempdir_in(&dir)
            .map_err(ReceiveError::io("make the quarantine"))?;
        let incoming = dir.path().join("incoming");
        pack::store_bounded(pack, &incoming, limits, &Clockwork::start(limits))?;
        Ok(Spooled { dir, incoming })
    }

    /// What can be said before a byte is read.
    pub(super) fn answered_by_head(
        &self,
        old: Option<CommitId>,
        new: CommitId,
    ) -> Result<Option<Accepted>, ReceiveError> {
        let state = self.read_state();
        if let Some(trouble) = &state.trouble
            && (trouble.awaits().is_none() || state.head == Some(new))
        {
            return Err(ReceiveError::Halted(trouble.clone()));
        }
        match state.head {
            Some(head) if head == new => Ok(Some(Accepted {
                previous: Some(head),
                head,
                new_commits: Vec::new(),
            })),
            Some(head) if state.accepted.contains(new) => {
                Err(ReceiveError::Older { commit: new, head })
            }
            head if head != old => Err(ReceiveError::Stale {
                expected: old,
                head,
            }),
            _ => Ok(None),
        }
    }

    /// The checks and the promotion; the caller holds the door.
    pub(super) fn receive_spooled(
        &self,
        spooled: Spooled,
        new: CommitId,
        node: &NodeName,
        limits: &Limits,
        now: Timestamp,
    ) -> Result<Accepted, ReceiveError> {
        let clock = Clockwork::start(limits);
        let (objects, indexed) = self.quarantine(&spooled, limits, &clock)?;
        let revisions = self.judge(&objects, new, node, limits, &clock)?;
        drop(objects);
        self.promote(&indexed, new, revisions, now)
    }

    /// Looks the pack through, indexes it, and opens it upon the repository's own objects.
    fn quarantine(
        &self,
        spooled: &Spooled,
        limits: &Limits,
        clock: &Clockwork,
    ) -> Result<(Objects, Indexed), ReceiveError> {
        let make = ReceiveError::io("make the quarantine");
        let objects_dir = spooled.dir.path().join("objects");
        let pack_dir = objects_dir.join("pack");
        fs::create_dir_all(&pack_dir).map_err(&make)?;
        fs::create_dir_all(objects_dir.join("info")).map_err(&make)?;
        let own = self
            .objects_dir()
            .canonicalize()
            .map_err(ReceiveError::io("find the repository"))?;
        let mut alternates = own.into_os_string().into_encoded_bytes();
        alternates.push(b'\n');
        fs::write(objects_dir.join("info/alternates"), alternates).map_err(&make)?;
        pack::inspect(&spooled.incoming, limits, clock)?;
        let indexed = pack::index(&spooled.incoming, &pack_dir, limits, clock)?;
        pack::refuse_duplicates(&indexed)?;
        let objects = Objects::open(
            &objects_dir,
            usize::try_from(limits.object_bytes).unwrap_or(usize::MAX),
        )
        .map_err(ReceiveError::io("open the quarantine"))?;
        Ok((objects, indexed))
    }

    /// All that is asked of the new commits; nothing is written.
    fn judge(
        &self,
        objects: &Objects,
        new: CommitId,
        node: &NodeName,
        limits: &Limits,
        clock: &Clockwork,
    ) -> Result<Vec<VerifiedRevision>, ReceiveError> {
        let state = self.read_state();
        let trust = self.trust();
        let verification = Verification {
            objects,
            shapes: &self.shapes,
            accepted: &state.accepted,
            past: &state.past,
            trust: &trust,
            limits,
            clock,
            denylist: true,
        };
        let commits = verification.new_commits(new)?;
        if let Some(head) = state.head
            && !commits.boundary.contains(&head)
        {
            // All that is accepted leads to the head, so a descendant of the head touches the
            // accepted history at the head itself.
            return Err(match commits.boundary.iter().next() {
                None => ReceiveError::Unrelated { commit: new, head },
                Some(_) => ReceiveError::NotFastForward {
                    commit: new,
                    head,
                    common: state
                        .accepted
                        .records()
                        .iter()
                        .rev()
                        .map(|record| record.commit)
                        .find(|commit| commits.boundary.contains(commit)),
                },
            });
        }
        let revisions = verification.verify(new, &commits)?;
        // A repository that was set back takes nothing but what brings back what it lacks.
        if let Some(trouble) = &state.trouble
            && trouble
                .awaits()
                .is_none_or(|known| revisions.iter().all(|new| new.commit() != known))
        {
            return Err(ReceiveError::Halted(trouble.clone()));
        }
        self.compile(objects, new, node, limits.tree_paths)
            .map_err(|error| match error {
                CompileError::Definitions(errors) => ReceiveError::BadDefinitions {
                    commit: new,
                    errors,
                },
                CompileError::Read(error) => unreadable(new, error),
            })?;
        Ok(revisions)
    }

    /// Moves the pack in and the head on. Each step is on disk before the next begins.
    ///
    /// Until the mark is written a failure leaves nothing but an unreferenced pack. From then on it
    /// stops changes until a restart: the mark may be ahead, and must not fall.
    fn promote(
        &self,
        indexed: &Indexed,
        new: CommitId,
        revisions: Vec<VerifiedRevision>,
        now: Timestamp,
    ) -> Result<Accepted, ReceiveError> {
        self.move_in(indexed)
            .inspect_err(|error| self.note_doubt(error))?;
        self.move_on(new, revisions, now).inspect_err(|error| {
            self.state
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .trouble = Some(HighWaterTrouble::Interrupted { commit: new });
            self.note_doubt(error);
        })
    }

    /// After a flush that failed nothing on the disk may be assumed: the agent has to end and to open the
    /// store anew. A full disk is no such thing.
    fn note_doubt(&self, error: &ReceiveError) {
        if let ReceiveError::Io { source, .. } = error
            && source.kind() != std::io::ErrorKind::StorageFull
        {
            self.in_doubt.cancel();
        }
    }

    /// Takes up a promotion that a full disk cut short. One that ended in doubt is for the next start.
    fn take_up(&self) {
        if self.in_doubt.is_cancelled() {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !matches!(state.trouble, Some(HighWaterTrouble::Interrupted { .. })) {
            return;
        }
        let agreed = durable::read_mark(&self.data_dir)
            .map_err(OpenError::io("read the high-water mark"))
            .and_then(|mark| self.agree(&mut state, &mark));
        match agreed {
            Ok(trouble) => state.trouble = trouble,
            Err(error) => {
                tracing::warn!(error = %crate::error_chain(&error), "a revision still cannot be accepted to its end");
            }
        }
    }

    fn move_in(&self, indexed: &Indexed) -> Result<(), ReceiveError> {
        let pack_dir = self.objects_dir().join("pack");
        self.step(Step::MovePack)?;
        durable::move_into(&indexed.pack, &pack_dir)
            .map_err(ReceiveError::io("move the pack into the repository"))?;
        self.step(Step::MoveIndex)?;
        durable::move_into(&indexed.index, &pack_dir)
            .map_err(ReceiveError::io("move the pack into the repository"))?;
        disk::sync_dir(&pack_dir).map_err(ReceiveError::io("flush the repository"))
    }

    fn move_on(
        &self,
        new: CommitId,
        revisions: Vec<VerifiedRevision>,
        now: Timestamp,
    ) -> Result<Accepted, ReceiveError> {
        let previous = self.head();
        self.step(Step::WriteMark)?;
        durable::write_mark(&self.data_dir, new)
            .map_err(ReceiveError::io("write the high-water mark"))?;
        self.step(Step::MoveHead)?;
        durable::move_head(&self.repository(), previous, new, now, "accepted")
            .map_err(ReceiveError::io("move the head"))?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        state.head = Some(new);
        self.step(Step::AppendAccepted)?;
        let records: Vec<Record> = revisions
            .iter()
            .map(|revision| revision.record.clone())
            .collect();
        state
            .accepted
            .append(&self.data_dir, records)
            .map_err(ReceiveError::io("write the accepted commits"))?;
        // What it lacked, where it lacked something, has come back.
        state.trouble = None;
        state.past = Past::default();
        Ok(Accepted {
            previous,
            head: new,
            new_commits: revisions,
        })
    }

    /// In tests, fails before a chosen step, as a crash would.
    #[cfg(test)]
    fn step(&self, step: Step) -> Result<(), ReceiveError> {
        let crash = *self
            .crash_before
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match crash {
            Some((at, kind)) if at == step => Err(ReceiveError::io("go on")(kind.into())),
            _ => Ok(()),
        }
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "the test build fails here on demand"
    )]
    const fn step(&self, _: Step) -> Result<(), ReceiveError> {
        Ok(())
    }
}

/// Why the tip of a push could not be read.
fn unreadable(new: CommitId, error: ReadError) -> ReceiveError {
    match error {
        ReadError::TooLarge { what, limit } => ReceiveError::TooLarge { what, limit },
        ReadError::Object { source, .. } => ReceiveError::object(new, "a file", source),
        ReadError::Io { source } => ReceiveError::io("read the quarantine")(source),
        other => ReceiveError::HostileTree {
            commit: new,
            path: "a tree".to_owned(),
            rule: "hostile-tree",
            reason: other.to_string(),
        },
    }
}
