//! A container's life: made, started, stopped, and the same whenever it is asked.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mcp_agent::runtime::docker::DockerRuntime;
use mcp_agent::runtime::{EngineEvent, LogLine, LogOptions, Runtime, RuntimeError};
use mcp_spec::observed::ContainerState;
use mcp_tests::engine::{BUSYBOX, Engine, Lane, wait};
use mcp_tests::lanes;
use mcp_tests::registry::free_port;

use crate::bench::{Bench, PAUSE, assert_same, component, texts};

lanes!(
    plain_component_runs_and_stops,
    asking_again_shows_the_same_whatever_happened,
    container_is_renamed_signalled_and_removed_while_it_runs,
    quiet_log_is_followed,
    log_lines_come_whole,
    events_speak_docker_words,
);

fn plain_component_runs_and_stops(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let facts = bench.runtime.facts().await.unwrap();
        assert_eq!(facts.name.as_str(), lane.engine_kind());
        assert_eq!(facts.rootless, lane == Lane::PodmanRootless);
        assert!(facts.shares_pids);
        let spec = component("plain", "network = \"none\"\ncmd = [\"/bin/pause\"]");
        let request = bench.request("plain", spec).await;
        bench.clear(&["plain"]).await;
        let id = bench.runtime.create(&request).await.unwrap();
        let created = bench.live(&id).await;
        assert_eq!(created.state, ContainerState::Created);
        assert_eq!(created.image_id, request.image);
        bench.runtime.start(&id).await.unwrap();
        bench.runtime.start(&id).await.unwrap();
        let running = bench.live(&id).await;
        assert!(matches!(
            running.state,
            ContainerState::Running { pid: Some(_) }
        ));
        assert!(running.started_at.is_some());
        assert_same(&created, &running, "after the start");
        let listed = bench.runtime.list().await.unwrap();
        let listed = listed.iter().find(|it| it.id == id).unwrap();
        assert_eq!(listed.name, "plain");
        assert_eq!(listed.image_id, request.image);
        assert_eq!(listed.state, ContainerState::Running { pid: None });
        assert_eq!(listed.labels["mcp.node"], "rift");

        bench
            .runtime
            .stop(&id, Duration::from_secs(5))
            .await
            .unwrap();
        bench
            .runtime
            .stop(&id, Duration::from_secs(5))
            .await
            .unwrap();
        let stopped = bench.live(&id).await;
        assert_eq!(
            stopped.state,
            ContainerState::Exited {
                code: 0,
                oom: false
            }
        );
        assert!(stopped.finished_at.is_some());
        assert_same(&created, &stopped, "after the stop");
        bench.runtime.remove(id.as_str()).await.unwrap();
        bench.runtime.remove(id.as_str()).await.unwrap();
        assert_eq!(bench.runtime.inspect(id.as_str()).await.unwrap(), None);
        assert_eq!(bench.runtime.inspect("plain").await.unwrap(), None);
    });
}

