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
use mcp_spec::component::{ComponentSpec, Network, Protocol, Pull, VolumeSource};
use mcp_spec::image::{Digest, ImageRef};
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerId, ImageId, label};
use mcp_spec::plan::{Action, ActionKind, After};
use serde::{Deserialize, Serialize};

use super::context::Context;
use super::execute::Execution;
use super::failure::PartFailure;
use crate::blocking::blocking;
use crate::registry::{StepPhase, StepRow};
use crate::runtime::{ContainerRequest, ImageFacts, KeepTag, RuntimeError};

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
    surroundings(execution, &creating).await?;
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

/// Resolves every image once, however many components share it, and keeps each from pruning.
async fn resolve_images(
    execution: &Execution,
    creating: &[(&Action, &After)],
) -> Result<BTreeMap<ComponentName, ImageFacts>, Befallen> {
    type Wish = (ImageRef, Option<ImageId>, bool, bool);
    let mut wishes: BTreeMap<String, (Wish, Vec<&ComponentName>)> = BTreeMap::new();
    for (action, after) in creating {
        let spec = &after.spec;
        let wish = (
            spec.image.clone(),
            after.image.clone(),
            spec.pull == Pull::Always && execution.resolves_anew(),
            spec.pull == Pull::Never,
        );
        wishes
            .entry(format!("{wish:?}"))
            .or_insert_with(|| (wish, Vec::new()))
            .1
            .push(&action.component);
    }
    let resolved = try_join_all(wishes.into_values().map(|(wish, components)| async move {
        let (image, recorded, anew, never) = wish;
        let first = components[0];
        let facts = resolve(execution, first, &image, recorded.as_ref(), anew, never)
            .await
            .map_err(|failure| (first.clone(), failure))?;
        keep(&execution.context, &facts.id)
            .await
            .map_err(|failure| (first.clone(), failure))?;
        Ok::<_, Befallen>(
            components
                .into_iter()
                .map(|component| (component.clone(), facts.clone()))
                .collect::<Vec<_>>(),
        )
    }))
    .await?;
    Ok(resolved.into_iter().flatten().collect())
}

async fn resolve(
    execution: &Execution,
    component: &ComponentName,
    image: &ImageRef,
    recorded: Option<&ImageId>,
    anew: bool,
    never: bool,
) -> Result<ImageFacts, PartFailure> {
    let runtime = &execution.context.runtime;
    let engine = |doing| move |source| PartFailure::Engine { doing, source };
    if let (Some(id), false) = (recorded, anew) {
        if let Some(facts) = runtime
            .image_by_id(id)
            .await
            .map_err(engine("looking for the image"))?
        {
            return Ok(facts);
        }
        // The recorded image is gone. Only a reference that names its digest brings the same bytes.
        if image.digest().is_none() {
            let now = runtime
                .image(image)
                .await
                .map_err(engine("looking for the image"))?;
            match now {
                Some(facts) if facts.id == *id => return Ok(facts),
                _ if execution.must_be_the_same_bytes() => {
                    return Err(PartFailure::ImageLost {
                        image: image.to_string(),
                        id: id.to_string(),
                    });
                }
                _ => {}
            }
        }
    }
    if !anew
        && let Some(facts) = runtime
            .image(image)
            .await
            .map_err(engine("looking for the image"))?
    {
        return Ok(facts);
    }
    if never {
        return Err(PartFailure::ImageAbsent {
            image: image.to_string(),
        });
    }
    execution
        .feed
        .tell(Some(component), "pulling", image.to_string());
    let feed = execution.feed.clone();
    let pulled = runtime
        .pull(image, &|progress| {
            feed.tell_counted(
                Some(component),
                "pulling",
                image.to_string(),
                progress.current_bytes,
                progress.total_bytes,
            );
        })
        .await
        .map_err(engine("pulling the image"))?;
    Ok(pulled)
}

/// The name that keeps an image.
#[must_use]
pub(super) fn keep_tag(id: &ImageId) -> KeepTag {
    let digits = id.as_str().strip_prefix("sha256:").unwrap_or(id.as_str());
    KeepTag {
        repository: "image".to_owned(),
        tag: digits.get(..24).unwrap_or(digits).to_owned(),
    }
}

