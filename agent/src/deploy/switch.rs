//! Switching: after the line, a component at a time in the order of dependencies, independent ones
//! side by side.
//!
//! Each call settles doubt by looking, so that a switch that a crash cut off is simply made again:
//! what is done already stays done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use mcp_spec::component::ComponentSpec;
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerId, ContainerState, LiveContainer};
use mcp_spec::plan::{Action, ActionKind};
use tokio::sync::watch;
use tokio::time::Instant;

use super::execution::Execution;
use super::failure::PartFailure;
use super::gate;
use super::prepare::{Made, generation_name};
use super::remake::start_registered;
use super::steps::{
    exchange_files, job_has_begun, look, rename, send_signals, start, start_job, stop,
};
use crate::registry::StepPhase;

/// The journal's word for one component's switch.
pub(super) const STEP_SWITCH: &str = "switch";

/// One component after its switch.
#[derive(Debug, Clone)]
pub(super) struct Switched {
    /// The container after its gate; `None` where it was stopped or removed.
    pub live: Option<LiveContainer>,
    /// How long nothing ran, where something ran before.
    pub downtime: Duration,
    /// How long switch and gate took.
    pub duration: Duration,
}

/// How far a component's dependants may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Waiting,
    Passed,
    Failed,
}

/// What came of each component, in the order in which they were touched.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Those that passed.
    pub switched: BTreeMap<ComponentName, Switched>,
    /// Those that failed or were not reached.
    pub failed: BTreeMap<ComponentName, PartFailure>,
}

/// Switches every component of the plan.
pub(super) async fn switch_all(
    execution: &Execution,
    made: &BTreeMap<ComponentName, Made>,
    deadline: Instant,
) -> Outcome {
    let actions: Vec<&Action> = execution
        .plan
        .actions
        .iter()
        .filter(|action| action.kind != ActionKind::None || !action.files.is_empty())
        .collect();
    let turns: BTreeMap<&ComponentName, watch::Sender<Turn>> = actions
        .iter()
        .map(|action| (&action.component, watch::channel(Turn::Waiting).0))
        .collect();
    let results = join_all(actions.iter().map(|action| {
        let first = predecessors(execution, action, &actions);
        let waits: Vec<(&ComponentName, watch::Receiver<Turn>)> = first
            .into_iter()
            .filter_map(|name| turns.get(name).map(|turn| (name, turn.subscribe())))
            .collect();
        let turn = &turns[&action.component];
        async move {
            let result = in_turn(execution, action, made, waits, deadline).await;
            turn.send_replace(if result.is_ok() {
                Turn::Passed
            } else {
                Turn::Failed
            });
            (action.component.clone(), result)
        }
    }))
    .await;
    let mut outcome = Outcome::default();
    for (component, result) in results {
        match result {
            Ok(switched) => {
                outcome.switched.insert(component, switched);
            }
            Err(failure) => {
                outcome.failed.insert(component, failure);
            }
        }
    }
    outcome
}

/// The components that come before this one: what it depends on, and, where it is stopped, what
/// depends on it.
fn predecessors<'a>(
    execution: &'a Execution,
    action: &'a Action,
    actions: &[&'a Action],
) -> BTreeSet<&'a ComponentName> {
    let ends = |action: &Action| matches!(action.kind, ActionKind::Stop | ActionKind::Remove);
    if ends(action) {
        return actions
            .iter()
            .filter(|other| ends(other))
            .filter(|other| {
                execution
                    .old_specs
                    .get(&other.component)
                    .is_some_and(|spec| spec.depends_on.contains(&action.component))
            })
            .map(|other| &other.component)
            .collect();
    }
    let Some(after) = &action.after else {
        return BTreeSet::new();
    };
    let mut first: BTreeSet<&ComponentName> = after.spec.depends_on.iter().collect();
    if action.kind.creates() {
        // A port of the host that a component gives up, as when it is renamed, is taken after that.
        // What ends waits only for what ends, so no circle can come of this.
        first.extend(
            actions
                .iter()
                .filter(|other| ends(other))
                .filter(|other| {
                    execution
                        .old_specs
                        .get(&other.component)
                        .is_some_and(|old| share_a_port(old, &after.spec))
                })
                .map(|other| &other.component),
        );
    }
    first
}

/// Whether two components publish the same port of the host.
pub(super) fn share_a_port(a: &ComponentSpec, b: &ComponentSpec) -> bool {
    a.ports.iter().any(|of_a| {
        b.ports
            .iter()
            .any(|of_b| of_a.host == of_b.host && of_a.protocol == of_b.protocol)
    })
}

