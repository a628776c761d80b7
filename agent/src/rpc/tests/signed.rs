//! Signed requests over the wire: what stands behind a call, and every way in which nothing does.

use mcp_spec::image::Digest;
use mcp_spec::request::{SIGNATURE_KEY, STATEMENT_KEY, Statement};
use mcp_spec::signature::PublicKey;
use sha2::{Digest as _, Sha256};
use ssh_key::{HashAlg, LineEnding, PrivateKey};
use tonic::metadata::MetadataValue;

use super::*;

const FETCH: &str = "/mcp.v1.Node/FetchSource";
const PUSH: &str = "/mcp.v1.Revisions/PushPack";

/// A call that changes something, and is refused here for want of an upstream alone.
fn fetch() -> v1::FetchSourceRequest {
    v1::FetchSourceRequest {}
}

/// What its handler says: the call got there.
const LET_IN: &str = "no-source";

fn key(folder: &Path) -> PrivateKey {
    PrivateKey::read_openssh_file(&folder.join("key")).unwrap()
}

fn statement(method: &str, message: &impl prost::Message) -> Statement {
    let now = Timestamp::now().as_second();
    Statement {
        nodes: ["rift".parse().unwrap()].into(),
        method: method.to_owned(),
        message: Digest::of(&message.encode_to_vec()),
        id: hex::encode(rand::random::<[u8; 16]>()),
        issued: now,
        expires: now + 60,
    }
}

fn sign<T>(request: &mut Request<T>, key: &PrivateKey, statement: &Statement) {
    let bytes = statement.to_bytes();
    let signature = key.sign("mcp-request", HashAlg::Sha512, &bytes).unwrap();
    let signature = signature.to_pem(LineEnding::LF).unwrap();
    let metadata = request.metadata_mut();
    metadata.insert_bin(STATEMENT_KEY, MetadataValue::from_bytes(&bytes));
    metadata.insert_bin(
        SIGNATURE_KEY,
        MetadataValue::from_bytes(signature.as_bytes()),
    );
}

impl Running {
    async fn required() -> Self {
        crate::tls::install_crypto();
        let configured = Self::configured();
        assert_eq!(
            configured.0.trust.signed_requests,
            SignedRequests::Required,
            "it is what a new node has"
        );
        Self::run(configured).await
    }

    /// A call that is signed as `change` leaves it, and why it was refused.
    async fn refusal(&self, change: impl FnOnce(&mut Statement)) -> String {
        let mut statement = statement(FETCH, &fetch());
        change(&mut statement);
        let mut request = self.with(Role::Operator, fetch());
        sign(&mut request, &key(self.folder.path()), &statement);
        self.answer(request).await
    }

    async fn answer(&self, request: Request<v1::FetchSourceRequest>) -> String {
        let mut client = NodeClient::new(self.channel().await);
        reason(&client.fetch_source(request).await.unwrap_err())
    }
}

#[tokio::test]
async fn a_token_alone_changes_nothing() {
    let agent = Running::required().await;
    let unsigned = agent.with(Role::Admin, fetch());
    assert_eq!(agent.answer(unsigned).await, "request-unsigned");
    assert_eq!(agent.refusal(|_| ()).await, LET_IN);
    // Looking takes no signature.
    let mut node = NodeClient::new(agent.channel().await);
    let info = agent.with(Role::Viewer, v1::InfoRequest {});
    assert!(node.info(info).await.is_ok());
    // A key does not lift a role.
    let mut low = agent.with(Role::Viewer, fetch());
    sign(
        &mut low,
        &key(agent.folder.path()),
        &statement(FETCH, &fetch()),
    );
    assert_eq!(agent.answer(low).await, "role");

    let registry = crate::registry::Registry::open(&agent.config.database()).unwrap();
    let audit = registry.audit(10).await.unwrap();
    let results: Vec<&str> = audit.iter().map(|row| row.result.as_str()).collect();
    assert_eq!(results, ["role", LET_IN, "request-unsigned"]);
    let public: PublicKey = key(agent.folder.path()).public_key().clone();
    let signer = format!("owner {}", mcp_spec::signature::fingerprint(&public));
    let signers: Vec<&str> = audit.iter().map(|row| row.signer.as_str()).collect();
    assert_eq!(signers, ["", signer.as_str(), ""]);
    assert!(audit.iter().all(|row| !row.token.is_empty()));
    agent.stop().await;
}

