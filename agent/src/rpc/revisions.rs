//! `mcp.v1.Revisions`: signed commits come in, and go out to clones.

use std::fs::File;
use std::io::{self, BufReader, Seek as _, Write};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mcp_proto::{convert, v1};
use mcp_spec::name::{ComponentName, NameError, ServiceName};
use mcp_spec::plan::Options;
use mcp_spec::revision::CommitId;
use sha2::{Digest as _, Sha256};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::authenticate::{About, caller};
use super::status::{self, Failure};
use crate::Agent;
use crate::auth::Identity;
use crate::auth::requests::Signed;
use crate::planning::Wish;
use crate::registry::{RevisionFilter, RevisionRow};
use crate::revisions::{Accepted, Bound, Limits};
use crate::source::Way;

/// Longest request id, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 64;
/// Largest chunk of a pack, either way.
const MAX_CHUNK_BYTES: usize = 1024 * 1024;
/// Longest silence of a client in the middle of a pack.
const CHUNK_LIMIT: Duration = Duration::from_secs(60);
/// Packs that are taken in at a time: each may need 256 MiB of disk.
const PUSHES: usize = 4;
/// Most revisions in one answer, and how many without a word.
const MAX_LISTED: u32 = 1000;
const LISTED: u32 = 50;
/// Most commits that a clone says it has.
const MAX_HAVE: usize = 64;
/// Chunks of a pack on their way out.
const CHUNKS_AHEAD: usize = 4;

/// The service.
#[derive(Debug)]
pub(super) struct Revisions {
    agent: Arc<Agent>,
    pushes: Arc<Semaphore>,
}

impl Revisions {
    /// What the head asks for and nobody has deployed yet. A plan that cannot be made is no failure of
    /// the push.
    async fn pending(&self, identity: &Identity) -> Option<v1::Plan> {
        let targets = identity.visible(Vec::new()).ok()?;
        let wish = Wish {
            targets: (!targets.is_empty()).then_some(targets),
            revision: None,
            options: Options::default(),
            draft: Vec::new(),
            auto: false,
            resolve_tags: false,
        };
        match self.agent.planner.deploy(&wish).await {
            Ok(planned) => Some(convert::plan(&planned.plan, self.agent.revisions.head())),
            Err(error) => {
                tracing::debug!(error = %crate::error_chain(&error), "no plan of what is pending");
                None
            }
        }
    }

    pub(super) fn new(agent: Arc<Agent>) -> Self {
        Self {
            agent,
            pushes: Arc::new(Semaphore::new(PUSHES)),
        }
    }
}

/// What a push says before its pack.
struct Header {
    previous: Option<CommitId>,
    revision: CommitId,
    pack_bytes: u64,
    /// What the pack's bytes have to hash to, where the header says so.
    pack_sha256: Option<[u8; 32]>,
}

impl Header {
    fn read(header: &v1::PushHeader) -> Result<Self, Status> {
        if header.request_id.len() > MAX_REQUEST_ID_BYTES {
            return Err(status::bad_request("request_id has more than 64 bytes"));
        }
        let limit = Limits::default().pack_bytes;
        if header.pack_bytes > limit {
            return Err(Failure::new(
                Code::ResourceExhausted,
                Bound::PackBytes.name(),
                format!(
                    "a pack of {} bytes exceeds the limit of {limit}",
                    header.pack_bytes
                ),
            )
            .hint("keep large files out of the repository")
            .into());
        }
        Ok(Self {
            previous: optional_commit("previous", &header.previous)?,
            revision: commit("revision", &header.revision)?,
            pack_bytes: header.pack_bytes,
            pack_sha256: match header.pack_sha256.as_slice() {
                [] => None,
                bytes => Some(
                    bytes
                        .try_into()
                        .map_err(|_| status::bad_request("pack_sha256 has other than 32 bytes"))?,
                ),
            },
        })
    }
}

fn commit(field: &str, text: &str) -> Result<CommitId, Status> {
    text.parse()
        .map_err(|error| status::bad_request(format!("{field}: {error}")))
}

fn optional_commit(field: &str, text: &str) -> Result<Option<CommitId>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    commit(field, text).map(Some)
}

