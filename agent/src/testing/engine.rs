//! An engine that does what a test tells it: containers are set by hand, calls are counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use mcp_spec::image::ImageRef;
use mcp_spec::observed::{ContainerId, ContainerState, ImageId, LiveContainer, label};
use tokio::sync::{broadcast, watch};

use crate::runtime::{
    ContainerRequest, EngineEvent, EngineFacts, EngineName, ExecOutcome, ImageFacts, KeepTag,
    LogLine, LogOptions, PullProgress, Runtime, RuntimeError,
};

/// Events that a slow follower may be behind.
const EVENTS: usize = 256;

/// An engine that a test scripts; clones share it.
#[derive(Debug, Clone)]
pub struct ScriptedEngine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    events: Mutex<broadcast::Sender<EngineEvent>>,
    calls: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<ContainerId, LiveContainer>,
    calls: BTreeMap<&'static str, u64>,
    away: bool,
    shares_pids: bool,
    /// Answers that `inspect` gives before it tells the truth.
    stale: BTreeMap<ContainerId, VecDeque<LiveContainer>>,
    exec: Option<ExecOutcome>,
    refuses_start: bool,
    starts: u32,
}

impl Default for ScriptedEngine {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                events: Mutex::new(broadcast::channel(EVENTS).0),
                calls: watch::channel(0).0,
            }),
        }
    }
}

impl ScriptedEngine {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, name: &'static str) -> Result<MutexGuard<'_, State>, RuntimeError> {
        let mut state = self.state();
        *state.calls.entry(name).or_default() += 1;
        self.shared.calls.send_modify(|count| *count += 1);
        if state.away {
            return Err(RuntimeError::Unreachable {
                socket: "/run/engine.sock".to_owned(),
                cause: "connection refused".to_owned(),
            });
        }
        Ok(state)
    }

    fn tell(&self, id: &ContainerId, action: &str, exit_code: Option<i32>) {
        let events = self
            .shared
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Nobody listening is no failure.
        drop(events.send(EngineEvent {
            at: None,
            container: id.clone(),
            name: String::new(),
            action: action.to_owned(),
            exit_code,
        }));
    }

    /// A container as an engine would describe it: running since `started_at`, labelled as `key`
    /// (`service/component`) where one is given.
    #[must_use]
    pub fn container(id: &str, key: Option<(&str, &str)>, started_at: Timestamp) -> LiveContainer {
        let labels = key.map_or_else(BTreeMap::new, |(service, component)| {
            BTreeMap::from([
                (label::SERVICE.to_owned(), service.to_owned()),
                (label::COMPONENT.to_owned(), component.to_owned()),
            ])
        });
        LiveContainer {
            id: ContainerId::new(id),
            name: key.map_or_else(|| id.to_owned(), |(s, c)| format!("{s}-{c}")),
            image_id: ImageId::new("sha256:1"),
            image_name: "localhost/bb:v1".to_owned(),
            state: ContainerState::Running { pid: None },
            labels,
            started_at: Some(started_at),
            finished_at: None,
            fields: BTreeMap::from([("memory".to_owned(), "512 MiB".to_owned())]),
            addresses: BTreeMap::new(),
        }
    }

    /// Puts a container in place, without an event.
    pub fn put(&self, live: LiveContainer) {
        self.state().containers.insert(live.id.clone(), live);
    }

    /// Changes a container, without an event.
    pub fn change(&self, id: &str, change: impl FnOnce(&mut LiveContainer)) {
        if let Some(live) = self.state().containers.get_mut(&ContainerId::new(id)) {
            change(live);
        }
    }

    /// Ends a container's process; with an event unless it is to be `silent`.
    pub fn exit(&self, id: &str, code: i32, at: Timestamp, silent: bool) {
        self.change(id, |live| {
            live.state = ContainerState::Exited { code, oom: false };
            live.finished_at = Some(at);
        });
        if !silent {
            self.tell(&ContainerId::new(id), "die", Some(code));
        }
    }

