//! Services for which nothing was begun: what is unchanged, and what is blocked.

use mcp_proto::v1;
use mcp_spec::plan::ServicePlan;

use crate::Agent;
use crate::registry::Trigger;

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

pub(super) fn unchanged_deployment(
    agent: &Agent,
    service: &ServicePlan,
    trigger: Trigger,
) -> v1::Deployment {
    settled(agent, service, trigger, "unchanged")
}

pub(super) fn blocked_deployment(
    agent: &Agent,
    service: &ServicePlan,
    trigger: Trigger,
) -> v1::Deployment {
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
