//! One deployment of one service, from its plan to its end.
//!
//! ```text
//! ADMITTED -> PLANNED -> PREPARED -> | the line | -> SWITCHING -> COMMITTED -> CLEANED
//!    a failure before the line: ABORTED, the old ones never noticed
//!    after it: COMPENSATING -> ROLLED_BACK (the old containers run again) or FAILED
//! ```
//!
//! Every state is journalled before what it stands for is done. After a crash `recover` makes the
//! execution again from its row and goes on where the journal ends.

use std::collections::BTreeMap;

use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::LiveContainer;
use mcp_spec::plan::ActionKind;
use tokio::time::Instant;

use super::commitment::commitment;
use super::convergence;
use super::execution::Execution;
use super::failure::PartFailure;
use super::feed::Ended;
use super::outcome;
use super::prepare::{Befallen, Made, prepare};
use super::steps::stop_container;
use super::switch::{Outcome as Switching, switch_all};
use crate::registry::{
    ComponentRecord, DeployedRow, DeploymentRow, DeploymentState, Outcome, Quarantined,
    RegistryError, StopOverride, Trigger,
};

/// Why a deployment ended before the line.
#[derive(Debug)]
pub(super) enum Abort {
    /// A component could not be prepared.
    Befallen(Befallen),
    /// An operator cancelled it.
    Cancelled,
    /// A newer deployment took its place.
    Superseded,
    /// It was the agent's own wish, and an operator's stop or hold came first.
    Overruled,
    /// The agent went away and came back before the line.
    Crashed,
    /// The registry failed.
    Registry(RegistryError),
}

impl Execution {
    /// Runs a deployment that was admitted, to its end.
    pub(super) async fn run(&self, row: DeploymentRow) -> Ended {
        self.feed.tell(None, "preparing", "");
        let made = match prepare(self).await {
            Ok(made) => made,
            // A cancellation ends a pull as a failure; it is none.
            Err(_) if self.line.is_cancelled() => {
                return self.abort(row, self.cancellation()).await;
            }
            Err(befallen) => return self.abort(row, Abort::Befallen(befallen)).await,
        };
        self.feed.tell(None, "prepared", "");
        if !self.line.cross() {
            return self.abort(row, self.cancellation()).await;
        }
        let now = self.context.clock.now();
        let crossed = self
            .context
            .registry
            .cross_line(self.id.clone(), now, self.heeded())
            .await;
        match crossed {
            Ok(true) => {}
            Ok(false) => return self.abort(row, Abort::Overruled).await,
            Err(error) => return self.abort(row, Abort::Registry(error)).await,
        }
        let mut row = row;
        row.line_at = Some(now);
        self.after_the_line(row, made).await
    }

    /// The components whose stops and holds come before this deployment, with the specs that they are
    /// brought to: where the agent acts by itself, those that it would change. They may have come after
    /// the plan was made. What is held may be brought back as it is held, and not be stopped.
    fn heeded(&self) -> Vec<(ComponentKey, Option<Digest>)> {
        if self.order.trigger != Trigger::Auto {
            return Vec::new();
        }
        self.plan
            .actions
            .iter()
            .filter(|action| action.kind != ActionKind::None || !action.files.is_empty())
            .map(|action| {
                let after = action.after.as_ref().filter(|after| after.running);
                let spec = after.map(|after| after.spec_digest);
                (self.key(&action.component), spec)
            })
            .collect()
    }

    /// Goes on after the line: the switch, and what follows from it.
    pub(super) async fn after_the_line(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
    ) -> Ended {
        let deadline = Instant::now() + self.plan.settings.deadline.as_duration();
        if let Err(error) = self.record_stop().await {
            let failed = BTreeMap::from_iter(
                self.plan
                    .actions
                    .first()
                    .map(|action| (action.component.clone(), PartFailure::Registry(error))),
            );
            let switching = Switching {
                switched: BTreeMap::new(),
                failed,
            };
            return self.compensate(row, made, switching).await;
        }
        let mut switching = switch_all(self, &made, deadline).await;
        if self.order.trigger == Trigger::Stop && switching.failed.is_empty() {
            switching.failed = self.stop_revived(deadline).await;
        }
        if switching.failed.is_empty() || self.leaves_failures() {
            self.commit(row, made, switching).await
        } else {
            self.compensate(row, made, switching).await
        }
    }

