//! The signature of a call, before its handler: the bytes that were received are those that are held
//! against it, and those that the handler gets.
//!
//! A signed call bears a statement and its signature in two binary headers. The statement names the
//! digest of the first message; of a stream, that message says how long what follows is, and its digest.

use std::sync::Arc;

use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::body::{Bytes, Frame};
use mcp_spec::image::Digest;
use mcp_spec::request::{SIGNATURE_KEY, STATEMENT_KEY};
use mcp_spec::signature::{ALLOWED_SIGNERS_PATH, AllowedSigners, DeniedKeys};
use sha2::{Digest as _, Sha256};
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataMap;

use super::{MAX_MESSAGE_BYTES, status};
use crate::Agent;
use crate::auth::Identity;
use crate::auth::requests::{Call, Evidence, RequestError, RequestKeys, Signed, verify};
use crate::blocking::blocking;
use crate::config::SignedRequests;

/// A gRPC message on the wire begins with a flag and its length.
const PREFIX_BYTES: usize = 5;

/// What came with a call to stand for it, in its raw form.
#[derive(Debug)]
struct Borne {
    statement: Vec<u8>,
    signature: String,
}

/// What the headers bear; `None` where there is neither.
fn borne(metadata: &MetadataMap) -> Result<Option<Borne>, RequestError> {
    let one = |key: &'static str| -> Result<Option<Vec<u8>>, RequestError> {
        let mut all = metadata.get_all_bin(key).iter();
        let Some(value) = all.next() else {
            return Ok(None);
        };
        if all.next().is_some() {
            return Err(RequestError::Evidence);
        }
        let bytes = value.to_bytes().map_err(|_| RequestError::Evidence)?;
        Ok(Some(bytes.to_vec()))
    };
    match (one(STATEMENT_KEY)?, one(SIGNATURE_KEY)?) {
        (None, None) => Ok(None),
        (Some(statement), Some(signature)) => Ok(Some(Borne {
            statement,
            signature: String::from_utf8(signature).map_err(|_| RequestError::Evidence)?,
        })),
        _ => Err(RequestError::Evidence),
    }
}

/// Reads the first message of a body; gives its digest, and a body that has all of it again.
async fn first_message(mut body: Body) -> Result<(Digest, Body), Status> {
    let mut read: Vec<u8> = Vec::new();
    let end = loop {
        if let Some((prefix, rest)) = read.split_first_chunk::<PREFIX_BYTES>() {
            let [flag, length @ ..] = prefix;
            if *flag != 0 {
                return Err(status::signed_request(&RequestError::Compressed));
            }
            let length = u32::from_be_bytes(*length) as usize;
            if length > MAX_MESSAGE_BYTES {
                return Err(status::message_too_large(length, MAX_MESSAGE_BYTES));
            }
            if rest.len() >= length {
                break PREFIX_BYTES + length;
            }
        }
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => read.extend_from_slice(&data),
                Err(_) => return Err(status::bad_request("the request has no message")),
            },
            Some(Err(error)) => return Err(error),
            None => return Err(status::bad_request("the request ends in its first message")),
        }
    };
    let digest = Digest::from_bytes(Sha256::digest(&read[PREFIX_BYTES..end]).into());
    let first = futures_util::stream::iter([Ok(Frame::data(Bytes::from(read)))]);
    let whole = StreamBody::new(first.chain(BodyStream::new(body)));
    Ok((digest, Body::new(whole)))
}

/// Holds a call to its signature. Gives the caller, with no more rights than the key has, who signed,
/// and the body for the handler.
///
/// # Errors
///
/// The refusal; nothing was done then.
pub(super) async fn admit(
    agent: &Arc<Agent>,
    method: &'static str,
    identity: Identity,
    metadata: &MetadataMap,
    body: Body,
) -> Result<(Identity, Option<Signed>, Body), Status> {
    let refuse = |error: RequestError| status::signed_request(&error);
    let Some(borne) = borne(metadata).map_err(refuse)? else {
        return match agent.config.trust.signed_requests {
            SignedRequests::Required => Err(refuse(RequestError::Unsigned)),
            SignedRequests::Optional => Ok((identity, None, body)),
        };
    };
    let (message, body) = first_message(body).await?;
    let now = agent.clock.now();
    let (keys, denied) = keys(agent).await?;
    let call = Call {
        node: &agent.config.node,
        method,
        message,
        now: now.as_second(),
    };
    let evidence = Evidence {
        statement: &borne.statement,
        signature: &borne.signature,
    };
    let principals = &agent.config.trust.principals;
    let signed = verify(
        evidence,
        call,
        &keys,
        &denied,
        &identity.subject,
        principals,
    )
    .map_err(refuse)?;
    let is_new = agent
        .registry
        .note_statement(signed.id.clone(), signed.expires, now)
        .await
        .map_err(|error| status::registry(&error))?;
    if !is_new {
        return Err(refuse(RequestError::Replayed));
    }
    Ok((signed.narrow(identity), Some(signed), body))
}

/// The keys that count now: files and head are read for each call, so that a key denied or revoked now
/// counts for nothing from now on.
async fn keys(agent: &Arc<Agent>) -> Result<(RequestKeys, DeniedKeys), Status> {
    let agent = Arc::clone(agent);
    blocking(move || {
        let roots = crate::trust_roots(&agent.config).map_err(|error| status::trust(&error))?;
        let Some(head) = agent.revisions.head() else {
            return Ok((RequestKeys::Owners(roots.owners), roots.denied));
        };
        // A head without the file has no signers: nobody's request counts.
        let bytes = agent
            .revisions
            .read_file(head, ALLOWED_SIGNERS_PATH)
            .map_err(|error| status::read(&error))?
            .unwrap_or_default();
        let signers =
            AllowedSigners::parse_bytes(&bytes).map_err(|error| status::signers(&error))?;
        Ok((RequestKeys::OfHead(head, signers), roots.denied))
    })
    .await
}
