//! Single rules of who wins and what is done.

use super::super::*;
use super::changed;
use super::world::{EXITED, RUNNING, World, action, key, revision, service, shop, target};
use crate::definition::{DefinitionFile, compile};
use crate::observed::ContainerState;
use crate::samples;

pub(super) fn component(keys: &str) -> ComponentSpec {
    let text = format!(
        "name = \"shop\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"a.example.net/web:v1\"\n{keys}\n"
    );
    let file = DefinitionFile {
        path: "services/shop.toml",
        bytes: text.as_bytes(),
    };
    let set = compile(&[file], &samples::lookup).unwrap();
    set.services["shop"].components["web"].clone()
}

fn depends_on(name: &str) -> ComponentSpec {
    let mut spec = component("");
    spec.depends_on.insert(name.parse().unwrap());
    spec
}

/// Three components that run as they are wanted.
fn settled() -> World {
    let mut world = World::empty();
    for name in ["api", "db", "web"] {
        world.wants(name, component(""));
        world.has(name, component(""));
    }
    world
}

fn reasons(plan: &Plan) -> Vec<&str> {
    plan.services()
        .iter()
        .flat_map(|service| &service.blocked)
        .map(|blocked| blocked.obstacle.reason.as_str())
        .collect()
}

#[test]
fn only_what_changed_is_replaced_and_the_others_keep_their_containers() {
    let mut world = settled();
    world.wants("api", changed(&component("")));
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "api"), Some(ActionKind::Replace));
    for name in ["db", "web"] {
        assert_eq!(world.kind(&plan, name), Some(ActionKind::None));
    }
    let kept = world.of("web").container.clone();
    world.apply(&plan);
    assert_eq!(world.of("web").container, kept);
    assert!(world.deploy().is_noop());
}

#[test]
fn a_second_deploy_does_nothing() {
    let mut world = settled();
    world.deployed.clear();
    world.observed.clear();
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::Create));
    world.apply(&plan);
    assert!(world.deploy().is_noop());
}

#[test]
fn what_cannot_be_seen_is_not_said_to_be_up_to_date() {
    let mut world = settled();
    world.observed.insert(
        key("web"),
        Observed::Unknown {
            reason: "the engine is away".to_owned(),
        },
    );
    let plan = world.deploy();
    assert_eq!(
        reasons(&plan),
        ["the state of shop/web is unknown: the engine is away"]
    );
}

#[test]
fn a_stopped_component_is_started_by_a_deploy_that_names_it_and_by_no_other() {
    let mut world = settled();
    world.of("web").stopped_by = Some("kyle".to_owned());
    world.sees("web", EXITED);
    world.wants("web", changed(&component("")));
    let all = world.plan(Purpose::Deploy, None, Options::default());
    assert!(all.is_noop());
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert!(auto.is_noop());
    let named = world.plan(
        Purpose::Deploy,
        Some(&[target(Some("web"))]),
        Options::default(),
    );
    let web = action(&named, &key("web")).unwrap();
    assert!(web.clears_stop && web.kind == ActionKind::Replace);
}

#[test]
fn a_hold_is_released_by_a_deploy_of_that_component_alone() {
    let mut world = settled();
    for name in ["api", "web"] {
        world.of(name).held_at = Some(revision("9"));
    }
    let plan = world.plan(
        Purpose::Deploy,
        Some(&[target(Some("web"))]),
        Options::default(),
    );
    assert_eq!(
        action(&plan, &key("web")).unwrap().hold,
        HoldChange::Release
    );
    world.apply(&plan);
    assert_eq!(world.of("web").held_at, None);
    assert_eq!(world.of("api").held_at, Some(revision("9")));
}

#[test]
fn an_older_revision_is_held_where_it_is_deployed() {
    let mut world = settled();
    let plan = world.plan(Purpose::DeployRevision, Some(&shop()), Options::default());
    world.apply(&plan);
    let held = world.of("web").held_at;
    assert_eq!(held, Some(world.revision));
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert!(auto.is_noop());
}

