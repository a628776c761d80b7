//! Deploying: the one place from which containers are changed.
//!
//! [`Deployer`] is a task with a lane for each service. One deployment of a service runs at a time; a
//! newer one supersedes one that has not crossed the line if it covers its targets, else it queues.
//! A restart by the restart policy takes the lane as well, so a repair and a deploy by hand cannot
//! race. A client that goes away changes nothing.
//!
//! Channels: commands come in over a queue of [`COMMANDS`]; each deployment tells its steps and its
//! end through a [`Feed`].

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentName, ServiceName};
use mcp_spec::plan::ServicePlan;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

mod clean;
mod commitment;
mod compensate;
pub mod context;
mod convergence;
mod debris;
mod execute;
mod execution;
mod failure;
pub mod feed;
mod gate;
mod images;
mod lanes;
mod line;
mod make;
mod outcome;
mod prepare;
mod recover;
mod remake;
mod revive;
mod secrets;
pub mod stage;
mod steps;
mod switch;
#[cfg(test)]
mod tests;
mod turn;

pub use context::Context;
pub use execution::Order;
pub use feed::{Ended, Feed, Step};
pub use lanes::{DeployerDied, DeployerTask};
pub use outcome::mend;

use lanes::Sweeping;

use crate::registry::{DeploymentId, RegistryError};
use crate::watch::{Busy, Revive, Revived};

/// Commands that may wait for the deployer: one a client call, and clients are few.
const COMMANDS: usize = 256;

/// Deployments that may wait for one service. More is an operator's script gone wild.
const QUEUED: usize = 16;

/// Plans a service anew, when its turn has come after something else ran.
pub type Replan =
    Box<dyn Fn() -> BoxFuture<'static, Result<Replanned, String>> + Send + Sync + 'static>;

/// A plan of one service that was made anew.
#[derive(Debug)]
pub struct Replanned {
    /// The plan.
    pub plan: ServicePlan,
    /// The history rows that a rollback restores now.
    pub restores: BTreeMap<ComponentName, i64>,
}

/// One deployment of one service, as it is asked for.
pub struct Submission {
    /// What is to be done.
    pub plan: ServicePlan,
    /// The id of the whole plan that it is a part of.
    pub plan_id: Digest,
    /// Who asked for it, and what for.
    pub order: Order,
    /// Identifies the request; the same one is answered with the same deployment.
    pub request_id: String,
    /// Digest of what was asked for: the same request id with another one is refused.
    pub request_digest: Digest,
    /// The component, where just one was named.
    pub component: Option<ComponentName>,
    /// Who signed the revision.
    pub signer: Option<String>,
    /// Plans again.
    pub replan: Replan,
}

impl std::fmt::Debug for Submission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submission")
            .field("service", &self.plan.service)
            .field("request_id", &self.request_id)
            .finish_non_exhaustive()
    }
}

/// Why a deployment was not taken.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// Too many wait for the service.
    #[error("{service} has {QUEUED} deployments waiting already")]
    QueueFull {
        /// The service.
        service: ServiceName,
    },
    /// The request id stands for another request.
    #[error("request id {request_id} was used for another request")]
    RequestReused {
        /// The id.
        request_id: String,
    },
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// Why something was not done between a service's deployments.
#[derive(Debug, Error)]
pub enum AloneError {
    /// One is under way.
    #[error("a deployment of {service} is under way")]
    UnderWay {
        /// The service.
        service: ServiceName,
    },
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// A deployment that was taken.
#[derive(Debug, Clone)]
pub enum Taken {
    /// It runs or waits: follow it.
    Feed(Arc<Feed>),
    /// The same request has ended already.
    Ended(Arc<Ended>),
}

/// What came of a cancellation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// It will be aborted.
    Cancelled,
    /// It has crossed the line.
    TooLate,
    /// No such deployment runs or waits.
    Unknown,
}

enum Command {
    Submit(Box<Submission>, oneshot::Sender<Result<Taken, SubmitError>>),
    Cancel(DeploymentId, oneshot::Sender<Cancelled>),
    Revive(Revive, oneshot::Sender<Revived>),
    Alone(ServiceName, BoxFuture<'static, ()>),
}

/// The handle of the deployer; clones share it.
#[derive(Debug, Clone)]
pub struct Deployer {
    commands: mpsc::Sender<Command>,
    feeds: Arc<Mutex<Feeds>>,
}

#[derive(Debug, Default)]
struct Feeds {
    by_id: HashMap<DeploymentId, Arc<Feed>>,
    ended: VecDeque<DeploymentId>,
}

impl Deployer {
    /// Takes a deployment.
    ///
    /// # Errors
    ///
    /// [`SubmitError`]; then nothing was begun.
    pub async fn submit(&self, submission: Submission) -> Result<Taken, SubmitError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Submit(Box::new(submission), reply))
            .await
            .map_err(|_| SubmitError::Stopping)?;
        answer.await.map_err(|_| SubmitError::Stopping)?
    }

    /// Cancels a deployment that has not crossed the line.
    pub async fn cancel(&self, id: DeploymentId) -> Cancelled {
        let (reply, answer) = oneshot::channel();
        if self
            .commands
            .send(Command::Cancel(id, reply))
            .await
            .is_err()
        {
            return Cancelled::Unknown;
        }
        answer.await.unwrap_or(Cancelled::Unknown)
    }

    /// Starts a container that ended, as its restart policy asks.
    pub async fn revive(&self, revive: Revive) -> Revived {
        let (reply, answer) = oneshot::channel();
        if self
            .commands
            .send(Command::Revive(revive, reply))
            .await
            .is_err()
        {
            return Revived::NotNow;
        }
        answer.await.unwrap_or(Revived::NotNow)
    }

    /// Does `work` while no deployment of the service is under way; then the watch looks at it anew.
    ///
    /// # Errors
    ///
    /// [`AloneError`]; then nothing was done.
    pub async fn alone<T: Send + 'static>(
        &self,
        service: &ServiceName,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, AloneError> {
        let (reply, answer) = oneshot::channel();
        let work = Box::pin(async move {
            // Whoever asked may have gone away: what was done stays done.
            drop(reply.send(work.await));
        });
        self.commands
            .send(Command::Alone(service.clone(), work))
            .await
            .map_err(|_| AloneError::Stopping)?;
        answer.await.map_err(|_| AloneError::UnderWay {
            service: service.clone(),
        })
    }

    /// The feed of a deployment that runs, waits or ended lately.
    #[must_use]
    pub fn feed(&self, id: &DeploymentId) -> Option<Arc<Feed>> {
        let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.by_id.get(id).cloned()
    }
}

/// Makes the deployer's handle and its task.
#[must_use]
pub fn deployer(context: Arc<Context>, busy: Busy) -> (Deployer, DeployerTask) {
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let feeds = Arc::new(Mutex::new(Feeds::default()));
    let handle = Deployer {
        commands,
        feeds: feeds.clone(),
    };
    let task = DeployerTask {
        context,
        busy,
        inbox,
        feeds,
        lanes: BTreeMap::new(),
        running: JoinSet::new(),
        sweeping: Sweeping::at_once(),
    };
    (handle, task)
}
