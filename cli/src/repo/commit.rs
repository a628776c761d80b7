//! A signed commit of managed paths, and of nothing else.

use std::path::PathBuf;

use gix::ObjectId;
use gix::bstr::{BString, ByteSlice};
use gix::objs::WriteTo;
use gix::objs::tree::EntryKind;
use gix::refs::Target;
use gix::refs::transaction::{PreviousValue, RefEdit};

use super::index_entries::{self, Committed};
use super::{
    Changes, CommitId, DesiredRepo, GitFailure, Identity, RefusedPath, Selection, commit_id,
};
use crate::sign::{SignError, SigningKey};
use mcp_spec::signature::GIT_NAMESPACE;

/// Why nothing was committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// Nothing that was selected differs from `HEAD`.
    #[error("there is nothing to commit")]
    Nothing,
    /// Paths are in the way that cannot be committed.
    #[error(
        "{} below the managed folders cannot be committed",
        refused_list(paths)
    )]
    Refused {
        /// The paths, with the reason for each.
        paths: Vec<RefusedPath>,
    },
    /// `HEAD` is on no branch.
    #[error("HEAD is detached at {}: a commit would be on no branch", head.short())]
    Detached {
        /// The commit that `HEAD` is at.
        head: CommitId,
    },
    /// A merge, rebase or the like has been begun and not ended.
    #[error("a {operation} is in progress in {}", dir.display())]
    InProgress {
        /// What it is.
        operation: &'static str,
        /// The repository.
        dir: PathBuf,
    },
    /// A managed path has conflicts that are not resolved.
    #[error("{path} has unresolved conflicts")]
    Unmerged {
        /// The path.
        path: String,
    },
    /// Another process holds the index's lock, or left it behind.
    #[error("another git command is at work here: {} exists", lock.display())]
    IndexLocked {
        /// The lock file.
        lock: PathBuf,
    },
    /// `HEAD` moved after the changes were found out.
    #[error("HEAD moved from {} to {} meanwhile", named(*from), named(*to))]
    HeadMoved {
        /// Where it was.
        from: Option<CommitId>,
        /// Where it is.
        to: Option<CommitId>,
    },
    /// A file changed after the changes were found out.
    #[error("{path} changed while it was being committed")]
    ChangedMeanwhile {
        /// The file.
        path: String,
    },
    /// The commit could not be signed.
    #[error("the commit could not be signed")]
    Sign {
        /// Why.
        source: SignError,
    },
    /// The index could not be read or written.
    #[error("the index cannot be updated")]
    Index {
        /// What git said.
        source: GitFailure,
    },
    /// The commit is made, but the index could not be put in place after it.
    #[error("{commit} is committed, but the index still shows the old files")]
    IndexLeftBehind {
        /// The new commit.
        commit: CommitId,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An object or the branch could not be written.
    #[error("the commit cannot be written")]
    Write {
        /// What git said.
        source: GitFailure,
    },
}

fn named(commit: Option<CommitId>) -> String {
    commit.map_or_else(|| "nothing".to_owned(), |id| id.to_string())
}

fn refused_list(paths: &[RefusedPath]) -> String {
    match paths {
        [one] => one.path.clone(),
        [first, rest @ ..] => format!("{} and {} more", first.path, rest.len()),
        [] => "nothing".to_owned(),
    }
}

impl CommitError {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Nothing => return None,
            Self::Refused { paths } => paths.first()?.to_string(),
            Self::Detached { .. } => "go to the branch: git switch main".to_owned(),
            Self::InProgress { operation, dir } => {
                format!(
                    "finish it or give it up: git -C {} {operation} --continue | --abort",
                    dir.display()
                )
            }
            Self::Unmerged { path } => format!("resolve it, then: git add {path}"),
            Self::IndexLocked { lock } => {
                format!("wait for it; if nothing is running: rm {}", lock.display())
            }
            Self::HeadMoved { .. } | Self::ChangedMeanwhile { .. } => "run it again".to_owned(),
            Self::Sign { source } => source.hint()?,
            Self::Index { .. } | Self::Write { .. } => {
                "check the repository with: git fsck, and the disk with: df .".to_owned()
            }
            Self::IndexLeftBehind { .. } => "git reset -- services files secrets .mcp".to_owned(),
        })
    }
}

fn unwritten(source: gix::Error) -> CommitError {
    CommitError::Write {
        source: source.into(),
    }
}

