//! A model of one node: what is wanted, deployed and seen, and what a plan makes of it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::*;
use crate::observed::{ContainerState, LiveContainer};
use crate::samples;

/// The model.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) revision: CommitId,
    pub(super) wanted: BTreeMap<ServiceName, WantedService>,
    pub(super) deployed: BTreeMap<ComponentKey, Deployed>,
    pub(super) observed: BTreeMap<ComponentKey, Observed>,
    pub(super) foreign: BTreeMap<String, ContainerId>,
    pub(super) moved: BTreeMap<ComponentKey, ImageId>,
    pub(super) quarantined: BTreeSet<(ComponentKey, Digest)>,
    pub(super) policy: Digest,
    made: u64,
}

pub(super) fn service() -> ServiceName {
    "shop".parse().unwrap()
}

pub(super) fn key(component: &str) -> ComponentKey {
    ComponentKey::new(service(), component.parse().unwrap())
}

pub(super) fn target(component: Option<&str>) -> Target {
    Target {
        node: None,
        service: service(),
        component: component.map(|name| name.parse().unwrap()),
    }
}

/// The whole service, named.
pub(super) fn shop() -> Vec<Target> {
    vec![target(None)]
}

pub(super) fn revision(digit: &str) -> CommitId {
    digit.repeat(40).parse().unwrap()
}

pub(super) fn action<'a>(plan: &'a Plan, key: &ComponentKey) -> Option<&'a Action> {
    plan.services()
        .iter()
        .filter(|service| service.service == key.service)
        .flat_map(|service| &service.actions)
        .find(|action| action.component == key.component)
}

fn baseline() -> BTreeMap<String, String> {
    BTreeMap::from([("memory".to_owned(), "512 MiB".to_owned())])
}

pub(super) const RUNNING: ContainerState = ContainerState::Running { pid: Some(7) };

pub(super) const EXITED: ContainerState = ContainerState::Exited {
    code: 137,
    oom: false,
};

impl World {
    /// Nothing wanted, nothing there.
    pub(super) fn empty() -> Self {
        Self {
            revision: revision("a"),
            wanted: BTreeMap::from([(
                service(),
                WantedService {
                    settings: ServiceSettings::default(),
                    components: BTreeMap::new(),
                },
            )]),
            deployed: BTreeMap::new(),
            observed: BTreeMap::new(),
            foreign: BTreeMap::new(),
            moved: BTreeMap::new(),
            quarantined: BTreeSet::new(),
            policy: Digest::of(b"policy"),
            made: 0,
        }
    }

    pub(super) fn settings(&self) -> ServiceSettings {
        self.wanted
            .get(&service())
            .map_or_else(ServiceSettings::default, |service| service.settings)
    }

    pub(super) fn settings_mut(&mut self) -> &mut ServiceSettings {
        &mut self.wanted.get_mut(&service()).unwrap().settings
    }

    /// Another head that says the same.
    pub(super) fn advance(&mut self, digit: &str) {
        self.revision = revision(digit);
        for service in self.wanted.values_mut() {
            for want in service.components.values_mut() {
                want.revision = self.revision;
            }
        }
    }

    pub(super) fn want(&self, key: &ComponentKey) -> Option<&Wanted> {
        self.wanted
            .get(&key.service)?
            .components
            .get(&key.component)
    }

    /// Wants a component.
    pub(super) fn wants(&mut self, name: &str, spec: ComponentSpec) {
        let revision = self.revision;
        let components = &mut self.wanted.get_mut(&service()).unwrap().components;
        components.insert(
            name.parse().unwrap(),
            Wanted {
                spec,
                revision,
                image: None,
                uncommitted: false,
            },
        );
    }

    /// Wants it no more.
    pub(super) fn drops(&mut self, name: &str) {
        let components = &mut self.wanted.get_mut(&service()).unwrap().components;
        components.remove(name);
    }

    /// Has a component deployed and running.
    pub(super) fn has(&mut self, name: &str, spec: ComponentSpec) {
        self.made += 1;
        let key = key(name);
        let deployed = Deployed {
            spec_digest: spec.digest(),
            spec,
            image: ImageId::new("sha256:1"),
            revision: self.revision,
            container: ContainerId::new(format!("c{:039}", self.made)),
            generation: self.made,
            desired: DesiredState::Running,
            stopped_by: None,
            held_at: None,
            baseline: baseline(),
            restarts: 0,
            ended: false,
            adopted: None,
        };
        self.deployed.insert(key.clone(), deployed);
        self.sees(name, RUNNING);
    }

