//! Keys that reach into the node: refused until the node's owner allows them, then at work.

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::Lane;
use mcp_tests::fleet::Fleet;

use crate::{container, inside, settled};

mcp_tests::lanes!(
    keys_that_reach_into_the_node_need_the_owner_s_word,
    allowed_keys_take_effect,
    what_this_engine_cannot_do_is_refused_by_name,
    planned_keys_are_refused_by_name,
);

/// The policy of an owner who allows what `allowed_keys_take_effect` asks for.
const OPEN: &str = r#"[policy]
devices        = ["/dev/null", "/dev/zero"]
security_opt   = ["no-new-privileges=false", "seccomp=unconfined", "systempaths=unconfined"]
privileged     = true
"#;

fn keys_that_reach_into_the_node_need_the_owner_s_word(lane: Lane) {
    let fleet = Fleet::with_node(lane, "closed").unwrap();
    for (keys, refusal) in [
        (
            "devices = [\"/dev/fuse\"]",
            "device /dev/fuse outside policy.devices",
        ),
        (
            "privileged = true",
            "privileged refused by policy.privileged",
        ),
        (
            "security_opt = [\"seccomp=unconfined\"]",
            "security option seccomp=unconfined outside policy.security_opt",
        ),
        (
            "security_opt = [\"no-new-privileges:false\"]",
            "security option no-new-privileges=false outside policy.security_opt",
        ),
        (
            "log = { driver = \"syslog\" }",
            "log driver syslog outside policy.log_drivers",
        ),
    ] {
        let keys = format!("{keys}\n");
        fleet.write(
            "services/closed.toml",
            &service("closed", "closed", &[component("api", "v1", &keys)]),
        );
        fleet.mcp(&["service", "check"]).ok();
        let refused = fleet.mcp(&["deploy", "closed"]);
        assert_ne!(refused.code, Some(0), "{refused}");
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains(refusal), "{refusal}: {refused}");
        assert!(
            said.contains("[policy]"),
            "and where the owner allows it: {refused}"
        );
    }
    assert!(fleet.node("closed").containers().unwrap().is_empty());
}

fn allowed_keys_take_effect(lane: Lane) {
    let engine = lane.shared();
    let mut fleet = Fleet::with_node(lane, "open").unwrap();
    fleet.set_policy("open", OPEN).unwrap();
    let permissions = if lane == Lane::PodmanRootless {
        ""
    } else {
        ":r"
    };
    let devices =
        format!("devices = [\"/dev/null:/dev/nothing\", \"/dev/zero:/dev/naught{permissions}\"]\n");
    // Both, since podman raises the one that is left out to the most that it may have.
    let limits = "ulimits = { nofile = { soft = 100, hard = 200 }, nproc = 300, core = 0 }\n";
    let kernel = "sysctls = { \"net.ipv4.ip_default_ttl\" = 33, \"kernel.msgmax\" = 4096 }\n";
    let bare = "security_opt = [\"no-new-privileges=false\", \"seccomp:unconfined\", \"systempaths=unconfined\"]\n";
    let options = match lane {
        Lane::Docker => "{ max-size = \"1m\", max-file = 2 }",
        Lane::PodmanRoot | Lane::PodmanRootless => "{ max-size = \"1m\" }",
    };
    let logged = format!("log = {{ driver = \"json-file\", options = {options} }}\n");
    let mut components = vec![
        component("devices", "v1", &devices),
        component("limits", "v1", limits),
        component("kernel", "v1", kernel),
        component("bare", "v1", bare),
        component("logged", "v1", &logged),
        component(
            "silent",
            "v1",
            "log = { driver = \"none\" }\nupdate = \"stop-first\"\n",
        ),
    ];
    // Docker's runtime here has not the right to give every capability: the runtime's own tests
    // look at what it would be given.
    if lane != Lane::Docker {
        components.push(component("mighty", "v1", "privileged = true\n"));
    }
    fleet.write("services/open.toml", &service("open", "open", &components));
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "open"]).ok();
    settled(&fleet, "open");

    assert_eq!(
        inside(
            engine,
            "open-devices",
            "ls -l /dev/nothing /dev/naught | cut -c1; head -c2 /dev/naught | od -An -tx1"
        ),
        "c\nc\n 00 00"
    );
    if lane == Lane::Docker {
        let given = container(engine, "open-devices")
            .host_config
            .unwrap()
            .devices
            .unwrap();
        let permissions: Vec<_> = given
            .iter()
            .filter_map(|it| it.cgroup_permissions.as_deref())
            .collect();
        assert_eq!(permissions, ["r", "rwm"]);
    }
    // Of the first process: what an exec starts may raise its own to the hard limit.
    let limits = inside(engine, "open-limits", "cat /proc/1/limits");
    for (name, soft, hard) in [
        ("Max open files", "100", "200"),
        ("Max processes", "300", "300"),
        ("Max core file size", "0", "0"),
    ] {
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        let values: Vec<&str> = line.split_whitespace().take(2).collect();
        assert_eq!(values, [soft, hard], "{name}");
    }
    assert_eq!(
        inside(
            engine,
            "open-kernel",
            "cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/msgmax"
        ),
        "33\n4096"
    );
    assert_eq!(
        inside(
            engine,
            "open-bare",
            "grep -E '^(NoNewPrivs|Seccomp):' /proc/1/status | tr -d '\\t'; mount | grep ' /proc/' | wc -l"
        ),
        "NoNewPrivs:0\nSeccomp:0\n0"
    );
    let confined = inside(
        engine,
        "open-kernel",
        "grep -E '^(NoNewPrivs|Seccomp):' /proc/1/status | tr -d '\\t'",
    );
    assert_eq!(
        confined, "NoNewPrivs:1\nSeccomp:2",
        "as all that ask for nothing"
    );
    let logs = |name: &str| {
        container(engine, name)
            .host_config
            .unwrap()
            .log_config
            .unwrap()
    };
    assert_eq!(logs("open-logged").typ.as_deref(), Some("json-file"));
    assert_eq!(logs("open-silent").typ.as_deref(), Some("none"));
    if lane == Lane::Docker {
        assert_eq!(logs("open-logged").config.unwrap()["max-size"], "1m");
    } else {
        assert_eq!(
            inside(
                engine,
                "open-mighty",
                "sed -n 's/^CapBnd:[[:space:]]*0*//p' /proc/1/status"
            )
            .len(),
            "1ffffffffff".len(),
            "every capability that there is"
        );
    }
    // A change of one is told by its name, and touches that component alone.
    fleet.edit("services/open.toml", "hard = 200", "hard = 180");
    let plan = fleet.mcp(&["plan", "open"]);
    assert!(
        plan.stdout.contains("ulimits.nofile  100:200 -> 100:180"),
        "{plan}"
    );
    // Written back from the registry, it is the same service.
    let exported = fleet
        .mcp(&["service", "export", "open", "--format", "toml"])
        .ok()
        .stdout;
    for key in ["devices", "ulimits", "sysctls", "security_opt", "log"] {
        assert!(
            exported
                .lines()
                .any(|line| line.trim_start().starts_with(key)),
            "{key} in\n{exported}"
        );
    }
}

