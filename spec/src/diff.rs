//! Spec against spec, field by field, and set against set.
//!
//! [`diff`] is empty exactly where two components are equal. What the changes lead to is left to
//! `plan`; how they are laid out on a terminal, to the CLI.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::component::{
    ComponentSpec, FileMount, Health, Kind, Network, OnChange, OnFailure, Probe, Pull, Reconcile,
    ServiceSpec, Volume, VolumeSource,
};
use crate::definition::{DesiredSet, size_text};
use crate::image::ImageRef;
use crate::name::{ComponentName, ServiceName};

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
    /// Both values as people read them: of an image whose repository stays, only the version.
    #[must_use]
    pub fn shown(&self) -> (String, String) {
        if self.field == "image"
            && let (Some(from), Some(to)) = (&self.from, &self.to)
            && let (Ok(from), Ok(to)) = (from.parse::<ImageRef>(), to.parse::<ImageRef>())
            && from.repository() == to.repository()
        {
            return (version(&from), version(&to));
        }
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| ABSENT.to_owned());
        (text(&self.from), text(&self.to))
    }
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
        fields.set(
            "pull",
            match pull {
                Pull::Missing => "missing",
                Pull::Always => "always",
                Pull::Never => "never",
            },
        );
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
            Probe::Http { port, path } => {
                self.set("health.http", format!("http://:{port}{path}"));
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
    match &file.on_change {
        OnChange::Recreate => {}
        OnChange::Restart => text.push_str(" restart"),
        OnChange::Signal(signal) => text.push_str(&format!(" signal:{signal}")),
        OnChange::None => text.push_str(" none"),
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

/// What happened to one service between two sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceChange {
    /// The service.
    pub service: ServiceName,
    /// What happened to it.
    pub change: Change,
}

/// What happened to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum Change {
    /// It is new.
    Added {
        /// Its components with the versions of their images.
        components: BTreeMap<ComponentName, String>,
    },
    /// It is gone.
    Removed,
    /// It is there before and after, and differs.
    Changed {
        /// Fields of the service itself, as in `active` or `node`.
        fields: Vec<FieldChange>,
        /// Components that differ.
        components: BTreeMap<ComponentName, ComponentChange>,
    },
}

/// What happened to a component of a service that is there before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "type")]
pub enum ComponentChange {
    /// It is new.
    Added {
        /// The version of its image.
        version: String,
    },
    /// It is gone.
    Removed,
    /// It differs.
    Changed {
        /// In these fields; never empty.
        fields: Vec<FieldChange>,
    },
}

fn service_fields(service: &ServiceSpec) -> BTreeMap<String, String> {
    let ServiceSpec {
        name: _,
        node,
        active,
        description,
        alert,
        deadline,
        reconcile,
        on_failure,
        components: _,
    } = service;
    let mut fields = Fields::default();
    fields.set("node", node);
    fields.set("active", active);
    fields.set_some("description", description.as_ref());
    fields.set("alert", alert);
    fields.set("deadline", deadline);
    fields.set(
        "reconcile",
        match reconcile {
            Reconcile::Manual => "manual",
            Reconcile::Auto => "auto",
        },
    );
    fields.set(
        "on_failure",
        match on_failure {
            OnFailure::KeepOld => "keep-old",
            OnFailure::Leave => "leave",
        },
    );
    fields.0
}

/// What differs between two services of one name; `None` where they are equal.
#[must_use]
pub fn service_diff(from: &ServiceSpec, to: &ServiceSpec) -> Option<ServiceChange> {
    let fields = field_changes(&service_fields(from), &service_fields(to));
    let mut components = BTreeMap::new();
    let names: BTreeSet<&ComponentName> =
        from.components.keys().chain(to.components.keys()).collect();
    for name in names {
        let change = match (from.components.get(name), to.components.get(name)) {
            (None, Some(after)) => ComponentChange::Added {
                version: version(&after.image),
            },
            (Some(before), Some(after)) => {
                let fields = diff(before, after);
                if fields.is_empty() {
                    continue;
                }
                ComponentChange::Changed { fields }
            }
            _ => ComponentChange::Removed,
        };
        components.insert(name.clone(), change);
    }
    (!fields.is_empty() || !components.is_empty()).then(|| ServiceChange {
        service: to.name.clone(),
        change: Change::Changed { fields, components },
    })
}

