//! Secrets of the desired-state repository: where they lie, and to whom they are sealed.
//!
//! `secrets/SERVICE/NAME.age` holds one value, encrypted with age; `.mcp/recipients` says which age recipient
//! each node has. Only owners change what lies below `.mcp/`, so a recipient is as trusted as an owner's
//! signature. Encryption itself is `mcp-seal`'s.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::name::{NodeName, SecretName, ServiceName};

/// Where the nodes' recipients stand in the repository.
pub const RECIPIENTS_PATH: &str = ".mcp/recipients";

/// The directory of a component's secrets, unless its definition says otherwise.
pub const SECRETS_DIR: &str = "/run/secrets";

/// Largest value, in bytes: keys, certificates and configuration with credentials fit many times over, and each
/// is held in memory.
pub const MAX_VALUE_BYTES: usize = 64 * 1024;

/// Largest sealed file, in bytes: the largest value with its padding, and recipients for some hundred nodes.
pub const MAX_SEALED_BYTES: usize = MAX_VALUE_BYTES + 64 * 1024;

/// Most secrets of one component.
pub const MAX_SECRETS: usize = 64;

/// Most nodes that `.mcp/recipients` names.
pub const MAX_RECIPIENTS: usize = 1000;

/// Where a secret lies in the repository.
#[must_use]
pub fn secret_path(service: &ServiceName, name: &SecretName) -> String {
    format!("secrets/{service}/{name}.age")
}

/// The secret that lies at a path, where one can.
#[must_use]
pub fn secret_at(path: &str) -> Option<(ServiceName, SecretName)> {
    let (service, file) = path.strip_prefix("secrets/")?.split_once('/')?;
    let name = file.strip_suffix(".age")?;
    Some((service.parse().ok()?, name.parse().ok()?))
}

/// The age recipient of each node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipients(BTreeMap<NodeName, String>);

/// A line of `.mcp/recipients` is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{RECIPIENTS_PATH}:{line}: {fault}")]
pub struct RecipientsError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub fault: RecipientsFault,
}

/// What is wrong with a line of `.mcp/recipients`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecipientsFault {
    /// The file is no text.
    #[error("it is no UTF-8 text")]
    NoText,
    /// Not a node and a recipient.
    #[error("a line is `NODE age1…`")]
    Shape,
    /// The first word is no node's name.
    #[error("`{0}` is no name of a node")]
    Node(String),
    /// The second word is no recipient.
    #[error("`{0}` is no age recipient")]
    Recipient(String),
    /// The node stands there already.
    #[error("{0} stands there twice")]
    Twice(NodeName),
    /// More than [`MAX_RECIPIENTS`].
    #[error("more than {MAX_RECIPIENTS} nodes")]
    TooMany,
}

/// Whether a text has the shape of an age recipient; whether it is a key, only age can tell.
#[must_use]
pub fn is_recipient(text: &str) -> bool {
    text.len() == 62
        && text.strip_prefix("age1").is_some_and(|rest| {
            rest.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        })
}

