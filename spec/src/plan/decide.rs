//! The decisions of a deploy, a rollback and the agent's own reconciliation.

use std::collections::BTreeSet;

use super::adopted;
use super::relations::{
    Scope, before_of, dependencies, removals, take_dependencies_along, unknown, unseen,
};
use super::{
    Action, ActionKind, After, Blocked, Deployed, HoldChange, Obstacle, Plan, PlanInput, Purpose,
    Reason, ServicePlan, Wanted, WantedService,
};
use crate::component::OnChange;
use crate::diff::{diff, file_changes_only};
use crate::drift::{field_drift, has_finished};
use crate::name::{ComponentKey, ComponentName, ServiceName};
use crate::observed::{ContainerState, DesiredState, ImageId, LiveContainer, Observed};

/// Plans what brings the targets to what is wanted.
///
/// Equal inputs give equal plans, and a plan applied to the model and planned again is a no-op.
#[must_use]
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let mut names: BTreeSet<&ServiceName> = BTreeSet::new();
    match input.targets {
        Some(targets) => names.extend(targets.iter().map(|target| &target.service)),
        None => {
            names.extend(input.wanted.keys());
        }
    }
    let services = names
        .into_iter()
        .map(|name| plan_service(input, name))
        .collect();
    Plan::new(input.node, input.revision, input.policy_digest, services)
}

fn plan_service(input: &PlanInput<'_>, name: &ServiceName) -> ServicePlan {
    let mut scope = Scope::of(input.targets, name);
    let Some(wanted) = input.wanted.get(name) else {
        return undefined(input, name);
    };
    let mut actions = Vec::new();
    let mut blocked = Vec::new();

    if input.options.with_deps {
        take_dependencies_along(input, name, wanted, &mut scope);
    }
    if let Some(components) = &scope.components {
        for component in components {
            let key = ComponentKey::new(name.clone(), (*component).clone());
            if !wanted.components.contains_key(*component) && !input.deployed.contains_key(&key) {
                blocked.push(Blocked {
                    service: name.clone(),
                    component: Some((*component).clone()),
                    obstacle: Obstacle {
                        is_policy: false,
                        reason: format!(
                            "{name} has no component {component} at {}",
                            input.revision.short()
                        ),
                        hint: format!(
                            "its components are {}",
                            wanted
                                .components
                                .keys()
                                .map(ComponentName::as_str)
                                .collect::<Vec<_>>()
                                .join(", ")
                        ),
                    },
                });
            }
        }
    }
    for (component, want) in &wanted.components {
        if !scope.covers(component) {
            continue;
        }
        let key = ComponentKey::new(name.clone(), component.clone());
        let action = decide(input, &key, wanted, want, scope.named);
        // Whether there is nothing to do cannot be said of what cannot be seen.
        let is_said_up_to_date = action.kind == ActionKind::None
            && matches!(action.reason, Reason::UpToDate | Reason::AdoptedAsItIs)
            && input.purpose != Purpose::Auto
            && !want.spec.kind.is_job();
        if action.kind.creates()
            || is_said_up_to_date
            || matches!(
                action.kind,
                ActionKind::Start | ActionKind::Stop | ActionKind::Restart | ActionKind::Signal
            )
        {
            for obstacle in obstacles(input, &key, &action) {
                blocked.push(Blocked {
                    service: name.clone(),
                    component: Some(component.clone()),
                    obstacle,
                });
            }
        }
        actions.push(action);
    }
    removals(input, name, wanted, &scope, &mut actions, &mut blocked);
    dependencies(input, name, wanted, &mut actions, &mut blocked);
    actions.sort_by(|a, b| a.component.cmp(&b.component));
    blocked.sort();
    ServicePlan {
        service: name.clone(),
        revision: input.revision,
        settings: wanted.settings,
        actions,
        blocked,
    }
}

/// A service that the revision does not give to this node.
fn undefined(input: &PlanInput<'_>, name: &ServiceName) -> ServicePlan {
    let runs_here = input.deployed.keys().any(|key| key.service == *name);
    let obstacle = if runs_here {
        Obstacle {
            is_policy: false,
            reason: format!(
                "{name} is orphaned: {} no longer gives it to {}",
                input.revision.short(),
                input.node
            ),
            hint: format!("remove it with: mcp purge {name}"),
        }
    } else {
        Obstacle {
            is_policy: false,
            reason: format!(
                "no service {name} on {} at {}",
                input.node,
                input.revision.short()
            ),
            hint: "list what the node knows with: mcp list".to_owned(),
        }
    };
    ServicePlan {
        service: name.clone(),
        revision: input.revision,
        settings: super::ServiceSettings::default(),
        actions: Vec::new(),
        blocked: vec![Blocked {
            service: name.clone(),
            component: None,
            obstacle,
        }],
    }
}

