//! Reload and the accept loop, over real sockets.

use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;

use super::*;

fn write_certificate(folder: &Path, name: &str) -> CertificateDer<'static> {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    fs::write(folder.join("cert.pem"), cert.pem()).unwrap();
    fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
    cert.der().clone()
}

fn files(folder: &Path) -> TlsConfig {
    TlsConfig {
        cert: folder.join("cert.pem"),
        key: folder.join("key.pem"),
    }
}

fn client(root: &CertificateDer<'static>) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[test]
fn a_changed_certificate_is_used_and_a_broken_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let first = write_certificate(folder.path(), "one");
    let certificate = Certificate::load(&files(folder.path())).unwrap();
    assert_eq!(certificate.leaf().unwrap(), first);
    let later = |seconds| Instant::now() + Duration::from_secs(seconds);

    fs::write(folder.path().join("cert.pem"), "broken").unwrap();
    certificate.refresh(later(2));
    assert_eq!(certificate.leaf().unwrap(), first);

    let second = write_certificate(folder.path(), "two");
    certificate.refresh(later(2));
    assert_eq!(certificate.leaf().unwrap(), first, "looked a moment ago");
    certificate.refresh(later(4));
    assert_eq!(certificate.leaf().unwrap(), second);

    fs::remove_file(folder.path().join("key.pem")).unwrap();
    certificate.refresh(later(6));
    assert_eq!(certificate.leaf().unwrap(), second);
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_certificate(folder.path(), "one");
    let key = fs::read(folder.path().join("key.pem")).unwrap();
    write_certificate(folder.path(), "two");
    fs::write(folder.path().join("key.pem"), key).unwrap();
    let error = Certificate::load(&files(folder.path())).unwrap_err();
    assert!(
        matches!(error, CertificateError::Mismatch { .. }),
        "{error}"
    );
    fs::write(folder.path().join("key.pem"), "").unwrap();
    let error = Certificate::load(&files(folder.path())).unwrap_err();
    assert!(matches!(error, CertificateError::Empty { .. }), "{error}");
}

#[tokio::test]
async fn a_stalled_handshake_holds_up_nobody_and_one_address_cannot_take_all_places() {
    let folder = tempfile::tempdir().unwrap();
    let root = write_certificate(folder.path(), "localhost");
    let certificate = Arc::new(Certificate::load(&files(folder.path())).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let (task, mut incoming) = accept(
        listener,
        Arc::new(server_config(certificate)),
        ADMISSION_LIMIT,
        shutdown.clone(),
    );
    let task = tokio::spawn(task);

    let mut stalled = Vec::new();
    for _ in 0..MAX_PER_ADDRESS - 1 {
        stalled.push(TcpStream::connect(address).await.unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let mut good = client(&root)
        .connect("localhost".try_into().unwrap(), stream)
        .await
        .unwrap();
    let (_, session) = good.get_ref();
    assert_eq!(
        session.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
    let mut served = incoming.next().await.unwrap().unwrap();
    good.write_all(b"ping").await.unwrap();
    let mut bytes = [0; 4];
    served.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");

    // The address has all its places: the next connection is closed before a handshake.
    let mut beyond = TcpStream::connect(address).await.unwrap();
    assert_eq!(beyond.read(&mut bytes).await.unwrap_or(0), 0);

    shutdown.cancel();
    task.await.unwrap();
}

/// An accepting server and a way to it.
async fn accepting(
    folder: &Path,
    admission: Duration,
) -> (
    SocketAddr,
    CertificateDer<'static>,
    Incoming,
    CancellationToken,
) {
    let root = write_certificate(folder, "localhost");
    let certificate = Arc::new(Certificate::load(&files(folder)).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let config = Arc::new(server_config(certificate));
    let (task, incoming) = accept(listener, config, admission, shutdown.clone());
    tokio::spawn(task);
    (address, root, incoming, shutdown)
}

#[tokio::test]
async fn connection_without_a_good_token_is_closed_and_one_with_it_stays() {
    let folder = tempfile::tempdir().unwrap();
    let admission = Duration::from_millis(300);
    let (address, root, mut incoming, shutdown) = accepting(folder.path(), admission).await;
    let connect = async || {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = "localhost".try_into().unwrap();
        client(&root).connect(name, stream).await.unwrap()
    };
    let mut good = connect().await;
    let mut served_good = incoming.next().await.unwrap().unwrap();
    served_good.connect_info().admit();
    let silent = connect().await;
    let mut served_silent = incoming.next().await.unwrap().unwrap();
    let mut bytes = [0; 4];
    let ended = served_silent.read_exact(&mut bytes).await.unwrap_err();
    assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    // The other one is past its time too, and goes on.
    good.write_all(b"ping").await.unwrap();
    served_good.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
    drop(silent);
    shutdown.cancel();
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (address, root, _incoming, shutdown) = accepting(folder.path(), ADMISSION_LIMIT).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let old = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let refused = TlsConnector::from(Arc::new(old))
        .connect(name, stream)
        .await;
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
    shutdown.cancel();
}
