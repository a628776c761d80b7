//! One deployed component as the watch remembers it: what was seen, and what follows from it.
//!
//! Nothing here waits or asks: observations, time and jitter are arguments; rows and events come out.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mcp_spec::drift::observed_state;
use mcp_spec::observed::{ContainerState, DesiredState, LiveContainer, Observed, ObservedState};
use serde_json::json;
use tokio::time::Instant;

use super::current::is_dead;
use super::flapping::{Bounds, Flapping};
use super::news::{self, End};
use super::restart::{CALM, Next, ORDERLY_PAUSE, longest, next};
use super::revive::Revived;
use super::sight::{blank, drift_rows, expected};
use crate::registry::{DeployedRow, DriftRow, HealthWord, NewEvent, ObservedRow};

/// How long the news of a death waits for its exit code. With it one event tells all; the bar for the
/// event is 20 ms.
const CODE_GRACE: Duration = Duration::from_millis(3);

/// How long an end that comes after the news of its death waits: what is removed by hand ends first,
/// and its end is nothing of its own then.
const REMOVAL_GRACE: Duration = Duration::from_secs(2);

/// After this time a death counts as an end whose exit code the engine does not tell.
const CODE_WAIT: Duration = Duration::from_secs(21);

/// How long what went down with the engine holds up what depends on it: longer than the engine takes to
/// tell how it ended.
const FALL_WAIT: Duration = Duration::from_secs(30);

/// Shortest pause that is worth an event of its own.
const TOLD_PAUSE: Duration = Duration::from_secs(1);

/// Pause before a start is asked for again that came at a bad time.
const NOT_NOW_PAUSE: Duration = Duration::from_millis(250);

/// Pause before a start is asked for again that met no engine.
const AWAY_PAUSE: Duration = Duration::from_secs(1);

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// For everything that is timed.
    pub(super) now: Instant,
    /// For people and records.
    pub(super) at: Timestamp,
}

/// Where the restart policy stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Restarting {
    /// Nothing is to be started.
    No,
    /// It is to be started then.
    Due(Instant),
    /// Its start has been asked for.
    Asked,
}

/// A process that is dead while the engine has not said so.
#[derive(Debug, Clone, Copy)]
struct Dying {
    since: Moment,
    /// Its process is known to be dead; else the engine says that it is at it.
    is_dead: bool,
    told: bool,
}

/// News of an end that may turn out to be a removal.
#[derive(Debug)]
struct Held {
    events: Vec<NewEvent>,
    until: Instant,
}

/// One deployed component.
#[derive(Debug)]
pub(super) struct Component {
    pub(super) row: DeployedRow,
    pub(super) seen: ObservedRow,
    pub(super) restarting: Restarting,
    /// The next look follows a change by the agent itself: what differs is no news.
    pub(super) quiet: bool,
    /// Something other than the container changed: look again in any case.
    pub(super) dirty: bool,
    /// The container at the last look; compared by address.
    pub(super) looked: Option<Arc<LiveContainer>>,
    /// The row as it was handed over to be written last.
    pub(super) recorded: Option<ObservedRow>,
    /// The state when it was last known.
    known: Option<ObservedState>,
    running_since: Option<Instant>,
    dying: Option<Dying>,
    held: Option<Held>,
    /// How it differed when its deployment ended, which has told so.
    told: Vec<DriftRow>,
    flapping: Flapping,
    /// A start was scheduled before the agent began; taken up once.
    inherited: Option<Timestamp>,
    /// It was told that the policy is spent.
    is_spent: bool,
    /// The engine's store was emptied, its container with it.
    is_lost: bool,
    /// It went down with the engine or the host, and has not come to a start since: until when others
    /// wait for that.
    fallen: Option<Instant>,
}

