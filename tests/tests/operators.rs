//! Operators who get in each other's way: each does what comes to mind, to the same service, at the same
//! time, and the node stays in order.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{Lane, eventually};
use mcp_tests::fleet::{Fleet, Output};
use mcp_tests::torture::{Dice, Look, Observer};

mcp_tests::lanes!(operators_race_and_the_node_stays_in_order);

/// The service, and the node that it is on.
const SERVICE: &str = "crowd";

/// The components of it.
const COMPONENTS: [&str; 3] = ["api", "web", "worker"];

/// How long they go on, but for what `MCP_RACE_SECONDS` says.
const SECONDS: u64 = 20;

/// Exit codes that a command may end with while others have their way: done, failed (a broken version,
/// or blocked), put back, superseded or behind.
const ENDS: [i32; 4] = [0, 1, 3, 5];

struct Crowd {
    fleet: Fleet,
    observer: Observer,
    /// Commands by their first word and exit code.
    ended: Mutex<BTreeMap<(String, i32), u32>>,
    wrong: Mutex<Vec<String>>,
}

impl Crowd {
    fn write(&self, versions: [u64; 3], is_broken: bool) {
        let variable = self.observer.variable();
        let keys = |name: &str| {
            format!(
                "ready_for = \"200ms\"\nstop_timeout = \"2s\"\nenv = {{ {variable} = \"{name}\" }}\n"
            )
        };
        let components: Vec<String> = COMPONENTS
            .into_iter()
            .zip(versions)
            .map(|(name, version)| {
                let mut keys = keys(name);
                if name == "web" {
                    keys.push_str("depends_on = [\"api\"]\nports = [\"127.0.0.1:19090:8080\"]\n");
                }
                if name == "worker" && is_broken {
                    keys.push_str("cmd = [\"/bin/false\"]\n");
                }
                component(name, &format!("v{}", version % 3 + 1), &keys)
            })
            .collect();
        let file = format!("services/{SERVICE}.toml");
        let text = service(SERVICE, SERVICE, &components);
        self.fleet.write(&file, &text);
    }

    /// Does one thing, and holds how it ended against what may come of it.
    fn does(&self, words: &[&str]) -> Output {
        let output = self.fleet.mcp(words);
        let code = output.code.unwrap_or(-1);
        *self
            .ended
            .lock()
            .unwrap()
            .entry((words[0].to_owned(), code))
            .or_default() += 1;
        let has_words = code == 0 || output.stderr.contains("error: ");
        if !ENDS.contains(&code) || !has_words || output.stderr.contains("panicked") {
            self.wrong.lock().unwrap().push(output.to_string());
        }
        output
    }

    /// Writes new versions, some of them broken, and brings them out.
    fn develops(&self, mut dice: Dice, until: Instant) {
        let mut versions = [0, 0, 0];
        while Instant::now() < until {
            let which = usize::try_from(dice.below(3)).unwrap();
            versions[which] += 1;
            self.write(versions, dice.below(4) == 0);
            self.does(&["sync"]);
            if dice.below(3) > 0 {
                self.does(&["deploy", SERVICE, "--yes"]);
            }
        }
    }

    /// Does what needs no new version.
    fn operates(&self, mut dice: Dice, until: Instant) {
        while Instant::now() < until {
            let one = format!("{SERVICE}/{}", COMPONENTS[dice.below(3) as usize]);
            let words: &[&str] = match dice.below(11) {
                0 => &["stop", SERVICE],
                1 | 2 => &["start", SERVICE],
                3 => &["restart", SERVICE],
                4 => &["rollback", SERVICE],
                5 => &["hold", &one],
                6 => &["release", &one],
                7 => &["deploy", &one, "--yes"],
                8 => &["deploy", SERVICE, "--yes", "--force"],
                9 => {
                    self.cancels();
                    continue;
                }
                _ => &["deploy", SERVICE, "--yes"],
            };
            self.does(words);
        }
    }

