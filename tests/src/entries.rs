//! The readers of what strangers send, each under a property: the fuzz targets and the tests call the same ones.
//!
//! Each takes any bytes and panics where its property does not hold. What it did not take is fine as long as the
//! refusal is short and harmless to print.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use jiff::Timestamp;
use mcp_agent::auth::Role;
use mcp_agent::auth::token::{TrustedIssuer, Verifier};
use mcp_agent::runtime::docker::read_containers;
use mcp_spec::definition::{DefinitionFile, compile_for_node};
use mcp_spec::name::NodeName;
use mcp_spec::request::Statement;
use mcp_spec::revision::ParsedCommit;
use mcp_spec::signature::{AllowedSigners, GIT_NAMESPACE, REQUEST_NAMESPACE, verify_sshsig};
use mcp_spec::tree::{EntryMode, check_name, fold, parse_like, parse_tree};
use ssh_key::private::Ed25519Keypair;
use ssh_key::{HashAlg, LineEnding, PrivateKey};

/// An entry: its name, which its corpus bears too, and itself.
pub type Entry = (&'static str, fn(&[u8]));

/// All of them.
pub const ENTRIES: [Entry; 8] = [
    ("commit", commit),
    ("tree", tree),
    ("sshsig", sshsig),
    ("allowed_signers", allowed_signers),
    ("token", token),
    ("definition", definition),
    ("request", request),
    ("engine_json", engine_json),
];

/// Longest text of a refusal: it becomes a header of an answer and a line of a terminal.
const MAX_REFUSAL_BYTES: usize = 1000;

/// What is signed in [`sshsig`].
const MESSAGE: &[u8] = b"message";

fn assert_harmless(refusal: &dyn Display) {
    let text = refusal.to_string();
    assert!(
        text.len() <= MAX_REFUSAL_BYTES && !text.chars().any(char::is_control),
        "{text:?}"
    );
}

/// A raw commit. What is taken has one meaning: without its signature it reads the same.
///
/// # Panics
///
/// Where the property does not hold.
pub fn commit(bytes: &[u8]) {
    match ParsedCommit::parse(bytes) {
        Err(error) => assert_harmless(&error),
        Ok(parsed) => {
            let bare = ParsedCommit::parse(&parsed.payload).expect("what is signed is a commit");
            assert_eq!(bare.signature, None);
            assert_eq!(bare.payload, parsed.payload);
            assert_eq!(parsed.signature.is_none(), parsed.payload == bytes);
            let same = ParsedCommit {
                signature: parsed.signature.clone(),
                ..bare
            };
            assert_eq!(same, parsed);
            assert!(!parsed.subject().chars().any(char::is_control));
        }
    }
}

/// A raw tree. What is taken is written in one way, in order, and no two names are alike.
///
/// # Panics
///
/// Where the property does not hold.
pub fn tree(bytes: &[u8]) {
    match parse_tree(bytes) {
        Err(error) => assert_harmless(&error),
        Ok(entries) => {
            let mut raw = Vec::new();
            let mut names = BTreeSet::new();
            for entry in &entries {
                raw.extend(match entry.mode {
                    EntryMode::File => b"100644 ".as_slice(),
                    EntryMode::Executable => b"100755 ",
                    EntryMode::Directory => b"40000 ",
                });
                raw.extend(entry.name.as_bytes());
                raw.push(0);
                raw.extend(entry.id);
                assert_eq!(check_name(entry.name.as_bytes()), Ok(entry.name.as_str()));
                assert!(names.insert(fold(&entry.name)), "two names are alike");
            }
            assert_eq!(raw, bytes);
            let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
            assert_eq!(parse_like(bytes, &entries), Some(ids));
        }
    }
    if let Ok(name) = std::str::from_utf8(bytes)
        && let Ok(checked) = check_name(bytes)
    {
        assert_eq!(checked, name);
        let folded = fold(name);
        assert_eq!(fold(&folded), folded, "folding twice changes nothing");
    }
}

fn key() -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[1; 32]))
}

/// A signature over a fixed message, to begin a corpus with.
///
/// # Panics
///
/// Never: an Ed25519 key signs.
#[must_use]
pub fn good_sshsig() -> String {
    let signature = key().sign(GIT_NAMESPACE, HashAlg::Sha512, MESSAGE);
    let pem = signature.and_then(|signature| signature.to_pem(LineEnding::LF));
    pem.expect("an Ed25519 key signs")
}

