//! What the engines say of a container that the agent did not make, as a definition would have it.
//!
//! What comes from the image is left out, and so is what the engine adds by itself. Field names of the
//! departures are those of a plan's changes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use mcp_spec::capture::{Captured, name_servers};
use mcp_spec::component::{
    Attachment, Device, Health, Log, Network, Port, Probe, Protocol, Restart, Tmpfs, Ulimit,
    Volume, VolumeSource,
};
use mcp_spec::duration::Span;
use mcp_spec::image::ImageRef;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::ContainerId;
use mcp_spec::plan::AUTO_REMOVE;
use mcp_spec::signal;
use serde_json::Value;

use super::super::{Capture, EngineName, Runtime as _, RuntimeError};
use super::http::{Call, encoded};
use super::normalise::{
    cpus, entries, is_default_bridge, is_secret, pids, restart, security, stop_signal, string_map,
    strings, text, truth,
};
use super::{DockerRuntime, images, normalise, session};

/// Variables that podman sets by itself, with what it sets them to.
const PODMAN_ENV: [&str; 4] = [
    "TERM=xterm",
    "container=podman",
    "container=oci",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
];

/// Options that podman gives every tmpfs.
const PODMAN_TMPFS: [&str; 6] = ["rw", "rprivate", "private", "nosuid", "nodev", "tmpcopyup"];

/// The limits that podman's command line sets where nobody asks: this many, unless it is configured.
const PODMAN_LIMIT: u64 = 1_048_576;

/// Capabilities that a component has to ask for, though the engines may grant them.
const NOT_BY_DEFAULT: [&str; 2] = ["MKNOD", "NET_RAW"];

/// The characters of a container's id that engines make an alias of.
const SHORT_ID: usize = 12;

/// Labels of a tool that takes every container with them for its own.
const COMPOSE: [&str; 2] = ["com.docker.compose.", "io.podman.compose."];

impl DockerRuntime {
    /// Asks for all that there is to know of a container, and captures it.
    pub(super) async fn captured(
        &self,
        id: &ContainerId,
        key: &ComponentKey,
    ) -> Result<Option<Capture>, RuntimeError> {
        let facts = self.facts().await?;
        let Some(container) = self.inspect_raw(id.as_str()).await? else {
            return Ok(None);
        };
        let live = normalise::inspected(&container).ok_or_else(|| RuntimeError::Uncertain {
            call: "inspect",
            cause: "the answer is no container".to_owned(),
        })?;
        let answer = self
            .send(|prefix| images::inspect(prefix, live.image_id.as_str()))
            .await?;
        let digest = images::facts(&answer, facts.name, None)?.and_then(|image| image.digest);
        let image: Value = answer.ok()?.parsed()?;
        let libpod: Option<Value> = match facts.name {
            EngineName::Docker => None,
            EngineName::Podman => {
                let path = format!(
                    "{}/containers/{}/json",
                    session::LIBPOD,
                    encoded(id.as_str())
                );
                let answer = self.send(|_| Call::get("inspect", path)).await?;
                Some(answer.ok()?.parsed()?)
            }
        };
        let Some(name) = image_of(&container, &image) else {
            return Err(RuntimeError::Impossible {
                what: "a definition".to_owned(),
                why: format!(
                    "image {} of {} has no name that a definition could give; tag it first",
                    live.image_id.short(),
                    live.name
                ),
            });
        };
        let answers = Answers {
            container: &container,
            image: &image,
            libpod: libpod.as_ref(),
            limits: facts.limits,
        };
        let captured = captured(&answers, &name, key);
        Ok(Some(Capture {
            live,
            image_digest: digest,
            captured,
        }))
    }
}

/// What the engine answered.
struct Answers<'a> {
    /// Inspecting the container.
    container: &'a Value,
    /// Inspecting its image.
    image: &'a Value,
    /// Podman's own inspect of the container.
    libpod: Option<&'a Value>,
    /// Whether the engine can apply limits.
    limits: bool,
}

/// The image's name for a definition, where it has one.
fn image_of(container: &Value, image: &Value) -> Option<ImageRef> {
    let asked = container
        .pointer("/Config/Image")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let id = text(image, "Id").trim_start_matches("sha256:");
    let is_id = asked.starts_with("sha256:") || (asked.len() >= 7 && id.starts_with(asked));
    if !asked.is_empty()
        && !is_id
        && let Ok(image) = asked.parse()
    {
        return Some(image);
    }
    tags(image).next()
}

