//! A private certificate authority and the agent's certificate, both made here.

use mcp_spec::name::NodeName;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use thiserror::Error;

/// First and last year of both certificates. Nothing renews them by itself, and a node whose clock
/// is wrong must still be reached to set it right: so they are long, and trust is the file's alone.
const YEARS: (i32, i32) = (2020, 2060);

/// Why no certificate could be made.
#[derive(Debug, Error)]
pub enum CertificatesError {
    /// A name is none.
    #[error("`{name}` cannot stand in a certificate")]
    Name {
        /// The name.
        name: String,
    },
    /// The making failed.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

/// Certificates and keys in PEM.
pub(super) struct Certificates {
    pub(super) ca: String,
    pub(super) ca_key: String,
    pub(super) cert: String,
    pub(super) key: String,
}

/// Makes an authority for this node alone, and a certificate with these names.
pub(super) fn make(node: &NodeName, names: &[String]) -> Result<Certificates, CertificatesError> {
    for name in names {
        let known = rustls_pki_types::ServerName::try_from(name.as_str()).is_ok();
        if !known {
            return Err(CertificatesError::Name { name: name.clone() });
        }
    }
    let dated = |mut params: CertificateParams, common_name: String| {
        params.not_before = rcgen::date_time_ymd(YEARS.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(YEARS.1, 1, 1);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params
    };
    let mut authority = dated(
        CertificateParams::new(Vec::new())?,
        format!("mcp-agent {node} CA"),
    );
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let key = KeyPair::generate()?;
    let mut server = dated(
        CertificateParams::new(names.to_vec())?,
        format!("mcp-agent {node}"),
    );
    server.use_authority_key_identifier_extension = true;
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let cert = server.signed_by(&key, &authority)?;
    Ok(Certificates {
        ca: authority.pem(),
        ca_key: authority.key().serialize_pem(),
        cert: cert.pem(),
        key: key.serialize_pem(),
    })
}
