//! Tokens of an identity service, from log-in to log-out, and what holds while it is away.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use mcp_tests::engine::{Lane, eventually};
use mcp_tests::fleet::{Fleet, Output, text};
use mcp_tests::lanes;
use mcp_tests::mcias::{Account, ISSUER, Mcias, Presence};
use serde_json::{Value, json};

lanes!(log_in_deploy_renew_and_log_out);

/// How long something may take that follows by itself: a fetch that is held back for seconds, on a slow machine.
const SOON: Duration = Duration::from_secs(60);
const PASSWORD: &str = "correct-horse-battery";
const CODE: &str = "271828";
/// Alice's name at the service, which is no name that people have.
const ALICE: &str = "6f1a2b3c-0000-4000-8000-00000000a11c";

fn account(id: &str, code: Option<&str>, role: &str) -> Account {
    Account {
        id: id.to_owned(),
        password: PASSWORD.to_owned(),
        code: code.map(str::to_owned),
        roles: vec![role.to_owned()],
    }
}

/// A node that trusts a stand-in, a workstation that knows it, and the service `NODE-shop`, which runs.
fn fleet(lane: Lane, node: &str) -> (Fleet, Mcias) {
    let mut fleet = Fleet::with_node(lane, node).unwrap();
    let mcias = Mcias::start().unwrap();
    mcias.add("alice", account(ALICE, Some(CODE), "admin"));
    mcias.add("bob", account("bob", None, "guest"));
    mcias.add("carol", account("carol", None, "nobody"));
    let service = format!("{node}-shop");
    fleet.write(
        &format!("services/{service}.toml"),
        &format!(
            "name = \"{service}\"\nnode = \"{node}\"\n[[components]]\nname = \"web\"\n\
             image = \"localhost/mcp-test/busybox:v1\"\ncmd = [\"/bin/sh\", \"-c\", \"sleep 3600\"]\n"
        ),
    );
    fleet.mcp(&["sync", "-m", "first"]).ok();
    fleet.mcp(&["deploy", "--all", "--yes"]).ok();
    trust(&mut fleet, node, &mcias);
    let config = fleet.home().join(".config/mcp/mcp.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let ca = mcias.ca_file();
    let more = format!(
        "\n[mcias]\nserver_url = \"{}\"\nca_cert = \"{}\"\nservice_name = \"mcp\"\n",
        mcias.url(),
        ca.display()
    );
    std::fs::write(config, text + &more).unwrap();
    // What the node itself gave is forgotten.
    fleet.mcp(&["logout"]).ok();
    (fleet, mcias)
}

/// Has a node believe the stand-in's tokens and ask it about them.
fn trust(fleet: &mut Fleet, node: &str, mcias: &Mcias) {
    let agent = fleet.node_mut(node);
    agent.terminate().unwrap();
    let ca = agent.dir().join("mcias-ca.pem");
    std::fs::write(&ca, mcias.ca()).unwrap();
    let config = agent.config();
    let toml = std::fs::read_to_string(&config).unwrap();
    let auth = format!(
        "[auth]\nissuer = \"{ISSUER}\"\njwks = \"{url}/v1/keys/public\"\n\
         validate_url = \"{url}/v1/token/validate\"\nca_cert = \"{ca}\"\n\
         roles = {{ admin = \"operator\", guest = \"viewer\" }}\n",
        url = mcias.url(),
        ca = ca.display(),
    );
    let toml = toml.replacen("[auth]\n", &auth, 1);
    let principals = format!("\n[trust.principals]\n\"{ALICE}\" = \"alice\"\n");
    std::fs::write(config, toml + &principals).unwrap();
    agent.serve().unwrap();
}

fn token_file(fleet: &Fleet) -> PathBuf {
    fleet.home().join(".local/state/mcp/tokens/default")
}

fn token(fleet: &Fleet) -> String {
    std::fs::read_to_string(token_file(fleet)).unwrap()
}

fn log_in(fleet: &Fleet, user: &str, input: &str) -> Output {
    let args = ["login", "--user", user, "--password-stdin"];
    let output = fleet.mcp_with(&args, Some(input)).unwrap();
    for said in [&output.stdout, &output.stderr] {
        assert!(!said.contains(PASSWORD) && !said.contains(CODE), "{output}");
    }
    output
}

/// Keeps a token that did not come from a log-in.
fn take(fleet: &Fleet, token: &str) {
    let args = ["login", "--token-stdin"];
    fleet.mcp_with(&args, Some(token)).unwrap().ok();
}

/// Waits until a component runs, as the agent sees it.
fn runs(fleet: &Fleet, component: &str) {
    let state = || text(&fleet.ps()[component], "observed_state").to_owned();
    eventually("it runs", SOON, || Ok((state() == "running").then_some(())))
        .unwrap_or_else(|error| panic!("{error:#}: {}", state()));
}

fn log_in_deploy_renew_and_log_out(lane: Lane) {
    let (fleet, mcias) = fleet(lane, "ident");
    let web = "ident-shop/web";
    fleet.mcp(&["list"]).exits(7).says("hint: mcp login");
    // Wrong in each way, and then right.
    log_in(&fleet, "alice", "guess\n")
        .exits(7)
        .says("with this password");
    log_in(&fleet, "mallory", &format!("{PASSWORD}\n")).exits(7);
    log_in(&fleet, "alice", &format!("{PASSWORD}\n"))
        .exits(7)
        .says("wants a one-time code");
    log_in(&fleet, "alice", &format!("{PASSWORD}\n000000\n"))
        .exits(7)
        .says("one-time code");
    assert!(
        !token_file(&fleet).exists(),
        "a failed log-in keeps nothing"
    );
    log_in(&fleet, "alice", &format!("{PASSWORD}\n{CODE}\n")).ok();
    let mode = std::fs::metadata(token_file(&fleet)).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);

    let whoami = fleet.mcp_json(&["whoami"]);
    assert_eq!(text(&whoami[0], "subject"), ALICE, "{whoami}");
    assert_eq!(text(&whoami[0], "may"), "operator", "{whoami}");
    fleet.edit("services/ident-shop.toml", "3600", "3601");
    fleet.mcp(&["deploy", "ident-shop", "--yes"]).ok();
    runs(&fleet, web);

    // Half of the life that agents grant it is over: it is renewed in passing, once for all.
    let aged = mcias.token("alice", 7 * 3600, &Value::Null);
    take(&fleet, &aged);
    fleet.mcp(&["list"]).ok();
    let renewed = token(&fleet);
    assert_ne!(renewed.trim(), aged);
    assert!(mcias.is_revoked(&aged));
    fleet.mcp(&["list"]).ok();
    assert_eq!(token(&fleet), renewed, "a young token stays");
    // What is older than agents take is renewed just as well.
    take(&fleet, &mcias.token("alice", 20 * 3600, &Value::Null));
    fleet.mcp(&["stop", "ident-shop"]).ok();

    // A viewer looks, and somebody without a role here does not even that.
    let alices = token(&fleet);
    log_in(&fleet, "bob", &format!("{PASSWORD}\n")).ok();
    fleet.mcp(&["list"]).ok();
    fleet
        .mcp(&["start", "ident-shop"])
        .exits(7)
        .says("is viewer");
    log_in(&fleet, "carol", &format!("{PASSWORD}\n")).ok();
    fleet.mcp(&["list"]).exits(7).says("no role of carol");
    assert!(!mcias.is_revoked(&alices));

    take(&fleet, &alices);
    fleet.mcp(&["start", "ident-shop"]).ok();
    runs(&fleet, web);
    fleet.mcp(&["logout"]).ok().says("took the token back");
    assert!(mcias.is_revoked(&alices));
    assert!(!token_file(&fleet).exists());
    let log = fleet.node("ident").log();
    assert!(!log.contains(alices.trim()), "no token is in a log");
}

