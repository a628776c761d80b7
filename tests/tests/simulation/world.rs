//! One seed: a node, its operators, its engine and everything that goes wrong; then calm, and what has
//! to be true by then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use mcp_agent::adoption::Chosen;
use mcp_agent::planning::Lifecycle;
use mcp_agent::registry::EventQuery;
use mcp_spec::component::Reconcile;
use mcp_spec::name::{ComponentKey, ServiceName, Target};
use mcp_spec::observed::{ContainerId, ContainerState, label};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::clock::SimClock;
use super::dice::Dice;
use super::engine::Engine;
use super::hands::ShortName as _;
use super::history::{NODE, library};
use super::life::Fuse;
use super::model::Model;
use super::node::Node;
use super::operators::{self, Wanted};
use super::profile::{Act, Profile};
use super::trace::Trace;

/// The longest time to come to rest in: a compensation's patience, and then some.
const SETTLED: Duration = Duration::from_secs(1500);

/// Longer than any pause of the agent: a configuration is read again after five minutes, at the next resync.
const QUIET: Duration = Duration::from_secs(408);

/// How often a node is looked at while it comes to rest.
const LOOK: Duration = Duration::from_secs(34);

/// A container that nobody knows, under a name that a component might have.
const STRANGER: &str = "shop-extra";

/// How often somebody undoes what the agent repairs, and how long they wait for each repair.
const UNDONE: u32 = 9;
const REPAIR: Duration = Duration::from_secs(330);

/// Runs one seed; tells what happened, and which rule was broken.
pub(crate) fn run(seed: u64, aloud: bool) -> (Vec<String>, Option<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let clock = Arc::new(SimClock::new());
        let trace = Arc::new(Trace::new(Arc::clone(&clock), aloud));
        let mut world = World::new(seed, clock, Arc::clone(&trace));
        world.live().await;
        if trace.broken().is_none() {
            world.settle().await;
        }
        mcp_agent::testing::set_pace(None);
        mcp_agent::testing::set_witness(None);
        (trace.lines(), trace.broken())
    })
}

struct World {
    node: Node,
    profile: &'static Profile,
    dice: Dice,
    /// What was asked, by request id.
    asked: Vec<(String, Wanted)>,
    /// Those who undo what the agent repairs.
    contests: JoinSet<()>,
    trace: Arc<Trace>,
}

impl World {
    fn new(seed: u64, clock: Arc<SimClock>, trace: Arc<Trace>) -> Self {
        let dice = Dice::of(seed, "world");
        let profile = Profile::of(seed);
        trace.line(|| format!("world: {}", profile.name));
        let history = library().of(profile.theme, &dice);
        let model = Arc::new(Model::new(Arc::clone(&history), Arc::clone(&trace)));
        let faults = *dice.pick(profile.faults).unwrap();
        let engine = Arc::new(Engine::new(seed, clock, model, Arc::clone(&trace), faults));
        {
            let mut state = engine.state();
            let stranger = engine.put(
                &mut state,
                STRANGER,
                "localhost/x:good1",
                BTreeMap::new(),
                true,
            );
            if dice.chance(500) {
                drop(engine.run(&mut state, &stranger));
            }
            // Labels are hints, no authority: this one is another node's.
            let labels = BTreeMap::from([
                (label::NODE.to_owned(), "elsewhere".to_owned()),
                (label::SERVICE.to_owned(), "shop".to_owned()),
                (label::COMPONENT.to_owned(), "web".to_owned()),
            ]);
            let guest = engine.put(&mut state, "guest", "localhost/x:good1", labels, true);
            drop(engine.run(&mut state, &guest));
            if dice.chance(150) {
                // It bears a name that the agent wants, and labels that it might take for its own.
                let (service, component) = *dice
                    .pick(&[("shop", "web"), ("shop", "db"), ("blog", "app")])
                    .unwrap();
                let labels = BTreeMap::from([
                    (label::NODE.to_owned(), "elsewhere".to_owned()),
                    (label::SERVICE.to_owned(), service.to_owned()),
                    (label::COMPONENT.to_owned(), component.to_owned()),
                ]);
                let name = format!("{service}-{component}");
                engine.put(&mut state, &name, "localhost/x:good1", labels, true);
            }
            if dice.chance(200) {
                state.networks.insert("shop".to_owned(), BTreeMap::new());
            }
        }
        Self {
            node: Node::new(seed, engine, history),
            profile,
            dice,
            asked: Vec::new(),
            contests: JoinSet::new(),
            trace,
        }
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.node.engine
    }

