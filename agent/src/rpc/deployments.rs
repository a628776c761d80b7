//! `mcp.v1.Deployments`: what changes containers.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use mcp_proto::convert;
use mcp_proto::v1;
use mcp_spec::diff::diff;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, Target};
use mcp_spec::plan::{Options, Plan, ServicePlan};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::authenticate::caller;
use super::components::{View, deployment};
use super::status::{self, Failure};
use crate::Agent;
use crate::auth::{Identity, Role};
use crate::deploy::{
    Cancelled, Ended, Feed, Order, Replan, Replanned, Step, Submission, SubmitError, Taken,
};
use crate::desired::DesiredError;
use crate::planning::{Lifecycle, PlanError, Planned, Wish};
use crate::registry::{
    DeployedRow, HoldRow, Lookup, Outcome, RevisionFilter, RevisionRow, Trigger,
};

/// Steps that wait for a slow client before the oldest are dropped from its view.
const UPDATES: usize = 256;

/// Longest request id.
const MAX_REQUEST_ID: usize = 64;

/// Deployments that are looked at for the last one that did something.
const LAST: u32 = 20;

/// Deployments in a history where the client does not say.
const HISTORY: u32 = 20;

type Updates = Pin<Box<dyn Stream<Item = Result<v1::DeployUpdate, Status>> + Send>>;

/// The service.
#[derive(Debug)]
pub(super) struct Deployments {
    agent: Arc<Agent>,
}

impl Deployments {
    pub(super) const fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    /// Deploys what was planned and streams what happens.
    async fn carry_out(
        &self,
        identity: &Identity,
        planned: Planned,
        request: RequestKey,
        order: Order,
        replan: impl Fn(&ServicePlan) -> Replan,
        only: Option<&mcp_spec::name::ComponentName>,
    ) -> Result<Response<Updates>, Status> {
        let head = self.agent.revisions.head();
        let message = convert::plan(&planned.plan, head);
        let plan_id = *planned.plan.id();
        let mut parts = Vec::new();
        let mut settled = Vec::new();
        for service in planned.plan.into_services() {
            if !service.blocked.is_empty() {
                settled.push(blocked_deployment(&self.agent, &service, order.trigger));
                continue;
            }
            let stop_stands = order.trigger == Trigger::Stop && !self.is_stopped(&service).await?;
            if service.is_noop() && !stop_stands {
                settled.push(unchanged_deployment(&self.agent, &service, order.trigger));
                continue;
            }
            let mut order = order.clone();
            order.restores = planned
                .restores
                .iter()
                .filter(|(key, _)| key.service == service.service)
                .map(|(key, id)| (key.component.clone(), *id))
                .collect();
            let signer = self
                .agent
                .registry
                .revision(service.revision)
                .await
                .map_err(|error| status::registry(&error))?
                .map(|revision| revision.signer);
            let submission = Submission {
                replan: replan(&service),
                plan: service,
                plan_id,
                order,
                request_id: request.id.clone(),
                request_digest: request.digest,
                component: only.cloned(),
                signer,
            };
            parts.push(
                self.agent
                    .deployer
                    .submit(submission)
                    .await
                    .map_err(|error| submit_failure(&error))?,
            );
        }
        tracing::info!(
            subject = identity.subject, trigger = order.trigger.as_str(), plan = %plan_id,
            deployments = parts.len(), "deploying"
        );
        Ok(Response::new(follow(
            &self.agent,
            Some(message),
            parts,
            settled,
        )))
    }

    /// Whether every component of a service bears an operator's stop already.
    async fn is_stopped(&self, service: &ServicePlan) -> Result<bool, Status> {
        let rows = self
            .agent
            .registry
            .deployed_of(service.service.clone())
            .await
            .map_err(|error| status::registry(&error))?;
        Ok(rows.iter().all(|row| row.stopped_by.is_some()))
    }

    /// The deployments that a repeated request led to.
    async fn repeated(&self, request: &RequestKey) -> Result<Option<Response<Updates>>, Status> {
        if request.id.is_empty() {
            return Ok(None);
        }
        let rows = self
            .agent
            .registry
            .deployments_of_request(request.id.clone())
            .await
            .map_err(|error| status::registry(&error))?;
        if rows.is_empty() {
            return Ok(None);
        }
        if rows.iter().any(|row| row.request_digest != request.digest) {
            return Err(submit_failure(&SubmitError::RequestReused {
                request_id: request.id.clone(),
            }));
        }
        let mut parts = Vec::new();
        for row in rows {
            parts.push(self.taken(row).await?);
        }
        Ok(Some(Response::new(follow(
            &self.agent,
            None,
            parts,
            Vec::new(),
        ))))
    }