/// What differs between two sets, by service.
#[must_use]
pub fn set_diff(from: &DesiredSet, to: &DesiredSet) -> Vec<ServiceChange> {
    let names: BTreeSet<&ServiceName> = from.services.keys().chain(to.services.keys()).collect();
    names
        .into_iter()
        .filter_map(
            |name| match (from.services.get(name), to.services.get(name)) {
                (Some(before), Some(after)) => service_diff(before, after),
                (None, Some(after)) => Some(ServiceChange {
                    service: name.clone(),
                    change: Change::Added {
                        components: after
                            .components
                            .iter()
                            .map(|(name, spec)| (name.clone(), version(&spec.image)))
                            .collect(),
                    },
                }),
                _ => Some(ServiceChange {
                    service: name.clone(),
                    change: Change::Removed,
                }),
            },
        )
        .collect()
}

/// Longest line of a generated message, in characters.
const MAX_LINE_CHARS: usize = 120;

/// The text on one line, cut where a commit message would grow unwieldy.
fn line(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if shown.chars().count() > MAX_LINE_CHARS {
        shown = shown.chars().take(MAX_LINE_CHARS - 1).collect();
        shown.push('…');
    }
    shown
}

/// A change within a sentence: `image v1.4.0 -> v1.5.0`.
fn phrase(change: &FieldChange) -> String {
    let (from, to) = change.shown();
    format!("{} {from} -> {to}", change.field)
}

/// The most telling change first: the image, else the first by name.
fn foremost(fields: &[FieldChange]) -> Option<&FieldChange> {
    fields
        .iter()
        .find(|change| change.field == "image")
        .or_else(|| fields.first())
}

/// Each change as a subject and a phrase, the foremost field of each subject first.
fn phrases(changes: &[ServiceChange]) -> Vec<(String, String)> {
    let mut phrases = Vec::new();
    for ServiceChange { service, change } in changes {
        match change {
            Change::Added { components } => {
                let components: Vec<String> = components
                    .iter()
                    .map(|(name, version)| format!("{name} {version}"))
                    .collect();
                phrases.push((
                    service.to_string(),
                    format!("added ({})", components.join(", ")),
                ));
            }
            Change::Removed => phrases.push((service.to_string(), "removed".to_owned())),
            Change::Changed { fields, components } => {
                for change in fields {
                    phrases.push((service.to_string(), phrase(change)));
                }
                for (name, change) in components {
                    let subject = format!("{service}/{name}");
                    match change {
                        ComponentChange::Added { version } => {
                            phrases.push((subject, format!("added ({version})")));
                        }
                        ComponentChange::Removed => phrases.push((subject, "removed".to_owned())),
                        ComponentChange::Changed { fields } => {
                            let first = foremost(fields);
                            let others = fields.iter().filter(|change| Some(*change) != first);
                            for change in first.into_iter().chain(others) {
                                phrases.push((subject.clone(), phrase(change)));
                            }
                        }
                    }
                }
            }
        }
    }
    phrases
}

/// All changes in one line: `metacrypt/api: image v1.4.0 -> v1.5.0 (+2 more)`; empty where there
/// are none.
#[must_use]
pub fn summary(changes: &[ServiceChange]) -> String {
    let phrases = phrases(changes);
    let Some((subject, phrase)) = phrases.first() else {
        return String::new();
    };
    let more = match phrases.len() - 1 {
        0 => String::new(),
        more => format!(" (+{more} more)"),
    };
    format!("{}{more}", line(&format!("{subject}: {phrase}")))
}

