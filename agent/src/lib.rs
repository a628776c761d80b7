//! The MCP agent: verifies revisions, plans and deploys them, and watches what runs.
//!
//! [`run`] builds the agent from its configuration: one task each for accepting, serving, watching
//! and so on, in one set under one cancellation. A task that ends with an error ends the agent, and
//! systemd starts it anew; an engine that is away is a state and ends nothing.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::revision::CommitId;
use mcp_spec::signature::{DeniedKeys, KeysError, OwnerKeys};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub mod adoption;
pub mod alert;
pub mod assemble;
pub mod auth;
pub mod backup;
pub mod blocking;
pub mod check;
pub mod clock;
pub mod config;
pub mod deploy;
pub mod desired;
pub mod disk;
pub mod files;
pub mod init;
pub mod intake;
pub mod lock;
pub mod node;
pub mod planning;
pub mod random;
pub mod rebuild;
pub mod reconcile;
pub mod registry;
pub mod restore;
pub mod retention;
pub mod revisions;
pub mod rpc;
pub mod runtime;
pub mod secrets;
pub mod source;
pub mod takeover;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod trust;
pub mod watch;

use arc_swap::ArcSwapOption;
use assemble::{Parts, assemble};
use auth::issuer::{Issuer, IssuerKeyError};
use auth::issuers::Issuers;
use auth::keys::{JwkError, read_keys};
use auth::token::{TrustedIssuer, Verifier};
use clock::{Clock, SystemClock};
use config::{AuthConfig, Config};
use deploy::{Deployer, DeployerDied};
use desired::Desired;
use intake::Origin;
use lock::{DataDirLock, LockError};
use planning::Planner;
use random::Random;
use registry::{Registry, RegistryError, RevisionSource};
use revisions::{Accepted, RevisionStore, TrustRoots};
use runtime::docker::{DockerRuntime, EngineSocket};
use runtime::{EngineFacts, Runtime};
use secrets::Keyring;
use source::{Source, Way};
use tls::{Certificate, CertificateError};
use watch::{Busy, Watch};

/// How long running calls, and then other work, may take to end once the agent was told to.
const GRACE: Duration = Duration::from_secs(5);

/// How long the API waits for a first look at the engine.
const FIRST_LOOK: Duration = Duration::from_secs(2);

/// What every call and every task shares.
#[derive(Debug)]
pub struct Agent {
    /// The checked configuration.
    pub config: Config,
    /// When this process began.
    pub started_at: Timestamp,
    /// Believes the right tokens.
    pub verifier: Arc<Issuers>,
    /// The accepted revisions.
    pub revisions: Arc<RevisionStore>,
    /// Their compiled definitions.
    pub desired: Arc<Desired>,
    /// What was deployed and what was seen of it.
    pub registry: Registry,
    /// The engine.
    pub runtime: Arc<dyn Runtime>,
    /// Its facts, once it has answered.
    pub engine: Arc<ArcSwapOption<EngineFacts>>,
    /// What runs.
    pub watch: Watch,
    /// Makes plans.
    pub planner: Arc<Planner>,
    /// Changes containers.
    pub deployer: Deployer,
    /// The services that are being changed.
    pub busy: Busy,
    /// Tells of new heads.
    pub heads: tokio::sync::watch::Sender<Option<CommitId>>,
    /// Hands alerts to the operator's command.
    pub alerts: Arc<alert::Delivery>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The upstream's state.
    pub source: Source,
    /// The inbox's state.
    pub inbox: Source,
    /// Files below services' folders.
    pub files: Arc<files::Files>,
    /// Takes over what runs unknown to the registry.
    pub reclaimer: Arc<takeover::Reclaimer>,
    /// Work that goes on though its caller went away; the agent waits for it at its end.
    pub work: TaskTracker,
    /// Ends everything; streams without end watch it.
    pub shutdown: CancellationToken,
}

