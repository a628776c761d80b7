//! What a component asks of the node beyond the usual, in libpod's words.

use mcp_spec::component::{ComponentSpec, Device as Asked, Log};
use serde::Serialize;

use super::super::super::{EngineFacts, RuntimeError};
use super::super::compile::signed;

/// One device, as podman's command line writes it.
#[derive(Debug, Serialize)]
pub(super) struct Device {
    path: String,
}

/// One limit of a process.
#[derive(Debug, Serialize)]
pub(super) struct RLimit {
    #[serde(rename = "type")]
    kind: String,
    soft: u64,
    hard: u64,
}

/// Where the output goes.
#[derive(Debug, Serialize)]
pub(super) struct LogConfiguration {
    driver: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Tag>,
}

/// The one option that podman reads by name.
#[derive(Debug, Serialize)]
struct Tag {
    tag: String,
}

/// What this engine cannot do, by name.
pub(super) fn refused(spec: &ComponentSpec, facts: &EngineFacts) -> Result<(), RuntimeError> {
    if !facts.rootless {
        return Ok(());
    }
    match spec
        .devices
        .values()
        .find(|device| device.permissions != Asked::ALL)
    {
        None => Ok(()),
        Some(device) => Err(RuntimeError::Unsupported {
            what: format!("`{}` for the device {}", device.permissions, device.host),
            why: "it runs without root, where a device comes with the node's own permissions: leave them out"
                .to_owned(),
        }),
    }
}

pub(super) fn devices(spec: &ComponentSpec) -> Vec<Device> {
    spec.devices
        .iter()
        .map(|(target, device)| Device {
            path: format!("{}:{target}:{}", device.host, device.permissions),
        })
        .collect()
}

pub(super) fn r_limits(spec: &ComponentSpec) -> Vec<RLimit> {
    // The kernel's word for no limit.
    let written = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    spec.ulimits
        .iter()
        .map(|(name, limit)| RLimit {
            kind: name.clone(),
            soft: written(limit.soft),
            hard: written(limit.hard),
        })
        .collect()
}

/// The value of one security option.
pub(super) fn option(spec: &ComponentSpec, key: &str) -> Option<String> {
    spec.security_opt
        .iter()
        .find_map(|option| option.strip_prefix(key)?.strip_prefix('='))
        .map(str::to_owned)
}

/// The parts of the SELinux label.
pub(super) fn selinux(spec: &ComponentSpec) -> Vec<String> {
    spec.security_opt
        .iter()
        .filter_map(|option| option.strip_prefix("label=").map(str::to_owned))
        .collect()
}

/// The log driver with its options. Podman ignores options that it does not know; they are refused.
pub(super) fn log(spec: &ComponentSpec) -> Result<Option<LogConfiguration>, RuntimeError> {
    let Some(Log { driver, options }) = &spec.log else {
        return Ok(None);
    };
    let unsupported = |what: String, why: &str| RuntimeError::Unsupported {
        what,
        why: why.to_owned(),
    };
    if !["k8s-file", "json-file", "journald", "none"].contains(&driver.as_str()) {
        return Err(unsupported(
            format!("log.driver = \"{driver}\""),
            "podman has k8s-file (also called json-file), journald and none",
        ));
    }
    let file = matches!(driver.as_str(), "k8s-file" | "json-file");
    let mut size = None;
    let mut tag = None;
    for (name, value) in options {
        let what = || format!("log.options.{name} = \"{value}\" with {driver}");
        match name.as_str() {
            "max-size" if file => {
                size = Some(bytes(value).ok_or_else(|| {
                    unsupported(what(), "it is no size: write a number with k, m or g")
                })?);
            }
            "tag" if driver == "journald" => tag = Some(Tag { tag: value.clone() }),
            _ => {
                return Err(unsupported(
                    what(),
                    "podman takes max-size with k8s-file and tag with journald, and nothing else",
                ));
            }
        }
    }
    Ok(Some(LogConfiguration {
        driver: driver.clone(),
        size,
        options: tag,
    }))
}

/// A size as log drivers write it: `10m`, powers of 1024.
fn bytes(text: &str) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &lower[number.len()..] {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => return None,
    };
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    Some(signed(number, factor))
}

/// The hard limit of a process in the kernel's table (`/proc/PID/limits`, proc(5)); `None` where it is
/// unlimited or not there.
pub(in super::super) fn hard_limit(table: &str, name: &str) -> Option<u64> {
    let called = match name {
        "core" => "Max core file size",
        "cpu" => "Max cpu time",
        "data" => "Max data size",
        "fsize" => "Max file size",
        "locks" => "Max file locks",
        "memlock" => "Max locked memory",
        "msgqueue" => "Max msgqueue size",
        "nice" => "Max nice priority",
        "nofile" => "Max open files",
        "nproc" => "Max processes",
        "rss" => "Max resident set",
        "rtprio" => "Max realtime priority",
        "rttime" => "Max realtime timeout",
        "sigpending" => "Max pending signals",
        "stack" => "Max stack size",
        _ => return None,
    };
    table
        .lines()
        .find_map(|line| line.strip_prefix(called))?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}
