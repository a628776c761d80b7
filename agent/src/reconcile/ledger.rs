//! What is remembered of the agent's own reconciling: pure, time is an argument.
//!
//! Two things keep it from going round in circles. A service whose deployment did not end well waits,
//! longer after each failure in a row. A component that has to be repaired again and again is
//! *contested*: somebody else changes it back, so its repairs wait, longer each time, until it was
//! left alone for a while. Everything stands in the registry as well, and is taken up from there after
//! a restart. What is waited for is counted by the monotonic clock: a wall clock that was set makes a
//! pause of before the restart shorter or begin anew, and never longer than a pause is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::component::{Reconcile, ServiceSpec};
use mcp_spec::definition::DesiredSet;
use mcp_spec::duration::Span;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName, ServiceName};
use serde_json::json;
use tokio::time::Instant;

use crate::registry::{BLOCKED, NewEvent, PauseRow, Reconciled, RepairsRow, contested_over};

/// First pause, after a failure or once something is contested.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Shortest window that repairs are counted in: a repair itself may take a minute.
const SHORTEST_WINDOW: Duration = Duration::from_secs(300);

/// Most repairs in the window before something is contested, whatever the threshold of flapping is.
const MOST_REPAIRS: u32 = 10;

/// Failures in a row after which a service that cannot be brought to the head needs a person: half a
/// minute, within which what is only late has come.
const PERSISTS: u32 = 3;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// For everything that is timed.
    pub(super) now: Instant,
    /// For people and records.
    pub(super) at: Timestamp,
}

/// When a component counts as contested.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Repairs within the window.
    threshold: usize,
    /// The window.
    window: Duration,
    /// How long nobody may touch it until it counts as left alone.
    calm: Duration,
}

impl Bounds {
    /// The bounds that go with those of flapping.
    pub(super) fn of(flap_threshold: u32, flap_window: Duration) -> Self {
        let threshold = match flap_threshold {
            0 => 3,
            threshold => threshold.min(MOST_REPAIRS),
        };
        Self {
            threshold: usize::try_from(threshold).unwrap_or(usize::MAX),
            window: flap_window.max(SHORTEST_WINDOW),
            calm: flap_window,
        }
    }
}

/// A repair of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repair {
    /// The component.
    pub(super) component: ComponentName,
    /// The spec that the head wants.
    pub(super) wanted: Digest,
    /// What was repaired.
    pub(super) cause: String,
}

/// How far an attempt came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Reach {
    /// No deployment began, so that none tells of it.
    #[default]
    Nothing,
    /// A deployment ended before it stopped anything.
    Aborted,
    /// A deployment did something, and what came of it is told as any deployment's.
    Crossed,
}

/// What came of one attempt to bring a service to the head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attempt {
    /// What went wrong, where anything did.
    pub(super) failure: Option<String>,
    /// How far it came.
    pub(super) reach: Reach,
    /// What was repaired, well or not.
    pub(super) repairs: Vec<Repair>,
    /// What could not be made ready, so that nothing was touched at all.
    pub(super) unready: Vec<ComponentName>,
}

#[derive(Debug)]
struct Pause {
    row: PauseRow,
    ended: Instant,
    until: Instant,
}

#[derive(Debug)]
struct Repairs {
    row: RepairsRow,
    /// When each of the row's repairs was made.
    times: VecDeque<Instant>,
    until: Instant,
    /// When it was last seen in need of a repair, or repaired.
    touched: Instant,
}

/// All that is remembered.
#[derive(Debug)]
pub(super) struct Ledger {
    bounds: Bounds,
    pauses: BTreeMap<ServiceName, Pause>,
    repairs: BTreeMap<ComponentKey, Repairs>,
    /// Services that an emptied engine lost, and that are brought back as they were.
    lost: BTreeSet<ServiceName>,
}

/// What stands for what is wanted of a service that is brought back as it was.
pub(super) fn as_it_was() -> Digest {
    Digest::of(b"as it was deployed")
}

/// What the head wants of a service, in one digest.
pub(super) fn wanted(service: &ServiceSpec) -> Digest {
    let mut text = format!("{} {}\n", service.name, service.active);
    for (name, spec) in &service.components {
        text.push_str(&format!("{name} {}\n", spec.digest()));
    }
    Digest::of(text.as_bytes())
}

/// The time that has passed since `before`: none where the wall clock was set back.
fn passed(before: Timestamp, at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(before)).unwrap_or_default()
}

/// That long before now, as far as the monotonic clock goes back.
fn ago(now: Instant, passed: Duration) -> Instant {
    now.checked_sub(passed).unwrap_or(now)
}

