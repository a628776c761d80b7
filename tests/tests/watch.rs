//! The agent's watch against real engines: what happens to containers outside of it is seen, told and
//! answered by the restart policy.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::FutureExt as _;
use jiff::Timestamp;
use mcp_agent::clock::SystemClock;
use mcp_agent::config::WatchConfig;
use mcp_agent::registry::{
    CommitDeployment, DeployedRow, DeploymentId, DeploymentRow, DeploymentState, EventQuery,
    EventRow, HistoryEntry, ObservedRow, Registry, SetDeployed, Trigger,
};
use mcp_agent::runtime::docker::DockerRuntime;
use mcp_agent::runtime::{ContainerRequest, Runtime};
use mcp_agent::watch::{Busy, Revive, Revived, Setup, Watch, run};
use mcp_spec::definition::{DefinitionFile, compile};
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerId, ContainerState, DesiredState, ObservedState, label};
use mcp_spec::plan::ServiceSettings;
use mcp_spec::revision::CommitId;
use mcp_tests::engine::{BUSYBOX, Engine, Lane};
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

mcp_tests::lanes!(
    a_crash_is_noticed_at_once_and_answered,
    a_removal_by_hand_is_drift,
    a_stop_by_hand_is_answered_by_the_restart_policy,
    a_job_and_a_finished_component_are_left_alone,
    an_engine_that_goes_and_comes_is_told_and_what_should_run_runs,
);

/// Runs until it is told to stop.
const RUNS: &str = "cmd = [\"/bin/pause\"]";

const PATIENCE: Duration = Duration::from_secs(60);

