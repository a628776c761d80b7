//! A component compiled into docker's create call. Pure: no engine is asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bollard::models::{
    ContainerCreateBody, DeviceMapping, EndpointSettings, HealthConfig, HostConfig,
    HostConfigLogConfig, Mount, MountType, NetworkConnectRequest, NetworkingConfig, PortBinding,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use mcp_spec::component::{Attachment, ComponentSpec, Network, VolumeSource};
use mcp_spec::observed::label;

use super::super::ContainerRequest;

/// Capabilities of the engines' default set that a component has to ask for.
const NOT_BY_DEFAULT: [&str; 2] = ["MKNOD", "NET_RAW"];

/// Everything that docker needs for one container.
pub(super) struct DockerCreate {
    /// The create call's body.
    pub body: ContainerCreateBody,
    /// Networks to connect before the start: API versions before 1.44 take one at create.
    pub connect: Vec<(String, NetworkConnectRequest)>,
}

/// Compiles a request for docker.
pub(super) fn docker_create(request: &ContainerRequest) -> DockerCreate {
    let spec = &request.spec;
    let (mode, networking_config, connect) = networks(&spec.network);
    let capabilities = Capabilities::of(spec);
    let security = Security::of(spec);
    let host_config = HostConfig {
        network_mode: Some(mode),
        port_bindings: (!spec.ports.is_empty()).then(|| port_bindings(spec)),
        mounts: Some(mounts(request)),
        tmpfs: (!spec.tmpfs.is_empty()).then(|| {
            spec.tmpfs
                .iter()
                .map(|(target, tmpfs)| (target.clone(), joined(&tmpfs.options)))
                .collect()
        }),
        // The agent applies the component's own policy.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: None,
        }),
        init: Some(spec.init),
        memory: spec.resources.memory_bytes.map(|bytes| signed(bytes, 1)),
        nano_cpus: spec
            .resources
            .cpu_millis
            .map(|millis| signed(millis, 1_000_000)),
        pids_limit: Some(i64::from(spec.resources.pids)),
        readonly_rootfs: Some(spec.read_only),
        cap_add: Some(capabilities.add),
        cap_drop: Some(capabilities.drop),
        security_opt: Some(security.engine),
        masked_paths: security.system_paths.then(Vec::new),
        readonly_paths: security.system_paths.then(Vec::new),
        privileged: Some(spec.privileged),
        devices: (!spec.devices.is_empty()).then(|| devices(spec)),
        ulimits: (!spec.ulimits.is_empty()).then(|| ulimits(spec)),
        sysctls: (!spec.sysctls.is_empty()).then(|| spec.sysctls.clone().into_iter().collect()),
        log_config: spec.log.as_ref().map(|log| HostConfigLogConfig {
            typ: Some(log.driver.clone()),
            config: Some(log.options.clone().into_iter().collect()),
        }),
        extra_hosts: (!spec.extra_hosts.is_empty()).then(|| extra_hosts(spec)),
        dns: (!spec.dns.is_empty()).then(|| spec.dns.iter().map(ToString::to_string).collect()),
        ..HostConfig::default()
    };
    let body = ContainerCreateBody {
        image: Some(request.image.as_str().to_owned()),
        entrypoint: spec.entrypoint.clone(),
        cmd: spec.cmd.clone(),
        env: Some(
            request
                .environment()
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
        ),
        user: spec.user.clone(),
        working_dir: spec.workdir.clone(),
        hostname: spec.hostname.clone(),
        labels: Some(labels(request).into_iter().collect()),
        exposed_ports: (!spec.ports.is_empty()).then(|| {
            spec.ports
                .iter()
                .map(|port| format!("{}/{}", port.container, port.protocol))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect()
        }),
        stop_signal: spec.stop_signal.clone(),
        stop_timeout: Some(stop_seconds(spec).into()),
        // An image's own check would run beside the agent's.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        }),
        host_config: Some(host_config),
        networking_config,
        ..ContainerCreateBody::default()
    };
    DockerCreate { body, connect }
}

/// The component's labels and the agent's; the agent's win.
pub(super) fn labels(request: &ContainerRequest) -> BTreeMap<String, String> {
    let mut labels = request.spec.labels.clone();
    labels.extend(request.labels.clone());
    if !request.secret_env.is_empty() {
        // `=` stands in no variable's name.
        let names: Vec<&str> = request.secret_env.keys().map(String::as_str).collect();
        labels.insert(label::SECRET_ENV.to_owned(), names.join("="));
    }
    labels
}