/// What is left of a pause that began at `before`.
fn left(pause_ms: u64, before: Timestamp, at: Timestamp) -> Duration {
    Duration::from_millis(pause_ms)
        .min(LONGEST_PAUSE)
        .saturating_sub(passed(before, at))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn span(duration: Duration) -> Span {
    Span::from_millis(millis(duration))
}

impl Ledger {
    /// Nothing is remembered yet.
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            pauses: BTreeMap::new(),
            repairs: BTreeMap::new(),
            lost: BTreeSet::new(),
        }
    }

    /// Takes in which services are to be brought back as they were.
    pub(super) fn set_lost(&mut self, lost: BTreeSet<ServiceName>) {
        self.lost = lost;
    }

    /// Whether nothing is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.pauses.is_empty() && self.repairs.is_empty()
    }

    /// Takes in what the registry has. What it has no more, an operator's deployment took away.
    pub(super) fn take_in(
        &mut self,
        pauses: Vec<PauseRow>,
        repairs: Vec<RepairsRow>,
        moment: Moment,
    ) {
        let services: BTreeSet<&ServiceName> = pauses.iter().map(|row| &row.service).collect();
        self.pauses.retain(|service, _| services.contains(service));
        let keys: BTreeSet<&ComponentKey> = repairs.iter().map(|row| &row.key).collect();
        self.repairs.retain(|key, _| keys.contains(key));
        for row in pauses {
            self.pauses.entry(row.service.clone()).or_insert_with(|| {
                let left = left(row.pause_ms, row.at, moment.at);
                Pause {
                    ended: ago(moment.now, passed(row.at, moment.at)),
                    until: moment.now + left,
                    row,
                }
            });
        }
        for row in repairs {
            self.repairs.entry(row.key.clone()).or_insert_with(|| {
                let left = left(row.pause_ms, row.at, moment.at);
                let since = |at: &Timestamp| ago(moment.now, passed(*at, moment.at));
                Repairs {
                    times: row.times.iter().map(since).collect(),
                    // It has to be seen calm: nobody looked while the agent was away.
                    touched: moment.now,
                    until: moment.now + left,
                    row,
                }
            });
        }
    }

    /// Forgets what the head wants otherwise by now, or no longer leaves to the agent.
    pub(super) fn follow(&mut self, head: &DesiredSet, moment: Moment) -> Reconciled {
        let mut changes = Reconciled::default();
        let automatic = |service: &ServiceName| {
            let service = head.services.get(service)?;
            (service.reconcile == Reconcile::Auto).then_some(service)
        };
        self.pauses.retain(|service, pause| {
            let same = if self.lost.contains(service) {
                pause.row.wanted == as_it_was()
            } else {
                automatic(service).is_some_and(|spec| wanted(spec) == pause.row.wanted)
            };
            if !same {
                changes.no_pauses.push(service.clone());
                changes
                    .events
                    .extend(blocked_over(&pause.row, moment.at, "not-wanted"));
            }
            same
        });
        self.repairs.retain(|key, repairs| {
            let service = automatic(&key.service);
            let spec = service.and_then(|service| service.components.get(&key.component));
            let reason = match spec {
                Some(spec) if spec.digest() == repairs.row.wanted => return true,
                Some(_) => "new-revision",
                None => "not-automatic",
            };
            if repairs.row.contested {
                changes.events.push(contested_over(key, moment.at, reason));
            }
            changes.no_repairs.push(key.clone());
            false
        });
        changes
    }

    /// Whether the service may be tried now.
    pub(super) fn may_try(&self, service: &ServiceName, now: Instant) -> bool {
        self.pauses
            .get(service)
            .is_none_or(|pause| pause.until <= now)
    }

    /// The components of a service whose next repair has to wait.
    pub(super) fn waiting(&self, service: &ServiceName, now: Instant) -> BTreeSet<ComponentName> {
        self.repairs
            .iter()
            .filter(|(key, repairs)| key.service == *service && repairs.until > now)
            .map(|(key, _)| key.component.clone())
            .collect()
    }

    /// Takes in which of a service's components are in need of a repair.
    pub(super) fn needs(&mut self, service: &ServiceName, broken: &[ComponentName], now: Instant) {
        for component in broken {
            let key = ComponentKey::new(service.clone(), component.clone());
            if let Some(repairs) = self.repairs.get_mut(&key) {
                repairs.touched = now;
            }
        }
    }

    /// What the passing of time brings: contests that are over, and what may be forgotten.
    pub(super) fn pass(&mut self, moment: Moment) -> Reconciled {
        let mut changes = Reconciled::default();
        let Bounds { window, calm, .. } = self.bounds;
        self.pauses.retain(|service, pause| {
            // A success that lasted.
            let stays = pause.row.pause_ms > 0 || moment.now.duration_since(pause.ended) < calm;
            if !stays {
                changes.no_pauses.push(service.clone());
            }
            stays
        });
        self.repairs.retain(|key, repairs| {
            let stays = if repairs.row.contested {
                moment.now.duration_since(repairs.touched) < calm
            } else {
                let last = repairs.times.back();
                last.is_some_and(|last| moment.now.duration_since(*last) < window)
            };
            if !stays {
                changes.no_repairs.push(key.clone());
                if repairs.row.contested {
                    let over = contested_over(key, moment.at, "left-alone");
                    changes.events.push(over);
                }
            }
            stays
        });
        changes
    }

    /// Takes in what came of an attempt to bring a service to what was `wanted`.
    pub(super) fn ended(
        &mut self,
        service: &ServiceName,
        wanted: Digest,
        attempt: Attempt,
        moment: Moment,
    ) -> Reconciled {
        let mut changes = Reconciled::default();
        let before = self.pauses.get(service).map(|pause| pause.row.clone());
        if let Some(row) = self.paused(service, wanted, attempt.failure, moment) {
            changes
                .events
                .extend(blocked(&row, before.as_ref(), attempt.reach));
            changes.pauses.push(row);
        }
        for repair in attempt.repairs {
            let key = ComponentKey::new(service.clone(), repair.component);
            let (row, event) = self.repaired(key, repair.wanted, repair.cause, moment);
            changes.repairs.push(row);
            changes.events.extend(event);
        }
        changes
    }

    /// Takes in that there is nothing to do for a service: what stood in its way does so no more.
    pub(super) fn has_nothing_to_do(
        &mut self,
        service: &ServiceName,
        moment: Moment,
    ) -> Reconciled {
        let mut changes = Reconciled::default();
        let is_blocked = |pause: &Pause| pause.row.is_blocked();
        if self.pauses.get(service).is_some_and(is_blocked)
            && let Some(pause) = self.pauses.remove(service)
        {
            changes.no_pauses.push(service.clone());
            changes
                .events
                .extend(blocked_over(&pause.row, moment.at, "nothing-to-do"));
        }
        changes
    }

    fn paused(
        &mut self,
        service: &ServiceName,
        wanted: Digest,
        failure: Option<String>,
        moment: Moment,
    ) -> Option<PauseRow> {
        let before = self.pauses.get(service);
        let (failures, pause) = match &failure {
            Some(_) => {
                let failures = before
                    .map_or(0, |pause| pause.row.failures)
                    .saturating_add(1);
                (failures, doubled(failures - 1))
            }
            // The next failure goes on from here, unless this success lasts.
            None => (before?.row.failures, Duration::ZERO),
        };
        let row = PauseRow {
            service: service.clone(),
            wanted,
            failures,
            pause_ms: millis(pause),
            at: moment.at,
            cause: failure.unwrap_or_default(),
        };
        let pause = Pause {
            row: row.clone(),
            ended: moment.now,
            until: moment.now + pause,
        };
        self.pauses.insert(service.clone(), pause);
        Some(row)
    }

    fn repaired(
        &mut self,
        key: ComponentKey,
        wanted: Digest,
        cause: String,
        moment: Moment,
    ) -> (RepairsRow, Option<NewEvent>) {
        let Bounds {
            threshold, window, ..
        } = self.bounds;
        let repairs = self.repairs.entry(key.clone()).or_insert_with(|| Repairs {
            row: RepairsRow {
                key: key.clone(),
                wanted,
                times: Vec::new(),
                contested: false,
                pause_ms: 0,
                at: moment.at,
                cause: cause.clone(),
            },
            times: VecDeque::new(),
            until: moment.now,
            touched: moment.now,
        });
        let is_old = |time: &Instant| moment.now.duration_since(*time) >= window;
        while repairs.times.front().is_some_and(is_old) {
            repairs.times.pop_front();
        }
        repairs.times.push_back(moment.now);
        let over = repairs.times.len().saturating_sub(threshold);
        repairs.times.drain(..over);
        let row = &mut repairs.row;
        row.times.push(moment.at);
        let over = row.times.len().saturating_sub(repairs.times.len());
        row.times.drain(..over);
        let is_other_cause = row.cause != cause;
        let begins = !row.contested && repairs.times.len() >= threshold;
        let pause = match (row.contested, begins) {
            (true, _) => {
                (Duration::from_millis(row.pause_ms) * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
            }
            (false, true) => FIRST_PAUSE,
            (false, false) => Duration::ZERO,
        };
        row.contested |= begins;
        row.pause_ms = millis(pause);
        row.at = moment.at;
        row.cause = cause;
        row.wanted = wanted;
        repairs.until = moment.now + pause;
        repairs.touched = moment.now;
        let tells = begins || (row.contested && is_other_cause);
        let event = tells.then(|| contested(row, span(window), moment.at));
        (row.clone(), event)
    }

    /// When there is something to do by the passing of time alone, at the earliest.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let Bounds { window, calm, .. } = self.bounds;
        let pauses = self.pauses.values().map(|pause| match pause.row.pause_ms {
            0 => pause.ended + calm,
            _ => pause.until,
        });
        let repairs = self.repairs.values().flat_map(|repairs| {
            let last = repairs.times.back().map_or(now, |last| *last);
            let forgotten = if repairs.row.contested {
                repairs.touched + calm
            } else {
                last + window
            };
            [repairs.until, forgotten]
        });
        pauses.chain(repairs).filter(|at| *at > now).min()
    }
}

