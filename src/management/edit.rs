//! The TOML file, edited in place: what is not meant stays as it was written, comments and order included.

use serde_json::json;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Key, Table, TableLike, Value};

use super::answer::Problem;
use super::body::{List, Patch};

/// The tables of a kind (`connections`, `users`), made if there is none.
fn all<'d>(document: &'d mut DocumentMut, kind: &str) -> Option<&'d mut dyn TableLike> {
    let implicit = || {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    };
    document.entry(kind).or_insert_with(implicit).as_table_like_mut()
}

/// One of them.
pub(super) fn table<'d>(
    document: &'d mut DocumentMut,
    kind: &str,
    name: &str,
) -> Option<&'d mut dyn TableLike> {
    document.get_mut(kind)?.as_table_like_mut()?.get_mut(name)?.as_table_like_mut()
}

/// How a new table stands among the others.
#[derive(Clone, Copy)]
pub(super) enum Form {
    /// Within braces, as everything around it.
    Inline,
    /// With a header of its own.
    Header,
}

/// A new one, behind the others.
pub(super) fn add(document: &mut DocumentMut, kind: &str, name: &str) {
    let form = match document.get(kind) {
        Some(Item::Value(_)) => Form::Inline,
        _ => Form::Header,
    };
    if let Some(tables) = all(document, kind) {
        add_to(tables, name, form);
    }
}

/// The same among these.
pub(super) fn add_to<'t>(
    tables: &'t mut dyn TableLike,
    name: &str,
    form: Form,
) -> Option<&'t mut dyn TableLike> {
    let new = match form {
        Form::Inline => Item::Value(InlineTable::new().into()),
        Form::Header => {
            let mut table = Table::new();
            table.decor_mut().set_prefix("\n");
            Item::Table(table)
        }
    };
    tables.insert(name, new);
    tables.get_mut(name)?.as_table_like_mut()
}

/// Takes one away.
pub(super) fn remove(document: &mut DocumentMut, kind: &str, name: &str) {
    if let Some(tables) = all(document, kind) {
        tables.remove(name);
    }
}

/// Gives a connection another name, in its place, also where others refer to it.
pub(super) fn rename_connection(document: &mut DocumentMut, from: &str, to: &str) {
    if let Some(connections) = all(document, "connections") {
        if let Some(item) = connections.remove(from) {
            connections.insert(to, item);
        }
        for (_, connection) in connections.iter_mut() {
            let Some(connection) = connection.as_table_like_mut() else { continue };
            each_environment(connection, |environment| {
                if environment.get("connection").and_then(Item::as_str) == Some(from) {
                    set(environment, "connection", Some(to.into()));
                    // What it was called by its connection's name it is called still.
                    if environment.get("name").is_none() {
                        set(environment, "name", Some(from.into()));
                    }
                }
            });
        }
    }
}

/// Sets a value where it stands, or takes it away.
pub(super) fn set(table: &mut dyn TableLike, key: &str, value: Option<Value>) {
    let Some(mut value) = value else {
        table.remove(key);
        return;
    };
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        Some(item) => *item = Item::Value(value),
        None => {
            // In `{ a = 1 }`, the last space is that of the last value.
            let last =
                table.iter_mut().last().and_then(|(_, item)| item.as_value_mut().map(Value::decor_mut));
            if let Some(decor) = last
                && let Some(" ") = decor.suffix().and_then(|suffix| suffix.as_str())
            {
                decor.set_suffix("");
                *value.decor_mut() = toml_edit::Decor::new(" ", " ");
            }
            table.insert(key, Item::Value(value));
        }
    }
}

/// One that must be there.
///
/// # Errors
/// 409: it is something else than a table.
pub(super) fn needed<'d>(
    document: &'d mut DocumentMut,
    kind: &str,
    name: &str,
) -> Result<&'d mut dyn TableLike, Problem> {
    let table = table(document, kind, name);
    table.ok_or_else(|| Problem::conflict(format!("{kind} {name} is not a table of the file")))
}

/// A value as it stands there.
pub(super) fn value(document: &mut DocumentMut, kind: &str, name: &str, key: &str) -> Option<Value> {
    table(document, kind, name)?.get(key)?.clone().into_value().ok()
}

/// Does with a value what a body says of it.
pub(super) fn put(table: &mut dyn TableLike, key: &str, value: Patch<Value>) {
    match value {
        Patch::Absent => {}
        Patch::Null => set(table, key, None),
        Patch::Set(value) => set(table, key, Some(value)),
    }
}

