//! Keys as `ssh-keygen` writes them, and a real ssh-agent.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ssh_key::{PublicKey, SshSig};

use super::{
    AgentError, FindKeyError, GenerateKeyError, KeyContext, KeySource, LoadKeyError,
    PassphraseSource,
};
use super::{SigningKey, find_key, generate_key};

fn keygen(path: &Path, kind: &[&str], passphrase: &str) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-C", "test", "-N", passphrase, "-f"])
        .arg(path)
        .arg("-t")
        .args(kind)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

fn load(path: &Path, context: &KeyContext) -> Result<SigningKey, LoadKeyError> {
    SigningKey::load(&KeySource::File(path.to_owned()), context)
}

fn given(passphrase: &str) -> KeyContext {
    KeyContext {
        passphrase: PassphraseSource::Given(passphrase.to_owned()),
        agent_socket: None,
    }
}

fn assert_signs(key: &SigningKey) {
    let armour = key.sign("git", b"message").unwrap();
    assert!(armour.ends_with("-----END SSH SIGNATURE-----\n"));
    let public = PublicKey::from_openssh(&key.public_key()).unwrap();
    let signature = SshSig::from_pem(&armour).unwrap();
    public.verify("git", b"message", &signature).unwrap();
    assert!(
        public
            .verify("mcp-request", b"message", &signature)
            .is_err()
    );
}

struct Agent {
    child: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(dir: &Path) -> Self {
        use std::io::{BufRead, BufReader};
        let socket = dir.join("agent.sock");
        let mut child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It prints its variables once it listens.
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        Self { child, socket }
    }

    fn add(&self, key: &Path) {
        let status = Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn context(&self) -> KeyContext {
        KeyContext {
            passphrase: PassphraseSource::Nowhere,
            agent_socket: Some(self.socket.clone()),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn plain_key_signs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    keygen(&path, &["ed25519"], "");
    let key = load(&path, &KeyContext::default()).unwrap();
    assert_signs(&key);
    assert!(key.warnings().is_empty());
    assert_eq!(key.comment(), "test");
}

#[test]
fn encrypted_key_opens_with_its_passphrase_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    keygen(&path, &["ed25519"], "correct horse");
    assert_signs(&load(&path, &given("correct horse")).unwrap());
    assert!(matches!(
        load(&path, &given("wrong")),
        Err(LoadKeyError::WrongPassphrase { .. })
    ));
    let error = load(&path, &KeyContext::default()).unwrap_err();
    assert!(error.hint().contains("MCP_KEY_PASSPHRASE"), "{error}");
    let file = dir.path().join("passphrase");
    std::fs::write(&file, "correct horse\n").unwrap();
    let from_file = KeyContext {
        passphrase: PassphraseSource::File(file),
        agent_socket: None,
    };
    assert_signs(&load(&path, &from_file).unwrap());
}

#[test]
fn other_kinds_of_keys_are_refused_with_a_mend() {
    let dir = tempfile::tempdir().unwrap();
    for (name, kind) in [
        ("rsa", &["rsa", "-b", "2048"][..]),
        ("ecdsa", &["ecdsa"][..]),
    ] {
        for passphrase in ["", "secret"] {
            let path = dir.path().join(format!("{name}{passphrase}"));
            keygen(&path, kind, passphrase);
            let error = load(&path, &given("secret")).unwrap_err();
            assert!(
                matches!(error, LoadKeyError::Algorithm { .. }),
                "{name}: {error:?}"
            );
            assert!(error.hint().contains("ssh-keygen -t ed25519"));
            let public = path.with_extension("pub");
            assert!(matches!(
                load(&public, &given("")),
                Err(LoadKeyError::Algorithm { .. })
            ));
        }
    }
    let pem = dir.path().join("pem");
    keygen(&pem, &["rsa", "-m", "PEM"], "");
    assert!(matches!(
        load(&pem, &given("")),
        Err(LoadKeyError::Format {
            older_format: true,
            ..
        })
    ));
}

#[test]
fn missing_and_malformed_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let error = load(&path, &KeyContext::default()).unwrap_err();
    assert!(error.to_string().ends_with("key does not exist"), "{error}");
    std::fs::write(&path, "nonsense").unwrap();
    assert!(matches!(
        load(&path, &KeyContext::default()),
        Err(LoadKeyError::Format { .. })
    ));
    assert!(matches!(
        load(dir.path(), &KeyContext::default()),
        Err(LoadKeyError::Format { .. })
    ));
}

#[test]
fn key_that_others_can_read_gives_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    keygen(&path, &["ed25519"], "");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    let key = load(&path, &KeyContext::default()).unwrap();
    assert!(key.warnings()[0].to_string().contains("mode 0644"));
}

