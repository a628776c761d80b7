//! Conditions that hold, and alerts on their way out.
//!
//! Bodies are JSON that this module does not look into: what an alert is, is [`crate::alert`]'s matter.

use jiff::Timestamp;
use rusqlite::OptionalExtension;

use super::column::{At, at, at_option, bounded, count};
use super::{MAX_ROWS, Registry, RegistryError};

/// Alerts that may wait; with more the oldest go, counted in the answer.
const OUTBOX: u32 = 1000;

/// Largest body of an alert.
const BODY_BYTES: usize = 256 * 1024;

/// Where judging the event log stands.
const CURSOR: &str = "alert cursor";

/// A condition as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConditionRow {
    /// The service; empty where it is the node's.
    pub service: String,
    /// The component; empty where it is the service's.
    pub component: String,
    /// Its word.
    pub condition: String,
    /// Whether it holds.
    pub holds: bool,
    /// Its last occurrence, as JSON.
    pub last: String,
    /// The cause that was last told.
    pub told: Option<String>,
    /// When it was last told.
    pub told_at: Option<Timestamp>,
}

/// What judging a part of the event log changes.
#[derive(Debug, Clone, Default)]
pub struct Judgement {
    /// The last event that was judged.
    pub cursor: u64,
    /// When this is.
    pub at: Option<Timestamp>,
    /// Conditions as they are now.
    pub conditions: Vec<ConditionRow>,
    /// Conditions to forget: service, component, condition.
    pub forgotten: Vec<(String, String, String)>,
    /// Alerts that go out: what each is about, and its body as JSON.
    pub alerts: Vec<(String, String)>,
}

/// An alert that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number.
    pub id: u64,
    /// The alert, as JSON.
    pub body: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Not to be tried before.
    pub next_at: Timestamp,
}

impl Registry {
    /// The last event that was judged, and all conditions; `None` where nothing was judged yet.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn conditions(&self) -> Result<Option<(u64, Vec<ConditionRow>)>, RegistryError> {
        self.read(|connection, _| {
            let cursor: Option<String> = connection
                .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
                .query_row([CURSOR], |row| row.get(0))
                .optional()?;
            let Some(cursor) = cursor else {
                return Ok(None);
            };
            let cursor = cursor.parse().map_err(|_| RegistryError::Stored {
                detail: format!("{CURSOR} {cursor}"),
            })?;
            let mut statement = connection.prepare_cached("SELECT * FROM conditions LIMIT ?1")?;
            let rows = statement.query_map([MAX_ROWS], |row| {
                Ok(ConditionRow {
                    service: row.get("service")?,
                    component: row.get("component")?,
                    condition: row.get("condition")?,
                    holds: row.get("holds")?,
                    last: row.get("last")?,
                    told: row.get("told")?,
                    told_at: at_option(row, "told_at")?,
                })
            })?;
            Ok(Some((cursor, rows.collect::<Result<_, _>>()?)))
        })
        .await
    }

    /// Whether the engine was last told to be away.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn engine_is_missed(&self) -> Result<bool, RegistryError> {
        self.read(|connection, _| {
            // What was judged stands with the conditions; only what came after is looked for.
            let last: Option<bool> = connection
                .prepare_cached(
                    "SELECT kind = 'engine-away' FROM events
                     WHERE seq > coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE name = ?1), 0)
                       AND kind IN ('engine-away', 'engine-back')
                     ORDER BY seq DESC LIMIT 1",
                )?
                .query_row([CURSOR], |row| row.get(0))
                .optional()?;
            if let Some(is_away) = last {
                return Ok(is_away);
            }
            Ok(connection
                .prepare_cached("SELECT 1 FROM conditions WHERE condition = 'engine' AND holds")?
                .exists([])?)
        })
        .await
    }

    /// Writes down what judging came to, with the alerts that follow, in one transaction. Returns how many
    /// old alerts had to go for want of room.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for an alert over 256 KiB.
    pub async fn record_judgement(&self, judgement: Judgement) -> Result<usize, RegistryError> {
        for (_, body) in &judgement.alerts {
            bounded("an alert", body.len(), BODY_BYTES)?;
        }
        self.write(move |tx| {
            tx.prepare_cached(
                "INSERT INTO meta (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )?
            .execute((CURSOR, judgement.cursor.to_string()))?;
            for row in &judgement.conditions {
                tx.prepare_cached(
                    "INSERT OR REPLACE INTO conditions
                       (service, component, condition, holds, last, told, told_at)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                )?
                .execute((
                    &row.service,
                    &row.component,
                    &row.condition,
                    row.holds,
                    &row.last,
                    &row.told,
                    row.told_at.map(At),
                ))?;
            }
            for (service, component, condition) in &judgement.forgotten {
                tx.prepare_cached(
                    "DELETE FROM conditions
                     WHERE service = ?1 AND component = ?2 AND condition = ?3",
                )?
                .execute((service, component, condition))?;
            }
            let at = At(judgement.at.unwrap_or(Timestamp::UNIX_EPOCH));
            for (subject, body) in &judgement.alerts {
                tx.prepare_cached(
                    "INSERT INTO outbox (subject, body, attempts, next_at) VALUES (?1, ?2, 0, ?3)",
                )?
                .execute((subject, body, &at))?;
            }
            Ok(tx
                .prepare_cached("DELETE FROM outbox WHERE id <= (SELECT max(id) FROM outbox) - ?1")?
                .execute([OUTBOX])?)
        })
        .await
    }

    /// The alert that is to be tried next: none overtakes an older one about the same.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn next_alert(&self) -> Result<Option<Outgoing>, RegistryError> {
        self.read(|connection, _| {
            Ok(connection
                .prepare_cached(
                    "SELECT * FROM outbox AS this WHERE NOT EXISTS (
                       SELECT 1 FROM outbox AS older
                       WHERE older.subject = this.subject AND older.id < this.id)
                     ORDER BY next_at, id LIMIT 1",
                )?
                .query_row([], |row| {
                    Ok(Outgoing {
                        id: count(row, "id")?,
                        body: row.get("body")?,
                        attempts: row.get("attempts")?,
                        next_at: at(row, "next_at")?,
                    })
                })
                .optional()?)
        })
        .await
    }

    /// Puts an alert off after a failed attempt.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn put_off_alert(&self, id: u64, next_at: Timestamp) -> Result<(), RegistryError> {
        self.write(move |tx| {
            tx.prepare_cached(
                "UPDATE outbox SET attempts = attempts + 1, next_at = ?2 WHERE id = ?1",
            )?
            .execute((super::column::Count(id), At(next_at)))?;
            Ok(())
        })
        .await
    }

    /// Takes an alert out: it was delivered, or given up.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn remove_alert(&self, id: u64) -> Result<(), RegistryError> {
        self.write(move |tx| {
            tx.prepare_cached("DELETE FROM outbox WHERE id = ?1")?
                .execute([super::column::Count(id)])?;
            Ok(())
        })
        .await
    }
}
