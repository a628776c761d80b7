//! `mcp files`: what lies below a service's folder.

use mcp_proto::v1;
use serde::Serialize;

use super::service_path::ServicePath;
use crate::context::Context;
use crate::error::{Exit, Outcome};
use crate::output::style::{Style, bytes};
use crate::output::table::{Cell, Table};

/// List the files below a service's folder on its node
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp files metacrypt
  mcp files metacrypt:etc
  mcp files -r metacrypt         also what is in the folders

Owners are counted as the containers count them.")]
pub(crate) struct Args {
    /// The service, and a path in its folder
    #[arg(value_name = "SERVICE[:PATH]")]
    place: ServicePath,
    /// Also what lies in the folders below
    #[arg(short, long)]
    recursive: bool,
}

#[derive(Serialize)]
struct Document {
    node: String,
    service: String,
    path: String,
    kind: String,
    bytes: u64,
    mode: String,
    uid: u32,
    gid: u32,
    links: u64,
    modified_at: String,
    unnameable: bool,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let place = &args.place;
    let client = place.connect(context).await?;
    let listing = client
        .list_files(v1::ListFilesRequest {
            service: place.service.to_string(),
            path: place.plain(),
            recursive: args.recursive,
        })
        .await?;
    if context.out.is_table() {
        let mut table = Table::with_header(&["MODE", "OWNER", "SIZE", "MODIFIED", "PATH"]);
        for entry in &listing.entries {
            table.row(row(context, entry));
        }
        if table.is_empty() {
            context.out.note("nothing is there");
        } else {
            context.out.data(&table.render(context.out.width()))?;
        }
    } else {
        let documents: Vec<Document> = listing
            .entries
            .into_iter()
            .map(|entry| Document {
                node: listing.node.clone(),
                service: place.service.to_string(),
                path: entry.path,
                kind: entry.kind,
                bytes: entry.bytes,
                mode: format!("{:04o}", entry.mode),
                uid: entry.uid,
                gid: entry.gid,
                links: entry.links,
                modified_at: entry.modified_at,
                unnameable: entry.unnameable,
            })
            .collect();
        context.out.json_list(&documents)?;
    }
    if listing.truncated {
        context
            .out
            .warn("there is more than was listed; name a folder below");
    }
    Ok(Exit::Done)
}

fn row(context: &Context, entry: &v1::FileEntry) -> [Cell; 5] {
    let size = match entry.kind.as_str() {
        "file" if entry.links > 1 => format!("{}, {} names", bytes(entry.bytes), entry.links),
        "file" => bytes(entry.bytes),
        kind => kind.to_owned(),
    };
    let (path, style) = match entry.kind.as_str() {
        "folder" => (format!("{}/", entry.path), Style::Bold),
        "file" => (entry.path.clone(), Style::Plain),
        _ => (entry.path.clone(), Style::Dim),
    };
    [
        Cell::from(format!("{:04o}", entry.mode)).whole(),
        Cell::from(format!("{}:{}", entry.uid, entry.gid)).whole(),
        Cell::from(size).whole(),
        Cell::from(context.out.time(&entry.modified_at)).whole(),
        Cell::new(&path, style),
    ]
}
