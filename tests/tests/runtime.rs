//! The agent's `Runtime` against real engines: every key of a component that it compiles is proved
//! by inspect or from inside the container, and asking twice shows the same.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mcp_agent::runtime::docker::{DockerRuntime, EngineSocket};
use mcp_agent::runtime::prober::{ProbeOutcome, probe};
use mcp_agent::runtime::process::pid_start_time;
use mcp_agent::runtime::{
    ContainerRequest, EngineEvent, ExecOutcome, KeepTag, LogLine, LogOptions, PullProgress,
    Runtime, RuntimeError,
};
use mcp_spec::component::ComponentSpec;
use mcp_spec::definition::{DefinitionFile, parse_one};
use mcp_spec::image::Digest;
use mcp_spec::observed::{ContainerId, ContainerState, LiveContainer};
use mcp_tests::engine::{BUSYBOX, Engine, Lane, wait};
use mcp_tests::lanes;
use mcp_tests::registry::{Registry, free_port};

lanes!(
    plain_component_runs_and_stops,
    every_key_takes_effect,
    networks_and_aliases_take_effect,
    init_runs_as_first_process,
    entry_point_and_command_replace_the_image_s,
    repository_files_are_mounted_read_only,
    asking_again_shows_the_same_whatever_happened,
    taken_name_is_told_and_the_foreigner_left_alone,
    missing_things_are_told_as_missing,
    taken_port_is_told,
    container_is_renamed_signalled_and_removed_while_it_runs,
    command_inside_tells_its_end,
    health_command_leaves_no_process_behind,
    published_port_is_probed,
    log_lines_come_whole,
    quiet_log_is_followed,
    events_speak_docker_words,
    networks_and_volumes_are_made_once_and_removed_when_free,
    image_is_pulled_with_its_digest,
    kept_image_survives_the_loss_of_its_tag,
);

/// One component's resolved spec, from the lines of its definition.
fn component(service: &str, keys: &str) -> ComponentSpec {
    let text = format!(
        "name = \"{service}\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"{BUSYBOX}:v1\"\n{keys}\n"
    );
    let path = format!("services/{service}.toml");
    let file = DefinitionFile {
        path: &path,
        bytes: text.as_bytes(),
    };
    let (spec, errors) = parse_one(file, &|path| Some(Digest::of(path.as_bytes())));
    assert!(
        errors.is_empty(),
        "{}",
        errors.iter().map(|e| e.render()).collect::<String>()
    );
    let (_, component) = spec.unwrap().components.into_iter().next().unwrap();
    component
}

/// A runtime and what a test made with it.
struct Bench<'a> {
    engine: &'a Engine,
    runtime: DockerRuntime,
}

