//! `mcp login`: gets a token from MCIAS, or takes one, and keeps it.

use std::io::Read as _;

use mcp_spec::request::is_same_person;

use super::{repository, whoami};
use crate::client::mcias::{self, Credentials, Login};
use crate::client::token::{self, Token};
use crate::config::Mcias;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::clean;
use crate::output::style::{self, green};

/// Longest password and code together: more than any that a person or a password manager has.
const MAX_INPUT_BYTES: u64 = 64 * 1024;

/// Get a bearer token, for all nodes or for those of --node, and keep it
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without --token-stdin, the token comes from the MCIAS that [mcias] in mcp.toml names. Its password is
asked for on the terminal, and a one-time code where the account has one.

Examples:
  mcp login --user alice
  pass show mcias | mcp login --user alice --password-stdin     the code, where there is one, in a second line
  ssh rift mcp-agent token issue --config /srv/mcp/agent.toml --subject alice --role operator \\
    | mcp login --token-stdin
  mcp login --node rift --token-stdin < token      for one node alone"
)]
pub(crate) struct Args {
    /// Read the token from standard input
    #[arg(long, conflicts_with_all = ["user", "password_stdin"])]
    token_stdin: bool,
    /// The account's name at MCIAS
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Read the password from standard input, and the one-time code from its second line
    #[arg(long, requires = "user")]
    password_stdin: bool,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let token = if args.token_stdin {
        given()?
    } else {
        let Some(server) = &context.settings.issuer else {
            return Err(Failure::usage("no MCIAS is configured to get a token from")
                .cause(format!(
                    "{} has no [mcias]",
                    context.settings.config.value.display()
                ))
                .hint("write server_url and ca_cert under [mcias], or take a token of a node: mcp login --token-stdin"));
        };
        from_mcias(context, server, &args).await?
    };
    keep(context, &token)
}

fn input() -> Result<String, Failure> {
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_INPUT_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| Failure::failed("standard input cannot be read").because(&error))?;
    Ok(text)
}

/// The token on standard input.
fn given() -> Result<Token, Failure> {
    const HINT: &str = "mcp-agent token issue --config FILE --subject NAME --role operator | mcp login --token-stdin";
    let token = Token::parse(&input()?)
        .ok_or_else(|| Failure::usage("standard input holds no token").hint(HINT))?;
    if !token.is_jwt() {
        return Err(Failure::usage("what standard input holds is no token")
            .cause("a token has three parts with dots between them, as in eyJhbGciOi….eyJpc3MiOi….aGVsbG8")
            .hint(HINT));
    }
    Ok(token)
}

/// Asks on the terminal; what is typed is not shown where it is a secret.
fn ask(context: &Context, question: &str, secret: bool) -> Result<String, Failure> {
    if !context.out.can_ask() {
        return Err(
            Failure::usage(format!("there is no terminal to ask for the {question} on")).hint(
                "mcp login --user NAME --password-stdin, with the one-time code in a second line where there is one",
            ),
        );
    }
    let failed = |error: std::io::Error| {
        Failure::usage(format!("the {question} could not be asked for")).because(&error)
    };
    let prompt = format!("{question}: ");
    if secret {
        return rpassword::prompt_password(prompt).map_err(failed);
    }
    context.out.error_text(&prompt);
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(failed)?;
    Ok(line.trim().to_owned())
}

async fn from_mcias(context: &Context, server: &Mcias, args: &Args) -> Result<Token, Failure> {
    let mut credentials = if args.password_stdin {
        let text = input()?;
        let mut lines = text.lines();
        Credentials {
            user: args.user.clone().unwrap_or_default(),
            password: lines.next().unwrap_or_default().to_owned(),
            code: lines
                .next()
                .map(|line| line.trim().to_owned())
                .filter(|code| !code.is_empty()),
        }
    } else {
        Credentials {
            user: match &args.user {
                Some(user) => user.clone(),
                None => ask(context, "user name", false)?,
            },
            password: ask(context, "password", true)?,
            code: None,
        }
    };
    if credentials.user.is_empty() || credentials.password.is_empty() {
        return Err(Failure::usage("a log-in takes a user name and a password")
            .hint("mcp login --user NAME"));
    }
    if let Login::Token(token) = mcias::login(server, &credentials).await? {
        return Ok(token);
    }
    if args.password_stdin {
        return Err(Failure::new(
            Exit::Refused,
            format!("{} wants a one-time code too", server.server_url),
        )
        .hint("write it into the second line of standard input"));
    }
    credentials.code = Some(ask(context, "one-time code", true)?.trim().to_owned());
    match mcias::login(server, &credentials).await? {
        Login::Token(token) => Ok(token),
        Login::CodeWanted => Err(Failure::new(
            Exit::Refused,
            format!("{} wants another one-time code", server.server_url),
        )
        .hint("mcp login")),
    }
}

/// Keeps a token for all nodes, or for those that were chosen.
fn keep(context: &Context, token: &Token) -> Outcome {
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
        token::write(path, token)?;
        let whom = whoami::sentence(token);
        context.out.note(&format!(
            "{} {whom}, kept in {}",
            green(style::GOOD),
            path.display()
        ));
    }
    warn_of_another_name(context, token);
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
