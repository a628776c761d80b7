//! The door, tried with repositories that stock git and ssh-keygen make.

mod accept;
mod crash;
mod disguise;
mod hostile;
mod refuse;
pub(crate) mod scene;
mod source;
