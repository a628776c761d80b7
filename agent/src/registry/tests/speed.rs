//! Group commit and the caches do what they are for; times are told, and only ratios are held.

use std::time::{Duration, Instant};

use super::*;

#[tokio::test]
async fn two_thousand_components_are_read_quickly() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let id = DeploymentId::from_bits(1);
    fixture.admit(&id, Trigger::Deploy).await;
    let mut commit = CommitDeployment::new(id);
    for number in 0..2000 {
        let mut row = row(
            &format!("s{}/c{number}", number / 10),
            &format!("v{}", number % 200),
            1,
        );
        row.baseline = (0..25)
            .map(|n| (format!("field{n}"), format!("value{n}")))
            .collect();
        commit
            .observed
            .push(observed(&row.key.to_string(), ObservedState::Running));
        commit.set.push(set(row));
    }
    registry.commit_deployment(commit).await.unwrap();
    let (mut best, mut again) = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        let begun = Instant::now();
        let read = registry.components().await.unwrap();
        best = best.min(begun.elapsed());
        assert_eq!((read.deployed.len(), read.observed.len()), (2000, 2000));
        let begun = Instant::now();
        registry.components().await.unwrap();
        again = again.min(begun.elapsed());
        let change = vec![read.observed[0].clone()];
        registry.record_observed(change, vec![]).await.unwrap();
    }
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("2000 components in {best:?}, unchanged again in {again:?}\n"),
    );
    assert!(again < best, "{again:?} and {best:?}");
}

#[tokio::test]
async fn waiting_writes_share_commits() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    fixture
        .admit(&DeploymentId::from_bits(1), Trigger::Deploy)
        .await;
    let step = || StepRow {
        deployment: DeploymentId::from_bits(1),
        component: None,
        step: "create".to_owned(),
        phase: StepPhase::Begun,
        data: "{}".to_owned(),
        at: time(1),
        seq: 0,
    };
    let begun = Instant::now();
    for _ in 0..100 {
        registry.journal(vec![step()]).await.unwrap();
    }
    let alone = begun.elapsed();
    let begun = Instant::now();
    futures_util::future::try_join_all((0..100).map(|_| registry.journal(vec![step()])))
        .await
        .unwrap();
    let together = begun.elapsed();
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("100 steps: {alone:?} one by one, {together:?} together\n"),
    );
    assert!(together < alone, "{together:?} and {alone:?}");
    assert_eq!(
        registry
            .steps(DeploymentId::from_bits(1))
            .await
            .unwrap()
            .len(),
        200
    );
}
