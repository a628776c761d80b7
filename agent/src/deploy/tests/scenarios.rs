//! Every kind of deployment, swept.

use super::node::Op;
use super::sweep::Step::{Do, Engine, Push};
use super::sweep::{Scenario, sweep};
use crate::registry::Outcome;

const SHOP: &str = "services/shop.toml";

const ONE: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "web"
image = "localhost/web:v1"
ready_for = "1s"
ports = ["8080:80"]
"#;

const NEWER: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "web"
image = "localhost/web:v2"
ready_for = "1s"
ports = ["8080:80"]
volumes = ["cache:/var/cache"]
"#;

const RENAMED: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "front"
image = "localhost/web:v1"
ready_for = "1s"
ports = ["8080:80"]
"#;

const INACTIVE: &str = r#"
name = "shop"
node = "rift"
active = false
[[components]]
name = "web"
image = "localhost/web:v1"
ready_for = "1s"
ports = ["8080:80"]
"#;

/// An API that a front end and a job depend on.
const THREE: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "api"
image = "localhost/api:v1"
ready_for = "1s"
[[components]]
name = "migrate"
kind = "job"
image = "localhost/migrate:v1"
[[components]]
name = "web"
image = "localhost/web:v1"
ready_for = "1s"
depends_on = ["api", "migrate"]
ports = ["8080:80"]
"#;

const THREE_NEWER: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "api"
image = "localhost/api:v2"
ready_for = "1s"
[[components]]
name = "migrate"
kind = "job"
image = "localhost/migrate:v2"
[[components]]
name = "web"
image = "localhost/web:v2"
ready_for = "1s"
depends_on = ["api", "migrate"]
ports = ["8080:80"]
"#;

/// The front end ends at once.
const THREE_BAD: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "api"
image = "localhost/api:v2"
ready_for = "1s"
[[components]]
name = "migrate"
kind = "job"
image = "localhost/migrate:v1"
[[components]]
name = "web"
image = "localhost/bad:v1"
ready_for = "1s"
depends_on = ["api", "migrate"]
ports = ["8080:80"]
"#;

const BAD: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "web"
image = "localhost/bad:v1"
ready_for = "1s"
"#;

/// Two front ends that exchange their ports.
const PAIR: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "left"
image = "localhost/web:v1"
ready_for = "1s"
ports = ["8080:80"]
[[components]]
name = "right"
image = "localhost/web:v1"
ready_for = "1s"
ports = ["8081:80"]
"#;

const PAIR_SWAPPED: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "left"
image = "localhost/web:v1"
ready_for = "1s"
ports = ["8081:80"]
[[components]]
name = "right"
image = "localhost/web:v1"
ready_for = "1s"
ports = ["8080:80"]
"#;

const FILES: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "web"
image = "localhost/web:v1"
ready_for = "1s"
files = [{ from = "files/shop/web.conf", to = "/etc/web.conf", on_change = "restart" }]
"#;

const SIGNALLED: &str = r#"
name = "shop"
node = "rift"
[[components]]
name = "web"
image = "localhost/web:v1"
ready_for = "1s"
files = [{ from = "files/shop/web.conf", to = "/etc/web.conf", on_change = "signal:HUP" }]
"#;

const CONF: &str = "files/shop/web.conf";

#[test]
fn a_first_deploy_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[Push(&[(SHOP, ONE)])],
        op: Op::Deploy,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_first_deploy_that_fails_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[Push(&[(SHOP, BAD)])],
        op: Op::Deploy,
        outcome: Outcome::Failed,
    });
}

#[test]
fn a_replacement_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[Push(&[(SHOP, ONE)]), Do(Op::Deploy), Push(&[(SHOP, NEWER)])],
        op: Op::Deploy,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_pulled_replacement_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, ONE)]),
            Do(Op::Deploy),
            Push(&[(SHOP, NEWER)]),
            Engine(|engine| engine.lose_image("localhost/web:v2")),
        ],
        op: Op::DeployOne("web"),
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_restart_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[Push(&[(SHOP, ONE)]), Do(Op::Deploy)],
        op: Op::Restart,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_stop_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[Push(&[(SHOP, THREE)]), Do(Op::Deploy)],
        op: Op::Stop,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_start_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[Push(&[(SHOP, THREE)]), Do(Op::Deploy), Do(Op::Stop)],
        op: Op::Start,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn an_inactive_service_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, ONE)]),
            Do(Op::Deploy),
            Push(&[(SHOP, INACTIVE)]),
        ],
        op: Op::Deploy,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_rename_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, ONE)]),
            Do(Op::Deploy),
            Push(&[(SHOP, RENAMED)]),
        ],
        op: Op::Deploy,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_removal_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[Push(&[(SHOP, THREE)]), Do(Op::Deploy), Push(&[(SHOP, ONE)])],
        op: Op::Deploy,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_purge_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, NEWER)]),
            Do(Op::Deploy),
            Push(&[(SHOP, ""), ("services/other.toml", OTHER)]),
        ],
        op: Op::Purge,
        outcome: Outcome::Deployed,
    });
}

const OTHER: &str = r#"
name = "other"
node = "rift"
[[components]]
name = "web"
image = "localhost/web:v1"
"#;

#[test]
fn a_rollback_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, ONE)]),
            Do(Op::Deploy),
            Push(&[(SHOP, NEWER)]),
            Do(Op::Deploy),
        ],
        op: Op::Rollback,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn several_components_and_a_job_come_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, THREE)]),
            Do(Op::Deploy),
            Push(&[(SHOP, THREE_NEWER)]),
        ],
        op: Op::Deploy,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_compensation_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, THREE)]),
            Do(Op::Deploy),
            Push(&[(SHOP, THREE_BAD)]),
        ],
        op: Op::Deploy,
        outcome: Outcome::RolledBack,
    });
}

#[test]
fn ports_that_are_exchanged_come_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, PAIR)]),
            Do(Op::Deploy),
            Push(&[(SHOP, PAIR_SWAPPED)]),
        ],
        op: Op::Deploy,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_changed_file_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, FILES), (CONF, "one")]),
            Do(Op::Deploy),
            Push(&[(CONF, "two")]),
        ],
        op: Op::Deploy,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_signalled_file_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[
            Push(&[(SHOP, SIGNALLED), (CONF, "one")]),
            Do(Op::Deploy),
            Push(&[(CONF, "two")]),
        ],
        op: Op::Deploy,
        outcome: Outcome::Deployed,
    });
}

#[test]
fn a_forced_deploy_comes_to_a_defined_end_after_every_fault() {
    sweep(&Scenario {
        past: &[Push(&[(SHOP, FILES), (CONF, "one")]), Do(Op::Deploy)],
        op: Op::Force,
        outcome: Outcome::Deployed,
    });
}
