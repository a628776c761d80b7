//! The event log: order, following, pruning; and the audit.

use super::*;

async fn numbers(registry: &Registry, query: EventQuery) -> Vec<u64> {
    let rows = registry.events(query).await.unwrap();
    rows.into_iter().map(|row| row.seq).collect()
}

fn query() -> EventQuery {
    EventQuery {
        limit: 100,
        ..EventQuery::default()
    }
}

#[tokio::test]
async fn events_are_filtered_by_target_time_and_number() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let appended = ["", "shop", "shop/web", "shop/api", "blog/web", "shop/web"];
    let events = appended
        .iter()
        .zip(0..)
        .map(|(about, at)| event(at, about))
        .collect();
    assert_eq!(
        registry.append_events(events).await.unwrap(),
        [1, 2, 3, 4, 5, 6]
    );
    let targets = |targets: &[&str]| EventQuery {
        targets: targets
            .iter()
            .map(|target| target.parse().unwrap())
            .collect(),
        ..query()
    };
    assert_eq!(numbers(registry, query()).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(numbers(registry, targets(&["shop"])).await, [2, 3, 4, 6]);
    assert_eq!(numbers(registry, targets(&["shop/web"])).await, [3, 6]);
    assert_eq!(
        numbers(registry, targets(&["shop/api", "blog"])).await,
        [4, 5]
    );
    assert_eq!(
        numbers(
            registry,
            EventQuery {
                after: Some(4),
                ..query()
            }
        )
        .await,
        [5, 6]
    );
    assert_eq!(
        numbers(
            registry,
            EventQuery {
                since: Some(time(3)),
                ..query()
            }
        )
        .await,
        [4, 5, 6]
    );
    assert_eq!(
        numbers(
            registry,
            EventQuery {
                limit: 2,
                ..query()
            }
        )
        .await,
        [1, 2]
    );
    assert_eq!(
        numbers(
            registry,
            EventQuery {
                limit: 2,
                newest: true,
                ..query()
            }
        )
        .await,
        [5, 6]
    );
    let crowd = EventQuery {
        targets: vec!["shop".parse().unwrap(); 101],
        ..query()
    };
    assert!(matches!(
        registry.events(crowd).await,
        Err(RegistryError::TooLarge { .. })
    ));
}

#[tokio::test]
async fn an_event_is_kept_as_it_was_appended_within_bounds() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let mut appended = event(1, "shop/web");
    appended.revision = Some(commit(1));
    appended.data = serde_json::json!({"exit_code": 137});
    let long = NewEvent {
        message: "ü".repeat(3000),
        data: serde_json::json!({"log": "x".repeat(100_000)}),
        ..event(2, "")
    };
    registry
        .append_events(vec![appended.clone(), long])
        .await
        .unwrap();
    let rows = registry.events(query()).await.unwrap();
    assert_eq!(rows[0].data, appended.data);
    assert_eq!(rows[0].message, appended.message);
    assert_eq!((rows[0].at, rows[0].revision), (time(1), Some(commit(1))));
    assert_eq!(rows[1].message.len(), 4096);
    assert_eq!(rows[1].data, serde_json::json!({"omitted": "too large"}));
}

