//! Bearer tokens on the workstation: files of mode 0600, and a command that gives new ones.
//!
//! A token is never an argument and never in a log; its type does not show it. What a token says of
//! itself is read here without any check, for people: only the agent verifies.

use std::fmt;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::AsyncReadExt as _;

pub(crate) use super::renewal::is_of_mcias;

use super::renewal;
use crate::config::{NodeEntry, Settings};
use crate::context::Context;
use crate::error::{Exit, Failure};

/// Longer than any token that an agent takes.
const MAX_TOKEN_BYTES: u64 = 16 * 1024;

/// How long the token command may take: time enough to type a passphrase.
const COMMAND_TIME: Duration = Duration::from_secs(60);

/// A token with less than this left is taken for old, so that it does not end in mid-command.
const ENOUGH_LEFT_SECONDS: i64 = 30;

/// A bearer token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    /// Takes a token as it was read: one line of printable ASCII without spaces.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let fits = !text.is_empty() && text.len() as u64 <= MAX_TOKEN_BYTES;
        (fits && text.bytes().all(|byte| byte.is_ascii_graphic())).then(|| Self(text.to_owned()))
    }

    /// Whether it has the form that agents take, a JWT; nothing of it is verified.
    pub(crate) fn is_jwt(&self) -> bool {
        self.0.split('.').count() == 3 && self.claims().is_some()
    }

    /// The token itself, for the request that carries it.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    /// What the token says of itself; nothing of it is verified.
    pub(crate) fn claims(&self) -> Option<Claims> {
        let payload = self.0.split('.').nth(1)?;
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .decode(payload.trim_end_matches('='))
            .ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn is_old(&self) -> bool {
        let now = jiff::Timestamp::now().as_second();
        self.claims()
            .and_then(|claims| claims.exp)
            .is_some_and(|exp| exp - now < ENOUGH_LEFT_SECONDS)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
    }
}

/// A token's claims, as far as people are interested.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Claims {
    /// Who issued it.
    pub(crate) iss: Option<String>,
    /// Whom it is for.
    pub(crate) sub: Option<String>,
    /// When, in seconds since 1970.
    pub(crate) iat: Option<i64>,
    /// When it ends.
    pub(crate) exp: Option<i64>,
    /// Its own id.
    pub(crate) jti: Option<String>,
    /// What its subject may do, in the issuer's words.
    #[serde(default)]
    pub(crate) roles: Vec<String>,
}

/// The file that holds, or would hold, the token for `node`; for all nodes where there is none.
pub(crate) fn file_for(settings: &Settings, node: Option<&str>) -> PathBuf {
    settings.token_dir.value.join(node.unwrap_or("default"))
}

/// Where the token for `node` is read from: the one file where one was given, else the node's own
/// where it exists, else the default.
pub(crate) fn source_for(settings: &Settings, node: &str) -> PathBuf {
    if let Some(file) = &settings.token_file {
        return file.value.clone();
    }
    let own = file_for(settings, Some(node));
    if own.exists() {
        own
    } else {
        file_for(settings, None)
    }
}

/// Reads a token file; none where it is not there.
pub(crate) fn read(path: &Path) -> Result<Option<Token>, Failure> {
    let failed = || {
        Failure::new(
            Exit::Refused,
            format!("the token {} cannot be read", path.display()),
        )
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed().because(&error)),
    };
    let metadata = file.metadata().map_err(|error| failed().because(&error))?;
    let mode = metadata.permissions().mode() & 0o777;
    if metadata.is_file() && mode & 0o077 != 0 {
        return Err(Failure::new(
            Exit::Refused,
            format!(
                "the token {} can be read by others (mode {mode:04o})",
                path.display()
            ),
        )
        .hint(format!("chmod 600 {}", path.display())));
    }
    let mut text = String::new();
    file.take(MAX_TOKEN_BYTES + 2)
        .read_to_string(&mut text)
        .map_err(|error| failed().because(&error))?;
    match Token::parse(&text) {
        Some(token) => Ok(Some(token)),
        None => Err(failed()
            .cause("it holds no token")
            .hint("mcp login --token-stdin")),
    }
}

