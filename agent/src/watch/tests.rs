//! Watching, over a scripted engine and a real registry.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mcp_spec::component::{
    ComponentSpec, Kind, Network, OnFailure, Pull, Reconcile, Resources, Restart,
};
use mcp_spec::duration::Span;
use mcp_spec::image::Digest;
use mcp_spec::observed::{ContainerId, DesiredState, ImageId, LiveContainer};
use mcp_spec::plan::ServiceSettings;
use mcp_spec::revision::CommitId;

use crate::registry::{DeployedRow, DeploymentId};
use crate::testing::ScriptedEngine;

mod component;
mod current;
mod emptied;
mod meeting;
mod races;
mod rig;
mod task;

/// A time of day, so many seconds after some moment.
fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs(seconds)
}

fn spec() -> ComponentSpec {
    ComponentSpec {
        kind: Kind::Service,
        image: "localhost/bb:v1".parse().unwrap(),
        pull: Pull::Missing,
        entrypoint: None,
        cmd: None,
        env: BTreeMap::new(),
        user: None,
        workdir: None,
        hostname: None,
        network: Network::None,
        ports: BTreeSet::new(),
        volumes: BTreeMap::new(),
        tmpfs: BTreeMap::new(),
        restart: Restart::UnlessStopped,
        init: false,
        depends_on: BTreeSet::new(),
        health: None,
        resources: Resources {
            memory_bytes: None,
            cpu_millis: None,
            pids: 2048,
        },
        read_only: false,
        cap_add: BTreeSet::new(),
        cap_drop: BTreeSet::new(),
        labels: BTreeMap::new(),
        stop_signal: None,
        stop_timeout: Span::from_secs(10),
        extra_hosts: BTreeMap::new(),
        dns: Vec::new(),
        files: BTreeMap::new(),
        ready_for: Span::from_secs(2),
        devices: BTreeMap::new(),
        ulimits: BTreeMap::new(),
        sysctls: BTreeMap::new(),
        security_opt: BTreeSet::new(),
        privileged: false,
        log: None,
        secrets: BTreeMap::new(),
        secret_env: BTreeMap::new(),
    }
}

/// A deployed component whose container has the component's name as its id.
fn row(key: &str) -> DeployedRow {
    let key: mcp_spec::name::ComponentKey = key.parse().unwrap();
    let spec = spec();
    DeployedRow {
        spec_digest: spec.digest(),
        spec,
        image_id: ImageId::new(Digest::of(b"v1").to_string()),
        image_digest: None,
        revision: CommitId::from_bytes([1; 20]),
        container: ContainerId::new(key.component.as_str()),
        container_name: key.container_name(),
        generation: 1,
        baseline: live(key.component.as_str(), 0).fields,
        key,
        desired: DesiredState::Running,
        stopped_by: None,
        hold: None,
        deployment: DeploymentId::from_bits(1),
        history: 0,
        deployed_at: time(0),
        adopted: false,
        settings: ServiceSettings {
            active: true,
            alert: true,
            deadline: Span::from_secs(300),
            reconcile: Reconcile::Manual,
            on_failure: OnFailure::KeepOld,
        },
    }
}

/// A component of `shop` that runs since so many seconds.
fn live(id: &str, seconds: i64) -> LiveContainer {
    ScriptedEngine::container(id, Some(("shop", id)), time(seconds))
}

const SECOND: Duration = Duration::from_secs(1);
