//! What is deployed and is not what was made.

use std::time::Duration;

use mcp_spec::plan::{ActionKind, Options, Reason};

use super::node::{Agent, Node, Op, on_paused_time, shop};
use crate::planning::Wish;
use crate::registry::{DeploymentState, EventQuery, Outcome};

const SHOP: &str = "services/shop.toml";

const ONE: &str = r#"
name = "shop"
node = "rift"
reconcile = "auto"
[[components]]
name = "web"
image = "localhost/web:v1"
ready_for = "1s"
"#;

fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Node) -> F) {
    on_paused_time(async {
        let node = Node::new();
        node.push(&[(SHOP, ONE)]);
        test(node).await;
    });
}

/// What the agent by itself would do to `web`.
async fn by_itself(agent: &Agent) -> (ActionKind, Reason) {
    let wish = Wish {
        targets: Some(vec![mcp_spec::name::Target {
            node: None,
            service: shop(),
            component: None,
        }]),
        revision: None,
        options: Options::default(),
        draft: Vec::new(),
        auto: true,
        resolve_tags: false,
    };
    let planned = agent.planner.deploy(&wish).await.unwrap();
    let action = &planned.plan.services()[0].actions[0];
    (action.kind, action.reason.clone())
}

async fn degraded_events(agent: &Agent) -> usize {
    let query = EventQuery {
        limit: 1000,
        ..EventQuery::default()
    };
    let events = agent.registry.events(query).await.unwrap();
    let is_one = |event: &&crate::registry::EventRow| event.kind == "deployment-degraded";
    events.iter().filter(is_one).count()
}

#[test]
fn what_is_not_what_was_made_is_degraded_and_left_alone() {
    on_a_node(|node| async move {
        node.engine.make_odd("memory", "whatever the engine likes");
        let agent = node.agent().await;
        let ended = agent.operate(Op::Deploy).await;
        assert_eq!(ended.row.outcome, Some(Outcome::Degraded));
        assert_eq!(
            ended.row.error.as_deref(),
            Some("not converged: web: memory drifted")
        );
        assert_eq!(degraded_events(&agent).await, 1);
        let quarantined = agent.registry.quarantined().await.unwrap();
        assert_eq!(quarantined.len(), 1);
        assert_eq!(by_itself(&agent).await.0, ActionKind::None);
        // An operator may try, and is told the same.
        let again = agent.operate(Op::Deploy).await;
        assert_eq!(again.row.outcome, Some(Outcome::Degraded));
        assert_eq!(by_itself(&agent).await.0, ActionKind::None);
        // A start takes the container as it is.
        agent.operate(Op::Stop).await;
        let started = agent.operate(Op::Start).await;
        assert_eq!(started.row.outcome, Some(Outcome::Deployed));
        agent.kill().await;
    });
}

#[test]
fn what_converges_is_deployed_and_its_plan_is_empty() {
    on_a_node(|node| async move {
        let agent = node.agent().await;
        let ended = agent.operate(Op::Deploy).await;
        assert_eq!(ended.row.outcome, Some(Outcome::Deployed));
        assert_eq!(
            by_itself(&agent).await,
            (ActionKind::None, Reason::UpToDate)
        );
        agent.kill().await;
    });
}

#[test]
fn the_proof_is_made_after_a_crash_too() {
    on_a_node(|node| async move {
        node.engine.make_odd("memory", "whatever the engine likes");
        let agent = node.agent().await;
        let submission = agent.submission(Op::Deploy, "").await;
        let taken = agent.deployer.submit(submission).await;
        assert!(taken.is_ok());
        // Killed between its commit and its end.
        loop {
            let rows = agent.registry.unfinished().await.unwrap();
            match rows.first().map(|row| row.state) {
                Some(DeploymentState::Committed) | None => break,
                Some(_) => tokio::time::sleep(Duration::from_micros(1)).await,
            }
        }
        agent.kill().await;
        let agent = node.agent().await;
        assert!(agent.recovered().await);
        let history = agent.registry.history(None, 1).await.unwrap();
        assert_eq!(history[0].outcome, Some(Outcome::Degraded));
        assert_eq!(degraded_events(&agent).await, 1);
        agent.kill().await;
    });
}
