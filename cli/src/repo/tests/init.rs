use std::process::Command;

use super::bed::{Bed, git_in};
use crate::repo::{At, ChangeKind, DesiredRepo, InitError, OpenError, Refusal};

#[test]
fn first_commit_is_good_to_stock_git() {
    let bed = Bed::empty();
    let outcome = bed.init();
    assert!(outcome.created && outcome.key_listed);
    assert_eq!(outcome.branch, "main");
    let log = bed.git(&["log", "--show-signature"]);
    assert!(
        log.contains("Good \"git\" signature for alice with ED25519 key"),
        "{log}"
    );
    bed.git(&["verify-commit", "HEAD"]);
    assert_eq!(
        bed.git(&["rev-parse", "HEAD"]).trim(),
        outcome.commit.unwrap().to_string()
    );
    bed.fsck();
    assert_eq!(bed.status(), "");
    // From a folder below the top as well: git goes to the top itself.
    let below = git_in(&bed.dir.join("services"), &["log", "--show-signature"]);
    assert!(below.contains("Good \"git\" signature"), "{below}");
}

#[test]
fn signers_file_has_one_line_with_the_owner() {
    let bed = Bed::new();
    let text = std::fs::read_to_string(bed.dir.join(".mcp/allowed_signers")).unwrap();
    let line = format!(
        "alice namespaces=\"git,mcp-owner,mcp-request\" {}\n",
        bed.key.public_key()
    );
    assert_eq!(text, line);
    assert!(
        bed.git(&["ls-tree", "-r", "--name-only", "HEAD"])
            .contains("services/.gitkeep")
    );
}

#[test]
fn second_init_has_nothing_to_do() {
    let bed = Bed::new();
    let before = (
        bed.git(&["rev-parse", "HEAD"]),
        std::fs::read(bed.dir.join(".git/config")).unwrap(),
    );
    let outcome = bed.init();
    assert!(outcome.nothing_to_do());
    let after = (
        bed.git(&["rev-parse", "HEAD"]),
        std::fs::read(bed.dir.join(".git/config")).unwrap(),
    );
    assert_eq!(before, after);
}

#[test]
fn settings_file_of_the_workstation_is_excluded() {
    let bed = Bed::new();
    bed.write("mcp.toml", "repo = \".\"\n");
    assert_eq!(bed.status(), "");
}

#[test]
fn existing_repository_is_taken_over_with_its_changes_left_alone() {
    let bed = Bed::empty();
    std::fs::create_dir(&bed.dir).unwrap();
    bed.git(&["init", "-b", "trunk"]);
    bed.write("README", "one\n");
    bed.write("staged", "one\n");
    bed.write("both", "one\n");
    bed.write("services/old.toml", "name = \"old\"\n");
    bed.git(&["add", "."]);
    bed.git(&["commit", "-m", "unsigned"]);
    bed.git(&["config", "user.name", "Carol"]);
    bed.git(&["config", "user.email", "carol@example.net"]);
    let config = std::fs::read_to_string(bed.dir.join(".git/config")).unwrap()
        + "\n# a comment\n[x]\n\ty = \"1;#\"\n";
    std::fs::write(bed.dir.join(".git/config"), &config).unwrap();
    bed.write("README", "two\n");
    bed.write("staged", "two\n");
    bed.git(&["add", "staged"]);
    bed.write("both", "two\n");
    bed.git(&["add", "both"]);
    bed.write("both", "three\n");
    bed.write("new", "");
    bed.write("services/old.toml", "name = \"older\"\n");
    bed.write("services/new.toml", "name = \"new\"\n");
    bed.git(&["add", "services/new.toml"]);
    let before = bed.status();

    let outcome = bed.init();

    assert!(!outcome.created);
    assert_eq!(outcome.branch, "trunk");
    assert_eq!(bed.status(), before);
    bed.git(&["verify-commit", "HEAD"]);
    assert!(!bed.git_output(&["verify-commit", "HEAD^"]).status.success());
    assert_eq!(
        bed.git(&["log", "-1", "--format=%an <%ae>"]),
        "Carol <carol@example.net>\n"
    );
    let names = bed.git(&["diff-tree", "-r", "--name-only", "HEAD^", "HEAD"]);
    assert_eq!(names, ".mcp/allowed_signers\nfiles/.gitkeep\n");
    let kept = std::fs::read_to_string(bed.dir.join(".git/config")).unwrap();
    for line in config.lines() {
        assert!(kept.lines().any(|known| known == line), "{line}");
    }
    assert_eq!(bed.git(&["config", "x.y"]), "1;#\n");
    bed.fsck();
    assert!(bed.init().nothing_to_do());
}

