//! What is drift, and what is none.

use super::*;
use crate::definition::{DefinitionFile, compile};
use crate::observed::{ContainerId, ImageId};
use crate::samples;

fn component(keys: &str) -> ComponentSpec {
    let text = format!(
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"a.example.net/web:v1\"\n{keys}\n"
    );
    let file = DefinitionFile {
        path: "services/shop.toml",
        bytes: text.as_bytes(),
    };
    let set = compile(&[file], &samples::lookup).unwrap();
    set.services["shop"].components["web"].clone()
}

fn live(state: ContainerState) -> LiveContainer {
    LiveContainer {
        id: ContainerId::new("abc"),
        name: "shop-web".to_owned(),
        image_id: ImageId::new("sha256:1"),
        image_name: String::new(),
        state,
        labels: BTreeMap::new(),
        started_at: None,
        finished_at: None,
        fields: baseline(),
        addresses: BTreeMap::new(),
    }
}

fn baseline() -> BTreeMap<String, String> {
    [("memory", "512 MiB"), ("user", "0:0")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}

fn present(state: ContainerState) -> Observed {
    Observed::Present(Box::new(live(state)))
}

fn exited(code: i32) -> Observed {
    present(ContainerState::Exited { code, oom: false })
}

/// The state and the fields that differ.
fn seen(
    keys: &str,
    wanted: DesiredState,
    attempts: u32,
    observed: &Observed,
) -> (ObservedState, Vec<String>) {
    let spec = component(keys);
    let baseline = baseline();
    let expected = Expected {
        spec: &spec,
        wanted,
        baseline: &baseline,
        attempts,
    };
    let differences = drift(&expected, observed);
    (
        observed_state(&expected, observed),
        differences
            .iter()
            .map(|d| format!("{} {} {}", d.field, d.deployed, d.live))
            .collect(),
    )
}

use DesiredState::{Ignore, Running, Stopped};

const RUNS: ContainerState = ContainerState::Running { pid: Some(1) };

#[test]
fn what_runs_as_wanted_has_no_drift() {
    assert_eq!(
        seen("", Running, 0, &present(RUNS)),
        (ObservedState::Running, vec![])
    );
    assert_eq!(
        seen("", Stopped, 0, &exited(0)),
        (ObservedState::Stopped, vec![])
    );
    assert_eq!(
        seen("", Stopped, 0, &Observed::Absent),
        (ObservedState::Absent, vec![])
    );
}

#[test]
fn nothing_follows_from_the_unknown() {
    let away = Observed::Unknown {
        reason: "away".to_owned(),
    };
    for wanted in [Running, Stopped, Ignore] {
        assert_eq!(seen("", wanted, 0, &away), (ObservedState::Unknown, vec![]));
    }
}

#[test]
fn what_does_not_run_and_what_runs_though_stopped_is_drift_of_state() {
    let drift = |wanted, observed| seen("", wanted, 0, &observed).1;
    assert_eq!(drift(Running, Observed::Absent), ["state running absent"]);
    assert_eq!(drift(Running, exited(137)), ["state running stopped"]);
    assert_eq!(
        drift(Running, present(ContainerState::Created)),
        ["state running stopped"]
    );
    assert_eq!(
        drift(Running, present(ContainerState::Paused)),
        ["state running paused"]
    );
    assert_eq!(drift(Stopped, present(RUNS)), ["state stopped running"]);
    assert!(drift(Ignore, Observed::Absent).is_empty());
}

#[test]
fn what_its_restart_policy_takes_for_good_is_no_drift() {
    let finished = (ObservedState::Stopped, vec![]);
    assert_eq!(
        seen("restart = \"on-failure\"", Running, 0, &exited(0)),
        finished
    );
    assert_eq!(seen("restart = \"no\"", Running, 0, &exited(0)), finished);
    assert_eq!(
        seen("restart = \"no\"", Running, 0, &exited(1)),
        (ObservedState::Failed, vec![])
    );
}

#[test]
fn a_spent_restart_policy_is_failed_and_drift() {
    let keys = "restart = \"on-failure:3\"";
    assert_eq!(seen(keys, Running, 2, &exited(1)).0, ObservedState::Stopped);
    assert_eq!(
        seen(keys, Running, 3, &exited(1)),
        (
            ObservedState::Failed,
            vec!["state running failed".to_owned()]
        )
    );
}

#[test]
fn a_job_is_completed_or_failed_and_never_drifts_in_state() {
    let keys = "kind = \"job\"\nexit_codes = [0, 3]";
    assert_eq!(
        seen(keys, Running, 0, &exited(3)),
        (ObservedState::Completed, vec![])
    );
    assert_eq!(
        seen(keys, Running, 0, &exited(1)),
        (ObservedState::Failed, vec![])
    );
    assert_eq!(
        seen(keys, Running, 0, &Observed::Absent),
        (ObservedState::Absent, vec![])
    );
}

#[test]
fn fields_are_held_against_the_baseline() {
    let mut changed = live(RUNS);
    changed
        .fields
        .insert("memory".to_owned(), "256 MiB".to_owned());
    changed.fields.remove("user");
    changed.fields.insert("workdir".to_owned(), "/x".to_owned());
    assert_eq!(
        seen("", Running, 0, &Observed::Present(Box::new(changed))).1,
        ["memory 512 MiB 256 MiB", "user 0:0 ", "workdir  /x"]
    );
}

#[test]
fn a_list_says_nothing_of_fields() {
    let mut listed = live(RUNS);
    listed.fields.clear();
    assert!(field_drift(&baseline(), &listed).is_empty());
    assert!(field_drift(&BTreeMap::new(), &live(RUNS)).is_empty());
}

#[test]
fn a_release_that_looks_closer_finds_no_drift_in_what_runs() {
    let mut closer = live(RUNS);
    closer.fields.insert(FORM.to_owned(), "2".to_owned());
    closer
        .fields
        .insert("log".to_owned(), "json-file".to_owned());
    assert!(field_drift(&baseline(), &closer).is_empty());
    closer.fields.insert("memory".to_owned(), "1".to_owned());
    assert_eq!(
        field_drift(&baseline(), &closer).len(),
        1,
        "what both tell still counts"
    );
    let mut same = baseline();
    same.insert(FORM.to_owned(), "2".to_owned());
    assert_eq!(field_drift(&same, &closer).len(), 2);
}
