//! What each component ran, one row a successful deployment: for rollbacks, images to keep, and `why`.

use std::collections::BTreeSet;

use jiff::Timestamp;
use mcp_spec::component::ComponentSpec;
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::ImageId;
use mcp_spec::revision::CommitId;
use rusqlite::{Connection, OptionalExtension, Params, Row};

use super::column::{At, at, key, parsed, parsed_option};
use super::specs::SpecCache;
use super::{DeployedRow, DeploymentId, MAX_ROWS, PruneBounds, Registry, RegistryError, WriteTx};

/// Images of a component that are kept from pruning, beside those of its current and its last-good spec.
const KEPT_IMAGES: usize = 5;

/// Rows of a component that stay, whatever their age.
const KEPT_ROWS: u32 = 100;

/// One spec that a component ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// Its id; grows with time.
    pub id: i64,
    /// The component.
    pub key: ComponentKey,
    /// The spec.
    pub spec: ComponentSpec,
    /// The spec's digest.
    pub spec_digest: Digest,
    /// The image that it ran.
    pub image_id: ImageId,
    /// That image's digest in its registry, where it was pulled.
    pub image_digest: Option<Digest>,
    /// The revision that the spec came from.
    pub revision: CommitId,
    /// The deployment.
    pub deployment: DeploymentId,
    /// When it was committed.
    pub at: Timestamp,
    /// For a rollback the row that it restored, else the row's own id: the next rollback goes on
    /// from there.
    pub base: i64,
}

impl Registry {
    /// What a rollback of the component restores: the last spec before the running one that was
    /// another. After a rollback it goes further back. `None` where there is none, or the component is
    /// not deployed.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn rollback_target(
        &self,
        key: ComponentKey,
    ) -> Result<Option<HistoryRow>, RegistryError> {
        self.read(move |connection, specs| {
            one(
                connection,
                specs,
                "SELECT h.* FROM deployed d
                 JOIN history c ON c.id = d.history
                 JOIN history h ON h.service = d.service AND h.component = d.component
                               AND h.id < c.base AND h.spec_digest <> d.spec_digest
                               AND h.revision <> ?3
                 WHERE d.service = ?1 AND d.component = ?2
                 ORDER BY h.id DESC LIMIT 1",
                (
                    key.service.as_str(),
                    key.component.as_str(),
                    // What was taken over and never deployed is in no revision that anybody signed.
                    CommitId::NONE.to_string(),
                ),
            )
        })
        .await
    }

    /// The last spec that the component ran at `revision`.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn rollback_target_at(
        &self,
        key: ComponentKey,
        revision: CommitId,
    ) -> Result<Option<HistoryRow>, RegistryError> {
        self.read(move |connection, specs| {
            one(
                connection,
                specs,
                "SELECT * FROM history WHERE service = ?1 AND component = ?2 AND revision = ?3
                 ORDER BY id DESC LIMIT 1",
                (
                    key.service.as_str(),
                    key.component.as_str(),
                    revision.to_string(),
                ),
            )
        })
        .await
    }

    /// What the component ran, newest first; also of one that is removed.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn history_of(
        &self,
        key: ComponentKey,
        limit: u32,
    ) -> Result<Vec<HistoryRow>, RegistryError> {
        self.read(move |connection, specs| {
            let mut statement = connection.prepare_cached(
                "SELECT * FROM history WHERE service = ?1 AND component = ?2
                 ORDER BY id DESC LIMIT ?3",
            )?;
            let mut rows = statement.query((
                key.service.as_str(),
                key.component.as_str(),
                limit.min(MAX_ROWS),
            ))?;
            let mut history = Vec::new();
            while let Some(row) = rows.next()? {
                history.push(history_row(connection, specs, row)?);
            }
            Ok(history)
        })
        .await
    }

    /// The image that this spec of the component last ran with.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn image_for_spec(
        &self,
        key: ComponentKey,
        spec_digest: Digest,
    ) -> Result<Option<(ImageId, Option<Digest>)>, RegistryError> {
        self.read(move |connection, _| {
            Ok(connection
                .prepare_cached(
                    "SELECT image_id, image_digest FROM history
                     WHERE service = ?1 AND component = ?2 AND spec_digest = ?3
                     ORDER BY id DESC LIMIT 1",
                )?
                .query_row(
                    (
                        key.service.as_str(),
                        key.component.as_str(),
                        spec_digest.to_string(),
                    ),
                    |row| {
                        Ok((
                            ImageId::new(row.get::<_, String>("image_id")?),
                            parsed_option(row, "image_digest")?,
                        ))
                    },
                )
                .optional()?)
        })
        .await
    }

    /// The images that no prune may take: of each deployed component the current one, that of its
    /// rollback, and the last five; of a component that was removed, but not purged, the last one.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn images_to_keep(&self) -> Result<Vec<(ComponentKey, ImageId)>, RegistryError> {
        self.read(|connection, _| {
            let mut components = connection.prepare_cached(
                "SELECT c.service, c.component, d.image_id, d.spec_digest, h.base
                 FROM components c
                 LEFT JOIN deployed d USING (service, component)
                 LEFT JOIN history h ON h.id = d.history
                 WHERE c.purged = 0 ORDER BY c.service, c.component",
            )?;
            let mut past = connection.prepare_cached(
                "SELECT id, image_id, spec_digest FROM history
                 WHERE service = ?1 AND component = ?2 ORDER BY id DESC",
            )?;
            let mut kept = BTreeSet::new();
            let mut rows = components.query([])?;
            while let Some(row) = rows.next()? {
                let key = key(row)?;
                let current: Option<String> = row.get("image_id")?;
                let current_spec: Option<String> = row.get("spec_digest")?;
                let base: Option<i64> = row.get("base")?;
                let last = if current.is_some() { KEPT_IMAGES } else { 1 };
                let mut images: BTreeSet<String> = BTreeSet::new();
                let mut awaits_last_good = current.is_some();
                let mut entries = past.query((key.service.as_str(), key.component.as_str()))?;
                while (images.len() < last || awaits_last_good)
                    && let Some(entry) = entries.next()?
                {
                    let image: String = entry.get("image_id")?;
                    let is_last_good = awaits_last_good
                        && base.is_some_and(|base| {
                            entry.get::<_, i64>("id").is_ok_and(|id| id < base)
                        })
                        && current_spec != Some(entry.get("spec_digest")?);
                    if is_last_good {
                        awaits_last_good = false;
                    }
                    if is_last_good || images.len() < last {
                        images.insert(image);
                    }
                }
                images.extend(current);
                kept.extend(
                    images
                        .into_iter()
                        .map(|image| (key.clone(), ImageId::new(image))),
                );
            }
            Ok(kept.into_iter().collect())
        })
        .await
    }

    /// Every image that a deployment of this registry has used, or was about to.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn images_known(&self) -> Result<BTreeSet<ImageId>, RegistryError> {
        self.read(|connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT image_id AS image FROM history
                 UNION SELECT json_extract(data, '$.image') FROM steps
                       WHERE step = 'make' AND json_valid(data)
                         AND json_type(data, '$.image') = 'text'",
            )?;
            let images = statement.query_map([], |row| row.get::<_, String>("image"))?;
            Ok(images
                .map(|image| image.map(ImageId::new))
                .collect::<Result<_, _>>()?)
        })
        .await
    }
}

