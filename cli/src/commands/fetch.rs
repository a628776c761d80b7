//! `mcp fetch`: others' commits, from the nodes that they were pushed to.

use mcp_cli::repo::{DesiredRepo, FetchedError};
use mcp_spec::revision::CommitId;
use serde::Serialize;

use super::{push, repository, rows};
use crate::client::{self, Answer, Pulled};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::clean;
use crate::output::style::{self, Style, count, short};
use crate::output::table::{Cell, Table};

/// Get others' commits from the nodes; nothing is merged
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp fetch                    each node's head becomes NODE/head
  mcp fetch --node rift && git merge rift/head

The commits are kept in the repository; git log --show-signature rift/head shows who signed them.")]
pub(crate) struct Args {}

/// Commits that a node is told of, so that it sends only what is missing: its own bound.
const MAX_HAVE: usize = 64;

/// Commits that are counted of what is new.
const MAX_COUNTED: usize = 1000;

#[derive(Serialize)]
struct Document {
    node: String,
    previous: Option<String>,
    revision: Option<String>,
    new_commits: usize,
    error: Option<String>,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, _: Args) -> Outcome {
    let repo = repository::open(context)?;
    let local = repo
        .head()
        .map_err(|error| repository::history_failure(&error))?;
    let nodes = context.settings.chosen_nodes()?;
    let mut have: Vec<CommitId> = local.into_iter().collect();
    have.extend(nodes.iter().filter_map(|node| repo.node_head(&node.name)));
    have.sort_unstable();
    have.dedup();
    have.truncate(MAX_HAVE);
    let have: Vec<String> = have.iter().map(ToString::to_string).collect();
    let answers: Vec<Answer<Pulled>> = {
        let progress = context.out.progress();
        let _spinner = progress.spin("fetching");
        client::ask(
            context,
            &nodes,
            |node| node,
            async |client, _| client.pull_pack(have.clone()).await,
        )
        .await
    };
    let mut documents = Vec::new();
    let mut kept = Vec::new();
    for (answer, entry) in answers.into_iter().zip(&nodes) {
        let Answer { node, result, took } = answer;
        let result = result.and_then(|pulled| keep(&repo, &entry.name, &pulled));
        documents.push(match &result {
            Ok(kept) => Document {
                node: node.clone(),
                previous: kept.previous.map(|id| id.to_string()),
                revision: kept.head.map(|id| id.to_string()),
                new_commits: kept.new_commits,
                error: None,
            },
            Err(failure) => Document {
                node: node.clone(),
                previous: None,
                revision: None,
                new_commits: 0,
                error: Some(failure.message.clone()),
            },
        });
        kept.push(Answer { node, result, took });
    }
    if context.out.is_table() {
        tell(context, &kept)?;
        hint(context, &repo, local, &kept);
    } else {
        context.out.json_list(&documents)?;
    }
    rows::end(context, &kept)
}

struct Kept {
    previous: Option<CommitId>,
    head: Option<CommitId>,
    new_commits: usize,
}

fn keep(
    repo: &DesiredRepo,
    node: &mcp_spec::name::NodeName,
    pulled: &Pulled,
) -> Result<Kept, Failure> {
    let previous = repo.node_head(node);
    if pulled.head.is_empty() {
        return Ok(Kept {
            previous,
            head: None,
            new_commits: 0,
        });
    }
    let head: CommitId = pulled.head.parse().map_err(|_| {
        Failure::failed(format!(
            "{node} tells `{}` for its head, which is no commit id",
            pulled.head
        ))
    })?;
    let failed = |error: FetchedError| Failure::of(Exit::Failed, &error).hint(error.hint());
    repo.receive_pack(&pulled.pack, head).map_err(failed)?;
    repo.set_node_head(node, head).map_err(failed)?;
    let new_commits = match previous {
        Some(previous) if previous == head => 0,
        previous => repo
            .log(previous, head, MAX_COUNTED)
            .map_or(0, |commits| commits.len()),
    };
    Ok(Kept {
        previous,
        head: Some(head),
        new_commits,
    })
}

fn tell(context: &Context, kept: &[Answer<Kept>]) -> Result<(), Failure> {
    let mut table = Table::bare(0);
    for answer in kept {
        let Ok(Kept {
            previous,
            head,
            new_commits,
        }) = &answer.result
        else {
            continue;
        };
        let Some(head) = head else {
            table.row([
                Cell::new(&answer.node, Style::Bold),
                Cell::new(&format!("{} -", style::GOOD), Style::Good),
                Cell::from("no revision yet"),
            ]);
            continue;
        };
        let id = short(&head.to_string());
        let range = match previous {
            Some(previous) if previous != head => format!("{}..{id}", short(&previous.to_string())),
            _ => id,
        };
        let what = match new_commits {
            0 => "up to date".to_owned(),
            new => count(*new, "commit"),
        };
        table.row([
            Cell::new(&answer.node, Style::Bold),
            Cell::new(&format!("{} {range}", style::GOOD), Style::Good),
            Cell::from(what),
        ]);
    }
    context.out.data(&table.render(context.out.width()))
}

/// The way to merge, for the first node that is ahead.
fn hint(context: &Context, repo: &DesiredRepo, local: Option<CommitId>, kept: &[Answer<Kept>]) {
    for answer in kept {
        let Ok(Kept {
            head: Some(head), ..
        }) = &answer.result
        else {
            continue;
        };
        let node = clean::line(&answer.node);
        let Some(local) = local else {
            context
                .out
                .hint(&format!("git merge --ff-only {node}/head"));
            return;
        };
        if repo.is_ancestor(*head, local).unwrap_or(true) {
            continue;
        }
        let forward = repo.is_ancestor(local, *head).unwrap_or(false);
        let flag = if forward { "--ff-only " } else { "" };
        let is_edited = repo
            .changes()
            .is_ok_and(|changes| !changes.changes.is_empty());
        context.out.hint(&format!(
            "git log {node}/head, then: {}",
            push::merging(&format!("git merge {flag}{node}/head"), is_edited)
        ));
        return;
    }
}
