//! The JSON of a request, read strictly: bounded in length and time, no key twice, nothing too deep.

use std::fmt;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::answer::Problem;

/// The longest body.
const MAX_BODY: usize = 1 << 20;
/// How long a body may take to come.
const BODY_TIME: Duration = Duration::from_secs(10);

/// JSON in which a key that stands twice is an error.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Value;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Value, E> {
                Ok(Value::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_str<E>(self, value: &str) -> Result<Value, E> {
                Ok(value.into())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
                let mut list = Vec::new();
                while let Some(Strict(item)) = items.next_element()? {
                    list.push(item);
                }
                Ok(list.into())
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
                let mut map = Map::new();
                while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
                    if map.contains_key(&key) {
                        return Err(de::Error::custom("a key stands twice"));
                    }
                    map.insert(key, value);
                }
                Ok(map.into())
            }
        }
        deserializer.deserialize_any(Any).map(Strict)
    }
}

/// What JSON calls a value.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The bytes of a body, bounded in length and time.
///
/// # Errors
/// 413, 408
pub(super) async fn bytes(body: Body) -> Result<Vec<u8>, Problem> {
    match tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => Ok(bytes.to_vec()),
        Ok(Err(_)) => Err(Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is longer than {MAX_BODY} bytes, or was cut off"),
        )),
        Err(_) => Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in 10 seconds")),
    }
}

/// What a request says it holds: `application/json` without its parameters.
///
/// # Errors
/// 415: it says nothing.
pub(super) fn content_type(request: &Request) -> Result<String, Problem> {
    let said = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = said.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "" => Err(unsupported()),
        _ => Ok(essence),
    }
}

/// 415
pub(super) fn unsupported() -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Type must be application/json")
}

/// Reads JSON strictly.
///
/// # Errors
/// 400 `Bad Request: Empty request body`, `Bad Request: Invalid JSON`
pub(super) fn read(bytes: &[u8]) -> Result<Value, Problem> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Problem::bad("Empty request body"));
    }
    match serde_json::from_slice::<Strict>(bytes) {
        Ok(Strict(value)) => Ok(value),
        Err(error) if error.is_data() => {
            Err(Problem::bad(format_args!("Invalid JSON: a key stands twice, in line {}", error.line())))
        }
        Err(_) => Err(Problem::bad("Invalid JSON")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_that_is_deep_wide_or_cut_off_is_refused_or_read_once() {
        for size in [1 << 10, 64 << 10, MAX_BODY] {
            for open in ["[", "{\"a\":", "[[{\"a\":["] {
                assert!(read(open.repeat(size / open.len()).as_bytes()).is_err(), "{open}");
            }
            let wide: String = (0..size / 16).map(|i| format!("\"{i:010}\":1,")).collect();
            let value = read(format!("{{{wide}\"x\":1}}").as_bytes()).unwrap();
            assert_eq!(value.as_object().unwrap().len(), size / 16 + 1);
            assert!(read(format!("{{{wide}").as_bytes()).is_err());
            assert!(read(format!("\"{}", "x".repeat(size)).as_bytes()).is_err());
        }
    }
}
