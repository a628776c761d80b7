//! The server's side of TLS: 1.3 only, a certificate that is reloaded when its file changes, and an
//! accept loop in which a peer that stalls holds up nobody else.
//!
//! Bounds: [`MAX_CONNECTIONS`] in all and [`MAX_PER_ADDRESS`] for one address (of IPv6, one /64), handshakes
//! included; a connection beyond them is closed at once. A handshake has [`HANDSHAKE_LIMIT`], and a connection
//! on which no good token came within [`ADMISSION_LIMIT`] is closed: whoever says nothing, or says it byte by byte,
//! holds no place for long.

pub mod validity;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::auth::refusals::network_of;
use crate::config::TlsConfig;

/// Most connections at a time, each with a task and about 100 KiB of buffers.
pub const MAX_CONNECTIONS: usize = 256;
/// Most connections of one address: a quarter, so that one peer cannot take them all.
pub const MAX_PER_ADDRESS: usize = 64;
/// Longest handshake: two round trips over the worst line, with room.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Longest time from the accept until a good token: a client sends its first call at once.
pub const ADMISSION_LIMIT: Duration = Duration::from_secs(30);
/// Least time between two looks at the certificate's files.
const RELOAD_EVERY: Duration = Duration::from_secs(1);
/// Pause after a failed accept, which most often means that file descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait for the server to take them; it takes them at once.
const READY_CONNECTIONS: usize = 16;

/// Makes ring the process's one provider of cryptography. Call it first thing in `main`.
pub fn install_crypto() {
    // An error says that a provider stands already, and it can only be this one.
    let _ = ring::default_provider().install_default();
}

/// Why certificate and key cannot be used.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate or key in a file.
    #[error("{} holds no {what} in PEM", file.display())]
    Empty {
        /// The file.
        file: PathBuf,
        /// Certificate or private key.
        what: &'static str,
    },
    /// The key does not belong to the certificate, or is of no use.
    #[error("the key {} does not go with the certificate {}", key.display(), cert.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

impl CertificateError {
    /// The mend.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Read { .. } => "name certificate and key under [tls] in agent.toml, readable \
                                  by the agent's user"
                .to_owned(),
            Self::Empty { .. } => "write it in PEM (-----BEGIN …)".to_owned(),
            Self::Mismatch { cert, key, .. } => format!(
                "compare: openssl x509 -in {} -noout -pubkey; openssl pkey -in {} -pubout",
                cert.display(),
                key.display()
            ),
        }
    }
}

/// The server's certificate, reloaded when its files change.
///
/// Where the new files do not parse or do not match (they are rarely replaced in one step), the old
/// certificate stays, and the failure is logged once.
#[derive(Debug)]
pub struct Certificate {
    files: TlsConfig,
    current: ArcSwap<CertifiedKey>,
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    stamp: Option<[Stamp; 2]>,
}

/// What changes when a file is written or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    seconds: i64,
    nanoseconds: i64,
}

fn stamp(file: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(file).ok()?;
    Some(Stamp {
        inode: metadata.ino(),
        length: metadata.len(),
        seconds: metadata.mtime(),
        nanoseconds: metadata.mtime_nsec(),
    })
}

fn stamps(files: &TlsConfig) -> Option<[Stamp; 2]> {
    Some([stamp(&files.cert)?, stamp(&files.key)?])
}

impl Certificate {
    /// Loads certificate and key.
    ///
    /// # Errors
    ///
    /// [`CertificateError`] where they cannot be read or do not match.
    pub fn load(files: &TlsConfig) -> Result<Self, CertificateError> {
        // The stamps come first: a change during the load is then seen as one at the next look.
        let stamp = stamps(files);
        Ok(Self {
            current: ArcSwap::from_pointee(read(files)?),
            files: files.clone(),
            looked: Mutex::new(Looked {
                at: Instant::now(),
                stamp,
            }),
        })
    }

    /// Looks at the files, at most every second, and loads them where they changed.
    pub fn refresh(&self, now: Instant) {
        let mut looked = self
            .looked
            .lock()
            .expect("nothing panics while it holds this lock");
        if now.duration_since(looked.at) < RELOAD_EVERY {
            return;
        }
        looked.at = now;
        let stamp = stamps(&self.files);
        if stamp == looked.stamp {
            return;
        }
        looked.stamp = stamp;
        match read(&self.files) {
            Ok(certificate) => {
                self.current.store(Arc::new(certificate));
                tracing::info!(file = %self.files.cert.display(), "certificate reloaded");
            }
            Err(error) => tracing::warn!(
                error = %crate::error_chain(&error),
                "the new certificate is refused; the old one stays in use"
            ),
        }
    }

