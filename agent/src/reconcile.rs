//! Reconciling by itself: services whose definition says `reconcile = "auto"`.
//!
//! Woken by a new head, by changes of what runs, at every resync and when a pause is over, it plans the
//! automatic services and deploys what differs. Stops, holds and quarantined specs win (the planner
//! knows them), what ended is left to its restart policy, and jobs are left to operators. How often it
//! tries, and when it leaves a component alone for a while, is the [`ledger`]'s matter.
//!
//! While the engine does not answer nothing is tried. Services are deployed side by side, each in a
//! task that only waits: the deployer goes on without it. A crash forgets nothing but attempts that
//! were under way; recovery finishes those.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mcp_spec::component::{Reconcile, ServiceSpec};
use mcp_spec::definition::DesiredSet;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName, ServiceName, Target};
use mcp_spec::plan::{ActionKind, Options, Purpose, Reason, ServicePlan};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

mod emptied;
mod ledger;

use self::ledger::{Attempt, Bounds, Ledger, Moment, Reach, Repair, as_it_was, wanted};
use crate::Agent;
use crate::blocking::blocking;
use crate::deploy::{Ended, Order, Replan, Submission, Taken};
use crate::planning::Wish;
use crate::registry::{BLOCKED, Outcome, Reconciled, Trigger};

/// How long changes gather before they are looked at: a deployment by hand has its say first.
const SETTLE: Duration = Duration::from_secs(2);

/// Services that are deployed side by side. Most of that time is waiting at gates; the deployer bounds
/// the work itself.
const SIDE_BY_SIDE: usize = 16;

/// Reconciles until `stop`.
pub async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    let mut heads = agent.heads.subscribe();
    let mut changes = agent.watch.changes();
    let watch = &agent.config.watch;
    let mut resync = tokio::time::interval(watch.resync.as_duration());
    let bounds = Bounds::of(watch.flap_threshold, watch.flap_window.as_duration());
    let mut reconciling = Reconciling {
        agent: Arc::clone(&agent),
        ledger: Ledger::new(bounds),
        has_read: false,
        unwritten: Reconciled::default(),
        under_way: BTreeSet::new(),
        attempts: JoinSet::new(),
        ending: Arc::default(),
    };
    let mut due: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let next = reconciling.ledger.next(now);
        let wake = due.into_iter().chain(next).min();
        let wake = wake.unwrap_or(now + watch.resync.as_duration());
        tokio::select! {
            // All arms only wait: nothing is lost by cancelling one.
            biased;
            () = stop.cancelled() => return,
            () = reconciling.ending.notified() => {}
            () = sleep_until(wake) => {
                due = None;
                tokio::select! {
                    biased;
                    // What the round has not begun is planned anew after the next start.
                    () = stop.cancelled() => return,
                    () = reconciling.round() => {}
                }
                continue;
            }
            _ = resync.tick() => {}
            changed = heads.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
        }
        due.get_or_insert(Instant::now() + SETTLE);
    }
}

/// What came of an attempt, and what was wanted then; `None` where there was nothing to do.
type Tried = Option<(Digest, Attempt)>;

struct Reconciling {
    agent: Arc<Agent>,
    ledger: Ledger,
    /// The registry was read once.
    has_read: bool,
    /// What could not be written down yet.
    unwritten: Reconciled,
    under_way: BTreeSet<ServiceName>,
    attempts: JoinSet<(ServiceName, Tried)>,
    /// Told when an attempt has ended: the next round takes it in.
    ending: Arc<Notify>,
}

impl Reconciling {
    fn moment(&self) -> Moment {
        Moment {
            now: Instant::now(),
            at: self.agent.clock.now(),
        }
    }

    /// Takes in what came of attempts, plans every automatic service once, and begins what is to be
    /// done.
    async fn round(&mut self) {
        self.take_in().await;
        // From what cannot be seen nothing follows.
        if !self.agent.watch.current().engine_answers() {
            return;
        }
        let mut lost = emptied::lost(&self.agent).await;
        let Some(head) = self.head().await else {
            // Nothing is known to be automatic: all is brought back as it was.
            if !lost.is_empty() {
                self.read().await;
                self.bring_back(lost);
            }
            return;
        };
        let automatic = |service: &&ServiceSpec| service.reconcile == Reconcile::Auto;
        let services: Vec<ServiceName> = head
            .services
            .values()
            .filter(automatic)
            .map(|service| service.name.clone())
            .collect();
        // The automatic ones go to the head.
        lost.retain(|service, _| !services.contains(service));
        self.ledger.set_lost(lost.keys().cloned().collect());
        if services.is_empty() && lost.is_empty() && self.has_read && self.ledger.is_empty() {
            return;
        }
        self.read().await;
        let moment = self.moment();
        let mut changes = self.ledger.follow(&head, moment);
        let plans = self.plans(services).await;
        for plan in plans.iter().flatten() {
            let broken: Vec<ComponentName> = repairs(plan).into_keys().collect();
            self.ledger.needs(&plan.service, &broken, moment.now);
            if plan.is_noop() {
                changes.extend(self.ledger.has_nothing_to_do(&plan.service, moment));
            }
        }
        if plans.is_some() {
            changes.extend(self.ledger.pass(moment));
        }
        self.write(changes).await;
        for plan in plans.into_iter().flatten() {
            self.begin(plan, &head, moment.now);
        }
        self.bring_back(lost);
    }