impl Bench<'_> {
    fn new(lane: Lane) -> Self {
        let engine = lane.shared();
        let socket: EngineSocket = engine.url().parse().unwrap();
        Self {
            engine,
            runtime: DockerRuntime::new(socket),
        }
    }

    async fn request(&self, name: &str, spec: ComponentSpec) -> ContainerRequest {
        let image = self.runtime.image(&spec.image).await.unwrap().unwrap();
        ContainerRequest {
            name: name.to_owned(),
            image: image.id,
            spec,
            labels: BTreeMap::from([("mcp.node".to_owned(), "rift".to_owned())]),
            files: BTreeMap::new(),
        }
    }

    /// Makes and starts a container of that name, in place of any that bears it.
    async fn run(&self, request: &ContainerRequest) -> LiveContainer {
        self.runtime.remove(&request.name).await.unwrap();
        let id = self.runtime.create(request).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        self.live(&id).await
    }

    async fn live(&self, id: &ContainerId) -> LiveContainer {
        self.runtime.inspect(id.as_str()).await.unwrap().unwrap()
    }

    /// What a shell command inside the container writes.
    async fn inside(&self, id: &ContainerId, command: &str) -> String {
        let command = ["/bin/sh", "-c", command].map(str::to_owned);
        match self
            .runtime
            .exec(id, &command, Duration::from_secs(20))
            .await
        {
            Ok(ExecOutcome::Exited { output, .. }) => output.trim().to_owned(),
            other => panic!("{command:?}: {other:?}"),
        }
    }

    /// All lines that a log gives until it ends.
    async fn lines(&self, id: &ContainerId, options: &LogOptions) -> Vec<LogLine> {
        let lines = self.runtime.logs(id, options).await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), lines.collect::<Vec<_>>())
            .await
            .unwrap()
            .into_iter()
            .map(Result::unwrap)
            .collect()
    }

    /// Waits until no process of a container has these words among its arguments.
    async fn gone(&self, id: &ContainerId, words: &str) {
        let ContainerState::Running { pid: Some(first) } = self.live(id).await.state else {
            panic!("{id} does not run")
        };
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let inside = namespace(&first.to_string());
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let left = std::fs::read_dir("/proc").unwrap().flatten().find(|entry| {
                let pid = entry.file_name();
                let pid = pid.to_str().unwrap_or_default();
                namespace(pid) == inside
                    && std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
                        String::from_utf8_lossy(&line).replace('\0', " ").trim() == words
                    })
            });
            match left {
                None => return,
                Some(left) if Instant::now() > end => panic!("{left:?} runs `{words}` still"),
                Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn clear(&self, names: &[&str]) {
        for name in names {
            self.runtime.remove(name).await.unwrap();
        }
    }
}

fn assert_same(before: &LiveContainer, after: &LiveContainer, when: &str) {
    for (name, value) in &before.fields {
        assert_eq!(Some(value), after.fields.get(name), "`{name}` {when}");
    }
    assert_eq!(before.fields, after.fields, "{when}");
}

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

const PAUSE: &str = "cmd = [\"/bin/pause\"]";

