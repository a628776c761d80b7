//! A stand-in of MCIAS: its documented endpoints over TLS, with accounts, keys and outages that tests choose.
//!
//! It makes its tokens with `jsonwebtoken`, which shares no code with the agent's verifier: each test against it is
//! one of interoperation too. It lives in the network of the thread that starts it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::AUTHORIZATION;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What its tokens name as `iss`.
pub const ISSUER: &str = "https://mcias.example.net:8443";
/// How long a token of a person lives, in seconds: thirty days.
const LIFE: i64 = 30 * 24 * 3600;
/// Largest request that is read.
const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// A key that signs tokens.
pub struct SigningKey(KeyPair);

impl SigningKey {
    /// A new one.
    ///
    /// # Panics
    ///
    /// Where the system has no random numbers.
    #[must_use]
    pub fn generate() -> Self {
        Self(KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("ring makes Ed25519 keys"))
    }

    /// The public half as a JWK.
    #[must_use]
    pub fn jwk(&self) -> Value {
        json!({
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
            "x": base64url(self.0.public_key_raw()),
        })
    }

    /// A token with these claims.
    ///
    /// # Panics
    ///
    /// Where the claims are no object.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        let key = EncodingKey::from_ed_der(&self.0.serialize_der());
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key)
            .expect("the claims are JSON and the key is Ed25519")
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SigningKey([redacted])")
    }
}

/// Base64 for URLs without padding (RFC 4648, section 5).
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut word = [0; 3];
        word[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes([0, word[0], word[1], word[2]]);
        for place in 0..=chunk.len() {
            let digit = word >> (18 - 6 * place) & 63;
            text.push(char::from(DIGITS[digit as usize]));
        }
    }
    text
}

/// Somebody who may log in.
#[derive(Debug, Clone)]
pub struct Account {
    /// The `sub` of its tokens.
    pub id: String,
    /// Its password.
    pub password: String,
    /// The one-time code that it wants, where it wants one.
    pub code: Option<String>,
    /// Its roles.
    pub roles: Vec<String>,
}

/// How it behaves towards whoever connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It answers.
    Here,
    /// It closes every connection at once.
    Away,
    /// It takes connections and says nothing.
    Silent,
}

#[derive(Debug)]
struct State {
    presence: Presence,
    accounts: BTreeMap<String, Account>,
    /// The last one signs, and all of them are public.
    keys: Vec<SigningKey>,
    /// Tokens and whose they are.
    issued: BTreeMap<String, String>,
    revoked: BTreeSet<String>,
    calls: Vec<String>,
    next_id: u64,
}

/// A running stand-in.
#[derive(Debug)]
pub struct Mcias {
    address: SocketAddr,
    ca: String,
    folder: tempfile::TempDir,
    state: Arc<Mutex<State>>,
    stop: CancellationToken,
}

