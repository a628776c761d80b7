//! What a request may ask for, and how it is refused.

use mcp_proto::{convert, v1};
use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, Target};
use mcp_spec::plan::{Plan, ServicePlan};
use tonic::{Code, Status};

use crate::auth::Identity;
use crate::deploy::{Replanned, SubmitError};
use crate::desired::DesiredError;
use crate::planning::PlanError;
use crate::registry::Trigger;
use crate::rpc::status::{self, Failure};

/// Longest request id.
const MAX_REQUEST_ID: usize = 64;

/// Identifies a request.
pub(super) struct RequestKey {
    pub(super) id: String,
    pub(super) digest: Digest,
    pub(super) trigger: Trigger,
}

impl RequestKey {
    pub(super) fn of<M: prost::Message>(
        id: &str,
        trigger: Trigger,
        message: &M,
    ) -> Result<Self, Status> {
        if id.len() > MAX_REQUEST_ID || id.chars().any(char::is_control) {
            return Err(Failure::new(
                Code::InvalidArgument,
                "request-id",
                format!("a request id has at most {MAX_REQUEST_ID} printable characters"),
            )
            .into());
        }
        let mut bytes = trigger.as_str().as_bytes().to_vec();
        bytes.extend(message.encode_to_vec());
        Ok(Self {
            id: id.to_owned(),
            digest: Digest::of(&bytes),
            trigger,
        })
    }
}

/// What an operator has agreed to, held against a plan that was made anew after a wait.
pub(super) fn check_again(
    first: &ServicePlan,
    again: &Replanned,
    by_id: bool,
    yes: bool,
) -> Result<(), String> {
    let removes = |plan: &ServicePlan, component: &mcp_spec::name::ComponentName| {
        plan.actions.iter().any(|action| {
            action.component == *component && action.kind == mcp_spec::plan::ActionKind::Remove
        })
    };
    if by_id && !first.does_the_same(&again.plan) {
        return Err("the plan is stale: another deployment came first".to_owned());
    }
    let unasked = again.plan.actions.iter().find(|action| {
        removes(&again.plan, &action.component) && !removes(first, &action.component)
    });
    match unasked {
        Some(action) if !yes => Err(format!(
            "this would now remove {}/{}, which was not asked for",
            again.plan.service, action.component
        )),
        _ => Ok(()),
    }
}

pub(super) fn targets_of(messages: &[v1::Target]) -> Result<Vec<Target>, Status> {
    convert::targets(messages).map_err(|error| {
        Failure::of(Code::InvalidArgument, "target", &error)
            .hint("write SERVICE or SERVICE/COMPONENT")
            .into()
    })
}

pub(super) fn no_targets() -> Status {
    Failure::new(Code::InvalidArgument, "target", "no target was named")
        .hint("name a service, or add --all")
        .into()
}

/// A token that is narrowed to services covers just those.
pub(super) fn require_services(
    identity: &Identity,
    targets: Option<&[Target]>,
) -> Result<(), Status> {
    match targets {
        None => identity.require_all_services()?,
        Some(targets) => {
            for target in targets {
                identity.require_service(&target.service)?;
            }
        }
    }
    Ok(())
}

pub(super) fn plan_failure(error: &PlanError) -> Status {
    let (code, reason) = match error {
        PlanError::NoRevision => (Code::FailedPrecondition, "no-revision"),
        PlanError::Revision(_) => (Code::NotFound, "unknown-revision"),
        PlanError::Desired(DesiredError::Definitions { .. }) => {
            (Code::InvalidArgument, "definitions")
        }
        PlanError::Registry(error) => return status::registry(error),
        PlanError::Desired(_) => (Code::Internal, "registry"),
        PlanError::Image { .. } => (Code::Unavailable, "image"),
    };
    Failure::of(code, reason, error).hint(error.hint()).into()
}

pub(super) fn submit_failure(error: &SubmitError) -> Status {
    let (code, reason, hint) = match error {
        SubmitError::QueueFull { .. } => (
            Code::ResourceExhausted,
            "queue-full",
            "wait until some have ended: mcp history",
        ),
        SubmitError::RequestReused { .. } => (
            Code::AlreadyExists,
            "request-reused",
            "use another request id",
        ),
        SubmitError::Registry(error) => return status::registry(error),
        SubmitError::Stopping => (
            Code::Unavailable,
            "stopping",
            "try again when the agent is back",
        ),
    };
    Failure::of(code, reason, error).hint(hint).into()
}

pub(super) fn revision_of(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn check_plan_id(plan: &Plan, wanted: &str) -> Result<(), Status> {
    let id = plan.id().hex();
    if wanted.is_empty() || (wanted.len() >= 7 && id.starts_with(wanted)) {
        return Ok(());
    }
    Err(Failure::new(
        Code::Aborted,
        "stale-plan",
        format!(
            "plan {} is stale: planning again gives {}",
            wanted.chars().take(7).collect::<String>(),
            &id[..7]
        ),
    )
    .hint("look at what it would do now: mcp plan")
    .into())
}

pub(super) fn check_consent(plan: &Plan, yes: bool) -> Result<(), Status> {
    let removed: Vec<String> = plan
        .services()
        .iter()
        .filter(|service| service.removes() && service.blocked.is_empty())
        .flat_map(|service| {
            service
                .actions
                .iter()
                .filter(|action| action.kind == mcp_spec::plan::ActionKind::Remove)
                .map(|action| {
                    ComponentKey::new(service.service.clone(), action.component.clone()).to_string()
                })
        })
        .collect();
    if yes || removed.is_empty() {
        return Ok(());
    }
    Err(Failure::new(
        Code::FailedPrecondition,
        "consent",
        format!("this would remove {}", removed.join(", ")),
    )
    .hint("add --yes to consent")
    .into())
}
