//! Deploying: the one place from which containers are changed.
//!
//! [`Deployer`] is a task with a lane for each service. One deployment of a service runs at a time; a
//! newer one supersedes one that has not crossed the line if it covers its targets, else it queues.
//! A restart by the restart policy takes the lane as well, so a repair and a deploy by hand cannot
//! race. A client that goes away changes nothing.
//!
//! Channels: commands come in over a queue of [`COMMANDS`]; each deployment tells its steps and its
//! end through a [`Feed`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentName, ServiceName};
use mcp_spec::plan::ServicePlan;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

mod compensate;
pub mod context;
mod execute;
mod failure;
pub mod feed;
mod gate;
mod outcome;
mod prepare;
mod recover;
pub mod stage;
mod switch;

pub use context::Context;
pub use execute::Order;
pub use feed::{Ended, Feed, Step};

use context::Settled;
use execute::{Execution, Line};
use recover::Journalled;

use crate::registry::{
    Admission, DeployedRow, DeploymentId, DeploymentRow, DeploymentState, Outcome, RegistryError,
    Trigger,
};
use crate::runtime::RuntimeError;
use crate::watch::{Busy, Revive, Revived};

/// Commands that may wait for the deployer: one a client call, and clients are few.
const COMMANDS: usize = 256;

/// Deployments that may wait for one service. More is an operator's script gone wild.
const QUEUED: usize = 16;

/// Ended deployments whose feed is kept in memory for late followers.
const ENDED: usize = 256;

/// How long the engine may take for a start by the restart policy.
const REVIVE_WAIT: std::time::Duration = std::time::Duration::from_secs(60);

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
    };
    (handle, task)
}

/// The task that owns the lanes.
pub struct DeployerTask {
    context: Arc<Context>,
    busy: Busy,
    inbox: mpsc::Receiver<Command>,
    feeds: Arc<Mutex<Feeds>>,
    lanes: BTreeMap<ServiceName, Lane>,
    running: JoinSet<(ServiceName, Option<Arc<Ended>>)>,
}

/// The lane of one service.
#[derive(Default)]
struct Lane {
    running: Option<Running>,
    queue: VecDeque<Waiting>,
}

/// What has the lane.
struct Running {
    /// `None` for a start by the restart policy.
    deployment: Option<(DeploymentId, Arc<Line>, Superseded)>,
    covers: BTreeSet<ComponentName>,
    trigger: Option<Trigger>,
    cancel: CancellationToken,
}

type Superseded = Arc<std::sync::atomic::AtomicU8>;

/// What waits for the lane.
struct Waiting {
    submission: Box<Submission>,
    row: DeploymentRow,
    feed: Arc<Feed>,
}

impl std::fmt::Debug for DeployerTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeployerTask").finish_non_exhaustive()
    }
}

impl DeployerTask {
    /// Brings every deployment that a crash cut off to its end. Call it before [`Self::run`], and
    /// before the agent answers: nothing else may touch containers meanwhile.
    ///
    /// # Errors
    ///
    /// The registry's.
    pub async fn recover(&mut self) -> Result<usize, RegistryError> {
        let rows = self.context.registry.unfinished().await?;
        let count = rows.len();
        // Side by side: one that waits for the engine must not keep the others waiting. Two of one
        // service never ran at once, so the older is finished before the newer is looked at.
        let mut by_service: BTreeMap<ServiceName, Vec<DeploymentRow>> = BTreeMap::new();
        for row in rows {
            by_service.entry(row.service.clone()).or_default().push(row);
        }
        for (service, rows) in by_service {
            let context = self.context.clone();
            let feeds: Vec<Arc<Feed>> = rows.iter().map(|row| self.new_feed(row)).collect();
            let guard = self.busy.enter(service.clone());
            self.lanes.entry(service.clone()).or_default().running = Some(Running {
                deployment: None,
                covers: BTreeSet::new(),
                trigger: None,
                cancel: CancellationToken::new(),
            });
            self.running.spawn(async move {
                let _guard = guard;
                for (row, feed) in rows.into_iter().zip(feeds) {
                    match recover::resume(context.clone(), row, feed.clone()).await {
                        Ok(ended) => feed.end(ended),
                        Err(error) => {
                            tracing::error!(%error, "cannot go on with a deployment that was cut off");
                        }
                    }
                }
                (service, None)
            });
        }
        Ok(count)
    }

