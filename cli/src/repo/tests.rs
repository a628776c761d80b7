//! Every rule here is held against stock git, in repositories of its own under a temporary folder.

mod bed;
mod changes;
mod commit;
mod fetched;
mod history;
mod init;
mod pack;
