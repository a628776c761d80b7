//! Tries the mutations of `tests/mutations`: each is a small change that makes the agent wrong, and the
//! simulation, the sweep or another test has to fail of it.
//!
//! All of them are put into one copy of the sources, each behind a switch (`MUTATED` in its text), so
//! that one build serves them all. A mutation whose text is not found exactly once no longer applies, and
//! is told.
//!
//! ```text
//! make mutants                              all of them
//! make mutants ARGS="--seeds 500 name..."   some
//! ```

#![expect(clippy::print_stdout, reason = "it tells what caught what")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// Seeds that each mutation is tried on, where nothing else is asked for.
const SEEDS: u64 = 400;

/// The longest that one run may take: a mutant may go round for ever.
const PATIENCE: Duration = Duration::from_secs(600);

/// Tests that could catch a mutant: what to call them, their program, and which of them.
type Trial<'a> = (&'static str, &'static str, &'a [&'a str]);

const SIMULATION: Trial<'_> = ("simulation", "simulation", &["every_rule"]);
const SWEEP: Trial<'_> = ("sweep", "mcp_agent", &["deploy::tests::"]);
const OF_THE_SPEC: Trial<'_> = ("test", "mcp_spec", &[]);
const OF_THE_AGENT: Trial<'_> = ("test", "mcp_agent", &["--skip", "deploy::tests::"]);

/// What tells a mutant that it is one; the name comes from outside.
const SWITCH: &str = r#"
/// Whether this mutation is switched on.
#[must_use]
pub fn mutated(name: &str) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("MCP_MUTANT").ok()).as_deref() == Some(name)
}
"#;

/// One change that makes the agent wrong.
struct Mutation {
    name: String,
    says: String,
    file: String,
    find: String,
    replace: String,
    /// The tests that are about it, where there are some: they are quicker than the simulation.
    tests: Option<String>,
}

impl Mutation {
    fn is_of_the_spec(&self) -> bool {
        self.file.starts_with("spec/")
    }
}

/// What a run said.
struct Said {
    passed: bool,
    text: String,
}

/// The programs that hold the tests.
struct Bench {
    programs: BTreeMap<String, PathBuf>,
    seeds: u64,
}

fn main() -> Result<()> {
    let mut seeds = SEEDS;
    let mut wanted = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seeds" => seeds = arguments.next().context("--seeds N")?.parse()?,
            name => wanted.push(name.to_owned()),
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let mutations = read(&root.join("tests/mutations"))?;
    for name in &wanted {
        ensure!(
            mutations.iter().any(|mutation| mutation.name == *name),
            "there is no mutation {name}"
        );
    }
    let place = root.join("target/mutants");
    let gone = mutate(&root, &place.join("tree"), &mutations)?;
    for name in &gone {
        println!("{name}: NO LONGER APPLIES");
    }
    let bench = Bench {
        programs: build(&root, &place.join("tree"))?,
        seeds,
    };
    for trial in [SIMULATION, SWEEP] {
        if let Some(why) = bench.fails("", trial)? {
            bail!("without any mutation: {why}");
        }
    }
    let mut missed = gone.len();
    let mut report = "| change | what caught it |\n| --- | --- |\n".to_owned();
    for mutation in &mutations {
        let name = &mutation.name;
        let is_wanted = wanted.is_empty() || wanted.contains(name);
        if !is_wanted || gone.contains(name) {
            continue;
        }
        let caught = bench.catches(mutation)?;
        if caught.is_none() {
            missed += 1;
        }
        let caught = caught.unwrap_or_else(|| "NOTHING".to_owned());
        println!("{name}: {caught}");
        writeln!(report, "| {} | {caught} |", mutation.says)?;
        fs::write(place.join("report.md"), &report)?;
    }
    ensure!(
        missed == 0,
        "{missed} mutations do not apply or were not caught"
    );
    Ok(())
}

/// Reads the mutations of every file, in the order of the files.
fn read(folder: &Path) -> Result<Vec<Mutation>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let table: toml::Table = fs::read_to_string(&file)?
            .parse()
            .with_context(|| file.display().to_string())?;
        let list = table.get("mutation").and_then(toml::Value::as_array);
        for entry in list.into_iter().flatten() {
            let text = |name: &str| -> Result<String> {
                let value = entry.get(name).and_then(toml::Value::as_str);
                let value = value.with_context(|| format!("{}: {name}", file.display()))?;
                Ok(value.to_owned())
            };
            found.push(Mutation {
                name: text("name")?,
                says: text("says")?,
                file: text("file")?,
                find: text("find")?,
                replace: text("replace")?,
                tests: text("tests").ok(),
            });
        }
    }
    Ok(found)
}

