//! `mcp-agent init`: a data directory with keys, certificates, trust and a complete configuration.
//!
//! Everything is written below a hidden folder of the data directory and then moved into place, the
//! mark of completeness (`node`, the node's name) last. A failure takes away what was made. A folder
//! that holds anything else is never touched.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use mcp_spec::name::NodeName;
use mcp_spec::signature::OwnerKeys;
use thiserror::Error;

use crate::auth::issuer::Issuer;
use crate::auth::keys::{self, JwkError};
use crate::config::{Config, ConfigError, Engine};
use crate::disk;
use crate::revisions::{OpenError, RevisionStore};
use crate::secrets::{IDENTITY, Keyring};

mod certificates;
mod engine;
mod template;
#[cfg(test)]
mod tests;
mod trust;

pub use certificates::CertificatesError;
pub use engine::{EngineChoice, SocketError};
pub use trust::TrustError;
pub(crate) use trust::{TrustError as KeyError, read as read_keys};

/// The file that marks a data directory as complete; it holds the node's name.
const MARK: &str = "node";
/// How the folder of an unfinished init begins.
const UNFINISHED: &str = ".init-";

/// What `init` is asked for.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The node's name.
    pub node: NodeName,
    /// The agent's own folder.
    pub data_dir: PathBuf,
    /// Where the configuration goes; `agent.toml` in the data directory where absent.
    pub config: Option<PathBuf>,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// The folder of the services' folders.
    pub services_dir: PathBuf,
    /// Further names of the certificate.
    pub names: Vec<String>,
    /// The engine, where one is asked for.
    pub engine: Option<Engine>,
    /// Its socket, where one is asked for.
    pub socket: Option<String>,
    /// The public key of another issuer of tokens.
    pub issuer_jwk: Option<PathBuf>,
    /// The `iss` of its tokens; its key's `kid` where absent.
    pub issuer: Option<String>,
    /// The commit that history starts at.
    pub introduction: Option<String>,
    /// Owners' public keys, or files of them.
    pub trust: Vec<String>,
}

/// What `init` made, or found.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// The configuration's file.
    pub config: PathBuf,
    /// The configuration.
    pub settings: Config,
    /// `false` where the folder was this node's already and nothing changed.
    pub created: bool,
    /// Names in the certificate; empty where nothing was made.
    pub names: Vec<String>,
    /// Fingerprints of the owners.
    pub owners: Vec<String>,
    /// How the engine was chosen; `None` where nothing was made.
    pub engine: Option<EngineChoice>,
}