/// What happens to one component that is wanted.
fn decide(
    input: &PlanInput<'_>,
    key: &ComponentKey,
    service: &WantedService,
    want: &Wanted,
    named: bool,
) -> Action {
    let deployed = input.deployed.get(key);
    // Most components are as they were: what is equal needs neither a digest nor a comparison by field.
    let same = deployed.filter(|deployed| deployed.spec == want.spec);
    let digest = same.map_or_else(|| want.spec.digest(), |deployed| deployed.spec_digest);
    let observed = input.observed.get(key);
    let live = match observed {
        Some(Observed::Present(live)) => Some(live.as_ref()),
        _ => None,
    };
    let operator = input.purpose != Purpose::Auto;
    let stop_stands = deployed.is_some_and(|d| d.stopped_by.is_some()) && !(operator && named);
    let should_run = service.settings.active && !stop_stands;
    let before = deployed.map(|deployed| before_of(deployed, live));
    let mut action = Action {
        component: key.component.clone(),
        kind: ActionKind::None,
        reason: Reason::UpToDate,
        changes: match (same, deployed) {
            (None, Some(deployed)) => diff(&deployed.spec, &want.spec),
            _ => Vec::new(),
        },
        before,
        after: Some(After {
            spec: want.spec.clone(),
            spec_digest: digest,
            revision: want.revision,
            image: want.image.clone(),
            running: should_run,
        }),
        files: Vec::new(),
        clears_stop: operator && named && deployed.is_some_and(|d| d.stopped_by.is_some()),
        hold: match input.purpose {
            Purpose::Deploy if deployed.is_some_and(|d| d.held_at.is_some()) => HoldChange::Release,
            Purpose::DeployRevision | Purpose::Rollback
                if deployed.is_none_or(|d| d.held_at != Some(want.revision)) =>
            {
                HoldChange::Set
            }
            _ => HoldChange::Keep,
        },
        uncommitted: want.uncommitted,
        warnings: Vec::new(),
    };
    let untouched = |mut action: Action, reason| {
        // The revision and the spec stay what they were: nothing was deployed.
        action.kind = ActionKind::None;
        action.reason = reason;
        action.after = None;
        action.hold = HoldChange::Keep;
        action.clears_stop = false;
        action
    };

    if let Some(deployed) = deployed {
        if deployed.desired == DesiredState::Ignore {
            return untouched(action, Reason::UpToDate);
        }
        if let (true, Some(who)) = (stop_stands, &deployed.stopped_by) {
            return untouched(action, Reason::StoppedBy(who.clone()));
        }
        // The first deploy of what was taken over is an operator's: adopting stops nothing.
        if input.purpose == Purpose::Auto && deployed.is_only_adopted() {
            let reason = deployed.held_at.map_or(Reason::OnlyAdopted, Reason::Held);
            return untouched(action, reason);
        }
        if input.purpose == Purpose::Auto
            && let Some(held) = deployed.held_at
        {
            return kept(input, key, service, deployed, action.clone())
                .unwrap_or_else(|| untouched(action, Reason::Held(held)));
        }
    }
    if input.purpose == Purpose::Auto {
        let quarantined = input.quarantined.contains(&(key.clone(), digest));
        match deployed {
            None if quarantined => return untouched(action, Reason::Quarantined),
            // A service that is inactive stops whatever its spec.
            Some(deployed)
                if quarantined && deployed.spec_digest != digest && service.settings.active =>
            {
                return kept(input, key, service, deployed, action.clone())
                    .unwrap_or_else(|| untouched(action, Reason::Quarantined));
            }
            _ => {}
        }
    }
    let is_job = want.spec.kind.is_job();
    if is_job && input.purpose == Purpose::Rollback && !input.options.jobs {
        return untouched(action, Reason::JobNotRun);
    }
    if is_job && input.purpose == Purpose::Auto {
        return untouched(action, Reason::JobNotRun);
    }
    if !service.settings.active {
        return inactive(action, deployed, live);
    }
    let Some(deployed) = deployed else {
        action.kind = ActionKind::Create;
        action.reason = Reason::New;
        return action;
    };
    if input.options.force {
        action.kind = replace_or_create(observed);
        action.reason = Reason::Forced;
        return action;
    }
    let moved = input
        .moved_images
        .get(key)
        .filter(|image| **image != deployed.image);
    match &deployed.adopted {
        Some(departures) if !departures.is_empty() => {
            return adopted::replace(action, deployed, departures, observed, moved);
        }
        _ => {}
    }
    if deployed.spec_digest != digest {
        if let (None, Some(live)) = (moved, live)
            && let Some(fields) = adopted::accepted(deployed, &want.spec, live)
        {
            action.reason = Reason::Accepted(fields);
            if let Some(before) = &mut action.before {
                before.baseline = Some(live.fields.clone());
            }
            if let Some(after) = &mut action.after {
                after.image = Some(deployed.image.clone());
            }
            return action;
        }
        return changed(action, deployed, want, observed, moved);
    }
    if is_job {
        return action;
    }
    if let Some(image) = moved {
        action.kind = replace_or_create(observed);
        action.reason = Reason::ImageMoved;
        if let Some(after) = &mut action.after {
            after.image = Some(image.clone());
        }
        return action;
    }
    if let Some(after) = &mut action.after {
        after.image = Some(deployed.image.clone());
    }
    match observed {
        // It was done, and being removed begins nothing anew.
        Some(Observed::Absent) if deployed.ended && !operator => action.reason = Reason::Finished,
        Some(Observed::Absent) => {
            action.kind = ActionKind::Create;
            action.reason = Reason::ContainerMissing;
        }
        Some(Observed::Present(live)) => {
            let drifted = drifted_fields(deployed, live);
            // What did not converge when it was deployed would not converge now.
            let left = !operator && input.quarantined.contains(&(key.clone(), digest));
            if !drifted.is_empty() && !left {
                action.kind = ActionKind::Replace;
                action.reason = Reason::Drifted(drifted);
            } else if live.state == ContainerState::Paused {
                action.kind = ActionKind::Start;
                action.reason = Reason::Paused;
            } else if !live.state.is_running()
                && (operator || deployed.desired == DesiredState::Stopped)
            {
                // What ended by itself is its restart policy's; what was inactive is started again.
                not_running(&mut action, deployed, live);
            }
        }
        Some(Observed::Unknown { .. }) | None => {}
    }
    if deployed.is_only_adopted() && action.reason == Reason::UpToDate {
        action.reason = Reason::AdoptedAsItIs;
    }
    action
}

