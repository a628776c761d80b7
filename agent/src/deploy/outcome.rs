//! What a deployment leaves in the registry: rows, records, events and texts. Pure but for the clock.

use std::collections::BTreeMap;
use std::time::Duration;

use mcp_spec::name::ComponentName;
use mcp_spec::plan::{Action, ActionKind};

use super::compensate::PutBack;
use super::execute::Abort;
use super::execution::Execution;
use super::failure::PartFailure;
use super::prepare::Made;
use super::switch::Outcome as Switching;
use crate::registry::{
    ComponentRecord, DeploymentRow, DeploymentState, Finish, NewEvent, Outcome, Quarantined,
};

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The record of an action of which nothing came yet.
fn record(execution: &Execution, action: &Action, outcome: &str) -> ComponentRecord {
    ComponentRecord {
        deployment: execution.id.clone(),
        component: action.component.clone(),
        action: action.kind.as_str().to_owned(),
        outcome: outcome.to_owned(),
        from_revision: action
            .before
            .as_ref()
            .map(|before| before.revision)
            .filter(|revision| !revision.is_none()),
        to_revision: action
            .after
            .as_ref()
            .map(|after| after.revision)
            .filter(|revision| !revision.is_none()),
        image_digest: None,
        image_id: action.before.as_ref().map(|before| before.image.clone()),
        duration_ms: 0,
        downtime_ms: 0,
        error: None,
        changes: action.changes.clone(),
        log_tail: Vec::new(),
    }
}

/// Whether an action did anything to the engine.
pub(super) fn acts(action: &Action) -> bool {
    action.kind != ActionKind::None || !action.files.is_empty()
}

/// What a deployment that ended before the line says of each component.
pub(super) fn aborted(execution: &Execution, why: &Abort) -> Vec<ComponentRecord> {
    execution
        .plan
        .actions
        .iter()
        .map(|action| {
            let mut record = record(
                execution,
                action,
                if acts(action) { "aborted" } else { "unchanged" },
            );
            if let Abort::Befallen((component, failure)) = why
                && *component == action.component
            {
                record.outcome = "failed".to_owned();
                record.error = Some(failure_chain(failure));
            }
            record
        })
        .collect()
}

/// Why a deployment ended before the line, in one sentence.
pub(super) fn abort_text(execution: &Execution, why: &Abort) -> String {
    match why {
        Abort::Befallen((component, failure)) => told(execution, component, failure),
        Abort::Cancelled => "cancelled before anything was touched".to_owned(),
        Abort::Superseded => "a newer deployment took its place".to_owned(),
        Abort::Overruled => "an operator's stop or hold came first".to_owned(),
        Abort::Crashed => {
            "the agent was restarted before anything was touched; deploy again".to_owned()
        }
        Abort::Registry(error) => error.to_string(),
    }
}

pub(super) fn failure_chain(failure: &PartFailure) -> String {
    let mut text = failure.to_string();
    let mut source = std::error::Error::source(failure);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// The first failure that is a cause and no consequence, as a sentence.
pub(super) fn failure_text(
    execution: &Execution,
    failed: &BTreeMap<ComponentName, PartFailure>,
) -> Option<String> {
    failed
        .iter()
        .find(|(_, failure)| !failure.is_consequence())
        .or_else(|| failed.iter().next())
        .map(|(component, failure)| told(execution, component, failure))
}

/// A component's failure in a sentence, with the mend in brackets where one is known.
fn told(execution: &Execution, component: &ComponentName, failure: &PartFailure) -> String {
    let text = format!("{}: {}", execution.key(component), failure_chain(failure));
    match failure.hint() {
        Some(mend) => format!("{text} ({mend})"),
        None => text,
    }
}

/// The mend that a deployment's error ends with: what follows the component's own failure in brackets.
#[must_use]
pub fn mend<'a>(error: &'a str, of_component: &str) -> Option<&'a str> {
    let (_, rest) = error.split_once(of_component)?;
    rest.strip_prefix(" (")?.strip_suffix(')')
}

/// What a committed deployment says of each component.
pub(super) fn committed(
    execution: &Execution,
    made: &BTreeMap<ComponentName, Made>,
    switching: &Switching,
    logs: &BTreeMap<ComponentName, Vec<String>>,
) -> Vec<ComponentRecord> {
    execution
        .plan
        .actions
        .iter()
        .map(|action| {
            let mut record = record(execution, action, "unchanged");
            if let Some(made) = made.get(&action.component) {
                record.image_id = Some(made.image.clone());
                record.image_digest = made.image_digest;
            } else if let Some(old) = execution.old.get(&action.component) {
                record.image_digest = old.image_digest;
            }
            if let Some(failure) = switching.failed.get(&action.component) {
                record.outcome = "failed".to_owned();
                record.error = Some(failure_chain(failure));
            } else if let Some(switched) = switching.switched.get(&action.component) {
                record.outcome = match action.kind {
                    ActionKind::Stop => "stopped",
                    ActionKind::Remove => "removed",
                    _ => "deployed",
                }
                .to_owned();
                record.duration_ms = millis(switched.duration);
                record.downtime_ms = millis(switched.downtime);
            }
            if let Some(lines) = logs.get(&action.component) {
                record.log_tail = lines.clone();
            }
            record
        })
        .collect()
}

