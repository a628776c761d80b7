//! Processes of containers, as `/proc` shows them where agent and engine share a PID namespace.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, getpgid, kill_process_group, pidfd_open, pidfd_send_signal,
};

/// Ticks of `/proc`'s clock a second: the kernel's `USER_HZ`, the same wherever containers run.
const TICKS: u64 = 100;

/// When a process was started, in clock ticks since the machine's: with its id this names one process
/// for good. `None` where there is none.
#[must_use]
pub fn pid_start_time(pid: u32) -> Option<u64> {
    stat(pid).map(|stat| stat.started)
}

/// A process that is held by a descriptor, so that its id cannot pass to another unseen.
#[derive(Debug)]
pub struct Handle {
    fd: OwnedFd,
    pid: Pid,
}

impl Handle {
    /// Takes hold of a process; `None` where there is none, or no right to.
    #[must_use]
    pub fn open(pid: u32) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { fd, pid })
    }

    /// The descriptor: readable once the process has ended.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Kills it, where the agent may; one that has ended is none the worse.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.fd, Signal::KILL);
    }

    /// Kills it with all processes of its group, where it leads one: engines run each command as the
    /// leader of a group of its own.
    pub(super) fn kill_group(&self) {
        // The group keeps the leader's id taken for as long as it has a member, and this signal found
        // the leader not yet gone.
        if pidfd_send_signal(&self.fd, Signal::STOP).is_ok()
            && getpgid(Some(self.pid)) == Ok(self.pid)
        {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
        self.kill();
    }
}

/// Kills what was started by the engine inside a container (its parent lies outside) with these
/// arguments within the last `age`. `first`: the container's first process.
pub(super) fn kill_strays(first: u32, command: &[String], age: Duration) {
    let Some(inside) = pid_namespace(first) else {
        return;
    };
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    let now = uptime();
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if pid == first || pid_namespace(pid).as_ref() != Some(&inside) {
            continue;
        }
        // Held first, looked at then: what is killed is what was looked at.
        let Some(process) = Handle::open(pid) else {
            continue;
        };
        let Some(stat) = stat(pid) else { continue };
        let outside = pid_namespace(stat.parent).as_ref() != Some(&inside);
        let young = now.is_none_or(|now| {
            let started = Duration::from_millis(stat.started.saturating_mul(1000 / TICKS));
            now.saturating_sub(started) <= age + Duration::from_secs(1)
        });
        if outside && young && runs(pid, command) {
            process.kill_group();
        }
    }
}

/// Whether a process's arguments end as the command's do: a script's begin with its interpreter.
fn runs(pid: u32, command: &[String]) -> bool {
    let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    let arguments: Vec<&[u8]> = line
        .strip_suffix(b"\0")
        .unwrap_or(&line)
        .split(|byte| *byte == 0)
        .collect();
    arguments.len() >= command.len()
        && arguments[arguments.len() - command.len()..]
            .iter()
            .zip(command)
            .all(|(argument, wanted)| *argument == wanted.as_bytes())
}

fn pid_namespace(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid")).ok()
}

fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

struct Stat {
    parent: u32,
    started: u64,
}

/// Reads `/proc/PID/stat`. The name in it may hold anything, so what follows its last bracket counts.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    Some(Stat {
        parent: fields.nth(1)?.parse().ok()?,
        started: fields.nth(17)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_process_has_a_start_time_and_keeps_it() {
        let own = std::process::id();
        let started = pid_start_time(own);
        assert!(started.is_some_and(|ticks| ticks > 0));
        assert_eq!(started, pid_start_time(own));
        assert_eq!(
            stat(own).unwrap().parent,
            std::os::unix::process::parent_id()
        );
    }

    #[test]
    fn missing_process_has_none() {
        assert_eq!(pid_start_time(u32::MAX), None);
        assert!(Handle::open(0).is_none());
        assert!(Handle::open(u32::MAX).is_none());
    }

    #[test]
    fn arguments_are_compared_from_their_end() {
        let own: Vec<String> = std::env::args().collect();
        let pid = std::process::id();
        assert!(runs(pid, &own));
        assert!(runs(pid, &own[own.len() - 1..]));
        let mut other = own.clone();
        other.push("more".to_owned());
        assert!(!runs(pid, &other));
        *other.last_mut().unwrap() = "other".to_owned();
        assert!(!runs(pid, &other[1..]));
    }

    #[test]
    fn held_process_is_killed() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Handle::open(child.id()).unwrap().kill();
        assert!(!child.wait().unwrap().success());
    }
}
