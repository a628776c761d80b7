//! Recovery: what a crash left half done comes to a defined state, by the journal and by looking.
//!
//! Before the line a deployment is aborted and cleared away. After it the switch is made again, or
//! the compensation, whichever the journal names; each step of both settles doubt by looking, so what
//! was done already stays done, and recovery done twice does nothing the second time.

use std::collections::BTreeMap;
use std::sync::Arc;

use mcp_spec::name::ComponentName;
use mcp_spec::plan::ServicePlan;
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::execute::Abort;
use super::execution::{Execution, Order};
use super::failure::PartFailure;
use super::feed::{Ended, Feed};
use super::line::Line;
use super::prepare::{Made, Making, STEP_MAKE};
use super::switch::{Outcome as Switching, STEP_SWITCH};
use crate::registry::{
    DeployedRow, DeploymentRow, DeploymentState, Outcome, RegistryError, StepPhase, StepRow,
};

/// What the registry keeps of a deployment for its execution: opaque to the registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Journalled {
    /// The plan.
    pub plan: ServicePlan,
    /// Why it was made.
    pub purpose: Option<mcp_spec::plan::Purpose>,
    /// Whether volumes go too.
    pub volumes: bool,
    /// The history rows that a rollback restores.
    pub restores: BTreeMap<ComponentName, i64>,
}

impl Journalled {
    /// The text that the registry keeps.
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self)
            .expect("a plan holds only strings, numbers and maps keyed by strings")
    }
}

/// The journal's word for [`Cause`].
pub(super) const STEP_FAIL: &str = "fail";

/// Why a component failed, journalled when the compensation begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Cause {
    /// What went wrong.
    pub text: String,
    /// Whether it failed its gate.
    pub gate: bool,
}

/// What the journal says was about to be made, by component.
pub(super) fn makings(steps: &[StepRow]) -> BTreeMap<ComponentName, Making> {
    read(steps, STEP_MAKE, StepPhase::Begun)
}

/// What the journal says was made, by component.
pub(super) fn made(steps: &[StepRow]) -> BTreeMap<ComponentName, Made> {
    read(steps, STEP_MAKE, StepPhase::Done)
}

fn read<T: for<'a> Deserialize<'a>>(
    steps: &[StepRow],
    word: &str,
    phase: StepPhase,
) -> BTreeMap<ComponentName, T> {
    steps
        .iter()
        .filter(|step| step.step == word && step.phase == phase)
        .filter_map(|step| {
            let component = step.component.clone()?;
            let data = serde_json::from_str(&step.data).ok()?;
            Some((component, data))
        })
        .collect()
}

/// The components whose switch had begun, in order.
fn begun(steps: &[StepRow]) -> Vec<ComponentName> {
    steps
        .iter()
        .filter(|step| step.step == STEP_SWITCH && step.phase == StepPhase::Begun)
        .filter_map(|step| step.component.clone())
        .collect()
}

/// Brings one deployment that a crash cut off to its end.
pub(super) async fn resume(
    context: Arc<Context>,
    row: DeploymentRow,
    feed: Arc<Feed>,
) -> Result<Ended, RegistryError> {
    let Ok(Journalled {
        plan,
        purpose,
        volumes,
        restores,
    }) = serde_json::from_str::<Journalled>(&row.plan)
    else {
        // A deployment that was admitted and never planned: nothing was begun.
        return give_up_unplanned(&context, row).await;
    };
    let steps = context.registry.steps(row.id.clone()).await?;
    let old: BTreeMap<ComponentName, DeployedRow> = context
        .registry
        .deployed_of(row.service.clone())
        .await?
        .into_iter()
        .map(|row| (row.key.component.clone(), row))
        .collect();
    let mut plan = plan;
    if row.state != DeploymentState::Committed {
        follow_remade(&mut plan, &old);
    }
    let line = Arc::new(Line::default());
    let order = Order {
        actor: row.actor.clone(),
        trigger: row.trigger,
        purpose,
        volumes,
        restores,
    };
    let execution = Execution::new(
        context,
        row.id.clone(),
        plan,
        order,
        old,
        feed,
        line.clone(),
    )
    .resumed();
    tracing::warn!(deployment = %row.id, service = %row.service, state = ?row.state, "going on with a deployment that was cut off");
    let ended = match row.state {
        DeploymentState::Switching | DeploymentState::Healthy => {
            line.cross();
            // What was touched before the crash has to be put back too, even where another component
            // fails now before it is this one's turn again.
            for component in begun(&steps) {
                execution.touch(&component);
            }
            execution.after_the_line(row, made(&steps)).await
        }
        DeploymentState::Compensating => {
            line.cross();
            for component in begun(&steps) {
                execution.touch(&component);
            }
            let failed = read::<Cause>(&steps, STEP_FAIL, StepPhase::Done)
                .into_iter()
                .map(|(component, Cause { text, gate })| {
                    (component, PartFailure::Earlier { text, gate })
                })
                .collect();
            let switching = Switching {
                failed,
                ..Switching::default()
            };
            execution
                .put_all_back(row, made(&steps), switching, BTreeMap::new())
                .await
        }
        DeploymentState::Committed => {
            line.cross();
            for component in begun(&steps) {
                execution.touch(&component);
            }
            let records = execution
                .context
                .registry
                .records(vec![row.id.clone()])
                .await?
                .remove(&row.id)
                .unwrap_or_default();
            execution.clean_again(row, made(&steps), records).await
        }
        _ => execution.abort(row, Abort::Crashed).await,
    };
    Ok(ended)
}

/// Until the commit the registered containers are those that the plan saw, but for those that the
/// compensation made anew.
fn follow_remade(plan: &mut ServicePlan, old: &BTreeMap<ComponentName, DeployedRow>) {
    for action in &mut plan.actions {
        if let (Some(before), Some(row)) = (&mut action.before, old.get(&action.component))
            && row.generation > before.generation
        {
            before.container = row.container.clone();
            before.generation = row.generation;
        }
    }
}

async fn give_up_unplanned(
    context: &Context,
    mut row: DeploymentRow,
) -> Result<Ended, RegistryError> {
    row.state = DeploymentState::Aborted;
    row.outcome = Some(Outcome::Aborted);
    row.error = Some("the agent was restarted before the deployment was planned".to_owned());
    row.finished_at = Some(context.clock.now());
    let finish = super::outcome::finish_bare(&row);
    context.registry.finish(finish).await?;
    Ok(Ended {
        row,
        components: Vec::new(),
    })
}
