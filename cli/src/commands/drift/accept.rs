//! `mcp drift accept`: writes live values back into the definitions.

use std::collections::BTreeMap;

use mcp_proto::v1;
use mcp_spec::component::Network;
use mcp_spec::definition::size_text;
use mcp_spec::drift::STATE;
use mcp_spec::name::{ComponentKey, ComponentName, ServiceName, Target};
use serde::Serialize;
use toml_edit::{Array, InlineTable, Item, TableLike, Value};

use super::drifted;
use crate::commands::definition_text::{DefinitionText, set};
use crate::commands::place;
use crate::commands::{repository, rows};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::clean;
use crate::output::diagnostics::definition_errors;
use crate::output::plan::path;
use crate::output::style::{self, bold, green};

/// Write the live values of what drifted into the definitions of the work tree
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp drift accept metacrypt/api
  mcp sync && mcp deploy metacrypt     the container stays: it is what is wanted

Comments and layout of the definition stay. What no definition can say is told, and stays drift.")]
pub(crate) struct Args {
    /// Services or components, as metacrypt or metacrypt/api
    #[arg(add = crate::commands::complete::targets(), value_name = "TARGET", required = true)]
    targets: Vec<Target>,
}

#[derive(Serialize)]
struct Document {
    node: String,
    service: String,
    component: String,
    field: String,
    from: String,
    to: String,
    /// The definition that has it now; null where no definition can say it.
    file: Option<String>,
    hint: Option<String>,
}

