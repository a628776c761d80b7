//! What follows from what is seen of one component.

use mcp_spec::component::{Health, Probe};
use mcp_spec::observed::{ContainerState, Observed, ObservedState};
use tokio::time::Instant;

use super::*;
use crate::registry::{HealthWord, NewEvent, StopOverride};
use crate::runtime::RuntimeError;
use crate::watch::component::{Component, Moment, Restarting};
use crate::watch::first_sight;
use crate::watch::flapping::Bounds;
use crate::watch::revive::Revived;

/// A component with clocks of its own.
struct Bench {
    component: Component,
    begin: Instant,
    seconds: i64,
}

impl Bench {
    fn new(row: DeployedRow) -> Self {
        let mut bench = Self {
            component: Component::new(row, None, time(0)),
            begin: Instant::now(),
            seconds: 0,
        };
        assert!(bench.sees(running(0)).is_empty());
        bench
    }

    fn with(change: impl FnOnce(&mut DeployedRow)) -> Self {
        let mut row = row("shop/web");
        change(&mut row);
        Self::new(row)
    }

    fn restart(restart: &str) -> Self {
        Self::with(|row| row.spec.restart = restart.parse().unwrap())
    }

    fn moment(&self) -> Moment {
        Moment {
            now: self.begin + Duration::from_secs(self.seconds.try_into().unwrap()),
            at: time(self.seconds),
        }
    }

    fn after(&mut self, seconds: i64) -> &mut Self {
        self.seconds += seconds;
        self
    }

    fn sees(&mut self, observed: Observed) -> Vec<String> {
        let moment = self.moment();
        words(&self.component.look(&observed, moment, 0.0, BOUNDS))
    }

    fn is_due_in(&self) -> Option<u64> {
        match self.component.restarting {
            Restarting::Due(due) => Some(due.duration_since(self.moment().now).as_secs()),
            _ => None,
        }
    }

    /// Starts it again as the deployer would.
    fn revives(&mut self) -> Vec<String> {
        self.component.restarting = Restarting::Asked;
        let moment = self.moment();
        let live = Revived::Running(Box::new(live("web", self.seconds)));
        let mut words = words(&self.component.revived(&live, moment, 0.0));
        words.extend(self.sees(running(self.seconds)));
        words
    }
}

const BOUNDS: Bounds = Bounds {
    threshold: 1000,
    window: Duration::from_secs(300),
};

fn words(events: &[NewEvent]) -> Vec<String> {
    events.iter().map(|event| event.kind.clone()).collect()
}

fn running(since: i64) -> Observed {
    Observed::Present(Box::new(live("web", since)))
}

fn exited(code: i32, since: i64, until: i64) -> Observed {
    let mut live = live("web", since);
    live.state = ContainerState::Exited { code, oom: false };
    live.finished_at = Some(time(until));
    Observed::Present(Box::new(live))
}

fn dead(since: i64) -> Observed {
    let mut live = live("web", since);
    live.state = ContainerState::Other("ended".to_owned());
    Observed::Present(Box::new(live))
}

fn away() -> Observed {
    Observed::Unknown {
        reason: "away".to_owned(),
    }
}

#[test]
fn a_first_crash_is_started_again_at_once_and_is_no_drift() {
    let mut web = Bench::restart("unless-stopped");
    assert_eq!(web.after(5).sees(exited(137, 0, 5)), ["exited"]);
    assert_eq!(web.is_due_in(), Some(0));
    assert!(web.component.seen.drift.is_empty());
    assert_eq!(web.component.seen.exit_code, Some(137));
    assert_eq!(web.revives(), ["restarted"]);
    assert_eq!(web.component.seen.restarts, 1);
    assert_eq!(web.component.seen.state, ObservedState::Running);
}

#[test]
fn a_crash_loop_backs_off_and_calm_ends_it() {
    let mut web = Bench::restart("always");
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let since = web.seconds;
        web.after(1).sees(exited(1, since, since + 1));
        let pause = web.is_due_in().unwrap();
        pauses.push(pause);
        assert_eq!(
            web.component.seen.next_restart_at.is_some(),
            pause > 0,
            "{pause}"
        );
        web.after(pause.try_into().unwrap()).revives();
    }
    assert_eq!(pauses, [0, 10, 20, 40, 80, 160, 300, 300]);
    let since = web.seconds;
    web.after(601);
    assert_eq!(web.sees(exited(1, since, since + 601)), ["exited"]);
    assert_eq!(web.is_due_in(), Some(0));
    assert_eq!(web.component.seen.restarts, 8);
}

