//! `mcp-agent`: the command line of the agent.

// Beside the library's own `trust`, and within the door of the command line.
#[path = "main/identity.rs"]
mod identity_command;
#[path = "main/trust.rs"]
mod trust_command;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand};
use identity_command::IdentityCommand;
use jiff::Timestamp;
use mcp_agent::auth::Role;
use mcp_agent::auth::issuer::{Grant, Issuer};
use mcp_agent::backup::backup;
use mcp_agent::check::{Row, Verdict, check};
use mcp_agent::config::{Config, DEFAULT_DATA_DIR, DEFAULT_LISTEN, DEFAULT_SERVICES_DIR, Engine};
use mcp_agent::init::{InitOptions, Initialised, init};
use mcp_agent::rebuild::rebuild;
use mcp_agent::restore::restore;
use mcp_spec::duration::Span;
use mcp_spec::name::{NodeName, ServiceName};
use mcp_spec::revision::CommitId;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use trust_command::TrustCommand;

/// Longest life of a token of the built-in issuer: a working week.
const MAX_TTL: Span = Span::from_secs(7 * 24 * 3600);

/// The agent of the Metacircular Control Plane: it runs the containers of one node from signed
/// revisions.
#[derive(Parser)]
#[command(name = "mcp-agent", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a data directory, keys, certificates and a configuration, and say what comes next.
    Init(InitArgs),
    /// Run the agent until SIGTERM or SIGINT.
    Serve(ConfigArgs),
    /// Make tokens with the agent's own issuer.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Look at everything that the configuration names, and say the mend of what is wrong.
    Check(ConfigArgs),
    /// Make a new registry from the repository and the engine, after the old one was lost or damaged.
    ///
    /// The agent must not run. Containers go on running: nothing is started, stopped or changed. A container
    /// is taken over only where its spec recomputes from a verified revision. History, events, holds and
    /// quarantined specs of the old registry are gone; it is kept beside the new one.
    Rebuild(ConfigArgs),
    /// Write everything that makes this node into one file, also while the agent runs.
    ///
    /// Configuration, keys, certificates, owners, denied keys, the accepted revisions, the high-water mark,
    /// the registry and the staged files: a tar archive with checksums. It holds private keys, so it is
    /// readable by its owner alone. The data of services is not in it.
    Backup(BackupArgs),
    /// Put a backup in place while no agent runs. Containers go on running.
    ///
    /// The whole file is checked before anything is written. What the data directory holds is moved aside,
    /// into before-restore-TIME, and not removed; staged files, a high-water mark that the backup does not
    /// know, and keys that were denied since, stay. Changes are then stopped until a push brings what the mark names.
    Restore(RestoreArgs),
    /// Whom this node believes and how far it has come: look, deny a key, confirm, begin anew.
    #[command(subcommand)]
    Trust(TrustCommand),
    /// The node's identity for secrets: look, rotate.
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Run by the agent itself, to stage a file under an engine without root.
    #[command(hide = true)]
    Stage {
        /// A process in the engine's user namespace.
        pid: u32,
    },
    /// Run by the agent itself, to reach services' files under an engine without root.
    #[command(hide = true)]
    Files {
        /// A process in the engine's user namespace.
        pid: u32,
    },
    /// Print the release.
    Version,
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration that init wrote.
    #[arg(long, value_name = "FILE", env = "MCP_AGENT_CONFIG")]
    config: PathBuf,
}

