//! Inputs by coverage for `promises/console.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgusher_fuzz::holds("console", data));