fn wait(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

struct Rig {
    runtime: Arc<dyn Runtime>,
    registry: Registry,
    watch: Watch,
    busy: Busy,
    service: String,
    /// When each start by the restart policy was asked for.
    starts: Arc<Mutex<Vec<Instant>>>,
    cancel: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
    containers: BTreeMap<String, ContainerId>,
    _directory: TempDir,
}

impl Rig {
    fn new(engine: &Engine, service: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry::open(&directory.path().join("registry.db")).unwrap();
        let runtime: Arc<dyn Runtime> = Arc::new(DockerRuntime::new(engine.url().parse().unwrap()));
        let watch = Watch::new(Arc::clone(&runtime), Arc::new(SystemClock));
        Self {
            runtime,
            registry,
            watch,
            busy: Busy::default(),
            service: service.to_owned(),
            starts: Arc::default(),
            cancel: CancellationToken::new(),
            task: None,
            containers: BTreeMap::new(),
            _directory: directory,
        }
    }

    /// Makes and starts containers and registers them, as a deployment would.
    async fn deploy(&mut self, components: &[(&str, &str)]) {
        let texts: Vec<String> = components
            .iter()
            .map(|(name, keys)| {
                format!(
                    "[[components]]\nname = \"{name}\"\nimage = \"{BUSYBOX}:v1\"\nnetwork = \"none\"\n{keys}\n"
                )
            })
            .collect();
        let text = format!(
            "name = \"{}\"\nnode = \"rift\"\n{}",
            self.service,
            texts.join("\n")
        );
        let path = format!("services/{}.toml", self.service);
        let file = DefinitionFile {
            path: &path,
            bytes: text.as_bytes(),
        };
        let set = compile(&[file], &|_: &str| None::<Digest>).unwrap();
        let service = &set.services[self.service.as_str()];
        let id = DeploymentId::from_bits(1);
        self.admit(&id).await;
        let mut commit = CommitDeployment::new(id.clone());
        let mut lives = Vec::new();
        for (name, spec) in &service.components {
            let key = ComponentKey::new(service.name.clone(), name.clone());
            let image = self.runtime.image(&spec.image).await.unwrap().unwrap().id;
            let container = self
                .runtime
                .create(&ContainerRequest {
                    name: key.container_name(),
                    image: image.clone(),
                    spec: spec.clone(),
                    labels: BTreeMap::from([
                        (label::SERVICE.to_owned(), key.service.to_string()),
                        (label::COMPONENT.to_owned(), key.component.to_string()),
                    ]),
                    files: BTreeMap::new(),
                    secret_env: BTreeMap::new(),
                })
                .await
                .unwrap();
            self.runtime.start(&container).await.unwrap();
            let live = self.runtime.inspect(container.as_str()).await.unwrap();
            let live = live.unwrap();
            self.containers.insert(name.to_string(), container.clone());
            commit.set.push(SetDeployed {
                row: DeployedRow {
                    spec: spec.clone(),
                    spec_digest: spec.digest(),
                    image_id: image,
                    image_digest: None,
                    revision: CommitId::from_bytes([1; 20]),
                    container,
                    container_name: key.container_name(),
                    key,
                    generation: 1,
                    baseline: live.fields.clone(),
                    desired: DesiredState::Running,
                    stopped_by: None,
                    hold: None,
                    deployment: id.clone(),
                    history: 0,
                    deployed_at: Timestamp::now(),
                    adopted: false,
                    settings: ServiceSettings::of(service),
                },
                history: HistoryEntry::New,
            });
            lives.push(live);
        }
        self.registry.commit_deployment(commit).await.unwrap();
        self.watch.sightings().saw(lives);
    }

    async fn admit(&self, id: &DeploymentId) {
        let row = DeploymentRow {
            id: id.clone(),
            service: self.service.parse().unwrap(),
            component: None,
            request_id: String::new(),
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
            created_at: Timestamp::now(),
            line_at: None,
            finished_at: None,
        };
        self.registry.admit(row).await.unwrap();
    }

    async fn begin(&mut self) {
        let runtime = Arc::clone(&self.runtime);
        let starts = Arc::clone(&self.starts);
        let setup = Setup {
            watch: self.watch.clone(),
            busy: self.busy.clone(),
            registry: self.registry.clone(),
            facts: Arc::new(ArcSwapOption::empty()),
            reviver: Arc::new(move |revive: Revive| {
                let runtime = Arc::clone(&runtime);
                let begun = Arc::clone(&starts);
                async move {
                    begun.lock().unwrap().push(Instant::now());
                    if let Err(error) = runtime.start(&revive.container).await {
                        return Revived::Failed(error);
                    }
                    match runtime.inspect(revive.container.as_str()).await {
                        Ok(Some(live)) => Revived::Running(Box::new(live)),
                        Ok(None) => Revived::NotNow,
                        Err(error) => Revived::Failed(error),
                    }
                }
                .boxed()
            }),
            jitter: Arc::new(|| 0.0),
            config: WatchConfig::default(),
        };
        let cancel = self.cancel.clone();
        self.task = Some(tokio::spawn(async move {
            run(setup, cancel).await.unwrap();
        }));
        let mut changes = self.watch.changes();
        let answered = async {
            while !self.watch.current().engine_answers() {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, answered).await.unwrap();
        assert!(self.watch.recorded(&self.busy, PATIENCE).await);
    }

    async fn end(self) {
        self.cancel.cancel();
        self.task.unwrap().await.unwrap();
        for id in self.containers.values() {
            self.runtime.remove(id.as_str()).await.unwrap();
        }
    }

    async fn events(&self) -> Vec<EventRow> {
        let query = EventQuery {
            limit: 1000,
            ..EventQuery::default()
        };
        self.registry.events(query).await.unwrap()
    }

    /// The first event of one of these kinds about the component, once there is one.
    async fn event(&self, component: &str, kinds: &[&str]) -> EventRow {
        let mut newest = self.registry.newest_event();
        let found = async {
            loop {
                newest.borrow_and_update();
                let event = self.events().await.into_iter().find(|event| {
                    kinds.contains(&event.kind.as_str())
                        && event
                            .component
                            .as_ref()
                            .is_none_or(|of| of.as_str() == component)
                });
                if let Some(event) = event {
                    return event;
                }
                newest.changed().await.unwrap();
            }
        };
        match timeout(PATIENCE, found).await {
            Ok(event) => event,
            Err(_) => panic!("no {kinds:?} among {:#?}", self.events().await),
        }
    }

    async fn observed(&self, component: &str) -> ObservedRow {
        assert!(self.watch.recorded(&self.busy, PATIENCE).await);
        let key = format!("{}/{component}", self.service).parse().unwrap();
        self.registry.observed(key).await.unwrap().unwrap()
    }

    fn is_running(&self, component: &str) -> Option<u32> {
        match self.watch.current().containers[&self.containers[component]].state {
            ContainerState::Running { pid } => pid,
            _ => None,
        }
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn a_crash_is_noticed_at_once_and_answered(lane: Lane) {
    wait(async {
        let mut rig = Rig::new(lane.shared(), "crash");
        let names: Vec<String> = (0..7).map(|n| format!("c{n}")).collect();
        let components: Vec<(&str, &str)> =
            names.iter().map(|name| (name.as_str(), RUNS)).collect();
        rig.deploy(&components).await;
        rig.begin().await;
        let (mut noticed, mut told, mut asked, mut again) = (vec![], vec![], vec![], vec![]);
        for name in &names {
            let pid = rig.is_running(name).unwrap();
            let mut changes = rig.watch.changes();
            changes.mark_unchanged();
            let began = Instant::now();
            let process = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
            rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
            let gone = async {
                while rig.is_running(name).is_some() {
                    changes.changed().await.unwrap();
                }
            };
            timeout(PATIENCE, gone).await.unwrap();
            noticed.push(began.elapsed());
            rig.event(name, &["died", "exited"]).await;
            told.push(began.elapsed());
            rig.event(name, &["restarted"]).await;
            again.push(began.elapsed());
            let start = *rig.starts.lock().unwrap().last().unwrap();
            asked.push(start.duration_since(began));
            let exited = rig.event(name, &["exited"]).await;
            assert_eq!(exited.data["exit_code"], 137, "{exited:?}");
            let seen = rig.observed(name).await;
            assert_eq!(seen.state, ObservedState::Running);
            assert_eq!((seen.restarts, seen.exit_code), (1, Some(137)));
            assert!(seen.drift.is_empty(), "{:?}", seen.drift);
        }
        let [noticed, told, asked, again] = [noticed, told, asked, again].map(median);
        // The bars are the bench's; a loaded machine must not fail a test. Of the rootless engine the
        // kernel has fuse mounts to take down before it tells of the death.
        let times = format!(
            "{}: noticed {noticed:?}, told {told:?}, start asked for {asked:?}, runs again {again:?}",
            lane.name()
        );
        assert!(noticed < Duration::from_secs(1), "{times}");
        assert!(again < Duration::from_secs(10), "{times}");
        rig.end().await;
    });
}

fn a_removal_by_hand_is_drift(lane: Lane) {
    wait(async {
        let mut rig = Rig::new(lane.shared(), "removal");
        rig.deploy(&[("web", RUNS)]).await;
        rig.begin().await;
        let id = rig.containers["web"].clone();
        let engine = lane.shared();
        engine.cli(&["rm", "-f", id.as_str()]).unwrap();
        rig.event("web", &["removed"]).await;
        rig.event("web", &["drift"]).await;
        let seen = rig.observed("web").await;
        assert_eq!(seen.state, ObservedState::Absent);
        assert_eq!(seen.restarts, 0);
        rig.end().await;
    });
}

fn a_stop_by_hand_is_answered_by_the_restart_policy(lane: Lane) {
    wait(async {
        let mut rig = Rig::new(lane.shared(), "bystop");
        rig.deploy(&[("web", RUNS)]).await;
        rig.begin().await;
        let id = rig.containers["web"].clone();
        lane.shared()
            .cli(&["stop", "-t", "5", id.as_str()])
            .unwrap();
        rig.event("web", &["restarted"]).await;
        assert_eq!(rig.observed("web").await.state, ObservedState::Running);
        assert!(rig.is_running("web").is_some());
        rig.end().await;
    });
}

fn a_job_and_a_finished_component_are_left_alone(lane: Lane) {
    wait(async {
        let mut rig = Rig::new(lane.shared(), "finish");
        let sleeps = "cmd = [\"sh\", \"-c\", \"sleep 4; exit 3\"]";
        rig.deploy(&[
            (
                "job",
                &format!("kind = \"job\"\nexit_codes = [3]\n{sleeps}"),
            ),
            ("once", &format!("restart = \"no\"\n{sleeps}")),
        ])
        .await;
        rig.begin().await;
        for (name, state) in [
            ("job", ObservedState::Completed),
            ("once", ObservedState::Failed),
        ] {
            let exited = rig.event(name, &["exited"]).await;
            assert_eq!(exited.data["exit_code"], 3);
            let seen = rig.observed(name).await;
            assert_eq!((seen.state, seen.restarts), (state, 0));
            assert!(seen.drift.is_empty(), "{:?}", seen.drift);
        }
        rig.end().await;
    });
}

fn an_engine_that_goes_and_comes_is_told_and_what_should_run_runs(lane: Lane) {
    // An engine of its own: the others' tests go on meanwhile.
    let engine = Engine::start(lane).unwrap();
    engine
        .import_version(&format!("{BUSYBOX}:v1"), "v1", "busybox", &[])
        .unwrap();
    wait(async {
        let mut rig = Rig::new(&engine, "away");
        rig.deploy(&[("web", RUNS)]).await;
        rig.begin().await;
        engine.kill().unwrap();
        rig.event("web", &["engine-away"]).await;
        assert_eq!(rig.observed("web").await.state, ObservedState::Unknown);
        engine.up().unwrap();
        rig.event("web", &["engine-back"]).await;
        let mut changes = rig.watch.changes();
        let runs = async {
            while rig.is_running("web").is_none() {
                changes.changed().await.unwrap();
            }
        };
        timeout(PATIENCE, runs).await.unwrap();
        assert_eq!(rig.observed("web").await.state, ObservedState::Running);
        let kinds: Vec<String> = rig.events().await.into_iter().map(|e| e.kind).collect();
        if lane != Lane::Docker {
            // Podman's containers do not notice that its service is away.
            assert_eq!(kinds, ["engine-away", "engine-back"]);
        }
        rig.end().await;
    });
}
