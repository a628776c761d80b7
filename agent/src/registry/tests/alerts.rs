//! What was judged, and the alerts that wait.

use super::*;

#[tokio::test]
async fn what_was_judged_is_remembered_and_the_outbox_has_a_bound() {
    let fixture = Fixture::new();
    let registry = &fixture.registry;
    assert_eq!(registry.conditions().await.unwrap(), None);
    let alerts = |count: usize| Judgement {
        cursor: 7,
        at: Some(time(0)),
        alerts: (0..count)
            .map(|number| (format!("shop/web {number}"), number.to_string()))
            .collect(),
        ..Judgement::default()
    };
    assert_eq!(registry.record_judgement(alerts(1000)).await.unwrap(), 0);
    let (cursor, conditions) = registry.conditions().await.unwrap().unwrap();
    assert_eq!((cursor, conditions), (7, Vec::new()));
    assert_eq!(registry.record_judgement(alerts(2)).await.unwrap(), 2);
    // The oldest are gone.
    let next = registry.next_alert().await.unwrap().unwrap();
    assert_eq!(next.body, "2");
}
