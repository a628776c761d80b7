//! `mcp sync`: check, commit, sign, push; tell what is pending.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mcp_cli::repo::{DesiredRepo, Selection};
use mcp_spec::definition::DesiredSet;
use mcp_spec::name::NodeName;

use super::file_lines;
use super::push::{self, Committed, Pushed};
use super::repository::{self, Next};
use crate::client::Answer;
use crate::config::NodeEntry;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{self, Style, bold, count, dim, milliseconds, short};
use crate::output::table::{Cell, Table};
use crate::output::{json, plan};

/// Check, commit, sign, and push the desired state; nothing is deployed
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp sync                     with a message that tells the change
  mcp sync -m \"rotate the certificate\"
  mcp sync --dry-run           what would be committed and pushed

Only services/, files/, secrets/ and .mcp/ are committed.")]
pub(crate) struct Args {
    /// The commit's message
    #[arg(short, long, value_name = "MSG")]
    message: Option<String>,
    /// Commit and push nothing
    #[arg(long)]
    dry_run: bool,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    if args
        .message
        .as_ref()
        .is_some_and(|message| message.trim().is_empty())
    {
        return Err(Failure::usage("the message is empty").hint("leave -m out for a generated one"));
    }
    let began = Instant::now();
    let repo = repository::open(context)?;
    let changes = repo
        .changes()
        .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
    if !changes.changes.is_empty() {
        // A half-merged definition is no wrong definition.
        repo.require_committable()
            .map_err(|error| Failure::of(Exit::Failed, &error).maybe_hint(error.hint()))?;
    }
    let selection = Selection::All;
    let next = Next::new(&repo, &changes, &selection)?;
    let set = repository::check(&next).map_err(|error| error.tell(context))?;
    repository::warn_of_overlooked(context, &repo, next.worktree());
    if let Some(refused) = changes.refused.first() {
        let more = match changes.refused.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        return Err(Failure::failed(format!("{refused}{more}")));
    }
    let nodes = nodes_for(context, &set)?;
    let checked = began.elapsed();
    if context.out.is_table() {
        tell_checked(context, &set, checked)?;
    }

    let standings = {
        let progress = context.out.progress();
        let _spinner = progress.spin("asking the nodes for their heads");
        push::standings(context, &nodes, changes.head).await
    };
    push::require_fast_forward(&repo, &changes, &standings).await?;

    if args.dry_run {
        return dry_run(context, &args, &repo, &changes, &set);
    }
    let committed = if changes.changes.is_empty() {
        None
    } else {
        Some(push::commit(
            context,
            &repo,
            &changes,
            &selection,
            &set,
            args.message.as_deref(),
        )?)
    };
    if let (Some(committed), true) = (&committed, context.out.is_table()) {
        tell_committed(context, committed)?;
    }
    let Some(revision) = committed
        .as_ref()
        .map(|committed| committed.id)
        .or(changes.head)
    else {
        return Err(Failure::usage(
            "there is nothing to sync: the repository has neither commits nor files",
        )
        .hint("mcp init"));
    };
    let answers = {
        let progress = context.out.progress();
        let _spinner = progress.spin("pushing");
        push::push(context, &repo, revision, standings).await?
    };
    let exit = Exit::over_nodes(answers.iter().map(|answer| match &answer.result {
        Ok(_) => Exit::Done,
        Err(failure) => failure.exit,
    }));
    if context.out.is_table() {
        tell(context, &repo, &revision.to_string(), &answers)?;
        tell_failures(context, &answers);
    } else {
        let nodes = answers.iter().map(document).collect();
        context.out.json(&json::Sync {
            revision: revision.to_string(),
            created: committed.is_some(),
            nodes,
        })?;
    }
    Ok(exit)
}

/// One that is only away stands in the table; a refusal is an error with its mend.
pub(crate) fn tell_failures(context: &Context, answers: &[Answer<Pushed>]) {
    for answer in answers {
        if let Err(failure) = &answer.result
            && failure.exit != Exit::Unreachable
        {
            context.out.failure(failure);
        }
    }
}

/// The nodes that hear of a sync; every definition's node is among the configured ones.
pub(crate) fn nodes_for<'a>(
    context: &'a Context,
    set: &DesiredSet,
) -> Result<Vec<&'a NodeEntry>, Failure> {
    let mut named: BTreeMap<&NodeName, &str> = BTreeMap::new();
    for service in set.services.values() {
        named.entry(&service.node).or_insert(service.name.as_str());
    }
    for (node, service) in named {
        if let Err(failure) = context.settings.node(node.as_str()) {
            return Err(failure
                .with_exit(Exit::Failed)
                .cause(format!("services/{service}.toml names it")));
        }
    }
    if context.settings.nodes.is_empty() {
        context.out.note("no node is configured: nothing is pushed");
        return Ok(Vec::new());
    }
    context.settings.chosen_nodes()
}

fn tell_checked(context: &Context, set: &DesiredSet, took: Duration) -> Result<(), Failure> {
    let components: usize = set
        .services
        .values()
        .map(|service| service.components.len())
        .sum();
    let what = format!(
        "{}, {}",
        count(set.services.len(), "service"),
        count(components, "component")
    );
    context
        .out
        .data(&format!("checked    {what:<36}  {}", dim(&ms(took))))
}

fn tell_committed(context: &Context, committed: &Committed) -> Result<(), Failure> {
    let signed = match committed.signer.as_str() {
        "" => "signed".to_owned(),
        signer => format!("signed {signer}"),
    };
    context.out.data(&format!(
        "committed  {} {}    {}",
        bold(&short(&committed.id.to_string())),
        crate::output::clean::line(&committed.subject),
        dim(&signed)
    ))
}

