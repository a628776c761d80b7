//! The single steps of a switch and of its compensation: each settles doubt by looking, and can be
//! made again.

use std::collections::BTreeSet;
use std::time::Duration;

use mcp_spec::component::OnChange;
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerId, ContainerState, LiveContainer};
use mcp_spec::plan::{Action, ActionKind};
use tokio::time::{Instant, sleep};

use super::context::{ATTEMPT, IN_FLIGHT, Settled};
use super::execution::Execution;
use super::failure::PartFailure;
use super::secrets::lay_ready;
use crate::blocking::blocking;
use crate::runtime::RuntimeError;

/// How long one attempt at a stop may take beyond the grace: as long as the engine's own call.
const STOP_ATTEMPT: Duration = Duration::from_secs(30);

/// How often a job's container is looked at where it is not known whether it began.
const JOB_LOOK_PACE: Duration = Duration::from_millis(100);

/// How often an engine that did not answer is asked again how a container looks.
const LOOK_PACE: Duration = Duration::from_millis(500);

/// Renames a container; one that has the name already is done.
pub(super) async fn rename(
    execution: &Execution,
    container: &ContainerId,
    name: &str,
    deadline: Instant,
) -> Result<(), PartFailure> {
    let has_name = |live: Option<&LiveContainer>| live.is_some_and(|live| live.name == name);
    rename_until(execution, container, name, deadline, has_name).await
}

/// Renames a container that gives its name up; one that is gone has none.
pub(super) async fn rename_away(
    execution: &Execution,
    container: &ContainerId,
    name: &str,
    deadline: Instant,
) -> Result<(), PartFailure> {
    let gave_up = |live: Option<&LiveContainer>| live.is_none_or(|live| live.name == name);
    rename_until(execution, container, name, deadline, gave_up).await
}

async fn rename_until(
    execution: &Execution,
    container: &ContainerId,
    name: &str,
    deadline: Instant,
    is_done: impl Fn(Option<&LiveContainer>) -> bool,
) -> Result<(), PartFailure> {
    let context = &execution.context;
    let call = || context.runtime.rename(container, name);
    done(
        context
            .settle(container.as_str(), deadline, ATTEMPT, call, is_done)
            .await,
        "renaming the container",
    )
}

/// Starts a job's container, once: where the engine's answer is lost, looking tells whether the job
/// began, and a start that may still come about is not made again.
pub(super) async fn start_job(
    execution: &Execution,
    component: &ComponentName,
    container: &ContainerId,
    deadline: Instant,
) -> Result<(), PartFailure> {
    execution.feed.tell(Some(component), "starting", "");
    let context = &execution.context;
    loop {
        let source = match context.runtime.start(container).await {
            Ok(()) => return Ok(()),
            Err(source) => source,
        };
        if source.is_uncertain() {
            return if job_has_begun(execution, container).await? {
                Ok(())
            } else {
                Err(PartFailure::Interrupted)
            };
        }
        // Nothing was begun. Only an engine that is away is asked again.
        if !source.is_away() || Instant::now() >= deadline {
            let doing = "starting the container";
            return Err(PartFailure::Engine { doing, source });
        }
        context.engine_was_away().await;
        sleep(JOB_LOOK_PACE).await;
    }
}

/// Whether a job's container was ever started, a start that was under way a moment ago included.
pub(super) async fn job_has_begun(
    execution: &Execution,
    container: &ContainerId,
) -> Result<bool, PartFailure> {
    let context = &execution.context;
    let doing = "looking at the job's container";
    let mut until = Instant::now() + IN_FLIGHT;
    loop {
        match context.runtime.inspect(container.as_str()).await {
            Ok(Some(live)) => {
                let is_new = live.state == ContainerState::Created && live.started_at.is_none();
                if !is_new {
                    return Ok(true);
                }
                if Instant::now() >= until {
                    return Ok(false);
                }
            }
            Ok(None) => {
                let what = format!("container {}", container.short());
                let source = RuntimeError::NotFound { what };
                return Err(PartFailure::Engine { doing, source });
            }
            Err(source) if source.is_away() => {
                if context.engine_was_away().await {
                    until = Instant::now() + IN_FLIGHT;
                }
            }
            Err(source) => return Err(PartFailure::Engine { doing, source }),
        }
        sleep(JOB_LOOK_PACE).await;
    }
}

