//! The two sets of keys that come out of band: owners pinned on the agent, and denied keys.

use std::collections::{BTreeMap, BTreeSet};

use ed25519_dalek::VerifyingKey;
use ssh_key::public::KeyData;
use ssh_key::{Fingerprint, PublicKey};
use thiserror::Error;

use super::fingerprint;

/// Largest file of keys that is read, in bytes.
pub(super) const MAX_FILE_BYTES: usize = 1024 * 1024;

/// A line of a file of keys that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {fault}")]
pub struct KeysError {
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong with it.
    pub fault: KeyFault,
}

/// What is wrong with a key as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyFault {
    /// The file is larger than 1 MiB.
    #[error("the file has more than 1 MiB")]
    FileTooLarge,
    /// Control characters.
    #[error("it holds control characters")]
    ControlCharacters,
    /// Not `TYPE BASE64`.
    #[error("expected a public key, `ssh-ed25519 AAAA…`")]
    NoKey,
    /// A key that cannot be read.
    #[error("the key cannot be read; copy the whole line of the .pub file")]
    Garbled,
    /// A key of another kind.
    #[error("`{algorithm}` keys are not accepted; use ssh-ed25519 or sk-ssh-ed25519@openssh.com")]
    Algorithm {
        /// The kind of key.
        algorithm: String,
    },
    /// A point of the curve with which anybody can sign.
    #[error("the key is a weak point of the curve")]
    Weak,
    /// The same key in an earlier line.
    #[error("the key {fingerprint} stands in line {first} already")]
    Duplicate {
        /// The key's fingerprint.
        fingerprint: String,
        /// Where it stood first.
        first: usize,
    },
    /// No key at all where one is needed.
    #[error("there is no key in it")]
    Empty,
}

/// Lines with something on them, numbered from 1, white space trimmed.
pub(super) fn lines(text: &str) -> Result<Vec<(usize, &str)>, KeysError> {
    if text.len() > MAX_FILE_BYTES {
        return Err(KeysError {
            line: 0,
            fault: KeyFault::FileTooLarge,
        });
    }
    let mut lines = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(KeysError {
                line: index + 1,
                fault: KeyFault::ControlCharacters,
            });
        }
        let line = line.trim_matches([' ', '\t']);
        if !line.is_empty() && !line.starts_with('#') {
            lines.push((index + 1, line));
        }
    }
    Ok(lines)
}

/// Reads `TYPE BASE64 [COMMENT]` as a key that may sign: Ed25519 and not weak.
pub(super) fn signing_key(text: &str) -> Result<PublicKey, KeyFault> {
    let key = any_key(text)?;
    let point = match key.key_data() {
        KeyData::Ed25519(key) => key.0,
        KeyData::SkEd25519(key) => key.public_key().0,
        other => {
            return Err(KeyFault::Algorithm {
                algorithm: other.algorithm().to_string(),
            });
        }
    };
    let point = VerifyingKey::from_bytes(&point).map_err(|_| KeyFault::Garbled)?;
    if point.is_weak() {
        return Err(KeyFault::Weak);
    }
    Ok(key)
}

fn any_key(text: &str) -> Result<PublicKey, KeyFault> {
    let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
    let (Some(kind), Some(data)) = (words.next(), words.next()) else {
        return Err(KeyFault::NoKey);
    };
    if !kind.contains("ssh-") && !kind.starts_with("ecdsa-") && !kind.starts_with("sk-") {
        return Err(KeyFault::NoKey);
    }
    let comment = words.collect::<Vec<_>>().join(" ");
    let mut key = PublicKey::from_openssh(&format!("{kind} {data}")).map_err(|_| {
        if matches!(kind, "ssh-ed25519" | "sk-ssh-ed25519@openssh.com") {
            KeyFault::Garbled
        } else {
            KeyFault::Algorithm {
                algorithm: kind.chars().take(80).collect(),
            }
        }
    })?;
    key.set_comment(comment);
    Ok(key)
}

/// The owners' keys, pinned on the agent: they introduce a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerKeys(BTreeMap<KeyData, PublicKey>);

