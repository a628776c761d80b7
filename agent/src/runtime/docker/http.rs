//! One HTTP exchange with the engine: connections kept alive, a deadline over the whole of it, and
//! an exact answer to the question whether the request can have had an effect.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::RuntimeError;
use super::socket::{Connector, EngineSocket};

/// Most bytes of an answer that is read whole: a list of some ten thousand containers.
const BODY_LIMIT: usize = 64 << 20;

/// Deadline of a call that only reads.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(10);
/// Deadline of a call that changes something.
pub(super) const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// Deadline of a call that only reads while the engine hangs: several of them make up what an operator
/// waits for.
const HUNG_LIMIT: Duration = Duration::from_secs(2);
/// How long an engine that let a full deadline pass counts as hung, unless it answers something: then it
/// gets the full time once more, since it may only be slow.
const HUNG_FOR: Duration = Duration::from_secs(20);

/// One request.
pub(super) struct Call {
    /// What errors name it.
    pub name: &'static str,
    method: Method,
    path: String,
    body: Option<Vec<u8>>,
    limit: Duration,
}

impl Call {
    /// A call that only reads, and may be asked twice.
    pub(super) fn get(name: &'static str, path: impl Into<String>) -> Self {
        Self::new(name, Method::GET, path.into(), READ_LIMIT)
    }

    /// A call that changes something.
    pub(super) fn post(name: &'static str, path: impl Into<String>) -> Self {
        Self::new(name, Method::POST, path.into(), CHANGE_LIMIT)
    }

    /// A call that removes something.
    pub(super) fn delete(name: &'static str, path: impl Into<String>) -> Self {
        Self::new(name, Method::DELETE, path.into(), CHANGE_LIMIT)
    }

    fn new(name: &'static str, method: Method, path: String, limit: Duration) -> Self {
        Self {
            name,
            method,
            path,
            body: None,
            limit,
        }
    }

    /// Sends this as JSON.
    pub(super) fn json(mut self, body: &impl serde::Serialize) -> Self {
        self.body = Some(serde_json::to_vec(body).expect("a request body holds only plain data"));
        self
    }

    /// Another deadline.
    pub(super) fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(format!("http://engine{}", self.path))
            .header(HOST, "engine");
        if self.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::from(self.body.clone().unwrap_or_default()))
            .expect("every part of a path is percent-encoded")
    }
}

/// A path or query value, percent-encoded.
pub(super) fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a string takes every write");
        }
    }
    text
}

/// An answer read to its end.
#[derive(Debug)]
pub(super) struct Answer {
    pub call: &'static str,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    /// What the engine says: the `message` of its JSON, or the text as it is.
    pub(super) fn message(&self) -> String {
        message_in(&self.body)
    }

    /// The body, where the call succeeded; else the refusal.
    pub(super) fn ok(self) -> Result<Self, RuntimeError> {
        if self.status.is_success() || self.status == StatusCode::NOT_MODIFIED {
            return Ok(self);
        }
        Err(self.refusal())
    }

    /// This answer as a refusal.
    pub(super) fn refusal(&self) -> RuntimeError {
        RuntimeError::Refused {
            call: self.call,
            status: self.status.as_u16(),
            message: self.message(),
        }
    }

    /// A refusal of a call whose answer would have been a stream.
    pub(super) async fn of_refusal(call: &'static str, response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let reading = Limited::new(body, 1 << 20).collect();
        let body = match tokio::time::timeout(READ_LIMIT, reading).await {
            Ok(Ok(body)) => body.to_bytes(),
            // The status is known, and with it that the call did nothing.
            _ => Bytes::new(),
        };
        Self {
            call,
            status: head.status,
            headers: head.headers,
            body,
        }
    }

    /// The body as JSON. A document that does not parse was cut short or is none of this protocol:
    /// nothing can be said of the call.
    pub(super) fn parsed<T: DeserializeOwned>(&self) -> Result<T, RuntimeError> {
        serde_json::from_slice(&self.body).map_err(|cause| RuntimeError::Uncertain {
            call: self.call,
            cause: format!("its answer does not parse: {cause}"),
        })
    }
}

/// The text of an error document.
pub(super) fn message_in(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let text = parsed
        .as_ref()
        .and_then(|value| value.get("message"))
        .and_then(Value::as_str)
        .map_or_else(
            || String::from_utf8_lossy(body).trim().to_owned(),
            str::to_owned,
        );
    text.chars().take(2000).collect()
}

/// The connections to one engine.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: Client<Connector, Full<Bytes>>,
    socket: EngineSocket,
    /// When the engine last let a full deadline pass, with no answer since.
    hung: Arc<Mutex<Option<Instant>>>,
}

