//! One deployment of one service, from its plan to its end.
//!
//! ```text
//! ADMITTED -> PLANNED -> PREPARED -> | the line | -> SWITCHING -> COMMITTED -> CLEANED
//!    a failure before the line: ABORTED, the old ones never noticed
//!    after it: COMPENSATING -> ROLLED_BACK (the old containers run again) or FAILED
//! ```
//!
//! Every state is journalled before what it stands for is done. After a crash `recover` makes the
//! execution again from its row and goes on where the journal ends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mcp_spec::component::{ComponentSpec, Network, OnFailure, VolumeSource};
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerId, LiveContainer, label};
use mcp_spec::plan::{Action, ActionKind, HoldChange, Purpose, ServicePlan};
use mcp_spec::revision::CommitId;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::compensate::{PutBack, clear_new, last_lines, put_back};
use super::context::{Context, IN_FLIGHT};
use super::failure::PartFailure;
use super::feed::{Ended, Feed};
use super::outcome;
use super::prepare::{Befallen, Made, keep_tag, prepare};
use super::switch::{Outcome as Switching, Switched, stop_container, switch_all};
use crate::blocking::blocking;
use crate::registry::{
    ComponentRecord, DeployedRow, DeploymentId, DeploymentRow, DeploymentState, Outcome,
    Quarantined, RegistryError, StepPhase, StepRow, StopOverride, Trigger,
};

/// Who asked for a deployment and how it is to be understood.
#[derive(Debug, Clone)]
pub struct Order {
    /// Who asked.
    pub actor: String,
    /// What for.
    pub trigger: Trigger,
    /// Why the plan was made; `None` for start, stop, restart and purge.
    pub purpose: Option<Purpose>,
    /// What a purge takes beside the containers.
    pub volumes: bool,
    /// The history rows that a rollback restores, by component.
    pub restores: BTreeMap<ComponentName, i64>,
}

/// The point of no return: crossed once, or cancelled before.
#[derive(Debug, Default)]
pub(super) struct Line(AtomicU8);

impl Line {
    const BEFORE: u8 = 0;
    const CANCELLED: u8 = 1;
    const CROSSED: u8 = 2;

    fn decide(&self, to: u8) -> bool {
        self.0
            .compare_exchange(Self::BEFORE, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Crosses; `false` where it was cancelled before.
    pub(super) fn cross(&self) -> bool {
        self.decide(Self::CROSSED) || self.0.load(Ordering::Acquire) == Self::CROSSED
    }

    /// Cancels; `false` where it is too late.
    pub(super) fn cancel(&self) -> bool {
        self.decide(Self::CANCELLED) || self.is_cancelled()
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::CANCELLED
    }
}

/// Why a deployment ended before the line.
#[derive(Debug)]
pub(super) enum Abort {
    /// A component could not be prepared.
    Befallen(Befallen),
    /// An operator cancelled it.
    Cancelled,
    /// A newer deployment took its place.
    Superseded,
    /// The agent went away and came back before the line.
    Crashed,
    /// The registry failed.
    Registry(RegistryError),
}

/// One deployment under way.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) context: Arc<Context>,
    pub(super) id: DeploymentId,
    pub(super) plan: ServicePlan,
    pub(super) order: Order,
    /// What was deployed of the service when the deployment began.
    pub(super) old: BTreeMap<ComponentName, DeployedRow>,
    /// Its specs, by component.
    pub(super) old_specs: BTreeMap<ComponentName, ComponentSpec>,
    pub(super) feed: Arc<Feed>,
    pub(super) line: Arc<Line>,
    superseded: Arc<AtomicU8>,
    cancelled: CancellationToken,
    down_since: Mutex<BTreeMap<ComponentName, Instant>>,
    give_up: CancellationToken,
    touched: Mutex<Vec<ComponentName>>,
    resumed: bool,
}

impl Execution {
    pub(super) fn new(
        context: Arc<Context>,
        id: DeploymentId,
        plan: ServicePlan,
        order: Order,
        old: BTreeMap<ComponentName, DeployedRow>,
        feed: Arc<Feed>,
        line: Arc<Line>,
    ) -> Self {
        let old_specs = old
            .iter()
            .map(|(component, row)| (component.clone(), row.spec.clone()))
            .collect();
        Self {
            context,
            id,
            plan,
            order,
            old,
            old_specs,
            feed,
            line,
            superseded: Arc::new(AtomicU8::new(0)),
            cancelled: CancellationToken::new(),
            down_since: Mutex::new(BTreeMap::new()),
            give_up: CancellationToken::new(),
            touched: Mutex::new(Vec::new()),
            resumed: false,
        }
    }

