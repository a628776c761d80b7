//! The rules of what the registry says, judged after each transaction: 8, 11 to 13, 16 and 17.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use jiff::SignedDuration;
use mcp_agent::registry::{
    ComponentRecord, DeployedRow, DeploymentId, DeploymentRow, DeploymentState, Lookup, Outcome,
    Registry, StepPhase, StepRow, Trigger,
};
use mcp_spec::component::OnFailure;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerState, DesiredState, label};
use mcp_spec::plan::{ActionKind, HoldChange, ServicePlan, ServiceSettings};
use mcp_spec::revision::CommitId;
use tokio::time::Instant;

use super::{Known, Model, Open, is_beyond_the_line};
use crate::engine::{Container, Engine, State};
use crate::history::NODE;

/// What the registry says.
struct Said {
    /// `None` where the transaction has nothing to do with it.
    rows: Option<Vec<DeployedRow>>,
    open: Vec<(DeploymentRow, Vec<StepRow>)>,
    quarantined: BTreeSet<(ComponentKey, Digest)>,
    /// Deployments that have ended, with what is on record of their components.
    ended: Vec<(DeploymentRow, Vec<ComponentRecord>)>,
}

impl Model {
    fn read(&self, registry: &Registry, rows_too: bool) -> Said {
        self.looking.store(true, Ordering::Relaxed);
        let read = async {
            let rows = match rows_too {
                true => Some(registry.deployed_all().await.unwrap()),
                false => None,
            };
            let mut open = Vec::new();
            for row in registry.unfinished().await.unwrap() {
                let steps = registry.steps(row.id.clone()).await.unwrap();
                open.push((row, steps));
            }
            let quarantined = registry.quarantined().await.unwrap();
            let mut ended = Vec::new();
            let before: Vec<DeploymentId> = self.known().open.keys().cloned().collect();
            for id in before {
                if open.iter().all(|(row, _)| row.id != id)
                    && let Ok(Lookup::One(row)) = registry.deployment(id.to_string()).await
                {
                    let records = registry.records(vec![id.clone()]).await.unwrap();
                    ended.push((row, records.into_values().flatten().collect()));
                }
            }
            Said {
                rows,
                open,
                quarantined: quarantined
                    .into_iter()
                    .map(|entry| (entry.key, entry.spec_digest))
                    .collect(),
                ended,
            }
        };
        let read = read.now_or_never();
        self.looking.store(false, Ordering::Relaxed);
        read.expect("the simulated registry never waits")
    }

    /// Rule 13, when the agent begins.
    pub(crate) fn begins(&self, registry: &Registry) {
        let said = self.read(registry, true);
        let known = self.known();
        let wrong = |what: &str| {
            self.trace
                .violation(format!("what was written of {what} is not there any more"));
        };
        if said.rows.iter().flatten().ne(known.rows.values()) {
            wrong("what is deployed");
        }
        if said.quarantined != known.quarantined {
            wrong("what is quarantined");
        }
        let mut written: Vec<_> = known
            .open
            .values()
            .map(|open| (&open.row, &open.steps))
            .collect();
        written.sort_by(|a, b| a.0.id.cmp(&b.0.id));
        let mut there: Vec<_> = said.open.iter().map(|(row, steps)| (row, steps)).collect();
        there.sort_by(|a, b| a.0.id.cmp(&b.0.id));
        if written != there {
            wrong("deployments under way");
        }
    }

