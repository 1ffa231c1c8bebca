//! Texts without their secrets.

use toml_edit::{Decor, DocumentMut, Item, RawString, Table, Value, value};

/// A text for an answer: without control characters that could confuse a terminal, and of bounded length.
pub(super) fn safe(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c });
    clean.take(4000).collect()
}

/// A configuration in which no secret can be read, nor where it comes from: a command may hold one. Comments are left out:
/// what was a secret may stand there.
pub(super) fn config(source: &str) -> String {
    let Ok(mut document) = source.parse::<DocumentMut>() else { return String::new() };
    for (kind, key) in [("connections", "password"), ("users", "password")] {
        blank_each(document.get_mut(kind), key);
    }
    let management = document.get_mut("management").and_then(Item::as_table_like_mut);
    blank_each(management.and_then(|management| management.get_mut("tokens")), "token");
    let trailing = without_comments(document.trailing().as_str().unwrap_or_default());
    document.set_trailing(trailing);
    quiet_table(document.as_table_mut());
    document.to_string().trim_start_matches('\n').to_owned()
}

fn blank_each(tables: Option<&mut Item>, key: &str) {
    let Some(tables) = tables.and_then(Item::as_table_like_mut) else { return };
    for (_, table) in tables.iter_mut() {
        // In whichever form it stands there: a value, dotted keys, a table of its own.
        if let Some(table) = table.as_table_like_mut()
            && table.contains_key(key)
        {
            table.remove(key);
            table.insert(key, value("***"));
        }
    }
}

/// Between two pieces of TOML there is nothing but spaces, line ends and comments.
fn without_comments(text: &str) -> String {
    let pieces = text.split_inclusive('\n').enumerate().filter_map(|(i, line)| match line.split_once('#') {
        None => Some(line.to_owned()),
        // The first may stand behind something; a line that is only a comment goes with its end.
        Some((before, rest)) if i == 0 => {
            Some(before.to_owned() + if rest.ends_with('\n') { "\n" } else { "" })
        }
        Some(_) => None,
    });
    pieces.collect()
}

fn quiet(decor: &mut Decor) {
    let strip = |text: Option<&RawString>| text.and_then(RawString::as_str).map(without_comments);
    if let Some(prefix) = strip(decor.prefix()) {
        decor.set_prefix(prefix);
    }
    if let Some(suffix) = strip(decor.suffix()) {
        decor.set_suffix(suffix);
    }
}

fn quiet_table(table: &mut Table) {
    quiet(table.decor_mut());
    for (mut key, item) in table.iter_mut() {
        quiet(key.leaf_decor_mut());
        quiet(key.dotted_decor_mut());
        match item {
            Item::Table(table) => quiet_table(table),
            Item::ArrayOfTables(tables) => tables.iter_mut().for_each(quiet_table),
            Item::Value(value) => quiet_value(value),
            Item::None => {}
        }
    }
}

fn quiet_value(value: &mut Value) {
    quiet(value.decor_mut());
    match value {
        Value::Array(array) => {
            let trailing = without_comments(array.trailing().as_str().unwrap_or_default());
            array.set_trailing(trailing);
            array.iter_mut().for_each(quiet_value);
        }
        Value::InlineTable(table) => {
            let strip = |text: &RawString| without_comments(text.as_str().unwrap_or_default());
            let trailing = strip(table.trailing());
            table.set_trailing(trailing);
            for (mut key, value) in table.iter_mut() {
                quiet(key.leaf_decor_mut());
                quiet(key.dotted_decor_mut());
                quiet_value(value);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_left_whatever_its_form() {
        let source = r#"
# password = "hunter1"
[connections.a]
host = "db"
password = """
hunter3
x = hunter4""" # was: hunter2
environments = [ # hunter8
  # hunter9
  { connection = "b" }, # hunter10
  # hunter11
]
# the old one: hunter12
[connections.dotted]
host = "d" # password was hunter13
password.command = ["echo", "hunter14"]
[users]
u = { password = "hunter5", groups = [] }
inline = { auth_type = "trust", # hunter18
  # hunter19
}
[users.v]
password = { command = ["echo", "hunter6"] }
[users.w.password]
command = ["echo", "hunter15"]
[management.tokens.t]
token = 'hunter7'
[management.tokens.u]
token.file = "hunter16"
# hunter17
"#;
        let text = config(source);
        for n in 1..20 {
            assert!(!text.contains(&format!("hunter{n}")), "{text}");
        }
        text.parse::<DocumentMut>().unwrap();
        assert!(text.contains("[connections.a]") && text.contains("host = \"db\""), "{text}");
    }
}
