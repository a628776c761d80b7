//! What podman's storage holds and podman does not run: half-made containers, and those of other tools.
//!
//! A create that was cut off leaves a name behind that no inspect knows and that no second create gets. So
//! does buildah, which works in containers of its own: podman tells those apart by their command
//! (`storage` and `buildah`), and removes either by name when it is asked to.

use mcp_spec::observed::ContainerId;
use serde::Deserialize;

use super::super::RuntimeError;
use super::DockerRuntime;
use super::http::Call;
use super::session::LIBPOD;

/// How podman names the command of a container that buildah works in.
const BUILDER: &str = "buildah";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    command: Option<Vec<String>>,
    #[serde(default)]
    state: Option<String>,
}

/// The container of this name that buildah works in, where there is one.
///
/// # Errors
///
/// What the list failed with.
pub(super) async fn builder_of(
    runtime: &DockerRuntime,
    name: &str,
) -> Result<Option<ContainerId>, RuntimeError> {
    let entries: Vec<Entry> = runtime
        .send(|_| {
            Call::get(
                "list",
                format!("{LIBPOD}/containers/json?all=true&external=true"),
            )
        })
        .await?
        .ok()?
        .parsed()?;
    Ok(builder(entries, name))
}

fn builder(entries: Vec<Entry>, name: &str) -> Option<ContainerId> {
    let is_meant = |entry: &Entry| {
        let names = entry.names.as_deref().unwrap_or_default();
        let command = entry.command.as_deref().unwrap_or_default();
        entry.state.as_deref() == Some("storage")
            && names.iter().any(|held| held == name)
            && command.first().is_some_and(|word| word == BUILDER)
    };
    let found = entries.into_iter().find(is_meant)?;
    Some(ContainerId::new(found.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As podman 4.3.1 answers, shortened.
    const LIST: &str = r#"[
        {"Id": "4cc9", "Names": ["shop-api"], "Command": ["buildah"], "State": "storage", "Labels": null},
        {"Id": "5dd0", "Names": ["shop-db"], "Command": ["storage"], "State": "storage", "Pod": ""},
        {"Id": "6ee1", "Names": ["shop-web"], "Command": ["buildah"], "State": "running"},
        {"Id": "7ff2", "Names": null, "Command": null, "State": "storage"}
    ]"#;

    #[test]
    fn only_what_buildah_works_in_is_another_tools() {
        let of = |name| {
            let entries: Vec<Entry> = serde_json::from_str(LIST).unwrap();
            builder(entries, name)
        };
        assert_eq!(of("shop-api"), Some(ContainerId::new("4cc9")));
        for half_made_or_run in ["shop-db", "shop-web", "shop"] {
            assert_eq!(of(half_made_or_run), None);
        }
    }
}
