//! What is found when an engine is met: nothing new, everything down, or nothing at all.

use mcp_spec::observed::ObservedState;

use super::rig::{PATIENCE, Rig};
use super::*;
use crate::registry::{ConditionRow, Judgement, StopOverride};

#[tokio::test]
async fn an_engine_that_goes_and_comes_is_told_and_nothing_follows() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.set_away(true);
    rig.event("engine-away").await;
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Unknown);
    rig.engine.set_away(false);
    rig.event("engine-back").await;
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Running);
    assert_eq!(rig.words().await, ["engine-away", "engine-back"]);
    assert!(rig.revived.lock().unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn an_engine_that_is_away_at_the_start_is_told() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.engine.set_away(true);
    drop(rig.watch.fresh().await);
    rig.launch();
    rig.event("engine-away").await;
    rig.engine.set_away(false);
    rig.event("engine-back").await;
    assert_eq!(rig.words().await, ["engine-away", "engine-back"]);
    rig.end().await;
}

#[tokio::test]
async fn an_engine_that_came_back_while_the_agent_was_away_is_told_once() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.engine.set_away(true);
    rig.event("engine-away").await;
    rig.end().await;
    rig.engine.set_away(false);
    for _ in 0..2 {
        rig.begins_anew().await;
        rig.event("engine-back").await;
        assert_eq!(rig.observed("shop/web").await.state, ObservedState::Running);
        rig.end().await;
    }
    assert_eq!(rig.words().await, ["engine-away", "engine-back"]);
}

#[tokio::test]
async fn an_engine_whose_alert_holds_and_that_answers_at_the_start_is_told() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    let holds = ConditionRow {
        service: String::new(),
        component: String::new(),
        condition: "engine".to_owned(),
        holds: true,
        last: "{}".to_owned(),
        told: None,
        told_at: None,
    };
    let judgement = Judgement {
        cursor: 7,
        conditions: vec![holds],
        ..Judgement::default()
    };
    rig.registry.record_judgement(judgement).await.unwrap();
    rig.begin().await;
    rig.event("engine-back").await;
    assert_eq!(rig.words().await, ["engine-back"]);
    rig.end().await;
}

#[tokio::test]
async fn after_a_reboot_what_should_run_is_started_dependencies_first() {
    let mut rig = Rig::new();
    rig.runs("shop/api", |row| {
        row.spec.depends_on = BTreeSet::from(["db".parse().unwrap()]);
    })
    .await;
    rig.runs("shop/db", |_| {}).await;
    rig.runs("shop/job", |row| {
        row.spec.kind = Kind::Job {
            exit_codes: BTreeSet::from([0]),
        };
    })
    .await;
    rig.runs("shop/old", |row| {
        row.stopped_by = Some(StopOverride {
            by: "kyle".to_owned(),
            at: time(0),
        });
    })
    .await;
    for id in ["api", "db", "job", "old"] {
        rig.engine.exit(id, 255, time(5), true);
    }
    rig.begin().await;
    rig.restarted(2).await;
    assert_eq!(rig.order(), ["shop/db", "shop/api"]);
    rig.end().await;
}

#[tokio::test]
async fn what_went_down_with_the_host_starts_in_order_and_without_a_pause() {
    let mut rig = Rig::new();
    rig.runs("shop/api", |row| {
        row.spec.depends_on = BTreeSet::from(["db".parse().unwrap()]);
    })
    .await;
    rig.runs("shop/db", |_| {}).await;
    rig.begin().await;
    // A series of the one that comes first has begun.
    rig.engine.exit("db", 1, time(5), false);
    rig.restarted(1).await;
    rig.reboot().await;
    rig.restarted(3).await;
    rig.reboot().await;
    rig.restarted(5).await;
    let order = rig.order();
    assert_eq!(order[1..], ["shop/db", "shop/api", "shop/db", "shop/api"]);
    let words = rig.words().await;
    assert!(
        !words.contains(&"restart-scheduled".to_owned()),
        "{words:?}"
    );
    // It goes on where it was.
    rig.engine.exit("db", 1, time(30), false);
    rig.event("restart-scheduled").await;
    rig.end().await;
}

