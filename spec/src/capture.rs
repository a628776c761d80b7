//! A container that exists, as a definition would have it.
//!
//! Whoever reads the container fills a [`Captured`]: the component that comes nearest to it, and beside it
//! every field in which a container made from that component would be another. Which engine it runs on is
//! left to the reader; what definitions take is known here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::component::{ComponentSpec, Network, OnFailure, Reconcile, ServiceSpec};
use crate::definition::{DefinitionFile, implied_aliases, parse_one};
use crate::diff::FieldChange;
use crate::duration::Span;
use crate::export::toml::to_toml;
use crate::image::ImageRef;
use crate::name::{ComponentKey, NodeName};

/// Parts of variables' names that tell of a secret.
const TELLING: [&str; 8] = [
    "PASS",
    "SECRET",
    "TOKEN",
    "CREDENTIAL",
    "PRIVATE",
    "APIKEY",
    "API_KEY",
    "ACCESS_KEY",
];

/// Digits of the name that engines give a volume that nobody named.
const ANONYMOUS_DIGITS: usize = 64;

/// A container as a definition would have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Captured {
    /// What a definition says of it.
    pub spec: ComponentSpec,
    /// In what a container made from that departs from it: what is and what would be, `None` where a
    /// definition cannot say it.
    pub departures: Vec<FieldChange>,
    /// What the operator should know.
    pub warnings: Vec<String>,
}

