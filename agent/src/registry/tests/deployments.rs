//! Admission, journal and end of deployments.

use super::*;

pub(super) fn id(bits: u64) -> DeploymentId {
    DeploymentId::from_bits(bits)
}

fn step(bits: u64, name: &str, phase: StepPhase) -> StepRow {
    StepRow {
        deployment: id(bits),
        component: Some("web".parse().unwrap()),
        step: name.to_owned(),
        phase,
        data: "{}".to_owned(),
        at: time(1),
        seq: 0,
    }
}

pub(super) fn record(bits: u64, component: &str) -> ComponentRecord {
    ComponentRecord {
        deployment: id(bits),
        component: component.parse().unwrap(),
        action: "replace".to_owned(),
        outcome: "deployed".to_owned(),
        from_revision: None,
        to_revision: Some(commit(1)),
        image_digest: None,
        image_id: Some(image("v1")),
        duration_ms: 120,
        downtime_ms: 80,
        error: None,
        changes: vec![mcp_spec::diff::FieldChange {
            field: "image".to_owned(),
            from: None,
            to: Some("v1".to_owned()),
        }],
        log_tail: (0..250).map(|line| format!("line {line}")).collect(),
    }
}

pub(super) fn finish(bits: u64, seconds: i64) -> Finish {
    Finish {
        id: id(bits),
        state: DeploymentState::Cleaned,
        outcome: Outcome::Deployed,
        error: None,
        records: vec![],
        quarantined: vec![],
        events: vec![],
        at: time(seconds),
    }
}

#[test]
fn a_deployment_id_is_sixteen_digits() {
    assert_eq!(id(10).as_str(), "000000000000000a");
    assert_eq!(id(u64::MAX).short(), "fffffff");
    for bad in ["", "a", "000000000000000G", "00000000000000000"] {
        assert!(bad.parse::<DeploymentId>().is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_repeated_request_leads_to_the_first_deployment() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let first = deployment(&id(1), "r");
    assert_eq!(registry.admit(first.clone()).await.unwrap(), Admission::New);
    let again = deployment(&id(2), "r");
    assert_eq!(
        registry.admit(again.clone()).await.unwrap(),
        Admission::Existing(Box::new(first.clone()))
    );
    // The same request names a second service.
    let other = DeploymentRow {
        service: "blog".parse().unwrap(),
        ..deployment(&id(3), "r")
    };
    assert_eq!(registry.admit(other).await.unwrap(), Admission::New);
    // The same id with other bytes, for whatever service.
    let forged = DeploymentRow {
        service: "mail".parse().unwrap(),
        request_digest: digest("other"),
        ..deployment(&id(4), "r")
    };
    assert_eq!(
        registry.admit(forged.clone()).await.unwrap(),
        Admission::Conflict
    );
    assert_eq!(
        registry
            .deployments_of_request("r".to_owned())
            .await
            .unwrap()
            .len(),
        2
    );
    // A day later it is forgotten.
    let later = DeploymentRow {
        created_at: time(25 * 3600),
        ..forged
    };
    assert_eq!(registry.admit(later).await.unwrap(), Admission::New);
    // The agent's own deployments have no request.
    for bits in [5, 6] {
        assert_eq!(
            registry.admit(deployment(&id(bits), "")).await.unwrap(),
            Admission::New
        );
    }
}

#[tokio::test]
async fn a_deployment_that_heeds_a_stop_or_a_hold_does_not_cross_the_line() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.deploy(set(row("shop/web", "v1", 1))).await;
    fixture.deploy(set(row("shop/db", "v1", 2))).await;
    let auto = id(3);
    fixture.admit(&auto, Trigger::Auto).await;
    let hold = HoldRow {
        revision: commit(1),
        by: "kyle".to_owned(),
        at: time(1),
        reason: None,
    };
    let holds = vec![(key("shop/web"), Some(hold))];
    registry.set_hold(holds, Vec::new()).await.unwrap();
    let crosses_to = |of: &str, spec| {
        let heeded = vec![(key(of), spec)];
        registry.cross_line(auto.clone(), time(2), heeded)
    };
    let cross = |of: &str| crosses_to(of, Some(spec("v2").digest()));
    assert!(!cross("shop/web").await.unwrap());
    assert!(!crosses_to("shop/web", None).await.unwrap());
    let Lookup::One(kept) = registry.deployment(auto.to_string()).await.unwrap() else {
        panic!("the deployment is there");
    };
    assert_eq!(
        (kept.state, kept.line_at),
        (DeploymentState::Admitted, None)
    );
    let stop = StopOverride {
        by: "kyle".to_owned(),
        at: time(3),
    };
    let keys = vec![key("shop/db")];
    registry
        .set_stop(keys.clone(), Some(stop), Vec::new())
        .await
        .unwrap();
    assert!(!cross("shop/db").await.unwrap());
    let same = Some(spec("v1").digest());
    assert!(!crosses_to("shop/db", same).await.unwrap());
    registry.set_stop(keys, None, Vec::new()).await.unwrap();
    assert!(cross("shop/db").await.unwrap());
    // What is held is brought back as it is held.
    assert!(crosses_to("shop/web", same).await.unwrap());
}

#[tokio::test]
async fn other_requests_are_answered_once() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let begin = |bytes: &str| {
        registry.begin_request("r".to_owned(), "Hold".to_owned(), digest(bytes), time(0))
    };
    assert_eq!(begin("a").await.unwrap(), RequestAdmission::New);
    assert_eq!(begin("a").await.unwrap(), RequestAdmission::Repeated(None));
    let answer = "done".to_owned();
    registry
        .answer_request("r".to_owned(), "Hold".to_owned(), answer.clone())
        .await
        .unwrap();
    assert_eq!(
        begin("a").await.unwrap(),
        RequestAdmission::Repeated(Some(answer))
    );
    assert_eq!(begin("b").await.unwrap(), RequestAdmission::Conflict);
    // Two services of one request, and a deployment with the id of another call.
    assert_eq!(
        registry.admit(deployment(&id(1), "r")).await.unwrap(),
        Admission::Conflict
    );
}

