//! Requests that were seen: a repetition gets the first one's result, and never a second effect.
//!
//! Deployments are admitted by [`Registry::admit`]; other calls that change something use
//! [`Registry::begin_request`] and [`Registry::answer_request`]. Both share one table, so an id that
//! one of them has seen with other bytes is refused by both.

use jiff::{SignedDuration, Timestamp};
use mcp_spec::image::Digest;
use rusqlite::{Connection, OptionalExtension};

use super::column::{At, bounded, parsed};
use super::{PruneBounds, Registry, RegistryError, WriteTx};

/// How long a request's id is remembered.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// Longest request id.
const ID_BYTES: usize = 200;

/// Largest remembered answer: the wire's bound.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestAdmission {
    /// Never seen: do it, then answer.
    New,
    /// Seen with the same bytes; its answer, `None` where it has not ended (or the agent was killed in it).
    Repeated(Option<String>),
    /// Seen with other bytes: to be refused.
    Conflict,
}

/// How long the id of a signed request is kept after its end, in seconds: a clock that was ahead by less and
/// was set back lets nothing in twice.
const STATEMENT_KEPT_SECONDS: i64 = 24 * 3600;

impl Registry {
    /// Notes the id of a signed request's statement, which ends at `expires` (seconds since 1970); whether
    /// it is new. Those that ended a day ago are forgotten on the way.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be written: nobody can tell then whether it came before.
    pub async fn note_statement(
        &self,
        id: String,
        expires: i64,
        now: Timestamp,
    ) -> Result<bool, RegistryError> {
        bounded("the statement's id", id.len(), ID_BYTES)?;
        let oldest = now.as_second().saturating_sub(STATEMENT_KEPT_SECONDS);
        self.write(move |tx| {
            tx.prepare_cached("DELETE FROM statements WHERE expires < ?1")?
                .execute([oldest])?;
            let noted = tx
                .prepare_cached("INSERT OR IGNORE INTO statements (id, expires) VALUES (?1, ?2)")?
                .execute((id, expires))?;
            Ok(noted == 1)
        })
        .await
    }

    /// Notes a request, unless it was seen in the last 24 hours. `scope` is the method. An empty id is never noted.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for an id over 200 bytes.
    pub async fn begin_request(
        &self,
        request_id: String,
        scope: String,
        digest: Digest,
        at: Timestamp,
    ) -> Result<RequestAdmission, RegistryError> {
        if request_id.is_empty() {
            return Ok(RequestAdmission::New);
        }
        self.write(move |tx| {
            match note(tx, &request_id, &format!("call {scope}"), digest, None, at)? {
                Seen::New => Ok(RequestAdmission::New),
                Seen::Same(answer) => Ok(RequestAdmission::Repeated(answer)),
                Seen::Other => Ok(RequestAdmission::Conflict),
            }
        })
        .await
    }

    /// Notes a request together with what it will lead to, before any of it is begun; else as
    /// [`Self::begin_request`].
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for an id over 200 bytes or an answer over 4 MiB.
    pub async fn remember_request(
        &self,
        request_id: String,
        scope: String,
        digest: Digest,
        answer: String,
        at: Timestamp,
    ) -> Result<RequestAdmission, RegistryError> {
        bounded("an answer", answer.len(), ANSWER_BYTES)?;
        self.write(move |tx| {
            let scope = format!("call {scope}");
            match note(tx, &request_id, &scope, digest, Some(&answer), at)? {
                Seen::New => Ok(RequestAdmission::New),
                Seen::Same(answer) => Ok(RequestAdmission::Repeated(answer)),
                Seen::Other => Ok(RequestAdmission::Conflict),
            }
        })
        .await
    }

    /// What was noted with a request, and the digest of its bytes.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn remembered_request(
        &self,
        request_id: String,
        scope: String,
    ) -> Result<Option<(Digest, String)>, RegistryError> {
        self.read(move |connection, _| {
            Ok(connection
                .prepare_cached(
                    "SELECT digest, coalesce(answer, '') AS answer FROM requests
                     WHERE request_id = ?1 AND scope = ?2",
                )?
                .query_row((request_id, format!("call {scope}")), |row| {
                    Ok((parsed(row, "digest")?, row.get("answer")?))
                })
                .optional()?)
        })
        .await
    }

    /// Remembers a request's answer for its repetitions.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for an answer over 4 MiB.
    pub async fn answer_request(
        &self,
        request_id: String,
        scope: String,
        answer: String,
    ) -> Result<(), RegistryError> {
        bounded("an answer", answer.len(), ANSWER_BYTES)?;
        self.write(move |tx| {
            tx.prepare_cached(
                "UPDATE requests SET answer = ?3 WHERE request_id = ?1 AND scope = ?2",
            )?
            .execute((request_id, format!("call {scope}"), answer))?;
            Ok(())
        })
        .await
    }
}

/// What [`note`] found.
pub(super) enum Seen {
    /// Nothing; it is noted now.
    New,
    /// The same request, with what stands beside it.
    Same(Option<String>),
    /// A request of that id with other bytes.
    Other,
}

/// Notes a request within a transaction.
pub(super) fn note(
    tx: &WriteTx<'_>,
    request_id: &str,
    scope: &str,
    digest: Digest,
    answer: Option<&str>,
    at: Timestamp,
) -> Result<Seen, RegistryError> {
    bounded("the request id", request_id.len(), ID_BYTES)?;
    let oldest = at.checked_sub(REMEMBERED).unwrap_or(Timestamp::MIN);
    tx.prepare_cached("DELETE FROM requests WHERE request_id = ?1 AND at < ?2")?
        .execute((request_id, At(oldest)))?;
    if let Some(first) = any_digest(tx, request_id)?
        && first != digest
    {
        return Ok(Seen::Other);
    }
    let seen: Option<Option<String>> = tx
        .prepare_cached("SELECT answer FROM requests WHERE request_id = ?1 AND scope = ?2")?
        .query_row((request_id, scope), |row| row.get(0))
        .optional()?;
    if let Some(answer) = seen {
        return Ok(Seen::Same(answer));
    }
    tx.prepare_cached(
        "INSERT INTO requests (request_id, scope, digest, answer, at) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute((request_id, scope, digest.to_string(), answer, At(at)))?;
    Ok(Seen::New)
}

fn any_digest(connection: &Connection, request_id: &str) -> Result<Option<Digest>, RegistryError> {
    Ok(connection
        .prepare_cached("SELECT digest FROM requests WHERE request_id = ?1 LIMIT 1")?
        .query_row([request_id], |row| parsed(row, "digest"))
        .optional()?)
}

pub(super) fn prune(tx: &WriteTx<'_>, bounds: &PruneBounds) -> Result<usize, RegistryError> {
    Ok(tx
        .prepare_cached(
            "DELETE FROM requests WHERE (request_id, scope) IN (
               SELECT request_id, scope FROM requests WHERE at < ?1 ORDER BY at LIMIT ?2)",
        )?
        .execute((At(bounds.before), bounds.chunk))?)
}
