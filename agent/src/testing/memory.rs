//! Folders that lie in memory, for tests that write and flush without end.

use std::path::Path;

use tempfile::TempDir;

/// Where Linux keeps files in memory.
const MEMORY: &str = "/dev/shm";

/// What the folders' names begin with; the id of the process follows.
const PREFIX: &str = "mcp-test-";

/// A folder in memory where the machine has such a place, else anywhere.
///
/// What killed tests left there is cleared away first: podman walks all of `/dev` each time it describes a
/// container that has devices, and holds the container's lock meanwhile.
///
/// # Panics
///
/// Where no folder can be made at all.
#[must_use]
pub fn memory_dir() -> TempDir {
    clear(Path::new(MEMORY));
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let mut folder = tempfile::Builder::new();
    folder.prefix(&prefix);
    folder
        .tempdir_in(MEMORY)
        .or_else(|_| folder.tempdir())
        .expect("tests have a place to write to")
}

fn clear(memory: &Path) {
    for entry in std::fs::read_dir(memory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('-').next())
            .and_then(|process| process.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            drop(std::fs::remove_dir_all(entry.path()));
        }
    }
}
