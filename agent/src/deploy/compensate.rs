//! Compensating: what was touched is put back, in reverse order, so that what ran before runs again.
//!
//! Like a switch, each step settles doubt by looking and can be made again after a crash. While the
//! engine is away compensation waits for it: there is nothing better to do, and giving up would
//! leave nothing running.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::ContainerId;
use mcp_spec::plan::{Action, ActionKind};
use tokio::time::{Instant, sleep};

use super::execution::Execution;
use super::failure::PartFailure;
use super::feed::Ended;
use super::outcome;
use super::prepare::{Made, generation_name};
use super::remake::start_registered;
use super::steps::{rename, rename_away, send_signals, stop_container};
use super::switch::{Outcome as Switching, share_a_port};
use crate::blocking::blocking;
use crate::registry::{DeploymentRow, DeploymentState, Outcome, StepPhase, Trigger};
use crate::runtime::LogOptions;

/// How long compensation waits for an engine that is away.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often a component is put back before it is given up: within about six seconds.
const TRIES: u32 = 7;

/// First pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Log lines that stay with a deployment of a container that failed its gate.
const KEPT_LINES: u32 = 200;

/// Longest time that reading these lines may take.
const LOG_WAIT: Duration = Duration::from_secs(5);

/// What became of one component.
#[derive(Debug)]
pub(super) enum PutBack {
    /// What ran before runs again, after so long a time in which nothing ran.
    Restored {
        /// Counted from the stop of the old container where this process made it.
        downtime: Duration,
    },
    /// There was nothing before; the new container is stopped and kept for its logs.
    Stopped,
}

impl Execution {
    /// Puts back what was touched, in reverse.
    pub(super) async fn compensate(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
        switching: Switching,
    ) -> Ended {
        // A crash in the compensation does not forget what it is for.
        let causes = switching
            .failed
            .iter()
            .filter(|(_, failure)| !failure.is_consequence())
            .map(|(component, failure)| {
                let cause = super::recover::Cause {
                    text: outcome::failure_chain(failure),
                    gate: failure.is_gate(),
                };
                self.step(
                    Some(component),
                    super::recover::STEP_FAIL,
                    StepPhase::Done,
                    &cause,
                )
            })
            .collect();
        if let Err(error) = self
            .context
            .registry
            .set_state(self.id.clone(), DeploymentState::Compensating, None, causes)
            .await
        {
            tracing::error!(deployment = %self.id, %error, "cannot journal the compensation; going on with it");
        }
        let logs = self.kept_logs(&made, &switching).await;
        self.put_all_back(row, made, switching, logs).await
    }

    /// The stop did not come about: what ran is wanted again, reached or not, and what had been
    /// stopped before is stopped as it was.
    async fn take_stop_back(&self) {
        for action in &self.plan.actions {
            let ran = action.before.as_ref().is_some_and(|before| before.running);
            let stop = match self.old.get(&action.component) {
                // After a crash the row tells of this very stop.
                _ if self.is_resumed() && ran => None,
                Some(old) if !self.is_resumed() => old.stopped_by.clone(),
                _ => continue,
            };
            let registry = &self.context.registry;
            self.context
                .insist("that a stop did not come about", || {
                    let keys = vec![self.key(&action.component)];
                    registry.set_stop(keys, stop.clone(), Vec::new())
                })
                .await;
        }
    }

    /// Stops new containers that hold a port of the host which the old one of another component takes
    /// again.
    async fn free_ports_for(
        &self,
        component: &ComponentName,
        made: &BTreeMap<ComponentName, Made>,
    ) -> Result<(), PartFailure> {
        let Some(old) = self.old_specs.get(component) else {
            return Ok(());
        };
        for (other, made) in made.iter().filter(|(other, _)| *other != component) {
            let Some(action) = self.action(other).filter(|_| self.is_touched(other)) else {
                continue;
            };
            let after = action.after.as_ref();
            if after.is_some_and(|after| share_a_port(&after.spec, old)) {
                let deadline = Instant::now() + PATIENCE;
                stop_container(self, &made.container, grace(action), deadline).await?;
            }
        }
        Ok(())
    }

