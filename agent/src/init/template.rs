//! The configuration that `init` writes: complete, and explained where it stands.

use std::net::SocketAddr;
use std::path::Path;

use mcp_spec::name::NodeName;

use super::EngineChoice;

/// What `denied_keys` says at first.
pub(super) const DENIED_KEYS: &str = "\
# Keys whose new commits are refused, whatever else says so: one a line, as a public key
# (ssh-ed25519 AAAA... comment) or a fingerprint (SHA256:...). This file must exist.
";

/// What differs between configurations.
pub(super) struct Values<'a> {
    pub(super) node: &'a NodeName,
    pub(super) data_dir: &'a Path,
    pub(super) services_dir: &'a Path,
    pub(super) listen: SocketAddr,
    pub(super) engine: &'a EngineChoice,
    pub(super) issuer: Option<&'a str>,
    pub(super) introduction: Option<&'a str>,
}

/// A string as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

pub(super) fn render(values: &Values<'_>) -> String {
    let data = |name: &str| path(&values.data_dir.join(name));
    let issuer = match values.issuer {
        Some(issuer) => format!(
            "\
issuer = {}
jwks   = {}
{}",
            quoted(issuer),
            data("trusted-issuer.jwk"),
            // Another agent's roles are this one's; those of other issuers are the owner's to map.
            if issuer.starts_with("mcp-agent:") {
                "[auth.roles]\nviewer   = \"viewer\"\noperator = \"operator\"\nadmin    = \"admin\"\n"
            } else {
                "[auth.roles]\n# Which of the issuer's roles is what here; without an entry it allows nothing.\nadmin = \"admin\"\n"
            }
        ),
        None => "\
# issuer = \"https://mcias.example.net:8443\"
# jwks   = \"/srv/mcp/mcias-jwks.json\"   # its public keys: PEM, JWK or set, or the https address of them
# ca_cert      = \"/srv/mcp/mcias-ca.pem\"   # the CA of its server, for https addresses
# validate_url = \"https://mcias.example.net:8443/v1/token/validate\"   # ask it whether it still stands by a token
# [auth.roles]                          # which of its roles is what here
# admin = \"admin\"
# user  = \"operator\"
"
        .to_owned(),
    };
    let introduction = match values.introduction {
        Some(commit) => format!("introduction    = {}", quoted(commit)),
        None => "# introduction = \"COMMIT\"   # the commit that history starts at".to_owned(),
    };
    format!(
        "\
# The agent of node {node}. Check changes with: mcp-agent check --config FILE
node         = {node_quoted}
data_dir     = {data_dir}   # registry, repository, keys
services_dir = {services_dir}   # the folder of the services' own folders
listen       = {listen}

[tls]                      # reloaded when the files change
cert = {cert}
key  = {key}

[auth]
# Tokens of `mcp-agent token issue` are always taken. Those of one more issuer are, where it is named:
max_age  = \"12h\"           # older tokens are refused, whatever they say
audience = \"mcp\"
{issuer}
[trust]
owners          = {owners}   # who may introduce a history
denied_keys     = {denied}   # whose new commits are refused
signed_requests = \"required\"   # a token alone changes nothing
{introduction}

[runtime]
engine      = \"{engine}\"     # or \"docker\"
socket      = {socket}
concurrency = 4            # components worked on side by side

# [source]                 # pull from an upstream as well
# url    = \"/srv/git/desired.git\"
# branch = \"main\"
# poll   = \"60s\"
# timeout = \"60s\"         # longest time for one look

[watch]
resync          = \"30s\"
flap_threshold  = 3
flap_window     = \"5m\"
event_retention = \"90d\"

# [alert]
# command  = [\"/usr/local/bin/notify\"]   # a JSON document on standard input, and MCP_* variables
# timeout  = \"30s\"
# cooldown = \"10m\"

[policy]                   # what this node's owner allows, whatever a signer signs
host_paths     = [{host_path}]   # binds lie at or beneath these
privileged     = false     # whether a definition may ask for `privileged = true`
host_network   = false
bridge_network = true
devices        = []
registries     = []        # as in \"registry.example.net:5000\"; empty: any
ports          = [\"127.0.0.1:1024-65535\", \"[::1]:1024-65535\"]
capabilities   = []        # beyond the engine's usual ones, as in \"NET_ADMIN\"
security_opt   = []        # as in \"seccomp=unconfined\"

[files]                    # what `mcp push` and `mcp pull` may take
max_file = \"4GiB\"
quota    = \"64GiB\"         # below a service's folder; \"none\" for any
reserve  = \"256MiB\"        # stays free on the disk
keep     = \"2GiB\"          # of earlier versions, for `mcp push --undo`

# [metrics]                # of no effect yet: this release serves no metrics
# listen = \"127.0.0.1:9445\"
",
        node = values.node,
        node_quoted = quoted(values.node.as_str()),
        data_dir = path(values.data_dir),
        services_dir = path(values.services_dir),
        listen = quoted(&values.listen.to_string()),
        cert = data("tls/cert.pem"),
        key = data("tls/key.pem"),
        owners = data("owners.pub"),
        denied = data("denied_keys"),
        engine = values.engine.engine.as_str(),
        socket = quoted(&format!("unix://{}", values.engine.socket.display())),
        host_path = quoted(&format!("{}/{{service}}", values.services_dir.display())),
    )
}
