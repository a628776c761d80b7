//! Tries the mutations of `tests/mutations`: each is a small change that makes the agent wrong, and the
//! simulation, the sweep or another test has to fail of it.
//!
//! All of them are put into one copy of the sources, each behind a switch (`MUTATED` in its text), so
//! that one build serves them all. A mutation whose text is not found exactly once no longer applies, and
//! is told.
//!
//! Each is tried until something catches it: on the tests that are about it, on the first seeds of the
//! simulation, then on everything else: the sweep, every other unit test, many more seeds. What caught
//! each, and how long that took, is kept in `tests/mutations/caught.tsv`, and told in `docs/mutations.md`:
//! a run of some brings their lines up to date.
//!
//! ```text
//! make mutants                              all of them
//! make mutants ARGS="--seeds 500 name..."   some; the names' beginnings suffice
//! make mutants ARGS=--simulated             the simulation too where a test has caught it
//! make mutants ARGS=--check                 whether each still applies: nothing is built
//! ```

#![expect(clippy::print_stdout, reason = "it tells what caught what")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// Seeds that are tried first: six of each kind of world.
const FIRST_SEEDS: u64 = 54;

/// Seeds for a mutation that nothing else catches, where nothing else is asked for.
const SEEDS: u64 = 600;

/// The longest that one run may take: a mutant may go round for ever. What is not mutated takes a small
/// part of this.
const PATIENCE: Duration = Duration::from_secs(180);

/// What caught each, for the next run.
const CAUGHT: &str = "tests/mutations/caught.tsv";

/// The same for people.
const PAGE: &str = "docs/mutations.md";

/// Tests that could catch a mutant: their program, and which of them.
type Trial<'a> = (&'static str, &'a [&'a str]);

const SIMULATION: Trial<'_> = ("simulation", &["every_rule"]);
const SWEEP: Trial<'_> = ("mcp_agent", &["deploy::tests::"]);
const OF_THE_SPEC: Trial<'_> = ("mcp_spec", &[]);
const OF_THE_AGENT: Trial<'_> = ("mcp_agent", &["--skip", "deploy::tests::"]);

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
    /// The list that it stands in.
    list: String,
    says: String,
    file: String,
    find: String,
    replace: String,
    /// The tests that are about it, where there are some, by their names' part.
    tests: Option<String>,
    /// They are the agent's, though it is the spec that is changed.
    is_tested_by_the_agent: bool,
}

impl Mutation {
    fn is_of_the_spec(&self) -> bool {
        self.file.starts_with("spec/")
    }
}

/// Sources by path.
type Sources = BTreeMap<String, Vec<u8>>;

/// What a run said.
struct Said {
    passed: bool,
    text: String,
}

/// The programs that hold the tests.
struct Bench {
    programs: BTreeMap<String, PathBuf>,
}

/// What caught a mutation.
#[derive(Clone, Default)]
struct Caught {
    /// The simulation: the rule that was broken, with the seed.
    simulation: Option<String>,
    /// A unit test or the sweep.
    test: Option<String>,
    /// Seconds that it took; not known of what was tried before these were kept.
    took: Option<String>,
}

impl Caught {
    fn is_any(&self) -> bool {
        self.simulation.is_some() || self.test.is_some()
    }

    /// Reads a line of the list.
    fn read(line: &str) -> Option<(String, Self)> {
        let mut cells = line.split('\t');
        let name = cells.next()?.to_owned();
        let mut cell = || {
            cells
                .next()
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        let caught = Self {
            simulation: cell(),
            test: cell(),
            took: cell(),
        };
        Some((name, caught))
    }

    fn line(&self, name: &str) -> String {
        let cell = |text: &Option<String>| text.clone().unwrap_or_default().replace('\t', " ");
        let (simulation, test) = (cell(&self.simulation), cell(&self.test));
        format!("{name}\t{simulation}\t{test}\t{}\n", cell(&self.took))
    }
}

/// What is asked for on the command line.
struct Asked {
    seeds: u64,
    checks_only: bool,
    is_simulated: bool,
    names: Vec<String>,
}

fn asked() -> Result<Asked> {
    let mut asked = Asked {
        seeds: SEEDS,
        checks_only: false,
        is_simulated: false,
        names: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seeds" => asked.seeds = arguments.next().context("--seeds N")?.parse()?,
            "--check" => asked.checks_only = true,
            "--simulated" => asked.is_simulated = true,
            name => asked.names.push(name.to_owned()),
        }
    }
    Ok(asked)
}

