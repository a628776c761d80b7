//! Running the alert command: an argument vector, never a shell.
//!
//! It runs in a process group of its own with an environment of its own, gets the alert as one JSON
//! document on standard input and in `MCP_*` variables, and is killed with its group when its time is
//! over or when it has ended. A child that leaves the group (`setsid`) outlives that; nothing waits
//! for it.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use mcp_spec::name::{ComponentName, ServiceName};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde_json::Value;
use thiserror::Error;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout_at};

use super::conditions::Alert;
use crate::config::AlertConfig;

/// Bytes of the command's output that are kept; the rest is read and thrown away.
const OUTPUT_BYTES: usize = 4096;

/// Longest value of a variable: the kernel's bound on one is 128 KiB.
const VALUE_BYTES: usize = 8192;

/// Where programs are looked for when the agent itself was not told.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long output that is already written is waited for once the command has ended: what it left
/// behind may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_millis(100);

/// What came of a delivery that worked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// The beginning of what the command said on both outputs.
    pub output: String,
    /// How long it took.
    pub took: Duration,
}

/// Why an alert did not arrive.
#[derive(Debug, Error)]
pub enum DeliveryError {
    /// There is no `[alert] command`.
    #[error("no alert command is configured")]
    Unset,
    /// The command cannot be run.
    #[error("cannot run the alert command {program}")]
    Spawn {
        /// Its program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The command's end cannot be learned.
    #[error("cannot wait for the alert command")]
    Wait(#[source] io::Error),
    /// It took too long and was killed.
    #[error("the alert command did not end within {} s and was killed", limit.as_secs_f64())]
    Timeout {
        /// `[alert] timeout`.
        limit: Duration,
        /// What it said until then.
        output: String,
    },
    /// It says that it failed.
    #[error("the alert command ended with {status}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },
    /// The agent ends.
    #[error("the agent is stopping")]
    Stopping,
}

impl DeliveryError {
    /// What the command said before it failed.
    #[must_use]
    pub fn output(&self) -> &str {
        match self {
            Self::Timeout { output, .. } | Self::Failed { output, .. } => output,
            _ => "",
        }
    }

    /// The mend.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Unset => "set [alert] command in agent.toml and start the agent again",
            Self::Spawn { .. } => "the agent's user must be able to run it: mend [alert] command",
            Self::Timeout { .. } => "make it faster, or raise [alert] timeout",
            Self::Wait(_) | Self::Failed { .. } => {
                "run it by hand with a JSON document on its standard input"
            }
            Self::Stopping => "ask again when it is back",
        }
    }
}

/// Runs the command once with this alert.
pub(super) async fn run(config: &AlertConfig, alert: &Alert) -> Result<Delivered, DeliveryError> {
    let Some((program, arguments)) = config.command.split_first() else {
        return Err(DeliveryError::Unset);
    };
    let began = Instant::now();
    let limit = config.timeout.as_duration();
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment(alert))
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| DeliveryError::Spawn {
            program: program.clone(),
            source,
        })?;
    let leader = Leader::of(&child).map_err(DeliveryError::Wait)?;
    let document = document(alert);
    let stdin = child.stdin.take();
    let writing = async move {
        if let Some(mut stdin) = stdin {
            // A command that does not read is none the worse for it.
            let _ = stdin.write_all(&document).await;
            let _ = stdin.shutdown().await;
        }
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let is_over = {
        let mut talking = pin!(async {
            tokio::join!(gather(stdout, &mut out), gather(stderr, &mut err), writing)
        });
        let mut ending = pin!(timeout_at(began + limit, leader.ended()));
        let mut has_talked = false;
        let ended = loop {
            tokio::select! {
                ended = &mut ending => break ended,
                // What was read until then is kept.
                _ = &mut talking, if !has_talked => has_talked = true,
            }
        };
        if ended.is_ok() && !has_talked {
            let _ = timeout_at(Instant::now() + DRAIN, &mut talking).await;
        }
        ended.is_err()
    };
    leader.kill_group();
    let status = child.wait().await.map_err(DeliveryError::Wait)?;
    let output = output(&out, &err);
    if is_over {
        Err(DeliveryError::Timeout { limit, output })
    } else if status.success() {
        Ok(Delivered {
            output,
            took: began.elapsed(),
        })
    } else {
        Err(DeliveryError::Failed { status, output })
    }
}

