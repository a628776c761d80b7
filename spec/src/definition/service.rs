//! The top level of a definition: the service, its node and its components.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::component::{self, ReadComponent};
use super::error::{DefinitionErrorKind as Kind, Errors, Place};
use super::reader::{Schema, Table, wrong_type};
use super::{DefinitionFile, FileLookup, values};
use crate::component::{OnFailure, Reconcile, ServiceSpec};
use crate::duration::Span;
use crate::name::{NodeName, ServiceName};

/// Largest definition: a hundred times what people write, and cheap to parse.
pub(super) const MAX_FILE_BYTES: usize = 1 << 20;
/// Most components of one service.
pub(super) const MAX_COMPONENTS: usize = 200;
/// Longest time of one deployment, unless the definition says another.
pub(crate) const DEADLINE: Span = Span::from_secs(300);

pub(super) const SERVICE: Schema = Schema {
    what: "a service",
    keys: &[
        "name",
        "node",
        "active",
        "description",
        "alert",
        "deadline",
        "reconcile",
        "on_failure",
        "components",
    ],
    not_yet: &[],
    elsewhere: |key| match key {
        "component" | "service" | "services" | "containers" => {
            Some("did you mean `components`? Start each with a line `[[components]]`".to_owned())
        }
        "enabled" => Some("did you mean `active`?".to_owned()),
        "host" => Some("did you mean `node`?".to_owned()),
        "alerts" => Some("did you mean `alert`?".to_owned()),
        _ if component::COMPONENT.keys.contains(&key)
            || component::COMPONENT.not_yet.contains(&key) =>
        {
            Some(format!(
                "`{key}` is a key of a component: write it below `[[components]]`"
            ))
        }
        _ => None,
    },
};

/// A definition as far as it could be read.
#[derive(Debug)]
pub(super) struct ReadService<'a> {
    /// The file's path.
    pub(super) path: &'a str,
    /// What was refused.
    pub(super) errors: Errors<'a>,
    /// The service's name, where it is good and equals the file's stem.
    pub(super) name: Option<ServiceName>,
    /// The place of the name.
    pub(super) name_place: Place,
    /// The node, where it is good.
    pub(super) node: Option<NodeName>,
    /// Whether its containers shall run.
    pub(super) active: bool,
    /// The components, good or not.
    pub(super) components: Vec<ReadComponent>,
    /// Everything but the components.
    shell: Option<ServiceSpec>,
}

/// The head of a definition: all that concerns other nodes.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) errors: Errors<'a>,
    pub(super) name: Option<ServiceName>,
    pub(super) name_place: Place,
    pub(super) node: Option<NodeName>,
}

impl ReadService<'_> {
    /// The spec, where nothing was refused.
    pub(super) fn into_spec(self) -> Option<ServiceSpec> {
        if !self.errors.is_empty() {
            return None;
        }
        let mut service = self.shell?;
        let mut components = BTreeMap::new();
        for component in self.components {
            components.insert(component.name?, component.spec?);
        }
        service.components = components;
        Some(service)
    }
}

/// The file's text, or nothing with the reason in `errors`.
fn text<'a>(file: &DefinitionFile<'a>) -> (Errors<'a>, &'a str) {
    if file.bytes.len() > MAX_FILE_BYTES {
        let mut errors = Errors::new(file.path, "");
        errors.push(
            Kind::Bound,
            0..0,
            format!(
                "the file has {} bytes; a definition has at most 1 MiB",
                file.bytes.len()
            ),
            "split the service, or keep data in `files/`",
        );
        return (errors, "");
    }
    match std::str::from_utf8(file.bytes) {
        Ok(text) => (Errors::new(file.path, text), text),
        Err(error) => {
            let good = file
                .bytes
                .get(..error.valid_up_to())
                .and_then(|bytes| std::str::from_utf8(bytes).ok())
                .unwrap_or("");
            let mut errors = Errors::new(file.path, good);
            errors.push(
                Kind::Encoding,
                good.len()..good.len(),
                "the file is not UTF-8 from here on",
                "save it as UTF-8",
            );
            (errors, good)
        }
    }
}

