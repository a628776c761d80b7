//! Which conditions hold, and what is told of them: pure, time is an argument.
//!
//! An alert goes out at once when a condition begins. While it holds, the same cause again is told at
//! most once in the cool-down, another cause at once; its end is told where its beginning was.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use mcp_spec::name::{ComponentName, ServiceName};
use serde::{Deserialize, Serialize};

use crate::registry::EventRow;

/// What an alert says of its condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlertState {
    /// It holds.
    Firing,
    /// It holds no more.
    Recovered,
    /// It is only tried whether alerts arrive.
    Test,
}

impl AlertState {
    /// The word on the outside.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Recovered => "recovered",
            Self::Test => "test",
        }
    }
}

/// What a condition is about: the node, a service, or a component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConditionKey {
    /// The service, unless it is the node's.
    pub service: Option<ServiceName>,
    /// The component, unless it is the service's.
    pub component: Option<ComponentName>,
    /// Its stable word, such as `drift`.
    pub condition: String,
}

/// One alert, as it is delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// The node.
    pub node: String,
    /// What it is about.
    #[serde(flatten)]
    pub key: ConditionKey,
    /// Whether the condition holds.
    pub state: AlertState,
    /// Why, short and stable: a changed cause is told at once.
    pub cause: String,
    /// A sentence for people.
    pub message: String,
    /// When it happened.
    pub at: Timestamp,
    /// Since when the condition holds, or held.
    pub since: Timestamp,
    /// The number of the event that it follows from.
    pub seq: u64,
    /// The revision that it is about.
    pub revision: Option<String>,
    /// How often the condition was met since it was last told.
    pub count: u64,
    /// The event's own data.
    pub data: serde_json::Value,
    /// What was seen around it; filled in where it is told.
    #[serde(default)]
    pub evidence: Evidence,
}

/// What was seen around an alert.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// The last events about the same, oldest first.
    pub events: Vec<String>,
    /// The exit code, where something ended.
    pub exit_code: Option<i64>,
    /// The last lines that the container wrote.
    pub log: Vec<String>,
}

/// A condition that holds, or did within the cool-down.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Condition {
    /// What it is about.
    pub key: ConditionKey,
    /// Whether it holds.
    pub holds: bool,
    /// Its last occurrence.
    pub last: Alert,
    /// The cause that was told last while it holds; `None` where nothing was told of it yet.
    pub told: Option<String>,
    /// When it was last told, in this or an earlier time that it held.
    pub told_at: Option<Timestamp>,
}

/// What an event does to a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Effect {
    /// It begins, or is met again, for this cause.
    Begins(ConditionKey, String),
    /// It is met once: nothing ends it.
    Once(ConditionKey, String),
    /// It ends.
    Ends(ConditionKey),
    /// A deployment of the service went well: what failed before is over, unless the head still wants it.
    WentWell(ServiceName),
    /// The head moved: what failed is over where nobody wants it any more.
    HeadMoved,
    /// All conditions of the component end, but these.
    EndsAll(ServiceName, ComponentName, &'static [&'static str]),
}

/// What is known of the services that events are about.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// Those whose alerts are off.
    pub muted: BTreeSet<ServiceName>,
    /// Those of which the head wants what failed its gate here.
    pub failing: BTreeSet<ServiceName>,
}

/// What is to be written down after an event.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Change {
    /// Conditions as they are now.
    pub conditions: Vec<Condition>,
    /// Conditions that nobody needs any more.
    pub forgotten: Vec<ConditionKey>,
    /// Alerts that go out.
    pub alerts: Vec<Alert>,
}

impl Change {
    /// Whether there is nothing to write down.
    pub(super) fn is_empty(&self) -> bool {
        self.conditions.is_empty() && self.forgotten.is_empty() && self.alerts.is_empty()
    }
}

/// All conditions that hold or did within the cool-down.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    node: String,
    cooldown: SignedDuration,
    known: BTreeMap<ConditionKey, Condition>,
}