    async fn taken(&self, row: crate::registry::DeploymentRow) -> Result<Taken, Status> {
        if let Some(feed) = self.agent.deployer.feed(&row.id) {
            return Ok(Taken::Feed(feed));
        }
        let components = self
            .agent
            .registry
            .records(vec![row.id.clone()])
            .await
            .map_err(|error| status::registry(&error))?
            .remove(&row.id)
            .unwrap_or_default();
        Ok(Taken::Ended(Arc::new(Ended { row, components })))
    }

    async fn lifecycle(
        &self,
        request: Request<v1::LifecycleRequest>,
        lifecycle: Lifecycle,
    ) -> Result<Response<Updates>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        require_services(&identity, Some(&targets))?;
        if let Some(target) = targets.iter().find(|target| target.component.is_some()) {
            return Err(Failure::new(
                Code::InvalidArgument,
                "whole-services",
                format!("{target} is one component: start, stop and restart act on whole services"),
            )
            .hint(format!("name the service: {}", target.service))
            .into());
        }
        let services: BTreeSet<_> = targets.into_iter().map(|target| target.service).collect();
        if services.is_empty() {
            return Err(no_targets());
        }
        let key = RequestKey::of(&request.request_id, lifecycle.trigger(), &request)?;
        if let Some(response) = self.repeated(&key).await? {
            return Ok(response);
        }
        let planner = self.agent.planner.clone();
        let planned = planner
            .lifecycle(lifecycle, &services)
            .await
            .map_err(|error| plan_failure(&error))?;
        self.carry_out(
            &identity,
            planned,
            key,
            order(&identity, lifecycle.trigger(), None),
            move |service| {
                let (planner, name) = (planner.clone(), service.service.clone());
                Box::new(move || {
                    let (planner, name) = (planner.clone(), name.clone());
                    Box::pin(async move {
                        let one = BTreeSet::from([name]);
                        part(planner.lifecycle(lifecycle, &one).await)
                    })
                })
            },
            None,
        )
        .await
    }
}

/// Identifies a request.
struct RequestKey {
    id: String,
    digest: Digest,
}

impl RequestKey {
    fn of<M: prost::Message>(id: &str, trigger: Trigger, message: &M) -> Result<Self, Status> {
        if id.len() > MAX_REQUEST_ID || id.chars().any(char::is_control) {
            return Err(Failure::new(
                Code::InvalidArgument,
                "request-id",
                format!("a request id has at most {MAX_REQUEST_ID} printable characters"),
            )
            .into());
        }
        let mut bytes = trigger.as_str().as_bytes().to_vec();
        bytes.extend(message.encode_to_vec());
        Ok(Self {
            id: id.to_owned(),
            digest: Digest::of(&bytes),
        })
    }
}

fn order(identity: &Identity, trigger: Trigger, purpose: Option<mcp_spec::plan::Purpose>) -> Order {
    Order {
        actor: identity.subject.clone(),
        trigger,
        purpose,
        volumes: false,
        restores: BTreeMap::new(),
    }
}

/// The only service of a plan that was made anew.
fn part(planned: Result<Planned, PlanError>) -> Result<Replanned, String> {
    planned
        .map_err(|error| crate::error_chain(&error))?
        .into_part()
        .ok_or_else(|| "nothing is left to do".to_owned())
}

/// What an operator has agreed to, held against a plan that was made anew after a wait.
fn check_again(
    first: &ServicePlan,
    again: &Replanned,
    by_id: bool,
    yes: bool,
) -> Result<(), String> {
    let removes = |plan: &ServicePlan, component: &mcp_spec::name::ComponentName| {
        plan.actions.iter().any(|action| {
            action.component == *component && action.kind == mcp_spec::plan::ActionKind::Remove
        })
    };
    if by_id && !first.does_the_same(&again.plan) {
        return Err("the plan is stale: another deployment came first".to_owned());
    }
    let unasked = again.plan.actions.iter().find(|action| {
        removes(&again.plan, &action.component) && !removes(first, &action.component)
    });
    match unasked {
        Some(action) if !yes => Err(format!(
            "this would now remove {}/{}, which was not asked for",
            again.plan.service, action.component
        )),
        _ => Ok(()),
    }
}

