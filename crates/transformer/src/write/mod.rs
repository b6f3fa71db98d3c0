//! Rows become the table.

pub mod table;
pub mod transaction;
pub mod judge;
pub mod ledger;
pub mod writer;
pub mod statements;
pub mod parameter;
pub mod copy;
