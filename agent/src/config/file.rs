//! The shape of `agent.toml`, and its checks.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use mcp_spec::definition::size_bytes;
use mcp_spec::duration::Span;
use mcp_spec::name::NodeName;
use mcp_spec::policy::{Policy, PortRange};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use toml::de::{DeTable, DeValue};

use super::{
    AlertConfig, AuthConfig, Config, ConfigError, DEFAULT_DATA_DIR, DEFAULT_LISTEN,
    DEFAULT_MAX_AGE_HOURS, DEFAULT_SERVICES_DIR, Engine, ExternalIssuer, FilesConfig, KeySource,
    RuntimeConfig, SignedRequests, SourceConfig, TlsConfig, TrustConfig, WatchConfig,
};
use crate::auth::Role;
use crate::auth::online::Validation;
use crate::auth::web::{HttpsUrl, HttpsUrlError};

mod inbox;

/// Most components that are worked on side by side.
const MAX_CONCURRENCY: usize = 64;
/// Most issuers beside the agent's own: each one's keys are tried on every token that no earlier one made.
const MAX_ISSUERS: usize = 8;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: NodeName,
    data_dir: Option<PathBuf>,
    services_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    tls: Option<Tls>,
    auth: Option<Auth>,
    trust: Option<Trust>,
    runtime: Option<Runtime>,
    source: Option<Source>,
    inbox: Option<inbox::Inbox>,
    watch: Option<WatchConfig>,
    alert: Option<Alert>,
    policy: Option<PolicyTable>,
    files: Option<Files>,
    metrics: Option<Metrics>,
    secrets: Option<Secrets>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    cert: PathBuf,
    key: PathBuf,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Auth {
    issuer: Option<String>,
    audience: Option<String>,
    jwks: Option<String>,
    ca_cert: Option<PathBuf>,
    validate_url: Option<String>,
    max_age: Option<Span>,
    roles: Option<BTreeMap<String, Role>>,
    issuers: Option<Vec<Issuer>>,
}

