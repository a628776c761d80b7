//! The read connections: few, opened when first needed, each read one snapshot.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{RegistryError, open};

/// Reads at the same time. Reads take well under a millisecond each, and every connection keeps up
/// to 2 MiB of pages: two cores gain nothing from more.
const READERS: usize = 3;

#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            idle: Mutex::new(Vec::new()),
            permits: Arc::new(Semaphore::new(READERS)),
        }
    }

    /// Waits until a connection is free.
    pub(super) async fn permit(&self) -> Result<OwnedSemaphorePermit, RegistryError> {
        Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_| RegistryError::Closed)
    }

    /// Runs `work` in a read transaction; blocks. The caller holds a permit.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        // A connection that a panic took with it is replaced here.
        let connection = match idle {
            Some(connection) => connection,
            None => open::reading(&self.path)?,
        };
        let snapshot = Transaction::new_unchecked(&connection, TransactionBehavior::Deferred)?;
        let result = work(&snapshot);
        drop(snapshot);
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
        result
    }
}
