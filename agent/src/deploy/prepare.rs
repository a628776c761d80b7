//! Preparing: everything that is likely to fail, before anything stops.
//!
//! Images are resolved and kept, networks, volumes and folders made, files staged, ports tried, and
//! the new containers created. A component that has a container gets the new one under a name of its
//! generation; where there is none it gets its final name at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use futures_util::future::{join_all, try_join_all};
use mcp_spec::component::{ComponentSpec, Network, Protocol, VolumeSource};
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerId, ImageId, label};
use mcp_spec::plan::{Action, ActionKind, After};
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::execution::Execution;
use super::failure::PartFailure;
use super::images::{keep_images, resolve_images};
use super::make::make;
use crate::registry::{StepPhase, StepRow};

/// A container that preparing made: what recovery needs to go on with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Made {
    /// The engine's id.
    pub container: ContainerId,
    /// The name it was made under.
    pub name: String,
    /// Its generation.
    pub generation: u64,
    /// The image it was made from.
    pub image: ImageId,
    /// The registry's digest of the image, where known.
    pub image_digest: Option<Digest>,
    /// The engine's normal form of it, right after it was made.
    pub baseline: BTreeMap<String, String>,
}

/// What is about to be made, journalled before it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Making {
    /// The name it will be made under.
    pub name: String,
    /// Its generation.
    pub generation: u64,
    /// Its image, which is about to be kept.
    #[serde(default)]
    pub image: Option<ImageId>,
}

/// The journal's word for [`Making`].
pub(super) const STEP_MAKE: &str = "make";

/// The name of a generation's container while it is not the one in service.
#[must_use]
pub(super) fn generation_name(key: &ComponentKey, generation: u64) -> String {
    format!("{}.g{generation}", key.container_name())
}

/// A failure with the component that it befell.
pub(super) type Befallen = (ComponentName, PartFailure);

/// Prepares all that the plan creates, side by side.
pub(super) async fn prepare(
    execution: &Execution,
) -> Result<BTreeMap<ComponentName, Made>, Befallen> {
    let creating: Vec<(&Action, &After)> = execution
        .plan
        .actions
        .iter()
        .filter(|action| action.kind.creates())
        .filter_map(|action| action.after.as_ref().map(|after| (action, after)))
        .collect();
    if creating.is_empty() {
        return Ok(BTreeMap::new());
    }
    // A pull may take long, and dropping it half way leaves nothing behind.
    let images = tokio::select! {
        biased;
        images = resolve_images(execution, &creating) => images?,
        () = execution.cancelled() => {
            return Err((creating[0].0.component.clone(), PartFailure::NotReached));
        }
    };
    ports(execution, &creating)?;

    let keys: Vec<ComponentKey> = creating
        .iter()
        .map(|(action, _)| execution.key(&action.component))
        .collect();
    let context = &execution.context;
    let first = &creating[0].0.component;
    let generations = context
        .registry
        .next_generations(keys.clone())
        .await
        .map_err(|e| (first.clone(), e.into()))?;
    let mut makings = BTreeMap::new();
    let mut rows = Vec::new();
    for ((action, _), (key, generation)) in creating.iter().zip(keys.iter().zip(generations)) {
        let has_old = action.kind == ActionKind::Replace;
        let making = Making {
            name: if has_old {
                generation_name(key, generation)
            } else {
                key.container_name()
            },
            generation,
            image: Some(images[&action.component].id.clone()),
        };
        rows.push(execution.step(
            Some(&action.component),
            STEP_MAKE,
            StepPhase::Begun,
            &making,
        ));
        makings.insert(action.component.clone(), making);
    }
    journal(context, rows)
        .await
        .map_err(|e| (first.clone(), e))?;
    keep_images(context, &images).await?;
    surroundings(execution, &creating).await?;

    // Every create runs to its end even where one fails: a create that is dropped half way leaves a
    // container of which nobody knows.
    let attempts = join_all(creating.iter().map(|(action, after)| {
        let making = &makings[&action.component];
        let image = &images[&action.component];
        async move {
            make(execution, action, after, making, image)
                .await
                .map(|made| (action.component.clone(), made))
                .map_err(|failure| (action.component.clone(), failure))
        }
    }))
    .await;
    let made = attempts.into_iter().collect::<Result<Vec<_>, Befallen>>()?;
    let rows = made
        .iter()
        .map(|(component, made)| execution.step(Some(component), STEP_MAKE, StepPhase::Done, made))
        .collect();
    journal(context, rows)
        .await
        .map_err(|e| (first.clone(), e))?;
    Ok(made.into_iter().collect())
}

