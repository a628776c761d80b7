use std::os::unix::fs::PermissionsExt;

use super::bed::{Bed, identity};
use crate::repo::{CommitError, Selection};

#[test]
fn commit_is_good_and_holds_only_managed_paths() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    bed.write("secrets/a.age", "s");
    bed.write("outside", "o");
    let id = bed.commit("a: first\n\nWith a body.");
    assert_eq!(bed.git(&["rev-parse", "main"]).trim(), id.to_string());
    bed.git(&["verify-commit", "HEAD"]);
    bed.fsck();
    let names = bed.git(&["diff-tree", "-r", "--name-only", "HEAD^", "HEAD"]);
    assert_eq!(names, "secrets/a.age\nservices/a.toml\n");
    assert_eq!(
        bed.git(&["log", "-1", "--format=%B"]),
        "a: first\n\nWith a body.\n\n"
    );
    assert_eq!(bed.status(), "?? outside\n");
    assert!(
        bed.git(&["reflog", "-1", "main"])
            .contains("commit: a: first")
    );
    assert!(bed.git(&["reflog", "-1"]).contains("commit: a: first"));
}

#[test]
fn unrelated_changes_stay_exactly_as_they_were() {
    let bed = Bed::new();
    for name in [
        "modified",
        "staged",
        "both",
        "removed",
        "deleted",
        "files/x/keep",
    ] {
        bed.write(name, "one\n");
    }
    bed.git(&["add", "."]);
    bed.git(&["commit", "-qm", "base"]);
    bed.write("modified", "two\n");
    bed.write("staged", "two\n");
    bed.git(&["add", "staged"]);
    bed.write("both", "two\n");
    bed.git(&["add", "both"]);
    bed.write("both", "three\n");
    bed.git(&["rm", "-q", "removed"]);
    bed.remove("deleted");
    bed.write("new-staged", "1\n");
    bed.git(&["add", "new-staged"]);
    bed.write("intended", "1\n");
    bed.git(&["add", "-N", "intended"]);
    bed.write("untracked", "1\n");
    let (before, staged) = (bed.status(), bed.git(&["diff", "--cached"]));

    bed.write("services/a.toml", "a");
    bed.commit("a");

    assert_eq!(bed.status(), before);
    assert_eq!(bed.git(&["diff", "--cached"]), staged);
    assert_eq!(
        bed.git(&["show", "--format=", "--name-only", "HEAD"]),
        "services/a.toml\n"
    );
    bed.git(&["commit", "-qm", "what was staged"]);
    let names = bed.git(&["show", "--format=", "--name-only", "HEAD"]);
    assert_eq!(names, "both\nnew-staged\nremoved\nstaged\n");
    bed.fsck();
}

#[test]
fn unrelated_edit_in_the_same_tick_stays_visible() {
    let bed = Bed::new();
    bed.write("outside", "1");
    bed.git(&["add", "outside"]);
    bed.git(&["commit", "-qm", "outside"]);
    for round in 0..10 {
        bed.write("outside", &(round % 2).to_string());
        bed.git(&["add", "outside"]);
        bed.write("outside", &((round + 1) % 2).to_string());
        bed.write("services/a.toml", &round.to_string());
        bed.commit("a");
        assert!(
            bed.status().contains("M outside"),
            "round {round}: {}",
            bed.status()
        );
    }
}

#[test]
fn only_the_selected_paths_are_committed() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    bed.write("services/b.toml", "b");
    bed.write("files/a/x", "x");
    bed.git(&["add", "services/b.toml"]);
    bed.commit_of(
        "a",
        &Selection::Only(vec!["services/a.toml".to_owned(), "files/a".to_owned()]),
    );
    assert_eq!(bed.status(), "A  services/b.toml\n");
    let names = bed.git(&["show", "--format=", "--name-only", "HEAD"]);
    assert_eq!(names, "files/a/x\nservices/a.toml\n");
}

