//! Every container of the engine at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use mcp_spec::observed::{ContainerId, LiveContainer, Observed};
use tokio::time::Instant;

use crate::registry::DeployedRow;

/// Whether the engine answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// It answered last time.
    Answers,
    /// It did not.
    Away {
        /// What the last call said.
        reason: String,
        /// When the first call failed.
        since: Timestamp,
    },
    /// It has not been asked yet.
    NeverSeen,
}

/// Every container of the engine at one moment; never changed once made.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The containers. Managed ones are inspected; of others there is what a list tells.
    pub containers: BTreeMap<ContainerId, Arc<LiveContainer>>,
    /// When the last full list was asked for.
    pub taken_at: Instant,
    /// When the last full list was asked for, by the wall clock.
    pub at: Timestamp,
    /// Whether the engine answers.
    pub engine: EngineState,
}

impl Snapshot {
    /// What is known of a component's container, by its registered id.
    #[must_use]
    pub fn observed(&self, row: &DeployedRow) -> Observed {
        self.of_container(&row.container)
    }

    /// What is known of the container with this id: nothing is absent while the engine is away.
    #[must_use]
    pub fn of_container(&self, id: &ContainerId) -> Observed {
        match &self.engine {
            EngineState::Answers => self.containers.get(id).map_or(Observed::Absent, |live| {
                Observed::Present(Box::new(LiveContainer::clone(live)))
            }),
            EngineState::Away { reason, .. } => Observed::Unknown {
                reason: reason.clone(),
            },
            EngineState::NeverSeen => Observed::Unknown {
                reason: "the engine has not been asked yet".to_owned(),
            },
        }
    }

    /// The container with this id, where the engine answers and shows it.
    #[must_use]
    pub fn container(&self, id: &ContainerId) -> Option<&Arc<LiveContainer>> {
        match self.engine {
            EngineState::Answers => self.containers.get(id),
            EngineState::Away { .. } | EngineState::NeverSeen => None,
        }
    }

    /// Whether the engine answered last time.
    #[must_use]
    pub fn engine_answers(&self) -> bool {
        self.engine == EngineState::Answers
    }
}
