//! What only several components together can get wrong.
//!
//! Within a service: names that stand twice, dependencies. Between services of one node: ports
//! and container names. Everything that could be read takes part, also of files with errors.

use std::collections::BTreeMap;

use super::component::ReadComponent;
use super::error::{DefinitionErrorKind as Kind, Errors, Place};
use super::ports::overlap;
use super::service::ReadService;
use super::suggest;
use crate::component::{Port, Protocol};
use crate::name::{ComponentKey, ComponentName, NodeName};

/// Checks all services against themselves and each other.
pub(super) fn check(services: &mut [ReadService<'_>]) {
    for service in services.iter_mut() {
        duplicate_names(&service.components, &mut service.errors);
        dependencies(&service.components, &mut service.errors);
    }
    duplicate_services(services);
    container_names(services);
    host_ports(services);
}

fn duplicate_names(components: &[ReadComponent], errors: &mut Errors<'_>) {
    let mut first: BTreeMap<&ComponentName, &Place> = BTreeMap::new();
    for component in components {
        let Some(name) = &component.name else {
            continue;
        };
        if let Some(place) = first.get(name) {
            let line = errors.line_of(place.start);
            errors.push(
                Kind::Duplicate,
                component.place.clone(),
                format!("the component `{name}` is there already (line {line})"),
                "give each component a name of its own",
            );
        } else {
            first.insert(name, &component.place);
        }
    }
}

fn dependencies(components: &[ReadComponent], errors: &mut Errors<'_>) {
    let mut by_name: BTreeMap<&ComponentName, &ReadComponent> = BTreeMap::new();
    for component in components {
        if let Some(name) = &component.name {
            by_name.entry(name).or_insert(component);
        }
    }
    for component in components {
        for (wanted, place) in &component.depends_on {
            if !by_name.contains_key(wanted) {
                errors.push(
                    Kind::Reference,
                    place.clone(),
                    format!("the service has no component `{wanted}`"),
                    suggest::hint(
                        wanted.as_str(),
                        by_name
                            .keys()
                            .filter(|name| Some(**name) != component.name.as_ref())
                            .map(|name| name.as_str()),
                        "its components are",
                    ),
                );
            }
        }
    }
    // Depth first with the path at hand: an edge back into the path closes a cycle. At most 200
    // components bound the depth.
    let mut done = Vec::new();
    for name in by_name.keys() {
        let mut path = Vec::new();
        follow(name, &by_name, &mut path, &mut done, errors);
    }
}

fn follow<'c>(
    name: &'c ComponentName,
    by_name: &BTreeMap<&'c ComponentName, &'c ReadComponent>,
    path: &mut Vec<&'c ComponentName>,
    done: &mut Vec<&'c ComponentName>,
    errors: &mut Errors<'_>,
) {
    let Some(component) = by_name.get(name) else {
        return;
    };
    if done.contains(&name) {
        return;
    }
    path.push(name);
    for (wanted, place) in &component.depends_on {
        if let Some(start) = path.iter().position(|earlier| *earlier == wanted) {
            let cycle: Vec<String> = path[start..]
                .iter()
                .chain([&wanted])
                .map(ToString::to_string)
                .collect();
            let (message, hint) = if cycle.len() == 2 {
                (
                    format!("the component `{name}` depends on itself"),
                    "leave its own name out",
                )
            } else {
                (
                    format!("the components wait for each other: {}", cycle.join(" -> ")),
                    "leave one of these dependencies out",
                )
            };
            errors.push(Kind::Cycle, place.clone(), message, hint);
        } else {
            follow(wanted, by_name, path, done, errors);
        }
    }
    path.pop();
    done.push(name);
}

fn duplicate_services(services: &mut [ReadService<'_>]) {
    let mut first: BTreeMap<String, String> = BTreeMap::new();
    for service in services {
        let Some(name) = &service.name else { continue };
        if let Some(path) = first.get(name.as_str()) {
            service.errors.push(
                Kind::Duplicate,
                service.name_place.clone(),
                format!("the service `{name}` is defined already ({path})"),
                "keep one of the files",
            );
        } else {
            first.insert(name.to_string(), service.path.to_owned());
        }
    }
}

fn container_names(services: &mut [ReadService<'_>]) {
    let mut taken: BTreeMap<(NodeName, String), ComponentKey> = BTreeMap::new();
    for service in services {
        let (Some(name), Some(node)) = (&service.name, &service.node) else {
            continue;
        };
        for component in &service.components {
            let Some(component_name) = &component.name else {
                continue;
            };
            let key = ComponentKey::new(name.clone(), component_name.clone());
            let container = key.container_name();
            match taken.get(&(node.clone(), container.clone())) {
                // The same key twice is reported as a duplicate name.
                Some(other) if *other != key => service.errors.push(
                    Kind::Conflict,
                    component.place.clone(),
                    format!("the container of `{key}` would be named `{container}`, as that of `{other}` is"),
                    "rename one of the components",
                ),
                Some(_) => {}
                None => {
                    taken.insert((node.clone(), container), key);
                }
            }
        }
    }
}

/// A published port and who publishes it: component, file and line.
struct Taken {
    port: Port,
    owner: String,
    path: String,
    line: usize,
}

fn host_ports(services: &mut [ReadService<'_>]) {
    // By node, transport and port number: only addresses remain to be compared.
    let mut taken: BTreeMap<(NodeName, Protocol, u16), Vec<Taken>> = BTreeMap::new();
    for service in services {
        let Some(node) = service.node.clone().filter(|_| service.active) else {
            continue;
        };
        let service_name = service
            .name
            .as_ref()
            .map_or("this service", |name| name.as_str())
            .to_owned();
        for component in &service.components {
            let owner = match &component.name {
                Some(name) => format!("{service_name}/{name}"),
                None => service_name.clone(),
            };
            for (port, place) in &component.ports {
                let slot = taken
                    .entry((node.clone(), port.protocol, port.host))
                    .or_default();
                if let Some(other) = slot.iter().find(|other| overlap(&other.port, port)) {
                    let at = if other.path == service.path {
                        format!("line {}", other.line)
                    } else {
                        format!("{}:{}", other.path, other.line)
                    };
                    service.errors.push(
                        Kind::Conflict,
                        place.clone(),
                        format!(
                            "port {}/{} of {node} is taken by `{}` as `{}` ({at})",
                            port.host, port.protocol, other.owner, other.port
                        ),
                        "publish it under another port or another address of the node",
                    );
                } else {
                    slot.push(Taken {
                        port: port.clone(),
                        owner: owner.clone(),
                        path: service.path.to_owned(),
                        line: service.errors.line_of(place.start),
                    });
                }
            }
        }
    }
}
