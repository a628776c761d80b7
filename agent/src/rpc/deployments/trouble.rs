//! What is wrong with a component now, in the words of who noticed it, and what to do about it.
//!
//! Pure: the component as it is shown, its last events, and what the registry keeps of failures.

use mcp_proto::v1;
use mcp_spec::drift::STATE;

use crate::registry::{BLOCKED, EventRow, PauseRow, Quarantined};

/// What is known beside the component itself.
pub(super) struct Known<'a> {
    /// Its last events, oldest first.
    pub(super) events: &'a [EventRow],
    /// Its specs that failed here.
    pub(super) quarantined: Vec<&'a Quarantined>,
    /// Its service waits, after a failure.
    pub(super) pause: Option<&'a PauseRow>,
}

/// All that is wrong with a component, the most pressing first; nothing where an operator wants it so.
pub(super) fn troubles(component: &v1::Component, known: &Known<'_>) -> Vec<v1::Trouble> {
    let target = format!("{}/{}", component.service, component.component);
    let service = &component.service;
    let mut all = Vec::new();
    all.extend(not_running(component, known, &target));
    if component.health == "unhealthy" && component.observed_state == "running" {
        let (since, said) = last(known, &target, &["unhealthy"])
            .unwrap_or_else(|| (String::new(), "its health check fails".to_owned()));
        all.push(trouble(
            "unhealthy",
            since,
            said,
            format!("mcp logs {target}; then mcp restart {service}, or mcp rollback {target}"),
        ));
    }
    if !component.contested.is_empty() {
        let (since, said) = last(known, &target, &["contested"])
            .unwrap_or_else(|| (String::new(), component.contested.clone()));
        all.push(trouble(
            "contested",
            since,
            said,
            format!("find who it is: mcp events {target}; mcp stop {service} leaves it to them"),
        ));
    }
    if component.flapping {
        let (since, said) = last(known, &target, &["flapping"])
            .unwrap_or_else(|| (String::new(), "it changes too often".to_owned()));
        all.push(trouble(
            "flapping",
            since,
            said,
            format!("mcp logs {target}; mcp rollback {target} where a deployment brought it"),
        ));
    }
    all.extend(fields(component, &target));
    for spec in &known.quarantined {
        all.push(failed_spec(component, spec, &target));
    }
    if let Some(pause) = known.pause {
        let cause = pause.cause.strip_prefix(BLOCKED).unwrap_or(&pause.cause);
        let next = pause.next_try().map(|at| at.to_string());
        all.push(trouble(
            "blocked",
            pause.at.to_string(),
            format!(
                "{cause}; the agent tried {} in a row, and tries again after {}",
                times(pause.failures),
                next.unwrap_or_default()
            ),
            format!("mcp plan {service} tells what stands in the way"),
        ));
    }
    all
}

/// What should run and does not: how it ended, and what the agent makes of that.
fn not_running(component: &v1::Component, known: &Known<'_>, target: &str) -> Option<v1::Trouble> {
    let state = component.observed_state.as_str();
    let is_down = matches!(state, "stopped" | "failed" | "absent");
    if component.desired_state != "running" || !is_down || component.container_id.is_empty() {
        return None;
    }
    let service = &component.service;
    let ending = last(known, target, &["exited", "died", "removed"]);
    let after = known.events.iter().rev().find(|event| {
        matches!(
            event.kind.as_str(),
            "gave-up"
                | "restart-failed"
                | "restart-scheduled"
                | "restarted"
                | "deployed"
                | "started"
        )
    });
    let (condition, mend) = match after.map(|event| event.kind.as_str()) {
        Some("restart-failed") => (
            "down",
            format!(
                "mend what the engine names; the agent tries on, mcp deploy {service} tries at once"
            ),
        ),
        Some("restart-scheduled") => (
            "down",
            format!(
                "mcp logs {target}; it is started again by itself, mcp restart {service} does so at once"
            ),
        ),
        _ if state == "failed" => (
            "failed",
            format!("mcp logs {target}; mend the cause, then mcp deploy {service}"),
        ),
        _ => (state, format!("mcp deploy {service} brings it back")),
    };
    let consequence = after
        .filter(|event| {
            matches!(
                event.kind.as_str(),
                "gave-up" | "restart-failed" | "restart-scheduled"
            )
        })
        .map(|event| words(event, target));
    // The last attempt's own failure says more than when the next one is.
    let refusal = after
        .filter(|event| event.kind == "restart-scheduled")
        .and_then(|scheduled| {
            known
                .events
                .iter()
                .rev()
                .find(|event| event.seq < scheduled.seq && event.kind != "restart-scheduled")
        })
        .filter(|event| event.kind == "restart-failed")
        .map(|event| words(event, target));
    let since = ending.as_ref().map(|(since, _)| since.clone());
    let mut said: Vec<String> = ending.map(|(_, said)| said).into_iter().collect();
    said.extend(refusal);
    said.extend(consequence);
    if said.is_empty() {
        said.push(match component.exit_code {
            Some(code) => format!("it is {state}, exit code {code}"),
            None => format!("it is {state}"),
        });
    }
    Some(trouble(
        condition,
        since.unwrap_or_default(),
        said.join("; "),
        mend,
    ))
}

