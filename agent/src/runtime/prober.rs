//! Health checks: one probe of one container.

mod unverified;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use mcp_spec::component::{ComponentSpec, Health, Network, Port, Probe, Protocol};
use mcp_spec::observed::LiveContainer;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::{EngineFacts, EngineName, ExecOutcome, Runtime};

/// How long a connection through a published port must stay open to count: the engines' proxies take
/// every connection and close it again when nothing listens in the container.
const PROXY_WAIT: Duration = Duration::from_millis(100);

/// The same for rootless engines, whose proxy was seen to take 190 ms for this.
const ROOTLESS_PROXY_WAIT: Duration = Duration::from_secs(1);

/// Longest detail that is told.
const DETAIL_LIMIT: usize = 500;

/// What one probe said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeOutcome {
    /// Whether it succeeded.
    pub ok: bool,
    /// What was seen, in a few words: `exit 1: no database`, `HTTP 503`, `connection refused`.
    pub detail: String,
}

impl ProbeOutcome {
    fn good(detail: impl Into<String>) -> Self {
        Self {
            ok: true,
            detail: detail.into(),
        }
    }

    fn bad(detail: impl AsRef<str>) -> Self {
        Self {
            ok: false,
            detail: detail.as_ref().trim().chars().take(DETAIL_LIMIT).collect(),
        }
    }
}

/// Asks a running container once, for at most the check's timeout. `live` comes from an inspect.
pub async fn probe(
    runtime: &dyn Runtime,
    facts: &EngineFacts,
    spec: &ComponentSpec,
    health: &Health,
    live: &LiveContainer,
) -> ProbeOutcome {
    let limit = health.timeout.as_duration();
    let asked = async {
        match &health.probe {
            Probe::Cmd(command) => run(runtime, live, command, limit).await,
            Probe::Http { port, path, tls } => match reach(facts, spec, live, *port) {
                Ok(reached) => http(reached.address, path, *tls).await,
                Err(why) => ProbeOutcome::bad(why),
            },
            Probe::Tcp(port) => match reach(facts, spec, live, *port) {
                Ok(reached) => {
                    let wait = if facts.rootless {
                        ROOTLESS_PROXY_WAIT
                    } else {
                        PROXY_WAIT
                    };
                    tcp(reached, wait.min(limit / 2)).await
                }
                Err(why) => ProbeOutcome::bad(why),
            },
        }
    };
    // A command is ended by the engine's side of it, which needs a moment more.
    let limit = match health.probe {
        Probe::Cmd(_) => limit + Duration::from_secs(5),
        Probe::Http { .. } | Probe::Tcp(_) => limit,
    };
    tokio::time::timeout(limit, asked)
        .await
        .unwrap_or_else(|_| timed_out(health.timeout.as_duration()))
}

fn timed_out(limit: Duration) -> ProbeOutcome {
    ProbeOutcome::bad(format!("no answer within {limit:?}"))
}

async fn run(
    runtime: &dyn Runtime,
    live: &LiveContainer,
    command: &[String],
    limit: Duration,
) -> ProbeOutcome {
    match runtime.check(live, command, limit).await {
        Ok(ExecOutcome::Exited { code: 0, .. }) => ProbeOutcome::good("exit 0"),
        Ok(ExecOutcome::Exited { code, output }) => match output.trim() {
            "" => ProbeOutcome::bad(format!("exit {code}")),
            output => ProbeOutcome::bad(format!("exit {code}: {output}")),
        },
        Ok(ExecOutcome::TimedOut) => timed_out(limit),
        Err(error) => ProbeOutcome::bad(error.to_string()),
    }
}

/// Where a container's port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reached {
    address: SocketAddr,
    /// Whether an engine's proxy may stand between.
    published: bool,
}

/// The published port, else the container's own address.
fn reach(
    facts: &EngineFacts,
    spec: &ComponentSpec,
    live: &LiveContainer,
    port: u16,
) -> Result<Reached, String> {
    if spec.network == Network::Host {
        return Ok(Reached {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            published: false,
        });
    }
    if let Some(published) = spec
        .ports
        .iter()
        .find(|published| published.container == port && published.protocol == Protocol::Tcp)
    {
        return Ok(Reached {
            address: host_side(published),
            published: true,
        });
    }
    if spec.network == Network::None {
        return Err(format!(
            "port {port} cannot be reached with `network = \"none\"`: use cmd"
        ));
    }
    if facts.rootless {
        let engine = match facts.name {
            EngineName::Podman => "podman",
            EngineName::Docker => "docker",
        };
        return Err(format!(
            "port {port} cannot be reached from outside under rootless {engine}: publish it, or use cmd"
        ));
    }
    live.addresses
        .values()
        .next()
        .map(|address| Reached {
            address: SocketAddr::from((*address, port)),
            published: false,
        })
        .ok_or_else(|| "the container has no address".to_owned())
}

