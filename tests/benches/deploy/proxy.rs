//! A socket in front of the engine's that counts the calls that pass.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

/// Counts requests by method and path; ends with the process.
pub(crate) struct Proxy {
    socket: PathBuf,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// Listens at `socket` and passes everything on to `engine`.
    pub(crate) fn start(socket: &Path, engine: &Path) -> Proxy {
        let listener = UnixListener::bind(socket).unwrap();
        std::fs::set_permissions(socket, PermissionsExt::from_mode(0o666)).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (engine, counted) = (engine.to_owned(), Arc::clone(&calls));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (client, engine) = (client.unwrap(), UnixStream::connect(&engine).unwrap());
                let back = (engine.try_clone().unwrap(), client.try_clone().unwrap());
                let counted = Arc::clone(&counted);
                thread::spawn(move || pass(client, engine, Some(&counted)));
                thread::spawn(move || pass(back.0, back.1, None));
            }
        });
        Proxy {
            socket: socket.to_owned(),
            calls,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// The calls since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, calls: Option<&Mutex<Vec<String>>>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        // A request's head comes in one write, and bodies here are JSON.
        if let Some(calls) = calls
            && let Some(line) = buffer[..count].split(|byte| *byte == b'\r').next()
            && line.ends_with(b" HTTP/1.1")
        {
            let line = String::from_utf8_lossy(&line[..line.len() - 9]).into_owned();
            calls.lock().unwrap().push(line);
        }
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Write));
}
