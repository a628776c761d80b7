//! A service as the definition that compiles to it.
//!
//! Defaults are left out. `definition` reads the text back to an equal spec, which a property test
//! holds; comments and `x-` keys are not part of a spec and are not written.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::component::{
    Attachment, ComponentSpec, Device, FileMount, Health, Kind, Log, Network, OnChange, OnFailure,
    Port, Probe, Protocol, Pull, Reconcile, Restart, SecretFile, ServiceSpec, Ulimit, Volume,
    VolumeSource,
};
use crate::definition::{
    DEADLINE, FILE_MODE, INTERVAL, PIDS, READY_FOR, RETRIES, SECRET_MODE, START_PERIOD,
    STOP_TIMEOUT, TIMEOUT, implied_aliases, size_text,
};
use crate::diff::cpus_text;
use crate::name::{ComponentName, ServiceName};
use crate::secret::SECRETS_DIR;

/// Widest line before a list is broken over several.
const WIDTH: usize = 100;

/// The definition of a service, to be kept as `services/NAME.toml`.
#[must_use]
pub fn to_toml(spec: &ServiceSpec) -> String {
    let mut head = Block::default();
    head.text("name", spec.name.as_str());
    head.text("node", spec.node.as_str());
    if !spec.active {
        head.set("active", "false".to_owned());
    }
    if let Some(description) = &spec.description {
        head.text("description", description);
    }
    if !spec.alert {
        head.set("alert", "false".to_owned());
    }
    if spec.deadline != DEADLINE {
        head.text("deadline", &spec.deadline.to_string());
    }
    if spec.reconcile != Reconcile::Manual {
        head.text("reconcile", spec.reconcile.as_str());
    }
    if spec.on_failure != OnFailure::KeepOld {
        head.text("on_failure", spec.on_failure.as_str());
    }
    let mut text = head.written("");
    for (name, component) in &spec.components {
        text.push('\n');
        text.push_str(&component_toml(&spec.name, name, component));
    }
    text
}

