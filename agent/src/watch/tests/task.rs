//! The watching task, over a scripted engine and a real registry, in real time.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use futures_util::FutureExt as _;
use mcp_spec::component::{Health, Probe};
use mcp_spec::observed::{ContainerState, ObservedState};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::clock::SystemClock;
use crate::config::WatchConfig;
use crate::registry::{
    Admission, CommitDeployment, DeploymentRow, DeploymentState, EventQuery, EventRow, HealthWord,
    HistoryEntry, ObservedRow, Registry, RegistryError, SetDeployed, StopOverride, Trigger,
};
use crate::runtime::{ExecOutcome, Runtime as _};
use crate::watch::{Busy, Revive, Revived, Reviver, Setup, Watch, run};

/// Longer than anything here takes on a machine under load.
const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    engine: ScriptedEngine,
    watch: Watch,
    busy: Busy,
    registry: Registry,
    revived: Arc<Mutex<Vec<Revive>>>,
    resync: Span,
    running: Option<(CancellationToken, JoinHandle<Result<(), RegistryError>>)>,
    deployments: u64,
    _directory: TempDir,
}

impl Rig {
    fn new() -> Self {
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
    async fn deploy(&mut self, row: DeployedRow) {
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
    async fn runs(&mut self, key: &str, change: impl FnOnce(&mut DeployedRow)) {
        let mut row = row(key);
        change(&mut row);
        self.engine.put(live(row.container.as_str(), 0));
        self.deploy(row).await;
    }

    fn reviver(&self) -> Reviver {
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

    async fn begin(&mut self) {
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
        let mut changes = self.watch.changes();
        let known = async {
            while !self.watch.current().engine_answers() {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, known).await.unwrap();
        assert!(self.watch.recorded(&self.busy, PATIENCE).await);
    }

    async fn end(&mut self) {
        let (cancel, task) = self.running.take().unwrap();
        cancel.cancel();
        timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
    }

    async fn events(&self) -> Vec<EventRow> {
        let query = EventQuery {
            limit: 1000,
            ..EventQuery::default()
        };
        self.registry.events(query).await.unwrap()
    }

    async fn words(&self) -> Vec<String> {
        self.events().await.into_iter().map(|e| e.kind).collect()
    }

    /// The first event of this kind, once there is one.
    async fn event(&self, kind: &str) -> EventRow {
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

    async fn observed(&self, key: &str) -> ObservedRow {
        assert!(self.watch.recorded(&self.busy, PATIENCE).await);
        let key = key.parse().unwrap();
        self.registry.observed(key).await.unwrap().unwrap()
    }
}

/// A process of this machine that stands for a container's.
struct Process(Child);

impl Process {
    fn begin() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn kill(&mut self) {
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

#[tokio::test]
async fn what_runs_is_observed_without_events() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    let seen = rig.observed("shop/web").await;
    assert_eq!(seen.state, ObservedState::Running);
    assert_eq!(seen.started_at, Some(time(0)));
    assert!(seen.drift.is_empty());
    assert!(rig.words().await.is_empty());
    rig.end().await;
}

#[tokio::test]
async fn a_crash_is_told_and_the_container_started_again() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.exit("web", 137, time(5), false);
    let exited = rig.event("exited").await;
    assert_eq!(exited.data["exit_code"], 137);
    rig.event("restarted").await;
    let seen = rig.observed("shop/web").await;
    assert_eq!(seen.state, ObservedState::Running);
    assert_eq!((seen.restarts, seen.exit_code), (1, Some(137)));
    assert_eq!(rig.words().await, ["exited", "restarted"]);
    rig.end().await;
}

#[tokio::test]
async fn a_killed_process_is_noticed_without_a_word_of_the_engine() {
    let mut rig = Rig::new();
    let mut process = Process::begin();
    rig.engine.set_shares_pids(true);
    rig.runs("shop/web", |_| {}).await;
    let pid = process.pid();
    rig.engine.change("web", |live| {
        live.state = ContainerState::Running { pid: Some(pid) };
    });
    let mut calls = rig.engine.all_calls();
    rig.begin().await;
    // The pidfd stands once the engine was asked again whether the process is the container's: its
    // cgroup does not say so here.
    let stands = calls.wait_for(|_| rig.engine.calls("inspect") >= 2);
    timeout(PATIENCE, stands).await.unwrap().unwrap();
    tokio::task::yield_now().await;
    let mut changes = rig.watch.changes();
    changes.mark_unchanged();
    let began = Instant::now();
    rig.engine.lag("web", 3);
    rig.engine.exit("web", 137, time(5), true);
    process.kill();
    timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert!(
        !rig.watch.current().containers[&ContainerId::new("web")]
            .state
            .is_running()
    );
    assert_eq!(rig.event("exited").await.data["exit_code"], 137);
    rig.event("restarted").await;
    rig.end().await;
}

#[tokio::test]
async fn a_busy_service_gives_no_events_and_no_starts() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.runs("blog/app", |_| {}).await;
    rig.begin().await;
    let guard = rig.busy.enter("shop".parse().unwrap());
    rig.engine.exit("web", 1, time(5), false);
    rig.engine.exit("app", 1, time(5), false);
    let told = rig.event("restarted").await;
    assert_eq!(told.component.unwrap().as_str(), "app");
    assert!(rig.watch.recorded(&rig.busy, PATIENCE).await);
    assert_eq!(rig.revived.lock().unwrap().len(), 1);
    // Nobody put it back: once the deployment is over it is the watch's again.
    drop(guard);
    let ended = async {
        while rig.revived.lock().unwrap().len() < 2 {
            rig.registry.newest_event().changed().await.unwrap();
        }
    };
    timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(rig.revived.lock().unwrap()[1].key.to_string(), "shop/web");
    rig.end().await;
}

#[tokio::test]
async fn a_deployment_is_no_news_of_the_watch() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    let guard = rig.busy.enter("shop".parse().unwrap());
    rig.engine.put(live("next", 9));
    rig.engine.event("next", "create");
    rig.engine.exit("web", 143, time(8), false);
    rig.engine.event("next", "start");
    rig.engine.destroy("web");
    let mut next = row("shop/web");
    next.container = ContainerId::new("next");
    rig.deploy(next).await;
    let sightings = rig.watch.sightings();
    sightings.saw(vec![live("next", 9)]);
    sightings.gone(vec![ContainerId::new("web")]);
    let inspected = rig.engine.calls("inspect");
    drop(guard);
    // Whoever asks right after the deployment gets what it led to.
    let seen = rig.observed("shop/web").await;
    assert_eq!(seen.started_at, Some(time(9)));
    assert_eq!(seen.state, ObservedState::Running);
    assert_eq!(rig.words().await, Vec::<String>::new());
    assert!(rig.engine.calls("inspect") <= inspected + 2);
    assert!(rig.revived.lock().unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn a_stopped_component_is_never_started() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    let guard = rig.busy.enter("shop".parse().unwrap());
    rig.engine.exit("web", 143, time(5), false);
    let stop = StopOverride {
        by: "kyle".to_owned(),
        at: time(5),
    };
    let keys = vec!["shop/web".parse().unwrap()];
    rig.registry
        .set_stop(keys, Some(stop), Vec::new())
        .await
        .unwrap();
    drop(guard);
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Stopped);
    assert!(rig.words().await.is_empty());
    assert!(rig.revived.lock().unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn a_removal_by_hand_is_drift_and_leads_to_nothing() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.destroy("web");
    rig.event("removed").await;
    let drift = rig.event("drift").await;
    assert_eq!(drift.data["drift"][0]["live"], "absent");
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Absent);
    assert!(rig.revived.lock().unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn an_engine_that_goes_and_comes_is_told_and_nothing_follows() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.set_away(true);
    rig.event("engine-away").await;
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Unknown);
    rig.engine.set_away(false);
    rig.event("engine-back").await;
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Running);
    assert_eq!(rig.words().await, ["engine-away", "engine-back"]);
    assert!(rig.revived.lock().unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn after_a_reboot_what_should_run_is_started_dependencies_first() {
    let mut rig = Rig::new();
    rig.runs("shop/api", |row| {
        row.spec.depends_on = BTreeSet::from(["db".parse().unwrap()]);
    })
    .await;
    rig.runs("shop/db", |_| {}).await;
    rig.runs("shop/job", |row| {
        row.spec.kind = Kind::Job {
            exit_codes: BTreeSet::from([0]),
        };
    })
    .await;
    rig.runs("shop/old", |row| {
        row.stopped_by = Some(StopOverride {
            by: "kyle".to_owned(),
            at: time(0),
        });
    })
    .await;
    for id in ["api", "db", "job", "old"] {
        rig.engine.exit(id, 255, time(5), true);
    }
    rig.begin().await;
    let both = async {
        while rig
            .words()
            .await
            .iter()
            .filter(|w| *w == "restarted")
            .count()
            < 2
        {
            rig.registry.newest_event().changed().await.unwrap();
        }
    };
    timeout(PATIENCE, both).await.unwrap();
    let order: Vec<String> = rig
        .revived
        .lock()
        .unwrap()
        .iter()
        .map(|revive| revive.key.to_string())
        .collect();
    assert_eq!(order, ["shop/db", "shop/api"]);
    rig.end().await;
}

#[tokio::test]
async fn a_resync_finds_what_no_event_told() {
    let mut rig = Rig::new();
    rig.resync = Span::from_millis(100);
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.exit("web", 1, time(5), true);
    rig.event("exited").await;
    rig.event("restarted").await;
    rig.end().await;
}

#[tokio::test]
async fn an_idle_agent_asks_the_engine_nothing() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    let mut calls = rig.engine.all_calls();
    calls.mark_unchanged();
    let asked = timeout(Duration::from_millis(300), calls.changed()).await;
    assert!(asked.is_err());
    rig.end().await;
}

#[tokio::test]
async fn a_failing_check_is_unhealthy_and_no_reason_to_restart() {
    let mut rig = Rig::new();
    rig.engine.set_exec(ExecOutcome::Exited {
        code: 0,
        output: String::new(),
    });
    rig.runs("shop/web", |row| {
        row.spec.health = Some(Health {
            probe: Probe::Cmd(vec!["/check".to_owned()]),
            interval: Span::from_millis(10),
            timeout: Span::from_secs(3),
            retries: 3,
            start_period: Span::from_secs(0),
        });
    })
    .await;
    rig.begin().await;
    rig.event("healthy").await;
    rig.engine.set_exec(ExecOutcome::Exited {
        code: 1,
        output: "no database".to_owned(),
    });
    let told = rig.event("unhealthy").await;
    assert!(told.message.contains("no database"), "{}", told.message);
    let seen = rig.observed("shop/web").await;
    assert_eq!(seen.health, Some(HealthWord::Unhealthy));
    assert_eq!(seen.state, ObservedState::Running);
    assert!(rig.revived.lock().unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn a_scheduled_start_outlives_the_agent() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.exit("web", 1, time(5), false);
    rig.event("restarted").await;
    rig.engine.exit("web", 1, time(6), false);
    rig.event("restart-scheduled").await;
    let before = rig.observed("shop/web").await;
    assert!(before.next_restart_at.is_some());
    rig.end().await;
    rig.watch = Watch::new(Arc::new(rig.engine.clone()), Arc::new(SystemClock));
    rig.begin().await;
    let after = rig.observed("shop/web").await;
    assert_eq!(after.next_restart_at, before.next_restart_at);
    assert_eq!(after.backoff_attempt, 1);
    assert_eq!(rig.revived.lock().unwrap().len(), 1);
    rig.end().await;
}
