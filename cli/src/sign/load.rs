//! Opening a key: files plain and encrypted, passphrases, and keys that an ssh-agent holds.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ssh_key::{Algorithm, HashAlg, PrivateKey, PublicKey};

use super::{AgentError, KeySource, KeyWarning, Secret, SigningKey, ssh_agent};

/// Larger than any Ed25519 key, and than most RSA keys that get a message of their own.
const MAX_KEY_FILE_BYTES: u64 = 64 * 1024;
/// As many times as `ssh` asks.
const PROMPTS: usize = 3;

/// What opening a key may use besides its file.
#[derive(Debug, Default)]
pub struct KeyContext {
    /// Where a passphrase comes from, should one be needed.
    pub passphrase: PassphraseSource,
    /// The ssh-agent's socket.
    pub agent_socket: Option<PathBuf>,
}

/// Where the passphrase of an encrypted key comes from.
#[derive(Default)]
pub enum PassphraseSource {
    /// Nowhere: an encrypted key is an error.
    #[default]
    Nowhere,
    /// Asked for on the controlling terminal, at most three times.
    Terminal,
    /// Given by `MCP_KEY_PASSPHRASE`.
    Given(String),
    /// The first line of the file that `MCP_KEY_PASSPHRASE_FILE` names.
    File(PathBuf),
}

impl std::fmt::Debug for PassphraseSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nowhere => f.write_str("Nowhere"),
            Self::Terminal => f.write_str("Terminal"),
            Self::Given(_) => f.write_str("Given([redacted])"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl KeyContext {
    /// What this process was started with: `SSH_AUTH_SOCK`, `MCP_KEY_PASSPHRASE`,
    /// `MCP_KEY_PASSPHRASE_FILE`, and a terminal to ask on.
    pub fn from_environment() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let passphrase = match std::env::var("MCP_KEY_PASSPHRASE") {
            Ok(given) if !given.is_empty() => PassphraseSource::Given(given),
            _ => match set("MCP_KEY_PASSPHRASE_FILE") {
                Some(path) => PassphraseSource::File(path.into()),
                None if std::io::stderr().is_terminal() => PassphraseSource::Terminal,
                None => PassphraseSource::Nowhere,
            },
        };
        Self {
            passphrase,
            agent_socket: set("SSH_AUTH_SOCK").map(PathBuf::from),
        }
    }
}

/// Why a key could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadKeyError {
    /// The file is not there.
    #[error("the signing key {} does not exist", path.display())]
    Missing {
        /// The key's file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("the signing key {} cannot be read", path.display())]
    Read {
        /// The key's file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is no key in OpenSSH's format.
    #[error("{} is no OpenSSH key", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Whether it is a private key in an older format.
        older_format: bool,
    },
    /// The key is of another kind than Ed25519.
    #[error("{key} is an {algorithm} key; only Ed25519 keys sign revisions")]
    Algorithm {
        /// The key as it was named.
        key: String,
        /// Its kind.
        algorithm: String,
    },
    /// The key is encrypted, and there is neither a terminal nor a variable with its passphrase.
    #[error("the signing key {} is encrypted, and there is no terminal to ask for its passphrase", path.display())]
    NoPassphrase {
        /// The key's file.
        path: PathBuf,
    },
    /// The passphrase does not open the key.
    #[error("the passphrase does not open the signing key {}", path.display())]
    WrongPassphrase {
        /// The key's file.
        path: PathBuf,
    },
    /// The passphrase's own file, or the terminal, cannot be read.
    #[error("the passphrase cannot be read from {from}")]
    Passphrase {
        /// A path, or `the terminal`.
        from: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The ssh-agent does not hold the key.
    #[error("the ssh-agent does not hold the key {key}")]
    NotInAgent {
        /// The key as it was named.
        key: String,
    },
    /// The private half is in no file, so the ssh-agent is needed, and cannot be asked.
    #[error("the key {key} needs an ssh-agent")]
    Agent {
        /// The key as it was named.
        key: String,
        /// What went wrong.
        source: AgentError,
    },
}

impl LoadKeyError {
    /// The next thing to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Missing { path } => {
                format!("give another with --key FILE, or make it: ssh-keygen -t ed25519 -f {}", path.display())
            }
            Self::Read { .. } => "look at the file's owner and mode".to_owned(),
            Self::Format { path, older_format: true } => {
                format!("convert it: ssh-keygen -p -f {}", path.display())
            }
            Self::Format { .. } | Self::Algorithm { .. } => {
                "make an Ed25519 key: ssh-keygen -t ed25519 -f ~/.ssh/id_ed25519".to_owned()
            }
            Self::NoPassphrase { .. } => {
                "set MCP_KEY_PASSPHRASE or MCP_KEY_PASSPHRASE_FILE, or hand the key to an ssh-agent with ssh-add"
                    .to_owned()
            }
            Self::WrongPassphrase { path } => format!("try it with: ssh-keygen -y -f {}", path.display()),
            Self::Passphrase { .. } => "set MCP_KEY_PASSPHRASE, or hand the key to an ssh-agent with ssh-add".to_owned(),
            Self::NotInAgent { .. } => "look with `ssh-add -l`, and add it: ssh-add FILE".to_owned(),
            Self::Agent { source, .. } => source.hint(),
        }
    }
}