    /// Stops what the plan saw down and what its restart policy started since. From the record of the
    /// stop on nothing starts it again.
    async fn stop_revived(&self, deadline: Instant) -> BTreeMap<ComponentName, PartFailure> {
        let mut failed = BTreeMap::new();
        for action in &self.plan.actions {
            let Some(before) = action.before.as_ref().filter(|before| before.present) else {
                continue;
            };
            if action.kind != ActionKind::None {
                continue;
            }
            let seen = self
                .context
                .runtime
                .inspect(before.container.as_str())
                .await;
            if seen.is_ok_and(|live| live.is_none_or(|live| !live.state.is_running())) {
                continue;
            }
            self.touch(&action.component);
            let grace = before.stop_timeout.as_duration();
            if let Err(failure) = stop_container(self, &before.container, grace, deadline).await {
                failed.insert(action.component.clone(), failure);
            }
        }
        failed
    }

    /// An operator's stop is recorded before anything stops, so that nothing starts it again.
    async fn record_stop(&self) -> Result<(), RegistryError> {
        if self.order.trigger != Trigger::Stop {
            return Ok(());
        }
        let keys: Vec<ComponentKey> = self
            .plan
            .actions
            .iter()
            .map(|action| self.key(&action.component))
            .collect();
        let stop = StopOverride {
            by: self.order.actor.clone(),
            at: self.context.clock.now(),
        };
        self.context
            .registry
            .set_stop(keys, Some(stop), Vec::new())
            .await
    }

    /// Ends before the line: what was made is cleared away, and nothing else was touched.
    pub(super) async fn abort(&self, row: DeploymentRow, why: Abort) -> Ended {
        self.clear_makings().await;
        let (state, outcome) = match why {
            Abort::Superseded => (DeploymentState::Superseded, Outcome::Superseded),
            _ => (DeploymentState::Aborted, Outcome::Aborted),
        };
        let records = outcome::aborted(self, &why);
        let error = outcome::abort_text(self, &why);
        self.finish(row, state, outcome, Some(error), records).await
    }

    /// Writes the end of a switch that went well (or whose failures are left for a look) into the
    /// registry, and clears away what is no longer needed.
    async fn commit(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
        switching: Switching,
    ) -> Ended {
        let keep_before = self
            .context
            .registry
            .images_to_keep()
            .await
            .unwrap_or_default();
        // A hold that an operator set or released meanwhile is not written over.
        let holds = match self
            .context
            .registry
            .deployed_of(self.plan.service.clone())
            .await
        {
            Ok(rows) => rows
                .into_iter()
                .map(|row| (row.key.component, row.hold))
                .collect(),
            Err(_) => BTreeMap::new(),
        };
        let commit = commitment(self, &made, &switching, &holds);
        let looks: Vec<(DeployedRow, LiveContainer)> = commit
            .set
            .iter()
            .filter_map(|set| {
                let switched = switching.switched.get(&set.row.key.component)?;
                Some((set.row.clone(), switched.live.clone()?))
            })
            .collect();
        let lives: Vec<LiveContainer> = switching
            .switched
            .values()
            .filter_map(|switched| switched.live.clone())
            .collect();
        if let Err(error) = self.context.registry.commit_deployment(commit).await {
            tracing::error!(deployment = %self.id, %error, "cannot write the deployment down; putting back what ran before");
            let mut switching = switching;
            if let Some(action) = self.plan.actions.first() {
                switching
                    .failed
                    .insert(action.component.clone(), PartFailure::Registry(error));
            }
            return self.compensate(row, made, switching).await;
        }
        self.feed.tell(None, "committed", "");
        self.context.sightings.saw(lives);
        let records = outcome::committed(
            self,
            &made,
            &switching,
            &self.kept_logs(&made, &switching).await,
        );
        self.clear_unreached(&made).await;
        self.clean(&switching.failed, keep_before).await;
        let failed = outcome::failure_text(self, &switching.failed);
        let unconverged = self.unconverged(&looks);
        let (state, outcome, error) = match (failed, convergence::text(&unconverged)) {
            (Some(error), _) => (DeploymentState::Failed, Outcome::Failed, Some(error)),
            (None, Some(text)) => (DeploymentState::Cleaned, Outcome::Degraded, Some(text)),
            // A deploy that only moved revisions on touched nothing, and says so.
            (None, None) if self.order.purpose.is_some() && !self.plan.touches_engine() => {
                (DeploymentState::Cleaned, Outcome::Unchanged, None)
            }
            (None, None) => (DeploymentState::Cleaned, Outcome::Deployed, None),
        };
        self.finish_with(row, state, outcome, error, records, unconverged)
            .await
    }

