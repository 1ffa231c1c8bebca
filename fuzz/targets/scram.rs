//! Inputs by coverage for `promises/scram.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgusher_fuzz::holds("scram", data));
