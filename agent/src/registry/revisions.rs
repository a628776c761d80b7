//! Accepted revisions, the head, and which revision changed which component.

use std::collections::BTreeMap;

use jiff::Timestamp;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName, ServiceName};
use mcp_spec::revision::CommitId;
use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::column::{At, Json, after_prefix, at, bounded, count, json, key, parsed, parsed_option};
use super::events::append;
use super::words::words;
use super::{Lookup, MAX_ROWS, NewEvent, Registry, RegistryError};

words! {
    /// How a revision reached the agent.
    RevisionSource {
        /// The CLI pushed it.
        Push = "push",
        /// The agent fetched it from its upstream.
        Fetch = "fetch",
        /// Somebody pushed it into the inbox.
        Inbox = "inbox",
        /// A rebuild found it in the agent's own repository.
        Rebuild = "rebuild",
    }
}

/// An accepted revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionRow {
    /// Its place in the order of acceptance, from 1; given by the registry, ignored when it is recorded.
    pub seq: u64,
    /// The commit.
    pub commit: CommitId,
    /// Its parents.
    pub parents: Vec<CommitId>,
    /// First line of its message.
    pub subject: String,
    /// The principal whose key signed it.
    pub signer: String,
    /// Fingerprint of that key.
    pub fingerprint: String,
    /// The author's date, for show only.
    pub authored_at: Timestamp,
    /// When it was accepted.
    pub received_at: Timestamp,
    /// How it came.
    pub source: RevisionSource,
    /// Who brought it: an operator's principal, or the address of upstream or inbox.
    pub received_by: String,
}

/// An accepted revision gave a component another spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecChange {
    /// The revision.
    pub commit: CommitId,
    /// The component.
    pub key: ComponentKey,
    /// Its new spec's digest; `None` where the revision removed it.
    pub spec_digest: Option<Digest>,
}

/// Which revisions to list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RevisionFilter {
    /// Only those that changed this service.
    pub service: Option<ServiceName>,
    /// Only those that changed this component of it.
    pub component: Option<ComponentName>,
    /// At most so many.
    pub limit: u32,
}

impl Registry {
    /// Records accepted revisions, parents before children, and moves the head, in one transaction.
    /// What is recorded already stays as it is, so a repetition after a crash does no harm.
    ///
    /// # Errors
    ///
    /// [`RegistryError::HeadWouldFall`] where `head` was accepted before the present head;
    /// [`RegistryError::NoSuchRevision`] where `head` or a change names a revision that is not recorded.
    pub async fn record_revisions(
        &self,
        rows: Vec<RevisionRow>,
        head: CommitId,
        changes: Vec<SpecChange>,
        events: Vec<NewEvent>,
    ) -> Result<(), RegistryError> {
        self.write(move |tx| {
            for row in &rows {
                insert(tx, row)?;
            }
            for change in &changes {
                let seq = seq_of(tx, &change.commit)?.ok_or(RegistryError::NoSuchRevision {
                    commit: change.commit,
                })?;
                tx.prepare_cached(
                    "INSERT INTO spec_changes (service, component, seq, spec_digest)
                     VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO NOTHING",
                )?
                .execute((
                    change.key.service.as_str(),
                    change.key.component.as_str(),
                    seq,
                    change.spec_digest.map(|digest| digest.to_string()),
                ))?;
            }
            let asked = seq_of(tx, &head)?.ok_or(RegistryError::NoSuchRevision { commit: head })?;
            if let Some(present) = read_head(tx)?
                && seq_of(tx, &present)?.is_some_and(|present| asked < present)
            {
                return Err(RegistryError::HeadWouldFall {
                    head: present,
                    asked: head,
                });
            }
            tx.prepare_cached(
                "INSERT INTO head (only, commit_id) VALUES (1, ?1)
                 ON CONFLICT (only) DO UPDATE SET commit_id = excluded.commit_id",
            )?
            .execute([head.to_string()])?;
            append(tx, &events)?;
            Ok(())
        })
        .await
    }

    /// Lets the head go back to what the repository holds, after an operator confirmed it, and forgets
    /// the revisions that it lacks.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NoSuchRevision`] where `head` is not recorded.
    pub async fn set_back(
        &self,
        head: Option<CommitId>,
        gone: Vec<CommitId>,
        events: Vec<NewEvent>,
    ) -> Result<(), RegistryError> {
        self.write(move |tx| {
            match head {
                Some(head) => {
                    seq_of(tx, &head)?.ok_or(RegistryError::NoSuchRevision { commit: head })?;
                    tx.execute("UPDATE head SET commit_id = ?1", [head.to_string()])?;
                }
                None => {
                    tx.execute("DELETE FROM head", [])?;
                }
            }
            for commit in &gone {
                if let Some(seq) = seq_of(tx, commit)? {
                    tx.execute("DELETE FROM spec_changes WHERE seq = ?1", [seq])?;
                    tx.execute("DELETE FROM revisions WHERE seq = ?1", [seq])?;
                }
            }
            append(tx, &events)?;
            Ok(())
        })
        .await
    }

