//! How a deployment's end is drawn: a line a component, what its log said, one line of result.

use mcp_proto::v1;

use super::clean;
use super::plan::path;
use super::progress::Progress;
use super::style::{self, bold, count, dim, green, milliseconds, red, short, yellow};
use super::table::cut;
use crate::error::{Exit, Failure};

/// Lines of a failed container's log that are shown; `mcp logs --deployment` has the rest.
const LOG_LINES: usize = 8;

/// Longest line of a component off a terminal: what engines say may be a page in one line.
const LONGEST_LINE: usize = 240;

/// How a deployment's outcome ends the command.
pub(crate) fn exit(deployment: &v1::Deployment) -> Exit {
    match deployment.outcome.as_str() {
        "deployed" | "unchanged" | "running" => Exit::Done,
        "rolled-back" => Exit::RolledBack,
        "superseded" => Exit::Stale,
        _ => Exit::Failed,
    }
}

/// Whether a component's outcome says that its action was carried out.
fn is_done(outcome: &str) -> bool {
    matches!(
        outcome,
        "deployed" | "started" | "stopped" | "restarted" | "removed" | "completed"
    )
}

/// What became of each component, and the result in one line where it is good.
///
/// `qualified` names each component with its service, for where several are told one after another.
pub(crate) fn render(
    node: &str,
    deployment: &v1::Deployment,
    progress: &Progress,
    qualified: bool,
    width: Option<usize>,
) -> String {
    let mut out = String::new();
    let name = |part: &v1::ComponentOutcome| {
        if qualified {
            path(&deployment.service, &part.component)
        } else {
            part.component.clone()
        }
    };
    let names = deployment.components.iter().map(name);
    let widest = names.map(|name| name.chars().count()).max().unwrap_or(0);
    let blamed = deployment
        .components
        .iter()
        .any(|part| !part.error.is_empty());
    // What was blocked has been told by the plan.
    let begun = !deployment.deployment_id.is_empty() || deployment.outcome == "deployed";
    if deployment.outcome != "unchanged" && begun {
        for part in &deployment.components {
            let told = progress.told(node, &deployment.service, &part.component);
            component(&mut out, &name(part), part, widest, &told, blamed, width);
        }
    }
    if exit(deployment) == Exit::Done {
        out.push_str(&result_line(node, deployment));
        out.push('\n');
    }
    out
}

/// `blamed` says that some component has a failure of its own to tell.
fn component(
    out: &mut String,
    name: &str,
    part: &v1::ComponentOutcome,
    widest: usize,
    told: &str,
    blamed: bool,
    width: Option<usize>,
) {
    let room = width
        .unwrap_or(LONGEST_LINE)
        .saturating_sub(widest + 4)
        .max(40);
    let name = clean::line(&format!("{name:<widest$}")).into_owned();
    let mut facts: Vec<String> = Vec::new();
    let mut fact = |text: &str| {
        if !text.is_empty() {
            facts.push(clean::line(text).into_owned());
        }
    };
    match part.outcome.as_str() {
        outcome if is_done(outcome) => {
            fact(&part.action);
            fact(told);
            if part.downtime_ms > 0 {
                fact(&format!("down {}", milliseconds(part.downtime_ms)));
            }
            if told.is_empty() && part.duration_ms > 0 {
                fact(&milliseconds(part.duration_ms));
            }
            out.push_str(&format!(
                "{} {name}  {}\n",
                green(style::GOOD),
                facts.join(" · ")
            ));
        }
        "unchanged" => out.push_str(&format!("{} {name}  {}\n", dim("="), dim("unchanged"))),
        "failed" | "rolled-back" => {
            // One that only went back because another failed has no failure of its own to tell.
            let innocent = blamed && part.error.is_empty();
            if !innocent {
                fact(told);
                fact(if part.error.is_empty() {
                    "failed"
                } else {
                    &part.error
                });
                // The whole of it is the error's cause, below.
                let line = cut(&facts.join(" · "), room);
                out.push_str(&format!("{} {name}  {line}\n", red(style::BAD)));
                let skip = part.log_tail.len().saturating_sub(LOG_LINES);
                for line in part.log_tail.iter().skip(skip) {
                    let line = clean::log_line(line.as_bytes());
                    out.push_str(&format!("{}| {line}\n", " ".repeat(widest + 4)));
                }
            }
            if part.outcome == "rolled-back" || innocent {
                let what = if part.from_revision.is_empty() {
                    "removed again".to_owned()
                } else {
                    format!("{} runs again", short(&part.from_revision))
                };
                let down = match part.downtime_ms {
                    0 => String::new(),
                    ms => format!(" · down {}", milliseconds(ms)),
                };
                out.push_str(&format!("{} {name}  {what}{down}\n", yellow("↩")));
            }
        }
        other => {
            let what = if other == "not-reached" {
                "not touched"
            } else {
                other
            };
            let why = match part.error.as_str() {
                "" => String::new(),
                why => format!(": {}", cut(&clean::line(why), room)),
            };
            out.push_str(&format!(
                "{} {name}  {}{why}\n",
                dim("-"),
                clean::line(what)
            ));
        }
    }
}

