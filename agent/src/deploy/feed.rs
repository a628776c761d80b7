//! What a deployment tells those who follow it.
//!
//! A feed keeps the last [`KEPT`] steps, so that a client that comes late, or comes back, sees them
//! all; the end is a value that can be waited for. A slow follower loses progress, never the end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use mcp_spec::name::{ComponentName, ServiceName};
use tokio::sync::{broadcast, watch};

use crate::registry::{ComponentRecord, DeploymentId, DeploymentRow};

/// Steps that a feed keeps: 20 components with a few dozen steps each fit.
const KEPT: usize = 1024;

/// One step of a deployment.
#[derive(Debug, Clone)]
pub struct Step {
    /// The deployment.
    pub deployment: DeploymentId,
    /// Its service.
    pub service: ServiceName,
    /// The component; `None` where it is about the whole.
    pub component: Option<ComponentName>,
    /// The step's word: `pulling`, `created`, `stopping`, `healthy`, ….
    pub step: &'static str,
    /// More, for people.
    pub detail: String,
    /// Progress of the step, where it can be counted.
    pub current: u64,
    /// What `current` counts up to; 0 where unknown.
    pub total: u64,
    /// Milliseconds since the deployment began.
    pub elapsed_ms: u64,
}

/// How a deployment ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its row, as the registry keeps it.
    pub row: DeploymentRow,
    /// Its components' parts.
    pub components: Vec<ComponentRecord>,
}

/// The feed of one deployment.
#[derive(Debug)]
pub struct Feed {
    deployment: DeploymentId,
    service: ServiceName,
    began: tokio::time::Instant,
    kept: Mutex<VecDeque<Step>>,
    steps: broadcast::Sender<Step>,
    ended: watch::Sender<Option<Arc<Ended>>>,
}

impl Feed {
    /// A feed that nobody follows yet.
    #[must_use]
    pub fn new(deployment: DeploymentId, service: ServiceName) -> Self {
        Self {
            deployment,
            service,
            began: tokio::time::Instant::now(),
            kept: Mutex::new(VecDeque::new()),
            steps: broadcast::channel(KEPT).0,
            ended: watch::channel(None).0,
        }
    }

    /// The deployment.
    #[must_use]
    pub const fn deployment(&self) -> &DeploymentId {
        &self.deployment
    }

    /// The service.
    #[must_use]
    pub const fn service(&self) -> &ServiceName {
        &self.service
    }

    /// Milliseconds since the deployment began.
    #[must_use]
    pub fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells a step.
    pub fn tell(
        &self,
        component: Option<&ComponentName>,
        step: &'static str,
        detail: impl Into<String>,
    ) {
        self.tell_counted(component, step, detail, 0, 0);
    }

    /// Tells a step that can be counted.
    pub fn tell_counted(
        &self,
        component: Option<&ComponentName>,
        step: &'static str,
        detail: impl Into<String>,
        current: u64,
        total: u64,
    ) {
        let step = Step {
            deployment: self.deployment.clone(),
            service: self.service.clone(),
            component: component.cloned(),
            step,
            detail: detail.into(),
            current,
            total,
            elapsed_ms: self.elapsed_ms(),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Counted progress of one step replaces itself: a long pull must not push the rest out.
        let replaces = kept.back().is_some_and(|last| {
            last.total > 0 && last.step == step.step && last.component == step.component
        });
        if replaces {
            kept.pop_back();
        }
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(step.clone());
        // No follower is no failure.
        drop(self.steps.send(step));
    }

    /// What was told so far, and what comes.
    pub fn follow(&self) -> (Vec<Step>, broadcast::Receiver<Step>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.steps.subscribe())
    }

    /// Tells the end.
    pub fn end(&self, ended: Ended) {
        self.ended.send_replace(Some(Arc::new(ended)));
    }

    /// The end, once it has come.
    pub async fn ended(&self) -> Option<Arc<Ended>> {
        let mut ended = self.ended.subscribe();
        let seen = ended.wait_for(Option::is_some).await.ok()?;
        seen.clone()
    }
}
