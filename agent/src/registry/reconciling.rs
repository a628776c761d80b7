//! How the agent's own reconciling fares: services that wait after a failure, components that it has
//! repaired, and those that somebody else keeps changing back.
//!
//! Pauses stand as lengths beside the time of the last attempt, so that a clock that was set can be
//! seen through by whoever reads them.

use jiff::Timestamp;
use mcp_spec::duration::Span;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ServiceName};
use rusqlite::{Connection, Row};

use super::column::{At, Count, Json, at, count, cut, json, key, parsed};
use super::events::append;
use super::{MAX_ROWS, NewEvent, Registry, RegistryError, WriteTx};

/// Longest cause; more is cut off.
const CAUSE_BYTES: usize = 1024;

/// How the cause begins where a plan was blocked, so that nothing was tried.
pub const BLOCKED: &str = "blocked: ";

/// A service whose automatic deployments did not end well, or did again only lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PauseRow {
    /// The service.
    pub service: ServiceName,
    /// What the head wanted of it then: when it wants something else, the pause is over.
    pub wanted: Digest,
    /// Failures in a row.
    pub failures: u32,
    /// How long the agent waits after the last attempt; 0 where that went well.
    pub pause_ms: u64,
    /// When the last attempt ended.
    pub at: Timestamp,
    /// What went wrong.
    pub cause: String,
}

impl PauseRow {
    /// Whether the service waits because its plan was blocked.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.pause_ms > 0 && self.cause.starts_with(BLOCKED)
    }

    /// When the agent tries again, at the earliest; to the second, since it is for people.
    #[must_use]
    pub fn next_try(&self) -> Option<Timestamp> {
        let pause = Span::from_millis(self.pause_ms).as_duration();
        Timestamp::from_second(self.at.checked_add(pause).ok()?.as_second() + 1).ok()
    }
}

/// A component that the agent has repaired by itself lately.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairsRow {
    /// The component.
    pub key: ComponentKey,
    /// The spec that the head wanted of it then: when it wants another, all this is over.
    pub wanted: Digest,
    /// When it was repaired, oldest first.
    pub times: Vec<Timestamp>,
    /// Whether somebody else keeps changing it back.
    pub contested: bool,
    /// How long the agent waits after the last repair.
    pub pause_ms: u64,
    /// When the last repair ended.
    pub at: Timestamp,
    /// What was repaired.
    pub cause: String,
}

/// What is to be written down of the agent's own reconciling.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// Services that wait, as they are now.
    pub pauses: Vec<PauseRow>,
    /// Services that wait no more.
    pub no_pauses: Vec<ServiceName>,
    /// Repaired components, as they are now.
    pub repairs: Vec<RepairsRow>,
    /// Components whose repairs are forgotten.
    pub no_repairs: Vec<ComponentKey>,
    /// Events to append.
    pub events: Vec<NewEvent>,
}

impl Reconciled {
    /// Whether there is nothing to write down.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what came later: of each service and component the last word counts.
    pub fn extend(&mut self, later: Self) {
        for row in &later.pauses {
            self.no_pauses.retain(|service| *service != row.service);
        }
        for service in later
            .no_pauses
            .iter()
            .chain(later.pauses.iter().map(|row| &row.service))
        {
            self.pauses.retain(|row| row.service != *service);
        }
        for row in &later.repairs {
            self.no_repairs.retain(|key| *key != row.key);
        }
        for key in later
            .no_repairs
            .iter()
            .chain(later.repairs.iter().map(|row| &row.key))
        {
            self.repairs.retain(|row| row.key != *key);
        }
        self.pauses.extend(later.pauses);
        self.no_pauses.extend(later.no_pauses);
        self.repairs.extend(later.repairs);
        self.no_repairs.extend(later.no_repairs);
        self.events.extend(later.events);
    }
}

