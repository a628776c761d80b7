//! The reference model: the rules that hold whatever happens, small enough to be read at one sitting.
//!
//! It sees every change of the engine's containers and every transaction of the registry, and judges
//! each call of the agent when it is made. It knows nothing of how the agent works: only what is
//! deployed, which deployments are under way and how far, and who did what to a container.
//!
//! The rules, as `docs/architecture.md` has them:
//!
//! 1. At most one generation of a component runs.
//! 2. What is not the agent's is not touched.
//! 3. What is made comes from an accepted revision, and is the spec that it gives.
//! 4. A container that runs is stopped only by a deployment beyond the line that has it to stop; a
//!    registered container is never removed.
//! 5. A container is started by a deployment beyond the line, or by its restart policy: then it is
//!    the registered one, wanted, no job, nothing else is under way, and the pauses are kept.
//! 6. The agent by itself changes nothing that is stopped, held or quarantined, and runs no job.
//! 7. A job's container is started once, by a deploy or a rollback that was asked for.
//! 8. Where a deployment says that something runs, and nobody else did it harm, something runs.
//! 9. What the engine did not say is not acted on: nothing is made anew that is still there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::FutureExt as _;
use mcp_agent::registry::{
    DeployedRow, DeploymentId, DeploymentRow, DeploymentState, Lookup, Outcome, Registry, Trigger,
};
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerId, DesiredState, label};
use mcp_spec::plan::{Action, ActionKind, ServicePlan};
use tokio::time::Instant;

use super::engine::{Container, Engine};
use super::hands::ShortName as _;
use super::history::History;
use super::trace::Trace;

/// What the agent does to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deed {
    Made,
    Started,
    Stopped,
    Changed,
    Removed,
}

/// A deployment under way.
#[derive(Debug, Clone)]
struct Open {
    row: DeploymentRow,
    plan: ServicePlan,
    /// Components that somebody else did harm to since it began.
    harmed: BTreeSet<ComponentName>,
}

impl Open {
    fn action(&self, component: &ComponentName) -> Option<&Action> {
        self.plan.actions.iter().find(|a| a.component == *component)
    }

    fn is_beyond_the_line(&self) -> bool {
        matches!(
            self.row.state,
            DeploymentState::Switching
                | DeploymentState::Healthy
                | DeploymentState::Committed
                | DeploymentState::Compensating
        )
    }
}

/// Starts in a row by the restart policy.
#[derive(Debug, Clone, Copy)]
struct Series {
    last: Instant,
    starts: u32,
}

#[derive(Debug, Default)]
struct Known {
    rows: BTreeMap<ComponentKey, DeployedRow>,
    open: BTreeMap<DeploymentId, Open>,
    quarantined: BTreeSet<(ComponentKey, Digest)>,
    job_starts: BTreeMap<(String, ComponentKey), u32>,
    series: BTreeMap<ContainerId, Series>,
    /// Starts that the restart policy has asked for.
    reviving: BTreeSet<ContainerId>,
    /// The newest accepted revision, as its place in the history.
    accepted: usize,
}

/// The model.
#[derive(Debug)]
pub(crate) struct Model {
    history: Arc<History>,
    trace: Arc<Trace>,
    known: Mutex<Known>,
    looking: AtomicBool,
}

