//! What is deployed: one row a component, with its overrides.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

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
use super::events::append;
use super::specs::SpecCache;
use super::{
    DeploymentId, MAX_ROWS, NewEvent, ObservedRow, Registry, RegistryError, WriteTx, observations,
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
    /// Its row in the history; given by the registry where [`super::HistoryEntry`] asks for a new one.
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

/// A container that was made anew for a component whose spec did not change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remade {
    /// The engine's id.
    pub container: ContainerId,
    /// Its generation.
    pub generation: u64,
    /// Its configuration as the engine told it right after it was made.
    pub baseline: BTreeMap<String, String>,
}

/// All components at one moment, both lists in the order of their keys.
#[derive(Debug, PartialEq, Eq)]
pub struct Components {
    /// What is deployed.
    pub deployed: Vec<DeployedRow>,
    /// What was last seen of it.
    pub observed: Vec<ObservedRow>,
}

/// The newest snapshot that was read, with the version that it is at least as new as.
#[derive(Debug, Default)]
pub(super) struct ComponentsCache {
    newest: Mutex<Option<(u64, Arc<Components>)>>,
}

impl ComponentsCache {
    fn at(&self, version: u64) -> Option<Arc<Components>> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest
            .as_ref()
            .filter(|(known, _)| *known == version)
            .map(|(_, components)| Arc::clone(components))
    }

    fn keep(&self, version: u64, components: &Arc<Components>) {
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.as_ref().is_none_or(|(known, _)| *known < version) {
            *newest = Some((version, Arc::clone(components)));
        }
    }
}

impl Registry {
    /// What is deployed and what was last seen of it, in one snapshot that is shared until a commit changes
    /// it: asking again costs nothing.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn components(&self) -> Result<Arc<Components>, RegistryError> {
        // Read before the snapshot: what is committed in between is read again by the next call.
        let version = self.shared.writer.components_version();
        if let Some(known) = self.shared.components.at(version) {
            return Ok(known);
        }
        let components = self
            .read(|connection, specs| {
                let order = format!("ORDER BY service, component LIMIT {MAX_ROWS}");
                Ok(Arc::new(Components {
                    deployed: select(connection, specs, &order, [])?,
                    observed: observations::all(connection)?,
                }))
            })
            .await?;
        self.shared.components.keep(version, &components);
        Ok(components)
    }

    /// All deployed components in the order of their keys.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn deployed_all(&self) -> Result<Vec<DeployedRow>, RegistryError> {
        Ok(self.components().await?.deployed.clone())
    }

    /// All deployed components and what was last seen of them, in one snapshot.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn deployed_and_observed(
        &self,
    ) -> Result<(Vec<DeployedRow>, Vec<ObservedRow>), RegistryError> {
        let components = self.components().await?;
        Ok((components.deployed.clone(), components.observed.clone()))
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

    /// Puts another container of the same spec in the place of a component's registered one. Tells whether
    /// that still was `from`.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn remade(
        &self,
        key: ComponentKey,
        from: ContainerId,
        to: Remade,
        event: NewEvent,
    ) -> Result<bool, RegistryError> {
        self.write(move |tx| {
            let changed = tx
                .prepare_cached(
                    "UPDATE deployed SET container = ?4, generation = ?5, baseline = ?6
                     WHERE service = ?1 AND component = ?2 AND container = ?3",
                )?
                .execute((
                    key.service.as_str(),
                    key.component.as_str(),
                    from.as_str(),
                    to.container.as_str(),
                    Count(to.generation),
                    Json(&to.baseline),
                ))?;
            if changed == 0 {
                return Ok(false);
            }
            tx.change_components();
            append(tx, &[event])?;
            Ok(true)
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

pub(super) fn hold_one(
    tx: &WriteTx<'_>,
    key: &ComponentKey,
    hold: Option<&HoldRow>,
) -> Result<(), RegistryError> {
    tx.change_components();
    let changed = tx
        .prepare_cached("UPDATE deployed SET hold = ?3 WHERE service = ?1 AND component = ?2")?
        .execute((key.service.as_str(), key.component.as_str(), hold.map(Json)))?;
    found(changed, key)
}

pub(super) fn stop_one(
    tx: &WriteTx<'_>,
    key: &ComponentKey,
    stop: Option<&StopOverride>,
) -> Result<(), RegistryError> {
    tx.change_components();
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

pub(super) fn found(changed: usize, key: &ComponentKey) -> Result<(), RegistryError> {
    if changed == 0 {
        return Err(RegistryError::NotDeployed { key: key.clone() });
    }
    Ok(())
}