#[derive(Args)]
struct BackupArgs {
    /// Where the backup goes.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
    /// Overwrite a file that is there.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct RestoreArgs {
    /// A file that backup wrote.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The configuration; where there is one it names the data directory [default: as in the backup].
    #[arg(long, value_name = "FILE", env = "MCP_AGENT_CONFIG")]
    config: Option<PathBuf>,
    /// Also into a data directory that holds something; that is moved aside.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
struct InitArgs {
    /// This node's name, as definitions name it.
    #[arg(long, value_name = "NAME")]
    node: NodeName,
    /// The agent's own folder: registry, repository, keys.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    data_dir: PathBuf,
    /// Where to write the configuration [default: agent.toml in the data directory].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the API listens.
    #[arg(long, value_name = "ADDR", default_value = DEFAULT_LISTEN)]
    listen: SocketAddr,
    /// The folder of the services' own folders.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_SERVICES_DIR)]
    services_dir: PathBuf,
    /// A further name or address of this node, for its certificate.
    #[arg(long, value_name = "NAME")]
    san: Vec<String>,
    /// The container engine [default: the one whose socket is there].
    #[arg(long, value_parser = engines())]
    engine: Option<Engine>,
    /// The engine's socket, as in unix:///run/podman/podman.sock.
    #[arg(long, value_name = "URL")]
    socket: Option<String>,
    /// Public key of another issuer whose tokens count here, as a JWK; another agent's is
    /// issuer.jwk in its data directory.
    #[arg(long, value_name = "FILE")]
    issuer_jwk: Option<PathBuf>,
    /// What that issuer's tokens name as `iss` [default: the key's `kid`, where it is an agent's].
    #[arg(long, value_name = "NAME", requires = "issuer_jwk")]
    issuer: Option<String>,
    /// The commit that history starts at, where it is to be pinned.
    #[arg(long, value_name = "COMMIT")]
    introduction: Option<String>,
    /// An owner's public key (`ssh-ed25519 AAAA…`) or .pub file: who may introduce a history.
    #[arg(long, value_name = "KEY|FILE", required = true, num_args = 1..)]
    trust: Vec<String>,
}

#[derive(Subcommand)]
enum TokenCommand {
    /// Print a new token, alone, on standard output.
    Issue(IssueArgs),
}

#[derive(Args)]
struct IssueArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Who will use it.
    #[arg(long, value_name = "NAME", value_parser = subject)]
    subject: String,
    /// What they may.
    #[arg(long, value_parser = roles())]
    role: Role,
    /// For how long, at most 7d [default: 12h, or auth.max_age where that is less].
    #[arg(long, value_name = "DUR")]
    ttl: Option<Span>,
    /// Only for this service.
    #[arg(long, value_name = "SERVICE")]
    service: Vec<ServiceName>,
    /// Only on this node; others take the token where they trust this one's issuer.
    #[arg(long, value_name = "NODE")]
    for_node: Vec<NodeName>,
}

fn engines() -> impl TypedValueParser<Value = Engine> {
    PossibleValuesParser::new([
        PossibleValue::new("podman").help("Through its Docker-compatible service"),
        PossibleValue::new("docker").help("dockerd"),
    ])
    .map(|word| {
        [Engine::Podman, Engine::Docker]
            .into_iter()
            .find(|engine| engine.as_str() == word)
            .expect("no other word passes")
    })
}

fn roles() -> impl TypedValueParser<Value = Role> {
    PossibleValuesParser::new([
        PossibleValue::new("viewer").help("Looks at everything"),
        PossibleValue::new("operator").help("Changes what runs"),
        PossibleValue::new("admin").help("Removes data, forces, changes trust"),
    ])
    .map(|word| Role::from_word(&word).expect("no other word passes"))
}

