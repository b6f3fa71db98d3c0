//! What fuzzing found worth keeping, and what must hold of it: the same functions that the fuzzer calls.
//!
//! The corpora are files with an input a line; one that fails is the last one shown.

#![allow(unreachable_pub, reason = "a binary of its own, which shares its modules with the fuzzer's")]

mod columns;
mod messages;
mod metadata;
mod reading;

use std::{
    fs,
    path::{Path, PathBuf},
};

use shared::{object, pointer, records};
use transformer::read::{record, row, table_definition, values};

const CORPORA: [&str; 4] = ["records", "values", "messages", "metadata"];

#[test]
fn documents_become_records_and_rows_as_serde_json_reads_them() {
    hold_of_corpus("records", reading::hold);
}

#[test]
fn values_become_what_columns_take_and_definitions_are_read_back() {
    hold_of_corpus("values", columns::hold);
}

#[test]
fn messages_are_pointers_or_strange() {
    hold_of_corpus("messages", messages::hold);
}

#[test]
fn metadata_comes_back_as_it_went_or_is_named_wrong() {
    hold_of_corpus("metadata", metadata::hold);
}

fn hold_of_corpus(name: &str, hold: fn(&[u8])) {
    let inputs = corpus(name);
    assert!(inputs.len() > 100, "{} inputs are no corpus", inputs.len());
    for input in inputs {
        println!("{}", input.escape_ascii());
        hold(&input);
    }
}

/// For the fuzzer, which wants a folder with a file for each input.
#[test]
#[ignore = "by command, before fuzzing"]
fn to_folders() {
    for name in CORPORA {
        let folder = folder(name);
        fs::create_dir_all(&folder).expect("there may be folders");
        for (number, input) in corpus(name).iter().enumerate() {
            fs::write(folder.join(number.to_string()), input).expect("there may be files");
        }
    }
}

/// What the fuzzer left there becomes the corpus.
#[test]
#[ignore = "by command, after fuzzing"]
fn from_folders() {
    for name in CORPORA {
        let files = fs::read_dir(folder(name)).expect("it was fuzzed").map(|file| file.expect("a file").path());
        let mut lines: Vec<String> = files.map(|file| line(&fs::read(file).expect("it can be read"))).collect();
        lines.sort_by_key(|line| (line.len(), line.clone()));
        fs::write(file(name), lines.join("\n") + "\n").expect("it may be written");
    }
}

/// An input as JSON text, each byte a character, so that people and git can read it.
fn line(input: &[u8]) -> String {
    let text: String = input.iter().map(|byte| char::from(*byte)).collect();
    serde_json::to_string(&text).expect("any text is JSON").replace('\u{85}', "\\u0085").replace('\u{7f}', "\\u007f")
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let lines = fs::read_to_string(file(name)).expect("there is a corpus");
    let input = |line: &str| {
        let text: String = serde_json::from_str(line).expect("JSON text");
        text.chars().map(|letter| u8::try_from(letter).expect("a byte")).collect()
    };
    lines.split_terminator('\n').map(input).collect()
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(format!("{name}.jsonl"))
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz-corpus").join(name)
}
