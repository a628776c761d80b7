//! `mcp sync` of a one-line change beside what git needs for the same: a signed commit, a push to a
//! local bare repository, a verification.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mcp_tests::engine::Engine;
use mcp_tests::fleet::Fleet;

use crate::history::{self, OWN};
use crate::rounds::mcp;
use crate::table::{Bar, Row, Table, median, ms};

const NODE: &str = "benchsync";

/// Measures in a small repository, and in a large one of so many services and commits.
pub(crate) fn measure(
    engine: &'static Engine,
    rounds: usize,
    large: Option<(usize, usize)>,
    table: &mut Table,
) {
    let small = repository(engine, OWN, 1, rounds, table, None);
    if let Some((services, commits)) = large {
        repository(engine, services, commits, rounds, table, Some(small));
    }
}

/// Gives the median of `mcp sync`.
fn repository(
    engine: &'static Engine,
    services: usize,
    commits: usize,
    rounds: usize,
    table: &mut Table,
    small: Option<f64>,
) -> f64 {
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, NODE).unwrap();
    let ca = fleet.node(NODE).data_dir().join("tls/ca.pem");
    // Known, so that definitions may name it, and not asked.
    fleet
        .mcp(&[
            "node",
            "add",
            "elsewhere",
            "127.0.0.1:1",
            "--ca",
            ca.to_str().unwrap(),
        ])
        .ok();
    history::grow(&fleet, NODE, services, commits);
    let place = format!("{commits} commits");
    let first = mcp(&fleet, &["sync", "-q", "--node", NODE]);
    let row = |what: &str, contender: &str, samples: Vec<f64>| Row {
        place: place.clone(),
        size: services,
        what: what.to_owned(),
        contender: contender.to_owned(),
        unit: "ms",
        samples,
        floor: None,
        bar: None,
    };
    table.add(row("first sync: the whole history", "mcp", vec![ms(first)]));

    let stock = Stock::clone(&fleet);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..=rounds {
        let text = history::service(0, NODE, 1_000_000 + round);
        let git = stock.round(&text);
        fleet.write(&history::file(0), &text);
        let sync = mcp(&fleet, &["sync", "-q", "--node", NODE]);
        if round > 0 {
            theirs.push(ms(git));
            ours.push(ms(sync));
        }
    }
    let (git, sync) = (median(&theirs), median(&ours));
    let what = "sync of one line";
    table.add(row(what, "git commit -S, push, verify-commit", theirs));
    table.add(Row {
        floor: Some(git),
        bar: Some(Bar::Ratio(1.0)),
        ..row(what, "mcp", ours.clone())
    });
    if let Some(small) = small {
        table.add(Row {
            floor: Some(small),
            bar: Some(Bar::Ratio(1.3)),
            ..row("sync of one line beside the small repository", "mcp", ours)
        });
    }
    sync
}

/// A clone of the repository and a bare one to push to, for stock git alone.
struct Stock {
    work: PathBuf,
    bare: PathBuf,
    home: PathBuf,
}

impl Stock {
    fn clone(fleet: &Fleet) -> Stock {
        let stock = Stock {
            work: fleet.home().join("stock"),
            bare: fleet.home().join("stock.git"),
            home: fleet.home().to_owned(),
        };
        let (repo, key) = (
            fleet.repo().to_str().unwrap(),
            fleet.key().to_str().unwrap(),
        );
        let (work, bare) = (stock.work.to_str().unwrap(), stock.bare.to_str().unwrap());
        stock.git(fleet.home(), &["clone", "-q", "--bare", repo, bare]);
        stock.git(fleet.home(), &["clone", "-q", bare, work]);
        let signers = stock.work.join(".mcp/allowed_signers");
        for folder in [&stock.work, &stock.bare] {
            for (name, value) in [
                ("gpg.format", "ssh"),
                ("user.signingkey", key),
                ("gpg.ssh.allowedSignersFile", signers.to_str().unwrap()),
            ] {
                stock.git(folder, &["config", name, value]);
            }
        }
        stock
    }

    fn round(&self, text: &str) -> Duration {
        std::fs::write(self.work.join(history::file(0)), text).unwrap();
        let start = Instant::now();
        self.git(
            &self.work,
            &["commit", "-q", "-S", "-a", "-m", "change one line"],
        );
        self.git(&self.work, &["push", "-q", "origin", "HEAD"]);
        self.git(&self.bare, &["verify-commit", "HEAD"]);
        start.elapsed()
    }

    fn git(&self, folder: &Path, args: &[&str]) {
        let output = Command::new("git")
            .args(args)
            .current_dir(folder)
            .env("HOME", &self.home)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "git {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
