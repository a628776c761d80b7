//! What a repeated request gets: the first result, whole.

use std::sync::Arc;

use futures_util::StreamExt as _;
use mcp_proto::v1;
use mcp_proto::v1::deployments_server::Deployments as _;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

use super::Deployments;
use super::request::RequestKey;
use crate::assemble::{Parts, Tasks, assemble};
use crate::auth::issuers::Issuers;
use crate::auth::{Identity, Role};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::init::{InitOptions, init};
use crate::random::Random;
use crate::registry::{Registry, RequestAdmission, Trigger};
use crate::revisions::RevisionStore;
use crate::revisions::tests::scene::{OWNER, Scene, definition};
use crate::testing::ScriptedEngine;

struct World {
    scene: Scene,
    service: Deployments,
    agent: Arc<crate::Agent>,
    _tasks: Tasks,
}

impl World {
    /// A node with three services, of which one cannot be deployed.
    async fn new() -> Self {
        let scene = Scene::empty();
        scene.write_signers(&[(OWNER, "git,mcp-owner")]);
        for name in ["one", "two", "three"] {
            scene.write(&format!("services/{name}.toml"), &definition(name, "v1"));
        }
        scene.commit(Some(OWNER), "three services");
        scene.push().unwrap();
        let folder = scene.dir.path();
        let made = init(&InitOptions {
            node: "rift".parse().unwrap(),
            data_dir: folder.join("node"),
            config: None,
            listen: "127.0.0.1:0".parse().unwrap(),
            services_dir: folder.join("srv"),
            names: Vec::new(),
            engine: None,
            socket: Some(format!("unix://{}/none.sock", folder.display())),
            issuer_jwk: None,
            issuer: None,
            introduction: None,
            trust: vec![folder.join("owner.pub").display().to_string()],
        })
        .unwrap();
        let config = Config::load(&made.config).unwrap();
        let engine = ScriptedEngine::default();
        let mut stranger = ScriptedEngine::container("s", None, jiff::Timestamp::UNIX_EPOCH);
        stranger.name = "three-web".to_owned();
        engine.put(stranger);
        let trust = scene.trust(&[OWNER]);
        let parts = Parts {
            verifier: Arc::new(Issuers::load(&config).unwrap()),
            registry: Registry::open(&config.database()).unwrap(),
            config,
            revisions: Arc::new(RevisionStore::open(&scene.data(), trust).unwrap()),
            runtime: Arc::new(engine),
            clock: Arc::new(SystemClock),
            random: Random::system(),
        };
        let (agent, tasks) = assemble(parts, CancellationToken::new()).await.unwrap();
        Self {
            scene,
            service: Deployments::new(agent.clone()),
            agent,
            _tasks: tasks,
        }
    }

    async fn deploy(&self, services: &[&str], id: &str) -> Result<Vec<(String, String)>, Status> {
        let mut request = Request::new(deploy(services, id));
        request.extensions_mut().insert(Identity {
            token_id: "1".to_owned(),
            subject: "alice".to_owned(),
            role: Role::Admin,
            services: None,
            issuer: "test".to_owned(),
        });
        let mut updates = self.service.deploy(request).await?.into_inner();
        let mut results = Vec::new();
        while let Some(update) = updates.next().await {
            if let Some(v1::deploy_update::Update::Result(ended)) = update?.update {
                let ended = ended.deployments.into_iter();
                results.extend(ended.map(|ended| (ended.service, ended.outcome)));
            }
        }
        results.sort();
        Ok(results)
    }
}

fn deploy(services: &[&str], id: &str) -> v1::DeployRequest {
    let target = |name: &&str| v1::Target {
        service: (*name).to_owned(),
        ..v1::Target::default()
    };
    v1::DeployRequest {
        targets: services.iter().map(target).collect(),
        request_id: id.to_owned(),
        ..v1::DeployRequest::default()
    }
}

fn result(service: &str, outcome: &str) -> (String, String) {
    (service.to_owned(), outcome.to_owned())
}

#[tokio::test]
async fn repeated_request_gets_the_first_result_whole() {
    let world = World::new().await;
    world.deploy(&["one"], "").await.unwrap();
    let all = ["one", "two", "three"];
    let first = world.deploy(&all, "r1").await.unwrap();
    let whole = [
        result("one", "unchanged"),
        result("three", "aborted"),
        result("two", "deployed"),
    ];
    assert_eq!(first, whole);
    assert_eq!(world.deploy(&all, "r1").await.unwrap(), whole);

    // Also where by now it would lead to something else.
    let unchanged = world.deploy(&["one"], "r2").await.unwrap();
    assert_eq!(unchanged, [result("one", "unchanged")]);
    world
        .scene
        .write("services/one.toml", &definition("one", "v2"));
    assert_eq!(world.deploy(&["one"], "r2").await.unwrap(), unchanged);

    let reused = world.deploy(&["two"], "r1").await.unwrap_err();
    assert_eq!(reused.code(), Code::AlreadyExists);
    world.agent.shutdown.cancel();
}

#[tokio::test]
async fn services_that_a_crash_kept_from_being_taken_on_are_aborted_in_the_repeated_result() {
    let world = World::new().await;
    let request = deploy(&["one", "two"], "r1");
    // What a crash right before the first admission leaves.
    let key = RequestKey::of("r1", Trigger::Deploy, &request).unwrap();
    let head = world.agent.revisions.head().unwrap();
    let noted = serde_json::json!({ "parts": [["one", head], ["two", head]], "settled": "" });
    let now = world.agent.clock.now();
    let registry = &world.agent.registry;
    let new = registry
        .remember_request(
            key.id,
            super::carry_out::SCOPE.to_owned(),
            key.digest,
            noted.to_string(),
            now,
        )
        .await
        .unwrap();
    assert_eq!(new, RequestAdmission::New);
    let repeated = world.deploy(&["one", "two"], "r1").await.unwrap();
    assert_eq!(
        repeated,
        [result("one", "aborted"), result("two", "aborted")]
    );
    assert!(registry.history(None, 10).await.unwrap().is_empty());
    world.agent.shutdown.cancel();
}