/// What became of one difference.
enum Taken {
    /// The definition says it now: its key, before and after.
    Written(&'static str, String, String),
    /// It follows from another one, or the definition says it already.
    Said,
    /// No definition can say it, and what to do instead.
    Refused(String),
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    repository::open(context)?;
    let placed = place::place(context, &args.targets).await?;
    let answers = drifted(context, &placed).await;
    let mut files: BTreeMap<ServiceName, DefinitionText> = BTreeMap::new();
    let mut documents = Vec::new();
    let mut refused = false;
    let mut said_already = false;
    for answer in &answers {
        for component in answer.result.iter().flat_map(|list| &list.components) {
            let Some(key) = key_of(component) else {
                continue;
            };
            let file = match files.entry(key.service.clone()) {
                std::collections::btree_map::Entry::Occupied(file) => file.into_mut(),
                std::collections::btree_map::Entry::Vacant(free) => {
                    free.insert(DefinitionText::read(context, &key.service)?)
                }
            };
            if !file.exists() {
                return Err(
                    Failure::failed(format!("there is no {}", file.name)).hint(format!(
                        "mcp service export {0} > {1}",
                        key.service, file.name
                    )),
                );
            }
            for drift in &component.drift {
                let taken = match accept(file, &key, drift, component)? {
                    Taken::Written(_, from, to) if from == to => Taken::Said,
                    taken => taken,
                };
                said_already |= matches!(taken, Taken::Said);
                if let Some(document) = told(context, &answer.node, &key, file, drift, taken)? {
                    refused |= document.file.is_none();
                    documents.push(document);
                }
            }
        }
    }
    save(context, &files)?;
    if !context.out.is_table() {
        context.out.json_list(&documents)?;
    } else if documents.is_empty() && answers.iter().all(|answer| answer.result.is_ok()) {
        context.out.note(if said_already {
            "the definitions say it already"
        } else {
            "no drift"
        });
    }
    let changed: Vec<&ServiceName> = files
        .iter()
        .filter(|(_, file)| file.is_changed())
        .map(|(service, _)| service)
        .collect();
    if let [first, ..] = changed[..] {
        context
            .out
            .hint(&format!("mcp sync, then: mcp deploy {first}"));
    } else if let (true, Some((first, _))) = (said_already, files.first_key_value()) {
        context
            .out
            .hint(&format!("mcp sync, then: mcp deploy {first}"));
    }
    rows::end_with(context, &answers, |_| {
        if refused { Exit::Failed } else { Exit::Done }
    })
}

/// Writes what changed; nothing where one of the files would not be a definition any more.
fn save(context: &Context, files: &BTreeMap<ServiceName, DefinitionText>) -> Result<(), Failure> {
    let changed = || files.values().filter(|file| file.is_changed());
    for file in changed() {
        if let Err(errors) = file.spec() {
            context.out.error_text(&definition_errors(&errors));
            return Err(Failure::failed(format!(
                "{} does not check; nothing was written",
                file.name
            )));
        }
    }
    changed().try_for_each(DefinitionText::save)
}

fn key_of(component: &v1::Component) -> Option<ComponentKey> {
    Some(ComponentKey::new(
        component.service.parse().ok()?,
        component.component.parse().ok()?,
    ))
}

/// Tells what became of one difference, and gives its document.
fn told(
    context: &Context,
    node: &str,
    key: &ComponentKey,
    file: &DefinitionText,
    drift: &v1::Drift,
    taken: Taken,
) -> Result<Option<Document>, Failure> {
    let (service, component) = (key.service.as_str(), key.component.as_str());
    let name = bold(&path(service, component));
    let mut document = Document {
        node: node.to_owned(),
        service: service.to_owned(),
        component: component.to_owned(),
        field: drift.field.clone(),
        from: drift.baseline.clone(),
        to: drift.live.clone(),
        file: None,
        hint: None,
    };
    match taken {
        Taken::Said => return Ok(None),
        Taken::Written(field, from, to) => {
            if context.out.is_table() {
                context.out.data(&format!(
                    "{} {name}  {field}  {from} -> {to}  {}\n",
                    green(style::GOOD),
                    file.name
                ))?;
            }
            (document.field, document.from, document.to) = (field.to_owned(), from, to);
            document.file = Some(file.name.clone());
        }
        Taken::Refused(why) => {
            context.out.warn(&clean::line(&format!(
                "{}: {} is not taken: {why}",
                path(service, component),
                drift.field
            )));
            document.hint = Some(why);
        }
    }
    Ok(Some(document))
}

/// Takes one live value into the definition, where it can be said.
fn accept(
    file: &mut DefinitionText,
    key: &ComponentKey,
    drift: &v1::Drift,
    component: &v1::Component,
) -> Result<Taken, Failure> {
    let name = &key.component;
    let gone = || {
        Failure::failed(format!("{} has no component {name}", file.name))
            .hint(format!("mcp plan {}", key.service))
    };
    let spec = match file.spec() {
        Ok(spec) => spec,
        Err(errors) => {
            return Err(Failure::failed(format!("{} does not check", file.name))
                .cause(definition_errors(&errors).trim_end().to_owned())
                .hint("mcp service check"));
        }
    };
    let spec = spec.components.get(name).ok_or_else(gone)?;
    let number = || drift.live.parse::<u64>().unwrap_or_default();
    let none = || "(none)".to_owned();
    Ok(match drift.field.as_str() {
        STATE => Taken::Refused(format!(
            "it is {} and not {}; keep it so with: mcp stop {}, or bring it back with: mcp deploy {key}",
            drift.live, drift.baseline, key.service
        )),
        "memory" => {
            let from = spec.resources.memory_bytes.map_or_else(none, size_text);
            let to = (number() > 0).then(|| size_text(number()));
            limit(file, name, "memory", to.clone().map(Value::from));
            Taken::Written("resources.memory", from, to.unwrap_or_else(none))
        }
        "memory_swap" if is_usual_swap(component, drift) => Taken::Said,
        "cpus" => {
            let millis = number() / 1_000_000;
            let from = spec.resources.cpu_millis.map_or_else(none, cpus_text);
            let to = (number() > 0).then(|| cpus_value(millis.max(1)));
            limit(file, name, "cpus", to);
            let to = if number() > 0 {
                cpus_text(millis.max(1))
            } else {
                none()
            };
            Taken::Written("resources.cpus", from, to)
        }
        "pids" if number() > 0 => {
            let to = i64::try_from(number()).unwrap_or(i64::MAX);
            limit(file, name, "pids", Some(Value::from(to)));
            Taken::Written(
                "resources.pids",
                spec.resources.pids.to_string(),
                to.to_string(),
            )
        }
        "pids" => Taken::Refused("a definition always has a limit of processes".to_owned()),
        "restart" => Taken::Refused(
            "the engine's own restart policy stays off: the agent starts again, as `restart` says"
                .to_owned(),
        ),
        "network" => Taken::Said,
        field => match field.strip_prefix("network.") {
            Some(network) => join(file, key, network, drift, &spec.network),
            None => Taken::Refused(format!(
                "no definition can say it; bring it back with: mcp deploy {key}"
            )),
        },
    })
}

/// Whether the swap is what follows from the memory that was accepted.
fn is_usual_swap(component: &v1::Component, drift: &v1::Drift) -> bool {
    let memory = component.drift.iter().find(|it| it.field == "memory");
    let memory = memory.and_then(|memory| memory.live.parse::<u64>().ok());
    let swap = drift.live.parse::<u64>().ok();
    match (memory, swap) {
        (Some(0), _) => matches!(drift.live.as_str(), "0" | "-1"),
        (Some(memory), Some(swap)) => swap == memory.saturating_mul(2),
        _ => false,
    }
}

fn cpus_text(millis: u64) -> String {
    cpus_value(millis).to_string().trim().to_owned()
}

fn cpus_value(millis: u64) -> Value {
    if millis.is_multiple_of(1000) {
        Value::from(i64::try_from(millis / 1000).unwrap_or(i64::MAX))
    } else {
        #[expect(
            clippy::cast_precision_loss,
            reason = "thousandths of cores are far below 2^52"
        )]
        let cores = millis as f64 / 1000.0;
        Value::from(cores)
    }
}

