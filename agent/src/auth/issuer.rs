//! The built-in issuer: short-lived tokens signed with a key of the agent's own.
//!
//! The key lies in the data directory, mode 0600. Whoever can read it is any operator of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _};
use ed25519_dalek::{Signer as _, SigningKey};
use jiff::Timestamp;
use mcp_spec::duration::Span;
use mcp_spec::name::{NodeName, ServiceName};
use rand::RngCore as _;
use rand::rngs::OsRng;
use serde_json::json;
use thiserror::Error;

use super::Role;
use super::token::TrustedIssuer;

/// The `iss` of the tokens that a node's own agent makes.
#[must_use]
pub fn issuer_name(node: &NodeName) -> String {
    format!("mcp-agent:{node}")
}

/// Viewer, operator and admin, by their own names.
#[must_use]
pub fn own_roles() -> BTreeMap<String, Role> {
    [Role::Viewer, Role::Operator, Role::Admin]
        .into_iter()
        .map(|role| (role.as_str().to_owned(), role))
        .collect()
}

/// The agent's own issuer.
pub struct Issuer {
    name: String,
    key: SigningKey,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Why the issuer's key cannot be used.
#[derive(Debug, Error)]
pub enum IssuerKeyError {
    /// The file cannot be read.
    #[error("cannot read the issuer's key {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not an Ed25519 key in PKCS#8 PEM.
    #[error("{} is no Ed25519 private key in PKCS#8", file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
    },
}

/// What a token is to say.
#[derive(Debug, Clone)]
pub struct Grant {
    /// Who.
    pub subject: String,
    /// What they may.
    pub role: Role,
    /// For how long.
    pub ttl: Span,
    /// For which services alone; empty for all.
    pub services: BTreeSet<ServiceName>,
    /// On which nodes alone; empty for all.
    pub nodes: BTreeSet<NodeName>,
    /// For whom, the `aud`.
    pub audience: String,
}

impl Issuer {
    /// An issuer with a new key.
    #[must_use]
    pub fn generate(node: &NodeName) -> Self {
        Self {
            name: issuer_name(node),
            key: SigningKey::generate(&mut OsRng),
        }
    }

    /// The issuer with the key in `file`.
    ///
    /// # Errors
    ///
    /// [`IssuerKeyError`] where the file cannot be read or holds no such key.
    pub fn load(node: &NodeName, file: &Path) -> Result<Self, IssuerKeyError> {
        let pem = fs::read_to_string(file).map_err(|source| IssuerKeyError::Read {
            file: file.to_owned(),
            source,
        })?;
        let key = SigningKey::from_pkcs8_pem(&pem).map_err(|_| IssuerKeyError::Malformed {
            file: file.to_owned(),
        })?;
        Ok(Self {
            name: issuer_name(node),
            key,
        })
    }

    /// The private key in PKCS#8 PEM, for its file.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.key
            .to_pkcs8_pem(ed25519_dalek::pkcs8::spki::der::pem::LineEnding::LF)
            .expect("an Ed25519 key always encodes")
            .to_string()
    }

    /// The public key as a JWK, for other nodes that are to take this node's tokens.
    #[must_use]
    pub fn jwk(&self) -> String {
        let jwk = json!({
            "kty": "OKP",
            "crv": "Ed25519",
            "alg": "EdDSA",
            "use": "sig",
            "kid": self.name,
            "x": URL_SAFE_NO_PAD.encode(self.key.verifying_key().as_bytes()),
        });
        format!("{jwk:#}\n")
    }

    /// What a verifier has to know about this issuer.
    #[must_use]
    pub fn trusted(&self) -> TrustedIssuer {
        TrustedIssuer {
            issuer: self.name.clone(),
            keys: vec![self.key.verifying_key()],
            roles: own_roles(),
        }
    }

    /// Makes a token.
    #[must_use]
    pub fn issue(&self, grant: &Grant, now: Timestamp) -> String {
        let mut id = [0; 16];
        OsRng.fill_bytes(&mut id);
        let issued = now.as_second();
        // The largest span is a year, so this neither wraps nor cuts.
        let seconds = i64::try_from(grant.ttl.as_secs_ceil()).unwrap_or(i64::MAX);
        let mut claims = json!({
            "iss": self.name,
            "sub": grant.subject,
            "aud": grant.audience,
            "iat": issued,
            "exp": issued.saturating_add(seconds),
            "jti": hex::encode(id),
            "roles": [grant.role],
        });
        if !grant.services.is_empty() {
            claims["mcp_services"] = json!(grant.services);
        }
        if !grant.nodes.is_empty() {
            claims["mcp_nodes"] = json!(grant.nodes);
        }
        let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": self.name});
        let mut token = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header.to_string()),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature = self.key.sign(token.as_bytes());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature.to_bytes()));
        token
    }
}