/// What is held, or whose next spec is quarantined, is repaired as it was deployed: it stays at its own
/// spec, image and revision. `None` where there is nothing to repair.
fn kept(
    input: &PlanInput<'_>,
    key: &ComponentKey,
    service: &WantedService,
    deployed: &Deployed,
    mut action: Action,
) -> Option<Action> {
    if !service.settings.active || !deployed.should_run() || deployed.spec.kind.is_job() {
        return None;
    }
    (action.kind, action.reason) = match input.observed.get(key)? {
        Observed::Absent if deployed.ended => return None,
        Observed::Absent => (ActionKind::Create, Reason::ContainerMissing),
        Observed::Present(live) => {
            let drifted = drifted_fields(deployed, live);
            let left = input
                .quarantined
                .contains(&(key.clone(), deployed.spec_digest));
            if !drifted.is_empty() && !left {
                (ActionKind::Replace, Reason::Drifted(drifted))
            } else if live.state == ContainerState::Paused {
                (ActionKind::Start, Reason::Paused)
            } else {
                return None;
            }
        }
        Observed::Unknown { .. } => return None,
    };
    action.changes.clear();
    action.uncommitted = false;
    action.hold = HoldChange::Keep;
    action.after = Some(After {
        spec: deployed.spec.clone(),
        spec_digest: deployed.spec_digest,
        revision: deployed.revision,
        image: Some(deployed.image.clone()),
        running: true,
    });
    Some(action)
}

fn not_running(action: &mut Action, deployed: &Deployed, live: &LiveContainer) {
    if let Some(who) = &deployed.stopped_by {
        action.kind = ActionKind::Start;
        action.reason = Reason::StoppedBy(who.clone());
        return;
    }
    if deployed.desired == DesiredState::Running && has_finished(deployed.spec.restart, &live.state)
    {
        action.reason = Reason::Finished;
        return;
    }
    action.kind = ActionKind::Start;
    action.reason = Reason::NotRunning(match live.state {
        ContainerState::Exited { code, .. } => Some(code),
        _ => None,
    });
}