/// The names of an image, but those that the agent keeps images by.
fn tags(image: &Value) -> impl Iterator<Item = ImageRef> {
    strings(image.get("RepoTags"))
        .into_iter()
        .filter(|tag| !tag.contains("<none>") && !tag.contains("/mcp-keep/"))
        .filter_map(|tag| tag.parse().ok())
}

/// The container of `answers` as a definition of `key` would have it.
fn captured(answers: &Answers<'_>, image: &ImageRef, key: &ComponentKey) -> Captured {
    let none = Value::Null;
    let config = answers.container.get("Config").unwrap_or(&none);
    let host = answers.container.get("HostConfig").unwrap_or(&none);
    let of_image = answers.image.get("Config").unwrap_or(&none);
    let mut it = Captured::bare(key, image);
    if image.digest().is_none() && !tags(answers.image).any(|tag| tag == *image) {
        it.warnings.push(format!(
            "image: {image} stands for another image by now; what runs is used until the definition changes"
        ));
    }
    command(&mut it, config, of_image);
    environment(&mut it, config, of_image, answers.libpod.is_some());
    labels(&mut it, config, of_image);
    surroundings(&mut it, answers, config, host);
    networks(&mut it, answers.container, host, key);
    ports(&mut it, answers.container, host);
    mounts(&mut it, answers.container, host);
    limits(&mut it, host, answers);
    privileges(&mut it, host, answers.libpod);
    health(&mut it, config);
    life(&mut it, config, host, of_image);
    unsaid(&mut it, config, host, answers);
    it.finished(key, text(answers.container, "Name").trim_start_matches('/'))
}

fn owned(items: Vec<&str>) -> Vec<String> {
    items.into_iter().map(str::to_owned).collect()
}

fn command(it: &mut Captured, config: &Value, of_image: &Value) {
    let both = |key| (strings(config.get(key)), strings(of_image.get(key)));
    let (entrypoint, its_entrypoint) = both("Entrypoint");
    let (cmd, its_cmd) = both("Cmd");
    // An entry point that is given takes the image's command away.
    let gave_no_cmd = cmd.is_empty() && !its_cmd.is_empty();
    if entrypoint != its_entrypoint || (gave_no_cmd && !entrypoint.is_empty()) {
        it.spec.entrypoint = Some(owned(entrypoint));
        it.spec.cmd = (!cmd.is_empty()).then(|| owned(cmd));
    } else if cmd != its_cmd {
        it.spec.cmd = Some(owned(cmd));
    }
    let differs = |key: &str| {
        let (here, there) = (text(config, key), text(of_image, key));
        (!here.is_empty() && here != there).then(|| here.to_owned())
    };
    it.spec.user = differs("User");
    // Podman says the root where nobody says anything.
    it.spec.workdir = differs("WorkingDir")
        .filter(|dir| !(dir == "/" && text(of_image, "WorkingDir").is_empty()));
}

fn environment(it: &mut Captured, config: &Value, of_image: &Value, podman: bool) {
    let its_own: BTreeSet<&str> = strings(of_image.get("Env")).into_iter().collect();
    let labels = string_map(config.get("Labels"));
    for variable in strings(config.get("Env")) {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        let by_podman =
            podman && (PODMAN_ENV.contains(&variable) || matches!(name, "HOME" | "HOSTNAME"));
        if !its_own.contains(variable) && !by_podman && !is_secret(&labels, name) {
            it.spec.env.insert(name.to_owned(), value.to_owned());
        }
    }
}

fn labels(it: &mut Captured, config: &Value, of_image: &Value) {
    let its_own = string_map(of_image.get("Labels"));
    let mut compose = None;
    for (name, value) in string_map(config.get("Labels")) {
        if its_own.get(&name) == Some(&value) || name.starts_with("mcp.") {
            continue;
        }
        if COMPOSE.iter().any(|prefix| name.starts_with(prefix)) {
            if name.ends_with("compose.project") {
                compose = Some(value);
            }
            continue;
        }
        if name == "PODMAN_SYSTEMD_UNIT" {
            it.warnings.push(format!(
                "the systemd unit {value} manages it too: disable the unit before the first deploy"
            ));
            continue;
        }
        it.spec.labels.insert(name, value);
    }
    if let Some(project) = compose {
        it.warnings.push(format!(
            "compose manages it as a part of project {project}: take it out of the compose file before the first deploy"
        ));
        it.loses("labels.compose", format!("project {project}"));
    }
}