#[test]
fn deletions_renames_and_executable_files_are_committed() {
    let bed = Bed::new();
    bed.write("files/a/one", "1");
    bed.write("files/a/two", "2");
    bed.write("files/b", "b");
    bed.commit("first");
    bed.remove("files/a/one");
    std::fs::rename(bed.dir.join("files/a/two"), bed.dir.join("files/moved")).unwrap();
    std::fs::remove_dir(bed.dir.join("files/a")).unwrap();
    // A file takes a folder's place, and a folder a file's.
    bed.write("files/a", "now a file");
    bed.remove("files/b");
    bed.write("files/b/c/d", "now a folder");
    bed.write("files/run", "#!/bin/sh\n");
    let run = bed.dir.join("files/run");
    std::fs::set_permissions(run, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::create_dir(bed.dir.join("files/empty")).unwrap();
    bed.commit("second");
    assert_eq!(bed.status(), "");
    bed.fsck();
    let tree = bed.git(&["ls-tree", "-r", "HEAD", "files"]);
    let names: Vec<_> = tree
        .lines()
        .map(|line| (&line[..6], line.split('\t').nth(1).unwrap()))
        .collect();
    let expected = [
        ("100644", "files/.gitkeep"),
        ("100644", "files/a"),
        ("100644", "files/b/c/d"),
        ("100644", "files/moved"),
        ("100755", "files/run"),
    ];
    assert_eq!(names, expected);
    assert_eq!(bed.git(&["ls-files", "-s", "files"]).lines().count(), 5);
}

#[test]
fn nothing_to_commit_is_told() {
    let bed = Bed::new();
    let repo = bed.open();
    let changes = repo.changes().unwrap();
    let error = repo
        .commit(&changes, &Selection::All, "x", &bed.key, &identity())
        .unwrap_err();
    assert!(matches!(error, CommitError::Nothing));
}

#[test]
fn refused_path_stops_only_what_takes_it_in() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    std::os::unix::fs::symlink("x", bed.dir.join("services/b.toml")).unwrap();
    let repo = bed.open();
    let changes = repo.changes().unwrap();
    let error = repo
        .commit(&changes, &Selection::All, "x", &bed.key, &identity())
        .unwrap_err();
    assert!(
        error
            .hint()
            .unwrap()
            .starts_with("services/b.toml: a symlink"),
        "{error}"
    );
    bed.commit_of("a", &Selection::Only(vec!["services/a.toml".to_owned()]));
}

#[test]
fn held_index_lock_is_named_and_nothing_changes() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    let lock = bed.dir.join(".git/index.lock");
    std::fs::write(&lock, "").unwrap();
    let head = bed.git(&["rev-parse", "HEAD"]);
    let repo = bed.open();
    let changes = repo.changes().unwrap();
    let error = repo
        .commit(&changes, &Selection::All, "x", &bed.key, &identity())
        .unwrap_err();
    assert!(error.to_string().contains("index.lock"), "{error}");
    assert!(error.hint().unwrap().contains("rm "));
    assert_eq!(bed.git(&["rev-parse", "HEAD"]), head);
    assert!(lock.exists());
}