/// Writes a token file of mode 0600 in a folder of mode 0700.
pub(crate) fn write(path: &Path, token: &Token) -> Result<(), Failure> {
    let failed = |error: &std::io::Error| {
        Failure::failed(format!("the token {} cannot be written", path.display())).because(error)
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .recursive(true)
            .create(folder)
            .map_err(|error| failed(&error))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(token.reveal().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|error| {
        // What cannot be removed either is a leftover of mode 0600.
        let _ = std::fs::remove_file(&beside);
        failed(&error)
    })
}

/// The command that gives a token, for a hint.
pub(crate) fn login_words(settings: &Settings, node: Option<&NodeEntry>) -> String {
    let mut words = "mcp login".to_owned();
    if let Some(node) = node
        && settings.nodes.len() > 1
    {
        words.push_str(&format!(" --node {}", node.name));
    }
    if settings.issuer.is_none() {
        words.push_str(" --token-stdin");
    }
    words
}

/// The token for `node`: from its file, renewed where half of its life is over, or from the token command where that
/// is missing or old.
pub(super) async fn for_node(context: &Context, node: &NodeEntry) -> Result<Token, Failure> {
    let settings = &context.settings;
    let path = source_for(settings, node.name.as_str());
    let held = read(&path)?;
    let old = match held {
        Some(token) if !token.is_old() => {
            return Ok(renewal::renewed(context, &path, token).await);
        }
        Some(_) => true,
        None => false,
    };
    if settings.token_command.is_empty() || settings.token_file.is_some() {
        let what = if old { "has expired" } else { "is missing" };
        return Err(
            Failure::new(Exit::Refused, format!("the token for {} {what}", node.name))
                .cause(format!("looked for {}", path.display()))
                .hint(login_words(settings, Some(node))),
        );
    }
    let token = ask_command(&settings.token_command, node).await?;
    write(&file_for(settings, Some(node.name.as_str())), &token)?;
    Ok(token)
}

async fn ask_command(command: &[String], node: &NodeEntry) -> Result<Token, Failure> {
    let words: Vec<String> = command
        .iter()
        .map(|word| word.replace("{node}", node.name.as_str()))
        .collect();
    let failed = || {
        Failure::new(
            Exit::Refused,
            format!("the token command `{}` gave no token", words[0]),
        )
        .hint(format!(
            "try it by hand: {}; or mcp login --node {} --token-stdin",
            words.join(" "),
            node.name
        ))
    };
    let mut child = tokio::process::Command::new(&words[0])
        .args(&words[1..])
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed().because(&error))?;
    let mut output = Vec::new();
    let run = async {
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(MAX_TOKEN_BYTES + 2)
                .read_to_end(&mut output)
                .await?;
        }
        child.wait().await
    };
    let status = match tokio::time::timeout(COMMAND_TIME, run).await {
        Ok(Ok(status)) => status,
        Ok(Err(error)) => return Err(failed().because(&error)),
        Err(_) => {
            return Err(failed().cause(format!("it ran longer than {}s", COMMAND_TIME.as_secs())));
        }
    };
    // Told first: a command whose output is not read any more ends by that.
    if output.len() as u64 > MAX_TOKEN_BYTES + 1 {
        return Err(failed().cause(format!("its output is longer than {MAX_TOKEN_BYTES} bytes")));
    }
    if !status.success() {
        return Err(failed().cause(status.to_string()));
    }
    let text = String::from_utf8_lossy(&output);
    Token::parse(&text).ok_or_else(|| failed().cause("its output is no token"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_shown() {
        let token = Token::parse("a.b.c").unwrap();
        assert_eq!(format!("{token:?}"), "Token([redacted])");
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for wrong in ["", " ", "two words", "line\nline", "caf\u{e9}"] {
            assert!(Token::parse(wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_file_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens/default");
        let token = Token::parse("a.b.c").unwrap();
        write(&path, &token).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(read(&path).unwrap(), Some(token));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let failure = read(&path).unwrap_err();
        assert_eq!(failure.exit, Exit::Refused);
        assert!(failure.hint.as_deref().unwrap().starts_with("chmod 600 "));
    }

    #[test]
    fn claims_are_read_for_people() {
        let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
            .encode(br#"{"sub":"alice","iss":"mcp:rift","exp":1,"roles":["operator"]}"#);
        let token = Token::parse(&format!("h.{payload}.s")).unwrap();
        let claims = token.claims().unwrap();
        assert_eq!(claims.sub.as_deref(), Some("alice"));
        assert_eq!(claims.roles, ["operator"]);
        assert!(token.is_old());
    }
}
