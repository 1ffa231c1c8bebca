//! What is said of each setting, to people (the manual) and to editors (JSON Schema): both from its declaration.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value as Json, json};
use toml::de::DeTable;

use super::problems::Problems;
use super::read::TableReader;

/// When a changed setting takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applies {
    /// At the next reload, for sessions that live as well.
    Reload,
    /// At the next reload, for logins after it.
    Login,
    /// At a restart.
    Restart,
}

/// One setting as the manual shows it.
#[derive(Debug)]
pub struct OptionDoc {
    /// Its key.
    pub name: &'static str,
    /// What may be written.
    pub kind: String,
    /// The same for editors, without what follows here.
    pub schema: fn() -> Json,
    /// The words that may be written, and what each means.
    pub meanings: Vec<(&'static str, String)>,
    /// Its default as it would be written; `None` if it must be given, empty if it is unset.
    pub default: Option<String>,
    /// Its bounds, if any.
    pub bounds: Option<String>,
    /// When a change takes effect.
    pub applies: Applies,
    /// Its doc comment.
    pub text: String,
    /// Whether it names a file of the machine.
    pub is_file: bool,
    /// Whether the management API takes and shows it: what is neither a secret, nor a table, nor a file.
    pub in_api: bool,
    /// Reads it from a table, as the file is read; false if it cannot be used.
    pub read: fn(TableReader<'_, '_>, &mut Problems) -> bool,
}

impl OptionDoc {
    /// When a change takes effect, in words.
    pub fn applied(&self) -> &'static str {
        match self.applies {
            Applies::Reload => "a reload applies it",
            Applies::Login => {
                "a reload applies it to later logins, and to the routes of sessions (`on_move`)"
            }
            Applies::Restart => "applied at a restart",
        }
    }

    /// Whether a value, as the file would have it, can be used.
    ///
    /// # Errors
    /// What is wrong with it, and what to do.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let text = format!("{} = {value}", self.name);
        let mut problems = Problems::new(Path::new(""), &text);
        let (document, errors) = DeTable::parse_recoverable(&text);
        if let Some(error) = errors.first() {
            return Err(error.message().to_owned());
        }
        (self.read)(TableReader::document(document.get_ref()), &mut problems);
        match problems.iter().next() {
            Some(problem) => {
                let help = problem.help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default();
                Err(format!("{}{help}", problem.message))
            }
            None => Ok(()),
        }
    }

    /// Whether it may be left unset.
    pub fn is_optional(&self) -> bool {
        self.default.as_deref() == Some("")
    }

    /// For an editor: what may be written, what it means, its default and its bounds.
    pub fn described(&self) -> Json {
        let mut schema = (self.schema)();
        schema["description"] = format!("{}\n\n({}.)", self.text, self.applied()).into();
        // Strings, numbers and lists are written alike in both.
        if let Some(Ok(default)) = self.default.as_deref().map(serde_json::from_str::<Json>) {
            schema["default"] = default;
        }
        let bounds = self.bounds.as_deref().and_then(|bounds| bounds.split_once(" to "));
        if let Some((low, high)) = bounds
            && let (Ok(low), Ok(high)) = (low.parse::<u32>(), high.parse::<u32>())
        {
            (schema["minimum"], schema["maximum"]) = (low.into(), high.into());
        }
        schema
    }
}

/// What may be in a table, for editors.
pub fn table_schema((title, about, options): (&'static str, String, Vec<OptionDoc>)) -> Json {
    let properties: Map<_, _> =
        options.iter().map(|option| (option.name.to_owned(), option.described())).collect();
    let required: Vec<_> =
        options.iter().filter(|option| option.default.is_none()).map(|option| option.name).collect();
    json!({
        "type": "object", "title": title, "description": about,
        "properties": properties, "required": required, "additionalProperties": false,
    })
}

/// Joins the lines of a doc comment.
pub fn doc_text(lines: &[&str]) -> String {
    let mut text = String::new();
    for line in lines {
        let _ = writeln!(text, "{}", line.strip_prefix(' ').unwrap_or(line));
    }
    text.trim_end().to_owned()
}

/// The words of a choice, one a line.
fn explained(meanings: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (word, meaning) in meanings {
        let _ = write!(text, "\n- `\"{word}\"`: {meaning}");
    }
    if text.is_empty() { text } else { text + "\n" }
}

/// The manual in Markdown: of each table its title, what it is about, and its settings.
pub(super) fn markdown(tables: impl IntoIterator<Item = (&'static str, String, Vec<OptionDoc>)>) -> String {
    let mut text = String::from(include_str!("manual_head.md"));
    for (title, about, options) in tables {
        let _ = write!(text, "\n## `{title}`\n\n{about}\n");
        for option in options {
            let default = match option.default.as_deref() {
                None => "must be given".to_owned(),
                Some("") => "not set".to_owned(),
                Some(value) => format!("default `{value}`"),
            };
            let bounds = option.bounds.as_ref().map(|b| format!(", from {b}")).unwrap_or_default();
            let _ = write!(
                text,
                "\n### `{}`\n\n{}\n{}\n*{}; {default}{bounds}; {}.*\n",
                option.name,
                option.text,
                explained(&option.meanings),
                option.kind,
                option.applied()
            );
        }
    }
    text
}

/// The JSON Schema of a file that is this table.
pub(super) fn json_schema(file: (&'static str, String, Vec<OptionDoc>)) -> String {
    let mut schema = table_schema(file);
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "pgusher's configuration".into();
    format!("{schema:#}\n")
}
