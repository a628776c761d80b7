//! A workstation of its own for each test of the command as a process.

#![allow(dead_code, reason = "each test program takes what it needs")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// A workstation of its own: home, settings and repository in a temporary folder.
pub(crate) struct Workstation {
    pub(crate) folder: tempfile::TempDir,
}

/// What a command said, with the folder's name replaced.
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Workstation {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// One with a repository, made by `mcp init`.
    pub(crate) fn with_repository() -> Self {
        let this = Self::new();
        let said = this.mcp(&["init", "--name", "alice"]);
        assert_eq!(said.code, 0, "{}", said.err);
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn repo(&self) -> PathBuf {
        self.path("config/mcp")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mcp"));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("USER", "alice")
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("XDG_STATE_HOME", self.path("state"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn said(&self, output: &Output) -> Said {
        let folder = self.folder.path().display().to_string();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&folder, "HOME");
        Said {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    pub(crate) fn mcp(&self, args: &[&str]) -> Said {
        self.said(&self.command(args).output().unwrap())
    }

    pub(crate) fn define(&self, name: &str, text: &str) {
        let folder = self.repo().join("services");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.toml")), text).unwrap();
    }

    pub(crate) fn git(&self, args: &[&str]) -> String {
        let output = Command::new("git")
            .arg("-C")
            .arg(self.repo())
            .args(args)
            .env("HOME", self.folder.path())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

pub(crate) const SHOP: &str = "\
name = \"shop\"
node = \"rift\"

[[components]]
name  = \"web\"
image = \"registry.example.net:5000/shop:v1\"
";

/// A self-signed certificate, which is a CA of its own.
pub(crate) const CA: &str = include_str!("../ca.pem");

pub(crate) fn node_add(workstation: &Workstation, name: &str, address: &str) -> Said {
    let ca = workstation.path("ca.pem");
    std::fs::write(&ca, CA).unwrap();
    workstation.mcp(&["node", "add", name, address, "--ca", "ca.pem"])
}

pub(crate) fn login(workstation: &Workstation) {
    use std::io::Write as _;
    let mut child = workstation
        .command(&["login", "--token-stdin"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"header.e30.signature\n")
        .unwrap();
    assert!(child.wait().unwrap().success());
}
