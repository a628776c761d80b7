//! Drift: how what is observed differs from what was deployed.
//!
//! This is the only such comparison. Fields are held against the baseline, which the engine itself gave
//! right after the container was made, so that an engine's normal form is never taken for drift.
//! Being behind the head is no drift.

use std::collections::{BTreeMap, BTreeSet};

use crate::component::{ComponentSpec, Kind, Restart};
use crate::observed::{ContainerState, DesiredState, LiveContainer, Observed, ObservedState};

/// The name of the difference between what should run and what does.
pub const STATE: &str = "state";

/// The field that tells in which normal form an engine's answer was put. Fields that only the one of two
/// forms has are no drift: a release that looks closer finds nothing wrong with what runs already.
pub const FORM: &str = "form";

/// One difference between what was deployed and what is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// [`STATE`], or the field's name.
    pub field: String,
    /// What was deployed; empty where the field was not there.
    pub deployed: String,
    /// What is; empty where the field is gone.
    pub live: String,
}

/// What a component was deployed as.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// Its spec.
    pub spec: &'a ComponentSpec,
    /// Whether it should run now, an operator's stop included.
    pub wanted: DesiredState,
    /// The engine's normal form of the container right after it was made.
    pub baseline: &'a BTreeMap<String, String>,
    /// Starts in a row that the restart policy has spent.
    pub attempts: u32,
}

/// How a component's container differs from what was deployed, its state first. Nothing where it is
/// unknown, or none of the agent's business.
#[must_use]
pub fn drift(expected: &Expected<'_>, observed: &Observed) -> Vec<Difference> {
    if expected.wanted == DesiredState::Ignore {
        return Vec::new();
    }
    let mut differences = Vec::new();
    differences.extend(state_drift(expected, observed));
    if let Observed::Present(live) = observed {
        differences.extend(field_drift(expected.baseline, live));
    }
    differences
}

/// The differences of `live` from the baseline, field by field. None where either was never inspected.
#[must_use]
pub fn field_drift(baseline: &BTreeMap<String, String>, live: &LiveContainer) -> Vec<Difference> {
    if live.fields.is_empty() || baseline.is_empty() {
        return Vec::new();
    }
    let names: BTreeSet<&String> = baseline.keys().chain(live.fields.keys()).collect();
    let same_form = baseline.get(FORM) == live.fields.get(FORM);
    let comparable =
        |name: &str| same_form || (baseline.contains_key(name) && live.fields.contains_key(name));
    names
        .into_iter()
        .filter(|name| *name != FORM && comparable(name))
        .filter(|name| baseline.get(*name) != live.fields.get(*name))
        .map(|name| Difference {
            field: name.clone(),
            deployed: baseline.get(name).cloned().unwrap_or_default(),
            live: live.fields.get(name).cloned().unwrap_or_default(),
        })
        .collect()
}

fn state_drift(expected: &Expected<'_>, observed: &Observed) -> Option<Difference> {
    let differs = |deployed: ObservedState, live: &str| {
        Some(Difference {
            field: STATE.to_owned(),
            deployed: deployed.as_str().to_owned(),
            live: live.to_owned(),
        })
    };
    let live = match observed {
        Observed::Unknown { .. } => return None,
        Observed::Absent => None,
        Observed::Present(live) => Some(&live.state),
    };
    match expected.wanted {
        DesiredState::Ignore => None,
        // A job runs in a deployment alone: between two of them nothing has to be there.
        _ if expected.spec.kind.is_job() => None,
        DesiredState::Stopped => match live {
            Some(state) if state.is_running() => {
                differs(ObservedState::Stopped, ObservedState::Running.as_str())
            }
            _ => None,
        },
        DesiredState::Running => match live {
            None => differs(ObservedState::Running, ObservedState::Absent.as_str()),
            Some(ContainerState::Running { .. }) => None,
            Some(ContainerState::Paused) => differs(ObservedState::Running, "paused"),
            Some(state) if has_finished(expected.spec.restart, state) => None,
            Some(state) => differs(ObservedState::Running, state_of(expected, state).as_str()),
        },
    }
}

/// The observed state of a component, in one word.
#[must_use]
pub fn observed_state(expected: &Expected<'_>, observed: &Observed) -> ObservedState {
    match observed {
        Observed::Unknown { .. } => ObservedState::Unknown,
        Observed::Absent => ObservedState::Absent,
        Observed::Present(live) => state_of(expected, &live.state),
    }
}

fn state_of(expected: &Expected<'_>, state: &ContainerState) -> ObservedState {
    if state.is_running() {
        return ObservedState::Running;
    }
    let ContainerState::Exited { code, .. } = state else {
        return ObservedState::Stopped;
    };
    if let Kind::Job { exit_codes } = &expected.spec.kind {
        return if exit_codes.contains(code) {
            ObservedState::Completed
        } else {
            ObservedState::Failed
        };
    }
    let spent = match expected.spec.restart {
        Restart::No => *code != 0,
        Restart::OnFailure { max: Some(max) } => *code != 0 && expected.attempts >= max,
        Restart::OnFailure { max: None } | Restart::Always | Restart::UnlessStopped => false,
    };
    if spent && expected.wanted == DesiredState::Running {
        ObservedState::Failed
    } else {
        ObservedState::Stopped
    }
}

/// Whether the end of a container is one that its restart policy takes for good.
#[must_use]
pub fn has_finished(restart: Restart, state: &ContainerState) -> bool {
    let ContainerState::Exited { code, .. } = state else {
        return false;
    };
    match restart {
        Restart::No => true,
        Restart::OnFailure { .. } => *code == 0,
        Restart::Always | Restart::UnlessStopped => false,
    }
}

#[cfg(test)]
mod tests;
