//! `mcp-agent rebuild`: a new registry from the repository and the engine, after the old one was lost.
//!
//! It starts, stops and changes nothing. The revisions come from the repository, which verified them
//! and kept them; which containers are taken over is [`crate::takeover`]'s to say. What only the old
//! registry knew is gone: history, events, quarantined specs, and drift from before. What does not run
//! is taken for stopped by an operator, and what runs another spec than the head's for held, so that
//! nothing starts or changes behind anybody's back.
//!
//! The agent does the same by itself where its registry is not there at all.
//!
//! The old file is kept beside the new one. A crash leaves either the old state or the new one: the
//! new registry gets its name last.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::observed::{LiveContainer, label};
use mcp_spec::revision::CommitId;
use thiserror::Error;

use crate::blocking::blocking;
use crate::config::Config;
use crate::desired::Desired;
use crate::disk;
use crate::intake::{self, IntakeError, Origin};
use crate::lock::{DataDirLock, LockError};
use crate::random::Random;
use crate::registry::{OpenError, Registry, RegistryError, RevisionSource};
use crate::revisions::{self, RevisionStore};
use crate::runtime::docker::{DockerRuntime, EngineSocket, SocketError};
use crate::runtime::{Runtime, RuntimeError};
use crate::takeover::{Judged, TakeOver, Taken, judge, record};
use crate::{TrustRootsError, trust_roots};

/// Who is said to have done it.
const ACTOR: &str = "rebuild";

/// Longest wait for one answer of the engine.
const ENGINE_LIMIT: Duration = Duration::from_secs(60);

