//! Delivering secrets: opened in memory, laid where the container mounts them, before each of its starts.
//!
//! The files lie at `FOLDER/SERVICE/COMPONENT/gN/NAME` as staged files do, in a folder that is memory. A generation's
//! paths never change, so a container that was made before a reboot finds its files again. A value is taken from the
//! revision that was deployed, or from the head where that one does not open any more (the identity was
//! rotated since), and only where it is the value that was deployed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mcp_seal::Value;
use mcp_spec::component::{ComponentSpec, FileMount, OnChange};
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName, SecretName};
use mcp_spec::observed::ContainerId;
use mcp_spec::revision::CommitId;
use mcp_spec::secret::secret_path;

use super::context::Context;
use super::execution::Execution;
use super::failure::PartFailure;
use super::stage::Staging;
use crate::blocking::blocking;
use crate::registry::DeployedRow;

/// What a container is given of its secrets.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    /// Files on the node by target path.
    pub(super) files: BTreeMap<String, PathBuf>,
    /// Values by the variable's name.
    pub(super) env: BTreeMap<String, Value>,
}

/// Lays a component's secrets ready for one generation.
pub(super) async fn deliver(
    context: &Context,
    key: &ComponentKey,
    spec: &ComponentSpec,
    revision: CommitId,
    generation: u64,
) -> Result<Delivered, PartFailure> {
    let mut delivered = Delivered::default();
    for (variable, secret) in &spec.secret_env {
        let value = value_of(context, key, &secret.name, secret.digest, revision).await?;
        let is_text = std::str::from_utf8(value.expose()).is_ok_and(|text| !text.contains('\0'));
        if !is_text {
            return Err(PartFailure::Secret {
                secret: format!("{}/{}", key.service, secret.name),
                cause: format!("it is no text, and cannot be the variable {variable}"),
            });
        }
        delivered.env.insert(variable.clone(), value);
    }
    if spec.secrets.is_empty() {
        return Ok(delivered);
    }
    let staging = staging(context).await?;
    let mut mounts = BTreeMap::new();
    for (target, secret) in &spec.secrets {
        let value = value_of(context, key, &secret.name, secret.digest, revision).await?;
        let file = FileMount {
            from: secret_path(&key.service, &secret.name),
            // Of the value itself, for the staging's own check; it goes nowhere else.
            digest: Digest::of(value.expose()),
            mode: secret.mode,
            owner: secret.owner,
            on_change: OnChange::Recreate,
        };
        mounts.insert(target.clone(), file.clone());
        let (staging, key, target) = (staging.clone(), key.clone(), target.clone());
        blocking(move || staging.write(&key, generation, &target, &file, value.expose())).await?;
    }
    delivered.files = staging.paths(key, generation, &mounts);
    Ok(delivered)
}

/// Lays the secrets of a registered container ready again, before it is started. Where they cannot be opened any
/// more, those that were laid there before will do.
pub(super) async fn deliver_again(context: &Context, row: &DeployedRow) -> Result<(), PartFailure> {
    if row.spec.secrets.is_empty() {
        return Ok(());
    }
    let mut spec = row.spec.clone();
    // Variables were given when it was made.
    spec.secret_env.clear();
    let delivery = deliver(context, &row.key, &spec, row.revision, row.generation).await;
    let Err(failure) = delivery else {
        return Ok(());
    };
    let (memory, key, generation) = (context.memory.clone(), row.key.clone(), row.generation);
    let are_there = blocking(move || {
        memory.found().is_some_and(|folder| {
            let staging = Staging::at(folder);
            let targets = spec.secrets.keys();
            targets
                .into_iter()
                .all(|target| staging.has(&key, generation, target))
        })
    })
    .await;
    if are_there {
        tracing::warn!(component = %row.key, %failure, "started with the secrets that were delivered before");
        return Ok(());
    }
    Err(failure)
}

/// Lays the secrets ready of a container that is about to be started in a deployment.
pub(super) async fn lay_ready(
    execution: &Execution,
    component: &ComponentName,
    container: &ContainerId,
) -> Result<(), PartFailure> {
    let context = &execution.context;
    if let Some(row) = execution.old.get(component)
        && row.container == *container
    {
        return deliver_again(context, row).await;
    }
    // A new one got them when it was made; a reboot since then took them away.
    let action = execution
        .plan
        .actions
        .iter()
        .find(|action| action.component == *component);
    let Some(after) = action.and_then(|action| action.after.as_ref()) else {
        return Ok(());
    };
    if after.spec.secrets.is_empty() {
        return Ok(());
    }
    let live = context.runtime.inspect(container.as_str()).await;
    let Some(generation) = live.ok().flatten().and_then(|live| live.generation()) else {
        // The start itself says what is wrong.
        return Ok(());
    };
    let key = execution.key(component);
    deliver(context, &key, &after.spec, after.revision, generation)
        .await
        .map(drop)
}

/// The staging of files that are memory.
pub(super) async fn staging(context: &Context) -> Result<Staging, PartFailure> {
    let memory = context.memory.clone();
    let folder = blocking(move || memory.ready()).await?;
    Ok(Staging::at(folder).among(context.runtime.user_namespace().await))
}

/// The value that a digest stands for.
async fn value_of(
    context: &Context,
    key: &ComponentKey,
    name: &SecretName,
    digest: Digest,
    revision: CommitId,
) -> Result<Value, PartFailure> {
    let path = secret_path(&key.service, name);
    let head = context.revisions.head().filter(|head| *head != revision);
    let mut failure = None;
    for commit in std::iter::once(revision).chain(head) {
        match opened(context, key, name, &path, digest, commit).await {
            Ok(value) => return Ok(value),
            // What the deployed revision says is why.
            Err(error) => drop(failure.get_or_insert(error)),
        }
    }
    Err(failure.expect("a revision was tried"))
}

async fn opened(
    context: &Context,
    key: &ComponentKey,
    name: &SecretName,
    path: &str,
    digest: Digest,
    commit: CommitId,
) -> Result<Value, PartFailure> {
    let sealed = context.file_bytes(commit, path).await?;
    let failure = |cause: String| PartFailure::Secret {
        secret: format!("{}/{name}", key.service),
        cause,
    };
    let (keyring, service, secret) = (
        context.revisions.keyring().clone(),
        key.service.clone(),
        name.clone(),
    );
    let (value, found) = blocking(move || {
        let value = keyring.open(&service, &secret, &sealed)?;
        let found = keyring.digest_of_value(&service, &secret, &value)?;
        Ok::<_, crate::secrets::SecretError>((value, found))
    })
    .await
    .map_err(|error| failure(format!("{error}; {}", error.hint())))?;
    if found != digest {
        return Err(failure(format!(
            "{} holds another value than the one that was deployed",
            commit.short()
        )));
    }
    Ok(value)
}
