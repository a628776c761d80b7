//! What has to be true of a node at rest: what runs, under which names, with which files and images, and
//! that what the agent cares for by itself is what the head says.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;
use mcp_agent::deploy::stage::Staging;
use mcp_agent::registry::{DeployedRow, DeploymentState, Registry, Trigger};
use mcp_spec::drift::STATE;
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerState, DesiredState};

use super::{Known, Model};
use crate::engine::{Behaviour, Container, Engine, State};
use crate::history::NOWHERE;

/// The service that the agent reconciles by itself.
const AUTO: &str = "blog";

impl Model {
    /// Judges a node at rest.
    pub(crate) fn rested(&self, engine: &Engine, registry: &Registry, data: &Path, when: &str) {
        self.looking.store(true, Ordering::Relaxed);
        let observed = registry.observed_all().now_or_never();
        self.looking.store(false, Ordering::Relaxed);
        let observed = observed
            .expect("the simulated registry never waits")
            .unwrap();
        let wrong = |what: String| self.trace.violation(format!("{when}: {what}"));
        let known = self.known();
        for open in known.open.values() {
            let row = &open.row;
            // What cannot be prepared, as a missing image, is tried again now and then.
            if row.trigger == Trigger::Auto && row.state != DeploymentState::Switching {
                continue;
            }
            wrong(format!(
                "deployment {} of {} is {}",
                row.id.short(),
                row.service,
                row.state.as_str()
            ));
        }
        let state = engine.state();
        for row in known.rows.values() {
            let key = &row.key;
            if !state.lost_images
                && !row.adopted
                && state.images.values().any(|image| *image == row.image_id)
                && state.tags.values().all(|image| *image != row.image_id)
            {
                wrong(format!("the image of {key} is not kept"));
            }
            let Some(container) = state.containers.get(&row.container) else {
                continue;
            };
            if container.live.name != key.container_name() && !row.adopted {
                wrong(format!("{key} bears the name {}", container.live.name));
            }
            let runs = container.runs();
            match row.wanted() {
                DesiredState::Running
                    if !row.spec.kind.is_job()
                        && !runs
                        && container.behaviour.lasts()
                        && !has_finished(row, container) =>
                {
                    wrong(format!("{key} does not run: {:?}", container.live.state));
                }
                DesiredState::Stopped if runs => wrong(format!("{key} is stopped and runs")),
                _ => {}
            }
            let drifted = observed
                .iter()
                .find(|seen| seen.key == *key)
                .is_some_and(|seen| seen.drift.iter().any(|drift| drift.field != STATE));
            let differs = container.live.fields != container.made_as;
            if differs != drifted {
                wrong(format!("{key} differs: {differs}, is said to: {drifted}"));
            }
            let paths = Staging::new(data).paths(key, row.generation, &row.spec.files);
            for (target, file) in &row.spec.files {
                let bytes = std::fs::read(&paths[target]).unwrap_or_default();
                if Digest::of(&bytes) != file.digest {
                    wrong(format!("{key} has another {target} than its spec says"));
                }
            }
        }
        for container in state.containers.values() {
            let Some(key) = container.key() else { continue };
            let is_registered = known
                .rows
                .values()
                .any(|row| row.container == container.live.id);
            let is_unknown = !is_registered && !container.is_stray;
            if container.runs() && is_unknown && container.behaviour.lasts() {
                wrong(format!(
                    "{} ({key}) runs and is not registered",
                    container.live.name
                ));
            }
        }
        self.converged(&known, &state, &wrong);
        self.brought_back(&known, &wrong);
    }

