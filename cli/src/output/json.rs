//! The documents of `-o json`: field names and types that scripts rely on.
//!
//! Each type is built from the agent's message; where the message holds an empty string for "none",
//! the document holds null.

mod node;

use mcp_proto::v1;
use serde::Serialize;
use serde_json::Value;

pub(crate) use node::{Cpu, Engine, NodeStatus, Status, Usage};

/// `text`, or null where it is empty.
pub(crate) fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A SHA-256 as digests are written.
pub(crate) fn digest(sha256: &[u8]) -> String {
    format!("sha256:{}", hex::encode(sha256))
}

/// A hold.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Held {
    revision: Option<String>,
    by: String,
    at: Option<String>,
    reason: Option<String>,
    components: Vec<String>,
}

impl From<&v1::Hold> for Held {
    fn from(hold: &v1::Hold) -> Self {
        Self {
            revision: some(&hold.revision),
            by: hold.by.clone(),
            at: some(&hold.at),
            reason: some(&hold.reason),
            components: hold.components.clone(),
        }
    }
}

/// One difference between what was deployed and what is.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Drift {
    field: String,
    baseline: String,
    live: String,
    wanted: String,
    since: Option<String>,
}

impl From<&v1::Drift> for Drift {
    fn from(drift: &v1::Drift) -> Self {
        Self {
            field: drift.field.clone(),
            baseline: drift.baseline.clone(),
            live: drift.live.clone(),
            wanted: drift.wanted.clone(),
            since: some(&drift.since),
        }
    }
}

/// A component as `list` and `ps` show it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Component {
    node: String,
    service: String,
    component: String,
    container: String,
    version: Option<String>,
    desired_state: String,
    observed_state: String,
    health: Option<String>,
    image: Option<String>,
    image_digest: Option<String>,
    revision: Option<String>,
    head_revision: Option<String>,
    behind: u32,
    held: Option<Held>,
    drift: Vec<Drift>,
    started_at: Option<String>,
    restarts: u32,
    managed: bool,
    container_id: Option<String>,
    image_id: Option<String>,
    kind: Option<String>,
    exit_code: Option<i32>,
    orphaned: bool,
    quarantined: bool,
    observed_at: Option<String>,
    spec_digest: Option<String>,
    adopted: bool,
    contested: Option<String>,
    next_repair_at: Option<String>,
    flapping: bool,
    unconverged: bool,
}

impl Component {
    /// The document of `component` on `node`.
    pub(crate) fn new(node: &str, component: &v1::Component) -> Self {
        Self {
            node: node.to_owned(),
            service: component.service.clone(),
            component: component.component.clone(),
            container: component.container.clone(),
            version: some(&component.version),
            desired_state: component.desired_state.clone(),
            observed_state: component.observed_state.clone(),
            health: some(&component.health),
            image: some(&component.image),
            image_digest: some(&component.image_digest),
            revision: some(&component.revision),
            head_revision: some(&component.head_revision),
            behind: component.behind,
            held: component.held.as_ref().map(Held::from),
            drift: component.drift.iter().map(Drift::from).collect(),
            started_at: some(&component.started_at),
            restarts: component.restarts,
            managed: component.managed,
            container_id: some(&component.container_id),
            image_id: some(&component.image_id),
            kind: some(&component.kind),
            exit_code: component.exit_code,
            orphaned: component.orphaned,
            quarantined: component.quarantined,
            observed_at: some(&component.observed_at),
            spec_digest: some(&component.spec_digest),
            adopted: component.adopted,
            contested: some(&component.contested),
            next_repair_at: some(&component.next_repair_at),
            flapping: component.flapping,
            unconverged: component.unconverged,
        }
    }
}

/// One changed field.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FieldChange {
    field: String,
    from: Option<String>,
    to: Option<String>,
}

impl From<&v1::FieldChange> for FieldChange {
    fn from(change: &v1::FieldChange) -> Self {
        Self {
            field: change.field.clone(),
            from: change.from.clone(),
            to: change.to.clone(),
        }
    }
}

/// One action of a plan.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Action {
    service: String,
    component: String,
    action: String,
    reason: String,
    changes: Vec<FieldChange>,
    from_revision: Option<String>,
    pull_bytes: Option<u64>,
    uncommitted: bool,
    warnings: Vec<String>,
}

impl From<&v1::Action> for Action {
    fn from(action: &v1::Action) -> Self {
        Self {
            service: action.service.clone(),
            component: action.component.clone(),
            action: action.action.clone(),
            reason: action.reason.clone(),
            changes: action.changes.iter().map(FieldChange::from).collect(),
            from_revision: some(&action.from_revision),
            pull_bytes: (action.pull_bytes > 0).then_some(action.pull_bytes),
            uncommitted: action.uncommitted,
            warnings: action.warnings.clone(),
        }
    }
}

