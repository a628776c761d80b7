//! What a deployment costs beside the same calls made straight to the engine, and beside the peers that
//! are installed. Only ratios within one run count.
//!
//! `make bench` builds for release and runs this; `MCP_BENCH_LANES`, `MCP_BENCH_ROUNDS` and
//! `MCP_BENCH_SIZES` narrow it. It prints a table and writes `target/bench.json`.

#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is what it is for"
)]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use futures_util::StreamExt;
use mcp_tests::engine::{BUSYBOX, Engine, Lane, wait};
use mcp_tests::fleet::Fleet;
use serde_json::json;

/// How many containers are worked on at once, by the raw client as by the agent.
const CONCURRENCY: usize = 4;

/// What is measured, in the order of the table.
const PHASES: [&str; 5] = [
    "cold deploy",
    "no-op",
    "change one",
    "stop all",
    "remove all",
];

fn main() {
    // `cargo test` runs bench targets too, to see that they work; that is `make bench`'s affair.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let rounds: usize = variable("MCP_BENCH_ROUNDS", "7").parse().unwrap();
    let sizes: Vec<usize> = variable("MCP_BENCH_SIZES", "1,5,20")
        .split(',')
        .map(|size| size.parse().unwrap())
        .collect();
    let lanes = variable("MCP_BENCH_LANES", "podman,docker");
    let mut table = Vec::new();
    for lane in Lane::ALL
        .into_iter()
        .filter(|lane| lanes.split(',').any(|name| name == lane.name()))
    {
        let engine = lane.shared();
        engine.enter().unwrap();
        for size in &sizes {
            table.extend(measure(engine, *size, rounds));
        }
    }
    let document = json!({ "rounds": rounds, "concurrency": CONCURRENCY, "machine": machine(), "results": table });
    let file = target_dir().join("bench.json");
    std::fs::write(&file, serde_json::to_string_pretty(&document).unwrap()).unwrap();
    print_table(&table);
    eprintln!("written to {}", file.display());
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn target_dir() -> std::path::PathBuf {
    // target/release/deps/deploy-hash
    std::env::current_exe()
        .unwrap()
        .ancestors()
        .nth(3)
        .unwrap()
        .to_owned()
}

fn machine() -> serde_json::Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([':', '\t', ' ']));
    json!({ "cores": std::thread::available_parallelism().map_or(1, usize::from), "cpu": model })
}

/// Times by phase, of one contender.
type Times = BTreeMap<&'static str, Vec<Duration>>;

/// Everybody's rounds, interleaved, so that what disturbs the machine disturbs all.
fn measure(engine: &'static Engine, size: usize, rounds: usize) -> Vec<serde_json::Value> {
    let name = format!("bench{size}");
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, &name).unwrap();
    let raw = Raw::new(engine, size);
    let peers = peers(engine.lane());
    let mut times: BTreeMap<String, Times> = BTreeMap::new();
    // The first round fills caches and is not counted.
    for round in 0..=rounds {
        let mut turn: Vec<(String, Times)> = vec![
            ("raw API".to_owned(), raw.round()),
            ("mcp".to_owned(), mcp_round(&fleet, &name, size)),
        ];
        turn.extend(peers.iter().map(|peer| {
            (
                (*peer).to_owned(),
                peer_round(engine, peer, size, fleet.home()),
            )
        }));
        if round == 0 {
            continue;
        }
        for (contender, phases) in turn {
            for (phase, found) in phases {
                times
                    .entry(contender.clone())
                    .or_default()
                    .entry(phase)
                    .or_default()
                    .extend(found);
            }
        }
        eprintln!("{} {size}: round {round} of {rounds}", engine.lane().name());
    }
    let mut rows = Vec::new();
    for phase in PHASES {
        let floor = times["raw API"].get(phase).map(|found| median(found));
        for (contender, phases) in &times {
            let Some(found) = phases.get(phase) else {
                continue;
            };
            let middle = median(found);
            rows.push(json!({
                "engine": engine.lane().name(), "components": size, "phase": phase, "contender": contender,
                "median_ms": ms(middle), "min_ms": ms(*found.iter().min().unwrap()), "max_ms": ms(*found.iter().max().unwrap()),
                "ratio": floor.map(|floor| middle.as_secs_f64() / floor.as_secs_f64()),
            }));
        }
    }
    rows
}

fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    drop(work());
    start.elapsed()
}

/// The engine's API with nothing around it: the floor.
struct Raw {
    docker: Docker,
    size: usize,
    source: String,
}

impl Raw {
    fn new(engine: &Engine, size: usize) -> Raw {
        let source = engine.dir().join("raw-bind");
        std::fs::create_dir_all(&source).unwrap();
        engine.give(&source).unwrap();
        Raw {
            docker: engine.raw().unwrap(),
            size,
            source: source.display().to_string(),
        }
    }

    fn round(&self) -> Times {
        let names: Vec<String> = (0..self.size)
            .map(|number| format!("raw-{number}"))
            .collect();
        let mut times = Times::new();
        times.insert(
            "cold deploy",
            vec![timed(|| self.each(&names, |name| self.run(name, "1")))],
        );
        times.insert(
            "no-op",
            vec![timed(|| {
                wait(
                    self.docker.list_containers(Some(
                        ListContainersOptionsBuilder::new().all(true).build(),
                    )),
                )
                .unwrap()
            })],
        );
        times.insert(
            "change one",
            vec![timed(|| {
                wait(async {
                    let name = &names[0];
                    let next = format!("{name}-next");
                    self.create(&next, "2").await;
                    self.stop(name).await;
                    self.docker.start_container(&next, None).await.unwrap();
                    self.remove(name).await;
                    let rename = bollard::query_parameters::RenameContainerOptionsBuilder::new()
                        .name(name)
                        .build();
                    self.docker.rename_container(&next, rename).await.unwrap();
                });
            })],
        );
        times.insert(
            "stop all",
            vec![timed(|| self.each(&names, |name| self.stop(name)))],
        );
        times.insert(
            "remove all",
            vec![timed(|| self.each(&names, |name| self.remove(name)))],
        );
        times
    }

    fn each<'a, F: Future<Output = ()>>(&self, names: &'a [String], work: impl Fn(&'a str) -> F) {
        wait(
            futures_util::stream::iter(names)
                .map(|name| work(name))
                .buffer_unordered(CONCURRENCY)
                .collect::<Vec<()>>(),
        );
    }

