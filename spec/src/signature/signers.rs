//! `.mcp/allowed_signers`: who may sign what, in OpenSSH's format, one line a key.
//!
//! `ssh-keygen` and git read the same file. This reader takes a part of their format and refuses the
//! rest by name, so that no line means one thing here and another there.

use std::collections::{BTreeMap, BTreeSet};

use ssh_key::PublicKey;
use ssh_key::public::KeyData;
use thiserror::Error;

use super::keys::{self, KeyFault};
use super::{
    GIT_NAMESPACE, OWNER_NAMESPACE, REQUEST_NAMESPACE, SERVICE_NAMESPACE_PREFIX, fingerprint,
};
use crate::name::ServiceName;

/// Longest principal, in bytes.
const MAX_PRINCIPAL_BYTES: usize = 128;

/// A line of `allowed_signers` that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {fault}")]
pub struct AllowedSignersError {
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong with it.
    pub fault: SignersFault,
}

/// What is wrong with a line of `allowed_signers`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignersFault {
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFault),
    /// The file is not UTF-8.
    #[error("the file is not UTF-8")]
    NotUtf8,
    /// Wildcards, negation, lists or odd characters in the principal.
    #[error(
        "`{principal}` is no principal: write one name such as kyle@example.net, without wildcards, `!`, commas or quotes"
    )]
    Principal {
        /// The refused text.
        principal: String,
    },
    /// No `namespaces=`.
    #[error("it has no namespaces=\"…\"; write for example namespaces=\"git,mcp-request\"")]
    NoNamespaces,
    /// An option that is refused, or unknown.
    #[error("the option `{option}` is not accepted; only namespaces=\"…\" is")]
    Option {
        /// The option's name.
        option: String,
    },
    /// An option that is not closed or stands twice.
    #[error("its options cannot be read")]
    GarbledOptions,
    /// A namespace that means nothing here.
    #[error(
        "the namespace `{namespace}` is unknown; known are git, mcp-owner, mcp-request and mcp-service-NAME"
    )]
    Namespace {
        /// The refused text.
        namespace: String,
    },
    /// An owner without `git`.
    #[error("mcp-owner also needs git in its namespaces")]
    OwnerWithoutGit,
    /// An owner limited to services.
    #[error("an owner cannot be limited to services")]
    LimitedOwner,
}

/// One key of `allowed_signers` and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// Who the key belongs to.
    pub principal: String,
    /// The public key.
    pub key: PublicKey,
    /// The services that it is limited to; `None` for no limit.
    pub services: Option<BTreeSet<ServiceName>>,
    git: bool,
    owner: bool,
    request: bool,
}

impl Signer {
    /// The key's fingerprint, `SHA256:…`.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.key)
    }

    /// Whether it may sign revisions.
    #[must_use]
    pub const fn may_sign(&self) -> bool {
        self.git
    }

    /// Whether it may change `.mcp/`.
    #[must_use]
    pub const fn is_owner(&self) -> bool {
        self.owner
    }

    /// Whether it may sign requests; owners always may.
    #[must_use]
    pub const fn may_request(&self) -> bool {
        self.request || self.owner
    }

    /// The namespaces as they are written.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let flags = [
            (self.git, GIT_NAMESPACE),
            (self.owner, OWNER_NAMESPACE),
            (self.request, REQUEST_NAMESPACE),
        ];
        flags
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| name.to_owned())
            .chain(
                self.services
                    .iter()
                    .flatten()
                    .map(|service| format!("{SERVICE_NAMESPACE_PREFIX}{service}")),
            )
            .collect()
    }
}

/// The signers of one revision, by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedSigners(BTreeMap<KeyData, Signer>);

impl AllowedSigners {
    /// Reads the file's text.
    ///
    /// # Errors
    ///
    /// [`AllowedSignersError`] with the first line that is refused.
    pub fn parse(text: &str) -> Result<Self, AllowedSignersError> {
        let mut signers = BTreeMap::new();
        let mut seen = BTreeMap::new();
        let lines = keys::lines(text).map_err(|error| AllowedSignersError {
            line: error.line,
            fault: error.fault.into(),
        })?;
        for (line, text) in lines {
            let signer = signer(text).map_err(|fault| AllowedSignersError { line, fault })?;
            let data = signer.key.key_data().clone();
            if let Some(first) = seen.insert(data.clone(), line) {
                let fingerprint = signer.fingerprint();
                return Err(AllowedSignersError {
                    line,
                    fault: KeyFault::Duplicate { fingerprint, first }.into(),
                });
            }
            signers.insert(data, signer);
        }
        Ok(Self(signers))
    }

