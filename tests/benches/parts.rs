//! The parts of a load that the transformer's processor does, each alone, on a thousand posts: `cargo bench -p tests --bench parts`.

use divan::{
    Bencher, black_box,
    counter::{BytesCount, ItemsCount},
};
use jiff::Timestamp;
use sandbox::Posts;
use sha2::{Digest, Sha256};
use shared::records::{Record, RecordsAt, read_records};
use transformer::{
    copy::encode_rows,
    document, post,
    record_type::RecordType,
    row::{Fields, Row},
};

const POSTS: u64 = 1_000;

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
    cut_and_read(bencher, &post::Type);
}

#[divan::bench]
fn cut_and_read_documents(bencher: Bencher) {
    cut_and_read(bencher, &document::Type::new("/id".parse().expect("a pointer")));
}

fn cut_and_read(bencher: Bencher, records: &dyn RecordType) {
    let document = document();
    let mut rows = Vec::new();
    bencher.counter(ItemsCount::new(POSTS)).bench_local(|| {
        rows.clear();
        let read = |record: Record<'_>| records.read(black_box(record.raw), &mut Fields(&mut rows)).is_ok();
        read_records(black_box(&*document), &RecordsAt::default(), read).expect("it is a document");
    });
}

#[divan::bench]
fn encode_for_copy(bencher: Bencher) {
    let mut fields = Vec::new();
    let record = format!(r#"{{"id":1,"userId":1,"title":"a title","body":"{}"}}"#, "b".repeat(160));
    post::Type.read(record.as_bytes(), &mut Fields(&mut fields)).expect("it is a post");
    let columns = post::STATEMENTS.columns;
    let rows: Vec<_> = (0..POSTS).map(|index| Row::new(index, columns[0], &fields)).collect();
    let mut bytes = Vec::new();
    bencher.counter(ItemsCount::new(POSTS)).bench_local(|| {
        bytes.clear();
        encode_rows(&mut bytes, columns.len(), black_box(&rows), Timestamp::UNIX_EPOCH, 1);
    });
}
