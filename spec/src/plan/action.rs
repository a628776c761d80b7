//! What is done to one component, from which container to which spec.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Reason;
use crate::component::{ComponentSpec, OnChange};
use crate::diff::FieldChange;
use crate::duration::Span;
use crate::image::Digest;
use crate::name::ComponentName;
use crate::observed::{ContainerId, ImageId};
use crate::revision::CommitId;

/// What is done to one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionKind {
    /// Make and start a container where there is none.
    Create,
    /// Make a new container, stop the old one, start the new one.
    Replace,
    /// Stop and start the same container.
    Restart,
    /// Write changed files in place and signal the container.
    Signal,
    /// Start the container that is there.
    Start,
    /// Stop the container and keep it.
    Stop,
    /// Stop and remove the container.
    Remove,
    /// Nothing, but that the revision advances.
    None,
}

impl ActionKind {
    /// The word that users and scripts see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Replace => "replace",
            Self::Restart => "restart",
            Self::Signal => "signal",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Remove => "remove",
            Self::None => "none",
        }
    }

    /// Whether it makes a new container.
    #[must_use]
    pub const fn creates(self) -> bool {
        matches!(self, Self::Create | Self::Replace)
    }
}

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The container that an action starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its spec.
    pub spec_digest: Digest,
    /// The commit that it was deployed at.
    pub revision: CommitId,
    /// The registered container.
    pub container: ContainerId,
    /// Its generation.
    pub generation: u64,
    /// Its image.
    pub image: ImageId,
    /// Whether the container is there.
    pub present: bool,
    /// Whether it ran when the plan was made.
    pub running: bool,
    /// How long its stop may take.
    pub stop_timeout: Span,
    /// What the container is now, where that is to count as what was deployed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<BTreeMap<String, String>>,
}

/// What an action leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// The spec.
    pub spec: ComponentSpec,
    /// Its digest.
    pub spec_digest: Digest,
    /// The commit that it comes from.
    pub revision: CommitId,
    /// The image to use, where one is recorded or known; else it is resolved while preparing.
    pub image: Option<ImageId>,
    /// Whether the component runs afterwards.
    pub running: bool,
}

/// One component's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// The component.
    pub component: ComponentName,
    /// What is done.
    pub kind: ActionKind,
    /// Why.
    pub reason: Reason,
    /// The fields that change, from what was deployed to what is wanted.
    pub changes: Vec<FieldChange>,
    /// What is there; `None` where the component was never deployed.
    pub before: Option<Before>,
    /// What will be there; `None` where it is removed or only stopped.
    pub after: Option<After>,
    /// Changed files and what they ask for, where `kind` is restart, signal or none.
    pub files: Vec<(String, OnChange)>,
    /// Whether an operator's stop ends with this action.
    pub clears_stop: bool,
    /// What becomes of the hold.
    pub hold: HoldChange,
    /// Whether the spec comes from uncommitted edits.
    pub uncommitted: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// What an action does to a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldChange {
    /// It stays as it is.
    Keep,
    /// The component is held at the plan's revision.
    Set,
    /// The hold ends.
    Release,
}
