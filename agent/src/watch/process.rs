//! A pidfd on a container's first process: its death is known within a millisecond.
//!
//! A process id can be reused between the engine's answer and `pidfd_open(2)`. The race is closed by
//! looking at `/proc/PID/cgroup` after the open: the process belongs to the container where its
//! cgroup names the container's id. Where cgroups say nothing, the caller has to inspect again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use mcp_spec::observed::ContainerId;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A watch on one process.
#[derive(Debug)]
pub struct ProcessWatch {
    fd: AsyncFd<OwnedFd>,
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
        let watch = Self { fd };
        let Ok(cgroup) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return Ok(Opened::Gone);
        };
        if cgroup.contains(container.as_str()) {
            Ok(Opened::Watched(watch))
        } else {
            Ok(Opened::Unproven(watch))
        }
    }

    /// Waits for the death of the process.
    pub async fn died(&self) {
        // A pidfd becomes readable when its process ends, and stays so.
        if self.fd.readable().await.is_err() {
            // The reactor is gone: the agent is stopping, and nobody needs the answer.
            std::future::pending::<()>().await;
        }
    }
}