/// The tree of a text, its syntax errors reported.
fn parse<'a>(text: &'a str, errors: &mut Errors<'_>) -> Spanned<DeTable<'a>> {
    let (tree, refused) = DeTable::parse_recoverable(text);
    for error in refused {
        let span = error.span().unwrap_or(0..0);
        if error.message() == "duplicate key" {
            let key = text.get(span.clone()).unwrap_or("it").trim();
            errors.push(
                Kind::Duplicate,
                span,
                format!("the key `{key}` stands here twice"),
                "keep one of them; a further component starts with its own `[[components]]`",
            );
        } else {
            errors.push(
                Kind::Syntax,
                span,
                format!("this is not TOML: {}", error.message()),
                syntax_mend(error.message()),
            );
        }
    }
    tree
}

fn syntax_mend(message: &str) -> &'static str {
    if message.contains("must be quoted") {
        "put the text in quotes: `key = \"text\"`"
    } else if message.contains("string") {
        "close the string with the quote that opened it, on the same line"
    } else if message.contains("array") {
        "close the list with `]`, here or on a line before, with a comma between its items"
    } else if message.contains("inline table") || message.contains("key-value pairs") {
        "close the table with `}`, here or on a line before, with a comma between its items"
    } else if message.contains("table") {
        "write `[components.health]` for a table, `[[components]]` for each component"
    } else if message.contains("recursion") {
        "nest less deep: no definition needs more than four levels"
    } else {
        "write `key = value`, one a line"
    }
}

/// The name of a service after its file.
fn stem(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.strip_suffix(".toml").unwrap_or(file)
}

fn read_name(
    path: &str,
    table: &Table<'_, '_>,
    errors: &mut Errors<'_>,
) -> (Option<ServiceName>, Place) {
    let stem = stem(path);
    let Some(entry) = table.get("name") else {
        table.missing("name", format!("write `name = \"{stem}\"`"), errors);
        return (None, 0..0);
    };
    let place = entry.value.span();
    let Some(name) = table.parsed("name", values::service_name, errors) else {
        return (None, place);
    };
    if name.as_str() != stem {
        errors.push(
            Kind::Conflict,
            place.clone(),
            format!("the service is named `{name}`, and its file `{stem}.toml`"),
            format!("write `name = \"{stem}\"`, or rename the file to `{name}.toml`"),
        );
        return (None, place);
    }
    (Some(name), place)
}

fn read_node(table: &Table<'_, '_>, errors: &mut Errors<'_>) -> Option<NodeName> {
    if table.get("node").is_none() {
        table.missing(
            "node",
            "write `node = \"NAME\"`, the node whose agent runs the service",
            errors,
        );
        return None;
    }
    table.parsed("node", values::node_name, errors)
}

/// Reads a whole definition.
pub(super) fn read<'a>(file: &DefinitionFile<'a>, lookup: &FileLookup<'_>) -> ReadService<'a> {
    let (mut errors, text) = text(file);
    if !errors.is_empty() {
        return ReadService {
            path: file.path,
            errors,
            name: None,
            name_place: 0..0,
            node: None,
            active: false,
            components: Vec::new(),
            shell: None,
        };
    }
    let tree = parse(text, &mut errors);
    let table = Table::new(tree.get_ref(), 0..0, &SERVICE, &mut errors);
    let (name, name_place) = read_name(file.path, &table, &mut errors);
    let node = read_node(&table, &mut errors);
    let active = table.boolean("active", true, &mut errors);
    let description = table
        .string("description", &mut errors)
        .map(|text| text.text.to_owned());
    let alert = table.boolean("alert", true, &mut errors);
    let deadline = table.positive_span("deadline", DEADLINE, &mut errors);
    let reconcile = table.choice(
        "reconcile",
        &Reconcile::WORDS,
        Reconcile::Manual,
        &mut errors,
    );
    let on_failure = table.choice(
        "on_failure",
        &OnFailure::WORDS,
        OnFailure::KeepOld,
        &mut errors,
    );
    // Without a good name the file's own stands in, so that the rest can still be checked.
    let called = name
        .clone()
        .or_else(|| stem(file.path).parse().ok())
        .or_else(|| "service".parse().ok())
        .expect("`service` is a name");
    let components = read_components(&table, &called, lookup, &mut errors);
    let shell = match (&name, &node) {
        (Some(name), Some(node)) => Some(ServiceSpec {
            name: name.clone(),
            node: node.clone(),
            active,
            description,
            alert,
            deadline,
            reconcile,
            on_failure,
            components: BTreeMap::new(),
        }),
        _ => None,
    };
    ReadService {
        path: file.path,
        errors,
        name,
        name_place,
        node,
        active,
        components,
        shell,
    }
}

