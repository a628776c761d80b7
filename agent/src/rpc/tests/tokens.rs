//! Tokens over the wire: every malformed one, every method with every role, and refusals over a restart.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use ed25519_dalek::{Signer as _, SigningKey};
use serde_json::{Value, json};
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::codegen::http;

use super::*;
use crate::auth::methods::METHODS;

/// The key of the agent's own issuer: what a token needs to be believed, but for what is wrong with it.
fn key(agent: &Running) -> SigningKey {
    let pem = std::fs::read_to_string(agent.config.issuer_key()).unwrap();
    SigningKey::from_pkcs8_pem(&pem).unwrap()
}

fn signed(key: &SigningKey, header: &str, claims: &str) -> String {
    let text = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let signature = key.sign(text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
}

const HEADER: &str = r#"{"alg":"EdDSA","typ":"JWT"}"#;

fn claims() -> Value {
    let now = Timestamp::now().as_second();
    json!({
        "iss": "mcp-agent:rift", "sub": "alice", "iat": now - 5, "exp": now + 600, "jti": "1",
        "aud": "mcp", "roles": ["admin"],
    })
}

/// HMAC-SHA-256 (RFC 2104), as a forger makes it who takes the public key for a shared secret.
fn hs256(secret: &[u8], text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let mut block = [0; 64];
    block[..secret.len()].copy_from_slice(secret);
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text);
    let outer = Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner.finalize());
    URL_SAFE_NO_PAD.encode(outer.finalize())
}