#[test]
fn a_quarantined_spec_is_tried_again_by_an_operator_only() {
    let mut world = settled();
    let bad = changed(&component(""));
    world.quarantined.insert((key("web"), bad.digest()));
    world.wants("web", bad);
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::None));
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::Replace));
}

#[test]
fn what_is_held_is_repaired_as_it_is_and_moves_nowhere() {
    let mut world = settled();
    let before = world.of("web").clone();
    world.of("web").held_at = Some(revision("9"));
    world.wants("web", changed(&component("")));
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert!(auto.is_noop());
    world.observed.insert(key("web"), Observed::Absent);
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    let web = action(&auto, &key("web")).unwrap();
    assert_eq!(
        (web.kind, &web.reason),
        (ActionKind::Create, &Reason::ContainerMissing)
    );
    let after = web.after.as_ref().unwrap();
    assert_eq!(
        (after.spec_digest, after.revision, &after.image),
        (before.spec_digest, before.revision, &Some(before.image))
    );
    assert!(web.changes.is_empty() && web.hold == HoldChange::Keep);
    world.apply(&auto);
    assert_eq!(world.of("web").held_at, Some(revision("9")));
    let again = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert!(again.is_noop());
}

#[test]
fn the_last_good_spec_comes_back_where_the_next_is_quarantined() {
    let mut world = settled();
    let good = world.of("web").spec_digest;
    let bad = changed(&component(""));
    world.quarantined.insert((key("web"), bad.digest()));
    world.wants("web", bad);
    world.observed.insert(key("web"), Observed::Absent);
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::Create));
    let web = action(&auto, &key("web")).unwrap();
    assert_eq!(web.after.as_ref().unwrap().spec_digest, good);
    world.apply(&auto);
    let again = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert!(again.is_noop());
    // The fields of what is there are repaired to the same.
    world
        .of("web")
        .baseline
        .insert("memory".to_owned(), "as it was made".to_owned());
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    let web = action(&auto, &key("web")).unwrap();
    assert_eq!(web.kind, ActionKind::Replace);
    assert_eq!(web.after.as_ref().unwrap().spec_digest, good);
}

#[test]
fn what_had_ended_for_good_and_was_removed_stays_so_by_itself() {
    let mut world = settled();
    world.of("web").ended = true;
    world.observed.insert(key("web"), Observed::Absent);
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::None));
    world.of("web").held_at = Some(revision("9"));
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::None));
}

#[test]
fn what_is_held_and_does_not_converge_is_left_as_it_is() {
    let mut world = settled();
    let digest = world.of("web").spec_digest;
    world.of("web").held_at = Some(revision("9"));
    world
        .of("web")
        .baseline
        .insert("memory".to_owned(), "as it was made".to_owned());
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::Replace));
    world.quarantined.insert((key("web"), digest));
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::None));
}

#[test]
fn a_stop_comes_before_a_hold_and_neither_is_repaired() {
    let mut world = settled();
    world.of("web").held_at = Some(revision("9"));
    world.of("web").stopped_by = Some("kyle".to_owned());
    world.observed.insert(key("web"), Observed::Absent);
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    let web = action(&auto, &key("web")).unwrap();
    assert_eq!(
        (web.kind, &web.reason),
        (ActionKind::None, &Reason::StoppedBy("kyle".to_owned()))
    );
}

#[test]
fn an_inactive_service_stops_though_its_next_spec_is_quarantined() {
    let mut world = settled();
    let bad = changed(&component(""));
    world.quarantined.insert((key("web"), bad.digest()));
    world.wants("web", bad);
    world.settings_mut().active = false;
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::Stop));
}

#[test]
fn what_did_not_converge_is_replaced_by_an_operator_only() {
    let mut world = settled();
    let digest = world.of("web").spec_digest;
    world
        .of("web")
        .baseline
        .insert("memory".to_owned(), "as it was made".to_owned());
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::Replace));
    world.quarantined.insert((key("web"), digest));
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::None));
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::Replace));
}

