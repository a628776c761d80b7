//! Making a registered container anew, from the same spec and image, where the engine will never start it.
//!
//! A dockerd that is killed while it starts a container leaves the container's task with containerd:
//! every further start of that container ends with `task already exists`, a restart of dockerd or not
//! (seen with 20.10). Another container of the same spec starts.
//!
//! The new container is registered before it bears the name or runs, so that a crash at any point leaves
//! a registered container which the next start by the restart policy starts, a name that the sweep gives
//! back, and a broken container that it removes.

use std::collections::BTreeMap;
use std::time::Duration;

use mcp_spec::name::ComponentName;
use mcp_spec::observed::{ContainerId, label};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::context::{ATTEMPT, Context, Settled};
use super::execution::Execution;
use super::failure::PartFailure;
use super::make::stage;
use super::prepare::generation_name;
use super::secrets::deliver_again;
use super::steps::start;
use crate::registry::{DeployedRow, NewEvent, Remade};
use crate::runtime::{ContainerRequest, RuntimeError};

/// How often a container that the engine holds on to is tried again before it is made anew: an engine that
/// came back a moment ago may yet let go of it.
const TRIES: u32 = 3;

/// Pause between these tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Starts a registered container; where the engine will never start it, another one in its place. Gives
/// the one that runs.
pub(super) async fn start_registered(
    execution: &Execution,
    component: &ComponentName,
    container: &ContainerId,
    deadline: Instant,
) -> Result<ContainerId, PartFailure> {
    let container = execution.current(component, container);
    let mut tries = 1;
    let failure = loop {
        match start(execution, component, &container, deadline).await {
            Ok(()) => return Ok(container),
            Err(failure) if failure.stuck().is_some() && tries < TRIES => {
                tries += 1;
                sleep(PAUSE).await;
            }
            Err(failure) => break failure,
        }
    };
    let row = execution.old.get(component);
    let (Some(row), Some(cause)) = (
        row.filter(|row| row.container == container),
        failure.stuck(),
    ) else {
        return Err(failure);
    };
    let remade = remake(&execution.context, row, cause).await?;
    let container = remade.container.clone();
    execution.note_remade(component, remade);
    take_place(&execution.context, row, &container).await?;
    start(execution, component, &container, deadline).await?;
    Ok(container)
}

/// Starts a registered container outside a deployment, as [`start_registered`] does, within `longest` a
/// try. Tells what was made anew for it.
pub(super) async fn revive_registered(
    context: &Context,
    row: &DeployedRow,
    longest: Duration,
) -> (Settled, Option<ContainerId>) {
    if let Err(failure) = deliver_again(context, row).await {
        let failure = RuntimeError::Impossible {
            what: "its secrets".to_owned(),
            why: failure.to_string(),
        };
        return (Settled::Failed(failure), None);
    }
    let mut settled = started(context, &row.container, longest).await;
    for _ in 1..TRIES {
        if !matches!(&settled, Settled::Failed(RuntimeError::Stuck { .. })) {
            break;
        }
        sleep(PAUSE).await;
        settled = started(context, &row.container, longest).await;
    }
    let Settled::Failed(cause @ RuntimeError::Stuck { .. }) = &settled else {
        return (settled, None);
    };
    let remade = match remake(context, row, cause).await {
        Ok(remade) => take_place(context, row, &remade.container)
            .await
            .map(|()| remade.container),
        Err(failure) => Err(failure),
    };
    match remade {
        Ok(container) => (started(context, &container, longest).await, Some(container)),
        Err(failure) => {
            tracing::warn!(component = %row.key, %failure, "cannot make the container anew");
            (settled, None)
        }
    }
}

async fn started(context: &Context, container: &ContainerId, longest: Duration) -> Settled {
    context
        .settle(
            container.as_str(),
            Instant::now() + longest,
            ATTEMPT,
            || context.runtime.start(container),
            |live| live.is_some_and(|live| live.state.is_running()),
        )
        .await
}

/// Makes the container of a component anew and registers it.
async fn remake(
    context: &Context,
    row: &DeployedRow,
    cause: &RuntimeError,
) -> Result<Remade, PartFailure> {
    let engine = |doing| move |source| PartFailure::Engine { doing, source };
    if row.adopted {
        // Its spec was read from it, and may not say all of it.
        let source = cause.clone();
        return Err(engine("starting the container")(source));
    }
    let runtime = &context.runtime;
    let image = runtime
        .image_by_id(&row.image_id)
        .await
        .map_err(engine("looking for the image"))?
        .ok_or_else(|| PartFailure::ImageLost {
            image: row.spec.image.to_string(),
            id: row.image_id.to_string(),
        })?;
    let generation = context.registry.next_generation(row.key.clone()).await?;
    let delivered = stage(context, &row.key, &row.spec, row.revision, generation).await?;
    let request = ContainerRequest {
        name: generation_name(&row.key, generation),
        image: image.id,
        spec: row.spec.clone(),
        labels: BTreeMap::from([
            (label::NODE.to_owned(), context.node.to_string()),
            (label::SERVICE.to_owned(), row.key.service.to_string()),
            (label::COMPONENT.to_owned(), row.key.component.to_string()),
            (label::REVISION.to_owned(), row.revision.to_string()),
            (label::SPEC.to_owned(), row.spec_digest.to_string()),
            (label::GENERATION.to_owned(), generation.to_string()),
            (label::DEPLOYMENT.to_owned(), row.deployment.to_string()),
        ]),
        files: delivered.files,
        secret_env: delivered.env,
    };
    let container = runtime
        .create(&request)
        .await
        .map_err(engine("creating the container"))?;
    let live = runtime
        .inspect(container.as_str())
        .await
        .map_err(engine("looking at the new container"))?;
    let Some(live) = live else {
        let what = format!("container {}", request.name);
        let source = RuntimeError::NotFound { what };
        return Err(engine("looking at the new container")(source));
    };
    let event = NewEvent {
        at: context.clock.now(),
        service: Some(row.key.service.clone()),
        component: Some(row.key.component.clone()),
        kind: "remade".to_owned(),
        reason: "engine-stuck".to_owned(),
        message: format!("{} was made anew: {cause}", row.key),
        revision: Some(row.revision),
        data: json!({ "container": container.as_str(), "before": row.container.as_str() }),
    };
    let remade = Remade {
        container: container.clone(),
        generation,
        baseline: live.fields.clone(),
    };
    let is_registered = context
        .registry
        .remade(
            row.key.clone(),
            row.container.clone(),
            remade.clone(),
            event,
        )
        .await?;
    if !is_registered {
        // A deployment came first.
        drop(runtime.remove(container.as_str()).await);
        return Err(PartFailure::NotReached);
    }
    tracing::warn!(component = %row.key, %cause, "made the container anew");
    Ok(remade)
}

/// Removes the broken container and gives its name to the new one.
async fn take_place(
    context: &Context,
    row: &DeployedRow,
    container: &ContainerId,
) -> Result<(), PartFailure> {
    let engine = |doing| move |source| PartFailure::Engine { doing, source };
    let runtime = &context.runtime;
    if let Err(error) = runtime.remove(row.container.as_str()).await {
        tracing::warn!(component = %row.key, %error, "cannot remove the broken container yet");
        let aside = format!("{}.stuck", generation_name(&row.key, row.generation));
        runtime
            .rename(&row.container, &aside)
            .await
            .map_err(engine("renaming the broken container"))?;
        context.upkeep.debris.notify_one();
    } else {
        context.sightings.gone(vec![row.container.clone()]);
    }
    runtime
        .rename(container, &row.key.container_name())
        .await
        .map_err(engine("renaming the container"))
}
