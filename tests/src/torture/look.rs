//! A look at a node from outside: through the engine, and at what the agent has recorded.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::engine::{Engine, Lane};
use crate::fleet::Fleet;

/// One container that bears the node's label.
#[derive(Debug, Clone)]
struct Container {
    id: String,
    name: String,
    component: String,
    runs: bool,
}

/// One component as the agent has recorded it.
#[derive(Debug, Clone)]
struct Recorded {
    container: String,
    desired: String,
    observed: String,
}

/// A node at one moment.
#[derive(Debug, Clone)]
pub struct Look {
    containers: Vec<Container>,
    recorded: BTreeMap<String, Recorded>,
    storage: Vec<String>,
    service: String,
}

impl Look {
    /// Looks at a service that has the node to itself.
    ///
    /// # Errors
    ///
    /// Where the engine does not answer.
    pub fn at(fleet: &Fleet, lane: Lane, service: &str) -> Result<Self> {
        Self::of(fleet, lane, lane.shared(), service)
    }

    /// As [`Look::at`], on an engine that is not the lane's shared one.
    ///
    /// # Errors
    ///
    /// Where the engine does not answer.
    pub fn of(fleet: &Fleet, lane: Lane, engine: &Engine, service: &str) -> Result<Self> {
        let mut containers = Vec::new();
        for id in fleet.node(service).containers()? {
            // One that goes away between the two calls is gone.
            let Some(found) = engine.inspect(&id)? else {
                continue;
            };
            let labels = found
                .config
                .and_then(|config| config.labels)
                .unwrap_or_default();
            containers.push(Container {
                id,
                name: found
                    .name
                    .unwrap_or_default()
                    .trim_start_matches('/')
                    .to_owned(),
                component: labels.get("mcp.component").cloned().unwrap_or_default(),
                runs: found.state.and_then(|state| state.running) == Some(true),
            });
        }
        let listed = fleet.mcp(&["-o", "json", "list", service]);
        let rows: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap_or_default();
        let text = |row: &serde_json::Value, field: &str| {
            row[field].as_str().unwrap_or_default().to_owned()
        };
        let recorded = rows
            .as_array()
            .into_iter()
            .flatten()
            .filter(|row| !text(row, "container_id").is_empty())
            .map(|row| {
                (
                    text(row, "component"),
                    Recorded {
                        container: text(row, "container_id"),
                        desired: text(row, "desired_state"),
                        observed: text(row, "observed_state"),
                    },
                )
            })
            .collect();
        let storage = match lane {
            Lane::Docker => Vec::new(),
            Lane::PodmanRoot | Lane::PodmanRootless => {
                let all = engine.cli(&[
                    "ps",
                    "--all",
                    "--external",
                    "--format",
                    "{{.Names}} {{.Status}}",
                ])?;
                all.lines()
                    .filter(|line| line.starts_with(service) && line.ends_with("Storage"))
                    .map(str::to_owned)
                    .collect()
            }
        };
        Ok(Self {
            containers,
            recorded,
            storage,
            service: service.to_owned(),
        })
    }

    /// How many containers of a component run.
    #[must_use]
    pub fn running(&self, component: &str) -> usize {
        let of = self.containers.iter().filter(|c| c.component == component);
        of.filter(|c| c.runs).count()
    }

    /// What is not in order, after an operation that may have ended `ends`.
    #[must_use]
    pub fn broken(&self, before: &Self, ends: &BTreeSet<String>) -> Vec<String> {
        let mut wrong = Vec::new();
        let components: BTreeSet<&String> = self
            .containers
            .iter()
            .chain(&before.containers)
            .map(|container| &container.component)
            .collect();
        for component in components {
            let runs = self.running(component);
            if runs > 1 {
                wrong.push(format!("{runs} generations of {component} run"));
            }
            if before.running(component) > 0 && runs == 0 && !ends.contains(component) {
                wrong.push(format!("{component} ran and does not"));
            }
        }
        for (component, recorded) in &self.recorded {
            let found = self.containers.iter().find(|c| c.id == recorded.container);
            let Some(container) = found else {
                wrong.push(format!("the recorded container of {component} is gone"));
                continue;
            };
            let name = format!("{}-{component}", self.service);
            if container.name != name {
                wrong.push(format!("{component} bears the name {}", container.name));
            }
            if container.runs != (recorded.desired == "running") {
                wrong.push(format!(
                    "{component} is to be {} and runs={}",
                    recorded.desired, container.runs
                ));
            }
            if container.runs != (recorded.observed == "running") {
                wrong.push(format!(
                    "{component} is said to be {} and runs={}",
                    recorded.observed, container.runs
                ));
            }
        }
        let mut kept = BTreeSet::new();
        for container in &self.containers {
            let is_recorded = self.recorded.values().any(|r| r.container == container.id);
            if is_recorded {
                continue;
            }
            // The one that a first deployment of a component left for its logs.
            let is_kept = !container.runs
                && !self.recorded.contains_key(&container.component)
                && kept.insert(&container.component);
            if !is_kept {
                wrong.push(format!(
                    "{} is left over (runs={})",
                    container.name, container.runs
                ));
            }
        }
        for name in &self.storage {
            wrong.push(format!("a name is held: {name}"));
        }
        wrong
    }
}
