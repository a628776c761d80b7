//! Podman's own calls, where its docker-compatible ones fall short.
//!
//! Containers are created by libpod's call: it takes all networks at once, and it alone can set a
//! health command with no timer of podman's behind it. That command is then run by libpod's health
//! check call, which leaves no process behind; an `exec` over the API keeps two for 300 s.

mod host;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use mcp_spec::component::{ComponentSpec, Network, Probe, VolumeSource};
use mcp_spec::signal;
use serde::{Deserialize, Serialize};

use super::super::{ContainerRequest, EngineFacts, RuntimeError};
use super::compile::{Capabilities, Security, extra_hosts, labels, signed, stop_seconds};
pub(super) use host::hard_limit;
use host::{Device, LogConfiguration, RLimit};

/// A period of the CPU scheduler, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// libpod's create call, with the fields that MCP uses.
#[derive(Debug, Serialize)]
pub(super) struct SpecGenerator {
    name: String,
    image: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<Vec<String>>,
    env: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    work_dir: Option<String>,
    create_working_dir: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<i32>,
    stop_timeout: u32,
    restart_policy: &'static str,
    init: bool,
    netns: Namespace,
    #[serde(rename = "Networks", skip_serializing_if = "BTreeMap::is_empty")]
    networks: BTreeMap<String, NetworkOptions>,
    portmappings: Vec<PortMapping>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dns_server: Vec<IpAddr>,
    hostadd: Vec<String>,
    mounts: Vec<OciMount>,
    volumes: Vec<NamedVolume>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource_limits: Option<ResourceLimits>,
    read_only_filesystem: bool,
    read_write_tmpfs: bool,
    cap_add: Vec<String>,
    cap_drop: Vec<String>,
    no_new_privileges: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    seccomp_profile_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    apparmor_profile: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    selinux_opts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unmask: Vec<&'static str>,
    privileged: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    devices: Vec<Device>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    r_limits: Vec<RLimit>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    sysctl: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    log_configuration: Option<LogConfiguration>,
    healthconfig: HealthConfig,
    #[serde(rename = "sdnotifyMode")]
    sdnotify_mode: &'static str,
}

#[derive(Debug, Serialize)]
struct Namespace {
    nsmode: &'static str,
}

#[derive(Debug, Serialize)]
struct NetworkOptions {
    aliases: BTreeSet<String>,
}

#[derive(Debug, Serialize)]
struct PortMapping {
    host_ip: IpAddr,
    host_port: u16,
    container_port: u16,
    protocol: String,
}

#[derive(Debug, Serialize)]
struct OciMount {
    destination: String,
    #[serde(rename = "type")]
    kind: &'static str,
    source: String,
    options: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NamedVolume {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "Dest")]
    target: String,
    #[serde(rename = "Options")]
    options: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct ResourceLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<MemoryLimit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<CpuLimit>,
    pids: PidsLimit,
}

#[derive(Debug, Serialize)]
struct MemoryLimit {
    limit: i64,
    swap: i64,
}

#[derive(Debug, Serialize)]
struct CpuLimit {
    quota: i64,
    period: u64,
}

