//! Posts in the binary form that COPY reads. Pure.
//!
//! The form is Postgres' own (<https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format"): a header, then for each
//! row the number of fields and each field with its length, all big-endian.

use jiff::Timestamp;

use crate::post::Post;

/// What comes before the rows.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What comes after them: -1 in the place of a number of fields.
pub const TRAILER: &[u8] = b"\xff\xff";

const NULL: i32 = -1;

/// The columns of `copy_posts.sql`.
const COLUMNS: i16 = 8;

/// The first byte of a jsonb value is the version of its form.
const JSONB_VERSION: u8 = 1;

/// Postgres counts microseconds from the beginning of 2000.
const POSTGRES_EPOCH_MICROS: i64 = 946_684_800_000_000;

/// Adds the rows of `copy_posts.sql`: each post first seen and changed at `fetched_at` by object `sequence`.
pub fn encode_posts(rows: &mut Vec<u8>, posts: &[Post<'_>], fetched_at: Timestamp, sequence: i64) {
    let time = fetched_at.as_microsecond() - POSTGRES_EPOCH_MICROS;
    for post in posts {
        rows.extend(COLUMNS.to_be_bytes());
        put_bigint(rows, post.id);
        put_bigint(rows, post.user_id);
        put_bytes(rows, &[], post.title.as_bytes());
        put_bytes(rows, &[], post.body.as_bytes());
        match &post.extra {
            Some(extra) => put_bytes(rows, &[JSONB_VERSION], extra.as_bytes()),
            None => rows.extend(NULL.to_be_bytes()),
        }
        put_bigint(rows, time);
        put_bigint(rows, time);
        put_bigint(rows, sequence);
    }
}

fn put_bigint(rows: &mut Vec<u8>, value: i64) {
    rows.extend(8_i32.to_be_bytes());
    rows.extend(value.to_be_bytes());
}

fn put_bytes(rows: &mut Vec<u8>, prefix: &[u8], value: &[u8]) {
    let length = i32::try_from(prefix.len() + value.len()).expect("a record is far below 2 GiB");
    rows.extend(length.to_be_bytes());
    rows.extend(prefix);
    rows.extend(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_fields_with_their_lengths() {
        let post =
            Post { index: 0, id: 1, user_id: -2, title: "té".into(), body: "".into(), extra: Some("{}".into()) };
        let at = "2000-01-01T00:00:01.000002Z".parse().unwrap();
        let without_extra = Post { index: 1, id: 2, user_id: 3, title: "t".into(), body: "b".into(), extra: None };
        let mut rows = Vec::new();
        encode_posts(&mut rows, &[post, without_extra], at, 3);
        let expected: Vec<u8> = [
            &[0, 8][..],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 8, 255, 255, 255, 255, 255, 255, 255, 254],
            &[0, 0, 0, 3, b't', 0xc3, 0xa9],
            &[0, 0, 0, 0],
            &[0, 0, 0, 3, 1, b'{', b'}'],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0x0f, 0x42, 0x42],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0x0f, 0x42, 0x42],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 3],
            &[0, 8],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 3],
            &[0, 0, 0, 1, b't'],
            &[0, 0, 0, 1, b'b'],
            &[255, 255, 255, 255],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0x0f, 0x42, 0x42],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0x0f, 0x42, 0x42],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 3],
        ]
        .concat();
        assert_eq!(rows, expected);
    }

    #[test]
    fn a_row_costs_no_allocation_once_there_is_room() {
        let post = |id| Post { index: 0, id, user_id: 1, title: "t".into(), body: "b".repeat(200).into(), extra: None };
        let posts: Vec<_> = (0..100).map(post).collect();
        let mut rows = Vec::new();
        let mut encode = || {
            rows.clear();
            encode_posts(&mut rows, &posts, Timestamp::UNIX_EPOCH, 1);
        };
        encode();
        assert_eq!(allocation_counter::measure(encode).count_total, 0);
    }
}
