//! Containers that the agent did not make as they are: those that were taken over, and those that
//! somebody has changed to what is wanted now.

use std::collections::BTreeSet;

use super::decide::replace_or_create;
use super::{Action, Deployed, Reason};
use crate::component::{ComponentSpec, Network};
use crate::diff::FieldChange;
use crate::drift::field_drift;
use crate::observed::{ContainerState, ImageId, LiveContainer, Observed};

/// The departure of a container that its engine removes at its end.
pub const AUTO_REMOVE: &str = "auto_remove";

/// A container that was taken over and is otherwise than one that would be made: it is replaced, field by
/// field told.
pub(super) fn replace(
    mut action: Action,
    deployed: &Deployed,
    departures: &[FieldChange],
    observed: Option<&Observed>,
    moved: Option<&ImageId>,
) -> Action {
    let is_new = |departure: &&FieldChange| {
        let mut changes = action.changes.iter();
        changes.all(|change| change.field != departure.field)
    };
    let departures: Vec<FieldChange> = departures.iter().filter(is_new).cloned().collect();
    if departures.iter().any(|it| it.field == AUTO_REMOVE) {
        action.warnings.push(
            "the engine removes the old container as soon as it stops: it cannot be put back"
                .to_owned(),
        );
    }
    action.changes.extend(departures);
    action.kind = replace_or_create(observed);
    action.reason = Reason::Adopted(
        action
            .changes
            .iter()
            .map(|change| change.field.clone())
            .collect(),
    );
    if let Some(after) = &mut action.after {
        if let Some(moved) = moved {
            after.image = Some(moved.clone());
        } else if after.spec_digest == deployed.spec_digest {
            after.image = Some(deployed.image.clone());
        }
    }
    action
}

/// The fields of a running container that somebody has changed, where all of them are what `want` asks for
/// and `want` asks for nothing else that is new.
pub(super) fn accepted(
    deployed: &Deployed,
    want: &ComponentSpec,
    live: &LiveContainer,
) -> Option<Vec<String>> {
    if !live.state.is_running() || live.state == ContainerState::Paused {
        return None;
    }
    let drifted: Vec<String> = field_drift(&deployed.baseline, live)
        .into_iter()
        .map(|difference| difference.field)
        .collect();
    if drifted.is_empty() {
        return None;
    }
    let mut changed_in_place = deployed.spec.clone();
    changed_in_place.resources = want.resources.clone();
    changed_in_place.network = want.network.clone();
    let asks_for_more = changed_in_place != *want;
    if asks_for_more
        || !drifted.iter().all(|field| is_as_wanted(field, want, live))
        || !asked(&deployed.spec, want).all(|field| is_as_wanted(field, want, live))
    {
        return None;
    }
    let networks: BTreeSet<&str> = live
        .fields
        .keys()
        .filter_map(|field| field.strip_prefix("network."))
        .collect();
    let joins_all = match &want.network {
        Network::User(attachments) => attachments
            .keys()
            .all(|name| networks.contains(name.as_str())),
        _ => true,
    };
    joins_all.then_some(drifted)
}

/// The fields of the limits that are asked for anew. One that an engine without root never applied, and that
/// is asked for as before, says nothing.
fn asked(deployed: &ComponentSpec, want: &ComponentSpec) -> impl Iterator<Item = &'static str> {
    let (before, after) = (&deployed.resources, &want.resources);
    [
        (before.memory_bytes != after.memory_bytes).then_some("memory"),
        (before.cpu_millis != after.cpu_millis).then_some("cpus"),
        (before.pids != after.pids).then_some("pids"),
    ]
    .into_iter()
    .flatten()
}

/// Whether a field of the engine's normal form is what a container made from `want` would show.
fn is_as_wanted(field: &str, want: &ComponentSpec, live: &LiveContainer) -> bool {
    let told = live.fields.get(field).map(String::as_str);
    let is = |wanted: u64| told == Some(wanted.to_string().as_str());
    let memory = want.resources.memory_bytes;
    match field {
        "memory" => is(memory.unwrap_or(0)),
        // The agent asks for as much swap as memory, as the engines' command lines do.
        "memory_swap" => match memory {
            Some(bytes) => is(bytes.saturating_mul(2)),
            None => matches!(told, Some("0" | "-1")),
        },
        "cpus" => is(want
            .resources
            .cpu_millis
            .unwrap_or(0)
            .saturating_mul(1_000_000)),
        "pids" => is(u64::from(want.resources.pids)),
        "network" => {
            told == Some(match want.network {
                Network::None => "none",
                Network::Host => "host",
                Network::Bridge => "bridge",
                Network::User(_) => "user",
            })
        }
        _ => match (field.strip_prefix("network."), &want.network) {
            (Some(name), Network::User(attachments)) => match (attachments.get(name), told) {
                (None, None) => true,
                (Some(attachment), Some(told)) => {
                    // The container's own name is answered to on every network.
                    let told: BTreeSet<&str> = told
                        .split(',')
                        .filter(|alias| !alias.is_empty() && *alias != live.name)
                        .collect();
                    let wanted: BTreeSet<&str> = attachment
                        .aliases
                        .iter()
                        .map(String::as_str)
                        .filter(|alias| *alias != live.name)
                        .collect();
                    told == wanted
                }
                _ => false,
            },
            _ => false,
        },
    }
}
