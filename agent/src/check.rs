//! `mcp-agent check`: whether an agent could run with a configuration, row by row, with a mend each.
//!
//! Nothing is changed: no file is made, no schema brought up to date.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use jiff::Timestamp;
use mcp_spec::signature::{DeniedKeys, OwnerKeys};

use crate::config::{Config, ConfigError};
use crate::error_chain;
use crate::lock::{DataDirLock, LockError};
use crate::node::NodeFacts;
use crate::registry::{OpenError, RegistryFacts, SCHEMA, inspect, is_blank};
use crate::revisions::{Inspection, RevisionStore};
use crate::runtime::Runtime as _;
use crate::runtime::docker::{DockerRuntime, EngineSocket};
use crate::secrets::memory::MemoryFolder;
use crate::secrets::{KeyError, Keyring};
use crate::tls::Certificate;
use crate::tls::validity::configured;

/// Longest wait for the engine: a busy podman takes seconds to tell of itself.
const ENGINE_LIMIT: Duration = Duration::from_secs(20);
/// Free space below which the node is in trouble soon: the registry, a pack and a small image.
const FREE_BYTES: u64 = 1 << 30;

/// How a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, and somebody should look; with the mend.
    Warning(String),
    /// The agent cannot work like this; with the mend.
    Bad(String),
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What.
    pub name: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
}

impl Row {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Good,
            detail: detail.into(),
        }
    }

    fn warning(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Warning(mend.into()),
            detail: detail.into(),
        }
    }

    fn bad(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Bad(mend.into()),
            detail: detail.into(),
        }
    }
}

/// Looks at everything that the configuration in `file` names.
pub async fn check(file: &Path) -> Vec<Row> {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => return vec![refused(&error)],
    };
    let mut rows = vec![Row::good(
        "configuration",
        format!("{}, node {}", config.file.display(), config.node),
    )];
    rows.push(data_dir(&config));
    rows.push(services_dir(&config));
    rows.push(certificate(&config));
    rows.push(tokens(&config));
    rows.push(owners(&config));
    rows.push(denied_keys(&config));
    rows.push(identity(&config));
    rows.push(memory(&config));
    // Both are read whole, and once.
    let database = config.database();
    let facts = (!is_blank(&database)).then(|| inspect(&database));
    // A registry that cannot be read has a row of its own.
    let known = facts.as_ref().and_then(|facts| facts.as_ref().ok()?.head);
    let found = RevisionStore::inspect(&config.data_dir, known);
    let has_head = found.as_ref().is_ok_and(|found| found.head.is_some());
    rows.push(repository(&config, found));
    rows.push(registry(&config, facts, has_head));
    rows.push(engine(&config).await);
    rows.push(disk(&config));
    rows.extend(without_effect(&config));
    rows
}

/// Settings that are read and that nothing in this release acts on.
fn without_effect(config: &Config) -> Vec<Row> {
    let mut rows = Vec::new();
    if config.metrics.is_some() {
        rows.push(Row::warning(
            "metrics",
            "[metrics] is set, and this release serves none",
            "ask with: mcp status -o json",
        ));
    }
    rows
}

fn refused(error: &ConfigError) -> Row {
    Row::bad("configuration", error_chain(error), error.hint())
}

fn data_dir(config: &Config) -> Row {
    let name = "data directory";
    let folder = &config.data_dir;
    let shown = folder.display();
    let mode = match fs::metadata(folder) {
        Ok(metadata) => metadata.permissions().mode() & 0o777,
        Err(error) => {
            return Row::bad(
                name,
                format!("{shown}: {error}"),
                "make it with mcp-agent init",
            );
        }
    };
    if mode & 0o077 != 0 {
        return Row::bad(
            name,
            format!("{shown} has mode {mode:o}: others can reach the keys"),
            format!("chmod 700 {shown}"),
        );
    }
    match DataDirLock::take(folder) {
        Ok(_) if crate::restore::is_unfinished(folder) => Row::bad(
            name,
            format!("{shown}: a restore was cut off"),
            "run the same mcp-agent restore again, with --force",
        ),
        Ok(_) => Row::good(name, format!("{shown}, no agent runs on it")),
        Err(LockError::Held { .. }) => Row::good(name, format!("{shown}, an agent runs on it")),
        Err(error) => Row::bad(name, error_chain(&error), error.hint()),
    }
}

