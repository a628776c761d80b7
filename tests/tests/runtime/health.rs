//! Commands inside and probes from outside.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mcp_agent::runtime::prober::{ProbeOutcome, probe};
use mcp_agent::runtime::{ExecOutcome, Runtime};
use mcp_spec::observed::ContainerId;
use mcp_tests::engine::{Lane, wait};
use mcp_tests::lanes;
use mcp_tests::registry::free_port;

use crate::bench::{Bench, PAUSE, component};

lanes!(
    command_inside_tells_its_end,
    health_command_leaves_no_process_behind,
    published_port_is_probed,
);

fn command_inside_tells_its_end(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let spec = component("inside", &format!("{PAUSE}\nnetwork = \"none\""));
        let request = bench.request("inside-web", spec).await;
        let live = bench.run(&request).await;
        let run = async |command: &str, seconds| {
            let command = ["/bin/sh", "-c", command].map(str::to_owned);
            bench
                .runtime
                .exec(&live.id, &command, Duration::from_secs(seconds))
                .await
        };
        let Ok(ExecOutcome::Exited { code: 3, output }) =
            run("echo out; echo err >&2; exit 3", 20).await
        else {
            panic!("the exit code is told")
        };
        // Docker sends the two streams in no order.
        assert!(
            ["out\nerr\n", "err\nout\n"].contains(&output.as_str()),
            "{output}"
        );
        let Ok(ExecOutcome::Exited { code: 0, output }) =
            run("for i in $(seq 2000); do echo line $i; done", 20).await
        else {
            panic!("a long output is no failure")
        };
        assert!(
            output.len() <= 4096 && output.ends_with("line 2000\n"),
            "{}",
            output.len()
        );
        let begun = Instant::now();
        assert_eq!(run("sleep 98765", 2).await.unwrap(), ExecOutcome::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(10));
        bench.gone(&live.id, "sleep 98765").await;
        let absent = ["/bin/absent".to_owned()];
        let outcome = bench
            .runtime
            .exec(&live.id, &absent, Duration::from_secs(20))
            .await;
        assert!(
            !matches!(
                outcome,
                Ok(ExecOutcome::Exited { code: 0, .. } | ExecOutcome::TimedOut)
            ),
            "{outcome:?}"
        );
        bench.clear(&["inside-web"]).await;
    });
}

fn health_command_leaves_no_process_behind(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let script =
            "test -e /tmp/hang && sleep 87654; test -e /tmp/ok || { echo not yet; exit 7; }";
        let spec = component(
            "healthy",
            &format!(
                "{PAUSE}\nnetwork = \"none\"\n[components.health]\ncmd = [\"/bin/sh\", \"-c\", \"{script}\"]\ntimeout = \"3s\""
            ),
        );
        let request = bench.request("healthy-web", spec.clone()).await;
        let live = bench.run(&request).await;
        let facts = bench.runtime.facts().await.unwrap();
        let health = spec.health.clone().unwrap();
        let ask = async || probe(&bench.runtime, &facts, &spec, &health, &live).await;
        let bad = ask().await;
        assert!(!bad.ok && bad.detail.contains("not yet"), "{bad:?}");
        bench.inside(&live.id, "touch /tmp/ok").await;
        let before = monitors(&live.id);
        for _ in 0..5 {
            assert_eq!(
                ask().await,
                ProbeOutcome {
                    ok: true,
                    detail: "exit 0".to_owned()
                }
            );
        }
        assert_eq!(monitors(&live.id), before);
        bench.inside(&live.id, "touch /tmp/hang").await;
        let begun = Instant::now();
        let hung = ask().await;
        assert!(!hung.ok && hung.detail.contains("3s"), "{hung:?}");
        assert!(begun.elapsed() < Duration::from_secs(9));
        bench.gone(&live.id, "sleep 87654").await;
        bench.clear(&["healthy-web"]).await;
    });
}

/// How many processes of podman's watch over a container.
fn monitors(id: &ContainerId) -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| {
            let line = String::from_utf8_lossy(line);
            line.contains("conmon") && line.contains(id.as_str())
        })
        .count()
}

fn published_port_is_probed(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let none = BTreeMap::new();
        bench.runtime.ensure_network("probed", &none).await.unwrap();
        let facts = bench.runtime.facts().await.unwrap();
        for (server, published) in [("serve", true), ("pause", true), ("serve", false)] {
            let port = free_port().unwrap();
            let ports = if published {
                format!("ports = [\"127.0.0.1:{port}:8080\"]")
            } else {
                String::new()
            };
            let keys = format!("cmd = [\"/bin/{server}\"]\nnetwork = \"probed\"\n{ports}");
            let request = bench
                .request("probed-web", component("probed", &keys))
                .await;
            let live = bench.run(&request).await;
            for check in [
                "http = \"http://:8080/healthz\"",
                "http = \"http://:8080/absent\"",
                "tcp = 8080",
            ] {
                let keys = format!("{keys}\n[components.health]\n{check}\ntimeout = \"3s\"");
                let spec = component("probed", &keys);
                let health = spec.health.clone().unwrap();
                let wanted = server == "serve"
                    && !check.contains("absent")
                    && (published || !facts.rootless);
                let mut outcome = probe(&bench.runtime, &facts, &spec, &health, &live).await;
                let end = Instant::now() + Duration::from_secs(10);
                while wanted && !outcome.ok && Instant::now() < end {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    outcome = probe(&bench.runtime, &facts, &spec, &health, &live).await;
                }
                assert_eq!(
                    outcome.ok, wanted,
                    "{server} {check} published={published}: {outcome:?}"
                );
                if check.contains("absent") && server == "serve" && (published || !facts.rootless) {
                    assert_eq!(outcome.detail, "HTTP 404");
                }
                if !published && facts.rootless {
                    assert!(outcome.detail.contains("use cmd"), "{outcome:?}");
                }
            }
        }
        bench.clear(&["probed-web"]).await;
        bench.runtime.remove_network("probed").await.unwrap();
    });
}