fn asking_again_shows_the_same_whatever_happened(lane: Lane) {
    // An engine of its own, since it is restarted.
    let engine = Engine::start(lane).unwrap();
    engine
        .import_version(&format!("{BUSYBOX}:v1"), "v1", "busybox", &[])
        .unwrap();
    engine.enter().unwrap();
    let bench = Bench {
        runtime: DockerRuntime::new(engine.url().parse().unwrap()),
        engine: &engine,
    };
    wait(async {
        let none = BTreeMap::new();
        for network in ["na", "nb"] {
            bench.runtime.ensure_network(network, &none).await.unwrap();
        }
        bench
            .runtime
            .ensure_volume("same_cache", &none)
            .await
            .unwrap();
        let port = free_port().unwrap();
        let spec = component(
            "same",
            &format!(
                r#"
                {PAUSE}
                env = {{ A = "1", B = "2", C = "3" }}
                networks = {{ na = {{}}, nb = {{ aliases = ["x", "y"] }} }}
                ports = ["127.0.0.1:{port}:8080", "127.0.0.1:{}:8081", "127.0.0.1:{}:8082/udp"]
                volumes = ["/tmp:/t:ro", "cache:/cache", "/etc:/e:ro"]
                tmpfs = ["/scratch:size=1m"]
                resources = {{ memory = "64MiB", cpus = 0.5, pids = 99 }}
                cap_add = ["SYS_NICE", "SYS_TIME"]
                labels = {{ a = "1", b = "2" }}
                extra_hosts = {{ db = "10.1.2.3", cache = "10.1.2.4" }}
                dns = ["10.9.9.9", "10.9.9.8"]
                [components.health]
                cmd = ["/bin/true"]
                "#,
                port + 1,
                port + 2,
            ),
        );
        let request = bench.request("same-web", spec).await;
        let id = bench.runtime.create(&request).await.unwrap();
        let created = bench.live(&id).await;
        for _ in 0..5 {
            assert_same(&created, &bench.live(&id).await, "when asked again");
        }
        bench.runtime.start(&id).await.unwrap();
        assert_same(&created, &bench.live(&id).await, "after the start");
        let check = ["/bin/true".to_owned()];
        let live = bench.live(&id).await;
        bench
            .runtime
            .check(&live, &check, Duration::from_secs(20))
            .await
            .unwrap();
        assert_same(&created, &bench.live(&id).await, "after a check");
        bench.runtime.rename(&id, "same-old").await.unwrap();
        assert_same(&created, &bench.live(&id).await, "after a rename");
        bench
            .runtime
            .stop(&id, Duration::from_secs(5))
            .await
            .unwrap();
        assert_same(&created, &bench.live(&id).await, "after the stop");
        bench.runtime.start(&id).await.unwrap();
        assert_same(&created, &bench.live(&id).await, "after the second start");

        engine.kill().unwrap();
        let away = bench.runtime.list().await.unwrap_err();
        assert!(away.is_away(), "{away}");
        assert!(matches!(
            bench.runtime.inspect("same-old").await.unwrap_err(),
            RuntimeError::Unreachable { .. }
        ));
        engine.up().unwrap();
        assert_same(
            &created,
            &bench.live(&id).await,
            "after the engine's restart",
        );
        bench.runtime.start(&id).await.unwrap();
        assert_same(&created, &bench.live(&id).await, "after the third start");

        if lane == Lane::Docker {
            engine
                .cli(&[
                    "update",
                    "--memory",
                    "128m",
                    "--memory-swap",
                    "256m",
                    "same-old",
                ])
                .unwrap();
            let changed = bench.live(&id).await;
            assert_eq!(changed.fields["memory"], (128 << 20).to_string());
            assert_ne!(created.fields, changed.fields);
        }
        engine
            .cli(&["network", "disconnect", "nb", "same-old"])
            .unwrap();
        assert!(!bench.live(&id).await.fields.contains_key("network.nb"));
        bench.clear(&["same-old"]).await;
    });
}

fn container_is_renamed_signalled_and_removed_while_it_runs(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let spec = component("moved", &format!("{PAUSE}\nnetwork = \"none\""));
        let request = bench.request("moved-1", spec).await;
        bench.clear(&["moved-web"]).await;
        let live = bench.run(&request).await;
        bench.runtime.rename(&live.id, "moved-web").await.unwrap();
        assert_eq!(bench.live(&live.id).await.name, "moved-web");
        assert_eq!(bench.runtime.inspect("moved-1").await.unwrap(), None);
        let options = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        let mut logs = bench.runtime.logs(&live.id, &options).await.unwrap();
        assert_eq!(logs.next().await.unwrap().unwrap().line, b"pause v1");
        bench.runtime.signal(&live.id, "SIGHUP").await.unwrap();
        assert_eq!(logs.next().await.unwrap().unwrap().line, b"reloaded");
        bench.runtime.remove("moved-web").await.unwrap();
        assert_eq!(bench.runtime.inspect(live.id.as_str()).await.unwrap(), None);
    });
}

