//! Plans of start, stop, restart and purge: what an operator asks of what was deployed.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Action, ActionKind, After, Before, Blocked, Deployed, HoldChange, Obstacle, Plan, Reason,
    ServicePlan, ServiceSettings,
};
use crate::drift::has_finished;
use crate::image::Digest;
use crate::name::{ComponentKey, NodeName, ServiceName, Target};
use crate::observed::{ContainerState, DesiredState, LiveContainer, Observed};
use crate::revision::CommitId;

/// What these plans follow from.
#[derive(Debug, Clone, Copy)]
pub struct LifecycleInput<'a> {
    /// This node.
    pub node: &'a NodeName,
    /// The head, or the revision that stands for it.
    pub revision: CommitId,
    /// What was deployed.
    pub deployed: &'a BTreeMap<ComponentKey, Deployed>,
    /// The settings of each deployed service.
    pub settings: &'a BTreeMap<ServiceName, ServiceSettings>,
    /// What the engine says.
    pub observed: &'a BTreeMap<ComponentKey, Observed>,
}

fn live<'a>(input: &LifecycleInput<'a>, key: &ComponentKey) -> Option<&'a LiveContainer> {
    match input.observed.get(key) {
        Some(Observed::Present(live)) => Some(live.as_ref()),
        _ => None,
    }
}

fn is_unknown(input: &LifecycleInput<'_>, key: &ComponentKey) -> Option<String> {
    match input.observed.get(key) {
        Some(Observed::Unknown { reason }) => Some(reason.clone()),
        None => Some("it was not asked".to_owned()),
        _ => None,
    }
}

/// The skeleton of an action on what was deployed.
fn action_on(key: &ComponentKey, deployed: &Deployed, live: Option<&LiveContainer>) -> Action {
    Action {
        component: key.component.clone(),
        kind: ActionKind::None,
        reason: Reason::UpToDate,
        changes: Vec::new(),
        before: Some(Before {
            spec_digest: deployed.spec_digest,
            revision: deployed.revision,
            container: deployed.container.clone(),
            generation: deployed.generation,
            image: deployed.image.clone(),
            present: live.is_some(),
            running: live.is_some_and(|live| live.state.is_running()),
            stop_timeout: deployed.spec.stop_timeout,
            baseline: None,
        }),
        after: Some(After {
            spec: deployed.spec.clone(),
            spec_digest: deployed.spec_digest,
            revision: deployed.revision,
            image: Some(deployed.image.clone()),
            running: deployed.should_run(),
        }),
        files: Vec::new(),
        clears_stop: false,
        hold: HoldChange::Keep,
        uncommitted: false,
        warnings: Vec::new(),
    }
}

fn services_plan(
    input: &LifecycleInput<'_>,
    services: &BTreeSet<ServiceName>,
    decide: impl Fn(
        &ComponentKey,
        &Deployed,
        Option<&LiveContainer>,
        &ServiceSettings,
    ) -> Result<Action, Obstacle>,
) -> Plan {
    let plans = services
        .iter()
        .map(|service| {
            let settings = input.settings.get(service).copied().unwrap_or_default();
            let mut actions = Vec::new();
            let mut blocked = Vec::new();
            let mut any = false;
            for (key, deployed) in input.deployed.iter().filter(|(k, _)| k.service == *service) {
                any = true;
                if deployed.desired == DesiredState::Ignore {
                    continue;
                }
                let decision = match is_unknown(input, key) {
                    Some(reason) => Err(Obstacle {
                        is_policy: false,
                        reason: format!("the state of {key} is unknown: {reason}"),
                        hint: "bring the engine back and try again".to_owned(),
                    }),
                    None => decide(key, deployed, live(input, key), &settings),
                };
                match decision {
                    Ok(action) => actions.push(action),
                    Err(obstacle) => blocked.push(Blocked {
                        service: service.clone(),
                        component: Some(key.component.clone()),
                        obstacle,
                    }),
                }
            }
            if !any {
                blocked.push(Blocked {
                    service: service.clone(),
                    component: None,
                    obstacle: Obstacle {
                        is_policy: false,
                        reason: format!("{service} is not deployed on {}", input.node),
                        hint: format!("deploy it with: mcp deploy {service}"),
                    },
                });
            }
            ServicePlan {
                service: service.clone(),
                revision: input.revision,
                settings,
                actions,
                blocked,
            }
        })
        .collect();
    Plan::new(input.node, input.revision, Digest::of(b"lifecycle"), plans)
}