#[tokio::test]
async fn the_journal_keeps_its_order() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.admit(&id(1), Trigger::Deploy).await;
    fixture.admit(&id(2), Trigger::Deploy).await;
    registry
        .journal(vec![
            step(1, "create", StepPhase::Begun),
            step(2, "create", StepPhase::Begun),
            step(1, "create", StepPhase::Done),
        ])
        .await
        .unwrap();
    let line = vec![step(1, "stop", StepPhase::Begun)];
    registry
        .set_state(id(1), DeploymentState::Switching, Some(time(7)), line)
        .await
        .unwrap();
    registry
        .set_state(id(1), DeploymentState::Healthy, Some(time(9)), vec![])
        .await
        .unwrap();
    let steps = registry.steps(id(1)).await.unwrap();
    let told: Vec<_> = steps
        .iter()
        .map(|s| (s.seq, s.step.as_str(), s.phase))
        .collect();
    assert_eq!(
        told,
        [
            (1, "create", StepPhase::Begun),
            (2, "create", StepPhase::Done),
            (3, "stop", StepPhase::Begun)
        ]
    );
    let row = registry
        .deployment("0000000000000001".to_owned())
        .await
        .unwrap()
        .one()
        .unwrap();
    assert_eq!(
        (row.state, row.line_at),
        (DeploymentState::Healthy, Some(time(7)))
    );
    assert_eq!(
        registry
            .journal(vec![step(9, "create", StepPhase::Begun)])
            .await,
        Err(RegistryError::NoSuchDeployment { id: id(9) })
    );
    let mut large = step(1, "create", StepPhase::Begun);
    large.data = "x".repeat(300_000);
    assert!(matches!(
        registry.journal(vec![large]).await,
        Err(RegistryError::TooLarge { .. })
    ));
}

