//! Tokens: a strict verifier for one algorithm, JWT with EdDSA over Ed25519.
//!
//! The key fixes the algorithm, never the header. The signature is checked before the claims are
//! read. Everything is offline and bounded. See RFC 7519, RFC 7515 and RFC 8037.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, VerifyingKey};
use jiff::{SignedDuration, Timestamp};
use mcp_spec::name::{NodeName, ServiceName};
use serde::Deserialize;
use serde::de::{self, DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use thiserror::Error;

use super::{Identity, Role};

/// Longest token that is looked at, in bytes. Real ones have about 400.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// How far two clocks may differ.
const LEEWAY: SignedDuration = SignedDuration::from_secs(30);
/// Longest `sub` and `jti`, in bytes.
const MAX_CLAIM_BYTES: usize = 256;

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenError {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("the token has {length} bytes; at most 8192 are read")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// Not three segments of base64url.
    #[error("the token is no JWT of three base64url segments")]
    Shape,
    /// The header is no JSON object of `alg`, `typ` and `kid`.
    #[error("the token's header is refused: only alg, typ and kid are allowed, each once")]
    Header,
    /// Another algorithm.
    #[error("the token's algorithm is not EdDSA")]
    Algorithm,
    /// No known key made the signature.
    #[error("the token is not signed by an issuer that this node trusts")]
    Signature,
    /// The claims are no JSON object, or one stands twice.
    #[error("the token's claims are no JSON object with each name once")]
    Claims,
    /// A claim is missing or has the wrong type.
    #[error("the token's claim `{claim}` is missing or malformed")]
    Claim {
        /// Its name.
        claim: &'static str,
    },
    /// The key that signed belongs to another issuer.
    #[error("the token names an issuer that did not sign it")]
    Issuer,
    /// Its time is over.
    #[error("the token expired at {at}; this node's clock says {now}")]
    Expired {
        /// When.
        at: Timestamp,
        /// What time it is here, which may be wrong.
        now: Timestamp,
    },
    /// Issued or valid only later than now.
    #[error("the token is valid only from {at}; this node's clock says {now}: check the clocks")]
    Future {
        /// From when.
        at: Timestamp,
        /// What time it is here, which may be wrong.
        now: Timestamp,
    },
    /// Older than the node takes.
    #[error("the token was issued at {at}, longer ago than this node takes ({max_age})")]
    TooOld {
        /// When it was issued.
        at: Timestamp,
        /// `auth.max_age`.
        max_age: mcp_spec::duration::Span,
    },
    /// For somebody else.
    #[error("the token is for another audience than `{expected}`")]
    Audience {
        /// `auth.audience`.
        expected: String,
    },
    /// Its issuer took it back.
    #[error("the token's issuer says that it does not count any more")]
    Revoked,
    /// For other nodes.
    #[error("the token does not cover node {node}")]
    Node {
        /// This node.
        node: NodeName,
    },
    /// None of its roles is one here.
    #[error("no role of {subject} is mapped on this node")]
    NoRole {
        /// The token's subject.
        subject: String,
    },
}

impl TokenError {
    /// A stable word for machines.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Expired { .. } | Self::TooOld { .. } => "token-expired",
            Self::Future { .. } => "token-from-the-future",
            Self::Revoked => "token-revoked",
            Self::NoRole { .. } => "no-role",
            Self::Node { .. } => "wrong-node",
            _ => "bad-token",
        }
    }

    /// Whether whoever sent it may learn why: an issuer signed it, and its time, node or roles are what is wrong.
    #[must_use]
    pub fn may_be_told(&self) -> bool {
        self.reason() != "bad-token"
    }
}

/// One issuer whose tokens count.
#[derive(Debug, Clone)]
pub struct TrustedIssuer {
    /// The `iss` of its tokens.
    pub issuer: String,
    /// Its public keys.
    pub keys: Vec<VerifyingKey>,
    /// What its roles are here.
    pub roles: BTreeMap<String, Role>,
}

/// What is asked of a token.
#[derive(Debug, Clone)]
pub struct Verifier {
    /// This node.
    pub node: NodeName,
    /// What `aud` must name, where there is one.
    pub audience: String,
    /// Oldest token that is taken.
    pub max_age: mcp_spec::duration::Span,
    /// The issuers, the built-in one first.
    pub issuers: Vec<TrustedIssuer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    #[serde(default)]
    typ: Option<String>,
    #[serde(default, rename = "kid")]
    _kid: Option<String>,
}

