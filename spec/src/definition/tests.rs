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

/// Holds every file below `files/` and `secrets/` but those named `absent` or `none`.
fn lookup(path: &str) -> Option<Digest> {
    let is_held = path.starts_with("files/") || path.starts_with("secrets/");
    (is_held && !path.contains("absent") && !path.contains("none"))
        .then(|| Digest::of(path.as_bytes()))
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

#[test]
fn all_errors_of_all_files_are_reported_at_once() {
    let errors = many(&[
        ("services/b.toml", "name = \"b\"\nnode = \"rift\"\nfoo = 1\n[[components]]\nname = \"x\"\nimagee = \"y\"\nports = [\"80\"]\n"),
        ("services/a.toml", "name = \"a\"\nnode = \"rift\"\n[[components]]\nname = \"x\"\nimage = \"x\"\nuser = me\nworkdir = \"x\"\n"),
    ])
    .unwrap_err();
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "services/a.toml:6:8: this is not TOML: string values must be quoted, expected literal string",
            "services/a.toml:7:11: `workdir` `x` is not absolute",
            "services/b.toml:3:1: unknown key `foo` in a service",
            "services/b.toml:6:1: unknown key `imagee` in a component",
            "services/b.toml:7:10: `80` leaves the port on the node to chance",
        ]
    );
    assert_eq!(errors[3].kind, DefinitionErrorKind::UnknownKey);
    assert_eq!(
        errors[3].render(),
        "services/b.toml:6:1: unknown key `imagee` in a component\n  |\n6 | imagee = \"y\"\n  | ^^^^^^\n  = did you mean `image`?"
    );
}

fn shop(name: &str, node: &str, rest: &str) -> String {
    format!("name = \"{name}\"\nnode = \"{node}\"\n{rest}")
}

#[test]
fn an_open_bracket_is_one_error() {
    let (_, errors) = one(
        "services/shop.toml",
        &shop(
            "shop",
            "rift",
            "[[components]]\nname = \"a\"\nimage = \"x\"\nenv = { A = 1\ncmd = \"x\"\n\n# more\n[[components]]\nname = \"b\"\n",
        ),
    );
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(shown.len(), 1, "{}", shown.join("\n"));
    assert_eq!(errors[0].line, 7);
    assert!(
        errors[0]
            .hint
            .as_deref()
            .unwrap()
            .contains("on a line before")
    );
    // Errors that do not follow from each other are all told.
    let (_, errors) = one(
        "services/shop.toml",
        "name = shop\nnode = rift\nactive = [1\nalert = tru\n",
    );
    let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
    assert_eq!(lines, [1, 2, 3, 4]);
}

#[test]
fn a_host_port_is_taken_once_among_active_components_of_a_node() {
    let component = "[[components]]\nname = \"web\"\nimage = \"x\"\nports = [\"{}:80\"]\n";
    let text = |name, node, head: &str, port: &str| {
        shop(
            name,
            node,
            &format!("{head}{}", component.replace("{}", port)),
        )
    };
    let a = text("a", "rift", "", "0.0.0.0:8080");
    for (b, refused) in [
        (text("b", "rift", "", "127.0.0.1:8080"), true),
        (text("b", "rift", "", "0.0.0.0:8080"), true),
        (text("b", "rift", "", "8081"), false),
        (text("b", "moon", "", "8080"), false),
        (text("b", "rift", "active = false\n", "8080"), false),
    ] {
        let result = many(&[("services/a.toml", &a), ("services/b.toml", &b)]);
        assert_eq!(result.is_err(), refused, "{b}");
        if let Err(errors) = result {
            assert_eq!(errors[0].file, "services/b.toml");
            assert_eq!(errors[0].kind, DefinitionErrorKind::Conflict);
            assert!(
                errors[0]
                    .message
                    .contains("by `a/web` as `0.0.0.0:8080:80/tcp` (services/a.toml:6)"),
                "{}",
                errors[0]
            );
        }
    }
}

#[test]
fn containers_of_one_node_have_names_of_their_own() {
    let component = |name: &str| format!("[[components]]\nname = \"{name}\"\nimage = \"x\"\n");
    let a = shop("a-b", "rift", &component("c"));
    let files = |b: &'static str, node: &str, name: &str| {
        (
            b,
            shop(
                b.trim_start_matches("services/").trim_end_matches(".toml"),
                node,
                &component(name),
            ),
        )
    };
    for ((path, b), refused) in [
        (files("services/a.toml", "rift", "b-c"), true),
        (files("services/a.toml", "moon", "b-c"), false),
        (files("services/a-b-c.toml", "rift", "a-b-c"), true),
        (files("services/a-b-c.toml", "rift", "x"), false),
    ] {
        let result = many(&[("services/a-b.toml", &a), (path, &b)]);
        assert_eq!(result.is_err(), refused, "{path}");
        if let Err(errors) = result {
            assert!(
                errors[0].message.contains("named `a-b-c`, as that of"),
                "{}",
                errors[0]
            );
        }
    }
}

