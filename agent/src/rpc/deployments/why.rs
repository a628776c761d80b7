//! Why a component runs what it runs.

use mcp_proto::{convert, v1};
use mcp_spec::diff::diff;
use mcp_spec::name::{ComponentKey, Target};
use tonic::Status;

use super::Deployments;
use super::trouble::{Known, troubles};
use crate::registry::{
    DeployedRow, EventQuery, Outcome, PauseRow, Quarantined, RevisionFilter, RevisionRow,
};
use crate::rpc::components::{View, deployment, is_amiss};
use crate::rpc::status;

/// Deployments that are looked at for the last one that did something.
const LAST: u32 = 20;

/// Events that are looked at for what is wrong now.
const EVENTS: u32 = 200;

impl Deployments {
    /// The revision that gave a component the spec that it runs: its own may be a later one that
    /// left the spec as it was.
    async fn spec_revision(&self, row: &DeployedRow) -> Result<Option<RevisionRow>, Status> {
        let failed = |error| status::registry(&error);
        let registry = &self.agent.registry;
        let Some(at) = registry.revision(row.revision).await.map_err(failed)? else {
            return Ok(None);
        };
        let changing = registry
            .revisions(RevisionFilter {
                service: Some(row.key.service.clone()),
                component: Some(row.key.component.clone()),
                limit: 1000,
            })
            .await
            .map_err(failed)?;
        Ok(changing
            .into_iter()
            .find(|revision| revision.seq <= at.seq)
            .or(Some(at)))
    }

    /// Why one component runs what it runs.
    pub(super) async fn explain(
        &self,
        view: &View,
        component: v1::Component,
    ) -> Result<v1::Why, Status> {
        let registry = &self.agent.registry;
        let node = &self.agent.config.node;
        let failed = |error| status::registry(&error);
        let key = |key: &ComponentKey| {
            key.service.as_str() == component.service
                && key.component.as_str() == component.component
        };
        let row = view.rows.iter().find(|row| key(&row.key));
        let made = match row {
            Some(row) => registry
                .deployment(row.deployment.to_string())
                .await
                .map_err(failed)?
                .one(),
            None => None,
        };
        let target = target(&component);
        let last = registry
            .history(target.clone(), LAST)
            .await
            .map_err(failed)?
            .into_iter()
            .find(|last| last.outcome != Some(Outcome::Unchanged));
        let mut records = registry
            .records(made.iter().chain(&last).map(|row| row.id.clone()).collect())
            .await
            .map_err(failed)?;
        let mut described = |deployment_row: &crate::registry::DeploymentRow| {
            let records = records.remove(&deployment_row.id).unwrap_or_default();
            deployment(node, deployment_row, &records)
        };
        let (pauses, _) = registry.reconciling().await.map_err(failed)?;
        let pause = pauses.iter().find(|pause| {
            pause.service.as_str() == component.service
                && pause.pause_ms > 0
                && is_amiss(&component)
        });
        let quarantined = registry.quarantined().await.map_err(failed)?;
        let events = registry
            .events(EventQuery {
                targets: target.into_iter().collect(),
                limit: EVENTS,
                newest: true,
                ..EventQuery::default()
            })
            .await
            .map_err(failed)?;
        let wanted = view
            .wanted
            .as_ref()
            .and_then(|set| {
                set.services
                    .iter()
                    .find(|(name, _)| name.as_str() == component.service)
            })
            .and_then(|(_, service)| {
                let components = service.components.iter();
                components
                    .into_iter()
                    .find(|(name, _)| name.as_str() == component.component)
            })
            .map(|(_, spec)| spec);
        let is_meant = |spec: &&Quarantined| {
            let wanted = wanted.is_some_and(|wanted| wanted.digest() == spec.spec_digest);
            let runs = row.is_some_and(|row| row.spec_digest == spec.spec_digest);
            key(&spec.key) && ((component.quarantined && wanted) || (component.unconverged && runs))
        };
        let troubles = troubles(
            &component,
            &Known {
                events: &events,
                quarantined: quarantined.iter().filter(is_meant).collect(),
                pause,
            },
        );
        let Some(row) = row else {
            return Ok(v1::Why {
                last: last.as_ref().map(&mut described),
                wanted_revision: component.head_revision.clone(),
                wanted_reason: "never deployed here: mcp deploy brings it up".to_owned(),
                troubles,
                component: Some(component),
                ..v1::Why::default()
            });
        };
        let revision = self.spec_revision(row).await?;
        let made = made.as_ref().map(&mut described);
        let last = last
            .as_ref()
            .filter(|last| {
                made.as_ref()
                    .is_none_or(|made| made.deployment_id != last.id.as_str())
            })
            .map(&mut described);
        let changed = made
            .as_ref()
            .and_then(|made| {
                made.components
                    .iter()
                    .find(|part| part.component == component.component)
            })
            .map(|part| part.changes.clone())
            .unwrap_or_default();
        let wanted_reason = why_not(row, wanted.is_some(), &component, pause);
        let spec_commit = revision
            .as_ref()
            .map_or(row.revision, |revision| revision.commit);
        Ok(v1::Why {
            spec_revision: if spec_commit.is_none() {
                String::new()
            } else {
                spec_commit.to_string()
            },
            deployment: made,
            last,
            subject: revision
                .as_ref()
                .map(|revision| revision.subject.clone())
                .unwrap_or_default(),
            signer: revision
                .as_ref()
                .map(|revision| revision.signer.clone())
                .unwrap_or_default(),
            authored_at: revision
                .map(|revision| revision.authored_at.to_string())
                .unwrap_or_default(),
            changed,
            wanted: wanted
                .map(|wanted| diff(&row.spec, wanted))
                .unwrap_or_default()
                .iter()
                .map(convert::field_change)
                .collect(),
            wanted_revision: component.head_revision.clone(),
            wanted_reason,
            troubles,
            component: Some(component),
        })
    }
}

/// A component as a target.
fn target(component: &v1::Component) -> Option<Target> {
    Some(Target {
        node: None,
        service: component.service.parse().ok()?,
        component: Some(component.component.parse().ok()?),
    })
}

/// Why what the head wants does not run.
fn why_not(
    row: &DeployedRow,
    wanted: bool,
    component: &v1::Component,
    pause: Option<&PauseRow>,
) -> String {
    if let Some(stop) = &row.stopped_by {
        return format!("stopped by {}", stop.by);
    }
    if let Some(hold) = &row.hold {
        return format!("held at {} by {}", hold.revision.short(), hold.by);
    }
    if row.revision.is_none() && !wanted {
        return "adopted: no definition has it yet".to_owned();
    }
    if !wanted {
        return "orphaned: the head no longer defines it".to_owned();
    }
    if !component.contested.is_empty() {
        return format!(
            "contested: {}, again and again; repaired next after {}",
            component.contested, component.next_repair_at
        );
    }
    if component.quarantined {
        return "quarantined here: it failed its gate".to_owned();
    }
    if component.unconverged {
        return "not converged: what runs is not what was made; mcp deploy tries again".to_owned();
    }
    if let Some(pause) = pause {
        return format!("the agent tried in vain: {}; it tries again", pause.cause);
    }
    if component.behind > 0 {
        return "pending: not deployed yet".to_owned();
    }
    String::new()
}
