//! Work on files, here or from within the engine's user namespace.
//!
//! An engine without root gives its containers subordinate ids of its user. Only a process in its namespace reads what
//! is theirs, and gives them what is new; a process with several threads cannot enter one (setns(2)). So the agent sends a second one
//! of its own program, `mcp-agent files PID`: the work as a line of JSON on its standard input, then the bytes of a push; on its standard
//! output frames with what a pull reads, and the end. It ends with the agent: its input is short then, and nothing is put in place.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::os::fd::AsFd as _;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::error::FileError;
use super::handle::Places;
use super::intents;
use super::list::{self, List, Listing};
use super::pull::{self, Facts, Outlet, Pull};
use super::push::{self, Push, Pushed};
use super::undo::{self, Undo, Undone};

/// Largest line that says what is to be done: paths, and a few numbers.
const MAX_ERRAND_BYTES: u64 = 64 * 1024;
/// Largest frame: a listing of ten thousand entries.
const MAX_FRAME_BYTES: usize = 8 * 1024 * 1024;
/// Bytes that are passed on at a time.
const CHUNK_BYTES: usize = 256 * 1024;

const BEGIN: u8 = b'B';
const DATA: u8 = b'D';
const END: u8 = b'E';

/// What is to be done.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Work {
    Push(Push),
    Pull(Pull),
    List(List),
    Undo(Undo),
    Sweep,
}

/// What was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Done {
    Pushed(Pushed),
    Pulled,
    Listed(Listing),
    Undone(Undone),
    Swept,
}

#[derive(Debug, Serialize, Deserialize)]
struct Errand {
    places: Places,
    work: Work,
}

/// Does the work in this process. Blocking.
///
/// # Errors
///
/// [`FileError`].
pub(crate) fn here(
    places: &Places,
    work: &Work,
    input: &mut dyn Read,
    to: &mut dyn Outlet,
) -> Result<Done, FileError> {
    match work {
        Work::Push(push) => push::run(places, push, input).map(Done::Pushed),
        Work::Pull(pull) => pull::run(places, pull, to).map(|()| Done::Pulled),
        Work::List(list) => list::run(places, list).map(Done::Listed),
        Work::Undo(undo) => undo::run(places, undo).map(Done::Undone),
        Work::Sweep => intents::sweep(places).map(|()| Done::Swept),
    }
}

/// Has the work done in the user namespace of a process. Blocking.
///
/// # Errors
///
/// [`FileError`].
pub(crate) fn inside(
    pid: u32,
    places: &Places,
    work: Work,
    input: &mut dyn Read,
    to: &mut dyn Outlet,
) -> Result<Done, FileError> {
    let failed = |error: io::Error| FileError::Namespace {
        why: format!("cannot run `mcp-agent files`: {error}"),
    };
    let has_input = matches!(work, Work::Push(_));
    let errand = Errand {
        places: places.clone(),
        work,
    };
    // The program that this process runs, whatever stands at its path by now.
    let mut process = Command::new("/proc/self/exe")
        .arg("files")
        .arg(pid.to_string())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = process.stdin.take() {
        // One that has ended already says why.
        drop(say(&mut stdin, &errand, has_input.then_some(input)));
    }
    let mut end = None;
    if let Some(stdout) = process.stdout.take() {
        end = listen(BufReader::with_capacity(CHUNK_BYTES, stdout), to);
    }
    let mut said = String::new();
    if let Some(stderr) = process.stderr.take() {
        drop(stderr.take(MAX_ERRAND_BYTES).read_to_string(&mut said));
    }
    let status = process.wait().map_err(failed)?;
    end.unwrap_or_else(|| {
        Err(FileError::Namespace {
            why: match said.trim() {
                "" => format!("`mcp-agent files` ended with {status}"),
                said => said.to_owned(),
            },
        })
    })
}

fn say(to: &mut dyn Write, errand: &Errand, input: Option<&mut dyn Read>) -> io::Result<()> {
    let mut line = serde_json::to_vec(errand)?;
    line.push(b'\n');
    to.write_all(&line)?;
    let Some(input) = input else { return Ok(()) };
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match input.read(&mut chunk)? {
            0 => return to.flush(),
            read => to.write_all(&chunk[..read])?,
        }
    }
}

/// Passes frames on; gives the end, where there is one.
fn listen(mut from: impl Read, to: &mut dyn Outlet) -> Option<Result<Done, FileError>> {
    loop {
        let mut head = [0; 5];
        from.read_exact(&mut head).ok()?;
        let [tag, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_FRAME_BYTES {
            return None;
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).ok()?;
        match tag {
            // Whoever asked went away: the process finds its output closed.
            BEGIN => to.begin(serde_json::from_slice(&payload).ok()?).ok()?,
            DATA => to.bytes(&payload).ok()?,
            END => return serde_json::from_slice(&payload).ok(),
            _ => return None,
        }
    }
}

/// Frames on standard output.
struct Frames<W>(W);

impl<W: Write> Frames<W> {
    fn frame(&mut self, tag: u8, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        self.0.write_all(&[tag])?;
        self.0.write_all(&length.to_be_bytes())?;
        self.0.write_all(payload)
    }
}

impl<W: Write> Outlet for Frames<W> {
    fn begin(&mut self, facts: Facts) -> io::Result<()> {
        self.frame(BEGIN, &serde_json::to_vec(&facts)?)
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.frame(DATA, bytes)
    }
}

/// Why an errand could not be run.
#[derive(Debug, Error)]
pub enum ErrandError {
    /// What came on standard input is no errand.
    #[error("this is run by the agent itself, and standard input holds no errand")]
    NoErrand,
    /// The namespace cannot be entered.
    #[error("cannot enter the engine's user namespace (process {pid})")]
    Enter {
        /// The process that is in it.
        pid: u32,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Nobody listens any more.
    #[error("cannot answer")]
    Answer(#[source] io::Error),
}

/// Runs the errand on `input` in the user namespace of a process. To be called by a process of one thread.
///
/// # Errors
///
/// [`ErrandError`]; a failure of the work itself is an answer.
pub fn run(pid: u32, input: impl Read, output: impl Write) -> Result<(), ErrandError> {
    let mut input = BufReader::with_capacity(CHUNK_BYTES, input);
    let mut line = Vec::new();
    (&mut input)
        .take(MAX_ERRAND_BYTES)
        .read_until(b'\n', &mut line)
        .map_err(|_| ErrandError::NoErrand)?;
    let errand: Errand = serde_json::from_slice(&line).map_err(|_| ErrandError::NoErrand)?;
    let entered = |source: io::Error| ErrandError::Enter { pid, source };
    let namespace = File::open(format!("/proc/{pid}/ns/user")).map_err(entered)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))
        .map_err(|errno| entered(errno.into()))?;
    let mut frames = Frames(output);
    let done = here(&errand.places, &errand.work, &mut input, &mut frames);
    let answer = serde_json::to_vec(&done).map_err(|error| ErrandError::Answer(error.into()))?;
    frames
        .frame(END, &answer)
        .and_then(|()| frames.0.flush())
        .map_err(ErrandError::Answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_errand_is_refused() {
        for nonsense in ["", "\n", "{}\n", "no line"] {
            let ran = run(1, nonsense.as_bytes(), Vec::new());
            assert!(matches!(ran, Err(ErrandError::NoErrand)));
        }
    }
}
