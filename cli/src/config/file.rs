//! `mcp.toml` as it is written: unknown keys are refused with their place.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use mcp_spec::name::NodeName;
use serde::Deserialize;
use thiserror::Error;

use crate::error::Failure;

/// Larger than any `mcp.toml` with a thousand nodes.
const MAX_BYTES: u64 = 1024 * 1024;

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct File {
    pub(crate) repo: Option<String>,
    pub(crate) mcias: Option<Mcias>,
    pub(crate) auth: Option<Auth>,
    pub(crate) sign: Option<Sign>,
    #[serde(default)]
    pub(crate) nodes: Vec<NodeEntry>,
}

/// `[mcias]`: where tokens come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mcias {
    /// The issuer's address.
    pub(crate) server_url: String,
    /// The CA that its certificate is checked against.
    pub(crate) ca_cert: Option<PathBuf>,
    /// The name that MCP is known by there.
    pub(crate) service_name: Option<String>,
}

/// `[auth]`: the workstation's tokens.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Auth {
    pub(crate) token_dir: Option<String>,
    pub(crate) token_command: Option<Vec<String>>,
}

/// `[sign]`: the operator's key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sign {
    pub(crate) key: Option<String>,
}

/// One `[[nodes]]` entry.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeEntry {
    /// The node's name, which definitions use.
    pub(crate) name: NodeName,
    /// `HOST:PORT` of its agent.
    pub(crate) address: String,
    /// The CA that its certificate is checked against.
    pub(crate) ca_cert: Option<PathBuf>,
    /// SHA-256 of its certificate, or of a CA that it sends, in place of the CA's file.
    pub(crate) fingerprint: Option<String>,
    /// The name in its certificate, where that is not the address's host.
    pub(crate) server_name: Option<String>,
}

/// Why `mcp.toml` could not be used.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// It is there and cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is longer than any such file can sensibly be.
    #[error("{} is larger than {MAX_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It is no TOML, or a key is unknown or of the wrong type.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// Two nodes of one name.
    #[error("{}: node `{name}` is there twice", path.display())]
    TwiceNamed {
        /// The file.
        path: PathBuf,
        /// The name.
        name: NodeName,
    },
    /// A node with nothing, or with two things, to check its certificate against.
    #[error("{}: node `{name}` needs either `ca_cert` or `fingerprint`", path.display())]
    Trust {
        /// The file.
        path: PathBuf,
        /// The node.
        name: NodeName,
    },
    /// It could not be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ConfigError {
    /// The failure of a command that needed the file.
    pub(crate) fn failure(&self) -> Failure {
        Failure::of(crate::error::Exit::Usage, self)
    }
}

/// Reads the file; one that is not there is empty.
pub(crate) fn read(path: &Path) -> Result<File, ConfigError> {
    let text = text(path)?;
    parse(path, &text)
}

/// The file's text; empty where it is not there.
pub(super) fn text(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut text = String::new();
    file.take(MAX_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

/// Parses the text of `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let file: File = toml::from_str(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start).min(text.len());
        let before = &text[..offset];
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .map_or(0, |last| last.chars().count())
            + 1;
        ConfigError::Syntax {
            path: path.to_owned(),
            line,
            column,
            message: error.message().to_owned(),
        }
    })?;
    for (index, node) in file.nodes.iter().enumerate() {
        if file.nodes[..index]
            .iter()
            .any(|other| other.name == node.name)
        {
            return Err(ConfigError::TwiceNamed {
                path: path.to_owned(),
                name: node.name.clone(),
            });
        }
        if node.ca_cert.is_some() == node.fingerprint.is_some() {
            return Err(ConfigError::Trust {
                path: path.to_owned(),
                name: node.name.clone(),
            });
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        parse(Path::new("mcp.toml"), text)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn the_documented_file_is_taken() {
        let file = parse(
            Path::new("mcp.toml"),
            r#"
repo = "~/.config/mcp"
[mcias]
server_url   = "https://mcias.example.net:8443"
ca_cert      = "~/.config/mcp/ca.pem"
service_name = "mcp"
[auth]
token_dir     = "~/.local/state/mcp/tokens"
token_command = ["ssh", "{node}", "mcp-agent"]
[sign]
key = "~/.ssh/id_ed25519"
[[nodes]]
name        = "rift"
address     = "rift.example.net:9444"
ca_cert     = "~/.config/mcp/rift-ca.pem"
"#,
        )
        .unwrap();
        assert_eq!(file.nodes[0].name.as_str(), "rift");
    }

    #[test]
    fn unknown_key_is_refused_with_its_line() {
        let error = error_of("repo = \"x\"\n\n[auth]\ntoken_dri = \"x\"\n");
        assert!(
            error.starts_with("mcp.toml:4:1: unknown field `token_dri`"),
            "{error}"
        );
    }

    #[test]
    fn node_without_trust_is_refused() {
        let error = error_of("[[nodes]]\nname = \"rift\"\naddress = \"rift:9444\"\n");
        assert_eq!(
            error,
            "mcp.toml: node `rift` needs either `ca_cert` or `fingerprint`"
        );
    }

    #[test]
    fn node_named_twice_is_refused() {
        let node = "[[nodes]]\nname = \"rift\"\naddress = \"a:1\"\nca_cert = \"x\"\n";
        assert_eq!(
            error_of(&format!("{node}{node}")),
            "mcp.toml: node `rift` is there twice"
        );
    }
}
