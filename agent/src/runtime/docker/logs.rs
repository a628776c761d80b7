//! Log lines out of an engine's log stream.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use http_body_util::BodyExt;
use hyper::Response;
use hyper::body::Incoming;
use jiff::Timestamp;

use super::super::{EngineName, LogLine, LogOptions, RuntimeError};
use super::errors;
use super::frames::{Frame, Frames, LINE_LIMIT};
use super::http::{Answer, Call, Http, READ_LIMIT, encoded};

/// How long a followed log's answer is waited for before the lines are: podman sends not even its
/// headers before the first line.
const HEADERS_WAIT: Duration = Duration::from_millis(300);

/// Opens a container's log.
pub(super) async fn open(
    http: &Http,
    engine: EngineName,
    prefix: &str,
    id: &str,
    options: &LogOptions,
) -> Result<BoxStream<'static, Result<LogLine, RuntimeError>>, RuntimeError> {
    let mut path = format!(
        "{prefix}/containers/{}/logs?stdout=1&stderr=1&timestamps=1&follow={}",
        encoded(id),
        u8::from(options.follow)
    );
    if let Some(tail) = options.tail {
        path.push_str(&format!("&tail={tail}"));
    }
    if let Some(since) = options.since {
        path.push_str(&format!("&since={}", since_parameter(engine, since)));
    }
    let http = http.clone();
    let subject = id.to_owned();
    let mut opening = Box::pin(async move {
        let call = Call::get("logs", path);
        let response = http.open(&call).await?;
        accepted(response, &subject).await
    });
    let wait = if options.follow {
        HEADERS_WAIT
    } else {
        READ_LIMIT
    };
    match tokio::time::timeout(wait, &mut opening).await {
        Ok(opened) => Ok(lines(opened?).boxed()),
        Err(_) if options.follow => Ok(stream::once(opening)
            .flat_map(|opened| match opened {
                Ok(response) => lines(response).boxed(),
                Err(error) => stream::iter([Err(error)]).boxed(),
            })
            .boxed()),
        Err(_) => Err(RuntimeError::Uncertain {
            call: "logs",
            cause: format!("no answer within {} s", READ_LIMIT.as_secs()),
        }),
    }
}

async fn accepted(
    response: Response<Incoming>,
    subject: &str,
) -> Result<Response<Incoming>, RuntimeError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let answer = Answer::of_refusal("logs", response).await;
    Err(errors::meaning(&answer, subject))
}

/// Podman reads whole seconds; docker takes the fraction.
fn since_parameter(engine: EngineName, since: Timestamp) -> String {
    match engine {
        EngineName::Podman => since.as_second().to_string(),
        EngineName::Docker => format!("{}.{:09}", since.as_second(), since.subsec_nanosecond()),
    }
}

struct Reading {
    body: Option<Incoming>,
    frames: Frames,
    lines: Lines,
}

fn lines(
    response: Response<Incoming>,
) -> impl futures_util::Stream<Item = Result<LogLine, RuntimeError>> + Send + 'static {
    let reading = Reading {
        body: Some(response.into_body()),
        frames: Frames::default(),
        lines: Lines::default(),
    };
    stream::unfold(reading, |mut reading| async move {
        loop {
            if let Some(line) = reading.lines.ready.pop_front() {
                return Some((Ok(line), reading));
            }
            let next = reading.body.as_mut()?.frame().await;
            match next {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        for frame in reading.frames.feed(&data) {
                            reading.lines.push(frame);
                        }
                    }
                }
                Some(Err(cause)) => {
                    reading.body = None;
                    let error = RuntimeError::Uncertain {
                        call: "logs",
                        cause: format!("the stream broke off: {cause}"),
                    };
                    return Some((Err(error), reading));
                }
                None => {
                    reading.body = None;
                    if let Some(frame) = reading.frames.finish() {
                        reading.lines.push(frame);
                    }
                    reading.lines.finish();
                    if reading.lines.ready.is_empty() {
                        return None;
                    }
                }
            }
        }
    })
}

/// Puts pieces of output together to lines, a buffer a stream.
#[derive(Debug, Default)]
struct Lines {
    out: Partial,
    err: Partial,
    ready: VecDeque<LogLine>,
}

