//! What the tests of the runtime share.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use mcp_agent::runtime::docker::{DockerRuntime, EngineSocket};
use mcp_agent::runtime::{ContainerRequest, ExecOutcome, LogLine, LogOptions, Runtime};
use mcp_spec::component::ComponentSpec;
use mcp_spec::definition::{DefinitionFile, parse_one};
use mcp_spec::image::Digest;
use mcp_spec::observed::{ContainerId, ContainerState, LiveContainer};
use mcp_tests::engine::{BUSYBOX, Engine, Lane};

pub(crate) const PAUSE: &str = "cmd = [\"/bin/pause\"]";

/// One component's resolved spec, from the lines of its definition.
pub(crate) fn component(service: &str, keys: &str) -> ComponentSpec {
    let text = format!(
        "name = \"{service}\"\nnode = \"rift\"\n[[components]]\nname = \"web\"\nimage = \"{BUSYBOX}:v1\"\n{keys}\n"
    );
    let path = format!("services/{service}.toml");
    let file = DefinitionFile {
        path: &path,
        bytes: text.as_bytes(),
    };
    let (spec, errors) = parse_one(file, &|path| Some(Digest::of(path.as_bytes())));
    assert!(
        errors.is_empty(),
        "{}",
        errors.iter().map(|e| e.render()).collect::<String>()
    );
    let (_, component) = spec.unwrap().components.into_iter().next().unwrap();
    component
}

/// A runtime and what a test made with it.
pub(crate) struct Bench<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) runtime: DockerRuntime,
}

impl Bench<'_> {
    pub(crate) fn new(lane: Lane) -> Self {
        let engine = lane.shared();
        let socket: EngineSocket = engine.url().parse().unwrap();
        Self {
            engine,
            runtime: DockerRuntime::new(socket),
        }
    }

    pub(crate) async fn request(&self, name: &str, spec: ComponentSpec) -> ContainerRequest {
        let image = self.runtime.image(&spec.image).await.unwrap().unwrap();
        ContainerRequest {
            name: name.to_owned(),
            image: image.id,
            spec,
            labels: BTreeMap::from([("mcp.node".to_owned(), "rift".to_owned())]),
            files: BTreeMap::new(),
            secret_env: BTreeMap::new(),
        }
    }

    /// Makes and starts a container of that name, in place of any that bears it.
    pub(crate) async fn run(&self, request: &ContainerRequest) -> LiveContainer {
        self.runtime.remove(&request.name).await.unwrap();
        let id = self.runtime.create(request).await.unwrap();
        self.runtime.start(&id).await.unwrap();
        self.live(&id).await
    }

    pub(crate) async fn live(&self, id: &ContainerId) -> LiveContainer {
        self.runtime.inspect(id.as_str()).await.unwrap().unwrap()
    }

    /// What a shell command inside the container writes.
    pub(crate) async fn inside(&self, id: &ContainerId, command: &str) -> String {
        let command = ["/bin/sh", "-c", command].map(str::to_owned);
        match self
            .runtime
            .exec(id, &command, Duration::from_secs(20))
            .await
        {
            Ok(ExecOutcome::Exited { output, .. }) => output.trim().to_owned(),
            other => panic!("{command:?}: {other:?}"),
        }
    }

    /// All lines that a log gives until it ends.
    pub(crate) async fn lines(&self, id: &ContainerId, options: &LogOptions) -> Vec<LogLine> {
        let lines = self.runtime.logs(id, options).await.unwrap();
        tokio::time::timeout(Duration::from_secs(60), lines.collect::<Vec<_>>())
            .await
            .unwrap()
            .into_iter()
            .map(Result::unwrap)
            .collect()
    }

    /// Waits until no process of a container has these words among its arguments.
    pub(crate) async fn gone(&self, id: &ContainerId, words: &str) {
        let ContainerState::Running { pid: Some(first) } = self.live(id).await.state else {
            panic!("{id} does not run")
        };
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let inside = namespace(&first.to_string());
        let end = Instant::now() + Duration::from_secs(5);
        loop {
            let left = std::fs::read_dir("/proc").unwrap().flatten().find(|entry| {
                let pid = entry.file_name();
                let pid = pid.to_str().unwrap_or_default();
                namespace(pid) == inside
                    && std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| {
                        String::from_utf8_lossy(&line).replace('\0', " ").trim() == words
                    })
            });
            match left {
                None => return,
                Some(left) if Instant::now() > end => panic!("{left:?} runs `{words}` still"),
                Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    pub(crate) async fn clear(&self, names: &[&str]) {
        for name in names {
            self.runtime.remove(name).await.unwrap();
        }
    }
}

pub(crate) fn assert_same(before: &LiveContainer, after: &LiveContainer, when: &str) {
    for (name, value) in &before.fields {
        assert_eq!(Some(value), after.fields.get(name), "`{name}` {when}");
    }
    assert_eq!(before.fields, after.fields, "{when}");
}

pub(crate) fn texts(lines: &[LogLine]) -> Vec<String> {
    lines
        .iter()
        .map(|line| String::from_utf8_lossy(&line.line).into_owned())
        .collect()
}