/// What the container has around it beside networks and mounts.
fn surroundings(it: &mut Captured, answers: &Answers<'_>, config: &Value, host: &Value) {
    let hostname = text(config, "Hostname");
    let id = text(answers.container, "Id");
    if !hostname.is_empty() && !id.starts_with(hostname) && text(host, "NetworkMode") != "host" {
        it.spec.hostname = Some(hostname.to_owned());
    }
    for line in strings(host.get("ExtraHosts")) {
        if let Some((name, address)) = line.split_once(':') {
            it.spec
                .extra_hosts
                .insert(name.to_owned(), address.to_owned());
        }
    }
    let (servers, others) = name_servers(strings(host.get("Dns")));
    it.spec.dns = servers;
    for other in others {
        it.loses("dns", other);
    }
    it.spec.init = truth(host, "Init");
    it.spec.read_only = truth(host, "ReadonlyRootfs");
}

fn networks(it: &mut Captured, container: &Value, host: &Value, key: &ComponentKey) {
    let mode = text(host, "NetworkMode");
    match mode {
        "none" => return it.spec.network = Network::None,
        "host" => return it.spec.network = Network::Host,
        _ => {}
    }
    let id = text(container, "Id");
    let hostname = container
        .pointer("/Config/Hostname")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let joined = container
        .pointer("/NetworkSettings/Networks")
        .and_then(Value::as_object);
    let mut attachments = std::collections::BTreeMap::new();
    let mut on_default = false;
    for (name, endpoint) in joined.into_iter().flatten() {
        if matches!(name.as_str(), "none" | "host") {
            continue;
        }
        if is_default_bridge(name) {
            on_default = true;
            continue;
        }
        let aliases = strings(endpoint.get("Aliases"))
            .into_iter()
            .filter(|alias| id.get(..SHORT_ID) != Some(*alias) && *alias != hostname)
            .map(str::to_owned)
            .collect();
        for (field, pointer) in [
            ("ip", "/IPAMConfig/IPv4Address"),
            ("ip6", "/IPAMConfig/IPv6Address"),
        ] {
            if let Some(address) = endpoint.pointer(pointer).and_then(Value::as_str)
                && !address.is_empty()
            {
                it.loses(&format!("networks.{name}.{field}"), address);
            }
        }
        for link in strings(endpoint.get("Links")) {
            it.loses("links", link);
        }
        attachments.insert(name.clone(), Attachment { aliases });
    }
    if !attachments.is_empty() {
        if on_default {
            it.loses("networks.bridge", "the engine's default bridge as well");
        }
        it.spec.network = Network::User(attachments);
    } else if on_default || matches!(mode, "" | "default" | "bridge") {
        it.spec.network = Network::Bridge;
    } else {
        // Another container's network, or podman's own for users without root.
        it.departs("network", mode, key.service.as_str());
    }
}

fn ports(it: &mut Captured, container: &Value, host: &Value) {
    let given = container.pointer("/NetworkSettings/Ports");
    let asked = host.get("PortBindings").and_then(Value::as_object);
    for (inside, bindings) in asked.into_iter().flatten() {
        let (port, protocol) = inside.split_once('/').unwrap_or((inside, "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            other => {
                it.loses("ports", format!("{port}/{other}"));
                continue;
            }
        };
        for (at, binding) in bindings.as_array().into_iter().flatten().enumerate() {
            let ip: IpAddr = match text(binding, "HostIp") {
                "" => Ipv4Addr::UNSPECIFIED.into(),
                ip => match ip.parse() {
                    Ok(ip) => ip,
                    Err(_) => continue,
                },
            };
            // What the engine chose stands where the container's own ports do.
            let chosen = given
                .and_then(|given| given.get(inside)?.get(at))
                .map(|given| text(given, "HostPort"))
                .and_then(|port| port.parse::<u16>().ok());
            let asked = text(binding, "HostPort").parse::<u16>().ok();
            let published = asked.filter(|port| *port != 0);
            let (Some(host), Ok(port)) = (published.or(chosen), port.parse()) else {
                it.loses(
                    "ports",
                    format!("{inside} at a port of the engine's choice"),
                );
                continue;
            };
            if published.is_none() {
                it.warnings.push(format!(
                    "ports: the engine chose {host} for {inside}; the definition keeps that number"
                ));
            }
            it.spec.ports.insert(Port {
                ip,
                host,
                container: port,
                protocol,
            });
        }
    }
}

