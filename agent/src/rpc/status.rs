//! Domain errors as gRPC statuses: the only place where one becomes the other.
//!
//! A status has a code, which drives the client's exit code, a message in words, and an
//! [`v1::ErrorDetail`] in the binary metadata `mcp-error-bin`: a stable reason, the mend, the causes.

use std::error::Error;
use std::time::Duration;

use mcp_proto::v1;
use mcp_spec::name::{NodeName, Target};
use prost::Message as _;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use mcp_spec::revision::CommitId;
use mcp_spec::signature::AllowedSignersError;

use crate::TrustRootsError;
use crate::alert::DeliveryError;
use crate::auth::ForbiddenError;
use crate::auth::requests::RequestError;
use crate::auth::token::TokenError;
use crate::files::error::FileError;
use crate::files::path::FilePathError;
use crate::registry::RegistryError;
use crate::revisions::{FetchError, ReadError, ReceiveError, ResolveError};
use crate::source::SourceError;

/// Where the details of a failure travel.
pub const ERROR_DETAIL: &str = "mcp-error-bin";
/// Longest text of a message, a hint or a cause, in bytes: all of them are headers.
const MAX_TEXT_BYTES: usize = 768;
/// Most causes that are told.
const MAX_CAUSES: usize = 8;

/// A failure on its way to the client.
#[derive(Debug, Clone)]
pub struct Failure {
    code: Code,
    message: String,
    detail: v1::ErrorDetail,
}

impl Failure {
    /// A failure with its code, stable reason and message.
    #[must_use]
    pub fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            detail: v1::ErrorDetail {
                reason: reason.to_owned(),
                ..v1::ErrorDetail::default()
            },
        }
    }

    /// A failure from an error: its words are the message, its sources the causes.
    #[must_use]
    pub fn of(code: Code, reason: &str, error: &dyn Error) -> Self {
        let mut failure = Self::new(code, reason, error.to_string());
        let mut source = error.source();
        while let Some(cause) = source {
            failure.detail.causes.push(cause.to_string());
            source = cause.source();
        }
        failure
    }

    /// With the mend.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.detail.hint = hint.into();
        self
    }

    /// With the node's head.
    #[must_use]
    pub fn head(mut self, head: impl Into<String>) -> Self {
        self.detail.head = head.into();
        self
    }

    /// With the deployment that it is about.
    #[must_use]
    pub fn deployment(mut self, id: impl Into<String>) -> Self {
        self.detail.deployment_id = id.into();
        self
    }

    /// With further causes.
    #[must_use]
    pub fn causes(mut self, causes: impl IntoIterator<Item = String>) -> Self {
        self.detail.causes.extend(causes);
        self
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let Failure {
            code,
            mut message,
            mut detail,
        } = failure;
        cut(&mut message);
        cut(&mut detail.hint);
        detail.causes.truncate(MAX_CAUSES);
        detail.causes.iter_mut().for_each(cut);
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(
            ERROR_DETAIL,
            MetadataValue::from_bytes(&detail.encode_to_vec()),
        );
        Self::with_metadata(code, message, metadata)
    }
}

/// A test alert that did not arrive.
pub(super) fn delivery(error: &DeliveryError) -> Status {
    let code = match error {
        DeliveryError::Unset => Code::FailedPrecondition,
        DeliveryError::Stopping => Code::Unavailable,
        _ => Code::Internal,
    };
    let mut failure = Failure::of(code, "alert-not-delivered", error).hint(error.hint());
    if !error.output().is_empty() {
        failure = failure.causes([format!("it said: {}", error.output())]);
    }
    failure.into()
}

