//! A local image registry, for the tests that pull.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::engine::{Engine, eventually};

/// A running registry without TLS, on 127.0.0.1 of the network of the thread that started it.
#[derive(Debug)]
pub struct Registry {
    address: SocketAddr,
    process: Child,
    storage: tempfile::TempDir,
}

impl Registry {
    /// Starts an empty registry in the calling thread's network (see [`Engine::enter`]).
    ///
    /// # Errors
    ///
    /// Where `docker-registry` is not installed or does not listen within 30 s.
    pub fn start() -> Result<Registry> {
        let storage = tempfile::tempdir()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let config = storage.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
                 delete: {{enabled: true}}\nhttp: {{addr: \"{address}\"}}\n",
                storage.path().display()
            ),
        )?;
        let process = begin(&config, address)?;
        Ok(Registry {
            address,
            process,
            storage,
        })
    }

    /// Ends it for a while; what it holds stays.
    ///
    /// # Errors
    ///
    /// Where it cannot be ended.
    pub fn away(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Starts it again, at the same address and with what it held.
    ///
    /// # Errors
    ///
    /// As [`Registry::start`].
    pub fn back(&mut self) -> Result<()> {
        self.process = begin(&self.storage.path().join("config.yml"), self.address)?;
        Ok(())
    }

    /// The reference of `path` (such as `busybox:v1`) in this registry.
    #[must_use]
    pub fn image(&self, path: &str) -> String {
        format!("{}/{path}", self.address)
    }

    /// Pushes a local image of the engine as `path`, and removes the name that this took from the engine.
    ///
    /// # Errors
    ///
    /// Where the engine refuses.
    pub fn push(&self, engine: &Engine, image: &str, path: &str) -> Result<String> {
        let name = self.image(path);
        engine.cli(&["tag", image, &name])?;
        engine.cli(&["push", &name])?;
        engine.cli(&["rmi", &name])?;
        Ok(name)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn begin(config: &Path, address: SocketAddr) -> Result<Child> {
    let mut process = Command::new("docker-registry")
        .arg("serve")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting docker-registry; tests/scripts/install-deps.sh installs it")?;
    let listens = eventually("the registry listens", Duration::from_secs(30), || {
        Ok(TcpStream::connect(address).ok())
    });
    if listens.is_err() {
        drop(process.kill());
        drop(process.wait());
    }
    listens.map(|_| process)
}

/// A port of 127.0.0.1 that nobody listens on in the calling thread's network.
///
/// # Errors
///
/// Where there is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}
