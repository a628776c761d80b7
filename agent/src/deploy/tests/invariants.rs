//! What has to hold after every fault, as it can be seen from outside: in the engine, in the registry
//! and on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use mcp_spec::component::Network;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerId, LiveContainer, label};
use mcp_spec::plan::{ActionKind, ServicePlan};

use super::super::images::keep_tag;
use super::super::stage::Staging;
use crate::registry::{DeployedRow, Outcome, Registry, Trigger};
use crate::testing::ScriptedEngine;

/// A node at one moment.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Picture {
    pub(super) containers: Vec<LiveContainer>,
    pub(super) rows: BTreeMap<ComponentKey, DeployedRow>,
    storage: Vec<String>,
    networks: Vec<String>,
    volumes: Vec<String>,
    tags: BTreeSet<String>,
    tags_to_keep: BTreeSet<String>,
    staged: BTreeSet<String>,
    /// Files that are not what the registered spec says.
    other_files: Vec<String>,
    mishaps: Vec<String>,
}

impl Picture {
    pub(super) async fn of(engine: &ScriptedEngine, registry: &Registry, dir: &Path) -> Self {
        let rows = registry.deployed_all().await.unwrap();
        let (networks, volumes) = engine.belongings();
        let kept = registry.images_to_keep().await.unwrap();
        Self {
            other_files: rows.iter().flat_map(|row| other_files(row, dir)).collect(),
            mishaps: engine.mishaps(),
            containers: engine.containers(),
            rows: rows.into_iter().map(|row| (row.key.clone(), row)).collect(),
            storage: engine.storage(),
            networks,
            volumes,
            tags: engine.tags().into_iter().map(|(tag, _)| tag.tag).collect(),
            tags_to_keep: kept.iter().map(|(_, image)| keep_tag(image).tag).collect(),
            staged: staged(dir),
        }
    }

    fn container(&self, id: &ContainerId) -> Option<&LiveContainer> {
        self.containers.iter().find(|live| live.id == *id)
    }

    fn of_key<'a>(&'a self, key: &'a ComponentKey) -> impl Iterator<Item = &'a LiveContainer> {
        let containers = self.containers.iter();
        containers.filter(move |live| live.claimed_key().as_ref() == Some(key))
    }

    fn runs(&self, key: &ComponentKey) -> usize {
        self.of_key(key)
            .filter(|live| live.state.is_running())
            .count()
    }

    fn strangers(&self) -> Vec<&LiveContainer> {
        let containers = self.containers.iter();
        containers
            .filter(|live| !live.labels.contains_key(label::NODE))
            .collect()
    }
}

/// The files of a component that are not what its spec says.
fn other_files(row: &DeployedRow, dir: &Path) -> Vec<String> {
    let paths = Staging::new(dir).paths(&row.key, row.generation, &row.spec.files);
    let is_other = |path: &Path, digest: Digest| {
        let bytes = std::fs::read(path).unwrap_or_default();
        Digest::of(&bytes) != digest
    };
    row.spec
        .files
        .iter()
        .filter(|(target, file)| is_other(&paths[*target], file.digest))
        .map(|(target, _)| format!("{} of {}", target, row.key))
        .collect()
}

/// The generations whose files are staged, as `service/component/gN`.
fn staged(dir: &Path) -> BTreeSet<String> {
    let root = dir.join("files");
    let below = |dir: &Path| -> Vec<std::path::PathBuf> {
        std::fs::read_dir(dir)
            .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
            .unwrap_or_default()
    };
    let mut staged = BTreeSet::new();
    for service in below(&root) {
        for component in below(&service) {
            for generation in below(&component) {
                let name = generation.strip_prefix(&root).unwrap();
                staged.insert(name.display().to_string());
                for file in below(&generation) {
                    if file.extension().is_some() {
                        staged.insert(file.strip_prefix(&root).unwrap().display().to_string());
                    }
                }
            }
        }
    }
    staged
}

