//! `mcp node add`.

use std::path::{Path, PathBuf};

use mcp_spec::name::NodeName;

use crate::client;
use crate::config::{self, AddNode};
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::style::{self, green};

/// Add a node, with the CA or the certificate that it is known by
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp node add rift rift.example.net:9444 --ca rift-ca.pem
  mcp node add rift 10.0.0.7 --ca ca.pem --server-name rift
  mcp node add rift rift --fingerprint sha256:6f1c…

The CA is DIR/tls/ca.pem of what `mcp-agent init` made.")]
pub(super) struct Args {
    /// Its name, as definitions write it
    #[arg(value_name = "NAME")]
    name: NodeName,
    /// Where its agent listens; the port is 9444 where none is given
    #[arg(value_name = "HOST[:PORT]")]
    address: String,
    /// The CA that its certificate is checked against, a PEM file
    #[arg(long, value_name = "FILE", required_unless_present = "fingerprint")]
    ca: Option<PathBuf>,
    /// SHA-256 of its certificate, or of a CA that it sends
    #[arg(long, value_name = "SHA256", conflicts_with = "ca")]
    fingerprint: Option<String>,
    /// The name in its certificate, where that is not the host
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

/// Carries it out.
pub(super) fn run(context: &Context, args: &Args) -> Outcome {
    let settings = &context.settings;
    if settings.nodes.iter().any(|node| node.name == args.name) {
        return Err(
            Failure::usage(format!("node `{}` is configured already", args.name))
                .hint(format!("mcp node remove {}", args.name)),
        );
    }
    let (host, port) = client::parse_address(&args.address).ok_or_else(|| {
        Failure::usage(format!("`{}` is no address", args.address))
            .hint("write HOST:PORT, as in rift.example.net:9444")
    })?;
    let address = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let ca = args.ca.as_deref().map(absolute).transpose()?;
    if let Some(path) = &ca {
        client::read_certificates(path)?;
    }
    if let Some(text) = &args.fingerprint {
        client::parse_fingerprint(text).map_err(|error| Failure::of(Exit::Usage, &error))?;
    }
    let node = AddNode {
        name: &args.name,
        address: &address,
        ca_cert: ca.as_deref(),
        fingerprint: args.fingerprint.as_deref(),
        server_name: args.server_name.as_deref(),
    };
    config::add_node(&settings.config.value, &node).map_err(|error| error.failure())?;
    context.out.note(&format!(
        "{} {} at {address} in {}",
        green(style::GOOD),
        args.name,
        settings.config.value.display()
    ));
    if !client::token::source_for(settings, args.name.as_str()).exists()
        && settings.token_command.is_empty()
    {
        context.out.hint("mcp login --token-stdin");
    }
    Ok(Exit::Done)
}

/// The path from the root, since `mcp.toml` is read from anywhere.
fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    let path = config::expand_home(path)?;
    std::path::absolute(&path).map_err(|error| {
        Failure::usage(format!("{} has no absolute path", path.display())).because(&error)
    })
}
