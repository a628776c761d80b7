//! Facts about this machine: disk, memory, load, system. Read when asked, never cached.

use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

/// How much of something is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// In use, in bytes.
    pub used_bytes: u64,
    /// In all, in bytes.
    pub total_bytes: u64,
}

/// What this machine is, and how it fares. What cannot be read is zero or empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The file system that holds the agent's data.
    pub disk: Usage,
    /// Main memory; what could be freed at once counts as free.
    pub memory: Usage,
    /// Processors that this process may use.
    pub cpus: u32,
    /// Load of the last minute, in thousandths.
    pub load_millis: u32,
    /// The distribution, as in `Debian GNU/Linux 12 (bookworm)`.
    pub os: String,
    /// The kernel's release.
    pub kernel: String,
    /// The machine's architecture.
    pub architecture: String,
}

impl NodeFacts {
    /// Reads the facts; a few small files of `/proc` and one system call.
    #[must_use]
    pub fn read(data_dir: &Path) -> Self {
        let uname = rustix::system::uname();
        Self {
            disk: disk(data_dir),
            memory: memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            cpus: available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            load_millis: load_millis(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
            os: os(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            kernel: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
        }
    }
}

fn disk(path: &Path) -> Usage {
    // As `df` does it: the blocks reserved for root are neither used nor to be had.
    rustix::fs::statvfs(path)
        .map(|fs| {
            let used = fs.f_blocks.saturating_sub(fs.f_bfree);
            Usage {
                used_bytes: used.saturating_mul(fs.f_frsize),
                total_bytes: used.saturating_add(fs.f_bavail).saturating_mul(fs.f_frsize),
            }
        })
        .unwrap_or_default()
}

fn memory(meminfo: &str) -> Usage {
    let kib = |name: &str| {
        meminfo.lines().find_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix(':')?;
            value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        })
    };
    match (kib("MemTotal"), kib("MemAvailable")) {
        (Some(total), Some(available)) => Usage {
            used_bytes: total.saturating_sub(available).saturating_mul(1024),
            total_bytes: total.saturating_mul(1024),
        },
        _ => Usage::default(),
    }
}

fn load_millis(loadavg: &str) -> u32 {
    // `0.52` has two decimals always, so thousandths need no floating point.
    loadavg
        .split(' ')
        .next()
        .and_then(|load| load.split_once('.'))
        .and_then(|(whole, hundredths)| {
            let whole: u32 = whole.parse().ok()?;
            let hundredths: u32 = hundredths.parse().ok()?;
            Some(
                whole
                    .saturating_mul(1000)
                    .saturating_add(hundredths.saturating_mul(10)),
            )
        })
        .unwrap_or_default()
}

fn os(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_disk_memory_and_processors() {
        let facts = NodeFacts::read(Path::new("/"));
        assert!(facts.disk.total_bytes > 0 && facts.disk.used_bytes <= facts.disk.total_bytes);
        assert!(facts.memory.total_bytes > 0);
        assert!(facts.cpus > 0);
        assert!(!facts.kernel.is_empty() && !facts.architecture.is_empty());
    }

    #[test]
    fn the_kernels_words_are_read() {
        assert_eq!(load_millis("0.52 0.48 0.40 1/523 12345\n"), 520);
        assert_eq!(load_millis(""), 0);
        assert_eq!(
            memory("MemTotal:       8 kB\nMemFree: 1 kB\nMemAvailable:    6 kB\n"),
            Usage {
                used_bytes: 2048,
                total_bytes: 8192
            }
        );
        assert_eq!(memory("garbage"), Usage::default());
        assert_eq!(os("ID=debian\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
    }
}
