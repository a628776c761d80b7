//! What a received pack may cost, and the clock that it is held against.

use std::time::{Duration, Instant};

use super::error::ReceiveError;

/// Bounds on what is received. A desired-state repository is text: the defaults leave a hundred
/// times what a large one has, and still fit into a small node's memory and a short wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the pack as it is sent.
    pub pack_bytes: u64,
    /// Objects in it.
    pub objects: u64,
    /// Bytes of one object, inflated.
    pub object_bytes: u64,
    /// Bytes of all objects together, inflated.
    pub inflated_bytes: u64,
    /// Deltas upon deltas; git itself makes at most 50 unless told otherwise.
    pub delta_depth: u32,
    /// Bytes of what the deltas upon one another make, the base with them: all of them may be in memory
    /// at a time.
    pub delta_chain_bytes: u64,
    /// Commits that are new.
    pub commits: usize,
    /// Directories within directories.
    pub tree_depth: u32,
    /// Files in one revision.
    pub tree_paths: u64,
    /// Bytes of one path.
    pub path_bytes: usize,
    /// Time for the whole of it.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            pack_bytes: 256 * 1024 * 1024,
            objects: 500_000,
            object_bytes: 32 * 1024 * 1024,
            inflated_bytes: 1024 * 1024 * 1024,
            delta_depth: 250,
            delta_chain_bytes: 256 * 1024 * 1024,
            commits: 100_000,
            tree_depth: 32,
            tree_paths: 100_000,
            path_bytes: 1024,
            deadline: Duration::from_mins(2),
        }
    }
}

/// The monotonic end of one receipt.
pub(super) struct Clockwork {
    pub(super) deadline: Instant,
    limit: Duration,
}

impl Clockwork {
    pub(super) fn start(limits: &Limits) -> Self {
        Self {
            deadline: Instant::now() + limits.deadline,
            limit: limits.deadline,
        }
    }

    pub(super) fn check(&self) -> Result<(), ReceiveError> {
        if Instant::now() >= self.deadline {
            return Err(ReceiveError::TimedOut {
                seconds: self.limit.as_secs(),
            });
        }
        Ok(())
    }
}