    async fn create(&self, name: &str, value: &str) {
        let body = ContainerCreateBody {
            image: Some(format!("{BUSYBOX}:v1")),
            cmd: Some(vec!["sleep".to_owned(), "infinity".to_owned()]),
            env: Some(vec![format!("VALUE={value}")]),
            stop_signal: Some("SIGKILL".to_owned()),
            labels: Some(HashMap::from([("raw".to_owned(), "1".to_owned())])),
            host_config: Some(HostConfig {
                binds: Some(vec![format!("{}:/data", self.source)]),
                network_mode: Some("none".to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        self.docker
            .create_container(Some(options), body)
            .await
            .unwrap();
    }

    async fn run(&self, name: &str, value: &str) {
        self.create(name, value).await;
        self.docker.start_container(name, None).await.unwrap();
    }

    async fn stop(&self, name: &str) {
        self.docker
            .stop_container(name, Some(StopContainerOptionsBuilder::new().t(10).build()))
            .await
            .unwrap();
    }

    async fn remove(&self, name: &str) {
        self.docker
            .remove_container(
                name,
                Some(RemoveContainerOptionsBuilder::new().force(true).build()),
            )
            .await
            .unwrap();
    }
}

/// The same components as a definition, deployed by whole `mcp` processes.
fn mcp_round(fleet: &Fleet, name: &str, size: usize) -> Times {
    let source = fleet.node(name).services_dir().join(name);
    let definition = |first: &str| {
        let mut text = format!("name = \"{name}\"\nnode = \"{name}\"\n");
        for number in 0..size {
            let value = if number == 0 { first } else { "1" };
            text.push_str(&format!(
                "\n[[components]]\nname = \"c{number}\"\nimage = \"{BUSYBOX}:v1\"\ncmd = [\"sleep\", \"infinity\"]\nenv = {{ VALUE = \"{value}\" }}\n\
                 stop_signal = \"SIGKILL\"\nnetwork = \"none\"\nready_for = \"0s\"\nvolumes = [\"{}:/data\"]\n",
                source.display()
            ));
        }
        text
    };
    let file = format!("services/{name}.toml");
    let run = |args: &[&str]| timed(|| fleet.mcp(args).ok());
    let mut times = Times::new();
    fleet.write(&file, &definition("1"));
    run(&["sync"]);
    times.insert(
        "cold deploy",
        vec![run(&["deploy", name, "--no-sync", "-q"])],
    );
    times.insert("no-op", vec![run(&["deploy", name, "--no-sync", "-q"])]);
    fleet.write(&file, &definition("2"));
    run(&["sync"]);
    times.insert(
        "change one",
        vec![run(&["deploy", name, "--no-sync", "-q"])],
    );
    times.insert("stop all", vec![run(&["stop", name, "-q"])]);
    std::fs::remove_file(fleet.repo().join(&file)).unwrap();
    run(&["sync"]);
    times.insert("remove all", vec![run(&["purge", name, "--yes", "-q"])]);
    times
}

/// What else is installed that does the same job on this engine.
fn peers(lane: Lane) -> Vec<&'static str> {
    let peers = match lane {
        Lane::Docker => ["docker-compose"].as_slice(),
        Lane::PodmanRoot | Lane::PodmanRootless => ["podman-compose"].as_slice(),
    };
    let path = std::env::var("PATH").unwrap_or_default();
    let is_there = |peer: &&&str| {
        path.split(':')
            .any(|dir| Path::new(dir).join(peer).is_file())
    };
    peers.iter().filter(is_there).copied().collect()
}

/// A compose file of the same components, up, up again, changed, and down.
fn peer_round(engine: &Engine, peer: &str, size: usize, home: &Path) -> Times {
    let source = engine.dir().join("raw-bind");
    let folder = home.join(format!("peer{size}"));
    std::fs::create_dir_all(&folder).unwrap();
    let write = |first: &str| {
        let mut text = String::from("version: \"3\"\nservices:\n");
        for number in 0..size {
            let value = if number == 0 { first } else { "1" };
            text.push_str(&format!(
                "  c{number}:\n    image: {BUSYBOX}:v1\n    command: [\"sleep\", \"infinity\"]\n    environment: {{VALUE: \"{value}\"}}\n    \
                 stop_signal: SIGKILL\n    network_mode: none\n    volumes: [\"{}:/data\"]\n",
                source.display()
            ));
        }
        std::fs::write(folder.join("compose.yml"), text).unwrap();
    };
    let run = |args: &[&str]| {
        let mut command = engine.client_command(peer).unwrap();
        command
            .arg("-f")
            .arg(folder.join("compose.yml"))
            .args(["-p", "peer"])
            .args(args);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        timed(|| assert!(command.status().unwrap().success(), "{command:?}"))
    };
    let mut times = Times::new();
    write("1");
    times.insert("cold deploy", vec![run(&["up", "-d"])]);
    times.insert("no-op", vec![run(&["up", "-d"])]);
    write("2");
    times.insert("change one", vec![run(&["up", "-d"])]);
    times.insert("stop all", vec![run(&["stop"])]);
    times.insert("remove all", vec![run(&["down"])]);
    times
}

fn print_table(rows: &[serde_json::Value]) {
    println!("| engine | components | what | contender | median ms | min | max | x raw |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for row in rows {
        println!(
            "| {} | {} | {} | {} | {:.1} | {:.1} | {:.1} | {} |",
            row["engine"].as_str().unwrap(),
            row["components"],
            row["phase"].as_str().unwrap(),
            row["contender"].as_str().unwrap(),
            row["median_ms"].as_f64().unwrap(),
            row["min_ms"].as_f64().unwrap(),
            row["max_ms"].as_f64().unwrap(),
            row["ratio"]
                .as_f64()
                .map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        );
    }
}
