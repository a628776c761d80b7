//! Deployments: admission, state, end.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName, ServiceName, Target};
use mcp_spec::revision::CommitId;
use rusqlite::{Connection, OptionalExtension, Row, named_params};
use thiserror::Error;

use super::column::{At, after_prefix, at, at_option, bounded, cut, parsed, parsed_option};
use super::events::append;
use super::quarantine::Quarantined;
use super::requests::{Seen, note};
use super::words::words;
use super::{
    ComponentRecord, Lookup, MAX_ROWS, NewEvent, PruneBounds, Registry, RegistryError, StepRow,
    WriteTx, records,
};

/// Largest plan.
const PLAN_BYTES: usize = 4 * 1024 * 1024;

/// Longest error or actor; more is cut off.
const TEXT_BYTES: usize = 4096;

/// Deployments of a service that stay, whatever their age.
const KEPT: u32 = 100;

/// A deployment's id: 16 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeploymentId(String);

impl DeploymentId {
    /// The id of 64 random bits.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(format!("{bits:016x}"))
    }

    /// The whole id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first seven digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.0[..7]
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A text is no deployment id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a deployment id: write 16 lower-case hexadecimal digits")]
pub struct DeploymentIdError {
    /// The refused text, cut short.
    pub text: String,
}

impl FromStr for DeploymentId {
    type Err = DeploymentIdError;

    fn from_str(text: &str) -> Result<Self, DeploymentIdError> {
        if text.len() == 16 && is_hex(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(DeploymentIdError {
                text: text.chars().take(80).collect(),
            })
        }
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

words! {
    /// What started a deployment.
    Trigger {
        /// `mcp deploy`.
        Deploy = "deploy",
        /// `mcp rollback`.
        Rollback = "rollback",
        /// `mcp start`.
        Start = "start",
        /// `mcp stop`.
        Stop = "stop",
        /// `mcp restart`.
        Restart = "restart",
        /// `mcp purge`.
        Purge = "purge",
        /// The agent, since the service's reconcile is auto.
        Auto = "auto",
        /// The agent, after a reboot or an emptied engine.
        Boot = "boot",
        /// `mcp-agent rebuild`, which took running containers over.
        Rebuild = "rebuild",
        /// `mcp adopt`, which took running containers over.
        Adopt = "adopt",
    }
}

impl Trigger {
    /// Whether an operator asked for it.
    #[must_use]
    pub const fn is_operators(self) -> bool {
        !matches!(self, Self::Auto | Self::Boot | Self::Rebuild)
    }
}

words! {
    /// How far a deployment is.
    DeploymentState {
        /// Taken on.
        Admitted = "admitted",
        /// Its plan is recorded.
        Planned = "planned",
        /// All that can fail beforehand has succeeded; the next step crosses the line.
        Prepared = "prepared",
        /// Beyond the line: old containers stop, new ones start.
        Switching = "switching",
        /// All new containers have passed their gates.
        Healthy = "healthy",
        /// The registry says that the new ones are deployed.
        Committed = "committed",
        /// The old ones are gone.
        Cleaned = "cleaned",
        /// The old ones are being put back.
        Compensating = "compensating",
        /// The old ones run again.
        RolledBack = "rolled-back",
        /// It could not be put back.
        Failed = "failed",
        /// Ended before the line.
        Aborted = "aborted",
        /// A newer deployment took its place before the line.
        Superseded = "superseded",
    }
}

words! {
    /// How a deployment ended.
    Outcome {
        /// What was asked for runs.
        Deployed = "deployed",
        /// There was nothing to do.
        Unchanged = "unchanged",
        /// What ran before runs again.
        RolledBack = "rolled-back",
        /// Neither runs as it should.
        Failed = "failed",
        /// It runs, and a plan of it is still not empty.
        Degraded = "degraded",
        /// Ended before anything was touched.
        Aborted = "aborted",
        /// A newer deployment took its place.
        Superseded = "superseded",
    }
}

/// A deployment of one service or of one of its components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentRow {
    /// Its id.
    pub id: DeploymentId,
    /// The service.
    pub service: ServiceName,
    /// The component, where only one was asked for.
    pub component: Option<ComponentName>,
    /// Id of the request that asked for it; empty where the agent did.
    pub request_id: String,
    /// Digest of the request's bytes.
    pub request_digest: Digest,
    /// Who asked.
    pub actor: String,
    /// What started it.
    pub trigger: Trigger,
    /// The revision that is deployed.
    pub revision: Option<CommitId>,
    /// Who signed that revision.
    pub signer: Option<String>,
    /// The plan, as JSON that the registry does not look into; empty before it is made.
    pub plan: String,
    /// The plan's id.
    pub plan_id: String,
    /// How far it is.
    pub state: DeploymentState,
    /// How it ended; `None` while it runs.
    pub outcome: Option<Outcome>,
    /// What went wrong.
    pub error: Option<String>,
    /// When it was admitted.
    pub created_at: Timestamp,
    /// When it crossed the line.
    pub line_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// The answer to a request for a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is new and recorded.
    New,
    /// The same request has led to this deployment already.
    Existing(Box<DeploymentRow>),
    /// A request of this id with other bytes was seen: to be refused.
    Conflict,
}

/// The end of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// The deployment.
    pub id: DeploymentId,
    /// Its last state.
    pub state: DeploymentState,
    /// How it ended.
    pub outcome: Outcome,
    /// What went wrong.
    pub error: Option<String>,
    /// What became of its components; replaces what was recorded of the same ones.
    pub records: Vec<ComponentRecord>,
    /// Specs that failed their gate.
    pub quarantined: Vec<Quarantined>,
    /// Events to append.
    pub events: Vec<NewEvent>,
    /// When it ended.
    pub at: Timestamp,
}

