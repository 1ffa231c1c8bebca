//! Inputs by coverage for `promises/frames.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgusher_fuzz::holds("frames", data));