fn result_line(node: &str, deployment: &v1::Deployment) -> String {
    let name = path(&deployment.service, &deployment.component);
    let head = format!("{} on {}", bold(&name), bold(node));
    match deployment.outcome.as_str() {
        "unchanged" => format!(
            "{} {head}  {}  unchanged: nothing to do",
            dim("="),
            short(&deployment.revision)
        ),
        "running" => format!(
            "{head}  deployment {} goes on",
            short(&deployment.deployment_id)
        ),
        _ => {
            let touched = deployment
                .components
                .iter()
                .filter(|part| part.action != "none" && is_done(&part.outcome))
                .count();
            let touched = match touched {
                0 => "nothing to change".to_owned(),
                touched => count(touched, "component"),
            };
            let verb = match deployment.trigger.as_str() {
                "rollback" => "rolled back",
                "start" => "started",
                "stop" => "stopped",
                "restart" => "restarted",
                "purge" => "purged",
                _ => "deployed",
            };
            format!(
                "{} {head}  {}  {verb}, {}  deployment {}",
                green(style::GOOD),
                short(&deployment.revision),
                touched,
                short(&deployment.deployment_id)
            )
        }
    }
}

/// What to say of a service that the plan could not touch.
fn blocked(node: &str, deployment: &v1::Deployment, plan: &v1::Plan) -> Option<Failure> {
    let mut all = plan
        .blocked
        .iter()
        .filter(|blocked| blocked.service == deployment.service)
        .peekable();
    let first = *all.peek()?;
    let mut failure = Failure::new(
        Exit::Failed,
        format!("{} on {node} is blocked", deployment.service),
    );
    let hint = Some(first.hint.clone()).filter(|hint| !hint.is_empty());
    for blocked in all {
        failure = failure.cause(match blocked.component.as_str() {
            "" => blocked.reason.clone(),
            component => format!("{component}: {}", blocked.reason),
        });
    }
    Some(failure.maybe_hint(hint))
}

