//! A body of the management API: any bytes are refused in bounded words, or say what they may say; and no password is repeated.

use crate::measure::bounded;
use pgusher::inside::{judge_body, strict_json};
use serde_json::Value;

/// The longest answer to a body that is wrong: each field and some of the unknown keys, in a few words each.
const MAX_PROBLEM: usize = 16 << 10;
/// Is where an input has an `@` as its password, and nowhere else.
const CANARY: &str = "canary-4b1d-sings";

/// A number that is not whole may be written as its neighbour.
fn has_fraction(json: &Value) -> bool {
    match json {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_fraction),
        Value::Object(map) => map.values().any(has_fraction),
        Value::Null | Value::Bool(_) | Value::String(_) => false,
    }
}

/// See the module.
pub(crate) fn holds(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if text.contains(CANARY) {
        return;
    }
    let given = "\"passwordUnencrypted\":\"";
    let text = text.replace(&format!("{given}@\""), &format!("{given}{CANARY}\""));
    let data = if text.contains(CANARY) { text.as_bytes() } else { data };
    let json = bounded(data.len(), 512, || strict_json(data));
    if let Some(json) = &json {
        let loose: Value = serde_json::from_slice(data).expect("JSON, as everybody reads it");
        assert_eq!(*json, loose);
        let written = serde_json::to_vec(json).unwrap();
        assert!(
            has_fraction(json) || strict_json(&written).as_ref() == Some(json),
            "written again, it is something else"
        );
    }
    let judged = judge_body(data);
    assert_eq!(judged, judge_body(data), "the same body is judged otherwise");
    for (kind, to_make, to_change) in judged {
        assert!(json.is_some() || to_make.is_some() && to_change.is_some(), "{kind}: it is no JSON");
        assert!(
            to_make.is_some() || to_change.is_none(),
            "{kind}: what makes one may change one: {to_change:?}"
        );
        for problem in [to_make, to_change].into_iter().flatten() {
            assert!(!problem.is_empty() && problem.len() <= MAX_PROBLEM, "{kind}: {} bytes", problem.len());
            assert!(!problem.contains(CANARY), "{kind}: {problem}");
        }
    }
}
