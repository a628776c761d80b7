//! The main job on every engine: a signed revision becomes running containers, and goes back.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use bollard::models::ContainerInspectResponse;
use mcp_tests::definitions::{component, service};
use mcp_tests::engine::{BUSYBOX, Engine, Lane, eventually};
use mcp_tests::fleet::{Fleet, row, text};

mcp_tests::lanes!(
    first_deploy_runs_what_the_revision_says,
    second_deploy_does_nothing_and_says_so,
    only_the_changed_component_is_replaced,
    comment_and_order_of_keys_deploy_nothing,
    part_of_a_service_is_deployed_alone,
    rollback_brings_the_same_image_though_its_tag_moved,
    failing_gate_leaves_the_old_container_running,
    failing_component_takes_the_others_back_with_it,
    failed_first_deploy_leaves_nothing_running,
    missing_image_stops_nothing,
    foreign_container_of_the_name_is_left_alone,
    dependency_starts_first,
    changed_file_redeploys_what_mounts_it,
    job_runs_once_for_each_spec,
    removed_component_goes_with_consent_alone,
    forced_deploy_replaces_what_has_not_changed,
    detached_deploy_goes_on,
);

/// A running container as the engine tells it.
#[track_caller]
fn container(engine: &Engine, name: &str) -> ContainerInspectResponse {
    let found = engine.inspect(name).unwrap();
    found.unwrap_or_else(|| {
        panic!(
            "no container {name}: {}",
            engine.cli(&["ps", "-a"]).unwrap_or_default()
        )
    })
}

#[track_caller]
fn id(engine: &Engine, name: &str) -> String {
    container(engine, name).id.unwrap()
}

fn is_running(container: &ContainerInspectResponse) -> bool {
    container
        .state
        .as_ref()
        .and_then(|state| state.running)
        .unwrap_or(false)
}

fn image_of(container: &ContainerInspectResponse) -> String {
    container
        .image
        .clone()
        .unwrap()
        .trim_start_matches("sha256:")
        .to_owned()
}

