//! The model of a container engine: what it holds, what its calls do, and what happens to it by itself.
//!
//! The state outlives the agent: a call that the agent made goes on when the agent is killed. What a
//! container does once started is written in its image's tag ([`Behaviour`]). Faults are chosen by the
//! seed ([`Fate`]); each call that changes something holds its container's lock, as real engines do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use mcp_agent::clock::Clock as _;
use mcp_agent::runtime::{ContainerRequest, EngineEvent, KeepTag, RuntimeError};
use mcp_spec::component::Network;
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerId, ContainerState, ImageId, LiveContainer, label};
use tokio::sync::{broadcast, oneshot};
use tokio::time::{Instant, sleep};

use super::clock::SimClock;
use super::dice::Dice;
use super::history::NODE;
use super::model::Model;
use super::trace::Trace;

/// What a container does once it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Behaviour {
    /// It ends by itself, after so long, with this code.
    pub(crate) ends: Option<(Duration, i32)>,
    /// Its health check succeeds from then on; `None`: never.
    pub(crate) healthy_after: Option<Duration>,
    /// Its configuration reads differently once it has run.
    pub(crate) is_odd: bool,
}

impl Behaviour {
    /// What an image's tag stands for: the word before its first digit.
    pub(crate) fn of(tag: &str) -> Self {
        let word = tag.trim_end_matches(|c: char| c.is_ascii_digit());
        let lasting = Self {
            ends: None,
            healthy_after: Some(Duration::ZERO),
            is_odd: false,
        };
        let ending = |ms, code| Self {
            ends: Some((Duration::from_millis(ms), code)),
            ..lasting
        };
        match word {
            "slow" => Self {
                healthy_after: Some(Duration::from_secs(4)),
                ..lasting
            },
            "sick" => Self {
                healthy_after: None,
                ..lasting
            },
            "odd" => Self {
                is_odd: true,
                ..lasting
            },
            "crash" => ending(700, 1),
            "flaky" => ending(45_000, 1),
            "brief" => ending(12_000, 2),
            "once" => ending(20_000, 0),
            "done" => ending(900, 0),
            "long" => ending(15_000, 0),
            "fails" => ending(600, 3),
            _ => lasting,
        }
    }

