//! Making a new container: its files staged, and the container created and looked at.

use std::collections::BTreeMap;

use mcp_spec::component::ComponentSpec;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerId, label};
use mcp_spec::plan::{Action, After};
use mcp_spec::revision::CommitId;

use super::context::Context;
use super::execution::Execution;
use super::failure::PartFailure;
use super::prepare::{Made, Making};
use super::secrets::{Delivered, deliver};
use crate::blocking::blocking;
use crate::runtime::{ContainerRequest, ImageFacts, RuntimeError};

/// Stages the files and creates the container.
pub(super) async fn make(
    execution: &Execution,
    action: &Action,
    after: &After,
    making: &Making,
    image: &ImageFacts,
) -> Result<Made, PartFailure> {
    let context = &execution.context;
    let key = execution.key(&action.component);
    let spec = &after.spec;
    let delivered = stage(context, &key, spec, after.revision, making.generation).await?;
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
        files: delivered.files,
        secret_env: delivered.env,
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
        Some(live) if execution.is_debris(key, &live).await => {
            runtime.remove(live.id.as_str()).await.map_err(engine)?;
            runtime.create(request).await.map_err(engine)
        }
        Some(live) => Err(PartFailure::NameTaken {
            name: request.name.clone(),
            id: live.id.short().to_owned(),
        }),
        None => {
            // Podman can hold a name in its storage with no container to show for it.
            if let Some(other) = runtime.free_name(&request.name).await.map_err(engine)? {
                return Err(PartFailure::NameTaken {
                    name: request.name.clone(),
                    id: other.short().to_owned(),
                });
            }
            runtime.create(request).await.map_err(engine)
        }
    }
}

/// Writes the component's files from the revision's own bytes, and lays its secrets ready.
pub(super) async fn stage(
    context: &Context,
    key: &ComponentKey,
    spec: &ComponentSpec,
    revision: CommitId,
    generation: u64,
) -> Result<Delivered, PartFailure> {
    for (target, file) in &spec.files {
        let bytes = context.file_bytes(revision, &file.from).await?;
        let (staging, key, target, file) = (
            context.staging_for_engine().await,
            key.clone(),
            target.clone(),
            file.clone(),
        );
        blocking(move || staging.write(&key, generation, &target, &file, &bytes)).await?;
    }
    let mut delivered = deliver(context, key, spec, revision, generation).await?;
    delivered
        .files
        .extend(context.staging.paths(key, generation, &spec.files));
    Ok(delivered)
}
