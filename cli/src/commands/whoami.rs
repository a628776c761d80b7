//! `mcp whoami`: what the kept tokens say of themselves, and what each node makes of them.

use mcp_proto::v1;
use serde::Serialize;

use crate::client;
use crate::client::token::{self, Claims, Token};
use crate::config::NodeEntry;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::json::some;
use crate::output::style::Style;
use crate::output::table::{Cell, Table};

/// Show whom the tokens are for, as they say themselves, and what each node lets them do
#[derive(Debug, clap::Args)]
#[command(
    after_help = "MAY is what the node says: the role, and the services where the token is narrowed to some.

Examples:
  mcp whoami
  mcp whoami --node rift -o json"
)]
pub(crate) struct Args {}

#[derive(Serialize)]
struct Document {
    node: String,
    subject: Option<String>,
    issuer: Option<String>,
    roles: Vec<String>,
    issued_at: Option<String>,
    expires_at: Option<String>,
    expired: bool,
    token_id: Option<String>,
    file: String,
    /// viewer, operator or admin, as the node sees it; none where it was not asked or refuses the token.
    may: Option<String>,
    /// The services that the token is narrowed to, where it is.
    services: Option<Vec<String>>,
    /// Why the node did not say.
    error: Option<String>,
}

impl Document {
    /// What the node answered, in words.
    fn verdict(&self) -> (String, Style) {
        match (&self.may, &self.services, &self.error) {
            (Some(role), Some(services), _) => {
                (format!("{role} of {}", services.join(", ")), Style::Plain)
            }
            (Some(role), None, _) => (role.clone(), Style::Plain),
            (None, _, Some(error)) => (error.clone(), Style::Warn),
            (None, _, None) => ("-".to_owned(), Style::Dim),
        }
    }
}

fn time(seconds: Option<i64>) -> Option<String> {
    seconds
        .and_then(|at| jiff::Timestamp::from_second(at).ok())
        .map(|at| at.to_string())
}

/// Carries it out.
pub(crate) async fn run(context: &Context, _: Args) -> Outcome {
    let settings = &context.settings;
    let nodes: Vec<String> = if settings.nodes.is_empty() {
        vec!["default".to_owned()]
    } else {
        settings
            .chosen_nodes()?
            .into_iter()
            .map(|node| node.name.to_string())
            .collect()
    };
    let now = jiff::Timestamp::now().as_second();
    let mut documents = Vec::new();
    for node in nodes {
        let path = token::source_for(settings, &node);
        let Some(token) = token::read(&path)? else {
            continue;
        };
        let claims = token.claims();
        let exp = claims.as_ref().and_then(|claims| claims.exp);
        documents.push(Document {
            node,
            subject: claims.as_ref().and_then(|claims| claims.sub.clone()),
            issuer: claims.as_ref().and_then(|claims| claims.iss.clone()),
            roles: claims
                .as_ref()
                .map(|claims| claims.roles.clone())
                .unwrap_or_default(),
            issued_at: time(claims.as_ref().and_then(|claims| claims.iat)),
            expires_at: time(exp),
            expired: exp.is_some_and(|exp| exp <= now),
            token_id: claims.and_then(|claims| claims.jti),
            file: path.display().to_string(),
            may: None,
            services: None,
            error: None,
        });
    }
    if documents.is_empty() {
        return Err(Failure::new(Exit::Refused, "there is no token")
            .hint(token::login_words(settings, None)));
    }
    ask_nodes(context, &mut documents).await;
    if !context.out.is_table() {
        context.out.json_list(&documents)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::with_header(&["NODE", "SUBJECT", "ROLES", "ISSUER", "EXPIRES", "MAY"]);
    for document in &documents {
        let expires = document.expires_at.as_deref().unwrap_or_default();
        let (text, style) = match document.expired {
            true => (format!("expired {}", context.out.time(expires)), Style::Bad),
            false => (context.out.time(expires), Style::Plain),
        };
        let (may, look) = document.verdict();
        table.row([
            Cell::from(document.node.as_str()),
            Cell::new(document.subject.as_deref().unwrap_or("-"), Style::Bold),
            Cell::from(document.roles.join(", ")),
            Cell::from(document.issuer.as_deref().unwrap_or("-")),
            Cell::new(&text, style),
            Cell::new(&may, look),
        ]);
    }
    context.out.data(&table.render(context.out.width()))?;
    Ok(Exit::Done)
}

/// Asks each node what its token may; one that does not answer takes nothing away from the rest.
async fn ask_nodes(context: &Context, documents: &mut [Document]) {
    let settings = &context.settings;
    let nodes: Vec<&NodeEntry> = settings
        .nodes
        .iter()
        .filter(|node| {
            documents
                .iter()
                .any(|document| document.node == node.name.as_str() && !document.expired)
        })
        .collect();
    let answers = client::ask(
        context,
        &nodes,
        |node| node,
        async |client, _| client.info(v1::InfoRequest {}).await,
    )
    .await;
    for answer in answers {
        let Some(document) = documents
            .iter_mut()
            .find(|document| document.node == answer.node)
        else {
            continue;
        };
        match answer.result {
            Ok(info) => {
                let caller = info.caller.unwrap_or_default();
                document.may = some(&caller.role);
                document.services = caller.narrowed.then_some(caller.services);
            }
            Err(failure) if failure.exit == Exit::Unreachable => {
                document.error = Some("unreachable".to_owned());
            }
            Err(failure) => document.error = Some(failure.message.clone()),
        }
    }
}

/// `alice, operator`, or that the token does not say.
pub(super) fn sentence(token: &Token) -> String {
    match token.claims() {
        Some(Claims {
            sub: Some(subject),
            roles,
            ..
        }) => {
            let all: Vec<&str> = std::iter::once(subject.as_str())
                .chain(roles.iter().map(String::as_str))
                .collect();
            crate::output::clean::line(&all.join(", ")).into_owned()
        }
        _ => "a token".to_owned(),
    }
}
