//! Station 3 against receivers that misbehave on cue, over real sockets.

mod answers;
mod connections;
mod receivers;
pub(crate) mod rig;