fn targets_of(messages: &[v1::Target]) -> Result<Vec<Target>, Status> {
    convert::targets(messages).map_err(|error| {
        Failure::of(Code::InvalidArgument, "target", &error)
            .hint("write SERVICE or SERVICE/COMPONENT")
            .into()
    })
}

fn no_targets() -> Status {
    Failure::new(Code::InvalidArgument, "target", "no target was named")
        .hint("name a service, or add --all")
        .into()
}

/// A token that is narrowed to services covers just those.
fn require_services(identity: &Identity, targets: Option<&[Target]>) -> Result<(), Status> {
    match targets {
        None => identity.require_all_services()?,
        Some(targets) => {
            for target in targets {
                identity.require_service(&target.service)?;
            }
        }
    }
    Ok(())
}

fn plan_failure(error: &PlanError) -> Status {
    let (code, reason) = match error {
        PlanError::NoRevision => (Code::FailedPrecondition, "no-revision"),
        PlanError::Revision(_) => (Code::NotFound, "unknown-revision"),
        PlanError::Desired(DesiredError::Definitions { .. }) => {
            (Code::InvalidArgument, "definitions")
        }
        PlanError::Desired(_) | PlanError::Registry(_) => (Code::Internal, "registry"),
        PlanError::Image { .. } => (Code::Unavailable, "image"),
    };
    Failure::of(code, reason, error).hint(error.hint()).into()
}

fn submit_failure(error: &SubmitError) -> Status {
    let (code, reason, hint) = match error {
        SubmitError::QueueFull { .. } => (
            Code::ResourceExhausted,
            "queue-full",
            "wait until some have ended: mcp history",
        ),
        SubmitError::RequestReused { .. } => (
            Code::AlreadyExists,
            "request-reused",
            "use another request id",
        ),
        SubmitError::Registry(_) => (
            Code::Internal,
            "registry",
            "look at the node's disk: mcp node info",
        ),
        SubmitError::Stopping => (
            Code::Unavailable,
            "stopping",
            "try again when the agent is back",
        ),
    };
    Failure::of(code, reason, error).hint(hint).into()
}

fn settled(
    agent: &Agent,
    service: &ServicePlan,
    trigger: Trigger,
    outcome: &str,
) -> v1::Deployment {
    v1::Deployment {
        node: agent.config.node.to_string(),
        service: service.service.to_string(),
        revision: service.revision.to_string(),
        outcome: outcome.to_owned(),
        trigger: trigger.as_str().to_owned(),
        components: service
            .actions
            .iter()
            .map(|action| v1::ComponentOutcome {
                component: action.component.to_string(),
                action: action.kind.as_str().to_owned(),
                outcome: outcome.to_owned(),
                from_revision: action
                    .before
                    .as_ref()
                    .map(|before| before.revision.to_string())
                    .unwrap_or_default(),
                to_revision: action
                    .after
                    .as_ref()
                    .map(|after| after.revision.to_string())
                    .unwrap_or_default(),
                ..v1::ComponentOutcome::default()
            })
            .collect(),
        ..v1::Deployment::default()
    }
}

fn unchanged_deployment(agent: &Agent, service: &ServicePlan, trigger: Trigger) -> v1::Deployment {
    settled(agent, service, trigger, "unchanged")
}

fn blocked_deployment(agent: &Agent, service: &ServicePlan, trigger: Trigger) -> v1::Deployment {
    let mut deployment = settled(agent, service, trigger, "aborted");
    let reasons: Vec<String> = service
        .blocked
        .iter()
        .map(|blocked| match &blocked.component {
            Some(component) => {
                format!(
                    "{}/{component}: {}",
                    blocked.service, blocked.obstacle.reason
                )
            }
            None => blocked.obstacle.reason.clone(),
        })
        .collect();
    deployment.error = format!("blocked: {}", reasons.join("; "));
    for component in &mut deployment.components {
        let reason = service.blocked.iter().find(|blocked| {
            blocked
                .component
                .as_ref()
                .is_some_and(|name| name.as_str() == component.component)
        });
        if let Some(blocked) = reason {
            component.error.clone_from(&blocked.obstacle.reason);
        }
    }
    deployment
}

fn progress(step: &Step) -> v1::DeployUpdate {
    v1::DeployUpdate {
        update: Some(v1::deploy_update::Update::Progress(v1::Progress {
            deployment_id: step.deployment.to_string(),
            service: step.service.to_string(),
            component: step
                .component
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            step: step.step.to_owned(),
            detail: step.detail.clone(),
            current: step.current,
            total: step.total,
            elapsed_ms: step.elapsed_ms,
        })),
    }
}

