//! Debris: what deployments of this agent left behind and could not clear away themselves.
//!
//! Containers whose removal failed, second generations, the containers of first deployments whose
//! components were dropped since, names that an image is kept by for nothing, networks that nobody
//! joins, and staged files without a container. A registered container that lost its name gets it back.
//!
//! Nothing is touched but what bears this node's label *and* the label of a deployment that this
//! registry knows as ended: after a lost or restored registry everything that it does not know stays as
//! it is. While nothing else runs a second generation is never ended: it is all there is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mcp_spec::component::{ComponentSpec, Network, OnFailure};
use mcp_spec::name::{ComponentKey, ServiceName};
use mcp_spec::observed::{ContainerId, DesiredState, LiveContainer, label};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::clean::mounts_anonymous;
use super::context::Context;
use super::images::keep_tag;
use super::recover::Journalled;
use super::stage::Staging;
use crate::blocking::blocking;
use crate::registry::{DeployedRow, DeploymentRow, Outcome, RegistryError};
use crate::runtime::RuntimeError;

/// Most things that one sweep takes away: deployments wait for it meanwhile.
const AT_ONCE: usize = 32;

/// How long a container that runs for nothing may take to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Why a sweep was given up; the next one begins anew.
#[derive(Debug, Error)]
pub(super) enum SweepError {
    /// The engine does not answer.
    #[error(transparent)]
    Engine(#[from] RuntimeError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// What a sweep came to.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// What was cleared away.
    pub cleared: usize,
    /// What should go and did not.
    pub left: usize,
    /// Whether a deployment waits: what is left is for the next sweep.
    hurry: CancellationToken,
}

impl Swept {
    fn note(&mut self, what: &str, name: &str, done: Result<(), RuntimeError>) {
        match done {
            Ok(()) => {
                tracing::info!(what, name, "cleared away");
                self.cleared += 1;
            }
            Err(error) => {
                tracing::warn!(what, name, %error, "cannot be cleared away; the next sweep tries again");
                self.left += 1;
            }
        }
    }

    /// Whether there may be more to clear away.
    pub(super) fn is_full(&self) -> bool {
        self.cleared + self.left >= AT_ONCE || self.hurry.is_cancelled()
    }
}

/// What is to become of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Stays,
    /// It is stopped and stays.
    Stop,
    Remove,
}

/// Sweeps once. No deployment may be under way; one that waits is told by `hurry`.
pub(super) async fn sweep(
    context: &Context,
    hurry: CancellationToken,
) -> Result<Swept, SweepError> {
    let containers = context.runtime.list().await?;
    let rows = context.registry.deployed_all().await?;
    let forgotten = forgotten(context, &containers).await?;
    let ours: Vec<&LiveContainer> = containers
        .iter()
        .filter(|live| {
            live.labels.get(label::NODE).map(String::as_str) == Some(context.node.as_str())
                && !forgotten.contains(&live.id)
        })
        .collect();
    let mut swept = Swept {
        hurry,
        ..Swept::default()
    };
    let mut gone = BTreeSet::new();
    for live in &ours {
        if swept.is_full() {
            break;
        }
        let Some(key) = live.claimed_key() else {
            continue;
        };
        match verdict(context, &key, live, &ours, &rows).await? {
            Verdict::Stays => {}
            Verdict::Stop => {
                swept.note(
                    "container",
                    &live.name,
                    context.runtime.stop(&live.id, GRACE).await,
                );
            }
            Verdict::Remove => {
                if live.state.is_running() {
                    // It gets its time; the removal would kill it.
                    drop(context.runtime.stop(&live.id, GRACE).await);
                }
                let keeps_volumes = rows
                    .iter()
                    .any(|row| row.key == key && mounts_anonymous(&row.spec));
                let removed = if keeps_volumes {
                    context.runtime.remove_but_volumes(live.id.as_str()).await
                } else {
                    context.runtime.remove(live.id.as_str()).await
                };
                if removed.is_ok() {
                    gone.insert(live.id.clone());
                }
                swept.note("container", &live.name, removed);
            }
        }
    }
    names(context, &rows, &ours, &mut swept).await;
    let here: Vec<&LiveContainer> = ours
        .into_iter()
        .filter(|live| !gone.contains(&live.id))
        .collect();
    networks(context, &rows, &here, &mut swept).await?;
    images(context, &mut swept).await?;
    files(context, &rows, &here).await;
    Ok(swept)
}

