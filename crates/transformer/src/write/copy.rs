//! Rows in the binary form that COPY reads: a header, then for each row the number of fields and the fields
//! (<https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format"). Pure.

use crate::read::row::{Fields, LENGTH_BYTES, Row, to_bigint};

/// What comes before the rows.
pub const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What comes after them: -1 in the place of a number of fields.
pub const TRAILER: &[u8] = b"\xff\xff";

/// Beside those that a record gives: `first_seen_at`, `updated_at` and `sequence`.
const COLUMNS_OF_OURS: usize = 3;

/// Reads the rows of one column that COPY writes, in whatever pieces they come.
#[derive(Debug, Default)]
pub struct FieldReader {
    rest: Vec<u8>,
    is_behind_header: bool,
}

impl FieldReader {
    /// Takes a piece, and gives out the fields that are whole, each with its length.
    pub fn read(&mut self, piece: &[u8], mut take: impl FnMut(&[u8])) {
        let mut rest = std::mem::take(&mut self.rest);
        let mut left = if rest.is_empty() {
            piece
        } else {
            rest.extend(piece);
            &rest
        };
        if !self.is_behind_header
            && let Some((_, rows)) = left.split_at_checked(HEADER.len())
        {
            (left, self.is_behind_header) = (rows, true);
        }
        while self.is_behind_header
            && let Some((_, row)) = left.split_at_checked(size_of::<i16>())
            && let Some(length) = row.first_chunk()
            && let Some((field, rest)) =
                row.split_at_checked(LENGTH_BYTES + usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0))
        {
            take(field);
            left = rest;
        }
        self.rest = left.to_vec();
    }
}

/// Adds rows. `columns` is how many columns a record gives; the times and the sequence are those of each row's object.
pub fn encode_rows(bytes: &mut Vec<u8>, columns: usize, rows: &[Row<'_>]) {
    let columns = i16::try_from(columns + COLUMNS_OF_OURS).expect("a table has at most 1,600 columns");
    for row in rows {
        bytes.extend(columns.to_be_bytes());
        bytes.extend(row.fields);
        let mut fields = Fields(bytes);
        fields.put_timestamptz(row.origin.fetched_at);
        fields.put_timestamptz(row.origin.fetched_at);
        fields.put_bigint(to_bigint(row.origin.sequence.get()));
    }
}

#[cfg(test)]
mod tests {
    use shared::object::Sequence;

    use super::*;
    use crate::read::{
        record::RecordReader,
        row::Origin,
        table_definition::{Columns, Kind},
    };

    fn fields(records: &[&str]) -> Vec<Vec<u8>> {
        let reader = RecordReader::new(Columns::default());
        let fields = |record: &&str| {
            let mut fields = Vec::new();
            reader.read(record.as_bytes(), &mut Fields(&mut fields)).unwrap();
            fields
        };
        records.iter().map(fields).collect()
    }

    fn rows(fields: &[Vec<u8>]) -> Vec<Row<'_>> {
        let fetched_at = "2000-01-01T00:00:01.000002Z".parse().unwrap();
        let origin = Origin { sequence: Sequence::try_from(3).unwrap(), fetched_at };
        (0..).zip(fields).map(|(index, fields)| Row::new(origin, index, Kind::Bigint, fields)).collect()
    }

    #[test]
    fn fields_are_read_in_whatever_pieces_they_come() {
        let expected = [&b"\0\0\0\x01a"[..], b"\0\0\0\0", b"\0\0\0\x03bcd"];
        let rows: Vec<u8> = expected.iter().flat_map(|field| [b"\0\x01", *field].concat()).collect();
        let bytes = [HEADER, &rows, TRAILER].concat();
        for size in 1..bytes.len() {
            let (mut reader, mut found) = (FieldReader::default(), Vec::new());
            bytes.chunks(size).for_each(|piece| reader.read(piece, |field| found.push(field.to_vec())));
            assert_eq!(found, expected, "{size}");
        }
    }

    #[test]
    fn a_row_is_its_fields_with_their_lengths() {
        let fields = fields(&[
            r#"{"id":1,"userId":-2,"title":"té","body":"","x":[]}"#,
            r#"{"id":2,"userId":3,"title":"t","body":"b"}"#,
        ]);
        let mut bytes = Vec::new();
        encode_rows(&mut bytes, 5, &rows(&fields));
        let expected: Vec<u8> = [
            &[0, 8][..],
            &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1],
            &[0, 0, 0, 8, 255, 255, 255, 255, 255, 255, 255, 254],
            &[0, 0, 0, 3, b't', 0xc3, 0xa9],
            &[0, 0, 0, 0],
            &[0, 0, 0, 10, 1],
            br#"{"x": []}"#,
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
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_row_costs_no_allocation_once_there_is_room() {
        let record = format!(r#"{{"id":1,"userId":1,"title":"t","body":"{}"}}"#, "b".repeat(200));
        let fields = fields(&[&*record; 100]);
        let rows = rows(&fields);
        let mut bytes = Vec::new();
        let mut encode = || {
            bytes.clear();
            encode_rows(&mut bytes, 5, &rows);
        };
        encode();
        assert_eq!(allocation_counter::measure(encode).count_total, 0);
    }
}
