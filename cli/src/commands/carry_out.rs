//! Having work carried out on nodes: progress while it lasts, consent where something is removed, the
//! results at the end. Deploy, rollback, start, stop, restart and purge share it.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::sync::Arc;

use futures_util::StreamExt as _;
use mcp_proto::v1;

use super::{file_lines, repository};
use crate::client::follow::{Seen, Work, follow};
use crate::client::signing::Signatures;
use crate::config::NodeEntry;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::style::short;
use crate::output::{clean, deployment, json, plan};

/// Work for one node.
#[derive(Debug, Clone)]
pub(crate) struct Job<'a> {
    /// The node.
    pub(crate) node: &'a NodeEntry,
    /// What it is asked to do.
    pub(crate) work: Work,
}

/// How the work is carried out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manner {
    /// Return once the deployment is admitted.
    pub(crate) detach: bool,
    /// The plan goes without saying: the whole service is started, stopped or restarted.
    pub(crate) plain: bool,
    /// Only the plan is of interest.
    pub(crate) dry_run: bool,
    /// At most so many nodes at a time; none: all.
    pub(crate) at_once: Option<usize>,
    /// Go on with other nodes after one has failed.
    pub(crate) keep_going: bool,
}

/// How the work ended on one node.
#[derive(Debug)]
pub(crate) struct End {
    /// The node.
    pub(crate) node: String,
    /// What the agent said it would do.
    pub(crate) plan: Option<v1::Plan>,
    /// The deployments; none where the client went before the end.
    pub(crate) result: Result<Option<Vec<v1::Deployment>>, Failure>,
    /// The deployment that goes on without the client.
    pub(crate) left: Option<String>,
}

impl End {
    /// Whether the agent waits for consent to what it would remove.
    pub(crate) fn needs_consent(&self) -> bool {
        let reason = self
            .result
            .as_ref()
            .err()
            .and_then(|failure| failure.reason.as_deref());
        reason.is_some_and(|reason| reason.contains("consent"))
    }

    fn exit(&self) -> Exit {
        match &self.result {
            Err(failure) => failure.exit,
            Ok(None) => Exit::Done,
            Ok(Some(deployments)) => {
                let blocked = self.plan.as_ref().and_then(plan::blocked_exit);
                let end = |deployment: &v1::Deployment| match blocked {
                    // What was not begun since it is blocked ends as that.
                    Some(blocked) if deployment.outcome == "aborted" => blocked,
                    _ => deployment::exit(deployment),
                };
                // Where several services failed in different ways, no single way is the answer.
                let bad: Vec<Exit> = deployments
                    .iter()
                    .map(end)
                    .filter(|exit| *exit != Exit::Done)
                    .collect();
                match bad.split_first() {
                    None => blocked.unwrap_or(Exit::Done),
                    Some((first, rest)) if rest.iter().all(|exit| exit == first) => *first,
                    Some(_) => Exit::Failed,
                }
            }
        }
    }
}