/// The same with several texts; none of them are no value.
pub(super) fn put_list(table: &mut dyn TableLike, key: &str, value: Patch<List>) {
    match value {
        Patch::Set(List(texts)) if texts.is_empty() => set(table, key, None),
        value => put(table, key, value.map(|List(texts)| list(&texts))),
    }
}

/// A list of texts.
pub(super) fn list(texts: &[String]) -> Value {
    texts.iter().collect::<Array>().into()
}

/// Looks at each environment of a base, in either form that TOML has for them.
pub(super) fn each_environment(connection: &mut dyn TableLike, mut look: impl FnMut(&mut dyn TableLike)) {
    match connection.get_mut("environments") {
        Some(Item::Value(Value::Array(array))) => {
            array.iter_mut().filter_map(Value::as_inline_table_mut).for_each(|table| look(table));
        }
        Some(Item::ArrayOfTables(tables)) => tables.iter_mut().for_each(|table| look(table)),
        _ => {}
    }
}

/// Another environment of a base, behind the others.
pub(super) fn add_environment(base: &mut dyn TableLike, connection: &str) {
    match base.get_mut("environments") {
        Some(Item::Value(Value::Array(array))) => {
            let mut table = InlineTable::new();
            table.insert("connection", connection.into());
            let mut value = Value::from(table);
            value.decor_mut().set_prefix(behind_the_last(array));
            array.push_formatted(value);
        }
        Some(Item::ArrayOfTables(tables)) => {
            let mut table = Table::new();
            table.insert("connection", connection.into());
            tables.push(table);
        }
        _ => {
            let mut table = InlineTable::new();
            table.insert("connection", connection.into());
            set(base, "environments", Some([Value::from(table)].into_iter().collect::<Array>().into()));
        }
    }
}

/// What stands between the last element of an array and another one: a line end, where each has its own line; and what was
/// said of the last one stays with it.
fn behind_the_last(array: &mut Array) -> String {
    let trailing = array.trailing().as_str().unwrap_or_default().to_owned();
    let Some(last) = array.iter_mut().last() else { return String::new() };
    let decor = last.decor_mut();
    let indent = match decor.prefix().and_then(|prefix| prefix.as_str()).and_then(|p| p.rsplit_once('\n')) {
        Some((_, indent)) => format!("\n{indent}"),
        None => " ".to_owned(),
    };
    let suffix = decor.suffix().and_then(|suffix| suffix.as_str()).unwrap_or_default().to_owned();
    decor.set_suffix("");
    let said = suffix + &trailing;
    let (of_last, rest) = said.split_once('\n').unwrap_or((&said, ""));
    array.set_trailing(if said.contains('\n') { format!("\n{rest}") } else { String::new() });
    match of_last.contains('#') {
        true => format!("{of_last}{}", if indent.starts_with('\n') { indent } else { format!("\n{indent}") }),
        false => indent,
    }
}

/// Takes an environment of a base away.
pub(super) fn remove_environment(base: &mut dyn TableLike, connection: &str) {
    let is_it = |table: &dyn TableLike| table.get("connection").and_then(Item::as_str) == Some(connection);
    let is_left = match base.get_mut("environments") {
        Some(Item::Value(Value::Array(array))) => {
            array.retain(|value| !value.as_inline_table().is_some_and(|table| is_it(table)));
            !array.is_empty()
        }
        Some(Item::ArrayOfTables(tables)) => {
            tables.retain(|table| !is_it(table));
            !tables.is_empty()
        }
        _ => true,
    };
    if !is_left {
        base.remove("environments");
    }
}

/// What an item says, however it is written.
pub(super) fn meaning(item: &Item) -> serde_json::Value {
    match item {
        Item::None => json!(null),
        Item::Value(value) => meaning_of(value),
        Item::Table(table) => meaning_of_table(table),
        Item::ArrayOfTables(tables) => tables.iter().map(|table| meaning_of_table(table)).collect(),
    }
}

fn meaning_of_table(table: &dyn TableLike) -> serde_json::Value {
    let entries = table.iter().map(|(key, item)| (key.to_owned(), meaning(item)));
    serde_json::Value::Object(entries.collect())
}

fn meaning_of(value: &Value) -> serde_json::Value {
    match value {
        Value::String(text) => json!(text.value()),
        Value::Integer(number) => json!(number.value()),
        Value::Float(number) => json!(number.value()),
        Value::Boolean(is) => json!(is.value()),
        Value::Datetime(time) => json!(time.value().to_string()),
        Value::Array(items) => items.iter().map(meaning_of).collect(),
        Value::InlineTable(table) => meaning_of_table(table),
    }
}