/// Three components at `v1`, synced and deployed.
fn three(lane: Lane, name: &str) -> Fleet {
    let fleet = Fleet::with_node(lane, name).unwrap();
    let components = ["api", "web", "db"].map(|component_name| component(component_name, "v1", ""));
    fleet.write(
        &format!("services/{name}.toml"),
        &service(name, name, &components),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", name]).ok();
    fleet
}

/// Changes the image of one component of [`three`].
fn set_version(fleet: &Fleet, name: &str, component_name: &str, from: &str, to: &str) {
    let line =
        |version: &str| format!("name = \"{component_name}\"\nimage = \"{BUSYBOX}:{version}\"");
    fleet.edit(&format!("services/{name}.toml"), &line(from), &line(to));
}

fn first_deploy_runs_what_the_revision_says(lane: Lane) {
    let fleet = three(lane, "first");
    let engine = lane.shared();
    let head = fleet.git(&["rev-parse", "HEAD"]);
    for (name, listed) in fleet.list() {
        let container = container(engine, text(&listed, "container"));
        assert_eq!(
            container.name.as_deref().unwrap().trim_start_matches('/'),
            name.replace('/', "-")
        );
        assert!(is_running(&container), "{name} runs");
        assert_eq!(text(&listed, "revision"), head);
        assert_eq!(text(&listed, "head_revision"), head);
        assert_eq!(listed["behind"], 0);
        assert_eq!(text(&listed, "desired_state"), "running");
        assert_eq!(text(&listed, "observed_state"), "running");
        assert_eq!(text(&listed, "version"), "v1");
        assert!(listed["held"].is_null());
    }
    assert_eq!(fleet.list().len(), 3);
    let network = container(engine, "first-api")
        .network_settings
        .unwrap()
        .networks
        .unwrap();
    assert!(
        network.contains_key("first"),
        "the service has a network of its own: {network:?}"
    );
}

fn second_deploy_does_nothing_and_says_so(lane: Lane) {
    let fleet = three(lane, "second");
    let before: Vec<_> = ["api", "web", "db"]
        .map(|name| container(lane.shared(), &format!("second-{name}")))
        .into();
    let answer = fleet.mcp_json(&["deploy", "second"]);
    let deployment = &answer["deployments"][0];
    assert_eq!(text(deployment, "outcome"), "unchanged", "{answer}");
    for was in &before {
        let now = container(lane.shared(), was.id.as_deref().unwrap());
        assert_eq!(
            now.state.unwrap().started_at,
            was.state.as_ref().unwrap().started_at
        );
    }
    let shown = fleet.mcp(&["deploy", "second"]).ok();
    let said = format!("{}{}", shown.stdout, shown.stderr);
    assert!(
        said.contains("unchanged") || said.contains("nothing to do"),
        "{said}"
    );
    let plan = fleet.mcp(&["plan", "second", "--exit-code"]);
    assert_eq!(plan.code, Some(0), "{plan}");
}

fn only_the_changed_component_is_replaced(lane: Lane) {
    let fleet = three(lane, "change");
    let engine = lane.shared();
    let before = ["api", "web", "db"].map(|name| container(engine, &format!("change-{name}")));
    let old = fleet.git(&["rev-parse", "HEAD"]);
    set_version(&fleet, "change", "web", "v1", "v2");

    let plan = fleet.mcp(&["plan", "change", "--exit-code"]);
    assert_eq!(
        plan.code,
        Some(2),
        "an uncommitted edit is planned too: {plan}"
    );
    let synced = fleet.mcp_json(&["sync"]);
    assert_eq!(text(&synced["nodes"][0], "previous"), old);
    let listed = fleet.list();
    assert_eq!(
        listed["change/web"]["behind"], 1,
        "synced, and nothing deployed"
    );
    assert_eq!(
        listed["change/api"]["behind"], 0,
        "another component's change is not its own"
    );

    let plan = fleet.mcp_json(&["plan", "change"]);
    let actions = &plan["nodes"][0]["actions"];
    assert_eq!(text(row(actions, "web"), "action"), "replace");
    assert_eq!(text(row(actions, "api"), "action"), "none");
    assert_eq!(text(&row(actions, "web")["changes"][0], "field"), "image");

    let deployed = fleet.mcp_json(&["deploy", "change"]);
    let components = &deployed["deployments"][0]["components"];
    assert_eq!(text(&deployed["deployments"][0], "outcome"), "deployed");
    assert_eq!(text(row(components, "web"), "from_revision"), old);
    let after = ["api", "web", "db"].map(|name| container(engine, &format!("change-{name}")));
    let changed: Vec<bool> = before
        .iter()
        .zip(&after)
        .map(|(was, is)| was.id != is.id)
        .collect();
    assert_eq!(changed, [false, true, false]);
    for (was, is) in before
        .iter()
        .zip(&after)
        .filter(|(was, is)| was.id == is.id)
    {
        assert_eq!(
            was.state.as_ref().unwrap().started_at,
            is.state.as_ref().unwrap().started_at
        );
    }
    assert_eq!(
        engine
            .inspect(before[1].id.as_deref().unwrap())
            .unwrap()
            .map(|left| left.name),
        None,
        "the old one is gone"
    );
    let head = fleet.git(&["rev-parse", "HEAD"]);
    assert!(
        fleet
            .list()
            .values()
            .all(|listed| text(listed, "revision") == head),
        "all advanced to the head"
    );
}

fn comment_and_order_of_keys_deploy_nothing(lane: Lane) {
    let fleet = three(lane, "comment");
    let before = id(lane.shared(), "comment-api");
    fleet.edit(
        "services/comment.toml",
        "name = \"api\"\n",
        "# the front\nrestart = \"unless-stopped\"\nname = \"api\"\n",
    );
    fleet.mcp(&["sync"]).ok();
    assert_eq!(fleet.list()["comment/api"]["behind"], 0);
    let answer = fleet.mcp_json(&["deploy", "comment"]);
    assert_eq!(
        text(&answer["deployments"][0], "outcome"),
        "unchanged",
        "{answer}"
    );
    assert_eq!(id(lane.shared(), "comment-api"), before);
}

fn part_of_a_service_is_deployed_alone(lane: Lane) {
    let fleet = three(lane, "part");
    let engine = lane.shared();
    set_version(&fleet, "part", "api", "v1", "v2");
    set_version(&fleet, "part", "web", "v1", "v2");
    let web = id(engine, "part-web");
    fleet.mcp(&["deploy", "part/api"]).ok();
    let listed = fleet.list();
    assert_eq!(text(&listed["part/api"], "version"), "v2");
    assert_eq!(text(&listed["part/web"], "version"), "v1");
    assert_eq!(listed["part/web"]["behind"], 1);
    assert_eq!(id(engine, "part-web"), web);
}

fn rollback_brings_the_same_image_though_its_tag_moved(lane: Lane) {
    let engine = lane.shared();
    let tag = "localhost/mcp-test/moving:v1";
    engine
        .import_version(tag, "moving 1", "busybox", &[])
        .unwrap();
    let fleet = Fleet::with_node(lane, "moving").unwrap();
    let definition = |image: &str| {
        service(
            "moving",
            "moving",
            &[component("api", "v1", "").replace(&format!("{BUSYBOX}:v1"), image)],
        )
    };
    fleet.write("services/moving.toml", &definition(tag));
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "moving"]).ok();
    let first = fleet.git(&["rev-parse", "HEAD"]);
    let image = image_of(&container(engine, "moving-api"));

    fleet.write(
        "services/moving.toml",
        &definition(&format!("{BUSYBOX}:v2")),
    );
    fleet.mcp(&["deploy", "moving"]).ok();
    assert_ne!(image_of(&container(engine, "moving-api")), image);
    // The tag moves, and whatever has no name any more is swept away.
    engine
        .import_version(tag, "moving 2", "busybox", &[])
        .unwrap();
    engine.cli(&["image", "prune", "--force"]).unwrap();

    fleet.mcp(&["rollback", "moving"]).ok();
    let back = container(engine, "moving-api");
    assert!(is_running(&back));
    assert_eq!(image_of(&back), image);
    assert_eq!(
        engine
            .cli(&["exec", "moving-api", "cat", "/etc/version"])
            .unwrap(),
        "moving 1"
    );
    assert_eq!(text(&fleet.list()["moving/api"], "revision"), first);

    // And the same by the revision's name.
    fleet.mcp(&["deploy", "moving"]).ok();
    fleet.mcp(&["deploy", "moving", "--rev", &first]).ok();
    assert_eq!(image_of(&container(engine, "moving-api")), image);
}

