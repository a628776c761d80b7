//! Which node a target is on: the target itself says so, else the repository's definition, else the
//! nodes are asked.

use std::collections::BTreeMap;

use mcp_proto::v1;
use mcp_spec::definition::{DefinitionFile, placements};
use mcp_spec::name::{NodeName, ServiceName, Target};

use crate::client;
use crate::config::NodeEntry;
use crate::context::Context;
use crate::error::{Exit, Failure};

/// A node and what is asked of it; no target: everything there.
#[derive(Debug, Clone)]
pub(crate) struct Placed<'a> {
    /// The node.
    pub(crate) node: &'a NodeEntry,
    /// The targets on it.
    pub(crate) targets: Vec<Target>,
}

impl Placed<'_> {
    /// The targets as the wire has them.
    pub(crate) fn wire(&self) -> Vec<v1::Target> {
        self.targets.iter().map(wire).collect()
    }
}

/// A target as the wire has it.
pub(crate) fn wire(target: &Target) -> v1::Target {
    v1::Target {
        service: target.service.to_string(),
        component: target
            .component
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    }
}

/// All chosen nodes with nothing in particular asked of them.
pub(crate) fn everywhere(context: &Context) -> Result<Vec<Placed<'_>>, Failure> {
    let nodes = context.settings.chosen_nodes()?;
    Ok(nodes
        .into_iter()
        .map(|node| Placed {
            node,
            targets: Vec::new(),
        })
        .collect())
}

/// The node of the definition in the work tree, where it can be told.
pub(crate) fn defined_node(context: &Context, service: &ServiceName) -> Option<NodeName> {
    let path = format!("services/{service}.toml");
    let bytes = std::fs::read(context.settings.repo.value.join(&path)).ok()?;
    let placed = placements(&[DefinitionFile {
        path: &path,
        bytes: &bytes,
    }])
    .ok()?;
    placed.get(service).cloned()
}

/// The nodes of the targets; without targets, all chosen nodes.
///
/// The nodes are asked only for services that no definition here places.
pub(crate) async fn place<'a>(
    context: &'a Context,
    targets: &[Target],
) -> Result<Vec<Placed<'a>>, Failure> {
    if targets.is_empty() {
        return everywhere(context);
    }
    let chosen = context.settings.chosen_nodes()?;
    let limited = !context.settings.selected.value.is_empty();
    let mut by_node: BTreeMap<usize, Vec<Target>> = BTreeMap::new();
    let mut unplaced = Vec::new();
    let position = |name: &NodeName| chosen.iter().position(|node| node.name == *name);
    for target in targets {
        if let Some(name) = &target.node {
            context.settings.node(name.as_str())?;
            let at = position(name).ok_or_else(|| {
                Failure::usage(format!("{target} is on {name}, which --node leaves out"))
            })?;
            by_node.entry(at).or_default().push(target.clone());
            continue;
        }
        // One node was named, or there is only one: the service is there or nowhere.
        if chosen.len() == 1 {
            if let (false, Some(name)) = (limited, defined_node(context, &target.service)) {
                context.settings.node(name.as_str()).map_err(|failure| {
                    failure.cause(format!("services/{}.toml names it", target.service))
                })?;
            }
            by_node.entry(0).or_default().push(target.clone());
            continue;
        }
        match defined_node(context, &target.service) {
            Some(name) => match position(&name) {
                Some(at) => by_node.entry(at).or_default().push(target.clone()),
                None if limited => unplaced.push(target.clone()),
                None => {
                    context.settings.node(name.as_str()).map_err(|failure| {
                        failure.cause(format!("services/{}.toml names it", target.service))
                    })?;
                }
            },
            None => unplaced.push(target.clone()),
        }
    }
    if !unplaced.is_empty() {
        for (at, target) in ask_where(context, &chosen, &unplaced).await? {
            by_node.entry(at).or_default().push(target);
        }
    }
    Ok(by_node
        .into_iter()
        .map(|(at, targets)| Placed {
            node: chosen[at],
            targets,
        })
        .collect())
}

async fn ask_where(
    context: &Context,
    chosen: &[&NodeEntry],
    targets: &[Target],
) -> Result<Vec<(usize, Target)>, Failure> {
    let request = v1::ListRequest {
        targets: Vec::new(),
    };
    let answers = client::ask(
        context,
        chosen,
        |node| node,
        async |client, _| client.list(request.clone()).await,
    )
    .await;
    let mut found = Vec::new();
    for target in targets {
        let mut any = false;
        for (at, answer) in answers.iter().enumerate() {
            let Ok(list) = &answer.result else { continue };
            if list
                .components
                .iter()
                .any(|c| c.service == target.service.as_str())
            {
                any = true;
                found.push((at, target.clone()));
            }
        }
        if !any {
            return Err(nowhere(context, target, &answers));
        }
    }
    Ok(found)
}

fn nowhere(
    context: &Context,
    target: &Target,
    answers: &[client::Answer<v1::ListResponse>],
) -> Failure {
    let silent: Vec<&Failure> = answers
        .iter()
        .filter_map(|answer| answer.result.as_ref().err())
        .collect();
    if let [first, ..] = silent.as_slice() {
        let mut failure = Failure::new(
            if silent.len() == answers.len() {
                first.exit
            } else {
                Exit::SomeNodes
            },
            format!("where {} runs could not be told", target.service),
        );
        for other in &silent {
            failure = failure.cause(other.message.clone());
            failure.causes.extend(other.causes.iter().cloned());
        }
        return failure.maybe_hint(first.hint.clone());
    }
    Failure::failed(format!("no node runs a service `{}`", target.service))
        .cause(format!(
            "there is no services/{}.toml in {} either",
            target.service,
            context.settings.repo.value.display()
        ))
        .hint("mcp list")
}

/// Refuses targets that are parts of a service, for commands about whole ones.
pub(crate) fn require_whole(targets: &[Target], command: &str) -> Result<(), Failure> {
    match targets.iter().find(|target| target.component.is_some()) {
        None => Ok(()),
        Some(target) => Err(Failure::usage(format!(
            "{command} takes whole services, and {target} is a component"
        ))
        .hint(format!("mcp {command} {}", target.service))),
    }
}
