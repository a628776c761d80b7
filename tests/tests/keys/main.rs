//! Every key of a definition does on each engine what it says, and asked twice it shows no drift.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod combined;
mod host;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{BUSYBOX, Engine, Lane, eventually};
use mcp_tests::fleet::{Fleet, text};
use mcp_tests::registry::{Registry, free_port};

mcp_tests::lanes!(
    process_keys_work,
    mount_keys_work,
    network_keys_work,
    host_gateway_is_the_node,
    file_owners_are_the_container_s,
    limit_keys_work,
    stop_keys_work,
    port_and_http_health_work,
    tcp_health_works,
    pull_keys_work,
    restart_keys_work,
);

/// A service with the components given, deployed and shown to be what it should be, twice.
pub(crate) fn deployed(lane: Lane, name: &str, components: &[String]) -> Fleet {
    let fleet = Fleet::with_node(lane, name).unwrap();
    fleet.write(
        &format!("services/{name}.toml"),
        &service(name, name, components),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", name]).ok();
    settled(&fleet, name);
    fleet
}

/// No drift, nothing to do, and a second deploy that touches nothing.
#[track_caller]
pub(crate) fn settled(fleet: &Fleet, name: &str) {
    for (component, seen) in fleet.ps() {
        assert_eq!(
            seen["drift"].as_array().map(Vec::len),
            Some(0),
            "drift of {component}: {seen}"
        );
    }
    fleet.mcp(&["drift", name]).ok();
    fleet.mcp(&["plan", name, "--exit-code"]).exits(0);
    let again = fleet.mcp_json(&["deploy", name]);
    assert_eq!(
        text(&again["deployments"][0], "outcome"),
        "unchanged",
        "{again}"
    );
}

#[track_caller]
pub(crate) fn container(engine: &Engine, name: &str) -> ContainerInspectResponse {
    engine
        .inspect(name)
        .unwrap()
        .unwrap_or_else(|| panic!("no container {name}"))
}

#[track_caller]
pub(crate) fn inside(engine: &Engine, name: &str, command: &str) -> String {
    engine.cli(&["exec", name, "sh", "-c", command]).unwrap()
}

fn process_keys_work(lane: Lane) {
    let engine = lane.shared();
    let keys = r#"
entrypoint = ["/bin/sh", "-c"]
cmd = ["echo started with $WORD; exec /bin/pause"]
env = { WORD = "a b", COUNT = 3, ON = true, RATIO = 0.5, EMPTY = "" }
user = "1000:1000"
workdir = "/srv"
hostname = "keys-host"
labels = { team = "storage" }
"#;
    let _fleet = deployed(
        lane,
        "process",
        &[
            component("api", "v1", keys),
            component("init", "v1", "init = true\n"),
        ],
    );
    let env = inside(engine, "process-api", "env");
    for expected in ["WORD=a b", "COUNT=3", "ON=true", "RATIO=0.5", "EMPTY="] {
        assert!(
            env.lines().any(|line| line == expected),
            "{expected} in {env}"
        );
    }
    assert_eq!(inside(engine, "process-api", "id -u; id -g"), "1000\n1000");
    assert_eq!(inside(engine, "process-api", "pwd"), "/srv");
    assert_eq!(inside(engine, "process-api", "hostname"), "keys-host");
    assert_eq!(
        inside(engine, "process-api", "tr '\\0' ' ' < /proc/1/cmdline").trim(),
        "/bin/sh /bin/pause"
    );
    let config = container(engine, "process-api").config.unwrap();
    assert_eq!(
        config.labels.unwrap().get("team").map(String::as_str),
        Some("storage")
    );
    let first = inside(engine, "process-init", "cat /proc/1/comm");
    assert!(
        first.contains("init"),
        "an init is the first process: {first}"
    );
    assert!(!inside(engine, "process-api", "cat /proc/1/comm").contains("init"));
}

fn mount_keys_work(lane: Lane) {
    let engine = lane.shared();
    let fleet = Fleet::with_node(lane, "mounts").unwrap();
    let srv = fleet.node("mounts").services_dir().join("mounts");
    let keys = format!(
        r#"
volumes = ["{srv}:/data", "{srv}:/look:ro", "cache:/cache"]
tmpfs = ["/scratch"]
read_only = true
files = [{{ from = "files/mounts/app.toml", to = "/etc/app.toml", mode = "0600", owner = "1000:1000" }}]
"#,
        srv = srv.display()
    );
    fleet.write("files/mounts/app.toml", "key = 1\n");
    fleet.write(
        "services/mounts.toml",
        &service("mounts", "mounts", &[component("api", "v1", &keys)]),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "mounts"]).ok();
    settled(&fleet, "mounts");
    inside(engine, "mounts-api", "echo hello > /data/note");
    assert_eq!(inside(engine, "mounts-api", "cat /look/note"), "hello");
    assert_eq!(
        std::fs::read_to_string(srv.join("note")).unwrap(),
        "hello\n"
    );
    assert!(
        engine
            .cli(&["exec", "mounts-api", "touch", "/look/no"])
            .is_err(),
        "`:ro` is read-only"
    );
    assert!(
        engine.cli(&["exec", "mounts-api", "touch", "/no"]).is_err(),
        "so is the root"
    );
    inside(
        engine,
        "mounts-api",
        "echo kept > /cache/note; touch /scratch/yes",
    );
    assert!(inside(engine, "mounts-api", "grep ' /scratch ' /proc/mounts").contains("tmpfs"));
    assert_eq!(
        inside(
            engine,
            "mounts-api",
            "cat /etc/app.toml; stat -c '%a %u:%g' /etc/app.toml"
        ),
        "key = 1\n600 1000:1000"
    );
    // A named volume outlives its container, and is labelled as ours.
    fleet.mcp(&["deploy", "mounts", "--force"]).ok();
    assert_eq!(inside(engine, "mounts-api", "cat /cache/note"), "kept");
    let volumes = engine
        .cli(&[
            "volume",
            "ls",
            "--quiet",
            "--filter",
            "label=mcp.node=mounts",
        ])
        .unwrap();
    assert_eq!(volumes, "mounts_cache");
    drop(engine.cli(&["volume", "rm", "--force", "mounts_cache"]));
}

