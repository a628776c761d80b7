//! `mcp.v1.Files`: files below services' folders come in, and go out.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use hyper::body::Bytes;
use mcp_proto::v1;
use mcp_spec::component::{ComponentSpec, VolumeSource};
use mcp_spec::image::Digest;
use mcp_spec::name::{ServiceName, Target};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::authenticate::{About, caller};
use super::status;
use crate::Agent;
use crate::auth::Identity;
use crate::blocking::blocking;
use crate::files::Piece;
use crate::files::error::FileError;
use crate::files::handle::Owner;
use crate::files::list::{Entry, List};
use crate::files::path::FilePath;
use crate::files::pull::Pull;
use crate::files::push::{Allowed, Push, Pushed};
use crate::files::undo::{Undo, Undone};
use crate::registry::NewEvent;

/// Longest request id, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 64;
/// Largest chunk of a file, either way.
const MAX_CHUNK_BYTES: usize = 1024 * 1024;
/// Longest silence of a client in the middle of a file.
const CHUNK_LIMIT: Duration = Duration::from_secs(60);
/// Files that are on their way at a time: each holds a thread and a few chunks.
const TRANSFERS: usize = 8;
/// How long a further one waits.
const TRANSFER_WAIT: Duration = Duration::from_secs(20);
/// Chunks between the network and the disk.
const CHUNKS_AHEAD: usize = 4;

/// The service.
#[derive(Debug)]
pub(super) struct Files {
    agent: Arc<Agent>,
    transfers: Arc<Semaphore>,
}

/// What a request is about, once its caller may ask for it.
struct Asked {
    service: ServiceName,
    path: FilePath,
    /// The service's components, as the head defines them or as they were deployed.
    components: Vec<ComponentSpec>,
}

impl Files {
    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self {
            agent,
            transfers: Arc::new(Semaphore::new(TRANSFERS)),
        }
    }

    async fn place(&self) -> Result<OwnedSemaphorePermit, Status> {
        let place = Arc::clone(&self.transfers).acquire_owned();
        match tokio::time::timeout(TRANSFER_WAIT, place).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(status::stopping()),
            Err(_) => Err(status::too_many_transfers(TRANSFERS)),
        }
    }

    /// Holds a request to its caller's services, and to those that this node has.
    async fn asked(&self, identity: &Identity, service: &str, path: &str) -> Result<Asked, Status> {
        let service: ServiceName = service
            .parse()
            .map_err(|error| status::bad_request(format!("service: {error}")))?;
        identity.require_service(&service)?;
        let path = path.parse().map_err(|error| status::file_path(&error))?;
        let desired = Arc::clone(&self.agent.desired);
        let head = blocking(move || desired.head()).await;
        if let Some(spec) = head.as_ref().and_then(|set| set.services.get(&service)) {
            let components = spec.components.values().cloned().collect();
            return Ok(Asked {
                service,
                path,
                components,
            });
        }
        let deployed = self
            .agent
            .registry
            .deployed_all()
            .await
            .map_err(|error| status::registry(&error))?;
        let components: Vec<ComponentSpec> = deployed
            .into_iter()
            .filter(|row| row.key.service == service)
            .map(|row| ComponentSpec::clone(&row.spec))
            .collect();
        if components.is_empty() {
            let target = Target {
                node: None,
                service,
                component: None,
            };
            return Err(status::unknown_target(&[target], &self.agent.config.node));
        }
        Ok(Asked {
            service,
            path,
            components,
        })
    }

    fn push_of(&self, asked: &Asked, header: &v1::PushFileHeader) -> Result<Push, Status> {
        let allowed = self.agent.files.config();
        if header.bytes > allowed.max_file {
            return Err(status::file(&FileError::TooLarge {
                bytes: header.bytes,
                limit: allowed.max_file,
            }));
        }
        if header.mode & !0o777 != 0 {
            return Err(status::bad_request(
                "mode has other than permission bits: files are pushed without set-user-id and the like",
            ));
        }
        let dir = self.agent.config.services_dir.join(asked.service.as_str());
        Ok(Push {
            service: asked.service.clone(),
            path: asked.path.clone(),
            bytes: header.bytes,
            sha256: digest_of(&header.sha256)?,
            mode: header.mode,
            set_mode: header.set_mode,
            make_folders: header.make_folders,
            owner: owner(&asked.components, &dir.join(asked.path.to_string())),
            allowed: Allowed {
                quota: allowed.quota,
                reserve: allowed.reserve,
                keep: allowed.keep,
                expected: 0,
            },
        })
    }
}

