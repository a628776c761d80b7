//! Carrying a plan out: one deployment a service, and what a repeated request led to.

use std::collections::BTreeMap;
use std::sync::Arc;

use mcp_proto::convert;
use mcp_spec::name::ComponentName;
use mcp_spec::plan::{Purpose, ServicePlan};
use tonic::{Response, Status};

use super::Deployments;
use super::follow::{Updates, follow};
use super::request::{RequestKey, submit_failure};
use super::settled::{blocked_deployment, unchanged_deployment};
use crate::auth::Identity;
use crate::deploy::{Ended, Order, Replan, Replanned, Submission, SubmitError, Taken};
use crate::planning::{PlanError, Planned};
use crate::registry::{DeploymentRow, Trigger};
use crate::rpc::status;

impl Deployments {
    /// Deploys what was planned and streams what happens.
    pub(super) async fn carry_out(
        &self,
        identity: &Identity,
        planned: Planned,
        request: RequestKey,
        order: Order,
        replan: impl Fn(&ServicePlan) -> Replan,
        only: Option<&ComponentName>,
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
    pub(super) async fn repeated(
        &self,
        request: &RequestKey,
    ) -> Result<Option<Response<Updates>>, Status> {
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

    pub(super) async fn taken(&self, row: DeploymentRow) -> Result<Taken, Status> {
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
}

pub(super) fn order(identity: &Identity, trigger: Trigger, purpose: Option<Purpose>) -> Order {
    Order {
        actor: identity.subject.clone(),
        trigger,
        purpose,
        volumes: false,
        restores: BTreeMap::new(),
    }
}

/// The only service of a plan that was made anew.
pub(super) fn part(planned: Result<Planned, PlanError>) -> Result<Replanned, String> {
    planned
        .map_err(|error| crate::error_chain(&error))?
        .into_part()
        .ok_or_else(|| "nothing is left to do".to_owned())
}
