//! The wire: whom a workstation trusts, certificates that change while the agent runs, and clients that stall,
//! flood or ask for too much. On one engine, since none is asked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mcp_tests::engine::{Lane, eventually};
use mcp_tests::fleet::Fleet;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Far above each bound of the agent, for a slow machine.
const LIMIT: Duration = Duration::from_secs(120);
/// Somebody else than the operator, who is at 127.0.0.1.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn fleet(node: &str) -> Fleet {
    let lane = Lane::PodmanRoot;
    lane.shared().enter().unwrap();
    Fleet::with_node(lane, node).unwrap()
}

fn address(fleet: &Fleet, node: &str) -> String {
    let listed = fleet.mcp_json(&["node", "list"]);
    let rows = listed.as_array().unwrap();
    let row = rows
        .iter()
        .find(|row| row["name"] == node || row["node"] == node);
    row.unwrap()["address"].as_str().unwrap().to_owned()
}

fn leaf(fleet: &Fleet, node: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(fleet.node(node).data_dir().join("tls/cert.pem")).unwrap()
}

/// The fingerprint as `openssl x509 -fingerprint -sha256` gives it.
fn fingerprint(certificate: &Path) -> String {
    let output = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(certificate)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().split_once('=').unwrap().1.to_owned()
}

#[test]
fn workstation_trusts_its_ca_or_a_pinned_certificate_and_says_what_it_found() {
    let fleet = fleet("pinned");
    let at = address(&fleet, "pinned");
    let cert = fleet.node("pinned").data_dir().join("tls/cert.pem");
    let real = fingerprint(&cert);
    let plain = real.replace(':', "").to_lowercase();
    let trust = |how: &[&str]| {
        fleet.mcp(&["node", "remove", "pinned"]).ok();
        let mut add = vec!["node", "add", "pinned", &at];
        add.extend(how);
        fleet.mcp(&add).ok();
        fleet.log_in("pinned", "alice", "admin").unwrap();
    };
    trust(&["--fingerprint", &format!("sha256:{real}")]);
    fleet.mcp(&["list"]).ok();
    trust(&["--fingerprint", &format!("sha256:{}", "ab".repeat(32))]);
    fleet
        .mcp(&["list"])
        .exits(8)
        .says(&plain)
        .says("not the pinned one");
    // A CA of somebody else, and then nothing but what the system trusts.
    let (other, _, _) = certificate();
    let file = fleet.home().join("other-ca.pem");
    std::fs::write(&file, other).unwrap();
    trust(&["--ca", file.to_str().unwrap()]);
    fleet
        .mcp(&["list"])
        .exits(8)
        .says("not trusted")
        .says(&plain);
    let system = "/etc/ssl/certs/ca-certificates.crt";
    let ca = fleet.node("pinned").data_dir().join("tls/ca.pem");
    let under = fleet.mcp_under(
        &[
            ("SSL_CERT_FILE", ca.to_str().unwrap()),
            ("SSL_CERT_DIR", system),
        ],
        &["list"],
    );
    under.exits(8).says("not trusted");
}

/// A CA, and a certificate of it for this machine with its key, in PEM.
fn certificate() -> (String, String, String) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let certificate = CertificateParams::new(names).unwrap();
    let certificate = certificate.signed_by(&key, &authority).unwrap();
    (authority.pem(), certificate.pem(), key.serialize_pem())
}