impl Captured {
    /// A component of which nothing is captured but its image.
    #[must_use]
    pub fn bare(key: &ComponentKey, image: &ImageRef) -> Self {
        Self {
            spec: bare(key, image),
            departures: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Notes that a container made from the spec would have `to` where this one has `from`.
    pub fn departs(&mut self, field: &str, from: impl Into<String>, to: impl Into<String>) {
        self.departures.push(FieldChange {
            field: field.to_owned(),
            from: Some(from.into()),
            to: Some(to.into()),
        });
    }

    /// Notes what no definition can say.
    pub fn loses(&mut self, field: &str, value: impl Into<String>) {
        self.departures.push(FieldChange {
            field: field.to_owned(),
            from: Some(value.into()),
            to: None,
        });
    }

    /// Puts it in its final form: names and aliases that a definition implies, what no definition takes,
    /// and the warnings that follow from the spec itself. `name` is what the container is called.
    #[must_use]
    pub fn finished(mut self, key: &ComponentKey, name: &str) -> Self {
        if name != key.container_name() {
            self.departs("name", name, key.container_name());
        }
        self.imply_aliases(key, name);
        self.keep_the_expressible(key);
        self.warn();
        self
    }

    fn imply_aliases(&mut self, key: &ComponentKey, name: &str) {
        let Network::User(attachments) = &mut self.spec.network else {
            return;
        };
        let mut missing = Vec::new();
        for (network, attachment) in attachments {
            for alias in implied_aliases(network, &key.service, &key.component) {
                // On every network a container answers to its own name.
                if attachment.aliases.insert(alias.clone()) && alias != name {
                    missing.push((network.clone(), alias));
                }
            }
        }
        for (network, alias) in missing {
            self.departures.push(FieldChange {
                field: format!("networks.{network}"),
                from: None,
                to: Some(format!("answers to {alias}")),
            });
        }
    }

    /// Takes out of the spec what the definition of a service refuses, and notes it.
    fn keep_the_expressible(&mut self, key: &ComponentKey) {
        if is_expressible(key, &self.spec) {
            return;
        }
        let image = self.spec.image.clone();
        let refused = |apply: &dyn Fn(&mut ComponentSpec)| {
            let mut spec = bare(key, &image);
            apply(&mut spec);
            !is_expressible(key, &spec)
        };
        let mut lost: Vec<(String, String)> = Vec::new();
        macro_rules! entries {
            ($($field:ident),*) => {$(
                let whole = std::mem::take(&mut self.spec.$field);
                for (name, value) in whole {
                    if refused(&|spec| { spec.$field.insert(name.clone(), value.clone()); }) {
                        lost.push((format!(concat!(stringify!($field), ".{}"), name), shown(&value)));
                    } else {
                        self.spec.$field.insert(name, value);
                    }
                }
            )*};
        }
        macro_rules! items {
            ($($field:ident),*) => {$(
                let whole = std::mem::take(&mut self.spec.$field);
                for item in whole {
                    if refused(&|spec| { spec.$field.insert(item.clone()); }) {
                        lost.push((stringify!($field).to_owned(), shown(&item)));
                    } else {
                        self.spec.$field.insert(item);
                    }
                }
            )*};
        }
        macro_rules! values {
            ($($field:ident),*) => {$(
                if let Some(value) = self.spec.$field.take() {
                    if refused(&|spec| spec.$field = Some(value.clone())) {
                        lost.push((stringify!($field).to_owned(), shown(&value)));
                    } else {
                        self.spec.$field = Some(value);
                    }
                }
            )*};
        }
        entries!(
            env,
            labels,
            volumes,
            tmpfs,
            extra_hosts,
            devices,
            ulimits,
            sysctls
        );
        items!(ports, cap_add, cap_drop, security_opt);
        values!(
            entrypoint,
            cmd,
            user,
            workdir,
            hostname,
            stop_signal,
            log,
            health
        );
        let network = self.spec.network.clone();
        if refused(&|spec| spec.network = network.clone()) {
            lost.push(("network".to_owned(), shown(&self.spec.network)));
            self.spec.network = bare(key, &image).network;
        }
        for (field, value) in lost {
            self.loses(&field, value);
        }
        if !is_expressible(key, &self.spec) {
            // What only together makes no sense: nothing but the image is left.
            self.loses("definition", "its fields contradict each other");
            self.spec = bare(key, &image);
        }
    }

    fn warn(&mut self) {
        let secrets: Vec<&str> = self
            .spec
            .env
            .iter()
            .filter(|(name, value)| !value.is_empty() && tells_a_secret(name))
            .map(|(name, _)| name.as_str())
            .collect();
        if !secrets.is_empty() {
            self.warnings.push(format!(
                "env: {} may be secret, and stands in the definition in plain text",
                secrets.join(", ")
            ));
        }
        for (target, volume) in &self.spec.volumes {
            if let crate::component::VolumeSource::Named(name) = &volume.source
                && is_anonymous(name)
            {
                self.warnings.push(format!(
                    "volume {target}: nobody named it; the definition keeps its data by the engine's name for it, {}…",
                    &name[..12]
                ));
            }
        }
    }
}

/// Whether an engine made up the name of a volume.
#[must_use]
pub fn is_anonymous(volume: &str) -> bool {
    volume.len() == ANONYMOUS_DIGITS && volume.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn tells_a_secret(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    TELLING.iter().any(|part| name.contains(part)) || name.ends_with("_KEY") || name == "KEY"
}

/// A value that no definition takes, for people.
fn shown<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(value) => value.to_string(),
        Err(_) => "?".to_owned(),
    }
}

/// A service of one component, for its definition.
#[must_use]
pub fn service_of(key: &ComponentKey, node: NodeName, spec: ComponentSpec) -> ServiceSpec {
    ServiceSpec {
        name: key.service.clone(),
        node,
        active: true,
        description: None,
        alert: true,
        deadline: Span::from_secs(300),
        reconcile: Reconcile::Manual,
        on_failure: OnFailure::KeepOld,
        components: BTreeMap::from([(key.component.clone(), spec)]),
    }
}

fn any_node() -> NodeName {
    "node".parse().expect("it is a name")
}

/// The component that a definition gives with nothing but an image.
fn bare(key: &ComponentKey, image: &ImageRef) -> ComponentSpec {
    let text = format!(
        "name = \"{}\"\nnode = \"node\"\n[[components]]\nname = \"{}\"\nimage = \"{image}\"\n",
        key.service, key.component
    );
    read(key, &text).expect("a name and an image are a definition")
}

fn read(key: &ComponentKey, text: &str) -> Option<ComponentSpec> {
    let path = format!("services/{}.toml", key.service);
    let file = DefinitionFile {
        path: &path,
        bytes: text.as_bytes(),
    };
    let (service, _) = parse_one(file, &|_| None);
    service?.components.remove(&key.component)
}

/// Whether a definition can say exactly this.
fn is_expressible(key: &ComponentKey, spec: &ComponentSpec) -> bool {
    let text = to_toml(&service_of(key, any_node(), spec.clone()));
    read(key, &text).as_ref() == Some(spec)
}

/// Addresses of name servers that parse; the others.
#[must_use]
pub fn name_servers<'s>(texts: impl IntoIterator<Item = &'s str>) -> (Vec<IpAddr>, Vec<&'s str>) {
    let mut addresses = Vec::new();
    let mut others = Vec::new();
    let mut seen = BTreeSet::new();
    for text in texts {
        match text.parse::<IpAddr>() {
            Ok(address) if seen.insert(address) => addresses.push(address),
            Ok(_) => {}
            Err(_) => others.push(text),
        }
    }
    (addresses, others)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ComponentKey {
        ComponentKey::new("shop".parse().unwrap(), "web".parse().unwrap())
    }

    fn captured() -> Captured {
        Captured::bare(&key(), &"localhost/web:v1".parse().unwrap())
    }

    fn fields(captured: &Captured) -> Vec<&str> {
        let fields = captured.departures.iter();
        fields.map(|change| change.field.as_str()).collect()
    }

    #[test]
    fn what_a_definition_says_is_kept_whole() {
        let mut it = captured();
        it.spec.env.insert("A".to_owned(), "1\n\"2\"".to_owned());
        it.spec.user = Some("0:0".to_owned());
        let spec = it.spec.clone();
        let it = it.finished(&key(), "shop-web");
        assert_eq!(it.spec, spec);
        assert!(it.departures.is_empty(), "{:?}", it.departures);
    }

    #[test]
    fn what_no_definition_takes_is_named_and_nothing_else_is_lost() {
        let mut it = captured();
        it.spec.env.insert("A".to_owned(), "1".to_owned());
        it.spec.env.insert("B=C".to_owned(), "1".to_owned());
        it.spec.hostname = Some("no such host".to_owned());
        it.spec.workdir = Some("/srv".to_owned());
        let it = it.finished(&key(), "shop-web");
        assert_eq!(fields(&it), ["env.B=C", "hostname"]);
        assert_eq!(it.spec.env.len(), 1);
        assert_eq!(it.spec.workdir.as_deref(), Some("/srv"));
        assert!(is_expressible(&key(), &it.spec));
    }

    #[test]
    fn another_name_and_missing_aliases_are_departures() {
        let it = captured().finished(&key(), "old-redis");
        assert_eq!(fields(&it), ["name"]);
        let mut it = captured();
        let Network::User(attachments) = &mut it.spec.network else {
            panic!("a service has a network of its own");
        };
        attachments.values_mut().for_each(|it| it.aliases.clear());
        let it = it.finished(&key(), "shop-web");
        assert_eq!(fields(&it), ["networks.shop"], "its own name is known");
    }

    #[test]
    fn secrets_and_volumes_without_a_name_are_warned_of() {
        let mut it = captured();
        it.spec.env.insert("DB_PASSWORD".to_owned(), "x".to_owned());
        it.spec.env.insert("TZ".to_owned(), "UTC".to_owned());
        it.spec.volumes.insert(
            "/data".to_owned(),
            crate::component::Volume {
                source: crate::component::VolumeSource::Named("ab".repeat(32)),
                read_only: false,
            },
        );
        let it = it.finished(&key(), "shop-web");
        assert_eq!(it.warnings.len(), 2, "{:?}", it.warnings);
        assert!(it.warnings[0].contains("DB_PASSWORD"));
        assert!(!it.warnings[0].contains("TZ"));
        assert_eq!(it.spec.volumes.len(), 1, "{:?}", it.departures);
    }
}
