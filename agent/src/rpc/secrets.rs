//! `mcp.v1.Secrets`: sealing anew what is sealed to this node.
//!
//! Whoever may ask gets a sealed file back and never a value. It is sealed only to recipients that an owner
//! signed, so that neither a stolen token nor an operator's key brings a value out of the fleet.

use std::collections::BTreeMap;
use std::sync::Arc;

use mcp_proto::v1;
use mcp_spec::name::{NodeName, SecretName, ServiceName};
use mcp_spec::secret::{MAX_RECIPIENTS, MAX_SEALED_BYTES, RECIPIENTS_PATH, Recipients};
use thiserror::Error;
use tonic::{Code, Request, Response, Status};

use super::authenticate::{About, caller};
use super::status::Failure;
use crate::Agent;
use crate::blocking::blocking;
use crate::secrets::SecretError;

/// The service.
#[derive(Debug)]
pub(super) struct Secrets {
    agent: Arc<Agent>,
}

impl Secrets {
    pub(super) const fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }
}

/// Why a secret is not sealed anew.
#[derive(Debug, Error)]
enum ResealError {
    #[error("the request names no secret, or too much of it: {what}")]
    Malformed { what: &'static str },
    #[error("{RECIPIENTS_PATH} of the node's head does not give {node} this recipient")]
    Unsigned { node: NodeName },
    #[error("{RECIPIENTS_PATH} of the node's head cannot be read: {cause}")]
    Recipients { cause: String },
    #[error(transparent)]
    Open(#[from] SecretError),
    #[error(transparent)]
    Seal(#[from] mcp_seal::SealError),
}

impl From<ResealError> for Status {
    fn from(error: ResealError) -> Self {
        let (code, reason, hint) = match &error {
            ResealError::Malformed { .. } => (
                Code::InvalidArgument,
                "malformed",
                "mcp secret list".to_owned(),
            ),
            ResealError::Unsigned { .. } => (
                Code::FailedPrecondition,
                "recipient-not-signed",
                format!("an owner signs the change of {RECIPIENTS_PATH} first: mcp sync"),
            ),
            ResealError::Recipients { .. } => (
                Code::FailedPrecondition,
                "recipients-unreadable",
                format!("mend {RECIPIENTS_PATH}, then mcp sync"),
            ),
            ResealError::Open(error) => {
                (Code::FailedPrecondition, "secret-not-opened", error.hint())
            }
            ResealError::Seal(_) => (
                Code::InvalidArgument,
                "secret-not-sealed",
                "mcp secret list".to_owned(),
            ),
        };
        Failure::of(code, reason, &error).hint(hint).into()
    }
}

#[tonic::async_trait]
impl v1::secrets_server::Secrets for Secrets {
    async fn reseal(
        &self,
        request: Request<v1::ResealRequest>,
    ) -> Result<Response<v1::ResealResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let request = request.into_inner();
        let malformed = |what| ResealError::Malformed { what };
        let service: ServiceName = request
            .service
            .parse()
            .map_err(|_| malformed("the service"))?;
        let name: SecretName = request.name.parse().map_err(|_| malformed("the name"))?;
        about.say(format!("{service}/{name}"), "");
        identity.require_service(&service)?;
        if request.sealed.len() > MAX_SEALED_BYTES {
            return Err(malformed("the sealed file").into());
        }
        if request.nodes.len() > MAX_RECIPIENTS {
            return Err(malformed("the nodes").into());
        }
        let nodes: BTreeMap<NodeName, String> = request
            .nodes
            .into_iter()
            .map(|one| Some((one.node.parse().ok()?, one.recipient)))
            .collect::<Option<_>>()
            .ok_or_else(|| malformed("the nodes"))?;
        let agent = Arc::clone(&self.agent);
        let sealed =
            blocking(move || reseal(&agent, &service, &name, &request.sealed, &nodes)).await?;
        Ok(Response::new(v1::ResealResponse { sealed }))
    }
}

fn reseal(
    agent: &Agent,
    service: &ServiceName,
    name: &SecretName,
    sealed: &[u8],
    nodes: &BTreeMap<NodeName, String>,
) -> Result<Vec<u8>, ResealError> {
    let unreadable = |cause: String| ResealError::Recipients { cause };
    let signed = match agent.revisions.head() {
        Some(head) => agent
            .revisions
            .read_file(head, RECIPIENTS_PATH)
            .map_err(|error| unreadable(error.to_string()))?,
        None => None,
    };
    let signed = Recipients::parse(&signed.unwrap_or_default())
        .map_err(|error| unreadable(error.to_string()))?;
    let keyring = agent.revisions.keyring();
    // Without an identity nothing opens here, whoever it is for.
    let own = keyring.recipient().map_err(|source| SecretError::Key {
        service: service.clone(),
        name: name.clone(),
        source,
    })?;
    for (node, recipient) in nodes {
        let is_own = *node == agent.config.node && own == *recipient;
        if !is_own && signed.of(node) != Some(recipient) {
            return Err(ResealError::Unsigned { node: node.clone() });
        }
    }
    let value = keyring.open(service, name, sealed)?;
    Ok(mcp_seal::seal(service, name, &value, nodes)?)
}