/// TOML of JSON; `null`s are left out.
///
/// # Errors
/// A number that TOML does not have.
pub(super) fn from_json(value: &serde_json::Value) -> Result<Item, String> {
    use serde_json::Value as Json;
    Ok(match value {
        Json::Null => Item::None,
        Json::Bool(is) => Item::Value((*is).into()),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Item::Value(whole.into()),
            (None, Some(number)) => Item::Value(number.into()),
            _ => return Err(format!("{number} is out of range")),
        },
        Json::String(text) => Item::Value(text.as_str().into()),
        Json::Array(items) => {
            let mut array = Array::new();
            for item in items {
                match from_json(item)?.into_value() {
                    Ok(value) => array.push(value),
                    Err(_) => return Err("null in a list".into()),
                }
            }
            Item::Value(array.into())
        }
        Json::Object(entries) => {
            let mut table = InlineTable::new();
            for (key, value) in entries {
                if let Ok(value) = from_json(value)?.into_value() {
                    table.insert(key, value);
                }
            }
            Item::Value(table.into())
        }
    })
}

/// Makes one table say what another says, and leaves alone what is said already.
pub(super) fn merge(current: &mut dyn TableLike, desired: &dyn TableLike) {
    let gone: Vec<String> =
        current.iter().map(|(key, _)| key.to_owned()).filter(|key| !desired.contains_key(key)).collect();
    for key in gone {
        current.remove(&key);
    }
    for (key, wanted) in desired.iter() {
        match current.get_mut(key) {
            Some(item) if meaning(item) == meaning(wanted) => {}
            Some(item) => match (item.as_table_like_mut(), wanted.as_table_like()) {
                (Some(table), Some(wanted)) => merge(table, wanted),
                _ => replace(current, key, wanted),
            },
            None => {
                current.insert(key, fresh(wanted));
            }
        }
    }
}

fn replace(current: &mut dyn TableLike, key: &str, wanted: &Item) {
    match wanted.clone().into_value() {
        Ok(mut value) => {
            value.decor_mut().clear();
            one_line(&mut value);
            set(current, key, Some(value));
        }
        Err(item) => {
            current.insert(key, item);
        }
    }
}

/// A copy that does not know where it stood.
fn fresh(item: &Item) -> Item {
    fn forget(table: &mut Table) {
        table.set_position(None);
        if !table.is_implicit() && !table.is_dotted() {
            table.decor_mut().set_prefix("\n");
        }
        table.iter_mut().for_each(|(_, item)| forget_item(item));
    }
    fn forget_item(item: &mut Item) {
        match item {
            Item::Table(table) => forget(table),
            Item::ArrayOfTables(tables) => tables.iter_mut().for_each(forget),
            Item::Value(value) => one_line(value),
            Item::None => {}
        }
    }
    let mut item = item.clone();
    forget_item(&mut item);
    item
}

/// What TOML 1.1 lets stand between braces (line ends and comments around keys and values) has no place on a line of its own,
/// where `{ a.b = 1 }` may become `a.b = 1`.
fn one_line(value: &mut Value) {
    fn tidy(decor: &mut toml_edit::Decor) {
        let breaks = |said: Option<&toml_edit::RawString>| {
            said.is_some_and(|said| said.as_str().is_none_or(|said| said.contains(['\n', '\r', '#'])))
        };
        if breaks(decor.prefix()) || breaks(decor.suffix()) {
            decor.clear();
        }
    }
    tidy(value.decor_mut());
    let Value::InlineTable(table) = value else { return };
    for (mut key, value) in table.iter_mut() {
        tidy(key.leaf_decor_mut());
        tidy(key.dotted_decor_mut());
        one_line(value);
    }
}

/// Makes the tables of a document say what those of another say; of a kind that it does not name, everything stays.
pub(super) fn merge_document(current: &mut DocumentMut, desired: &DocumentMut) {
    for (kind, wanted) in desired.iter() {
        let Some(wanted) = wanted.as_table_like() else { continue };
        if let Some(tables) = all(current, kind) {
            merge(tables, wanted);
        }
    }
}