    pub(super) fn of(&mut self, name: &str) -> &mut Deployed {
        self.deployed.get_mut(&key(name)).unwrap()
    }

    /// Sees the registered container in a state.
    pub(super) fn sees(&mut self, name: &str, state: ContainerState) {
        let key = key(name);
        let deployed = &self.deployed[&key];
        let live = LiveContainer {
            id: deployed.container.clone(),
            name: key.container_name(),
            image_id: deployed.image.clone(),
            image_name: String::new(),
            state,
            labels: BTreeMap::new(),
            started_at: None,
            finished_at: None,
            fields: deployed.baseline.clone(),
            addresses: BTreeMap::new(),
        };
        self.observed.insert(key, Observed::Present(Box::new(live)));
    }

    pub(super) fn cannot_see(&mut self, name: &str) {
        let reason = "the engine is away".to_owned();
        self.observed
            .insert(key(name), Observed::Unknown { reason });
    }

    pub(super) fn plan(
        &self,
        purpose: Purpose,
        targets: Option<&[Target]>,
        options: Options,
    ) -> Plan {
        plan(&PlanInput {
            node: &"rift".parse().unwrap(),
            revision: self.revision,
            purpose,
            targets,
            options,
            wanted: &self.wanted,
            deployed: &self.deployed,
            observed: &self.observed,
            foreign_names: &self.foreign,
            moved_images: &self.moved,
            forbidden: &BTreeMap::new(),
            quarantined: &self.quarantined,
            policy_digest: self.policy,
        })
    }

    /// An operator deploys the whole service by name.
    pub(super) fn deploy(&self) -> Plan {
        self.plan(Purpose::Deploy, Some(&shop()), Options::default())
    }

    pub(super) fn kind(&self, plan: &Plan, name: &str) -> Option<ActionKind> {
        action(plan, &key(name)).map(|action| action.kind)
    }