/// Where a published port is reached from this machine.
fn host_side(port: &Port) -> SocketAddr {
    let ip = match port.ip {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::from((ip, port.host))
}

async fn tcp(reached: Reached, wait: Duration) -> ProbeOutcome {
    let mut stream = match TcpStream::connect(reached.address).await {
        Ok(stream) => stream,
        Err(cause) => return ProbeOutcome::bad(cause.to_string()),
    };
    if reached.published {
        let mut byte = [0; 1];
        match tokio::time::timeout(wait, stream.read(&mut byte)).await {
            // It speaks first, or it waits to be spoken to.
            Ok(Ok(1..)) | Err(_) => {}
            Ok(Ok(0)) => {
                return ProbeOutcome::bad("the connection was closed at once: nothing listens");
            }
            Ok(Err(cause)) => return ProbeOutcome::bad(cause.to_string()),
        }
    }
    ProbeOutcome::good("connected")
}

async fn http(address: SocketAddr, path: &str, tls: bool) -> ProbeOutcome {
    let answered = match TcpStream::connect(address).await {
        Err(cause) => Err(cause.to_string()),
        Ok(stream) if tls => match unverified::secured(stream, address.ip()).await {
            Ok(stream) => get(TokioIo::new(stream), address, path).await,
            Err(cause) => Err(format!("TLS: {cause}")),
        },
        Ok(stream) => get(TokioIo::new(stream), address, path).await,
    };
    match answered {
        Ok(status) if status.is_success() || status.is_redirection() => {
            ProbeOutcome::good(format!("HTTP {}", status.as_u16()))
        }
        Ok(status) => ProbeOutcome::bad(format!("HTTP {}", status.as_u16())),
        Err(cause) => ProbeOutcome::bad(cause),
    }
}

async fn get(
    stream: impl hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    address: SocketAddr,
    path: &str,
) -> Result<hyper::StatusCode, String> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(64 << 10)
        .handshake(stream)
        .await
        .map_err(|cause| cause.to_string())?;
    let request = Request::get(path)
        .header(HOST, address.to_string())
        .header(USER_AGENT, "mcp-agent")
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|cause| format!("`{path}` is no path: {cause}"))?;
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    // The connection lives as long as this future: whatever becomes of the probe, nothing stays.
    let answered = tokio::select! {
        answered = &mut answer => answered,
        // Its end may have brought the answer along.
        _ = connection => answer.await,
    };
    answered
        .map(|answer| answer.status())
        .map_err(|cause| cause.to_string())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    async fn answering(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                if !answer.is_empty() {
                    let mut request = [0; 1024];
                    let _ = stream.read(&mut request).await;
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn success_and_redirection_are_healthy() {
        for (answer, ok) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            ("HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\n", true),
            ("HTTP/1.0 404 Not Found\r\n\r\n", false),
            ("HTTP/1.1 503 Busy\r\n\r\n", false),
            ("nonsense\r\n\r\n", false),
        ] {
            let outcome = http(answering(answer).await, "/healthz?deep=1", false).await;
            assert_eq!(outcome.ok, ok, "{answer}: {}", outcome.detail);
        }
    }

    #[tokio::test]
    async fn certificate_of_the_component_s_own_is_taken() {
        let made = rcgen::generate_simple_self_signed(["anything.example".to_owned()]).unwrap();
        let key =
            rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let settings = rustls::ServerConfig::builder_with_provider(
            rustls::crypto::ring::default_provider().into(),
        )
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(settings));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
                let _ = stream.shutdown().await;
            }
        });
        let outcome = http(address, "/healthz", true).await;
        assert!(outcome.ok, "{}", outcome.detail);
        assert!(
            !http(address, "/healthz", false).await.ok,
            "plain HTTP is not answered"
        );
        let plain = answering("HTTP/1.1 204 No Content\r\n\r\n").await;
        let outcome = http(plain, "/healthz", true).await;
        assert!(
            !outcome.ok && outcome.detail.starts_with("TLS: "),
            "{}",
            outcome.detail
        );
    }

    #[tokio::test]
    async fn connection_closed_at_once_behind_a_published_port_is_unhealthy() {
        let address = answering("").await;
        let published = tcp(
            Reached {
                address,
                published: true,
            },
            PROXY_WAIT,
        )
        .await;
        assert!(!published.ok);
        let direct = tcp(
            Reached {
                address,
                published: false,
            },
            PROXY_WAIT,
        )
        .await;
        assert!(direct.ok);
    }

    #[tokio::test]
    async fn listener_that_waits_is_healthy() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outcome = tcp(
            Reached {
                address: listener.local_addr().unwrap(),
                published: true,
            },
            PROXY_WAIT,
        )
        .await;
        assert!(outcome.ok, "{}", outcome.detail);
    }
}
