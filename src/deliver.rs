//! STATION 3: one delivery becomes HTTP requests.
pub mod sign;
