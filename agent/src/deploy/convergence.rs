//! The proof that a deployment has converged: the plan of what was deployed, made once more, is empty.
//!
//! It is made by the planner itself, of the rows as they were committed and of the containers as their
//! gates saw them last. What is not empty would be done again by the next deployment, and by the one
//! after it: so its spec is quarantined, and the agent by itself leaves it as it is.

use std::collections::{BTreeMap, BTreeSet};

use mcp_spec::image::Digest;
use mcp_spec::name::Target;
use mcp_spec::observed::{LiveContainer, Observed};
use mcp_spec::plan::{ActionKind, Options, PlanInput, Purpose, Wanted, WantedService, plan};

use super::execution::Execution;
use crate::planning::deployed_of;
use crate::registry::{DeployedRow, Quarantined};

/// What each reason begins with.
const WORDS: &str = "not converged";

impl Execution {
    /// The components whose plan is not empty, with what it would do and why.
    pub(super) fn unconverged(&self, looks: &[(DeployedRow, LiveContainer)]) -> Vec<Quarantined> {
        // A stop, a start or a restart takes a container as it is.
        if self.order.purpose.is_none() || looks.is_empty() {
            return Vec::new();
        }
        let mut wanted = WantedService {
            settings: self.plan.settings,
            components: BTreeMap::new(),
        };
        let mut deployed = BTreeMap::new();
        let mut observed = BTreeMap::new();
        for (row, live) in looks {
            wanted.components.insert(
                row.key.component.clone(),
                Wanted {
                    spec: row.spec.clone(),
                    revision: row.revision,
                    image: Some(row.image_id.clone()),
                    uncommitted: false,
                },
            );
            deployed.insert(row.key.clone(), deployed_of(row, 0));
            observed.insert(row.key.clone(), Observed::Present(Box::new(live.clone())));
        }
        let service = self.plan.service.clone();
        let targets = [Target {
            node: None,
            service: service.clone(),
            component: None,
        }];
        let again = plan(&PlanInput {
            node: &self.context.node,
            revision: self.plan.revision,
            // As an operator would do it once more: nothing that the agent would leave is overlooked.
            purpose: Purpose::Deploy,
            targets: Some(&targets),
            options: Options::default(),
            wanted: &BTreeMap::from([(service, wanted)]),
            deployed: &deployed,
            observed: &observed,
            foreign_names: &BTreeMap::new(),
            moved_images: &BTreeMap::new(),
            forbidden: &BTreeMap::new(),
            quarantined: &BTreeSet::new(),
            policy_digest: Digest::of(b""),
        });
        let actions = again.services().iter().flat_map(|part| &part.actions);
        actions
            .filter(|action| action.kind != ActionKind::None || !action.files.is_empty())
            .filter_map(|action| {
                let (row, _) = looks
                    .iter()
                    .find(|(row, _)| row.key.component == action.component)?;
                Some(Quarantined {
                    key: row.key.clone(),
                    spec_digest: row.spec_digest,
                    image_id: row.image_id.clone(),
                    deployment: self.id.clone(),
                    at: self.context.clock.now(),
                    reason: format!("{WORDS}: {}", action.reason),
                })
            })
            .collect()
    }

    /// The components that this deployment set, with their containers as they are now: after a crash
    /// nobody remembers how their gates saw them.
    pub(super) async fn look_again(&self) -> Vec<(DeployedRow, LiveContainer)> {
        let mut looks = Vec::new();
        let rows = self
            .context
            .registry
            .deployed_of(self.plan.service.clone())
            .await
            .unwrap_or_default();
        for row in rows.into_iter().filter(|row| row.deployment == self.id) {
            let seen = self.context.runtime.inspect(row.container.as_str()).await;
            // What ended meanwhile is its restart policy's.
            if let Ok(Some(live)) = seen
                && live.state.is_running()
            {
                looks.push((row, live));
            }
        }
        looks
    }
}

/// What did not converge, in one sentence; `None` where everything did.
pub(super) fn text(unconverged: &[Quarantined]) -> Option<String> {
    let texts: Vec<String> = unconverged
        .iter()
        .map(|one| {
            let reason = one.reason.trim_start_matches(WORDS);
            format!("{}{reason}", one.key.component)
        })
        .collect();
    (!texts.is_empty()).then(|| format!("{WORDS}: {}", texts.join("; ")))
}
