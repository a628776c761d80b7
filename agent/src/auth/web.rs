//! A small HTTPS client for issuers of tokens: one request a connection, one configured CA, bounded in time and
//! bytes. The system's roots are never trusted, and no redirect is followed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Longest time for a whole call: somebody waits at a terminal.
pub const CALL_LIMIT: Duration = Duration::from_secs(3);
/// Largest answer, in bytes: sixteen keys fit many times over.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The port of https.
const DEFAULT_PORT: u16 = 443;

/// An address of a server: `https://HOST[:PORT]/PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsUrl {
    text: String,
    host: String,
    port: u16,
    path: String,
}

/// A text is no such address.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is no https address")]
pub struct HttpsUrlError {
    /// What stands there.
    pub text: String,
}

impl FromStr for HttpsUrl {
    type Err = HttpsUrlError;

    fn from_str(text: &str) -> Result<Self, HttpsUrlError> {
        let wrong = || HttpsUrlError {
            text: text.chars().take(200).collect(),
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        if uri.scheme_str() != Some("https") || authority.as_str().contains('@') {
            return Err(wrong());
        }
        let host = authority.host();
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        ServerName::try_from(bare).map_err(|_| wrong())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            text: text.to_owned(),
            host: bare.to_owned(),
            port: authority.port_u16().unwrap_or(DEFAULT_PORT),
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for HttpsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl HttpsUrl {
    /// What the `Host` header has to say.
    fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Why a server gave no answer.
#[derive(Debug, Error)]
pub enum WebError {
    /// The CA's file cannot be used.
    #[error("the CA certificate {} cannot be used", file.display())]
    Ca {
        /// The file.
        file: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No connection, or one that is not trusted.
    #[error("cannot connect to {url}")]
    Connect {
        /// The address.
        url: HttpsUrl,
        /// Why.
        source: io::Error,
    },
    /// The exchange broke off, or the answer is too large.
    #[error("{url} gave no whole answer")]
    Exchange {
        /// The address.
        url: HttpsUrl,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("{url} did not answer within {} s", CALL_LIMIT.as_secs())]
    TimedOut {
        /// The address.
        url: HttpsUrl,
    },
    /// Another status than was hoped for.
    #[error("{url} answered {status}")]
    Status {
        /// The address.
        url: HttpsUrl,
        /// What it answered.
        status: StatusCode,
    },
    /// An answer that is not understood.
    #[error("{url} answered something else than it should")]
    Nonsense {
        /// The address.
        url: HttpsUrl,
    },
}

/// The settings of a connection that trusts the certificates in `ca` alone.
fn settings(ca: &Path) -> Result<ClientConfig, WebError> {
    let wrong = |source: Box<dyn std::error::Error + Send + Sync>| WebError::Ca {
        file: ca.to_owned(),
        source,
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|error| wrong(Box::new(error)))? {
        let certificate = certificate.map_err(|error| wrong(Box::new(error)))?;
        roots
            .add(certificate)
            .map_err(|error| wrong(Box::new(error)))?;
    }
    if roots.is_empty() {
        return Err(wrong("it holds no certificate in PEM".into()));
    }
    let mut settings = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring speaks TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(settings)
}

/// Asks for what lies at `url`, trusting `ca`.
///
/// # Errors
///
/// [`WebError`], also where the status is not 200.
pub async fn get(url: &HttpsUrl, ca: &Path) -> Result<Bytes, WebError> {
    call(url, ca, Method::GET, None, Bytes::new()).await
}

/// Posts JSON to `url` with a bearer token, trusting `ca`.
///
/// # Errors
///
/// [`WebError`], also where the status is not 200.
pub async fn post(
    url: &HttpsUrl,
    ca: &Path,
    token: &str,
    json: &serde_json::Value,
) -> Result<Bytes, WebError> {
    let body = Bytes::from(json.to_string());
    call(url, ca, Method::POST, Some(token), body).await
}

async fn call(
    url: &HttpsUrl,
    ca: &Path,
    method: Method,
    token: Option<&str>,
    body: Bytes,
) -> Result<Bytes, WebError> {
    let settings = Arc::new(settings(ca)?);
    // A call that is given up takes its connection with it.
    tokio::time::timeout(CALL_LIMIT, exchange(url, settings, method, token, body))
        .await
        .unwrap_or_else(|_| Err(WebError::TimedOut { url: url.clone() }))
}

async fn exchange(
    url: &HttpsUrl,
    settings: Arc<ClientConfig>,
    method: Method,
    token: Option<&str>,
    body: Bytes,
) -> Result<Bytes, WebError> {
    let connect = |source| WebError::Connect {
        url: url.clone(),
        source,
    };
    let broken = |source: Box<dyn std::error::Error + Send + Sync>| WebError::Exchange {
        url: url.clone(),
        source,
    };
    let tcp = TcpStream::connect((url.host.as_str(), url.port))
        .await
        .map_err(connect)?;
    let name = ServerName::try_from(url.host.clone()).expect("it was one when it was read");
    let tls = TlsConnector::from(settings)
        .connect(name, tcp)
        .await
        .map_err(connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
        .await
        .map_err(|error| broken(Box::new(error)))?;
    let mut request = Request::builder()
        .method(method)
        .uri(&url.path)
        .header(HOST, url.authority())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("mcp-agent/", env!("CARGO_PKG_VERSION")));
    if !body.is_empty() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    if let Some(token) = token {
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|error| broken(Box::new(error)))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let request = request
        .body(Full::new(body))
        .map_err(|error| broken(Box::new(error)))?;
    let answered = async {
        let answer = sender
            .send_request(request)
            .await
            .map_err(|error| broken(Box::new(error)))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(broken)?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(answered);
    let (status, body) = tokio::select! {
        answered = &mut answered => answered?,
        // The connection drives the exchange; where it ends first, the exchange knows why.
        _ = connection => answered.await?,
    };
    if status != StatusCode::OK {
        return Err(WebError::Status {
            url: url.clone(),
            status,
        });
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_https_with_a_host() {
        let url: HttpsUrl = "https://mcias.example.net:8443/v1/keys/public"
            .parse()
            .unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.path.as_str()),
            ("mcias.example.net", 8443, "/v1/keys/public")
        );
        let url: HttpsUrl = "https://[::1]/".parse().unwrap();
        assert_eq!(url.authority(), "[::1]:443");
        for wrong in [
            "http://mcias/keys",
            "https://",
            "mcias/keys",
            "https://a@b/",
            "file:///x",
            "https://a b/",
            "",
        ] {
            assert!(wrong.parse::<HttpsUrl>().is_err(), "{wrong}");
        }
    }
}
