//! Typed access to the spanned TOML tree.
//!
//! Every accessor reports what it refuses and answers `None` or a default, so that one walk
//! collects all errors; a file with any error yields no spec, so the stand-in value goes nowhere.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::fmt::Display;

use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::error::{DefinitionErrorKind as Kind, Errors, Place};
use super::suggest;
use crate::duration::{Span, SpanError};

/// Most items of one list: beyond any container, and a bound on what a hostile file costs.
const MAX_ITEMS: usize = 4096;

/// A value with its place.
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// A refused value: what is wrong, and the mend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) message: String,
    pub(super) hint: String,
}

impl Refusal {
    /// A refusal with its mend.
    pub(super) fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// The keys of one sort of table.
pub(super) struct Schema {
    /// What such a table is called in messages, with its article.
    pub(super) what: &'static str,
    /// The keys that it may have.
    pub(super) keys: &'static [&'static str],
    /// Keys of the format that this release refuses.
    pub(super) not_yet: &'static [&'static str],
    /// The mend for a key that people write here and that is called or placed otherwise.
    pub(super) elsewhere: fn(&str) -> Option<String>,
}

/// One table of the tree, its keys already checked against a [`Schema`].
#[derive(Clone)]
pub(super) struct Table<'t, 'i> {
    table: &'t DeTable<'i>,
    pub(super) place: Place,
    what: &'static str,
    /// The mends of the keys that were refused.
    mends: Vec<String>,
}

/// A string with its place.
#[derive(Debug, Clone)]
pub(super) struct Text<'t> {
    pub(super) text: &'t str,
    pub(super) place: Place,
}

/// A key with its place and value.
pub(super) struct Entry<'t, 'i> {
    pub(super) key: &'t str,
    pub(super) key_place: Place,
    pub(super) value: &'t Value<'i>,
}

