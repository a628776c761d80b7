//! The user namespace of an engine that runs without root: its containers' ids are those of that namespace.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::super::{EngineName, Runtime as _, UserNamespace};
use super::DockerRuntime;
use super::http::Call;
use super::libpod::{INFO_LIMIT, IdRange, LibpodInfo};
use super::session;

/// Finds a process in the engine's namespace: the one that listens, or, where a service manager listens for
/// it, one of those that the engine keeps.
pub(super) async fn of(runtime: &DockerRuntime) -> UserNamespace {
    let facts = match runtime.facts().await {
        Ok(facts) if !facts.rootless => return UserNamespace::Shared,
        Ok(facts) => facts,
        Err(error) => {
            return UserNamespace::Unknown {
                why: error.to_string(),
            };
        }
    };
    if let Some(pid) = runtime.http.socket().peer_pid().await
        && is_own(&format!("/proc/{pid}"))
    {
        return UserNamespace::Own { pid };
    }
    if facts.name == EngineName::Podman
        && let Some(map) = told_map(runtime).await
        && let Some(pid) = process_with(&map)
    {
        return UserNamespace::Own { pid };
    }
    UserNamespace::Unknown {
        why: "no process of the engine shows its user namespace".to_owned(),
    }
}

/// Whether a process numbers users otherwise than the agent.
fn is_own(process: &str) -> bool {
    match (map_of(process), map_of("/proc/self")) {
        (Some(theirs), Some(ours)) => theirs != ours,
        _ => false,
    }
}

fn map_of(process: &str) -> Option<Vec<IdRange>> {
    let text = fs::read_to_string(Path::new(process).join("uid_map")).ok()?;
    Some(parse_map(&text))
}

/// The kernel's table: id within, id without, length (`user_namespaces(7)`).
fn parse_map(text: &str) -> Vec<IdRange> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
            Some(IdRange {
                container_id: numbers.next()??,
                host_id: numbers.next()??,
                size: numbers.next()??,
            })
        })
        .collect()
}

/// The map that podman tells of.
async fn told_map(runtime: &DockerRuntime) -> Option<Vec<IdRange>> {
    let info = runtime
        .send(|_| Call::get("info", format!("{}/info", session::LIBPOD)).within(INFO_LIMIT))
        .await
        .ok()?;
    let info: LibpodInfo = info.ok().ok()?.parsed().ok()?;
    info.host.id_mappings.uidmap.filter(|map| !map.is_empty())
}

/// A process of the agent's own user with this very map. Those of containers, which could have made one
/// like it, are in PID namespaces of their own.
fn process_with(map: &[IdRange]) -> Option<u32> {
    let pids = fs::read_link("/proc/self/ns/pid").ok()?;
    let user = rustix::process::geteuid().as_raw();
    fs::read_dir("/proc")
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| {
            let process = format!("/proc/{pid}");
            fs::metadata(&process).is_ok_and(|it| it.uid() == user)
                && map_of(&process).as_deref() == Some(map)
                && fs::read_link(format!("{process}/ns/pid")).is_ok_and(|it| it == pids)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_read_as_the_kernel_writes_them() {
        let text = "         0        999          1\n         1     100000      65536\n";
        let ranges: Vec<(u32, u32, u32)> = parse_map(text)
            .iter()
            .map(|it| (it.container_id, it.host_id, it.size))
            .collect();
        assert_eq!(ranges, [(0, 999, 1), (1, 100_000, 65_536)]);
        assert!(parse_map("").is_empty());
        assert!(parse_map("nonsense\n").is_empty());
    }

    #[test]
    fn the_agent_itself_is_in_no_namespace_of_its_own() {
        assert!(!is_own("/proc/self"));
        assert!(!is_own("/proc/none"));
    }
}
