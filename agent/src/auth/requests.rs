//! Signed requests: whether a key that the node trusts stands behind a call, beside its token.
//!
//! A stolen token alone changes nothing. What a call may do is what both its token and its key allow.

use std::collections::{BTreeMap, BTreeSet};

use mcp_spec::image::Digest;
use mcp_spec::name::{NodeName, ServiceName};
use mcp_spec::request::{Statement, StatementError, UncoveredError, is_same_person};
use mcp_spec::revision::CommitId;
use mcp_spec::signature::{
    AllowedSigners, DeniedKeys, OwnerKeys, REQUEST_NAMESPACE, SignatureError, fingerprint,
    verify_sshsig,
};
use thiserror::Error;

use super::Identity;

/// The keys that may stand behind a call.
#[derive(Debug, Clone)]
pub enum RequestKeys {
    /// Those of the head's `.mcp/allowed_signers`.
    OfHead(CommitId, AllowedSigners),
    /// The pinned owners': nothing was accepted yet.
    Owners(OwnerKeys),
}

/// A call, as far as a signature is about it.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// This node.
    pub node: &'a NodeName,
    /// The method's full path.
    pub method: &'a str,
    /// SHA-256 of its (first) message.
    pub message: Digest,
    /// Seconds since 1970.
    pub now: i64,
}

/// What came with a call.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// The statement's bytes, as they were received.
    pub statement: &'a [u8],
    /// The armoured signature.
    pub signature: &'a str,
}

/// Who stands behind a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Whose key.
    pub principal: String,
    /// The key's fingerprint.
    pub fingerprint: String,
    /// The services that the key is limited to; `None` for no limit.
    pub services: Option<BTreeSet<ServiceName>>,
    /// The statement's id, which may come once.
    pub id: String,
    /// When the statement ends, in seconds since 1970.
    pub expires: i64,
}

/// Why nobody stands behind a call.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// It bears no signature, and one is required.
    #[error("this takes a request that is signed, and the request is not")]
    Unsigned,
    /// A statement without a signature, or the other way round, or one of them twice.
    #[error("the request has to bear one statement and one signature")]
    Evidence,
    /// The message is compressed, so that its bytes are not those that were signed.
    #[error("a signed request is not compressed")]
    Compressed,
    /// The statement cannot be read.
    #[error(transparent)]
    Statement(#[from] StatementError),
    /// The signature does not hold.
    #[error("the request's signature does not count")]
    Signature(#[from] SignatureError),
    /// The statement is about another call.
    #[error("the request does not count: {0}")]
    Uncovered(UncoveredError),
    /// The key is denied on this node.
    #[error("the request is signed by {fingerprint}, a key that is denied on this node")]
    Denied {
        /// The key.
        fingerprint: String,
    },
    /// The key is unknown.
    #[error("the request is signed by {fingerprint}, which is not among the signers of {at}")]
    Unknown {
        /// The key.
        fingerprint: String,
        /// The head, or what stands in for it.
        at: String,
    },
    /// The key may sign revisions, and no requests.
    #[error("{principal} may not sign requests: the key's line has no `mcp-request` namespace")]
    MayNotRequest {
        /// Whose key.
        principal: String,
    },
    /// Token and key are not the same person's.
    #[error("the token is {subject}'s, and the request is signed by {principal}")]
    Subject {
        /// The token's subject.
        subject: String,
        /// The key's principal.
        principal: String,
    },
    /// The same statement came before.
    #[error("the request was received before; a signature counts once")]
    Replayed,
}

impl RequestError {
    /// The stable word for it.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unsigned => "request-unsigned",
            Self::Evidence | Self::Compressed | Self::Statement(_) => "request-malformed",
            Self::Signature(_) => "request-signature",
            Self::Uncovered(error) => error.reason(),
            Self::Denied { .. } => "request-denied-key",
            Self::Unknown { .. } => "request-unknown-key",
            Self::MayNotRequest { .. } => "request-namespace",
            Self::Subject { .. } => "request-subject",
            Self::Replayed => "request-replayed",
        }
    }

    /// The next thing to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unsigned => "name your signing key: --key FILE, [sign] key in mcp.toml, or git config user.signingkey".to_owned(),
            Self::Evidence | Self::Compressed | Self::Statement(_) | Self::Signature(_) => {
                "use the CLI of this release".to_owned()
            }
            Self::Uncovered(error) => error
                .hint()
                .unwrap_or("a request has to be signed anew for each call")
                .to_owned(),
            Self::Denied { .. } => "sign with another key; the node's owner denied this one".to_owned(),
            Self::Unknown { .. } => {
                "sign with a key of .mcp/allowed_signers (--key FILE), or have an owner add this one".to_owned()
            }
            Self::MayNotRequest { .. } => {
                "have an owner add mcp-request to the key's namespaces in .mcp/allowed_signers".to_owned()
            }
            Self::Subject { subject, principal } => format!(
                "log in with a token for {principal}, or have the node's owner write `{subject} = \"{principal}\"` \
                 below [trust.principals] of agent.toml"
            ),
            Self::Replayed => "send it anew: each request is signed for itself".to_owned(),
        }
    }
}

