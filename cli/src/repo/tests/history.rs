use super::bed::Bed;
use crate::repo::HistoryError;

#[test]
fn revisions_are_named_as_git_names_them() {
    let bed = Bed::new();
    let first = bed.open().head().unwrap().unwrap();
    bed.write("services/a.toml", "a");
    let second = bed.commit("a: one\n\nbody");
    bed.git(&["tag", "-a", "-m", "t", "v1"]);
    let repo = bed.open();
    for rev in [
        "HEAD",
        "main",
        "@",
        "v1",
        &second.to_string(),
        &second.to_string()[..8],
    ] {
        assert_eq!(repo.resolve(rev).unwrap(), second, "{rev}");
    }
    for rev in ["HEAD~1", "v1^", "main~"] {
        assert_eq!(repo.resolve(rev).unwrap(), first, "{rev}");
    }
    let error = repo.resolve("nowhere").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`nowhere` names no commit in this repository"
    );
    let info = repo.commit_info(second).unwrap();
    assert_eq!((info.subject.as_str(), info.signed), ("a: one", true));
    assert_eq!(info.parents, [first]);
    let log = repo.log(Some(first), second, 10).unwrap();
    assert_eq!(log.len(), 1);
    assert_eq!(repo.log(None, second, 10).unwrap().len(), 2);
    assert_eq!(repo.log(None, second, 1).unwrap().len(), 1);
}

#[test]
fn ancestry_holds_across_merges_and_wrong_clocks() {
    let bed = Bed::new();
    let commit = |name: &str, date: &str| {
        let output = std::process::Command::new("git")
            .current_dir(&bed.dir)
            .args(["commit", "-q", "--allow-empty", "-m", name])
            .env("GIT_COMMITTER_DATE", date)
            .env("GIT_COMMITTER_NAME", "x")
            .env("GIT_COMMITTER_EMAIL", "x@x")
            .env("GIT_AUTHOR_NAME", "x")
            .env("GIT_AUTHOR_EMAIL", "x@x")
            .output()
            .unwrap();
        assert!(output.status.success());
        bed.open().head().unwrap().unwrap()
    };
    let future = commit("future", "2100000000 +0000");
    let past = commit("past", "1000000000 +0000");
    bed.git(&["checkout", "-q", "-b", "side", "HEAD~1"]);
    let side = commit("side", "1500000000 +0000");
    bed.git(&["checkout", "-q", "main"]);
    bed.git(&["merge", "-q", "--no-ff", "-m", "merge", "side"]);
    let repo = bed.open();
    let merge = repo.head().unwrap().unwrap();
    for older in [future, past, side, merge] {
        assert!(repo.is_ancestor(older, merge).unwrap());
    }
    assert!(repo.is_ancestor(future, past).unwrap());
    assert!(!repo.is_ancestor(past, side).unwrap());
    assert!(!repo.is_ancestor(merge, side).unwrap());
    let unknown = "1234567890123456789012345678901234567890".parse().unwrap();
    assert!(matches!(
        repo.is_ancestor(unknown, merge),
        Err(HistoryError::UnknownCommit { .. })
    ));
}
