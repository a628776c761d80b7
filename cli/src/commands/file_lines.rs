//! Changed files of plans in lines: `web.toml +2 -1` in place of two digests, where the repository
//! holds both contents.

use mcp_cli::repo::{At, DesiredRepo};
use mcp_proto::v1;
use mcp_spec::image::Digest;
use mcp_spec::revision::CommitId;
use std::collections::HashMap;

use super::repository::{self, Files as _};
use crate::context::Context;

/// The plan as people read it; the repository is opened only where a file differs.
pub(crate) fn told(context: &Context, plan: &v1::Plan) -> v1::Plan {
    let any = plan
        .actions
        .iter()
        .any(|action| action.changes.iter().any(|change| parts(change).is_some()));
    if !any {
        return plan.clone();
    }
    match repository::open_if_there(context) {
        Ok(Some(repo)) => in_lines(&repo, plan),
        // Digests are said where lines cannot be.
        Ok(None) | Err(_) => plan.clone(),
    }
}

/// The plan with its files' changes in lines, as far as `repo` holds the contents.
pub(crate) fn in_lines(repo: &DesiredRepo, plan: &v1::Plan) -> v1::Plan {
    let mut plan = plan.clone();
    let to = plan.revision.parse::<CommitId>().ok();
    for action in &mut plan.actions {
        let from = action.from_revision.parse::<CommitId>().ok();
        let after = match (action.uncommitted, to) {
            (true, _) => At::WorkTree,
            (false, Some(to)) => At::Commit(to),
            (false, None) => continue,
        };
        for change in &mut action.changes {
            let lines = parts(change)
                .zip(from)
                .and_then(|(parts, from)| lines(repo, At::Commit(from), after, &parts));
            if let (Some((added, removed)), Some(target)) =
                (lines, change.field.strip_prefix("files."))
            {
                let name = target.rsplit('/').next().unwrap_or(target);
                *change = v1::FieldChange {
                    field: name.to_owned(),
                    from: None,
                    to: Some(format!("+{added} -{removed}")),
                };
            }
        }
    }
    plan
}

/// A change of nothing but a file's content.
struct Parts {
    path: String,
    before: String,
    after: String,
}

fn parts(change: &v1::FieldChange) -> Option<Parts> {
    change.field.strip_prefix("files.")?;
    let split = |text: &str| -> Option<(String, String, String)> {
        let (path, rest) = text.rsplit_once('@')?;
        let (digest, rest) = rest.split_once(' ')?;
        Some((path.to_owned(), digest.to_owned(), rest.to_owned()))
    };
    let (from, to) = (
        split(change.from.as_deref()?)?,
        split(change.to.as_deref()?)?,
    );
    ((&from.0, &from.2) == (&to.0, &to.2)).then_some(Parts {
        path: from.0,
        before: from.1,
        after: to.1,
    })
}

/// How many lines were added and removed.
fn lines(repo: &DesiredRepo, from: At, to: At, parts: &Parts) -> Option<(usize, usize)> {
    let read = |at: At, digest: &str| -> Option<Vec<u8>> {
        let bytes = repo.files(at).ok()?.bytes(&parts.path).ok()??;
        // Another content than the plan's would tell a lie.
        Digest::of(&bytes)
            .hex()
            .starts_with(digest)
            .then_some(bytes)
    };
    let before = read(from, &parts.before)?;
    let after = read(to, &parts.after)?;
    Some(difference(&before, &after))
}

/// Lines that only one side has, each as often as it has it more; what merely moved does not count.
fn difference(before: &[u8], after: &[u8]) -> (usize, usize) {
    let mut balance: HashMap<&[u8], i64> = HashMap::new();
    for line in before.split(|byte| *byte == b'\n') {
        *balance.entry(line).or_default() -= 1;
    }
    for line in after.split(|byte| *byte == b'\n') {
        *balance.entry(line).or_default() += 1;
    }
    let sum = |positive: bool| -> usize {
        let each = balance.values().filter(|count| (**count > 0) == positive);
        each.map(|count| usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX))
            .sum()
    };
    (sum(true), sum(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_on_both_sides() {
        assert_eq!(difference(b"a\nb\n", b"a\nc\nd\n"), (2, 1));
        assert_eq!(difference(b"a\nb\n", b"b\na\n"), (0, 0));
        assert_eq!(difference(b"", b"a\n"), (1, 0));
    }

    #[test]
    fn only_a_change_of_content_alone_is_told_in_lines() {
        let change = |from: &str, to: &str| v1::FieldChange {
            field: "files./etc/x".to_owned(),
            from: Some(from.to_owned()),
            to: Some(to.to_owned()),
        };
        assert!(parts(&change("files/x@d80ac04 0644", "files/x@ba9ce4e 0644")).is_some());
        assert!(parts(&change("files/x@d80ac04 0644", "files/x@ba9ce4e 0600")).is_none());
        assert!(parts(&change("files/x@d80ac04 0644", "files/y@ba9ce4e 0644")).is_none());
    }
}
