//! Reads TOML into settings, gathering every problem with its place instead of stopping at the first.

use std::collections::BTreeMap;
use std::ops::{Deref, Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value as Json, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problems::{MAX_NEAR_LENGTH, Problems};
use crate::secret::Source;

/// A value of the file, or a default; knows where it stands.
#[derive(Clone, Debug)]
pub struct Setting<T> {
    value: T,
    span: Option<Range<usize>>,
}

impl<T> Setting<T> {
    /// A value that stands nowhere in the file.
    pub fn default_of(value: T) -> Self {
        Self { value, span: None }
    }

    /// Where it stands in the file, in bytes.
    pub fn span(&self) -> Option<Range<usize>> {
        self.span.clone()
    }

    /// The value without its place.
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for Setting<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

/// Whether a value under a key that is for no secret holds none: also no table, no URL and no connection string.
fn is_harmless(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::Table(_) => false,
        DeValue::Array(items) => items.iter().all(|item| is_harmless(item.get_ref())),
        DeValue::String(text) => !text.contains("://") && !text.contains('='),
        _ => true,
    }
}

/// A type that a setting can have.
pub trait Value: Sized {
    /// Whether it is never a secret, nor a table that may hold one.
    const IS_PUBLIC: bool = true;
    /// Whether it names a file of the machine, which the management API cannot have pgusher read.
    const IS_FILE: bool = false;
    /// What an operator has to write, for messages and the manual.
    fn kind() -> String;
    /// The same for editors (JSON Schema 2020-12).
    fn schema() -> Json;
    /// Reads it; on `None` a problem has been recorded.
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self>;
    /// The words that may be written, and what each means; none if it is not one of some words.
    fn meanings() -> Vec<(&'static str, String)> {
        Vec::new()
    }
    /// As it would be written in the file; empty for "not set".
    fn show(&self) -> String;
    /// The same in JSON; `null` for "not set".
    fn json(&self) -> Json {
        // Numbers, and words in quotes, are written alike in both.
        serde_json::from_str(&self.show()).unwrap_or(Json::Null)
    }
}

/// A file or folder of the machine that pgusher runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(String);

impl From<String> for FilePath {
    fn from(path: String) -> Self {
        Self(path)
    }
}

impl Deref for FilePath {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<Path> for FilePath {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

impl Value for FilePath {
    const IS_FILE: bool = true;
    fn kind() -> String {
        String::kind()
    }
    fn schema() -> Json {
        String::schema()
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        String::read(node, problems).map(Self)
    }
    fn show(&self) -> String {
        self.0.show()
    }
}

fn wrong_type<T: Value>(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<T> {
    let found = node.get_ref().type_str();
    problems.error(Some(node.span()), format!("expected {}, found {found}", T::kind()));
    None
}

impl Value for String {
    fn kind() -> String {
        "a string".into()
    }
    fn schema() -> Json {
        json!({ "type": "string" })
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        match node.get_ref().as_str() {
            Some(s) if s.contains('\0') => {
                problems.error(Some(node.span()), "a string here cannot hold the character NUL");
                None
            }
            Some(s) => Some(s.to_owned()),
            None => wrong_type::<Self>(node, problems),
        }
    }
    fn show(&self) -> String {
        format!("{self:?}")
    }
    fn json(&self) -> Json {
        self.as_str().into()
    }
}

impl Value for bool {
    fn kind() -> String {
        "true or false".into()
    }
    fn schema() -> Json {
        json!({ "type": "boolean" })
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        node.get_ref().as_bool().or_else(|| wrong_type::<Self>(node, problems))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u32 {
    fn kind() -> String {
        "a whole number".into()
    }
    fn schema() -> Json {
        json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX })
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        let Some(integer) = node.get_ref().as_integer() else {
            return wrong_type::<Self>(node, problems);
        };
        let number = u32::from_str_radix(integer.as_str(), integer.radix());
        if number.is_err() {
            problems.error(Some(node.span()), format!("must be between 0 and {}", u32::MAX));
        }
        number.ok()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

/// A day, in seconds.
const DAY: u64 = 24 * 60 * 60;
/// The longest time, 100 years: far from where an instant overflows.
const MAX_TIME: Duration = Duration::from_secs(100 * 365 * DAY);

impl Value for Duration {
    fn kind() -> String {
        "a time with its unit, such as \"15s\", \"500ms\" or \"2h\"".into()
    }
    fn schema() -> Json {
        json!({ "type": "string", "pattern": r"^\s*(\d+\s*[A-Za-zµ]+\s*)+$" })
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        if node.get_ref().as_integer().is_some() {
            problems
                .error(Some(node.span()), "a time needs a unit")
                .help("write \"15s\", \"500ms\" or \"2h\"");
            return None;
        }
        let Some(text) = node.get_ref().as_str() else {
            return wrong_type::<Self>(node, problems);
        };
        match humantime::parse_duration(text) {
            Ok(time) if time > MAX_TIME => {
                problems.error(Some(node.span()), "a time cannot be longer than 100 years");
                None
            }
            Ok(time) => Some(time),
            Err(error) => {
                problems.error(Some(node.span()), format!("`{text}` is not a time: {error}"));
                None
            }
        }
    }
    fn show(&self) -> String {
        // Not in months and years: nobody sets a time in them.
        let days = self.as_secs() / DAY;
        match days > 0 && self.as_secs().is_multiple_of(DAY) && self.subsec_nanos() == 0 {
            true => format!("\"{days}days\""),
            false => format!("\"{}\"", humantime::format_duration(*self)),
        }
    }
}

/// Reads a list; a wrong item does not hide the next one.
impl<T: Value> Value for Vec<Setting<T>> {
    const IS_PUBLIC: bool = T::IS_PUBLIC;
    const IS_FILE: bool = T::IS_FILE;
    fn kind() -> String {
        format!("a list, each {}", T::kind())
    }
    fn schema() -> Json {
        json!({ "type": "array", "items": T::schema() })
    }
    fn meanings() -> Vec<(&'static str, String)> {
        T::meanings()
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        let Some(items) = node.get_ref().as_array() else {
            let shown = wrong_type::<Self>(node, problems);
            return shown;
        };
        let read = items.iter().map(|item| read_setting(item, problems));
        let read: Vec<Option<Setting<T>>> = read.collect();
        read.into_iter().collect()
    }
    fn show(&self) -> String {
        format!("[{}]", self.iter().map(|s| s.show()).collect::<Vec<_>>().join(", "))
    }
    fn json(&self) -> Json {
        self.iter().map(|item| item.json()).collect()
    }
}

impl<T: Value> Value for Option<T> {
    const IS_PUBLIC: bool = T::IS_PUBLIC;
    const IS_FILE: bool = T::IS_FILE;
    fn kind() -> String {
        T::kind()
    }
    fn schema() -> Json {
        T::schema()
    }
    fn meanings() -> Vec<(&'static str, String)> {
        T::meanings()
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        T::read(node, problems).map(Some)
    }
    fn show(&self) -> String {
        self.as_ref().map_or(String::new(), T::show)
    }
    fn json(&self) -> Json {
        self.as_ref().map_or(Json::Null, T::json)
    }
}

/// One string or several: what an attribute's values are.
#[derive(Clone, Debug, Default)]
pub struct Strings(pub Vec<Setting<String>>);

impl Value for Strings {
    fn kind() -> String {
        "a string or a list of strings".into()
    }
    fn schema() -> Json {
        json!({ "anyOf": [String::schema(), Vec::<Setting<String>>::schema()] })
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        match node.get_ref() {
            DeValue::String(_) => read_setting(node, problems).map(|s| Self(vec![s])),
            DeValue::Array(_) => Vec::read(node, problems).map(Self),
            _ => wrong_type::<Self>(node, problems),
        }
    }
    fn show(&self) -> String {
        self.0.show()
    }
}

/// A table whose keys are names: `[users.NAME]`, `attributes = { NAME = … }`. In the order of the file, with the place of each name.
#[derive(Clone, Debug)]
pub struct Named<T>(pub Vec<(Setting<String>, T)>, BTreeMap<String, usize>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new(), BTreeMap::new())
    }
}

impl<T> Named<T> {
    /// The entry of this name.
    pub fn find(&self, name: &str) -> Option<&T> {
        self.1.get(name).map(|place| &self.0[*place].1)
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(key, _)| key.as_str())
    }
}

impl<T: Value> Value for Named<T> {
    const IS_PUBLIC: bool = false;
    fn kind() -> String {
        "a table of names".into()
    }
    fn schema() -> Json {
        json!({ "type": "object", "propertyNames": { "minLength": 1 }, "additionalProperties": T::schema() })
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        let Some(table) = node.get_ref().as_table() else {
            return wrong_type::<Self>(node, problems);
        };
        let mut entries = Vec::new();
        // As they stand in the file, and not by their names: what is told of two is told of the later one.
        let mut tables: Vec<_> = table.iter().collect();
        tables.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in tables {
            problems.publish(key.span());
            let name = Setting { value: key.get_ref().to_string(), span: Some(key.span()) };
            if let Some(inner) = unquoted(value, T::schema) {
                let table = T::kind().replace("NAME", &format!("\"{}.{inner}\"", &*name));
                problems
                    .error(name.span(), format!("`{}.{inner}` is a table within a table", &*name))
                    .help(format!("a name with a dot stands in quotes: {table}"));
                continue;
            }
            if name.is_empty() || name.contains('\0') {
                problems.error(name.span(), "a name cannot be empty or hold the character NUL");
            }
            entries.push((name, T::read(value, problems)));
        }
        let entries: Vec<(Setting<String>, T)> =
            entries.into_iter().map(|(name, value)| Some((name, value?))).collect::<Option<_>>()?;
        let places = entries.iter().enumerate().map(|(place, (name, _))| ((**name).clone(), place)).collect();
        Some(Self(entries, places))
    }
    fn show(&self) -> String {
        "{}".into()
    }
}

/// The first key of a table that has nothing but tables, none of which belongs there: a name with a dot, without quotes.
fn unquoted(node: &Spanned<DeValue<'_>>, schema: fn() -> Json) -> Option<String> {
    let table = node.get_ref().as_table().filter(|table| !table.is_empty())?;
    if !table.iter().all(|(_, value)| value.get_ref().is_table()) {
        return None;
    }
    let schema = schema();
    let known = schema["properties"].as_object()?;
    let all = table.iter().all(|(key, _)| !known.contains_key(&**key.get_ref()));
    let first = table.iter().next().filter(|_| all)?;
    Some(first.0.get_ref().chars().take(MAX_NEAR_LENGTH).collect())
}

/// A secret in each of its forms, for editors.
fn secret_schema() -> Json {
    let text = json!({ "type": "string" });
    let words = json!({ "type": "array", "items": text.clone(), "minItems": 1 });
    let form = |key: &str, value: Json| json!({ "type": "object", "properties": { key: value }, "required": [key], "additionalProperties": false });
    let forms = [text.clone(), form("file", text.clone()), form("env", text), form("command", words)];
    json!({ "anyOf": forms })
}

impl Value for Source {
    const IS_PUBLIC: bool = false;
    fn kind() -> String {
        "a secret: a string, { file = \"…\" }, { env = \"…\" } or { command = [\"…\"] }".into()
    }
    fn schema() -> Json {
        secret_schema()
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        if let Some(text) = node.get_ref().as_str() {
            if text.contains('\0') {
                problems.error(Some(node.span()), "a secret cannot hold the character NUL");
                return None;
            }
            return Some(Self::Plain(text.to_owned().into()));
        }
        let table = node.get_ref().as_table().filter(|t| t.len() == 1);
        let Some((key, value)) = table.and_then(|t| t.iter().next()) else {
            return wrong_type::<Self>(node, problems);
        };
        match key.get_ref().as_ref() {
            "file" => String::read(value, problems).map(|path| Self::File(problems.folder().join(path))),
            "env" => String::read(value, problems).map(Self::Env),
            "command" => {
                let words = Vec::<Setting<String>>::read(value, problems)?;
                if words.is_empty() {
                    problems.error(Some(value.span()), "an empty command");
                    return None;
                }
                Some(Self::Command(words.into_iter().map(Setting::into_inner).collect()))
            }
            other => {
                let problem = problems.error(Some(key.span()), format!("unknown form of secret `{other}`"));
                problem.nearest(other, ["file", "env", "command"]);
                None
            }
        }
    }
    fn show(&self) -> String {
        "***".into()
    }
}

/// Reads a value and remembers where it stood.
pub fn read_setting<T: Value>(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Setting<T>> {
    T::read(node, problems).map(|value| Setting { value, span: Some(node.span()) })
}

/// One table while it is read: which keys were asked for, so that the others are unknown.
pub struct TableReader<'a, 'i> {
    table: &'a DeTable<'i>,
    place: Option<Range<usize>>,
    name: &'static str,
    known: Vec<&'static str>,
}

impl<'a, 'i> TableReader<'a, 'i> {
    /// Starts on a node that must be a table; `name` is for messages.
    pub fn new(node: &'a Spanned<DeValue<'i>>, name: &'static str, problems: &mut Problems) -> Option<Self> {
        match node.get_ref().as_table() {
            Some(table) => {
                problems.publish_header(node.span());
                Some(Self { table, place: Some(node.span()), name, known: Vec::new() })
            }
            None => {
                problems.error(
                    Some(node.span()),
                    format!("expected a table ({name}), found {}", node.get_ref().type_str()),
                );
                None
            }
        }
    }

    /// Starts on a whole document.
    pub fn document(table: &'a DeTable<'i>) -> Self {
        Self { table, place: None, name: "the file", known: Vec::new() }
    }

    /// The setting, its default, or, where there is none and it is missing, a problem.
    pub fn take<T: Value + PartialOrd>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        bounds: Option<RangeInclusive<T>>,
        problems: &mut Problems,
    ) -> Option<Setting<T>> {
        let setting = self.take_unbounded(key, default, problems)?;
        if let (Some(bounds), Some(span)) = (bounds, setting.span())
            && !bounds.contains(&setting.value)
        {
            let (low, high) = (bounds.start().show(), bounds.end().show());
            problems.error(Some(span), format!("`{key}` must be between {low} and {high}"));
        }
        Some(setting)
    }

    /// The same for a type that has no order.
    pub fn take_unbounded<T: Value>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        problems: &mut Problems,
    ) -> Option<Setting<T>> {
        self.known.push(key);
        match self.table.get(key) {
            Some(node) => {
                if T::IS_PUBLIC && is_harmless(node.get_ref()) {
                    problems.publish(node.span());
                }
                read_setting(node, problems)
            }
            None if default.is_some() => default.map(Setting::default_of),
            None => {
                problems.error(self.place.clone(), format!("missing key `{key}` in {}", self.name));
                None
            }
        }
    }

    /// Reports every key that nobody asked for.
    pub fn finish(self, problems: &mut Problems) {
        for (key, _) in self.table.iter() {
            problems.publish(key.span());
            let name = key.get_ref().as_ref();
            if !self.known.contains(&name) {
                let shown: String = name.chars().take(MAX_NEAR_LENGTH).collect();
                let problem =
                    problems.error(Some(key.span()), format!("unknown key `{shown}` in {}", self.name));
                match super::foreign::help(self.name, name) {
                    Some(help) => problem.help(help),
                    None => problem.nearest(name, self.known.iter().copied()),
                }
            }
        }
    }
}