fn network_keys_work(lane: Lane) {
    let engine = lane.shared();
    let serve = "cmd = [\"serve\", \"8080\"]\n";
    let shared =
        format!("{serve}networks = {{ names = {{}}, backbone = {{ aliases = [\"front\"] }} }}\n");
    let hosts = "extra_hosts = [\"db.example.net:10.9.8.7\"]\ndns = [\"10.9.8.6\"]\n";
    let alone = "network = \"none\"\n";
    let _fleet = deployed(
        lane,
        "names",
        &[
            component("api", "v1", serve),
            component("both", "v1", &shared),
            component("hosts", "v1", hosts),
            component("alone", "v1", alone),
        ],
    );
    let ask = |from: &str, url: &str| {
        let command = format!("timeout 3 wget -q -O - http://{url}/version");
        eventually(url, Duration::from_secs(10), || {
            Ok(engine.cli(&["exec", from, "sh", "-c", &command]).ok())
        })
        .unwrap()
    };
    // On the service's own network a component answers to its own name and to the full one.
    assert_eq!(ask("names-both", "api:8080"), "v1");
    assert_eq!(ask("names-both", "names-api:8080"), "v1");
    assert_eq!(ask("names-api", "both:8080"), "v1");
    assert_eq!(ask("names-both", "front:8080"), "v1");
    let networks = |name: &str| -> Vec<String> {
        let mut found: Vec<String> = container(engine, name)
            .network_settings
            .unwrap()
            .networks
            .unwrap()
            .into_keys()
            .collect();
        found.sort();
        found
    };
    assert_eq!(networks("names-both"), ["backbone", "names"]);
    assert_eq!(networks("names-api"), ["names"]);
    assert!(
        inside(engine, "names-hosts", "cat /etc/hosts")
            .lines()
            .any(|line| line.starts_with("10.9.8.7") && line.contains("db.example.net"))
    );
    assert_eq!(
        container(engine, "names-hosts").host_config.unwrap().dns,
        Some(vec!["10.9.8.6".to_owned()])
    );
    let interfaces = inside(engine, "names-alone", "ls /sys/class/net");
    assert_eq!(interfaces, "lo");
    assert!(
        engine
            .cli(&["network", "ls", "--filter", "label=mcp.node=names"])
            .unwrap()
            .contains("backbone")
    );
}

