//! What is told, and when.

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::alert::conditions::{AlertState, Conditions, Services};
use crate::registry::EventRow;

const COOLDOWN: SignedDuration = SignedDuration::from_secs(600);

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn event(second: i64, kind: &str, reason: &str) -> EventRow {
    EventRow {
        seq: second.unsigned_abs(),
        at: at(second),
        service: Some("shop".parse().unwrap()),
        component: Some("api".parse().unwrap()),
        kind: kind.to_owned(),
        reason: reason.to_owned(),
        message: format!("shop/api {kind}"),
        revision: None,
        data: json!({}),
    }
}

fn drift(second: i64, live: &str) -> EventRow {
    EventRow {
        data: json!({ "drift": [{ "field": "env.A", "baseline": "1", "live": live }] }),
        ..event(second, "drift", "spec")
    }
}

struct Log {
    services: Services,
    conditions: Conditions,
    told: Vec<(i64, AlertState, String, u64)>,
}

impl Log {
    fn new() -> Self {
        Self {
            services: Services::default(),
            conditions: Conditions::new("rift".to_owned(), COOLDOWN, Vec::new()),
            told: Vec::new(),
        }
    }

    fn take(&mut self, event: &EventRow) {
        let now = event.at;
        let change = self.conditions.take(event, now, &self.services);
        self.note(now, &change.alerts);
    }

    fn pass(&mut self, second: i64) {
        let change = self.conditions.pass(at(second));
        self.note(at(second), &change.alerts);
    }

    fn note(&mut self, now: Timestamp, alerts: &[crate::alert::Alert]) {
        let second = now.duration_since(at(0)).as_secs();
        self.told.extend(
            alerts
                .iter()
                .map(|alert| (second, alert.state, alert.cause.clone(), alert.count)),
        );
    }

    fn states(&self) -> Vec<(i64, AlertState)> {
        self.told.iter().map(|told| (told.0, told.1)).collect()
    }
}

use AlertState::{Firing, Recovered};

#[test]
fn condition_is_told_at_once_and_its_end_too() {
    let mut log = Log::new();
    log.take(&drift(0, "2"));
    log.take(&event(30, "drift-gone", "repaired"));
    assert_eq!(log.states(), [(0, Firing), (30, Recovered)]);
}

#[test]
fn end_of_what_was_never_told_is_not_told() {
    let mut log = Log::new();
    log.take(&event(0, "drift-gone", "repaired"));
    log.take(&event(1, "healthy", "check-passed"));
    log.take(&event(2, "deployed", "replace"));
    assert_eq!(log.states(), []);
}

#[test]
fn same_cause_again_waits_for_the_cool_down() {
    let mut log = Log::new();
    for second in [0, 100, 599, 600, 700] {
        log.take(&drift(second, "2"));
    }
    assert_eq!(log.states(), [(0, Firing), (600, Firing)]);
    assert_eq!(log.told[1].3, 3, "how often it was met meanwhile is told");
}

#[test]
fn changed_cause_is_told_at_once() {
    let mut log = Log::new();
    log.take(&drift(0, "2"));
    log.take(&drift(10, "3"));
    log.take(&drift(20, "3"));
    assert_eq!(log.states(), [(0, Firing), (10, Firing)]);
}

#[test]
fn condition_that_comes_back_within_the_cool_down_is_told_after_it() {
    let mut log = Log::new();
    log.take(&drift(0, "2"));
    log.take(&event(10, "drift-gone", "repaired"));
    log.take(&drift(20, "2"));
    log.pass(599);
    assert_eq!(log.states(), [(0, Firing), (10, Recovered)]);
    assert_eq!(log.conditions.next_pass(), Some(at(600)));
    log.pass(600);
    log.pass(601);
    assert_eq!(log.states().last(), Some(&(600, Firing)));
    assert_eq!(log.told.len(), 3);
}

#[test]
fn what_came_and_went_within_the_cool_down_is_not_told() {
    let mut log = Log::new();
    log.take(&drift(0, "2"));
    log.take(&event(10, "drift-gone", "repaired"));
    log.take(&drift(20, "2"));
    log.take(&event(30, "drift-gone", "repaired"));
    log.pass(700);
    assert_eq!(log.states(), [(0, Firing), (10, Recovered)]);
    assert_eq!(log.conditions.next_pass(), None, "and it is forgotten");
}

#[test]
fn clock_that_is_set_back_does_not_hold_alerts_back() {
    let mut log = Log::new();
    log.take(&drift(0, "2"));
    log.take(&event(10, "drift-gone", "repaired"));
    log.take(&drift(-300_000_000, "2"));
    assert_eq!(log.states().last(), Some(&(-300_000_000, Firing)));
}

#[test]
fn muted_service_is_silent_and_its_neighbour_is_not() {
    let mut conditions = Conditions::new("rift".to_owned(), COOLDOWN, Vec::new());
    let muting = |service: &str| Services {
        muted: [service.parse().unwrap()].into(),
        ..Services::default()
    };
    let muted = conditions.take(&drift(0, "2"), at(0), &muting("shop"));
    assert!(muted.is_empty());
    let other = conditions.take(&drift(0, "2"), at(0), &muting("bank"));
    assert_eq!(other.alerts.len(), 1);
}

#[test]
fn deployment_ends_what_it_mends_but_not_flapping() {
    let mut log = Log::new();
    log.take(&drift(0, "2"));
    log.take(&event(1, "flapping", "too-many-changes"));
    log.take(&event(2, "gave-up", "restart-policy-spent"));
    log.told.clear();
    log.take(&event(3, "deployed", "replace"));
    assert_eq!(log.states(), [(3, Recovered), (3, Recovered)]);
    log.take(&event(4, "stopped", "stop"));
    assert_eq!(log.states().last(), Some(&(4, Recovered)));
}

