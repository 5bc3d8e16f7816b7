//! STATION 3: one delivery becomes HTTP requests.
//!
//! In comes a delivery that the scheduler formed. [`frozen::Frozen`] renders it once into the body that every attempt
//! sends; [`endpoint::Endpoint`] makes one attempt, and says what came of it as an [`attempt::Attempt`]. Nothing here
//! waits between attempts, decides whether there is another, or follows where an answer points.

mod answer;
pub mod attempt;
pub mod category;
mod connection;
pub mod egress;
pub mod endpoint;
mod failure;
pub mod frozen;
pub mod omitted;
mod retry_after;
pub mod sign;
mod strike;

#[cfg(test)]
pub(crate) mod tests;
