//! What the engines say of a container, in one form for both.
//!
//! `fields` is the baseline that drift is held against: it must be the same whenever it is asked,
//! before and after a start, a stop and a restart of the engine, for as long as nobody changes the
//! container. So what the engine makes up by itself (addresses, generated host names, short ids among
//! the aliases, `HOME` and `HOSTNAME` of podman) stays out, and lists come sorted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use jiff::Timestamp;
use mcp_spec::drift::FORM;
use mcp_spec::observed::{ContainerId, ContainerState, ImageId, LiveContainer, label};
use mcp_spec::signal;
use serde_json::Value;

/// The first characters of a container's id that engines use for host name and alias.
const SHORT_ID: usize = 12;

/// Variables that podman adds by itself, one of them only at the start.
const ENGINE_ENV: [&str; 2] = ["HOME", "HOSTNAME"];

/// The form of the fields: it changes when a field comes or goes or is spelt otherwise.
const THIS_FORM: &str = "2";

/// What stands for the value of a variable that is a secret.
const SECRET: &str = "(secret)";

/// The prefix of the agent's own labels.
const AGENT_LABELS: &str = "mcp.";

/// One entry of a list. `None` where it is no container.
pub(super) fn listed(entry: &Value) -> Option<LiveContainer> {
    let status = text(entry, "Status");
    let names = entry
        .get("Names")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    // Docker lists the names of legacy links (`/other/alias`) beside the container's own.
    let name = names
        .iter()
        .filter_map(Value::as_str)
        .map(|name| name.trim_start_matches('/'))
        .find(|name| !name.contains('/'))?;
    Some(LiveContainer {
        id: ContainerId::new(entry.get("Id")?.as_str()?),
        name: name.to_owned(),
        image_id: image_id(text(entry, "ImageID")),
        image_name: text(entry, "Image").to_owned(),
        state: state(
            text(entry, "State"),
            None,
            exit_code_in(status).unwrap_or_default(),
            false,
        ),
        labels: string_map(entry.get("Labels")),
        started_at: None,
        finished_at: None,
        fields: BTreeMap::new(),
        addresses: BTreeMap::new(),
    })
}

/// The answer of an inspect. `None` where it is no container.
pub(super) fn inspected(answer: &Value) -> Option<LiveContainer> {
    let id = answer.get("Id")?.as_str()?;
    let status = answer.get("State")?;
    let state = state(
        text(status, "Status"),
        status
            .get("Pid")
            .and_then(Value::as_u64)
            .and_then(|pid| u32::try_from(pid).ok())
            .filter(|pid| *pid > 0),
        status
            .get("ExitCode")
            .and_then(Value::as_i64)
            .and_then(|code| i32::try_from(code).ok())
            .unwrap_or_default(),
        truth(status, "OOMKilled"),
    );
    let config = answer.get("Config").unwrap_or(&Value::Null);
    Some(LiveContainer {
        id: ContainerId::new(id),
        name: text(answer, "Name").trim_start_matches('/').to_owned(),
        image_id: image_id(text(answer, "Image")),
        image_name: text(config, "Image").to_owned(),
        labels: string_map(config.get("Labels")),
        started_at: time(status, "StartedAt"),
        finished_at: time(status, "FinishedAt").filter(|_| !state.is_running()),
        fields: fields(id, answer),
        addresses: addresses(answer),
        state,
    })
}

/// An image's id as it is written everywhere in MCP.
pub(super) fn image_id(id: &str) -> ImageId {
    if id.is_empty() || id.starts_with("sha256:") {
        ImageId::new(id)
    } else {
        ImageId::new(format!("sha256:{id}"))
    }
}

fn state(word: &str, pid: Option<u32>, code: i32, oom: bool) -> ContainerState {
    match word {
        "created" | "configured" => ContainerState::Created,
        "running" => ContainerState::Running { pid },
        "paused" => ContainerState::Paused,
        // Podman says `stopped` until the exit is accounted for.
        "exited" | "stopped" => ContainerState::Exited { code, oom },
        other => ContainerState::Other(other.to_owned()),
    }
}