/// A signature's block, as it is, and laid over a good one. What verifies names the key that signed, is for one
/// message and one purpose, and is the good one but for line breaks.
///
/// # Panics
///
/// Where the property does not hold.
pub fn sshsig(bytes: &[u8]) {
    let unbroken = |text: &str| text.replace('\n', "").trim_end().to_owned();
    let good = good_sshsig();
    let mut changed = good.clone().into_bytes();
    // Each two bytes say where a third goes.
    for change in bytes.chunks_exact(3).take(8) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % changed.len();
        changed[at] = change[2];
    }
    for text in [bytes, &changed] {
        let Ok(text) = std::str::from_utf8(text) else {
            continue;
        };
        match verify_sshsig(text, GIT_NAMESPACE, MESSAGE) {
            Err(error) => assert_harmless(&error),
            Ok(signer) => {
                // A sha256 signature by the same key is another text, which nobody comes upon.
                assert_eq!(signer.key_data(), key().public_key().key_data());
                assert_eq!(unbroken(text), unbroken(&good));
                assert!(verify_sshsig(text, GIT_NAMESPACE, b"massage").is_err());
                assert!(verify_sshsig(text, REQUEST_NAMESPACE, MESSAGE).is_err());
            }
        }
    }
}

/// `.mcp/allowed_signers`. What is taken is written again by its lines, and reads back the same.
///
/// # Panics
///
/// Where the property does not hold.
pub fn allowed_signers(bytes: &[u8]) {
    match AllowedSigners::parse_bytes(bytes) {
        Err(error) => assert_harmless(&error),
        Ok(signers) => {
            let mut text = String::new();
            for signer in signers.iter() {
                assert!(signer.may_sign() || !signer.is_owner());
                let namespaces = signer.namespaces();
                let namespaces: Vec<&str> = namespaces.iter().map(String::as_str).collect();
                text += &AllowedSigners::line_for(&signer.principal, &signer.key, &namespaces);
                text.push('\n');
            }
            let again = AllowedSigners::parse(&text).expect("a written line reads back");
            let rights = |signers: &AllowedSigners| -> Vec<_> {
                let of = |signer: &mcp_spec::signature::Signer| {
                    (
                        signer.principal.clone(),
                        signer.fingerprint(),
                        signer.namespaces(),
                    )
                };
                signers.iter().map(of).collect()
            };
            assert_eq!(rights(&again), rights(&signers));
        }
    }
}

fn node() -> NodeName {
    "rift".parse().expect("a plain name")
}

/// A token, as it is, and as the claims of one that the issuer signed. Nobody else's counts, and whom one names
/// has a name and a role.
///
/// # Panics
///
/// Where the property does not hold.
pub fn token(bytes: &[u8]) {
    let issuer = SigningKey::from_bytes(&[7; 32]);
    let verifier = Verifier {
        node: node(),
        audience: "mcp".to_owned(),
        max_age: "12h".parse().expect("a plain duration"),
        issuers: vec![TrustedIssuer {
            issuer: "mcp:rift".to_owned(),
            keys: vec![issuer.verifying_key()],
            roles: BTreeMap::from([("operator".to_owned(), Role::Operator)]),
        }],
    };
    let now = Timestamp::from_second(1_700_000_000).expect("a plain date");
    if let Ok(text) = std::str::from_utf8(bytes) {
        match verifier.verify(text, now) {
            Err(error) => assert_harmless(&error),
            Ok(identity) => panic!("{identity:?} is nobody's"),
        }
    }
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA","typ":"JWT"}"#);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(bytes));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).to_bytes());
    let token = format!("{signed}.{signature}");
    match verifier.verify(&token, now) {
        Err(error) => assert_harmless(&error),
        Ok(identity) => {
            assert!(!identity.subject.is_empty());
            // Another header, or none: the key fixes the algorithm.
            let bare = token.replacen(&header, &URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), 1);
            assert!(verifier.verify(&bare, now).is_err());
            let other = Verifier {
                issuers: vec![TrustedIssuer {
                    keys: vec![SigningKey::from_bytes(&[8; 32]).verifying_key()],
                    ..verifier.issuers[0].clone()
                }],
                ..verifier.clone()
            };
            assert!(other.verify(&token, now).is_err());
        }
    }
}

/// A definition. The same bytes give the same set or the same errors, of which there is one at least.
///
/// # Panics
///
/// Where the property does not hold.
pub fn definition(bytes: &[u8]) {
    let compile = || {
        let file = DefinitionFile {
            path: "services/shop.toml",
            bytes,
        };
        compile_for_node(&[file], &node(), &|_| None)
    };
    let first = compile();
    assert_eq!(first, compile());
    if let Err(errors) = first {
        assert!(!errors.is_empty());
        for error in errors.iter().take(20) {
            assert!(!error.to_string().contains('\x1b'), "{error:?}");
        }
    }
}

/// The statement that a request is signed by. What is taken is written in one way.
///
/// # Panics
///
/// Where the property does not hold.
pub fn request(bytes: &[u8]) {
    match Statement::parse(bytes) {
        Err(error) => assert_harmless(&error),
        Ok(statement) => assert_eq!(statement.to_bytes(), bytes),
    }
}

/// An engine's answer about containers. The same bytes say the same, and every container has an id.
///
/// # Panics
///
/// Where the property does not hold.
pub fn engine_json(bytes: &[u8]) {
    let read = read_containers(bytes);
    assert_eq!(format!("{read:?}"), format!("{:?}", read_containers(bytes)));
}