impl Registry {
    /// Writes down how reconciling fares, with its events, in one transaction.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn record_reconciled(&self, reconciled: Reconciled) -> Result<(), RegistryError> {
        self.write(move |tx| {
            for service in &reconciled.no_pauses {
                forget_pause(tx, service)?;
            }
            for row in &reconciled.pauses {
                tx.prepare_cached(
                    "INSERT OR REPLACE INTO pauses (service, wanted, failures, pause_ms, at, cause)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                )?
                .execute((
                    row.service.as_str(),
                    row.wanted.to_string(),
                    row.failures,
                    Count(row.pause_ms),
                    At(row.at),
                    cut(&row.cause, CAUSE_BYTES),
                ))?;
            }
            for key in &reconciled.no_repairs {
                forget_repairs(tx, key)?;
            }
            for row in &reconciled.repairs {
                tx.prepare_cached(
                    "INSERT OR REPLACE INTO repairs (service, component, wanted, times, contested,
                        pause_ms, at, cause)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )?
                .execute((
                    row.key.service.as_str(),
                    row.key.component.as_str(),
                    row.wanted.to_string(),
                    Json(&row.times),
                    row.contested,
                    Count(row.pause_ms),
                    At(row.at),
                    cut(&row.cause, CAUSE_BYTES),
                ))?;
            }
            append(tx, &reconciled.events)?;
            Ok(())
        })
        .await
    }

    /// The services that wait, and the components that were repaired, in one snapshot.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn reconciling(&self) -> Result<(Vec<PauseRow>, Vec<RepairsRow>), RegistryError> {
        self.read(|connection, _| {
            let mut statement = connection.prepare_cached("SELECT * FROM pauses LIMIT ?1")?;
            let pauses = statement.query_map([MAX_ROWS], |row| {
                Ok(PauseRow {
                    service: parsed(row, "service")?,
                    wanted: parsed(row, "wanted")?,
                    failures: row.get("failures")?,
                    pause_ms: count(row, "pause_ms")?,
                    at: at(row, "at")?,
                    cause: row.get("cause")?,
                })
            })?;
            Ok((
                pauses.collect::<Result<_, _>>()?,
                select(connection, "", [MAX_ROWS])?,
            ))
        })
        .await
    }

    /// The components that somebody else keeps changing back.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn contested(&self) -> Result<Vec<RepairsRow>, RegistryError> {
        self.read(|connection, _| select(connection, "WHERE contested", [MAX_ROWS]))
            .await
    }
}

fn select(
    connection: &Connection,
    condition: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<RepairsRow>, RegistryError> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT * FROM repairs {condition} LIMIT ?1"))?;
    let rows = statement.query_map(params, repairs_row)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn repairs_row(row: &Row<'_>) -> rusqlite::Result<RepairsRow> {
    Ok(RepairsRow {
        key: key(row)?,
        wanted: parsed(row, "wanted")?,
        times: json(row, "times")?,
        contested: row.get("contested")?,
        pause_ms: count(row, "pause_ms")?,
        at: at(row, "at")?,
        cause: row.get("cause")?,
    })
}

fn forget_pause(tx: &WriteTx<'_>, service: &ServiceName) -> Result<(), RegistryError> {
    tx.prepare_cached("DELETE FROM pauses WHERE service = ?1")?
        .execute([service.as_str()])?;
    Ok(())
}

fn forget_repairs(tx: &WriteTx<'_>, key: &ComponentKey) -> Result<(), RegistryError> {
    tx.prepare_cached("DELETE FROM repairs WHERE service = ?1 AND component = ?2")?
        .execute((key.service.as_str(), key.component.as_str()))?;
    Ok(())
}

/// An operator's deployment of these components has ended well: the agent begins anew with them.
pub(super) fn begin_anew(
    tx: &WriteTx<'_>,
    service: &ServiceName,
    components: &[ComponentKey],
    now: Timestamp,
) -> Result<(), RegistryError> {
    forget_pause(tx, service)?;
    for key in components {
        let contested = tx
            .prepare_cached(
                "SELECT 1 FROM repairs WHERE service = ?1 AND component = ?2 AND contested",
            )?
            .exists((key.service.as_str(), key.component.as_str()))?;
        forget_repairs(tx, key)?;
        if contested {
            append(tx, &[contested_over(key, now, "operator")])?;
        }
    }
    Ok(())
}

/// The event that ends a contest.
#[must_use]
pub fn contested_over(key: &ComponentKey, at: Timestamp, reason: &str) -> NewEvent {
    let said = match reason {
        "operator" => "is contested no more: an operator took it in hand",
        "new-revision" => "is contested no more: another spec is wanted",
        "not-automatic" => "is contested no more: the agent does not reconcile it any longer",
        _ => "is contested no more: it has been left alone",
    };
    NewEvent {
        at,
        service: Some(key.service.clone()),
        component: Some(key.component.clone()),
        kind: "contested-over".to_owned(),
        reason: reason.to_owned(),
        message: format!("{key} {said}"),
        revision: None,
        data: serde_json::json!({}),
    }
}
