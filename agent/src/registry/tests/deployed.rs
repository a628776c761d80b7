//! What is deployed, its overrides, and its history.

use super::*;

#[tokio::test]
async fn a_committed_component_reads_back_whole() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let mut web = row("shop/web", "v1", 1);
    web.image_digest = Some(digest("pulled"));
    web.stopped_by = Some(StopOverride {
        by: "kyle".to_owned(),
        at: time(5),
    });
    web.hold = Some(HoldRow {
        revision: commit(1),
        by: "kyle".to_owned(),
        at: time(6),
        reason: Some("holiday".to_owned()),
    });
    web.history = fixture.deploy(set(web.clone())).await;
    assert!(web.history > 0);
    assert_eq!(
        registry.deployed(key("shop/web")).await.unwrap(),
        Some(web.clone())
    );
    assert_eq!(web.wanted(), DesiredState::Stopped);
    assert_eq!(registry.deployed_all().await.unwrap(), [web.clone()]);
    assert_eq!(
        registry.deployed_of("shop".parse().unwrap()).await.unwrap(),
        [web]
    );
    assert_eq!(registry.deployed(key("shop/api")).await.unwrap(), None);
}

#[tokio::test]
async fn settings_are_the_services_whichever_component_is_deployed() {
    let fixture = Fixture::new();
    fixture.deploy(set(row("shop/db", "v1", 1))).await;
    fixture.deploy(set(row("blog/web", "v1", 2))).await;
    let mut web = row("shop/web", "v1", 3);
    web.settings.active = false;
    fixture.deploy(set(web)).await;
    let rows = fixture.registry.deployed_all().await.unwrap();
    let active = |of: &str| {
        rows.iter()
            .find(|row| row.key == key(of))
            .unwrap()
            .settings
            .active
    };
    assert!(!active("shop/db") && !active("shop/web"));
    assert!(active("blog/web"));
}

#[tokio::test]
async fn a_commit_is_whole_or_not_at_all() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.deploy(set(row("shop/web", "v1", 1))).await;
    let id = DeploymentId::from_bits(2);
    fixture.admit(&id, Trigger::Deploy).await;
    let mut commit = CommitDeployment::new(id.clone());
    commit.set.push(set(row("shop/web", "v2", 2)));
    commit.events.push(event(1, "shop/web"));
    commit.holds.push((key("shop/none"), None));
    assert_eq!(
        registry.commit_deployment(commit).await,
        Err(RegistryError::NotDeployed {
            key: key("shop/none")
        })
    );
    let web = registry.deployed(key("shop/web")).await.unwrap().unwrap();
    assert_eq!(web.image_id, image("v1"));
    assert_eq!(*registry.newest_event().borrow(), 0);
    let unknown = CommitDeployment::new(DeploymentId::from_bits(9));
    assert_eq!(
        registry.commit_deployment(unknown).await,
        Err(RegistryError::NoSuchDeployment {
            id: DeploymentId::from_bits(9)
        })
    );
}

#[tokio::test]
async fn an_unchanged_component_only_moves_on() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.deploy(set(row("shop/web", "v1", 1))).await;
    let before = registry.deployed(key("shop/web")).await.unwrap().unwrap();
    let id = DeploymentId::from_bits(2);
    fixture.admit(&id, Trigger::Deploy).await;
    let mut advance = CommitDeployment::new(id);
    let mut settings = before.settings;
    settings.reconcile = Reconcile::Auto;
    advance.advanced.push(Advanced {
        key: key("shop/web"),
        revision: commit(2),
        desired: DesiredState::Stopped,
        settings,
    });
    assert_eq!(
        registry.commit_deployment(advance).await.unwrap(),
        Vec::<i64>::new()
    );
    let expected = DeployedRow {
        revision: commit(2),
        desired: DesiredState::Stopped,
        settings,
        ..before
    };
    assert_eq!(
        registry.deployed(key("shop/web")).await.unwrap(),
        Some(expected)
    );
    assert_eq!(
        registry
            .history_of(key("shop/web"), 10)
            .await
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn stops_and_holds_are_set_and_cleared_together() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.deploy(set(row("shop/web", "v1", 1))).await;
    fixture.deploy(set(row("shop/api", "v1", 2))).await;
    let stop = StopOverride {
        by: "kyle".to_owned(),
        at: time(9),
    };
    let both = vec![key("shop/web"), key("shop/api")];
    registry
        .set_stop(both.clone(), Some(stop.clone()), vec![])
        .await
        .unwrap();
    for row in registry.deployed_all().await.unwrap() {
        assert_eq!(row.stopped_by, Some(stop.clone()));
    }
    registry.set_stop(both, None, vec![]).await.unwrap();
    let partly = vec![key("shop/web"), key("shop/none")];
    assert!(registry.set_stop(partly, Some(stop), vec![]).await.is_err());
    let hold = HoldRow {
        revision: commit(1),
        by: "kyle".to_owned(),
        at: time(9),
        reason: None,
    };
    let holds = vec![(key("shop/web"), Some(hold.clone()))];
    registry.set_hold(holds, vec![]).await.unwrap();
    let rows = registry.deployed_all().await.unwrap();
    assert!(rows.iter().all(|row| row.stopped_by.is_none()));
    assert_eq!(rows[1].hold, Some(hold));
    assert_eq!(rows[0].hold, None);
}

