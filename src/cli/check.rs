//! `walhook check`.
