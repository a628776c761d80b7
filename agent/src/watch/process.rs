//! A pidfd on a container's first process: its death is known within a millisecond.
//!
//! A process id can be reused between the engine's answer and `pidfd_open(2)`. The race is closed by
//! looking at `/proc/PID/cgroup` after the open: the process belongs to the container where its
//! cgroup names the container's id. Where cgroups say nothing, the caller has to inspect again.
//!
//! The same cgroup counts the processes that the kernel killed for want of memory. Podman 4.3 says
//! `OOMKilled: false` of a container that ended so; its cgroup is there for some 150 ms after the death,
//! and is read at once.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use mcp_spec::observed::ContainerId;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A watch on one process.
#[derive(Debug)]
pub struct ProcessWatch {
    fd: AsyncFd<OwnedFd>,
    memory: Option<Memory>,
}

/// How a process ended, as far as the kernel tells others than its parent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Death {
    /// Whether the kernel killed a process of the container for want of memory in the meantime.
    pub memory_ran_out: bool,
}

/// Where a cgroup counts what was killed for want of memory.
#[derive(Debug)]
struct Memory {
    counter: PathBuf,
    before: u64,
}

impl Memory {
    /// The counter of a process whose `/proc/PID/cgroup` is `text`, where that cgroup is the container's
    /// alone.
    fn of(text: &str, container: &ContainerId) -> Option<Self> {
        let counter = memory_counter(text, container)?;
        let before = killed(&fs::read_to_string(&counter).ok()?)?;
        Some(Self { counter, before })
    }

    fn ran_out(&self) -> bool {
        fs::read_to_string(&self.counter)
            .ok()
            .and_then(|text| killed(&text))
            .is_some_and(|now| now > self.before)
    }
}

/// The file of the memory controller that counts, by `cgroups(7)`: a hierarchy of its own in version 1, the
/// only one in version 2.
fn memory_counter(text: &str, container: &ContainerId) -> Option<PathBuf> {
    let mut found = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        if !path.contains(container.as_str()) || path.split('/').any(|part| part == "..") {
            continue;
        }
        if controllers.split(',').any(|name| name == "memory") {
            return Some(format!("/sys/fs/cgroup/memory{path}/memory.oom_control").into());
        }
        if number == "0" && controllers.is_empty() {
            found = Some(format!("/sys/fs/cgroup{path}/memory.events").into());
        }
    }
    found
}

/// The count of either version's file: a line `oom_kill N`.
fn killed(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// What came of the attempt to watch a process.
#[derive(Debug)]
pub enum Opened {
    /// The process is the container's, and watched.
    Watched(ProcessWatch),
    /// The process is watched; whether it is the container's has to be asked of the engine.
    Unproven(ProcessWatch),
    /// There is no such process, or it is somebody else's: the container's is gone.
    Gone,
}

impl ProcessWatch {
    /// Watches process `pid` of `container`.
    ///
    /// # Errors
    ///
    /// What the kernel said, other than that there is no such process.
    pub fn open(pid: u32, container: &ContainerId) -> io::Result<Opened> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(Opened::Gone);
        };
        let fd = match pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(Opened::Gone),
            Err(errno) => return Err(errno.into()),
        };
        #[expect(
            deprecated,
            reason = "its replacement is unsafe; an owned pidfd stays open as long as the AsyncFd that owns it"
        )]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        let Ok(cgroup) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return Ok(Opened::Gone);
        };
        let watch = Self {
            fd,
            memory: Memory::of(&cgroup, container),
        };
        if cgroup.contains(container.as_str()) {
            Ok(Opened::Watched(watch))
        } else {
            Ok(Opened::Unproven(watch))
        }
    }

    /// Waits for the death of the process.
    pub async fn died(&self) -> Death {
        // A pidfd becomes readable when its process ends, and stays so.
        if self.fd.readable().await.is_err() {
            // The reactor is gone: the agent is stopping, and nobody needs the answer.
            std::future::pending::<()>().await;
        }
        Death {
            memory_ran_out: self.memory.as_ref().is_some_and(Memory::ran_out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_in_the_cgroup_of_the_container_alone() {
        let id = ContainerId::new("88a82ccbd14d");
        let v1 = "11:pids:/docker/88a82ccbd14d\n4:memory:/docker/88a82ccbd14d\n0::/docker/88a82ccbd14d\n";
        assert_eq!(
            memory_counter(v1, &id).unwrap().to_str(),
            Some("/sys/fs/cgroup/memory/docker/88a82ccbd14d/memory.oom_control")
        );
        let v2 = "0::/machine.slice/libpod-88a82ccbd14d.scope/container\n";
        assert_eq!(
            memory_counter(v2, &id).unwrap().to_str(),
            Some("/sys/fs/cgroup/machine.slice/libpod-88a82ccbd14d.scope/container/memory.events")
        );
        for other in [
            "0::/user.slice\n",
            "4:memory:/\n",
            "0::/../88a82ccbd14d\n",
            "",
            "x",
        ] {
            assert_eq!(memory_counter(other, &id), None, "{other}");
        }
    }

    #[test]
    fn count_is_read_from_either_version() {
        assert_eq!(
            killed("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            Some(2)
        );
        assert_eq!(killed("low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\n"), Some(1));
        assert_eq!(killed("under_oom 0\n"), None);
    }
}
