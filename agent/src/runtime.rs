//! The container engine, as the agent sees it: one trait and the facts that pass through it.
//!
//! [`Runtime`] is the seam to podman and docker; `runtime/docker.rs` speaks the Docker API of both.
//! Every call has a deadline. A failed call says whether its effect is certain: after an uncertain
//! one the caller looks at the engine, and assumes nothing.

pub mod docker;
pub mod prober;
pub mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use mcp_seal::Value;
use mcp_spec::capture::Captured;
use mcp_spec::component::ComponentSpec;
use mcp_spec::image::{Digest, ImageRef};
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerId, ImageId, LiveContainer};
use thiserror::Error;

/// A container engine.
#[async_trait]
pub trait Runtime: std::fmt::Debug + Send + Sync + 'static {
    /// The engine's name, version and capabilities; one cheap call.
    async fn facts(&self) -> Result<EngineFacts, RuntimeError>;

    /// Where the engine keeps its containers: another place means another engine.
    async fn store(&self) -> Result<String, RuntimeError> {
        Ok(String::new())
    }

    /// How the engine numbers the users of its containers.
    async fn user_namespace(&self) -> UserNamespace {
        UserNamespace::Shared
    }

    /// All containers, running or not, managed or not, without their configuration: `fields`,
    /// `addresses`, `started_at` and the process id are not filled in.
    async fn list(&self) -> Result<Vec<LiveContainer>, RuntimeError>;

    /// One container by id or exact name; `None` where the engine says that there is none.
    async fn inspect(&self, id_or_name: &str) -> Result<Option<LiveContainer>, RuntimeError>;

    /// A container as the definition of `key` would have it; nothing is changed. `None` where there is none.
    async fn capture(
        &self,
        _id: &ContainerId,
        _key: &ComponentKey,
    ) -> Result<Option<Capture>, RuntimeError> {
        Err(RuntimeError::Unsupported {
            what: "adopting".to_owned(),
            why: "it does not tell enough of its containers".to_owned(),
        })
    }

    /// A local image by reference; `None` where the engine does not hold it.
    async fn image(&self, image: &ImageRef) -> Result<Option<ImageFacts>, RuntimeError>;

    /// A local image by id; `None` where the engine does not hold it.
    async fn image_by_id(&self, id: &ImageId) -> Result<Option<ImageFacts>, RuntimeError>;

    /// Pulls an image and tells of the progress. The receiver may be slow: progress is dropped, not
    /// waited for.
    async fn pull(
        &self,
        image: &ImageRef,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<ImageFacts, RuntimeError>;

    /// Gives an image a name of the agent's own (`localhost/mcp-keep/NAME:TAG`), so that no prune takes it.
    async fn tag(&self, id: &ImageId, name: &KeepTag) -> Result<(), RuntimeError>;

    /// Takes such a name away; a missing one is no error. Removes no image that has another name or
    /// that a container uses.
    async fn untag(&self, name: &KeepTag) -> Result<(), RuntimeError>;

    /// The names of this kind that there are.
    async fn kept(&self) -> Result<Vec<KeepTag>, RuntimeError> {
        Ok(Vec::new())
    }

    /// Makes a container and does not start it.
    async fn create(&self, request: &ContainerRequest) -> Result<ContainerId, RuntimeError>;

    /// Starts a container, or lets a paused one go on; one that runs is no error.
    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Stops a container, paused or not, with its own signal, and kills it after `grace`; one that does not run is
    /// no error.
    async fn stop(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError>;

    /// Sends a signal (`SIGHUP`) to a container's first process.
    async fn signal(&self, id: &ContainerId, signal: &str) -> Result<(), RuntimeError>;

    /// Renames a container, running or not.
    async fn rename(&self, id: &ContainerId, name: &str) -> Result<(), RuntimeError>;

    /// Removes a container by id or exact name, killing it where it runs; a missing one is no error.
    /// Anonymous volumes go with it, named ones stay.
    async fn remove(&self, id_or_name: &str) -> Result<(), RuntimeError>;

    /// As [`Self::remove`], and anonymous volumes stay as well.
    async fn remove_but_volumes(&self, id_or_name: &str) -> Result<(), RuntimeError> {
        self.remove(id_or_name).await
    }

    /// Lets go of a name that the engine's storage holds with no container to show for it. Tells who holds it
    /// where that is another tool, whose container is left alone.
    async fn free_name(&self, name: &str) -> Result<Option<ContainerId>, RuntimeError> {
        self.remove(name).await.map(|()| None)
    }

    /// Makes a user network where there is none of that name. Tells whether it made it.
    async fn ensure_network(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError>;

    /// The networks that bear `label` with this value.
    async fn networks(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError>;

    /// Removes a network that nothing uses; one that is missing or in use is no error and tells `false`.
    async fn remove_network(&self, name: &str) -> Result<bool, RuntimeError>;

    /// Makes a named volume where there is none of that name. Tells whether it made it.
    async fn ensure_volume(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError>;

    /// The volumes that bear `label` with this value.
    async fn volumes(&self, label: &str, value: &str) -> Result<Vec<String>, RuntimeError>;

    /// Removes a named volume; a missing one is no error.
    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError>;

    /// Runs a command inside a running container and waits for its end, at most `timeout`.
    async fn exec(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutcome, RuntimeError>;

    /// Runs a health command inside a running container, which comes from an inspect. As [`Self::exec`],
    /// but by the way that leaves least behind where the container was created with this very command.
    async fn check(
        &self,
        container: &LiveContainer,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecOutcome, RuntimeError> {
        self.exec(&container.id, command, timeout).await
    }

    /// Log lines of a container, oldest first.
    async fn logs(
        &self,
        id: &ContainerId,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError>;

    /// The engine's container and image events from now on. The stream ends when the engine goes.
    async fn events(
        &self,
    ) -> Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError>;
}

/// Which engine speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineName {
    /// podman's Docker-compatible service.
    Podman,
    /// dockerd.
    Docker,
}

impl EngineName {
    /// The word in configuration and output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

/// What an engine is and can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineFacts {
    /// podman or docker.
    pub name: EngineName,
    /// Its release.
    pub version: String,
    /// Whether it runs without root.
    pub rootless: bool,
    /// Whether memory and pids limits take effect.
    pub limits: bool,
    /// Whether the agent shares its PID namespace, so that a pidfd can be taken.
    pub shares_pids: bool,
}

/// How an engine numbers the users of its containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserNamespace {
    /// As the agent does.
    Shared,
    /// In a user namespace of its own, as engines without root have one.
    Own {
        /// A process that is in it.
        pid: u32,
    },
    /// In one that cannot be found.
    Unknown {
        /// Why.
        why: String,
    },
}

/// A local image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFacts {
    /// The engine's id.
    pub id: ImageId,
    /// The registry's digest, known only after a pull from a registry.
    pub digest: Option<Digest>,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// A name that keeps an image: `localhost/mcp-keep/REPOSITORY:TAG`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeepTag {
    /// Lower-case path below `localhost/mcp-keep/`, such as `rift/metacrypt/api`.
    pub repository: String,
    /// Tag: the first 12 digits of the image's id.
    pub tag: String,
}

impl KeepTag {
    /// The name that an engine shows as `localhost/mcp-keep/REPOSITORY:TAG`; `None` for any other.
    #[must_use]
    pub fn shown_as(name: &str) -> Option<Self> {
        let (repository, tag) = name.strip_prefix("localhost/mcp-keep/")?.rsplit_once(':')?;
        Some(Self {
            repository: repository.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// The repository with its prefix, without the tag.
    #[must_use]
    pub fn full_repository(&self) -> String {
        format!("localhost/mcp-keep/{}", self.repository)
    }
}

/// One step of a pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullProgress {
    /// Bytes received, all layers together.
    pub current_bytes: u64,
    /// Bytes to receive as far as known, all layers together.
    pub total_bytes: u64,
}

/// A container that is to be taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// The container.
    pub live: LiveContainer,
    /// The registry's digest of its image, where the engine knows one.
    pub image_digest: Option<Digest>,
    /// What a definition says of it.
    pub captured: Captured,
}

/// A container to be made: everything resolved, nothing left to choose.
#[derive(Debug, Clone)]
pub struct ContainerRequest {
    /// Its first name.
    pub name: String,
    /// The image, by id: a tag may move.
    pub image: ImageId,
    /// The component.
    pub spec: ComponentSpec,
    /// The agent's labels, added to the component's own.
    pub labels: BTreeMap<String, String>,
    /// Staged files and secrets: path on the node by target path in the container.
    pub files: BTreeMap<String, PathBuf>,
    /// Secrets that are variables, by name.
    pub secret_env: BTreeMap<String, Value>,
}

impl ContainerRequest {
    /// The whole environment, secrets included.
    #[must_use]
    pub fn environment(&self) -> BTreeMap<String, String> {
        let secret = self.secret_env.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.expose()).into_owned();
            (name.clone(), value)
        });
        self.spec.env.clone().into_iter().chain(secret).collect()
    }
}

/// How a command inside a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutcome {
    /// It ended by itself.
    Exited {
        /// Its exit code.
        code: i32,
        /// The last 4 KiB of what it wrote.
        output: String,
    },
    /// It was still running at the time limit.
    TimedOut,
}

/// Which log lines are wanted.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on with new lines until the container ends.
    pub follow: bool,
    /// Only so many from the end.
    pub tail: Option<u32>,
    /// Only lines at or after this time.
    pub since: Option<Timestamp>,
}

