//! Commits by name and by ancestry: what `HEAD`, a tag or `HEAD~2` is, and what lies between two commits.

use std::collections::{BinaryHeap, HashMap};

use gix::ObjectId;

use super::{CommitId, DesiredRepo, GitFailure, commit_id, oid};

/// What a commit says about itself; nothing of it has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitInfo {
    /// Its id.
    pub id: CommitId,
    /// Its parents, in order.
    pub parents: Vec<CommitId>,
    /// The first paragraph of its message, on one line.
    pub subject: String,
    /// Its author's name.
    pub author_name: String,
    /// Its author's address.
    pub author_email: String,
    /// Its committer's date, in seconds since 1970; decides nothing.
    pub time_seconds: i64,
    /// Whether it carries a signature, good or bad.
    pub signed: bool,
}

/// Why a commit could not be found or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HistoryError {
    /// The text names no commit here.
    #[error("`{rev}` names no commit in this repository")]
    UnknownRevision {
        /// What was given.
        rev: String,
        /// What git said.
        source: GitFailure,
    },
    /// The commit is not in this repository.
    #[error("the commit {id} is not in this repository")]
    UnknownCommit {
        /// The commit.
        id: CommitId,
    },
    /// The repository cannot be read.
    #[error("the repository's history cannot be read")]
    Read {
        /// What git said.
        source: GitFailure,
    },
}

impl HistoryError {
    /// The next thing to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::UnknownRevision { .. } => "look with: git log --oneline".to_owned(),
            Self::UnknownCommit { .. } => "get others' commits first: mcp fetch".to_owned(),
            Self::Read { .. } => "check it with: git fsck".to_owned(),
        }
    }
}

fn unreadable(source: gix::Error) -> HistoryError {
    HistoryError::Read {
        source: source.into(),
    }
}

impl DesiredRepo {
    /// The commit that `HEAD` is at; `None` before the first one.
    ///
    /// # Errors
    ///
    /// [`HistoryError::Read`] where the repository is broken.
    pub fn head(&self) -> Result<Option<CommitId>, HistoryError> {
        let head = self.git.head().map_err(unreadable)?;
        let id = head.try_into_peeled_id().map_err(unreadable)?;
        Ok(id.map(commit_id))
    }

    /// The branch that `HEAD` is on, such as `main`; `None` where it is detached.
    ///
    /// # Errors
    ///
    /// [`HistoryError::Read`] where the repository is broken.
    pub fn branch(&self) -> Result<Option<String>, HistoryError> {
        let name = self.git.head_name().map_err(unreadable)?;
        Ok(name.map(|name| name.shorten().to_string()))
    }

    /// The commit that `rev` names: an id, whole or short, a branch, a tag, `HEAD~2`, whatever git takes.
    ///
    /// # Errors
    ///
    /// [`HistoryError::UnknownRevision`] with git's own reason, such as an ambiguous short id.
    pub fn resolve(&self, rev: &str) -> Result<CommitId, HistoryError> {
        let unknown = |source: gix::Error| HistoryError::UnknownRevision {
            rev: rev.to_owned(),
            source: source.into(),
        };
        let id = self.git.rev_parse_single(rev).map_err(unknown)?;
        let commit = id
            .object()
            .and_then(|object| object.peel_to_commit())
            .map_err(unknown)?;
        Ok(commit_id(commit.id))
    }

    /// Whether the repository holds the commit.
    pub fn contains(&self, id: CommitId) -> bool {
        self.git.find_commit(oid(id)).is_ok()
    }

    /// Whether `older` is `newer` or one of its ancestors.
    ///
    /// # Errors
    ///
    /// [`HistoryError::UnknownCommit`] where either is not here.
    pub fn is_ancestor(&self, older: CommitId, newer: CommitId) -> Result<bool, HistoryError> {
        self.require(older)?;
        self.require(newer)?;
        if older == newer {
            return Ok(true);
        }
        // What `between` hides is reached for certain. What it leaves may be the fault of wrong
        // clocks, so that answer costs a walk through all of the newer commit's history.
        if self
            .between(&[oid(newer)], oid(older))
            .map_err(unreadable)?
            .is_empty()
        {
            return Ok(true);
        }
        let mut walk = self.git.rev_walk([oid(newer)]).all().map_err(unreadable)?;
        walk.try_fold(false, |found, step| {
            Ok(found || step.map_err(unreadable)?.id == oid(older))
        })
    }

