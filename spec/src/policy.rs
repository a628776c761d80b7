//! What a node's owner allows, whatever a signer signs.
//!
//! The policy is the node's, read from the agent's configuration: a signed definition cannot widen
//! it. [`Policy::violations`] is pure, so that a plan can say beforehand what would be refused.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::component::{ComponentSpec, Network, Port, VolumeSource};
use crate::name::ComponentKey;

/// Capabilities that a component may have without the owner's word: what podman 4.3 and docker 20.10
/// grant by default, less `NET_RAW` and `MKNOD`.
pub const DEFAULT_CAPABILITIES: [&str; 12] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Log drivers that a component may name without the owner's word: those that keep the lines on the node,
/// with the engine. The others send them to an address that the definition gives.
pub const DEFAULT_LOG_DRIVERS: [&str; 5] = ["json-file", "local", "k8s-file", "journald", "none"];

/// Paths that hold an engine's socket or store: a bind that touches one hands over the node.
pub const ENGINE_PATHS: [&str; 12] = [
    "/run/podman",
    "/var/run/podman",
    "/run/docker",
    "/var/run/docker",
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd",
    "/run/containers",
    "/run/libpod",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/containers",
];

/// What this node's owner allows a definition to ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Paths at or beneath which a bind's source must lie; `{service}` stands for the service's name.
    pub host_paths: Vec<String>,
    /// Folders that a container may write although a bind's source lies strictly beneath: whoever writes
    /// there is trusted not to put something else in the source's place. `{service}` as in `host_paths`.
    pub nested_binds: Vec<String>,
    /// Whether a component may be privileged.
    pub privileged: bool,
    /// Whether a component may use the node's own network stack.
    pub host_network: bool,
    /// Whether a component may use the engine's default bridge.
    pub bridge_network: bool,
    /// Devices of the node that a component may be given.
    pub devices: Vec<String>,
    /// Registries (`HOST[:PORT]`) that images may come from; empty for any.
    pub registries: Vec<String>,
    /// Addresses and ports of the node that may be published.
    pub ports: Vec<PortRange>,
    /// Capabilities beyond [`DEFAULT_CAPABILITIES`] that may be added, without the `CAP_`.
    pub capabilities: Vec<String>,
    /// Options of `security_opt` that may be asked for, as definitions write them.
    pub security_opt: Vec<String>,
    /// Log drivers that may be named.
    pub log_drivers: Vec<String>,
    /// Further paths that no bind may touch: the agent adds its engine's socket.
    pub protected: Vec<String>,
}

/// One thing that a component asks for and the policy does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The definition's key, as in `volumes` or `cap_add`.
    pub field: String,
    /// What is refused, with its value and the policy's key.
    pub message: String,
    /// The mend.
    pub hint: String,
}

impl Policy {
    /// The policy of a node whose owner said nothing: binds beneath the service's own folder, any
    /// registry, unprivileged ports on the loopback addresses.
    #[must_use]
    pub fn default_for(services_dir: &str) -> Self {
        let services_dir = services_dir.trim_end_matches('/');
        Self {
            host_paths: vec![format!("{services_dir}/{{service}}")],
            nested_binds: Vec::new(),
            privileged: false,
            host_network: false,
            bridge_network: true,
            devices: Vec::new(),
            registries: Vec::new(),
            ports: [
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ]
            .map(|ip| PortRange {
                ip,
                from: 1024,
                to: u16::MAX,
            })
            .to_vec(),
            capabilities: Vec::new(),
            security_opt: Vec::new(),
            log_drivers: DEFAULT_LOG_DRIVERS.map(str::to_owned).to_vec(),
            protected: Vec::new(),
        }
    }

    /// Everything that `spec` asks for and this policy refuses, in the order of the spec's fields.
    ///
    /// `data_dir` is the agent's own folder, which no bind may touch whatever the policy says.
    #[must_use]
    pub fn violations(
        &self,
        key: &ComponentKey,
        spec: &ComponentSpec,
        data_dir: &str,
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        self.check_image(spec, &mut found);
        self.check_network(spec, &mut found);
        for port in &spec.ports {
            self.check_port(port, &mut found);
        }
        for volume in spec.volumes.values() {
            if let VolumeSource::Bind(source) = &volume.source {
                self.check_bind(key, source, data_dir, &mut found);
            }
        }
        for capability in &spec.cap_add {
            self.check_capability(capability, &mut found);
        }
        self.check_host(spec, &mut found);
        found
    }