impl<'t, 'i> Table<'t, 'i> {
    /// Takes a table and refuses the keys that the schema does not know.
    pub(super) fn new(
        table: &'t DeTable<'i>,
        place: Place,
        schema: &Schema,
        errors: &mut Errors<'_>,
    ) -> Self {
        let mut mends = Vec::new();
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if schema.keys.contains(&name) || name.starts_with("x-") {
                continue;
            }
            if schema.not_yet.contains(&name) {
                errors.push(
                    Kind::NotSupportedYet,
                    key.span(),
                    format!("`{name}` is not supported yet by this release"),
                    not_yet_mend(name),
                );
                continue;
            }
            if errors.is_full() {
                errors.count_one_more();
                break;
            }
            let hint = (schema.elsewhere)(name).unwrap_or_else(|| {
                suggest::hint(
                    name,
                    schema.keys.iter().copied(),
                    &format!("the keys of {} are", schema.what),
                )
            });
            errors.push(
                Kind::UnknownKey,
                key.span(),
                format!("unknown key `{name}` in {}", schema.what),
                &hint,
            );
            mends.push(hint);
        }
        Self {
            table,
            place,
            what: schema.what,
            mends,
        }
    }

    /// The entry of a key, where the table has it.
    pub(super) fn get(&self, key: &str) -> Option<Entry<'t, 'i>> {
        // The map's order is that of the keys as text, and looking one up needs a `Spanned` key.
        self.entries().find(|entry| entry.key == key)
    }

    /// All entries in the order of their keys.
    pub(super) fn entries(&self) -> impl Iterator<Item = Entry<'t, 'i>> + use<'t, 'i> {
        self.table.iter().map(|(key, value)| Entry {
            key: key.get_ref().as_ref(),
            key_place: key.span(),
            value,
        })
    }

    /// The place of a key, or of the table where the key is absent.
    pub(super) fn place_of(&self, key: &str) -> Place {
        self.get(key)
            .map_or(self.place.clone(), |entry| entry.key_place)
    }

    /// Reports a required key that is absent, unless it is there misspelt, which was reported.
    pub(super) fn missing(&self, key: &str, mend: impl AsRef<str>, errors: &mut Errors<'_>) {
        let misspelt = format!("did you mean `{key}`?");
        if !self.mends.iter().any(|mend| mend.starts_with(&misspelt)) {
            errors.push(
                Kind::Missing,
                self.place.clone(),
                format!("{} needs `{key}`", self.what),
                mend,
            );
        }
    }

    /// A string.
    pub(super) fn string(&self, key: &str, errors: &mut Errors<'_>) -> Option<Text<'t>> {
        let entry = self.get(key)?;
        string(&format!("`{key}`"), entry.value, errors)
    }

    /// A string that means something.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, Refusal>,
        errors: &mut Errors<'_>,
    ) -> Option<T> {
        let text = self.string(key, errors)?;
        parse_text(&text, parse, errors)
    }

    /// A boolean.
    pub(super) fn boolean(&self, key: &str, default: bool, errors: &mut Errors<'_>) -> bool {
        let Some(entry) = self.get(key) else {
            return default;
        };
        match entry.value.get_ref() {
            DeValue::Boolean(value) => *value,
            other => {
                let hint = match other {
                    DeValue::String(text) if matches!(text.as_ref(), "true" | "false") => {
                        format!("leave out the quotes: `{key} = {text}`")
                    }
                    _ => format!("write `{key} = true` or `{key} = false`"),
                };
                wrong_type(
                    &format!("`{key}`"),
                    "true or false",
                    entry.value,
                    hint,
                    errors,
                );
                default
            }
        }
    }

    /// An integer of a range, the ends included.
    pub(super) fn integer(
        &self,
        key: &str,
        (least, most): (i64, i64),
        errors: &mut Errors<'_>,
    ) -> Option<i64> {
        let entry = self.get(key)?;
        integer(&format!("`{key}`"), entry.value, (least, most), errors)
    }

    /// A duration with its unit.
    pub(super) fn span(&self, key: &str, default: Span, errors: &mut Errors<'_>) -> Span {
        let Some(entry) = self.get(key) else {
            return default;
        };
        if let DeValue::Integer(number) = entry.value.get_ref() {
            errors.push(
                Kind::Type,
                entry.value.span(),
                format!("`{key}` has no unit"),
                format!("write `{key} = \"{number}s\"` or another of ms, s, m, h, d"),
            );
            return default;
        }
        self.parsed(key, parse_span, errors).unwrap_or(default)
    }

    /// A duration longer than nothing.
    pub(super) fn positive_span(&self, key: &str, default: Span, errors: &mut Errors<'_>) -> Span {
        let span = self.span(key, default, errors);
        if span.as_millis() == 0 {
            errors.push(
                Kind::Value,
                self.get(key)
                    .map_or(self.place.clone(), |entry| entry.value.span()),
                format!("`{key}` cannot be zero"),
                format!("write a time, as in the default `{key} = \"{default}\"`"),
            );
        }
        span
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&'static str, T)],
        default: T,
        errors: &mut Errors<'_>,
    ) -> T {
        self.parsed(key, |text| choose(key, text, choices), errors)
            .unwrap_or(default)
    }

    /// A list of strings; `None` where the key is absent or no list.
    pub(super) fn strings(&self, key: &str, errors: &mut Errors<'_>) -> Option<Vec<Text<'t>>> {
        let (_, items) = self.array(
            key,
            "a list of strings",
            |text| format!("write a list: `{key} = [\"{text}\"]`"),
            errors,
        )?;
        let what = format!("an item of `{key}`");
        Some(
            items
                .iter()
                .filter_map(|item| string(&what, item, errors))
                .collect(),
        )
    }

    /// A list, with the mend for a string in its place.
    pub(super) fn array(
        &self,
        key: &str,
        expected: &str,
        mend: impl FnOnce(&str) -> String,
        errors: &mut Errors<'_>,
    ) -> Option<(Place, &'t DeArray<'i>)> {
        let entry = self.get(key)?;
        match entry.value.get_ref() {
            DeValue::Array(items) if items.len() > MAX_ITEMS => {
                errors.push(
                    Kind::Bound,
                    entry.key_place,
                    format!(
                        "`{key}` has {} items; at most {MAX_ITEMS} are read",
                        items.len()
                    ),
                    "write fewer",
                );
                None
            }
            DeValue::Array(items) => Some((entry.value.span(), items)),
            other => {
                let hint = match other {
                    DeValue::String(text) => mend(text),
                    DeValue::Integer(number) => mend(&number.to_string()),
                    _ => format!("write `{key} = […]`"),
                };
                wrong_type(&format!("`{key}`"), expected, entry.value, hint, errors);
                None
            }
        }
    }

    /// A table within, its keys checked.
    pub(super) fn table(
        &self,
        key: &str,
        schema: &Schema,
        mend: &str,
        errors: &mut Errors<'_>,
    ) -> Option<Table<'t, 'i>> {
        let entry = self.get(key)?;
        match entry.value.get_ref() {
            DeValue::Table(table) => Some(Table::new(table, entry.key_place, schema, errors)),
            _ => {
                wrong_type(&format!("`{key}`"), "a table", entry.value, mend, errors);
                None
            }
        }
    }

    /// A table whose keys are the operator's own and whose values are plain.
    pub(super) fn plain_values(
        &self,
        key: &str,
        errors: &mut Errors<'_>,
    ) -> Vec<(Text<'t>, String)> {
        let Some(entry) = self.get(key) else {
            return Vec::new();
        };
        let DeValue::Table(table) = entry.value.get_ref() else {
            let hint = match entry.value.get_ref() {
                DeValue::Array(_) => format!("write a table: `{key} = {{ NAME = \"value\" }}`"),
                _ => format!("write `{key} = {{ NAME = \"value\" }}`"),
            };
            wrong_type(&format!("`{key}`"), "a table", entry.value, hint, errors);
            return Vec::new();
        };
        let mut values = Vec::new();
        for (name, value) in table {
            let text = Text {
                text: name.get_ref().as_ref(),
                place: name.span(),
            };
            if let Some(plain) = plain_value(key, &text, value, errors) {
                values.push((text, plain));
            }
        }
        values
    }
}