fn every_key_takes_effect(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let data = bench.engine.dir().join("every-key");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("file"), "from the node").unwrap();
        bench.engine.give(&data).unwrap();
        let port = free_port().unwrap();
        let spec = component(
            "every",
            &format!(
                r#"
                entrypoint = ["/bin/sh", "-c"]
                cmd = ["echo started; exec /bin/pause"]
                env = {{ RUST_LOG = "info", EMPTY = "", SPACED = "two words" }}
                user = "1000:1000"
                workdir = "/made/up"
                hostname = "hosty"
                ports = ["127.0.0.1:{port}:8080"]
                volumes = ["{}:/data:ro", "cache:/cache"]
                tmpfs = ["/scratch:size=1m,mode=1777"]
                resources = {{ memory = "64MiB", cpus = 0.5, pids = 99 }}
                read_only = true
                cap_add = ["SYS_NICE"]
                cap_drop = ["CHOWN"]
                labels = {{ tier = "front" }}
                stop_signal = "SIGINT"
                stop_timeout = "7s"
                extra_hosts = {{ db = "10.1.2.3" }}
                dns = ["10.9.9.9"]
                "#,
                data.display()
            ),
        );
        let volume = "every_cache";
        let labels = BTreeMap::from([("mcp.service".to_owned(), "every".to_owned())]);
        bench.runtime.ensure_volume(volume, &labels).await.unwrap();
        bench
            .runtime
            .ensure_network("every", &labels)
            .await
            .unwrap();
        let request = bench.request("every-web", spec).await;
        let live = bench.run(&request).await;
        let facts = bench.runtime.facts().await.unwrap();

        let inside = bench
            .inside(
                &live.id,
                "echo log=$RUST_LOG empty=${EMPTY+set} spaced=$SPACED; id -u; id -g; pwd; hostname;
                 cat /data/file; touch /data/new 2>&1 | grep -o 'Read-only file system';
                 touch /new 2>&1 | grep -o 'Read-only file system'; grep -c ' /cache ' /proc/mounts;
                 grep ' /scratch ' /proc/mounts; grep db /etc/hosts; cat /etc/resolv.conf;
                 grep -E 'NoNewPrivs|CapBnd|Seccomp:' /proc/1/status; tr '\\0' ' ' < /proc/1/cmdline",
            )
            .await;
        let lines: Vec<&str> = inside.lines().map(str::trim).collect();
        assert_eq!(
            lines[..8],
            [
                "log=info empty=set spaced=two words",
                "1000",
                "1000",
                "/made/up",
                "hosty",
                "from the nodeRead-only file system",
                "Read-only file system",
                "1"
            ],
            "{inside}"
        );
        assert!(
            lines[8].starts_with("tmpfs /scratch tmpfs rw,nosuid,nodev,noexec"),
            "{inside}"
        );
        assert!(lines[8].contains("size=1024k"), "{inside}");
        assert!(lines[9].starts_with("10.1.2.3"), "{inside}");
        assert!(inside.contains("NoNewPrivs:\t1"), "{inside}");
        assert!(inside.contains("Seccomp:\t2"), "{inside}");
        assert!(inside.ends_with("/bin/sh /bin/pause"), "{inside}");
        // On a network of its own docker answers from 127.0.0.11 and asks the server itself.
        assert_eq!(live.fields["dns"], "10.9.9.9");
        let bounding = inside
            .lines()
            .find_map(|line| line.strip_prefix("CapBnd:\t"))
            .map(|bits| u64::from_str_radix(bits, 16).unwrap())
            .unwrap();
        for (capability, bit, there) in [
            ("CHOWN", 0, false),
            ("KILL", 5, true),
            ("NET_RAW", 13, false),
            ("SYS_NICE", 23, true),
            ("MKNOD", 27, false),
        ] {
            assert_eq!(
                bounding & (1 << bit) != 0,
                there,
                "{capability}: {bounding:x}"
            );
        }
        let ContainerState::Running { pid: Some(pid) } = live.state else {
            panic!("{:?}", live.state)
        };
        assert!(pid_start_time(pid).is_some());
        if facts.limits {
            assert_eq!(
                limit(pid, "memory", ["memory.limit_in_bytes", "memory.max"]),
                "67108864"
            );
            assert_eq!(limit(pid, "pids", ["pids.max"; 2]), "99");
            let cpu = limit(pid, "cpu", ["cpu.cfs_quota_us", "cpu.max"]);
            assert!(["50000", "50000 100000"].contains(&cpu.as_str()), "{cpu}");
        }
        assert_eq!(live.labels["tier"], "front");
        assert_eq!(live.fields["stop_timeout"], "7");
        assert_eq!(live.fields["stop_signal"], "SIGINT");
        assert_eq!(live.fields["restart"], "no");
        assert_eq!(live.fields["mount./cache"], "volume:every_cache:rw");
        assert_eq!(live.fields["ports"], format!("127.0.0.1:{port}:8080/tcp"));

        // The pause ends at SIGINT as at SIGTERM: the signal is the one asked for.
        bench
            .runtime
            .stop(&live.id, Duration::from_secs(20))
            .await
            .unwrap();
        assert!(matches!(
            bench.live(&live.id).await.state,
            ContainerState::Exited { code: 0, .. }
        ));
        bench.clear(&["every-web"]).await;
        bench.runtime.remove_volume(volume).await.unwrap();
        bench.runtime.remove_network("every").await.unwrap();
    });
}

/// A limit of the cgroup that a process is in, by the name of version 1 or of version 2.
fn limit(pid: u32, controller: &str, files: [&str; 2]) -> String {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let read = |path: String| std::fs::read_to_string(path).unwrap().trim().to_owned();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap(), parts.next().unwrap());
        if controllers.split(',').any(|it| it == controller) {
            let mounted = ["", "/sys/fs/cgroup/"]
                .iter()
                .map(|_| format!("/sys/fs/cgroup/{controllers}{path}/{}", files[0]))
                .chain([format!("/sys/fs/cgroup/{controller}{path}/{}", files[0])])
                .find(|path| Path::new(path).exists());
            return read(mounted.unwrap_or_else(|| panic!("no mount for {line}")));
        }
    }
    let path = groups
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap();
    read(format!("/sys/fs/cgroup{path}/{}", files[1]))
}