/// Seconds of the stop timeout, as both engines count them.
pub(super) fn stop_seconds(spec: &ComponentSpec) -> u32 {
    u32::try_from(spec.stop_timeout.as_secs_ceil()).unwrap_or(u32::MAX)
}

/// Lines of `/etc/hosts` as both engines take them.
pub(super) fn extra_hosts(spec: &ComponentSpec) -> Vec<String> {
    spec.extra_hosts
        .iter()
        .map(|(name, address)| format!("{name}:{address}"))
        .collect()
}

/// What a container may do beyond and below the engine's default set.
pub(super) struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
}

impl Capabilities {
    /// The component's own, and the defaults that it did not ask for.
    pub(super) fn of(spec: &ComponentSpec) -> Self {
        let mut drop = spec.cap_drop.clone();
        // A privileged container has them all.
        if !spec.privileged && !drop.contains("ALL") && !spec.cap_add.contains("ALL") {
            drop.extend(
                NOT_BY_DEFAULT
                    .into_iter()
                    .filter(|name| !spec.cap_add.contains(*name))
                    .map(str::to_owned),
            );
        }
        Self {
            add: spec.cap_add.iter().cloned().collect(),
            drop: drop.into_iter().collect(),
        }
    }
}

/// How far the engine's confinement is taken back.
pub(super) struct Security {
    /// The options that docker takes, `no-new-privileges` among them unless it was taken back.
    pub engine: Vec<String>,
    /// Whether processes gain no privileges.
    pub no_new_privileges: bool,
    /// Whether no path of `/proc` and `/sys` is hidden.
    pub system_paths: bool,
}

impl Security {
    /// What a component asks for.
    pub(super) fn of(spec: &ComponentSpec) -> Self {
        let mut security = Self {
            engine: Vec::new(),
            no_new_privileges: true,
            system_paths: false,
        };
        for option in &spec.security_opt {
            match option.as_str() {
                "no-new-privileges=false" => security.no_new_privileges = false,
                "systempaths=unconfined" => security.system_paths = true,
                _ => security.engine.push(option.clone()),
            }
        }
        if security.no_new_privileges {
            security.engine.push("no-new-privileges".to_owned());
        }
        security
    }
}

fn devices(spec: &ComponentSpec) -> Vec<DeviceMapping> {
    spec.devices
        .iter()
        .map(|(target, device)| DeviceMapping {
            path_on_host: Some(device.host.clone()),
            path_in_container: Some(target.clone()),
            cgroup_permissions: Some(device.permissions.clone()),
        })
        .collect()
}

fn ulimits(spec: &ComponentSpec) -> Vec<ResourcesUlimits> {
    // Docker writes -1 for no limit.
    let written = |limit: Option<u64>| limit.map_or(-1, |limit| signed(limit, 1));
    spec.ulimits
        .iter()
        .map(|(name, limit)| ResourcesUlimits {
            name: Some(name.clone()),
            soft: Some(written(limit.soft)),
            hard: Some(written(limit.hard)),
        })
        .collect()
}

fn networks(
    network: &Network,
) -> (
    String,
    Option<NetworkingConfig>,
    Vec<(String, NetworkConnectRequest)>,
) {
    let attachments = match network {
        Network::None => return ("none".to_owned(), None, Vec::new()),
        Network::Host => return ("host".to_owned(), None, Vec::new()),
        Network::Bridge => return ("bridge".to_owned(), None, Vec::new()),
        Network::User(attachments) => attachments,
    };
    let mut all = attachments
        .iter()
        .map(|(name, attachment)| (name.clone(), endpoint(attachment)));
    let Some((first, settings)) = all.next() else {
        return ("none".to_owned(), None, Vec::new());
    };
    let connect = all
        .map(|(name, settings)| {
            (
                name,
                NetworkConnectRequest {
                    endpoint_config: Some(settings),
                    ..NetworkConnectRequest::default()
                },
            )
        })
        .collect();
    let config = NetworkingConfig {
        endpoints_config: Some(HashMap::from([(first.clone(), settings)])),
    };
    (first, Some(config), connect)
}

