//! Rollbacks.

use mcp_proto::v1;
use mcp_spec::name::Target;
use mcp_spec::plan::Options;
use tonic::{Code, Request, Response, Status};

use super::Deployments;
use super::carry_out::{order, part};
use super::follow::Updates;
use super::request::{
    RequestKey, no_targets, plan_failure, require_services, revision_of, targets_of,
};
use crate::registry::Trigger;
use crate::rpc::authenticate::{About, caller};
use crate::rpc::status::Failure;

impl Deployments {
    pub(super) async fn carry_out_rollback(
        &self,
        request: Request<v1::RollbackRequest>,
    ) -> Result<Response<Updates>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        about.say_targets(&targets, &request.request_id);
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
}
