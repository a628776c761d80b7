//! Why nothing comes from the inbox: one name each, with the mend.

use std::io;
use std::path::PathBuf;

use mcp_spec::duration::Span;
use thiserror::Error;

use super::super::ReceiveError;

/// Why nothing was taken from the inbox.
#[derive(Debug, Error)]
pub enum InboxError {
    /// Nothing is there.
    #[error("there is no git repository at {}", path.display())]
    Missing {
        /// Where.
        path: PathBuf,
        /// The branch that is looked for.
        branch: String,
    },
    /// A folder, and no bare repository.
    #[error("{} is no bare git repository: it has no folder {lacks}", path.display())]
    NoRepository {
        /// Where.
        path: PathBuf,
        /// What it would have.
        lacks: &'static str,
    },
    /// A repository in a form that is not read.
    #[error("{} is in a form that is not read: {what}", path.display())]
    Format {
        /// Where.
        path: PathBuf,
        /// What it has.
        what: &'static str,
    },
    /// Something in it that no git writes there.
    #[error("{} cannot be read: it is {what}", path.display())]
    Odd {
        /// The file or folder.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It borrows its objects.
    #[error("{} borrows objects from another repository", path.display())]
    Borrows {
        /// Where.
        path: PathBuf,
    },
    /// It has branches, and not this one.
    #[error("{} has no branch `{branch}`, but others", path.display())]
    NoBranch {
        /// Where.
        path: PathBuf,
        /// The branch.
        branch: String,
    },
    /// The branch stands at nothing that could be a commit.
    #[error("the branch `{branch}` of {} is {what}", path.display())]
    BadRef {
        /// Where.
        path: PathBuf,
        /// The branch.
        branch: String,
        /// What stands there.
        what: &'static str,
    },
    /// More than is copied.
    #[error("{} holds more than {limit} {what}", path.display())]
    TooLarge {
        /// Where.
        path: PathBuf,
        /// What of it is too many.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The system does not let it be read.
    #[error("could not read {}", path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The agent's own disk does not take the copy.
    #[error("could not copy the objects of {}", path.display())]
    NotCopied {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("{} could not be read within {limit}", path.display())]
    Stalled {
        /// Where.
        path: PathBuf,
        /// How long it was waited for.
        limit: Span,
    },
    /// So many earlier looks hang that no other is begun.
    #[error("{} hangs: {looks} earlier looks have not ended", path.display())]
    Hangs {
        /// Where.
        path: PathBuf,
        /// How many.
        looks: usize,
    },
    /// The look at it broke off.
    #[error("the look at {} broke off", path.display())]
    BrokeOff {
        /// Where.
        path: PathBuf,
    },
    /// What it holds is refused.
    #[error(transparent)]
    Refused(#[from] ReceiveError),
}

impl InboxError {
    /// What can be done about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Missing { path, branch } => format!(
                "make it, as the user who pushes there: git init --bare --initial-branch={branch} {}",
                path.display()
            ),
            Self::NoRepository { .. } => {
                "name a repository that `git init --bare` made under `[inbox] path`".to_owned()
            }
            Self::Format { .. } => {
                "make it anew with git init --bare --ref-format=files --object-format=sha1"
                    .to_owned()
            }
            Self::Odd { .. } => {
                "no git puts that there: look who did, and make the repository anew".to_owned()
            }
            Self::Borrows { .. } => {
                "repack it with `git repack -a -d`, then remove objects/info/alternates".to_owned()
            }
            Self::NoBranch { branch, .. } => {
                format!("push to it with git push INBOX HEAD:{branch}, or set `[inbox] branch`")
            }
            Self::BadRef { .. } => "push a commit to that branch".to_owned(),
            Self::TooLarge { .. } => {
                "remove what nobody needs and run `git gc --prune=now` in it, or make it anew"
                    .to_owned()
            }
            Self::Unreadable { .. } => {
                "let the agent's user read it: make it with git init --bare --shared=0644"
                    .to_owned()
            }
            Self::NotCopied { .. } => "see to the disk of the data directory".to_owned(),
            Self::Stalled { .. } | Self::Hangs { .. } => {
                "look at the file system that it lies on, or raise `[inbox] timeout`".to_owned()
            }
            Self::BrokeOff { .. } => "look at the agent's log, and report it".to_owned(),
            Self::Refused(refused) => refused.hint(),
        }
    }

    /// The failure's name, for events and audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Missing { .. } | Self::NoRepository { .. } => "no-repository",
            Self::Format { .. } => "repository-format",
            Self::Odd { .. } => "odd-repository",
            Self::Borrows { .. } => "borrowed-objects",
            Self::NoBranch { .. } => "no-branch",
            Self::BadRef { .. } => "bad-ref",
            Self::TooLarge { .. } => "inbox-too-large",
            Self::Unreadable { .. } => "unreadable",
            Self::NotCopied { .. } => "not-copied",
            Self::Stalled { .. } => "stalled",
            Self::Hangs { .. } => "hangs",
            Self::BrokeOff { .. } => "broke-off",
            Self::Refused(refused) => refused.name(),
        }
    }
}
