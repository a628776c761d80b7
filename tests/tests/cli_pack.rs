//! What the CLI commits and packs passes the agent's door, whatever git made of the repository.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::Command;

use jiff::Timestamp;
use mcp_agent::revisions::{Limits, RevisionStore, TrustRoots};
use mcp_cli::repo::{DesiredRepo, Identity, Selection};
use mcp_cli::sign::generate_key;
use mcp_spec::signature::{DeniedKeys, OwnerKeys};

fn git(dir: &Path, args: &[&str]) {
    let output = Command::new("git")
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .args(args)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {error}");
}

#[test]
fn pack_of_a_repository_that_git_has_packed_with_deltas_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let key = generate_key(&dir.path().join("key"), "owner").unwrap();
    let work = dir.path().join("work");
    fs::create_dir(&work).unwrap();
    let identity = Identity::of_principal("owner@example.net");
    let repo = DesiredRepo::init(&work, &key, "owner@example.net", Some(&identity))
        .unwrap()
        .repo;

    let data = dir.path().join("data");
    RevisionStore::init(&data).unwrap();
    let trust = TrustRoots {
        owners: OwnerKeys::parse(&key.public_key()).unwrap(),
        denied: DeniedKeys::default(),
        introduction: None,
    };
    let store = RevisionStore::open(&data, trust).unwrap();
    let push = || {
        let (old, new) = (store.head(), repo.head().unwrap().unwrap());
        let have: Vec<_> = old.into_iter().collect();
        let pack = repo.pack(new, &have).unwrap();
        let node = "rift".parse().unwrap();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        store
            .receive(pack, old, new, &node, &Limits::default(), now)
            .unwrap_or_else(|error| panic!("{error}: {}", error.hint()))
    };
    assert_eq!(push().new_commits.len(), 1);

    let service = work.join("services/shop.toml");
    let settings = work.join("files/shop/settings");
    fs::create_dir_all(settings.parent().unwrap()).unwrap();
    for round in 0..3 {
        for step in 0..4 {
            let version = round * 10 + step;
            let text = format!(
                "name = \"shop\"\nnode = \"rift\"\n\n[[components]]\nname = \"web\"\nimage = \"localhost/web:v{version}\"\n"
            );
            fs::write(&service, text).unwrap();
            let lines: String = (0..2000 + version).map(|n| format!("line {n}\n")).collect();
            fs::write(&settings, lines).unwrap();
            let changes = repo.changes().unwrap();
            repo.commit(&changes, &Selection::All, "shop: next", &key, &identity)
                .unwrap();
        }
        git(&work, &["gc", "-q", "--aggressive", "--prune=now"]);
        assert_eq!(push().new_commits.len(), 4);
    }
    git(&store.repository(), &["fsck", "--full", "--strict"]);
}