/// One log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Whether it came on standard error.
    pub stderr: bool,
    /// When the engine got it; podman tells whole seconds.
    pub at: Option<Timestamp>,
    /// The line without its end, at most 64 KiB.
    pub line: Vec<u8>,
}

/// A hint that something changed: never the truth, which is a fresh snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineEvent {
    /// When, by the engine's clock.
    pub at: Option<Timestamp>,
    /// The container.
    pub container: ContainerId,
    /// Its name, where the engine tells.
    pub name: String,
    /// What happened, in docker's words (`die`, `start`, `destroy`, `oom`, `rename`, `update`, …).
    pub action: String,
    /// The exit code, where it is a death.
    pub exit_code: Option<i32>,
}

/// Why an engine call failed.
#[derive(Debug, Clone, Error)]
pub enum RuntimeError {
    /// No connection could be made: nothing happened.
    #[error("the engine at {socket} does not answer: {cause}")]
    Unreachable {
        /// The configured socket.
        socket: String,
        /// What the connection said.
        cause: String,
    },
    /// The connection broke or the deadline passed after the request was sent: the effect is
    /// unknown.
    #[error("the engine did not finish `{call}`: {cause}")]
    Uncertain {
        /// The call.
        call: &'static str,
        /// What was seen.
        cause: String,
    },
    /// The thing that the call is about does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// The container, image, network or volume.
        what: String,
    },
    /// Another container has the name.
    #[error("the name `{name}` is taken by another container")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// The image could not be pulled.
    #[error("cannot pull {image}: {cause}")]
    Pull {
        /// The reference.
        image: String,
        /// What engine or registry said.
        cause: String,
    },
    /// A host port is in use by something that is not a container of this engine.
    #[error("a port is in use: {cause}")]
    PortTaken {
        /// What the engine said.
        cause: String,
    },
    /// The engine cannot do what the spec asks for.
    #[error("this engine cannot do {what}: {why}")]
    Unsupported {
        /// The field.
        what: String,
        /// Why.
        why: String,
    },
    /// The image does not go with what the spec asks for.
    #[error("{what} cannot be had: {why}")]
    Impossible {
        /// The field with its value.
        what: String,
        /// Why.
        why: String,
    },
    /// The engine holds on to an earlier start of this container, which it was killed in: it will never
    /// start it.
    #[error("the engine holds on to an earlier start of the container: {cause}")]
    Stuck {
        /// What the engine said.
        cause: String,
    },
    /// The engine refused the call.
    #[error("the engine refused `{call}`: {message}")]
    Refused {
        /// The call.
        call: &'static str,
        /// HTTP status.
        status: u16,
        /// What the engine said.
        message: String,
    },
}

impl RuntimeError {
    /// Whether the call's effect is unknown, so that the engine has to be looked at.
    #[must_use]
    pub const fn is_uncertain(&self) -> bool {
        matches!(self, Self::Uncertain { .. })
    }

    /// Whether the engine itself is away, so that nothing at all can be said.
    #[must_use]
    pub const fn is_away(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Uncertain { .. })
    }
}
