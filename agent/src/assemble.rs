//! Putting the agent together from its parts, and the tasks that keep it alive.
//!
//! Everything here is the same whatever the engine and the clock are: [`crate::run`] gives the real
//! ones and adds the API, the simulation gives its own.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::issuers::Issuers;
use crate::clock::Clock;
use crate::config::Config;
use crate::deploy::stage::Staging;
use crate::deploy::{self, Context};
use crate::desired::Desired;
use crate::files::Files;
use crate::intake::{self, Origin};
use crate::planning::Planner;
use crate::random::Random;
use crate::registry::{Registry, RevisionSource};
use crate::revisions::RevisionStore;
use crate::runtime::Runtime;
use crate::secrets::memory::MemoryFolder;
use crate::source::{Place, Source};
use crate::takeover::Reclaimer;
use crate::watch::{self, Busy, Watch};
use crate::{Agent, GRACE, RunError, alert, error_chain, reconcile, retention};

/// What an agent is made of: everything opened, nothing begun.
#[derive(Debug)]
pub struct Parts {
    /// The checked configuration.
    pub config: Config,
    /// Believes the right tokens.
    pub verifier: Arc<Issuers>,
    /// The accepted revisions.
    pub revisions: Arc<RevisionStore>,
    /// The registry.
    pub registry: Registry,
    /// The engine.
    pub runtime: Arc<dyn Runtime>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for ids and pauses.
    pub random: Random,
}

/// Brings the registry up to the repository, begins the recovery of what a crash cut off, and starts
/// the tasks that plan, deploy, watch, reconcile and prune.
///
/// # Errors
///
/// [`RunError`] where the registry fails.
pub async fn assemble(
    parts: Parts,
    shutdown: CancellationToken,
) -> Result<(Arc<Agent>, Tasks), RunError> {
    let Parts {
        config,
        verifier,
        revisions,
        registry,
        runtime,
        clock,
        random,
    } = parts;
    let desired = Arc::new(Desired::new(config.node.clone(), revisions.clone()));
    let origin = Origin {
        source: RevisionSource::Rebuild,
        by: "agent".to_owned(),
        at: clock.now(),
    };
    intake::take_in(&registry, &revisions, &desired, origin).await?;
    let engine = Arc::new(ArcSwapOption::empty());
    let watch = Watch::new(runtime.clone(), clock.clone());
    let busy = Busy::default();
    let memory = MemoryFolder::new(config.secrets_dir.as_deref(), &config.data_dir);
    let context = Arc::new(Context {
        node: config.node.clone(),
        runtime: runtime.clone(),
        engine: engine.clone(),
        registry: registry.clone(),
        revisions: revisions.clone(),
        clock: clock.clone(),
        random: random.clone(),
        staging: Staging::new(&config.data_dir),
        memory: memory.clone(),
        services_dir: config.services_dir.clone(),
        slots: tokio::sync::Semaphore::new(config.runtime.concurrency),
        sightings: watch.sightings(),
        desired: desired.clone(),
        upkeep: deploy::context::Upkeep::default(),
    });
    let (deployer, mut deploying) = deploy::deployer(context, busy.clone());
    deploying.recover().await?;
    let planner = Arc::new(Planner {
        node: config.node.clone(),
        registry: registry.clone(),
        revisions: revisions.clone(),
        desired: desired.clone(),
        watch: watch.clone(),
        runtime: runtime.clone(),
        policy: config.policy.clone(),
        memory,
        data_dir: config.data_dir.clone(),
        services_dir: config.services_dir.clone(),
        max_age: config.watch.resync.as_duration() * 2,
    });
    let reclaimer = Arc::new(Reclaimer {
        node: config.node.clone(),
        registry: registry.clone(),
        revisions: revisions.clone(),
        desired: desired.clone(),
        watch: watch.clone(),
        busy: busy.clone(),
        clock: clock.clone(),
        random: random.clone(),
    });
    let outgoing = Arc::new(Notify::new());
    let alerts = Arc::new(alert::Delivery::new(
        config.node.clone(),
        registry.clone(),
        clock.clone(),
        config.alert.clone(),
        outgoing.clone(),
    ));
    let files = Files::new(&config, runtime.clone(), engine.clone());
    let agent = Arc::new(Agent {
        files: Arc::new(files),
        started_at: clock.now(),
        verifier,
        revisions,
        desired,
        registry,
        runtime,
        engine,
        watch,
        planner,
        deployer,
        busy,
        heads: tokio::sync::watch::Sender::new(None),
        alerts,
        clock,
        source: Source::new(Place::Upstream),
        inbox: Source::new(Place::Inbox),
        reclaimer,
        work: TaskTracker::new(),
        shutdown: shutdown.clone(),
        config,
    });
    // What any task tells from here on is news.
    let begins_after = *agent.registry.newest_event().borrow();
    let mut tasks = Tasks::new(shutdown);
    let registry = agent.registry.clone();
    let stop = tasks.shutdown.child_token();
    tasks.spawn("registry", async move {
        tokio::select! {
            // Waiting for a failure is nothing that could be lost.
            biased;
            () = stop.cancelled() => Ok(()),
            failed = registry.failed() => Err(failed.into()),
        }
    });
    let store = Arc::clone(&agent.revisions);
    let stop = tasks.shutdown.child_token();
    tasks.spawn("repository", async move {
        tokio::select! {
            // Waiting for a failure is nothing that could be lost.
            biased;
            () = stop.cancelled() => Ok(()),
            () = store.in_doubt() => Err(RunError::InDoubt),
        }
    });
    let stop = tasks.shutdown.child_token();
    tasks.spawn("deployer", async { Ok(deploying.run(stop).await?) });
    let stop = tasks.shutdown.child_token();
    let reclaimer = Arc::clone(&agent.reclaimer);
    tasks.spawn("take-over", async move {
        reclaimer.run(stop).await;
        Ok(())
    });
    let stop = tasks.shutdown.child_token();
    let watching = watching(&agent, random);
    tasks.spawn("watch", async { Ok(watch::run(watching, stop).await?) });
    let reconciling = reconcile::run(Arc::clone(&agent), tasks.shutdown.child_token());
    tasks.spawn("reconcile", async {
        reconciling.await;
        Ok(())
    });
    let judge = alert::Judge {
        node: agent.config.node.clone(),
        registry: agent.registry.clone(),
        runtime: agent.runtime.clone(),
        clock: agent.clock.clone(),
        config: agent.config.alert.clone(),
        outgoing,
        begins_after,
        desired: agent.desired.clone(),
    };
    let stop = tasks.shutdown.child_token();
    tasks.spawn("alerts", async { Ok(judge.run(stop).await?) });
    let delivery = Arc::clone(&agent.alerts);
    let stop = tasks.shutdown.child_token();
    tasks.spawn(
        "alert-delivery",
        async move { Ok(delivery.run(stop).await?) },
    );
    let (registry, clock) = (agent.registry.clone(), agent.clock.clone());
    let kept = agent.config.watch.event_retention.as_duration();
    let stop = tasks.shutdown.child_token();
    tasks.spawn("retention", async move {
        retention::run(registry, clock.as_ref(), kept, stop).await;
        Ok(())
    });
    Ok((agent, tasks))
}

