//! The recipient of a node: what the repository says, held against what the node itself tells.

use mcp_proto::v1;
use mcp_spec::name::NodeName;
use mcp_spec::secret::{RECIPIENTS_PATH, with_recipient};

use super::stored::{Secrets, write};
use crate::client;
use crate::context::Context;
use crate::error::{Exit, Failure};

/// The recipient that a value for `node` is encrypted to; written into the repository where it is new there, and,
/// with `accept`, where the node has another one now.
///
/// # Errors
///
/// Exit code 7 where the node tells another recipient than the repository, 8 where the repository has none and
/// the node does not answer.
pub(super) async fn of(
    context: &Context,
    repo: &mcp_cli::repo::DesiredRepo,
    secrets: &mut Secrets,
    node: &NodeName,
    accept: bool,
) -> Result<String, Failure> {
    let known = secrets.recipients.of(node).map(str::to_owned);
    let entries = [context.settings.node(node.as_str())?];
    let mut answers = client::ask(
        context,
        &entries,
        |entry| entry,
        async |client, _| client.info(v1::InfoRequest {}).await,
    )
    .await;
    let answer = answers.pop().map(|answer| answer.result);
    let told = match (answer, &known) {
        (Some(Ok(info)), _) => info,
        (Some(Err(failure)), Some(known)) if failure.exit == Exit::Unreachable && !accept => {
            context.out.warn(&format!(
                "{node} does not answer: taking the recipient of {RECIPIENTS_PATH}"
            ));
            return Ok(known.clone());
        }
        (Some(Err(failure)), _) => return Err(failure),
        (None, _) => return Err(Failure::failed(format!("{node} was not asked"))),
    };
    if told.age_recipient.is_empty() {
        let why = match told.age_error.as_str() {
            "" => "its agent is too old to have one".to_owned(),
            why => crate::output::clean::line(why).into_owned(),
        };
        return Err(
            Failure::failed(format!("{node} has no identity for secrets"))
                .cause(why)
                .hint("on the node: mcp-agent check"),
        );
    }
    let told = told.age_recipient;
    if !mcp_seal::is_recipient(&told) {
        return Err(Failure::failed(format!("{node} tells no age recipient")));
    }
    match known {
        Some(known) if known == told => return Ok(told),
        Some(known) if !accept => {
            return Err(Failure::new(
                Exit::Refused,
                format!("{node} tells another recipient than {RECIPIENTS_PATH}"),
            )
            .cause(format!("told {told}, signed {known}"))
            .hint(format!(
                "was its identity rotated on purpose? Compare with mcp-agent identity show on {node}, then: mcp secret \
                 rekey --accept {node}; if not, somebody answers in its place"
            )));
        }
        _ => {}
    }
    secrets.recipients_text = with_recipient(&secrets.recipients_text, node, &told);
    write(
        &repo.dir().join(RECIPIENTS_PATH),
        secrets.recipients_text.as_bytes(),
    )?;
    if let Ok(read) = mcp_spec::secret::Recipients::parse(secrets.recipients_text.as_bytes()) {
        secrets.recipients = read;
    }
    context.out.note(&format!(
        "{RECIPIENTS_PATH}: {node} {told}, as {node} tells; an owner signs it"
    ));
    Ok(told)
}
