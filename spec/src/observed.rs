//! What an engine says of its containers, in words that are the same for every engine.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::name::ComponentKey;

/// Labels that the agent sets on what it creates. They are hints for a rebuild, not authority.
pub mod label {
    /// The node that created it.
    pub const NODE: &str = "mcp.node";
    /// The service.
    pub const SERVICE: &str = "mcp.service";
    /// The component.
    pub const COMPONENT: &str = "mcp.component";
    /// The commit that the spec came from.
    pub const REVISION: &str = "mcp.revision";
    /// The spec's digest.
    pub const SPEC: &str = "mcp.spec";
    /// The component's generation: a number that grows with each container made for it.
    pub const GENERATION: &str = "mcp.generation";
    /// The deployment that created it.
    pub const DEPLOYMENT: &str = "mcp.deployment";
    /// The variables whose values are secrets, `=` between their names.
    pub const SECRET_ENV: &str = "mcp.secret-env";
}

macro_rules! engine_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps an id that an engine gave.
            #[must_use]
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// The whole id.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first seven characters after any `sha256:`, for tables.
            #[must_use]
            pub fn short(&self) -> &str {
                let digits = self.0.strip_prefix("sha256:").unwrap_or(&self.0);
                digits.get(..7).unwrap_or(digits)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

engine_id!(
    /// An engine's id of a container.
    ContainerId
);
engine_id!(
    /// An engine's id of an image: `sha256:` and 64 digits, whatever the engine writes.
    ImageId
);

/// The state of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum ContainerState {
    /// Made and never started.
    Created,
    /// Running; the process id of its first process in the engine's PID namespace.
    Running {
        /// Process id; `None` where the engine did not say (a list does not).
        pid: Option<u32>,
    },
    /// Frozen by the engine.
    Paused,
    /// Ended.
    Exited {
        /// Exit code of its first process.
        code: i32,
        /// Whether the engine says that it was killed for its memory.
        oom: bool,
    },
    /// Anything else that the engine says (`removing`, `dead`, `stopping`).
    Other(String),
}

impl ContainerState {
    /// Whether a process runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. } | Self::Paused)
    }
}

/// One container as the engine describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveContainer {
    /// The engine's id.
    pub id: ContainerId,
    /// Its name, without a leading slash.
    pub name: String,
    /// The image's id.
    pub image_id: ImageId,
    /// The image's name as the engine shows it.
    pub image_name: String,
    /// Its state.
    pub state: ContainerState,
    /// Its labels, the image's own included.
    pub labels: BTreeMap<String, String>,
    /// When it was started last; `None` before the first start and in a list.
    pub started_at: Option<Timestamp>,
    /// When it ended; `None` while it runs and in a list.
    pub finished_at: Option<Timestamp>,
    /// The engine's normal form of its configuration, field by field, for baseline and drift.
    /// Empty in a list.
    pub fields: BTreeMap<String, String>,
    /// Addresses by network, in the engine's own network. Empty in a list and while it is stopped.
    pub addresses: BTreeMap<String, std::net::IpAddr>,
}

impl LiveContainer {
    /// The component that the labels claim, where they name one.
    #[must_use]
    pub fn claimed_key(&self) -> Option<ComponentKey> {
        Some(ComponentKey::new(
            self.labels.get(label::SERVICE)?.parse().ok()?,
            self.labels.get(label::COMPONENT)?.parse().ok()?,
        ))
    }

    /// The generation that the labels claim.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.labels.get(label::GENERATION)?.parse().ok()
    }
}

/// What is known of a component's container at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "observed")]
pub enum Observed {
    /// The engine shows it.
    Present(Box<LiveContainer>),
    /// The engine answered, and it is not there.
    Absent,
    /// The engine did not answer: nothing follows from this.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// The observed state of a component, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ObservedState {
    /// A process runs.
    Running,
    /// The container is there and nothing runs.
    Stopped,
    /// A job that ended well.
    Completed,
    /// It ended and its restart policy is spent.
    Failed,
    /// There is no container.
    Absent,
    /// The engine did not answer.
    Unknown,
}

impl ObservedState {
    /// The word that users and scripts see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for ObservedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for ObservedState {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        Ok(match text {
            "running" => Self::Running,
            "stopped" => Self::Stopped,
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            "absent" => Self::Absent,
            "unknown" => Self::Unknown,
            _ => {
                return Err(UnknownWord {
                    text: text.to_owned(),
                });
            }
        })
    }
}

/// What the operator wants of a component's container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DesiredState {
    /// It runs.
    Running,
    /// It does not run.
    Stopped,
    /// It is none of the agent's business.
    Ignore,
}

impl DesiredState {
    /// The word that users and scripts see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Ignore => "ignore",
        }
    }
}

impl fmt::Display for DesiredState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for DesiredState {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        Ok(match text {
            "running" => Self::Running,
            "stopped" => Self::Stopped,
            "ignore" => Self::Ignore,
            _ => {
                return Err(UnknownWord {
                    text: text.to_owned(),
                });
            }
        })
    }
}

/// A stored word that no state has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` names no state")]
pub struct UnknownWord {
    /// The word.
    pub text: String,
}
