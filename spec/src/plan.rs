//! Planning: what has to happen so that what runs is what is wanted.
//!
//! [`plan`] is a pure function of what is wanted, what was deployed and what is observed. Each action
//! carries every value that its execution needs and the reason for it; each thing not done says what
//! blocks it. The executor branches on an action's kind and never on policy.
//!
//! Who wins, in this order: an operator's stop, a hold, a quarantined spec, automatic reconciliation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::component::{ComponentSpec, OnChange, OnFailure, Reconcile, ServiceSpec};
use crate::diff::FieldChange;
use crate::duration::Span;
use crate::image::Digest;
use crate::name::{ComponentKey, ComponentName, NodeName, ServiceName, Target};
use crate::observed::{ContainerId, DesiredState, ImageId, Observed};
use crate::revision::CommitId;

mod decide;
mod lifecycle;
#[cfg(test)]
mod tests;

pub use decide::plan;
pub use lifecycle::{LifecycleInput, plan_purge, plan_restart, plan_start, plan_stop};

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
}

impl Deployed {
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
}

/// What is done to one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActionKind {
    /// Make and start a container where there is none.
    Create,
    /// Make a new container, stop the old one, start the new one.
    Replace,
    /// Stop and start the same container.
    Restart,
    /// Write changed files in place and signal the container.
    Signal,
    /// Start the container that is there.
    Start,
    /// Stop the container and keep it.
    Stop,
    /// Stop and remove the container.
    Remove,
    /// Nothing, but that the revision advances.
    None,
}

impl ActionKind {
    /// The word that users and scripts see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Replace => "replace",
            Self::Restart => "restart",
            Self::Signal => "signal",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Remove => "remove",
            Self::None => "none",
        }
    }

    /// Whether it makes a new container.
    #[must_use]
    pub const fn creates(self) -> bool {
        matches!(self, Self::Create | Self::Replace)
    }
}

impl fmt::Display for ActionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why an action is taken, or why none is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "because", content = "of")]
pub enum Reason {
    /// It was never deployed.
    New,
    /// Fields of its spec changed.
    Changed(Vec<String>),
    /// Its tag stands for another image now.
    ImageMoved,
    /// Its container is gone.
    ContainerMissing,
    /// It does not run; the exit code where it is known.
    NotRunning(Option<i32>),
    /// It was stopped by this operator.
    StoppedBy(String),
    /// Its container is not what was made: the fields that differ.
    Drifted(Vec<String>),
    /// The operator asked for it.
    Forced,
    /// The operator asked for a start, a stop or a restart.
    Asked,
    /// The service is not active.
    Inactive,
    /// The revision no longer defines it.
    NoLongerDefined,
    /// It is held at a revision.
    Held(CommitId),
    /// It is what is wanted.
    UpToDate,
    /// A job that is not run here.
    JobNotRun,
    /// Its spec failed its gate before.
    Quarantined,
    /// It has ended, as its restart policy allows.
    Finished,
    /// The operator has to deploy it: it never ran here, or on another node before.
    NotDeployed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Changed(fields) => write!(f, "{} changed", list(fields)),
            Self::ImageMoved => f.write_str("image moved"),
            Self::ContainerMissing => f.write_str("container missing"),
            Self::NotRunning(Some(code)) => write!(f, "not running (exit {code})"),
            Self::NotRunning(None) => f.write_str("not running"),
            Self::StoppedBy(who) => write!(f, "stopped by {who}"),
            Self::Drifted(fields) => write!(f, "{} drifted", list(fields)),
            Self::Forced => f.write_str("forced"),
            Self::Asked => f.write_str("asked for"),
            Self::Inactive => f.write_str("service is inactive"),
            Self::NoLongerDefined => f.write_str("no longer defined"),
            Self::Held(revision) => write!(f, "held at {}", revision.short()),
            Self::UpToDate => f.write_str("up to date"),
            Self::JobNotRun => f.write_str("job, not run here"),
            Self::Quarantined => f.write_str("quarantined: this spec failed its gate here"),
            Self::Finished => f.write_str("finished"),
            Self::NotDeployed => f.write_str("not deployed yet"),
        }
    }
}

/// At most three names, then how many more.
fn list(fields: &[String]) -> String {
    match fields {
        [a] => a.clone(),
        [a, b] => format!("{a}, {b}"),
        [a, b, c] => format!("{a}, {b}, {c}"),
        [a, b, rest @ ..] => format!("{a}, {b} and {} more", rest.len()),
        [] => "spec".to_owned(),
    }
}

/// The container that an action starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// Its spec.
    pub spec_digest: Digest,
    /// The commit that it was deployed at.
    pub revision: CommitId,
    /// The registered container.
    pub container: ContainerId,
    /// Its generation.
    pub generation: u64,
    /// Its image.
    pub image: ImageId,
    /// Whether the container is there.
    pub present: bool,
    /// Whether it ran when the plan was made.
    pub running: bool,
    /// How long its stop may take.
    pub stop_timeout: Span,
}

/// What an action leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// The spec.
    pub spec: ComponentSpec,
    /// Its digest.
    pub spec_digest: Digest,
    /// The commit that it comes from.
    pub revision: CommitId,
    /// The image to use, where one is recorded or known; else it is resolved while preparing.
    pub image: Option<ImageId>,
    /// Whether the component runs afterwards.
    pub running: bool,
}

/// One component's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// The component.
    pub component: ComponentName,
    /// What is done.
    pub kind: ActionKind,
    /// Why.
    pub reason: Reason,
    /// The fields that change, from what was deployed to what is wanted.
    pub changes: Vec<FieldChange>,
    /// What is there; `None` where the component was never deployed.
    pub before: Option<Before>,
    /// What will be there; `None` where it is removed or only stopped.
    pub after: Option<After>,
    /// Changed files and what they ask for, where `kind` is restart, signal or none.
    pub files: Vec<(String, OnChange)>,
    /// Whether an operator's stop ends with this action.
    pub clears_stop: bool,
    /// What becomes of the hold.
    pub hold: HoldChange,
    /// Whether the spec comes from uncommitted edits.
    pub uncommitted: bool,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// What an action does to a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldChange {
    /// It stays as it is.
    Keep,
    /// The component is held at the plan's revision.
    Set,
    /// The hold ends.
    Release,
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
