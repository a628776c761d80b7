//! Tokens in both directions between the agent and an independent JWT library.

use jiff::Timestamp;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use mcp_agent::auth::Role;
use mcp_agent::auth::issuer::{Grant, Issuer};
use mcp_agent::auth::keys::read_keys;
use mcp_agent::auth::token::{TokenError, TrustedIssuer, Verifier};
use mcp_spec::duration::Span;
use mcp_tests::mcias::SigningKey;
use serde_json::{Value, json};

#[test]
fn what_the_agent_issues_an_independent_library_takes() {
    let issuer = Issuer::generate(&"rift".parse().unwrap());
    let grant = Grant {
        subject: "alice".to_owned(),
        role: Role::Operator,
        ttl: Span::from_secs(600),
        services: ["shop".parse().unwrap()].into(),
        nodes: ["rift".parse().unwrap()].into(),
        audience: "mcp".to_owned(),
    };
    let token = issuer.issue(&grant, Timestamp::now());
    // The library reads the JWK by itself too.
    let jwk: Jwk = serde_json::from_str(&issuer.jwk()).unwrap();
    let key = DecodingKey::from_jwk(&jwk).unwrap();
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.set_audience(&["mcp"]);
    validation.set_issuer(&["mcp-agent:rift"]);
    validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
    let read = jsonwebtoken::decode::<Value>(&token, &key, &validation).unwrap();
    assert_eq!(read.header.kid.as_deref(), Some("mcp-agent:rift"));
    assert_eq!(read.claims["sub"], "alice");
    assert_eq!(read.claims["roles"], json!(["operator"]));
    assert_eq!(read.claims["mcp_services"], json!(["shop"]));
    assert_eq!(read.claims["mcp_nodes"], json!(["rift"]));
    let changed = format!("{}A", &token[..token.len() - 1]);
    let other = Issuer::generate(&"rift".parse().unwrap());
    let other: Jwk = serde_json::from_str(&other.jwk()).unwrap();
    let other = DecodingKey::from_jwk(&other).unwrap();
    assert!(
        changed == token || jsonwebtoken::decode::<Value>(&changed, &key, &validation).is_err()
    );
    assert!(jsonwebtoken::decode::<Value>(&token, &other, &validation).is_err());
}

#[test]
fn what_an_independent_library_makes_the_agent_takes_where_it_should() {
    let key = SigningKey::generate();
    let keys = read_keys(&key.jwk().to_string()).unwrap().keys;
    let verifier = Verifier {
        node: "rift".parse().unwrap(),
        audience: "mcp".to_owned(),
        max_age: Span::from_secs(12 * 3600),
        issuers: vec![TrustedIssuer {
            issuer: "https://mcias".to_owned(),
            keys,
            roles: [("user".to_owned(), Role::Operator)].into(),
        }],
    };
    let now = Timestamp::now();
    let claims = json!({
        "iss": "https://mcias", "sub": "4711", "iat": now.as_second(), "exp": now.as_second() + 60,
        "jti": "1", "roles": ["user"], "mcp_services": ["shop"],
    });
    let identity = verifier.verify(&key.sign(&claims), now).unwrap();
    assert_eq!(
        (identity.subject.as_str(), identity.role),
        ("4711", Role::Operator)
    );
    assert!(identity.covers(&"shop".parse().unwrap()));
    assert!(!identity.covers(&"wiki".parse().unwrap()));
    let stranger = SigningKey::generate();
    assert_eq!(
        verifier.verify(&stranger.sign(&claims), now),
        Err(TokenError::Signature)
    );
    // The library's other algorithms, with the public key as the shared secret.
    let secret =
        jsonwebtoken::EncodingKey::from_secret(key.jwk()["x"].as_str().unwrap().as_bytes());
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let header = jsonwebtoken::Header::new(algorithm);
        let token = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
        assert_eq!(verifier.verify(&token, now), Err(TokenError::Algorithm));
    }
}
