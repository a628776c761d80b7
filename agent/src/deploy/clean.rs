//! Clearing away what nothing needs any more: containers, staged files, networks, volumes and the
//! names that keep images. What cannot be removed is left; it changes no outcome.

use std::collections::{BTreeMap, BTreeSet};

use mcp_spec::capture::is_anonymous;
use mcp_spec::component::{ComponentSpec, Network, VolumeSource};
use mcp_spec::name::{ComponentKey, ComponentName};
use mcp_spec::observed::{ContainerId, ImageId, label};
use mcp_spec::plan::ActionKind;
use tokio::time::Instant;

use super::compensate::clear_new;
use super::context::IN_FLIGHT;
use super::execution::Execution;
use super::failure::PartFailure;
use super::images::keep_tag;
use super::prepare::Made;
use super::stage::Staging;
use crate::blocking::blocking;

impl Execution {
    /// Removes every container that the journal says was made, or was about to be.
    pub(super) async fn clear_makings(&self) {
        let steps = match self.context.registry.steps(self.id.clone()).await {
            Ok(steps) => steps,
            Err(error) => {
                tracing::error!(deployment = %self.id, %error, "cannot read the journal to clear away");
                return self.left_over();
            }
        };
        let makings = super::recover::makings(&steps);
        let made = super::recover::made(&steps);
        let images: Vec<ImageId> = makings
            .values()
            .filter_map(|making| making.image.clone())
            .collect();
        let until = Instant::now() + IN_FLIGHT;
        for (component, making) in &makings {
            let key = self.key(component);
            let seen = if self.is_resumed() && !made.contains_key(component) {
                // The engine may still be at it: it goes on when its client is killed.
                self.context.appearing(&making.name, until).await
            } else {
                self.context.runtime.inspect(&making.name).await
            };
            match seen {
                Ok(Some(live)) if self.is_debris(&key, &live).await => {
                    self.remove_container(component, &live.id).await;
                }
                Ok(Some(_)) => {}
                // Podman may still hold the name in its storage, with no container to show for it.
                Ok(None) => drop(self.context.runtime.free_name(&making.name).await),
                Err(error) => {
                    tracing::warn!(deployment = %self.id, name = making.name, %error, "cannot look for a leftover");
                    self.left_over();
                }
            }
            self.remove_files(component, making.generation).await;
        }
        self.drop_networks(
            self.plan
                .actions
                .iter()
                .filter_map(|action| action.after.as_ref())
                .map(|after| &after.spec),
        )
        .await;
        self.drop_images(images.into_iter()).await;
    }

    /// A component that was not reached keeps what it has; what was made for it goes.
    pub(super) async fn clear_unreached(&self, made: &BTreeMap<ComponentName, Made>) {
        let unreached = made
            .iter()
            .filter(|(component, _)| !self.is_touched(component))
            .map(|(component, made)| (component.clone(), made.clone()))
            .collect();
        clear_new(self, &unreached, &BTreeMap::new(), &BTreeMap::new()).await;
    }

    /// Removes old containers, files, networks and kept images that nothing needs any more.
    pub(super) async fn clean(
        &self,
        failed: &BTreeMap<ComponentName, PartFailure>,
        keep_before: Vec<(ComponentKey, mcp_spec::observed::ImageId)>,
    ) {
        let mut removals = Vec::new();
        for action in &self.plan.actions {
            let Some(before) = &action.before else {
                continue;
            };
            let has_failed = failed.contains_key(&action.component);
            // The registry still holds what was not reached, and what could not be stopped.
            let is_kept = has_failed
                && (action.kind == ActionKind::Remove || !self.is_touched(&action.component));
            match action.kind {
                ActionKind::Replace | ActionKind::Remove if before.present && !is_kept => {
                    removals.push((&action.component, &before.container, before.generation));
                }
                ActionKind::Create if !has_failed => {
                    self.remove_files(&action.component, before.generation)
                        .await;
                }
                ActionKind::Restart | ActionKind::Signal | ActionKind::None => {
                    if let (Some(after), false) = (&action.after, action.files.is_empty()) {
                        let (staging, key) =
                            (self.context.staging.clone(), self.key(&action.component));
                        let (generation, files) = (before.generation, after.spec.files.clone());
                        blocking(move || staging.settle(&key, generation, &files)).await;
                    }
                }
                _ => {}
            }
        }
        futures_util::future::join_all(removals.into_iter().map(
            |(component, container, generation)| async move {
                let slot = self.context.slots.acquire().await;
                self.remove_container(component, container).await;
                drop(slot);
                self.remove_files(component, generation).await;
            },
        ))
        .await;
        self.drop_networks(self.old_specs.values()).await;
        if self.order.volumes {
            self.drop_volumes().await;
        }
        self.drop_images(keep_before.into_iter().map(|(_, image)| image))
            .await;
    }

    /// Lets go of those images that will not be needed again.
    pub(super) async fn drop_images(&self, images: impl Iterator<Item = ImageId>) {
        let images: BTreeSet<ImageId> = images.collect();
        if images.is_empty() {
            return;
        }
        let Ok(keep) = self.context.registry.images_to_keep().await else {
            return self.left_over();
        };
        let keep: BTreeSet<ImageId> = keep.into_iter().map(|(_, image)| image).collect();
        for image in images.difference(&keep) {
            if let Err(error) = self.context.runtime.untag(&keep_tag(image)).await {
                tracing::warn!(image = %image, %error, "cannot let go of an image");
                self.left_over();
            }
        }
    }