/// Plans the start of whole services: what does not run is started, and the operator's stop ends.
/// A job is never run.
#[must_use]
pub fn plan_start(input: &LifecycleInput<'_>, services: &BTreeSet<ServiceName>) -> Plan {
    services_plan(input, services, |key, deployed, live, settings| {
        if !settings.active {
            return Err(Obstacle {
                is_policy: false,
                reason: format!(
                    "{} is not active: its definition says `active = false`",
                    key.service
                ),
                hint: format!(
                    "set `active = true` in services/{}.toml, then: mcp deploy {}",
                    key.service, key.service
                ),
            });
        }
        let mut action = action_on(key, deployed, live);
        action.clears_stop = deployed.stopped_by.is_some();
        if deployed.spec.kind.is_job() {
            action.reason = Reason::JobNotRun;
            return Ok(action);
        }
        if let Some(after) = &mut action.after {
            after.running = true;
        }
        match live {
            None => {
                action.kind = ActionKind::Create;
                action.reason = Reason::ContainerMissing;
            }
            Some(live) if !live.state.is_running() || live.state == ContainerState::Paused => {
                action.kind = ActionKind::Start;
                action.reason = Reason::Asked;
            }
            Some(_) => {}
        }
        Ok(action)
    })
}

/// Plans what brings components back that an emptied engine took along: each as it was deployed, from
/// its spec and image, where it should run. Stops, what is inactive, jobs and what had ended for good stay
/// as they are. What was taken over is an operator's: its spec may not say all of it.
#[must_use]
pub fn plan_bring_back(input: &LifecycleInput<'_>, lost: &BTreeSet<ComponentKey>) -> Plan {
    let services = lost.iter().map(|key| key.service.clone()).collect();
    services_plan(input, &services, |key, deployed, live, settings| {
        let mut action = action_on(key, deployed, live);
        if live.is_some() || !lost.contains(key) {
            return Ok(action);
        }
        action.reason = match &deployed.stopped_by {
            Some(who) => Reason::StoppedBy(who.clone()),
            None if !settings.active || !deployed.should_run() => Reason::Inactive,
            None if deployed.spec.kind.is_job() => Reason::JobNotRun,
            None if deployed.adopted.is_some() => Reason::OnlyAdopted,
            None if deployed.ended => Reason::Finished,
            None => {
                action.kind = ActionKind::Create;
                Reason::EngineEmptied
            }
        };
        Ok(action)
    })
}

/// Plans the stop of whole services. What the operator stopped stays stopped.
#[must_use]
pub fn plan_stop(input: &LifecycleInput<'_>, services: &BTreeSet<ServiceName>) -> Plan {
    services_plan(input, services, |key, deployed, live, _| {
        let mut action = action_on(key, deployed, live);
        if let Some(after) = &mut action.after {
            after.running = false;
        }
        action.reason = Reason::Asked;
        if live.is_some_and(|live| live.state.is_running()) {
            action.kind = ActionKind::Stop;
        }
        Ok(action)
    })
}

/// Plans the restart of whole services: the same containers, stopped and started.
#[must_use]
pub fn plan_restart(input: &LifecycleInput<'_>, services: &BTreeSet<ServiceName>) -> Plan {
    services_plan(input, services, |key, deployed, live, settings| {
        let mut action = action_on(key, deployed, live);
        if deployed.spec.kind.is_job() {
            action.reason = Reason::JobNotRun;
            return Ok(action);
        }
        if !settings.active {
            return Err(Obstacle {
                is_policy: false,
                reason: format!(
                    "{} is not active: its definition says `active = false`",
                    key.service
                ),
                hint: format!(
                    "set `active = true` in services/{}.toml, then: mcp deploy {}",
                    key.service, key.service
                ),
            });
        }
        if let Some(who) = &deployed.stopped_by {
            return Err(Obstacle {
                is_policy: false,
                reason: format!("{key} was stopped by {who}"),
                hint: format!("start it with: mcp start {}", key.service),
            });
        }
        action.reason = Reason::Asked;
        match live {
            None => {
                action.kind = ActionKind::Create;
                action.reason = Reason::ContainerMissing;
            }
            Some(live) if live.state.is_running() => action.kind = ActionKind::Restart,
            Some(live) if has_finished(deployed.spec.restart, &live.state) => {
                action.reason = Reason::Finished;
            }
            Some(_) => action.kind = ActionKind::Start,
        }
        Ok(action)
    })
}

