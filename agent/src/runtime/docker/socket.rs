//! Where the engine listens: the configured socket and nothing else.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};

/// Longest time that a connection may take: both ends are on this machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The address of an engine: a Unix socket, or TCP on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineSocket {
    /// `unix:///PATH`.
    Unix(PathBuf),
    /// `tcp://127.0.0.1:PORT` or `tcp://[::1]:PORT`.
    Loopback(SocketAddr),
}

/// Why a text is no address of an engine.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SocketError {
    /// Neither `unix://` nor `tcp://`.
    #[error("`{text}` is not an engine's address: write `unix:///PATH`")]
    Scheme {
        /// The refused text.
        text: String,
    },
    /// A path that depends on the working directory.
    #[error("`{text}` has no absolute path: write `unix:///PATH`")]
    Relative {
        /// The refused text.
        text: String,
    },
    /// An engine that others on the network could reach.
    #[error(
        "`{text}` is not on this machine: an engine's TCP port has no authentication, so only 127.0.0.1 and [::1] are taken"
    )]
    NotLoopback {
        /// The refused text.
        text: String,
    },
}

impl FromStr for EngineSocket {
    type Err = SocketError;

    fn from_str(text: &str) -> Result<Self, SocketError> {
        let owned = || text.to_owned();
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            if !path.is_absolute() {
                return Err(SocketError::Relative { text: owned() });
            }
            return Ok(Self::Unix(path));
        }
        let address = text
            .strip_prefix("tcp://")
            .ok_or_else(|| SocketError::Scheme { text: owned() })?;
        match address.trim_end_matches('/').parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => Ok(Self::Loopback(address)),
            _ => Err(SocketError::NotLoopback { text: owned() }),
        }
    }
}

impl fmt::Display for EngineSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Loopback(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl EngineSocket {
    /// Opens one connection.
    async fn connect(self) -> io::Result<EngineStream> {
        let connecting = async {
            match self {
                Self::Unix(path) => UnixStream::connect(path)
                    .await
                    .map(|stream| EngineStream::Unix(TokioIo::new(stream))),
                Self::Loopback(address) => TcpStream::connect(address)
                    .await
                    .map(|stream| EngineStream::Tcp(TokioIo::new(stream))),
            }
        };
        tokio::time::timeout(CONNECT_LIMIT, connecting)
            .await
            .map_err(|_| {
                io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the connection was not taken within 5 s",
                )
            })?
    }

    /// Whether the process that listens has a process id in the agent's PID namespace: then the
    /// processes of its containers have one too. `false` where this cannot be told.
    pub(super) async fn shares_pids(&self) -> bool {
        self.peer_pid().await.is_some()
    }

    /// The process that listens, where the agent's PID namespace has it: the engine, or a service manager
    /// that listens for it.
    pub(super) async fn peer_pid(&self) -> Option<u32> {
        let Ok(EngineStream::Unix(stream)) = self.clone().connect().await else {
            return None;
        };
        // The kernel writes 0 for a process that the asking namespace does not see.
        let pid = stream.inner().peer_cred().ok()?.pid()?;
        u32::try_from(pid).ok().filter(|pid| *pid > 0)
    }
}

/// One connection to the engine.
pub(super) enum EngineStream {
    Unix(TokioIo<UnixStream>),
    Tcp(TokioIo<TcpStream>),
}

impl Connection for EngineStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for EngineStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Write for EngineStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Opens connections for the HTTP client, whatever the URI says.
#[derive(Debug, Clone)]
pub(super) struct Connector(pub(super) EngineSocket);

impl tower::Service<Uri> for Connector {
    type Response = EngineStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<EngineStream>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin(self.0.clone().connect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_this_machine_are_taken() {
        assert_eq!(
            "unix:///run/podman/podman.sock".parse(),
            Ok(EngineSocket::Unix("/run/podman/podman.sock".into()))
        );
        assert!("tcp://127.0.0.1:2375".parse::<EngineSocket>().is_ok());
        assert!("tcp://[::1]:2375".parse::<EngineSocket>().is_ok());
        for refused in ["tcp://192.0.2.1:2375", "tcp://0.0.0.0:1", "tcp://localhost"] {
            assert!(matches!(
                refused.parse::<EngineSocket>(),
                Err(SocketError::NotLoopback { .. })
            ));
        }
        assert!(matches!(
            "unix://podman.sock".parse::<EngineSocket>(),
            Err(SocketError::Relative { .. })
        ));
        assert!(matches!(
            "/run/podman.sock".parse::<EngineSocket>(),
            Err(SocketError::Scheme { .. })
        ));
    }
}
