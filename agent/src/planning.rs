//! Planning on this node: gathers what a plan follows from, and calls the pure planner.
//!
//! Definitions come from the verified revisions, what was deployed from the registry, what runs from
//! the watch's snapshot, which events keep fresh. Nothing here changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mcp_spec::component::{Pull, VolumeSource};
use mcp_spec::definition::DesiredSet;
use mcp_spec::diff::file_changes_only;
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ComponentName, NodeName, ServiceName, Target};
use mcp_spec::observed::{ContainerId, ImageId, Observed, label};
use mcp_spec::plan::{
    Deployed, LifecycleInput, Obstacle, Options, Plan, PlanInput, Purpose, ServicePlan,
    ServiceSettings, Wanted, WantedService, plan, plan_purge, plan_restart, plan_start, plan_stop,
};
use mcp_spec::policy::Policy;
use mcp_spec::revision::CommitId;
use thiserror::Error;

use crate::blocking::blocking;
use crate::deploy::Replanned;
use crate::desired::{Desired, DesiredError};
use crate::registry::{DeployedRow, HistoryRow, Registry, RegistryError, Trigger};
use crate::revisions::{ResolveError, RevisionStore};
use crate::runtime::{Runtime, RuntimeError};
use crate::watch::{Snapshot, Watch};

/// Makes the plans of this node.
#[derive(Debug)]
pub struct Planner {
    /// This node.
    pub node: NodeName,
    /// The registry.
    pub registry: Registry,
    /// The revisions.
    pub revisions: Arc<RevisionStore>,
    /// Their compiled definitions.
    pub desired: Arc<Desired>,
    /// What runs.
    pub watch: Watch,
    /// The engine, for tags that are resolved anew.
    pub runtime: Arc<dyn Runtime>,
    /// What the node's owner allows.
    pub policy: Policy,
    /// The agent's own folder, over which nothing may be mounted.
    pub data_dir: PathBuf,
    /// Where services keep their data.
    pub services_dir: PathBuf,
    /// Oldest snapshot that a plan is made of.
    pub max_age: Duration,
}

/// What a plan is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What is named; `None` for every service of the node.
    pub targets: Option<Vec<Target>>,
    /// The revision as the operator wrote it; `None` for the head.
    pub revision: Option<String>,
    /// The operator's options.
    pub options: Options,
    /// Uncommitted edits, by path; `None` deletes.
    pub draft: Vec<(String, Option<Vec<u8>>)>,
    /// Whether the agent asks by itself.
    pub auto: bool,
    /// Whether tags of `pull = "always"` are resolved now: only where a deploy follows.
    pub resolve_tags: bool,
}

/// What an operator asks of whole services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    /// Start what does not run.
    Start,
    /// Stop, and stay stopped.
    Stop,
    /// Stop and start.
    Restart,
}

impl Lifecycle {
    /// The trigger that its deployments bear.
    #[must_use]
    pub const fn trigger(self) -> Trigger {
        match self {
            Self::Start => Trigger::Start,
            Self::Stop => Trigger::Stop,
            Self::Restart => Trigger::Restart,
        }
    }
}

/// A plan and what its execution has to know beside it.
#[derive(Debug, Clone)]
pub struct Planned {
    /// The plan.
    pub plan: Plan,
    /// Why it was made.
    pub purpose: Option<Purpose>,
    /// The history rows that a rollback restores.
    pub restores: BTreeMap<ComponentKey, i64>,
}

impl Planned {
    /// The only service of the plan.
    #[must_use]
    pub fn into_part(self) -> Option<Replanned> {
        let plan = self.plan.into_services().pop()?;
        let restores = self
            .restores
            .into_iter()
            .filter(|(key, _)| key.service == plan.service)
            .map(|(key, id)| (key.component, id))
            .collect();
        Some(Replanned { plan, restores })
    }
}

