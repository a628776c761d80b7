//! Paths below a service's folder, as they are asked for.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What the agent's own names in a folder begin with, while a file takes its place.
pub(crate) const OWN_PREFIX: &str = ".mcp-push-";
/// Longest path, in bytes.
const MAX_PATH_BYTES: usize = 1024;
/// Longest part of a path, in bytes: the kernel's own limit.
const MAX_PART_BYTES: usize = 255;
/// Most parts of a path: each is opened by itself.
pub(crate) const MAX_PARTS: usize = 32;

/// A path below a service's folder: plain names, none of which leads elsewhere. Without parts it is
/// the folder itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(Vec<String>);

/// A text that is no such path.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FilePathError {
    /// It counts from the root.
    #[error("the path `{path}` is absolute")]
    Absolute {
        /// The path.
        path: String,
    },
    /// A part that leads elsewhere, or nowhere.
    #[error("the path `{path}` has a part `{part}`")]
    Part {
        /// The path.
        path: String,
        /// The part.
        part: String,
    },
    /// A control character.
    #[error("the path `{path}` has a control character")]
    Control {
        /// The path, with its control characters written out.
        path: String,
    },
    /// A name that the agent keeps for itself.
    #[error("the name `{part}` is one that the agent gives to files while they arrive")]
    Own {
        /// The name.
        part: String,
    },
    /// Too long, or too deep.
    #[error(
        "the path has {bytes} bytes in {parts} parts, and {MAX_PATH_BYTES} bytes in {MAX_PARTS} parts of \
         {MAX_PART_BYTES} are allowed"
    )]
    Long {
        /// Its length.
        bytes: usize,
        /// Its parts.
        parts: usize,
    },
}

impl FilePathError {
    /// The mend.
    #[must_use]
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Absolute { .. } | Self::Part { .. } => {
                "paths count from the service's own folder, as in metacrypt:etc/metacrypt.toml"
            }
            Self::Control { .. } | Self::Own { .. } | Self::Long { .. } => "give it another name",
        }
    }
}

impl FilePath {
    /// Its parts.
    #[must_use]
    pub fn parts(&self) -> &[String] {
        &self.0
    }

    /// The folder's parts and the last name; `None` for the service's folder itself.
    #[must_use]
    pub fn split(&self) -> Option<(&[String], &str)> {
        self.0
            .split_last()
            .map(|(name, parents)| (parents, name.as_str()))
    }
}

impl FromStr for FilePath {
    type Err = FilePathError;

    fn from_str(text: &str) -> Result<Self, FilePathError> {
        let shown = || -> String { text.escape_debug().take(200).collect() };
        let parts = text.split('/').count();
        if text.len() > MAX_PATH_BYTES || parts > MAX_PARTS {
            return Err(FilePathError::Long {
                bytes: text.len(),
                parts,
            });
        }
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        if text.starts_with('/') {
            return Err(FilePathError::Absolute { path: shown() });
        }
        if text.chars().any(char::is_control) {
            return Err(FilePathError::Control { path: shown() });
        }
        for part in text.split('/') {
            if matches!(part, "" | "." | "..") {
                return Err(FilePathError::Part {
                    path: shown(),
                    part: part.to_owned(),
                });
            }
            if part.starts_with(OWN_PREFIX) {
                return Err(FilePathError::Own {
                    part: part.to_owned(),
                });
            }
            if part.len() > MAX_PART_BYTES {
                return Err(FilePathError::Long {
                    bytes: part.len(),
                    parts,
                });
            }
        }
        Ok(Self(text.split('/').map(str::to_owned).collect()))
    }
}

impl TryFrom<String> for FilePath {
    type Error = FilePathError;

    fn try_from(text: String) -> Result<Self, FilePathError> {
        text.parse()
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> Self {
        path.to_string()
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("/"))
    }
}

/// A name as it is shown: what is no UTF-8, and control characters, as `\xNN`. Whether it can be asked for as it is.
#[must_use]
pub fn shown_name(name: &[u8]) -> (String, bool) {
    let plain = std::str::from_utf8(name)
        .ok()
        .filter(|text| !text.chars().any(char::is_control));
    if let Some(text) = plain {
        return (text.to_owned(), !text.starts_with(OWN_PREFIX));
    }
    let mut shown = String::new();
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    shown.push_str(&format!("\\x{byte:02x}"));
                }
            } else {
                shown.push(c);
            }
        }
        for byte in chunk.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    (shown, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_are_paths() {
        for good in ["a", "etc/metacrypt.toml", ".env", "a b/ä", "...", "-rf"] {
            assert_eq!(good.parse::<FilePath>().unwrap().to_string(), good);
        }
        let path: FilePath = "a/b/c".parse().unwrap();
        assert_eq!(path.split().unwrap().1, "c");
        assert!("".parse::<FilePath>().unwrap().split().is_none());
    }

    #[test]
    fn what_leads_elsewhere_is_no_path() {
        let long = "x".repeat(256);
        let deep = "a/".repeat(40) + "b";
        for bad in [
            "/etc/passwd",
            "..",
            "../x",
            "a/../b",
            "a/..",
            ".",
            "./a",
            "a//b",
            "a/",
            "a\nb",
            "a\0b",
            "a\u{7f}",
            "a\u{9b}31m",
            "\u{1b}[31m",
            ".mcp-push-00",
            "a/.mcp-push-x",
            &long,
            &deep,
        ] {
            assert!(bad.parse::<FilePath>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn odd_names_are_written_out() {
        assert_eq!(shown_name(b"plain"), ("plain".to_owned(), true));
        assert_eq!(shown_name(b"a\nb"), ("a\\x0ab".to_owned(), false));
        assert_eq!(shown_name(b"\xff\xfe"), ("\\xff\\xfe".to_owned(), false));
        assert_eq!(
            shown_name("\u{9b}x".as_bytes()),
            ("\\xc2\\x9bx".to_owned(), false)
        );
    }
}
