//! The lanes: one a service, in which one deployment runs at a time and newer ones wait, supersede or
//! are cancelled.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use mcp_spec::name::{ComponentName, ServiceName};
use mcp_spec::plan::ServicePlan;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::debris::{SweepError, Swept, sweep};
use super::feed::{Ended, Feed};
use super::line::Line;
use super::recover::{self, Journalled};
use super::revive::start_again;
use super::turn::{end_unbegun, take_turn};
use super::{Cancelled, Command, Feeds, QUEUED, Submission, SubmitError, Taken};
use crate::registry::{
    Admission, DeploymentId, DeploymentRow, DeploymentState, Outcome, RegistryError, Trigger,
};
use crate::watch::{Busy, Revive, Revived};

/// Time from something that was left over to the first sweep; doubles while anything is left.
const FIRST_SWEEP: Duration = Duration::from_secs(5);

/// Longest time between two sweeps. A sweep is one list and two short calls.
const LONGEST_SWEEP: Duration = Duration::from_secs(600);

/// How often recovery of one deployment is begun again where the registry fails.
const RECOVERIES: u32 = 5;

/// Ended deployments whose feed is kept in memory for late followers.
const ENDED: usize = 256;

/// The task that owns the lanes.
pub struct DeployerTask {
    pub(super) context: Arc<Context>,
    pub(super) busy: Busy,
    pub(super) inbox: mpsc::Receiver<Command>,
    pub(super) feeds: Arc<Mutex<Feeds>>,
    pub(super) lanes: BTreeMap<ServiceName, Lane>,
    pub(super) running: JoinSet<Done>,
    pub(super) sweeping: Sweeping,
}

/// What has ended.
pub(super) enum Done {
    /// What had the lane of a service.
    Lane(ServiceName),
    /// A sweep.
    Sweep(Result<Swept, SweepError>),
}

/// When debris is swept next.
pub(super) struct Sweeping {
    /// Tells a sweep that runs that a deployment waits.
    under_way: Option<CancellationToken>,
    next: Instant,
    pause: Duration,
}

impl Sweeping {
    /// At once: what a crash left behind.
    pub(super) fn at_once() -> Self {
        Self {
            under_way: None,
            next: Instant::now(),
            pause: FIRST_SWEEP,
        }
    }

    /// Something is known to have been left behind.
    fn soon(&mut self) {
        self.pause = FIRST_SWEEP;
        self.next = self.next.min(Instant::now() + FIRST_SWEEP);
    }

    fn ended(&mut self, swept: &Result<Swept, SweepError>) {
        let left = swept
            .as_ref()
            .map_or(true, |swept| swept.left > 0 || swept.is_full());
        let pause = if left { self.pause } else { LONGEST_SWEEP };
        self.pause = (self.pause * 2).min(LONGEST_SWEEP);
        self.next = Instant::now() + pause;
    }
}

/// The lane of one service.
#[derive(Default)]
pub(super) struct Lane {
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

pub(super) type Superseded = Arc<std::sync::atomic::AtomicU8>;

/// What waits for the lane.
pub(super) struct Waiting {
    pub(super) submission: Box<Submission>,
    pub(super) row: DeploymentRow,
    pub(super) feed: Arc<Feed>,
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
                    let ended = resume(&context, row, &feed).await;
                    feed.end(ended);
                }
                Done::Lane(service)
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
        let upkeep = self.context.clone();
        loop {
            tokio::select! {
                // All arms may be cancelled: each only receives or waits. Ends come first, so that a
                // lane is free as soon as it can be; a sweep comes last.
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.running.join_next() => {
                    match ended.map_err(|error| DeployerDied { cause: error.to_string() })? {
                        Done::Lane(service) => self.next(&service).await,
                        Done::Sweep(swept) => self.swept(&swept).await,
                    }
                }
                () = upkeep.upkeep.broken.cancelled() => {
                    let cause = "the end of a deployment cannot be written down".to_owned();
                    return Err(DeployerDied { cause });
                }
                () = upkeep.upkeep.debris.notified() => self.sweeping.soon(),
                command = self.inbox.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
                () = sleep_until(self.sweeping.next), if self.running.is_empty() => self.sweep(),
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
            Command::Alone(service, work) => self.alone(service, work),
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
        let free = lane.running.is_none() && self.sweeping.under_way.is_none();
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
            if let Some(hurry) = &self.sweeping.under_way {
                hurry.cancel();
            }
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
            let ended = take_turn(context, waiting, waited, line, cancel, superseded).await;
            feed.end(ended);
            Done::Lane(service)
        });
    }

    /// Clears away what deployments left behind; meanwhile they wait.
    fn sweep(&mut self) {
        let hurry = CancellationToken::new();
        self.sweeping.under_way = Some(hurry.clone());
        let context = self.context.clone();
        self.running
            .spawn(async move { Done::Sweep(sweep(&context, hurry).await) });
    }

    async fn swept(&mut self, swept: &Result<Swept, SweepError>) {
        if let Err(error) = swept {
            tracing::debug!(%error, "cannot look for what was left behind");
        }
        self.sweeping.under_way = None;
        self.sweeping.ended(swept);
        let waiting: Vec<ServiceName> = self.lanes.keys().cloned().collect();
        for service in waiting {
            self.next(&service).await;
        }
    }

    /// Gives `work` the lane of a service, if it is free; dropped, it tells that it is not. It changes no
    /// container, so that it need not wait for a sweep.
    fn alone(&mut self, service: ServiceName, work: BoxFuture<'static, ()>) {
        let lane = self.lanes.entry(service.clone()).or_default();
        if lane.running.is_some() || !lane.queue.is_empty() {
            return;
        }
        lane.running = Some(Running {
            deployment: None,
            covers: BTreeSet::new(),
            trigger: None,
            cancel: CancellationToken::new(),
        });
        let guard = self.busy.enter(service.clone());
        self.running.spawn(async move {
            let _guard = guard;
            work.await;
            Done::Lane(service)
        });
    }

    fn revive(&mut self, revive: Revive, reply: oneshot::Sender<Revived>) {
        let service = revive.key.service.clone();
        let lane = self.lanes.entry(service.clone()).or_default();
        if lane.running.is_some() || self.sweeping.under_way.is_some() {
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
            Done::Lane(service)
        });
    }
}

/// Brings one deployment that a crash cut off to its end, however often the registry fails meanwhile.
async fn resume(context: &Arc<Context>, row: DeploymentRow, feed: &Arc<Feed>) -> Ended {
    for _ in 0..RECOVERIES {
        match recover::resume(context.clone(), row.clone(), feed.clone()).await {
            Ok(ended) => return ended,
            Err(error) => {
                tracing::error!(deployment = %row.id, %error, "cannot go on with a deployment that was cut off; trying again");
            }
        }
        sleep(FIRST_SWEEP).await;
    }
    context.upkeep.broken.cancel();
    std::future::pending().await
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