    /// Takes in what the registry says now, after a transaction.
    pub(crate) fn look(&self, engine: &Engine, registry: &Registry, write: &str) {
        if write == "journal" {
            return self.journalled(registry);
        }
        // What else writes them is seen when the agent begins again.
        let rows_too = !matches!(
            write,
            "admit" | "set_plan" | "set_state" | "cross_line" | "finish" | "append_events"
        );
        let said = self.read(registry, rows_too);
        {
            let mut known = self.known();
            if let Some(rows) = said.rows {
                let rows = rows.into_iter().map(|row| (row.key.clone(), row));
                let before = std::mem::replace(&mut known.rows, rows.collect());
                self.judge_rows(engine, &known, &before, write);
            }
            let commits = said.open.iter().filter(|(row, _)| {
                let known = known.open.get(&row.id);
                row.state == DeploymentState::Committed
                    && known.is_some_and(|open| open.row.state != DeploymentState::Committed)
            });
            for (row, _) in commits {
                self.judge_commit(&known, &row.id);
            }
            for row in known.rows.values().cloned().collect::<Vec<_>>() {
                known.generations.insert(row.key, row.generation);
            }
            known.quarantined = said.quarantined;
        }
        for (row, steps) in said.open {
            self.moved(engine, row, steps);
        }
        for (row, records) in said.ended {
            self.ended(engine, &row, &records);
        }
    }

    /// Steps were journalled, and nothing else was written.
    fn journalled(&self, registry: &Registry) {
        let open: Vec<DeploymentId> = self.known().open.keys().cloned().collect();
        for id in open {
            self.looking.store(true, Ordering::Relaxed);
            let steps = registry.steps(id.clone()).now_or_never();
            self.looking.store(false, Ordering::Relaxed);
            let steps = steps.expect("the simulated registry never waits").unwrap();
            if let Some(open) = self.known().open.get_mut(&id) {
                open.steps = steps;
            }
        }
    }

    /// Rule 12.
    fn judge_rows(
        &self,
        engine: &Engine,
        known: &Known,
        before: &std::collections::BTreeMap<ComponentKey, DeployedRow>,
        write: &str,
    ) {
        let commits = write == "commit_deployment";
        for key in before.keys().chain(known.rows.keys()) {
            let wrong = |what: &str| self.trace.violation(format!("{key}: {what} ({write})"));
            let (was, is) = (before.get(key), known.rows.get(key));
            if was == is {
                continue;
            }
            match (write, was, is) {
                ("adopt", None, Some(is)) => {
                    self.judge_adopted(engine, is);
                    continue;
                }
                ("forget", Some(was), None) => {
                    if let Some(its) = engine.state().containers.get_mut(&was.container) {
                        its.is_foreign = true;
                    }
                    continue;
                }
                _ => {}
            }
            let taken_over = |row: &&DeployedRow| {
                let open = known.open.get(&row.deployment);
                commits && open.is_some_and(|open| open.row.trigger == Trigger::Rebuild)
            };
            if let Some(is) = is.filter(taken_over) {
                self.judge_taken_over(engine, known, is);
                continue;
            }
            let open = known
                .open
                .values()
                .find(|open| open.row.service == key.service && open.is_beyond_the_line());
            let action = open.and_then(|open| open.action(&key.component));
            let Some(is) = is else {
                if !commits || action.is_none_or(|action| action.kind != ActionKind::Remove) {
                    wrong("is not registered any more, and nobody removed it");
                }
                continue;
            };
            let hold = was.and_then(|was| was.hold.clone());
            let may_hold = match action.map(|action| action.hold) {
                _ if write == "set_hold" => true,
                Some(HoldChange::Release) if commits => is.hold.is_none(),
                Some(HoldChange::Set) if commits => is.hold.is_some(),
                _ => is.hold == hold,
            };
            if !may_hold {
                wrong("its hold was changed by nobody's word");
            }
            let stop = was.and_then(|was| was.stopped_by.clone());
            let stops = open.is_some_and(|open| open.row.trigger == Trigger::Stop);
            let lifts = action.is_some_and(|action| action.clears_stop);
            if is.stopped_by != stop && !stops && !(commits && lifts && is.stopped_by.is_none()) {
                wrong("its stop was changed by nobody's word");
            }
            if was.is_some_and(|was| was.container == is.container && was.baseline != is.baseline) {
                wrong("its baseline was changed");
            }
            if was.is_none_or(|was| was.container != is.container) {
                let container = engine.state().containers.get(&is.container).cloned();
                match (open, container) {
                    (None, _) => wrong("got another container by nobody's order"),
                    // Somebody took it away meanwhile.
                    (Some(_), None) => {}
                    (Some(open), Some(container)) => {
                        if !commits || !open.made(&container) {
                            wrong("got a container that its deployment did not make");
                        }
                        if container.made_as != is.baseline {
                            wrong("is registered with another baseline than it was made with");
                        }
                        if container.live.image_id != is.image_id {
                            wrong("is registered with another image");
                        }
                    }
                }
                let newest = known.generations.get(key).copied().unwrap_or_default();
                if is.generation <= newest {
                    wrong("has a generation that there was before");
                }
            }
        }
    }

