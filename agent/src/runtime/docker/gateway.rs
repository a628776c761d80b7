//! The node's own address for the containers of podman before 5.3, which takes `host-gateway` for an
//! address and writes the word into `/etc/hosts`.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use mcp_spec::component::{HOST_GATEWAY, Network};
use serde::Deserialize;

use super::super::{EngineFacts, RuntimeError};
use super::http::{Call, encoded};
use super::{DockerRuntime, errors, session};

/// Podman's default network, by its name in every release.
const DEFAULT_NETWORK: &str = "podman";

/// Whether the engine itself puts an address in the word's place.
pub(super) fn is_known_to(facts: &EngineFacts) -> bool {
    release(facts) >= (5, 3)
}

fn release(facts: &EngineFacts) -> (u32, u32) {
    let mut parts = facts
        .version
        .split('.')
        .map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// The address at which a container of this network reaches the node.
pub(super) async fn address(
    runtime: &DockerRuntime,
    facts: &EngineFacts,
    network: &Network,
) -> Result<IpAddr, RuntimeError> {
    let cannot = |why: String| RuntimeError::Unsupported {
        what: format!("`{HOST_GATEWAY}` in extra_hosts"),
        why,
    };
    if *network == Network::Host {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    if facts.rootless {
        // With slirp4netns containers reach the node at any address of it but the loopback. The pasta of
        // 5.0 gives them that address themselves.
        if release(facts) >= (5, 0) {
            return Err(cannot(format!(
                "rootless podman {} gives containers no address of the node; 5.3 does",
                facts.version
            )));
        }
        return own_address().ok_or_else(|| {
            cannot(
                "the node has no address but the loopback, which containers cannot reach"
                    .to_owned(),
            )
        });
    }
    // The gateway of a bridge is the node itself.
    let names: Vec<&str> = match network {
        Network::User(attachments) => attachments.keys().map(String::as_str).collect(),
        _ => vec![DEFAULT_NETWORK],
    };
    for name in names {
        if let Some(gateway) = gateway_of(runtime, name).await? {
            return Ok(gateway);
        }
    }
    Err(cannot("none of its networks has a gateway".to_owned()))
}

async fn gateway_of(runtime: &DockerRuntime, name: &str) -> Result<Option<IpAddr>, RuntimeError> {
    #[derive(Deserialize)]
    struct Described {
        #[serde(default)]
        subnets: Vec<Subnet>,
    }
    #[derive(Deserialize)]
    struct Subnet {
        #[serde(default)]
        gateway: Option<IpAddr>,
    }
    let answer = runtime
        .send(|_| {
            let name = encoded(name);
            Call::get(
                "network",
                format!("{}/networks/{name}/json", session::LIBPOD),
            )
        })
        .await?;
    if errors::is_missing(&answer) {
        return Ok(None);
    }
    let described: Described = answer.ok()?.parsed()?;
    Ok(described.subnets.into_iter().find_map(|it| it.gateway))
}

/// The address that the node sends from. Nothing is sent: a datagram socket only looks for the route.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // An address of no one (RFC 5737): the default route decides.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}
