//! A node as it would be after containers were adopted: what an adoption that is only tried tells.

use mcp_spec::diff::FieldChange;
use mcp_spec::observed::{LiveContainer, Observed};

use super::facts::{Facts, deployed_of};
use crate::registry::DeployedRow;

/// A container that is taken for adopted.
#[derive(Debug, Clone)]
pub struct Supposed {
    /// What the registry would have of it.
    pub row: DeployedRow,
    /// What no definition says of it.
    pub departures: Vec<FieldChange>,
    /// The container.
    pub live: LiveContainer,
}

impl Facts {
    /// The same with these containers adopted: their names are no longer somebody else's.
    pub(super) fn supposing(mut self, supposed: &[Supposed]) -> Self {
        for one in supposed {
            let key = &one.row.key;
            let mut deployed = deployed_of(&one.row, 0);
            deployed.adopted = one.row.adopted.then(|| one.departures.clone());
            self.deployed.insert(key.clone(), deployed);
            self.settings.insert(key.service.clone(), one.row.settings);
            let live = Box::new(one.live.clone());
            self.observed.insert(key.clone(), Observed::Present(live));
            self.foreign.retain(|_, id| *id != one.row.container);
            self.rows.push(one.row.clone());
        }
        self
    }
}