fn mounts(it: &mut Captured, container: &Value, host: &Value) {
    for mount in entries(container, "Mounts") {
        let target = text(mount, "Destination").to_owned();
        let source = match text(mount, "Type") {
            "bind" => VolumeSource::Bind(text(mount, "Source").to_owned()),
            "volume" => VolumeSource::Named(text(mount, "Name").to_owned()),
            "tmpfs" => {
                it.spec.tmpfs.entry(target).or_default();
                continue;
            }
            other => {
                it.loses(&format!("mount.{target}"), other);
                continue;
            }
        };
        let options = text(mount, "Mode").split(',');
        let propagation = text(mount, "Propagation");
        if matches!(source, VolumeSource::Bind(_)) {
            for option in options.filter(|option| matches!(*option, "z" | "Z")) {
                it.loses(&format!("volumes.{target}.selinux"), option);
            }
            if matches!(propagation, "shared" | "rshared" | "slave") {
                it.loses(&format!("volumes.{target}.propagation"), propagation);
            }
        }
        let volume = Volume {
            source,
            read_only: mount.get("RW").and_then(Value::as_bool) == Some(false),
        };
        it.spec.volumes.insert(target, volume);
    }
    for (target, options) in string_map(host.get("Tmpfs")) {
        let options = options
            .split(',')
            .filter(|option| !option.is_empty() && !PODMAN_TMPFS.contains(option))
            .map(str::to_owned)
            .collect();
        it.spec.tmpfs.insert(target, Tmpfs { options });
    }
    if !truth(host, "Privileged") {
        for device in entries(host, "Devices") {
            let permissions: String = Device::ALL
                .chars()
                .filter(|c| text(device, "CgroupPermissions").contains(*c))
                .collect();
            it.spec.devices.insert(
                text(device, "PathInContainer").to_owned(),
                Device {
                    host: text(device, "PathOnHost").to_owned(),
                    permissions: if permissions.is_empty() {
                        Device::ALL.to_owned()
                    } else {
                        permissions
                    },
                },
            );
        }
    }
}

fn limits(it: &mut Captured, host: &Value, answers: &Answers<'_>) {
    let whole = |key: &str| host.get(key).and_then(Value::as_i64).unwrap_or_default();
    let memory = whole("Memory");
    it.spec.resources.memory_bytes = u64::try_from(memory).ok().filter(|bytes| *bytes > 0);
    let swap = whole("MemorySwap");
    if memory > 0 && swap != 0 && swap != memory.saturating_mul(2) {
        it.departs(
            "memory_swap",
            swap.to_string(),
            memory.saturating_mul(2).to_string(),
        );
    } else if memory == 0 && swap > 0 {
        it.loses("memory_swap", swap.to_string());
    }
    let nano: u64 = cpus(host).parse().unwrap_or_default();
    // A thousandth of a core is the finest that a definition says.
    it.spec.resources.cpu_millis = (nano > 0).then(|| (nano / 1_000_000).max(1));
    if !nano.is_multiple_of(1_000_000) {
        it.departs(
            "resources.cpus",
            format!("{nano} billionths"),
            "rounded to thousandths",
        );
    }
    match pids(host).parse::<u32>() {
        Ok(limit) if limit > 0 => it.spec.resources.pids = limit,
        _ if answers.limits => {
            let most = it.spec.resources.pids.to_string();
            it.departs("resources.pids", "unlimited", most);
        }
        _ => {}
    }
    ulimits(it, host, answers.libpod.is_some());
    it.spec.sysctls = string_map(host.get("Sysctls"));
    if answers.libpod.is_some() {
        it.warnings.push(
            "sysctls: podman tells none; name them where the container was given any".to_owned(),
        );
    }
}