/// One more issuer: the same keys as right under `[auth]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Issuer {
    issuer: String,
    jwks: String,
    ca_cert: Option<PathBuf>,
    validate_url: Option<String>,
    #[serde(default)]
    roles: BTreeMap<String, Role>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Trust {
    owners: Option<PathBuf>,
    denied_keys: Option<PathBuf>,
    introduction: Option<String>,
    signed_requests: Option<SignedRequests>,
    principals: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Runtime {
    engine: Option<Engine>,
    socket: Option<String>,
    concurrency: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    url: String,
    branch: Option<String>,
    poll: Option<Span>,
    timeout: Option<Span>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Alert {
    command: Vec<String>,
    timeout: Option<Span>,
    cooldown: Option<Span>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct PolicyTable {
    host_paths: Option<Vec<String>>,
    nested_binds: Option<Vec<String>>,
    privileged: Option<bool>,
    host_network: Option<bool>,
    bridge_network: Option<bool>,
    devices: Option<Vec<String>>,
    security_opt: Option<Vec<String>>,
    log_drivers: Option<Vec<String>>,
    registries: Option<Vec<String>>,
    ports: Option<Vec<PortRange>>,
    capabilities: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Files {
    max_file: Option<String>,
    quota: Option<String>,
    reserve: Option<String>,
    keep: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Metrics {
    listen: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secrets {
    dir: PathBuf,
}

/// The text with its place, for errors that name the line.
struct Text<'a> {
    file: &'a Path,
    text: &'a str,
}

impl Text<'_> {
    fn line(&self, span: Range<usize>) -> usize {
        let end = span.start.min(self.text.len());
        1 + self.text.as_bytes()[..end]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
    }

    /// The line of a key, or of the nearest table around it that is there.
    fn line_of(&self, path: &[&str]) -> Option<usize> {
        let root = DeTable::parse(self.text).ok()?;
        let mut found = None;
        let mut table = root.get_ref();
        for name in path {
            let Some((key, value)) = table.iter().find(|(key, _)| key.get_ref() == name) else {
                break;
            };
            found = Some(self.line(key.span()));
            match value.get_ref() {
                DeValue::Table(inner) => table = inner,
                _ => break,
            }
        }
        found
    }

    fn refuse(&self, path: &[&str], message: String, hint: &str) -> ConfigError {
        ConfigError::Invalid {
            file: self.file.to_owned(),
            line: self.line_of(path),
            message: format!("{}: {message}", path.join(".")),
            hint: hint.to_owned(),
        }
    }

    fn path(&self, path: &Path) -> PathBuf {
        let folder = self.file.parent().unwrap_or(Path::new("/"));
        folder.join(path).components().collect()
    }

    fn positive(&self, path: &[&str], span: Span) -> Result<Span, ConfigError> {
        if span.as_millis() == 0 {
            return Err(self.refuse(path, "0 is no time".to_owned(), "write a time, as in 30s"));
        }
        Ok(span)
    }
}

/// The reader's words for what is wrong, in those of this file, and the mend.
fn mend(message: &str) -> (String, String) {
    let message = message.replace('\n', "; ");
    let listed = |list: &str| list.replace('`', "");
    if let Some((key, keys)) = message
        .strip_prefix("unknown field ")
        .and_then(|rest| rest.split_once(", expected "))
    {
        let keys = listed(keys.trim_start_matches("one of "));
        return (
            format!("unknown key {key}"),
            format!("the keys here are {keys}"),
        );
    }
    if let Some((value, values)) = message
        .strip_prefix("unknown variant ")
        .and_then(|rest| rest.split_once(", expected "))
    {
        let values = listed(values);
        return (
            format!("{value} is no value of it"),
            format!("write {values}"),
        );
    }
    if let Some(key) = message.strip_prefix("missing field ") {
        let name = listed(key);
        return (format!("{key} is missing"), format!("write {name} = …"));
    }
    let hint = if message == "invalid socket address syntax" {
        return (
            "this is no address with a port".to_owned(),
            "write IP:PORT, as in 0.0.0.0:9444 or [::1]:9444".to_owned(),
        );
    } else if message.ends_with("expected a string") {
        "put the value in quotes"
    } else if message.ends_with("expected a sequence") {
        "write a list, as in [\"…\"]"
    } else {
        "the keys of agent.toml are explained in the file that mcp-agent init writes"
    };
    (message, hint.to_owned())
}

pub(super) fn parse(file: &Path, text: &str) -> Result<Config, ConfigError> {
    let at = Text { file, text };
    let raw: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| at.line(span));
        let (message, hint) = mend(error.message());
        // What is wrong with a value is told with its key; an unknown key tells itself.
        let key = line
            .and_then(|line| text.lines().nth(line - 1)?.split_once('='))
            .map(|(key, _)| key.trim())
            .filter(|key| !key.is_empty() && !message.contains(&format!("`{key}`")))
            .filter(|_| !message.ends_with(" is missing"));
        ConfigError::Invalid {
            file: file.to_owned(),
            line,
            message: key.map_or_else(|| message.clone(), |key| format!("{key}: {message}")),
            hint,
        }
    })?;
    let data_dir = at.path(
        raw.data_dir
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_DATA_DIR)),
    );
    let services_dir = at.path(
        raw.services_dir
            .as_deref()
            .unwrap_or(Path::new(DEFAULT_SERVICES_DIR)),
    );
    for (key, path) in [("data_dir", &data_dir), ("services_dir", &services_dir)] {
        if path.to_str().is_none() || path.parent().is_none() {
            return Err(at.refuse(
                &[key],
                format!("`{}` cannot be used", path.display()),
                "write a folder below the root, in UTF-8",
            ));
        }
    }
    let listen = match raw.listen {
        Some(listen) => listen,
        None => DEFAULT_LISTEN.parse().expect("the default is an address"),
    };
    let tls = match raw.tls {
        Some(tls) => TlsConfig {
            cert: at.path(&tls.cert),
            key: at.path(&tls.key),
        },
        None => TlsConfig {
            cert: data_dir.join("tls/cert.pem"),
            key: data_dir.join("tls/key.pem"),
        },
    };
    let runtime = runtime(&at, raw.runtime.unwrap_or_default())?;
    let mut policy = policy(&at, raw.policy.unwrap_or_default(), &services_dir)?;
    policy.protected = vec![
        runtime.socket.display().to_string(),
        file.display().to_string(),
    ];
    let auth = auth(&at, raw.auth.unwrap_or_default(), &data_dir)?;
    let upstream = raw.source.as_ref().map(|source| source.url.clone());
    Ok(Config {
        file: file.to_owned(),
        trust: trust(
            &at,
            raw.trust.unwrap_or_default(),
            &data_dir,
            !auth.external.is_empty(),
        )?,
        auth,
        source: raw
            .source
            .map(|source| self::source(&at, source))
            .transpose()?,
        inbox: raw
            .inbox
            .map(|inbox| inbox.check(&at, &data_dir, upstream.as_deref()))
            .transpose()?,
        watch: watch(&at, raw.watch.unwrap_or_default())?,
        alert: raw.alert.map(|alert| self::alert(&at, alert)).transpose()?,
        files: files(&at, raw.files.unwrap_or_default())?,
        metrics: raw.metrics.map(|metrics| metrics.listen),
        secrets_dir: raw.secrets.map(|secrets| at.path(&secrets.dir)),
        node: raw.node,
        data_dir,
        services_dir,
        listen,
        tls,
        runtime,
        policy,
    })
}