    /// Reads the file's bytes as they lie in a tree.
    ///
    /// # Errors
    ///
    /// As [`AllowedSigners::parse`], and for bytes that are no UTF-8.
    pub fn parse_bytes(bytes: &[u8]) -> Result<Self, AllowedSignersError> {
        let text = std::str::from_utf8(bytes).map_err(|_| AllowedSignersError {
            line: 0,
            fault: SignersFault::NotUtf8,
        })?;
        Self::parse(text)
    }

    /// The signer with this key.
    #[must_use]
    pub fn get(&self, key: &PublicKey) -> Option<&Signer> {
        self.0.get(key.key_data())
    }

    /// All signers, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Signer> {
        self.0.values()
    }

    /// Whether some key in it may change `.mcp/`.
    #[must_use]
    pub fn has_owner(&self) -> bool {
        self.iter().any(Signer::is_owner)
    }

    /// The line, without a newline, that gives `key` these namespaces.
    #[must_use]
    pub fn line_for(principal: &str, key: &PublicKey, namespaces: &[&str]) -> String {
        let bare = PublicKey::from(key.key_data().clone());
        let key = bare
            .to_openssh()
            .expect("a key without a comment always encodes");
        format!(
            "{principal} namespaces=\"{}\" {}",
            namespaces.join(","),
            key.trim_end()
        )
    }
}

/// Reads one line.
pub(super) fn signer(text: &str) -> Result<Signer, SignersFault> {
    let (principal, rest) = text
        .split_once([' ', '\t'])
        .ok_or(SignersFault::Key(KeyFault::NoKey))?;
    let fine = |c: char| c.is_ascii_alphanumeric() || "._@+-/=".contains(c);
    if principal.len() > MAX_PRINCIPAL_BYTES || !principal.chars().all(fine) {
        return Err(SignersFault::Principal {
            principal: principal.chars().take(80).collect(),
        });
    }
    let rest = rest.trim_start_matches([' ', '\t']);
    // OpenSSH first tries to read a key here, and takes what is none for options.
    let end = end_of_options(rest)?;
    let (options, key) = rest.split_at(end);
    if options.starts_with("ssh-") || options.starts_with("sk-") || options.starts_with("ecdsa-") {
        return Err(SignersFault::NoNamespaces);
    }
    let namespaces = namespaces(options)?;
    let key = keys::signing_key(key.trim_start_matches([' ', '\t']))?;
    let mut signer = Signer {
        principal: principal.to_owned(),
        key,
        services: None,
        git: false,
        owner: false,
        request: false,
    };
    for namespace in namespaces {
        match namespace {
            GIT_NAMESPACE => signer.git = true,
            OWNER_NAMESPACE => signer.owner = true,
            REQUEST_NAMESPACE => signer.request = true,
            // Anything else is refused: a misspelt limit would otherwise be no limit.
            other => match other.strip_prefix(SERVICE_NAMESPACE_PREFIX).map(str::parse) {
                Some(Ok(service)) => {
                    signer.services.get_or_insert_default().insert(service);
                }
                _ => {
                    return Err(SignersFault::Namespace {
                        namespace: other.chars().take(80).collect(),
                    });
                }
            },
        }
    }
    if signer.owner && !signer.git {
        return Err(SignersFault::OwnerWithoutGit);
    }
    if signer.owner && signer.services.is_some() {
        return Err(SignersFault::LimitedOwner);
    }
    Ok(signer)
}

/// Where the options end: at the first white space outside quotes.
fn end_of_options(text: &str) -> Result<usize, SignersFault> {
    let mut quoted = false;
    for (index, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            // OpenSSH reads \" within quotes; nothing here needs it.
            '\\' => return Err(SignersFault::GarbledOptions),
            ' ' | '\t' if !quoted => return Ok(index),
            _ => {}
        }
    }
    if quoted {
        return Err(SignersFault::GarbledOptions);
    }
    Ok(text.len())
}

