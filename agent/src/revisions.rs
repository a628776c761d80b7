//! The one door for revisions: a bare git repository that only verified commits enter.
//!
//! Owns everything below the agent's data directory that has to do with git: `repo.git` with the
//! accepted head in `refs/mcp/head`, the `high-water` mark, the file `accepted-commits`, and the
//! `quarantine` in which packs are looked at. Pushes of the CLI, fetches from an upstream and what lies in
//! the inbox go through the same [`RevisionStore::receive`]. Leaves to others: transport, the registry, and what
//! follows from a new head.
//!
//! Locking: one receipt at a time; readers never wait for it. Calls block on disk and processor: an
//! async caller uses `spawn_blocking`. Nothing here starts a process.
//!
//! Crashes: a pack is moved in, then the high-water mark is written, then the ref with its reflog,
//! then the accepted commits, each fsynced before the next. [`RevisionStore::open`] finishes what
//! was begun, by verifying anew; a pack that was moved in alone is unreferenced and harmless. The
//! registry comes last and is the caller's: [`RevisionStore::accepted_since`] tells what it missed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use jiff::Timestamp;
use mcp_spec::revision::CommitId;
use mcp_spec::signature::{DeniedKeys, OwnerKeys};
use tokio_util::sync::CancellationToken;

mod accepted;
mod compiled;
mod consolidate;
mod door;
mod durable;
mod error;
mod faults;
mod history;
mod inbox;
mod inspect;
mod limits;
mod objects;
mod open;
mod pack;
mod query;
mod source;
mod tree_files;
mod trees;

#[cfg(test)]
pub(crate) mod tests;

pub use error::{HighWaterTrouble, IntroductionFault, ReceiveError};
pub use faults::{Bound, PackFault};
pub use inbox::{InboxError, InboxLook, inbox_tip};
pub use inspect::Inspection;
pub use limits::Limits;
pub use objects::ObjectError;
pub use open::OpenError;
pub use pack::PackWriteError;
pub use query::{ReadError, ResolveError};
pub use source::{FetchError, Fetched};
pub use tree_files::{DraftError, MAX_DRAFT_BYTES, MAX_DRAFT_FILES, TreeFiles};

use crate::secrets::Keyring;
use accepted::{AcceptedLog, Past, Record};
use compiled::CompiledDefinitions;
use trees::Shapes;

/// What the agent trusts, out of band.
#[derive(Debug, Clone)]
pub struct TrustRoots {
    /// Keys that may introduce a history.
    pub owners: OwnerKeys,
    /// Keys whose new commits are refused.
    pub denied: DeniedKeys,
    /// The pinned start of the history, if one was given.
    pub introduction: Option<CommitId>,
}

/// A commit that passed the door. Only verification makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedRevision {
    record: Record,
    subject: String,
    author_time: Timestamp,
}

impl VerifiedRevision {
    fn new(record: Record, subject: String, author_time: Timestamp) -> Self {
        Self {
            record,
            subject,
            author_time,
        }
    }

    /// Its id.
    #[must_use]
    pub const fn commit(&self) -> CommitId {
        self.record.commit
    }

    /// Its parents; those of an introduction are not verified.
    #[must_use]
    pub fn parents(&self) -> &[CommitId] {
        &self.record.parents
    }

    /// Who signed it, as its parent's signers name them.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.record.principal
    }

    /// The signing key, `SHA256:…`.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.record.fingerprint
    }

    /// First line of the message, without control characters.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// When it was written, as the author's clock said; nothing is decided by it.
    #[must_use]
    pub const fn author_time(&self) -> Timestamp {
        self.author_time
    }

    /// Whether the trusted history starts with it.
    #[must_use]
    pub const fn is_introduction(&self) -> bool {
        self.record.introduction
    }
}

/// What came of a push or a fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The head before.
    pub previous: Option<CommitId>,
    /// The head now.
    pub head: CommitId,
    /// What was new, oldest first; empty where the head was there already.
    pub new_commits: Vec<VerifiedRevision>,
}