impl Conditions {
    /// Takes up what was written down.
    #[must_use]
    pub(super) fn new(node: String, cooldown: SignedDuration, known: Vec<Condition>) -> Self {
        Self {
            node,
            cooldown,
            known: known
                .into_iter()
                .map(|condition| (condition.key.clone(), condition))
                .collect(),
        }
    }

    /// Whether a deployment failed and nothing has ended that yet.
    #[must_use]
    pub(super) fn has_failed_deployments(&self) -> bool {
        self.known
            .values()
            .any(|condition| condition.holds && condition.key.condition == DEPLOYMENT)
    }

    /// Takes in an event.
    pub(super) fn take(&mut self, event: &EventRow, now: Timestamp, services: &Services) -> Change {
        let mut change = Change::default();
        for effect in effects(event) {
            match effect {
                Effect::Begins(key, cause) | Effect::Once(key, cause)
                    if key
                        .service
                        .as_ref()
                        .is_some_and(|name| services.muted.contains(name)) =>
                {
                    tracing::debug!(?key, cause, "a muted alert");
                }
                Effect::Begins(key, cause) => self.begins(key, cause, event, now, &mut change),
                Effect::Once(key, cause) => {
                    self.begins(key.clone(), cause, event, now, &mut change);
                    self.ends_silently(&key, &mut change);
                }
                Effect::Ends(key) => self.ends(&key, event, &mut change),
                Effect::WentWell(service) => {
                    if !services.failing.contains(&service) {
                        self.ends(&failed_deployment(service), event, &mut change);
                    }
                }
                Effect::HeadMoved => self.head_moved(event, &services.failing, &mut change),
                Effect::EndsAll(service, component, but) => {
                    let keys: Vec<ConditionKey> = self
                        .known
                        .keys()
                        .filter(|key| {
                            key.service.as_ref() == Some(&service)
                                && key.component.as_ref() == Some(&component)
                                && !but.contains(&key.condition.as_str())
                        })
                        .cloned()
                        .collect();
                    for key in keys {
                        self.ends(&key, event, &mut change);
                    }
                }
            }
        }
        change
    }

    /// What the passing of time brings: a cause that the cool-down held back, and conditions to forget.
    pub(super) fn pass(&mut self, now: Timestamp) -> Change {
        let mut change = Change::default();
        let keys: Vec<ConditionKey> = self.known.keys().cloned().collect();
        for key in keys {
            let Some(condition) = self.known.get_mut(&key) else {
                continue;
            };
            let is_cool = is_cool(condition, self.cooldown, now);
            if condition.holds && condition.told.is_none() && is_cool {
                change.alerts.push(tell(condition, now));
                change.conditions.push(condition.clone());
            } else if !condition.holds && is_cool {
                self.known.remove(&key);
                change.forgotten.push(key);
            }
        }
        change
    }

    /// When [`Self::pass`] has something to do, at the earliest.
    #[must_use]
    pub(super) fn next_pass(&self) -> Option<Timestamp> {
        self.known
            .values()
            .filter(|condition| !condition.holds || condition.told.is_none())
            .filter_map(|condition| condition.told_at)
            .map(|told| told.checked_add(self.cooldown).unwrap_or(Timestamp::MAX))
            .min()
    }

    fn begins(
        &mut self,
        key: ConditionKey,
        cause: String,
        event: &EventRow,
        now: Timestamp,
        change: &mut Change,
    ) {
        let before = self.known.get(&key);
        let held = before.filter(|condition| condition.holds);
        let alert = Alert {
            node: self.node.clone(),
            key: key.clone(),
            state: AlertState::Firing,
            cause,
            message: event.message.clone(),
            at: event.at,
            since: held.map_or(event.at, |condition| condition.last.since),
            seq: event.seq,
            revision: event.revision.map(|revision| revision.to_string()),
            count: held.map_or(1, |condition| condition.last.count + 1),
            data: event.data.clone(),
            evidence: Evidence::default(),
        };
        let mut condition = Condition {
            key: key.clone(),
            holds: true,
            told: held.and_then(|condition| condition.told.clone()),
            told_at: before.and_then(|condition| condition.told_at),
            last: alert,
        };
        let is_other_cause = condition
            .told
            .as_ref()
            .is_some_and(|told| *told != condition.last.cause);
        if is_other_cause || is_cool(&condition, self.cooldown, now) {
            change.alerts.push(tell(&mut condition, now));
        }
        change.conditions.push(condition.clone());
        self.known.insert(key, condition);
    }