/// Streams the plan, the steps of all deployments, and their results. A client that goes away ends
/// the stream and nothing else.
fn follow(
    agent: &Arc<Agent>,
    plan: Option<v1::Plan>,
    parts: Vec<Taken>,
    settled: Vec<v1::Deployment>,
) -> Updates {
    let (updates, stream) = mpsc::channel(UPDATES);
    let node = agent.config.node.clone();
    let shutdown = agent.shutdown.clone();
    let following = async move {
        if let Some(plan) = plan {
            let first = v1::DeployUpdate {
                update: Some(v1::deploy_update::Update::Plan(plan)),
            };
            if updates.send(Ok(first)).await.is_err() {
                return;
            }
        }
        let ends = futures_util::future::join_all(parts.into_iter().map(|part| {
            let updates = updates.clone();
            async move {
                match part {
                    Taken::Ended(ended) => Some(ended),
                    Taken::Feed(feed) => relay(&feed, &updates).await,
                }
            }
        }))
        .await;
        let mut deployments = settled;
        deployments.extend(
            ends.into_iter()
                .flatten()
                .map(|ended| deployment(&node, &ended.row, &ended.components)),
        );
        deployments.sort_by(|a, b| a.service.cmp(&b.service));
        let last = v1::DeployUpdate {
            update: Some(v1::deploy_update::Update::Result(v1::DeployResult {
                deployments,
            })),
        };
        // A client that is gone has no use for the result; the registry keeps it.
        drop(updates.send(Ok(last)).await);
    };
    agent.work.spawn(async move {
        tokio::select! {
            // The agent's end cuts followers off; the deployment goes on by its journal.
            () = shutdown.cancelled() => {}
            () = following => {}
        }
    });
    Box::pin(ReceiverStream::new(stream))
}

/// Relays the steps of one deployment until its end.
async fn relay(
    feed: &Feed,
    updates: &mpsc::Sender<Result<v1::DeployUpdate, Status>>,
) -> Option<Arc<Ended>> {
    let (kept, mut steps) = feed.follow();
    let ended = feed.ended();
    tokio::pin!(ended);
    for step in &kept {
        updates.send(Ok(progress(step))).await.ok()?;
    }
    loop {
        tokio::select! {
            biased;
            // Both arms only receive, and may be cancelled.
            step = steps.recv() => match step {
                Ok(step) => updates.send(Ok(progress(&step))).await.ok()?,
                // A slow client loses steps; the end comes by its own way.
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => {
                    return ended.await;
                }
            },
            end = &mut ended => return end,
        }
    }
}

#[tonic::async_trait]
impl v1::deployments_server::Deployments for Deployments {
    type DeployStream = Updates;
    type AttachStream = Updates;
    type RollbackStream = Updates;
    type StartStream = Updates;
    type StopStream = Updates;
    type RestartStream = Updates;
    type PurgeStream = Updates;

    async fn get_plan(
        &self,
        request: Request<v1::PlanRequest>,
    ) -> Result<Response<v1::Plan>, Status> {
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        let wish = Wish {
            targets: (!targets.is_empty()).then_some(targets),
            revision: revision_of(&request.revision),
            options: Options {
                force: request.force,
                with_deps: request.with_deps,
                jobs: false,
            },
            draft: request
                .draft
                .into_iter()
                .map(|file| (file.path, file.content))
                .collect(),
            auto: false,
            resolve_tags: false,
        };
        let planned = self
            .agent
            .planner
            .deploy(&wish)
            .await
            .map_err(|error| plan_failure(&error))?;
        Ok(Response::new(convert::plan(
            &planned.plan,
            self.agent.revisions.head(),
        )))
    }