/// Holds what came with a call against the call, the keys that this node trusts, and the token's subject.
/// `principals` maps subjects to principals where they differ.
///
/// # Errors
///
/// [`RequestError`], the first that holds; whether the statement came before is not looked at here.
pub fn verify(
    evidence: Evidence<'_>,
    call: Call<'_>,
    keys: &RequestKeys,
    denied: &DeniedKeys,
    subject: &str,
    principals: &BTreeMap<String, String>,
) -> Result<Signed, RequestError> {
    let key = verify_sshsig(evidence.signature, REQUEST_NAMESPACE, evidence.statement)?;
    let statement = Statement::parse(evidence.statement)?;
    let fingerprint = fingerprint(&key);
    if denied.contains(&key) {
        return Err(RequestError::Denied { fingerprint });
    }
    let (principal, services) = match keys {
        RequestKeys::OfHead(head, signers) => {
            let signer = signers.get(&key).ok_or_else(|| RequestError::Unknown {
                fingerprint: fingerprint.clone(),
                at: head.short(),
            })?;
            if !signer.may_request() {
                return Err(RequestError::MayNotRequest {
                    principal: signer.principal.clone(),
                });
            }
            if !is_principal(subject, &signer.principal, principals) {
                return Err(RequestError::Subject {
                    subject: subject.to_owned(),
                    principal: signer.principal.clone(),
                });
            }
            (signer.principal.clone(), signer.services.clone())
        }
        // No name goes with a pinned key: it is the owner, whoever's the token is.
        RequestKeys::Owners(owners) if owners.contains(&key) => ("owner".to_owned(), None),
        RequestKeys::Owners(_) => {
            return Err(RequestError::Unknown {
                fingerprint,
                at: "this node, where only its owners' count before the first push".to_owned(),
            });
        }
    };
    statement
        .covers(call.node, call.method, call.message, call.now)
        .map_err(RequestError::Uncovered)?;
    Ok(Signed {
        principal,
        fingerprint,
        services,
        id: statement.id,
        expires: statement.expires,
    })
}

/// Whether the token's subject is the key's principal: by the node owner's word where there is one.
fn is_principal(subject: &str, principal: &str, principals: &BTreeMap<String, String>) -> bool {
    match principals.get(subject) {
        Some(mapped) => mapped == principal,
        None => is_same_person(subject, principal),
    }
}

impl Signed {
    /// The caller, with no more rights than its key has.
    #[must_use]
    pub fn narrow(&self, mut identity: Identity) -> Identity {
        identity.services = match (identity.services, &self.services) {
            (None, limit) => limit.clone(),
            (services, None) => services,
            (Some(services), Some(limit)) => Some(services.intersection(limit).cloned().collect()),
        };
        identity
    }
}

#[cfg(test)]
mod tests {
    use ssh_key::private::Ed25519Keypair;
    use ssh_key::{HashAlg, LineEnding, PrivateKey, PublicKey};

    use super::super::Role;
    use super::*;

    const DEPLOY: &str = "/mcp.v1.Deployments/Deploy";

