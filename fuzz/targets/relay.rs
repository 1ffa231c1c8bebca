//! Inputs by coverage for `promises/relay.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgusher_fuzz::holds("relay", data));
