//! A node whose agent speaks to its engine through the proxy, with foreign things beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::Proxy;
use crate::definitions::{component, service};
use crate::engine::{BUSYBOX, Engine, Lane};
use crate::fleet::Fleet;
use crate::torture::look::Look;
use crate::torture::observer::Observer;

/// How long a node may take to be in order once a fault is lifted.
pub const IN_ORDER: Duration = Duration::from_secs(120);

/// What is not the agent's, and what the engine says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Foreign {
    container: String,
    pid: String,
    network: String,
    volume: String,
    image: String,
}

/// A node of three components (`api`, `web` that depends on it, `worker`) at `v1`, deployed; service and
/// node bear the same name.
#[derive(Debug)]
pub struct Bed {
    /// The workstation and its node.
    pub fleet: Fleet,
    /// In front of the engine.
    pub proxy: Proxy,
    /// What runs, as the kernel tells.
    pub observer: Observer,
    lane: Lane,
    engine: &'static Engine,
    name: String,
    versions: BTreeMap<&'static str, u32>,
    foreign: Foreign,
}

impl Bed {
    /// On the shared engine of the lane, which is the thread's already.
    ///
    /// # Errors
    ///
    /// Where it cannot be set up.
    pub fn new(lane: Lane, name: &str) -> Result<Self> {
        Self::on(lane, lane.shared(), name)
    }

    /// On an engine of its own, which the test breaks.
    ///
    /// # Errors
    ///
    /// Where it cannot be set up.
    pub fn on(lane: Lane, engine: &'static Engine, name: &str) -> Result<Self> {
        let proxy = Proxy::before(engine)?;
        let mut fleet = Fleet::workstation()?;
        fleet.add_node_at(engine, name, &proxy.url())?;
        engine.run_foreign(&stranger(name), &[])?;
        engine.cli(&["network", "create", &stranger(name)])?;
        engine.cli(&["volume", "create", &stranger(name)])?;
        engine.cli(&["tag", &format!("{BUSYBOX}:v1"), &stranger_image(name)])?;
        let mut bed = Self {
            foreign: foreign(engine, name)?,
            fleet,
            proxy,
            observer: Observer::start(),
            lane,
            engine,
            name: name.to_owned(),
            versions: BTreeMap::from([("api", 1), ("web", 1), ("worker", 1)]),
        };
        bed.write();
        bed.fleet.mcp(&["sync"]).ok();
        bed.fleet.mcp(&["deploy", name]).ok();
        bed.foreign = foreign(engine, name)?;
        Ok(bed)
    }

