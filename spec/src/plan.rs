//! Planning: what has to happen so that what runs is what is wanted.
//!
//! [`plan`] is a pure function of what is wanted, what was deployed and what is observed. Each action
//! carries every value that its execution needs and the reason for it; each thing not done says what
//! blocks it. The executor branches on an action's kind and never on policy.
//!
//! Who wins, in this order: an operator's stop, a hold, a quarantined spec, automatic reconciliation.
//! What is held, or whose next spec is quarantined, is still repaired as it was deployed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::component::{ComponentSpec, OnFailure, Reconcile, ServiceSpec};
use crate::diff::FieldChange;
use crate::duration::Span;
use crate::image::Digest;
use crate::name::{ComponentKey, ComponentName, NodeName, ServiceName, Target};
use crate::observed::{ContainerId, DesiredState, ImageId, Observed};
use crate::revision::CommitId;

mod action;
mod adopted;
mod decide;
mod lifecycle;
mod reason;
mod relations;
#[cfg(test)]
mod tests;

pub use action::{Action, ActionKind, After, Before, HoldChange};
pub use adopted::AUTO_REMOVE;
pub use decide::plan;
pub use lifecycle::{
    LifecycleInput, plan_bring_back, plan_purge, plan_restart, plan_start, plan_stop,
};
pub use reason::Reason;

/// A component as the agent deployed it and keeps it in its registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// What runs.
    pub spec: ComponentSpec,
    /// The spec's digest.
    pub spec_digest: Digest,
    /// The image that it was made from.
    pub image: ImageId,
    /// The commit that it was last deployed at.
    pub revision: CommitId,
    /// Its container.
    pub container: ContainerId,
    /// The container's generation.
    pub generation: u64,
    /// Running or stopped, by the definition; `ignore` where the agent keeps its hands off.
    pub desired: DesiredState,
    /// An operator's stop, which wins over everything.
    pub stopped_by: Option<String>,
    /// The revision that it is held at.
    pub held_at: Option<CommitId>,
    /// The engine's normal form of the container right after it was made.
    pub baseline: BTreeMap<String, String>,
    /// How many starts by the restart policy were spent.
    pub restarts: u32,
    /// It had ended for good, by its restart policy, when it was seen last.
    #[serde(default)]
    pub ended: bool,
    /// Of a container that was taken over: in what it departs from one that is made from its spec.
    pub adopted: Option<Vec<FieldChange>>,
}

impl Deployed {
    /// Whether its container was taken over and no deploy had a say in it yet.
    #[must_use]
    pub const fn is_only_adopted(&self) -> bool {
        self.revision.is_none()
    }

    /// Whether it should run now.
    #[must_use]
    pub fn should_run(&self) -> bool {
        self.desired == DesiredState::Running && self.stopped_by.is_none()
    }
}

/// What is wanted of one component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The spec.
    pub spec: ComponentSpec,
    /// The commit that it comes from.
    pub revision: CommitId,
    /// The image to use again: recorded for this very spec. `None`: resolve the reference.
    pub image: Option<ImageId>,
    /// True where the spec comes from uncommitted edits.
    pub uncommitted: bool,
}

/// What is wanted of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedService {
    /// The settings that its deployment follows.
    pub settings: ServiceSettings,
    /// Its components.
    pub components: BTreeMap<ComponentName, Wanted>,
}

/// The settings of a service that the agent follows while it deploys and watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSettings {
    /// `false`: every component's desired state is stopped.
    pub active: bool,
    /// `false` mutes its alerts.
    pub alert: bool,
    /// Longest time of one deployment after the line.
    pub deadline: Span,
    /// Who repairs drift.
    pub reconcile: Reconcile,
    /// What becomes of a failed component.
    pub on_failure: OnFailure,
}

impl ServiceSettings {
    /// The settings of `service`.
    #[must_use]
    pub const fn of(service: &ServiceSpec) -> Self {
        Self {
            active: service.active,
            alert: service.alert,
            deadline: service.deadline,
            reconcile: service.reconcile,
            on_failure: service.on_failure,
        }
    }
}

impl Default for ServiceSettings {
    fn default() -> Self {
        Self {
            active: true,
            alert: true,
            deadline: Span::from_secs(300),
            reconcile: Reconcile::Manual,
            on_failure: OnFailure::KeepOld,
        }
    }
}

/// Why a plan is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// An operator deploys the head, which releases holds.
    Deploy,
    /// An operator deploys an older revision, which holds there.
    DeployRevision,
    /// An operator goes back to an earlier spec.
    Rollback,
    /// The agent reconciles by itself.
    Auto,
}

/// Options of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Replace what is unchanged, and run jobs again.
    pub force: bool,
    /// Take absent dependencies along.
    pub with_deps: bool,
    /// Run jobs in a rollback.
    pub jobs: bool,
}

