//! Inputs by coverage for `promises/options.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgusher_fuzz::holds("options", data));