fn main() -> Result<()> {
    let asked = asked()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()?;
    let mutations = read(&root.join("tests/mutations"))?;
    for name in &asked.names {
        ensure!(
            mutations
                .iter()
                .any(|mutation| mutation.name.starts_with(name)),
            "there is no mutation {name}"
        );
    }
    let place = root.join("target/mutants");
    let (files, gone) = mutated(&root, &mutations)?;
    for name in &gone {
        println!("{name}: NO LONGER APPLIES");
    }
    if asked.checks_only {
        ensure!(gone.is_empty(), "{} mutations do not apply", gone.len());
        println!("each of the {} mutations applies", mutations.len());
        return Ok(());
    }
    put(&place.join("tree"), files)?;
    let bench = Bench {
        programs: build(&root, &place.join("tree"))?,
    };
    let began = Instant::now();
    for trial in [SIMULATION, SWEEP] {
        let said = bench.run("", trial, FIRST_SEEDS)?;
        ensure!(said.passed, "without any mutation: {}", told(trial, &said));
    }
    println!(
        "without any mutation nothing fails: {} seeds and the sweep in {} s",
        FIRST_SEEDS,
        began.elapsed().as_secs()
    );
    let mut known: BTreeMap<String, Caught> = fs::read_to_string(root.join(CAUGHT))
        .unwrap_or_default()
        .lines()
        .filter_map(Caught::read)
        .collect();
    known.retain(|name, _| mutations.iter().any(|mutation| mutation.name == *name));
    let mut missed = 0;
    // In the order in which they are named.
    let wanted: Vec<&Mutation> = match asked.names.is_empty() {
        true => mutations.iter().collect(),
        false => {
            let of = |start| {
                mutations
                    .iter()
                    .filter(move |it| it.name.starts_with(start))
            };
            asked
                .names
                .iter()
                .map(String::as_str)
                .flat_map(of)
                .collect()
        }
    };
    for mutation in wanted {
        let name = &mutation.name;
        if gone.contains(name) {
            continue;
        }
        let caught = bench.catches(mutation, &asked)?;
        missed += usize::from(!caught.is_any());
        println!(
            "{name}: {} | {} | {} s",
            caught.simulation.as_deref().unwrap_or("-"),
            caught.test.as_deref().unwrap_or("-"),
            caught.took.as_deref().unwrap_or_default(),
        );
        known.insert(name.clone(), caught);
        let lines: String = known.iter().map(|(name, it)| it.line(name)).collect();
        fs::write(root.join(CAUGHT), lines)?;
        fs::write(root.join(PAGE), page(&mutations, &known))?;
    }
    println!("{} s", began.elapsed().as_secs());
    ensure!(
        missed + gone.len() == 0,
        "{missed} mutations were not caught, {} do not apply",
        gone.len()
    );
    Ok(())
}

/// The list of what caught each, for people.
fn page(mutations: &[Mutation], known: &BTreeMap<String, Caught>) -> String {
    let count = |is: &dyn Fn(&Caught) -> bool| known.values().filter(|it| is(it)).count();
    let mut page = format!(
        "# Mutations\n\n\
         Written by `make mutants` ([how](../CONTRIBUTING.md#what-the-simulation-catches)), not by hand.\n\n\
         {} changes that make the agent wrong. The simulation has caught {} of those that were tried, the \
         sweep or another\ntest {}; nothing has caught {} yet, and {} have not been tried. Where a test \
         catches a change the simulation is not\nasked unless somebody wants to know. A line without a \
         time is of a run before times were kept.\n",
        mutations.len(),
        count(&|it| it.simulation.is_some()),
        count(&|it| it.test.is_some()),
        count(&|it| !it.is_any()),
        mutations.len() - known.len(),
    );
    let mut list = "";
    for mutation in mutations {
        if mutation.list != list {
            list = &mutation.list;
            page += &format!(
                "\n## {list}\n\n| change | the simulation (seed) | a test | seconds |\n| --- | --- | --- | --- |\n"
            );
        }
        let caught = known.get(&mutation.name);
        let cell = |text: &Option<String>| text.clone().unwrap_or_default().replace('|', "/");
        let verdict = match caught {
            None => "not tried yet".to_owned(),
            Some(caught) if !caught.is_any() => "**nothing**".to_owned(),
            Some(caught) => cell(&caught.simulation),
        };
        let caught = caught.cloned().unwrap_or_default();
        let (test, took) = (cell(&caught.test), cell(&caught.took));
        page += &format!("| {} | {verdict} | {test} | {took} |\n", mutation.says);
    }
    page
}