#[test]
fn plain_git_commit_is_signed_after_init() {
    let bed = Bed::new();
    bed.write("services/a.toml", "name = \"a\"\n");
    bed.git(&["add", "."]);
    bed.git(&["commit", "-m", "by stock git"]);
    let log = bed.git(&["log", "-1", "--show-signature"]);
    assert!(log.contains("Good \"git\" signature"), "{log}");
}

#[test]
fn settings_that_the_user_made_stay() {
    let bed = Bed::empty();
    std::fs::create_dir(&bed.dir).unwrap();
    bed.git(&["init"]);
    bed.git(&["config", "user.signingkey", "/elsewhere"]);
    bed.git(&["config", "commit.gpgsign", "false"]);
    bed.git(&["config", "gpg.format", "openpgp"]);
    let outcome = bed.init();
    assert_eq!(bed.git(&["config", "user.signingkey"]), "/elsewhere\n");
    assert_eq!(bed.git(&["config", "commit.gpgsign"]), "false\n");
    assert_eq!(bed.git(&["config", "gpg.format"]), "ssh\n");
    assert_eq!(outcome.replaced.len(), 1);
    assert_eq!(outcome.replaced[0].previous, "openpgp");
}

#[test]
fn clone_of_a_colleague_is_only_configured() {
    let bed = Bed::new();
    let other = Bed::empty();
    git_in(
        other.root.path(),
        &["clone", "-q", bed.dir.to_str().unwrap(), "desired"],
    );
    let outcome = other.init();
    assert_eq!(outcome.commit, None);
    assert!(!outcome.key_listed);
    assert!(!outcome.nothing_to_do());
    assert!(
        other
            .git(&["log", "--show-signature"])
            .contains("Good \"git\" signature for alice")
    );
}

#[test]
fn files_of_others_are_not_swept_into_the_first_commit() {
    let bed = Bed::empty();
    bed.write("services/a.toml", "x");
    bed.write("note", "x");
    bed.init();
    assert_eq!(bed.status(), "?? note\n?? services/a.toml\n");
    let changes = bed.changes();
    assert_eq!(changes.changes.len(), 1);
    assert_eq!(changes.changes[0].kind, ChangeKind::Added);
}

#[test]
fn signers_of_someone_else_are_no_first_commit() {
    let bed = Bed::empty();
    bed.write(
        ".mcp/allowed_signers",
        "eve namespaces=\"git\" ssh-ed25519 AAAA\n",
    );
    let error = DesiredRepo::init(&bed.dir, &bed.key, "alice", None).unwrap_err();
    assert!(matches!(error, InitError::ForeignSigners { .. }), "{error}");
}

