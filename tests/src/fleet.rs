//! A fleet as an operator has it: a workstation with its repository, and agents on engines.
//!
//! The workstation is a home directory of its own, so that no test sees or touches the git, SSH or `mcp`
//! configuration of whoever runs it. Everything is done through the real binaries.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::binaries::binaries;
use crate::engine::{Engine, Lane, eventually, run};
use crate::registry::free_port;

/// How long one `mcp` command may take; far above what any needs, so that only a hang meets it.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// What a command answered.
#[derive(Debug)]
pub struct Output {
    /// The command as it was typed, for messages.
    pub command: String,
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// The standard output as one JSON document.
    ///
    /// # Panics
    ///
    /// Where it is none; the message shows the whole answer.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}) from {self}"))
    }

    /// The standard output as one JSON document a line.
    ///
    /// # Panics
    ///
    /// Where a line is none.
    #[must_use]
    #[track_caller]
    pub fn json_lines(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| {
                serde_json::from_str(line)
                    .unwrap_or_else(|error| panic!("no JSON ({error}) from {self}"))
            })
            .collect()
    }

    /// Itself, when the exit code is the one expected.
    ///
    /// # Panics
    ///
    /// Where it is another; the message shows the whole answer.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "most callers only want the check"
    )]
    pub fn exits(self, code: i32) -> Output {
        assert!(self.code == Some(code), "expected exit {code} from {self}");
        self
    }

    /// Panics unless the exit code is 0; gives itself back.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "most callers only want the check"
    )]
    pub fn ok(self) -> Output {
        self.exits(0)
    }

    /// Panics unless standard error has `text`; gives itself back.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "most callers only want the check"
    )]
    pub fn says(self, text: &str) -> Output {
        assert!(
            self.stderr.contains(text),
            "expected {text:?} on standard error of {self}"
        );
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "`{}` (exit {:?})\n--- stdout\n{}\n--- stderr\n{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}

/// One agent and what it owns.
#[derive(Debug)]
pub struct Node {
    name: String,
    engine: &'static Engine,
    dir: PathBuf,
    port: u16,
    process: Option<Child>,
}

impl Node {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The engine that its containers run on.
    #[must_use]
    pub fn engine(&self) -> &'static Engine {
        self.engine
    }

    /// Its folder, which holds the others and can be reached by the engine's user.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// What stands for `/srv` on this node.
    #[must_use]
    pub fn services_dir(&self) -> PathBuf {
        self.dir.join("srv")
    }

    /// The folders in memory where its secrets lie opened, as far as they are there.
    #[must_use]
    pub fn memory(&self) -> Vec<PathBuf> {
        let own = mcp_spec::image::Digest::of(self.data_dir().as_os_str().as_encoded_bytes());
        let own = own.hex()[..16].to_owned();
        let shared = std::fs::read_dir("/dev/shm").into_iter().flatten();
        let roots = shared
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().starts_with("/dev/shm/mcp-"));
        roots
            .chain(std::iter::once(PathBuf::from("/run/mcp")))
            .map(|root| root.join(&own))
            .filter(|folder| folder.is_dir())
            .collect()
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.data_dir().join("agent.toml")
    }

    /// What the agent wrote to standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }

    /// The process id of the running agent.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Runs `mcp-agent` with arguments, as the engine's user.
    ///
    /// # Errors
    ///
    /// Where it cannot be started.
    pub fn agent(&self, args: &[&str]) -> Result<Output> {
        let mut command = self.engine.command_as_user(self.dir.join("mcp-agent"));
        command
            .args(args)
            .env_clear()
            .env("PATH", path_variable())
            .env("HOME", &self.dir);
        answer(&mut command, format!("mcp-agent {}", args.join(" ")), None)
    }

    /// Starts the agent and waits until it listens.
    ///
    /// # Errors
    ///
    /// Where it ends or does not listen within 20 s; the message holds its log.
    pub fn serve(&mut self) -> Result<()> {
        self.serve_with(&[])
    }

    /// As [`Node::serve`], with variables added to the agent's environment.
    ///
    /// # Errors
    ///
    /// As [`Node::serve`].
    pub fn serve_with(&mut self, variables: &[(&str, &str)]) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("agent.log"))?;
        let mut command = self.engine.command_as_user(self.dir.join("mcp-agent"));
        command.arg("serve").arg("--config").arg(self.config());
        command
            .env_clear()
            .env("PATH", path_variable())
            .env("HOME", &self.dir);
        command.env(
            "RUST_LOG",
            std::env::var("MCP_TEST_LOG").unwrap_or_else(|_| "info".to_owned()),
        );
        command.envs(variables.iter().copied());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut process = command.spawn().context("starting mcp-agent serve")?;
        let port = self.port;
        let listening = eventually("the agent listens", Duration::from_secs(20), || {
            if let Some(status) = process.try_wait()? {
                bail!("the agent ended with {status}");
            }
            Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok())
        });
        self.process = Some(process);
        listening
            .map(drop)
            .with_context(|| format!("log of the agent:\n{}", self.log()))
    }

    /// Ends the agent with SIGKILL, as a crash does.
    ///
    /// # Errors
    ///
    /// Where it does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("the agent does not run")?;
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Ends the agent with SIGTERM, as systemd does, and gives its exit code.
    ///
    /// # Errors
    ///
    /// Where it does not run or does not end within 20 s.
    pub fn terminate(&mut self) -> Result<Option<i32>> {
        let mut process = self.process.take().context("the agent does not run")?;
        let pid = rustix::process::Pid::from_child(&process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = eventually("the agent ends", Duration::from_secs(20), || {
            Ok(process.try_wait()?)
        })?;
        Ok(status.code())
    }

    /// Waits until the agent ends by itself, and gives its exit code.
    ///
    /// # Errors
    ///
    /// Where it does not run or goes on.
    pub fn ends(&mut self, limit: Duration) -> Result<Option<i32>> {
        let mut process = self.process.take().context("the agent does not run")?;
        let ended = eventually(
            "the agent ends by itself",
            limit,
            || Ok(process.try_wait()?),
        );
        if ended.is_err() {
            self.process = Some(process);
        }
        Ok(ended?.code())
    }

    /// The containers that this node's agent labelled, running or not.
    ///
    /// # Errors
    ///
    /// Where the engine does not answer.
    pub fn containers(&self) -> Result<Vec<String>> {
        self.engine.containers(&[("mcp.node", &self.name)])
    }

    /// Those of its containers that run, by name, with the id and the first process of each.
    ///
    /// # Errors
    ///
    /// Where the engine does not answer.
    pub fn running(&self) -> Result<BTreeMap<String, (String, i64)>> {
        let mut found = BTreeMap::new();
        for id in self.containers()? {
            let Some(live) = self.engine.inspect(&id)? else {
                continue;
            };
            let state = live.state.context("a container has a state")?;
            if state.running == Some(true) {
                let name = live.name.context("a container has a name")?;
                let pid = state.pid.context("what runs has a process")?;
                found.insert(name.trim_start_matches('/').to_owned(), (id, pid));
            }
        }
        Ok(found)
    }
}

