//! Signatures: SSHSIG verification, the sets of keys, and who may sign which change.
//!
//! Three sets of keys are kept apart. [`OwnerKeys`] and [`DeniedKeys`] come out of band, from the
//! agent's own configuration. [`AllowedSigners`] comes in band, from `.mcp/allowed_signers` of a
//! commit's parents, in the format that OpenSSH and git read. [`authorise()`] says whether a key may
//! make a change. No date decides anything here.

use ed25519_dalek::{Signature as Ed25519Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};
use ssh_key::public::KeyData;
use ssh_key::{Algorithm, HashAlg, SshSig};
use thiserror::Error;

pub use ssh_key::PublicKey;

mod authorise;
mod edit;
mod keys;
mod signers;

pub use authorise::{AuthorisationError, ParentView, authorise};
pub use edit::{Grant, SignersEditError, SignersText, parse_public_key};
pub use keys::{DeniedKeys, KeyFault, KeysError, OwnerKeys};
pub use signers::{AllowedSigners, AllowedSignersError, Signer, SignersFault};

/// Where the signers stand in a desired-state repository.
pub const ALLOWED_SIGNERS_PATH: &str = ".mcp/allowed_signers";

/// Namespace of a revision's signature, git's own.
pub const GIT_NAMESPACE: &str = "git";

/// Namespace of a request's signature.
pub const REQUEST_NAMESPACE: &str = "mcp-request";

/// What marks an owner in `namespaces=`.
pub const OWNER_NAMESPACE: &str = "mcp-owner";

/// What limits a signer to a service, before the service's name.
pub const SERVICE_NAMESPACE_PREFIX: &str = "mcp-service-";

/// Largest signature block that is read, in bytes. Real ones have about 300.
pub const MAX_SIGNATURE_BYTES: usize = 8 * 1024;

/// Longest name of a refused algorithm that an error repeats, in characters.
const SHOWN_CHARS: usize = 80;

/// How a signature block begins, and how it ends.
const ARMOUR: (&str, &str) = (
    "-----BEGIN SSH SIGNATURE-----\n",
    "\n-----END SSH SIGNATURE-----",
);

/// FIDO flag: somebody touched the key.
const USER_PRESENT: u8 = 0x01;

/// The key's fingerprint as OpenSSH writes it, `SHA256:…`.
#[must_use]
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// Not an SSH signature block, or a garbled one.
    #[error("it is not an SSH signature")]
    Malformed,
    /// A PGP or X.509 signature.
    #[error("it is a {kind} signature; only SSH signatures are accepted")]
    OtherKind {
        /// PGP or X.509.
        kind: &'static str,
    },
    /// Larger than [`MAX_SIGNATURE_BYTES`].
    #[error("the signature has {bytes} bytes, more than {MAX_SIGNATURE_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Made by a key that is not Ed25519.
    #[error("it is made with {algorithm}; only ssh-ed25519 and sk-ssh-ed25519 are accepted")]
    Algorithm {
        /// The key's algorithm.
        algorithm: String,
    },
    /// Made for another purpose.
    #[error("it is made for the namespace `{found}`, not `{expected}`")]
    Namespace {
        /// What was asked for.
        expected: String,
        /// What the signature says.
        found: String,
    },
    /// Made with a security key that nobody touched.
    #[error("the security key was not touched for it")]
    NotTouched,
    /// The signature does not match key and bytes: the bytes were changed, or it is forged.
    #[error("it does not match what it is said to sign")]
    Mismatch,
}

