//! What may be taken over, and what is left alone.

use tempfile::TempDir;
use tokio::time::Instant;

use super::*;
use crate::revisions::tests::scene::{OWNER, Scene, node, now};
use crate::testing::{ScriptedEngine, memory_dir};
use crate::watch::EngineState;

/// A node whose repository has one revision, and whose registry knows nothing.
struct Bare {
    scene: Scene,
    revisions: Arc<RevisionStore>,
    desired: Arc<Desired>,
    registry: Registry,
    random: Random,
    _dir: TempDir,
}

impl Bare {
    fn new() -> Self {
        let scene = Scene::new();
        scene.push().unwrap();
        let trust = scene.trust(&[OWNER]);
        let revisions = Arc::new(RevisionStore::open(&scene.data(), trust).unwrap());
        let desired = Arc::new(Desired::new(node(), Arc::clone(&revisions)));
        let dir = memory_dir();
        Self {
            registry: Registry::open(&dir.path().join("mcp.db")).unwrap(),
            random: Random::system(),
            scene,
            revisions,
            desired,
            _dir: dir,
        }
    }

    /// `shop/web` as this node would have made it from the head.
    fn web(&self) -> LiveContainer {
        let head = self.revisions.head().unwrap();
        let set = self.desired.at(head).unwrap();
        let spec = &set.services[&web().service].components[&web().component];
        let mut live = ScriptedEngine::container("c1", Some(("shop", "web")), now());
        live.labels.extend([
            (label::NODE.to_owned(), node().to_string()),
            (label::REVISION.to_owned(), head.to_string()),
            (label::SPEC.to_owned(), spec.digest().to_string()),
            (label::GENERATION.to_owned(), "3".to_owned()),
            (label::DEPLOYMENT.to_owned(), "f".repeat(32)),
        ]);
        live
    }

    fn verdict(&self, change: impl FnOnce(&mut LiveContainer)) -> Result<DeployedRow, String> {
        let mut live = self.web();
        change(&mut live);
        deployed(&web(), &live, &self.revisions, &self.desired)
    }

    async fn strangers(&self, live: &LiveContainer) -> usize {
        let snapshot = Snapshot {
            containers: BTreeMap::from([(live.id.clone(), Arc::new(live.clone()))]),
            taken_at: Instant::now(),
            at: now(),
            engine: EngineState::Answers,
        };
        let rows = self.registry.deployed_all().await.unwrap();
        let found = strangers(&node(), &self.registry, &snapshot, &rows).await;
        found.unwrap().len()
    }

    async fn take_over(&self, live: LiveContainer) {
        let order = TakeOver {
            actor: ACTOR,
            before: BTreeMap::new(),
            now: now(),
        };
        let judged = judge(&self.revisions, &self.desired, vec![live]).await;
        let taken = record(&self.registry, judged, order, &self.random).await;
        assert_eq!(taken.unwrap(), [web()]);
    }
}

fn web() -> ComponentKey {
    ComponentKey::new("shop".parse().unwrap(), "web".parse().unwrap())
}

#[test]
fn what_an_accepted_revision_gives_is_taken_over_as_it_is() {
    let bare = Bare::new();
    let row = bare.verdict(|_| {}).unwrap();
    assert_eq!(Some(row.revision), bare.revisions.head());
    assert_eq!((row.generation, row.hold), (3, None));
    assert_eq!(row.baseline, bare.web().fields);
}

#[test]
fn what_no_accepted_revision_gives_is_left_alone() {
    let bare = Bare::new();
    let set = |live: &mut LiveContainer, name: &str, value: String| {
        live.labels.insert(name.to_owned(), value);
    };
    let never_pushed = bare.scene.commit(Some(OWNER), "never pushed").to_string();
    let another = Digest::of(b"another").to_string();
    assert!(bare.verdict(|live| live.name = "web".to_owned()).is_err());
    assert!(
        bare.verdict(|live| set(live, label::REVISION, never_pushed))
            .is_err()
    );
    assert!(
        bare.verdict(|live| set(live, label::SPEC, another))
            .is_err()
    );
    assert!(
        bare.verdict(|live| set(live, label::GENERATION, String::new()))
            .is_err()
    );
}

#[tokio::test]
async fn only_what_no_known_deployment_has_made_is_a_stranger() {
    let bare = Bare::new();
    let mut live = bare.web();
    assert_eq!(bare.strangers(&live).await, 1);
    bare.take_over(live.clone()).await;
    assert_eq!(bare.strangers(&live).await, 0);
    // What the same deployment left over is no stranger either.
    let row = bare.registry.deployed(web()).await.unwrap().unwrap();
    live.id = ContainerId::new("c2");
    live.labels
        .insert(label::DEPLOYMENT.to_owned(), row.deployment.to_string());
    assert_eq!(bare.strangers(&live).await, 0);
    live.labels
        .insert(label::NODE.to_owned(), "elsewhere".to_owned());
    live.labels
        .insert(label::DEPLOYMENT.to_owned(), "f".repeat(32));
    assert_eq!(bare.strangers(&live).await, 0);
}

#[tokio::test]
async fn what_an_operator_let_go_of_is_not_taken_over_again() {
    let bare = Bare::new();
    let live = bare.web();
    bare.take_over(live.clone()).await;
    let forgotten = bare.registry.forget(vec![web()], now(), Vec::new()).await;
    forgotten.unwrap();
    assert_eq!(bare.strangers(&live).await, 0);
}