/// The code in a list's `Exited (137) 4 seconds ago`.
fn exit_code_in(status: &str) -> Option<i32> {
    let rest = status.strip_prefix("Exited (")?;
    rest.split_once(')')?.0.parse().ok()
}

fn fields(id: &str, answer: &Value) -> BTreeMap<String, String> {
    let none = Value::Null;
    let config = answer.get("Config").unwrap_or(&none);
    let host = answer.get("HostConfig").unwrap_or(&none);
    let mut fields = BTreeMap::new();
    let mut put = |name: &str, value: String| {
        fields.insert(name.to_owned(), value);
    };

    put(FORM, THIS_FORM.to_owned());
    put("image", image_id(text(answer, "Image")).to_string());
    put("entrypoint", list(config.get("Entrypoint")));
    put("cmd", list(config.get("Cmd")));
    put("user", text(config, "User").to_owned());
    put("workdir", text(config, "WorkingDir").to_owned());
    put("stop_signal", stop_signal(config));
    put("stop_timeout", number(config, "StopTimeout"));
    put("read_only", truth(host, "ReadonlyRootfs").to_string());
    put("privileged", truth(host, "Privileged").to_string());
    put("cap_add", capabilities(host, "CapAdd"));
    put("cap_drop", capabilities(host, "CapDrop"));
    put("security_opt", security(host));
    put("memory", number(host, "Memory"));
    put("memory_swap", number(host, "MemorySwap"));
    put("cpus", cpus(host));
    put("cpu_shares", number(host, "CpuShares"));
    put("cpuset", text(host, "CpusetCpus").to_owned());
    put("pids", pids(host));
    put("init", truth(host, "Init").to_string());
    put("restart", restart(host));
    put("ports", ports(host));
    put("dns", sorted(strings(host.get("Dns")), ","));
    put("extra_hosts", sorted(strings(host.get("ExtraHosts")), ","));
    put("health", list(config.pointer("/Healthcheck/Test")));
    put(
        "log",
        text(host.get("LogConfig").unwrap_or(&none), "Type").to_owned(),
    );
    let hostname = text(config, "Hostname");
    if !id.starts_with(hostname) {
        put("hostname", hostname.to_owned());
    }

    let labels = string_map(config.get("Labels"));
    for variable in strings(config.get("Env")) {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        if !ENGINE_ENV.contains(&name) {
            // What is recorded as the baseline and shown as drift holds no secret.
            let value = if is_secret(&labels, name) {
                SECRET
            } else {
                value
            };
            fields.insert(format!("env.{name}"), value.to_owned());
        }
    }
    for (name, value) in string_map(config.get("Labels")) {
        if !name.starts_with(AGENT_LABELS) {
            fields.insert(format!("label.{name}"), value);
        }
    }
    for (name, value) in string_map(host.pointer("/LogConfig/Config")) {
        fields.insert(format!("log.{name}"), value);
    }
    // Podman tells nothing of these: unknown, and so the same each time.
    for (name, value) in string_map(host.get("Sysctls")) {
        fields.insert(format!("sysctl.{name}"), value);
    }
    ulimits(host, &mut fields);
    devices(host, &mut fields);
    for (target, options) in string_map(host.get("Tmpfs")) {
        let options: Vec<&str> = options.split(',').filter(|part| !part.is_empty()).collect();
        fields.insert(format!("tmpfs.{target}"), sorted(options, ","));
    }
    mounts(answer, &mut fields);
    networks(id, answer, &mut fields);
    fields
}

/// Whether a variable's value is a secret, as the container's labels say.
pub(super) fn is_secret(labels: &BTreeMap<String, String>, variable: &str) -> bool {
    labels
        .get(label::SECRET_ENV)
        .is_some_and(|names| names.split('=').any(|name| name == variable))
}

