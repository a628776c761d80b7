//! The current snapshot: who may replace it, and how it is made fresh.
//!
//! Readers take the snapshot without a lock. Those who replace it (queries, sightings, deaths) hold
//! one short lock. An answer never overwrites what was seen after it was asked for. Callers that ask
//! for a fresh snapshot at the same time share one query; at most one query runs at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use mcp_spec::observed::{ContainerId, ContainerState, LiveContainer};
use tokio::sync::watch;
use tokio::time::Instant;

use super::busy::Busy;
use super::process::Death;
use super::snapshot::{EngineState, Snapshot};
use crate::clock::Clock;
use crate::runtime::{Runtime, RuntimeError};

/// Oldest configuration of a managed container that a query takes over without inspecting again.
/// Engines hardly ever tell of a changed configuration, and inspecting all of them at each resync
/// would cost more than everything else that an idle agent does.
const FIELDS_AGE: Duration = Duration::from_secs(5 * 60);

/// Inspections at a time: what two cores and either engine serve best.
const INSPECTIONS: usize = 4;

/// The exit code of a process that SIGKILL ended, which is how the kernel gets memory back.
pub(crate) const KILLED: i32 = 137;

/// The word for a container whose process is known to be dead while its exit code is not.
const ENDED: &str = "ended";

/// Whether a container's process is known to be dead while the engine has not said how it ended.
pub(super) fn is_dead(live: &LiveContainer) -> bool {
    matches!(&live.state, ContainerState::Other(word) if word == ENDED)
}

/// The current snapshot and the way to a fresh one; clones share it.
#[derive(Debug, Clone)]
pub struct Watch {
    shared: Arc<Shared>,
}

/// Takes in what others see of containers; cheap to clone.
#[derive(Debug, Clone)]
pub struct Sightings {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    runtime: Arc<dyn Runtime>,
    clock: Arc<dyn Clock>,
    current: ArcSwap<Snapshot>,
    known: Mutex<Known>,
    events_flow: AtomicBool,
    /// When the event stream broke off last, until that was taken in.
    broke_off: Mutex<Option<Instant>>,
    /// Held while a query runs.
    query: tokio::sync::Mutex<LastQuery>,
    queries: AtomicU64,
    changes: watch::Sender<u64>,
    /// The last of `changes` whose consequences are in the registry.
    recorded: watch::Sender<u64>,
}

/// What is known beside the snapshot.
#[derive(Debug, Default)]
struct Known {
    /// When each container of the snapshot was seen.
    seen: BTreeMap<ContainerId, Seen>,
    /// Processes that died, by the start that they were of.
    dead: BTreeMap<ContainerId, Option<Timestamp>>,
    /// Containers whose memory ran out, by the start that ended so: not every engine tells.
    starved: BTreeMap<ContainerId, Option<Timestamp>>,
    /// Removed by the agent itself: an answer that was asked for earlier must not bring them back.
    gone: BTreeMap<ContainerId, Instant>,
    /// When a deployment told of a container last.
    sighted: BTreeMap<ContainerId, Instant>,
    /// To be inspected at the next occasion, since when: an answer that was asked for earlier clears no
    /// suspicion.
    suspects: BTreeMap<ContainerId, Instant>,
    /// Containers that are managed without a label of the agent's.
    registered: BTreeSet<ContainerId>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// When the look was asked for.
    at: Instant,
    /// When the last inspection was; `None` where only a list told of it.
    inspected: Option<Instant>,
}

#[derive(Debug)]
struct LastQuery {
    number: u64,
    inspected_all: bool,
    result: Result<Arc<Snapshot>, RuntimeError>,
}

