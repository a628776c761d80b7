//! Why a revision is refused: one named reason each, with what to do about it.

use std::io;

use mcp_spec::definition::DefinitionError;
use mcp_spec::revision::{CommitHeaderError, CommitId};
use mcp_spec::signature::{AllowedSignersError, AuthorisationError, SignatureError};
use thiserror::Error;

use super::faults::{Bound, PackFault};
use super::objects::ObjectError;

/// Why a push or a fetch was refused. Nothing has changed when it is returned, but for an `Io` in
/// the middle of the promotion: the store then takes no changes until a restart finishes it.
///
/// What is wrong with signed bytes is part of the text; only `Io` has a source.
#[derive(Debug, Error)]
pub enum ReceiveError {
    /// The caller's idea of the head is out of date.
    #[error("the head is {}, not {}", shown(*head), shown(*expected))]
    Stale {
        /// What the caller expected.
        expected: Option<CommitId>,
        /// The accepted head.
        head: Option<CommitId>,
    },
    /// The revision lies behind the head.
    #[error("{} is older than the head {}", commit.short(), head.short())]
    Older {
        /// What was sent.
        commit: CommitId,
        /// The accepted head.
        head: CommitId,
    },
    /// The revision left the accepted history before its head.
    #[error("{} does not descend from the head {}", commit.short(), head.short())]
    NotFastForward {
        /// What was sent.
        commit: CommitId,
        /// The accepted head.
        head: CommitId,
        /// Where both parted, as far as it is known.
        common: Option<CommitId>,
    },
    /// The revision shares nothing with the accepted history.
    #[error("{} is of another history than the head {}", commit.short(), head.short())]
    Unrelated {
        /// What was sent.
        commit: CommitId,
        /// The accepted head.
        head: CommitId,
    },
    /// A commit without a signature.
    #[error("{} is not signed", commit.short())]
    Unsigned {
        /// The commit.
        commit: CommitId,
    },
    /// A commit whose signature does not count.
    #[error("the signature of {} does not count: {fault}", commit.short())]
    BadSignature {
        /// The commit.
        commit: CommitId,
        /// Why.
        fault: SignatureError,
    },
    /// A commit by a key that its parent does not name.
    #[error("{} is signed by the key {fingerprint}, which .mcp/allowed_signers of its parent {} does not name", commit.short(), parent.short())]
    UnknownSigner {
        /// The commit.
        commit: CommitId,
        /// The parent that does not authorise it.
        parent: CommitId,
        /// The key.
        fingerprint: String,
    },
    /// A commit by a key that stands on the agent's denylist.
    #[error("{} is signed by the denied key {fingerprint}", commit.short())]
    DeniedKey {
        /// The commit.
        commit: CommitId,
        /// The key.
        fingerprint: String,
    },
    /// A commit by a key that may not make this change.
    #[error("{} may not be made by its signer: {fault}", commit.short())]
    Unauthorised {
        /// The commit.
        commit: CommitId,
        /// Why.
        fault: AuthorisationError,
    },
    /// A commit whose own `.mcp/allowed_signers` cannot be read.
    #[error("{} has a broken .mcp/allowed_signers, {fault}", commit.short())]
    BadSigners {
        /// The commit.
        commit: CommitId,
        /// The line and what is wrong with it.
        fault: AllowedSignersError,
    },
    /// No commit that could start the trusted history.
    #[error("no commit of {} can introduce its history: {fault}", tip.short())]
    NoIntroduction {
        /// What was sent.
        tip: CommitId,
        /// What is missing.
        fault: IntroductionFault,
    },
    /// A commit that hangs on the part of the history before the introduction.
    #[error("{} builds on {}, which lies outside the trusted history", commit.short(), parent.short())]
    BeforeIntroduction {
        /// The commit.
        commit: CommitId,
        /// Its parent.
        parent: CommitId,
    },
    /// A commit that can be read in more than one way.
    #[error("{} is malformed: {fault}", commit.short())]
    BadHeader {
        /// The commit.
        commit: CommitId,
        /// What is wrong.
        fault: CommitHeaderError,
    },
    /// A tree that holds what no revision may hold.
    #[error("{} holds {path}, which {reason}", commit.short())]
    HostileTree {
        /// The commit.
        commit: CommitId,
        /// Where in its tree.
        path: String,
        /// Which rule is broken: its name.
        rule: &'static str,
        /// The same in words.
        reason: String,
    },
    /// Something that the revision reaches is not there.
    #[error("{} is incomplete: {what} {id} is missing", commit.short())]
    MissingObject {
        /// The commit.
        commit: CommitId,
        /// What it is: a commit, a tree, a file.
        what: String,
        /// Its id.
        id: String,
    },
    /// An object that cannot be read.
    #[error("{} cannot be read: {fault}", commit.short())]
    Object {
        /// The commit.
        commit: CommitId,
        /// What is wrong.
        fault: ObjectError,
    },
    /// One of the bounds is exceeded.
    #[error("{what} exceed the limit of {limit}")]
    TooLarge {
        /// Which of them.
        what: Bound,
        /// The bound.
        limit: u64,
    },
    /// It took too long.
    #[error("the revision could not be checked within {seconds} s")]
    TimedOut {
        /// The bound.
        seconds: u64,
    },
    /// The pack is not a proper pack.
    #[error("the pack is corrupt: {fault}")]
    Corrupt {
        /// What is wrong with it.
        fault: PackFault,
    },
    /// The pack holds a tag object.
    #[error("the pack holds a tag; only commits, trees and files are accepted")]
    Tag,
    /// The tip's definitions do not compile on this node.
    #[error("{} has definitions that cannot be read ({} in all); the first: {}", commit.short(), errors.len(), errors.first().map(ToString::to_string).unwrap_or_default())]
    BadDefinitions {
        /// The tip.
        commit: CommitId,
        /// Every error of every file.
        errors: Vec<DefinitionError>,
    },
    /// The head and the high-water mark disagree.
    #[error("changes are stopped: {0}")]
    Halted(HighWaterTrouble),
    /// The disk failed.
    #[error("could not {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// Why a history cannot be introduced.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IntroductionFault {
    /// Not one commit names signers.
    #[error("none holds .mcp/allowed_signers")]
    NoSigners,
    /// The first commit with signers is not signed.
    #[error("{} holds .mcp/allowed_signers and is not signed", .0.short())]
    Unsigned(CommitId),
    /// Its signature does not count.
    #[error("the signature of {} does not count: {fault}", commit.short())]
    BadSignature {
        /// The commit.
        commit: CommitId,
        /// Why.
        fault: SignatureError,
    },
    /// It is signed by somebody else.
    #[error("{} is signed by the key {fingerprint}, which is none of the owners pinned on this agent", commit.short())]
    NotOwner {
        /// The commit.
        commit: CommitId,
        /// The key.
        fingerprint: String,
    },
    /// The pinned introduction is not in the history.
    #[error("the pinned introduction {} is not in it", .0.short())]
    NotInHistory(CommitId),
    /// The introduction's own signers name no owner.
    #[error("{} names no owner in .mcp/allowed_signers", .0.short())]
    NoOwner(CommitId),
}

