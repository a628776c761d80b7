//! What an agent costs that has nothing to do.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use mcp_tests::engine::Engine;
use mcp_tests::fleet::Fleet;

use crate::machine;
use crate::proxy::Proxy;
use crate::rounds::{definition, mcp};
use crate::table::{Bar, Row, Table};

/// Components that it watches.
const SIZE: usize = 20;

/// How long the agent may have to settle after the deployment.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) fn measure(engine: &'static Engine, seconds: u64, table: &mut Table) {
    let name = "benchidle";
    let mut fleet = Fleet::workstation().unwrap();
    fleet.add_node(engine, name).unwrap();
    // Through a socket that counts.
    let engine_socket = Path::new(engine.url().trim_start_matches("unix://"));
    let counter = engine.dir().join("counted.sock");
    drop(std::fs::remove_file(&counter));
    let proxy = Proxy::start(&counter, engine_socket);
    let node = fleet.node_mut(name);
    node.terminate().unwrap();
    let config = std::fs::read_to_string(node.config()).unwrap();
    std::fs::write(node.config(), config.replace(engine.url(), &proxy.url())).unwrap();
    node.serve().unwrap();
    let source = fleet.node(name).services_dir().join(name);
    fleet.write(
        &format!("services/{name}.toml"),
        &definition(name, SIZE, "1", &source),
    );
    mcp(&fleet, &["sync", "-q"]);
    mcp(&fleet, &["deploy", name, "--no-sync", "-q"]);
    sleep(SETTLE);

    let pid = fleet.node(name).pid().unwrap();
    proxy.take();
    let before = machine::spent(pid);
    sleep(Duration::from_secs(seconds));
    let spent = machine::spent(pid).saturating_sub(before);
    let resident = machine::resident_kib(pid);
    let calls = proxy.take();
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for call in &calls {
        // Ids apart, calls of a kind look alike.
        let kind: Vec<&str> = call
            .split(['/', '?', ' '])
            .filter(|part| !part.is_empty() && part.len() < 40)
            .take(5)
            .collect();
        *kinds.entry(kind.join(" ")).or_default() += 1;
    }
    eprintln!("engine calls in {seconds} s: {kinds:?}");
    #[expect(clippy::cast_precision_loss, reason = "a few mebibytes and calls")]
    let rows = [
        (
            "agent idle: resident memory",
            "MiB",
            resident as f64 / 1024.0,
            Some(Bar::Most(16.0)),
        ),
        (
            "agent idle: share of a core",
            "%",
            spent.as_secs_f64() / seconds as f64 * 100.0,
            Some(Bar::Most(0.05)),
        ),
        (
            "agent idle: engine calls a minute",
            "calls",
            calls.len() as f64 * 60.0 / seconds as f64,
            None,
        ),
    ];
    for (what, unit, value, bar) in rows {
        table.add(Row {
            place: engine.lane().name().to_owned(),
            size: SIZE,
            what: what.to_owned(),
            contender: "mcp".to_owned(),
            unit,
            samples: vec![value],
            floor: None,
            bar,
        });
    }
}
