//! `mcp-agent rebuild`: a new registry from the repository and the engine, after the old one was lost.
//!
//! It starts, stops and changes nothing. The revisions come from the repository, which verified them
//! and kept them. A container is taken over only where it bears the name of its component, and where
//! the revision that its labels name is an accepted one whose definition gives the very spec digest
//! that they name; all others are left alone and told. What only the old registry knew is gone:
//! history, events, holds, quarantined specs, and drift from before, since what runs now is taken for
//! what was made. What does not run is taken for stopped by an operator, so that nothing starts
//! behind anybody's back.
//!
//! The old file is kept beside the new one. A crash leaves either the old state or the new one: the
//! new registry gets its name last.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ServiceName};
use mcp_spec::observed::{DesiredState, LiveContainer, Observed, label};
use mcp_spec::plan::ServiceSettings;
use mcp_spec::revision::CommitId;
use thiserror::Error;

use crate::blocking::blocking;
use crate::config::Config;
use crate::desired::Desired;
use crate::disk;
use crate::intake::{self, IntakeError, Origin};
use crate::lock::{DataDirLock, LockError};
use crate::random::Random;
use crate::registry::{
    CommitDeployment, DeployedRow, DeploymentId, DeploymentRow, DeploymentState, Finish,
    HistoryEntry, NewEvent, OpenError, Outcome, Registry, RegistryError, RevisionSource,
    SetDeployed, StopOverride, Trigger,
};
use crate::revisions::{self, RevisionStore};
use crate::runtime::docker::{DockerRuntime, EngineSocket, SocketError};
use crate::runtime::{Runtime, RuntimeError};
use crate::watch::first_sight;
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

/// What became of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The container's name.
    pub container: String,
    /// The component, where the labels name one.
    pub key: Option<ComponentKey>,
    /// The revision that it is said to run from now on, or why it was left alone.
    pub verdict: Result<CommitId, String>,
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
        let judged = judge(config, &revisions, &desired, live).await;
        let taken = judged.iter().map(Judged::taken).collect();
        record(&registry, judged, now, random).await?;
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

/// A container and what is to become of it.
struct Judged {
    live: LiveContainer,
    key: Option<ComponentKey>,
    verdict: Result<Box<DeployedRow>, String>,
}

impl Judged {
    fn taken(&self) -> Taken {
        Taken {
            container: self.live.name.clone(),
            key: self.key.clone(),
            verdict: self
                .verdict
                .as_ref()
                .map(|row| row.revision)
                .map_err(Clone::clone),
        }
    }
}

async fn judge(
    config: &Config,
    revisions: &Arc<RevisionStore>,
    desired: &Arc<Desired>,
    live: Vec<LiveContainer>,
) -> Vec<Judged> {
    let (revisions, desired) = (Arc::clone(revisions), Arc::clone(desired));
    let node = config.node.clone();
    blocking(move || {
        live.into_iter()
            .map(|live| {
                let key = live.claimed_key();
                let verdict = match &key {
                    Some(key) => deployed(key, &live, &revisions, &desired)
                        .map(Box::new)
                        .map_err(|reason| format!("left alone: {reason}")),
                    None => Err(format!(
                        "left alone: its labels name no component of {node}"
                    )),
                };
                Judged { live, key, verdict }
            })
            .collect()
    })
    .await
}

