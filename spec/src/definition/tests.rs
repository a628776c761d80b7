//! The rules of the definition format, seen from outside.

use super::*;
use crate::component::*;

/// The example that the documentation quotes.
pub(crate) const EXAMPLE: &str = r#"
name   = "metacrypt"            # must equal the file's stem: services/metacrypt.toml
node   = "rift"                 # the one agent that runs it
active = true                   # false: every component's desired state is `stopped`

[[components]]
name    = "api"
image   = "registry.example.net:5000/metacrypt:v1.4.0"
network = "metacrypt"           # the service's own network, also the default
user    = "0:0"
restart = "unless-stopped"      # no | on-failure | on-failure:N | always | unless-stopped
ports   = ["127.0.0.1:18443:8443", "127.0.0.1:19443:9443/tcp"]
volumes = ["/srv/metacrypt:/srv/metacrypt", "cache:/var/cache:rw"]
cmd     = ["server", "--config", "/srv/metacrypt/metacrypt.toml"]
env     = { RUST_LOG = "info" }

  [components.health]           # the deploy gate and the watch use it
  cmd          = ["/metacrypt", "healthcheck"]
  interval     = "5s"
  timeout      = "2s"
  retries      = 3
  start_period = "10s"

[[components]]
name       = "web"
image      = "registry.example.net:5000/metacrypt-web:v1.4.0"
network    = "metacrypt"
depends_on = ["api"]            # order only: started once api has passed its gate
ports      = ["127.0.0.1:18080:8080"]
"#;

/// Holds every file below `files/` but those named `absent`.
fn lookup(path: &str) -> Option<Digest> {
    (path.starts_with("files/") && !path.contains("absent")).then(|| Digest::of(path.as_bytes()))
}

fn one(path: &str, text: &str) -> (Option<ServiceSpec>, Vec<DefinitionError>) {
    parse_one(
        DefinitionFile {
            path,
            bytes: text.as_bytes(),
        },
        &lookup,
    )
}

fn many(files: &[(&str, &str)]) -> Result<DesiredSet, Vec<DefinitionError>> {
    compile(&definitions(files), &lookup)
}

fn definitions<'a>(files: &[(&'a str, &'a str)]) -> Vec<DefinitionFile<'a>> {
    files
        .iter()
        .map(|(path, text)| DefinitionFile {
            path,
            bytes: text.as_bytes(),
        })
        .collect()
}

/// The component `web` of the service `shop`, with these keys besides name and image.
fn web(keys: &str) -> ComponentSpec {
    let text = format!(
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"web:v1\"\n{keys}\n"
    );
    let (spec, errors) = one("services/shop.toml", &text);
    assert_eq!(errors, [], "{keys}");
    spec.unwrap().components.into_values().next().unwrap()
}

#[test]
fn the_example_means_what_the_documentation_says() {
    let (spec, errors) = one("services/metacrypt.toml", EXAMPLE);
    assert_eq!(errors, []);
    let spec = spec.unwrap();
    assert_eq!(spec.node.as_str(), "rift");
    assert!(spec.active && spec.alert);
    assert_eq!(spec.deadline.to_string(), "5m");
    assert_eq!(spec.reconcile, Reconcile::Manual);
    assert_eq!(spec.on_failure, OnFailure::KeepOld);
    let api = &spec.components["api"];
    assert_eq!(
        api.ports
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["127.0.0.1:18443:8443/tcp", "127.0.0.1:19443:9443/tcp"]
    );
    assert_eq!(
        api.volumes["/var/cache"].source,
        VolumeSource::Named("metacrypt_cache".to_owned())
    );
    let health = api.health.as_ref().unwrap();
    assert_eq!(health.interval.to_string(), "5s");
    let web = &spec.components["web"];
    let Network::User(networks) = &web.network else {
        panic!("a user network");
    };
    assert_eq!(
        networks["metacrypt"].aliases.iter().collect::<Vec<_>>(),
        ["metacrypt-web", "web"]
    );
    assert_eq!(web.restart, Restart::UnlessStopped);
    assert_eq!(web.resources.pids, 2048);
    assert_eq!(web.stop_timeout.to_string(), "10s");
    assert_eq!(web.ready_for.to_string(), "2s");
}
