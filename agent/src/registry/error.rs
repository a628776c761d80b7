//! Why the registry could not be opened, read or written.

use std::path::{Path, PathBuf};

use mcp_spec::name::ComponentKey;
use mcp_spec::observed::ContainerId;
use mcp_spec::revision::CommitId;
use rusqlite::ErrorCode;
use thiserror::Error;

use super::DeploymentId;

/// Why a registry cannot be opened. None of these changes what is on the disk.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file or its directory cannot be reached.
    #[error("cannot open the registry {}", path.display())]
    Io {
        /// The registry's file.
        path: PathBuf,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// A newer agent wrote it.
    #[error(
        "the registry {} has schema {found}, and this agent knows schemas up to {known}: install the newer agent again",
        path.display()
    )]
    NewerSchema {
        /// The registry's file.
        path: PathBuf,
        /// The schema found.
        found: i64,
        /// The newest schema that this agent knows.
        known: i64,
    },
    /// A SQLite database of some other program.
    #[error("{} is a database, and no MCP registry", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Damaged, truncated, or no database at all.
    #[error("the registry {} is damaged: {detail}", path.display())]
    Corrupt {
        /// The registry's file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// No room to create it or bring it up to date.
    #[error("no space left to open the registry {}", path.display())]
    Full {
        /// The registry's file.
        path: PathBuf,
    },
    /// Another process holds its write lock.
    #[error("the registry {} is locked by another process", path.display())]
    Locked {
        /// The registry's file.
        path: PathBuf,
    },
    /// The SQLite that was built in has a bug that can lose committed data.
    #[error("SQLite {found} is older than 3.51.3, whose write-ahead log can lose commits")]
    OldSqlite {
        /// Its version.
        found: &'static str,
    },
    /// Anything else that SQLite says.
    #[error("cannot open the registry {}: {detail}", path.display())]
    Sqlite {
        /// The registry's file.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
}

impl OpenError {
    /// Sorts an error of SQLite that came up while `path` was opened.
    pub(super) fn from_sqlite(path: &std::path::Path, error: &rusqlite::Error) -> Self {
        let path = path.to_owned();
        match RegistryError::from_sqlite(error) {
            RegistryError::Full { .. } => Self::Full { path },
            RegistryError::Corrupt { detail } => Self::Corrupt { path, detail },
            RegistryError::Locked => Self::Locked { path },
            _ => Self::Sqlite {
                path,
                detail: error.to_string(),
            },
        }
    }
}

/// Why a read or a write of the registry did not happen. After an error nothing of that call was written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RegistryError {
    /// The disk is full; a later write may succeed.
    #[error("no space left for the registry{}", within(folder))]
    Full {
        /// The folder that it lies in.
        folder: PathBuf,
    },
    /// The file is damaged. No write is taken any more.
    #[error("the registry is damaged: {detail}")]
    Corrupt {
        /// What SQLite says.
        detail: String,
    },
    /// The file cannot be read or written or synced. No write is taken any more.
    #[error("the registry cannot be written or read: {detail}")]
    Io {
        /// What SQLite says.
        detail: String,
    },
    /// Another process held the write lock for longer than the agent waits.
    #[error("the registry is locked by another process")]
    Locked,
    /// An earlier write failed in a way after which nothing on the disk may be assumed.
    #[error("the registry takes no writes since an earlier one failed; the agent has to restart")]
    WritesStopped,
    /// The agent is ending.
    #[error("the registry is closed")]
    Closed,
    /// A stored value that this agent cannot read.
    #[error("the registry holds a value that cannot be read: {detail}")]
    Stored {
        /// Which, and why.
        detail: String,
    },
    /// More than the registry takes in one value or one call.
    #[error("{what} is larger than {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The bound, in bytes or entries.
        limit: usize,
    },
    /// A deployment that was never admitted, or that is pruned.
    #[error("there is no deployment {id}")]
    NoSuchDeployment {
        /// Its id.
        id: DeploymentId,
    },
    /// A component that is not deployed.
    #[error("{key} is not deployed")]
    NotDeployed {
        /// The component.
        key: ComponentKey,
    },
    /// A component that has a container already.
    #[error("{key} is deployed already")]
    Deployed {
        /// The component.
        key: ComponentKey,
    },
    /// A container that a component has already.
    #[error("container {} is {key} already", container.short())]
    Registered {
        /// The container.
        container: ContainerId,
        /// Its component.
        key: ComponentKey,
    },
    /// A revision that was never accepted.
    #[error("revision {} was never accepted here", commit.short())]
    NoSuchRevision {
        /// Its id.
        commit: CommitId,
    },
    /// A head that was accepted before the present one.
    #[error("the head {} cannot go back to {}", head.short(), asked.short())]
    HeadWouldFall {
        /// The head.
        head: CommitId,
        /// The refused one.
        asked: CommitId,
    },
    /// A statement that SQLite refuses: a defect of the agent.
    #[error("the registry refuses a statement: {detail}")]
    Refused {
        /// What SQLite says.
        detail: String,
    },
}

impl RegistryError {
    /// Whether the disk's contents are in doubt, so that no write may follow.
    #[must_use]
    pub const fn stops_writes(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Io { .. })
    }

    /// Whether the registry can no longer be used, so that the agent has to end.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Closed | Self::WritesStopped) || self.stops_writes()
    }

    /// The same of a registry in this folder, where it matters.
    pub(super) fn in_folder(self, folder: &Path) -> Self {
        match self {
            Self::Full { .. } => Self::Full {
                folder: folder.to_owned(),
            },
            other => other,
        }
    }

    /// Sorts an error of SQLite.
    pub(super) fn from_sqlite(error: &rusqlite::Error) -> Self {
        let detail = error.to_string();
        match error {
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::InvalidColumnType(..) => return Self::Stored { detail },
            _ => {}
        }
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full {
                folder: PathBuf::new(),
            },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt { detail },
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::FileLockingProtocolFailed,
            ) => Self::Io { detail },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Locked,
            _ => Self::Refused { detail },
        }
    }
}

fn within(folder: &Path) -> String {
    if folder.as_os_str().is_empty() {
        String::new()
    } else {
        format!(" in {}", folder.display())
    }
}

impl From<rusqlite::Error> for RegistryError {
    fn from(error: rusqlite::Error) -> Self {
        Self::from_sqlite(&error)
    }
}