#[test]
fn a_back_off_outlives_the_agent() {
    let mut web = Bench::restart("always");
    web.after(1).sees(exited(1, 0, 1));
    web.revives();
    let since = web.seconds;
    let told = web.after(1).sees(exited(1, since, since + 1));
    assert_eq!(told, ["exited", "restart-scheduled"]);
    let seen = web.component.seen.clone();
    web.component = Component::new(web.component.row.clone(), Some(seen), time(web.seconds));
    let told = web.after(4).sees(exited(1, since, since + 1));
    assert!(told.is_empty(), "{told:?}");
    assert_eq!(web.is_due_in(), Some(6));
    assert_eq!(web.component.seen.backoff_attempt, 1);
}

#[test]
fn a_clock_that_jumped_does_not_make_a_scheduled_start_wait_for_ever() {
    let mut web = Bench::restart("always");
    let mut seen = web.component.seen.clone();
    seen.state = ObservedState::Stopped;
    seen.next_restart_at = Some(time(10 * 365 * 86_400));
    web.component = Component::new(web.component.row.clone(), Some(seen), time(0));
    web.sees(exited(1, 0, 0));
    assert!(web.is_due_in().unwrap() <= 330);
}

#[test]
fn what_ended_while_the_agent_was_away_is_told_and_started() {
    let mut web = Bench::restart("unless-stopped");
    let seen = web.component.seen.clone();
    assert_eq!(seen.state, ObservedState::Running);
    web.component = Component::new(web.component.row.clone(), Some(seen), time(0));
    assert_eq!(web.after(60).sees(exited(255, 0, 30)), ["exited"]);
    assert_eq!(web.is_due_in(), Some(0));
}

#[test]
fn a_finished_component_is_neither_started_nor_drift() {
    for (restart, code) in [("no", 0), ("no", 1), ("on-failure", 0)] {
        let mut web = Bench::restart(restart);
        assert_eq!(web.after(5).sees(exited(code, 0, 5)), ["exited"]);
        assert_eq!(web.is_due_in(), None);
        assert!(web.component.seen.drift.is_empty(), "{restart} {code}");
    }
}

#[test]
fn a_spent_policy_gives_up_once_and_is_failed() {
    let mut web = Bench::restart("on-failure:1");
    web.after(1).sees(exited(1, 0, 1));
    assert_eq!(web.is_due_in(), Some(0));
    web.revives();
    let since = web.seconds;
    let end = exited(1, since, since + 1);
    assert_eq!(
        web.after(1).sees(end.clone()),
        ["exited", "gave-up", "drift"]
    );
    assert_eq!(web.component.seen.state, ObservedState::Failed);
    assert_eq!(web.is_due_in(), None);
    assert!(web.after(1).sees(end.clone()).is_empty());
    let seen = web.component.seen.clone();
    web.component = Component::new(web.component.row.clone(), Some(seen), time(web.seconds));
    assert!(web.sees(end).is_empty());
}

#[test]
fn a_job_is_never_started_again() {
    let mut web = Bench::with(|row| {
        row.spec.kind = Kind::Job {
            exit_codes: BTreeSet::from([0]),
        };
        row.spec.restart = Restart::OnFailure { max: None };
    });
    web.after(1).sees(exited(1, 0, 1));
    assert_eq!(web.is_due_in(), None);
    assert_eq!(web.component.seen.state, ObservedState::Failed);
    assert!(web.component.seen.drift.is_empty());
}

#[test]
fn a_stopped_component_is_not_started() {
    let mut web = Bench::restart("always");
    web.after(1).sees(exited(1, 0, 1));
    assert_eq!(web.is_due_in(), Some(0));
    let mut row = web.component.row.clone();
    row.stopped_by = Some(StopOverride {
        by: "kyle".to_owned(),
        at: time(2),
    });
    web.component.replace_row(row, time(2));
    web.component.quiet = true;
    assert!(web.sees(exited(1, 0, 1)).is_empty());
    assert_eq!(web.component.restarting, Restarting::No);
    assert!(web.component.seen.drift.is_empty());
    // Started by hand it is drift, and still nobody's business to stop.
    assert_eq!(web.after(1).sees(running(3)), ["started", "drift"]);
    assert_eq!(web.component.seen.drift[0].live, "running");
}

