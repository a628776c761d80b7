//! `mcp push`: files go below a service's folder, and an earlier version comes back.

use std::fs::{self, File};
use std::io::Seek as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use mcp_proto::v1;
use serde::Serialize;

use super::service_path::ServicePath;
use crate::client::NodeClient;
use crate::client::files::digest;
use crate::client::follow::new_request_id;
use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};
use crate::output::progress::Progress;
use crate::output::style::{self, bold, bytes, dim, green};
use crate::output::{clean, json};

/// Most files of one folder, as many as a listing tells.
const MAX_FILES: usize = 10_000;
/// Deepest folder that is looked into: an agent takes no longer path.
const MAX_DEPTH: usize = 32;

/// Push a file below a service's folder on its node
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  mcp push metacrypt.toml metacrypt:etc/metacrypt.toml
  mcp push metacrypt.toml metacrypt:etc/      keeps its name
  mcp push -r templates metacrypt:            every file of a folder
  mcp push --undo metacrypt:etc/metacrypt.toml

The file appears whole, in one step, and is flushed to the disk. One that is there keeps its owner and
its mode; a new one gets this file's mode, and the owner of the component that mounts it or of the folder.
What it replaced is kept, once for each file, and --undo brings it back.")]
pub(crate) struct Args {
    /// The file, and where it goes; with --undo the place alone
    #[arg(value_name = "FILE> <SERVICE[:PATH]", required = true, num_args = 1..=2)]
    places: Vec<String>,
    /// A folder, with all files in it
    #[arg(short, long, conflicts_with = "undo")]
    recursive: bool,
    /// Put back what the last push to this place replaced
    #[arg(long)]
    undo: bool,
    /// With --undo: also where the file was changed since it was pushed
    #[arg(long, requires = "undo")]
    force: bool,
    /// Permission bits, as in 0640, also of a file that is there
    #[arg(long, value_name = "MODE", value_parser = mode, conflicts_with = "undo")]
    mode: Option<u32>,
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o777)
        .ok_or_else(|| "write permission bits in octal, as in 0640".to_owned())
}

/// A file of this machine and where it goes.
struct Local {
    from: PathBuf,
    to: String,
}

/// Carries it out.
pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let parse = |text: &str| text.parse::<ServicePath>().map_err(Failure::usage);
    match (args.undo, args.places.as_slice()) {
        (true, [place]) => undo(context, &parse(place)?, args.force).await,
        (false, [from, place]) => {
            let place = parse(place)?;
            let from = Path::new(from);
            let files = if args.recursive {
                folder(from, &place)?
            } else {
                vec![file(from, &place)?]
            };
            push(context, &place, &files, args.mode).await
        }
        (true, _) => {
            Err(Failure::usage("--undo takes the place alone").hint("mcp push --undo SERVICE:PATH"))
        }
        (false, _) => {
            Err(Failure::usage("it takes a file, and where it goes")
                .hint("mcp push FILE SERVICE:PATH"))
        }
    }
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> Failure + '_ {
    move |error| Failure::failed(format!("{} cannot be read", path.display())).because(&error)
}

fn name_of(path: &Path) -> Result<String, Failure> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| {
        Failure::usage(format!(
            "{} has no name that a node could take",
            path.display()
        ))
        .hint("name the place whole: SERVICE:PATH")
    })
}

/// One file. A symlink that the operator names is followed, as `cp` and `scp` do.
fn file(from: &Path, place: &ServicePath) -> Result<Local, Failure> {
    let found = fs::metadata(from).map_err(unreadable(from))?;
    if found.is_dir() {
        return Err(Failure::usage(format!("{} is a folder", from.display()))
            .hint(format!("mcp push -r {} {place}", from.display())));
    }
    let to = if place.path.is_empty() || place.path.ends_with('/') {
        place.with_name(&name_of(from)?)
    } else {
        place.path.clone()
    };
    Ok(Local {
        from: from.to_owned(),
        to,
    })
}

/// Every file of a folder. What is no file stops it before anything is sent.
fn folder(from: &Path, place: &ServicePath) -> Result<Vec<Local>, Failure> {
    let found = fs::metadata(from).map_err(unreadable(from))?;
    if !found.is_dir() {
        return Ok(vec![file(from, place)?]);
    }
    let top = match from.file_name() {
        Some(_) => place.with_name(&name_of(from)?),
        // `.` and `..`: what is in it.
        None => place.plain(),
    };
    let mut files = Vec::new();
    let mut waiting = vec![(from.to_owned(), top, 0)];
    while let Some((dir, to, depth)) = waiting.pop() {
        for entry in fs::read_dir(&dir).map_err(unreadable(&dir))? {
            let path = entry.map_err(unreadable(&dir))?.path();
            let name = name_of(&path)?;
            let to = if to.is_empty() {
                name
            } else {
                format!("{to}/{name}")
            };
            let kind = fs::symlink_metadata(&path)
                .map_err(unreadable(&path))?
                .file_type();
            if kind.is_dir() {
                if depth == MAX_DEPTH {
                    return Err(Failure::usage(format!("{} is too deep", path.display())));
                }
                waiting.push((path, to, depth + 1));
            } else if kind.is_file() {
                files.push(Local { from: path, to });
            } else {
                return Err(Failure::usage(format!(
                    "{} is neither file nor folder, and nothing else is pushed",
                    path.display()
                ))
                .hint("remove it, or push the files one by one"));
            }
            if files.len() > MAX_FILES {
                return Err(Failure::usage(format!(
                    "{} holds more than {MAX_FILES} files",
                    from.display()
                )));
            }
        }
    }
    files.sort_by(|one, other| one.to.cmp(&other.to));
    Ok(files)
}