/// How the head and the high-water mark disagree.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HighWaterTrouble {
    /// There is a head, and no mark.
    #[error("the high-water mark is missing; the head is {}", head.short())]
    MarkMissing {
        /// The head.
        head: CommitId,
    },
    /// The mark cannot be read.
    #[error("the high-water mark cannot be read")]
    MarkGarbled,
    /// There is a mark that the repository does not hold, or that does not descend from the head.
    #[error("the high-water mark is {}, and the head is {}", mark.short(), shown(*head))]
    Diverged {
        /// The mark.
        mark: CommitId,
        /// The head.
        head: Option<CommitId>,
    },
    /// What was accepted, as mark or registry tell, the repository lacks: it was set back or emptied.
    #[error("{} was accepted here, and the repository, at {}, lacks it", known.short(), shown(*head))]
    SetBack {
        /// What is missing.
        known: CommitId,
        /// The head.
        head: Option<CommitId>,
    },
    /// What the repository holds does not verify.
    #[error("the head {} does not verify: {reason}", head.short())]
    Unverified {
        /// The head or the mark.
        head: CommitId,
        /// Why.
        reason: String,
    },
    /// A promotion failed in the middle.
    #[error("accepting {} was cut short; a restart of the agent finishes it", commit.short())]
    Interrupted {
        /// The revision.
        commit: CommitId,
    },
}

impl HighWaterTrouble {
    /// The commit whose return ends the trouble: a push that leads to it, or past it, is taken.
    #[must_use]
    pub const fn awaits(&self) -> Option<CommitId> {
        match self {
            Self::SetBack { known, .. } => Some(*known),
            _ => None,
        }
    }

    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Interrupted { .. } => {
                "see to disk and permissions, then restart the agent".to_owned()
            }
            Self::SetBack { known, .. } => format!(
                "push a history that holds {} with `mcp sync`; if nobody has it any more: `mcp-agent trust confirm`",
                known.short()
            ),
            Self::Unverified { .. } => {
                "the repository is damaged: restore a backup, or move repo.git away, restart \
                 the agent and push everything anew with `mcp sync`"
                    .to_owned()
            }
            _ => "look at `mcp-agent trust show` on the node, then `mcp-agent trust confirm`"
                .to_owned(),
        }
    }
}