#[test]
fn certificate_is_taken_up_while_the_agent_runs_and_a_broken_one_is_not() {
    let fleet = fleet("reload");
    let at = address(&fleet, "reload");
    let folder = fleet.node("reload").data_dir().join("tls");
    std::fs::write(folder.join("cert.pem"), "-----BEGIN nothing").unwrap();
    eventually("the broken one is looked at", LIMIT, || {
        // Whoever connects meanwhile is served with the old one.
        fleet.mcp(&["list"]).ok();
        let log = fleet.node("reload").log();
        Ok(log.contains("the new certificate is refused").then_some(()))
    })
    .unwrap();
    let (ca, cert, key) = certificate();
    // First one and then the other: between the two they do not match.
    std::fs::write(folder.join("cert.pem"), cert).unwrap();
    fleet.mcp(&["list"]).ok();
    std::fs::write(folder.join("key.pem"), key).unwrap();
    eventually("the new one is shown", LIMIT, || {
        Ok((fleet.mcp(&["list"]).code == Some(8)).then_some(()))
    })
    .unwrap();
    let file = fleet.home().join("new-ca.pem");
    std::fs::write(&file, ca).unwrap();
    fleet.mcp(&["node", "remove", "reload"]).ok();
    let add = ["node", "add", "reload", &at, "--ca", file.to_str().unwrap()];
    fleet.mcp(&add).ok();
    fleet.log_in("reload", "alice", "admin").unwrap();
    fleet.mcp(&["list"]).ok();
}

/// A connection to the agent from a stranger's address.
async fn tcp(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((STRANGER, 0).into())?;
    socket.connect(to).await
}

/// The same, with the handshake done.
async fn tls(fleet: &Fleet, node: &str, to: SocketAddr) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    let ca = fleet.node(node).data_dir().join("tls/ca.pem");
    roots
        .add(CertificateDer::from_pem_file(ca).unwrap())
        .unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tcp(to).await.unwrap();
    let name = "127.0.0.1".try_into().unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .unwrap()
}

fn wait<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, work)
            .await
            .expect("the agent ends it long before")
    })
}

