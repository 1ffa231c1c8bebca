//! Inputs by coverage for `promises/config.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgusher_fuzz::holds("config", data));