/// What a plan may not do.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Blocked {
    service: String,
    component: Option<String>,
    reason: String,
    hint: Option<String>,
    policy: bool,
}

impl From<&v1::Blocked> for Blocked {
    fn from(blocked: &v1::Blocked) -> Self {
        Self {
            service: blocked.service.clone(),
            component: some(&blocked.component),
            reason: blocked.reason.clone(),
            hint: some(&blocked.hint),
            policy: blocked.policy,
        }
    }
}

/// One node's plan.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NodePlan {
    node: String,
    plan_id: Option<String>,
    revision: Option<String>,
    head_revision: Option<String>,
    actions: Vec<Action>,
    blocked: Vec<Blocked>,
}

impl From<&v1::Plan> for NodePlan {
    fn from(plan: &v1::Plan) -> Self {
        Self {
            node: plan.node.clone(),
            plan_id: some(&plan.plan_id),
            revision: some(&plan.revision),
            head_revision: some(&plan.head_revision),
            actions: plan.actions.iter().map(Action::from).collect(),
            blocked: plan.blocked.iter().map(Blocked::from).collect(),
        }
    }
}

/// What `plan` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    pub(crate) plan_id: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) nodes: Vec<NodePlan>,
}

/// One component's part in a deployment.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ComponentOutcome {
    component: String,
    action: String,
    outcome: String,
    from_revision: Option<String>,
    to_revision: Option<String>,
    image_digest: Option<String>,
    duration_ms: u64,
    downtime_ms: u64,
    error: Option<String>,
    changes: Vec<FieldChange>,
    log_tail: Vec<String>,
}

impl From<&v1::ComponentOutcome> for ComponentOutcome {
    fn from(outcome: &v1::ComponentOutcome) -> Self {
        Self {
            component: outcome.component.clone(),
            action: outcome.action.clone(),
            outcome: outcome.outcome.clone(),
            from_revision: some(&outcome.from_revision),
            to_revision: some(&outcome.to_revision),
            image_digest: some(&outcome.image_digest),
            duration_ms: outcome.duration_ms,
            downtime_ms: outcome.downtime_ms,
            error: some(&outcome.error),
            changes: outcome.changes.iter().map(FieldChange::from).collect(),
            log_tail: outcome.log_tail.clone(),
        }
    }
}

/// One deployment, as the command that made it prints it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Deployment {
    node: String,
    service: String,
    deployment_id: Option<String>,
    revision: Option<String>,
    outcome: String,
    error: Option<String>,
    mend: Option<String>,
    components: Vec<ComponentOutcome>,
}

impl Deployment {
    /// The document of `deployment` on `node`.
    pub(crate) fn new(node: &str, deployment: &v1::Deployment) -> Self {
        Self {
            node: node.to_owned(),
            service: deployment.service.clone(),
            deployment_id: some(&deployment.deployment_id),
            revision: some(&deployment.revision),
            outcome: deployment.outcome.clone(),
            error: some(&deployment.error),
            mend: some(&deployment.mend),
            components: deployment
                .components
                .iter()
                .map(ComponentOutcome::from)
                .collect(),
        }
    }
}

/// What `deploy` and its like print.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Deployments {
    pub(crate) deployments: Vec<Deployment>,
}

/// One deployment of the past.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HistoryEntry {
    deployment_id: String,
    node: String,
    target: String,
    revision: Option<String>,
    signer: Option<String>,
    actor: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
    outcome: String,
    trigger: String,
    error: Option<String>,
    components: Vec<ComponentOutcome>,
}

impl HistoryEntry {
    /// The document of `deployment` on `node`.
    pub(crate) fn new(node: &str, deployment: &v1::Deployment) -> Self {
        Self {
            deployment_id: deployment.deployment_id.clone(),
            node: node.to_owned(),
            target: super::plan::path(&deployment.service, &deployment.component),
            revision: some(&deployment.revision),
            signer: some(&deployment.signer),
            actor: some(&deployment.actor),
            started_at: some(&deployment.started_at),
            finished_at: some(&deployment.finished_at),
            outcome: deployment.outcome.clone(),
            trigger: deployment.trigger.clone(),
            error: some(&deployment.error),
            components: deployment
                .components
                .iter()
                .map(ComponentOutcome::from)
                .collect(),
        }
    }
}

