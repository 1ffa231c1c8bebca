//! Reads TOML into settings, gathering every problem with its place instead of stopping at the first.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value as Json, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::manual::secret_schema;
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

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is taken; somebody should look.
    Warning,
}

/// One thing wrong with the file, and where.
#[derive(Clone, Debug)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// The bytes it is about.
    pub span: Option<Range<usize>>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// It is right in itself, and does not fit what else there is.
    pub is_conflict: bool,
}

/// How many problems are kept, errors before warnings; the others are counted. Each shows a line of the file, and a file may
/// have as many as it has bytes.
const MAX_PROBLEMS: usize = 200;
/// How many characters of a line are shown, before the place that is meant and from there on.
const SHOWN_BEFORE: usize = 200;
const SHOWN_BEHIND: usize = 300;
/// How many names are compared with one that is unknown, and how long that may be.
const MAX_NEAR: usize = 1000;
/// The longest message that is shown, in bytes.
const MAX_MESSAGE: usize = 4096;
const MAX_NEAR_LENGTH: usize = 255;

/// All that is wrong with one file, rendered with line, column and the line itself.
pub struct Problems {
    path: PathBuf,
    text: String,
    list: Vec<Problem>,
    /// The last one that was not kept.
    beyond: Option<Problem>,
    errors: usize,
    warnings: usize,
    /// Where keys stand, and values that by the schema are no secrets: by their first bytes, with their ends. Nothing else
    /// of a line is shown.
    public: BTreeMap<usize, usize>,
}

impl fmt::Debug for Problems {
    /// Without the text, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Problems").field("path", &self.path).field("list", &self.list).finish_non_exhaustive()
    }
}

impl Problems {
    /// Nothing wrong yet with this text.
    pub fn new(path: &Path, text: &str) -> Self {
        let (path, text) = (path.to_owned(), text.to_owned());
        let (list, beyond, public) = (Vec::new(), None, BTreeMap::new());
        Self { path, text, list, beyond, errors: 0, warnings: 0, public }
    }

    /// The folder that relative paths are relative to.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// Here is nothing secret.
    fn publish(&mut self, span: Range<usize>) {
        self.public.insert(span.start, span.end);
    }

    /// Of a table, only its name: between braces may be anything.
    fn publish_header(&mut self, span: Range<usize>) {
        if self.text.get(span.clone()).is_some_and(|text| text.starts_with('[') && text.ends_with(']')) {
            self.publish(span);
        }
    }

    /// Records an error.
    pub fn error(&mut self, span: Option<Range<usize>>, message: impl Into<String>) -> &mut Problem {
        self.push(Severity::Error, span, message.into())
    }

    /// Records a warning.
    pub fn warning(&mut self, span: Option<Range<usize>>, message: impl Into<String>) -> &mut Problem {
        self.push(Severity::Warning, span, message.into())
    }

    fn push(&mut self, severity: Severity, span: Option<Range<usize>>, message: String) -> &mut Problem {
        match severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
        }
        let problem = Problem { severity, span, message, help: None, is_conflict: false };
        if self.list.len() >= MAX_PROBLEMS {
            let warning = self.list.iter().rposition(|known| known.severity == Severity::Warning);
            match warning.filter(|_| severity == Severity::Error) {
                Some(at) => drop(self.list.remove(at)),
                None => return self.beyond.insert(problem),
            }
        }
        let index = self.list.len();
        self.list.push(problem);
        &mut self.list[index]
    }

    /// True if any of them refuses the file.
    pub fn refuse(&self) -> bool {
        self.errors > 0
    }

    /// Every problem that is kept, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// What refuses the file, on one line; of several, what was found first.
    pub fn reason(&self) -> Option<String> {
        let first = self.iter().find(|problem| problem.severity == Severity::Error);
        first.map(|problem| self.line_without_help(problem))
    }

    /// How many there are of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        match severity {
            Severity::Error => self.errors,
            Severity::Warning => self.warnings,
        }
    }

    /// `file:line:column: message (help)` of one problem, on one line, for the log.
    pub fn line(&self, problem: &Problem) -> String {
        let help = problem.help.as_ref().map(|h| format!(" ({h})")).unwrap_or_default();
        format!("{}{help}", self.line_without_help(problem))
    }

    /// `file:line:column: message` of one problem.
    pub fn line_without_help(&self, problem: &Problem) -> String {
        let path = self.path.display();
        match &problem.span {
            Some(span) => {
                let (line, column) = self.position(span.start);
                format!("{path}:{line}:{column}: {}", problem.message)
            }
            None => format!("{path}: {}", problem.message),
        }
    }

    /// Line and column (in characters), both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset.min(self.text.len())).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        (line, column)
    }
}

