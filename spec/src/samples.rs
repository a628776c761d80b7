//! Services drawn at random for property tests: canonical, as `definition` would resolve them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::component::*;
use crate::definition::implied_aliases;
use crate::duration::Span;
use crate::image::Digest;
use crate::name::{ComponentName, ServiceName};

/// The digest of the file at a path: what [`lookup`] answers.
fn file_digest(path: &str) -> Digest {
    Digest::of(path.as_bytes())
}

/// A revision that holds every file.
pub(crate) fn lookup(path: &str) -> Option<Digest> {
    Some(file_digest(path))
}

fn span() -> impl Strategy<Value = Span> {
    (1_u64..1_000_000).prop_map(Span::from_millis)
}

/// Texts with everything that quoting can get wrong.
fn text() -> impl Strategy<Value = String> {
    "[ -~\\n\\t\\\\\"'\u{1}\u{7f}\u{9b}é€𝄞]{0,12}"
}

fn path() -> impl Strategy<Value = String> {
    "(/[a-zA-Z0-9._-]{0,3}[a-z]){1,3}"
}

fn argv() -> impl Strategy<Value = Vec<String>> {
    ("[a-z/]{1,8}", vec(text(), 0..4)).prop_map(|(program, mut rest)| {
        rest.insert(0, program);
        rest
    })
}

fn kind_and_restart() -> impl Strategy<Value = (Kind, Restart)> {
    prop_oneof![
        select(vec![
            Restart::No,
            Restart::OnFailure { max: None },
            Restart::OnFailure { max: Some(7) },
            Restart::Always,
            Restart::UnlessStopped
        ])
        .prop_map(|restart| (Kind::Service, restart)),
        (
            btree_set(0..=255_i32, 1..4),
            select(vec![
                Restart::No,
                Restart::OnFailure { max: None },
                Restart::OnFailure { max: Some(1) }
            ])
        )
            .prop_map(|(exit_codes, restart)| (Kind::Job { exit_codes }, restart)),
    ]
}

/// Networks without their implied aliases, which depend on the names.
fn network() -> impl Strategy<Value = Network> {
    prop_oneof![
        Just(Network::None),
        Just(Network::Host),
        Just(Network::Bridge),
        btree_map(
            select(vec!["shop", "shared", "edge", "0"]).prop_map(str::to_owned),
            btree_set("[a-z][a-z0-9_]{0,4}", 0..3).prop_map(|aliases| Attachment { aliases }),
            1..4
        )
        .prop_map(Network::User),
    ]
}

/// Ports of an own range per component, so that no two of a service meet.
fn ports() -> impl Strategy<Value = BTreeSet<(u16, u16, Protocol)>> {
    btree_set(
        (
            0..40_u16,
            1..5_u16,
            select(vec![Protocol::Tcp, Protocol::Udp]),
        ),
        0..6,
    )
}

fn volume() -> impl Strategy<Value = Volume> {
    (
        prop_oneof![
            path().prop_map(VolumeSource::Bind),
            "(shop_|other_|shop__|)[a-z0-9][a-z0-9._-]{0,6}".prop_map(VolumeSource::Named),
        ],
        any::<bool>(),
    )
        .prop_map(|(source, read_only)| Volume { source, read_only })
}

fn tmpfs() -> impl Strategy<Value = Tmpfs> {
    subsequence(vec!["size=64m", "mode=1777", "noexec", "uid=7"], 0..=4).prop_map(|options| Tmpfs {
        options: options.into_iter().map(str::to_owned).collect(),
    })
}

fn file() -> impl Strategy<Value = FileMount> {
    (
        "files/shop/[a-z.é \"]{0,5}[a-z]",
        0..=0o7777_u32,
        option::of((any::<u32>(), any::<u32>())),
        select(vec![
            OnChange::Recreate,
            OnChange::Restart,
            OnChange::Signal("SIGHUP".to_owned()),
            OnChange::Signal("SIGRTMIN+3".to_owned()),
            OnChange::None,
        ]),
    )
        .prop_map(|(from, mode, owner, on_change)| FileMount {
            digest: file_digest(&from),
            from,
            mode,
            owner,
            on_change,
        })
}

fn health() -> impl Strategy<Value = Health> {
    (
        prop_oneof![
            argv().prop_map(Probe::Cmd),
            (1..=u16::MAX, "/[a-z0-9/?=&%\"\\\\]{0,8}", any::<bool>())
                .prop_map(|(port, path, tls)| Probe::Http { port, path, tls }),
            (1..=u16::MAX).prop_map(Probe::Tcp),
        ],
        span(),
        span(),
        1..1000_u32,
        span(),
    )
        .prop_map(|(probe, interval, timeout, retries, start_period)| Health {
            probe,
            interval,
            timeout,
            retries,
            start_period,
        })
}

