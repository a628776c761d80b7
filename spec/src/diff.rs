//! Spec against spec, field by field, and set against set.
//!
//! [`diff`] is empty exactly where two components are equal. What the changes lead to is left to
//! `plan`; how they are laid out on a terminal, to the CLI.

mod set;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

pub use set::{Change, ComponentChange, ServiceChange, body, service_diff, set_diff, summary};

use crate::component::{
    ComponentSpec, FileMount, Health, Kind, Network, OnChange, Probe, SecretFile, Volume,
    VolumeSource,
};
use crate::definition::size_text;
use crate::image::ImageRef;

/// One field that differs: `image: v1.4.0 -> v1.5.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FieldChange {
    /// The dotted name, as in `image`, `env.RUST_LOG` or `volumes./srv/x`.
    pub field: String,
    /// The value before; `None` where the field was absent.
    pub from: Option<String>,
    /// The value after; `None` where the field is absent.
    pub to: Option<String>,
}

/// What stands for an absent value.
const ABSENT: &str = "(none)";

impl FieldChange {
    /// Both values as people read them: of an image whose repository stays, only the version; of a
    /// file of which only the content differs, the two digests.
    #[must_use]
    pub fn shown(&self) -> (String, String) {
        if self.field == "image"
            && let (Some(from), Some(to)) = (&self.from, &self.to)
            && let (Ok(from), Ok(to)) = (from.parse::<ImageRef>(), to.parse::<ImageRef>())
            && from.repository() == to.repository()
        {
            return (version(&from), version(&to));
        }
        if self.field.starts_with("files.")
            && let (Some(from), Some(to)) = (&self.from, &self.to)
            && let (Some(from), Some(to)) = (content(from), content(to))
            && (from.0, from.2) == (to.0, to.2)
        {
            return (from.1.to_owned(), to.1.to_owned());
        }
        if self.field.starts_with("secrets.") {
            return self.shown_secret();
        }
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| ABSENT.to_owned());
        (text(&self.from), text(&self.to))
    }
}

impl FieldChange {
    /// Of a secret only that its value differs: what stands for the value tells people nothing.
    fn shown_secret(&self) -> (String, String) {
        let plain = |value: &Option<String>| match value {
            None => ABSENT.to_owned(),
            Some(value) => match content(value) {
                Some((name, _, rest)) => format!("{name} {rest}"),
                None => value.split('@').next().unwrap_or_default().to_owned(),
            },
        };
        let (from, to) = (plain(&self.from), plain(&self.to));
        if from == to {
            return (from, "changed".to_owned());
        }
        (from, to)
    }
}

/// A mounted file's value in its parts: path, digest, and the rest.
fn content(value: &str) -> Option<(&str, &str, &str)> {
    let (path, rest) = value.rsplit_once('@')?;
    let (digest, rest) = rest.split_once(' ')?;
    Some((path, digest, rest))
}

/// Tag and digest of an image, shortened.
fn version(image: &ImageRef) -> String {
    match (image.tag(), image.digest()) {
        (Some(tag), Some(digest)) => format!("{tag}@{}", digest.short()),
        _ => image.version(),
    }
}

impl fmt::Display for FieldChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = self.shown();
        write!(f, "{}: {from} -> {to}", self.field)
    }
}

