//! The current snapshot and its freshness.

use std::sync::Arc;

use mcp_spec::observed::{ContainerState, Observed};

use super::*;
use crate::clock::SystemClock;
use crate::watch::process::Death;
use crate::watch::{EngineState, Watch};

fn watch(engine: &ScriptedEngine) -> Watch {
    Watch::new(Arc::new(engine.clone()), Arc::new(SystemClock))
}

fn id(text: &str) -> ContainerId {
    ContainerId::new(text)
}

#[tokio::test]
async fn before_the_engine_answers_everything_is_unknown() {
    let watch = watch(&ScriptedEngine::default());
    assert_eq!(watch.current().engine, EngineState::NeverSeen);
    assert!(matches!(
        watch.current().observed(&row("shop/web")),
        Observed::Unknown { .. }
    ));
}

#[tokio::test]
async fn an_engine_that_is_away_makes_nothing_absent() {
    let engine = ScriptedEngine::default();
    engine.put(live("web", 0));
    let watch = watch(&engine);
    watch.fresh().await.unwrap();
    assert_eq!(watch.current().observed(&row("shop/api")), Observed::Absent);
    engine.set_away(true);
    assert!(watch.fresh().await.is_err());
    for key in ["shop/web", "shop/api"] {
        assert!(matches!(
            watch.current().observed(&row(key)),
            Observed::Unknown { .. }
        ));
    }
    engine.set_away(false);
    watch.fresh().await.unwrap();
    assert!(matches!(
        watch.current().observed(&row("shop/web")),
        Observed::Present(_)
    ));
}

#[tokio::test]
async fn a_query_inspects_only_managed_containers_that_changed() {
    let engine = ScriptedEngine::default();
    engine.put(live("web", 0));
    engine.put(live("api", 0));
    engine.put(ScriptedEngine::container("stranger", None, time(0)));
    let watch = watch(&engine);
    let first = watch.fresh().await.unwrap();
    assert_eq!(engine.calls("inspect"), 2);
    assert!(!first.containers[&id("web")].fields.is_empty());
    assert!(first.containers[&id("stranger")].fields.is_empty());
    watch.fresh().await.unwrap();
    assert_eq!((engine.calls("list"), engine.calls("inspect")), (2, 2));
    engine.exit("web", 1, time(5), true);
    let snapshot = watch.fresh().await.unwrap();
    assert_eq!(engine.calls("inspect"), 3);
    assert_eq!(
        snapshot.containers[&id("web")].state,
        ContainerState::Exited {
            code: 1,
            oom: false
        }
    );
    watch.inspected().await.unwrap();
    assert_eq!(engine.calls("inspect"), 5);
}

#[tokio::test]
async fn callers_at_the_same_time_share_a_query() {
    let engine = ScriptedEngine::default();
    engine.put(live("web", 0));
    let watch = watch(&engine);
    let all = futures_util::future::join_all((0..20).map(|_| watch.fresh())).await;
    assert!(all.iter().all(Result::is_ok));
    assert!(engine.calls("list") <= 2, "{}", engine.calls("list"));
    // One that comes later sees what happened since.
    engine.destroy("web");
    assert!(watch.fresh().await.unwrap().containers.is_empty());
}

#[tokio::test]
async fn a_snapshot_is_usable_unasked_only_while_events_flow_and_it_is_young() {
    let engine = ScriptedEngine::default();
    engine.put(live("web", 0));
    let watch = watch(&engine);
    watch.usable(60 * SECOND).await.unwrap();
    watch.usable(60 * SECOND).await.unwrap();
    assert_eq!(engine.calls("list"), 2);
    watch.set_events_flow(true);
    watch.usable(60 * SECOND).await.unwrap();
    assert_eq!(engine.calls("list"), 2);
    watch.usable(Duration::ZERO).await.unwrap();
    assert_eq!(engine.calls("list"), 3);
    // A hint that nobody has followed yet is followed before anyone decides by the snapshot.
    engine.exit("web", 1, time(5), true);
    watch.suspect(id("web"));
    let snapshot = watch.usable(60 * SECOND).await.unwrap();
    assert!(!snapshot.containers[&id("web")].state.is_running());
    assert_eq!(engine.calls("list"), 3);
}

