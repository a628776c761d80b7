//! How values of the domain stand in columns: words and ids as text, times as microseconds, the rest as JSON.

use std::error::Error;
use std::str::FromStr;

use jiff::Timestamp;
use mcp_spec::name::ComponentKey;
use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Row, RowIndex};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::RegistryError;

/// A text column whose value is parsed, never taken as it is.
pub(super) struct Parsed<T>(pub(super) T);

impl<T> FromSql for Parsed<T>
where
    T: FromStr,
    T::Err: Error + Send + Sync + 'static,
{
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value
            .as_str()?
            .parse()
            .map(Self)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// A text column that holds JSON.
pub(super) struct Json<T>(pub(super) T);

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?)
            .map(Self)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

impl<T: Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        serde_json::to_string(&self.0)
            .map(ToSqlOutput::from)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
    }
}

/// An integer column that holds a time, in microseconds since 1970 in UTC.
pub(super) struct At(pub(super) Timestamp);

impl FromSql for At {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        Timestamp::from_microsecond(value.as_i64()?)
            .map(Self)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

impl ToSql for At {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0.as_microsecond()))
    }
}

/// An integer column that holds a count or a sequence number.
pub(super) struct Count(pub(super) u64);

impl FromSql for Count {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        u64::try_from(number)
            .map(Self)
            .map_err(|_| FromSqlError::OutOfRange(number))
    }
}

impl ToSql for Count {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        // SQLite's integers are signed: what does not fit could never have been counted.
        Ok(ToSqlOutput::from(i64::try_from(self.0).unwrap_or(i64::MAX)))
    }
}

/// Reads a parsed column.
pub(super) fn parsed<T>(row: &Row<'_>, index: impl RowIndex) -> rusqlite::Result<T>
where
    T: FromStr,
    T::Err: Error + Send + Sync + 'static,
{
    row.get::<_, Parsed<T>>(index).map(|value| value.0)
}

/// Reads a parsed column that may be empty.
pub(super) fn parsed_option<T>(row: &Row<'_>, index: impl RowIndex) -> rusqlite::Result<Option<T>>
where
    T: FromStr,
    T::Err: Error + Send + Sync + 'static,
{
    row.get::<_, Option<Parsed<T>>>(index)
        .map(|value| value.map(|value| value.0))
}

/// Reads a time.
pub(super) fn at(row: &Row<'_>, index: impl RowIndex) -> rusqlite::Result<Timestamp> {
    row.get::<_, At>(index).map(|value| value.0)
}

/// Reads a time that may be empty.
pub(super) fn at_option(
    row: &Row<'_>,
    index: impl RowIndex,
) -> rusqlite::Result<Option<Timestamp>> {
    row.get::<_, Option<At>>(index)
        .map(|value| value.map(|value| value.0))
}

/// Reads a count.
pub(super) fn count(row: &Row<'_>, index: impl RowIndex) -> rusqlite::Result<u64> {
    row.get::<_, Count>(index).map(|value| value.0)
}

/// Reads JSON.
pub(super) fn json<T: DeserializeOwned>(
    row: &Row<'_>,
    index: impl RowIndex,
) -> rusqlite::Result<T> {
    row.get::<_, Json<T>>(index).map(|value| value.0)
}

/// Reads the columns `service` and `component`.
pub(super) fn key(row: &Row<'_>) -> rusqlite::Result<ComponentKey> {
    Ok(ComponentKey::new(
        parsed(row, "service")?,
        parsed(row, "component")?,
    ))
}

/// Refuses what is larger than its bound.
pub(super) fn bounded(what: &'static str, size: usize, limit: usize) -> Result<(), RegistryError> {
    if size > limit {
        return Err(RegistryError::TooLarge { what, limit });
    }
    Ok(())
}

/// The longest start of `text` that has at most `limit` bytes.
pub(super) fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// The last moment that sorts after every text that starts with a prefix of hexadecimal digits.
pub(super) fn after_prefix(prefix: &str) -> String {
    format!("{prefix}g")
}