impl ComponentSpec {
    /// The spec as dotted fields with the values that people read.
    ///
    /// A field that is at the image's or the engine's choice is absent. Files are shown by a short
    /// digest; everything else is there in full.
    #[must_use]
    pub fn fields(&self) -> BTreeMap<String, String> {
        let Self {
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
        } = self;
        let mut fields = Fields::default();
        match kind {
            Kind::Service => fields.set("kind", "service"),
            Kind::Job { exit_codes } => {
                fields.set("kind", "job");
                fields.set("exit_codes", list(exit_codes));
            }
        }
        fields.set("image", image);
        fields.set("pull", pull);
        fields.set_some("entrypoint", entrypoint.as_deref().map(words));
        fields.set_some("cmd", cmd.as_deref().map(words));
        fields.set_all("env", env);
        fields.set_some("user", user.as_ref());
        fields.set_some("workdir", workdir.as_ref());
        fields.set_some("hostname", hostname.as_ref());
        match network {
            Network::None => fields.set("network", "none"),
            Network::Host => fields.set("network", "host"),
            Network::Bridge => fields.set("network", "bridge"),
            Network::User(attachments) => {
                fields.set("network", list(attachments.keys()));
                for (name, attachment) in attachments {
                    fields.set(&format!("networks.{name}"), list(&attachment.aliases));
                }
            }
        }
        if !ports.is_empty() {
            fields.set("ports", list(ports));
        }
        for (target, volume) in volumes {
            fields.set(&format!("volumes.{target}"), volume_text(volume));
        }
        for (target, tmpfs) in tmpfs {
            fields.set(&format!("tmpfs.{target}"), list(&tmpfs.options));
        }
        fields.set("restart", restart);
        fields.set("init", init);
        if !depends_on.is_empty() {
            fields.set("depends_on", list(depends_on));
        }
        if let Some(health) = health {
            fields.set_health(health);
        }
        fields.set_some("resources.memory", resources.memory_bytes.map(size_text));
        fields.set_some("resources.cpus", resources.cpu_millis.map(cpus_text));
        fields.set("resources.pids", resources.pids);
        fields.set("read_only", read_only);
        if !cap_add.is_empty() {
            fields.set("cap_add", list(cap_add));
        }
        if !cap_drop.is_empty() {
            fields.set("cap_drop", list(cap_drop));
        }
        fields.set_all("labels", labels);
        fields.set_some("stop_signal", stop_signal.as_ref());
        fields.set("stop_timeout", stop_timeout);
        fields.set_all("extra_hosts", extra_hosts);
        if !dns.is_empty() {
            fields.set("dns", list(dns));
        }
        for (target, file) in files {
            fields.set(
                &format!("files.{target}"),
                file_text(file, &file.digest.short()),
            );
        }
        fields.set("ready_for", ready_for);
        for (target, device) in devices {
            fields.set(&format!("devices.{target}"), device);
        }
        for (name, limit) in ulimits {
            fields.set(&format!("ulimits.{name}"), limit);
        }
        fields.set_all("sysctls", sysctls);
        if !security_opt.is_empty() {
            fields.set("security_opt", list(security_opt));
        }
        fields.set("privileged", privileged);
        if let Some(log) = log {
            fields.set("log.driver", &log.driver);
            fields.set_all("log.options", &log.options);
        }
        for (target, secret) in secrets {
            fields.set(&format!("secrets.{target}"), secret_text(secret));
        }
        for (variable, secret) in secret_env {
            fields.set(
                &format!("secrets.env.{variable}"),
                format!("{}@{}", secret.name, secret.digest.hex()),
            );
        }
        fields.0
    }
}

#[derive(Default)]
struct Fields(BTreeMap<String, String>);

impl Fields {
    fn set(&mut self, field: &str, value: impl fmt::Display) {
        self.0.insert(field.to_owned(), value.to_string());
    }

    fn set_some(&mut self, field: &str, value: Option<impl fmt::Display>) {
        if let Some(value) = value {
            self.set(field, value);
        }
    }

    fn set_all(&mut self, field: &str, values: &BTreeMap<String, String>) {
        for (name, value) in values {
            self.set(&format!("{field}.{name}"), value);
        }
    }

    fn set_health(&mut self, health: &Health) {
        match &health.probe {
            Probe::Cmd(argv) => self.set("health.cmd", words(argv)),
            Probe::Http { port, path, tls } => {
                self.set("health.http", Probe::http_url(*port, path, *tls));
            }
            Probe::Tcp(port) => self.set("health.tcp", port),
        }
        self.set("health.interval", health.interval);
        self.set("health.timeout", health.timeout);
        self.set("health.retries", health.retries);
        self.set("health.start_period", health.start_period);
    }
}