/// On one engine: none is asked.
fn alone(node: &str) -> (Fleet, Mcias) {
    let lane = Lane::PodmanRoot;
    lane.shared().enter().unwrap();
    fleet(lane, node)
}

#[test]
fn log_in_asks_on_a_terminal_and_shows_no_secret() {
    let (fleet, _mcias) = alone("asked");
    let mut terminal = fleet.mcp_on_terminal(&["login"]).unwrap();
    terminal.sees("user name: ").types("alice");
    terminal.sees("password: ").types_unseen(PASSWORD);
    terminal.sees("one-time code: ").types_unseen(CODE);
    terminal.sees("kept in");
    let (code, screen) = terminal.ends().unwrap();
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains("alice"), "{screen}");
    assert!(
        !screen.contains(PASSWORD) && !screen.contains(CODE),
        "{screen}"
    );
    fleet.mcp(&["list"]).ok();
    fleet.mcp(&["logout"]).ok();
    // Where a wrong password was typed, and where nothing was.
    let mut terminal = fleet
        .mcp_on_terminal(&["login", "--user", "alice"])
        .unwrap();
    terminal.sees("password: ").types_unseen("guess");
    let (code, screen) = terminal.ends().unwrap();
    assert_eq!(code, Some(7), "{screen}");
    let mut terminal = fleet
        .mcp_on_terminal(&["login", "--user", "alice"])
        .unwrap();
    terminal.sees("password: ").types_unseen("");
    let (code, screen) = terminal.ends().unwrap();
    assert_eq!(code, Some(64), "{screen}");
    assert!(!token_file(&fleet).exists());
}