/// The `[[components]]` part of one component, to be added to its service's definition.
#[must_use]
pub fn component_toml(
    service: &ServiceName,
    name: &ComponentName,
    component: &ComponentSpec,
) -> String {
    let ComponentSpec {
        kind,
        image,
        pull,
        entrypoint,
        cmd,
        env,
        user,
        workdir,
        hostname,
        network,
        ports,
        volumes,
        tmpfs,
        restart,
        init,
        depends_on,
        health,
        resources,
        read_only,
        cap_add,
        cap_drop,
        labels,
        stop_signal,
        stop_timeout,
        extra_hosts,
        dns,
        files,
        ready_for,
        devices,
        ulimits,
        sysctls,
        security_opt,
        privileged,
        log,
        secrets,
        secret_env,
    } = component;
    let mut block = Block::default();
    let mut tables = String::new();
    block.text("name", name.as_str());
    let default_restart = match kind {
        Kind::Service => Restart::UnlessStopped,
        Kind::Job { exit_codes } => {
            block.text("kind", "job");
            if exit_codes.iter().ne([&0]) {
                block.list("exit_codes", exit_codes.iter().map(ToString::to_string));
            }
            Restart::No
        }
    };
    block.text("image", &image.to_string());
    if *pull != Pull::Missing {
        block.text("pull", pull.as_str());
    }
    write_network(&mut block, service, name, network);
    block.some_text("user", user.as_deref());
    block.some_text("workdir", workdir.as_deref());
    block.some_text("hostname", hostname.as_deref());
    if *restart != default_restart {
        block.text("restart", &restart.to_string());
    }
    block.texts("depends_on", depends_on.iter().map(ToString::to_string));
    block.texts("ports", port_texts(ports));
    block.texts(
        "volumes",
        volumes
            .iter()
            .map(|(target, volume)| volume_text(service, target, volume)),
    );
    block.texts(
        "tmpfs",
        tmpfs.iter().map(|(target, tmpfs)| {
            if tmpfs.options.is_empty() {
                return target.clone();
            }
            let options: Vec<&str> = tmpfs.options.iter().map(String::as_str).collect();
            format!("{target}:{}", options.join(","))
        }),
    );
    block.list(
        "files",
        files.iter().map(|(target, file)| file_text(target, file)),
    );
    block.list(
        "secrets",
        secrets
            .iter()
            .map(|(target, secret)| secret_text(target, secret))
            .chain(secret_env.iter().map(|(variable, secret)| {
                format!(
                    "{{ name = {}, env = {} }}",
                    quoted(secret.name.as_str()),
                    quoted(variable)
                )
            })),
    );
    if let Some(entrypoint) = entrypoint {
        block.argv("entrypoint", entrypoint);
    }
    if let Some(cmd) = cmd {
        block.argv("cmd", cmd);
    }
    block.map("env", env, &mut tables);
    block.map("labels", labels, &mut tables);
    if *init {
        block.set("init", "true".to_owned());
    }
    if *read_only {
        block.set("read_only", "true".to_owned());
    }
    block.texts("cap_add", cap_add.iter().cloned());
    block.texts("cap_drop", cap_drop.iter().cloned());
    block.some_text("stop_signal", stop_signal.as_deref());
    if *stop_timeout != STOP_TIMEOUT {
        block.text("stop_timeout", &stop_timeout.to_string());
    }
    if *ready_for != READY_FOR {
        block.text("ready_for", &ready_for.to_string());
    }
    block.map("extra_hosts", extra_hosts, &mut tables);
    block.texts("dns", dns.iter().map(IpAddr::to_string));
    let mut limits = Vec::new();
    if let Some(bytes) = resources.memory_bytes {
        limits.push(format!("memory = {}", quoted(&size_text(bytes))));
    }
    if let Some(millis) = resources.cpu_millis {
        limits.push(format!("cpus = {}", cpus_text(millis)));
    }
    if resources.pids != PIDS {
        limits.push(format!("pids = {}", resources.pids));
    }
    if !limits.is_empty() {
        block.set("resources", format!("{{ {} }}", limits.join(", ")));
    }
    block.texts(
        "devices",
        devices.iter().map(|(at, device)| device_text(at, device)),
    );
    let limits: BTreeMap<&String, String> = ulimits
        .iter()
        .map(|(name, limit)| (name, ulimit_text(limit)))
        .collect();
    block.table("ulimits", limits, &mut tables);
    block.map("sysctls", sysctls, &mut tables);
    block.texts("security_opt", security_opt.iter().cloned());
    if *privileged {
        block.set("privileged", "true".to_owned());
    }
    if let Some(log) = log {
        block.set("log", log_text(log));
    }
    if let Some(health) = health {
        tables.push_str(&write_health(health));
    }
    format!("[[components]]\n{}{tables}", block.written(""))
}

fn write_network(
    block: &mut Block,
    service: &ServiceName,
    component: &ComponentName,
    network: &Network,
) {
    let attachments = match network {
        Network::None => return block.text("network", "none"),
        Network::Host => return block.text("network", "host"),
        Network::Bridge => return block.text("network", "bridge"),
        Network::User(attachments) => attachments,
    };
    let asked: BTreeMap<&String, Vec<&String>> = attachments
        .iter()
        .map(|(network, Attachment { aliases })| {
            let implied = implied_aliases(network, service, component);
            let asked = aliases
                .iter()
                .filter(|alias| !implied.contains(alias))
                .collect();
            (network, asked)
        })
        .collect();
    if asked.values().all(Vec::is_empty) {
        let names: Vec<&&String> = asked.keys().collect();
        match names[..] {
            [only] if only.as_str() == service.as_str() => {}
            [only] => block.text("network", only),
            _ => block.texts("networks", names.iter().map(ToString::to_string)),
        }
        return;
    }
    let entries: Vec<String> = asked
        .iter()
        .map(|(network, aliases)| {
            if aliases.is_empty() {
                return format!("{} = {{}}", key(network));
            }
            let aliases: Vec<String> = aliases.iter().map(|alias| quoted(alias)).collect();
            format!(
                "{} = {{ aliases = [{}] }}",
                key(network),
                aliases.join(", ")
            )
        })
        .collect();
    block.set("networks", format!("{{ {} }}", entries.join(", ")));
}

