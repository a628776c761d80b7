//! What was recorded of containers that nobody made for the agent.

use serde_json::Value;

use super::*;

const DOCKER: &str = include_str!("../recorded/docker-foreign.json");
const PODMAN: &str = include_str!("../recorded/podman-foreign.json");

fn key() -> ComponentKey {
    ComponentKey::new("shop".parse().unwrap(), "web".parse().unwrap())
}

fn captured_of(recorded: &Value) -> Captured {
    let (container, image) = (&recorded["container"], &recorded["image"]);
    let answers = Answers {
        container,
        image,
        libpod: recorded.get("libpod"),
        limits: true,
    };
    captured(&answers, &image_of(container, image).unwrap(), &key())
}

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn fields(captured: &Captured) -> Vec<&str> {
    let fields = captured.departures.iter();
    fields.map(|change| change.field.as_str()).collect()
}

#[test]
fn both_engines_give_one_definition() {
    for recorded in [DOCKER, PODMAN] {
        let it = captured_of(&read(recorded));
        let spec = &it.spec;
        assert_eq!(spec.image.to_string(), "localhost/bb:v1");
        assert_eq!(spec.entrypoint, None);
        assert_eq!(spec.cmd, Some(vec!["sleep".to_owned(), "2000".to_owned()]));
        let env: Vec<&str> = spec.env.keys().map(String::as_str).collect();
        assert_eq!(env, ["A", "PASSWORD"], "what the image has is left out");
        assert_eq!(spec.user.as_deref(), Some("0:0"));
        assert_eq!(spec.workdir.as_deref(), Some("/tmp"));
        assert_eq!(spec.hostname.as_deref(), Some("hh"));
        assert_eq!(spec.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(spec.stop_timeout, Span::from_secs(5));
        assert_eq!(spec.restart, Restart::Always);
        assert_eq!(spec.resources.memory_bytes, Some(64 << 20));
        assert_eq!(spec.resources.cpu_millis, Some(500));
        assert_eq!(spec.resources.pids, 99);
        assert_eq!(spec.labels.len(), 1);
        assert!(spec.init && spec.read_only);
        assert_eq!(spec.extra_hosts["db"], "10.0.0.1");
        assert_eq!(spec.dns.len(), 1);
        assert!(spec.cap_add.contains("NET_ADMIN") && spec.cap_drop.contains("CHOWN"));
        let ports: Vec<String> = spec.ports.iter().map(ToString::to_string).collect();
        assert!(
            ports.contains(&"127.0.0.1:18080:8080/tcp".to_owned()),
            "{ports:?}"
        );
        assert_eq!(ports.len(), 2, "the engine's choice is kept: {ports:?}");
        assert_eq!(
            spec.volumes["/data"].source,
            VolumeSource::Named("data".to_owned())
        );
        assert!(spec.volumes["/t"].read_only);
        assert!(spec.volumes.contains_key("/anon"), "its data is not lost");
        let options = &spec.tmpfs["/scr"].options;
        assert_eq!(options.iter().collect::<Vec<_>>(), ["size=1m"]);
        let Network::User(attachments) = &spec.network else {
            panic!("it is on a network of its own");
        };
        assert!(attachments["shop"].aliases.contains("w"));
        let health = spec.health.as_ref().unwrap();
        assert_eq!(health.interval, Span::from_secs(7));
        assert_eq!(health.retries, 3);
        assert_eq!(
            spec.ulimits["nofile"],
            Ulimit {
                soft: Some(100),
                hard: Some(200)
            }
        );
        let departures = fields(&it);
        for field in [
            "no_new_privileges",
            "capabilities",
            "restart",
            "networks.shop",
        ] {
            assert!(departures.contains(&field), "{field}: {departures:?}");
        }
        assert!(it.warnings.iter().any(|it| it.contains("PASSWORD")));
        assert!(it.warnings.iter().any(|it| it.starts_with("volume /anon")));
    }
}

#[test]
fn what_docker_alone_tells_is_captured_too() {
    let it = captured_of(&read(DOCKER));
    assert_eq!(it.spec.sysctls["net.core.somaxconn"], "7");
    assert_eq!(it.spec.log.unwrap().options["max-size"], "10m");
    assert!(
        it.departures
            .iter()
            .all(|change| change.to.is_some() || change.field == "capabilities")
    );
}

#[test]
fn limits_that_podman_sets_by_itself_are_left_out() {
    let it = captured_of(&read(PODMAN));
    assert_eq!(it.spec.ulimits.keys().collect::<Vec<_>>(), ["nofile"]);
    let mut raw = read(PODMAN);
    raw["container"]["HostConfig"]["Ulimits"] = serde_json::json!([
        { "Name": "RLIMIT_NOFILE", "Soft": 4096, "Hard": 4096 },
        { "Name": "RLIMIT_NPROC", "Soft": 4096, "Hard": 4096 }
    ]);
    assert!(captured_of(&raw).spec.ulimits.is_empty());
}

#[test]
fn what_no_definition_can_say_is_named() {
    let mut raw = read(DOCKER);
    let host = &mut raw["container"]["HostConfig"];
    host["Links"] = serde_json::json!(["/db:/shop-web/db"]);
    host["PidMode"] = "host".into();
    host["ShmSize"] = 1.into();
    host["AutoRemove"] = true.into();
    host["DnsSearch"] = serde_json::json!(["example.net"]);
    host["PidsLimit"] = Value::Null;
    raw["container"]["Config"]["Tty"] = true.into();
    raw["container"]["Config"]["Labels"] = serde_json::json!({
        "com.docker.compose.project": "old", "com.docker.compose.service": "web"
    });
    let it = captured_of(&raw);
    let departures = fields(&it);
    for field in [
        "links",
        "pid_mode",
        "shm_size",
        AUTO_REMOVE,
        "dns_search",
        "tty",
        "labels.compose",
        "resources.pids",
    ] {
        assert!(departures.contains(&field), "{field}: {departures:?}");
    }
    assert!(it.spec.labels.is_empty());
}

#[test]
fn an_image_without_a_name_is_named_by_its_tags() {
    let mut raw = read(DOCKER);
    let id = raw["image"]["Id"].clone();
    raw["container"]["Config"]["Image"] = id;
    let named = image_of(&raw["container"], &raw["image"]);
    assert_eq!(named.unwrap().to_string(), "localhost/bb:v1");
    raw["image"]["RepoTags"] = serde_json::json!(["localhost/mcp-keep/shop:1"]);
    assert_eq!(image_of(&raw["container"], &raw["image"]), None);
}