    /// Everything that goes wrong.
    async fn live(&mut self) {
        let steps = 4 + self.dice.below(8);
        for _ in 0..steps {
            self.step().await;
            let longest = *self.dice.pick(self.profile.pauses).unwrap();
            sleep(self.dice.millis(0, longest)).await;
            if self.trace.broken().is_some() {
                return;
            }
            if self.node.revive(&self.dice).await && self.dice.chance(self.profile.recovery) {
                let acts = 1 + self.dice.below(12);
                self.node.life.set_fuse(Fuse::Acts(acts));
            }
        }
    }

    async fn step(&mut self) {
        match self.profile.act(&self.dice) {
            Act::Deploy => self.deploy(),
            Act::Push => self.push(),
            Act::Lifecycle => {
                let lifecycle = *self
                    .dice
                    .pick(&[
                        Lifecycle::Stop,
                        Lifecycle::Stop,
                        Lifecycle::Start,
                        Lifecycle::Restart,
                    ])
                    .unwrap();
                let service = self.service();
                self.ask(Wanted::Lifecycle(lifecycle, service));
            }
            Act::Rollback => {
                let (target, jobs) = (self.target(), self.dice.chance(300));
                self.ask(Wanted::Rollback { target, jobs });
            }
            Act::Hold => {
                let held = self.dice.chance(650);
                if let Some(key) = self.some_key() {
                    self.ask(Wanted::Hold(key, held));
                }
            }
            Act::Overrule => {
                self.ask(Wanted::Overrule);
                // Something has to come that can be overruled.
                if self.dice.chance(500) {
                    self.push();
                } else {
                    self.foreign_hand();
                }
            }
            Act::Cancel => self.ask(Wanted::Cancel),
            Act::Purge => self.ask(Wanted::Purge),
            Act::AskAgain => {
                if let Some((request, wanted)) = self.dice.pick(&self.asked).cloned() {
                    self.ask_as(wanted, request);
                }
            }
            Act::KillSoon => {
                let steps = 1 + self.dice.below(*self.dice.pick(&[8, 40, 150]).unwrap());
                self.trace
                    .line(|| format!("world: the agent is killed at step {steps}"));
                self.node.life.set_fuse(Fuse::Steps(steps));
            }
            Act::KillInDeployment => {
                let acts = 1 + self.dice.below(*self.dice.pick(&[10, 25, 50]).unwrap());
                self.trace
                    .line(|| format!("world: the agent is killed at act {acts}"));
                self.node.life.set_fuse(Fuse::Acts(acts));
                // Most die in what comes next.
                if self.dice.chance(600) {
                    self.deploy();
                }
            }
            Act::Kill => self.node.life.kill(),
            Act::End => self.node.stop(),
            Act::PowerFails => self.node.drive.fail(),
            Act::PowerFailsSoon => {
                let steps = 1 + self.dice.below(*self.dice.pick(&[6, 20]).unwrap());
                self.trace
                    .line(|| format!("world: the power fails at step {steps} of the disk"));
                self.node.drive.fail_after(steps);
                if self.dice.chance(400) {
                    self.push();
                } else if self.dice.chance(600) {
                    self.deploy();
                }
            }
            Act::EngineGoesAway => self.restart_engine().await,
            Act::EngineLosesAll => self.lose_store().await,
            Act::RegistryLost => {
                // What is under way then is nobody's to bring to an end: that is another matter.
                if self.node.agent().is_some() && !self.engine().model.is_deploying() {
                    self.trace.line(|| "world: the registry is lost".to_owned());
                    self.node.life.kill();
                    self.node.begin_without_registry().await;
                }
            }
            Act::ForeignHand => self.foreign_hand(),
            Act::Contest => {
                self.contest();
                sleep(self.dice.millis(0, 400_000)).await;
            }
            Act::Adopt => self.adopt(),
            Act::Forget => {
                if let Some(ComponentKey { service, component }) = self.some_key() {
                    self.ask(Wanted::Forget(Target {
                        node: None,
                        service,
                        component: Some(component),
                    }));
                    sleep(self.dice.millis(0, 3000)).await;
                    self.move_what_was_let_go();
                }
            }
            Act::Forgery => self.forge(),
            Act::ClockJumps => {
                let days = i64::try_from(self.dice.below(7300)).unwrap() - 3650;
                self.trace
                    .line(|| format!("world: the clock jumps by {days} days"));
                self.engine().model.clock_jumps();
                self.engine()
                    .clock
                    .jump(SignedDuration::from_hours(24 * days));
            }
            Act::DiskFull => {
                self.trace
                    .line(|| "world: the disk is full for a while".to_owned());
                self.node.life.set_full(300);
                if self.dice.chance(600) {
                    self.deploy();
                }
                sleep(self.dice.millis(0, 5000)).await;
                self.node.life.set_full(0);
            }
            // A client goes away in the middle of its call.
            Act::ClientsGo => self.node.clients.abort_all(),
        }
    }