/// A workstation and its nodes.
#[derive(Debug)]
pub struct Fleet {
    home: tempfile::TempDir,
    repo: PathBuf,
    key: PathBuf,
    nodes: Vec<Node>,
}

impl Fleet {
    /// A workstation with a key and an empty desired-state repository, and no nodes yet.
    ///
    /// # Errors
    ///
    /// Where a step fails; the message holds what the command said.
    pub fn workstation() -> Result<Fleet> {
        let home = tempfile::Builder::new()
            .prefix("mcp-w-")
            .tempdir_in("/tmp")?;
        let repo = home.path().join("repo");
        let key = home.path().join(".ssh/id_ed25519");
        std::fs::create_dir_all(home.path().join(".ssh"))?;
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "alice", "-f"])
            .arg(&key))?;
        std::fs::write(
            home.path().join(".gitconfig"),
            "[user]\n\tname = Alice\n\temail = alice@example.net\n[init]\n\tdefaultBranch = main\n[advice]\n\tdetachedHead = false\n",
        )?;
        let fleet = Fleet {
            home,
            repo,
            key,
            nodes: Vec::new(),
        };
        fleet
            .mcp(&["init", path(&fleet.repo), "--key", path(&fleet.key)])
            .ok();
        Ok(fleet)
    }

    /// A workstation with one node, `node`, on the shared engine of `lane`, listening and logged in to.
    ///
    /// # Errors
    ///
    /// As [`Fleet::workstation`] and [`Fleet::add_node`].
    pub fn with_node(lane: Lane, node: &str) -> Result<Fleet> {
        let mut fleet = Fleet::workstation()?;
        fleet.add_node(lane.shared(), node)?;
        Ok(fleet)
    }

    /// Sets up one more agent, starts it, and makes it known to the workstation.
    ///
    /// # Errors
    ///
    /// Where a step fails; the message holds what the command said.
    pub fn add_node(&mut self, engine: &'static Engine, name: &str) -> Result<&mut Node> {
        self.add_node_at(engine, name, engine.url())
    }

    /// As [`Fleet::add_node`], with an agent that speaks to the engine at another address: a proxy's.
    ///
    /// # Errors
    ///
    /// As [`Fleet::add_node`].
    pub fn add_node_at(
        &mut self,
        engine: &'static Engine,
        name: &str,
        socket: &str,
    ) -> Result<&mut Node> {
        let node = self.prepare_node(engine, name, socket)?;
        self.nodes.push(node);
        let ca = self.node(name).data_dir().join("tls/ca.pem");
        let address = format!("127.0.0.1:{}", self.node(name).port);
        self.node_mut(name).serve()?;
        self.mcp(&["node", "add", name, &address, "--ca", path(&ca)])
            .ok();
        self.log_in(name, "alice", "admin")?;
        Ok(self.node_mut(name))
    }

    fn prepare_node(&self, engine: &'static Engine, name: &str, socket: &str) -> Result<Node> {
        let dir = tempfile::Builder::new()
            .prefix("node-")
            .tempdir_in(engine.dir())?
            .keep();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))?;
        // The target directory may lie where the engine's user cannot reach it.
        // By a process of its own: a file that this one has open for writing while another thread
        // forks is busy for whoever wants to run it.
        run(Command::new("cp")
            .arg(&binaries().agent)
            .arg(dir.join("mcp-agent")))?;
        let public = format!("{}.pub", path(&self.key));
        std::fs::copy(&public, dir.join("owner.pub"))?;
        let node = Node {
            name: name.to_owned(),
            engine,
            dir,
            port: free_port()?,
            process: None,
        };
        std::fs::create_dir(node.data_dir())?;
        std::fs::create_dir(node.services_dir())?;
        engine.give(&node.dir)?;
        let listen = format!("127.0.0.1:{}", node.port);
        let init = node.agent(&[
            "init",
            "--node",
            name,
            "--data-dir",
            path(&node.data_dir()),
            "--config",
            path(&node.config()),
            "--services-dir",
            path(&node.services_dir()),
            "--listen",
            &listen,
            "--engine",
            engine.lane().engine_kind(),
            "--socket",
            socket,
            "--trust",
            path(&node.dir.join("owner.pub")),
        ])?;
        if init.code != Some(0) {
            bail!("{init}");
        }
        Ok(node)
    }

    /// Issues a token at a node and logs the workstation in with it.
    ///
    /// # Errors
    ///
    /// Where a step fails.
    pub fn log_in(&self, node: &str, subject: &str, role: &str) -> Result<()> {
        let token = self.token(node, subject, role)?;
        self.mcp_with(&["login", "--node", node, "--token-stdin"], Some(&token))?
            .ok();
        Ok(())
    }

    /// A token of the node's own issuer.
    ///
    /// # Errors
    ///
    /// Where the agent refuses.
    pub fn token(&self, node: &str, subject: &str, role: &str) -> Result<String> {
        let node = self.node(node);
        let issued = node.agent(&[
            "token",
            "issue",
            "--config",
            path(&node.config()),
            "--subject",
            subject,
            "--role",
            role,
        ])?;
        Ok(issued.ok().stdout)
    }

    /// The node of this name.
    ///
    /// # Panics
    ///
    /// Where the fleet has none.
    #[must_use]
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .expect("a test names only nodes that it added")
    }

    /// The node of this name, to stop and start it.
    ///
    /// # Panics
    ///
    /// Where the fleet has none.
    pub fn node_mut(&mut self, name: &str) -> &mut Node {
        self.nodes
            .iter_mut()
            .find(|node| node.name == name)
            .expect("a test names only nodes that it added")
    }

    /// Puts a `[policy]` table in the place of a node's own, and starts its agent again.
    ///
    /// # Errors
    ///
    /// Where the agent does not end or start, or its configuration has no such table.
    pub fn set_policy(&mut self, node: &str, policy: &str) -> Result<()> {
        let node = self.node_mut(node);
        node.terminate()?;
        let text = std::fs::read_to_string(node.config())?;
        let (before, rest) = text
            .split_once("[policy]")
            .context("the configuration has no [policy]")?;
        // The keys of the table go, what is commented below it stays.
        let after = rest.split_once("\n\n").map_or("", |(_, after)| after);
        std::fs::write(node.config(), format!("{before}{policy}\n\n{after}"))?;
        node.serve()
    }

    /// The desired-state repository.
    #[must_use]
    pub fn repo(&self) -> &Path {
        &self.repo
    }

    /// The operator's private key.
    #[must_use]
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// The operator's home directory.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Writes a file of the repository, such as `services/shop.toml`.
    ///
    /// # Panics
    ///
    /// Where the disk refuses.
    pub fn write(&self, file: &str, text: &str) {
        let file = self.repo.join(file);
        std::fs::create_dir_all(
            file.parent()
                .expect("a file of the repository has a directory"),
        )
        .expect("the repository can be written");
        std::fs::write(file, text).expect("the repository can be written");
    }

    /// Replaces text in a file of the repository.
    ///
    /// # Panics
    ///
    /// Where `from` is not there.
    #[track_caller]
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.repo.join(file))
            .expect("a test edits files that it wrote");
        assert!(text.contains(from), "{from:?} is not in {file}:\n{text}");
        self.write(file, &text.replace(from, to));
    }

    /// Runs `mcp` with arguments, with the workstation's repository and configuration.
    ///
    /// # Panics
    ///
    /// Where it cannot be started or hangs.
    #[must_use]
    #[track_caller]
    pub fn mcp(&self, args: &[&str]) -> Output {
        self.mcp_with(args, None)
            .expect("the binary under test can be started and ends")
    }

    /// As [`Fleet::mcp`], with something on standard input.
    ///
    /// # Errors
    ///
    /// Where it cannot be started or does not end.
    pub fn mcp_with(&self, args: &[&str], input: Option<&str>) -> Result<Output> {
        answer(
            self.command(&binaries().mcp).args(args),
            format!("mcp {}", args.join(" ")),
            input,
        )
    }

    /// As [`Fleet::mcp`], with these variables in its environment.
    ///
    /// # Panics
    ///
    /// Where it cannot be started or does not end.
    #[must_use]
    #[track_caller]
    pub fn mcp_under(&self, variables: &[(&str, &str)], args: &[&str]) -> Output {
        let mut command = self.command(&binaries().mcp);
        command.args(args).envs(variables.iter().copied());
        answer(&mut command, format!("mcp {}", args.join(" ")), None)
            .expect("the binary under test can be started and ends")
    }

    /// Runs `mcp` with `-o json` and gives what it printed, whatever its exit code.
    ///
    /// # Panics
    ///
    /// Where the output is no JSON.
    #[must_use]
    #[track_caller]
    pub fn mcp_json(&self, args: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(args);
        self.mcp(&all).json()
    }

    /// Starts `mcp` and leaves it running, its output piped: for streams and for clients that go away.
    ///
    /// # Errors
    ///
    /// Where it cannot be started.
    pub fn mcp_spawn(&self, args: &[&str]) -> Result<Child> {
        self.command(&binaries().mcp)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting mcp")
    }

    /// Runs stock git in the repository and gives its standard output.
    ///
    /// # Panics
    ///
    /// Where git refuses.
    #[track_caller]
    #[expect(
        clippy::must_use_candidate,
        reason = "many git commands are run for what they do"
    )]
    pub fn git(&self, args: &[&str]) -> String {
        let output = answer(
            self.command("git").current_dir(&self.repo).args(args),
            format!("git {}", args.join(" ")),
            None,
        )
        .expect("git can be started");
        output.ok().stdout.trim_end().to_owned()
    }

    /// Runs stock git in the repository, whatever it answers.
    ///
    /// # Panics
    ///
    /// Where git cannot be started.
    #[must_use]
    pub fn try_git(&self, args: &[&str]) -> Output {
        answer(
            self.command("git").current_dir(&self.repo).args(args),
            format!("git {}", args.join(" ")),
            None,
        )
        .expect("git can be started")
    }

    /// The components that `mcp list` knows, by `service/component`.
    ///
    /// # Panics
    ///
    /// Where the output is not as promised.
    #[must_use]
    #[track_caller]
    pub fn list(&self) -> BTreeMap<String, Value> {
        self.by_component(&["list"])
    }

    /// The components that `mcp ps` sees, by `service/component`.
    ///
    /// # Panics
    ///
    /// Where the output is not as promised.
    #[must_use]
    #[track_caller]
    pub fn ps(&self) -> BTreeMap<String, Value> {
        self.by_component(&["ps"])
    }

    #[track_caller]
    fn by_component(&self, args: &[&str]) -> BTreeMap<String, Value> {
        let rows = self.mcp_json(args);
        let rows = rows
            .as_array()
            .unwrap_or_else(|| panic!("{args:?} printed no array: {rows}"));
        rows.iter()
            .map(|row| {
                (
                    format!("{}/{}", text(row, "service"), text(row, "component")),
                    row.clone(),
                )
            })
            .collect()
    }

    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let home = self.home.path();
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", path_variable())
            .env("HOME", home)
            .env("USER", "alice")
            .env("LANG", "C.UTF-8")
            .env("XDG_CONFIG_HOME", home.join(".config"))
            .env("XDG_STATE_HOME", home.join(".local/state"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("MCP_REPO", &self.repo)
            .current_dir(home);
        command
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if std::thread::panicking() {
                eprintln_log(node);
            }
            drop(
                node.process
                    .take()
                    .map(|mut process| process.kill().and_then(|()| process.wait())),
            );
            // Shared with other tests: only what this node made goes.
            for container in node.containers().unwrap_or_default() {
                drop(node.engine.remove(&container));
            }
            for folder in node.memory() {
                drop(std::fs::remove_dir_all(&folder));
                // Of the last agent the folder above it goes too.
                drop(folder.parent().map(std::fs::remove_dir));
            }
            drop(std::fs::remove_dir_all(&node.dir));
        }
    }
}

