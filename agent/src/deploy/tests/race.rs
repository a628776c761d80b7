//! Supersession, queue and cancellation, first one by one and then raced against each other.

use std::sync::Arc;
use std::time::Duration;

use mcp_spec::observed::LiveContainer;
use tokio::time::sleep;

use super::super::{Cancelled, Ended, Feed, SubmitError, Taken};
use super::invariants::{Picture, broken};
use super::node::{Agent, Node, Op, on_paused_time};
use crate::registry::{DeployedRow, Outcome, StopOverride, Trigger};
use crate::watch::{Revive, Revived};

const SHOP: &str = "services/shop.toml";

fn version(version: &str) -> String {
    format!(
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"api\"\nimage = \"localhost/api:{version}\"\nready_for = \"1s\"\n[[components]]\nname = \"web\"\nimage = \"localhost/web:{version}\"\nready_for = \"1s\"\ndepends_on = [\"api\"]\n"
    )
}

/// A node that runs `v1` and whose head is `v2`, on a clock of its own.
fn on_a_node<F>(test: impl FnOnce(Node, Agent) -> F)
where
    F: Future<Output = ()>,
{
    on_paused_time(async {
        let node = Node::new();
        node.push(&[(SHOP, &version("v1"))]);
        let agent = node.agent().await;
        agent.operate(Op::Deploy).await;
        agent.kill().await;
        node.push(&[(SHOP, &version("v2"))]);
        let agent = node.agent().await;
        // The sweep of the start is over.
        sleep(Duration::from_secs(1)).await;
        test(node, agent).await;
    });
}

async fn submit(agent: &Agent, op: Op) -> Arc<Feed> {
    let submission = agent.submission(op, "").await;
    match agent.deployer.submit(submission).await.unwrap() {
        Taken::Feed(feed) => feed,
        Taken::Ended(_) => panic!("a new request has not ended"),
    }
}

async fn end(feed: &Feed) -> Arc<Ended> {
    feed.ended().await.unwrap()
}

fn steps(feed: &Feed) -> Vec<&'static str> {
    feed.follow().0.iter().map(|step| step.step).collect()
}