/// Verifies an SSHSIG block over `message` and gives the key that made it.
///
/// Says nothing about whether that key may sign. Stricter than `ssh-keygen -Y check-novalidate`: Ed25519
/// keys only, no weak points of the curve, a security key must have been touched, and nothing stands
/// before or after the block but white space at its end. `tests/tests/signatures.rs` has the list.
///
/// # Errors
///
/// [`SignatureError`]; `Mismatch` where the bytes were changed.
pub fn verify_sshsig(
    pem: &str,
    namespace: &str,
    message: &[u8],
) -> Result<PublicKey, SignatureError> {
    if pem.len() > MAX_SIGNATURE_BYTES {
        return Err(SignatureError::TooLarge { bytes: pem.len() });
    }
    let kinds = [
        ("-----BEGIN PGP ", "PGP"),
        ("-----BEGIN SIGNED MESSAGE-----", "X.509"),
    ];
    for (start, kind) in kinds {
        if pem.starts_with(start) {
            return Err(SignatureError::OtherKind { kind });
        }
    }
    let pem = pem.trim_end();
    // The decoder would pass over whatever stands before.
    let armoured = pem
        .strip_prefix(ARMOUR.0)
        .and_then(|rest| rest.strip_suffix(ARMOUR.1));
    if armoured.is_none_or(|inner| inner.contains('-')) {
        return Err(SignatureError::Malformed);
    }
    let signature = SshSig::from_pem(pem).map_err(|_| SignatureError::Malformed)?;
    if signature.version() != SshSig::VERSION || !signature.reserved().is_empty() {
        return Err(SignatureError::Malformed);
    }
    if signature.namespace() != namespace {
        return Err(SignatureError::Namespace {
            expected: namespace.to_owned(),
            found: signature.namespace().chars().take(80).collect(),
        });
    }
    let data = SshSig::signed_data(namespace, signature.hash_alg(), message)
        .map_err(|_| SignatureError::Malformed)?;
    let (point, bytes, data) = match signature.public_key() {
        KeyData::Ed25519(key) if signature.algorithm() == Algorithm::Ed25519 => {
            (key.0, signature.signature_bytes(), data)
        }
        KeyData::SkEd25519(key) if signature.algorithm() == Algorithm::SkEd25519 => {
            // PROTOCOL.u2f: the signature is followed by one byte of flags and a counter of four,
            // and is over SHA-256(application) || flags || counter || SHA-256(message).
            let (bytes, trailer) = signature
                .signature_bytes()
                .split_at_checked(Ed25519Signature::BYTE_SIZE)
                .filter(|(_, trailer)| trailer.len() == 5)
                .ok_or(SignatureError::Malformed)?;
            if trailer[0] & USER_PRESENT == 0 {
                return Err(SignatureError::NotTouched);
            }
            let mut signed = Sha256::digest(key.application()).to_vec();
            signed.extend(trailer);
            signed.extend(Sha256::digest(&data));
            (key.public_key().0, bytes, signed)
        }
        other => {
            return Err(SignatureError::Algorithm {
                algorithm: other
                    .algorithm()
                    .to_string()
                    .chars()
                    .take(SHOWN_CHARS)
                    .collect(),
            });
        }
    };
    // One signature, one text but for line breaks: the decoder passes over lengths that do not fit.
    let unbroken = |text: &str| text.replace('\n', "");
    let canonical = signature
        .to_pem(ssh_key::LineEnding::LF)
        .map_err(|_| SignatureError::Malformed)?;
    if unbroken(pem) != unbroken(canonical.trim_end()) {
        return Err(SignatureError::Malformed);
    }
    let bytes = Ed25519Signature::from_slice(bytes).map_err(|_| SignatureError::Malformed)?;
    VerifyingKey::from_bytes(&point)
        .and_then(|key| key.verify_strict(&data, &bytes))
        .map_err(|_| SignatureError::Mismatch)?;
    Ok(PublicKey::from(signature.public_key().clone()))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use ssh_key::PrivateKey;
    use ssh_key::private::Ed25519Keypair;

    pub(crate) fn private(seed: u8) -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
    }

    pub(crate) fn public(seed: u8) -> PublicKey {
        private(seed).public_key().clone()
    }

    pub(crate) fn openssh(seed: u8) -> String {
        public(seed).to_openssh().unwrap()
    }

    pub(crate) fn sign(seed: u8, namespace: &str, message: &[u8]) -> String {
        private(seed)
            .sign(namespace, HashAlg::Sha512, message)
            .unwrap()
            .to_pem(ssh_key::LineEnding::LF)
            .unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{private, public, sign};
    use super::*;
    use ed25519_dalek::Signer as _;
    use proptest::prelude::*;
    use ssh_key::{LineEnding, Signature};

    #[test]
    fn signature_gives_the_key_that_made_it() {
        let pem = sign(1, "git", b"message");
        assert_eq!(verify_sshsig(&pem, "git", b"message").unwrap(), public(1));
        let sha256 = private(1)
            .sign("git", HashAlg::Sha256, b"message")
            .unwrap()
            .to_pem(LineEnding::LF)
            .unwrap();
        assert_eq!(
            verify_sshsig(&sha256, "git", b"message").unwrap(),
            public(1)
        );
    }

    #[test]
    fn changed_bytes_and_other_namespaces_do_not_verify() {
        let pem = sign(1, "git", b"message");
        assert_eq!(
            verify_sshsig(&pem, "git", b"massage"),
            Err(SignatureError::Mismatch)
        );
        assert!(matches!(
            verify_sshsig(&pem, "mcp-request", b"message"),
            Err(SignatureError::Namespace { .. })
        ));
        assert_eq!(
            verify_sshsig("", "git", b""),
            Err(SignatureError::Malformed)
        );
        assert!(matches!(
            verify_sshsig("-----BEGIN PGP SIGNATURE-----\n", "git", b""),
            Err(SignatureError::OtherKind { kind: "PGP" })
        ));
        assert!(matches!(
            verify_sshsig(&"a".repeat(MAX_SIGNATURE_BYTES + 1), "git", b""),
            Err(SignatureError::TooLarge { .. })
        ));
    }

    fn security_key_signature(flags: u8, message: &[u8]) -> String {
        let secret = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
        let point = ssh_key::public::Ed25519PublicKey(secret.verifying_key().to_bytes());
        let key = KeyData::SkEd25519(ssh_key::public::SkEd25519::new(point, "ssh:"));
        let data = SshSig::signed_data("git", HashAlg::Sha512, message).unwrap();
        let trailer = [flags, 0, 0, 0, 7];
        let mut signed = Sha256::digest("ssh:").to_vec();
        signed.extend(trailer);
        signed.extend(Sha256::digest(&data));
        let mut bytes = secret.sign(&signed).to_bytes().to_vec();
        bytes.extend(trailer);
        let signature = Signature::new(Algorithm::SkEd25519, bytes).unwrap();
        SshSig::new(key, "git", HashAlg::Sha512, signature)
            .unwrap()
            .to_pem(LineEnding::LF)
            .unwrap()
    }

    #[test]
    fn security_key_must_have_been_touched() {
        let key = verify_sshsig(&security_key_signature(1, b"m"), "git", b"m").unwrap();
        assert!(key.key_data().is_sk_ed25519());
        assert_eq!(
            verify_sshsig(&security_key_signature(0, b"m"), "git", b"m"),
            Err(SignatureError::NotTouched)
        );
        assert_eq!(
            verify_sshsig(&security_key_signature(1, b"m"), "git", b"n"),
            Err(SignatureError::Mismatch)
        );
    }

    proptest! {
        #[test]
        fn one_changed_character_never_verifies(at in 0usize..400, with in "[A-Za-z0-9+/=]") {
            let pem = sign(1, "git", b"message");
            let at = at % pem.len();
            let mut changed = pem.clone();
            changed.replace_range(at..=at, &with);
            if changed != pem {
                // Padding bits and line ends aside, no change may pass as another key's signature.
                if let Ok(key) = verify_sshsig(&changed, "git", b"message") {
                    prop_assert_eq!(key, public(1));
                }
            }
        }

        #[test]
        fn reading_any_text_never_panics(text in ".{0,300}") {
            let _ = verify_sshsig(&text, "git", b"");
            let framed = format!("-----BEGIN SSH SIGNATURE-----\n{text}\n-----END SSH SIGNATURE-----");
            let _ = verify_sshsig(&framed, "git", b"");
        }
    }
}