fn plain_value(
    key: &str,
    name: &Text<'_>,
    value: &Value<'_>,
    errors: &mut Errors<'_>,
) -> Option<String> {
    let what = format!("`{key}.{}`", name.text);
    match value.get_ref() {
        DeValue::String(_) => string(&what, value, errors).map(|text| text.text.to_owned()),
        DeValue::Boolean(value) => Some(value.to_string()),
        // As written, so that `1.50` stays `1.50`; the parser has taken the underscores out.
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Some(number.to_string()),
            Err(_) => {
                errors.push(
                    Kind::Value,
                    value.span(),
                    format!("{what} is no number that fits"),
                    "put it in quotes",
                );
                None
            }
        },
        _ => {
            wrong_type(
                &what,
                "a string, number or boolean",
                value,
                "put the value in quotes",
                errors,
            );
            None
        }
    }
}

/// The string that a value is.
pub(super) fn string<'t>(
    what: &str,
    value: &'t Value<'_>,
    errors: &mut Errors<'_>,
) -> Option<Text<'t>> {
    match value.get_ref() {
        DeValue::String(text) if text.contains('\0') => {
            errors.push(
                Kind::Value,
                value.span(),
                format!("{what} holds a NUL byte"),
                "take the `\\u0000` out: no argument, path or variable can hold one",
            );
            None
        }
        DeValue::String(text) => Some(Text {
            text: text.as_ref(),
            place: value.span(),
        }),
        other => {
            let hint = match other {
                DeValue::Integer(number) => format!("put it in quotes: \"{number}\""),
                DeValue::Float(number) => format!("put it in quotes: \"{number}\""),
                DeValue::Boolean(value) => format!("put it in quotes: \"{value}\""),
                DeValue::Datetime(time) => format!("put it in quotes: \"{time}\""),
                _ => "write one text in quotes".to_owned(),
            };
            wrong_type(what, "a string", value, hint, errors);
            None
        }
    }
}

