//! The watching task with all that it needs: a scripted engine, a real registry, real time.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use futures_util::FutureExt as _;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::SystemClock;
use crate::config::WatchConfig;
use crate::registry::{
    Admission, CommitDeployment, DeploymentRow, DeploymentState, EventQuery, EventRow,
    HistoryEntry, ObservedRow, Registry, RegistryError, SetDeployed, Trigger,
};
use crate::runtime::Runtime as _;
use crate::watch::{Busy, Revive, Revived, Reviver, Setup, Watch, run};

/// Longer than anything here takes on a machine under load.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Rig {
    pub(super) engine: ScriptedEngine,
    pub(super) watch: Watch,
    pub(super) busy: Busy,
    pub(super) registry: Registry,
    pub(super) revived: Arc<Mutex<Vec<Revive>>>,
    pub(super) resync: Span,
    running: Option<(CancellationToken, JoinHandle<Result<(), RegistryError>>)>,
    deployments: u64,
    _directory: TempDir,
}

impl Rig {
    pub(super) fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let registry = Registry::open(&directory.path().join("registry.db")).unwrap();
        let engine = ScriptedEngine::default();
        let watch = Watch::new(Arc::new(engine.clone()), Arc::new(SystemClock));
        Self {
            engine,
            watch,
            busy: Busy::default(),
            registry,
            revived: Arc::default(),
            resync: Span::from_secs(60),
            running: None,
            deployments: 0,
            _directory: directory,
        }
    }

    /// Commits a component that runs as its row says.
    pub(super) async fn deploy(&mut self, row: DeployedRow) {
        self.deployments += 1;
        let id = DeploymentId::from_bits(self.deployments);
        let admitted = DeploymentRow {
            id: id.clone(),
            service: row.key.service.clone(),
            component: None,
            request_id: self.deployments.to_string(),
            request_digest: Digest::of(b""),
            actor: "kyle".to_owned(),
            trigger: Trigger::Deploy,
            revision: None,
            signer: None,
            plan: String::new(),
            plan_id: String::new(),
            state: DeploymentState::Admitted,
            outcome: None,
            error: None,
            created_at: time(0),
            line_at: None,
            finished_at: None,
        };
        assert_eq!(self.registry.admit(admitted).await.unwrap(), Admission::New);
        let mut commit = CommitDeployment::new(id.clone());
        commit.set.push(SetDeployed {
            row: DeployedRow {
                deployment: id,
                ..row
            },
            history: HistoryEntry::New,
        });
        self.registry.commit_deployment(commit).await.unwrap();
    }

    /// Deploys a component and runs a container for it.
    pub(super) async fn runs(&mut self, key: &str, change: impl FnOnce(&mut DeployedRow)) {
        let mut row = row(key);
        change(&mut row);
        self.engine.put(live(row.container.as_str(), 0));
        self.deploy(row).await;
    }

    pub(super) fn reviver(&self) -> Reviver {
        let engine = self.engine.clone();
        let registry = self.registry.clone();
        let revived = Arc::clone(&self.revived);
        Arc::new(move |revive: Revive| {
            let (engine, registry) = (engine.clone(), registry.clone());
            revived.lock().unwrap().push(revive.clone());
            async move {
                let row = registry.deployed(revive.key.clone()).await.unwrap();
                if row.is_none_or(|row| row.wanted() != DesiredState::Running) {
                    return Revived::NotNow;
                }
                if let Err(error) = engine.start(&revive.container).await {
                    return Revived::Failed(error);
                }
                let live = engine.inspect(revive.container.as_str()).await.unwrap();
                Revived::Running(Box::new(live.unwrap()))
            }
            .boxed()
        })
    }

    /// Begins to watch, and waits for nothing.
    pub(super) fn launch(&mut self) {
        let setup = Setup {
            watch: self.watch.clone(),
            busy: self.busy.clone(),
            registry: self.registry.clone(),
            facts: Arc::new(ArcSwapOption::empty()),
            reviver: self.reviver(),
            jitter: Arc::new(|| 0.0),
            config: WatchConfig {
                resync: self.resync,
                ..WatchConfig::default()
            },
        };
        let cancel = CancellationToken::new();
        let task = tokio::spawn(run(setup, cancel.clone()));
        self.running = Some((cancel, task));
    }

    pub(super) async fn begin(&mut self) {
        self.launch();
        let mut changes = self.watch.changes();
        let known = async {
            while !self.watch.current().engine_answers() {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, known).await.unwrap();
        assert!(self.watch.recorded(&self.busy, PATIENCE).await);
    }

    pub(super) async fn end(&mut self) {
        let (cancel, task) = self.running.take().unwrap();
        cancel.cancel();
        timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    }

    pub(super) async fn events(&self) -> Vec<EventRow> {
        let query = EventQuery {
            limit: 1000,
            ..EventQuery::default()
        };
        self.registry.events(query).await.unwrap()
    }

    pub(super) async fn words(&self) -> Vec<String> {
        self.events().await.into_iter().map(|e| e.kind).collect()
    }

    /// The first event of this kind, once there is one.
    pub(super) async fn event(&self, kind: &str) -> EventRow {
        let mut newest = self.registry.newest_event();
        let found = async {
            loop {
                newest.borrow_and_update();
                if let Some(event) = self.events().await.into_iter().find(|e| e.kind == kind) {
                    return event;
                }
                newest.changed().await.unwrap();
            }
        };
        match timeout(PATIENCE, found).await {
            Ok(event) => event,
            Err(_) => panic!("no {kind} among {:?}", self.words().await),
        }
    }

    /// Ends the agent and all containers, and begins it again.
    pub(super) async fn reboot(&mut self) {
        self.end().await;
        for live in self.engine.containers() {
            // A short run: a long one would end any series.
            let end = live.started_at.unwrap() + SECOND;
            self.engine.exit(live.id.as_str(), 255, end, true);
        }
        self.begins_anew().await;
    }

    /// Begins with nothing in memory.
    pub(super) async fn begins_anew(&mut self) {
        self.watch = Watch::new(Arc::new(self.engine.clone()), Arc::new(SystemClock));
        self.begin().await;
    }

    /// Waits until so many starts by the restart policy are told.
    pub(super) async fn restarted(&self, times: usize) {
        self.told("restarted", times).await;
    }

    /// Waits until so many events of this kind are told.
    pub(super) async fn told(&self, kind: &str, times: usize) {
        let mut newest = self.registry.newest_event();
        let told = async {
            loop {
                newest.borrow_and_update();
                let words = self.words().await;
                if words.iter().filter(|word| *word == kind).count() >= times {
                    return;
                }
                newest.changed().await.unwrap();
            }
        };
        if timeout(PATIENCE, told).await.is_err() {
            panic!("not {times} times {kind}: {:?}", self.words().await);
        }
    }

    /// What was started by the restart policy, in order.
    pub(super) fn order(&self) -> Vec<String> {
        let revived = self.revived.lock().unwrap();
        revived
            .iter()
            .map(|revive| revive.key.to_string())
            .collect()
    }

    /// Waits until it is written down where the engine keeps its containers.
    pub(super) async fn stored(&self) {
        let written = async {
            while self
                .registry
                .remembered("engine-store")
                .await
                .unwrap()
                .is_none()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, written).await.unwrap();
    }

    pub(super) async fn observed(&self, key: &str) -> ObservedRow {
        assert!(self.watch.recorded(&self.busy, PATIENCE).await);
        let key = key.parse().unwrap();
        self.registry.observed(key).await.unwrap().unwrap()
    }
}

/// A process of this machine that stands for a container's.
pub(super) struct Process(Child);

impl Process {
    pub(super) fn begin() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(super) fn kill(&mut self) {
        self.0.kill().unwrap();
        let status = self.0.wait().unwrap();
        assert_eq!(status.signal(), Some(9));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