fn failing_gate_leaves_the_old_container_running(lane: Lane) {
    let fleet = Fleet::with_node(lane, "gate").unwrap();
    let engine = lane.shared();
    let health = "health = { cmd = [\"grep\", \"-q\", \"v1\", \"/etc/version\"], interval = \"1s\", timeout = \"2s\", retries = 2 }\n";
    fleet.write(
        "services/gate.toml",
        &service(
            "gate",
            "gate",
            &[
                component("api", "v1", health),
                component("web", "v1", "depends_on = [\"api\"]\n"),
            ],
        ),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "gate"]).ok();
    let good = fleet.git(&["rev-parse", "HEAD"]);
    let before = container(engine, "gate-api");
    let web = container(engine, "gate-web");

    set_version(&fleet, "gate", "api", "v1", "v2");
    let answer = fleet.mcp(&["-o", "json", "deploy", "gate"]).exits(3).json();
    assert_eq!(
        text(&answer["deployments"][0], "outcome"),
        "rolled-back",
        "{answer}"
    );
    let after = container(engine, "gate-api");
    assert!(is_running(&after), "the old one runs");
    assert_eq!(after.id, before.id, "and it is the very same");
    assert_eq!(
        container(engine, "gate-web").state.unwrap().started_at,
        web.state.unwrap().started_at
    );
    assert_eq!(
        fleet.node("gate").containers().unwrap().len(),
        2,
        "nothing of the failed one is left"
    );
    let listed = &fleet.list()["gate/api"];
    assert_eq!(text(listed, "revision"), good);
    assert_eq!(text(listed, "version"), "v1");
    assert_eq!(listed["behind"], 1);

    let history = fleet.mcp_json(&["history", "gate"]);
    assert_eq!(text(&history[0], "outcome"), "rolled-back");
    fleet.mcp(&["why", "gate/api"]).ok();
    // What an operator does then: mend it, and go on.
    set_version(&fleet, "gate", "api", "v2", "v1");
    fleet.mcp(&["deploy", "gate"]).ok();
    assert_eq!(id(engine, "gate-api"), before.id.unwrap());
}