/// Everything that is wrong with a node on which `plan` was carried out, or was meant to be.
pub(super) fn broken(
    before: &Picture,
    after: &Picture,
    plan: &ServicePlan,
    trigger: Trigger,
    outcome: Option<Outcome>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |holds: bool, what: String| {
        if !holds {
            wrong.push(what);
        }
    };
    let key =
        |component: &ComponentName| ComponentKey::new(plan.service.clone(), component.clone());
    let told_to_end: BTreeSet<ComponentKey> = plan
        .actions
        .iter()
        .filter(|action| {
            trigger == Trigger::Stop || matches!(action.kind, ActionKind::Stop | ActionKind::Remove)
        })
        .map(|action| key(&action.component))
        .collect();
    let keys: BTreeSet<ComponentKey> = after
        .containers
        .iter()
        .filter_map(LiveContainer::claimed_key)
        .chain(before.rows.keys().cloned())
        .collect();
    for key in &keys {
        let runs = after.runs(key);
        check(runs <= 1, format!("{runs} generations of {key} run"));
        let ran = before.runs(key) > 0;
        check(
            !ran || runs == 1 || told_to_end.contains(key),
            format!("{key} ran and does not"),
        );
    }
    for (key, row) in &after.rows {
        let is_job = row.spec.kind.is_job();
        let Some(live) = after.container(&row.container) else {
            check(false, format!("the registered container of {key} is gone"));
            continue;
        };
        let name = key.container_name();
        check(
            live.name == name,
            format!("{key} bears the name {}", live.name),
        );
        let wanted = row.wanted() == mcp_spec::observed::DesiredState::Running;
        let runs = live.state.is_running();
        check(
            is_job || runs == wanted,
            format!("{key} is registered as wanted={wanted} and runs={runs}"),
        );
        check(
            after.tags.contains(&keep_tag(&row.image_id).tag),
            format!("the image of {key} is not kept"),
        );
    }
    let mut kept: BTreeMap<ComponentKey, usize> = BTreeMap::new();
    for live in &after.containers {
        let Some(key) = live.claimed_key() else {
            continue;
        };
        if after.rows.values().any(|row| row.container == live.id) {
            continue;
        }
        // The one that a first deployment left for its logs.
        let is_kept = !after.rows.contains_key(&key) && !live.state.is_running();
        check(
            is_kept,
            format!("{} is left over ({:?})", live.name, live.state),
        );
        *kept.entry(key).or_default() += 1;
    }
    for (key, count) in &kept {
        check(
            *count == 1,
            format!("{count} containers of {key} are left over"),
        );
    }
    check(
        after.storage.is_empty(),
        format!("names are held: {:?}", after.storage),
    );
    let strange = before.strangers() == after.strangers();
    check(strange, "a foreign container was touched".to_owned());
    for what in after.mishaps.iter().chain(&after.other_files) {
        check(false, what.clone());
    }
    leftovers(before, after, &mut check);
    outcomes(before, after, plan, outcome, &mut check);
    wrong
}

fn leftovers(before: &Picture, after: &Picture, check: &mut impl FnMut(bool, String)) {
    let joined = |network: &String| {
        let rows = after.rows.values();
        rows.map(|row| &row.spec.network).any(|network_of| {
            matches!(network_of, Network::User(attachments) if attachments.contains_key(network))
        })
    };
    let has_kept = |network: &String| {
        let of_kept = after
            .containers
            .iter()
            .filter_map(LiveContainer::claimed_key);
        of_kept
            .map(|key| key.service.to_string())
            .any(|service| service == *network)
    };
    for network in &after.networks {
        check(
            network == "theirs" || joined(network) || has_kept(network),
            format!("the network {network} is left over"),
        );
    }
    let theirs = |picture: &Picture| {
        let has = |names: &[String]| names.iter().any(|name| name == "theirs");
        (has(&picture.networks), has(&picture.volumes))
    };
    let stays = theirs(before) == theirs(after);
    check(stays, "a foreign thing is gone".to_owned());
    for tag in &after.tags {
        check(
            after.tags_to_keep.contains(tag),
            format!("the image {tag} is kept for nothing"),
        );
    }
    let generations: BTreeSet<String> = after
        .containers
        .iter()
        .filter_map(|live| Some((live.claimed_key()?, live.generation()?)))
        .map(|(key, generation)| format!("{key}/g{generation}"))
        .collect();
    for staged in &after.staged {
        check(
            generations.contains(staged),
            format!("the files {staged} are left over"),
        );
    }
}

fn outcomes(
    before: &Picture,
    after: &Picture,
    plan: &ServicePlan,
    outcome: Option<Outcome>,
    check: &mut impl FnMut(bool, String),
) {
    for action in &plan.actions {
        let key = ComponentKey::new(plan.service.clone(), action.component.clone());
        let (was, is) = (before.rows.get(&key), after.rows.get(&key));
        match outcome {
            Some(Outcome::Deployed) if action.kind == ActionKind::Remove => {
                check(is.is_none(), format!("{key} was removed and is registered"));
            }
            Some(Outcome::Deployed) => {
                let wanted = action.after.as_ref().map(|after| after.spec_digest);
                check(
                    wanted.is_none() || wanted == is.map(|row| row.spec_digest),
                    format!("{key} was deployed and is not registered so"),
                );
            }
            Some(Outcome::Aborted | Outcome::Superseded | Outcome::RolledBack) => {
                check(
                    was.map(|row| (&row.container, row.spec_digest))
                        == is.map(|row| (&row.container, row.spec_digest)),
                    format!("{key} was put back and is registered otherwise"),
                );
            }
            _ => {}
        }
    }
}