    /// Rule 16; from here on the container is the agent's.
    fn judge_adopted(&self, engine: &Engine, row: &DeployedRow) {
        let mut state = engine.state();
        // Somebody took it away meanwhile.
        let Some(container) = state.containers.get_mut(&row.container) else {
            return;
        };
        let wrong = |what: &str| {
            self.trace
                .violation(format!("{} {what}, and was adopted", container.live.name));
        };
        let node = container.live.labels.get(label::NODE);
        if node.is_some_and(|node| node != NODE) {
            wrong("is another node's");
        }
        if container.key().is_some() {
            wrong("is left over by a deployment");
        }
        if container.captured == Some(false) && row.wanted() == DesiredState::Running {
            wrong("did not run, shall run");
        }
        container.is_foreign = false;
        container.adopted_as = Some(row.key.clone());
        container.made_as = row.baseline.clone();
    }

    /// Rule 17; from here on it is as it was made.
    fn judge_taken_over(&self, engine: &Engine, known: &Known, row: &DeployedRow) {
        let mut state = engine.state();
        // Somebody took it away meanwhile.
        let Some(container) = state.containers.get_mut(&row.container) else {
            return;
        };
        let wrong = |what: &str| {
            self.trace.violation(format!(
                "{} {what}, and was taken over",
                container.live.name
            ));
        };
        if container.key().as_ref() != Some(&row.key) {
            wrong("is somebody else's");
        }
        if container.live.name != row.key.container_name() {
            wrong("bears another name");
        }
        let accepted = &self.history.revisions[..=known.accepted];
        let its = accepted.iter().find(|step| step.commit == row.revision);
        let says = container.live.labels.get(label::SPEC).cloned();
        if its.and_then(|step| step.specs.get(&row.key)) != Some(&row.spec_digest)
            || says != Some(row.spec_digest.to_string())
        {
            wrong("is not what an accepted revision says");
        }
        let wanted = accepted.last().and_then(|head| head.specs.get(&row.key));
        if wanted.is_some_and(|wanted| *wanted != row.spec_digest) && row.hold.is_none() {
            wrong("is not what the head says, is not held");
        }
        // What ended a moment ago the agent may have seen running.
        let is_down = !container.runs()
            && container.live.finished_at.is_none_or(|ended| {
                engine.now().duration_since(ended) > SignedDuration::from_secs(5)
            });
        if is_down && !row.spec.kind.is_job() && row.wanted() == DesiredState::Running {
            wrong("does not run, shall run");
        }
        container.made_as = row.baseline.clone();
    }

    /// Rule 12: what the plan was for is written, where nothing failed.
    fn judge_commit(&self, known: &Known, id: &DeploymentId) {
        if let Some(open) = known.open.get(id) {
            let leaves = open.plan.settings.on_failure == OnFailure::Leave;
            for action in open.plan.actions.iter().filter(|_| !leaves) {
                let key = ComponentKey::new(open.row.service.clone(), action.component.clone());
                let row = known.rows.get(&key);
                let wrong = |what: &str| self.trace.violation(format!("{key}: {what}"));
                match (&action.after, row) {
                    (Some(after), Some(row)) => {
                        if row.spec_digest != after.spec_digest || row.revision != after.revision {
                            wrong("is not what was deployed");
                        }
                        let wanted = if open.plan.settings.active {
                            DesiredState::Running
                        } else {
                            DesiredState::Stopped
                        };
                        if row.desired != wanted && row.desired != DesiredState::Ignore {
                            wrong("is wanted otherwise than its definition says");
                        }
                    }
                    (Some(_), None) if action.kind.creates() => {
                        wrong("was deployed and is not registered")
                    }
                    (None, Some(_)) if action.kind == ActionKind::Remove => {
                        wrong("was removed and is registered");
                    }
                    _ => {}
                }
            }
        }
    }

