//! The watching task: from snapshots to observations, events, restarts and health.
//!
//! It owns what is remembered of each component. It is woken by changes of the snapshot, by the
//! engine's events, by services that are no longer busy, by answers of starts, probes and writes, and
//! by its own deadlines. It never waits for the engine or the disk: queries, starts, probes and writes
//! are tasks of their own, each set bounded, all ended with it.
//!
//! What it needs is in the registry, so a crash loses nothing: what ended meanwhile is found by the
//! first query, and a scheduled start is taken up again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use mcp_spec::name::{ComponentKey, ServiceName};
use mcp_spec::observed::{ContainerId, DesiredState, LiveContainer, ObservedState, label};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::busy::Busy;
use super::component::{Component, Moment, Restarting};
use super::current::Watch;
use super::emptied;
use super::exits::Exits;
use super::flapping::Bounds;
use super::health::{Monitors, Subject, Verdict};
use super::meeting::{self, Meeting};
use super::news;
use super::recorder::Recorder;
use super::revive::{Revive, Revived, Reviver};
use super::snapshot::{EngineState, Snapshot};
use super::stream;
use crate::config::WatchConfig;
use crate::registry::{DeployedRow, HealthWord, NewEvent, ObservedRow, Registry, RegistryError};
use crate::runtime::{EngineFacts, RuntimeError};

/// How long an event waits for others, so that a burst causes one look.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// Verdicts of monitors that may wait; a monitor waits when it is full.
const VERDICTS: usize = 64;

/// Starts at the same time, of different services: what two cores serve best.
const STARTS: usize = 4;

/// Shortest time to the next attempt after a resync that failed.
const RETRY: Duration = Duration::from_secs(1);

/// How soon it is looked again whether what has to be started first was.
const SOON: Duration = Duration::from_millis(50);

/// What the watching task works with.
pub struct Setup {
    /// The snapshot.
    pub watch: Watch,
    /// The services that are being changed.
    pub busy: Busy,
    /// The registry.
    pub registry: Registry,
    /// The engine's facts, as soon as it has answered once; filled in here where nobody has.
    pub facts: Arc<ArcSwapOption<EngineFacts>>,
    /// Whoever starts containers again.
    pub reviver: Reviver,
    /// Random numbers between -1 and 1, for pauses and first probes.
    pub jitter: Arc<dyn Fn() -> f64 + Send + Sync>,
    /// Times and thresholds.
    pub config: WatchConfig,
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Watches until `cancel`.
///
/// # Errors
///
/// Where the registry can no longer be used: the agent has to end.
pub async fn run(setup: Setup, cancel: CancellationToken) -> Result<(), RegistryError> {
    let hints = Arc::new(Notify::new());
    let mut streaming = JoinSet::new();
    streaming.spawn(stream::follow(
        setup.watch.clone(),
        Arc::clone(&setup.facts),
        Arc::clone(&hints),
    ));
    let mut watching = Watching::begin(setup, hints).await?;
    watching.run(cancel).await
}

/// A look at the engine that came back.
enum Looked {
    /// At suspects; the services that waited for it.
    CaughtUp(BTreeSet<ServiceName>, Result<(), RuntimeError>),
    /// At everything.
    Resynced(Result<Arc<Snapshot>, RuntimeError>),
    /// At a store that looks emptied, once more: whether it is the store that was there before.
    Doubted(Result<bool, RuntimeError>),
    /// At which store it is that is there; whether that is written down.
    Noted(bool),
}

struct Watching {
    setup: Setup,
    components: BTreeMap<ComponentKey, Component>,
    engine: EngineState,
    /// It was told to be away before the agent's start, and has not answered since.
    was_away: bool,
    hints: Arc<Notify>,
    /// When suspects are to be looked at.
    hinted: Option<Instant>,
    /// Ended being busy, and not looked at since.
    settling: BTreeSet<ServiceName>,
    resync_at: Instant,
    looking: JoinSet<Looked>,
    catches_up: bool,
    resyncs: bool,
    starting: JoinSet<(Revive, Revived)>,
    starts_of: BTreeSet<ServiceName>,
    exits: Exits,
    monitors: Monitors,
    verdicts: mpsc::Receiver<Verdict>,
    recorder: Recorder,
    /// Events of answers that came since the last turn.
    news: Vec<NewEvent>,
    /// Where meeting the engine stands.
    meeting: Meeting,
    /// It is written down which store the engine that was met has.
    noted: bool,
    /// The rows have to be read again: an attempt failed.
    stale: bool,
    /// It was logged that no pidfd can be had.
    said_no_pids: bool,
}

impl Watching {
    async fn begin(setup: Setup, hints: Arc<Notify>) -> Result<Self, RegistryError> {
        let (deployed, observed) = setup.registry.deployed_and_observed().await?;
        let at = setup.watch.clock().now();
        let mut seen: BTreeMap<ComponentKey, ObservedRow> = observed
            .into_iter()
            .map(|row| (row.key.clone(), row))
            .collect();
        let components: BTreeMap<ComponentKey, Component> = deployed
            .into_iter()
            .map(|row| {
                let key = row.key.clone();
                let seen = seen.remove(&key);
                (key, Component::new(row, seen, at))
            })
            .collect();
        let (sender, verdicts) = mpsc::channel(VERDICTS);
        let watching = Self {
            // One that is away already is news as well.
            engine: EngineState::NeverSeen,
            was_away: setup.registry.engine_is_missed().await?,
            hints,
            hinted: None,
            settling: BTreeSet::new(),
            resync_at: Instant::now() + setup.config.resync.as_duration(),
            looking: JoinSet::new(),
            catches_up: false,
            resyncs: false,
            starting: JoinSet::new(),
            starts_of: BTreeSet::new(),
            exits: Exits::default(),
            monitors: Monitors::new(setup.watch.clone(), Arc::clone(&setup.facts), sender),
            verdicts,
            recorder: Recorder::new(setup.registry.clone(), setup.watch.clone()),
            news: Vec::new(),
            meeting: Meeting::Due(None),
            noted: false,
            stale: false,
            said_no_pids: false,
            components,
            setup,
        };
        watching.register();
        Ok(watching)
    }