/// The ports of a set as definitions write them, runs joined into ranges.
fn port_texts<'p>(ports: impl IntoIterator<Item = &'p Port>) -> Vec<String> {
    let mut ports: Vec<&Port> = ports.into_iter().collect();
    ports.sort_by_key(|port| (port.ip, port.protocol, port.host, port.container));
    let mut runs: Vec<(&Port, u16)> = Vec::new();
    for port in ports {
        if let Some((first, last)) = runs.last_mut()
            && (first.ip, first.protocol) == (port.ip, port.protocol)
            && last.checked_add(1) == Some(port.host)
            && i32::from(port.container) - i32::from(port.host)
                == i32::from(first.container) - i32::from(first.host)
        {
            *last = port.host;
        } else {
            runs.push((port, port.host));
        }
    }
    runs.into_iter()
        .map(|(first, last)| {
            let ip = match first.ip {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            };
            let length = last - first.host;
            let ports = if length == 0 {
                format!("{}:{}", first.host, first.container)
            } else {
                format!(
                    "{}-{last}:{}-{}",
                    first.host,
                    first.container,
                    first.container + length
                )
            };
            match first.protocol {
                Protocol::Tcp => format!("{ip}:{ports}"),
                Protocol::Udp => format!("{ip}:{ports}/udp"),
            }
        })
        .collect()
}

fn volume_text(service: &ServiceName, target: &str, volume: &Volume) -> String {
    let source = match &volume.source {
        VolumeSource::Bind(path) => path.clone(),
        VolumeSource::Named(name) => match name
            .strip_prefix(service.as_str())
            .and_then(|rest| rest.strip_prefix('_'))
            .filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
        {
            Some(own) => own.to_owned(),
            None => format!("volume:{name}"),
        },
    };
    let access = if volume.read_only { ":ro" } else { "" };
    format!("{source}:{target}{access}")
}

fn file_text(target: &str, file: &FileMount) -> String {
    let mut text = format!("{{ from = {}, to = {}", quoted(&file.from), quoted(target));
    if file.mode != FILE_MODE {
        text.push_str(&format!(", mode = \"{:04o}\"", file.mode));
    }
    if let Some((uid, gid)) = file.owner {
        text.push_str(&format!(", owner = \"{uid}:{gid}\""));
    }
    if file.on_change != OnChange::Recreate {
        text.push_str(&format!(
            ", on_change = {}",
            quoted(&file.on_change.to_string())
        ));
    }
    text.push_str(" }");
    text
}

/// The name alone where everything else is the default.
fn secret_text(target: &str, secret: &SecretFile) -> String {
    let is_default_target = target == format!("{SECRETS_DIR}/{}", secret.name);
    if is_default_target && secret.mode == SECRET_MODE && secret.owner.is_none() {
        return quoted(secret.name.as_str());
    }
    let mut text = format!("{{ name = {}", quoted(secret.name.as_str()));
    if !is_default_target {
        text.push_str(&format!(", to = {}", quoted(target)));
    }
    if secret.mode != SECRET_MODE {
        text.push_str(&format!(", mode = \"{:04o}\"", secret.mode));
    }
    if let Some((uid, gid)) = secret.owner {
        text.push_str(&format!(", owner = \"{uid}:{gid}\""));
    }
    text.push_str(" }");
    text
}

/// `HOST[:CONTAINER][:PERMISSIONS]`.
fn device_text(target: &str, device: &Device) -> String {
    let mut text = device.host.clone();
    if target != device.host {
        text.push_str(&format!(":{target}"));
    }
    if device.permissions != Device::ALL {
        text.push_str(&format!(":{}", device.permissions));
    }
    text
}

/// A number where one is enough.
fn ulimit_text(limit: &Ulimit) -> String {
    match (limit.soft, limit.hard) {
        (Some(soft), Some(hard)) if soft == hard => soft.to_string(),
        _ => quoted(&limit.to_string()),
    }
}