impl Registry {
    /// Records a deployment, unless its request (by id, in the last 24 hours) has led to one for this
    /// service already. A deployment with an empty request id is always new.
    ///
    /// # Errors
    ///
    /// [`RegistryError::TooLarge`] for a plan over 4 MiB or a request id over 200 bytes.
    pub async fn admit(&self, row: DeploymentRow) -> Result<Admission, RegistryError> {
        bounded("a plan", row.plan.len(), PLAN_BYTES)?;
        self.write(move |tx| {
            if !row.request_id.is_empty() {
                let scope = format!("deployment {}", row.service);
                let (id, digest) = (&row.request_id, row.request_digest);
                match note(
                    tx,
                    id,
                    &scope,
                    digest,
                    Some(row.id.as_str()),
                    row.created_at,
                )? {
                    Seen::New => {}
                    Seen::Other => return Ok(Admission::Conflict),
                    Seen::Same(first) => {
                        let first = first
                            .and_then(|id| id.parse::<DeploymentId>().ok())
                            .unwrap_or_else(|| row.id.clone());
                        return by_id(tx, &first)?
                            .map(|row| Admission::Existing(Box::new(row)))
                            .ok_or(RegistryError::NoSuchDeployment { id: first });
                    }
                }
            }
            insert(tx, &row)?;
            Ok(Admission::New)
        })
        .await
    }

    /// Records the plan of an admitted deployment and calls it planned.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NoSuchDeployment`]; [`RegistryError::TooLarge`] for a plan over 4 MiB.
    pub async fn set_plan(
        &self,
        id: DeploymentId,
        revision: Option<CommitId>,
        signer: Option<String>,
        plan: String,
        plan_id: String,
    ) -> Result<(), RegistryError> {
        bounded("a plan", plan.len(), PLAN_BYTES)?;
        self.write(move |tx| {
            let changed = tx
                .prepare_cached(
                    "UPDATE deployments SET revision = ?2, signer = ?3, plan = ?4, plan_id = ?5,
                                            state = ?6
                     WHERE id = ?1",
                )?
                .execute((
                    id.as_str(),
                    revision.map(|revision| revision.to_string()),
                    signer,
                    plan,
                    plan_id,
                    DeploymentState::Planned.as_str(),
                ))?;
            found(changed, &id)
        })
        .await
    }

    /// Moves a deployment to another state, together with steps of its journal; on the disk when it
    /// returns. `line_at` is set once, when the line is crossed.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NoSuchDeployment`].
    pub async fn set_state(
        &self,
        id: DeploymentId,
        state: DeploymentState,
        line_at: Option<Timestamp>,
        steps: Vec<StepRow>,
    ) -> Result<(), RegistryError> {
        self.write(move |tx| {
            move_to(tx, &id, state, line_at)?;
            super::journal::store(tx, &steps)
        })
        .await
    }

    /// Lets a deployment cross the line, unless an operator stopped one of `heeded`, or holds one at
    /// another spec than the one beside it: then nothing is written, and it tells `false`.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NoSuchDeployment`].
    pub async fn cross_line(
        &self,
        id: DeploymentId,
        at: Timestamp,
        heeded: Vec<(ComponentKey, Option<Digest>)>,
    ) -> Result<bool, RegistryError> {
        self.write(move |tx| {
            let mut overridden = tx.prepare_cached(
                "SELECT 1 FROM deployed WHERE service = ?1 AND component = ?2
                 AND (stopped_by IS NOT NULL OR (hold IS NOT NULL AND spec_digest IS NOT ?3))",
            )?;
            for (key, spec) in &heeded {
                let spec = spec.map(|digest| digest.to_string());
                if overridden.exists((key.service.as_str(), key.component.as_str(), spec))? {
                    return Ok(false);
                }
            }
            move_to(tx, &id, DeploymentState::Switching, Some(at))?;
            Ok(true)
        })
        .await
    }

