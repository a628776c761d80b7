//! What an upstream holds and the door refuses: nobody called, and it is told all the same.

use std::time::Duration;

use mcp_tests::engine::{Lane, eventually};
use mcp_tests::fleet::Fleet;

use super::{commit_by_git, head, new_key, pushed, reasons};

/// The event of a refusal that nobody called for.
const REFUSED: &str = "revision-refused";

/// When the upstream was last looked at.
fn checked(fleet: &Fleet) -> Option<String> {
    let info = fleet.mcp_json(&["node", "info"]);
    info[0]["source_checked_at"].as_str().map(ToOwned::to_owned)
}

#[test]
fn refusal_of_what_an_upstream_holds_is_told_once_and_a_good_revision_is_taken() {
    Lane::PodmanRoot.run(|lane| {
        let name = "upstream";
        let mut fleet = pushed(lane, name);
        let upstream = fleet.home().join("upstream.git");
        let upstream = upstream.to_str().unwrap().to_owned();
        fleet.git(&["clone", "--quiet", "--bare", ".", &upstream]);
        fleet.node_mut(name).terminate().unwrap();
        let config = fleet.node(name).config();
        let written = std::fs::read_to_string(&config).unwrap();
        let source = format!("{written}\n[source]\nurl = \"{upstream}\"\npoll = \"1s\"\n");
        std::fs::write(&config, source).unwrap();
        fleet.node_mut(name).serve().unwrap();
        let good = fleet.git(&["rev-parse", "HEAD"]);

        let stranger = new_key(&fleet, "stranger");
        commit_by_git(&fleet, &stranger, name, "v2");
        fleet.git(&["push", "--quiet", &upstream, "HEAD:main"]);
        let limit = Duration::from_secs(60);
        eventually("the refusal is told", limit, || {
            Ok((!reasons(&fleet, REFUSED).is_empty()).then_some(()))
        })
        .unwrap();
        // It is looked at twice more, with the same verdict.
        for _ in 0..2 {
            let before = checked(&fleet);
            eventually("the upstream is looked at again", limit, || {
                Ok((checked(&fleet) != before).then_some(()))
            })
            .unwrap();
        }
        assert_eq!(reasons(&fleet, REFUSED), ["unknown-signer"]);
        assert_eq!(head(&fleet, name), good);

        fleet.git(&["reset", "--quiet", "--hard", &good]);
        let key = fleet.key().to_str().unwrap().to_owned();
        let next = commit_by_git(&fleet, &key, name, "v3");
        fleet.git(&["push", "--quiet", "--force", &upstream, "HEAD:main"]);
        eventually("the good revision is taken", limit, || {
            Ok((head(&fleet, name) == next).then_some(()))
        })
        .unwrap();
        assert_eq!(reasons(&fleet, REFUSED).len(), 1);
    });
}
