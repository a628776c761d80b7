//! Why a deployment, or one component's part of it, failed.

use std::borrow::Cow;
use std::io;

use mcp_spec::name::ComponentName;
use thiserror::Error;

use super::gate::GateFailure;
use super::stage::StageError;
use crate::registry::RegistryError;
use crate::runtime::RuntimeError;
use crate::secrets::memory::MemoryError;

/// Why a component could not be prepared, switched or passed.
#[derive(Debug, Error)]
pub(super) enum PartFailure {
    /// The engine refused or failed.
    #[error("{doing}: {source}")]
    Engine {
        /// What was tried.
        doing: &'static str,
        /// What the engine said.
        source: RuntimeError,
    },
    /// It is not allowed to pull, and the image is not there.
    #[error("image {image} is not on the node, and `pull = \"never\"`")]
    ImageAbsent {
        /// The reference.
        image: String,
    },
    /// The very image of an older deployment is gone.
    #[error("image {id} of {image} is gone from the node, and cannot be pulled again by its id")]
    ImageLost {
        /// The reference.
        image: String,
        /// The recorded id.
        id: String,
    },
    /// What is brought back has to be what it was, and its name stands for something else now.
    #[error("image {image} is {found} now, and {recorded} was deployed")]
    ImageOther {
        /// The reference.
        image: String,
        /// What was deployed.
        recorded: String,
        /// What its name stands for.
        found: String,
    },
    /// A bind's source is missing.
    #[error("bind source {path} does not exist")]
    SourceMissing {
        /// The path.
        path: String,
    },
    /// A bind's source cannot be made or looked at.
    #[error("bind source {path}: {source}")]
    Source {
        /// The path.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
    /// A host port is in use by something else.
    #[error("port {port} is in use by another program on this node")]
    PortTaken {
        /// The port as the definition has it.
        port: String,
    },
    /// The name is taken by a container that is not the agent's.
    #[error("the name {name} is taken by container {id}, which is not managed")]
    NameTaken {
        /// The name.
        name: String,
        /// The other container.
        id: String,
    },
    /// A file of the repository could not be staged.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// A file of the repository could not be read.
    #[error("cannot read {path} of the revision: {cause}")]
    File {
        /// Path in the repository.
        path: String,
        /// Why.
        cause: String,
    },
    /// A secret cannot be had.
    #[error("secret {secret}: {cause}")]
    Secret {
        /// Service and name.
        secret: String,
        /// Why, with the mend.
        cause: String,
    },
    /// There is no place in memory for secrets.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// It did not pass its gate.
    #[error("{0}")]
    Gate(#[from] GateFailure),
    /// What it depends on failed.
    #[error("needs {dependency}, which failed")]
    Dependency {
        /// The component that failed.
        dependency: ComponentName,
    },
    /// A job was cut off in the middle, and a job is not run twice.
    #[error("interrupted: the job was cut off, and is not run again by itself")]
    Interrupted,
    /// It failed before the agent was restarted.
    #[error("{text}")]
    Earlier {
        /// What was said then.
        text: String,
        /// Whether it was its gate that it failed.
        gate: bool,
    },
    /// The deployment was given up before it was this component's turn.
    #[error("not reached")]
    NotReached,
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl PartFailure {
    /// Whether it failed its gate, so that its spec is to blame: neither the engine nor somebody who
    /// took the container away.
    #[must_use]
    pub(super) const fn is_gate(&self) -> bool {
        match self {
            Self::Gate(failure) => !matches!(failure, GateFailure::Engine(_) | GateFailure::Gone),
            Self::Earlier { gate, .. } => *gate,
            _ => false,
        }
    }

    /// What the engine says where it will never start this container.
    #[must_use]
    pub(super) const fn stuck(&self) -> Option<&RuntimeError> {
        match self {
            Self::Engine {
                source: source @ RuntimeError::Stuck { .. },
                ..
            } => Some(source),
            _ => None,
        }
    }

    /// Whether it follows from another component's failure.
    #[must_use]
    pub(super) const fn is_consequence(&self) -> bool {
        matches!(self, Self::NotReached | Self::Dependency { .. })
    }

    /// The mend, where one is known.
    #[must_use]
    pub(super) fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Memory(error) => Some(error.hint().into()),
            other => other.known_hint().map(Cow::Borrowed),
        }
    }

    fn known_hint(&self) -> Option<&'static str> {
        if let Self::Engine { source, .. } = self
            && is_full(source)
        {
            return Some(
                "the disk of the engine is full: make room where it keeps images and containers, `podman system df` or `docker system df` tells what takes it; then deploy again",
            );
        }
        Some(match self {
            Self::Registry(RegistryError::Full { .. }) => {
                "make room on the disk of the agent's data directory, then deploy again"
            }
            Self::Source { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room on the disk of that folder, then deploy again"
            }
            Self::ImageAbsent { .. } => {
                "load the image on the node, or allow a pull with `pull = \"missing\"`"
            }
            Self::ImageLost { .. } => "deploy the head, or load the image on the node again",
            Self::ImageOther { .. } => {
                "deploy the service by hand to take the new image, or load the recorded one on the node"
            }
            Self::Engine {
                source: RuntimeError::Pull { .. },
                ..
            } => {
                "see that the image's name and tag are right and that the node reaches the registry: pull it on the node as the engine's user"
            }
            Self::SourceMissing { .. } => "create it on the node, or use a named volume",
            Self::Engine {
                source: RuntimeError::PortTaken { .. },
                ..
            } => {
                "see who listens there: ss -ltnp; where nobody does the engine holds on to a port that it was opening when it was killed: restart the engine"
            }
            Self::PortTaken { .. } => "choose another host port, or stop what listens there",
            Self::NameTaken { .. } => "rename or remove that container",
            Self::Stage(StageError::Owner { .. }) => "run the agent as root, or leave `owner` out",
            _ => return None,
        })
    }
}

/// Whether the engine failed for want of room on its disk.
fn is_full(error: &RuntimeError) -> bool {
    let text = match error {
        RuntimeError::Refused { message, .. } => message,
        RuntimeError::Pull { cause, .. } => cause,
        _ => return false,
    };
    text.contains("no space left on device") || text.contains("disk quota exceeded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_to_blame_for_its_gate_and_neither_engine_nor_foreign_hand_are() {
        let refused = RuntimeError::Refused {
            call: "inspect",
            status: 500,
            message: "busy".to_owned(),
        };
        let of = |failure| PartFailure::Gate(failure).is_gate();
        assert!(of(GateFailure::Exited {
            code: 1,
            oom: false
        }));
        assert!(!of(GateFailure::Engine(refused)));
        assert!(!of(GateFailure::Gone));
    }

    #[test]
    fn a_full_disk_of_the_engine_is_called_so() {
        let of = |source| {
            let doing = "creating the container";
            PartFailure::Engine { doing, source }.hint()
        };
        let refused = |message: &str| RuntimeError::Refused {
            call: "create",
            status: 500,
            message: message.to_owned(),
        };
        let full = of(refused(
            "container create: write /var/tmp/960980431: no space left on device",
        ));
        assert!(full.unwrap().contains("the disk of the engine is full"));
        assert!(of(refused("busy")).is_none());
    }
}
