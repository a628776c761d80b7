//! Digests that are stored on nodes: no release may change them without a new encoding version.

use super::*;
use crate::definition::{DefinitionFile, parse_one};

/// Every key that encoding version 1 began with.
const FIRST: &str = r#"
name = "shop"
node = "rift"

[[components]]
name = "least"
image = "web:v1"

[[components]]
name = "most"
image = "registry.example.net:5000/shop/web:v1.4.0"
pull = "always"
entrypoint = ["/bin/web"]
cmd = ["--port", "8080"]
env = { A = 1, B = "two words", C = "" }
user = "1000:1000"
workdir = "/srv"
hostname = "hosty"
networks = { shop = {}, back = { aliases = ["w"] } }
ports = ["127.0.0.1:18080:8080", "[::1]:18081-18083:8081-8083/udp"]
volumes = ["/srv/shop:/data:ro", "cache:/cache", "volume:other:/other"]
tmpfs = ["/scratch:size=1m,exec"]
files = [{ from = "files/shop/web.toml", to = "/etc/web.toml", mode = "0600", owner = "7:8", on_change = "signal:HUP" }]
restart = "on-failure:3"
init = true
depends_on = ["least"]
resources = { memory = "64MiB", cpus = 0.5, pids = 99 }
read_only = true
cap_add = ["NET_RAW"]
cap_drop = ["CHOWN"]
labels = { x = "y" }
stop_signal = "SIGINT"
stop_timeout = "7s"
extra_hosts = { db = "10.1.2.3", gw = "host-gateway" }
dns = ["10.9.9.9"]
ready_for = "1s"
health = { http = "http://:8080/healthz", timeout = "2s" }

[[components]]
name = "task"
image = "web:v1"
kind = "job"
exit_codes = [0, 3]
network = "none"
health = { cmd = ["/bin/check"] }

[[components]]
name = "hosted"
image = "web@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
network = "host"
health = { tcp = 80 }
"#;

fn digests(text: &str) -> BTreeMap<String, String> {
    let file = DefinitionFile {
        path: "services/shop.toml",
        bytes: text.as_bytes(),
    };
    let (spec, errors) = parse_one(file, &|path| Some(Digest::of(path.as_bytes())));
    assert!(errors.is_empty(), "{errors:#?}");
    spec.unwrap()
        .components
        .iter()
        .map(|(name, spec)| (name.to_string(), spec.digest().to_string()))
        .collect()
}

#[test]
fn digests_of_specs_that_use_no_newer_key_never_change() {
    let expected = [
        (
            "hosted",
            "sha256:801beec1a33a42dfb831e76c97ae353a81542aeaf807c6aad7cc5323e1864f39",
        ),
        (
            "least",
            "sha256:9f1bbadb5836c0bc08a7193b41c67988ba1beb0af63f043eb2c6acf52fa3d6a7",
        ),
        (
            "most",
            "sha256:c2db3918b1e7f680c533e8279c210e89f15853c076c4def9a3c26e47fa5e65cc",
        ),
        (
            "task",
            "sha256:a65852781eec1533ff00440fe727684c2f17d79e7238eb5ffd046ed2ad04ee7e",
        ),
    ];
    let expected = expected.map(|(name, digest)| (name.to_owned(), digest.to_owned()));
    assert_eq!(digests(FIRST), BTreeMap::from(expected));
}

#[test]
fn each_newer_key_is_part_of_the_digest() {
    let component = |key: &str| {
        let text = format!(
            "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"least\"\nimage = \"web:v1\"\n{key}\n"
        );
        digests(&text).remove("least").unwrap()
    };
    let plain = component("");
    for same in [
        "devices = []",
        "ulimits = {}",
        "sysctls = {}",
        "security_opt = [\"no-new-privileges\"]",
        "privileged = false",
        "update = \"stop-first\"",
    ] {
        assert_eq!(component(same), plain, "{same}");
    }
    for other in [
        "devices = [\"/dev/fuse\"]",
        "ulimits = { nofile = 1 }",
        "sysctls = { \"net.core.somaxconn\" = 1 }",
        "security_opt = [\"seccomp=unconfined\"]",
        "privileged = true",
        "log = { driver = \"none\" }",
        "entrypoint = []",
        "cmd = []",
        "health = { http = \"https://:1/\" }",
    ] {
        assert_ne!(component(other), plain, "{other}");
    }
    assert_ne!(
        component("health = { http = \"https://:1/\" }"),
        component("health = { http = \"http://:1/\" }")
    );
}