pub(super) fn load(source: &KeySource, context: &KeyContext) -> Result<SigningKey, LoadKeyError> {
    match source {
        KeySource::File(path) => from_file(path, source, context),
        KeySource::AgentFingerprint(fingerprint) => from_agent(source, context, |key| {
            key.fingerprint(HashAlg::Sha256).to_string() == *fingerprint
        }),
        KeySource::AgentPublicKey(text) => {
            let wanted = PublicKey::from_openssh(text).map_err(|_| LoadKeyError::NotInAgent {
                key: source.to_string(),
            })?;
            require_ed25519(&wanted.algorithm(), source)?;
            from_agent(source, context, |key| key.key_data() == wanted.key_data())
        }
    }
}

fn from_agent(
    source: &KeySource,
    context: &KeyContext,
    wanted: impl Fn(&PublicKey) -> bool,
) -> Result<SigningKey, LoadKeyError> {
    let failed = |error| LoadKeyError::Agent {
        key: source.to_string(),
        source: error,
    };
    let socket = context
        .agent_socket
        .clone()
        .ok_or(AgentError::NoSocket)
        .map_err(failed)?;
    let public = ssh_agent::list(&socket)
        .map_err(failed)?
        .into_iter()
        .find(wanted)
        .ok_or_else(|| LoadKeyError::NotInAgent {
            key: source.to_string(),
        })?;
    Ok(SigningKey {
        public,
        source: source.clone(),
        secret: Secret::Agent { socket },
        warnings: Vec::new(),
    })
}

fn from_file(
    path: &Path,
    source: &KeySource,
    context: &KeyContext,
) -> Result<SigningKey, LoadKeyError> {
    let (text, mode) = read_bounded(path)?;
    if let Ok(public) = PublicKey::from_openssh(text.trim()) {
        return from_public_file(path, public, source, context);
    }
    if !text.contains("-----BEGIN OPENSSH PRIVATE KEY-----") {
        // PEM and PKCS#8, which ssh-keygen still reads, are converted by it in place.
        let older_format = text.contains("PRIVATE KEY-----");
        return Err(LoadKeyError::Format {
            path: path.to_owned(),
            older_format,
        });
    }
    let key = PrivateKey::from_openssh(text.trim()).map_err(|error| match error {
        ssh_key::Error::AlgorithmUnsupported { algorithm } => LoadKeyError::Algorithm {
            key: source.to_string(),
            algorithm: algorithm.to_string(),
        },
        _ => LoadKeyError::Format {
            path: path.to_owned(),
            older_format: false,
        },
    })?;
    // The public half of an encrypted key is in plain text, so this comes before the passphrase.
    require_ed25519(&key.public_key().algorithm(), source)?;
    let mut warnings = Vec::new();
    if mode & 0o077 != 0 {
        warnings.push(KeyWarning::ReadableByOthers {
            path: path.to_owned(),
            mode,
        });
    }
    if !key.is_encrypted() {
        return Ok(SigningKey {
            public: key.public_key().clone(),
            source: source.clone(),
            secret: Secret::Opened(Box::new(key)),
            warnings,
        });
    }
    let automatic = matches!(
        context.passphrase,
        PassphraseSource::Given(_) | PassphraseSource::File(_)
    );
    if !automatic && let Some(socket) = holding(context, key.public_key()) {
        return Ok(SigningKey {
            public: key.public_key().clone(),
            source: source.clone(),
            secret: Secret::Agent { socket },
            warnings,
        });
    }
    let opened = decrypt(path, &key, context)?;
    Ok(SigningKey {
        public: opened.public_key().clone(),
        source: source.clone(),
        secret: Secret::Opened(Box::new(opened)),
        warnings,
    })
}

