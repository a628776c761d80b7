//! The registry: what the agent knows, in one SQLite file that nobody else writes.
//!
//! It owns the schema, every statement, and durability; what the facts mean is left to `deploy`,
//! `watch` and `revisions`. No other module speaks SQL.
//!
//! - **Writing.** One thread writes. Calls reach it over a bounded queue, and all that wait share
//!   one transaction, each in a savepoint of its own: one that fails spoils no other. A call returns
//!   after the commit is on the disk (`synchronous = FULL`). A caller that goes away changes nothing:
//!   what was queued is written.
//! - **Reading.** A few read-only connections, each read one consistent snapshot. Reads never wait
//!   for writes.
//! - **Crashes.** What was acknowledged is there after a crash, and each call is there whole or not at all.
//! - **Faults.** A full disk fails the writes that met it. After a failed sync or damage no write is
//!   taken any more and [`Registry::failed`] tells: the agent ends and opens anew.
//! - **Time** is an argument, stored in microseconds.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;
use tokio::sync::watch;

mod adoptions;
mod alerts;
mod audit;
mod column;
mod commit;
mod components;
mod deployments;
mod error;
mod events;
mod history;
mod inspect;
mod journal;
mod lost;
mod meta;
mod observations;
mod open;
mod quarantine;
mod readers;
mod reconciling;
mod records;
mod requests;
mod revisions;
mod specs;
mod words;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

pub use adoptions::{AdoptedComponent, Adoption};
pub use alerts::{ConditionRow, Judgement, Outgoing};
pub use audit::AuditRow;
pub use commit::{Advanced, CommitDeployment, HistoryEntry, SetDeployed};
pub use components::{Components, DeployedRow, HoldRow, Remade, StopOverride};
pub use deployments::{
    Admission, DeploymentId, DeploymentIdError, DeploymentRow, DeploymentState, Finish, Outcome,
    Trigger,
};
pub use error::{OpenError, RegistryError};
pub use events::{EventQuery, EventRow, NewEvent, PruneBounds};
pub use history::HistoryRow;
pub use inspect::{RegistryFacts, copy, inspect};
pub use journal::{StepPhase, StepRow};
pub use lost::LostRow;
pub use observations::{DriftRow, FlappingRow, HealthWord, ObservedRow};
pub use open::SCHEMA;
pub use quarantine::Quarantined;
pub use reconciling::{BLOCKED, PauseRow, Reconciled, RepairsRow, contested_over};
pub use records::ComponentRecord;
pub use requests::RequestAdmission;
pub use revisions::{RevisionFilter, RevisionRow, RevisionSource, SpecChange};

use components::ComponentsCache;
use readers::Readers;
use specs::SpecCache;
use writer::{WriteTx, Writer};

/// Whether nothing was ever written at `path`: no file, or an empty one. A write-ahead log alone is worth
/// nothing without its file.
#[must_use]
pub fn is_blank(path: &Path) -> bool {
    std::fs::metadata(path).map_or_else(
        |error| error.kind() == std::io::ErrorKind::NotFound,
        |found| found.len() == 0,
    )
}

/// Most rows that one call returns, whatever limit it asks for.
pub const MAX_ROWS: u32 = 10_000;

/// The agent's registry; clones share it.
#[derive(Debug, Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    writer: Writer,
    readers: Readers,
    specs: SpecCache,
    components: ComponentsCache,
}

/// What a lookup by the start of an id found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup<T> {
    /// Nothing starts like that.
    Missing,
    /// Exactly one does.
    One(T),
    /// More than one does; some of their ids.
    Ambiguous(Vec<String>),
}

impl<T> Lookup<T> {
    /// The one that was found.
    #[must_use]
    pub fn one(self) -> Option<T> {
        match self {
            Self::One(found) => Some(found),
            Self::Missing | Self::Ambiguous(_) => None,
        }
    }
}

impl Registry {
    /// Whether a commit is on the disk when it is acknowledged; `None` outside a simulation.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn syncs_commits(&self) -> Option<bool> {
        self.shared.writer.syncs_commits()
    }

    /// Opens the registry at `path`, makes it where there is none, and brings its schema up to date.
    ///
    /// Blocks on the disk; call it once, at the start.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; a newer schema, a foreign or a damaged file is refused and left as it is.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let connection = open::writing(path)?;
        let newest_event =
            events::newest(&connection).map_err(|error| OpenError::from_sqlite(path, &error))?;
        let writer = Writer::start(connection, newest_event).map_err(|source| OpenError::Io {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                path: path.to_owned(),
                writer,
                readers: Readers::new(path.to_owned()),
                specs: SpecCache::default(),
                components: ComponentsCache::default(),
            }),
        })
    }

    /// Closes the registry where no clone of it is left: all of it is in the one file then. Blocking.
    pub fn close(self) {
        if let Some(shared) = Arc::into_inner(self.shared) {
            drop(shared.readers);
            shared.writer.close();
        }
    }

    /// Moves what stands in the write-ahead log into the one file, and empties the log. Blocking, for at
    /// most as long as a statement waits for a lock.
    ///
    /// # Errors
    ///
    /// Where SQLite fails, or a reader holds the log for too long; then the log still has all of it.
    pub fn checkpoint(&self) -> Result<(), RegistryError> {
        let connection = open::reading(&self.shared.path)?;
        let is_busy: bool =
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if is_busy {
            return Err(RegistryError::Locked);
        }
        Ok(())
    }

    /// The registry's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Returns when the registry takes no writes any more, and says why: the agent has to end.
    pub async fn failed(&self) -> RegistryError {
        self.shared.writer.failed().await
    }

    /// The newest committed event's sequence number, which wakes its receivers after each commit.
    #[must_use]
    pub fn newest_event(&self) -> watch::Receiver<u64> {
        self.shared.writer.newest_event()
    }

    /// Runs `work` in the writer's next transaction and returns after its commit.
    async fn write<T, F>(&self, work: F) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTx<'_>) -> Result<T, RegistryError> + Send + 'static,
    {
        let written = self.shared.writer.write(work).await;
        written.map_err(|error| match self.shared.path.parent() {
            Some(folder) => error.in_folder(folder),
            None => error,
        })
    }

    /// Runs `work` on one consistent snapshot.
    async fn read<T, F>(&self, work: F) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection, &SpecCache) -> Result<T, RegistryError> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        #[cfg(any(test, feature = "testing"))]
        if let Some(pace) = crate::testing::pace() {
            let name = crate::testing::Work::Read(std::any::type_name::<F>());
            pace.before(name).await?;
            let result = shared
                .readers
                .read(|connection| work(connection, &shared.specs));
            pace.after(name).await;
            return result;
        }
        let permit = self.shared.readers.permit().await?;
        tokio::task::spawn_blocking(move || {
            let _permit = permit;
            shared
                .readers
                .read(|connection| work(connection, &shared.specs))
        })
        .await
        .map_err(|_| RegistryError::Closed)?
    }
}