    /// Records the end of a deployment, its components' outcomes, quarantines and events, in one
    /// transaction.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NoSuchDeployment`].
    pub async fn finish(&self, finish: Finish) -> Result<(), RegistryError> {
        self.write(move |tx| {
            let row: Option<(ServiceName, Trigger)> = tx
                .prepare_cached(
                    "UPDATE deployments SET state = ?2, outcome = ?3, error = ?4, finished_at = ?5
                     WHERE id = ?1 RETURNING service, trigger_word",
                )?
                .query_row(
                    (
                        finish.id.as_str(),
                        finish.state.as_str(),
                        finish.outcome.as_str(),
                        finish.error.as_deref().map(|text| cut(text, TEXT_BYTES)),
                        At(finish.at),
                    ),
                    |row| Ok((parsed(row, 0)?, parsed(row, 1)?)),
                )
                .optional()?;
            let (service, trigger) = row.ok_or_else(|| RegistryError::NoSuchDeployment {
                id: finish.id.clone(),
            })?;
            records::store(tx, &finish.records)?;
            super::quarantine::store(tx, &finish.quarantined)?;
            append(tx, &finish.events)?;
            let went_well = matches!(
                finish.outcome,
                Outcome::Deployed | Outcome::Unchanged | Outcome::Degraded
            );
            if went_well && trigger.is_operators() {
                let components: Vec<ComponentKey> = finish
                    .records
                    .iter()
                    .map(|record| ComponentKey::new(service.clone(), record.component.clone()))
                    .collect();
                super::reconciling::begin_anew(tx, &service, &components, finish.at)?;
            }
            Ok(())
        })
        .await
    }

    /// The deployments that have not ended, oldest first: after a crash, those to recover.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn unfinished(&self) -> Result<Vec<DeploymentRow>, RegistryError> {
        self.read(|connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT * FROM deployments WHERE finished_at IS NULL ORDER BY seq LIMIT ?1",
            )?;
            let rows = statement.query_map([MAX_ROWS], deployment_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// The deployment whose id is `id_or_prefix` or starts with it.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn deployment(
        &self,
        id_or_prefix: String,
    ) -> Result<Lookup<DeploymentRow>, RegistryError> {
        if id_or_prefix.is_empty() || !is_hex(&id_or_prefix) {
            return Ok(Lookup::Missing);
        }
        self.read(move |connection, _| {
            let mut found = connection
                .prepare_cached(
                    "SELECT * FROM deployments WHERE id >= ?1 AND id < ?2 ORDER BY id LIMIT 5",
                )?
                .query_map(
                    [id_or_prefix.clone(), after_prefix(&id_or_prefix)],
                    deployment_row,
                )?
                .collect::<Result<Vec<_>, _>>()?;
            Ok(match found.len() {
                0 => Lookup::Missing,
                1 => found.pop().map_or(Lookup::Missing, Lookup::One),
                _ => Lookup::Ambiguous(found.iter().map(|row| row.id.to_string()).collect()),
            })
        })
        .await
    }

