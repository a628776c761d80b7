//! One seed: a node, its operators, its engine and everything that goes wrong; then calm, and what has
//! to be true by then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use mcp_agent::planning::Lifecycle;
use mcp_agent::registry::{EventQuery, Trigger};
use mcp_spec::name::{ComponentKey, ServiceName, Target};
use mcp_spec::observed::{ContainerId, ContainerState, DesiredState, label};
use tokio::time::sleep;

use super::clock::SimClock;
use super::dice::Dice;
use super::engine::Engine;
use super::history::library;
use super::model::Model;
use super::node::Node;
use super::operators::{self, Wanted};
use super::trace::Trace;

/// The longest time to come to rest in: a compensation's patience, and then some.
const SETTLED: Duration = Duration::from_secs(1500);

/// Longer than any pause of the agent: a configuration is read again after five minutes, at the next resync.
const QUIET: Duration = Duration::from_secs(408);

/// How often a node is looked at while it comes to rest.
const LOOK: Duration = Duration::from_secs(34);

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
        (trace.lines(), trace.broken())
    })
}

struct World {
    node: Node,
    dice: Dice,
    requests: u64,
    trace: Arc<Trace>,
}

impl World {
    fn new(seed: u64, clock: Arc<SimClock>, trace: Arc<Trace>) -> Self {
        let dice = Dice::of(seed, "world");
        let history = Arc::clone(dice.pick(&library().histories).unwrap());
        let model = Arc::new(Model::new(Arc::clone(&history), Arc::clone(&trace)));
        let faults = *dice.pick(&[0, 5, 15, 40, 100]).unwrap();
        let engine = Arc::new(Engine::new(seed, clock, model, Arc::clone(&trace), faults));
        {
            let mut state = engine.state();
            let stranger = engine.put(
                &mut state,
                "stranger",
                "localhost/x:good1",
                BTreeMap::new(),
                true,
            );
            drop(engine.run(&mut state, &stranger));
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
            dice,
            requests: 0,
            trace,
        }
    }

    fn engine(&self) -> &Arc<Engine> {
        &self.node.engine
    }

    /// Everything that goes wrong.
    async fn live(&mut self) {
        let steps = 5 + self.dice.below(10);
        for _ in 0..steps {
            self.step().await;
            let longest = *self
                .dice
                .pick(&[5, 60, 900, 4000, 30_000, 120_000])
                .unwrap();
            sleep(self.dice.millis(0, longest)).await;
            if self.trace.broken().is_some() {
                return;
            }
            self.node.revive(&self.dice).await;
        }
    }

