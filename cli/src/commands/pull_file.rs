//! `mcp pull`: files come from below a service's folder.

use std::fs::{self, File};
use std::io::Seek as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use mcp_proto::v1;
use serde::Serialize;

use super::service_path::{ServicePath, plain_parts};
use crate::client::NodeClient;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::style::{self, bold, bytes, dim, green};
use crate::output::{clean, json};

/// Pull a file from below a service's folder on its node
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp pull metacrypt:etc/metacrypt.toml             into this folder
  mcp pull metacrypt:etc/metacrypt.toml old.toml
  mcp pull metacrypt:etc/metacrypt.toml -           to standard output
  mcp pull -r metacrypt:templates backup/           every file of a folder

A file is written once all of it has arrived and its SHA-256 is the one that the node told; one that is
there is replaced in one step.")]
pub(crate) struct Args {
    /// What to pull
    #[arg(value_name = "SERVICE:PATH")]
    place: ServicePath,
    /// Where it goes: a file, a folder that is there, or - [default: this folder, under its own name]
    #[arg(value_name = "LOCAL")]
    local: Option<PathBuf>,
    /// A folder, with all files in it
    #[arg(short, long)]
    recursive: bool,
}

#[derive(Serialize)]
struct Document {
    node: String,
    service: String,
    path: String,
    local: String,
    bytes: u64,
    sha256: String,
}

#[derive(Serialize)]
struct Documents {
    files: Vec<Document>,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let place = &args.place;
    let client = place.connect(context).await?;
    let progress = context.out.progress();
    if args.local.as_deref() == Some(Path::new("-")) {
        if args.recursive {
            return Err(Failure::usage("a folder does not go to standard output"));
        }
        let mut file = tempfile::tempfile()
            .map_err(|error| Failure::failed("no temporary file can be made").because(&error))?;
        arrive(&client, &progress, place, &place.path, &mut file).await?;
        progress.finish();
        file.rewind()
            .map_err(|error| Failure::failed("the file cannot be read back").because(&error))?;
        context.out.copy(&mut file)?;
        return Ok(Exit::Done);
    }
    let files = if args.recursive {
        folder(context, &client, place, args.local.as_deref()).await?
    } else {
        vec![(place.path.clone(), target(place, args.local)?)]
    };
    let all = files.len();
    let mut documents = Vec::new();
    let mut ended = Ok(Exit::Done);
    for (path, local) in files {
        match one(&client, &progress, place, &path, &local).await {
            Ok(document) => documents.push(document),
            Err(failure) if all == 1 => ended = Err(failure),
            Err(failure) => {
                let done = format!("{} of {all} files were pulled", documents.len());
                ended = Err(failure.cause(done));
                break;
            }
        }
    }
    progress.finish();
    if context.out.is_table() {
        let lines: Vec<String> = documents.iter().map(line).collect();
        context.out.data(&lines.join("\n"))?;
    } else {
        context.out.json(&Documents { files: documents })?;
    }
    ended
}

fn line(document: &Document) -> String {
    format!(
        "{}  {} {}  {}  {}  {}",
        clean::line(&document.node),
        green(style::GOOD),
        bold(&clean::line(&format!(
            "{}:{}",
            document.service, document.path
        ))),
        clean::line(&document.local),
        bytes(document.bytes),
        dim(&document.sha256),
    )
}

/// Where a single file goes.
fn target(place: &ServicePath, local: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let name = || {
        place
            .name()
            .filter(|name| plain_parts(name).is_some())
            .ok_or_else(|| {
                Failure::usage(format!("{place} is a folder"))
                    .hint(format!("mcp pull -r {place} LOCAL"))
            })
    };
    match local {
        None => Ok(PathBuf::from(name()?)),
        Some(local) if local.is_dir() => Ok(local.join(name()?)),
        Some(local) => Ok(local),
    }
}