/// Why `init` did nothing.
#[derive(Debug, Error)]
pub enum InitError {
    /// The folder holds something else.
    #[error("{} is not empty: it holds {found}", data_dir.display())]
    Foreign {
        /// The folder.
        data_dir: PathBuf,
        /// One of its entries.
        found: String,
    },
    /// The folder is another node's.
    #[error("{} belongs to node {found}", data_dir.display())]
    OtherNode {
        /// The folder.
        data_dir: PathBuf,
        /// Whose it is.
        found: String,
    },
    /// The configuration's file is there already.
    #[error("{} exists already", config.display())]
    ConfigExists {
        /// The file.
        config: PathBuf,
    },
    /// The folder is this node's, and its configuration is elsewhere or refused.
    #[error("{} is set up, but its configuration cannot be used", data_dir.display())]
    Config {
        /// The folder.
        data_dir: PathBuf,
        /// Why.
        source: ConfigError,
    },
    /// A value is refused.
    #[error(transparent)]
    Refused(#[from] ConfigError),
    /// The owners' keys are refused.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// No certificate could be made.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// The socket is refused.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The other issuer's key cannot be read.
    #[error("cannot read the issuer's key {}", file.display())]
    ReadIssuer {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The other issuer's key is refused.
    #[error("the issuer's key {} is refused", file.display())]
    Issuer {
        /// The file.
        file: PathBuf,
        /// Why.
        source: JwkError,
    },
    /// Nobody said what the other issuer is called.
    #[error("the key {} does not say whose it is", file.display())]
    NamelessIssuer {
        /// The file.
        file: PathBuf,
    },
    /// The repository could not be made.
    #[error("cannot make the repository")]
    Repository(#[source] OpenError),
    /// A path is not in UTF-8.
    #[error("the path {} is not in UTF-8", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// Something could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl InitError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Foreign { .. } => "give an empty or a new folder with --data-dir".to_owned(),
            Self::OtherNode { .. } => {
                "give another --data-dir: one agent, one node, one folder".to_owned()
            }
            Self::ConfigExists { .. } => {
                "move the file away, or give another one with --config".to_owned()
            }
            Self::Config { source, .. } | Self::Refused(source) => source.hint(),
            Self::Trust(error) => error.hint(),
            Self::Certificates(_) => "write each --san as a DNS name or an IP address".to_owned(),
            Self::Socket(_) => "write --socket unix:///PATH".to_owned(),
            Self::ReadIssuer { .. } | Self::Issuer { .. } => {
                "give the issuer's public Ed25519 key as a JWK; another agent's is issuer.jwk in \
                 its data directory"
                    .to_owned()
            }
            Self::NamelessIssuer { .. } => {
                "say what its tokens name as `iss` with --issuer NAME".to_owned()
            }
            Self::Path { .. } => "give a path in UTF-8".to_owned(),
            Self::Repository(_) | Self::Write { .. } => {
                "run init as the user that the agent will run as, on a folder that it may write"
                    .to_owned()
            }
        }
    }
}

/// Makes a data directory and its configuration, or tells that both are there.
///
/// # Errors
///
/// [`InitError`]; nothing that `init` made is left behind.
pub fn init(options: &InitOptions) -> Result<Initialised, InitError> {
    let data_dir = absolute(&options.data_dir)?;
    let config = match &options.config {
        Some(config) => absolute(config)?,
        None => data_dir.join("agent.toml"),
    };
    if let Some(found) = look(&data_dir, &options.node, &config)? {
        return Ok(found);
    }
    if config.symlink_metadata().is_ok() {
        return Err(InitError::ConfigExists { config });
    }
    let prepared = Prepared::of(options, &data_dir, &config)?;
    let made = Made::new(&data_dir)?;
    prepared.write(&made)?;
    made.keep();
    Ok(Initialised {
        config,
        settings: prepared.settings,
        created: true,
        names: prepared.names,
        owners: fingerprints(&prepared.owners),
        engine: Some(prepared.engine),
    })
}

/// What stands in the folder: `None` where it is new or empty.
fn look(data_dir: &Path, node: &NodeName, config: &Path) -> Result<Option<Initialised>, InitError> {
    match fs::read_to_string(data_dir.join(MARK)) {
        Ok(found) if found.trim() == node.as_str() => {
            let settings = Config::load(config).map_err(|source| InitError::Config {
                data_dir: data_dir.to_owned(),
                source,
            })?;
            let owners = fs::read_to_string(&settings.trust.owners)
                .ok()
                .and_then(|text| OwnerKeys::parse(&text).ok())
                .map(|owners| fingerprints(&owners))
                .unwrap_or_default();
            return Ok(Some(Initialised {
                config: config.to_owned(),
                settings,
                created: false,
                names: Vec::new(),
                owners,
                engine: None,
            }));
        }
        Ok(found) => {
            return Err(InitError::OtherNode {
                data_dir: data_dir.to_owned(),
                found: found.trim().chars().take(63).collect(),
            });
        }
        Err(_) => {}
    }
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(InitError::Write {
                path: data_dir.to_owned(),
                source,
            });
        }
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // What an init that was killed left behind is nobody's.
        if !name.starts_with(UNFINISHED) {
            return Err(InitError::Foreign {
                data_dir: data_dir.to_owned(),
                found: name,
            });
        }
    }
    Ok(None)
}

fn fingerprints(owners: &OwnerKeys) -> Vec<String> {
    owners
        .iter()
        .map(|key| {
            let print = mcp_spec::signature::fingerprint(key);
            format!("{print} {}", key.comment()).trim_end().to_owned()
        })
        .collect()
}

