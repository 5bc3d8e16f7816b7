//! Faults of the database, the slot and the publication.