fn failing_component_takes_the_others_back_with_it(lane: Lane) {
    let fleet = Fleet::with_node(lane, "together").unwrap();
    let engine = lane.shared();
    let health = "depends_on = [\"db\"]\nhealth = { cmd = [\"grep\", \"-q\", \"v1\", \"/etc/version\"], interval = \"1s\", retries = 1 }\n";
    let definition = |version| {
        service(
            "together",
            "together",
            &[
                component("db", version, ""),
                component("api", version, health),
            ],
        )
    };
    fleet.write("services/together.toml", &definition("v1"));
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "together"]).ok();
    let before = [id(engine, "together-db"), id(engine, "together-api")];
    fleet.write("services/together.toml", &definition("v2"));
    fleet.mcp(&["deploy", "together"]).exits(3);
    assert_eq!(
        [id(engine, "together-db"), id(engine, "together-api")],
        before
    );
    assert!(is_running(&container(engine, "together-db")));
    assert!(is_running(&container(engine, "together-api")));
    assert_eq!(fleet.node("together").containers().unwrap().len(), 2);
}

fn failed_first_deploy_leaves_nothing_running(lane: Lane) {
    let fleet = Fleet::with_node(lane, "stillborn").unwrap();
    fleet.write(
        "services/stillborn.toml",
        &service(
            "stillborn",
            "stillborn",
            &[component(
                "api",
                "v1",
                "cmd = [\"sh\", \"-c\", \"echo no key; exit 4\"]\nready_for = \"1s\"\n",
            )],
        ),
    );
    fleet.mcp(&["sync"]).ok();
    let failed = fleet.mcp(&["deploy", "stillborn"]).exits(1);
    assert!(
        failed.stderr.contains("stillborn/api"),
        "the error names the component: {failed}"
    );
    assert!(failed.stderr.contains("hint:"), "{failed}");
    for left in fleet.node("stillborn").containers().unwrap() {
        assert!(!is_running(&container(lane.shared(), &left)));
    }
    let history = fleet.mcp_json(&["history", "stillborn"]);
    let deployment = text(&history[0], "deployment_id");
    let logs = fleet.mcp(&["logs", "stillborn/api", "--deployment", deployment]);
    assert!(
        logs.stdout.contains("no key"),
        "its last words are kept: {logs}"
    );
}

fn missing_image_stops_nothing(lane: Lane) {
    let fleet = three(lane, "missing");
    let engine = lane.shared();
    let before = container(engine, "missing-api");
    set_version(&fleet, "missing", "api", "v1", "v99");
    let failed = fleet.mcp(&["-o", "json", "deploy", "missing"]).exits(1);
    assert_eq!(
        text(&failed.json()["deployments"][0], "outcome"),
        "aborted",
        "{failed}"
    );
    let shown = format!("{}{}", failed.stdout, failed.stderr);
    assert!(shown.contains("busybox:v99"), "the image is named: {shown}");
    let after = container(engine, "missing-api");
    assert_eq!(after.id, before.id);
    assert_eq!(
        after.state.unwrap().started_at,
        before.state.unwrap().started_at,
        "it was never stopped"
    );
}