impl Http {
    pub(super) fn new(socket: EngineSocket) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(90))
            .pool_max_idle_per_host(8)
            .pool_timer(TokioTimer::new())
            .build(Connector(socket.clone()));
        Self {
            client,
            socket,
            hung: Arc::default(),
        }
    }

    fn hung(&self) -> MutexGuard<'_, Option<Instant>> {
        self.hung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The deadline of a call: short for one that reads from an engine that hangs.
    fn limit_of(&self, call: &Call) -> Duration {
        let hangs = self.hung().is_some_and(|since| since.elapsed() < HUNG_FOR);
        if hangs && call.method == Method::GET {
            call.limit.min(HUNG_LIMIT)
        } else {
            call.limit
        }
    }

    pub(super) const fn socket(&self) -> &EngineSocket {
        &self.socket
    }

    /// Sends one request and reads the whole answer.
    pub(super) async fn send(&self, call: Call) -> Result<Answer, RuntimeError> {
        let limit = self.limit_of(&call);
        let exchange = async {
            match self.exchange(&call).await {
                // A kept connection can die under a request. Reading once more changes nothing.
                Err(RuntimeError::Uncertain { .. }) if call.method == Method::GET => {
                    self.exchange(&call).await
                }
                other => other,
            }
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => {
                if answer.is_ok() {
                    *self.hung() = None;
                }
                answer
            }
            Err(_) => {
                if call.method == Method::GET && limit == call.limit {
                    *self.hung() = Some(Instant::now());
                }
                Err(RuntimeError::Uncertain {
                    call: call.name,
                    cause: format!("no answer within {} s", limit.as_secs()),
                })
            }
        }
    }

    async fn exchange(&self, call: &Call) -> Result<Answer, RuntimeError> {
        let response = self.open(call).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_LIMIT)
            .collect()
            .await
            .map_err(|cause| RuntimeError::Uncertain {
                call: call.name,
                cause: if cause.is::<LengthLimitError>() {
                    format!("its answer is longer than {} MiB", BODY_LIMIT >> 20)
                } else {
                    format!("its answer broke off: {cause}")
                },
            })?
            .to_bytes();
        Ok(Answer {
            call: call.name,
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    /// Sends one request and gives the answer with its body still to come. No deadline: the caller
    /// sets one where it waits.
    pub(super) async fn open(&self, call: &Call) -> Result<Response<Incoming>, RuntimeError> {
        self.client.request(call.request()).await.map_err(|cause| {
            let text = full_cause(&cause);
            if cause.is_connect() {
                RuntimeError::Unreachable {
                    socket: self.socket.to_string(),
                    cause: text,
                }
            } else {
                RuntimeError::Uncertain {
                    call: call.name,
                    cause: text,
                }
            }
        })
    }
}

/// An error with all that lies below it.
fn full_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(cause) = below {
        write!(text, ": {cause}").expect("a string takes every write");
        below = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn path_parts_are_percent_encoded() {
        assert_eq!(encoded("a/b:c d"), "a%2Fb%3Ac%20d");
        assert_eq!(encoded("{\"x\"}"), "%7B%22x%22%7D");
    }

    #[test]
    fn message_is_found_in_json_and_in_text() {
        assert_eq!(message_in(br#"{"cause":"c","message":"m"}"#), "m");
        assert_eq!(message_in(b"404 page not found\n"), "404 page not found");
    }

    /// An engine that reads a request and does with the connection what it is told.
    async fn engine(answer: &'static [u8], then_hang: bool) -> (tempfile::TempDir, Http) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(answer).await;
                    if then_hang {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        (dir, Http::new(EngineSocket::Unix(path)))
    }

    fn quick(call: Call) -> Call {
        call.within(Duration::from_millis(300))
    }

    #[tokio::test]
    async fn engine_that_is_not_there_is_unreachable() {
        let http = Http::new("unix:///nonexistent/engine.sock".parse().unwrap());
        for call in [Call::get("a", "/a"), Call::post("b", "/b")] {
            let error = http.send(call).await.unwrap_err();
            assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error}");
        }
    }

    #[tokio::test]
    async fn silent_engine_is_uncertain_at_the_deadline() {
        let (_dir, http) = engine(b"", true).await;
        let error = http
            .send(quick(Call::post("start", "/x")))
            .await
            .unwrap_err();
        assert!(error.is_uncertain(), "{error}");
    }

    #[tokio::test]
    async fn an_engine_that_hangs_is_not_waited_for_at_length_each_time() {
        let (_dir, http) = engine(b"", true).await;
        assert!(http.send(quick(Call::get("list", "/x"))).await.is_err());
        let reads = Call::get("list", "/x");
        assert_eq!(http.limit_of(&reads), HUNG_LIMIT);
        assert_eq!(http.limit_of(&Call::post("start", "/x")), CHANGE_LIMIT);
        // After a while it may only be slow, and gets the full time once.
        *http.hung() = Instant::now().checked_sub(HUNG_FOR);
        assert_eq!(http.limit_of(&reads), READ_LIMIT);
        // An answer ends it.
        let (_dir, answers) =
            engine(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK", false).await;
        *answers.hung() = Some(Instant::now());
        answers.send(Call::get("ping", "/x")).await.unwrap();
        assert_eq!(answers.limit_of(&reads), READ_LIMIT);
    }

    #[tokio::test]
    async fn half_an_answer_is_uncertain() {
        let cases: [&[u8]; 4] = [
            b"",
            b"HTTP/1.1 201 Cre",
            b"HTTP/1.1 201 Created\r\ncontent-length: 90\r\n\r\n{\"Id\":\"ab",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n[{\"Id",
        ];
        for answer in cases {
            for hangs in [false, true] {
                let (_dir, http) = engine(answer, hangs).await;
                for call in [Call::post("create", "/x"), Call::get("list", "/x")] {
                    let error = http.send(quick(call)).await.unwrap_err();
                    assert!(error.is_uncertain(), "{error}");
                }
            }
        }
    }

    #[tokio::test]
    async fn document_cut_short_is_uncertain() {
        let (_dir, http) =
            engine(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n[{\"I", false).await;
        let answer = http.send(quick(Call::get("list", "/x"))).await.unwrap();
        assert!(answer.parsed::<Vec<Value>>().unwrap_err().is_uncertain());
    }

    #[tokio::test]
    async fn connection_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let http = Http::new(EngineSocket::Unix(path));
        let serving = tokio::spawn(async move {
            // One connection is taken, and no other.
            let (mut stream, _) = listener.accept().await.unwrap();
            for _ in 0..3 {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK")
                    .await;
            }
        });
        for _ in 0..3 {
            let answer = http.send(Call::post("ping", "/x")).await.unwrap();
            assert_eq!(&answer.body[..], b"OK");
        }
        serving.await.unwrap();
    }
}