    fn service(&self) -> ServiceName {
        let name = if self.dice.chance(self.profile.auto) {
            "blog"
        } else {
            "shop"
        };
        name.parse().unwrap()
    }

    fn target(&self) -> Target {
        let service = self.service();
        let component = self.dice.chance(250).then(|| {
            let of: &[&str] = if service.as_str() == "shop" {
                &["db", "api", "web", "migrate"]
            } else {
                &["app", "side"]
            };
            self.dice.pick(of).unwrap().parse().unwrap()
        });
        Target {
            node: None,
            service,
            component,
        }
    }

    fn some_key(&self) -> Option<ComponentKey> {
        let rows = self.engine().model.rows();
        self.dice.pick(&rows).map(|row| row.key.clone())
    }

    /// Whoever has a container of their own again gives it a name of their own.
    fn move_what_was_let_go(&self) {
        let engine = self.engine();
        let mut state = engine.state();
        let gone: Vec<ContainerId> = state
            .containers
            .values()
            .filter(|container| container.is_foreign && container.live.claimed_key().is_some())
            .filter(|container| {
                container.live.labels.get(label::NODE).map(String::as_str) == Some(NODE)
            })
            .map(|container| container.live.id.clone())
            .collect();
        for id in gone {
            if self.dice.chance(600) {
                let name = format!("theirs-{}", id.short_name().trim_start_matches('#'));
                self.trace.line(|| format!("foreign: {name} is its name"));
                drop(engine.rename(&mut state, &id, &name));
            }
        }
    }

    /// An operator names a service, or any container at all.
    fn adopt(&mut self) {
        let rows = self.engine().model.rows();
        let mut names: Vec<String> = Vec::new();
        {
            let state = self.engine().state();
            for container in state.containers.values() {
                let id = &container.live.id;
                let is_left =
                    container.key().is_some() && rows.iter().all(|row| row.container != *id);
                // What deployments left behind is rare, and not to be had.
                let times = if is_left { 8 } else { 1 };
                names.extend(std::iter::repeat_n(container.live.name.clone(), times));
            }
        }
        let service = self.service();
        let by_name = Chosen::ByName(Target {
            node: None,
            service: service.clone(),
            component: None,
        });
        let key = ComponentKey::new(service, "spare".parse().unwrap());
        let chosen = match self.dice.pick(&names) {
            Some(name) if self.dice.chance(400) => Chosen::As(name.clone(), key),
            _ => by_name,
        };
        self.ask(Wanted::Adopt(chosen));
    }

    /// Somebody who wants a component otherwise than the agent does, and comes back each time.
    fn contest(&mut self) {
        let rows = self.engine().model.rows();
        let of_auto: Vec<_> = rows
            .into_iter()
            .filter(|row| row.settings.reconcile == Reconcile::Auto)
            .collect();
        let Some(key) = self.dice.pick(&of_auto).map(|row| row.key.clone()) else {
            return;
        };
        let what = *self.dice.pick(&[2, 3, 4, 4]).unwrap();
        let pauses: Vec<Duration> = (0..UNDONE).map(|_| self.dice.millis(20, 2500)).collect();
        self.trace
            .line(|| format!("foreign: {what} to {key}, again and again"));
        let engine = Arc::clone(self.engine());
        self.contests.spawn(async move {
            for pause in pauses {
                let repaired = tokio::time::timeout(REPAIR, repaired(&engine, &key));
                let Ok(id) = repaired.await else { return };
                sleep(pause).await;
                meddle(&engine, &id, &key, what);
            }
        });
    }