/// The containers that were let go of; those that are gone need not be remembered.
async fn forgotten(
    context: &Context,
    containers: &[LiveContainer],
) -> Result<BTreeSet<ContainerId>, RegistryError> {
    let forgotten = context.registry.forgotten().await?;
    let gone: Vec<ContainerId> = forgotten
        .iter()
        .filter(|id| containers.iter().all(|live| live.id != **id))
        .cloned()
        .collect();
    if !gone.is_empty() {
        context.registry.no_longer_forgotten(gone).await?;
    }
    Ok(forgotten)
}

async fn verdict(
    context: &Context,
    key: &ComponentKey,
    live: &LiveContainer,
    ours: &[&LiveContainer],
    rows: &[DeployedRow],
) -> Result<Verdict, RegistryError> {
    if rows.iter().any(|row| row.container == live.id) {
        return Ok(Verdict::Stays);
    }
    let Some(made_by) = ended(context, live).await? else {
        return Ok(Verdict::Stays);
    };
    let runs = live.state.is_running();
    if let Some(row) = rows.iter().find(|row| row.key == *key) {
        if row.desired == DesiredState::Ignore {
            return Ok(Verdict::Stays);
        }
        let is_wanted = row.wanted() == DesiredState::Running && !row.spec.kind.is_job();
        let registered_runs = ours
            .iter()
            .any(|other| other.id == row.container && other.state.is_running());
        return Ok(if runs && is_wanted && !registered_runs {
            Verdict::Stays
        } else {
            Verdict::Remove
        });
    }
    if runs {
        return Ok(if failed(&made_by) {
            Verdict::Stop
        } else {
            Verdict::Stays
        });
    }
    // The container of a first deployment that failed stays for its logs, as long as the head wants
    // the component and no newer one failed.
    let is_newest = ours
        .iter()
        .filter(|other| other.claimed_key().as_ref() == Some(key))
        .all(|other| other.generation() <= live.generation());
    Ok(
        if !failed(&made_by) || (is_newest && is_defined(context, key).await) {
            Verdict::Stays
        } else {
            Verdict::Remove
        },
    )
}

/// The deployment that made a container, where this registry knows that it has ended.
async fn ended(
    context: &Context,
    live: &LiveContainer,
) -> Result<Option<DeploymentRow>, RegistryError> {
    let Some(id) = live.labels.get(label::DEPLOYMENT) else {
        return Ok(None);
    };
    let found = context.registry.deployment(id.clone()).await?.one();
    Ok(found.filter(|row| row.id.as_str() == id && row.finished_at.is_some()))
}

/// Whether a deployment left nothing that may run: what went well may have been handed over since, and
/// failures that are left for a look run on.
fn failed(row: &DeploymentRow) -> bool {
    let leaves = serde_json::from_str::<Journalled>(&row.plan)
        .is_ok_and(|journalled| journalled.plan.settings.on_failure == OnFailure::Leave);
    !leaves
        && matches!(
            row.outcome,
            Some(Outcome::Failed | Outcome::RolledBack | Outcome::Aborted | Outcome::Superseded)
        )
}

/// Whether the head defines a component; what cannot be read is taken for defined.
async fn is_defined(context: &Context, key: &ComponentKey) -> bool {
    let Some(head) = context.revisions.head() else {
        return true;
    };
    let desired = context.desired.clone();
    let Ok(set) = blocking(move || desired.at(head)).await else {
        return true;
    };
    let service = set.services.get(&key.service);
    service.is_some_and(|service| service.components.contains_key(&key.component))
}