#[test]
fn a_partial_target_with_an_absent_dependency_is_blocked_or_takes_it_along() {
    let mut world = World::empty();
    world.wants("db", component(""));
    world.wants("web", depends_on("db"));
    let web = [target(Some("web"))];
    let plan = world.plan(Purpose::Deploy, Some(&web), Options::default());
    assert_eq!(
        reasons(&plan),
        ["it depends on shop/db, which does not run"]
    );
    let with_deps = Options {
        with_deps: true,
        ..Options::default()
    };
    let plan = world.plan(Purpose::Deploy, Some(&web), with_deps);
    assert!(reasons(&plan).is_empty());
    assert_eq!(world.kind(&plan, "db"), Some(ActionKind::Create));
}

#[test]
fn a_dependency_at_an_older_spec_is_a_warning() {
    let mut world = settled();
    world.wants("db", changed(&component("")));
    world.wants("web", depends_on("db"));
    let plan = world.plan(
        Purpose::Deploy,
        Some(&[target(Some("web"))]),
        Options::default(),
    );
    assert!(reasons(&plan).is_empty());
    let web = action(&plan, &key("web")).unwrap();
    assert_eq!(web.warnings, ["shop/db runs at an older spec"]);
}

#[test]
fn a_dependency_that_ended_as_it_may_is_there() {
    let mut world = settled();
    world.of("db").spec = component("restart = \"on-failure\"");
    world.sees(
        "db",
        crate::observed::ContainerState::Exited {
            code: 0,
            oom: false,
        },
    );
    world.wants("web", depends_on("db"));
    let web = [target(Some("web"))];
    let plan = world.plan(Purpose::Deploy, Some(&web), Options::default());
    assert!(reasons(&plan).is_empty());
    world.sees("db", EXITED);
    let plan = world.plan(Purpose::Deploy, Some(&web), Options::default());
    assert_eq!(reasons(&plan).len(), 1);
}

#[test]
fn a_replaced_dependency_touches_no_dependant() {
    let mut world = settled();
    world.wants("web", depends_on("db"));
    world.has("web", depends_on("db"));
    world.wants("db", changed(&component("")));
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "db"), Some(ActionKind::Replace));
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::None));
}

#[test]
fn a_name_that_a_foreign_container_bears_blocks() {
    let mut world = World::empty();
    world.wants("web", component(""));
    world
        .foreign
        .insert("shop-web".to_owned(), ContainerId::new("f".repeat(64)));
    let plan = world.deploy();
    assert_eq!(
        reasons(&plan),
        ["the name shop-web is taken by container fffffff, which is not managed"]
    );
}

#[test]
fn a_changed_file_alone_asks_for_what_its_definition_says() {
    for (on_change, kind) in [
        ("recreate", ActionKind::Replace),
        ("restart", ActionKind::Restart),
        ("signal:HUP", ActionKind::Signal),
        ("none", ActionKind::None),
    ] {
        let spec = component(&format!(
            "files = [{{ from = \"files/shop/web.toml\", to = \"/etc/web.toml\", on_change = \"{on_change}\" }}]"
        ));
        let mut world = World::empty();
        world.has("web", spec.clone());
        let mut after = spec;
        for file in after.files.values_mut() {
            file.digest = Digest::of(b"other bytes");
        }
        world.wants("web", after.clone());
        let plan = world.deploy();
        assert_eq!(world.kind(&plan, "web"), Some(kind), "{on_change}");
        assert!(!plan.is_noop());
        world.apply(&plan);
        assert!(world.deploy().is_noop());
        // Beside another change, or where it does not run, a new container is made.
        world.has("web", world.deployed[&key("web")].spec.clone());
        world.wants("web", changed(&after));
        assert_eq!(
            world.kind(&world.deploy(), "web"),
            Some(ActionKind::Replace)
        );
    }
}

