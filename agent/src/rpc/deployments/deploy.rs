//! Plans and deploys of a revision.

use mcp_proto::{convert, v1};
use mcp_spec::name::{ComponentKey, Target};
use mcp_spec::plan::Options;
use tonic::{Request, Response, Status};

use super::Deployments;
use super::carry_out::{order, part};
use super::follow::Updates;
use super::request::{
    RequestKey, check_again, check_consent, check_plan_id, no_targets, plan_failure,
    require_services, revision_of, targets_of,
};
use crate::adoption::{self, Chosen};
use crate::auth::{Identity, Role};
use crate::planning::{Supposed, Wish};
use crate::registry::Trigger;
use crate::rpc::authenticate::{About, caller};
use crate::rpc::status;
use crate::rpc::workloads::adopt_failure;

impl Deployments {
    pub(super) async fn plan_of(
        &self,
        request: Request<v1::PlanRequest>,
    ) -> Result<Response<v1::Plan>, Status> {
        let identity = caller(&request)?;
        let request = request.into_inner();
        let targets = identity.visible(targets_of(&request.targets)?)?;
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
        let supposed = self.supposed(&identity, &request.supposed).await?;
        let planned = self
            .agent
            .planner
            .deploy_supposing(&wish, &supposed)
            .await
            .map_err(|error| plan_failure(&error))?;
        Ok(Response::new(convert::plan(
            &planned.plan,
            self.agent.revisions.head(),
        )))
    }

    /// The containers that a plan takes for adopted. They are looked into, so it takes who may adopt them.
    async fn supposed(
        &self,
        identity: &Identity,
        messages: &[v1::Supposed],
    ) -> Result<Vec<Supposed>, Status> {
        if messages.is_empty() {
            return Ok(Vec::new());
        }
        identity.require(Role::Operator)?;
        let mut chosen = Vec::new();
        for message in messages {
            let targets = targets_of(message.target.as_slice())?;
            let Some(target) = targets.into_iter().next() else {
                return Err(no_targets());
            };
            identity.require_service(&target.service)?;
            let component = target
                .component
                .ok_or_else(|| status::bad_request("a service is no component"))?;
            let key = ComponentKey::new(target.service, component);
            let id = message.container_id.chars().take(128).collect();
            chosen.push(Chosen::As(id, key));
        }
        adoption::suppose(&self.agent, &identity.subject, chosen)
            .await
            .map_err(|error| adopt_failure(&error))
    }

    pub(super) async fn carry_out_deploy(
        &self,
        request: Request<v1::DeployRequest>,
    ) -> Result<Response<Updates>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        about.say_targets(&targets, &request.request_id);
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
}