/// Sets or takes away one limit in `resources`, which is made where there is none.
fn limit(file: &mut DefinitionText, name: &ComponentName, key: &str, value: Option<Value>) {
    file.edit(name, |table| {
        if table.get("resources").is_none() && value.is_some() {
            table.insert("resources", Item::Value(InlineTable::new().into()));
        }
        let Some(resources) = table.get_mut("resources").and_then(Item::as_table_like_mut) else {
            return;
        };
        match value {
            Some(value) => set(resources, key, value),
            None => drop(resources.remove(key)),
        }
    });
}

/// Takes a network that was connected or disconnected by hand.
fn join(
    file: &mut DefinitionText,
    key: &ComponentKey,
    network: &str,
    drift: &v1::Drift,
    wanted: &Network,
) -> Taken {
    let Network::User(attachments) = wanted else {
        return Taken::Refused(
            "its `network` is none, host or bridge, which takes no other beside it".to_owned(),
        );
    };
    let names = |names: &[String]| names.join(", ");
    let before: Vec<String> = attachments.keys().cloned().collect();
    let was_there = attachments.contains_key(network);
    let leaves = was_there && drift.live.is_empty() && !drift.baseline.is_empty();
    if was_there && !leaves {
        return Taken::Refused(format!(
            "aliases are set when a container is made; bring them back with: mcp deploy {key}"
        ));
    }
    let container = key.container_name();
    let aliases: Vec<&str> = drift
        .live
        .split(',')
        .filter(|alias| !alias.is_empty() && *alias != container)
        .collect();
    let mut after = before.clone();
    if leaves {
        after.retain(|name| name != network);
    } else {
        after.push(network.to_owned());
        after.sort();
    }
    if after.is_empty() {
        return Taken::Refused(
            "it is on no network any more: write `network = \"none\"`".to_owned(),
        );
    }
    file.edit(&key.component, |table| {
        write_networks(table, network, leaves, &before, &aliases);
    });
    Taken::Written("networks", names(&before), names(&after))
}

fn write_networks(
    table: &mut dyn TableLike,
    network: &str,
    leaves: bool,
    before: &[String],
    aliases: &[&str],
) {
    let mut entry = InlineTable::new();
    if !aliases.is_empty() {
        entry.insert("aliases", Array::from_iter(aliases.iter().copied()).into());
    }
    if let Some(networks) = table.get_mut("networks") {
        if let Some(list) = networks.as_array_mut()
            && (leaves || aliases.is_empty())
        {
            if leaves {
                list.retain(|name| name.as_str() != Some(network));
            } else {
                list.push(network);
            }
            return;
        }
        if let Some(entries) = networks.as_table_like_mut() {
            if leaves {
                entries.remove(network);
            } else {
                entries.insert(network, Item::Value(entry.into()));
            }
            return;
        }
    }
    table.remove("network");
    let stay = before.iter().filter(|name| !leaves || *name != network);
    if aliases.is_empty() {
        let mut list: Array = stay.map(String::as_str).collect();
        if !leaves {
            list.push(network);
        }
        set(table, "networks", list);
    } else {
        let mut entries = InlineTable::new();
        for name in stay {
            entries.insert(name, InlineTable::new().into());
        }
        entries.insert(network, entry.into());
        set(table, "networks", entries);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_written_as_definitions_have_them() {
        for (millis, text) in [(500, "0.5"), (1000, "1"), (1500, "1.5"), (250, "0.25")] {
            assert_eq!(cpus_text(millis), text);
        }
    }

    fn table(text: &str) -> toml_edit::DocumentMut {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_is_added_in_the_form_that_is_there() {
        let before = ["shop".to_owned()];
        for (text, expected) in [
            ("", "networks = [\"shop\", \"extra\"]\n"),
            ("network = \"shop\"\n", "networks = [\"shop\", \"extra\"]\n"),
            (
                "networks = [\"shop\"] # mine\n",
                "networks = [\"shop\", \"extra\"] # mine\n",
            ),
        ] {
            let mut document = table(text);
            write_networks(document.as_table_mut(), "extra", false, &before, &[]);
            assert_eq!(document.to_string(), expected);
        }
        let mut document = table("networks = { shop = {} }\n");
        write_networks(document.as_table_mut(), "extra", false, &before, &["x"]);
        let text = document.to_string();
        assert!(text.contains("extra = { aliases = [\"x\"] }"), "{text}");
    }

    #[test]
    fn a_network_that_was_left_goes() {
        let before = ["extra".to_owned(), "shop".to_owned()];
        let mut document = table("networks = [\"shop\", \"extra\"]\n");
        write_networks(document.as_table_mut(), "extra", true, &before, &[]);
        assert_eq!(document.to_string(), "networks = [\"shop\"]\n");
    }
}