/// Items as one text; none of the lists that come here holds a blank within an item.
fn list<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() {
        "(default)".to_owned()
    } else {
        items.join(" ")
    }
}

/// Arguments as one text, quoted where they must be, so that two lists never look the same.
fn words(arguments: &[String]) -> String {
    let word = |text: &String| {
        let plain = !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c));
        if plain {
            text.clone()
        } else {
            serde_json::to_string(text).expect("a string is always JSON")
        }
    };
    format!(
        "[{}]",
        arguments.iter().map(word).collect::<Vec<_>>().join(" ")
    )
}

fn volume_text(volume: &Volume) -> String {
    let access = if volume.read_only { "ro" } else { "rw" };
    match &volume.source {
        VolumeSource::Bind(path) => format!("{path} {access}"),
        VolumeSource::Named(name) => format!("volume:{name} {access}"),
    }
}

/// Thousandths of a core as a number of cores.
pub(crate) fn cpus_text(millis: u64) -> String {
    let fraction = format!("{:03}", millis % 1000);
    match fraction.trim_end_matches('0') {
        "" => (millis / 1000).to_string(),
        fraction => format!("{}.{fraction}", millis / 1000),
    }
}

fn file_text(file: &FileMount, digest: &str) -> String {
    let mut text = format!("{}@{digest} {:04o}", file.from, file.mode);
    if let Some((uid, gid)) = file.owner {
        text.push_str(&format!(" {uid}:{gid}"));
    }
    if file.on_change != OnChange::Recreate {
        text.push_str(&format!(" {}", file.on_change));
    }
    text
}

/// With the whole digest: it says nothing, so it need not be short, and no two are equal by chance.
fn secret_text(secret: &SecretFile) -> String {
    let mut text = format!(
        "{}@{} {:04o}",
        secret.name,
        secret.digest.hex(),
        secret.mode
    );
    if let Some((uid, gid)) = secret.owner {
        text.push_str(&format!(" {uid}:{gid}"));
    }
    text
}

/// The fields in which two components differ, by name; empty exactly where they are equal.
#[must_use]
pub fn diff(from: &ComponentSpec, to: &ComponentSpec) -> Vec<FieldChange> {
    if from == to {
        return Vec::new();
    }
    let mut changes = field_changes(&from.fields(), &to.fields());
    // A network that was joined or left is in the field `network` already.
    changes.retain(|change| {
        !(change.field.starts_with("networks.") && (change.from.is_none() || change.to.is_none()))
    });
    // Seven digits of a digest can be equal by chance, or by somebody's work.
    for (target, before) in &from.files {
        if let Some(after) = to.files.get(target)
            && before != after
            && file_text(before, &before.digest.short()) == file_text(after, &after.digest.short())
        {
            changes.push(FieldChange {
                field: format!("files.{target}"),
                from: Some(file_text(before, &before.digest.hex())),
                to: Some(file_text(after, &after.digest.hex())),
            });
        }
    }
    changes
}

fn field_changes(
    from: &BTreeMap<String, String>,
    to: &BTreeMap<String, String>,
) -> Vec<FieldChange> {
    let names: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    names
        .into_iter()
        .filter(|name| from.get(*name) != to.get(*name))
        .map(|name| FieldChange {
            field: name.clone(),
            from: from.get(name).cloned(),
            to: to.get(name).cloned(),
        })
        .collect()
}

/// The targets whose bytes differ, with what the newer spec asks for, where nothing else differs.
///
/// `None` where anything else differs; empty where nothing does.
#[must_use]
pub fn file_changes_only(
    from: &ComponentSpec,
    to: &ComponentSpec,
) -> Option<Vec<(String, OnChange)>> {
    let mut levelled = from.clone();
    let mut changed = Vec::new();
    for (target, file) in &mut levelled.files {
        let after = to.files.get(target)?;
        if file.digest != after.digest {
            file.digest = after.digest;
            changed.push((target.clone(), after.on_change.clone()));
        }
    }
    (levelled == *to).then_some(changed)
}
