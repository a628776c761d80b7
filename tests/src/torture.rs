//! Torture: the real agent is killed with SIGKILL at random moments of deployments on a real engine, and
//! now and then the engine with it; afterwards the node is looked at from outside.
//!
//! A run is a function of its seed as far as the machine allows: the same operations and moments, on an
//! engine that is never twice as fast.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::definitions::{component, service};
use crate::engine::Lane;
use crate::fleet::Fleet;

pub mod look;
pub mod observer;

pub use look::Look;
pub use observer::{Doubled, Gap, Observer};

/// The service that is tortured, and the node that it is on.
const SERVICE: &str = "torture";

/// How long a node may take to be in order after a kill: a sweep of what is left over comes within
/// seconds, a restart by the restart policy after ten, a killed dockerd takes its containers with it.
const IN_ORDER: Duration = Duration::from_secs(120);

/// When an engine that was killed is looked at more closely.
const STUCK: Duration = Duration::from_secs(20);

/// Random numbers: the generator of Steele, Lea and Flood (`SplitMix64`), which needs no library.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// A generator that gives the same numbers for the same seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }
}

/// What an operator does when the agent is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Another version of one component.
    One,
    /// Another version of all components.
    All,
    /// A version that ends at once.
    Bad,
    /// Another content of a mounted file.
    File,
    /// A component less, or one more.
    Drop,
    /// A component under another name, with the same port of the host.
    Rename,
    /// `mcp restart`
    Restart,
    /// `mcp stop`
    Stop,
    /// `mcp start`
    Start,
    /// `mcp rollback`
    Rollback,
}

/// What came of one round.
#[derive(Debug)]
pub struct Round {
    /// What was done.
    pub op: Op,
    /// When the agent was killed, from the operator's command on.
    pub after: Duration,
    /// Whether the command was still waiting for its end then.
    pub in_the_midst: bool,
    /// Whether the engine was killed as well.
    pub with_engine: bool,
    /// Whether the engine held on to a port after it was killed, and had to be restarted once more.
    pub engine_again: bool,
    /// How the deployment ended, by the history; `none` where the kill came before it began.
    pub outcome: String,
    /// How long the node took to be in order again.
    pub took: Duration,
    /// How long nothing of a component ran that should have, by component.
    pub down: BTreeMap<String, Duration>,
    /// What was not in order.
    pub wrong: Vec<String>,
    /// Where something was not: the last deployment and the end of the agent's log.
    pub evidence: String,
}

/// A tortured node.
#[derive(Debug)]
pub struct Torture {
    fleet: Fleet,
    lane: Lane,
    dice: Dice,
    observer: Observer,
    stranger: String,
    has_web: bool,
    renamed: bool,
    bad: bool,
    stopped: bool,
    spares_engine: bool,
    versions: [u64; 3],
    file: u64,
    /// Longest time from a command to the kill: follows how long commands take here.
    reach_ms: u64,
}

impl Torture {
    /// A node on the shared engine of `lane`, with a service of three components and a foreign container
    /// beside it.
    ///
    /// # Errors
    ///
    /// Where it cannot be set up.
    pub fn new(lane: Lane, seed: u64) -> Result<Self> {
        lane.shared().enter()?;
        let fleet = Fleet::with_node(lane, SERVICE)?;
        let stranger = lane.shared().run_foreign("torture-stranger", &[])?;
        let torture = Self {
            fleet,
            lane,
            dice: Dice(seed),
            observer: Observer::start(),
            stranger: stranger.trim().to_owned(),
            has_web: true,
            renamed: false,
            bad: false,
            stopped: false,
            spares_engine: false,
            versions: [1, 1, 1],
            file: 0,
            reach_ms: 2500,
        };
        torture.write();
        torture.fleet.mcp(&["sync"]).ok();
        torture.fleet.mcp(&["deploy", SERVICE]).ok();
        Ok(torture)
    }

    fn write(&self) {
        let version = |at: usize| format!("v{}", self.versions[at]);
        let variable = self.observer.variable();
        let calm = |name: &str| {
            format!(
                "ready_for = \"300ms\"\nstop_timeout = \"2s\"\nenv = {{ {variable} = \"{name}\" }}\n"
            )
        };
        let api = format!(
            "{}volumes = [\"data:/data\"]\nfiles = [{{ from = \"files/{SERVICE}/api.conf\", to = \"/etc/api.conf\", on_change = \"restart\" }}]\n",
            calm("api")
        );
        let end = if self.bad {
            "cmd = [\"/bin/false\"]\n"
        } else {
            ""
        };
        let name = if self.renamed { "front" } else { "web" };
        let front = format!(
            "{}depends_on = [\"api\"]\nports = [\"127.0.0.1:19080:8080\"]\n",
            calm(name)
        );
        let mut components = vec![
            component("api", &version(0), &api),
            component("worker", &version(2), &calm("worker")),
        ];
        if self.has_web {
            components.push(component(name, &version(1), &format!("{front}{end}")));
        }
        self.fleet.write(
            &format!("files/{SERVICE}/api.conf"),
            &format!("{}\n", self.file),
        );
        let file = format!("services/{SERVICE}.toml");
        self.fleet
            .write(&file, &service(SERVICE, SERVICE, &components));
    }