fn auth(at: &Text<'_>, raw: Auth, data_dir: &Path) -> Result<AuthConfig, ConfigError> {
    let mut issuers = Vec::new();
    match (raw.issuer, raw.jwks) {
        (None, None) => {
            for (key, given) in [
                ("roles", raw.roles.is_some()),
                ("validate_url", raw.validate_url.is_some()),
                ("ca_cert", raw.ca_cert.is_some()),
            ] {
                if given {
                    return Err(at.refuse(
                        &["auth", key],
                        "it is about an external issuer, and there is none".to_owned(),
                        "add issuer and jwks under [auth], or leave it out",
                    ));
                }
            }
        }
        (Some(issuer), Some(jwks)) => issuers.push((
            &["auth"][..],
            Issuer {
                issuer,
                jwks,
                ca_cert: raw.ca_cert,
                validate_url: raw.validate_url,
                roles: raw.roles.unwrap_or_default(),
            },
        )),
        (Some(_), None) => {
            return Err(at.refuse(
                &["auth", "issuer"],
                "an issuer needs its public key".to_owned(),
                "add jwks = \"FILE\" under [auth]",
            ));
        }
        (None, Some(_)) => {
            return Err(at.refuse(
                &["auth", "jwks"],
                "a public key needs its issuer".to_owned(),
                "add issuer = \"…\" (the `iss` of its tokens) under [auth]",
            ));
        }
    }
    let more = raw.issuers.unwrap_or_default();
    issuers.extend(
        more.into_iter()
            .map(|issuer| (&["auth", "issuers"][..], issuer)),
    );
    if issuers.len() > MAX_ISSUERS {
        return Err(at.refuse(
            &["auth", "issuers"],
            format!("{} issuers are too many", issuers.len()),
            "name at most 8",
        ));
    }
    let mut external: Vec<ExternalIssuer> = Vec::new();
    for (place, issuer) in issuers {
        let issuer = self::issuer(at, place, issuer, data_dir)?;
        if external.iter().any(|other| other.issuer == issuer.issuer) {
            return Err(at.refuse(
                &["auth", "issuers"],
                format!("issuer `{}` is there twice", issuer.issuer),
                "write each once; one issuer may have several keys in its JWK set",
            ));
        }
        external.push(issuer);
    }
    Ok(AuthConfig {
        external,
        audience: raw.audience.unwrap_or_else(|| "mcp".to_owned()),
        max_age: at.positive(
            &["auth", "max_age"],
            raw.max_age
                .unwrap_or(Span::from_secs(DEFAULT_MAX_AGE_HOURS * 3600)),
        )?,
    })
}

fn issuer(
    at: &Text<'_>,
    place: &[&str],
    raw: Issuer,
    data_dir: &Path,
) -> Result<ExternalIssuer, ConfigError> {
    let refuse = |key: &str, message: String, hint: &str| {
        let mut path = place.to_vec();
        path.push(key);
        at.refuse(&path, message, hint)
    };
    if raw.issuer.is_empty() || raw.issuer.len() > 1024 {
        return Err(refuse(
            "issuer",
            "it must have 1 to 1024 characters".to_owned(),
            "write the `iss` of the issuer's tokens",
        ));
    }
    let url = |key: &str, text: &str| -> Result<(HttpsUrl, PathBuf), ConfigError> {
        let url: HttpsUrl = text.parse().map_err(|error: HttpsUrlError| {
            refuse(
                key,
                error.to_string(),
                "write https://HOST[:PORT]/PATH, as in https://mcias.example.net:8443/v1/keys/public",
            )
        })?;
        // The system's roots are trusted nowhere.
        let ca = raw.ca_cert.as_deref().ok_or_else(|| {
            refuse(
                key,
                "a server needs the CA that its certificate is checked against".to_owned(),
                "add ca_cert = \"FILE\" beside it",
            )
        })?;
        Ok((url, at.path(ca)))
    };
    let keys = if raw.jwks.contains("://") {
        let (url, ca) = url("jwks", &raw.jwks)?;
        let hash = hex::encode(&Sha256::digest(url.to_string())[..8]);
        KeySource {
            file: data_dir.join(format!("issuer-{hash}.keys")),
            server: Some((url, ca)),
        }
    } else {
        KeySource {
            file: at.path(Path::new(&raw.jwks)),
            server: None,
        }
    };
    let validation = raw
        .validate_url
        .as_deref()
        .map(|text| url("validate_url", text))
        .transpose()?
        .map(|(url, ca_cert)| Validation { url, ca_cert });
    Ok(ExternalIssuer {
        issuer: raw.issuer,
        keys,
        validation,
        roles: raw.roles,
    })
}