/// Why no plan could be made.
#[derive(Debug, Error)]
pub enum PlanError {
    /// The node has no revision yet.
    #[error("this node has no revision yet")]
    NoRevision,
    /// The revision is not known here.
    #[error(transparent)]
    Revision(#[from] ResolveError),
    /// Its definitions cannot be had.
    #[error(transparent)]
    Desired(#[from] DesiredError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A tag could not be resolved.
    #[error("cannot resolve the image of {key}")]
    Image {
        /// The component.
        key: ComponentKey,
        /// What the engine said.
        source: RuntimeError,
    },
}

impl PlanError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoRevision => "push one with: mcp sync".to_owned(),
            Self::Revision(_) => "see what the node holds: mcp revisions".to_owned(),
            Self::Desired(DesiredError::Definitions { errors, .. }) => errors
                .iter()
                .take(3)
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; "),
            Self::Desired(_) | Self::Registry(_) => {
                "look at the agent's log and disk: mcp-agent check".to_owned()
            }
            Self::Image { .. } => {
                "look whether the registry can be reached from the node".to_owned()
            }
        }
    }
}

/// What is known of the node at one moment.
struct Facts {
    rows: Vec<DeployedRow>,
    deployed: BTreeMap<ComponentKey, Deployed>,
    settings: BTreeMap<ServiceName, ServiceSettings>,
    observed: BTreeMap<ComponentKey, Observed>,
    foreign: BTreeMap<String, ContainerId>,
}

impl Planner {
    /// The head, or the revision that the operator names.
    ///
    /// # Errors
    ///
    /// [`PlanError::NoRevision`] and [`PlanError::Revision`].
    pub fn revision(&self, rev: Option<&str>) -> Result<CommitId, PlanError> {
        match rev {
            None => self.revisions.head().ok_or(PlanError::NoRevision),
            Some(rev) => match self.revisions.resolve(rev) {
                Err(ResolveError::Empty) => Err(PlanError::NoRevision),
                found => Ok(found?),
            },
        }
    }

    /// Plans a deploy.
    ///
    /// # Errors
    ///
    /// [`PlanError`].
    pub async fn deploy(&self, wish: &Wish) -> Result<Planned, PlanError> {
        let planned = self.deploy_as_seen(wish).await?;
        let blocked = |service: &ServicePlan| !service.blocked.is_empty();
        // The snapshot follows the engine's events by a moment: what blocks is looked at once more
        // before it is said, since an operator may just have cleared it away.
        if planned.plan.services().iter().any(blocked) && self.watch.fresh().await.is_ok() {
            return self.deploy_as_seen(wish).await;
        }
        Ok(planned)
    }

    /// Plans a deploy on what the snapshot shows.
    async fn deploy_as_seen(&self, wish: &Wish) -> Result<Planned, PlanError> {
        let head = self.revision(None)?;
        let revision = self.revision(wish.revision.as_deref())?;
        let purpose = if wish.auto {
            Purpose::Auto
        } else if revision == head {
            Purpose::Deploy
        } else {
            Purpose::DeployRevision
        };
        let set = self.desired_set(revision, wish.draft.clone()).await?;
        let facts = self.facts().await?;
        let mut wanted = BTreeMap::new();
        for (name, service) in &set.services {
            let mut components = BTreeMap::new();
            for (component, spec) in &service.components {
                let key = ComponentKey::new(name.clone(), component.clone());
                let deployed = facts.deployed.get(&key);
                let unchanged = deployed.is_some_and(|deployed| deployed.spec == *spec);
                components.insert(
                    component.clone(),
                    Wanted {
                        spec: spec.clone(),
                        revision,
                        image: None,
                        uncommitted: !wish.draft.is_empty() && !unchanged,
                    },
                );
            }
            wanted.insert(
                name.clone(),
                WantedService {
                    settings: ServiceSettings::of(service),
                    components,
                },
            );
        }
        self.recorded_images(wish.targets.as_deref(), &facts, &mut wanted)
            .await?;
        let moved = if wish.resolve_tags && purpose == Purpose::Deploy {
            self.moved_images(wish.targets.as_deref(), &facts, &wanted)
                .await?
        } else {
            BTreeMap::new()
        };
        let plan = self
            .plan(
                revision,
                purpose,
                wish.targets.as_deref(),
                wish.options,
                &wanted,
                &facts,
                &moved,
            )
            .await?;
        Ok(Planned {
            plan,
            purpose: Some(purpose),
            restores: BTreeMap::new(),
        })
    }