#[test]
fn cycles_are_printed() {
    let text = shop(
        "shop",
        "rift",
        "[[components]]\nname = \"a\"\nimage = \"x\"\ndepends_on = [\"b\"]\n\
         [[components]]\nname = \"b\"\nimage = \"x\"\ndepends_on = [\"c\"]\n\
         [[components]]\nname = \"c\"\nimage = \"x\"\ndepends_on = [\"a\", \"d\"]\n\
         [[components]]\nname = \"d\"\nimage = \"x\"\n",
    );
    let (_, errors) = one("services/shop.toml", &text);
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].kind, DefinitionErrorKind::Cycle);
    assert!(
        errors[0].message.contains("a -> b -> c -> a"),
        "{}",
        errors[0]
    );
    assert_eq!(errors[0].line, 14);
}

#[test]
fn other_nodes_files_are_read_by_name_and_node_only() {
    let own = EXAMPLE;
    let rift: NodeName = "rift".parse().unwrap();
    let compiled = |other: &str| {
        compile_for_node(
            &definitions(&[("services/metacrypt.toml", own), ("services/b.toml", other)]),
            &rift,
            &lookup,
        )
    };
    for other in [
        shop("b", "moon", "future = 1\n[[components]]\nimage = 5\n"),
        shop(
            "b",
            "moon",
            "[[components]]\nimage = \"unclosed\nname = \"x\"\n",
        ),
        shop("b", "moon", "[[components]]\nname = \"x\"\nname = \"x\"\n"),
        shop("b", "moon", ""),
    ] {
        let set = compiled(&other).unwrap();
        assert_eq!(set.services.len(), 1, "{other}");
        let placed = placements(&definitions(&[("services/b.toml", &other)])).unwrap();
        assert_eq!(placed["b"].as_str(), "moon");
    }
    for doubtful in [
        shop("b", "moon", "node = \"rift\"\n"),
        shop("c", "moon", ""),
        "name = \"b\"\nnode = \"moon\n".to_owned(),
        "name = \"b\"\n".to_owned(),
        "x = [\nname = \"b\"\nnode = \"moon\"\n".to_owned(),
        shop("b", "rift", "future = 1\n"),
        String::new(),
    ] {
        let errors = compiled(&doubtful).unwrap_err();
        assert!(
            errors.iter().all(|error| error.file == "services/b.toml"),
            "{doubtful}"
        );
    }
}