/// Fields that somebody changed on the live container.
fn fields(component: &v1::Component, target: &str) -> Option<v1::Trouble> {
    let fields: Vec<&v1::Drift> = component
        .drift
        .iter()
        .filter(|drift| drift.field != STATE)
        .collect();
    let first = fields.first()?;
    let said: Vec<String> = fields
        .iter()
        .map(|drift| format!("{} {} -> {}", drift.field, drift.baseline, drift.live))
        .collect();
    Some(trouble(
        "drift",
        first.since.clone(),
        said.join(", "),
        format!(
            "mcp deploy {} puts it back, mcp drift accept {target} keeps it",
            component.service
        ),
    ))
}

fn failed_spec(component: &v1::Component, spec: &Quarantined, target: &str) -> v1::Trouble {
    let deployment = spec.deployment.short();
    if component.unconverged && component.spec_digest == spec.spec_digest.to_string() {
        return trouble(
            "degraded",
            spec.at.to_string(),
            format!("deployment {deployment} did not converge: {}", spec.reason),
            format!("leave out what the node makes otherwise, or mcp deploy {target} tries again"),
        );
    }
    trouble(
        "quarantined",
        spec.at.to_string(),
        format!(
            "what the head wants failed in deployment {deployment}: {}",
            spec.reason
        ),
        format!(
            "mcp logs {target} --deployment {deployment}; sync a better spec, or mcp deploy {target} tries this one again"
        ),
    )
}

/// When the last event of these kinds was, and what it says.
fn last(known: &Known<'_>, target: &str, kinds: &[&str]) -> Option<(String, String)> {
    known
        .events
        .iter()
        .rev()
        .find(|event| kinds.contains(&event.kind.as_str()))
        .map(|event| (event.at.to_string(), words(event, target)))
}

/// What an event says, without the name that it begins with.
fn words(event: &EventRow, target: &str) -> String {
    let said = event.message.strip_prefix(target).unwrap_or(&event.message);
    said.trim_start_matches([' ', ':']).to_owned()
}

fn times(count: u32) -> String {
    match count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    }
}

