//! The gate before every call: token, role, signature, time limit, and the audit of what changes something.
//!
//! What is not listed is closed. A call that takes more than a viewer leaves one line in the audit,
//! refused or not, even where its caller goes away in the middle. Bad tokens leave none: anybody
//! could fill the disk with them; they are logged, and bounded by address and by the subject that they name.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::name::Target;
use tonic::body::Body;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::{signed, status};
use crate::Agent;
use crate::auth::issuers::Verified;
use crate::auth::methods::{self, Method};
use crate::auth::refusals::{Refusals, Sender};
use crate::auth::requests::Signed;
use crate::auth::token::claimed;
use crate::auth::{Identity, Role};
use crate::blocking::blocking;
use crate::registry::AuditRow;
use crate::tls::Peer;

/// Characters of a target in the audit: dozens of services fit.
const MAX_TARGET: usize = 1000;

/// Puts the gate before a service.
#[derive(Debug, Clone)]
pub struct Authenticate {
    agent: Arc<Agent>,
    refusals: Arc<Refusals>,
}

/// What a call is about, for its audit; said by the handler once it has read it.
#[derive(Debug, Clone, Default)]
pub struct About(Arc<OnceLock<(String, String)>>);

impl About {
    /// The place for what this request is about; of no effect where the call is not audited.
    #[must_use]
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        request
            .extensions()
            .get::<Self>()
            .cloned()
            .unwrap_or_default()
    }

    /// Says that a call is about these targets, or about everything where there are none.
    pub fn say_targets(&self, targets: &[Target], request_id: &str) {
        let names: Vec<String> = targets.iter().map(ToString::to_string).collect();
        let what = if names.is_empty() {
            "every service".to_owned()
        } else {
            names.join(", ")
        };
        self.say(
            what.chars().take(MAX_TARGET).collect::<String>(),
            request_id,
        );
    }

    /// Says it, once: the target in words, and the request's id or nothing.
    pub fn say(&self, target: impl Into<String>, request_id: impl Into<String>) {
        let _ = self.0.set((target.into(), request_id.into()));
    }
}

/// A call that is to be audited; dropped before its end, its caller went away.
#[derive(Debug)]
struct Audited {
    agent: Arc<Agent>,
    about: About,
    row: Option<AuditRow>,
}

impl Audited {
    fn new(agent: &Arc<Agent>, method: &str, identity: &Identity, peer: Option<&Peer>) -> Self {
        Self {
            agent: Arc::clone(agent),
            about: About::default(),
            row: Some(AuditRow {
                seq: 0,
                at: Timestamp::now(),
                who: identity.subject.clone(),
                token: identity.token_id.clone(),
                signer: String::new(),
                method: method.rsplit('/').next().unwrap_or(method).to_owned(),
                target: String::new(),
                from: peer
                    .map(|peer| peer.address.ip().to_string())
                    .unwrap_or_default(),
                request_id: String::new(),
                result: "client-gone".to_owned(),
            }),
        }
    }

    /// Says who signed the call.
    fn signed_by(&mut self, signed: &Signed) {
        if let Some(row) = &mut self.row {
            row.signer = format!("{} {}", signed.principal, signed.fingerprint);
        }
    }

    /// Writes the line down; it is written even where nobody waits for it.
    fn write(&mut self, result: Option<String>) -> Option<tokio::task::JoinHandle<()>> {
        let mut row = self.row.take()?;
        if let Some(result) = result {
            row.result = result;
        }
        if let Some((target, request_id)) = self.about.0.get() {
            row.target.clone_from(target);
            row.request_id.clone_from(request_id);
        }
        row.at = Timestamp::now();
        let registry = self.agent.registry.clone();
        Some(self.agent.work.spawn(async move {
            if let Err(error) = registry.append_audit(row).await {
                tracing::error!(error = %crate::error_chain(&error), "a call was not audited");
            }
        }))
    }

    async fn end(mut self, result: String) {
        if let Some(written) = self.write(Some(result)) {
            // It cannot panic, and at a shutdown the agent waits for it.
            let _ = written.await;
        }
    }
}

impl Drop for Audited {
    fn drop(&mut self) {
        if tokio::runtime::Handle::try_current().is_ok() {
            self.write(None);
        }
    }
}

/// How a call ended, in one word: `ok`, or the reason of its refusal.
fn result_word(response: &Response<Body>) -> String {
    let Some(status) = Status::from_header_map(response.headers()) else {
        return "ok".to_owned();
    };
    if status.code() == Code::Ok {
        return "ok".to_owned();
    }
    status::reason(&status).unwrap_or_else(|| format!("{:?}", status.code()))
}

impl Authenticate {
    /// A gate that believes the agent's verifier and writes into its registry.
    #[must_use]
    pub fn new(agent: Arc<Agent>) -> Self {
        let refusals = Refusals::load(&agent.config.data_dir, Timestamp::now());
        Self {
            agent,
            refusals: Arc::new(refusals),
        }
    }

