//! What is deployed: one row a component, with its overrides, and the commit of a deployment.

use std::collections::BTreeMap;

use jiff::Timestamp;
use mcp_spec::component::ComponentSpec;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ServiceName};
use mcp_spec::observed::{ContainerId, DesiredState, ImageId};
use mcp_spec::plan::ServiceSettings;
use mcp_spec::revision::CommitId;
use rusqlite::{Connection, Params, Row};
use serde::{Deserialize, Serialize};

use super::column::{At, Count, Json, at, at_option, count, json, parsed, parsed_option};
use super::deployments::{move_to, require, store_records};
use super::events::append;
use super::specs::{self, SpecCache};
use super::{
    ComponentRecord, DeploymentId, DeploymentState, MAX_ROWS, NewEvent, ObservedRow, Registry,
    RegistryError, StepRow, Trigger, WriteTx, history, journal, observations, quarantine,
};

/// An operator's stop: it lasts until a start or a deploy that names the component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOverride {
    /// Who stopped it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A component that is kept at its running spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRow {
    /// The revision that it is held at.
    pub revision: CommitId,
    /// Who holds it.
    pub by: String,
    /// Since when.
    pub at: Timestamp,
    /// Why.
    pub reason: Option<String>,
}

/// A component that the agent runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeployedRow {
    /// The component.
    pub key: ComponentKey,
    /// The spec that it runs.
    pub spec: ComponentSpec,
    /// The spec's digest.
    pub spec_digest: Digest,
    /// The image that it runs.
    pub image_id: ImageId,
    /// That image's digest in its registry, where it was pulled.
    pub image_digest: Option<Digest>,
    /// The revision that the spec came from.
    pub revision: CommitId,
    /// The engine's id of its container.
    pub container: ContainerId,
    /// The container's name.
    pub container_name: String,
    /// The container's generation.
    pub generation: u64,
    /// The container's configuration as the engine told it right after it was made.
    pub baseline: BTreeMap<String, String>,
    /// What its definition wants; see [`Self::wanted`].
    pub desired: DesiredState,
    /// An operator's stop.
    pub stopped_by: Option<StopOverride>,
    /// An operator's hold.
    pub hold: Option<HoldRow>,
    /// The deployment that made it so.
    pub deployment: DeploymentId,
    /// Its row in the history; given by the registry where [`HistoryEntry`] asks for a new one.
    pub history: i64,
    /// When that was committed.
    pub deployed_at: Timestamp,
    /// Whether the container was taken over instead of made.
    pub adopted: bool,
    /// Its service's settings.
    pub settings: ServiceSettings,
}

impl DeployedRow {
    /// What is to be: the definition's wish, unless an operator stopped it.
    #[must_use]
    pub const fn wanted(&self) -> DesiredState {
        match (&self.stopped_by, self.desired) {
            (Some(_), DesiredState::Running) => DesiredState::Stopped,
            (_, desired) => desired,
        }
    }
}

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
    /// All deployed components in the order of their keys.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn deployed_all(&self) -> Result<Vec<DeployedRow>, RegistryError> {
        self.read(|connection, specs| {
            let order = format!("ORDER BY service, component LIMIT {MAX_ROWS}");
            select(connection, specs, &order, [])
        })
        .await
    }

    /// All deployed components and what was last seen of them, in one snapshot.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn deployed_and_observed(
        &self,
    ) -> Result<(Vec<DeployedRow>, Vec<ObservedRow>), RegistryError> {
        self.read(|connection, specs| {
            let order = format!("ORDER BY service, component LIMIT {MAX_ROWS}");
            Ok((
                select(connection, specs, &order, [])?,
                observations::all(connection)?,
            ))
        })
        .await
    }

    /// One deployed component.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn deployed(&self, key: ComponentKey) -> Result<Option<DeployedRow>, RegistryError> {
        self.read(move |connection, specs| {
            let of = (key.service.as_str(), key.component.as_str());
            let condition = "WHERE service = ?1 AND component = ?2";
            Ok(select(connection, specs, condition, of)?.pop())
        })
        .await
    }

    /// The deployed components of a service in the order of their names.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn deployed_of(
        &self,
        service: ServiceName,
    ) -> Result<Vec<DeployedRow>, RegistryError> {
        self.read(move |connection, specs| {
            let condition = "WHERE service = ?1 ORDER BY component";
            select(connection, specs, condition, [service.as_str()])
        })
        .await
    }

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
            store_records(tx, &commit.records)?;
            journal::store(tx, &commit.steps)?;
            move_to(tx, &commit.deployment, commit.state, None)?;
            append(tx, &commit.events)?;
            Ok(rows)
        })
        .await
    }

    /// Sets or clears the operator's stop of components, all or none.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotDeployed`].
    pub async fn set_stop(
        &self,
        keys: Vec<ComponentKey>,
        stop: Option<StopOverride>,
        events: Vec<NewEvent>,
    ) -> Result<(), RegistryError> {
        self.write(move |tx| {
            for key in &keys {
                stop_one(tx, key, stop.as_ref())?;
            }
            append(tx, &events)?;
            Ok(())
        })
        .await
    }

    /// Sets or clears the hold of components, all or none.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotDeployed`].
    pub async fn set_hold(
        &self,
        holds: Vec<(ComponentKey, Option<HoldRow>)>,
        events: Vec<NewEvent>,
    ) -> Result<(), RegistryError> {
        self.write(move |tx| {
            for (key, hold) in &holds {
                hold_one(tx, key, hold.as_ref())?;
            }
            append(tx, &events)?;
            Ok(())
        })
        .await
    }

    /// Takes the next generation number of each component, in the order given. A number is on the disk
    /// before it is returned, and is never given twice, even after the component was removed.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn next_generations(
        &self,
        keys: Vec<ComponentKey>,
    ) -> Result<Vec<u64>, RegistryError> {
        self.write(move |tx| {
            let mut next = tx.prepare_cached(
                "INSERT INTO components (service, component, generation, purged)
                 VALUES (?1, ?2, 1, 1)
                 ON CONFLICT (service, component) DO UPDATE SET generation = generation + 1
                 RETURNING generation",
            )?;
            keys.iter()
                .map(|key| {
                    let of = (key.service.as_str(), key.component.as_str());
                    Ok(next.query_row(of, |row| count(row, 0))?)
                })
                .collect()
        })
        .await
    }

    /// [`Self::next_generations`] for one component.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn next_generation(&self, key: ComponentKey) -> Result<u64, RegistryError> {
        let mut next = self.next_generations(vec![key]).await?;
        next.pop().ok_or(RegistryError::Closed)
    }
}

