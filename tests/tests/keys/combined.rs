//! Every key together with the others, odd values among them, asked twice and after the engine was away: no
//! drift and nothing to do.

use std::time::Duration;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{BUSYBOX, Engine, Lane, eventually};
use mcp_tests::fleet::{Fleet, text};
use mcp_tests::registry::free_port;

use crate::{container, inside, settled};

mcp_tests::lanes!(every_key_in_combination_shows_no_drift);

/// An image that brings everything that an image can bring.
const LADEN: &str = "localhost/laden";

/// An engine that nobody shares, since it is killed.
fn own_engine(lane: Lane) -> &'static Engine {
    let engine = Engine::start(lane).unwrap();
    engine
        .import_version(&format!("{BUSYBOX}:v1"), "v1", "busybox", &[])
        .unwrap();
    let dir = engine.dir().join("tmp/laden");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(
        dir.join("Dockerfile"),
        format!(
            "FROM {BUSYBOX}:v1\nENTRYPOINT [\"/bin/sh\", \"-c\", \"echo entry $0 $*; exec /bin/pause\"]\nCMD [\"image\"]\n\
             USER 1000\nENV FROM_IMAGE=1\nVOLUME /image-volume\nSTOPSIGNAL SIGINT\nWORKDIR /srv\nLABEL of=image mcp.node=forged\n\
             EXPOSE 8080\nHEALTHCHECK --interval=1s --retries=1 CMD /bin/false\n"
        ),
    )
    .unwrap();
    engine.give(&engine.dir().join("tmp")).unwrap();
    let mut build = vec!["build", "--quiet", "--tag", LADEN];
    if lane != Lane::Docker {
        build.extend(["--format", "docker"]);
    }
    build.push(dir.to_str().unwrap());
    engine.cli(&build).unwrap();
    engine.enter().unwrap();
    // Lives as long as the process; the reaper takes it away after that.
    Box::leak(Box::new(engine))
}

fn laden(name: &str, keys: &str) -> String {
    component(name, "v1", keys).replace(&format!("{BUSYBOX}:v1"), LADEN)
}

fn toml(text: &str) -> String {
    // A Rust string escapes as TOML does, but for the braces of \u{..}.
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
        out
    })
}

