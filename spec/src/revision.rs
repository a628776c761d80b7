//! Revisions: commit ids, and the strict reading of a commit's raw bytes.
//!
//! Reading is not believing: a [`ParsedCommit`] is well formed, and nothing more. Who may sign what
//! stands in [`crate::signature`]; the agent's store puts both together and alone makes verified
//! revisions.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub mod commit;

pub use commit::{CommitHeaderError, ParsedCommit, Person};

/// How many characters of a commit id are shown to people.
pub const SHORT_ID_CHARS: usize = 7;

/// The id of a commit: the SHA-1 of its object, twenty bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommitId([u8; 20]);

impl CommitId {
    /// Git's own id of nothing. It stands for the revision of what came from none: a container that was
    /// taken over and not deployed since.
    pub const NONE: Self = Self([0; 20]);

    /// Whether it is [`Self::NONE`].
    #[must_use]
    pub const fn is_none(&self) -> bool {
        let mut at = 0;
        while at < self.0.len() {
            if self.0[at] != 0 {
                return false;
            }
            at += 1;
        }
        true
    }

    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The bytes of the id.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }

    /// The first seven characters, for people.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(SHORT_ID_CHARS);
        text
    }
}

impl fmt::Display for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

impl fmt::Debug for CommitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommitId({self})")
    }
}

/// A text is no full commit id.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not a commit id: write 40 lower-case hexadecimal digits")]
pub struct CommitIdError {
    /// The refused text, cut short.
    pub text: String,
}

impl FromStr for CommitId {
    type Err = CommitIdError;

    fn from_str(text: &str) -> Result<Self, CommitIdError> {
        let refused = || CommitIdError {
            text: text.chars().take(80).collect(),
        };
        let digits = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if text.len() != 40 || !text.bytes().all(digits) {
            return Err(refused());
        }
        let mut bytes = [0; 20];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| refused())?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for CommitId {
    type Error = CommitIdError;

    fn try_from(text: String) -> Result<Self, CommitIdError> {
        text.parse()
    }
}

impl From<CommitId> for String {
    fn from(id: CommitId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commit_id_is_forty_lower_case_digits() {
        let text = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        let id: CommitId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        assert_eq!(id.short(), "4b825dc");
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{text}\""));
        for bad in ["", "4b825dc", &text.to_uppercase(), &format!("{text}0")] {
            assert!(bad.parse::<CommitId>().is_err(), "{bad}");
        }
    }
}