/// A public key's file: the private half is with the ssh-agent, or in the file beside it, as git has it.
fn from_public_file(
    path: &Path,
    public: PublicKey,
    source: &KeySource,
    context: &KeyContext,
) -> Result<SigningKey, LoadKeyError> {
    require_ed25519(&public.algorithm(), source)?;
    if let Some(socket) = holding(context, &public) {
        return Ok(SigningKey {
            public,
            source: source.clone(),
            secret: Secret::Agent { socket },
            warnings: Vec::new(),
        });
    }
    let private = path.with_extension("");
    if path.extension().is_some_and(|extension| extension == "pub") && private.exists() {
        return from_file(&private, &KeySource::File(private.clone()), context);
    }
    from_agent(source, context, |key| key.key_data() == public.key_data())
}

/// The agent's socket, if it holds this key; an agent that cannot be asked holds nothing.
fn holding(context: &KeyContext, public: &PublicKey) -> Option<PathBuf> {
    let socket = context.agent_socket.as_ref()?;
    let keys = ssh_agent::list(socket).ok()?;
    keys.iter()
        .any(|key| key.key_data() == public.key_data())
        .then(|| socket.clone())
}

fn require_ed25519(algorithm: &Algorithm, source: &KeySource) -> Result<(), LoadKeyError> {
    match algorithm {
        Algorithm::Ed25519 => Ok(()),
        other => Err(LoadKeyError::Algorithm {
            key: source.to_string(),
            algorithm: other.to_string(),
        }),
    }
}

fn decrypt(
    path: &Path,
    key: &PrivateKey,
    context: &KeyContext,
) -> Result<PrivateKey, LoadKeyError> {
    let wrong = || LoadKeyError::WrongPassphrase {
        path: path.to_owned(),
    };
    match &context.passphrase {
        PassphraseSource::Nowhere => Err(LoadKeyError::NoPassphrase {
            path: path.to_owned(),
        }),
        PassphraseSource::Given(passphrase) => key.decrypt(passphrase).map_err(|_| wrong()),
        PassphraseSource::File(file) => {
            let failed = |source| LoadKeyError::Passphrase {
                from: file.display().to_string(),
                source,
            };
            let mut text = String::new();
            File::open(file)
                .and_then(|opened| opened.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text))
                .map_err(failed)?;
            key.decrypt(text.lines().next().unwrap_or_default())
                .map_err(|_| wrong())
        }
        PassphraseSource::Terminal => {
            for attempt in 0..PROMPTS {
                let again = if attempt == 0 {
                    ""
                } else {
                    "That was not it. "
                };
                let passphrase = rpassword::prompt_password(format!(
                    "{again}Passphrase for {}: ",
                    path.display()
                ))
                .map_err(|source| LoadKeyError::Passphrase {
                    from: "the terminal".to_owned(),
                    source,
                })?;
                if let Ok(opened) = key.decrypt(passphrase) {
                    return Ok(opened);
                }
            }
            Err(wrong())
        }
    }
}

fn read_bounded(path: &Path) -> Result<(String, u32), LoadKeyError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => LoadKeyError::Missing {
            path: path.to_owned(),
        },
        _ => LoadKeyError::Read {
            path: path.to_owned(),
            source,
        },
    };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(LoadKeyError::Format {
            path: path.to_owned(),
            older_format: false,
        });
    }
    let mut bytes = Vec::new();
    file.take(MAX_KEY_FILE_BYTES)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|_| LoadKeyError::Format {
        path: path.to_owned(),
        older_format: false,
    })?;
    Ok((text, metadata.permissions().mode() & 0o7777))
}
