//! Git's own configuration: the few settings with which stock git verifies what is signed here.

use std::io::Write;
use std::path::Path;

use gix::bstr::{BString, ByteSlice};
use gix::config::Source;

use super::{DesiredRepo, GitFailure, Identity, LOCK_WAIT};

/// The SSH key that git is set up to sign with: `user.signingkey`, where `gpg.format` is `ssh`
/// or the value itself is an SSH key.
///
/// Reads the repository's configuration where `repo` is given, else the user's and the system's.
pub fn git_signing_key(repo: Option<&DesiredRepo>) -> Option<String> {
    let string = |key: &str| -> Option<BString> {
        match repo {
            Some(repo) => repo.git.config_snapshot().string(key),
            None => gix::config::File::from_globals().ok()?.string(key),
        }
    };
    let key = string("user.signingkey")?.to_str().ok()?.to_owned();
    let is_ssh = string("gpg.format").is_some_and(|format| format == "ssh");
    let looks_like_ssh = key.starts_with("key::") || key.starts_with("ssh-");
    (is_ssh || looks_like_ssh).then_some(key)
}

/// Whom git's configuration names as the author of commits; either part may be empty, not both.
pub fn git_person(repo: Option<&DesiredRepo>) -> Option<Identity> {
    let globals = match repo {
        Some(_) => None,
        None => gix::config::File::from_globals().ok(),
    };
    let string = |key: &str| -> String {
        let value = match repo {
            Some(repo) => repo.git.config_snapshot().string(key),
            None => globals.as_ref().and_then(|globals| globals.string(key)),
        };
        value.map(|value| value.to_string()).unwrap_or_default()
    };
    let person = Identity {
        name: string("user.name"),
        email: string("user.email"),
    };
    (!person.name.is_empty() || !person.email.is_empty()).then_some(person)
}

impl DesiredRepo {
    /// Has stock git, and `mcp` where nothing else names a key, sign with this one from now on.
    ///
    /// # Errors
    ///
    /// Where the repository's configuration cannot be changed.
    pub fn sign_with(&self, key: &str) -> Result<(), GitFailure> {
        let setting = Setting {
            key: "user.signingkey",
            value: key.to_owned(),
            only_if_unset: false,
        };
        apply(self, &[setting]).map(drop)
    }
}

/// A setting of the repository's own configuration file.
pub(super) struct Setting {
    pub(super) key: &'static str,
    pub(super) value: String,
    /// Leave it alone where it is set anywhere already.
    pub(super) only_if_unset: bool,
}

/// What became of a setting.
pub(super) struct Applied {
    pub(super) key: &'static str,
    pub(super) previous: Option<String>,
}

/// Applies `settings` to the repository's own configuration file; gives those that changed.
///
/// The rest of the file, comments included, stays as it is; the file is replaced by a rename under
/// git's own `config.lock`.
pub(super) fn apply(repo: &DesiredRepo, settings: &[Setting]) -> Result<Vec<Applied>, GitFailure> {
    let path = repo.git.common_dir().join("config");
    let wait = gix::lock::acquire::Fail::AfterDurationWithBackoff(LOCK_WAIT);
    let mut lock = gix::lock::File::acquire_to_update_resource(&path, wait, None, 0)?;
    let mut file = gix::config::File::from_path_no_includes(path.clone(), Source::Local)?;
    let effective = repo.git.config_snapshot();
    let mut applied = Vec::new();
    for setting in settings {
        let here = file.string(setting.key).map(|value| value.to_string());
        let is_set = here.is_some() || effective.string(setting.key).is_some();
        if here.as_ref() == Some(&setting.value) || setting.only_if_unset && is_set {
            continue;
        }
        file.set_raw_value(setting.key, setting.value.as_str())?;
        applied.push(Applied {
            key: setting.key,
            previous: here,
        });
    }
    if applied.is_empty() {
        return Ok(applied);
    }
    let io = |error: std::io::Error| GitFailure::from(gix::Error::from_error(error));
    let mode = std::fs::metadata(&path).map_err(io)?.permissions();
    lock.write_all(&file.to_bstring()).map_err(io)?;
    lock.with_mut(|file| {
        file.set_permissions(mode)?;
        file.sync_all()
    })
    .map_err(io)?;
    lock.commit().map_err(|error| io(error.error))?;
    Ok(applied)
}

/// Adds `line` to the repository's `info/exclude` unless it is there; says whether it was added.
pub(super) fn exclude(git_common_dir: &Path, line: &str) -> std::io::Result<bool> {
    let folder = git_common_dir.join("info");
    let path = folder.join("exclude");
    let mut text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    if text.lines().any(|known| known.trim() == line.as_bytes()) {
        return Ok(false);
    }
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    text.extend_from_slice(line.as_bytes());
    text.push(b'\n');
    std::fs::create_dir_all(&folder)?;
    let mut fresh = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(&folder)?;
    fresh.write_all(&text)?;
    fresh.persist(&path)?;
    Ok(true)
}
