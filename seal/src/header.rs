//! The header of an age file as far as it is text: which nodes a secret is sealed to, told without any key.

use std::collections::BTreeMap;

use mcp_spec::name::NodeName;
use mcp_spec::secret::{MAX_RECIPIENTS, MAX_SEALED_BYTES, is_recipient};
use thiserror::Error;

use crate::STANZA;

/// A file is no sealed secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it is no encrypted secret")]
pub struct HeaderError;

/// The nodes that a sealed file says it is for, each with the recipient that was taken for it.
///
/// Only who can open the file knows that the header is whole; a forged one misleads a list, and opens nothing.
///
/// # Errors
///
/// [`HeaderError`] where it is no age file.
pub fn recipients_of(sealed: &[u8]) -> Result<BTreeMap<NodeName, String>, HeaderError> {
    if sealed.len() > MAX_SEALED_BYTES {
        return Err(HeaderError);
    }
    let mut lines = sealed.split(|byte| *byte == b'\n');
    if lines.next() != Some(b"age-encryption.org/v1") {
        return Err(HeaderError);
    }
    let mut nodes = BTreeMap::new();
    for line in lines {
        let line = std::str::from_utf8(line).map_err(|_| HeaderError)?;
        if line.starts_with("---") {
            return Ok(nodes);
        }
        let mut words = line.split(' ');
        if (words.next(), words.next()) != (Some("->"), Some(STANZA)) {
            continue;
        }
        if let (Some(node), Some(recipient), None) = (words.next(), words.next(), words.next())
            && let Ok(node) = node.parse()
            && is_recipient(recipient)
            && nodes.len() < MAX_RECIPIENTS
        {
            nodes.insert(node, recipient.to_owned());
        }
    }
    Err(HeaderError)
}