    /// Ends what a spec began that failed its gate, where the head wants another by now.
    fn head_moved(
        &mut self,
        event: &EventRow,
        failing: &BTreeSet<ServiceName>,
        change: &mut Change,
    ) {
        let replaced: Vec<ServiceName> = self
            .known
            .values()
            .filter(|condition| condition.holds && condition.key.condition == DEPLOYMENT)
            .filter(|condition| {
                let quarantined = condition.last.data.get("quarantined");
                quarantined.is_some_and(|parts| parts.as_array().is_some_and(|p| !p.is_empty()))
            })
            .filter_map(|condition| condition.key.service.clone())
            .filter(|service| !failing.contains(service))
            .collect();
        for service in replaced {
            let event = EventRow {
                message: format!("the head no longer wants what failed in {service}"),
                ..event.clone()
            };
            self.ends(&failed_deployment(service), &event, change);
        }
    }

    fn ends(&mut self, key: &ConditionKey, event: &EventRow, change: &mut Change) {
        let Some(condition) = self.known.get(key).filter(|condition| condition.holds) else {
            return;
        };
        if condition.told.is_some() {
            change.alerts.push(Alert {
                state: AlertState::Recovered,
                message: event.message.clone(),
                at: event.at,
                seq: event.seq,
                data: event.data.clone(),
                evidence: Evidence::default(),
                ..condition.last.clone()
            });
        }
        self.ends_silently(key, change);
    }

    fn ends_silently(&mut self, key: &ConditionKey, change: &mut Change) {
        let Some(condition) = self.known.get_mut(key) else {
            return;
        };
        condition.holds = false;
        condition.told = None;
        condition.last.count = 0;
        if condition.told_at.is_none() {
            change.forgotten.push(key.clone());
            self.known.remove(key);
        } else {
            change.conditions.push(condition.clone());
        }
    }
}

/// Whether the cool-down is over. A wall clock that was set back ends it.
fn is_cool(condition: &Condition, cooldown: SignedDuration, now: Timestamp) -> bool {
    condition.told_at.is_none_or(|told| {
        let passed = now.duration_since(told);
        passed.is_negative() || passed >= cooldown
    })
}

fn tell(condition: &mut Condition, now: Timestamp) -> Alert {
    let alert = condition.last.clone();
    condition.told = Some(alert.cause.clone());
    condition.told_at = Some(now);
    condition.last.count = 0;
    alert
}

/// The word of a deployment that failed.
const DEPLOYMENT: &str = "deployment";

fn failed_deployment(service: ServiceName) -> ConditionKey {
    ConditionKey {
        service: Some(service),
        component: None,
        condition: DEPLOYMENT.to_owned(),
    }
}

