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

/// Each refusal: keys of a component, the message and the mend that they get.
const REFUSALS: &[(&str, &str, &str)] = &[
    (
        "imagee = \"x\"",
        "unknown key `imagee` in a component",
        "did you mean `image`?",
    ),
    (
        "restart_policy = \"no\"",
        "unknown key `restart_policy`",
        "did you mean `restart`?",
    ),
    (
        "command = [\"x\"]",
        "unknown key `command`",
        "did you mean `cmd`?",
    ),
    (
        "active = false",
        "unknown key `active`",
        "above the first `[[components]]`",
    ),
    (
        "memory = \"1GiB\"",
        "unknown key `memory`",
        "`resources.memory = …`",
    ),
    (
        "zzzzzzzz = 1",
        "unknown key `zzzzzzzz`",
        "the keys of a component are name, kind",
    ),
    (
        "devices = []",
        "`devices` is not supported yet by this release",
        "`x-devices`",
    ),
    (
        "ulimits = {}",
        "`ulimits` is not supported yet",
        "`x-ulimits`",
    ),
    (
        "sysctls = {}",
        "`sysctls` is not supported yet",
        "`x-sysctls`",
    ),
    (
        "security_opt = []",
        "`security_opt` is not supported yet",
        "`x-security_opt`",
    ),
    (
        "privileged = true",
        "`privileged` is not supported yet",
        "`cap_add`",
    ),
    (
        "log = {}",
        "`log` is not supported yet",
        "default log driver",
    ),
    (
        "secrets = []",
        "`secrets` is not supported yet",
        "leave it out",
    ),
    (
        "update = \"stop-first\"",
        "`update` is not supported yet",
        "leave it out",
    ),
    (
        "update = \"start-first\"",
        "`update` is not supported yet",
        "leave it out",
    ),
    (
        "kind = \"jobb\"",
        "`jobb` is no value of `kind`",
        "did you mean `job`?",
    ),
    (
        "exit_codes = [0]",
        "`exit_codes` is for jobs only",
        "add `kind = \"job\"`",
    ),
    (
        "kind = \"job\"\nexit_codes = []",
        "never ends well",
        "`exit_codes = [0]`",
    ),
    (
        "kind = \"job\"\nexit_codes = [256]",
        "an exit code is out of range",
        "from 0 to 255",
    ),
    (
        "kind = \"job\"\nrestart = \"always\"",
        "a job ends",
        "on-failure",
    ),
    (
        "kind = \"job\"\nrestart = \"unless-stopped\"",
        "a job ends",
        "on-failure",
    ),
    (
        "pull = \"allways\"",
        "`allways` is no value of `pull`",
        "did you mean `always`?",
    ),
    (
        "entrypoint = []",
        "`entrypoint` is empty",
        "leave `entrypoint` out",
    ),
    (
        "entrypoint = [\"\"]",
        "the program of `entrypoint` is empty",
        "write the program first",
    ),
    (
        "cmd = \"sh -c x\"",
        "`cmd` is a string, and must be a list",
        "`cmd = [\"sh\", \"-c\", \"x\"]`",
    ),
    (
        "cmd = [1]",
        "an item of `cmd` is an integer",
        "put it in quotes: \"1\"",
    ),
    (
        "cmd = [\"a\\u0000b\"]",
        "an item of `cmd` holds a NUL byte",
        "take the",
    ),
    (
        "env = [\"A=b\"]",
        "`env` is a list, and must be a table",
        "`env = { NAME = \"value\" }`",
    ),
    ("env = { A = [1] }", "`env.A` is a list", "in quotes"),
    ("env = { A = 1979-05-27 }", "`env.A` is a date", "in quotes"),
    (
        "env = { A = \"x\\u0000\" }",
        "`env.A` holds a NUL byte",
        "take the",
    ),
    (
        "env = { \"\" = \"x\" }",
        "`` is no name of a variable",
        "not empty",
    ),
    (
        "env = { \"A=B\" = \"x\" }",
        "`A=B` is no name of a variable",
        "no `=`",
    ),
    (
        "user = 0",
        "`user` is an integer",
        "put it in quotes: \"0\"",
    ),
    ("user = \"a b\"", "`a b` is not a user", "`USER:GROUP`"),
    (
        "workdir = \"srv\"",
        "`workdir` `srv` is not absolute",
        "write `/srv`",
    ),
    (
        "hostname = \"a_b\"",
        "`a_b` is not a host name",
        "inner hyphens",
    ),
    (
        "network = \"container:x\"",
        "shares another container's network",
        "join one user network",
    ),
    (
        "network = \"podman\"",
        "`podman` is a word of the engine",
        "another name",
    ),
    (
        "network = \"My_Net\"",
        "`My_Net` is not a name",
        "write `my-net`",
    ),
    (
        "networks = []",
        "`networks` is empty",
        "`network = \"none\"`",
    ),
    (
        "networks = [\"host\"]",
        "`host` is a word of the engine",
        "alone",
    ),
    (
        "networks = [\"a\", \"a\"]",
        "the network `a` stands here twice",
        "leave one of them out",
    ),
    (
        "networks = \"a\"",
        "`networks` is a string",
        "`networks = [\"NAME\"]`",
    ),
    (
        "networks = { a = 1 }",
        "the network `a` is an integer",
        "aliases",
    ),
    (
        "networks = { a = { alias = [\"b\"] } }",
        "unknown key `alias`",
        "did you mean `aliases`?",
    ),
    (
        "networks = { a = { aliases = [\"b c\"] } }",
        "`b c` is not an alias",
        "host name",
    ),
    (
        "network = \"a\"\nnetworks = [\"b\"]",
        "either `network` or `networks`",
        "leave `network` out",
    ),
    (
        "ports = [8080]",
        "an item of `ports` is an integer",
        "put it in quotes",
    ),
    (
        "ports = \"8080:80\"",
        "`ports` is a string",
        "`ports = [\"8080:80\"]`",
    ),
    ("ports = [\"0:80\"]", "asks for port 0", "clients"),
    (
        "ports = [\"80-90:80-91\"]",
        "pairs 11 ports of the node with 12",
        "equal length",
    ),
    (
        "ports = [\"8000-9999:8000-9999\"]",
        "at most 1024 ports",
        "smaller range",
    ),
    (
        "network = \"host\"\nports = [\"80:80\"]",
        "not published with `network = \"host\"`",
        "leave `ports` out",
    ),
    (
        "network = \"none\"\nports = [\"80:80\"]",
        "cannot be published",
        "join a user network",
    ),
    (
        "ports = [\"80:80\", \"0.0.0.0:80:81\"]",
        "port 80/tcp of rift is taken by `shop/web`",
        "another port",
    ),
    (
        "volumes = [\"a:/x\", \"b:/x/\"]",
        "`/x` is a mount target already (line 6)",
        "another path",
    ),
    (
        "volumes = [\"a:/x\"]\ntmpfs = [\"/x\"]",
        "`/x` is a mount target already",
        "share their targets",
    ),
    (
        "tmpfs = [\"/x\"]\nfiles = [{ from = \"files/shop/a\", to = \"/x\" }]",
        "`/x` is a mount target already",
        "share their targets",
    ),
    ("volumes = [\"./a:/x\"]", "is relative", "with `files`"),
    (
        "tmpfs = [\"/x:nope=1\"]",
        "`nope=1` is no option of a tmpfs",
        "the options are size",
    ),
    (
        "restart = \"allways\"",
        "`allways` is not a restart policy",
        "did you mean `always`?",
    ),
    (
        "restart = false",
        "`restart` is a boolean",
        "`restart = \"no\"`",
    ),
    (
        "restart = \"on-failure:0\"",
        "is not a restart policy",
        "on-failure",
    ),
    (
        "init = \"true\"",
        "`init` is a string",
        "leave out the quotes: `init = true`",
    ),
    (
        "init = 1",
        "`init` is an integer",
        "`init = true` or `init = false`",
    ),
    (
        "depends_on = [\"wbe\"]",
        "the service has no component `wbe`",
        "its components are",
    ),
    (
        "depends_on = [\"web\"]",
        "the component `web` depends on itself",
        "leave its own name out",
    ),
    (
        "depends_on = { a = {} }",
        "`depends_on` is a table",
        "`depends_on = […]`",
    ),
    ("health = {}", "`health` needs `cmd`", "write one of"),
    ("health = true", "`health` is a boolean", "health = { cmd"),
    (
        "health = { test = [\"x\"] }",
        "unknown key `test` in `health`",
        "did you mean `cmd`?",
    ),
    (
        "health = { cmd = [\"x\"], tcp = 1 }",
        "`health` asks in two ways: `cmd` and `tcp`",
        "keep one",
    ),
    ("health = { cmd = [] }", "`cmd` is empty", "leave `cmd` out"),
    (
        "health = { tcp = 0 }",
        "`tcp` is out of range",
        "from 1 to 65535",
    ),
    (
        "health = { tcp = \"80\" }",
        "`tcp` is a string",
        "leave out the quotes",
    ),
    (
        "health = { http = \"https://:1/x\" }",
        "cannot ask by https",
        "use `tcp`",
    ),
    (
        "health = { tcp = 80, interval = \"0s\" }",
        "`interval` cannot be zero",
        "`interval = \"10s\"`",
    ),
    (
        "health = { tcp = 80, interval = 5 }",
        "`interval` has no unit",
        "`interval = \"5s\"`",
    ),
    (
        "health = { tcp = 80, retries = 0 }",
        "`retries` is out of range",
        "from 1",
    ),
    (
        "network = \"none\"\nhealth = { tcp = 80 }",
        "without a network by `tcp`",
        "use `cmd`",
    ),
    (
        "network = \"none\"\nhealth = { http = \"http://:80/\" }",
        "without a network by `http`",
        "use `cmd`",
    ),
    (
        "health = { tcp = 80, image = \"x\" }",
        "unknown key `image` in `health`",
        "above `[components.health]`",
    ),
    (
        "resources = { memory = 512 }",
        "`memory` has no unit",
        "`memory = \"512MiB\"`",
    ),
    (
        "resources = { memory = \"512\" }",
        "the size `512` has no unit",
        "write `512MiB`",
    ),
    (
        "resources = { memory = \"1MiB\" }",
        "too little memory",
        "`6MiB`",
    ),
    (
        "resources = { memory = \"1x\" }",
        "`x` is no unit of size",
        "KiB",
    ),
    (
        "resources = { cpus = 0 }",
        "`cpus` is out of range",
        "from 0.001",
    ),
    (
        "resources = { cpus = -1.5 }",
        "`cpus` is out of range",
        "from 0.001",
    ),
    (
        "resources = { cpus = nan }",
        "`cpus` is out of range",
        "from 0.001",
    ),
    (
        "resources = { cpus = \"1\" }",
        "`cpus` is a string",
        "`cpus = 1.5`",
    ),
    (
        "resources = { pids = 0 }",
        "`pids` is out of range",
        "from 1",
    ),
    (
        "resources = { cpu = 1 }",
        "unknown key `cpu`",
        "did you mean `cpus`?",
    ),
    (
        "cap_add = [\"NET_ADMN\"]",
        "`NET_ADMN` is not a capability",
        "did you mean `NET_ADMIN`?",
    ),
    (
        "cap_add = [\"KILL\"]\ncap_drop = [\"cap_kill\"]",
        "`KILL` is both added and dropped",
        "one of",
    ),
    (
        "labels = { \"mcp.x\" = \"1\" }",
        "the label `mcp.x` belongs to the agent",
        "does not start with",
    ),
    (
        "stop_signal = \"SIGTREM\"",
        "`SIGTREM` is not a signal",
        "did you mean `SIGTERM`?",
    ),
    ("stop_signal = 99", "`99` is not a signal", "Linux number"),
    (
        "stop_timeout = \"10\"",
        "the duration `10` has no unit",
        "write `10s`",
    ),
    (
        "stop_timeout = 10",
        "`stop_timeout` has no unit",
        "`stop_timeout = \"10s\"`",
    ),
    (
        "stop_timeout = \"ten\"",
        "`ten` is not a duration",
        "as in `10s`",
    ),
    ("ready_for = \"400d\"", "longer than 365 days", "shorter"),
    (
        "extra_hosts = [\"db\"]",
        "`db` is no line of `extra_hosts`",
        "`NAME:ADDRESS`",
    ),
    (
        "extra_hosts = [\"db:x\"]",
        "`x` is not an IP address",
        "host-gateway",
    ),
    (
        "extra_hosts = [\"db:10.0.0.1\", \"db:10.0.0.2\"]",
        "the host `db` stands here twice",
        "leave one",
    ),
    (
        "dns = [\"example.net\"]",
        "`example.net` is not an IP address",
        "name server",
    ),
    (
        "dns = [\"1.1.1.1\", \"1.1.1.1\"]",
        "stands here twice",
        "leave one",
    ),
    (
        "files = [{ from = \"files/shop/a\" }]",
        "an item of `files` needs `to`",
        "to =",
    ),
    (
        "files = [{ to = \"/a\" }]",
        "an item of `files` needs `from`",
        "from =",
    ),
    (
        "files = [\"files/shop/a:/a\"]",
        "an item of `files` is a string",
        "from =",
    ),
    (
        "files = [{ from = \"files/shop/absent\", to = \"/a\" }]",
        "holds no file `files/shop/absent`",
        "add the file",
    ),
    (
        "files = [{ from = \"../a\", to = \"/a\" }]",
        "`../a` has a `..`",
        "`files/shop/…`",
    ),
    (
        "files = [{ from = \"/etc/passwd\", to = \"/a\" }]",
        "is absolute",
        "`files/shop/…`",
    ),
    (
        "files = [{ from = \"files/other/a\", to = \"/a\" }]",
        "belongs to `other`",
        "`files/shop/…`",
    ),
    (
        "files = [{ from = \"README.md\", to = \"/a\" }]",
        "outside of the service's files",
        "`files/shop/…`",
    ),
    (
        "files = [{ from = \"files/shop\", to = \"/a\" }]",
        "outside of the service's files",
        "`files/shop/…`",
    ),
    (
        "files = [{ from = \"files/shop/a\", to = \"a\" }]",
        "the target `a` is not absolute",
        "write `/a`",
    ),
    (
        "files = [{ from = \"files/shop/a\", to = \"/a\", mode = \"rw\" }]",
        "not a file mode",
        "0640",
    ),
    (
        "files = [{ from = \"files/shop/a\", to = \"/a\", mode = 640 }]",
        "`mode` is an integer",
        "\"640\"",
    ),
    (
        "files = [{ from = \"files/shop/a\", to = \"/a\", owner = \"me\" }]",
        "not an owner",
        "1000:1000",
    ),
    (
        "files = [{ from = \"files/shop/a\", to = \"/a\", on_change = \"reload\" }]",
        "no value of `on_change`",
        "signal:HUP",
    ),
    (
        "files = [{ from = \"files/shop/a\", to = \"/a\", on_change = \"signal:X\" }]",
        "`X` is not a signal",
        "name",
    ),
    (
        "files = [{ from = \"files/shop/a\", to = \"/a\", src = \"x\" }]",
        "unknown key `src`",
        "did you mean `from`?",
    ),
    (
        "name = \"web\"",
        "the key `name` stands here twice",
        "keep one of them",
    ),
    ("cmd = [\"a\"", "this is not TOML", "close the list"),
    ("user = \"a", "this is not TOML", "close the string"),
    ("user = me", "this is not TOML", "put the text in quotes"),
];