impl Watch {
    /// A watch that has not asked the engine yet.
    #[must_use]
    pub fn new(runtime: Arc<dyn Runtime>, clock: Arc<dyn Clock>) -> Self {
        let nothing = Arc::new(Snapshot {
            containers: BTreeMap::new(),
            taken_at: Instant::now(),
            at: clock.now(),
            engine: EngineState::NeverSeen,
        });
        Self {
            shared: Arc::new(Shared {
                runtime,
                clock,
                current: ArcSwap::from(Arc::clone(&nothing)),
                known: Mutex::default(),
                events_flow: AtomicBool::new(false),
                broke_off: Mutex::default(),
                query: tokio::sync::Mutex::new(LastQuery {
                    number: 0,
                    inspected_all: false,
                    result: Ok(nothing),
                }),
                queries: AtomicU64::new(0),
                changes: watch::channel(0).0,
                recorded: watch::channel(0).0,
            }),
        }
    }

    /// Where deployments tell what they see.
    #[must_use]
    pub fn sightings(&self) -> Sightings {
        Sightings {
            shared: Arc::clone(&self.shared),
        }
    }

    /// What is known now; asks nobody.
    #[must_use]
    pub fn current(&self) -> Arc<Snapshot> {
        self.shared.current.load_full()
    }

    /// A receiver that is woken by each change of the snapshot.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Waits until the registry holds what follows from everything seen so far, and from the ends of
    /// whatever made services busy: at most `longest`, since it may not be possible to write. Tells
    /// whether it does. In the normal case there is nothing to wait for.
    pub async fn recorded(&self, busy: &Busy, longest: Duration) -> bool {
        let recorded = async {
            busy.taken_up().await;
            let seen = *self.shared.changes.borrow();
            let mut recorded = self.shared.recorded.subscribe();
            recorded
                .wait_for(|recorded| *recorded >= seen)
                .await
                .is_ok()
        };
        tokio::time::timeout(longest, recorded)
            .await
            .is_ok_and(|recorded| recorded)
    }

    /// Asks the engine now: one list, and an inspection of each managed container that changed or
    /// whose configuration is unknown or old. Callers at the same time share one query.
    ///
    /// # Errors
    ///
    /// What the list failed with.
    pub async fn fresh(&self) -> Result<Arc<Snapshot>, RuntimeError> {
        self.shared.query(false).await
    }

    /// Asks the engine now and inspects every managed container.
    ///
    /// # Errors
    ///
    /// What the list failed with.
    pub async fn inspected(&self) -> Result<Arc<Snapshot>, RuntimeError> {
        self.shared.query(true).await
    }

    /// The snapshot that the engine's events keep fresh, without asking, where they flow and the last
    /// full list is younger than `max_age`; else a fresh one.
    ///
    /// # Errors
    ///
    /// What the list failed with.
    pub async fn usable(&self, max_age: Duration) -> Result<Arc<Snapshot>, RuntimeError> {
        let current = self.current();
        let young = current.taken_at.elapsed() <= max_age;
        let flows = self.shared.events_flow.load(Ordering::Acquire);
        if !(young && flows && current.engine_answers()) {
            return self.fresh().await;
        }
        if self.shared.known().suspects.is_empty() {
            return Ok(current);
        }
        self.catch_up(|_| true).await?;
        Ok(self.current())
    }

    /// Counts something that is no change of the snapshot and has consequences all the same.
    pub(super) fn count_change(&self) {
        self.shared.changes.send_modify(|count| *count += 1);
    }

    /// Says that the registry holds what follows from this change and all before.
    pub(super) fn set_recorded(&self, change: u64) {
        self.shared.recorded.send_if_modified(|recorded| {
            let is_later = change > *recorded;
            *recorded = change.max(*recorded);
            is_later
        });
    }

