//! `mcp plan`: what deploy would do, uncommitted edits included.

use std::collections::BTreeSet;

use mcp_cli::repo::{At, DesiredRepo, ManagedFiles, Selection};
use mcp_proto::v1;
use mcp_spec::name::{ServiceName, Target};
use mcp_spec::revision::CommitId;

use super::carry_out::show_plans;
use super::place::{self, Placed};
use super::{repository, rows};
use crate::client;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::plan;
use crate::output::style::{count, short};

/// Show what a deploy would do, and why; touches nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp plan                     every service, with the edits that are not committed yet
  mcp plan metacrypt/api
  mcp plan metacrypt --rev HEAD~2
  mcp plan --exit-code         0 nothing to do, 2 changes")]
pub(crate) struct Args {
    /// Only these
    #[arg(add = super::complete::targets(), value_name = "TARGET")]
    targets: Vec<Target>,
    /// The specs of this revision
    #[arg(long, value_name = "REV")]
    rev: Option<String>,
    /// As a deploy with --force would
    #[arg(long)]
    force: bool,
    /// What the targets depend on, too
    #[arg(long)]
    with_deps: bool,
    /// End with 2 where there is something to do
    #[arg(long)]
    exit_code: bool,
}

/// Most files of a draft, and most bytes: the agent's bounds.
const MAX_DRAFT_FILES: usize = 1000;
const MAX_DRAFT_BYTES: usize = 3 * 1024 * 1024;

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let placed = place::place(context, &args.targets).await?;
    let (revision, repo) = match &args.rev {
        Some(rev) => (repository::revision_id(context, rev)?, None),
        None => (String::new(), repository::open_if_there(context)?),
    };
    let services: BTreeSet<&ServiceName> =
        args.targets.iter().map(|target| &target.service).collect();
    let selection = if services.is_empty() {
        Selection::All
    } else {
        repository::own_files(services)
    };
    let edits = match &repo {
        Some(repo) => Some(Edits::find(context, repo, &selection)?),
        None => None,
    };
    let answers = client::ask(
        context,
        &placed,
        |placed: &Placed<'_>| placed.node,
        async |client, placed| {
            let draft = match &edits {
                Some(edits) => edits.against(client).await?,
                None => Vec::new(),
            };
            let mut plan = client
                .get_plan(v1::PlanRequest {
                    targets: placed.wire(),
                    revision: revision.clone(),
                    force: args.force,
                    with_deps: args.with_deps,
                    draft,
                    supposed: Vec::new(),
                })
                .await?;
            if plan.node.is_empty() {
                plan.node = client.name().to_owned();
            }
            Ok(plan)
        },
    )
    .await;
    let plans: Vec<v1::Plan> = answers
        .iter()
        .filter_map(|answer| answer.result.as_ref().ok().cloned())
        .collect();
    if !plans.is_empty() || !context.out.is_table() {
        show_plans(context, &plans, |plan, _| note(repo.as_ref(), plan))?;
    }
    rows::end_with(context, &answers, |one| {
        let blocked = plan::blocked_exit(one);
        if args.exit_code && (plan::has_changes(one) || blocked.is_some()) {
            Exit::Changes
        } else if args.exit_code {
            Exit::Done
        } else {
            blocked.unwrap_or(Exit::Done)
        }
    })
}

/// `1 commit, alice`: what lies between what runs and the plan's revision.
fn note(repo: Option<&DesiredRepo>, plan: &v1::Plan) -> String {
    let tell = || -> Option<String> {
        let to: CommitId = plan.revision.parse().ok()?;
        let from = plan
            .actions
            .iter()
            .find(|action| !action.from_revision.is_empty())?;
        let from: CommitId = from.from_revision.parse().ok()?;
        if from == to {
            return None;
        }
        let commits = repo?.log(Some(from), to, 1000).ok()?;
        let mut authors: Vec<&str> = Vec::new();
        for commit in &commits {
            if !authors.contains(&commit.author_name.as_str()) {
                authors.push(&commit.author_name);
            }
        }
        (!commits.is_empty())
            .then(|| format!("{}, {}", count(commits.len(), "commit"), authors.join(", ")))
    };
    tell().unwrap_or_default()
}

/// What the work tree holds and a node does not know yet.
struct Edits<'a> {
    repo: &'a DesiredRepo,
    worktree: ManagedFiles<'a>,
    head: Option<CommitId>,
    selection: &'a Selection,
}

impl<'a> Edits<'a> {
    fn find(
        context: &Context,
        repo: &'a DesiredRepo,
        selection: &'a Selection,
    ) -> Result<Self, Failure> {
        let worktree = repo
            .files(At::WorkTree)
            .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
        let head = repo
            .head()
            .map_err(|error| repository::history_failure(&error))?;
        if let Some(head) = head {
            context
                .out
                .detail(&format!("HEAD is at {}", short(&head.to_string())));
        }
        Ok(Self {
            repo,
            worktree,
            head,
            selection,
        })
    }

    /// The files of the work tree that differ from the node's head.
    async fn against(&self, client: &client::NodeClient) -> Result<Vec<v1::DraftFile>, Failure> {
        let want = self.head.map(|id| id.to_string()).unwrap_or_default();
        let told = client.negotiate(v1::NegotiateRequest { want }).await?;
        // A head that is unknown here is a colleague's: then only what is not committed here counts.
        let base = match told.head.parse::<CommitId>() {
            Ok(head) if self.repo.contains(head) => Some(head),
            Ok(_) => self.head,
            Err(_) => None,
        };
        if base.is_none() && !told.head.is_empty() {
            return Ok(Vec::new());
        }
        let read =
            |error: mcp_cli::repo::ReadError| Failure::of(Exit::Failed, &error).hint(error.hint());
        let known = base
            .map(|id| self.repo.files(At::Commit(id)))
            .transpose()
            .map_err(read)?;
        let drafted = |path: &&str| {
            ["services/", "files/", "secrets/"]
                .iter()
                .any(|root| path.starts_with(root))
                && self.selection.takes(path)
        };
        let mut draft = Vec::new();
        let mut bytes = 0;
        for path in self.worktree.paths().filter(drafted) {
            let before = known.as_ref().and_then(|known| known.content_id(path));
            if before == self.worktree.content_id(path) {
                continue;
            }
            let content = self.worktree.read(path).map_err(read)?;
            bytes += content.as_ref().map_or(0, Vec::len);
            draft.push(v1::DraftFile {
                path: path.to_owned(),
                content,
            });
        }
        let gone = known.iter().flat_map(ManagedFiles::paths).filter(drafted);
        for path in gone.filter(|path| !self.worktree.contains(path)) {
            draft.push(v1::DraftFile {
                path: path.to_owned(),
                content: None,
            });
        }
        if draft.len() > MAX_DRAFT_FILES || bytes > MAX_DRAFT_BYTES {
            return Err(Failure::failed(format!(
                "{} with {bytes} bytes are too much for a plan of uncommitted edits",
                count(draft.len(), "changed file")
            ))
            .hint("commit and push them first: mcp sync"));
        }
        Ok(draft)
    }
}