fn absolute(path: &Path) -> Result<PathBuf, InitError> {
    let absolute = std::path::absolute(path).map_err(|source| InitError::Write {
        path: path.to_owned(),
        source,
    })?;
    if absolute.to_str().is_none() {
        return Err(InitError::Path { path: absolute });
    }
    // `/a/b/../c` and a trailing slash would stand in the configuration for ever.
    Ok(absolute.components().collect())
}

/// Everything that can be refused, checked before anything is written.
struct Prepared {
    config: PathBuf,
    text: String,
    settings: Config,
    owners: OwnerKeys,
    names: Vec<String>,
    certificates: certificates::Certificates,
    issuer: Issuer,
    engine: EngineChoice,
    issuer_jwk: Option<String>,
}

impl Prepared {
    fn of(options: &InitOptions, data_dir: &Path, config: &Path) -> Result<Self, InitError> {
        let owners = trust::read(&options.trust)?;
        let engine = engine::choose(options.engine, options.socket.as_deref())?;
        let (issuer_jwk, external) = match &options.issuer_jwk {
            Some(file) => {
                let (text, name) = issuer(file, options.issuer.as_deref())?;
                (Some(text), Some(name))
            }
            None => (None, None),
        };
        let services_dir = absolute(&options.services_dir)?;
        let text = template::render(&template::Values {
            node: &options.node,
            data_dir,
            services_dir: &services_dir,
            listen: options.listen,
            engine: &engine,
            issuer: external.as_deref(),
            introduction: options.introduction.as_deref(),
        });
        let settings = Config::parse(config, &text)?;
        let names = names(options);
        Ok(Self {
            config: config.to_owned(),
            text,
            settings,
            owners,
            certificates: certificates::make(&options.node, &names)?,
            names,
            issuer: Issuer::generate(&options.node),
            engine,
            issuer_jwk,
        })
    }

    fn write(&self, made: &Made) -> Result<(), InitError> {
        let tls = made.folder("tls")?;
        write(&tls.join("ca.pem"), 0o644, &self.certificates.ca)?;
        write(&tls.join("ca-key.pem"), 0o600, &self.certificates.ca_key)?;
        write(&tls.join("cert.pem"), 0o644, &self.certificates.cert)?;
        write(&tls.join("key.pem"), 0o600, &self.certificates.key)?;
        let file = |name: &str| made.unfinished.join(name);
        write(&file("issuer.key"), 0o600, &self.issuer.to_pem())?;
        write(&file("issuer.jwk"), 0o644, &self.issuer.jwk())?;
        write(&file("owners.pub"), 0o644, &self.owners.to_text())?;
        write(&file("denied_keys"), 0o644, template::DENIED_KEYS)?;
        if let Some(jwk) = &self.issuer_jwk {
            write(&file("trusted-issuer.jwk"), 0o644, jwk)?;
        }
        Keyring::ensure(&made.unfinished).map_err(|error| InitError::Write {
            path: file(IDENTITY),
            source: io::Error::other(error),
        })?;
        RevisionStore::init(&made.unfinished).map_err(InitError::Repository)?;
        let mark = format!("{}\n", self.settings.node);
        if self.config.parent() == Some(made.data_dir.as_path())
            && let Some(name) = self.config.file_name()
        {
            write(&made.unfinished.join(name), 0o640, &self.text)?;
            made.publish()?;
        } else {
            made.publish()?;
            if let Some(parent) = self.config.parent() {
                fs::create_dir_all(parent).map_err(|source| InitError::Write {
                    path: parent.to_owned(),
                    source,
                })?;
            }
            write(&self.config, 0o640, &self.text)?;
        }
        write(&made.data_dir.join(MARK), 0o644, &mark).inspect_err(|_| {
            let _ = fs::remove_file(&self.config);
        })
    }
}