    pub(super) fn lifecycle<T>(&self, with: impl Fn(&LifecycleInput<'_>) -> T) -> T {
        let settings = BTreeMap::from([(service(), self.settings())]);
        with(&LifecycleInput {
            node: &"rift".parse().unwrap(),
            revision: self.revision,
            deployed: &self.deployed,
            settings: &settings,
            observed: &self.observed,
        })
    }

    /// Does what a deployment that goes well does.
    pub(super) fn apply(&mut self, plan: &Plan) {
        for service in plan.services() {
            assert!(
                service.blocked.is_empty(),
                "a blocked plan is not carried out"
            );
            for action in &service.actions {
                let key = ComponentKey::new(service.service.clone(), action.component.clone());
                self.carry_out(&key, action, service);
            }
        }
    }

    fn carry_out(&mut self, key: &ComponentKey, action: &Action, service: &ServicePlan) {
        let Some(after) = &action.after else {
            if action.kind == ActionKind::Remove {
                self.deployed.remove(key);
                self.observed.remove(key);
            }
            return;
        };
        let name = key.component.as_str();
        if action.kind.creates() {
            self.made += 1;
            let old = self.deployed.get(key).cloned();
            let resolved = self.moved.get(key).cloned();
            let resolved = resolved.unwrap_or_else(|| ImageId::new("sha256:2"));
            self.deployed.insert(
                key.clone(),
                Deployed {
                    spec: after.spec.clone(),
                    spec_digest: after.spec_digest,
                    image: after.image.clone().unwrap_or(resolved),
                    revision: after.revision,
                    container: ContainerId::new(format!("c{:039}", self.made)),
                    generation: self.made,
                    desired: DesiredState::Running,
                    stopped_by: old.as_ref().and_then(|old| old.stopped_by.clone()),
                    held_at: old.and_then(|old| old.held_at),
                    baseline: baseline(),
                    restarts: 0,
                    ended: false,
                    adopted: None,
                },
            );
        }
        let Some(deployed) = self.deployed.get_mut(key) else {
            return;
        };
        if let Some(baseline) = action.before.as_ref().and_then(|b| b.baseline.clone()) {
            deployed.baseline = baseline;
        }
        deployed.spec = after.spec.clone();
        deployed.spec_digest = after.spec_digest;
        deployed.revision = after.revision;
        deployed.desired = if service.settings.active {
            DesiredState::Running
        } else {
            DesiredState::Stopped
        };
        if action.clears_stop {
            deployed.stopped_by = None;
        }
        match action.hold {
            HoldChange::Keep => {}
            HoldChange::Set => deployed.held_at = Some(after.revision),
            HoldChange::Release => deployed.held_at = None,
        }
        let is_job = after.spec.kind.is_job();
        match action.kind {
            ActionKind::Create | ActionKind::Replace if is_job => self.sees(
                name,
                ContainerState::Exited {
                    code: 0,
                    oom: false,
                },
            ),
            ActionKind::Create
            | ActionKind::Replace
            | ActionKind::Restart
            | ActionKind::Signal
            | ActionKind::Start => self.sees(name, RUNNING),
            ActionKind::Stop if action.before.as_ref().is_some_and(|b| b.present) => {
                self.sees(name, EXITED);
            }
            ActionKind::Stop | ActionKind::Remove | ActionKind::None => {}
        }
    }
}

/// A node on which anything may have happened to a service.
pub(super) fn drawn() -> impl Strategy<Value = World> {
    (
        samples::service(),
        samples::service(),
        vec(any::<[u8; 8]>(), 8),
    )
        .prop_map(|(old, new, dice)| {
            let mut world = World::empty();
            *world.settings_mut() = ServiceSettings::of(&new);
            // Inactive services are a case of their own, and not half of all cases.
            world.settings_mut().active = new.active || dice[0][0] % 3 > 0;
            let names: BTreeSet<ComponentName> = new.components.keys().cloned().collect();
            for (index, (name, spec)) in old.components.iter().enumerate() {
                let die = dice[index];
                if die[0] % 5 == 0 {
                    continue;
                }
                let mut spec = spec.clone();
                spec.depends_on.retain(|name| names.contains(name));
                world.has(name.as_str(), spec);
                happens(&mut world, name.as_str(), die);
            }
            world.advance("b");
            for (index, (name, spec)) in new.components.iter().enumerate() {
                let die = dice[4 + index];
                let key = key(name.as_str());
                let deployed = world.deployed.get(&key).map(|deployed| &deployed.spec);
                let spec = match (deployed, die[0] % 4) {
                    (Some(same), 0 | 1) => same.clone(),
                    (Some(almost), 2) if !almost.files.is_empty() => {
                        let mut spec = almost.clone();
                        for file in spec.files.values_mut() {
                            file.digest = Digest::of(&die);
                        }
                        spec
                    }
                    _ => spec.clone(),
                };
                if die[1] % 6 == 0 {
                    world.quarantined.insert((key.clone(), spec.digest()));
                }
                if die[2] % 6 == 0 && !spec.kind.is_job() {
                    world.moved.insert(key, ImageId::new("sha256:3"));
                }
                world.wants(name.as_str(), spec);
            }
            world
        })
}

/// What may have happened to a deployed component.
fn happens(world: &mut World, name: &str, die: [u8; 8]) {
    match die[1] % 8 {
        0 => world.sees(name, EXITED),
        1 => world.sees(
            name,
            ContainerState::Exited {
                code: 0,
                oom: false,
            },
        ),
        2 => drop(world.observed.insert(key(name), Observed::Absent)),
        3 if die[2].is_multiple_of(2) => world.cannot_see(name),
        4 => {
            if let Some(Observed::Present(live)) = world.observed.get_mut(&key(name)) {
                live.fields.insert("memory".to_owned(), "1 GiB".to_owned());
            }
        }
        _ => {}
    }
    if die[3].is_multiple_of(6) {
        world.of(name).stopped_by = Some("kyle".to_owned());
    }
    if die[4].is_multiple_of(6) {
        world.of(name).held_at = Some(revision("9"));
    }
    match die[5] % 10 {
        0 => world.of(name).desired = DesiredState::Ignore,
        1 | 2 => world.of(name).desired = DesiredState::Stopped,
        _ => {}
    }
}