/// The integer of a range that a value is.
pub(super) fn integer(
    what: &str,
    value: &Value<'_>,
    (least, most): (i64, i64),
    errors: &mut Errors<'_>,
) -> Option<i64> {
    let hint = format!("write a number from {least} to {most}");
    match value.get_ref() {
        DeValue::Integer(number) => {
            let found = i64::from_str_radix(number.as_str(), number.radix())
                .ok()
                .filter(|found| (least..=most).contains(found));
            if found.is_none() {
                errors.push(
                    Kind::Value,
                    value.span(),
                    format!("{what} is out of range"),
                    hint,
                );
            }
            found
        }
        DeValue::String(_) => {
            wrong_type(what, "an integer", value, "leave out the quotes", errors);
            None
        }
        _ => {
            wrong_type(what, "an integer", value, hint, errors);
            None
        }
    }
}

/// What a string means, or the report of its refusal.
pub(super) fn parse_text<T>(
    text: &Text<'_>,
    parse: impl FnOnce(&str) -> Result<T, Refusal>,
    errors: &mut Errors<'_>,
) -> Option<T> {
    match parse(text.text) {
        Ok(value) => Some(value),
        Err(refusal) => {
            errors.push(
                Kind::Value,
                text.place.clone(),
                refusal.message,
                refusal.hint,
            );
            None
        }
    }
}

/// Reports a value of the wrong type.
pub(super) fn wrong_type(
    what: &str,
    expected: &str,
    value: &Value<'_>,
    hint: impl AsRef<str>,
    errors: &mut Errors<'_>,
) {
    let found = match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    errors.push(
        Kind::Type,
        value.span(),
        format!("{what} is {found}, and must be {expected}"),
        hint,
    );
}

/// Keeps the first of several entries with one key, and reports the others.
pub(super) fn insert_once<K: Ord + Display, V>(
    map: &mut BTreeMap<K, V>,
    key: K,
    value: V,
    what: &str,
    place: Place,
    errors: &mut Errors<'_>,
) {
    match map.entry(key) {
        Slot::Vacant(free) => {
            free.insert(value);
        }
        Slot::Occupied(taken) => errors.push(
            Kind::Duplicate,
            place,
            format!("{what} `{}` stands here twice", taken.key()),
            "leave one of them out",
        ),
    }
}

/// One of a few words, or "did you mean".
pub(super) fn choose<T: Copy>(
    key: &str,
    text: &str,
    choices: &[(&'static str, T)],
) -> Result<T, Refusal> {
    choices
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| {
            Refusal::new(
                format!("`{text}` is no value of `{key}`"),
                suggest::hint(text, choices.iter().map(|(word, _)| *word), "write one of"),
            )
        })
}

/// A duration.
pub(super) fn parse_span(text: &str) -> Result<Span, Refusal> {
    text.parse().map_err(|error: SpanError| match error {
        SpanError::NoUnit { text } => Refusal::new(
            format!("the duration `{text}` has no unit"),
            format!("write `{text}s` or another of ms, s, m, h, d"),
        ),
        SpanError::Malformed { text } => Refusal::new(
            format!("`{text}` is not a duration"),
            "write numbers with units from large to small, as in `10s`, `250ms`, `1h30m`",
        ),
        SpanError::TooLong { .. } => Refusal::new(
            error.to_string(),
            "write a shorter time, as in `10s` or `5m`",
        ),
    })
}

fn not_yet_mend(key: &str) -> String {
    format!("leave `{key}` out, or carry it along unused as `x-{key}`")
}