    /// Plans a rollback: each component to its previous successful different spec, or to what it ran
    /// at a revision.
    ///
    /// # Errors
    ///
    /// [`PlanError`].
    pub async fn rollback(
        &self,
        targets: &[Target],
        to: Option<&str>,
        options: Options,
    ) -> Result<Planned, PlanError> {
        let head = self.revision(None)?;
        let to = to.map(|rev| self.revision(Some(rev))).transpose()?;
        let facts = self.facts().await?;
        let mut wanted: BTreeMap<ServiceName, WantedService> = BTreeMap::new();
        let mut restores = BTreeMap::new();
        let mut revision = None;
        for row in &facts.rows {
            if !targets.iter().any(|target| target.covers(&row.key)) {
                continue;
            }
            let service = wanted
                .entry(row.key.service.clone())
                .or_insert_with(|| WantedService {
                    settings: row.settings,
                    components: BTreeMap::new(),
                });
            let restored: Option<HistoryRow> = match to {
                Some(to) => {
                    self.registry
                        .rollback_target_at(row.key.clone(), to)
                        .await?
                }
                None => self.registry.rollback_target(row.key.clone()).await?,
            };
            let Some(restored) = restored else {
                continue;
            };
            revision = revision.max(Some(restored.revision));
            restores.insert(row.key.clone(), restored.id);
            service.components.insert(
                row.key.component.clone(),
                Wanted {
                    spec: restored.spec,
                    revision: restored.revision,
                    image: Some(restored.image_id),
                    uncommitted: false,
                },
            );
        }
        let plan = self
            .plan(
                to.or(revision).unwrap_or(head),
                Purpose::Rollback,
                Some(targets),
                options,
                &wanted,
                &facts,
                &BTreeMap::new(),
            )
            .await?;
        Ok(Planned {
            plan,
            purpose: Some(Purpose::Rollback),
            restores,
        })
    }

    /// Plans a start, a stop or a restart of whole services.
    ///
    /// # Errors
    ///
    /// [`PlanError`].
    pub async fn lifecycle(
        &self,
        lifecycle: Lifecycle,
        services: &BTreeSet<ServiceName>,
    ) -> Result<Planned, PlanError> {
        let head = self.revision(None)?;
        let facts = self.facts().await?;
        let input = self.lifecycle_input(head, &facts);
        let plan = match lifecycle {
            Lifecycle::Start => plan_start(&input, services),
            Lifecycle::Stop => plan_stop(&input, services),
            Lifecycle::Restart => plan_restart(&input, services),
        };
        Ok(Planned {
            plan,
            purpose: None,
            restores: BTreeMap::new(),
        })
    }

    /// Plans the removal of what the head does not want.
    ///
    /// # Errors
    ///
    /// [`PlanError`].
    pub async fn purge(&self, targets: Option<&[Target]>) -> Result<Planned, PlanError> {
        let head = self.revision(None)?;
        let set = self.desired_set(head, Vec::new()).await?;
        let wanted: BTreeSet<ComponentKey> = set
            .services
            .values()
            .flat_map(|service| service.keys().collect::<Vec<_>>())
            .collect();
        let facts = self.facts().await?;
        let plan = plan_purge(&self.lifecycle_input(head, &facts), targets, &wanted);
        Ok(Planned {
            plan,
            purpose: None,
            restores: BTreeMap::new(),
        })
    }

    fn lifecycle_input<'a>(&'a self, revision: CommitId, facts: &'a Facts) -> LifecycleInput<'a> {
        LifecycleInput {
            node: &self.node,
            revision,
            deployed: &facts.deployed,
            settings: &facts.settings,
            observed: &facts.observed,
        }
    }

    async fn desired_set(
        &self,
        revision: CommitId,
        draft: Vec<(String, Option<Vec<u8>>)>,
    ) -> Result<Arc<DesiredSet>, DesiredError> {
        let desired = self.desired.clone();
        blocking(move || {
            if draft.is_empty() {
                desired.at(revision)
            } else {
                desired.with_draft(revision, &draft).map(Arc::new)
            }
        })
        .await
    }

