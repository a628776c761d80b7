//! The two requests to an ssh-agent that signing needs: list the keys, and sign.
//!
//! Spoken by hand over the Unix socket (`draft-miller-ssh-agent`), since it is some fifty lines.
//! Replies are bounded to OpenSSH's own 256 KiB and have a deadline: two minutes for a signature,
//! because an agent may ask its user first (`ssh-add -c`), five seconds for the list.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ssh_key::{PublicKey, Signature};

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// OpenSSH's `AGENT_MAX_LEN`.
const MAX_REPLY_BYTES: u32 = 256 * 1024;
/// OpenSSH's `MAX_AGENT_IDENTITIES`.
const MAX_IDENTITIES: u32 = 2048;
const LIST_TIMEOUT: Duration = Duration::from_secs(5);
const SIGN_TIMEOUT: Duration = Duration::from_secs(120);

/// What went wrong between this process and the ssh-agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// `SSH_AUTH_SOCK` is not set.
    #[error("no ssh-agent is running here: SSH_AUTH_SOCK is not set")]
    NoSocket,
    /// The socket is there, but nobody answers, or too late.
    #[error("the ssh-agent at {} cannot be talked to", socket.display())]
    Io {
        /// The agent's socket.
        socket: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The agent said no: locked, the key is gone, or its user declined.
    #[error("the ssh-agent refused")]
    Refused,
    /// The answer is too long, or is not what the protocol says.
    #[error("the ssh-agent's answer makes no sense")]
    Malformed,
}

impl AgentError {
    /// The next thing to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoSocket => "start one: eval \"$(ssh-agent)\" && ssh-add".to_owned(),
            Self::Io { .. } => "is it still running? try `ssh-add -l`".to_owned(),
            Self::Refused => {
                "is the key still there, and the agent unlocked? try `ssh-add -l`".to_owned()
            }
            Self::Malformed => "does SSH_AUTH_SOCK name an ssh-agent's socket?".to_owned(),
        }
    }
}

/// The Ed25519 keys that the agent holds; keys of other kinds are left out.
pub(super) fn list(socket: &Path) -> Result<Vec<PublicKey>, AgentError> {
    let reply = exchange(socket, &[REQUEST_IDENTITIES], LIST_TIMEOUT)?;
    let mut rest = answer(&reply, IDENTITIES_ANSWER)?;
    let count = take_u32(&mut rest)?;
    let mut keys = Vec::new();
    for _ in 0..count.min(MAX_IDENTITIES) {
        let blob = take_string(&mut rest)?;
        let comment = take_string(&mut rest)?;
        // Certificates and kinds of keys that the library does not know are no error of the agent's.
        if let Ok(mut key) = PublicKey::from_bytes(blob)
            && key.key_data().ed25519().is_some()
        {
            key.set_comment(String::from_utf8_lossy(comment));
            keys.push(key);
        }
    }
    Ok(keys)
}

/// Has the agent sign `data` with `key`.
pub(super) fn sign(socket: &Path, key: &PublicKey, data: &[u8]) -> Result<Signature, AgentError> {
    let mut request = vec![SIGN_REQUEST];
    let blob = key.to_bytes().map_err(|_| AgentError::Malformed)?;
    put_string(&mut request, &blob)?;
    put_string(&mut request, data)?;
    request.extend_from_slice(&0u32.to_be_bytes());
    let reply = exchange(socket, &request, SIGN_TIMEOUT)?;
    let mut rest = answer(&reply, SIGN_RESPONSE)?;
    Signature::try_from(take_string(&mut rest)?).map_err(|_| AgentError::Malformed)
}

fn put_string(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), AgentError> {
    let length = u32::try_from(bytes.len()).map_err(|_| AgentError::Malformed)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, AgentError> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or(AgentError::Malformed)?;
    *rest = after;
    Ok(u32::from_be_bytes(*number))
}

fn take_string<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], AgentError> {
    let length = take_u32(rest)? as usize;
    let (string, after) = rest.split_at_checked(length).ok_or(AgentError::Malformed)?;
    *rest = after;
    Ok(string)
}

fn answer(reply: &[u8], expected: u8) -> Result<&[u8], AgentError> {
    match reply.split_first() {
        Some((&kind, rest)) if kind == expected => Ok(rest),
        Some((&FAILURE, _)) => Err(AgentError::Refused),
        _ => Err(AgentError::Malformed),
    }
}

fn exchange(socket: &Path, request: &[u8], timeout: Duration) -> Result<Vec<u8>, AgentError> {
    let failed = |source| AgentError::Io {
        socket: socket.to_owned(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    stream.set_read_timeout(Some(timeout)).map_err(failed)?;
    stream
        .set_write_timeout(Some(LIST_TIMEOUT))
        .map_err(failed)?;
    let length = u32::try_from(request.len()).map_err(|_| AgentError::Malformed)?;
    stream.write_all(&length.to_be_bytes()).map_err(failed)?;
    stream.write_all(request).map_err(failed)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).map_err(failed)?;
    let length = u32::from_be_bytes(length);
    if length == 0 || length > MAX_REPLY_BYTES {
        return Err(AgentError::Malformed);
    }
    let mut reply = vec![0; length as usize];
    stream.read_exact(&mut reply).map_err(failed)?;
    Ok(reply)
}