    async fn deploy(
        &self,
        request: Request<v1::DeployRequest>,
    ) -> Result<Response<Updates>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        if targets.is_empty() && !request.all {
            return Err(no_targets());
        }
        let targets = (!targets.is_empty()).then_some(targets);
        require_services(&identity, targets.as_deref())?;
        if request.force {
            identity.require(Role::Admin)?;
        }
        let key = RequestKey::of(&request.request_id, Trigger::Deploy, &request)?;
        if let Some(response) = self.repeated(&key).await? {
            return Ok(response);
        }
        let wish = Wish {
            targets,
            revision: revision_of(&request.revision),
            options: Options {
                force: request.force,
                with_deps: request.with_deps,
                jobs: false,
            },
            draft: Vec::new(),
            auto: false,
            resolve_tags: true,
        };
        let planner = self.agent.planner.clone();
        let planned = planner
            .deploy(&wish)
            .await
            .map_err(|error| plan_failure(&error))?;
        check_plan_id(&planned.plan, &request.plan_id)?;
        check_consent(&planned.plan, request.yes)?;
        let only = match wish.targets.as_deref() {
            Some([target]) => target.component.clone(),
            _ => None,
        };
        let order = order(&identity, Trigger::Deploy, planned.purpose);
        let (by_id, yes) = (!request.plan_id.is_empty(), request.yes);
        self.carry_out(
            &identity,
            planned,
            key,
            order,
            move |service| {
                let planner = planner.clone();
                let mut wish = wish.clone();
                let first = service.clone();
                let name = service.service.clone();
                wish.targets = Some(match wish.targets {
                    Some(targets) => targets
                        .into_iter()
                        .filter(|target| target.service == name)
                        .collect(),
                    None => vec![Target {
                        node: None,
                        service: name,
                        component: None,
                    }],
                });
                Box::new(move || {
                    let (planner, wish) = (planner.clone(), wish.clone());
                    let first = first.clone();
                    Box::pin(async move {
                        let again = part(planner.deploy(&wish).await)?;
                        check_again(&first, &again, by_id, yes)?;
                        Ok(again)
                    })
                })
            },
            only.as_ref(),
        )
        .await
    }

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<Updates>, Status> {
        let request = request.into_inner();
        let rows = if request.deployment_id.is_empty() {
            self.agent
                .registry
                .deployments_of_request(request.request_id.clone())
                .await
                .map_err(|error| status::registry(&error))?
        } else {
            vec![self.find(&request.deployment_id).await?]
        };
        if rows.is_empty() {
            return Err(Failure::new(
                Code::NotFound,
                "unknown-deployment",
                format!("no deployment came of request {}", request.request_id),
            )
            .hint("see what was deployed: mcp history")
            .into());
        }
        let mut parts = Vec::new();
        for row in rows {
            parts.push(self.taken(row).await?);
        }
        Ok(Response::new(follow(&self.agent, None, parts, Vec::new())))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        let identity = caller(&request)?;
        let row = self.find(&request.into_inner().deployment_id).await?;
        identity.require_service(&row.service)?;
        match self.agent.deployer.cancel(row.id.clone()).await {
            Cancelled::Cancelled => {}
            Cancelled::TooLate => {
                return Err(Failure::new(
                    Code::FailedPrecondition,
                    "too-late",
                    format!(
                        "deployment {} has crossed the point of no return",
                        row.id.short()
                    ),
                )
                .hint("let it end, then go back with: mcp rollback")
                .deployment(row.id.to_string())
                .into());
            }
            Cancelled::Unknown => {
                return Err(Failure::new(
                    Code::FailedPrecondition,
                    "ended",
                    format!("deployment {} has ended already", row.id.short()),
                )
                .hint("see how: mcp history")
                .deployment(row.id.to_string())
                .into());
            }
        }
        if let Some(feed) = self.agent.deployer.feed(&row.id)
            && let Some(ended) = feed.ended().await
        {
            return Ok(Response::new(v1::CancelResponse {
                deployment: Some(deployment(
                    &self.agent.config.node,
                    &ended.row,
                    &ended.components,
                )),
            }));
        }
        let row = self.find(row.id.as_str()).await?;
        Ok(Response::new(v1::CancelResponse {
            deployment: Some(deployment(&self.agent.config.node, &row, &[])),
        }))
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<Updates>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        if targets.is_empty() {
            return Err(no_targets());
        }
        require_services(&identity, Some(&targets))?;
        let key = RequestKey::of(&request.request_id, Trigger::Rollback, &request)?;
        if let Some(response) = self.repeated(&key).await? {
            return Ok(response);
        }
        let options = Options {
            jobs: request.jobs,
            ..Options::default()
        };
        let to = revision_of(&request.to_revision);
        let planner = self.agent.planner.clone();
        let planned = planner
            .rollback(&targets, to.as_deref(), options)
            .await
            .map_err(|error| plan_failure(&error))?;
        for target in &targets {
            let any = planned.restores.keys().any(|key| target.covers(key));
            if !any {
                return Err(Failure::new(
                    Code::FailedPrecondition,
                    "nothing-to-restore",
                    match &to {
                        Some(rev) => format!("{target} was never deployed successfully at {rev}"),
                        None => format!("{target} has no earlier successful spec on this node"),
                    },
                )
                .hint(format!("see what was deployed: mcp history {target}"))
                .into());
            }
        }
        let only = match targets.as_slice() {
            [target] => target.component.clone(),
            _ => None,
        };
        let order = order(&identity, Trigger::Rollback, planned.purpose);
        let again = targets.clone();
        self.carry_out(
            &identity,
            planned,
            key,
            order,
            move |service| {
                let (planner, to) = (planner.clone(), to.clone());
                let targets: Vec<Target> = again
                    .iter()
                    .filter(|target| target.service == service.service)
                    .cloned()
                    .collect();
                Box::new(move || {
                    let (planner, targets, to) = (planner.clone(), targets.clone(), to.clone());
                    Box::pin(async move {
                        part(planner.rollback(&targets, to.as_deref(), options).await)
                    })
                })
            },
            only.as_ref(),
        )
        .await
    }

    async fn start(
        &self,
        request: Request<v1::LifecycleRequest>,
    ) -> Result<Response<Updates>, Status> {
        self.lifecycle(request, Lifecycle::Start).await
    }

    async fn stop(
        &self,
        request: Request<v1::LifecycleRequest>,
    ) -> Result<Response<Updates>, Status> {
        self.lifecycle(request, Lifecycle::Stop).await
    }

    async fn restart(
        &self,
        request: Request<v1::LifecycleRequest>,
    ) -> Result<Response<Updates>, Status> {
        self.lifecycle(request, Lifecycle::Restart).await
    }

    async fn set_hold(
        &self,
        request: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::HoldResponse>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        require_services(&identity, Some(&targets))?;
        let now = self.agent.clock.now();
        let reason = Some(request.reason)
            .filter(|reason| !reason.is_empty())
            .map(|reason| reason.chars().take(1000).collect::<String>());
        let components = self
            .change_holds(&targets, "held", &identity, |row| {
                Some(HoldRow {
                    revision: row.revision,
                    by: identity.subject.clone(),
                    at: now,
                    reason: reason.clone(),
                })
            })
            .await?;
        Ok(Response::new(v1::HoldResponse { components }))
    }

    async fn release_hold(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        let identity = caller(&request)?;
        let targets = targets_of(&request.into_inner().targets)?;
        require_services(&identity, Some(&targets))?;
        let components = self
            .change_holds(&targets, "released", &identity, |_| None)
            .await?;
        Ok(Response::new(v1::ReleaseResponse { components }))
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryResponse>, Status> {
        let request = request.into_inner();
        let target = request
            .target
            .as_ref()
            .map(convert::target)
            .transpose()
            .map_err(|error| Status::from(Failure::of(Code::InvalidArgument, "target", &error)))?;
        let limit = if request.limit == 0 {
            HISTORY
        } else {
            request.limit.min(1000)
        };
        let registry = &self.agent.registry;
        let rows = registry
            .history(target, limit)
            .await
            .map_err(|error| status::registry(&error))?;
        let mut records = registry
            .records(rows.iter().map(|row| row.id.clone()).collect())
            .await
            .map_err(|error| status::registry(&error))?;
        let deployments = rows
            .iter()
            .map(|row| {
                let records = records.remove(&row.id).unwrap_or_default();
                deployment(&self.agent.config.node, row, &records)
            })
            .collect();
        Ok(Response::new(v1::HistoryResponse { deployments }))
    }

    async fn why(
        &self,
        request: Request<v1::WhyRequest>,
    ) -> Result<Response<v1::WhyResponse>, Status> {
        let request = request.into_inner();
        let targets = targets_of(request.target.as_slice())?;
        let view = View::read(&self.agent)
            .await
            .map_err(|error| status::registry(&error))?;
        let mut components = Vec::new();
        for component in view.components(&targets, None) {
            components.push(self.explain(&view, component).await?);
        }
        if components.is_empty() {
            return Err(status::unknown_target(&targets, &self.agent.config.node));
        }
        Ok(Response::new(v1::WhyResponse { components }))
    }

    async fn purge(&self, request: Request<v1::PurgeRequest>) -> Result<Response<Updates>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        let targets = (!targets.is_empty()).then_some(targets);
        require_services(&identity, targets.as_deref())?;
        if request.volumes {
            identity.require(Role::Admin)?;
        }
        let key = RequestKey::of(&request.request_id, Trigger::Purge, &request)?;
        if !request.dry_run
            && let Some(response) = self.repeated(&key).await?
        {
            return Ok(response);
        }
        let planner = self.agent.planner.clone();
        let planned = planner
            .purge(targets.as_deref())
            .await
            .map_err(|error| plan_failure(&error))?;
        if request.dry_run {
            let message = convert::plan(&planned.plan, self.agent.revisions.head());
            return Ok(Response::new(follow(
                &self.agent,
                Some(message),
                Vec::new(),
                Vec::new(),
            )));
        }
        check_consent(&planned.plan, request.yes)?;
        let mut order = order(&identity, Trigger::Purge, None);
        order.volumes = request.volumes;
        self.carry_out(
            &identity,
            planned,
            key,
            order,
            move |service| {
                let planner = planner.clone();
                let only = vec![Target {
                    node: None,
                    service: service.service.clone(),
                    component: None,
                }];
                let targets = targets.clone().map_or(only.clone(), |targets| {
                    targets
                        .into_iter()
                        .filter(|target| target.service == only[0].service)
                        .collect()
                });
                Box::new(move || {
                    let (planner, targets) = (planner.clone(), targets.clone());
                    Box::pin(async move { part(planner.purge(Some(&targets)).await) })
                })
            },
            None,
        )
        .await
    }
}

