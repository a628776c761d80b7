//! A deployment whose turn has come: planned again where another one ran since, then executed.

use std::collections::BTreeMap;
use std::sync::Arc;

use mcp_spec::name::ComponentName;
use mcp_spec::plan::{ActionKind, ServicePlan};
use tokio_util::sync::CancellationToken;

use super::context::Context;
use super::execution::Execution;
use super::feed::Ended;
use super::lanes::{Superseded, Waiting};
use super::line::Line;
use super::recover::Journalled;
use super::{Replanned, outcome};
use crate::registry::{DeployedRow, DeploymentRow, DeploymentState, Outcome};

pub(super) async fn end_unbegun(
    context: &Context,
    waiting: Waiting,
    state: DeploymentState,
    outcome: Outcome,
    why: &str,
) {
    let Waiting { mut row, feed, .. } = waiting;
    row.state = state;
    row.outcome = Some(outcome);
    row.error = Some(why.to_owned());
    row.finished_at = Some(context.clock.now());
    let finish = outcome::finish_bare(&row);
    context
        .insist("the end of a deployment", || {
            context.registry.finish(finish.clone())
        })
        .await;
    feed.end(Ended {
        row,
        components: Vec::new(),
    });
}

pub(super) async fn take_turn(
    context: Arc<Context>,
    waiting: Waiting,
    waited: bool,
    line: Arc<Line>,
    cancel: CancellationToken,
    superseded: Superseded,
) -> Ended {
    let Waiting {
        submission,
        mut row,
        feed,
    } = waiting;
    let mut plan = submission.plan;
    let mut order = submission.order;
    let fail = |mut row: DeploymentRow, why: String| {
        let context = context.clone();
        async move {
            row.state = DeploymentState::Aborted;
            row.outcome = Some(Outcome::Aborted);
            row.error = Some(why);
            row.finished_at = Some(context.clock.now());
            let finish = outcome::finish_bare(&row);
            context
                .insist("the end of a deployment", || {
                    context.registry.finish(finish.clone())
                })
                .await;
            Ended {
                row,
                components: Vec::new(),
            }
        }
    };
    let old: BTreeMap<ComponentName, DeployedRow> =
        match context.registry.deployed_of(row.service.clone()).await {
            Ok(rows) => rows
                .into_iter()
                .map(|row| (row.key.component.clone(), row))
                .collect(),
            Err(error) => return fail(row, error.to_string()).await,
        };
    // Another deployment may have run, and ended, since the plan was made.
    if waited || is_stale(&plan, &old) {
        Replanned {
            plan,
            restores: order.restores,
        } = match (submission.replan)().await {
            Ok(replanned) => replanned,
            Err(why) => return fail(row, why).await,
        };
        let journalled = Journalled {
            plan: plan.clone(),
            purpose: order.purpose,
            volumes: order.volumes,
            restores: order.restores.clone(),
        };
        row.plan = journalled.text();
        row.state = DeploymentState::Planned;
        if row.revision != Some(plan.revision) {
            row.revision = Some(plan.revision);
            row.signer = match context.registry.revision(plan.revision).await {
                Ok(revision) => revision.map(|revision| revision.signer),
                Err(error) => return fail(row, error.to_string()).await,
            };
        }
        if let Err(error) = context
            .registry
            .set_plan(
                row.id.clone(),
                row.revision,
                row.signer.clone(),
                row.plan.clone(),
                row.plan_id.clone(),
            )
            .await
        {
            return fail(row, error.to_string()).await;
        }
        if let Some(blocked) = plan.blocked.first() {
            let why = blocked.obstacle.reason.clone();
            return fail(row, why).await;
        }
    }
    feed.tell(None, "planned", "");
    let execution = Execution::new(context, row.id.clone(), plan, order, old, feed, line)
        .cancelled_by(cancel, superseded);
    execution.run(row).await
}

/// Whether a plan starts from containers that are not the registered ones any more, or would start what an
/// operator has stopped since.
fn is_stale(plan: &ServicePlan, old: &BTreeMap<ComponentName, DeployedRow>) -> bool {
    plan.actions.iter().any(|action| {
        let row = old.get(&action.component);
        let planned = action.before.as_ref().map(|before| &before.container);
        let starts = action.kind != ActionKind::None
            && !action.clears_stop
            && action.after.as_ref().is_some_and(|after| after.running);
        planned != row.map(|row| &row.container)
            || starts && row.is_some_and(|row| row.stopped_by.is_some())
    })
}