/// Takes the chunks of a pack into a file without a name, which goes with the process.
async fn receive_pack(
    agent: &Agent,
    stream: &mut Streaming<v1::PushPackRequest>,
    header: &Header,
) -> Result<File, Status> {
    let length = header.pack_bytes;
    let data_dir = agent.config.data_dir.clone();
    let mut file = blocking(move || tempfile::tempfile_in(data_dir))
        .await?
        .map_err(|error| status::disk("make room for the pack", &error))?;
    let mut received: u64 = 0;
    let mut hash = Sha256::new();
    loop {
        let message = tokio::time::timeout(CHUNK_LIMIT, stream.message())
            .await
            .map_err(|_| status::bad_request("the pack stopped in the middle"))??;
        let Some(message) = message else { break };
        let Some(v1::push_pack_request::Part::Chunk(chunk)) = message.part else {
            return Err(status::bad_request(
                "after the header only chunks may follow",
            ));
        };
        if chunk.len() > MAX_CHUNK_BYTES {
            return Err(status::bad_request("a chunk has more than 1 MiB"));
        }
        received = received.saturating_add(chunk.len() as u64);
        if received > length {
            return Err(status::bad_request(
                "the pack is longer than its header says",
            ));
        }
        let hashed = blocking(move || {
            hash.update(&chunk);
            (file.write_all(&chunk).map(|()| file), hash)
        });
        let (written, rest) = hashed.await?;
        hash = rest;
        file = written.map_err(|error| status::disk("write the pack", &error))?;
    }
    if received < length {
        return Err(status::bad_request(
            "the pack is shorter than its header says",
        ));
    }
    let hash: [u8; 32] = hash.finalize().into();
    if header.pack_sha256.is_some_and(|told| told != hash) {
        return Err(status::other_pack());
    }
    file.rewind()
        .map_err(|error| status::disk("read the pack", &error))?;
    Ok(file)
}

/// Runs disk work off the async threads; a panic in it stays a panic.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(died) if died.is_panic() => std::panic::resume_unwind(died.into_panic()),
        Err(_) => Err(status::stopping()),
    }
}

/// Takes a pack through the door, and writes down what follows.
async fn accept(
    agent: Arc<Agent>,
    identity: Identity,
    header: Header,
    pack: File,
) -> Result<Accepted, Status> {
    let store = Arc::clone(&agent);
    // Owners and denied keys are read for each receipt: a key denied now counts from now on.
    let read = move || {
        let roots = || crate::trust_roots(&store.config);
        store.revisions.read_trust(roots)
    };
    blocking(read)
        .await?
        .map_err(|error| status::trust(&error))?;
    let store = Arc::clone(&agent);
    let accepted = blocking(move || {
        store.revisions.receive(
            BufReader::with_capacity(64 * 1024, pack),
            header.previous,
            header.revision,
            &store.config.node,
            &Limits::default(),
            Timestamp::now(),
        )
    })
    .await?
    .map_err(|error| {
        tracing::warn!(by = identity.subject, reason = error.name(), %error, "push refused");
        status::receive(&error, agent.revisions.head())
    })?;
    if !accepted.new_commits.is_empty() {
        agent.arrived(Way::Push, &identity.subject, &accepted).await;
    }
    Ok(accepted)
}

#[tonic::async_trait]
impl v1::revisions_server::Revisions for Revisions {
    async fn negotiate(
        &self,
        request: Request<v1::NegotiateRequest>,
    ) -> Result<Response<v1::NegotiateResponse>, Status> {
        let want = optional_commit("want", &request.into_inner().want)?;
        let revisions = &self.agent.revisions;
        Ok(Response::new(v1::NegotiateResponse {
            node: self.agent.config.node.to_string(),
            head: shown(revisions.head()),
            known: want.is_some_and(|want| revisions.is_accepted(want)),
        }))
    }