    /// Begins to bring back what an emptied engine took along, where it may be tried now.
    fn bring_back(&mut self, lost: BTreeMap<ServiceName, BTreeSet<ComponentKey>>) {
        for (service, lost) in lost {
            if !self.is_free(&service, Instant::now()) {
                continue;
            }
            let agent = Arc::clone(&self.agent);
            let ending = Arc::clone(&self.ending);
            self.under_way.insert(service.clone());
            self.attempts.spawn(async move {
                let tried = emptied::attempt(&agent, &service, lost).await;
                ending.notify_one();
                (service, tried.map(|attempt| (as_it_was(), attempt)))
            });
        }
    }

    /// Whether an attempt at a service may be made now.
    fn is_free(&self, service: &ServiceName, now: Instant) -> bool {
        self.ledger.may_try(service, now)
            && !self.agent.busy.is_busy(service)
            && !self.under_way.contains(service)
            && self.attempts.len() < SIDE_BY_SIDE
    }

    /// Takes in what the registry has, unless it has yet to learn what the memory has.
    async fn read(&mut self) {
        if !self.unwritten.is_empty() {
            return;
        }
        match self.agent.registry.reconciling().await {
            Ok((pauses, repairs)) => {
                let moment = self.moment();
                self.ledger.take_in(pauses, repairs, moment);
                self.has_read = true;
            }
            Err(error) => tracing::error!(%error, "cannot read how reconciling fares"),
        }
    }

    async fn head(&self) -> Option<Arc<DesiredSet>> {
        let head = self.agent.revisions.head()?;
        let desired = self.agent.desired.clone();
        blocking(move || desired.at(head)).await.ok()
    }

    /// The plans of these services; `None` where none could be made.
    async fn plans(&self, services: Vec<ServiceName>) -> Option<Vec<ServicePlan>> {
        if services.is_empty() {
            return Some(Vec::new());
        }
        match self.agent.planner.deploy(&wish(services)).await {
            Ok(planned) => Some(planned.plan.into_services()),
            Err(error) => {
                tracing::warn!(error = %crate::error_chain(&error), "cannot plan by itself");
                None
            }
        }
    }

    /// Begins an attempt to do what a plan says, where it may be made now.
    fn begin(&mut self, mut plan: ServicePlan, head: &DesiredSet, now: Instant) {
        let name = plan.service.clone();
        let waiting = self.ledger.waiting(&name, now);
        leave_out(&mut plan, &waiting);
        let is_free = self.is_free(&name, now);
        let Some(service) = head.services.get(&name).filter(|_| is_free) else {
            return;
        };
        if plan.is_noop() {
            return;
        }
        let agent = Arc::clone(&self.agent);
        let service = service.clone();
        let ending = Arc::clone(&self.ending);
        self.under_way.insert(name.clone());
        self.attempts.spawn(async move {
            let tried = attempt(&agent, &service, waiting).await;
            ending.notify_one();
            (name, tried.map(|attempt| (wanted(&service), attempt)))
        });
    }

    async fn take_in(&mut self) {
        let mut changes = Reconciled::default();
        while let Some(ended) = self.attempts.try_join_next() {
            let (service, tried) = match ended {
                Ok(ended) => ended,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The agent ends.
                    Err(_) => continue,
                },
            };
            self.under_way.remove(&service);
            if let Some((wanted, attempt)) = tried {
                let moment = self.moment();
                changes.extend(self.ledger.ended(&service, wanted, attempt, moment));
            }
        }
        self.write(changes).await;
    }

    /// Writes changes down, with those that could not be written before.
    async fn write(&mut self, changes: Reconciled) {
        self.unwritten.extend(changes);
        if self.unwritten.is_empty() {
            return;
        }
        let written = self
            .agent
            .registry
            .record_reconciled(self.unwritten.clone());
        match written.await {
            Ok(()) => self.unwritten = Reconciled::default(),
            Err(error) => tracing::error!(%error, "cannot write down how reconciling fares"),
        }
    }
}

fn wish(services: Vec<ServiceName>) -> Wish {
    let target = |service| Target {
        node: None,
        service,
        component: None,
    };
    Wish {
        targets: Some(services.into_iter().map(target).collect()),
        revision: None,
        options: Options::default(),
        draft: Vec::new(),
        auto: true,
        resolve_tags: false,
    }
}

/// Leaves the components out of a plan whose repairs have to wait.
fn leave_out(plan: &mut ServicePlan, waiting: &BTreeSet<ComponentName>) {
    plan.actions
        .retain(|action| !waiting.contains(&action.component));
    plan.blocked.retain(|blocked| {
        let component = blocked.component.as_ref();
        component.is_none_or(|component| !waiting.contains(component))
    });
}

