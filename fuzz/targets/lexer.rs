//! The SQL lexer: any text has an answer, for a bounded price.
#![no_main]

use libfuzzer_sys::fuzz_target;
use relay::sql::{Scan, effects, is_suspicious, of_function, suspected};
use pgusher_fuzz::bounded;

/// A text is read four times at most, and each byte can be a token, in a list that doubles.
const EACH: usize = 4 * 256;

fuzz_target!(|text: &[u8]| {
    let of_text = bounded(text.len(), EACH, || suspected(text));
    if is_suspicious(text) {
        assert_eq!(of_text, effects(text));
    }
    let mut scan = Scan::default();
    scan.feed(text);
    assert!(!scan.clone().is_suspicious() || is_suspicious(text), "the quick look sees less");
    let (one, other) = text.split_at(text.len() / 3);
    let mut pieces = Scan::default();
    pieces.feed(one);
    pieces.feed(other);
    assert_eq!(pieces.is_suspicious(), scan.is_suspicious(), "in pieces it is another text");
    for language in [&b"plpgsql"[..], b"sql", b"plperl", b"c"] {
        let of_function = bounded(text.len(), EACH, || of_function(b"f", language, text));
        // Together they do what either does.
        let mut both = of_text.as_deref().cloned().unwrap_or_default();
        both.add(&of_function);
        assert!(both.matter() || !of_function.matter());
    }
});
