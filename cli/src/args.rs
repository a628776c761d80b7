//! The command line: global flags, the commands, and the words of `--help`.
//!
//! Each command's own flags stand with it in `commands`. Global flags are taken before and after the
//! command, and from variables.

#[cfg(test)]
mod reference;

use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, Parser, Subcommand, ValueEnum};
use mcp_spec::duration::Span;
use mcp_spec::name::NodeName;

use crate::commands;
use crate::config::Origin;

/// The commands by what they are for, in the order of `mcp --help`.
pub(crate) const GROUPS: [(&str, &[&str]); 8] = [
    (
        "Set-up",
        &["init", "login", "logout", "whoami", "config", "node"],
    ),
    ("Definitions", &["service", "secret", "diff"]),
    ("Desired state", &["sync", "fetch", "revisions", "trust"]),
    (
        "Deployment",
        &[
            "plan", "deploy", "rollback", "hold", "release", "start", "stop", "restart", "history",
            "why", "purge",
        ],
    ),
    (
        "Observation",
        &["list", "ps", "status", "events", "logs", "drift", "alert"],
    ),
    ("Adoption", &["adopt", "forget"]),
    ("Files", &["push", "pull", "files"]),
    ("Shell", &["completions", "man", "version", "help"]),
];

pub(crate) const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  failed (degraded and blocked too)
   2  changes or drift, with --exit-code
   3  failed and rolled back: the old version runs
   4  the wait (--timeout) ended; the deployment goes on
   5  stale plan, superseded, or the repository is behind or has diverged
   6  some nodes failed, some did not
   7  refused: token, role, signature, policy or unrelated history
   8  node unreachable
  64  usage, or consent missing";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Cyan.on_default());

/// Signed Git revisions become running containers on machines of your own, and go back.
#[derive(Debug, Parser)]
#[command(name = "mcp", version, styles = STYLES, max_term_width = 100, subcommand_required = true)]
pub(crate) struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes, before and after its name.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The desired-state repository
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "MCP_REPO",
        hide_env_values = true
    )]
    pub(crate) repo: Option<PathBuf>,
    /// The settings file (default $XDG_CONFIG_HOME/mcp/mcp.toml)
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MCP_CONFIG",
        hide_env_values = true
    )]
    pub(crate) config: Option<PathBuf>,
    /// Only these nodes
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        add = commands::complete::nodes(),
        env = "MCP_NODE",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub(crate) node: Vec<NodeName>,
    /// What the data is written as
    #[arg(
        short,
        long,
        global = true,
        value_name = "FORMAT",
        env = "MCP_OUTPUT",
        hide_env_values = true,
        default_value = "table"
    )]
    pub(crate) output: Format,
    /// When to use colours
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        env = "MCP_COLOR",
        hide_env_values = true,
        default_value = "auto"
    )]
    pub(crate) color: Colour,
    /// How progress is shown on standard error
    #[arg(
        long,
        global = true,
        value_name = "HOW",
        env = "MCP_PROGRESS",
        hide_env_values = true,
        default_value = "auto"
    )]
    pub(crate) progress: ProgressChoice,
    /// The signing key: a file, or ssh-agent:SHA256:…
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        env = "MCP_KEY",
        hide_env_values = true
    )]
    pub(crate) key: Option<String>,
    /// A file with the bearer token for every node
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MCP_TOKEN_FILE",
        hide_env_values = true
    )]
    pub(crate) token_file: Option<PathBuf>,
    /// The longest wait for a node, as in 10s
    #[arg(
        long,
        global = true,
        value_name = "DUR",
        env = "MCP_TIMEOUT",
        hide_env_values = true
    )]
    pub(crate) timeout: Option<Span>,
    /// Say nothing beside data and errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more; twice for still more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// What the data is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line
    Jsonl,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressChoice {
    /// Bars on a terminal, lines elsewhere
    Auto,
    /// Bars
    Tty,
    /// A line a step
    Plain,
    /// Nothing
    Quiet,
}