fn networks_and_aliases_take_effect(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let none = BTreeMap::new();
        for network in ["na", "nb"] {
            bench.runtime.ensure_network(network, &none).await.unwrap();
        }
        let keys = "cmd = [\"/bin/serve\", \"8080\"]\nnetworks = { na = {}, nb = { aliases = [\"other\"] } }";
        let server = bench.request("na-web", component("na", keys)).await;
        let server = bench.run(&server).await;
        assert_eq!(server.fields["network"], "user");
        assert_eq!(server.fields["network.na"], "na-web,web");
        assert_eq!(server.fields["network.nb"], "na-web,other");
        assert_eq!(server.addresses.len(), 2);
        for (network, names) in [("na", ["web", "na-web"]), ("nb", ["other", "na-web"])] {
            let keys = format!("{PAUSE}\nnetworks = {{ {network} = {{}} }}");
            let client = bench.request("asking", component("asking", &keys)).await;
            let client = bench.run(&client).await;
            for name in names {
                let ask = format!(
                    "for i in 1 2 3 4 5; do timeout 2 wget -q -O - http://{name}:8080/version && exit; nslookup {name}; sleep 1; done"
                );
                assert_eq!(
                    bench.inside(&client.id, &ask).await,
                    "v1",
                    "{name} on {network}"
                );
            }
        }
        bench.clear(&["asking", "na-web"]).await;
        for network in ["na", "nb"] {
            assert!(bench.runtime.remove_network(network).await.unwrap());
        }

        for (mode, expected) in [("none", "1"), ("host", ""), ("bridge", "2")] {
            let keys = format!("{PAUSE}\nnetwork = \"{mode}\"");
            let request = bench.request("modes-web", component("modes", &keys)).await;
            let live = bench.run(&request).await;
            assert_eq!(live.fields["network"], mode);
            let links = bench.inside(&live.id, "ls /sys/class/net | wc -l").await;
            let ContainerState::Running { pid: Some(pid) } = live.state else {
                panic!("{:?}", live.state)
            };
            let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
            if mode == "host" {
                if lane != Lane::PodmanRootless {
                    assert_eq!(namespace(&pid.to_string()), namespace("thread-self"));
                }
            } else {
                assert_ne!(namespace(&pid.to_string()), namespace("thread-self"));
                assert!(links.as_str() >= expected, "{mode}: {links}");
            }
        }
        bench.clear(&["modes-web"]).await;
    });
}

fn init_runs_as_first_process(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let keys = format!("{PAUSE}\nnetwork = \"none\"\ninit = true");
        let request = bench.request("init-web", component("init", &keys)).await;
        let live = bench.run(&request).await;
        let first = bench
            .inside(&live.id, "tr '\\0' ' ' < /proc/1/cmdline")
            .await;
        assert!(first.contains("init"), "{first}");
        assert_eq!(live.fields["init"], "true");
        bench.clear(&["init-web"]).await;
    });
}