#[derive(Serialize)]
struct Document {
    node: String,
    service: String,
    path: String,
    bytes: u64,
    sha256: String,
    replaced: bool,
    can_undo: bool,
    mode: String,
    uid: u32,
    gid: u32,
}

#[derive(Serialize)]
struct Documents {
    files: Vec<Document>,
}

async fn push(
    context: &Context,
    place: &ServicePath,
    files: &[Local],
    mode: Option<u32>,
) -> Outcome {
    if files.is_empty() {
        context.out.note("there are no files in it");
    }
    let client = place.connect(context).await?;
    let progress = context.out.progress();
    let mut documents = Vec::new();
    let mut ended = Ok(Exit::Done);
    for local in files {
        match one(&client, &progress, place, local, mode).await {
            Ok(document) => documents.push(document),
            Err(failure) => {
                ended = Err(match files.len() {
                    1 => failure,
                    all => failure.cause(format!(
                        "{} of {all} files were pushed, each of them whole",
                        documents.len()
                    )),
                });
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
    let Document {
        node,
        service,
        path,
        bytes: size,
        sha256,
        replaced,
        can_undo,
        ..
    } = document;
    let what = if *replaced { "replaced" } else { "made" };
    let undo = if *can_undo { "" } else { "  cannot be undone" };
    format!(
        "{}  {} {}  {what}  {}  {}{undo}",
        clean::line(node),
        green(style::GOOD),
        bold(&clean::line(&format!("{service}:{path}"))),
        bytes(*size),
        dim(sha256),
    )
}

async fn one(
    client: &NodeClient,
    progress: &Progress,
    place: &ServicePath,
    local: &Local,
    mode: Option<u32>,
) -> Result<Document, Failure> {
    let from = local.from.clone();
    let opened = tokio::task::spawn_blocking(move || {
        // A FIFO would keep it waiting, and has no length.
        let mut file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(&from)
            .map_err(unreadable(&from))?;
        let found = file.metadata().map_err(unreadable(&from))?;
        if !found.is_file() {
            return Err(Failure::usage(format!("{} is no file", from.display())));
        }
        let (sha256, bytes) = digest(&mut file).map_err(unreadable(&from))?;
        file.rewind().map_err(unreadable(&from))?;
        Ok((file, found.permissions().mode(), sha256, bytes))
    });
    let (file, own_mode, sha256, size) = opened
        .await
        .map_err(|died| Failure::failed("the file was not read").because(&died))??;
    let header = v1::PushFileHeader {
        service: place.service.to_string(),
        path: local.to.clone(),
        bytes: size,
        sha256: sha256.to_vec(),
        mode: mode.unwrap_or(own_mode & 0o777),
        set_mode: mode.is_some(),
        make_folders: true,
        request_id: new_request_id(),
    };
    let bar = progress.transfer(&format!("{}:{}", place.service, local.to), size);
    let moving = bar.clone();
    let pushed = client
        .push_file(header, file, move |bytes| moving.moved(bytes))
        .await?;
    let entry = pushed.file.unwrap_or_default();
    Ok(Document {
        node: pushed.node,
        service: place.service.to_string(),
        path: local.to.clone(),
        bytes: size,
        sha256: json::digest(&sha256),
        replaced: pushed.replaced,
        can_undo: pushed.can_undo,
        mode: format!("{:04o}", entry.mode),
        uid: entry.uid,
        gid: entry.gid,
    })
}

#[derive(Serialize)]
struct UndoDocument {
    node: String,
    service: String,
    path: String,
    removed: bool,
    bytes: Option<u64>,
    sha256: Option<String>,
}

async fn undo(context: &Context, place: &ServicePath, force: bool) -> Outcome {
    let client = place.connect(context).await?;
    let undone = client
        .undo_push(v1::UndoPushRequest {
            service: place.service.to_string(),
            path: place.path.clone(),
            force,
            request_id: new_request_id(),
        })
        .await?;
    let document = UndoDocument {
        node: undone.node,
        service: place.service.to_string(),
        path: place.path.clone(),
        removed: undone.removed,
        bytes: undone.file.as_ref().map(|file| file.bytes),
        sha256: undone.file.is_some().then(|| json::digest(&undone.sha256)),
    };
    if !context.out.is_table() {
        context.out.json(&document)?;
        return Ok(Exit::Done);
    }
    let what = match (&document.bytes, &document.sha256) {
        (Some(size), Some(sha256)) => format!("put back  {}  {}", bytes(*size), dim(sha256)),
        _ => "removed: nothing was there before the push".to_owned(),
    };
    context.out.data(&format!(
        "{}  {} {}  {what}",
        clean::line(&document.node),
        green(style::GOOD),
        bold(&clean::line(&place.to_string())),
    ))?;
    Ok(Exit::Done)
}