/// What a deployment that was put back says of each component.
pub(super) fn compensated(
    execution: &Execution,
    made: &BTreeMap<ComponentName, Made>,
    switching: &Switching,
    put: &BTreeMap<ComponentName, PutBack>,
    stuck: &BTreeMap<ComponentName, PartFailure>,
    logs: &BTreeMap<ComponentName, Vec<String>>,
) -> Vec<ComponentRecord> {
    execution
        .plan
        .actions
        .iter()
        .map(|action| {
            let component = &action.component;
            let unreached = if acts(action) {
                "not-reached"
            } else {
                "unchanged"
            };
            let mut record = record(execution, action, unreached);
            if let Some(failure) = switching.failed.get(component) {
                record.error = Some(failure_chain(failure));
            }
            if let Some(switched) = switching.switched.get(component) {
                record.duration_ms = millis(switched.duration);
            }
            match (put.get(component), stuck.get(component)) {
                (Some(PutBack::Restored { downtime }), _) => {
                    record.outcome = "rolled-back".to_owned();
                    record.downtime_ms = millis(*downtime);
                }
                (Some(PutBack::Stopped), _) => {
                    record.outcome = "failed".to_owned();
                    record.image_id = made.get(component).map(|made| made.image.clone());
                }
                (None, Some(failure)) => {
                    record.outcome = "failed".to_owned();
                    record.error = Some(match record.error.take() {
                        Some(first) => format!(
                            "{first}; and it could not be put back: {}",
                            failure_chain(failure)
                        ),
                        None => format!("it could not be put back: {}", failure_chain(failure)),
                    });
                }
                (None, None) => {}
            }
            if let Some(lines) = logs.get(component) {
                record.log_tail = lines.clone();
            }
            record
        })
        .collect()
}

/// The specs that failed their gate in this deployment.
pub(super) fn quarantined(
    execution: &Execution,
    made: &BTreeMap<ComponentName, Made>,
    switching: &Switching,
) -> Vec<Quarantined> {
    switching
        .failed
        .iter()
        .filter(|(_, failure)| failure.is_gate())
        .filter_map(|(component, failure)| {
            let made = made.get(component)?;
            let after = execution.action(component)?.after.as_ref()?;
            // What has passed its gate here before is no new spec: something else is wrong.
            let has_passed = execution.old.get(component).is_some_and(|old| {
                old.spec_digest == after.spec_digest && old.image_id == made.image
            });
            if has_passed {
                return None;
            }
            Some(Quarantined {
                key: execution.key(component),
                spec_digest: after.spec_digest,
                image_id: made.image.clone(),
                deployment: execution.id.clone(),
                at: execution.context.clock.now(),
                reason: failure_chain(failure),
            })
        })
        .collect()
}

/// The end of a deployment, with an event for each component that it did something to.
pub(super) fn finish(
    execution: &Execution,
    row: &DeploymentRow,
    records: &[ComponentRecord],
    quarantined: Vec<Quarantined>,
) -> Finish {
    let mut finish = finish_bare(row);
    finish.records = records.to_vec();
    // Of a spec that runs and did not converge the quarantine ends with the next deployment.
    let failed: Vec<&str> = quarantined
        .iter()
        .filter(|_| row.outcome != Some(Outcome::Degraded))
        .map(|spec| spec.key.component.as_str())
        .collect();
    let mut whole = about(row);
    if !failed.is_empty() {
        whole["quarantined"] = serde_json::json!(failed);
    }
    finish.quarantined = quarantined;
    for record in records {
        if matches!(record.outcome.as_str(), "unchanged" | "not-reached") {
            continue;
        }
        let changes: Vec<String> = record.changes.iter().map(ToString::to_string).collect();
        let mut message = format!(
            "{} {}",
            execution.key(&record.component),
            past(&record.action, &record.outcome)
        );
        if let Some(error) = &record.error {
            message.push_str(&format!(": {error}"));
        } else if !changes.is_empty() {
            message.push_str(&format!(": {}", changes.join(", ")));
        }
        finish.events.push(NewEvent {
            at: finish.at,
            service: Some(row.service.clone()),
            component: Some(record.component.clone()),
            kind: record.outcome.clone(),
            reason: record.action.clone(),
            message,
            revision: record.to_revision.or(record.from_revision),
            data: about(row),
        });
    }
    if finish.events.is_empty() || row.error.is_some() {
        let outcome = row.outcome.map_or("running", Outcome::as_str);
        finish.events.push(NewEvent {
            at: finish.at,
            service: Some(row.service.clone()),
            component: None,
            kind: format!("deployment-{outcome}"),
            reason: row.trigger.as_str().to_owned(),
            message: match &row.error {
                Some(error) => format!("{} {outcome}: {error}", row.service),
                None => format!("{} {outcome}", row.service),
            },
            revision: row.revision,
            data: whole,
        });
    }
    finish
}

/// What the events of a deployment carry.
fn about(row: &DeploymentRow) -> serde_json::Value {
    serde_json::json!({
        "deployment_id": row.id.as_str(),
        "actor": row.actor,
        "trigger": row.trigger.as_str(),
        "outcome": row.outcome.map_or("running", Outcome::as_str),
    })
}

/// What was done, for a sentence.
fn past<'a>(action: &'a str, outcome: &'a str) -> &'a str {
    match (action, outcome) {
        ("create", "deployed") => "created",
        ("replace", "deployed") => "replaced",
        ("restart", "deployed") => "restarted",
        ("signal", "deployed") => "signalled",
        ("start", "deployed") => "started",
        ("none", "deployed") => "updated",
        (_, "rolled-back") => "rolled back",
        (_, outcome) => outcome,
    }
}

/// The end of a deployment that did nothing.
pub(super) fn finish_bare(row: &DeploymentRow) -> Finish {
    Finish {
        id: row.id.clone(),
        state: row.state,
        outcome: row.outcome.unwrap_or(match row.state {
            DeploymentState::Superseded => Outcome::Superseded,
            _ => Outcome::Aborted,
        }),
        error: row.error.clone(),
        records: Vec::new(),
        quarantined: Vec::new(),
        events: Vec::new(),
        at: row.finished_at.unwrap_or(row.created_at),
    }
}