fn cut(text: &mut String) {
    if text.len() > MAX_TEXT_BYTES {
        let end = (0..=MAX_TEXT_BYTES - 3)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
}

/// A call behind which no trusted key stands.
pub(super) fn signed_request(error: &RequestError) -> Status {
    Failure::of(Code::PermissionDenied, error.reason(), error)
        .hint(error.hint())
        .into()
}

/// The signers of the head, which nobody could have pushed as they are.
pub(super) fn signers(error: &AllowedSignersError) -> Status {
    Failure::of(Code::Internal, "repository", error)
        .hint("the repository was changed on the node; look at it there: mcp-agent check")
        .into()
}

/// A pack that is another one than its header says, which is what was signed.
pub(super) fn other_pack() -> Status {
    Failure::new(
        Code::PermissionDenied,
        "request-other-bytes",
        "the pack is not the one that its header was signed for",
    )
    .hint("push it anew")
    .into()
}

/// A message over the bound.
pub(super) fn message_too_large(bytes: usize, limit: usize) -> Status {
    Failure::new(
        Code::ResourceExhausted,
        "too-large",
        format!("a message of {bytes} bytes exceeds the limit of {limit}"),
    )
    .into()
}

/// The stable reason of a status, where it has one.
#[must_use]
pub fn reason(status: &Status) -> Option<String> {
    let bytes = status.metadata().get_bin(ERROR_DETAIL)?.to_bytes().ok()?;
    let detail = v1::ErrorDetail::decode(bytes).ok()?;
    (!detail.reason.is_empty()).then_some(detail.reason)
}

/// The caller's token is refused. Why is told to those alone whose token an issuer signed; the log has it.
pub(super) fn token(error: &TokenError) -> Status {
    let code = match error {
        TokenError::NoRole { .. } | TokenError::Node { .. } => Code::PermissionDenied,
        _ => Code::Unauthenticated,
    };
    let hint = match error {
        TokenError::NoRole { .. } => "map one of its roles under [auth.roles] in agent.toml",
        TokenError::Future { .. } => "set the clocks of this node and of the issuer",
        TokenError::Revoked => "log in again: mcp login",
        _ => "get a new token: mcp login, or mcp-agent token issue and mcp login --token-stdin",
    };
    if error.may_be_told() {
        return Failure::of(code, error.reason(), error).hint(hint).into();
    }
    Failure::new(code, error.reason(), "the token is refused")
        .hint(format!("{hint}; the agent's log says why"))
        .into()
}

/// What changes something waits until the issuer of the caller's token can be asked about it.
pub(super) fn issuer_away(issuer: &str) -> Status {
    Failure::new(
        Code::Unavailable,
        "issuer-away",
        format!("{issuer} cannot be asked whether it stands by the token, so nothing is changed"),
    )
    .hint(
        "looking goes on; to change something now, take a token of the node's own issuer: mcp-agent token issue \
         there, then mcp login --token-stdin",
    )
    .into()
}

/// No token came with the call, or it came in a way that is not understood.
pub(super) fn no_token(message: &str) -> Status {
    Failure::new(Code::Unauthenticated, "no-token", message)
        .hint("log in: mcp login, or mcp login --token-stdin < TOKEN")
        .into()
}

/// The caller's address, or whoever its token names, had too many tokens refused.
pub(super) fn too_many_refusals(wait: Duration) -> Status {
    Failure::new(
        Code::ResourceExhausted,
        "too-many-refusals",
        format!(
            "too many tokens of this sender were refused; wait {} s",
            wait.as_secs().max(1)
        ),
    )
    .hint("a good token is taken at once: mcp login, or mcp-agent token issue and mcp login --token-stdin")
    .into()
}

/// The method is in no table.
pub(super) fn unknown_method(path: &str) -> Status {
    let shown: String = path.chars().filter(|c| !c.is_control()).take(200).collect();
    Failure::new(
        Code::Unimplemented,
        "unknown-method",
        format!("this agent has no method {shown}"),
    )
    .hint("agent and client are of different releases: compare `mcp version` and `mcp node info`")
    .into()
}

/// Nothing of that name is known on the node.
pub(super) fn unknown_target(targets: &[Target], node: &NodeName) -> Status {
    let names: Vec<String> = targets.iter().map(ToString::to_string).collect();
    let what = if names.is_empty() {
        "nothing is deployed".to_owned()
    } else {
        format!("{} is not known", names.join(", "))
    };
    Failure::new(
        Code::NotFound,
        "unknown-target",
        format!("{what} on {node}"),
    )
    .hint("see what is: mcp list")
    .into()
}

/// The call took longer than its method may.
pub(super) fn took_too_long(limit: Duration) -> Status {
    Failure::new(
        Code::DeadlineExceeded,
        "took-too-long",
        format!("the call took longer than {} s", limit.as_secs()),
    )
    .hint("look at the engine and the disk of the node: mcp node info")
    .into()
}

/// The request breaks the contract; only a client of another make sends such a thing.
pub(super) fn bad_request(message: impl Into<String>) -> Status {
    Failure::new(Code::InvalidArgument, "bad-request", message)
        .hint("compare the releases: `mcp version` and `mcp node info`")
        .into()
}

/// The agent is ending.
pub(super) fn stopping() -> Status {
    Failure::new(Code::Unavailable, "stopping", "the agent is stopping")
        .hint("try again in a moment")
        .into()
}

/// The agent's own disk failed.
pub(super) fn disk(action: &str, error: &std::io::Error) -> Status {
    Failure::new(Code::Internal, "io", format!("could not {action}"))
        .causes([error.to_string()])
        .hint("check space and permissions of the agent's data directory: mcp-agent check")
        .into()
}

/// A revision is refused.
#[must_use]
pub fn receive(error: &ReceiveError, head: Option<CommitId>) -> Status {
    let code = match error {
        ReceiveError::Stale { .. }
        | ReceiveError::Older { .. }
        | ReceiveError::NotFastForward { .. } => Code::Aborted,
        ReceiveError::Unrelated { .. }
        | ReceiveError::Unsigned { .. }
        | ReceiveError::BadSignature { .. }
        | ReceiveError::UnknownSigner { .. }
        | ReceiveError::DeniedKey { .. }
        | ReceiveError::Unauthorised { .. }
        | ReceiveError::BadSigners { .. }
        | ReceiveError::NoIntroduction { .. }
        | ReceiveError::BeforeIntroduction { .. } => Code::PermissionDenied,
        ReceiveError::TooLarge { .. } | ReceiveError::TimedOut { .. } => Code::ResourceExhausted,
        ReceiveError::Io { .. } => Code::Internal,
        ReceiveError::BadHeader { .. }
        | ReceiveError::HostileTree { .. }
        | ReceiveError::MissingObject { .. }
        | ReceiveError::Object { .. }
        | ReceiveError::Corrupt { .. }
        | ReceiveError::Tag
        | ReceiveError::BadDefinitions { .. }
        | ReceiveError::Halted(_) => Code::FailedPrecondition,
    };
    let mut failure = Failure::of(code, error.name(), error).hint(error.hint());
    if let ReceiveError::BadDefinitions { errors, .. } = error {
        failure = failure.causes(errors.iter().map(ToString::to_string));
    }
    if let Some(head) = head {
        failure = failure.head(head.to_string());
    }
    failure.into()
}

/// Owners or denied keys cannot be read, and nothing is verified without.
pub(super) fn trust(error: &TrustRootsError) -> Status {
    Failure::of(Code::FailedPrecondition, "trust-unreadable", error)
        .hint(error.hint())
        .into()
}

/// The upstream could not be fetched.
pub(super) fn fetch(error: &SourceError, head: Option<CommitId>) -> Status {
    match error {
        SourceError::Trust(error) => trust(error),
        SourceError::Fetch(FetchError::Refused(refused)) => receive(refused, head),
        SourceError::Fetch(error) => Failure::of(Code::FailedPrecondition, error.name(), error)
            .hint(error.hint())
            .into(),
    }
}

/// There is no upstream to fetch from.
pub(super) fn no_source() -> Status {
    Failure::new(
        Code::FailedPrecondition,
        "no-source",
        "this node has no upstream",
    )
    .hint("name one under [source] in agent.toml, or push with mcp sync")
    .into()
}

/// Something of an accepted revision could not be read.
#[must_use]
pub fn read(error: &ReadError) -> Status {
    let (code, reason, hint) = match error {
        ReadError::NotAccepted { .. } => (
            Code::NotFound,
            "unknown-revision",
            "see which there are: mcp revisions",
        ),
        ReadError::TooLarge { .. } => (
            Code::ResourceExhausted,
            "too-large",
            "keep large files out of the repository",
        ),
        ReadError::Draft(_) => (
            Code::FailedPrecondition,
            "bad-draft",
            "commit the edits first: mcp sync",
        ),
        ReadError::Object { .. }
        | ReadError::Damaged { .. }
        | ReadError::Pack(_)
        | ReadError::Io { .. } => (
            Code::Internal,
            "repository",
            "check the agent's repository on the node: mcp-agent check",
        ),
    };
    Failure::of(code, reason, error).hint(hint).into()
}

/// A text names no accepted revision.
#[must_use]
pub fn resolve(error: &ResolveError) -> Status {
    let (code, reason) = match error {
        ResolveError::Empty => (Code::FailedPrecondition, "no-revision"),
        ResolveError::Syntax { .. } => (Code::InvalidArgument, "bad-revision"),
        ResolveError::Unknown { .. } | ResolveError::BeforeHistory { .. } => {
            (Code::NotFound, "unknown-revision")
        }
        ResolveError::Ambiguous { .. } => (Code::FailedPrecondition, "ambiguous-revision"),
    };
    Failure::of(code, reason, error)
        .hint("see which there are: mcp revisions")
        .into()
}

/// A file cannot be had or written.
#[must_use]
pub fn file(error: &FileError) -> Status {
    let code = match error {
        FileError::NotFound { .. } | FileError::NothingKept { .. } => Code::NotFound,
        FileError::TooLarge { .. }
        | FileError::Quota { .. }
        | FileError::Uncounted { .. }
        | FileError::Full { .. } => Code::ResourceExhausted,
        FileError::OtherBytes { .. } | FileError::Agents { .. } => Code::PermissionDenied,
        FileError::Io { .. } if error.reason() == "disk-full" => Code::ResourceExhausted,
        FileError::Io { .. } => Code::Internal,
        FileError::Namespace { .. } => Code::Unavailable,
        _ => Code::FailedPrecondition,
    };
    Failure::of(code, error.reason(), error)
        .hint(error.hint())
        .into()
}

/// A path that is none.
pub(super) fn file_path(error: &FilePathError) -> Status {
    Failure::of(Code::InvalidArgument, "bad-path", error)
        .hint(error.hint())
        .into()
}

/// More transfers than the node takes at a time.
pub(super) fn too_many_transfers(limit: usize) -> Status {
    Failure::new(
        Code::ResourceExhausted,
        "too-many-transfers",
        format!("{limit} files are on their way already"),
    )
    .hint("try again when one has arrived")
    .into()
}

/// The registry failed.
#[must_use]
pub fn registry(error: &RegistryError) -> Status {
    let (code, reason, hint) = match error {
        RegistryError::TooLarge { .. } => (
            Code::ResourceExhausted,
            "too-large",
            "ask for less at a time".to_owned(),
        ),
        RegistryError::Full { folder } => (
            Code::ResourceExhausted,
            "disk-full",
            format!(
                "make room on the disk of {0} on the node (df -h {0}), then try again: nothing has to be \
                 restarted",
                folder.display()
            ),
        ),
        _ => (
            Code::Internal,
            "registry",
            "look at disk and log of the agent: mcp-agent check".to_owned(),
        ),
    };
    Failure::of(code, reason, error).hint(hint).into()
}

impl From<ForbiddenError> for Failure {
    fn from(error: ForbiddenError) -> Self {
        let reason = match &error {
            ForbiddenError::Role { .. } => "role",
            ForbiddenError::Service { .. } | ForbiddenError::Narrowed { .. } => "narrowed-token",
        };
        let hint = match &error {
            ForbiddenError::Role { required, .. } => format!(
                "ask for a token with more: mcp-agent token issue --subject NAME --role {required}"
            ),
            ForbiddenError::Service { .. } | ForbiddenError::Narrowed { .. } => {
                "name services that the token covers, or get one without --service".to_owned()
            }
        };
        Self::of(Code::PermissionDenied, reason, &error).hint(hint)
    }
}

impl From<ForbiddenError> for Status {
    fn from(error: ForbiddenError) -> Self {
        Failure::from(error).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail(status: &Status) -> v1::ErrorDetail {
        let bytes = status.metadata().get_bin(ERROR_DETAIL).unwrap();
        v1::ErrorDetail::decode(bytes.to_bytes().unwrap()).unwrap()
    }

    #[test]
    fn a_status_carries_reason_mend_and_causes() {
        let status: Status = Failure::new(Code::Aborted, "stale-plan", "the plan is stale")
            .hint("mcp plan")
            .head("a81d220")
            .causes(["x".repeat(5000), "second".to_owned()])
            .into();
        assert_eq!(status.code(), Code::Aborted);
        let detail = detail(&status);
        assert_eq!(detail.reason, "stale-plan");
        assert_eq!(detail.hint, "mcp plan");
        assert_eq!(detail.head, "a81d220");
        assert!(detail.causes[0].len() <= MAX_TEXT_BYTES);
        assert_eq!(detail.causes[1], "second");
    }

    #[test]
    fn text_is_cut_between_characters() {
        let mut text = "é".repeat(1000);
        cut(&mut text);
        assert!(text.len() <= MAX_TEXT_BYTES && text.ends_with('…'));
    }
}
