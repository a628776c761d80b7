//! `mcp status`: what needs worry.

use std::collections::BTreeMap;

use mcp_proto::v1;
use mcp_spec::name::Target;

use super::place::{self, Placed};
use super::{events, repository, rows};
use crate::client::{self, Answer};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::plan::{path, revision_behind};
use crate::output::style::{
    self, Style, bold, count, dim, green, milliseconds, red, short, yellow,
};
use crate::output::table::{Cell, Table, wrap};
use crate::output::{clean, json};

/// Show what needs worry: drift, revisions behind, holds, recent events
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp status                   every node
  mcp status -a                fine services too
  mcp status metacrypt
  mcp status --exit-code       2 where state or spec has drifted")]
pub(crate) struct Args {
    /// Only these
    #[arg(add = super::complete::targets(), value_name = "TARGET")]
    targets: Vec<Target>,
    /// Show services that are fine, too
    #[arg(short, long)]
    all: bool,
    /// End with 2 where there is drift
    #[arg(long)]
    exit_code: bool,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, &args.targets).await?;
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, placed| {
            client
                .status(v1::StatusRequest {
                    targets: placed.wire(),
                    events: 0,
                })
                .await
        },
    )
    .await;
    if context.out.is_table() {
        let all = args.all || !args.targets.is_empty();
        let heads = last_heads(context, &answers);
        context.out.data(&text(context, &answers, &heads, all))?;
        let drifted: Vec<&str> = answers
            .iter()
            .flat_map(|answer| answer.result.iter().flat_map(|status| &status.services))
            .filter(|service| service.drift)
            .map(|service| service.service.as_str())
            .collect();
        let services = || {
            let statuses = answers.iter().flat_map(|answer| &answer.result);
            statuses.flat_map(|status| &status.services)
        };
        if let Some(blocked) = services().find(|service| !service.blocked.is_empty()) {
            context.out.hint(&format!(
                "mcp plan {} tells what stands in the way, and the mend",
                blocked.service
            ));
        } else if let Some(first) = drifted.first() {
            context.out.hint(&format!("mcp deploy {first} repairs"));
        } else if let Some(ill) = services().find(|service| !conditions(service).is_empty()) {
            context
                .out
                .hint(&format!("mcp why {} tells more", ill.service));
        } else if let Some(orphan) = answers
            .iter()
            .flat_map(|answer| answer.result.iter().flat_map(|status| &status.services))
            .find(|service| service.orphaned)
        {
            context.out.hint(&format!(
                "mcp purge {} removes what is orphaned",
                orphan.service
            ));
        }
    } else {
        let nodes: Vec<json::NodeStatus> = answers.iter().map(document).collect();
        context.out.json(&json::Status { nodes })?;
    }
    let exit = Exit::over_nodes(answers.iter().map(|answer| match &answer.result {
        Ok(status) if args.exit_code && status.services.iter().any(|s| s.drift) => Exit::Changes,
        Ok(_) => Exit::Done,
        Err(failure) => failure.exit,
    }));
    // The nodes that failed are part of what was shown.
    Ok(exit)
}

fn document(answer: &Answer<v1::StatusResponse>) -> json::NodeStatus {
    match &answer.result {
        Ok(status) => json::NodeStatus::new(&answer.node, status),
        Err(failure) => json::NodeStatus::failed(
            &answer.node,
            failure.exit != Exit::Unreachable,
            &failure.message,
        ),
    }
}

/// The heads that nodes which are away had when they were last talked to, as the repository knows.
fn last_heads(
    context: &Context,
    answers: &[Answer<v1::StatusResponse>],
) -> BTreeMap<String, String> {
    if answers.iter().all(|answer| answer.result.is_ok()) {
        return BTreeMap::new();
    }
    // Without a repository nothing is known of them, and that is no failure of a status.
    let Ok(Some(repo)) = repository::open_if_there(context) else {
        return BTreeMap::new();
    };
    answers
        .iter()
        .filter(|answer| answer.result.is_err())
        .filter_map(|answer| {
            let head = repo.node_head(&answer.node.parse().ok()?)?;
            Some((answer.node.clone(), head.to_string()))
        })
        .collect()
}

