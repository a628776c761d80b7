//! What was last seen of each deployed component.

use jiff::Timestamp;
use mcp_spec::component::Restart;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::ObservedState;
use rusqlite::{Connection, OptionalExtension, Row};
use serde::{Deserialize, Serialize};

use super::column::{At, Json, at, at_option, json, parsed, parsed_option};
use super::events::append;
use super::words::words;
use super::{DeployedRow, MAX_ROWS, NewEvent, Registry, RegistryError, WriteTx};

words! {
    /// What the health check says.
    HealthWord {
        /// The last probe succeeded.
        Healthy = "healthy",
        /// Too many probes in a row failed.
        Unhealthy = "unhealthy",
        /// No verdict yet.
        Starting = "starting",
    }
}

/// One difference between what was deployed and what is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriftRow {
    /// `state`, or the field's name.
    pub field: String,
    /// What was deployed.
    pub baseline: String,
    /// What is.
    pub live: String,
    /// When it was first seen.
    pub since: Timestamp,
}

/// The changes of a component within the window that flapping is judged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlappingRow {
    /// When it changed, oldest first.
    pub changes: Vec<Timestamp>,
    /// Whether it flaps: that was told, and its end was not.
    pub flaps: bool,
}

/// What was last seen of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedRow {
    /// The component.
    pub key: ComponentKey,
    /// Its state.
    pub state: ObservedState,
    /// What its health check says; `None` without a check.
    pub health: Option<HealthWord>,
    /// Exit code of the last end.
    pub exit_code: Option<i32>,
    /// Whether it was killed for its memory.
    pub oom: bool,
    /// When it was started last.
    pub started_at: Option<Timestamp>,
    /// When it ended; `None` while it runs.
    pub finished_at: Option<Timestamp>,
    /// Starts by the restart policy since the last deployment.
    pub restarts: u32,
    /// When the restart policy starts it next.
    pub next_restart_at: Option<Timestamp>,
    /// How often in a row the restart policy has backed off.
    pub backoff_attempt: u32,
    /// How it differs from what was deployed.
    pub drift: Vec<DriftRow>,
    /// Its changes; `None` leaves in the registry what it has.
    pub flapping: Option<FlappingRow>,
    /// When it was seen so.
    pub observed_at: Timestamp,
}

impl ObservedRow {
    /// Whether the component had ended for good, as its restart policy says, when it was seen last. What
    /// became of its container since takes nothing from that.
    #[must_use]
    pub fn has_ended(&self, row: &DeployedRow) -> bool {
        if self.finished_at.is_none() {
            return false;
        }
        match row.spec.restart {
            Restart::No => true,
            Restart::OnFailure { max } => {
                self.exit_code == Some(0) || max.is_some_and(|max| self.backoff_attempt >= max)
            }
            Restart::Always | Restart::UnlessStopped => false,
        }
    }
}

impl Registry {
    /// Records observations and the events that they give, in one transaction. An observation of a
    /// component that is not deployed is dropped: it came too late.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn record_observed(
        &self,
        rows: Vec<ObservedRow>,
        events: Vec<NewEvent>,
    ) -> Result<(), RegistryError> {
        self.write(move |tx| {
            store(tx, &rows)?;
            append(tx, &events)?;
            Ok(())
        })
        .await
    }

    /// What was last seen of every component, in the order of their keys.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn observed_all(&self) -> Result<Vec<ObservedRow>, RegistryError> {
        Ok(self.components().await?.observed.clone())
    }

    /// What was last seen of one component.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn observed(&self, key: ComponentKey) -> Result<Option<ObservedRow>, RegistryError> {
        self.read(move |connection, _| {
            Ok(connection
                .prepare_cached(&format!(
                    "SELECT {COLUMNS} FROM observed WHERE service = ?1 AND component = ?2"
                ))?
                .query_row((key.service.as_str(), key.component.as_str()), observed_row)
                .optional()?)
        })
        .await
    }
}

/// By position, since reading columns by name costs more than the rest of a row.
const COLUMNS: &str = "service, component, state, health, exit_code, oom, started_at, finished_at,
    restarts, next_restart_at, backoff_attempt, drift, observed_at, flapping";

pub(super) fn all(connection: &Connection) -> Result<Vec<ObservedRow>, RegistryError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM observed ORDER BY service, component LIMIT {MAX_ROWS}"
    ))?;
    let rows = statement.query_map([], observed_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Records observations within a transaction.
pub(super) fn store(tx: &WriteTx<'_>, rows: &[ObservedRow]) -> Result<(), RegistryError> {
    let mut upsert = tx.prepare_cached(
        "INSERT INTO observed (service, component, state, health, exit_code, oom, started_at,
            finished_at, restarts, next_restart_at, backoff_attempt, drift, observed_at, flapping)
         SELECT service, component, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14
         FROM deployed WHERE service = ?1 AND component = ?2
         ON CONFLICT (service, component) DO UPDATE SET
            state = excluded.state, health = excluded.health, exit_code = excluded.exit_code,
            oom = excluded.oom, started_at = excluded.started_at,
            finished_at = excluded.finished_at, restarts = excluded.restarts,
            next_restart_at = excluded.next_restart_at,
            backoff_attempt = excluded.backoff_attempt, drift = excluded.drift,
            observed_at = excluded.observed_at,
            flapping = coalesce(excluded.flapping, flapping)",
    )?;
    for row in rows {
        tx.change_components();
        upsert.execute((
            row.key.service.as_str(),
            row.key.component.as_str(),
            row.state.as_str(),
            row.health.map(HealthWord::as_str),
            row.exit_code,
            row.oom,
            row.started_at.map(At),
            row.finished_at.map(At),
            row.restarts,
            row.next_restart_at.map(At),
            row.backoff_attempt,
            Json(&row.drift),
            At(row.observed_at),
            row.flapping.as_ref().map(Json),
        ))?;
    }
    Ok(())
}

fn observed_row(row: &Row<'_>) -> rusqlite::Result<ObservedRow> {
    Ok(ObservedRow {
        key: ComponentKey::new(parsed(row, 0)?, parsed(row, 1)?),
        state: parsed(row, 2)?,
        health: parsed_option(row, 3)?,
        exit_code: row.get(4)?,
        oom: row.get(5)?,
        started_at: at_option(row, 6)?,
        finished_at: at_option(row, 7)?,
        restarts: row.get(8)?,
        next_restart_at: at_option(row, 9)?,
        backoff_attempt: row.get(10)?,
        drift: json(row, 11)?,
        observed_at: at(row, 12)?,
        flapping: Some(
            row.get::<_, Option<Json<_>>>(13)?
                .map_or_else(FlappingRow::default, |json| json.0),
        ),
    })
}
