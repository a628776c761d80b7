//! The node: one data directory and one agent at a time, which is killed and begins again.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Weak};

use mcp_agent::Agent;
use mcp_agent::RunError;
use mcp_agent::assemble::{Parts, assemble};
use mcp_agent::clock::Clock;
use mcp_agent::random::Random;
use mcp_agent::registry::Registry;
use mcp_agent::revisions::RevisionStore;
use mcp_agent::testing::{memory_dir, set_pace, set_witness};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::dice::Dice;
use super::engine::Engine;
use super::hands::Hands;
use super::history::{History, config, library};
use super::life::{Life, SimPace};
use super::power::Drive;

/// How one life ended.
#[derive(Debug)]
enum Ended {
    Killed,
    ByItself(Result<(), RunError>),
}

/// The node.
#[derive(Debug)]
pub(crate) struct Node {
    seed: u64,
    pub(crate) engine: Arc<Engine>,
    pub(crate) history: Arc<History>,
    data: TempDir,
    pub(crate) drive: Arc<Drive>,
    lives: u64,
    pub(crate) life: Arc<Life>,
    agent: watch::Receiver<Option<Arc<Agent>>>,
    runtime: Weak<Hands>,
    task: JoinHandle<Ended>,
    /// Clients' calls: they end with the agent.
    pub(crate) clients: JoinSet<()>,
    shutdown: CancellationToken,
}

impl Node {
    pub(crate) fn new(seed: u64, engine: Arc<Engine>, history: Arc<History>) -> Self {
        let data = memory_dir();
        copy(&history.template, data.path());
        let drive = drive(seed, 1, data.path());
        let begun = begin(seed, 1, &engine, &history, data.path(), &drive);
        Self {
            seed,
            engine,
            history,
            data,
            drive,
            lives: 1,
            life: begun.life,
            agent: begun.agent,
            runtime: begun.runtime,
            task: begun.task,
            clients: JoinSet::new(),
            shutdown: begun.shutdown,
        }
    }

    /// The agent, where it has begun and was not killed.
    pub(crate) fn agent(&self) -> Option<Arc<Agent>> {
        if self.life.is_over() || self.task.is_finished() || self.shutdown.is_cancelled() {
            return None;
        }
        self.agent.borrow().clone()
    }

    /// Asks the agent to end, as systemd does.
    pub(crate) fn stop(&self) {
        self.engine.trace.line(|| "agent: told to end".to_owned());
        self.shutdown.cancel();
    }

    /// Where the agent has ended, it begins again.
    /// Tells whether it did.
    pub(crate) async fn revive(&mut self, dice: &Dice) -> bool {
        if !self.task.is_finished() {
            return false;
        }
        tokio::time::sleep(dice.millis(10, 4000)).await;
        self.begin_again().await;
        true
    }

    /// Where its data lies.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Kills the agent, and begins it again with an empty registry.
    pub(crate) async fn begin_without_registry(&mut self) {
        self.end().await;
        for file in ["mcp.db", "mcp.db-wal", "mcp.db-shm"] {
            drop(fs::remove_file(self.data.path().join(file)));
        }
        self.drive = drive(self.seed, self.lives + 1, self.data.path());
        self.engine.model.registry_lost(&mut self.engine.state());
        self.begin_next();
    }

    /// Kills the agent, if it still lives, and begins it again.
    pub(crate) async fn begin_again(&mut self) {
        self.end().await;
        self.begin_next();
    }