    async fn run(&mut self, cancel: CancellationToken) -> Result<(), RegistryError> {
        let mut changes = self.setup.watch.changes();
        let mut endings = self.setup.busy.endings();
        let hints = Arc::clone(&self.hints);
        changes.mark_changed();
        loop {
            let wake = self.next_wake();
            // Each arm only takes in that something happened; whatever another arm was waiting for
            // is still there the next time.
            tokio::select! {
                biased;
                () = cancel.cancelled() => {
                    self.recorder.finish().await;
                    return Ok(());
                }
                Some(Ok((revive, revived))) = self.starting.join_next() => {
                    self.started(&revive, revived);
                }
                _ = changes.changed() => {}
                _ = endings.changed() => {}
                Some(Ok(looked)) = self.looking.join_next() => self.looked(looked),
                Some(verdict) = self.verdicts.recv() => self.judged(verdict),
                written = self.recorder.written() => written?,
                () = hints.notified() => {
                    self.hinted.get_or_insert(Instant::now() + DEBOUNCE);
                }
                () = sleep_until(wake) => {}
            }
            let change = *changes.borrow_and_update();
            self.turn(change).await;
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            now: Instant::now(),
            at: self.setup.watch.clock().now(),
        }
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            threshold: self.setup.config.flap_threshold,
            window: self.setup.config.flap_window.as_duration(),
        }
    }

    fn next_wake(&self) -> Instant {
        let bounds = self.bounds();
        let answers = self.engine == EngineState::Answers && !self.withholds();
        let may_start = self.starting.len() < STARTS;
        let busy = self.setup.busy.all();
        // A busy service wakes by its end, an engine that is away by its return, a start that was
        // asked for by its answer: their deadlines would make this turn for nothing.
        let components = self
            .components
            .values()
            .filter(|component| {
                let service = &component.row.key.service;
                answers && !busy.contains(service) && !self.settling.contains(service)
            })
            .flat_map(|component| match component.restarting {
                Restarting::Asked => [None, None],
                Restarting::Due(due) => {
                    let free = may_start && !self.starts_of.contains(&component.row.key.service);
                    [free.then_some(due), component.next_look(bounds)]
                }
                Restarting::No => [None, component.next_look(bounds)],
            })
            .flatten();
        let hinted = self.hinted.filter(|_| !self.catches_up);
        let met = self.meeting.given_up_at();
        let resync = (!self.resyncs).then_some(self.resync_at);
        let soonest = components.chain(hinted).chain(resync).chain(met).min();
        let shortest = Instant::now() + Duration::from_millis(1);
        soonest.map_or_else(
            || Instant::now() + self.setup.config.resync.as_duration(),
            |soonest| soonest.max(shortest),
        )
    }

