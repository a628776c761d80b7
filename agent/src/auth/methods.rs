//! Which role each method takes. What is not listed here is closed.

use std::time::Duration;

use super::Role;

/// What a method takes, and how long it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// The full name as in the HTTP/2 path.
    pub path: &'static str,
    /// Who may call it; `None` for anybody.
    pub role: Option<Role>,
    /// Whether a trusted key has to stand behind it: it changes something.
    pub signed: bool,
    /// Longest time until its response begins.
    pub limit: Duration,
}

/// Until a unary answer or the first word of a stream: several engine calls with their own
/// deadlines fit in it.
const CALL: Duration = Duration::from_secs(120);
/// A whole pack (256 MiB) over a slow line, and its verification.
const PACK: Duration = Duration::from_secs(900);

/// The largest file over a slow line; a client that sends nothing is given up long before.
const FILE: Duration = Duration::from_secs(4 * 3600);

const fn of(path: &'static str, role: Role) -> Method {
    Method {
        path,
        role: Some(role),
        signed: matches!(role, Role::Operator | Role::Admin),
        limit: CALL,
    }
}

/// Every method that the agent serves. Higher demands of single requests (`force`, volumes) are the
/// handlers' to make, with [`super::Identity::require`].
pub const METHODS: [Method; 40] = [
    of("/mcp.v1.Revisions/Negotiate", Role::Viewer),
    Method {
        path: "/mcp.v1.Revisions/PushPack",
        role: Some(Role::Operator),
        signed: true,
        limit: PACK,
    },
    of("/mcp.v1.Revisions/ListRevisions", Role::Viewer),
    of("/mcp.v1.Revisions/PullPack", Role::Viewer),
    of("/mcp.v1.Deployments/GetPlan", Role::Viewer),
    of("/mcp.v1.Deployments/Deploy", Role::Operator),
    of("/mcp.v1.Deployments/Attach", Role::Viewer),
    of("/mcp.v1.Deployments/Cancel", Role::Operator),
    of("/mcp.v1.Deployments/Rollback", Role::Operator),
    of("/mcp.v1.Deployments/Start", Role::Operator),
    of("/mcp.v1.Deployments/Stop", Role::Operator),
    of("/mcp.v1.Deployments/Restart", Role::Operator),
    of("/mcp.v1.Deployments/SetHold", Role::Operator),
    of("/mcp.v1.Deployments/ReleaseHold", Role::Operator),
    of("/mcp.v1.Deployments/History", Role::Viewer),
    of("/mcp.v1.Deployments/Why", Role::Viewer),
    of("/mcp.v1.Deployments/Purge", Role::Operator),
    of("/mcp.v1.Registry/List", Role::Viewer),
    of("/mcp.v1.Registry/Ps", Role::Viewer),
    of("/mcp.v1.Registry/Status", Role::Viewer),
    of("/mcp.v1.Registry/WatchEvents", Role::Viewer),
    of("/mcp.v1.Registry/GetDrift", Role::Viewer),
    of("/mcp.v1.Registry/Audit", Role::Viewer),
    of("/mcp.v1.Workloads/Logs", Role::Viewer),
    of("/mcp.v1.Workloads/Export", Role::Viewer),
    of("/mcp.v1.Workloads/Adopt", Role::Operator),
    of("/mcp.v1.Workloads/Forget", Role::Operator),
    of("/mcp.v1.Node/Info", Role::Viewer),
    Method {
        path: "/mcp.v1.Node/FetchSource",
        role: Some(Role::Operator),
        signed: true,
        limit: PACK,
    },
    of("/mcp.v1.Node/TestAlert", Role::Operator),
    Method {
        path: "/mcp.v1.Files/Push",
        role: Some(Role::Operator),
        signed: true,
        limit: FILE,
    },
    // Two readings of a large file come before the first word.
    Method {
        path: "/mcp.v1.Files/Pull",
        role: Some(Role::Operator),
        signed: true,
        limit: PACK,
    },
    of("/mcp.v1.Files/ListFiles", Role::Operator),
    // A large file may have to be read, and copied between file systems.
    Method {
        path: "/mcp.v1.Files/UndoPush",
        role: Some(Role::Operator),
        signed: true,
        limit: PACK,
    },
    of("/mcp.v1.Secrets/Reseal", Role::Operator),
    // Open: it says that the agent serves, and nothing else.
    Method {
        path: "/grpc.health.v1.Health/Check",
        role: None,
        signed: false,
        limit: CALL,
    },
    of("/grpc.health.v1.Health/Watch", Role::Viewer),
    of("/grpc.health.v1.Health/List", Role::Viewer),
    of(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        Role::Viewer,
    ),
    of(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        Role::Viewer,
    ),
];

/// The method of that path; `None` is closed to everybody.
#[must_use]
pub fn find(path: &str) -> Option<&'static Method> {
    METHODS.iter().find(|method| method.path == path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_method_of_the_contract_is_listed_and_no_other() {
        let set = FileDescriptorSet::decode(mcp_proto::DESCRIPTORS).unwrap();
        let mut contract = BTreeSet::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    contract.insert(format!(
                        "/{}.{}/{}",
                        file.package(),
                        service.name(),
                        method.name()
                    ));
                }
            }
        }
        let listed: BTreeSet<String> = METHODS
            .iter()
            .map(|method| method.path.to_owned())
            .filter(|path| path.starts_with("/mcp."))
            .collect();
        assert_eq!(contract, listed);
        let distinct: BTreeSet<&str> = METHODS.iter().map(|method| method.path).collect();
        assert_eq!(distinct.len(), METHODS.len());
    }

    #[test]
    fn whatever_takes_more_than_a_viewer_is_signed() {
        for method in METHODS {
            assert_eq!(
                method.signed,
                method.role > Some(Role::Viewer),
                "{}",
                method.path
            );
        }
    }

    #[test]
    fn only_the_health_check_is_open() {
        let open: Vec<&str> = METHODS
            .iter()
            .filter(|method| method.role.is_none())
            .map(|method| method.path)
            .collect();
        assert_eq!(open, ["/grpc.health.v1.Health/Check"]);
        assert!(find("/mcp.v1.Node/Shutdown").is_none());
    }
}
