//! Reconciling by itself: services whose definition says `reconcile = "auto"`.
//!
//! Woken by a new head, by changes of what runs, and at every resync, it plans the automatic services
//! and deploys what differs. Stops, holds and quarantined specs win (the planner knows them), what
//! ended is left to its restart policy, and jobs are left to operators. After a deployment that did
//! not end well a service is left alone for a while that doubles with each failure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mcp_spec::component::Reconcile;
use mcp_spec::image::Digest;
use mcp_spec::name::{ServiceName, Target};
use mcp_spec::plan::{Options, Purpose};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::Agent;
use crate::blocking::blocking;
use crate::deploy::{Order, Submission, Taken};
use crate::planning::Wish;
use crate::registry::{Outcome, Trigger};

/// How long changes gather before they are looked at: a deployment by hand has its say first.
const SETTLE: Duration = Duration::from_secs(2);

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Attempts that did not end well, by service.
#[derive(Debug, Default)]
struct Pauses(BTreeMap<ServiceName, (Instant, Duration)>);

impl Pauses {
    fn is_over(&self, service: &ServiceName) -> bool {
        self.0
            .get(service)
            .is_none_or(|(until, _)| Instant::now() >= *until)
    }

    fn note(&mut self, service: ServiceName, went_well: bool) {
        if went_well {
            self.0.remove(&service);
            return;
        }
        let pause = self
            .0
            .get(&service)
            .map_or(FIRST_PAUSE, |(_, pause)| (*pause * 2).min(LONGEST_PAUSE));
        self.0.insert(service, (Instant::now() + pause, pause));
    }
}

/// Reconciles until `stop`.
pub async fn run(agent: Arc<Agent>, stop: CancellationToken) {
    let mut heads = agent.heads.subscribe();
    let mut changes = agent.watch.changes();
    let mut resync = tokio::time::interval(agent.config.watch.resync.as_duration());
    let mut pauses = Pauses::default();
    loop {
        tokio::select! {
            // All arms only wait: nothing is lost by cancelling one.
            biased;
            () = stop.cancelled() => return,
            _ = resync.tick() => {}
            changed = heads.changed() => if changed.is_err() { return },
            changed = changes.changed() => if changed.is_err() { return },
        }
        let services = automatic(&agent).await;
        if services.is_empty() {
            continue;
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep_until(Instant::now() + SETTLE) => {}
        }
        for service in services {
            if pauses.is_over(&service)
                && !agent.busy.is_busy(&service)
                && let Some(went_well) = reconcile(&agent, &service).await
            {
                pauses.note(service, went_well);
            }
        }
    }
}

/// The services that the head gives to this node and to the agent's own care.
async fn automatic(agent: &Agent) -> Vec<ServiceName> {
    let Some(head) = agent.revisions.head() else {
        return Vec::new();
    };
    let desired = agent.desired.clone();
    let Ok(set) = blocking(move || desired.at(head)).await else {
        return Vec::new();
    };
    set.services
        .values()
        .filter(|service| service.reconcile == Reconcile::Auto)
        .map(|service| service.name.clone())
        .collect()
}

/// Brings one service to the head; `None` where there was nothing to do, else whether it went well.
async fn reconcile(agent: &Agent, service: &ServiceName) -> Option<bool> {
    let wish = Wish {
        targets: Some(vec![Target {
            node: None,
            service: service.clone(),
            component: None,
        }]),
        revision: None,
        options: Options::default(),
        draft: Vec::new(),
        auto: true,
        resolve_tags: false,
    };
    let planned = match agent.planner.deploy(&wish).await {
        Ok(planned) => planned,
        Err(error) => {
            tracing::warn!(%service, error = %crate::error_chain(&error), "cannot plan by itself");
            return Some(false);
        }
    };
    let plan_id = *planned.plan.id();
    let plan = planned
        .plan
        .into_services()
        .pop()
        .filter(|plan| !plan.is_noop())?;
    if let Some(blocked) = plan.blocked.first() {
        tracing::warn!(%service, reason = blocked.obstacle.reason, "reconciling is blocked");
        return Some(false);
    }
    let signer = agent
        .registry
        .revision(plan.revision)
        .await
        .ok()
        .flatten()
        .map(|revision| revision.signer);
    let planner = agent.planner.clone();
    let again = wish.clone();
    let submission = Submission {
        plan,
        plan_id,
        order: Order {
            actor: "agent".to_owned(),
            trigger: Trigger::Auto,
            purpose: Some(Purpose::Auto),
            volumes: false,
            restores: BTreeMap::new(),
        },
        request_id: String::new(),
        request_digest: Digest::of(b"auto"),
        component: None,
        signer,
        replan: Box::new(move || {
            let (planner, wish) = (planner.clone(), again.clone());
            Box::pin(async move {
                planner
                    .deploy(&wish)
                    .await
                    .map_err(|error| error.to_string())?
                    .into_part()
                    .ok_or_else(|| "nothing is left to do".to_owned())
            })
        }),
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
            return Some(false);
        }
    };
    Some(matches!(
        ended.row.outcome,
        Some(Outcome::Deployed | Outcome::Unchanged | Outcome::Superseded)
    ))
}