fn text(
    context: &Context,
    answers: &[Answer<v1::StatusResponse>],
    heads: &BTreeMap<String, String>,
    all: bool,
) -> String {
    let mut out = String::new();
    let widest = answers.iter().map(|answer| answer.node.len()).max();
    for answer in answers {
        let padding = " ".repeat(widest.unwrap_or(0) - answer.node.len());
        let name = format!("{}{padding}", bold(&answer.node));
        match &answer.result {
            Ok(status) => node(context, &mut out, &name, status, all),
            Err(failure) => {
                let head = heads.get(&answer.node).map(String::as_str);
                failed_node(&mut out, &name, answer, failure, head);
            }
        }
    }
    event_lines(context, &mut out, answers);
    out
}

fn failed_node(
    out: &mut String,
    name: &str,
    answer: &Answer<v1::StatusResponse>,
    failure: &Failure,
    head: Option<&str>,
) {
    let took = milliseconds(u64::try_from(answer.took.as_millis()).unwrap_or(u64::MAX));
    let what = if failure.exit == Exit::Unreachable {
        let cause = failure
            .causes
            .first()
            .map(String::as_str)
            .unwrap_or_default();
        let head = head.map_or_else(String::new, |head| format!(" · last head {}", short(head)));
        format!("unreachable {took}{head}  {}", dim(cause))
    } else {
        clean::line(&failure.message).into_owned()
    };
    out.push_str(&format!("{name}  {} {what}\n", red(style::BAD)));
    if let Some(hint) = &failure.hint {
        out.push_str(&format!("  {}\n", dim(&format!("hint: {hint}"))));
    }
}

fn node(context: &Context, out: &mut String, name: &str, status: &v1::StatusResponse, all: bool) {
    let engine_up = status
        .engine
        .as_ref()
        .is_some_and(|engine| engine.reachable);
    let mut facts = Vec::new();
    match &status.engine {
        Some(engine) if engine.reachable => {
            facts.push(clean::line(&format!("{} {}", engine.name, engine.version)).into_owned());
        }
        Some(engine) => facts.push(red(&format!("{} unreachable", engine.name))),
        None => facts.push(yellow("engine unknown")),
    }
    facts.push(format!("head {}", short(&status.head_revision)));
    if let Some(disk) = &status.disk {
        let percent = (u128::from(disk.used_bytes) * 100).checked_div(u128::from(disk.total_bytes));
        facts.push(format!("disk {}%", percent.unwrap_or(0)));
    }
    if let Some(memory) = &status.memory {
        facts.push(format!(
            "mem {}",
            style::bytes_of(memory.used_bytes, memory.total_bytes)
        ));
    }
    let sign = if engine_up {
        green(style::GOOD)
    } else {
        red(style::BAD)
    };
    out.push_str(&format!("{name}  {sign} {}\n", facts.join(" · ")));
    // What an engine says may be long.
    if let Some(engine) = status.engine.as_ref().filter(|engine| !engine.reachable) {
        let mut table = Table::bare(2);
        table.row([
            Cell::new(&engine.name, Style::Warn),
            Cell::from(engine.error.as_str()),
        ]);
        out.push_str(&table.render(context.out.width()));
    }
    for warning in &status.warnings {
        let room = context
            .out
            .width()
            .map_or(usize::MAX, |width| width.saturating_sub(11).max(40));
        let lines = wrap(&clean::line(warning), room).join("\n    ");
        out.push_str(&format!("  {} {lines}\n", yellow("warning:")));
    }
    let mut fine = 0;
    let mut stopped = Vec::new();
    for service in &status.services {
        if all || needs_worry(service) {
            service_lines(context, out, service);
        } else if is_stopped(service) {
            stopped.push(service.service.as_str());
        } else {
            fine += 1;
        }
    }
    let mut rest = Vec::new();
    if fine > 0 {
        rest.push(format!("{} fine (-a)", count(fine, "service")));
    }
    if !stopped.is_empty() {
        rest.push(format!("stopped: {}", stopped.join(", ")));
    }
    if !status.unmanaged.is_empty() {
        let names: Vec<&str> = status
            .unmanaged
            .iter()
            .map(|container| container.container.as_str())
            .collect();
        rest.push(format!("unmanaged: {}", names.join(", ")));
    }
    if !rest.is_empty() {
        out.push_str(&format!("  {}\n", dim(&rest.join(" · "))));
    }
}

