//! Which engine this machine has, where nobody said.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::config::{Engine, socket_path};

/// An engine, its socket, and how they were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineChoice {
    /// The engine.
    pub engine: Engine,
    /// Its socket.
    pub socket: PathBuf,
    /// Whether the socket is there now.
    pub present: bool,
}

/// A socket is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{socket}` is no Unix socket")]
pub struct SocketError {
    /// What was given.
    pub socket: String,
}

/// Takes what is asked for, else the first socket that is there, else podman's.
pub(super) fn choose(
    engine: Option<Engine>,
    socket: Option<&str>,
) -> Result<EngineChoice, SocketError> {
    let candidates = candidates(
        rustix::process::geteuid().is_root(),
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
        rustix::process::geteuid().as_raw(),
    );
    choose_from(engine, socket, &candidates, &|path| path.exists())
}

fn candidates(root: bool, runtime_dir: Option<PathBuf>, uid: u32) -> Vec<(Engine, PathBuf)> {
    let podman = if root {
        PathBuf::from("/run/podman/podman.sock")
    } else {
        runtime_dir
            .filter(|folder| folder.is_absolute())
            .unwrap_or_else(|| PathBuf::from(format!("/run/user/{uid}")))
            .join("podman/podman.sock")
    };
    vec![
        (Engine::Podman, podman),
        (Engine::Docker, PathBuf::from("/var/run/docker.sock")),
    ]
}

fn choose_from(
    engine: Option<Engine>,
    socket: Option<&str>,
    candidates: &[(Engine, PathBuf)],
    exists: &dyn Fn(&Path) -> bool,
) -> Result<EngineChoice, SocketError> {
    if let Some(text) = socket {
        let socket = socket_path(text).ok_or_else(|| SocketError {
            socket: text.to_owned(),
        })?;
        let engine = engine.unwrap_or(if text.contains("docker") {
            Engine::Docker
        } else {
            Engine::Podman
        });
        let present = exists(&socket);
        return Ok(EngineChoice {
            engine,
            socket,
            present,
        });
    }
    let mut fitting = candidates
        .iter()
        .filter(|(candidate, _)| engine.is_none_or(|engine| engine == *candidate));
    let found = fitting
        .clone()
        .find(|(_, socket)| exists(socket))
        .map(|found| (found, true));
    let ((engine, socket), present) = found
        .or_else(|| fitting.next().map(|first| (first, false)))
        .expect("each engine has a candidate");
    Ok(EngineChoice {
        engine: *engine,
        socket: socket.clone(),
        present,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(engine: Option<Engine>, socket: Option<&str>, there: &[&str]) -> (String, bool) {
        let candidates = candidates(false, Some("/run/user/7".into()), 7);
        let choice = choose_from(engine, socket, &candidates, &|path| {
            there.contains(&path.to_str().unwrap())
        })
        .unwrap();
        (
            format!("{} {}", choice.engine.as_str(), choice.socket.display()),
            choice.present,
        )
    }

    #[test]
    fn the_socket_that_is_there_is_taken() {
        let podman = "/run/user/7/podman/podman.sock";
        let docker = "/var/run/docker.sock";
        let says = |text: &str, present| (text.to_owned(), present);
        assert_eq!(
            pick(None, None, &[podman, docker]),
            says("podman /run/user/7/podman/podman.sock", true)
        );
        assert_eq!(
            pick(None, None, &[docker]),
            says("docker /var/run/docker.sock", true)
        );
        assert_eq!(
            pick(None, None, &[]),
            says("podman /run/user/7/podman/podman.sock", false)
        );
        assert_eq!(
            pick(Some(Engine::Docker), None, &[podman]),
            says("docker /var/run/docker.sock", false)
        );
        assert_eq!(
            pick(None, Some("unix:///tmp/x.sock"), &[]),
            says("podman /tmp/x.sock", false)
        );
        assert!(choose_from(None, Some("tcp://x"), &[], &|_| false).is_err());
    }
}