    /// The engine.
    pub(super) fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.shared.runtime
    }

    /// The clock.
    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Takes in a container as it was inspected after a start by the restart policy.
    pub(super) fn saw_start(&self, live: LiveContainer) {
        self.shared
            .absorb(vec![(live.id.clone(), Instant::now(), Some(live))]);
    }

    /// Whether a deployment told of this container at `since` or later.
    pub(super) fn was_sighted(&self, id: &ContainerId, since: Instant) -> bool {
        let known = self.shared.known();
        known.sighted.get(id).is_some_and(|at| *at >= since)
    }

    /// Whether containers wait to be inspected.
    pub(super) fn has_suspects(&self) -> bool {
        !self.shared.known().suspects.is_empty()
    }

    /// Whether the engine's events reach the agent.
    pub(super) fn set_events_flow(&self, flow: bool) {
        self.shared.events_flow.store(flow, Ordering::Release);
    }

    /// Says that the event stream broke off: the engine may be another from now on. One that is started by
    /// its socket is never seen to be away.
    pub(super) fn stream_broke_off(&self) {
        *self.shared.broke_off() = Some(Instant::now());
        self.count_change();
    }

    /// When the event stream broke off, told once.
    pub(super) fn take_break(&self) -> Option<Instant> {
        self.shared.broke_off().take()
    }

    /// Makes containers managed that bear no label of the agent's.
    pub(super) fn set_registered(&self, ids: BTreeSet<ContainerId>) {
        self.shared.known().registered = ids;
    }

    /// Marks a container to be inspected at the next occasion.
    pub(super) fn suspect(&self, id: ContainerId) {
        self.shared.known().suspects.insert(id, Instant::now());
    }

    /// Takes in that the process of a container died, whatever the engine goes on to say of this
    /// start.
    pub(super) fn died(&self, id: &ContainerId, started_at: Option<Timestamp>, death: Death) {
        self.shared.died(id, started_at, death);
    }

    /// Takes in that the engine is away.
    pub(super) fn engine_away(&self, error: &RuntimeError) {
        self.shared.away(error);
    }

    /// Inspects the suspects that `wanted` picks, and no others.
    ///
    /// # Errors
    ///
    /// What an inspection failed with, where the engine is away.
    pub(super) async fn catch_up(
        &self,
        wanted: impl Fn(&ContainerId) -> bool,
    ) -> Result<(), RuntimeError> {
        self.shared.catch_up(wanted).await
    }

    /// Inspects one container now.
    ///
    /// # Errors
    ///
    /// What the inspection failed with.
    pub(super) async fn look_at(
        &self,
        id: &ContainerId,
    ) -> Result<Option<LiveContainer>, RuntimeError> {
        let asked = Instant::now();
        let live = self.shared.runtime.inspect(id.as_str()).await?;
        self.shared.absorb(vec![(id.clone(), asked, live.clone())]);
        Ok(live)
    }
}

impl Sightings {
    /// Takes in containers as they were inspected just now.
    pub fn saw(&self, containers: Vec<LiveContainer>) {
        let now = Instant::now();
        let ids = containers.iter().map(|live| (live.id.clone(), now));
        self.shared.known().sighted.extend(ids);
        self.shared.absorb(
            containers
                .into_iter()
                .map(|live| (live.id.clone(), now, Some(live)))
                .collect(),
        );
    }

    /// Takes in that these containers were removed.
    pub fn gone(&self, containers: Vec<ContainerId>) {
        let now = Instant::now();
        self.shared
            .absorb(containers.into_iter().map(|id| (id, now, None)).collect());
    }
}

/// One answer: the container asked for, when, and what the engine said.
type Answer = (ContainerId, Instant, Option<LiveContainer>);

impl Known {
    fn manages(&self, live: &LiveContainer) -> bool {
        live.claimed_key().is_some() || self.registered.contains(&live.id)
    }

    /// The container as it has to be shown: a process that is known to be dead does not run.
    fn corrected(&mut self, mut live: LiveContainer) -> LiveContainer {
        if let Some(started_at) = self.starved.get(&live.id) {
            let is_that_run = live.started_at.is_none() || live.started_at == *started_at;
            match &mut live.state {
                ContainerState::Exited { code: KILLED, oom } if is_that_run => *oom = true,
                ContainerState::Running { .. } if !is_that_run => {
                    self.starved.remove(&live.id);
                }
                _ => {}
            }
        }
        let Some(dead) = self.dead.get(&live.id) else {
            return live;
        };
        if !live.state.is_running() {
            self.dead.remove(&live.id);
        } else if live.started_at.is_none() || live.started_at == *dead {
            live.state = ContainerState::Other(ENDED.to_owned());
        } else {
            self.dead.remove(&live.id);
        }
        live
    }