    /// The name of its service and node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its engine, for looks from outside.
    #[must_use]
    pub fn engine(&self) -> &'static Engine {
        self.engine
    }

    fn write(&self) {
        let variable = self.observer.variable();
        let components: Vec<String> = self
            .versions
            .iter()
            .map(|(name, version)| {
                let depends = match *name {
                    "web" => "depends_on = [\"api\"]\n",
                    _ => "",
                };
                component(
                    name,
                    &format!("v{version}"),
                    &format!(
                        "{depends}stop_timeout = \"2s\"\nready_for = \"200ms\"\nenv = {{ {variable} = \"{name}\" }}\n"
                    ),
                )
            })
            .collect();
        self.fleet.write(
            &format!("services/{}.toml", self.name),
            &service(&self.name, &self.name, &components),
        );
    }

    /// Another version of these components, synced.
    pub fn change(&mut self, components: &[&'static str]) {
        for component in components {
            if let Some(version) = self.versions.get_mut(component) {
                *version = *version % 3 + 1;
            }
        }
        self.write();
        drop(self.fleet.mcp(&["sync"]));
    }

    /// The node as it is now, from outside.
    ///
    /// # Errors
    ///
    /// Where the engine does not answer.
    pub fn look(&self) -> Result<Look> {
        Look::of(&self.fleet, self.lane, self.engine, &self.name)
    }

    /// The process id of a component's container; 0 where it does not run.
    ///
    /// # Errors
    ///
    /// Where the engine does not answer.
    pub fn pid(&self, component: &str) -> Result<i64> {
        let found = self.engine.inspect(&format!("{}-{component}", self.name))?;
        Ok(found
            .and_then(|found| found.state)
            .and_then(|state| state.pid)
            .unwrap_or(0))
    }

    /// What is not in order: something of the service, of what is foreign, or a deployment without end.
    ///
    /// # Errors
    ///
    /// Where the engine does not answer.
    pub fn wrong(&self, before: &Look) -> Result<Vec<String>> {
        let output = self
            .fleet
            .mcp(&["-o", "json", "history", &self.name, "-n", "5"]);
        let rows: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        let Some(rows) = rows.as_array() else {
            return Ok(vec![format!("the agent does not answer: {output}")]);
        };
        let open = rows
            .iter()
            .filter_map(|row| row["outcome"].as_str())
            .any(|outcome| outcome.is_empty() || outcome == "running");
        if open {
            return Ok(vec!["a deployment has not ended".to_owned()]);
        }
        let mut wrong = self.look()?.broken(before, &BTreeSet::new());
        let now = foreign(self.engine, &self.name)?;
        if now != self.foreign {
            wrong.push(format!(
                "what is foreign was touched: {:?} was {:?}",
                now, self.foreign
            ));
        }
        Ok(wrong)
    }

    /// Waits until the node is in order, and tells how long that took.
    ///
    /// # Errors
    ///
    /// Where it is not within [`IN_ORDER`]; the message says what is wrong.
    pub fn in_order(&self, before: &Look) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let wrong = self.wrong(before)?;
            if wrong.is_empty() {
                return Ok(began.elapsed());
            }
            if began.elapsed() > IN_ORDER {
                let log = self.fleet.node(&self.name).log();
                let lines: Vec<&str> = log.lines().collect();
                bail!(
                    "{}\n{}\n{}",
                    wrong.join("; "),
                    self.engine.cli(&["ps", "--all"]).unwrap_or_default(),
                    lines[lines.len().saturating_sub(30)..].join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How the last deployment ended.
    #[must_use]
    pub fn last_outcome(&self) -> String {
        let rows = self.fleet.mcp_json(&["history", &self.name, "-n", "1"]);
        rows[0]["outcome"].as_str().unwrap_or_default().to_owned()
    }

    /// How long nothing ran of a component since a moment, all gaps together.
    #[must_use]
    pub fn down(&self, since: Instant) -> BTreeMap<String, Duration> {
        let mut down: BTreeMap<String, Duration> = BTreeMap::new();
        for gap in self.observer.gaps(since) {
            *down.entry(gap.component.clone()).or_default() += gap.lasted();
        }
        down
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let name = stranger(&self.name);
        drop(self.engine.remove(&name));
        drop(self.engine.cli(&["network", "rm", &name]));
        drop(self.engine.cli(&["volume", "rm", &name]));
        drop(self.engine.cli(&["rmi", &stranger_image(&self.name)]));
    }
}

/// The name of everything foreign: like what an agent would make.
fn stranger(name: &str) -> String {
    format!("{name}-stranger")
}

fn stranger_image(name: &str) -> String {
    format!("localhost/mcp-foreign/{name}:v1")
}

fn foreign(engine: &Engine, name: &str) -> Result<Foreign> {
    let stranger = stranger(name);
    let found = engine.inspect(&stranger)?;
    let pid = found
        .as_ref()
        .and_then(|found| found.state.as_ref()?.pid)
        .unwrap_or(0);
    let listed = |args: &[&str]| -> Result<String> {
        let all = engine.cli(args)?;
        let here = all.lines().any(|line| line.trim() == stranger);
        Ok(if here {
            stranger.clone()
        } else {
            String::new()
        })
    };
    Ok(Foreign {
        container: found.and_then(|found| found.id).unwrap_or_default(),
        pid: pid.to_string(),
        network: listed(&["network", "ls", "--format", "{{.Name}}"])?,
        volume: listed(&["volume", "ls", "--format", "{{.Name}}"])?,
        image: engine
            .cli(&[
                "image",
                "inspect",
                "--format",
                "{{.Id}}",
                &stranger_image(name),
            ])
            .unwrap_or_default(),
    })
}