    /// Runs until `stop` is cancelled: then deployments before the line are cancelled, those after it
    /// are left to the journal.
    ///
    /// # Errors
    ///
    /// [`DeployerDied`] where a deployment's task panicked: the agent ends, and recovery finishes the
    /// work.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), DeployerDied> {
        loop {
            tokio::select! {
                // All three arms may be cancelled: each only receives. Ends come first, so that a
                // lane is free as soon as it can be.
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.running.join_next() => {
                    let (service, _) = ended.map_err(|error| DeployerDied { cause: error.to_string() })?;
                    self.next(&service).await;
                }
                command = self.inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
            }
        }
        for lane in self.lanes.values() {
            if let Some(running) = &lane.running {
                if let Some((_, line, _)) = &running.deployment {
                    line.cancel();
                }
                running.cancel.cancel();
            }
        }
        // What is before the line ends at once; what is after it is finished by recovery, if it does
        // not make it now.
        let grace = tokio::time::sleep(std::time::Duration::from_secs(5));
        tokio::pin!(grace);
        loop {
            tokio::select! {
                biased;
                () = &mut grace => break,
                ended = self.running.join_next() => if ended.is_none() { break },
            }
        }
        Ok(())
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission, reply) => {
                let taken = self.take(submission).await;
                // A client that went away changes nothing.
                drop(reply.send(taken));
            }
            Command::Cancel(id, reply) => {
                // A client that went away changes nothing.
                if reply.send(self.cancel(&id).await).is_err() {
                    tracing::debug!(deployment = %id, "nobody waits for the cancellation");
                }
            }
            Command::Revive(revive, reply) => self.revive(revive, reply),
        }
    }

    async fn take(&mut self, submission: Box<Submission>) -> Result<Taken, SubmitError> {
        let service = submission.plan.service.clone();
        let lane = self.lanes.entry(service.clone()).or_default();
        if lane.queue.len() >= QUEUED {
            return Err(SubmitError::QueueFull { service });
        }
        let journalled = Journalled {
            plan: submission.plan.clone(),
            purpose: submission.order.purpose,
            volumes: submission.order.volumes,
            restores: submission.order.restores.clone(),
        };
        let free = lane.running.is_none();
        let row = DeploymentRow {
            id: DeploymentId::from_bits(self.context.random.bits()),
            service: service.clone(),
            component: submission.component.clone(),
            request_id: submission.request_id.clone(),
            request_digest: submission.request_digest,
            actor: submission.order.actor.clone(),
            trigger: submission.order.trigger,
            revision: Some(submission.plan.revision),
            signer: submission.signer.clone(),
            plan: journalled.text(),
            plan_id: submission.plan_id.to_string(),
            state: if free {
                DeploymentState::Planned
            } else {
                DeploymentState::Admitted
            },
            outcome: None,
            error: None,
            created_at: self.context.clock.now(),
            line_at: None,
            finished_at: None,
        };
        match self.context.registry.admit(row.clone()).await? {
            Admission::New => {}
            Admission::Existing(row) => return self.existing(*row).await,
            Admission::Conflict => {
                return Err(SubmitError::RequestReused {
                    request_id: submission.request_id,
                });
            }
        }
        let feed = self.new_feed(&row);
        let waiting = Waiting {
            submission,
            row,
            feed: feed.clone(),
        };
        if free {
            self.begin(waiting, false).await;
        } else {
            feed.tell(
                None,
                "queued",
                "another deployment of the service is under way",
            );
            self.supersede(&service, &waiting).await;
            if let Some(lane) = self.lanes.get_mut(&service) {
                lane.queue.push_back(waiting);
            }
        }
        Ok(Taken::Feed(feed))
    }

    async fn existing(&self, row: DeploymentRow) -> Result<Taken, SubmitError> {
        let feed = {
            let feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
            feeds.by_id.get(&row.id).cloned()
        };
        if let Some(feed) = feed {
            return Ok(Taken::Feed(feed));
        }
        let components = self
            .context
            .registry
            .records(vec![row.id.clone()])
            .await?
            .remove(&row.id)
            .unwrap_or_default();
        Ok(Taken::Ended(Arc::new(Ended { row, components })))
    }

    fn new_feed(&self, row: &DeploymentRow) -> Arc<Feed> {
        let feed = Arc::new(Feed::new(row.id.clone(), row.service.clone()));
        let mut feeds = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.by_id.insert(row.id.clone(), feed.clone());
        feeds.ended.push_back(row.id.clone());
        while feeds.ended.len() > ENDED {
            if let Some(old) = feeds.ended.pop_front() {
                feeds.by_id.remove(&old);
            }
        }
        feed
    }

    /// Gives up what a newer deployment covers and what has not crossed the line.
    async fn supersede(&mut self, service: &ServiceName, newer: &Waiting) {
        let covered = covers(&newer.submission.plan);
        let trigger = newer.row.trigger;
        let Some(lane) = self.lanes.get_mut(service) else {
            return;
        };
        if let Some(running) = &lane.running
            && let (Some((_, line, superseded)), true) =
                (&running.deployment, running.covers.is_subset(&covered))
            && running
                .trigger
                .is_some_and(|older| may_supersede(trigger, older))
        {
            superseded.store(1, Ordering::Release);
            if line.cancel() {
                running.cancel.cancel();
            } else {
                superseded.store(0, Ordering::Release);
            }
        }
        let (out, stay): (VecDeque<_>, VecDeque<_>) = lane.queue.drain(..).partition(|waiting| {
            may_supersede(trigger, waiting.row.trigger)
                && covers(&waiting.submission.plan).is_subset(&covered)
        });
        lane.queue = stay;
        for waiting in out {
            end_unbegun(
                &self.context,
                waiting,
                DeploymentState::Superseded,
                Outcome::Superseded,
                "a newer deployment took its place",
            )
            .await;
        }
    }

    async fn cancel(&mut self, id: &DeploymentId) -> Cancelled {
        for lane in self.lanes.values_mut() {
            if let Some(running) = &lane.running
                && let Some((running_id, line, _)) = &running.deployment
                && running_id == id
            {
                if line.cancel() {
                    running.cancel.cancel();
                    return Cancelled::Cancelled;
                }
                return Cancelled::TooLate;
            }
            if let Some(at) = lane.queue.iter().position(|waiting| waiting.row.id == *id)
                && let Some(waiting) = lane.queue.remove(at)
            {
                end_unbegun(
                    &self.context,
                    waiting,
                    DeploymentState::Aborted,
                    Outcome::Aborted,
                    "cancelled",
                )
                .await;
                return Cancelled::Cancelled;
            }
        }
        Cancelled::Unknown
    }

    /// Gives the lane to what waits next.
    async fn next(&mut self, service: &ServiceName) {
        let Some(lane) = self.lanes.get_mut(service) else {
            return;
        };
        lane.running = None;
        match lane.queue.pop_front() {
            Some(waiting) => self.begin(waiting, true).await,
            None => {
                self.lanes.remove(service);
            }
        }
    }

    /// Begins a deployment; after a wait it is planned anew.
    async fn begin(&mut self, waiting: Waiting, waited: bool) {
        let service = waiting.row.service.clone();
        let line = Arc::new(Line::default());
        let cancel = CancellationToken::new();
        let superseded = Superseded::default();
        let lane = self.lanes.entry(service.clone()).or_default();
        lane.running = Some(Running {
            deployment: Some((waiting.row.id.clone(), line.clone(), superseded.clone())),
            covers: covers(&waiting.submission.plan),
            trigger: Some(waiting.row.trigger),
            cancel: cancel.clone(),
        });
        let context = self.context.clone();
        let guard = self.busy.enter(service.clone());
        self.running.spawn(async move {
            let _guard = guard;
            let feed = waiting.feed.clone();
            let ended = execute(context, waiting, waited, line, cancel, superseded).await;
            feed.end(ended.clone());
            (service, Some(Arc::new(ended)))
        });
    }

    fn revive(&mut self, revive: Revive, reply: oneshot::Sender<Revived>) {
        let service = revive.key.service.clone();
        let lane = self.lanes.entry(service.clone()).or_default();
        if lane.running.is_some() {
            drop(reply.send(Revived::NotNow));
            return;
        }
        lane.running = Some(Running {
            deployment: None,
            covers: BTreeSet::new(),
            trigger: None,
            cancel: CancellationToken::new(),
        });
        let context = self.context.clone();
        self.running.spawn(async move {
            let revived = start_again(&context, &revive).await;
            drop(reply.send(revived));
            (service, None)
        });
    }
}