fn digest_of(bytes: &[u8]) -> Result<Digest, Status> {
    let bytes: [u8; 32] = bytes
        .try_into()
        .map_err(|_| status::bad_request("sha256 has other than 32 bytes"))?;
    Ok(Digest::from_bytes(bytes))
}

/// The user of the components that mount a place, where they agree and the definition gives numbers.
fn owner(components: &[ComponentSpec], place: &Path) -> Option<Owner> {
    let mut owners = components
        .iter()
        .filter(|component| {
            component.volumes.values().any(|volume| {
                matches!(&volume.source, VolumeSource::Bind(source) if place.starts_with(source))
            })
        })
        .map(|component| numbers(component.user.as_deref()));
    let first = owners.next().flatten()?;
    owners.all(|other| other == Some(first)).then_some(first)
}

/// `UID[:GID]`; without a group it is root's, as engines have it.
fn numbers(user: Option<&str>) -> Option<Owner> {
    let (uid, gid) = user?.split_once(':').unwrap_or((user?, "0"));
    Some(Owner {
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
    })
}

/// What is told of a transfer in the event log.
fn event(
    agent: &Agent,
    service: &ServiceName,
    reason: &str,
    message: String,
    data: serde_json::Value,
) -> NewEvent {
    NewEvent {
        at: agent.clock.now(),
        service: Some(service.clone()),
        component: None,
        kind: "file".to_owned(),
        reason: reason.to_owned(),
        message,
        revision: None,
        data,
    }
}

async fn tell(agent: &Agent, event: NewEvent) {
    if let Err(error) = agent.registry.append_events(vec![event]).await {
        tracing::error!(error = %crate::error_chain(&error), "a file's change was not written down");
    }
}

/// Takes the file in and tells of it, whoever waits.
async fn take_in(
    agent: Arc<Agent>,
    by: String,
    push: Push,
    chunks: mpsc::Receiver<Bytes>,
) -> Result<Pushed, FileError> {
    let (service, path) = (push.service.clone(), push.path.clone());
    let (bytes, sha256) = (push.bytes, push.sha256);
    let pushed = agent.files.push(push, chunks).await?;
    let verb = if pushed.replaced { "replaced" } else { "made" };
    let message = format!("{service}:{path} {verb} by {by}: {bytes} bytes, {sha256}");
    let data = serde_json::json!({
        "path": path.to_string(), "bytes": bytes, "sha256": sha256.to_string(), "replaced": pushed.replaced, "by": by,
    });
    let event = event(&agent, &service, "pushed", message, data);
    tell(&agent, event).await;
    Ok(pushed)
}

async fn put_back(agent: Arc<Agent>, by: String, undo: Undo) -> Result<Undone, FileError> {
    let (service, path) = (undo.service.clone(), undo.path.clone());
    let undone = agent.files.undo(undo).await?;
    let (what, sha256) = match &undone.file {
        Some((entry, sha256)) => (
            format!("put back as it was: {} bytes, {sha256}", entry.bytes),
            Some(sha256.to_string()),
        ),
        None => ("removed, as it was before the push".to_owned(), None),
    };
    let message = format!("{service}:{path} {what}, by {by}");
    let data = serde_json::json!({ "path": path.to_string(), "sha256": sha256, "by": by });
    let event = event(&agent, &service, "push-undone", message, data);
    tell(&agent, event).await;
    Ok(undone)
}

