//! One `[[components]]` table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use toml::de::DeValue;

use super::FileLookup;
use super::error::{DefinitionErrorKind as Kind, Errors, Place};
use super::reader::{Refusal, Schema, Table, insert_once, integer, parse_text, string, wrong_type};
use super::{health, host, limits, networks, ports, values, volumes};
use crate::component::{
    ComponentSpec, HOST_GATEWAY, Kind as ComponentKind, Network, Port, Pull, Restart,
    SecretVariable,
};
use crate::duration::Span;
use crate::name::{ComponentName, ServiceName};

/// How long a stop waits before the kill, unless the definition says another.
pub(crate) const STOP_TIMEOUT: Span = Span::from_secs(10);
/// Stable time that counts as started, unless the definition says another.
pub(crate) const READY_FOR: Span = Span::from_secs(2);
pub(super) const COMPONENT: Schema = Schema {
    what: "a component",
    keys: &[
        "name",
        "kind",
        "exit_codes",
        "image",
        "pull",
        "entrypoint",
        "cmd",
        "env",
        "user",
        "workdir",
        "hostname",
        "network",
        "networks",
        "ports",
        "volumes",
        "tmpfs",
        "restart",
        "init",
        "depends_on",
        "health",
        "resources",
        "read_only",
        "cap_add",
        "cap_drop",
        "labels",
        "stop_signal",
        "stop_timeout",
        "extra_hosts",
        "dns",
        "files",
        "ready_for",
        "devices",
        "ulimits",
        "sysctls",
        "security_opt",
        "privileged",
        "log",
        "secrets",
        "update",
    ],
    not_yet: &[],
    elsewhere,
};

/// The mend for keys of other formats and for keys of the service.
fn elsewhere(key: &str) -> Option<String> {
    let same = match key {
        "command" | "args" => "cmd",
        "environment" => "env",
        "restart_policy" => "restart",
        "working_dir" => "workdir",
        "healthcheck" => "health",
        "stop_grace_period" => "stop_timeout",
        "port" => "ports",
        "mounts" | "binds" => "volumes",
        "tag" => "image",
        "logging" => "log",
        "device" => "devices",
        "secret" => "secrets",
        "sysctl" => "sysctls",
        "ulimit" => "ulimits",
        "security_opts" => "security_opt",
        "container_name" => {
            return Some(
                "leave it out: the container is named after service and component".to_owned(),
            );
        }
        "env_file" => return Some("write the variables in `env`".to_owned()),
        "build" => return Some("build the image elsewhere, and name it with `image`".to_owned()),
        "memory" | "cpus" | "pids" => {
            return Some(format!("it is a key of `resources`: `resources.{key} = …`"));
        }
        "interval" | "timeout" | "retries" | "start_period" | "http" | "tcp" => {
            return Some(format!("it is a key of `health`: `health.{key} = …`"));
        }
        _ if super::service::SERVICE.keys.contains(&key) => {
            return Some(format!(
                "`{key}` is a key of the service: write it above the first `[[components]]`"
            ));
        }
        _ => return None,
    };
    Some(format!("did you mean `{same}`?"))
}

/// A component as far as it could be read.
#[derive(Debug)]
pub(super) struct ReadComponent {
    /// Its name, where it has a good one.
    pub(super) name: Option<ComponentName>,
    /// The place of its name, or of its table.
    pub(super) place: Place,
    /// Its ports with their places.
    pub(super) ports: Vec<(Port, Place)>,
    /// What it waits for, with the places.
    pub(super) depends_on: Vec<(ComponentName, Place)>,
    /// The whole of it, where nothing required was missing.
    pub(super) spec: Option<ComponentSpec>,
}