#[test]
fn the_stop_of_a_running_component_is_no_news_of_the_watch() {
    let mut web = Bench::restart("always");
    let mut row = web.component.row.clone();
    row.stopped_by = Some(StopOverride {
        by: "kyle".to_owned(),
        at: time(2),
    });
    web.component.replace_row(row, time(2));
    web.component.quiet = true;
    assert!(web.after(2).sees(exited(0, 0, 2)).is_empty());
    assert_eq!(web.component.seen.state, ObservedState::Stopped);
}

#[test]
fn a_container_removed_by_hand_is_drift_and_not_made_again() {
    let mut web = Bench::restart("always");
    assert_eq!(web.after(1).sees(Observed::Absent), ["removed", "drift"]);
    assert_eq!(web.component.restarting, Restarting::No);
    assert!(web.after(1).sees(Observed::Absent).is_empty());
    assert_eq!(web.component.seen.drift[0].since, time(1));
}

#[test]
fn the_unknown_changes_nothing_but_the_word() {
    let mut web = Bench::restart("always");
    assert!(web.after(1).sees(away()).is_empty());
    assert_eq!(web.component.seen.state, ObservedState::Unknown);
    assert_eq!(web.component.restarting, Restarting::No);
    assert!(web.after(1).sees(running(0)).is_empty());
    web.sees(away());
    // It ended behind the engine's absence.
    assert_eq!(web.after(1).sees(exited(1, 0, 2)), ["exited"]);
}

#[test]
fn drift_of_fields_is_told_once_and_its_end_too() {
    let mut web = Bench::restart("always");
    let mut changed = live("web", 0);
    changed
        .fields
        .insert("memory".to_owned(), "256 MiB".to_owned());
    let changed = Observed::Present(Box::new(changed));
    assert_eq!(web.after(1).sees(changed.clone()), ["drift"]);
    assert!(web.after(1).sees(changed).is_empty());
    assert_eq!(web.component.seen.drift.len(), 1);
    assert_eq!(web.after(1).sees(running(0)), ["drift-gone"]);
}

#[test]
fn a_death_is_told_before_its_exit_code_only_where_that_takes_long() {
    let mut web = Bench::restart("always");
    assert!(web.after(1).sees(dead(0)).is_empty());
    assert_eq!(web.sees(exited(137, 0, 1)), ["exited"]);
    web.revives();
    let since = web.seconds;
    assert!(web.after(1).sees(dead(since)).is_empty());
    assert!(web.component.next_look(BOUNDS).is_some());
    assert_eq!(web.after(1).sees(dead(since)), ["died"]);
    assert!(web.after(1).sees(dead(since)).is_empty());
    // What is removed by hand ends first: that news waits a moment.
    let end = exited(137, since, since + 1);
    assert!(web.sees(end.clone()).is_empty());
    assert_eq!(web.is_due_in(), Some(10));
    assert!(web.component.next_look(BOUNDS).is_some());
    assert_eq!(web.after(2).sees(end), ["exited", "restart-scheduled"]);
}

#[test]
fn an_end_without_an_exit_code_is_an_end_at_last() {
    let mut web = Bench::restart("always");
    web.after(1).sees(dead(0));
    assert_eq!(web.after(1).sees(dead(0)), ["died"]);
    assert!(web.after(30).sees(dead(0)).is_empty());
    assert_eq!(web.is_due_in(), Some(0));
    assert_eq!(web.revives(), ["exited", "restarted"]);
}

#[test]
fn a_removal_is_no_end_of_its_own() {
    let mut web = Bench::restart("always");
    web.after(1).sees(dead(0));
    assert_eq!(web.after(1).sees(dead(0)), ["died"]);
    assert!(web.sees(exited(0, 0, 1)).is_empty());
    // The start that its policy asks for meets what is being removed.
    web.component.restarting = Restarting::Asked;
    let moment = web.moment();
    let gone = Revived::Failed(RuntimeError::NotFound {
        what: "container web".to_owned(),
    });
    assert!(web.component.revived(&gone, moment, 0.0).is_empty());
    assert_eq!(web.component.seen.backoff_attempt, 0);
    assert_eq!(web.sees(Observed::Absent), ["removed", "drift"]);
    assert_eq!(web.component.restarting, Restarting::No);
    let changes = web.component.seen.flapping.as_ref().unwrap();
    assert_eq!(changes.changes.len(), 1, "one fact");
}

