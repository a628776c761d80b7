//! What services share where a signer is limited: `.mcp/shared.toml`.

use mcp_tests::engine::Lane;

use super::{head, new_key, pushed, said};

#[test]
fn limited_signer_joins_another_services_network_only_where_owners_list_it() {
    Lane::PodmanRoot.run(|lane| {
        let name = "share";
        let fleet = pushed(lane, name);
        fleet.mcp(&["deploy", "--all"]).ok();
        let bob = new_key(&fleet, "bob");
        let definition = format!("services/{name}.toml");
        let other = format!("{name}-b");

        // While nobody is limited nothing is asked.
        let own = std::fs::read_to_string(fleet.repo().join(&definition)).unwrap();
        let joined = format!("{own}network = \"{other}\"\n");
        fleet.write(&definition, &joined);
        fleet.mcp(&["service", "check"]).ok();
        fleet.write(&definition, &own);
        fleet
            .mcp(&["trust", "add", &format!("{bob}.pub"), "--service", name])
            .ok();
        let limited = head(&fleet, name);

        for keys in [
            format!("network = \"{other}\"\n"),
            "network = \"bridge\"\n".to_owned(),
            format!("volumes = [\"volume:{other}_data:/data\"]\n"),
        ] {
            fleet.write(&definition, &format!("{own}{keys}"));
            let refused = fleet.mcp(&["--key", &bob, "sync"]).exits(1);
            assert!(said(&refused).contains(".mcp/shared.toml"), "{refused}");
            assert!(said(&refused).contains(&definition), "{refused}");
            fleet.mcp(&["--key", &bob, "deploy", name]).exits(1);
        }
        assert_eq!(head(&fleet, name), limited);

        // Bob cannot list it himself; an owner can.
        fleet.write(&definition, &joined);
        fleet.write(
            ".mcp/shared.toml",
            &format!("[networks]\n{other} = [\"{name}\"]\n"),
        );
        fleet.mcp(&["--key", &bob, "sync"]).exits(7);
        fleet.git(&["add", ".mcp"]);
        fleet.git(&["commit", "--quiet", "-S", "-m", "shared", "--", ".mcp"]);
        fleet.log_in(name, "bob", "operator").unwrap();
        fleet.mcp(&["--key", &bob, "deploy", name]).ok();
        fleet.log_in(name, "alice", "admin").unwrap();
        let node = fleet.node(name);
        let container = node.engine().inspect(&format!("{name}-api")).unwrap();
        let networks = container.unwrap().network_settings.unwrap().networks;
        let networks = networks.unwrap();
        assert_eq!(networks.keys().collect::<Vec<_>>(), [&other]);

        // A list that is broken, or that lacks what is in use, is not taken.
        for text in [
            "[networks]\nx = \"share\"\n",
            "[files]\n",
            "# nothing any more\n",
        ] {
            fleet.write(".mcp/shared.toml", text);
            let refused = fleet.mcp(&["sync"]).exits(1);
            assert!(said(&refused).contains("shared.toml"), "{refused}");
        }
    });
}