    /// Marks the execution as one that a crash cut off.
    pub(super) fn resumed(mut self) -> Self {
        self.resumed = true;
        self
    }

    /// Whether a crash cut the execution off before.
    pub(super) const fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Ties the execution to those who may cancel it or take its place.
    pub(super) fn cancelled_by(
        mut self,
        cancelled: CancellationToken,
        superseded: Arc<AtomicU8>,
    ) -> Self {
        self.cancelled = cancelled;
        self.superseded = superseded;
        self
    }

    /// Returns when the deployment is cancelled before the line.
    pub(super) async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    /// Notes that a component's old container is being stopped.
    pub(super) fn goes_down(&self, component: &ComponentName) {
        let mut down = self
            .down_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        down.entry(component.clone()).or_insert_with(Instant::now);
    }

    /// How long nothing of a component has run.
    pub(super) fn down_for(&self, component: &ComponentName) -> std::time::Duration {
        let down = self
            .down_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        down.get(component)
            .map_or(std::time::Duration::ZERO, Instant::elapsed)
    }

    pub(super) fn key(&self, component: &ComponentName) -> ComponentKey {
        ComponentKey::new(self.plan.service.clone(), component.clone())
    }

    /// Whether `pull = "always"` resolves the tag anew: only where an operator deploys the head.
    pub(super) fn resolves_anew(&self) -> bool {
        self.order.purpose == Some(Purpose::Deploy) && self.order.trigger == Trigger::Deploy
    }

    /// Whether an image that is gone may not be replaced by what its tag stands for now.
    pub(super) fn must_be_the_same_bytes(&self) -> bool {
        matches!(
            self.order.purpose,
            Some(Purpose::DeployRevision | Purpose::Rollback)
        )
    }

    pub(super) fn give_up(&self) {
        self.give_up.cancel();
    }

    pub(super) fn gives_up(&self) -> bool {
        self.give_up.is_cancelled()
    }

    pub(super) async fn given_up(&self) {
        self.give_up.cancelled().await;
    }

    /// Notes that a component's containers are about to be touched.
    pub(super) fn touch(&self, component: &ComponentName) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        if !touched.contains(component) {
            touched.push(component.clone());
        }
    }

    /// Whether a component's containers were touched.
    pub(super) fn is_touched(&self, component: &ComponentName) -> bool {
        let touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        touched.contains(component)
    }

