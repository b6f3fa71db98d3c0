//! The parts of a load that the transformer's processor does, each alone, on a thousand posts: `cargo bench -p tests --bench parts`.

use divan::{
    Bencher, black_box,
    counter::{BytesCount, ItemsCount},
};
use jiff::Timestamp;
use sandbox::Posts;
use sha2::{Digest, Sha256};
use shared::document::JsonPointer;
use transformer::{copy::encode_posts, post::Post, record::read_records};

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
    let cut =
        || read_records(black_box(&*document), &JsonPointer::default(), |record| !black_box(record).raw.is_empty());
    bencher.counter(BytesCount::of_slice(&document)).bench(|| cut().expect("it is a document"));
}

#[divan::bench]
fn cut_and_parse(bencher: Bencher) {
    let document = document();
    let cut = || {
        read_records(black_box(&*document), &JsonPointer::default(), |record| {
            black_box(Post::from_record(record)).is_ok()
        })
    };
    bencher.counter(ItemsCount::new(POSTS)).bench(|| cut().expect("it is a document"));
}

#[divan::bench]
fn encode_for_copy(bencher: Bencher) {
    let post =
        |id| Post { index: 0, id, user_id: 1, title: "a title".into(), body: "b".repeat(160).into(), extra: None };
    let posts: Vec<_> = (0..1_000).map(post).collect();
    let mut rows = Vec::new();
    bencher.counter(ItemsCount::new(POSTS)).bench_local(|| {
        rows.clear();
        encode_posts(&mut rows, black_box(&posts), Timestamp::UNIX_EPOCH, 1);
    });
}