#[tokio::test]
async fn a_death_overrides_the_engine_for_that_run_alone() {
    let engine = ScriptedEngine::default();
    engine.put(live("web", 7));
    let watch = watch(&engine);
    watch.fresh().await.unwrap();
    let runs = |watch: &Watch| watch.current().containers[&id("web")].state.is_running();
    // An earlier run's death says nothing of this one.
    watch.died(&id("web"), Some(time(6)), Death::default());
    assert!(runs(&watch));
    watch.died(&id("web"), Some(time(7)), Death::default());
    assert!(!runs(&watch));
    // The engine has not noticed yet.
    watch.look_at(&id("web")).await.unwrap();
    assert!(!runs(&watch));
    watch.fresh().await.unwrap();
    assert!(!runs(&watch));
    engine.change("web", |live| live.started_at = Some(time(8)));
    watch.fresh().await.unwrap();
    assert!(runs(&watch));
}

#[tokio::test]
async fn memory_that_ran_out_is_told_where_the_engine_does_not() {
    let engine = ScriptedEngine::default();
    engine.put(live("web", 7));
    let watch = watch(&engine);
    watch.fresh().await.unwrap();
    let state = |watch: &Watch| watch.current().containers[&id("web")].state.clone();
    let starved = Death {
        memory_ran_out: true,
    };
    watch.died(&id("web"), Some(time(7)), starved);
    engine.exit("web", 137, time(8), true);
    watch.look_at(&id("web")).await.unwrap();
    let ended = ContainerState::Exited {
        code: 137,
        oom: true,
    };
    assert_eq!(state(&watch), ended);
    watch.fresh().await.unwrap();
    assert_eq!(state(&watch), ended, "a list says no more than it knows");
    // The next run has memory of its own.
    engine.put(live("web", 9));
    watch.look_at(&id("web")).await.unwrap();
    watch.died(&id("web"), Some(time(9)), Death::default());
    engine.exit("web", 137, time(10), true);
    watch.look_at(&id("web")).await.unwrap();
    let killed = ContainerState::Exited {
        code: 137,
        oom: false,
    };
    assert_eq!(state(&watch), killed);
}

#[tokio::test]
async fn an_answer_clears_no_suspicion_that_is_younger_than_its_question() {
    let engine = ScriptedEngine::default();
    engine.put(live("web", 0));
    let watch = watch(&engine);
    watch.fresh().await.unwrap();
    watch.set_events_flow(true);
    // The engine answers with what it knew when it was asked; it removes the container meanwhile.
    engine.lag("web", 1);
    let web = id("web");
    let (looked, ()) = tokio::join!(watch.look_at(&web), async {
        engine.destroy("web");
        watch.suspect(web.clone());
    });
    assert!(looked.unwrap().is_some(), "the answer is the old one");
    assert!(watch.has_suspects());
    let snapshot = watch.usable(60 * SECOND).await.unwrap();
    assert!(!snapshot.containers.contains_key(&web));
    assert!(!watch.has_suspects());
    assert_eq!(engine.calls("list"), 1);
}

#[tokio::test]
async fn what_a_deployment_saw_is_known_at_once() {
    let engine = ScriptedEngine::default();
    let watch = watch(&engine);
    watch.fresh().await.unwrap();
    let sightings = watch.sightings();
    sightings.saw(vec![live("web", 0)]);
    assert!(watch.current().containers.contains_key(&id("web")));
    sightings.gone(vec![id("web")]);
    assert!(watch.current().containers.is_empty());
    assert_eq!(engine.calls("inspect"), 0);
}
