//! pgoutput messages.

use crate::change::ReplicaIdentity;

/// A Relation message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Schema.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Replica identity.
    pub identity: ReplicaIdentity,
    /// Columns.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Name.
    pub name: String,
    /// Flag 1.
    pub in_identity: bool,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// `atttypmod`.
    pub type_modifier: i32,
}