/// Reads one component.
pub(super) fn read(
    table: &Table<'_, '_>,
    service: &ServiceName,
    lookup: &FileLookup<'_>,
    errors: &mut Errors<'_>,
) -> ReadComponent {
    let name = match table.get("name") {
        Some(_) => table.parsed("name", values::component_name, errors),
        None => {
            table.missing("name", "write `name = \"web\"`", errors);
            None
        }
    };
    let place = table
        .get("name")
        .map_or(table.place.clone(), |entry| entry.value.span());
    let image = match table.get("image") {
        Some(_) => table.parsed("image", values::image, errors),
        None => {
            table.missing(
                "image",
                "write `image = \"registry.example.net/web:v1\"`",
                errors,
            );
            None
        }
    };
    let kind = read_kind(table, errors);
    // A nameless component was reported; a stand-in keeps the rest of it readable.
    let called = name
        .clone()
        .or_else(|| "component".parse().ok())
        .expect("`component` is a name");
    let network = networks::read(table, service, &called, errors);
    let ports = ports::read(table, errors);
    if !ports.is_empty() && matches!(network, Network::None | Network::Host) {
        let (message, hint) = if network == Network::Host {
            (
                "ports are not published with `network = \"host\"`: they are the node's already",
                "leave `ports` out, or join a user network",
            )
        } else {
            (
                "ports cannot be published with `network = \"none\"`",
                "leave `ports` out, or join a user network",
            )
        };
        errors.push(Kind::Conflict, table.place_of("ports"), message, hint);
    }
    let mounts = volumes::read(table, service, lookup, errors);
    let depends_on: Vec<(ComponentName, Place)> = table
        .strings("depends_on", errors)
        .unwrap_or_default()
        .iter()
        .filter_map(|text| {
            let name = parse_text(text, values::component_name, errors)?;
            Some((name, text.place.clone()))
        })
        .collect();
    let health = health::read(table, &network, errors);
    let (cap_add, cap_drop) = limits::read_capabilities(table, errors);
    let asked = host::read(table, &network, errors);
    let extra_hosts = read_extra_hosts(table, &network, errors);
    read_update(table, errors);
    let (entrypoint, cmd) = read_command(table, errors);
    let env = read_env(table, &mounts.secret_env, errors);
    let spec = ComponentSpec {
        restart: read_restart(table, &kind, errors),
        kind,
        // Replaced below: without an image there is no spec.
        image: image.clone().unwrap_or_else(no_image),
        pull: table.choice("pull", &Pull::WORDS, Pull::Missing, errors),
        entrypoint,
        cmd,
        env,
        user: table.parsed("user", values::user, errors),
        workdir: table.parsed(
            "workdir",
            |text| values::absolute_path("`workdir`", text),
            errors,
        ),
        hostname: table.parsed("hostname", values::hostname, errors),
        network,
        ports: ports.iter().map(|(port, _)| port.clone()).collect(),
        volumes: mounts.volumes,
        tmpfs: mounts.tmpfs,
        init: table.boolean("init", false, errors),
        depends_on: depends_on.iter().map(|(name, _)| name.clone()).collect(),
        health,
        resources: limits::read_resources(table, errors),
        read_only: table.boolean("read_only", false, errors),
        cap_add,
        cap_drop,
        labels: read_labels(table, errors),
        stop_signal: read_stop_signal(table, errors),
        stop_timeout: table.span("stop_timeout", STOP_TIMEOUT, errors),
        extra_hosts,
        dns: read_dns(table, errors),
        files: mounts.files,
        ready_for: table.span("ready_for", READY_FOR, errors),
        devices: asked.devices,
        ulimits: asked.ulimits,
        sysctls: asked.sysctls,
        security_opt: asked.security_opt,
        privileged: asked.privileged,
        log: asked.log,
        secrets: mounts.secrets,
        secret_env: mounts.secret_env,
    };
    ReadComponent {
        name,
        place,
        ports,
        depends_on,
        spec: image.map(|_| spec),
    }
}

fn no_image() -> crate::image::ImageRef {
    "none".parse().expect("`none` is an image reference")
}