/// Reads until the other side is gone.
async fn until_closed(stream: &mut (impl tokio::io::AsyncRead + Unpin)) {
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

#[test]
fn clients_that_stall_are_closed_and_one_address_cannot_take_every_place() {
    let fleet = fleet("stall");
    let to: SocketAddr = address(&fleet, "stall").parse().unwrap();
    wait(async {
        // A handshake byte by byte, and HTTP/2 byte by byte behind a good handshake.
        let mut byte_by_byte = tcp(to).await.unwrap();
        let handshake = async {
            let hello = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc];
            for byte in hello.into_iter().cycle() {
                if byte_by_byte.write_all(&[byte]).await.is_err() {
                    return;
                }
                let mut answer = [0; 64];
                let read = byte_by_byte.read(&mut answer);
                // The pace of the client, no wait for the agent: any answer or end comes at once.
                let read = tokio::time::timeout(Duration::from_millis(700), read).await;
                if matches!(read, Ok(Ok(0) | Err(_))) {
                    return;
                }
            }
        };
        let mut preface = tls(&fleet, "stall", to).await;
        let http = async {
            for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter().cycle().take(20) {
                if preface.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            until_closed(&mut preface).await;
        };
        let mut silent = tls(&fleet, "stall", to).await;
        tokio::join!(handshake, http, until_closed(&mut silent));

        // More than one address may have: those beyond are closed at once, others go on meanwhile, and the
        // stranger finds a place again once its stalled ones were closed.
        let mut streams = Vec::new();
        for _ in 0..100 {
            streams.push(tcp(to).await.unwrap());
        }
        fleet.mcp(&["list"]).ok();
        let began = Instant::now();
        let ends = streams.into_iter().map(|mut stream| async move {
            until_closed(&mut stream).await;
            began.elapsed()
        });
        let ends = futures_util::future::join_all(ends).await;
        let at_once = ends.iter().filter(|end| **end < Duration::from_secs(5));
        assert!(at_once.count() >= 36, "{ends:?}");
        drop(tls(&fleet, "stall", to).await);
    });
}

/// One frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The headers of a call without a token (RFC 7541: POST, https, the path, the type).
fn call() -> Vec<u8> {
    let path = b"/mcp.v1.Node/Info";
    let kind = b"application/grpc";
    let mut block = vec![0x83, 0x87, 0x04, u8::try_from(path.len()).unwrap()];
    block.extend(path);
    block.extend([0x01, 4]);
    block.extend(b"rift");
    block.extend([0x0f, 0x10, u8::try_from(kind.len()).unwrap()]);
    block.extend(kind);
    block
}

/// Resident memory of the agent, in MiB.
fn memory(fleet: &Fleet, node: &str) -> u64 {
    let pid = fleet.node(node).pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}

/// Sends `frames` over and over, and reads what comes, until the agent closes or so much was sent.
async fn flood(
    stream: &mut TlsStream<TcpStream>,
    most: usize,
    mut frames: impl FnMut() -> Vec<u8>,
) {
    let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    start.extend(frame(SETTINGS, 0, 0, &[]));
    if stream.write_all(&start).await.is_err() {
        return;
    }
    let (mut reader, mut writer) = tokio::io::split(stream);
    let send = async {
        let mut sent = 0;
        while sent < most {
            let bytes = frames();
            sent += bytes.len();
            if writer.write_all(&bytes).await.is_err() {
                return;
            }
        }
        drop(writer.shutdown().await);
    };
    tokio::join!(send, until_closed(&mut reader));
}

#[test]
fn floods_of_http2_are_borne_and_others_are_served_meanwhile() {
    let fleet = fleet("flood");
    let to: SocketAddr = address(&fleet, "flood").parse().unwrap();
    fleet.mcp(&["list"]).ok();
    let before = memory(&fleet, "flood");
    let most = 4 * 1024 * 1024;
    let flooded = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (flooded, fleet) = (&flooded, &fleet);
        let operator = scope.spawn(move || {
            // Its thread is in the network of the one that made it.
            while !flooded.load(std::sync::atomic::Ordering::Relaxed) {
                let began = Instant::now();
                fleet.mcp(&["list"]).ok();
                assert!(
                    began.elapsed() < Duration::from_secs(20),
                    "an operator waits"
                );
            }
        });
        wait(async {
            let mut streams = Vec::new();
            for _ in 0..4 {
                streams.push(tls(fleet, "flood", to).await);
            }
            let [resets, pings, settings, continuations] = streams.as_mut_slice() else {
                unreachable!("there are four");
            };
            let headers = call();
            let mut id = 1;
            let rapid_reset = flood(resets, most, || {
                let mut bytes = frame(HEADERS, END_HEADERS, id, &headers);
                bytes.extend(frame(RESET, 0, id, &8u32.to_be_bytes()));
                id += 2;
                bytes
            });
            let ping = flood(pings, most, || frame(PING, 0, 0, &[0; 8]).repeat(100));
            let setting = flood(settings, most, || frame(SETTINGS, 0, 0, &[]).repeat(100));
            let mut first = true;
            let continuation = flood(continuations, most, || {
                let kind = if first { HEADERS } else { CONTINUATION };
                first = false;
                // Literal headers without end.
                let mut block = vec![0x00, 0x01, b'x', 0x64];
                block.extend([b'y'; 100]);
                frame(kind, 0, 1, &block.repeat(80))
            });
            tokio::join!(rapid_reset, ping, setting, continuation);
        });
        flooded.store(true, std::sync::atomic::Ordering::Relaxed);
        operator.join().unwrap();
    });
    fleet.mcp(&["list"]).ok();
    let after = memory(&fleet, "flood");
    assert!(after < before + 100, "{before} MiB, then {after} MiB");
}

#[test]
fn the_agent_shows_the_certificate_that_is_configured() {
    let fleet = fleet("shown");
    let to: SocketAddr = address(&fleet, "shown").parse().unwrap();
    wait(async {
        let stream = tls(&fleet, "shown", to).await;
        let (_, session) = stream.get_ref();
        assert_eq!(
            session.protocol_version(),
            Some(rustls::ProtocolVersion::TLSv1_3)
        );
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        assert_eq!(
            session.peer_certificates().unwrap()[0],
            leaf(&fleet, "shown")
        );
    });
}