/// A deployment's task panicked.
#[derive(Debug, Error)]
#[error("a deployment's task died: {cause}")]
pub struct DeployerDied {
    /// What it said.
    pub cause: String,
}

fn covers(plan: &ServicePlan) -> BTreeSet<ComponentName> {
    plan.actions
        .iter()
        .map(|action| action.component.clone())
        .collect()
}

/// Whether one deployment may take the place of an older one that has not begun to switch. What the
/// older one was to bring about must follow from the newer one too, or be overruled by it.
const fn may_supersede(newer: Trigger, older: Trigger) -> bool {
    match (newer, older) {
        // Nothing brings about a stop or a removal but itself.
        (Trigger::Stop, Trigger::Stop) | (Trigger::Purge, Trigger::Purge) => true,
        (_, Trigger::Stop | Trigger::Purge) => false,
        // The agent never overrules an operator.
        (Trigger::Auto, older) => matches!(older, Trigger::Auto),
        (Trigger::Deploy | Trigger::Rollback | Trigger::Stop, _) => true,
        // A start or a restart brings no new spec.
        (_, older) => matches!(older, Trigger::Start | Trigger::Restart),
    }
}

async fn end_unbegun(
    context: &Context,
    waiting: Waiting,
    state: DeploymentState,
    outcome: Outcome,
    why: &str,
) {
    let Waiting { mut row, feed, .. } = waiting;
    row.state = state;
    row.outcome = Some(outcome);
    row.error = Some(why.to_owned());
    row.finished_at = Some(context.clock.now());
    if let Err(error) = context.registry.finish(outcome::finish_bare(&row)).await {
        tracing::error!(deployment = %row.id, %error, "cannot write the end of a deployment down");
    }
    feed.end(Ended {
        row,
        components: Vec::new(),
    });
}

