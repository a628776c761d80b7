//! Services of which the head wants something that failed its gate on this node.

use std::collections::BTreeSet;
use std::sync::Arc;

use mcp_spec::image::Digest;
use mcp_spec::name::{ComponentKey, ServiceName};

use crate::blocking::blocking;
use crate::desired::Desired;
use crate::registry::{DeployedRow, Registry, RegistryError};

/// The services whose newest spec failed its gate, and is still what the head wants: what is deployed of
/// them meanwhile is an older one. A component that an operator holds is where the operator wants it.
pub(super) async fn services(
    registry: &Registry,
    desired: &Arc<Desired>,
    rows: &[DeployedRow],
) -> Result<BTreeSet<ServiceName>, RegistryError> {
    let quarantined: BTreeSet<(ComponentKey, Digest)> = registry
        .quarantined()
        .await?
        .into_iter()
        .map(|entry| (entry.key, entry.spec_digest))
        .collect();
    if quarantined.is_empty() {
        return Ok(BTreeSet::new());
    }
    let desired = Arc::clone(desired);
    // A head that cannot be read wants nothing that is known.
    let Some(head) = blocking(move || desired.head()).await else {
        return Ok(BTreeSet::new());
    };
    let wanted = head.services.values().filter(|service| service.active);
    Ok(wanted
        .flat_map(|service| service.keys().zip(service.components.values()))
        .filter(|(key, spec)| quarantined.contains(&(key.clone(), spec.digest())))
        .filter(|(key, spec)| {
            let row = rows.iter().find(|row| row.key == *key);
            row.is_none_or(|row| row.hold.is_none() && row.spec_digest != spec.digest())
        })
        .map(|(key, _)| key.service)
        .collect())
}
