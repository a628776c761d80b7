//! What a container may use: `resources`, `cap_add` and `cap_drop`.

use std::collections::BTreeSet;

use toml::de::DeValue;

use super::error::{DefinitionErrorKind as Kind, Errors};
use super::reader::{Refusal, Schema, Table, parse_text, wrong_type};
use super::values;
use crate::component::Resources;

/// Most processes of a container, unless the definition says another.
pub(crate) const PIDS: u32 = 2048;
/// Least memory that engines take as a limit.
const LEAST_MEMORY: u64 = 6 << 20;

const RESOURCES: Schema = Schema {
    what: "`resources`",
    keys: &["memory", "cpus", "pids"],
    not_yet: &[],
    elsewhere: |key| match key {
        "cpu" => Some("did you mean `cpus`?".to_owned()),
        "mem" | "mem_limit" => Some("did you mean `memory`?".to_owned()),
        "pids_limit" => Some("did you mean `pids`?".to_owned()),
        _ if super::component::COMPONENT.keys.contains(&key) => Some(format!(
            "`{key}` is a key of the component: write it above `[components.resources]`"
        )),
        _ => None,
    },
};

/// Reads `resources`.
pub(super) fn read_resources(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> Resources {
    let mut resources = Resources {
        memory_bytes: None,
        cpu_millis: None,
        pids: PIDS,
    };
    let Some(limits) = table.table(
        "resources",
        &RESOURCES,
        "write `resources = { memory = \"512MiB\", cpus = 1.5, pids = 2048 }`",
        errors,
    ) else {
        return resources;
    };
    if let Some(entry) = limits.get("memory") {
        if let DeValue::Integer(number) = entry.value.get_ref() {
            errors.push(
                Kind::Type,
                entry.value.span(),
                "`memory` has no unit",
                format!("write `memory = \"{number}MiB\"` or another of B, KiB, MiB, GiB, TiB"),
            );
        } else {
            resources.memory_bytes = limits.parsed("memory", memory, errors);
        }
    }
    resources.cpu_millis = read_cpus(&limits, errors);
    if let Some(pids) = limits.integer("pids", (1, 4_194_304), errors) {
        resources.pids = u32::try_from(pids).unwrap_or(PIDS);
    }
    resources
}

fn memory(text: &str) -> Result<u64, Refusal> {
    let bytes = values::size(text)?;
    if bytes < LEAST_MEMORY {
        return Err(Refusal::new(
            format!("`{text}` is too little memory for a container"),
            "write at least `6MiB`, the least that engines take",
        ));
    }
    Ok(bytes)
}

fn read_cpus(limits: &Table<'_, '_>, errors: &mut Errors<'_>) -> Option<u64> {
    let entry = limits.get("cpus")?;
    let cpus = match entry.value.get_ref() {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .map(|cpus| cpus as f64),
        DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
        _ => {
            wrong_type(
                "`cpus`",
                "a number",
                entry.value,
                "write `cpus = 1.5`",
                errors,
            );
            return None;
        }
    };
    // Less than a hundredth is less than the kernel's scheduler gives; ten thousand is beyond any node.
    match cpus.filter(|cpus| cpus.is_finite() && *cpus >= 0.01 && *cpus <= 10_000.0) {
        Some(cpus) => Some((cpus * 1000.0).round() as u64),
        None => {
            errors.push(
                Kind::Value,
                entry.value.span(),
                "`cpus` is out of range",
                "write a number of cores from 0.01 to 10000, as in `cpus = 1.5`",
            );
            None
        }
    }
}

/// Reads `cap_add` and `cap_drop`.
pub(super) fn read_capabilities(
    table: &Table<'_, '_>,
    errors: &mut Errors<'_>,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut list = |key: &str, other: &BTreeSet<String>| {
        let mut names = BTreeSet::new();
        for text in table.strings(key, errors).unwrap_or_default() {
            let Some(name) = parse_text(&text, values::capability, errors) else {
                continue;
            };
            if other.contains(&name) {
                errors.push(
                    Kind::Conflict,
                    text.place,
                    format!("`{name}` is both added and dropped"),
                    "keep it in one of `cap_add` and `cap_drop`",
                );
                continue;
            }
            names.insert(name);
        }
        names
    };
    let added = list("cap_add", &BTreeSet::new());
    let dropped = list("cap_drop", &added);
    (added, dropped)
}
