//! The harness of the end-to-end tests, the demo's checks and the benches.
//!
//! [`engine`] gives each lane a container engine of its own, [`fault`] puts a faulty one before it, [`fleet`] runs the real `mcp` and
//! `mcp-agent` binaries against it, [`registry`] serves images to pull, [`terminal`] is where a
//! person sits, and [`lanes!`] makes one test
//! of a rule for each lane. A lane whose engine does not start fails its tests; none is passed over.

pub mod binaries;
pub mod definitions;
pub mod engine;
pub mod entries;
pub mod fault;
pub mod fleet;
pub mod mcias;
pub mod registry;
pub mod terminal;
pub mod torture;

/// Makes of each function `fn rule(lane: Lane)` three tests: `podman_root::rule`,
/// `podman_rootless::rule` and `docker::rule`.
///
/// The functions stand in the caller's file and are called by a test of their name in each module.
#[macro_export]
macro_rules! lanes {
    ($($name:ident),+ $(,)?) => {
        mod podman_root {
            $(#[test] fn $name() { $crate::engine::Lane::PodmanRoot.run(super::$name); })+
        }
        mod podman_rootless {
            $(#[test] fn $name() { $crate::engine::Lane::PodmanRootless.run(super::$name); })+
        }
        mod docker {
            $(#[test] fn $name() { $crate::engine::Lane::Docker.run(super::$name); })+
        }
    };
}
