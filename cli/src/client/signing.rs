//! Signing what changes something: the operator's key stands behind the call, beside the token.
//!
//! One statement serves every node of a command that is sent the same bytes, so that a key behind an
//! ssh-agent signs once. A statement counts once a node: what is sent again is signed anew.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use mcp_cli::sign::SigningKey;
use mcp_spec::image::Digest;
use mcp_spec::name::NodeName;
use mcp_spec::request::{MAX_STATEMENT_BYTES, SIGNATURE_KEY, STATEMENT_KEY, Statement};
use mcp_spec::signature::REQUEST_NAMESPACE;
use prost::Message;
use tonic::Request;
use tonic::metadata::MetadataValue;

use crate::error::{Exit, Failure};

/// How long a statement counts, in seconds: time for a slow ssh-agent and a slow line.
const LIFE_SECONDS: i64 = 120;

/// A statement that is older is not sent to further nodes.
const FRESH_SECONDS: i64 = 45;

/// The operator's key, once a command has opened it; `None` in it where nobody names one.
pub(crate) type OpenedKey = Arc<OnceLock<Option<Arc<SigningKey>>>>;

/// The statements of one command.
#[derive(Debug)]
pub(crate) struct Signatures {
    key: OpenedKey,
    nodes: BTreeSet<NodeName>,
    /// Held while one is made, so that the other nodes wait for it.
    made: tokio::sync::Mutex<Vec<Made>>,
}

#[derive(Debug)]
struct Made {
    statement: Statement,
    signature: String,
    sent_to: BTreeSet<NodeName>,
}

impl Signatures {
    /// Statements for a command about these nodes.
    pub(crate) fn new(key: &OpenedKey, nodes: impl IntoIterator<Item = NodeName>) -> Arc<Self> {
        Arc::new(Self {
            key: Arc::clone(key),
            nodes: nodes.into_iter().collect(),
            made: tokio::sync::Mutex::default(),
        })
    }

    /// The request of `message` to `node`, signed where the operator has a key; without one it is the
    /// agent's to refuse. `first` is what is signed: the message, or the first one of a stream.
    pub(super) async fn request<T>(
        &self,
        node: &NodeName,
        method: &str,
        first: &impl Message,
        message: T,
    ) -> Result<Request<T>, Failure> {
        let mut request = Request::new(message);
        let Some(key) = self.key.get() else {
            return Err(Failure::failed(format!(
                "{method} is sent by a command that has not opened the signing key"
            )));
        };
        if let Some(key) = key {
            let digest = Digest::of(&first.encode_to_vec());
            let (statement, signature) = self.sign(key, node, method, digest).await?;
            let metadata = request.metadata_mut();
            metadata.insert_bin(STATEMENT_KEY, MetadataValue::from_bytes(&statement));
            metadata.insert_bin(
                SIGNATURE_KEY,
                MetadataValue::from_bytes(signature.as_bytes()),
            );
        }
        Ok(request)
    }

    async fn sign(
        &self,
        key: &Arc<SigningKey>,
        node: &NodeName,
        method: &str,
        message: Digest,
    ) -> Result<(Vec<u8>, String), Failure> {
        let mut made = self.made.lock().await;
        let now = jiff::Timestamp::now().as_second();
        made.retain(|made| (0..FRESH_SECONDS).contains(&(now - made.statement.issued)));
        let fits = |made: &&mut Made| {
            made.statement.method == method
                && made.statement.message == message
                && made.statement.nodes.contains(node)
                && !made.sent_to.contains(node)
        };
        if let Some(made) = made.iter_mut().find(fits) {
            made.sent_to.insert(node.clone());
            return Ok((made.statement.to_bytes(), made.signature.clone()));
        }
        let mut statement = Statement {
            nodes: self.nodes.clone(),
            method: method.to_owned(),
            message,
            id: super::follow::new_request_id(),
            issued: now,
            expires: now + LIFE_SECONDS,
        };
        statement.nodes.insert(node.clone());
        if statement.to_bytes().len() > MAX_STATEMENT_BYTES {
            statement.nodes = [node.clone()].into();
        }
        let bytes = statement.to_bytes();
        let signature = {
            let (key, bytes) = (Arc::clone(key), bytes.clone());
            // An ssh-agent may ask its user first.
            tokio::task::spawn_blocking(move || key.sign(REQUEST_NAMESPACE, &bytes)).await
        };
        let signature = match signature {
            Ok(signed) => signed
                .map_err(|error| Failure::of(Exit::Refused, &error).maybe_hint(error.hint()))?,
            Err(died) => return Err(Failure::failed("the request was not signed").because(&died)),
        };
        made.push(Made {
            statement,
            signature: signature.clone(),
            sent_to: [node.clone()].into(),
        });
        Ok((bytes, signature))
    }
}

#[cfg(test)]
mod tests {
    use mcp_cli::sign::{KeyContext, KeySource, generate_key};
    use mcp_proto::v1;
    use mcp_spec::signature::verify_sshsig;

    use super::*;

    const STOP: &str = "/mcp.v1.Deployments/Stop";

    fn node(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn signatures(folder: &std::path::Path) -> Arc<Signatures> {
        let path = folder.join("key");
        generate_key(&path, "alice").unwrap();
        let key = SigningKey::load(&KeySource::File(path), &KeyContext::default()).unwrap();
        let opened = OpenedKey::default();
        opened.set(Some(Arc::new(key))).unwrap();
        Signatures::new(&opened, [node("rift"), node("orion")])
    }

    async fn sent(signatures: &Signatures, to: &str, id: &str) -> (Statement, Vec<u8>) {
        let message = v1::LifecycleRequest {
            request_id: id.to_owned(),
            ..v1::LifecycleRequest::default()
        };
        let request = signatures
            .request(&node(to), STOP, &message, ())
            .await
            .unwrap();
        let bytes = |key| {
            let value = request.metadata().get_bin(key).unwrap();
            value.to_bytes().unwrap().to_vec()
        };
        let statement = bytes(STATEMENT_KEY);
        let signature = String::from_utf8(bytes(SIGNATURE_KEY)).unwrap();
        verify_sshsig(&signature, REQUEST_NAMESPACE, &statement).unwrap();
        let read = Statement::parse(&statement).unwrap();
        assert_eq!(read.message, Digest::of(&message.encode_to_vec()));
        (read, statement)
    }

    #[tokio::test]
    async fn one_signature_serves_the_nodes_of_a_command() {
        let folder = tempfile::tempdir().unwrap();
        let signatures = signatures(folder.path());
        let (first, bytes) = sent(&signatures, "rift", "1").await;
        assert_eq!(first.nodes, [node("orion"), node("rift")].into());
        assert_eq!(sent(&signatures, "orion", "1").await.1, bytes);
        // The agent takes a statement once.
        assert_ne!(sent(&signatures, "rift", "1").await.1, bytes);
        // Other bytes are another statement.
        assert_ne!(sent(&signatures, "orion", "2").await.0.id, first.id);
    }

    #[tokio::test]
    async fn without_a_key_nothing_is_signed() {
        let opened = OpenedKey::default();
        let signatures = Signatures::new(&opened, [node("rift")]);
        let message = v1::LifecycleRequest::default();
        let early = signatures.request(&node("rift"), STOP, &message, ()).await;
        assert!(early.is_err(), "a command has to open the key first");
        opened.set(None).unwrap();
        let request = signatures
            .request(&node("rift"), STOP, &message, ())
            .await
            .unwrap();
        assert!(request.metadata().get_bin(STATEMENT_KEY).is_none());
    }
}