/// Reads the mutations of every file, in the order of the files.
fn read(folder: &Path) -> Result<Vec<Mutation>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|end| end == "toml"));
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
                list: file
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned(),
                says: text("says")?,
                file: text("file")?,
                find: text("find")?,
                replace: text("replace")?,
                tests: text("tests").ok(),
                is_tested_by_the_agent: entry.get("of").and_then(toml::Value::as_str)
                    == Some("agent"),
            });
        }
    }
    Ok(found)
}

/// The sources with all mutations in them, by path, and the names of those that no longer apply.
fn mutated(root: &Path, mutations: &[Mutation]) -> Result<(Sources, Vec<String>)> {
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
    let mut files = Sources::new();
    for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
        if let Ok(bytes) = fs::read(root.join(name)) {
            files.insert(name.to_owned(), bytes);
        }
    }
    let mut gone = Vec::new();
    let mut names = BTreeSet::new();
    for mutation in mutations {
        ensure!(
            names.insert(&mutation.name),
            "two mutations are called {}",
            mutation.name
        );
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
    Ok((files, gone))
}

/// Puts the sources there. What did not change keeps its time, so that it is not built again.
fn put(tree: &Path, files: Sources) -> Result<()> {
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
    Ok(())
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
    for (program, _) in [SIMULATION, OF_THE_AGENT, OF_THE_SPEC] {
        ensure!(programs.contains_key(program), "{program} was not built");
    }
    Ok(programs)
}

impl Bench {
    /// Runs what could catch a mutant, until something does; tells what did.
    fn catches(&self, mutation: &Mutation, asked: &Asked) -> Result<Caught> {
        let began = Instant::now();
        let name = &mutation.name;
        let mut caught = Caught::default();
        if let Some(own) = &mutation.tests {
            let program = if mutation.is_of_the_spec() && !mutation.is_tested_by_the_agent {
                "mcp_spec"
            } else {
                "mcp_agent"
            };
            caught.test = self.fails(name, (program, &[own.as_str()]), 0)?;
        }
        if !caught.is_any() || asked.is_simulated {
            caught.simulation = self.fails(name, SIMULATION, FIRST_SEEDS)?;
        }
        let mut others = vec![SWEEP, OF_THE_AGENT];
        if mutation.is_of_the_spec() {
            others.insert(0, OF_THE_SPEC);
        }
        for trial in others {
            if !caught.is_any() {
                caught.test = self.fails(name, trial, 0)?;
            }
        }
        if !caught.is_any() {
            caught.simulation = self.fails(name, SIMULATION, asked.seeds)?;
        }
        caught.took = Some(format!("{:.1}", began.elapsed().as_secs_f64()));
        Ok(caught)
    }

    /// What fails of a trial, where anything does.
    fn fails(&self, mutant: &str, trial: Trial<'_>, seeds: u64) -> Result<Option<String>> {
        let said = self.run(mutant, trial, seeds)?;
        Ok((!said.passed).then(|| told(trial, &said)))
    }

    fn run(&self, mutant: &str, trial: Trial<'_>, seeds: u64) -> Result<Said> {
        let (program, arguments) = trial;
        let mut output = tempfile::tempfile()?;
        let mut child = Command::new(&self.programs[program])
            .args(arguments)
            .env("MCP_MUTANT", mutant)
            .env("MCP_SIM_SEEDS", seeds.to_string())
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
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut text = Vec::new();
        std::io::Seek::rewind(&mut output)?;
        std::io::Read::read_to_end(&mut output, &mut text)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        // A filter that no test bears would pass for ever.
        ensure!(
            !text.contains("running 0 tests"),
            "{arguments:?} names no test of {program}"
        );
        Ok(Said { passed, text })
    }
}

/// What a run that failed has to say: the rule and the seed, or the test.
fn told(trial: Trial<'_>, said: &Said) -> String {
    let (program, _) = trial;
    let lines = || said.text.lines();
    let rule = lines().find_map(|line| {
        let (seed, rule) = line.strip_prefix("seed ")?.split_once(": ")?;
        Some(format!("{rule} ({seed})"))
    });
    let test = lines().find_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"));
    match (rule, test) {
        (Some(rule), _) => rule,
        (None, Some(test)) => {
            let short = test.rsplit("::").next().unwrap_or(test);
            format!("`{short}`")
        }
        (None, None) => format!("{program} does not come to an end"),
    }
}
