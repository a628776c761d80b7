//! One deployment under way: what it works on, what it has touched, and who may end it early.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mcp_spec::component::{ComponentSpec, OnFailure};
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerId, LiveContainer, label};
use mcp_spec::plan::{Action, Purpose, Reason, ServicePlan};
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::execute::Abort;
use super::failure::PartFailure;
use super::feed::Feed;
use super::line::Line;
use crate::registry::{DeployedRow, DeploymentId, Remade, StepPhase, StepRow, Trigger};
use crate::takeover::{is_alive, is_of_known_deployment};

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
    remade: Mutex<BTreeMap<ComponentName, Remade>>,
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
            remade: Mutex::new(BTreeMap::new()),
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

    /// Whether components are brought back that an emptied engine took along.
    pub(super) fn brings_back(&self) -> bool {
        self.plan
            .actions
            .iter()
            .any(|action| action.reason == Reason::EngineEmptied)
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

    pub(super) fn touched(&self) -> Vec<ComponentName> {
        self.touched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes that another container of the same spec took the place of a registered one.
    pub(super) fn note_remade(&self, component: &ComponentName, remade: Remade) {
        let mut all = self.remade.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(component.clone(), remade);
    }

    /// What took the place of a component's registered container in this deployment.
    pub(super) fn remade(&self, component: &ComponentName) -> Option<Remade> {
        let all = self.remade.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(component).cloned()
    }

    /// The registered container of a component, or what took its place.
    pub(super) fn current(&self, component: &ComponentName, before: &ContainerId) -> ContainerId {
        self.remade(component)
            .map_or_else(|| before.clone(), |remade| remade.container)
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

    /// Whether a container is a leftover of the agent's own, made for this component and registered
    /// nowhere. What an operator let go of is none, whatever its labels say. What runs and was made by a
    /// deployment that this registry does not know may be all that runs, as after an old backup: it is
    /// none either.
    pub(super) async fn is_debris(&self, key: &ComponentKey, live: &LiveContainer) -> bool {
        let claims = live.labels.get(label::NODE).map(String::as_str)
            == Some(self.context.node.as_str())
            && live.claimed_key().as_ref() == Some(key)
            && self.old.values().all(|row| row.container != live.id)
            && self
                .remade(&key.component)
                .is_none_or(|remade| remade.container != live.id);
        if !claims {
            return false;
        }
        let registry = &self.context.registry;
        let forgotten = registry.forgotten().await;
        forgotten.is_ok_and(|forgotten| !forgotten.contains(&live.id))
            && (!is_alive(live)
                || is_of_known_deployment(registry, live)
                    .await
                    .unwrap_or(false))
    }

    /// Whether a failed component is left as it is, for a look.
    pub(super) fn leaves_failures(&self) -> bool {
        // Of what is brought back one that fails takes none of the others down.
        (self.plan.settings.on_failure == OnFailure::Leave || self.brings_back())
            && !matches!(self.order.trigger, Trigger::Stop | Trigger::Purge)
    }

    /// Why the deployment was cancelled.
    pub(super) fn cancellation(&self) -> Abort {
        if self.superseded.load(Ordering::Acquire) == 1 {
            Abort::Superseded
        } else {
            Abort::Cancelled
        }
    }
}