    /// Rule 15: where all of a service can run, all of it is back.
    fn brought_back(&self, known: &Known, wrong: &impl Fn(String)) {
        let head = &self.history.revisions[known.accepted];
        for (key, container) in &known.lost {
            let of_service = |other: &&ComponentKey| other.service == key.service;
            let rows = || known.rows.values().filter(|row| of_service(&&row.key));
            let can_run = rows().all(|row| {
                let tag = row.spec.image.to_string();
                let behaviour = Behaviour::of(tag.rsplit(':').next().unwrap_or_default());
                row.spec.kind.is_job() || behaviour.lasts() && behaviour.healthy_after.is_some()
            });
            let has_images = head
                .images
                .iter()
                .filter(|(key, _)| of_service(key))
                .all(|(_, image)| !image.contains(NOWHERE));
            let row = known.rows.get(key).filter(|row| {
                row.container == *container
                    && row.wanted() == DesiredState::Running
                    && !row.spec.kind.is_job()
            });
            if let Some(row) = row.filter(|_| can_run && has_images) {
                wrong(format!(
                    "{} was lost with the engine's store, and is not back",
                    row.key
                ));
            }
        }
    }

    /// After a sweep: nothing is left of what was replaced.
    pub(crate) fn swept(&self, engine: &Engine) {
        let known = self.known();
        let state = engine.state();
        for container in state.containers.values() {
            let Some(row) = container.key().and_then(|key| known.rows.get(&key)) else {
                continue;
            };
            if row.container != container.live.id && !container.is_stray {
                self.trace.violation(format!(
                    "{} is left over beside {}",
                    container.live.name,
                    row.container.short()
                ));
            }
        }
    }

    /// What the agent cares for by itself is what the head says, unless something stands in the way.
    fn converged(&self, known: &Known, state: &State, wrong: &impl Fn(String)) {
        let head = &self.history.revisions[known.accepted];
        let is_auto = |key: &ComponentKey| key.service.as_str() == AUTO;
        let rows: Vec<&DeployedRow> = known
            .rows
            .values()
            .filter(|row| is_auto(&row.key))
            .collect();
        let names: BTreeSet<&str> = state
            .containers
            .values()
            .filter(|container| container.key().is_none())
            .map(|container| container.live.name.as_str())
            .collect();
        let stands_in_the_way = known.quarantined.iter().any(|(key, _)| is_auto(key))
            || rows
                .iter()
                .any(|row| row.hold.is_some() || row.stopped_by.is_some())
            || head.images.iter().any(|(key, image)| {
                is_auto(key)
                    && (image.contains(NOWHERE) || names.contains(key.container_name().as_str()))
            });
        if stands_in_the_way {
            return;
        }
        if head.inactive.contains(AUTO) {
            // What the head dropped is left to a deploy that somebody asks for.
            for row in rows.iter().filter(|row| head.specs.contains_key(&row.key)) {
                let container = state.containers.get(&row.container);
                if row.desired != DesiredState::Stopped || container.is_some_and(Container::runs) {
                    wrong(format!("{} is active, and the head says no", row.key));
                }
            }
            return;
        }
        for (key, digest) in head.specs.iter().filter(|(key, _)| is_auto(key)) {
            let row = known.rows.get(key);
            if row.is_none_or(|row| row.spec_digest != *digest) {
                wrong(format!("{key} is not what the head says"));
            }
            let container = row.and_then(|row| state.containers.get(&row.container));
            match container {
                None => wrong(format!("{key} has no container")),
                Some(container)
                    if container.live.fields != container.made_as
                        && !container.behaviour.is_odd =>
                {
                    wrong(format!("{key} was changed, and was left so"));
                }
                Some(_) => {}
            }
        }
    }
}

/// Whether its restart policy takes its end for good.
fn has_finished(row: &DeployedRow, container: &Container) -> bool {
    use mcp_spec::component::Restart;
    let code = match container.live.state {
        ContainerState::Exited { code, .. } => Some(code),
        _ => None,
    };
    match row.spec.restart {
        Restart::No => code.is_some(),
        Restart::OnFailure { max } => code == Some(0) || max.is_some(),
        Restart::Always | Restart::UnlessStopped => false,
    }
}
