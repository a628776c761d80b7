//! Where things lie on the workstation, after the XDG base directories.

use std::path::{Path, PathBuf};

use crate::error::Failure;

fn variable(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os(name).filter(|value| !value.is_empty())?);
    // The specification says to ignore what is not absolute.
    path.is_absolute().then_some(path)
}

fn home() -> Result<PathBuf, Failure> {
    std::env::home_dir()
        .filter(|home| !home.as_os_str().is_empty())
        .ok_or_else(|| {
            Failure::usage("the home directory is not known")
                .hint("set HOME, or give --config and --repo")
        })
}

/// `$XDG_CONFIG_HOME/mcp`.
pub(crate) fn config_directory() -> Result<PathBuf, Failure> {
    match variable("XDG_CONFIG_HOME") {
        Some(base) => Ok(base.join("mcp")),
        None => Ok(home()?.join(".config/mcp")),
    }
}

/// `$XDG_STATE_HOME/mcp`.
pub(crate) fn state_directory() -> Result<PathBuf, Failure> {
    match variable("XDG_STATE_HOME") {
        Some(base) => Ok(base.join("mcp")),
        None => Ok(home()?.join(".local/state/mcp")),
    }
}

/// Where `mcp init` puts a key that it makes: apart from the repository, which others read.
pub(crate) fn new_key_path() -> Result<PathBuf, Failure> {
    Ok(state_directory()?.join("id_ed25519"))
}

/// `path` with a leading `~/` made into the home directory.
pub(crate) fn expand_home(path: &Path) -> Result<PathBuf, Failure> {
    match path.strip_prefix("~") {
        Ok(rest) => Ok(home()?.join(rest)),
        Err(_) => Ok(path.to_owned()),
    }
}

/// The desired-state repository that the working directory lies in.
pub(crate) fn repository_around() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    here.ancestors()
        .find(|folder| {
            folder.join(".mcp/allowed_signers").is_file() && folder.join(".git").exists()
        })
        .map(Path::to_owned)
}