async fn in_turn(
    execution: &Execution,
    action: &Action,
    made: &BTreeMap<ComponentName, Made>,
    waits: Vec<(&ComponentName, watch::Receiver<Turn>)>,
    deadline: Instant,
) -> Result<Switched, PartFailure> {
    for (dependency, mut turn) in waits {
        let passed = turn
            .wait_for(|turn| *turn != Turn::Waiting)
            .await
            .is_ok_and(|turn| *turn == Turn::Passed);
        if !passed {
            return Err(PartFailure::Dependency {
                dependency: dependency.clone(),
            });
        }
    }
    if execution.gives_up() {
        return Err(PartFailure::NotReached);
    }
    let began = Instant::now();
    let result = one(
        execution,
        action,
        made.get(&action.component),
        deadline,
        began,
    )
    .await;
    if let Err(failure) = &result
        && !matches!(failure, PartFailure::NotReached)
    {
        execution
            .feed
            .tell(Some(&action.component), "failed", failure.to_string());
        // Where failures are left nothing is put back, and what does not depend on this one goes on.
        if !execution.leaves_failures() {
            execution.give_up();
        }
    }
    result
}

/// Marks that a component's containers are about to be touched.
async fn begin(execution: &Execution, action: &Action) -> Result<(), PartFailure> {
    let step = execution.step(
        Some(&action.component),
        STEP_SWITCH,
        StepPhase::Begun,
        &action.kind,
    );
    // Journalled first: what could not be written down, as on a full disk, is not touched, and so there is
    // nothing to put back.
    execution.journal(vec![step]).await?;
    execution.touch(&action.component);
    Ok(())
}

async fn one(
    execution: &Execution,
    action: &Action,
    made: Option<&Made>,
    deadline: Instant,
    began: Instant,
) -> Result<Switched, PartFailure> {
    let key = execution.key(&action.component);
    // What ends is marked before it waits for a slot: one sync of the journal for all of them. Nothing
    // was made for it that a mark too many would keep.
    let ends = matches!(action.kind, ActionKind::Stop | ActionKind::Remove);
    if ends {
        begin(execution, action).await?;
    }
    let slot = execution
        .context
        .slots
        .acquire()
        .await
        .map_err(|_| PartFailure::NotReached)?;
    if execution.gives_up() {
        return Err(PartFailure::NotReached);
    }
    if !ends {
        begin(execution, action).await?;
    }
    let mut downtime = Duration::ZERO;
    let container = match action.kind {
        ActionKind::Create | ActionKind::Replace => {
            let made = made.ok_or(PartFailure::NotReached)?;
            let down_since = take_over(execution, &key, action, Some(made), deadline).await?;
            free_ports(execution, action, deadline).await?;
            let component = &action.component;
            if !is_job(action) {
                start(execution, component, &made.container, deadline).await?;
            } else if !job_began(execution, &made.container, deadline).await? {
                start_job(execution, component, &made.container, deadline).await?;
            }
            downtime = down_since.map_or(Duration::ZERO, |since| since.elapsed());
            Some(made.container.clone())
        }
        ActionKind::Restart => {
            let before = action.before.as_ref().ok_or(PartFailure::NotReached)?;
            exchange_files(execution, &key, action, before.generation).await?;
            let since = Instant::now();
            execution.goes_down(&action.component);
            stop(execution, action, &before.container, deadline).await?;
            let component = &action.component;
            let started =
                start_registered(execution, component, &before.container, deadline).await?;
            downtime = since.elapsed();
            Some(started)
        }
        ActionKind::Signal => {
            let before = action.before.as_ref().ok_or(PartFailure::NotReached)?;
            exchange_files(execution, &key, action, before.generation).await?;
            send_signals(execution, action, &before.container).await?;
            Some(before.container.clone())
        }
        ActionKind::Start => {
            let before = action.before.as_ref().ok_or(PartFailure::NotReached)?;
            let component = &action.component;
            Some(start_registered(execution, component, &before.container, deadline).await?)
        }
        ActionKind::Stop | ActionKind::Remove => {
            if let Some(before) = action.before.as_ref().filter(|before| before.present) {
                stop(execution, action, &before.container, deadline).await?;
            }
            None
        }
        ActionKind::None => {
            if let Some(before) = &action.before {
                exchange_files(execution, &key, action, before.generation).await?;
            }
            None
        }
    };
    let live = match &container {
        Some(container) => Some(look(execution, container, deadline).await?),
        None => None,
    };
    drop(slot);
    let live = match (live, &action.after) {
        (Some(live), Some(after)) => {
            let passing = gate::pass(
                &execution.context,
                &execution.feed,
                &key,
                &after.spec,
                &live,
                deadline,
            );
            let passed = tokio::select! {
                biased;
                // Another component failed: this one will be put back, whatever its gate says.
                () = execution.given_up() => return Err(PartFailure::NotReached),
                passed = passing => passed?,
            };
            let word = if after.spec.kind.is_job() {
                "completed"
            } else {
                "healthy"
            };
            execution.feed.tell(Some(&action.component), word, "");
            Some(passed)
        }
        (live, _) => live,
    };
    Ok(Switched {
        live,
        downtime,
        duration: began.elapsed(),
    })
}

