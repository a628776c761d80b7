//! What operators ask of the agent, as its API does it: plan, submit, wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mcp_agent::Agent;
use mcp_agent::adoption::{Chosen, adopt, forget};
use mcp_agent::deploy::{Cancelled, Order, Replan, Submission, Taken};
use mcp_agent::planning::{Lifecycle, Planned, Wish};
use mcp_agent::registry::{HoldRow, Trigger};
use mcp_agent::revisions::Limits;
use mcp_agent::source::Way;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ServiceName, Target};
use mcp_spec::plan::Options;
use tokio::time::{Instant, sleep};

use super::engine::Engine;
use super::history::{History, library};
use super::life::Life;

/// One request.
#[derive(Debug, Clone)]
pub(crate) enum Wanted {
    Deploy {
        target: Target,
        revision: Option<String>,
        force: bool,
    },
    Rollback {
        target: Target,
        jobs: bool,
    },
    Lifecycle(Lifecycle, ServiceName),
    Purge,
    Hold(ComponentKey, bool),
    Adopt(Chosen),
    Forget(Target),
    /// Holds what the agent is about to change by itself, as soon as there is such a thing.
    Overrule,
    Cancel,
}

/// Carries a request out, to its end.
pub(crate) async fn ask(agent: Arc<Agent>, engine: Arc<Engine>, wanted: Wanted, request: String) {
    engine
        .trace
        .line(|| format!("operator: {wanted:?} as {request}"));
    let said = match wanted {
        Wanted::Cancel => cancel(&agent, &engine).await,
        Wanted::Hold(key, held) => hold(&agent, key, held).await,
        Wanted::Overrule => overrule(&agent, &engine).await,
        Wanted::Adopt(chosen) => match adopt(&agent, "kyle", chosen, false).await {
            Ok(adopted) => format!("adopted {}", adopted.len()),
            Err(error) => format!("not adopted: {error}"),
        },
        Wanted::Forget(target) => match forget(&agent, "kyle", &[target], true).await {
            Ok(rows) => format!("let go of {}", rows.len()),
            Err(error) => format!("not let go of: {error}"),
        },
        wanted => carry_out(&agent, &engine, wanted, &request).await,
    };
    engine.trace.line(|| format!("operator: {request}: {said}"));
}

async fn cancel(agent: &Agent, engine: &Engine) -> String {
    let Ok(open) = agent.registry.unfinished().await else {
        return "cannot read".to_owned();
    };
    match open.last() {
        Some(row) => {
            let said = agent.deployer.cancel(row.id.clone()).await;
            if said == Cancelled::Cancelled {
                engine.model.cancelled(&row.id);
            }
            format!("{said:?}")
        }
        None => "nothing to cancel".to_owned(),
    }
}

/// Longest time to wait for something that can be overruled: the agent looks around once a minute.
const OVERRULE_WAIT: Duration = Duration::from_secs(70);

async fn overrule(agent: &Agent, engine: &Engine) -> String {
    let until = Instant::now() + OVERRULE_WAIT;
    while Instant::now() < until {
        if let Some(key) = engine.model.about_to_change() {
            return hold(agent, key, true).await;
        }
        sleep(Duration::from_millis(20)).await;
    }
    "nothing to overrule".to_owned()
}

async fn hold(agent: &Agent, key: ComponentKey, held: bool) -> String {
    let row = match agent.registry.deployed(key.clone()).await {
        Ok(Some(row)) => row,
        other => return format!("not held: {other:?}"),
    };
    let hold = held.then(|| HoldRow {
        revision: row.revision,
        by: "kyle".to_owned(),
        at: agent.clock.now(),
        reason: None,
    });
    format!(
        "{:?}",
        agent.registry.set_hold(vec![(key, hold)], Vec::new()).await
    )
}

async fn plan(agent: &Agent, wanted: &Wanted) -> Result<Planned, String> {
    let planner = &agent.planner;
    let planned = match wanted {
        Wanted::Deploy {
            target,
            revision,
            force,
        } => {
            let wish = Wish {
                targets: Some(vec![target.clone()]),
                revision: revision.clone(),
                options: Options {
                    force: *force,
                    ..Options::default()
                },
                draft: Vec::new(),
                auto: false,
                resolve_tags: true,
            };
            planner.deploy(&wish).await
        }
        Wanted::Rollback { target, jobs } => {
            let options = Options {
                jobs: *jobs,
                ..Options::default()
            };
            planner
                .rollback(std::slice::from_ref(target), None, options)
                .await
        }
        Wanted::Lifecycle(lifecycle, service) => {
            planner
                .lifecycle(*lifecycle, &BTreeSet::from([service.clone()]))
                .await
        }
        Wanted::Purge => planner.purge(None).await,
        Wanted::Hold(..)
        | Wanted::Adopt(_)
        | Wanted::Forget(_)
        | Wanted::Overrule
        | Wanted::Cancel => unreachable!("these are no plans"),
    };
    planned.map_err(|error| error.to_string())
}

