//! Start, stop, restart and purge: what an operator asks of what was deployed.

use std::collections::BTreeSet;

use mcp_proto::{convert, v1};
use mcp_spec::name::Target;
use tonic::{Code, Request, Response, Status};

use super::Deployments;
use super::carry_out::{order, part};
use super::follow::{Updates, follow};
use super::request::{
    RequestKey, check_consent, no_targets, plan_failure, require_services, targets_of,
};
use crate::auth::Role;
use crate::planning::Lifecycle;
use crate::registry::Trigger;
use crate::rpc::authenticate::{About, caller};
use crate::rpc::status::Failure;

impl Deployments {
    pub(super) async fn lifecycle(
        &self,
        request: Request<v1::LifecycleRequest>,
        lifecycle: Lifecycle,
    ) -> Result<Response<Updates>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        about.say_targets(&targets, &request.request_id);
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

    pub(super) async fn carry_out_purge(
        &self,
        request: Request<v1::PurgeRequest>,
    ) -> Result<Response<Updates>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        about.say_targets(&targets, &request.request_id);
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