#[test]
fn contest_goes_on_over_repairs_and_is_told_once() {
    let mut log = Log::new();
    log.take(&event(0, "contested", "container missing"));
    for second in [20, 60, 140] {
        log.take(&event(second, "deployed", "create"));
    }
    assert_eq!(log.states(), [(0, Firing)]);
    log.take(&event(200, "contested", "memory drifted"));
    assert_eq!(log.states().last(), Some(&(200, Firing)), "another cause");
    log.take(&event(900, "contested-over", "left-alone"));
    assert_eq!(log.states().last(), Some(&(900, Recovered)));
    assert_eq!(log.told.len(), 3);
}

#[test]
fn degraded_deployment_is_one_alert_however_often_it_is_tried() {
    let mut log = Log::new();
    let part = |second| EventRow {
        data: json!({ "outcome": "degraded" }),
        ..event(second, "deployed", "replace")
    };
    for second in [0, 60, 120] {
        log.take(&part(second));
        log.take(&EventRow {
            component: None,
            ..event(second, "deployment-degraded", "deploy")
        });
    }
    assert_eq!(log.states(), [(0, Firing)]);
    log.take(&event(200, "deployed", "replace"));
    assert_eq!(log.states(), [(0, Firing), (200, Recovered)]);
}

#[test]
fn what_is_removed_for_good_has_nothing_to_answer_for() {
    let mut log = Log::new();
    log.take(&event(0, "flapping", "too-many-changes"));
    log.take(&event(1, "removed", "outside"));
    assert_eq!(log.states(), [(0, Firing)]);
    log.take(&event(2, "removed", "remove"));
    assert_eq!(log.states(), [(0, Firing), (2, Recovered)]);
}

#[test]
fn out_of_memory_is_told_once_in_the_cool_down() {
    let mut log = Log::new();
    for second in [0, 20, 700] {
        log.take(&EventRow {
            data: json!({ "oom": true, "exit_code": 137 }),
            ..event(second, "exited", "out-of-memory")
        });
    }
    // Held back by the cool-down and over at once: there is nothing to tell later.
    assert_eq!(log.states(), [(0, Firing), (700, Firing)]);
}

#[test]
fn failed_deployment_is_told_of_the_service_until_one_succeeds() {
    let mut log = Log::new();
    let failed = EventRow {
        component: None,
        ..event(0, "deployment-failed", "deploy")
    };
    log.take(&failed);
    log.take(&event(5, "deployed", "create"));
    assert_eq!(log.states(), [(0, Firing), (5, Recovered)]);
}

#[test]
fn rollback_is_told_only_where_nobody_was_there() {
    let mut log = Log::new();
    for reason in ["deploy", "auto"] {
        log.take(&EventRow {
            component: None,
            ..event(0, "deployment-rolled-back", reason)
        });
    }
    assert_eq!(log.told.len(), 1);
}

/// A new spec that failed its gate in a deployment of the agent's own, and was put back.
fn new_spec_failed(second: i64) -> EventRow {
    EventRow {
        component: None,
        data: json!({ "quarantined": ["api"] }),
        ..event(second, "deployment-rolled-back", "auto")
    }
}

#[test]
fn last_good_that_comes_back_does_not_end_the_failure_of_what_is_wanted() {
    let mut log = Log::new();
    log.services.failing.insert("shop".parse().unwrap());
    log.take(&new_spec_failed(0));
    for (second, kind) in [
        (5, "deployed"),
        (6, "deployment-unchanged"),
        (7, "revision"),
    ] {
        log.take(&event(second, kind, "create"));
    }
    assert_eq!(log.states(), [(0, Firing)]);
    // The head wants another one by now, and that one is deployed.
    log.services.failing.clear();
    log.take(&event(20, "deployed", "replace"));
    assert_eq!(log.states(), [(0, Firing), (20, Recovered)]);
}

#[test]
fn failure_of_a_spec_ends_when_the_head_takes_it_back() {
    let mut log = Log::new();
    log.services.failing.insert("shop".parse().unwrap());
    log.take(&new_spec_failed(0));
    log.services.failing.clear();
    let head = EventRow {
        service: None,
        component: None,
        ..event(10, "revision", "push")
    };
    log.take(&head);
    log.take(&head);
    assert_eq!(log.states(), [(0, Firing), (10, Recovered)]);
}

#[test]
fn failure_that_is_not_the_specs_outlives_another_head() {
    let mut log = Log::new();
    log.take(&EventRow {
        component: None,
        ..event(0, "deployment-failed", "deploy")
    });
    log.take(&event(10, "revision", "push"));
    assert_eq!(log.states(), [(0, Firing)]);
}

#[test]
fn blocked_service_is_told_once_it_persists_and_when_it_is_over() {
    let blocked = |second, persists| EventRow {
        component: None,
        data: json!({ "persists": persists }),
        ..event(second, "blocked", "the name shop-web is taken")
    };
    for (end, reason) in [("blocked-over", "nothing-to-do"), ("deployed", "create")] {
        let mut log = Log::new();
        log.take(&blocked(0, false));
        assert_eq!(log.states(), []);
        log.take(&blocked(30, true));
        log.take(&event(60, end, reason));
        assert_eq!(log.states(), [(30, Firing), (60, Recovered)], "{end}");
    }
}
