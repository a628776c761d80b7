//! Secrets sealed to nodes: age files of a fixed inside. The only crate that knows age.
//!
//! A sealed file is an age file (<https://age-encryption.org/v1>) for one or several X25519 recipients. Its header
//! also says which node each recipient was taken for, in stanzas of the type [`STANZA`], which other
//! implementations skip: `age --decrypt` opens it. What is encrypted is an envelope: service and name of the secret,
//! so that a file that is moved to another place is refused there, the length of the value, the value, and zeros up to a
//! multiple of [`BLOCK`] bytes, so that the file tells little of the length.
//!
//! Plain values live in [`Value`], which is wiped when it is dropped and shows nothing of itself.

mod header;

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::fmt;
use std::io::{Read as _, Write as _};

use age::secrecy::ExposeSecret as _;
use age_core::format::{FileKey, Stanza};
use mcp_spec::name::{NodeName, SecretName, ServiceName};
use mcp_spec::secret::{MAX_SEALED_BYTES, MAX_VALUE_BYTES};
use thiserror::Error;
use zeroize::Zeroizing;

pub use header::{HeaderError, recipients_of};

/// The type of the stanza that names a node and its recipient.
pub const STANZA: &str = "mcp-node";

/// An envelope's length is a multiple of this.
pub const BLOCK: usize = 256;

/// The first line of an envelope.
const MAGIC: &str = "mcp-secret 1";

/// A plain value. It is wiped when it is dropped, and `Debug` shows its length alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Value(Zeroizing<Vec<u8>>);

impl Value {
    /// Takes a value.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Value({} bytes)", self.0.len())
    }
}

/// A node's own key: what opens what was sealed to its recipient.
#[derive(Clone)]
pub struct Identity(age::x25519::Identity);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0.to_public())
    }
}

/// A text is no age identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not an age identity (AGE-SECRET-KEY-1…)")]
pub struct IdentityError;

impl Identity {
    /// A new one.
    #[must_use]
    pub fn generate() -> Self {
        Self(age::x25519::Identity::generate())
    }

    /// Reads one, as it stands in a line of its file.
    ///
    /// # Errors
    ///
    /// [`IdentityError`], without the text.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        text.parse().map(Self).map_err(|_| IdentityError)
    }

    /// The text for its file.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.to_string().expose_secret().to_owned())
    }

    /// The recipient that others seal to.
    #[must_use]
    pub fn recipient(&self) -> String {
        self.0.to_public().to_string()
    }
}

/// Whether a text is the recipient of a key.
#[must_use]
pub fn is_recipient(text: &str) -> bool {
    mcp_spec::secret::is_recipient(text) && text.parse::<age::x25519::Recipient>().is_ok()
}

/// Why a value cannot be sealed.
#[derive(Debug, Error)]
pub enum SealError {
    /// Larger than [`MAX_VALUE_BYTES`].
    #[error("the value has {bytes} bytes; a secret has at most {MAX_VALUE_BYTES}")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// There is nobody to seal it to.
    #[error("there is no node to encrypt it to")]
    Nobody,
    /// A node's recipient is none.
    #[error("the recipient of {node} is no age recipient")]
    Recipient {
        /// The node.
        node: NodeName,
    },
    /// age refused.
    #[error("age could not encrypt the value")]
    Age(#[from] age::EncryptError),
    /// age could not write, or the file would be too large.
    #[error("age could not encrypt the value: {0}")]
    Write(std::io::Error),
    /// More recipients than a sealed file has room for.
    #[error("the sealed file would have {bytes} bytes; at most {MAX_SEALED_BYTES} are taken")]
    TooManyNodes {
        /// Its length.
        bytes: usize,
    },
}

/// Why a sealed file cannot be opened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpenError {
    /// It is no age file, or larger than [`MAX_SEALED_BYTES`].
    #[error("it is no encrypted secret")]
    Malformed,
    /// None of the identities opens it.
    #[error("it is not encrypted to this node's identity")]
    NotForUs,
    /// It opens, and what is in it was made for another place.
    #[error("it was encrypted as {service}/{name}, and lies where it does not belong")]
    Elsewhere {
        /// The service that it was made for.
        service: String,
        /// The name that it was made for.
        name: String,
    },
    /// It opens, and what is in it is no envelope.
    #[error("it was not made by mcp secret set")]
    NoEnvelope,
}

struct Named {
    node: NodeName,
    text: String,
    key: age::x25519::Recipient,
}

