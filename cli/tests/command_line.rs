//! The command as a process, without any node: exit codes, settings, definitions, repositories.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::Stdio;

mod workstation;

use workstation::{CA, SHOP, Workstation, login, node_add};

#[test]
fn a_wrong_command_line_ends_with_64() {
    let workstation = Workstation::new();
    for args in [
        &["lst"][..],
        &["deploy"],
        &["list", "--colour"],
        &["deploy", "a/b/c/d"],
        &[],
    ] {
        let said = workstation.mcp(args);
        assert_eq!(said.code, 64, "{args:?}: {}", said.err);
        assert_eq!(said.out, "", "{args:?}");
    }
}

#[test]
fn help_groups_the_commands_and_ends_with_0() {
    let said = Workstation::new().mcp(&["--help"]);
    assert_eq!(said.code, 0);
    for heading in [
        "Set-up:",
        "Definitions:",
        "Desired state:",
        "Deployment:",
        "Observation:",
        "Exit codes:",
    ] {
        assert!(said.out.contains(heading), "{heading}\n{}", said.out);
    }
    assert!(!said.out.contains('\x1b'));
}

#[test]
fn without_a_node_the_next_command_is_told() {
    let said = Workstation::new().mcp(&["list"]);
    assert_eq!(said.code, 64);
    assert_eq!(
        said.err,
        "error: no node is configured in HOME/config/mcp/mcp.toml\n\nhint: mcp node add NAME HOST:PORT --ca FILE\n"
    );
}

#[test]
fn settings_tell_where_they_come_from() {
    let workstation = Workstation::new();
    let output = workstation
        .command(&["config", "-o", "json", "--key", "~/.ssh/id"])
        .env("MCP_REPO", "/srv/desired")
        .output()
        .unwrap();
    let said = workstation.said(&output);
    let rows: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let of = |name: &str| {
        let row = rows
            .as_array()
            .unwrap()
            .iter()
            .find(|row| row["name"] == name)
            .unwrap();
        (
            row["value"].as_str().unwrap().to_owned(),
            row["origin"].as_str().unwrap().to_owned(),
        )
    };
    assert_eq!(
        of("repo"),
        ("/srv/desired".to_owned(), "variable MCP_REPO".to_owned())
    );
    assert_eq!(of("sign.key"), ("~/.ssh/id".to_owned(), "flag".to_owned()));
    assert_eq!(of("config").1, "default");
}

#[test]
fn an_unknown_setting_is_refused_with_its_place() {
    let workstation = Workstation::new();
    std::fs::create_dir_all(workstation.path("config/mcp")).unwrap();
    std::fs::write(workstation.path("config/mcp/mcp.toml"), "rep = \"x\"\n").unwrap();
    let said = workstation.mcp(&["config"]);
    assert_eq!(said.code, 64);
    assert!(
        said.err
            .starts_with("error: HOME/config/mcp/mcp.toml:1:1: unknown field `rep`"),
        "{}",
        said.err
    );
}

#[test]
fn nodes_are_added_listed_and_removed() {
    let workstation = Workstation::new();
    let said = node_add(&workstation, "rift", "127.0.0.1");
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.err.contains("rift at 127.0.0.1:9444"), "{}", said.err);
    let listed = workstation.mcp(&["node", "list", "-o", "json"]);
    let nodes: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
    assert_eq!(nodes[0]["node"], "rift");
    assert_eq!(nodes[0]["ca_cert"], "HOME/ca.pem");
    assert_eq!(node_add(&workstation, "rift", "other").code, 64);
    assert_eq!(workstation.mcp(&["node", "remove", "rift"]).code, 0);
    assert_eq!(workstation.mcp(&["node", "remove", "rift"]).code, 64);
    assert_eq!(workstation.mcp(&["node", "list", "-o", "json"]).out, "[]\n");
}

#[test]
fn a_node_that_is_away_is_unreachable() {
    let workstation = Workstation::new();
    // A port that was free a moment ago, and that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    node_add(&workstation, "rift", &format!("127.0.0.1:{port}"));
    login(&workstation);
    let said = workstation.mcp(&["list"]);
    assert_eq!(said.code, 8);
    assert!(
        said.err.starts_with(&format!(
            "error: rift is unreachable at 127.0.0.1:{port}\ncaused by: Connection refused"
        )),
        "{}",
        said.err
    );
}

#[test]
fn a_token_is_kept_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let workstation = Workstation::new();
    assert_eq!(workstation.mcp(&["whoami"]).code, 7);
    login(&workstation);
    let file = workstation.path("state/mcp/tokens/default");
    assert_eq!(
        std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(workstation.mcp(&["whoami"]).code, 0);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = workstation.mcp(&["whoami"]);
    assert_eq!(said.code, 7);
    assert!(
        said.err
            .contains("hint: chmod 600 HOME/state/mcp/tokens/default"),
        "{}",
        said.err
    );
    assert!(!said.err.contains("header.e30"));
    assert_eq!(workstation.mcp(&["logout"]).code, 0);
    assert!(!file.exists());
}

