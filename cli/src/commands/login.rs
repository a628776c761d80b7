//! `mcp login`: keeps a token.

use std::io::Read as _;

use mcp_spec::request::is_same_person;

use super::{repository, whoami};
use crate::client::token::{self, Token};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::clean;
use crate::output::style::{self, green};

/// Keep a bearer token, for all nodes or for those of --node
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  ssh rift mcp-agent token issue --config /srv/mcp/agent.toml --subject alice --role operator \\
    | mcp login --token-stdin
  mcp login --node rift --token-stdin < token      for one node alone")]
pub(crate) struct Args {
    /// Read the token from standard input
    #[arg(long, required = true)]
    token_stdin: bool,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, _: Args) -> Outcome {
    let mut text = String::new();
    std::io::stdin()
        .take(64 * 1024)
        .read_to_string(&mut text)
        .map_err(|error| Failure::failed("standard input cannot be read").because(&error))?;
    let token = Token::parse(&text).ok_or_else(|| {
        Failure::usage("standard input holds no token")
            .hint("mcp-agent token issue --config FILE --subject NAME --role operator | mcp login --token-stdin")
    })?;
    if !token.is_jwt() {
        return Err(Failure::usage("what standard input holds is no token")
            .cause("a token has three parts with dots between them, as in eyJhbGciOi….eyJpc3MiOi….aGVsbG8")
            .hint("mcp-agent token issue --config FILE --subject NAME --role operator | mcp login --token-stdin"));
    }
    let settings = &context.settings;
    let mut paths = Vec::new();
    if let Some(file) = &settings.token_file {
        paths.push(file.value.clone());
    } else if settings.selected.value.is_empty() {
        paths.push(token::file_for(settings, None));
    } else {
        for name in &settings.selected.value {
            let node = settings.node(name)?;
            paths.push(token::file_for(settings, Some(node.name.as_str())));
        }
    }
    for path in &paths {
        token::write(path, &token)?;
        let whom = whoami::sentence(&token);
        context.out.note(&format!(
            "{} {whom}, kept in {}",
            green(style::GOOD),
            path.display()
        ));
    }
    warn_of_another_name(context, &token);
    Ok(Exit::Done)
}

/// Says so where no signer of the repository goes by the name of the token's subject: the agents would take
/// nothing that changes something with it, unless their owners mapped the name.
fn warn_of_another_name(context: &Context, token: &Token) {
    let Ok(Some(repo)) = repository::open_if_there(context) else {
        return;
    };
    let Some(claims) = token.claims() else {
        return;
    };
    let (Some(subject), Some(names)) = (claims.sub, repository::principals(&repo)) else {
        return;
    };
    let only_looks = claims.roles.iter().all(|role| role == "viewer");
    if only_looks || names.is_empty() || names.iter().any(|name| is_same_person(&subject, name)) {
        return;
    }
    context.out.warn(&format!(
        "no signer of {} is called {}: they are {}",
        repo.dir().display(),
        clean::line(&subject),
        clean::line(&names.join(", ")),
    ));
    context.out.hint(
        "take a token for one of them, or have the nodes' owners map the name in [trust.principals]; \
         else they refuse what changes something",
    );
}