impl OwnerKeys {
    /// Reads lines of `TYPE BASE64 [COMMENT]`; empty lines and those with `#` are passed over.
    ///
    /// # Errors
    ///
    /// [`KeysError`] with the first line that is no Ed25519 key, stands twice, or for no key at all.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let mut keys = BTreeMap::new();
        let mut seen = BTreeMap::new();
        for (line, text) in lines(text)? {
            let key = signing_key(text).map_err(|fault| KeysError { line, fault })?;
            if let Some(first) = seen.insert(key.key_data().clone(), line) {
                let fingerprint = fingerprint(&key);
                return Err(KeysError {
                    line,
                    fault: KeyFault::Duplicate { fingerprint, first },
                });
            }
            keys.insert(key.key_data().clone(), key);
        }
        if keys.is_empty() {
            return Err(KeysError {
                line: 0,
                fault: KeyFault::Empty,
            });
        }
        Ok(Self(keys))
    }

    /// Whether the key is an owner's.
    #[must_use]
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.0.contains_key(key.key_data())
    }

    /// The keys with their comments.
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.values()
    }

    /// The text that [`OwnerKeys::parse`] reads back: one line a key.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.iter()
            .filter_map(|key| key.to_openssh().ok())
            .map(|line| line + "\n")
            .collect()
    }
}

/// Keys whose new signatures count for nothing, whatever else says so.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeniedKeys(BTreeSet<String>);

impl DeniedKeys {
    /// Reads lines of public keys or `SHA256:` fingerprints, each with an optional comment.
    ///
    /// # Errors
    ///
    /// [`KeysError`] with the first line that is neither. A line that cannot be read is no reason
    /// to go on without it.
    pub fn parse(text: &str) -> Result<Self, KeysError> {
        let mut denied = BTreeSet::new();
        for (line, text) in lines(text)? {
            let at = |fault| KeysError { line, fault };
            let word = text.split([' ', '\t']).next().unwrap_or_default();
            let print = if word.starts_with("SHA256:") {
                word.parse::<Fingerprint>()
                    .map_err(|_| at(KeyFault::Garbled))?
                    .to_string()
            } else {
                fingerprint(&any_key(text).map_err(at)?)
            };
            denied.insert(print);
        }
        Ok(Self(denied))
    }

    /// Whether the key is denied.
    #[must_use]
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.0.contains(&fingerprint(key))
    }

    /// The fingerprints, sorted.
    pub fn fingerprints(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{openssh, public};
    use super::*;

    #[test]
    fn owners_are_read_with_comments_and_blank_lines() {
        let text = format!(
            "# owners\n\n{} kyle@host one\n  {}\n",
            openssh(1),
            openssh(2)
        );
        let owners = OwnerKeys::parse(&text).unwrap();
        assert!(owners.contains(&public(1)) && owners.contains(&public(2)));
        assert!(!owners.contains(&public(3)));
        assert_eq!(OwnerKeys::parse(&owners.to_text()).unwrap(), owners);
    }

    #[test]
    fn owners_refuse_what_is_no_ed25519_key() {
        let ecdsa = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBHwf2HMM5TRXvo2SQJjsNkiDD5KqiiNjrGVv3UUh+mMT5RHxiRtOnlqvjhQtBq0VpmpCV/PwUdhOig4vkbqAcEc=";
        for (text, line) in [
            ("", 0),
            ("# nothing\n", 0),
            (ecdsa, 1),
            ("\nssh-ed25519 AAAA\n", 2),
            ("ssh-ed25519", 1),
            ("no-pty ssh-ed25519 AAAA", 1),
            (&format!("{}\n{}", openssh(1), openssh(1)), 2),
            (&format!("{} a\x1bb", openssh(1)), 1),
        ] {
            assert_eq!(OwnerKeys::parse(text).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn weak_key_is_refused() {
        // The neutral element: every message has a valid signature under it.
        let mut point = [0; 32];
        point[0] = 1;
        let key = PublicKey::from(KeyData::Ed25519(ssh_key::public::Ed25519PublicKey(point)));
        let error = OwnerKeys::parse(&key.to_openssh().unwrap()).unwrap_err();
        assert_eq!(error.fault, KeyFault::Weak);
    }

    #[test]
    fn keys_are_denied_by_line_or_by_fingerprint() {
        let text = format!(
            "{} # stolen\n{} laptop\n",
            fingerprint(&public(1)),
            openssh(2)
        );
        let denied = DeniedKeys::parse(&text).unwrap();
        assert!(denied.contains(&public(1)) && denied.contains(&public(2)));
        assert!(!denied.contains(&public(3)));
        assert!(
            DeniedKeys::parse("")
                .unwrap()
                .fingerprints()
                .next()
                .is_none()
        );
        assert_eq!(DeniedKeys::parse("SHA256:zzz").unwrap_err().line, 1);
        assert_eq!(DeniedKeys::parse("\nkyle\n").unwrap_err().line, 2);
    }
}
