//! `agent.toml`: reading it, its defaults, and what is refused with the line and the mend.
//!
//! [`Config`] is the checked form that the rest of the agent sees; [`mod@file`] is the shape of the text.
//! Relative paths count from the folder of the file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use mcp_spec::duration::Span;
use mcp_spec::name::NodeName;
use mcp_spec::policy::Policy;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::auth::Role;
use crate::auth::online::Validation;
use crate::auth::web::HttpsUrl;

mod file;
pub(crate) use file::socket_path;
#[cfg(test)]
mod tests;

/// Largest configuration file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1024 * 1024;

/// Where the agent keeps its state unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/srv/mcp";
/// Where services keep their files unless told otherwise.
pub const DEFAULT_SERVICES_DIR: &str = "/srv";
/// Where the agent listens unless told otherwise.
pub const DEFAULT_LISTEN: &str = "0.0.0.0:9444";
/// Oldest token that is taken unless told otherwise, in hours.
const DEFAULT_MAX_AGE_HOURS: u64 = 12;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that it was read from.
    pub file: PathBuf,
    /// The node's name.
    pub node: NodeName,
    /// The agent's own folder.
    pub data_dir: PathBuf,
    /// The folder of the services' folders.
    pub services_dir: PathBuf,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Certificate and key.
    pub tls: TlsConfig,
    /// Who issues tokens.
    pub auth: AuthConfig,
    /// Out-of-band trust.
    pub trust: TrustConfig,
    /// The container engine.
    pub runtime: RuntimeConfig,
    /// The upstream, where there is one.
    pub source: Option<SourceConfig>,
    /// The inbox, where there is one.
    pub inbox: Option<InboxConfig>,
    /// Watching.
    pub watch: WatchConfig,
    /// The alert command, where there is one.
    pub alert: Option<AlertConfig>,
    /// What the node's owner allows.
    pub policy: Policy,
    /// What files of services may take.
    pub files: FilesConfig,
    /// Where metrics are served, where they are.
    pub metrics: Option<SocketAddr>,
    /// The folder in memory for opened secrets, where one is named.
    pub secrets_dir: Option<PathBuf>,
}

/// What files may take that are pushed and pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesConfig {
    /// Most bytes of one file.
    pub max_file: u64,
    /// Most bytes below a service's folder, for a push to it; `None` for any.
    pub quota: Option<u64>,
    /// Bytes that stay free on the disk.
    pub reserve: u64,
    /// Bytes of earlier versions that a service keeps, so that pushes can be undone.
    pub keep: u64,
}

impl Default for FilesConfig {
    fn default() -> Self {
        Self {
            max_file: 4 << 30,
            quota: Some(64 << 30),
            reserve: 256 << 20,
            keep: 2 << 30,
        }
    }
}

/// The server's certificate.
#[derive(Debug, Clone)]
pub struct TlsConfig {
    /// PEM file of the chain.
    pub cert: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
}

/// Who issues tokens, beside the agent itself.
#[derive(Debug, Clone)]
pub struct AuthConfig {
    /// The external issuers.
    pub external: Vec<ExternalIssuer>,
    /// What `aud` must name where a token has one.
    pub audience: String,
    /// Oldest token that is taken.
    pub max_age: Span,
}

/// An issuer of tokens outside this agent.
#[derive(Debug, Clone)]
pub struct ExternalIssuer {
    /// The `iss` of its tokens.
    pub issuer: String,
    /// Where its public keys come from.
    pub keys: KeySource,
    /// Where it is asked whether it still stands by a token, if it is.
    pub validation: Option<Validation>,
    /// What its roles are here.
    pub roles: BTreeMap<String, Role>,
}

/// Where an issuer's public keys come from.
#[derive(Debug, Clone)]
pub struct KeySource {
    /// The file that they are read from: PEM, a JWK or a set.
    pub file: PathBuf,
    /// The server that the file is a copy of, and the CA of its certificate, where it is one.
    pub server: Option<(HttpsUrl, PathBuf)>,
}