/// A key as it is written in TOML.
pub(super) fn shown(name: &str) -> String {
    Key::new(name).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"# ours
[server] # the process
listen = ["127.0.0.1:6432"]

# the warehouse
[connections.warehouse]
host = "dev"        # in the cellar
username = "app"
environments = [
  # production
  { connection = "prod", values = ["prod"] },   # careful
]

[connections.prod]
host = "prod" # upstairs
username = "app"

[users]
dana = { password = "x" } # hers
"#;

    #[test]
    fn what_is_not_meant_stays_byte_for_byte() {
        let mut document: DocumentMut = FILE.parse().unwrap();
        let warehouse = table(&mut document, "connections", "warehouse").unwrap();
        set(warehouse, "host", Some("dev2".into()));
        set(warehouse, "port", Some(5433.into()));
        add_environment(warehouse, "staging");
        // What is said of one environment stays with it.
        let expected = FILE
            .replace("\"dev\"  ", "\"dev2\"  ")
            .replace("# careful\n]", "# careful\n  { connection = \"staging\" },\n]\nport = 5433");
        assert_eq!(document.to_string(), expected);
        for (before, after) in [
            ("[{ connection = \"a\" }]", "[{ connection = \"a\" }, { connection = \"b\" }]"),
            ("[]", "[{ connection = \"b\" }]"),
            (
                "[\n  { connection = \"a\" } # of a\n]",
                "[\n  { connection = \"a\" }, # of a\n  { connection = \"b\" }\n]",
            ),
            (
                "[\n  { connection = \"a\" },\n  # at the end\n]",
                "[\n  { connection = \"a\" },\n  { connection = \"b\" },\n  # at the end\n]",
            ),
        ] {
            let mut document: DocumentMut =
                format!("[connections.w]\nenvironments = {before}\n").parse().unwrap();
            add_environment(table(&mut document, "connections", "w").unwrap(), "b");
            assert_eq!(document.to_string(), format!("[connections.w]\nenvironments = {after}\n"));
        }
    }

    #[test]
    fn what_is_added_stands_behind_its_kind() {
        let mut document: DocumentMut = FILE.parse().unwrap();
        add(&mut document, "connections", "Postgres (New)");
        add(&mut document, "groups", "g");
        add(&mut document, "users", "u");
        let text = document.to_string();
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in {text}"));
        assert!(at("[connections.prod]") < at("[connections.\"Postgres (New)\"]"), "{text}");
        assert!(at("[connections.\"Postgres (New)\"]") < at("[users]") && at("[groups.g]") > 0, "{text}");
        assert!(text.contains("# hers") && text.contains("[users.u]"), "{text}");
        text.parse::<DocumentMut>().unwrap();
    }

    #[test]
    fn line_ends_within_braces_do_not_stay_where_the_braces_are_gone() {
        for inline in [
            "{password=\"x\",attributes.environment\n=\"dev\"}",
            "{password=\"x\",attributes\n.\nenvironment=\"dev\"}",
            "{password=\"x\",attributes.environment=\n\"dev\"}",
            "{\n  password = \"x\", # his\n  attributes.environment # which\n = \"dev\" # so\n,\n}",
            "{password=\"x\",attributes={environment\n=\n\"dev\"\n}}",
        ] {
            // A parser that refuses it is as good.
            let Ok(desired) = format!("[users]\nalice = {inline}\n").parse::<DocumentMut>() else { continue };
            for before in
                ["", "[users.alice]\npassword = \"x\"\n", "[users]\nalice = { password = \"x\" }\n", FILE]
            {
                let mut document: DocumentMut = before.parse().unwrap();
                merge_document(&mut document, &desired);
                let text = document.to_string();
                let read: DocumentMut = text.parse().unwrap_or_else(|e| panic!("{inline}: {e}\n{text}"));
                assert_eq!(meaning(&read["users"]), meaning(&desired["users"]), "{text}");
            }
        }
    }

    #[test]
    fn a_connection_is_renamed_where_it_stands() {
        let mut document: DocumentMut = FILE.parse().unwrap();
        rename_connection(&mut document, "prod", "production");
        let text = document.to_string();
        let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what} in {text}"));
        assert!(at("[connections.production]\nhost = \"prod\" # upstairs") < at("[users]"), "{text}");
        assert!(text.contains("connection = \"production\", values = [\"prod\"], name = \"prod\""), "{text}");
    }

    #[test]
    fn merging_what_is_there_already_changes_nothing_and_the_rest_is_as_desired() {
        let mut document: DocumentMut = FILE.parse().unwrap();
        let same: DocumentMut = FILE.replace("# in the cellar", "").replace("  {", "{").parse().unwrap();
        merge_document(&mut document, &same);
        assert_eq!(document.to_string(), FILE);
        let desired =
            "[connections.prod]\nhost = \"other\"\nusername = \"app\"\n[groups.g]\n".parse().unwrap();
        merge_document(&mut document, &desired);
        let text = document.to_string();
        assert!(
            !text.contains("[connections.warehouse]") && text.contains("host = \"other\" # upstairs"),
            "{text}"
        );
        assert!(text.contains("[groups.g]") && text.contains("dana") && text.contains("# ours"), "{text}");
    }
}
