//! The event log: numbered without gaps or repeats for a follower, pruned in chunks.

use jiff::Timestamp;
use mcp_spec::name::{ComponentName, ServiceName, Target};
use mcp_spec::revision::CommitId;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};

use super::column::{At, at, bounded, count, cut, json, parsed_option};
use super::{MAX_ROWS, Registry, RegistryError, WriteTx};

/// Longest message of an event; more is cut off. The wire's bound for free text.
const MESSAGE_BYTES: usize = 4096;

/// Largest data of an event; more is left out, and said so.
const DATA_BYTES: usize = 64 * 1024;

/// How many events later than its time tells an event may stand in the log.
const OUT_OF_ORDER: i64 = 1000;

/// Most targets of one query: the statement has two variables for each.
const MAX_TARGETS: usize = 100;

/// An event that is to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// When it happened.
    pub at: Timestamp,
    /// The service that it is about.
    pub service: Option<ServiceName>,
    /// The component that it is about.
    pub component: Option<ComponentName>,
    /// What kind of thing happened, one word.
    pub kind: String,
    /// Why, one stable word or a few.
    pub reason: String,
    /// A sentence for people, without secrets.
    pub message: String,
    /// The revision that it is about.
    pub revision: Option<CommitId>,
    /// More, as a JSON object.
    pub data: serde_json::Value,
}

/// An event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Its number: grows with each event, and is never given twice.
    pub seq: u64,
    /// When it happened.
    pub at: Timestamp,
    /// The service that it is about.
    pub service: Option<ServiceName>,
    /// The component that it is about.
    pub component: Option<ComponentName>,
    /// What kind of thing happened, one word.
    pub kind: String,
    /// Why, one stable word or a few.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// The revision that it is about.
    pub revision: Option<CommitId>,
    /// More, as a JSON object.
    pub data: serde_json::Value,
}

/// Which events to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventQuery {
    /// Only those with a greater number; a follower gives the last one that it has seen.
    pub after: Option<u64>,
    /// Only those that happened then or later. Where the clock was set back by more than a thousand
    /// events, those of the time that came twice may be left out.
    pub since: Option<Timestamp>,
    /// Only those about one of these (their node is not looked at); empty: all.
    pub targets: Vec<Target>,
    /// At most so many.
    pub limit: u32,
    /// Whether the limit keeps the newest instead of the oldest. The order is oldest first either way.
    pub newest: bool,
}

/// What pruning may take, and what it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneBounds {
    /// What is older goes.
    pub before: Timestamp,
    /// So many of the newest events stay whatever their age: a clock that jumped must not empty the log.
    pub keep_newest: u32,
    /// With more events than this the oldest go whatever their age.
    pub keep_at_most: u32,
    /// Most rows that one call takes from each table, so that a write behind it does not wait for long.
    pub chunk: u32,
}

impl Registry {
    /// Appends events; returns their numbers.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn append_events(&self, events: Vec<NewEvent>) -> Result<Vec<u64>, RegistryError> {
        self.write(move |tx| append(tx, &events)).await
    }

    /// Reads events, oldest first.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for more than a hundred targets.
    pub async fn events(&self, query: EventQuery) -> Result<Vec<EventRow>, RegistryError> {
        bounded("the list of targets", query.targets.len(), MAX_TARGETS)?;
        self.read(move |connection, _| select(connection, &query))
            .await
    }

    /// Takes a chunk of what is old from events, audit, requests and finished deployments; returns how
    /// many rows went. Call it again until it returns 0.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn prune(&self, bounds: PruneBounds) -> Result<usize, RegistryError> {
        self.write(move |tx| {
            Ok(prune_log(tx, "events", &bounds)?
                + prune_log(tx, "audit", &bounds)?
                + super::deployments::prune(tx, &bounds)?
                + super::history::prune(tx, &bounds)?
                + super::requests::prune(tx, &bounds)?)
        })
        .await
    }
}

/// The newest number ever given, pruned or not.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row(
        "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'events'), 0) AS seq",
        [],
        |row| count(row, "seq"),
    )
}

