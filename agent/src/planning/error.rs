//! Why no plan could be made.

use mcp_spec::name::ComponentKey;
use thiserror::Error;

use crate::desired::DesiredError;
use crate::registry::RegistryError;
use crate::revisions::ResolveError;
use crate::runtime::RuntimeError;

/// Why no plan could be made.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The node has no revision yet.
    #[error("this node has no revision yet")]
    NoRevision,
    /// The revision is not known here.
    #[error(transparent)]
    Revision(#[from] ResolveError),
    /// Its definitions cannot be had.
    #[error(transparent)]
    Desired(#[from] DesiredError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A tag could not be resolved.
    #[error("cannot resolve the image of {key}")]
    Image {
        /// The component.
        key: ComponentKey,
        /// What the engine said.
        source: RuntimeError,
    },
}

impl PlanError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoRevision => "push one with: mcp sync".to_owned(),
            Self::Revision(_) => "see what the node holds: mcp revisions".to_owned(),
            Self::Desired(DesiredError::Definitions { errors, .. }) => errors
                .iter()
                .take(3)
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "),
            Self::Desired(_) | Self::Registry(_) => {
                "look at the agent's log and disk: mcp-agent check".to_owned()
            }
            Self::Image { .. } => {
                "look whether the registry can be reached from the node".to_owned()
            }
        }
    }
}
