//! The gate before every call: token, role, time limit. What is not listed is closed.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use jiff::Timestamp;
use tonic::body::Body;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use super::status;
use crate::auth::methods::{self, Method};
use crate::auth::refusals::Refusals;
use crate::auth::token::Verifier;
use crate::auth::{Identity, Role};
use crate::tls::Peer;

/// Puts the gate before a service.
#[derive(Debug, Clone)]
pub struct Authenticate {
    verifier: Arc<Verifier>,
    refusals: Arc<Refusals>,
}

impl Authenticate {
    /// A gate that believes this verifier.
    #[must_use]
    pub fn new(verifier: Arc<Verifier>) -> Self {
        Self {
            verifier,
            refusals: Arc::new(Refusals::default()),
        }
    }

    /// Who calls, `None` for a method that is open to anybody.
    fn admit(
        &self,
        path: &str,
        headers: &HeaderMap,
        peer: Option<&Peer>,
    ) -> Result<(&'static Method, Option<Identity>), Status> {
        let method = methods::find(path);
        if let Some(method) = method
            && method.role.is_none()
        {
            return Ok((method, None));
        }
        let identity = self.identity(headers, peer)?;
        // A caller with a token may learn that its release is another one.
        let method = method.ok_or_else(|| status::unknown_method(path))?;
        identity.require(method.role.unwrap_or(Role::Admin))?;
        Ok((method, Some(identity)))
    }

    fn identity(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Identity, Status> {
        let token = bearer(headers)?;
        self.verifier
            .verify(token, Timestamp::now())
            .map_err(|error| {
                let address = peer.map(|peer| peer.0.ip());
                let wait = address.and_then(|address| self.refusals.count(address, Instant::now()));
                if let Some(wait) = wait {
                    return status::too_many_refusals(wait);
                }
                tracing::warn!(address = ?address, %error, "token refused");
                status::token(&error)
            })
    }
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let admitted = self.authenticate.admit(
            request.uri().path(),
            request.headers(),
            request.extensions().get::<Peer>(),
        );
        let (method, identity) = match admitted {
            Ok(admitted) => admitted,
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        // No handler has a use for the token itself, so none can log it.
        request.headers_mut().remove(AUTHORIZATION);
        if let Some(identity) = identity {
            request.extensions_mut().insert(identity);
        }
        let call = self.inner.call(request);
        Box::pin(async move {
            // The limit holds until the response begins; a stream has limits of its own.
            match tokio::time::timeout(method.limit, call).await {
                Ok(response) => response,
                Err(_) => Ok(status::took_too_long(method.limit).into_http()),
            }
        })
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