/// Whether all of it is stopped as wanted, by hand or by `active = false`: no worry, and not fine.
fn is_stopped(service: &v1::ServiceStatus) -> bool {
    !service.components.is_empty()
        && service
            .components
            .iter()
            .all(|component| component.desired_state == "stopped")
}

fn needs_worry(service: &v1::ServiceStatus) -> bool {
    service.drift
        || !service.blocked.is_empty()
        || service.behind > 0
        || service.orphaned
        || service.held.is_some()
        || service.components.iter().any(component_needs_worry)
}

fn component_needs_worry(component: &v1::Component) -> bool {
    !component.drift.is_empty()
        || component.quarantined
        || component.unconverged
        || component.flapping
        || !component.contested.is_empty()
        || component.orphaned
        || component.held.is_some()
        || component.health == "unhealthy"
        || matches!(component.observed_state.as_str(), "failed" | "unknown")
}

/// What ails a service's components beside drift, for the service's own line.
fn conditions(service: &v1::ServiceStatus) -> Vec<&'static str> {
    let any = |ails: fn(&v1::Component) -> bool| service.components.iter().any(ails);
    let known: [(&'static str, bool); 7] = [
        ("BLOCKED", !service.blocked.is_empty()),
        (
            "FAILED",
            any(|component| component.observed_state == "failed"),
        ),
        (
            "UNHEALTHY",
            any(|component| component.health == "unhealthy"),
        ),
        ("FLAPPING", any(|component| component.flapping)),
        (
            "CONTESTED",
            any(|component| !component.contested.is_empty()),
        ),
        ("DEGRADED", any(|component| component.unconverged)),
        ("QUARANTINED", any(|component| component.quarantined)),
    ];
    let holding = known.into_iter().filter(|(_, holds)| *holds);
    holding.map(|(word, _)| word).collect()
}

fn service_lines(context: &Context, out: &mut String, service: &v1::ServiceStatus) {
    let deployed = service
        .components
        .iter()
        .any(|component| !component.revision.is_empty());
    let revision = if deployed {
        revision_behind(&service.revision, service.behind)
    } else {
        "not deployed".to_owned()
    };
    let revision = if service.behind > 0 {
        yellow(&revision)
    } else {
        clean::line(&revision).into_owned()
    };
    let mut marks = Vec::new();
    if service.drift {
        marks.push(red("DRIFT"));
    }
    marks.extend(conditions(service).into_iter().map(red));
    if let Some(hold) = &service.held {
        let why = match hold.reason.as_str() {
            "" => String::new(),
            reason => format!(": {reason}"),
        };
        marks.push(yellow(&format!(
            "HELD by {} {}{why}",
            hold.by,
            context.out.time(&hold.at)
        )));
    }
    if service.orphaned {
        marks.push(yellow("ORPHANED"));
    }
    if !service.active {
        marks.push(dim("inactive"));
    } else if is_stopped(service) {
        marks.push(dim("stopped"));
    }
    let mut line = format!("  {}  {revision}", bold(&service.service));
    for mark in marks {
        line.push_str("  ");
        line.push_str(&mark);
    }
    out.push_str(&line);
    out.push('\n');
    if !service.blocked.is_empty() {
        let mut table = Table::bare(4);
        table.row([
            Cell::new("blocked", Style::Warn),
            Cell::from(format!(
                "{}; tried again after {}",
                service.blocked,
                context.out.time(&service.next_try_at)
            )),
        ]);
        out.push_str(&table.render(context.out.width()));
    }
    let mut table = Table::bare(4);
    for component in &service.components {
        table.row([
            Cell::from(component.component.as_str()),
            rows::state(component),
            rows::health(component),
            Cell::from(about(context, component)),
        ]);
    }
    out.push_str(&table.render(context.out.width()));
}