/// Carries the jobs out, and tells their ends.
pub(crate) async fn run(context: &Context, jobs: &[Job<'_>], manner: &Manner) -> Outcome {
    let progress = context.out.progress();
    let ends = carry_out(context, jobs, manner, &progress).await?;
    finish(context, manner, &ends, &progress)
}

/// Carries the jobs out; the ends come in the jobs' order, and those of jobs that were not begun
/// because another had failed are left out.
pub(crate) async fn carry_out(
    context: &Context,
    jobs: &[Job<'_>],
    manner: &Manner,
    progress: &Progress,
) -> Result<Vec<End>, Failure> {
    repository::open_key(context)?;
    let signatures = Signatures::new(&context.key, jobs.iter().map(|job| job.node.name.clone()));
    let under_way: RefCell<Vec<(String, String)>> = RefCell::new(Vec::new());
    let failed = Cell::new(false);
    let stops_at_failure = manner.at_once.is_some() && !manner.keep_going;
    let all = async {
        let each = jobs.iter().map(|job| async {
            if stops_at_failure && failed.get() {
                return None;
            }
            let end = one(context, &signatures, job, manner, progress, &under_way).await;
            if end.exit() != Exit::Done {
                failed.set(true);
            }
            Some(end)
        });
        let ends: Vec<Option<End>> = futures_util::stream::iter(each)
            .buffered(manner.at_once.unwrap_or(64).max(1))
            .collect()
            .await;
        ends
    };
    tokio::select! {
        // Dropping the streams leaves the agents to their work: that is what detaching means.
        ends = all => {
            let skipped = ends.iter().filter(|end| end.is_none()).count();
            if skipped > 0 {
                context.out.warn(&format!("{skipped} of {} nodes were not begun; --keep-going goes on", jobs.len()));
            }
            Ok(ends.into_iter().flatten().collect())
        }
        _ = tokio::signal::ctrl_c() => {
            progress.finish();
            let ids = under_way.borrow();
            if ids.is_empty() {
                return Err(Failure::new(Exit::WaitEnded, "interrupted before anything was admitted")
                    .hint("mcp history"));
            }
            for (node, id) in ids.iter() {
                context.out.note(&format!("detached: deployment {} on {} goes on", short(id), clean::line(node)));
            }
            let hint = ids.first().map(|(_, id)| format!("mcp deploy --cancel {}, or mcp history", short(id)));
            if let Some(hint) = hint {
                context.out.hint(&hint);
            }
            Err(Failure::told(Exit::WaitEnded))
        }
    }
}

async fn one(
    context: &Context,
    signatures: &Arc<Signatures>,
    job: &Job<'_>,
    manner: &Manner,
    progress: &Progress,
    under_way: &RefCell<Vec<(String, String)>>,
) -> End {
    let node = job.node.name.to_string();
    let seen_plan: RefCell<Option<v1::Plan>> = RefCell::new(None);
    let admitted: RefCell<Option<String>> = RefCell::new(None);
    let seen = |seen: Seen| {
        match seen {
            Seen::Plan(plan) => {
                let first = seen_plan.replace(Some(plan.clone())).is_none();
                if first && !manner.dry_run && !manner.plain && context.out.is_table() {
                    let text = plan_text(context, &plan);
                    // A reader that went away does not stop a deployment.
                    progress.suspend(|| context.out.data(&text).unwrap_or_default());
                }
                // Without an id there is nothing yet that would go on.
                ControlFlow::Continue(())
            }
            Seen::Progress(report) => {
                let id = report.deployment_id.clone();
                if !id.is_empty() && admitted.borrow().as_deref() != Some(&id) {
                    admitted.replace(Some(id.clone()));
                    under_way.borrow_mut().push((node.clone(), id));
                }
                if manner.detach && admitted.borrow().is_some() {
                    return ControlFlow::Break(());
                }
                progress.update(&node, &report);
                ControlFlow::Continue(())
            }
            Seen::Lost => {
                progress.say(&format!("{node}: connection lost, taking it up again"));
                ControlFlow::Continue(())
            }
            Seen::Back => {
                progress.say(&format!("{node}: connected again"));
                ControlFlow::Continue(())
            }
        }
    };
    let followed = follow(context, signatures, job.node, &job.work, seen);
    let result = match context.timeout {
        None => followed.await,
        Some(limit) => match tokio::time::timeout(limit, followed).await {
            Ok(result) => result,
            Err(_) => Err(wait_ended(&node, limit, admitted.borrow().as_deref())),
        },
    };
    under_way.borrow_mut().retain(|(known, _)| *known != node);
    let left = match &result {
        Ok(None) => admitted.into_inner(),
        // The client's wait has ended, and not the deployment.
        Err(failure) if failure.exit == Exit::WaitEnded => admitted.into_inner(),
        _ => None,
    };
    End {
        node,
        plan: seen_plan.into_inner(),
        result,
        left,
    }
}

fn wait_ended(node: &str, limit: std::time::Duration, id: Option<&str>) -> Failure {
    let seconds = limit.as_secs_f32();
    let mut failure = match id {
        Some(id) => Failure::new(
            Exit::WaitEnded,
            format!(
                "{node}: not done within {seconds}s; deployment {} goes on",
                short(id)
            ),
        )
        .hint(format!("mcp history --node {node}")),
        None => Failure::new(
            Exit::Unreachable,
            format!("{node} did not answer within {seconds}s"),
        ),
    };
    failure.deployment_id = id.map(ToOwned::to_owned);
    failure
}

fn plan_text(context: &Context, plan: &v1::Plan) -> String {
    if !plan::has_changes(plan) && plan.blocked.is_empty() {
        return String::new();
    }
    let plan = file_lines::told(context, plan);
    plan::render(&plan, |_| String::new(), false, context.out.width())
}

/// Tells how the jobs ended, and gives the command's exit code.
pub(crate) fn finish(
    context: &Context,
    manner: &Manner,
    ends: &[End],
    progress: &Progress,
) -> Outcome {
    progress.finish();
    if manner.dry_run {
        let plans: Vec<v1::Plan> = ends.iter().filter_map(|end| end.plan.clone()).collect();
        show_plans(context, &plans, |_, _| String::new())?;
    } else if context.out.is_table() {
        context.out.data(&text(context, ends, progress))?;
    } else {
        let deployments = ends
            .iter()
            .flat_map(|end| {
                let deployments = end.result.iter().flatten().flatten();
                // One that goes on without the client is part of the answer, too.
                deployments
                    .map(|deployment| json::Deployment::new(&end.node, deployment))
                    .chain(left(end))
            })
            .collect();
        context.out.json(&json::Deployments { deployments })?;
    }
    let mut told = false;
    for end in ends {
        match &end.result {
            Err(failure) => {
                context.out.failure(failure);
                told = true;
            }
            Ok(deployments) => {
                for one in deployments.iter().flatten() {
                    if let Some(failure) = deployment::failure(&end.node, one, end.plan.as_ref()) {
                        context.out.failure(&failure);
                        told = true;
                    }
                }
            }
        }
    }
    if manner.detach
        && let Some(id) = ends.iter().find_map(|end| end.left.as_deref())
    {
        context.out.hint(&format!(
            "mcp history tells how it ended; mcp deploy --cancel {} stops it early",
            short(id)
        ));
    }
    let exit = Exit::over_nodes(ends.iter().map(End::exit));
    if told {
        Err(Failure::told(exit))
    } else {
        Ok(exit)
    }
}

fn left(end: &End) -> Option<json::Deployment> {
    let id = end.left.as_ref()?;
    let plan = end.plan.clone().unwrap_or_default();
    let running = v1::Deployment {
        deployment_id: id.clone(),
        service: plan
            .actions
            .first()
            .map(|action| action.service.clone())
            .unwrap_or_default(),
        revision: plan.revision,
        outcome: "running".to_owned(),
        ..v1::Deployment::default()
    };
    Some(json::Deployment::new(&end.node, &running))
}

fn text(context: &Context, ends: &[End], progress: &Progress) -> String {
    let mut out = String::new();
    let told = ends
        .iter()
        .flat_map(|end| end.result.iter().flatten().flatten());
    let qualified = told.filter(|one| one.outcome != "unchanged").count() > 1;
    for end in ends {
        match &end.result {
            Ok(Some(deployments)) if deployments.is_empty() => {
                out.push_str(&format!("{}  nothing to do\n", clean::line(&end.node)));
            }
            Ok(Some(deployments)) => {
                for one in deployments {
                    let width = context.out.width();
                    out.push_str(&deployment::render(
                        &end.node, one, progress, qualified, width,
                    ));
                }
            }
            Ok(None) => {
                let id = end.left.as_deref().unwrap_or_default();
                out.push_str(&format!(
                    "{}  deployment {} goes on\n",
                    clean::line(&end.node),
                    short(id)
                ));
            }
            Err(_) => {}
        }
    }
    out
}

/// Shows plans, or their document.
pub(crate) fn show_plans(
    context: &Context,
    plans: &[v1::Plan],
    note: impl Fn(&v1::Plan, &str) -> String,
) -> Result<(), Failure> {
    if !context.out.is_table() {
        return context.out.json(&json::Plan {
            plan_id: json::some(&joint_id(plans)),
            revision: plans.first().and_then(|plan| json::some(&plan.revision)),
            nodes: plans.iter().map(json::NodePlan::from).collect(),
        });
    }
    let mut text = String::new();
    for one in plans {
        let one = &file_lines::told(context, one);
        text.push_str(&plan::render(
            one,
            |service| note(one, service),
            true,
            context.out.width(),
        ));
    }
    if !plans.is_empty() {
        text.push_str(&plan::summary(plans));
    }
    context.out.data(&text)
}

/// The id of plans on several nodes: one node's own, else a digest over all of them.
pub(crate) fn joint_id(plans: &[v1::Plan]) -> String {
    use sha2::Digest as _;
    match plans {
        [] => String::new(),
        [one] => one.plan_id.clone(),
        several => {
            let mut hash = sha2::Sha256::new();
            for plan in several {
                hash.update(format!("{} {}\n", plan.node, plan.plan_id));
            }
            hex::encode(hash.finalize())
        }
    }
}

/// The plans that dry runs of the jobs give.
pub(crate) async fn plans(context: &Context, jobs: &[Job<'_>]) -> Result<Vec<v1::Plan>, Failure> {
    let manner = Manner {
        dry_run: true,
        ..Manner::default()
    };
    let progress = context.out.progress();
    let ends = carry_out(context, jobs, &manner, &progress).await?;
    let mut plans = Vec::new();
    for end in ends {
        end.result?;
        plans.extend(end.plan);
    }
    Ok(plans)
}

/// Whether the operator agrees to what the plans remove; nothing removed needs no consent.
///
/// # Errors
///
/// Exit code 64 where there is nobody to ask.
pub(crate) fn consent(context: &Context, plans: &[v1::Plan]) -> Result<bool, Failure> {
    let removed: Vec<String> = plans
        .iter()
        .flat_map(|one| {
            plan::removals(one)
                .into_iter()
                .map(|name| format!("{name} on {}", one.node))
        })
        .collect();
    if removed.is_empty() {
        return Ok(true);
    }
    if !context.out.can_ask() {
        return Err(
            Failure::usage(format!("this removes {}", removed.join(", ")))
                .cause("there is no terminal to ask on")
                .hint("agree with --yes"),
        );
    }
    for one in plans {
        context.out.error_text(&plan::render(
            one,
            |_| String::new(),
            false,
            context.out.width(),
        ));
    }
    Ok(context
        .out
        .confirm(&format!("Remove {}?", clean::line(&removed.join(", ")))))
}

/// The end of a command that the operator did not agree to.
pub(crate) fn declined(context: &Context) -> Outcome {
    context.out.note("nothing was done");
    Err(Failure::told(Exit::Usage))
}
