//! Bringing back what an emptied engine took along: what should run, as it was deployed.
//!
//! Whoever watches says what was lost; here it is deployed, service by service, whether its definition
//! says `auto` or not. What is made anew counts as lost no longer.

use std::collections::{BTreeMap, BTreeSet};

use mcp_spec::name::{ComponentKey, ComponentName, ServiceName};

use super::ledger::Attempt;
use super::{carry_out, failed};
use crate::Agent;
use crate::deploy::Replan;
use crate::registry::BLOCKED;

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

/// Brings one service back; `None` where there was nothing to do. What cannot be made ready (an image that
/// nobody has any more) is left out with what depends on it, and the others are brought back without.
pub(super) async fn attempt(
    agent: &Agent,
    service: &ServiceName,
    mut lost: BTreeSet<ComponentKey>,
) -> Option<Attempt> {
    let mut first = match bring_back(agent, service, lost.clone()).await {
        Brought::Tried(first) => first,
        Brought::Overtaken => return None,
        Brought::Nothing => {
            if let Err(error) = agent.registry.forget_lost(service.clone()).await {
                tracing::error!(%error, "cannot write down that nothing is lost");
            }
            return None;
        }
    };
    let mut unready = std::mem::take(&mut first.unready);
    while !unready.is_empty() {
        let relations = match agent.registry.deployed_of(service.clone()).await {
            Ok(rows) => rows.into_iter().map(|row| (row.key, row.spec.depends_on)),
            Err(_) => break,
        };
        let before = lost.len();
        lost = without(&lost, &unready, &relations.collect());
        if lost.is_empty() || lost.len() == before {
            break;
        }
        match bring_back(agent, service, lost.clone()).await {
            Brought::Tried(next) => unready = next.unready,
            Brought::Nothing | Brought::Overtaken => break,
        }
    }
    // As a whole it failed: what was left out is tried again after a pause.
    Some(first)
}

/// What is left of a service without these components and all that depends on them.
fn without(
    lost: &BTreeSet<ComponentKey>,
    unready: &[ComponentName],
    depends_on: &BTreeMap<ComponentKey, BTreeSet<ComponentName>>,
) -> BTreeSet<ComponentKey> {
    let mut out: BTreeSet<&ComponentName> = unready.iter().collect();
    loop {
        let before = out.len();
        for (key, dependencies) in depends_on {
            if dependencies
                .iter()
                .any(|dependency| out.contains(dependency))
            {
                out.insert(&key.component);
            }
        }
        if out.len() == before {
            break;
        }
    }
    lost.iter()
        .filter(|key| !out.contains(&key.component))
        .cloned()
        .collect()
}

/// What came of bringing components back.
enum Brought {
    /// It was tried.
    Tried(Attempt),
    /// There was nothing to do.
    Nothing,
    /// Another deployment took its place.
    Overtaken,
}

async fn bring_back(agent: &Agent, service: &ServiceName, lost: BTreeSet<ComponentKey>) -> Brought {
    let planned = match agent.planner.bring_back(&lost).await {
        Ok(planned) => planned,
        Err(error) => {
            let error = crate::error_chain(&error);
            tracing::warn!(%service, error, "cannot plan what is to be brought back");
            return Brought::Tried(failed(error));
        }
    };
    let plan_id = *planned.plan.id();
    let Some(plan) = planned.plan.into_services().pop() else {
        return Brought::Nothing;
    };
    if let Some(blocked) = plan.blocked.first() {
        let reason = &blocked.obstacle.reason;
        tracing::warn!(%service, reason, "bringing back is blocked");
        return Brought::Tried(failed(format!("{BLOCKED}{reason}")));
    }
    if plan.is_noop() {
        return Brought::Nothing;
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
    let tried = carry_out(agent, plan, plan_id, None, replan, Vec::new()).await;
    tried.map_or(Brought::Overtaken, Brought::Tried)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(component: &str) -> ComponentKey {
        format!("shop/{component}").parse().unwrap()
    }

    fn depending(pairs: &[(&str, &[&str])]) -> BTreeMap<ComponentKey, BTreeSet<ComponentName>> {
        pairs
            .iter()
            .map(|(component, on)| {
                let on = on.iter().map(|name| name.parse().unwrap()).collect();
                (key(component), on)
            })
            .collect()
    }

    #[test]
    fn what_cannot_be_made_ready_is_left_out_with_all_that_depends_on_it() {
        let relations = depending(&[
            ("db", &[]),
            ("api", &["db"]),
            ("web", &["api"]),
            ("cache", &[]),
        ]);
        let all: BTreeSet<ComponentKey> = relations.keys().cloned().collect();
        let names = |left: BTreeSet<ComponentKey>| {
            let names = left.into_iter().map(|key| key.component.to_string());
            names.collect::<Vec<_>>()
        };
        let db = ["db".parse().unwrap()];
        assert_eq!(names(without(&all, &db, &relations)), ["cache"]);
        let web = ["web".parse().unwrap()];
        assert_eq!(
            names(without(&all, &web, &relations)),
            ["api", "cache", "db"]
        );
        assert_eq!(without(&all, &[], &relations), all);
    }
}