    fn deploy(&mut self) {
        let target = self.target();
        let revision = self.dice.chance(120).then(|| {
            self.dice
                .pick(&self.node.history.revisions)
                .unwrap()
                .commit
                .to_string()
        });
        let force = self.dice.chance(80);
        self.ask(Wanted::Deploy {
            target,
            revision,
            force,
        });
    }

    fn push(&mut self) {
        let Some(agent) = self.node.agent() else {
            return;
        };
        let history = Arc::clone(&self.node.history);
        let head = agent.revisions.head();
        let at = history
            .revisions
            .iter()
            .position(|step| Some(step.commit) == head);
        let next = at.map_or(0, |at| at + 1 + usize::from(self.dice.chance(300)));
        if next >= history.revisions.len() {
            return;
        }
        let (engine, life) = (Arc::clone(self.engine()), Arc::clone(&self.node.life));
        self.node
            .clients
            .spawn(operators::push(agent, engine, history, life, next));
    }

    fn ask(&mut self, wanted: Wanted) {
        let request = format!("r{}", self.asked.len());
        self.asked.push((request.clone(), wanted.clone()));
        // Some ask twice, with the same id.
        let times = if self.dice.chance(100) { 2 } else { 1 };
        for _ in 0..times {
            self.ask_as(wanted.clone(), request.clone());
        }
    }

    fn ask_as(&mut self, wanted: Wanted, request: String) {
        let Some(agent) = self.node.agent() else {
            return;
        };
        let engine = Arc::clone(self.engine());
        let asked = operators::ask(agent, engine, wanted, request);
        self.node.clients.spawn(asked);
    }

    async fn restart_engine(&mut self) {
        let with_containers = self.dice.chance(350);
        self.trace
            .line(|| format!("world: the engine goes away, its containers too: {with_containers}"));
        if with_containers {
            self.engine().harm_all();
        }
        self.engine().go_down(with_containers);
        sleep(self.dice.millis(10, 20_000)).await;
        self.engine().come_up();
        self.trace.line(|| "world: the engine is back".to_owned());
    }

    async fn lose_store(&mut self) {
        self.trace
            .line(|| "world: the engine's store is emptied".to_owned());
        self.engine().harm_all();
        self.engine().go_down(true);
        let with_images = self.dice.chance(500);
        self.engine().lose_store(with_images);
        sleep(self.dice.millis(10, 5000)).await;
        self.engine().come_up();
    }

    /// Somebody copies a container of the agent's, with its labels, for a node of their own.
    fn forge(&mut self) {
        let engine = Arc::clone(self.engine());
        let mut state = engine.state();
        let ours: Vec<BTreeMap<String, String>> = state
            .containers
            .values()
            .filter(|container| container.key().is_some())
            .map(|container| container.live.labels.clone())
            .collect();
        let Some(mut labels) = self.dice.pick(&ours).cloned() else {
            return;
        };
        self.trace
            .line(|| "foreign: a copy for another node".to_owned());
        labels.insert(label::NODE.to_owned(), format!("{NODE}-2"));
        engine.model.claimed();
        let name = format!("copy-{}", state.containers.len());
        let copy = engine.put(&mut state, &name, "localhost/x:good1", labels, true);
        if self.dice.chance(500) {
            drop(engine.run(&mut state, &copy));
        }
    }

    /// Somebody who knows nothing of the agent.
    fn foreign_hand(&mut self) {
        let engine = Arc::clone(self.engine());
        let ours: Vec<(ContainerId, ComponentKey)> = engine
            .state()
            .containers
            .values()
            .filter_map(|container| Some((container.live.id.clone(), container.key()?)))
            .collect();
        let Some((id, key)) = self.dice.pick(&ours).cloned() else {
            return;
        };
        let what = self.dice.below(5);
        meddle(&engine, &id, &key, what);
    }

    /// The calm after it: the node comes to rest, stays there, and an agent that begins again changes
    /// nothing.
    async fn settle(&mut self) {
        self.trace.line(|| "world: calm".to_owned());
        self.contests.shutdown().await;
        self.engine().set_faults(0);
        self.engine().come_up();
        self.node.life.set_fuse(Fuse::Off);
        self.node.life.set_full(0);
        self.node.drive.fail_after(0);
        self.node.begun().await;
        if self.node.agent().is_none() {
            self.node.begin_again().await;
        }
        self.come_to_rest().await;
        self.rested("after the calm");
        self.events_rise().await;
        let rows = self.engine().model.rows();
        self.node.begin_again().await;
        self.nothing_changes("after another start", Duration::from_secs(100))
            .await;
        self.rested("after another start");
        self.engine().model.swept(self.engine());
        if self.engine().model.rows() != rows {
            self.trace
                .violation("another start changed what is deployed".to_owned());
        }
    }