    /// The commits that `new` reaches and `old` does not, newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// [`HistoryError::UnknownCommit`] where either is not here.
    pub fn log(
        &self,
        old: Option<CommitId>,
        new: CommitId,
        limit: usize,
    ) -> Result<Vec<CommitInfo>, HistoryError> {
        self.require(new)?;
        if let Some(old) = old {
            self.require(old)?;
            let ids = self.between(&[oid(old)], oid(new)).map_err(unreadable)?;
            return ids
                .into_iter()
                .take(limit)
                .map(|id| self.commit_info(commit_id(id)))
                .collect();
        }
        let walk = self
            .git
            .rev_walk([oid(new)])
            .sorting(gix::revision::walk::Sorting::ByCommitTime(
                Default::default(),
            ))
            .all()
            .map_err(unreadable)?;
        walk.take(limit)
            .map(|step| self.commit_info(commit_id(step.map_err(unreadable)?.id)))
            .collect()
    }

    /// What the commit says about itself.
    ///
    /// # Errors
    ///
    /// [`HistoryError::UnknownCommit`] where it is not here.
    pub fn commit_info(&self, id: CommitId) -> Result<CommitInfo, HistoryError> {
        let commit = self
            .git
            .find_commit(oid(id))
            .map_err(|_| HistoryError::UnknownCommit { id })?;
        let decoded = commit.decode().map_err(unreadable)?;
        let author = decoded.author().map_err(unreadable)?;
        let time_seconds = commit.time().map_err(unreadable)?.seconds;
        Ok(CommitInfo {
            id,
            parents: decoded.parents().map(commit_id).collect(),
            subject: decoded.message().summary().to_string(),
            author_name: author.name.to_string(),
            author_email: author.email.to_string(),
            time_seconds,
            signed: decoded.extra_headers().find("gpgsig").is_some(),
        })
    }

    fn require(&self, id: CommitId) -> Result<(), HistoryError> {
        match self.contains(id) {
            true => Ok(()),
            false => Err(HistoryError::UnknownCommit { id }),
        }
    }

    /// The commits that `new` reaches and none of `hidden` does, roughly newest first.
    ///
    /// The two frontiers are walked together by date and the walk ends when nothing is left that
    /// could still be new, as git's own `rev-list` does it, so it costs what lies between them and
    /// not the whole history. Where clocks were wrong it can give a commit too much, never one too few.
    pub(super) fn between(&self, hidden: &[ObjectId], new: ObjectId) -> gix::Result<Vec<ObjectId>> {
        let mut is_hidden: HashMap<ObjectId, bool> = HashMap::new();
        let mut queue = BinaryHeap::new();
        let mut found = Vec::new();
        let mut open_new = 0usize;
        for &id in hidden {
            if is_hidden.insert(id, true).is_none() {
                queue.push((self.git.find_commit(id)?.time()?.seconds, id));
            }
        }
        if let std::collections::hash_map::Entry::Vacant(slot) = is_hidden.entry(new) {
            slot.insert(false);
            queue.push((self.git.find_commit(new)?.time()?.seconds, new));
            open_new += 1;
        }
        while open_new > 0 {
            let Some((_, id)) = queue.pop() else { break };
            let hide = is_hidden[&id];
            if !hide {
                open_new -= 1;
                found.push(id);
            }
            let commit = self.git.find_commit(id)?;
            for parent in commit.parent_ids() {
                let parent = parent.detach();
                match is_hidden.get(&parent).copied() {
                    None => {
                        is_hidden.insert(parent, hide);
                        queue.push((self.git.find_commit(parent)?.time()?.seconds, parent));
                        open_new += usize::from(!hide);
                    }
                    Some(false) if hide => {
                        open_new -= self.hide_from(parent, &mut is_hidden, &mut queue)?;
                    }
                    Some(_) => {}
                }
            }
        }
        found.retain(|id| !is_hidden[id]);
        Ok(found)
    }

    /// Hides a commit that was taken for new, and what was found beneath it meanwhile; says how
    /// many of them were still waiting in the queue.
    fn hide_from(
        &self,
        start: ObjectId,
        is_hidden: &mut HashMap<ObjectId, bool>,
        queue: &mut BinaryHeap<(i64, ObjectId)>,
    ) -> gix::Result<usize> {
        let waiting: std::collections::HashSet<ObjectId> =
            queue.iter().map(|&(_, id)| id).collect();
        let mut closed = 0;
        let mut stack = vec![start];
        while let Some(id) = stack.pop() {
            if is_hidden.get(&id) != Some(&false) {
                continue;
            }
            is_hidden.insert(id, true);
            if waiting.contains(&id) {
                // It is still in the queue, and hides its own parents when it is reached.
                closed += 1;
                continue;
            }
            stack.extend(self.git.find_commit(id)?.parent_ids().map(gix::Id::detach));
        }
        Ok(closed)
    }
}
