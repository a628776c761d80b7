//! The reference model: the rules that hold whatever happens, small enough to be read at one sitting.
//!
//! It sees every change of the engine's containers and every transaction of the registry, and judges
//! each call of the agent when it is made (here) and each transaction when it is written (`ledger`). It
//! knows nothing of how the agent works: only what is deployed, which deployments are under way and how
//! far, and who did what to a container. What the agent does by itself has rules of its own (`alone`);
//! what has to be true of a node at rest is in `rest`.
//!
//! The rules, as `docs/architecture.md` has them:
//!
//! 1. At most one generation of a component runs.
//! 2. What is not the agent's is not touched.
//! 3. What is made comes from an accepted revision, is the spec that it gives, is journalled before it
//!    is made, before the line, and its image is kept by then.
//! 4. A container that runs is stopped only by a deployment beyond the line that has it to stop; a
//!    registered container is never removed, a network that a component joins neither.
//! 5. A container is started by a deployment beyond the line, which starts what it has to start under its
//!    component's name; or by its restart policy: then it is the registered one, wanted, no job, its
//!    policy asks for it, nothing else is under way, and the pauses are kept.
//! 6. The agent by itself changes nothing that is stopped or quarantined, brings back what is held as it
//!    is held and otherwise leaves it, and runs no job.
//! 7. A job's container is started once, by a deploy or a rollback that was asked for.
//! 8. Where a deployment says that something runs, and nobody else did it harm, something runs; where no
//!    call failed nothing is left over of what it replaced or made in vain.
//! 9. What the engine did not say is not acted on: nothing is made anew that is still there.
//! 10. Whatever a deployment does to a component beyond the line is journalled before; what it puts back
//!     too, and what depends on something before that; an operator's stop is on record before anything
//!     stops.
//! 11. Deployments go from state to state as `docs/architecture.md` draws it, end as they went, one of a
//!     service at a time; a request leads to one deployment; what is beyond the line is neither
//!     cancelled nor superseded, and superseded is only what a newer one brings about too.
//! 12. A commit writes what was made and nothing else; holds and stops change by an operator's word. What
//!     became of each component is on record, and what failed its gate is quarantined.
//! 13. What was written is there when the agent begins again, whether it was killed or the power failed.
//! 14. What somebody undoes again and again the agent repairs after pauses that grow; while the engine is
//!     away, and where a deployment did not converge, it begins nothing.
//! 15. What an emptied engine took along comes back as it was.
//! 16. An operator's word alone makes a container the agent's that it did not make, and nothing is
//!     touched by that; what it was told to let go of is somebody else's.
//! 17. Where the registry was lost the agent takes over what bears its labels and its component's name, and is
//!     what an accepted revision says; what does not run stays down, and what is not what the head says is
//!     held. Nothing is touched by that either.

mod alone;
mod ledger;
mod rest;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use mcp_agent::registry::{
    DeployedRow, DeploymentId, DeploymentRow, DeploymentState, StepPhase, StepRow, Trigger,
};
use mcp_agent::runtime::ContainerRequest;
use mcp_spec::component::{Network, Restart};
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName, ServiceName};
use mcp_spec::observed::{ContainerId, ContainerState, DesiredState, label};
use mcp_spec::plan::{Action, ActionKind, ServicePlan};
use tokio::time::Instant;

use self::alone::Repairs;
use super::engine::{Container, Engine, State};
use super::hands::ShortName as _;
use super::history::{History, NODE};
use super::trace::Trace;

/// What the agent does to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Deed {
    Started,
    Stopped,
    Signalled,
    Renamed(String),
    Removed,
}

/// A deployment under way.
#[derive(Debug, Clone)]
struct Open {
    row: DeploymentRow,
    plan: ServicePlan,
    steps: Vec<StepRow>,
    /// When it crossed the line, or was taken up again beyond it.
    crossed: Option<Instant>,
    /// Components that somebody else did harm to since it began.
    harmed: BTreeSet<ComponentName>,
    /// An operator was told that it is cancelled.
    cancelled: bool,
    /// A call of the engine failed meanwhile, or the agent was killed: something may be left over.
    troubled: bool,
    /// The registry refused a write meanwhile: what could not be journalled is done all the same.
    excused: bool,
}

