//! The events that watching gives: their words and sentences.

use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::duration::Span;
use mcp_spec::name::ServiceName;
use serde_json::{Value, json};

use super::flapping::Turn;
use crate::registry::{DeployedRow, DriftRow, NewEvent};

/// Differences that a message names; the data has them all.
const NAMED: usize = 3;

/// Longest value of a field in a message.
const VALUE_CHARS: usize = 60;

/// An event about a component.
pub(super) fn about(
    row: &DeployedRow,
    at: Timestamp,
    kind: &str,
    reason: &str,
    said: &str,
    mut data: Value,
) -> NewEvent {
    if let Value::Object(fields) = &mut data {
        fields.insert("container".to_owned(), json!(row.container.as_str()));
    }
    NewEvent {
        at,
        service: Some(row.key.service.clone()),
        component: Some(row.key.component.clone()),
        kind: kind.to_owned(),
        reason: reason.to_owned(),
        message: format!("{} {said}", row.key),
        revision: Some(row.revision).filter(|revision| !revision.is_none()),
        data,
    }
}

/// An event about the engine.
pub(super) fn about_engine(at: Timestamp, kind: &str, reason: &str, message: String) -> NewEvent {
    NewEvent {
        at,
        service: None,
        component: None,
        kind: kind.to_owned(),
        reason: reason.to_owned(),
        message,
        revision: None,
        data: json!({}),
    }
}

/// The event of a service whose containers an emptied engine took along.
pub(super) fn engine_emptied(service: &ServiceName, at: Timestamp) -> NewEvent {
    let message =
        format!("{service}: the engine's store was emptied; what should run is brought back");
    NewEvent {
        service: Some(service.clone()),
        ..about_engine(at, "engine-emptied", "store-emptied", message)
    }
}

/// The event of an engine that shows none of the node's containers since it keeps them elsewhere.
pub(super) fn engine_replaced(at: Timestamp) -> NewEvent {
    let message = "the engine keeps its containers elsewhere than before: none of this node's is there, and \
                   nothing is brought back by itself";
    about_engine(at, "engine-replaced", "another-store", message.to_owned())
}

/// The end of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    /// Exit code, where the engine tells one.
    pub(super) code: Option<i32>,
    /// Whether the engine says that its memory ran out.
    pub(super) oom: bool,
    /// How long it ran, where known.
    pub(super) ran: Option<Duration>,
}

pub(super) fn exited(row: &DeployedRow, at: Timestamp, end: End, reason: &str) -> NewEvent {
    let mut said = match end.code {
        Some(code) => format!("exited with code {code}"),
        None => "ended, and the engine tells no exit code".to_owned(),
    };
    if end.oom {
        said.push_str(" (out of memory)");
    }
    if let Some(ran) = end.ran {
        said.push_str(&format!(" after {}", rounded(ran)));
    }
    let data = json!({
        "exit_code": end.code,
        "oom": end.oom,
        "ran_ms": end.ran.map(|ran| u64::try_from(ran.as_millis()).unwrap_or(u64::MAX)),
    });
    about(row, at, "exited", reason, &said, data)
}

pub(super) fn restarted(
    row: &DeployedRow,
    at: Timestamp,
    code: Option<i32>,
    restarts: u32,
    attempt: u32,
) -> NewEvent {
    let said = format!("runs again{} (restart {restarts})", after_exit(code));
    let data = json!({ "exit_code": code, "restarts": restarts, "attempt": attempt });
    about(row, at, "restarted", "restart-policy", &said, data)
}

pub(super) fn restart_scheduled(
    row: &DeployedRow,
    at: Timestamp,
    code: Option<i32>,
    pause: Duration,
    attempt: u32,
) -> NewEvent {
    let said = format!("starts again in {}{}", rounded(pause), after_exit(code));
    let data = json!({
        "exit_code": code,
        "pause_ms": u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        "attempt": attempt,
    });
    about(row, at, "restart-scheduled", "back-off", &said, data)
}

pub(super) fn gave_up(row: &DeployedRow, at: Timestamp, code: Option<i32>, max: u32) -> NewEvent {
    let said = format!(
        "is not started again{}: restart = \"on-failure:{max}\" is spent",
        after_exit(code)
    );
    let data = json!({ "exit_code": code, "attempts": max });
    about(row, at, "gave-up", "restart-policy-spent", &said, data)
}

pub(super) fn drifted(row: &DeployedRow, at: Timestamp, drift: &[DriftRow]) -> NewEvent {
    let reason = if drift.iter().any(|d| d.field == mcp_spec::drift::STATE) {
        "state"
    } else {
        "spec"
    };
    let said = format!("differs from what was deployed: {}", named(drift));
    about(row, at, "drift", reason, &said, json!({ "drift": drift }))
}

pub(super) fn drift_gone(row: &DeployedRow, at: Timestamp, drift: &[DriftRow]) -> NewEvent {
    let said = format!("is again what was deployed; it was {}", named(drift));
    about(
        row,
        at,
        "drift-gone",
        "repaired",
        &said,
        json!({ "drift": drift }),
    )
}

pub(super) fn flapping(row: &DeployedRow, at: Timestamp, turn: Turn, window: Duration) -> NewEvent {
    let window = rounded(window);
    match turn {
        Turn::Begins(changes) => about(
            row,
            at,
            "flapping",
            "too-many-changes",
            &format!("changed {changes} times within {window}"),
            json!({ "changes": changes }),
        ),
        Turn::Calm => about(
            row,
            at,
            "flapping-over",
            "calm",
            &format!("has been calm for {window}"),
            json!({}),
        ),
        Turn::Stopped => about(
            row,
            at,
            "flapping-over",
            "stopped",
            "is stopped, and flaps no more",
            json!({}),
        ),
    }
}

fn named(drift: &[DriftRow]) -> String {
    let mut texts: Vec<String> = drift
        .iter()
        .take(NAMED)
        .map(|d| format!("{} {} -> {}", d.field, value(&d.baseline), value(&d.live)))
        .collect();
    if drift.len() > NAMED {
        texts.push(format!("and {} more", drift.len() - NAMED));
    }
    texts.join(", ")
}

fn value(text: &str) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    if text.chars().count() > VALUE_CHARS {
        let mut cut: String = text.chars().take(VALUE_CHARS).collect();
        cut.push('…');
        return cut;
    }
    text.to_owned()
}

fn after_exit(code: Option<i32>) -> String {
    code.map_or_else(String::new, |code| format!(" after exit {code}"))
}

/// Milliseconds below a second, else whole seconds.
fn rounded(duration: Duration) -> Span {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if ms < 1000 {
        Span::from_millis(ms)
    } else {
        Span::from_secs((ms + 500) / 1000)
    }
}