fn host_gateway_is_the_node(lane: Lane) {
    let engine = lane.shared();
    // On every address of the node, so on whichever the container is given.
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"the node\n");
        }
    });
    let keys = "extra_hosts = { node = \"host-gateway\" }\n";
    let fleet = Fleet::with_node(lane, "gateway").unwrap();
    fleet.write(
        "services/gateway.toml",
        &service("gateway", "gateway", &[component("api", "v1", keys)]),
    );
    fleet.mcp(&["sync"]).ok();
    let deployed = fleet.mcp(&["deploy", "gateway"]);
    if lane == Lane::PodmanRootless && deployed.code == Some(1) {
        // The lane's network has nothing but a loopback, and that is what is said before anything starts.
        deployed.says("cannot do `host-gateway` in extra_hosts: the node has no address");
        return;
    }
    deployed.ok();
    settled(&fleet, "gateway");
    let ask = format!("timeout 3 nc node {port} < /dev/null");
    assert_eq!(inside(engine, "gateway-api", &ask), "the node");
}

/// Owners are ids of the container, under an engine without root too, through every way a file changes.
fn file_owners_are_the_container_s(lane: Lane) {
    let engine = lane.shared();
    let fleet = Fleet::with_node(lane, "owners").unwrap();
    let file = |to: &str, on_change: &str| {
        format!(
            "{{ from = \"files/owners/{to}\", to = \"/etc/{to}\", mode = \"0400\", owner = \"1000:7\", on_change = \"{on_change}\" }}"
        )
    };
    let keys = format!(
        "user = \"1000:7\"\nfiles = [{}, {}, {}]\n",
        file("again", "restart"),
        file("told", "signal:HUP"),
        file("anew", "recreate")
    );
    let write = |content: &str| {
        for name in ["again", "told", "anew"] {
            fleet.write(&format!("files/owners/{name}"), content);
        }
    };
    let seen = |expected: &str| {
        for name in ["again", "told", "anew"] {
            let look = format!("stat -c '%a %u:%g' /etc/{name}; cat /etc/{name}");
            assert_eq!(
                inside(engine, "owners-api", &look),
                format!("400 1000:7\n{expected}"),
                "{name}, which its user alone can read"
            );
        }
    };
    let definition =
        |image: &str, keys: &str| service("owners", "owners", &[component("api", image, keys)]);
    write("first");
    fleet.write("services/owners.toml", &definition("v1", &keys));
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "owners"]).ok();
    settled(&fleet, "owners");
    seen("first");
    let id = container(engine, "owners-api").id;
    fleet.write("files/owners/told", "second");
    fleet.mcp(&["deploy", "owners"]).ok();
    assert_eq!(inside(engine, "owners-api", "cat /etc/told"), "second");
    fleet.write("files/owners/again", "second");
    fleet.mcp(&["deploy", "owners"]).ok();
    assert_eq!(
        container(engine, "owners-api").id,
        id,
        "restarted, not made anew"
    );
    write("second");
    fleet.mcp(&["deploy", "owners"]).ok();
    seen("second");
    settled(&fleet, "owners");
    // A restart that fails puts the old bytes back, owner and all.
    let dying = keys.replace(
        "user = \"1000:7\"\n",
        "user = \"1000:7\"\nready_for = \"1s\"\ncmd = [\"sh\", \"-c\", \"grep -q bad /etc/again && exit 1; exec /bin/pause\"]\n",
    );
    fleet.write("services/owners.toml", &definition("v1", &dying));
    fleet.mcp(&["deploy", "owners"]).ok();
    fleet.write("files/owners/again", "bad");
    fleet.mcp(&["deploy", "owners"]).exits(3);
    seen("second");
    // An id that the engine has not is refused by name; root's engines have them all.
    let beyond = keys.replace("owner = \"1000:7\"", "owner = \"4000000000:7\"");
    fleet.write("services/owners.toml", &definition("v1", &beyond));
    let answered = fleet.mcp(&["deploy", "owners"]);
    if lane == Lane::PodmanRootless {
        answered.exits(1).says("/etc/subuid");
    } else {
        answered.ok();
    }
}

