//! Sealing anew over the wire: what an agent does with a sealed file, and every request that it refuses.

use std::collections::BTreeMap;

use mcp_proto::v1::secrets_client::SecretsClient;
use mcp_seal::{Identity, Value, open, recipients_of, seal};
use mcp_spec::name::{NodeName, SecretName, ServiceName};

use super::*;
use crate::secrets::Keyring;

const VALUE: &[u8] = b"hunter2";

fn service() -> ServiceName {
    "shop".parse().unwrap()
}

fn db() -> SecretName {
    "db".parse().unwrap()
}

fn to(node: &str, recipient: &str) -> BTreeMap<NodeName, String> {
    BTreeMap::from([(node.parse().unwrap(), recipient.to_owned())])
}

/// The value, sealed to the node under test.
fn sealed(agent: &Running) -> Vec<u8> {
    let own = own(agent);
    let value = Value::new(VALUE.to_vec());
    seal(&service(), &db(), &value, &to("rift", &own)).unwrap()
}

fn own(agent: &Running) -> String {
    Keyring::new(&agent.config.data_dir).recipient().unwrap()
}

fn request(sealed: Vec<u8>, nodes: &[(&str, &str)]) -> v1::ResealRequest {
    v1::ResealRequest {
        service: "shop".to_owned(),
        name: "db".to_owned(),
        sealed,
        nodes: nodes
            .iter()
            .map(|(node, recipient)| v1::NodeRecipient {
                node: (*node).to_owned(),
                recipient: (*recipient).to_owned(),
            })
            .collect(),
    }
}

/// Has the node accept a head with these recipients.
async fn push_recipients(agent: &Running, recipients: &str) {
    use v1::push_pack_request::Part;
    let (work, _) = signed_repository(agent.folder.path());
    std::fs::write(work.join(".mcp/recipients"), recipients).unwrap();
    run(&work, "git", &["add", "-A"]);
    run(&work, "git", &["commit", "-q", "-S", "-m", "recipients"]);
    let tip = String::from_utf8(run(&work, "git", &["rev-parse", "HEAD"])).unwrap();
    let pack = whole_pack(&work);
    let header = v1::PushHeader {
        previous: String::new(),
        revision: tip.trim().to_owned(),
        pack_bytes: pack.len() as u64,
        request_id: "recipients".to_owned(),
        pack_sha256: Vec::new(),
    };
    let parts = push(vec![Part::Header(header), Part::Chunk(pack)]);
    let mut revisions = RevisionsClient::new(agent.channel().await);
    revisions
        .push_pack(agent.with(Role::Operator, parts))
        .await
        .unwrap();
}

impl Running {
    async fn reseal(&self, request: Request<v1::ResealRequest>) -> Result<Vec<u8>, String> {
        let mut client = SecretsClient::new(self.channel().await);
        let answer = client.reseal(request).await;
        answer
            .map(|answer| answer.into_inner().sealed)
            .map_err(|status| {
                let told = format!("{status:?}");
                assert!(!told.contains("hunter2"), "{told}");
                reason(&status)
            })
    }
}

#[tokio::test]
async fn a_value_is_sealed_anew_to_recipients_that_an_owner_signed_and_to_no_others() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let (quill, thief) = (Identity::generate(), Identity::generate());
    let ask = |nodes: &[(&str, &str)]| {
        let request = request(sealed(&agent), nodes);
        agent.reseal(agent.with(Role::Admin, request))
    };
    let unsigned = || Err("recipient-not-signed".to_owned());
    // Nothing was accepted yet: the node's own recipient is all there is.
    assert_eq!(ask(&[("quill", &quill.recipient())]).await, unsigned());
    assert!(ask(&[("rift", &own(&agent))]).await.is_ok());
    push_recipients(&agent, &format!("quill {}\n", quill.recipient())).await;
    let moved = ask(&[("quill", &quill.recipient())]).await.unwrap();
    assert_eq!(
        recipients_of(&moved).unwrap(),
        to("quill", &quill.recipient())
    );
    let opened = open(&service(), &db(), &moved, std::slice::from_ref(&quill)).unwrap();
    assert_eq!(opened.expose(), VALUE);
    for stolen in [
        &[("quill", thief.recipient().as_str())][..],
        &[("thief", thief.recipient().as_str())],
        &[("rift", thief.recipient().as_str())],
        &[("quill", own(&agent).as_str())],
        &[
            ("quill", quill.recipient().as_str()),
            ("thief", thief.recipient().as_str()),
        ],
    ] {
        assert_eq!(ask(stolen).await, unsigned(), "{stolen:?}");
    }
    agent.stop().await;
}

#[tokio::test]
async fn what_cannot_be_sealed_anew_is_refused_by_name() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let own = own(&agent);
    let good = || request(sealed(&agent), &[("rift", &own)]);
    let other = Identity::generate();
    let foreign = seal(
        &service(),
        &db(),
        &Value::new(VALUE.to_vec()),
        &to("rift", &other.recipient()),
    )
    .unwrap();
    let elsewhere = |change: fn(&mut v1::ResealRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    let ask = |request| agent.reseal(agent.with(Role::Operator, request));
    assert!(ask(good()).await.is_ok());
    for (expected, request) in [
        (
            "malformed",
            elsewhere(|it| it.service = "../shop".to_owned()),
        ),
        ("malformed", elsewhere(|it| it.name = String::new())),
        (
            "malformed",
            elsewhere(|it| it.nodes[0].node = "a/b".to_owned()),
        ),
        (
            "malformed",
            elsewhere(|it| it.sealed = vec![b'a'; mcp_spec::secret::MAX_SEALED_BYTES + 1]),
        ),
        (
            "malformed",
            elsewhere(|it| it.nodes = vec![it.nodes[0].clone(); 1001]),
        ),
        ("secret-not-sealed", elsewhere(|it| it.nodes.clear())),
        ("secret-not-opened", elsewhere(|it| it.sealed.clear())),
        (
            "secret-not-opened",
            elsewhere(|it| it.sealed = b"-----BEGIN PGP MESSAGE-----".to_vec()),
        ),
        (
            "secret-not-opened",
            elsewhere(|it| it.sealed.truncate(it.sealed.len() - 1)),
        ),
        // Sealed for another place, and to somebody else.
        (
            "secret-not-opened",
            elsewhere(|it| it.name = "tls".to_owned()),
        ),
        (
            "secret-not-opened",
            elsewhere(|it| it.service = "cart".to_owned()),
        ),
        ("secret-not-opened", request(foreign, &[("rift", &own)])),
    ] {
        assert_eq!(ask(request).await, Err(expected.to_owned()));
    }
    let low = agent.with(Role::Viewer, good());
    assert_eq!(agent.reseal(low).await, Err("role".to_owned()));
    let narrow = bearing(&agent.narrowed(Role::Admin, &["cart"]), good());
    assert!(agent.reseal(narrow).await.is_err(), "another service's");
    let lost = good();
    std::fs::remove_file(agent.config.data_dir.join("age.key")).unwrap();
    assert_eq!(ask(lost).await, Err("secret-not-opened".to_owned()));
    agent.stop().await;
}