/// Gives registered containers their names back.
async fn names(
    context: &Context,
    rows: &[DeployedRow],
    ours: &[&LiveContainer],
    swept: &mut Swept,
) {
    let found: BTreeMap<&ContainerId, &LiveContainer> =
        ours.iter().map(|live| (&live.id, *live)).collect();
    for row in rows {
        let name = row.key.container_name();
        let Some(live) = found.get(&row.container).filter(|live| live.name != name) else {
            continue;
        };
        // An adopted container keeps the name that it came with.
        if row.adopted || row.desired == DesiredState::Ignore || swept.is_full() {
            continue;
        }
        let renamed = context.runtime.rename(&live.id, &name).await;
        swept.note("name", &name, renamed);
    }
}

/// Removes the networks that were made for a service and that nobody joins.
async fn networks(
    context: &Context,
    rows: &[DeployedRow],
    here: &[&LiveContainer],
    swept: &mut Swept,
) -> Result<(), SweepError> {
    let made = context
        .runtime
        .networks(label::NODE, context.node.as_str())
        .await?;
    if made.is_empty() {
        return Ok(());
    }
    let specs: Vec<&ComponentSpec> = rows.iter().map(|row| &row.spec).collect();
    // What a container that is kept for its logs joins is not told by a list.
    let kept: BTreeSet<ServiceName> = here
        .iter()
        .filter(|live| rows.iter().all(|row| row.container != live.id))
        .filter_map(|live| Some(live.claimed_key()?.service))
        .collect();
    let mut of_kept = BTreeSet::new();
    for service in &kept {
        of_kept.extend(
            context
                .runtime
                .networks(label::SERVICE, service.as_str())
                .await?,
        );
    }
    for name in made {
        let is_joined = specs.iter().any(|spec| joins(spec, &name)) || of_kept.contains(&name);
        if is_joined || swept.is_full() {
            continue;
        }
        match context.runtime.remove_network(&name).await {
            // In use by something that is not the agent's.
            Ok(false) => {}
            done => swept.note("network", &name, done.map(drop)),
        }
    }
    Ok(())
}

/// Whether a component joins a network.
pub(super) fn joins(spec: &ComponentSpec, network: &str) -> bool {
    matches!(&spec.network, Network::User(attachments) if attachments.contains_key(network))
}

/// Lets go of the images that deployments of this agent kept and that will not be needed again.
async fn images(context: &Context, swept: &mut Swept) -> Result<(), SweepError> {
    let tags: BTreeSet<_> = context.runtime.kept().await?.into_iter().collect();
    if tags.is_empty() {
        return Ok(());
    }
    let known = context.registry.images_known().await?;
    let needed: BTreeSet<_> = context
        .registry
        .images_to_keep()
        .await?
        .iter()
        .map(|(_, image)| keep_tag(image))
        .collect();
    let idle: BTreeSet<_> = known.iter().map(keep_tag).collect();
    for tag in tags {
        if idle.contains(&tag) && !needed.contains(&tag) && !swept.is_full() {
            swept.note("image name", &tag.tag, context.runtime.untag(&tag).await);
        }
    }
    Ok(())
}

/// Removes the staged files of generations that have neither a container nor a row.
async fn files(context: &Context, rows: &[DeployedRow], here: &[&LiveContainer]) {
    let mut used: BTreeSet<(ComponentKey, u64)> = here
        .iter()
        .filter_map(|live| Some((live.claimed_key()?, live.generation()?)))
        .collect();
    used.extend(rows.iter().map(|row| (row.key.clone(), row.generation)));
    let (staging, memory) = (context.staging.clone(), context.memory.clone());
    blocking(move || {
        for staging in std::iter::once(staging).chain(memory.found().map(Staging::at)) {
            for (key, generation) in staging.generations() {
                if !used.contains(&(key.clone(), generation))
                    && let Err(error) = staging.remove(&key, generation)
                {
                    tracing::warn!(%key, generation, %error, "cannot remove staged files");
                }
            }
        }
    })
    .await;
}