fn limit_keys_work(lane: Lane) {
    let engine = lane.shared();
    let keys = r#"
resources = { memory = "64MiB", cpus = 0.5, pids = 100 }
cap_drop = ["ALL"]
cap_add = ["NET_BIND_SERVICE"]
"#;
    let _fleet = deployed(
        lane,
        "limits",
        &[component("api", "v1", keys), component("plain", "v1", "")],
    );
    let granted = u64::from_str_radix(
        &inside(
            engine,
            "limits-api",
            "sed -n 's/^CapEff:[[:space:]]*//p' /proc/1/status",
        ),
        16,
    )
    .unwrap();
    assert_eq!(granted, 1 << 10, "NET_BIND_SERVICE alone");
    // Without delegated cgroups a rootless podman drops limits, and says so in a warning of its own.
    if lane == Lane::PodmanRootless {
        return;
    }
    let host = container(engine, "limits-api").host_config.unwrap();
    assert_eq!(host.memory, Some(64 << 20));
    assert_eq!(host.pids_limit, Some(100));
    let cpus = host.nano_cpus.filter(|cpus| *cpus != 0);
    let quota = host
        .cpu_quota
        .zip(host.cpu_period)
        .map(|(quota, period)| quota * 1_000_000_000 / period.max(1));
    assert_eq!(cpus.or(quota), Some(500_000_000));
    assert_eq!(
        container(engine, "limits-plain")
            .host_config
            .unwrap()
            .pids_limit,
        Some(2048),
        "the default"
    );
}

fn stop_keys_work(lane: Lane) {
    let engine = lane.shared();
    let keys = r#"
stop_signal = "SIGUSR1"
stop_timeout = "7s"
volumes = ["out:/out"]
cmd = ["sh", "-c", "trap 'echo usr1 > /out/got; exit 0' USR1; while :; do sleep 60 & wait $!; done"]
"#;
    let fleet = deployed(
        lane,
        "stopping",
        &[
            component("api", "v1", keys),
            component("look", "v1", "volumes = [\"out:/out\"]\n"),
        ],
    );
    let config = container(engine, "stopping-api").config.unwrap();
    assert!(
        matches!(config.stop_signal.as_deref(), Some("SIGUSR1" | "10")),
        "{:?}",
        config.stop_signal
    );
    fleet.mcp(&["deploy", "stopping/api", "--force"]).ok();
    assert_eq!(
        inside(engine, "stopping-look", "cat /out/got"),
        "usr1",
        "the old one was told so"
    );
    drop(fleet);
    drop(engine.cli(&["volume", "rm", "--force", "stopping_out"]));
}

fn get(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
        .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.split_once("\r\n\r\n")
        .map(|(_, body)| body.trim().to_owned())
}

fn port_and_http_health_work(lane: Lane) {
    let port = free_port().unwrap();
    let keys = |path: &str| {
        format!(
            "cmd = [\"serve\", \"8080\"]\nports = [\"{port}:8080\"]\nhealth = {{ http = \"http://:8080{path}\", interval = \"1s\", retries = 2, start_period = \"3s\" }}\n"
        )
    };
    let fleet = deployed(lane, "http", &[component("api", "v1", &keys("/healthz"))]);
    assert_eq!(get(port, "/version").as_deref(), Some("v1"));
    eventually("it is seen healthy", Duration::from_secs(10), || {
        Ok((fleet.list()["http/api"]["health"] == "healthy").then_some(()))
    })
    .unwrap();
    let before = container(lane.shared(), "http-api").id;
    // A path that answers 404 is no health: the old one comes back, on the same port.
    fleet.write(
        "services/http.toml",
        &service("http", "http", &[component("api", "v2", &keys("/nothing"))]),
    );
    fleet.mcp(&["deploy", "http"]).exits(3);
    assert_eq!(container(lane.shared(), "http-api").id, before);
    eventually("the old one answers", Duration::from_secs(10), || {
        Ok(get(port, "/version").filter(|version| version == "v1"))
    })
    .unwrap();
}

