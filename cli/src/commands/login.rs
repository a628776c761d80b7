//! `mcp login`: keeps a token.

use std::io::Read as _;

use super::whoami;
use crate::client::token::{self, Token};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
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
    Ok(Exit::Done)
}
