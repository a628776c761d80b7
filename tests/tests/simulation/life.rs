//! One life of the agent: its hold on the registry and the disk, until it is killed.
//!
//! Every call of the engine and every piece of registry or disk work passes [`Life::step`] before and
//! after. A life that is over never gets an answer again, so nothing that was under way goes on,
//! whatever still waits to be dropped.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use mcp_agent::registry::{Registry, RegistryError};
use mcp_agent::testing::{Pace, Work};
use tokio::sync::Notify;

use super::dice::Dice;
use super::engine::Engine;

/// What a life is about to do, or has just done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// A question to the engine, or work on the disk.
    Look,
    /// A call that changes the engine, or a transaction that a deployment lives by.
    Act,
}

/// When a life is to be killed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fuse {
    /// Never.
    Off,
    /// After so many steps.
    Steps(u64),
    /// After so many acts while a deployment is under way.
    Acts(u64),
}

/// One life of the agent.
pub(crate) struct Life {
    pub(crate) engine: Arc<Engine>,
    pub(crate) number: u64,
    over: AtomicBool,
    pub(crate) killed: Notify,
    fuse: Mutex<Fuse>,
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
            fuse: Mutex::new(Fuse::Off),
            registry: OnceLock::new(),
            dice: Dice::of(seed.wrapping_add(number), "life"),
            full: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(crate) fn set_fuse(&self, fuse: Fuse) {
        *self.fuse.lock().unwrap() = fuse;
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

    fn burns_down(&self, moment: Moment) -> bool {
        let mut fuse = self.fuse.lock().unwrap();
        let counts = match *fuse {
            Fuse::Off => false,
            Fuse::Steps(_) => true,
            Fuse::Acts(_) => moment == Moment::Act && self.engine.model.is_deploying(),
        };
        let (Fuse::Steps(left) | Fuse::Acts(left)) = &mut *fuse else {
            return false;
        };
        if counts {
            *left = left.saturating_sub(1);
        }
        let ends = *left == 0;
        if ends {
            *fuse = Fuse::Off;
        }
        ends
    }

    /// A point at which it can be killed.
    pub(crate) async fn step(&self, what: &'static str, moment: Moment) {
        if !self.is_over() && self.burns_down(moment) {
            self.engine
                .trace
                .line(|| format!("agent {}: at {what}", self.number));
            self.kill();
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

/// Transactions that no deployment lives by.
fn is_aside(name: &str) -> bool {
    matches!(
        short(name),
        "record_observed" | "prune" | "record_revisions" | "record_judgement" | "remember"
    )
}

const fn before(is_aside: bool) -> Moment {
    if is_aside { Moment::Look } else { Moment::Act }
}

impl Pace for SimPace {
    fn before(&self, work: Work) -> BoxFuture<'static, Result<(), RegistryError>> {
        let life = Arc::clone(&self.0);
        if life.engine.model.is_looking() {
            return std::future::ready(Ok(())).boxed();
        }
        async move {
            let Work::Write(name) = work else {
                life.step("disk work", Moment::Look).await;
                return Ok(());
            };
            life.step("a write", before(is_aside(name))).await;
            if life.dice.chance(30) {
                tokio::time::sleep(life.dice.millis(1, 40)).await;
                life.step("a slow write", Moment::Look).await;
            }
            if life.dice.chance(life.full.load(Ordering::Relaxed)) {
                life.engine
                    .trace
                    .line(|| format!("registry: full at {}", short(name)));
                life.engine.model.could_not_write();
                return Err(RegistryError::Full {
                    folder: PathBuf::new(),
                });
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
                let tells_nothing = is_aside(name) || short(name) == "next_generations";
                if let (Some(registry), false) = (life.registry.get(), tells_nothing) {
                    life.engine.model.look(&life.engine, registry, short(name));
                }
                life.step("what follows a write", before(is_aside(name)))
                    .await;
            } else if life.is_over() {
                // The power went in the middle of it.
                std::future::pending::<()>().await;
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
