//! One life of the agent: its hold on the registry and the disk, until it is killed.
//!
//! Every call of the engine and every piece of registry or disk work passes [`Life::step`] before and
//! after. A life that is over never gets an answer again, so nothing that was under way goes on,
//! whatever still waits to be dropped.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mcp_agent::registry::{Registry, RegistryError};
use mcp_agent::testing::{Pace, Work};
use tokio::sync::Notify;

use super::dice::Dice;
use super::engine::Engine;

/// One life of the agent.
pub(crate) struct Life {
    pub(crate) engine: Arc<Engine>,
    pub(crate) number: u64,
    over: AtomicBool,
    pub(crate) killed: Notify,
    /// Steps until it is killed; 0 where it is not to be.
    fuse: AtomicU64,
    pub(crate) registry: OnceLock<Registry>,
    pub(crate) dice: Dice,
    /// The disk is full in a thousand writes.
    full: AtomicU64,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Life({})", self.number)
    }
}

impl Life {
    pub(crate) fn new(engine: Arc<Engine>, number: u64, seed: u64) -> Self {
        Self {
            engine,
            number,
            over: AtomicBool::new(false),
            killed: Notify::new(),
            fuse: AtomicU64::new(0),
            registry: OnceLock::new(),
            dice: Dice::of(seed.wrapping_add(number), "life"),
            full: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Kills it at the n-th step from now; 0 takes this back.
    pub(crate) fn kill_after(&self, steps: u64) {
        self.fuse.store(steps, Ordering::Relaxed);
    }

    pub(crate) fn set_full(&self, in_a_thousand: u64) {
        self.full.store(in_a_thousand, Ordering::Relaxed);
    }

    pub(crate) fn kill(&self) {
        if !self.over.swap(true, Ordering::Relaxed) {
            self.engine
                .trace
                .line(|| format!("agent {}: killed", self.number));
            self.killed.notify_one();
        }
    }

    /// A point at which it can be killed.
    pub(crate) async fn step(&self, what: &'static str) {
        let left = self.fuse.load(Ordering::Relaxed);
        if left == 1 {
            self.engine
                .trace
                .line(|| format!("agent {}: at {what}", self.number));
            self.kill();
        }
        if left > 0 {
            self.fuse.store(left - 1, Ordering::Relaxed);
        }
        if self.is_over() {
            std::future::pending::<()>().await;
        }
        // Who comes first among those that are ready is chance.
        if self.dice.chance(120) {
            tokio::task::yield_now().await;
        }
    }
}

/// The hold that one life has on the registry and the disk.
#[derive(Debug)]
pub(crate) struct SimPace(pub(crate) Arc<Life>);

impl Pace for SimPace {
    fn before(&self, work: Work) -> BoxFuture<'static, Result<(), RegistryError>> {
        let life = Arc::clone(&self.0);
        if life.engine.model.is_looking() {
            return std::future::ready(Ok(())).boxed();
        }
        async move {
            life.step("disk work").await;
            if let Work::Write(name) = work {
                if life.dice.chance(30) {
                    tokio::time::sleep(life.dice.millis(1, 40)).await;
                    life.step("a slow write").await;
                }
                if life.dice.chance(life.full.load(Ordering::Relaxed)) {
                    life.engine
                        .trace
                        .line(|| format!("registry: full at {}", short(name)));
                    return Err(RegistryError::Full);
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn after(&self, work: Work) -> BoxFuture<'static, ()> {
        let life = Arc::clone(&self.0);
        if life.engine.model.is_looking() {
            return std::future::ready(()).boxed();
        }
        async move {
            if let Work::Write(name) = work {
                life.engine
                    .trace
                    .line(|| format!("registry: {}", short(name)));
                let tells_nothing = matches!(
                    short(name),
                    "journal"
                        | "record_observed"
                        | "next_generations"
                        | "prune"
                        | "record_revisions"
                );
                if let (Some(registry), false) = (life.registry.get(), tells_nothing) {
                    life.engine.model.look(&life.engine, registry);
                }
                life.step("what follows a write").await;
            }
        }
        .boxed()
    }
}

/// The function's own name in the name of its closure.
fn short(name: &str) -> &str {
    name.split("::")
        .filter(|part| !part.starts_with('{'))
        .last()
        .unwrap_or(name)
}