impl Verifier {
    /// Verifies a token and tells who calls.
    ///
    /// # Errors
    ///
    /// [`TokenError`] with the first thing that is wrong.
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Identity, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong {
                length: token.len(),
            });
        }
        let segments: Vec<&str> = token.split('.').collect();
        let &[header, claims, signature] = segments.as_slice() else {
            return Err(TokenError::Shape);
        };
        let signed = &token[..header.len() + 1 + claims.len()];
        let decode = |segment: &str| {
            URL_SAFE_NO_PAD
                .decode(segment)
                .map_err(|_| TokenError::Shape)
        };
        check_header(&decode(header)?)?;
        let claims = decode(claims)?;
        let signature =
            Signature::from_slice(&decode(signature)?).map_err(|_| TokenError::Signature)?;
        let signer = self
            .issuers
            .iter()
            .find(|issuer| {
                issuer
                    .keys
                    .iter()
                    .any(|key| key.verify_strict(signed.as_bytes(), &signature).is_ok())
            })
            .ok_or(TokenError::Signature)?;
        self.identity(signer, &claims, now)
    }

    fn identity(
        &self,
        signer: &TrustedIssuer,
        claims: &[u8],
        now: Timestamp,
    ) -> Result<Identity, TokenError> {
        let Strict(claims) = serde_json::from_slice(claims).map_err(|_| TokenError::Claims)?;
        if !claims.is_object() {
            return Err(TokenError::Claims);
        }
        if claim::<String>(&claims, "iss")? != signer.issuer {
            return Err(TokenError::Issuer);
        }
        let subject = text(&claims, "sub")?;
        let token_id = text(&claims, "jti")?;
        self.check_times(&claims, now)?;
        self.check_audience(&claims)?;
        if let Some(nodes) = optional::<Vec<String>>(&claims, "mcp_nodes")?
            && !nodes.iter().any(|node| node == self.node.as_str())
        {
            return Err(TokenError::Node {
                node: self.node.clone(),
            });
        }
        let role = optional::<Vec<String>>(&claims, "roles")?
            .unwrap_or_default()
            .iter()
            .filter_map(|role| signer.roles.get(role).copied())
            .max()
            .ok_or_else(|| TokenError::NoRole {
                subject: subject.clone(),
            })?;
        Ok(Identity {
            subject,
            role,
            services: optional::<BTreeSet<ServiceName>>(&claims, "mcp_services")?,
            issuer: signer.issuer.clone(),
            token_id,
        })
    }

    fn check_times(&self, claims: &Value, now: Timestamp) -> Result<(), TokenError> {
        let time = |name: &'static str| -> Result<Timestamp, TokenError> {
            Timestamp::from_second(claim(claims, name)?)
                .map_err(|_| TokenError::Claim { claim: name })
        };
        let (issued, expires) = (time("iat")?, time("exp")?);
        // To the second, as tokens have it.
        let shown = Timestamp::from_second(now.as_second()).unwrap_or(now);
        if expires <= issued {
            return Err(TokenError::Claim { claim: "exp" });
        }
        if now.duration_since(expires) >= LEEWAY {
            return Err(TokenError::Expired {
                at: expires,
                now: shown,
            });
        }
        let mut from = issued;
        if claims.get("nbf").is_some() {
            from = from.max(time("nbf")?);
        }
        if from.duration_since(now) > LEEWAY {
            return Err(TokenError::Future {
                at: from,
                now: shown,
            });
        }
        let max_age =
            SignedDuration::try_from(self.max_age.as_duration()).expect("a span is at most a year");
        if now.duration_since(issued) > max_age + LEEWAY {
            return Err(TokenError::TooOld {
                at: issued,
                max_age: self.max_age,
            });
        }
        Ok(())
    }

    fn check_audience(&self, claims: &Value) -> Result<(), TokenError> {
        let audiences = match claims.get("aud") {
            None => return Ok(()),
            Some(Value::String(one)) => vec![one.clone()],
            Some(_) => claim::<Vec<String>>(claims, "aud")?,
        };
        if audiences.contains(&self.audience) {
            return Ok(());
        }
        Err(TokenError::Audience {
            expected: self.audience.clone(),
        })
    }
}

fn check_header(bytes: &[u8]) -> Result<(), TokenError> {
    // An unknown name is refused too, so `crit`, `jwk`, `jku`, `x5u` and `x5c` are.
    let header: Header = serde_json::from_slice(bytes).map_err(|_| TokenError::Header)?;
    if header.alg != "EdDSA" {
        return Err(TokenError::Algorithm);
    }
    match header.typ.as_deref() {
        None => Ok(()),
        Some(typ) if typ.eq_ignore_ascii_case("JWT") => Ok(()),
        Some(_) => Err(TokenError::Header),
    }
}

fn optional<T: DeserializeOwned>(
    claims: &Value,
    claim: &'static str,
) -> Result<Option<T>, TokenError> {
    claims
        .get(claim)
        .map(|value| serde_json::from_value(value.clone()))
        .transpose()
        .map_err(|_| TokenError::Claim { claim })
}

fn claim<T: DeserializeOwned>(claims: &Value, name: &'static str) -> Result<T, TokenError> {
    optional(claims, name)?.ok_or(TokenError::Claim { claim: name })
}

/// A claim that is shown and logged: short, and without control characters.
fn text(claims: &Value, name: &'static str) -> Result<String, TokenError> {
    let text: String = claim(claims, name)?;
    if text.is_empty() || text.len() > MAX_CLAIM_BYTES || text.chars().any(char::is_control) {
        return Err(TokenError::Claim { claim: name });
    }
    Ok(text)
}

/// A text that an unverified token claims: for finding what to verify it with, and for counting refusals.
#[must_use]
pub fn claimed(token: &str, name: &str) -> Option<String> {
    if token.len() > MAX_TOKEN_BYTES {
        return None;
    }
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    let text = claims.get(name)?.as_str()?;
    (!text.is_empty() && text.len() <= 1024).then(|| text.to_owned())
}

/// A JSON value in which no object has the same name twice: two parsers must not read two tokens.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Strict, E> {
        Ok(Strict(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Strict, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = sequence.next_element()? {
            values.push(value);
        }
        Ok(Strict(values.into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
        let mut values = serde_json::Map::new();
        while let Some((name, Strict(value))) = map.next_entry::<String, Strict>()? {
            if values.insert(name, value).is_some() {
                return Err(de::Error::custom("a name stands twice"));
            }
        }
        Ok(Strict(values.into()))
    }
}

#[cfg(test)]
mod tests;
