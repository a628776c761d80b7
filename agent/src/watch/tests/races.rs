//! Processes that end, are replaced, or are somebody else's between two looks.

use mcp_spec::observed::{ContainerState, ObservedState};
use tokio::time::{Instant, timeout};

use super::rig::{PATIENCE, Process, Rig};
use super::*;

#[tokio::test]
async fn a_killed_process_is_noticed_without_a_word_of_the_engine() {
    let mut rig = Rig::new();
    let mut process = Process::begin();
    rig.engine.set_shares_pids(true);
    rig.runs("shop/web", |_| {}).await;
    let pid = process.pid();
    rig.engine.change("web", |live| {
        live.state = ContainerState::Running { pid: Some(pid) };
    });
    let mut calls = rig.engine.all_calls();
    rig.begin().await;
    // The pidfd stands once the engine was asked again whether the process is the container's: its
    // cgroup does not say so here.
    let stands = calls.wait_for(|_| rig.engine.calls("inspect") >= 2);
    timeout(PATIENCE, stands).await.unwrap().unwrap();
    tokio::task::yield_now().await;
    let mut changes = rig.watch.changes();
    changes.mark_unchanged();
    let began = Instant::now();
    rig.engine.lag("web", 3);
    rig.engine.exit("web", 137, time(5), true);
    process.kill();
    timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    assert!(
        !rig.watch.current().containers[&ContainerId::new("web")]
            .state
            .is_running()
    );
    assert_eq!(rig.event("exited").await.data["exit_code"], 137);
    rig.event("restarted").await;
    rig.end().await;
}

#[tokio::test]
async fn a_process_that_ended_before_it_could_be_watched_is_asked_for() {
    let mut rig = Rig::new();
    rig.engine.set_shares_pids(true);
    rig.runs("shop/web", |row| row.spec.restart = Restart::No)
        .await;
    let mut process = Process::begin();
    let pid = process.pid();
    process.kill();
    runs_as(&rig, pid, 0);
    // The engine goes on saying that it runs, and sends no event.
    rig.engine.lag("web", 3);
    rig.engine.exit("web", 7, time(5), true);
    rig.begin().await;
    let exited = rig.event("exited").await;
    assert_eq!(exited.data["exit_code"], 7, "{exited:?}");
    rig.end().await;
}

#[tokio::test]
async fn a_process_id_that_is_somebody_elses_by_now_tells_nothing() {
    let mut rig = Rig::new();
    rig.engine.set_shares_pids(true);
    rig.runs("shop/web", |row| row.spec.restart = Restart::No)
        .await;
    let mut stranger = Process::begin();
    runs_as(&rig, stranger.pid(), 0);
    // Only the first look says that it runs: by the second the process id was given to another.
    rig.engine.lag("web", 1);
    rig.engine.exit("web", 3, time(5), true);
    rig.begin().await;
    let exited = rig.event("exited").await;
    assert_eq!(exited.data["exit_code"], 3, "{exited:?}");
    let words = rig.words().await;
    stranger.kill();
    rig.watch.fresh().await.unwrap();
    assert!(rig.watch.recorded(&rig.busy, PATIENCE).await);
    assert_eq!(rig.words().await, words);
    rig.end().await;
}

#[tokio::test]
async fn a_container_that_somebody_else_restarted_is_watched_as_its_new_process() {
    let mut rig = Rig::new();
    rig.engine.set_shares_pids(true);
    rig.runs("shop/web", |row| row.spec.restart = Restart::No)
        .await;
    let (mut first, mut second) = (Process::begin(), Process::begin());
    runs_as(&rig, first.pid(), 0);
    rig.begin().await;
    // It runs again before anybody hears of the death.
    runs_as(&rig, second.pid(), 7);
    first.kill();
    let told = rig.event("restarted").await;
    assert_eq!(told.reason, "outside");
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Running);
    assert!(rig.revived.lock().unwrap().is_empty());
    // The new process is the one whose death counts.
    second.kill();
    rig.engine.exit("web", 5, time(9), true);
    let exited = rig.event("exited").await;
    assert_eq!(exited.data["exit_code"], 5, "{exited:?}");
    rig.end().await;
}

/// Says that the container's first process is `pid`, since so many seconds.
fn runs_as(rig: &Rig, pid: u32, since: i64) {
    rig.engine.change("web", |live| {
        live.state = ContainerState::Running { pid: Some(pid) };
        live.started_at = Some(time(since));
    });
}