fn entry_point_and_command_replace_the_image_s(lane: Lane) {
    let bench = Bench::new(lane);
    let image = "localhost/mcp-test/entry:v1";
    bench
        .engine
        .import_version(
            image,
            "v1",
            "busybox",
            &[r#"ENTRYPOINT ["/bin/echo","entry"]"#, r#"CMD ["image"]"#],
        )
        .unwrap();
    wait(async {
        let bench = Bench::new(lane);
        for (keys, said) in [
            ("", "entry image"),
            ("cmd = [\"own\"]", "entry own"),
            ("entrypoint = [\"/bin/echo\", \"x\"]", "x"),
            ("entrypoint = [\"/bin/echo\"]\ncmd = [\"y\"]", "y"),
        ] {
            let mut spec = component("entry", &format!("network = \"none\"\n{keys}"));
            spec.image = image.parse().unwrap();
            let request = bench.request("entry-web", spec).await;
            let live = bench.run(&request).await;
            let options = LogOptions {
                follow: true,
                ..LogOptions::default()
            };
            let lines = bench.lines(&live.id, &options).await;
            assert_eq!(texts(&lines), [said], "{keys}");
        }
        bench.clear(&["entry-web"]).await;
    });
}

fn repository_files_are_mounted_read_only(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let staged = bench.engine.dir().join("staged.toml");
        std::fs::write(&staged, "key = 1\n").unwrap();
        bench.engine.give(&staged).unwrap();
        let spec = component("filed", &format!("{PAUSE}\nnetwork = \"none\""));
        let mut request = bench.request("filed-web", spec).await;
        request.files = BTreeMap::from([("/etc/web/web.toml".to_owned(), staged.clone())]);
        let live = bench.run(&request).await;
        let said = bench
            .inside(
                &live.id,
                "cat /etc/web/web.toml; echo 2> /dev/null >> /etc/web/web.toml || echo refused",
            )
            .await;
        assert_eq!(said, "key = 1\nrefused");
        assert_eq!(
            live.fields["mount./etc/web/web.toml"],
            format!("bind:{}:ro", staged.display())
        );
        bench.clear(&["filed-web"]).await;
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

fn taken_name_is_told_and_the_foreigner_left_alone(lane: Lane) {
    let bench = Bench::new(lane);
    bench.engine.remove("taken-web").unwrap();
    let foreign = bench
        .engine
        .run_foreign("taken-web", &["--network", "none"])
        .unwrap();
    wait(async {
        let bench = Bench::new(lane);
        let spec = component("taken", &format!("{PAUSE}\nnetwork = \"none\""));
        let mut request = bench.request("taken-web", spec).await;
        let error = bench.runtime.create(&request).await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::NameTaken { name } if name == "taken-web"),
            "{error:?}"
        );
        request.name = "taken-1".to_owned();
        bench.clear(&["taken-1"]).await;
        let id = bench.runtime.create(&request).await.unwrap();
        let error = bench.runtime.rename(&id, "taken-web").await.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::NameTaken { name } if name == "taken-web"),
            "{error:?}"
        );
        let live = bench.runtime.inspect("taken-web").await.unwrap().unwrap();
        assert_eq!(live.id.as_str(), foreign);
        assert!(live.state.is_running());
        // The start of an id or a name names nothing.
        assert_eq!(bench.runtime.inspect(&foreign[..10]).await.unwrap(), None);
        assert_eq!(bench.runtime.inspect("taken").await.unwrap(), None);
        bench.clear(&["taken-1", "taken-web"]).await;
    });
}

fn missing_things_are_told_as_missing(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let gone = ContainerId::new("0123456789abcdef".repeat(4));
        let runtime = &bench.runtime;
        let missing = |error: RuntimeError| {
            assert!(matches!(error, RuntimeError::NotFound { .. }), "{error:?}");
        };
        missing(runtime.start(&gone).await.unwrap_err());
        missing(
            runtime
                .stop(&gone, Duration::from_secs(1))
                .await
                .unwrap_err(),
        );
        missing(runtime.signal(&gone, "SIGHUP").await.unwrap_err());
        missing(runtime.rename(&gone, "other").await.unwrap_err());
        let command = ["/bin/true".to_owned()];
        missing(
            runtime
                .exec(&gone, &command, Duration::from_secs(5))
                .await
                .unwrap_err(),
        );
        assert!(runtime.logs(&gone, &LogOptions::default()).await.is_err());
        assert_eq!(runtime.inspect(gone.as_str()).await.unwrap(), None);
        runtime.remove(gone.as_str()).await.unwrap();
        let image = "localhost/mcp-test/absent:v1".parse().unwrap();
        assert_eq!(runtime.image(&image).await.unwrap(), None);
        let spec = component("missing", &format!("{PAUSE}\nnetwork = \"none\""));
        let mut request = bench.request("missing-web", spec).await;
        let held = runtime.image_by_id(&request.image).await.unwrap().unwrap();
        assert_eq!(held.id, request.image);
        assert!(held.size_bytes > 0);
        request.image = mcp_spec::observed::ImageId::new(Digest::of(b"none").to_string());
        assert_eq!(runtime.image_by_id(&request.image).await.unwrap(), None);
        missing(runtime.create(&request).await.unwrap_err());
    });
}