impl Component {
    /// A component as the registry knows it.
    pub(super) fn new(row: DeployedRow, seen: Option<ObservedRow>, at: Timestamp) -> Self {
        let known = seen
            .as_ref()
            .map(|seen| seen.state)
            .filter(|state| *state != ObservedState::Unknown);
        let recorded = seen.clone();
        let flapping = seen.as_ref().and_then(|seen| seen.flapping.as_ref());
        let flapping = flapping.map_or_else(Flapping::default, |row| {
            Flapping::restored(row, Instant::now(), at)
        });
        let seen = seen.unwrap_or_else(|| blank(&row, at));
        Self {
            inherited: seen.next_restart_at,
            is_spent: known == Some(ObservedState::Failed),
            is_lost: false,
            fallen: None,
            restarting: Restarting::No,
            quiet: false,
            dirty: true,
            looked: None,
            recorded,
            known,
            running_since: None,
            dying: None,
            held: None,
            told: Vec::new(),
            flapping,
            row,
            seen,
        }
    }

    /// Whether it was known before that its container is gone: while the engine is away its drift tells.
    pub(super) fn was_gone(&self) -> bool {
        let tells = |row: &DriftRow| {
            row.field == mcp_spec::drift::STATE && row.live == ObservedState::Absent.as_str()
        };
        self.known == Some(ObservedState::Absent) || self.seen.drift.iter().any(tells)
    }

    /// Takes in that the engine's store was emptied.
    pub(super) fn is_lost(&mut self) {
        self.is_lost = true;
        self.dirty = true;
    }

    /// Whether it ran when it was known last, as far as anybody knows.
    pub(super) fn was_running(&self) -> bool {
        match self.known {
            Some(known) => known == ObservedState::Running,
            None => !self.row.spec.kind.is_job(),
        }
    }

    /// Takes in that it went down with the engine or the host.
    pub(super) fn fell(&mut self, now: Instant) {
        self.fallen = Some(now + FALL_WAIT);
        self.dirty = true;
    }

    /// Whether it went down with the engine or the host, and others wait for its start.
    pub(super) fn has_fallen(&self, now: Instant) -> bool {
        self.fallen.is_some_and(|until| now < until)
    }

    /// What the end of a deployment has told of how it differs is no news.
    pub(super) fn was_told(&mut self, drift: Vec<DriftRow>) {
        self.told = drift;
    }

    /// Takes over a row that the registry has now, after a change by the agent.
    pub(super) fn replace_row(&mut self, row: DeployedRow, at: Timestamp) {
        let is_another = row.container != self.row.container;
        let is_released = self.row.stopped_by.is_some() && row.stopped_by.is_none();
        let is_other_case = is_another
            || row.wanted() != self.row.wanted()
            || row.spec.restart != self.row.spec.restart;
        if is_another {
            self.is_lost = false;
            let before = std::mem::replace(&mut self.seen, blank(&row, at));
            self.seen.drift = before.drift;
            self.known = None;
            self.running_since = None;
            self.dying = None;
            self.held = None;
            self.looked = None;
            // The registry may hold another row by now, or none.
            self.recorded = None;
        }
        if is_another || is_released {
            self.seen.backoff_attempt = 0;
        }
        if is_other_case {
            self.fallen = None;
            self.restarting = Restarting::No;
            self.inherited = None;
            self.is_spent = false;
        }
        self.dirty |= row != self.row;
        self.row = row;
    }

    /// When it has to be looked at again without any news.
    pub(super) fn next_look(&self, bounds: Bounds) -> Option<Instant> {
        let dying = self.dying.map(|dying| {
            let wait = if dying.told || !dying.is_dead {
                CODE_WAIT
            } else {
                CODE_GRACE
            };
            dying.since.now + wait
        });
        let held = self.held.as_ref().map(|held| held.until);
        let turn = self.flapping.next_turn(bounds, self.running_since);
        [dying, held, turn].into_iter().flatten().min()
    }