fn ulimits(it: &mut Captured, host: &Value, podman: bool) {
    let limit = |value: &Value, key| {
        let limit = value.get(key).and_then(Value::as_i64).unwrap_or(-1);
        u64::try_from(limit).ok()
    };
    let all: Vec<(String, Ulimit)> = entries(host, "Ulimits")
        .iter()
        .map(|entry| {
            let name = text(entry, "Name").to_ascii_lowercase();
            let name = name.strip_prefix("rlimit_").unwrap_or(&name).to_owned();
            let (soft, hard) = (limit(entry, "Soft"), limit(entry, "Hard"));
            (name, Ulimit { soft, hard })
        })
        .collect();
    // Podman's command line sets these two where nobody asks, both to its own or to the configured value.
    let of = |wanted: &str| all.iter().find(|(name, _)| name == wanted).map(|(_, l)| *l);
    let by_podman = |name: &str, limit: Ulimit| {
        podman
            && matches!(name, "nofile" | "nproc")
            && limit.soft == limit.hard
            && (limit.hard == Some(PODMAN_LIMIT) || of("nofile") == of("nproc"))
    };
    let asked = all.iter().filter(|(name, limit)| !by_podman(name, *limit));
    it.spec.ulimits = asked.cloned().collect();
}

fn privileges(it: &mut Captured, host: &Value, libpod: Option<&Value>) {
    let names = |key: &str| -> BTreeSet<String> {
        let names = strings(host.get(key)).into_iter();
        names
            .map(|name| name.strip_prefix("CAP_").unwrap_or(name).to_owned())
            .collect()
    };
    let options = security(host);
    let options: BTreeSet<&str> = options.split(',').filter(|it| !it.is_empty()).collect();
    if !options.contains("no-new-privileges") {
        it.departs("no_new_privileges", "off", "on");
    }
    if truth(host, "Privileged") {
        it.spec.privileged = true;
        return;
    }
    for option in options {
        if option == "no-new-privileges" {
            continue;
        }
        // Docker takes a colon where everybody else writes an equals sign.
        let plain = if option.contains('=') {
            option.to_owned()
        } else {
            option.replacen(':', "=", 1)
        };
        it.spec.security_opt.insert(plain);
    }
    it.spec.cap_add = names("CapAdd");
    let drop = names("CapDrop");
    let effective = libpod.map(|answer| {
        let names = strings(answer.get("BoundingCaps")).into_iter();
        names
            .map(|name| name.strip_prefix("CAP_").unwrap_or(name).to_owned())
            .collect::<BTreeSet<String>>()
    });
    let all = drop.contains("ALL") || it.spec.cap_add.contains("ALL");
    let has = |name: &str| effective.as_ref().is_none_or(|caps| caps.contains(name));
    let granted: Vec<&str> = NOT_BY_DEFAULT
        .into_iter()
        .filter(|name| !all && !drop.contains(*name) && !it.spec.cap_add.contains(*name))
        .filter(|name| has(name))
        .collect();
    if !granted.is_empty() {
        it.loses("capabilities", granted.join(" "));
    }
    // What is dropped anyway need not be said.
    let said = drop
        .into_iter()
        .filter(|name| all || !NOT_BY_DEFAULT.contains(&name.as_str()));
    it.spec.cap_drop = said.collect();
}

fn health(it: &mut Captured, config: &Value) {
    let Some(check) = config.get("Healthcheck") else {
        return;
    };
    let test = strings(check.get("Test"));
    let command: Vec<String> = match test.split_first() {
        Some((&"CMD", words)) => owned(words.to_vec()),
        Some((&"CMD-SHELL", words)) => {
            vec!["/bin/sh".to_owned(), "-c".to_owned(), words.join(" ")]
        }
        _ => return,
    };
    if command.is_empty() {
        return;
    }
    // Both engines' own defaults.
    let span = |key: &str, default: u64| {
        let nanos = check.get(key).and_then(Value::as_u64).unwrap_or_default();
        let seconds = nanos.div_ceil(1_000_000_000);
        Span::from_secs(if seconds == 0 { default } else { seconds })
    };
    let retries = check
        .get("Retries")
        .and_then(Value::as_u64)
        .and_then(|retries| u32::try_from(retries).ok())
        .filter(|retries| *retries > 0);
    it.spec.health = Some(Health {
        probe: Probe::Cmd(command),
        interval: span("Interval", 30),
        timeout: span("Timeout", 30),
        retries: retries.unwrap_or(3),
        start_period: span("StartPeriod", 0),
    });
}