#[test]
fn agent_signs_with_a_key_named_in_every_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    keygen(&path, &["ed25519"], "");
    let agent = Agent::start(dir.path());
    agent.add(&path);
    let plain = load(&path, &KeyContext::default()).unwrap();
    let public = dir.path().join("key.pub");
    std::fs::remove_file(&path).unwrap();
    let names = [
        format!("ssh-agent:{}", plain.fingerprint()),
        public.display().to_string(),
        plain.public_key(),
        format!("key::{}", plain.public_key()),
    ];
    for name in names {
        let source: KeySource = name.parse().unwrap();
        let key = SigningKey::load(&source, &agent.context()).unwrap();
        assert_eq!(key.public_key(), plain.public_key());
        assert_signs(&key);
    }
}

#[test]
fn agent_spares_the_passphrase() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("key"), dir.path().join("plain"));
    keygen(&path, &["ed25519"], "");
    std::fs::copy(&path, &copy).unwrap();
    let status = Command::new("ssh-keygen")
        .args(["-q", "-p", "-N", "secret", "-f"])
        .arg(&path)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let agent = Agent::start(dir.path());
    agent.add(&copy);
    assert_signs(&load(&path, &agent.context()).unwrap());
}

#[test]
fn key_that_the_agent_does_not_hold_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    keygen(&path, &["ed25519"], "");
    let fingerprint = load(&path, &KeyContext::default()).unwrap().fingerprint();
    let source: KeySource = format!("ssh-agent:{fingerprint}").parse().unwrap();
    let agent = Agent::start(dir.path());
    let error = SigningKey::load(&source, &agent.context()).unwrap_err();
    assert!(error.to_string().contains(&fingerprint), "{error}");
    let error = SigningKey::load(&source, &KeyContext::default()).unwrap_err();
    assert!(matches!(
        error,
        LoadKeyError::Agent {
            source: AgentError::NoSocket,
            ..
        }
    ));
}

#[test]
fn hostile_agent_cannot_hurt() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let replies: [&[u8]; 4] = [
        &[255, 255, 255, 255],
        &[0, 0, 0, 0],
        &[0, 0, 0, 5, 12, 255, 255, 255, 255],
        &[0, 0, 0, 9, 12, 0, 0, 0, 1, 255, 255, 255, 255],
    ];
    let server = std::thread::spawn(move || {
        for reply in replies {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 5]).unwrap();
            let _ = stream.write_all(reply);
        }
    });
    for _ in replies {
        assert!(matches!(
            super::ssh_agent::list(&socket),
            Err(AgentError::Malformed)
        ));
    }
    server.join().unwrap();
}

#[test]
fn flag_goes_before_setting_and_setting_before_git() {
    let file = |name: &str| Some(KeySource::File(name.into()));
    assert_eq!(
        find_key(Some("/a"), Some("/b"), Some("/c")).unwrap(),
        file("/a")
    );
    assert_eq!(find_key(None, Some("/b"), Some("/c")).unwrap(), file("/b"));
    assert_eq!(find_key(None, None, Some("/c")).unwrap(), file("/c"));
    assert_eq!(find_key(None, None, None).unwrap(), None);
    assert!(matches!(
        find_key(Some("ssh-agent:x"), None, None),
        Err(FindKeyError::Fingerprint { .. })
    ));
    assert!(matches!(
        find_key(Some("key::ssh-ed25519 x"), None, None),
        Err(FindKeyError::PublicKey { .. })
    ));
    let home = std::env::home_dir().unwrap();
    assert_eq!(
        find_key(Some("~/k"), None, None).unwrap(),
        Some(KeySource::File(home.join("k")))
    );
}

#[test]
fn new_key_is_private_and_overwrites_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/key");
    let key = generate_key(&path, "alice@test").unwrap();
    assert_signs(&key);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(
        load(&path, &KeyContext::default()).unwrap().public_key(),
        key.public_key()
    );
    assert!(matches!(
        generate_key(&path, ""),
        Err(GenerateKeyError::Exists { .. })
    ));
    let status = Command::new("ssh-keygen")
        .arg("-lf")
        .arg(&path)
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn debug_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let key = generate_key(&dir.path().join("key"), "c").unwrap();
    assert!(format!("{key:?}").contains("[redacted]"));
    assert!(!format!("{:?}", given("hunter2")).contains("hunter2"));
}
