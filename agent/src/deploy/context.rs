//! What every deployment works with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use mcp_spec::name::NodeName;
use mcp_spec::observed::LiveContainer;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::stage::Staging;
use crate::clock::Clock;
use crate::desired::Desired;
use crate::random::Random;
use crate::registry::{Registry, RegistryError};
use crate::revisions::RevisionStore;
use crate::runtime::{EngineFacts, Runtime, RuntimeError};
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
    /// is done; while the engine is away it is tried again, at most until `deadline`.
    pub(super) async fn settle<F, R>(
        &self,
        id_or_name: &str,
        deadline: Instant,
        call: F,
        is_done: impl Fn(Option<&LiveContainer>) -> bool,
    ) -> Settled
    where
        F: Fn() -> R,
        R: Future<Output = Result<(), RuntimeError>>,
    {
        let mut pause = Duration::from_millis(50);
        loop {
            let Err(error) = call().await else {
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
}