impl Deployments {
    async fn find(&self, id: &str) -> Result<crate::registry::DeploymentRow, Status> {
        let found = self
            .agent
            .registry
            .deployment(id.to_owned())
            .await
            .map_err(|error| status::registry(&error))?;
        let shown: String = id.chars().take(40).flat_map(char::escape_default).collect();
        match found {
            Lookup::One(row) => Ok(row),
            Lookup::Missing => Err(Failure::new(
                Code::NotFound,
                "unknown-deployment",
                format!("no deployment {shown} on {}", self.agent.config.node),
            )
            .hint("see what was deployed: mcp history")
            .into()),
            Lookup::Ambiguous(ids) => Err(Failure::new(
                Code::InvalidArgument,
                "ambiguous-deployment",
                format!("{shown} could be {}", ids.join(" or ")),
            )
            .hint("write more digits")
            .into()),
        }
    }

    async fn change_holds(
        &self,
        targets: &[Target],
        word: &str,
        identity: &Identity,
        new: impl Fn(&DeployedRow) -> Option<HoldRow>,
    ) -> Result<Vec<v1::Component>, Status> {
        if targets.is_empty() {
            return Err(no_targets());
        }
        let registry = &self.agent.registry;
        let rows = registry
            .deployed_all()
            .await
            .map_err(|error| status::registry(&error))?;
        let mut changes = Vec::new();
        let mut events = Vec::new();
        for target in targets {
            let mut any = false;
            for row in rows.iter().filter(|row| target.covers(&row.key)) {
                any = true;
                let hold = new(row);
                events.push(crate::registry::NewEvent {
                    at: self.agent.clock.now(),
                    service: Some(row.key.service.clone()),
                    component: Some(row.key.component.clone()),
                    kind: word.to_owned(),
                    reason: "operator".to_owned(),
                    message: format!("{} {word} by {}", row.key, identity.subject),
                    revision: Some(row.revision),
                    data: serde_json::json!({ "actor": identity.subject }),
                });
                changes.push((row.key.clone(), hold));
            }
            if !any {
                return Err(status::unknown_target(
                    std::slice::from_ref(target),
                    &self.agent.config.node,
                ));
            }
        }
        registry
            .set_hold(changes, events)
            .await
            .map_err(|error| status::registry(&error))?;
        let view = View::read(&self.agent)
            .await
            .map_err(|error| status::registry(&error))?;
        Ok(view.components(targets, None))
    }

