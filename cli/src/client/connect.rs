//! One connection: name, TCP, TLS, HTTP/2, each with its own words where it fails.

use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::CertificateError;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use super::tls;
use crate::config::NodeEntry;
use crate::error::{Exit, Failure};

/// Longest time for name, TCP and TLS together, where `--timeout` is not shorter: a node that takes
/// longer is down for an operator, and costs every command this much.
const CONNECT_TIME: Duration = Duration::from_secs(2);

/// A silent connection is asked for a sign of life this often, and given up after as long again.
const PING: Duration = Duration::from_secs(10);

/// The port that agents listen on, where an address names none.
pub(crate) const DEFAULT_PORT: u16 = 9444;

/// Connects to the agent of `node`.
pub(super) async fn connect(node: &NodeEntry, limit: Option<Duration>) -> Result<Channel, Failure> {
    let limit = limit.map_or(CONNECT_TIME, |limit| limit.min(CONNECT_TIME));
    let (host, port) = split_address(node)?;
    let (config, found) = tls::client_config(node)?;
    let server_name = node.server_name.clone().unwrap_or_else(|| host.clone());
    let name = ServerName::try_from(server_name.clone()).map_err(|error| {
        Failure::usage(format!(
            "node {}: `{server_name}` is no server name",
            node.name
        ))
        .because(&error)
    })?;
    let began = tokio::time::Instant::now();
    let until = began + limit;

    let unreachable = |cause: String| {
        Failure::new(
            Exit::Unreachable,
            format!("{} is unreachable at {}", node.name, node.address),
        )
        .cause(cause)
        .hint(
            "is it up, and mcp-agent on it? There: systemctl status mcp-agent; here: mcp node list",
        )
    };
    let too_late =
        |what: &str| unreachable(format!("{what} took longer than {}s", limit.as_secs_f32()));

    let addresses: Vec<SocketAddr> = match tokio::time::timeout_at(
        until,
        tokio::net::lookup_host((host.as_str(), port)),
    )
    .await
    {
        Ok(Ok(addresses)) => addresses.collect(),
        Ok(Err(error)) => return Err(unreachable(format!("`{host}` has no address: {error}"))),
        Err(_) => return Err(too_late("looking up its name")),
    };
    let tcp = match tokio::time::timeout_at(until, first_that_answers(&addresses)).await {
        Ok(Ok(tcp)) => tcp,
        Ok(Err(error)) => return Err(unreachable(error.to_string())),
        Err(_) => return Err(too_late("connecting")),
    };
    // Requests are small and waited for; without this each waits for the last one's acknowledgement.
    let _ = tcp.set_nodelay(true);
    let tls =
        match tokio::time::timeout_at(until, TlsConnector::from(config).connect(name, tcp)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return Err(tls_failure(node, &error, found.fingerprint())),
            Err(_) => return Err(too_late("the TLS handshake")),
        };

    // The stream is ready; tonic gets it as the answer to its only attempt to connect. When it is
    // lost, the connection is made anew from here, and not behind the caller's back.
    let mut ready = Some(TokioIo::new(tls));
    let connector = tower::service_fn(move |_: http::Uri| {
        let ready = ready
            .take()
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected));
        std::future::ready(ready)
    });
    let endpoint = Endpoint::from_shared(format!("http://{}", authority(&server_name, port)))
        .map_err(|error| {
            Failure::usage(format!(
                "node {}: `{}` is no address",
                node.name, node.address
            ))
            .because(&error)
        })?
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            Failure::new(
                Exit::Unreachable,
                format!("{} is unreachable at {}", node.name, node.address),
            )
            .because(&error)
        })
}

async fn first_that_answers(addresses: &[SocketAddr]) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "its name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn split_address(node: &NodeEntry) -> Result<(String, u16), Failure> {
    parse_address(&node.address).ok_or_else(|| {
        Failure::usage(format!(
            "node {}: `{}` is no address",
            node.name, node.address
        ))
        .hint("write HOST:PORT, as in rift.example.net:9444")
    })
}

