//! `[inbox]`: its keys and their checks.

use std::path::{Path, PathBuf};

use mcp_spec::duration::Span;
use serde::Deserialize;

use super::{Text, branch};
use crate::config::{ConfigError, InboxConfig};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Inbox {
    path: PathBuf,
    branch: Option<String>,
    timeout: Option<Span>,
}

impl Inbox {
    /// Checks the keys. The inbox is others' to write, so it lies apart from the data directory, and it is no
    /// upstream at the same time.
    pub(super) fn check(
        self,
        at: &Text<'_>,
        data_dir: &Path,
        upstream: Option<&str>,
    ) -> Result<InboxConfig, ConfigError> {
        let refuse =
            |key: &str, message: String, hint: &str| at.refuse(&["inbox", key], message, hint);
        let path = at.path(&self.path);
        let shown = path.display().to_string();
        if path.to_str().is_none()
            || path.parent().is_none()
            || path.components().any(|part| part.as_os_str() == "..")
        {
            return Err(refuse(
                "path",
                format!("`{shown}` cannot be used"),
                "write the folder of a bare repository, in UTF-8 and without ..",
            ));
        }
        if path.starts_with(data_dir) || data_dir.starts_with(&path) {
            return Err(refuse(
                "path",
                format!("`{shown}` is not apart from the data directory"),
                "name a folder that the users who push own, as in /srv/git/inbox.git",
            ));
        }
        let url = upstream.map(|url| url.strip_prefix("file://").unwrap_or(url));
        if url.is_some_and(|url| Path::new(url) == path) {
            return Err(refuse(
                "path",
                format!("`{shown}` is the upstream too"),
                "leave [source] out: the inbox is looked at as soon as somebody pushes",
            ));
        }
        // It becomes the end of a path in the inbox.
        let branch = branch(at, "inbox", self.branch)?;
        let is_plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && Path::new(part).extension().is_none_or(|end| end != "lock")
        };
        if branch.contains(|c: char| c.is_control() || " ~^:?*[\\".contains(c))
            || !branch.split('/').all(is_plain)
        {
            return Err(refuse(
                "branch",
                format!("`{}` is no branch", branch.escape_debug()),
                "write its name, as in main",
            ));
        }
        Ok(InboxConfig {
            path,
            branch,
            timeout: at.positive(
                &["inbox", "timeout"],
                self.timeout.unwrap_or(Span::from_secs(60)),
            )?,
        })
    }
}
