//! What a shell's completion offers for targets, services and nodes: the work tree and `mcp.toml`
//! are looked at, and no node is asked, since a key press must not wait for a network.

use std::path::PathBuf;

use clap::Parser as _;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};

use crate::args::{Cli, Given};
use crate::config::Settings;

/// More definitions are not offered: nobody reads such a list.
const MAX_OFFERED: usize = 1000;
/// The largest definition that is read for its components.
const MAX_BYTES: u64 = 256 * 1024;

/// Services, and components as `SERVICE/COMPONENT`.
pub(crate) fn targets() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let mut all = Vec::new();
        for (service, path) in definitions() {
            all.push(CompletionCandidate::new(&service));
            for component in components(&path) {
                all.push(CompletionCandidate::new(format!("{service}/{component}")));
            }
        }
        all
    })
}

/// Services.
pub(crate) fn services() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        definitions()
            .into_iter()
            .map(|(service, _)| CompletionCandidate::new(service))
            .collect()
    })
}

/// Configured nodes.
pub(crate) fn nodes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let nodes = settings()
            .map(|settings| settings.nodes)
            .unwrap_or_default();
        nodes
            .into_iter()
            .map(|node| {
                CompletionCandidate::new(node.name.to_string()).help(Some(node.address.into()))
            })
            .collect()
    })
}

/// The settings as the environment alone gives them; flags of the line being typed are not seen.
fn settings() -> Option<Settings> {
    let matches = crate::args::plain_command()
        .try_get_matches_from(["mcp", "version"])
        .ok()?;
    let cli = Cli::try_parse_from(["mcp", "version"]).ok()?;
    Settings::load(&cli.global, &Given::new(matches)).ok()
}

fn definitions() -> Vec<(String, PathBuf)> {
    let Some(settings) = settings() else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(settings.repo.value.join("services")) else {
        return Vec::new();
    };
    let mut all: Vec<(String, PathBuf)> = entries
        .flatten()
        .take(MAX_OFFERED)
        .filter_map(|entry| {
            let name = entry
                .file_name()
                .to_str()?
                .strip_suffix(".toml")?
                .to_owned();
            Some((name, entry.path()))
        })
        .collect();
    all.sort();
    all
}

fn components(path: &std::path::Path) -> Vec<String> {
    let small = std::fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() <= MAX_BYTES);
    let text = if small {
        std::fs::read_to_string(path).unwrap_or_default()
    } else {
        String::new()
    };
    let table: toml::Table = text.parse().unwrap_or_default();
    let components = table.get("components").and_then(toml::Value::as_array);
    components
        .into_iter()
        .flatten()
        .filter_map(|component| Some(component.get("name")?.as_str()?.to_owned()))
        .collect()
}