fn is_job(action: &Action) -> bool {
    action
        .after
        .as_ref()
        .is_some_and(|after| after.spec.kind.is_job())
}

/// Whether the container of a job was started before a crash cut its deployment off: a job is run
/// once, so its gate judges the run that there was. One that was cut off itself, as by a reboot, is
/// a failure.
async fn job_began(
    execution: &Execution,
    container: &ContainerId,
    deadline: Instant,
) -> Result<bool, PartFailure> {
    if !execution.is_resumed() || !job_has_begun(execution, container).await? {
        return Ok(false);
    }
    let live = look(execution, container, deadline).await?;
    match live.state {
        ContainerState::Created => Err(PartFailure::Interrupted),
        _ => Ok(true),
    }
}

/// Stops what holds a port of the host that the new container takes and that a later part of the
/// deployment gives up: where two components exchange their ports both stop before either starts.
async fn free_ports(
    execution: &Execution,
    action: &Action,
    deadline: Instant,
) -> Result<(), PartFailure> {
    let Some(after) = &action.after else {
        return Ok(());
    };
    for other in &execution.plan.actions {
        let holds = other.kind == ActionKind::Replace
            && other.component != action.component
            && execution
                .old_specs
                .get(&other.component)
                .is_some_and(|old| share_a_port(old, &after.spec));
        let needs_this_one = other
            .after
            .as_ref()
            .is_some_and(|other| other.spec.depends_on.contains(&action.component));
        // What is left as it failed is not put back, so it may not take others along.
        if !holds || (execution.leaves_failures() && needs_this_one) {
            continue;
        }
        execution
            .journal(vec![execution.step(
                Some(&other.component),
                STEP_SWITCH,
                StepPhase::Begun,
                &other.kind,
            )])
            .await?;
        execution.touch(&other.component);
        let key = execution.key(&other.component);
        take_over(execution, &key, other, None, deadline).await?;
    }
    Ok(())
}

/// Gives the new container the name and stops the old one. Tells since when nothing runs.
async fn take_over(
    execution: &Execution,
    key: &ComponentKey,
    action: &Action,
    made: Option<&Made>,
    deadline: Instant,
) -> Result<Option<Instant>, PartFailure> {
    let name = key.container_name();
    let mut since = None;
    if let Some(before) = action.before.as_ref().filter(|before| before.present) {
        rename(
            execution,
            &before.container,
            &generation_name(key, before.generation),
            deadline,
        )
        .await?;
        if let Some(made) = made.filter(|made| made.name != name) {
            take_name(execution, key, &made.container, deadline).await?;
        }
        // Also where the plan saw it down: its restart policy may have started it since.
        if before.running {
            since = Some(Instant::now());
            execution.goes_down(&action.component);
        }
        stop(execution, action, &before.container, deadline).await?;
    } else if let Some(made) = made.filter(|made| made.name != name) {
        take_name(execution, key, &made.container, deadline).await?;
    }
    Ok(since)
}

/// Gives a container its component's name. What bears the name and is registered nowhere, as after a
/// deployment that could not be put back, makes room where the agent made it for this component.
async fn take_name(
    execution: &Execution,
    key: &ComponentKey,
    container: &ContainerId,
    deadline: Instant,
) -> Result<(), PartFailure> {
    let name = key.container_name();
    let Err(failure) = rename(execution, container, &name, deadline).await else {
        return Ok(());
    };
    let runtime = &execution.context.runtime;
    match runtime.inspect(&name).await {
        Ok(Some(live)) if live.id != *container && execution.is_debris(key, &live).await => {
            execution.remove_container(&key.component, &live.id).await;
            rename(execution, container, &name, deadline).await
        }
        _ => Err(failure),
    }
}