impl DesiredRepo {
    /// Commits what `selection` takes of `changes` on the current branch, signed with `key`.
    ///
    /// The new tree is `HEAD`'s with the selected paths put in: what is staged elsewhere stays staged.
    /// The author is whom git's configuration and `GIT_AUTHOR_*` name, else `fallback`.
    /// A subject of its own line and a final newline are the caller's, except that the newline is added.
    ///
    /// # Errors
    ///
    /// See [`CommitError`]. But for [`CommitError::IndexLeftBehind`] nothing has changed then.
    pub fn commit(
        &self,
        changes: &Changes,
        selection: &Selection,
        message: &str,
        key: &SigningKey,
        fallback: &Identity,
    ) -> Result<CommitId, CommitError> {
        self.require_committable()?;
        let refused: Vec<_> = changes.refused_in(selection).cloned().collect();
        if !refused.is_empty() {
            return Err(CommitError::Refused { paths: refused });
        }
        if changes.selected(selection).next().is_none() {
            return Err(CommitError::Nothing);
        }
        let head = self.current_head(changes)?;
        let (tree, committed) = self.write_tree(head, changes, selection)?;
        // Signed before anything is locked: an ssh-agent may wait for its user.
        let commit = self.write_commit(tree, head, message, key, fallback)?;
        let mut index = index_entries::lock(self)?;
        self.current_head(changes)?;
        // As git does it: the new index is written under the lock first, so that after the branch
        // has moved only a rename is left to fail.
        index.write(self, &committed, changes)?;
        self.move_branch(head, commit, message, fallback)?;
        let commit = commit_id(commit);
        index
            .commit()
            .map_err(|source| CommitError::IndexLeftBehind { commit, source })?;
        Ok(commit)
    }

    /// Whether a commit could be made now: `HEAD` is on a branch, and nothing is in progress or in conflict.
    ///
    /// # Errors
    ///
    /// [`CommitError`], what is in the way.
    pub fn require_committable(&self) -> Result<(), CommitError> {
        if let Some(state) = self.git.state() {
            return Err(CommitError::InProgress {
                operation: operation(&state),
                dir: self.dir.clone(),
            });
        }
        let head = self.git.head().map_err(unwritten)?;
        if head.is_detached() {
            let at = head
                .id()
                .map_or_else(|| ObjectId::null(gix::hash::Kind::Sha1), gix::Id::detach);
            return Err(CommitError::Detached {
                head: commit_id(at),
            });
        }
        match index_entries::unmerged(self).map_err(unwritten)? {
            Some(path) => Err(CommitError::Unmerged { path }),
            None => Ok(()),
        }
    }

    fn current_head(&self, changes: &Changes) -> Result<Option<ObjectId>, CommitError> {
        let head = self
            .git
            .head()
            .and_then(|head| head.try_into_peeled_id())
            .map_err(unwritten)?;
        let head = head.map(gix::Id::detach);
        if head.map(commit_id) != changes.head {
            return Err(CommitError::HeadMoved {
                from: changes.head,
                to: head.map(commit_id),
            });
        }
        Ok(head)
    }

    fn write_tree(
        &self,
        head: Option<ObjectId>,
        changes: &Changes,
        selection: &Selection,
    ) -> Result<(ObjectId, Vec<Committed>), CommitError> {
        let base = match head {
            Some(id) => self
                .git
                .find_commit(id)
                .and_then(|commit| commit.tree())
                .map_err(unwritten)?,
            None => self.git.empty_tree(),
        };
        let mut editor = base.edit().map_err(unwritten)?;
        let mut committed = Vec::new();
        // Deletions first: where a file takes a folder's place, its old contents are gone by then.
        for change in changes
            .selected(selection)
            .filter(|change| change.now.is_none())
        {
            editor.remove(change.path.as_str()).map_err(unwritten)?;
            committed.push(Committed {
                path: change.path.clone(),
                now: None,
            });
        }
        for change in changes.selected(selection) {
            let Some(content) = change.now else { continue };
            let (bytes, stat) = index_entries::read_for_commit(self, &change.path, content)?;
            let blob = self.git.write_blob(&bytes).map_err(unwritten)?.detach();
            let kind = match content.executable {
                true => EntryKind::BlobExecutable,
                false => EntryKind::Blob,
            };
            editor
                .upsert(change.path.as_str(), kind, blob)
                .map_err(unwritten)?;
            committed.push(Committed {
                path: change.path.clone(),
                now: Some((content, stat)),
            });
        }
        let tree = editor.write().map_err(unwritten)?.detach();
        Ok((tree, committed))
    }