/// Everything that a plan follows from.
#[derive(Debug, Clone)]
pub struct PlanInput<'a> {
    /// This node.
    pub node: &'a NodeName,
    /// The revision that is planned for.
    pub revision: CommitId,
    /// Why.
    pub purpose: Purpose,
    /// What the operator named; `None` for every service of the node.
    pub targets: Option<&'a [Target]>,
    /// The operator's options.
    pub options: Options,
    /// What is wanted, by service.
    pub wanted: &'a BTreeMap<ServiceName, WantedService>,
    /// What was deployed.
    pub deployed: &'a BTreeMap<ComponentKey, Deployed>,
    /// What the engine says of each deployed component's container, by the registered id. A key
    /// that is missing here is unknown.
    pub observed: &'a BTreeMap<ComponentKey, Observed>,
    /// Names of containers that the agent does not manage, with the start of their ids.
    pub foreign_names: &'a BTreeMap<String, ContainerId>,
    /// Image ids that a tag has moved to, for components that always pull.
    pub moved_images: &'a BTreeMap<ComponentKey, ImageId>,
    /// What the node's policy and its files forbid, by component.
    pub forbidden: &'a BTreeMap<ComponentKey, Vec<Obstacle>>,
    /// Specs that failed their gate on this node.
    pub quarantined: &'a BTreeSet<(ComponentKey, Digest)>,
    /// A digest of the node's policy: part of the plan's id.
    pub policy_digest: Digest,
}

/// Something that forbids a component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Obstacle {
    /// What is wrong.
    pub reason: String,
    /// How to mend it.
    pub hint: String,
    /// Whether it is the node's policy that refuses it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_policy: bool,
}

/// What would be done but may not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Blocked {
    /// The service.
    pub service: ServiceName,
    /// The component; `None` for the whole service.
    pub component: Option<ComponentName>,
    /// Why, and the mend.
    pub obstacle: Obstacle,
}

/// One service's part of a plan: what one deployment does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    /// The service.
    pub service: ServiceName,
    /// The revision that is deployed.
    pub revision: CommitId,
    /// The settings that the deployment follows.
    pub settings: ServiceSettings,
    /// What is done, a component at a time, in the order of their names.
    pub actions: Vec<Action>,
    /// What may not be done. Nothing of the service is, while this is not empty.
    pub blocked: Vec<Blocked>,
}

impl ServicePlan {
    /// Whether nothing at all changes, at the engine or in the registry.
    #[must_use]
    pub fn is_noop(&self) -> bool {
        self.blocked.is_empty()
            && self.actions.iter().all(|action| {
                action.kind == ActionKind::None
                    && action.files.is_empty()
                    && action.hold == HoldChange::Keep
                    && !action.clears_stop
                    && match (&action.before, &action.after) {
                        (Some(from), Some(to)) => {
                            from.revision == to.revision && from.spec_digest == to.spec_digest
                        }
                        _ => true,
                    }
            })
    }

    /// Whether another plan of the service takes the same components by the same actions from the same
    /// containers to the same specs.
    #[must_use]
    pub fn does_the_same(&self, other: &Self) -> bool {
        let policy = Digest::of(b"");
        identify(policy, std::slice::from_ref(self))
            == identify(policy, std::slice::from_ref(other))
    }

    /// Whether the engine has to be asked for anything.
    #[must_use]
    pub fn touches_engine(&self) -> bool {
        self.actions
            .iter()
            .any(|action| action.kind != ActionKind::None || !action.files.is_empty())
    }

    /// Whether something is removed, for which consent is asked.
    #[must_use]
    pub fn removes(&self) -> bool {
        self.actions
            .iter()
            .any(|action| action.kind == ActionKind::Remove)
    }
}

/// What has to happen on one node. Made by the functions of this module alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    id: Digest,
    node: NodeName,
    revision: CommitId,
    services: Vec<ServicePlan>,
}

impl Plan {
    fn new(
        node: &NodeName,
        revision: CommitId,
        policy: Digest,
        services: Vec<ServicePlan>,
    ) -> Self {
        let id = identify(policy, &services);
        Self {
            id,
            node: node.clone(),
            revision,
            services,
        }
    }

    /// A digest over what the plan is about: targets, from- and to-specs, containers and policy.
    /// Nothing volatile, so planning again gives the same id while nothing moved.
    #[must_use]
    pub const fn id(&self) -> &Digest {
        &self.id
    }

    /// The node.
    #[must_use]
    pub const fn node(&self) -> &NodeName {
        &self.node
    }

    /// The revision that was planned for.
    #[must_use]
    pub const fn revision(&self) -> CommitId {
        self.revision
    }

    /// The services, in the order of their names.
    #[must_use]
    pub fn services(&self) -> &[ServicePlan] {
        &self.services
    }

    /// The services, for execution.
    #[must_use]
    pub fn into_services(self) -> Vec<ServicePlan> {
        self.services
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_noop(&self) -> bool {
        self.services.iter().all(ServicePlan::is_noop)
    }
}

/// The plan's id. The revision stays out: the plan of uncommitted edits and that of the commit made
/// of them are the same plan.
fn identify(policy: Digest, services: &[ServicePlan]) -> Digest {
    let mut text = format!("mcp-plan-1\n{policy}\n");
    for service in services {
        text.push_str(&format!("service {}\n", service.service));
        for action in &service.actions {
            let from = action.before.as_ref().map_or_else(
                || "-".to_owned(),
                |from| format!("{} {}", from.spec_digest, from.container),
            );
            let to = action.after.as_ref().map_or_else(
                || "-".to_owned(),
                |to| {
                    let image = to.image.as_ref().map_or("-", ImageId::as_str);
                    format!("{} {image} {}", to.spec_digest, to.running)
                },
            );
            text.push_str(&format!(
                "{} {} {from} -> {to} {:?} {}\n",
                action.component, action.kind, action.hold, action.clears_stop
            ));
        }
        for blocked in &service.blocked {
            text.push_str(&format!(
                "blocked {} {}\n",
                blocked.component.as_ref().map_or("*", |c| c.as_str()),
                blocked.obstacle.reason
            ));
        }
    }
    Digest::of(text.as_bytes())
}
