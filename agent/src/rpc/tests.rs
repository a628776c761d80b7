//! The agent over the wire: TLS, tokens, roles, bounds.

use std::net::SocketAddr;
use std::path::Path;

use jiff::Timestamp;
use mcp_spec::duration::Span;
use prost::Message as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig};
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::auth::Role;
use crate::auth::issuer::{Grant, Issuer};
use crate::config::{Config, SignedRequests};
use crate::init::{InitOptions, init};
use v1::deployments_client::DeploymentsClient;
use v1::node_client::NodeClient;
use v1::registry_client::RegistryClient;
use v1::revisions_client::RevisionsClient;
use v1::workloads_client::WorkloadsClient;

mod secrets;
mod signed;
mod tokens;

struct Running {
    config: Config,
    address: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), crate::RunError>>,
    folder: tempfile::TempDir,
}

impl Running {
    /// An agent that takes requests without a signature.
    async fn start() -> Self {
        let mut config = Self::configured();
        config.0.trust.signed_requests = SignedRequests::Optional;
        Self::run(config).await
    }

    /// As [`Running::start`], with the issuer's key that another one has.
    async fn start_with_key(key: &ed25519_dalek::SigningKey) -> Self {
        use ed25519_dalek::pkcs8::EncodePrivateKey as _;
        let mut config = Self::configured();
        config.0.trust.signed_requests = SignedRequests::Optional;
        let pem = key
            .to_pkcs8_pem(ed25519_dalek::pkcs8::spki::der::pem::LineEnding::LF)
            .unwrap();
        std::fs::write(config.0.issuer_key(), pem.as_bytes()).unwrap();
        Self::run(config).await
    }

    fn configured() -> (Config, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        run(
            folder.path(),
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-C", "alice", "-f", "key"],
        );
        let made = init(&InitOptions {
            node: "rift".parse().unwrap(),
            data_dir: folder.path().join("data"),
            config: None,
            listen: "127.0.0.1:0".parse().unwrap(),
            services_dir: folder.path().join("srv"),
            names: Vec::new(),
            engine: None,
            // An engine that is away is a state: everything here has to work without.
            socket: Some(format!("unix://{}/none.sock", folder.path().display())),
            issuer_jwk: None,
            issuer: None,
            introduction: None,
            trust: vec![folder.path().join("key.pub").display().to_string()],
        })
        .unwrap();
        (Config::load(&made.config).unwrap(), folder)
    }

    async fn run((config, folder): (Config, tempfile::TempDir)) -> Self {
        let shutdown = CancellationToken::new();
        let (ready, address) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(crate::run(
            config.clone(),
            shutdown.clone(),
            move |address, _| ready.send(address).unwrap(),
        ));
        Self {
            address: address.await.unwrap(),
            config,
            shutdown,
            task,
            folder,
        }
    }

    async fn channel(&self) -> Channel {
        let ca = std::fs::read(self.config.data_dir.join("tls/ca.pem")).unwrap();
        Channel::from_shared(format!("https://{}", self.address))
            .unwrap()
            .tls_config(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca)))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    fn token(&self, role: Role) -> String {
        self.narrowed(role, &[])
    }

    fn narrowed(&self, role: Role, services: &[&str]) -> String {
        let issuer = Issuer::load(&self.config.node, &self.config.issuer_key()).unwrap();
        let grant = Grant {
            subject: "alice".to_owned(),
            role,
            ttl: Span::from_secs(60),
            services: services.iter().map(|name| name.parse().unwrap()).collect(),
            nodes: [].into(),
            audience: "mcp".to_owned(),
        };
        issuer.issue(&grant, Timestamp::now())
    }

    fn with<T>(&self, role: Role, message: T) -> Request<T> {
        bearing(&self.token(role), message)
    }

    async fn stop(self) -> (Config, tempfile::TempDir) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
        (self.config, self.folder)
    }
}

fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn reason(status: &Status) -> String {
    let bytes = status.metadata().get_bin(status::ERROR_DETAIL).unwrap();
    let detail = v1::ErrorDetail::decode(bytes.to_bytes().unwrap()).unwrap();
    assert!(!detail.hint.is_empty(), "{status}");
    detail.reason
}