async fn journal(context: &Context, rows: Vec<StepRow>) -> Result<(), PartFailure> {
    context.registry.journal(rows).await.map_err(Into::into)
}

/// Makes networks, volumes and folders, each once.
async fn surroundings(
    execution: &Execution,
    creating: &[(&Action, &After)],
) -> Result<(), Befallen> {
    let context = &execution.context;
    let service = &execution.plan.service;
    let mut networks: BTreeMap<&String, &ComponentName> = BTreeMap::new();
    let mut volumes: BTreeMap<&String, &ComponentName> = BTreeMap::new();
    let own_dir = context.services_dir.join(service.as_str());
    for (action, after) in creating {
        if let Network::User(attachments) = &after.spec.network {
            networks.extend(attachments.keys().map(|name| (name, &action.component)));
        }
        for volume in after.spec.volumes.values() {
            match &volume.source {
                VolumeSource::Named(name) => {
                    volumes.insert(name, &action.component);
                }
                VolumeSource::Bind(path) => {
                    bind_source(Path::new(path), &own_dir)
                        .map_err(|failure| (action.component.clone(), failure))?;
                }
            }
        }
    }
    let labels = BTreeMap::from([
        (label::NODE.to_owned(), context.node.to_string()),
        (label::SERVICE.to_owned(), service.to_string()),
    ]);
    try_join_all(networks.into_iter().map(|(name, component)| {
        let labels = &labels;
        async move {
            context
                .runtime
                .ensure_network(name, labels)
                .await
                .map_err(|source| {
                    (
                        component.clone(),
                        PartFailure::Engine {
                            doing: "making the network",
                            source,
                        },
                    )
                })
        }
    }))
    .await?;
    try_join_all(volumes.into_iter().map(|(name, component)| {
        let labels = &labels;
        async move {
            context
                .runtime
                .ensure_volume(name, labels)
                .await
                .map_err(|source| {
                    (
                        component.clone(),
                        PartFailure::Engine {
                            doing: "making the volume",
                            source,
                        },
                    )
                })
        }
    }))
    .await?;
    Ok(())
}

/// The service's own folder is made at a first deploy; any other source has to be there.
fn bind_source(path: &Path, own_dir: &Path) -> Result<(), PartFailure> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound && path == own_dir => {
            std::fs::create_dir_all(path).map_err(|source| PartFailure::Source {
                path: path.display().to_string(),
                source,
            })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(PartFailure::SourceMissing {
            path: path.display().to_string(),
        }),
        Err(source) => Err(PartFailure::Source {
            path: path.display().to_string(),
            source,
        }),
    }
}

/// Tries each new port that no container of this plan gives free. What another container of the
/// engine holds shows here too, since the engine listens for it or forwards from it.
fn ports(execution: &Execution, creating: &[(&Action, &After)]) -> Result<(), Befallen> {
    let freed: BTreeSet<(u16, Protocol)> = execution
        .plan
        .actions
        .iter()
        .filter(|action| action.before.as_ref().is_some_and(|before| before.running))
        .filter_map(|action| execution.old_specs.get(&action.component))
        .flat_map(|spec: &ComponentSpec| spec.ports.iter().map(|port| (port.host, port.protocol)))
        .collect();
    for (action, after) in creating {
        for port in &after.spec.ports {
            if freed.contains(&(port.host, port.protocol)) {
                continue;
            }
            let address = SocketAddr::new(port.ip, port.host);
            let tried = match port.protocol {
                Protocol::Tcp => TcpListener::bind(address).map(drop),
                Protocol::Udp => UdpSocket::bind(address).map(drop),
            };
            if tried.is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse) {
                return Err((
                    action.component.clone(),
                    PartFailure::PortTaken {
                        port: port.to_string(),
                    },
                ));
            }
        }
    }
    Ok(())
}
