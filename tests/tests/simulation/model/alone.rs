//! The rules of what the agent does by itself: 6, 7, 9, 14 and 15.

use std::time::Duration;

use mcp_agent::registry::{DeployedRow, Trigger};
use mcp_spec::component::Reconcile;
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentKey;
use mcp_spec::plan::{Action, ActionKind, Reason};
use tokio::time::Instant;

use super::{Known, Model, Open};
use crate::engine::{Engine, State};

/// Repairs after which somebody else is at work, and the time that they fall into. The agent counts when a
/// repair has ended, and a longer time: what is seen here it has seen.
const CONTESTED: usize = 3;
const WINDOW: Duration = Duration::from_secs(150);

/// Calm after which a contest is over.
const CALM: Duration = Duration::from_secs(300);

/// How long an engine may be away before the agent has noticed.
const NOTICED: Duration = Duration::from_secs(5);

/// The repairs of one component.
#[derive(Debug)]
pub(super) struct Repairs {
    wanted: Digest,
    times: Vec<Instant>,
}

impl Repairs {
    /// The agent was restarted: it may not have written the last one down.
    pub(super) fn forget_one(&mut self) {
        self.times.pop();
    }

    /// Takes in a repair; gives the pause that ought to have come before it, and the one that did.
    fn repaired(&mut self, now: Instant) -> Option<(Duration, Duration)> {
        let since = |time: &Instant| now.duration_since(*time);
        if self.times.last().is_some_and(|last| since(last) >= CALM) {
            self.times.clear();
        }
        if self.times.len() < CONTESTED {
            self.times.retain(|time| since(time) < WINDOW);
        }
        let waited = self.times.last().map(since).unwrap_or_default();
        let contested = self.times.len().checked_sub(CONTESTED);
        self.times.push(now);
        let doubled = 2_u32.pow(u32::try_from(contested?.min(5)).ok()?);
        let pause = (Duration::from_secs(9) * doubled).min(Duration::from_secs(269));
        Some((pause, waited))
    }
}

/// Whether it brings back what somebody changed.
fn repairs(action: &Action) -> bool {
    use ActionKind as K;
    match action.reason {
        Reason::ContainerMissing | Reason::Drifted(_) | Reason::Paused => {
            matches!(action.kind, K::Create | K::Replace | K::Start)
        }
        Reason::Inactive => action.kind == K::Stop,
        _ => false,
    }
}

impl Model {
    /// The wall clock jumps: pauses of before may be over when the agent begins again.
    pub(crate) fn clock_jumps(&self) {
        self.known().repairs.clear();
    }

    /// The engine is about to lose all that it holds.
    pub(crate) fn store_emptied(&self, state: &State) {
        let mut known = self.known();
        // What a deployment makes meanwhile tells of another registry.
        if known.open.is_empty() {
            let there = known.rows.values().filter(|row| {
                let is_there = state.containers.contains_key(&row.container);
                is_there && !row.adopted
            });
            known.lost = there
                .map(|row| (row.key.clone(), row.container.clone()))
                .collect();
        }
    }

    /// A container was made that claims to be one of the agent's.
    pub(crate) fn claimed(&self) {
        self.known().lost.clear();
    }

    /// Rules 14 and 15, when a deployment begins.
    pub(super) fn judge_beginning(&self, engine: &Engine, known: &mut Known, open: &Open) {
        if open.row.trigger != Trigger::Auto {
            known.lost.clear();
            return;
        }
        let away = engine.state().down_since.map(|since| since.elapsed());
        if away.is_some_and(|away| away > NOTICED) {
            self.trace.violation(format!(
                "{} is deployed by the agent itself, and the engine is away since {away:?}",
                open.row.service
            ));
        }
    }

    /// Rule 14, when a deployment crosses the line.
    pub(super) fn judge_repairs(&self, known: &mut Known, open: &Open) {
        if open.row.trigger != Trigger::Auto {
            return;
        }
        let now = Instant::now();
        for action in open.plan.actions.iter().filter(|action| repairs(action)) {
            let Some(after) = &action.after else { continue };
            let key = ComponentKey::new(open.row.service.clone(), action.component.clone());
            let new = || Repairs {
                wanted: after.spec_digest,
                times: Vec::new(),
            };
            let before = known.repairs.entry(key.clone()).or_insert_with(new);
            if before.wanted != after.spec_digest {
                *before = new();
            }
            if let Some((pause, waited)) = before.repaired(now)
                && waited < pause
            {
                self.trace.violation(format!(
                    "{key}: repaired again after {waited:?}, and {} repairs ask for {pause:?}",
                    before.times.len() - 1
                ));
            }
        }
    }

    /// Rules 6, 7 and 9, when a plan is taken on and when it crosses the line.
    pub(super) fn judge_plan(&self, engine: &Engine, known: &Known, open: &Open, crosses: bool) {
        let trigger = open.row.trigger;
        // What an emptied engine took along comes back as it was, whoever deploys the service.
        let as_it_was = |action: &Action| {
            let key = ComponentKey::new(open.row.service.clone(), action.component.clone());
            let row = known.rows.get(&key);
            let after = action.after.as_ref();
            action.reason == Reason::EngineEmptied
                && row.zip(after).is_some_and(|(row, after)| {
                    row.spec_digest == after.spec_digest && row.revision == after.revision
                })
        };
        let mut acting = open.plan.actions.iter();
        let comes_back = acting.all(|action| action.kind == ActionKind::None || as_it_was(action));
        if trigger == Trigger::Auto
            && open.plan.settings.reconcile != Reconcile::Auto
            && !comes_back
        {
            self.trace.violation(format!(
                "{} is deployed by the agent itself, and is an operator's to deploy",
                open.row.service
            ));
        }
        for action in &open.plan.actions {
            let key = ComponentKey::new(open.row.service.clone(), action.component.clone());
            let wrong = |what: &str| {
                self.trace.violation(format!(
                    "{key}: a deployment by {} ({}) {what}",
                    trigger.as_str(),
                    action.kind
                ));
            };
            let row = known.rows.get(&key);
            let after = action.after.as_ref();
            if let (ActionKind::Create, Some(before), false) =
                (action.kind, &action.before, open.is_beyond_the_line())
                && engine.state().containers.contains_key(&before.container)
            {
                wrong("makes anew what is still there");
            }
            if action.kind == ActionKind::None {
                continue;
            }
            let is_job = after.is_some_and(|after| after.spec.kind.is_job());
            let runs_jobs = matches!(trigger, Trigger::Deploy | Trigger::Rollback);
            if is_job && action.kind != ActionKind::Stop && !runs_jobs {
                wrong("runs a job");
            }
            // Until then an operator's word may come, and counts.
            if trigger != Trigger::Auto || !crosses {
                continue;
            }
            if row.is_some_and(|row| row.stopped_by.is_some()) {
                wrong("changes what an operator stopped");
            }
            // Bringing back what is held, as it is held, is no change.
            let moves = |row: &DeployedRow| {
                after.is_none_or(|after| !after.running || after.spec_digest != row.spec_digest)
            };
            if row.is_some_and(|row| row.hold.is_some() && moves(row)) {
                wrong("changes what is held");
            }
            if let Some(after) = after
                && known
                    .quarantined
                    .contains(&(key.clone(), after.spec_digest))
            {
                if row.is_none_or(|row| row.spec_digest != after.spec_digest) {
                    wrong("deploys what is quarantined");
                } else if matches!(action.reason, Reason::Drifted(_)) {
                    wrong("replaces what does not converge");
                }
            }
        }
    }
}