#[tokio::test]
async fn a_store_that_was_emptied_is_told_with_all_that_it_took() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.runs("shop/db", |_| {}).await;
    rig.begin().await;
    rig.stored().await;
    rig.end().await;
    rig.engine.empty();
    rig.begins_anew().await;
    rig.event("engine-emptied").await;
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Absent);
    let lost = rig.registry.lost().await.unwrap();
    assert_eq!(lost.len(), 2);
    // A second time nothing is new.
    rig.engine.set_away(true);
    rig.event("engine-away").await;
    rig.engine.set_away(false);
    rig.event("engine-back").await;
    assert!(rig.watch.recorded(&rig.busy, PATIENCE).await);
    let words = rig.words().await;
    let told = words.iter().filter(|word| *word == "engine-emptied");
    assert_eq!(told.count(), 1, "{words:?}");
    assert_eq!(rig.registry.lost().await.unwrap(), lost);
    rig.end().await;
}

#[tokio::test]
async fn an_engine_that_shows_nothing_for_a_moment_has_lost_nothing() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    rig.end().await;
    let words = rig.words().await;
    let lists = rig.engine.calls("list");
    rig.engine.empty();
    let engine = rig.engine.clone();
    let comes_back = tokio::spawn(async move {
        let mut calls = engine.all_calls();
        while engine.calls("list") == lists {
            calls.changed().await.unwrap();
        }
        engine.put(live("web", 0));
    });
    rig.begins_anew().await;
    comes_back.await.unwrap();
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Running);
    assert_eq!(rig.words().await, words);
    assert!(rig.registry.lost().await.unwrap().is_empty());
    rig.end().await;
}

#[tokio::test]
async fn another_engine_has_lost_nothing() {
    let mut rig = Rig::new();
    rig.engine.set_store("/var/lib/containers");
    rig.runs("shop/web", |_| {}).await;
    rig.runs("shop/db", |_| {}).await;
    rig.begin().await;
    rig.stored().await;
    rig.end().await;
    rig.engine.empty();
    rig.engine.set_store("/home/mcp/containers");
    for _ in 0..2 {
        rig.begins_anew().await;
        assert_eq!(rig.observed("shop/web").await.state, ObservedState::Absent);
        assert!(rig.registry.lost().await.unwrap().is_empty());
        rig.end().await;
    }
    let words = rig.words().await;
    assert!(words.contains(&"engine-replaced".to_owned()), "{words:?}");
    assert!(!words.contains(&"engine-emptied".to_owned()), "{words:?}");
}

#[tokio::test]
async fn an_engine_that_comes_back_before_it_was_missed_is_met_as_well() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.runs("shop/db", |_| {}).await;
    rig.begin().await;
    rig.stored().await;
    // It is started by its socket: no call ever fails.
    rig.engine.empty();
    rig.engine.break_off();
    rig.event("engine-emptied").await;
    assert!(rig.watch.recorded(&rig.busy, PATIENCE).await);
    let words = rig.words().await;
    assert!(!words.contains(&"engine-away".to_owned()), "{words:?}");
    assert_eq!(rig.registry.lost().await.unwrap().len(), 2);
    rig.end().await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_changes_nothing() {
    let mut rig = Rig::new();
    rig.runs("shop/web", |_| {}).await;
    rig.begin().await;
    let lists = rig.engine.calls("list");
    rig.engine.break_off();
    let mut calls = rig.engine.all_calls();
    let listed = calls.wait_for(|_| rig.engine.calls("list") > lists);
    tokio::time::timeout(PATIENCE, listed)
        .await
        .unwrap()
        .unwrap();
    assert!(rig.watch.recorded(&rig.busy, PATIENCE).await);
    assert_eq!(rig.observed("shop/web").await.state, ObservedState::Running);
    assert!(rig.words().await.is_empty());
    // Deaths are answered as before.
    rig.engine.exit("web", 1, time(5), false);
    rig.event("restarted").await;
    rig.end().await;
}