    /// Clears away after a commit that a crash came right after. `records` were written with it.
    pub(super) async fn clean_again(
        &self,
        row: DeploymentRow,
        made: BTreeMap<ComponentName, Made>,
        records: Vec<ComponentRecord>,
    ) -> Ended {
        let failed: BTreeMap<ComponentName, PartFailure> = records
            .iter()
            .filter(|record| record.outcome == "failed")
            .map(|record| {
                let text = record.error.clone().unwrap_or_default();
                (
                    record.component.clone(),
                    PartFailure::Earlier { text, gate: false },
                )
            })
            .collect();
        self.clear_unreached(&made).await;
        self.clean(&failed, Vec::new()).await;
        // The rows of removed components are gone already, and with them the names of their networks.
        self.drop_networks_of_service().await;
        let unconverged = self.unconverged(&self.look_again().await);
        let (state, outcome, error) = match (
            outcome::failure_text(self, &failed),
            convergence::text(&unconverged),
        ) {
            (Some(error), _) => (DeploymentState::Failed, Outcome::Failed, Some(error)),
            (None, Some(text)) => (DeploymentState::Cleaned, Outcome::Degraded, Some(text)),
            (None, None) => (DeploymentState::Cleaned, Outcome::Deployed, None),
        };
        self.finish_with(row, state, outcome, error, records, unconverged)
            .await
    }

    /// Writes the end down and tells it.
    pub(super) async fn finish(
        &self,
        row: DeploymentRow,
        state: DeploymentState,
        outcome: Outcome,
        error: Option<String>,
        records: Vec<ComponentRecord>,
    ) -> Ended {
        self.finish_with(row, state, outcome, error, records, Vec::new())
            .await
    }

    pub(super) async fn finish_with(
        &self,
        mut row: DeploymentRow,
        state: DeploymentState,
        outcome: Outcome,
        error: Option<String>,
        records: Vec<ComponentRecord>,
        quarantined: Vec<Quarantined>,
    ) -> Ended {
        let now = self.context.clock.now();
        row.state = state;
        row.outcome = Some(outcome);
        row.error = error;
        row.finished_at = Some(now);
        let finish = outcome::finish(self, &row, &records, quarantined);
        let registry = &self.context.registry;
        self.context
            .insist("the end of a deployment", || {
                registry.finish(finish.clone())
            })
            .await;
        self.feed.tell(None, "cleaned", "");
        tell(&row);
        Ended {
            row,
            components: records,
        }
    }
}

/// Says in the agent's journal how a deployment ended: what an operator reads where `mcp` cannot reach
/// the node.
fn tell(row: &DeploymentRow) {
    let (deployment, service) = (&row.id, &row.service);
    let trigger = row.trigger.as_str();
    let outcome = row.outcome.map_or("interrupted", Outcome::as_str);
    match &row.error {
        None => tracing::info!(%deployment, %service, trigger, outcome, "a deployment ended"),
        Some(error) => {
            tracing::warn!(%deployment, %service, trigger, outcome, error, "a deployment ended");
        }
    }
}