    fn touched(&self) -> Vec<ComponentName> {
        self.touched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn action(&self, component: &ComponentName) -> Option<&Action> {
        self.plan
            .actions
            .iter()
            .find(|action| action.component == *component)
    }

    pub(super) fn step<T: Serialize>(
        &self,
        component: Option<&ComponentName>,
        step: &str,
        phase: StepPhase,
        data: &T,
    ) -> StepRow {
        StepRow {
            seq: 0,
            deployment: self.id.clone(),
            component: component.cloned(),
            step: step.to_owned(),
            phase,
            data: serde_json::to_string(data).expect("journal data holds only strings and numbers"),
            at: self.context.clock.now(),
        }
    }

    pub(super) async fn journal(&self, rows: Vec<StepRow>) -> Result<(), PartFailure> {
        self.context
            .registry
            .journal(rows)
            .await
            .map_err(Into::into)
    }

    /// The bytes of a repository file at a revision.
    pub(super) async fn file_bytes(
        &self,
        revision: CommitId,
        path: &str,
    ) -> Result<Vec<u8>, PartFailure> {
        let failure = |cause: String| PartFailure::File {
            path: path.to_owned(),
            cause,
        };
        let (store, wanted) = (self.context.revisions.clone(), path.to_owned());
        blocking(move || store.read_file(revision, &wanted))
            .await
            .map_err(|error| failure(error.to_string()))?
            .ok_or_else(|| failure(format!("{} does not hold it", revision.short())))
    }

    /// Whether a container is a leftover of the agent's own, made for this component and registered
    /// nowhere.
    pub(super) fn is_debris(&self, key: &ComponentKey, live: &LiveContainer) -> bool {
        live.labels.get(label::NODE).map(String::as_str) == Some(self.context.node.as_str())
            && live.claimed_key().as_ref() == Some(key)
            && self.old.values().all(|row| row.container != live.id)
    }

    /// Runs a deployment that was admitted, to its end.
    pub(super) async fn run(&self, row: DeploymentRow) -> Ended {
        self.feed.tell(None, "preparing", "");
        let made = match prepare(self).await {
            Ok(made) => made,
            // A cancellation ends a pull as a failure; it is none.
            Err(_) if self.line.is_cancelled() => {
                return self.abort(row, self.cancellation()).await;
            }
            Err(befallen) => return self.abort(row, Abort::Befallen(befallen)).await,
        };
        self.feed.tell(None, "prepared", "");
        if !self.line.cross() {
            return self.abort(row, self.cancellation()).await;
        }
        let now = self.context.clock.now();
        if let Err(error) = self
            .context
            .registry
            .set_state(
                self.id.clone(),
                DeploymentState::Switching,
                Some(now),
                Vec::new(),
            )
            .await
        {
            return self.abort(row, Abort::Registry(error)).await;
        }
        let mut row = row;
        row.line_at = Some(now);
        self.after_the_line(row, made).await
    }

    /// Why the deployment was cancelled.
    fn cancellation(&self) -> Abort {
        if self.superseded.load(Ordering::Acquire) == 1 {
            Abort::Superseded
        } else {
            Abort::Cancelled
        }
    }

    /// Goes on after the line: the switch, and what follows from it.
    pub(super) async fn after_the_line(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
    ) -> Ended {
        let deadline = Instant::now() + self.plan.settings.deadline.as_duration();
        if let Err(error) = self.record_stop().await {
            let failed = BTreeMap::from_iter(
                self.plan
                    .actions
                    .first()
                    .map(|action| (action.component.clone(), PartFailure::Registry(error))),
            );
            let switching = Switching {
                switched: BTreeMap::new(),
                failed,
            };
            return self.compensate(row, made, switching).await;
        }
        let mut switching = switch_all(self, &made, deadline).await;
        if self.order.trigger == Trigger::Stop && switching.failed.is_empty() {
            switching.failed = self.stop_revived(deadline).await;
        }
        if switching.failed.is_empty() || self.leaves_failures() {
            self.commit(row, made, switching).await
        } else {
            self.compensate(row, made, switching).await
        }
    }

    /// Whether a failed component is left as it is, for a look.
    pub(super) fn leaves_failures(&self) -> bool {
        self.plan.settings.on_failure == OnFailure::Leave
            && !matches!(self.order.trigger, Trigger::Stop | Trigger::Purge)
    }

    /// Stops what the plan saw down and what its restart policy started since. From the record of the
    /// stop on nothing starts it again.
    async fn stop_revived(&self, deadline: Instant) -> BTreeMap<ComponentName, PartFailure> {
        let mut failed = BTreeMap::new();
        for action in &self.plan.actions {
            let Some(before) = action.before.as_ref().filter(|before| before.present) else {
                continue;
            };
            if action.kind != ActionKind::None {
                continue;
            }
            let seen = self
                .context
                .runtime
                .inspect(before.container.as_str())
                .await;
            if seen.is_ok_and(|live| live.is_none_or(|live| !live.state.is_running())) {
                continue;
            }
            self.touch(&action.component);
            let grace = before.stop_timeout.as_duration();
            if let Err(failure) = stop_container(self, &before.container, grace, deadline).await {
                failed.insert(action.component.clone(), failure);
            }
        }
        failed
    }

    /// An operator's stop is recorded before anything stops, so that nothing starts it again.
    async fn record_stop(&self) -> Result<(), RegistryError> {
        if self.order.trigger != Trigger::Stop {
            return Ok(());
        }
        let keys: Vec<ComponentKey> = self
            .plan
            .actions
            .iter()
            .map(|action| self.key(&action.component))
            .collect();
        let stop = StopOverride {
            by: self.order.actor.clone(),
            at: self.context.clock.now(),
        };
        self.context
            .registry
            .set_stop(keys, Some(stop), Vec::new())
            .await
    }

    /// Ends before the line: what was made is cleared away, and nothing else was touched.
    pub(super) async fn abort(&self, row: DeploymentRow, why: Abort) -> Ended {
        self.clear_makings().await;
        let (state, outcome) = match why {
            Abort::Superseded => (DeploymentState::Superseded, Outcome::Superseded),
            _ => (DeploymentState::Aborted, Outcome::Aborted),
        };
        let records = outcome::aborted(self, &why);
        let error = outcome::abort_text(self, &why);
        self.finish(row, state, outcome, Some(error), records).await
    }

    /// Removes every container that the journal says was made, or was about to be.
    async fn clear_makings(&self) {
        let steps = match self.context.registry.steps(self.id.clone()).await {
            Ok(steps) => steps,
            Err(error) => {
                tracing::error!(deployment = %self.id, %error, "cannot read the journal to clear away");
                return;
            }
        };
        let makings = super::recover::makings(&steps);
        let made = super::recover::made(&steps);
        let until = Instant::now() + IN_FLIGHT;
        for (component, making) in &makings {
            let key = self.key(component);
            let seen = if self.resumed && !made.contains_key(component) {
                // The engine may still be at it: it goes on when its client is killed.
                self.context.appearing(&making.name, until).await
            } else {
                self.context.runtime.inspect(&making.name).await
            };
            match seen {
                Ok(Some(live)) if self.is_debris(&key, &live) => {
                    self.remove_container(component, &live.id).await;
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    // A generation's name is the agent's own: podman may still hold it in its storage.
                    if making.name != key.container_name() {
                        drop(self.context.runtime.remove(&making.name).await);
                    }
                }
                Err(error) => {
                    tracing::warn!(deployment = %self.id, name = making.name, %error, "cannot look for a leftover");
                }
            }
            self.remove_files(component, making.generation).await;
        }
        self.drop_networks(
            self.plan
                .actions
                .iter()
                .filter_map(|action| action.after.as_ref())
                .map(|after| &after.spec),
        )
        .await;
    }

    /// Writes the end of a switch that went well (or whose failures are left for a look) into the
    /// registry, and clears away what is no longer needed.
    async fn commit(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
        switching: Switching,
    ) -> Ended {
        let keep_before = self
            .context
            .registry
            .images_to_keep()
            .await
            .unwrap_or_default();
        let not_converged = not_converged(&made, &switching.switched);
        // A hold that an operator set or released meanwhile is not written over.
        let holds = match self
            .context
            .registry
            .deployed_of(self.plan.service.clone())
            .await
        {
            Ok(rows) => rows
                .into_iter()
                .map(|row| (row.key.component, row.hold))
                .collect(),
            Err(_) => BTreeMap::new(),
        };
        let commit = outcome::commitment(self, &made, &switching, &holds);
        let lives: Vec<LiveContainer> = switching
            .switched
            .values()
            .filter_map(|switched| switched.live.clone())
            .collect();
        if let Err(error) = self.context.registry.commit_deployment(commit).await {
            tracing::error!(deployment = %self.id, %error, "cannot write the deployment down; putting back what ran before");
            let mut switching = switching;
            if let Some(action) = self.plan.actions.first() {
                switching
                    .failed
                    .insert(action.component.clone(), PartFailure::Registry(error));
            }
            return self.compensate(row, made, switching).await;
        }
        self.feed.tell(None, "committed", "");
        self.context.sightings.saw(lives);
        let records = outcome::committed(
            self,
            &made,
            &switching,
            &self.kept_logs(&made, &switching).await,
        );
        self.clear_unreached(&made).await;
        self.clean(&made, &switching.failed, keep_before).await;
        let failed = outcome::failure_text(self, &switching.failed);
        let (state, outcome, error) = match (failed, not_converged) {
            (Some(error), _) => (DeploymentState::Failed, Outcome::Failed, Some(error)),
            (None, Some(text)) => (DeploymentState::Cleaned, Outcome::Degraded, Some(text)),
            // A deploy that only moved revisions on touched nothing, and says so.
            (None, None) if self.order.purpose.is_some() && !self.plan.touches_engine() => {
                (DeploymentState::Cleaned, Outcome::Unchanged, None)
            }
            (None, None) => (DeploymentState::Cleaned, Outcome::Deployed, None),
        };
        self.finish(row, state, outcome, error, records).await
    }

    /// Clears away after a commit that a crash came right after. `records` were written with it.
    pub(super) async fn clean_again(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
        records: Vec<ComponentRecord>,
    ) -> Ended {
        let failed: BTreeMap<ComponentName, PartFailure> = records
            .iter()
            .filter(|record| record.outcome == "failed")
            .map(|record| {
                let text = record.error.clone().unwrap_or_default();
                (
                    record.component.clone(),
                    PartFailure::Earlier { text, gate: false },
                )
            })
            .collect();
        self.clear_unreached(&made).await;
        self.clean(&made, &failed, Vec::new()).await;
        // The rows of removed components are gone already, and with them the names of their networks.
        self.drop_networks_of_service().await;
        let (state, outcome) = if failed.is_empty() {
            (DeploymentState::Cleaned, Outcome::Deployed)
        } else {
            (DeploymentState::Failed, Outcome::Failed)
        };
        let error = outcome::failure_text(self, &failed);
        self.finish(row, state, outcome, error, records).await
    }

    /// A component that was not reached keeps what it has; what was made for it goes.
    async fn clear_unreached(&self, made: &BTreeMap<ComponentName, Made>) {
        let unreached = made
            .iter()
            .filter(|(component, _)| !self.is_touched(component))
            .map(|(component, made)| (component.clone(), made.clone()))
            .collect();
        clear_new(self, &unreached, &BTreeMap::new(), &BTreeMap::new()).await;
    }

    async fn kept_logs(
        &self,
        made: &BTreeMap<ComponentName, Made>,
        switching: &Switching,
    ) -> BTreeMap<ComponentName, Vec<String>> {
        let mut logs = BTreeMap::new();
        for (component, failure) in &switching.failed {
            if !matches!(failure, PartFailure::Gate(_)) {
                continue;
            }
            let container = made
                .get(component)
                .map(|made| made.container.clone())
                .or_else(|| {
                    self.action(component)
                        .and_then(|action| action.before.as_ref())
                        .map(|before| before.container.clone())
                });
            if let Some(container) = container {
                logs.insert(component.clone(), last_lines(self, &container).await);
            }
        }
        logs
    }

    /// Removes old containers, files, networks and kept images that nothing needs any more.
    pub(super) async fn clean(
        &self,
        made: &BTreeMap<ComponentName, Made>,
        failed: &BTreeMap<ComponentName, PartFailure>,
        keep_before: Vec<(ComponentKey, mcp_spec::observed::ImageId)>,
    ) {
        let mut removals = Vec::new();
        for action in &self.plan.actions {
            let Some(before) = &action.before else {
                continue;
            };
            let has_failed = failed.contains_key(&action.component);
            // The registry still holds what was not reached, and what could not be stopped.
            let is_kept = has_failed
                && (action.kind == ActionKind::Remove || !self.is_touched(&action.component));
            match action.kind {
                ActionKind::Replace | ActionKind::Remove if before.present && !is_kept => {
                    removals.push((&action.component, &before.container, before.generation));
                }
                ActionKind::Create if !has_failed => {
                    self.remove_files(&action.component, before.generation)
                        .await;
                }
                ActionKind::Restart | ActionKind::Signal | ActionKind::None => {
                    if let (Some(after), false) = (&action.after, action.files.is_empty()) {
                        let (staging, key) =
                            (self.context.staging.clone(), self.key(&action.component));
                        let (generation, files) = (before.generation, after.spec.files.clone());
                        blocking(move || staging.settle(&key, generation, &files)).await;
                    }
                }
                _ => {}
            }
        }
        futures_util::future::join_all(removals.into_iter().map(
            |(component, container, generation)| async move {
                let slot = self.context.slots.acquire().await;
                self.remove_container(component, container).await;
                drop(slot);
                self.remove_files(component, generation).await;
            },
        ))
        .await;
        self.drop_networks(self.old_specs.values()).await;
        if self.order.volumes {
            self.drop_volumes().await;
        }
        if !made.is_empty() {
            self.drop_images(keep_before).await;
        }
    }

    /// Lets go of the images that the deployment pushed out of what may be needed again.
    async fn drop_images(&self, before: Vec<(ComponentKey, mcp_spec::observed::ImageId)>) {
        let Ok(keep) = self.context.registry.images_to_keep().await else {
            return;
        };
        for (_, image) in before {
            if keep.iter().all(|(_, kept)| *kept != image)
                && let Err(error) = self.context.runtime.untag(&keep_tag(&image)).await
            {
                tracing::warn!(image = %image, %error, "cannot let go of an image");
            }
        }
    }

    /// Removes those networks of `specs` that the agent made and no deployed component joins.
    async fn drop_networks<'a>(&self, specs: impl Iterator<Item = &'a ComponentSpec>) {
        let mut names: Vec<String> = specs
            .filter_map(|spec| match &spec.network {
                Network::User(attachments) => Some(attachments.keys()),
                _ => None,
            })
            .flatten()
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        self.drop_unjoined(names).await;
    }

