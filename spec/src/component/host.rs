//! What a component asks of the node's kernel and of the engine beyond the usual.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A device of the node, by its path in the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Absolute path on the node.
    pub host: String,
    /// Of `r`, `w` and `m` (make nodes) those that are given, in this order; never empty.
    pub permissions: String,
}

impl Device {
    /// What a device is given with unless the definition says less.
    pub const ALL: &'static str = "rwm";
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.host, self.permissions)
    }
}

/// A limit of each process. `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// What holds; a process may raise it to the hard limit.
    pub soft: Option<u64>,
    /// Never below the soft limit.
    pub hard: Option<u64>,
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |f: &mut fmt::Formatter<'_>, limit: Option<u64>| match limit {
            Some(limit) => write!(f, "{limit}"),
            None => f.write_str("unlimited"),
        };
        part(f, self.soft)?;
        if self.soft != self.hard {
            f.write_str(":")?;
            part(f, self.hard)?;
        }
        Ok(())
    }
}

/// Where a container's output goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The engine's name of the driver, as `json-file`.
    pub driver: String,
    /// The driver's options.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}
