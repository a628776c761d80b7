//! What every deployment works with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use mcp_spec::name::NodeName;
use mcp_spec::observed::LiveContainer;
use mcp_spec::revision::CommitId;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::failure::PartFailure;
use super::stage::Staging;
use crate::blocking::blocking;
use crate::clock::Clock;
use crate::desired::Desired;
use crate::random::Random;
use crate::registry::{Registry, RegistryError};
use crate::revisions::RevisionStore;
use crate::runtime::{EngineFacts, Runtime, RuntimeError};
use crate::secrets::memory::MemoryFolder;
use crate::watch::Sightings;

/// Longest pause between two attempts at an engine that is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How often a write that must be made is tried: for about half a minute in all.
const WRITES: u32 = 12;

/// How long a create that was under way when the agent was killed may go on in the engine.
pub(super) const IN_FLIGHT: Duration = Duration::from_secs(3);

/// What every deployment works with: the engine, the registry, the revisions and the clock.
#[derive(Debug)]
pub struct Context {
    /// This node.
    pub node: NodeName,
    /// The engine.
    pub runtime: Arc<dyn Runtime>,
    /// Its facts, as soon as it has answered once.
    pub engine: Arc<ArcSwapOption<EngineFacts>>,
    /// The registry.
    pub registry: Registry,
    /// The verified revisions.
    pub revisions: Arc<RevisionStore>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for ids.
    pub random: Random,
    /// Staged files.
    pub staging: Staging,
    /// Where opened secrets lie.
    pub memory: MemoryFolder,
    /// Where services keep their data: the agent makes `SERVICES_DIR/SERVICE` at a first deploy.
    pub services_dir: PathBuf,
    /// Permits of steps that load the engine; waiting at a gate holds none.
    pub slots: Semaphore,
    /// What deployments see of containers goes straight to the watch.
    pub sightings: Sightings,
    /// The head's definitions: what they dropped is no longer kept for its logs.
    pub desired: Arc<Desired>,
    /// What deployments leave to the deployer.
    pub upkeep: Upkeep,
}

/// What deployments leave to the deployer.
#[derive(Debug, Default)]
pub struct Upkeep {
    /// Something could not be cleared away.
    pub(super) debris: Notify,
    /// Something could not be written down that must be: the agent has to end, and recovery to go on.
    pub(super) broken: CancellationToken,
}

/// How long a call may go without an answer before its effect is looked for: an answer can be lost.
const LOOK_AFTER: Duration = Duration::from_secs(2);

/// How often it is looked for then.
const LOOK_PACE: Duration = Duration::from_secs(1);

/// How long one attempt at a start or a rename may take: far more than either engine needs, and each
/// second of a start that hangs is one in which nothing runs. Another attempt does no harm: the engines
/// make one wait for the other.
pub(super) const ATTEMPT: Duration = Duration::from_secs(10);

/// What came of looking at the engine after a call that failed.
pub(super) enum Settled {
    /// The call's effect is there.
    Done,
    /// It is not, and this is why.
    Failed(RuntimeError),
}

impl Context {
    /// The engine's facts, where it has answered.
    #[must_use]
    pub fn facts(&self) -> Option<Arc<EngineFacts>> {
        self.engine.load_full()
    }

    /// Staging with the engine's idea of users, for what may be given to one of them.
    pub(super) async fn staging_for_engine(&self) -> Staging {
        self.staging.among(self.runtime.user_namespace().await)
    }

    /// The bytes of a repository file at a revision.
    pub(super) async fn file_bytes(
        &self,
        revision: CommitId,
        path: &str,
    ) -> Result<Vec<u8>, PartFailure> {
        let failure = |cause: String| PartFailure::File {
            path: path.to_owned(),
            cause,
        };
        let (store, wanted) = (self.revisions.clone(), path.to_owned());
        blocking(move || store.read_file(revision, &wanted))
            .await
            .map_err(|error| failure(error.to_string()))?
            .ok_or_else(|| failure(format!("{} does not hold it", revision.short())))
    }

