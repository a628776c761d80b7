//! Looking at a registry on the disk without changing it, and copying it, also while an agent writes.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use mcp_spec::revision::CommitId;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use super::column::{count, parsed};
use super::{OpenError, open};

/// What a registry holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryFacts {
    /// Its schema; an older one is brought up to date at the agent's start.
    pub schema: i64,
    /// The accepted head, as it knows it.
    pub head: Option<CommitId>,
    /// Components that are deployed.
    pub deployed: u64,
    /// Deployments under way, or cut off.
    pub unfinished: u64,
}

/// Reads the whole file, and tells what is in it.
///
/// # Errors
///
/// [`OpenError`], as the agent's start would have it.
pub fn inspect(path: &Path) -> Result<RegistryFacts, OpenError> {
    let (connection, schema) = looking(path)?;
    facts(&connection, schema).map_err(|error| OpenError::from_sqlite(path, &error))
}

/// Writes a copy, consistent in itself, to a new file that only its owner can read.
///
/// # Errors
///
/// [`OpenError`], of the registry or of the copy.
pub fn copy(path: &Path, to: &Path) -> Result<RegistryFacts, OpenError> {
    let (connection, _) = looking(path)?;
    let of_copy = |source| OpenError::Io {
        path: to.to_owned(),
        source,
    };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)
        .map_err(of_copy)?;
    connection
        .execute("VACUUM INTO ?1", [to.to_string_lossy()])
        .map_err(|error| OpenError::from_sqlite(to, &error))?;
    drop(connection);
    inspect(to)
}

/// A connection that changes nothing, not even by its end, and the schema that it found.
fn looking(path: &Path) -> Result<(Connection, i64), OpenError> {
    let sqlite = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let size = std::fs::metadata(path)
        .map_err(|source| OpenError::Io {
            path: path.to_owned(),
            source,
        })?
        .len();
    // Read-write at the file level, since a reader of a write-ahead log updates its shared index.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    connection
        .busy_timeout(open::BUSY_TIMEOUT)
        .map_err(sqlite)?;
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        .map_err(sqlite)?;
    let schema = open::check(&connection, path, size)?;
    Ok((connection, schema))
}

fn facts(connection: &Connection, schema: i64) -> rusqlite::Result<RegistryFacts> {
    if schema == 0 {
        return Ok(RegistryFacts {
            schema,
            head: None,
            deployed: 0,
            unfinished: 0,
        });
    }
    let number = |statement: &str| connection.query_row(statement, [], |row| count(row, 0));
    Ok(RegistryFacts {
        schema,
        head: connection
            .query_row("SELECT commit_id FROM head", [], |row| parsed(row, 0))
            .optional()?,
        deployed: number("SELECT count(*) FROM deployed")?,
        unfinished: number("SELECT count(*) FROM deployments WHERE finished_at IS NULL")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;

    #[test]
    fn copy_is_whole_and_looking_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mcp.db");
        let registry = Registry::open(&path).unwrap();
        let facts = inspect(&path).unwrap();
        assert_eq!((facts.head, facts.deployed, facts.unfinished), (None, 0, 0));
        let to = folder.path().join("copy.db");
        assert_eq!(copy(&path, &to).unwrap(), facts);
        assert!(copy(&path, &to).is_err(), "nothing is overwritten");
        registry.close();
        let before = std::fs::read(&path).unwrap();
        inspect(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
        std::fs::write(&path, &before[..before.len() / 2]).unwrap();
        assert!(matches!(inspect(&path), Err(OpenError::Corrupt { .. })));
    }
}