/// What to say of a deployment that did not go well; `plan` is what was to be done.
pub(crate) fn failure(
    node: &str,
    deployment: &v1::Deployment,
    plan: Option<&v1::Plan>,
) -> Option<Failure> {
    let exit = exit(deployment);
    if exit == Exit::Done {
        return None;
    }
    // Nothing was begun of what was blocked, so there is no deployment to look at.
    if deployment.deployment_id.is_empty()
        && let Some(failure) = plan.and_then(|plan| blocked(node, deployment, plan))
    {
        return Some(failure);
    }
    let failed = deployment.components.iter().find(|part| {
        !part.error.is_empty() && matches!(part.outcome.as_str(), "failed" | "rolled-back")
    });
    let component = failed.map_or(deployment.component.as_str(), |part| {
        part.component.as_str()
    });
    let name = path(&deployment.service, component);
    let revision = match deployment.revision.as_str() {
        "" => String::new(),
        revision => format!(" {}", short(revision)),
    };
    let outcome = match deployment.outcome.as_str() {
        "rolled-back" => "failed; rolled back".to_owned(),
        other => other.replace('-', " "),
    };
    let mut failure = Failure::new(exit, format!("{name}{revision} on {node} {outcome}"));
    let own = failed.map(|part| part.error.as_str()).unwrap_or_default();
    if !own.is_empty() {
        failure = failure.cause(own);
    }
    let mend = Some(deployment.mend.clone()).filter(|mend| !mend.is_empty());
    // The deployment's own words mostly repeat those of the component that failed.
    if !deployment.error.is_empty() && (own.is_empty() || !deployment.error.contains(own)) {
        failure = failure.cause(&deployment.error);
    }
    if !deployment.deployment_id.is_empty() {
        failure.deployment_id = Some(deployment.deployment_id.clone());
        failure.hint = match deployment.outcome.as_str() {
            "superseded" => Some(format!("mcp history {}", deployment.service)),
            _ if failed.is_some_and(|part| !part.log_tail.is_empty()) => Some(format!(
                "mcp logs {name} --deployment {}",
                short(&deployment.deployment_id)
            )),
            _ => Some(mend.unwrap_or_else(|| format!("mcp status {}", deployment.service))),
        };
    }
    Some(failure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::progress::Mode;

    /// One whose engine had no room, and said so at length.
    fn full() -> v1::Deployment {
        let said = format!(
            "looking for the image: {} no space left on device",
            "x/".repeat(400)
        );
        v1::Deployment {
            deployment_id: "51c07afaaaa".to_owned(),
            service: "shop".to_owned(),
            outcome: "aborted".to_owned(),
            error: format!("shop/db: {said} (make room)"),
            mend: "make room".to_owned(),
            components: vec![v1::ComponentOutcome {
                component: "db".to_owned(),
                action: "replace".to_owned(),
                outcome: "failed".to_owned(),
                error: said,
                ..v1::ComponentOutcome::default()
            }],
            ..v1::Deployment::default()
        }
    }

    #[test]
    fn a_failure_whose_mend_is_known_has_it_for_its_hint() {
        let failure = failure("rift", &full(), None).unwrap();
        assert_eq!(failure.hint.as_deref(), Some("make room"));
        assert_eq!(
            failure.causes,
            [full().components[0].error.clone()],
            "whole"
        );
    }

    #[test]
    fn what_an_engine_says_at_length_is_cut_on_its_components_line() {
        let progress = Progress::new(Mode::Quiet, anstream::ColorChoice::Never);
        for (width, longest) in [(Some(80), 80), (None, LONGEST_LINE)] {
            let text = render("rift", &full(), &progress, false, width);
            let text = anstream::adapter::strip_str(&text).to_string();
            let line = text.lines().next().unwrap();
            assert!(line.starts_with("✗ db  looking for the image") && line.ends_with('…'));
            assert!(line.chars().count() <= longest, "{line}");
        }
    }

    #[test]
    fn a_rolled_back_deployment_tells_the_log_and_what_runs_again() {
        let deployment = v1::Deployment {
            deployment_id: "51c07afaaaa".to_owned(),
            service: "metacrypt".to_owned(),
            revision: "a81d220bbbb".to_owned(),
            outcome: "rolled-back".to_owned(),
            components: vec![
                v1::ComponentOutcome {
                    component: "api".to_owned(),
                    action: "replace".to_owned(),
                    outcome: "rolled-back".to_owned(),
                    from_revision: "3f2a9c1cccc".to_owned(),
                    downtime_ms: 6_420,
                    error: "unhealthy 3/3: exit 1".to_owned(),
                    log_tail: vec!["config: key `listen` missing (line 12)".to_owned()],
                    ..v1::ComponentOutcome::default()
                },
                v1::ComponentOutcome {
                    component: "web".to_owned(),
                    outcome: "not-reached".to_owned(),
                    error: "needs api".to_owned(),
                    ..v1::ComponentOutcome::default()
                },
            ],
            ..v1::Deployment::default()
        };
        let progress = Progress::new(Mode::Quiet, anstream::ColorChoice::Never);
        let text =
            anstream::adapter::strip_str(&render("rift", &deployment, &progress, false, None))
                .to_string();
        assert_eq!(
            text,
            "\
✗ api  unhealthy 3/3: exit 1
       | config: key `listen` missing (line 12)
↩ api  3f2a9c1 runs again · down 6.4s
- web  not touched: needs api
"
        );
        let failure = failure("rift", &deployment, None).unwrap();
        assert_eq!(failure.exit, Exit::RolledBack);
        assert_eq!(
            failure.message,
            "metacrypt/api a81d220 on rift failed; rolled back"
        );
        assert_eq!(
            failure.hint.as_deref(),
            Some("mcp logs metacrypt/api --deployment 51c07af")
        );
    }
}
