//! What the commit of a deployment changes in the registry: rows, history, holds and stops. Pure but
//! for the clock.

use std::collections::BTreeMap;

use jiff::Timestamp;
use mcp_spec::name::ComponentName;
use mcp_spec::observed::{DesiredState, ImageId, Observed};
use mcp_spec::plan::{Action, ActionKind, After, HoldChange, Purpose};

use super::execution::Execution;
use super::outcome::{acts, committed};
use super::prepare::Made;
use super::switch::Outcome as Switching;
use crate::registry::{
    Advanced, CommitDeployment, DeployedRow, HistoryEntry, HoldRow, SetDeployed, StopOverride,
    Trigger,
};
use crate::watch::first_sight;

/// Everything that the commit of a deployment changes in the registry.
pub(super) fn commitment(
    execution: &Execution,
    made: &BTreeMap<ComponentName, Made>,
    switching: &Switching,
    holds: &BTreeMap<ComponentName, Option<HoldRow>>,
) -> CommitDeployment {
    let now = execution.context.clock.now();
    let mut commit = CommitDeployment::new(execution.id.clone());
    for action in &execution.plan.actions {
        let key = execution.key(&action.component);
        let old = &execution
            .old
            .get(&action.component)
            .map(|old| as_remade(execution, old));
        let old = old.as_ref();
        let failed = switching.failed.contains_key(&action.component);
        if failed && !execution.is_touched(&action.component) {
            // It was not reached: what ran before still runs.
            continue;
        }
        let Some(after) = &action.after else {
            if action.kind == ActionKind::Remove && !failed {
                commit.removed.push(key);
            }
            continue;
        };
        let held = holds
            .get(&action.component)
            .cloned()
            .unwrap_or_else(|| old.and_then(|old| old.hold.clone()));
        let hold = hold_after(execution, action, held, now);
        let stop = stop_after(execution, action, old, now);
        let desired = if execution.plan.settings.active {
            DesiredState::Running
        } else {
            DesiredState::Stopped
        };
        let row = match (made.get(&action.component), old) {
            (Some(made), _) if action.kind.creates() => DeployedRow {
                key: key.clone(),
                spec: after.spec.clone(),
                spec_digest: after.spec_digest,
                image_id: made.image.clone(),
                image_digest: made.image_digest.or(old
                    .filter(|old| old.image_id == made.image)
                    .and_then(|old| old.image_digest)),
                revision: after.revision,
                container: made.container.clone(),
                container_name: key.container_name(),
                generation: made.generation,
                baseline: made.baseline.clone(),
                desired,
                stopped_by: stop,
                hold,
                deployment: execution.id.clone(),
                history: old.map_or(0, |old| old.history),
                deployed_at: now,
                adopted: false,
                settings: execution.plan.settings,
            },
            (_, Some(old)) => {
                let spec_moves = old.spec_digest != after.spec_digest;
                if !acts(action) && !spec_moves && !changes_hold(action) && !action.clears_stop {
                    commit.advanced.push(Advanced {
                        key,
                        revision: after.revision,
                        desired,
                        settings: execution.plan.settings,
                    });
                    continue;
                }
                DeployedRow {
                    spec: after.spec.clone(),
                    spec_digest: after.spec_digest,
                    revision: after.revision,
                    baseline: action
                        .before
                        .as_ref()
                        .and_then(|before| before.baseline.clone())
                        .unwrap_or_else(|| old.baseline.clone()),
                    desired,
                    stopped_by: stop,
                    hold,
                    settings: execution.plan.settings,
                    deployment: if acts(action) {
                        execution.id.clone()
                    } else {
                        old.deployment.clone()
                    },
                    deployed_at: if acts(action) { now } else { old.deployed_at },
                    ..old.clone()
                }
            }
            (_, None) => continue,
        };
        let live = switching
            .switched
            .get(&action.component)
            .and_then(|switched| switched.live.clone());
        if let Some(live) = live {
            let observed = Observed::Present(Box::new(live));
            commit.observed.push(first_sight(&row, &observed, now));
        }
        let image = made.get(&action.component).map(|made| &made.image);
        let history = history_of(execution, action, old, after, image, failed);
        commit.set.push(SetDeployed { row, history });
    }
    commit.records = committed(execution, made, switching, &BTreeMap::new());
    commit
}

/// The registered row, with the container that took the place of its own in this deployment.
fn as_remade(execution: &Execution, old: &DeployedRow) -> DeployedRow {
    let mut row = old.clone();
    if let Some(remade) = execution.remade(&old.key.component) {
        row.container = remade.container;
        row.generation = remade.generation;
        row.baseline = remade.baseline;
    }
    row
}

/// What the history gets: a new row where another spec or image runs, a restoring one in a rollback.
fn history_of(
    execution: &Execution,
    action: &Action,
    old: Option<&DeployedRow>,
    after: &After,
    image: Option<&ImageId>,
    failed: bool,
) -> HistoryEntry {
    if failed && old.is_some() {
        return HistoryEntry::Keep;
    }
    if execution.order.purpose == Some(Purpose::Rollback)
        && let Some(restores) = execution.order.restores.get(&action.component)
    {
        return HistoryEntry::Restores(*restores);
    }
    match old {
        Some(old) if old.spec_digest == after.spec_digest && !action.kind.creates() => {
            HistoryEntry::Keep
        }
        Some(old)
            if old.spec_digest == after.spec_digest
                && image.is_none_or(|image| *image == old.image_id) =>
        {
            HistoryEntry::Keep
        }
        _ => HistoryEntry::New,
    }
}

fn hold_after(
    execution: &Execution,
    action: &Action,
    held: Option<HoldRow>,
    now: Timestamp,
) -> Option<HoldRow> {
    match action.hold {
        HoldChange::Keep => held,
        HoldChange::Release => None,
        HoldChange::Set => Some(HoldRow {
            revision: action
                .after
                .as_ref()
                .map_or(execution.plan.revision, |after| after.revision),
            by: execution.order.actor.clone(),
            at: now,
            reason: (execution.order.trigger == Trigger::Rollback).then(|| "rollback".to_owned()),
        }),
    }
}

fn stop_after(
    execution: &Execution,
    action: &Action,
    old: Option<&DeployedRow>,
    now: Timestamp,
) -> Option<StopOverride> {
    if execution.order.trigger == Trigger::Stop {
        return Some(StopOverride {
            by: execution.order.actor.clone(),
            at: now,
        });
    }
    if action.clears_stop {
        return None;
    }
    old.and_then(|old| old.stopped_by.clone())
}

/// Whether an action leaves its component's hold changed.
const fn changes_hold(action: &Action) -> bool {
    !matches!(action.hold, HoldChange::Keep)
}