    /// Puts a component back, and does not give up at the first refusal: nothing would run. An engine
    /// that is away is waited for.
    async fn insist_on_putting_back(
        &self,
        action: &Action,
        made: &BTreeMap<ComponentName, Made>,
    ) -> Result<PutBack, PartFailure> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES {
            match self.put_one_back(action, made).await {
                Ok(outcome) => return Ok(outcome),
                Err(failure) => {
                    tracing::warn!(deployment = %self.id, component = %action.component, %failure, "cannot put back what ran before; trying again");
                }
            }
            self.context.engine_was_away().await;
            sleep(pause).await;
            pause *= 2;
        }
        self.put_one_back(action, made).await
    }

    async fn put_one_back(
        &self,
        action: &Action,
        made: &BTreeMap<ComponentName, Made>,
    ) -> Result<PutBack, PartFailure> {
        self.free_ports_for(&action.component, made).await?;
        put_back(self, action, made.get(&action.component)).await
    }

    /// The compensation itself, which a crash can cut off and recovery makes again.
    pub(super) async fn put_all_back(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
        switching: Switching,
        logs: BTreeMap<ComponentName, Vec<String>>,
    ) -> Ended {
        let mut put = BTreeMap::new();
        let mut stuck = BTreeMap::new();
        for component in self.touched().into_iter().rev() {
            let Some(action) = self.action(&component) else {
                continue;
            };
            match self.insist_on_putting_back(action, &made).await {
                Ok(outcome) => {
                    put.insert(component, outcome);
                }
                Err(failure) => {
                    stuck.insert(component, failure);
                }
            }
        }
        if self.order.trigger == Trigger::Stop {
            self.take_stop_back().await;
        }
        clear_new(self, &made, &put, &stuck).await;
        self.drop_images(made.values().map(|made| made.image.clone()))
            .await;
        self.drop_networks(
            self.plan
                .actions
                .iter()
                .filter_map(|action| action.after.as_ref())
                .map(|after| &after.spec),
        )
        .await;
        let restored = put
            .values()
            .any(|outcome| matches!(outcome, PutBack::Restored { .. }));
        let (state, outcome) = if stuck.is_empty() && restored {
            (DeploymentState::RolledBack, Outcome::RolledBack)
        } else {
            (DeploymentState::Failed, Outcome::Failed)
        };
        let records = outcome::compensated(self, &made, &switching, &put, &stuck, &logs);
        let error = outcome::failure_text(self, &switching.failed);
        let quarantined = outcome::quarantined(self, &made, &switching);
        self.finish_with(row, state, outcome, error, records, quarantined)
            .await
    }

    pub(super) async fn kept_logs(
        &self,
        made: &BTreeMap<ComponentName, Made>,
        switching: &Switching,
    ) -> BTreeMap<ComponentName, Vec<String>> {
        let mut logs = BTreeMap::new();
        for (component, failure) in &switching.failed {
            if !matches!(failure, PartFailure::Gate(_)) {
                continue;
            }
            let container = made
                .get(component)
                .map(|made| made.container.clone())
                .or_else(|| {
                    self.action(component)
                        .and_then(|action| action.before.as_ref())
                        .map(|before| before.container.clone())
                });
            if let Some(container) = container {
                logs.insert(component.clone(), last_lines(self, &container).await);
            }
        }
        logs
    }
}

/// Puts one component back. `made` is its new container, where one was made.
pub(super) async fn put_back(
    execution: &Execution,
    action: &Action,
    made: Option<&Made>,
) -> Result<PutBack, PartFailure> {
    let key = execution.key(&action.component);
    let deadline = Instant::now() + PATIENCE;
    let restored = || PutBack::Restored {
        downtime: execution.down_for(&action.component),
    };
    execution
        .feed
        .tell(Some(&action.component), "compensating", "");
    let outcome = match action.kind {
        ActionKind::Create => {
            if let Some(made) = made {
                stop_container(execution, &made.container, grace(action), deadline).await?;
            }
            PutBack::Stopped
        }
        ActionKind::Replace => {
            replace_back(execution, &key, action, made, deadline).await?;
            restored()
        }
        ActionKind::Restart => {
            if let Some(before) = &action.before {
                restore_files(execution, &key, action, before.generation, false).await?;
                stop_container(execution, &before.container, grace(action), deadline).await?;
                start_registered(execution, &action.component, &before.container, deadline).await?;
            }
            restored()
        }
        ActionKind::Signal | ActionKind::None => {
            if let Some(before) = &action.before {
                restore_files(execution, &key, action, before.generation, true).await?;
                if before.running {
                    start_registered(execution, &action.component, &before.container, deadline)
                        .await?;
                }
                send_signals(execution, action, &before.container).await?;
            }
            restored()
        }
        ActionKind::Start => {
            if let Some(before) = &action.before {
                stop_container(execution, &before.container, grace(action), deadline).await?;
            }
            PutBack::Stopped
        }
        ActionKind::Stop | ActionKind::Remove => {
            if let Some(before) = action.before.as_ref().filter(|before| before.running) {
                start_registered(execution, &action.component, &before.container, deadline).await?;
            }
            restored()
        }
    };
    if matches!(outcome, PutBack::Restored { .. }) {
        execution.feed.tell(Some(&action.component), "restored", "");
    }
    Ok(outcome)
}

