//! Names of nodes, services and components, and the identities made of them.
//!
//! A name is built by `FromStr` alone, and serde goes through it, so a value of these types is
//! always well formed: `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Longest name, in bytes: a DNS label, since names become container aliases.
pub const MAX_NAME_BYTES: usize = 63;

/// Service names that would collide with an engine's own words or with the agent's.
pub const RESERVED_SERVICE_NAMES: [&str; 9] = [
    "mcp",
    "host",
    "none",
    "bridge",
    "default",
    "podman",
    "container",
    "pasta",
    "slirp4netns",
];

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// Nothing at all.
    #[error("a name cannot be empty")]
    Empty,
    /// Longer than [`MAX_NAME_BYTES`].
    #[error("`{name}` has {length} characters; a name has at most 63")]
    TooLong {
        /// The refused text.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
    /// A character outside `[a-z0-9-]`, or a hyphen at either end.
    #[error(
        "`{name}` is not a name: use lower-case letters, digits and inner hyphens (found `{found}`)"
    )]
    BadCharacter {
        /// The refused text.
        name: String,
        /// The first character that is not allowed where it stands.
        found: char,
    },
    /// One of [`RESERVED_SERVICE_NAMES`].
    #[error("`{name}` is reserved and cannot be the name of a service")]
    Reserved {
        /// The refused text.
        name: String,
    },
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if text.len() > MAX_NAME_BYTES {
        return Err(NameError::TooLong {
            name: text.chars().take(80).collect(),
            length: text.len(),
        });
    }
    let last = text.chars().count() - 1;
    for (index, found) in text.chars().enumerate() {
        let inner_hyphen = found == '-' && index != 0 && index != last;
        if !(found.is_ascii_lowercase() || found.is_ascii_digit() || inner_hyphen) {
            return Err(NameError::BadCharacter {
                name: text.to_owned(),
                found,
            });
        }
    }
    Ok(())
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $extra:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text)?;
                let extra: fn(&str) -> Result<(), NameError> = $extra;
                extra(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// The name of a node: the one agent that runs a service.
    NodeName,
    |_| Ok(())
);
name_type!(
    /// The name of a service; never one of [`RESERVED_SERVICE_NAMES`].
    ServiceName,
    |text| {
        if RESERVED_SERVICE_NAMES.contains(&text) {
            return Err(NameError::Reserved {
                name: text.to_owned(),
            });
        }
        Ok(())
    }
);
name_type!(
    /// The name of a component within its service.
    ComponentName,
    |_| Ok(())
);

name_type!(
    /// The name of a secret within its service.
    SecretName,
    |_| Ok(())
);

/// A component within a node: `service/component`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComponentKey {
    /// The service.
    pub service: ServiceName,
    /// The component.
    pub component: ComponentName,
}

impl ComponentKey {
    /// The key of `component` in `service`.
    #[must_use]
    pub fn new(service: ServiceName, component: ComponentName) -> Self {
        Self { service, component }
    }

    /// The name of the container that runs this component: `SERVICE-COMPONENT`, or `SERVICE`
    /// where both names are equal.
    #[must_use]
    pub fn container_name(&self) -> String {
        if self.service.as_str() == self.component.as_str() {
            self.service.to_string()
        } else {
            format!("{}-{}", self.service, self.component)
        }
    }
}

impl fmt::Display for ComponentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.service, self.component))
    }
}

impl FromStr for ComponentKey {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.split('/').collect::<Vec<_>>().as_slice() {
            [service, component] => Ok(Self {
                service: service.parse()?,
                component: component.parse()?,
            }),
            _ => Err(TargetError::Shape {
                target: text.to_owned(),
            }),
        }
    }
}

impl TryFrom<String> for ComponentKey {
    type Error = TargetError;

    fn try_from(text: String) -> Result<Self, TargetError> {
        text.parse()
    }
}

impl From<ComponentKey> for String {
    fn from(key: ComponentKey) -> Self {
        key.to_string()
    }
}

/// A component's identity in the whole fleet: `node/service/component`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ComponentId {
    /// The node that runs it.
    pub node: NodeName,
    /// Service and component.
    pub key: ComponentKey,
}

impl fmt::Display for ComponentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.node, self.key))
    }
}

/// What a command is about: `SERVICE`, `SERVICE/COMPONENT`, `NODE/SERVICE/COMPONENT` or
/// `NODE/SERVICE/*`. Two segments are always service and component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The node, where the target names one.
    pub node: Option<NodeName>,
    /// The service.
    pub service: ServiceName,
    /// The component; `None` for the whole service.
    pub component: Option<ComponentName>,
}

impl Target {
    /// Whether the target covers `key`, its node left aside.
    #[must_use]
    pub fn covers(&self, key: &ComponentKey) -> bool {
        self.service == key.service && self.component.as_ref().is_none_or(|c| *c == key.component)
    }
}

/// Why a text is not a target.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TargetError {
    /// One of its names is malformed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Too many or too few segments.
    #[error(
        "`{target}` is not a target: write SERVICE, SERVICE/COMPONENT, NODE/SERVICE/COMPONENT or NODE/SERVICE/*"
    )]
    Shape {
        /// The refused text.
        target: String,
    },
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let (node, service, component) = match text.split('/').collect::<Vec<_>>().as_slice() {
            [service] => (None, service.parse()?, None),
            [service, "*"] => (None, service.parse()?, None),
            [service, component] => (None, service.parse()?, Some(component.parse()?)),
            [node, service, "*"] => (Some(node.parse()?), service.parse()?, None),
            [node, service, component] => (
                Some(node.parse()?),
                service.parse()?,
                Some(component.parse()?),
            ),
            _ => {
                return Err(TargetError::Shape {
                    target: text.to_owned(),
                });
            }
        };
        Ok(Self {
            node,
            service,
            component,
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.node, &self.component) {
            (None, None) => write!(f, "{}", self.service),
            (None, Some(component)) => write!(f, "{}/{component}", self.service),
            (Some(node), None) => write!(f, "{node}/{}/*", self.service),
            (Some(node), Some(component)) => write!(f, "{node}/{}/{component}", self.service),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "0", "a-b", "metacrypt", &"a".repeat(63)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a.b",
            "é",
            &"a".repeat(64),
            "a\n",
        ] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn reserved_words_are_no_services() {
        assert!("mcp".parse::<ServiceName>().is_err());
        assert!("mcp".parse::<NodeName>().is_ok());
    }

    #[test]
    fn two_segments_are_service_and_component() {
        let target: Target = "shop/web".parse().unwrap();
        assert_eq!(target.node, None);
        assert_eq!(target.component.unwrap().as_str(), "web");
        let whole: Target = "rift/shop/*".parse().unwrap();
        assert_eq!(whole.node.unwrap().as_str(), "rift");
        assert_eq!(whole.component, None);
        assert!("a/b/c/d".parse::<Target>().is_err());
    }

    #[test]
    fn equal_names_share_one_container_name() {
        let key: ComponentKey = "redis/redis".parse().unwrap();
        assert_eq!(key.container_name(), "redis");
        let key: ComponentKey = "shop/web".parse().unwrap();
        assert_eq!(key.container_name(), "shop-web");
    }
}
