//! The parts of a load that the transformer's processor does, each alone, on a thousand posts: `cargo bench -p tests --bench parts`.

use divan::{
    Bencher, black_box,
    counter::{BytesCount, ItemsCount},
};
use jiff::Timestamp;
use sandbox::Posts;
use sha2::{Digest, Sha256};
use shared::{
    object::Sequence,
    records::{Record, RecordsAt, read_records},
};
use transformer::{
    read::{
        record::RecordReader,
        row::{Fields, Origin, Row},
        table_definition::DEFAULT,
    },
    write::copy::encode_rows,
};

const POSTS: u64 = 1_000;

const ORIGIN: Origin = Origin { sequence: Sequence::FIRST, fetched_at: Timestamp::UNIX_EPOCH };

fn main() {
    divan::main();
}

fn document() -> Vec<u8> {
    serde_json::to_vec(&Posts::lorem_ipsum(POSTS).iter().collect::<Vec<_>>()).expect("posts are JSON")
}

#[divan::bench]
fn hash(bencher: Bencher) {
    let document = document();
    bencher.counter(BytesCount::of_slice(&document)).bench(|| Sha256::digest(black_box(&document)));
}

#[divan::bench]
fn cut_into_records(bencher: Bencher) {
    let document = document();
    let cut = || read_records(black_box(&*document), &RecordsAt::default(), |record| !black_box(record).raw.is_empty());
    bencher.counter(BytesCount::of_slice(&document)).bench(|| cut().expect("it is a document"));
}

#[divan::bench]
fn cut_and_read_posts(bencher: Bencher) {
    cut_and_read(bencher, DEFAULT);
}

#[divan::bench]
fn cut_and_read_documents(bencher: Bencher) {
    cut_and_read(bencher, "id bigint, doc jsonb .");
}

fn cut_and_read(bencher: Bencher, columns: &str) {
    let (document, records) = (document(), reader(columns));
    let mut rows = Vec::new();
    bencher.counter(ItemsCount::new(POSTS)).bench_local(|| {
        rows.clear();
        let read = |record: Record<'_>| records.read(black_box(record.raw), &mut Fields(&mut rows)).is_ok();
        read_records(black_box(&*document), &RecordsAt::default(), read).expect("it is a document");
    });
}

fn reader(columns: &str) -> RecordReader {
    RecordReader::new(columns.parse().expect("a definition"))
}

#[divan::bench]
fn encode_for_copy(bencher: Bencher) {
    let mut fields = Vec::new();
    let record = format!(r#"{{"id":1,"userId":1,"title":"a title","body":"{}"}}"#, "b".repeat(160));
    let reader = reader(DEFAULT);
    reader.read(record.as_bytes(), &mut Fields(&mut fields)).expect("it is a post");
    let rows: Vec<_> = (0..POSTS).map(|index| Row::new(ORIGIN, index, reader.key(), &fields)).collect();
    let columns = rows[0].fields().count();
    let mut bytes = Vec::new();
    bencher.counter(ItemsCount::new(POSTS)).bench_local(|| {
        bytes.clear();
        encode_rows(&mut bytes, columns, black_box(&rows));
    });
}
