//! One container engine of its own a lane: started, looked into from outside, broken, and taken away.
//!
//! `tests/scripts/engine.sh` does the work, so that a person, the demo and these tests get the very same
//! engine. Run by root, an engine lives in a network namespace of its own: [`Engine::enter`] moves the
//! calling thread there, and with it every process and runtime that the thread starts afterwards.
//! A reaper process ends the engine when the test process has gone, however it went.

use std::fs::File;
use std::future::Future;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bollard::Docker;
use bollard::models::ContainerInspectResponse;
use bollard::query_parameters::RemoveContainerOptionsBuilder;

/// The image that most tests run, in versions `v1` to `v3`; see `tests/images/busybox`.
pub const BUSYBOX: &str = "localhost/mcp-test/busybox";

/// Versions of [`BUSYBOX`] that every shared engine holds.
pub const BUSYBOX_VERSIONS: [&str; 3] = ["v1", "v2", "v3"];

/// The newest version of the API that the oldest engine here speaks (docker 20.10).
const API_VERSION: bollard::ClientVersion = bollard::ClientVersion {
    major_version: 1,
    minor_version: 41,
};

/// One of the engines that MCP promises to work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Podman's service run by root.
    PodmanRoot,
    /// Podman's service run by a user without privileges.
    PodmanRootless,
    /// `dockerd` run by root.
    Docker,
}

impl Lane {
    /// Every lane there is.
    pub const ALL: [Lane; 3] = [Lane::PodmanRoot, Lane::PodmanRootless, Lane::Docker];

    /// The name that `engine.sh` knows it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Lane::PodmanRoot => "podman",
            Lane::PodmanRootless => "podman-rootless",
            Lane::Docker => "docker",
        }
    }

    /// The value of `--engine` for an agent of this lane.
    #[must_use]
    pub fn engine_kind(self) -> &'static str {
        match self {
            Lane::PodmanRoot | Lane::PodmanRootless => "podman",
            Lane::Docker => "docker",
        }
    }

    /// The engine that the tests of this process share, started by the first that asks.
    ///
    /// # Panics
    ///
    /// Where the engine does not start: a lane that cannot run is a failure, not a test passed over.
    #[must_use]
    pub fn shared(self) -> &'static Engine {
        static ENGINES: [OnceLock<Engine>; 3] = [OnceLock::new(), OnceLock::new(), OnceLock::new()];
        ENGINES[self as usize].get_or_init(|| {
            Engine::with_images(self)
                .unwrap_or_else(|error| panic!("the lane {} has no engine: {error:#}", self.name()))
        })
    }

    /// An engine that nobody else uses, in whose network this thread is from now on. It lives as long as
    /// the process.
    ///
    /// # Panics
    ///
    /// As [`Lane::shared`].
    #[must_use]
    pub fn alone(self) -> &'static Engine {
        let engine = Engine::with_images(self)
            .unwrap_or_else(|error| panic!("the lane {} has no engine: {error:#}", self.name()));
        engine
            .enter()
            .expect("the network namespace of a started engine can be entered");
        Box::leak(Box::new(engine))
    }

    /// Runs a test of this lane, in the network of its shared engine.
    pub fn run(self, test: fn(Lane)) {
        self.shared()
            .enter()
            .expect("the network namespace of a started engine can be entered");
        test(self);
    }
}

/// A running engine that nothing else uses.
#[derive(Debug)]
pub struct Engine {
    lane: Lane,
    dir: PathBuf,
    url: String,
    user: String,
}

impl Engine {
    /// Starts an engine that has the images of the tests.
    ///
    /// # Errors
    ///
    /// As [`Engine::start`] and [`Engine::import_version`].
    pub fn with_images(lane: Lane) -> Result<Engine> {
        let engine = Engine::start(lane)?;
        for version in BUSYBOX_VERSIONS {
            engine
                .import_version(&format!("{BUSYBOX}:{version}"), version, "busybox", &[])
                .with_context(|| format!("it has no image {version}"))?;
        }
        Ok(engine)
    }

    /// Starts an engine with empty storage.
    ///
    /// # Errors
    ///
    /// Where the engine is not installed or does not answer within 30 s.
    pub fn start(lane: Lane) -> Result<Engine> {
        // Short and in /tmp: a socket's path is limited to 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("mcp-e-")
            .tempdir_in("/tmp")?
            .keep();
        let owner = std::process::id().to_string();
        let url = script(&[
            "start".as_ref(),
            lane.name().as_ref(),
            dir.as_os_str(),
            "--owner".as_ref(),
            owner.as_ref(),
        ])
        .inspect_err(|_| drop(std::fs::remove_dir_all(&dir)))?;
        let user = script(&["user".as_ref(), dir.as_os_str()])?;
        Ok(Engine {
            lane,
            dir,
            url,
            user,
        })
    }