#[test]
fn every_refusal_names_the_thing_and_the_mend() {
    for (keys, message, hint) in REFUSALS {
        let text = format!(
            "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"web:v1\"\n{keys}\n"
        );
        let (spec, errors) = one("services/shop.toml", &text);
        assert_eq!(spec, None, "{keys}");
        let shown: Vec<String> = errors.iter().map(DefinitionError::render).collect();
        assert!(
            errors.iter().any(|error| error.message.contains(message)
                && error.hint.as_deref().unwrap_or_default().contains(hint)),
            "{keys}\nwanted: {message} / {hint}\n{}",
            shown.join("\n")
        );
        assert_eq!(errors.len(), 1, "{keys}\n{}", shown.join("\n"));
        assert!(errors[0].line >= 5, "{keys}: {}", errors[0]);
    }
}

/// Each refusal of a whole file `services/shop.toml`.
const FILE_REFUSALS: &[(&str, &str, &str)] = &[
    (
        "node = \"rift\"\n{C}",
        "a service needs `name`",
        "`name = \"shop\"`",
    ),
    (
        "name = \"shop\"\n{C}",
        "a service needs `node`",
        "`node = \"NAME\"`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"",
        "a service needs `components`",
        "[[components]]",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\ncomponents = []",
        "has no component",
        "[[components]]",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\n[components]\nname = \"web\"",
        "`components` is a table",
        "[[components]]",
    ),
    (
        "name = \"shopp\"\nnode = \"rift\"\n{C}",
        "named `shopp`, and its file `shop.toml`",
        "rename the file",
    ),
    (
        "name = \"Shop\"\nnode = \"rift\"\n{C}",
        "`S` cannot stand there",
        "write `shop`",
    ),
    (
        "name = \"podman\"\nnode = \"rift\"\n{C}",
        "`podman` is reserved",
        "take another name",
    ),
    (
        "name = \"shop\"\nnode = \"ri ft\"\n{C}",
        "`ri ft` is not a name",
        "write `ri-ft`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\nactive = 1\n{C}",
        "`active` is an integer",
        "`active = true`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\nalert = \"no\"\n{C}",
        "`alert` is a string",
        "`alert = true`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\ndeadline = \"5\"\n{C}",
        "has no unit",
        "write `5s`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\ndeadline = \"0s\"\n{C}",
        "`deadline` cannot be zero",
        "`deadline = \"5m\"`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\nreconcile = \"atuo\"\n{C}",
        "no value of `reconcile`",
        "did you mean `auto`?",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\non_failure = \"keep\"\n{C}",
        "no value of `on_failure`",
        "keep-old, leave",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\nimage = \"x\"\n{C}",
        "unknown key `image` in a service",
        "below `[[components]]`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\n[[component]]\n{C}",
        "unknown key `component`",
        "`[[components]]`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nimage = \"x\"",
        "a component needs `name`",
        "`name = \"web\"`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"x\"",
        "a component needs `image`",
        "write `image",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"x\"\nimage = \"X Y\"",
        "is not an image reference",
        "`NAME:TAG`",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\n{C}{C}",
        "the component `web` is there already (line 4)",
        "name of its own",
    ),
    (
        "name = \"shop\"\nnode = \"rift\"\n{C}[other]\nx = 1",
        "unknown key `other`",
        "the keys of a service are",
    ),
];

