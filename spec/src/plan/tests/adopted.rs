//! Containers that were taken over, and those that were changed by hand to what is wanted.

use super::super::*;
use super::changed;
use super::rules::component;
use super::world::{World, action, key, shop, target};

fn departure(field: &str) -> FieldChange {
    FieldChange {
        field: field.to_owned(),
        from: Some("always, by the engine".to_owned()),
        to: Some("always, by the agent".to_owned()),
    }
}

/// One component whose container was taken over, departing in these fields.
fn adopted(departures: &[&str]) -> World {
    let mut world = World::empty();
    world.has("web", component(""));
    let web = world.of("web");
    web.revision = CommitId::NONE;
    web.adopted = Some(departures.iter().map(|field| departure(field)).collect());
    world
}

fn reason(plan: &Plan) -> String {
    action(plan, &key("web")).unwrap().reason.to_string()
}

#[test]
fn what_is_the_same_in_effect_is_deployed_without_being_touched() {
    let mut world = adopted(&[]);
    world.wants("web", component(""));
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::None));
    assert_eq!(reason(&plan), "adopted as it is");
    assert!(!plan.is_noop(), "its revision moves on");
    let container = world.of("web").container.clone();
    world.apply(&plan);
    assert_eq!(world.of("web").container, container);
    assert!(world.deploy().is_noop());
}

#[test]
fn what_departs_is_replaced_with_every_departure_told() {
    let mut world = adopted(&["restart", "pids"]);
    world.wants("web", component(""));
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::Replace));
    let told = action(&plan, &key("web")).unwrap();
    let fields: Vec<&str> = told.changes.iter().map(|c| c.field.as_str()).collect();
    assert_eq!(fields, ["restart", "pids"]);
    assert_eq!(told.reason.to_string(), "adopted: restart, pids differ");
    // The very image that runs, whatever its tag stands for by now.
    let after = told.after.as_ref().unwrap();
    assert_eq!(after.image, Some(world.of("web").image.clone()));
}

#[test]
fn what_the_definition_changes_is_told_beside_the_departures() {
    let mut world = adopted(&["restart"]);
    world.wants("web", changed(&component("")));
    let plan = world.deploy();
    let told = action(&plan, &key("web")).unwrap();
    assert!(told.changes.len() >= 2, "{:?}", told.changes);
    assert!(told.changes.iter().any(|change| change.field == "restart"));
}

#[test]
fn a_container_that_its_engine_removes_is_warned_of() {
    let mut world = adopted(&[AUTO_REMOVE]);
    world.wants("web", component(""));
    let plan = world.deploy();
    assert_eq!(action(&plan, &key("web")).unwrap().warnings.len(), 1);
}

#[test]
fn the_agent_by_itself_leaves_what_was_only_adopted_alone() {
    let mut world = adopted(&["restart"]);
    world.wants("web", changed(&component("")));
    let plan = world.plan(Purpose::Auto, None, Options::default());
    assert!(plan.is_noop(), "{:#?}", plan.services());
}

#[test]
fn what_no_definition_ever_had_is_not_removed_by_a_deploy_nor_by_a_purge() {
    let world = adopted(&[]);
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::None));
    assert!(!plan.services()[0].removes());
    let wanted = BTreeSet::new();
    let all = world.lifecycle(|input| plan_purge(input, None, &wanted));
    assert!(all.is_noop(), "{:#?}", all.services());
    let named = [target(Some("web"))];
    let one = world.lifecycle(|input| plan_purge(input, Some(&named), &wanted));
    let blocked = &one.services()[0].blocked;
    assert!(
        blocked[0].obstacle.hint.contains("mcp forget shop/web"),
        "{blocked:?}"
    );
}

/// A component with 256 MiB that somebody has given 512 MiB while it ran.
fn enlarged() -> World {
    let mut world = World::empty();
    let mut spec = component("");
    spec.resources.memory_bytes = Some(256 << 20);
    world.has("web", spec);
    let fields = |mib: u64| {
        let pids = component("").resources.pids.to_string();
        let cpus = component("")
            .resources
            .cpu_millis
            .unwrap_or(0)
            .saturating_mul(1_000_000);
        let mut fields = BTreeMap::from([
            ("memory".to_owned(), (mib << 20).to_string()),
            ("memory_swap".to_owned(), (mib << 21).to_string()),
            ("pids".to_owned(), pids),
            ("cpus".to_owned(), cpus.to_string()),
        ]);
        if let crate::component::Network::User(attachments) = component("").network {
            fields.insert("network".to_owned(), "user".to_owned());
            for (name, attachment) in attachments {
                let aliases: Vec<String> = attachment.aliases.into_iter().collect();
                fields.insert(format!("network.{name}"), aliases.join(","));
            }
        }
        fields
    };
    world.of("web").baseline = fields(256);
    if let Some(Observed::Present(live)) = world.observed.get_mut(&key("web")) {
        live.fields = fields(512);
    }
    world
}

#[test]
fn a_live_value_that_is_wanted_now_is_taken_for_deployed_without_a_touch() {
    let mut world = enlarged();
    let mut spec = component("");
    spec.resources.memory_bytes = Some(512 << 20);
    world.wants("web", spec);
    let plan = world.deploy();
    assert_eq!(world.kind(&plan, "web"), Some(ActionKind::None));
    assert_eq!(reason(&plan), "memory, memory_swap so already");
    let kept = world.of("web").container.clone();
    world.apply(&plan);
    assert_eq!(world.of("web").container, kept);
    assert!(
        world
            .plan(Purpose::Deploy, Some(&shop()), Options::default())
            .is_noop()
    );
}

#[test]
fn a_live_value_that_is_not_the_wanted_one_leads_to_a_replacement() {
    let mut world = enlarged();
    let mut spec = component("");
    spec.resources.memory_bytes = Some(1 << 30);
    world.wants("web", spec.clone());
    assert_eq!(
        world.kind(&world.deploy(), "web"),
        Some(ActionKind::Replace)
    );
    // And so does a value beside it that nobody wants.
    spec.resources.memory_bytes = Some(512 << 20);
    let mut other = enlarged();
    other.wants("web", spec.clone());
    if let Some(Observed::Present(live)) = other.observed.get_mut(&key("web")) {
        live.fields.insert("pids".to_owned(), "7".to_owned());
    }
    assert_eq!(
        other.kind(&other.deploy(), "web"),
        Some(ActionKind::Replace)
    );
    // And so does anything else that is new.
    spec.env.insert("NEW".to_owned(), "1".to_owned());
    world.wants("web", spec);
    assert_eq!(
        world.kind(&world.deploy(), "web"),
        Some(ActionKind::Replace)
    );
}
