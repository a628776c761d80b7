//! `mcp deploy`: brings targets to a revision.

use std::collections::BTreeSet;

use mcp_cli::repo::DesiredRepo;
use mcp_proto::v1;
use mcp_spec::name::{ServiceName, Target};

use super::carry_out::{self, End, Job, Manner};
use super::place::{self, Placed};
use super::repository::{self, Next};
use super::{push, rows};
use crate::client;
use crate::client::follow::{Work, new_request_id};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{self, bold, dim, green, short};
use crate::output::{clean, json, plan};

/// Bring targets to a revision; only what differs is touched
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp deploy metacrypt         commit and push its own files where needed, then deploy
  mcp deploy metacrypt/api     one component
  mcp deploy --all --node rift
  mcp deploy metacrypt --rev HEAD~2        an older revision; the target is held there
  mcp deploy metacrypt --plan 7c1e09a      refused where the plan is stale by now
  mcp deploy --cancel 51c07af  before the point of no return")]
pub(crate) struct Args {
    /// Services or components, as metacrypt or metacrypt/api
    #[arg(add = super::complete::targets(), value_name = "TARGET", required_unless_present_any = ["all", "cancel"])]
    targets: Vec<Target>,
    /// Every service of the nodes
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// The specs of this revision, where the targets are then held
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// Only if the plan is still this one
    #[arg(long, value_name = "ID")]
    plan: Option<String>,
    /// Replace what has not changed, too
    #[arg(long)]
    force: bool,
    /// Only show the plan
    #[arg(long)]
    dry_run: bool,
    /// What the targets depend on, too
    #[arg(long)]
    with_deps: bool,
    /// Do not ask before something is removed
    #[arg(short, long)]
    yes: bool,
    /// Do not wait for the end
    #[arg(long)]
    detach: bool,
    /// Commit and push nothing first
    #[arg(long)]
    no_sync: bool,
    /// Cancel this deployment
    #[arg(long, value_name = "ID", conflicts_with_all = ["targets", "all", "rev", "plan"])]
    cancel: Option<String>,
    /// At most so many nodes at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    max_unavailable: u16,
    /// Go on with other nodes after one has failed
    #[arg(long)]
    keep_going: bool,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    if let Some(id) = &args.cancel {
        return cancel(context, id).await;
    }
    let placed = place::place(context, &args.targets).await?;
    let revision = match &args.rev {
        Some(rev) => repository::revision_id(context, rev)?,
        None => {
            if !args.no_sync && !args.dry_run && args.plan.is_none() {
                sync_first(context, &args, &placed).await?;
            }
            String::new()
        }
    };
    let plan_ids = match &args.plan {
        Some(wanted) => Some(check_plan(context, &args, &placed, &revision, wanted).await?),
        None => None,
    };
    if args.dry_run {
        return dry_run(context, &args, &placed, &revision).await;
    }
    let job = |placed: &Placed<'_>, yes: bool, plan_id: String| v1::DeployRequest {
        targets: placed.wire(),
        all: args.all,
        revision: revision.clone(),
        plan_id,
        force: args.force,
        with_deps: args.with_deps,
        yes,
        request_id: String::new(),
    };
    let jobs: Vec<Job<'_>> = placed
        .iter()
        .enumerate()
        .map(|(at, placed)| {
            let plan_id = plan_ids
                .as_ref()
                .map(|ids| ids[at].clone())
                .unwrap_or_default();
            let request = v1::DeployRequest {
                request_id: new_request_id(),
                ..job(placed, args.yes, plan_id)
            };
            Job {
                node: placed.node,
                work: Work::Deploy(request),
            }
        })
        .collect();
    let manner = Manner {
        detach: args.detach,
        plain: false,
        dry_run: false,
        at_once: Some(usize::from(args.max_unavailable.max(1))),
        keep_going: args.keep_going,
    };
    let progress = context.out.progress();
    let mut ends = carry_out::carry_out(context, &jobs, &manner, &progress).await?;
    if ends.iter().any(End::needs_consent) {
        progress.finish();
        let asked: Vec<&Placed<'_>> = placed
            .iter()
            .filter(|placed| {
                ends.iter()
                    .any(|end| end.needs_consent() && end.node == placed.node.name.as_str())
            })
            .collect();
        let plans = fetch_plans(context, &args, &asked, &revision).await?;
        if !carry_out::consent(context, &plans)? {
            return carry_out::declined(context);
        }
        let jobs: Vec<Job<'_>> = asked
            .iter()
            .zip(&plans)
            .map(|(placed, plan)| {
                // What was agreed to is this plan and no other.
                let request = v1::DeployRequest {
                    request_id: new_request_id(),
                    ..job(placed, true, plan.plan_id.clone())
                };
                Job {
                    node: placed.node,
                    work: Work::Deploy(request),
                }
            })
            .collect();
        let again = carry_out::carry_out(context, &jobs, &manner, &progress).await?;
        ends.retain(|end| !end.needs_consent());
        ends.extend(again);
    }
    let exit = carry_out::finish(context, &manner, &ends, &progress)?;
    if args.rev.is_some() {
        tell_holds(context, &ends);
    }
    Ok(exit)
}