    /// The deployments that a request has led to, one a service.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn deployments_of_request(
        &self,
        request_id: String,
    ) -> Result<Vec<DeploymentRow>, RegistryError> {
        self.read(move |connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT * FROM deployments WHERE request_id = ?1 ORDER BY seq LIMIT ?2",
            )?;
            let rows = statement.query_map((request_id, MAX_ROWS), deployment_row)?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Deployments, newest first: all, a service's, or those that had a part for a component.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn history(
        &self,
        target: Option<Target>,
        limit: u32,
    ) -> Result<Vec<DeploymentRow>, RegistryError> {
        self.read(move |connection, _| {
            let service = target.as_ref().map(|target| target.service.as_str());
            let component = target
                .as_ref()
                .and_then(|target| target.component.as_ref())
                .map(ComponentName::as_str);
            // Two texts, so that each runs along its own index.
            let condition = match service {
                Some(_) => {
                    "service = :service
                     AND (:component IS NULL OR component = :component OR EXISTS (
                            SELECT 1 FROM component_records r
                            WHERE r.deployment = deployments.id AND r.component = :component))"
                }
                None => ":service IS NULL AND :component IS NULL",
            };
            let mut statement = connection.prepare_cached(&format!(
                "SELECT * FROM deployments WHERE {condition} ORDER BY seq DESC LIMIT :limit"
            ))?;
            let rows = statement.query_map(
                named_params! {
                    ":service": service,
                    ":component": component,
                    ":limit": limit.min(MAX_ROWS),
                },
                deployment_row,
            )?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}

fn found(changed: usize, id: &DeploymentId) -> Result<(), RegistryError> {
    if changed == 0 {
        return Err(RegistryError::NoSuchDeployment { id: id.clone() });
    }
    Ok(())
}

/// Fails where there is no such deployment; tells its trigger.
pub(super) fn require(
    connection: &Connection,
    id: &DeploymentId,
) -> Result<Trigger, RegistryError> {
    connection
        .prepare_cached("SELECT trigger_word FROM deployments WHERE id = ?1")?
        .query_row([id.as_str()], |row| parsed(row, 0))
        .optional()?
        .ok_or_else(|| RegistryError::NoSuchDeployment { id: id.clone() })
}

/// Moves a deployment to another state within a transaction.
pub(super) fn move_to(
    tx: &WriteTx<'_>,
    id: &DeploymentId,
    state: DeploymentState,
    line_at: Option<Timestamp>,
) -> Result<(), RegistryError> {
    let changed = tx
        .prepare_cached(
            "UPDATE deployments SET state = ?2, line_at = coalesce(line_at, ?3) WHERE id = ?1",
        )?
        .execute((id.as_str(), state.as_str(), line_at.map(At)))?;
    found(changed, id)
}

/// Takes old finished deployments with their records and journals, but never one that a component runs from.
pub(super) fn prune(tx: &WriteTx<'_>, bounds: &PruneBounds) -> Result<usize, RegistryError> {
    Ok(tx
        .prepare_cached(
            "DELETE FROM deployments WHERE seq IN (
               SELECT d.seq FROM deployments d
               WHERE d.finished_at < ?1
                 AND d.id NOT IN (SELECT deployment FROM deployed)
                 AND d.seq < (SELECT n.seq FROM deployments n WHERE n.service = d.service
                              ORDER BY n.seq DESC LIMIT 1 OFFSET ?2)
               ORDER BY d.seq LIMIT ?3)",
        )?
        .execute((At(bounds.before), KEPT - 1, bounds.chunk))?)
}

fn by_id(
    connection: &Connection,
    id: &DeploymentId,
) -> Result<Option<DeploymentRow>, RegistryError> {
    Ok(connection
        .prepare_cached("SELECT * FROM deployments WHERE id = ?1")?
        .query_row([id.as_str()], deployment_row)
        .optional()?)
}

pub(super) fn insert(tx: &WriteTx<'_>, row: &DeploymentRow) -> Result<(), RegistryError> {
    tx.prepare_cached(
        "INSERT INTO deployments (id, service, component, request_id, request_digest, actor,
            trigger_word, revision, signer, plan, plan_id, state, outcome, error, created_at,
            line_at, finished_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )?
    .execute(rusqlite::params![
        row.id.as_str(),
        row.service.as_str(),
        row.component.as_ref().map(ComponentName::as_str),
        row.request_id,
        row.request_digest.to_string(),
        cut(&row.actor, TEXT_BYTES),
        row.trigger.as_str(),
        row.revision.map(|revision| revision.to_string()),
        row.signer,
        row.plan,
        row.plan_id,
        row.state.as_str(),
        row.outcome.map(Outcome::as_str),
        row.error.as_deref().map(|text| cut(text, TEXT_BYTES)),
        At(row.created_at),
        row.line_at.map(At),
        row.finished_at.map(At),
    ])?;
    Ok(())
}

fn deployment_row(row: &Row<'_>) -> rusqlite::Result<DeploymentRow> {
    Ok(DeploymentRow {
        id: parsed(row, "id")?,
        service: parsed(row, "service")?,
        component: parsed_option(row, "component")?,
        request_id: row.get("request_id")?,
        request_digest: parsed(row, "request_digest")?,
        actor: row.get("actor")?,
        trigger: parsed(row, "trigger_word")?,
        revision: parsed_option(row, "revision")?,
        signer: row.get("signer")?,
        plan: row.get("plan")?,
        plan_id: row.get("plan_id")?,
        state: parsed(row, "state")?,
        outcome: parsed_option(row, "outcome")?,
        error: row.get("error")?,
        created_at: at(row, "created_at")?,
        line_at: at_option(row, "line_at")?,
        finished_at: at_option(row, "finished_at")?,
    })
}