/// Out-of-band trust.
#[derive(Debug, Clone)]
pub struct TrustConfig {
    /// File of the owners' public keys.
    pub owners: PathBuf,
    /// File of the keys that count for nothing.
    pub denied_keys: PathBuf,
    /// The commit that history starts at, 40 hexadecimal digits.
    pub introduction: Option<String>,
    /// Whether what changes something has to be signed.
    pub signed_requests: SignedRequests,
    /// The principals of tokens' subjects, where they go by another name.
    pub principals: BTreeMap<String, String>,
}

/// Whether requests that change something have to be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignedRequests {
    /// A token alone changes nothing.
    #[default]
    Required,
    /// A token is enough; a signature that comes with it has to hold all the same.
    Optional,
}

/// The container engine.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// Which engine it is.
    pub engine: Engine,
    /// Path of its socket.
    pub socket: PathBuf,
    /// Components that are worked on side by side.
    pub concurrency: usize,
}

impl RuntimeConfig {
    /// The socket as a URL.
    #[must_use]
    pub fn socket_url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

/// The engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// podman, through its Docker-compatible service.
    Podman,
    /// dockerd.
    Docker,
}

impl Engine {
    /// The word in configuration and output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::Docker => "docker",
        }
    }
}

/// The upstream that the agent pulls from.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// A path or `file://` URL.
    pub url: String,
    /// The branch.
    pub branch: String,
    /// Time between two looks.
    pub poll: Span,
    /// Longest time for one look.
    pub timeout: Span,
}

/// The bare repository that people push into with plain git.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxConfig {
    /// Where it is: an absolute path, in UTF-8, apart from the agent's own folder.
    pub path: PathBuf,
    /// The branch.
    pub branch: String,
    /// Longest time for one look.
    pub timeout: Span,
}

/// Watching.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WatchConfig {
    /// Time between two full looks at the engine.
    pub resync: Span,
    /// Changes within the window that count as flapping.
    pub flap_threshold: u32,
    /// The window of flapping.
    pub flap_window: Span,
    /// How long events are kept.
    pub event_retention: Span,
}

impl Default for WatchConfig {
    fn default() -> Self {
        Self {
            resync: Span::from_secs(30),
            flap_threshold: 3,
            flap_window: Span::from_secs(5 * 60),
            event_retention: Span::from_secs(90 * 24 * 3600),
        }
    }
}

/// The alert command.
#[derive(Debug, Clone)]
pub struct AlertConfig {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Longest time that it may take.
    pub timeout: Span,
    /// Least time between two alerts of one condition.
    pub cooldown: Span,
}

/// Why a configuration is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than 1 MiB.
    #[error("the configuration {} has more than 1 MiB", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// The text is no TOML, or a value is refused.
    #[error("{}: {message}", place(file, *line))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// The line, from 1, where it is known.
        line: Option<usize>,
        /// What is refused.
        message: String,
        /// The mend.
        hint: String,
    },
}

impl ConfigError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "make one with: mcp-agent init --node NAME --trust KEY".to_owned()
            }
            Self::Read { .. } => "give the file that init wrote with --config".to_owned(),
            Self::TooLarge { .. } => "this is not the file that init wrote".to_owned(),
            Self::Invalid { hint, .. } => hint.clone(),
        }
    }
}

fn place(file: &Path, line: Option<usize>) -> String {
    let mut text = file.display().to_string();
    if let Some(line) = line {
        // Writing to a String cannot fail.
        let _ = write!(text, ":{line}");
    }
    text
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the first thing that is wrong.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read {
            file: file.to_owned(),
            source,
        };
        if fs::metadata(file).map_err(read)?.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge {
                file: file.to_owned(),
            });
        }
        let text = fs::read_to_string(file).map_err(read)?;
        let absolute = std::path::absolute(file).map_err(read)?;
        Self::parse(&absolute, &text)
    }

    /// Checks the text of the file; relative paths count from the file's folder.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] with the first thing that is wrong.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        file::parse(file, text)
    }

    /// The bare repository with the accepted revisions.
    #[must_use]
    pub fn repo(&self) -> PathBuf {
        self.data_dir.join("repo.git")
    }

    /// The registry's database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.data_dir.join("mcp.db")
    }

    /// The private key of the built-in issuer.
    #[must_use]
    pub fn issuer_key(&self) -> PathBuf {
        self.data_dir.join("issuer.key")
    }
}
