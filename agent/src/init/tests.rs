//! What init leaves behind, and what it leaves alone.

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::tls::Certificate;

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJlPSyHV5oIF5pVzrOm8nOuE/T2I9s+nqvCqjjMKu4pN alice";

fn key() -> String {
    let key = ed25519_dalek::SigningKey::from_bytes(&[3; 32]);
    let public = ssh_key::public::Ed25519PublicKey(key.verifying_key().to_bytes());
    let mut key = ssh_key::PublicKey::from(public);
    key.set_comment("alice");
    key.to_openssh().unwrap()
}

fn options(folder: &Path) -> InitOptions {
    InitOptions {
        node: "rift".parse().unwrap(),
        data_dir: folder.join("data"),
        config: None,
        listen: "127.0.0.1:0".parse().unwrap(),
        services_dir: folder.join("srv"),
        names: vec!["rift.example.net".to_owned(), "10.0.0.7".to_owned()],
        engine: None,
        socket: Some("unix:///tmp/nowhere/podman.sock".to_owned()),
        issuer_jwk: None,
        issuer: None,
        introduction: None,
        trust: vec![key()],
    }
}

fn entries(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn what_init_writes_is_what_the_agent_reads() {
    let folder = tempfile::tempdir().unwrap();
    let made = init(&options(folder.path())).unwrap();
    assert!(made.created);
    assert_eq!(made.config, folder.path().join("data/agent.toml"));
    let config = Config::load(&made.config).unwrap();
    assert_eq!(config.node.as_str(), "rift");
    assert_eq!(
        config.policy.host_paths,
        [format!(
            "{}/{{service}}",
            folder.path().join("srv").display()
        )]
    );
    Certificate::load(&config.tls).unwrap();
    crate::verifier(&config).unwrap();
    assert!(config.trust.denied_keys.is_file());
    assert!(
        made.names.contains(&"rift.example.net".to_owned())
            && made.names.contains(&"10.0.0.7".to_owned())
    );
    let mode = |name: &str| {
        let path = config.data_dir.join(name);
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(""), 0o700);
    for secret in [
        "issuer.key",
        "age.key",
        "secrets-digest.key",
        "tls/key.pem",
        "tls/ca-key.pem",
    ] {
        assert_eq!(mode(secret), 0o600, "{secret}");
    }
    assert_eq!(entries(folder.path()), ["data".to_owned()].into());
}

#[test]
fn a_second_init_of_the_same_node_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let first = init(&options(folder.path())).unwrap();
    let text = fs::read_to_string(&first.config).unwrap();
    let second = init(&options(folder.path())).unwrap();
    assert!(!second.created);
    assert_eq!(second.owners, first.owners);
    assert_eq!(fs::read_to_string(&first.config).unwrap(), text);
    let other = InitOptions {
        node: "quill".parse().unwrap(),
        ..options(folder.path())
    };
    assert!(matches!(init(&other), Err(InitError::OtherNode { .. })));
}

#[test]
fn a_foreign_folder_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    fs::write(folder.path().join("data/precious"), "x").unwrap();
    let error = init(&options(folder.path())).unwrap_err();
    assert!(matches!(error, InitError::Foreign { .. }), "{error}");
    assert_eq!(
        entries(&folder.path().join("data")),
        ["precious".to_owned()].into()
    );
}

#[test]
fn an_empty_folder_and_the_rest_of_a_killed_init_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("data/.init-99/tls")).unwrap();
    let made = init(&options(folder.path())).unwrap();
    assert!(made.created);
    assert!(
        !entries(&folder.path().join("data"))
            .iter()
            .any(|name| name.starts_with(".init"))
    );
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    for bad in [
        InitOptions {
            trust: vec!["/nowhere/key.pub".to_owned()],
            ..options(folder.path())
        },
        InitOptions {
            trust: vec![KEY.replace("ssh-ed25519", "ssh-rsa")],
            ..options(folder.path())
        },
        InitOptions {
            names: vec!["not a name".to_owned()],
            ..options(folder.path())
        },
        InitOptions {
            socket: Some("tcp://1.2.3.4".to_owned()),
            ..options(folder.path())
        },
        InitOptions {
            introduction: Some("HEAD".to_owned()),
            ..options(folder.path())
        },
        // The configuration's folder cannot be made, since a file is in its way.
        InitOptions {
            config: Some("/dev/null/x/agent.toml".into()),
            ..options(folder.path())
        },
    ] {
        let error = init(&bad).unwrap_err();
        assert!(!error.hint().is_empty());
        assert!(entries(folder.path()).is_empty(), "{error}");
    }
    fs::write(folder.path().join("agent.toml"), "mine").unwrap();
    let taken = InitOptions {
        config: Some(folder.path().join("agent.toml")),
        ..options(folder.path())
    };
    assert!(matches!(init(&taken), Err(InitError::ConfigExists { .. })));
    assert_eq!(entries(folder.path()), ["agent.toml".to_owned()].into());
}

#[test]
fn another_agents_tokens_can_be_taken() {
    let folder = tempfile::tempdir().unwrap();
    init(&options(folder.path())).unwrap();
    let second = InitOptions {
        node: "quill".parse().unwrap(),
        data_dir: folder.path().join("quill"),
        config: Some(folder.path().join("etc/quill.toml")),
        issuer_jwk: Some(folder.path().join("data/issuer.jwk")),
        introduction: Some("3f2a9c1d".repeat(5)),
        ..options(folder.path())
    };
    let made = init(&second).unwrap();
    let config = Config::load(&made.config).unwrap();
    assert_eq!(config.trust.introduction, Some("3f2a9c1d".repeat(5)));
    let verifier = crate::verifier(&config).unwrap();
    let names: Vec<&str> = verifier.issuers.iter().map(|i| i.issuer.as_str()).collect();
    assert_eq!(names, ["mcp-agent:quill", "mcp-agent:rift"]);

    let nameless = folder.path().join("nameless.jwk");
    let text = fs::read_to_string(folder.path().join("data/issuer.jwk")).unwrap();
    fs::write(&nameless, text.replace("mcp-agent:rift", "2026-01")).unwrap();
    let third = InitOptions {
        data_dir: folder.path().join("third"),
        issuer_jwk: Some(nameless),
        ..options(folder.path())
    };
    assert!(matches!(
        init(&third),
        Err(InitError::NamelessIssuer { .. })
    ));
}

#[test]
fn a_private_key_is_refused_with_its_public_half_named() {
    let folder = tempfile::tempdir().unwrap();
    let private = folder.path().join("id_ed25519");
    fs::write(&private, "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
    let error = trust::read(&[private.display().to_string()]).unwrap_err();
    assert!(error.hint().ends_with("id_ed25519.pub"));
    let twice = trust::read(&[key(), key()]).unwrap();
    assert_eq!(twice.iter().count(), 1);
}