impl Model {
    pub(crate) fn new(history: Arc<History>, trace: Arc<Trace>) -> Self {
        Self {
            history,
            trace,
            known: Mutex::default(),
            looking: AtomicBool::new(false),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    /// Whether the model itself is reading the registry.
    pub(crate) fn is_looking(&self) -> bool {
        self.looking.load(Ordering::Relaxed)
    }

    pub(crate) fn rows(&self) -> Vec<DeployedRow> {
        self.known().rows.values().cloned().collect()
    }

    pub(crate) fn open_deployments(&self) -> Vec<DeploymentRow> {
        self.known()
            .open
            .values()
            .map(|open| open.row.clone())
            .collect()
    }

    /// The head is at this place of the history now: never before the newest accepted one.
    pub(crate) fn head_is(&self, place: Option<usize>) {
        let mut known = self.known();
        match place {
            Some(place) if place >= known.accepted => known.accepted = place,
            _ => self.trace.violation(format!(
                "the head fell: it is {place:?} after {}",
                known.accepted
            )),
        }
    }

    /// The agent was restarted: of its series it may have lost the last step.
    pub(crate) fn restarted(&self) {
        for series in self.known().series.values_mut() {
            series.starts = series.starts.saturating_sub(1);
        }
    }

    /// Rule 1, after every change.
    pub(crate) fn check(&self, engine: &Engine) {
        let state = engine.state();
        let mut running: BTreeMap<ComponentKey, Vec<String>> = BTreeMap::new();
        for container in state.containers.values().filter(|c| c.runs()) {
            if let Some(key) = container.key() {
                running
                    .entry(key)
                    .or_default()
                    .push(container.live.id.short_name());
            }
        }
        for (key, ids) in running {
            if ids.len() > 1 {
                self.trace.violation(format!(
                    "{} generations of {key} run: {}",
                    ids.len(),
                    ids.join(", ")
                ));
            }
        }
    }

    /// Somebody other than the agent ended, removed or changed a container.
    pub(crate) fn harm(&self, key: &ComponentKey) {
        for open in self.known().open.values_mut() {
            if open.row.service == key.service {
                open.harmed.insert(key.component.clone());
            }
        }
    }

    /// A container ended by itself.
    pub(crate) fn own_end(&self, engine: &Engine, id: &ContainerId) {
        let key = engine.state().containers.get(id).and_then(Container::key);
        if let Some(key) = key {
            self.harm(&key);
        }
    }

    /// Rules 2 to 7, when the agent calls the engine.
    pub(crate) fn judge(&self, container: &Container, deed: Deed) {
        let id = &container.live.id;
        let wrong = |what: String| {
            self.trace.violation(format!(
                "{} ({}): {what}",
                container.live.name,
                id.short_name()
            ));
        };
        let Some(key) = container.key() else {
            wrong(format!("is somebody else's, and was {deed:?}"));
            return;
        };
        let mut known = self.known();
        let open = known
            .open
            .values()
            .find(|open| open.row.service == key.service && open.is_beyond_the_line())
            .cloned();
        let own_of = |open: &Open| {
            container
                .live
                .labels
                .get(label::DEPLOYMENT)
                .map(String::as_str)
                == Some(open.row.id.as_str())
        };
        let row = known.rows.get(&key).cloned();
        let is_registered = row.as_ref().is_some_and(|row| row.container == *id);
        match deed {
            Deed::Made => self.judge_origin(&known, container, &key, &wrong),
            Deed::Changed => {}
            Deed::Stopped | Deed::Removed => {
                if deed == Deed::Removed && is_registered {
                    wrong("is registered, and was removed".to_owned());
                }
                let may = open.as_ref().is_some_and(|open| {
                    own_of(open)
                        || open.row.trigger == Trigger::Stop
                        || open.action(&key.component).is_some_and(|action| {
                            action.kind != ActionKind::None && action.kind != ActionKind::Signal
                        })
                });
                if container.runs() && !may {
                    wrong(format!("runs, and was {deed:?} by nobody's order"));
                }
            }
            Deed::Started => match open {
                Some(open) => self.judge_start(&open, &key, &wrong),
                None => {
                    let Some(row) = row.filter(|_| is_registered) else {
                        wrong("is not registered, and was started by nobody's order".to_owned());
                        return;
                    };
                    if row.wanted() != DesiredState::Running || row.spec.kind.is_job() {
                        wrong(format!("is wanted {}, and was started", row.wanted()));
                    }
                    let busy = known.open.values().any(|open| {
                        open.row.service == key.service
                            && open.row.state != DeploymentState::Admitted
                    });
                    if busy {
                        wrong("was started by its policy during a deployment".to_owned());
                    }
                    known.reviving.insert(id.clone());
                }
            },
        }
    }

    /// Rule 3.
    fn judge_origin(
        &self,
        known: &Known,
        container: &Container,
        key: &ComponentKey,
        wrong: &impl Fn(String),
    ) {
        let says = |name: &str| container.live.labels.get(name).cloned().unwrap_or_default();
        let from = self
            .history
            .revisions
            .iter()
            .take(known.accepted + 1)
            .find(|step| step.commit.to_string() == says(label::REVISION));
        match from.and_then(|step| step.specs.get(key)) {
            Some(digest) if digest.to_string() == says(label::SPEC) => {}
            _ => wrong(format!(
                "comes from no accepted revision: {} {}",
                says(label::REVISION),
                says(label::SPEC)
            )),
        }
    }

    /// Rule 5 of a deployment, and rule 6 of what is stopped.
    fn judge_start(&self, open: &Open, key: &ComponentKey, wrong: &impl Fn(String)) {
        let Some(action) = open.action(&key.component) else {
            wrong("was started by a deployment that has nothing to do with it".to_owned());
            return;
        };
        let stays_down = action.after.as_ref().is_some_and(|after| !after.running);
        if open.row.state == DeploymentState::Switching
            && stays_down
            && !action
                .after
                .as_ref()
                .is_some_and(|after| after.spec.kind.is_job())
        {
            wrong("shall not run, and was started".to_owned());
        }
    }

    /// A container of the agent's started to run: rules 5 (pauses) and 7.
    pub(crate) fn runs(&self, container: &Container) {
        let Some(key) = container.key() else { return };
        let id = &container.live.id;
        let mut known = self.known();
        let deployment = container
            .live
            .labels
            .get(label::DEPLOYMENT)
            .cloned()
            .unwrap_or_default();
        let is_job = key.component.as_str() == "migrate";
        if is_job {
            let starts = known
                .job_starts
                .entry((deployment, key.clone()))
                .or_default();
            *starts += 1;
            if *starts > 1 {
                self.trace.violation(format!(
                    "{key}: the job ran {starts} times in one deployment"
                ));
            }
        }
        if known.reviving.remove(id) {
            let now = Instant::now();
            let before = known.series.get(id).copied();
            let calm = before.is_none_or(|before| now - before.last >= Duration::from_secs(600));
            if let (Some(before), false) = (before, calm) {
                let least = match before.starts {
                    0 => Duration::ZERO,
                    n => Duration::from_secs(9 * 2_u64.pow((n - 1).min(5)))
                        .min(Duration::from_secs(269)),
                };
                if now - before.last < least {
                    self.trace.violation(format!(
                        "{key}: started again after {:?}, and {} starts ask for {least:?}",
                        now - before.last,
                        before.starts
                    ));
                }
            }
            let starts = before.filter(|_| !calm).map_or(0, |before| before.starts) + 1;
            known
                .series
                .insert(id.clone(), Series { last: now, starts });
        }
    }

    /// Takes in what the registry says now, after a transaction.
    pub(crate) fn look(&self, engine: &Engine, registry: &Registry) {
        self.looking.store(true, Ordering::Relaxed);
        let read = async {
            let rows = registry.deployed_all().await.unwrap();
            let open = registry.unfinished().await.unwrap();
            let quarantined = registry.quarantined().await.unwrap();
            let mut ended = Vec::new();
            let before: Vec<DeploymentId> = self.known().open.keys().cloned().collect();
            for id in before {
                if open.iter().all(|row| row.id != id)
                    && let Ok(Lookup::One(row)) = registry.deployment(id.to_string()).await
                {
                    ended.push(row);
                }
            }
            (rows, open, quarantined, ended)
        };
        let read = read.now_or_never();
        self.looking.store(false, Ordering::Relaxed);
        let (rows, open, quarantined, ended) = read.expect("the simulated registry never waits");
        {
            let mut known = self.known();
            known.rows = rows.into_iter().map(|row| (row.key.clone(), row)).collect();
            known.quarantined = quarantined
                .into_iter()
                .map(|entry| (entry.key, entry.spec_digest))
                .collect();
        }
        for row in open {
            self.moved(engine, row);
        }
        for row in ended {
            self.ended(engine, &row);
        }
    }

    fn moved(&self, engine: &Engine, row: DeploymentRow) {
        let mut known = self.known();
        let before = known.open.get(&row.id).cloned();
        let is_new_plan = before.as_ref().is_none_or(|open| open.row.plan != row.plan);
        let crosses = row.state == DeploymentState::Switching
            && before
                .as_ref()
                .is_none_or(|open| open.row.state != DeploymentState::Switching);
        let plan = match &before {
            Some(open) if !is_new_plan => open.plan.clone(),
            _ => {
                let text: serde_json::Value = serde_json::from_str(&row.plan).unwrap();
                serde_json::from_value(text["plan"].clone()).unwrap()
            }
        };
        let mut harmed = before.map(|open| open.harmed).unwrap_or_default();
        if is_new_plan {
            // What is down already was done harm before.
            harmed.extend(down(engine, &plan));
        }
        let open = Open { row, plan, harmed };
        if is_new_plan || crosses {
            self.judge_plan(engine, &known, &open, crosses);
        }
        known.open.insert(open.row.id.clone(), open);
    }

    /// Rules 6, 7 and 9, when a plan is taken on and when it crosses the line.
    fn judge_plan(&self, engine: &Engine, known: &Known, open: &Open, crosses: bool) {
        let trigger = open.row.trigger;
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
            if row.is_some_and(|row| row.hold.is_some()) {
                wrong("changes what is held");
            }
            if let Some(after) = after
                && known
                    .quarantined
                    .contains(&(key.clone(), after.spec_digest))
                && row.is_none_or(|row| row.spec_digest != after.spec_digest)
            {
                wrong("deploys what is quarantined");
            }
        }
    }

    /// Rule 8.
    fn ended(&self, engine: &Engine, row: &DeploymentRow) {
        let mut known = self.known();
        let Some(open) = known.open.remove(&row.id) else {
            return;
        };
        self.trace.line(|| {
            format!(
                "{} {} of {}: {} {}",
                row.trigger.as_str(),
                row.id.short(),
                row.service,
                row.outcome.map_or("?", Outcome::as_str),
                row.error.clone().unwrap_or_default()
            )
        });
        known.series.retain(|id, _| {
            let state = engine.state();
            let key = state.containers.get(id).and_then(Container::key);
            key.is_some_and(|key| key.service != row.service)
        });
        if matches!(row.outcome, Some(Outcome::Failed) | None) {
            return;
        }
        let state = engine.state();
        let new = matches!(
            row.outcome,
            Some(Outcome::Deployed | Outcome::Unchanged | Outcome::Degraded)
        );
        for action in &open.plan.actions {
            let key = ComponentKey::new(row.service.clone(), action.component.clone());
            let ran = action.before.as_ref().is_some_and(|before| before.running);
            let shall_run = if new {
                let is_job = action
                    .after
                    .as_ref()
                    .is_some_and(|after| after.spec.kind.is_job());
                let starts = matches!(
                    action.kind,
                    ActionKind::Create
                        | ActionKind::Replace
                        | ActionKind::Restart
                        | ActionKind::Start
                );
                !is_job
                    && (starts || ran)
                    && !matches!(action.kind, ActionKind::Stop | ActionKind::Remove)
            } else {
                ran
            };
            let was_stopped = known
                .rows
                .get(&key)
                .is_none_or(|row| row.wanted() != DesiredState::Running);
            if !shall_run || was_stopped || open.harmed.contains(&action.component) {
                continue;
            }
            let runs = state
                .containers
                .values()
                .any(|c| c.runs() && c.key().as_ref() == Some(&key));
            if !runs {
                self.trace.violation(format!(
                    "{key}: nothing runs after a deployment that ended {}",
                    row.outcome.map_or("?", Outcome::as_str)
                ));
            }
        }
    }
}

/// The components of a plan of which nothing runs.
fn down<'a>(
    engine: &Engine,
    plan: &'a ServicePlan,
) -> impl Iterator<Item = ComponentName> + use<'a> {
    let running: BTreeSet<ComponentKey> = engine
        .state()
        .containers
        .values()
        .filter(|container| container.runs())
        .filter_map(Container::key)
        .collect();
    plan.actions
        .iter()
        .map(|action| action.component.clone())
        .filter(move |name| {
            !running.contains(&ComponentKey::new(plan.service.clone(), name.clone()))
        })
}
