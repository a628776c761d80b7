//! The sweep: every kind of deployment, and at every call of the engine and every write of the registry
//! everything that can befall it. Afterwards the agent is started again, and the node has to be in
//! order.
//!
//! One fault a run, except that a crash is also followed by a second one in the recovery.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::faults::{Fault, Faults, Faulty, Kind};
use super::invariants::{Picture, broken};
use super::node::{Agent, Node, Op, on_paused_time};
use crate::desired::Desired;
use crate::registry::{Lookup, Outcome};
use crate::revisions::RevisionStore;
use crate::revisions::tests::scene::node as shop_node;
use crate::testing::{ScriptedEngine, memory_dir};

/// How a node came to where the operation starts.
pub(super) enum Step {
    Push(&'static [(&'static str, &'static str)]),
    Do(Op),
    Engine(fn(&ScriptedEngine)),
}

/// An operation on a node with a past.
pub(super) struct Scenario {
    pub(super) past: &'static [Step],
    pub(super) op: Op,
    /// What comes of it where nothing goes wrong.
    pub(super) outcome: Outcome,
}

/// What every run begins with.
struct Template {
    dir: tempfile::TempDir,
    engine: ScriptedEngine,
    revisions: Arc<RevisionStore>,
    desired: Arc<Desired>,
    // Holds the repository.
    _node: Node,
}

async fn prepare(past: &[Step]) -> Template {
    let node = Node::new();
    let stranger = ScriptedEngine::container("stranger", None, jiff::Timestamp::UNIX_EPOCH);
    node.engine.put(stranger);
    node.engine.put_belongings("theirs");
    for step in past {
        match step {
            Step::Push(files) => node.push(files),
            Step::Engine(change) => change(&node.engine),
            Step::Do(op) => {
                let agent = node.agent().await;
                agent.operate(*op).await;
                agent.kill().await;
            }
        }
    }
    let revisions = node.revisions();
    Template {
        desired: Arc::new(Desired::new(shop_node(), revisions.clone())),
        revisions,
        dir: memory_dir(),
        engine: node.engine.copy(),
        _node: node,
    }
    .with_data()
}

impl Template {
    fn with_data(self) -> Self {
        copy(self._node.dir.path(), self.dir.path());
        self
    }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// What one run showed.
struct Run {
    points: Vec<(String, Kind)>,
    recovery: Vec<(String, Kind)>,
    outcome: Option<Outcome>,
    wrong: Vec<String>,
}

/// Carries the operation out with this fault, starts the agent again (with another crash at this point
/// of its recovery), and looks.
async fn run(
    template: &Template,
    op: Op,
    fault: Option<(usize, Fault)>,
    again: Option<(usize, Fault)>,
) -> Run {
    let dir = memory_dir();
    copy(template.dir.path(), dir.path());
    let runtime = Faulty {
        engine: template.engine.copy(),
        faults: Faults::none(),
        changing: Arc::default(),
    };
    let (engine, faults) = (runtime.engine.clone(), runtime.faults.clone());
    let start = || {
        Agent::start(
            dir.path(),
            runtime.clone(),
            template.revisions.clone(),
            template.desired.clone(),
        )
    };

    let agent = start().await;
    let before = Picture::of(&engine, &agent.registry, dir.path()).await;
    let submission = agent.submission(op, "first").await;
    let plan = submission.plan.clone();
    faults.arm(fault);
    tokio::select! {
        biased;
        () = faults.crashed() => {}
        _ = agent.carry_out(submission) => {}
    }
    let points = faults.disarm();
    agent.kill().await;

    faults.arm(again);
    let mut recovery = Vec::new();
    if again.is_some() {
        tokio::select! {
            biased;
            () = faults.crashed() => {}
            agent = start() => tokio::select! {
                biased;
                () = faults.crashed() => agent.kill().await,
                _ = agent.recovered() => agent.kill().await,
            },
        }
        faults.disarm();
        faults.arm(None);
    }
    let agent = start().await;
    let mut wrong = Vec::new();
    if !agent.recovered().await {
        wrong.push("a deployment has not ended".to_owned());
    }
    recovery.append(&mut faults.disarm());
    // What a sweep has left it takes up again, within ten minutes at the latest.
    tokio::time::sleep(Duration::from_secs(700)).await;
    let row = agent
        .registry
        .deployments_of_request("first".to_owned())
        .await
        .unwrap()
        .pop();
    let outcome = row.as_ref().and_then(|row| row.outcome);
    let after = Picture::of(&engine, &agent.registry, dir.path()).await;
    wrong.extend(broken(&before, &after, &plan, op.trigger(), outcome));
    if let Some(row) = row {
        let found = agent.registry.deployment(row.id.to_string()).await.unwrap();
        assert!(matches!(found, Lookup::One(_)));
    }
    agent.kill().await;

    // Recovery done twice does nothing the second time. It costs as much as the rest, so it is tried
    // after every fourth fault.
    if fault.is_none_or(|(at, _)| at % 4 == 0) {
        let changes = engine.changes();
        let agent = start().await;
        agent.recovered().await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        let twice = Picture::of(&engine, &agent.registry, dir.path()).await;
        if twice != after || engine.changes() != changes {
            wrong.push(format!(
                "recovery does something the second time ({} changes)",
                engine.changes() - changes
            ));
        }
        agent.kill().await;
    }
    Run {
        points,
        recovery,
        outcome,
        wrong,
    }
}

/// Sweeps a scenario.
pub(super) fn sweep(scenario: &Scenario) {
    let (runs, wrong) = on_paused_time(sweep_all(scenario));
    let shown: Vec<&str> = wrong.iter().take(30).map(String::as_str).collect();
    assert!(
        wrong.is_empty(),
        "{} things went wrong in {runs} runs:\n{}",
        wrong.len(),
        shown.join("\n")
    );
    assert!(runs > 20, "only {runs} runs");
}

async fn sweep_all(scenario: &Scenario) -> (usize, Vec<String>) {
    let template = prepare(scenario.past).await;
    let fine = run(&template, scenario.op, None, None).await;
    let mut wrong: Vec<String> = fine
        .wrong
        .iter()
        .map(|what| format!("no fault: {what}"))
        .collect();
    if fine.outcome != Some(scenario.outcome) {
        wrong.push(format!("no fault: it ended as {:?}", fine.outcome));
    }
    let mut runs = 1;
    for (at, (name, kind)) in fine.points.iter().enumerate() {
        for fault in kind.faults() {
            // A crash before a point is one after the point before it: a look changes nothing.
            if *fault == Fault::CrashBefore && at > 0 {
                continue;
            }
            let ran = run(&template, scenario.op, Some((at, *fault)), None).await;
            runs += 1;
            let which = format!("{fault:?} at {at} ({})", short(name));
            wrong.extend(ran.wrong.iter().map(|what| format!("{which}: {what}")));
            // A second crash somewhere in the recovery: another point in each run, all in all runs.
            let crashed = *fault == Fault::CrashAfter && at % 2 == 0;
            if crashed && !ran.recovery.is_empty() {
                let second = (at * 7 + 3) % ran.recovery.len();
                let how = match ran.recovery[second].1 {
                    Kind::Look => Fault::CrashBefore,
                    _ => Fault::CrashAfter,
                };
                let again = run(
                    &template,
                    scenario.op,
                    Some((at, *fault)),
                    Some((second, how)),
                )
                .await;
                runs += 1;
                let which = format!(
                    "{which}, {how:?} at {second} ({})",
                    short(&ran.recovery[second].0)
                );
                wrong.extend(again.wrong.iter().map(|what| format!("{which}: {what}")));
            }
        }
    }
    (runs, wrong)
}

/// A point's name without the path of its closure.
fn short(name: &str) -> &str {
    name.trim_end_matches("::{{closure}}")
        .rsplit("::")
        .next()
        .unwrap_or(name)
}
