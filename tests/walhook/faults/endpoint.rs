//! Faults of endpoints, and of walhook's own resources and clock.
