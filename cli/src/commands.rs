//! The commands: one a file, each with its flags and what it does.
//!
//! What several of them share stands beside them: [`place`] says which nodes a target is on,
//! [`service_path`] which a file is on, [`repository`] opens and checks the repository, [`push`] brings a revision to nodes,
//! [`carry_out`] follows deployments, [`streams`] reads several nodes at once, [`rows`] draws components,
//! [`complete`] offers names to shells, [`definition_text`] changes definitions in place, [`file_lines`] tells changed files in lines.

pub(crate) mod carry_out;
pub(crate) mod complete;
pub(crate) mod definition_text;
pub(crate) mod file_lines;
pub(crate) mod place;
pub(crate) mod push;
pub(crate) mod repository;
pub(crate) mod rows;
pub(crate) mod service_path;
pub(crate) mod streams;

pub(crate) mod adopt;
pub(crate) mod alert;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod deploy;
pub(crate) mod diff;
pub(crate) mod drift;
pub(crate) mod events;
pub(crate) mod fetch;
pub(crate) mod files;
pub(crate) mod forget;
pub(crate) mod history;
pub(crate) mod hold;
pub(crate) mod init;
mod lifecycle;
pub(crate) mod list;
pub(crate) mod login;
pub(crate) mod logout;
pub(crate) mod logs;
pub(crate) mod man;
pub(crate) mod node;
pub(crate) mod plan;
pub(crate) mod ps;
pub(crate) mod pull_file;
pub(crate) mod purge;
pub(crate) mod push_file;
pub(crate) mod release;
pub(crate) mod restart;
pub(crate) mod revisions;
pub(crate) mod rollback;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod start;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod sync;
pub(crate) mod trust;
pub(crate) mod version;
pub(crate) mod whoami;
pub(crate) mod why;