#[test]
fn detached_head_merge_and_conflict_are_named() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    let commit = |bed: &Bed| {
        let repo = bed.open();
        let changes = repo.changes().unwrap();
        repo.commit(&changes, &Selection::All, "x", &bed.key, &identity())
            .unwrap_err()
    };
    bed.git(&["checkout", "-q", "--detach"]);
    assert!(matches!(commit(&bed), CommitError::Detached { .. }));
    bed.git(&["checkout", "-q", "main"]);
    std::fs::write(
        bed.dir.join(".git/MERGE_HEAD"),
        bed.git(&["rev-parse", "HEAD"]),
    )
    .unwrap();
    let error = commit(&bed);
    assert!(
        matches!(
            error,
            CommitError::InProgress {
                operation: "merge",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn file_that_changes_under_the_commit_is_refused() {
    let bed = Bed::new();
    bed.write("services/a.toml", "checked");
    let repo = bed.open();
    let changes = repo.changes().unwrap();
    bed.write("services/a.toml", "slipped in");
    let error = repo
        .commit(&changes, &Selection::All, "x", &bed.key, &identity())
        .unwrap_err();
    assert!(
        matches!(error, CommitError::ChangedMeanwhile { .. }),
        "{error}"
    );
    assert!(!bed.dir.join(".git/index.lock").exists());
}

#[test]
fn of_racing_commits_one_wins_and_the_others_learn_it() {
    let bed = Bed::new();
    for round in 0..5 {
        bed.write("services/a.toml", &round.to_string());
        let before = bed
            .git(&["rev-list", "--count", "HEAD"])
            .trim()
            .parse::<u32>()
            .unwrap();
        let start = std::sync::Barrier::new(4);
        let won = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let repo = bed.open();
                        let changes = repo.changes().unwrap();
                        start.wait();
                        match repo.commit(&changes, &Selection::All, "race", &bed.key, &identity())
                        {
                            Ok(_) => 1,
                            Err(CommitError::HeadMoved { .. } | CommitError::Nothing) => 0,
                            Err(error) => panic!("{error:?}"),
                        }
                    })
                })
                .collect();
            racers
                .into_iter()
                .map(|racer| racer.join().unwrap())
                .sum::<u32>()
        });
        assert_eq!(won, 1);
        let after = bed
            .git(&["rev-list", "--count", "HEAD"])
            .trim()
            .parse::<u32>()
            .unwrap();
        assert_eq!(after, before + 1);
        assert_eq!(bed.status(), "");
    }
    bed.fsck();
}

#[test]
fn bytes_are_committed_as_they_are() {
    let bed = Bed::new();
    bed.git(&["config", "core.autocrlf", "input"]);
    bed.write("files/crlf", "a\r\nb\r\n");
    bed.commit("crlf");
    let output = bed.git_output(&["cat-file", "blob", "HEAD:files/crlf"]);
    assert_eq!(output.stdout, b"a\r\nb\r\n");
}

#[test]
fn five_thousand_unchanged_services_are_not_read() {
    let bed = Bed::new();
    for n in 0..5_000 {
        std::fs::write(
            bed.dir.join(format!("services/s{n}.toml")),
            format!("name = \"s{n}\"\n"),
        )
        .unwrap();
    }
    bed.commit("many");
    // Age the entries, so that none lies within the tick of the index, as on any other day.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    for n in 0..5_000 {
        let file = std::fs::File::options()
            .write(true)
            .open(bed.dir.join(format!("services/s{n}.toml")))
            .unwrap();
        file.set_modified(old).unwrap();
    }
    bed.write("services/s0.toml", "name = \"x\"\n");
    bed.commit("refreshes the times of those that were read");
    bed.write("services/s7.toml", "name = \"y\"\n");
    let repo = bed.open();
    let changes = repo.changes().unwrap();
    assert_eq!(changes.changes.len(), 1);
    assert!(
        changes.unchanged.len() < 10,
        "{} files were read",
        changes.unchanged.len()
    );
}

#[test]
fn commit_passes_the_rules_that_nodes_apply() {
    use mcp_spec::revision::ParsedCommit;
    use mcp_spec::signature::{GIT_NAMESPACE, verify_sshsig};
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    let id = bed.commit("a: first\n\nWith a body.");
    let raw = bed
        .git_output(&["cat-file", "commit", &id.to_string()])
        .stdout;
    let commit = ParsedCommit::parse(&raw).unwrap();
    let signature = commit.signature.unwrap();
    let key = verify_sshsig(&signature, GIT_NAMESPACE, &commit.payload).unwrap();
    assert_eq!(key.key_data(), bed.key.public().key_data());
    assert_eq!(bed.open().unfit_paths(id).unwrap(), []);
}

