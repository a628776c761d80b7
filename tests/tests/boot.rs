//! A host that reboots, and an engine whose store is emptied: the agent brings back what should run, and
//! nothing else. Real binaries on real engines, looked at from outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{BUSYBOX, Engine, Lane, eventually};
use mcp_tests::fleet::{Fleet, text};
use mcp_tests::registry::Registry;

/// Longer than an agent takes to bring everything back on a machine under load.
const PATIENCE: Duration = Duration::from_secs(120);

/// What runs on the node of these tests, sorted.
const RUNNING: [&str; 4] = ["aside-pinned", "shop-api", "shop-db", "shop-web"];

mcp_tests::lanes!(
    what_an_emptied_store_took_along_is_brought_back,
    what_should_run_runs_after_a_reboot,
    an_emptied_store_is_filled_from_the_registry,
    what_an_engine_keeps_over_its_restart_is_kept,
);

/// An engine that nobody else uses, with a node: three components in a row, a job, one that is done, one that
/// is held behind the head, and a service that an operator has stopped.
fn node(lane: Lane, name: &str) -> Fleet {
    let engine = lane.alone();
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, name).unwrap();
    let once = "kind = \"job\"\ncmd = [\"/bin/sh\", \"-c\", \"exit 0\"]\n";
    let done = "restart = \"no\"\ncmd = [\"/bin/sh\", \"-c\", \"sleep 2\"]\n";
    let shop = [
        component("db", "v1", ""),
        component("api", "v1", "depends_on = [\"db\"]\n"),
        component("web", "v1", "depends_on = [\"api\"]\n"),
        component("migrate", "v1", once),
        component("done", "v1", done),
    ];
    fleet.write("services/shop.toml", &service("shop", name, &shop));
    let aside = [component("pinned", "v1", "")];
    fleet.write("services/aside.toml", &service("aside", name, &aside));
    let idle = [component("one", "v1", "")];
    fleet.write("services/idle.toml", &service("idle", name, &idle));
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "shop", "aside", "idle"]).ok();
    fleet.mcp(&["hold", "aside/pinned"]).ok();
    fleet.mcp(&["stop", "idle"]).ok();
    // The head goes on, and nobody deploys it.
    fleet.edit(
        "services/shop.toml",
        &format!("{BUSYBOX}:v1"),
        &format!("{BUSYBOX}:v2"),
    );
    fleet.mcp(&["sync"]).ok();
    is_done(&fleet, 1);
    fleet
}

/// The node's containers that run, by name: the id, the first process, when it was started, and the image.
fn running(fleet: &Fleet, name: &str) -> BTreeMap<String, (String, i64, String, String)> {
    let node = fleet.node(name);
    let mut found = BTreeMap::new();
    for id in node.containers().unwrap() {
        let Some(live) = node.engine().inspect(&id).unwrap() else {
            continue;
        };
        let state = live.state.unwrap();
        if state.running == Some(true) {
            found.insert(
                live.name.unwrap().trim_start_matches('/').to_owned(),
                (
                    id,
                    state.pid.unwrap(),
                    state.started_at.unwrap(),
                    live.config.unwrap().image.unwrap(),
                ),
            );
        }
    }
    found
}

/// Waits until the agent has written down so many ends of the component that ends.
fn is_done(fleet: &Fleet, ends: usize) {
    eventually("one of them is done", PATIENCE, || {
        let events = fleet.mcp(&["events", "-n", "200"]).stdout;
        let told = events
            .lines()
            .filter(|line| line.contains(" exited ") && line.contains(" shop/done "));
        Ok((told.count() >= ends).then_some(()))
    })
    .unwrap();
}

