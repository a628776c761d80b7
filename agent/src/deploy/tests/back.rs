//! What is put back after a gate failed: in which order, and though the agent is killed meanwhile.

use std::time::Duration;

use jiff::Timestamp;
use mcp_spec::observed::LiveContainer;
use tokio::time::sleep;

use super::super::{Feed, Taken};
use super::node::{Agent, Node, Op, on_paused_time};
use crate::registry::{DeploymentState, Outcome};
use crate::testing::ScriptedEngine;

const SHOP: &str = "services/shop.toml";

fn version(api: &str, web: &str) -> String {
    format!(
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"api\"\nimage = \"localhost/{api}\"\nready_for = \"1s\"\n[[components]]\nname = \"web\"\nimage = \"localhost/{web}\"\nready_for = \"1s\"\ndepends_on = [\"api\"]\n"
    )
}

/// A node that runs `v1`, and a deployment of `api:v2` and of another `web` under way.
async fn deploying(web: &str) -> (Node, Agent, std::sync::Arc<Feed>) {
    let node = Node::new();
    node.push(&[(SHOP, &version("api:v1", "web:v1"))]);
    let agent = node.agent().await;
    agent.operate(Op::Deploy).await;
    agent.kill().await;
    node.push(&[(SHOP, &version("api:v2", web))]);
    let agent = node.agent().await;
    let submission = agent.submission(Op::Deploy, "").await;
    match agent.deployer.submit(submission).await.unwrap() {
        Taken::Feed(feed) => (node, agent, feed),
        Taken::Ended(_) => panic!("a new request has not ended"),
    }
}

fn of_image(node: &Node, image: &str) -> Option<LiveContainer> {
    let id = ScriptedEngine::image_id(&format!("localhost/{image}"));
    let mut containers = node.engine.containers().into_iter();
    containers.find(|live| live.image_id == id)
}

fn runs(node: &Node, image: &str) -> bool {
    of_image(node, image).is_some_and(|live| live.state.is_running())
}

async fn reaches(feed: &Feed, step: &str) {
    while !feed.follow().0.iter().any(|told| told.step == step) {
        sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn what_depends_on_others_is_put_back_before_them() {
    on_paused_time(async {
        let (node, agent, feed) = deploying("bad:v1").await;
        let ended = feed.ended().await.unwrap();
        assert_eq!(ended.row.outcome, Some(Outcome::RolledBack));
        let started = |image| of_image(&node, image).unwrap().started_at;
        assert!(started("web:v1") < started("api:v1"));
        agent.kill().await;
    });
}

#[test]
fn after_a_crash_all_is_put_back_that_was_switched_before_it() {
    on_paused_time(async {
        let (node, agent, _feed) = deploying("web:v2").await;
        while !runs(&node, "web:v2") {
            sleep(Duration::from_millis(1)).await;
        }
        agent.kill().await;
        let api = of_image(&node, "api:v2").unwrap();
        node.engine.end_at_once("localhost/api:v2", 1);
        node.engine
            .exit(api.id.as_str(), 1, Timestamp::UNIX_EPOCH, true);
        let agent = node.agent().await;
        assert!(agent.recovered().await);
        assert!(runs(&node, "web:v1") && runs(&node, "api:v1"));
        assert!(!runs(&node, "web:v2"));
        assert_eq!(node.engine.mishaps(), Vec::<String>::new());
        agent.kill().await;
    });
}

#[test]
fn a_crash_in_a_compensation_forgets_no_gate_that_failed() {
    on_paused_time(async {
        let (node, agent, feed) = deploying("web:v2").await;
        while !runs(&node, "web:v2") {
            sleep(Duration::from_millis(1)).await;
        }
        // What is put back does not start for a while, so that there is a time to be killed in.
        node.engine.refuse_starts(true);
        let web = of_image(&node, "web:v2").unwrap();
        node.engine
            .exit(web.id.as_str(), 1, Timestamp::UNIX_EPOCH, true);
        reaches(&feed, "compensating").await;
        let open = agent.registry.unfinished().await.unwrap();
        assert_eq!(open[0].state, DeploymentState::Compensating);
        agent.kill().await;
        node.engine.refuse_starts(false);
        let agent = node.agent().await;
        assert!(agent.recovered().await);
        let quarantined = agent.registry.quarantined().await.unwrap();
        let names: Vec<String> = quarantined
            .into_iter()
            .map(|entry| entry.key.to_string())
            .collect();
        assert_eq!(names, ["shop/web"]);
        agent.kill().await;
    });
}
