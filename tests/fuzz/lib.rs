//! The files that read what strangers write, without the crates around them, so that the fuzzer is built in seconds and sees
//! nothing else; and what must hold of them whatever they are given.

// What these files call `shared` is here.
extern crate self as shared;

#[path = "../../crates/shared/src/json_pointer.rs"]
pub mod json_pointer;
#[path = "../../crates/shared/src/json_scan.rs"]
pub mod json_scan;
#[path = "../../crates/shared/src/object.rs"]
pub mod object;
#[path = "../../crates/shared/src/pointer.rs"]
pub mod pointer;
#[path = "../../crates/shared/src/records.rs"]
pub mod records;
#[path = "../../crates/transformer/src/read/decimal.rs"]
pub mod decimal;
#[path = "../../crates/transformer/src/read/jsonb.rs"]
pub mod jsonb;
#[path = "../../crates/transformer/src/read/members.rs"]
pub mod members;
#[path = "../../crates/transformer/src/read/record.rs"]
pub mod record;
#[path = "../../crates/transformer/src/read/row.rs"]
pub mod row;
#[path = "../../crates/transformer/src/read/table_definition.rs"]
pub mod table_definition;
#[path = "../../crates/transformer/src/read/values.rs"]
pub mod values;

pub mod columns;
pub mod messages;
pub mod metadata;
pub mod reading;
