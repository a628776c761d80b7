//! Every key of a component takes effect on every engine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mcp_agent::runtime::process::pid_start_time;
use mcp_agent::runtime::{LogOptions, Runtime};
use mcp_spec::observed::ContainerState;
use mcp_tests::engine::{Lane, wait};
use mcp_tests::lanes;
use mcp_tests::registry::free_port;

use crate::bench::{Bench, PAUSE, component, texts};

lanes!(
    every_key_takes_effect,
    networks_and_aliases_take_effect,
    init_runs_as_first_process,
    privileged_container_is_asked_for,
    entry_point_and_command_replace_the_image_s,
    repository_files_are_mounted_read_only,
);

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

/// Made, not started: the tests' own machine may not have every right to give.
fn privileged_container_is_asked_for(lane: Lane) {
    wait(async {
        let bench = Bench::new(lane);
        let keys = format!("{PAUSE}\nprivileged = true\nnetwork = \"none\"");
        let request = bench.request("mighty", component("mighty", &keys)).await;
        let id = bench.runtime.create(&request).await.unwrap();
        let live = bench.live(&id).await;
        assert_eq!(live.fields["privileged"], "true");
        for kept in ["NET_RAW", "MKNOD"] {
            assert!(!live.fields["cap_drop"].contains(kept), "{:?}", live.fields);
        }
        assert_eq!(live.fields["network"], "none");
        bench.clear(&["mighty"]).await;
    });
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
