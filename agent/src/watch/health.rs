//! Health after the gate: one monitor for each running component that has a check.
//!
//! A monitor probes every interval, the first time at a random part of it, and tells a verdict when it
//! changes: the first success is healthy, `retries` failures in a row are not. It ends with the run
//! that it judges. While the engine is away nothing is probed and nothing counts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use mcp_spec::component::{ComponentSpec, Health};
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerId, LiveContainer};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep};

use super::current::Watch;
use crate::registry::HealthWord;
use crate::runtime::EngineFacts;
use crate::runtime::prober::{ProbeOutcome, probe};

/// Probes at the same time: what two cores take without a queue of execs in the engine.
const PROBES: usize = 4;

/// Shortest time between two probes of a component that has yet to show that it is healthy.
const PROBE_PACE: Duration = Duration::from_secs(1);

/// What a monitor found.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) key: ComponentKey,
    pub(super) container: ContainerId,
    pub(super) started_at: Option<Timestamp>,
    pub(super) word: HealthWord,
    pub(super) detail: String,
}

/// What is to be monitored.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) key: ComponentKey,
    pub(super) spec: ComponentSpec,
    pub(super) health: Health,
    pub(super) live: Arc<LiveContainer>,
    /// What is held of its health now.
    pub(super) word: HealthWord,
}

#[derive(Debug)]
struct Run {
    container: ContainerId,
    started_at: Option<Timestamp>,
    health: Health,
    task: AbortHandle,
}

/// The monitors.
#[derive(Debug)]
pub(super) struct Monitors {
    runs: BTreeMap<ComponentKey, Run>,
    tasks: JoinSet<()>,
    probes: Arc<Semaphore>,
    verdicts: mpsc::Sender<Verdict>,
    watch: Watch,
    facts: Arc<ArcSwapOption<EngineFacts>>,
}

impl Monitors {
    /// No monitors yet; verdicts go to `verdicts`, and monitors wait while it is full.
    pub(super) fn new(
        watch: Watch,
        facts: Arc<ArcSwapOption<EngineFacts>>,
        verdicts: mpsc::Sender<Verdict>,
    ) -> Self {
        Self {
            runs: BTreeMap::new(),
            tasks: JoinSet::new(),
            probes: Arc::new(Semaphore::new(PROBES)),
            verdicts,
            watch,
            facts,
        }
    }

    /// Whether this very run is monitored already.
    pub(super) fn has(&self, key: &ComponentKey, live: &LiveContainer, health: &Health) -> bool {
        self.runs.get(key).is_some_and(|run| {
            run.container == live.id && run.started_at == live.started_at && run.health == *health
        })
    }

    /// Monitors one more run, instead of the one before it.
    pub(super) fn begin(&mut self, subject: Subject, jitter: f64) {
        while self.tasks.try_join_next().is_some() {}
        let key = subject.key.clone();
        let container = subject.live.id.clone();
        let started_at = subject.live.started_at;
        let health = subject.health.clone();
        let task = self.tasks.spawn(monitor(
            subject,
            jitter,
            Arc::clone(&self.probes),
            self.verdicts.clone(),
            self.watch.clone(),
            Arc::clone(&self.facts),
        ));
        let run = Run {
            container,
            started_at,
            health,
            task,
        };
        if let Some(before) = self.runs.insert(key, run) {
            before.task.abort();
        }
    }

    /// Ends the monitors of components that `stays` does not name.
    pub(super) fn keep(&mut self, stays: impl Fn(&ComponentKey) -> bool) {
        self.runs.retain(|key, run| {
            let stays = stays(key);
            if !stays {
                run.task.abort();
            }
            stays
        });
    }
}

async fn monitor(
    subject: Subject,
    jitter: f64,
    probes: Arc<Semaphore>,
    verdicts: mpsc::Sender<Verdict>,
    watch: Watch,
    facts: Arc<ArcSwapOption<EngineFacts>>,
) {
    let health = &subject.health;
    let interval = health.interval.as_duration();
    let grace = Instant::now() + health.start_period.as_duration();
    let mut word = subject.word;
    let mut failures = 0;
    if word != HealthWord::Starting {
        sleep(interval.mul_f64(jitter.abs().min(1.0))).await;
    }
    loop {
        let outcome = ask(&subject, &probes, &watch, &facts).await;
        let now = Instant::now();
        let verdict = match &outcome {
            Some(outcome) if outcome.ok => {
                failures = 0;
                Some(HealthWord::Healthy)
            }
            Some(_) if word == HealthWord::Starting && now < grace => None,
            Some(_) => {
                failures += 1;
                (failures >= health.retries).then_some(HealthWord::Unhealthy)
            }
            None => None,
        };
        if let (Some(verdict), Some(outcome)) = (verdict, outcome)
            && verdict != word
        {
            word = verdict;
            let verdict = Verdict {
                key: subject.key.clone(),
                container: subject.live.id.clone(),
                started_at: subject.live.started_at,
                word,
                detail: outcome.detail,
            };
            if verdicts.send(verdict).await.is_err() {
                return;
            }
        }
        let is_starting = word == HealthWord::Starting && now < grace;
        sleep(if is_starting {
            interval.min(PROBE_PACE)
        } else {
            interval
        })
        .await;
    }
}

/// Probes once; `None` where nothing can be concluded, since the engine is away.
async fn ask(
    subject: &Subject,
    probes: &Semaphore,
    watch: &Watch,
    facts: &ArcSwapOption<EngineFacts>,
) -> Option<ProbeOutcome> {
    let _permit = probes.acquire().await.ok()?;
    let facts = facts.load_full()?;
    if !watch.current().engine_answers() {
        return None;
    }
    let runtime = watch.runtime();
    let outcome = probe(
        runtime.as_ref(),
        &facts,
        &subject.spec,
        &subject.health,
        &subject.live,
    )
    .await;
    (outcome.ok || watch.current().engine_answers()).then_some(outcome)
}
