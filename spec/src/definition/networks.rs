//! `network` and `networks`, and the aliases that a component has without asking.

use std::collections::BTreeMap;

use toml::de::DeValue;

use super::error::{DefinitionErrorKind as Kind, Errors};
use super::reader::{Refusal, Schema, Table, parse_text, string, wrong_type};
use super::values;
use crate::component::{Attachment, Network};
use crate::name::{ComponentName, RESERVED_SERVICE_NAMES, ServiceName};

const ATTACHMENT: Schema = Schema {
    what: "a network's table",
    keys: &["aliases"],
    not_yet: &[],
    elsewhere: |key| matches!(key, "alias").then(|| "did you mean `aliases`?".to_owned()),
};

/// Reads the networks of a component.
pub(super) fn read(
    component: &Table<'_, '_>,
    service: &ServiceName,
    name: &ComponentName,
    errors: &mut Errors<'_>,
) -> Network {
    let network = component.get("network");
    let networks = component.get("networks");
    if let (Some(_), Some(networks)) = (&network, &networks) {
        errors.push(
            Kind::Conflict,
            networks.key_place.clone(),
            "a component has either `network` or `networks`",
            "write all of them in `networks`, and leave `network` out",
        );
    }
    if let Some(entry) = &network
        && matches!(entry.value.get_ref(), DeValue::Array(_) | DeValue::Table(_))
    {
        wrong_type(
            "`network`",
            "a string",
            entry.value,
            "write several in `networks`",
            errors,
        );
        // A stand-in that forbids nothing, so that no further error follows from it.
        return Network::Bridge;
    }
    let mut attachments = if networks.is_some() {
        read_networks(component, errors)
    } else {
        match component.parsed("network", parse_network, errors) {
            Some(Chosen::Mode(mode)) => return mode,
            Some(Chosen::User(network)) => BTreeMap::from([(network, Attachment::default())]),
            None => BTreeMap::from([(service.to_string(), Attachment::default())]),
        }
    };
    for (network, attachment) in &mut attachments {
        attachment
            .aliases
            .extend(implied_aliases(network, service, name));
    }
    Network::User(attachments)
}

/// The names to which a component answers on a network without asking.
pub(crate) fn implied_aliases(
    network: &str,
    service: &ServiceName,
    component: &ComponentName,
) -> Vec<String> {
    let mut aliases = vec![format!("{service}-{component}")];
    if network == service.as_str() {
        aliases.push(component.to_string());
    }
    aliases
}

enum Chosen {
    Mode(Network),
    User(String),
}

fn parse_network(text: &str) -> Result<Chosen, Refusal> {
    Ok(match text {
        "none" => Chosen::Mode(Network::None),
        "host" => Chosen::Mode(Network::Host),
        "bridge" => Chosen::Mode(Network::Bridge),
        _ => Chosen::User(network_name(text)?),
    })
}

/// A user network's name; words that an engine takes for a mode are none.
fn network_name(text: &str) -> Result<String, Refusal> {
    if text.starts_with("container:") || text.starts_with("ns:") {
        return Err(Refusal::new(
            format!("`{text}` shares another container's network, which this release does not do"),
            "let both components join one user network",
        ));
    }
    if RESERVED_SERVICE_NAMES.contains(&text) {
        return Err(Refusal::new(
            format!("`{text}` is a word of the engine, and no user network"),
            "take another name, or `network = \"none\"`, `\"host\"` or `\"bridge\"` alone",
        ));
    }
    values::component_name(text).map(|name| name.to_string())
}

fn read_networks(
    component: &Table<'_, '_>,
    errors: &mut Errors<'_>,
) -> BTreeMap<String, Attachment> {
    let mut attachments = BTreeMap::new();
    let Some(entry) = component.get("networks") else {
        return attachments;
    };
    match entry.value.get_ref() {
        DeValue::Array(items) => {
            for item in items {
                if let Some(text) = string("an item of `networks`", item, errors)
                    && let Some(name) = parse_text(&text, network_name, errors)
                    && attachments.insert(name, Attachment::default()).is_some()
                {
                    errors.push(
                        Kind::Duplicate,
                        text.place,
                        format!("the network `{}` stands here twice", text.text),
                        "leave one of them out",
                    );
                }
            }
        }
        DeValue::Table(table) => {
            for (key, value) in table {
                let name = match network_name(key.get_ref()) {
                    Ok(name) => name,
                    Err(refusal) => {
                        errors.push(Kind::Value, key.span(), refusal.message, refusal.hint);
                        continue;
                    }
                };
                let DeValue::Table(inner) = value.get_ref() else {
                    wrong_type(
                        &format!("the network `{name}`"),
                        "a table",
                        value,
                        format!("write `{name} = {{ aliases = [\"db\"] }}` or `{name} = {{}}`"),
                        errors,
                    );
                    continue;
                };
                let table = Table::new(inner, key.span(), &ATTACHMENT, errors);
                let aliases = table.strings("aliases", errors).unwrap_or_default();
                let aliases = aliases
                    .iter()
                    .filter_map(|text| parse_text(text, values::alias, errors))
                    .collect();
                attachments.insert(name, Attachment { aliases });
            }
        }
        _ => wrong_type(
            "`networks`",
            "a list or a table",
            entry.value,
            "write `networks = [\"NAME\"]` or `networks = { NAME = { aliases = [\"db\"] } }`",
            errors,
        ),
    }
    let empty = match entry.value.get_ref() {
        DeValue::Array(items) => items.is_empty(),
        DeValue::Table(table) => table.is_empty(),
        _ => false,
    };
    if empty {
        errors.push(
            Kind::Value,
            entry.value.span(),
            "`networks` is empty",
            "write `network = \"none\"` for no network, or leave it out for the service's own",
        );
    }
    attachments
}
