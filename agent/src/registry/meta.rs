//! Small facts about the agent itself, by name.

use rusqlite::OptionalExtension;

use super::column::bounded;
use super::{Registry, RegistryError};

/// Largest value.
const VALUE_BYTES: usize = 64 * 1024;

impl Registry {
    /// A small fact that was remembered under `name`.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn remembered(&self, name: &'static str) -> Result<Option<String>, RegistryError> {
        self.read(move |connection, _| {
            Ok(connection
                .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
                .query_row([name], |row| row.get(0))
                .optional()?)
        })
        .await
    }

    /// Remembers a small fact under `name`, in place of what stood there.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for a value over 64 KiB.
    pub async fn remember(&self, name: &'static str, value: String) -> Result<(), RegistryError> {
        bounded("a remembered value", value.len(), VALUE_BYTES)?;
        self.write(move |tx| {
            tx.prepare_cached(
                "INSERT INTO meta (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            )?
            .execute((name, value))?;
            Ok(())
        })
        .await
    }
}