fn log_text(log: &Log) -> String {
    let mut text = format!("{{ driver = {}", quoted(&log.driver));
    if !log.options.is_empty() {
        let options: Vec<String> = log
            .options
            .iter()
            .map(|(name, value)| format!("{} = {}", key(name), quoted(value)))
            .collect();
        text.push_str(&format!(", options = {{ {} }}", options.join(", ")));
    }
    text.push_str(" }");
    text
}

fn write_health(health: &Health) -> String {
    let mut block = Block::default();
    match &health.probe {
        Probe::Cmd(argv) => block.texts("cmd", argv.iter().cloned()),
        Probe::Http { port, path, tls } => {
            block.text("http", &Probe::http_url(*port, path, *tls));
        }
        Probe::Tcp(port) => block.set("tcp", port.to_string()),
    }
    if health.interval != INTERVAL {
        block.text("interval", &health.interval.to_string());
    }
    if health.timeout != TIMEOUT {
        block.text("timeout", &health.timeout.to_string());
    }
    if health.retries != RETRIES {
        block.set("retries", health.retries.to_string());
    }
    if health.start_period != START_PERIOD {
        block.text("start_period", &health.start_period.to_string());
    }
    format!("\n  [components.health]\n{}", block.written("  "))
}

/// Keys and values of one table, lined up when they are written.
#[derive(Default)]
struct Block(Vec<(&'static str, String)>);

impl Block {
    fn set(&mut self, key: &'static str, value: String) {
        self.0.push((key, value));
    }

    fn text(&mut self, key: &'static str, text: &str) {
        self.set(key, quoted(text));
    }

    fn some_text(&mut self, key: &'static str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn texts(&mut self, key: &'static str, items: impl IntoIterator<Item = String>) {
        self.list(key, items.into_iter().map(|item| quoted(&item)));
    }

    /// A list of values that are TOML already; left out where it is empty.
    fn list(&mut self, key: &'static str, items: impl IntoIterator<Item = String>) {
        let items: Vec<String> = items.into_iter().collect();
        if items.is_empty() {
            return;
        }
        let one_line = format!("[{}]", items.join(", "));
        if one_line.len() + key.len() + 3 <= WIDTH {
            self.set(key, one_line);
        } else {
            self.set(key, format!("[\n    {},\n]", items.join(",\n    ")));
        }
    }

    /// A command line; an empty one is written, since it takes the image's own away.
    fn argv(&mut self, key: &'static str, words: &[String]) {
        if words.is_empty() {
            self.set(key, "[]".to_owned());
        }
        self.texts(key, words.iter().cloned());
    }

    /// A table of the operator's own keys: within the line where it fits, else below in `tables`.
    fn map(&mut self, key: &'static str, map: &BTreeMap<String, String>, tables: &mut String) {
        let values = map.iter().map(|(name, value)| (name, quoted(value)));
        self.table(key, values, tables);
    }

    /// The same of values that are TOML already.
    fn table<'m>(
        &mut self,
        key: &'static str,
        values: impl IntoIterator<Item = (&'m String, String)>,
        tables: &mut String,
    ) {
        let entries: Vec<String> = values
            .into_iter()
            .map(|(name, value)| format!("{} = {value}", self::key(name)))
            .collect();
        if entries.is_empty() {
            return;
        }
        let one_line = format!("{{ {} }}", entries.join(", "));
        if one_line.len() + key.len() + 3 <= WIDTH {
            self.set(key, one_line);
            return;
        }
        tables.push_str(&format!("\n  [components.{key}]\n"));
        for entry in entries {
            tables.push_str(&format!("  {entry}\n"));
        }
    }

    fn written(&self, indent: &str) -> String {
        let widest = self.0.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
        self.0
            .iter()
            .map(|(key, value)| format!("{indent}{key:widest$} = {value}\n"))
            .collect()
    }
}

fn key(name: &str) -> String {
    let bare = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if bare { name.to_owned() } else { quoted(name) }
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::definition::{DefinitionError, DefinitionFile, compile, parse_one};
    use crate::samples;

    fn read(text: &str) -> ServiceSpec {
        let file = DefinitionFile {
            path: "services/shop.toml",
            bytes: text.as_bytes(),
        };
        let (spec, errors) = parse_one(file, &samples::lookup);
        let shown: Vec<String> = errors.iter().map(DefinitionError::render).collect();
        spec.unwrap_or_else(|| panic!("{}\n{text}", shown.join("\n")))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_is_written_compiles_to_the_same(spec in samples::service()) {
            let text = to_toml(&spec);
            prop_assert_eq!(&read(&text), &spec, "{}", text);
            let file = DefinitionFile { path: "services/shop.toml", bytes: text.as_bytes() };
            let set = compile(&[file], &samples::lookup).unwrap();
            prop_assert_eq!(&set.services["shop"], &spec);
            prop_assert_eq!(to_toml(&read(&text)), text);
        }

        #[test]
        fn comments_and_white_space_never_change_a_digest(
            spec in samples::service(),
            noise in "[a-z #\"\\[\\]=]{0,10}",
        ) {
            // Before every line that is not within a list.
            let text: String = to_toml(&spec)
                .lines()
                .map(|line| {
                    if line.starts_with("    ") || line == "]" {
                        format!("{line}\n")
                    } else {
                        format!("\n\t # {noise}\n   {line}  # {noise}\r\n")
                    }
                })
                .collect();
            prop_assert_eq!(read(&text), spec);
        }

        #[test]
        fn the_order_of_keys_never_changes_a_digest(spec in samples::service(), seed in any::<u64>()) {
            // The keys before the first `[` or blank line of each table, in another order.
            let text = to_toml(&spec);
            let mut shuffled = String::new();
            for table in text.split("\n\n") {
                let (header, keys) = match table.trim_start().strip_prefix('[') {
                    Some(_) => table.split_once('\n').unwrap_or((table, "")),
                    None => ("", table),
                };
                let mut entries: Vec<String> = Vec::new();
                for line in keys.lines() {
                    match entries.last_mut() {
                        Some(last) if line.starts_with("    ") || line == "]" || line == "  ]" => {
                            last.push('\n');
                            last.push_str(line);
                        }
                        _ => entries.push(line.to_owned()),
                    }
                }
                let length = entries.len().max(1);
                entries.rotate_left((seed % length as u64) as usize);
                shuffled.push_str(&format!("{header}\n{}\n\n", entries.join("\n")));
            }
            prop_assert_eq!(read(&shuffled), spec, "{}", shuffled);
        }
    }

    #[test]
    fn defaults_are_left_out_and_runs_of_ports_are_ranges() {
        let text = "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"web:v1\"\n\
                    ports = [\"8000-8002:80-82\", \"9000:90/udp\"]\nhealth = { tcp = 80, retries = 3 }\n\
                    restart = \"unless-stopped\"\nvolumes = [\"data:/data:ro\"]\nresources = { cpus = 0.25 }\n";
        assert_eq!(
            to_toml(&read(text)),
            r#"name = "shop"
node = "rift"

[[components]]
name      = "web"
image     = "docker.io/library/web:v1"
ports     = ["127.0.0.1:8000-8002:80-82", "127.0.0.1:9000:90/udp"]
volumes   = ["data:/data:ro"]
resources = { cpus = 0.25 }

  [components.health]
  tcp = 80
"#
        );
    }

    #[test]
    fn secrets_are_written_back_by_name_and_never_with_what_stands_for_them() {
        let text = "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"web:v1\"\n\
                    secrets = [\"db\", { name = \"shop/tls\", to = \"/etc/tls.key\", mode = \"0400\", owner = \"7:8\" }, \
                    { name = \"api\", env = \"API_KEY\" }]\n";
        let spec = read(text);
        let component = &spec.components["web"];
        assert_eq!(component.secrets["/run/secrets/db"].mode, 0o444);
        assert_eq!(component.secrets["/etc/tls.key"].owner, Some((7, 8)));
        assert_eq!(component.secret_env["API_KEY"].name.as_str(), "api");
        let written = to_toml(&spec);
        assert!(
            !written.contains("sha256") && written.contains("\"db\""),
            "{written}"
        );
        assert_eq!(read(&written), spec, "{written}");
    }
}