/// The command's process, which leads its group. Until it is waited for, its id cannot pass to another.
struct Leader {
    pid: Pid,
    ended: AsyncFd<OwnedFd>,
}

impl Leader {
    fn of(child: &Child) -> io::Result<Self> {
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .ok_or(io::ErrorKind::NotFound)?;
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        #[expect(
            deprecated,
            reason = "its replacement is unsafe; an owned pidfd stays open as long as the AsyncFd that owns it"
        )]
        let ended = AsyncFd::with_interest(fd, Interest::READABLE)?;
        Ok(Self { pid, ended })
    }

    /// Returns when it has ended; it is still to be waited for.
    async fn ended(&self) {
        let _ = self.ended.readable().await;
    }

    fn kill_group(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
    }
}

/// Reads to the end, keeps the beginning.
async fn gather(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut from) = from else {
        return;
    };
    let mut chunk = [0; OUTPUT_BYTES];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        let room = OUTPUT_BYTES - kept.len();
        kept.extend_from_slice(&chunk[..read.min(room)]);
    }
}

fn output(out: &[u8], err: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(out).into_owned();
    text.push_str(&String::from_utf8_lossy(err));
    let lines: Vec<String> = text.trim_end().lines().map(escaped).collect();
    lines.join("\n")
}

/// The document on standard input: one line of JSON.
fn document(alert: &Alert) -> Vec<u8> {
    // Nothing in an alert has a key that is no text, which is all that could fail here.
    let mut value = serde_json::to_value(alert).unwrap_or_default();
    escape_within(&mut value);
    let mut document = value.to_string().into_bytes();
    document.push(b'\n');
    document
}

fn escape_within(value: &mut Value) {
    match value {
        Value::String(text) => *text = escaped(text),
        Value::Array(values) => values.iter_mut().for_each(escape_within),
        Value::Object(fields) => fields.values_mut().for_each(escape_within),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The command's whole environment.
fn environment(alert: &Alert) -> Vec<(&'static str, String)> {
    let name = |name: Option<&str>| name.unwrap_or_default().to_owned();
    let key = &alert.key;
    let mut variables = vec![
        ("MCP_NODE", alert.node.clone()),
        (
            "MCP_SERVICE",
            name(key.service.as_ref().map(ServiceName::as_str)),
        ),
        (
            "MCP_COMPONENT",
            name(key.component.as_ref().map(ComponentName::as_str)),
        ),
        ("MCP_CONDITION", key.condition.clone()),
        ("MCP_STATE", alert.state.as_str().to_owned()),
        ("MCP_CAUSE", alert.cause.clone()),
        ("MCP_MESSAGE", alert.message.clone()),
        ("MCP_AT", alert.at.to_string()),
        ("MCP_SINCE", alert.since.to_string()),
        ("MCP_REVISION", alert.revision.clone().unwrap_or_default()),
        ("MCP_COUNT", alert.count.to_string()),
        ("MCP_SEQ", alert.seq.to_string()),
    ];
    for (_, value) in &mut variables {
        *value = escaped(value);
        let end = value.floor_char_boundary(VALUE_BYTES);
        value.truncate(end);
    }
    variables.push((
        "PATH",
        std::env::var("PATH").unwrap_or_else(|_| PATH.to_owned()),
    ));
    if let Ok(home) = std::env::var("HOME") {
        variables.push(("HOME", home));
    }
    variables.push(("LANG", "C.UTF-8".to_owned()));
    variables
}

/// Control characters, and those that turn the direction of text, as `\u{1b}`: what a container wrote
/// must not speak to a terminal or forge a second line.
fn escaped(text: &str) -> String {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2028}' | '\u{2029}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(is_unsafe) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| {
            if is_unsafe(c) {
                c.escape_unicode().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}
