//! How the agent's own reconciling fares.

use super::deployments::{finish, id, record};
use super::*;

fn pause(service: &str) -> PauseRow {
    PauseRow {
        service: service.parse().unwrap(),
        wanted: Digest::of(b"wanted"),
        failures: 3,
        pause_ms: 40_000,
        at: time(1),
        cause: "no such image".to_owned(),
    }
}

fn repairs(of: &str, contested: bool) -> RepairsRow {
    RepairsRow {
        key: key(of),
        wanted: Digest::of(b"wanted"),
        times: vec![time(1), time(2)],
        contested,
        pause_ms: 10_000,
        at: time(2),
        cause: "container missing".to_owned(),
    }
}

async fn events(registry: &Registry, kind: &str) -> usize {
    let query = EventQuery {
        limit: 100,
        ..EventQuery::default()
    };
    let events = registry.events(query).await.unwrap();
    events.iter().filter(|event| event.kind == kind).count()
}

#[tokio::test]
async fn what_is_remembered_is_there_until_it_is_forgotten() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let first = Reconciled {
        pauses: vec![pause("shop"), pause("bank")],
        repairs: vec![repairs("shop/web", true), repairs("shop/api", false)],
        ..Reconciled::default()
    };
    registry.record_reconciled(first).await.unwrap();
    let (pauses, all) = registry.reconciling().await.unwrap();
    assert_eq!(pauses, [pause("bank"), pause("shop")]);
    assert_eq!(all, [repairs("shop/api", false), repairs("shop/web", true)]);
    assert_eq!(
        registry.contested().await.unwrap(),
        [repairs("shop/web", true)]
    );
    let mut later = Reconciled {
        pauses: vec![pause("bank")],
        ..Reconciled::default()
    };
    later.extend(Reconciled {
        no_pauses: vec!["bank".parse().unwrap()],
        no_repairs: vec![key("shop/web")],
        ..Reconciled::default()
    });
    registry.record_reconciled(later).await.unwrap();
    let (pauses, all) = registry.reconciling().await.unwrap();
    assert_eq!((pauses.len(), all.len()), (1, 1));
}

#[tokio::test]
async fn an_operators_deployment_that_went_well_begins_anew_and_the_agents_own_does_not() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let first = Reconciled {
        pauses: vec![pause("shop"), pause("bank")],
        repairs: vec![repairs("shop/web", true), repairs("shop/api", true)],
        ..Reconciled::default()
    };
    registry.record_reconciled(first).await.unwrap();
    let end = async |bits: u64, trigger, outcome| {
        let id = id(bits);
        fixture.admit(&id, trigger).await;
        let finish = Finish {
            records: vec![record(bits, "web")],
            outcome,
            ..finish(bits, 9)
        };
        registry.finish(finish).await.unwrap();
        let (pauses, repairs) = registry.reconciling().await.unwrap();
        (pauses.len(), repairs.len())
    };
    assert_eq!(end(1, Trigger::Auto, Outcome::Deployed).await, (2, 2));
    assert_eq!(end(2, Trigger::Deploy, Outcome::RolledBack).await, (2, 2));
    assert_eq!(events(registry, "contested-over").await, 0);
    assert_eq!(end(3, Trigger::Deploy, Outcome::Deployed).await, (1, 1));
    assert_eq!(events(registry, "contested-over").await, 1);
    assert_eq!(end(4, Trigger::Stop, Outcome::Deployed).await, (1, 1));
    assert_eq!(events(registry, "contested-over").await, 1);
}

#[tokio::test]
async fn the_commit_of_a_deployment_leaves_what_flapping_was_seen() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.deploy(set(row("shop/web", "v1", 1))).await;
    let flapping = FlappingRow {
        changes: vec![time(5), time(6)],
        flaps: true,
    };
    let seen = ObservedRow {
        flapping: Some(flapping.clone()),
        ..observed("shop/web", ObservedState::Running)
    };
    registry
        .record_observed(vec![seen.clone()], vec![])
        .await
        .unwrap();
    let silent = ObservedRow {
        flapping: None,
        ..seen
    };
    registry
        .record_observed(vec![silent], vec![])
        .await
        .unwrap();
    let kept = registry.observed(key("shop/web")).await.unwrap().unwrap();
    assert_eq!(kept.flapping, Some(flapping));
}