/// The store of revisions of one agent.
#[derive(Debug)]
pub struct RevisionStore {
    data_dir: PathBuf,
    trust: RwLock<TrustRoots>,
    state: RwLock<State>,
    /// What was compiled last: the definitions of the head, mostly.
    compiled: Mutex<CompiledDefinitions>,
    /// The names of its folders.
    shapes: Arc<Shapes>,
    /// What opens the secrets of revisions.
    keyring: Arc<Keyring>,
    /// Held during a receipt.
    door: Mutex<()>,
    /// A flush has failed.
    in_doubt: CancellationToken,
    /// The step that fails, and how.
    #[cfg(test)]
    crash_before: Mutex<Option<(door::Step, std::io::ErrorKind)>>,
}

#[derive(Debug, Default)]
struct State {
    head: Option<CommitId>,
    accepted: AcceptedLog,
    /// What a repository that was set back lacks.
    past: Past,
    trouble: Option<HighWaterTrouble>,
}

impl RevisionStore {
    /// What opens the secrets of revisions.
    #[must_use]
    pub const fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// The accepted head, `None` before the first push.
    #[must_use]
    pub fn head(&self) -> Option<CommitId> {
        self.read_state().head
    }

    /// Returns when a flush failed, so that nothing on the disk may be assumed: the agent has to end.
    pub async fn in_doubt(&self) {
        self.in_doubt.cancelled().await;
    }

    /// Why changes are stopped, where they are.
    #[must_use]
    pub fn trouble(&self) -> Option<HighWaterTrouble> {
        self.read_state().trouble.clone()
    }

    /// Holds the head against the one that the registry knows, which is the second place where the mark
    /// is kept: where the repository lacks it, the repository was set back, and changes are stopped.
    pub fn hold_against(&self, known: Option<CommitId>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known
            && state.trouble.is_none()
            && !state.accepted.contains(known)
        {
            state.trouble = Some(HighWaterTrouble::SetBack {
                known,
                head: state.head,
            });
        }
    }

    /// Says what else was accepted here, as the registry knows it: where the repository was set back, this is
    /// taken back even where its signer was denied since.
    pub fn remember(&self, commits: impl IntoIterator<Item = CommitId>) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(state.trouble, Some(HighWaterTrouble::SetBack { .. })) {
            state.past.extend(commits);
        }
    }

    /// Forgets, in memory, what was accepted after the head, where that is what stops changes.
    pub fn forget_beyond_head(&self) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(state.trouble, Some(HighWaterTrouble::SetBack { .. })) {
            let head = state.head;
            state.accepted.cut_at(head);
            state.past = Past::default();
        }
    }

    /// The bare repository.
    #[must_use]
    pub fn repository(&self) -> PathBuf {
        self.data_dir.join("repo.git")
    }

    /// Takes over changed owners or denied keys; the accepted history stays as it is.
    #[cfg(test)]
    pub(crate) fn set_trust(&self, trust: TrustRoots) {
        *self.trust.write().unwrap_or_else(PoisonError::into_inner) = trust;
    }

    /// Reads owners and denied keys anew, one reader at a time: what was read earlier never takes the place
    /// of what was read later. The accepted history stays as it is.
    ///
    /// # Errors
    ///
    /// Those of `read`; the trust is as it was then.
    pub fn read_trust<E>(&self, read: impl FnOnce() -> Result<TrustRoots, E>) -> Result<(), E> {
        let mut trust = self.trust.write().unwrap_or_else(PoisonError::into_inner);
        *trust = read()?;
        Ok(())
    }

    fn objects_dir(&self) -> PathBuf {
        self.repository().join("objects")
    }

    fn quarantine_dir(&self) -> PathBuf {
        self.data_dir.join("quarantine")
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn trust(&self) -> RwLockReadGuard<'_, TrustRoots> {
        self.trust.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_door(&self) -> MutexGuard<'_, ()> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