/// Every token that has to be refused, with a word for it.
#[rustfmt::skip]
fn book(key: &SigningKey) -> Vec<(&'static str, String)> {
    let good = claims();
    let text = good.to_string();
    let header = |header: &str| signed(key, header, &text);
    let with = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        signed(key, HEADER, &claims.to_string())
    };
    let raw = |name: &str, value: &str| {
        let mut claims = good.clone();
        claims[name] = json!("@");
        signed(key, HEADER, &claims.to_string().replace("\"@\"", value))
    };
    let without = |name: &str| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(name);
        signed(key, HEADER, &claims.to_string())
    };
    let public = key.verifying_key();
    let confused = |alg: &str, secret: &[u8]| {
        let text = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}","typ":"JWT"}}"#)),
            URL_SAFE_NO_PAD.encode(&text)
        );
        let signature = hs256(secret, &text);
        format!("{text}.{signature}")
    };
    let valid = signed(key, HEADER, &text);
    let (body, signature) = valid.rsplit_once('.').unwrap();
    let unsigned = |alg: &str| {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{alg}"}}"#));
        format!("{header}.{}.", URL_SAFE_NO_PAD.encode(&text))
    };
    let stranger = SigningKey::from_bytes(&[9; 32]);
    let jwk = json!({
        "alg": "EdDSA",
        "jwk": {"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(stranger.verifying_key())},
    });
    let mut long = good.clone();
    long["pad"] = json!("x".repeat(12 * 1024));
    let now = Timestamp::now().as_second();
    let mut past = good.clone();
    (past["iat"], past["exp"]) = (json!(now - 300), json!(now - 60));
    let expired = signed(key, HEADER, &past.to_string());
    vec![
        ("none", unsigned("none")),
        ("None", unsigned("None")),
        ("NONE", unsigned("NONE")),
        ("nOnE", unsigned("nOnE")),
        ("none, signed", header(r#"{"alg":"none"}"#)),
        ("HS256 with the public key", confused("HS256", public.as_bytes())),
        ("EdDSA that is a MAC", confused("EdDSA", public.as_bytes())),
        ("hs256", confused("hs256", public.as_bytes())),
        ("RS256", header(r#"{"alg":"RS256"}"#)),
        ("eddsa", header(r#"{"alg":"eddsa"}"#)),
        ("Ed25519", header(r#"{"alg":"Ed25519"}"#)),
        ("alg is a number", header(r#"{"alg":1}"#)),
        ("alg is null", header(r#"{"alg":null}"#)),
        ("no alg", header(r#"{"typ":"JWT"}"#)),
        ("alg twice", header(r#"{"alg":"EdDSA","alg":"EdDSA"}"#)),
        ("none before EdDSA", header(r#"{"alg":"none","alg":"EdDSA"}"#)),
        ("crit", header(r#"{"alg":"EdDSA","crit":["exp"]}"#)),
        ("empty crit", header(r#"{"alg":"EdDSA","crit":[]}"#)),
        ("b64 false", header(r#"{"alg":"EdDSA","b64":false,"crit":["b64"]}"#)),
        ("embedded key", signed(&stranger, &jwk.to_string(), &text)),
        ("jku", header(r#"{"alg":"EdDSA","jku":"https://evil/keys"}"#)),
        ("x5u", header(r#"{"alg":"EdDSA","x5u":"https://evil/c"}"#)),
        ("x5c", header(r#"{"alg":"EdDSA","x5c":["AA"]}"#)),
        ("kid of a path", signed(&stranger, r#"{"alg":"EdDSA","kid":"../../dev/null"}"#, &text)),
        ("encrypted", header(r#"{"alg":"EdDSA","typ":"JWE"}"#)),
        ("header is a list", header("[]")),
        ("header is empty", header("")),
        ("header is no text", signed(key, "\u{0}", &text)),
        ("claims are a list", signed(key, HEADER, "[]")),
        ("claims are text", signed(key, HEADER, "\"alice\"")),
        ("claims twice over", signed(key, HEADER, &format!("{text}{text}"))),
        ("no claims", signed(key, HEADER, "")),
        ("iss twice", signed(key, HEADER, &text.replacen('{', r#"{"iss":"mcp-agent:rift","#, 1))),
        ("roles twice", signed(key, HEADER, &text.replacen('{', r#"{"roles":["viewer"],"#, 1))),
        ("no iss", without("iss")),
        ("no sub", without("sub")),
        ("no iat", without("iat")),
        ("no exp", without("exp")),
        ("no jti", without("jti")),
        ("iss of another", with("iss", json!("mcp-agent:quill"))),
        ("iss is a list", with("iss", json!(["mcp-agent:rift"]))),
        ("sub is a number", with("sub", json!(1))),
        ("sub is empty", with("sub", json!(""))),
        ("sub with a line", with("sub", json!("alice\nroot"))),
        ("sub is long", with("sub", json!("a".repeat(300)))),
        ("jti is null", with("jti", Value::Null)),
        ("exp is text", with("exp", json!((now + 600).to_string()))),
        ("exp is a fraction", with("exp", json!(now as f64 + 0.5))),
        ("exp is 1e999", raw("exp", "1e999")),
        ("exp is 1e18", raw("exp", "1e18")),
        ("exp is Infinity", raw("exp", "Infinity")),
        ("exp is -Infinity", raw("exp", "-Infinity")),
        ("exp is NaN", raw("exp", "NaN")),
        ("exp is beyond time", with("exp", json!(i64::MAX))),
        ("exp is beyond numbers", raw("exp", "99999999999999999999999")),
        ("iat is before time", with("iat", json!(i64::MIN))),
        ("iat is true", with("iat", json!(true))),
        ("exp before iat", with("exp", json!(now - 10))),
        ("expired", expired),
        ("from the future", with("iat", json!(now + 300))),
        ("not before later", with("nbf", json!(now + 300))),
        ("nbf is text", with("nbf", json!("now"))),
        ("older than max_age", with("iat", json!(now - 13 * 3600))),
        ("for another", with("aud", json!("metacrypt"))),
        ("for others", with("aud", json!(["metacrypt", "mcq"]))),
        ("for nobody", with("aud", json!([]))),
        ("aud is null", with("aud", Value::Null)),
        ("roles are text", with("roles", json!("admin"))),
        ("services are text", with("mcp_services", json!("shop"))),
        ("services are paths", with("mcp_services", json!(["../shop"]))),
        ("nodes are text", with("mcp_nodes", json!("rift"))),
        ("a stranger's", signed(&stranger, HEADER, &text)),
        ("no signature", format!("{body}.")),
        ("two segments", body.to_owned()),
        ("four segments", format!("{valid}.{signature}")),
        ("padded", format!("{valid}=")),
        ("signature cut", valid[..valid.len() - 4].to_owned()),
        ("signature of zeros", format!("{body}.{}", URL_SAFE_NO_PAD.encode([0; 64]))),
        ("12 KiB", signed(key, HEADER, &long.to_string())),
        ("dots", "..".to_owned()),
        ("many dots", ".".repeat(5000)),
        ("nothing", String::new()),
    ]
}

/// Calls a method with these headers and one empty message; the status, where the answer is nothing else.
async fn call(
    channel: &mut Channel,
    path: &str,
    headers: &[(&'static str, String)],
) -> Result<Option<Status>, String> {
    let mut request = http::Request::post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let message = Body::new(http_body_util::Full::new(hyper::body::Bytes::from_static(
        &[0; 5],
    )));
    std::future::poll_fn(|context| channel.poll_ready(context))
        .await
        .map_err(|error| crate::error_chain(&error))?;
    let request = request.body(message).unwrap();
    let response = channel
        .call(request)
        .await
        .map_err(|error| crate::error_chain(&error))?;
    if response.status() != http::StatusCode::OK {
        return Err(response.status().to_string());
    }
    Ok(Status::from_header_map(response.headers()))
}

const INFO: &str = "/mcp.v1.Node/Info";

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

#[tokio::test]
async fn every_token_of_the_book_is_refused_and_hears_no_more_than_it_should() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let key = key(&agent);
    let good = signed(&key, HEADER, &claims().to_string());
    let mut channel = agent.channel().await;
    let answer = call(&mut channel, INFO, &[bearer(&good)]).await.unwrap();
    assert!(
        answer.is_none(),
        "what the book is made from is good: {answer:?}"
    );
    let book = book(&key);
    for (page, tokens) in book.chunks(15).enumerate() {
        // Refusals are bounded by sender; an agent that began anew without its file counts anew.
        let mut fresh = None;
        if page > 0 {
            fresh = Some(Running::start_with_key(&key).await);
        }
        let mut channel = match &fresh {
            Some(fresh) => fresh.channel().await,
            None => channel.clone(),
        };
        for (word, token) in tokens {
            let status = call(&mut channel, INFO, &[bearer(token)])
                .await
                .unwrap()
                .unwrap_or_else(|| panic!("{word} is taken"));
            assert_eq!(status.code(), Code::Unauthenticated, "{word}: {status}");
            match reason(&status).as_str() {
                "bad-token" => assert_eq!(status.message(), "the token is refused", "{word}"),
                "token-expired" | "token-from-the-future" => {}
                "no-token" => assert!(matches!(*word, "nothing"), "{word}"),
                other => panic!("{word}: {other}"),
            }
        }
        if let Some(fresh) = fresh {
            fresh.stop().await;
        }
    }
    // Two headers, another scheme, and no scheme.
    let basic = ("authorization", format!("Basic {good}"));
    let bare = ("authorization", good.clone());
    for headers in [
        vec![bearer(&good), bearer(&good)],
        vec![bearer(&good), basic.clone()],
        vec![basic],
        vec![bare],
        vec![],
    ] {
        let status = call(&mut channel, INFO, &headers).await.unwrap().unwrap();
        assert!(
            matches!(
                status.code(),
                Code::Unauthenticated | Code::ResourceExhausted
            ),
            "{status}"
        );
    }
    // 64 KiB come through the bound on headers, and no further.
    let mut huge = claims();
    huge["pad"] = json!("x".repeat(48 * 1024));
    let huge = signed(&key, HEADER, &huge.to_string());
    assert!(huge.len() > 64 * 1024);
    let refused = call(&mut channel, INFO, &[bearer(&huge)]).await.unwrap();
    assert!(
        matches!(
            refused.as_ref().unwrap().code(),
            Code::Unauthenticated | Code::ResourceExhausted
        ),
        "{refused:?}"
    );
    let mut channel = agent.channel().await;
    assert!(
        call(&mut channel, INFO, &[bearer(&good)])
            .await
            .unwrap()
            .is_none()
    );
    agent.stop().await;
}

#[tokio::test]
async fn every_method_takes_its_role_and_no_lower_one() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let mut channel = agent.channel().await;
    for method in METHODS {
        let Some(mut required) = method.role else {
            continue;
        };
        // It changes nothing, so it is not signed, and tells who did what, so it is not for everybody.
        if method.path == "/mcp.v1.Registry/Audit" {
            required = Role::Operator;
        }
        for role in [Role::Viewer, Role::Operator, Role::Admin] {
            let token = agent.token(role);
            let status = call(&mut channel, method.path, &[bearer(&token)])
                .await
                .unwrap();
            let refused = status.as_ref().is_some_and(|status| {
                status.code() == Code::PermissionDenied && reason(status) == "role"
            });
            assert_eq!(
                refused,
                role < required,
                "{} as {role}: {status:?}",
                method.path
            );
        }
        // Without a token, and with one that has no role here, nothing is open.
        if method.path == INFO {
            let key = key(&agent);
            let mut claims = claims();
            claims["roles"] = json!(["guest", "Admin", "root"]);
            let token = signed(&key, HEADER, &claims.to_string());
            let status = call(&mut channel, INFO, &[bearer(&token)])
                .await
                .unwrap()
                .unwrap();
            assert_eq!(reason(&status), "no-role");
        }
    }
    agent.stop().await;
}

#[tokio::test]
async fn every_method_but_the_health_check_is_closed_without_a_token() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let mut channel = agent.channel().await;
    for method in METHODS {
        let status = call(&mut channel, method.path, &[]).await.unwrap();
        match method.role {
            None => assert!(status.is_none_or(|status| status.code() == Code::Ok)),
            Some(_) => assert!(
                matches!(
                    status.unwrap().code(),
                    Code::Unauthenticated | Code::ResourceExhausted
                ),
                "{}",
                method.path
            ),
        }
    }
    let unknown = call(&mut channel, "/mcp.v1.Node/Shutdown", &[])
        .await
        .unwrap();
    assert_ne!(unknown.unwrap().code(), Code::Unimplemented);
    agent.stop().await;
}

#[tokio::test]
async fn token_for_other_nodes_is_refused() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let mut channel = agent.channel().await;
    let key = key(&agent);
    let mut claims = claims();
    claims["mcp_nodes"] = json!(["quill"]);
    let token = signed(&key, HEADER, &claims.to_string());
    let status = call(&mut channel, INFO, &[bearer(&token)]).await.unwrap();
    let status = status.unwrap();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(reason(&status), "wrong-node");
    agent.stop().await;
}

#[tokio::test]
async fn refusals_are_remembered_over_a_restart_and_good_tokens_pass() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let mut channel = agent.channel().await;
    let mut last = None;
    for _ in 0..25 {
        last = call(&mut channel, INFO, &[bearer("a.b.c")]).await.unwrap();
    }
    let last = last.unwrap();
    assert_eq!(last.code(), Code::ResourceExhausted);
    assert!(last.message().contains("wait "), "{last}");
    let stopped = agent.stop().await;
    let agent = Running::run(stopped).await;
    let mut channel = agent.channel().await;
    let again = call(&mut channel, INFO, &[bearer("a.b.c")]).await.unwrap();
    assert_eq!(again.unwrap().code(), Code::ResourceExhausted);
    let good = agent.token(Role::Viewer);
    assert!(
        call(&mut channel, INFO, &[bearer(&good)])
            .await
            .unwrap()
            .is_none()
    );
    agent.stop().await;
}

#[tokio::test]
async fn headers_are_bounded_in_size_and_number() {
    crate::tls::install_crypto();
    let agent = Running::start().await;
    let good = agent.token(Role::Viewer);
    let many: Vec<_> = (0..4000)
        .map(|_| ("x-many", "y".repeat(20)))
        .chain([bearer(&good)])
        .collect();
    let large = vec![("x-large", "y".repeat(128 * 1024)), bearer(&good)];
    for headers in [many, large] {
        let mut channel = agent.channel().await;
        let answer = call(&mut channel, INFO, &headers).await;
        assert!(!matches!(answer, Ok(None)), "{answer:?}");
    }
    let mut channel = agent.channel().await;
    assert!(
        call(&mut channel, INFO, &[bearer(&good)])
            .await
            .unwrap()
            .is_none()
    );
    agent.stop().await;
}
