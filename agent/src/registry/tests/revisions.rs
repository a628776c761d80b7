//! Revisions, the head, and how far behind a component is.

use super::*;

fn revision(number: u8, parents: &[u8]) -> RevisionRow {
    RevisionRow {
        seq: 0,
        commit: commit(number),
        parents: parents.iter().map(|parent| commit(*parent)).collect(),
        subject: format!("revision {number}"),
        signer: "kyle".to_owned(),
        fingerprint: "SHA256:x".to_owned(),
        authored_at: time(i64::from(number)),
        received_at: time(i64::from(number)),
        source: RevisionSource::Push,
        received_by: "kyle".to_owned(),
    }
}

fn change(number: u8, of: &str, spec: Option<&str>) -> SpecChange {
    SpecChange {
        commit: commit(number),
        key: key(of),
        spec_digest: spec.map(digest),
    }
}

/// 1: web is A, api is X; 2: web is B; 3: api is Y; 4: web is A again; 5: web is C; 6: api is gone.
async fn history(fixture: &Fixture) {
    let rows = (1..=6)
        .map(|n| {
            revision(
                n,
                if n == 1 {
                    &[]
                } else {
                    std::slice::from_ref(&PARENTS[n as usize])
                },
            )
        })
        .collect();
    let changes = vec![
        change(1, "shop/web", Some("A")),
        change(1, "shop/api", Some("X")),
        change(2, "shop/web", Some("B")),
        change(3, "shop/api", Some("Y")),
        change(4, "shop/web", Some("A")),
        change(5, "shop/web", Some("C")),
        change(6, "shop/api", None),
    ];
    fixture
        .registry
        .record_revisions(rows, commit(6), changes, vec![event(6, "")])
        .await
        .unwrap();
}

const PARENTS: [u8; 7] = [0, 0, 1, 2, 3, 4, 5];

#[tokio::test]
async fn recorded_revisions_are_listed_newest_first() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    assert_eq!(registry.head().await.unwrap(), None);
    history(&fixture).await;
    assert_eq!(registry.head().await.unwrap(), Some(commit(6)));
    let third = registry.revision(commit(3)).await.unwrap().unwrap();
    assert_eq!(
        third,
        RevisionRow {
            seq: 3,
            ..revision(3, &[2])
        }
    );
    assert_eq!(registry.revision(commit(9)).await.unwrap(), None);
    let found = registry
        .revision_by_prefix("0404".to_owned())
        .await
        .unwrap();
    assert_eq!(found.one().unwrap().commit, commit(4));
    let numbers = |rows: Vec<RevisionRow>| rows.iter().map(|row| row.seq).collect::<Vec<_>>();
    let mut filter = RevisionFilter {
        limit: 10,
        ..RevisionFilter::default()
    };
    assert_eq!(
        numbers(registry.revisions(filter.clone()).await.unwrap()),
        [6, 5, 4, 3, 2, 1]
    );
    filter.service = Some("shop".parse().unwrap());
    filter.component = Some("api".parse().unwrap());
    assert_eq!(
        numbers(registry.revisions(filter).await.unwrap()),
        [6, 3, 1]
    );
    assert_eq!(
        numbers(registry.accepted_after(Some(commit(4)), 10).await.unwrap()),
        [5, 6]
    );
    assert_eq!(
        registry
            .accepted_among(vec![commit(9), commit(2)])
            .await
            .unwrap(),
        [commit(2)]
    );
}

#[tokio::test]
async fn behind_counts_the_revisions_that_change_the_component() {
    let fixture = Fixture::new();
    history(&fixture).await;
    for (of, at, runs, behind) in [
        ("shop/web", 5, "C", 0),
        ("shop/web", 6, "C", 0),
        ("shop/web", 4, "A", 1),
        ("shop/web", 2, "B", 2),
        ("shop/web", 1, "A", 3),
        // Deployed by an older revision, and the head's spec all the same.
        ("shop/web", 1, "C", 0),
        // The removal counts.
        ("shop/api", 3, "Y", 1),
        ("shop/api", 1, "X", 2),
        // A revision that the registry does not know.
        ("shop/web", 99, "B", 4),
        // A component that no revision ever defined.
        ("shop/cron", 1, "A", 0),
    ] {
        let counted = fixture
            .registry
            .behind(key(of), commit(at), digest(runs))
            .await
            .unwrap();
        assert_eq!(counted, behind, "{of} at {at} running {runs}");
    }
}

#[tokio::test]
async fn a_reverted_change_is_not_behind() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    let rows = vec![revision(1, &[]), revision(2, &[1]), revision(3, &[2])];
    let changes = vec![
        change(1, "shop/web", Some("A")),
        change(2, "shop/web", Some("B")),
        change(3, "shop/web", Some("A")),
    ];
    registry
        .record_revisions(rows, commit(3), changes, vec![])
        .await
        .unwrap();
    assert_eq!(
        registry
            .behind(key("shop/web"), commit(1), digest("A"))
            .await
            .unwrap(),
        0
    );
    assert_eq!(
        registry
            .behind(key("shop/web"), commit(2), digest("B"))
            .await
            .unwrap(),
        1
    );
}

#[tokio::test]
async fn the_head_defines_what_it_did_not_remove() {
    let fixture = Fixture::new();
    history(&fixture).await;
    let registry = &fixture.registry;
    assert_eq!(
        registry.head_digest(key("shop/web")).await.unwrap(),
        Some(digest("C"))
    );
    assert_eq!(registry.head_digest(key("shop/api")).await.unwrap(), None);
    assert_eq!(
        registry.head_digests().await.unwrap(),
        BTreeMap::from([(key("shop/web"), digest("C"))])
    );
}

#[tokio::test]
async fn the_head_never_falls() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    history(&fixture).await;
    // The same again, as after a crash between git and the registry.
    history(&fixture).await;
    assert_eq!(
        registry
            .record_revisions(vec![], commit(2), vec![], vec![])
            .await,
        Err(RegistryError::HeadWouldFall {
            head: commit(6),
            asked: commit(2)
        })
    );
    assert_eq!(
        registry
            .record_revisions(
                vec![revision(7, &[6])],
                commit(8),
                vec![],
                vec![event(1, "")]
            )
            .await,
        Err(RegistryError::NoSuchRevision { commit: commit(8) })
    );
    assert_eq!(registry.revision(commit(7)).await.unwrap(), None);
    assert_eq!(registry.head().await.unwrap(), Some(commit(6)));
}