/// What an event means. Kinds that are not listed mean nothing here.
fn effects(event: &EventRow) -> Vec<Effect> {
    let key = |condition: &str| ConditionKey {
        service: event.service.clone(),
        component: event.component.clone(),
        condition: condition.to_owned(),
    };
    let of_service = |condition: &str| ConditionKey {
        component: None,
        ..key(condition)
    };
    let cause = || event.reason.clone();
    match event.kind.as_str() {
        "drift" => vec![Effect::Begins(key("drift"), drift_cause(event))],
        "drift-gone" => vec![Effect::Ends(key("drift"))],
        "flapping" => vec![Effect::Begins(key("flapping"), cause())],
        "flapping-over" => vec![Effect::Ends(key("flapping"))],
        "unhealthy" => vec![Effect::Begins(key("unhealthy"), cause())],
        "healthy" => vec![Effect::Ends(key("unhealthy"))],
        "gave-up" | "restart-failed" => vec![Effect::Begins(key("down"), event.kind.clone())],
        "contested" => vec![Effect::Begins(key("contested"), cause())],
        "contested-over" => vec![Effect::Ends(key("contested"))],
        "started" | "restarted" | "remade" => vec![Effect::Ends(key("down"))],
        "exited" if event.data.get("oom") == Some(&serde_json::Value::Bool(true)) => {
            vec![Effect::Once(
                key("out-of-memory"),
                "out-of-memory".to_owned(),
            )]
        }
        "engine-away" => vec![Effect::Begins(key("engine"), cause())],
        "engine-back" => vec![Effect::Ends(key("engine"))],
        "deployment-failed" | "deployment-degraded" => {
            vec![Effect::Begins(
                of_service(DEPLOYMENT),
                event.message.clone(),
            )]
        }
        // Who deployed by hand was told there and then.
        "deployment-rolled-back" if event.reason == "auto" => {
            vec![Effect::Begins(
                of_service(DEPLOYMENT),
                event.message.clone(),
            )]
        }
        "blocked" if event.data.get("persists") == Some(&serde_json::Value::Bool(true)) => {
            vec![Effect::Begins(of_service("blocked"), cause())]
        }
        "blocked-over" => vec![Effect::Ends(of_service("blocked"))],
        "deployment-deployed" | "deployment-unchanged" => went_well(event),
        "deployed" => deployed(event),
        "revision" => vec![Effect::HeadMoved],
        "stopped" => of_component(event, &[]).into_iter().collect(),
        "removed" if event.reason == "remove" => {
            let mut effects = went_well(event);
            effects.extend(of_component(event, &[]));
            effects
        }
        _ => Vec::new(),
    }
}

/// A component on which a deployment succeeded has nothing of its past to answer for. That it is calm,
/// or no longer contested, is told when it is.
fn deployed(event: &EventRow) -> Vec<Effect> {
    let mut effects = Vec::new();
    let outcome = event.data.get("outcome").and_then(|word| word.as_str());
    // Of one part alone nothing follows for a deployment that as a whole did not end well.
    if !matches!(outcome, Some("failed" | "degraded")) {
        effects.extend(went_well(event));
    }
    effects.extend(of_component(event, &["flapping", "contested"]));
    effects
}

/// A deployment went well: the service's earlier failures are over.
fn went_well(event: &EventRow) -> Vec<Effect> {
    let Some(service) = &event.service else {
        return Vec::new();
    };
    let blocked = ConditionKey {
        condition: "blocked".to_owned(),
        ..failed_deployment(service.clone())
    };
    vec![Effect::WentWell(service.clone()), Effect::Ends(blocked)]
}

/// All conditions of the component that an event is about end, but these.
fn of_component(event: &EventRow, but: &'static [&'static str]) -> Option<Effect> {
    let (service, component) = event.service.clone().zip(event.component.clone())?;
    Some(Effect::EndsAll(service, component, but))
}

/// The drifted fields with their live values: other ones are another cause.
fn drift_cause(event: &EventRow) -> String {
    let Some(rows) = event.data.get("drift").and_then(|drift| drift.as_array()) else {
        return event.reason.clone();
    };
    let text = |row: &serde_json::Value, name: &str| {
        row.get(name)
            .and_then(|value| value.as_str())
            .unwrap_or_default()
            .to_owned()
    };
    let mut fields: Vec<String> = rows
        .iter()
        .map(|row| format!("{}={}", text(row, "field"), text(row, "live")))
        .collect();
    fields.sort();
    let mut cause = fields.join(" ");
    if cause.len() > CAUSE_BYTES {
        let end = cause.floor_char_boundary(CAUSE_BYTES);
        cause.truncate(end);
    }
    cause
}

/// Longest cause: it is compared and shown, the rest stands in the data.
const CAUSE_BYTES: usize = 1024;