    fn write_commit(
        &self,
        tree: ObjectId,
        head: Option<ObjectId>,
        message: &str,
        key: &SigningKey,
        fallback: &Identity,
    ) -> Result<ObjectId, CommitError> {
        let mut message = BString::from(message.trim_end());
        message.push(b'\n');
        let mut commit = gix::objs::Commit {
            tree,
            parents: head.into_iter().collect(),
            author: self.person(self.git.author(), fallback)?,
            committer: self.person(self.git.committer(), fallback)?,
            encoding: None,
            message,
            extra_headers: Vec::new(),
        };
        let mut unsigned = Vec::new();
        commit
            .write_to(&mut unsigned)
            .map_err(|source| unwritten(gix::Error::from_error(source)))?;
        let signature = key
            .sign(GIT_NAMESPACE, &unsigned)
            .map_err(|source| CommitError::Sign { source })?;
        // The header ends where its last line does: the newline after it is the format's own.
        commit
            .extra_headers
            .push(("gpgsig".into(), signature.trim_end().into()));
        self.git
            .write_object(&commit)
            .map(gix::Id::detach)
            .map_err(unwritten)
    }

    fn person(
        &self,
        configured: Option<gix::Result<gix::actor::SignatureRef<'_>>>,
        fallback: &Identity,
    ) -> Result<gix::actor::Signature, CommitError> {
        match configured {
            Some(found) => found
                .and_then(|person| person.to_owned())
                .map_err(unwritten),
            None => Ok(gix::actor::Signature {
                name: clean(&fallback.name),
                email: clean(&fallback.email),
                time: gix::date::Time::now_local_or_utc(),
            }),
        }
    }

    fn move_branch(
        &self,
        head: Option<ObjectId>,
        commit: ObjectId,
        message: &str,
        fallback: &Identity,
    ) -> Result<(), CommitError> {
        let expected = match head {
            Some(id) => PreviousValue::MustExistAndMatch(Target::Object(id)),
            None => PreviousValue::MustNotExist,
        };
        let name = "HEAD".try_into().expect("HEAD is a valid name");
        let log = gix::reference::log::message(
            "commit",
            message.as_bytes().as_bstr(),
            usize::from(head.is_some()),
        );
        let edit = RefEdit::update(name, commit, expected, log).with_deref(true);
        let committer = self.person(self.git.committer(), fallback)?;
        let mut time = gix::date::parse::TimeBuf::default();
        match self
            .git
            .edit_references_as([edit], Some(committer.to_ref(&mut time)))
        {
            Ok(_) => Ok(()),
            Err(source) => {
                // A lost race and a failed lock have the same text: the branch itself tells.
                let now = self.git.head().and_then(|head| head.try_into_peeled_id());
                let now = now.ok().flatten().map(gix::Id::detach);
                match now == head {
                    true => Err(match self.branch_lock() {
                        Some(lock) => CommitError::IndexLocked { lock },
                        None => unwritten(source),
                    }),
                    false => Err(CommitError::HeadMoved {
                        from: head.map(commit_id),
                        to: now.map(commit_id),
                    }),
                }
            }
        }
    }
}

impl DesiredRepo {
    /// The lock of `HEAD` or of its branch, where one is there.
    fn branch_lock(&self) -> Option<PathBuf> {
        let branch = self.git.head_name().ok().flatten();
        let branch = branch.map(|name| {
            let file = format!("{}.lock", name.as_bstr());
            self.git.common_dir().join(file)
        });
        let head = self.git.git_dir().join("HEAD.lock");
        std::iter::once(head)
            .chain(branch)
            .find(|lock| lock.exists())
    }
}

/// Without what would end a name or an address in a commit's header.
fn clean(text: &str) -> BString {
    text.chars()
        .filter(|c| !matches!(c, '<' | '>' | '\n' | '\0'))
        .collect::<String>()
        .trim()
        .into()
}

fn operation(state: &gix::state::InProgress) -> &'static str {
    use gix::state::InProgress;
    match state {
        InProgress::ApplyMailbox | InProgress::ApplyMailboxRebase => "am",
        InProgress::Bisect => "bisect",
        InProgress::CherryPick | InProgress::CherryPickSequence => "cherry-pick",
        InProgress::Merge => "merge",
        InProgress::Rebase | InProgress::RebaseInteractive => "rebase",
        InProgress::Revert | InProgress::RevertSequence => "revert",
    }
}