#[tokio::test]
async fn a_signature_stands_for_its_own_call_alone() {
    let agent = Running::required().await;
    let now = Timestamp::now().as_second();
    let message = Digest::of(b"another");
    for (expected, refused) in [
        (
            "request-other-node",
            agent
                .refusal(|it| it.nodes = ["orion".parse().unwrap()].into())
                .await,
        ),
        (
            "request-other-method",
            agent
                .refusal(|it| it.method = "/mcp.v1.Node/TestAlert".to_owned())
                .await,
        ),
        (
            "request-other-bytes",
            agent.refusal(|it| it.message = message).await,
        ),
        (
            "request-expired",
            agent
                .refusal(|it| (it.issued, it.expires) = (now - 200, now - 100))
                .await,
        ),
        (
            "request-expired",
            agent
                .refusal(|it| (it.issued, it.expires) = (now + 100, now + 200))
                .await,
        ),
        (
            "request-expired",
            agent.refusal(|it| it.expires = now + 3600).await,
        ),
        (
            "request-malformed",
            agent.refusal(|it| it.id = "x".to_owned()).await,
        ),
    ] {
        assert_eq!(refused, expected);
    }
    let other = PrivateKey::random(&mut rand::rngs::OsRng, ssh_key::Algorithm::Ed25519).unwrap();
    let mut foreign = agent.with(Role::Operator, fetch());
    sign(&mut foreign, &other, &statement(FETCH, &fetch()));
    assert_eq!(agent.answer(foreign).await, "request-unknown-key");
    for key_of in [STATEMENT_KEY, SIGNATURE_KEY] {
        let signed = || {
            let mut request = agent.with(Role::Operator, fetch());
            sign(
                &mut request,
                &key(agent.folder.path()),
                &statement(FETCH, &fetch()),
            );
            request
        };
        let mut half = signed();
        half.metadata_mut().remove_bin(key_of);
        assert_eq!(agent.answer(half).await, "request-malformed");
        let mut twice = signed();
        let value = twice.metadata().get_bin(key_of).unwrap().clone();
        twice.metadata_mut().append_bin(key_of, value);
        assert_eq!(agent.answer(twice).await, "request-malformed");
    }
    let mut packed = agent.with(Role::Operator, fetch());
    sign(
        &mut packed,
        &key(agent.folder.path()),
        &statement(FETCH, &fetch()),
    );
    let mut client =
        NodeClient::new(agent.channel().await).send_compressed(CompressionEncoding::Zstd);
    let refused = client.fetch_source(packed).await.unwrap_err();
    assert_eq!(reason(&refused), "request-malformed");
    agent.stop().await;
}

#[tokio::test]
async fn a_signature_counts_once_over_a_restart_too() {
    let agent = Running::required().await;
    let statement = statement(FETCH, &fetch());
    let signed = |agent: &Running| {
        let mut request = agent.with(Role::Operator, fetch());
        sign(&mut request, &key(agent.folder.path()), &statement);
        request
    };
    assert_eq!(agent.answer(signed(&agent)).await, LET_IN);
    assert_eq!(agent.answer(signed(&agent)).await, "request-replayed");
    let agent = Running::run(agent.stop().await).await;
    assert_eq!(agent.answer(signed(&agent)).await, "request-replayed");
    agent.stop().await;
}

#[tokio::test]
async fn a_push_is_signed_with_its_pack() {
    use v1::push_pack_request::Part;
    let agent = Running::required().await;
    let (work, tip) = signed_repository(agent.folder.path());
    let pack = whole_pack(&work);
    let header = |sha256: &[u8]| v1::PushHeader {
        previous: String::new(),
        revision: tip.clone(),
        pack_bytes: pack.len() as u64,
        request_id: "first".to_owned(),
        pack_sha256: sha256.to_vec(),
    };
    let signed = |header: v1::PushHeader, pack: &[u8]| {
        let first = v1::PushPackRequest {
            part: Some(Part::Header(header.clone())),
        };
        let statement = statement(PUSH, &first);
        let parts = push(vec![Part::Header(header), Part::Chunk(pack.to_vec())]);
        let mut request = agent.with(Role::Operator, parts);
        sign(&mut request, &key(agent.folder.path()), &statement);
        request
    };
    let mut revisions = RevisionsClient::new(agent.channel().await);
    let digest = Sha256::digest(&pack);
    let refused = revisions.push_pack(signed(header(&[]), &pack)).await;
    assert_eq!(reason(&refused.unwrap_err()), "bad-request");
    let mut other = pack.clone();
    other[20] ^= 1;
    let refused = revisions.push_pack(signed(header(&digest), &other)).await;
    assert_eq!(reason(&refused.unwrap_err()), "request-other-bytes");
    let taken = revisions.push_pack(signed(header(&digest), &pack)).await;
    assert_eq!(taken.unwrap().into_inner().revision, tip);
    // From now on the head's signers count, and the token's subject is the key's principal.
    assert_eq!(agent.refusal(|_| ()).await, LET_IN);
    agent.stop().await;
}
