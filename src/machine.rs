//! The machine under walhook: what of it may fail walhook, so that nobody else is blamed.
//!
//! [`clock`] knows when the process has not run, and when the wall clock was set; [`descriptors`] how many files and
//! connections it may have open, and keeps some for the admin side and the store; [`room`] how much memory the machine
//! leaves it. Each tells what it knows as a [`crate::view::OwnTroubleView`]; none of it counts against an endpoint.

pub mod clock;
pub mod descriptors;
pub mod room;
