//! The connection to Postgres, and what can go wrong with it.

pub mod connect;
pub mod token;
pub mod fault;