    fn private(seed: u8) -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
    }

    fn public(seed: u8) -> PublicKey {
        private(seed).public_key().clone()
    }

    fn statement() -> Statement {
        Statement {
            nodes: ["rift".parse().unwrap()].into(),
            method: DEPLOY.to_owned(),
            message: Digest::of(b"message"),
            id: "00".repeat(16),
            issued: 1_000,
            expires: 1_060,
        }
    }

    fn sign(seed: u8, namespace: &str, bytes: &[u8]) -> String {
        let signature = private(seed).sign(namespace, HashAlg::Sha512, bytes);
        signature.unwrap().to_pem(LineEnding::LF).unwrap()
    }

    fn of_head() -> RequestKeys {
        let lines = [
            (1, "alice", vec!["git", "mcp-owner"]),
            (2, "bob@example.net", vec!["git", "mcp-request"]),
            (3, "carol", vec!["git"]),
            (4, "dave", vec!["git", "mcp-request", "mcp-service-shop"]),
        ];
        let text: Vec<String> = lines
            .iter()
            .map(|(seed, name, namespaces)| {
                AllowedSigners::line_for(name, &public(*seed), namespaces)
            })
            .collect();
        RequestKeys::OfHead(
            "0".repeat(40).parse().unwrap(),
            AllowedSigners::parse(&text.join("\n")).unwrap(),
        )
    }

    fn verdict(seed: u8, subject: &str, keys: &RequestKeys) -> Result<Signed, RequestError> {
        let bytes = statement().to_bytes();
        let denied = DeniedKeys::parse(&public(9).to_openssh().unwrap()).unwrap();
        verify(
            Evidence {
                statement: &bytes,
                signature: &sign(seed, "mcp-request", &bytes),
            },
            Call {
                node: &"rift".parse().unwrap(),
                method: DEPLOY,
                message: Digest::of(b"message"),
                now: 1_010,
            },
            keys,
            &denied,
            subject,
            &BTreeMap::from([("4711".to_owned(), "alice".to_owned())]),
        )
    }

    fn reason(verdict: Result<Signed, RequestError>) -> &'static str {
        verdict.unwrap_err().reason()
    }

    #[test]
    fn owners_and_those_with_the_namespace_may_ask() {
        assert_eq!(verdict(1, "alice", &of_head()).unwrap().principal, "alice");
        assert_eq!(
            verdict(2, "bob", &of_head()).unwrap().principal,
            "bob@example.net"
        );
        assert!(verdict(2, "bob@example.net", &of_head()).is_ok());
        assert_eq!(reason(verdict(3, "carol", &of_head())), "request-namespace");
        assert_eq!(
            reason(verdict(7, "alice", &of_head())),
            "request-unknown-key"
        );
        assert_eq!(
            reason(verdict(9, "alice", &of_head())),
            "request-denied-key"
        );
    }

    #[test]
    fn token_and_key_are_one_persons() {
        assert_eq!(reason(verdict(1, "bob", &of_head())), "request-subject");
        assert_eq!(reason(verdict(1, "alic", &of_head())), "request-subject");
        assert!(verdict(1, "4711", &of_head()).is_ok(), "it is mapped");
        assert_eq!(reason(verdict(2, "4711", &of_head())), "request-subject");
    }

    #[test]
    fn before_the_first_push_the_owners_count() {
        let owners =
            RequestKeys::Owners(OwnerKeys::parse(&public(1).to_openssh().unwrap()).unwrap());
        assert!(verdict(1, "anybody", &owners).is_ok());
        assert_eq!(reason(verdict(2, "bob", &owners)), "request-unknown-key");
    }

    #[test]
    fn what_was_not_signed_does_not_count() {
        let bytes = statement().to_bytes();
        let attempt = |statement: &[u8], signature: &str| {
            verify(
                Evidence {
                    statement,
                    signature,
                },
                Call {
                    node: &"rift".parse().unwrap(),
                    method: DEPLOY,
                    message: Digest::of(b"message"),
                    now: 1_010,
                },
                &of_head(),
                &DeniedKeys::default(),
                "alice",
                &BTreeMap::new(),
            )
        };
        assert!(attempt(&bytes, &sign(1, "mcp-request", &bytes)).is_ok());
        // A revision's signature is none of a request.
        assert_eq!(
            reason(attempt(&bytes, &sign(1, "git", &bytes))),
            "request-signature"
        );
        let longer = Statement {
            expires: 1_061,
            ..statement()
        };
        assert_eq!(
            reason(attempt(&longer.to_bytes(), &sign(1, "mcp-request", &bytes))),
            "request-signature"
        );
        let elsewhere = Statement {
            nodes: ["orion".parse().unwrap()].into(),
            ..statement()
        }
        .to_bytes();
        assert_eq!(
            reason(attempt(&elsewhere, &sign(1, "mcp-request", &elsewhere))),
            "request-other-node"
        );
        assert_eq!(
            reason(attempt(b"nonsense", &sign(1, "mcp-request", b"nonsense"))),
            "request-malformed"
        );
    }

    #[test]
    fn rights_are_those_that_token_and_key_share() {
        let identity = |services: Option<&[&str]>| Identity {
            subject: "dave".to_owned(),
            role: Role::Operator,
            services: services.map(|names| names.iter().map(|n| n.parse().unwrap()).collect()),
            issuer: "mcp-agent:rift".to_owned(),
            token_id: "1".to_owned(),
        };
        let limited = verdict(4, "dave", &of_head()).unwrap();
        let free = verdict(1, "alice", &of_head()).unwrap();
        let of = |signed: &Signed, services| {
            signed
                .narrow(identity(services))
                .services
                .map(|all| all.into_iter().map(|s| s.to_string()).collect::<Vec<_>>())
        };
        assert_eq!(of(&free, None), None);
        assert_eq!(of(&limited, None), Some(vec!["shop".to_owned()]));
        assert_eq!(of(&free, Some(&["wiki"])), Some(vec!["wiki".to_owned()]));
        assert_eq!(of(&limited, Some(&["wiki"])), Some(Vec::new()));
        assert_eq!(
            of(&limited, Some(&["shop", "wiki"])),
            Some(vec!["shop".to_owned()])
        );
    }
}