/// Adds what a component runs now, within a transaction; `base` is the row that it restores.
pub(super) fn add(
    tx: &WriteTx<'_>,
    row: &DeployedRow,
    body: [u8; 32],
    base: Option<i64>,
) -> Result<i64, RegistryError> {
    let id = tx
        .prepare_cached(
            "INSERT INTO history (service, component, spec_body, spec_digest, image_id,
                                  image_digest, revision, deployment, at, base)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .insert((
            row.key.service.as_str(),
            row.key.component.as_str(),
            body,
            row.spec_digest.to_string(),
            row.image_id.as_str(),
            row.image_digest.map(|digest| digest.to_string()),
            row.revision.to_string(),
            row.deployment.as_str(),
            At(row.deployed_at),
            base.unwrap_or(0),
        ))?;
    if base.is_none() {
        tx.prepare_cached("UPDATE history SET base = id WHERE id = ?1")?
            .execute([id])?;
    }
    Ok(id)
}

/// Takes old rows beyond what stays of each component, and then the specs that nothing names.
pub(super) fn prune(tx: &WriteTx<'_>, bounds: &PruneBounds) -> Result<usize, RegistryError> {
    let rows = tx
        .prepare_cached(
            "DELETE FROM history WHERE id IN (
               SELECT h.id FROM history h
               WHERE h.at < ?1
                 AND h.id NOT IN (SELECT history FROM deployed)
                 AND h.id < (SELECT n.id FROM history n
                             WHERE n.service = h.service AND n.component = h.component
                             ORDER BY n.id DESC LIMIT 1 OFFSET ?2)
               ORDER BY h.id LIMIT ?3)",
        )?
        .execute((At(bounds.before), KEPT_ROWS - 1, bounds.chunk))?;
    let specs = tx
        .prepare_cached(
            "DELETE FROM specs WHERE body_digest IN (
               SELECT s.body_digest FROM specs s
               WHERE NOT EXISTS (SELECT 1 FROM history WHERE spec_body = s.body_digest)
                 AND NOT EXISTS (SELECT 1 FROM deployed WHERE spec_body = s.body_digest)
               LIMIT ?1)",
        )?
        .execute([bounds.chunk])?;
    Ok(rows + specs)
}

fn one(
    connection: &Connection,
    specs: &SpecCache,
    sql: &str,
    params: impl Params,
) -> Result<Option<HistoryRow>, RegistryError> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    match rows.next()? {
        Some(row) => Ok(Some(history_row(connection, specs, row)?)),
        None => Ok(None),
    }
}

fn history_row(
    connection: &Connection,
    specs: &SpecCache,
    row: &Row<'_>,
) -> Result<HistoryRow, RegistryError> {
    Ok(HistoryRow {
        id: row.get("id")?,
        key: key(row)?,
        spec: specs.of(connection, row)?,
        spec_digest: parsed(row, "spec_digest")?,
        image_id: ImageId::new(row.get::<_, String>("image_id")?),
        image_digest: parsed_option(row, "image_digest")?,
        revision: parsed(row, "revision")?,
        deployment: parsed(row, "deployment")?,
        at: at(row, "at")?,
        base: row.get("base")?,
    })
}