    async fn facts(&self) -> Result<Facts, PlanError> {
        let (rows, seen) = self.registry.deployed_and_observed().await?;
        // An engine that does not answer gives unknowns, and no action follows from those.
        let snapshot = match self.watch.usable(self.max_age).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::debug!(%error, "planning without the engine");
                self.watch.current()
            }
        };
        let restarts: BTreeMap<&ComponentKey, u32> =
            seen.iter().map(|row| (&row.key, row.restarts)).collect();
        let mut deployed = BTreeMap::new();
        let mut settings = BTreeMap::new();
        let mut observed = BTreeMap::new();
        for row in &rows {
            settings.insert(row.key.service.clone(), row.settings);
            observed.insert(row.key.clone(), snapshot.of_container(&row.container));
            deployed.insert(
                row.key.clone(),
                deployed_of(row, restarts.get(&row.key).copied().unwrap_or(0)),
            );
        }
        let foreign = self.foreign(&rows, &snapshot);
        Ok(Facts {
            rows,
            deployed,
            settings,
            observed,
            foreign,
        })
    }

    /// The names that containers bear which are not this agent's.
    fn foreign(&self, rows: &[DeployedRow], snapshot: &Snapshot) -> BTreeMap<String, ContainerId> {
        let registered: BTreeSet<&ContainerId> = rows.iter().map(|row| &row.container).collect();
        snapshot
            .containers
            .values()
            .filter(|live| {
                let ours = live.labels.get(label::NODE).map(String::as_str)
                    == Some(self.node.as_str())
                    && live.claimed_key().is_some();
                !ours && !registered.contains(&live.id)
            })
            .map(|live| (live.name.clone(), live.id.clone()))
            .collect()
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of what a plan follows from, gathered here alone"
    )]
    async fn plan(
        &self,
        revision: CommitId,
        purpose: Purpose,
        targets: Option<&[Target]>,
        options: Options,
        wanted: &BTreeMap<ServiceName, WantedService>,
        facts: &Facts,
        moved: &BTreeMap<ComponentKey, ImageId>,
    ) -> Result<Plan, PlanError> {
        let quarantined = self
            .registry
            .quarantined()
            .await?
            .into_iter()
            .map(|entry| (entry.key, entry.spec_digest))
            .collect();
        let forbidden = self.forbidden(targets, wanted);
        Ok(plan(&PlanInput {
            node: &self.node,
            revision,
            purpose,
            targets,
            options,
            wanted,
            deployed: &facts.deployed,
            observed: &facts.observed,
            foreign_names: &facts.foreign,
            moved_images: moved,
            forbidden: &forbidden,
            quarantined: &quarantined,
            policy_digest: self.policy_digest(),
        }))
    }

    fn policy_digest(&self) -> Digest {
        let text = serde_json::to_vec(&self.policy)
            .expect("a policy holds only strings, numbers and lists");
        Digest::of(&text)
    }

    /// What the policy refuses, and what is missing on the node.
    fn forbidden(
        &self,
        targets: Option<&[Target]>,
        wanted: &BTreeMap<ServiceName, WantedService>,
    ) -> BTreeMap<ComponentKey, Vec<Obstacle>> {
        let data_dir = self.data_dir.display().to_string();
        let mut forbidden = BTreeMap::new();
        for (key, want) in chosen(targets, wanted) {
            let mut obstacles: Vec<Obstacle> = self
                .policy
                .violations(&key, &want.spec, &data_dir)
                .into_iter()
                .map(|violation| Obstacle {
                    reason: violation.message,
                    hint: violation.hint,
                })
                .collect();
            let own = self.services_dir.join(key.service.as_str());
            for volume in want.spec.volumes.values() {
                let VolumeSource::Bind(path) = &volume.source else {
                    continue;
                };
                let path = PathBuf::from(path);
                if obstacles.is_empty() && path != own && std::fs::symlink_metadata(&path).is_err()
                {
                    obstacles.push(Obstacle {
                        reason: format!("bind source {} does not exist", path.display()),
                        hint: "create it on the node, or use a named volume".to_owned(),
                    });
                }
            }
            if !obstacles.is_empty() {
                forbidden.insert(key, obstacles);
            }
        }
        forbidden
    }

    /// The images that were recorded for specs that are wanted again.
    async fn recorded_images(
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
    async fn moved_images(
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
fn chosen<'a>(
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

/// A registry's row as the planner takes it.
#[must_use]
pub fn deployed_of(row: &DeployedRow, restarts: u32) -> Deployed {
    Deployed {
        spec: row.spec.clone(),
        spec_digest: row.spec_digest,
        image: row.image_id.clone(),
        revision: row.revision,
        container: row.container.clone(),
        generation: row.generation,
        desired: row.desired,
        stopped_by: row.stopped_by.as_ref().map(|stop| stop.by.clone()),
        held_at: row.hold.as_ref().map(|hold| hold.revision),
        baseline: row.baseline.clone(),
        restarts,
    }
}