fn resources() -> impl Strategy<Value = Resources> {
    (
        option::of(prop_oneof![
            (6_u64 << 20)..(1 << 50),
            (6_u64..4096).prop_map(|mib| mib << 20)
        ]),
        option::of(10..10_000_000_u64),
        prop_oneof![Just(2048), 1..4_194_304_u32],
    )
        .prop_map(|(memory_bytes, cpu_millis, pids)| Resources {
            memory_bytes,
            cpu_millis,
            pids,
        })
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map("[a-z][a-z0-9. \"]{0,8}", text(), 0..4).prop_map(|mut labels| {
        labels.retain(|name, _| name != "mcp" && !name.starts_with("mcp."));
        labels
    })
}

/// What came to the spec later.
#[derive(Debug, Clone)]
struct Later {
    devices: BTreeMap<String, Device>,
    ulimits: BTreeMap<String, Ulimit>,
    sysctls: BTreeMap<String, String>,
    security_opt: BTreeSet<String>,
    privileged: bool,
    log: Option<Log>,
}

fn ulimit() -> impl Strategy<Value = Ulimit> {
    (option::of(0..1_u64 << 40), option::of(0..1_u64 << 40)).prop_map(|(one, other)| {
        // Unlimited is the most that there is.
        let (least, most) = (one.min(other), one.max(other));
        match (least, most) {
            (None, most) => Ulimit {
                soft: most,
                hard: None,
            },
            (soft, hard) => Ulimit { soft, hard },
        }
    })
}

fn later() -> impl Strategy<Value = Later> {
    let device =
        (path(), select(vec!["rwm", "r", "rw", "m"])).prop_map(|(host, permissions)| Device {
            host: format!("/dev{host}"),
            permissions: permissions.to_owned(),
        });
    let options = [
        "seccomp=unconfined",
        "label=level:s0:c1",
        "apparmor=mine",
        "no-new-privileges=false",
    ];
    (
        btree_map(path().prop_map(|path| format!("/dev{path}")), device, 0..3),
        btree_map(
            select(vec!["nofile", "core", "memlock"]).prop_map(str::to_owned),
            ulimit(),
            0..3,
        ),
        btree_map(
            select(vec!["net.core.somaxconn", "kernel.sem"]).prop_map(str::to_owned),
            "[0-9]{1,3}( [0-9]{1,3}){0,2}",
            0..2,
        ),
        subsequence(options.to_vec(), 0..=4),
        any::<bool>(),
        option::of(
            (
                select(vec!["json-file", "journald"]).prop_map(str::to_owned),
                btree_map("[a-oq-z][a-z.\" -]{0,5}", text(), 0..3),
            )
                .prop_map(|(driver, options)| Log { driver, options }),
        ),
    )
        .prop_map(
            |(devices, ulimits, sysctls, security_opt, privileged, log)| Later {
                devices,
                ulimits,
                sysctls,
                security_opt: security_opt.into_iter().map(str::to_owned).collect(),
                privileged,
                log,
            },
        )
}

