//! The resolved component: what a definition asks for, with every default filled in.
//!
//! A [`ComponentSpec`] is canonical: two definitions that mean the same give equal values, equal
//! encodings and equal digests. `definition` builds it; the agent compiles it into engine calls.

mod host;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use host::{Device, Log, Ulimit};

use crate::duration::Span;
use crate::image::{Digest, ImageRef};
use crate::name::{ComponentKey, ComponentName, NodeName, SecretName, ServiceName};

/// Version of the canonical encoding that [`ComponentSpec::digest`] hashes.
pub const ENCODING_VERSION: u32 = 1;

/// What stands for the node's own address in `extra_hosts`.
pub const HOST_GATEWAY: &str = "host-gateway";

/// One service as its definition resolves on one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// The service's name, equal to its file's stem.
    pub name: ServiceName,
    /// The one agent that runs it.
    pub node: NodeName,
    /// `false`: every component's desired state is stopped.
    pub active: bool,
    /// Free text for people.
    pub description: Option<String>,
    /// `false` mutes the service's alerts.
    pub alert: bool,
    /// Longest time that a deployment may take once it has crossed the line.
    pub deadline: Span,
    /// Who repairs drift.
    pub reconcile: Reconcile,
    /// What becomes of a component that fails its gate.
    pub on_failure: OnFailure,
    /// Its components by name.
    pub components: BTreeMap<ComponentName, ComponentSpec>,
}

/// Gives words that definitions, differences and tables share.
macro_rules! words {
    ($name:ident { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $name {
            /// All of them with their words.
            pub const WORDS: [(&'static str, Self); words!(@count $($word)+)] =
                [$(($word, Self::$variant)),+];

            /// The word that definitions write.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
    (@count $($word:literal)+) => { [$($word),+].len() };
}

words!(Reconcile { Manual => "manual", Auto => "auto" });
words!(OnFailure { KeepOld => "keep-old", Leave => "leave" });
words!(Pull { Missing => "missing", Always => "always", Never => "never" });

impl ServiceSpec {
    /// The keys of all components, in the order of their names.
    pub fn keys(&self) -> impl Iterator<Item = ComponentKey> + '_ {
        self.components
            .keys()
            .map(|component| ComponentKey::new(self.name.clone(), component.clone()))
    }
}

/// Who brings a service back to what was deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reconcile {
    /// Drift is shown and recorded; the operator deploys.
    Manual,
    /// The agent repairs drift and deploys new revisions by itself.
    Auto,
}

/// What a failed gate leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// What ran before runs again.
    KeepOld,
    /// The failed container stays, for a look.
    Leave,
}

/// One container, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentSpec {
    /// Long-running, or a job that ends.
    pub kind: Kind,
    /// The complete image reference.
    pub image: ImageRef,
    /// When the image is pulled.
    pub pull: Pull,
    /// Replaces the image's entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub cmd: Option<Vec<String>>,
    /// Added to the image's environment.
    pub env: BTreeMap<String, String>,
    /// `USER[:GROUP]`, the image's where absent.
    pub user: Option<String>,
    /// Working directory, the image's where absent.
    pub workdir: Option<String>,
    /// The container's host name; the engine's choice where absent.
    pub hostname: Option<String>,
    /// The networks it joins.
    pub network: Network,
    /// Published ports, ranges expanded, sorted.
    pub ports: BTreeSet<Port>,
    /// Binds and named volumes by their target path.
    pub volumes: BTreeMap<String, Volume>,
    /// tmpfs mounts by their target path.
    pub tmpfs: BTreeMap<String, Tmpfs>,
    /// When the agent starts it again.
    pub restart: Restart,
    /// Whether the engine's init runs as process 1.
    pub init: bool,
    /// Components of the same service that pass their gate first.
    pub depends_on: BTreeSet<ComponentName>,
    /// The probe of deploy gate and watch.
    pub health: Option<Health>,
    /// Limits.
    pub resources: Resources,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Capabilities added, without the `CAP_`, upper case.
    pub cap_add: BTreeSet<String>,
    /// Capabilities dropped, without the `CAP_`, upper case; may be `ALL`.
    pub cap_drop: BTreeSet<String>,
    /// The operator's labels; never `mcp.*`.
    pub labels: BTreeMap<String, String>,
    /// Signal that asks it to stop, with its `SIG`; the image's where absent.
    pub stop_signal: Option<String>,
    /// How long a stop waits before the kill.
    pub stop_timeout: Span,
    /// Lines of `/etc/hosts`: name to address (`host-gateway` is kept as written).
    pub extra_hosts: BTreeMap<String, String>,
    /// Name servers in the order of the definition.
    pub dns: Vec<IpAddr>,
    /// Files of the repository by their target path.
    pub files: BTreeMap<String, FileMount>,
    /// Stable time that counts as started where there is no health check.
    pub ready_for: Span,
    // What follows came later: left out of the encoding where it is not used, so that the digests of
    // specs that do not use it stay what they were.
    /// Devices of the node by their path in the container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, Device>,
    /// Limits of each process by name (`nofile`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// Kernel parameters of the container's own namespaces.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// Departures from the engine's confinement, as `seccomp=unconfined`; never the default
    /// `no-new-privileges`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub security_opt: BTreeSet<String>,
    /// Whether the engine's confinement is off altogether.
    #[serde(default, skip_serializing_if = "is_false")]
    pub privileged: bool,
    /// Where its output goes; the engine's choice where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
    /// Secrets that are files, by their target path.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, SecretFile>,
    /// Secrets that are variables, by the variable's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_env: BTreeMap<String, SecretVariable>,
}

/// Left out of the encoding where it is not so.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Whether a component runs on or ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Kind {
    /// Runs until it is stopped.
    Service,
    /// Runs to completion when its spec changes.
    Job {
        /// Exit codes that count as done.
        exit_codes: BTreeSet<i32>,
    },
}

