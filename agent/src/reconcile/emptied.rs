//! Bringing back what an emptied engine took along: what should run, as it was deployed.
//!
//! Whoever watches says what was lost; here it is deployed, service by service, whether its definition
//! says `auto` or not. What is made anew counts as lost no longer.

use std::collections::{BTreeMap, BTreeSet};

use mcp_spec::name::{ComponentKey, ServiceName};

use super::ledger::Attempt;
use super::{carry_out, failed};
use crate::Agent;
use crate::deploy::Replan;

/// What was lost and has yet to be brought back.
pub(super) async fn lost(agent: &Agent) -> BTreeMap<ServiceName, BTreeSet<ComponentKey>> {
    let rows = match agent.registry.lost().await {
        Ok(rows) => rows,
        Err(error) => {
            tracing::error!(%error, "cannot read what an emptied engine lost");
            return BTreeMap::new();
        }
    };
    let mut lost: BTreeMap<ServiceName, BTreeSet<ComponentKey>> = BTreeMap::new();
    for row in rows {
        let service = row.key.service.clone();
        lost.entry(service).or_default().insert(row.key);
    }
    lost
}

/// Brings one service back; `None` where there was nothing to do.
pub(super) async fn attempt(
    agent: &Agent,
    service: &ServiceName,
    lost: BTreeSet<ComponentKey>,
) -> Option<Attempt> {
    let planned = match agent.planner.bring_back(&lost).await {
        Ok(planned) => planned,
        Err(error) => {
            let error = crate::error_chain(&error);
            tracing::warn!(%service, error, "cannot plan what is to be brought back");
            return Some(failed(error));
        }
    };
    let plan_id = *planned.plan.id();
    let plan = planned.plan.into_services().pop()?;
    if let Some(blocked) = plan.blocked.first() {
        let reason = &blocked.obstacle.reason;
        tracing::warn!(%service, reason, "bringing back is blocked");
        return Some(failed(format!("blocked: {reason}")));
    }
    if plan.is_noop() {
        if let Err(error) = agent.registry.forget_lost(service.clone()).await {
            tracing::error!(%error, "cannot write down that nothing is lost");
        }
        return None;
    }
    tracing::warn!(%service, "the engine's store was emptied: bringing back what should run");
    let planner = agent.planner.clone();
    let replan: Replan = Box::new(move || {
        let (planner, lost) = (planner.clone(), lost.clone());
        Box::pin(async move {
            let planned = planner.bring_back(&lost).await;
            planned
                .map_err(|error| error.to_string())?
                .into_part()
                .ok_or_else(|| "nothing is left to do".to_owned())
        })
    });
    carry_out(agent, plan, plan_id, None, replan, Vec::new()).await
}
