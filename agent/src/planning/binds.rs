//! Where binds lead on this node: what the policy's words alone cannot tell.
//!
//! An engine follows a bind's source anew at each start of a container. So what lies beneath the path that the
//! owner allows is no symbolic link, and nothing there can be exchanged by a container: a source does not
//! lie strictly beneath a folder that some container writes.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use mcp_spec::component::{ComponentSpec, Volume, VolumeSource};
use mcp_spec::name::ComponentKey;
use mcp_spec::plan::Obstacle;
use mcp_spec::policy::{Policy, allow};

/// The binds of a node as a plan leaves them, and the places that none of them may lead to.
pub(super) struct Binds<'a> {
    policy: &'a Policy,
    /// Where the agent's folder and the engine's paths really are.
    protected: Vec<(String, PathBuf)>,
    /// Who writes a folder: the first component in order.
    writers: BTreeMap<PathBuf, &'a ComponentKey>,
    /// Whose source a path is: the first component in order.
    sources: BTreeMap<PathBuf, &'a ComponentKey>,
}

impl<'a> Binds<'a> {
    /// Takes up the specs that the node has or will have.
    pub(super) fn of(
        policy: &'a Policy,
        data_dir: &Path,
        specs: impl Iterator<Item = (&'a ComponentKey, &'a ComponentSpec)>,
    ) -> Self {
        let mut writers = BTreeMap::new();
        let mut sources = BTreeMap::new();
        for (key, spec) in specs {
            for (source, volume) in binds(spec) {
                sources.entry(PathBuf::from(source)).or_insert(key);
                if !volume.read_only {
                    writers.entry(PathBuf::from(source)).or_insert(key);
                }
            }
        }
        let mut protected = Vec::new();
        if !sources.is_empty() {
            let agents = data_dir.display().to_string();
            let named = std::iter::once(("the agent's data directory", agents.as_str()))
                .chain(policy.engine_paths().map(|path| ("the engine's own", path)));
            for (whose, path) in named {
                if let Ok(real) = std::fs::canonicalize(path) {
                    protected.push((format!("{whose} {path}"), real));
                }
            }
        }
        Self {
            policy,
            protected,
            writers,
            sources,
        }
    }

    /// What stands in the way of a component's binds; `own` is its service's folder, which a first deploy makes.
    pub(super) fn obstacles(
        &self,
        key: &ComponentKey,
        spec: &ComponentSpec,
        own: &Path,
    ) -> Vec<Obstacle> {
        binds(spec)
            .filter_map(|(source, volume)| {
                self.leads_elsewhere(key, source, own)
                    .or_else(|| self.nested(key, source, volume))
            })
            .collect()
    }

    /// A source that is missing, goes through a symbolic link, or is a protected place under another name.
    fn leads_elsewhere(&self, key: &ComponentKey, source: &str, own: &Path) -> Option<Obstacle> {
        let path = Path::new(source);
        let missing = || Obstacle {
            is_policy: false,
            reason: format!("bind source {source} does not exist"),
            hint: "create it on the node, or use a named volume".to_owned(),
        };
        let unreadable = |error: &io::Error| Obstacle {
            is_policy: false,
            reason: format!("bind source {source} cannot be looked at: {error}"),
            hint: "the agent's user must reach it".to_owned(),
        };
        let allowed = PathBuf::from(self.policy.host_path_of(key, source)?);
        match link_beneath(&allowed, path) {
            Ok(None) => {}
            Ok(Some(link)) => {
                let real = std::fs::canonicalize(path);
                return Some(Obstacle {
                    is_policy: true,
                    reason: format!(
                        "bind {source} goes through the symbolic link {}",
                        link.display()
                    ),
                    hint: match real {
                        Ok(real) => format!(
                            "bind {} itself, where policy.host_paths allows it",
                            real.display()
                        ),
                        Err(_) => "bind the folder itself".to_owned(),
                    },
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return (path != own).then(missing);
            }
            Err(error) => return Some(unreadable(&error)),
        }
        let real = match std::fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) => return Some(unreadable(&error)),
        };
        self.protected
            .iter()
            .find(|(_, protected)| real.starts_with(protected) || protected.starts_with(&real))
            .map(|(what, _)| Obstacle {
                is_policy: true,
                reason: format!("bind {source} leads to {what}"),
                hint: "no policy allows this: bind another folder".to_owned(),
            })
    }

    /// A source beneath a folder that some container writes, or a written folder above some source.
    fn nested(&self, key: &ComponentKey, source: &str, volume: &Volume) -> Option<Obstacle> {
        let path = Path::new(source);
        let beneath = path.ancestors().skip(1).find_map(|folder| {
            let (folder, writer) = self.writers.get_key_value(folder)?;
            let shown = folder.display().to_string();
            (!self.policy.allows_beneath(key, &shown)).then(|| Obstacle {
                is_policy: true,
                reason: format!("bind {source} lies in {shown}, which {writer} can write"),
                hint: beside(&shown),
            })
        });
        if beneath.is_some() || volume.read_only || self.policy.allows_beneath(key, source) {
            return beneath;
        }
        // In the order of paths whatever lies beneath one follows it at once.
        let (inner, whose) = self
            .sources
            .range(path.to_owned()..)
            .find(|(inner, _)| inner.as_path() != path)
            .filter(|(inner, _)| inner.starts_with(path))?;
        Some(Obstacle {
            is_policy: true,
            reason: format!(
                "bind {source} can be written, and {} of {whose} lies in it",
                inner.display()
            ),
            hint: beside(source),
        })
    }
}

fn beside(folder: &str) -> String {
    format!(
        "bind folders that lie side by side, or only read; {}",
        allow("nested_binds", &format!("\"{folder}\""))
    )
}

fn binds(spec: &ComponentSpec) -> impl Iterator<Item = (&str, &Volume)> {
    spec.volumes
        .values()
        .filter_map(|volume| match &volume.source {
            VolumeSource::Bind(source) => Some((source.as_str(), volume)),
            VolumeSource::Named(_) => None,
        })
}

/// The first symbolic link on the way from `allowed`, which is the owner's, to `source`.
fn link_beneath(allowed: &Path, source: &Path) -> io::Result<Option<PathBuf>> {
    let mut at = allowed.to_owned();
    std::fs::symlink_metadata(&at)?;
    for part in source.strip_prefix(allowed).into_iter().flatten() {
        at.push(part);
        if std::fs::symlink_metadata(&at)?.is_symlink() {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
