//! Station 3 against receivers that misbehave on cue, over real sockets.

mod answers;
mod connections;
pub(crate) mod rig;
