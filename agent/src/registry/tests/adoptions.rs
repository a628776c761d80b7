//! What was taken over and what was let go of.

use mcp_spec::diff::FieldChange;

use super::*;

fn adoption(row: DeployedRow) -> Adoption {
    let mut deployment = deployment(&row.deployment, "");
    deployment.trigger = Trigger::Adopt;
    deployment.revision = None;
    deployment.state = DeploymentState::Cleaned;
    deployment.outcome = Some(Outcome::Deployed);
    deployment.finished_at = Some(time(1));
    let mut seen = observed("shop/web", ObservedState::Running);
    seen.key = row.key.clone();
    Adoption {
        deployment,
        components: vec![AdoptedComponent {
            row,
            departures: vec![FieldChange {
                field: "restart".to_owned(),
                from: Some("always".to_owned()),
                to: None,
            }],
            observed: seen,
        }],
        records: Vec::new(),
        events: Vec::new(),
    }
}

/// A container that was taken over as `of`.
fn taken(of: &str, tag: &str, deployment: u64) -> DeployedRow {
    DeployedRow {
        revision: CommitId::NONE,
        generation: 0,
        adopted: true,
        ..row(of, tag, deployment)
    }
}

#[tokio::test]
async fn a_component_and_a_container_are_taken_once() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let web = taken("shop/web", "v1", 1);
    registry.adopt(adoption(web.clone())).await.unwrap();
    let found = registry.deployed(web.key.clone()).await.unwrap().unwrap();
    assert!(found.adopted);
    assert_eq!(found.generation, 1);
    assert_eq!(registry.departures().await.unwrap()[&web.key].len(), 1);
    assert_eq!(registry.unfinished().await.unwrap(), []);
    let other = adoption(taken("shop/web", "v2", 2));
    assert!(matches!(
        registry.adopt(other).await,
        Err(RegistryError::Deployed { .. })
    ));
    let same = adoption(taken("shop/api", "v1", 3));
    assert!(matches!(
        registry.adopt(same).await,
        Err(RegistryError::Registered { .. })
    ));
    assert_eq!(registry.deployed_all().await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_let_go_of_is_remembered_until_it_is_gone_or_taken_again() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let web = taken("shop/web", "v1", 1);
    registry.adopt(adoption(web.clone())).await.unwrap();
    let keys = vec![web.key.clone()];
    registry
        .forget(keys.clone(), time(2), vec![])
        .await
        .unwrap();
    assert_eq!(registry.deployed_all().await.unwrap(), []);
    assert!(registry.departures().await.unwrap().is_empty());
    let forgotten = registry.forgotten().await.unwrap();
    assert_eq!(forgotten, BTreeSet::from([web.container.clone()]));
    assert!(matches!(
        registry.forget(keys, time(3), vec![]).await,
        Err(RegistryError::NotDeployed { .. })
    ));
    let again = taken("shop/web", "v1", 4);
    registry.adopt(adoption(again)).await.unwrap();
    assert!(registry.forgotten().await.unwrap().is_empty());
    let found = registry.deployed(web.key.clone()).await.unwrap().unwrap();
    assert_eq!(found.generation, 2, "a generation is never given twice");
}

#[tokio::test]
async fn no_rollback_goes_to_what_no_revision_ever_had() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let web = taken("shop/web", "v1", 1);
    registry.adopt(adoption(web.clone())).await.unwrap();
    fixture.deploy(set(row("shop/web", "v2", 2))).await;
    let target = registry.rollback_target(web.key.clone()).await.unwrap();
    assert_eq!(target, None);
    assert!(registry.departures().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_a_deployment_left_untouched_comes_from_its_revision() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let web = taken("shop/web", "v1", 1);
    registry.adopt(adoption(web.clone())).await.unwrap();
    let id = DeploymentId::from_bits(2);
    registry.admit(deployment(&id, "")).await.unwrap();
    let mut commit_it = CommitDeployment::new(id);
    commit_it.advanced.push(Advanced {
        key: web.key.clone(),
        revision: commit(1),
        desired: DesiredState::Running,
        settings: web.settings,
    });
    registry.commit_deployment(commit_it).await.unwrap();
    fixture.deploy(set(row("shop/web", "v2", 3))).await;
    let target = registry.rollback_target(web.key.clone()).await.unwrap();
    assert_eq!(target.unwrap().revision, commit(1));
}