impl Agent {
    /// What follows from a new head.
    pub async fn arrived(&self, way: Way, by: &str, accepted: &Accepted) {
        tracing::info!(?way, by, head = %accepted.head, new = accepted.new_commits.len(), "new head");
        let origin = Origin {
            source: match way {
                Way::Push => RevisionSource::Push,
                Way::Fetch => RevisionSource::Fetch,
                Way::Inbox => RevisionSource::Inbox,
            },
            by: by.to_owned(),
            at: self.clock.now(),
        };
        let taken = intake::take_in(&self.registry, &self.revisions, &self.desired, origin).await;
        if let Err(error) = taken {
            // The repository has it: the next arrival or the next start makes up for this.
            tracing::error!(error = %error_chain(&error), "a revision could not be written down");
        }
        // It may be the one that tells what a container is, after the registry was set back.
        if let Err(error) = self.reclaimer.reclaim().await {
            tracing::error!(%error, "cannot take over what runs");
        }
        self.heads.send_replace(Some(accepted.head));
    }
}

/// Why the agent does not start, or why it ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// Another agent has the data directory, or it is not there.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The issuers cannot be used.
    #[error(transparent)]
    Issuers(#[from] IssuersError),
    /// The trust that comes out of band cannot be read.
    #[error(transparent)]
    Trust(#[from] TrustRootsError),
    /// The repository cannot be opened.
    #[error("cannot open the repository")]
    Revisions(#[from] revisions::OpenError),
    /// A flush of the repository failed.
    #[error("the repository could not be flushed to the disk: what is on it is in doubt")]
    InDoubt,
    /// A restore was cut off.
    #[error("a restore was cut off: the data directory is half the old one and half the backup's")]
    Restoring,
    /// The registry cannot be opened.
    #[error(transparent)]
    OpenRegistry(#[from] registry::OpenError),
    /// The registry is gone and no new one could be made.
    #[error("the registry is gone, and no new one could be made")]
    Rebuild(#[from] rebuild::RebuildError),
    /// The registry failed while the agent started, or takes no more writes.
    #[error("the registry failed")]
    Registry(#[from] RegistryError),
    /// The revisions could not be written into the registry.
    #[error("the registry cannot catch up with the repository")]
    Intake(#[from] intake::IntakeError),
    /// Alerts cannot be kept.
    #[error(transparent)]
    Alerts(#[from] alert::JudgeError),
    /// A deployment's task died.
    #[error(transparent)]
    Deployer(#[from] DeployerDied),
    /// The engine's socket cannot be used.
    #[error(transparent)]
    Socket(#[from] runtime::docker::SocketError),
    /// The address cannot be listened on.
    #[error("cannot listen on {listen}")]
    Listen {
        /// The configured address.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The API's server ended.
    #[error("the API's server failed")]
    Serve(#[from] tonic::transport::Error),
    /// A task panicked or was lost.
    #[error("the task {task} died")]
    Task {
        /// Its name.
        task: &'static str,
        /// How.
        source: tokio::task::JoinError,
    },
}

impl RunError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Lock(error) => error.hint(),
            Self::Certificate(error) => error.hint(),
            Self::Issuers(error) => error.hint(),
            Self::Trust(error) => error.hint(),
            Self::Socket(_) => "mend runtime.socket in agent.toml".to_owned(),
            Self::Deployer(_) => "start the agent again: it finishes what was under way".to_owned(),
            Self::Revisions(_) => {
                "restore a backup (mcp-agent restore), or move repo.git away, start the agent and push everything \
                 anew with mcp sync"
                    .to_owned()
            }
            Self::InDoubt => {
                "look at the disk of the data directory; the next start finishes what was begun".to_owned()
            }
            Self::Restoring => "run the same mcp-agent restore again, with --force".to_owned(),
            Self::OpenRegistry(error) => open_registry_hint(error),
            Self::Rebuild(error) => error.hint(),
            Self::Registry(_) | Self::Intake(_) | Self::Alerts(_) => {
                "look at the disk of the data directory, then start the agent again".to_owned()
            }
            Self::Listen { .. } => {
                "see who has it: ss -ltnp; or change listen in agent.toml".to_owned()
            }
            Self::Serve(_) | Self::Task { .. } => {
                "start the agent again; its log tells what came before".to_owned()
            }
        }
    }
}

fn open_registry_hint(error: &registry::OpenError) -> String {
    match error {
        registry::OpenError::NewerSchema { .. } => {
            "run the newer agent, or restore the backup from before its start"
        }
        registry::OpenError::Foreign { .. } => "give another data directory",
        registry::OpenError::Full { .. } => "make room on the disk of the data directory",
        registry::OpenError::Locked { .. } => "stop the other process: fuser mcp.db names it",
        registry::OpenError::OldSqlite { .. } => "build the agent with its bundled SQLite",
        registry::OpenError::Io { .. } => "run the agent as the owner of its data directory",
        _ => "restore a backup (mcp-agent restore FILE), or make a new one from repository and engine: mcp-agent rebuild --config FILE",
    }
    .to_owned()
}

/// Why the keys of the token issuers cannot be used.
#[derive(Debug, Error)]
pub enum IssuersError {
    /// The built-in issuer's.
    #[error(transparent)]
    Own(#[from] IssuerKeyError),
    /// The external issuer's file cannot be read.
    #[error("cannot read the issuer's public key {}", file.display())]
    Read {
        /// The file.
        file: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The external issuer's file is refused.
    #[error("the issuer's public key {} is refused", file.display())]
    Jwk {
        /// The file.
        file: std::path::PathBuf,
        /// Why.
        source: JwkError,
    },
}

impl IssuersError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Own(_) => "mcp-agent init writes this key; restore it from a backup".to_owned(),
            Self::Read { .. } | Self::Jwk { .. } => {
                "put the issuer's Ed25519 key, in PEM or as a JWK, into the file that auth.jwks names"
                    .to_owned()
            }
        }
    }
}

/// The verifier that a configuration asks for: the built-in issuer, and the external ones with the keys that lie in
/// their files.
///
/// # Errors
///
/// [`IssuersError`] where a key cannot be used.
pub fn verifier(config: &Config) -> Result<Verifier, IssuersError> {
    let AuthConfig {
        external,
        audience,
        max_age,
    } = &config.auth;
    let mut issuers = vec![Issuer::load(&config.node, &config.issuer_key())?.trusted()];
    for external in external {
        let file = &external.keys.file;
        let keys = match std::fs::read_to_string(file) {
            Ok(text) => {
                read_keys(&text)
                    .map_err(|source| IssuersError::Jwk {
                        file: file.clone(),
                        source,
                    })?
                    .keys
            }
            // Its server was not reached so far: until then its tokens count for nothing.
            Err(error)
                if external.keys.server.is_some() && error.kind() == io::ErrorKind::NotFound =>
            {
                Vec::new()
            }
            Err(source) => {
                return Err(IssuersError::Read {
                    file: file.clone(),
                    source,
                });
            }
        };
        issuers.push(TrustedIssuer {
            issuer: external.issuer.clone(),
            keys,
            roles: external.roles.clone(),
        });
    }
    Ok(Verifier {
        node: config.node.clone(),
        audience: audience.clone(),
        max_age: *max_age,
        issuers,
    })
}

/// Why the keys that come out of band cannot be used.
#[derive(Debug, Error)]
pub enum TrustRootsError {
    /// A file cannot be read. A missing denylist is no empty one.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A line of a file is refused.
    #[error("{} is refused", file.display())]
    Keys {
        /// The file.
        file: std::path::PathBuf,
        /// The line and what is wrong with it.
        source: KeysError,
    },
    /// The pinned introduction is no commit.
    #[error("trust.introduction `{text}` is no commit")]
    Introduction {
        /// What stands there.
        text: String,
    },
}

impl TrustRootsError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { file, .. } => format!(
                "restore {}, or name another under [trust] in agent.toml; an empty denylist is an empty file",
                file.display()
            ),
            Self::Keys { .. } => {
                "one ssh-ed25519 public key a line; denied_keys takes SHA256: fingerprints too"
                    .to_owned()
            }
            Self::Introduction { .. } => "write 40 hexadecimal digits in agent.toml".to_owned(),
        }
    }
}

/// The trust that a configuration names.
///
/// # Errors
///
/// [`TrustRootsError`] where a file is missing or refused.
pub fn trust_roots(config: &Config) -> Result<TrustRoots, TrustRootsError> {
    let read = |file: &std::path::Path| {
        std::fs::read_to_string(file).map_err(|source| TrustRootsError::Read {
            file: file.to_owned(),
            source,
        })
    };
    let refused = |file: &std::path::Path| {
        let file = file.to_owned();
        move |source| TrustRootsError::Keys { file, source }
    };
    let trust = &config.trust;
    Ok(TrustRoots {
        owners: OwnerKeys::parse(&read(&trust.owners)?).map_err(refused(&trust.owners))?,
        denied: DeniedKeys::parse(&read(&trust.denied_keys)?)
            .map_err(refused(&trust.denied_keys))?,
        introduction: trust
            .introduction
            .as_ref()
            .map(|text| {
                text.parse()
                    .map_err(|_| TrustRootsError::Introduction { text: text.clone() })
            })
            .transpose()?,
    })
}

/// Runs the agent until `shutdown`, then lets running calls end.
///
/// `ready` is called once, with the address that it listens on and the engine's name and version.
///
/// # Errors
///
/// [`RunError`] where it cannot start, or where one of its tasks ended.
pub async fn run(
    config: Config,
    shutdown: CancellationToken,
    ready: impl FnOnce(SocketAddr, &str),
) -> Result<(), RunError> {
    let _lock = DataDirLock::take(&config.data_dir)?;
    let certificate = Arc::new(Certificate::load(&config.tls)?);
    let verifier = Arc::new(Issuers::load(&config)?);
    verifier.fetch_all().await;
    if restore::is_unfinished(&config.data_dir) {
        return Err(RunError::Restoring);
    }
    let revisions = Arc::new(open_store(&config)?);
    let socket: EngineSocket = config.runtime.socket_url().parse()?;
    let runtime: Arc<dyn Runtime> =
        Arc::new(DockerRuntime::new(socket).behind(revisions.keyring().mask()));
    if revisions.head().is_some() && registry::is_blank(&config.database()) {
        make_registry_anew(&config, &revisions, &runtime).await?;
    }
    let registry = Registry::open(&config.database())?;
    revisions.hold_against(registry.head().await?);
    if let Some(trouble) = revisions.trouble() {
        if trouble.awaits().is_some() {
            revisions.remember(registry.commits().await?);
        }
        tracing::error!(%trouble, "no changes are taken");
    }
    let listen = config.listen;
    let listener = TcpListener::bind(listen)
        .await
        .map_err(|source| RunError::Listen { listen, source })?;
    let address = listener
        .local_addr()
        .map_err(|source| RunError::Listen { listen, source })?;
    let parts = Parts {
        config,
        verifier,
        revisions,
        registry,
        runtime,
        clock: Arc::new(SystemClock),
        random: Random::system(),
    };
    let (agent, mut tasks) = assemble(parts, shutdown).await?;
    // So that the first plan finds what was taken over; an engine that is away or slow is not waited for.
    let first = async {
        if agent.watch.fresh().await.is_ok()
            && let Err(error) = agent.reclaimer.reclaim().await
        {
            tracing::error!(%error, "cannot take over what runs");
        }
    };
    drop(tokio::time::timeout(FIRST_LOOK, first).await);
    let (accepting, incoming) = tls::accept(
        listener,
        Arc::new(tls::server_config(certificate)),
        tls::ADMISSION_LIMIT,
        tasks.shutdown.child_token(),
    );
    tasks.spawn("accept", async {
        accepting.await;
        Ok(())
    });
    tasks.spawn(
        "serve",
        serve(Arc::clone(&agent), incoming, tasks.shutdown.child_token()),
    );
    if let Some(source) = agent.config.source.clone() {
        let poll = source::poll(Arc::clone(&agent), source, tasks.shutdown.child_token());
        tasks.spawn("source", async {
            poll.await;
            Ok(())
        });
    }
    if let Some(inbox) = agent.config.inbox.clone() {
        let watching =
            source::inbox::watch(Arc::clone(&agent), inbox, tasks.shutdown.child_token());
        tasks.spawn("inbox", async {
            watching.await;
            Ok(())
        });
    }
    let keeping = Arc::clone(&agent.verifier);
    let stop = tasks.shutdown.child_token();
    tasks.spawn("issuers", async move {
        keeping.keep(stop).await;
        Ok(())
    });
    let engine = meet_engine(&agent).await;
    let files = Arc::clone(&agent.files);
    agent.work.spawn(async move { files.sweep().await });
    ready(address, &engine);
    let ended = tasks.finish().await;
    agent.work.close();
    if tokio::time::timeout(GRACE, agent.work.wait())
        .await
        .is_err()
    {
        tracing::warn!("work was still under way; the next start takes it up");
    }
    // Whoever copies or moves a stopped agent's registry has all of it in the one file.
    let registry = agent.registry.clone();
    if let Err(error) = blocking::blocking(move || registry.checkpoint()).await {
        tracing::warn!(%error, "the registry's newest writes stay in its write-ahead log");
    }
    ended
}

/// Opens the repository. One that was removed is made anew, empty: containers go on being looked after, and
/// a push brings back what the high-water mark remembers, and nothing else.
fn open_store(config: &Config) -> Result<RevisionStore, RunError> {
    if let Err(error) = Keyring::ensure(&config.data_dir) {
        // Only what uses secrets is held up by it.
        tracing::error!(%error, "the node has no keys for secrets");
    }
    match RevisionStore::open(&config.data_dir, trust_roots(config)?) {
        Err(revisions::OpenError::Missing { .. }) if !config.repo().exists() => {
            tracing::error!(repository = %config.repo().display(), "the repository is gone: an empty one takes its place");
            RevisionStore::init(&config.data_dir)?;
            Ok(RevisionStore::open(&config.data_dir, trust_roots(config)?)?)
        }
        opened => Ok(opened?),
    }
}

/// A registry that was deleted is made anew from repository and engine: an empty one would leave what runs
/// to nobody, and a refusal would too.
async fn make_registry_anew(
    config: &Config,
    revisions: &Arc<RevisionStore>,
    runtime: &Arc<dyn Runtime>,
) -> Result<(), RunError> {
    tracing::error!(
        database = %config.database().display(),
        "the registry is gone: making a new one from repository and engine; history, events, stops, holds and \
         quarantined specs are lost, unless a backup is restored"
    );
    let rebuilt = rebuild::rebuild_from(
        config,
        revisions.clone(),
        runtime.clone(),
        Timestamp::now(),
        &Random::system(),
    )
    .await?;
    for taken in &rebuilt.containers {
        match &taken.verdict {
            Ok(revision) => {
                tracing::warn!(container = taken.container, revision = %revision.short(), "taken over");
            }
            Err(reason) => tracing::warn!(container = taken.container, reason),
        }
    }
    Ok(())
}

/// Asks the engine who it is. One that is away is asked again by the watch.
async fn meet_engine(agent: &Agent) -> String {
    match agent.runtime.facts().await {
        Ok(facts) => {
            let text = format!("{} {}", facts.name.as_str(), facts.version);
            agent.engine.store(Some(Arc::new(facts)));
            text
        }
        Err(error) => {
            tracing::warn!(%error, "the engine does not answer yet");
            format!("{} away", agent.config.runtime.engine.as_str())
        }
    }
}

async fn serve(
    agent: Arc<Agent>,
    incoming: tls::Incoming,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    Ok(rpc::serve(agent, incoming, shutdown).await?)
}

/// An error with its causes, in one line for a log.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
