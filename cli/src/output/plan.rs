//! How plans and field changes are drawn: a sign, a component, an action, and the fields beneath.

use mcp_proto::v1;

use crate::error::Exit;

use super::style::{self, Style, bold, bytes, dim, short, yellow};
use super::table::{Cell, Table};

/// `service/component`, or `service` where there is no component.
pub(crate) fn path(service: &str, component: &str) -> String {
    if component.is_empty() {
        service.to_owned()
    } else {
        format!("{service}/{component}")
    }
}

/// The two sides of a change as people read them: `v1.4.0 -> v1.5.0`; of a file, `+2 -1`.
pub(crate) fn sides(change: &v1::FieldChange) -> String {
    if let (None, Some(lines)) = (&change.from, &change.to)
        && lines.starts_with('+')
        && lines.contains(" -")
    {
        return lines.clone();
    }
    let change = mcp_spec::diff::FieldChange {
        field: change.field.clone(),
        from: change.from.clone(),
        to: change.to.clone(),
    };
    let (from, to) = change.shown();
    format!("{from} -> {to}")
}

/// Changes on one line: `image v1.4.0 -> v1.5.0 · env.RUST_LOG info -> debug`.
pub(crate) fn changes_line(changes: &[v1::FieldChange]) -> String {
    let each: Vec<String> = changes
        .iter()
        .map(|c| format!("{} {}", c.field, sides(c)))
        .collect();
    each.join(" · ")
}

/// The sign of an action and how it looks.
pub(crate) fn sign(action: &str) -> (&'static str, Style) {
    match action {
        "create" | "start" | "run" => ("+", Style::Good),
        "remove" | "stop" => ("-", Style::Bad),
        "none" => ("=", Style::Dim),
        _ => ("~", Style::Warn),
    }
}

/// The services that a plan is about, in its order.
fn services(plan: &v1::Plan) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    let all = plan.actions.iter().map(|a| a.service.as_str());
    for name in all.chain(plan.blocked.iter().map(|b| b.service.as_str())) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The revision that a service's components run at, where they agree.
fn from_revision<'a>(plan: &'a v1::Plan, service: &str) -> &'a str {
    let mut all = plan
        .actions
        .iter()
        .filter(|a| a.service == service)
        .map(|a| &a.from_revision);
    match all.next() {
        Some(first) if all.all(|other| other == first) => first,
        Some(_) => "mixed",
        None => "",
    }
}

/// The line above a service's actions: `metacrypt on rift  9be01d2 -> 3f2a9c1  plan 7c1e09a`.
pub(crate) fn heading(plan: &v1::Plan, service: &str, note: &str) -> String {
    let from = from_revision(plan, service);
    let to = short(&plan.revision);
    let from = if from == "mixed" {
        from.to_owned()
    } else {
        short(from)
    };
    let revisions = match from.as_str() {
        "-" => to,
        from if from == to => to,
        from => format!("{from} -> {to}"),
    };
    let mut line = format!("{} on {}  {revisions}", bold(service), bold(&plan.node));
    if !note.is_empty() {
        line.push_str(&format!("  {}", super::clean::line(note)));
    }
    if !plan.plan_id.is_empty() {
        line.push_str(&format!("  plan {}", short(&plan.plan_id)));
    }
    line
}

/// The whole plan as text; `with_unchanged` shows what stays as well.
pub(crate) fn render(
    plan: &v1::Plan,
    note: impl Fn(&str) -> String,
    with_unchanged: bool,
    width: Option<usize>,
) -> String {
    let mut out = String::new();
    for service in services(plan) {
        let idle = plan
            .blocked
            .iter()
            .all(|blocked| blocked.service != service)
            && plan
                .actions
                .iter()
                .all(|action| action.service != service || action.action == "none");
        if idle && !with_unchanged {
            continue;
        }
        out.push_str(&heading(plan, service, &note(service)));
        out.push('\n');
        let mut table = Table::bare(0);
        for action in plan.actions.iter().filter(|a| a.service == service) {
            if action.action != "none" || with_unchanged {
                action_rows(&mut table, action);
            }
        }
        for blocked in plan.blocked.iter().filter(|b| b.service == service) {
            let name = if blocked.component.is_empty() {
                "*"
            } else {
                &blocked.component
            };
            table.row([
                Cell::new(&format!("! {name}"), Style::Bad),
                Cell::new("blocked", Style::Bad),
                Cell::from(blocked.reason.as_str()),
            ]);
            if !blocked.hint.is_empty() {
                table.row([
                    Cell::default(),
                    Cell::default(),
                    Cell::new(&format!("hint: {}", blocked.hint), Style::Dim),
                ]);
            }
        }
        out.push_str(&table.render(width));
    }
    out
}