    fn rested(&self, when: &str) {
        let Some(registry) = self.node.life.registry.get() else {
            return;
        };
        let engine = self.engine();
        engine
            .model
            .rested(engine, registry, self.node.data(), when);
    }

    /// Waits until the agent has changed nothing for longer than any pause of its is: a node that
    /// does not come to rest loops.
    async fn come_to_rest(&self) {
        let longest = self.engine().clock.elapsed() + SETTLED;
        let mut quiet = Duration::ZERO;
        while quiet < QUIET {
            let before = self.engine().state().changed.len();
            sleep(LOOK).await;
            quiet = if self.changes_since(before).is_empty() {
                quiet + LOOK
            } else {
                Duration::ZERO
            };
            if self.engine().clock.elapsed() > longest {
                self.trace
                    .violation("the node does not come to rest".to_owned());
                return;
            }
        }
    }

    async fn nothing_changes(&self, when: &str, wait: Duration) {
        let before = self.engine().state().changed.len();
        sleep(wait).await;
        for change in self.changes_since(before) {
            self.trace.violation(format!("{when}: {change}"));
        }
    }

    /// What the agent changed, but for what ends by itself and is started again, for images that cannot
    /// be pulled, and for leftovers that a sweep takes away: whose they are the model has judged.
    fn changes_since(&self, before: usize) -> Vec<String> {
        let state = self.engine().state();
        state.changed[before..]
            .iter()
            .filter_map(|(call, id)| {
                let container = id.as_ref().and_then(|id| state.containers.get(id));
                let is_its_policys =
                    *call == "start" && container.is_some_and(|c| !c.behaviour.lasts());
                let name = container.map(|c| c.live.name.clone());
                (!is_its_policys
                    && !matches!(
                        *call,
                        "pull" | "tag" | "untag" | "remove" | "remove_network"
                    ))
                .then(|| format!("{call} of {name:?}"))
            })
            .collect()
    }

    async fn events_rise(&self) {
        let Some(agent) = self.node.agent() else {
            self.trace
                .violation("the agent is not there at rest".to_owned());
            return;
        };
        let query = EventQuery {
            after: None,
            since: None,
            targets: Vec::new(),
            limit: 10_000,
            newest: false,
        };
        let events = agent.registry.events(query).await.unwrap();
        for pair in events.windows(2) {
            if pair[1].seq != pair[0].seq + 1 {
                self.trace
                    .violation(format!("event {} follows {}", pair[1].seq, pair[0].seq));
            }
        }
    }
}

/// Waits until a component runs as it was made.
async fn repaired(engine: &Engine, key: &ComponentKey) -> ContainerId {
    loop {
        let rows = engine.model.rows();
        let row = rows.into_iter().find(|row| row.key == *key);
        let as_made = row.filter(|row| {
            let state = engine.state();
            let container = state.containers.get(&row.container);
            container.is_some_and(|container| {
                container.runs()
                    && container.live.state != ContainerState::Paused
                    && container.live.fields == container.made_as
            })
        });
        if let Some(row) = as_made {
            return row.container;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

/// What somebody who knows nothing of the agent does to a container.
fn meddle(engine: &Engine, id: &ContainerId, key: &ComponentKey, what: u64) {
    engine.trace.line(|| format!("foreign: {what} to {key}"));
    engine.model.harm(key);
    let mut state = engine.state();
    match what {
        0 => {
            engine.end(&mut state, id, 137);
        }
        1 => {
            engine.end(&mut state, id, 0);
        }
        2 => engine.take_away(&mut state, id),
        3 => {
            if let Some(container) = state.containers.get_mut(id)
                && container.runs()
            {
                container.live.state = ContainerState::Paused;
            }
        }
        _ => {
            // What was not started yet is not known by its looks.
            if let Some(container) = state.containers.get_mut(id)
                && container.live.state != ContainerState::Created
            {
                let fields = &mut container.live.fields;
                fields.insert("memory".to_owned(), "256 MiB".to_owned());
            }
        }
    }
}