fn ulimits(host: &Value, fields: &mut BTreeMap<String, String>) {
    for limit in entries(host, "Ulimits") {
        let name = text(limit, "Name").to_ascii_lowercase();
        let name = name.strip_prefix("rlimit_").unwrap_or(&name);
        fields.insert(
            format!("ulimit.{name}"),
            format!("{}:{}", number(limit, "Soft"), number(limit, "Hard")),
        );
    }
}

fn devices(host: &Value, fields: &mut BTreeMap<String, String>) {
    for device in entries(host, "Devices") {
        fields.insert(
            format!("device.{}", text(device, "PathInContainer")),
            format!(
                "{}:{}",
                text(device, "PathOnHost"),
                text(device, "CgroupPermissions")
            ),
        );
    }
}

/// The items of a list; none where there is none.
pub(super) fn entries<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn mounts(answer: &Value, fields: &mut BTreeMap<String, String>) {
    for mount in entries(answer, "Mounts") {
        let kind = text(mount, "Type");
        let source = match kind {
            "volume" => text(mount, "Name"),
            _ => text(mount, "Source"),
        };
        let access = if truth(mount, "RW") { "rw" } else { "ro" };
        fields.insert(
            format!("mount.{}", text(mount, "Destination")),
            format!("{kind}:{source}:{access}"),
        );
    }
}

fn networks(id: &str, answer: &Value, fields: &mut BTreeMap<String, String>) {
    let mode = answer
        .pointer("/HostConfig/NetworkMode")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let hostname = answer
        .pointer("/Config/Hostname")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let short = id.get(..SHORT_ID).unwrap_or(id);
    let mut user = false;
    if let Some(networks) = answer
        .pointer("/NetworkSettings/Networks")
        .and_then(Value::as_object)
    {
        for (name, endpoint) in networks {
            // Docker shows these beside the user's networks, podman does not.
            if name == "none" || name == "host" {
                continue;
            }
            let mut aliases: BTreeSet<&str> =
                strings(endpoint.get("Aliases")).into_iter().collect();
            // Both engines add the short id, and docker the host name, at the start.
            aliases.remove(short);
            aliases.remove(hostname);
            user |= !is_default_bridge(name);
            fields.insert(
                format!("network.{name}"),
                aliases.into_iter().collect::<Vec<_>>().join(","),
            );
        }
    }
    let mode = match mode {
        "none" | "host" => mode,
        _ if user => "user",
        "default" | "bridge" | "" => "bridge",
        other => other,
    };
    fields.insert("network".to_owned(), mode.to_owned());
}

/// The network of containers that name none.
pub(super) fn is_default_bridge(name: &str) -> bool {
    name == "bridge" || name == "podman"
}

fn addresses(answer: &Value) -> BTreeMap<String, IpAddr> {
    let Some(networks) = answer
        .pointer("/NetworkSettings/Networks")
        .and_then(Value::as_object)
    else {
        return BTreeMap::new();
    };
    networks
        .iter()
        .filter_map(|(name, endpoint)| {
            let address = [
                text(endpoint, "IPAddress"),
                text(endpoint, "GlobalIPv6Address"),
            ]
            .into_iter()
            .find_map(|address| address.parse().ok())?;
            Some((name.clone(), address))
        })
        .collect()
}

pub(super) fn stop_signal(config: &Value) -> String {
    match text(config, "StopSignal") {
        "" => "SIGTERM".to_owned(),
        told => signal::canonical(told).unwrap_or_else(|| told.to_owned()),
    }
}

/// Podman spells the capabilities of its libpod calls with `CAP_`.
fn capabilities(host: &Value, key: &str) -> String {
    let names = strings(host.get(key))
        .into_iter()
        .map(|name| name.strip_prefix("CAP_").unwrap_or(name));
    sorted(names.collect(), ",")
}

