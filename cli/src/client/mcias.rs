//! MCIAS, where tokens come from: log-in, renewal and log-out over HTTPS.
//!
//! The server is trusted by its configured CA alone. A call is bounded in time and in what is read of its answer.
//! Passwords, codes and tokens go into the request and nowhere else: no failure here shows one.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls;
use super::token::Token;
use crate::config::Mcias;
use crate::error::{Exit, Failure};
use crate::output::clean;

/// Longest time for a log-in: MCIAS makes guessing slow on purpose.
pub(crate) const LOGIN_TIME: Duration = Duration::from_secs(15);
/// Longest time for a renewal or a log-out, which stand beside what was asked for.
pub(crate) const ASIDE_TIME: Duration = Duration::from_secs(3);
/// Largest answer that is read; a token has some hundred bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The port of MCIAS where the address names none.
const DEFAULT_PORT: u16 = 443;

/// What somebody logs in with.
pub(crate) struct Credentials {
    /// The name of the account.
    pub(crate) user: String,
    /// Its password.
    pub(crate) password: String,
    /// The one-time code, where one was asked for.
    pub(crate) code: Option<String>,
}

/// How a log-in ended.
pub(crate) enum Login {
    /// With a token.
    Token(Token),
    /// The account wants a one-time code too.
    CodeWanted,
}

#[derive(Deserialize)]
struct Granted {
    token: String,
}

/// What MCIAS says of a failure.
#[derive(Deserialize, Default)]
struct Complaint {
    #[serde(default)]
    error: String,
    #[serde(default)]
    code: String,
}

impl Complaint {
    fn read(body: &[u8]) -> Self {
        serde_json::from_slice(body).unwrap_or_default()
    }

    fn wants_code(&self) -> bool {
        let text = format!("{} {}", self.error, self.code).to_ascii_lowercase();
        ["totp", "otp", "one-time", "mfa", "2fa"]
            .iter()
            .any(|word| text.contains(word))
    }

    /// As a cause: short and without control characters.
    fn cause(&self, server: &Mcias, status: StatusCode) -> String {
        let said: String = self.error.chars().take(200).collect();
        let said = match said.as_str() {
            "" => String::new(),
            said => format!(": {}", clean::line(said)),
        };
        format!("{} answered {status}{said}", server.server_url)
    }
}

/// Logs in.
pub(crate) async fn login(server: &Mcias, with: &Credentials) -> Result<Login, Failure> {
    let mut body = serde_json::json!({ "username": with.user, "password": with.password });
    if let Some(code) = &with.code {
        body["totp_code"] = code.as_str().into();
    }
    if let Some(name) = &server.service_name {
        body["service_name"] = name.as_str().into();
    }
    let body = Bytes::from(body.to_string());
    let (status, answer) = call(server, "/v1/auth/login", None, body, LOGIN_TIME).await?;
    if status == StatusCode::OK {
        return granted(server, &answer).map(Login::Token);
    }
    let complaint = Complaint::read(&answer);
    if status == StatusCode::UNAUTHORIZED && with.code.is_none() && complaint.wants_code() {
        return Ok(Login::CodeWanted);
    }
    let refused = |message: String| {
        Failure::new(Exit::Refused, message).cause(complaint.cause(server, status))
    };
    let user = clean::line(&with.user);
    Err(match status {
        StatusCode::UNAUTHORIZED if with.code.is_some() => refused(format!(
            "MCIAS does not know {user} with this password and one-time code"
        ))
        .hint("try again; where it is the code: is this machine's clock, or the phone's, right?"),
        StatusCode::UNAUTHORIZED => {
            refused(format!("MCIAS does not know {user} with this password")).hint("mcp login")
        }
        StatusCode::FORBIDDEN => refused(format!("MCIAS does not let {user} log in here"))
            .hint("ask who looks after MCIAS for a policy that allows it; service_name under [mcias] in mcp.toml is what it goes by"),
        StatusCode::TOO_MANY_REQUESTS => {
            refused("MCIAS had too many log-ins from here".to_owned()).hint("wait a minute, then mcp login")
        }
        _ => Failure::failed("MCIAS gave no token").cause(complaint.cause(server, status)),
    })
}

/// Changes a token for a newer one; the old one may not count any more.
pub(crate) async fn renew(server: &Mcias, token: &Token) -> Result<Token, Failure> {
    let (status, answer) = call(
        server,
        "/v1/auth/renew",
        Some(token),
        Bytes::new(),
        ASIDE_TIME,
    )
    .await?;
    if status == StatusCode::OK {
        return granted(server, &answer);
    }
    let complaint = Complaint::read(&answer);
    Err(
        Failure::new(Exit::Refused, "MCIAS does not renew the token")
            .cause(complaint.cause(server, status)),
    )
}

/// Has MCIAS take a token back.
pub(crate) async fn logout(server: &Mcias, token: &Token) -> Result<(), Failure> {
    let (status, answer) = call(
        server,
        "/v1/auth/logout",
        Some(token),
        Bytes::new(),
        ASIDE_TIME,
    )
    .await?;
    // One that does not count any more is what is wanted.
    if status.is_success() || status == StatusCode::UNAUTHORIZED {
        return Ok(());
    }
    let complaint = Complaint::read(&answer);
    Err(Failure::failed("MCIAS did not take the token back").cause(complaint.cause(server, status)))
}

