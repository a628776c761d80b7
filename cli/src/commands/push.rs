//! Bringing a revision to nodes: their heads, the commit, the packs.
//!
//! `mcp sync` brings everything to all nodes; `mcp deploy` brings a target's own files to its nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::Arc;
use std::time::Instant;

use mcp_cli::repo::{Changes, DesiredRepo, Identity, Selection};
use mcp_proto::v1;
use mcp_spec::definition::DesiredSet;
use mcp_spec::revision::CommitId;

use super::repository;
use crate::client::follow::new_request_id;
use crate::client::{self, Answer, NodeClient};
use crate::config::NodeEntry;
use crate::context::Context;
use crate::error::{Exit, Failure};
use crate::output::style::short;

/// A node that told its head, and the connection to go on with.
pub(crate) struct Standing {
    client: NodeClient,
    /// The node's head; none before the first push.
    pub(crate) head: Option<CommitId>,
}

/// What a node has after a push.
#[derive(Debug)]
pub(crate) struct Pushed {
    /// The node's head before.
    pub(crate) previous: String,
    /// What is pending there now.
    pub(crate) pending: v1::Plan,
}

/// A commit that was made.
#[derive(Debug, Clone)]
pub(crate) struct Committed {
    /// Its id.
    pub(crate) id: CommitId,
    /// Its subject.
    pub(crate) subject: String,
    /// Who signed it.
    pub(crate) signer: String,
}

/// Revisions of a node that are held against the repository's: the most that it lists.
const COMPARED: u32 = 1000;

/// Asks the nodes for their heads.
pub(crate) async fn standings<'a>(
    context: &Context,
    nodes: &'a [&'a NodeEntry],
    want: Option<CommitId>,
) -> Vec<Answer<Standing>> {
    let want = want.map(|id| id.to_string()).unwrap_or_default();
    client::ask(
        context,
        nodes,
        |node| node,
        async |client, node| {
            let told = client
                .negotiate(v1::NegotiateRequest { want: want.clone() })
                .await?;
            let head = match told.head.as_str() {
                "" => None,
                text => Some(text.parse().map_err(|_| {
                    Failure::failed(format!(
                        "{} tells `{text}` for its head, which is no commit id",
                        node.name
                    ))
                })?),
            };
            Ok(Standing {
                client: client.clone(),
                head,
            })
        },
    )
    .await
}

/// Refuses where a node's head is not what the repository's head descends from: whoever pushes then
/// would lose, and whoever commits then would have to merge.
///
/// # Errors
///
/// Exit code 5, with the way to merge; 7 where the histories have nothing in common.
pub(crate) async fn require_fast_forward(
    repo: &DesiredRepo,
    changes: &Changes,
    answers: &[Answer<Standing>],
) -> Result<(), Failure> {
    let local = changes.head;
    let is_edited = !changes.changes.is_empty();
    for answer in answers {
        let Ok(Standing {
            head: Some(head),
            client,
        }) = &answer.result
        else {
            continue;
        };
        let node = &answer.node;
        let id = short(&head.to_string());
        let Some(local) = local else {
            return Err(Failure::new(
                Exit::Stale,
                format!("{node} is at {id}, and this repository has no commit"),
            ));
        };
        if *head == local {
            continue;
        }
        if !repo.contains(*head) {
            refuse_unrelated(repo, local, client, node).await?;
            return Err(Failure::new(
                Exit::Stale,
                format!("{node} is at {id}, which this repository does not have"),
            )
            .cause("somebody else pushed, or this is another repository")
            .hint(format!(
                "mcp fetch, then: {} && mcp sync",
                merging(&format!("git merge {node}/head"), is_edited)
            )));
        }
        let forward = repo
            .is_ancestor(*head, local)
            .map_err(|e| repository::history_failure(&e))?;
        if forward {
            continue;
        }
        refuse_unrelated(repo, local, client, node).await?;
        let behind = repo
            .is_ancestor(local, *head)
            .map_err(|e| repository::history_failure(&e))?;
        return Err(if behind {
            Failure::new(
                Exit::Stale,
                format!(
                    "this repository is behind: {node} is at {id}, HEAD at {}",
                    short(&local.to_string())
                ),
            )
            .hint(merging(&format!("git merge --ff-only {id}"), is_edited))
        } else {
            Failure::new(
                Exit::Stale,
                format!(
                    "diverged: {node} is at {id}, HEAD at {}",
                    short(&local.to_string())
                ),
            )
            .hint(format!(
                "{} && mcp sync",
                merging(&format!("git merge {id}"), is_edited)
            ))
        });
    }
    Ok(())
}

/// The commands of a merge. Git merges nothing over edits that are not committed, so they step aside
/// meanwhile, new files among them.
pub(super) fn merging(merge: &str, is_edited: bool) -> String {
    if is_edited {
        format!("git stash -u && {merge} && git stash pop")
    } else {
        merge.to_owned()
    }
}

