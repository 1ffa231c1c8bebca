//! What fuzzing has found stays found: the seeds and the corpus of each fuzz target, through the same promises.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[path = "../fuzz/input.rs"]
mod input;
#[path = "../fuzz/promises/mod.rs"]
mod promises;

/// Memory is counted when fuzzing, by an allocator of its own.
mod measure {
    pub(crate) fn bounded<T>(_length: usize, _each: usize, work: impl FnOnce() -> T) -> T {
        work()
    }
}

/// A folder of this size is read by whoever changes what it is for.
const MAX_FILES: usize = 400;
const MAX_BYTES: usize = 400 << 10;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn what_was_found_holds() {
    std::thread::scope(|scope| {
        for (name, promise) in promises::ALL {
            scope.spawn(move || {
                for file in
                    ["seeds", "corpus"].into_iter().flat_map(|kind| files(&fuzz().join(kind).join(name)))
                {
                    let data = std::fs::read(&file).unwrap();
                    let holds = std::panic::catch_unwind(|| promise(&data));
                    assert!(holds.is_ok(), "{} breaks a promise", file.display());
                }
            });
        }
    });
}

#[test]
fn each_promise_has_a_target_and_a_corpus_that_can_be_kept() {
    let promised: BTreeSet<String> = promises::ALL.iter().map(|(name, _)| (*name).to_owned()).collect();
    let stem = |file: &PathBuf| file.file_stem().unwrap().to_str().unwrap().to_owned();
    assert_eq!(files(&fuzz().join("targets")).iter().map(stem).collect::<BTreeSet<_>>(), promised);
    let makefile = std::fs::read_to_string(fuzz().join("../Makefile")).unwrap();
    let targets = makefile.lines().find_map(|line| line.strip_prefix("FUZZ_TARGETS ?= ")).unwrap();
    assert_eq!(targets.split(' ').map(str::to_owned).collect::<BTreeSet<_>>(), promised);
    for name in promised {
        let corpus = files(&fuzz().join("corpus").join(&name));
        let bytes: u64 = corpus.iter().map(|file| file.metadata().unwrap().len()).sum();
        assert!(!corpus.is_empty() && corpus.len() <= MAX_FILES, "{name}: {} files", corpus.len());
        assert!(bytes <= MAX_BYTES as u64, "{name}: {bytes} bytes");
    }
}