#[test]
fn symlinked_folder_is_not_followed() {
    let bed = Bed::empty();
    std::fs::create_dir_all(bed.dir.join("real")).unwrap();
    std::os::unix::fs::symlink("real", bed.dir.join(".mcp")).unwrap();
    let error = DesiredRepo::init(&bed.dir, &bed.key, "alice", None).unwrap_err();
    assert!(
        matches!(
            error,
            InitError::InTheWay {
                reason: Refusal::Symlink,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(std::fs::read_dir(bed.dir.join("real")).unwrap().count(), 0);
}

#[test]
fn ignored_signers_file_is_an_error_with_a_mend() {
    let bed = Bed::empty();
    bed.write(".gitignore", ".*\n");
    let error = DesiredRepo::init(&bed.dir, &bed.key, "alice", None).unwrap_err();
    assert!(
        error
            .hint()
            .unwrap()
            .contains("git check-ignore -v .mcp/allowed_signers"),
        "{error}"
    );
}

#[test]
fn principal_must_be_plain() {
    let bed = Bed::empty();
    for principal in ["", "a b", "a,b", "*", "a\"b", "a\nb"] {
        let error = DesiredRepo::init(&bed.dir, &bed.key, principal, None).unwrap_err();
        assert!(matches!(error, InitError::Principal { .. }));
    }
    assert!(!bed.dir.exists());
}

#[test]
fn folder_without_a_repository_is_named_with_the_mend() {
    let bed = Bed::empty();
    std::fs::create_dir(&bed.dir).unwrap();
    let error = DesiredRepo::open(&bed.dir).unwrap_err();
    assert_eq!(
        error.hint(),
        format!("make one: mcp init {}", bed.dir.display())
    );
    assert!(matches!(
        DesiredRepo::discover(&bed.dir),
        Err(OpenError::NotARepository { .. })
    ));
}

#[test]
fn bare_shallow_and_sha256_repositories_are_refused_by_name() {
    let bed = Bed::new();
    bed.write("services/a.toml", "x");
    bed.commit("a");
    let at = |name: &str| bed.root.path().join(name);
    let source = format!("file://{}", bed.dir.display());
    git_in(bed.root.path(), &["clone", "-q", "--bare", &source, "bare"]);
    git_in(
        bed.root.path(),
        &["clone", "-q", "--depth", "1", &source, "shallow"],
    );
    git_in(
        bed.root.path(),
        &["init", "-q", "--object-format=sha256", "sha256"],
    );
    assert!(matches!(
        DesiredRepo::open(&at("bare")),
        Err(OpenError::Bare { .. })
    ));
    assert!(matches!(
        DesiredRepo::open(&at("shallow")),
        Err(OpenError::Shallow { .. })
    ));
    let error = DesiredRepo::open(&at("sha256")).unwrap_err();
    assert!(matches!(error, OpenError::ObjectFormat { .. }), "{error:?}");
}

#[test]
fn repository_is_found_from_a_folder_below() {
    let bed = Bed::new();
    let repo = DesiredRepo::discover(&bed.dir.join("services")).unwrap();
    assert_eq!(
        repo.dir().canonicalize().unwrap(),
        bed.dir.canonicalize().unwrap()
    );
}

#[test]
fn linked_work_tree_is_a_repository_too() {
    let bed = Bed::new();
    bed.git(&["worktree", "add", "-q", "-b", "side", "../side"]);
    let repo = DesiredRepo::open(&bed.root.path().join("side")).unwrap();
    assert_eq!(repo.branch().unwrap().as_deref(), Some("side"));
    let definitions = repo.read_definitions(At::WorkTree).unwrap();
    assert!(definitions.is_empty());
}

#[test]
fn signature_is_good_to_ssh_keygen_itself() {
    let bed = Bed::new();
    let signature = bed.key.sign("mcp-request", b"message").unwrap();
    let file = bed.root.path().join("sig");
    std::fs::write(&file, signature).unwrap();
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-n", "mcp-request", "-I", "alice", "-s"])
        .arg(&file)
        .arg("-f")
        .arg(bed.dir.join(".mcp/allowed_signers"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"message").unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn take_over_tells_what_no_node_accepts() {
    let bed = Bed::empty();
    std::fs::create_dir(&bed.dir).unwrap();
    bed.git(&["init", "-q"]);
    bed.write("docs/README", "x");
    std::os::unix::fs::symlink("docs/README", bed.dir.join("README")).unwrap();
    bed.git(&["add", "."]);
    bed.git(&["commit", "-qm", "before"]);
    let outcome = bed.init();
    assert_eq!(outcome.unfit.len(), 1);
    assert_eq!(outcome.unfit[0].to_string(), "README is a symbolic link");
}
