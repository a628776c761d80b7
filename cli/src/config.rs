//! The workstation's settings: `mcp.toml`, variables and flags, in the order flag, variable, file.
//!
//! This module owns where things lie on the workstation and what a setting's value comes from. It
//! reads `mcp.toml` and changes it in place (comments survive); it reads no token and no key.

mod edit;
mod file;
mod paths;

use std::path::{Path, PathBuf};

pub(crate) use edit::{AddNode, add_node, remove_node, set_string};
pub(crate) use file::{Mcias, NodeEntry};
pub(crate) use paths::{expand_home, new_key_path, repository_around};

use crate::args::{Given, Global};
use crate::error::Failure;

/// Where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The command line.
    Flag,
    /// A variable of the environment.
    Variable(&'static str),
    /// `mcp.toml`.
    File,
    /// The working directory lies in a desired-state repository.
    WorkingDirectory,
    /// Nobody said anything else.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => write!(f, "variable {name}"),
            Self::File => f.write_str("mcp.toml"),
            Self::WorkingDirectory => f.write_str("working directory"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    /// The value.
    pub(crate) value: T,
    /// Where it comes from.
    pub(crate) origin: Origin,
}

impl<T> Setting<T> {
    const fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }
}

/// Everything that a command may ask about the workstation.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// `mcp.toml`, which need not exist.
    pub(crate) config: Setting<PathBuf>,
    /// The desired-state repository, which need not exist.
    pub(crate) repo: Setting<PathBuf>,
    /// The folder of the bearer tokens.
    pub(crate) token_dir: Setting<PathBuf>,
    /// One token file for every node, in place of the folder.
    pub(crate) token_file: Option<Setting<PathBuf>>,
    /// What gives a new token where one is missing or old.
    pub(crate) token_command: Vec<String>,
    /// The signing key as it was named.
    pub(crate) key: Option<Setting<String>>,
    /// Where tokens come from.
    pub(crate) issuer: Option<Mcias>,
    /// All nodes of `mcp.toml`, in its order.
    pub(crate) nodes: Vec<NodeEntry>,
    /// The nodes that the command is limited to; none: all.
    pub(crate) selected: Setting<Vec<String>>,
}

impl Settings {
    /// Reads `mcp.toml` and lays variables and flags over it.
    pub(crate) fn load(global: &Global, given: &Given) -> Result<Self, Failure> {
        let directory = paths::config_directory()?;
        let config = match &global.config {
            Some(path) => Setting::new(expand_home(path)?, given.origin("config", "MCP_CONFIG")),
            None => Setting::new(directory.join("mcp.toml"), Origin::Default),
        };
        let file = file::read(&config.value).map_err(|error| error.failure())?;
        let beside = config.value.parent().unwrap_or(Path::new("."));
        let from_file = |text: &str| -> Result<PathBuf, Failure> {
            Ok(beside.join(expand_home(Path::new(text))?))
        };

        let repo = match (&global.repo, &file.repo) {
            (Some(path), _) => Setting::new(expand_home(path)?, given.origin("repo", "MCP_REPO")),
            (None, Some(path)) => Setting::new(from_file(path)?, Origin::File),
            (None, None) => match paths::repository_around() {
                Some(path) => Setting::new(path, Origin::WorkingDirectory),
                None => Setting::new(directory, Origin::Default),
            },
        };
        let auth = file.auth.unwrap_or_default();
        let token_dir = match &auth.token_dir {
            Some(path) => Setting::new(from_file(path)?, Origin::File),
            None => Setting::new(paths::state_directory()?.join("tokens"), Origin::Default),
        };
        let token_file = match &global.token_file {
            Some(path) => Some(Setting::new(
                expand_home(path)?,
                given.origin("token_file", "MCP_TOKEN_FILE"),
            )),
            None => None,
        };
        let key = match (&global.key, file.sign.and_then(|sign| sign.key)) {
            (Some(key), _) => Some(Setting::new(key.clone(), given.origin("key", "MCP_KEY"))),
            (None, Some(key)) => Some(Setting::new(key, Origin::File)),
            (None, None) => None,
        };
        let mut nodes = file.nodes;
        for node in &mut nodes {
            if let Some(path) = &node.ca_cert {
                node.ca_cert = Some(from_file(&path.to_string_lossy())?);
            }
        }
        let mut issuer = file.mcias;
        if let Some(issuer) = &mut issuer
            && let Some(path) = &issuer.ca_cert
        {
            issuer.ca_cert = Some(from_file(&path.to_string_lossy())?);
        }
        let selected = Setting::new(
            global.node.iter().map(ToString::to_string).collect(),
            given.origin("node", "MCP_NODE"),
        );
        Ok(Self {
            config,
            repo,
            token_dir,
            token_file,
            token_command: auth.token_command.unwrap_or_default(),
            key,
            issuer,
            nodes,
            selected,
        })
    }

    /// The node of this name.
    pub(crate) fn node(&self, name: &str) -> Result<&NodeEntry, Failure> {
        self.nodes
            .iter()
            .find(|node| node.name.as_str() == name)
            .ok_or_else(|| {
                let known: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
                let failure = Failure::usage(format!("node `{name}` is not configured"));
                if known.is_empty() {
                    failure.hint(format!("mcp node add {name} HOST:PORT --ca FILE"))
                } else {
                    failure
                        .cause(format!(
                            "{} knows {}",
                            self.config.value.display(),
                            known.join(", ")
                        ))
                        .hint(format!("mcp node add {name} HOST:PORT --ca FILE"))
                }
            })
    }

    /// The nodes that the command goes to: those of `--node`, else all.
    pub(crate) fn chosen_nodes(&self) -> Result<Vec<&NodeEntry>, Failure> {
        if self.nodes.is_empty() {
            return Err(Failure::usage(format!(
                "no node is configured in {}",
                self.config.value.display()
            ))
            .hint("mcp node add NAME HOST:PORT --ca FILE"));
        }
        if self.selected.value.is_empty() {
            return Ok(self.nodes.iter().collect());
        }
        let mut nodes: Vec<&NodeEntry> = Vec::new();
        for name in &self.selected.value {
            let node = self.node(name)?;
            if !nodes.iter().any(|known| known.name == node.name) {
                nodes.push(node);
            }
        }
        Ok(nodes)
    }
}