fn taken_port_is_told(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let none = BTreeMap::new();
        bench.runtime.ensure_network("ports", &none).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let keys = format!("{PAUSE}\nnetwork = \"ports\"\nports = [\"127.0.0.1:{port}:80\"]");
        let request = bench.request("ports-a", component("ports", &keys)).await;
        bench.clear(&["ports-a", "ports-b"]).await;
        let id = bench.runtime.create(&request).await.unwrap();
        let error = bench.runtime.start(&id).await.unwrap_err();
        assert!(matches!(error, RuntimeError::PortTaken { .. }), "{error:?}");
        drop(listener);
        bench.runtime.start(&id).await.unwrap();
        let request = bench.request("ports-b", component("ports", &keys)).await;
        let id = bench.runtime.create(&request).await.unwrap();
        let error = bench.runtime.start(&id).await.unwrap_err();
        assert!(matches!(error, RuntimeError::PortTaken { .. }), "{error:?}");
        bench.clear(&["ports-a", "ports-b"]).await;
        assert!(bench.runtime.remove_network("ports").await.unwrap());
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

fn texts(lines: &[LogLine]) -> Vec<String> {
    lines
        .iter()
        .map(|line| String::from_utf8_lossy(&line.line).into_owned())
        .collect()
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

fn networks_and_volumes_are_made_once_and_removed_when_free(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let runtime = &bench.runtime;
        let labels = BTreeMap::from([("mcp.service".to_owned(), "once".to_owned())]);
        for _ in 0..2 {
            bench.clear(&["once-web"]).await;
            runtime.remove_network("once").await.unwrap();
            runtime.remove_volume("once_data").await.unwrap();
        }
        assert!(runtime.ensure_network("once", &labels).await.unwrap());
        assert!(!runtime.ensure_network("once", &labels).await.unwrap());
        assert!(runtime.ensure_volume("once_data", &labels).await.unwrap());
        assert!(!runtime.ensure_volume("once_data", &labels).await.unwrap());
        assert_eq!(
            runtime.networks("mcp.service", "once").await.unwrap(),
            ["once"]
        );
        assert_eq!(
            runtime.volumes("mcp.service", "once").await.unwrap(),
            ["once_data"]
        );
        assert!(
            runtime
                .networks("mcp.service", "other")
                .await
                .unwrap()
                .is_empty()
        );
        assert!(
            runtime
                .volumes("mcp.service", "other")
                .await
                .unwrap()
                .is_empty()
        );
        let keys = format!("{PAUSE}\nvolumes = [\"data:/data\"]");
        let request = bench.request("once-web", component("once", &keys)).await;
        let live = bench.run(&request).await;
        bench.inside(&live.id, "echo kept > /data/file").await;
        assert!(!runtime.remove_network("once").await.unwrap());
        assert!(runtime.remove_volume("once_data").await.is_err());
        runtime
            .stop(&live.id, Duration::from_secs(5))
            .await
            .unwrap();
        assert!(!runtime.remove_network("once").await.unwrap());
        // A container's removal leaves its named volumes.
        let live = bench.run(&request).await;
        assert_eq!(bench.inside(&live.id, "cat /data/file").await, "kept");
        bench.clear(&["once-web"]).await;
        assert!(runtime.remove_network("once").await.unwrap());
        assert!(!runtime.remove_network("once").await.unwrap());
        runtime.remove_volume("once_data").await.unwrap();
        runtime.remove_volume("once_data").await.unwrap();
    });
}

