//! Files on their way to and from nodes: in chunks, with the digest told before the bytes.

use std::fs::File;
use std::io::{self, Read, Write};

use mcp_proto::v1;
use mcp_proto::v1::files_client::FilesClient;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

use super::{MAX_ANSWER_BYTES, NodeClient, REQUEST_TIME};
use crate::error::Failure;

/// Bytes of a chunk: an agent takes 1 MiB.
const CHUNK_BYTES: usize = 512 * 1024;

/// Chunks that are read ahead of the line.
const CHUNKS_AHEAD: usize = 4;

/// The digest and the length of what a file holds.
///
/// # Errors
///
/// What the disk said.
pub(crate) fn digest(file: &mut File) -> io::Result<([u8; 32], u64)> {
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok((hash.finalize().into(), bytes)),
            Ok(read) => {
                hash.update(&chunk[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads a file into messages, as far as its header says.
fn send(
    mut file: File,
    bytes: u64,
    to: &mpsc::Sender<v1::PushFileRequest>,
    moved: &(dyn Fn(u64) + Sync),
) -> io::Result<()> {
    use v1::push_file_request::Part;
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        let mut chunk = vec![0; most];
        let read = file.read(&mut chunk)?;
        if read == 0 {
            // It became shorter: the agent refuses what is not what was signed.
            break;
        }
        chunk.truncate(read);
        left -= read as u64;
        let message = v1::PushFileRequest {
            part: Some(Part::Chunk(chunk)),
        };
        if to.blocking_send(message).is_err() {
            break;
        }
        moved(read as u64);
    }
    Ok(())
}

impl NodeClient {
    /// Pushes a file, whose digest and length `header` tells.
    pub(crate) async fn push_file(
        &self,
        header: v1::PushFileHeader,
        file: File,
        moved: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<v1::PushFileResponse, Failure> {
        let bytes = header.bytes;
        let first = v1::PushFileRequest {
            part: Some(v1::push_file_request::Part::Header(header)),
        };
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let reading = tokio::task::spawn_blocking(move || send(file, bytes, &sender, &moved));
        let parts = tokio_stream::once(first.clone()).chain(ReceiverStream::new(chunks));
        let request = self
            .signatures
            .request(&self.name, "/mcp.v1.Files/Push", &first, parts)
            .await?;
        let mut client = FilesClient::with_interceptor(self.channel.clone(), self.bearer.clone());
        // A large file takes what it takes: the connection is watched, and the agent watches for silence.
        let pushed = client.push(request).await;
        let read = reading.await;
        if let Ok(Err(error)) = read {
            return Err(Failure::failed("the file cannot be read to its end").because(&error));
        }
        pushed
            .map(tonic::Response::into_inner)
            .map_err(|status| self.failure(&status))
    }

    /// Pulls a file into `to`; gives what was told of it, once all of it has arrived as told.
    pub(crate) async fn pull_file(
        &self,
        message: v1::PullFileRequest,
        to: &mut File,
        begun: impl FnOnce(u64),
        moved: impl Fn(u64),
    ) -> Result<(v1::FileEntry, [u8; 32]), Failure> {
        use v1::pull_file_response::Part;
        let request = self
            .signatures
            .request(&self.name, "/mcp.v1.Files/Pull", &message, message.clone())
            .await?;
        let mut client = FilesClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES);
        let mut stream = client
            .pull(request)
            .await
            .map_err(|status| self.failure(&status))?
            .into_inner();
        let odd = || {
            Failure::failed(format!(
                "what {} sent is not what it said it would send",
                self.name
            ))
            .hint("try again; nothing was written")
        };
        let mut next = async || {
            let part = stream
                .message()
                .await
                .map_err(|status| self.failure(&status))?;
            Ok::<_, Failure>(part.and_then(|message| message.part))
        };
        let Some(Part::Header(header)) = next().await? else {
            return Err(odd());
        };
        let entry = header.file.unwrap_or_default();
        let told: [u8; 32] = header.sha256.try_into().map_err(|_| odd())?;
        begun(entry.bytes);
        let mut hash = Sha256::new();
        let mut received: u64 = 0;
        while let Some(part) = next().await? {
            let Part::Chunk(chunk) = part else {
                return Err(odd());
            };
            received = received.saturating_add(chunk.len() as u64);
            if received > entry.bytes {
                return Err(odd());
            }
            hash.update(&chunk);
            // Chunks are small, and whoever waits here waits for this disk anyway.
            to.write_all(&chunk)
                .map_err(|error| Failure::failed("the file cannot be written").because(&error))?;
            moved(chunk.len() as u64);
        }
        let found: [u8; 32] = hash.finalize().into();
        if received != entry.bytes || found != told {
            return Err(odd());
        }
        Ok((entry, told))
    }

    /// Lists a folder of a service.
    pub(crate) async fn list_files(
        &self,
        message: v1::ListFilesRequest,
    ) -> Result<v1::ListFilesResponse, Failure> {
        let request = self
            .signatures
            .request(
                &self.name,
                "/mcp.v1.Files/ListFiles",
                &message,
                message.clone(),
            )
            .await?;
        let mut client = FilesClient::with_interceptor(self.channel.clone(), self.bearer.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES);
        self.within(REQUEST_TIME, client.list_files(request)).await
    }

    /// Puts back what a push replaced.
    pub(crate) async fn undo_push(
        &self,
        message: v1::UndoPushRequest,
    ) -> Result<v1::UndoPushResponse, Failure> {
        let request = self
            .signatures
            .request(
                &self.name,
                "/mcp.v1.Files/UndoPush",
                &message,
                message.clone(),
            )
            .await?;
        let mut client = FilesClient::with_interceptor(self.channel.clone(), self.bearer.clone());
        client
            .undo_push(request)
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| self.failure(&status))
    }
}
