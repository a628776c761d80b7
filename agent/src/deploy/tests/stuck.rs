//! Containers that their engine will never start, and what takes their place.

use std::time::Duration;

use mcp_spec::name::ComponentKey;
use mcp_spec::observed::ContainerId;
use tokio::time::sleep;

use super::node::{Agent, Node, Op, on_paused_time};
use crate::registry::{DeployedRow, Outcome};
use crate::watch::{Revive, Revived};

const SHOP: &str = "services/shop.toml";

fn version(version: &str) -> String {
    format!(
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"api\"\nimage = \"localhost/api:{version}\"\nready_for = \"1s\"\n"
    )
}

fn key() -> ComponentKey {
    "shop/api".parse().unwrap()
}

/// A node that runs `v1`.
fn on_a_node<F>(test: impl FnOnce(Node, Agent) -> F)
where
    F: Future<Output = ()>,
{
    on_paused_time(async {
        let node = Node::new();
        node.push(&[(SHOP, &version("v1"))]);
        let agent = node.agent().await;
        agent.operate(Op::Deploy).await;
        // The sweep of the start is over.
        sleep(Duration::from_secs(1)).await;
        test(node, agent).await;
    });
}

async fn row(agent: &Agent) -> DeployedRow {
    agent.registry.deployed(key()).await.unwrap().unwrap()
}

/// One container runs under the component's name, it is the registered one, and it is no more `old`.
async fn another_runs(node: &Node, agent: &Agent, old: &ContainerId) {
    let row = row(agent).await;
    let all = node.engine.containers();
    assert_eq!(all.len(), 1, "the broken one is gone: {all:?}");
    assert_eq!(all[0].id, row.container);
    assert_ne!(all[0].id, *old);
    assert_eq!(all[0].name, "shop-api");
    assert!(all[0].state.is_running());
    assert_eq!(all[0].fields, row.baseline);
}

#[test]
fn a_container_that_can_never_start_again_is_made_anew() {
    on_a_node(async |node, agent| {
        let old = row(&agent).await.container;
        node.engine.stick(&old);
        let revive = Revive {
            key: key(),
            container: old.clone(),
        };
        let revived = agent.deployer.revive(revive.clone()).await;
        assert!(matches!(revived, Revived::NotNow), "{revived:?}");
        another_runs(&node, &agent, &old).await;
        // Whoever asks late does nothing more.
        let again = agent.deployer.revive(revive).await;
        assert!(matches!(again, Revived::NotNow), "{again:?}");
        another_runs(&node, &agent, &old).await;
    });
}

#[test]
fn an_operators_start_and_restart_make_it_anew_too() {
    on_a_node(async |node, agent| {
        agent.operate(Op::Stop).await;
        for op in [Op::Start, Op::Restart] {
            let old = row(&agent).await.container;
            node.engine.stick(&old);
            let ended = agent.operate(op).await;
            assert_eq!(ended.row.outcome, Some(Outcome::Deployed), "{ended:?}");
            another_runs(&node, &agent, &old).await;
        }
    });
}

#[test]
fn compensation_makes_it_anew_too() {
    on_a_node(async |node, agent| {
        let old = row(&agent).await.container;
        node.push(&[(SHOP, &version("v2"))]);
        node.engine.end_at_once("localhost/api:v2", 1);
        agent.kill().await;
        let agent = node.agent().await;
        sleep(Duration::from_secs(1)).await;
        node.engine.stick(&old);
        // It still runs, as far as the plan knows.
        node.engine.change(old.as_str(), |live| {
            live.state = mcp_spec::observed::ContainerState::Running { pid: None };
        });
        let ended = agent.operate(Op::Deploy).await;
        assert_eq!(ended.row.outcome, Some(Outcome::RolledBack), "{ended:?}");
        another_runs(&node, &agent, &old).await;
    });
}