/// Makes the copy with all mutations in it; tells those that no longer apply. What did not change
/// keeps its time, so that it is not built again.
fn mutate(root: &Path, tree: &Path, mutations: &[Mutation]) -> Result<Vec<String>> {
    let listed = Command::new("git")
        .args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            "-z",
        ])
        .current_dir(root)
        .output()?;
    ensure!(listed.status.success(), "git does not list the sources");
    let mut files = BTreeMap::new();
    for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        if let Ok(bytes) = fs::read(root.join(name)) {
            files.insert(name.to_owned(), bytes);
        }
    }
    let mut gone = Vec::new();
    for mutation in mutations {
        let switch = if mutation.is_of_the_spec() {
            "crate::mutated"
        } else {
            "mcp_spec::mutated"
        };
        let switch = format!("{switch}(\"{}\")", mutation.name);
        let text = files.get(&mutation.file).cloned().unwrap_or_default();
        let text = String::from_utf8(text)?;
        if text.matches(&mutation.find).count() != 1 {
            gone.push(mutation.name.clone());
            continue;
        }
        let mutated = text.replacen(
            &mutation.find,
            &mutation.replace.replace("MUTATED", &switch),
            1,
        );
        files.insert(mutation.file.clone(), mutated.into_bytes());
    }
    files
        .get_mut("spec/src/lib.rs")
        .context("the sources have a spec")?
        .extend(SWITCH.as_bytes());
    for (name, bytes) in files {
        let path = tree.join(name);
        if fs::read(&path).is_ok_and(|there| there == bytes) {
            continue;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(path, bytes)?;
    }
    Ok(gone)
}

/// Builds the simulation and the unit tests of agent and spec; gives their programs by name. What is
/// nobody's mutation, as the libraries, is shared with every other build of these sources.
fn build(root: &Path, tree: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let built = Command::new("cargo")
        .args(["test", "--locked", "--no-run", "--message-format=json"])
        .args(["-p", "mcp-tests", "--test", "simulation"])
        .args(["-p", "mcp-agent", "-p", "mcp-spec", "--lib"])
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", root.join("target"))
        // Switches come and go with the sources: half of what was built before is no help.
        .env("CARGO_INCREMENTAL", "0")
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(built.status.success(), "the mutated sources do not compile");
    let mut programs = BTreeMap::new();
    for line in String::from_utf8(built.stdout)?.lines() {
        let said: serde_json::Value = serde_json::from_str(line)?;
        let (name, program) = (&said["target"]["name"], &said["executable"]);
        if let (Some(name), Some(program)) = (name.as_str(), program.as_str()) {
            programs.insert(name.to_owned(), PathBuf::from(program));
        }
    }
    for (_, program, _) in [SIMULATION, OF_THE_AGENT, OF_THE_SPEC] {
        ensure!(programs.contains_key(program), "{program} was not built");
    }
    Ok(programs)
}

impl Bench {
    /// Runs what could catch a mutant, one after the other; tells what did.
    fn catches(&self, mutation: &Mutation) -> Result<Option<String>> {
        let own: Vec<&str> = mutation.tests.iter().map(String::as_str).collect();
        let mut trials = Vec::new();
        if !own.is_empty() {
            let program = if mutation.is_of_the_spec() {
                "mcp_spec"
            } else {
                "mcp_agent"
            };
            trials.push(("test", program, own.as_slice()));
        }
        trials.push(SIMULATION);
        if mutation.is_of_the_spec() {
            trials.push(OF_THE_SPEC);
        }
        trials.extend([SWEEP, OF_THE_AGENT]);
        for trial in trials {
            if let Some(caught) = self.fails(&mutation.name, trial)? {
                return Ok(Some(caught));
            }
        }
        Ok(None)
    }

    /// What fails of a trial, where anything does.
    fn fails(&self, mutant: &str, trial: Trial<'_>) -> Result<Option<String>> {
        let said = self.run(mutant, trial)?;
        Ok((!said.passed).then(|| told(trial, &said)))
    }

    fn run(&self, mutant: &str, trial: Trial<'_>) -> Result<Said> {
        let (_, program, arguments) = trial;
        let mut output = tempfile::tempfile()?;
        let mut child = Command::new(&self.programs[program])
            .args(arguments)
            .env("MCP_MUTANT", mutant)
            .env("MCP_SIM_SEEDS", self.seeds.to_string())
            .env("MCP_SIM_FAILURES", "1")
            .env("RUST_BACKTRACE", "0")
            // A mutant's failures are no cases for later.
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .spawn()?;
        let began = Instant::now();
        let passed = loop {
            if let Some(status) = child.try_wait()? {
                break status.success();
            }
            if began.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                break false;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let mut text = Vec::new();
        std::io::Seek::rewind(&mut output)?;
        std::io::Read::read_to_end(&mut output, &mut text)?;
        Ok(Said {
            passed,
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }
}

/// What a run that failed has to say: the rule and the seed, or the test.
fn told(trial: Trial<'_>, said: &Said) -> String {
    let (name, ..) = trial;
    let lines = || said.text.lines();
    let rule = lines().find_map(|line| {
        let (seed, rule) = line.strip_prefix("seed ")?.split_once(": ")?;
        Some(format!("{rule} ({seed})"))
    });
    let test = lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    match (rule, test) {
        (Some(rule), _) => rule,
        (None, Some(test)) => format!("{name} `{test}`"),
        (None, None) => format!("{name}: does not come to an end"),
    }
}