#[test]
fn a_component_that_was_removed_goes_with_its_service_unless_held() {
    let mut world = settled();
    world.drops("web");
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::Remove));
    assert!(plan.services()[0].removes());
    let other = world.plan(
        Purpose::Deploy,
        Some(&[target(Some("api"))]),
        Options::default(),
    );
    assert_eq!(world.kind(&other, "web"), None);
    world.of("web").held_at = Some(revision("9"));
    assert_eq!(world.kind(&world.deploy(), "web"), Some(ActionKind::None));
}

#[test]
fn a_component_that_cannot_be_seen_is_not_removed() {
    let mut world = settled();
    world.drops("web");
    world.cannot_see("web");
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::None));
    assert_eq!(reasons(&plan).len(), 1);
}

#[test]
fn an_orphaned_service_is_blocked_and_only_purge_takes_it() {
    let mut world = settled();
    world.wanted.clear();
    let plan = world.deploy();
    assert_eq!(reasons(&plan).len(), 1);
    assert!(plan.services()[0].actions.is_empty());
    let purge = world.lifecycle(|input| plan_purge(input, None, &BTreeSet::new()));
    assert!(purge.services()[0].removes());
}

#[test]
fn purge_takes_only_what_is_unwanted() {
    let world = settled();
    let wanted = BTreeSet::from([key("api"), key("web")]);
    let plan = world.lifecycle(|input| plan_purge(input, None, &wanted));
    let taken: Vec<&str> = plan.services()[0]
        .actions
        .iter()
        .map(|action| action.component.as_str())
        .collect();
    assert_eq!(taken, ["db"]);
    let named = world.lifecycle(|input| plan_purge(input, Some(&shop()), &wanted));
    assert_eq!(named.services()[0].blocked.len(), 2);
}

#[test]
fn an_inactive_service_is_stopped_and_not_started() {
    let mut world = settled();
    world.settings_mut().active = false;
    // One that crashed just now would be started again by its restart policy.
    world.sees("web", EXITED);
    world.wants("web", changed(&component("")));
    let plan = world.deploy();
    for name in ["api", "db", "web"] {
        assert_eq!(world.kind(&plan, name), Some(ActionKind::Stop));
    }
    world.apply(&plan);
    assert!(world.deploy().is_noop());
    let of_shop = BTreeSet::from([service()]);
    let start = world.lifecycle(|input| plan_start(input, &of_shop));
    assert_eq!(start.services()[0].blocked.len(), 3);
}

#[test]
fn an_active_service_is_started_again_also_by_the_agent_and_at_its_new_spec() {
    let mut world = settled();
    world.settings_mut().active = false;
    world.apply(&world.deploy());
    world.settings_mut().active = true;
    world.wants("web", changed(&component("")));
    for purpose in [Purpose::Deploy, Purpose::Auto] {
        let plan = world.plan(purpose, Some(&shop()), Options::default());
        assert_eq!(world.kind(&plan, "api"), Some(ActionKind::Start));
        assert_eq!(world.kind(&plan, "web"), Some(ActionKind::Replace));
    }
}

#[test]
fn from_what_cannot_be_seen_nothing_follows() {
    let mut world = settled();
    world.cannot_see("web");
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert!(auto.is_noop());
    world.observed.remove(&key("web"));
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::None));
    // Its old container may be there, and is in the way of a new one.
    world.wants("web", changed(&component("")));
    assert_eq!(
        world.kind(&world.deploy(), "web"),
        Some(ActionKind::Replace)
    );
}

#[test]
fn what_ended_by_itself_is_left_to_its_restart_policy_by_the_agent() {
    let mut world = settled();
    world.sees("web", EXITED);
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert!(auto.is_noop());
    assert_eq!(world.kind(&world.deploy(), "web"), Some(ActionKind::Start));
}

