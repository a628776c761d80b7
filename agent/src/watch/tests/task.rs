//! The watching task, over a scripted engine and a real registry, in real time.

use std::sync::Arc;

use mcp_spec::component::{Health, Probe};
use mcp_spec::observed::ObservedState;
use tokio::time::timeout;

use super::rig::{PATIENCE, Rig};
use super::*;
use crate::clock::SystemClock;
use crate::registry::{HealthWord, StopOverride};
use crate::runtime::ExecOutcome;
use crate::watch::Watch;

#[tokio::test]
async fn what_runs_is_observed_without_events() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    let seen = rig.observed("shop/web").await;
    assert_eq!(seen.state, ObservedState::Running);
    assert_eq!(seen.started_at, Some(time(0)));
    assert!(seen.drift.is_empty());
    assert!(rig.words().await.is_empty());
    rig.end().await;
}

#[tokio::test]
async fn a_crash_is_told_and_the_container_started_again() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.exit("web", 137, time(5), false);
    let exited = rig.event("exited").await;
    assert_eq!(exited.data["exit_code"], 137);
    rig.event("restarted").await;
    let seen = rig.observed("shop/web").await;
    assert_eq!(seen.state, ObservedState::Running);
    assert_eq!((seen.restarts, seen.exit_code), (1, Some(137)));
    assert_eq!(rig.words().await, ["exited", "restarted"]);
    rig.end().await;
}

#[tokio::test]
async fn a_busy_service_gives_no_events_and_no_starts() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.runs("blog/app", |_| {}).await;
    rig.begin().await;
    let guard = rig.busy.enter("shop".parse().unwrap());
    rig.engine.exit("web", 1, time(5), false);
    rig.engine.exit("app", 1, time(5), false);
    let told = rig.event("restarted").await;
    assert_eq!(told.component.unwrap().as_str(), "app");
    assert!(rig.watch.recorded(&rig.busy, PATIENCE).await);
    assert_eq!(rig.revived.lock().unwrap().len(), 1);
    // Nobody put it back: once the deployment is over it is the watch's again.
    drop(guard);
    let ended = async {
        while rig.revived.lock().unwrap().len() < 2 {
            rig.registry.newest_event().changed().await.unwrap();
        }
    };
    timeout(PATIENCE, ended).await.unwrap();
    assert_eq!(rig.revived.lock().unwrap()[1].key.to_string(), "shop/web");
    rig.end().await;
}

#[tokio::test]
async fn a_deployment_is_no_news_of_the_watch() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    let guard = rig.busy.enter("shop".parse().unwrap());
    rig.engine.put(live("next", 9));
    rig.engine.event("next", "create");
    rig.engine.exit("web", 143, time(8), false);
    rig.engine.event("next", "start");
    rig.engine.destroy("web");
    let mut next = row("shop/web");
    next.container = ContainerId::new("next");
    rig.deploy(next).await;
    let sightings = rig.watch.sightings();
    sightings.saw(vec![live("next", 9)]);
    sightings.gone(vec![ContainerId::new("web")]);
    let inspected = rig.engine.calls("inspect");
    drop(guard);
    // Whoever asks right after the deployment gets what it led to.
    let seen = rig.observed("shop/web").await;
    assert_eq!(seen.started_at, Some(time(9)));
    assert_eq!(seen.state, ObservedState::Running);
    assert_eq!(rig.words().await, Vec::<String>::new());
    assert!(rig.engine.calls("inspect") <= inspected + 2);
    assert!(rig.revived.lock().unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn a_stopped_component_is_never_started() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    let guard = rig.busy.enter("shop".parse().unwrap());
    rig.engine.exit("web", 143, time(5), false);
    let stop = StopOverride {
        by: "kyle".to_owned(),
        at: time(5),
    };
    let keys = vec!["shop/web".parse().unwrap()];
    rig.registry
        .set_stop(keys, Some(stop), Vec::new())
        .await
        .unwrap();
    drop(guard);
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Stopped);
    assert!(rig.words().await.is_empty());
    assert!(rig.revived.lock().unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn a_removal_by_hand_is_drift_and_leads_to_nothing() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.destroy("web");
    rig.event("removed").await;
    let drift = rig.event("drift").await;
    assert_eq!(drift.data["drift"][0]["live"], "absent");
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Absent);
    assert!(rig.revived.lock().unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn a_resync_finds_what_no_event_told() {
    let mut rig = Rig::new();
    rig.resync = Span::from_millis(100);
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.exit("web", 1, time(5), true);
    rig.event("exited").await;
    rig.event("restarted").await;
    rig.end().await;
}

#[tokio::test]
async fn an_idle_agent_asks_the_engine_nothing() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    let mut calls = rig.engine.all_calls();
    calls.mark_unchanged();
    let asked = timeout(Duration::from_millis(300), calls.changed()).await;
    assert!(asked.is_err());
    rig.end().await;
}

#[tokio::test]
async fn a_failing_check_is_unhealthy_and_no_reason_to_restart() {
    let mut rig = Rig::new();
    rig.engine.set_exec(ExecOutcome::Exited {
        code: 0,
        output: String::new(),
    });
    rig.runs("shop/web", |row| {
        row.spec.health = Some(Health {
            probe: Probe::Cmd(vec!["/check".to_owned()]),
            interval: Span::from_millis(10),
            timeout: Span::from_secs(3),
            retries: 3,
            start_period: Span::from_secs(0),
        });
    })
    .await;
    rig.begin().await;
    rig.event("healthy").await;
    rig.engine.set_exec(ExecOutcome::Exited {
        code: 1,
        output: "no database".to_owned(),
    });
    let told = rig.event("unhealthy").await;
    assert!(told.message.contains("no database"), "{}", told.message);
    let seen = rig.observed("shop/web").await;
    assert_eq!(seen.health, Some(HealthWord::Unhealthy));
    assert_eq!(seen.state, ObservedState::Running);
    assert!(rig.revived.lock().unwrap().is_empty());
    // Its recovery is told as well, and each of them once.
    rig.engine.set_exec(ExecOutcome::Exited {
        code: 0,
        output: String::new(),
    });
    rig.told("healthy", 2).await;
    assert_eq!(rig.words().await, ["healthy", "unhealthy", "healthy"]);
    let seen = rig.observed("shop/web").await;
    assert_eq!(seen.health, Some(HealthWord::Healthy));
    rig.end().await;
}

#[tokio::test]
async fn a_scheduled_start_outlives_the_agent() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.exit("web", 1, time(5), false);
    rig.event("restarted").await;
    rig.engine.exit("web", 1, time(6), false);
    rig.event("restart-scheduled").await;
    let before = rig.observed("shop/web").await;
    assert!(before.next_restart_at.is_some());
    rig.end().await;
    rig.watch = Watch::new(Arc::new(rig.engine.clone()), Arc::new(SystemClock));
    rig.begin().await;
    let after = rig.observed("shop/web").await;
    assert_eq!(after.next_restart_at, before.next_restart_at);
    assert_eq!(after.backoff_attempt, 1);
    assert_eq!(rig.revived.lock().unwrap().len(), 1);
    rig.end().await;
}