fn services_dir(config: &Config) -> Row {
    let folder = config.services_dir.display();
    match fs::metadata(&config.services_dir) {
        Ok(metadata) if metadata.is_dir() => Row::good("services", folder.to_string()),
        Ok(_) => Row::bad(
            "services",
            format!("{folder} is no folder"),
            "name a folder in services_dir",
        ),
        Err(error) => Row::warning(
            "services",
            format!("{folder}: {error}"),
            format!("mkdir -p {folder}; else the first deploy makes it"),
        ),
    }
}

fn certificate(config: &Config) -> Row {
    let name = "certificate";
    let shown = config.tls.cert.display();
    let dates = Certificate::load(&config.tls).and_then(|_| configured(&config.tls));
    match dates {
        Ok(Some(dates)) => match dates.look(&config.tls, Timestamp::now()) {
            Ok(()) => Row::good(name, format!("{shown}, valid until {}", dates.until)),
            Err(error) if error.is_warning() => Row::warning(name, error.to_string(), error.hint()),
            Err(error) => Row::bad(name, error.to_string(), error.hint()),
        },
        Ok(None) => Row::good(name, shown.to_string()),
        Err(error) => Row::bad(name, error_chain(&error), error.hint()),
    }
}

fn tokens(config: &Config) -> Row {
    match crate::verifier(config) {
        Ok(verifier) => {
            let issuers: Vec<&str> = verifier
                .issuers
                .iter()
                .map(|issuer| issuer.issuer.as_str())
                .collect();
            let detail = format!("issued by {}", issuers.join(", "));
            let external = &config.auth.external;
            if let Some(issuer) = verifier
                .issuers
                .iter()
                .find(|issuer| issuer.keys.is_empty())
            {
                return Row::warning(
                    "tokens",
                    format!("no key of {} was fetched so far", issuer.issuer),
                    "the agent fetches it while it runs: see its log; its tokens count for nothing until then",
                );
            }
            if external.iter().any(|external| external.roles.is_empty()) {
                return Row::warning(
                    "tokens",
                    detail,
                    "map the issuer's roles under [auth.roles]: without, its tokens allow nothing",
                );
            }
            Row::good("tokens", detail)
        }
        Err(error) => Row::bad("tokens", error_chain(&error), error.hint()),
    }
}

fn owners(config: &Config) -> Row {
    let file = config.trust.owners.display();
    match fs::read_to_string(&config.trust.owners) {
        Ok(text) => match OwnerKeys::parse(&text) {
            Ok(owners) => Row::good("owners", format!("{} in {file}", owners.iter().count())),
            Err(error) => Row::bad(
                "owners",
                format!("{file}: {}", error_chain(&error)),
                "one Ed25519 public key a line, as ssh-keygen writes it into the .pub file",
            ),
        },
        Err(error) => Row::bad(
            "owners",
            format!("{file}: {error}"),
            format!("put the owners' public keys into {file}"),
        ),
    }
}

fn denied_keys(config: &Config) -> Row {
    let file = config.trust.denied_keys.display();
    match fs::read_to_string(&config.trust.denied_keys) {
        Ok(text) => match DeniedKeys::parse(&text) {
            Ok(_) => Row::good("denied keys", file.to_string()),
            Err(error) => Row::bad(
                "denied keys",
                format!("{file}: {}", error_chain(&error)),
                "one public key or SHA256: fingerprint a line",
            ),
        },
        Err(error) => Row::bad(
            "denied keys",
            format!("{file}: {error}"),
            format!("restore it; if there never was one: touch {file}"),
        ),
    }
}

/// The node's own keys for secrets. An agent without them works, but for what uses secrets.
fn identity(config: &Config) -> Row {
    let name = "identity";
    let keyring = Keyring::new(&config.data_dir);
    match keyring.usable() {
        Ok(recipient) => Row::good(name, recipient),
        Err(KeyError::Lost { .. }) if Keyring::is_new(&config.data_dir) => {
            Row::good(name, "none yet: the agent makes it at its start")
        }
        Err(error) => Row::warning(
            name,
            format!("{error}: what uses secrets cannot be deployed"),
            error.hint(),
        ),
    }
}

/// Where opened secrets lie.
fn memory(config: &Config) -> Row {
    let name = "secrets";
    // Root looks at what is the agent's user's.
    let user = fs::metadata(&config.data_dir)
        .map_or_else(|_| rustix::process::geteuid().as_raw(), |facts| facts.uid());
    let folder = MemoryFolder::of(config.secrets_dir.as_deref(), &config.data_dir, user);
    match folder.looked_at() {
        Ok(Some(folder)) => Row::good(name, format!("opened in {}", folder.display())),
        Ok(None) => Row::good(
            name,
            "none was opened yet; there is a folder in memory for it",
        ),
        Err(error) => Row::warning(name, error_chain(&error), error.hint()),
    }
}

