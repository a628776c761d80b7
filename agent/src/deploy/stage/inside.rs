//! Staging from within the engine's user namespace, where its containers' ids are ids.
//!
//! An engine without root gives its containers subordinate ids of its user. Nobody but a process in its
//! namespace can give a file to one of them, or read one that was given away. A process with several
//! threads cannot enter a user namespace (setns(2)), so the agent sends a second one of its own program:
//! `mcp-agent stage`, one errand each. Entering needs no privilege but to be the user whose namespace it is, and
//! the errand's process has none outside of it.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use mcp_spec::component::FileMount;
use mcp_spec::name::ComponentKey;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{StageError, Staging};
use crate::runtime::UserNamespace;

/// Most bytes of an errand: a definition's file and what is said of it.
const ERRAND_LIMIT: u64 = 64 << 20;

/// What is to be done to one staged file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Errand {
    pub(super) root: PathBuf,
    pub(super) key: ComponentKey,
    pub(super) generation: u64,
    pub(super) target: String,
    pub(super) work: Work,
}

/// Which of the changes it is.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Work {
    /// As [`Staging::write`].
    Write {
        /// The file.
        file: FileMount,
    },
    /// As [`Staging::exchange`].
    Exchange {
        /// The file.
        file: FileMount,
        /// Into the same file.
        in_place: bool,
    },
    /// As [`Staging::restore`].
    Restore {
        /// Into the same file.
        in_place: bool,
    },
}

impl Errand {
    fn file(&self) -> Option<&FileMount> {
        match &self.work {
            Work::Write { file } | Work::Exchange { file, .. } => Some(file),
            Work::Restore { .. } => None,
        }
    }

    fn run(&self, bytes: &[u8]) -> Result<(), StageError> {
        // Within the namespace the ids are what they are called.
        let staging = Staging {
            root: self.root.clone(),
            users: UserNamespace::Shared,
        };
        let (key, generation, target) = (&self.key, self.generation, self.target.as_str());
        match &self.work {
            Work::Write { file } => staging.write(key, generation, target, file, bytes),
            Work::Exchange { file, in_place } => {
                staging.exchange(key, generation, target, file, bytes, *in_place)
            }
            Work::Restore { in_place } => staging.restore(key, generation, target, *in_place),
        }
    }
}

/// Sends a process on an errand and waits for it.
pub(super) fn send(users: &UserNamespace, errand: Errand, bytes: &[u8]) -> Result<(), StageError> {
    let from = errand
        .file()
        .map_or_else(|| errand.target.clone(), |file| file.from.clone());
    let failed = |why: String| StageError::Inside {
        from: from.clone(),
        why,
    };
    let pid = match users {
        UserNamespace::Own { pid } => *pid,
        UserNamespace::Unknown { why } => return Err(failed(why.clone())),
        UserNamespace::Shared => return errand.run(bytes),
    };
    if let Some((uid, gid)) = errand.file().and_then(|file| file.owner) {
        for (map, id, ids) in [
            ("uid_map", uid, "/etc/subuid"),
            ("gid_map", gid, "/etc/subgid"),
        ] {
            let table = std::fs::read_to_string(format!("/proc/{pid}/{map}"))
                .map_err(|error| failed(format!("cannot read /proc/{pid}/{map}: {error}")))?;
            if !maps(&table, id) {
                return Err(failed(format!(
                    "the engine has no id {id} for its containers; give its user more subordinate ids in {ids}"
                )));
            }
        }
    }
    let outcome = travel(pid, &errand, bytes)
        .map_err(|error| failed(format!("cannot run `mcp-agent stage`: {error}")))?;
    outcome.map_err(failed)
}

/// Whether a map of `user_namespaces(7)` has an id.
fn maps(table: &str, id: u32) -> bool {
    table.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(within)), Some(Ok(_)), Some(Ok(size))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (within..within.saturating_add(size)).contains(&u64::from(id))
    })
}

/// Runs the program that this process runs, whatever stands at its path by now.
fn travel(pid: u32, errand: &Errand, bytes: &[u8]) -> io::Result<Result<(), String>> {
    let mut process = Command::new("/proc/self/exe")
        .arg("stage")
        .arg(pid.to_string())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut said = serde_json::to_vec(errand)?;
    said.push(b'\n');
    if let Some(mut input) = process.stdin.take() {
        // One that has ended already says why on its standard error.
        drop(input.write_all(&said).and_then(|()| input.write_all(bytes)));
    }
    let output = process.wait_with_output()?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(Err(if why.is_empty() {
        output.status.to_string()
    } else {
        why
    }))
}

/// Why an errand could not be run.
#[derive(Debug, Error)]
pub enum ErrandError {
    /// What came on standard input is no errand.
    #[error("this is run by the agent itself, and standard input holds no errand")]
    NoErrand,
    /// The namespace cannot be entered.
    #[error("cannot enter the engine's user namespace (process {pid})")]
    Enter {
        /// The process that is in it.
        pid: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error(transparent)]
    Stage(#[from] StageError),
}

/// Runs the errand on `input` in the user namespace of a process. To be called by a process of one thread.
///
/// # Errors
///
/// [`ErrandError`].
pub fn run(pid: u32, input: impl io::Read) -> Result<(), ErrandError> {
    let mut said = Vec::new();
    input
        .take(ERRAND_LIMIT)
        .read_to_end(&mut said)
        .map_err(|_| ErrandError::NoErrand)?;
    let end = said
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(ErrandError::NoErrand)?;
    let errand: Errand = serde_json::from_slice(&said[..end]).map_err(|_| ErrandError::NoErrand)?;
    let namespace = File::open(format!("/proc/{pid}/ns/user"))
        .map_err(|source| ErrandError::Enter { pid, source })?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User)).map_err(
        |source| ErrandError::Enter {
            pid,
            source: source.into(),
        },
    )?;
    errand.run(&said[end + 1..])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_looked_up_in_the_kernel_s_table() {
        let table = "         0        999          1\n         1     100000      65536\n";
        for (id, there) in [(0, true), (1, true), (65_536, true), (65_537, false)] {
            assert_eq!(maps(table, id), there, "{id}");
        }
        assert!(!maps("", 0));
    }

    #[test]
    fn what_is_no_errand_is_refused() {
        for nonsense in ["", "\n", "{}\n", "no line"] {
            assert!(matches!(
                run(1, nonsense.as_bytes()),
                Err(ErrandError::NoErrand)
            ));
        }
    }
}
