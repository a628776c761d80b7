//! Signed requests: what an operator's key says of a call, and how that is held against the call.
//!
//! A [`Statement`] is a short text that names the nodes, the method, the digest of the message, an id
//! and a span of time. The key signs the text's bytes in the namespace
//! [`REQUEST_NAMESPACE`](crate::signature::REQUEST_NAMESPACE); they travel beside the message, in
//! [`STATEMENT_KEY`] and [`SIGNATURE_KEY`]. One statement may serve many nodes.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use thiserror::Error;

use crate::image::Digest;
use crate::name::NodeName;

/// The metadata that the statement's bytes travel in.
pub const STATEMENT_KEY: &str = "mcp-request-bin";

/// The metadata that the armoured signature travels in.
pub const SIGNATURE_KEY: &str = "mcp-signature-bin";

/// Largest statement, in bytes: a thousand nodes with names of twenty characters.
pub const MAX_STATEMENT_BYTES: usize = 24 * 1024;

/// Longest time between a statement's issue and its end, in seconds.
pub const MAX_LIFE_SECONDS: i64 = 300;

/// How far two clocks may be apart, in seconds.
pub const LEEWAY_SECONDS: i64 = 30;

/// Hexadecimal digits of a statement's id: 128 random bits.
const ID_CHARS: usize = 32;

/// The first line: what this is, and the version of its form.
const FORM: &str = "mcp-request 1";

/// What a key says of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The nodes that the call is for.
    pub nodes: BTreeSet<NodeName>,
    /// The method's full path, as in `/mcp.v1.Deployments/Deploy`.
    pub method: String,
    /// SHA-256 of the message's bytes; of a stream, of its first message's.
    pub message: Digest,
    /// What makes it unlike every other: 32 hexadecimal digits.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub issued: i64,
    /// When it ends, in seconds since 1970.
    pub expires: i64,
}

/// Bytes that are no statement.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StatementError {
    /// Larger than [`MAX_STATEMENT_BYTES`].
    #[error("the statement has {bytes} bytes, more than {MAX_STATEMENT_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// A version of the form that this release does not know.
    #[error("the statement is of a form that this release does not know")]
    Form,
    /// A field is missing, out of place, or not written as it has to be.
    #[error("the statement's {field} is missing or malformed")]
    Field {
        /// The field.
        field: &'static str,
    },
    /// Every field can be read, and yet the bytes are not what those fields are written as.
    #[error("the statement is not written as it has to be")]
    NotCanonical,
}

/// Why a statement does not cover a call.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UncoveredError {
    /// It is for other nodes.
    #[error("it is signed for other nodes than {node}")]
    OtherNode {
        /// The node that was asked.
        node: NodeName,
    },
    /// It is for another method.
    #[error("it is signed for {signed}")]
    OtherMethod {
        /// The method that it is for.
        signed: String,
    },
    /// It is for another message.
    #[error("its signature is over other bytes than these")]
    OtherBytes,
    /// Its time is over.
    #[error("its signature ended {seconds}s ago")]
    Expired {
        /// For how long.
        seconds: i64,
    },
    /// It was made in the future.
    #[error("it was signed {seconds}s in the future")]
    NotYet {
        /// How far.
        seconds: i64,
    },
    /// It ends before it begins, or lives longer than [`MAX_LIFE_SECONDS`].
    #[error(
        "its signature is to count for {seconds}s, and {MAX_LIFE_SECONDS}s at most are allowed"
    )]
    Life {
        /// For how long it is to count.
        seconds: i64,
    },
}

impl UncoveredError {
    /// The stable word for it.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::OtherNode { .. } => "request-other-node",
            Self::OtherMethod { .. } => "request-other-method",
            Self::OtherBytes => "request-other-bytes",
            Self::Expired { .. } | Self::NotYet { .. } | Self::Life { .. } => "request-expired",
        }
    }

    /// The next thing to do about it, where there is one.
    #[must_use]
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Expired { .. } | Self::NotYet { .. } => {
                Some("compare the clocks of this machine and of the node; then try again")
            }
            _ => None,
        }
    }
}

