//! A component with every key, for the tests of both compilers.

use std::collections::BTreeMap;

use mcp_spec::definition::{DefinitionFile, parse_one};
use mcp_spec::image::Digest;
use mcp_spec::observed::ImageId;

use super::super::ContainerRequest;

const EVERY_KEY: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "web"
image = "registry.example.net/web:v1"
entrypoint = ["/bin/web"]
cmd = ["--port", "8080"]
env = { A = 1, B = "two words" }
user = "1000:1000"
workdir = "/srv"
hostname = "hosty"
networks = { shop = {}, back = { aliases = ["w"] } }
ports = ["127.0.0.1:18080:8080", "127.0.0.1:18081:8080"]
volumes = ["/srv/shop:/data:ro", "cache:/cache"]
tmpfs = ["/scratch:size=1m,exec"]
init = true
resources = { memory = "64MiB", cpus = 0.5, pids = 99 }
read_only = true
cap_add = ["NET_RAW"]
cap_drop = ["CHOWN"]
labels = { x = "y" }
stop_signal = "SIGINT"
stop_timeout = "7s"
extra_hosts = { db = "10.1.2.3" }
dns = ["10.9.9.9"]
devices = ["/dev/fuse:/dev/f:rw"]
ulimits = { nofile = 100, core = "0:unlimited" }
sysctls = { "net.core.somaxconn" = 7 }
log = { driver = "json-file", options = { max-size = "10m" } }
[components.health]
cmd = ["/bin/web", "check"]
timeout = "2s"
"#;

/// The request for it.
pub(super) fn every_key() -> ContainerRequest {
    let file = DefinitionFile {
        path: "services/shop.toml",
        bytes: EVERY_KEY.as_bytes(),
    };
    let (spec, errors) = parse_one(file, &|path| Some(Digest::of(path.as_bytes())));
    assert!(
        errors.is_empty(),
        "{}",
        errors.iter().map(|it| it.render()).collect::<String>()
    );
    let (_, spec) = spec.unwrap().components.into_iter().next().unwrap();
    ContainerRequest {
        name: "shop-web".to_owned(),
        image: ImageId::new("sha256:ff"),
        spec,
        labels: BTreeMap::from([("mcp.node".to_owned(), "rift".to_owned())]),
        files: BTreeMap::from([("/etc/web.toml".to_owned(), "/var/lib/mcp/web.toml".into())]),
        secret_env: BTreeMap::new(),
    }
}