    /// Takes in what is observed; tells what follows. The row is changed in place.
    pub(super) fn look(
        &mut self,
        observed: &Observed,
        moment: Moment,
        jitter: f64,
        bounds: Bounds,
    ) -> Vec<NewEvent> {
        // Whatever is seen meanwhile, the answer tells of it.
        if self.restarting == Restarting::Asked {
            return Vec::new();
        }
        let was_told = self.dying.is_some_and(|dying| dying.told);
        let ended = self.seen.finished_at;
        let mut events = self.take_in(observed, moment, jitter, bounds);
        let has_ended = was_told && self.dying.is_none() && self.seen.finished_at != ended;
        if has_ended && self.known != Some(ObservedState::Absent) {
            let until = moment.now + REMOVAL_GRACE;
            self.held = Some(Held { events, until });
            return Vec::new();
        }
        let Some(held) = self.held.take() else {
            return events;
        };
        if events.is_empty() && moment.now < held.until {
            self.held = Some(held);
            return events;
        }
        let mut all = held.events;
        if self.known == Some(ObservedState::Absent) {
            // That it ended, and what was to follow from it, is nothing beside that it is gone.
            all.retain(|event| event.kind.starts_with("flapping"));
        }
        all.append(&mut events);
        all
    }

    /// Whether something is seen that has yet to be told.
    pub(super) const fn holds_news(&self) -> bool {
        self.held.is_some()
    }

    fn take_held(&mut self) -> Vec<NewEvent> {
        self.held.take().map(|held| held.events).unwrap_or_default()
    }

    fn take_in(
        &mut self,
        observed: &Observed,
        moment: Moment,
        jitter: f64,
        bounds: Bounds,
    ) -> Vec<NewEvent> {
        self.dirty = false;
        let mut events = Vec::new();
        let live = match observed {
            Observed::Unknown { .. } => {
                self.seen.state = ObservedState::Unknown;
                return events;
            }
            Observed::Absent => None,
            Observed::Present(live) => Some(live.as_ref()),
        };
        let quiet = std::mem::take(&mut self.quiet);
        match live {
            None => self.is_absent(moment, quiet, &mut events),
            Some(live) if live.state.is_running() => {
                self.runs(live, moment, quiet, &mut events);
            }
            Some(live)
                if (is_dead(live) || is_ending(live))
                    && self.waits_for_code(live, moment, &mut events) =>
            {
                self.quiet = quiet;
                return events;
            }
            Some(live) => self.is_down(live, moment, quiet, jitter, &mut events),
        }
        let expected = expected(&self.row, self.seen.backoff_attempt);
        let state = observed_state(&expected, observed);
        // While the policy is about to start it again, its being down is no drift.
        let drift = if self.restarting == Restarting::No {
            drift_rows(&expected, observed, &self.seen.drift, moment.at)
        } else {
            self.seen
                .drift
                .iter()
                .filter(|row| row.field != mcp_spec::drift::STATE)
                .cloned()
                .collect()
        };
        self.seen.state = state;
        self.known = Some(state);
        let is_told = |row: &DriftRow| {
            let same = |told: &DriftRow| {
                (&told.field, &told.baseline, &told.live) == (&row.field, &row.baseline, &row.live)
            };
            self.told.iter().any(same)
        };
        let is_new = drift
            .iter()
            .any(|row| !self.seen.drift.contains(row) && !is_told(row));
        if is_new {
            events.push(news::drifted(&self.row, moment.at, &drift));
        } else if drift.is_empty() && !self.seen.drift.is_empty() {
            events.push(news::drift_gone(&self.row, moment.at, &self.seen.drift));
        }
        self.seen.drift = drift;
        events.extend(self.turn(moment, bounds));
        events
    }

    fn is_absent(&mut self, moment: Moment, quiet: bool, events: &mut Vec<NewEvent>) {
        let was_there = self
            .known
            .is_some_and(|state| state != ObservedState::Absent);
        let is_wanted = self.row.wanted() == DesiredState::Running;
        if was_there && (is_wanted || !quiet) {
            let (reason, said) = if self.is_lost {
                ("engine-emptied", "is gone with the engine's store")
            } else {
                ("outside", "was removed outside mcp")
            };
            events.push(news::about(
                &self.row,
                moment.at,
                "removed",
                reason,
                said,
                json!({}),
            ));
            // An end that was only the first half of this has been counted.
            if self.held.is_none() && !self.is_lost {
                self.flapping.change(moment.now, moment.at);
            }
        }
        self.fallen = None;
        self.dying = None;
        self.running_since = None;
        self.restarting = Restarting::No;
        self.seen.next_restart_at = None;
        self.seen.health = None;
    }

