//! The secrets of the work tree: what lies there, who uses it, and whom it is encrypted to.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::Path;

use mcp_cli::repo::{At, DesiredRepo};
use mcp_seal::recipients_of;
use mcp_spec::component::ServiceSpec;
use mcp_spec::definition::{DefinitionFile, parse_one};
use mcp_spec::image::Digest;
use mcp_spec::name::{NodeName, SecretName, ServiceName};
use mcp_spec::secret::{RECIPIENTS_PATH, Recipients, secret_at};

use crate::error::{Exit, Failure};

/// One secret of the work tree.
pub(super) struct Stored {
    /// Its service.
    pub(super) service: ServiceName,
    /// Its name.
    pub(super) name: SecretName,
    /// The file's bytes.
    pub(super) sealed: Vec<u8>,
    /// The nodes that it is encrypted to, each with its recipient; none where it is no sealed file.
    pub(super) nodes: Option<BTreeMap<NodeName, String>>,
}

/// What the work tree says of secrets.
pub(super) struct Secrets {
    /// All of them, by service and name.
    pub(super) stored: Vec<Stored>,
    /// The services that can be read, whether or not all that they name is there.
    pub(super) services: BTreeMap<ServiceName, ServiceSpec>,
    /// The nodes' recipients.
    pub(super) recipients: Recipients,
    /// The text that they stand in.
    pub(super) recipients_text: String,
}

impl Secrets {
    /// Reads the work tree.
    pub(super) fn read(repo: &DesiredRepo) -> Result<Self, Failure> {
        let failed =
            |error: mcp_cli::repo::ReadError| Failure::of(Exit::Failed, &error).hint(error.hint());
        let files = repo.files(At::WorkTree).map_err(failed)?;
        let mut stored = Vec::new();
        for path in files.paths() {
            let Some((service, name)) = secret_at(path) else {
                continue;
            };
            let sealed = files.read(path).map_err(failed)?.unwrap_or_default();
            stored.push(Stored {
                service,
                name,
                nodes: recipients_of(&sealed).ok(),
                sealed,
            });
        }
        let mut services = BTreeMap::new();
        for path in files.definitions() {
            let bytes = files.read(path).map_err(failed)?.unwrap_or_default();
            let file = DefinitionFile {
                path,
                bytes: &bytes,
            };
            // A secret that is not there yet is about to be set.
            let (service, _) = parse_one(file, &|path| Some(Digest::of(path.as_bytes())));
            if let Some(service) = service {
                services.insert(service.name.clone(), service);
            }
        }
        let bytes = files.read(RECIPIENTS_PATH).map_err(failed)?;
        let bytes = bytes.unwrap_or_default();
        let recipients = Recipients::parse(&bytes).map_err(|error| {
            Failure::of(Exit::Failed, &error).hint(format!(
                "mend it, or: git checkout HEAD -- {RECIPIENTS_PATH}"
            ))
        })?;
        Ok(Self {
            stored,
            services,
            recipients,
            recipients_text: String::from_utf8(bytes).unwrap_or_default(),
        })
    }

    /// The components that use a secret.
    pub(super) fn users(&self, service: &ServiceName, name: &SecretName) -> Vec<String> {
        let components = self
            .services
            .get(service)
            .map(|service| &service.components);
        components
            .into_iter()
            .flatten()
            .filter(|(_, spec)| spec.used_secrets().any(|(used, _)| used == name))
            .map(|(component, _)| component.to_string())
            .collect()
    }

    /// The node that runs a service.
    pub(super) fn node_of(&self, service: &ServiceName) -> Option<&NodeName> {
        self.services.get(service).map(|service| &service.node)
    }

    /// Why a secret has to be encrypted anew, where it has to.
    pub(super) fn stale(&self, secret: &Stored) -> Option<String> {
        let Some(nodes) = &secret.nodes else {
            return Some("no encrypted file".to_owned());
        };
        let node = self.node_of(&secret.service)?;
        let Some(sealed_to) = nodes.get(node) else {
            return Some(format!("not for {node}"));
        };
        match self.recipients.of(node) {
            Some(recipient) if recipient != sealed_to => Some(format!("{node} has a new identity")),
            _ => None,
        }
    }

    /// The services that have secrets or use some.
    pub(super) fn missing(&self) -> BTreeSet<(ServiceName, SecretName)> {
        let stored: BTreeSet<_> = self
            .stored
            .iter()
            .map(|one| (one.service.clone(), one.name.clone()))
            .collect();
        let used = self.services.values().flat_map(|service| {
            let specs = service.components.values();
            specs.flat_map(|spec| {
                spec.used_secrets()
                    .map(|(name, _)| (service.name.clone(), name.clone()))
            })
        });
        used.filter(|one| !stored.contains(one)).collect()
    }
}

/// Writes a file of the work tree whole or not at all.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error: &std::io::Error| {
        Failure::failed(format!("{} cannot be written", path.display())).because(error)
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
    let mut beside = tempfile::NamedTempFile::new_in(folder).map_err(|error| failed(&error))?;
    beside.write_all(bytes).map_err(|error| failed(&error))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    beside
        .as_file()
        .set_permissions(mode)
        .map_err(|error| failed(&error))?;
    beside.persist(path).map_err(|error| failed(&error.error))?;
    Ok(())
}
