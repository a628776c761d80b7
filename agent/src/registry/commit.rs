//! The commit of a deployment: all that it changes, in one transaction.

use mcp_spec::name::ComponentKey;
use mcp_spec::observed::DesiredState;
use mcp_spec::plan::ServiceSettings;
use mcp_spec::revision::CommitId;

use super::column::{At, Count, Json};
use super::components::{found, hold_one, stop_one};
use super::deployments::{move_to, require};
use super::events::append;
use super::{
    ComponentRecord, DeployedRow, DeploymentId, DeploymentState, HoldRow, NewEvent, ObservedRow,
    Registry, RegistryError, StepRow, StopOverride, Trigger, WriteTx, adoptions, history, journal,
    observations, quarantine, records, specs,
};

/// What a committed component adds to its history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryEntry {
    /// A new row.
    New,
    /// A new row that restores this one: the next rollback goes on from there.
    Restores(i64),
    /// None: the row named by [`DeployedRow::history`] runs on, perhaps in another container.
    Keep,
}

/// A component as it is from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetDeployed {
    /// All of it, overrides included: this replaces the row whole.
    pub row: DeployedRow,
    /// What its history gets.
    pub history: HistoryEntry,
}

/// A component whose spec a revision did not change, so that only its revision moves on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advanced {
    /// The component.
    pub key: ComponentKey,
    /// The revision that its spec is now said to come from.
    pub revision: CommitId,
    /// What its definition wants.
    pub desired: DesiredState,
    /// Its service's settings.
    pub settings: ServiceSettings,
}

/// All that a deployment's commit changes, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommitDeployment {
    /// The deployment.
    pub deployment: DeploymentId,
    /// Components that are deployed, or deployed anew.
    pub set: Vec<SetDeployed>,
    /// Components that are gone; their history and generation stay.
    pub removed: Vec<ComponentKey>,
    /// Components that only move on.
    pub advanced: Vec<Advanced>,
    /// Holds of components that are not in `set`.
    pub holds: Vec<(ComponentKey, Option<HoldRow>)>,
    /// Stops of components that are not in `set`.
    pub stops: Vec<(ComponentKey, Option<StopOverride>)>,
    /// What is now seen of them.
    pub observed: Vec<ObservedRow>,
    /// The deployment's state from now on.
    pub state: DeploymentState,
    /// What became of its components.
    pub records: Vec<ComponentRecord>,
    /// Steps of the journal that this commit is.
    pub steps: Vec<StepRow>,
    /// Events to append.
    pub events: Vec<NewEvent>,
}

impl CommitDeployment {
    /// A commit of `deployment` that changes nothing yet but its state.
    #[must_use]
    pub const fn new(deployment: DeploymentId) -> Self {
        Self {
            deployment,
            set: Vec::new(),
            removed: Vec::new(),
            advanced: Vec::new(),
            holds: Vec::new(),
            stops: Vec::new(),
            observed: Vec::new(),
            state: DeploymentState::Committed,
            records: Vec::new(),
            steps: Vec::new(),
            events: Vec::new(),
        }
    }
}

impl Registry {
    /// Commits a deployment; returns the history rows of [`CommitDeployment::set`], in its order.
    /// A spec that is set has passed its gate, so its quarantine is lifted.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NoSuchDeployment`]; [`RegistryError::NotDeployed`] for an advance, hold or stop of
    /// a component that is not deployed.
    pub async fn commit_deployment(
        &self,
        commit: CommitDeployment,
    ) -> Result<Vec<i64>, RegistryError> {
        self.write(move |tx| {
            let purge = require(tx, &commit.deployment)? == Trigger::Purge;
            for key in &commit.removed {
                remove(tx, key, purge)?;
            }
            let mut rows = Vec::with_capacity(commit.set.len());
            for set in &commit.set {
                rows.push(store(tx, set)?);
            }
            for advanced in &commit.advanced {
                advance(tx, advanced)?;
            }
            for (key, hold) in &commit.holds {
                hold_one(tx, key, hold.as_ref())?;
            }
            for (key, stop) in &commit.stops {
                stop_one(tx, key, stop.as_ref())?;
            }
            observations::store(tx, &commit.observed)?;
            records::store(tx, &commit.records)?;
            journal::store(tx, &commit.steps)?;
            move_to(tx, &commit.deployment, commit.state, None)?;
            append(tx, &commit.events)?;
            Ok(rows)
        })
        .await
    }
}

