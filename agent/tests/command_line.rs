//! The `mcp-agent` binary: what scripts rely on.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn agent(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mcp-agent"));
    command.current_dir(folder).env_remove("NOTIFY_SOCKET");
    command
}

fn run(folder: &Path, arguments: &[&str]) -> Output {
    agent(folder).args(arguments).output().unwrap()
}

fn initialised() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "alice", "-f", "key"])
        .current_dir(folder.path())
        .status()
        .unwrap();
    assert!(made.success());
    let out = run(
        folder.path(),
        &[
            "init",
            "--node",
            "rift",
            "--data-dir",
            "data",
            "--services-dir",
            "srv",
            "--listen",
            "127.0.0.1:0",
            "--socket",
            "unix:///nowhere/podman.sock",
            "--trust",
            "key.pub",
        ],
    );
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    for next in [
        "mcp-agent serve",
        "token issue",
        "mcp node add rift",
        "mcp login",
    ] {
        assert!(text.contains(next), "{text}");
    }
    folder
}

#[test]
fn a_token_stands_alone_on_standard_output() {
    let folder = initialised();
    let issue = [
        "token",
        "issue",
        "--config",
        "data/agent.toml",
        "--subject",
        "alice",
        "--role",
    ];
    let out = run(folder.path(), &[&issue[..], &["operator"]].concat());
    assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
    let token = String::from_utf8(out.stdout).unwrap();
    assert_eq!(token.lines().count(), 1);
    assert_eq!(token.trim().split('.').count(), 3);

    let long = run(
        folder.path(),
        &[&issue[..], &["admin", "--ttl", "30d"]].concat(),
    );
    assert_eq!(long.status.code(), Some(1));
    let text = String::from_utf8(long.stderr).unwrap();
    assert!(
        text.starts_with("error: a token for 30d") && text.contains("\n\nhint: "),
        "{text}"
    );
    let odd = run(folder.path(), &[&issue[..], &["king"]].concat());
    assert_eq!(odd.status.code(), Some(64));
}

#[test]
fn check_tells_what_is_wrong_and_its_mend() {
    let folder = initialised();
    let check = ["check", "--config", "data/agent.toml"];
    let out = run(folder.path(), &check);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stdout).unwrap();
    let wrong: Vec<&str> = text.lines().filter(|line| line.starts_with('✗')).collect();
    assert!(
        wrong.len() == 1 && wrong[0].contains("engine") && text.contains("mend: start it"),
        "{text}"
    );
    std::fs::write(folder.path().join("data/denied_keys"), "nonsense").unwrap();
    std::fs::remove_file(folder.path().join("data/tls/key.pem")).unwrap();
    let text = String::from_utf8(run(folder.path(), &check).stdout).unwrap();
    let wrong = text.lines().filter(|line| line.starts_with('✗')).count();
    assert_eq!(wrong, 3, "{text}");
}

#[test]
fn serve_says_where_it_listens_and_ends_well_at_sigterm() {
    let folder = initialised();
    let mut serving = agent(folder.path())
        .args(["serve", "--config", "data/agent.toml"])
        .env("RUST_LOG", "error")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(serving.stderr.take().unwrap()).lines();
    let line = lines
        .by_ref()
        .map(Result::unwrap)
        .find(|line| line.starts_with("mcp-agent: "))
        .unwrap();
    assert!(
        line.starts_with("mcp-agent: rift listens on 127.0.0.1:"),
        "{line}"
    );
    assert!(!line.contains(":0 "), "{line}");

    let second = run(folder.path(), &["serve", "--config", "data/agent.toml"]);
    assert_eq!(second.status.code(), Some(1));
    let text = String::from_utf8(second.stderr).unwrap();
    assert!(
        text.contains(&format!("(process {})", serving.id())),
        "{text}"
    );

    let pid = rustix::process::Pid::from_child(&serving);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(serving.wait().unwrap().success());
}

#[test]
fn a_missing_configuration_says_how_to_make_one() {
    let folder = tempfile::tempdir().unwrap();
    let out = run(folder.path(), &["serve", "--config", "agent.toml"]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(
        text.contains("cannot read the configuration agent.toml")
            && text.contains("mcp-agent init"),
        "{text}"
    );
}