    /// Looks for a container that may be about to appear, until it does or the time is up.
    pub(super) async fn appearing(
        &self,
        name: &str,
        until: Instant,
    ) -> Result<Option<LiveContainer>, RuntimeError> {
        loop {
            match self.runtime.inspect(name).await {
                Ok(None) if Instant::now() < until => sleep(Duration::from_millis(100)).await,
                Err(error) if error.is_away() => {
                    // Before the line nothing is down: there is time to wait for the engine.
                    if !self.engine_was_away().await {
                        return Err(error);
                    }
                }
                seen => return seen,
            }
        }
    }

    /// Waits while the engine does not answer. Tells whether it had to wait at all.
    pub(super) async fn engine_was_away(&self) -> bool {
        let mut waited = false;
        while self.runtime.facts().await.is_err() {
            waited = true;
            sleep(LONGEST_PAUSE).await;
        }
        waited
    }

    /// Writes what must not be lost: without it recovery would take up again what has ended. Where the
    /// registry takes it in no way the agent ends, and this never returns.
    pub(super) async fn insist<R>(&self, what: &'static str, write: impl Fn() -> R)
    where
        R: Future<Output = Result<(), RegistryError>>,
    {
        let mut pause = Duration::from_millis(50);
        for _ in 0..WRITES {
            let Err(error) = write().await else {
                return;
            };
            tracing::error!(%error, what, "cannot be written down; trying again");
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.upkeep.broken.cancel();
        std::future::pending().await
    }

    /// Makes a call and settles every doubt by looking: a call that failed and whose effect is there
    /// is done; while the engine is away it is tried again, at most until `deadline`. A call that does not
    /// answer is done as soon as its effect is there, and made again after `attempt`.
    pub(super) async fn settle<F, R>(
        &self,
        id_or_name: &str,
        deadline: Instant,
        attempt: Duration,
        call: F,
        is_done: impl Fn(Option<&LiveContainer>) -> bool,
    ) -> Settled
    where
        F: Fn() -> R,
        R: Future<Output = Result<(), RuntimeError>>,
    {
        let mut pause = Duration::from_millis(50);
        loop {
            let Err(error) = self.attempt(id_or_name, attempt, call(), &is_done).await else {
                return Settled::Done;
            };
            match self.runtime.inspect(id_or_name).await {
                Ok(live) if is_done(live.as_ref()) => return Settled::Done,
                Ok(_) if !error.is_away() => return Settled::Failed(error),
                Ok(_) | Err(_) => {}
            }
            if Instant::now() + pause >= deadline {
                return Settled::Failed(error);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits for a call's answer or, where that does not come, for its effect: at most so long.
    async fn attempt(
        &self,
        id_or_name: &str,
        longest: Duration,
        call: impl Future<Output = Result<(), RuntimeError>>,
        is_done: &impl Fn(Option<&LiveContainer>) -> bool,
    ) -> Result<(), RuntimeError> {
        let began = Instant::now();
        let mut call = std::pin::pin!(call);
        let mut pause = LOOK_AFTER;
        // An effect is believed that is seen twice: right after it the engine has things to do yet.
        let mut seen = false;
        loop {
            tokio::select! {
                biased;
                answer = &mut call => return answer,
                () = sleep(pause) => {}
            }
            let looked = tokio::select! {
                biased;
                answer = &mut call => return answer,
                looked = self.runtime.inspect(id_or_name) => looked,
            };
            let is_there = looked.is_ok_and(|live| is_done(live.as_ref()));
            if seen && is_there {
                return Ok(());
            }
            seen = is_there;
            pause = LOOK_PACE;
            if began.elapsed() >= longest {
                return Err(RuntimeError::Uncertain {
                    call: "change",
                    cause: format!("no answer within {} s", longest.as_secs()),
                });
            }
        }
    }
}