    /// Something could not be cleared away: the next sweep takes it up.
    pub(super) fn left_over(&self) {
        self.context.upkeep.debris.notify_one();
    }

    /// Removes those networks of `specs` that the agent made and no deployed component joins.
    pub(super) async fn drop_networks<'a>(&self, specs: impl Iterator<Item = &'a ComponentSpec>) {
        let mut names: Vec<String> = specs
            .filter_map(|spec| match &spec.network {
                Network::User(attachments) => Some(attachments.keys()),
                _ => None,
            })
            .flatten()
            .cloned()
            .collect();
        names.sort();
        names.dedup();
        self.drop_unjoined(names).await;
    }

    /// Removes those networks that were made for the service and that no deployed component joins.
    pub(super) async fn drop_networks_of_service(&self) {
        let service = self.plan.service.as_str();
        match self.context.runtime.networks(label::SERVICE, service).await {
            Ok(names) => self.drop_unjoined(names).await,
            Err(error) => {
                tracing::warn!(service, %error, "cannot tell which networks were made for it");
                self.left_over();
            }
        }
    }

    async fn drop_unjoined(&self, mut names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        let Ok(deployed) = self.context.registry.deployed_all().await else {
            return self.left_over();
        };
        names.retain(|name| {
            deployed.iter().all(|row| match &row.spec.network {
                Network::User(attachments) => !attachments.contains_key(name),
                _ => true,
            })
        });
        if names.is_empty() {
            return;
        }
        let runtime = &self.context.runtime;
        let Ok(ours) = runtime
            .networks(label::NODE, self.context.node.as_str())
            .await
        else {
            return self.left_over();
        };
        for name in names {
            if ours.contains(&name)
                && let Err(error) = runtime.remove_network(&name).await
            {
                tracing::warn!(network = name, %error, "cannot remove a network");
                self.left_over();
            }
        }
    }

    /// Removes those named volumes of components that were removed that the agent made and no
    /// deployed component mounts.
    async fn drop_volumes(&self) {
        let runtime = &self.context.runtime;
        let (Ok(deployed), Ok(ours)) = (
            self.context.registry.deployed_all().await,
            runtime
                .volumes(label::NODE, self.context.node.as_str())
                .await,
        ) else {
            tracing::warn!(deployment = %self.id, "cannot tell which volumes may go; all stay");
            return;
        };
        let is_mounted = |name: &str| {
            deployed.iter().any(|row| {
                row.spec.volumes.values().any(
                    |volume| matches!(&volume.source, VolumeSource::Named(other) if other == name),
                )
            })
        };
        for action in &self.plan.actions {
            let (ActionKind::Remove, Some(spec)) =
                (action.kind, self.old_specs.get(&action.component))
            else {
                continue;
            };
            for volume in spec.volumes.values() {
                if let VolumeSource::Named(name) = &volume.source
                    && ours.contains(name)
                    && !is_mounted(name)
                    && let Err(error) = runtime.remove_volume(name).await
                {
                    tracing::warn!(volume = name, %error, "cannot remove a volume");
                }
            }
        }
    }

    /// Whether a component's container may hold data in volumes that nobody named: it was taken over, or
    /// has such a volume from one that was.
    fn keeps_volumes(&self, component: &ComponentName) -> bool {
        let is_adopted = self.old.get(component).is_some_and(|old| old.adopted);
        let after = self
            .action(component)
            .and_then(|action| action.after.as_ref())
            .map(|after| &after.spec);
        let mut specs = self.old_specs.get(component).into_iter().chain(after);
        is_adopted || specs.any(mounts_anonymous)
    }

    pub(super) async fn remove_container(
        &self,
        component: &ComponentName,
        container: &ContainerId,
    ) {
        let runtime = &self.context.runtime;
        let removed = if self.keeps_volumes(component) {
            runtime.remove_but_volumes(container.as_str()).await
        } else {
            runtime.remove(container.as_str()).await
        };
        if let Err(error) = removed {
            tracing::warn!(
                deployment = %self.id, component = %component, container = container.short(), %error,
                "cannot remove a container; the next sweep tries again"
            );
            self.left_over();
        }
    }

    pub(super) async fn remove_files(&self, component: &ComponentName, generation: u64) {
        let (staging, key) = (self.context.staging.clone(), self.key(component));
        let memory = self.context.memory.clone();
        let remove = move || {
            if let Some(folder) = memory.found() {
                Staging::at(folder).remove(&key, generation)?;
            }
            staging.remove(&key, generation)
        };
        if let Err(error) = blocking(remove).await {
            tracing::warn!(component = %component, generation, %error, "cannot remove staged files");
            self.left_over();
        }
    }
}

/// Whether a component mounts a volume by the name that an engine made up for it.
pub(super) fn mounts_anonymous(spec: &ComponentSpec) -> bool {
    spec.volumes
        .values()
        .any(|volume| matches!(&volume.source, VolumeSource::Named(name) if is_anonymous(name)))
}