    /// The method and who calls it, `None` for one that is open to anybody.
    async fn admit(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<(&'static Method, Option<Verified>), Status> {
        let method = methods::find(path);
        if let Some(method) = method
            && method.role.is_none()
        {
            return Ok((method, None));
        }
        let verified = self.verified(headers, peer).await?;
        if let Some(peer) = peer {
            peer.admit();
        }
        // A caller with a token may learn that its release is another one.
        let method = method.ok_or_else(|| status::unknown_method(path))?;
        Ok((method, Some(verified)))
    }

    async fn verified(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Verified, Status> {
        let (token, refused) = match bearer(headers) {
            Ok(token) => match self.agent.verifier.verify(token, Timestamp::now()).await {
                Ok(verified) => return Ok(verified),
                Err(error) => {
                    let (status, why) = (status::token(&error), error.to_string());
                    (Some(token), Refused { status, why })
                }
            },
            Err(status) => {
                let why = status.message().to_owned();
                (None, Refused { status, why })
            }
        };
        Err(self.refused(token, refused, peer).await)
    }

    /// Counts a refusal, logs it, and gives its answer. The token itself is logged nowhere.
    async fn refused(&self, token: Option<&str>, refused: Refused, peer: Option<&Peer>) -> Status {
        let address = peer.map(|peer| peer.address.ip());
        let mut senders: Vec<Sender> = address.map(Sender::at).into_iter().collect();
        senders.extend(
            token
                .and_then(|token| claimed(token, "sub"))
                .map(|subject| Sender::named(&subject)),
        );
        let verdict = self.refusals.count(&senders, Timestamp::now());
        if verdict.write {
            let refusals = Arc::clone(&self.refusals);
            if let Err(error) = blocking(move || refusals.write()).await {
                tracing::warn!(%error, "the counts of refused tokens are not kept");
            }
        }
        if let Some(wait) = verdict.wait {
            return status::too_many_refusals(wait);
        }
        tracing::warn!(address = ?address, error = refused.why, "token refused");
        refused.status
    }
}

/// A refusal as the caller gets it, and as the log has it.
struct Refused {
    status: Status,
    why: String,
}

/// The one bearer token of a call.
fn bearer(headers: &HeaderMap) -> Result<&str, Status> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let value = match (all.next(), all.next()) {
        (None, _) => return Err(status::no_token("the call has no token")),
        (Some(_), Some(_)) => {
            return Err(status::no_token("the call has more than one token"));
        }
        (Some(value), None) => value,
    };
    value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token)
        .ok_or_else(|| status::no_token("the call's authorization is no bearer token"))
}

impl<S> Layer<S> for Authenticate {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            authenticate: self.clone(),
            inner,
        }
    }
}

/// A service behind the gate.
#[derive(Debug, Clone)]
pub struct Gate<S> {
    authenticate: Authenticate,
    inner: S,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let authenticate = self.authenticate.clone();
        // The one that is ready is the one that was polled; its clone gets ready for the next call.
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        Box::pin(authenticate.pass(inner, request))
    }
}

impl Authenticate {
    /// One call, from its headers to the beginning of its response.
    async fn pass<S>(
        self,
        mut inner: S,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, S::Error>
    where
        S: Service<Request<Body>, Response = Response<Body>>,
    {
        let peer = request.extensions().get::<Peer>().cloned();
        // An issuer may have to be asked, so this is a wait, bounded there. The body is a stream that nobody may
        // share between threads: what is looked at is the head.
        let (path, headers) = (request.uri().path().to_owned(), request.headers().clone());
        let admitted = self.admit(&path, &headers, peer.as_ref()).await;
        drop(headers);
        let (method, verified) = match admitted {
            Ok(admitted) => admitted,
            Err(status) => return Ok(status.into_http()),
        };
        // No handler has a use for the token itself, so none can log it.
        request.headers_mut().remove(AUTHORIZATION);
        let Some(verified) = verified else {
            return within(method.limit, inner.call(request)).await;
        };
        let required = method.role.unwrap_or(Role::Admin);
        let mut audited = (required > Role::Viewer)
            .then(|| Audited::new(&self.agent, method.path, &verified.identity, peer.as_ref()));
        let call = async {
            let request =
                for_handler(&self.agent, method, verified, audited.as_mut(), request).await;
            match request {
                Ok(request) => inner.call(request).await,
                Err(status) => Ok(status.into_http()),
            }
        };
        let response = within(method.limit, call).await?;
        if let Some(audited) = audited {
            audited.end(result_word(&response)).await;
        }
        Ok(response)
    }
}

/// The request as its handler gets it: with its caller, who has the role, and behind whom a key stands
/// where that is asked for.
async fn for_handler(
    agent: &Arc<Agent>,
    method: &'static Method,
    verified: Verified,
    mut audited: Option<&mut Audited>,
    request: Request<Body>,
) -> Result<Request<Body>, Status> {
    let Verified {
        identity,
        confirmed,
    } = verified;
    let required = method.role.unwrap_or(Role::Admin);
    identity.require(required)?;
    if required > Role::Viewer && !confirmed {
        return Err(status::issuer_away(&identity.issuer));
    }
    let (mut head, body) = request.into_parts();
    let (identity, body) = if method.signed {
        let metadata = MetadataMap::from_headers(head.headers.clone());
        let (identity, by, body) =
            signed::admit(agent, method.path, identity, &metadata, body).await?;
        if let (Some(audited), Some(by)) = (&mut audited, &by) {
            audited.signed_by(by);
        }
        if let Some(by) = by {
            head.extensions.insert(by);
        }
        (identity, body)
    } else {
        (identity, body)
    };
    if let Some(audited) = audited {
        head.extensions.insert(audited.about.clone());
    }
    head.extensions.insert(identity);
    Ok(Request::from_parts(head, body))
}

/// Holds a call to its limit. It counts until the response begins; a stream has limits of its own.
async fn within<E>(
    limit: Duration,
    call: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Response<Body>, E> {
    match tokio::time::timeout(limit, call).await {
        Ok(response) => response,
        Err(_) => Ok(status::took_too_long(limit).into_http()),
    }
}

/// The caller of a request, whom the gate has verified.
///
/// # Errors
///
/// An internal status where the gate did not run, which would be a fault of the server's wiring.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Identity, Status> {
    request
        .extensions()
        .get::<Identity>()
        .cloned()
        .ok_or_else(|| Status::new(Code::Internal, "the call came past the gate"))
}