/// The files of a folder and where they go, with the folders for them made.
async fn folder(
    context: &Context,
    client: &NodeClient,
    place: &ServicePath,
    local: Option<&Path>,
) -> Result<Vec<(String, PathBuf)>, Failure> {
    let asked = place.plain();
    let listing = client
        .list_files(v1::ListFilesRequest {
            service: place.service.to_string(),
            path: asked.clone(),
            recursive: true,
        })
        .await?;
    if !listing.folder {
        return Ok(vec![(asked, target(place, local.map(Path::to_owned))?)]);
    }
    if listing.truncated {
        return Err(
            Failure::failed(format!("{place} holds more than can be listed at once"))
                .hint("pull the folders below it one by one: mcp files"),
        );
    }
    let top = match (local, place.name()) {
        (None, None) => PathBuf::from(place.service.as_str()),
        (None, Some(name)) if plain_parts(&name).is_some() => PathBuf::from(name),
        (Some(local), Some(name)) if local.is_dir() && plain_parts(&name).is_some() => {
            local.join(name)
        }
        (Some(local), _) => local.to_owned(),
        (None, Some(_)) => return Err(Failure::usage("name a folder for it")),
    };
    let unwritable = |path: &Path, error: &std::io::Error| {
        Failure::failed(format!("{} cannot be made", path.display())).because(error)
    };
    fs::create_dir_all(&top).map_err(|error| unwritable(&top, &error))?;
    let mut files = Vec::new();
    let mut left = Vec::new();
    for entry in listing.entries {
        let below = match asked.as_str() {
            "" => Some(entry.path.as_str()),
            asked => entry
                .path
                .strip_prefix(asked)
                .and_then(|rest| rest.strip_prefix('/')),
        };
        let parts = below.and_then(plain_parts).filter(|_| !entry.unnameable);
        match (parts, entry.kind.as_str()) {
            (Some(parts), "folder") => {
                let dir = parts.iter().fold(top.clone(), |dir, part| dir.join(part));
                fs::create_dir_all(&dir).map_err(|error| unwritable(&dir, &error))?;
            }
            (Some(parts), "file") if entry.links == 1 => {
                let to = parts.iter().fold(top.clone(), |dir, part| dir.join(part));
                files.push((entry.path, to));
            }
            (_, kind) => left.push(format!("{} ({kind})", clean::line(&entry.path))),
        }
    }
    for left in left {
        context.out.warn(&format!(
            "left out, since only plain files are pulled: {left}"
        ));
    }
    Ok(files)
}

/// Takes a file in, and gives what was told of it.
async fn arrive(
    client: &NodeClient,
    progress: &Progress,
    place: &ServicePath,
    path: &str,
    to: &mut File,
) -> Result<(v1::FileEntry, [u8; 32]), Failure> {
    let bar = progress.transfer(&format!("{}:{path}", place.service), 0);
    let request = v1::PullFileRequest {
        service: place.service.to_string(),
        path: path.to_owned(),
    };
    client
        .pull_file(request, to, |all| bar.of(all), |bytes| bar.moved(bytes))
        .await
}

async fn one(
    client: &NodeClient,
    progress: &Progress,
    place: &ServicePath,
    path: &str,
    local: &Path,
) -> Result<Document, Failure> {
    let failed = |error: &std::io::Error| {
        Failure::failed(format!("{} cannot be written", local.display())).because(error)
    };
    let dir = match local.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".mcp-pull-")
        .tempfile_in(dir)
        .map_err(|error| failed(&error))?;
    let (entry, sha256) = arrive(client, progress, place, path, file.as_file_mut()).await?;
    // As a copy would have it, but never writable for more than its owner.
    let mode = fs::Permissions::from_mode(entry.mode & 0o755);
    file.as_file()
        .set_permissions(mode)
        .and_then(|()| file.as_file().sync_all())
        .map_err(|error| failed(&error))?;
    file.persist(local).map_err(|error| failed(&error.error))?;
    Ok(Document {
        node: client.name().to_owned(),
        service: place.service.to_string(),
        path: path.to_owned(),
        local: local.display().to_string(),
        bytes: entry.bytes,
        sha256: json::digest(&sha256),
    })
}