async fn keep(context: &Context, id: &ImageId) -> Result<(), PartFailure> {
    context
        .runtime
        .tag(id, &keep_tag(id))
        .await
        .map_err(|source| PartFailure::Engine {
            doing: "keeping the image",
            source,
        })
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

/// Stages the files and creates the container.
async fn make(
    execution: &Execution,
    action: &Action,
    after: &After,
    making: &Making,
    image: &ImageFacts,
) -> Result<Made, PartFailure> {
    let context = &execution.context;
    let key = execution.key(&action.component);
    let spec = &after.spec;
    stage(execution, &key, after, making.generation).await?;
    let labels = BTreeMap::from([
        (label::NODE.to_owned(), context.node.to_string()),
        (label::SERVICE.to_owned(), key.service.to_string()),
        (label::COMPONENT.to_owned(), key.component.to_string()),
        (label::REVISION.to_owned(), after.revision.to_string()),
        (label::SPEC.to_owned(), after.spec_digest.to_string()),
        (label::GENERATION.to_owned(), making.generation.to_string()),
        (label::DEPLOYMENT.to_owned(), execution.id.to_string()),
    ]);
    let request = ContainerRequest {
        name: making.name.clone(),
        image: image.id.clone(),
        spec: spec.clone(),
        labels,
        files: context.staging.paths(&key, making.generation, &spec.files),
    };
    let _slot = context
        .slots
        .acquire()
        .await
        .map_err(|_| PartFailure::NotReached)?;
    let id = create(execution, &key, &request).await?;
    let live = context
        .runtime
        .inspect(id.as_str())
        .await
        .and_then(|live| {
            live.ok_or(RuntimeError::NotFound {
                what: format!("container {}", making.name),
            })
        })
        .map_err(|source| PartFailure::Engine {
            doing: "looking at the new container",
            source,
        })?;
    execution.feed.tell(Some(&action.component), "created", "");
    Ok(Made {
        container: id,
        name: making.name.clone(),
        generation: making.generation,
        image: image.id.clone(),
        image_digest: image.digest,
        baseline: live.fields,
    })
}

async fn create(
    execution: &Execution,
    key: &ComponentKey,
    request: &ContainerRequest,
) -> Result<ContainerId, PartFailure> {
    let runtime = &execution.context.runtime;
    let engine = |source| PartFailure::Engine {
        doing: "creating the container",
        source,
    };
    let error = match runtime.create(request).await {
        Ok(id) => return Ok(id),
        Err(error) => error,
    };
    let taken = matches!(error, RuntimeError::NameTaken { .. });
    if !taken && !error.is_uncertain() {
        return Err(engine(error));
    }
    // A create that timed out may have succeeded; a name may be held by debris of our own.
    match runtime.inspect(&request.name).await.map_err(engine)? {
        Some(live) if live.labels.get(label::DEPLOYMENT) == Some(&execution.id.to_string()) => {
            Ok(live.id)
        }
        Some(live) if execution.is_debris(key, &live) => {
            runtime.remove(live.id.as_str()).await.map_err(engine)?;
            runtime.create(request).await.map_err(engine)
        }
        Some(live) => Err(PartFailure::NameTaken {
            name: request.name.clone(),
            id: live.id.short().to_owned(),
        }),
        None => {
            // Podman can hold a name in its storage with no container to show for it.
            runtime.remove(&request.name).await.map_err(engine)?;
            runtime.create(request).await.map_err(engine)
        }
    }
}

/// Writes the component's files from the revision's own bytes.
pub(super) async fn stage(
    execution: &Execution,
    key: &ComponentKey,
    after: &After,
    generation: u64,
) -> Result<(), PartFailure> {
    if after.spec.files.is_empty() {
        return Ok(());
    }
    for (target, file) in &after.spec.files {
        let bytes = execution.file_bytes(after.revision, &file.from).await?;
        let (staging, key, target, file) = (
            execution.context.staging.clone(),
            key.clone(),
            target.clone(),
            file.clone(),
        );
        blocking(move || staging.write(&key, generation, &target, &file, &bytes)).await?;
    }
    Ok(())
}