    async fn push_pack(
        &self,
        request: Request<Streaming<v1::PushPackRequest>>,
    ) -> Result<Response<v1::PushPackResponse>, Status> {
        let identity = caller(&request)?;
        let about = About::of(&request);
        let signed = request.extensions().get::<Signed>().is_some();
        let mut stream = request.into_inner();
        let _place = self
            .pushes
            .acquire()
            .await
            .map_err(|_| status::stopping())?;
        let Some(v1::PushPackRequest {
            part: Some(v1::push_pack_request::Part::Header(header)),
        }) = stream.message().await?
        else {
            return Err(status::bad_request("a push begins with its header"));
        };
        about.say(&header.revision, &header.request_id);
        let header = Header::read(&header)?;
        if signed && header.pack_sha256.is_none() {
            return Err(status::bad_request(
                "a signed push has the digest of its pack",
            ));
        }
        let pack = receive_pack(&self.agent, &mut stream, &header).await?;
        // A client that goes away now changes nothing: what is accepted is also written down.
        let accepting = self.agent.work.spawn(accept(
            Arc::clone(&self.agent),
            identity.clone(),
            header,
            pack,
        ));
        let accepted = accepting.await.map_err(|_| status::stopping())??;
        Ok(Response::new(v1::PushPackResponse {
            node: self.agent.config.node.to_string(),
            previous: shown(accepted.previous),
            revision: accepted.head.to_string(),
            new_commits: u32::try_from(accepted.new_commits.len()).unwrap_or(u32::MAX),
            pending: self.pending(&identity).await,
        }))
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Result<Response<v1::ListRevisionsResponse>, Status> {
        let identity = caller(&request)?;
        let v1::ListRevisionsRequest { target, limit } = request.into_inner();
        let limit = match limit {
            0 => LISTED,
            limit => limit.min(MAX_LISTED),
        };
        let (service, component) = match target {
            Some(target) => target_names(&target)?,
            None => (None, None),
        };
        if let Some(service) = &service {
            identity.require_service(service)?;
        }
        let rows = self
            .agent
            .registry
            .revisions(RevisionFilter {
                service,
                component,
                limit,
            })
            .await
            .map_err(|error| status::registry(&error))?;
        let commits: Vec<CommitId> = rows.iter().map(|row| row.commit).collect();
        let store = Arc::clone(&self.agent);
        let authors = blocking(move || store.revisions.authors(&commits))
            .await?
            .map_err(|error| status::read(&error))?;
        Ok(Response::new(v1::ListRevisionsResponse {
            revisions: rows
                .into_iter()
                .zip(authors)
                .map(|(row, author)| revision(row, author.unwrap_or_default()))
                .collect(),
        }))
    }

    type PullPackStream = ReceiverStream<Result<v1::PullPackResponse, Status>>;

    async fn pull_pack(
        &self,
        request: Request<v1::PullPackRequest>,
    ) -> Result<Response<Self::PullPackStream>, Status> {
        let have = request.into_inner().have;
        if have.len() > MAX_HAVE {
            return Err(status::bad_request("have has more than 64 commits"));
        }
        let revisions = &self.agent.revisions;
        let have = have
            .iter()
            .map(|text| commit("have", text))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .filter(|have| revisions.is_accepted(*have))
            // The one that leaves least to send.
            .min_by_key(|have| {
                revisions
                    .head()
                    .map_or(usize::MAX, |head| revisions.distance(*have, head))
            });
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        let agent = Arc::clone(&self.agent);
        self.agent.work.spawn_blocking(move || {
            let mut chunks = Chunks {
                sender,
                filled: Vec::with_capacity(MAX_CHUNK_BYTES / 2),
            };
            let written = agent.revisions.pack_since(have, &mut chunks);
            let last = match written {
                // The head comes last: only now is it certain which one the pack leads to.
                Ok(head) => chunks.flush().map(|()| {
                    Ok(v1::PullPackResponse {
                        head: shown(head.or(have)),
                        chunk: Vec::new(),
                    })
                }),
                Err(error) => Ok(Err(status::read(&error))),
            };
            if let Ok(last) = last {
                // A client that went away needs no end.
                let _ = chunks.sender.blocking_send(last);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// The pack on its way to the client, in chunks; waits where the client is slower.
struct Chunks {
    sender: mpsc::Sender<Result<v1::PullPackResponse, Status>>,
    filled: Vec<u8>,
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = MAX_CHUNK_BYTES / 2 - self.filled.len();
        let taken = bytes.len().min(room);
        self.filled.extend_from_slice(&bytes[..taken]);
        if self.filled.len() == MAX_CHUNK_BYTES / 2 {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filled.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.filled, Vec::with_capacity(MAX_CHUNK_BYTES / 2));
        self.sender
            .blocking_send(Ok(v1::PullPackResponse {
                head: String::new(),
                chunk,
            }))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn shown(commit: Option<CommitId>) -> String {
    commit.map(|commit| commit.to_string()).unwrap_or_default()
}

/// The names that a target is made of.
fn target_names(
    target: &v1::Target,
) -> Result<(Option<ServiceName>, Option<ComponentName>), Status> {
    let bad = |error: NameError| status::bad_request(format!("target: {error}"));
    let service = target.service.parse().map_err(bad)?;
    let component = match target.component.as_str() {
        "" => None,
        component => Some(component.parse().map_err(bad)?),
    };
    Ok((Some(service), component))
}

fn revision(row: RevisionRow, author: String) -> v1::Revision {
    v1::Revision {
        revision: row.commit.to_string(),
        subject: row.subject,
        signer: row.signer,
        author,
        authored_at: row.authored_at.to_string(),
        received_at: row.received_at.to_string(),
        source: row.source.as_str().to_owned(),
        received_by: row.received_by,
        parents: row.parents.iter().map(ToString::to_string).collect(),
    }
}
