//! What each fuzz target promises of any input. A target runs one of them; the tests run all of them over the corpus.

mod body;
mod catalog;
mod config;
mod console;
mod frames;
mod lexer;
mod options;
mod relay;
mod scram;
mod startup;

/// A promise: it panics where an input breaks it.
pub(crate) type Promise = fn(&[u8]);

/// Each with its target's name, which is that of its folders of seeds and corpus.
pub(crate) const ALL: [(&str, Promise); 10] = [
    ("body", body::holds),
    ("catalog", catalog::holds),
    ("config", config::holds),
    ("console", console::holds),
    ("frames", frames::holds),
    ("lexer", lexer::holds),
    ("options", options::holds),
    ("relay", relay::holds),
    ("scram", scram::holds),
    ("startup", startup::holds),
];