    /// Paths that belong to an engine, and that no bind may touch.
    pub fn engine_paths(&self) -> impl Iterator<Item = &str> {
        ENGINE_PATHS
            .iter()
            .copied()
            .chain(self.protected.iter().map(String::as_str))
    }

    /// The longest of the allowed host paths that a bind's source lies at or beneath.
    #[must_use]
    pub fn host_path_of(&self, key: &ComponentKey, source: &str) -> Option<String> {
        let source = components(source)?;
        self.host_paths
            .iter()
            .map(|pattern| expanded(pattern, key))
            .filter(|prefix| components(prefix).is_some_and(|prefix| source.starts_with(&prefix)))
            .max_by_key(String::len)
    }

    /// Whether the containers that write `folder` are trusted with what lies beneath it.
    #[must_use]
    pub fn allows_beneath(&self, key: &ComponentKey, folder: &str) -> bool {
        components(folder).is_some_and(|folder| {
            self.nested_binds.iter().any(|pattern| {
                components(&expanded(pattern, key))
                    .is_some_and(|trusted| folder.starts_with(&trusted))
            })
        })
    }

    fn check_image(&self, spec: &ComponentSpec, found: &mut Vec<Violation>) {
        let registry = spec.image.registry();
        // An image of this node's own store comes from no registry at all.
        if self.registries.is_empty()
            || registry == "localhost"
            || self.registries.iter().any(|allowed| allowed == registry)
        {
            return;
        }
        found.push(Violation {
            field: "image".to_owned(),
            message: format!("image {} outside policy.registries", spec.image),
            hint: allow("registries", &format!("\"{registry}\"")),
        });
    }

    fn check_network(&self, spec: &ComponentSpec, found: &mut Vec<Violation>) {
        let (name, key) = match &spec.network {
            Network::Host if !self.host_network => ("host", "host_network"),
            Network::Bridge if !self.bridge_network => ("bridge", "bridge_network"),
            Network::None | Network::Host | Network::Bridge | Network::User(_) => return,
        };
        found.push(Violation {
            field: "network".to_owned(),
            message: format!("network {name} refused by policy.{key}"),
            hint: format!(
                "leave `network` out for the service's own network, or set {key} = true under \
                 [policy] in agent.toml"
            ),
        });
    }

    fn check_port(&self, port: &Port, found: &mut Vec<Violation>) {
        if self
            .ports
            .iter()
            .any(|range| range.allows(port.ip, port.host))
        {
            return;
        }
        let wanted = PortRange {
            ip: port.ip,
            from: port.host,
            to: port.host,
        };
        found.push(Violation {
            field: "ports".to_owned(),
            message: format!("port {port} outside policy.ports"),
            hint: allow("ports", &format!("\"{wanted}\"")),
        });
    }

    fn check_bind(
        &self,
        key: &ComponentKey,
        source: &str,
        data_dir: &str,
        found: &mut Vec<Violation>,
    ) {
        let field = "volumes".to_owned();
        let Some(path) = components(source) else {
            found.push(Violation {
                field,
                message: format!("bind {source} is not a plain absolute path"),
                hint: "write the path from the root, without `.` and `..`".to_owned(),
            });
            return;
        };
        if overlaps(&path, data_dir) {
            found.push(Violation {
                field,
                message: format!("bind {source} touches the agent's data directory {data_dir}"),
                hint: "no policy allows this: bind another folder".to_owned(),
            });
            return;
        }
        let engine = self
            .engine_paths()
            .find(|protected| overlaps(&path, protected));
        if let Some(engine) = engine {
            found.push(Violation {
                field,
                message: format!("bind {source} touches the engine's own {engine}"),
                hint: "no policy allows this: whoever holds the engine's socket holds the node"
                    .to_owned(),
            });
            return;
        }
        if self.host_path_of(key, source).is_none() {
            found.push(Violation {
                field,
                message: format!("bind {source} outside policy.host_paths"),
                hint: allow("host_paths", &format!("\"{source}\"")),
            });
        }
    }