    /// The revision that gave a component the spec that it runs: its own may be a later one that
    /// left the spec as it was.
    async fn spec_revision(&self, row: &DeployedRow) -> Result<Option<RevisionRow>, Status> {
        let failed = |error| status::registry(&error);
        let registry = &self.agent.registry;
        let Some(at) = registry.revision(row.revision).await.map_err(failed)? else {
            return Ok(None);
        };
        let changing = registry
            .revisions(RevisionFilter {
                service: Some(row.key.service.clone()),
                component: Some(row.key.component.clone()),
                limit: 1000,
            })
            .await
            .map_err(failed)?;
        Ok(changing
            .into_iter()
            .find(|revision| revision.seq <= at.seq)
            .or(Some(at)))
    }

    /// Why one component runs what it runs.
    async fn explain(&self, view: &View, component: v1::Component) -> Result<v1::Why, Status> {
        let registry = &self.agent.registry;
        let node = &self.agent.config.node;
        let row = view.rows.iter().find(|row| {
            row.key.service.as_str() == component.service
                && row.key.component.as_str() == component.component
        });
        let Some(row) = row else {
            return Ok(v1::Why {
                wanted_revision: component.head_revision.clone(),
                wanted_reason: "never deployed here: mcp deploy brings it up".to_owned(),
                component: Some(component),
                ..v1::Why::default()
            });
        };
        let failed = |error| status::registry(&error);
        let made = registry
            .deployment(row.deployment.to_string())
            .await
            .map_err(failed)?
            .one();
        let target = Target {
            node: None,
            service: row.key.service.clone(),
            component: Some(row.key.component.clone()),
        };
        let last = registry
            .history(Some(target), LAST)
            .await
            .map_err(failed)?
            .into_iter()
            .find(|last| last.outcome != Some(Outcome::Unchanged));
        let mut records = registry
            .records(made.iter().chain(&last).map(|row| row.id.clone()).collect())
            .await
            .map_err(failed)?;
        let mut described = |deployment_row: &crate::registry::DeploymentRow| {
            let records = records.remove(&deployment_row.id).unwrap_or_default();
            deployment(node, deployment_row, &records)
        };
        let revision = self.spec_revision(row).await?;
        let made = made.as_ref().map(&mut described);
        let last = last
            .as_ref()
            .filter(|last| {
                made.as_ref()
                    .is_none_or(|made| made.deployment_id != last.id.as_str())
            })
            .map(&mut described);
        let changed = made
            .as_ref()
            .and_then(|made| {
                made.components
                    .iter()
                    .find(|part| part.component == component.component)
            })
            .map(|part| part.changes.clone())
            .unwrap_or_default();
        let wanted = view
            .wanted
            .as_ref()
            .and_then(|set| set.services.get(&row.key.service))
            .and_then(|service| service.components.get(&row.key.component));
        let wanted_reason = why_not(row, wanted.is_some(), &component);
        let spec_commit = revision
            .as_ref()
            .map_or(row.revision, |revision| revision.commit);
        Ok(v1::Why {
            spec_revision: spec_commit.to_string(),
            deployment: made,
            last,
            subject: revision
                .as_ref()
                .map(|revision| revision.subject.clone())
                .unwrap_or_default(),
            signer: revision
                .as_ref()
                .map(|revision| revision.signer.clone())
                .unwrap_or_default(),
            authored_at: revision
                .map(|revision| revision.authored_at.to_string())
                .unwrap_or_default(),
            changed,
            wanted: wanted
                .map(|wanted| diff(&row.spec, wanted))
                .unwrap_or_default()
                .iter()
                .map(convert::field_change)
                .collect(),
            wanted_revision: component.head_revision.clone(),
            wanted_reason,
            component: Some(component),
        })
    }
}