/// Waits until all that should run runs, and looks at what holds then in any case.
fn all_is_back(fleet: &Fleet, name: &str) -> BTreeMap<String, (String, i64, String, String)> {
    let back = eventually("all that should run runs", PATIENCE, || {
        let now = running(fleet, name);
        Ok(now.keys().eq(RUNNING.iter()).then_some(now))
    });
    let back = back.unwrap_or_else(|error| {
        panic!(
            "{error:#}: {:?}\n{}\n{}",
            running(fleet, name),
            fleet.mcp(&["events", "-n", "60"]),
            fleet.node(name).log()
        )
    });
    let started = |name: &str| -> jiff::Timestamp { back[name].2.parse().unwrap() };
    assert!(started("shop-db") <= started("shop-api"), "{back:?}");
    assert!(started("shop-api") <= started("shop-web"), "{back:?}");
    let listed = fleet.list();
    assert_eq!(text(&listed["idle/one"], "desired_state"), "stopped");
    back
}

/// Takes all containers out of the store of an engine that does not run. Images stay.
fn empty_store(engine: &Engine) {
    if engine.lane() == Lane::Docker {
        let containers = engine.dir().join("root/containers");
        std::fs::remove_dir_all(&containers).unwrap();
        std::fs::create_dir(&containers).unwrap();
    } else {
        engine
            .cli(&["rm", "--all", "--force", "--time", "0"])
            .unwrap();
    }
}

fn what_an_emptied_store_took_along_is_brought_back(lane: Lane) {
    let name = "empty";
    let mut fleet = node(lane, name);
    let engine = fleet.node(name).engine();
    let before = running(&fleet, name);

    // One that is removed by hand is drift, whether the agent was there or not.
    engine.remove(&before["shop-web"].0).unwrap();
    eventually("it is drift", PATIENCE, || {
        let listed = fleet.list();
        Ok((text(&listed["shop/web"], "observed_state") == "absent").then_some(()))
    })
    .unwrap();
    fleet.node_mut(name).terminate().unwrap();
    fleet.node_mut(name).serve().unwrap();
    let listed = fleet.list();
    assert_eq!(text(&listed["shop/web"], "observed_state"), "absent");
    fleet.mcp(&["start", "shop"]).ok();
    is_done(&fleet, 2);
    let before = all_is_back(&fleet, name);

    // The agent is down meanwhile.
    fleet.node_mut(name).terminate().unwrap();
    let foreign = engine.run_foreign("foreign", &[]).unwrap();
    for id in fleet.node(name).containers().unwrap() {
        engine.remove(&id).unwrap();
    }
    fleet.node_mut(name).serve().unwrap();
    let back = all_is_back(&fleet, name);
    let same = |component: &str| before[component].3 == back[component].3;
    assert!(RUNNING.iter().all(|name| same(name)), "{before:?} {back:?}");
    let live = engine.inspect(&foreign).unwrap().unwrap();
    assert_eq!(live.state.unwrap().running, Some(true));
    stays_as_it_is(&fleet, name, 4);
    engine.remove(&foreign).unwrap();

    // The engine is, and the agent looks on.
    engine.kill().unwrap();
    empty_store(engine);
    eventually("the agent sees that the engine is away", PATIENCE, || {
        let events = fleet.mcp(&["events", "-n", "100"]).stdout;
        Ok(events.contains("engine-away").then_some(()))
    })
    .unwrap();
    engine.up().unwrap();
    all_is_back(&fleet, name);
    stays_as_it_is(&fleet, name, 4);
    let events = fleet.mcp(&["events", "-n", "200"]).ok().stdout;
    assert!(events.contains("engine-emptied"), "{events}");
    fleet.mcp(&["start", "idle"]).ok();
    assert!(running(&fleet, name).contains_key("idle-one"));
}

/// Nothing but what should run was made, and the job is not run again; a deploy still takes the head.
fn stays_as_it_is(fleet: &Fleet, name: &str, containers: usize) {
    assert_eq!(fleet.node(name).containers().unwrap().len(), containers);
    let drift = fleet.mcp(&["drift"]).stdout;
    assert!(!drift.contains("shop/db"), "{drift}");
    let listed = fleet.list();
    assert_eq!(listed["shop/api"]["behind"], 1, "{listed:?}");
}

