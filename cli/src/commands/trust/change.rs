//! One change of the signers: checked, committed alone, signed, and pushed.

use std::io::Write as _;
use std::path::Path;

use mcp_cli::repo::{At, Changes, DesiredRepo, Identity, Selection};
use mcp_cli::sign::SigningKey;
use mcp_spec::definition::DesiredSet;
use mcp_spec::revision::CommitId;
use mcp_spec::signature::{ALLOWED_SIGNERS_PATH, PublicKey, SignersText};
use serde::Serialize;

use super::rights;
use crate::client::Answer;
use crate::commands::push::{self, Pushed, Standing};
use crate::commands::repository::{self, Next};
use crate::commands::sync;
use crate::context::Context;
use crate::error::{Exit, Failure};
use crate::output::json;
use crate::output::style::{bold, dim, short};

/// The repository and its signers, as they are committed.
pub(super) struct Committed {
    pub(super) repo: DesiredRepo,
    pub(super) changes: Changes,
    pub(super) head: CommitId,
    pub(super) text: SignersText,
}

/// What a signer is after a change.
#[derive(Debug, Serialize)]
pub(super) struct Changed {
    pub(super) principal: String,
    pub(super) fingerprint: String,
    pub(super) namespaces: Vec<String>,
}

#[derive(Serialize)]
struct Document {
    revision: String,
    added: Vec<Changed>,
    removed: Vec<Changed>,
    nodes: Vec<json::SyncedNode>,
}

impl Committed {
    /// Opens the repository; edits of the signers that nobody committed stand in the way.
    pub(super) fn open(context: &Context) -> Result<Self, Failure> {
        let repo = repository::open(context)?;
        let changes = repo
            .changes()
            .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
        repo.require_committable()
            .map_err(|error| Failure::of(Exit::Failed, &error).maybe_hint(error.hint()))?;
        let selection = selection();
        if let Some(refused) = changes.refused_in(&selection).next() {
            return Err(Failure::failed(refused.to_string()));
        }
        if changes.selected(&selection).next().is_some() {
            return Err(Failure::failed(format!(
                "{ALLOWED_SIGNERS_PATH} has edits that are not committed"
            ))
            .hint(format!(
                "mcp sync, or: git checkout HEAD -- {ALLOWED_SIGNERS_PATH}"
            )));
        }
        let Some(head) = changes.head else {
            return Err(Failure::usage("the repository has no commit").hint("mcp init"));
        };
        let bytes = repo
            .files(At::Commit(head))
            .and_then(|files| files.read(ALLOWED_SIGNERS_PATH))
            .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?
            .ok_or_else(|| {
                Failure::usage(format!("the repository has no {ALLOWED_SIGNERS_PATH}"))
                    .hint("mcp init")
            })?;
        let text = SignersText::parse(&bytes).map_err(|error| {
            Failure::failed(format!("{ALLOWED_SIGNERS_PATH} is broken"))
                .cause(error.to_string())
                .hint("mend the line, then: mcp sync")
        })?;
        Ok(Self {
            repo,
            changes,
            head,
            text,
        })
    }

    /// The definitions of the next commit, which the nodes will check too.
    pub(super) fn definitions(&self, context: &Context) -> Result<DesiredSet, Failure> {
        let selection = selection();
        let next = Next::new(&self.repo, &self.changes, &selection)?;
        repository::check(&next).map_err(|error| error.tell(context))
    }

    /// Writes and commits the changed signers; the file is as it was where that fails.
    pub(super) fn commit(
        &self,
        after: &SignersText,
        key: &SigningKey,
        subject: &str,
    ) -> Result<CommitId, Failure> {
        let path = self.repo.dir().join(ALLOWED_SIGNERS_PATH);
        let before = std::fs::read(&path).map_err(|error| unwritten(&path, &error))?;
        write(&path, after.as_str().as_bytes()).map_err(|error| unwritten(&path, &error))?;
        let committed = self.commit_written(after, key, subject);
        if committed.is_err()
            && let Err(error) = write(&path, &before)
        {
            return Err(unwritten(&path, &error)
                .hint(format!("git checkout HEAD -- {ALLOWED_SIGNERS_PATH}")));
        }
        committed
    }

