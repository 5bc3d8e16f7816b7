//! Faults of the ways to database, endpoints and admin clients: who is on the other side, and what they may ask of us.
