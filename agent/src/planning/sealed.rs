//! Which wanted components use secrets that this node cannot have.

use std::collections::BTreeMap;

use mcp_spec::name::{ComponentKey, ServiceName, Target};
use mcp_spec::plan::{Obstacle, Wanted, WantedService};
use mcp_spec::secret::secret_path;

use super::Planner;
use super::facts::Facts;
use super::wanted::chosen;
use crate::blocking::blocking;
use crate::revisions::RevisionStore;

impl Planner {
    /// What is in the way of the secrets of components that are to be changed. What runs unchanged has them.
    pub(super) async fn sealed(
        &self,
        targets: Option<&[Target]>,
        wanted: &BTreeMap<ServiceName, WantedService>,
        facts: &Facts,
    ) -> Vec<(ComponentKey, Obstacle)> {
        let using: Vec<(ComponentKey, Wanted)> = chosen(targets, wanted)
            .filter(|(_, want)| want.spec.used_secrets().next().is_some())
            .filter(|(key, want)| {
                facts
                    .deployed
                    .get(key)
                    .is_none_or(|deployed| deployed.spec != want.spec)
            })
            .map(|(key, want)| (key, want.clone()))
            .collect();
        if using.is_empty() {
            return Vec::new();
        }
        let (store, memory) = (self.revisions.clone(), self.memory.clone());
        blocking(move || {
            let mut obstacles = Vec::new();
            let place = memory.ready().err();
            let keys = store.keyring().usable().err();
            for (key, want) in using {
                // Without them nothing opens, whatever was found out while they were there.
                if let Some(error) = &keys {
                    let obstacle = Obstacle {
                        is_policy: false,
                        reason: format!("its secrets cannot be opened: {error}"),
                        hint: error.hint(),
                    };
                    obstacles.push((key.clone(), obstacle));
                    continue;
                }
                if let Some(error) = place.as_ref().filter(|_| !want.spec.secrets.is_empty()) {
                    let obstacle = Obstacle {
                        is_policy: false,
                        reason: error.to_string(),
                        hint: error.hint(),
                    };
                    obstacles.push((key.clone(), obstacle));
                }
                let found = in_the_way(&store, &key, &want);
                obstacles.extend(found.into_iter().map(|obstacle| (key.clone(), obstacle)));
            }
            obstacles
        })
        .await
    }
}

/// The secrets of one component that cannot be opened, each with why.
fn in_the_way(store: &RevisionStore, key: &ComponentKey, want: &Wanted) -> Vec<Obstacle> {
    let keyring = store.keyring();
    let mut obstacles = Vec::new();
    for (name, digest) in want.spec.used_secrets() {
        if let Some(trouble) = keyring.trouble(&digest) {
            obstacles.push(Obstacle {
                is_policy: false,
                reason: trouble.to_string(),
                hint: trouble.hint(),
            });
            continue;
        }
        if want.uncommitted {
            continue;
        }
        // An older value may have been recorded under keys that are gone.
        let path = secret_path(&key.service, name);
        let head = store.head().filter(|head| *head != want.revision);
        let mut trouble = None;
        let opens = std::iter::once(want.revision).chain(head).any(|commit| {
            let Ok(Some(sealed)) = store.read_file(commit, &path) else {
                return false;
            };
            let found = keyring.digest(&path, &sealed);
            if trouble.is_none() {
                trouble = keyring.trouble(&found);
            }
            found == digest
        });
        if !opens {
            obstacles.push(match trouble {
                Some(trouble) => Obstacle {
                        is_policy: false,
                    reason: trouble.to_string(),
                    hint: format!(
                        "the value of {} can be had no more: mcp secret set {} {name}, and deploy the head",
                        want.revision.short(),
                        key.service
                    ),
                },
                None => Obstacle {
                        is_policy: false,
                    reason: format!(
                        "the value of the secret {}/{name} that was deployed is in no revision at hand",
                        key.service
                    ),
                    hint: "deploy the head".to_owned(),
                },
            });
        }
    }
    obstacles
}
