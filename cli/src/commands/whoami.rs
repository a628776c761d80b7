//! `mcp whoami`: what the kept tokens say of themselves.

use serde::Serialize;

use crate::client::token::{self, Claims, Token};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::Style;
use crate::output::table::{Cell, Table};

/// Show whom the tokens are for, as they say themselves
#[derive(Debug, clap::Args)]
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
        });
    }
    if documents.is_empty() {
        return Err(
            Failure::new(Exit::Refused, "there is no token").hint("mcp login --token-stdin")
        );
    }
    if !context.out.is_table() {
        context.out.json_list(&documents)?;
        return Ok(Exit::Done);
    }
    let mut table = Table::with_header(&["NODE", "SUBJECT", "ROLES", "ISSUER", "EXPIRES"]);
    for document in &documents {
        let expires = document.expires_at.as_deref().unwrap_or_default();
        let (text, style) = match document.expired {
            true => (format!("expired {}", context.out.time(expires)), Style::Bad),
            false => (context.out.time(expires), Style::Plain),
        };
        table.row([
            Cell::from(document.node.as_str()),
            Cell::new(document.subject.as_deref().unwrap_or("-"), Style::Bold),
            Cell::from(document.roles.join(", ")),
            Cell::from(document.issuer.as_deref().unwrap_or("-")),
            Cell::new(&text, style),
        ]);
    }
    context.out.data(&table.render(context.out.width()))?;
    Ok(Exit::Done)
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