fn watching(agent: &Agent, random: Random) -> watch::Setup {
    let deployer = agent.deployer.clone();
    watch::Setup {
        watch: agent.watch.clone(),
        busy: agent.busy.clone(),
        registry: agent.registry.clone(),
        facts: agent.engine.clone(),
        reviver: Arc::new(move |revive| {
            let deployer = deployer.clone();
            Box::pin(async move { deployer.revive(revive).await })
        }),
        jitter: Arc::new(move || random.jitter()),
        config: agent.config.watch.clone(),
    }
}

/// The agent's tasks: the first that ends, or the cancellation, ends them all. Dropping them aborts
/// them.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<(&'static str, Result<(), RunError>)>,
    pub(crate) shutdown: CancellationToken,
}

impl Tasks {
    fn new(shutdown: CancellationToken) -> Self {
        Self {
            set: JoinSet::new(),
            shutdown,
        }
    }

    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), RunError>> + Send + 'static,
    ) {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits for the end of the first, then ends the others.
    ///
    /// # Errors
    ///
    /// What the first that failed failed with.
    pub async fn finish(mut self) -> Result<(), RunError> {
        let first = tokio::select! {
            // Nothing is lost by cancelling either: the set keeps what it has.
            biased;
            () = self.shutdown.cancelled() => None,
            ended = self.set.join_next() => ended,
        };
        let mut result = Ok(());
        let mut keep = |ended: Result<(&'static str, Result<(), RunError>), _>| match ended {
            Ok((task, Ok(()))) => tracing::debug!(task, "ended"),
            Ok((task, Err(error))) => {
                tracing::error!(task, error = %error_chain(&error), "failed");
                if result.is_ok() {
                    result = Err(error);
                }
            }
            Err(source) => {
                if result.is_ok() {
                    result = Err(RunError::Task {
                        task: "agent",
                        source,
                    });
                }
            }
        };
        if let Some(ended) = first {
            keep(ended);
        }
        self.shutdown.cancel();
        let rest = async {
            while let Some(ended) = self.set.join_next().await {
                keep(ended);
            }
        };
        if tokio::time::timeout(GRACE, rest).await.is_err() {
            tracing::warn!("calls were still running and are cut off");
        }
        result
    }
}
