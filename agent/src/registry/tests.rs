//! The registry over real files.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use mcp_spec::component::{
    ComponentSpec, Kind, Network, OnFailure, Pull, Reconcile, Resources, Restart,
};
use mcp_spec::duration::Span;
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{ContainerId, DesiredState, ImageId, ObservedState};
use mcp_spec::plan::ServiceSettings;
use mcp_spec::revision::CommitId;
use tempfile::TempDir;

use super::*;

mod adoptions;
mod alerts;
mod crash;
mod deployed;
mod deployments;
mod events;
mod file;
mod reconciling;
mod revisions;
mod speed;

struct Fixture {
    directory: TempDir,
    registry: Registry,
}

impl Fixture {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let registry = Registry::open(&directory.path().join("registry.db")).unwrap();
        Self {
            directory,
            registry,
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("registry.db")
    }

    /// Admits a deployment and commits one component by it.
    async fn deploy(&self, set: SetDeployed) -> i64 {
        let id = set.row.deployment.clone();
        self.admit(&id, Trigger::Deploy).await;
        let mut commit = CommitDeployment::new(id);
        commit.set.push(set);
        self.registry.commit_deployment(commit).await.unwrap()[0]
    }

    async fn admit(&self, id: &DeploymentId, trigger: Trigger) {
        let mut row = deployment(id, "");
        row.trigger = trigger;
        assert_eq!(self.registry.admit(row).await.unwrap(), Admission::New);
    }

    async fn remove(&self, bits: u64, of: &str, trigger: Trigger) {
        let id = DeploymentId::from_bits(bits);
        self.admit(&id, trigger).await;
        let mut commit = CommitDeployment::new(id);
        commit.removed.push(key(of));
        self.registry.commit_deployment(commit).await.unwrap();
    }
}

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn key(text: &str) -> ComponentKey {
    text.parse().unwrap()
}

fn commit(number: u8) -> CommitId {
    CommitId::from_bytes([number; 20])
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn image(text: &str) -> ImageId {
    ImageId::new(digest(text).to_string())
}

fn spec(tag: &str) -> ComponentSpec {
    ComponentSpec {
        kind: Kind::Service,
        image: format!("localhost/bb:{tag}").parse().unwrap(),
        pull: Pull::Missing,
        entrypoint: None,
        cmd: Some(vec!["sleep".to_owned(), "infinity".to_owned()]),
        env: BTreeMap::from([("RUST_LOG".to_owned(), "info".to_owned())]),
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

/// A component as a deployment of the image `tag` leaves it.
pub(crate) fn row(of: &str, tag: &str, deployment: u64) -> DeployedRow {
    let key = key(of);
    let spec = spec(tag);
    DeployedRow {
        spec_digest: spec.digest(),
        spec,
        image_id: image(tag),
        image_digest: None,
        revision: commit(1),
        container: ContainerId::new(format!("container-{tag}")),
        container_name: key.container_name(),
        key,
        generation: 1,
        baseline: BTreeMap::from([("image".to_owned(), tag.to_owned())]),
        desired: DesiredState::Running,
        stopped_by: None,
        hold: None,
        deployment: DeploymentId::from_bits(deployment),
        history: 0,
        deployed_at: time(i64::try_from(deployment).unwrap()),
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

fn set(row: DeployedRow) -> SetDeployed {
    SetDeployed {
        row,
        history: HistoryEntry::New,
    }
}

pub(crate) fn deployment(id: &DeploymentId, request_id: &str) -> DeploymentRow {
    DeploymentRow {
        id: id.clone(),
        service: "shop".parse().unwrap(),
        component: None,
        request_id: request_id.to_owned(),
        request_digest: digest(request_id),
        actor: "kyle".to_owned(),
        trigger: Trigger::Deploy,
        revision: Some(commit(1)),
        signer: Some("kyle".to_owned()),
        plan: "{}".to_owned(),
        plan_id: "p".to_owned(),
        state: DeploymentState::Admitted,
        outcome: None,
        error: None,
        created_at: time(0),
        line_at: None,
        finished_at: None,
    }
}

fn observed(of: &str, state: ObservedState) -> ObservedRow {
    ObservedRow {
        key: key(of),
        state,
        health: Some(HealthWord::Healthy),
        exit_code: None,
        oom: false,
        started_at: Some(time(1)),
        finished_at: None,
        restarts: 0,
        next_restart_at: None,
        backoff_attempt: 0,
        drift: vec![DriftRow {
            field: "env.A".to_owned(),
            baseline: "1".to_owned(),
            live: "2".to_owned(),
            since: time(2),
        }],
        flapping: Some(FlappingRow::default()),
        observed_at: time(3),
    }
}

fn event(seconds: i64, about: &str) -> NewEvent {
    let (service, component) = match about.split_once('/') {
        Some((service, component)) => (Some(service), Some(component)),
        None if about.is_empty() => (None, None),
        None => (Some(about), None),
    };
    NewEvent {
        at: time(seconds),
        service: service.map(|name| name.parse().unwrap()),
        component: component.map(|name| name.parse().unwrap()),
        kind: "changed".to_owned(),
        reason: "test".to_owned(),
        message: format!("{about} at {seconds}"),
        revision: None,
        data: serde_json::json!({}),
    }
}