/// Why the registry was not rebuilt. The old one is as it was.
#[derive(Debug, Error)]
pub enum RebuildError {
    /// An agent runs, or the data directory is not there.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The trust that comes out of band cannot be read.
    #[error(transparent)]
    Trust(#[from] TrustRootsError),
    /// The repository cannot be opened.
    #[error("cannot open the repository")]
    Revisions(#[from] revisions::OpenError),
    /// The engine's socket cannot be used.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The engine does not tell what runs: without it nothing can be taken over.
    #[error("the engine does not tell what runs")]
    Engine(#[from] RuntimeError),
    /// The engine takes too long.
    #[error("the engine did not answer within {} s", ENGINE_LIMIT.as_secs())]
    Slow,
    /// The new registry cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new registry cannot be written.
    #[error("the new registry cannot be written")]
    Registry(#[from] RegistryError),
    /// The revisions could not be written into the new registry.
    #[error("the revisions cannot be written into the new registry")]
    Intake(#[from] IntakeError),
    /// A file cannot be moved.
    #[error("cannot move {}", file.display())]
    Move {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl RebuildError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Lock(error) => error.hint(),
            Self::Trust(error) => error.hint(),
            Self::Revisions(_) => {
                "restore the data directory from a backup: without its repository nothing can be verified"
                    .to_owned()
            }
            Self::Socket(_) => "mend runtime.socket in agent.toml".to_owned(),
            Self::Engine(_) | Self::Slow => "start the engine, then rebuild".to_owned(),
            Self::Open(_) | Self::Registry(_) | Self::Intake(_) | Self::Move { .. } => {
                "look at the disk of the data directory, then rebuild".to_owned()
            }
        }
    }
}

/// What was rebuilt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuilt {
    /// The head.
    pub head: Option<CommitId>,
    /// Containers that bear this node's labels, by name.
    pub containers: Vec<Taken>,
    /// Where the old registry is kept; `None` where there was none.
    pub old: Option<PathBuf>,
}

/// Rebuilds the registry of a node whose agent does not run.
///
/// # Errors
///
/// [`RebuildError`], with the old registry as it was.
pub async fn rebuild(config: &Config) -> Result<Rebuilt, RebuildError> {
    let _lock = DataDirLock::take(&config.data_dir)?;
    let socket: EngineSocket = config.runtime.socket_url().parse()?;
    let runtime: Arc<dyn Runtime> = Arc::new(DockerRuntime::new(socket));
    let revisions = Arc::new(RevisionStore::open(&config.data_dir, trust_roots(config)?)?);
    rebuild_from(
        config,
        revisions,
        runtime,
        Timestamp::now(),
        &Random::system(),
    )
    .await
}

/// As [`rebuild`], with what it works on given; the caller holds the lock.
pub(crate) async fn rebuild_from(
    config: &Config,
    revisions: Arc<RevisionStore>,
    runtime: Arc<dyn Runtime>,
    now: Timestamp,
    random: &Random,
) -> Result<Rebuilt, RebuildError> {
    let desired = Arc::new(Desired::new(config.node.clone(), revisions.clone()));
    let live = ours(config, &runtime).await?;
    let (database, fresh) = (config.database(), config.database().with_extension("new"));
    discard(&fresh)?;
    let head = revisions.head();
    let containers = {
        let registry = Registry::open(&fresh)?;
        let origin = Origin {
            source: RevisionSource::Rebuild,
            by: ACTOR.to_owned(),
            at: now,
        };
        intake::take_in(&registry, &revisions, &desired, origin).await?;
        let judged = judge(&revisions, &desired, live).await;
        let taken = judged.iter().map(Judged::taken).collect();
        let order = TakeOver {
            actor: ACTOR,
            before: BTreeMap::new(),
            now,
        };
        record(&registry, judged, order, random).await?;
        blocking(move || registry.close()).await;
        taken
    };
    let old = put_in_place(&database, &fresh, now)?;
    Ok(Rebuilt {
        head,
        containers,
        old,
    })
}

/// All containers with this node's label, as the engine shows them now.
async fn ours(
    config: &Config,
    runtime: &Arc<dyn Runtime>,
) -> Result<Vec<LiveContainer>, RebuildError> {
    let limited = tokio::time::timeout(ENGINE_LIMIT, runtime.list());
    let listed = limited.await.map_err(|_| RebuildError::Slow)??;
    let mut live = Vec::new();
    for container in listed {
        if container.labels.get(label::NODE).map(String::as_str) != Some(config.node.as_str()) {
            continue;
        }
        let limited = tokio::time::timeout(ENGINE_LIMIT, runtime.inspect(container.id.as_str()));
        // One that went meanwhile is not there.
        if let Some(container) = limited.await.map_err(|_| RebuildError::Slow)?? {
            live.push(container);
        }
    }
    live.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(live)
}

/// Files that SQLite keeps beside a database.
fn companions(database: &Path) -> [PathBuf; 3] {
    ["", "-wal", "-shm"].map(|suffix| {
        let mut name = database.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

fn discard(database: &Path) -> Result<(), RebuildError> {
    for file in companions(database) {
        match fs::remove_file(&file) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(RebuildError::Move { file, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Moves the old registry aside and the new one into its place, and syncs the folder.
fn put_in_place(
    database: &Path,
    fresh: &Path,
    now: Timestamp,
) -> Result<Option<PathBuf>, RebuildError> {
    let moved = |from: &Path, to: &Path| {
        disk::rename(from, to).map_err(|source| RebuildError::Move {
            file: from.to_owned(),
            source,
        })
    };
    let aside = database.with_extension(format!("db.before-{}", now.as_second()));
    let existed = database.exists();
    // Last to first: without its main file the rest of the old one means nothing.
    for (from, to) in companions(database).iter().zip(companions(&aside)).rev() {
        if from.exists() {
            moved(from, &to)?;
        }
    }
    moved(fresh, database)?;
    let folder = database.parent().unwrap_or(Path::new("."));
    disk::sync_dir(folder).map_err(|source| RebuildError::Move {
        file: folder.to_owned(),
        source,
    })?;
    Ok(existed.then_some(aside))
}
