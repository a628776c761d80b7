//! An engine that does what a test tells it: containers can be set by hand, calls are counted, and
//! what is made through the trait behaves as it does on podman, down to the names that its storage
//! holds with no container to show for them.

mod calls;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use mcp_spec::component::{ComponentSpec, Network, VolumeSource};
use mcp_spec::image::Digest;
use mcp_spec::observed::{ContainerId, ContainerState, ImageId, LiveContainer, label};
use tokio::sync::{broadcast, watch};

use crate::runtime::{EngineEvent, ExecOutcome, KeepTag, RuntimeError};

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

#[derive(Debug, Clone, Default)]
struct State {
    containers: BTreeMap<ContainerId, LiveContainer>,
    /// What those were made of that were made through the trait.
    specs: BTreeMap<ContainerId, ComponentSpec>,
    /// Names that the storage holds, with no container to show for them.
    storage: BTreeSet<String>,
    /// Images that were not there from the beginning, by reference: a pull brings them.
    missing: BTreeSet<String>,
    /// What the first process of an image's containers ends with, at once.
    exits: BTreeMap<ImageId, i32>,
    tags: BTreeMap<KeepTag, ImageId>,
    networks: BTreeMap<String, BTreeMap<String, String>>,
    volumes: BTreeMap<String, BTreeMap<String, String>>,
    holds_pulls: bool,
    made: u64,
    changes: u64,
    calls: BTreeMap<&'static str, u64>,
    away: bool,
    store: String,
    shares_pids: bool,
    /// Answers that `inspect` gives before it tells the truth.
    stale: BTreeMap<ContainerId, VecDeque<LiveContainer>>,
    exec: Option<ExecOutcome>,
    refuses_start: bool,
    /// Containers that it will never start.
    stuck: BTreeSet<ContainerId>,
    starts: u32,
    /// Starts that should not have been.
    mishaps: Vec<String>,
    /// A field that a start changes, whatever was asked for.
    odd: Option<(String, String)>,
}

impl State {
    fn named(&self, id_or_name: &str) -> Option<ContainerId> {
        let named =
            |live: &&LiveContainer| live.id.as_str() == id_or_name || live.name == id_or_name;
        Some(self.containers.values().find(named)?.id.clone())
    }

    /// What would be wrong with the start of a container that does not run.
    fn mishap(&self, id: &ContainerId) -> Option<String> {
        let live = self.containers.get(id)?;
        let key = live.claimed_key()?;
        let mut others = self.containers.values().filter(|other| other.id != *id);
        if others.any(|other| other.state.is_running() && other.claimed_key() == Some(key.clone()))
        {
            return Some(format!("two generations of {key} ran"));
        }
        let is_job = self.specs.get(id).is_some_and(|spec| spec.kind.is_job());
        (is_job && live.started_at.is_some()).then(|| format!("the job {key} ran twice"))
    }

    fn is_taken(&self, name: &str) -> bool {
        self.storage.contains(name) || self.containers.values().any(|live| live.name == name)
    }

    /// Whether a running container beside this one publishes one of its ports of the host.
    fn port_is_taken(&self, id: &ContainerId) -> bool {
        let ports = |id: &ContainerId| -> BTreeSet<_> {
            let spec = self.specs.get(id);
            let ports = spec.into_iter().flat_map(|spec| &spec.ports);
            ports.map(|port| (port.host, port.protocol)).collect()
        };
        let wanted = ports(id);
        let mut others = self.containers.values().filter(|live| live.id != *id);
        others.any(|live| live.state.is_running() && !wanted.is_disjoint(&ports(&live.id)))
    }

    fn network_is_used(&self, name: &str) -> bool {
        self.specs.values().any(|spec| match &spec.network {
            Network::User(attachments) => attachments.contains_key(name),
            _ => false,
        })
    }

    fn volume_is_used(&self, name: &str) -> bool {
        self.specs.values().any(|spec| {
            let mut volumes = spec.volumes.values();
            volumes.any(|volume| matches!(&volume.source, VolumeSource::Named(n) if n == name))
        })
    }
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

    /// Loses all containers, without an event.
    pub fn empty(&self) {
        self.state().containers.clear();
    }

    /// Says where it keeps its containers.
    pub fn set_store(&self, store: &str) {
        store.clone_into(&mut self.state().store);
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
            self.break_off();
        }
    }

    /// Ends the event streams; new ones can be had at once.
    pub fn break_off(&self) {
        let mut events = self
            .shared
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *events = broadcast::channel(EVENTS).0;
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

    /// Makes each start change a field, whatever was asked for: nothing converges.
    pub fn make_odd(&self, field: &str, value: &str) {
        self.state().odd = Some((field.to_owned(), value.to_owned()));
    }

    /// Ends a container, and makes every further start of it fail.
    pub fn stick(&self, id: &ContainerId) {
        self.exit(id.as_str(), 128, Timestamp::UNIX_EPOCH, true);
        self.state().stuck.insert(id.clone());
    }

    /// What went wrong meanwhile: two generations of a component that ran, a job that ran twice.
    #[must_use]
    pub fn mishaps(&self) -> Vec<String> {
        self.state().mishaps.clone()
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

    /// The engine as it is now, apart from this one: neither sees what becomes of the other.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::default();
        *copy.state() = self.state().clone();
        copy
    }

    /// Every container that it shows.
    #[must_use]
    pub fn containers(&self) -> Vec<LiveContainer> {
        self.state().containers.values().cloned().collect()
    }

    /// The names that its storage holds with no container to show for them.
    #[must_use]
    pub fn storage(&self) -> Vec<String> {
        self.state().storage.iter().cloned().collect()
    }

    /// Makes its storage hold a name, as a create that was cut off half way does.
    pub fn hold_in_storage(&self, name: &str) {
        self.state().storage.insert(name.to_owned());
    }

    /// The names that keep images.
    #[must_use]
    pub fn tags(&self) -> Vec<(KeepTag, ImageId)> {
        let state = self.state();
        let tags = state.tags.iter();
        tags.map(|(tag, image)| (tag.clone(), image.clone()))
            .collect()
    }

    /// The networks and volumes, by name.
    #[must_use]
    pub fn belongings(&self) -> (Vec<String>, Vec<String>) {
        let state = self.state();
        (
            state.networks.keys().cloned().collect(),
            state.volumes.keys().cloned().collect(),
        )
    }

    /// Puts a network and a volume of this name in place that are not the agent's.
    pub fn put_belongings(&self, name: &str) {
        let mut state = self.state();
        state.networks.insert(name.to_owned(), BTreeMap::new());
        state.volumes.insert(name.to_owned(), BTreeMap::new());
    }

    /// Takes an image away: only a pull brings it back.
    pub fn lose_image(&self, reference: &str) {
        self.state().missing.insert(reference.to_owned());
    }

    /// Lets pulls wait, or go on.
    pub fn hold_pulls(&self, hold: bool) {
        self.state().holds_pulls = hold;
    }

    /// Makes the first process of every container of this image end at once.
    pub fn end_at_once(&self, reference: &str, code: i32) {
        self.state().exits.insert(Self::image_id(reference), code);
    }

    /// How many calls have changed anything so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.state().changes
    }

    /// The id of the image with this reference.
    #[must_use]
    pub fn image_id(reference: &str) -> ImageId {
        ImageId::new(format!("sha256:{}", Digest::of(reference.as_bytes()).hex()))
    }

    fn unscripted<T>(what: &str) -> Result<T, RuntimeError> {
        Err(RuntimeError::Unsupported {
            what: what.to_owned(),
            why: "no test has scripted it".to_owned(),
        })
    }
}
