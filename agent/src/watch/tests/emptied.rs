//! When an engine counts as emptied.

use std::sync::Arc;

use mcp_spec::name::ComponentKey;
use mcp_spec::observed::ObservedState;
use tokio::time::Instant;

use super::*;
use crate::registry::{LostRow, ObservedRow};
use crate::watch::component::Component;
use crate::watch::emptied;
use crate::watch::sight::blank;
use crate::watch::snapshot::{EngineState, Snapshot};

fn snapshot(engine: EngineState, containers: &[&str]) -> Snapshot {
    let entry = |id: &&str| (ContainerId::new(*id), Arc::new(live(id, 0)));
    Snapshot {
        containers: containers.iter().map(entry).collect(),
        taken_at: Instant::now(),
        at: time(0),
        engine,
    }
}

/// What a component is, and how it was seen, apart from running as it should.
type Change = fn(&mut DeployedRow, &mut ObservedRow);

/// Components by key, each seen so the last time.
fn components(seen: &[(&str, Change)]) -> BTreeMap<ComponentKey, Component> {
    seen.iter()
        .map(|(key, change)| {
            let mut row = row(key);
            let mut seen = blank(&row, time(0));
            seen.state = ObservedState::Running;
            change(&mut row, &mut seen);
            (row.key.clone(), Component::new(row, Some(seen), time(1)))
        })
        .collect()
}

fn lost(components: &BTreeMap<ComponentKey, Component>, snapshot: &Snapshot) -> Vec<LostRow> {
    emptied::lost(components, snapshot, &BTreeSet::new())
}

fn names(lost: Vec<LostRow>) -> Vec<String> {
    lost.into_iter().map(|row| row.key.to_string()).collect()
}

const RAN: fn(&mut DeployedRow, &mut ObservedRow) = |_, _| {};
const WAS_GONE: fn(&mut DeployedRow, &mut ObservedRow) =
    |_, seen| seen.state = ObservedState::Absent;
const WAS_DONE: fn(&mut DeployedRow, &mut ObservedRow) = |row, seen| {
    row.spec.restart = Restart::No;
    seen.state = ObservedState::Stopped;
    seen.finished_at = Some(time(0));
    seen.exit_code = Some(0);
};

#[test]
fn a_store_without_any_registered_container_was_emptied() {
    let components = components(&[("shop/web", RAN), ("blog/app", RAN)]);
    let gone = lost(&components, &snapshot(EngineState::Answers, &[]));
    assert_eq!(names(gone), ["blog/app", "shop/web"]);
    let foreign = lost(&components, &snapshot(EngineState::Answers, &["other"]));
    assert_eq!(foreign.len(), 2);
}

#[test]
fn one_container_that_is_left_tells_of_removals_by_hand() {
    let components = components(&[("shop/web", RAN), ("shop/done", WAS_DONE)]);
    let left = lost(&components, &snapshot(EngineState::Answers, &["done"]));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_adopted_container_that_is_left_tells_of_removals_by_hand_too() {
    let components = components(&[
        ("shop/web", RAN),
        // Its labels, where it has any, say nothing of the component that it is.
        ("shop/db", |row, _| {
            row.container = ContainerId::new("other")
        }),
    ]);
    let left = lost(&components, &snapshot(EngineState::Answers, &["other"]));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_container_that_claims_to_be_a_component_tells_of_another_registry() {
    let components = components(&[("shop/web", |row, _| row.container = ContainerId::new("old"))]);
    let left = lost(&components, &snapshot(EngineState::Answers, &["web"]));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_deployment_that_is_under_way_has_made_tells_nothing() {
    let components = components(&[
        ("shop/web", |row, _| row.container = ContainerId::new("old")),
        ("blog/app", RAN),
    ]);
    let busy = BTreeSet::from(["shop".parse().unwrap()]);
    let answers = snapshot(EngineState::Answers, &["web"]);
    let gone = emptied::lost(&components, &answers, &busy);
    assert_eq!(names(gone), ["blog/app", "shop/web"]);
}

#[test]
fn an_engine_that_does_not_answer_has_lost_nothing() {
    let components = components(&[("shop/web", RAN)]);
    let away = EngineState::Away {
        reason: "refused".to_owned(),
        since: time(0),
    };
    for engine in [away, EngineState::NeverSeen] {
        assert!(lost(&components, &snapshot(engine, &[])).is_empty());
    }
}

#[test]
fn what_was_drift_before_stays_drift() {
    let only = components(&[("shop/web", WAS_GONE)]);
    assert!(lost(&only, &snapshot(EngineState::Answers, &[])).is_empty());
    let both = components(&[("shop/web", WAS_GONE), ("shop/db", RAN)]);
    let gone = lost(&both, &snapshot(EngineState::Answers, &[]));
    assert_eq!(names(gone), ["shop/db"]);
}

#[test]
fn where_nothing_should_run_nothing_was_lost() {
    let stopped: fn(&mut DeployedRow, &mut ObservedRow) =
        |row, _| row.desired = DesiredState::Stopped;
    let components = components(&[("shop/web", stopped), ("shop/done", WAS_DONE)]);
    assert!(lost(&components, &snapshot(EngineState::Answers, &[])).is_empty());
}