    fn commit_written(
        &self,
        after: &SignersText,
        key: &SigningKey,
        subject: &str,
    ) -> Result<CommitId, Failure> {
        let changes = self
            .repo
            .changes()
            .map_err(|error| Failure::of(Exit::Failed, &error).hint(error.hint()))?;
        if changes.head != Some(self.head) {
            return Err(Failure::new(Exit::Stale, "HEAD moved meanwhile").hint("run it again"));
        }
        // What is signed is what was checked, whoever else writes here; the commit takes no other bytes.
        let written = self.repo.files_seen(&changes).read(ALLOWED_SIGNERS_PATH);
        if written.ok().flatten().as_deref() != Some(after.as_str().as_bytes()) {
            return Err(
                Failure::failed(format!("{ALLOWED_SIGNERS_PATH} changed meanwhile"))
                    .hint("run it again"),
            );
        }
        let fallback = Identity::of_principal(
            self.text
                .signers()
                .get(key.public())
                .map_or("operator", |signer| signer.principal.as_str()),
        );
        self.repo
            .commit(&changes, &selection(), subject, key, &fallback)
            .map_err(|error| Failure::of(Exit::Failed, &error).maybe_hint(error.hint()))
    }
}

/// The signers' file alone.
fn selection() -> Selection {
    Selection::Only(vec![ALLOWED_SIGNERS_PATH.to_owned()])
}

fn unwritten(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{} cannot be changed", path.display()))
        .because(error)
        .hint("look at the file's owner and mode, and at the disk")
}

/// Puts the bytes in the file's place, whole or not at all, with its mode.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mode = std::fs::metadata(path)?.permissions();
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// What there is to tell of one key.
pub(super) fn changed(text: &SignersText, key: &PublicKey) -> Vec<Changed> {
    let signer = text.signers().get(key);
    signer
        .map(|signer| Changed {
            principal: signer.principal.clone(),
            fingerprint: signer.fingerprint(),
            namespaces: signer.namespaces(),
        })
        .into_iter()
        .collect()
}

/// Commits a change and brings it to the nodes that told their heads; tells what came of it.
pub(super) async fn carry_out(
    context: &Context,
    signers: &Committed,
    after: &SignersText,
    keys: (Option<&PublicKey>, Option<&PublicKey>),
    signing: &SigningKey,
    standings: Vec<Answer<Standing>>,
) -> Result<Exit, Failure> {
    let (added, removed) = keys;
    let subject = subject(signers, after, keys);
    let revision = signers.commit(after, signing, &subject)?;
    if context.out.is_table() {
        let signer = repository::signer_name(&signers.repo, signing)
            .or_else(|| {
                Some(
                    signers
                        .text
                        .signers()
                        .get(signing.public())?
                        .principal
                        .clone(),
                )
            })
            .unwrap_or_default();
        context.out.data(&format!(
            "committed  {} {subject}    {}",
            bold(&short(&revision.to_string())),
            dim(&format!("signed {signer}"))
        ))?;
    }
    let answers = {
        let progress = context.out.progress();
        let _spinner = progress.spin("pushing");
        push::push(context, &signers.repo, revision, standings).await?
    };
    if context.out.is_table() {
        sync::tell(context, &signers.repo, &revision.to_string(), &answers)?;
        sync::tell_failures(context, &answers);
    } else {
        context.out.json(&Document {
            revision: revision.to_string(),
            added: added.map(|key| changed(after, key)).unwrap_or_default(),
            removed: removed
                .map(|key| changed(&signers.text, key))
                .unwrap_or_default(),
            nodes: answers.iter().map(sync::document).collect(),
        })?;
    }
    Ok(exit(&answers))
}

fn exit(answers: &[Answer<Pushed>]) -> Exit {
    Exit::over_nodes(answers.iter().map(|answer| match &answer.result {
        Ok(_) => Exit::Done,
        Err(failure) => failure.exit,
    }))
}

/// The commit's subject: who, and what they may from now on.
fn subject(
    signers: &Committed,
    after: &SignersText,
    (added, removed): (Option<&PublicKey>, Option<&PublicKey>),
) -> String {
    let before = removed.and_then(|key| signers.text.signers().get(key));
    let now = added.and_then(|key| after.signers().get(key));
    match (before, now) {
        (Some(old), Some(new)) => format!(
            "trust: {} has the key {} instead of {}",
            new.principal,
            new.fingerprint(),
            old.fingerprint()
        ),
        (None, Some(new)) => format!(
            "trust: {} may sign ({}): {}",
            new.principal,
            rights(new),
            new.fingerprint()
        ),
        (Some(old), None) => format!(
            "trust: {} may sign no more: {}",
            old.principal,
            old.fingerprint()
        ),
        (None, None) => "trust: nothing".to_owned(),
    }
}