/// A component of any service; ports and implied aliases are still to be settled.
fn component() -> impl Strategy<Value = ComponentSpec> {
    let identity = (
        kind_and_restart(),
        select(vec![
            "web:v1",
            "web:v2",
            "registry.example.net:5000/a/b:v1",
            "web@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ]),
        select(vec![Pull::Missing, Pull::Always, Pull::Never]),
        option::of(argv()),
        option::of(vec(text(), 0..4)),
        btree_map("[^=\u{0}]{1,6}", text(), 0..8),
    );
    let place = (
        option::of(select(vec!["0:0", "nginx", "1000"])),
        option::of(path()),
        option::of(select(vec!["web", "a.example.net"])),
        network(),
        ports(),
        btree_map(path().prop_map(|path| format!("/v{path}")), volume(), 0..3),
        btree_map(path().prop_map(|path| format!("/t{path}")), tmpfs(), 0..3),
        btree_map(path().prop_map(|path| format!("/f{path}")), file(), 0..3),
    );
    let life = (
        any::<bool>(),
        option::of(health()),
        resources(),
        any::<bool>(),
        subsequence(vec!["NET_ADMIN", "SYS_TIME"], 0..=2),
        subsequence(vec!["ALL", "CHOWN"], 0..=2),
        labels(),
        option::of(select(vec!["SIGINT", "SIGRTMIN+3", "SIGRTMAX-2"])),
        (span(), span()),
        btree_map(
            "[a-z]{1,5}",
            select(vec!["10.0.0.5", "2001:db8::1", "host-gateway"]).prop_map(str::to_owned),
            0..3,
        ),
        subsequence(vec!["1.1.1.1", "9.9.9.9", "2620:fe::fe"], 0..=3).prop_shuffle(),
    );
    let owned =
        |names: Vec<&str>| -> BTreeSet<String> { names.into_iter().map(str::to_owned).collect() };
    (identity, place, life, later()).prop_map(
        move |(
            ((kind, restart), image, pull, entrypoint, cmd, env),
            (user, workdir, hostname, network, ports, volumes, tmpfs, files),
            (
                init,
                health,
                resources,
                read_only,
                cap_add,
                cap_drop,
                labels,
                stop_signal,
                (stop_timeout, ready_for),
                extra_hosts,
                dns,
            ),
            later,
        )| {
            let hosted = network == Network::Host;
            let published = matches!(network, Network::User(_) | Network::Bridge);
            let reached = network != Network::None;
            ComponentSpec {
                kind,
                restart,
                image: image.parse().unwrap(),
                pull,
                entrypoint,
                cmd,
                env,
                user: user.map(str::to_owned),
                workdir,
                hostname: hostname.map(str::to_owned),
                network,
                ports: ports
                    .into_iter()
                    .filter(|_| published)
                    .map(|(offset, ip, protocol)| Port {
                        ip: IpAddr::from([127, 0, 0, ip as u8]),
                        host: 1000 + offset,
                        container: 80 + offset,
                        protocol,
                    })
                    .collect(),
                volumes,
                tmpfs,
                files,
                init,
                depends_on: BTreeSet::new(),
                health: health.filter(|health| reached || matches!(health.probe, Probe::Cmd(_))),
                resources,
                read_only,
                cap_add: owned(if later.privileged {
                    Vec::new()
                } else {
                    cap_add
                }),
                cap_drop: owned(if later.privileged {
                    Vec::new()
                } else {
                    cap_drop
                }),
                labels,
                stop_signal: stop_signal.map(str::to_owned),
                stop_timeout,
                extra_hosts: extra_hosts
                    .into_iter()
                    .filter(|(_, address)| reached || address != HOST_GATEWAY)
                    .collect(),
                dns: dns.into_iter().map(|ip| ip.parse().unwrap()).collect(),
                ready_for,
                devices: later.devices,
                ulimits: later.ulimits,
                sysctls: later
                    .sysctls
                    .into_iter()
                    .filter(|(name, _)| !hosted || !name.starts_with("net."))
                    .collect(),
                security_opt: later.security_opt,
                privileged: later.privileged,
                log: later.log,
                secrets: BTreeMap::new(),
                secret_env: BTreeMap::new(),
            }
        },
    )
}

/// A whole service `shop`, dependencies along the order of the names.
pub(crate) fn service() -> impl Strategy<Value = ServiceSpec> {
    let names = vec!["api", "db", "shop", "web"];
    (
        any::<(bool, bool, bool, bool)>(),
        option::of(text()),
        span(),
        btree_map(select(names), (component(), any::<u8>()), 1..4),
    )
        .prop_map(
            |((active, alert, auto, leave), description, deadline, drawn)| {
                let service: ServiceName = "shop".parse().unwrap();
                let mut components: BTreeMap<ComponentName, ComponentSpec> = BTreeMap::new();
                for (index, (name, (mut spec, bits))) in drawn.into_iter().enumerate() {
                    let name: ComponentName = name.parse().unwrap();
                    if let Network::User(attachments) = &mut spec.network {
                        for (network, attachment) in attachments {
                            attachment
                                .aliases
                                .extend(implied_aliases(network, &service, &name));
                        }
                    }
                    spec.ports = std::mem::take(&mut spec.ports)
                        .into_iter()
                        .map(|port| Port {
                            host: port.host + 1000 * index as u16,
                            ..port
                        })
                        .collect();
                    spec.depends_on = components
                        .keys()
                        .enumerate()
                        .filter(|(earlier, _)| bits & (1 << earlier) != 0)
                        .map(|(_, name)| name.clone())
                        .collect();
                    components.insert(name, spec);
                }
                ServiceSpec {
                    name: service,
                    node: "rift".parse().unwrap(),
                    active,
                    description,
                    alert,
                    deadline,
                    reconcile: if auto {
                        Reconcile::Auto
                    } else {
                        Reconcile::Manual
                    },
                    on_failure: if leave {
                        OnFailure::Leave
                    } else {
                        OnFailure::KeepOld
                    },
                    components,
                }
            },
        )
}

/// One component of a drawn service.
pub(crate) fn one_component() -> impl Strategy<Value = ComponentSpec> {
    service().prop_map(|service| service.components.into_values().next().unwrap())
}