    /// The accepted head; `None` before the first accepted push.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn head(&self) -> Result<Option<CommitId>, RegistryError> {
        self.read(|connection, _| read_head(connection)).await
    }

    /// Every accepted revision's id, at most a million: twenty bytes each.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn commits(&self) -> Result<Vec<CommitId>, RegistryError> {
        self.read(|connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT commit_id FROM revisions ORDER BY seq DESC LIMIT 1000000",
            )?;
            let rows = statement.query_map([], |row| parsed(row, "commit_id"))?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// One accepted revision.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn revision(&self, commit: CommitId) -> Result<Option<RevisionRow>, RegistryError> {
        self.read(move |connection, _| {
            Ok(connection
                .prepare_cached("SELECT * FROM revisions WHERE commit_id = ?1")?
                .query_row([commit.to_string()], revision_row)
                .optional()?)
        })
        .await
    }

    /// The accepted revision whose id starts with `prefix` (hexadecimal digits).
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn revision_by_prefix(
        &self,
        prefix: String,
    ) -> Result<Lookup<RevisionRow>, RegistryError> {
        self.read(move |connection, _| {
            let mut found = connection
                .prepare_cached(
                    "SELECT * FROM revisions WHERE commit_id >= ?1 AND commit_id < ?2
                     ORDER BY commit_id LIMIT 5",
                )?
                .query_map([prefix.clone(), after_prefix(&prefix)], revision_row)?
                .collect::<Result<Vec<_>, _>>()?;
            Ok(match found.len() {
                0 => Lookup::Missing,
                1 => found.pop().map_or(Lookup::Missing, Lookup::One),
                _ => Lookup::Ambiguous(found.iter().map(|row| row.commit.to_string()).collect()),
            })
        })
        .await
    }

    /// Accepted revisions, newest first.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn revisions(
        &self,
        filter: RevisionFilter,
    ) -> Result<Vec<RevisionRow>, RegistryError> {
        self.read(move |connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT * FROM revisions
                 WHERE :service IS NULL
                    OR seq IN (SELECT seq FROM spec_changes
                               WHERE service = :service
                                 AND (:component IS NULL OR component = :component))
                 ORDER BY seq DESC LIMIT :limit",
            )?;
            let rows = statement.query_map(
                named_params! {
                    ":service": filter.service.as_ref().map(ServiceName::as_str),
                    ":component": filter.component.as_ref().map(ComponentName::as_str),
                    ":limit": filter.limit.min(MAX_ROWS),
                },
                revision_row,
            )?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Revisions that were accepted after `commit` (all, where it is `None`), oldest first.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NoSuchRevision`] where `commit` was never accepted.
    pub async fn accepted_after(
        &self,
        commit: Option<CommitId>,
        limit: u32,
    ) -> Result<Vec<RevisionRow>, RegistryError> {
        self.read(move |connection, _| {
            let seq = match commit {
                Some(commit) => {
                    seq_of(connection, &commit)?.ok_or(RegistryError::NoSuchRevision { commit })?
                }
                None => 0,
            };
            let mut statement = connection
                .prepare_cached("SELECT * FROM revisions WHERE seq > ?1 ORDER BY seq LIMIT ?2")?;
            let rows = statement.query_map((seq, limit.min(MAX_ROWS)), revision_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Of `commits`, those that were accepted.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for more than [`MAX_ROWS`] commits.
    pub async fn accepted_among(
        &self,
        commits: Vec<CommitId>,
    ) -> Result<Vec<CommitId>, RegistryError> {
        bounded("the list of commits", commits.len(), MAX_ROWS as usize)?;
        self.read(move |connection, _| {
            let mut accepted = Vec::new();
            for commit in commits {
                if seq_of(connection, &commit)?.is_some() {
                    accepted.push(commit);
                }
            }
            Ok(accepted)
        })
        .await
    }

    /// How many accepted revisions after `revision` changed the component's spec, its removal
    /// included; 0 where the head's spec is the deployed one, however it got there.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn behind(
        &self,
        key: ComponentKey,
        revision: CommitId,
        spec_digest: Digest,
    ) -> Result<u32, RegistryError> {
        let mut all = self.behind_all(vec![(key, revision, spec_digest)]).await?;
        Ok(all.pop().unwrap_or(0))
    }

    /// [`Self::behind`] for many components in one snapshot, in the order given.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for more than [`MAX_ROWS`] components.
    pub async fn behind_all(
        &self,
        deployed: Vec<(ComponentKey, CommitId, Digest)>,
    ) -> Result<Vec<u32>, RegistryError> {
        bounded("the list of components", deployed.len(), MAX_ROWS as usize)?;
        self.read(move |connection, _| {
            // Most components of a node run at one of few revisions.
            let mut seqs: BTreeMap<CommitId, i64> = BTreeMap::new();
            let mut newest = connection.prepare_cached(NEWEST_CHANGE)?;
            let mut later = connection.prepare_cached(
                "SELECT count(*) FROM spec_changes
                 WHERE service = ?1 AND component = ?2 AND seq > ?3",
            )?;
            deployed
                .iter()
                .map(|(key, revision, digest)| {
                    let (service, component) = (key.service.as_str(), key.component.as_str());
                    let at_head = newest
                        .query_row((service, component), |row| {
                            parsed_option::<Digest>(row, "spec_digest")
                        })
                        .optional()?;
                    if at_head.is_none_or(|at_head| at_head == Some(*digest)) {
                        return Ok(0);
                    }
                    let seq = match seqs.get(revision) {
                        Some(seq) => *seq,
                        None => {
                            // A revision from before a rebuild: all changes count.
                            let seq = seq_of(connection, revision)?.unwrap_or(0);
                            seqs.insert(*revision, seq);
                            seq
                        }
                    };
                    Ok(later.query_row((service, component, seq), |row| row.get(0))?)
                })
                .collect()
        })
        .await
    }

    /// The digest of the component's spec at the head; `None` where the head does not define it.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn head_digest(&self, key: ComponentKey) -> Result<Option<Digest>, RegistryError> {
        self.read(move |connection, _| {
            Ok(connection
                .prepare_cached(NEWEST_CHANGE)?
                .query_row((key.service.as_str(), key.component.as_str()), |row| {
                    parsed_option(row, "spec_digest")
                })
                .optional()?
                .flatten())
        })
        .await
    }

    /// The components that the head defines, with their specs' digests.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn head_digests(&self) -> Result<BTreeMap<ComponentKey, Digest>, RegistryError> {
        self.read(|connection, _| {
            // SQLite takes the other columns of a `max()` from the row that holds the maximum.
            let mut statement = connection.prepare_cached(
                "SELECT service, component, spec_digest, max(seq) FROM spec_changes
                 GROUP BY service, component",
            )?;
            let rows = statement.query_map([], |row| {
                Ok((key(row)?, parsed_option::<Digest>(row, "spec_digest")?))
            })?;
            let mut digests = BTreeMap::new();
            for row in rows {
                if let (key, Some(digest)) = row? {
                    digests.insert(key, digest);
                }
            }
            Ok(digests)
        })
        .await
    }
}

/// The newest change is the head's: the head moves with what is recorded, and forward only.
const NEWEST_CHANGE: &str = "SELECT spec_digest FROM spec_changes
     WHERE service = ?1 AND component = ?2 ORDER BY seq DESC LIMIT 1";

fn insert(connection: &Connection, row: &RevisionRow) -> Result<(), RegistryError> {
    connection
        .prepare_cached(
            "INSERT INTO revisions (commit_id, parents, subject, signer, fingerprint, authored_at,
                                    received_at, source, received_by)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (commit_id) DO NOTHING",
        )?
        .execute((
            row.commit.to_string(),
            Json(&row.parents),
            &row.subject,
            &row.signer,
            &row.fingerprint,
            At(row.authored_at),
            At(row.received_at),
            row.source.as_str(),
            &row.received_by,
        ))?;
    Ok(())
}

fn seq_of(connection: &Connection, commit: &CommitId) -> Result<Option<i64>, RegistryError> {
    Ok(connection
        .prepare_cached("SELECT seq FROM revisions WHERE commit_id = ?1")?
        .query_row([commit.to_string()], |row| row.get(0))
        .optional()?)
}

fn read_head(connection: &Connection) -> Result<Option<CommitId>, RegistryError> {
    Ok(connection
        .prepare_cached("SELECT commit_id FROM head")?
        .query_row([], |row| parsed(row, "commit_id"))
        .optional()?)
}

fn revision_row(row: &Row<'_>) -> rusqlite::Result<RevisionRow> {
    Ok(RevisionRow {
        seq: count(row, "seq")?,
        commit: parsed(row, "commit_id")?,
        parents: json(row, "parents")?,
        subject: row.get("subject")?,
        signer: row.get("signer")?,
        fingerprint: row.get("fingerprint")?,
        authored_at: at(row, "authored_at")?,
        received_at: at(row, "received_at")?,
        source: parsed(row, "source")?,
        received_by: row.get("received_by")?,
    })
}
