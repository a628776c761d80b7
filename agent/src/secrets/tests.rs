//! What a node's keys open, and what stands for the values.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

const PATH: &str = "secrets/shop/db.age";

fn service() -> ServiceName {
    "shop".parse().unwrap()
}

fn db() -> SecretName {
    "db".parse().unwrap()
}

fn node() -> (tempfile::TempDir, Arc<Keyring>) {
    let dir = tempfile::tempdir().unwrap();
    Keyring::ensure(dir.path()).unwrap();
    let keyring = Keyring::new(dir.path());
    (dir, keyring)
}

fn sealed(keyring: &Keyring, value: &str) -> Vec<u8> {
    let nodes = BTreeMap::from([("rift".parse().unwrap(), keyring.recipient().unwrap())]);
    let value = Value::new(value.as_bytes().to_vec());
    mcp_seal::seal(&service(), &db(), &value, &nodes).unwrap()
}

#[test]
fn the_same_value_encrypted_anew_has_the_same_digest_and_another_value_another() {
    let (_dir, keyring) = node();
    let (once, again) = (sealed(&keyring, "hunter2"), sealed(&keyring, "hunter2"));
    assert_ne!(once, again);
    let digest = keyring.digest(PATH, &once);
    assert_eq!(digest, keyring.digest(PATH, &again));
    assert_ne!(digest, keyring.digest(PATH, &sealed(&keyring, "hunter3")));
    assert_eq!(keyring.trouble(&digest), None);
    assert_ne!(
        digest,
        Digest::of(b"hunter2"),
        "nobody can try values on it"
    );
    let (_other, other) = node();
    assert_ne!(
        digest,
        other.digest(PATH, &sealed(&other, "hunter2")),
        "each node has a key of its own"
    );
}

#[test]
fn a_new_identity_opens_the_old_files_and_changes_no_digest_until_the_old_one_is_forgotten() {
    let (dir, keyring) = node();
    let old = sealed(&keyring, "hunter2");
    let digest = keyring.digest(PATH, &old);
    let before = keyring.recipient().unwrap();
    let recipient = Keyring::rotate(dir.path()).unwrap();
    assert_ne!(recipient, before);
    assert_eq!(keyring.recipient().unwrap(), recipient);
    assert_eq!(
        keyring.open(&service(), &db(), &old).unwrap().expose(),
        b"hunter2"
    );
    assert_eq!(keyring.digest(PATH, &sealed(&keyring, "hunter2")), digest);
    assert_eq!(Keyring::forget_old(dir.path()).unwrap(), 1);
    let error = keyring.open(&service(), &db(), &old).unwrap_err();
    assert!(error.hint().contains("mcp secret rekey shop db"), "{error}");
}

#[test]
fn an_identity_that_is_lost_is_told_and_not_replaced() {
    let (dir, keyring) = node();
    let file = dir.path().join(IDENTITY);
    let sealed = sealed(&keyring, "hunter2");
    fs::remove_file(&file).unwrap();
    Keyring::ensure(dir.path()).unwrap();
    assert!(!file.exists());
    let digest = keyring.digest(PATH, &sealed);
    let trouble = keyring.trouble(&digest).unwrap();
    assert!(trouble.to_string().contains("age.key is gone"), "{trouble}");
    fs::write(&file, "AGE-SECRET-KEY-1QQQQ\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let error = keyring.recipient().unwrap_err();
    assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
    assert!(!format!("{error:?}").contains("QQQQ"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(
        keyring.recipient(),
        Err(KeyError::Open { mode: 0o640, .. })
    ));
}

#[test]
fn a_sealed_file_at_another_path_stands_for_nothing() {
    let (_dir, keyring) = node();
    let sealed = sealed(&keyring, "hunter2");
    let digest = keyring.digest(PATH, &sealed);
    let moved = keyring.digest("secrets/cart/db.age", &sealed);
    assert_ne!(digest, moved);
    let trouble = keyring.trouble(&moved).unwrap();
    assert!(
        trouble.to_string().contains("encrypted as shop/db"),
        "{trouble}"
    );
}

#[test]
fn the_keys_are_the_agent_s_alone_and_made_once() {
    let (dir, keyring) = node();
    let before = keyring.recipient().unwrap();
    Keyring::ensure(dir.path()).unwrap();
    assert_eq!(keyring.recipient().unwrap(), before);
    for name in [IDENTITY, DIGEST_KEY] {
        let mode = fs::metadata(dir.path().join(name)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_key_file_of_another_user_or_that_is_no_file_is_refused() {
    let (dir, keyring) = node();
    let file = dir.path().join(IDENTITY);
    let recipient = keyring.usable().unwrap();
    let kept = dir.path().join("kept");
    fs::rename(&file, &kept).unwrap();
    std::os::unix::fs::symlink(&kept, &file).unwrap();
    assert!(matches!(keyring.usable(), Err(KeyError::NotFile { .. })));
    fs::remove_file(&file).unwrap();
    // One that nobody writes to: whoever waits for it waits for ever.
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, Mode::RUSR, 0).unwrap();
    assert!(matches!(keyring.usable(), Err(KeyError::NotFile { .. })));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(keyring.usable(), Err(KeyError::NotFile { .. })));
    fs::remove_dir(&file).unwrap();
    fs::rename(&kept, &file).unwrap();
    assert_eq!(keyring.usable().unwrap(), recipient);
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for name in [IDENTITY, DIGEST_KEY] {
        let file = dir.path().join(name);
        std::os::unix::fs::chown(&file, Some(12_345), None).unwrap();
        let error = keyring.usable().unwrap_err();
        assert!(
            matches!(error, KeyError::Owner { uid: 12_345, .. }),
            "{error}"
        );
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
    }
    // Root looks at, and rotates, what is the agent's user's.
    for path in [
        dir.path().to_owned(),
        file.clone(),
        dir.path().join(DIGEST_KEY),
    ] {
        std::os::unix::fs::chown(path, Some(12_345), None).unwrap();
    }
    assert_eq!(keyring.usable().unwrap(), recipient);
    Keyring::rotate(dir.path()).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().uid(), 12_345);
}

#[test]
fn one_value_in_two_places_has_two_digests() {
    let (_dir, keyring) = node();
    let value = Value::new(b"hunter2".to_vec());
    let digest = |service: &str, name: &str| {
        let (service, name) = (service.parse().unwrap(), name.parse().unwrap());
        keyring.digest_of_value(&service, &name, &value).unwrap()
    };
    assert_ne!(digest("shop", "db"), digest("shop", "tls"));
    assert_ne!(digest("shop", "db"), digest("cart", "db"));
    assert_ne!(digest("a", "bc"), digest("ab", "c"));
}