/// Hands a client's chunks on until its end; whether the client came to it.
async fn hand_on(
    stream: &mut Streaming<v1::PushFileRequest>,
    to: mpsc::Sender<Bytes>,
) -> Result<(), Status> {
    use v1::push_file_request::Part;
    loop {
        let message = tokio::time::timeout(CHUNK_LIMIT, stream.message())
            .await
            .map_err(|_| status::bad_request("the file stopped in the middle"))??;
        let chunk = match message {
            None => return Ok(()),
            Some(v1::PushFileRequest {
                part: Some(Part::Chunk(chunk)),
            }) => chunk,
            Some(_) => {
                return Err(status::bad_request(
                    "after the header only chunks may follow",
                ));
            }
        };
        if chunk.len() > MAX_CHUNK_BYTES {
            return Err(status::bad_request("a chunk has more than 1 MiB"));
        }
        if to.send(chunk.into()).await.is_err() {
            // It was refused meanwhile, and its outcome says why.
            return Ok(());
        }
    }
}

fn entry(entry: Entry) -> v1::FileEntry {
    let modified_at = entry.modified_at();
    v1::FileEntry {
        path: entry.path,
        kind: entry.kind,
        bytes: entry.bytes,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        modified_at,
        links: entry.links,
        unnameable: entry.unnameable,
    }
}

fn require_request_id(id: &str) -> Result<(), Status> {
    if id.len() > MAX_REQUEST_ID_BYTES {
        return Err(status::bad_request("request_id has more than 64 bytes"));
    }
    Ok(())
}

/// A path as the audit has it, whatever a client sent for one.
fn shown(service: &str, path: &str) -> String {
    let all = format!("{service}:{path}");
    all.escape_debug().take(600).collect()
}

#[tonic::async_trait]
impl v1::files_server::Files for Files {
    async fn push(
        &self,
        request: Request<Streaming<v1::PushFileRequest>>,
    ) -> Result<Response<v1::PushFileResponse>, Status> {
        use v1::push_file_request::Part;
        let identity = caller(&request)?;
        let about = About::of(&request);
        let mut stream = request.into_inner();
        let first = tokio::time::timeout(CHUNK_LIMIT, stream.message())
            .await
            .map_err(|_| status::bad_request("a push begins with its header"))??;
        let Some(v1::PushFileRequest {
            part: Some(Part::Header(header)),
        }) = first
        else {
            return Err(status::bad_request("a push begins with its header"));
        };
        about.say(
            format!(
                "{} sha256:{}",
                shown(&header.service, &header.path),
                hex::encode(header.sha256.get(..32).unwrap_or_default())
            ),
            header
                .request_id
                .chars()
                .take(MAX_REQUEST_ID_BYTES)
                .collect::<String>(),
        );
        require_request_id(&header.request_id)?;
        let asked = self.asked(&identity, &header.service, &header.path).await?;
        let push = self.push_of(&asked, &header)?;
        let _place = self.place().await?;
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        // What is whole is put in its place and told of, also where the client goes away now.
        let taking = self.agent.work.spawn(take_in(
            Arc::clone(&self.agent),
            identity.subject.clone(),
            push,
            chunks,
        ));
        let handed = hand_on(&mut stream, sender).await;
        let taken = taking.await.map_err(|_| status::stopping())?;
        // A client's own fault is the better answer than the short file that follows from it.
        handed?;
        let pushed = taken.map_err(|error| status::file(&error))?;
        Ok(Response::new(v1::PushFileResponse {
            node: self.agent.config.node.to_string(),
            replaced: pushed.replaced,
            can_undo: pushed.can_undo,
            file: Some(entry(pushed.entry)),
        }))
    }

    type PullStream = BoxStream<'static, Result<v1::PullFileResponse, Status>>;

