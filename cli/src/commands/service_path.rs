//! `SERVICE:PATH`: a place below a service's folder, and the node that it is on.

use std::fmt;
use std::str::FromStr;

use mcp_spec::name::{ServiceName, Target};

use super::place;
use crate::client::NodeClient;
use crate::config::NodeEntry;
use crate::context::Context;
use crate::error::Failure;

/// A place below a service's folder. Whether the path is one is the agent's to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServicePath {
    /// The service.
    pub(crate) service: ServiceName,
    /// The path in its folder; empty for the folder itself.
    pub(crate) path: String,
}

impl FromStr for ServicePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (service, path) = text.split_once(':').unwrap_or((text, ""));
        let service = service.parse().map_err(|error| {
            format!("{error}; write SERVICE:PATH, as in metacrypt:etc/metacrypt.toml")
        })?;
        Ok(Self {
            service,
            path: path.to_owned(),
        })
    }
}

impl fmt::Display for ServicePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.path)
    }
}

impl ServicePath {
    /// Where a file of this name goes: into the folder that is meant, or to the path itself.
    pub(crate) fn with_name(&self, name: &str) -> String {
        if self.path.is_empty() || self.path.ends_with('/') {
            format!("{}{name}", self.path)
        } else {
            self.path.clone()
        }
    }

    /// The path without a slash at its end.
    pub(crate) fn plain(&self) -> String {
        self.path.strip_suffix('/').unwrap_or(&self.path).to_owned()
    }

    /// The last name of the path.
    pub(crate) fn name(&self) -> Option<String> {
        let plain = self.plain();
        let name = plain.rsplit('/').next().unwrap_or_default();
        (!name.is_empty()).then(|| name.to_owned())
    }

    /// The one node that has the service.
    ///
    /// # Errors
    ///
    /// Where there is none or more than one.
    pub(crate) async fn node<'a>(&self, context: &'a Context) -> Result<&'a NodeEntry, Failure> {
        let target = Target {
            node: None,
            service: self.service.clone(),
            component: None,
        };
        let placed = place::place(context, &[target]).await?;
        match placed.as_slice() {
            [one] => Ok(one.node),
            [] => Err(Failure::failed(format!(
                "no node has a service `{}`",
                self.service
            ))),
            several => {
                let names: Vec<&str> = several.iter().map(|it| it.node.name.as_str()).collect();
                Err(
                    Failure::usage(format!("{} is on {}", self.service, names.join(" and ")))
                        .hint(format!("name one: --node {}", names[0])),
                )
            }
        }
    }

    /// A connection to that node, with the operator's key at hand.
    ///
    /// # Errors
    ///
    /// Where it is not there, or cannot be reached.
    pub(crate) async fn connect(&self, context: &Context) -> Result<NodeClient, Failure> {
        let node = self.node(context).await?;
        super::repository::open_key(context)?;
        NodeClient::connect(context, node).await
    }
}

/// Parts of a path that an agent tells, where they lead nowhere else: an agent is not believed about where this
/// machine's files go.
pub(crate) fn plain_parts(path: &str) -> Option<Vec<&str>> {
    let parts: Vec<&str> = path.split('/').collect();
    let is_plain =
        |part: &&str| !matches!(*part, "" | "." | "..") && !part.chars().any(char::is_control);
    parts.iter().all(is_plain).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> ServicePath {
        text.parse().unwrap()
    }

    #[test]
    fn a_place_is_a_service_and_a_path() {
        assert_eq!(place("shop:etc/a:b").path, "etc/a:b");
        assert_eq!(place("shop").path, "");
        assert_eq!(place("shop:etc/").with_name("x"), "etc/x");
        assert_eq!(place("shop:etc").with_name("x"), "etc");
        assert_eq!(place("shop").with_name("x"), "x");
        assert_eq!(place("shop:etc/").name().as_deref(), Some("etc"));
        assert_eq!(place("shop:").name(), None);
        assert!("../x:a".parse::<ServicePath>().is_err());
        assert!("Shop:a".parse::<ServicePath>().is_err());
    }

    #[test]
    fn what_leads_elsewhere_is_not_written() {
        for bad in ["..", "a/../b", "/a", "a//b", "a/", "", ".", "a\nb"] {
            assert!(plain_parts(bad).is_none(), "{bad:?}");
        }
        assert_eq!(plain_parts("a/b").unwrap(), ["a", "b"]);
    }
}