    fn choose(&mut self) -> Op {
        if self.stopped && self.dice.below(3) > 0 {
            return Op::Start;
        }
        match self.dice.below(20) {
            0..=3 => Op::One,
            4..=8 => Op::All,
            9..=11 => Op::Bad,
            12 => Op::File,
            13 => Op::Drop,
            14..=15 => Op::Rename,
            16 => Op::Restart,
            17 => Op::Stop,
            18 => Op::Start,
            _ => Op::Rollback,
        }
    }

    /// Changes the definition as the operation asks, and gives the command and what it may end.
    fn begin(&mut self, op: Op) -> (Vec<&'static str>, BTreeSet<String>) {
        let mut ends = BTreeSet::new();
        let bad_before = std::mem::take(&mut self.bad);
        let next = |version: u64, step: u64| (version - 1 + step) % 3 + 1;
        match op {
            Op::One => {
                let which = if self.has_web { 1 } else { 2 };
                self.versions[which] = next(self.versions[which], 1 + self.dice.below(2));
            }
            Op::All => self.versions = self.versions.map(|version| next(version, 1)),
            Op::Bad => {
                self.bad = !bad_before;
                self.has_web = true;
                self.versions[0] = next(self.versions[0], 1);
            }
            Op::File => self.file += 1,
            Op::Drop => self.has_web = !self.has_web,
            Op::Rename => self.renamed = !self.renamed,
            Op::Restart | Op::Stop | Op::Start | Op::Rollback => {
                let word = match op {
                    Op::Restart => "restart",
                    Op::Stop => "stop",
                    Op::Start => "start",
                    _ => "rollback",
                };
                if op == Op::Stop {
                    ends.extend(["api", "web", "front", "worker"].map(str::to_owned));
                }
                return (vec![word, SERVICE], ends);
            }
        }
        // Whatever the definition no longer has goes with a deploy, and may have been left by an earlier
        // one that was cut off.
        for (name, is_defined) in [
            ("web", self.has_web && !self.renamed),
            ("front", self.has_web && self.renamed),
        ] {
            if !is_defined {
                ends.insert(name.to_owned());
            }
        }
        self.write();
        (vec!["deploy", SERVICE, "--yes"], ends)
    }

    /// Kills the agent alone. A dockerd that is killed while it starts a container may hold on to that
    /// container's task for good, and no agent can mend that: a short run that must pass leaves it out.
    #[must_use]
    pub fn sparing_the_engine(mut self) -> Self {
        self.spares_engine = true;
        self
    }