/// Appends events within a transaction.
pub(super) fn append(tx: &WriteTx<'_>, events: &[NewEvent]) -> Result<Vec<u64>, RegistryError> {
    let mut insert = tx.prepare_cached(
        "INSERT INTO events (at, service, component, kind, reason, message, revision, data)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let mut numbers = Vec::with_capacity(events.len());
    for event in events {
        let mut data = event.data.to_string();
        if data.len() > DATA_BYTES {
            data = r#"{"omitted":"too large"}"#.to_owned();
        }
        let seq = insert.insert((
            At(event.at),
            event.service.as_ref().map(ServiceName::as_str),
            event.component.as_ref().map(ComponentName::as_str),
            cut(&event.kind, MESSAGE_BYTES),
            cut(&event.reason, MESSAGE_BYTES),
            cut(&event.message, MESSAGE_BYTES),
            event.revision.map(|revision| revision.to_string()),
            data,
        ))?;
        let seq = u64::try_from(seq).map_err(|_| RegistryError::Stored {
            detail: format!("event number {seq}"),
        })?;
        tx.appended_event(seq);
        numbers.push(seq);
    }
    Ok(numbers)
}

/// The number after which what happened since then begins, so that no query walks through what came
/// before. Numbers follow time but for a clock that was set and for what was noticed late.
fn before_time(connection: &Connection, since: Timestamp) -> Result<i64, RegistryError> {
    let last: Option<i64> = connection
        .prepare_cached("SELECT seq FROM events WHERE at < ?1 ORDER BY at DESC LIMIT 1")?
        .query_row([At(since)], |row| row.get(0))
        .optional()?;
    Ok(last.map_or(0, |last| last.saturating_sub(OUT_OF_ORDER)))
}

fn select(connection: &Connection, query: &EventQuery) -> Result<Vec<EventRow>, RegistryError> {
    let mut conditions = vec!["seq > ?".to_owned()];
    let mut after = i64::try_from(query.after.unwrap_or(0)).unwrap_or(i64::MAX);
    if let Some(since) = query.since {
        after = after.max(before_time(connection, since)?);
    }
    let mut values = vec![Value::from(after)];
    if let Some(since) = query.since {
        conditions.push("at >= ?".to_owned());
        values.push(Value::from(since.as_microsecond()));
    }
    let mut about = Vec::new();
    for target in &query.targets {
        values.push(Value::from(target.service.to_string()));
        match &target.component {
            Some(component) => {
                about.push("(service = ? AND component = ?)");
                values.push(Value::from(component.to_string()));
            }
            None => about.push("service = ?"),
        }
    }
    if !about.is_empty() {
        conditions.push(format!("({})", about.join(" OR ")));
    }
    values.push(Value::from(i64::from(query.limit.min(MAX_ROWS))));
    let sql = format!(
        "SELECT * FROM events WHERE {} ORDER BY seq {} LIMIT ?",
        conditions.join(" AND "),
        if query.newest { "DESC" } else { "ASC" },
    );
    // Only texts without targets come again and again; the others would push those out.
    let mut rows = if query.targets.is_empty() {
        let mut statement = connection.prepare_cached(&sql)?;
        statement
            .query_map(params_from_iter(values), event_row)?
            .collect::<Result<Vec<_>, _>>()?
    } else {
        let mut statement = connection.prepare(&sql)?;
        statement
            .query_map(params_from_iter(values), event_row)?
            .collect::<Result<Vec<_>, _>>()?
    };
    if query.newest {
        rows.reverse();
    }
    Ok(rows)
}

/// Takes old rows of a log, a table with `seq` and an index on `at`. Both statements walk an index
/// and touch what goes, so that a call with nothing to do costs nothing in a long log.
pub(super) fn prune_log(
    tx: &WriteTx<'_>,
    table: &'static str,
    bounds: &PruneBounds,
) -> Result<usize, RegistryError> {
    let too_many = tx
        .prepare_cached(&format!(
            "DELETE FROM {table} WHERE seq IN (
               SELECT seq FROM {table} WHERE seq <= (SELECT max(seq) FROM {table}) - ?1
               ORDER BY seq LIMIT ?2)"
        ))?
        .execute((bounds.keep_at_most, bounds.chunk))?;
    let left = i64::from(bounds.chunk) - i64::try_from(too_many).unwrap_or(i64::MAX);
    let too_old = tx
        .prepare_cached(&format!(
            "DELETE FROM {table} WHERE seq IN (
               SELECT seq FROM {table}
               WHERE at < ?1 AND seq <= (SELECT max(seq) FROM {table}) - ?2
               ORDER BY at LIMIT ?3)"
        ))?
        .execute((At(bounds.before), bounds.keep_newest, left.max(0)))?;
    Ok(too_many + too_old)
}

fn event_row(row: &Row<'_>) -> rusqlite::Result<EventRow> {
    Ok(EventRow {
        seq: count(row, "seq")?,
        at: at(row, "at")?,
        service: parsed_option(row, "service")?,
        component: parsed_option(row, "component")?,
        kind: row.get("kind")?,
        reason: row.get("reason")?,
        message: row.get("message")?,
        revision: parsed_option(row, "revision")?,
        data: json(row, "data")?,
    })
}