    async fn end(&mut self) {
        if !self.task.is_finished() && !self.shutdown.is_cancelled() {
            self.life.kill();
        }
        self.clients.shutdown().await;
        let ended = (&mut self.task).await;
        match ended {
            Ok(Ended::Killed) => {}
            Ok(Ended::ByItself(result)) => {
                // A full disk is a reason.
                let why = format!("{result:?}");
                if !(self.shutdown.is_cancelled() && result.is_ok() || why.contains("Full")) {
                    self.engine
                        .trace
                        .violation(format!("the agent ended by itself: {result:?}"));
                }
            }
            Err(error) => self
                .engine
                .trace
                .violation(format!("the agent panicked: {error}")),
        }
        // Whatever was under way is dropped before another agent begins: two would be two.
        self.agent = watch::channel(None).1;
        for _ in 0..100_000 {
            if self.runtime.strong_count() == 0 {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(
            self.runtime.strong_count(),
            0,
            "something of an ended agent lives on"
        );
    }

    fn begin_next(&mut self) {
        self.lives += 1;
        if let Some(left) = self.drive.left() {
            self.data = left;
            self.drive = drive(self.seed, self.lives, self.data.path());
            self.engine.come_up();
        }
        self.engine.model.restarted();
        let begun = begin(
            self.seed,
            self.lives,
            &self.engine,
            &self.history,
            self.data.path(),
            &self.drive,
        );
        self.life = begun.life;
        self.agent = begun.agent;
        self.runtime = begun.runtime;
        self.task = begun.task;
        self.shutdown = begun.shutdown;
    }

    /// Waits until the agent has begun, or was killed before.
    pub(crate) async fn begun(&mut self) {
        let mut agent = self.agent.clone();
        // The sender goes where it was killed.
        drop(agent.wait_for(Option::is_some).await);
        drop(agent);
    }
}

struct Begun {
    life: Arc<Life>,
    agent: watch::Receiver<Option<Arc<Agent>>>,
    runtime: Weak<Hands>,
    task: JoinHandle<Ended>,
    shutdown: CancellationToken,
}

fn begin(
    seed: u64,
    number: u64,
    engine: &Arc<Engine>,
    history: &Arc<History>,
    data: &Path,
    drive: &Arc<Drive>,
) -> Begun {
    engine.trace.line(|| format!("agent {number}: begins"));
    let life = Arc::new(Life::new(Arc::clone(engine), number, seed));
    set_pace(Some(Arc::new(SimPace(Arc::clone(&life)))));
    drive.serves(&life);
    set_witness(Some(drive.clone()));
    let config = config(data);
    let revisions = RevisionStore::open(data, history.trust.clone())
        .unwrap_or_else(|error| panic!("the repository does not open: {error}"));
    let registry = Registry::open(&config.database())
        .unwrap_or_else(|error| panic!("the registry does not open: {error}"));
    life.registry.set(registry.clone()).unwrap();
    // The power may have failed meanwhile: then it has not begun.
    if !life.is_over() {
        let head = revisions.head();
        engine.model.head_is(
            history
                .revisions
                .iter()
                .position(|step| Some(step.commit) == head),
        );
        if let Some(trouble) = revisions.trouble() {
            engine
                .trace
                .violation(format!("the repository takes no changes: {trouble}"));
        }
        engine.model.begins(&registry);
    }
    let dice = Dice::of(seed.wrapping_mul(31).wrapping_add(number), "agent");
    let clock: Arc<dyn Clock> = engine.clock.clone();
    let hands = Arc::new(Hands(Arc::clone(&life)));
    let runtime = Arc::downgrade(&hands);
    let parts = Parts {
        config,
        verifier: Arc::clone(&library().verifier),
        revisions: Arc::new(revisions),
        registry,
        runtime: hands,
        clock,
        random: Random::from_fn(move || dice.bits()),
    };
    let shutdown = CancellationToken::new();
    let (sender, agent) = watch::channel(None);
    let (ending, living) = (shutdown.clone(), Arc::clone(&life));
    let task = tokio::spawn(async move {
        let whole = async {
            let (agent, tasks) = assemble(parts, ending).await?;
            sender.send_replace(Some(agent));
            let ended = tasks.finish().await;
            sender.send_replace(None);
            ended
        };
        tokio::select! {
            biased;
            () = living.killed.notified() => Ended::Killed,
            ended = whole => Ended::ByItself(ended),
        }
    });
    Begun {
        life,
        agent,
        runtime,
        task,
        shutdown,
    }
}

fn drive(seed: u64, number: u64, data: &Path) -> Arc<Drive> {
    let dice = Dice::of(seed.wrapping_mul(17).wrapping_add(number), "power");
    Arc::new(Drive::new(data, dice))
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
