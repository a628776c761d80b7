//! Components as rows of a table, and the ends of commands that ask several nodes.

use mcp_proto::v1;

use crate::client::Answer;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{Style, count, short};
use crate::output::table::Cell;

/// The observed state and its look.
pub(crate) fn state(component: &v1::Component) -> Cell {
    let style = match component.observed_state.as_str() {
        "running" | "completed" => Style::Good,
        "failed" => Style::Bad,
        "stopped" if component.desired_state == "stopped" => Style::Dim,
        "stopped" | "absent" => Style::Bad,
        _ => Style::Warn,
    };
    let text = match component.exit_code {
        Some(code) if has_ended(component) && code != 0 => {
            format!("{} ({code})", component.observed_state)
        }
        _ => component.observed_state.clone(),
    };
    Cell::new(&text, style)
}

/// Whether its container is there and has ended: an exit code is of nothing else.
fn has_ended(component: &v1::Component) -> bool {
    matches!(
        component.observed_state.as_str(),
        "stopped" | "completed" | "failed"
    )
}

/// The health and its look.
pub(crate) fn health(component: &v1::Component) -> Cell {
    let style = match component.health.as_str() {
        "healthy" => Style::Good,
        "unhealthy" => Style::Bad,
        "" => Style::Dim,
        _ => Style::Warn,
    };
    let text = if component.health.is_empty() {
        "-"
    } else {
        &component.health
    };
    Cell::new(text, style)
}

/// The revision, how far it is behind, and what else needs a look: `3f2a9c1 (2 behind) DRIFT`.
pub(crate) fn revision(component: &v1::Component) -> Cell {
    let mut words = Vec::new();
    let mut style = Style::Plain;
    match component.behind {
        // What was never deployed is not behind anything.
        _ if component.revision.is_empty() && component.container_id.is_empty() => {
            words.push("not deployed".to_owned());
            style = Style::Warn;
        }
        // No deploy had a say in it yet.
        _ if component.revision.is_empty() => words.push("adopted".to_owned()),
        0 => words.push(short(&component.revision)),
        behind => {
            words.push(format!("{} ({behind} behind)", short(&component.revision)));
            style = Style::Warn;
        }
    }
    let remarks = remarks(component);
    if !remarks.is_empty() {
        words.push(remarks.join(", "));
        style = Style::Warn;
    }
    Cell::new(&words.join(" "), style)
}

/// What needs a look: `DRIFT`, `CONTESTED`, `HELD`, `orphaned`, `quarantined` and others.
fn remarks(component: &v1::Component) -> Vec<String> {
    let mut words = Vec::new();
    if !component.drift.is_empty() {
        words.push("DRIFT".to_owned());
    }
    if !component.contested.is_empty() {
        words.push("CONTESTED".to_owned());
    }
    if let Some(hold) = &component.held {
        words.push(format!("HELD by {}", hold.by));
    }
    if component.orphaned {
        words.push("orphaned".to_owned());
    }
    if component.quarantined {
        words.push("quarantined".to_owned());
    }
    if component.unconverged {
        words.push("not converged".to_owned());
    }
    if component.flapping {
        words.push("flapping".to_owned());
    }
    if component.restarts > 0 {
        words.push(count(component.restarts as usize, "restart"));
    }
    words
}

/// Tells the failures of all nodes but the last word, and how the command ends.
pub(crate) fn end<T>(context: &Context, answers: &[Answer<T>]) -> Outcome {
    end_with(context, answers, |_| Exit::Done)
}

/// As [`end`], with `done` saying how a node that answered ends.
pub(crate) fn end_with<T>(
    context: &Context,
    answers: &[Answer<T>],
    done: impl Fn(&T) -> Exit,
) -> Outcome {
    let failures: Vec<&Failure> = answers
        .iter()
        .filter_map(|answer| answer.result.as_ref().err())
        .collect();
    for failure in &failures {
        context.out.failure(failure);
    }
    let exit = Exit::over_nodes(answers.iter().map(|answer| match &answer.result {
        Ok(value) => done(value),
        Err(failure) => failure.exit,
    }));
    if failures.is_empty() {
        Ok(exit)
    } else {
        Err(Failure::told(exit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::table::Table;

    #[test]
    fn only_what_has_ended_has_an_exit_code() {
        let shown = |observed: &str| {
            let cell = state(&v1::Component {
                observed_state: observed.to_owned(),
                exit_code: Some(137),
                ..v1::Component::default()
            });
            let mut table = Table::bare(0);
            table.row([cell]);
            anstream::adapter::strip_str(&table.render(None)).to_string()
        };
        assert_eq!(shown("failed"), "failed (137)\n");
        assert_eq!(shown("stopped"), "stopped (137)\n");
        for observed in ["absent", "unknown", "running"] {
            assert_eq!(shown(observed), format!("{observed}\n"));
        }
    }

    #[test]
    fn one_restart_is_one_restart() {
        let component = v1::Component {
            restarts: 1,
            ..v1::Component::default()
        };
        assert_eq!(remarks(&component), ["1 restart"]);
    }
}
