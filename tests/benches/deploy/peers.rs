//! What else is installed that does the same job.

use std::path::Path;
use std::process::Stdio;

use mcp_tests::engine::{BUSYBOX, Engine, Lane};

use crate::rounds::{Phase, Times};

/// The peers of an engine that are installed.
pub(crate) fn installed(lane: Lane) -> Vec<&'static str> {
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

/// A compose file of the same components: up, up again, changed, stopped, and down.
pub(crate) fn round(engine: &Engine, peer: &str, size: usize, home: &Path) -> Times {
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
    // Made outside the clock: a script tells the engine's environment.
    let command = |args: &[&str]| {
        let mut command = engine.client_command(peer).unwrap();
        command
            .arg("-f")
            .arg(folder.join("compose.yml"))
            .args(["-p", "peer"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    };
    let mut times = Times::default();
    let mut run = |phase: Phase, args: &[&str]| {
        let mut command = command(args);
        times.time(phase, || {
            assert!(command.status().unwrap().success(), "{command:?}");
        });
    };
    write("1");
    run(Phase::Cold, &["up", "-d"]);
    run(Phase::Noop, &["up", "-d"]);
    write("2");
    run(Phase::Change, &["up", "-d"]);
    run(Phase::Stop, &["stop"]);
    run(Phase::Remove, &["down"]);
    times
}