pub(super) fn store(tx: &WriteTx<'_>, set: &SetDeployed) -> Result<i64, RegistryError> {
    tx.change_components();
    let row = &set.row;
    let body = specs::store(tx, &row.spec)?;
    let history = match set.history {
        HistoryEntry::New => history::add(tx, row, body, None)?,
        HistoryEntry::Restores(base) => history::add(tx, row, body, Some(base))?,
        HistoryEntry::Keep => row.history,
    };
    tx.prepare_cached(
        "INSERT INTO components (service, component, generation, purged) VALUES (?1, ?2, ?3, 0)
         ON CONFLICT (service, component) DO UPDATE SET
            generation = max(generation, excluded.generation), purged = 0",
    )?
    .execute((
        row.key.service.as_str(),
        row.key.component.as_str(),
        Count(row.generation),
    ))?;
    // An upsert and not a replacement: replacing would take what is observed with it.
    tx.prepare_cached(
        "INSERT INTO deployed (service, component, spec_body, spec_digest, image_id, image_digest,
            revision, container, container_name, generation, baseline, desired, stopped_by,
            stopped_at, hold, deployment, history, deployed_at, adopted, settings)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
                 ?19, ?20)
         ON CONFLICT (service, component) DO UPDATE SET
            spec_body = excluded.spec_body, spec_digest = excluded.spec_digest,
            image_id = excluded.image_id, image_digest = excluded.image_digest,
            revision = excluded.revision, container = excluded.container,
            container_name = excluded.container_name, generation = excluded.generation,
            baseline = excluded.baseline, desired = excluded.desired,
            stopped_by = excluded.stopped_by, stopped_at = excluded.stopped_at,
            hold = excluded.hold, deployment = excluded.deployment, history = excluded.history,
            deployed_at = excluded.deployed_at, adopted = excluded.adopted,
            settings = excluded.settings",
    )?
    .execute(rusqlite::params![
        row.key.service.as_str(),
        row.key.component.as_str(),
        body,
        row.spec_digest.to_string(),
        row.image_id.as_str(),
        row.image_digest.map(|digest| digest.to_string()),
        row.revision.to_string(),
        row.container.as_str(),
        row.container_name,
        Count(row.generation),
        Json(&row.baseline),
        row.desired.as_str(),
        row.stopped_by.as_ref().map(|stop| stop.by.as_str()),
        row.stopped_by.as_ref().map(|stop| At(stop.at)),
        row.hold.as_ref().map(Json),
        row.deployment.as_str(),
        history,
        At(row.deployed_at),
        row.adopted,
        Json(&row.settings),
    ])?;
    share_settings(tx, &row.key, &row.settings)?;
    quarantine::passed(tx, &row.key, &row.spec_digest, &row.image_id)?;
    Ok(history)
}

pub(super) fn remove(
    tx: &WriteTx<'_>,
    key: &ComponentKey,
    purge: bool,
) -> Result<(), RegistryError> {
    tx.change_components();
    let of = (key.service.as_str(), key.component.as_str());
    for statement in [
        "DELETE FROM deployed WHERE service = ?1 AND component = ?2",
        "DELETE FROM quarantined WHERE service = ?1 AND component = ?2",
    ] {
        tx.prepare_cached(statement)?.execute(of)?;
    }
    if purge {
        tx.prepare_cached(
            "UPDATE components SET purged = 1 WHERE service = ?1 AND component = ?2",
        )?
        .execute(of)?;
    }
    Ok(())
}

fn advance(tx: &WriteTx<'_>, advanced: &Advanced) -> Result<(), RegistryError> {
    tx.change_components();
    let changed = tx
        .prepare_cached(
            "UPDATE deployed SET revision = ?3, desired = ?4, settings = ?5
             WHERE service = ?1 AND component = ?2",
        )?
        .execute((
            advanced.key.service.as_str(),
            advanced.key.component.as_str(),
            advanced.revision.to_string(),
            advanced.desired.as_str(),
            Json(&advanced.settings),
        ))?;
    found(changed, &advanced.key)?;
    adoptions::comes_from(tx, &advanced.key, advanced.revision)?;
    share_settings(tx, &advanced.key, &advanced.settings)
}

/// Settings are the service's: components that a deployment leaves alone have them too.
fn share_settings(
    tx: &WriteTx<'_>,
    key: &ComponentKey,
    settings: &ServiceSettings,
) -> Result<(), RegistryError> {
    tx.prepare_cached("UPDATE deployed SET settings = ?2 WHERE service = ?1 AND settings <> ?2")?
        .execute((key.service.as_str(), Json(settings)))?;
    Ok(())
}