pub(super) fn security(host: &Value) -> String {
    let options = strings(host.get("SecurityOpt"))
        .into_iter()
        .map(|option| match option {
            "no-new-privileges:true" | "no-new-privileges=true" => "no-new-privileges",
            other => other,
        });
    // Docker tells the hidden paths; an empty list of them is an option of its own.
    let bare = host
        .get("MaskedPaths")
        .and_then(Value::as_array)
        .is_some_and(Vec::is_empty);
    let bare = bare.then_some("systempaths=unconfined");
    sorted(options.chain(bare).collect(), ",")
}

/// Billionths of a CPU, also where only quota and period are told.
pub(super) fn cpus(host: &Value) -> String {
    let get = |key| host.get(key).and_then(Value::as_i64).unwrap_or_default();
    let (nano, quota, period) = (get("NanoCpus"), get("CpuQuota"), get("CpuPeriod"));
    let nano = if nano == 0 && quota > 0 && period > 0 {
        i64::try_from(i128::from(quota) * 1_000_000_000 / i128::from(period)).unwrap_or(i64::MAX)
    } else {
        nano
    };
    nano.to_string()
}

/// Docker writes no limit as null, 0 or -1.
pub(super) fn pids(host: &Value) -> String {
    host.get("PidsLimit")
        .and_then(Value::as_i64)
        .filter(|limit| *limit > 0)
        .unwrap_or_default()
        .to_string()
}

pub(super) fn restart(host: &Value) -> String {
    let policy = host.get("RestartPolicy").unwrap_or(&Value::Null);
    match (
        text(policy, "Name"),
        policy.get("MaximumRetryCount").and_then(Value::as_i64),
    ) {
        ("", _) => "no".to_owned(),
        (name, Some(count)) if count > 0 => format!("{name}:{count}"),
        (name, _) => name.to_owned(),
    }
}

fn ports(host: &Value) -> String {
    let Some(bindings) = host.get("PortBindings").and_then(Value::as_object) else {
        return String::new();
    };
    let mut ports = BTreeSet::new();
    for (container, bound) in bindings {
        for binding in bound.as_array().into_iter().flatten() {
            let address = match text(binding, "HostIp") {
                "" => "0.0.0.0",
                address => address,
            };
            ports.insert(format!(
                "{address}:{}:{container}",
                text(binding, "HostPort")
            ));
        }
    }
    ports.into_iter().collect::<Vec<_>>().join(",")
}

fn time(value: &Value, key: &str) -> Option<Timestamp> {
    let time: Timestamp = text(value, key).parse().ok()?;
    // The engines write the year 1 for never. Fractions are those that the registry keeps: a run is
    // known again by its start, after a restart of the agent too.
    let time = Timestamp::from_microsecond(time.as_microsecond()).ok()?;
    (time > Timestamp::UNIX_EPOCH).then_some(time)
}

pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn truth(value: &Value, key: &str) -> bool {
    value.get(key).and_then(Value::as_bool).unwrap_or_default()
}

fn number(value: &Value, key: &str) -> String {
    value
        .get(key)
        .and_then(Value::as_i64)
        .unwrap_or_default()
        .to_string()
}