#[test]
fn while_the_service_is_away_looking_goes_on_and_changes_fail_closed() {
    let (mut fleet, mcias) = alone("outage");
    let web = "outage-shop/web";
    for presence in [Presence::Away, Presence::Silent] {
        // Nobody was asked about this one so far, so no answer of before counts.
        take(&fleet, &mcias.token("alice", 0, &Value::Null));
        mcias.is(presence);
        fleet.mcp(&["list"]).ok();
        fleet
            .mcp(&["stop", "outage-shop"])
            .exits(7)
            .says("cannot be asked")
            .says("mcp-agent token issue");
        runs(&fleet, web);
        mcias.is(Presence::Here);
        eventually("changes are taken again", SOON, || {
            Ok((fleet.mcp(&["stop", "outage-shop"]).code == Some(0)).then_some(()))
        })
        .unwrap();
        fleet.mcp(&["start", "outage-shop"]).ok();
    }
    let audit = fleet.mcp_json(&["events", "--audit", "-n", "40"]);
    let away = audit.as_array().unwrap().iter();
    assert!(
        away.clone().any(|row| row["result"] == "issuer-away"),
        "{audit:#}"
    );

    // The agent's own tokens are never asked about, over a restart too, and the keys that were fetched stay known.
    mcias.is(Presence::Away);
    fleet.node_mut("outage").terminate().unwrap();
    fleet.node_mut("outage").serve().unwrap();
    take(&fleet, &mcias.token("bob", 0, &Value::Null));
    fleet.mcp(&["list"]).ok();
    fleet.log_in("outage", "alice", "operator").unwrap();
    fleet.mcp(&["stop", "outage-shop"]).ok();
    fleet.mcp(&["logout", "--node", "outage"]).ok();

    // Who logs out meanwhile hears what that does not do.
    take(&fleet, &mcias.token("alice", 0, &Value::Null));
    fleet
        .mcp(&["logout"])
        .ok()
        .says("is unreachable")
        .says("can use it until");
    assert!(!token_file(&fleet).exists());
    log_in(&fleet, "alice", &format!("{PASSWORD}\n{CODE}\n"))
        .exits(8)
        .says("is unreachable");
}

#[test]
fn keys_are_rotated_without_a_restart_and_revoked_tokens_count_no_more() {
    let (fleet, mcias) = alone("rotate");
    let old = mcias.token("alice", 0, &Value::Null);
    take(&fleet, &old);
    fleet.mcp(&["list"]).ok();
    mcias.rotate(true);
    let second = mcias.token("alice", 0, &Value::Null);
    take(&fleet, &second);
    // The unknown key has the agent fetch the keys at once.
    fleet.mcp(&["list"]).ok();
    take(&fleet, &old);
    fleet.mcp(&["list"]).ok();

    let revoked = mcias.token("alice", 0, &Value::Null);
    mcias.revoke(&revoked);
    take(&fleet, &revoked);
    let is_refused = || fleet.mcp(&["list"]).exits(7);
    is_refused().says("does not count any more");
    // It stays so while nobody can be asked.
    mcias.is(Presence::Away);
    is_refused().says("does not count any more");
    mcias.is(Presence::Here);

    // The old keys are withdrawn: what they signed counts for nothing once the new ones came. The next fetch may be
    // held back for seconds.
    mcias.rotate(false);
    take(&fleet, &mcias.token("alice", 0, &Value::Null));
    eventually("the third key counts", SOON, || {
        Ok((fleet.mcp(&["list"]).code == Some(0)).then_some(()))
    })
    .unwrap();
    take(&fleet, &old);
    is_refused().says("refused");
}

#[test]
fn token_is_narrowed_to_services_and_nodes_and_roles_fall_at_once() {
    let (fleet, mcias) = alone("narrow");
    fleet.mcp(&["list"]).exits(7);
    let narrowed = |more: Value| {
        take(&fleet, &mcias.token("alice", 0, &more));
    };
    narrowed(json!({ "mcp_services": ["other"] }));
    assert_eq!(fleet.mcp_json(&["list"]), json!([]));
    fleet
        .mcp(&["stop", "narrow-shop"])
        .exits(7)
        .says("does not cover");
    let whoami = fleet.mcp_json(&["whoami"]);
    assert_eq!(whoami[0]["services"], json!(["other"]), "{whoami}");
    narrowed(json!({ "mcp_nodes": ["elsewhere"] }));
    fleet
        .mcp(&["list"])
        .exits(7)
        .says("does not cover node narrow");
    narrowed(json!({ "mcp_services": ["narrow-shop"], "mcp_nodes": ["narrow"] }));
    fleet.mcp(&["stop", "narrow-shop"]).ok();
    // The token says admin, and the service knows better by now.
    let token = mcias.token("alice", 0, &Value::Null);
    mcias.add("alice", account(ALICE, None, "guest"));
    take(&fleet, &token);
    fleet.mcp(&["list"]).ok();
    fleet
        .mcp(&["start", "narrow-shop"])
        .exits(7)
        .says("is viewer");
}