async fn replace_back(
    execution: &Execution,
    key: &ComponentKey,
    action: &Action,
    made: Option<&Made>,
    deadline: Instant,
) -> Result<(), PartFailure> {
    if let Some(made) = made {
        stop_container(execution, &made.container, grace(action), deadline).await?;
        // One that is gone, as after a compensation that a crash cut off at its end, holds no name.
        rename_away(
            execution,
            &made.container,
            &generation_name(key, made.generation),
            deadline,
        )
        .await?;
    }
    if let Some(before) = action.before.as_ref().filter(|before| before.present) {
        // What was taken over goes back to the name that it came with.
        let old = execution.old.get(&action.component);
        let name = old
            .filter(|old| old.adopted && old.container == before.container)
            .map_or_else(|| key.container_name(), |old| old.container_name.clone());
        let container = execution.current(&action.component, &before.container);
        rename(execution, &container, &name, deadline).await?;
        if before.running {
            start_registered(execution, &action.component, &before.container, deadline).await?;
        }
    }
    Ok(())
}

fn grace(action: &Action) -> Duration {
    action
        .after
        .as_ref()
        .map_or(Duration::from_secs(10), |after| {
            after.spec.stop_timeout.as_duration()
        })
}

async fn restore_files(
    execution: &Execution,
    key: &ComponentKey,
    action: &Action,
    generation: u64,
    in_place: bool,
) -> Result<(), PartFailure> {
    for (target, _) in &action.files {
        let (staging, key, target) = (
            execution.context.staging_for_engine().await,
            key.clone(),
            target.clone(),
        );
        blocking(move || staging.restore(&key, generation, &target, in_place)).await?;
    }
    Ok(())
}

/// The last lines of a container that failed; what cannot be read in time is left out.
pub(super) async fn last_lines(execution: &Execution, container: &ContainerId) -> Vec<String> {
    let options = LogOptions {
        follow: false,
        tail: Some(KEPT_LINES),
        since: None,
    };
    let runtime = execution.context.runtime.clone();
    let read = async {
        let Ok(mut lines) = runtime.logs(container, &options).await else {
            return Vec::new();
        };
        let mut kept = Vec::new();
        while let Some(Ok(line)) = lines.next().await {
            if kept.len() == KEPT_LINES as usize {
                kept.remove(0);
            }
            kept.push(String::from_utf8_lossy(&line.line).into_owned());
        }
        kept
    };
    tokio::time::timeout(LOG_WAIT, read)
        .await
        .unwrap_or_default()
}

/// Removes the new containers of components that were put back to an old one.
pub(super) async fn clear_new(
    execution: &Execution,
    made: &BTreeMap<ComponentName, Made>,
    put_back: &BTreeMap<ComponentName, PutBack>,
    stuck: &BTreeMap<ComponentName, PartFailure>,
) {
    for (component, made) in made {
        if matches!(put_back.get(component), Some(PutBack::Stopped)) {
            continue;
        }
        // Where the old one could not be brought back the new one stays if it runs: it is all there is.
        if stuck.contains_key(component) && is_all_there_is(execution, component, made).await {
            continue;
        }
        execution.remove_container(component, &made.container).await;
        execution.remove_files(component, made.generation).await;
    }
}

/// Whether a component's new container runs while its old one does not, or nothing can be known.
async fn is_all_there_is(execution: &Execution, component: &ComponentName, made: &Made) -> bool {
    let runs = async |container: &ContainerId| {
        let seen = execution.context.runtime.inspect(container.as_str()).await;
        seen.map(|live| live.is_some_and(|live| live.state.is_running()))
    };
    let before = execution
        .action(component)
        .and_then(|action| action.before.as_ref());
    let old_runs = match before {
        Some(before) => runs(&before.container).await,
        None => Ok(false),
    };
    match (old_runs, runs(&made.container).await) {
        (Ok(old), Ok(new)) => new && !old,
        _ => true,
    }
}
