//! Laws of the planner.

mod adopted;
mod rules;
mod world;

use proptest::prelude::*;

use world::drawn;

use super::{ActionKind, HoldChange, Options, Purpose};
use crate::component::ComponentSpec;
use crate::observed::{DesiredState, Observed};

fn purpose() -> impl Strategy<Value = Purpose> {
    proptest::sample::select(vec![
        Purpose::Deploy,
        Purpose::DeployRevision,
        Purpose::Rollback,
        Purpose::Auto,
    ])
}

fn options() -> impl Strategy<Value = Options> {
    any::<(bool, bool)>().prop_map(|(with_deps, jobs)| Options {
        force: false,
        with_deps,
        jobs,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_that_was_applied_and_made_again_is_a_noop(
        mut world in drawn(),
        purpose in purpose(),
        options in options(),
        named: bool,
    ) {
        let targets = named.then(world::shop);
        let plan = world.plan(purpose, targets.as_deref(), options);
        prop_assume!(plan.services().iter().all(|service| service.blocked.is_empty()));
        world.apply(&plan);
        let again = world.plan(purpose, targets.as_deref(), options);
        prop_assert!(again.is_noop(), "{:#?}", again.services());
        prop_assert!(again.services().iter().all(|service| !service.touches_engine()));
    }

    #[test]
    fn equal_inputs_give_equal_plans(
        world in drawn(),
        purpose in purpose(),
        options in options(),
    ) {
        let first = world.plan(purpose, None, options);
        let second = world.plan(purpose, None, options);
        prop_assert_eq!(first.id(), second.id());
        prop_assert_eq!(first, second);
    }

    #[test]
    fn ignored_and_unknown_components_are_not_touched(
        world in drawn(),
        purpose in purpose(),
        force: bool,
    ) {
        let options = Options { force, ..Options::default() };
        let plan = world.plan(purpose, Some(&world::shop()), options);
        for (key, deployed) in &world.deployed {
            let action = world::action(&plan, key);
            let Some(action) = action.filter(|action| action.kind != ActionKind::None) else {
                continue;
            };
            prop_assert_ne!(deployed.desired, DesiredState::Ignore);
            if matches!(world.observed.get(key), None | Some(Observed::Unknown { .. })) {
                let is_blocked = plan.services()[0]
                    .blocked
                    .iter()
                    .any(|blocked| blocked.component.as_ref() == Some(&key.component));
                prop_assert!(is_blocked, "{action:#?}");
            }
        }
    }

    #[test]
    fn the_agent_by_itself_respects_stop_hold_and_quarantine_and_removes_and_runs_nothing(
        world in drawn(),
    ) {
        let plan = world.plan(Purpose::Auto, Some(&world::shop()), Options::default());
        for action in &plan.services()[0].actions {
            prop_assert_ne!(action.kind, ActionKind::Remove);
            prop_assert_eq!(action.hold, HoldChange::Keep);
            prop_assert!(!action.clears_stop);
            let key = world::key(action.component.as_str());
            let deployed = world.deployed.get(&key);
            if deployed.is_some_and(|deployed| deployed.stopped_by.is_some()) {
                prop_assert_eq!(action.kind, ActionKind::None);
                prop_assert!(action.after.is_none());
            }
            // What is held is repaired at most, as it is.
            if let Some((deployed, after)) = deployed.zip(action.after.as_ref())
                && deployed.held_at.is_some()
            {
                prop_assert_eq!(after.spec_digest, deployed.spec_digest);
                prop_assert_eq!(after.revision, deployed.revision);
                prop_assert_eq!(after.image.as_ref(), Some(&deployed.image));
            }
            if let Some(after) = &action.after {
                let moves = world
                    .deployed
                    .get(&key)
                    .is_none_or(|deployed| deployed.spec_digest != after.spec_digest);
                let is_job = after.spec.kind.is_job();
                prop_assert!(!is_job || matches!(action.kind, ActionKind::None | ActionKind::Stop));
                prop_assert!(!(moves && world.quarantined.contains(&(key, after.spec_digest))));
            }
        }
    }

    #[test]
    fn an_unchanged_running_component_is_left_alone(world in drawn()) {
        let plan = world.plan(Purpose::Deploy, Some(&world::shop()), Options::default());
        for action in &plan.services()[0].actions {
            let key = world::key(action.component.as_str());
            let (Some(deployed), Some(want)) = (world.deployed.get(&key), world.want(&key)) else {
                continue;
            };
            let runs = matches!(
                world.observed.get(&key),
                Some(Observed::Present(live)) if live.state.is_running() && live.fields == deployed.baseline
            );
            let same = deployed.spec == want.spec
                && world.moved.get(&key).is_none_or(|image| *image == deployed.image);
            if runs && same && world.settings().active {
                prop_assert_eq!(action.kind, ActionKind::None);
                prop_assert!(action.files.is_empty());
            }
        }
    }

    #[test]
    fn a_component_that_was_not_named_has_no_part_in_the_plan(world in drawn(), pick: proptest::sample::Index) {
        let names: Vec<_> = world.wanted[&world::service()].components.keys().cloned().collect();
        let name = &names[pick.index(names.len())];
        let target = [world::target(Some(name.as_str()))];
        let plan = world.plan(Purpose::Deploy, Some(&target), Options::default());
        prop_assert!(plan.services()[0].actions.iter().all(|action| action.component == *name));
    }

    #[test]
    fn a_stop_is_cleared_only_by_a_deploy_that_names_it(world in drawn(), purpose in purpose()) {
        let plan = world.plan(purpose, None, Options::default());
        prop_assert!(
            plan.services()
                .iter()
                .flat_map(|service| &service.actions)
                .all(|action| !action.clears_stop)
        );
    }

    #[test]
    fn the_plan_id_ignores_the_revision(world in drawn()) {
        let mut later = world.clone();
        later.advance("b");
        let options = Options::default();
        let plan = world.plan(Purpose::Deploy, None, options);
        let again = later.plan(Purpose::Deploy, None, options);
        prop_assert_eq!(plan.id(), again.id());
    }
}

/// Makes another spec of one.
fn changed(spec: &ComponentSpec) -> ComponentSpec {
    let mut spec = spec.clone();
    spec.env.insert("CHANGED".to_owned(), "yes".to_owned());
    spec
}
