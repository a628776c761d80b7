//! `mcp secret set`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use mcp_seal::{Value, seal};
use mcp_spec::name::{SecretName, ServiceName};
use mcp_spec::secret::{MAX_VALUE_BYTES, secret_path};
use zeroize::Zeroizing;

use super::recipients;
use super::stored::{Secrets, write};
use crate::commands::repository;
use crate::config;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{self, green};

/// Encrypt a value to the node that runs a service; the value comes from standard input, a file or a prompt
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp secret set shop db-password                 asks, and shows nothing
  mcp secret set shop tls-key --file key.pem
  openssl rand -hex 32 | mcp secret set shop session-key --trim

The value is never an argument: other users of the machine see those. mcp sync or mcp deploy commits the file.")]
pub(super) struct Args {
    /// Whose secret it is
    #[arg(add = crate::commands::complete::services(), value_name = "SERVICE")]
    service: ServiceName,
    /// Its name
    #[arg(value_name = "NAME")]
    name: SecretName,
    /// Read the value from a file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Take one line end off the end of the value
    #[arg(long)]
    trim: bool,
}

/// Carries it out.
pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let repo = repository::open(context)?;
    let mut secrets = Secrets::read(&repo)?;
    let node = secrets.node_of(&args.service).cloned().ok_or_else(|| {
        Failure::usage(format!(
            "there is no definition of {} that says which node runs it",
            args.service
        ))
        .hint(format!("mcp service new {}", args.service))
    })?;
    let value = value(context, &args)?;
    let recipient = recipients::of(context, &repo, &mut secrets, &node, false).await?;
    let nodes = BTreeMap::from([(node.clone(), recipient)]);
    let sealed = seal(&args.service, &args.name, &value, &nodes)
        .map_err(|error| Failure::of(Exit::Usage, &error))?;
    let path = secret_path(&args.service, &args.name);
    write(&repo.dir().join(&path), &sealed)?;
    if context.out.is_table() {
        context.out.data(&format!(
            "{} {path}, encrypted to {node}",
            green(style::GOOD)
        ))?;
    } else {
        context.out.json(&serde_json::json!({
            "service": args.service.as_str(),
            "name": args.name.as_str(),
            "nodes": [node.as_str()],
            "file": path,
        }))?;
    }
    if secrets.users(&args.service, &args.name).is_empty() {
        context.out.hint(&format!(
            "no component of {} uses it yet: secrets = [\"{}\"] below its [[components]]; then mcp sync",
            args.service, args.name
        ));
    } else {
        context
            .out
            .hint(&format!("mcp deploy {} brings it there", args.service));
    }
    Ok(Exit::Done)
}

/// The value, from where it was given; nothing has been asked of a node, or written, before it is known to do.
fn value(context: &Context, args: &Args) -> Result<Value, Failure> {
    let mut bytes = if let Some(file) = &args.file {
        let path = config::expand_home(file)?;
        let failed = |error: std::io::Error| {
            Failure::usage(format!("cannot read {}", path.display())).because(&error)
        };
        read(File::open(&path).map_err(failed)?).map_err(failed)?
    } else if std::io::stdin().is_terminal() {
        asked(args)?
    } else {
        let failed = |error: std::io::Error| {
            Failure::failed("standard input cannot be read").because(&error)
        };
        // Not through the buffer of the standard library, in which a copy would stay.
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        read(File::from(stdin.map_err(failed)?)).map_err(failed)?
    };
    if args.trim && bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    if bytes.is_empty() {
        return Err(Failure::usage("the value is empty")
            .hint("give it on standard input, or with --file FILE"));
    }
    if bytes.len() > MAX_VALUE_BYTES {
        return Err(Failure::usage(format!(
            "the value is too large: a secret has at most {MAX_VALUE_BYTES} bytes"
        ))
        .hint("nothing was written; keep large data in a volume, encrypted with a key that is the secret"));
    }
    if !args.trim && bytes.ends_with(b"\n") && !bytes[..bytes.len() - 1].contains(&b'\n') {
        context
            .out
            .note("the value ends with a line end, which is part of it; --trim takes it off");
    }
    Ok(Value::new(std::mem::take(&mut *bytes)))
}

/// What is typed at the terminal, twice.
fn asked(args: &Args) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::usage("the value cannot be asked for")
            .because(&error)
            .hint("give it on standard input, or with --file")
    };
    let ask = |again: &str| {
        rpassword::prompt_password(format!("Value of {}/{}{again}: ", args.service, args.name))
            .map(|text| Zeroizing::new(text.into_bytes()))
            .map_err(failed)
    };
    let (once, again) = (ask("")?, ask(", again")?);
    if once != again {
        return Err(Failure::usage("the two are not the same").hint("nothing was written"));
    }
    Ok(once)
}

/// Reads to the end, or to where it is too much. The buffer never grows, so no copy of the value stays behind.
fn read(mut file: File) -> std::io::Result<Zeroizing<Vec<u8>>> {
    // A line end may be taken off, and one byte more tells that it is too much.
    let mut bytes = Zeroizing::new(vec![0; MAX_VALUE_BYTES + 3]);
    let mut length = 0;
    loop {
        match file.read(&mut bytes[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(length);
    Ok(bytes)
}
