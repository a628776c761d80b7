//! Specs that failed their gate, which auto does not try again.

use jiff::Timestamp;
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::ImageId;

use super::column::{At, at, cut, key, parsed};
use super::{DeploymentId, MAX_ROWS, Registry, RegistryError, WriteTx};

/// Longest reason; more is cut off.
const REASON_BYTES: usize = 4096;

/// A spec with an image that failed its gate on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The component.
    pub key: ComponentKey,
    /// Its spec's digest.
    pub spec_digest: Digest,
    /// The image that it failed with.
    pub image_id: ImageId,
    /// The deployment that it failed in.
    pub deployment: DeploymentId,
    /// When.
    pub at: Timestamp,
    /// How, for people.
    pub reason: String,
}

impl Registry {
    /// Quarantines specs; one that is quarantined already takes the newer reason.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn quarantine(&self, specs: Vec<Quarantined>) -> Result<(), RegistryError> {
        self.write(move |tx| store(tx, &specs)).await
    }

    /// All quarantined specs, by component.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn quarantined(&self) -> Result<Vec<Quarantined>, RegistryError> {
        self.read(|connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT * FROM quarantined ORDER BY service, component, at LIMIT ?1",
            )?;
            let rows = statement.query_map([MAX_ROWS], |row| {
                Ok(Quarantined {
                    key: key(row)?,
                    spec_digest: parsed(row, "spec_digest")?,
                    image_id: ImageId::new(row.get::<_, String>("image_id")?),
                    deployment: parsed(row, "deployment")?,
                    at: at(row, "at")?,
                    reason: row.get("reason")?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Lifts the quarantine of all the component's specs.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn lift_quarantine(&self, key: ComponentKey) -> Result<(), RegistryError> {
        self.write(move |tx| {
            tx.prepare_cached("DELETE FROM quarantined WHERE service = ?1 AND component = ?2")?
                .execute((key.service.as_str(), key.component.as_str()))?;
            Ok(())
        })
        .await
    }
}

/// Quarantines specs within a transaction.
pub(super) fn store(tx: &WriteTx<'_>, specs: &[Quarantined]) -> Result<(), RegistryError> {
    let mut insert = tx.prepare_cached(
        "INSERT INTO quarantined (service, component, spec_digest, image_id, deployment, at, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT DO UPDATE SET deployment = excluded.deployment, at = excluded.at,
                                   reason = excluded.reason",
    )?;
    for spec in specs {
        insert.execute((
            spec.key.service.as_str(),
            spec.key.component.as_str(),
            spec.spec_digest.to_string(),
            spec.image_id.as_str(),
            spec.deployment.as_str(),
            At(spec.at),
            cut(&spec.reason, REASON_BYTES),
        ))?;
    }
    Ok(())
}

/// Lifts the quarantine of a spec that has passed its gate.
pub(super) fn passed(
    tx: &WriteTx<'_>,
    key: &ComponentKey,
    spec_digest: &Digest,
    image_id: &ImageId,
) -> Result<(), RegistryError> {
    tx.prepare_cached(
        "DELETE FROM quarantined
         WHERE service = ?1 AND component = ?2 AND spec_digest = ?3 AND image_id = ?4",
    )?
    .execute((
        key.service.as_str(),
        key.component.as_str(),
        spec_digest.to_string(),
        image_id.as_str(),
    ))?;
    Ok(())
}
