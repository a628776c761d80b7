//! What the node's owner refuses, by example.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::component::{Device, Kind, Log, Protocol, Pull, Resources, Restart, Volume};
use crate::duration::Span;

fn spec() -> ComponentSpec {
    ComponentSpec {
        kind: Kind::Service,
        image: "registry.example.net:5000/metacrypt/api:v1"
            .parse()
            .unwrap(),
        pull: Pull::Missing,
        entrypoint: None,
        cmd: None,
        env: BTreeMap::new(),
        user: None,
        workdir: None,
        hostname: None,
        network: Network::User(BTreeMap::new()),
        ports: BTreeSet::new(),
        volumes: BTreeMap::new(),
        tmpfs: BTreeMap::new(),
        restart: Restart::No,
        init: false,
        depends_on: BTreeSet::new(),
        health: None,
        resources: Resources {
            memory_bytes: None,
            cpu_millis: None,
            pids: 512,
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
        ready_for: Span::from_secs(1),
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

fn messages(policy: &Policy, spec: &ComponentSpec) -> Vec<String> {
    let key = "metacrypt/api".parse().unwrap();
    policy
        .violations(&key, spec, "/srv/mcp")
        .into_iter()
        .map(|violation| violation.message)
        .collect()
}

fn bind(policy: &Policy, source: &str) -> Vec<String> {
    let mut spec = spec();
    spec.volumes.insert(
        "/data".to_owned(),
        Volume {
            source: VolumeSource::Bind(source.to_owned()),
            read_only: false,
        },
    );
    messages(policy, &spec)
}

#[test]
fn binds_lie_beneath_the_services_own_folder() {
    let policy = Policy::default_for("/srv");
    for good in ["/srv/metacrypt", "/srv/metacrypt/certs", "/srv//metacrypt/"] {
        assert!(bind(&policy, good).is_empty(), "{good}");
    }
    for bad in ["/var/cache", "/srv/metacrypt2", "/srv/gitea", "/etc"] {
        assert_eq!(
            bind(&policy, bad),
            [format!("bind {bad} outside policy.host_paths")]
        );
    }
    for bad in [
        "/srv/metacrypt/../gitea",
        "srv/metacrypt",
        "/srv/./metacrypt",
    ] {
        assert_eq!(bind(&policy, bad).len(), 1, "{bad}");
    }
}

#[test]
fn no_policy_opens_the_agents_folder_or_the_engine() {
    let policy = Policy {
        host_paths: vec!["/".to_owned()],
        protected: vec!["/opt/engine/podman.sock".to_owned()],
        ..Policy::default_for("/srv")
    };
    assert!(bind(&policy, "/var/cache").is_empty());
    for bad in [
        "/",
        "/srv",
        "/srv/mcp",
        "/srv/mcp/repo.git",
        "/run",
        "/run/podman/podman.sock",
        "/var/run/docker.sock",
        "/var/lib/docker/volumes",
        "/var/lib",
        "/opt/engine",
    ] {
        assert_eq!(bind(&policy, bad).len(), 1, "{bad}");
    }
}

#[test]
fn registries_are_a_list_or_any() {
    let mut policy = Policy::default_for("/srv");
    assert!(messages(&policy, &spec()).is_empty());
    policy.registries = vec!["docker.io".to_owned()];
    assert_eq!(
        messages(&policy, &spec()),
        ["image registry.example.net:5000/metacrypt/api:v1 outside policy.registries"]
    );
    policy
        .registries
        .push("registry.example.net:5000".to_owned());
    assert!(messages(&policy, &spec()).is_empty());
}

#[test]
fn ports_stay_in_their_ranges() {
    let policy = Policy::default_for("/srv");
    let publish = |ip: &str, host: u16| {
        let mut spec = spec();
        spec.ports.insert(Port {
            ip: ip.parse().unwrap(),
            host,
            container: 80,
            protocol: Protocol::Tcp,
        });
        spec
    };
    assert!(messages(&policy, &publish("127.0.0.1", 8080)).is_empty());
    assert!(messages(&policy, &publish("::1", 65535)).is_empty());
    assert_eq!(
        messages(&policy, &publish("127.0.0.1", 80)),
        ["port 127.0.0.1:80:80/tcp outside policy.ports"]
    );
    assert_eq!(messages(&policy, &publish("0.0.0.0", 8080)).len(), 1);
    let open = Policy {
        ports: vec!["0.0.0.0:80-443".parse().unwrap()],
        ..policy
    };
    assert!(messages(&open, &publish("10.0.0.7", 443)).is_empty());
    assert_eq!(messages(&open, &publish("::1", 443)).len(), 1);
}

#[test]
fn host_network_and_capabilities_need_the_owners_word() {
    let mut policy = Policy::default_for("/srv");
    let mut spec = spec();
    spec.network = Network::Host;
    spec.cap_add = ["NET_BIND_SERVICE".to_owned(), "SYS_ADMIN".to_owned()].into();
    assert_eq!(
        messages(&policy, &spec),
        [
            "network host refused by policy.host_network",
            "capability SYS_ADMIN outside policy.capabilities"
        ]
    );
    policy.host_network = true;
    policy.capabilities = vec!["CAP_SYS_ADMIN".to_owned()];
    assert!(messages(&policy, &spec).is_empty());
}

#[test]
fn port_ranges_read_as_they_are_written() {
    for text in ["127.0.0.1:1024-65535", "[::1]:8080", "0.0.0.0:1-1024"] {
        assert_eq!(text.parse::<PortRange>().unwrap().to_string(), text);
    }
    for bad in [
        "",
        "8080",
        "127.0.0.1",
        "127.0.0.1:9-3",
        "::1:80",
        "a:1",
        "127.0.0.1:1-99999",
    ] {
        assert!(bad.parse::<PortRange>().is_err(), "{bad}");
    }
}

#[test]
fn what_reaches_into_the_node_needs_the_owners_word() {
    let mut policy = Policy::default_for("/srv");
    let mut spec = spec();
    let device = |host: &str| Device {
        host: host.to_owned(),
        permissions: "rwm".to_owned(),
    };
    spec.devices
        .insert("/dev/fuse".to_owned(), device("/dev/fuse"));
    spec.devices
        .insert("/dev/gpu".to_owned(), device("/dev/dri/card0"));
    spec.security_opt = [
        "no-new-privileges=false".to_owned(),
        "seccomp=unconfined".to_owned(),
    ]
    .into();
    spec.privileged = true;
    spec.log = Some(Log {
        driver: "syslog".to_owned(),
        options: BTreeMap::new(),
    });
    assert_eq!(
        messages(&policy, &spec),
        [
            "device /dev/fuse outside policy.devices",
            "device /dev/dri/card0 outside policy.devices",
            "security option no-new-privileges=false outside policy.security_opt",
            "security option seccomp=unconfined outside policy.security_opt",
            "privileged refused by policy.privileged",
            "log driver syslog outside policy.log_drivers"
        ]
    );
    policy.devices = vec!["/dev/fuse".to_owned(), "/dev/dri".to_owned()];
    policy.security_opt = spec.security_opt.iter().cloned().collect();
    policy.privileged = true;
    policy.log_drivers.push("syslog".to_owned());
    assert!(messages(&policy, &spec).is_empty());
    spec.devices
        .insert("/dev/x".to_owned(), device("/dev/fuse2"));
    assert_eq!(
        messages(&policy, &spec).len(),
        1,
        "a name that only begins alike"
    );
    for driver in DEFAULT_LOG_DRIVERS {
        spec.log = Some(Log {
            driver: driver.to_owned(),
            options: BTreeMap::new(),
        });
        assert_eq!(
            messages(&policy, &spec).len(),
            1,
            "{driver} keeps the lines on the node"
        );
    }
}