fn what_should_run_runs_after_a_reboot(lane: Lane) {
    let name = "boot";
    let mut fleet = node(lane, name);
    let engine = fleet.node(name).engine();
    let before = running(&fleet, name);
    let job = started_at(engine, "shop-migrate");
    let done = started_at(engine, "shop-done");
    // A second time as the first: what ends with the host has not failed, and waits for nothing.
    for _ in 0..2 {
        fleet.node_mut(name).kill().unwrap();
        reboot(engine, &running(&fleet, name));
        engine.up().unwrap();
        fleet.node_mut(name).serve().unwrap();
        let back = all_is_back(&fleet, name);
        for component in RUNNING {
            assert_eq!(before[component].3, back[component].3);
        }
    }
    assert_eq!(started_at(engine, "shop-migrate"), job);
    assert_eq!(started_at(engine, "shop-done"), done);
    waited_for_nothing(&fleet);
}

/// Nothing was put off by the restart policy's pauses.
fn waited_for_nothing(fleet: &Fleet) {
    let events = fleet.mcp(&["events", "-n", "500"]).ok().stdout;
    assert!(!events.contains("restart-scheduled"), "{events}");
}

fn what_an_engine_keeps_over_its_restart_is_kept(lane: Lane) {
    let name = "again";
    let fleet = node(lane, name);
    let engine = fleet.node(name).engine();
    for _ in 0..2 {
        let before = running(&fleet, name);
        engine.restart().unwrap();
        let back = all_is_back(&fleet, name);
        // Podman's containers are no children of its service; docker's end with it.
        let same = before == back;
        assert_eq!(same, lane != Lane::Docker, "{before:?} {back:?}");
        eventually("the agent sees it", PATIENCE, || {
            let listed = fleet.list();
            let runs = |component| text(&listed[component], "observed_state") == "running";
            Ok((runs("shop/db") && runs("shop/api") && runs("shop/web")).then_some(()))
        })
        .unwrap();
        assert_eq!(running(&fleet, name), back);
    }
    waited_for_nothing(&fleet);
    fleet.mcp(&["drift"]).ok();
}

