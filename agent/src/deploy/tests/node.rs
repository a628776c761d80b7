//! A node: revisions, an engine, and an agent on them that can be killed and started again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use mcp_spec::image::Digest;
use mcp_spec::name::{ServiceName, Target};
use mcp_spec::plan::{Options, Purpose, ServicePlan};
use mcp_spec::policy::Policy;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::context::Upkeep;
use super::super::stage::Staging;
use super::super::{Context, Deployer, Order, Replan, Submission, Taken, deployer};
use super::faults::{Faults, Faulty};
use crate::clock::{Clock, SystemClock};
use crate::desired::Desired;
use crate::intake::{Origin, take_in};
use crate::planning::{Lifecycle, Planned, Planner, Wish};
use crate::random::Random;
use crate::registry::{Registry, RevisionSource, Trigger};
use crate::revisions::RevisionStore;
use crate::revisions::tests::scene::{OWNER, Scene, node};
use crate::runtime::Runtime;
use crate::testing::{ScriptedEngine, memory_dir, set_pace};
use crate::watch::{Busy, Watch};

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Deploy,
    DeployOne(&'static str),
    Force,
    Start,
    Stop,
    Restart,
    Rollback,
    Purge,
}

impl Op {
    pub(super) const fn trigger(self) -> Trigger {
        match self {
            Self::Deploy | Self::DeployOne(_) | Self::Force => Trigger::Deploy,
            Self::Start => Trigger::Start,
            Self::Stop => Trigger::Stop,
            Self::Restart => Trigger::Restart,
            Self::Rollback => Trigger::Rollback,
            Self::Purge => Trigger::Purge,
        }
    }
}

pub(super) fn shop() -> ServiceName {
    "shop".parse().unwrap()
}

/// Runs a test on a clock of its own, which goes on only while nothing can be done, and forgets the pace of
/// its agents.
pub(super) fn on_paused_time<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let ended = runtime.block_on(test);
    set_pace(None);
    ended
}

/// What stays when an agent is killed.
pub(super) struct Node {
    pub(super) scene: Scene,
    pub(super) dir: TempDir,
    pub(super) engine: ScriptedEngine,
    pub(super) faults: Faults,
}

impl Node {
    pub(super) fn new() -> Self {
        let scene = Scene::empty();
        scene.write_signers(&[(OWNER, "git,mcp-owner")]);
        let engine = ScriptedEngine::default();
        engine.end_at_once("localhost/migrate:v1", 0);
        engine.end_at_once("localhost/migrate:v2", 0);
        engine.end_at_once("localhost/bad:v1", 1);
        Self {
            scene,
            dir: memory_dir(),
            engine,
            faults: Faults::none(),
        }
    }

    /// Makes these files the head; an empty text removes one.
    pub(super) fn push(&self, files: &[(&str, &str)]) {
        for (path, text) in files {
            if text.is_empty() {
                self.scene.remove(path);
            } else {
                self.scene.write(path, text);
            }
        }
        self.scene.commit(Some(OWNER), "shop: next");
        self.scene.push().unwrap();
    }

    pub(super) fn revisions(&self) -> Arc<RevisionStore> {
        let trust = self.scene.trust(&[OWNER]);
        Arc::new(RevisionStore::open(&self.scene.data(), trust).unwrap())
    }

    pub(super) async fn agent(&self) -> Agent {
        let runtime = Faulty {
            engine: self.engine.clone(),
            faults: self.faults.clone(),
            changing: Arc::default(),
        };
        let revisions = self.revisions();
        let desired = Arc::new(Desired::new(node(), revisions.clone()));
        Agent::start(self.dir.path(), runtime, revisions, desired).await
    }
}

/// An agent without its API and its watch.
pub(super) struct Agent {
    pub(super) registry: Registry,
    pub(super) planner: Arc<Planner>,
    pub(super) deployer: Deployer,
    task: JoinHandle<()>,
}

