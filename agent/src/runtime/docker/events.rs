//! The engine's events, in docker's words.

use futures_util::stream::{self, BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use jiff::Timestamp;
use mcp_spec::observed::ContainerId;
use serde_json::Value;

use super::super::{EngineEvent, RuntimeError};
use super::http::{Answer, Call, Http, READ_LIMIT, encoded};

/// Longest event that is read.
const EVENT_LIMIT: usize = 1 << 20;

/// Opens the stream of container events.
pub(super) async fn open(
    http: &Http,
    prefix: &str,
) -> Result<BoxStream<'static, Result<EngineEvent, RuntimeError>>, RuntimeError> {
    let filters = encoded(r#"{"type":["container"]}"#);
    let call = Call::get("events", format!("{prefix}/events?filters={filters}"));
    let response = tokio::time::timeout(READ_LIMIT, http.open(&call))
        .await
        .map_err(|_| RuntimeError::Uncertain {
            call: "events",
            cause: format!("no answer within {} s", READ_LIMIT.as_secs()),
        })??;
    if !response.status().is_success() {
        return Err(Answer::of_refusal("events", response).await.refusal());
    }
    let reading = Reading {
        body: Some(response.into_body()),
        buffer: Vec::new(),
    };
    Ok(stream::unfold(reading, next).boxed())
}

struct Reading {
    body: Option<Incoming>,
    buffer: Vec<u8>,
}

async fn next(mut reading: Reading) -> Option<(Result<EngineEvent, RuntimeError>, Reading)> {
    let broken = |cause: String| {
        Err(RuntimeError::Uncertain {
            call: "events",
            cause,
        })
    };
    loop {
        if let Some(end) = reading.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = reading.buffer.drain(..=end).collect();
            if let Some(event) = event(&line) {
                return Some((Ok(event), reading));
            }
            continue;
        }
        if reading.buffer.len() > EVENT_LIMIT {
            reading.body = None;
            reading.buffer.clear();
            return Some((broken("an event has no end".to_owned()), reading));
        }
        match reading.body.as_mut()?.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    reading.buffer.extend_from_slice(&data);
                }
            }
            Some(Err(cause)) => {
                reading.body = None;
                return Some((broken(format!("the stream broke off: {cause}")), reading));
            }
            None => return None,
        }
    }
}

/// One line of the stream. `None` for what says nothing of a container's state: the exec and health
/// check that a probe makes would wake the watch for nothing.
fn event(line: &[u8]) -> Option<EngineEvent> {
    let event: Value = serde_json::from_slice(line).ok()?;
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str);
    if text("/Type").is_some_and(|kind| kind != "container") {
        return None;
    }
    let action = match text("/Action").or_else(|| text("/status"))? {
        "died" => "die",
        "remove" => "destroy",
        "cleanup" | "init" | "attach" | "mount" | "unmount" | "sync" | "refresh" => return None,
        action if action.starts_with("exec_") || action == "exec" => return None,
        action if action.starts_with("health_status") => return None,
        action => action,
    };
    let attribute = |name: &str| text(&format!("/Actor/Attributes/{name}"));
    let at = event
        .get("timeNano")
        .and_then(Value::as_i64)
        .filter(|nanos| *nanos > 0)
        .and_then(|nanos| Timestamp::from_nanosecond(nanos.into()).ok())
        .or_else(|| {
            let seconds = event.get("time").and_then(Value::as_i64)?;
            Timestamp::from_second(seconds).ok()
        });
    Some(EngineEvent {
        at,
        container: ContainerId::new(text("/Actor/ID").or_else(|| text("/id"))?),
        name: attribute("name").unwrap_or_default().to_owned(),
        action: action.to_owned(),
        exit_code: attribute("exitCode")
            .or_else(|| attribute("containerExitCode"))
            .and_then(|code| code.parse().ok())
            .filter(|_| action == "die"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podman_speaks_docker_words() {
        let died = event(
            br#"{"status":"died","id":"abc","Type":"container","Action":"died","Actor":{"ID":"abc","Attributes":{"containerExitCode":"137","name":"full"}},"time":1795420033,"timeNano":1795420033123456789}"#,
        )
        .unwrap();
        assert_eq!(died.action, "die");
        assert_eq!(died.exit_code, Some(137));
        assert_eq!(died.name, "full");
        assert_eq!(died.at.unwrap().as_second(), 1_795_420_033);
        let removed = event(
            br#"{"Type":"container","Action":"remove","Actor":{"ID":"abc","Attributes":{}}}"#,
        )
        .unwrap();
        assert_eq!(removed.action, "destroy");
    }

    #[test]
    fn probes_are_no_events() {
        for action in [
            "exec_create: /bin/true",
            "exec_die",
            "health_status",
            "cleanup",
        ] {
            let line = format!(
                r#"{{"Type":"container","Action":"{action}","Actor":{{"ID":"abc","Attributes":{{}}}}}}"#
            );
            assert_eq!(event(line.as_bytes()), None, "{action}");
        }
        assert_eq!(event(b"not json"), None);
        assert_eq!(
            event(br#"{"Type":"network","Action":"connect","Actor":{"ID":"n"}}"#),
            None
        );
    }
}