/// Runs a program and gives its output.
fn run(folder: &Path, program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = std::process::Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// Makes a repository with one commit, signed by stock git, and gives its id.
fn signed_repository(folder: &Path) -> (std::path::PathBuf, String) {
    let work = folder.join("work");
    let key = folder.join("key");
    let git = |arguments: &[&str]| String::from_utf8(run(&work, "git", arguments)).unwrap();
    std::fs::create_dir_all(work.join(".mcp")).unwrap();
    std::fs::create_dir_all(work.join("services")).unwrap();
    let public = std::fs::read_to_string(folder.join("key.pub")).unwrap();
    std::fs::write(
        work.join(".mcp/allowed_signers"),
        format!("alice namespaces=\"git,mcp-owner\" {public}"),
    )
    .unwrap();
    std::fs::write(
        work.join("services/shop.toml"),
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"localhost/bb:v1\"\n",
    )
    .unwrap();
    git(&["init", "-q", "-b", "main"]);
    for (name, value) in [
        ("user.name", "Alice"),
        ("user.email", "alice@example.net"),
        ("gpg.format", "ssh"),
        ("user.signingkey", key.to_str().unwrap()),
    ] {
        git(&["config", name, value]);
    }
    git(&["add", "-A"]);
    git(&["commit", "-q", "-S", "-m", "first"]);
    let tip = git(&["rev-parse", "HEAD"]).trim().to_owned();
    (work, tip)
}

/// The pack of everything in a repository.
fn whole_pack(work: &Path) -> Vec<u8> {
    run(
        work,
        "sh",
        &[
            "-c",
            "git rev-list --objects --all | git pack-objects -q --delta-base-offset --stdout",
        ],
    )
}

#[tokio::test]
async fn a_signed_push_becomes_the_head_and_can_be_pulled() {
    use v1::push_pack_request::Part;
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let (work, tip) = signed_repository(agent.folder.path());
    let pack = whole_pack(&work);
    let mut revisions = RevisionsClient::new(agent.channel().await);
    let parts = |pack: &[u8]| {
        let mut parts = vec![Part::Header(v1::PushHeader {
            previous: String::new(),
            revision: tip.clone(),
            pack_bytes: pack.len() as u64,
            request_id: "first".to_owned(),
            pack_sha256: Vec::new(),
        })];
        parts.extend(pack.chunks(100).map(|chunk| Part::Chunk(chunk.to_vec())));
        push(parts)
    };
    let pushed = revisions
        .push_pack(agent.with(Role::Operator, parts(&pack)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (pushed.revision.as_str(), pushed.new_commits),
        (tip.as_str(), 1)
    );
    let again = revisions
        .push_pack(agent.with(Role::Operator, parts(&[])))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (again.revision.as_str(), again.new_commits),
        (tip.as_str(), 0)
    );

    let known = v1::NegotiateRequest { want: tip.clone() };
    let known = revisions.negotiate(agent.with(Role::Viewer, known)).await;
    assert!(known.unwrap().into_inner().known);
    let all = agent.with(Role::Viewer, v1::PullPackRequest { have: Vec::new() });
    let mut stream = revisions.pull_pack(all).await.unwrap().into_inner();
    let (mut pulled, mut head) = (Vec::new(), String::new());
    while let Some(part) = stream.message().await.unwrap() {
        pulled.extend(part.chunk);
        head = part.head;
    }
    assert_eq!(head, tip);
    assert_eq!(&pulled[..4], b"PACK");
    let nothing = v1::PullPackRequest {
        have: vec![tip.clone()],
    };
    let nothing = agent.with(Role::Viewer, nothing);
    let mut stream = revisions.pull_pack(nothing).await.unwrap().into_inner();
    let last = stream.message().await.unwrap().unwrap();
    assert_eq!((last.head, last.chunk.len()), (tip.clone(), 0));
    assert!(stream.message().await.unwrap().is_none());

    // A key that is denied while the agent runs counts for nothing from then on.
    let public = std::fs::read(agent.folder.path().join("key.pub")).unwrap();
    std::fs::write(agent.config.trust.denied_keys.clone(), public).unwrap();
    run(
        &work,
        "git",
        &["commit", "-q", "-S", "--allow-empty", "-m", "second"],
    );
    let second = String::from_utf8(run(&work, "git", &["rev-parse", "HEAD"])).unwrap();
    let pack = whole_pack(&work);
    let denied = push(vec![
        Part::Header(v1::PushHeader {
            previous: tip.clone(),
            revision: second.trim().to_owned(),
            pack_bytes: pack.len() as u64,
            request_id: "second".to_owned(),
            pack_sha256: Vec::new(),
        }),
        Part::Chunk(pack),
    ]);
    let denied = revisions
        .push_pack(agent.with(Role::Operator, denied))
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    assert_eq!(reason(&denied), "denied-key");
    agent.stop().await;
}

#[tokio::test]
async fn a_call_takes_a_token_and_its_role() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let channel = agent.channel().await;
    let mut node = NodeClient::new(channel.clone());

    let info = node
        .info(agent.with(Role::Viewer, v1::InfoRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.node, "rift");
    assert!(info.disk.unwrap().total_bytes > 0);
    let engine = info.engine.unwrap();
    assert!(!engine.reachable && !engine.error.is_empty(), "{engine:?}");

    let none = node.info(v1::InfoRequest {}).await.unwrap_err();
    assert_eq!(none.code(), Code::Unauthenticated);
    assert_eq!(reason(&none), "no-token");
    let bad = bearing("a.b.c", v1::InfoRequest {});
    assert_eq!(reason(&node.info(bad).await.unwrap_err()), "bad-token");
    let mut twice = agent.with(Role::Admin, v1::InfoRequest {});
    let second = twice.metadata().get("authorization").unwrap().clone();
    twice.metadata_mut().append("authorization", second);
    assert_eq!(reason(&node.info(twice).await.unwrap_err()), "no-token");

    let low = agent.with(Role::Viewer, v1::FetchSourceRequest {});
    let low = node.fetch_source(low).await.unwrap_err();
    assert_eq!(low.code(), Code::PermissionDenied);
    assert_eq!(reason(&low), "role");
    let high = agent.with(Role::Operator, v1::FetchSourceRequest {});
    let high = node.fetch_source(high).await.unwrap_err();
    assert_eq!(reason(&high), "no-source");
    // What takes more than a viewer is audited, refused or not; looking is not.
    let registry = crate::registry::Registry::open(&agent.config.database()).unwrap();
    let audit: Vec<_> = registry
        .audit(10)
        .await
        .unwrap()
        .into_iter()
        .map(|row| (row.who, row.method, row.from, row.result))
        .collect();
    let line = |result: &str| {
        let words = ["alice", "FetchSource", "127.0.0.1", result];
        let [who, method, from, result] = words.map(str::to_owned);
        (who, method, from, result)
    };
    assert_eq!(audit, [line("no-source"), line("role")]);

    let mut health = HealthClient::new(channel);
    let open = health.check(HealthCheckRequest::default()).await.unwrap();
    assert_eq!(open.into_inner().status, 1);
    let closed = health.watch(HealthCheckRequest::default()).await;
    assert_eq!(closed.unwrap_err().code(), Code::Unauthenticated);
    agent.stop().await;
}

#[tokio::test]
async fn a_narrowed_token_reads_its_services_alone_and_changes_are_audited_with_their_target() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let channel = agent.channel().await;
    let mut registry = RegistryClient::new(channel.clone());
    let mut deployments = DeploymentsClient::new(channel.clone());
    let mut workloads = WorkloadsClient::new(channel);
    let token = agent.narrowed(Role::Operator, &["shop"]);
    let wiki = || v1::Target {
        service: "wiki".to_owned(),
        ..v1::Target::default()
    };
    let list = |targets: Vec<v1::Target>| bearing(&token, v1::ListRequest { targets });
    // Nothing of its own is no error, and what is not its own is one.
    assert!(registry.list(list(Vec::new())).await.is_ok());
    let history = v1::HistoryRequest {
        target: Some(wiki()),
        limit: 0,
    };
    let logs = v1::LogsRequest {
        targets: vec![wiki()],
        ..v1::LogsRequest::default()
    };
    let events = v1::WatchEventsRequest {
        targets: vec![wiki()],
        ..v1::WatchEventsRequest::default()
    };
    let stop = v1::LifecycleRequest {
        targets: vec![wiki()],
        request_id: "1".repeat(32),
    };
    let refused = [
        registry.list(list(vec![wiki()])).await.err(),
        registry.watch_events(bearing(&token, events)).await.err(),
        deployments.history(bearing(&token, history)).await.err(),
        workloads.logs(bearing(&token, logs)).await.err(),
        deployments.stop(bearing(&token, stop)).await.err(),
    ];
    for refused in refused {
        assert_eq!(reason(&refused.unwrap()), "narrowed-token");
    }
    let registry = crate::registry::Registry::open(&agent.config.database()).unwrap();
    let audit = registry.audit(10).await.unwrap();
    let [row] = audit.as_slice() else {
        panic!("{audit:?}");
    };
    assert_eq!(
        (
            row.method.as_str(),
            row.target.as_str(),
            row.result.as_str()
        ),
        ("Stop", "wiki", "narrowed-token")
    );
    agent.stop().await;
}