async fn execute(
    context: Arc<Context>,
    waiting: Waiting,
    waited: bool,
    line: Arc<Line>,
    cancel: CancellationToken,
    superseded: Superseded,
) -> Ended {
    let Waiting {
        submission,
        mut row,
        feed,
    } = waiting;
    let mut plan = submission.plan;
    let mut order = submission.order;
    let fail = |mut row: DeploymentRow, why: String| {
        let context = context.clone();
        async move {
            row.state = DeploymentState::Aborted;
            row.outcome = Some(Outcome::Aborted);
            row.error = Some(why);
            row.finished_at = Some(context.clock.now());
            if let Err(error) = context.registry.finish(outcome::finish_bare(&row)).await {
                tracing::error!(deployment = %row.id, %error, "cannot write the end of a deployment down");
            }
            Ended {
                row,
                components: Vec::new(),
            }
        }
    };
    let old: BTreeMap<ComponentName, DeployedRow> =
        match context.registry.deployed_of(row.service.clone()).await {
            Ok(rows) => rows
                .into_iter()
                .map(|row| (row.key.component.clone(), row))
                .collect(),
            Err(error) => return fail(row, error.to_string()).await,
        };
    // Another deployment may have run, and ended, since the plan was made.
    if waited || is_stale(&plan, &old) {
        Replanned {
            plan,
            restores: order.restores,
        } = match (submission.replan)().await {
            Ok(replanned) => replanned,
            Err(why) => return fail(row, why).await,
        };
        let journalled = Journalled {
            plan: plan.clone(),
            purpose: order.purpose,
            volumes: order.volumes,
            restores: order.restores.clone(),
        };
        row.plan = journalled.text();
        row.state = DeploymentState::Planned;
        if row.revision != Some(plan.revision) {
            row.revision = Some(plan.revision);
            row.signer = match context.registry.revision(plan.revision).await {
                Ok(revision) => revision.map(|revision| revision.signer),
                Err(error) => return fail(row, error.to_string()).await,
            };
        }
        if let Err(error) = context
            .registry
            .set_plan(
                row.id.clone(),
                row.revision,
                row.signer.clone(),
                row.plan.clone(),
                row.plan_id.clone(),
            )
            .await
        {
            return fail(row, error.to_string()).await;
        }
        if let Some(blocked) = plan.blocked.first() {
            let why = blocked.obstacle.reason.clone();
            return fail(row, why).await;
        }
    }
    feed.tell(None, "planned", "");
    let execution = Execution::new(context, row.id.clone(), plan, order, old, feed, line)
        .cancelled_by(cancel, superseded);
    execution.run(row).await
}

/// Whether a plan starts from containers that are not the registered ones any more.
fn is_stale(plan: &ServicePlan, old: &BTreeMap<ComponentName, DeployedRow>) -> bool {
    plan.actions.iter().any(|action| {
        let planned = action.before.as_ref().map(|before| &before.container);
        planned != old.get(&action.component).map(|row| &row.container)
    })
}

/// Starts a registered container again, if it is still wanted and still the one.
async fn start_again(context: &Context, revive: &Revive) -> Revived {
    let row = match context.registry.deployed(revive.key.clone()).await {
        Ok(Some(row)) => row,
        Ok(None) | Err(_) => return Revived::NotNow,
    };
    let wanted = row.desired == mcp_spec::observed::DesiredState::Running
        && row.stopped_by.is_none()
        && row.container == revive.container;
    if !wanted {
        return Revived::NotNow;
    }
    let deadline = Instant::now() + REVIVE_WAIT;
    let settled = context
        .settle(
            revive.container.as_str(),
            deadline,
            || context.runtime.start(&revive.container),
            |live| live.is_some_and(|live| live.state.is_running()),
        )
        .await;
    if let Settled::Failed(error) = settled {
        return Revived::Failed(error);
    }
    match context.runtime.inspect(revive.container.as_str()).await {
        Ok(Some(live)) => Revived::Running(Box::new(live)),
        Ok(None) => Revived::Failed(RuntimeError::NotFound {
            what: format!("container {}", revive.container.short()),
        }),
        Err(error) => Revived::Failed(error),
    }
}
