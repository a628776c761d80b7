//! What a sweep mends, and what neither a sweep nor a deployment touches.

use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::observed::{ContainerState, LiveContainer, label};
use tokio::time::sleep;

use super::node::{Agent, Node, Op, on_paused_time};
use crate::testing::ScriptedEngine;

const SHOP: &str = "services/shop.toml";

fn version(version: &str) -> String {
    format!(
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"localhost/web:{version}\"\nready_for = \"1s\"\n"
    )
}

async fn deployed() -> (Node, Agent) {
    let node = Node::new();
    node.push(&[(SHOP, &version("v1"))]);
    let agent = node.agent().await;
    agent.operate(Op::Deploy).await;
    (node, agent)
}

/// Begins the agent again; its first sweep is over then.
async fn again(node: &Node, agent: Agent) -> Agent {
    agent.kill().await;
    let agent = node.agent().await;
    sleep(Duration::from_secs(5)).await;
    agent
}

#[test]
fn what_was_let_go_of_is_not_swept() {
    on_paused_time(async {
        let (node, agent) = deployed().await;
        let key = "shop/web".parse().unwrap();
        let forgotten = agent
            .registry
            .forget(vec![key], Timestamp::UNIX_EPOCH, Vec::new());
        forgotten.await.unwrap();
        for live in node.engine.containers() {
            node.engine
                .exit(live.id.as_str(), 0, Timestamp::UNIX_EPOCH, true);
        }
        let before = node.engine.containers();
        let agent = again(&node, agent).await;
        assert_eq!(node.engine.containers(), before);
        agent.kill().await;
    });
}

#[test]
fn what_was_let_go_of_stays_beside_what_was_made_in_its_place() {
    on_paused_time(async {
        let (node, agent) = deployed().await;
        let key = "shop/web".parse().unwrap();
        let forgotten = agent
            .registry
            .forget(vec![key], Timestamp::UNIX_EPOCH, Vec::new());
        forgotten.await.unwrap();
        let id = node.engine.containers()[0].id.clone();
        let rename = |live: &mut LiveContainer| live.name = "theirs".to_owned();
        node.engine.change(id.as_str(), rename);
        let agent = again(&node, agent).await;
        agent.operate(Op::Deploy).await;
        let agent = again(&node, agent).await;
        let names: Vec<String> = node
            .engine
            .containers()
            .into_iter()
            .filter(|live| live.state.is_running())
            .map(|live| live.name)
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names.contains(&"theirs".to_owned()), "{names:?}");
        agent.kill().await;
    });
}

#[test]
fn what_was_let_go_of_makes_no_room_for_a_new_one() {
    on_paused_time(async {
        let (node, agent) = deployed().await;
        let key = "shop/web".parse().unwrap();
        let forgotten = agent
            .registry
            .forget(vec![key], Timestamp::UNIX_EPOCH, Vec::new());
        forgotten.await.unwrap();
        let id = node.engine.containers()[0].id.clone();
        let rename = |live: &mut LiveContainer| live.name = "theirs".to_owned();
        node.engine.change(id.as_str(), rename);
        let agent = again(&node, agent).await;
        agent.operate(Op::Deploy).await;
        // It bears the name that the next generation would have, and does not run.
        let rename = |live: &mut LiveContainer| live.name = "shop-web.g3".to_owned();
        node.engine.change(id.as_str(), rename);
        node.engine
            .exit(id.as_str(), 0, Timestamp::UNIX_EPOCH, true);
        let agent = again(&node, agent).await;
        agent.operate(Op::Force).await;
        assert!(node.engine.containers().iter().any(|live| live.id == id));
        agent.kill().await;
    });
}

#[test]
fn a_registered_container_gets_its_name_back() {
    on_paused_time(async {
        let (node, agent) = deployed().await;
        let id = node.engine.containers()[0].id.clone();
        let rename = |live: &mut LiveContainer| live.name = "shop-web.g1".to_owned();
        node.engine.change(id.as_str(), rename);
        let agent = again(&node, agent).await;
        assert_eq!(node.engine.containers()[0].name, "shop-web");
        agent.kill().await;
    });
}

#[test]
fn another_nodes_container_in_the_way_of_a_new_one_stays() {
    on_paused_time(async {
        let (node, agent) = deployed().await;
        let key = Some(("shop", "web"));
        let mut live = ScriptedEngine::container("theirs", key, Timestamp::UNIX_EPOCH);
        live.name = "shop-web.g2".to_owned();
        live.state = ContainerState::Exited {
            code: 0,
            oom: false,
        };
        live.labels
            .insert(label::NODE.to_owned(), "elsewhere".to_owned());
        live.labels
            .insert(label::DEPLOYMENT.to_owned(), "f".repeat(32));
        node.engine.put(live.clone());
        let agent = again(&node, agent).await;
        agent.operate(Op::Force).await;
        assert!(node.engine.containers().contains(&live));
        agent.kill().await;
    });
}