impl age::Recipient for Named {
    fn wrap_file_key(
        &self,
        file_key: &FileKey,
    ) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        let (mut stanzas, labels) = self.key.wrap_file_key(file_key)?;
        stanzas.push(Stanza {
            tag: STANZA.to_owned(),
            args: vec![self.node.to_string(), self.text.clone()],
            body: Vec::new(),
        });
        Ok((stanzas, labels))
    }
}

fn envelope(service: &ServiceName, name: &SecretName, value: &[u8]) -> Zeroizing<Vec<u8>> {
    let head = format!("{MAGIC}\n{service}\n{name}\n{}\n", value.len());
    let length = (head.len() + value.len()).next_multiple_of(BLOCK);
    let mut bytes = Zeroizing::new(Vec::with_capacity(length));
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(length, 0);
    bytes
}

/// Seals a value for a place, to the recipients of these nodes.
///
/// # Errors
///
/// [`SealError`].
pub fn seal(
    service: &ServiceName,
    name: &SecretName,
    value: &Value,
    nodes: &BTreeMap<NodeName, String>,
) -> Result<Vec<u8>, SealError> {
    let bytes = value.expose().len();
    if bytes > MAX_VALUE_BYTES {
        return Err(SealError::TooLarge { bytes });
    }
    if nodes.is_empty() {
        return Err(SealError::Nobody);
    }
    let named = nodes
        .iter()
        .map(|(node, text)| {
            let refused = || SealError::Recipient { node: node.clone() };
            Ok(Named {
                node: node.clone(),
                text: text.clone(),
                key: text.parse().map_err(|_| refused())?,
            })
        })
        .collect::<Result<Vec<_>, SealError>>()?;
    let recipients = named.iter().map(|one| one as &dyn age::Recipient);
    let mut sealed = Vec::new();
    let mut writer = age::Encryptor::with_recipients(recipients)?
        .wrap_output(&mut sealed)
        .map_err(SealError::Write)?;
    writer
        .write_all(&envelope(service, name, value.expose()))
        .and_then(|()| writer.finish().map(drop))
        .map_err(SealError::Write)?;
    if sealed.len() > MAX_SEALED_BYTES {
        return Err(SealError::TooManyNodes {
            bytes: sealed.len(),
        });
    }
    Ok(sealed)
}

/// Opens what was sealed for a place, with any of these identities.
///
/// # Errors
///
/// [`OpenError`], which tells nothing of the value.
pub fn open(
    service: &ServiceName,
    name: &SecretName,
    sealed: &[u8],
    identities: &[Identity],
) -> Result<Value, OpenError> {
    if sealed.len() > MAX_SEALED_BYTES {
        return Err(OpenError::Malformed);
    }
    let decryptor = age::Decryptor::new(sealed).map_err(|_| OpenError::Malformed)?;
    if decryptor.is_scrypt() {
        return Err(OpenError::NotForUs);
    }
    let keys = identities.iter().map(|one| &one.0 as &dyn age::Identity);
    let mut reader = decryptor.decrypt(keys).map_err(|error| match error {
        age::DecryptError::NoMatchingKeys | age::DecryptError::DecryptionFailed => {
            OpenError::NotForUs
        }
        _ => OpenError::Malformed,
    })?;
    let mut plain = Zeroizing::new(Vec::with_capacity(sealed.len()));
    reader
        .read_to_end(&mut plain)
        .map_err(|_| OpenError::Malformed)?;
    opened(service, name, &plain)
}

fn opened(service: &ServiceName, name: &SecretName, plain: &[u8]) -> Result<Value, OpenError> {
    let mut rest = plain;
    let mut line = || {
        let end = rest.iter().take(BLOCK).position(|byte| *byte == b'\n')?;
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        rest = after;
        std::str::from_utf8(line).ok()
    };
    let (Some(MAGIC), Some(for_service), Some(for_name), Some(length)) =
        (line(), line(), line(), line())
    else {
        return Err(OpenError::NoEnvelope);
    };
    if (for_service, for_name) != (service.as_str(), name.as_str()) {
        // Whoever sealed it may have written anything.
        let word = |text: &str| {
            text.chars()
                .take(63)
                .flat_map(char::escape_default)
                .collect()
        };
        return Err(OpenError::Elsewhere {
            service: word(for_service),
            name: word(for_name),
        });
    }
    let length: usize = length.parse().map_err(|_| OpenError::NoEnvelope)?;
    let value = rest
        .get(..length)
        .filter(|_| length <= MAX_VALUE_BYTES)
        .ok_or(OpenError::NoEnvelope)?;
    Ok(Value::new(value.to_vec()))
}

#[cfg(test)]
mod tests;
