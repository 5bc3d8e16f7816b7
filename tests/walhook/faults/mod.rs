//! Faults against the real binary: each is injected, must be told by `/readyz`, the log and the metrics, and must clear once it
//! is mended. Here they wait for these states; how long that takes is measured by a command that runs alone.

mod endpoint;
mod link;
mod source;
mod store;