    /// Cancels a deployment that has not ended, where there is one.
    fn cancels(&self) {
        let history = self.fleet.mcp(&["-o", "json", "history", SERVICE]);
        let rows: serde_json::Value = serde_json::from_str(&history.stdout).unwrap_or_default();
        let rows = rows.as_array().cloned().unwrap_or_default();
        if let Some(row) = rows.iter().find(|row| is_open(row)) {
            let id = row["deployment_id"].as_str().unwrap_or_default();
            self.does(&["deploy", "--cancel", id]);
        }
    }

    /// Looks, and is never refused a look.
    fn looks(&self, mut dice: Dice, until: Instant) {
        while Instant::now() < until {
            let words: &[&str] = match dice.below(6) {
                0 => &["ps", SERVICE],
                1 => &["list", SERVICE],
                2 => &["plan", SERVICE],
                3 => &["history", SERVICE],
                4 => &["why", SERVICE],
                _ => &["drift", SERVICE],
            };
            let output = self.does(words);
            let may_block = words[0] == "plan" && output.code == Some(1);
            if output.code != Some(0) && !may_block {
                self.wrong.lock().unwrap().push(output.to_string());
            }
        }
    }
}

fn operators_race_and_the_node_stays_in_order(lane: Lane) {
    let seconds = std::env::var("MCP_RACE_SECONDS")
        .ok()
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or(SECONDS);
    let crowd = Crowd {
        fleet: Fleet::with_node(lane, SERVICE).unwrap(),
        observer: Observer::start(),
        ended: Mutex::default(),
        wrong: Mutex::default(),
    };
    crowd.write([0, 0, 0], false);
    crowd.fleet.mcp(&["sync"]).ok();
    crowd.fleet.mcp(&["deploy", SERVICE]).ok();
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        scope.spawn(|| crowd.develops(Dice::new(1), until));
        scope.spawn(|| crowd.operates(Dice::new(2), until));
        scope.spawn(|| crowd.operates(Dice::new(3), until));
        scope.spawn(|| crowd.looks(Dice::new(4), until));
    });
    let wrong = crowd.wrong.lock().unwrap().join("\n");
    assert!(wrong.is_empty(), "{wrong}");
    let doubled = crowd.observer.doubled(began);
    assert!(doubled.is_empty(), "two generations ran: {doubled:?}");
    let ended = crowd.ended.lock().unwrap().clone();
    let deployed = ended.get(&("deploy".to_owned(), 0)).copied();
    assert!(deployed.unwrap_or(0) > 0, "nothing went through: {ended:?}");

    // What each of them was told has ended, and what is left is one container a component.
    crowd.write([1, 2, 3], false);
    crowd.fleet.mcp(&["sync"]).ok();
    crowd.fleet.mcp(&["release", SERVICE]).ok();
    crowd.fleet.mcp(&["deploy", SERVICE, "--yes"]).ok();
    crowd.fleet.mcp(&["plan", SERVICE, "--exit-code"]).exits(0);
    crowd.fleet.mcp(&["drift", SERVICE, "--exit-code"]).exits(0);
    let look = eventually("order", Duration::from_secs(60), || {
        let look = Look::at(&crowd.fleet, lane, SERVICE)?;
        let wrong = look.broken(&look, &BTreeSet::new());
        let running = COMPONENTS.iter().all(|name| look.running(name) == 1);
        Ok((wrong.is_empty() && running).then_some(look))
    });
    assert!(
        look.is_ok(),
        "{ended:?}: {:?}",
        Look::at(&crowd.fleet, lane, SERVICE)
    );
    let history = crowd.fleet.mcp_json(&["history", SERVICE, "-n", "1000"]);
    let rows = history.as_array().unwrap();
    let open: Vec<_> = rows.iter().filter(|row| is_open(row)).collect();
    assert!(open.is_empty(), "{open:?}");
}

fn is_open(row: &serde_json::Value) -> bool {
    matches!(row["outcome"].as_str(), None | Some("" | "running"))
}
