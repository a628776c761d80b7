//! The machine, and what it and its processes have spent.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use mcp_tests::engine::Lane;
use serde_json::{Value, json};

/// Clock ticks a second of `/proc/stat`: Linux tells user space 100 on every architecture.
const TICKS: u64 = 100;

/// What a reader needs to know of the machine: never its name or a path of it.
pub(crate) fn describe(lanes: &[Lane]) -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([':', '\t', ' ']));
    let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = system
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned());
    let engines: Vec<String> = lanes
        .iter()
        .map(|lane| match lane {
            Lane::Docker => version("dockerd", "--version"),
            Lane::PodmanRoot | Lane::PodmanRootless => version("podman", "--version"),
        })
        .collect();
    json!({
        "cores": std::thread::available_parallelism().map_or(1, usize::from),
        "cpu": model, "system": system, "engines": engines, "git": version("git", "--version"),
    })
}

fn version(program: &str, flag: &str) -> String {
    Command::new(program)
        .arg(flag)
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

/// Where cargo puts what it builds: this is `target/release/deps/deploy-HASH`.
pub(crate) fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors().nth(3).unwrap().to_owned()
}

/// What all processes of the machine have spent so far. Says something only where nothing else runs.
pub(crate) fn busy() -> Duration {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user, nice, system; then idle and waiting, which is not spent; then interrupts.
    let ticks: u64 = [0, 1, 2, 5, 6]
        .into_iter()
        .filter_map(|at| fields.get(at))
        .sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// What a process has spent so far, in the system's ticks of ten milliseconds.
pub(crate) fn spent(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything; user and system time are the 12th and 13th after it.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 1000 / TICKS)
}

/// Resident memory of a process in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap()
}