/// Waits until a deployment tells a step.
async fn reaches(feed: &Feed, step: &str) {
    while !steps(feed).contains(&step) {
        sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn newer_deployment_supersedes_one_before_the_line() {
    on_a_node(|node, agent| async move {
        node.engine.lose_image("localhost/web:v2");
        node.engine.hold_pulls(true);
        let first = submit(&agent, Op::Deploy).await;
        reaches(&first, "pulling").await;
        let second = submit(&agent, Op::Force).await;
        assert_eq!(end(&first).await.row.outcome, Some(Outcome::Superseded));
        node.engine.hold_pulls(false);
        assert_eq!(end(&second).await.row.outcome, Some(Outcome::Deployed));
        agent.kill().await;
    });
}

#[test]
fn newer_deployment_supersedes_no_other_components() {
    on_a_node(|node, agent| async move {
        node.engine.lose_image("localhost/api:v2");
        node.engine.hold_pulls(true);
        let first = submit(&agent, Op::DeployOne("api")).await;
        reaches(&first, "pulling").await;
        let second = submit(&agent, Op::DeployOne("web")).await;
        node.engine.hold_pulls(false);
        for feed in [first, second] {
            assert_eq!(end(&feed).await.row.outcome, Some(Outcome::Deployed));
        }
        agent.kill().await;
    });
}

#[test]
fn newer_deployment_queues_behind_one_that_has_crossed_the_line() {
    on_a_node(|_node, agent| async move {
        let first = submit(&agent, Op::Deploy).await;
        reaches(&first, "starting").await;
        let second = submit(&agent, Op::Restart).await;
        assert!(steps(&second).contains(&"queued"));
        assert_eq!(
            agent.deployer.cancel(first.deployment().clone()).await,
            Cancelled::TooLate
        );
        assert_eq!(end(&first).await.row.outcome, Some(Outcome::Deployed));
        assert_eq!(end(&second).await.row.outcome, Some(Outcome::Deployed));
        agent.kill().await;
    });
}

#[test]
fn restart_that_was_planned_before_a_stop_starts_nothing() {
    on_a_node(|node, agent| async move {
        let restart = agent.submission(Op::Restart, "").await;
        agent.operate(Op::Stop).await;
        let ended = agent.carry_out(restart).await.unwrap();
        assert_eq!(ended.row.outcome, Some(Outcome::Aborted));
        let runs = |live: &LiveContainer| live.state.is_running();
        assert!(!node.engine.containers().iter().any(runs));
        agent.kill().await;
    });
}

#[test]
fn cancelled_deployment_before_the_line_touches_nothing() {
    on_a_node(|node, agent| async move {
        let before = node.engine.containers();
        node.engine.lose_image("localhost/web:v2");
        node.engine.hold_pulls(true);
        let feed = submit(&agent, Op::Deploy).await;
        reaches(&feed, "pulling").await;
        let id = feed.deployment().clone();
        assert_eq!(
            agent.deployer.cancel(id.clone()).await,
            Cancelled::Cancelled
        );
        assert_eq!(end(&feed).await.row.outcome, Some(Outcome::Aborted));
        assert_eq!(node.engine.containers(), before);
        // A cancellation that comes twice finds nothing any more.
        assert_eq!(agent.deployer.cancel(id).await, Cancelled::Unknown);
        agent.kill().await;
    });
}

#[test]
fn waiting_deployment_can_be_cancelled_and_a_stop_is_never_superseded() {
    on_a_node(|_node, agent| async move {
        let first = submit(&agent, Op::Deploy).await;
        reaches(&first, "starting").await;
        let stop = submit(&agent, Op::Stop).await;
        let start = submit(&agent, Op::Start).await;
        let waiting = start.deployment().clone();
        assert_eq!(agent.deployer.cancel(waiting).await, Cancelled::Cancelled);
        assert_eq!(end(&start).await.row.outcome, Some(Outcome::Aborted));
        let last = submit(&agent, Op::Restart).await;
        assert_eq!(end(&first).await.row.outcome, Some(Outcome::Deployed));
        assert_eq!(end(&stop).await.row.outcome, Some(Outcome::Deployed));
        // What was stopped meanwhile is not restarted.
        assert_eq!(end(&last).await.row.outcome, Some(Outcome::Aborted));
        agent.kill().await;
    });
}

const MANY: [&str; 18] = [
    "c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9", "c10", "c11", "c12", "c13", "c14",
    "c15", "c16", "c17",
];

#[test]
fn a_full_queue_refuses_the_next_one() {
    on_a_node(|node, agent| async move {
        agent.kill().await;
        let component = |name| {
            format!(
                "[[components]]\nname = \"{name}\"\nimage = \"localhost/web:v1\"\nready_for = \"1s\"\n"
            )
        };
        let text: String = MANY.map(component).concat();
        node.push(&[(SHOP, &format!("name = \"shop\"\nnode = \"rift\"\n{text}"))]);
        let agent = node.agent().await;
        sleep(Duration::from_secs(1)).await;
        let first = submit(&agent, Op::DeployOne(MANY[0])).await;
        reaches(&first, "starting").await;
        let mut feeds = Vec::new();
        for name in &MANY[1..=super::super::QUEUED] {
            feeds.push(submit(&agent, Op::DeployOne(name)).await);
        }
        let one_more = agent.submission(Op::DeployOne(MANY[17]), "").await;
        let refused = agent.deployer.submit(one_more).await.unwrap_err();
        assert!(
            matches!(refused, SubmitError::QueueFull { .. }),
            "{refused}"
        );
        for feed in feeds {
            assert_eq!(end(&feed).await.row.outcome, Some(Outcome::Deployed));
        }
        agent.kill().await;
    });
}

/// Numbers that look random and are the same each time.
fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move |bound| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) % bound
    }
}

#[test]
fn raced_operators_leave_a_node_in_order() {
    on_a_node(|node, mut agent| async move {
        for seed in 1..=60 {
            let mut dice = dice(seed);
            let before = Picture::of(&node.engine, &agent.registry, node.dir.path()).await;
            let mut feeds: Vec<Arc<Feed>> = Vec::new();
            let mut last = None;
            for _ in 0..2 + dice(5) {
                let op = [
                    Op::Deploy,
                    Op::Force,
                    Op::Restart,
                    Op::Stop,
                    Op::Start,
                    Op::Rollback,
                ][usize::try_from(dice(6)).unwrap()];
                let submission = agent.submission(op, "").await;
                let plan = submission.plan.clone();
                if !plan.blocked.is_empty() {
                    continue;
                }
                if let Ok(Taken::Feed(feed)) = agent.deployer.submit(submission).await {
                    last = Some((plan, op.trigger()));
                    feeds.push(feed);
                }
                sleep(Duration::from_millis(dice(2500))).await;
                if dice(3) == 0 && !feeds.is_empty() {
                    let which = usize::try_from(dice(feeds.len() as u64)).unwrap();
                    agent
                        .deployer
                        .cancel(feeds[which].deployment().clone())
                        .await;
                }
                if dice(8) == 0 {
                    agent.kill().await;
                    agent = node.agent().await;
                    feeds.clear();
                }
            }
            for feed in &feeds {
                assert!(end(feed).await.row.outcome.is_some());
            }
            assert!(agent.recovered().await);
            sleep(Duration::from_secs(700)).await;
            let after = Picture::of(&node.engine, &agent.registry, node.dir.path()).await;
            if let Some((plan, _)) = last {
                // Any of them may have stopped the service; the rest is the same as after one alone.
                let wrong = broken(&before, &after, &plan, Trigger::Stop, None);
                assert!(wrong.is_empty(), "seed {seed}: {}", wrong.join("; "));
            }
        }
        agent.kill().await;
    });
}

