//! The public keys of an issuer, as a file or an answer of its server tells them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::VerifyingKey;
use ed25519_dalek::pkcs8::DecodePublicKey as _;
use serde::Deserialize;
use thiserror::Error;

/// Most keys that one issuer may have.
const MAX_KEYS: usize = 16;

/// Why a file of an issuer's public key is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JwkError {
    /// Neither PEM nor JSON of that shape.
    #[error("it is no public key in PEM, no JWK and no JWK set")]
    Shape,
    /// Another kind of key.
    #[error("key {kid} is {kty} {crv}; only OKP Ed25519 is accepted")]
    Kind {
        /// The key's id, or its place.
        kid: String,
        /// Its type.
        kty: String,
        /// Its curve.
        crv: String,
    },
    /// The point is malformed or weak.
    #[error("key {kid} is malformed")]
    Malformed {
        /// The key's id, or its place.
        kid: String,
    },
    /// It holds the private half.
    #[error("key {kid} holds the private half, which has no place here")]
    Private {
        /// The key's id, or its place.
        kid: String,
    },
    /// None, or too many.
    #[error("it holds {count} keys; 1 to 16 are accepted")]
    Count {
        /// How many.
        count: usize,
    },
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    d: Option<String>,
    #[serde(default)]
    kid: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JwkFile {
    Set { keys: Vec<Jwk> },
    One(Jwk),
}

/// The public keys of an issuer, as its file tells.
#[derive(Debug, Clone)]
pub struct IssuerKeys {
    /// The keys.
    pub keys: Vec<VerifyingKey>,
    /// The first key's id, where it has one.
    pub kid: Option<String>,
}

/// Reads Ed25519 public keys: a JWK, a JWK set (RFC 8037), or one or more `PUBLIC KEY` blocks in PEM (RFC 8410).
///
/// # Errors
///
/// [`JwkError`] with the first key that is refused.
pub fn read_keys(text: &str) -> Result<IssuerKeys, JwkError> {
    if text.contains(PEM_BEGIN) {
        return read_pem(text);
    }
    let jwks = match serde_json::from_str(text).map_err(|_| JwkError::Shape)? {
        JwkFile::Set { keys } => keys,
        JwkFile::One(key) => vec![key],
    };
    if !(1..=MAX_KEYS).contains(&jwks.len()) {
        return Err(JwkError::Count { count: jwks.len() });
    }
    let kid = jwks[0].kid.clone();
    let mut keys = Vec::new();
    for (index, jwk) in jwks.into_iter().enumerate() {
        let kid = jwk.kid.unwrap_or_else(|| format!("number {}", index + 1));
        if jwk.kty != "OKP" || jwk.crv != "Ed25519" {
            return Err(JwkError::Kind {
                kid,
                kty: jwk.kty,
                crv: jwk.crv,
            });
        }
        if jwk.d.is_some() {
            return Err(JwkError::Private { kid });
        }
        let key = URL_SAFE_NO_PAD
            .decode(&jwk.x)
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok())
            .filter(|key| !key.is_weak());
        keys.push(key.ok_or(JwkError::Malformed { kid })?);
    }
    Ok(IssuerKeys { keys, kid })
}

/// What every block in PEM begins with.
const PEM_BEGIN: &str = "-----BEGIN ";

fn read_pem(text: &str) -> Result<IssuerKeys, JwkError> {
    let blocks: Vec<&str> = text.split(PEM_BEGIN).skip(1).collect();
    if !(1..=MAX_KEYS).contains(&blocks.len()) {
        return Err(JwkError::Count {
            count: blocks.len(),
        });
    }
    let mut keys = Vec::new();
    for (index, block) in blocks.into_iter().enumerate() {
        let kid = format!("number {}", index + 1);
        let label = block.split("-----").next().unwrap_or_default();
        if label.contains("PRIVATE") {
            return Err(JwkError::Private { kid });
        }
        if label != "PUBLIC KEY" {
            return Err(JwkError::Kind {
                kid,
                kty: label.chars().take(40).collect(),
                crv: "in PEM".to_owned(),
            });
        }
        let key = VerifyingKey::from_public_key_pem(&format!("{PEM_BEGIN}{}", block.trim_end()))
            .ok()
            .filter(|key| !key.is_weak());
        keys.push(key.ok_or(JwkError::Malformed { kid })?);
    }
    Ok(IssuerKeys { keys, kid: None })
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
    use ed25519_dalek::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _};

    use super::*;

    #[test]
    fn keys_of_another_kind_are_no_issuer() {
        for (text, error) in [
            ("[]", JwkError::Shape),
            (r#"{"keys":[]}"#, JwkError::Count { count: 0 }),
            (
                r#"{"kty":"oct","kid":"a"}"#,
                JwkError::Kind {
                    kid: "a".to_owned(),
                    kty: "oct".to_owned(),
                    crv: String::new(),
                },
            ),
            (
                r#"{"kty":"OKP","crv":"Ed25519","x":"AAAA"}"#,
                JwkError::Malformed {
                    kid: "number 1".to_owned(),
                },
            ),
            (
                r#"{"kty":"OKP","crv":"Ed25519","x":"AA","d":"AA","kid":"p"}"#,
                JwkError::Private {
                    kid: "p".to_owned(),
                },
            ),
        ] {
            assert_eq!(read_keys(text).unwrap_err(), error, "{text}");
        }
    }

    #[test]
    fn keys_in_pem_count_one_or_several_and_a_private_half_does_not() {
        let [one, two] = [[7; 32], [8; 32]].map(|seed| SigningKey::from_bytes(&seed));
        let pem = |key: &SigningKey| {
            let key = key.verifying_key();
            key.to_public_key_pem(LineEnding::LF).unwrap()
        };
        assert_eq!(read_keys(&pem(&one)).unwrap().keys, [one.verifying_key()]);
        let both = format!("first\n{}\n{}", pem(&one), pem(&two));
        let both = read_keys(&both).unwrap().keys;
        assert_eq!(both, [one.verifying_key(), two.verifying_key()]);
        let private = one.to_pkcs8_pem(LineEnding::LF).unwrap();
        assert!(matches!(read_keys(&private), Err(JwkError::Private { .. })));
        let broken = pem(&one).replace("MCow", "AAAA");
        assert!(matches!(
            read_keys(&broken),
            Err(JwkError::Malformed { .. })
        ));
        let other = pem(&one).replace("PUBLIC KEY", "CERTIFICATE");
        assert!(matches!(read_keys(&other), Err(JwkError::Kind { .. })));
    }
}