fn granted(server: &Mcias, answer: &[u8]) -> Result<Token, Failure> {
    serde_json::from_slice::<Granted>(answer)
        .ok()
        .and_then(|granted| Token::parse(&granted.token))
        .filter(Token::is_jwt)
        .ok_or_else(|| {
            Failure::failed(format!("what {} answered is no token", server.server_url))
                .hint("is server_url under [mcias] in mcp.toml the address of an MCIAS?")
        })
}

/// Where a call goes to.
struct Address {
    host: String,
    port: u16,
    path: String,
}

impl Address {
    fn of(server: &Mcias, path: &str) -> Result<Self, Failure> {
        let wrong = || {
            Failure::usage(format!(
                "[mcias] server_url `{}` is no https address",
                server.server_url
            ))
            .hint("write https://HOST:PORT, as in https://mcias.example.net:8443")
        };
        let uri: Uri = server.server_url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        if uri.scheme_str() != Some("https") || authority.as_str().contains('@') {
            return Err(wrong());
        }
        Ok(Self {
            host: authority
                .host()
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: authority.port_u16().unwrap_or(DEFAULT_PORT),
            path: format!("{}{path}", uri.path().trim_end_matches('/')),
        })
    }
}

fn settings(server: &Mcias) -> Result<ClientConfig, Failure> {
    let Some(ca) = &server.ca_cert else {
        return Err(Failure::usage("[mcias] in mcp.toml has no ca_cert")
            .cause("the system's roots are never trusted")
            .hint("add ca_cert = \"FILE\" under [mcias]: the CA of MCIAS's certificate, in PEM"));
    };
    let mut settings = tls::trusting(ca)?;
    settings.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(settings)
}

/// One POST over a connection of its own.
async fn call(
    server: &Mcias,
    path: &str,
    token: Option<&Token>,
    body: Bytes,
    limit: Duration,
) -> Result<(StatusCode, Bytes), Failure> {
    let address = Address::of(server, path)?;
    let settings = Arc::new(settings(server)?);
    let away = || {
        Failure::new(
            Exit::Unreachable,
            format!("MCIAS at {} is unreachable", server.server_url),
        )
    };
    match tokio::time::timeout(limit, exchange(&address, settings, token, body)).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(away()
            .cause(error.to_string())
            .hint("is it up, and its certificate of the CA in ca_cert under [mcias]? Tokens of the nodes' own work without it: mcp login --token-stdin")),
        Err(_) => Err(away()
            .cause(format!("it did not answer within {} s", limit.as_secs()))
            .hint("tokens of the nodes' own work without it: mcp login --token-stdin")),
    }
}

async fn exchange(
    address: &Address,
    settings: Arc<ClientConfig>,
    token: Option<&Token>,
    body: Bytes,
) -> Result<(StatusCode, Bytes), Box<dyn std::error::Error + Send + Sync>> {
    let tcp = TcpStream::connect((address.host.as_str(), address.port)).await?;
    let name = ServerName::try_from(address.host.clone())?;
    let tls = TlsConnector::from(settings).connect(name, tcp).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    let host = match address.host.contains(':') {
        true => format!("[{}]:{}", address.host, address.port),
        false => format!("{}:{}", address.host, address.port),
    };
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&address.path)
        .header(HOST, host)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("mcp/", env!("CARGO_PKG_VERSION")));
    if !body.is_empty() {
        request = request.header(CONTENT_TYPE, "application/json");
    }
    if let Some(token) = token {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal()))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let request = request.body(Full::new(body))?;
    let answered = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await?;
        Ok((status, body.to_bytes()))
    };
    tokio::pin!(answered);
    tokio::select! {
        answered = &mut answered => answered,
        // The connection drives the exchange; where it ends first, the exchange knows why.
        _ = connection => answered.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(url: &str) -> Mcias {
        Mcias {
            server_url: url.to_owned(),
            ca_cert: None,
            service_name: None,
        }
    }

    #[test]
    fn address_is_https_and_keeps_its_path() {
        let address = |url: &str| {
            Address::of(&server(url), "/v1/auth/login")
                .map(|address| (address.host, address.port, address.path))
        };
        let of = |host: &str, port, path: &str| (host.to_owned(), port, path.to_owned());
        assert_eq!(
            address("https://mcias.example.net:8443").unwrap(),
            of("mcias.example.net", 8443, "/v1/auth/login")
        );
        assert_eq!(
            address("https://[::1]:1/id/").unwrap(),
            of("::1", 1, "/id/v1/auth/login")
        );
        for wrong in ["http://mcias", "mcias:8443", "https://a@b", ""] {
            assert_eq!(address(wrong).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }

    #[test]
    fn server_without_a_ca_is_not_trusted() {
        let failure = settings(&server("https://mcias")).unwrap_err();
        assert!(failure.message.contains("ca_cert"), "{failure:?}");
    }

    #[test]
    fn code_is_asked_for_where_the_server_wants_one() {
        let wants = |body: &str| Complaint::read(body.as_bytes()).wants_code();
        assert!(wants(
            r#"{"error":"TOTP code required","code":"totp_required"}"#
        ));
        assert!(!wants(
            r#"{"error":"invalid credentials","code":"unauthorized"}"#
        ));
        assert!(!wants("no JSON"));
    }
}
