//! Whether a key may make a change, by what the commit's parents say.

use std::collections::BTreeSet;

use ssh_key::PublicKey;
use thiserror::Error;

use super::signers::{AllowedSigners, Signer};
use super::{ALLOWED_SIGNERS_PATH, fingerprint};
use crate::name::ServiceName;

/// One parent of a commit, as far as it matters for who may sign.
#[derive(Debug, Clone, Copy)]
pub struct ParentView<'a> {
    /// The signers that the parent's tree names.
    pub signers: &'a AllowedSigners,
    /// Every path that differs between the parent's tree and the commit's: added, changed, removed.
    pub touched: &'a [String],
}

/// Why a key may not make a change.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AuthorisationError {
    /// No parent that could authorise.
    #[error("it has no parent that could authorise its signer")]
    NoParent,
    /// The key is not among the signers.
    #[error("the key {fingerprint} is not in {ALLOWED_SIGNERS_PATH} of its parent")]
    UnknownSigner {
        /// The key.
        fingerprint: String,
    },
    /// The key is there, without `git`.
    #[error("{principal} may not sign revisions: its line has no `git` namespace")]
    MayNotSign {
        /// Whose key.
        principal: String,
    },
    /// A limited signer reached beyond its services.
    #[error("{principal} may sign for {} only, and the commit touches {path}", services.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(", "))]
    OutsideServices {
        /// Whose key.
        principal: String,
        /// The first such path.
        path: String,
        /// What it is limited to.
        services: BTreeSet<ServiceName>,
    },
    /// A change below `.mcp/` by somebody who is no owner.
    #[error("{principal} is no owner and may not change {path}")]
    NotOwner {
        /// Whose key.
        principal: String,
        /// The first such path.
        path: String,
    },
    /// A merge by a limited signer.
    #[error("{principal} is limited to services and may not sign a merge")]
    LimitedMerge {
        /// Whose key.
        principal: String,
    },
    /// The signers' file is gone.
    #[error("it deletes {ALLOWED_SIGNERS_PATH}")]
    SignersDeleted,
    /// Nobody could change `.mcp/` any more.
    #[error("it leaves no owner in {ALLOWED_SIGNERS_PATH}")]
    NoOwnerLeft,
}

/// Decides whether `key` may make the commit whose parents are given; `after` is what the commit's
/// own tree holds as signers.
///
/// Each parent must authorise the key for all that differs from *that* parent, so a merge cannot
/// bring back on one side what the other side took away.
///
/// # Errors
///
/// [`AuthorisationError`], the first in the order of the parents.
pub fn authorise<'a>(
    parents: &[ParentView<'a>],
    key: &PublicKey,
    after: Option<&AllowedSigners>,
) -> Result<&'a Signer, AuthorisationError> {
    let mut signer = None;
    for parent in parents {
        let found = authorise_by(parent, key)?;
        if parents.len() > 1 && found.services.is_some() {
            return Err(AuthorisationError::LimitedMerge {
                principal: found.principal.clone(),
            });
        }
        signer.get_or_insert(found);
    }
    let signer = signer.ok_or(AuthorisationError::NoParent)?;
    match after {
        None => Err(AuthorisationError::SignersDeleted),
        Some(after) if !after.has_owner() => Err(AuthorisationError::NoOwnerLeft),
        Some(_) => Ok(signer),
    }
}

fn authorise_by<'a>(
    parent: &ParentView<'a>,
    key: &PublicKey,
) -> Result<&'a Signer, AuthorisationError> {
    let signer = parent
        .signers
        .get(key)
        .ok_or_else(|| AuthorisationError::UnknownSigner {
            fingerprint: fingerprint(key),
        })?;
    let principal = || signer.principal.clone();
    if !signer.may_sign() {
        return Err(AuthorisationError::MayNotSign {
            principal: principal(),
        });
    }
    for path in parent.touched {
        if is_trust_path(path) && !signer.is_owner() {
            return Err(AuthorisationError::NotOwner {
                principal: principal(),
                path: path.clone(),
            });
        }
        if let Some(services) = &signer.services
            && !services.iter().any(|service| belongs_to(path, service))
        {
            return Err(AuthorisationError::OutsideServices {
                principal: principal(),
                path: path.clone(),
                services: services.clone(),
            });
        }
    }
    Ok(signer)
}

fn is_trust_path(path: &str) -> bool {
    path == ".mcp" || path.starts_with(".mcp/")
}

