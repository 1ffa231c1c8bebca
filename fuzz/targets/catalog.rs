//! Inputs by coverage for `promises/catalog.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgusher_fuzz::holds("catalog", data));