impl Agent {
    pub(super) async fn start(
        dir: &Path,
        runtime: Faulty,
        revisions: Arc<RevisionStore>,
        desired: Arc<Desired>,
    ) -> Self {
        set_pace(Some(Arc::new(runtime.faults.clone())));
        let registry = Registry::open(&dir.join("mcp.db")).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let origin = Origin {
            source: RevisionSource::Push,
            by: "alice".to_owned(),
            at: clock.now(),
        };
        take_in(&registry, &revisions, &desired, origin)
            .await
            .unwrap();
        let runtime: Arc<dyn Runtime> = Arc::new(runtime);
        let watch = Watch::new(runtime.clone(), clock.clone());
        let context = Arc::new(Context {
            node: node(),
            runtime: runtime.clone(),
            engine: Arc::new(ArcSwapOption::empty()),
            registry: registry.clone(),
            revisions: revisions.clone(),
            clock,
            random: Random::system(),
            staging: Staging::new(dir),
            memory: crate::secrets::memory::MemoryFolder::new(None, dir),
            services_dir: dir.join("srv"),
            slots: tokio::sync::Semaphore::new(4),
            sightings: watch.sightings(),
            desired: desired.clone(),
            upkeep: Upkeep::default(),
        });
        let (deployer, mut task) = deployer(context, Busy::default());
        task.recover().await.unwrap();
        let task = tokio::spawn(async move {
            task.run(CancellationToken::new()).await.unwrap();
        });
        let planner = Arc::new(Planner {
            node: node(),
            registry: registry.clone(),
            revisions,
            desired,
            watch,
            runtime,
            policy: Policy::default_for("/srv"),
            data_dir: PathBuf::from("/nowhere"),
            memory: crate::secrets::memory::MemoryFolder::new(None, dir),
            services_dir: dir.join("srv"),
            max_age: Duration::ZERO,
        });
        Self {
            registry,
            planner,
            deployer,
            task,
        }
    }

    /// Ends everything where it stands.
    pub(super) async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    /// Waits until every deployment has ended: in vain after an hour of the simulated time.
    pub(super) async fn recovered(&self) -> bool {
        for _ in 0..3600 {
            if self.registry.unfinished().await.unwrap().is_empty() {
                return true;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        false
    }

    pub(super) async fn plan(&self, op: Op) -> (Planned, ServicePlan) {
        let planned = plan(&self.planner, op).await;
        let part = planned.plan.services()[0].clone();
        (planned, part)
    }

    pub(super) async fn submission(&self, op: Op, request_id: &str) -> Submission {
        let (planned, plan) = self.plan(op).await;
        let planner = self.planner.clone();
        let replan: Replan = Box::new(move || {
            let planner = planner.clone();
            Box::pin(async move {
                let planned = self::plan(&planner, op).await;
                planned
                    .into_part()
                    .ok_or_else(|| "nothing is left".to_owned())
            })
        });
        let restores = planned.restores.iter();
        Submission {
            plan,
            plan_id: *planned.plan.id(),
            order: Order {
                actor: "alice".to_owned(),
                trigger: op.trigger(),
                purpose: planned.purpose,
                volumes: op == Op::Purge,
                restores: restores
                    .map(|(key, id)| (key.component.clone(), *id))
                    .collect(),
            },
            request_id: request_id.to_owned(),
            request_digest: Digest::of(request_id.as_bytes()),
            component: None,
            signer: None,
            replan,
        }
    }

    /// Does it and waits for its end.
    pub(super) async fn carry_out(
        &self,
        submission: Submission,
    ) -> Option<Arc<super::super::Ended>> {
        match self.deployer.submit(submission).await.ok()? {
            Taken::Feed(feed) => feed.ended().await,
            Taken::Ended(ended) => Some(ended),
        }
    }

    pub(super) async fn operate(&self, op: Op) -> Arc<super::super::Ended> {
        let submission = self.submission(op, "").await;
        self.carry_out(submission).await.unwrap()
    }
}

async fn plan(planner: &Planner, op: Op) -> Planned {
    let target = |component: Option<&str>| Target {
        node: None,
        service: shop(),
        component: component.map(|name| name.parse().unwrap()),
    };
    let wish = |component, force| Wish {
        targets: Some(vec![target(component)]),
        revision: None,
        options: Options {
            force,
            ..Options::default()
        },
        draft: Vec::new(),
        auto: false,
        resolve_tags: true,
    };
    let services = BTreeSet::from([shop()]);
    let planned = match op {
        Op::Deploy => planner.deploy(&wish(None, false)).await,
        Op::DeployOne(component) => planner.deploy(&wish(Some(component), false)).await,
        Op::Force => planner.deploy(&wish(None, true)).await,
        Op::Start => planner.lifecycle(Lifecycle::Start, &services).await,
        Op::Stop => planner.lifecycle(Lifecycle::Stop, &services).await,
        Op::Restart => planner.lifecycle(Lifecycle::Restart, &services).await,
        Op::Rollback => {
            planner
                .rollback(&[target(None)], None, Options::default())
                .await
        }
        Op::Purge => planner.purge(Some(&[target(None)])).await,
    };
    let planned = planned.unwrap();
    assert!(matches!(
        planned.purpose,
        None | Some(Purpose::Deploy | Purpose::Rollback)
    ));
    planned
}