#[tokio::test]
async fn refused_tokens_are_bounded_and_good_ones_pass() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let mut node = NodeClient::new(agent.channel().await);
    let mut codes = Vec::new();
    for _ in 0..25 {
        let refused = node.info(bearing("a.b.c", v1::InfoRequest {})).await;
        codes.push(refused.unwrap_err().code());
    }
    assert_eq!(codes[0], Code::Unauthenticated);
    assert_eq!(codes[24], Code::ResourceExhausted);
    let good = agent.with(Role::Viewer, v1::InfoRequest {});
    assert!(node.info(good).await.is_ok());
    agent.stop().await;
}

fn push(
    parts: Vec<v1::push_pack_request::Part>,
) -> tokio_stream::Iter<std::vec::IntoIter<v1::PushPackRequest>> {
    let parts: Vec<_> = parts
        .into_iter()
        .map(|part| v1::PushPackRequest { part: Some(part) })
        .collect();
    tokio_stream::iter(parts)
}

#[tokio::test]
async fn a_push_that_breaks_the_contract_changes_nothing() {
    use v1::push_pack_request::Part;
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let mut revisions = RevisionsClient::new(agent.channel().await);
    let header = |pack_bytes| {
        Part::Header(v1::PushHeader {
            previous: String::new(),
            revision: "3f2a9c1d".repeat(5),
            pack_bytes,
            request_id: "1".to_owned(),
            pack_sha256: Vec::new(),
        })
    };
    for (parts, expected) in [
        (vec![], "bad-request"),
        (vec![Part::Chunk(vec![1])], "bad-request"),
        (vec![header(5), header(5)], "bad-request"),
        (vec![header(5), Part::Chunk(vec![0; 4])], "bad-request"),
        (vec![header(5), Part::Chunk(vec![0; 6])], "bad-request"),
        (vec![header(1 << 40)], "pack-too-large"),
        (vec![header(5), Part::Chunk(vec![0; 5])], "truncated-pack"),
        (vec![header(0)], "truncated-pack"),
    ] {
        let shown = format!("{parts:?}");
        let request = agent.with(Role::Operator, push(parts));
        let refused = revisions.push_pack(request).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{shown} {refused}");
    }
    let head = revisions
        .negotiate(agent.with(Role::Viewer, v1::NegotiateRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!((head.head.as_str(), head.known), ("", false));
    let odd = v1::NegotiateRequest {
        want: "HEAD".to_owned(),
    };
    let odd = revisions.negotiate(agent.with(Role::Viewer, odd)).await;
    assert_eq!(odd.unwrap_err().code(), Code::InvalidArgument);
    let viewer = agent.with(Role::Viewer, push(vec![header(0)]));
    let viewer = revisions.push_pack(viewer).await.unwrap_err();
    assert_eq!(viewer.code(), Code::PermissionDenied);
    agent.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused() {
    use v1::push_pack_request::Part;
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let mut revisions = RevisionsClient::new(agent.channel().await);
    let huge = push(vec![Part::Chunk(vec![0; MAX_MESSAGE_BYTES + 1])]);
    let refused = revisions.push_pack(agent.with(Role::Operator, huge)).await;
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
    // The same where it is small on the wire.
    let mut revisions = revisions.send_compressed(CompressionEncoding::Zstd);
    let bomb = push(vec![Part::Chunk(vec![0; MAX_MESSAGE_BYTES + 1])]);
    let refused = revisions.push_pack(agent.with(Role::Operator, bomb)).await;
    assert!(
        matches!(
            refused.as_ref().unwrap_err().code(),
            Code::OutOfRange | Code::ResourceExhausted | Code::Internal
        ),
        "{refused:?}"
    );
    agent.stop().await;
}

#[tokio::test]
async fn two_agents_cannot_share_a_folder() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let second = crate::run(agent.config.clone(), CancellationToken::new(), |_, _| {});
    assert!(matches!(second.await, Err(crate::RunError::Lock(_))));
    assert!(Path::new(&agent.config.data_dir).join("lock").exists());
    agent.stop().await;
}