impl Problem {
    /// Says what to do about it.
    pub fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }

    /// It would be right if something else were not there.
    pub fn conflict(&mut self) {
        self.is_conflict = true;
    }

    /// Names the nearest of the valid names, if one is near; otherwise lists them, if they are few.
    pub fn nearest<'a>(&mut self, name: &str, valid: impl IntoIterator<Item = &'a str>) {
        let valid: Vec<&str> = valid.into_iter().collect();
        let is_bounded = name.len() <= MAX_NEAR_LENGTH && valid.len() <= MAX_NEAR;
        let compared = valid.iter().filter(|_| is_bounded);
        let near = compared.map(|v| (strsim::damerau_levenshtein(v, name), *v)).min();
        match near {
            Some((distance, v)) if distance <= 1 + v.len() / 3 => self.help(format!("did you mean `{v}`?")),
            _ if !valid.is_empty() && valid.len() <= 8 => self.help(format!("valid: {}", valid.join(", "))),
            _ => {}
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&Problem> = self.list.iter().collect();
        sorted.sort_by_key(|p| p.span.as_ref().map_or(usize::MAX, |s| s.start));
        for problem in sorted {
            // Names may be anything: what a terminal would obey is escaped.
            let message = wire::error::Shown::within(&problem.message, MAX_MESSAGE);
            let severity = match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            writeln!(f, "{severity}: {message}")?;
            match &problem.span {
                Some(span) => self.show_line(f, span)?,
                None => writeln!(f, "  --> {}", self.path.display())?,
            }
            if let Some(help) = &problem.help {
                writeln!(f, "  = help: {help}")?;
            }
            writeln!(f)?;
        }
        match (self.errors + self.warnings).saturating_sub(self.list.len()) {
            0 => Ok(()),
            more => writeln!(f, "and {more} more"),
        }
    }
}

impl Problems {
    fn show_line(&self, f: &mut fmt::Formatter<'_>, span: &Range<usize>) -> fmt::Result {
        let (line, column) = self.position(span.start);
        let start = self.text.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
        let text = self.text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or("");
        let shown = self.without_secrets(start, text);
        let at = shown.iter().position(|(at, _)| *at >= span.start).unwrap_or(shown.len());
        let shown = &shown[at.saturating_sub(SHOWN_BEFORE)..shown.len().min(at + SHOWN_BEHIND)];
        let gutter = line.to_string().len();
        let before = shown.iter().filter(|(at, _)| *at < span.start).count();
        let marked = shown.iter().filter(|(at, _)| span.contains(at)).count().max(1);
        writeln!(f, "{:gutter$}--> {}:{line}:{column}", "", self.path.display())?;
        writeln!(f, "{:gutter$} |", "")?;
        writeln!(f, "{line} | {}", shown.iter().map(|(_, c)| c).collect::<String>())?;
        writeln!(f, "{:gutter$} | {:before$}{}", "", "", "^".repeat(marked))
    }

    /// A line of the file, which begins at this byte, with all blanked that may be a secret; each character with the byte
    /// that it stands for. A secret may be under any key but those of the schema, and go over several lines.
    fn without_secrets(&self, start: usize, line: &str) -> Vec<(usize, char)> {
        let end = start + line.len();
        // Where what is public here ends: of one that began on a line before, and then of each that begins.
        let mut until = self.public.range(..start).next_back().map_or(0, |(_, end)| *end);
        if self.public.is_empty() {
            until = start + beginning(line);
        }
        let mut public = self.public.range(start..=end).peekable();
        let stars = |at: usize| "***".chars().map(move |star| (at, star));
        let mut shown = Vec::new();
        let mut hidden = None;
        for (at, c) in line.char_indices().map(|(at, c)| (start + at, c)) {
            while let Some((_, end)) = public.next_if(|(from, _)| **from <= at) {
                until = until.max(*end);
            }
            let is_public = at < until;
            if is_public || (hidden.is_none() && "[]{}=,. \t".contains(c)) {
                shown.extend(hidden.take().into_iter().flat_map(stars));
                shown.push((at, c));
            } else {
                hidden = hidden.or(Some(at));
            }
        }
        shown.extend(hidden.into_iter().flat_map(stars));
        shown
    }
}