    /// Removes those networks that were made for the service and that no deployed component joins.
    async fn drop_networks_of_service(&self) {
        let service = self.plan.service.as_str();
        if let Ok(names) = self.context.runtime.networks(label::SERVICE, service).await {
            self.drop_unjoined(names).await;
        }
    }

    async fn drop_unjoined(&self, mut names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        let Ok(deployed) = self.context.registry.deployed_all().await else {
            return;
        };
        names.retain(|name| {
            deployed.iter().all(|row| match &row.spec.network {
                Network::User(attachments) => !attachments.contains_key(name),
                _ => true,
            })
        });
        if names.is_empty() {
            return;
        }
        let runtime = &self.context.runtime;
        let Ok(ours) = runtime
            .networks(label::NODE, self.context.node.as_str())
            .await
        else {
            return;
        };
        for name in names {
            if ours.contains(&name)
                && let Err(error) = runtime.remove_network(&name).await
            {
                tracing::warn!(network = name, %error, "cannot remove a network");
            }
        }
    }

    /// Removes those named volumes of components that were removed that the agent made and no
    /// deployed component mounts.
    async fn drop_volumes(&self) {
        let runtime = &self.context.runtime;
        let (Ok(deployed), Ok(ours)) = (
            self.context.registry.deployed_all().await,
            runtime
                .volumes(label::NODE, self.context.node.as_str())
                .await,
        ) else {
            tracing::warn!(deployment = %self.id, "cannot tell which volumes may go; all stay");
            return;
        };
        let is_mounted = |name: &str| {
            deployed.iter().any(|row| {
                row.spec.volumes.values().any(
                    |volume| matches!(&volume.source, VolumeSource::Named(other) if other == name),
                )
            })
        };
        for action in &self.plan.actions {
            let (ActionKind::Remove, Some(spec)) =
                (action.kind, self.old_specs.get(&action.component))
            else {
                continue;
            };
            for volume in spec.volumes.values() {
                if let VolumeSource::Named(name) = &volume.source
                    && ours.contains(name)
                    && !is_mounted(name)
                    && let Err(error) = runtime.remove_volume(name).await
                {
                    tracing::warn!(volume = name, %error, "cannot remove a volume");
                }
            }
        }
    }

