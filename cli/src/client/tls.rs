//! Whom a connection trusts: the node's CA or its pinned certificate, and nothing else.
//!
//! The system's roots are never consulted, and nothing older than TLS 1.3 is spoken.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::config::NodeEntry;
use crate::error::Failure;

/// A text is no SHA-256 fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is no fingerprint: write sha256: and 64 hexadecimal digits")]
pub(crate) struct FingerprintError {
    /// What was given.
    pub(crate) text: String,
}

/// Reads `sha256:…`; colons between the bytes, as openssl prints them, are taken too.
pub(crate) fn parse_fingerprint(text: &str) -> Result<[u8; 32], FingerprintError> {
    let wrong = || FingerprintError {
        text: text.chars().take(120).collect(),
    };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .strip_prefix("sha256:")
        .ok_or_else(wrong)?
        .replace(':', "");
    let mut bytes = [0; 32];
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| wrong())?;
    Ok(bytes)
}

/// The certificates of a PEM file; at least one.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "the CA certificate {} cannot be used",
            path.display()
        ))
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path)
        .map_err(|error| wrong().because(&error))?
        .collect();
    let certificates = certificates.map_err(|error| wrong().because(&error))?;
    if certificates.is_empty() {
        return Err(wrong().cause("it holds no certificate in PEM form"));
    }
    Ok(certificates)
}

/// TLS settings that trust the certificates of `ca` alone.
pub(super) fn trusting(ca: &Path) -> Result<ClientConfig, Failure> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let roots = roots_of(ca, read_certificates(ca)?)?;
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider speaks TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// The fingerprint of the certificate that a server showed and that was refused.
#[derive(Debug, Clone, Default)]
pub(super) struct Found(Arc<OnceLock<String>>);

impl Found {
    /// `sha256:…`, where a certificate came at all.
    pub(super) fn fingerprint(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    format!(
        "sha256:{}",
        hex::encode(Sha256::digest(certificate.as_ref()))
    )
}

/// Trusts a CA, and remembers what it refused, so that people can compare.
#[derive(Debug)]
struct CaVerifier {
    inner: Arc<WebPkiServerVerifier>,
    found: Found,
}

impl ServerCertVerifier for CaVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        if verified.is_err() {
            // One connection, one certificate: it is set once.
            let _ = self.found.0.set(fingerprint(end_entity));
        }
        verified
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// The TLS settings for `node`, and where a certificate that they refuse is told.
pub(super) fn client_config(node: &NodeEntry) -> Result<(Arc<ClientConfig>, Found), Failure> {
    let found = Found::default();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider speaks TLS 1.3");
    let mut config = match (&node.ca_cert, &node.fingerprint) {
        (Some(path), _) => {
            let roots = Arc::new(roots_of(path, read_certificates(path)?)?);
            let inner = WebPkiServerVerifier::builder_with_provider(roots, provider)
                .build()
                .map_err(|error| {
                    Failure::usage(format!(
                        "the CA certificate {} cannot be used",
                        path.display()
                    ))
                    .because(&error)
                })?;
            let verifier = Arc::new(CaVerifier {
                inner,
                found: found.clone(),
            });
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth()
        }
        (None, Some(text)) => {
            let pinned = parse_fingerprint(text)
                .map_err(|error| Failure::usage(format!("node {}: {error}", node.name)))?;
            let verifier = Arc::new(PinnedVerifier { pinned, provider });
            builder
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth()
        }
        (None, None) => {
            return Err(Failure::usage(format!(
                "node {} has neither ca_cert nor fingerprint",
                node.name
            )));
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok((Arc::new(config), found))
}

fn roots_of(
    path: &Path,
    certificates: Vec<CertificateDer<'static>>,
) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| {
            Failure::usage(format!(
                "the CA certificate {} cannot be used",
                path.display()
            ))
            .because(&error)
        })?;
    }
    Ok(roots)
}

/// Trusts one certificate by its SHA-256: the server's own, or a CA that the server sends along.
#[derive(Debug)]
struct PinnedVerifier {
    pinned: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl PinnedVerifier {
    fn is_pinned(&self, certificate: &CertificateDer<'_>) -> bool {
        let digest: [u8; 32] = Sha256::digest(certificate.as_ref()).into();
        digest == self.pinned
    }
}

impl ServerCertVerifier for PinnedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // A pinned certificate says all: neither its name nor its dates add anything to its bytes.
        if self.is_pinned(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(authority) = intermediates.iter().find(|one| self.is_pinned(one)) else {
            return Err(rustls::Error::General(format!(
                "the server's certificate has the fingerprint {}, which is not the pinned one",
                fingerprint(end_entity)
            )));
        };
        // A pinned CA is no more than a CA: chain, name and dates are checked as usual.
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_taken_in_both_spellings() {
        let plain = format!("sha256:{}", "ab".repeat(32));
        let colons = format!("SHA256:{}", vec!["AB"; 32].join(":"));
        assert_eq!(parse_fingerprint(&plain).unwrap(), [0xab; 32]);
        assert_eq!(parse_fingerprint(&colons).unwrap(), [0xab; 32]);
        for wrong in ["", "sha256:", "sha256:zz", &"ab".repeat(32)] {
            assert!(parse_fingerprint(wrong).is_err(), "{wrong}");
        }
    }
}
