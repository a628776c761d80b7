//! Messages to domain types and back. Messages are trusted in nothing: what does not parse is refused
//! by name.

use mcp_spec::diff::FieldChange;
use mcp_spec::name::{Target, TargetError};
use mcp_spec::plan::{Action, Blocked, Plan, ServicePlan};
use mcp_spec::revision::CommitId;
use thiserror::Error;

use crate::v1;

/// Most targets of one request.
pub const MAX_TARGETS: usize = 1000;

/// Why a message is no domain value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConvertError {
    /// A name in a target is malformed.
    #[error("target `{target}`: {source}")]
    Target {
        /// The target, as it would be written.
        target: String,
        /// Why.
        source: TargetError,
    },
    /// Too many targets.
    #[error("{count} targets are too many: a request names at most {MAX_TARGETS}")]
    TooManyTargets {
        /// How many there were.
        count: usize,
    },
}

/// A target of a request.
///
/// # Errors
///
/// [`ConvertError::Target`].
pub fn target(target: &v1::Target) -> Result<Target, ConvertError> {
    let refuse = |source: TargetError| ConvertError::Target {
        target: format!("{}/{}", target.service, target.component)
            .chars()
            .take(130)
            .collect(),
        source,
    };
    let component = if target.component.is_empty() {
        None
    } else {
        Some(
            target
                .component
                .parse()
                .map_err(|error| refuse(TargetError::Name(error)))?,
        )
    };
    Ok(Target {
        node: None,
        service: target
            .service
            .parse()
            .map_err(|error| refuse(TargetError::Name(error)))?,
        component,
    })
}

/// The targets of a request.
///
/// # Errors
///
/// [`ConvertError`].
pub fn targets(targets: &[v1::Target]) -> Result<Vec<Target>, ConvertError> {
    if targets.len() > MAX_TARGETS {
        return Err(ConvertError::TooManyTargets {
            count: targets.len(),
        });
    }
    targets.iter().map(target).collect()
}

/// A target for a request; the node is left out, since a request goes to one node.
#[must_use]
pub fn target_message(target: &Target) -> v1::Target {
    v1::Target {
        service: target.service.to_string(),
        component: target
            .component
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    }
}

/// A changed field.
#[must_use]
pub fn field_change(change: &FieldChange) -> v1::FieldChange {
    v1::FieldChange {
        field: change.field.clone(),
        from: change.from.clone(),
        to: change.to.clone(),
    }
}

/// A plan.
#[must_use]
pub fn plan(plan: &Plan, head: Option<CommitId>) -> v1::Plan {
    v1::Plan {
        plan_id: plan.id().hex(),
        node: plan.node().to_string(),
        revision: plan.revision().to_string(),
        actions: plan
            .services()
            .iter()
            .flat_map(|service| {
                service
                    .actions
                    .iter()
                    .map(|one| action(service, one))
                    .collect::<Vec<_>>()
            })
            .collect(),
        blocked: plan
            .services()
            .iter()
            .flat_map(|service| service.blocked.iter().map(blocked))
            .collect(),
        head_revision: head.map(|head| head.to_string()).unwrap_or_default(),
    }
}

fn action(service: &ServicePlan, action: &Action) -> v1::Action {
    v1::Action {
        service: service.service.to_string(),
        component: action.component.to_string(),
        action: action.kind.as_str().to_owned(),
        reason: action.reason.to_string(),
        changes: action.changes.iter().map(field_change).collect(),
        from_revision: action
            .before
            .as_ref()
            .filter(|before| !before.revision.is_none())
            .map(|before| before.revision.to_string())
            .unwrap_or_default(),
        pull_bytes: 0,
        uncommitted: action.uncommitted,
        warnings: action.warnings.clone(),
    }
}

fn blocked(blocked: &Blocked) -> v1::Blocked {
    v1::Blocked {
        service: blocked.service.to_string(),
        component: blocked
            .component
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        reason: blocked.obstacle.reason.clone(),
        hint: blocked.obstacle.hint.clone(),
        policy: blocked.obstacle.is_policy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_target_is_refused_by_name() {
        let bad = v1::Target {
            service: "Shop".to_owned(),
            component: String::new(),
        };
        let error = target(&bad).expect_err("upper case is no name");
        assert!(error.to_string().contains("Shop"), "{error}");
        let good = v1::Target {
            service: "shop".to_owned(),
            component: "web".to_owned(),
        };
        assert_eq!(target_message(&target(&good).expect("it parses")), good);
    }
}