    /// Whether it runs on for good.
    pub(crate) fn lasts(&self) -> bool {
        self.ends.is_none()
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Container {
    pub(crate) live: LiveContainer,
    /// Somebody else's: the agent must not touch it.
    pub(crate) is_foreign: bool,
    /// The component that an operator adopted it as.
    pub(crate) adopted_as: Option<ComponentKey>,
    /// It was there when the registry was lost: nobody has to know of it.
    pub(crate) is_stray: bool,
    /// Whether it ran when it was captured last.
    pub(crate) captured: Option<bool>,
    pub(crate) behaviour: Behaviour,
    /// Its configuration as it was made.
    pub(crate) made_as: BTreeMap<String, String>,
    /// The networks that it joins.
    pub(crate) networks: BTreeSet<String>,
    /// Counts its starts, so that an end is that of its own run.
    run: u64,
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Container {
    pub(crate) fn runs(&self) -> bool {
        self.live.state.is_running()
    }

    /// The component that it was made for, where it is the agent's.
    pub(crate) fn key(&self) -> Option<ComponentKey> {
        let ours = self.live.labels.get(label::NODE).map(String::as_str) == Some(NODE);
        let made_for = || self.live.claimed_key().filter(|_| ours);
        let key = self.adopted_as.clone().or_else(made_for);
        key.filter(|_| !self.is_foreign)
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) containers: BTreeMap<ContainerId, Container>,
    /// Image ids by reference.
    pub(crate) images: BTreeMap<String, ImageId>,
    /// Networks with their labels.
    pub(crate) networks: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) volumes: BTreeMap<String, BTreeMap<String, String>>,
    /// Names that keep images.
    pub(crate) tags: BTreeMap<KeepTag, ImageId>,
    /// The images were lost once: what was kept of them is not kept again.
    pub(crate) lost_images: bool,
    /// Since when it does not answer.
    pub(crate) down_since: Option<Instant>,
    /// Grows with each restart of the engine: what was under way then is lost.
    epoch: u64,
    made: u64,
    /// What the agent changed, in order: the call, and the container.
    pub(crate) changed: Vec<(&'static str, Option<ContainerId>)>,
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Fine,
    /// Refused without effect.
    Refused,
    /// The connection broke before the request was sent.
    Unsent,
    /// The connection broke, and nothing was done.
    LostBefore,
    /// The connection broke after it was done.
    LostAfter,
    /// The client's deadline passed; the engine does it a while later.
    Late,
    /// It hangs until the client's deadline, and nothing is done.
    Hangs,
}

#[derive(Debug)]
pub(crate) struct Engine {
    state: Mutex<State>,
    events: Mutex<broadcast::Sender<EngineEvent>>,
    pub(crate) clock: Arc<SimClock>,
    pub(crate) model: Arc<Model>,
    pub(crate) trace: Arc<Trace>,
    dice: Dice,
    /// Faults in a thousand calls; none once the simulation lets things settle.
    faults: Mutex<u64>,
}

/// The deadline of the real client for quick calls.
const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) fn image_id(reference: &str) -> ImageId {
    ImageId::new(format!("sha256:{}", Digest::of(reference.as_bytes()).hex()))
}

impl Engine {
    pub(crate) fn new(
        seed: u64,
        clock: Arc<SimClock>,
        model: Arc<Model>,
        trace: Arc<Trace>,
        faults: u64,
    ) -> Self {
        Self {
            state: Mutex::default(),
            events: Mutex::new(broadcast::channel(256).0),
            clock,
            model,
            trace,
            dice: Dice::of(seed, "engine"),
            faults: Mutex::new(faults),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set_faults(&self, in_a_thousand: u64) {
        *self.faults.lock().unwrap() = in_a_thousand;
    }

    fn fate(&self, changes: bool) -> Fate {
        let faults = *self.faults.lock().unwrap();
        if !self.dice.chance(faults) {
            return Fate::Fine;
        }
        let of: &[Fate] = if changes {
            &[
                Fate::Refused,
                Fate::Unsent,
                Fate::LostBefore,
                Fate::LostAfter,
                Fate::LostAfter,
                Fate::Late,
                Fate::Late,
                Fate::Hangs,
            ]
        } else {
            &[Fate::Refused, Fate::Unsent, Fate::LostBefore, Fate::Hangs]
        };
        *self.dice.pick(of).unwrap()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<EngineEvent> {
        self.events.lock().unwrap().subscribe()
    }

    /// Sends an event, unless the seed loses it; some come twice.
    fn tell(&self, id: &ContainerId, name: &str, action: &str, exit_code: Option<i32>) {
        let faults = *self.faults.lock().unwrap();
        let times = if !self.dice.chance(faults * 3) {
            1
        } else {
            self.dice.below(3)
        };
        for _ in 0..times {
            let events = self.events.lock().unwrap();
            // Nobody may be listening.
            drop(events.send(EngineEvent {
                at: Some(self.now()),
                container: id.clone(),
                name: name.to_owned(),
                action: action.to_owned(),
                exit_code,
            }));
        }
    }

    /// One call that asks: after a while, unless the seed has a fault for it.
    pub(crate) async fn ask<T>(
        &self,
        call: &'static str,
        answer: impl FnOnce(&State) -> T,
    ) -> Result<T, RuntimeError> {
        self.reachable()?;
        let fate = self.fate(false);
        sleep(self.dice.millis(0, 4)).await;
        match fate {
            Fate::Fine => {}
            Fate::Refused => return Err(refused(call)),
            Fate::Unsent => return Err(unreachable()),
            Fate::Hangs => {
                sleep(DEADLINE).await;
                return Err(uncertain(call));
            }
            Fate::LostBefore | Fate::LostAfter | Fate::Late => return Err(uncertain(call)),
        }
        self.reachable()?;
        Ok(answer(&self.state()))
    }

    /// One call that changes something. What was begun goes on in the engine though the caller is gone.
    pub(crate) async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        call: &'static str,
        container: Option<ContainerId>,
        took: Duration,
        effect: impl FnOnce(&Self, &mut State) -> Result<T, RuntimeError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        self.reachable()?;
        let fate = self.fate(true);
        match fate {
            Fate::Refused => {
                sleep(self.dice.millis(0, 20)).await;
                return Err(refused(call));
            }
            Fate::Unsent => return Err(unreachable()),
            Fate::LostBefore => {
                sleep(self.dice.millis(0, 2000)).await;
                return Err(uncertain(call));
            }
            Fate::Hangs => {
                sleep(DEADLINE).await;
                return Err(uncertain(call));
            }
            Fate::Fine | Fate::LostAfter | Fate::Late => {}
        }
        self.state().changed.push((call, container.clone()));
        let (reply, answer) = oneshot::channel();
        let engine = Arc::clone(self);
        let epoch = self.state().epoch;
        let lock = container.and_then(|id| {
            self.state()
                .containers
                .get(&id)
                .map(|c| Arc::clone(&c.lock))
        });
        tokio::spawn(async move {
            let _held = match &lock {
                Some(lock) => Some(lock.lock().await),
                None => None,
            };
            sleep(took).await;
            let result = {
                let mut state = engine.state();
                if state.epoch == epoch && state.down_since.is_none() {
                    effect(&engine, &mut state)
                } else {
                    Err(uncertain(call))
                }
            };
            engine.model.check(&engine);
            drop(reply.send(result));
        });
        if fate == Fate::Late {
            // Less than the engine needs: the client gives up first.
            sleep(took / 2).await;
            return Err(uncertain(call));
        }
        let result = answer.await.unwrap_or_else(|_| Err(uncertain(call)));
        if fate == Fate::LostAfter {
            return Err(uncertain(call));
        }
        result
    }

    fn reachable(&self) -> Result<(), RuntimeError> {
        if self.state().down_since.is_some() {
            return Err(unreachable());
        }
        Ok(())
    }

    /// How long somebody takes between a look and an act.
    pub(crate) fn dallies(&self) -> Duration {
        if self.dice.chance(300) {
            return self.dice.millis(1, 4000);
        }
        Duration::ZERO
    }

    /// How long a call of this kind takes.
    pub(crate) fn takes(&self, from_ms: u64, to_ms: u64) -> Duration {
        if self.dice.chance(*self.faults.lock().unwrap()) {
            // Within what the agent reckons with after a crash.
            return self.dice.millis(500, 2900);
        }
        self.dice.millis(from_ms, to_ms)
    }

    pub(crate) fn make(
        &self,
        state: &mut State,
        request: &ContainerRequest,
    ) -> Result<ContainerId, RuntimeError> {
        if state
            .containers
            .values()
            .any(|c| c.live.name == request.name)
        {
            return Err(RuntimeError::NameTaken {
                name: request.name.clone(),
            });
        }
        let Some((reference, _)) = state
            .images
            .iter()
            .find(|(_, id)| **id == request.image)
            .map(|(reference, id)| (reference.clone(), id.clone()))
        else {
            return Err(RuntimeError::NotFound {
                what: format!("image {}", request.image),
            });
        };
        let spec = &request.spec;
        let fields = BTreeMap::from([
            ("image".to_owned(), request.image.to_string()),
            ("env".to_owned(), format!("{:?}", spec.env)),
            ("cmd".to_owned(), format!("{:?}", spec.cmd)),
            ("memory".to_owned(), "512 MiB".to_owned()),
            ("mounts".to_owned(), format!("{:?}", request.files)),
        ]);
        let live = self.put(
            state,
            &request.name,
            &reference,
            request.labels.clone(),
            false,
        );
        if let Some(container) = state.containers.get_mut(&live) {
            container.made_as.clone_from(&fields);
            container.live.fields = fields;
            if let Network::User(of) = &spec.network {
                container.networks = of.keys().cloned().collect();
            }
        }
        self.tell(&live, &request.name, "create", None);
        Ok(live)
    }

    /// Puts a container there.
    pub(crate) fn put(
        &self,
        state: &mut State,
        name: &str,
        reference: &str,
        labels: BTreeMap<String, String>,
        is_foreign: bool,
    ) -> ContainerId {
        state.made += 1;
        let id = ContainerId::new(format!("{:012x}{:052x}", state.made, 0));
        let tag = reference.rsplit(':').next().unwrap_or_default();
        let fields = BTreeMap::from([("memory".to_owned(), "512 MiB".to_owned())]);
        let container = Container {
            live: LiveContainer {
                id: id.clone(),
                name: name.to_owned(),
                image_id: image_id(reference),
                image_name: reference.to_owned(),
                state: ContainerState::Created,
                labels,
                started_at: None,
                finished_at: None,
                fields: fields.clone(),
                addresses: BTreeMap::new(),
            },
            is_foreign,
            adopted_as: None,
            is_stray: false,
            captured: None,
            behaviour: Behaviour::of(tag),
            made_as: fields,
            networks: BTreeSet::new(),
            run: 0,
            lock: Arc::default(),
        };
        state.containers.insert(id.clone(), container);
        id
    }

    /// Starts a container; its life goes on by itself from here.
    pub(crate) fn run(
        self: &Arc<Self>,
        state: &mut State,
        id: &ContainerId,
    ) -> Result<(), RuntimeError> {
        let now = self.now();
        let pid = u32::try_from(1000 + state.made).unwrap();
        let Some(container) = state.containers.get_mut(id) else {
            return Err(not_found(id));
        };
        if container.runs() {
            // One that is paused goes on.
            container.live.state = ContainerState::Running { pid: Some(pid) };
            return Ok(());
        }
        container.run += 1;
        let run = container.run;
        container.live.state = ContainerState::Running { pid: Some(pid) };
        container.live.started_at = Some(now);
        container.live.finished_at = None;
        if container.behaviour.is_odd {
            container
                .live
                .fields
                .insert("memory".to_owned(), "536870912".to_owned());
        }
        self.model.runs(container);
        let name = container.live.name.clone();
        if let Some((after, code)) = container.behaviour.ends {
            let (engine, id) = (Arc::clone(self), id.clone());
            tokio::spawn(async move {
                sleep(after).await;
                let ended = {
                    let mut state = engine.state();
                    let same = state
                        .containers
                        .get(&id)
                        .is_some_and(|c| c.runs() && c.run == run);
                    same && engine.end(&mut state, &id, code)
                };
                if ended {
                    engine.model.own_end(&engine, &id);
                }
            });
        }
        self.tell(id, &name, "start", None);
        Ok(())
    }

    /// Ends a container's process; tells whether it ran.
    pub(crate) fn end(&self, state: &mut State, id: &ContainerId, code: i32) -> bool {
        let now = self.now();
        let Some(container) = state.containers.get_mut(id) else {
            return false;
        };
        if !container.runs() {
            return false;
        }
        container.live.state = ContainerState::Exited { code, oom: false };
        container.live.finished_at = Some(now);
        let name = container.live.name.clone();
        self.trace
            .line(|| format!("engine: {name} ended with {code}"));
        self.tell(id, &name, "die", Some(code));
        true
    }

    pub(crate) fn rename(
        &self,
        state: &mut State,
        id: &ContainerId,
        name: &str,
    ) -> Result<(), RuntimeError> {
        let taken = state
            .containers
            .values()
            .any(|c| c.live.name == name && c.live.id != *id);
        if taken {
            return Err(RuntimeError::NameTaken {
                name: name.to_owned(),
            });
        }
        let container = state.containers.get_mut(id).ok_or_else(|| not_found(id))?;
        name.clone_into(&mut container.live.name);
        self.tell(id, name, "rename", None);
        Ok(())
    }

    pub(crate) fn take_away(&self, state: &mut State, id: &ContainerId) {
        if let Some(gone) = state.containers.remove(id) {
            self.tell(id, &gone.live.name, "destroy", None);
        }
    }

    /// The engine goes away; its containers may end with it.
    pub(crate) fn go_down(&self, with_containers: bool) {
        let mut state = self.state();
        state.down_since.get_or_insert_with(Instant::now);
        state.epoch += 1;
        *self.events.lock().unwrap() = broadcast::channel(256).0;
        if with_containers {
            self.model.taken_down(&state);
            let ids: Vec<ContainerId> = state.containers.keys().cloned().collect();
            for id in ids {
                self.end(&mut state, &id, 137);
            }
        }
    }

    pub(crate) fn come_up(&self) {
        self.state().down_since = None;
    }

    /// Everything that the engine held is gone, but what somebody else made.
    pub(crate) fn lose_store(&self, with_images: bool) {
        let mut state = self.state();
        self.model.store_emptied(&state);
        state.containers.clear();
        state.networks.clear();
        if with_images {
            state.images.clear();
            state.tags.clear();
            state.lost_images = true;
        }
    }

    /// Everything that the agent runs comes to harm.
    pub(crate) fn harm_all(&self) {
        let keys: Vec<ComponentKey> = self
            .state()
            .containers
            .values()
            .filter_map(Container::key)
            .collect();
        for key in keys {
            self.model.harm(&key);
        }
    }
}

pub(crate) fn not_found(id: &ContainerId) -> RuntimeError {
    RuntimeError::NotFound {
        what: format!("container {id}"),
    }
}

fn refused(call: &'static str) -> RuntimeError {
    RuntimeError::Refused {
        call,
        status: 500,
        message: "injected".to_owned(),
    }
}

fn unreachable() -> RuntimeError {
    RuntimeError::Unreachable {
        socket: "/run/sim.sock".to_owned(),
        cause: "connection refused".to_owned(),
    }
}

fn uncertain(call: &'static str) -> RuntimeError {
    RuntimeError::Uncertain {
        call,
        cause: "injected".to_owned(),
    }
}