fn read_components(
    service: &Table<'_, '_>,
    called: &ServiceName,
    lookup: &FileLookup<'_>,
    errors: &mut Errors<'_>,
) -> Vec<ReadComponent> {
    const FORM: &str = "start each component with a line `[[components]]`";
    let Some(entry) = service.get("components") else {
        service.missing(
            "components",
            "add a `[[components]]` with a `name` and an `image`",
            errors,
        );
        return Vec::new();
    };
    let DeValue::Array(items) = entry.value.get_ref() else {
        wrong_type(
            "`components`",
            "a list of tables",
            entry.value,
            FORM,
            errors,
        );
        return Vec::new();
    };
    if items.is_empty() {
        errors.push(
            Kind::Missing,
            entry.value.span(),
            "the service has no component",
            FORM,
        );
    }
    if items.len() > MAX_COMPONENTS {
        errors.push(
            Kind::Bound,
            entry.key_place,
            format!(
                "the service has {} components; at most {MAX_COMPONENTS} are read",
                items.len()
            ),
            "split it into several services",
        );
        return Vec::new();
    }
    let mut components = Vec::new();
    for item in items {
        let DeValue::Table(inner) = item.get_ref() else {
            wrong_type("an item of `components`", "a table", item, FORM, errors);
            continue;
        };
        let table = Table::new(inner, item.span(), &component::COMPONENT, errors);
        components.push(component::read(&table, called, lookup, errors));
    }
    components
}

/// Reads name and node alone; what else the file holds may be anything.
pub(super) fn read_head<'a>(file: &DefinitionFile<'a>) -> Head<'a> {
    const ANY: Schema = Schema {
        what: "a service",
        keys: &[],
        not_yet: &[],
        elsewhere: |_| None,
    };
    let (mut errors, text) = text(file);
    let mut head = Head {
        name: None,
        name_place: 0..0,
        node: None,
        errors: Errors::new(file.path, text),
    };
    if !errors.is_empty() {
        head.errors = errors;
        return head;
    }
    let tree = parse(text, &mut errors);
    // The unknown keys of this pass are thrown away with the rest.
    let mut ignored = Errors::new(file.path, "");
    let table = Table::new(tree.get_ref(), 0..0, &ANY, &mut ignored);
    let heads: Vec<Range<usize>> = ["name", "node"]
        .iter()
        .filter_map(|key| table.get(key))
        .map(|entry| entry.value.span())
        .collect();
    let end = heads.iter().map(|place| place.end).max().unwrap_or(0);
    // Behind a header no key is the service's own any more, not even one that stands twice.
    let body = table
        .get("components")
        .filter(|entry| entry.value.span().start < entry.key_place.start)
        .map_or(usize::MAX, |entry| entry.key_place.start);
    // A file that breaks behind its head is another node's affair; one that breaks before or
    // inside it, or says a key of it twice, may mean something else than what was read.
    let trusted = heads.len() == 2
        && errors.all(|error| {
            error.span.start > body || error.kind == Kind::Syntax && error.span.start > end
        });
    if !trusted {
        head.errors = errors;
    }
    let (name, place) = read_name(file.path, &table, &mut head.errors);
    head.name = name;
    head.name_place = place;
    head.node = read_node(&table, &mut head.errors);
    head
}