    fn runs(
        &mut self,
        live: &LiveContainer,
        moment: Moment,
        quiet: bool,
        events: &mut Vec<NewEvent>,
    ) {
        let ran = self.known == Some(ObservedState::Running);
        let is_new_run = !ran || self.seen.started_at != live.started_at;
        if is_new_run && self.known.is_some() {
            if quiet {
                // Whoever changed it has begun a new series.
                self.seen.backoff_attempt = 0;
            } else {
                let (kind, said) = if ran {
                    ("restarted", "was restarted outside mcp")
                } else {
                    ("started", "was started outside mcp")
                };
                events.push(news::about(
                    &self.row,
                    moment.at,
                    kind,
                    "outside",
                    said,
                    json!({}),
                ));
                self.flapping.change(moment.now, moment.at);
            }
        }
        if is_new_run || self.running_since.is_none() {
            self.running_since = Some(began(live, moment));
        }
        let calm = self
            .running_since
            .is_some_and(|since| moment.now.duration_since(since) >= CALM);
        if calm {
            self.seen.backoff_attempt = 0;
        }
        let word = if quiet {
            HealthWord::Healthy
        } else {
            HealthWord::Starting
        };
        self.seen.health = match (&self.row.spec.health, self.seen.health) {
            (None, _) => None,
            (Some(_), Some(word)) if !is_new_run => Some(word),
            // A deployment's gate has passed it; anything else has yet to show.
            (Some(_), _) => Some(word),
        };
        self.seen.started_at = live.started_at;
        self.seen.finished_at = None;
        self.seen.next_restart_at = None;
        self.dying = None;
        self.fallen = None;
        self.restarting = Restarting::No;
        self.inherited = None;
        self.is_spent = false;
    }

    /// Whether the end of a dead process has still to be told by the engine.
    fn waits_for_code(
        &mut self,
        live: &LiveContainer,
        moment: Moment,
        events: &mut Vec<NewEvent>,
    ) -> bool {
        let is_dead = is_dead(live);
        let dying = self.dying.get_or_insert(Dying {
            since: moment,
            is_dead,
            told: false,
        });
        if is_dead && !dying.is_dead {
            dying.since = moment;
            dying.is_dead = true;
        }
        let waited = moment.now.duration_since(dying.since.now);
        if dying.is_dead && !dying.told && waited >= CODE_GRACE && !self.quiet {
            dying.told = true;
            self.seen.state = ObservedState::Stopped;
            let said = "died; the engine has yet to tell its exit code";
            events.push(news::about(
                &self.row,
                dying.since.at,
                "died",
                "process-ended",
                said,
                json!({}),
            ));
        }
        waited < CODE_WAIT
    }

    fn is_down(
        &mut self,
        live: &LiveContainer,
        moment: Moment,
        quiet: bool,
        jitter: f64,
        events: &mut Vec<NewEvent>,
    ) {
        let (code, oom) = match live.state {
            ContainerState::Exited { code, oom } => (Some(code), oom),
            _ => (None, false),
        };
        let is_wanted = self.row.wanted() == DesiredState::Running;
        let ran_again = live.started_at.is_some()
            && self.seen.started_at.is_some()
            && live.started_at != self.seen.started_at;
        let is_new_end = match self.known {
            Some(ObservedState::Running) => true,
            Some(_) => ran_again,
            None => is_wanted && !self.row.spec.kind.is_job(),
        };
        if is_new_end {
            let ran = self.ran(live, moment);
            if ran.is_some_and(|ran| ran >= CALM) {
                self.seen.backoff_attempt = 0;
            }
            if is_wanted || !quiet {
                let at = self.dying.map_or(moment.at, |dying| dying.since.at);
                let end = End { code, oom, ran };
                events.push(news::exited(&self.row, at, end, self.why_ended(live)));
                self.flapping.change(moment.now, moment.at);
            }
        }
        self.dying = None;
        self.running_since = None;
        self.seen.health = None;
        self.seen.exit_code = code.or(self.seen.exit_code.filter(|_| !is_new_end));
        self.seen.oom = oom || (self.seen.oom && !is_new_end);
        self.seen.started_at = live.started_at.or(self.seen.started_at);
        self.seen.finished_at = live
            .finished_at
            .or(self.seen.finished_at.filter(|_| !is_new_end))
            .or(is_new_end.then_some(moment.at));
        let is_startable = matches!(
            live.state,
            ContainerState::Exited { .. } | ContainerState::Created
        ) || is_dead(live);
        if !is_wanted || self.row.spec.kind.is_job() {
            self.fallen = None;
            self.restarting = Restarting::No;
            self.seen.next_restart_at = None;
            self.inherited = None;
        } else if self.restarting == Restarting::No && is_startable {
            self.schedule(code, moment, jitter, events);
        }
    }