/// What there is to say of a component: its drift, else how long it has been up.
fn about(context: &Context, component: &v1::Component) -> String {
    let mut parts: Vec<String> = component
        .drift
        .iter()
        .map(|drift| {
            let what = if drift.field == "state" {
                format!("{}, wanted {}", drift.live, drift.wanted)
            } else {
                format!("{} {} -> {}", drift.field, drift.baseline, drift.live)
            };
            match drift.since.as_str() {
                "" => what,
                since => format!("{what} {}", context.out.time(since)),
            }
        })
        .collect();
    if !component.contested.is_empty() {
        parts.push(format!(
            "contested: {}, again and again; repaired next after {}",
            component.contested,
            context.out.time(&component.next_repair_at)
        ));
    }
    if component.quarantined {
        parts.push("the head's spec is quarantined".to_owned());
    }
    if component.unconverged {
        parts.push("did not converge".to_owned());
    }
    if component.flapping {
        parts.push("flapping".to_owned());
    }
    if component.orphaned {
        parts.push("no longer defined".to_owned());
    }
    if parts.is_empty() && component.observed_state == "running" {
        parts.push(format!("up {}", context.out.since(&component.started_at)));
    }
    if component.restarts > 0 {
        parts.push(count(component.restarts as usize, "restart"));
    }
    parts.join(" · ")
}

fn event_lines(context: &Context, out: &mut String, answers: &[Answer<v1::StatusResponse>]) {
    let mut all: Vec<(&str, &v1::Event)> = answers
        .iter()
        .flat_map(|answer| {
            let events = answer.result.iter().flat_map(|status| &status.events);
            events.map(|event| (answer.node.as_str(), event))
        })
        .collect();
    // RFC 3339 in UTC sorts by time.
    all.sort_by(|(_, a), (_, b)| b.at.cmp(&a.at));
    if all.is_empty() {
        return;
    }
    out.push_str(&format!("{}\n", dim("events")));
    let mut table = Table::bare(2);
    let many = answers.len() > 1;
    for (node, event) in all.into_iter().take(5) {
        let mut who = path(&event.service, &event.component);
        if many {
            who = if who.is_empty() {
                node.to_owned()
            } else {
                format!("{node}/{who}")
            };
        }
        let what = events::words(event).to_owned();
        table.row([
            Cell::new(&context.out.time(&event.at), Style::Dim),
            Cell::from(who),
            Cell::from(what),
        ]);
    }
    out.push_str(&table.render(context.out.width()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(desired: &[&str]) -> v1::ServiceStatus {
        v1::ServiceStatus {
            active: true,
            components: desired
                .iter()
                .map(|desired| v1::Component {
                    desired_state: (*desired).to_owned(),
                    observed_state: (*desired).to_owned(),
                    ..v1::Component::default()
                })
                .collect(),
            ..v1::ServiceStatus::default()
        }
    }

    #[test]
    fn what_ails_a_component_stands_on_its_services_line() {
        let well = service(&["running"]);
        assert!(conditions(&well).is_empty());
        let ails = |change: fn(&mut v1::Component)| {
            let mut service = service(&["running", "running"]);
            change(&mut service.components[1]);
            assert!(needs_worry(&service));
            conditions(&service)
        };
        assert_eq!(ails(|c| c.health = "unhealthy".to_owned()), ["UNHEALTHY"]);
        assert_eq!(ails(|c| c.observed_state = "failed".to_owned()), ["FAILED"]);
        assert_eq!(ails(|c| c.flapping = true), ["FLAPPING"]);
        assert_eq!(ails(|c| c.unconverged = true), ["DEGRADED"]);
        assert_eq!(ails(|c| c.quarantined = true), ["QUARANTINED"]);
        assert_eq!(
            ails(|c| c.contested = "env.A drifted".to_owned()),
            ["CONTESTED"]
        );
        let mut blocked = service(&["running"]);
        blocked.blocked = "the name is taken".to_owned();
        assert!(needs_worry(&blocked));
        assert_eq!(conditions(&blocked), ["BLOCKED"]);
    }

    #[test]
    fn a_stopped_service_is_not_counted_among_the_fine_ones() {
        assert!(is_stopped(&service(&["stopped", "stopped"])));
        assert!(!is_stopped(&service(&["stopped", "running"])));
        assert!(!is_stopped(&service(&[])));
        assert!(!needs_worry(&service(&["stopped"])));
    }
}