    fn check_host(&self, spec: &ComponentSpec, found: &mut Vec<Violation>) {
        for device in spec.devices.values() {
            let given = components(&device.host).is_some_and(|path| {
                self.devices.iter().any(|allowed| {
                    components(allowed).is_some_and(|allowed| path.starts_with(&allowed))
                })
            });
            if !given {
                found.push(Violation {
                    field: "devices".to_owned(),
                    message: format!("device {} outside policy.devices", device.host),
                    hint: allow("devices", &format!("\"{}\"", device.host)),
                });
            }
        }
        for option in &spec.security_opt {
            if !self.security_opt.contains(option) {
                found.push(Violation {
                    field: "security_opt".to_owned(),
                    message: format!("security option {option} outside policy.security_opt"),
                    hint: allow("security_opt", &format!("\"{option}\"")),
                });
            }
        }
        if spec.privileged && !self.privileged {
            found.push(Violation {
                field: "privileged".to_owned(),
                message: "privileged refused by policy.privileged".to_owned(),
                hint: "name what the program needs with `cap_add`, or set privileged = true under \
                       [policy] in agent.toml"
                    .to_owned(),
            });
        }
        if let Some(log) = &spec.log
            && !self.log_drivers.contains(&log.driver)
        {
            found.push(Violation {
                field: "log".to_owned(),
                message: format!("log driver {} outside policy.log_drivers", log.driver),
                hint: allow("log_drivers", &format!("\"{}\"", log.driver)),
            });
        }
    }

    fn check_capability(&self, capability: &str, found: &mut Vec<Violation>) {
        let bare = capability.strip_prefix("CAP_").unwrap_or(capability);
        let allowed = DEFAULT_CAPABILITIES.contains(&bare)
            || self
                .capabilities
                .iter()
                .any(|allowed| allowed.strip_prefix("CAP_").unwrap_or(allowed) == bare);
        if !allowed {
            found.push(Violation {
                field: "cap_add".to_owned(),
                message: format!("capability {bare} outside policy.capabilities"),
                hint: allow("capabilities", &format!("\"{bare}\"")),
            });
        }
    }
}

/// A pattern of the policy, for one component.
fn expanded(pattern: &str, key: &ComponentKey) -> String {
    pattern.replace("{service}", key.service.as_str())
}

/// The mend that a key of the policy is.
#[must_use]
pub fn allow(key: &str, value: &str) -> String {
    format!("the node's owner allows it with {value} in {key} under [policy] in agent.toml")
}

/// The components of an absolute path, `None` where it is relative or has `.` or `..`.
fn components(path: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = path
        .strip_prefix('/')?
        .split('/')
        .filter(|part| !part.is_empty())
        .collect();
    (!parts.iter().any(|part| matches!(*part, "." | ".."))).then_some(parts)
}

/// Whether one of the two paths lies at or beneath the other.
fn overlaps(path: &[&str], other: &str) -> bool {
    components(other).is_some_and(|other| path.starts_with(&other) || other.starts_with(path))
}

/// Ports of one address that may be published: `127.0.0.1:1024-65535`, `[::1]:8080`.
///
/// The unspecified address (`0.0.0.0`, `[::]`) stands for every address of its family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// The node's address.
    pub ip: IpAddr,
    /// First port.
    pub from: u16,
    /// Last port.
    pub to: u16,
}

impl PortRange {
    /// Whether publishing `port` on `ip` falls in this range.
    #[must_use]
    pub fn allows(&self, ip: IpAddr, port: u16) -> bool {
        let address =
            self.ip == ip || (self.ip.is_unspecified() && self.ip.is_ipv4() == ip.is_ipv4());
        address && (self.from..=self.to).contains(&port)
    }
}

/// A text is no port range.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a port range: write ADDRESS:PORT or ADDRESS:FROM-TO, as in `127.0.0.1:1024-65535` or `[::1]:8080`"
)]
pub struct PortRangeError {
    /// The refused text.
    pub text: String,
}

impl FromStr for PortRange {
    type Err = PortRangeError;

    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let parse = || {
            let (ip, ports) = text.rsplit_once(':')?;
            let ip = match ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')) {
                Some(ip) => IpAddr::V6(ip.parse().ok()?),
                None => IpAddr::V4(ip.parse().ok()?),
            };
            let (from, to) = ports.split_once('-').unwrap_or((ports, ports));
            let (from, to) = (from.parse().ok()?, to.parse().ok()?);
            (from <= to).then_some(Self { ip, from, to })
        };
        parse().ok_or_else(|| PortRangeError {
            text: text.chars().take(80).collect(),
        })
    }
}

impl TryFrom<String> for PortRange {
    type Error = PortRangeError;

    fn try_from(text: String) -> Result<Self, PortRangeError> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", self.from)?,
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}", self.from)?,
        }
        if self.from == self.to {
            Ok(())
        } else {
            write!(f, "-{}", self.to)
        }
    }
}

#[cfg(test)]
mod tests;
