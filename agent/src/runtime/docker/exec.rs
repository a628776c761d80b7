//! Commands inside containers.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use mcp_spec::observed::{ContainerId, ContainerState, LiveContainer};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{ExecOutcome, RuntimeError, process};
use super::errors;
use super::frames::Frames;
use super::http::{Answer, CHANGE_LIMIT, Call, Http, encoded};
use super::libpod::HealthAnswer;
use super::session::{LIBPOD, Session};

/// The output that is kept, from its end.
const OUTPUT_LIMIT: usize = 4 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(default)]
    running: bool,
    #[serde(default)]
    exit_code: Option<i32>,
    #[serde(default)]
    pid: u32,
}

/// Runs a command by the exec calls of the Docker API. On podman two of its processes stay for 300 s.
pub(super) async fn run(
    http: &Http,
    session: &Session,
    id: &ContainerId,
    command: &[String],
    timeout: Duration,
) -> Result<ExecOutcome, RuntimeError> {
    let prefix = &session.prefix;
    let path = format!("{prefix}/containers/{}/exec", encoded(id.as_str()));
    let body = json!({ "AttachStdout": true, "AttachStderr": true, "Cmd": command });
    let answer = http.send(Call::post("exec", path).json(&body)).await?;
    if !answer.status.is_success() {
        return Err(errors::meaning(&answer, id.as_str()));
    }
    let exec = answer.parsed::<Created>()?.id;
    let mut output = Tail::default();
    let running = tokio::time::timeout(timeout, start(http, prefix, &exec, &mut output));
    if let Ok(ended) = running.await {
        ended?;
        let state = state(http, prefix, &exec).await?;
        return Ok(ExecOutcome::Exited {
            // Without a code it did not come to run.
            code: state.exit_code.unwrap_or(126),
            output: output.text(),
        });
    }
    end(http, prefix, &exec).await;
    Ok(ExecOutcome::TimedOut)
}

async fn start(
    http: &Http,
    prefix: &str,
    exec: &str,
    output: &mut Tail,
) -> Result<(), RuntimeError> {
    let call = Call::post("exec", format!("{prefix}/exec/{exec}/start"))
        .json(&json!({ "Detach": false, "Tty": false }));
    let response = http.open(&call).await?;
    if !response.status().is_success() {
        let answer = Answer::of_refusal("exec", response).await;
        return Err(errors::meaning(&answer, exec));
    }
    let mut body = response.into_body();
    let mut frames = Frames::default();
    while let Some(piece) = body.frame().await {
        let piece = piece.map_err(|cause| RuntimeError::Uncertain {
            call: "exec",
            cause: format!("the stream broke off: {cause}"),
        })?;
        if let Ok(data) = piece.into_data() {
            for frame in frames.feed(&data) {
                output.push(&frame.payload);
            }
        }
    }
    if let Some(frame) = frames.finish() {
        output.push(&frame.payload);
    }
    Ok(())
}

async fn state(http: &Http, prefix: &str, exec: &str) -> Result<Inspected, RuntimeError> {
    http.send(Call::get("exec", format!("{prefix}/exec/{exec}/json")))
        .await?
        .ok()?
        .parsed()
}

/// Kills a command that outlived its time, where its process can be seen. No engine has a call for
/// this; a command that stays is the container's.
async fn end(http: &Http, prefix: &str, exec: &str) {
    if let Ok(seen) = state(http, prefix, exec).await
        && seen.running
        && let Some(process) = process::Handle::open(seen.pid)
        // The same id still running means that the handle is of this process.
        && let Ok(again) = state(http, prefix, exec).await
        && again.running
        && again.pid == seen.pid
    {
        process.kill_group();
    }
}

/// Runs the command that a container was created with as its health check, by libpod's own call: no
/// process of podman's stays behind.
pub(super) async fn health_check(
    http: &Http,
    session: &Session,
    container: &LiveContainer,
    command: &[String],
    timeout: Duration,
) -> Result<ExecOutcome, RuntimeError> {
    let id = encoded(container.id.as_str());
    let begun = Instant::now();
    let call = Call::get(
        "health check",
        format!("{LIBPOD}/containers/{id}/healthcheck"),
    )
    .within(timeout.saturating_add(CHANGE_LIMIT));
    let Ok(answer) = tokio::time::timeout(timeout, http.send(call)).await else {
        if let ContainerState::Running { pid: Some(first) } = container.state {
            process::kill_strays(first, command, begun.elapsed());
        }
        return Ok(ExecOutcome::TimedOut);
    };
    let answer = answer?;
    if !answer.status.is_success() {
        if answer.message().contains("exceeded timeout") {
            return Ok(ExecOutcome::TimedOut);
        }
        return Err(errors::meaning(&answer, container.id.as_str()));
    }
    if answer.parsed::<HealthAnswer>()?.status == "healthy" {
        return Ok(ExecOutcome::Exited {
            code: 0,
            output: String::new(),
        });
    }
    // Only a failure is worth the second call that tells what the command wrote.
    let path = format!("{}/containers/{id}/json", session.prefix);
    let inspected: Value = http
        .send(Call::get("inspect", path))
        .await?
        .ok()?
        .parsed()?;
    let last = inspected
        .pointer("/State/Health/Log")
        .and_then(Value::as_array)
        .and_then(|log| log.last());
    let output = last
        .and_then(|entry| entry.get("Output")?.as_str())
        .unwrap_or_default();
    let mut tail = Tail::default();
    tail.push(output.as_bytes());
    Ok(ExecOutcome::Exited {
        code: last
            .and_then(|entry| entry.get("ExitCode")?.as_i64())
            .and_then(|code| i32::try_from(code).ok())
            .filter(|code| *code != 0)
            .unwrap_or(1),
        output: tail.text(),
    })
}

/// The end of an output.
#[derive(Debug, Default)]
struct Tail(Vec<u8>);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(OUTPUT_LIMIT)..];
        self.0.extend_from_slice(bytes);
        let surplus = self.0.len().saturating_sub(OUTPUT_LIMIT);
        self.0.drain(..surplus);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_keeps_its_last_four_kibibytes() {
        let mut tail = Tail::default();
        for _ in 0..10 {
            tail.push(&[b'a'; 1000]);
        }
        tail.push(b"end");
        assert_eq!(tail.0.len(), OUTPUT_LIMIT);
        assert!(tail.text().ends_with("aend"));
        tail.push(&vec![b'z'; 100_000]);
        assert_eq!(tail.text(), "z".repeat(OUTPUT_LIMIT));
    }
}
