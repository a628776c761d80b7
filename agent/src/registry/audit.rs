//! Who asked for what, and what came of it.

use jiff::Timestamp;

use super::column::{At, at, count, cut};
use super::{MAX_ROWS, Registry, RegistryError};

/// Longest text in an audit column; more is cut off.
const TEXT_BYTES: usize = 4096;

/// One call that changed something, or tried to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Its number; given by the registry, ignored when it is appended.
    pub seq: u64,
    /// When it ended.
    pub at: Timestamp,
    /// The subject of the token.
    pub who: String,
    /// The token's id.
    pub token: String,
    /// Who signed the request and with which key; empty where nobody did.
    pub signer: String,
    /// The method called.
    pub method: String,
    /// What it was about.
    pub target: String,
    /// Address of the caller.
    pub from: String,
    /// The request's id.
    pub request_id: String,
    /// `ok`, or the named reason of the refusal.
    pub result: String,
}

impl Registry {
    /// Appends one line to the audit.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written.
    pub async fn append_audit(&self, row: AuditRow) -> Result<(), RegistryError> {
        self.write(move |tx| {
            tx.prepare_cached(
                "INSERT INTO audit (at, who, method, target, from_addr, request_id, result, token, signer)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute((
                At(row.at),
                cut(&row.who, TEXT_BYTES),
                cut(&row.method, TEXT_BYTES),
                cut(&row.target, TEXT_BYTES),
                cut(&row.from, TEXT_BYTES),
                cut(&row.request_id, TEXT_BYTES),
                cut(&row.result, TEXT_BYTES),
                cut(&row.token, TEXT_BYTES),
                cut(&row.signer, TEXT_BYTES),
            ))?;
            Ok(())
        })
        .await
    }

    /// The audit's newest lines, newest first.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn audit(&self, limit: u32) -> Result<Vec<AuditRow>, RegistryError> {
        self.read(move |connection, _| {
            let mut statement =
                connection.prepare_cached("SELECT * FROM audit ORDER BY seq DESC LIMIT ?1")?;
            let rows = statement.query_map([limit.min(MAX_ROWS)], |row| {
                Ok(AuditRow {
                    seq: count(row, "seq")?,
                    at: at(row, "at")?,
                    who: row.get("who")?,
                    token: row.get("token")?,
                    signer: row.get("signer")?,
                    method: row.get("method")?,
                    target: row.get("target")?,
                    from: row.get("from_addr")?,
                    request_id: row.get("request_id")?,
                    result: row.get("result")?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}