#[test]
fn what_the_engine_is_just_removing_or_stopping_has_not_ended_yet() {
    let ending = |word: &str| {
        let mut live = live("web", 0);
        live.state = ContainerState::Other(word.to_owned());
        Observed::Present(Box::new(live))
    };
    let mut web = Bench::restart("no");
    web.after(1).sees(dead(0));
    assert_eq!(web.after(1).sees(dead(0)), ["died"]);
    assert!(web.sees(ending("removing")).is_empty());
    assert_eq!(web.sees(Observed::Absent), ["removed", "drift"]);
    let mut web = Bench::restart("always");
    assert!(web.after(1).sees(ending("stopping")).is_empty());
    assert!(web.after(1).sees(ending("stopping")).is_empty());
    assert_eq!(web.component.restarting, Restarting::No);
    assert_eq!(web.sees(exited(143, 0, 2)), ["exited"]);
    assert!(matches!(web.component.restarting, Restarting::Due(_)));
}

#[test]
fn what_its_deployment_has_told_is_no_news() {
    let mut web = Bench::restart("always");
    let mut changed = live("web", 0);
    let memory = |live: &mut LiveContainer, value: &str| {
        live.fields.insert("memory".to_owned(), value.to_owned());
    };
    memory(&mut changed, "256 MiB");
    let first = first_sight(
        &web.component.row,
        &Observed::Present(Box::new(changed.clone())),
        time(0),
    );
    assert_eq!(first.drift.len(), 1);
    web.component.was_told(first.drift);
    let seen = Observed::Present(Box::new(changed.clone()));
    assert!(web.after(1).sees(seen).is_empty());
    assert_eq!(web.component.seen.drift.len(), 1, "and it is still drift");
    memory(&mut changed, "1 GiB");
    let seen = Observed::Present(Box::new(changed));
    assert_eq!(web.after(1).sees(seen), ["drift"], "another value is news");
}

#[test]
fn flapping_begins_and_ends_once_over_restarts_of_the_agent() {
    let bounds = Bounds {
        threshold: 3,
        window: Duration::from_secs(300),
    };
    let mut web = Bench::restart("always");
    let mut told = Vec::new();
    for _ in 0..5 {
        let since = web.seconds;
        web.after(1);
        let moment = web.moment();
        let end = exited(1, since, since + 1);
        told.extend(words(&web.component.look(&end, moment, 0.0, bounds)));
        web.revives();
        let seen = web.component.seen.clone();
        web.component = Component::new(web.component.row.clone(), Some(seen), time(web.seconds));
    }
    assert_eq!(told.iter().filter(|word| *word == "flapping").count(), 1);
    let since = web.seconds;
    let mut later = |seconds: i64| {
        web.after(seconds);
        let seen = web.component.seen.clone();
        web.component = Component::new(web.component.row.clone(), Some(seen), time(web.seconds));
        let moment = web.moment();
        words(&web.component.look(&running(since), moment, 0.0, bounds))
    };
    assert!(later(200).is_empty(), "it has yet to be calm");
    assert_eq!(later(101), ["flapping-over"]);
    assert!(later(1).is_empty());
    assert!(later(400).is_empty());
}

#[test]
fn a_stop_ends_flapping_and_it_may_begin_again() {
    let bounds = Bounds {
        threshold: 1,
        window: Duration::from_secs(300),
    };
    let mut web = Bench::restart("always");
    web.after(1);
    let moment = web.moment();
    let told = words(&web.component.look(&exited(1, 0, 1), moment, 0.0, bounds));
    assert_eq!(told, ["exited", "flapping"]);
    let mut row = web.component.row.clone();
    row.stopped_by = Some(StopOverride {
        by: "kyle".to_owned(),
        at: time(2),
    });
    web.component.replace_row(row, time(2));
    web.component.quiet = true;
    assert_eq!(web.sees(exited(1, 0, 1)), ["flapping-over"]);
    assert!(web.sees(exited(1, 0, 1)).is_empty());
}

#[test]
fn a_restart_by_hand_is_seen() {
    let mut web = Bench::restart("always");
    assert_eq!(web.after(5).sees(running(4)), ["restarted"]);
    assert_eq!(web.component.seen.restarts, 0);
}

#[test]
fn a_failed_start_is_told_and_backs_off() {
    let mut web = Bench::restart("always");
    web.after(1).sees(exited(1, 0, 1));
    web.component.restarting = Restarting::Asked;
    let moment = web.moment();
    let failed = Revived::Failed(RuntimeError::PortTaken {
        cause: "in use".to_owned(),
    });
    let told = words(&web.component.revived(&failed, moment, 0.0));
    assert_eq!(told, ["restart-failed", "restart-scheduled"]);
    assert_eq!(web.is_due_in(), Some(10));
}