    fn moved(&self, engine: &Engine, row: DeploymentRow, steps: Vec<StepRow>) {
        let mut known = self.known();
        let before = known.open.get(&row.id).cloned();
        if let Some(before) = &before
            && before.row == row
        {
            if let Some(open) = known.open.get_mut(&row.id) {
                open.steps = steps;
            }
            return;
        }
        let from = before.as_ref().map(|open| open.row.state);
        let is_taken_over = row.trigger == Trigger::Rebuild
            && matches!(
                (from, row.state),
                (Some(DeploymentState::Admitted), DeploymentState::Committed)
            );
        if !may_follow(from, row.state) && !is_taken_over {
            self.trace.violation(format!(
                "deployment {} is {} after {from:?}",
                row.id.short(),
                row.state.as_str()
            ));
        }
        if before.is_none() && !row.request_id.is_empty() {
            let request = (row.request_id.clone(), row.service.clone());
            if let Some(first) = known.requests.insert(request, row.id.clone()) {
                self.trace.violation(format!(
                    "request {} led to {} and to {}",
                    row.request_id,
                    first.short(),
                    row.id.short()
                ));
            }
        }
        let is_new_plan = before.as_ref().is_none_or(|open| open.row.plan != row.plan);
        let crosses = row.state == DeploymentState::Switching
            && from.is_none_or(|from| from != DeploymentState::Switching);
        let plan = match &before {
            Some(open) if !is_new_plan => open.plan.clone(),
            // What is taken over is looked at and not planned.
            _ if row.trigger == Trigger::Rebuild => ServicePlan {
                service: row.service.clone(),
                revision: CommitId::NONE,
                settings: ServiceSettings::default(),
                actions: Vec::new(),
                blocked: Vec::new(),
            },
            _ => {
                let text: serde_json::Value = serde_json::from_str(&row.plan).unwrap();
                serde_json::from_value(text["plan"].clone()).unwrap()
            }
        };
        let excused = before.as_ref().is_some_and(|open| open.excused);
        let troubled = before.as_ref().is_some_and(|open| open.troubled);
        let crossed = match &before {
            _ if crosses => Some(Instant::now()),
            Some(before) => before.crossed,
            None => None,
        };
        let cancelled = before.as_ref().is_some_and(|open| open.cancelled);
        let mut harmed = before.map(|open| open.harmed).unwrap_or_default();
        if is_new_plan {
            // What is down already was done harm before.
            harmed.extend(down(engine, &plan));
        }
        let open = Open {
            row,
            plan,
            steps,
            crossed,
            harmed,
            cancelled,
            troubled,
            excused,
        };
        if from.is_none() {
            self.judge_beginning(engine, &mut known, &open);
        }
        if is_new_plan || crosses {
            self.judge_plan(engine, &known, &open, crosses);
        }
        if crosses {
            self.judge_crossing(&known, &open);
            self.judge_repairs(&mut known, &open);
        }
        if open.row.state == DeploymentState::Compensating {
            self.judge_patience(&open);
        }
        known.open.insert(open.row.id.clone(), open);
    }

    /// Rule 11: a deadline counts from the line.
    fn judge_patience(&self, open: &Open) {
        let waited = open.crossed.map(|crossed| crossed.elapsed());
        // What of it its stable time would still have taken.
        let waited = waited.unwrap_or_default() + Duration::from_secs(11);
        let spent = |step: &&StepRow| {
            step.step == "fail"
                && (step.data.contains("did not fit into the deadline")
                    || step.data.contains("the job had not ended"))
        };
        if let Some(step) = open.steps.iter().find(spent)
            && waited < open.plan.settings.deadline.as_duration()
        {
            self.trace.violation(format!(
                "deployment {} gave up before its deadline: {}",
                open.row.id.short(),
                step.data
            ));
        }
    }