    /// Whether what `listed` says is news against `held`.
    fn is_news(&self, listed: &LiveContainer, held: &LiveContainer) -> bool {
        std::mem::discriminant(&listed.state) != std::mem::discriminant(&held.state)
            || listed.name != held.name
            || listed.image_id != held.image_id
            || self.dead.contains_key(&listed.id)
    }

    /// Puts one answer into `containers`; tells whether that changed anything.
    fn take_in(
        &mut self,
        containers: &mut BTreeMap<ContainerId, Arc<LiveContainer>>,
        (id, asked, live): Answer,
    ) -> bool {
        if self.seen.get(&id).is_some_and(|seen| seen.at > asked)
            || self.gone.get(&id).is_some_and(|gone| *gone > asked)
        {
            return false;
        }
        if self.suspects.get(&id).is_some_and(|since| *since <= asked) {
            self.suspects.remove(&id);
        }
        let Some(live) = live else {
            self.seen.remove(&id);
            self.dead.remove(&id);
            self.starved.remove(&id);
            self.sighted.remove(&id);
            self.gone.insert(id.clone(), asked);
            return containers.remove(&id).is_some();
        };
        self.gone.remove(&id);
        let inspected = (!live.fields.is_empty()).then_some(asked);
        self.seen.insert(
            id.clone(),
            Seen {
                at: asked,
                inspected,
            },
        );
        let live = self.corrected(live);
        if containers.get(&id).is_some_and(|held| **held == live) {
            return false;
        }
        containers.insert(id, Arc::new(live));
        true
    }
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broke_off(&self) -> MutexGuard<'_, Option<Instant>> {
        let held = self.broke_off.lock();
        held.unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a changed snapshot in place; `known` is the lock that replacing it takes.
    fn publish(&self, known: MutexGuard<'_, Known>, snapshot: Snapshot) -> Arc<Snapshot> {
        let snapshot = Arc::new(snapshot);
        self.current.store(Arc::clone(&snapshot));
        drop(known);
        self.changes.send_modify(|count| *count += 1);
        snapshot
    }

    fn absorb(&self, answers: Vec<Answer>) {
        let mut known = self.known();
        let mut snapshot = Snapshot::clone(&self.current.load());
        let mut changed = false;
        for answer in answers {
            changed |= known.take_in(&mut snapshot.containers, answer);
        }
        if changed {
            self.publish(known, snapshot);
        }
    }

    fn died(&self, id: &ContainerId, started_at: Option<Timestamp>, death: Death) {
        let mut known = self.known();
        if death.memory_ran_out {
            known.starved.insert(id.clone(), started_at);
        }
        let held = self.current.load();
        let Some(live) = held.containers.get(id) else {
            return;
        };
        if !live.state.is_running() || live.started_at != started_at {
            return;
        }
        known.dead.insert(id.clone(), started_at);
        known.suspects.insert(id.clone(), Instant::now());
        let dead = known.corrected(LiveContainer::clone(live));
        let mut snapshot = Snapshot::clone(&held);
        snapshot.containers.insert(id.clone(), Arc::new(dead));
        self.publish(known, snapshot);
    }

    fn away(&self, error: &RuntimeError) {
        let known = self.known();
        let held = self.current.load();
        let since = match held.engine {
            EngineState::Away { since, .. } => since,
            EngineState::Answers | EngineState::NeverSeen => self.clock.now(),
        };
        let engine = EngineState::Away {
            reason: error.to_string(),
            since,
        };
        if held.engine == engine {
            return;
        }
        let snapshot = Snapshot {
            engine,
            ..Snapshot::clone(&held)
        };
        self.publish(known, snapshot);
    }

