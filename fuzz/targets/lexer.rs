//! Inputs by coverage for `promises/lexer.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgusher_fuzz::holds("lexer", data));