/// By position, since reading columns by name costs more than the rest of a row.
const COLUMNS: &str =
    "spec_body, service, component, spec_digest, image_id, image_digest, revision,
    container, container_name, generation, baseline, desired, stopped_by, stopped_at, hold,
    deployment, history, deployed_at, adopted, settings";

fn select(
    connection: &Connection,
    specs: &SpecCache,
    rest: &str,
    params: impl Params,
) -> Result<Vec<DeployedRow>, RegistryError> {
    let mut statement =
        connection.prepare_cached(&format!("SELECT {COLUMNS} FROM deployed {rest}"))?;
    let mut rows = statement.query(params)?;
    let mut deployed = Vec::new();
    while let Some(row) = rows.next()? {
        deployed.push(deployed_row(connection, specs, row)?);
    }
    Ok(deployed)
}

fn deployed_row(
    connection: &Connection,
    specs: &SpecCache,
    row: &Row<'_>,
) -> Result<DeployedRow, RegistryError> {
    let stopped_by: Option<String> = row.get(12)?;
    let stopped_at = at_option(row, 13)?;
    Ok(DeployedRow {
        key: ComponentKey::new(parsed(row, 1)?, parsed(row, 2)?),
        spec: specs.of(connection, row)?,
        spec_digest: parsed(row, 3)?,
        image_id: ImageId::new(row.get::<_, String>(4)?),
        image_digest: parsed_option(row, 5)?,
        revision: parsed(row, 6)?,
        container: ContainerId::new(row.get::<_, String>(7)?),
        container_name: row.get(8)?,
        generation: count(row, 9)?,
        baseline: json(row, 10)?,
        desired: parsed(row, 11)?,
        stopped_by: stopped_by
            .zip(stopped_at)
            .map(|(by, at)| StopOverride { by, at }),
        hold: row.get::<_, Option<Json<_>>>(14)?.map(|hold| hold.0),
        deployment: parsed(row, 15)?,
        history: row.get(16)?,
        deployed_at: at(row, 17)?,
        adopted: row.get(18)?,
        settings: json(row, 19)?,
    })
}

fn store(tx: &WriteTx<'_>, set: &SetDeployed) -> Result<i64, RegistryError> {
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
    quarantine::passed(tx, &row.key, &row.spec_digest, &row.image_id)?;
    Ok(history)
}

fn remove(tx: &WriteTx<'_>, key: &ComponentKey, purge: bool) -> Result<(), RegistryError> {
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
    found(changed, &advanced.key)
}

fn hold_one(
    tx: &WriteTx<'_>,
    key: &ComponentKey,
    hold: Option<&HoldRow>,
) -> Result<(), RegistryError> {
    let changed = tx
        .prepare_cached("UPDATE deployed SET hold = ?3 WHERE service = ?1 AND component = ?2")?
        .execute((key.service.as_str(), key.component.as_str(), hold.map(Json)))?;
    found(changed, key)
}

fn stop_one(
    tx: &WriteTx<'_>,
    key: &ComponentKey,
    stop: Option<&StopOverride>,
) -> Result<(), RegistryError> {
    let changed = tx
        .prepare_cached(
            "UPDATE deployed SET stopped_by = ?3, stopped_at = ?4
             WHERE service = ?1 AND component = ?2",
        )?
        .execute((
            key.service.as_str(),
            key.component.as_str(),
            stop.map(|stop| stop.by.as_str()),
            stop.map(|stop| At(stop.at)),
        ))?;
    found(changed, key)
}

fn found(changed: usize, key: &ComponentKey) -> Result<(), RegistryError> {
    if changed == 0 {
        return Err(RegistryError::NotDeployed { key: key.clone() });
    }
    Ok(())
}
