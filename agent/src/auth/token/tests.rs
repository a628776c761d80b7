//! What a token must be, by example.

use ed25519_dalek::{Signer as _, SigningKey};
use mcp_spec::duration::Span;
use serde_json::json;

use super::*;
use crate::auth::issuer::{Grant, Issuer, own_roles};
use crate::auth::keys::read_keys;

const NOW: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn verifier() -> Verifier {
    Verifier {
        node: "rift".parse().unwrap(),
        audience: "mcp".to_owned(),
        max_age: Span::from_secs(12 * 3600),
        issuers: vec![TrustedIssuer {
            issuer: "https://mcias".to_owned(),
            keys: vec![key().verifying_key()],
            roles: [("user".to_owned(), Role::Operator)].into(),
        }],
    }
}

fn claims() -> Value {
    json!({
        "iss": "https://mcias", "sub": "alice", "iat": NOW - 60, "exp": NOW + 60, "jti": "1",
        "roles": ["user", "other"],
    })
}

fn sign(header: &str, claims: &str) -> String {
    let text = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let signature = key().sign(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;

fn verify(claims: &Value) -> Result<Identity, TokenError> {
    verifier().verify(&sign(HEADER, &claims.to_string()), at(NOW))
}

#[test]
fn a_good_token_names_its_caller() {
    let identity = verify(&claims()).unwrap();
    assert_eq!(identity.subject, "alice");
    assert_eq!(identity.role, Role::Operator);
    assert_eq!(identity.services, None);
}

#[test]
fn the_built_in_issuer_makes_good_tokens() {
    let node = "rift".parse().unwrap();
    let issuer = Issuer::generate(&node);
    let verifier = Verifier {
        issuers: vec![issuer.trusted()],
        ..verifier()
    };
    let grant = Grant {
        subject: "bob".to_owned(),
        role: Role::Admin,
        ttl: Span::from_secs(3600),
        services: ["shop".parse().unwrap()].into(),
        nodes: ["rift".parse().unwrap()].into(),
        audience: "mcp".to_owned(),
    };
    let token = issuer.issue(&grant, at(NOW));
    let identity = verifier.verify(&token, at(NOW)).unwrap();
    assert_eq!(identity.role, Role::Admin);
    assert_eq!(identity.issuer, "mcp-agent:rift");
    assert_eq!(identity.services, Some(grant.services));
    assert!(matches!(
        verifier.verify(&token, at(NOW + 3600 + 30)),
        Err(TokenError::Expired { .. })
    ));
    let jwk = read_keys(&issuer.jwk()).unwrap();
    assert_eq!(jwk.keys, issuer.trusted().keys);
    assert_eq!(jwk.kid.as_deref(), Some("mcp-agent:rift"));
    assert_eq!(own_roles().len(), 3);
}

#[test]
fn the_header_chooses_nothing() {
    let claims = claims().to_string();
    for (header, error) in [
        (r#"{"alg":"none"}"#, TokenError::Algorithm),
        (r#"{"alg":"HS256"}"#, TokenError::Algorithm),
        (r#"{"alg":"eddsa"}"#, TokenError::Algorithm),
        (r#"{"typ":"JWT"}"#, TokenError::Header),
        (r#"{"alg":"EdDSA","alg":"EdDSA"}"#, TokenError::Header),
        (r#"{"alg":"EdDSA","crit":["exp"]}"#, TokenError::Header),
        (r#"{"alg":"EdDSA","jwk":{}}"#, TokenError::Header),
        (r#"{"alg":"EdDSA","jku":"https://x"}"#, TokenError::Header),
        (r#"{"alg":"EdDSA","x5u":"https://x"}"#, TokenError::Header),
        (r#"{"alg":"EdDSA","typ":"JWE"}"#, TokenError::Header),
    ] {
        assert_eq!(
            verifier().verify(&sign(header, &claims), at(NOW)),
            Err(error),
            "{header}"
        );
    }
}

#[test]
fn a_changed_or_foreign_token_is_refused() {
    let good = sign(HEADER, &claims().to_string());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    for bad in [
        String::new(),
        "..".to_owned(),
        signed.to_owned(),
        format!("{signed}."),
        format!("{good}.x"),
        format!("{good}="),
        format!("{signed}.{}", signature.replace('A', "+")) + "+",
        format!(
            "{}.{}.{signature}",
            URL_SAFE_NO_PAD.encode(HEADER),
            URL_SAFE_NO_PAD.encode("{}")
        ),
        "a".repeat(MAX_TOKEN_BYTES + 1),
    ] {
        assert!(verifier().verify(&bad, at(NOW)).is_err(), "{bad}");
    }
    let other = Verifier {
        issuers: vec![TrustedIssuer {
            keys: vec![SigningKey::from_bytes(&[8; 32]).verifying_key()],
            ..verifier().issuers[0].clone()
        }],
        ..verifier()
    };
    assert_eq!(other.verify(&good, at(NOW)), Err(TokenError::Signature));
}

#[test]
fn claims_are_required_and_typed() {
    for name in ["iss", "sub", "iat", "exp", "jti"] {
        let mut missing = claims();
        missing.as_object_mut().unwrap().remove(name);
        assert_eq!(
            verify(&missing),
            Err(TokenError::Claim { claim: name }),
            "{name}"
        );
        let mut odd = claims();
        odd[name] = json!([1]);
        assert!(verify(&odd).is_err(), "{name}");
    }
    for (name, value) in [
        ("sub", json!("")),
        ("sub", json!("a\nb")),
        ("exp", json!("1800000060")),
        ("exp", json!(1.5)),
        ("roles", json!("user")),
        ("mcp_services", json!("shop")),
        ("mcp_services", json!(["../x"])),
    ] {
        let mut odd = claims();
        odd[name] = value.clone();
        assert_eq!(
            verify(&odd),
            Err(TokenError::Claim { claim: name }),
            "{name} {value}"
        );
    }
    for twice in [
        r#"{"iss":"https://mcias","iss":"https://mcias"}"#,
        r#"{"x":{"a":1,"a":2}}"#,
        "[]",
        "{} {}",
    ] {
        assert_eq!(
            verifier().verify(&sign(HEADER, twice), at(NOW)),
            Err(TokenError::Claims),
            "{twice}"
        );
    }
}

#[test]
fn times_are_held_with_little_leeway() {
    for (iat, exp, good) in [
        (NOW - 60, NOW - 29, true),
        (NOW - 60, NOW - 30, false),
        (NOW + 30, NOW + 60, true),
        (NOW + 31, NOW + 60, false),
        (NOW - 12 * 3600, NOW + 60, true),
        (NOW - 12 * 3600 - 31, NOW + 60, false),
        (NOW, NOW, false),
        (i64::MAX, i64::MAX, false),
        (i64::MIN, NOW + 60, false),
    ] {
        let mut timed = claims();
        timed["iat"] = json!(iat);
        timed["exp"] = json!(exp);
        assert_eq!(verify(&timed).is_ok(), good, "{} {}", iat - NOW, exp - NOW);
    }
    let mut later = claims();
    later["nbf"] = json!(NOW + 100);
    assert!(matches!(verify(&later), Err(TokenError::Future { .. })));
}

#[test]
fn audience_nodes_and_roles_narrow() {
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        verify(&claims)
    };
    assert!(with("aud", json!("mcp")).is_ok());
    assert!(with("aud", json!(["x", "mcp"])).is_ok());
    assert!(matches!(
        with("aud", json!("other")),
        Err(TokenError::Audience { .. })
    ));
    assert!(with("aud", json!(null)).is_err());
    assert!(with("mcp_nodes", json!(["rift"])).is_ok());
    assert!(matches!(
        with("mcp_nodes", json!(["quill"])),
        Err(TokenError::Node { .. })
    ));
    // A role's own name is none where the issuer is another's and does not map it.
    assert!(matches!(
        with("roles", json!(["admin"])),
        Err(TokenError::NoRole { .. })
    ));
    assert!(matches!(
        with("iss", json!("https://evil")),
        Err(TokenError::Issuer)
    ));
}