#[test]
fn every_refusal_of_a_service_names_the_thing_and_the_mend() {
    for (text, message, hint) in FILE_REFUSALS {
        let text = text.replace(
            "{C}",
            "[[components]]\nname = \"web\"\nimage = \"web:v1\"\n",
        );
        let (_, errors) = one("services/shop.toml", &text);
        let shown: Vec<String> = errors.iter().map(DefinitionError::render).collect();
        assert!(
            errors.len() == 1
                && errors[0].message.contains(message)
                && errors[0].hint.as_deref().unwrap_or_default().contains(hint),
            "{text}\nwanted: {message} / {hint}\n{}",
            shown.join("\n")
        );
    }
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
        probe: Probe::Http { port: 8443, path },
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

mod properties {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that a definition might be made of, so that the parser is led beyond the first line.
    fn definition_like() -> impl Strategy<Value = String> {
        proptest::collection::vec(
            prop_oneof![
                proptest::sample::select(vec![
                    "name = ",
                    "node = ",
                    "\"shop\"",
                    "[[components]]\n",
                    "[components.health]\n",
                    "image",
                    "ports = [",
                    "\"80:80\"",
                    "]",
                    "\n",
                    "{ ",
                    " }",
                    ", ",
                    "= ",
                    "1",
                    "true",
                    "health",
                    "files = [{ from = \"files/shop/a\", to = \"/a\" }]",
                    "volumes = ",
                    "\"a:/x\"",
                    "\"\"\"",
                    "'",
                    "#",
                    "\u{feff}",
                    "é",
                    "\r\n",
                    "\t",
                    "networks",
                    ".",
                    "resources",
                    "depends_on = [\"shop\"]",
                    "extra_hosts",
                    "env",
                    "\\u0000",
                ])
                .prop_map(str::to_owned),
                ".{0,4}",
            ],
            0..60,
        )
        .prop_map(|parts| parts.concat())
    }

    fn survives(bytes: &[u8]) {
        let file = DefinitionFile {
            path: "services/shop.toml",
            bytes,
        };
        let (spec, errors) = parse_one(file, &lookup);
        assert_eq!(spec.is_some(), errors.is_empty());
        for error in &errors {
            assert!(error.span.end <= bytes.len());
            assert!(error.hint.is_some());
            let _ = error.render();
        }
        let _ = compile_for_node(&[file, file], &"rift".parse().unwrap(), &lookup);
        let _ = placements(&[file, file]);
        assert_eq!(compile(&[file], &lookup).is_ok(), errors.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            survives(&bytes);
        }

        #[test]
        fn no_text_makes_it_panic(text in definition_like()) {
            survives(text.as_bytes());
        }

        #[test]
        fn no_damage_to_a_good_definition_makes_it_panic(
            at in 0..EXAMPLE.len(),
            length in 0..40_usize,
            instead in ".{0,3}",
        ) {
            let mut bytes = EXAMPLE.as_bytes().to_vec();
            let end = (at + length).min(bytes.len());
            bytes.splice(at..end, instead.bytes());
            survives(&bytes);
        }

        #[test]
        fn no_value_makes_it_panic(key in 0..30_usize, value in "[ -~é\u{1}]{0,16}") {
            let key = component::COMPONENT.keys[key];
            for value in [value.clone(), format!("\"{value}\""), format!("['''{value}''']")] {
                let text = format!(
                    "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"a\"\nimage = \"b\"\n[[components]]\n{key} = {value}\n"
                );
                survives(text.as_bytes());
            }
        }
    }
}