impl Open {
    fn action(&self, component: &ComponentName) -> Option<&Action> {
        self.plan.actions.iter().find(|a| a.component == *component)
    }

    fn is_beyond_the_line(&self) -> bool {
        is_beyond_the_line(self.row.state)
    }

    fn made(&self, container: &Container) -> bool {
        let labels = &container.live.labels;
        labels.get(label::DEPLOYMENT).map(String::as_str) == Some(self.row.id.as_str())
    }

    fn has_journalled(&self, component: &ComponentName, step: &str, phase: StepPhase) -> bool {
        self.steps.iter().any(|row| {
            row.step == step && row.phase == phase && row.component.as_ref() == Some(component)
        })
    }
}

const fn is_beyond_the_line(state: DeploymentState) -> bool {
    matches!(
        state,
        DeploymentState::Switching
            | DeploymentState::Healthy
            | DeploymentState::Committed
            | DeploymentState::Compensating
    )
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
    /// The deployment that each request has led to.
    requests: BTreeMap<(String, ServiceName), DeploymentId>,
    quarantined: BTreeSet<(ComponentKey, Digest)>,
    /// The newest generation of each component that was deployed.
    generations: BTreeMap<ComponentKey, u64>,
    job_starts: BTreeMap<(String, ComponentKey), u32>,
    series: BTreeMap<ContainerId, Series>,
    /// What the engine or the host took down: bringing it back is no restart in a row.
    taken_down: BTreeSet<ContainerId>,
    /// Starts that the restart policy has asked for.
    reviving: BTreeSet<ContainerId>,
    repairs: BTreeMap<ComponentKey, Repairs>,
    /// What an emptied engine took along, where nothing stands in the way of its coming back.
    lost: BTreeMap<ComponentKey, ContainerId>,
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

    /// Whether a deployment is under way.
    pub(crate) fn is_deploying(&self) -> bool {
        !self.known().open.is_empty()
    }

    /// A deployed component that the agent is about to change by itself, before the line.
    pub(crate) fn about_to_change(&self) -> Option<ComponentKey> {
        let known = self.known();
        let mut open = known.open.values().filter(|open| {
            open.row.trigger == Trigger::Auto && open.row.state == DeploymentState::Planned
        });
        open.find_map(|open| {
            let changes = open
                .plan
                .actions
                .iter()
                .filter(|action| action.kind != ActionKind::None);
            let mut keys = changes.map(|action| {
                ComponentKey::new(open.row.service.clone(), action.component.clone())
            });
            keys.find(|key| known.rows.contains_key(key))
        })
    }

    pub(crate) fn rows(&self) -> Vec<DeployedRow> {
        self.known().rows.values().cloned().collect()
    }

    /// The head is at this place of the history now: never before the newest accepted one.
    pub(crate) fn head_is(&self, place: Option<usize>) {
        let mut known = self.known();
        match place {
            Some(place) if place >= known.accepted => {
                if place > known.accepted {
                    known.repairs.clear();
                }
                known.accepted = place;
            }
            _ => self.trace.violation(format!(
                "the head fell: it is {place:?} after {}",
                known.accepted
            )),
        }
    }

    /// The agent was restarted: of its series it may have lost the last step.
    pub(crate) fn restarted(&self) {
        let mut known = self.known();
        for open in known.open.values_mut() {
            open.crossed = open.crossed.map(|_| Instant::now());
            open.troubled = true;
        }
        for series in known.series.values_mut() {
            series.starts = series.starts.saturating_sub(1);
        }
        for repairs in known.repairs.values_mut() {
            repairs.forget_one();
        }
    }

    /// The registry is gone, and with it all that only it knew: what an operator adopted is somebody else's
    /// again, and what one let go of is the agent's again, by its labels and its name.
    pub(crate) fn registry_lost(&self, state: &mut State) {
        let mut known = self.known();
        *known = Known {
            accepted: known.accepted,
            job_starts: std::mem::take(&mut known.job_starts),
            taken_down: std::mem::take(&mut known.taken_down),
            ..Known::default()
        };
        for container in state.containers.values_mut() {
            container.is_stray = true;
            container.adopted_as = None;
            let is_ours = container.live.labels.get(label::NODE).map(String::as_str) == Some(NODE);
            let bears_its_name = container
                .live
                .claimed_key()
                .is_some_and(|key| key.container_name() == container.live.name);
            if is_ours && bears_its_name {
                container.is_foreign = false;
            } else if !is_ours {
                container.is_foreign = true;
            }
        }
    }

    /// The registry refused a write.
    pub(crate) fn could_not_write(&self) {
        for open in self.known().open.values_mut() {
            open.excused = true;
            open.troubled = true;
        }
    }

    /// A call of the engine failed.
    pub(crate) fn troubled(&self) {
        for open in self.known().open.values_mut() {
            open.troubled = true;
        }
    }

    /// An operator was told that a deployment is cancelled.
    pub(crate) fn cancelled(&self, id: &DeploymentId) {
        if let Some(open) = self.known().open.get_mut(id) {
            open.cancelled = true;
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

    /// The engine goes away, and all that runs with it.
    pub(crate) fn taken_down(&self, state: &State) {
        let ids = state.containers.keys().cloned();
        self.known().taken_down.extend(ids);
    }

    /// A container ended by itself.
    pub(crate) fn own_end(&self, engine: &Engine, id: &ContainerId) {
        let key = engine.state().containers.get(id).and_then(Container::key);
        if let Some(key) = key {
            self.harm(&key);
        }
    }

    /// Rules 2, 4, 5 and 10, when the agent calls the engine.
    pub(crate) fn judge(&self, state: &State, container: &Container, deed: &Deed) {
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
        let known = self.known();
        let open = known
            .open
            .values()
            .find(|open| open.row.service == key.service && open.is_beyond_the_line());
        let row = known.rows.get(&key);
        let is_registered = row.is_some_and(|row| row.container == *id);
        if *deed == Deed::Removed && is_registered {
            wrong("is registered, and was removed".to_owned());
        }
        if let Some(open) = open
            && *deed != Deed::Removed
        {
            judge_order(open, row, &key, &wrong);
            judge_back(open, state, &key, &wrong);
        }
        match (deed, open) {
            (Deed::Stopped | Deed::Removed, open) => {
                let may = open.is_some_and(|open| {
                    open.made(container)
                        || open.row.trigger == Trigger::Stop
                        || open.action(&key.component).is_some_and(|action| {
                            action.kind != ActionKind::None && action.kind != ActionKind::Signal
                        })
                });
                if container.runs() && !may {
                    wrong(format!("runs, and was {deed:?} by nobody's order"));
                }
                if let Some(open) = open
                    && *deed == Deed::Stopped
                    && open.made(container)
                    && open.row.state == DeploymentState::Switching
                    && !open.excused
                {
                    wrong("was put back before that was journalled".to_owned());
                }
            }
            (Deed::Signalled, None) => wrong("was signalled by nobody's order".to_owned()),
            (Deed::Signalled, Some(_)) => {}
            (Deed::Renamed(_), Some(_)) => {}
            (Deed::Renamed(to), None) => {
                if !is_registered || *to != key.container_name() {
                    wrong(format!("was renamed to {to} by nobody's order"));
                }
            }
            (Deed::Started, Some(open)) => {
                judge_start(open, container, &key, &wrong);
                judge_turn(open, state, &key, &wrong);
            }
            (Deed::Started, None) => {
                let Some(row) = row.filter(|_| is_registered) else {
                    wrong("is not registered, and was started by nobody's order".to_owned());
                    return;
                };
                judge_policy(row, container, &wrong);
                let busy = known.open.values().any(|open| {
                    open.row.service == key.service && open.row.state != DeploymentState::Admitted
                });
                if busy {
                    wrong("was started by its policy during a deployment".to_owned());
                }
                drop(known);
                self.known().reviving.insert(id.clone());
            }
        }
    }

    /// Rule 3, when the agent asks for a container.
    pub(crate) fn judge_making(&self, state: &State, request: &ContainerRequest) {
        let says = |name: &str| request.labels.get(name).cloned().unwrap_or_default();
        let wrong = |what: String| self.trace.violation(format!("{}: {what}", request.name));
        let (Ok(service), Ok(component)) =
            (says(label::SERVICE).parse(), says(label::COMPONENT).parse())
        else {
            return wrong("is made for no component".to_owned());
        };
        let key = ComponentKey::new(service, component);
        let known = self.known();
        let from = self
            .history
            .revisions
            .iter()
            .take(known.accepted + 1)
            .find(|step| step.commit.to_string() == says(label::REVISION));
        match from.and_then(|step| step.specs.get(&key)) {
            Some(digest) if digest.to_string() == says(label::SPEC) => {}
            _ => wrong(format!(
                "comes from no accepted revision: {} {}",
                says(label::REVISION),
                says(label::SPEC)
            )),
        }
        let open = known
            .open
            .values()
            .find(|open| open.row.id.as_str() == says(label::DEPLOYMENT));
        match open {
            None => wrong("is made for no deployment that is under way".to_owned()),
            Some(open) => {
                if open.is_beyond_the_line() {
                    wrong("is made beyond the line".to_owned());
                }
                if !open.has_journalled(&key.component, "make", StepPhase::Begun) {
                    wrong("is made before that is journalled".to_owned());
                }
            }
        }
        // One that the engine has lost makes no container: the engine refuses it.
        let is_there = state.images.values().any(|image| *image == request.image);
        if is_there && !state.tags.values().any(|image| *image == request.image) {
            wrong("is made of an image that is not kept".to_owned());
        }
    }

    /// Rule 4 for networks, when the agent removes one.
    pub(crate) fn judge_network(&self, state: &State, name: &str) {
        let Some(labels) = state.networks.get(name) else {
            return;
        };
        let wrong = |what: &str| {
            self.trace
                .violation(format!("the network {name} {what}, and was removed"));
        };
        if labels.is_empty() {
            wrong("is somebody else's");
        }
        let joined = self
            .known()
            .rows
            .values()
            .any(|row| matches!(&row.spec.network, Network::User(of) if of.contains_key(name)));
        if joined {
            wrong("is joined by what is deployed");
        }
        let used = state.containers.values().any(|container| {
            container.networks.contains(name) && container.runs() && container.key().is_some()
        });
        if used {
            wrong("is in use");
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
        let is_brought_back = known.taken_down.remove(id);
        if !known.reviving.remove(id) || is_brought_back {
            return;
        }
        let now = Instant::now();
        // Ten minutes of calm end a series, and who was away a while may count them as calm.
        let calm = known
            .series
            .get(id)
            .is_some_and(|before| now - before.last >= Duration::from_secs(590));
        let before = known.series.get(id).copied().filter(|_| !calm);
        if let Some(before) = before {
            let least = match before.starts {
                0 => Duration::ZERO,
                n => {
                    Duration::from_secs(9 * 2_u64.pow((n - 1).min(5))).min(Duration::from_secs(269))
                }
            };
            if now - before.last < least {
                self.trace.violation(format!(
                    "{key}: started again after {:?}, and {} starts ask for {least:?}",
                    now - before.last,
                    before.starts
                ));
            }
        }
        let starts = before.map_or(0, |before| before.starts) + 1;
        let most = known.rows.get(&key).and_then(|row| match row.spec.restart {
            Restart::OnFailure { max } => max,
            _ => None,
        });
        if most.is_some_and(|most| starts > most) {
            self.trace.violation(format!(
                "{key}: started {starts} times in a row, and its policy allows {most:?}"
            ));
        }
        known
            .series
            .insert(id.clone(), Series { last: now, starts });
    }
}

/// Rule 10.
fn judge_order(
    open: &Open,
    row: Option<&DeployedRow>,
    key: &ComponentKey,
    wrong: &impl Fn(String),
) {
    if open.row.trigger == Trigger::Stop {
        let is_on_record = row.is_none_or(|row| row.stopped_by.is_some());
        if open.row.state == DeploymentState::Switching && !is_on_record {
            wrong("is touched by a stop that is not on record".to_owned());
        }
        return;
    }
    if !open.excused && !open.has_journalled(&key.component, "switch", StepPhase::Begun) {
        wrong("is touched by a deployment that has not journalled that".to_owned());
    }
    if open.row.state == DeploymentState::Committed {
        wrong("is touched by a deployment that is committed".to_owned());
    }
}

/// Rule 10: what depends on a component is put back first.
fn judge_back(open: &Open, state: &State, key: &ComponentKey, wrong: &impl Fn(String)) {
    if open.row.state != DeploymentState::Compensating || open.troubled {
        return;
    }
    let of_it = |action: &&Action| {
        let after = action.after.as_ref();
        after.is_some_and(|after| after.spec.depends_on.contains(&key.component))
    };
    for action in open.plan.actions.iter().filter(of_it) {
        let its = |container: &&Container| {
            let its = container.key();
            open.made(container) && its.is_some_and(|its| its.component == action.component)
        };
        if state.containers.values().filter(its).any(Container::runs) {
            wrong(format!("is put back before {}", action.component));
        }
    }
}

/// Rule 5 of a deployment, and rule 6 of what is stopped.
fn judge_start(open: &Open, container: &Container, key: &ComponentKey, wrong: &impl Fn(String)) {
    let Some(action) = open.action(&key.component) else {
        wrong("was started by a deployment that has nothing to do with it".to_owned());
        return;
    };
    let is_new = open.made(container);
    let before = action.before.as_ref();
    let is_before = before.is_some_and(|before| before.container == container.live.id);
    let is_job = action
        .after
        .as_ref()
        .is_some_and(|after| after.spec.kind.is_job());
    let may = match (open.row.state, action.kind) {
        (DeploymentState::Switching, ActionKind::Create | ActionKind::Replace) => is_new,
        (DeploymentState::Switching, ActionKind::Restart | ActionKind::Start) => is_before,
        (
            DeploymentState::Compensating,
            ActionKind::Replace
            | ActionKind::Restart
            | ActionKind::Stop
            | ActionKind::Remove
            | ActionKind::Signal
            | ActionKind::None,
        ) => is_before && before.is_some_and(|before| before.running) && !is_job,
        _ => false,
    };
    if !may {
        wrong(format!(
            "was started while its deployment is {} and has it to {}",
            open.row.state.as_str(),
            action.kind
        ));
    }
    if container.live.name != key.container_name() && container.adopted_as.is_none() {
        wrong("was started under another name than its component's".to_owned());
    }
    let stays_down = action.after.as_ref().is_some_and(|after| !after.running);
    if open.row.state == DeploymentState::Switching && stays_down && !is_job {
        wrong("shall not run, and was started".to_owned());
    }
}

/// Rule 5: what a component depends on comes first.
fn judge_turn(open: &Open, state: &State, key: &ComponentKey, wrong: &impl Fn(String)) {
    let after = open
        .action(&key.component)
        .and_then(|action| action.after.as_ref());
    let Some(after) = after.filter(|_| open.row.state == DeploymentState::Switching) else {
        return;
    };
    let switched = after
        .spec
        .depends_on
        .iter()
        .filter_map(|name| open.action(name))
        .filter(|action| {
            action.kind.creates() || matches!(action.kind, ActionKind::Restart | ActionKind::Start)
        })
        .filter(|action| !open.harmed.contains(&action.component));
    for action in switched {
        let first = ComponentKey::new(key.service.clone(), action.component.clone());
        let runs = state
            .containers
            .values()
            .any(|container| container.runs() && container.key().as_ref() == Some(&first));
        if !runs {
            wrong(format!("was started before {first}, which it depends on"));
        }
    }
}

/// Rule 5 of a restart policy.
fn judge_policy(row: &DeployedRow, container: &Container, wrong: &impl Fn(String)) {
    if row.wanted() != DesiredState::Running || row.spec.kind.is_job() {
        wrong(format!("is wanted {}, and was started", row.wanted()));
    }
    let is_final = matches!(
        (row.spec.restart, &container.live.state),
        (Restart::No, ContainerState::Exited { .. })
            | (
                Restart::OnFailure { .. },
                ContainerState::Exited { code: 0, .. }
            )
    );
    if is_final {
        wrong("was started again, and its policy takes its end for good".to_owned());
    }
}