/// How it is started again and stopped, and where its output goes.
fn life(it: &mut Captured, config: &Value, host: &Value, of_image: &Value) {
    let policy = restart(host);
    it.spec.restart = policy.parse().unwrap_or(Restart::No);
    if it.spec.restart != Restart::No {
        it.departs(
            "restart",
            format!("{policy}, by the engine"),
            format!("{policy}, by the agent"),
        );
    }
    if truth(host, "AutoRemove") {
        it.loses(AUTO_REMOVE, "true");
    }
    let signal = stop_signal(config);
    if signal != stop_signal(of_image) {
        it.spec.stop_signal = signal::canonical(&signal).or(Some(signal));
    }
    if let Some(seconds) = config.get("StopTimeout").and_then(Value::as_u64) {
        it.spec.stop_timeout = Span::from_secs(seconds);
    }
    let log = host.get("LogConfig").unwrap_or(&Value::Null);
    let driver = text(log, "Type");
    let options = string_map(log.get("Config"));
    let is_usual = matches!(driver, "" | "json-file" | "journald" | "k8s-file");
    if !is_usual || !options.is_empty() {
        it.spec.log = Some(Log {
            driver: driver.to_owned(),
            options,
        });
    }
}

/// What no definition can say.
fn unsaid(it: &mut Captured, config: &Value, host: &Value, answers: &Answers<'_>) {
    let usual: [(&str, &[&str]); 9] = [
        ("IpcMode", &["", "private", "shareable"]),
        ("PidMode", &["", "private"]),
        ("UTSMode", &["", "private"]),
        ("UsernsMode", &["", "private"]),
        (
            "Runtime",
            &["", "oci", "runc", "crun", "io.containerd.runc.v2"],
        ),
        ("CgroupParent", &[""]),
        ("CpusetCpus", &[""]),
        ("CpusetMems", &[""]),
        ("VolumeDriver", &["", "local"]),
    ];
    for (name, usual) in usual {
        let value = text(host, name);
        if !usual.contains(&value) {
            it.loses(&snake(name), value);
        }
    }
    let numbers: [(&str, &[i64]); 5] = [
        ("CpuShares", &[0, 1024]),
        ("MemoryReservation", &[0]),
        ("OomScoreAdj", &[0]),
        ("BlkioWeight", &[0]),
        // 64 MiB, and what podman calls so.
        ("ShmSize", &[0, 67_108_864, 65_536_000]),
    ];
    for (name, usual) in numbers {
        let value = host.get(name).and_then(Value::as_i64).unwrap_or_default();
        if !usual.contains(&value) {
            it.loses(&snake(name), value.to_string());
        }
    }
    for name in [
        "Links",
        "VolumesFrom",
        "GroupAdd",
        "DnsSearch",
        "DnsOptions",
        "DeviceCgroupRules",
    ] {
        let values = strings(host.get(name));
        if !values.is_empty() {
            it.loses(&snake(name), values.join(" "));
        }
    }
    if !entries(host, "DeviceRequests").is_empty() {
        it.loses("device_requests", "as with --gpus");
    }
    for (source, name) in [
        (host, "OomKillDisable"),
        (config, "Tty"),
        (config, "OpenStdin"),
    ] {
        if truth(source, name) {
            it.loses(&snake(name), "true");
        }
    }
    for name in ["Domainname", "MacAddress"] {
        let value = text(config, name);
        if !value.is_empty() {
            it.loses(&snake(name), value);
        }
    }
    if let Some(pod) = answers.libpod.map(|answer| text(answer, "Pod"))
        && !pod.is_empty()
    {
        it.loses("pod", number_of_pod(pod));
    }
}

fn number_of_pod(pod: &str) -> &str {
    pod.get(..12).unwrap_or(pod)
}

/// `DnsSearch` as `dns_search`.
fn snake(name: &str) -> String {
    let mut text = String::new();
    let mut before_was_lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && before_was_lower {
            text.push('_');
        }
        before_was_lower = c.is_ascii_lowercase();
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests;