fn an_emptied_store_is_filled_from_the_registry(lane: Lane) {
    let name = "pulled";
    let engine = lane.alone();
    let mut registry = Registry::start().unwrap();
    let local = |version: &str| format!("{BUSYBOX}:{version}");
    engine
        .import_version(&local("v4"), "v4", "busybox", &[])
        .unwrap();
    let image = registry.push(engine, &local("v1"), "busybox:v1").unwrap();
    // Another image than the first, or that one would be there already.
    let moved = registry
        .push(engine, &local("v3"), "busybox:moved")
        .unwrap();
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, name).unwrap();
    let of = |text: String, image: &str| text.replace(&local("v1"), image);
    let shop = [
        of(component("db", "v1", ""), &image),
        of(component("api", "v1", "depends_on = [\"db\"]\n"), &image),
        // Nobody but the engine has had this one.
        component("extra", "v4", ""),
        of(
            component("late", "v1", "depends_on = [\"extra\"]\n"),
            &image,
        ),
    ];
    fleet.write("services/shop.toml", &service("shop", name, &shop));
    let other = [component("one", "v3", "").replace(&local("v3"), &moved)];
    fleet.write("services/other.toml", &service("other", name, &other));
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "shop", "other"]).ok();
    let before = running(&fleet, name);
    assert_eq!(before.len(), 5);

    // Containers and images are gone, the tag stands for something else, and the registry is away.
    fleet.node_mut(name).terminate().unwrap();
    registry
        .push(engine, &local("v2"), "busybox:moved")
        .unwrap();
    for id in fleet.node(name).containers().unwrap() {
        engine.remove(&id).unwrap();
    }
    let images = engine
        .cli(&["images", "--all", "--quiet", "--no-trunc"])
        .unwrap();
    let mut images: Vec<&str> = images.lines().collect();
    images.sort_unstable();
    images.dedup();
    let mut remove = vec!["rmi", "--force"];
    remove.extend(images);
    engine.cli(&remove).unwrap();
    registry.away().unwrap();
    fleet.node_mut(name).serve().unwrap();
    let told = |about: &str, said: &str| {
        let events = fleet.mcp(&["events", "-n", "200"]).stdout;
        let is_told = |line: &str| line.contains(about) && line.contains(said);
        Ok(events.lines().any(is_told).then_some(()))
    };
    for service in ["shop", "other"] {
        eventually("it is told that it cannot be pulled", PATIENCE, || {
            told(&format!("deployment-aborted  {service}"), "pull")
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", fleet.node(name).log()));
    }
    assert!(running(&fleet, name).is_empty());

    registry.back().unwrap();
    let back = eventually("what can be pulled runs", 2 * PATIENCE, || {
        let now = running(&fleet, name);
        Ok(now.keys().eq(["shop-api", "shop-db"]).then_some(now))
    })
    .unwrap_or_else(|error| {
        let events = fleet.mcp(&["events", "-n", "60"]);
        panic!("{error:#}: {:?}\n{events}", running(&fleet, name))
    });
    for component in ["shop-db", "shop-api"] {
        assert_eq!(before[component].3, back[component].3);
    }
    eventually("other bytes are refused", 2 * PATIENCE, || {
        told("deployment-aborted  other", "was deployed")
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", fleet.node(name).log()));
    assert!(running(&fleet, name).keys().eq(["shop-api", "shop-db"]));
    // An operator may take them.
    fleet.mcp(&["deploy", "other"]).ok();
    assert!(running(&fleet, name).contains_key("other-one"));
}

fn started_at(engine: &Engine, container: &str) -> Option<String> {
    let live = engine.inspect(container).unwrap()?;
    live.state.unwrap().started_at
}

/// What a reboot does to an engine: all its processes end at once, and what it keeps under `/run` is gone.
fn reboot(engine: &Engine, running: &BTreeMap<String, (String, i64, String, String)>) {
    engine.kill().unwrap();
    let own = format!("{}/", engine.dir().display());
    for _ in 0..3 {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
                continue;
            };
            let is_first = running
                .values()
                .any(|(_, first, _, _)| *first == i64::from(pid));
            if is_first || is_of_engine(&entry.path(), &own) {
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
    // The runtime's own, which it keeps for all of a machine's engines where root runs it.
    for (id, ..) in running.values() {
        drop(std::fs::remove_dir_all(Path::new("/run/runc").join(id)));
    }
    let run = engine.dir().join("run");
    for folder in std::fs::read_dir(&run).unwrap().flatten() {
        // The user's own folder is made at the login, and empty.
        if folder.file_name() == "user" {
            for inner in std::fs::read_dir(folder.path()).unwrap().flatten() {
                drop(std::fs::remove_dir_all(inner.path()));
                drop(std::fs::remove_file(inner.path()));
            }
        } else {
            drop(std::fs::remove_dir_all(folder.path()));
            drop(std::fs::remove_file(folder.path()));
        }
    }
}

/// Whether a process is the engine's own; what holds its namespaces is not.
fn is_of_engine(process: &Path, own: &str) -> bool {
    let read = |file: &str| std::fs::read(process.join(file)).unwrap_or_default();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let name = text(read("comm"));
    let spared = ["sleep", "bash", "engine.sh", "mcp-agent", "boot"];
    !spared.iter().any(|spared| name.trim().starts_with(spared))
        && (text(read("cmdline")).contains(own)
            || text(read("environ")).contains(&format!("{own}run/user")))
}