fn read_kind(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> ComponentKind {
    let job = table.choice("kind", &[("service", false), ("job", true)], false, errors);
    let codes = table.array(
        "exit_codes",
        "a list of integers",
        |text| format!("write a list: `exit_codes = [{text}]`"),
        errors,
    );
    if !job {
        if codes.is_some() {
            errors.push(
                Kind::Conflict,
                table.place_of("exit_codes"),
                "`exit_codes` is for jobs only",
                "add `kind = \"job\"`, or leave `exit_codes` out",
            );
        }
        return ComponentKind::Service;
    }
    let Some((place, items)) = codes else {
        return ComponentKind::Job {
            exit_codes: BTreeSet::from([0]),
        };
    };
    if items.is_empty() {
        errors.push(
            Kind::Value,
            place,
            "a job with no good exit code never ends well",
            "write `exit_codes = [0]`, or leave it out",
        );
    }
    let exit_codes = items
        .iter()
        .filter_map(|item| integer("an exit code", item, (0, 255), errors))
        .filter_map(|code| i32::try_from(code).ok())
        .collect();
    ComponentKind::Job { exit_codes }
}

fn read_restart(table: &Table<'_, '_>, kind: &ComponentKind, errors: &mut Errors<'_>) -> Restart {
    let default = if kind.is_job() {
        Restart::No
    } else {
        Restart::UnlessStopped
    };
    let Some(entry) = table.get("restart") else {
        return default;
    };
    if let DeValue::Boolean(on) = entry.value.get_ref() {
        let word = if *on { "unless-stopped" } else { "no" };
        wrong_type(
            "`restart`",
            "a string",
            entry.value,
            format!("write `restart = \"{word}\"`"),
            errors,
        );
        return default;
    }
    let restart = table.parsed(
        "restart",
        |text| {
            text.parse::<Restart>().map_err(|_| {
                Refusal::new(
                    format!("`{text}` is not a restart policy"),
                    super::suggest::hint(
                        text,
                        [
                            "no",
                            "on-failure",
                            "on-failure:3",
                            "always",
                            "unless-stopped",
                        ],
                        "write one of",
                    ),
                )
            })
        },
        errors,
    );
    if kind.is_job() && matches!(restart, Some(Restart::Always | Restart::UnlessStopped)) {
        errors.push(
            Kind::Conflict,
            entry.value.span(),
            "a job ends, and cannot be restarted after every end",
            "write `restart = \"no\"` or `\"on-failure:N\"`, or make it `kind = \"service\"`",
        );
    }
    restart.unwrap_or(default)
}

/// `update`: the one way that there is.
fn read_update(table: &Table<'_, '_>, errors: &mut Errors<'_>) {
    let start_first = table.choice(
        "update",
        &[("stop-first", false), ("start-first", true)],
        false,
        errors,
    );
    if start_first {
        errors.push(
            Kind::NotSupportedYet,
            table
                .get("update")
                .map_or(table.place.clone(), |entry| entry.value.span()),
            "`update = \"start-first\"` is not supported yet by this release",
            "leave it out: a component is stopped before its successor starts",
        );
    }
}

/// `entrypoint` and `cmd`; an empty list takes the image's own away.
fn read_command(
    table: &Table<'_, '_>,
    errors: &mut Errors<'_>,
) -> (Option<Vec<String>>, Option<Vec<String>>) {
    let entrypoint = arguments(table, "entrypoint", errors);
    let cmd = arguments(table, "cmd", errors);
    let empty = |list: &Option<Vec<String>>| list.as_ref().is_some_and(Vec::is_empty);
    if let Some(words) = &entrypoint {
        a_program_first(table, "entrypoint", words, errors);
    }
    if empty(&entrypoint) && empty(&cmd) {
        errors.push(
            Kind::Conflict,
            table.place_of("cmd"),
            "with `entrypoint` and `cmd` both empty there is nothing to run",
            "write the program in one of them, or leave one out for the image's own",
        );
    }
    (entrypoint, cmd)
}

/// A command line: a list with at least a program.
pub(super) fn argv(
    table: &Table<'_, '_>,
    key: &str,
    errors: &mut Errors<'_>,
) -> Option<Vec<String>> {
    let words = arguments(table, key, errors)?;
    if words.is_empty() {
        errors.push(
            Kind::Value,
            table.place_of(key),
            format!("`{key}` is empty"),
            "write a program and its arguments, as in `[\"/bin/check\", \"--quick\"]`",
        );
    }
    a_program_first(table, key, &words, errors);
    Some(words)
}

fn a_program_first(table: &Table<'_, '_>, key: &str, words: &[String], errors: &mut Errors<'_>) {
    if words.first().is_some_and(String::is_empty) {
        errors.push(
            Kind::Value,
            table.place_of(key),
            format!("the program of `{key}` is empty"),
            "write the program first, as in `[\"/bin/server\", \"--config\", \"/etc/server.toml\"]`",
        );
    }
}

/// A list of arguments, which may be empty.
fn arguments(table: &Table<'_, '_>, key: &str, errors: &mut Errors<'_>) -> Option<Vec<String>> {
    let (_, items) = table.array(
        key,
        "a list of strings",
        |text| {
            let words: Vec<String> = text
                .split_whitespace()
                .map(|word| format!("{word:?}"))
                .collect();
            format!(
                "write a list: `{key} = [{}]`; there is no shell unless you start one",
                words.join(", ")
            )
        },
        errors,
    )?;
    let what = format!("an item of `{key}`");
    Some(
        items
            .iter()
            .filter_map(|item| string(&what, item, errors))
            .map(|text| text.text.to_owned())
            .collect(),
    )
}

fn read_env(
    table: &Table<'_, '_>,
    secret: &BTreeMap<String, SecretVariable>,
    errors: &mut Errors<'_>,
) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    for (name, value) in table.plain_values("env", errors) {
        if name.text.is_empty() || name.text.contains(['=', '\0']) {
            errors.push(
                Kind::Value,
                name.place,
                format!("`{}` is no name of a variable", name.text),
                "write a name that is not empty and has no `=`",
            );
            continue;
        }
        if secret.contains_key(name.text) {
            errors.push(
                Kind::Conflict,
                name.place,
                format!("the variable `{}` is a secret already", name.text),
                "leave it out of `env`, or take the `env` of the secret away",
            );
            continue;
        }
        env.insert(name.text.to_owned(), value);
    }
    env
}