async fn deployed(agent: &Agent, component: &str) -> DeployedRow {
    let rows = agent.registry.deployed_all().await.unwrap();
    let mut rows = rows.into_iter();
    rows.find(|row| row.key.component.as_str() == component)
        .unwrap()
}

#[test]
fn the_restart_policy_starts_neither_what_is_stopped_nor_what_was_replaced() {
    on_a_node(|node, agent| async move {
        let web = deployed(&agent, "web").await;
        let stop = StopOverride {
            by: "alice".to_owned(),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let revive = |container| {
            agent.deployer.revive(Revive {
                key: web.key.clone(),
                container,
            })
        };
        let registry = &agent.registry;
        let changes = node.engine.changes();
        let other = deployed(&agent, "api").await.container;
        assert!(matches!(revive(other).await, Revived::NotNow));
        let keys = vec![web.key.clone()];
        registry
            .set_stop(keys.clone(), Some(stop), Vec::new())
            .await
            .unwrap();
        assert!(matches!(
            revive(web.container.clone()).await,
            Revived::NotNow
        ));
        assert_eq!(node.engine.changes(), changes);
        registry.set_stop(keys, None, Vec::new()).await.unwrap();
        let revived = revive(web.container.clone()).await;
        assert!(matches!(revived, Revived::Running(_)));
        agent.kill().await;
    });
}

#[test]
fn the_restart_policy_starts_nothing_during_a_deployment() {
    on_a_node(|node, agent| async move {
        let web = deployed(&agent, "web").await;
        let feed = submit(&agent, Op::Deploy).await;
        reaches(&feed, "starting").await;
        node.engine
            .exit(web.container.as_str(), 1, jiff::Timestamp::UNIX_EPOCH, true);
        let revive = Revive {
            key: web.key,
            container: web.container,
        };
        let revived = agent.deployer.revive(revive).await;
        assert!(matches!(revived, Revived::NotNow));
        end(&feed).await;
        agent.kill().await;
    });
}

#[test]
fn a_stop_stops_what_was_started_since_it_was_planned() {
    on_a_node(|node, agent| async move {
        let web = deployed(&agent, "web").await;
        let id = web.container.as_str();
        node.engine.exit(id, 1, jiff::Timestamp::UNIX_EPOCH, false);
        let stop = agent.submission(Op::Stop, "").await;
        let revive = Revive {
            key: web.key.clone(),
            container: web.container.clone(),
        };
        let revived = agent.deployer.revive(revive).await;
        assert!(matches!(revived, Revived::Running(_)));
        agent.carry_out(stop).await;
        let runs = |live: &LiveContainer| live.state.is_running();
        assert!(!node.engine.containers().iter().any(runs));
        agent.kill().await;
    });
}

#[test]
fn what_the_agent_does_by_itself_gives_way_to_a_stop_that_comes_before_the_line() {
    on_a_node(|node, agent| async move {
        node.engine.lose_image("localhost/web:v2");
        node.engine.hold_pulls(true);
        let mut submission = agent.submission(Op::Deploy, "").await;
        submission.order.trigger = Trigger::Auto;
        let Taken::Feed(feed) = agent.deployer.submit(submission).await.unwrap() else {
            panic!("it is new");
        };
        reaches(&feed, "pulling").await;
        let stop = StopOverride {
            by: "alice".to_owned(),
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let keys = vec![deployed(&agent, "web").await.key];
        let registry = &agent.registry;
        registry
            .set_stop(keys, Some(stop), Vec::new())
            .await
            .unwrap();
        node.engine.hold_pulls(false);
        assert_eq!(end(&feed).await.row.outcome, Some(Outcome::Aborted));
        agent.kill().await;
    });
}
