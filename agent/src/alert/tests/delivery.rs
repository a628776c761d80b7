//! From an event to the command, over a real registry.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mcp_spec::duration::Span;
use mcp_spec::signature::{DeniedKeys, OwnerKeys};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::alert::{Delivery, DeliveryError, Judge};
use crate::clock::{Clock, SystemClock};
use crate::config::AlertConfig;
use crate::desired::Desired;
use crate::registry::tests::{deployment, row};
use crate::registry::{
    CommitDeployment, DeploymentId, HistoryEntry, NewEvent, Registry, SetDeployed,
};
use crate::revisions::{RevisionStore, TrustRoots};
use crate::testing::ScriptedEngine;

const OWNER: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMVC86tDHzH5mhELMcMnrAAvw40umseTC7rBrgEQAQhF";

struct Setup {
    dir: TempDir,
    registry: Registry,
    config: AlertConfig,
}

impl Setup {
    /// With a command whose body is this shell script; `$DIR` is where it may write.
    fn new(script: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let program = dir.path().join("notify");
        let text = format!("#!/bin/sh\nDIR='{}'\n{script}\n", dir.path().display());
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            registry: Registry::open(&dir.path().join("mcp.db")).unwrap(),
            config: AlertConfig {
                command: vec![program.display().to_string(), "an; argument".to_owned()],
                timeout: Span::from_secs(20),
                cooldown: Span::from_secs(600),
            },
            dir,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn delivery(&self, outgoing: &Arc<Notify>) -> Delivery {
        Delivery::new(
            "rift".parse().unwrap(),
            self.registry.clone(),
            Arc::new(SystemClock),
            Some(self.config.clone()),
            Arc::clone(outgoing),
        )
    }

    fn judge(&self, outgoing: &Arc<Notify>) -> Judge {
        Judge {
            node: "rift".parse().unwrap(),
            registry: self.registry.clone(),
            runtime: Arc::new(ScriptedEngine::default()),
            clock: Arc::new(SystemClock),
            config: Some(self.config.clone()),
            outgoing: Arc::clone(outgoing),
            begins_after: *self.registry.newest_event().borrow(),
            desired: self.desired(),
        }
    }

    /// A repository that nothing was pushed to.
    fn desired(&self) -> Arc<Desired> {
        let dir = self.dir.path().join("data");
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            RevisionStore::init(&dir).unwrap();
        }
        let trust = TrustRoots {
            owners: OwnerKeys::parse(OWNER).unwrap(),
            denied: DeniedKeys::default(),
            introduction: None,
        };
        let store = RevisionStore::open(&dir, trust).unwrap();
        Arc::new(Desired::new("rift".parse().unwrap(), Arc::new(store)))
    }