/// Shows the log of an agent whose test failed.
#[expect(
    clippy::print_stderr,
    reason = "the test runner shows it with the failed test alone"
)]
fn eprintln_log(node: &Node) {
    let log = node.log();
    let lines: Vec<&str> = log.lines().collect();
    let last = lines.len().saturating_sub(80);
    eprintln!(
        "--- log of the agent {}\n{}",
        node.name,
        lines[last..].join("\n")
    );
}

/// A text field of a JSON object.
///
/// # Panics
///
/// Where there is none.
#[must_use]
#[track_caller]
pub fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field]
        .as_str()
        .unwrap_or_else(|| panic!("no text {field:?} in {object}"))
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the paths that tests make are UTF-8")
}

fn path_variable() -> std::ffi::OsString {
    std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into())
}

/// Runs a command to its end, within [`COMMAND_LIMIT`].
fn answer(command: &mut Command, shown: String, input: Option<&str>) -> Result<Output> {
    command.stdin(if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command
        .spawn()
        .with_context(|| format!("starting `{shown}`"))?;
    if let (Some(text), Some(mut stdin)) = (input, process.stdin.take()) {
        stdin.write_all(text.as_bytes())?;
    }
    let out = process.stdout.take().map(collect);
    let err = process.stderr.take().map(collect);
    let end = Instant::now() + COMMAND_LIMIT;
    let status = loop {
        if let Some(status) = process.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            process.kill()?;
            process.wait()?;
            let text = err
                .map(|thread| thread.join().unwrap_or_default())
                .unwrap_or_default();
            bail!("`{shown}` did not end within {COMMAND_LIMIT:?}:\n{text}");
        }
        // A child's end can only be polled for without a signal handler or unsafe code.
        std::thread::sleep(Duration::from_millis(2));
    };
    let read = |thread: Option<std::thread::JoinHandle<String>>| {
        thread
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    };
    Ok(Output {
        command: shown,
        code: status.code(),
        stdout: read(out),
        stderr: read(err),
    })
}

fn collect(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        drop(pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The row of a component in an array of JSON objects, whether it is named `api` or `shop/api` there.
///
/// # Panics
///
/// Where there is none.
#[must_use]
#[track_caller]
pub fn row<'a>(rows: &'a Value, component: &str) -> &'a Value {
    let found = rows.as_array().into_iter().flatten().find(|row| {
        row["component"]
            .as_str()
            .is_some_and(|name| name.rsplit('/').next() == Some(component))
    });
    found.unwrap_or_else(|| panic!("no component {component:?} in {rows}"))
}