/// The row of a container whose spec recomputes, or why it does not.
fn deployed(
    key: &ComponentKey,
    live: &LiveContainer,
    revisions: &RevisionStore,
    desired: &Desired,
) -> Result<DeployedRow, String> {
    if live.name != key.container_name() {
        return Err(format!("it is not called {}", key.container_name()));
    }
    let said = |name: &str| {
        live.labels
            .get(name)
            .ok_or_else(|| format!("it has no label {name}"))
    };
    let revision: CommitId = said(label::REVISION)?
        .parse()
        .map_err(|_| "its revision is no commit".to_owned())?;
    let digest: Digest = said(label::SPEC)?
        .parse()
        .map_err(|_| "its spec digest is none".to_owned())?;
    let generation = live
        .generation()
        .ok_or_else(|| "its generation is no number".to_owned())?;
    if !revisions.is_accepted(revision) {
        return Err(format!("{} was never accepted here", revision.short()));
    }
    let spec_at = |commit: CommitId| {
        let set = desired.at(commit).ok()?;
        let service = set.services.get(&key.service)?;
        let spec = service.components.get(&key.component)?;
        (spec.digest() == digest).then(|| (spec.clone(), ServiceSettings::of(service)))
    };
    // Where the head still wants the very same it is said to run the head, as after a deployment of it.
    let newest = revisions
        .head()
        .and_then(|head| Some((head, spec_at(head)?)));
    let (revision, (spec, settings)) = newest
        .or_else(|| Some((revision, spec_at(revision)?)))
        .ok_or_else(|| format!("{} does not give that spec", revision.short()))?;
    Ok(DeployedRow {
        key: key.clone(),
        spec_digest: digest,
        spec,
        image_id: live.image_id.clone(),
        image_digest: None,
        revision,
        container: live.id.clone(),
        container_name: live.name.clone(),
        generation,
        baseline: live.fields.clone(),
        desired: if settings.active {
            DesiredState::Running
        } else {
            DesiredState::Stopped
        },
        stopped_by: None,
        hold: None,
        // Given with the deployment that records it.
        deployment: DeploymentId::from_bits(0),
        history: 0,
        deployed_at: Timestamp::UNIX_EPOCH,
        adopted: false,
        settings,
    })
}

/// Writes the rows down, a deployment of each service, so that history and `why` have something to tell.
async fn record(
    registry: &Registry,
    judged: Vec<Judged>,
    now: Timestamp,
    random: &Random,
) -> Result<(), RebuildError> {
    let mut services: BTreeMap<ServiceName, Vec<(LiveContainer, DeployedRow)>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for judged in judged {
        if let Ok(row) = judged.verdict
            && seen.insert(row.key.clone())
        {
            services
                .entry(row.key.service.clone())
                .or_default()
                .push((judged.live, *row));
        }
    }
    for (service, rows) in services {
        let id = DeploymentId::from_bits(random.bits());
        let revision = rows.first().map(|(_, row)| row.revision);
        registry
            .admit(DeploymentRow {
                id: id.clone(),
                service: service.clone(),
                component: None,
                request_id: String::new(),
                request_digest: Digest::of(b""),
                actor: ACTOR.to_owned(),
                trigger: Trigger::Rebuild,
                revision,
                signer: None,
                plan: String::new(),
                plan_id: String::new(),
                state: DeploymentState::Admitted,
                outcome: None,
                error: None,
                created_at: now,
                line_at: None,
                finished_at: None,
            })
            .await?;
        let mut commit = CommitDeployment::new(id.clone());
        for (live, mut row) in rows {
            row.deployment = id.clone();
            row.deployed_at = now;
            let is_wanted = row.desired == DesiredState::Running && !row.spec.kind.is_job();
            if is_wanted && !live.state.is_running() {
                row.stopped_by = Some(StopOverride {
                    by: ACTOR.to_owned(),
                    at: now,
                });
            }
            let observed = Observed::Present(Box::new(live));
            commit.observed.push(first_sight(&row, &observed, now));
            commit.set.push(SetDeployed {
                row,
                history: HistoryEntry::New,
            });
        }
        registry.commit_deployment(commit).await?;
        registry
            .finish(Finish {
                id,
                state: DeploymentState::Cleaned,
                outcome: Outcome::Deployed,
                error: None,
                records: Vec::new(),
                quarantined: Vec::new(),
                events: vec![NewEvent {
                    at: now,
                    service: Some(service.clone()),
                    component: None,
                    kind: "rebuilt".to_owned(),
                    reason: ACTOR.to_owned(),
                    message: format!("{service} was taken over into a new registry"),
                    revision,
                    data: serde_json::json!({}),
                }],
                at: now,
            })
            .await?;
    }
    Ok(())
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
