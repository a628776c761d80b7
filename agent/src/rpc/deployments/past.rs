//! Deployments by their ids: followed again, cancelled, and listed.

use mcp_proto::v1;
use mcp_spec::name::Target;
use tonic::{Code, Request, Response, Status};

use super::Deployments;
use super::follow::{Updates, follow};
use super::request::targets_of;
use crate::deploy::Cancelled;
use crate::registry::{DeploymentRow, Lookup};
use crate::rpc::authenticate::{About, caller};
use crate::rpc::components::deployment;
use crate::rpc::status::{self, Failure};

/// Deployments in a history where the client does not say.
const HISTORY: u32 = 20;

impl Deployments {
    pub(super) async fn attach_to(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<Updates>, Status> {
        let identity = caller(&request)?;
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
            identity.require_service(&row.service)?;
            parts.push(self.taken(row).await?);
        }
        Ok(Response::new(follow(&self.agent, None, parts, Vec::new())))
    }

    pub(super) async fn cancel_one(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let row = self.find(&request.into_inner().deployment_id).await?;
        about.say(format!("{} {}", row.service, row.id), "");
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

    pub(super) async fn past(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryResponse>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let targets = identity.visible(targets_of(request.target.as_slice())?)?;
        let limit = if request.limit == 0 {
            HISTORY
        } else {
            request.limit.min(1000)
        };
        let registry = &self.agent.registry;
        let mut rows = Vec::new();
        let each: Vec<Option<Target>> = match targets.as_slice() {
            [] => vec![None],
            some => some.iter().cloned().map(Some).collect(),
        };
        for target in each {
            let of_one = registry.history(target, limit).await;
            rows.extend(of_one.map_err(|error| status::registry(&error))?);
        }
        // Of several services the newest together, as of all.
        rows.sort_by_key(|row| std::cmp::Reverse(row.created_at));
        rows.truncate(limit as usize);
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

    pub(super) async fn find(&self, id: &str) -> Result<DeploymentRow, Status> {
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
}
