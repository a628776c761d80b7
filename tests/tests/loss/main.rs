//! What is lost, set back, full or wrong on a node, and what runs there all the same: the real binaries on a
//! real engine, looked at from outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod backup;
mod clock;
mod disk;
mod registry;
mod repository;
mod unwritable;
mod upgrade;

use std::collections::BTreeMap;
use std::path::Path;

use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{BUSYBOX, Lane};
use mcp_tests::fleet::Fleet;

mcp_tests::lanes!(
    old_backup_neither_stops_nor_doubles_what_runs,
    lost_registry_is_made_anew_and_nothing_stops,
    clock_that_is_years_off_touches_nothing_and_delays_nothing,
    replaced_program_touches_nothing_that_runs,
);

fn clock_that_is_years_off_touches_nothing_and_delays_nothing(lane: Lane) {
    clock::clock_that_is_years_off_touches_nothing_and_delays_nothing(lane);
}

fn replaced_program_touches_nothing_that_runs(lane: Lane) {
    upgrade::replaced_program_touches_nothing_that_runs(lane);
}

fn old_backup_neither_stops_nor_doubles_what_runs(lane: Lane) {
    backup::old_backup_neither_stops_nor_doubles_what_runs(lane);
}

fn lost_registry_is_made_anew_and_nothing_stops(lane: Lane) {
    registry::lost_registry_is_made_anew_and_nothing_stops(lane);
}

/// A node with one service of two components at `v1`, deployed.
fn deployed(lane: Lane, name: &str) -> Fleet {
    let fleet = Fleet::with_node(lane, name).unwrap();
    let components = [
        component("db", "v1", ""),
        component("api", "v1", "depends_on = [\"db\"]\n"),
    ];
    fleet.write(
        &format!("services/{name}.toml"),
        &service(name, name, &components),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", name]).ok();
    fleet
}

/// Edits both components to another version, and gives the new head once it is deployed.
fn deploy_version(fleet: &Fleet, name: &str, from: &str, to: &str) -> String {
    fleet.edit(
        &format!("services/{name}.toml"),
        &format!("{BUSYBOX}:{from}"),
        &format!("{BUSYBOX}:{to}"),
    );
    fleet.mcp(&["deploy", name]).ok();
    fleet.git(&["rev-parse", "HEAD"])
}

/// The containers of the node that run, by name, with the id and the first process of each.
fn running(fleet: &Fleet, node: &str) -> BTreeMap<String, (String, i64)> {
    fleet.node(node).running().unwrap()
}

fn names(running: &BTreeMap<String, (String, i64)>) -> Vec<&str> {
    running.keys().map(String::as_str).collect()
}

/// Runs `mcp-agent COMMAND.. --config FILE`.
#[track_caller]
fn agent(fleet: &Fleet, node: &str, args: &[&str]) -> mcp_tests::fleet::Output {
    let node = fleet.node(node);
    let config = node.config().display().to_string();
    let mut all = args.to_vec();
    all.extend(["--config", &config]);
    node.agent(&all).unwrap()
}

/// The agent's start fails; gives what it said.
#[track_caller]
fn refused_start(fleet: &Fleet, node: &str) -> String {
    let refused = agent(fleet, node, &["serve"]).exits(1);
    refused.stderr
}

fn remove(path: &Path) {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path).unwrap(),
        Ok(_) => std::fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}