    /// The end-entity certificate in DER, as the next handshake shows it.
    #[must_use]
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.current.load().cert.first().cloned()
    }
}

fn bytes(file: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(file).map_err(|source| CertificateError::Read {
        file: file.to_owned(),
        source,
    })
}

/// The certificates of the configured file, the server's own first.
fn chain(files: &TlsConfig) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(&bytes(&files.cert)?)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| CertificateError::Empty {
            file: files.cert.clone(),
            what: "certificate",
        })
}

fn read(files: &TlsConfig) -> Result<CertifiedKey, CertificateError> {
    let chain = chain(files)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes(&files.key)?).map_err(|_| {
        CertificateError::Empty {
            file: files.key.clone(),
            what: "private key",
        }
    })?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|source| {
        CertificateError::Mismatch {
            cert: files.cert.clone(),
            key: files.key.clone(),
            source,
        }
    })
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.refresh(Instant::now());
        Some(self.current.load_full())
    }
}

/// TLS 1.3 with ring, HTTP/2 alone, no client certificates.
#[must_use]
pub fn server_config(certificate: Arc<Certificate>) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring speaks TLS 1.3")
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Where a call comes from.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    admitted: Arc<AtomicBool>,
}

impl Peer {
    /// Says that a good token came over the connection: it may stay.
    pub fn admit(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }
}

/// One connection after its handshake. Its place is free again when it is dropped.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// Gone once the peer was admitted.
    admission: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Connection {
    /// An error where the peer should have been admitted by now.
    fn check_admission(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(admission) = &mut self.admission else {
            return Ok(());
        };
        if self.peer.admitted.load(Ordering::Relaxed) {
            self.admission = None;
        } else if admission.as_mut().poll(context).is_ready() {
            tracing::debug!(address = %self.peer.address, "closed: no good token came");
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check_admission(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_admission(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_admission(context)?;
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_admission(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Who holds how many connections.
#[derive(Debug, Default)]
struct Places {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place; dropping it frees it.
#[derive(Debug)]
struct Place {
    places: Arc<Mutex<Places>>,
    address: IpAddr,
}

impl Place {
    fn take(places: &Arc<Mutex<Places>>, address: IpAddr) -> Option<Self> {
        let address = network_of(address);
        let mut held = places.lock().expect("nothing panics while it holds this");
        let here = held.by_address.get(&address).copied().unwrap_or_default();
        if held.total >= MAX_CONNECTIONS || here >= MAX_PER_ADDRESS {
            return None;
        }
        held.total += 1;
        held.by_address.insert(address, here + 1);
        Some(Self {
            places: Arc::clone(places),
            address,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Ok(mut held) = self.places.lock() else {
            return;
        };
        held.total -= 1;
        if let Some(here) = held.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                held.by_address.remove(&self.address);
            }
        }
    }
}

/// The connections that have come through their handshake, for `serve_with_incoming_shutdown`.
pub type Incoming = tokio_stream::wrappers::ReceiverStream<io::Result<Connection>>;

/// Accepts until `shutdown`, each handshake in a task of its own; a connection without a good token is closed after
/// `admission`. Returns the accepting task, which
/// ends with `shutdown` alone, and the connections.
pub fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    admission: Duration,
    shutdown: CancellationToken,
) -> (impl Future<Output = ()> + Send + 'static, Incoming) {
    let (sender, receiver) = mpsc::channel(READY_CONNECTIONS);
    let task = async move {
        let acceptor = TlsAcceptor::from(config);
        let places = Arc::new(Mutex::new(Places::default()));
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                // Cancelling an accept loses nothing: the connection stays in the backlog.
                () = shutdown.cancelled() => return,
                Some(_) = handshakes.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        let Some(place) = Place::take(&places, address.ip()) else {
                            tracing::warn!(%address, "too many connections; closed");
                            continue;
                        };
                        let admitted_by = Instant::now() + admission;
                        handshakes.spawn(handshake(acceptor.clone(), stream, address, admitted_by, place, sender.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    };
    (task, Incoming::new(receiver))
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    admitted_by: Instant,
    place: Place,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    // Small messages and answers: waiting to fill a segment costs 40 ms each.
    let _ = stream.set_nodelay(true);
    match timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => {
            let connection = Connection {
                stream,
                peer: Peer {
                    address,
                    admitted: Arc::default(),
                },
                admission: Some(Box::pin(tokio::time::sleep_until(admitted_by.into()))),
                _place: place,
            };
            // The server has gone where this fails, and the connection goes with it.
            let _ = ready.send(Ok(connection)).await;
        }
        Ok(Err(error)) => tracing::debug!(%address, %error, "handshake failed"),
        Err(_) => tracing::debug!(%address, "handshake took too long"),
    }
}

#[cfg(test)]
mod tests;
