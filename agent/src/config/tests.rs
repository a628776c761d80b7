//! What a configuration may say, by example.

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/mcp/agent.toml"), text)
}

fn refusal(text: &str) -> String {
    let error = parse(text).unwrap_err();
    assert!(!error.hint().is_empty());
    error.to_string()
}

#[test]
fn one_name_is_a_whole_configuration() {
    let config = parse("node = \"rift\"").unwrap();
    assert_eq!(config.data_dir, Path::new("/srv/mcp"));
    assert_eq!(config.listen.to_string(), DEFAULT_LISTEN);
    assert_eq!(config.tls.cert, Path::new("/srv/mcp/tls/cert.pem"));
    assert_eq!(config.policy.host_paths, ["/srv/{service}"]);
    assert_eq!(
        config.policy.protected,
        ["/run/podman/podman.sock", "/etc/mcp/agent.toml"]
    );
    assert_eq!(config.auth.max_age, Span::from_secs(12 * 3600));
    assert!(config.auth.external.is_empty());
}

#[test]
fn the_promised_file_is_read() {
    let text = r#"
node         = "rift"
data_dir     = "/srv/mcp"
services_dir = "/srv"
listen       = "0.0.0.0:9444"
[tls]
cert = "/srv/mcp/tls/cert.pem"
key  = "/srv/mcp/tls/key.pem"
[auth]
issuer   = "https://mcias.example.net:8443"
audience = "mcp"
jwks     = "/srv/mcp/mcias-jwks.json"
[auth.roles]
admin = "admin"
user  = "operator"
[trust]
owners          = "/srv/mcp/owners.pub"
denied_keys     = "/srv/mcp/denied_keys"
signed_requests = "required"
principals = { "4711" = "alice" }
[runtime]
engine      = "podman"
socket      = "unix:///run/user/993/podman/podman.sock"
concurrency = 4
[source]
url    = "/srv/git/desired.git"
branch = "main"
poll   = "60s"
timeout = "30s"
[inbox]
path   = "/srv/git/inbox.git"
branch = "team/main"
timeout = "30s"
[watch]
resync         = "30s"
flap_threshold = 3
flap_window    = "5m"
event_retention = "90d"
[alert]
command  = ["/usr/local/bin/notify"]
timeout  = "30s"
cooldown = "10m"
[policy]
host_paths = ["/srv/{service}"]
privileged = false
host_network = false
devices    = []
registries = ["registry.example.net:5000"]
ports      = ["127.0.0.1:1024-65535"]
[metrics]
listen = "127.0.0.1:9445"
"#;
    let config = parse(text).unwrap();
    assert_eq!(
        config.runtime.socket,
        Path::new("/run/user/993/podman/podman.sock")
    );
    assert_eq!(config.auth.external[0].roles["user"], Role::Operator);
    assert_eq!(config.policy.registries, ["registry.example.net:5000"]);
}

#[test]
fn relative_paths_count_from_the_file() {
    let config = parse("node = \"rift\"\ndata_dir = \"data\"").unwrap();
    assert_eq!(config.data_dir, Path::new("/etc/mcp/data"));
    assert_eq!(config.trust.owners, Path::new("/etc/mcp/data/owners.pub"));
}