    /// One round: rows, looks, observations, starts.
    async fn turn(&mut self, change: u64) {
        let (snapshot, mut busy) = loop {
            let epoch = self.setup.busy.epoch();
            let busy = self.setup.busy.all();
            self.take_ended().await;
            if let Some(broke_off) = self.setup.watch.take_break() {
                self.meeting = Meeting::Due(Some(broke_off));
                self.noted = false;
            }
            // Taken after the rows: what a deployment made is in it before the deployment has ended.
            let snapshot = self.setup.watch.current();
            // Where a service began or ended in between, rows and snapshot may not fit together.
            if self.setup.busy.epoch() == epoch {
                break (snapshot, busy);
            }
        };
        self.look_where_due(&busy);
        busy.extend(self.settling.iter().cloned());
        self.meet(&snapshot, &busy);
        let withholds = self.withholds();
        if withholds {
            busy.extend(self.services());
        }
        let (rows, seen) = self.observe(&snapshot, &busy);
        // With the rows that they belong to, in one transaction.
        let mut events = std::mem::take(&mut self.news);
        events.extend(self.engine_news(&snapshot));
        events.extend(seen);
        self.start_where_due(&snapshot, &busy);
        self.follow_exits(&snapshot);
        self.monitor(&snapshot, &busy);
        // What has yet to be looked at has consequences that nobody knows.
        let change = if self.settling.is_empty() && !withholds {
            change
        } else {
            0
        };
        self.recorder.add(rows, events, change);
    }

    /// Reads the rows again where a service is no longer busy, and sees to it that what nobody told of
    /// is looked at.
    async fn take_ended(&mut self) {
        let ended = if self.setup.busy.has_ended() {
            // Counted first: whoever sees that the ends are taken up waits for what follows from them.
            self.setup.watch.count_change();
            self.setup.busy.take_ended()
        } else {
            BTreeMap::new()
        };
        if ended.is_empty() && !self.stale {
            return;
        }
        self.stale = !self.read_rows(&ended).await;
        let snapshot = self.setup.watch.current();
        for (key, component) in &mut self.components {
            let Some(since) = ended.get(&key.service) else {
                continue;
            };
            component.quiet = true;
            component.dirty = true;
            // The deployment may have written the row as well.
            component.recorded = None;
            let id = &component.row.container;
            let is_sure = self.setup.watch.was_sighted(id, *since)
                || snapshot
                    .container(id)
                    .is_some_and(|live| self.exits.sees(live));
            if !is_sure {
                self.setup.watch.suspect(id.clone());
                self.settling.insert(key.service.clone());
            }
        }
        if !self.settling.is_empty() || self.setup.watch.has_suspects() {
            self.hinted = Some(Instant::now());
        }
    }