/// Refuses where the node's accepted history and the repository's have no commit in common.
async fn refuse_unrelated(
    repo: &DesiredRepo,
    local: CommitId,
    client: &NodeClient,
    node: &str,
) -> Result<(), Failure> {
    let accepted = client
        .list_revisions(v1::ListRevisionsRequest {
            target: None,
            limit: COMPARED,
        })
        .await?
        .revisions;
    let ours: BTreeSet<String> = repo
        .log(None, local, usize::MAX)
        .map_err(|e| repository::history_failure(&e))?
        .into_iter()
        .map(|commit| commit.id.to_string())
        .collect();
    let whole = accepted.len() < COMPARED as usize;
    if whole
        && !accepted
            .iter()
            .any(|theirs| ours.contains(&theirs.revision))
    {
        return Err(Failure::new(
            Exit::Refused,
            format!("{node} holds another history: no commit of it is one of this repository's"),
        )
        .hint(format!(
            "name the right repository with --repo, or start from the node's: mcp fetch && git checkout {node}/head"
        )));
    }
    Ok(())
}

/// Commits what the selection takes, signed.
pub(crate) fn commit(
    context: &Context,
    repo: &DesiredRepo,
    changes: &Changes,
    selection: &Selection,
    after: &DesiredSet,
    message: Option<&str>,
) -> Result<Committed, Failure> {
    let (generated, body) = repository::commit_message(repo, after, changes, selection);
    let subject = message.unwrap_or(&generated).trim();
    let mut text = subject.to_owned();
    // One line of body would only repeat the subject.
    if body.len() > 1 || message.is_some() {
        text.push_str("\n\n");
        text.push_str(&body.join("\n"));
    }
    let key = repository::key(context, Some(repo))?;
    repository::require_authorised(repo, changes, selection, &key)?;
    let signer = repository::signer_name(repo, &key);
    if signer.is_none() {
        context.out.warn(&format!(
            "{} is not in .mcp/allowed_signers: the nodes will refuse what it signs",
            key.fingerprint()
        ));
    }
    let signer = signer.unwrap_or_else(|| key.comment().to_owned());
    let fallback = Identity::of_principal(if signer.is_empty() {
        "operator"
    } else {
        &signer
    });
    let id = repo
        .commit(changes, selection, &text, &key, &fallback)
        .map_err(|error| Failure::of(Exit::Failed, &error).maybe_hint(error.hint()))?;
    let first = subject.lines().next().unwrap_or_default().to_owned();
    Ok(Committed {
        id,
        subject: first,
        signer,
    })
}

/// Pushes `revision` to the nodes that told their heads; the others' failures are passed on.
pub(crate) async fn push(
    context: &Context,
    repo: &DesiredRepo,
    revision: CommitId,
    standings: Vec<Answer<Standing>>,
) -> Result<Vec<Answer<Pushed>>, Failure> {
    repository::open_key(context)?;
    // Nodes mostly stand at the same head: one pack serves them all.
    let mut packs: BTreeMap<Option<CommitId>, Arc<[u8]>> = BTreeMap::new();
    for answer in &standings {
        let Ok(Standing { head, .. }) = &answer.result else {
            continue;
        };
        if !packs.contains_key(head) {
            packs.insert(*head, pack(repo, revision, *head)?);
        }
    }
    let packs = &packs;
    let pushes = standings.into_iter().map(|answer| async move {
        let Answer { node, result, took } = answer;
        let standing = match result {
            Ok(standing) => standing,
            Err(failure) => {
                return Answer {
                    node,
                    result: Err(failure),
                    took,
                };
            }
        };
        let pack = packs
            .get(&standing.head)
            .cloned()
            .unwrap_or_else(|| Arc::from([]));
        let began = Instant::now();
        let header = v1::PushHeader {
            previous: standing.head.map(|id| id.to_string()).unwrap_or_default(),
            revision: revision.to_string(),
            pack_bytes: pack.len() as u64,
            request_id: new_request_id(),
            pack_sha256: Vec::new(),
        };
        let previous = header.previous.clone();
        let result = bring(&standing.client, header, pack)
            .await
            .map(|pending| Pushed { previous, pending });
        Answer {
            node,
            result,
            took: took + began.elapsed(),
        }
    });
    let answers = futures_util::future::join_all(pushes).await;
    for answer in answers.iter().filter(|answer| answer.result.is_ok()) {
        if let Ok(node) = answer.node.parse() {
            // It is remembered for messages alone: a push that was accepted does not fail for it.
            let _ = repo.set_node_head(&node, revision);
        }
    }
    Ok(answers)
}

/// Pushes to one node, and gives what is pending there then.
async fn bring(
    client: &NodeClient,
    header: v1::PushHeader,
    pack: Arc<[u8]>,
) -> Result<v1::Plan, Failure> {
    let mut pending = match client.push_pack(header, pack).await?.pending {
        Some(pending) => pending,
        // An agent that is busy with a plan answers without one.
        None => client.get_plan(v1::PlanRequest::default()).await?,
    };
    if pending.node.is_empty() {
        client.name().clone_into(&mut pending.node);
    }
    Ok(pending)
}

fn pack(
    repo: &DesiredRepo,
    revision: CommitId,
    head: Option<CommitId>,
) -> Result<Arc<[u8]>, Failure> {
    if head == Some(revision) {
        return Ok(Arc::from([]));
    }
    let have: Vec<CommitId> = head.into_iter().collect();
    let mut pack = repo
        .pack(revision, &have)
        .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
    let mut bytes = Vec::with_capacity(usize::try_from(pack.len()).unwrap_or_default());
    pack.read_to_end(&mut bytes)
        .map_err(|error| Failure::failed("the pack cannot be read back").because(&error))?;
    Ok(bytes.into())
}