fn image_is_pulled_with_its_digest(lane: Lane) {
    let bench = Bench::new(lane);
    let registry = Registry::start().unwrap();
    // Nothing of it may be there before, or nothing is transferred.
    let source = "localhost/mcp-test/pushed:v1";
    bench
        .engine
        .import_version(source, "pushed", "busybox", &[])
        .unwrap();
    let name = registry.push(bench.engine, source, "pulled:v2").unwrap();
    bench.engine.cli(&["rmi", source]).unwrap();
    wait(async {
        let bench = Bench::new(lane);
        let runtime = &bench.runtime;
        let image = name.parse().unwrap();
        assert_eq!(runtime.image(&image).await.unwrap(), None);
        let progress = Mutex::new(Vec::<PullProgress>::new());
        let note = |step| progress.lock().unwrap().push(step);
        let pulled = runtime.pull(&image, &note).await.unwrap();
        let digest = pulled.digest.unwrap();
        assert_eq!(runtime.image(&image).await.unwrap().unwrap().id, pulled.id);
        // Podman 4.3 tells of layers and not of bytes.
        if lane == Lane::Docker {
            let last = *progress.lock().unwrap().last().unwrap();
            assert!(
                last.total_bytes > 0 && last.current_bytes == last.total_bytes,
                "{last:?}"
            );
        }
        let again = runtime.pull(&image, &note).await.unwrap();
        assert_eq!(again.id, pulled.id);

        let by_digest = format!("{}@{digest}", image.repository()).parse().unwrap();
        let by_digest = runtime.pull(&by_digest, &note).await.unwrap();
        assert_eq!(
            (by_digest.id, by_digest.digest),
            (pulled.id.clone(), Some(digest))
        );

        for wrong in [
            registry.image("absent:v1"),
            "127.0.0.1:1/none:v1".to_owned(),
        ] {
            let error = runtime
                .pull(&wrong.parse().unwrap(), &note)
                .await
                .unwrap_err();
            assert!(
                matches!(&error, RuntimeError::Pull { image, .. } if *image == wrong),
                "{error:?}"
            );
        }
        bench.engine.cli(&["rmi", "--force", &name]).unwrap();
    });
}

fn kept_image_survives_the_loss_of_its_tag(lane: Lane) {
    let bench = Bench::new(lane);
    let name = "localhost/mcp-test/kept:v1";
    bench
        .engine
        .import_version(name, "kept", "busybox", &[])
        .unwrap();
    wait(async {
        let bench = Bench::new(lane);
        let runtime = &bench.runtime;
        let image = runtime
            .image(&name.parse().unwrap())
            .await
            .unwrap()
            .unwrap()
            .id;
        let keep = |tag: &str| KeepTag {
            repository: "rift/kept/web".to_owned(),
            tag: tag.to_owned(),
        };
        runtime.tag(&image, &keep("one")).await.unwrap();
        runtime.tag(&image, &keep("one")).await.unwrap();
        runtime.tag(&image, &keep("two")).await.unwrap();
        runtime.untag(&keep("two")).await.unwrap();
        runtime.untag(&keep("two")).await.unwrap();
        bench.engine.cli(&["rmi", name]).unwrap();
        assert!(runtime.image_by_id(&image).await.unwrap().is_some());
        bench.engine.cli(&["image", "prune", "--force"]).unwrap();
        assert!(runtime.image_by_id(&image).await.unwrap().is_some());

        // Its last name stays as long as a container uses it, stopped or not.
        let spec = component("kept", &format!("{PAUSE}\nnetwork = \"none\""));
        let mut request = bench.request("kept-web", spec).await;
        request.image = image.clone();
        let live = bench.run(&request).await;
        runtime.untag(&keep("one")).await.unwrap();
        assert!(runtime.image_by_id(&image).await.unwrap().is_some());
        runtime
            .stop(&live.id, Duration::from_secs(5))
            .await
            .unwrap();
        runtime.untag(&keep("one")).await.unwrap();
        assert!(runtime.image_by_id(&image).await.unwrap().is_some());
        bench.clear(&["kept-web"]).await;
        runtime.untag(&keep("one")).await.unwrap();
        runtime.untag(&keep("one")).await.unwrap();
    });
}