    /// The lane that it was started for.
    #[must_use]
    pub fn lane(&self) -> Lane {
        self.lane
    }

    /// The URL of its socket, as `--socket` takes it.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The user that owns it, and that its agent runs as.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// A directory that the engine's user can reach, removed with the engine.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Moves the calling thread into the engine's network, where its published ports are.
    ///
    /// Processes and runtimes started by the thread afterwards live there as well. Without root there is
    /// no network of its own, and nothing to do.
    ///
    /// # Errors
    ///
    /// Where the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        let Ok(holder) = std::fs::read_to_string(self.dir.join("holder.pid")) else {
            return Ok(());
        };
        let namespace = File::open(format!("/proc/{}/ns/net", holder.trim()))?;
        rustix::thread::move_into_link_name_space(
            std::os::fd::AsFd::as_fd(&namespace),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .context("entering the engine's network namespace")?;
        Ok(())
    }

    /// A command that runs as the engine's user, such as an agent does.
    #[must_use]
    pub fn command_as_user(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        if self.lane != Lane::PodmanRootless || !rustix::process::getuid().is_root() {
            return Command::new(program);
        }
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--reuid={}", self.user))
            .arg(format!("--regid={}", self.user))
            .arg("--init-groups");
        command.arg(program);
        command
    }

    /// Gives a path to the engine's user.
    ///
    /// # Errors
    ///
    /// Where `chown` refuses.
    pub fn give(&self, path: &Path) -> Result<()> {
        if self.lane == Lane::PodmanRootless && rustix::process::getuid().is_root() {
            let status = Command::new("chown")
                .arg("-R")
                .arg(format!("{}:", self.user))
                .arg(path)
                .status()
                .context("chown")?;
            if !status.success() {
                bail!("chown of {} to {} failed", path.display(), self.user);
            }
        }
        Ok(())
    }

    /// Kills the engine's service with SIGKILL; what becomes of its containers is the engine's affair.
    ///
    /// # Errors
    ///
    /// Where the script fails.
    pub fn kill(&self) -> Result<()> {
        script(&["kill".as_ref(), self.dir.as_os_str()]).map(drop)
    }

    /// Starts the service again after [`Engine::kill`]; does nothing where it runs.
    ///
    /// # Errors
    ///
    /// Where it does not answer within 30 s.
    pub fn up(&self) -> Result<()> {
        script(&["up".as_ref(), self.dir.as_os_str()]).map(drop)
    }

    /// Kills the service and starts it again.
    ///
    /// # Errors
    ///
    /// As [`Engine::kill`] and [`Engine::up`].
    pub fn restart(&self) -> Result<()> {
        self.kill()?;
        self.up()
    }

    /// Imports a root file system as an image; `changes` are lines of a Dockerfile (`CMD [..]`).
    ///
    /// # Errors
    ///
    /// Where the engine refuses.
    pub fn import_image(&self, name: &str, rootfs: &Path, changes: &[&str]) -> Result<()> {
        let mut args = vec![
            "image".as_ref(),
            self.dir.as_os_str(),
            name.as_ref(),
            rootfs.as_os_str(),
        ];
        args.extend(changes.iter().map(std::ffi::OsStr::new));
        script(&args).map(drop)
    }

    /// Imports `version` of one of the images in `tests/images` under a name of its own.
    ///
    /// # Errors
    ///
    /// Where the root file system cannot be made or the engine refuses.
    pub fn import_version(
        &self,
        name: &str,
        version: &str,
        overlay: &str,
        changes: &[&str],
    ) -> Result<()> {
        let rootfs = tempfile::tempdir()?;
        let overlay = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("images")
            .join(overlay);
        run(Command::new(scripts().join("rootfs.sh"))
            .arg(rootfs.path())
            .arg(version)
            .arg(overlay))?;
        self.import_image(name, rootfs.path(), changes)
    }

    /// Runs the engine's own command line, and gives its standard output.
    ///
    /// # Errors
    ///
    /// Where it exits with anything but 0.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let mut all: Vec<&std::ffi::OsStr> = vec!["exec".as_ref(), self.dir.as_os_str()];
        all.push(self.lane.engine_kind().as_ref());
        all.extend(args.iter().map(std::ffi::OsStr::new));
        script(&all)
    }

    /// A command that talks to this engine as its own command line does: in its namespaces, as its user.
    ///
    /// # Errors
    ///
    /// Where the engine's environment cannot be told.
    pub fn client_command(&self, program: &str) -> Result<Command> {
        let environment = script(&["exec".as_ref(), self.dir.as_os_str(), "env".as_ref()])?;
        let mut command = match std::fs::read_to_string(self.dir.join("holder.pid")) {
            Ok(holder) => {
                let mut command = Command::new("nsenter");
                command.args(["--target", holder.trim(), "--net", "--mount"]);
                if self.lane == Lane::PodmanRootless {
                    command.arg("setpriv").arg(format!("--reuid={}", self.user));
                    command
                        .arg(format!("--regid={}", self.user))
                        .arg("--init-groups");
                }
                command.arg(program);
                command
            }
            Err(_) => Command::new(program),
        };
        command
            .env_clear()
            .envs(environment.lines().filter_map(|line| line.split_once('=')));
        Ok(command)
    }

    /// A client of the engine's API, for assertions from outside.
    ///
    /// # Errors
    ///
    /// Where the socket cannot be used.
    pub fn raw(&self) -> Result<Docker> {
        Ok(Docker::connect_with_unix(&self.url, 60, &API_VERSION)?)
    }

    /// The container of this name or id as the engine describes it; `None` where there is none.
    ///
    /// Read by hand: podman 4.3 has a state, `stopped`, that the types of the API do not know.
    ///
    /// # Errors
    ///
    /// Where the engine does not answer.
    pub fn inspect(&self, container: &str) -> Result<Option<ContainerInspectResponse>> {
        let path = format!("/v1.41/containers/{container}/json");
        let (status, body) = self
            .get(&path)
            .with_context(|| format!("inspecting {container}"))?;
        if status == 404 {
            return Ok(None);
        }
        if status != 200 {
            bail!("inspecting {container}: {status} {body}");
        }
        let mut body: serde_json::Value = serde_json::from_str(&body)?;
        if body["State"]["Status"] == "stopped" {
            body["State"]["Status"] = "exited".into();
        }
        Ok(Some(serde_json::from_value(body)?))
    }

    /// One request to the engine's API, without any library's idea of the answer.
    fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(self.url.trim_start_matches("unix://"))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        // HTTP/1.0: no chunks, and the answer's end is the connection's.
        stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: engine\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer
            .split_once("\r\n\r\n")
            .context("the engine's answer has no end of head")?;
        let status = head
            .split(' ')
            .nth(1)
            .context("the engine's answer has no status")?;
        Ok((status.parse()?, body.to_owned()))
    }

    /// The ids of every container of the engine, running or not, that has all the labels given.
    ///
    /// Asked through the command line: podman 4.3 lists a state, `stopped`, that the API does not know.
    ///
    /// # Errors
    ///
    /// Where the engine does not answer.
    pub fn containers(&self, labels: &[(&str, &str)]) -> Result<Vec<String>> {
        let filters: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("label={key}={value}"))
            .collect();
        let mut args = vec!["ps", "--all", "--quiet", "--no-trunc"];
        for filter in &filters {
            args.extend(["--filter", filter]);
        }
        let ids = self.cli(&args).context("listing containers")?;
        Ok(ids.lines().map(str::to_owned).collect())
    }

    /// Removes a container by force; one that is absent already is no error.
    ///
    /// # Errors
    ///
    /// Where the engine refuses and the container is still there.
    pub fn remove(&self, container: &str) -> Result<()> {
        let docker = self.raw()?;
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        let answer = wait(docker.remove_container(container, Some(options)));
        if answer.is_err() && self.inspect(container)?.is_some() {
            answer.with_context(|| format!("removing {container}"))?;
        }
        Ok(())
    }

    /// Starts a container that MCP knows nothing of, and gives its id.
    ///
    /// # Errors
    ///
    /// Where the engine refuses.
    pub fn run_foreign(&self, name: &str, args: &[&str]) -> Result<String> {
        let image = format!("{BUSYBOX}:v1");
        let mut all = vec!["run", "--detach", "--name", name];
        all.extend(args);
        all.extend([image.as_str(), "/bin/pause"]);
        self.cli(&all)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A shared engine is never dropped; the reaper ends it, as it does where this fails.
        if script(&["stop".as_ref(), self.dir.as_os_str()]).is_ok() {
            drop(std::fs::remove_dir_all(&self.dir));
        }
    }
}

/// Waits for a future on a runtime of this thread's own.
///
/// # Panics
///
/// Within a runtime, which no test here is.
pub fn wait<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread needs only an epoll descriptor")
        .block_on(future)
}

/// Asks again until `probe` gives something, at most for `limit`.
///
/// # Errors
///
/// Where the limit is reached; the message names `what` was waited for.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe()? {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where the shell scripts of the tests are.
#[must_use]
pub fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts")
}

fn script(args: &[&std::ffi::OsStr]) -> Result<String> {
    run(Command::new(scripts().join("engine.sh")).args(args))
}

/// Runs a command to its end and gives its standard output, trimmed.
///
/// # Errors
///
/// Where it cannot be started or exits with anything but 0; the message holds its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