fn every_key_in_combination_shows_no_drift(lane: Lane) {
    let engine = own_engine(lane);
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, "every").unwrap();
    let srv = fleet.node("every").services_dir().join("every");
    let odd = srv.join("with blank, é and =");
    let rw = srv.join("rw");
    for folder in [&odd, &rw] {
        std::fs::create_dir_all(folder).unwrap();
    }
    engine.give(&srv).unwrap();
    let [first, second, third, fourth] = [(); 4].map(|()| free_port().unwrap());
    let (low, high) = run_of_ports();
    let long = "x".repeat(64 << 10);
    let several_lines = "one\ntwo = \"three\"\t'four' \\ é €𝄞 $HOME ${X} `id`";
    let owner = ", owner = \"1000:1000\"";
    let all = format!(
        r#"
entrypoint = ["/bin/sh", "-c"]
cmd = ["trap 'exit 0' USR1; echo on; while :; do sleep 3600 & wait $!; done", "argument with blanks", ""]
user = "app:1000"
workdir = "/made/up/for this"
hostname = "host.example.net"
networks = {{ every = {{}}, backbone = {{ aliases = ["front_end", "every.internal"] }} }}
ports = ["{first}:8080", "127.0.0.2:{first}:8080", "{low}-{high}:9000-9002", "{second}:8080/udp", "{third}:8081/udp"]
volumes = ["{odd}:/data/with blank é:ro", "{rw}:/rw", "cache:/cache", "cache:/cache-again:ro", "volume:every_other.name:/other"]
tmpfs = ["/scratch:size=1m,mode=1777,exec", "/tmp"]
files = [
  {{ from = "files/every/app.toml", to = "/etc/app.toml", mode = "0440"{owner} }},
  {{ from = "files/every/a b é.txt", to = "/etc/with blank/é.txt" }},
]
restart = "always"
init = true
depends_on = ["least"]
resources = {{ memory = "32MiB", cpus = 0.5, pids = 20 }}
read_only = false
cap_add = ["cap_net_raw", "CAP_CHOWN", "SETUID"]
cap_drop = ["MKNOD", "CAP_KILL"]
labels = {{ plain = "1", "with.dots/and blank" = "é = \"x\"", empty = "" }}
stop_signal = 10
stop_timeout = "1500ms"
extra_hosts = ["db.example.net:10.9.8.7", "six:2001:db8::7"]
dns = ["10.9.8.6", "10.9.8.5"]
ready_for = "100ms"
ulimits = {{ nofile = "100:200", nproc = 300 }}
sysctls = {{ "net.ipv4.ip_default_ttl" = 33 }}
log = {{ driver = "json-file", options = {{ max-size = "1m" }} }}
security_opt = ["no-new-privileges"]
env = {{ LINES_ = "{lines}", EQUALS = "a=b==", EMPTY = "", LONG = "{long}", "with.dot" = 1, NEGATIVE = -7, HEX = 0x10, FLOAT = 1.50, ON = true, PATH = "/bin:/sbin" }}
"#,
        odd = odd.display(),
        rw = rw.display(),
        lines = toml(several_lines),
    );
    // The allowance for a raw socket is the owner's to give.
    allow_net_raw(&mut fleet);
    fleet.write("files/every/app.toml", "key = 1\n");
    fleet.write("files/every/a b é.txt", "odd\n");
    let probed = format!(
        "cmd = [\"serve\", \"8080\"]\nports = [\"[::1]:{fourth}:8080\"]\nhealth = {{ cmd = [\"sh\", \"-c\", \"wget -q -O - http://127.0.0.1:8080/version\"], interval = \"1s\", timeout = \"5s\", retries = 5, start_period = \"10s\" }}\n"
    );
    // IPv6 on the loopback is the machine's to have.
    let probed = if std::net::TcpListener::bind("[::1]:0").is_ok() && lane != Lane::PodmanRootless {
        probed
    } else {
        probed.replace("[::1]", "127.0.0.3")
    };
    let strict = "read_only = true\ntmpfs = [\"/tmp:size=64k\"]\ncap_drop = [\"ALL\"]\nnetwork = \"none\"\nrestart = \"no\"\nstop_signal = \"rtmin+3\"\nresources = { cpus = 1, memory = \"1.5GiB\", pids = 4194304 }\n";
    let image = "cmd = [\"mine\"]\n";
    let components = [
        component("least", "v1", ""),
        component("most", "v1", &all),
        component("probed", "v1", &probed),
        component("strict", "v1", strict),
        component(
            "bridged",
            "v1",
            "network = \"bridge\"\nrestart = \"on-failure:3\"\n",
        ),
        component(
            "task",
            "v1",
            "kind = \"job\"\nexit_codes = [0, 7]\ncmd = [\"sh\", \"-c\", \"exit 7\"]\n",
        ),
        laden("laden", image),
        laden(
            "cleared",
            "entrypoint = []\ncmd = [\"/bin/pause\"]\nuser = \"0\"\nstop_signal = \"TERM\"\nworkdir = \"/\"\nenv = { FROM_IMAGE = \"2\" }\nlabels = { of = \"mine\" }\n",
        ),
        laden("bare", "cmd = []\n"),
        laden("whole", "cmd = [\"image\"]\n").replace("cmd = [\"image\"]\n", ""),
    ];
    fleet.write(
        "services/every.toml",
        &service("every", "every", &components),
    );
    // The same network, by another service.
    fleet.write(
        "services/other.toml",
        &service(
            "other",
            "every",
            &[component(
                "peer",
                "v1",
                "networks = { backbone = { aliases = [\"peer.internal\"] } }\n",
            )],
        ),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "every"]).ok();
    fleet.mcp(&["deploy", "other"]).ok();
    settled(&fleet, "every");
    settled(&fleet, "other");

    let env = inside(engine, "every-most", "cat /proc/1/environ | tr '\\0' '\\1'");
    let env: Vec<&str> = env.split('\u{1}').collect();
    for expected in [
        format!("LINES_={several_lines}"),
        "EQUALS=a=b==".to_owned(),
        "EMPTY=".to_owned(),
        format!("LONG={long}"),
        "with.dot=1".to_owned(),
        "NEGATIVE=-7".to_owned(),
        "HEX=16".to_owned(),
        "FLOAT=1.50".to_owned(),
        "ON=true".to_owned(),
    ] {
        assert!(
            env.contains(&expected.as_str()),
            "{}",
            &expected[..expected.len().min(80)]
        );
    }
    assert_eq!(
        inside(engine, "every-most", "id -u; id -g; pwd; hostname"),
        "1000\n1000\n/made/up/for this\nhost.example.net"
    );
    assert_eq!(
        inside(
            engine,
            "every-most",
            "stat -c '%a %u:%g' /etc/app.toml; cat /etc/app.toml '/etc/with blank/é.txt'"
        ),
        "440 1000:1000\nkey = 1\nodd"
    );
    assert_eq!(
        inside(
            engine,
            "every-most",
            "ls -d '/data/with blank é' /cache /cache-again /other | wc -l"
        ),
        "4"
    );
    let hosts = inside(engine, "every-most", "cat /etc/hosts");
    for line in ["10.9.8.7", "2001:db8::7"] {
        assert!(
            hosts.lines().any(|it| it.starts_with(line)),
            "{line} in {hosts}"
        );
    }
    assert!(
        inside(
            engine,
            "every-most",
            "grep -c . /proc/1/cmdline; cat /proc/1/comm"
        )
        .contains("init")
    );
    let seen = container(engine, "every-most").config.unwrap();
    assert_eq!(
        seen.labels.as_ref().unwrap()["with.dots/and blank"],
        "é = \"x\""
    );
    assert_eq!(seen.labels.as_ref().unwrap()["mcp.node"], "every");
    // What the image brings, overridden, taken away, or left.
    let logs = |name: &str| engine.cli(&["logs", name]).unwrap();
    eventually("entry points speak", Duration::from_secs(10), || {
        Ok((logs("every-laden").contains("entry mine")
            && logs("every-whole").contains("entry image")
            && logs("every-bare")
                .lines()
                .any(|line| line.trim_end() == "entry /bin/sh" || line.trim_end() == "entry sh"))
        .then_some(()))
    })
    .unwrap_or_else(|error| {
        panic!(
            "{error}\n{}\n{}\n{}",
            logs("every-laden"),
            logs("every-whole"),
            logs("every-bare")
        )
    });
    assert!(
        !logs("every-cleared").contains("entry"),
        "{}",
        logs("every-cleared")
    );
    assert_eq!(
        inside(engine, "every-cleared", "id -u; pwd; echo $FROM_IMAGE"),
        "0\n/\n2"
    );
    assert_eq!(
        inside(engine, "every-laden", "id -u; pwd; echo $FROM_IMAGE"),
        "1000\n/srv\n1"
    );
    assert_eq!(
        fleet.list()["every/laden"]["health"],
        fleet.list()["every/least"]["health"],
        "an image's own check is not asked"
    );
    assert_eq!(
        container(engine, "every-laden")
            .config
            .unwrap()
            .labels
            .unwrap()["mcp.node"],
        "every",
        "an image cannot forge the agent's labels"
    );
    assert_eq!(
        text(&fleet.list()["every/task"], "observed_state"),
        "completed"
    );

    // Once more after the engine was away, whatever became of its containers meanwhile.
    engine.restart().unwrap();
    // What may stay ended, as its restart key says, is no drift either way.
    eventually("everything runs again", Duration::from_secs(90), || {
        let listed = fleet.list();
        Ok([
            "least", "most", "probed", "laden", "cleared", "bare", "whole",
        ]
        .iter()
        .all(|name| text(&listed[&format!("every/{name}")], "observed_state") == "running")
        .then_some(()))
    })
    .unwrap_or_else(|error| {
        panic!(
            "{error}\n{:#?}\n{}",
            fleet.list(),
            fleet.node("every").log()
        )
    });
    for service in ["every", "other"] {
        for _ in 0..2 {
            fleet.mcp(&["drift", service]).ok();
        }
        fleet.mcp(&["plan", service, "--exit-code"]).exits(0);
    }
}

/// Three ports in a row that nobody has.
fn run_of_ports() -> (u16, u16) {
    loop {
        let low = free_port().unwrap();
        let free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
        if low < u16::MAX - 2 && free(low + 1) && free(low + 2) {
            return (low, low + 2);
        }
    }
}

fn allow_net_raw(fleet: &mut Fleet) {
    let config = fleet.node("every").config();
    fleet.node_mut("every").terminate().unwrap();
    let text = std::fs::read_to_string(&config).unwrap();
    let open = text
        .replace("capabilities   = []", "capabilities   = [\"NET_RAW\"]")
        .replace(
            "[\"127.0.0.1:1024-65535\"",
            "[\"127.0.0.2:1024-65535\", \"127.0.0.3:1024-65535\", \"127.0.0.1:1024-65535\"",
        );
    assert_ne!(open, text);
    std::fs::write(&config, open).unwrap();
    fleet.node_mut("every").serve().unwrap();
}