#[tokio::test]
async fn rollback_again_goes_further_back() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let web = || key("shop/web");
    assert_eq!(registry.rollback_target(web()).await.unwrap(), None);
    fixture.deploy(set(row("shop/web", "v1", 1))).await;
    assert_eq!(registry.rollback_target(web()).await.unwrap(), None);
    fixture.deploy(set(row("shop/web", "v2", 2))).await;
    // The same spec once more is nothing to go back to.
    fixture.deploy(set(row("shop/web", "v2", 3))).await;
    fixture.deploy(set(row("shop/web", "v3", 4))).await;

    let second = registry.rollback_target(web()).await.unwrap().unwrap();
    assert_eq!(
        (second.spec.clone(), second.deployment.as_str()),
        (spec("v2"), "0000000000000003")
    );
    let restored = SetDeployed {
        row: row("shop/web", "v2", 5),
        history: HistoryEntry::Restores(second.id),
    };
    fixture.deploy(restored).await;
    let first = registry.rollback_target(web()).await.unwrap().unwrap();
    assert_eq!(first.spec, spec("v1"));
    let restored = SetDeployed {
        row: row("shop/web", "v1", 6),
        history: HistoryEntry::Restores(first.id),
    };
    fixture.deploy(restored).await;
    assert_eq!(registry.rollback_target(web()).await.unwrap(), None);

    // A new deployment goes back to what ran right before it.
    fixture.deploy(set(row("shop/web", "v4", 7))).await;
    let target = registry.rollback_target(web()).await.unwrap().unwrap();
    assert_eq!(target.spec, spec("v1"));
}

#[tokio::test]
async fn a_spec_keeps_the_image_that_it_ran_last() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let web = || key("shop/web");
    let mut first = row("shop/web", "v1", 1);
    let spec_digest = first.spec_digest;
    fixture.deploy(set(first.clone())).await;
    first.image_id = image("v1 rebuilt");
    first.image_digest = Some(digest("v1 rebuilt"));
    first.deployment = DeploymentId::from_bits(2);
    first.revision = commit(2);
    fixture.deploy(set(first)).await;
    assert_eq!(
        registry.image_for_spec(web(), spec_digest).await.unwrap(),
        Some((image("v1 rebuilt"), Some(digest("v1 rebuilt"))))
    );
    assert_eq!(
        registry
            .image_for_spec(web(), digest("none"))
            .await
            .unwrap(),
        None
    );
    let at = registry
        .rollback_target_at(web(), commit(1))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(at.image_id, image("v1"));
}

#[tokio::test]
async fn images_are_kept_while_they_may_be_needed() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.deploy(set(row("shop/web", "good", 1))).await;
    // Six builds of one spec: its last-good image lies beyond the last five.
    for number in 0..6 {
        let mut web = row("shop/web", "v2", 10 + number);
        web.image_id = image(&format!("build {number}"));
        fixture.deploy(set(web)).await;
    }
    fixture.deploy(set(row("shop/gone", "g1", 20))).await;
    fixture.deploy(set(row("shop/gone", "g2", 21))).await;
    fixture.remove(22, "shop/gone", Trigger::Deploy).await;
    fixture.deploy(set(row("shop/purged", "p1", 23))).await;
    fixture.remove(24, "shop/purged", Trigger::Purge).await;

    let mut expected: Vec<_> = (1..6)
        .map(|number| (key("shop/web"), image(&format!("build {number}"))))
        .collect();
    expected.push((key("shop/web"), image("good")));
    expected.push((key("shop/gone"), image("g2")));
    expected.sort();
    assert_eq!(registry.images_to_keep().await.unwrap(), expected);
}