    /// The end of what the agent itself was away for is told as such.
    fn why_ended(&self, live: &LiveContainer) -> &'static str {
        if self.looked.is_none() {
            "while-away"
        } else if matches!(live.state, ContainerState::Exited { oom: true, .. }) {
            "out-of-memory"
        } else {
            "process-ended"
        }
    }

    fn ran(&self, live: &LiveContainer, moment: Moment) -> Option<Duration> {
        if let Some(since) = self.running_since {
            return Some(moment.now.duration_since(since));
        }
        let ran = live.finished_at?.duration_since(live.started_at?);
        Duration::try_from(ran).ok()
    }

    /// Whether the container came with a restart policy of the engine, which stays until a deploy replaces
    /// the container: two who start it would fight.
    fn engine_restarts(&self) -> bool {
        let policy = self.row.baseline.get("restart");
        self.row.adopted && policy.is_some_and(|policy| policy != "no")
    }

    fn schedule(
        &mut self,
        code: Option<i32>,
        moment: Moment,
        jitter: f64,
        events: &mut Vec<NewEvent>,
    ) {
        if self.engine_restarts() {
            self.fallen = None;
            self.inherited = None;
            self.seen.next_restart_at = None;
            return;
        }
        if let Some(at) = self.inherited.take() {
            // The wall clock may have jumped since: never wait longer than this pause can have been.
            let left = Duration::try_from(at.duration_since(moment.at)).unwrap_or_default();
            let bound = longest(self.seen.backoff_attempt);
            self.restarting = Restarting::Due(moment.now + left.min(bound));
            return;
        }
        let attempts = self.seen.backoff_attempt;
        if self.fallen.is_some()
            && !matches!(next(self.row.spec.restart, code, 0, jitter), Next::Finished)
        {
            // All of them at the same moment: what depends on others waits for their start alone.
            self.restarting = Restarting::Due(moment.now + ORDERLY_PAUSE);
            self.seen.next_restart_at = None;
            return;
        }
        self.fallen = None;
        match next(self.row.spec.restart, code, attempts, jitter) {
            Next::Finished => self.seen.next_restart_at = None,
            Next::Spent(max) => {
                self.seen.next_restart_at = None;
                if !std::mem::replace(&mut self.is_spent, true) {
                    events.push(news::gave_up(&self.row, moment.at, code, max));
                }
            }
            Next::Again(pause) => {
                self.restarting = Restarting::Due(moment.now + pause);
                self.seen.next_restart_at = None;
                if pause >= TOLD_PAUSE {
                    let in_a_pause = SignedDuration::try_from(pause).unwrap_or_default();
                    self.seen.next_restart_at = moment.at.checked_add(in_a_pause).ok();
                    events.push(news::restart_scheduled(
                        &self.row,
                        moment.at,
                        code,
                        pause,
                        attempts + 1,
                    ));
                }
            }
        }
    }

    /// Takes in what came of the start that was asked for.
    pub(super) fn revived(
        &mut self,
        revived: &Revived,
        moment: Moment,
        jitter: f64,
    ) -> Vec<NewEvent> {
        self.dirty = true;
        // What is being removed by hand cannot be started: a look tells.
        if let (Revived::Failed(error), Some(_)) = (revived, &self.held)
            && !error.is_away()
        {
            self.restarting = Restarting::Due(moment.now + NOT_NOW_PAUSE);
            return Vec::new();
        }
        let mut events = self.take_held();
        match revived {
            Revived::Running(live) => {
                // What the engine took down with it has not failed.
                let fell = self.fallen.take().is_some();
                self.restarting = Restarting::No;
                self.seen.restarts += 1;
                if !fell {
                    self.seen.backoff_attempt += 1;
                }
                self.seen.next_restart_at = None;
                events.push(news::restarted(
                    &self.row,
                    moment.at,
                    self.seen.exit_code,
                    self.seen.restarts,
                    self.seen.backoff_attempt,
                ));
                self.seen.state = ObservedState::Running;
                self.known = Some(ObservedState::Running);
                self.seen.started_at = live.started_at;
                self.seen.finished_at = None;
                self.running_since = Some(moment.now);
                self.seen.health = self.row.spec.health.as_ref().map(|_| HealthWord::Starting);
            }
            Revived::NotNow => self.restarting = Restarting::Due(moment.now + NOT_NOW_PAUSE),
            Revived::Failed(error) if error.is_away() => {
                self.restarting = Restarting::Due(moment.now + AWAY_PAUSE);
            }
            Revived::Failed(error) => {
                self.fallen = None;
                self.restarting = Restarting::No;
                self.seen.backoff_attempt += 1;
                let said = format!("could not be started again: {error}");
                let data = json!({ "attempt": self.seen.backoff_attempt });
                events.push(news::about(
                    &self.row,
                    moment.at,
                    "restart-failed",
                    "engine-refused",
                    &said,
                    data,
                ));
                // A failed start counts as a failure, whatever the exit before it was.
                self.schedule(None, moment, jitter, &mut events);
            }
        }
        events
    }

    /// Takes in a verdict of its health check on the run that began at `started_at`.
    pub(super) fn judged(
        &mut self,
        started_at: Option<Timestamp>,
        word: HealthWord,
        detail: &str,
        moment: Moment,
        bounds: Bounds,
    ) -> Vec<NewEvent> {
        let is_this_run = self.seen.state == ObservedState::Running
            && self.seen.started_at == started_at
            && self.row.spec.health.is_some();
        if !is_this_run || self.seen.health == Some(word) {
            return Vec::new();
        }
        if self.seen.health != Some(HealthWord::Starting) {
            self.flapping.change(moment.now, moment.at);
        }
        self.seen.health = Some(word);
        let (reason, said) = match word {
            HealthWord::Unhealthy => ("check-failed", format!("is unhealthy: {detail}")),
            HealthWord::Healthy | HealthWord::Starting => {
                ("check-passed", format!("is {}", word.as_str()))
            }
        };
        let data = json!({ "detail": detail });
        let mut events = self.take_held();
        events.push(news::about(
            &self.row,
            moment.at,
            word.as_str(),
            reason,
            &said,
            data,
        ));
        events.extend(self.turn(moment, bounds));
        events
    }

    fn turn(&mut self, moment: Moment, bounds: Bounds) -> Option<NewEvent> {
        let turn = if self.row.wanted() == DesiredState::Running {
            self.flapping.turn(moment.now, bounds, self.running_since)
        } else {
            self.flapping.stop()
        };
        self.seen.flapping = Some(self.flapping.row());
        Some(news::flapping(&self.row, moment.at, turn?, bounds.window))
    }
}

/// Whether the engine says that it is just stopping or removing the container: how that ends is told
/// by what comes after.
fn is_ending(live: &LiveContainer) -> bool {
    matches!(&live.state, ContainerState::Other(word) if matches!(word.as_str(), "stopping" | "removing"))
}

/// When a run began, on the monotonic clock. A wall clock that jumped makes it now at worst.
fn began(live: &LiveContainer, moment: Moment) -> Instant {
    let ran = live
        .started_at
        .and_then(|started| Duration::try_from(moment.at.duration_since(started)).ok())
        .unwrap_or_default();
    moment.now.checked_sub(ran).unwrap_or(moment.now)
}