/// The first pause, doubled so many times.
fn doubled(times: u32) -> Duration {
    (FIRST_PAUSE * 2_u32.pow(times.min(16))).min(LONGEST_PAUSE)
}

/// The event that tells that a service cannot be brought to the head: at once where no deployment tells
/// it, and again when it persists, as often as what stands in the way changes.
fn blocked(row: &PauseRow, before: Option<&PauseRow>, reach: Reach) -> Option<NewEvent> {
    let goes_on = before.filter(|before| before.pause_ms > 0);
    let is_told = goes_on.is_some_and(|before| before.failures >= PERSISTS);
    let is_other = goes_on.is_none_or(|before| before.cause != row.cause);
    let persists = row.failures >= PERSISTS;
    let tells = row.pause_ms > 0
        && match reach {
            Reach::Nothing => is_other || (persists && !is_told),
            // What a deployment says of a failure may have another number in it each time.
            Reach::Aborted => persists && !is_told,
            Reach::Crossed => false,
        };
    tells.then(|| {
        let pause = Span::from_millis(row.pause_ms);
        let cause = row.cause.strip_prefix(BLOCKED).unwrap_or(&row.cause);
        NewEvent {
            at: row.at,
            service: Some(row.service.clone()),
            component: None,
            kind: "blocked".to_owned(),
            reason: cause.to_owned(),
            message: match row.failures {
                1 => format!(
                    "{} is blocked: {cause}; tried again in {pause}",
                    row.service
                ),
                times => format!(
                    "{} is blocked: {cause}; tried {times} times, and again in {pause}",
                    row.service
                ),
            },
            revision: None,
            data: json!({
                "cause": cause,
                "failures": row.failures,
                "persists": persists,
                "pause_ms": row.pause_ms,
            }),
        }
    })
}