/// Plans the removal of what the head does not want: orphaned services, and components that their
/// service no longer has. `wanted` is what the head gives to this node.
#[must_use]
pub fn plan_purge(
    input: &LifecycleInput<'_>,
    targets: Option<&[Target]>,
    wanted: &BTreeSet<ComponentKey>,
) -> Plan {
    let mut chosen: Vec<(&ComponentKey, &Deployed)> = Vec::new();
    let mut refused: Vec<Blocked> = Vec::new();
    for (key, deployed) in input.deployed {
        let covered = targets.is_none_or(|targets| targets.iter().any(|t| t.covers(key)));
        if !covered || deployed.desired == DesiredState::Ignore {
            continue;
        }
        if wanted.contains(key) {
            if targets.is_some() {
                refused.push(Blocked {
                    service: key.service.clone(),
                    component: Some(key.component.clone()),
                    obstacle: Obstacle {
                        is_policy: false,
                        reason: format!("{key} is wanted by {}", input.revision.short()),
                        hint: format!(
                            "remove it from services/{}.toml and sync first; purge takes only what no definition wants",
                            key.service
                        ),
                    },
                });
            }
            continue;
        }
        // It was never in a definition, so that no definition has dropped it.
        if deployed.is_only_adopted() {
            if targets.is_some() {
                refused.push(Blocked {
                    service: key.service.clone(),
                    component: Some(key.component.clone()),
                    obstacle: Obstacle {
                        is_policy: false,
                        reason: format!(
                            "{key} was adopted and never deployed: no definition has dropped it"
                        ),
                        hint: format!("let go of it with: mcp forget {key}"),
                    },
                });
            }
            continue;
        }
        chosen.push((key, deployed));
    }
    plan_of(input, targets, chosen, refused)
}

fn plan_of(
    input: &LifecycleInput<'_>,
    targets: Option<&[Target]>,
    chosen: Vec<(&ComponentKey, &Deployed)>,
    refused: Vec<Blocked>,
) -> Plan {
    let mut services: BTreeMap<ServiceName, ServicePlan> = BTreeMap::new();
    let empty = |service: &ServiceName| ServicePlan {
        service: service.clone(),
        revision: input.revision,
        settings: input.settings.get(service).copied().unwrap_or_default(),
        actions: Vec::new(),
        blocked: Vec::new(),
    };
    for target in targets.into_iter().flatten() {
        services
            .entry(target.service.clone())
            .or_insert_with(|| empty(&target.service));
    }
    for (key, deployed) in chosen {
        let mut action = action_on(key, deployed, live(input, key));
        action.kind = ActionKind::Remove;
        action.reason = Reason::NoLongerDefined;
        action.after = None;
        let plan = services
            .entry(key.service.clone())
            .or_insert_with(|| empty(&key.service));
        if let Some(reason) = is_unknown(input, key) {
            plan.blocked.push(Blocked {
                service: key.service.clone(),
                component: Some(key.component.clone()),
                obstacle: Obstacle {
                    is_policy: false,
                    reason: format!("the state of {key} is unknown: {reason}"),
                    hint: "bring the engine back and try again".to_owned(),
                },
            });
        }
        plan.actions.push(action);
    }
    for blocked in refused {
        services
            .entry(blocked.service.clone())
            .or_insert_with(|| empty(&blocked.service))
            .blocked
            .push(blocked);
    }
    Plan::new(
        input.node,
        input.revision,
        Digest::of(b"purge"),
        services.into_values().collect(),
    )
}