fn read_labels(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for (name, value) in table.plain_values("labels", errors) {
        if name.text.is_empty() || name.text.contains(|c: char| c.is_control() || c == '=') {
            errors.push(
                Kind::Value,
                name.place,
                format!("`{}` is no name of a label", name.text),
                "write a name that is not empty and has no `=`",
            );
        } else if name.text == "mcp" || name.text.starts_with("mcp.") {
            errors.push(
                Kind::Value,
                name.place,
                format!("the label `{}` belongs to the agent", name.text),
                "take a name that does not start with `mcp.`",
            );
        } else {
            labels.insert(name.text.to_owned(), value);
        }
    }
    labels
}

fn read_stop_signal(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> Option<String> {
    let entry = table.get("stop_signal")?;
    if let DeValue::Integer(number) = entry.value.get_ref() {
        return match values::signal(&number.to_string()) {
            Ok(signal) => Some(signal),
            Err(refusal) => {
                errors.push(
                    Kind::Value,
                    entry.value.span(),
                    refusal.message,
                    refusal.hint,
                );
                None
            }
        };
    }
    table.parsed("stop_signal", values::signal, errors)
}

fn read_extra_hosts(
    table: &Table<'_, '_>,
    network: &Network,
    errors: &mut Errors<'_>,
) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::new();
    let Some(entry) = table.get("extra_hosts") else {
        return hosts;
    };
    match entry.value.get_ref() {
        DeValue::Array(_) => {
            for item in table.strings("extra_hosts", errors).unwrap_or_default() {
                let parsed = parse_text(
                    &item,
                    |text| {
                        // The first mark divides: an IPv6 address has colons of its own.
                        let (name, address) = text.split_once(['=', ':']).ok_or_else(|| {
                            Refusal::new(
                                format!("`{text}` is no line of `extra_hosts`"),
                                "write `NAME:ADDRESS`, as in `db.example.net:10.0.0.5`",
                            )
                        })?;
                        Ok((values::alias(name)?, values::host_address(address)?))
                    },
                    errors,
                );
                if let Some((name, address)) = parsed {
                    insert_once(&mut hosts, name, address, "the host", item.place, errors);
                }
            }
        }
        DeValue::Table(inner) => {
            for (key, value) in inner {
                let name = match values::alias(key.get_ref()) {
                    Ok(name) => name,
                    Err(refusal) => {
                        errors.push(Kind::Value, key.span(), refusal.message, refusal.hint);
                        continue;
                    }
                };
                if let Some(text) = string(&format!("the address of `{name}`"), value, errors)
                    && let Some(address) = parse_text(&text, values::host_address, errors)
                {
                    hosts.insert(name, address);
                }
            }
        }
        _ => wrong_type(
            "`extra_hosts`",
            "a list or a table",
            entry.value,
            "write `extra_hosts = [\"db.example.net:10.0.0.5\"]`",
            errors,
        ),
    }
    if *network == Network::None && hosts.values().any(|address| address == HOST_GATEWAY) {
        errors.push(
            Kind::Conflict,
            entry.key_place,
            format!("`{HOST_GATEWAY}` cannot be reached with `network = \"none\"`"),
            "leave the line out, or join a network",
        );
    }
    hosts
}

fn read_dns(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for text in table.strings("dns", errors).unwrap_or_default() {
        let Some(server) = parse_text(&text, values::name_server, errors) else {
            continue;
        };
        if servers.contains(&server) {
            errors.push(
                Kind::Duplicate,
                text.place,
                format!("the name server `{server}` stands here twice"),
                "leave one of them out",
            );
            continue;
        }
        servers.push(server);
    }
    servers
}