/// Why what the head wants does not run.
fn why_not(row: &DeployedRow, wanted: bool, component: &v1::Component) -> String {
    if let Some(stop) = &row.stopped_by {
        return format!("stopped by {}", stop.by);
    }
    if let Some(hold) = &row.hold {
        return format!("held at {} by {}", hold.revision.short(), hold.by);
    }
    if !wanted {
        return "orphaned: the head no longer defines it".to_owned();
    }
    if component.quarantined {
        return "quarantined here: it failed its gate".to_owned();
    }
    if component.behind > 0 {
        return "pending: not deployed yet".to_owned();
    }
    String::new()
}

fn revision_of(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn check_plan_id(plan: &Plan, wanted: &str) -> Result<(), Status> {
    let id = plan.id().hex();
    if wanted.is_empty() || (wanted.len() >= 7 && id.starts_with(wanted)) {
        return Ok(());
    }
    Err(Failure::new(
        Code::Aborted,
        "stale-plan",
        format!(
            "plan {} is stale: planning again gives {}",
            wanted.chars().take(7).collect::<String>(),
            &id[..7]
        ),
    )
    .hint("look at what it would do now: mcp plan")
    .into())
}

fn check_consent(plan: &Plan, yes: bool) -> Result<(), Status> {
    let removed: Vec<String> = plan
        .services()
        .iter()
        .filter(|service| service.removes() && service.blocked.is_empty())
        .flat_map(|service| {
            service
                .actions
                .iter()
                .filter(|action| action.kind == mcp_spec::plan::ActionKind::Remove)
                .map(|action| {
                    ComponentKey::new(service.service.clone(), action.component.clone()).to_string()
                })
        })
        .collect();
    if yes || removed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Code::FailedPrecondition,
        "consent",
        format!("this would remove {}", removed.join(", ")),
    )
    .hint("add --yes to consent")
    .into())
}
