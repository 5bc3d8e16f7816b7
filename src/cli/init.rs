//! `walhook init`.
