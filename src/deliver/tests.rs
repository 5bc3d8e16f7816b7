//! Station 3 against receivers that misbehave on cue, over real sockets.

mod answers;
mod bursts;
mod certificates;
mod certified;
mod closing;
mod connections;
mod floods;
mod forms;
mod goaway;
mod http2;
mod pooled;
mod receivers;
pub(crate) mod rig;
mod tls;