fn foreign_container_of_the_name_is_left_alone(lane: Lane) {
    let engine = lane.shared();
    let foreign = engine.run_foreign("taken-api", &[]).unwrap();
    let before = container(engine, &foreign);
    let fleet = Fleet::with_node(lane, "taken").unwrap();
    fleet.write(
        "services/taken.toml",
        &service("taken", "taken", &[component("api", "v1", "")]),
    );
    fleet.mcp(&["sync"]).ok();
    let refused = fleet.mcp(&["deploy", "taken"]);
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(
        refused.stderr.contains("taken-api"),
        "the name is told: {refused}"
    );
    let after = container(engine, &foreign);
    assert_eq!(after.id, before.id);
    assert_eq!(after.name, before.name);
    assert_eq!(
        after.state.unwrap().started_at,
        before.state.unwrap().started_at
    );
    assert!(
        fleet.node("taken").containers().unwrap().is_empty(),
        "and nothing else was made"
    );
    engine.remove("taken-api").unwrap();
    // With the name free the same deploy works.
    fleet.mcp(&["deploy", "taken"]).ok();
}

fn dependency_starts_first(lane: Lane) {
    let fleet = Fleet::with_node(lane, "order").unwrap();
    let engine = lane.shared();
    let gate = "health = { cmd = [\"test\", \"-e\", \"/tmp/up\"], interval = \"1s\", start_period = \"20s\" }\ncmd = [\"sh\", \"-c\", \"trap 'exit 0' TERM; sleep 1; touch /tmp/up; while :; do sleep 60 & wait $!; done\"]\n";
    fleet.write(
        "services/order.toml",
        &service(
            "order",
            "order",
            &[
                component("a-web", "v1", "depends_on = [\"z-db\"]\n"),
                component("z-db", "v1", gate),
            ],
        ),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "order"]).ok();
    let started = |name: &str| container(engine, name).state.unwrap().started_at.unwrap();
    let (db, web) = (started("order-z-db"), started("order-a-web"));
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
    assert!(
        at(&web).duration_since(at(&db)).as_millis() >= 1000,
        "web started {web}, db {db}: after its gate"
    );
    // A dependency's replacement touches no dependant.
    let before = id(engine, "order-a-web");
    set_version(&fleet, "order", "z-db", "v1", "v2");
    fleet.mcp(&["deploy", "order"]).ok();
    assert_eq!(id(engine, "order-a-web"), before);
}

fn changed_file_redeploys_what_mounts_it(lane: Lane) {
    let fleet = Fleet::with_node(lane, "files").unwrap();
    let engine = lane.shared();
    let mount =
        "files = [{ from = \"files/files/app.toml\", to = \"/etc/app.toml\", mode = \"0644\" }]\n";
    fleet.write("files/files/app.toml", "level = 1\n");
    fleet.write(
        "services/files.toml",
        &service(
            "files",
            "files",
            &[component("api", "v1", mount), component("web", "v1", "")],
        ),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "files"]).ok();
    assert_eq!(
        engine
            .cli(&["exec", "files-api", "cat", "/etc/app.toml"])
            .unwrap(),
        "level = 1"
    );
    let before = [id(engine, "files-api"), id(engine, "files-web")];
    fleet.write("files/files/app.toml", "level = 2\n");
    fleet.mcp(&["deploy", "files"]).ok();
    assert_eq!(
        engine
            .cli(&["exec", "files-api", "cat", "/etc/app.toml"])
            .unwrap(),
        "level = 2"
    );
    assert_ne!(id(engine, "files-api"), before[0]);
    assert_eq!(id(engine, "files-web"), before[1]);
    fleet.mcp(&["rollback", "files/api"]).ok();
    assert_eq!(
        engine
            .cli(&["exec", "files-api", "cat", "/etc/app.toml"])
            .unwrap(),
        "level = 1"
    );
}