const fn trigger(wanted: &Wanted) -> Trigger {
    match wanted {
        Wanted::Rollback { .. } => Trigger::Rollback,
        Wanted::Lifecycle(lifecycle, _) => lifecycle.trigger(),
        Wanted::Purge => Trigger::Purge,
        _ => Trigger::Deploy,
    }
}

async fn carry_out(agent: &Arc<Agent>, engine: &Engine, wanted: Wanted, request: &str) -> String {
    let planned = match plan(agent, &wanted).await {
        Ok(planned) => planned,
        Err(why) => return format!("no plan: {why}"),
    };
    // A slow node, or somebody who reads the plan: the world goes on meanwhile.
    sleep(engine.dallies()).await;
    let plan_id = *planned.plan.id();
    let mut said = Vec::new();
    for service in planned.plan.into_services() {
        if let Some(blocked) = service.blocked.first() {
            said.push(format!("blocked: {}", blocked.obstacle.reason));
            continue;
        }
        if service.is_noop() && trigger(&wanted) != Trigger::Stop {
            said.push("nothing to do".to_owned());
            continue;
        }
        let restores: BTreeMap<_, _> = planned
            .restores
            .iter()
            .filter(|(key, _)| key.service == service.service)
            .map(|(key, id)| (key.component.clone(), *id))
            .collect();
        let submission = Submission {
            replan: again(agent, &wanted),
            plan_id,
            order: Order {
                actor: "kyle".to_owned(),
                trigger: trigger(&wanted),
                purpose: planned.purpose,
                volumes: false,
                restores,
            },
            request_id: request.to_owned(),
            request_digest: Digest::of(format!("{wanted:?}").as_bytes()),
            component: None,
            signer: None,
            plan: service,
        };
        let taken = agent.deployer.submit(submission).await;
        said.push(match taken {
            Ok(Taken::Feed(feed)) => match feed.ended().await {
                Some(ended) => format!("{:?}", ended.row.outcome),
                None => "no end".to_owned(),
            },
            Ok(Taken::Ended(ended)) => format!("had ended {:?}", ended.row.outcome),
            Err(error) => format!("not taken: {error}"),
        });
    }
    said.join("; ")
}

fn again(agent: &Arc<Agent>, wanted: &Wanted) -> Replan {
    let (agent, wanted) = (Arc::downgrade(agent), wanted.clone());
    Box::new(move || {
        let (agent, wanted) = (agent.clone(), wanted.clone());
        Box::pin(async move {
            let agent = agent.upgrade().ok_or("the agent is gone")?;
            plan(&agent, &wanted)
                .await?
                .into_part()
                .ok_or_else(|| "nothing is left to do".to_owned())
        })
    })
}

/// Pushes the next revisions of the history, up to `place`.
pub(crate) async fn push(
    agent: Arc<Agent>,
    engine: Arc<Engine>,
    history: Arc<History>,
    life: Arc<Life>,
    place: usize,
) {
    for step in &history.revisions[..=place] {
        let head = agent.revisions.head();
        let at = history
            .revisions
            .iter()
            .position(|known| Some(known.commit) == head);
        let next = history
            .revisions
            .iter()
            .position(|known| known.commit == step.commit);
        if next <= at {
            continue;
        }
        let (store, pack, commit) = (Arc::clone(&agent.revisions), step.pack.clone(), step.commit);
        let now = agent.clock.now();
        let (model, life) = (Arc::clone(&engine.model), Arc::clone(&life));
        let accepted = mcp_agent::blocking::blocking(move || {
            let limits = Limits::default();
            let accepted = store.receive(&pack[..], head, commit, &library().node, &limits, now);
            // Where the power failed in the middle of it nobody was told.
            if accepted.is_ok() && !life.is_over() {
                model.head_is(next);
            }
            accepted
        })
        .await;
        match accepted {
            Ok(accepted) => {
                engine
                    .trace
                    .line(|| format!("operator: pushed revision {next:?}"));
                agent.arrived(Way::Push, "kyle", &accepted).await;
            }
            Err(error) => engine
                .trace
                .line(|| format!("operator: push refused: {error}")),
        }
    }
}