fn namespaces(options: &str) -> Result<Vec<&str>, SignersFault> {
    let mut found = None;
    let mut rest = options;
    while !rest.is_empty() {
        let name_end = rest.find(['=', ',']).unwrap_or(rest.len());
        let name = &rest[..name_end];
        if name != "namespaces" {
            return Err(SignersFault::Option {
                option: name.chars().take(80).collect(),
            });
        }
        let value = rest[name_end..]
            .strip_prefix("=\"")
            .ok_or(SignersFault::GarbledOptions)?;
        let (value, after) = value.split_once('"').ok_or(SignersFault::GarbledOptions)?;
        if found.replace(value).is_some() {
            return Err(SignersFault::GarbledOptions);
        }
        rest = match after.strip_prefix(',') {
            Some(more) if !more.is_empty() => more,
            None if after.is_empty() => "",
            _ => return Err(SignersFault::GarbledOptions),
        };
    }
    let value = found.ok_or(SignersFault::NoNamespaces)?;
    Ok(value.split(',').collect())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{openssh, public};
    use super::*;
    use proptest::prelude::*;

    fn line(namespaces: &str) -> String {
        format!(
            "kyle@example.net namespaces=\"{namespaces}\" {}",
            openssh(1)
        )
    }

    #[test]
    fn signer_may_do_what_its_namespaces_say() {
        let text = format!(
            "# signers\n\n{}\nci@example.net\tnamespaces=\"git,mcp-service-shop,mcp-service-metacrypt\"\t{} a comment\n",
            line("git,mcp-owner"),
            openssh(2)
        );
        let signers = AllowedSigners::parse(&text).unwrap();
        let kyle = signers.get(&public(1)).unwrap();
        assert!(
            kyle.may_sign() && kyle.is_owner() && kyle.may_request() && kyle.services.is_none()
        );
        let ci = signers.get(&public(2)).unwrap();
        assert!(ci.may_sign() && !ci.is_owner() && !ci.may_request());
        assert_eq!(ci.services.as_ref().unwrap().len(), 2);
        assert_eq!(ci.principal, "ci@example.net");
        assert!(signers.has_owner());
        assert!(signers.get(&public(3)).is_none());
    }

    #[test]
    fn written_line_reads_back() {
        let text =
            AllowedSigners::line_for("kyle", &public(1), &["git", "mcp-owner", "mcp-request"]);
        let signers = AllowedSigners::parse(&text).unwrap();
        let signer = signers.get(&public(1)).unwrap();
        assert_eq!(signer.namespaces(), ["git", "mcp-owner", "mcp-request"]);
        assert_eq!(signer.principal, "kyle");
    }

    #[test]
    fn everything_that_could_widen_a_line_is_refused() {
        let key = openssh(1);
        for text in [
            format!("* namespaces=\"git\" {key}"),
            format!("!kyle namespaces=\"git\" {key}"),
            format!("kyle,eve namespaces=\"git\" {key}"),
            format!("\"kyle\" namespaces=\"git\" {key}"),
            format!("k?le namespaces=\"git\" {key}"),
            format!("kyle {key}"),
            format!("kyle cert-authority,namespaces=\"git\" {key}"),
            format!("kyle namespaces=\"git\",cert-authority {key}"),
            format!("kyle namespaces=\"git\",valid-after=\"20200101\" {key}"),
            format!("kyle valid-before=\"20200101\",namespaces=\"git\" {key}"),
            format!("kyle NAMESPACES=\"git\" {key}"),
            format!("kyle namespaces=\"git\",namespaces=\"mcp-owner\" {key}"),
            format!("kyle namespaces=git {key}"),
            format!("kyle namespaces=\"git {key}"),
            format!("kyle namespaces=\"git\"x {key}"),
            format!("kyle namespaces=\"git\", {key}"),
            line(""),
            line("git,"),
            line("git, mcp-owner"),
            line("*"),
            line("git,mcp-*"),
            line("!git"),
            line("file"),
            line("git,mcp-services-shop"),
            line("git,mcp-service-"),
            line("git,mcp-service-*"),
            line("git,mcp-service-Shop"),
            line("mcp-owner"),
            line("git,mcp-owner,mcp-service-shop"),
            "kyle".to_owned(),
            "kyle namespaces=\"git\"".to_owned(),
            "kyle namespaces=\"git\" ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC".to_owned(),
            format!("{}\n{}", line("git"), line("git,mcp-owner")),
        ] {
            assert!(AllowedSigners::parse(&text).is_err(), "{text}");
        }
        assert_eq!(
            AllowedSigners::parse(&format!("\n\n* namespaces=\"git\" {key}"))
                .unwrap_err()
                .line,
            3
        );
        assert!(AllowedSigners::parse_bytes(b"\xff").is_err());
    }

    proptest! {
        #[test]
        fn reading_any_text_never_panics(text in "\\PC{0,200}", tail in "[ -~\t\n]{0,100}") {
            let _ = AllowedSigners::parse(&text);
            let _ = AllowedSigners::parse(&format!("kyle namespaces=\"git\" {tail}"));
            let _ = AllowedSigners::parse(&format!("kyle {tail} {}", openssh(1)));
        }
    }
}
