//! Opening the file: checks before anything is changed, settings, migrations.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use rusqlite_migration::{M, Migrations};

use super::OpenError;
use crate::disk;

/// Stands in the file's header and tells a registry from other programs' databases: "MCPR".
const APPLICATION_ID: i64 = 0x4d43_5052;

/// SQLite before 3.51.3 can reset its write-ahead log under a reader and lose commits
/// (<https://sqlite.org/releaselog/3_51_3.html>).
const OLDEST_SQLITE: i32 = 3_051_003;

/// How long a statement waits for a lock that another process holds (a backup, a shell).
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Above this size the start does not read the whole file to look for damage: about a second's worth.
const CHECKED_BYTES: u64 = 256 * 1024 * 1024;

/// The agent has about eighty distinct statements; all stay prepared.
const STATEMENTS: usize = 128;

const MIGRATIONS: Migrations<'static> = Migrations::from_slice(MIGRATION_LIST);
/// Migrations in order; one that was released is never edited.
const MIGRATION_LIST: &[M<'static>] = &[
    M::up(include_str!("migrations/0001_registry.sql")),
    M::up(include_str!("migrations/0002_alerts.sql")),
    M::up(include_str!("migrations/0003_adoptions.sql")),
    M::up(include_str!("migrations/0004_reconciling.sql")),
    M::up(include_str!("migrations/0005_lost.sql")),
    M::up(include_str!("migrations/0006_statements.sql")),
];

/// The newest schema that this agent knows.
#[expect(clippy::cast_possible_wrap, reason = "there will never be that many")]
pub const SCHEMA: i64 = MIGRATION_LIST.len() as i64;

/// Opens the one connection that writes, and brings the schema up to date.
pub(super) fn writing(path: &Path) -> Result<Connection, OpenError> {
    if rusqlite::version_number() < OLDEST_SQLITE {
        return Err(OpenError::OldSqlite {
            found: rusqlite::version(),
        });
    }
    let size = make(path)?;
    let sqlite = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(sqlite)?;
    check(&connection, path, size)?;

    connection
        .execute_batch(&format!(
            "PRAGMA application_id = {APPLICATION_ID};
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA foreign_keys = ON;
             PRAGMA trusted_schema = OFF;
             PRAGMA journal_size_limit = 16777216;
             PRAGMA cache_size = -2048;"
        ))
        .map_err(sqlite)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    MIGRATIONS.to_latest(&mut connection).map_err(|error| {
        if let rusqlite_migration::Error::RusqliteError { err, .. } = &error {
            OpenError::from_sqlite(path, err)
        } else {
            OpenError::Sqlite {
                path: path.to_owned(),
                detail: error.to_string(),
            }
        }
    })?;
    Ok(connection)
}

/// Opens a connection that only reads.
pub(super) fn reading(path: &Path) -> rusqlite::Result<Connection> {
    // Read-write at the file level, since a reader of a write-ahead log updates its shared index.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch(
        "PRAGMA query_only = ON; PRAGMA trusted_schema = OFF; PRAGMA cache_size = -2048;",
    )?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// Makes an empty file, readable by the agent alone, where there is none; tells its size.
fn make(path: &Path) -> Result<u64, OpenError> {
    let io = |source| OpenError::Io {
        path: path.to_owned(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size == 0
        && let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty())
    {
        // The name itself has to be on the disk before anything in it is acknowledged.
        disk::sync_dir(directory).map_err(io)?;
    }
    Ok(size)
}

/// Refuses what this agent must not write to, before anything is changed; tells the schema.
pub(super) fn check(connection: &Connection, path: &Path, size: u64) -> Result<i64, OpenError> {
    let sqlite = |error: rusqlite::Error| OpenError::from_sqlite(path, &error);
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get(0));
    let application: i64 = number("application_id").map_err(sqlite)?;
    let schema: i64 = number("user_version").map_err(sqlite)?;
    let tables: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
        .map_err(sqlite)?;
    if application != APPLICATION_ID && (application != 0 || schema != 0 || tables != 0) {
        return Err(OpenError::Foreign {
            path: path.to_owned(),
        });
    }
    let known = SCHEMA;
    if schema > known {
        return Err(OpenError::NewerSchema {
            path: path.to_owned(),
            found: schema,
            known,
        });
    }
    if size > 0 && size <= CHECKED_BYTES {
        let verdict: String = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(sqlite)?;
        if verdict != "ok" {
            return Err(OpenError::Corrupt {
                path: path.to_owned(),
                detail: verdict,
            });
        }
    }
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_valid() {
        MIGRATIONS.validate().unwrap();
    }
}
