//! What a component's part of a plan follows from beside itself: the targets that were named, what it
//! depends on, and what the revision no longer defines.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Action, ActionKind, Before, Blocked, Deployed, HoldChange, Obstacle, PlanInput, Purpose,
    Reason, WantedService,
};
use crate::drift::has_finished;
use crate::name::{ComponentKey, ComponentName, ServiceName, Target};
use crate::observed::{ContainerState, DesiredState, LiveContainer, Observed};

/// Components that were deployed and that the revision no longer defines.
pub(super) fn removals(
    input: &PlanInput<'_>,
    name: &ServiceName,
    wanted: &WantedService,
    scope: &Scope<'_>,
    actions: &mut Vec<Action>,
    blocked: &mut Vec<Blocked>,
) {
    if matches!(input.purpose, Purpose::Rollback) {
        return;
    }
    for (key, deployed) in input.deployed {
        if key.service != *name || wanted.components.contains_key(&key.component) {
            continue;
        }
        if !scope.covers(&key.component) {
            continue;
        }
        let live = match input.observed.get(key) {
            Some(Observed::Present(live)) => Some(live.as_ref()),
            _ => None,
        };
        let mut action = Action {
            component: key.component.clone(),
            kind: ActionKind::Remove,
            reason: Reason::NoLongerDefined,
            changes: Vec::new(),
            before: Some(before_of(deployed, live)),
            after: None,
            files: Vec::new(),
            clears_stop: false,
            hold: HoldChange::Keep,
            uncommitted: false,
            warnings: Vec::new(),
        };
        if let Some(held) = deployed.held_at {
            action.kind = ActionKind::None;
            action.reason = Reason::Held(held);
        } else if deployed.desired == DesiredState::Ignore || input.purpose == Purpose::Auto {
            action.kind = ActionKind::None;
        } else if deployed.is_only_adopted() {
            // No definition ever had it: its being missing there is no wish to remove it.
            action.kind = ActionKind::None;
            action.reason = Reason::OnlyAdopted;
        } else if let Some(reason) = unseen(input, key) {
            // Removing what cannot be seen would forget a container that may run.
            action.kind = ActionKind::None;
            blocked.push(Blocked {
                service: name.clone(),
                component: Some(key.component.clone()),
                obstacle: unknown(key, reason),
            });
        }
        actions.push(action);
    }
}

/// Dependencies that the plan leaves alone: an absent one blocks, an older one gives a warning.
pub(super) fn dependencies(
    input: &PlanInput<'_>,
    name: &ServiceName,
    wanted: &WantedService,
    actions: &mut [Action],
    blocked: &mut Vec<Blocked>,
) {
    let brought_up: BTreeSet<ComponentName> = actions
        .iter()
        .filter(|action| {
            action.kind.creates()
                || matches!(
                    action.kind,
                    ActionKind::Start | ActionKind::Restart | ActionKind::Signal
                )
        })
        .map(|action| action.component.clone())
        .collect();
    let mut older = BTreeMap::new();
    for action in actions.iter() {
        let brings_up = brought_up.contains(&action.component);
        let (true, Some(want)) = (brings_up, wanted.components.get(&action.component)) else {
            continue;
        };
        for dependency in &want.spec.depends_on {
            let key = ComponentKey::new(name.clone(), dependency.clone());
            if brought_up.contains(dependency) {
                continue;
            }
            if !satisfied(input, &key) {
                blocked.push(Blocked {
                    service: name.clone(),
                    component: Some(action.component.clone()),
                    obstacle: Obstacle {
                        is_policy: false,
                        reason: format!("it depends on {key}, which does not run"),
                        hint: format!("deploy {key} too, or add --with-deps"),
                    },
                });
                continue;
            }
            let is_older = match (input.deployed.get(&key), wanted.components.get(dependency)) {
                (Some(deployed), Some(want)) => deployed.spec_digest != want.spec.digest(),
                _ => false,
            };
            if is_older {
                older
                    .entry(action.component.clone())
                    .or_insert_with(Vec::new)
                    .push(format!("{key} runs at an older spec"));
            }
        }
    }
    for action in actions {
        if let Some(warnings) = older.remove(&action.component) {
            action.warnings.extend(warnings);
        }
    }
}

/// Whether a dependency that the plan does not touch is as its dependants need it.
pub(super) fn satisfied(input: &PlanInput<'_>, key: &ComponentKey) -> bool {
    let Some(deployed) = input.deployed.get(key) else {
        return false;
    };
    if deployed.spec.kind.is_job() {
        return true;
    }
    match input.observed.get(key) {
        Some(Observed::Present(live)) => {
            live.state.is_running()
                || matches!(live.state, ContainerState::Exited { code: 0, .. })
                    && has_finished(deployed.spec.restart, &live.state)
        }
        _ => false,
    }
}

pub(super) fn take_dependencies_along<'a>(
    input: &PlanInput<'a>,
    name: &ServiceName,
    wanted: &'a WantedService,
    scope: &mut Scope<'a>,
) {
    let Some(components) = &mut scope.components else {
        return;
    };
    let mut queue: Vec<&ComponentName> = components.iter().copied().collect();
    while let Some(component) = queue.pop() {
        let Some(want) = wanted.components.get(component) else {
            continue;
        };
        for dependency in &want.spec.depends_on {
            let key = ComponentKey::new(name.clone(), dependency.clone());
            if !satisfied(input, &key) && components.insert(dependency) {
                queue.push(dependency);
            }
        }
    }
}

/// What the targets select of one service.
pub(super) struct Scope<'a> {
    /// `None`: all of it.
    pub(super) components: Option<BTreeSet<&'a ComponentName>>,
    /// Whether an operator named the service or a component of it.
    pub(super) named: bool,
}

impl<'a> Scope<'a> {
    pub(super) fn of(targets: Option<&'a [Target]>, service: &ServiceName) -> Self {
        let Some(targets) = targets else {
            return Self {
                components: None,
                named: false,
            };
        };
        let mut components = BTreeSet::new();
        for target in targets.iter().filter(|t| t.service == *service) {
            match &target.component {
                Some(component) => {
                    components.insert(component);
                }
                None => {
                    return Self {
                        components: None,
                        named: true,
                    };
                }
            }
        }
        Self {
            components: Some(components),
            named: true,
        }
    }

    pub(super) fn covers(&self, component: &ComponentName) -> bool {
        self.components
            .as_ref()
            .is_none_or(|components| components.contains(component))
    }
}

/// Why nothing is known of a component's container, where nothing is.
pub(super) fn unseen<'a>(input: &PlanInput<'a>, key: &ComponentKey) -> Option<&'a str> {
    match input.observed.get(key) {
        Some(Observed::Unknown { reason }) => Some(reason),
        None => Some("it was not asked"),
        _ => None,
    }
}

pub(super) fn unknown(key: &ComponentKey, reason: &str) -> Obstacle {
    Obstacle {
        is_policy: false,
        reason: format!("the state of {key} is unknown: {reason}"),
        hint: "bring the engine back, then deploy again".to_owned(),
    }
}

pub(super) fn before_of(deployed: &Deployed, live: Option<&LiveContainer>) -> Before {
    Before {
        spec_digest: deployed.spec_digest,
        revision: deployed.revision,
        container: deployed.container.clone(),
        generation: deployed.generation,
        image: deployed.image.clone(),
        present: live.is_some(),
        running: live.is_some_and(|live| live.state.is_running()),
        stop_timeout: deployed.spec.stop_timeout,
        baseline: None,
    }
}