/// Whether the path is the service's definition, or lies in its files or secrets.
fn belongs_to(path: &str, service: &ServiceName) -> bool {
    let service = service.as_str();
    if let Some(file) = path.strip_prefix("services/") {
        return file.strip_suffix(".toml") == Some(service);
    }
    ["files/", "secrets/"].iter().any(|root| {
        path.strip_prefix(root)
            .and_then(|rest| rest.split_once('/'))
            .is_some_and(|(owner, below)| owner == service && !below.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::public;
    use super::*;

    const OWNER: u8 = 1;
    const SIGNER: u8 = 2;
    const LIMITED: u8 = 3;
    const REQUESTER: u8 = 4;

    fn signers() -> AllowedSigners {
        let lines = [
            (OWNER, "owner", vec!["git", "mcp-owner"]),
            (SIGNER, "signer", vec!["git"]),
            (
                LIMITED,
                "limited",
                vec!["git", "mcp-service-shop", "mcp-service-cart"],
            ),
            (REQUESTER, "requester", vec!["mcp-request"]),
        ];
        let text: Vec<_> = lines
            .iter()
            .map(|(seed, name, namespaces)| {
                AllowedSigners::line_for(name, &public(*seed), namespaces)
            })
            .collect();
        AllowedSigners::parse(&text.join("\n")).unwrap()
    }

    fn verdict(seed: u8, touched: &[&str]) -> Result<String, AuthorisationError> {
        let signers = signers();
        let touched: Vec<_> = touched.iter().map(|path| (*path).to_owned()).collect();
        let parent = ParentView {
            signers: &signers,
            touched: &touched,
        };
        authorise(&[parent], &public(seed), Some(&signers)).map(|signer| signer.principal.clone())
    }

    #[test]
    fn signer_without_limits_may_change_all_but_the_trust() {
        assert_eq!(
            verdict(SIGNER, &["services/a.toml", "README.md"]).unwrap(),
            "signer"
        );
        assert_eq!(verdict(SIGNER, &[]).unwrap(), "signer");
        for path in [".mcp", ".mcp/allowed_signers", ".mcp/shared.toml"] {
            assert!(matches!(
                verdict(SIGNER, &[path]),
                Err(AuthorisationError::NotOwner { .. })
            ));
            assert_eq!(verdict(OWNER, &[path]).unwrap(), "owner");
        }
    }

    #[test]
    fn limited_signer_may_change_its_services_only() {
        for path in [
            "services/shop.toml",
            "files/shop/a/b",
            "secrets/cart/db.age",
        ] {
            assert_eq!(verdict(LIMITED, &[path]).unwrap(), "limited");
        }
        for path in [
            "services/other.toml",
            "services/shop.toml/x",
            "services/shop",
            "services/sub/shop.toml",
            "services/shop.toml.toml",
            "services",
            "files/shop",
            "files/shop2/a",
            "files/other/a",
            "secrets",
            "README.md",
            "shop/files/a",
        ] {
            assert!(
                matches!(
                    verdict(LIMITED, &["services/shop.toml", path]),
                    Err(AuthorisationError::OutsideServices { .. })
                ),
                "{path}"
            );
        }
        assert!(matches!(
            verdict(LIMITED, &[".mcp/allowed_signers"]),
            Err(AuthorisationError::NotOwner { .. })
        ));
    }

    #[test]
    fn unknown_keys_and_keys_without_git_may_not_sign() {
        assert!(matches!(
            verdict(9, &[]),
            Err(AuthorisationError::UnknownSigner { .. })
        ));
        assert!(matches!(
            verdict(REQUESTER, &[]),
            Err(AuthorisationError::MayNotSign { .. })
        ));
        assert_eq!(
            authorise(&[], &public(OWNER), Some(&signers())),
            Err(AuthorisationError::NoParent)
        );
    }

    #[test]
    fn signers_are_never_deleted_nor_left_without_owner() {
        let signers = signers();
        let touched = [ALLOWED_SIGNERS_PATH.to_owned()];
        let parent = ParentView {
            signers: &signers,
            touched: &touched,
        };
        assert_eq!(
            authorise(&[parent], &public(OWNER), None),
            Err(AuthorisationError::SignersDeleted)
        );
        let line = AllowedSigners::line_for("signer", &public(SIGNER), &["git"]);
        let after = AllowedSigners::parse(&line).unwrap();
        assert_eq!(
            authorise(&[parent], &public(OWNER), Some(&after)),
            Err(AuthorisationError::NoOwnerLeft)
        );
    }

    #[test]
    fn merge_needs_every_parent_and_no_limit() {
        let all = signers();
        let revoked_line = AllowedSigners::line_for("owner", &public(OWNER), &["git", "mcp-owner"]);
        let revoked = AllowedSigners::parse(&revoked_line).unwrap();
        let trust = [ALLOWED_SIGNERS_PATH.to_owned()];
        let nothing: [String; 0] = [];
        let view = |signers, touched| ParentView { signers, touched };
        // Taking the old set's side of a merge does not undo a revocation.
        assert!(matches!(
            authorise(
                &[view(&all, &nothing), view(&revoked, &trust)],
                &public(SIGNER),
                Some(&all)
            ),
            Err(AuthorisationError::UnknownSigner { .. })
        ));
        assert!(matches!(
            authorise(
                &[view(&all, &nothing), view(&all, &nothing)],
                &public(LIMITED),
                Some(&all)
            ),
            Err(AuthorisationError::LimitedMerge { .. })
        ));
        assert!(matches!(
            authorise(
                &[view(&all, &nothing), view(&all, &trust)],
                &public(SIGNER),
                Some(&all)
            ),
            Err(AuthorisationError::NotOwner { .. })
        ));
        assert!(
            authorise(
                &[view(&all, &nothing), view(&revoked, &trust)],
                &public(OWNER),
                Some(&all)
            )
            .is_ok()
        );
    }
}
