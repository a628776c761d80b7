//! Compiling again what was compiled before: only definitions that changed are read.
//!
//! A repository of thousands of definitions changes a line at a time. What is kept of each file that
//! had no error answers for it as long as its content, and the files that it mounts, are the same.
//! Anything that is wrong is left to the full compilation, which tells it with its place.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::ports::overlap;
use super::{DefinitionFile, DesiredSet, FileLookup, MAX_SERVICES, parse_one, service};
use crate::component::{Port, Protocol, ServiceSpec};
use crate::image::Digest;
use crate::name::NodeName;

/// Names a file's content: equal contents have equal ids. A git object's id does.
pub type ContentId = [u8; 20];

/// Reads the definition at a path, which has this content.
pub type ReadBytes<'a, E> = dyn Fn(&str, &ContentId) -> Result<Vec<u8>, E> + 'a;

/// Definitions of one node as they were compiled last.
#[derive(Debug, Default)]
pub struct Compiled {
    node: Option<NodeName>,
    known: HashMap<String, Known>,
}

/// What is known of a definition that had no error.
#[derive(Debug)]
struct Known {
    content: ContentId,
    read: Read,
}

#[derive(Debug)]
enum Read {
    /// Another node's.
    Other,
    /// This node's, and the repository files that it was compiled with.
    Own(ServiceSpec, Vec<(String, Option<Digest>)>),
}

impl Compiled {
    /// Compiles the definitions of one node as [`super::compile_for_node`] does, from the paths and
    /// contents of all definitions. `bytes` is asked for those alone that were not compiled before.
    ///
    /// `None` where anything is wrong: compile in full then, which tells what.
    ///
    /// # Errors
    ///
    /// Those of `bytes`.
    pub fn compile_for_node<E>(
        &mut self,
        files: &[(&str, ContentId)],
        node: &NodeName,
        bytes: &ReadBytes<'_, E>,
        lookup: &FileLookup<'_>,
    ) -> Result<Option<DesiredSet>, E> {
        if files.len() > MAX_SERVICES {
            return Ok(None);
        }
        if self.node.as_ref() != Some(node) {
            self.known.clear();
            self.node = Some(node.clone());
        }
        for (path, content) in files {
            if self.answers(path, content, lookup) {
                continue;
            }
            self.known.remove(*path);
            let bytes = bytes(path, content)?;
            let file = DefinitionFile {
                path,
                bytes: &bytes,
            };
            let Some(read) = read(file, node, lookup) else {
                return Ok(None);
            };
            let known = Known {
                content: *content,
                read,
            };
            self.known.insert((*path).to_owned(), known);
        }
        if self.known.len() > files.len() {
            let there: BTreeSet<&str> = files.iter().map(|(path, _)| *path).collect();
            self.known.retain(|path, _| there.contains(path.as_str()));
        }
        Ok(self.set())
    }

    /// Whether a file is known with this content and with the files that it mounts as they are now.
    fn answers(&self, path: &str, content: &ContentId, lookup: &FileLookup<'_>) -> bool {
        self.known.get(path).is_some_and(|known| {
            known.content == *content
                && match &known.read {
                    Read::Other => true,
                    Read::Own(_, mounted) => {
                        mounted.iter().all(|(path, digest)| lookup(path) == *digest)
                    }
                }
        })
    }

    /// The set of this node's services, where they do not contradict each other.
    fn set(&self) -> Option<DesiredSet> {
        let mut services = BTreeMap::new();
        let mut containers = BTreeSet::new();
        let mut ports: HashMap<(Protocol, u16), Vec<&Port>> = HashMap::new();
        for known in self.known.values() {
            let Read::Own(service, _) = &known.read else {
                continue;
            };
            for (key, spec) in service.keys().zip(service.components.values()) {
                if !containers.insert(key.container_name()) {
                    return None;
                }
                if !service.active {
                    continue;
                }
                for port in &spec.ports {
                    let same = ports.entry((port.protocol, port.host)).or_default();
                    if same.iter().any(|other| overlap(other, port)) {
                        return None;
                    }
                    same.push(port);
                }
            }
            let before = services.insert(service.name.clone(), service.clone());
            if before.is_some() {
                return None;
            }
        }
        Some(DesiredSet { services })
    }
}

/// Reads one definition; nothing where something is wrong with it.
fn read(file: DefinitionFile<'_>, node: &NodeName, lookup: &FileLookup<'_>) -> Option<Read> {
    let head = service::read_head(&file);
    if head.node.as_ref().is_some_and(|other| other != node) {
        return head.errors.is_empty().then_some(Read::Other);
    }
    let mounted = RefCell::new(Vec::new());
    let (spec, errors) = parse_one(file, &|path| {
        let digest = lookup(path);
        mounted.borrow_mut().push((path.to_owned(), digest));
        digest
    });
    if !errors.is_empty() {
        return None;
    }
    Some(Read::Own(spec?, mounted.into_inner()))
}