    /// Puts back what was touched, in reverse.
    pub(super) async fn compensate(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
        switching: Switching,
    ) -> Ended {
        // A crash in the compensation does not forget what it is for.
        let causes = switching
            .failed
            .iter()
            .filter(|(_, failure)| !failure.is_consequence())
            .map(|(component, failure)| {
                let cause = super::recover::Cause {
                    text: outcome::failure_chain(failure),
                    gate: failure.is_gate(),
                };
                self.step(
                    Some(component),
                    super::recover::STEP_FAIL,
                    StepPhase::Done,
                    &cause,
                )
            })
            .collect();
        if let Err(error) = self
            .context
            .registry
            .set_state(self.id.clone(), DeploymentState::Compensating, None, causes)
            .await
        {
            tracing::error!(deployment = %self.id, %error, "cannot journal the compensation; going on with it");
        }
        let logs = self.kept_logs(&made, &switching).await;
        self.put_all_back(row, made, switching, logs).await
    }

    /// The compensation itself, which a crash can cut off and recovery makes again.
    pub(super) async fn put_all_back(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
        switching: Switching,
        logs: BTreeMap<ComponentName, Vec<String>>,
    ) -> Ended {
        let mut put = BTreeMap::new();
        let mut stuck = BTreeMap::new();
        for component in self.touched().into_iter().rev() {
            let Some(action) = self.action(&component) else {
                continue;
            };
            let mut result = put_back(self, action, made.get(&component)).await;
            // Giving up while the engine is away would leave nothing running.
            let mut more_tries = 2_u32;
            while let Err(PartFailure::Engine { source, .. }) = &result
                && source.is_away()
            {
                if !self.context.engine_was_away().await {
                    if more_tries == 0 {
                        break;
                    }
                    more_tries -= 1;
                }
                result = put_back(self, action, made.get(&component)).await;
            }
            match result {
                Ok(outcome) => {
                    put.insert(component, outcome);
                }
                Err(failure) => {
                    stuck.insert(component, failure);
                }
            }
        }
        if self.order.trigger == Trigger::Stop {
            // The stop did not come about: what runs again is wanted again.
            let keys: Vec<ComponentKey> = put.keys().map(|component| self.key(component)).collect();
            if let Err(error) = self.context.registry.set_stop(keys, None, Vec::new()).await {
                tracing::error!(deployment = %self.id, %error, "cannot take the stop back");
            }
        }
        clear_new(self, &made, &put, &stuck).await;
        self.drop_networks(
            self.plan
                .actions
                .iter()
                .filter_map(|action| action.after.as_ref())
                .map(|after| &after.spec),
        )
        .await;
        let restored = put
            .values()
            .any(|outcome| matches!(outcome, PutBack::Restored { .. }));
        let (state, outcome) = if stuck.is_empty() && restored {
            (DeploymentState::RolledBack, Outcome::RolledBack)
        } else {
            (DeploymentState::Failed, Outcome::Failed)
        };
        let records = outcome::compensated(self, &made, &switching, &put, &stuck, &logs);
        let error = outcome::failure_text(self, &switching.failed);
        let quarantined = outcome::quarantined(self, &made, &switching);
        self.finish_with(row, state, outcome, error, records, quarantined)
            .await
    }