/// What of a line counts: no comment, no blanks around it.
fn told(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

/// A word as it may be shown: short, and no control characters.
fn shown(word: &str) -> String {
    word.chars()
        .take(80)
        .flat_map(char::escape_default)
        .collect()
}

impl Recipients {
    /// Reads `.mcp/recipients`: a node and its recipient a line, `#` begins a comment.
    ///
    /// # Errors
    ///
    /// [`RecipientsError`] with the first line that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecipientsError> {
        let text = std::str::from_utf8(bytes).map_err(|_| RecipientsError {
            line: 1,
            fault: RecipientsFault::NoText,
        })?;
        let mut found = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let refused = |fault| RecipientsError {
                line: index + 1,
                fault,
            };
            let line = told(line);
            if line.is_empty() {
                continue;
            }
            let mut words = line.split_whitespace();
            let (Some(node), Some(recipient), None) = (words.next(), words.next(), words.next())
            else {
                return Err(refused(RecipientsFault::Shape));
            };
            let node: NodeName = node
                .parse()
                .map_err(|_| refused(RecipientsFault::Node(shown(node))))?;
            if !is_recipient(recipient) {
                return Err(refused(RecipientsFault::Recipient(shown(recipient))));
            }
            if found.len() == MAX_RECIPIENTS {
                return Err(refused(RecipientsFault::TooMany));
            }
            if found.insert(node.clone(), recipient.to_owned()).is_some() {
                return Err(refused(RecipientsFault::Twice(node)));
            }
        }
        Ok(Self(found))
    }

    /// A node's recipient.
    #[must_use]
    pub fn of(&self, node: &NodeName) -> Option<&str> {
        self.0.get(node).map(String::as_str)
    }

    /// All of them, by node.
    pub fn iter(&self) -> impl Iterator<Item = (&NodeName, &str)> {
        self.0
            .iter()
            .map(|(node, recipient)| (node, recipient.as_str()))
    }
}

/// The text of `.mcp/recipients` with another recipient for a node; comments and other lines stay.
#[must_use]
pub fn with_recipient(text: &str, node: &NodeName, recipient: &str) -> String {
    let line = format!("{node} {recipient}");
    let mut is_there = false;
    let mut lines: Vec<String> = text
        .lines()
        .map(|old| {
            if told(old).split_whitespace().next() == Some(node.as_str()) {
                is_there = true;
                return line.clone();
            }
            old.to_owned()
        })
        .collect();
    if !is_there {
        if lines.is_empty() {
            lines.push(
                "# The age recipient of each node: secrets are encrypted to it. Owners change this.".to_owned(),
            );
        }
        lines.push(line);
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";

    #[test]
    fn a_path_names_one_secret_of_one_service() {
        let (service, name) = secret_at("secrets/shop/db-password.age").unwrap();
        assert_eq!((service.as_str(), name.as_str()), ("shop", "db-password"));
        assert_eq!(secret_path(&service, &name), "secrets/shop/db-password.age");
        for path in [
            "secrets/shop/db.txt",
            "secrets/db.age",
            "secrets/shop/a/b.age",
            "secrets/shop/../b.age",
            "secrets/Shop/b.age",
            "files/shop/b.age",
            "secrets/shop/.age",
            "secrets/mcp/b.age",
        ] {
            assert!(secret_at(path).is_none(), "{path}");
        }
    }

    #[test]
    fn recipients_are_read_and_replaced_without_losing_comments() {
        let text = format!("# ours\nrift {KEY} # rack 2\n\n");
        let read = Recipients::parse(text.as_bytes()).unwrap();
        assert_eq!(read.of(&"rift".parse().unwrap()), Some(KEY));
        let other = KEY.replace('q', "p");
        let changed = with_recipient(&text, &"rift".parse().unwrap(), &other);
        assert_eq!(changed, format!("# ours\nrift {other}\n\n"));
        let more = with_recipient(&changed, &"quill".parse().unwrap(), KEY);
        let read = Recipients::parse(more.as_bytes()).unwrap();
        assert_eq!(read.iter().count(), 2);
        let first = with_recipient("", &"rift".parse().unwrap(), KEY);
        assert!(Recipients::parse(first.as_bytes()).is_ok());
    }

    #[test]
    fn a_bad_line_is_refused_with_its_number() {
        for (text, line) in [
            ("rift".to_owned(), 1),
            (format!("# x\nRift {KEY}"), 2),
            ("rift age1short".to_owned(), 1),
            (format!("rift {KEY} more"), 1),
            (format!("rift {KEY}\nrift {KEY}"), 2),
            (format!("rift {}", KEY.to_uppercase()), 1),
        ] {
            let error = Recipients::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
        }
        assert!(Recipients::parse(&[0xff]).is_err());
    }
}