#[derive(Debug, Serialize)]
struct PidsLimit {
    limit: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct HealthConfig {
    test: Vec<String>,
    /// 0: podman sets up no timer, the agent asks.
    interval: u64,
    timeout: u64,
    retries: u32,
}

/// Compiles a request for libpod. Where the engine cannot apply limits at all none are named: some
/// hosts would refuse the container for them.
pub(super) fn spec_generator(
    request: &ContainerRequest,
    facts: &EngineFacts,
) -> Result<SpecGenerator, RuntimeError> {
    let spec = &request.spec;
    host::refused(spec, facts)?;
    let security = Security::of(spec);
    let capabilities = Capabilities::of(spec);
    let (netns, networks) = networks(&spec.network);
    Ok(SpecGenerator {
        name: request.name.clone(),
        image: request.image.as_str().to_owned(),
        entrypoint: spec.entrypoint.clone(),
        command: spec.cmd.clone(),
        env: request.environment(),
        user: spec.user.clone(),
        work_dir: spec.workdir.clone(),
        create_working_dir: true,
        hostname: spec.hostname.clone(),
        labels: labels(request),
        stop_signal: spec.stop_signal.as_deref().map(number).transpose()?,
        stop_timeout: stop_seconds(spec),
        restart_policy: "no",
        init: spec.init,
        netns: Namespace { nsmode: netns },
        networks,
        portmappings: spec
            .ports
            .iter()
            .map(|port| PortMapping {
                host_ip: port.ip,
                host_port: port.host,
                container_port: port.container,
                protocol: port.protocol.to_string(),
            })
            .collect(),
        dns_server: spec.dns.clone(),
        hostadd: extra_hosts(spec),
        mounts: mounts(request),
        volumes: named_volumes(spec),
        resource_limits: facts.limits.then(|| resource_limits(spec)),
        read_only_filesystem: spec.read_only,
        read_write_tmpfs: false,
        cap_add: capabilities.add,
        cap_drop: capabilities.drop,
        no_new_privileges: security.no_new_privileges,
        seccomp_profile_path: host::option(spec, "seccomp"),
        apparmor_profile: host::option(spec, "apparmor"),
        selinux_opts: host::selinux(spec),
        unmask: if security.system_paths {
            vec!["ALL"]
        } else {
            Vec::new()
        },
        privileged: spec.privileged,
        devices: host::devices(spec),
        r_limits: host::r_limits(spec),
        sysctl: spec.sysctls.clone(),
        log_configuration: host::log(spec)?,
        healthconfig: health(spec),
        sdnotify_mode: "ignore",
    })
}

fn number(name: &str) -> Result<i32, RuntimeError> {
    signal::number(name)
        .map(i32::from)
        .ok_or_else(|| RuntimeError::Unsupported {
            what: format!("stop_signal = \"{name}\""),
            why: "Linux has no signal of this name".to_owned(),
        })
}

fn networks(network: &Network) -> (&'static str, BTreeMap<String, NetworkOptions>) {
    match network {
        Network::None => ("none", BTreeMap::new()),
        Network::Host => ("host", BTreeMap::new()),
        Network::Bridge => ("bridge", BTreeMap::new()),
        Network::User(attachments) => (
            "bridge",
            attachments
                .iter()
                .map(|(name, attachment)| {
                    (
                        name.clone(),
                        NetworkOptions {
                            aliases: attachment.aliases.clone(),
                        },
                    )
                })
                .collect(),
        ),
    }
}

fn mounts(request: &ContainerRequest) -> Vec<OciMount> {
    let bind = |target: &str, source: String, read_only: bool| OciMount {
        destination: target.to_owned(),
        kind: "bind",
        source,
        options: vec![
            "rbind".to_owned(),
            "rprivate".to_owned(),
            (if read_only { "ro" } else { "rw" }).to_owned(),
        ],
    };
    let binds = request
        .spec
        .volumes
        .iter()
        .filter_map(|(target, volume)| match &volume.source {
            VolumeSource::Bind(path) => Some(bind(target, path.clone(), volume.read_only)),
            VolumeSource::Named(_) => None,
        });
    let files = request
        .files
        .iter()
        .map(|(target, path)| bind(target, path.to_string_lossy().into_owned(), true));
    let tmpfs = request.spec.tmpfs.iter().map(|(target, tmpfs)| OciMount {
        destination: target.clone(),
        kind: "tmpfs",
        source: "tmpfs".to_owned(),
        options: tmpfs_options(&tmpfs.options),
    });
    binds.chain(files).chain(tmpfs).collect()
}

/// The options of a tmpfs, with docker's defaults where they do not say otherwise: `noexec`, `nosuid`,
/// `nodev`, and nothing copied from the image.
fn tmpfs_options(asked: &BTreeSet<String>) -> Vec<String> {
    let mut options: Vec<String> = asked.iter().cloned().collect();
    for (default, opposite) in [
        ("noexec", "exec"),
        ("nosuid", "suid"),
        ("nodev", "dev"),
        ("notmpcopyup", "tmpcopyup"),
    ] {
        if !asked.contains(default) && !asked.contains(opposite) {
            options.push(default.to_owned());
        }
    }
    options
}

fn named_volumes(spec: &ComponentSpec) -> Vec<NamedVolume> {
    spec.volumes
        .iter()
        .filter_map(|(target, volume)| match &volume.source {
            VolumeSource::Named(name) => Some(NamedVolume {
                name: name.clone(),
                target: target.clone(),
                options: vec![if volume.read_only { "ro" } else { "rw" }],
            }),
            VolumeSource::Bind(_) => None,
        })
        .collect()
}

fn resource_limits(spec: &ComponentSpec) -> ResourceLimits {
    let resources = &spec.resources;
    ResourceLimits {
        // Twice the memory with swap, as docker and podman's command line have it.
        memory: resources.memory_bytes.map(|bytes| MemoryLimit {
            limit: signed(bytes, 1),
            swap: signed(bytes, 2),
        }),
        cpu: resources.cpu_millis.map(|millis| CpuLimit {
            quota: signed(millis, CPU_PERIOD / 1000),
            period: CPU_PERIOD,
        }),
        pids: PidsLimit {
            limit: resources.pids,
        },
    }
}

fn health(spec: &ComponentSpec) -> HealthConfig {
    match &spec.health {
        Some(health) => match &health.probe {
            Probe::Cmd(command) => HealthConfig {
                test: health_test(command),
                interval: 0,
                timeout: u64::try_from(health.timeout.as_duration().as_nanos()).unwrap_or(u64::MAX),
                // The agent counts. With 1 the answer to one call tells of that call alone.
                retries: 1,
            },
            Probe::Http { .. } | Probe::Tcp(_) => HealthConfig::none(),
        },
        None => HealthConfig::none(),
    }
}

impl HealthConfig {
    /// An image's own check must not run.
    fn none() -> Self {
        Self {
            test: vec!["NONE".to_owned()],
            interval: 0,
            timeout: 0,
            retries: 1,
        }
    }
}

/// A health command as containers are created with it, and as inspect shows it again.
pub(super) fn health_test(command: &[String]) -> Vec<String> {
    let mut test = vec!["CMD".to_owned()];
    test.extend(command.iter().cloned());
    test
}

/// What libpod's health check call answers.
#[derive(Debug, Deserialize)]
pub(super) struct HealthAnswer {
    #[serde(rename = "Status")]
    pub status: String,
}

/// What libpod says of itself.
#[derive(Debug, Deserialize)]
pub(super) struct LibpodInfo {
    pub host: LibpodHost,
}

/// The part of it that MCP asks for.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LibpodHost {
    #[serde(default)]
    pub cgroup_controllers: Option<Vec<String>>,
    pub security: LibpodSecurity,
    #[serde(default)]
    pub id_mappings: IdMappings,
}

/// How the ids of containers map to the node's. Nothing where they are the node's.
#[derive(Debug, Default, Deserialize)]
pub(super) struct IdMappings {
    #[serde(default)]
    pub uidmap: Option<Vec<IdRange>>,
}

/// One line of such a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct IdRange {
    pub container_id: u32,
    pub host_id: u32,
    pub size: u32,
}

/// How it runs.
#[derive(Debug, Deserialize)]
pub(super) struct LibpodSecurity {
    pub rootless: bool,
}

/// Longest time that the agent waits for `info`, which looks at the whole host.
pub(super) const INFO_LIMIT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests;