    async fn pull(
        &self,
        request: Request<v1::PullFileRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        use v1::pull_file_response::Part;
        let identity = caller(&request)?;
        let about = About::of(&request);
        let message = request.into_inner();
        let place = shown(&message.service, &message.path);
        let opened = async {
            let asked = self
                .asked(&identity, &message.service, &message.path)
                .await?;
            let permit = self.place().await?;
            let (sender, mut pieces) = mpsc::channel(CHUNKS_AHEAD);
            let pull = Pull {
                service: asked.service,
                path: asked.path,
                limit: self.agent.files.config().max_file,
            };
            let agent = Arc::clone(&self.agent);
            let reading = self.agent.work.spawn(async move {
                // It holds its place until the last byte has left.
                let _permit = permit;
                agent.files.pull(pull, sender).await
            });
            match pieces.recv().await {
                Some(Piece::Begin(facts)) => Ok((facts, pieces, reading)),
                _ => Err(match reading.await {
                    Ok(Err(error)) => status::file(&error),
                    _ => status::stopping(),
                }),
            }
        };
        let (facts, pieces, reading) = match opened.await {
            Ok(opened) => opened,
            Err(refusal) => {
                about.say(place, "");
                return Err(refusal);
            }
        };
        about.say(format!("{place} {}", facts.sha256), "");
        let header = v1::PullFileResponse {
            part: Some(Part::Header(v1::PullFileHeader {
                sha256: facts.sha256.as_bytes().to_vec(),
                file: Some(entry(facts.entry)),
            })),
        };
        let chunks = ReceiverStream::new(pieces).filter_map(|piece| async move {
            match piece {
                Piece::Bytes(bytes) => Some(Ok(v1::PullFileResponse {
                    part: Some(Part::Chunk(bytes)),
                })),
                Piece::Begin(_) => None,
            }
        });
        // The end says whether it was all.
        let end = futures_util::stream::once(async move {
            match reading.await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Err(status::file(&error))),
                Err(_) => Some(Err(status::stopping())),
            }
        })
        .filter_map(|end| async move { end });
        let begin = futures_util::stream::once(async move { Ok(header) });
        Ok(Response::new(begin.chain(chunks).chain(end).boxed()))
    }

    async fn list_files(
        &self,
        request: Request<v1::ListFilesRequest>,
    ) -> Result<Response<v1::ListFilesResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let message = request.into_inner();
        about.say(shown(&message.service, &message.path), "");
        let asked = self
            .asked(&identity, &message.service, &message.path)
            .await?;
        let _place = self.place().await?;
        let list = List {
            service: asked.service,
            path: asked.path,
            recursive: message.recursive,
        };
        let listing = self
            .agent
            .files
            .list(list)
            .await
            .map_err(|error| status::file(&error))?;
        Ok(Response::new(v1::ListFilesResponse {
            node: self.agent.config.node.to_string(),
            entries: listing.entries.into_iter().map(entry).collect(),
            truncated: listing.truncated,
            folder: listing.folder,
        }))
    }

    async fn undo_push(
        &self,
        request: Request<v1::UndoPushRequest>,
    ) -> Result<Response<v1::UndoPushResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let message = request.into_inner();
        let place = shown(&message.service, &message.path);
        let id: String = message
            .request_id
            .chars()
            .take(MAX_REQUEST_ID_BYTES)
            .collect();
        let undone = async {
            require_request_id(&message.request_id)?;
            let asked = self
                .asked(&identity, &message.service, &message.path)
                .await?;
            let _place = self.place().await?;
            let undo = Undo {
                service: asked.service,
                path: asked.path,
                force: message.force,
                keep: self.agent.files.config().keep,
            };
            // Once begun it is finished and told of, also where the client goes away.
            let by = identity.subject.clone();
            let work = self
                .agent
                .work
                .spawn(put_back(Arc::clone(&self.agent), by, undo));
            work.await
                .map_err(|_| status::stopping())?
                .map_err(|error| status::file(&error))
        };
        let undone: Undone = match undone.await {
            Ok(undone) => undone,
            Err(refusal) => {
                about.say(place, id);
                return Err(refusal);
            }
        };
        let (file, sha256) = undone.file.unzip();
        about.say(
            sha256.map_or_else(|| place.clone(), |sha256| format!("{place} {sha256}")),
            id,
        );
        Ok(Response::new(v1::UndoPushResponse {
            node: self.agent.config.node.to_string(),
            removed: file.is_none(),
            file: file.map(entry),
            sha256: sha256
                .map(|digest| digest.as_bytes().to_vec())
                .unwrap_or_default(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_a_number() {
        let of = |uid, gid| Some(Owner { uid, gid });
        assert_eq!(numbers(Some("1000:1001")), of(1000, 1001));
        assert_eq!(numbers(Some("1000")), of(1000, 0));
        assert_eq!(numbers(Some("www-data")), None);
        assert_eq!(numbers(Some("1000:www")), None);
        assert_eq!(numbers(None), None);
    }
}
