//! The parts that do without disk and engine, for two thousand components.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Instant;

use mcp_spec::definition::{Compiled, ContentId, DefinitionFile, compile};
use mcp_spec::image::Digest;
use mcp_spec::name::ComponentKey;
use mcp_spec::observed::{
    ContainerId, ContainerState, DesiredState, ImageId, LiveContainer, Observed,
};
use mcp_spec::plan::{
    Deployed, Options, PlanInput, Purpose, ServiceSettings, Wanted, WantedService, plan,
};
use mcp_spec::revision::CommitId;
use mcp_spec::signature::{GIT_NAMESPACE, verify_sshsig};
use ssh_key::private::Ed25519Keypair;
use ssh_key::{HashAlg, LineEnding, PrivateKey};

use crate::rounds::definition;
use crate::table::{Bar, Row, Table, ms};

/// Services of twenty components each.
const SERVICES: usize = 100;
const COMPONENTS: usize = SERVICES * 20;

pub(crate) fn measure(rounds: usize, table: &mut Table) {
    let texts: Vec<(String, String)> = (0..SERVICES)
        .map(|number| {
            let name = format!("s{number:03}");
            let text = definition(&name, 20, "1", "/srv/data".as_ref())
                .replace(&format!("node = \"{name}\""), "node = \"rift\"");
            (format!("services/{name}.toml"), text)
        })
        .collect();
    let files: Vec<DefinitionFile<'_>> = texts
        .iter()
        .map(|(path, text)| DefinitionFile {
            path,
            bytes: text.as_bytes(),
        })
        .collect();
    let set = compile(&files, &|_| None).unwrap();
    let mut add = |what: &str, bar: Option<f64>, work: &mut dyn FnMut()| {
        work();
        let samples = (0..rounds)
            .map(|_| {
                let start = Instant::now();
                work();
                ms(start.elapsed())
            })
            .collect();
        table.add(Row {
            place: "no engine".to_owned(),
            size: COMPONENTS,
            what: what.to_owned(),
            contender: "mcp".to_owned(),
            unit: "ms",
            samples,
            floor: None,
            bar: bar.map(Bar::Most),
        });
    };
    add("compile all definitions", None, &mut || {
        assert!(compile(&files, &|_| None).is_ok());
    });
    let node = "rift".parse().unwrap();
    let mut compiled = Compiled::default();
    let mut turn = 0_u8;
    add("compile after a change of one line", None, &mut || {
        turn += 1;
        let contents: Vec<(&str, ContentId)> = files
            .iter()
            .enumerate()
            .map(|(number, file)| {
                // Another content in each turn for the first, the same for all others.
                let mut id = [0; 20];
                id[..8].copy_from_slice(&number.to_be_bytes());
                id[19] = if number == 0 { turn } else { 0 };
                (file.path, id)
            })
            .collect();
        let bytes = |path: &str, _: &ContentId| {
            let file = files.iter().find(|file| file.path == path).unwrap();
            Ok::<_, Infallible>(file.bytes.to_vec())
        };
        let set = compiled.compile_for_node(&contents, &node, &bytes, &|_| None);
        assert!(set.unwrap().is_some());
    });

    let revision = CommitId::from_bytes([1; 20]);
    let fields: BTreeMap<String, String> = (0..30)
        .map(|number| {
            (
                format!("field{number}"),
                "a value of some length".to_owned(),
            )
        })
        .collect();
    let (mut wanted, mut deployed, mut observed) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, service) in &set.services {
        let mut components = BTreeMap::new();
        for (component, spec) in &service.components {
            let key = ComponentKey::new(name.clone(), component.clone());
            let image = ImageId::new("sha256:0");
            let container = ContainerId::new(key.container_name());
            components.insert(
                component.clone(),
                Wanted {
                    spec: spec.clone(),
                    revision,
                    image: Some(image.clone()),
                    uncommitted: false,
                },
            );
            observed.insert(
                key.clone(),
                Observed::Present(Box::new(LiveContainer {
                    id: container.clone(),
                    name: key.container_name(),
                    image_id: image.clone(),
                    image_name: spec.image.to_string(),
                    state: ContainerState::Running { pid: Some(1) },
                    labels: BTreeMap::new(),
                    started_at: None,
                    finished_at: None,
                    fields: fields.clone(),
                    addresses: BTreeMap::new(),
                })),
            );
            deployed.insert(
                key,
                Deployed {
                    spec: spec.clone(),
                    spec_digest: spec.digest(),
                    image,
                    revision,
                    container,
                    generation: 1,
                    desired: DesiredState::Running,
                    stopped_by: None,
                    held_at: None,
                    baseline: fields.clone(),
                    restarts: 0,
                    adopted: None,
                    ended: false,
                },
            );
        }
        let settings = ServiceSettings::of(service);
        wanted.insert(
            name.clone(),
            WantedService {
                settings,
                components,
            },
        );
    }
    let policy_digest = Digest::of(b"");
    let nothing = (
        BTreeMap::new(),
        BTreeMap::new(),
        BTreeMap::new(),
        BTreeSet::new(),
    );
    add("plan", Some(20.0), &mut || {
        let plan = plan(&PlanInput {
            node: &node,
            revision,
            purpose: Purpose::Deploy,
            targets: None,
            options: Options::default(),
            wanted: &wanted,
            deployed: &deployed,
            observed: &observed,
            foreign_names: &nothing.0,
            moved_images: &nothing.1,
            forbidden: &nothing.2,
            quarantined: &nothing.3,
            policy_digest,
        });
        assert!(plan.services().iter().all(|service| service.is_noop()));
    });

    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]));
    let payload = b"tree 0\n".repeat(50);
    let pem = key.sign("git", HashAlg::Sha512, &payload).unwrap();
    let pem = pem.to_pem(LineEnding::LF).unwrap();
    add("verify as many signatures", None, &mut || {
        for _ in 0..COMPONENTS {
            verify_sshsig(&pem, GIT_NAMESPACE, &payload).unwrap();
        }
    });
}
