//! The log, on standard error: every line begins with a time stamp of ours, is of a bounded length, and has no character
//! that a terminal obeys, whoever sent what stands in it.

use std::borrow::Cow;
use std::io::{self, Write};

use serde_json::{Map, Value};
use tracing::error;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::proxy::SetLevel;
use policy::config::{LogFormat, LogLevel, Server};
use wire::error::{Shown, escape_json, is_obeyed};

/// How many lines may wait to be written: with the longest line, 20 MiB.
const MAX_LINES: usize = 10_000;
/// The longest line, in bytes.
const MAX_LINE: usize = 2048;
/// The longest value of a JSON line that is too long.
const MAX_VALUE: usize = 256;

/// Begins it. A thread of its own writes: whoever reads the log slowly, or not at all, loses lines, which are counted, and
/// holds up nobody. What is left is written when the guard is dropped.
pub(super) fn start(server: &Server) -> Log {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_LINES)
        .thread_name("log")
        .finish(io::stderr());
    let dropped = writer.error_counter();
    // Above the layer that writes: what it leaves out costs nothing more.
    let (level, handle) = reload::Layer::new(filter(*server.log_level));
    let log = tracing_subscriber::fmt::layer()
        .with_writer(Lines { writer, format: *server.log_format })
        .with_target(false)
        // A log that cannot be written (a full disk) would be complained about on standard error, and that would panic.
        .log_internal_errors(false);
    let registry = tracing_subscriber::registry().with(level);
    match *server.log_format {
        LogFormat::Text => registry.with(log.with_ansi(false)).init(),
        LogFormat::Json => registry.with(log.json().flatten_event(true)).init(),
    }
    let set: SetLevel = Box::new(move |level| drop(handle.reload(filter(level))));
    // The words of a panic are lines of the log, too.
    std::panic::set_hook(Box::new(|panic| error!("{panic}")));
    Log { _writes: guard, dropped, set }
}

/// A log that was begun.
pub(super) struct Log {
    /// What is left is written when this is dropped.
    pub(super) _writes: WorkerGuard,
    /// How many lines were lost.
    pub(super) dropped: ErrorCounter,
    /// Changes its level.
    pub(super) set: SetLevel,
}

fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

/// Makes one line of each event, whatever its fields hold and however they were formatted: the only way to the writer.
#[derive(Clone)]
struct Lines {
    writer: NonBlocking,
    format: LogFormat,
}

impl Write for Lines {
    /// An event is written whole, by one call.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let line = match self.format {
            LogFormat::Text => text_line(text),
            LogFormat::Json => json_line(text),
        };
        self.writer.write_all(format!("{line}\n").as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn text_line(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_LINE && !text.contains(is_obeyed) {
        return text.into();
    }
    let shown = Shown::within(text, MAX_LINE);
    // An escape is longer than what it stands for.
    if text.len() <= MAX_LINE && shown.as_str().len() < MAX_LINE - 16 {
        return shown.to_string().into();
    }
    format!("{shown}…").into()
}

/// Of a line that is too long, the values are cut; it stays an object.
fn json_line(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_LINE {
        return escape_json(text);
    }
    let cut = |value: Value| match value {
        Value::String(text) => Value::String(Shown::within(&text, MAX_VALUE).to_string()),
        Value::Array(_) | Value::Object(_) => Value::Null,
        short => short,
    };
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else { return "{\"cut\":true}".into() };
    let mut fields: Map<_, _> = fields.into_iter().map(|(name, value)| (name, cut(value))).collect();
    fields.insert("cut".into(), true.into());
    let whole = Value::Object(fields.clone()).to_string();
    if whole.len() <= MAX_LINE {
        return escape_json(&whole).into_owned().into();
    }
    fields.retain(|name, _| matches!(name.as_str(), "timestamp" | "level" | "message" | "cut"));
    escape_json(&Value::Object(fields).to_string()).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_of_a_bounded_length() {
        let ours = "2026-11-27T00:00:00.000000Z  INFO login refused user=\"käse\"";
        assert_eq!(text_line(ours), ours);
        assert_eq!(text_line("a\nb\u{1b}[31m\u{9b}\u{2028}c"), "a\\nb\\u{1b}[31m\\u{9b}\\u{2028}c");
        for long in ["x".repeat(50_000), "\u{1}".repeat(50_000), "😀".repeat(50_000), "\n".repeat(2_000)] {
            let line = text_line(&long).into_owned();
            assert!(line.len() <= MAX_LINE + 3 && line.ends_with('…') && !line.contains(is_obeyed));
        }
    }

    #[test]
    fn a_json_line_stays_json_however_long_it_was() {
        let object = |values: &[String]| {
            let fields =
                values.iter().enumerate().map(|(n, value)| (format!("field{n}"), value.as_str().into()));
            let ours =
                [("timestamp".to_owned(), Value::from("2026-11-27")), ("level".to_owned(), "INFO".into())];
            Value::Object(ours.into_iter().chain(fields).collect()).to_string()
        };
        for text in [
            object(&["a\u{7f}\u{9b}\u{2028}b".into()]),
            object(&["x".repeat(50_000)]),
            object(&vec!["\u{1}\u{9b}".repeat(900); 40]),
        ] {
            let line = json_line(&text).into_owned();
            assert!(line.len() <= 2 * MAX_LINE && !line.contains(is_obeyed), "{line}");
            let read: Value = serde_json::from_str(&line).unwrap();
            assert_eq!((&read["timestamp"], &read["level"]), (&"2026-11-27".into(), &"INFO".into()));
        }
        let short = object(&["a\u{9b}b".into()]);
        assert_eq!(serde_json::from_str::<Value>(&json_line(&short)).unwrap()["field0"], "a\u{9b}b");
    }
}