macro_rules! commands {
    ($($(#[$attribute:meta])* $variant:ident($module:ident),)*) => {
        /// The commands.
        #[derive(Debug, Subcommand)]
        pub(crate) enum Command {
            $($(#[$attribute])* $variant(commands::$module::Args),)*
        }

        impl Command {
            /// Carries the command out.
            pub(crate) async fn run(self, context: &crate::context::Context) -> crate::error::Outcome {
                match self {
                    $(Self::$variant(args) => Box::pin(commands::$module::run(context, args)).await,)*
                }
            }
        }
    };
}

commands! {
    Init(init),
    Login(login),
    Logout(logout),
    Whoami(whoami),
    Config(config),
    Node(node),
    Service(service),
    Secret(secret),
    Diff(diff),
    Sync(sync),
    Fetch(fetch),
    Revisions(revisions),
    Trust(trust),
    Plan(plan),
    Deploy(deploy),
    Rollback(rollback),
    Hold(hold),
    Release(release),
    Start(start),
    Stop(stop),
    Restart(restart),
    History(history),
    Why(why),
    Purge(purge),
    Adopt(adopt),
    Forget(forget),
    Push(push_file),
    Pull(pull_file),
    Files(files),
    List(list),
    Ps(ps),
    Status(status),
    Events(events),
    Logs(logs),
    Drift(drift),
    Alert(alert),
    Completions(completions),
    Man(man),
    Version(version),
}

/// Which values were given, and how.
#[derive(Debug)]
pub(crate) struct Given(ArgMatches);

impl Given {
    /// Of a parsed command line.
    pub(crate) fn new(matches: ArgMatches) -> Self {
        Self(matches)
    }

    /// Where the value of a global flag comes from.
    pub(crate) fn origin(&self, id: &str, variable: &'static str) -> Origin {
        match self.0.value_source(id) {
            Some(ValueSource::EnvVariable) => Origin::Variable(variable),
            Some(ValueSource::CommandLine) => Origin::Flag,
            _ => Origin::Default,
        }
    }
}

/// The command line as clap knows it, for manual pages and the reference.
pub(crate) fn plain_command() -> clap::Command {
    Cli::command()
}

/// The command line as clap knows it, with the commands of `--help` in groups.
pub(crate) fn command() -> clap::Command {
    let command = Cli::command();
    let mut list = String::new();
    for (heading, names) in GROUPS {
        list.push_str(&format!("\n{}:\n", styled(STYLES.get_header(), heading)));
        for name in names {
            let about = match command
                .find_subcommand(name)
                .and_then(clap::Command::get_about)
            {
                Some(about) => about.to_string(),
                None => "Tell about a command".to_owned(),
            };
            list.push_str(&format!(
                "  {}{about}\n",
                styled(STYLES.get_literal(), &format!("{name:<13}"))
            ));
        }
    }
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} mcp [OPTIONS] COMMAND\n{list}\n{{options}}\n\n{EXIT_CODES}\n\n\
         A TARGET is SERVICE, SERVICE/COMPONENT, NODE/SERVICE/COMPONENT or NODE/SERVICE/*.\n\
         `mcp help COMMAND` tells about a command, with examples.\n"
    );
    with_short_help(command.mut_subcommands(examples_first)).help_template(template)
}

/// `--help` says what `-h` says, a line an option; `mcp help COMMAND` and the manual pages say more.
fn with_short_help(command: clap::Command) -> clap::Command {
    let help = clap::Arg::new("help")
        .short('h')
        .long("help")
        .action(clap::ArgAction::HelpShort)
        .help("Print help");
    command
        .disable_help_flag(true)
        .arg(help)
        .mut_subcommands(with_short_help)
}

/// Examples stand before the options, most of which are the global ones.
fn examples_first(command: clap::Command) -> clap::Command {
    command
        .help_template("{about-with-newline}\n{usage-heading} {usage}{after-help}\n\n{all-args}")
        .mut_subcommands(examples_first)
}

/// The command line without the variables that are set to nothing: as if they were not set.
pub(crate) fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| {
        let variable = arg.get_env().and_then(std::env::var_os);
        variable.is_some_and(|value| value.is_empty())
    };
    command.mut_args(|arg| {
        if is_empty(&arg) {
            arg.env(clap::builder::Resettable::Reset)
        } else {
            arg
        }
    })
}

fn styled(style: &clap::builder::styling::Style, text: &str) -> String {
    format!("{}{text}{}", style.render(), style.render_reset())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::FromArgMatches as _;

    #[test]
    fn command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_is_in_one_group() {
        let mut grouped: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| names.iter().copied())
            .collect();
        let mut known: Vec<String> = Cli::command()
            .get_subcommands()
            .map(|sub| sub.get_name().to_owned())
            .collect();
        known.push("help".to_owned());
        grouped.sort_unstable();
        known.sort_unstable();
        assert_eq!(grouped, known);
    }

    #[test]
    fn every_command_says_what_it_does_and_gives_an_example() {
        for sub in Cli::command().get_subcommands() {
            let name = sub.get_name();
            assert!(sub.get_about().is_some(), "{name} has no about");
            if matches!(name, "version" | "whoami") {
                continue;
            }
            let after = sub
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(after.contains("mcp "), "{name} gives no example");
        }
    }

    #[test]
    fn help_fits_a_screen_with_the_examples_first() {
        let error = command()
            .try_get_matches_from(["mcp", "stop", "--help"])
            .unwrap_err();
        let text = error.render().to_string();
        assert!(text.lines().count() <= 30, "{text}");
        let place = |part: &str| text.find(part).unwrap();
        assert!(place("Examples:") < place("Global options:"), "{text}");
    }

    #[test]
    fn global_flags_are_taken_before_and_after_the_command() {
        for line in [["mcp", "-o", "json", "list"], ["mcp", "list", "-o", "json"]] {
            let matches = command().try_get_matches_from(line).unwrap();
            let cli = Cli::from_arg_matches(&matches).unwrap();
            assert_eq!(cli.global.output, Format::Json);
        }
    }

    #[test]
    fn a_flag_after_the_command_is_known_as_a_flag() {
        let matches = command()
            .try_get_matches_from(["mcp", "list", "--repo", "/x"])
            .unwrap();
        assert_eq!(Given::new(matches).origin("repo", "MCP_REPO"), Origin::Flag);
    }
}