fn endpoint(attachment: &Attachment) -> EndpointSettings {
    EndpointSettings {
        aliases: Some(attachment.aliases.iter().cloned().collect()),
        ..EndpointSettings::default()
    }
}

fn port_bindings(spec: &ComponentSpec) -> HashMap<String, Option<Vec<PortBinding>>> {
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    for port in &spec.ports {
        bindings
            .entry(format!("{}/{}", port.container, port.protocol))
            .or_default()
            .get_or_insert_default()
            .push(PortBinding {
                host_ip: Some(port.ip.to_string()),
                host_port: Some(port.host.to_string()),
            });
    }
    bindings
}

fn mounts(request: &ContainerRequest) -> Vec<Mount> {
    let volumes = request.spec.volumes.iter().map(|(target, volume)| {
        let (typ, source) = match &volume.source {
            VolumeSource::Bind(path) => (MountType::BIND, path),
            VolumeSource::Named(name) => (MountType::VOLUME, name),
        };
        mount(target, typ, source.clone(), volume.read_only)
    });
    let files = request.files.iter().map(|(target, path)| {
        mount(
            target,
            MountType::BIND,
            path.to_string_lossy().into_owned(),
            true,
        )
    });
    volumes.chain(files).collect()
}

fn mount(target: &str, typ: MountType, source: String, read_only: bool) -> Mount {
    Mount {
        target: Some(target.to_owned()),
        source: Some(source),
        typ: Some(typ),
        read_only: Some(read_only),
        ..Mount::default()
    }
}

fn joined(options: &BTreeSet<String>) -> String {
    options.iter().cloned().collect::<Vec<_>>().join(",")
}