    /// One operation, one kill, and a look at what is left.
    ///
    /// # Errors
    ///
    /// Where something fails that was not under test.
    pub fn round(&mut self) -> Result<Round> {
        let op = self.choose();
        let before = Look::at(&self.fleet, self.lane, SERVICE)?;
        let deployments = self.deployments();
        let (command, ends) = self.begin(op);
        drop(self.fleet.mcp(&["sync"]));
        let began = Instant::now();
        let mut client = self.fleet.mcp_spawn(&command)?;
        let after = Duration::from_millis(self.dice.below(self.reach_ms));
        // The moment is what is tortured with: there is nothing to wait for.
        std::thread::sleep(after.saturating_sub(began.elapsed()));
        let in_the_midst = client.try_wait()?.is_none();
        let with_engine = self.dice.below(8) == 0 && !self.spares_engine;
        if with_engine {
            self.lane.shared().kill()?;
        }
        self.fleet.node_mut(SERVICE).kill()?;
        drop(client.kill());
        client.wait()?;
        self.reach_ms = if in_the_midst {
            (self.reach_ms * 21 / 20).min(8000)
        } else {
            (self.reach_ms * 4 / 5).max(200)
        };
        let killed = Instant::now();
        if with_engine {
            self.lane.shared().up()?;
        }
        self.fleet.node_mut(SERVICE).serve()?;
        let mut engine_again = false;
        let wrong = loop {
            let wrong = self.wrong(&before, &ends)?;
            if wrong.is_empty() || killed.elapsed() > IN_ORDER {
                break wrong;
            }
            if with_engine && !engine_again && killed.elapsed() > STUCK && self.is_stuck() {
                engine_again = true;
                self.lane.shared().restart()?;
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        let took = killed.elapsed();
        let mut wrong = wrong;
        wrong.extend(self.doubled(began));
        let down = self.down(began, &before, &ends);
        let evidence = if wrong.is_empty() {
            String::new()
        } else {
            self.evidence()
        };
        let outcome = self
            .deployments()
            .into_iter()
            .find(|(id, _)| !deployments.contains_key(id))
            .map_or_else(|| "none".to_owned(), |(_, outcome)| outcome);
        if outcome == "deployed" && matches!(op, Op::Stop | Op::Start) {
            self.stopped = op == Op::Stop;
        } else if outcome == "deployed" && op != Op::Restart {
            self.stopped = false;
        }
        Ok(Round {
            op,
            after,
            in_the_midst,
            with_engine,
            engine_again,
            outcome,
            took,
            down,
            wrong,
            evidence,
        })
    }

    /// At no moment two generations of a component run.
    fn doubled(&self, since: Instant) -> Vec<String> {
        let doubled = self.observer.doubled(since);
        doubled
            .into_iter()
            .map(|doubled| {
                format!(
                    "two generations of {} ran {} ms after the command",
                    doubled.component,
                    (doubled.at - since).as_millis()
                )
            })
            .collect()
    }

    /// How long nothing ran of what should have, in this round.
    fn down(
        &self,
        since: Instant,
        before: &Look,
        ends: &BTreeSet<String>,
    ) -> BTreeMap<String, Duration> {
        let mut down: BTreeMap<String, Duration> = BTreeMap::new();
        for gap in self.observer.gaps(since) {
            if before.running(&gap.component) > 0 && !ends.contains(&gap.component) {
                *down.entry(gap.component.clone()).or_default() += gap.lasted();
            }
        }
        down
    }

    /// Whether dockerd holds on to a port or a task of a container that it was starting when it was
    /// killed: it lets go of it when it is started again, and nobody else can make it.
    fn is_stuck(&self) -> bool {
        let log = self.fleet.node(SERVICE).log();
        self.lane == Lane::Docker
            && (log.contains("port is already allocated") || log.contains(": already exists"))
    }

    fn evidence(&self) -> String {
        let history = self
            .fleet
            .mcp(&["-o", "json", "history", SERVICE, "-n", "2"]);
        let containers = self.lane.shared().cli(&["ps", "--all"]);
        let log = self.fleet.node(SERVICE).log();
        let lines: Vec<&str> = log.lines().collect();
        format!(
            "{}\n{}\n{}",
            history.stdout,
            containers.unwrap_or_default(),
            lines[lines.len().saturating_sub(40)..].join("\n")
        )
    }

    /// The deployments that the history knows, and how they ended.
    fn deployments(&self) -> BTreeMap<String, String> {
        let output = self.fleet.mcp(&["-o", "json", "history", SERVICE]);
        let rows: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let rows = rows.as_array().cloned().unwrap_or_default();
        let text = |row: &serde_json::Value, field: &str| {
            row[field].as_str().unwrap_or_default().to_owned()
        };
        rows.iter()
            .map(|row| (text(row, "deployment_id"), text(row, "outcome")))
            .collect()
    }

    /// What is not in order.
    fn wrong(&self, before: &Look, ends: &BTreeSet<String>) -> Result<Vec<String>> {
        let deployments = self.deployments();
        if deployments.is_empty() {
            return Ok(vec!["the agent does not answer".to_owned()]);
        }
        if let Some((id, _)) = deployments
            .iter()
            .find(|(_, outcome)| outcome.is_empty() || outcome.as_str() == "running")
        {
            return Ok(vec![format!("deployment {id} has not ended")]);
        }
        let after = Look::at(&self.fleet, self.lane, SERVICE)?;
        let mut wrong = after.broken(before, ends);
        wrong.extend(self.stranger_is_gone()?);
        Ok(wrong)
    }

    fn stranger_is_gone(&self) -> Result<Option<String>> {
        let found = self.lane.shared().inspect(&self.stranger)?;
        let name = found.and_then(|found| found.name);
        Ok(
            (name.as_deref().map(|name| name.trim_start_matches('/')) != Some("torture-stranger"))
                .then(|| "the foreign container was touched".to_owned()),
        )
    }

    /// At the end an ordinary deploy goes through, and nothing is left to plan.
    ///
    /// # Errors
    ///
    /// Where it does not.
    pub fn finish(&mut self) -> Result<()> {
        self.bad = false;
        self.has_web = true;
        self.write();
        drop(self.fleet.mcp(&["sync"]));
        let deployed = self.fleet.mcp(&["deploy", SERVICE, "--yes"]);
        ensure!(
            deployed.code == Some(0),
            "the last deploy failed: {deployed}"
        );
        let plan = self.fleet.mcp_json(&["plan", SERVICE]);
        let again = self.fleet.mcp(&["deploy", SERVICE]);
        ensure!(again.code == Some(0), "{again}");
        let look = Look::at(&self.fleet, self.lane, SERVICE)?;
        let wrong = look.broken(&look, &BTreeSet::new());
        ensure!(
            wrong.is_empty(),
            "after the last deploy: {}; {plan}",
            wrong.join("; ")
        );
        Ok(())
    }
}

impl Drop for Torture {
    fn drop(&mut self) {
        drop(self.lane.shared().remove(&self.stranger));
    }
}