/// Runs one of the ignored tests below in a process of its own, with an environment of its own.
fn in_process(test: &str, bed: &Bed, environment: &[(&str, &str)]) -> std::process::Output {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture"])
        .arg(format!("repo::tests::commit::{test}"))
        .env("TEST_REPOSITORY", &bed.dir)
        .env("TEST_KEY", bed.root.path().join("key"))
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

#[test]
#[ignore = "the other half of other tests"]
fn commit_of_everything() {
    use crate::sign::{KeyContext, KeySource, SigningKey};
    let Some(dir) = std::env::var_os("TEST_REPOSITORY") else {
        return;
    };
    let repo = crate::repo::DesiredRepo::open(dir.as_ref()).unwrap();
    let source = KeySource::File(std::env::var_os("TEST_KEY").unwrap().into());
    let key = SigningKey::load(&source, &KeyContext::from_environment()).unwrap();
    let changes = repo.changes().unwrap();
    repo.commit(&changes, &Selection::All, "child", &key, &identity())
        .unwrap();
}

#[test]
fn author_comes_from_the_environment_as_git_has_it() {
    let bed = Bed::new();
    bed.write("services/a.toml", "a");
    let environment = [
        ("GIT_AUTHOR_NAME", "Dora"),
        ("GIT_AUTHOR_EMAIL", "dora@example.net"),
        ("GIT_COMMITTER_NAME", "Emil"),
        ("GIT_COMMITTER_EMAIL", "emil@example.net"),
        ("GIT_COMMITTER_DATE", "1700000000 +0100"),
    ];
    assert!(
        in_process("commit_of_everything", &bed, &environment)
            .status
            .success()
    );
    let people = bed.git(&[
        "log",
        "-1",
        "--format=%an <%ae> %cn <%ce> %cd",
        "--date=raw",
    ]);
    let expected = "Dora <dora@example.net> Emil <emil@example.net> 1700000000 +0100\n";
    assert_eq!(people, expected);
    bed.fsck();
}

#[test]
fn environment_cannot_redirect_to_another_repository() {
    let (bed, other) = (Bed::new(), Bed::new());
    bed.write("services/a.toml", "a");
    let index = other.dir.join(".git/index");
    for environment in [
        ("GIT_WORK_TREE", other.dir.to_str().unwrap()),
        ("GIT_INDEX_FILE", index.to_str().unwrap()),
    ] {
        let output = in_process("commit_of_everything", &bed, &[environment]);
        assert!(String::from_utf8_lossy(&output.stderr).contains("Redirected"));
    }
    let git_dir = other.dir.join(".git");
    let redirected = ("GIT_DIR", git_dir.to_str().unwrap());
    assert!(
        in_process("commit_of_everything", &bed, &[redirected])
            .status
            .success()
    );
    assert_eq!(other.git(&["rev-list", "--count", "HEAD"]), "1\n");
    assert_eq!(bed.git(&["rev-list", "--count", "HEAD"]), "2\n");
}

#[test]
fn file_assumed_unchanged_is_left_alone() {
    let bed = Bed::new();
    bed.write("files/local", "shared");
    bed.commit("local");
    bed.git(&["update-index", "--assume-unchanged", "files/local"]);
    bed.write("files/local", "my own");
    assert!(bed.changes().is_empty());
}

#[test]
fn unborn_branch_of_another_name_takes_the_first_commit() {
    let bed = Bed::empty();
    std::fs::create_dir(&bed.dir).unwrap();
    bed.git(&["init", "-q", "-b", "ops"]);
    bed.write("staged", "s");
    bed.git(&["add", "staged"]);
    assert_eq!(bed.init().branch, "ops");
    assert_eq!(bed.status(), "A  staged\n");
    bed.git(&["verify-commit", "ops"]);
}