/// Says what an older revision comes with: that nothing moves the targets until they are released.
fn tell_holds(context: &Context, ends: &[End]) {
    // The head holds nothing: a deploy of it releases.
    let older = ends.iter().filter(|end| {
        let plan = end.plan.as_ref();
        plan.is_some_and(|plan| plan.revision != plan.head_revision)
    });
    let services: BTreeSet<&str> = older
        .flat_map(|end| end.result.iter().flatten().flatten())
        .filter(|one| matches!(one.outcome.as_str(), "deployed" | "unchanged"))
        .map(|one| one.service.as_str())
        .collect();
    if services.is_empty() {
        return;
    }
    let services: Vec<&str> = services.into_iter().collect();
    context.out.hint(&format!(
        "held at that revision until: mcp release {}",
        clean::line(&services.join(" "))
    ));
}

async fn fetch_plans(
    context: &Context,
    args: &Args,
    placed: &[&Placed<'_>],
    revision: &str,
) -> Result<Vec<v1::Plan>, Failure> {
    let answers = client::ask(
        context,
        placed,
        |placed| placed.node,
        async |client, placed| {
            let request = v1::PlanRequest {
                targets: placed.wire(),
                revision: revision.to_owned(),
                force: args.force,
                with_deps: args.with_deps,
                draft: Vec::new(),
                supposed: Vec::new(),
            };
            let mut plan = client.get_plan(request).await?;
            if plan.node.is_empty() {
                plan.node = client.name().to_owned();
            }
            Ok(plan)
        },
    )
    .await;
    answers.into_iter().map(|answer| answer.result).collect()
}

/// The whole ids of the plans, where they are still the one that was asked for.
async fn check_plan(
    context: &Context,
    args: &Args,
    placed: &[Placed<'_>],
    revision: &str,
    wanted: &str,
) -> Result<Vec<String>, Failure> {
    let all: Vec<&Placed<'_>> = placed.iter().collect();
    let plans = fetch_plans(context, args, &all, revision).await?;
    let now = carry_out::joint_id(&plans);
    if wanted.len() < 4 || !now.starts_with(wanted) {
        return Err(Failure::new(
            Exit::Stale,
            format!("plan {} is stale", clean::line(wanted)),
        )
        .cause(format!("the plan is {} by now", short(&now)))
        .hint("look again: mcp plan"));
    }
    Ok(plans.into_iter().map(|plan| plan.plan_id).collect())
}

async fn dry_run(context: &Context, args: &Args, placed: &[Placed<'_>], revision: &str) -> Outcome {
    let all: Vec<&Placed<'_>> = placed.iter().collect();
    let plans = fetch_plans(context, args, &all, revision).await?;
    carry_out::show_plans(context, &plans, |_, _| String::new())?;
    let blocked = plans.iter().filter_map(plan::blocked_exit);
    // A refusal by policy alone has its own code; what else blocks comes before it.
    Ok(blocked.min().unwrap_or(Exit::Done))
}

/// Commits and pushes the targets' own files where they differ; other edits are listed and left.
async fn sync_first(context: &Context, args: &Args, placed: &[Placed<'_>]) -> Result<(), Failure> {
    let Some(repo) = repository::open_if_there(context)? else {
        context
            .out
            .detail("no repository here: deploying the node's own head");
        return Ok(());
    };
    let services: BTreeSet<ServiceName> = services(context, &repo, args, placed)?;
    let selection = repository::own_files(&services);
    let changes = repo
        .changes()
        .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
    let commits = changes.selected(&selection).next().is_some();
    let left: Vec<String> = changes
        .changes
        .iter()
        .filter(|change| !selection.takes(&change.path))
        .map(|change| change.path.clone())
        .collect();
    let set = if commits {
        let next = Next::new(&repo, &changes, &selection)?;
        Some(repository::check(&next).map_err(|error| error.tell(context))?)
    } else {
        None
    };
    let nodes: Vec<_> = placed.iter().map(|placed| placed.node).collect();
    let standings = push::standings(context, &nodes, changes.head).await;
    if let Some(failure) = standings
        .iter()
        .find_map(|answer| answer.result.as_ref().err())
    {
        // One node of several may be away: the deployment there will say so, and with --keep-going
        // the others get what is committed now, as with a sync.
        let any = standings.iter().any(|answer| answer.result.is_ok());
        if !any || commits && !args.keep_going {
            return Err(failure.clone());
        }
    }
    push::require_fast_forward(&repo, &changes, &standings).await?;
    let mut revision = changes.head;
    if let Some(set) = &set {
        let committed = push::commit(context, &repo, &changes, &selection, set, None)?;
        context.out.note(&format!(
            "committed  {} {}    {}",
            bold(&short(&committed.id.to_string())),
            clean::line(&committed.subject),
            dim(&format!("signed {}", committed.signer))
        ));
        revision = Some(committed.id);
    }
    if !left.is_empty() {
        context.out.note(&plan::left_alone(&left));
    }
    let Some(revision) = revision else {
        return Ok(());
    };
    let behind = standings.iter().any(|answer| {
        answer
            .result
            .as_ref()
            .is_ok_and(|standing| standing.head != Some(revision))
    });
    if !behind {
        return Ok(());
    }
    for answer in push::push(context, &repo, revision, standings).await? {
        match answer.result {
            Ok(pushed) if pushed.previous == revision.to_string() => {}
            Ok(_) => context.out.note(&format!(
                "{}  {} {}",
                answer.node,
                green(style::GOOD),
                short(&revision.to_string())
            )),
            Err(failure) if nodes.len() == 1 => return Err(failure),
            Err(failure) => context.out.warn(&failure.message),
        }
    }
    Ok(())
}

/// The services whose files a deploy of the targets takes in.
fn services(
    context: &Context,
    repo: &DesiredRepo,
    args: &Args,
    placed: &[Placed<'_>],
) -> Result<BTreeSet<ServiceName>, Failure> {
    if !args.all {
        return Ok(args
            .targets
            .iter()
            .map(|target| target.service.clone())
            .collect());
    }
    let entries = match std::fs::read_dir(repo.dir().join("services")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => {
            return Err(Failure::failed("the folder services/ cannot be read").because(&error));
        }
    };
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?
            .strip_suffix(".toml")?
            .parse::<ServiceName>()
            .ok()
    });
    let here = |name: &ServiceName| {
        place::defined_node(context, name)
            .is_none_or(|node| placed.iter().any(|placed| placed.node.name == node))
    };
    Ok(names.filter(here).collect())
}

async fn cancel(context: &Context, id: &str) -> Outcome {
    let placed = place::everywhere(context)?;
    repository::open_key(context)?;
    let mut answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, _| {
            let request = v1::CancelRequest {
                deployment_id: id.to_owned(),
            };
            Ok(client.cancel(request).await?.deployment.unwrap_or_default())
        },
    )
    .await;
    // A deployment is on one node: that the others do not know it is as it should be.
    let unknown = |failure: &Failure| failure.unknown;
    if answers
        .iter()
        .any(|answer| !answer.result.as_ref().is_err_and(unknown))
    {
        answers.retain(|answer| !answer.result.as_ref().is_err_and(unknown));
    }
    let done = answers
        .iter()
        .filter_map(|answer| Some((&answer.node, answer.result.as_ref().ok()?)));
    if context.out.is_table() {
        for (node, deployment) in done {
            context.out.data(&format!(
                "{}  deployment {} of {}: {}",
                clean::line(node),
                short(&deployment.deployment_id),
                clean::line(&deployment.service),
                clean::line(&deployment.outcome)
            ))?;
        }
    } else {
        let deployments = done
            .map(|(node, one)| json::Deployment::new(node, one))
            .collect();
        context.out.json(&json::Deployments { deployments })?;
    }
    rows::end(context, &answers)
}