#[test]
fn values_have_one_canonical_form() {
    let spec = web(
        "env = { A = 1_000, B = 1.50, C = true, D = 0xff, E = \"x\" }\n\
         cap_add = [\"cap_net_admin\", \"SYS_TIME\"]\nstop_signal = 15\n\
         extra_hosts = [\"db:10.0.0.5\", \"six:[2001:DB8::1]\", \"gw=host-gateway\"]\n\
         tmpfs = [\"/run\", \"/tmp:size=64m,mode=1777\"]\n\
         resources = { memory = \"512MB\", cpus = 1.5 }\n\
         files = [{ from = \"files/shop//a\", to = \"/a\", on_change = \"signal:hup\" }]\n\
         networks = { shop = { aliases = [\"front\"] }, shared = {} }\n\
         dns = [\"9.9.9.9\", \"1.1.1.1\"]\nx-note = { anything = [1, 2] }\n\
         health = { http = \"http://:8443/healthz\", x-why = 1 }",
    );
    let env: Vec<_> = spec.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(env, ["A=1000", "B=1.50", "C=true", "D=255", "E=x"]);
    assert!(spec.cap_add.contains("NET_ADMIN") && spec.cap_add.contains("SYS_TIME"));
    assert_eq!(spec.stop_signal.as_deref(), Some("SIGTERM"));
    assert_eq!(spec.extra_hosts["six"], "2001:db8::1");
    assert_eq!(spec.extra_hosts["gw"], "host-gateway");
    assert_eq!(spec.resources.memory_bytes, Some(512 << 20));
    assert_eq!(spec.resources.cpu_millis, Some(1500));
    assert_eq!(spec.files["/a"].from, "files/shop/a");
    assert_eq!(spec.files["/a"].mode, 0o644);
    assert_eq!(
        spec.files["/a"].on_change,
        OnChange::Signal("SIGHUP".to_owned())
    );
    let Network::User(networks) = &spec.network else {
        panic!("user networks");
    };
    let aliases = |network: &str| {
        networks[network]
            .aliases
            .iter()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(aliases("shop"), ["front", "shop-web", "web"]);
    assert_eq!(aliases("shared"), ["shop-web"]);
    assert_eq!(spec.dns.len(), 2);
    assert_eq!(spec.dns[0].to_string(), "9.9.9.9");
    let Some(Health {
        probe:
            Probe::Http {
                port: 8443,
                path,
                tls: false,
            },
        ..
    }) = &spec.health
    else {
        panic!("an http probe");
    };
    assert_eq!(path, "/healthz");
    assert_eq!(web("network = \"host\"").network, Network::Host);
    assert_eq!(web("network = \"none\"").network, Network::None);
    assert_eq!(web("network = \"bridge\"").network, Network::Bridge);
    let job = web("kind = \"job\"");
    assert_eq!(job.restart, Restart::No);
    assert_eq!(
        job.kind,
        crate::component::Kind::Job {
            exit_codes: [0].into()
        }
    );
}

#[test]
fn a_default_written_out_is_the_default_left_out() {
    let bare = web("");
    for written in [
        "kind = \"service\"",
        "pull = \"missing\"",
        "network = \"shop\"",
        "networks = [\"shop\"]",
        "networks = { shop = { aliases = [\"web\", \"shop-web\"] } }",
        "restart = \"unless-stopped\"",
        "init = false",
        "read_only = false",
        "resources = { pids = 2048 }",
        "resources = {}",
        "stop_timeout = \"10s\"",
        "ready_for = \"2000ms\"",
        "image = \"web:v1\" # again, spelt in full",
        "ports = []",
        "volumes = []",
        "env = {}",
        "x-anything = 1",
    ] {
        if written.starts_with("image") {
            let full = "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"docker.io/library/web:v1\"\n";
            let (spec, _) = one("services/shop.toml", full);
            assert_eq!(spec.unwrap().components["web"].digest(), bare.digest());
            continue;
        }
        assert_eq!(web(written), bare, "{written}");
        assert_eq!(web(written).digest(), bare.digest(), "{written}");
    }
    let health = "health = { tcp = 80, interval = \"10s\", timeout = \"3s\", retries = 3, start_period = \"0s\" }";
    assert_eq!(web(health), web("health = { tcp = 80 }"));
    let service = "active = true\nalert = true\ndeadline = \"300s\"\nreconcile = \"manual\"\non_failure = \"keep-old\"\n";
    let component = "[[components]]\nname = \"web\"\nimage = \"x\"\n";
    let (long, _) = one(
        "services/shop.toml",
        &shop("shop", "rift", &format!("{service}{component}")),
    );
    let (short, _) = one("services/shop.toml", &shop("shop", "rift", component));
    assert!(long.is_some());
    assert_eq!(long, short);
}

#[test]
fn too_much_is_refused() {
    let big = vec![b'#'; (1 << 20) + 1];
    let file = DefinitionFile {
        path: "services/a.toml",
        bytes: &big,
    };
    let (_, errors) = parse_one(file, &lookup);
    assert_eq!(errors[0].kind, DefinitionErrorKind::Bound);
    let file = DefinitionFile {
        path: "services/a.toml",
        bytes: b"name = \"a\"\n\xff",
    };
    let (_, errors) = parse_one(file, &lookup);
    assert_eq!(
        (errors[0].kind, errors[0].line),
        (DefinitionErrorKind::Encoding, 2)
    );
    let many = vec![file; MAX_SERVICES + 1];
    assert_eq!(
        compile(&many, &lookup).unwrap_err()[0].kind,
        DefinitionErrorKind::Bound
    );
    let components: String = (0..201)
        .map(|n| format!("[[components]]\nname = \"c{n}\"\nimage = \"x\"\n"))
        .collect();
    let (_, errors) = one("services/shop.toml", &shop("shop", "rift", &components));
    assert!(errors[0].message.contains("at most 200"), "{}", errors[0]);
    let unknown: String = (0..5000).map(|n| format!("k{n} = 1\n")).collect();
    let (_, errors) = one("services/shop.toml", &shop("shop", "rift", &unknown));
    assert_eq!(errors.len(), 200);
    assert!(errors[199].hint.as_ref().unwrap().contains("are not shown"));
}

#[test]
fn deep_nesting_and_long_lines_are_survived() {
    for text in [
        "[".repeat(500_000),
        format!("a = {}", "[".repeat(500_000)),
        format!("a = {}", "{a=".repeat(200_000)),
        format!("{}a = 1", "a.".repeat(200_000)),
        "a=1\n".repeat(200_000),
        "\"".repeat(500_000),
    ] {
        let (spec, errors) = one("services/a.toml", &text);
        assert!(spec.is_none() && !errors.is_empty());
        for error in &errors {
            assert!(error.render().len() < 10_000);
        }
    }
}

mod incremental;
mod properties;
mod refusals;