#[tokio::test]
async fn a_follower_that_resumes_loses_and_repeats_nothing() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 50;
    let fixture = Fixture::new();
    let registry = fixture.registry.clone();
    let follower = tokio::spawn(async move {
        let mut seen: Vec<u64> = Vec::new();
        // Every connection is lost after a few events: the next one starts from what was seen.
        while (seen.len() as u64) < WRITERS * EACH {
            let mut newest = registry.newest_event();
            let after = seen.last().copied().unwrap_or(0);
            newest.wait_for(|newest| *newest > after).await.unwrap();
            let limited = EventQuery {
                after: Some(after),
                limit: 7,
                ..EventQuery::default()
            };
            let rows = registry.events(limited).await.unwrap();
            assert!(!rows.is_empty(), "woken before the commit");
            seen.extend(rows.iter().map(|row| row.seq));
        }
        seen
    });
    let writers = (0..WRITERS).map(|_| {
        let registry = fixture.registry.clone();
        tokio::spawn(async move {
            for at in 0..EACH {
                let at = i64::try_from(at).unwrap();
                registry
                    .append_events(vec![event(at, "shop")])
                    .await
                    .unwrap();
                // A failing neighbour in the group must leave no gap that a follower waits for.
                let unknown = CommitDeployment::new(DeploymentId::from_bits(1));
                assert!(registry.commit_deployment(unknown).await.is_err());
            }
        })
    });
    futures_util::future::try_join_all(writers).await.unwrap();
    assert_eq!(
        follower.await.unwrap(),
        (1..=WRITERS * EACH).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn old_events_go_in_chunks_and_the_newest_stay() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    registry
        .append_events((0..50).map(|at| event(at, "")).collect())
        .await
        .unwrap();
    let bounds = PruneBounds {
        before: time(30),
        keep_newest: 10,
        keep_at_most: 1000,
        chunk: 12,
    };
    let mut chunks = Vec::new();
    loop {
        let gone = registry.prune(bounds).await.unwrap();
        if gone == 0 {
            break;
        }
        chunks.push(gone);
    }
    assert_eq!(chunks, [12, 12, 6]);
    assert_eq!(
        numbers(registry, query()).await,
        (31..=50).collect::<Vec<_>>()
    );
    // A clock ten years ahead does not empty the log.
    let jumped = PruneBounds {
        before: time(1_000_000_000),
        chunk: 100,
        ..bounds
    };
    assert_eq!(registry.prune(jumped).await.unwrap(), 10);
    let few = PruneBounds {
        before: time(0),
        keep_at_most: 4,
        ..jumped
    };
    assert_eq!(registry.prune(few).await.unwrap(), 6);
    assert_eq!(numbers(registry, query()).await, [47, 48, 49, 50]);
}

#[tokio::test]
async fn a_number_is_never_given_twice() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    registry
        .append_events((0..5).map(|at| event(at, "")).collect())
        .await
        .unwrap();
    let all = PruneBounds {
        before: time(100),
        keep_newest: 0,
        keep_at_most: 0,
        chunk: 100,
    };
    assert_eq!(registry.prune(all).await.unwrap(), 5);
    let again = Registry::open(&fixture.path()).unwrap();
    assert_eq!(*again.newest_event().borrow(), 5);
    assert_eq!(again.append_events(vec![event(1, "")]).await.unwrap(), [6]);
}

#[tokio::test]
async fn pruning_leaves_what_components_run_from() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.deploy(set(row("shop/web", "v0", 1))).await;
    for number in 0..150u64 {
        let api = row("shop/api", &format!("v{number}"), 10 + number);
        fixture.deploy(set(api)).await;
    }
    for open in registry.unfinished().await.unwrap() {
        let end = Finish {
            id: open.id,
            state: DeploymentState::Cleaned,
            outcome: Outcome::Deployed,
            error: None,
            records: vec![],
            quarantined: vec![],
            events: vec![],
            at: time(500),
        };
        registry.finish(end).await.unwrap();
    }
    let bounds = PruneBounds {
        before: time(1000),
        keep_newest: 10,
        keep_at_most: 10,
        chunk: 1000,
    };
    // 50 deployments, 50 history rows and their 50 specs but one, which web still runs.
    assert_eq!(registry.prune(bounds).await.unwrap(), 149);
    assert_eq!(registry.prune(bounds).await.unwrap(), 0);
    assert_eq!(registry.history(None, 1000).await.unwrap().len(), 101);
    assert_eq!(
        registry
            .history_of(key("shop/api"), 1000)
            .await
            .unwrap()
            .len(),
        100
    );
    assert_eq!(registry.deployed_all().await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_audit_tells_who_asked_for_what() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let line = |seq, result: &str| AuditRow {
        seq,
        at: time(1),
        who: "kyle".to_owned(),
        token: "jti".to_owned(),
        signer: "kyle SHA256:x".to_owned(),
        method: "Deploy".to_owned(),
        target: "shop".to_owned(),
        from: "127.0.0.1:1".to_owned(),
        request_id: "r".to_owned(),
        result: result.to_owned(),
    };
    registry.append_audit(line(0, "ok")).await.unwrap();
    registry.append_audit(line(0, "role")).await.unwrap();
    assert_eq!(
        registry.audit(10).await.unwrap(),
        [line(2, "role"), line(1, "ok")]
    );
}
