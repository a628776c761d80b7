//! Repositories with many services and a long signed history.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use mcp_tests::engine::BUSYBOX;
use mcp_tests::fleet::Fleet;
use ssh_key::{HashAlg, LineEnding, PrivateKey};

/// Services of the node that is pushed to; all others are of a node that is not asked.
pub(crate) const OWN: usize = 50;

/// Who writes the history.
const PERSON: &str = "Alice <alice@example.net>";

/// The definition of service `number`, changed for the `version`th time.
pub(crate) fn service(number: usize, node: &str, version: usize) -> String {
    let node = if number < OWN { node } else { "elsewhere" };
    format!(
        "name = \"s{number:05}\"\nnode = \"{node}\"\n\n[[components]]\nname = \"web\"\nimage = \"{BUSYBOX}:v1\"\n\
         cmd = [\"sleep\", \"infinity\"]\nenv = {{ VALUE = \"{version}\" }}\nnetwork = \"none\"\n"
    )
}

pub(crate) fn file(number: usize) -> String {
    format!("services/s{number:05}.toml")
}

/// Adds `services` and then commits until the history has `commits`, each signed and each but the first
/// changing one line.
pub(crate) fn grow(fleet: &Fleet, node: &str, services: usize, commits: usize) {
    let base = fleet.git(&["rev-parse", "HEAD"]);
    import_trees(fleet.repo(), node, services, commits, &base);
    let trees = fleet.git(&["log", "--reverse", "--format=%T", "HEAD..imported"]);
    let tip = sign_all(fleet, trees.lines(), base);
    fleet.git(&["update-ref", "-d", "refs/heads/imported"]);
    fleet.git(&["reset", "-q", "--hard", &tip]);
    // What `git gc` does now and then; deltas are kept as they are.
    fleet.git(&["repack", "-a", "-d", "-q"]);
    fleet.git(&["prune-packed", "-q"]);
}

/// Trees and unsigned commits, by git's own importer.
fn import_trees(repo: &Path, node: &str, services: usize, commits: usize, base: &str) {
    let mut git = Command::new("git")
        .args(["fast-import", "--quiet", "--force"])
        .current_dir(repo)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stream = git.stdin.take().unwrap();
    for commit in 0..commits {
        let mut text = format!(
            "commit refs/heads/imported\ncommitter {PERSON} {} +0000\ndata 1\nx\n",
            1_700_000_000 + commit
        );
        let changed = if commit == 0 {
            writeln!(text, "from {base}").unwrap();
            0..services
        } else {
            let number = commit.wrapping_mul(7919) % services;
            number..number + 1
        };
        for number in changed {
            let bytes = service(number, node, commit);
            write!(
                text,
                "M 644 inline {}\ndata {}\n{bytes}\n",
                file(number),
                bytes.len()
            )
            .unwrap();
        }
        stream.write_all(text.as_bytes()).unwrap();
    }
    drop(stream);
    assert!(git.wait().unwrap().success());
}

/// The same trees in signed commits. Gives the last one's id.
fn sign_all<'a>(fleet: &Fleet, trees: impl Iterator<Item = &'a str>, base: String) -> String {
    let key = PrivateKey::read_openssh_file(fleet.key()).unwrap();
    // One process writes all objects, a path a line, and answers each with its id.
    let mut git = Command::new("git")
        .args(["hash-object", "-t", "commit", "-w", "--stdin-paths"])
        .current_dir(fleet.repo())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut paths = git.stdin.take().unwrap();
    let mut ids = BufReader::new(git.stdout.take().unwrap());
    let object = fleet.home().join("commit");
    let mut parent = base;
    for (number, tree) in trees.enumerate() {
        let when = 1_700_000_000 + number;
        let head = format!(
            "tree {tree}\nparent {parent}\nauthor {PERSON} {when} +0000\ncommitter {PERSON} {when} +0000\n"
        );
        let body = format!("\ns{number}: change one line\n");
        let signed = key
            .sign("git", HashAlg::Sha512, format!("{head}{body}").as_bytes())
            .unwrap();
        let pem = signed.to_pem(LineEnding::LF).unwrap();
        let folded = pem.trim_end().replace('\n', "\n ");
        std::fs::write(&object, format!("{head}gpgsig {folded}\n{body}")).unwrap();
        writeln!(paths, "{}", object.display()).unwrap();
        paths.flush().unwrap();
        parent.clear();
        ids.read_line(&mut parent).unwrap();
        parent.truncate(40);
    }
    drop(paths);
    assert!(git.wait().unwrap().success());
    parent
}
