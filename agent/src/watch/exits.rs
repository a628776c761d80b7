//! Deaths: one pidfd on the first process of each registered container that runs.
//!
//! A task a container waits for the death, tells the watch at once, and then asks the engine for the
//! exit code until it has one: inspect goes on saying that it runs for 10 to 50 ms. A task ends with
//! its container's start; dropping [`Exits`] ends them all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::name::ServiceName;
use mcp_spec::observed::{ContainerId, ContainerState, LiveContainer};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::busy::Busy;
use super::current::Watch;
use super::process::{Opened, ProcessWatch};

/// How long the engine may take to notice a death: a loaded dockerd was seen to take 14 s. After that the
/// resync finds out.
const NOTICE_WAIT: Duration = Duration::from_secs(20);

/// Pause between two questions for the exit code: the first is asked at once.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// Longest pause while an answer is likely to come: what it adds to the time without the component.
const SHORT_PAUSE: Duration = Duration::from_millis(8);

/// How long an answer is likely to come: both engines take 10 to 50 ms.
const LIKELY: Duration = Duration::from_millis(150);

/// Pause afterwards.
const LONG_PAUSE: Duration = Duration::from_millis(250);

/// The deaths that are waited for.
#[derive(Debug, Default)]
pub(super) struct Exits {
    /// The run of each container that a task was begun for, whatever came of the task.
    begun: BTreeMap<ContainerId, Option<Timestamp>>,
    tasks: JoinSet<()>,
}

impl Exits {
    /// Waits for the deaths of these containers. Those waited for before go on: each task ends with
    /// its process.
    pub(super) fn follow(
        &mut self,
        watch: &Watch,
        busy: &Busy,
        running: &[(ServiceName, Arc<LiveContainer>)],
    ) {
        while self.tasks.try_join_next().is_some() {}
        let ids: BTreeSet<&ContainerId> = running.iter().map(|(_, live)| &live.id).collect();
        self.begun.retain(|id, _| ids.contains(id));
        for (service, live) in running {
            let ContainerState::Running { pid: Some(pid) } = live.state else {
                continue;
            };
            if self.begun.get(&live.id) == Some(&live.started_at) {
                continue;
            }
            self.tasks.spawn(follow_one(
                watch.clone(),
                busy.clone(),
                service.clone(),
                live.id.clone(),
                pid,
                live.started_at,
            ));
            self.begun.insert(live.id.clone(), live.started_at);
        }
    }

    /// Whether the death of this very run would be known.
    pub(super) fn sees(&self, live: &LiveContainer) -> bool {
        live.state.is_running() && self.begun.get(&live.id) == Some(&live.started_at)
    }
}

async fn follow_one(
    watch: Watch,
    busy: Busy,
    service: ServiceName,
    id: ContainerId,
    pid: u32,
    started_at: Option<Timestamp>,
) {
    let is_same_run = |live: &LiveContainer| {
        live.state == ContainerState::Running { pid: Some(pid) } && live.started_at == started_at
    };
    let death = match ProcessWatch::open(pid, &id) {
        Ok(Opened::Watched(process)) => process.died().await,
        Ok(Opened::Unproven(process)) => match watch.look_at(&id).await {
            Ok(Some(live)) if is_same_run(&live) => process.died().await,
            // It is another run by now, or none: the look has told the watch.
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(container = %id, %error, "its death will be noticed by the engine's events alone");
                return;
            }
        },
        // No proof of a death: the process may be out of the agent's sight. The engine has to say so.
        Ok(Opened::Gone) => {
            ask_for_end(&watch, &id, &is_same_run).await;
            return;
        }
        Err(error) => {
            tracing::warn!(container = %id, %error, "no pidfd: its death will be noticed by the engine's events alone");
            return;
        }
    };
    watch.died(&id, started_at, death);
    // Whoever is changing the service asks by itself; the engine has enough to do.
    if busy.is_busy(&service) {
        return;
    }
    ask_for_end(&watch, &id, &is_same_run).await;
}

/// Asks until the engine no longer says that this run goes on.
async fn ask_for_end(
    watch: &Watch,
    id: &ContainerId,
    is_same_run: &impl Fn(&LiveContainer) -> bool,
) {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match watch.look_at(id).await {
            Ok(Some(live)) if is_same_run(&live) => {}
            Ok(_) => return,
            Err(error) if error.is_away() => {
                watch.engine_away(&error);
                return;
            }
            Err(error) => tracing::warn!(container = %id, %error, "cannot ask for its exit code"),
        }
        if began.elapsed() + pause > NOTICE_WAIT {
            return;
        }
        sleep(pause).await;
        pause = if began.elapsed() < LIKELY {
            (pause * 2).min(SHORT_PAUSE)
        } else {
            LONG_PAUSE
        };
    }
}