#[derive(Debug, Default)]
struct Partial {
    started: bool,
    at: Option<Timestamp>,
    line: Vec<u8>,
}

impl Lines {
    fn push(&mut self, frame: Frame) {
        let partial = if frame.stderr {
            &mut self.err
        } else {
            &mut self.out
        };
        let mut rest = &frame.payload[..];
        // Docker cuts a long line into frames and writes the time before each of them.
        let mut stamped = frame.whole;
        while !rest.is_empty() {
            if stamped || !partial.started {
                let (at, after) = split_time(rest);
                if !partial.started {
                    partial.at = at;
                    partial.started = true;
                }
                rest = after;
                stamped = false;
            }
            let end = rest.iter().position(|byte| *byte == b'\n');
            let piece = &rest[..end.unwrap_or(rest.len())];
            let room = LINE_LIMIT - partial.line.len();
            partial
                .line
                .extend_from_slice(&piece[..piece.len().min(room)]);
            match end {
                Some(end) => {
                    rest = &rest[end + 1..];
                    self.ready.extend(partial.take(frame.stderr));
                }
                None => break,
            }
        }
    }

    fn finish(&mut self) {
        self.ready.extend(self.out.take(false));
        self.ready.extend(self.err.take(true));
    }
}

impl Partial {
    fn take(&mut self, stderr: bool) -> Option<LogLine> {
        let Self { started, at, line } = std::mem::take(self);
        started.then_some(LogLine { stderr, at, line })
    }
}

/// The time that the engine wrote before a line, and the line.
fn split_time(bytes: &[u8]) -> (Option<Timestamp>, &[u8]) {
    let Some(space) = bytes.iter().take(40).position(|byte| *byte == b' ') else {
        return (None, bytes);
    };
    let time = std::str::from_utf8(&bytes[..space])
        .ok()
        .and_then(|text| text.parse().ok());
    match time {
        Some(time) => (Some(time), &bytes[space + 1..]),
        None => (None, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stderr: bool, text: &str) -> Frame {
        Frame {
            stderr,
            payload: text.as_bytes().to_vec(),
            whole: true,
        }
    }

    fn texts(lines: &mut Lines) -> Vec<(bool, String)> {
        lines
            .ready
            .drain(..)
            .map(|line| (line.stderr, String::from_utf8(line.line).unwrap()))
            .collect()
    }

    #[test]
    fn time_is_taken_off_each_line() {
        let mut lines = Lines::default();
        lines.push(frame(false, "2026-11-23T07:47:14Z hello world\n"));
        lines.push(frame(true, "2026-11-23T07:47:15.123456789Z \n"));
        lines.push(frame(false, "no time here\n"));
        assert_eq!(lines.ready[0].at.unwrap().as_second(), 1_795_420_034);
        assert_eq!(
            texts(&mut lines),
            [
                (false, "hello world".to_owned()),
                (true, String::new()),
                (false, "no time here".to_owned())
            ]
        );
    }

    #[test]
    fn line_cut_by_docker_is_put_together_without_its_times() {
        let mut lines = Lines::default();
        lines.push(frame(false, "2026-11-23T07:47:14.1Z first "));
        lines.push(frame(true, "2026-11-23T07:47:14.2Z between\n"));
        lines.push(frame(false, "2026-11-23T07:47:14.3Z second\n"));
        assert_eq!(
            texts(&mut lines),
            [
                (true, "between".to_owned()),
                (false, "first second".to_owned())
            ]
        );
    }

    #[test]
    fn bare_output_is_split_at_line_ends() {
        let mut lines = Lines::default();
        for piece in ["2026-11-23T07:47:14Z a", "b\n2026-11-23T07:47:15Z c\n"] {
            lines.push(Frame {
                whole: false,
                ..frame(false, piece)
            });
        }
        assert_eq!(
            texts(&mut lines),
            [(false, "ab".to_owned()), (false, "c".to_owned())]
        );
    }

    #[test]
    fn line_without_end_is_bounded() {
        let mut lines = Lines::default();
        for _ in 0..5 {
            lines.push(frame(false, &"x".repeat(LINE_LIMIT / 2)));
        }
        lines.finish();
        assert_eq!(lines.ready[0].line.len(), LINE_LIMIT);
    }
}