impl Mcias {
    /// Starts one in the calling thread's network.
    ///
    /// # Errors
    ///
    /// Where it cannot listen.
    pub fn start() -> Result<Self> {
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let certificate = CertificateParams::new(names)?.signed_by(&key, &authority)?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )?;
        let folder = tempfile::tempdir()?;
        let ca = authority.pem();
        std::fs::write(folder.path().join("ca.pem"), &ca)?;
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            presence: Presence::Here,
            accounts: BTreeMap::new(),
            keys: vec![SigningKey::generate()],
            issued: BTreeMap::new(),
            revoked: BTreeSet::new(),
            calls: Vec::new(),
            next_id: 1,
        }));
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (shared, until) = (Arc::clone(&state), stop.clone());
        // A thread of its own, in this one's network; it ends with the stand-in.
        std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = until.cancelled() => {}
                    served = serve(listener, config, shared) => {
                        served.expect("a stand-in that listens can be served");
                    }
                }
            });
        });
        Ok(Self {
            address,
            ca,
            folder,
            state,
            stop,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Its address, as `server_url` has it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The CA of its certificate, in PEM.
    #[must_use]
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// A file with that CA, for a workstation.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Lets somebody log in.
    pub fn add(&self, name: &str, account: Account) {
        self.state().accounts.insert(name.to_owned(), account);
    }

    /// Changes how it behaves.
    pub fn is(&self, presence: Presence) {
        self.state().presence = presence;
    }

    /// Signs with a new key from now on; the old ones stay public where they are kept.
    pub fn rotate(&self, keep: bool) {
        let mut state = self.state();
        if !keep {
            state.keys.clear();
        }
        state.keys.push(SigningKey::generate());
    }

    /// A token for an account, issued so many seconds ago, with more claims.
    ///
    /// # Panics
    ///
    /// Where there is no such account.
    #[must_use]
    pub fn token(&self, name: &str, age: i64, more: &Value) -> String {
        self.state().issue(name, age, more)
    }

    /// Takes a token back.
    pub fn revoke(&self, token: &str) {
        self.state().revoked.insert(token.trim().to_owned());
    }

    /// Whether a token was taken back.
    #[must_use]
    pub fn is_revoked(&self, token: &str) -> bool {
        self.state().revoked.contains(token.trim())
    }

    /// The paths that were asked for, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }
}

impl Drop for Mcias {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("nothing panics while it holds this")
}

impl State {
    fn issue(&mut self, name: &str, age: i64, more: &Value) -> String {
        let account = self
            .accounts
            .get(name)
            .expect("a test names accounts that it added");
        let issued = jiff::Timestamp::now().as_second() - age;
        let mut claims = json!({
            "iss": ISSUER, "sub": account.id, "roles": account.roles,
            "iat": issued, "exp": issued + LIFE, "jti": format!("jti-{}", self.next_id),
        });
        self.next_id += 1;
        for (name, value) in more.as_object().into_iter().flatten() {
            claims[name] = value.clone();
        }
        let key = self.keys.last().expect("there is always one");
        let token = key.sign(&claims);
        self.issued.insert(token.clone(), name.to_owned());
        token
    }

    fn counts(&self, token: &str) -> Option<&Account> {
        if self.revoked.contains(token) {
            return None;
        }
        self.accounts.get(self.issued.get(token)?)
    }

    fn answer(
        &mut self,
        method: &Method,
        path: &str,
        bearer: Option<&str>,
        body: &Value,
    ) -> (StatusCode, Value) {
        self.calls.push(path.to_owned());
        let text = |name: &str| body[name].as_str().unwrap_or_default();
        let refused = |error: &str, code: &str| {
            let complaint = json!({ "error": error, "code": code });
            (StatusCode::UNAUTHORIZED, complaint)
        };
        match (method.as_str(), path) {
            ("GET", "/v1/health") => (StatusCode::OK, json!({ "status": "ok" })),
            ("GET", "/v1/keys/public") => match self.keys.as_slice() {
                [one] => (StatusCode::OK, one.jwk()),
                several => {
                    let keys: Vec<Value> = several.iter().map(SigningKey::jwk).collect();
                    (StatusCode::OK, json!({ "keys": keys }))
                }
            },
            ("POST", "/v1/auth/login") => {
                let name = text("username").to_owned();
                let Some(account) = self.accounts.get(&name) else {
                    return refused("invalid credentials", "unauthorized");
                };
                if account.password != text("password") {
                    return refused("invalid credentials", "unauthorized");
                }
                match (&account.code, text("totp_code")) {
                    (Some(_), "") => return refused("TOTP code required", "totp_required"),
                    (Some(code), given) if code != given => {
                        return refused("invalid credentials", "unauthorized");
                    }
                    _ => {}
                }
                (StatusCode::OK, self.granted(&name))
            }
            ("POST", "/v1/auth/renew") => {
                let token = bearer.unwrap_or_default().to_owned();
                if self.counts(&token).is_none() {
                    return refused("invalid token", "unauthorized");
                }
                let name = self.issued[&token].clone();
                let granted = self.granted(&name);
                self.revoked.insert(token);
                (StatusCode::OK, granted)
            }
            ("POST", "/v1/auth/logout") => {
                let token = bearer.unwrap_or_default().to_owned();
                if self.counts(&token).is_none() {
                    return refused("invalid token", "unauthorized");
                }
                self.revoked.insert(token);
                (StatusCode::NO_CONTENT, Value::Null)
            }
            ("POST", "/v1/token/validate") => {
                let token = body["token"].as_str().or(bearer).unwrap_or_default();
                let answer = match self.counts(token) {
                    Some(account) => {
                        json!({ "valid": true, "sub": account.id, "roles": account.roles })
                    }
                    None => json!({ "valid": false }),
                };
                (StatusCode::OK, answer)
            }
            _ => (StatusCode::NOT_FOUND, json!({ "error": "not found" })),
        }
    }

    fn granted(&mut self, name: &str) -> Value {
        let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(LIFE);
        json!({ "token": self.issue(name, 0, &Value::Null), "expires_at": expires.to_string() })
    }
}

async fn serve(
    listener: std::net::TcpListener,
    config: ServerConfig,
    state: Arc<Mutex<State>>,
) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let mut silent = Vec::new();
    loop {
        let (stream, _) = listener.accept().await.context("accepting")?;
        let presence = lock(&state).presence;
        match presence {
            Presence::Away => drop(stream),
            Presence::Silent => silent.push(stream),
            Presence::Here => {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
                tokio::spawn(async move {
                    // Whoever goes away in the middle is no affair of the test.
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let service = service_fn(|request| answer(Arc::clone(&state), request));
                    drop(
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        }
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_REQUEST_BYTES).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let bearer = head
        .headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let (status, answer) = lock(&state).answer(&head.method, head.uri.path(), bearer, &body);
    let bytes = match answer {
        Value::Null => Bytes::new(),
        answer => Bytes::from(answer.to_string()),
    };
    Ok(Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::new(bytes))?)
}