fn tcp_health_works(lane: Lane) {
    let port = free_port().unwrap();
    let keys = |inner: u16| {
        format!(
            "cmd = [\"serve\", \"8080\"]\nports = [\"{port}:{inner}\"]\nhealth = {{ tcp = {inner}, interval = \"1s\", retries = 1, start_period = \"2s\" }}\n"
        )
    };
    let fleet = deployed(lane, "tcp", &[component("api", "v1", &keys(8080))]);
    let before = container(lane.shared(), "tcp-api").id;
    fleet.write(
        "services/tcp.toml",
        &service("tcp", "tcp", &[component("api", "v1", &keys(9999))]),
    );
    fleet.mcp(&["deploy", "tcp"]).exits(3);
    assert_eq!(
        container(lane.shared(), "tcp-api").id,
        before,
        "nobody listens on 9999, whatever the engine's proxy accepts"
    );
}

fn pull_keys_work(lane: Lane) {
    let engine = lane.shared();
    let registry = Registry::start().unwrap();
    let name = registry
        .push(engine, &format!("{BUSYBOX}:v1"), "pull:v1")
        .unwrap();
    let definition = |pull: &str| {
        let component = component("api", "v1", &format!("pull = \"{pull}\"\n"))
            .replace(&format!("{BUSYBOX}:v1"), &name);
        service("pull", "pull", &[component])
    };
    let fleet = Fleet::with_node(lane, "pull").unwrap();
    fleet.write("services/pull.toml", &definition("never"));
    fleet.mcp(&["sync"]).ok();
    let failed = fleet.mcp(&["deploy", "pull"]).exits(1);
    assert!(failed.stderr.contains("pull"), "{failed}");
    fleet.write("services/pull.toml", &definition("missing"));
    fleet.mcp(&["deploy", "pull"]).ok();
    settled(&fleet, "pull");
    assert_eq!(inside(engine, "pull-api", "cat /etc/version"), "v1");
    let listed = fleet.list()["pull/api"].clone();
    assert!(
        text(&listed, "image_digest").starts_with("sha256:"),
        "{listed}"
    );
    // The tag moves at the registry: `missing` keeps what is there, `always` looks.
    registry
        .push(engine, &format!("{BUSYBOX}:v2"), "pull:v1")
        .unwrap();
    fleet.mcp(&["deploy", "pull"]).ok();
    assert_eq!(inside(engine, "pull-api", "cat /etc/version"), "v1");
    fleet.write("services/pull.toml", &definition("always"));
    fleet.mcp(&["deploy", "pull"]).ok();
    assert_eq!(inside(engine, "pull-api", "cat /etc/version"), "v2");
    // By digest, which no tag can move.
    let digest = text(&fleet.list()["pull/api"], "image_digest").to_owned();
    let pinned = format!("{}@{digest}", name.trim_end_matches(":v1"));
    fleet.write(
        "services/pull.toml",
        &definition("missing").replace(&name, &pinned),
    );
    fleet.mcp(&["deploy", "pull"]).ok();
    assert_eq!(inside(engine, "pull-api", "cat /etc/version"), "v2");
    settled(&fleet, "pull");
}

fn restart_keys_work(lane: Lane) {
    let engine = lane.shared();
    let run = |restart: &str, code: u8| {
        format!(
            "restart = \"{restart}\"\nready_for = \"100ms\"\ncmd = [\"sh\", \"-c\", \"sleep 1; exit {code}\"]\n"
        )
    };
    let fleet = Fleet::with_node(lane, "again").unwrap();
    fleet.write(
        "services/again.toml",
        &service(
            "again",
            "again",
            &[
                component("no", "v1", &run("no", 1)),
                component("well", "v1", &run("on-failure", 0)),
                component("badly", "v1", &run("on-failure:1", 1)),
                component("always", "v1", &run("always", 0)),
            ],
        ),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "again"]).ok();
    let restarts = |name: &str| {
        fleet.list()[&format!("again/{name}")]["restarts"]
            .as_u64()
            .unwrap()
    };
    eventually(
        "those that may be restarted are",
        Duration::from_secs(15),
        || Ok((restarts("badly") == 1 && restarts("always") >= 1).then_some(())),
    )
    .unwrap();
    assert_eq!((restarts("no"), restarts("well")), (0, 0));
    for name in ["no", "well", "badly", "always"] {
        let policy = container(engine, &format!("again-{name}"))
            .host_config
            .unwrap()
            .restart_policy
            .unwrap()
            .name
            .unwrap();
        assert!(
            matches!(policy.to_string().as_str(), "no" | ""),
            "the engine's own is off: {policy}"
        );
    }
}