fn action_rows(table: &mut Table, action: &v1::Action) {
    let (sign, style) = sign(&action.action);
    let mut notes = String::new();
    if action.pull_bytes > 0 {
        notes.push_str(&format!("  ({} to pull)", bytes(action.pull_bytes)));
    }
    if action.uncommitted {
        notes.push_str("  (uncommitted)");
    }
    let first = [
        Cell::new(&format!("{sign} {}", action.component), style),
        Cell::new(&action.action, style),
    ];
    // A field in every row says more than the reason, which repeats the first one's name.
    if action.changes.is_empty() || matches!(action.action.as_str(), "create" | "remove") {
        let text = format!("{}{notes}", action.reason);
        table.row(first.into_iter().chain([Cell::new(&text, Style::Plain)]));
    } else {
        let widest = action
            .changes
            .iter()
            .map(|c| c.field.chars().count())
            .max()
            .unwrap_or(0);
        for (index, change) in action.changes.iter().enumerate() {
            let text = format!("{:widest$}  {}", change.field, sides(change));
            if index == 0 {
                let text = format!("{text}{notes}");
                table.row(first.clone().into_iter().chain([Cell::from(text)]));
            } else {
                table.row([Cell::default(), Cell::default(), Cell::from(text)]);
            }
        }
    }
    for warning in &action.warnings {
        table.row([
            Cell::default(),
            Cell::default(),
            Cell::new(&format!("warning: {warning}"), Style::Warn),
        ]);
    }
}

/// `1 replace, 1 restart, 1 unchanged, 1 blocked`.
pub(crate) fn summary<'a>(plans: impl IntoIterator<Item = &'a v1::Plan>) -> String {
    const ORDER: [&str; 9] = [
        "create", "replace", "restart", "signal", "start", "run", "stop", "remove", "none",
    ];
    let mut counts = [0_usize; ORDER.len()];
    let mut blocked = 0;
    for plan in plans {
        for action in &plan.actions {
            if let Some(index) = ORDER.iter().position(|name| *name == action.action) {
                counts[index] += 1;
            }
        }
        blocked += plan.blocked.len();
    }
    let mut parts: Vec<String> = ORDER
        .iter()
        .zip(counts)
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| {
            format!(
                "{count} {}",
                if *name == "none" { "unchanged" } else { name }
            )
        })
        .collect();
    if blocked > 0 {
        parts.push(format!("{blocked} blocked"));
    }
    if parts.is_empty() {
        "nothing to do".to_owned()
    } else {
        parts.join(", ")
    }
}

/// Whether the plan does anything.
pub(crate) fn has_changes(plan: &v1::Plan) -> bool {
    plan.actions.iter().any(|action| action.action != "none")
}

/// What the plan takes away.
pub(crate) fn removals(plan: &v1::Plan) -> Vec<String> {
    plan.actions
        .iter()
        .filter(|action| action.action == "remove")
        .map(|action| path(&action.service, &action.component))
        .collect()
}

/// The rows that `sync` prints for what is pending on a node.
pub(crate) fn pending_rows(table: &mut Table, plan: &v1::Plan) {
    for action in plan.actions.iter().filter(|action| action.action != "none") {
        let (_, style) = sign(&action.action);
        let why = if action.changes.is_empty() || action.action == "create" {
            action.reason.clone()
        } else {
            changes_line(&action.changes)
        };
        table.row([
            Cell::from(plan.node.as_str()),
            Cell::from(path(&action.service, &action.component)),
            Cell::new(&action.action, style),
            Cell::from(why),
        ]);
    }
    for blocked in &plan.blocked {
        table.row([
            Cell::from(plan.node.as_str()),
            Cell::from(path(&blocked.service, &blocked.component)),
            Cell::new("blocked", Style::Bad),
            Cell::from(blocked.reason.as_str()),
        ]);
    }
}

