//! What became of each component in a deployment.

use std::collections::BTreeMap;

use mcp_spec::diff::FieldChange;
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentName;
use mcp_spec::observed::ImageId;
use mcp_spec::revision::CommitId;
use rusqlite::Row;

use super::column::{Count, Json, bounded, count, cut, json, parsed, parsed_option};
use super::{DeploymentId, MAX_ROWS, Registry, RegistryError, WriteTx};

/// Longest error; more is cut off.
const TEXT_BYTES: usize = 4096;

/// Lines of a failed container that stay with its deployment.
const TAIL_LINES: usize = 200;

/// Longest line of them; more is cut off.
const TAIL_LINE_BYTES: usize = 2048;

/// What became of one component in a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComponentRecord {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The component.
    pub component: ComponentName,
    /// What was planned for it.
    pub action: String,
    /// What came of it.
    pub outcome: String,
    /// The revision that it ran at before.
    pub from_revision: Option<CommitId>,
    /// The revision that it was to run at.
    pub to_revision: Option<CommitId>,
    /// The image's digest in its registry.
    pub image_digest: Option<Digest>,
    /// The image's id in the engine.
    pub image_id: Option<ImageId>,
    /// How long its part took, in milliseconds.
    pub duration_ms: u64,
    /// How long nothing of it ran, in milliseconds.
    pub downtime_ms: u64,
    /// What went wrong.
    pub error: Option<String>,
    /// The fields that changed.
    pub changes: Vec<FieldChange>,
    /// The last lines of a container that failed its gate.
    pub log_tail: Vec<String>,
}

impl Registry {
    /// What became of the components of these deployments, each list in the order of the deployment.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for more than [`MAX_ROWS`] deployments.
    pub async fn records(
        &self,
        deployments: Vec<DeploymentId>,
    ) -> Result<BTreeMap<DeploymentId, Vec<ComponentRecord>>, RegistryError> {
        bounded(
            "the list of deployments",
            deployments.len(),
            MAX_ROWS as usize,
        )?;
        self.read(move |connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT * FROM component_records WHERE deployment = ?1 ORDER BY position",
            )?;
            deployments
                .into_iter()
                .map(|id| {
                    let rows = statement
                        .query_map([id.as_str()], record_row)?
                        .collect::<Result<Vec<_>, _>>()?;
                    Ok((id, rows))
                })
                .collect()
        })
        .await
    }
}

/// Stores what became of components, within a transaction.
pub(super) fn store(tx: &WriteTx<'_>, records: &[ComponentRecord]) -> Result<(), RegistryError> {
    let mut upsert = tx.prepare_cached(
        "INSERT OR REPLACE INTO component_records (deployment, component, position, action,
            outcome, from_revision, to_revision, image_digest, image_id, duration_ms,
            downtime_ms, error, changes, log_tail)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
    )?;
    for (position, record) in records.iter().enumerate() {
        let skipped = record.log_tail.len().saturating_sub(TAIL_LINES);
        let tail: Vec<&str> = record.log_tail[skipped..]
            .iter()
            .map(|line| cut(line, TAIL_LINE_BYTES))
            .collect();
        upsert.execute(rusqlite::params![
            record.deployment.as_str(),
            record.component.as_str(),
            i64::try_from(position).unwrap_or(i64::MAX),
            record.action,
            record.outcome,
            record.from_revision.map(|revision| revision.to_string()),
            record.to_revision.map(|revision| revision.to_string()),
            record.image_digest.map(|digest| digest.to_string()),
            record.image_id.as_ref().map(ImageId::as_str),
            Count(record.duration_ms),
            Count(record.downtime_ms),
            record.error.as_deref().map(|text| cut(text, TEXT_BYTES)),
            Json(&record.changes),
            Json(tail),
        ])?;
    }
    Ok(())
}

fn record_row(row: &Row<'_>) -> rusqlite::Result<ComponentRecord> {
    Ok(ComponentRecord {
        deployment: parsed(row, "deployment")?,
        component: parsed(row, "component")?,
        action: row.get("action")?,
        outcome: row.get("outcome")?,
        from_revision: parsed_option(row, "from_revision")?,
        to_revision: parsed_option(row, "to_revision")?,
        image_digest: parsed_option(row, "image_digest")?,
        image_id: row.get::<_, Option<String>>("image_id")?.map(ImageId::new),
        duration_ms: count(row, "duration_ms")?,
        downtime_ms: count(row, "downtime_ms")?,
        error: row.get("error")?,
        changes: json(row, "changes")?,
        log_tail: json(row, "log_tail")?,
    })
}