/// Names that the certificate is to carry, each once.
fn names(options: &InitOptions) -> Vec<String> {
    let mut names = vec![
        options.node.to_string(),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    let uname = rustix::system::uname();
    let host = uname.nodename().to_string_lossy();
    if is_dns_name(&host) {
        names.push(host.into_owned());
    }
    let ip = options.listen.ip();
    if !ip.is_unspecified() {
        names.push(ip.to_string());
    }
    names.extend(options.names.iter().cloned());
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// Whether a client could ask for this name.
fn is_dns_name(name: &str) -> bool {
    rustls_pki_types::DnsName::try_from(name).is_ok() && name.parse::<IpAddr>().is_err()
}

fn issuer(file: &Path, name: Option<&str>) -> Result<(String, String), InitError> {
    let text = fs::read_to_string(file).map_err(|source| InitError::ReadIssuer {
        file: file.to_owned(),
        source,
    })?;
    let keys = keys::read_keys(&text).map_err(|source| InitError::Issuer {
        file: file.to_owned(),
        source,
    })?;
    // Another agent's key bears the name of its issuer; an issuer of another kind names its keys
    // as it likes.
    let name = name
        .map(str::to_owned)
        .or_else(|| keys.kid.filter(|kid| kid.starts_with("mcp-agent:")))
        .ok_or_else(|| InitError::NamelessIssuer {
            file: file.to_owned(),
        })?;
    Ok((text, name))
}

/// Writes a new file with its mode, down to the disk.
fn write(path: &Path, mode: u32, text: &str) -> Result<(), InitError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            disk::sync(&file, path)
        })
        .map_err(|source| InitError::Write {
            path: path.to_owned(),
            source,
        })
}

/// What init has made so far; dropping it takes that away, unless it is kept.
struct Made {
    data_dir: PathBuf,
    unfinished: PathBuf,
    created: bool,
    kept: std::cell::Cell<bool>,
    published: std::cell::RefCell<Vec<PathBuf>>,
}

impl Made {
    fn new(data_dir: &Path) -> Result<Self, InitError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| InitError::Write { path, source }
        };
        if let Some(parent) = data_dir.parent() {
            fs::create_dir_all(parent).map_err(fail(parent))?;
        }
        let created = match DirBuilder::new().mode(0o700).create(data_dir) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
                fs::set_permissions(data_dir, mode).map_err(fail(data_dir))?;
                for entry in fs::read_dir(data_dir).map_err(fail(data_dir))?.flatten() {
                    // `look` has found nothing but the remains of a killed init.
                    let _ = fs::remove_dir_all(entry.path());
                }
                false
            }
            Err(source) => return Err(fail(data_dir)(source)),
        };
        let unfinished = data_dir.join(format!("{UNFINISHED}{}", std::process::id()));
        let made = Self {
            data_dir: data_dir.to_owned(),
            unfinished,
            created,
            kept: false.into(),
            published: Vec::new().into(),
        };
        DirBuilder::new()
            .mode(0o700)
            .create(&made.unfinished)
            .map_err(fail(&made.unfinished))?;
        Ok(made)
    }

    fn folder(&self, name: &str) -> Result<PathBuf, InitError> {
        let path = self.unfinished.join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| InitError::Write {
                path: path.clone(),
                source,
            })?;
        Ok(path)
    }

    /// Moves everything into place.
    fn publish(&self) -> Result<(), InitError> {
        let entries = fs::read_dir(&self.unfinished).map_err(|source| InitError::Write {
            path: self.unfinished.clone(),
            source,
        })?;
        for entry in entries.flatten() {
            let target = self.data_dir.join(entry.file_name());
            disk::rename(&entry.path(), &target).map_err(|source| InitError::Write {
                path: target.clone(),
                source,
            })?;
            self.published.borrow_mut().push(target);
        }
        let _ = fs::remove_dir(&self.unfinished);
        disk::sync_dir(&self.data_dir).map_err(|source| InitError::Write {
            path: self.data_dir.clone(),
            source,
        })
    }

    fn keep(&self) {
        self.kept.set(true);
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.kept.get() {
            return;
        }
        let _ = fs::remove_dir_all(&self.unfinished);
        for path in self.published.borrow().iter() {
            if path.is_dir() {
                let _ = fs::remove_dir_all(path);
            } else {
                let _ = fs::remove_file(path);
            }
        }
        if self.created {
            let _ = fs::remove_dir(&self.data_dir);
        }
    }
}