/// Starts a container and tells so.
pub(super) async fn start(
    execution: &Execution,
    component: &ComponentName,
    container: &ContainerId,
    deadline: Instant,
) -> Result<(), PartFailure> {
    execution.feed.tell(Some(component), "starting", "");
    lay_ready(execution, component, container).await?;
    let context = &execution.context;
    let call = || context.runtime.start(container);
    let runs = |live: Option<&LiveContainer>| {
        live.is_some_and(|live| matches!(live.state, ContainerState::Running { .. }))
    };
    done(
        context
            .settle(container.as_str(), deadline, ATTEMPT, call, runs)
            .await,
        "starting the container",
    )
}

/// Stops a container and tells so; one that is gone is stopped.
pub(super) async fn stop(
    execution: &Execution,
    action: &Action,
    container: &ContainerId,
    deadline: Instant,
) -> Result<(), PartFailure> {
    execution.feed.tell(Some(&action.component), "stopping", "");
    let grace = action
        .before
        .as_ref()
        .map_or(Duration::from_secs(10), |before| {
            before.stop_timeout.as_duration()
        });
    stop_container(execution, container, grace, deadline).await
}

/// Stops a container; one that is gone is stopped.
pub(super) async fn stop_container(
    execution: &Execution,
    container: &ContainerId,
    grace: Duration,
    deadline: Instant,
) -> Result<(), PartFailure> {
    let context = &execution.context;
    let call = || context.runtime.stop(container, grace);
    let stopped = |live: Option<&LiveContainer>| live.is_none_or(|live| !live.state.is_running());
    done(
        context
            .settle(
                container.as_str(),
                deadline,
                grace + STOP_ATTEMPT,
                call,
                stopped,
            )
            .await,
        "stopping the container",
    )
}

fn done(settled: Settled, doing: &'static str) -> Result<(), PartFailure> {
    match settled {
        Settled::Done => Ok(()),
        Settled::Failed(source) => Err(PartFailure::Engine { doing, source }),
    }
}

/// How a container looks now; one that is gone is a failure. An engine that does not say is asked again
/// until `deadline`: what was switched runs meanwhile.
pub(super) async fn look(
    execution: &Execution,
    container: &ContainerId,
    deadline: Instant,
) -> Result<LiveContainer, PartFailure> {
    let doing = "looking at the container";
    let runtime = &execution.context.runtime;
    loop {
        let source = match runtime.inspect(container.as_str()).await {
            Ok(Some(live)) => return Ok(live),
            Ok(None) => RuntimeError::NotFound {
                what: format!("container {}", container.short()),
            },
            Err(error) if error.is_away() && Instant::now() + LOOK_PACE < deadline => {
                sleep(LOOK_PACE).await;
                continue;
            }
            Err(error) => error,
        };
        return Err(PartFailure::Engine { doing, source });
    }
}

/// Puts the changed files where the container mounts them.
pub(super) async fn exchange_files(
    execution: &Execution,
    key: &ComponentKey,
    action: &Action,
    generation: u64,
) -> Result<(), PartFailure> {
    let Some(after) = &action.after else {
        return Ok(());
    };
    let in_place = action.kind != ActionKind::Restart;
    for (target, _) in &action.files {
        let Some(file) = after.spec.files.get(target) else {
            continue;
        };
        let bytes = execution
            .context
            .file_bytes(after.revision, &file.from)
            .await?;
        let (staging, key, target, file) = (
            execution.context.staging_for_engine().await,
            key.clone(),
            target.clone(),
            file.clone(),
        );
        blocking(move || staging.exchange(&key, generation, &target, &file, &bytes, in_place))
            .await?;
    }
    Ok(())
}

/// Sends each signal that the changed files ask for, once.
pub(super) async fn send_signals(
    execution: &Execution,
    action: &Action,
    container: &ContainerId,
) -> Result<(), PartFailure> {
    let signals: BTreeSet<&String> = action
        .files
        .iter()
        .filter_map(|(_, on_change)| match on_change {
            OnChange::Signal(signal) => Some(signal),
            _ => None,
        })
        .collect();
    for signal in signals {
        execution
            .context
            .runtime
            .signal(container, signal)
            .await
            .map_err(|source| PartFailure::Engine {
                doing: "signalling the container",
                source,
            })?;
    }
    Ok(())
}
