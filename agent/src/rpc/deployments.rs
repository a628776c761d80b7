//! `mcp.v1.Deployments`: what changes containers.

use std::sync::Arc;

use mcp_proto::v1;
use tonic::{Request, Response, Status};

mod carry_out;
mod deploy;
mod follow;
mod holds;
mod lifecycle;
mod past;
mod request;
mod rollback;
mod settled;
#[cfg(test)]
mod tests;
mod trouble;
mod why;

use follow::Updates;

use super::authenticate::caller;
use super::components::View;
use super::status;
use crate::Agent;
use crate::planning::Lifecycle;
use request::targets_of;

/// The service.
#[derive(Debug)]
pub(super) struct Deployments {
    agent: Arc<Agent>,
    /// Held while the deployments of a request are taken on: a repetition sees all of them.
    admitting: Arc<tokio::sync::Mutex<()>>,
}

impl Deployments {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self {
            agent,
            admitting: Arc::default(),
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
        self.plan_of(request).await
    }

    async fn deploy(
        &self,
        request: Request<v1::DeployRequest>,
    ) -> Result<Response<Updates>, Status> {
        self.carry_out_deploy(request).await
    }

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<Updates>, Status> {
        self.attach_to(request).await
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        self.cancel_one(request).await
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<Updates>, Status> {
        self.carry_out_rollback(request).await
    }

    async fn set_hold(
        &self,
        request: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::HoldResponse>, Status> {
        self.hold(request).await
    }

    async fn release_hold(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        self.release(request).await
    }

    async fn history(
        &self,
        request: Request<v1::HistoryRequest>,
    ) -> Result<Response<v1::HistoryResponse>, Status> {
        self.past(request).await
    }

    async fn purge(&self, request: Request<v1::PurgeRequest>) -> Result<Response<Updates>, Status> {
        self.carry_out_purge(request).await
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

    async fn why(
        &self,
        request: Request<v1::WhyRequest>,
    ) -> Result<Response<v1::WhyResponse>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let targets = identity.visible(targets_of(request.target.as_slice())?)?;
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
}