#[test]
fn jobs_run_in_a_deploy_that_changes_them_and_otherwise_only_where_asked() {
    let job = component("kind = \"job\"\nrestart = \"no\"");
    let mut world = World::empty();
    world.wants("web", job.clone());
    let auto = world.plan(Purpose::Auto, Some(&shop()), Options::default());
    assert_eq!(world.kind(&auto, "web"), Some(ActionKind::None));
    world.apply(&world.deploy());
    assert!(world.deploy().is_noop());
    let of_shop = BTreeSet::from([service()]);
    let ended = world.observed.clone();
    for is_gone in [false, true] {
        world.sees("web", RUNNING);
        if is_gone {
            world.observed.insert(key("web"), Observed::Absent);
        }
        for plan in [
            world.lifecycle(|input| plan_start(input, &of_shop)),
            world.lifecycle(|input| plan_restart(input, &of_shop)),
        ] {
            assert_eq!(world.kind(&plan, "web"), Some(ActionKind::None));
        }
    }
    world.observed = ended;
    world.wants("web", changed(&job));
    let back = world.plan(Purpose::Rollback, Some(&shop()), Options::default());
    assert_eq!(world.kind(&back, "web"), Some(ActionKind::None));
    let jobs = Options {
        jobs: true,
        ..Options::default()
    };
    let back = world.plan(Purpose::Rollback, Some(&shop()), jobs);
    assert_eq!(world.kind(&back, "web"), Some(ActionKind::Replace));
}

#[test]
fn an_emptied_engine_gets_back_what_should_run_and_nothing_else() {
    let mut world = settled();
    for name in ["job", "done", "held", "kept"] {
        world.wants(name, component(""));
        world.has(name, component(""));
    }
    world.of("job").spec = component("kind = \"job\"\nrestart = \"no\"");
    world.of("done").ended = true;
    world.of("held").held_at = Some(revision("b"));
    world.of("db").stopped_by = Some("kyle".to_owned());
    world.of("api").adopted = Some(Vec::new());
    let lost: BTreeSet<ComponentKey> = ["api", "db", "done", "held", "job", "web"]
        .into_iter()
        .map(key)
        .collect();
    for key in &lost {
        world.observed.insert(key.clone(), Observed::Absent);
    }
    let plan = world.lifecycle(|input| plan_bring_back(input, &lost));
    for name in ["held", "web"] {
        assert_eq!(world.kind(&plan, name), Some(ActionKind::Create), "{name}");
    }
    for name in ["api", "db", "done", "job", "kept"] {
        assert_eq!(world.kind(&plan, name), Some(ActionKind::None), "{name}");
    }
}

#[test]
fn the_plan_id_follows_specs_containers_and_policy() {
    let world = settled();
    let id = *world.deploy().id();
    let mut other = world.clone();
    other.wants("web", changed(&component("")));
    assert_ne!(*other.deploy().id(), id);
    let mut other = world.clone();
    other.of("web").container = ContainerId::new("another");
    assert_ne!(*other.deploy().id(), id);
    let mut other = world.clone();
    other.policy = Digest::of(b"another policy");
    assert_ne!(*other.deploy().id(), id);
}

#[test]
fn a_plan_does_the_same_as_another_whatever_the_revision() {
    let mut world = settled();
    world.wants("web", changed(&component("")));
    let first = world.deploy();
    world.advance("c");
    assert!(first.services()[0].does_the_same(&world.deploy().services()[0]));
    world.wants("api", changed(&component("")));
    assert!(!first.services()[0].does_the_same(&world.deploy().services()[0]));
}

#[test]
fn a_paused_container_is_let_go_on() {
    let mut world = settled();
    world.sees("web", ContainerState::Paused);
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::Start));
    let reason = action(&plan, &key("web")).map(|action| action.reason.clone());
    assert_eq!(reason, Some(Reason::Paused));
    world.apply(&plan);
    assert!(world.deploy().is_noop());
}