/// The repository and the high-water mark: all that was accepted is there, and all that the head holds can be
/// read.
fn repository(config: &Config, found: io::Result<Inspection>) -> Row {
    let name = "repository";
    let repo = config.repo();
    let shown = repo.display();
    if !repo.join("objects").is_dir() {
        return Row::bad(
            name,
            format!("{shown} is no repository"),
            "restore a backup, or move it away, start the agent and push everything anew with mcp sync",
        );
    }
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            return Row::bad(
                name,
                format!("{shown}: {error}"),
                "run the check as the agent's user",
            );
        }
    };
    if let Some(damage) = found.damage {
        return Row::bad(
            name,
            format!("{shown} is damaged: {damage}"),
            "restore a backup, or move it away, start the agent and push everything anew with mcp sync",
        );
    }
    if let Some(trouble) = found.trouble {
        return Row::bad(
            name,
            format!("{shown}: changes are stopped: {trouble}"),
            trouble.hint(),
        );
    }
    let head = found.head.map_or_else(
        || "nothing accepted yet".to_owned(),
        |head| format!("head {}, {} accepted", head.short(), found.accepted),
    );
    Row::good(name, format!("{shown}, {head}"))
}

/// The registry; `None` where there is none, which is in order as long as nothing was accepted.
fn registry(
    config: &Config,
    facts: Option<Result<RegistryFacts, OpenError>>,
    has_head: bool,
) -> Row {
    let name = "registry";
    let file = config.database();
    let shown = file.display();
    let Some(facts) = facts else {
        return if has_head {
            Row::bad(
                name,
                format!("{shown} is gone"),
                "restore a backup; else the agent makes a new one at its start, from repository and engine",
            )
        } else {
            Row::good(name, "none yet: the agent makes it at its start")
        };
    };
    match facts {
        Ok(facts) => {
            let is_older = facts.schema < SCHEMA;
            let detail = format!(
                "{shown}, schema {}{}, {} components, {} deployments under way",
                facts.schema,
                if is_older {
                    " (brought up to date at the start)"
                } else {
                    ""
                },
                facts.deployed,
                facts.unfinished
            );
            Row::good(name, detail)
        }
        Err(error) => Row::bad(name, error_chain(&error), crate::open_registry_hint(&error)),
    }
}

async fn engine(config: &Config) -> Row {
    let runtime = &config.runtime;
    let (name, url) = (runtime.engine.as_str(), runtime.socket_url());
    let mend = match runtime.engine {
        crate::config::Engine::Podman => {
            "start it: systemctl start podman.socket (rootless: systemctl --user), or \
             podman system service --time 0 URL"
                .replace("URL", &url)
        }
        crate::config::Engine::Docker => "start it: systemctl start docker".to_owned(),
    };
    let socket: EngineSocket = match url.parse() {
        Ok(socket) => socket,
        Err(error) => return Row::bad("engine", error_chain(&error), "mend runtime.socket"),
    };
    let engine = DockerRuntime::new(socket);
    match tokio::time::timeout(ENGINE_LIMIT, engine.facts()).await {
        Ok(Ok(facts)) if facts.name.as_str() != name => Row::bad(
            "engine",
            format!("{} {} answers at {url}", facts.name.as_str(), facts.version),
            format!("write engine = \"{}\" under [runtime]", facts.name.as_str()),
        ),
        Ok(Ok(facts)) => {
            let detail = format!(
                "{name} {}{} at {url}",
                facts.version,
                if facts.rootless { ", rootless" } else { "" }
            );
            if facts.limits {
                return Row::good("engine", detail);
            }
            Row::warning(
                "engine",
                format!("{detail}: memory and pids limits take no effect"),
                "delegate cgroups to the user (Delegate=yes on user@.service), with cgroups v2",
            )
        }
        Ok(Err(error)) => Row::bad("engine", error_chain(&error), mend),
        Err(_) => Row::bad("engine", format!("{name} at {url} does not answer"), mend),
    }
}

fn disk(config: &Config) -> Row {
    let disk = NodeFacts::read(&config.data_dir).disk;
    let free = disk.total_bytes.saturating_sub(disk.used_bytes);
    let detail = format!("{} MiB free of {} MiB", free >> 20, disk.total_bytes >> 20);
    if free < FREE_BYTES {
        return Row::warning(
            "disk",
            detail,
            "make room: the agent stops writing when it is full",
        );
    }
    Row::good("disk", detail)
}