#[tokio::test]
async fn a_removed_component_keeps_history_and_generation() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let web = || key("shop/web");
    assert_eq!(registry.next_generation(web()).await.unwrap(), 1);
    assert_eq!(
        registry
            .next_generations(vec![web(), key("shop/api"), web()])
            .await
            .unwrap(),
        [2, 1, 3]
    );
    let mut adopted = row("shop/web", "v1", 1);
    adopted.generation = 7;
    fixture.deploy(set(adopted)).await;
    registry
        .record_observed(vec![observed("shop/web", ObservedState::Running)], vec![])
        .await
        .unwrap();
    fixture.remove(2, "shop/web", Trigger::Purge).await;
    assert_eq!(registry.deployed_all().await.unwrap(), []);
    assert_eq!(registry.observed_all().await.unwrap(), []);
    assert_eq!(registry.history_of(web(), 10).await.unwrap().len(), 1);
    assert_eq!(registry.next_generation(web()).await.unwrap(), 8);
    let again = Registry::open(&fixture.path()).unwrap();
    assert_eq!(again.next_generation(web()).await.unwrap(), 9);
}

#[tokio::test]
async fn observations_outlive_a_redeploy_and_end_with_the_component() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let seen = observed("shop/web", ObservedState::Running);
    registry
        .record_observed(vec![seen.clone()], vec![event(1, "shop/web")])
        .await
        .unwrap();
    assert_eq!(registry.observed_all().await.unwrap(), []);
    fixture.deploy(set(row("shop/web", "v1", 1))).await;
    registry
        .record_observed(vec![seen.clone()], vec![])
        .await
        .unwrap();
    fixture.deploy(set(row("shop/web", "v2", 2))).await;
    assert_eq!(
        registry.observed(key("shop/web")).await.unwrap(),
        Some(seen.clone())
    );
    let stopped = ObservedRow {
        exit_code: Some(137),
        oom: true,
        health: None,
        ..seen
    };
    registry
        .record_observed(vec![stopped.clone()], vec![])
        .await
        .unwrap();
    let (deployed, observed) = registry.deployed_and_observed().await.unwrap();
    assert_eq!(deployed.len(), 1);
    assert_eq!(observed, [stopped]);
}

#[tokio::test]
async fn a_quarantine_ends_when_the_spec_passes() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let bad = |tag: &str| Quarantined {
        key: key("shop/web"),
        spec_digest: spec(tag).digest(),
        image_id: image(tag),
        deployment: DeploymentId::from_bits(1),
        at: time(1),
        reason: "exit 1".to_owned(),
    };
    registry
        .quarantine(vec![bad("v1"), bad("v2")])
        .await
        .unwrap();
    registry.quarantine(vec![bad("v1")]).await.unwrap();
    assert_eq!(registry.quarantined().await.unwrap().len(), 2);
    fixture.deploy(set(row("shop/web", "v1", 1))).await;
    assert_eq!(registry.quarantined().await.unwrap(), [bad("v2")]);
    registry.lift_quarantine(key("shop/web")).await.unwrap();
    assert_eq!(registry.quarantined().await.unwrap(), []);
}

#[tokio::test]
async fn the_snapshot_of_components_is_shared_until_a_commit_changes_it() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture.deploy(set(row("shop/web", "v1", 1))).await;
    let first = registry.components().await.unwrap();
    registry
        .append_events(vec![event(1, "shop/web")])
        .await
        .unwrap();
    let same = registry.components().await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &same));
    let seen = observed("shop/web", ObservedState::Stopped);
    registry
        .record_observed(vec![seen.clone()], vec![])
        .await
        .unwrap();
    let second = registry.components().await.unwrap();
    assert_eq!(second.observed, [seen]);
    assert_eq!(second.deployed, first.deployed);
    assert_eq!(first.observed, []);
}
