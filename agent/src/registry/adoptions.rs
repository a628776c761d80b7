//! Containers that were taken over, and those that were let go of.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use mcp_spec::diff::FieldChange;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::ContainerId;
use mcp_spec::revision::CommitId;
use rusqlite::OptionalExtension as _;

use super::column::{At, Json, count, json, key};
use super::events::append;
use super::{
    ComponentRecord, DeployedRow, DeploymentRow, HistoryEntry, MAX_ROWS, NewEvent, ObservedRow,
    Registry, RegistryError, SetDeployed, WriteTx, commit, deployments, observations, records,
};

/// One container that is taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptedComponent {
    /// Its row; the registry gives its history, and a generation of 0 gets the next number.
    pub row: DeployedRow,
    /// In what it departs from a container that would be made from its spec.
    pub departures: Vec<FieldChange>,
    /// What is seen of it.
    pub observed: ObservedRow,
}

/// All that is written down when containers of a service are taken over, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// The deployment that stands for it in the history; it has ended.
    pub deployment: DeploymentRow,
    /// The containers.
    pub components: Vec<AdoptedComponent>,
    /// What the history says of each.
    pub records: Vec<ComponentRecord>,
    /// Events to append.
    pub events: Vec<NewEvent>,
}

impl Registry {
    /// Takes containers over, all or none.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Deployed`] for a component that has a container, [`RegistryError::Registered`] for a
    /// container that another component has.
    pub async fn adopt(&self, adoption: Adoption) -> Result<(), RegistryError> {
        self.write(move |tx| {
            deployments::insert(tx, &adoption.deployment)?;
            for component in &adoption.components {
                require_free(tx, component)?;
                let mut row = component.row.clone();
                // One that the agent made and let go of keeps its own, under which its files lie.
                if row.generation == 0 {
                    row.generation = next_generation(tx, &row.key)?;
                }
                commit::store(
                    tx,
                    &SetDeployed {
                        row: row.clone(),
                        history: HistoryEntry::New,
                    },
                )?;
                tx.prepare_cached(
                    "INSERT INTO adoptions (service, component, container, departures)
                     VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (service, component) DO UPDATE SET
                        container = excluded.container, departures = excluded.departures",
                )?
                .execute((
                    row.key.service.as_str(),
                    row.key.component.as_str(),
                    row.container.as_str(),
                    Json(&component.departures),
                ))?;
                tx.prepare_cached("DELETE FROM forgotten WHERE container = ?1")?
                    .execute([row.container.as_str()])?;
                observations::store(tx, std::slice::from_ref(&component.observed))?;
            }
            records::store(tx, &adoption.records)?;
            append(tx, &adoption.events)?;
            Ok(())
        })
        .await
    }

    /// In what the containers that were taken over depart from those that would be made.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn departures(
        &self,
    ) -> Result<BTreeMap<ComponentKey, Vec<FieldChange>>, RegistryError> {
        self.read(|connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT a.service, a.component, a.departures FROM adoptions a
                 JOIN deployed d ON d.service = a.service AND d.component = a.component
                                AND d.container = a.container
                 WHERE d.adopted = 1 LIMIT ?1",
            )?;
            let rows =
                statement.query_map([MAX_ROWS], |row| Ok((key(row)?, json(row, "departures")?)))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Lets go of components, all or none. Their containers are remembered as not the agent's.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotDeployed`].
    pub async fn forget(
        &self,
        keys: Vec<ComponentKey>,
        at: Timestamp,
        events: Vec<NewEvent>,
    ) -> Result<(), RegistryError> {
        self.write(move |tx| {
            for key in &keys {
                let of = (key.service.as_str(), key.component.as_str());
                let container: Option<String> = tx
                    .prepare_cached(
                        "SELECT container FROM deployed WHERE service = ?1 AND component = ?2",
                    )?
                    .query_row(of, |row| row.get(0))
                    .optional()?;
                let container =
                    container.ok_or_else(|| RegistryError::NotDeployed { key: key.clone() })?;
                tx.prepare_cached(
                    "INSERT INTO forgotten (container, at) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET at = excluded.at",
                )?
                .execute((container, At(at)))?;
                commit::remove(tx, key, false)?;
            }
            append(tx, &events)?;
            Ok(())
        })
        .await
    }

    /// The containers that were let go of.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn forgotten(&self) -> Result<BTreeSet<ContainerId>, RegistryError> {
        self.read(|connection, _| {
            let mut statement = connection.prepare_cached("SELECT container FROM forgotten")?;
            let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
            Ok(rows
                .map(|id| id.map(ContainerId::new))
                .collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Containers that were let go of are gone.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn no_longer_forgotten(&self, gone: Vec<ContainerId>) -> Result<(), RegistryError> {
        self.write(move |tx| {
            for id in &gone {
                tx.prepare_cached("DELETE FROM forgotten WHERE container = ?1")?
                    .execute([id.as_str()])?;
            }
            Ok(())
        })
        .await
    }
}

/// Neither the component nor the container is anybody's.
fn require_free(tx: &WriteTx<'_>, component: &AdoptedComponent) -> Result<(), RegistryError> {
    let row = &component.row;
    let holder: Option<ComponentKey> = tx
        .prepare_cached("SELECT service, component FROM deployed WHERE container = ?1")?
        .query_row([row.container.as_str()], key)
        .optional()?;
    if let Some(key) = holder {
        return Err(RegistryError::Registered {
            container: row.container.clone(),
            key,
        });
    }
    let taken = tx
        .prepare_cached("SELECT 1 FROM deployed WHERE service = ?1 AND component = ?2")?
        .exists((row.key.service.as_str(), row.key.component.as_str()))?;
    if taken {
        return Err(RegistryError::Deployed {
            key: row.key.clone(),
        });
    }
    Ok(())
}

fn next_generation(tx: &WriteTx<'_>, key: &ComponentKey) -> Result<u64, RegistryError> {
    let last = tx
        .prepare_cached("SELECT generation FROM components WHERE service = ?1 AND component = ?2")?
        .query_row((key.service.as_str(), key.component.as_str()), |row| {
            count(row, 0)
        })
        .optional()?;
    Ok(last.unwrap_or(0) + 1)
}

/// What was taken over from no revision comes from this one, as a deployment that left it untouched says.
pub(super) fn comes_from(
    tx: &WriteTx<'_>,
    key: &ComponentKey,
    revision: CommitId,
) -> Result<(), RegistryError> {
    tx.prepare_cached(
        "UPDATE history SET revision = ?3
         WHERE revision = ?4 AND id = (SELECT history FROM deployed
                                       WHERE service = ?1 AND component = ?2)",
    )?
    .execute((
        key.service.as_str(),
        key.component.as_str(),
        revision.to_string(),
        CommitId::NONE.to_string(),
    ))?;
    Ok(())
}
