//! The command on repositories and settings as people have them: half-merged, shared, misplaced.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod workstation;

use std::process::Stdio;

use workstation::{SHOP, Workstation, login, node_add};

/// One with a repository whose only definition names a node that is away.
fn with_shop() -> Workstation {
    let workstation = Workstation::with_repository();
    node_add(&workstation, "rift", "127.0.0.1:1");
    login(&workstation);
    workstation.define("shop", SHOP);
    assert_eq!(workstation.mcp(&["sync"]).code, 8);
    workstation
}

#[test]
fn a_variable_set_to_nothing_is_as_good_as_unset() {
    let workstation = Workstation::with_repository();
    let output = workstation
        .command(&["config"])
        .env("MCP_REPO", "")
        .env("MCP_NODE", "")
        .env("MCP_TIMEOUT", "")
        .output()
        .unwrap();
    let said = workstation.said(&output);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(!said.out.contains("MCP_REPO"), "{}", said.out);
}

#[test]
fn a_folder_of_a_repository_is_refused_with_its_top() {
    let workstation = Workstation::with_repository();
    let services = workstation.repo().join("services");
    let said = workstation.mcp(&["sync", "--repo", services.to_str().unwrap()]);
    assert_eq!(said.code, 64);
    assert!(
        said.err
            .contains("hint: use its top: --repo HOME/config/mcp\n"),
        "{}",
        said.err
    );
}

#[test]
fn a_conflict_is_told_as_a_merge_and_not_as_a_wrong_definition() {
    let workstation = with_shop();
    let sign = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
    ];
    let git = |args: &[&str]| workstation.git(&[&sign, args].concat());
    git(&["switch", "-qc", "other"]);
    workstation.define("shop", &SHOP.replace("v1", "v2"));
    git(&["commit", "-qam", "other"]);
    git(&["switch", "-q", "-"]);
    workstation.define("shop", &SHOP.replace("v1", "v3"));
    git(&["commit", "-qam", "mine"]);
    let merge = std::process::Command::new("git")
        .arg("-C")
        .arg(workstation.repo())
        .args(sign)
        .args(["merge", "-q", "other"])
        .output()
        .unwrap();
    assert!(!merge.status.success());
    let said = workstation.mcp(&["sync"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err
            .starts_with("error: a merge is in progress in HOME/config/mcp\n"),
        "{}",
        said.err
    );
}

#[test]
fn a_lock_on_the_branch_is_told_with_its_path() {
    let workstation = with_shop();
    std::fs::write(workstation.repo().join(".git/HEAD.lock"), "").unwrap();
    workstation.define("shop", &SHOP.replace("v1", "v2"));
    let said = workstation.mcp(&["sync"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("rm HOME/config/mcp/.git/HEAD.lock"),
        "{}",
        said.err
    );
}

#[test]
fn a_key_that_is_no_signer_commits_nothing() {
    let workstation = with_shop();
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(workstation.path("bob"))
        .status()
        .unwrap();
    assert!(made.success());
    let before = workstation.git(&["rev-parse", "HEAD"]);
    workstation.define("shop", &SHOP.replace("v1", "v2"));
    let said = workstation.mcp(&["sync", "--key", "bob"]);
    assert_eq!(said.code, 7, "{}", said.err);
    assert!(
        said.err.contains("is not in .mcp/allowed_signers"),
        "{}",
        said.err
    );
    assert_eq!(workstation.git(&["rev-parse", "HEAD"]), before);
}

#[test]
fn the_signers_are_not_deleted_by_an_empty_work_tree() {
    let workstation = with_shop();
    let before = workstation.git(&["rev-parse", "HEAD"]);
    for folder in [".mcp", "services", "files"] {
        let folder = workstation.repo().join(folder);
        if folder.exists() {
            std::fs::remove_dir_all(folder).unwrap();
        }
    }
    let said = workstation.mcp(&["sync"]);
    assert_eq!(said.code, 7, "{}", said.err);
    assert!(
        said.err
            .contains("hint: git checkout HEAD -- .mcp/allowed_signers\n"),
        "{}",
        said.err
    );
    assert_eq!(workstation.git(&["rev-parse", "HEAD"]), before);
}

#[test]
fn a_definition_that_is_not_read_is_told() {
    let workstation = with_shop();
    let services = workstation.repo().join("services");
    std::fs::create_dir(services.join("more")).unwrap();
    std::fs::write(services.join("more/wiki.toml"), SHOP).unwrap();
    std::fs::write(services.join("gone.toml"), SHOP.replace("shop", "gone")).unwrap();
    std::fs::write(workstation.repo().join(".gitignore"), "gone.toml\n").unwrap();
    let said = workstation.mcp(&["service", "check"]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(
        said.err.contains("services/more/wiki.toml is not read"),
        "{}",
        said.err
    );
    assert!(
        said.err
            .contains("services/gone.toml is not read: git ignores it"),
        "{}",
        said.err
    );
}

#[test]
fn a_large_file_is_refused_with_the_limit() {
    let workstation = with_shop();
    let files = workstation.repo().join("files/shop");
    std::fs::create_dir_all(&files).unwrap();
    let file = std::fs::File::create(files.join("dump")).unwrap();
    file.set_len(33 << 20).unwrap();
    let said = workstation.mcp(&["sync"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("more than the 32 MiB"), "{}", said.err);
}

#[test]
fn what_is_no_token_is_not_kept() {
    use std::io::Write as _;
    let workstation = Workstation::new();
    let mut child = workstation
        .command(&["login", "--token-stdin"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"hunter2\n").unwrap();
    let said = workstation.said(&child.wait_with_output().unwrap());
    assert_eq!(said.code, 64);
    assert!(!said.err.contains("hunter2"), "{}", said.err);
    assert!(!workstation.path("state/mcp/tokens").exists());
}

#[test]
fn a_missing_argument_is_told_without_the_flags_that_variables_set() {
    let workstation = Workstation::new();
    let output = workstation
        .command(&["login"])
        .env("MCP_REPO", "/nowhere")
        .output()
        .unwrap();
    let said = workstation.said(&output);
    assert_eq!(said.code, 64);
    assert!(said.err.contains("--token-stdin"), "{}", said.err);
    assert!(!said.err.contains("--repo"), "{}", said.err);
}