/// How much of a line of a text that is not TOML is a key, or the name of a table, most likely.
fn beginning(line: &str) -> usize {
    let is_of_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-. ".contains(c);
    let is_of_table = |c: char| c.is_alphanumeric() || "_-. []".contains(c);
    match line.split_once('=') {
        Some((key, value)) if key.chars().all(is_of_key) && !value.trim().is_empty() => key.len() + 1,
        None if line.starts_with('[')
            && line.trim_end().ends_with(']')
            && line.trim_end().chars().all(is_of_table) =>
        {
            line.len()
        }
        _ => 0,
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

/// A table whose keys are names: `[users.NAME]`, `attributes = { NAME = … }`. In the order of the names.
#[derive(Clone, Debug)]
pub struct Named<T>(pub Vec<(Setting<String>, T)>);

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Named<T> {
    /// The entry of this name.
    pub fn find(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(key, _)| key.as_str() == name).map(|(_, value)| value)
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
        entries.into_iter().map(|(name, value)| Some((name, value?))).collect::<Option<_>>().map(Self)
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

/// Declares a table of the file: each setting with its doc comment, type, default, bounds and when a reload
/// applies it. Makes the struct, its reader and its part of the manual.
macro_rules! options {
    ($(#[doc = $about:literal])* $Name:ident as $title:literal {
        $( $(#[doc = $doc:literal])* $applies:ident $field:ident: $ty:ty $(= $default:expr)? $(, $low:expr => $high:expr)?; )*
    }) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug)]
        pub struct $Name { $( $(#[doc = $doc])* pub $field: $crate::config::read::Setting<$ty>, )* }

        impl $Name {
            /// The table's name, its description, and its settings for the manual.
            pub fn manual() -> (&'static str, String, Vec<$crate::config::manual::OptionDoc>) {
                use $crate::config::manual::{Applies, OptionDoc, doc_text};
                use $crate::config::read::Value;
                let options = vec![$( OptionDoc {
                    name: stringify!($field),
                    kind: <$ty>::kind(),
                    schema: <$ty>::schema,
                    meanings: <$ty>::meanings(),
                    default: { #[allow(unused_mut, unused_assignments)] let mut d = None::<$ty>; $( d = Some($default); )? d.map(|d| d.show()) },
                    bounds: { #[allow(unused_mut, unused_assignments)] let mut b = None; $( b = Some(format!("{} to {}", <$ty as Value>::show(&$low), <$ty as Value>::show(&$high))); )? b },
                    applies: Applies::$applies,
                    text: doc_text(&[$($doc),*]),
                    is_file: <$ty>::IS_FILE,
                    in_api: <$ty>::IS_PUBLIC && !<$ty>::IS_FILE,
                    read: |mut table, problems| options!(@take table, problems, $field, $ty, ($($default)?), ($($low => $high)?)).is_some(),
                }, )*];
                ($title, doc_text(&[$($about),*]), options)
            }

            /// Each setting with its value, as it would be written.
            pub fn shown(&self) -> Vec<(&'static str, String)> {
                vec![$( (stringify!($field), $crate::config::read::Value::show(&*self.$field)), )*]
            }

            /// Each setting that the management API shows, with its value in JSON.
            pub fn in_api(&self) -> Vec<(&'static str, serde_json::Value)> {
                use $crate::config::read::Value;
                let all = [$( (<$ty>::IS_PUBLIC && !<$ty>::IS_FILE).then(|| (stringify!($field), Value::json(&*self.$field))), )*];
                all.into_iter().flatten().collect()
            }

            fn read_table(mut table: $crate::config::read::TableReader<'_, '_>, problems: &mut $crate::config::read::Problems) -> Option<Self> {
                $( let $field = options!(@take table, problems, $field, $ty, ($($default)?), ($($low => $high)?)); )*
                table.finish(problems);
                Some(Self { $( $field: $field?, )* })
            }
        }

        impl $crate::config::read::Value for $Name {
            const IS_PUBLIC: bool = false;
            fn kind() -> String { concat!("a table (", $title, ")").into() }
            fn schema() -> serde_json::Value { $crate::config::manual::table_schema(Self::manual()) }
            fn read(node: &toml::Spanned<toml::de::DeValue<'_>>, problems: &mut $crate::config::read::Problems) -> Option<Self> {
                let table = $crate::config::read::TableReader::new(node, $title, problems)?;
                Self::read_table(table, problems)
            }
            fn show(&self) -> String { String::new() }
        }
    };
    (@take $table:ident, $problems:ident, $field:ident, $ty:ty, (), ()) => {
        $table.take_unbounded::<$ty>(stringify!($field), None, $problems)
    };
    (@take $table:ident, $problems:ident, $field:ident, $ty:ty, ($default:expr), ()) => {
        $table.take_unbounded::<$ty>(stringify!($field), Some($default), $problems)
    };
    (@take $table:ident, $problems:ident, $field:ident, $ty:ty, ($default:expr), ($low:expr => $high:expr)) => {
        $table.take::<$ty>(stringify!($field), Some($default), Some($low..=$high), $problems)
    };
}
pub(crate) use options;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of a file that is refused.
    fn shown(text: &str) -> String {
        let mut problems = Problems::new(Path::new("f.toml"), text);
        super::super::file::File::parse(text, &mut problems);
        // Wherever a problem may be.
        for (at, _) in text.char_indices() {
            problems.error(Some(at..at + 1), "here");
        }
        problems.to_string()
    }

    #[test]
    fn of_a_line_only_what_cannot_be_a_secret_is_shown() {
        const SECRET: &str = "hunter2";
        for text in [
            // Misspelt, misplaced, of another type, under a key of no meaning.
            "[connections.w]\npasword = \"hunter2\"\n",
            "[connections]\nw = { host = \"h\", passwrd = \"hunter2\" }\n",
            "[management.tokens]\nops = \"hunter2\"\n",
            "[users]\nbob = \"hunter2\"\n",
            "[users.bob]\nkey = \"hunter2\"\nverifier = 'hunter2'\n",
            "[users.bob]\nattributes = { environment = \"dev\", password = \"hunter2\" }\n",
            "[connections.w]\ndsn = \"postgres://u:hunter2@h/db\"\n",
            "[connections.w]\nhost = \"postgres://u:hunter2@h/db\"\n",
            "[connections.w]\nhost = \"h password=hunter2\"\n",
            "[connections.w]\nhost = { password = \"hunter2\" }\n",
            "[connections.w]\npassword = { env = \"hunter2\", file = \"x\" }\n",
            "[connections.w]\npassword = [\"hunter2\",\n\"hunter2\"]\n",
            "[connections.w]\npassword = 1 # not hunter2\n",
            // Over several lines.
            "[connections.w]\npassword = \"\"\"\nhunter2\n[hunter2]\nhunter2 = hunter2=\n\"\"\"\n",
            // Not TOML.
            "[connections.w]\npassword = hunter2\n",
            "[connections.w]\npassword = \"hunter2\n",
            "hunter2\n",
            "hunter2=\n",
            "PGPASSWORD=hunter2\n",
            "  hunter2\"\"\"\n",
        ] {
            let shown = shown(text);
            let without_messages = shown.replace("unknown key `hunter2`", "");
            assert!(!without_messages.contains(SECRET), "{text} -> {shown}");
        }
    }

    #[test]
    fn what_is_no_secret_is_shown_with_its_place() {
        let text = "[connections.w]\nhost = \"h\"\nusername = \"u\"\nport = \"x\"\nx = 1\n";
        let mut problems = Problems::new(Path::new("f.toml"), text);
        assert!(super::super::file::File::parse(text, &mut problems).is_none());
        let shown = problems.to_string();
        assert!(shown.contains(" --> f.toml:4:8\n  |\n4 | port = \"x\"\n  |        ^^^\n"), "{shown}");
        assert!(shown.contains("5 | x = ***\n  | ^\n"), "{shown}");
    }

    #[test]
    fn however_many_problems_there_are_so_many_are_shown_and_errors_before_warnings() {
        let text = format!("a = {{ {} }}", "x = 1, ".repeat(50_000));
        let mut problems = Problems::new(Path::new("x.toml"), &text);
        (0..300).for_each(|at| drop(problems.warning(Some(at..at + 1), "odd").help.take()));
        (0..100_000).for_each(|at| drop(problems.error(Some(at..at + 1), "wrong").help.take()));
        assert_eq!((problems.count(Severity::Error), problems.count(Severity::Warning)), (100_000, 300));
        assert_eq!(problems.iter().filter(|p| p.severity == Severity::Error).count(), MAX_PROBLEMS);
        let shown = problems.to_string();
        assert!(problems.refuse() && shown.ends_with("and 100100 more\n"), "{}", &shown[shown.len() - 100..]);
        assert!(shown.len() < MAX_PROBLEMS * 1500, "{}", shown.len());
    }

    #[test]
    fn the_reason_of_a_refusal_is_an_error_and_no_warning() {
        let mut problems = Problems::new(Path::new("x.toml"), "a = 1\nb = 2\n");
        problems.warning(Some(0..1), "odd");
        assert_eq!(problems.reason(), None);
        problems.error(Some(6..7), "wrong");
        assert_eq!(problems.reason().as_deref(), Some("x.toml:2:1: wrong"));
    }

    #[test]
    fn a_long_line_is_shown_around_the_place_that_is_meant() {
        let text = format!("{}here = 1 # {}", "[a] ".repeat(1000), "y".repeat(5000));
        let at = text.find("here").unwrap();
        let mut problems = Problems::new(Path::new("x.toml"), &text);
        problems.publish(0..text.len());
        problems.error(Some(at..at + 4), "not here");
        let shown = problems.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        let (line, marks) = (lines[3], lines[4]);
        assert!(line.len() < 600, "{line}");
        assert_eq!(line.find("here"), marks.find('^'), "{shown}");
        assert_eq!(marks.matches('^').count(), 4);
    }
}