#[tokio::test]
async fn a_finished_deployment_is_no_longer_unfinished() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.admit(&id(1), Trigger::Deploy).await;
    fixture.admit(&id(2), Trigger::Stop).await;
    registry
        .set_plan(
            id(1),
            Some(commit(2)),
            Some("ada".to_owned()),
            "{\"a\":1}".to_owned(),
            "q".to_owned(),
        )
        .await
        .unwrap();
    let open = registry.unfinished().await.unwrap();
    assert_eq!(
        open.iter().map(|row| row.id.clone()).collect::<Vec<_>>(),
        [id(1), id(2)]
    );
    assert_eq!(
        (open[0].state, open[0].plan_id.as_str()),
        (DeploymentState::Planned, "q")
    );
    let end = Finish {
        records: vec![record(1, "web"), record(1, "api")],
        events: vec![event(2, "shop/web")],
        error: Some("x".repeat(5000)),
        ..finish(1, 5)
    };
    registry.finish(end.clone()).await.unwrap();
    let told = registry.events(EventQuery {
        limit: 10,
        ..EventQuery::default()
    });
    assert_eq!(told.await.unwrap()[0].message, "shop/web at 2");
    registry.finish(end).await.unwrap();
    assert_eq!(registry.unfinished().await.unwrap().len(), 1);
    let ended = registry
        .deployment("0000000000000001".to_owned())
        .await
        .unwrap()
        .one()
        .unwrap();
    assert_eq!(ended.outcome, Some(Outcome::Deployed));
    assert_eq!(ended.finished_at, Some(time(5)));
    assert_eq!(ended.error.unwrap().len(), 4096);
    let records = registry.records(vec![id(1), id(2)]).await.unwrap();
    assert_eq!(records[&id(2)], []);
    let web = &records[&id(1)][0];
    assert_eq!(web.component.as_str(), "web");
    assert_eq!(
        (web.log_tail.len(), web.log_tail[0].as_str()),
        (200, "line 50")
    );
    assert_eq!(web.changes, record(1, "web").changes);
    assert!(registry.finish(finish(9, 1)).await.is_err());
}

#[tokio::test]
async fn history_is_newest_first_and_knows_components() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    for bits in 1..=3 {
        fixture.admit(&id(bits), Trigger::Deploy).await;
    }
    let blog = DeploymentRow {
        service: "blog".parse().unwrap(),
        ..deployment(&id(4), "")
    };
    registry.admit(blog).await.unwrap();
    let alone = DeploymentRow {
        component: Some("api".parse().unwrap()),
        ..deployment(&id(5), "")
    };
    registry.admit(alone).await.unwrap();
    registry
        .finish(Finish {
            records: vec![record(2, "api")],
            ..finish(2, 1)
        })
        .await
        .unwrap();
    for (target, expected) in [
        (None, vec![5, 4, 3, 2, 1]),
        (Some("shop"), vec![5, 3, 2, 1]),
        (Some("shop/api"), vec![5, 2]),
        (Some("shop/none"), vec![]),
    ] {
        let target = target.map(|text: &str| text.parse().unwrap());
        let rows = registry.history(target, 100).await.unwrap();
        let ids: Vec<_> = rows.into_iter().map(|row| row.id).collect();
        assert_eq!(ids, expected.into_iter().map(id).collect::<Vec<_>>());
    }
    assert_eq!(registry.history(None, 2).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_deployment_is_found_by_the_start_of_its_id() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    for bits in [
        0xaaaa_0000_0000_0001,
        0xaaaa_0000_0000_0002,
        0xffff_0000_0000_0000,
    ] {
        fixture.admit(&id(bits), Trigger::Deploy).await;
    }
    let found = |prefix: &str| registry.deployment(prefix.to_owned());
    assert_eq!(
        found("ffff").await.unwrap().one().unwrap().id,
        id(0xffff_0000_0000_0000)
    );
    assert!(matches!(found("aaaa").await.unwrap(), Lookup::Ambiguous(ids) if ids.len() == 2));
    for missing in ["", "b", "%", "ffffg"] {
        assert_eq!(found(missing).await.unwrap(), Lookup::Missing, "{missing}");
    }
}