impl Statement {
    /// The bytes that are signed and sent.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{FORM}\n");
        for node in &self.nodes {
            // Writing to a string does not fail.
            let _ = writeln!(text, "node {node}");
        }
        let Self {
            method,
            message,
            id,
            issued,
            expires,
            ..
        } = self;
        let _ = writeln!(text, "method {method}");
        let _ = writeln!(text, "sha256 {}", message.hex());
        let _ = writeln!(text, "id {id}");
        let _ = writeln!(text, "issued {issued}");
        let _ = writeln!(text, "expires {expires}");
        text.into_bytes()
    }

    /// Reads a statement.
    ///
    /// # Errors
    ///
    /// [`StatementError`]: there is one way to write a statement, and every other is refused.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        if bytes.len() > MAX_STATEMENT_BYTES {
            return Err(StatementError::TooLarge { bytes: bytes.len() });
        }
        let text = std::str::from_utf8(bytes).map_err(|_| StatementError::Form)?;
        let mut lines = text.lines().peekable();
        if lines.next() != Some(FORM) {
            return Err(StatementError::Form);
        }
        let mut nodes = BTreeSet::new();
        while let Some(name) = lines.peek().and_then(|line| line.strip_prefix("node ")) {
            let node = name
                .parse()
                .map_err(|_| StatementError::Field { field: "node" })?;
            nodes.insert(node);
            lines.next();
        }
        if nodes.is_empty() {
            return Err(StatementError::Field { field: "node" });
        }
        let mut field = |field: &'static str| {
            lines
                .next()
                .and_then(|line| line.strip_prefix(field)?.strip_prefix(' '))
                .ok_or(StatementError::Field { field })
        };
        let seconds = |field: &'static str, text: &str| {
            text.parse::<i64>()
                .map_err(|_| StatementError::Field { field })
        };
        let statement = Self {
            nodes,
            method: field("method")?.to_owned(),
            message: digest(field("sha256")?).ok_or(StatementError::Field { field: "sha256" })?,
            id: field("id")?.to_owned(),
            issued: seconds("issued", field("issued")?)?,
            expires: seconds("expires", field("expires")?)?,
        };
        let is_hex = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
        if statement.id.len() != ID_CHARS || !statement.id.bytes().all(is_hex) {
            return Err(StatementError::Field { field: "id" });
        }
        if statement.to_bytes() != bytes {
            return Err(StatementError::NotCanonical);
        }
        Ok(statement)
    }

    /// Holds the statement against the call that it came with; `now` in seconds since 1970. Whether
    /// its id is new is for the caller to find out.
    ///
    /// # Errors
    ///
    /// [`UncoveredError`], the first that holds.
    pub fn covers(
        &self,
        node: &NodeName,
        method: &str,
        message: Digest,
        now: i64,
    ) -> Result<(), UncoveredError> {
        if !self.nodes.contains(node) {
            return Err(UncoveredError::OtherNode { node: node.clone() });
        }
        if self.method != method {
            return Err(UncoveredError::OtherMethod {
                signed: self.method.chars().take(80).collect(),
            });
        }
        if self.message != message {
            return Err(UncoveredError::OtherBytes);
        }
        let life = self.expires.saturating_sub(self.issued);
        if !(0..=MAX_LIFE_SECONDS).contains(&life) {
            return Err(UncoveredError::Life { seconds: life });
        }
        let ahead = self.issued.saturating_sub(now);
        if ahead > LEEWAY_SECONDS {
            return Err(UncoveredError::NotYet { seconds: ahead });
        }
        let over = now.saturating_sub(self.expires);
        if over > LEEWAY_SECONDS {
            return Err(UncoveredError::Expired { seconds: over });
        }
        Ok(())
    }
}

/// Whether a token's subject and a signer's principal are one person, where nobody said so otherwise: they are
/// equal, or the principal is the subject's mail address.
#[must_use]
pub fn is_same_person(subject: &str, principal: &str) -> bool {
    subject == principal
        || principal
            .split_once('@')
            .is_some_and(|(local, _)| local == subject)
}

