//! What is wanted, made ready for the planner: what the policy refuses, and which images are meant.

use std::collections::BTreeMap;

use mcp_spec::component::Pull;
use mcp_spec::diff::file_changes_only;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName, ServiceName, Target};
use mcp_spec::observed::ImageId;
use mcp_spec::plan::{Obstacle, Wanted, WantedService};

use super::binds::Binds;
use super::facts::Facts;
use super::{PlanError, Planner};
use crate::registry::RegistryError;

impl Planner {
    pub(super) fn policy_digest(&self) -> Digest {
        let text = serde_json::to_vec(&self.policy)
            .expect("a policy holds only strings, numbers and lists");
        Digest::of(&text)
    }

    /// What the policy refuses, and what is missing on the node.
    pub(super) fn forbidden(
        &self,
        targets: Option<&[Target]>,
        wanted: &BTreeMap<ServiceName, WantedService>,
        facts: &Facts,
    ) -> BTreeMap<ComponentKey, Vec<Obstacle>> {
        let data_dir = self.data_dir.display().to_string();
        let staying = facts
            .deployed
            .iter()
            .filter(|(key, _)| {
                // What a plan of the whole service replaces or removes is gone after it.
                let is_planned = wanted.contains_key(&key.service)
                    && targets.is_none_or(|targets| targets.iter().any(|t| t.covers(key)));
                !is_planned
            })
            .map(|(key, deployed)| (key, &deployed.spec));
        let chosen: Vec<(ComponentKey, &Wanted)> = chosen(targets, wanted).collect();
        let coming = chosen.iter().map(|(key, want)| (key, &want.spec));
        let binds = Binds::of(&self.policy, &self.data_dir, staying.chain(coming));
        let mut forbidden = BTreeMap::new();
        for (key, want) in &chosen {
            let mut obstacles: Vec<Obstacle> = self
                .policy
                .violations(key, &want.spec, &data_dir)
                .into_iter()
                .map(|violation| Obstacle {
                    is_policy: true,
                    reason: violation.message,
                    hint: violation.hint,
                })
                .collect();
            if obstacles.is_empty() {
                let own = self.services_dir.join(key.service.as_str());
                obstacles = binds.obstacles(key, &want.spec, &own);
            }
            if !obstacles.is_empty() {
                forbidden.insert(key.clone(), obstacles);
            }
        }
        forbidden
    }

    /// The images that were recorded for specs that are wanted again.
    pub(super) async fn recorded_images(
        &self,
        targets: Option<&[Target]>,
        facts: &Facts,
        wanted: &mut BTreeMap<ServiceName, WantedService>,
    ) -> Result<(), RegistryError> {
        let changed: Vec<ComponentKey> = chosen(targets, wanted)
            .filter(|(key, want)| {
                facts
                    .deployed
                    .get(key)
                    .is_some_and(|deployed| deployed.spec != want.spec)
            })
            .map(|(key, _)| key)
            .collect();
        for key in changed {
            let Some(want) = wanted
                .get_mut(&key.service)
                .and_then(|service| service.components.get_mut(&key.component))
            else {
                continue;
            };
            let recorded = self
                .registry
                .image_for_spec(key, want.spec.digest())
                .await?;
            want.image = recorded.map(|(image, _)| image);
        }
        for (name, service) in wanted.iter_mut() {
            for (component, want) in &mut service.components {
                let key = ComponentKey::new(name.clone(), component.clone());
                if let Some(deployed) = facts.deployed.get(&key)
                    && deployed.spec == want.spec
                {
                    want.image = Some(deployed.image.clone());
                }
            }
        }
        Ok(())
    }

    /// The images that the tags of `pull = "always"` stand for now, where the spec is unchanged but for
    /// the bytes of files: any other change makes a new container, which resolves its tag itself.
    pub(super) async fn moved_images(
        &self,
        targets: Option<&[Target]>,
        facts: &Facts,
        wanted: &BTreeMap<ServiceName, WantedService>,
    ) -> Result<BTreeMap<ComponentKey, ImageId>, PlanError> {
        let mut moved = BTreeMap::new();
        for (key, want) in chosen(targets, wanted) {
            let unchanged = facts
                .deployed
                .get(&key)
                .is_some_and(|deployed| file_changes_only(&deployed.spec, &want.spec).is_some());
            if want.spec.pull == Pull::Always && unchanged && !want.spec.kind.is_job() {
                let now = self
                    .runtime
                    .pull(&want.spec.image, &|_| {})
                    .await
                    .map_err(|source| PlanError::Image {
                        key: key.clone(),
                        source,
                    })?;
                moved.insert(key, now.id);
            }
        }
        Ok(moved)
    }
}

/// The wanted components that the targets cover.
pub(super) fn chosen<'a>(
    targets: Option<&'a [Target]>,
    wanted: &'a BTreeMap<ServiceName, WantedService>,
) -> impl Iterator<Item = (ComponentKey, &'a Wanted)> {
    wanted
        .iter()
        .flat_map(|(name, service)| {
            service
                .components
                .iter()
                .map(move |(component, want): (&ComponentName, _)| {
                    (ComponentKey::new(name.clone(), component.clone()), want)
                })
        })
        .filter(move |(key, _)| {
            // A dependency may come along, so a named component brings its whole service.
            targets.is_none_or(|targets| targets.iter().any(|t| t.service == key.service))
        })
}
