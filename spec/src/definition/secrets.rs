//! `secrets`: values that the repository holds encrypted, as files of the component or as variables.

use std::collections::BTreeMap;

use toml::de::DeValue;

use super::FileLookup;
use super::error::{DefinitionErrorKind as Kind, Errors, Place};
use super::reader::{Refusal, Schema, Table, parse_text, string, wrong_type};
use super::values;
use crate::component::{SecretFile, SecretVariable};
use crate::name::{SecretName, ServiceName};
use crate::secret::{MAX_SECRETS, SECRETS_DIR, secret_path};

/// Permission bits of a secret's file, unless the definition says others: what both engines give to their own
/// secrets. Only the container sees it.
pub(crate) const SECRET_MODE: u32 = 0o444;

const SECRET: Schema = Schema {
    what: "an item of `secrets`",
    keys: &["name", "to", "mode", "owner", "env"],
    not_yet: &[],
    elsewhere: |key| match key {
        "source" | "src" | "from" => Some("did you mean `name`?".to_owned()),
        "target" | "dst" | "destination" | "path" => Some("did you mean `to`?".to_owned()),
        "user" | "uid" => Some("did you mean `owner`?".to_owned()),
        "value" => Some(
            "no value stands in a definition: mcp secret set SERVICE NAME encrypts it".to_owned(),
        ),
        _ => None,
    },
};

/// The secrets of a component.
#[derive(Debug, Default)]
pub(super) struct ReadSecrets {
    /// Those that are files, with the places of their targets.
    pub(super) files: Vec<(String, Place, SecretFile)>,
    /// Those that are variables.
    pub(super) variables: BTreeMap<String, SecretVariable>,
}

/// Reads `secrets`.
pub(super) fn read(
    component: &Table<'_, '_>,
    service: &ServiceName,
    lookup: &FileLookup<'_>,
    errors: &mut Errors<'_>,
) -> ReadSecrets {
    const FORM: &str =
        "write `secrets = [\"NAME\"]` or `secrets = [{ name = \"NAME\", to = \"/…\" }]`";
    let mut secrets = ReadSecrets::default();
    let Some((place, items)) = component.array("secrets", "a list", |_| FORM.to_owned(), errors)
    else {
        return secrets;
    };
    if items.len() > MAX_SECRETS {
        errors.push(
            Kind::Bound,
            place,
            format!(
                "the component has {} secrets; at most {MAX_SECRETS} are read",
                items.len()
            ),
            "put several values into one secret",
        );
        return secrets;
    }
    for item in items {
        match item.get_ref() {
            DeValue::String(_) => {
                let Some(text) = string("an item of `secrets`", item, errors) else {
                    continue;
                };
                let Some(name) = parse_text(&text, |text| parse_name(text, service), errors) else {
                    continue;
                };
                let target = format!("{SECRETS_DIR}/{name}");
                if let Some(digest) = held(service, &name, &text.place, lookup, errors) {
                    let file = SecretFile {
                        name,
                        digest,
                        mode: SECRET_MODE,
                        owner: None,
                    };
                    secrets.files.push((target, text.place, file));
                }
            }
            DeValue::Table(inner) => {
                let table = Table::new(inner, item.span(), &SECRET, errors);
                read_table(&table, service, lookup, &mut secrets, errors);
            }
            _ => wrong_type(
                "an item of `secrets`",
                "a name or a table",
                item,
                FORM,
                errors,
            ),
        }
    }
    secrets
}

fn read_table(
    table: &Table<'_, '_>,
    service: &ServiceName,
    lookup: &FileLookup<'_>,
    secrets: &mut ReadSecrets,
    errors: &mut Errors<'_>,
) {
    if table.get("name").is_none() {
        table.missing("name", "write `{ name = \"NAME\" }`", errors);
    }
    let text = table.string("name", errors);
    let target = table.parsed("to", values::mount_target, errors);
    let mode = table.parsed("mode", parse_mode, errors);
    let owner = table.parsed("owner", values::owner, errors);
    let variable = table.parsed("env", parse_variable, errors);
    let Some(text) = text else { return };
    let Some(name) = parse_text(&text, |text| parse_name(text, service), errors) else {
        return;
    };
    let Some(digest) = held(service, &name, &text.place, lookup, errors) else {
        return;
    };
    if table.get("env").is_some() {
        for key in ["to", "mode", "owner"] {
            if table.get(key).is_some() {
                errors.push(
                    Kind::Conflict,
                    table.place_of(key),
                    format!("`{key}` is of a file, and `env` makes the secret a variable"),
                    "write two items where both are needed; a file is safer: every inspect shows variables",
                );
            }
        }
        let Some(variable) = variable else { return };
        if secrets.variables.contains_key(&variable) {
            errors.push(
                Kind::Duplicate,
                table.place_of("env"),
                format!("the variable `{variable}` is given twice"),
                "leave one of them out",
            );
            return;
        }
        secrets
            .variables
            .insert(variable, SecretVariable { name, digest });
        return;
    }
    if table.get("to").is_some() && target.is_none() {
        return;
    }
    let place = if target.is_some() {
        table.place_of("to")
    } else {
        text.place
    };
    let target = target.unwrap_or_else(|| format!("{SECRETS_DIR}/{name}"));
    let file = SecretFile {
        name,
        digest,
        mode: mode.unwrap_or(SECRET_MODE),
        owner,
    };
    secrets.files.push((target, place, file));
}

/// `NAME`, or `SERVICE/NAME` with the service's own name.
fn parse_name(text: &str, service: &ServiceName) -> Result<SecretName, Refusal> {
    let name = match text.split_once('/') {
        Some((owner, _)) if owner != service.as_str() => {
            return Err(Refusal::new(
                format!(
                    "`{text}` belongs to `{owner}`, and `{service}` has only secrets of its own"
                ),
                format!("set it for this service too: mcp secret set {service} NAME"),
            ));
        }
        Some((_, name)) => name,
        None => text,
    };
    name.parse().map_err(|_| {
        Refusal::new(
            format!("`{text}` is not the name of a secret"),
            "use lower-case letters, digits and inner hyphens, as in `db-password`",
        )
    })
}

/// The digest that stands for the secret's value, where the revision holds it.
fn held(
    service: &ServiceName,
    name: &SecretName,
    place: &Place,
    lookup: &FileLookup<'_>,
    errors: &mut Errors<'_>,
) -> Option<crate::image::Digest> {
    let path = secret_path(service, name);
    let digest = lookup(&path);
    if digest.is_none() {
        errors.push(
            Kind::Reference,
            place.clone(),
            format!("the revision holds no secret `{path}`"),
            format!("mcp secret set {service} {name}"),
        );
    }
    digest
}

fn parse_mode(text: &str) -> Result<u32, Refusal> {
    let mode = values::mode(text)?;
    if mode & !0o777 != 0 {
        return Err(Refusal::new(
            format!("`{text}` sets more than permissions"),
            "write three digits, as in `mode = \"0400\"`",
        ));
    }
    Ok(mode)
}

fn parse_variable(text: &str) -> Result<String, Refusal> {
    if text.is_empty() || text.contains(|c: char| c == '=' || c.is_control()) {
        return Err(Refusal::new(
            format!("`{text}` is no name of a variable"),
            "write a name that is not empty and has no `=`",
        ));
    }
    Ok(text.to_owned())
}