    async fn step(&mut self) {
        match self.dice.below(100) {
            0..=24 => self.deploy(),
            25..=33 => self.push(),
            34..=38 => {
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
            39..=42 => {
                let (target, jobs) = (self.target(), self.dice.chance(300));
                self.ask(Wanted::Rollback { target, jobs });
            }
            43..=46 => {
                let held = self.dice.chance(650);
                if let Some(key) = self.some_key() {
                    self.ask(Wanted::Hold(key, held));
                }
            }
            47..=49 => self.ask(Wanted::Cancel),
            50..=51 => self.ask(Wanted::Purge),
            52..=69 => {
                let steps = 1 + self.dice.below(*self.dice.pick(&[8, 40, 150]).unwrap());
                self.trace
                    .line(|| format!("world: the agent is killed at step {steps}"));
                self.node.life.kill_after(steps);
            }
            70..=71 => self.node.life.kill(),
            72..=73 => self.node.stop(),
            74..=78 => self.restart_engine().await,
            79 => self.lose_store().await,
            80..=89 => self.foreign_hand(),
            90..=92 => {
                let days = i64::try_from(self.dice.below(7300)).unwrap() - 3650;
                self.trace
                    .line(|| format!("world: the clock jumps by {days} days"));
                self.engine()
                    .clock
                    .jump(SignedDuration::from_hours(24 * days));
            }
            93..=94 => {
                self.trace
                    .line(|| "world: the disk is full for a while".to_owned());
                self.node.life.set_full(300);
                sleep(self.dice.millis(0, 5000)).await;
                self.node.life.set_full(0);
            }
            _ => {
                // A client goes away in the middle of its call.
                self.node.clients.abort_all();
            }
        }
    }

    fn service(&self) -> ServiceName {
        self.dice
            .pick(&["shop", "shop", "blog"])
            .unwrap()
            .parse()
            .unwrap()
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
        let engine = Arc::clone(self.engine());
        self.node
            .clients
            .spawn(operators::push(agent, engine, history, next));
    }

    fn ask(&mut self, wanted: Wanted) {
        let Some(agent) = self.node.agent() else {
            return;
        };
        self.requests += 1;
        let request = format!("r{}", self.requests);
        // Some ask twice, with the same id.
        let times = if self.dice.chance(100) { 2 } else { 1 };
        for _ in 0..times {
            let engine = Arc::clone(self.engine());
            let asked = operators::ask(Arc::clone(&agent), engine, wanted.clone(), request.clone());
            self.node.clients.spawn(asked);
        }
    }

    async fn restart_engine(&mut self) {
        let with_containers = self.dice.chance(350);
        self.trace
            .line(|| format!("world: the engine goes away, its containers too: {with_containers}"));
        if with_containers {
            self.harm_all();
        }
        self.engine().go_down(with_containers);
        sleep(self.dice.millis(10, 20_000)).await;
        self.engine().come_up();
        self.trace.line(|| "world: the engine is back".to_owned());
    }

    async fn lose_store(&mut self) {
        self.trace
            .line(|| "world: the engine's store is emptied".to_owned());
        self.harm_all();
        self.engine().go_down(true);
        let with_images = self.dice.chance(500);
        self.engine().lose_store(with_images);
        sleep(self.dice.millis(10, 5000)).await;
        self.engine().come_up();
    }

    fn harm_all(&self) {
        let keys: Vec<ComponentKey> = self
            .engine()
            .state()
            .containers
            .values()
            .filter_map(super::engine::Container::key)
            .collect();
        for key in keys {
            self.engine().model.harm(&key);
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
        self.trace.line(|| format!("foreign: {what} to {key}"));
        engine.model.harm(&key);
        let mut state = engine.state();
        match what {
            0 => {
                engine.end(&mut state, &id, 137);
            }
            1 => {
                engine.end(&mut state, &id, 0);
            }
            2 => engine.take_away(&mut state, &id),
            3 => {
                if let Some(container) = state.containers.get_mut(&id)
                    && container.runs()
                {
                    container.live.state = ContainerState::Paused;
                }
            }
            _ => {
                if let Some(container) = state.containers.get_mut(&id) {
                    let fields = &mut container.live.fields;
                    fields.insert("memory".to_owned(), "256 MiB".to_owned());
                }
            }
        }
    }

    /// The calm after it: the node comes to rest, stays there, and an agent that begins again changes
    /// nothing.
    async fn settle(&mut self) {
        self.trace.line(|| "world: calm".to_owned());
        self.engine().set_faults(0);
        self.engine().come_up();
        self.node.life.kill_after(0);
        self.node.life.set_full(0);
        self.node.begun().await;
        if self.node.agent().is_none() {
            self.node.begin_again().await;
        }
        self.come_to_rest().await;
        self.rested("after the calm");
        self.events_rise().await;
        self.node.begin_again().await;
        self.nothing_changes("after another start", Duration::from_secs(100))
            .await;
        self.rested("after another start");
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
                (!is_its_policys && !matches!(*call, "pull" | "remove" | "remove_network"))
                    .then(|| format!("{call} of {name:?}"))
            })
            .collect()
    }

    /// What has to be true of a node at rest.
    fn rested(&self, when: &str) {
        let model = &self.engine().model;
        let wrong = |what: String| self.trace.violation(format!("{when}: {what}"));
        for row in model.open_deployments() {
            // What cannot be prepared, as a missing image, is tried again now and then.
            if row.trigger == Trigger::Auto && row.line_at.is_none() {
                continue;
            }
            wrong(format!(
                "deployment {} of {} is {}",
                row.id.short(),
                row.service,
                row.state.as_str()
            ));
        }
        let state = self.engine().state();
        let rows = model.rows();
        for row in &rows {
            let Some(container) = state.containers.get(&row.container) else {
                continue;
            };
            let key = &row.key;
            if container.live.name != key.container_name() {
                wrong(format!("{key} bears the name {}", container.live.name));
            }
            let runs = container.runs();
            match row.wanted() {
                DesiredState::Running
                    if !row.spec.kind.is_job()
                        && !runs
                        && container.behaviour.lasts()
                        && !finished(container, row) =>
                {
                    wrong(format!("{key} does not run: {:?}", container.live.state));
                }
                DesiredState::Stopped if runs => wrong(format!("{key} is stopped and runs")),
                _ => {}
            }
        }
        for container in state.containers.values() {
            let Some(key) = container.key() else { continue };
            let is_registered = rows.iter().any(|row| row.container == container.live.id);
            if container.runs() && !is_registered && container.behaviour.lasts() {
                wrong(format!(
                    "{} ({key}) runs and is not registered",
                    container.live.name
                ));
            }
        }
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

/// Whether its restart policy takes its end for good.
fn finished(container: &super::engine::Container, row: &mcp_agent::registry::DeployedRow) -> bool {
    mcp_spec::drift::has_finished(row.spec.restart, &container.live.state)
}