impl ReceiveError {
    /// What the operator can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Stale { .. } => "somebody pushed first: run `mcp sync` again".to_owned(),
            Self::Older { .. } => {
                "the head only moves forward: to run an older revision, use `mcp rollback` or `mcp deploy --rev`".to_owned()
            }
            Self::NotFastForward { head, .. } => {
                format!("fetch {} and merge it, then sync again", head.short())
            }
            Self::Unrelated { .. } => {
                "this node follows another repository: check the directory and the node".to_owned()
            }
            Self::Unsigned { .. } => {
                "sign it with `git commit --amend -S` (gpg.format=ssh), or let `mcp sync` commit".to_owned()
            }
            Self::BadSignature { fault, .. } => match fault {
                SignatureError::OtherKind { .. } | SignatureError::Algorithm { .. } => {
                    "set gpg.format=ssh and user.signingkey to an Ed25519 key, then sign again".to_owned()
                }
                SignatureError::NotTouched => "sign again and touch the security key".to_owned(),
                SignatureError::Namespace { .. } => {
                    "sign with git itself (gpg.format=ssh) or `mcp sync`".to_owned()
                }
                _ => "the commit was changed after it was signed: sign it again".to_owned(),
            },
            Self::UnknownSigner { .. } => {
                "an owner adds the key with `mcp trust add`, in a commit before this one".to_owned()
            }
            Self::DeniedKey { .. } => {
                "sign with another key; the denylist is the agent's: `mcp-agent trust show`".to_owned()
            }
            Self::Unauthorised { fault, .. } => match fault {
                AuthorisationError::SignersDeleted | AuthorisationError::NoOwnerLeft => {
                    "keep .mcp/allowed_signers with at least one owner in it".to_owned()
                }
                AuthorisationError::LimitedMerge { .. } => {
                    "rebase instead of merging, or have a signer without limits merge".to_owned()
                }
                _ => "have an owner sign this change".to_owned(),
            },
            Self::BadSigners { .. } => {
                "mend the line and amend the commit; `mcp trust list` checks the file".to_owned()
            }
            Self::NoIntroduction { fault, .. } => match fault {
                IntroductionFault::NoSigners => {
                    "make the repository with `mcp init`, which adds and signs the file".to_owned()
                }
                IntroductionFault::Unsigned(_) | IntroductionFault::BadSignature { .. } => {
                    "have an owner sign a commit with `mcp init`".to_owned()
                }
                IntroductionFault::NotOwner { .. } => {
                    "pin the owner's key on the agent with `mcp-agent init --trust KEY`".to_owned()
                }
                IntroductionFault::NotInHistory(_) => {
                    "check the branch, or the agent's pinned introduction".to_owned()
                }
                IntroductionFault::NoOwner(_) => {
                    "add a key with namespaces=\"git,mcp-owner\"".to_owned()
                }
            },
            Self::BeforeIntroduction { .. } => {
                "rebase onto the trusted history; branches from before it cannot be merged".to_owned()
            }
            Self::BadHeader { .. } => "make the commit anew with git or `mcp sync`".to_owned(),
            Self::HostileTree { .. } => {
                "remove or rename it: revisions hold regular files and directories with plain names only".to_owned()
            }
            Self::MissingObject { .. } => {
                "the sender's repository may be shallow or damaged: `git fsck` there tells".to_owned()
            }
            Self::Object { .. } | Self::Corrupt { .. } | Self::Tag => {
                "send it again; if it stays, `git fsck` the repository that it comes from".to_owned()
            }
            Self::TooLarge { .. } => {
                "keep large files out of the repository; `mcp push` carries data".to_owned()
            }
            Self::TimedOut { .. } => "try again when the node has less to do".to_owned(),
            Self::BadDefinitions { .. } => {
                "mend them; `mcp service check` finds the same errors before a commit".to_owned()
            }
            Self::Halted(trouble) => trouble.hint(),
            Self::Io { .. } => "check disk and permissions of the agent's data directory".to_owned(),
        }
    }

    /// The refusal's name, for events and audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stale { .. } => "stale",
            Self::Older { .. } => "older",
            Self::NotFastForward { .. } => "not-fast-forward",
            Self::Unrelated { .. } => "unrelated",
            Self::Unsigned { .. } => "unsigned",
            Self::BadSignature { .. } => "bad-signature",
            Self::UnknownSigner { .. } => "unknown-signer",
            Self::DeniedKey { .. } => "denied-key",
            Self::Unauthorised { .. } => "unauthorised",
            Self::BadSigners { .. } => "bad-signers",
            Self::NoIntroduction { .. } => "no-introduction",
            Self::BeforeIntroduction { .. } => "before-introduction",
            Self::BadHeader { fault, .. } => fault.name(),
            Self::HostileTree { rule, .. } => rule,
            Self::MissingObject { .. } => "missing-object",
            Self::Object { fault, .. } => fault.name(),
            Self::TooLarge { what, .. } => what.name(),
            Self::TimedOut { .. } => "timed-out",
            Self::Corrupt { fault } => fault.name(),
            Self::Tag => "tag",
            Self::BadDefinitions { .. } => "bad-definitions",
            Self::Halted(_) => "halted",
            Self::Io { .. } => "io",
        }
    }

    pub(super) fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// What a failure to read an object means for the commit that reaches it.
    pub(super) fn object(commit: CommitId, what: &str, fault: ObjectError) -> Self {
        match fault {
            ObjectError::Missing { id } => Self::MissingObject {
                commit,
                what: what.to_owned(),
                id,
            },
            fault => Self::Object { commit, fault },
        }
    }
}

pub(super) fn shown(commit: Option<CommitId>) -> String {
    commit.map_or_else(|| "empty".to_owned(), |commit| commit.short())
}