fn subject(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 256 || text.chars().any(char::is_control) {
        return Err("a name has 1 to 256 bytes and no control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// A failure as the user sees it.
struct Failure {
    error: anyhow::Error,
    hint: String,
}

impl Failure {
    fn new(error: impl Into<anyhow::Error>, hint: String) -> Self {
        Self {
            error: error.into(),
            hint,
        }
    }
}

fn main() -> ExitCode {
    mcp_agent::tls::install_crypto();
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        // 64 is what every command of this product says to wrong usage; help is no error.
        let code = if error.use_stderr() { 64 } else { 0 };
        let _ = error.print();
        std::process::exit(code);
    });
    let done = match cli.command {
        Command::Init(args) => initialise(args),
        Command::Serve(args) => serve(&args.config),
        Command::Token(TokenCommand::Issue(args)) => issue(&args),
        Command::Check(args) => check_all(&args.config),
        Command::Rebuild(args) => rebuild_registry(&args.config),
        Command::Backup(args) => back_up(&args),
        Command::Restore(args) => put_back(&args),
        Command::Trust(command) => command.run(),
        Command::Identity(command) => command.run(),
        Command::Stage { pid } => return stage(pid),
        Command::Files { pid } => return files(pid),
        Command::Version => {
            out(&format!("mcp-agent {}\n", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
    };
    done.unwrap_or_else(|failure| {
        let mut text = format!("error: {}\n", failure.error);
        for cause in failure.error.chain().skip(1) {
            text.push_str(&format!("caused by: {cause}\n"));
        }
        text.push_str(&format!("\nhint: {}\n", failure.hint));
        err(&text);
        ExitCode::FAILURE
    })
}

/// Writes to standard output; a reader that went away is no failure of ours.
fn out(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// Writes to standard error.
fn err(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Before any thread is started: only then can a user namespace be entered.
fn stage(pid: u32) -> ExitCode {
    errand(mcp_agent::deploy::stage::inside::run(
        pid,
        io::stdin().lock(),
    ))
}

/// The same, for the files of services.
fn files(pid: u32) -> ExitCode {
    errand(mcp_agent::files::errands::run(
        pid,
        io::stdin().lock(),
        io::stdout().lock(),
    ))
}

fn errand<E: std::error::Error>(done: Result<(), E>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            err(&text);
            ExitCode::FAILURE
        }
    }
}

fn initialise(args: InitArgs) -> Result<ExitCode, Failure> {
    let done = init(&InitOptions {
        node: args.node,
        data_dir: args.data_dir,
        config: args.config,
        listen: args.listen,
        services_dir: args.services_dir,
        names: args.san,
        engine: args.engine,
        socket: args.socket,
        issuer_jwk: args.issuer_jwk,
        issuer: args.issuer,
        introduction: args.introduction,
        trust: args.trust,
    })
    .map_err(|error| {
        let hint = error.hint();
        Failure::new(error, hint)
    })?;
    out(&told(&done));
    Ok(ExitCode::SUCCESS)
}

fn told(done: &Initialised) -> String {
    let settings = &done.settings;
    let folder = settings.data_dir.display();
    let config = done.config.display();
    let mut text = if done.created {
        format!("node {} is set up in {folder}\n", settings.node)
    } else {
        format!(
            "node {} was set up in {folder} already; nothing changed\n",
            settings.node
        )
    };
    text.push_str(&format!("  config  {config}\n"));
    text.push_str(&format!(
        "  engine  {} at {}\n",
        settings.runtime.engine.as_str(),
        settings.runtime.socket_url()
    ));
    if let Some(engine) = &done.engine
        && !engine.present
    {
        text.push_str("          (not there now; the agent waits for it)\n");
    }
    for owner in &done.owners {
        text.push_str(&format!("  owner   {owner}\n"));
    }
    if !done.names.is_empty() {
        text.push_str(&format!("  names   {}\n", done.names.join(", ")));
    }
    let address = if settings.listen.ip().is_unspecified() {
        format!("HOST:{}", settings.listen.port())
    } else {
        settings.listen.to_string()
    };
    text.push_str(&format!(
        "\nnext, on this node:\n  mcp-agent serve --config {config}\n  \
         mcp-agent token issue --config {config} --subject NAME --role operator > token\n\
         then, on the workstation:\n  mcp node add {} {address} --ca {}\n  \
         mcp login --token-stdin < token\n",
        settings.node,
        settings.data_dir.join("tls/ca.pem").display(),
    ));
    text
}

fn load(file: &Path) -> Result<Config, Failure> {
    Config::load(file).map_err(|error| {
        let hint = error.hint();
        Failure::new(error, hint)
    })
}

fn issue(args: &IssueArgs) -> Result<ExitCode, Failure> {
    let config = load(&args.config.config)?;
    let longest = MAX_TTL.min(config.auth.max_age);
    let ttl = args.ttl.unwrap_or(longest.min(Span::from_secs(12 * 3600)));
    if ttl > longest || ttl.as_millis() == 0 {
        return Err(Failure::new(
            anyhow::anyhow!("a token for {ttl} cannot be used: this node takes at most {longest}"),
            format!("write --ttl {longest} or less; auth.max_age in agent.toml sets the limit"),
        ));
    }
    let issuer = Issuer::load(&config.node, &config.issuer_key()).map_err(|error| {
        Failure::new(
            error,
            "run this as the agent's user, on the agent's node".to_owned(),
        )
    })?;
    let token = issuer.issue(
        &Grant {
            subject: args.subject.clone(),
            role: args.role,
            ttl,
            services: args.service.iter().cloned().collect(),
            nodes: args.for_node.iter().cloned().collect(),
            audience: config.auth.audience,
        },
        Timestamp::now(),
    );
    out(&format!("{token}\n"));
    Ok(ExitCode::SUCCESS)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Runtime::new().map_err(|error| {
        Failure::new(
            error,
            "the system refuses threads: see ulimit -a".to_owned(),
        )
    })
}

fn check_all(file: &Path) -> Result<ExitCode, Failure> {
    let rows = runtime()?.block_on(check(file));
    out(&table(&rows));
    let failed = rows
        .iter()
        .any(|row| matches!(row.verdict, Verdict::Bad(_)));
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn rebuild_registry(file: &Path) -> Result<ExitCode, Failure> {
    let config = load(file)?;
    let rebuilt = runtime()?.block_on(rebuild(&config)).map_err(|error| {
        let hint = error.hint();
        Failure::new(error, hint)
    })?;
    let mut text = String::new();
    for taken in &rebuilt.containers {
        match &taken.verdict {
            Ok(revision) => {
                text.push_str(&format!(
                    "✓ {}  runs {}\n",
                    taken.container,
                    revision.short()
                ));
            }
            Err(reason) => text.push_str(&format!("! {}  {reason}\n", taken.container)),
        }
    }
    let head = rebuilt
        .head
        .map_or_else(|| "none".to_owned(), |head| head.short());
    let count = rebuilt
        .containers
        .iter()
        .filter(|taken| taken.verdict.is_ok())
        .count();
    text.push_str(&format!(
        "{} is new: head {head}, {count} of {} containers taken over\n",
        config.database().display(),
        rebuilt.containers.len()
    ));
    if let Some(old) = &rebuilt.old {
        text.push_str(&format!("the old one is {}\n", old.display()));
    }
    out(&text);
    Ok(ExitCode::SUCCESS)
}

fn short(commit: Option<CommitId>) -> String {
    commit.map_or_else(|| "none".to_owned(), |commit| commit.short())
}

fn back_up(args: &BackupArgs) -> Result<ExitCode, Failure> {
    let config = load(&args.config.config)?;
    let done = backup(&config, &args.file, args.force).map_err(|error| {
        let hint = error.hint();
        Failure::new(error, hint)
    })?;
    for left_out in &done.left_out {
        err(&format!("left out: {left_out}\n"));
    }
    if done.unfinished > 0 {
        err(&format!(
            "{} deployments were under way: the agent goes on with them after a restore\n",
            done.unfinished
        ));
    }
    out(&format!(
        "node {} at {}: {} files, {} KiB in {}\n",
        done.node,
        short(done.head),
        done.files,
        done.bytes.div_ceil(1024),
        args.file.display()
    ));
    Ok(ExitCode::SUCCESS)
}

fn put_back(args: &RestoreArgs) -> Result<ExitCode, Failure> {
    let done = restore(&args.file, args.config.as_deref(), args.force).map_err(|error| {
        let hint = error.hint();
        Failure::new(error, hint)
    })?;
    let mut text = format!(
        "node {} is as it was at {}, head {}, in {}\n",
        done.node,
        done.at,
        short(done.head),
        done.data_dir.display()
    );
    if let Some(aside) = &done.aside {
        text.push_str(&format!("the old files are in {}\n", aside.display()));
    }
    for kept in &done.kept {
        text.push_str(&format!("{} was there and stays\n", kept.display()));
    }
    if let Some(mark) = done.mark_ahead {
        text.push_str(&format!(
            "this node had come to {}, which the backup lacks: changes are stopped until a push brings it\n",
            mark.short()
        ));
    }
    text.push_str(&format!(
        "\nnext, on this node:\n  mcp-agent check --config {0}\n  mcp-agent serve --config {0}\n\
         then, on the workstation:\n  mcp sync\n",
        done.config.display()
    ));
    out(&text);
    Ok(ExitCode::SUCCESS)
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let (mark, mend) = match &row.verdict {
            Verdict::Good => ("✓", None),
            Verdict::Warning(mend) => ("!", Some(mend)),
            Verdict::Bad(mend) => ("✗", Some(mend)),
        };
        text.push_str(&format!("{mark} {:width$}  {}\n", row.name, row.detail));
        if let Some(mend) = mend {
            text.push_str(&format!("  {:width$}  mend: {mend}\n", ""));
        }
    }
    text
}

fn serve(file: &Path) -> Result<ExitCode, Failure> {
    let config = load(file)?;
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("info,rusqlite_migration=warn"));
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_env_filter(filter)
        .with_ansi(false)
        .with_target(false)
        .init();
    let runtime = runtime()?;
    let served = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let told = shutdown.clone();
        let signals = tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
            told.cancel();
        });
        let node = config.node.clone();
        let ran = mcp_agent::run(config, shutdown, |address, engine| {
            err(&format!(
                "mcp-agent: {node} listens on {address} ({engine})\n"
            ));
            let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
        })
        .await;
        signals.abort();
        Ok::<_, io::Error>(ran)
    });
    // A call that blocks on the disk must not keep a stopped agent alive.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    served
        .map_err(|error| Failure::new(error, "the system refuses signal handlers".to_owned()))?
        .map_err(|error| {
            let hint = error.hint();
            Failure::new(error, hint)
        })?;
    Ok(ExitCode::SUCCESS)
}