/// One event.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Event {
    seq: u64,
    at: String,
    node: String,
    service: Option<String>,
    component: Option<String>,
    kind: String,
    reason: Option<String>,
    message: String,
    revision: Option<String>,
    data: Value,
}

impl Event {
    /// The document of `event`, which `node` sent.
    pub(crate) fn new(node: &str, event: &v1::Event) -> Self {
        Self {
            seq: event.seq,
            at: event.at.clone(),
            node: if event.node.is_empty() {
                node.to_owned()
            } else {
                event.node.clone()
            },
            service: some(&event.service),
            component: some(&event.component),
            kind: event.kind.clone(),
            reason: some(&event.reason),
            message: event.message.clone(),
            revision: some(&event.revision),
            // What an agent sends need not be JSON for the rest to be of use.
            data: serde_json::from_str(&event.data).unwrap_or(Value::Null),
        }
    }
}

/// One accepted revision.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Revision {
    node: String,
    revision: String,
    subject: String,
    signer: Option<String>,
    author: Option<String>,
    authored_at: Option<String>,
    received_at: Option<String>,
    source: Option<String>,
    received_by: Option<String>,
    parents: Vec<String>,
}

impl Revision {
    /// The document of `revision` as `node` holds it.
    pub(crate) fn new(node: &str, revision: &v1::Revision) -> Self {
        Self {
            node: node.to_owned(),
            revision: revision.revision.clone(),
            subject: revision.subject.clone(),
            signer: some(&revision.signer),
            author: some(&revision.author),
            authored_at: some(&revision.authored_at),
            received_at: some(&revision.received_at),
            source: some(&revision.source),
            received_by: some(&revision.received_by),
            parents: revision.parents.clone(),
        }
    }
}

/// Why a component runs what it runs.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Why {
    node: String,
    component: Option<Component>,
    deployment: Option<HistoryEntry>,
    last: Option<HistoryEntry>,
    subject: Option<String>,
    signer: Option<String>,
    authored_at: Option<String>,
    changed: Vec<FieldChange>,
    wanted: Vec<FieldChange>,
    wanted_revision: Option<String>,
    wanted_reason: Option<String>,
    spec_revision: Option<String>,
    troubles: Vec<Trouble>,
}

/// Something that is wrong with a component.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Trouble {
    condition: String,
    since: Option<String>,
    message: String,
    mend: Option<String>,
}

impl From<&v1::Trouble> for Trouble {
    fn from(trouble: &v1::Trouble) -> Self {
        Self {
            condition: trouble.condition.clone(),
            since: some(&trouble.since),
            message: trouble.message.clone(),
            mend: some(&trouble.mend),
        }
    }
}

impl Why {
    /// The document of `why` on `node`.
    pub(crate) fn new(node: &str, why: &v1::Why) -> Self {
        Self {
            node: node.to_owned(),
            component: why.component.as_ref().map(|c| Component::new(node, c)),
            deployment: why.deployment.as_ref().map(|d| HistoryEntry::new(node, d)),
            last: why.last.as_ref().map(|d| HistoryEntry::new(node, d)),
            subject: some(&why.subject),
            signer: some(&why.signer),
            authored_at: some(&why.authored_at),
            changed: why.changed.iter().map(FieldChange::from).collect(),
            wanted: why.wanted.iter().map(FieldChange::from).collect(),
            wanted_revision: some(&why.wanted_revision),
            wanted_reason: some(&why.wanted_reason),
            spec_revision: some(&why.spec_revision),
            troubles: why.troubles.iter().map(Trouble::from).collect(),
        }
    }
}

/// One node's part in a sync.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SyncedNode {
    pub(crate) node: String,
    pub(crate) accepted: bool,
    pub(crate) previous: Option<String>,
    pub(crate) error: Option<String>,
    pub(crate) pending: Vec<Action>,
    pub(crate) blocked: Vec<Blocked>,
}

/// What `sync` prints.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sync {
    pub(crate) revision: String,
    pub(crate) created: bool,
    pub(crate) nodes: Vec<SyncedNode>,
}

/// One line of a log.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LogLine {
    node: String,
    service: String,
    component: String,
    stream: String,
    at: Option<String>,
    line: String,
}

impl LogLine {
    /// The document of `line` from `node`.
    pub(crate) fn new(node: &str, line: &v1::LogLine) -> Self {
        Self {
            node: node.to_owned(),
            service: line.service.clone(),
            component: line.component.clone(),
            stream: line.stream.clone(),
            at: some(&line.at),
            line: String::from_utf8_lossy(&line.line).into_owned(),
        }
    }
}