/// A digest of 64 hexadecimal digits.
fn digest(hex: &str) -> Option<Digest> {
    format!("sha256:{hex}").parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn statement() -> Statement {
        Statement {
            nodes: ["orion", "rift"].map(|name| name.parse().unwrap()).into(),
            method: "/mcp.v1.Deployments/Deploy".to_owned(),
            message: Digest::of(b"message"),
            id: "0123456789abcdef0123456789abcdef".to_owned(),
            issued: 1_000,
            expires: 1_120,
        }
    }

    fn covers(node: &str, method: &str, message: &[u8], now: i64) -> Result<(), UncoveredError> {
        statement().covers(&node.parse().unwrap(), method, Digest::of(message), now)
    }

    #[test]
    fn a_statement_is_written_in_one_way() {
        let bytes = statement().to_bytes();
        assert_eq!(
            std::str::from_utf8(&bytes).unwrap(),
            format!(
                "mcp-request 1\nnode orion\nnode rift\nmethod /mcp.v1.Deployments/Deploy\nsha256 {}\n\
                 id 0123456789abcdef0123456789abcdef\nissued 1000\nexpires 1120\n",
                Digest::of(b"message").hex()
            )
        );
        assert_eq!(Statement::parse(&bytes).unwrap(), statement());
        let text = String::from_utf8(bytes).unwrap();
        for (what, with) in [
            ("issued 1000", "issued +1000"),
            ("issued 1000", "issued 01000"),
            ("node orion\nnode rift", "node rift\nnode orion"),
            ("node orion\n", "node orion\nnode orion\n"),
            ("expires 1120\n", "expires 1120"),
            ("expires 1120\n", "expires 1120\n\n"),
            ("expires 1120\n", "expires 1120\nsudo yes\n"),
            ("\nmethod", "\r\nmethod"),
        ] {
            let changed = text.replacen(what, with, 1);
            assert_ne!(changed, text);
            assert!(Statement::parse(changed.as_bytes()).is_err(), "{changed}");
        }
    }

    #[test]
    fn what_lacks_a_field_is_no_statement() {
        let text = String::from_utf8(statement().to_bytes()).unwrap();
        for line in text.lines().filter(|line| !line.starts_with("node ")) {
            let without = text.replacen(&format!("{line}\n"), "", 1);
            assert!(Statement::parse(without.as_bytes()).is_err(), "{without}");
        }
        let nowhere = text.replacen("node orion\nnode rift\n", "", 1);
        assert_eq!(
            Statement::parse(nowhere.as_bytes()),
            Err(StatementError::Field { field: "node" })
        );
        let newer = text.replacen("mcp-request 1", "mcp-request 2", 1);
        assert_eq!(
            Statement::parse(newer.as_bytes()),
            Err(StatementError::Form)
        );
        let long = vec![b'x'; MAX_STATEMENT_BYTES + 1];
        assert!(matches!(
            Statement::parse(&long),
            Err(StatementError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_subject_is_its_principal_or_the_mail_address() {
        assert!(is_same_person("alice", "alice"));
        assert!(is_same_person("alice", "alice@example.net"));
        assert!(is_same_person("alice@example.net", "alice@example.net"));
        for (subject, principal) in [
            ("alice", "bob"),
            ("alic", "alice@example.net"),
            ("alice@example.net", "alice"),
            ("alice@example.org", "alice@example.net"),
            ("", "alice"),
        ] {
            assert!(!is_same_person(subject, principal), "{subject} {principal}");
        }
    }

    #[test]
    fn a_statement_covers_its_own_call_alone() {
        const DEPLOY: &str = "/mcp.v1.Deployments/Deploy";
        assert_eq!(covers("rift", DEPLOY, b"message", 1_050), Ok(()));
        assert_eq!(covers("orion", DEPLOY, b"message", 1_050), Ok(()));
        let reason = |covered: Result<(), UncoveredError>| covered.unwrap_err().reason();
        assert_eq!(
            reason(covers("vega", DEPLOY, b"message", 1_050)),
            "request-other-node"
        );
        assert_eq!(
            reason(covers(
                "rift",
                "/mcp.v1.Deployments/Purge",
                b"message",
                1_050
            )),
            "request-other-method"
        );
        assert_eq!(
            reason(covers("rift", DEPLOY, b"massage", 1_050)),
            "request-other-bytes"
        );
    }

    #[test]
    fn a_statement_counts_for_its_time_alone() {
        let at = |now| covers("rift", "/mcp.v1.Deployments/Deploy", b"message", now);
        assert_eq!(at(970), Ok(()), "clocks may be half a minute apart");
        assert_eq!(at(969), Err(UncoveredError::NotYet { seconds: 31 }));
        assert_eq!(at(1_150), Ok(()));
        assert_eq!(at(1_151), Err(UncoveredError::Expired { seconds: 31 }));
        assert!(at(i64::MAX).is_err() && at(i64::MIN).is_err());
        let node = "rift".parse().unwrap();
        for (issued, expires) in [(1_000, 1_301), (1_000, 999), (i64::MIN, i64::MAX)] {
            let odd = Statement {
                issued,
                expires,
                ..statement()
            };
            assert!(matches!(
                odd.covers(&node, &odd.method, odd.message, 1_000),
                Err(UncoveredError::Life { .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn bytes_that_are_read_are_written_the_same(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(read) = Statement::parse(&bytes) {
                prop_assert_eq!(read.to_bytes(), bytes);
            }
        }

        #[test]
        fn no_change_of_a_byte_is_read_as_the_same(at in 0usize..250, with in any::<u8>()) {
            let mut bytes = statement().to_bytes();
            let at = at % bytes.len();
            if bytes[at] != with {
                bytes[at] = with;
                prop_assert_ne!(Statement::parse(&bytes).ok(), Some(statement()));
            }
        }
    }
}