/// `value` times `factor` in the signed numbers of the engines' APIs.
pub(super) fn signed(value: u64, factor: u64) -> i64 {
    i64::try_from(value.saturating_mul(factor)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::samples::every_key;
    use super::*;

    fn body(request: &ContainerRequest) -> Value {
        serde_json::to_value(docker_create(request).body).unwrap()
    }

    #[test]
    fn every_key_is_compiled_for_docker() {
        let request = every_key();
        let body = body(&request);
        assert_eq!(body["Image"], "sha256:ff");
        assert_eq!(body["Entrypoint"], json!(["/bin/web"]));
        assert_eq!(body["Cmd"], json!(["--port", "8080"]));
        assert_eq!(body["Env"], json!(["A=1", "B=two words"]));
        assert_eq!(body["User"], "1000:1000");
        assert_eq!(body["WorkingDir"], "/srv");
        assert_eq!(body["Hostname"], "hosty");
        assert_eq!(body["Labels"], json!({ "x": "y", "mcp.node": "rift" }));
        assert_eq!(body["StopSignal"], "SIGINT");
        assert_eq!(body["StopTimeout"], 7);
        assert_eq!(body["Healthcheck"]["Test"], json!(["NONE"]));
        assert_eq!(body["ExposedPorts"], json!({ "8080/tcp": {} }));
        let host = &body["HostConfig"];
        assert_eq!(host["NetworkMode"], "back");
        assert_eq!(
            host["PortBindings"]["8080/tcp"],
            json!([
                { "HostIp": "127.0.0.1", "HostPort": "18080" },
                { "HostIp": "127.0.0.1", "HostPort": "18081" }
            ])
        );
        assert_eq!(
            host["Mounts"],
            json!([
                { "Target": "/cache", "Source": "shop_cache", "Type": "volume", "ReadOnly": false },
                { "Target": "/data", "Source": "/srv/shop", "Type": "bind", "ReadOnly": true },
                { "Target": "/etc/web.toml", "Source": "/var/lib/mcp/web.toml", "Type": "bind", "ReadOnly": true }
            ])
        );
        assert_eq!(host["Tmpfs"], json!({ "/scratch": "exec,size=1m" }));
        assert_eq!(host["RestartPolicy"], json!({ "Name": "no" }));
        assert_eq!(host["Init"], true);
        assert_eq!(host["Memory"], 64 << 20);
        assert_eq!(host["NanoCpus"], 500_000_000);
        assert_eq!(host["PidsLimit"], 99);
        assert_eq!(host["ReadonlyRootfs"], true);
        assert_eq!(host["CapAdd"], json!(["NET_RAW"]));
        assert_eq!(host["CapDrop"], json!(["CHOWN", "MKNOD"]));
        assert_eq!(host["SecurityOpt"], json!(["no-new-privileges"]));
        assert_eq!(host["ExtraHosts"], json!(["db:10.1.2.3"]));
        assert_eq!(host["Dns"], json!(["10.9.9.9"]));
        assert_eq!(host["Privileged"], false);
        assert_eq!(
            host["Devices"],
            json!([{ "PathOnHost": "/dev/fuse", "PathInContainer": "/dev/f", "CgroupPermissions": "rw" }])
        );
        assert_eq!(
            host["Ulimits"],
            json!([
                { "Name": "core", "Soft": 0, "Hard": -1 },
                { "Name": "nofile", "Soft": 100, "Hard": 100 }
            ])
        );
        assert_eq!(host["Sysctls"], json!({ "net.core.somaxconn": "7" }));
        assert_eq!(
            host["LogConfig"],
            json!({ "Type": "json-file", "Config": { "max-size": "10m" } })
        );
    }

    #[test]
    fn confinement_is_taken_back_only_where_asked() {
        let mut request = every_key();
        request.spec.security_opt = [
            "apparmor=mine".to_owned(),
            "label=level:s0".to_owned(),
            "no-new-privileges=false".to_owned(),
            "seccomp=unconfined".to_owned(),
            "systempaths=unconfined".to_owned(),
        ]
        .into();
        let host = &body(&request)["HostConfig"];
        assert_eq!(
            host["SecurityOpt"],
            json!(["apparmor=mine", "label=level:s0", "seccomp=unconfined"])
        );
        assert_eq!(
            (&host["MaskedPaths"], &host["ReadonlyPaths"]),
            (&json!([]), &json!([]))
        );
        let plain = body(&every_key());
        assert_eq!(plain["HostConfig"].get("MaskedPaths"), None);
        request.spec.privileged = true;
        request.spec.cap_add.clear();
        request.spec.cap_drop.clear();
        let host = &body(&request)["HostConfig"];
        assert_eq!(host["Privileged"], true);
        assert_eq!(
            host["CapDrop"],
            json!([]),
            "nothing is taken from a privileged one"
        );
    }

    #[test]
    fn docker_gets_one_network_at_create_and_the_others_after() {
        let compiled = docker_create(&every_key());
        let at_create = compiled.body.networking_config.unwrap();
        let endpoints = at_create.endpoints_config.unwrap();
        assert_eq!(endpoints.keys().collect::<Vec<_>>(), ["back"]);
        let (name, body) = &compiled.connect[0];
        assert_eq!(compiled.connect.len(), 1);
        assert_eq!(name, "shop");
        let aliases = body.endpoint_config.as_ref().unwrap().aliases.as_ref();
        assert!(aliases.unwrap().contains(&"web".to_owned()));
    }

    #[test]
    fn asked_for_capability_is_not_dropped() {
        let mut spec = every_key().spec;
        spec.cap_add = ["NET_RAW".to_owned()].into();
        spec.cap_drop.clear();
        assert_eq!(Capabilities::of(&spec).drop, ["MKNOD"]);
        spec.cap_drop = ["ALL".to_owned()].into();
        assert_eq!(Capabilities::of(&spec).drop, ["ALL"]);
    }

    #[test]
    fn empty_and_absent_commands_differ() {
        let mut request = every_key();
        request.spec.entrypoint = Some(Vec::new());
        request.spec.cmd = None;
        let body = body(&request);
        assert_eq!(body["Entrypoint"], json!([]));
        assert_eq!(body.get("Cmd"), None);
    }

    #[test]
    fn named_modes_join_no_network() {
        for (network, mode) in [
            (Network::None, "none"),
            (Network::Host, "host"),
            (Network::Bridge, "bridge"),
        ] {
            let mut request = every_key();
            request.spec.network = network;
            let body = body(&request);
            assert_eq!(body["HostConfig"]["NetworkMode"], mode);
            assert_eq!(body.get("NetworkingConfig"), None);
        }
    }

    #[test]
    fn agent_labels_win() {
        let mut request = every_key();
        request
            .spec
            .labels
            .insert("mcp.node".to_owned(), "forged".to_owned());
        assert_eq!(labels(&request)["mcp.node"], "rift");
    }
}