#[test]
fn refusals_name_the_line_and_the_key() {
    for (text, expected) in [
        (
            "node = \"rift\"\nlissten = \"x\"",
            "/etc/mcp/agent.toml:2: unknown key `lissten`",
        ),
        (
            "node = \"Rift\"",
            "/etc/mcp/agent.toml:1: node: `Rift` is not a name",
        ),
        (
            "node = \"a\"\n\n[watch]\nresync = \"30\"",
            "/etc/mcp/agent.toml:4: resync: `30` has no unit",
        ),
        (
            "node = \"a\"\n[watch]\nresync = \"0s\"",
            "/etc/mcp/agent.toml:3: watch.resync: 0 is no time",
        ),
        (
            "node = \"a\"\n[auth]\nissuer = \"i\"\njwks = \"k\"\n[trust]\nsigned_requests = \"optional\"",
            "/etc/mcp/agent.toml:6: trust.signed_requests: tokens come from an issuer",
        ),
        (
            "node = \"a\"\n[auth]\nissuer = \"https://x\"\njwks = \"https://x/keys\"",
            "/etc/mcp/agent.toml:4: auth.jwks: a server needs the CA",
        ),
        (
            "node = \"a\"\n[auth]\nissuer = \"https://x\"",
            "/etc/mcp/agent.toml:3: auth.issuer: an issuer needs",
        ),
        (
            "node = \"a\"\n[runtime]\nsocket = \"tcp://1.2.3.4:2375\"",
            "/etc/mcp/agent.toml:3: runtime.socket: `tcp://1.2.3.4:2375` is no Unix socket",
        ),
        (
            "node = \"a\"\n[source]\nurl = \"https://forge/x\"",
            "/etc/mcp/agent.toml:3: source.url",
        ),
        (
            "node = \"a\"\n[inbox]\nbranch = \"main\"",
            "/etc/mcp/agent.toml:2",
        ),
        (
            "node = \"a\"\n[inbox]\npath = \"/srv/../git\"",
            "/etc/mcp/agent.toml:3: inbox.path: `/srv/../git` cannot be used",
        ),
        (
            "node = \"a\"\ndata_dir = \"/srv/mcp\"\n[inbox]\npath = \"/srv/mcp/inbox.git\"",
            "/etc/mcp/agent.toml:4: inbox.path: `/srv/mcp/inbox.git` is not apart",
        ),
        (
            "node = \"a\"\n[source]\nurl = \"file:///x\"\n[inbox]\npath = \"/x\"",
            "/etc/mcp/agent.toml:5: inbox.path: `/x` is the upstream too",
        ),
        (
            "node = \"a\"\n[inbox]\npath = \"/x\"\nbranch = \"a/../b\"",
            "/etc/mcp/agent.toml:4: inbox.branch: `a/../b` is no branch",
        ),
        (
            "node = \"a\"\n[policy]\nports = [\"8080\"]",
            "/etc/mcp/agent.toml:3: ports: `8080` is not a port range",
        ),
        (
            "node = \"a\"\n[policy]\nregistries = [\"https://r\"]",
            "/etc/mcp/agent.toml:3: policy.registries",
        ),
        ("data_dir = \"/x\"", "/etc/mcp/agent.toml"),
    ] {
        let message = refusal(text);
        assert!(
            message.starts_with(expected),
            "{message}\nwanted {expected}"
        );
    }
}

#[test]
fn a_refusal_names_the_key_in_its_line_and_the_mend() {
    for (text, wanted, mend) in [
        (
            "[wacth]",
            ":2: unknown key `wacth`",
            "the keys here are node, data_dir",
        ),
        (
            "[runtime]\nengine = \"lxc\"",
            ":3: engine: `lxc` is no value of it",
            "write podman or docker",
        ),
        (
            "listen = \"0.0.0.0\"",
            ":2: listen: this is no address with a port",
            "write IP:PORT",
        ),
        (
            "[source]\nurl = \"/x\"\npoll = 5",
            ":4: poll: invalid type: integer `5`, expected a string",
            "put the value in quotes",
        ),
        (
            "[policy]\ncapabilities = [\"X Y\"]",
            ":3: policy.capabilities: `X Y` is no capability",
            "as in NET_ADMIN",
        ),
    ] {
        let error = parse(&format!("node = \"rift\"\n{text}\n")).unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        assert!(error.hint().contains(mend), "{}", error.hint());
    }
    let error = parse("data_dir = \"/srv/mcp\"").unwrap_err();
    assert_eq!(
        error.to_string(),
        "/etc/mcp/agent.toml:1: `node` is missing"
    );
}

#[test]
fn bounds_of_files_are_sizes() {
    let files = |text: &str| {
        parse(&format!("node = \"rift\"\n[files]\n{text}"))
            .unwrap()
            .files
    };
    assert_eq!(files(""), FilesConfig::default());
    let set = files("max_file = \"1MiB\"\nquota = \"none\"\nreserve = \"0B\"\nkeep = \"2MiB\"");
    let wanted = FilesConfig {
        max_file: 1 << 20,
        quota: None,
        reserve: 0,
        keep: 2 << 20,
    };
    assert_eq!(set, wanted);
    for wrong in [
        "quota = \"1\"",
        "max_file = \"big\"",
        "keep = \"-1B\"",
        "quotas = \"1GiB\"",
    ] {
        let message = refusal(&format!("node = \"rift\"\n[files]\n{wrong}"));
        assert!(message.starts_with("/etc/mcp/agent.toml:3: "), "{message}");
    }
}
