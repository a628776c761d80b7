//! Set against set: what a commit does, in data and in the words of its message.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{FieldChange, Fields, diff, field_changes, version};
use crate::component::ServiceSpec;
use crate::definition::DesiredSet;
use crate::name::{ComponentName, ServiceName};

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
    fields.set("reconcile", reconcile);
    fields.set("on_failure", on_failure);
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
