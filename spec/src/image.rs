//! Image references and digests.
//!
//! A short name is completed as the engines' default registry would complete it
//! (`redis` is `docker.io/library/redis:latest`), and shown complete. Grammar: the OCI distribution
//! reference grammar (`[HOST[:PORT]/]PATH[:TAG][@sha256:HEX]`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// A SHA-256 digest, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A digest that was computed elsewhere.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The hexadecimal digits, without the `sha256:`.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }

    /// The first seven hexadecimal digits, for tables.
    #[must_use]
    pub fn short(&self) -> String {
        self.hex()[..7].to_owned()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no image reference or digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ImageError {
    /// Not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("`{text}` is not a digest: write `sha256:` and 64 hexadecimal digits")]
    Digest {
        /// The refused text.
        text: String,
    },
    /// The reference does not parse.
    #[error("`{text}` is not an image reference: {why}")]
    Reference {
        /// The refused text.
        text: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl FromStr for Digest {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let refuse = || ImageError::Digest {
            text: text.chars().take(80).collect(),
        };
        let digits = text.strip_prefix("sha256:").ok_or_else(refuse)?;
        if digits.len() != 64
            || !digits
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Err(refuse());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| refuse())?;
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = ImageError;

    fn try_from(text: String) -> Result<Self, ImageError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// A complete image reference: `HOST/PATH:TAG`, `HOST/PATH@DIGEST` or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageRef {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Registry host with its port, `docker.io` where the definition names none.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository path below the registry, `library/` included for short names.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag; `latest` where neither tag nor digest was written.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, where the reference pins one.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `HOST/PATH` without tag and digest.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// The version that people read: the tag, else the digest's first seven digits.
    #[must_use]
    pub fn version(&self) -> String {
        match (&self.tag, &self.digest) {
            (Some(tag), _) => tag.clone(),
            (None, Some(digest)) => digest.short(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageRef {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        let refuse = |why| ImageError::Reference {
            text: text.chars().take(120).collect(),
            why,
        };
        if text.is_empty() {
            return Err(refuse("it is empty"));
        }
        if text.len() > 512 {
            return Err(refuse("it is longer than 512 characters"));
        }
        if text.contains("://") {
            return Err(refuse("leave out the `https://`"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            let first_is_word = tag
                .bytes()
                .next()
                .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !first_is_word
                || tag.len() > 128
                || !tag
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            {
                return Err(refuse(
                    "a tag is 1 to 128 of letters, digits, `_`, `.` and `-`, and starts with no `.` or `-`",
                ));
            }
        }
        let (registry, path) = match rest.split_once('/') {
            Some((host, path))
                if host.contains('.') || host.contains(':') || host == "localhost" =>
            {
                (host.to_owned(), path.to_owned())
            }
            Some(_) => ("docker.io".to_owned(), rest.to_owned()),
            None => ("docker.io".to_owned(), format!("library/{rest}")),
        };
        let registry = if registry == "index.docker.io" {
            "docker.io".to_owned()
        } else {
            registry
        };
        check_registry(&registry).map_err(refuse)?;
        let path = if registry == "docker.io" && !path.contains('/') {
            format!("library/{path}")
        } else {
            path
        };
        check_path(&path).map_err(refuse)?;
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some("latest".to_owned()),
        };
        Ok(Self {
            registry,
            path,
            tag,
            digest,
        })
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    if host.is_empty()
        || host.split('.').any(|label| {
            label.is_empty()
                || label.starts_with('-')
                || label.ends_with('-')
                || !label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
    {
        return Err("the registry is no host name");
    }
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err("the registry's port is no number from 0 to 65535");
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), &'static str> {
    for segment in path.split('/') {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if segment.is_empty() {
            return Err("a segment of the name is empty");
        }
        if segment.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("the name must be lower case");
        }
        if !edge(segment.bytes().next())
            || !edge(segment.bytes().last())
            || !segment.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-')
            })
        {
            return Err("a name has lower-case letters and digits, with `.`, `_` and `-` inside");
        }
    }
    Ok(())
}

impl TryFrom<String> for ImageRef {
    type Error = ImageError;

    fn try_from(text: String) -> Result<Self, ImageError> {
        text.parse()
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_completed() {
        for (short, complete) in [
            ("redis", "docker.io/library/redis:latest"),
            ("redis:7", "docker.io/library/redis:7"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("localhost/bb:v1", "localhost/bb:v1"),
            (
                "registry.example.net:5000/a/b:v1.4.0",
                "registry.example.net:5000/a/b:v1.4.0",
            ),
            ("127.0.0.1:5000/bb", "127.0.0.1:5000/bb:latest"),
            ("docker.io/redis", "docker.io/library/redis:latest"),
        ] {
            let image: ImageRef = short.parse().unwrap();
            assert_eq!(image.to_string(), complete);
            assert_eq!(complete.parse::<ImageRef>().unwrap(), image);
        }
        let digest = format!("bb@sha256:{}", "a".repeat(64));
        let image: ImageRef = digest.parse().unwrap();
        assert_eq!(image.tag(), None);
        assert_eq!(image.version(), "aaaaaaa");
    }

    #[test]
    fn malformed_references_are_refused() {
        for bad in [
            "",
            "Redis",
            "redis:",
            "redis:-x",
            "a//b",
            "/a",
            "a/",
            "https://a.b/c",
            "a b",
            "x@sha256:abc",
            "a:b:c",
            "-a",
            "reg.example.net:99999/a",
            "a@b@c",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
    }
}