    /// Removes a container, with an event.
    pub fn destroy(&self, id: &str) {
        let id = ContainerId::new(id);
        self.state().containers.remove(&id);
        self.tell(&id, "destroy", None);
    }

    /// Sends an event.
    pub fn event(&self, id: &str, action: &str) {
        self.tell(&ContainerId::new(id), action, None);
    }

    /// Makes the next `times` inspections of a container tell what it is now, whatever it becomes.
    pub fn lag(&self, id: &str, times: usize) {
        let mut state = self.state();
        let id = ContainerId::new(id);
        if let Some(live) = state.containers.get(&id).cloned() {
            state
                .stale
                .insert(id, std::iter::repeat_n(live, times).collect());
        }
    }

    /// Makes the engine go away, which ends the event streams, or come back.
    pub fn set_away(&self, away: bool) {
        self.state().away = away;
        if away {
            let mut events = self
                .shared
                .events
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            *events = broadcast::channel(EVENTS).0;
        }
    }

    /// Says whether process ids are those of this machine.
    pub fn set_shares_pids(&self, shares_pids: bool) {
        self.state().shares_pids = shares_pids;
    }

    /// What commands inside containers come to.
    pub fn set_exec(&self, outcome: ExecOutcome) {
        self.state().exec = Some(outcome);
    }

    /// Whether starts fail.
    pub fn refuse_starts(&self, refuses: bool) {
        self.state().refuses_start = refuses;
    }

    /// How often a call was made (`list`, `inspect`, `start`, …).
    #[must_use]
    pub fn calls(&self, name: &'static str) -> u64 {
        self.state().calls.get(name).copied().unwrap_or_default()
    }

    /// Calls of all kinds so far; wakes at each.
    #[must_use]
    pub fn all_calls(&self) -> watch::Receiver<u64> {
        self.shared.calls.subscribe()
    }

    fn unscripted<T>(what: &str) -> Result<T, RuntimeError> {
        Err(RuntimeError::Unsupported {
            what: what.to_owned(),
            why: "no test has scripted it".to_owned(),
        })
    }
}

#[async_trait]
impl Runtime for ScriptedEngine {
    async fn facts(&self) -> Result<EngineFacts, RuntimeError> {
        let state = self.call("facts")?;
        Ok(EngineFacts {
            name: EngineName::Podman,
            version: "4.3.1".to_owned(),
            rootless: false,
            limits: true,
            shares_pids: state.shares_pids,
        })
    }

    async fn list(&self) -> Result<Vec<LiveContainer>, RuntimeError> {
        // A real engine lets others run meanwhile.
        tokio::task::yield_now().await;
        let state = self.call("list")?;
        Ok(state
            .containers
            .values()
            .cloned()
            .map(|mut live| {
                live.fields.clear();
                live.addresses.clear();
                live.started_at = None;
                live.finished_at = None;
                if let ContainerState::Running { pid } = &mut live.state {
                    *pid = None;
                }
                live
            })
            .collect())
    }

    async fn inspect(&self, id_or_name: &str) -> Result<Option<LiveContainer>, RuntimeError> {
        tokio::task::yield_now().await;
        let mut state = self.call("inspect")?;
        let id = ContainerId::new(id_or_name);
        if let Some(live) = state.stale.get_mut(&id).and_then(VecDeque::pop_front) {
            return Ok(Some(live));
        }
        Ok(state
            .containers
            .values()
            .find(|live| live.id == id || live.name == id_or_name)
            .cloned())
    }

    async fn image(&self, _image: &ImageRef) -> Result<Option<ImageFacts>, RuntimeError> {
        Self::unscripted("image")
    }

    async fn image_by_id(&self, _id: &ImageId) -> Result<Option<ImageFacts>, RuntimeError> {
        Self::unscripted("image_by_id")
    }

