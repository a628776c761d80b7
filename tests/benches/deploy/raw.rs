//! The engine's API with nothing around it: the floor.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
    RenameContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use futures_util::StreamExt;
use mcp_tests::engine::{BUSYBOX, Engine};
use tokio::runtime::Runtime;

use crate::CONCURRENCY;
use crate::rounds::{Phase, Times};

/// A client that makes the calls of a deployment and nothing else, over connections that are kept.
pub(crate) struct Raw {
    docker: Docker,
    runtime: Runtime,
    size: usize,
    source: String,
}

impl Raw {
    pub(crate) fn new(engine: &Engine, size: usize) -> Raw {
        let source = engine.dir().join("raw-bind");
        std::fs::create_dir_all(&source).unwrap();
        engine.give(&source).unwrap();
        Raw {
            docker: engine.raw().unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
            size,
            source: source.display().to_string(),
        }
    }

    /// One round of all that a deployment's life consists of.
    pub(crate) fn round(&self) -> Times {
        let names: Vec<String> = (0..self.size)
            .map(|number| format!("raw-{number}"))
            .collect();
        let mut times = Times::default();
        times.time(Phase::Cold, || {
            self.each(&names, |name| self.run(name, "1"));
        });
        times.time(Phase::Noop, || {
            let options = ListContainersOptionsBuilder::new().all(true).build();
            self.wait(self.docker.list_containers(Some(options)))
                .unwrap()
        });
        let began = Instant::now();
        let down = self.wait(self.change(&names[0]));
        times.add(Phase::Change, began.elapsed());
        times.add(Phase::Downtime, down);
        times.time(Phase::Stop, || self.each(&names, |name| self.stop(name)));
        times.time(Phase::Remove, || {
            self.each(&names, |name| self.remove(name));
        });
        times
    }

    fn wait<F: Future>(&self, work: F) -> F::Output {
        self.runtime.block_on(work)
    }

    fn each<'a, F: Future<Output = ()>>(&self, names: &'a [String], work: impl Fn(&'a str) -> F) {
        self.wait(
            futures_util::stream::iter(names)
                .map(|name| work(name))
                .buffer_unordered(CONCURRENCY)
                .collect::<Vec<()>>(),
        );
    }

    /// Replaces one container; tells how long nothing ran.
    async fn change(&self, name: &str) -> Duration {
        let next = format!("{name}-next");
        self.create(&next, "2").await;
        let down = Instant::now();
        self.stop(name).await;
        self.docker.start_container(&next, None).await.unwrap();
        let down = down.elapsed();
        self.remove(name).await;
        let rename = RenameContainerOptionsBuilder::new().name(name).build();
        self.docker.rename_container(&next, rename).await.unwrap();
        down
    }

    async fn create(&self, name: &str, value: &str) {
        let body = ContainerCreateBody {
            image: Some(format!("{BUSYBOX}:v1")),
            cmd: Some(vec!["sleep".to_owned(), "infinity".to_owned()]),
            env: Some(vec![format!("VALUE={value}")]),
            stop_signal: Some("SIGKILL".to_owned()),
            labels: Some(HashMap::from([("raw".to_owned(), "1".to_owned())])),
            host_config: Some(HostConfig {
                binds: Some(vec![format!("{}:/data", self.source)]),
                network_mode: Some("none".to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        self.docker
            .create_container(Some(options), body)
            .await
            .unwrap();
    }

    async fn run(&self, name: &str, value: &str) {
        self.create(name, value).await;
        self.docker.start_container(name, None).await.unwrap();
    }

    async fn stop(&self, name: &str) {
        self.docker
            .stop_container(name, Some(StopContainerOptionsBuilder::new().t(10).build()))
            .await
            .unwrap();
    }

    async fn remove(&self, name: &str) {
        self.docker
            .remove_container(
                name,
                Some(RemoveContainerOptionsBuilder::new().force(true).build()),
            )
            .await
            .unwrap();
    }
}
