//! Holds, set and released.

use mcp_proto::v1;
use mcp_spec::name::Target;
use tonic::{Request, Response, Status};

use super::Deployments;
use super::request::{no_targets, require_services, targets_of};
use crate::auth::Identity;
use crate::registry::{DeployedRow, HoldRow, NewEvent};
use crate::rpc::authenticate::{About, caller};
use crate::rpc::components::View;
use crate::rpc::status;

impl Deployments {
    pub(super) async fn hold(
        &self,
        request: Request<v1::HoldRequest>,
    ) -> Result<Response<v1::HoldResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let request = request.into_inner();
        let targets = targets_of(&request.targets)?;
        about.say_targets(&targets, "");
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

    pub(super) async fn release(
        &self,
        request: Request<v1::ReleaseRequest>,
    ) -> Result<Response<v1::ReleaseResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let targets = targets_of(&request.into_inner().targets)?;
        about.say_targets(&targets, "");
        require_services(&identity, Some(&targets))?;
        let components = self
            .change_holds(&targets, "released", &identity, |_| None)
            .await?;
        Ok(Response::new(v1::ReleaseResponse { components }))
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
                // What is not held is not released.
                if hold.is_none() && row.hold.is_none() {
                    continue;
                }
                events.push(NewEvent {
                    at: self.agent.clock.now(),
                    service: Some(row.key.service.clone()),
                    component: Some(row.key.component.clone()),
                    kind: word.to_owned(),
                    reason: "operator".to_owned(),
                    message: format!("{} {word} by {}", row.key, identity.subject),
                    revision: Some(row.revision).filter(|revision| !revision.is_none()),
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
        let changed: Vec<_> = changes.iter().map(|(key, _)| key.clone()).collect();
        registry
            .set_hold(changes, events)
            .await
            .map_err(|error| status::registry(&error))?;
        let view = View::read(&self.agent)
            .await
            .map_err(|error| status::registry(&error))?;
        let mut components = view.components(targets, None);
        components.retain(|component| {
            changed.iter().any(|key| {
                key.service.as_str() == component.service
                    && key.component.as_str() == component.component
            })
        });
        Ok(components)
    }
}