    /// Rule 11, when a deployment crosses the line.
    fn judge_crossing(&self, known: &Known, open: &Open) {
        let wrong = |what: String| {
            self.trace
                .violation(format!("deployment {} {what}", open.row.id.short()));
        };
        let other = known.open.values().find(|other| {
            other.row.service == open.row.service
                && other.row.id != open.row.id
                && other.is_beyond_the_line()
        });
        if let Some(other) = other {
            wrong(format!("crosses the line beside {}", other.row.id.short()));
        }
        for action in open
            .plan
            .actions
            .iter()
            .filter(|action| action.kind.creates())
        {
            if !open.has_journalled(&action.component, "make", StepPhase::Done) {
                wrong(format!(
                    "crosses the line without its new {}",
                    action.component
                ));
            }
        }
    }

    /// Rule 12: what failed its gate is quarantined when its deployment has ended, unless it ran before; and
    /// what became of each component is on record.
    fn judge_findings(
        &self,
        known: &Known,
        open: &Open,
        row: &DeploymentRow,
        records: &[ComponentRecord],
    ) {
        if !open.is_beyond_the_line() {
            return;
        }
        for action in &open.plan.actions {
            let key = ComponentKey::new(row.service.clone(), action.component.clone());
            let wrong = |what: &str| self.trace.violation(format!("{key}: {what}"));
            if records.iter().all(|it| it.component != action.component) {
                wrong("what its deployment did to it is not on record");
            }
            let failed = open.steps.iter().any(|step| {
                step.step == "fail"
                    && step.component.as_ref() == Some(&action.component)
                    && step.data.contains("\"gate\":true")
            });
            let Some(after) = action.after.as_ref().filter(|_| action.kind.creates()) else {
                continue;
            };
            let digest = after.spec_digest;
            let ran_before = known
                .rows
                .get(&key)
                .is_some_and(|row| row.spec_digest == digest);
            if failed
                && open.row.state == DeploymentState::Compensating
                && !ran_before
                && !known.quarantined.contains(&(key.clone(), digest))
            {
                wrong("failed its gate, and is not quarantined");
            }
        }
    }

    /// Rules 8 and 11.
    fn ended(&self, engine: &Engine, row: &DeploymentRow, records: &[ComponentRecord]) {
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
        self.judge_end(&known, &open, row);
        self.judge_findings(&known, &open, row, records);
        if row.trigger.is_operators() {
            known.repairs.retain(|key, _| key.service != row.service);
        }
        known.series.retain(|id, _| {
            let state = engine.state();
            let key = state.containers.get(id).and_then(Container::key);
            key.is_some_and(|key| key.service != row.service)
        });
        if matches!(row.outcome, Some(Outcome::Failed) | None) {
            return;
        }
        let state = engine.state();
        self.judge_leftovers(&known, &state, &open, row);
        let new = matches!(
            row.outcome,
            Some(Outcome::Deployed | Outcome::Unchanged | Outcome::Degraded)
        );
        for action in &open.plan.actions {
            let key = ComponentKey::new(row.service.clone(), action.component.clone());
            let wrong = |what: &str| {
                self.trace.violation(format!(
                    "{key}: {what} after a deployment that ended {}",
                    row.outcome.map_or("?", Outcome::as_str)
                ));
            };
            let is_job = action
                .after
                .as_ref()
                .is_some_and(|after| after.spec.kind.is_job());
            if new && is_job && action.kind.creates() {
                let its = state.containers.values().find(|container| {
                    container.key().as_ref() == Some(&key)
                        && container
                            .live
                            .labels
                            .get(label::DEPLOYMENT)
                            .map(String::as_str)
                            == Some(row.id.as_str())
                });
                if its.is_some_and(|its| {
                    !matches!(its.live.state, ContainerState::Exited { code: 0, .. })
                }) {
                    wrong("the job has not done its work");
                }
            }
            let ran = action.before.as_ref().is_some_and(|before| before.running);
            let shall_run = if new {
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
                wrong("nothing runs");
            }
        }
    }