/// How a command ends that a plan's obstacles keep from something; none where there are none.
pub(crate) fn blocked_exit(plan: &v1::Plan) -> Option<Exit> {
    match plan.blocked.as_slice() {
        [] => None,
        blocked if blocked.iter().all(|one| one.policy) => Some(Exit::Refused),
        _ => Some(Exit::Failed),
    }
}

/// The warning about uncommitted files that are left alone.
pub(crate) fn left_alone(paths: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut names: Vec<&str> = paths.iter().take(SHOWN).map(String::as_str).collect();
    let more;
    if paths.len() > SHOWN {
        more = format!("and {} more", paths.len() - SHOWN);
        names.push(&more);
    }
    format!("{} {}", yellow("left uncommitted:"), dim(&names.join(", ")))
}

/// `3f2a9c1 (2 behind)`, with a mark where nothing is behind left out.
pub(crate) fn revision_behind(revision: &str, behind: u32) -> String {
    let revision = if revision.is_empty() {
        "mixed".to_owned()
    } else {
        style::short(revision)
    };
    if behind == 0 {
        revision
    } else {
        format!("{revision} ({behind} behind)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(field: &str, from: Option<&str>, to: Option<&str>) -> v1::FieldChange {
        v1::FieldChange {
            field: field.to_owned(),
            from: from.map(ToOwned::to_owned),
            to: to.map(ToOwned::to_owned),
        }
    }

    fn action(
        component: &str,
        action: &str,
        reason: &str,
        changes: Vec<v1::FieldChange>,
    ) -> v1::Action {
        v1::Action {
            service: "metacrypt".to_owned(),
            component: component.to_owned(),
            action: action.to_owned(),
            reason: reason.to_owned(),
            changes,
            from_revision: "9be01d2aaaaaaaa".to_owned(),
            ..v1::Action::default()
        }
    }

    #[test]
    fn plan_reads_as_documented() {
        let mut api = action(
            "api",
            "replace",
            "image changed",
            vec![
                change(
                    "image",
                    Some("r/metacrypt:v1.4.0"),
                    Some("r/metacrypt:v1.5.0"),
                ),
                change("env.RUST_LOG", Some("info"), Some("debug")),
            ],
        );
        api.pull_bytes = 38 * 1024 * 1024;
        let plan = v1::Plan {
            plan_id: "7c1e09affff".to_owned(),
            node: "rift".to_owned(),
            revision: "3f2a9c1bbbb".to_owned(),
            actions: vec![
                api,
                action(
                    "web",
                    "restart",
                    "web.toml changed",
                    vec![change("web.toml", None, Some("+2 -1"))],
                ),
                action("db", "none", "up 41d", vec![]),
            ],
            blocked: vec![v1::Blocked {
                service: "metacrypt".to_owned(),
                component: "cache".to_owned(),
                reason: "bind /var/cache outside policy.host_paths".to_owned(),
                hint: String::new(),
                policy: true,
            }],
            head_revision: String::new(),
        };
        let text = render(&plan, |_| "1 commit, alice".to_owned(), true, None);
        assert_eq!(
            anstream::adapter::strip_str(&text).to_string(),
            "\
metacrypt on rift  9be01d2 -> 3f2a9c1  1 commit, alice  plan 7c1e09a
~ api    replace  image         v1.4.0 -> v1.5.0  (38 MiB to pull)
                  env.RUST_LOG  info -> debug
~ web    restart  web.toml  +2 -1
= db     none     up 41d
! cache  blocked  bind /var/cache outside policy.host_paths
"
        );
        assert_eq!(
            summary([&plan]),
            "1 replace, 1 restart, 1 unchanged, 1 blocked"
        );
    }

    #[test]
    fn an_image_of_another_repository_is_shown_whole() {
        let change = change("image", Some("a/x:v1"), Some("b/x:v1"));
        assert_eq!(sides(&change), "a/x:v1 -> b/x:v1");
    }
}