fn what_this_engine_cannot_do_is_refused_by_name(lane: Lane) {
    let mut fleet = Fleet::with_node(lane, "cannot").unwrap();
    fleet.set_policy("cannot", OPEN).unwrap();
    let mut refused: Vec<(&str, &str)> = vec![
        (
            "user = \"nosuch\"",
            "`user = \"nosuch\"` cannot be had: the image knows no user `nosuch` (/etc/passwd)",
        ),
        (
            "user = \"app:nosuch\"",
            "the image knows no group `nosuch` (/etc/group)",
        ),
        (
            "cmd = []",
            "`cmd = []` cannot be had: the image has no entry point",
        ),
    ];
    match lane {
        Lane::Docker => refused.push(("log = { driver = \"k8s-file\" }", "k8s-file")),
        Lane::PodmanRoot | Lane::PodmanRootless => {
            refused.push((
                "log = { driver = \"local\" }",
                "this engine cannot do log.driver = \"local\"",
            ));
            refused.push((
                "log = { driver = \"k8s-file\", options = { max-file = 3 } }",
                "this engine cannot do log.options.max-file",
            ));
        }
    }
    if lane == Lane::PodmanRootless {
        refused.push((
            "devices = [\"/dev/null:/dev/nothing:r\"]",
            "this engine cannot do `r` for the device /dev/null",
        ));
        refused.push(("ulimits = { nofile = 1073741824 }", "its own hard limit is"));
    }
    // An old one runs, and goes on running: all of this is found out before it is stopped.
    fleet.write(
        "services/cannot.toml",
        &service("cannot", "cannot", &[component("api", "v1", "")]),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "cannot"]).ok();
    let before = container(lane.shared(), "cannot-api");
    for (keys, message) in refused {
        fleet.write(
            "services/cannot.toml",
            &service(
                "cannot",
                "cannot",
                &[component("api", "v1", &format!("{keys}\n"))],
            ),
        );
        let failed = fleet.mcp(&["deploy", "cannot"]).exits(1);
        assert!(failed.stderr.contains(message), "{message}: {failed}");
        let now = container(lane.shared(), "cannot-api");
        assert_eq!(
            (now.id, now.restart_count),
            (before.id.clone(), before.restart_count)
        );
        assert_eq!(
            now.state.unwrap().started_at,
            before.state.as_ref().unwrap().started_at,
            "{keys}"
        );
        assert_eq!(
            fleet.node("cannot").containers().unwrap().len(),
            1,
            "nothing is left over"
        );
    }
}

fn planned_keys_are_refused_by_name(lane: Lane) {
    let fleet = Fleet::with_node(lane, "tier").unwrap();
    let (key, name) = ("update = \"start-first\"", "`update = \"start-first\"`");
    fleet.write(
        "services/tier.toml",
        &service(
            "tier",
            "tier",
            &[component("api", "v1", &format!("{key}\n"))],
        ),
    );
    let refused = fleet.mcp(&["service", "check"]);
    assert_ne!(refused.code, Some(0), "{key}");
    assert!(
        format!("{}{}", refused.stdout, refused.stderr).contains(name),
        "{key}: {refused}"
    );
}