fn job_runs_once_for_each_spec(lane: Lane) {
    let fleet = Fleet::with_node(lane, "job").unwrap();
    let engine = lane.shared();
    let count = "kind = \"job\"\nvolumes = [\"data:/data\"]\ncmd = [\"sh\", \"-c\", \"echo run >> /data/runs\"]\n";
    let look = "depends_on = [\"migrate\"]\nvolumes = [\"data:/data\"]\n";
    fleet.write(
        "services/job.toml",
        &service(
            "job",
            "job",
            &[
                component("migrate", "v1", count),
                component("app", "v1", look),
            ],
        ),
    );
    fleet.mcp(&["sync"]).ok();
    fleet.mcp(&["deploy", "job"]).ok();
    let runs = || {
        engine
            .cli(&["exec", "job-app", "cat", "/data/runs"])
            .unwrap()
            .lines()
            .count()
    };
    assert_eq!(runs(), 1);
    assert_eq!(
        text(&fleet.list()["job/migrate"], "observed_state"),
        "completed"
    );
    assert_eq!(
        fleet.mcp(&["status", "--exit-code"]).code,
        Some(0),
        "a job that ended well is no drift"
    );
    fleet.mcp(&["deploy", "job"]).ok();
    assert_eq!(runs(), 1, "an unchanged job does not run again");
    fleet.mcp(&["restart", "job"]).ok();
    assert_eq!(runs(), 1, "nor at a restart");
    set_version(&fleet, "job", "migrate", "v1", "v2");
    fleet.mcp(&["deploy", "job"]).ok();
    assert_eq!(runs(), 2);
}

fn removed_component_goes_with_consent_alone(lane: Lane) {
    let fleet = three(lane, "consent");
    let engine = lane.shared();
    fleet.write(
        "services/consent.toml",
        &service(
            "consent",
            "consent",
            &[component("api", "v1", ""), component("web", "v1", "")],
        ),
    );
    fleet.mcp(&["sync"]).ok();
    let asked = fleet.mcp(&["deploy", "consent"]).exits(64);
    assert!(asked.stderr.contains("--yes"), "{asked}");
    assert!(is_running(&container(engine, "consent-db")));
    fleet.mcp(&["deploy", "consent", "--yes"]).ok();
    assert!(engine.inspect("consent-db").unwrap().is_none());
    assert!(is_running(&container(engine, "consent-api")));
    // A service that no definition wants any more stays until it is purged.
    std::fs::remove_file(fleet.repo().join("services/consent.toml")).unwrap();
    fleet.mcp(&["sync"]).ok();
    assert!(is_running(&container(engine, "consent-api")));
    fleet.mcp(&["purge", "consent", "--yes"]).ok();
    assert!(engine.inspect("consent-api").unwrap().is_none());
    assert!(fleet.list().is_empty());
}

fn forced_deploy_replaces_what_has_not_changed(lane: Lane) {
    let fleet = three(lane, "force");
    let before = id(lane.shared(), "force-api");
    fleet.mcp(&["deploy", "force/api", "--force"]).ok();
    assert_ne!(id(lane.shared(), "force-api"), before);
}

fn detached_deploy_goes_on(lane: Lane) {
    let fleet = three(lane, "detach");
    set_version(&fleet, "detach", "api", "v1", "v2");
    fleet.mcp(&["deploy", "detach", "--detach"]).ok();
    eventually("the deployment ends", Duration::from_secs(30), || {
        let listed = fleet.list();
        Ok((text(&listed["detach/api"], "version") == "v2"
            && text(&listed["detach/api"], "observed_state") == "running")
            .then_some(()))
    })
    .unwrap();
    assert_eq!(
        lane.shared()
            .cli(&["exec", "detach-api", "cat", "/etc/version"])
            .unwrap(),
        "v2"
    );
}