fn ms(took: Duration) -> String {
    milliseconds(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
}

/// The failure in a few words for a node's line; the whole of it is told below the table.
fn in_short<'a>(failure: &'a Failure, node: &str) -> &'a str {
    if failure.exit == Exit::Unreachable {
        return "unreachable";
    }
    let message = failure.message.strip_prefix(node);
    message
        .and_then(|rest| rest.strip_prefix(": "))
        .unwrap_or(&failure.message)
}

/// The head that the node had when it was last talked to.
fn last_head(repo: &DesiredRepo, node: &str) -> Option<mcp_spec::revision::CommitId> {
    repo.node_head(&node.parse().ok()?)
}

/// What became of each node.
pub(crate) fn tell(
    context: &Context,
    repo: &DesiredRepo,
    revision: &str,
    answers: &[Answer<Pushed>],
) -> Result<(), Failure> {
    let mut table = Table::bare(0);
    let mut pending = Table::bare(0);
    let mut next: Vec<&str> = Vec::new();
    for answer in answers {
        let node = Cell::new(&answer.node, Style::Bold);
        match &answer.result {
            Ok(pushed) => {
                let range = if pushed.previous == revision {
                    short(revision)
                } else if pushed.previous.is_empty() {
                    format!("{} (first)", short(revision))
                } else {
                    format!("{}..{}", short(&pushed.previous), short(revision))
                };
                let waiting = pushed
                    .pending
                    .actions
                    .iter()
                    .filter(|action| action.action != "none")
                    .count();
                let blocked = pushed.pending.blocked.len();
                let what = match (waiting, blocked) {
                    (0, 0) => "up to date".to_owned(),
                    (waiting, 0) => format!("{waiting} pending"),
                    (waiting, blocked) => format!("{waiting} pending, {blocked} blocked"),
                };
                table.row([
                    node,
                    Cell::new(&format!("{} {range}", style::GOOD), Style::Good),
                    Cell::from(what),
                    Cell::new(&ms(answer.took), Style::Dim),
                ]);
                plan::pending_rows(&mut pending, &file_lines::in_lines(repo, &pushed.pending));
                for action in pushed
                    .pending
                    .actions
                    .iter()
                    .filter(|action| action.action != "none")
                {
                    if !next.contains(&action.service.as_str()) {
                        next.push(&action.service);
                    }
                }
            }
            Err(failure) => {
                let stays = last_head(repo, &answer.node)
                    .map(|head| format!("stays at {}", short(&head.to_string())));
                let retries =
                    (failure.exit == Exit::Unreachable).then(|| "the next sync retries".to_owned());
                let rest: Vec<String> = stays.into_iter().chain(retries).collect();
                let rest = rest.join("; ");
                table.row([
                    node,
                    Cell::new(
                        &format!("{} {}", style::BAD, in_short(failure, &answer.node)),
                        Style::Bad,
                    ),
                    Cell::from(rest),
                    Cell::new(&ms(answer.took), Style::Dim),
                ]);
            }
        }
    }
    let mut text = table.render(context.out.width());
    if !pending.is_empty() {
        text.push('\n');
        text.push_str(&pending.render(context.out.width()));
    }
    context.out.data(&text)?;
    for answer in answers {
        if let Err(failure) = &answer.result {
            for cause in &failure.causes {
                context.out.detail(&format!("{}: {cause}", answer.node));
            }
        }
    }
    match next.as_slice() {
        [] => {}
        [one] => context
            .out
            .note(&format!("Nothing deployed. Next: mcp deploy {one}")),
        [first, ..] => {
            context.out.note(&format!(
                "Nothing deployed. Next: mcp deploy {first}, or mcp deploy --all"
            ));
        }
    }
    Ok(())
}

/// What became of a node, for programs.
pub(crate) fn document(answer: &Answer<Pushed>) -> json::SyncedNode {
    match &answer.result {
        Ok(pushed) => json::SyncedNode {
            node: answer.node.clone(),
            accepted: true,
            previous: json::some(&pushed.previous),
            error: None,
            pending: pushed
                .pending
                .actions
                .iter()
                .filter(|action| action.action != "none")
                .map(json::Action::from)
                .collect(),
            blocked: pushed
                .pending
                .blocked
                .iter()
                .map(json::Blocked::from)
                .collect(),
        },
        Err(failure) => json::SyncedNode {
            node: answer.node.clone(),
            accepted: false,
            previous: None,
            error: Some(failure.message.clone()),
            pending: Vec::new(),
            blocked: Vec::new(),
        },
    }
}

fn dry_run(
    context: &Context,
    args: &Args,
    repo: &DesiredRepo,
    changes: &mcp_cli::repo::Changes,
    after: &DesiredSet,
) -> Outcome {
    let (subject, body) = repository::commit_message(repo, after, changes, &Selection::All);
    if !context.out.is_table() {
        context.out.json(&json::Sync {
            revision: changes.head.map(|id| id.to_string()).unwrap_or_default(),
            created: false,
            nodes: Vec::new(),
        })?;
        return Ok(Exit::Done);
    }
    if changes.changes.is_empty() {
        context.out.data("would commit nothing")?;
        return Ok(Exit::Done);
    }
    let subject = args.message.as_deref().unwrap_or(&subject);
    let mut text = format!("would commit  {}\n", crate::output::clean::line(subject));
    for line in &body {
        text.push_str(&format!("  {}\n", dim(line)));
    }
    for change in &changes.changes {
        text.push_str(&format!(
            "  {} {}\n",
            change.kind,
            crate::output::clean::line(&change.path)
        ));
    }
    context.out.data(&text)?;
    Ok(Exit::Done)
}
