//! Who calls, and what they may: roles, identities, tokens, and the table of methods.
//!
//! [`token`] verifies tokens offline, with the keys that [`issuers`] keeps, and [`online`] asks an issuer whether it
//! still stands by one; [`issuer`] makes the agent's own. [`methods`] says which role a method takes, [`requests`]
//! whether a trusted key stands behind a call. The layer that holds every call to them is `rpc`'s.

use std::collections::BTreeSet;
use std::fmt;

use mcp_spec::name::{ServiceName, Target};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub mod issuer;
pub mod issuers;
pub mod keys;
pub mod methods;
pub mod online;
pub mod refusals;
pub mod requests;
pub mod token;
pub mod web;

/// What a caller may do; each role may what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks at everything.
    Viewer,
    /// Changes what runs.
    Operator,
    /// Removes data, forces, changes trust.
    Admin,
}

impl Role {
    /// The word in tokens, configuration and output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// The role of that word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Viewer, Self::Operator, Self::Admin]
            .into_iter()
            .find(|role| role.as_str() == word)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A caller whose token was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The token's `sub`.
    pub subject: String,
    /// The highest role that its token gives here.
    pub role: Role,
    /// The services that the token is narrowed to; `None` for all.
    pub services: Option<BTreeSet<ServiceName>>,
    /// The token's `iss`.
    pub issuer: String,
    /// The token's `jti`.
    pub token_id: String,
}

/// Why a verified caller may not do what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ForbiddenError {
    /// The role is too low.
    #[error("{subject} is {role}, and this takes {required}")]
    Role {
        /// The caller.
        subject: String,
        /// Its role.
        role: Role,
        /// The least role that may.
        required: Role,
    },
    /// The token is narrowed to other services.
    #[error("the token of {subject} does not cover service {service}")]
    Service {
        /// The caller.
        subject: String,
        /// The service that was asked for.
        service: ServiceName,
    },
    /// The token is narrowed to some services, and the call is about all of them.
    #[error("the token of {subject} covers some services only, and this is about all of them")]
    Narrowed {
        /// The caller.
        subject: String,
    },
}

impl Identity {
    /// Holds the caller to a role, where the method's own is not enough (`force`, volumes).
    ///
    /// # Errors
    ///
    /// [`ForbiddenError::Role`] where the caller's role is lower.
    pub fn require(&self, required: Role) -> Result<(), ForbiddenError> {
        if self.role >= required {
            return Ok(());
        }
        Err(ForbiddenError::Role {
            subject: self.subject.clone(),
            role: self.role,
            required,
        })
    }

    /// Whether the token covers a service: what a list leaves out where it does not.
    #[must_use]
    pub fn covers(&self, service: &ServiceName) -> bool {
        self.services
            .as_ref()
            .is_none_or(|services| services.contains(service))
    }

    /// Holds the caller to the services of its token.
    ///
    /// # Errors
    ///
    /// [`ForbiddenError::Service`] where the token is narrowed to others.
    pub fn require_service(&self, service: &ServiceName) -> Result<(), ForbiddenError> {
        if self.covers(service) {
            return Ok(());
        }
        Err(ForbiddenError::Service {
            subject: self.subject.clone(),
            service: service.clone(),
        })
    }

    /// The targets that the caller sees: those that it names, else, of a narrowed token, its services.
    /// What is empty then means everything.
    ///
    /// # Errors
    ///
    /// [`ForbiddenError::Service`] where it names a service that its token does not cover, and
    /// [`ForbiddenError::Narrowed`] where the token covers none.
    pub fn visible(&self, targets: Vec<Target>) -> Result<Vec<Target>, ForbiddenError> {
        let Some(services) = &self.services else {
            return Ok(targets);
        };
        if services.is_empty() {
            self.require_all_services()?;
        }
        for target in &targets {
            self.require_service(&target.service)?;
        }
        if !targets.is_empty() {
            return Ok(targets);
        }
        let of_service = |service: &ServiceName| Target {
            node: None,
            service: service.clone(),
            component: None,
        };
        Ok(services.iter().map(of_service).collect())
    }

    /// Holds the caller to a token for every service, where a call is about the whole node.
    ///
    /// # Errors
    ///
    /// [`ForbiddenError::Narrowed`] where the token is narrowed.
    pub fn require_all_services(&self) -> Result<(), ForbiddenError> {
        if self.services.is_none() {
            return Ok(());
        }
        Err(ForbiddenError::Narrowed {
            subject: self.subject.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(role: Role, services: Option<&[&str]>) -> Identity {
        Identity {
            subject: "alice".to_owned(),
            role,
            services: services.map(|names| names.iter().map(|n| n.parse().unwrap()).collect()),
            issuer: "mcp-agent:rift".to_owned(),
            token_id: "1".to_owned(),
        }
    }

    #[test]
    fn a_role_may_what_lower_ones_may() {
        assert!(identity(Role::Admin, None).require(Role::Viewer).is_ok());
        assert_eq!(
            identity(Role::Viewer, None)
                .require(Role::Operator)
                .unwrap_err()
                .to_string(),
            "alice is viewer, and this takes operator"
        );
    }

    #[test]
    fn a_narrowed_token_covers_its_services_alone() {
        let narrowed = identity(Role::Operator, Some(&["shop"]));
        assert!(narrowed.require_service(&"shop".parse().unwrap()).is_ok());
        assert!(narrowed.require_service(&"wiki".parse().unwrap()).is_err());
        assert!(narrowed.require_all_services().is_err());
        assert!(identity(Role::Viewer, None).require_all_services().is_ok());
    }

    #[test]
    fn a_narrowed_token_sees_its_services_alone() {
        let target = |text: &str| text.parse::<Target>().unwrap();
        let narrowed = identity(Role::Viewer, Some(&["shop", "wiki"]));
        assert_eq!(
            narrowed.visible(Vec::new()).unwrap(),
            [target("shop"), target("wiki")]
        );
        let one = vec![target("shop/web")];
        assert_eq!(narrowed.visible(one.clone()).unwrap(), one);
        assert!(narrowed.visible(vec![target("mail")]).is_err());
        // An empty list would mean everything.
        assert!(
            identity(Role::Viewer, Some(&[]))
                .visible(Vec::new())
                .is_err()
        );
        assert_eq!(
            identity(Role::Viewer, None).visible(Vec::new()).unwrap(),
            []
        );
    }
}