impl Kind {
    /// Whether this is a job.
    #[must_use]
    pub const fn is_job(&self) -> bool {
        matches!(self, Self::Job { .. })
    }
}

/// When the image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pull {
    /// Where the engine does not hold it.
    Missing,
    /// At every deploy of the head by an operator.
    Always,
    /// Never: the image must be there.
    Never,
}

/// The networks of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "mode", content = "attachments")]
pub enum Network {
    /// No network but its own loopback.
    None,
    /// The node's own network stack.
    Host,
    /// The engine's default bridge.
    Bridge,
    /// User networks by name; never empty. The service's own is named after it.
    User(BTreeMap<String, Attachment>),
}

/// How a container joins one user network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Attachment {
    /// Names that it answers to there, the implied ones included
    /// (`SERVICE-COMPONENT` everywhere, `COMPONENT` on the service's own network).
    pub aliases: BTreeSet<String>,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    /// Address on the node; `0.0.0.0` for all.
    pub ip: IpAddr,
    /// Port on the node.
    pub host: u16,
    /// Port in the container.
    pub container: u16,
    /// Transport.
    pub protocol: Protocol,
}

/// Transport of a published port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ip,
            host,
            container,
            protocol,
        } = self;
        match ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{host}:{container}/{protocol}"),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{host}:{container}/{protocol}"),
        }
    }
}

/// What is mounted at a target path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Where the bytes are.
    pub source: VolumeSource,
    /// Whether the mount is read-only.
    pub read_only: bool,
}

/// Where a mount's bytes are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type", content = "at")]
pub enum VolumeSource {
    /// An absolute path on the node.
    Bind(String),
    /// A named volume, by the name that the engine knows (`SERVICE_NAME`).
    Named(String),
}

/// One tmpfs mount.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Mount options, sorted (`mode=1777`, `size=64m`).
    pub options: BTreeSet<String>,
}

/// When the agent starts a container that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Restart {
    /// Never.
    No,
    /// After an exit other than 0, at most so many times where a number is given.
    OnFailure {
        /// Attempts before it counts as failed.
        max: Option<u32>,
    },
    /// After every exit.
    Always,
    /// After every exit, unless an operator stopped it.
    UnlessStopped,
}

impl fmt::Display for Restart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure { max: None } => f.write_str("on-failure"),
            Self::OnFailure { max: Some(max) } => write!(f, "on-failure:{max}"),
            Self::Always => f.write_str("always"),
            Self::UnlessStopped => f.write_str("unless-stopped"),
        }
    }
}

impl std::str::FromStr for Restart {
    type Err = RestartError;

    fn from_str(text: &str) -> Result<Self, RestartError> {
        match text {
            "no" => Ok(Self::No),
            "on-failure" => Ok(Self::OnFailure { max: None }),
            "always" => Ok(Self::Always),
            "unless-stopped" => Ok(Self::UnlessStopped),
            _ => text
                .strip_prefix("on-failure:")
                .and_then(|max| max.parse().ok())
                .filter(|max| *max > 0)
                .map(|max| Self::OnFailure { max: Some(max) })
                .ok_or_else(|| RestartError {
                    text: text.to_owned(),
                }),
        }
    }
}