    async fn read_rows(&mut self, ended: &BTreeMap<ServiceName, Instant>) -> bool {
        let at = self.setup.watch.clock().now();
        let (rows, seen) = match self.setup.registry.deployed_and_observed().await {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(%error, "cannot read what is deployed");
                return false;
            }
        };
        let mut seen: BTreeMap<ComponentKey, ObservedRow> =
            seen.into_iter().map(|row| (row.key.clone(), row)).collect();
        let mut before = std::mem::take(&mut self.components);
        for row in rows {
            let key = row.key.clone();
            let (mut component, is_another) = match before.remove(&key) {
                Some(mut component) => {
                    let is_another = component.row.container != row.container;
                    component.replace_row(row, at);
                    (component, is_another)
                }
                None => {
                    let mut component = Component::new(row, None, at);
                    component.quiet = ended.contains_key(&key.service);
                    (component, true)
                }
            };
            if is_another && let Some(seen) = seen.remove(&key) {
                component.was_told(seen.drift);
            }
            self.components.insert(key, component);
        }
        self.register();
        true
    }

    fn register(&self) {
        let ids = self
            .components
            .values()
            .map(|component| component.row.container.clone());
        self.setup.watch.set_registered(ids.collect());
    }

    /// Begins a look at suspects, or at everything, where its time has come.
    fn look_where_due(&mut self, busy: &BTreeSet<ServiceName>) {
        let now = Instant::now();
        if !self.catches_up && self.hinted.is_some_and(|at| at <= now) {
            self.hinted = None;
            self.catches_up = true;
            let watch = self.setup.watch.clone();
            let settling = self.settling.clone();
            // What a deployment does to its containers it tells itself; a container that nobody has
            // registered may be one of its new ones.
            let known: BTreeMap<ContainerId, bool> = self
                .components
                .values()
                .map(|component| {
                    let is_busy = busy.contains(&component.row.key.service);
                    (component.row.container.clone(), is_busy)
                })
                .collect();
            let any = !busy.is_empty();
            self.looking.spawn(async move {
                let wanted = |id: &ContainerId| known.get(id).map_or(!any, |is_busy| !is_busy);
                let result = watch.catch_up(wanted).await;
                Looked::CaughtUp(settling, result)
            });
        }
        if !self.resyncs && self.resync_at <= now {
            self.resyncs = true;
            // Whatever was changed without a word is found at the latest now.
            self.stale = true;
            let watch = self.setup.watch.clone();
            self.looking
                .spawn(async move { Looked::Resynced(watch.fresh().await) });
        }
    }

    fn looked(&mut self, looked: Looked) {
        match looked {
            Looked::CaughtUp(services, result) => {
                self.catches_up = false;
                if result.is_ok() {
                    self.settling.retain(|service| !services.contains(service));
                } else {
                    self.settling.clear();
                }
            }
            Looked::Resynced(result) => {
                self.resyncs = false;
                let resync = self.setup.config.resync.as_duration();
                let pause = if result.is_ok() {
                    resync
                } else {
                    resync.min(RETRY)
                };
                self.resync_at = Instant::now() + pause;
            }
            Looked::Doubted(result) => self.doubted(result),
            // What could not be written down is tried again at the next turn.
            Looked::Noted(is_noted) => self.noted &= is_noted,
        }
    }

    /// Looks at each component whose container changed.
    fn observe(
        &mut self,
        snapshot: &Snapshot,
        busy: &BTreeSet<ServiceName>,
    ) -> (Vec<ObservedRow>, Vec<NewEvent>) {
        let moment = self.moment();
        let bounds = self.bounds();
        let engine_changed = self.engine != snapshot.engine;
        let mut rows = Vec::new();
        let mut events = Vec::new();
        for (key, component) in &mut self.components {
            if busy.contains(&key.service) || snapshot.engine == EngineState::NeverSeen {
                component.dirty |= engine_changed;
                continue;
            }
            let live = snapshot.container(&component.row.container);
            let is_same = match (live, &component.looked) {
                (Some(live), Some(before)) => Arc::ptr_eq(live, before),
                (None, None) => true,
                _ => false,
            };
            let is_time = component
                .next_look(bounds)
                .is_some_and(|at| at <= moment.now);
            if is_same && !component.dirty && !engine_changed && !is_time {
                continue;
            }
            let before = component.seen.clone();
            let observed = snapshot.of_container(&component.row.container);
            let jitter = (self.setup.jitter)();
            events.extend(component.look(&observed, moment, jitter, bounds));
            component.looked = live.cloned();
            if component.seen != before {
                component.seen.observed_at = moment.at;
            }
            // With the news that belongs to it, or a crash in between would lose that.
            if !component.holds_news() && component.recorded.as_ref() != Some(&component.seen) {
                component.recorded = Some(component.seen.clone());
                rows.push(component.seen.clone());
            }
        }
        (rows, events)
    }

    /// Meets an engine that was away, or that this agent has not seen yet: its store may be another, or
    /// empty, and what ran may all have ended with it.
    fn meet(&mut self, snapshot: &Snapshot, busy: &BTreeSet<ServiceName>) {
        match (&snapshot.engine, self.meeting) {
            (EngineState::Away { .. }, _) => {
                self.meeting = Meeting::Due(None);
                self.noted = false;
            }
            (EngineState::Answers, Meeting::Due(since)) if is_of(snapshot, since) => {
                if emptied::lost(&self.components, snapshot, busy).is_empty() {
                    self.meeting = Meeting::Over;
                    for key in meeting::fallen(&self.components, snapshot) {
                        if let Some(component) = self.components.get_mut(&key) {
                            component.fell(Instant::now());
                        }
                    }
                } else {
                    self.meeting = Meeting::Doubted;
                    let (watch, registry) = (self.setup.watch.clone(), self.setup.registry.clone());
                    self.looking.spawn(async move {
                        Looked::Doubted(meeting::look_again(&watch, &registry).await)
                    });
                }
            }
            _ => {}
        }
        let is_shown = || meeting::is_shown(&self.components, snapshot);
        if self.meeting == Meeting::Over && !self.noted && is_shown() {
            self.noted = true;
            let (watch, registry) = (self.setup.watch.clone(), self.setup.registry.clone());
            self.looking
                .spawn(async move { Looked::Noted(meeting::note(&watch, &registry).await) });
        }
    }

    /// Takes in what the second look at a store that looks emptied has shown.
    fn doubted(&mut self, result: Result<bool, RuntimeError>) {
        if self.meeting != Meeting::Doubted {
            return;
        }
        let is_same = match result {
            Ok(is_same) => is_same,
            Err(error) => {
                tracing::warn!(%error, "cannot look at the engine's store again");
                self.meeting = Meeting::Due(None);
                return;
            }
        };
        self.meeting = Meeting::Over;
        let snapshot = self.setup.watch.current();
        // What was made since is no evidence.
        let lost = emptied::lost(&self.components, &snapshot, &self.services());
        if lost.is_empty() {
            return;
        }
        let at = self.setup.watch.clock().now();
        if !is_same {
            tracing::warn!(
                "the engine keeps its containers elsewhere than before: nothing is brought back"
            );
            self.news.push(news::engine_replaced(at));
            return;
        }
        let services: BTreeSet<&ServiceName> = lost.iter().map(|row| &row.key.service).collect();
        let told = services
            .into_iter()
            .map(|service| news::engine_emptied(service, at));
        self.news.extend(told);
        for row in &lost {
            if let Some(component) = self.components.get_mut(&row.key) {
                component.is_lost();
            }
        }
        self.recorder.add_lost(lost);
    }

    /// Whether nothing may follow yet from what is seen.
    fn withholds(&self) -> bool {
        self.meeting.withholds(Instant::now())
    }

    fn services(&self) -> BTreeSet<ServiceName> {
        let services = self.components.keys().map(|key| key.service.clone());
        services.collect()
    }

    fn engine_news(&mut self, snapshot: &Snapshot) -> Option<NewEvent> {
        let before = std::mem::replace(&mut self.engine, snapshot.engine.clone());
        let at = self.setup.watch.clock().now();
        match (&before, &snapshot.engine) {
            (EngineState::Away { .. }, EngineState::Away { .. }) => None,
            (_, EngineState::Away { reason, since }) => Some(news::about_engine(
                *since,
                "engine-away",
                "no-answer",
                format!("the engine does not answer: {reason}"),
            )),
            (_, EngineState::Answers)
                if std::mem::take(&mut self.was_away)
                    || matches!(before, EngineState::Away { .. }) =>
            {
                Some(news::about_engine(
                    at,
                    "engine-back",
                    "answers",
                    "the engine answers again".to_owned(),
                ))
            }
            _ => None,
        }
    }

    /// Asks for the starts whose time has come: of a service one at a time, dependencies first.
    fn start_where_due(&mut self, snapshot: &Snapshot, busy: &BTreeSet<ServiceName>) {
        if !snapshot.engine_answers() {
            return;
        }
        let now = Instant::now();
        let due: Vec<ComponentKey> = self
            .components
            .iter()
            .filter(|(key, component)| {
                matches!(component.restarting, Restarting::Due(due) if due <= now)
                    && !busy.contains(&key.service)
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in &due {
            if self.starting.len() >= STARTS {
                return;
            }
            if self.starts_of.contains(&key.service) {
                continue;
            }
            let waits = self.waits_for_dependency(key, &due);
            let Some(component) = self.components.get_mut(key) else {
                continue;
            };
            if waits {
                // By then what it waits for is at its start, and none of its service is begun meanwhile.
                component.restarting = Restarting::Due(now + SOON);
                continue;
            }
            if runs_elsewhere(snapshot, &component.row) {
                // Unknown to the registry, as after an old backup: never two generations of it.
                component.restarting = Restarting::Due(now + RETRY);
                continue;
            }
            component.restarting = Restarting::Asked;
            let revive = Revive {
                key: key.clone(),
                container: component.row.container.clone(),
            };
            self.starts_of.insert(key.service.clone());
            let reviver = Arc::clone(&self.setup.reviver);
            self.starting.spawn(async move {
                let revived = reviver(revive.clone()).await;
                (revive, revived)
            });
        }
    }

    /// Whether something that it depends on is about to be started as well, or went down with it and has yet to
    /// come to a start of its own.
    fn waits_for_dependency(&self, key: &ComponentKey, due: &[ComponentKey]) -> bool {
        let Some(component) = self.components.get(key) else {
            return false;
        };
        let now = Instant::now();
        component.row.spec.depends_on.iter().any(|dependency| {
            let dependency = ComponentKey::new(key.service.clone(), dependency.clone());
            let fallen = self.components.get(&dependency);
            due.contains(&dependency) || fallen.is_some_and(|fallen| fallen.has_fallen(now))
        })
    }

    fn started(&mut self, revive: &Revive, revived: Revived) {
        self.starts_of.remove(&revive.key.service);
        let moment = self.moment();
        let jitter = (self.setup.jitter)();
        if let Revived::Running(live) = &revived {
            self.setup.watch.saw_start(LiveContainer::clone(live));
        }
        if matches!(revived, Revived::NotNow) {
            // It may not be wanted any more.
            self.stale = true;
        }
        let Some(component) = self.components.get_mut(&revive.key) else {
            return;
        };
        if component.row.container != revive.container || component.restarting != Restarting::Asked
        {
            return;
        }
        let events = component.revived(&revived, moment, jitter);
        self.news.extend(events);
    }

    fn judged(&mut self, verdict: Verdict) {
        let moment = self.moment();
        let bounds = self.bounds();
        let Some(component) = self.components.get_mut(&verdict.key) else {
            return;
        };
        if component.row.container != verdict.container {
            return;
        }
        let events = component.judged(
            verdict.started_at,
            verdict.word,
            &verdict.detail,
            moment,
            bounds,
        );
        if !events.is_empty() {
            component.dirty = true;
            self.news.extend(events);
        }
    }

    /// Holds a pidfd on each registered container that runs.
    fn follow_exits(&mut self, snapshot: &Snapshot) {
        let shares_pids = self
            .setup
            .facts
            .load()
            .as_ref()
            .is_some_and(|facts| facts.shares_pids);
        if !shares_pids {
            if self.setup.facts.load().is_some() && !std::mem::replace(&mut self.said_no_pids, true)
            {
                tracing::warn!(
                    "the engine's processes cannot be seen from here: deaths are noticed by its events"
                );
            }
            return;
        }
        let running: Vec<(ServiceName, Arc<LiveContainer>)> = self
            .components
            .values()
            .filter_map(|component| {
                let live = snapshot.containers.get(&component.row.container)?;
                live.state
                    .is_running()
                    .then(|| (component.row.key.service.clone(), Arc::clone(live)))
            })
            .collect();
        self.exits
            .follow(&self.setup.watch, &self.setup.busy, &running);
    }

    /// Monitors the health of each component that runs as wanted.
    fn monitor(&mut self, snapshot: &Snapshot, busy: &BTreeSet<ServiceName>) {
        let components = &self.components;
        let subjects: BTreeMap<&ComponentKey, (&Component, &Arc<LiveContainer>)> = components
            .iter()
            .filter(|(key, component)| {
                !busy.contains(&key.service)
                    && component.row.spec.health.is_some()
                    && component.row.wanted() == DesiredState::Running
                    && component.restarting == Restarting::No
            })
            .filter_map(|(key, component)| {
                let live = snapshot.containers.get(&component.row.container)?;
                // While the engine is away a monitor goes on and probes nothing.
                let runs = live.state.is_running()
                    && matches!(
                        component.seen.state,
                        ObservedState::Running | ObservedState::Unknown
                    );
                runs.then_some((key, (component, live)))
            })
            .collect();
        self.monitors.keep(|key| subjects.contains_key(key));
        for (key, (component, live)) in subjects {
            let Some(health) = &component.row.spec.health else {
                continue;
            };
            if self.monitors.has(key, live, health) {
                continue;
            }
            let subject = Subject {
                key: key.clone(),
                spec: component.row.spec.clone(),
                health: health.clone(),
                live: Arc::clone(live),
                word: component.seen.health.unwrap_or(HealthWord::Starting),
            };
            self.monitors.begin(subject, (self.setup.jitter)());
        }
    }
}

/// Whether a snapshot's list was asked for after this moment.
fn is_of(snapshot: &Snapshot, since: Option<Instant>) -> bool {
    since.is_none_or(|since| snapshot.taken_at >= since)
}

/// Whether another container of the same component runs on this node.
fn runs_elsewhere(snapshot: &Snapshot, row: &DeployedRow) -> bool {
    let Some(own) = snapshot.containers.get(&row.container) else {
        return false;
    };
    let node = own.labels.get(label::NODE);
    node.is_some()
        && snapshot.containers.values().any(|other| {
            other.id != own.id
                && other.state.is_running()
                && other.labels.get(label::NODE) == node
                && other.claimed_key().as_ref() == Some(&row.key)
        })
}
