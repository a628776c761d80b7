//! The engines that the other tests stand on: each lane does what the agent will ask of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use mcp_tests::engine::{BUSYBOX, Engine, Lane, eventually};
use mcp_tests::registry::{Registry, free_port};

mcp_tests::lanes!(
    components_of_a_network_find_each_other_by_alias,
    published_port_answers,
    image_is_pulled_from_a_registry,
    killed_service_comes_back_with_its_containers,
    stopped_engine_leaves_nothing,
);

fn image() -> String {
    format!("{BUSYBOX}:v1")
}

fn components_of_a_network_find_each_other_by_alias(lane: Lane) {
    let engine = lane.shared();
    engine.cli(&["network", "create", "find"]).unwrap();
    let run = [
        "run",
        "-d",
        "--name",
        "find-a",
        "--network",
        "find",
        "--network-alias",
        "api",
        &image(),
        "serve",
        "8080",
    ];
    engine.cli(&run).unwrap();
    let ask = "timeout 2 wget -q -O - http://api:8080/version";
    let answer = eventually("the alias answers", Duration::from_secs(10), || {
        Ok(engine
            .cli(&[
                "run",
                "--rm",
                "--network",
                "find",
                &image(),
                "sh",
                "-c",
                ask,
            ])
            .ok())
    });
    engine.remove("find-a").unwrap();
    engine.cli(&["network", "rm", "find"]).unwrap();
    assert_eq!(answer.unwrap(), "v1");
}

fn published_port_answers(lane: Lane) {
    let engine = lane.shared();
    let port = free_port().unwrap();
    let publish = format!("127.0.0.1:{port}:8080");
    engine
        .cli(&[
            "run",
            "-d",
            "--name",
            "publish",
            "-p",
            &publish,
            &image(),
            "serve",
            "8080",
        ])
        .unwrap();
    let answer = eventually("the port answers", Duration::from_secs(10), || {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
            return Ok(None);
        };
        stream.write_all(b"GET /version HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        // A proxy that is up before its container accepts, and then resets.
        Ok(stream
            .read_to_string(&mut text)
            .ok()
            .filter(|_| !text.is_empty())
            .map(|_| text))
    });
    engine.remove("publish").unwrap();
    assert!(answer.unwrap().ends_with("v1\n"));
}

fn image_is_pulled_from_a_registry(lane: Lane) {
    let engine = lane.shared();
    let registry = Registry::start().unwrap();
    let name = registry.push(engine, &image(), "pulled:v1").unwrap();
    assert!(
        engine.cli(&["image", "inspect", &name]).is_err(),
        "the name is gone after the push"
    );
    engine.cli(&["pull", &name]).unwrap();
    let version = engine
        .cli(&["run", "--rm", &name, "cat", "/etc/version"])
        .unwrap();
    engine.cli(&["rmi", &name]).unwrap();
    assert_eq!(version, "v1");
}

fn killed_service_comes_back_with_its_containers(lane: Lane) {
    // An engine of its own: others would notice.
    let engine = Engine::start(lane).unwrap();
    engine
        .import_version(&image(), "v1", "busybox", &[])
        .unwrap();
    let id = engine.run_foreign("survivor", &[]).unwrap();
    engine.kill().unwrap();
    assert!(
        engine.inspect("survivor").is_err(),
        "nothing answers while the service is away"
    );
    engine.up().unwrap();
    let found = engine.inspect("survivor").unwrap().unwrap();
    assert_eq!(found.id.as_deref(), Some(id.trim()));
}

fn stopped_engine_leaves_nothing(lane: Lane) {
    let engine = Engine::start(lane).unwrap();
    engine
        .import_version(&image(), "v1", "busybox", &[])
        .unwrap();
    engine.run_foreign("left", &[]).unwrap();
    let pid = engine
        .inspect("left")
        .unwrap()
        .unwrap()
        .state
        .unwrap()
        .pid
        .unwrap();
    let dir = engine.dir().to_owned();
    drop(engine);
    assert!(!dir.exists());
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "its container has ended"
    );
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(dir.to_str().unwrap()),
        "its mounts are gone"
    );
}