    /// Rule 8: what was replaced is gone, and so is what was made in vain.
    fn judge_leftovers(&self, known: &Known, state: &State, open: &Open, row: &DeploymentRow) {
        if open.troubled || open.plan.settings.on_failure == OnFailure::Leave {
            return;
        }
        for container in state.containers.values() {
            let Some(key) = container.key().filter(|key| key.service == row.service) else {
                continue;
            };
            let registered = known.rows.get(&key).map(|row| &row.container);
            let is_before = open.action(&key.component).is_some_and(|action| {
                let before = action.before.as_ref();
                before.is_some_and(|before| before.container == container.live.id)
            });
            let in_vain = open.made(container) && !open.is_beyond_the_line();
            // Before the line it had nothing to clear away but what it made.
            let is_left = open.is_beyond_the_line()
                && registered.is_some_and(|of| *of != container.live.id)
                && (is_before || open.made(container));
            if in_vain || is_left {
                self.trace.violation(format!(
                    "{} is left over by a deployment that ended {}",
                    container.live.name,
                    row.outcome.map_or("?", Outcome::as_str)
                ));
            }
        }
    }

    /// Rule 11, when a deployment ends.
    fn judge_end(&self, known: &Known, open: &Open, row: &DeploymentRow) {
        let outcome = row.outcome;
        let wrong = |what: String| {
            self.trace.violation(format!(
                "deployment {} {what} and ended {}",
                row.id.short(),
                outcome.map_or("?", Outcome::as_str)
            ));
        };
        let fits = match open.row.state {
            DeploymentState::Compensating => {
                matches!(outcome, Some(Outcome::RolledBack | Outcome::Failed))
            }
            DeploymentState::Committed => matches!(
                outcome,
                Some(Outcome::Deployed | Outcome::Unchanged | Outcome::Degraded | Outcome::Failed)
            ),
            // Where it could not be journalled it was put back all the same.
            state if is_beyond_the_line(state) => {
                open.excused && matches!(outcome, Some(Outcome::RolledBack | Outcome::Failed))
            }
            _ => matches!(outcome, Some(Outcome::Aborted | Outcome::Superseded)),
        };
        if !fits {
            wrong(format!("was {}", open.row.state.as_str()));
        }
        if open.cancelled && !matches!(outcome, Some(Outcome::Aborted | Outcome::Superseded)) {
            wrong("was told to be cancelled".to_owned());
        }
        if outcome == Some(Outcome::Superseded) {
            let newer = known
                .open
                .values()
                .any(|newer| newer.row.service == row.service && takes_the_place(newer, open));
            if !newer {
                wrong("is brought about by no newer one".to_owned());
            }
        }
    }
}

/// Rule 11: which state may follow which.
const fn may_follow(from: Option<DeploymentState>, to: DeploymentState) -> bool {
    use DeploymentState as S;
    match from {
        None => matches!(to, S::Admitted | S::Planned),
        Some(S::Admitted) => matches!(to, S::Admitted | S::Planned),
        Some(S::Planned | S::Prepared) => {
            matches!(to, S::Planned | S::Prepared | S::Switching)
        }
        Some(S::Switching | S::Healthy) => {
            matches!(
                to,
                S::Switching | S::Healthy | S::Committed | S::Compensating
            )
        }
        Some(S::Committed) => matches!(to, S::Committed),
        Some(S::Compensating) => matches!(to, S::Compensating),
        Some(_) => false,
    }
}

/// Rule 11: whether what an older deployment was for follows from a newer one.
fn takes_the_place(newer: &Open, older: &Open) -> bool {
    use Trigger as T;
    let covers = |open: &Open| -> BTreeSet<ComponentName> {
        open.plan
            .actions
            .iter()
            .map(|action| action.component.clone())
            .collect()
    };
    let may = match (newer.row.trigger, older.row.trigger) {
        (newer, T::Stop | T::Purge) => newer == older.row.trigger,
        (T::Auto, older) => older == T::Auto,
        (T::Start | T::Restart, older) => matches!(older, T::Start | T::Restart),
        _ => true,
    };
    newer.row.id != older.row.id && may && covers(older).is_subset(&covers(newer))
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
