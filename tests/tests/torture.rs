//! A few kills of the agent in the midst of deployments, on every engine; `make torture` makes hundreds,
//! and kills the engine as well.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use mcp_tests::engine::Lane;
use mcp_tests::torture::Torture;

mcp_tests::lanes!(killed_agent_leaves_a_node_in_order);

fn killed_agent_leaves_a_node_in_order(lane: Lane) {
    let mut torture = Torture::new(lane, 7).unwrap().sparing_the_engine();
    for round in 0..6 {
        let round_was = torture.round().unwrap();
        assert!(round_was.wrong.is_empty(), "round {round}: {round_was:?}");
    }
    torture.finish().unwrap();
}
