//! Bodies of specs: stored once, parsed once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mcp_spec::component::ComponentSpec;
use mcp_spec::image::Digest;
use rusqlite::{Connection, Row};

use super::{RegistryError, WriteTx};

/// Parsed specs that are kept. A node has at most some thousands of components; when it is full it
/// is emptied, since the specs in use come back with the next read.
const CACHED: usize = 4096;

/// Parsed specs by the digest of their stored body, so that reading all components parses only what is new.
#[derive(Debug, Default)]
pub(super) struct SpecCache {
    parsed: Mutex<HashMap<[u8; 32], Arc<ComponentSpec>>>,
}

impl SpecCache {
    /// The spec that a row's column `spec_body` names.
    pub(super) fn of(
        &self,
        connection: &Connection,
        row: &Row<'_>,
    ) -> Result<ComponentSpec, RegistryError> {
        let digest: [u8; 32] = row.get("spec_body")?;
        if let Some(spec) = self.lock().get(&digest) {
            return Ok(ComponentSpec::clone(spec));
        }
        let spec: ComponentSpec = connection
            .prepare_cached("SELECT body FROM specs WHERE body_digest = ?1")?
            .query_row([digest], |row| super::column::json(row, "body"))?;
        let mut parsed = self.lock();
        if parsed.len() >= CACHED {
            parsed.clear();
        }
        parsed.insert(digest, Arc::new(spec.clone()));
        Ok(spec)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Arc<ComponentSpec>>> {
        self.parsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores a spec's body where it is not there yet; returns the key that names it.
pub(super) fn store(tx: &WriteTx<'_>, spec: &ComponentSpec) -> Result<[u8; 32], RegistryError> {
    let body = serde_json::to_string(spec).map_err(|error| RegistryError::Refused {
        detail: error.to_string(),
    })?;
    let digest = *Digest::of(body.as_bytes()).as_bytes();
    tx.prepare_cached(
        "INSERT INTO specs (body_digest, body) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
    )?
    .execute((digest, body))?;
    Ok(digest)
}