/// Each change in a line of its own, for the body of a commit message.
#[must_use]
pub fn body(changes: &[ServiceChange]) -> Vec<String> {
    phrases(changes)
        .iter()
        .map(|(subject, phrase)| line(&format!("{subject}: {phrase}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::definition::{DefinitionFile, compile};
    use crate::image::Digest;
    use crate::samples;

    fn set(services: &[(&str, &str)]) -> DesiredSet {
        let texts: Vec<(String, String)> = services
            .iter()
            .map(|(name, rest)| {
                (
                    format!("services/{name}.toml"),
                    format!("name = \"{name}\"\nnode = \"rift\"\n{rest}"),
                )
            })
            .collect();
        let files: Vec<DefinitionFile<'_>> = texts
            .iter()
            .map(|(path, text)| DefinitionFile {
                path,
                bytes: text.as_bytes(),
            })
            .collect();
        compile(&files, &samples::lookup).unwrap()
    }

    fn api(keys: &str) -> String {
        format!("[[components]]\nname = \"api\"\n{keys}\n")
    }

    fn component(keys: &str) -> ComponentSpec {
        let set = set(&[("shop", &api(keys))]);
        set.services["shop"].components["api"].clone()
    }

    fn shown(from: &str, to: &str) -> Vec<String> {
        diff(&component(from), &component(to))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn a_diff_is_empty_exactly_where_two_are_equal(
            a in samples::one_component(),
            b in samples::one_component(),
        ) {
            prop_assert_eq!(diff(&a, &b).is_empty(), a == b);
            prop_assert!(diff(&a, &a.clone()).is_empty());
            prop_assert_eq!(a.digest() == b.digest(), a == b);
        }

        /// Two unrelated specs differ in nearly everything; here only one field is taken over.
        #[test]
        fn no_single_field_is_forgotten(
            a in samples::one_component(),
            b in samples::one_component(),
            field in 0..28_usize,
        ) {
            let fields = serde_json::to_value(&a).unwrap();
            let other = serde_json::to_value(&b).unwrap();
            let name = fields.as_object().unwrap().keys().nth(field).unwrap().clone();
            let mut mixed = fields;
            mixed[&name] = other[&name].clone();
            let mixed: ComponentSpec = serde_json::from_value(mixed).unwrap();
            prop_assert_eq!(diff(&a, &mixed).is_empty(), a == mixed, "{}", name);
        }

        #[test]
        fn a_diff_backwards_is_the_diff_swapped(
            a in samples::one_component(),
            b in samples::one_component(),
        ) {
            let swapped: Vec<FieldChange> = diff(&b, &a)
                .into_iter()
                .map(|FieldChange { field, from, to }| FieldChange { field, from: to, to: from })
                .collect();
            prop_assert_eq!(diff(&a, &b), swapped);
        }
    }

    #[test]
    fn changes_read_as_people_say_them() {
        let image = "image = \"reg.example.net/api:v1.4.0\"\n";
        for (from, to, expected) in [
            (
                "image = \"reg.example.net/api:v1.4.0\"",
                "image = \"reg.example.net/api:v1.5.0\"",
                vec!["image: v1.4.0 -> v1.5.0"],
            ),
            (
                "image = \"api:v1\"",
                "image = \"web:v1\"",
                vec!["image: docker.io/library/api:v1 -> docker.io/library/web:v1"],
            ),
            (
                "image = \"api:v1\"",
                "image = \"api:v1@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"",
                vec!["image: v1 -> v1@aaaaaaa"],
            ),
        ] {
            assert_eq!(shown(from, to), expected);
        }
        for (from, to, expected) in [
            (
                "env = { A = \"info\" }",
                "env = { A = \"debug\", B = \"1\" }",
                vec!["env.A: info -> debug", "env.B: (none) -> 1"],
            ),
            (
                "network = \"none\"",
                "network = \"edge\"",
                vec!["network: none -> edge"],
            ),
            (
                "networks = { edge = {} }",
                "networks = { edge = { aliases = [\"x\"] } }",
                vec!["networks.edge: shop-api -> shop-api x"],
            ),
            (
                "",
                "ports = [\"80:80\", \"81:81/udp\"]",
                vec!["ports: (none) -> 127.0.0.1:80:80/tcp 127.0.0.1:81:81/udp"],
            ),
            (
                "volumes = [\"/srv/x:/x\"]",
                "volumes = [\"x:/x:ro\"]",
                vec!["volumes./x: /srv/x rw -> volume:shop_x ro"],
            ),
            (
                "cmd = [\"a\", \"b\"]",
                "cmd = [\"a b\"]",
                vec!["cmd: [a b] -> [\"a b\"]"],
            ),
            (
                "resources = { memory = \"512MiB\" }",
                "resources = { memory = \"1g\", cpus = 0.5 }",
                vec![
                    "resources.cpus: (none) -> 0.5",
                    "resources.memory: 512MiB -> 1GiB",
                ],
            ),
            (
                "health = { tcp = 80 }",
                "health = { tcp = 81, interval = \"1m\" }",
                vec!["health.interval: 10s -> 1m", "health.tcp: 80 -> 81"],
            ),
            (
                "",
                "kind = \"job\"",
                vec![
                    "exit_codes: (none) -> 0",
                    "kind: service -> job",
                    "restart: unless-stopped -> no",
                ],
            ),
        ] {
            assert_eq!(
                shown(&format!("{image}{from}"), &format!("{image}{to}")),
                expected
            );
        }
    }

    #[test]
    fn only_changed_bytes_are_told_from_any_other_change() {
        let keys = "image = \"x\"\nfiles = [{ from = \"files/shop/a\", to = \"/a\", on_change = \"signal:HUP\" }, { from = \"files/shop/b\", to = \"/b\" }]";
        let before = component(keys);
        assert_eq!(file_changes_only(&before, &before), Some(vec![]));
        let mut after = before.clone();
        after.files.get_mut("/a").unwrap().digest = Digest::of(b"new");
        assert_eq!(
            file_changes_only(&before, &after),
            Some(vec![(
                "/a".to_owned(),
                OnChange::Signal("SIGHUP".to_owned())
            )])
        );
        assert_eq!(diff(&before, &after).len(), 1);
        let mut other = after.clone();
        other.init = true;
        assert_eq!(file_changes_only(&before, &other), None);
        let mut moved = after.clone();
        moved.files.get_mut("/a").unwrap().mode = 0o600;
        assert_eq!(file_changes_only(&before, &moved), None);
        let mut fewer = before.clone();
        fewer.files.remove("/b");
        assert_eq!(file_changes_only(&before, &fewer), None);
        assert_eq!(file_changes_only(&fewer, &before), None);
    }

    #[test]
    fn digests_that_look_alike_still_differ() {
        let before = component("image = \"x\"\nfiles = [{ from = \"files/shop/a\", to = \"/a\" }]");
        let mut bytes = *before.files["/a"].digest.as_bytes();
        bytes[31] ^= 1;
        let mut after = before.clone();
        after.files.get_mut("/a").unwrap().digest = Digest::from_bytes(bytes);
        let changes = diff(&before, &after);
        assert_eq!(changes.len(), 1);
        assert_ne!(changes[0].from, changes[0].to);
    }

    #[test]
    fn a_set_diff_tells_what_a_commit_does() {
        let v = |version: &str| api(&format!("image = \"api:{version}\""));
        let none = DesiredSet::default();
        let before = set(&[("shop", &v("v1"))]);
        assert_eq!(set_diff(&before, &before), []);
        assert_eq!(summary(&[]), "");
        for (from, to, line) in [
            (&none, set(&[("shop", &v("v1"))]), "shop: added (api v1)"),
            (&before, none.clone(), "shop: removed"),
            (
                &before,
                set(&[("shop", &v("v2"))]),
                "shop/api: image v1 -> v2",
            ),
            (
                &before,
                set(&[(
                    "shop",
                    &format!("{}env = {{ A = \"1\" }}\ninit = true\n", v("v2")),
                )]),
                "shop/api: image v1 -> v2 (+2 more)",
            ),
            (
                &before,
                set(&[("shop", &format!("active = false\n{}", v("v1")))]),
                "shop: active true -> false",
            ),
            (
                &before,
                set(&[(
                    "shop",
                    &format!(
                        "{}[[components]]\nname = \"web\"\nimage = \"web:v3\"\n",
                        v("v1")
                    ),
                )]),
                "shop/web: added (v3)",
            ),
        ] {
            let changes = set_diff(from, &to);
            assert_eq!(summary(&changes), line);
            assert_eq!(changes.len(), 1);
        }
        let after = set(&[
            ("blog", &v("v7")),
            ("shop", &format!("{}init = true\n", v("v2"))),
        ]);
        let changes = set_diff(&before, &after);
        assert_eq!(summary(&changes), "blog: added (api v7) (+2 more)");
        assert_eq!(
            body(&changes),
            [
                "blog: added (api v7)",
                "shop/api: image v1 -> v2",
                "shop/api: init false -> true"
            ]
        );
    }

    #[test]
    fn a_generated_line_is_one_short_line() {
        let long = format!("image = \"x\"\nenv = {{ A = \"{}\\n\" }}", "y".repeat(500));
        let before = set(&[("shop", &api("image = \"x\""))]);
        let after = set(&[("shop", &api(&long))]);
        let line = summary(&set_diff(&before, &after));
        assert!(
            line.chars().count() <= 120 && !line.contains('\n'),
            "{line}"
        );
    }
}
