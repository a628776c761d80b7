//! `mcp.v1.Deployments`: what changes containers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mcp_proto::convert;
use mcp_proto::v1;
use mcp_spec::name::Target;
use mcp_spec::plan::{Options, ServicePlan};
use tonic::{Code, Request, Response, Status};

mod follow;
mod request;
mod settled;
mod why;

use follow::{Updates, follow};
use request::{
    RequestKey, check_again, check_consent, check_plan_id, no_targets, plan_failure,
    require_services, revision_of, submit_failure, targets_of,
};
use settled::{blocked_deployment, unchanged_deployment};

use super::authenticate::caller;
use super::components::{View, deployment};
use super::status::{self, Failure};
use crate::Agent;
use crate::auth::{Identity, Role};
use crate::deploy::{Cancelled, Ended, Order, Replan, Replanned, Submission, SubmitError, Taken};
use crate::planning::{Lifecycle, PlanError, Planned, Wish};
use crate::registry::{DeployedRow, HoldRow, Lookup, Trigger};

/// Deployments in a history where the client does not say.
const HISTORY: u32 = 20;

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
}
