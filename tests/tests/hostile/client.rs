//! A client that sends whatever it is given, signed as an operator would.

use std::collections::BTreeSet;

use mcp_proto::v1;
use mcp_proto::v1::push_pack_request::Part;
use mcp_proto::v1::revisions_client::RevisionsClient;
use mcp_spec::image::Digest;
use mcp_spec::request::{SIGNATURE_KEY, STATEMENT_KEY, Statement};
use mcp_spec::signature::REQUEST_NAMESPACE;
use mcp_tests::engine::wait;
use mcp_tests::fleet::Fleet;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use ssh_key::{HashAlg, LineEnding, PrivateKey};
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

const METHOD: &str = "/mcp.v1.Revisions/PushPack";

/// What a refusal says.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Its stable name.
    pub(crate) reason: String,
    pub(crate) hint: String,
    pub(crate) message: String,
}

pub(crate) struct Client {
    node: String,
    endpoint: Endpoint,
    token: String,
    key: PrivateKey,
}

impl Client {
    pub(crate) fn of(fleet: &Fleet, node: &str) -> Self {
        let entry = fleet.node(node);
        let ca = std::fs::read(entry.data_dir().join("tls/ca.pem")).unwrap();
        let listed = fleet.mcp_json(&["node", "list"]);
        let address = listed[0]["address"].as_str().unwrap().to_owned();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(ca))
            .domain_name("127.0.0.1");
        let endpoint = Channel::from_shared(format!("https://{address}"))
            .unwrap()
            .tls_config(tls)
            .unwrap();
        Self {
            node: node.to_owned(),
            endpoint,
            token: fleet
                .token(node, "alice", "admin")
                .unwrap()
                .trim()
                .to_owned(),
            key: PrivateKey::read_openssh_file(fleet.key()).unwrap(),
        }
    }

    /// Pushes a pack that is said to lead from `previous` to `revision`.
    pub(crate) fn push(&self, previous: &str, revision: &str, pack: &[u8]) -> Result<(), Refused> {
        wait(self.send(previous, revision, pack))
    }

    async fn send(&self, previous: &str, revision: &str, pack: &[u8]) -> Result<(), Refused> {
        let header = v1::PushHeader {
            previous: previous.to_owned(),
            revision: revision.to_owned(),
            pack_bytes: pack.len() as u64,
            request_id: String::new(),
            pack_sha256: Sha256::digest(pack).to_vec(),
        };
        let first = v1::PushPackRequest {
            part: Some(Part::Header(header)),
        };
        let statement = self.statement(&first);
        let signature = self
            .key
            .sign(REQUEST_NAMESPACE, HashAlg::Sha512, &statement)
            .unwrap()
            .to_pem(LineEnding::LF)
            .unwrap();
        let chunks: Vec<_> = pack
            .chunks(512 * 1024)
            .map(|chunk| v1::PushPackRequest {
                part: Some(Part::Chunk(chunk.to_vec())),
            })
            .collect();
        let parts = std::iter::once(first).chain(chunks);
        let mut request = Request::new(tokio_stream::iter(parts.collect::<Vec<_>>()));
        let metadata = request.metadata_mut();
        let bearer = format!("Bearer {}", self.token).parse().unwrap();
        metadata.insert("authorization", bearer);
        metadata.insert_bin(STATEMENT_KEY, MetadataValue::from_bytes(&statement));
        metadata.insert_bin(
            SIGNATURE_KEY,
            MetadataValue::from_bytes(signature.as_bytes()),
        );
        let channel = self.endpoint.connect().await.unwrap();
        match RevisionsClient::new(channel).push_pack(request).await {
            Ok(_) => Ok(()),
            Err(status) => {
                let detail = status.metadata().get_bin("mcp-error-bin");
                let detail = detail
                    .map(|value| value.to_bytes().unwrap())
                    .unwrap_or_default();
                let detail = v1::ErrorDetail::decode(detail).unwrap();
                Err(Refused {
                    reason: detail.reason,
                    hint: detail.hint,
                    message: status.message().to_owned(),
                })
            }
        }
    }

    fn statement(&self, first: &v1::PushPackRequest) -> Vec<u8> {
        let now = jiff::Timestamp::now();
        let id = Sha256::digest(format!("{} {}", now.as_nanosecond(), std::process::id()));
        let statement = Statement {
            nodes: BTreeSet::from([self.node.parse().unwrap()]),
            method: METHOD.to_owned(),
            message: Digest::of(&first.encode_to_vec()),
            id: hex::encode(&id[..16]),
            issued: now.as_second(),
            expires: now.as_second() + 120,
        };
        statement.to_bytes()
    }
}