#[test]
fn no_token_is_refused_before_anything_is_sent() {
    let workstation = Workstation::new();
    node_add(&workstation, "rift", "127.0.0.1:1");
    let said = workstation.mcp(&["list"]);
    assert_eq!(said.code, 7);
    assert!(
        said.err
            .starts_with("error: the token for rift is missing\n"),
        "{}",
        said.err
    );
}

#[test]
fn init_makes_a_repository_that_stock_git_verifies() {
    let workstation = Workstation::with_repository();
    let status = workstation.git(&["status", "--porcelain"]);
    assert_eq!(status, "");
    workstation.git(&["verify-commit", "HEAD"]);
    let again = workstation.mcp(&["init", "--name", "alice"]);
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(again.out.contains("is set up already"), "{}", again.out);
    assert_eq!(workstation.git(&["rev-list", "--count", "HEAD"]), "1");
}

#[test]
fn a_repository_elsewhere_is_found_again() {
    let workstation = Workstation::new();
    assert_eq!(
        workstation
            .mcp(&["init", "desired", "--name", "alice"])
            .code,
        0
    );
    let said = workstation.mcp(&["service", "list"]);
    assert_eq!(
        (said.code, said.err.as_str()),
        (
            0,
            "no service is defined here\nhint: mcp service new NAME\n"
        )
    );
}

#[test]
fn a_new_service_checks_and_is_not_overwritten() {
    let workstation = Workstation::with_repository();
    let new = [
        "service", "new", "shop", "--node", "rift", "--image", "shop:v1", "--port", "8080:80",
    ];
    let said = workstation.mcp(&new);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(workstation.mcp(&["service", "check"]).out, "✓ 1 service\n");
    let again = workstation.mcp(&new);
    assert_eq!(again.code, 64);
    assert!(again.err.contains("exists already"), "{}", again.err);
    let shown = workstation.mcp(&["service", "show", "shop"]);
    assert!(shown.out.contains("restart"), "{}", shown.out);
    let listed = workstation.mcp(&["service", "list", "-o", "json"]);
    let services: serde_json::Value = serde_json::from_str(&listed.out).unwrap();
    assert_eq!(services[0]["components"][0]["component"], "shop");
}

#[test]
fn all_errors_of_all_definitions_are_told_at_once() {
    let workstation = Workstation::with_repository();
    workstation.define("shop", &SHOP.replace("image", "imge"));
    workstation.define(
        "till",
        "name = \"till\"\nnode = \"rift\"\nactive = \"yes\"\n",
    );
    let said = workstation.mcp(&["service", "check"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("services/shop.toml:6:1"), "{}", said.err);
    assert!(said.err.contains("services/till.toml:3:10"), "{}", said.err);
    assert!(said.err.contains("^^^^"), "{}", said.err);
    assert!(!said.err.contains('\x1b'), "{}", said.err);
    let said = workstation.mcp(&["service", "check", "-o", "json"]);
    assert_eq!(said.code, 1);
    let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(document["ok"], false);
    let first = &document["errors"][0];
    assert_eq!(first["file"], "services/shop.toml");
    assert!(first["line"].is_u64() && first["column"].is_u64() && first["message"].is_string());
}

#[test]
fn a_removed_definition_needs_consent() {
    let workstation = Workstation::with_repository();
    workstation.define("shop", SHOP);
    let said = workstation.mcp(&["service", "remove", "shop"]);
    assert_eq!(said.code, 64);
    assert!(said.err.contains("hint: agree with --yes"), "{}", said.err);
    assert!(workstation.repo().join("services/shop.toml").exists());
    assert_eq!(
        workstation
            .mcp(&["service", "remove", "shop", "--yes"])
            .code,
        0
    );
    assert!(!workstation.repo().join("services/shop.toml").exists());
}

#[test]
fn an_edit_is_saved_once_it_checks() {
    let workstation = Workstation::with_repository();
    workstation.define("shop", SHOP);
    let edit = |editor: &str| {
        let output = workstation
            .command(&["service", "edit", "shop"])
            .env("EDITOR", editor)
            .env("TMPDIR", workstation.folder.path())
            .output()
            .unwrap();
        workstation.said(&output)
    };
    let file = workstation.repo().join("services/shop.toml");
    // What does not check is not saved, and not lost.
    let said = edit("sed -i s/image/imge/");
    assert_eq!(said.code, 1);
    assert!(
        said.err.contains("the edit is kept in HOME/shop-"),
        "{}",
        said.err
    );
    let said = edit("");
    assert_eq!(said.code, 64, "{}", said.err);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), SHOP);
    assert_eq!(edit("sed -i s/v1/v2/").code, 0);
    assert_eq!(
        std::fs::read_to_string(&file).unwrap(),
        SHOP.replace("v1", "v2")
    );
    let said = edit("true");
    assert_eq!((said.code, said.err.as_str()), (0, "nothing was changed\n"));
}

