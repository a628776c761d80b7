//! What an emptied engine took along, until it was brought back.
//!
//! A row counts as long as the container that it names is the registered one: whatever makes the
//! component anew, or removes it, settles it.

use mcp_spec::name::{ComponentKey, ServiceName};
use mcp_spec::observed::ContainerId;
use rusqlite::Row;

use super::column::key;
use super::events::append;
use super::{MAX_ROWS, NewEvent, ObservedRow, Registry, RegistryError, observations};

/// A component whose container was lost with the engine's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostRow {
    /// The component.
    pub key: ComponentKey,
    /// The container that it had.
    pub container: ContainerId,
}

impl Registry {
    /// Records what was seen of an emptied engine, what is lost with it, and the events that this gives,
    /// in one transaction: a crash finds all of it or none.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn record_lost(
        &self,
        lost: Vec<LostRow>,
        rows: Vec<ObservedRow>,
        events: Vec<NewEvent>,
    ) -> Result<(), RegistryError> {
        self.write(move |tx| {
            tx.prepare_cached(
                "DELETE FROM lost WHERE NOT EXISTS (SELECT 1 FROM deployed d WHERE
                    d.service = lost.service AND d.component = lost.component
                    AND d.container = lost.container)",
            )?
            .execute([])?;
            let mut add = tx.prepare_cached(
                "INSERT OR REPLACE INTO lost (service, component, container) VALUES (?1, ?2, ?3)",
            )?;
            for row in &lost {
                add.execute((
                    row.key.service.as_str(),
                    row.key.component.as_str(),
                    row.container.as_str(),
                ))?;
            }
            observations::store(tx, &rows)?;
            append(tx, &events)?;
            Ok(())
        })
        .await
    }

    /// What is lost and has not been made anew since, in the order of the keys.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn lost(&self) -> Result<Vec<LostRow>, RegistryError> {
        self.read(|connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT lost.* FROM lost JOIN deployed d USING (service, component)
                 WHERE d.container = lost.container ORDER BY service, component LIMIT ?1",
            )?;
            let rows = statement.query_map([MAX_ROWS], lost_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Forgets what a service has lost: nothing of it is to be brought back.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn forget_lost(&self, service: ServiceName) -> Result<(), RegistryError> {
        self.write(move |tx| {
            tx.prepare_cached("DELETE FROM lost WHERE service = ?1")?
                .execute([service.as_str()])?;
            Ok(())
        })
        .await
    }
}

fn lost_row(row: &Row<'_>) -> rusqlite::Result<LostRow> {
    Ok(LostRow {
        key: key(row)?,
        container: ContainerId::new(row.get::<_, String>("container")?),
    })
}
