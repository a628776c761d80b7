//! Which crate may name which other, and behind which door each foreign library stays.
//!
//! The rules are read from the sources as text. Whoever needs a library outside its door moves the door
//! here, in the open, or finds that the code belongs elsewhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A foreign library (its crates) and the files, or folders, that may name it.
struct Door {
    crates: &'static [&'static str],
    open: &'static [&'static str],
}

const DOORS: &[Door] = &[
    Door {
        crates: &["bollard"],
        open: &["agent/src/runtime", "tests"],
    },
    Door {
        crates: &["rusqlite", "rusqlite_migration"],
        open: &["agent/src/registry"],
    },
    Door {
        crates: &["gix", "gix_pack", "gix_odb", "gix_fsck"],
        open: &["agent/src/revisions", "cli/src/repo"],
    },
    Door {
        crates: &["tonic", "tonic_health", "tonic_reflection", "tonic_prost"],
        open: &[
            "agent/src/rpc",
            "agent/src/lib",
            "agent/src/tls",
            "cli/src/client",
            "proto",
            "tests",
        ],
    },
    Door {
        crates: &["clap", "clap_complete", "clap_mangen"],
        open: &[
            "cli/src/commands",
            "cli/src/args",
            "cli/src/main",
            "agent/src/main",
            "agent/src/identity_command",
            "agent/src/trust_command",
        ],
    },
    Door {
        crates: &["age", "age_core"],
        open: &["seal"],
    },
];

/// What the pure domain may not touch: the world outside its arguments.
const IMPURE: &[&str] = &[
    "std::fs",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "std::process",
    "std::env",
    "std::thread",
    "std::io",
    "Instant",
    "SystemTime",
    "tokio",
    "tracing",
    "rand",
    "println",
    "eprintln",
];

/// Each crate and the crates of this workspace that it may name.
const LAYERS: &[(&str, &[&str])] = &[
    ("spec", &[]),
    ("proto", &["mcp-spec"]),
    ("seal", &["mcp-spec"]),
    ("agent", &["mcp-spec", "mcp-seal", "mcp-proto"]),
    ("cli", &["mcp-spec", "mcp-seal", "mcp-proto"]),
];

#[test]
fn foreign_libraries_stay_behind_their_doors() {
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for file in sources(&["spec", "seal", "proto", "agent", "cli", "tests"]) {
        let code = code_of(&file);
        let words = paths_named(&code);
        for door in DOORS {
            for library in door
                .crates
                .iter()
                .filter(|library| words.contains(**library))
            {
                seen.insert(*library);
                if !door.open.iter().any(|open| is_within(&file, open)) {
                    wrong.push(format!(
                        "{}: {library} is for {} alone",
                        shown(&file),
                        door.open.join(", ")
                    ));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "doors that stand open:\n{}",
        wrong.join("\n")
    );
    assert!(
        seen.contains("bollard"),
        "the sources were read, or this test says nothing"
    );
}

#[test]
fn what_has_to_outlast_a_power_cut_goes_through_the_disk() {
    let mut wrong = Vec::new();
    for file in sources(&["agent/src"]) {
        if is_within(&file, "agent/src/disk") {
            continue;
        }
        let code = code_of(&file);
        for hidden in [".sync_all(", ".sync_data(", "fs::rename("] {
            if code.contains(hidden) {
                wrong.push(format!("{}: {hidden}", shown(&file)));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "the simulation cannot cut the power there:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn domain_is_pure() {
    let mut wrong = Vec::new();
    for file in sources(&["spec/src"]) {
        let code = code_of(&file);
        let words = paths_named(&code);
        for impure in IMPURE {
            if words.contains(*impure) || (impure.contains("::") && code.contains(impure)) {
                wrong.push(format!("{}: {impure}", shown(&file)));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "spec is a function of its arguments, and yet:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn crates_name_only_those_beneath_them() {
    let mut wrong = Vec::new();
    for (layer, allowed) in LAYERS {
        let manifest = std::fs::read_to_string(root().join(layer).join("Cargo.toml"))
            .expect("each crate has one");
        let manifest: toml::Table = manifest.parse().expect("cargo reads it too");
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            for name in table
                .keys()
                .filter(|name| *name == "mcp" || name.starts_with("mcp-"))
            {
                if !allowed.contains(&name.as_str()) {
                    wrong.push(format!("{layer}/Cargo.toml: {section}: {name}"));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "spec <- proto <- {{agent, cli}} <- tests, and yet:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn words_in_comments_and_strings_are_no_imports() {
    let code = without_comments_and_strings(
        "// use gix::open\nlet a = \"bollard::Docker\"; /* rusqlite:: */ use toml::Table; 'x'; b'\"'",
    );
    let words = paths_named(&code);
    assert!(words.contains("toml"));
    for hidden in ["gix", "bollard", "rusqlite"] {
        assert!(!words.contains(hidden), "{hidden} in {code:?}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root())
        .unwrap_or(file)
        .display()
        .to_string()
}

/// `agent/src/runtime` stands for `agent/src/runtime.rs` and all of `agent/src/runtime/`.
fn is_within(file: &Path, open: &str) -> bool {
    let shown = shown(file);
    shown == format!("{open}.rs") || shown.starts_with(&format!("{open}/"))
}

/// The Rust files below the folders given, in order.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("the workspace can be read") {
            let path = entry.expect("the workspace can be read").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What a file says outside comments, strings and its unit tests.
fn code_of(file: &Path) -> String {
    let is_unit_test = file.file_stem().is_some_and(|stem| stem == "tests")
        || shown(file).contains("/tests/") && shown(file).contains("/src/");
    if is_unit_test {
        return String::new();
    }
    let text = std::fs::read_to_string(file).expect("the workspace can be read");
    // Unit tests stand at the end of a file.
    let text = text
        .find("#[cfg(test)]\nmod tests {")
        .map_or(text.as_str(), |start| &text[..start]);
    without_comments_and_strings(text)
}

/// Blanks comments, strings and characters; raw strings with one `#` or none are known.
fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if rest.starts_with("r#\"") {
            rest.find("\"#").map_or(rest.len(), |end| end + 2)
        } else if first == '"' {
            end_of_string(rest)
        } else if rest.starts_with("'\"'") {
            3
        } else if rest.starts_with("'\\\"'") {
            4
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        code.push(' ');
        rest = &rest[skipped..];
    }
    code
}

/// The length of the string literal that `text` starts with.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Every name that stands at the head of a path, after `use`, or before `!`.
fn paths_named(code: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let mut from = 0;
    while let Some(offset) = code[from..].find(is_word) {
        let start = from + offset;
        let end = code[start..]
            .find(|character| !is_word(character))
            .map_or(code.len(), |length| start + length);
        let before = code[..start].trim_end();
        let heads_a_path = !before.ends_with("::") || before.ends_with(" ::");
        let names = code[end..].starts_with("::")
            || code[end..].starts_with('!')
            || before.ends_with("use");
        if heads_a_path && names {
            found.insert(&code[start..end]);
        }
        from = end;
    }
    found
}
