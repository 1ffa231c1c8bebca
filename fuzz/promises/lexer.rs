//! The SQL lexer: any text has an answer, for a bounded price.

use crate::measure::bounded;
use relay::sql::{Scan, effects, is_suspicious, of_function, suspected};
use relay::{Effects, Pin};

/// A text is read four times at most, and each byte can be a token, in a list that doubles.
const EACH: usize = 4 * 256;

/// Nobody writes that.
const QUOTE: &str = "$pgusher_quote$";

/// What is not seen through may do anything: its session is kept for good, whatever was seen of it before.
fn is_opaque(effects: &Effects) -> bool {
    effects.pin == Some(Pin::Opaque) || effects.pin.is_some() && effects.asks_all
}

/// With what is defined by it, and by that, as if it ran at once; all that makes a difference to a session.
fn flat(effects: &Effects) -> Effects {
    let mut all =
        Effects { defined: None, foreseen: false, relates: false, changes: Vec::new(), ..effects.clone() };
    effects.defined.iter().for_each(|defined| all.add(&flat(defined)));
    (all.foreseen, all.relates, all.changes) = (false, false, Vec::new());
    all
}

/// Without what is defined by it.
fn own(effects: &Effects) -> Effects {
    flat(&Effects { defined: None, ..effects.clone() })
}

/// Whether a text is known to do all that its source does: at once, or each by itself and by what it defines. Of a source that is
/// not seen through nothing is known: within a longer statement more of it may be read.
fn covers(effects: &Effects, source: &Effects) -> bool {
    let has = |effects: &Effects, source: &Effects| {
        let mut both = effects.clone();
        both.add(source);
        both == *effects
    };
    let defines = |source: &Effects| {
        is_opaque(source) || effects.defined.as_deref().is_some_and(|defined| covers(defined, source))
    };
    is_opaque(effects)
        || is_opaque(source)
        || has(&flat(effects), &flat(source))
        || has(&own(effects), &own(source)) && source.defined.as_deref().is_none_or(defines)
}

/// A body that stands within a statement does there what it does as a function's source, now or when it is called.
fn bodies(text: &[u8]) {
    let is_rewritten = text.starts_with(b"CREATE OR REPLACE");
    // One that ends with all of the quote but its last sign would end it early.
    let quotes = |inner: &str| inner.contains(QUOTE.trim_end_matches('$'));
    let Some(inner) = std::str::from_utf8(text).ok().filter(|inner| !quotes(inner) && !is_rewritten) else {
        return;
    };
    let source = of_function(b"f", b"plpgsql", text);
    let block = format!("DO LANGUAGE plpgsql {QUOTE}{inner}{QUOTE}");
    let of_block = bounded(block.len(), EACH, || effects(block.as_bytes())).map(|effects| *effects);
    assert!(
        covers(&of_block.clone().unwrap_or_default(), &source),
        "a block does less than a function: {of_block:?} {source:?}"
    );
    let definition = format!("CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS {QUOTE}{inner}{QUOTE}");
    let of_definition =
        bounded(definition.len(), EACH, || effects(definition.as_bytes())).unwrap_or_default();
    assert!(of_definition.defines || is_opaque(&of_definition), "it defines a function: {of_definition:?}");
    let defined = of_definition.defined.as_deref().cloned().unwrap_or_default();
    assert!(
        covers(&defined, &source) || is_opaque(&of_definition),
        "what is defined does less: {defined:?} {source:?}"
    );
}

/// See the module.
pub(crate) fn holds(text: &[u8]) {
    let of_text = bounded(text.len(), EACH, || suspected(text));
    if is_suspicious(text) {
        assert_eq!(of_text, effects(text));
    }
    let mut scan = Scan::default();
    scan.feed(text);
    assert!(!scan.clone().is_suspicious() || is_suspicious(text), "the quick look sees less");
    let mut aware = Scan::of_statements();
    aware.feed(text);
    let sees = aware.clone().is_suspicious() || aware.defines();
    assert!(
        sees || !of_text.as_deref().is_some_and(Effects::matter),
        "a long one is not looked into: {of_text:?}"
    );
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
    bodies(text);
}
