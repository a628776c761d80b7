//! From a gRPC status to a failure: the reason's word decides the exit code, else the status code.

use std::time::Duration;

use mcp_proto::v1;
use prost::Message as _;
use tonic::{Code, Status};

use crate::error::{Exit, Failure};

/// Where the agent puts the typed details.
const DETAIL_KEY: &str = "mcp-error-bin";

/// Longest details that are read: the message's own bound is 4 KiB of free text.
const MAX_DETAIL_BYTES: usize = 16 * 1024;

/// The agent's word for an agent that is going down.
const STOPPING: &str = "stopping";

/// The word for a connection that was lost, which no agent sends.
const LOST: &str = "connection-lost";

fn detail(status: &Status) -> Option<v1::ErrorDetail> {
    let value = status.metadata().get_bin(DETAIL_KEY)?;
    let bytes = value
        .to_bytes()
        .ok()
        .filter(|bytes| bytes.len() <= MAX_DETAIL_BYTES)?;
    v1::ErrorDetail::decode(bytes).ok()
}

/// The exit code that a reason asks for, whatever its status code.
fn exit_of_reason(reason: &str) -> Option<Exit> {
    Some(match reason {
        "stale" | "stale-plan" | "superseded" | "behind" | "diverged" | "older"
        | "not-fast-forward" => Exit::Stale,
        // An issuer that is away is no node that is.
        "policy" | "issuer-away" | "too-many-refusals" => Exit::Refused,
        "consent" => Exit::Usage,
        // What is wrong lies in the revision, not in the command line.
        "definitions" | "bad-definitions" => Exit::Failed,
        // The agent answers: only one that is going down counts as away.
        STOPPING => Exit::Unreachable,
        _ => return None,
    })
}

fn exit_of_code(code: Code) -> Exit {
    match code {
        Code::PermissionDenied | Code::Unauthenticated => Exit::Refused,
        Code::Aborted => Exit::Stale,
        Code::InvalidArgument => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// The failure of a request to `node`.
pub(super) fn of(node: &str, status: &Status) -> Failure {
    let detail = detail(status);
    if detail.is_none() && is_lost(status) {
        let mut failure = Failure::new(
            Exit::Unreachable,
            format!("the connection to {node} was lost"),
        );
        if !status.message().is_empty() {
            failure = failure.cause(status.message());
        }
        failure.reason = Some(LOST.to_owned());
        return failure;
    }
    let detail = detail.unwrap_or_default();
    let exit = exit_of_reason(&detail.reason).unwrap_or_else(|| exit_of_code(status.code()));
    let message = if status.message().is_empty() {
        code_words(status.code())
    } else {
        status.message()
    };
    let mut failure = Failure::new(exit, format!("{node}: {message}"));
    failure.causes = detail.causes;
    failure = failure.maybe_hint(Some(detail.hint).filter(|hint| !hint.is_empty()));
    if failure.hint.is_none() && status.code() == Code::Unauthenticated {
        failure.hint = Some(format!("mcp login --node {node}"));
    }
    failure.reason = Some(detail.reason).filter(|reason| !reason.is_empty());
    failure.deployment_id = Some(detail.deployment_id).filter(|id| !id.is_empty());
    failure.head = Some(detail.head).filter(|head| !head.is_empty());
    failure.unknown = status.code() == Code::NotFound;
    failure
}

/// Whether the connection may be taken up again: it was lost, or the agent is being restarted.
pub(super) fn may_come_back(failure: &Failure) -> bool {
    matches!(failure.reason.as_deref(), Some(LOST | STOPPING))
}

/// Whether the transport failed, and not the agent: what it says comes with details or with a code
/// that no transport makes up.
fn is_lost(status: &Status) -> bool {
    let transport = std::error::Error::source(status).is_some();
    match status.code() {
        Code::Unavailable | Code::Cancelled => true,
        Code::Unknown | Code::Internal => {
            transport || status.message().contains("h2 protocol error")
        }
        _ => false,
    }
}

fn code_words(code: Code) -> &'static str {
    code.description()
}

/// The failure of a request that was not answered in time.
pub(super) fn no_answer(node: &str, limit: Duration) -> Failure {
    Failure::new(
        Exit::Unreachable,
        format!("{node} did not answer within {}s", limit.as_secs_f32()),
    )
    .hint("give it longer with --timeout 60s")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::metadata::{MetadataMap, MetadataValue};

    fn status(code: Code, detail: &v1::ErrorDetail) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(
            DETAIL_KEY,
            MetadataValue::from_bytes(&detail.encode_to_vec()),
        );
        Status::with_metadata(code, "the plan is stale", metadata)
    }

    #[test]
    fn the_reason_decides_before_the_code() {
        let detail = v1::ErrorDetail {
            reason: "stale-plan".to_owned(),
            hint: "mcp plan shop".to_owned(),
            causes: vec!["web was replaced".to_owned()],
            deployment_id: "51c07af".to_owned(),
            ..v1::ErrorDetail::default()
        };
        let failure = of("rift", &status(Code::FailedPrecondition, &detail));
        assert_eq!(failure.exit, Exit::Stale);
        assert_eq!(failure.message, "rift: the plan is stale");
        assert_eq!(failure.hint.as_deref(), Some("mcp plan shop"));
        assert_eq!(failure.causes, ["web was replaced"]);
        assert_eq!(failure.deployment_id.as_deref(), Some("51c07af"));
    }

    #[test]
    fn codes_have_their_exit_codes() {
        for (code, exit) in [
            (Code::Unauthenticated, Exit::Refused),
            (Code::PermissionDenied, Exit::Refused),
            (Code::Aborted, Exit::Stale),
            (Code::Unavailable, Exit::Unreachable),
            (Code::ResourceExhausted, Exit::Failed),
            (Code::InvalidArgument, Exit::Usage),
            (Code::NotFound, Exit::Failed),
        ] {
            assert_eq!(of("rift", &Status::new(code, "no")).exit, exit, "{code:?}");
        }
    }
}
