//! What is known of the node at one moment: the rows of the registry beside the watch's snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mcp_spec::name::{ComponentKey, ServiceName};
use mcp_spec::observed::{ContainerId, Observed, label};
use mcp_spec::plan::{Deployed, Obstacle, ServiceSettings};

use super::{PlanError, Planner};
use crate::registry::{DeployedRow, ObservedRow};
use crate::takeover::{is_alive, strangers};
use crate::watch::Snapshot;

/// What is known of the node at one moment.
pub(super) struct Facts {
    pub(super) rows: Vec<DeployedRow>,
    pub(super) deployed: BTreeMap<ComponentKey, Deployed>,
    pub(super) settings: BTreeMap<ServiceName, ServiceSettings>,
    pub(super) observed: BTreeMap<ComponentKey, Observed>,
    pub(super) foreign: BTreeMap<String, ContainerId>,
    snapshot: Arc<Snapshot>,
}

impl Planner {
    pub(super) async fn facts(&self) -> Result<Facts, PlanError> {
        let (rows, seen) = self.registry.deployed_and_observed().await?;
        // An engine that does not answer gives unknowns, and no action follows from those.
        let snapshot = match self.watch.usable(self.max_age).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::debug!(%error, "planning without the engine");
                self.watch.current()
            }
        };
        let seen: BTreeMap<&ComponentKey, &ObservedRow> =
            seen.iter().map(|row| (&row.key, row)).collect();
        let mut departures = if rows.iter().any(|row| row.adopted) {
            self.registry.departures().await?
        } else {
            BTreeMap::new()
        };
        let mut deployed = BTreeMap::new();
        let mut settings = BTreeMap::new();
        let mut observed = BTreeMap::new();
        for row in &rows {
            settings.insert(row.key.service.clone(), row.settings);
            observed.insert(row.key.clone(), snapshot.of_container(&row.container));
            let mut known = deployed_of(row, seen.get(&row.key).map_or(0, |seen| seen.restarts));
            known.ended = seen.get(&row.key).is_some_and(|seen| seen.has_ended(row));
            known.adopted = row
                .adopted
                .then(|| departures.remove(&row.key).unwrap_or_default());
            deployed.insert(row.key.clone(), known);
        }
        let forgotten = self.registry.forgotten().await?;
        let foreign = self.foreign(&rows, &snapshot, &forgotten);
        Ok(Facts {
            rows,
            deployed,
            settings,
            observed,
            foreign,
            snapshot,
        })
    }

    /// Components of this node that run in containers which the registry does not know.
    pub(super) async fn strangers(
        &self,
        facts: &Facts,
    ) -> Result<Vec<(ComponentKey, Obstacle)>, PlanError> {
        let found = strangers(&self.node, &self.registry, &facts.snapshot, &facts.rows).await?;
        Ok(found
            .into_iter()
            .filter(|live| is_alive(live))
            .filter_map(|live| {
                let revision = live.labels.get(label::REVISION).map(|commit| commit.chars());
                let revision: String = revision.into_iter().flatten().take(7).collect();
                let obstacle = Obstacle {
                    is_policy: false,
                    reason: format!(
                        "{} runs {revision} in container {}, which the registry does not know",
                        live.name,
                        live.id.short()
                    ),
                    hint: "push what the node lacks with mcp sync: it is taken over then; if nobody has that \
                           revision, remove the container on the node"
                        .to_owned(),
                };
                Some((live.claimed_key()?, obstacle))
            })
            .collect())
    }

    /// The names that containers bear which are not this agent's.
    fn foreign(
        &self,
        rows: &[DeployedRow],
        snapshot: &Snapshot,
        forgotten: &BTreeSet<ContainerId>,
    ) -> BTreeMap<String, ContainerId> {
        let registered: BTreeSet<&ContainerId> = rows.iter().map(|row| &row.container).collect();
        snapshot
            .containers
            .values()
            .filter(|live| {
                let ours = live.labels.get(label::NODE).map(String::as_str)
                    == Some(self.node.as_str())
                    && live.claimed_key().is_some()
                    && !forgotten.contains(&live.id);
                !ours && !registered.contains(&live.id)
            })
            .map(|live| (live.name.clone(), live.id.clone()))
            .collect()
    }
}

/// A registry's row as the planner takes it.
#[must_use]
pub fn deployed_of(row: &DeployedRow, restarts: u32) -> Deployed {
    Deployed {
        spec: row.spec.clone(),
        spec_digest: row.spec_digest,
        image: row.image_id.clone(),
        revision: row.revision,
        container: row.container.clone(),
        generation: row.generation,
        desired: row.desired,
        stopped_by: row.stopped_by.as_ref().map(|stop| stop.by.clone()),
        held_at: row.hold.as_ref().map(|hold| hold.revision),
        baseline: row.baseline.clone(),
        restarts,
        ended: false,
        adopted: row.adopted.then(Vec::new),
    }
}