    async fn pull(
        &self,
        _image: &ImageRef,
        _progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<ImageFacts, RuntimeError> {
        Self::unscripted("pull")
    }

    async fn tag(&self, _id: &ImageId, _name: &KeepTag) -> Result<(), RuntimeError> {
        Self::unscripted("tag")
    }

    async fn untag(&self, _name: &KeepTag) -> Result<(), RuntimeError> {
        Self::unscripted("untag")
    }

    async fn create(&self, _request: &ContainerRequest) -> Result<ContainerId, RuntimeError> {
        Self::unscripted("create")
    }

    async fn start(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let mut state = self.call("start")?;
        if state.refuses_start {
            return Err(RuntimeError::PortTaken {
                cause: "address already in use".to_owned(),
            });
        }
        state.starts += 1;
        let started_at = Timestamp::UNIX_EPOCH + Duration::from_secs(state.starts.into());
        let Some(live) = state.containers.get_mut(id) else {
            return Err(RuntimeError::NotFound {
                what: format!("container {id}"),
            });
        };
        if !live.state.is_running() {
            live.state = ContainerState::Running { pid: None };
            live.started_at = Some(started_at);
            live.finished_at = None;
        }
        drop(state);
        self.tell(id, "start", None);
        Ok(())
    }

    async fn stop(&self, id: &ContainerId, _grace: Duration) -> Result<(), RuntimeError> {
        drop(self.call("stop")?);
        self.exit(id.as_str(), 143, Timestamp::UNIX_EPOCH, false);
        Ok(())
    }

    async fn signal(&self, _id: &ContainerId, _signal: &str) -> Result<(), RuntimeError> {
        Self::unscripted("signal")
    }

    async fn rename(&self, _id: &ContainerId, _name: &str) -> Result<(), RuntimeError> {
        Self::unscripted("rename")
    }

    async fn remove(&self, id_or_name: &str) -> Result<(), RuntimeError> {
        drop(self.call("remove")?);
        self.destroy(id_or_name);
        Ok(())
    }

    async fn ensure_network(
        &self,
        _name: &str,
        _labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        Self::unscripted("ensure_network")
    }

    async fn networks(&self, _label: &str, _value: &str) -> Result<Vec<String>, RuntimeError> {
        Self::unscripted("networks")
    }

    async fn remove_network(&self, _name: &str) -> Result<bool, RuntimeError> {
        Self::unscripted("remove_network")
    }

    async fn ensure_volume(
        &self,
        _name: &str,
        _labels: &BTreeMap<String, String>,
    ) -> Result<bool, RuntimeError> {
        Self::unscripted("ensure_volume")
    }

    async fn volumes(&self, _label: &str, _value: &str) -> Result<Vec<String>, RuntimeError> {
        Self::unscripted("volumes")
    }

    async fn remove_volume(&self, _name: &str) -> Result<(), RuntimeError> {
        Self::unscripted("remove_volume")
    }

    async fn exec(
        &self,
        _id: &ContainerId,
        _command: &[String],
        _timeout: Duration,
    ) -> Result<ExecOutcome, RuntimeError> {
        let state = self.call("exec")?;
        match &state.exec {
            Some(outcome) => Ok(outcome.clone()),
            None => Self::unscripted("exec"),
        }
    }

    async fn logs(
        &self,
        _id: &ContainerId,
        _options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
        Self::unscripted("logs")
    }

    async fn events(
        &self,
    ) -> Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError> {
        drop(self.call("events")?);
        let receiver = self
            .shared
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .subscribe();
        Ok(
            stream::unfold(receiver, async |mut receiver| match receiver.recv().await {
                Ok(event) => Some((Ok(event), receiver)),
                Err(broadcast::error::RecvError::Lagged(missed)) => Some((
                    Err(RuntimeError::Uncertain {
                        call: "events",
                        cause: format!("{missed} events were lost"),
                    }),
                    receiver,
                )),
                Err(broadcast::error::RecvError::Closed) => None,
            })
            .boxed(),
        )
    }
}