pub(super) fn strings(value: Option<&Value>) -> Vec<&str> {
    value
        .and_then(Value::as_array)
        .map(|items| items.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default()
}

/// A list whose order means something, as JSON; empty where there is none.
fn list(value: Option<&Value>) -> String {
    let items = strings(value);
    if items.is_empty() {
        return String::new();
    }
    serde_json::to_string(&items).expect("strings are JSON")
}

fn sorted(mut items: Vec<&str>, separator: &str) -> String {
    items.sort_unstable();
    items.join(separator)
}

pub(super) fn string_map(value: Option<&Value>) -> BTreeMap<String, String> {
    value
        .and_then(Value::as_object)
        .map(|entries| {
            entries
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: [&str; 2] = [
        include_str!("recorded/docker-created.json"),
        include_str!("recorded/docker-running.json"),
    ];
    const PODMAN: [&str; 2] = [
        include_str!("recorded/podman-created.json"),
        include_str!("recorded/podman-running.json"),
    ];

    fn read(text: &str) -> LiveContainer {
        inspected(&serde_json::from_str(text).unwrap()).unwrap()
    }

    #[test]
    fn start_changes_no_field() {
        for [created, running] in [DOCKER, PODMAN] {
            let (created, running) = (read(created), read(running));
            assert_eq!(created.fields, running.fields);
            assert_eq!(created.state, ContainerState::Created);
            assert_eq!(created.started_at, None);
            assert!(matches!(
                running.state,
                ContainerState::Running { pid: Some(_) }
            ));
            let started_at = running.started_at.unwrap();
            let kept = Timestamp::from_microsecond(started_at.as_microsecond()).unwrap();
            assert_eq!(
                started_at, kept,
                "the registry would not know this run again"
            );
            assert_eq!(running.finished_at, None);
        }
    }

    #[test]
    fn both_engines_have_one_form() {
        for recorded in [DOCKER[1], PODMAN[1]] {
            let live = read(recorded);
            assert_eq!(live.name, "full");
            let expected = [
                ("cap_add", "SYS_NICE"),
                ("cap_drop", "MKNOD,NET_RAW"),
                ("cmd", r#"["/bin/pause"]"#),
                ("cpus", "500000000"),
                ("dns", "10.9.9.9"),
                ("entrypoint", ""),
                ("env.A", "1"),
                ("env.B", "two words"),
                ("env.IMG", "1"),
                ("extra_hosts", "db:10.1.2.3"),
                ("hostname", "hosty"),
                ("init", "false"),
                ("label.x", "y"),
                ("memory", "67108864"),
                ("mount./data", "bind:/srv/data:ro"),
                ("mount./vol", "volume:vol1:rw"),
                ("network", "user"),
                ("network.neta", "svc-web,web"),
                ("network.netb", "svc-web"),
                ("pids", "99"),
                ("ports", "127.0.0.1:18080:8080/tcp"),
                ("privileged", "false"),
                ("read_only", "true"),
                ("restart", "no"),
                ("security_opt", "no-new-privileges"),
                ("stop_signal", "SIGINT"),
                ("stop_timeout", "7"),
                ("user", "1000:1000"),
                ("workdir", "/srv"),
            ];
            for (name, value) in expected {
                assert_eq!(
                    live.fields.get(name).map(String::as_str),
                    Some(value),
                    "{name}"
                );
            }
            assert!(
                !live
                    .fields
                    .keys()
                    .any(|name| name.starts_with("label.mcp."))
            );
            assert!(!live.fields.contains_key("env.HOME"));
            assert_eq!(live.addresses.len(), 2);
        }
    }

    #[test]
    fn changed_limit_shows() {
        let mut raw: Value = serde_json::from_str(DOCKER[1]).unwrap();
        let before = inspected(&raw).unwrap();
        raw["HostConfig"]["Memory"] = 1.into();
        assert_ne!(before.fields, inspected(&raw).unwrap().fields);
    }

    #[test]
    fn generated_host_name_is_left_out() {
        let mut raw: Value = serde_json::from_str(DOCKER[1]).unwrap();
        raw["Config"]["Hostname"] = "37164c4b30ca".into();
        assert!(!inspected(&raw).unwrap().fields.contains_key("hostname"));
    }

    #[test]
    fn list_tells_the_exit_code() {
        let entry = serde_json::json!({
            "Id": "abc", "Names": ["/other/alias", "/full"], "ImageID": "ff00", "State": "exited",
            "Status": "Exited (137) 4 seconds ago", "Labels": { "a": "b" }
        });
        let live = listed(&entry).unwrap();
        assert_eq!(live.name, "full");
        assert_eq!(live.image_id.as_str(), "sha256:ff00");
        assert_eq!(
            live.state,
            ContainerState::Exited {
                code: 137,
                oom: false
            }
        );
    }

    #[test]
    fn nonsense_is_no_container() {
        for text in ["null", "{}", r#"{"Id":1}"#, r#"{"Id":"a"}"#, "[]"] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(inspected(&value), None, "{text}");
            assert_eq!(listed(&value), None, "{text}");
        }
    }
}
