//! Carrying a plan out: one deployment a service, and what a repeated request led to.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mcp_proto::{convert, v1};
use mcp_spec::name::{ComponentName, ServiceName};
use mcp_spec::plan::{Purpose, ServicePlan};
use mcp_spec::revision::CommitId;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use tonic::{Response, Status};

use super::Deployments;
use super::follow::{Updates, follow};
use super::request::{RequestKey, submit_failure};
use super::settled::{blocked_deployment, unchanged_deployment};
use crate::auth::Identity;
use crate::deploy::{Ended, Order, Replan, Replanned, Submission, SubmitError, Taken};
use crate::planning::{PlanError, Planned};
use crate::registry::{DeploymentRow, RequestAdmission, Trigger};
use crate::rpc::status;

/// The scope of requests for deployments.
pub(super) const SCOPE: &str = "deployments";

/// What a request leads to beside the deployments that are written down themselves.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    /// The services that are deployed, and to which revision.
    parts: Vec<(ServiceName, CommitId)>,
    /// The answers for services of which nothing is begun, as they go over the wire, in base64.
    settled: String,
}

fn reused(request: &RequestKey) -> Status {
    submit_failure(&SubmitError::RequestReused {
        request_id: request.id.clone(),
    })
}

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
        let mut submissions = Vec::new();
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
            submissions.push(Submission {
                replan: replan(&service),
                plan: service,
                plan_id,
                order,
                request_id: request.id.clone(),
                request_digest: request.digest,
                component: only.cloned(),
                signer,
            });
        }
        let admitting = self.admitting.clone().lock_owned().await;
        if let Some(first) = self.remember(&request, &submissions, &settled).await? {
            drop(admitting);
            return Ok(self.first_result(&request, Some(first)).await?.0);
        }
        tracing::info!(
            subject = identity.subject, trigger = order.trigger.as_str(), plan = %plan_id,
            deployments = submissions.len(), "deploying"
        );
        // A client that goes away meanwhile changes nothing: all of it is taken on, or none.
        let agent = self.agent.clone();
        let admitted = self.agent.work.spawn(async move {
            let _admitting = admitting;
            let mut parts = Vec::new();
            for submission in submissions {
                let mut aborted =
                    unchanged_deployment(&agent, &submission.plan, submission.order.trigger);
                match agent.deployer.submit(submission).await {
                    Ok(taken) => parts.push(taken),
                    Err(error) if parts.is_empty() => return Err(submit_failure(&error)),
                    Err(error) => {
                        aborted.outcome = "aborted".to_owned();
                        aborted.error = error.to_string();
                        settled.push(aborted);
                    }
                }
            }
            Ok((parts, settled))
        });
        let (parts, settled) = admitted
            .await
            .map_err(|_| submit_failure(&SubmitError::Stopping))??;
        Ok(Response::new(follow(
            &self.agent,
            Some(message),
            parts,
            settled,
        )))
    }

    /// Writes down what a request leads to where its deployments alone would not tell, before any is
    /// taken on. Gives what the same request led to first.
    async fn remember(
        &self,
        request: &RequestKey,
        submissions: &[Submission],
        settled: &[v1::Deployment],
    ) -> Result<Option<Remembered>, Status> {
        if request.id.is_empty() || (submissions.len() == 1 && settled.is_empty()) {
            return Ok(None);
        }
        let parts = submissions.iter();
        let remembered = Remembered {
            parts: parts
                .map(|submission| (submission.plan.service.clone(), submission.plan.revision))
                .collect(),
            settled: BASE64.encode(
                v1::HistoryResponse {
                    deployments: settled.to_vec(),
                }
                .encode_to_vec(),
            ),
        };
        let answer = serde_json::to_string(&remembered).expect("names and texts alone");
        let admission = self
            .agent
            .registry
            .remember_request(
                request.id.clone(),
                SCOPE.to_owned(),
                request.digest,
                answer,
                self.agent.clock.now(),
            )
            .await
            .map_err(|error| status::registry(&error))?;
        match admission {
            RequestAdmission::New => Ok(None),
            RequestAdmission::Repeated(first) => {
                Ok(first.and_then(|first| serde_json::from_str(&first).ok()))
            }
            RequestAdmission::Conflict => Err(reused(request)),
        }
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

    /// What a repeated request led to when it came first, whole.
    pub(super) async fn repeated(
        &self,
        request: &RequestKey,
    ) -> Result<Option<Response<Updates>>, Status> {
        if request.id.is_empty() {
            return Ok(None);
        }
        // One that is being taken on is waited for.
        drop(self.admitting.lock().await);
        let noted = self
            .agent
            .registry
            .remembered_request(request.id.clone(), SCOPE.to_owned())
            .await
            .map_err(|error| status::registry(&error))?;
        let first = match noted {
            Some((digest, _)) if digest != request.digest => return Err(reused(request)),
            Some((_, answer)) => serde_json::from_str(&answer).ok(),
            None => None,
        };
        let is_noted = first.is_some();
        let (response, any) = self.first_result(request, first).await?;
        Ok((is_noted || any).then_some(response))
    }

    /// The deployments of a request as it came first, and whether there are any.
    async fn first_result(
        &self,
        request: &RequestKey,
        first: Option<Remembered>,
    ) -> Result<(Response<Updates>, bool), Status> {
        let rows = self
            .agent
            .registry
            .deployments_of_request(request.id.clone())
            .await
            .map_err(|error| status::registry(&error))?;
        if rows.iter().any(|row| row.request_digest != request.digest) {
            return Err(reused(request));
        }
        let mut settled = Vec::new();
        if let Some(first) = first {
            let bytes = BASE64.decode(&first.settled).unwrap_or_default();
            let kept = v1::HistoryResponse::decode(bytes.as_slice()).unwrap_or_default();
            settled.extend(kept.deployments);
            for (service, revision) in first.parts {
                if rows.iter().all(|row| row.service != service) {
                    settled.push(v1::Deployment {
                        node: self.agent.config.node.to_string(),
                        service: service.to_string(),
                        revision: revision.to_string(),
                        outcome: "aborted".to_owned(),
                        trigger: request.trigger.as_str().to_owned(),
                        error: "the agent was restarted before it was taken on; deploy again"
                            .to_owned(),
                        ..v1::Deployment::default()
                    });
                }
            }
        }
        let any = !rows.is_empty();
        let mut parts = Vec::new();
        for row in rows {
            parts.push(self.taken(row).await?);
        }
        let response = Response::new(follow(&self.agent, None, parts, settled));
        Ok((response, any))
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
