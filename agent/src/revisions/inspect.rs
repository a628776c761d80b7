//! Looking at a store on the disk without changing it: for `check` and `trust show`, also while an agent
//! works on it.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use mcp_spec::revision::CommitId;
use mcp_spec::revision::commit::MAX_COMMIT_BYTES;
use mcp_spec::signature::{ALLOWED_SIGNERS_PATH, AllowedSigners};

use super::accepted::AcceptedLog;
use super::durable::{self, Mark};
use super::error::HighWaterTrouble;
use super::limits::{Clockwork, Limits};
use super::objects::{Kind, Objects};
use super::trees::{self, Trees};
use super::{RevisionStore, query};

/// A store as it lies on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    /// The accepted head.
    pub head: Option<CommitId>,
    /// The high-water mark.
    pub mark: Option<CommitId>,
    /// How many commits were accepted.
    pub accepted: usize,
    /// The commit that the trusted history starts with, and who signed it.
    pub introduction: Option<(CommitId, String)>,
    /// Why changes would be stopped.
    pub trouble: Option<HighWaterTrouble>,
    /// What cannot be read.
    pub damage: Option<String>,
    /// Whom the head lets sign.
    pub signers: Option<AllowedSigners>,
}

impl RevisionStore {
    /// How many accepted revisions a key signed, and whom the head lets sign; also while an agent runs.
    ///
    /// # Errors
    ///
    /// Where the data directory cannot be read.
    pub fn look(data_dir: &Path, fingerprint: &str) -> io::Result<(usize, Option<AllowedSigners>)> {
        let accepted = AcceptedLog::read(data_dir)?;
        let signed = accepted
            .records()
            .iter()
            .filter(|record| record.fingerprint == fingerprint)
            .count();
        let repository = data_dir.join("repo.git");
        let head = durable::read_head(&repository)?;
        Ok((signed, head.and_then(|head| signers(&repository, head))))
    }

    /// How far the node of `present` has come, where the accepted commits in `restored` do not hold it:
    /// by its mark, or by what it accepted last where the mark is lost.
    ///
    /// # Errors
    ///
    /// Where either cannot be read.
    pub fn mark_beyond(present: &Path, restored: &Path) -> io::Result<Option<CommitId>> {
        let come = match durable::read_mark(present)? {
            Mark::At(mark) => Some(mark),
            Mark::Missing | Mark::Garbled => AcceptedLog::read(present)?.newest(),
        };
        let accepted = AcceptedLog::read(restored)?;
        Ok(come.filter(|commit| !accepted.contains(*commit)))
    }

    /// Reads head, mark, all accepted commits and all that the head holds. `known` is the head that the
    /// registry knows; a repository that lacks it was set back.
    ///
    /// # Errors
    ///
    /// Where the data directory cannot be read; what is wrong in it is told in the [`Inspection`].
    pub fn inspect(data_dir: &Path, known: Option<CommitId>) -> io::Result<Inspection> {
        let repository = data_dir.join("repo.git");
        let mut found = Inspection::default();
        match durable::read_head(&repository) {
            Ok(head) => found.head = head,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                found.damage = Some(format!("{} is no commit id", durable::HEAD_REF));
            }
            Err(error) => return Err(error),
        }
        let accepted = AcceptedLog::read(data_dir)?;
        found.accepted = accepted.records().len();
        found.introduction = accepted
            .records()
            .iter()
            .find(|record| record.introduction)
            .map(|record| (record.commit, record.principal.clone()));
        let objects = Objects::open(&repository.join("objects"), MAX_COMMIT_BYTES)?;
        let has = |commit: CommitId| objects.read_kind(commit.as_bytes(), Kind::Commit).is_ok();
        let head = found.head;
        found.trouble = match durable::read_mark(data_dir)? {
            Mark::Garbled => Some(HighWaterTrouble::MarkGarbled),
            Mark::Missing => match (head, accepted.newest()) {
                (Some(head), _) => Some(HighWaterTrouble::MarkMissing { head }),
                (None, Some(known)) => Some(HighWaterTrouble::SetBack { known, head }),
                (None, None) => None,
            },
            Mark::At(mark) => {
                found.mark = Some(mark);
                let is_ahead = head.is_none_or(|head| accepted.ancestry(mark).contains(&head));
                if head == Some(mark) {
                    None
                } else if !has(mark) {
                    Some(HighWaterTrouble::SetBack { known: mark, head })
                } else if is_ahead || !accepted.contains(mark) {
                    // The next start verifies it and moves the head there.
                    None
                } else {
                    Some(HighWaterTrouble::Diverged { mark, head })
                }
            }
        };
        found.signers = head.and_then(|head| signers(&repository, head));
        if found.damage.is_none() {
            found.damage = damage(&repository, &accepted, head, found.trouble.as_ref())?;
        }
        if found.trouble.is_none()
            && let Some(known) = known.filter(|known| !accepted.contains(*known))
        {
            found.trouble = Some(HighWaterTrouble::SetBack { known, head });
        }
        Ok(found)
    }
}

/// The signers that a commit names, where they can be read.
fn signers(repository: &Path, head: CommitId) -> Option<AllowedSigners> {
    let limit = usize::try_from(Limits::default().object_bytes).unwrap_or(usize::MAX);
    let objects = Objects::open(&repository.join("objects"), limit).ok()?;
    let root = query::root_tree(&objects, head).ok()?;
    let entry = Trees::new(&objects)
        .find(&root, ALLOWED_SIGNERS_PATH)
        .ok()??;
    let bytes = objects.read_kind(&entry.id, Kind::Blob).ok()?;
    AllowedSigners::parse_bytes(&bytes).ok()
}

/// The first thing that cannot be read of what the repository ought to hold.
fn damage(
    repository: &Path,
    accepted: &AcceptedLog,
    head: Option<CommitId>,
    trouble: Option<&HighWaterTrouble>,
) -> io::Result<Option<String>> {
    let limits = Limits {
        objects: u64::from(u32::MAX),
        ..Limits::default()
    };
    let clock = Clockwork::start(&limits);
    let objects = Objects::open(
        &repository.join("objects"),
        usize::try_from(limits.object_bytes).unwrap_or(usize::MAX),
    )?;
    let Some(head) = head else {
        return Ok(None);
    };
    // Of a repository that was set back only what it should still hold is asked for.
    let expected: HashSet<CommitId> = accepted.ancestry(head);
    let is_expected = |commit: &CommitId| trouble.is_none() || expected.contains(commit);
    for record in accepted.records() {
        if is_expected(&record.commit)
            && let Err(error) = objects.read_kind(record.commit.as_bytes(), Kind::Commit)
        {
            return Ok(Some(error.to_string()));
        }
    }
    let tree = match query::root_tree(&objects, head) {
        Ok(tree) => tree,
        Err(error) => return Ok(Some(crate::error_chain(&error))),
    };
    let mut reached = Vec::new();
    let walked = trees::reach(
        &objects,
        head,
        &tree,
        &mut HashSet::new(),
        &mut reached,
        &limits,
        &clock,
    );
    if let Err(error) = walked {
        return Ok(Some(crate::error_chain(&error)));
    }
    for id in reached {
        if let Err(error) = objects.read(&id) {
            return Ok(Some(error.to_string()));
        }
    }
    Ok(None)
}