#[test]
fn an_engine_that_is_away_spends_no_attempt() {
    let mut web = Bench::restart("on-failure:1");
    web.after(1).sees(exited(1, 0, 1));
    web.component.restarting = Restarting::Asked;
    let moment = web.moment();
    let failed = Revived::Failed(RuntimeError::Unreachable {
        socket: String::new(),
        cause: String::new(),
    });
    assert!(web.component.revived(&failed, moment, 0.0).is_empty());
    assert_eq!(web.component.seen.backoff_attempt, 0);
    assert_eq!(web.is_due_in(), Some(1));
}

#[test]
fn a_new_container_begins_anew() {
    let mut web = Bench::restart("always");
    web.after(1).sees(exited(1, 0, 1));
    web.revives();
    let mut row = web.component.row.clone();
    row.container = ContainerId::new("next");
    web.component.replace_row(row, time(2));
    web.component.quiet = true;
    assert!(web.after(1).sees(running(2)).is_empty());
    assert_eq!(web.component.seen.restarts, 0);
    assert_eq!(web.component.seen.backoff_attempt, 0);
}

#[test]
fn a_crash_right_after_its_deployment_is_told_and_started() {
    let mut web = Bench::restart("always");
    let mut row = web.component.row.clone();
    row.container = ContainerId::new("next");
    web.component.replace_row(row, time(2));
    web.component.quiet = true;
    assert_eq!(web.after(3).sees(exited(1, 2, 3)), ["exited"]);
    assert_eq!(web.is_due_in(), Some(0));
}

#[test]
fn health_is_told_when_it_changes() {
    let mut web = Bench::with(|row| {
        row.spec.health = Some(Health {
            probe: Probe::Tcp(80),
            interval: Span::from_secs(10),
            timeout: Span::from_secs(3),
            retries: 3,
            start_period: Span::from_secs(0),
        });
    });
    assert_eq!(web.component.seen.health, Some(HealthWord::Starting));
    let moment = web.moment();
    let mut judge = |started, word| {
        words(
            &web.component
                .judged(Some(time(started)), word, "x", moment, BOUNDS),
        )
    };
    assert_eq!(judge(0, HealthWord::Healthy), ["healthy"]);
    assert!(judge(0, HealthWord::Healthy).is_empty());
    assert_eq!(judge(0, HealthWord::Unhealthy), ["unhealthy"]);
    // The verdict on another run says nothing.
    assert!(judge(-1, HealthWord::Healthy).is_empty());
    // Unhealthy is no reason to start anything.
    assert_eq!(web.component.restarting, Restarting::No);
    web.after(1).sees(exited(1, 0, 1));
    assert_eq!(web.component.seen.health, None);
    web.revives();
    assert_eq!(web.component.seen.health, Some(HealthWord::Starting));
}

#[test]
fn a_first_sight_has_passed_its_gate() {
    let mut web = row("shop/web");
    let seen = first_sight(&web, &running(3), time(5));
    assert_eq!(seen.state, ObservedState::Running);
    assert_eq!(seen.started_at, Some(time(3)));
    assert!(seen.drift.is_empty() && seen.health.is_none());
    web.spec.kind = Kind::Job {
        exit_codes: BTreeSet::from([0]),
    };
    let seen = first_sight(&web, &exited(0, 1, 2), time(5));
    assert_eq!(seen.state, ObservedState::Completed);
    assert_eq!(seen.exit_code, Some(0));
}

#[test]
fn a_crash_loop_flaps() {
    let mut web = Bench::restart("always");
    let bounds = Bounds {
        threshold: 3,
        window: Duration::from_secs(300),
    };
    let mut told = Vec::new();
    for _ in 0..3 {
        let since = web.seconds;
        web.after(1);
        let moment = web.moment();
        let end = exited(1, since, since + 1);
        told.extend(words(&web.component.look(&end, moment, 0.0, bounds)));
        web.revives();
    }
    assert_eq!(told.iter().filter(|word| *word == "flapping").count(), 1);
    let since = web.seconds;
    web.after(301);
    let moment = web.moment();
    let told = words(&web.component.look(&running(since), moment, 0.0, bounds));
    assert_eq!(told, ["flapping-over"]);
}
