//! Planning on this node: gathers what a plan follows from, and calls the pure planner.
//!
//! Definitions come from the verified revisions, what was deployed from the registry, what runs from
//! the watch's snapshot, which events keep fresh. Nothing here changes anything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mcp_spec::definition::DesiredSet;
use mcp_spec::name::{ComponentKey, NodeName, ServiceName, Target};
use mcp_spec::observed::ImageId;
use mcp_spec::plan::{
    LifecycleInput, Options, Plan, PlanInput, Purpose, ServicePlan, ServiceSettings, Wanted,
    WantedService, plan, plan_bring_back, plan_purge, plan_restart, plan_start, plan_stop,
};
use mcp_spec::policy::Policy;
use mcp_spec::revision::CommitId;

mod binds;
mod error;
mod facts;
mod sealed;
mod supposed;
mod wanted;

pub use error::PlanError;
pub use facts::deployed_of;
pub use supposed::Supposed;

use facts::Facts;

use crate::blocking::blocking;
use crate::deploy::Replanned;
use crate::desired::{Desired, DesiredError};
use crate::registry::{HistoryRow, Registry, Trigger};
use crate::revisions::{ResolveError, RevisionStore};
use crate::runtime::Runtime;
use crate::secrets::memory::MemoryFolder;
use crate::watch::Watch;

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
    /// Where opened secrets lie.
    pub memory: MemoryFolder,
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
        self.deploy_supposing(wish, &[]).await
    }

    /// Plans a deploy as it would be after containers were adopted.
    ///
    /// # Errors
    ///
    /// [`PlanError`].
    pub async fn deploy_supposing(
        &self,
        wish: &Wish,
        supposed: &[Supposed],
    ) -> Result<Planned, PlanError> {
        let planned = self.deploy_as_seen(wish, supposed).await?;
        let blocked = |service: &ServicePlan| !service.blocked.is_empty();
        // The snapshot follows the engine's events by a moment: what blocks is looked at once more
        // before it is said, since an operator may just have cleared it away.
        if planned.plan.services().iter().any(blocked) && self.watch.fresh().await.is_ok() {
            return self.deploy_as_seen(wish, supposed).await;
        }
        Ok(planned)
    }

    /// Plans a deploy on what the snapshot shows.
    async fn deploy_as_seen(
        &self,
        wish: &Wish,
        supposed: &[Supposed],
    ) -> Result<Planned, PlanError> {
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
        let facts = self.facts().await?.supposing(supposed);
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

    /// Plans what brings back what an emptied engine took along, on a list that is asked for now.
    ///
    /// # Errors
    ///
    /// [`PlanError`].
    pub async fn bring_back(&self, lost: &BTreeSet<ComponentKey>) -> Result<Planned, PlanError> {
        // A failed look leaves unknowns behind, from which nothing follows.
        drop(self.watch.fresh().await);
        let facts = self.facts().await?;
        let newest = || {
            let rows = facts.rows.iter().filter(|row| lost.contains(&row.key));
            rows.map(|row| row.revision).next()
        };
        let revision = self.revisions.head().or_else(newest);
        let revision = revision.ok_or(PlanError::NoRevision)?;
        let plan = plan_bring_back(&self.lifecycle_input(revision, &facts), lost);
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
        let mut forbidden = self.forbidden(targets, wanted, facts);
        for (key, obstacle) in self.sealed(targets, wanted, facts).await {
            forbidden.entry(key).or_default().push(obstacle);
        }
        for (key, obstacle) in self.strangers(facts).await? {
            forbidden.entry(key).or_default().push(obstacle);
        }
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
}
