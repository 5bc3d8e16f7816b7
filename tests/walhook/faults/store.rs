//! Faults of the store and its disk.