    async fn event(&self, kind: &str, message: &str) {
        let event = NewEvent {
            at: SystemClock.now(),
            service: Some("shop".parse().unwrap()),
            component: Some("api".parse().unwrap()),
            kind: kind.to_owned(),
            reason: "spec".to_owned(),
            message: message.to_owned(),
            revision: None,
            data: json!({ "exit_code": 3 }),
        };
        self.registry.append_events(vec![event]).await.unwrap();
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

#[tokio::test]
async fn event_reaches_the_command_with_its_evidence_and_once() {
    let setup = Setup::new(
        "cat >> \"$DIR/got\"; echo \"$1/$MCP_SERVICE/$MCP_STATE/$MCP_MESSAGE\" >> \"$DIR/env\"",
    );
    let outgoing = Arc::new(Notify::new());
    let stop = CancellationToken::new();
    setup.event("drift", "from before alerts were judged").await;
    let judging = tokio::spawn(setup.judge(&outgoing).run(stop.clone()));
    until_begun(&setup.registry).await;
    let delivery = setup.delivery(&outgoing);
    let stopping = stop.clone();
    let delivering = tokio::spawn(async move { delivery.run(stopping).await });
    setup
        .event("drift", "differs \u{1b}[31m\nsecond line")
        .await;
    until("it fires", || lines(&setup.file("got")) == 1).await;
    setup.event("drift-gone", "is as it was").await;
    until("it recovers", || lines(&setup.file("got")) == 2).await;
    // The command has yet to end when it has read everything.
    while setup.registry.next_alert().await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    judging.await.unwrap().unwrap();
    delivering.await.unwrap().unwrap();

    let got = std::fs::read_to_string(setup.file("got")).unwrap();
    let alerts: Vec<serde_json::Value> = got
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(alerts[0]["state"], "firing");
    assert_eq!(alerts[0]["condition"], "drift");
    assert_eq!(alerts[0]["service"], "shop");
    assert_eq!(alerts[0]["evidence"]["exit_code"], 3);
    assert_eq!(alerts[0]["evidence"]["events"].as_array().unwrap().len(), 2);
    assert_eq!(alerts[0]["message"], "differs \\u{1b}[31m\\u{a}second line");
    assert_eq!(alerts[1]["state"], "recovered");
    let env = std::fs::read_to_string(setup.file("env")).unwrap();
    assert!(
        env.starts_with("an; argument/shop/firing/differs \\u{1b}[31m"),
        "{env}"
    );

    // Nothing is told twice after a restart.
    let stop = CancellationToken::new();
    let judging = tokio::spawn(setup.judge(&outgoing).run(stop.clone()));
    setup.event("healthy", "is healthy").await;
    assert!(setup.registry.next_alert().await.unwrap().is_none());
    stop.cancel();
    judging.await.unwrap().unwrap();
}

async fn until_begun(registry: &Registry) {
    for _ in 0..500 {
        if registry.conditions().await.unwrap().is_some() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("judging never began");
}

#[tokio::test]
async fn muted_service_is_not_told() {
    let setup = Setup::new("cat >> \"$DIR/got\"");
    let id = DeploymentId::from_bits(1);
    let mut row = row("shop/api", "v1", 1);
    row.settings.alert = false;
    let admitted = setup.registry.admit(deployment(&id, ""));
    admitted.await.unwrap();
    let mut commit = CommitDeployment::new(id);
    commit.set.push(SetDeployed {
        row,
        history: HistoryEntry::New,
    });
    setup.registry.commit_deployment(commit).await.unwrap();
    let outgoing = Arc::new(Notify::new());
    let stop = CancellationToken::new();
    let judging = tokio::spawn(setup.judge(&outgoing).run(stop.clone()));
    until_begun(&setup.registry).await;
    setup.event("unhealthy", "is unhealthy").await;
    // Of the node, and judged after the other.
    let away = NewEvent {
        at: SystemClock.now(),
        service: None,
        component: None,
        kind: "engine-away".to_owned(),
        reason: "no-answer".to_owned(),
        message: "the engine does not answer".to_owned(),
        revision: None,
        data: json!({}),
    };
    setup.registry.append_events(vec![away]).await.unwrap();
    let registry = setup.registry.clone();
    let first = async {
        loop {
            if let Some(next) = registry.next_alert().await.unwrap() {
                return next;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let first = tokio::time::timeout(Duration::from_secs(60), first).await;
    let first: serde_json::Value = serde_json::from_str(&first.unwrap().body).unwrap();
    assert_eq!(first["condition"], "engine");
    stop.cancel();
    judging.await.unwrap().unwrap();
}

#[tokio::test]
async fn failed_delivery_waits_in_the_outbox_over_a_restart() {
    let setup =
        Setup::new("[ -e \"$DIR/works\" ] || { echo no route >&2; exit 7; }\ncat >> \"$DIR/got\"");
    let outgoing = Arc::new(Notify::new());
    let stop = CancellationToken::new();
    let judging = tokio::spawn(setup.judge(&outgoing).run(stop.clone()));
    until_begun(&setup.registry).await;
    setup.event("unhealthy", "is unhealthy").await;
    let delivery = setup.delivery(&outgoing);
    let stopping = stop.clone();
    let delivering = tokio::spawn(async move { delivery.run(stopping).await });
    let registry = setup.registry.clone();
    for _ in 0..1500 {
        if registry
            .next_alert()
            .await
            .unwrap()
            .is_some_and(|next| next.attempts == 1)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    judging.await.unwrap().unwrap();
    delivering.await.unwrap().unwrap();
    let failed = registry
        .events(crate::registry::EventQuery {
            limit: 10,
            ..Default::default()
        })
        .await
        .unwrap();
    let failed = failed
        .iter()
        .find(|event| event.kind == "alert-failed")
        .unwrap();
    assert!(
        failed.message.contains("exit status: 7"),
        "{}",
        failed.message
    );
    assert_eq!(failed.data["output"], "no route");

    std::fs::write(setup.file("works"), "").unwrap();
    let waiting = registry.next_alert().await.unwrap().unwrap();
    assert_eq!(waiting.attempts, 1);
    registry
        .put_off_alert(waiting.id, SystemClock.now())
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let delivery = setup.delivery(&outgoing);
    let stopping = stop.clone();
    let delivering = tokio::spawn(async move { delivery.run(stopping).await });
    until("it arrives", || lines(&setup.file("got")) == 1).await;
    stop.cancel();
    delivering.await.unwrap().unwrap();
}

#[tokio::test]
async fn hanging_command_is_killed_with_all_that_it_started() {
    let mut setup = Setup::new("sleep 1000 & echo $! > \"$DIR/child\"; echo waiting; wait");
    setup.config.timeout = Span::from_millis(700);
    let outgoing = Arc::new(Notify::new());
    let error = setup.delivery(&outgoing).test("alice").await.unwrap_err();
    let DeliveryError::Timeout { output, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(output, "waiting");
    gone(&setup.file("child")).await;
}

#[tokio::test]
async fn what_the_command_leaves_behind_holds_nothing_up() {
    let setup = Setup::new("sleep 1000 & echo $! > \"$DIR/child\"; echo done");
    let outgoing = Arc::new(Notify::new());
    let delivered = setup.delivery(&outgoing).test("alice").await.unwrap();
    assert_eq!(delivered.output, "done");
    gone(&setup.file("child")).await;
}

#[tokio::test]
async fn flood_of_output_is_cut_and_does_not_block() {
    let setup = Setup::new("head -c 3000000 /dev/zero | tr '\\0' x; exit 0");
    let outgoing = Arc::new(Notify::new());
    let delivered = setup.delivery(&outgoing).test("alice").await.unwrap();
    assert_eq!(delivered.output.len(), 4096);
}

#[tokio::test]
async fn command_that_reads_nothing_is_none_the_worse() {
    let setup = Setup::new("exec <&-; exit 0");
    let outgoing = Arc::new(Notify::new());
    setup.delivery(&outgoing).test("alice").await.unwrap();
}

#[tokio::test]
async fn command_sees_no_variable_of_the_agent() {
    let setup = Setup::new("env | cut -d= -f1 | sort | tr '\\n' ' '");
    let outgoing = Arc::new(Notify::new());
    let delivered = setup.delivery(&outgoing).test("alice").await.unwrap();
    let strange: Vec<&str> = delivered
        .output
        .split(' ')
        .filter(|name| {
            !name.starts_with("MCP_")
                && !["", "_", "PWD", "OLDPWD", "SHLVL", "PATH", "HOME", "LANG"].contains(name)
        })
        .collect();
    assert_eq!(strange, Vec::<&str>::new());
}

#[tokio::test]
async fn missing_command_is_told_by_name() {
    let mut setup = Setup::new("");
    setup.config.command = vec!["/nowhere/notify".to_owned()];
    let outgoing = Arc::new(Notify::new());
    let error = setup.delivery(&outgoing).test("alice").await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/notify"), "{error}");
}

/// Waits until the process whose id the file holds has ended.
async fn gone(file: &Path) {
    let pid: u32 = std::fs::read_to_string(file)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    until("it is gone", || {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .map_or(true, |stat| stat.contains(") Z "))
    })
    .await;
}