fn trust(
    at: &Text<'_>,
    raw: Trust,
    data_dir: &Path,
    shared_issuer: bool,
) -> Result<TrustConfig, ConfigError> {
    let signed_requests = raw.signed_requests.unwrap_or_default();
    if signed_requests == SignedRequests::Optional && shared_issuer {
        return Err(at.refuse(
            &["trust", "signed_requests"],
            "tokens come from an issuer that other services know too, so a token alone may change nothing"
                .to_owned(),
            "leave it out, or leave issuer and jwks out under [auth]",
        ));
    }
    if let Some(commit) = &raw.introduction
        && !(commit.len() == 40
            && commit
                .bytes()
                .all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f')))
    {
        return Err(at.refuse(
            &["trust", "introduction"],
            format!("`{commit}` is not a commit"),
            "write all 40 hexadecimal digits, as `git rev-parse` prints them",
        ));
    }
    Ok(TrustConfig {
        owners: at.path(&raw.owners.unwrap_or_else(|| data_dir.join("owners.pub"))),
        denied_keys: at.path(
            &raw.denied_keys
                .unwrap_or_else(|| data_dir.join("denied_keys")),
        ),
        introduction: raw.introduction,
        signed_requests,
        principals: raw.principals.unwrap_or_default(),
    })
}

fn files(at: &Text<'_>, raw: Files) -> Result<FilesConfig, ConfigError> {
    let bytes = |key: &str, text: Option<String>, otherwise: u64| match text {
        None => Ok(otherwise),
        Some(text) => size_bytes(&text)
            .map_err(|error| at.refuse(&["files", key], error.message, &error.hint)),
    };
    let default = FilesConfig::default();
    Ok(FilesConfig {
        max_file: bytes("max_file", raw.max_file, default.max_file)?,
        quota: match raw.quota {
            None => default.quota,
            Some(text) if text == "none" => None,
            Some(text) => Some(bytes("quota", Some(text), 0)?),
        },
        reserve: bytes("reserve", raw.reserve, default.reserve)?,
        keep: bytes("keep", raw.keep, default.keep)?,
    })
}

fn runtime(at: &Text<'_>, raw: Runtime) -> Result<RuntimeConfig, ConfigError> {
    let engine = raw.engine.unwrap_or(Engine::Podman);
    let socket = raw.socket.unwrap_or_else(|| match engine {
        Engine::Podman => "unix:///run/podman/podman.sock".to_owned(),
        Engine::Docker => "unix:///var/run/docker.sock".to_owned(),
    });
    let path = socket_path(&socket).ok_or_else(|| {
        at.refuse(
            &["runtime", "socket"],
            format!("`{socket}` is no Unix socket"),
            "write unix:///PATH",
        )
    })?;
    let concurrency = raw.concurrency.unwrap_or(4);
    if !(1..=MAX_CONCURRENCY).contains(&concurrency) {
        return Err(at.refuse(
            &["runtime", "concurrency"],
            format!("{concurrency} is out of range"),
            "write a number from 1 to 64",
        ));
    }
    Ok(RuntimeConfig {
        engine,
        socket: path,
        concurrency,
    })
}

/// The absolute path in `unix:///PATH`, or the path itself.
pub(crate) fn socket_path(url: &str) -> Option<PathBuf> {
    let path = Path::new(url.strip_prefix("unix://").unwrap_or(url));
    (path.is_absolute() && path.file_name().is_some()).then(|| path.to_owned())
}

fn source(at: &Text<'_>, raw: Source) -> Result<SourceConfig, ConfigError> {
    let local = raw.url.starts_with("file:///") || raw.url.starts_with('/');
    if !local {
        return Err(at.refuse(
            &["source", "url"],
            format!("`{}` is no path on this machine", raw.url),
            "write an absolute path or file:///PATH; other transports come in a later release",
        ));
    }
    let branch = branch(at, "source", raw.branch)?;
    Ok(SourceConfig {
        url: raw.url,
        branch,
        poll: at.positive(&["source", "poll"], raw.poll.unwrap_or(Span::from_secs(60)))?,
        timeout: at.positive(
            &["source", "timeout"],
            raw.timeout.unwrap_or(Span::from_secs(60)),
        )?,
    })
}

/// The branch of a section; `main` unless told otherwise.
fn branch(at: &Text<'_>, section: &str, raw: Option<String>) -> Result<String, ConfigError> {
    let branch = raw.unwrap_or_else(|| "main".to_owned());
    if branch.is_empty() || branch.len() > 255 || branch.starts_with(['-', '/']) {
        return Err(at.refuse(
            &[section, "branch"],
            format!("`{branch}` is no branch"),
            "write its name, as in main",
        ));
    }
    Ok(branch)
}

fn watch(at: &Text<'_>, watch: WatchConfig) -> Result<WatchConfig, ConfigError> {
    at.positive(&["watch", "resync"], watch.resync)?;
    at.positive(&["watch", "flap_window"], watch.flap_window)?;
    at.positive(&["watch", "event_retention"], watch.event_retention)?;
    if watch.flap_threshold == 0 {
        return Err(at.refuse(
            &["watch", "flap_threshold"],
            "0 would call everything flapping".to_owned(),
            "write 2 or more",
        ));
    }
    Ok(watch)
}

fn alert(at: &Text<'_>, raw: Alert) -> Result<AlertConfig, ConfigError> {
    if !raw
        .command
        .first()
        .is_some_and(|program| Path::new(program).is_absolute())
    {
        return Err(at.refuse(
            &["alert", "command"],
            "it must start with the absolute path of a program".to_owned(),
            "write command = [\"/usr/local/bin/notify\"]; no shell is involved",
        ));
    }
    Ok(AlertConfig {
        command: raw.command,
        timeout: at.positive(
            &["alert", "timeout"],
            raw.timeout.unwrap_or(Span::from_secs(30)),
        )?,
        cooldown: raw.cooldown.unwrap_or(Span::from_secs(600)),
    })
}

fn policy(at: &Text<'_>, raw: PolicyTable, services_dir: &Path) -> Result<Policy, ConfigError> {
    let default = Policy::default_for(&services_dir.display().to_string());
    let policy = Policy {
        host_paths: raw.host_paths.unwrap_or(default.host_paths),
        nested_binds: raw.nested_binds.unwrap_or(default.nested_binds),
        privileged: raw.privileged.unwrap_or(default.privileged),
        host_network: raw.host_network.unwrap_or(default.host_network),
        bridge_network: raw.bridge_network.unwrap_or(default.bridge_network),
        devices: raw.devices.unwrap_or(default.devices),
        registries: raw.registries.unwrap_or(default.registries),
        ports: raw.ports.unwrap_or(default.ports),
        capabilities: raw.capabilities.unwrap_or(default.capabilities),
        security_opt: raw.security_opt.unwrap_or(default.security_opt),
        log_drivers: raw.log_drivers.unwrap_or(default.log_drivers),
        protected: default.protected,
    };
    for (key, paths) in [
        ("host_paths", &policy.host_paths),
        ("nested_binds", &policy.nested_binds),
    ] {
        if let Some(path) = paths.iter().find(|path| {
            !path.starts_with('/') || path.split('/').any(|part| matches!(part, "." | ".."))
        }) {
            return Err(at.refuse(
                &["policy", key],
                format!("`{path}` is not a plain absolute path"),
                "write it from the root; {service} stands for the service's name",
            ));
        }
    }
    let is_capability = |name: &String| {
        !name.is_empty()
            && name
                .bytes()
                .all(|b| b.is_ascii_uppercase() || matches!(b, b'_' | b'0'..=b'9'))
    };
    if let Some(name) = policy.capabilities.iter().find(|name| !is_capability(name)) {
        return Err(at.refuse(
            &["policy", "capabilities"],
            format!("`{name}` is no capability"),
            "write a name of capabilities(7) without CAP_, as in NET_ADMIN",
        ));
    }
    for registry in &policy.registries {
        // A registry is what stands before an image's name, so an image proves it.
        let image = format!("{registry}/image");
        if mcp_spec::image::ImageRef::from_str(&image)
            .map(|image| image.registry() != registry)
            .unwrap_or(true)
        {
            return Err(at.refuse(
                &["policy", "registries"],
                format!("`{registry}` is no registry"),
                "write HOST or HOST:PORT, without a scheme; docker.io is Docker Hub",
            ));
        }
    }
    Ok(policy)
}