#[test]
fn sync_refuses_a_node_that_is_unknown_here() {
    let workstation = Workstation::with_repository();
    workstation.define("shop", SHOP);
    let said = workstation.mcp(&["sync"]);
    assert_eq!(said.code, 1);
    assert!(
        said.err
            .starts_with("error: node `rift` is not configured\n"),
        "{}",
        said.err
    );
    assert!(
        said.err.contains("caused by: services/shop.toml names it"),
        "{}",
        said.err
    );
    assert_eq!(workstation.git(&["rev-list", "--count", "HEAD"]), "1");
}

#[test]
fn sync_commits_what_changed_and_tells_who_is_away() {
    let workstation = Workstation::with_repository();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    node_add(&workstation, "rift", &format!("127.0.0.1:{port}"));
    login(&workstation);
    workstation.define("shop", SHOP);
    std::fs::write(workstation.repo().join("notes.txt"), "mine").unwrap();
    let said = workstation.mcp(&["sync"]);
    assert_eq!(said.code, 8, "{}", said.err);
    assert!(said.out.contains("1 service, 1 component"), "{}", said.out);
    assert!(said.out.contains("rift  ✗ unreachable"), "{}", said.out);
    assert!(said.out.contains("signed alice"), "{}", said.out);
    workstation.git(&["verify-commit", "HEAD"]);
    assert_eq!(workstation.git(&["status", "--porcelain"]), "?? notes.txt");

    workstation.define("shop", &SHOP.replace("v1", "v2"));
    let said = workstation.mcp(&["diff"]);
    assert_eq!(said.out, "~ shop/web  changed\n    image  v1 -> v2\n");
    assert_eq!(workstation.mcp(&["sync"]).code, 8);
    assert_eq!(
        workstation.git(&["log", "-1", "--format=%s"]),
        "shop/web: image v1 -> v2"
    );
    // With nothing to commit it pushes the head.
    assert_eq!(workstation.mcp(&["sync"]).code, 8);
    assert_eq!(workstation.git(&["rev-list", "--count", "HEAD"]), "3");
}

#[test]
fn a_component_cannot_be_stopped_alone() {
    let workstation = Workstation::new();
    node_add(&workstation, "rift", "127.0.0.1:1");
    for command in ["start", "stop", "restart"] {
        let said = workstation.mcp(&[command, "shop/web"]);
        assert_eq!(said.code, 64);
        assert_eq!(
            said.err,
            format!(
                "error: {command} takes whole services, and shop/web is a component\n\nhint: mcp {command} shop\n"
            )
        );
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command_in_silence() {
    let workstation = Workstation::new();
    let mut child = workstation
        .command(&["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn manual_pages_and_completions_are_written() {
    let workstation = Workstation::new();
    assert_eq!(workstation.mcp(&["man", "man1"]).code, 0);
    assert!(workstation.path("man1/mcp-deploy.1").exists());
    for shell in ["bash", "zsh", "fish"] {
        let said = workstation.mcp(&["completions", shell]);
        assert!(said.out.contains("COMPLETE"), "{shell}");
    }
}

#[test]
fn services_and_components_are_completed() {
    let workstation = Workstation::with_repository();
    workstation.define("shop", SHOP);
    let output = workstation
        .command(&["--", "mcp", "deploy", "shop/"])
        .env("COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", "2")
        .env("_CLAP_COMPLETE_COMP_TYPE", "9")
        .env("_CLAP_COMPLETE_SPACE", "false")
        .output()
        .unwrap();
    assert_eq!(workstation.said(&output).out.trim(), "shop/web");
}

#[test]
fn errors_are_drawn_with_colour_only_where_it_was_asked_for() {
    let workstation = Workstation::new();
    assert!(
        workstation
            .mcp(&["list", "--color", "always"])
            .err
            .contains("\x1b[31m")
    );
    let output = workstation
        .command(&["list"])
        .env("MCP_COLOR", "always")
        .output()
        .unwrap();
    assert!(workstation.said(&output).err.contains("\x1b[31m"));
    assert!(!workstation.mcp(&["list"]).err.contains('\x1b'));
}

/// The folder that tests of the crate lie in holds the certificate.
#[test]
fn the_certificate_of_these_tests_is_one() {
    assert!(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ca.pem")).exists());
    assert!(CA.starts_with("-----BEGIN CERTIFICATE-----"));
}