    pub(super) async fn remove_container(
        &self,
        component: &ComponentName,
        container: &ContainerId,
    ) {
        if let Err(error) = self.context.runtime.remove(container.as_str()).await {
            tracing::warn!(
                deployment = %self.id, component = %component, container = container.short(), %error,
                "cannot remove a container; the next sweep tries again"
            );
        }
    }

    pub(super) async fn remove_files(&self, component: &ComponentName, generation: u64) {
        let (staging, key) = (self.context.staging.clone(), self.key(component));
        if let Err(error) = blocking(move || staging.remove(&key, generation)).await {
            tracing::warn!(component = %component, generation, %error, "cannot remove staged files");
        }
    }

    /// Writes the end down and tells it.
    pub(super) async fn finish(
        &self,
        row: DeploymentRow,
        state: DeploymentState,
        outcome: Outcome,
        error: Option<String>,
        records: Vec<ComponentRecord>,
    ) -> Ended {
        self.finish_with(row, state, outcome, error, records, Vec::new())
            .await
    }

    async fn finish_with(
        &self,
        mut row: DeploymentRow,
        state: DeploymentState,
        outcome: Outcome,
        error: Option<String>,
        records: Vec<ComponentRecord>,
        quarantined: Vec<Quarantined>,
    ) -> Ended {
        let now = self.context.clock.now();
        row.state = state;
        row.outcome = Some(outcome);
        row.error = error;
        row.finished_at = Some(now);
        let finish = outcome::finish(self, &row, &records, quarantined);
        if let Err(error) = self.context.registry.finish(finish).await {
            tracing::error!(deployment = %self.id, %error, "cannot write the end of a deployment down");
        }
        self.feed.tell(None, "cleaned", "");
        Ended {
            row,
            components: records,
        }
    }
}

/// Which new containers are not what was made: the plan of what was just deployed is not empty.
fn not_converged(
    made: &BTreeMap<ComponentName, Made>,
    switched: &BTreeMap<ComponentName, Switched>,
) -> Option<String> {
    let mut texts = Vec::new();
    for (component, made) in made {
        let Some(live) = switched.get(component).and_then(|s| s.live.as_ref()) else {
            continue;
        };
        let fields: Vec<&str> = made
            .baseline
            .keys()
            .chain(live.fields.keys())
            .filter(|field| made.baseline.get(*field) != live.fields.get(*field))
            .map(String::as_str)
            .collect();
        if !fields.is_empty() {
            texts.push(format!("{component}: {}", fields.join(", ")));
        }
    }
    (!texts.is_empty()).then(|| format!("not converged: {}", texts.join("; ")))
}

/// Whether an action leaves its component's hold changed.
pub(super) const fn changes_hold(action: &Action) -> bool {
    !matches!(action.hold, HoldChange::Keep)
}
