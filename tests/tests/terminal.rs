//! What a person sees and is asked on a terminal.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::process::Command;

use mcp_tests::engine::Lane;
use mcp_tests::fleet::Fleet;

const SERVICE: &str = "[[components]]\nname = \"web\"\nimage = \"localhost/mcp-test/busybox:v1\"\ncmd = [\"/bin/sh\", \"-c\", \"sleep 3600\"]\n";

/// A node with the service `NODE-shop`, which runs.
fn fleet(node: &str) -> Fleet {
    Lane::PodmanRoot.shared().enter().unwrap();
    let fleet = Fleet::with_node(Lane::PodmanRoot, node).unwrap();
    fleet.write(
        &format!("services/{node}-shop.toml"),
        &format!("name = \"{node}-shop\"\nnode = \"{node}\"\n{SERVICE}"),
    );
    fleet.mcp(&["sync", "-m", "first"]).ok();
    fleet.mcp(&["deploy", "--all", "--yes"]).ok();
    fleet
}

#[test]
fn removals_are_asked_about_and_no_is_no() {
    let fleet = fleet("asks");
    let one = format!("name = \"asks-shop\"\nnode = \"asks\"\n{SERVICE}");
    let two = one.clone() + &SERVICE.replace("\"web\"", "\"api\"");
    let file = "services/asks-shop.toml";
    fleet.write(file, &two);
    fleet.mcp(&["deploy", "asks-shop"]).ok();
    fleet.write(file, &one);
    let question = "Remove asks-shop/api on asks? [y/N] ";
    for answer in ["n", "", "yo"] {
        let mut terminal = fleet.mcp_on_terminal(&["deploy", "asks-shop"]).unwrap();
        terminal.sees(question).types(answer);
        let (code, screen) = terminal.ends().unwrap();
        assert_eq!(code, Some(64), "{screen}");
        assert!(screen.contains("nothing was done"), "{screen}");
        assert_eq!(fleet.ps().len(), 2);
    }
    // What is piped is no agreement.
    let piped = fleet
        .mcp_with(&["deploy", "asks-shop"], Some("y\n"))
        .unwrap();
    piped.exits(64).says("agree with --yes");
    assert_eq!(fleet.ps().len(), 2);
    let mut terminal = fleet.mcp_on_terminal(&["deploy", "asks-shop"]).unwrap();
    terminal.sees(question).types("y");
    let (code, screen) = terminal.ends().unwrap();
    assert_eq!(code, Some(0), "{screen}");
    assert_eq!(fleet.ps().len(), 1, "{screen}");
}

#[test]
fn passphrase_is_asked_for_and_not_shown() {
    let fleet = fleet("phrase");
    let key = fleet.key().to_str().unwrap();
    let changed = Command::new("ssh-keygen")
        .args(["-q", "-p", "-P", "", "-N", "open sesame", "-f", key])
        .status()
        .unwrap();
    assert!(changed.success());
    fleet.edit("services/phrase-shop.toml", "3600", "3601");
    let mut terminal = fleet.mcp_on_terminal(&["deploy", "phrase-shop"]).unwrap();
    terminal.sees("Passphrase for ").types_unseen("open sesame");
    let (code, screen) = terminal.ends().unwrap();
    assert_eq!(code, Some(0), "{screen}");
    assert!(!screen.contains("sesame"), "{screen}");
    let mut terminal = fleet.mcp_on_terminal(&["stop", "phrase-shop"]).unwrap();
    terminal.sees("Passphrase for ").types_unseen("open barley");
    terminal
        .sees("That was not it. Passphrase for ")
        .types_unseen("open sesame");
    let (code, screen) = terminal.ends().unwrap();
    assert_eq!(code, Some(0), "{screen}");
    // Nobody to ask: told, and not waited for.
    let alone = fleet.mcp(&["stop", "phrase-shop"]);
    assert_ne!(alone.code, Some(0), "{alone}");
    alone.says("assphrase");
}

#[test]
fn transfers_show_how_far_they_are() {
    let fleet = fleet("bars");
    let large = fleet.home().join("large");
    fs::write(&large, vec![7; 96 << 20]).unwrap();
    let large = large.to_str().unwrap();
    let terminal = fleet
        .mcp_on_terminal(&["push", large, "bars-shop:large"])
        .unwrap();
    let (code, screen) = terminal.ends().unwrap();
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains("MiB/96.00 MiB"), "{screen:?}");
    assert!(screen.contains("made"), "{screen:?}");
    let back = fleet.home().join("back");
    let back = back.to_str().unwrap();
    let terminal = fleet
        .mcp_on_terminal(&["pull", "bars-shop:large", back])
        .unwrap();
    let (code, screen) = terminal.ends().unwrap();
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains("MiB/96.00 MiB"), "{screen:?}");
    assert!(fs::read(large).unwrap() == fs::read(back).unwrap());
}