    async fn inspect(&self, ids: Vec<ContainerId>) -> Result<Vec<Answer>, RuntimeError> {
        let mut answers = Vec::with_capacity(ids.len());
        let mut asking = stream::iter(ids)
            .map(async |id| {
                let asked = Instant::now();
                let live = self.runtime.inspect(id.as_str()).await;
                (id, asked, live)
            })
            .buffer_unordered(INSPECTIONS);
        while let Some((id, asked, live)) = asking.next().await {
            match live {
                Ok(live) => answers.push((id, asked, live)),
                Err(error) if error.is_away() => return Err(error),
                // It keeps what the list said of it.
                Err(error) => tracing::warn!(container = %id, %error, "cannot inspect"),
            }
        }
        Ok(answers)
    }

    async fn catch_up(&self, wanted: impl Fn(&ContainerId) -> bool) -> Result<(), RuntimeError> {
        let _one_at_a_time = self.query.lock().await;
        let ids: Vec<ContainerId> = self
            .known()
            .suspects
            .keys()
            .filter(|id| wanted(id))
            .cloned()
            .collect();
        if ids.is_empty() {
            return Ok(());
        }
        match self.inspect(ids).await {
            Ok(answers) => {
                self.absorb(answers);
                Ok(())
            }
            Err(error) => {
                self.away(&error);
                Err(error)
            }
        }
    }

    async fn query(&self, inspect_all: bool) -> Result<Arc<Snapshot>, RuntimeError> {
        let begun_before = self.queries.load(Ordering::Acquire);
        let mut last = self.query.lock().await;
        // One that began after this call was made answers it as well.
        if last.number > begun_before && (last.inspected_all || !inspect_all) {
            return last.result.clone();
        }
        let number = self.queries.fetch_add(1, Ordering::AcqRel) + 1;
        let result = self.ask(inspect_all).await;
        if let Err(error) = &result {
            self.away(error);
        }
        *last = LastQuery {
            number,
            inspected_all: inspect_all,
            result: result.clone(),
        };
        result
    }

    async fn ask(&self, inspect_all: bool) -> Result<Arc<Snapshot>, RuntimeError> {
        let asked = Instant::now();
        let at = self.clock.now();
        let listed = self.runtime.list().await?;
        let mut held_as_seen = BTreeSet::new();
        let mut to_inspect = Vec::new();
        {
            let known = self.known();
            let held = self.current.load();
            for live in &listed {
                let seen = known.seen.get(&live.id);
                let before = held.containers.get(&live.id);
                let stale = inspect_all
                    || known.suspects.contains_key(&live.id)
                    || before.is_none_or(|before| known.is_news(live, before))
                    || seen
                        .and_then(|seen| seen.inspected)
                        .is_none_or(|at| asked.duration_since(at) > FIELDS_AGE);
                if !known.manages(live) {
                    continue;
                }
                if stale {
                    to_inspect.push(live.id.clone());
                } else {
                    held_as_seen.insert(live.id.clone());
                }
            }
        }
        let inspected = self.inspect(to_inspect).await?;
        let mut known = self.known();
        let held = self.current.load_full();
        let mut snapshot = Snapshot {
            containers: held.containers.clone(),
            taken_at: asked,
            at,
            engine: EngineState::Answers,
        };
        let here: BTreeSet<ContainerId> = listed.iter().map(|live| live.id.clone()).collect();
        let missing: Vec<ContainerId> = snapshot
            .containers
            .keys()
            .chain(known.suspects.keys())
            .filter(|id| !here.contains(*id))
            .cloned()
            .collect();
        for live in listed {
            if held_as_seen.contains(&live.id) {
                if let Some(seen) = known.seen.get_mut(&live.id) {
                    seen.at = seen.at.max(asked);
                }
            } else {
                known.take_in(
                    &mut snapshot.containers,
                    (live.id.clone(), asked, Some(live)),
                );
            }
        }
        for id in missing {
            known.take_in(&mut snapshot.containers, (id, asked, None));
        }
        for answer in inspected {
            known.take_in(&mut snapshot.containers, answer);
        }
        // Whatever was asked before this query has been answered or given up by now.
        known.gone.retain(|_, gone| *gone >= asked);
        Ok(self.publish(known, snapshot))
    }
}