/// What a plan does to components that are not as they were deployed, and why.
fn repairs(plan: &ServicePlan) -> BTreeMap<ComponentName, String> {
    plan.actions
        .iter()
        .filter(|action| {
            matches!(
                (action.kind, &action.reason),
                (
                    ActionKind::Create | ActionKind::Replace | ActionKind::Start,
                    Reason::ContainerMissing | Reason::Drifted(_) | Reason::Paused,
                ) | (ActionKind::Stop, Reason::Inactive)
            )
        })
        .map(|action| (action.component.clone(), action.reason.to_string()))
        .collect()
}

/// Brings one service to the head, without the components that have to wait; `None` where there was
/// nothing to do.
async fn attempt(
    agent: &Agent,
    service: &ServiceSpec,
    waiting: BTreeSet<ComponentName>,
) -> Option<Attempt> {
    let name = &service.name;
    let wish = wish(vec![name.clone()]);
    let planned = match agent.planner.deploy(&wish).await {
        Ok(planned) => planned,
        Err(error) => {
            let error = crate::error_chain(&error);
            tracing::warn!(service = %name, error, "cannot plan by itself");
            return Some(failed(error));
        }
    };
    // What planning found out: from what cannot be seen nothing follows.
    if !agent.watch.current().engine_answers() {
        return None;
    }
    let plan_id = *planned.plan.id();
    let mut plan = planned.plan.into_services().pop()?;
    leave_out(&mut plan, &waiting);
    if plan.is_noop() {
        return None;
    }
    if let Some(blocked) = plan.blocked.first() {
        let reason = &blocked.obstacle.reason;
        tracing::warn!(service = %name, reason, "reconciling is blocked");
        return Some(failed(format!("{BLOCKED}{reason}")));
    }
    let repairs = repairs(&plan)
        .into_iter()
        .filter_map(|(component, cause)| {
            let wanted = service.components.get(&component)?.digest();
            Some(Repair {
                component,
                wanted,
                cause,
            })
        })
        .collect();
    let planner = agent.planner.clone();
    let replan: Replan = Box::new(move || {
        let (planner, wish, waiting) = (planner.clone(), wish.clone(), waiting.clone());
        Box::pin(async move {
            let planned = planner.deploy(&wish).await;
            let mut part = planned
                .map_err(|error| error.to_string())?
                .into_part()
                .ok_or_else(|| "nothing is left to do".to_owned())?;
            leave_out(&mut part.plan, &waiting);
            Ok(part)
        })
    });
    let purpose = Some(Purpose::Auto);
    carry_out(agent, plan, plan_id, purpose, replan, repairs).await
}

/// Has a plan of the agent's own deployed; `None` where another deployment took its place.
async fn carry_out(
    agent: &Agent,
    plan: ServicePlan,
    plan_id: Digest,
    purpose: Option<Purpose>,
    replan: Replan,
    repairs: Vec<Repair>,
) -> Option<Attempt> {
    let service = plan.service.clone();
    let signer = agent
        .registry
        .revision(plan.revision)
        .await
        .ok()
        .flatten()
        .map(|revision| revision.signer);
    let submission = Submission {
        plan,
        plan_id,
        order: Order {
            actor: "agent".to_owned(),
            trigger: Trigger::Auto,
            purpose,
            volumes: false,
            restores: BTreeMap::new(),
        },
        request_id: String::new(),
        request_digest: Digest::of(b"auto"),
        component: None,
        signer,
        replan,
    };
    let ended = match agent.deployer.submit(submission).await {
        Ok(Taken::Feed(feed)) => tokio::select! {
            // A deployment that the agent's end cuts off never ends in this process.
            biased;
            () = agent.shutdown.cancelled() => return None,
            ended = feed.ended() => ended?,
        },
        Ok(Taken::Ended(ended)) => ended,
        Err(error) => {
            tracing::warn!(%service, %error, "cannot reconcile");
            return Some(failed(error.to_string()));
        }
    };
    outcome(&ended, repairs)
}

/// An attempt that touched nothing.
fn failed(failure: String) -> Attempt {
    Attempt {
        failure: Some(failure),
        ..Attempt::default()
    }
}

/// What an ended deployment says of the attempt that it was; `None` where another took its place.
fn outcome(ended: &Ended, repairs: Vec<Repair>) -> Option<Attempt> {
    let failure = match ended.row.outcome {
        Some(Outcome::Superseded) => return None,
        // What did not converge is left alone from now on, and the others of its service are well.
        Some(Outcome::Deployed | Outcome::Unchanged | Outcome::Degraded) => None,
        outcome => Some(ended.row.error.clone().unwrap_or_else(|| {
            let word = outcome.map_or("interrupted", Outcome::as_str);
            word.to_owned()
        })),
    };
    let is_whole = ended.row.line_at.is_some();
    let unready = ended
        .components
        .iter()
        .filter(|record| !is_whole && record.outcome == "failed")
        .map(|record| record.component.clone())
        .collect();
    Some(Attempt {
        failure,
        unready,
        // Before the line nothing was touched, so nothing was repaired.
        repairs: if is_whole { repairs } else { Vec::new() },
        reach: if is_whole {
            Reach::Crossed
        } else {
            Reach::Aborted
        },
    })
}
