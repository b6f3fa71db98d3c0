//! Bytes become records, and records rows. Pure, but for the thread that `batch` reads on. Nothing here knows the database.

pub mod batch;
pub mod record;
pub mod table_definition;
pub mod values;
pub mod decimal;
pub mod members;
pub mod jsonb;
pub mod row;