fn quiet_log_is_followed(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let keys = "cmd = [\"/bin/sh\", \"-c\", \"trap 'echo heard; exit 4' TERM; while :; do sleep 1 & wait $!; done\"]\nnetwork = \"none\"";
        let request = bench.request("quiet-web", component("quiet", keys)).await;
        let live = bench.run(&request).await;
        let options = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        let begun = Instant::now();
        let logs = bench.runtime.logs(&live.id, &options).await.unwrap();
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        let (lines, ()) = tokio::join!(logs.collect::<Vec<_>>(), async {
            bench
                .runtime
                .stop(&live.id, Duration::from_secs(10))
                .await
                .unwrap();
        });
        let lines: Vec<LogLine> = lines.into_iter().map(Result::unwrap).collect();
        assert_eq!(texts(&lines), ["heard"]);
        bench.clear(&["quiet-web"]).await;
    });
}

fn log_lines_come_whole(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let script = "echo one; echo two >&2; head -c 100000 /dev/zero | tr '\\\\0' x; echo; echo; echo last";
        let keys = format!("cmd = [\"/bin/sh\", \"-c\", \"{script}\"]\nnetwork = \"none\"");
        let request = bench.request("logs-web", component("logs", &keys)).await;
        let live = bench.run(&request).await;
        let follow = LogOptions {
            follow: true,
            ..LogOptions::default()
        };
        bench.lines(&live.id, &follow).await;
        let lines = bench.lines(&live.id, &LogOptions::default()).await;
        let mut out: Vec<&LogLine> = lines.iter().filter(|line| !line.stderr).collect();
        assert_eq!(out.remove(0).line, b"one");
        assert_eq!(out.pop().unwrap().line, b"last");
        assert_eq!(out.pop().unwrap().line, b"");
        assert_eq!(
            out.len(),
            1,
            "{:?}",
            out.iter().map(|it| it.line.len()).collect::<Vec<_>>()
        );
        assert_eq!(out[0].line.len(), 64 << 10);
        assert!(out[0].line.iter().all(|byte| *byte == b'x'));
        let err: Vec<_> = lines.iter().filter(|line| line.stderr).collect();
        assert_eq!(err.len(), 1);
        assert_eq!(err[0].line, b"two");
        let now = jiff::Timestamp::now().as_second();
        for line in &lines {
            let at = line.at.unwrap().as_second();
            assert!((now - 120..=now + 1).contains(&at), "{at} {now}");
        }
        let tail = LogOptions {
            tail: Some(1),
            ..LogOptions::default()
        };
        assert_eq!(texts(&bench.lines(&live.id, &tail).await), ["last"]);
        let later = LogOptions {
            since: Some(jiff::Timestamp::from_second(now + 100).unwrap()),
            ..LogOptions::default()
        };
        assert!(bench.lines(&live.id, &later).await.is_empty());
        bench.clear(&["logs-web"]).await;
    });
}

fn events_speak_docker_words(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let keys = "cmd = [\"/bin/sh\", \"-c\", \"exit 5\"]\nnetwork = \"none\"";
        let request = bench.request("events-web", component("events", keys)).await;
        bench.clear(&["events-web"]).await;
        let mut events = bench.runtime.events().await.unwrap();
        let id = bench.runtime.create(&request).await.unwrap();
        bench.runtime.start(&id).await.unwrap();
        let mut next = async || -> EngineEvent {
            loop {
                let event = tokio::time::timeout(Duration::from_secs(20), events.next());
                let event = event.await.unwrap().unwrap().unwrap();
                if event.container == id {
                    return event;
                }
            }
        };
        let mut seen = Vec::new();
        loop {
            let event = next().await;
            assert_eq!(event.name, "events-web");
            assert!(event.at.is_some());
            seen.push(event.action.clone());
            if event.action == "die" {
                assert_eq!(event.exit_code, Some(5));
                break;
            }
        }
        assert_eq!(seen, ["create", "start", "die"]);
        bench.runtime.remove(id.as_str()).await.unwrap();
        assert_eq!(next().await.action, "destroy");
    });
}
