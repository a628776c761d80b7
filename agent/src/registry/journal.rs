//! The journal of a deployment: each step before it is done and after.

use jiff::Timestamp;
use mcp_spec::name::ComponentName;

use super::column::{At, Count, at, bounded, count, parsed, parsed_option};
use super::words::words;
use super::{DeploymentId, MAX_ROWS, Registry, RegistryError, WriteTx};

/// Largest data of one step.
const DATA_BYTES: usize = 256 * 1024;

/// Longest name of a step.
const STEP_BYTES: usize = 100;

words! {
    /// Whether a step is about to be done or was done.
    StepPhase {
        /// About to be done: after a crash nobody knows.
        Begun = "begun",
        /// Done.
        Done = "done",
    }
}

/// One entry of a deployment's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRow {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The component that it is about; `None` for a step of the whole deployment.
    pub component: Option<ComponentName>,
    /// What is done, one word.
    pub step: String,
    /// Before or after.
    pub phase: StepPhase,
    /// What recovery needs, as JSON.
    pub data: String,
    /// When.
    pub at: Timestamp,
    /// Its place in the deployment's journal, from 1; given by the registry, ignored when it is written.
    pub seq: u64,
}

impl Registry {
    /// Writes steps; they are on the disk when this returns.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NoSuchDeployment`]; [`RegistryError::TooLarge`] for data over 256 KiB.
    pub async fn journal(&self, steps: Vec<StepRow>) -> Result<(), RegistryError> {
        self.write(move |tx| store(tx, &steps)).await
    }

    /// A deployment's journal in the order in which it was written.
    ///
    /// # Errors
    ///
    /// Where the registry cannot be read.
    pub async fn steps(&self, deployment: DeploymentId) -> Result<Vec<StepRow>, RegistryError> {
        self.read(move |connection, _| {
            let mut statement = connection.prepare_cached(
                "SELECT * FROM steps WHERE deployment = ?1 ORDER BY seq LIMIT ?2",
            )?;
            let rows = statement.query_map((deployment.as_str(), MAX_ROWS), |row| {
                Ok(StepRow {
                    deployment: parsed(row, "deployment")?,
                    component: parsed_option(row, "component")?,
                    step: row.get("step")?,
                    phase: parsed(row, "phase")?,
                    data: row.get("data")?,
                    at: at(row, "at")?,
                    seq: count(row, "seq")?,
                })
            })?;
            Ok(rows.collect::<Result<_, _>>()?)
        })
        .await
    }
}

/// Writes steps within a transaction.
pub(super) fn store(tx: &WriteTx<'_>, steps: &[StepRow]) -> Result<(), RegistryError> {
    let mut next = tx.prepare_cached(
        "SELECT coalesce(max(seq), 0) + 1 AS next FROM steps WHERE deployment = ?1",
    )?;
    let mut insert = tx.prepare_cached(
        "INSERT INTO steps (deployment, seq, component, step, phase, data, at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for step in steps {
        bounded("a step's data", step.data.len(), DATA_BYTES)?;
        bounded("a step's name", step.step.len(), STEP_BYTES)?;
        let seq = next.query_row([step.deployment.as_str()], |row| count(row, "next"))?;
        if seq == 1 {
            super::deployments::require(tx, &step.deployment)?;
        }
        insert.execute((
            step.deployment.as_str(),
            Count(seq),
            step.component.as_ref().map(ComponentName::as_str),
            &step.step,
            step.phase.as_str(),
            &step.data,
            At(step.at),
        ))?;
    }
    Ok(())
}