fn trouble(condition: &str, since: String, message: String, mend: String) -> v1::Trouble {
    v1::Trouble {
        condition: condition.to_owned(),
        since,
        message,
        mend,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use mcp_spec::image::Digest;
    use mcp_spec::observed::ImageId;
    use serde_json::json;

    use super::*;
    use crate::registry::DeploymentId;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn event(seq: u64, kind: &str, said: &str) -> EventRow {
        EventRow {
            seq,
            at: at(i64::try_from(seq).unwrap()),
            service: Some("shop".parse().unwrap()),
            component: Some("web".parse().unwrap()),
            kind: kind.to_owned(),
            reason: String::new(),
            message: format!("shop/web {said}"),
            revision: None,
            data: json!({}),
        }
    }

    fn component(state: &str) -> v1::Component {
        v1::Component {
            service: "shop".to_owned(),
            component: "web".to_owned(),
            container_id: "c0ffee".to_owned(),
            desired_state: "running".to_owned(),
            observed_state: state.to_owned(),
            ..v1::Component::default()
        }
    }

    fn told(component: &v1::Component, events: &[EventRow]) -> Vec<v1::Trouble> {
        let known = Known {
            events,
            quarantined: Vec::new(),
            pause: None,
        };
        troubles(component, &known)
    }

    #[test]
    fn what_runs_well_has_no_trouble() {
        let events = [
            event(1, "unhealthy", "is unhealthy: HTTP 404"),
            event(2, "healthy", "is healthy"),
        ];
        assert_eq!(told(&component("running"), &events), []);
    }

    #[test]
    fn an_unhealthy_component_tells_what_its_check_said_last() {
        let mut web = component("running");
        web.health = "unhealthy".to_owned();
        let events = [
            event(1, "unhealthy", "is unhealthy: HTTP 404"),
            event(2, "healthy", "is healthy"),
            event(3, "unhealthy", "is unhealthy: HTTP 500"),
        ];
        let told = told(&web, &events);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].message, "is unhealthy: HTTP 500");
        assert_eq!(told[0].since, at(3).to_string());
        assert!(told[0].mend.contains("mcp logs shop/web"));
    }

    #[test]
    fn a_failed_component_tells_its_exit_and_what_was_given_up() {
        let events = [
            event(1, "exited", "exited with code 3 after 2s"),
            event(
                2,
                "gave-up",
                "is not started again after exit 3: restart = \"on-failure:1\" is spent",
            ),
            event(
                3,
                "drift",
                "differs from what was deployed: state running -> failed",
            ),
        ];
        let told = told(&component("failed"), &events);
        assert_eq!(told[0].condition, "failed");
        assert_eq!(
            told[0].message,
            "exited with code 3 after 2s; is not started again after exit 3: restart = \"on-failure:1\" is spent"
        );
        assert!(told[0].mend.contains("then mcp deploy shop"));
    }

    #[test]
    fn a_refused_start_tells_the_engines_words_and_the_next_try() {
        let events = [
            event(1, "exited", "exited with code 1 after 2s"),
            event(
                2,
                "restart-failed",
                "could not be started again: no such mount",
            ),
            event(3, "restart-scheduled", "starts again in 10s"),
        ];
        let told = told(&component("stopped"), &events);
        assert_eq!(
            told[0].message,
            "exited with code 1 after 2s; could not be started again: no such mount; starts again in 10s"
        );
    }

    #[test]
    fn what_was_given_up_before_the_last_deployment_is_past() {
        let events = [
            event(1, "gave-up", "is not started again"),
            event(2, "deployed", "started"),
            event(3, "removed", "was removed outside mcp"),
        ];
        let told = told(&component("absent"), &events);
        assert_eq!(told[0].condition, "absent");
        assert_eq!(told[0].message, "was removed outside mcp");
    }

    #[test]
    fn what_an_operator_stopped_has_no_trouble() {
        let mut web = component("stopped");
        web.desired_state = "stopped".to_owned();
        assert_eq!(
            told(&web, &[event(1, "exited", "exited with code 137")]),
            []
        );
    }

    #[test]
    fn a_quarantined_spec_tells_its_deployment_and_how_it_failed() {
        let spec = Quarantined {
            key: "shop/web".parse().unwrap(),
            spec_digest: Digest::of(b"v2"),
            image_id: ImageId::new("sha256:2"),
            deployment: DeploymentId::from_bits(7),
            at: at(1),
            reason: "it exited with code 1".to_owned(),
        };
        let known = Known {
            events: &[],
            quarantined: vec![&spec],
            pause: None,
        };
        let told = troubles(&component("running"), &known);
        assert_eq!(told[0].condition, "quarantined");
        let id = spec.deployment.short();
        assert!(
            told[0]
                .message
                .ends_with(&format!("{id}: it exited with code 1"))
        );
        assert!(told[0].mend.contains(&format!("--deployment {id}")));
    }

    #[test]
    fn a_service_that_waits_tells_for_what() {
        let pause = PauseRow {
            service: "shop".parse().unwrap(),
            wanted: Digest::of(b"v2"),
            failures: 2,
            pause_ms: 20_000,
            at: at(0),
            cause: format!("{BLOCKED}the name shop-web is taken"),
        };
        let known = Known {
            events: &[],
            quarantined: Vec::new(),
            pause: Some(&pause),
        };
        let told = troubles(&component("running"), &known);
        assert!(
            told[0]
                .message
                .starts_with("the name shop-web is taken; the agent tried 2 times")
        );
        assert!(told[0].mend.contains("mcp plan shop"));
    }
}
