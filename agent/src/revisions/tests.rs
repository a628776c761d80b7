//! The door, tried with repositories that stock git and ssh-keygen make.

mod accept;
mod collision;
mod crash;
mod disguise;
mod hostile;
mod inbox;
mod packs;
mod raw;
mod refuse;
pub(crate) mod scene;
mod source;
mod upstream;