/// The event that ends what was told to persist.
fn blocked_over(row: &PauseRow, at: Timestamp, reason: &str) -> Option<NewEvent> {
    (row.pause_ms > 0 && row.failures >= PERSISTS).then(|| NewEvent {
        at,
        service: Some(row.service.clone()),
        component: None,
        kind: "blocked-over".to_owned(),
        reason: reason.to_owned(),
        message: match reason {
            "not-wanted" => format!(
                "{} is blocked no more: something else is wanted",
                row.service
            ),
            _ => format!(
                "{} is blocked no more: there is nothing left to do",
                row.service
            ),
        },
        revision: None,
        data: json!({}),
    })
}

/// The event that tells of a contest, or of another cause of one.
fn contested(row: &RepairsRow, window: Span, at: Timestamp) -> NewEvent {
    let pause = Span::from_millis(row.pause_ms);
    NewEvent {
        at,
        service: Some(row.key.service.clone()),
        component: Some(row.key.component.clone()),
        kind: "contested".to_owned(),
        reason: row.cause.clone(),
        message: format!(
            "{} is contested: {}, and repaired {} times within {window}; the next repair waits {pause}",
            row.key,
            row.cause,
            row.times.len(),
        ),
        revision: None,
        data: json!({
            "cause": row.cause,
            "repairs": row.times.len(),
            "pause_ms": row.pause_ms,
        }),
    }
}

#[cfg(test)]
mod tests;