/// A text is no restart policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a restart policy: write no, on-failure, on-failure:N, always or unless-stopped"
)]
pub struct RestartError {
    /// The refused text.
    pub text: String,
}

impl TryFrom<String> for Restart {
    type Error = RestartError;

    fn try_from(text: String) -> Result<Self, RestartError> {
        text.parse()
    }
}

impl From<Restart> for String {
    fn from(restart: Restart) -> Self {
        restart.to_string()
    }
}

/// How a component's health is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// Time between two probes.
    pub interval: Span,
    /// Longest time that one probe may take.
    pub timeout: Span,
    /// Failures in a row that make it unhealthy.
    pub retries: u32,
    /// Time after the start in which failures do not count.
    pub start_period: Span,
}

/// What a health check asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type", content = "ask")]
pub enum Probe {
    /// Runs inside the container; exit 0 is healthy.
    Cmd(Vec<String>),
    /// An HTTP GET by the agent; 2xx and 3xx are healthy.
    Http {
        /// Port in the container.
        port: u16,
        /// Path and query, with the leading slash.
        path: String,
        /// Whether it is asked over TLS; the certificate is the component's own and not verified.
        #[serde(default, skip_serializing_if = "is_false")]
        tls: bool,
    },
    /// A TCP connection by the agent to this port in the container.
    Tcp(u16),
}

/// Limits of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// CPU share in thousandths of one core.
    pub cpu_millis: Option<u64>,
    /// Most processes and threads.
    pub pids: u32,
}

/// One file of the repository, mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMount {
    /// Path in the repository.
    pub from: String,
    /// SHA-256 of its bytes at this revision.
    pub digest: Digest,
    /// Permission bits, as in `0o640`.
    pub mode: u32,
    /// `UID:GID` in the container, root's where absent.
    pub owner: Option<(u32, u32)>,
    /// What happens when only its bytes change.
    pub on_change: OnChange,
}

/// One secret, as a file in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretFile {
    /// Its name within the service.
    pub name: SecretName,
    /// What stands for its value: at the agent a digest keyed with a secret of the node's own, elsewhere that of
    /// the encrypted file. Neither tells anything of the value.
    pub digest: Digest,
    /// Permission bits, as in `0o400`.
    pub mode: u32,
    /// `UID:GID` in the container, root's where absent.
    pub owner: Option<(u32, u32)>,
}

/// One secret, as a variable of the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretVariable {
    /// Its name within the service.
    pub name: SecretName,
    /// As [`SecretFile::digest`].
    pub digest: Digest,
}

/// What a changed file asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do", content = "with")]
pub enum OnChange {
    /// A new container.
    Recreate,
    /// The same container, stopped and started.
    Restart,
    /// A signal to process 1, as in `SIGHUP`.
    Signal(String),
    /// Nothing: the program looks by itself.
    None,
}

impl fmt::Display for OnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Recreate => f.write_str("recreate"),
            Self::Restart => f.write_str("restart"),
            Self::Signal(signal) => {
                write!(f, "signal:{}", signal.strip_prefix("SIG").unwrap_or(signal))
            }
            Self::None => f.write_str("none"),
        }
    }
}

impl Probe {
    /// The URL of an HTTP probe as definitions write it.
    #[must_use]
    pub fn http_url(port: u16, path: &str, tls: bool) -> String {
        let scheme = if tls { "https" } else { "http" };
        format!("{scheme}://:{port}{path}")
    }
}

impl ComponentSpec {
    /// The names of the secrets that it uses, with what stands for their values.
    pub fn used_secrets(&self) -> impl Iterator<Item = (&SecretName, Digest)> {
        let files = self.secrets.values().map(|it| (&it.name, it.digest));
        files.chain(self.secret_env.values().map(|it| (&it.name, it.digest)))
    }

    /// The canonical encoding: versioned, deterministic JSON.
    #[must_use]
    pub fn canonical(&self) -> Vec<u8> {
        let mut bytes = format!("mcp-component-{ENCODING_VERSION}\n").into_bytes();
        let body = serde_json::to_vec(self)
            .expect("a spec holds only strings, numbers and maps keyed by strings");
        bytes.extend_from_slice(&body);
        bytes
    }

    /// SHA-256 over [`Self::canonical`].
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.canonical())
    }
}