/// `HOST[:PORT]` in its parts; an IPv6 address with a port stands in brackets.
pub(crate) fn parse_address(text: &str) -> Option<(String, u16)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        return match port.strip_prefix(':') {
            Some(port) => Some((host.to_owned(), port.parse().ok()?)),
            None if port.is_empty() => Some((host.to_owned(), DEFAULT_PORT)),
            None => None,
        };
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return Some((text.to_owned(), DEFAULT_PORT));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (text, DEFAULT_PORT),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    (!host.is_empty() && host.chars().all(plain)).then(|| (host.to_owned(), port))
}

fn tls_failure(node: &NodeEntry, error: &std::io::Error, found: Option<&str>) -> Failure {
    let mut failure = Failure::new(
        Exit::Unreachable,
        format!(
            "{} at {} is not trusted, or does not speak TLS 1.3",
            node.name, node.address
        ),
    )
    .cause(
        // What a verifier of our own says needs no preface.
        error
            .to_string()
            .trim_start_matches("unexpected error: ")
            .to_owned(),
    );
    if let Some(found) = found {
        failure = failure.cause(format!("its certificate has the fingerprint {found}"));
    }
    let refused = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match refused {
        Some(rustls::Error::InvalidCertificate(refused)) => failure.hint(mend(node, refused)),
        _ => failure,
    }
}

/// What to do about a certificate that is refused.
fn mend(node: &NodeEntry, refused: &CertificateError) -> String {
    let name = &node.name;
    match refused {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
            "give {name} a new certificate of the same CA: on the node, mcp-agent check tells of the \
             old one; or one of the two clocks is wrong: compare date -u here and there"
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => format!(
            "compare date -u here and on {name}: one of the two clocks is wrong, or the certificate \
             was made for later: mcp-agent check on the node tells"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!(
                "write the name that the certificate has as server_name of node {name} in mcp.toml"
            )
        }
        CertificateError::UnknownIssuer => format!(
            "compare the CA of the agent (DIR/tls/ca.pem) with the one configured here: mcp node \
             list; a new one: mcp node remove {name}, then mcp node add {name} {} --ca FILE",
            node.address
        ),
        _ => format!(
            "compare the CA of the agent (DIR/tls/ca.pem) with what is configured: mcp node list; \
             a name that differs goes into server_name of node {name}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mend_of_a_refused_certificate_follows_from_its_fault() {
        let node = NodeEntry {
            name: "rift".parse().unwrap(),
            address: "rift.example.net:9444".to_owned(),
            ca_cert: None,
            fingerprint: None,
            server_name: None,
        };
        let told = |fault: CertificateError| {
            let error = rustls::Error::InvalidCertificate(fault);
            let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
            tls_failure(&node, &error, None).hint.clone().unwrap()
        };
        let expired = told(CertificateError::ExpiredContext {
            time: rustls_pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(2)),
            not_after: rustls_pki_types::UnixTime::since_unix_epoch(
                std::time::Duration::from_secs(1),
            ),
        });
        assert!(
            expired.contains("a new certificate of the same CA"),
            "{expired}"
        );
        assert!(!expired.contains("server_name") && !expired.contains("node list"));
        assert!(told(CertificateError::NotValidYet).contains("clocks"));
        assert!(told(CertificateError::NotValidForName).contains("server_name of node rift"));
        assert!(told(CertificateError::UnknownIssuer).contains("mcp node add rift"));
    }

    #[test]
    fn addresses_come_with_and_without_a_port() {
        assert_eq!(parse_address("rift"), Some(("rift".to_owned(), 9444)));
        assert_eq!(
            parse_address("127.0.0.1:1"),
            Some(("127.0.0.1".to_owned(), 1))
        );
        assert_eq!(parse_address("[::1]:9"), Some(("::1".to_owned(), 9)));
        assert_eq!(parse_address("::1"), Some(("::1".to_owned(), 9444)));
        for wrong in ["", ":1", "rift:x", "rift:0", "http://rift", "a b", "[::1"] {
            assert_eq!(parse_address(wrong), None, "{wrong}");
        }
    }
}