fn inactive(
    mut action: Action,
    deployed: Option<&Deployed>,
    live: Option<&LiveContainer>,
) -> Action {
    action.reason = Reason::Inactive;
    let running = live.is_some_and(|live| live.state.is_running());
    match deployed {
        None => {
            action.kind = ActionKind::None;
            action.after = None;
            action.hold = HoldChange::Keep;
        }
        Some(deployed) => {
            // Also where it is down just now: its restart policy would start it again.
            if running || deployed.desired == DesiredState::Running {
                action.kind = ActionKind::Stop;
            }
            // The container keeps its spec; the new one waits for the service to be active again.
            if let Some(after) = &mut action.after {
                after.spec = deployed.spec.clone();
                after.spec_digest = deployed.spec_digest;
                after.image = Some(deployed.image.clone());
                after.running = false;
                if deployed.spec_digest != after.spec.digest() || !action.changes.is_empty() {
                    after.revision = deployed.revision;
                }
                // What is held is what stays.
                if action.hold == HoldChange::Set && deployed.held_at == Some(after.revision) {
                    action.hold = HoldChange::Keep;
                }
            }
            action.changes.clear();
        }
    }
    action
}

/// A new container for a deployed component: in place of the old one, unless that is known to be gone.
pub(super) fn replace_or_create(observed: Option<&Observed>) -> ActionKind {
    match observed {
        Some(Observed::Absent) => ActionKind::Create,
        Some(Observed::Present(_) | Observed::Unknown { .. }) | None => ActionKind::Replace,
    }
}

fn changed(
    mut action: Action,
    deployed: &Deployed,
    want: &Wanted,
    observed: Option<&Observed>,
    moved: Option<&ImageId>,
) -> Action {
    let live = match observed {
        Some(Observed::Present(live)) => Some(live.as_ref()),
        _ => None,
    };
    let fields = action
        .changes
        .iter()
        .map(|change| change.field.clone())
        .collect();
    action.reason = Reason::Changed(fields);
    let in_place = live
        .filter(|live| {
            live.state.is_running()
                && live.state != ContainerState::Paused
                && drifted_fields(deployed, live).is_empty()
        })
        .and_then(|_| file_changes_only(&deployed.spec, &want.spec));
    // Files that could be exchanged in place do not keep an image whose tag has moved.
    let Some(files) = in_place.filter(|_| moved.is_none()) else {
        if let (Some(image), Some(after)) = (moved, &mut action.after) {
            after.image = Some(image.clone());
        }
        action.kind = replace_or_create(observed);
        return action;
    };
    action.kind = files
        .iter()
        .map(|(_, on_change)| match on_change {
            OnChange::Recreate => ActionKind::Replace,
            OnChange::Restart => ActionKind::Restart,
            OnChange::Signal(_) => ActionKind::Signal,
            OnChange::None => ActionKind::None,
        })
        .min_by_key(|kind| match kind {
            ActionKind::Replace => 0,
            ActionKind::Restart => 1,
            ActionKind::Signal => 2,
            _ => 3,
        })
        .unwrap_or(ActionKind::Replace);
    if action.kind != ActionKind::Replace {
        if let Some(after) = &mut action.after {
            after.image = Some(deployed.image.clone());
        }
        action.files = files;
    }
    action
}

/// The fields in which a container differs from what was made.
fn drifted_fields(deployed: &Deployed, live: &LiveContainer) -> Vec<String> {
    field_drift(&deployed.baseline, live)
        .into_iter()
        .map(|difference| difference.field)
        .collect()
}

/// What stands in the way of one action.
fn obstacles(input: &PlanInput<'_>, key: &ComponentKey, action: &Action) -> Vec<Obstacle> {
    let mut found = Vec::new();
    if input.deployed.contains_key(key)
        && let Some(reason) = unseen(input, key)
    {
        found.push(unknown(key, reason));
    }
    if action.kind.creates() {
        let name = key.container_name();
        if let Some(id) = input.foreign_names.get(&name) {
            found.push(Obstacle {
                is_policy: false,
                reason: format!(
                    "the name {name} is taken by container {}, which is not managed",
                    id.short()
                ),
                hint: format!(
                    "take it over with: mcp adopt {key}; or rename or remove the container {name}, then deploy again"
                ),
            });
        }
        if let Some(forbidden) = input.forbidden.get(key) {
            found.extend(forbidden.iter().cloned());
        }
    }
    found
}
