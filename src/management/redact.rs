//! Texts without their secrets.

use toml_edit::{DocumentMut, Item, TableLike, Value};

/// A text for an answer: without control characters that could confuse a terminal, and of bounded length.
pub fn safe(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c });
    clean.take(4000).collect()
}

/// A configuration in which no secret can be read, nor where it comes from: a command may hold one.
pub fn config(source: &str) -> String {
    let Ok(mut document) = source.parse::<DocumentMut>() else { return String::new() };
    for (kind, key) in [("connections", "password"), ("users", "password")] {
        blank_each(document.get_mut(kind), key);
    }
    let management = document.get_mut("management").and_then(Item::as_table_like_mut);
    blank_each(management.and_then(|management| management.get_mut("tokens")), "token");
    // What stands in a comment may have been a setting.
    let mut text = String::new();
    for line in document.to_string().lines() {
        match line.trim_start().starts_with('#') {
            true => text.push_str(&crate::config::read::without_secrets(line)),
            false => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

fn blank_each(tables: Option<&mut Item>, key: &str) {
    let Some(tables) = tables.and_then(Item::as_table_like_mut) else { return };
    for (_, table) in tables.iter_mut() {
        if let Some(table) = table.as_table_like_mut() {
            blank(table, key);
        }
    }
}

fn blank(table: &mut dyn TableLike, key: &str) {
    if let Some(Item::Value(value)) = table.get_mut(key) {
        let mut blank = Value::from("***");
        // Behind it may stand what it was before.
        if let Some(prefix) = value.decor().prefix() {
            blank.decor_mut().set_prefix(prefix.clone());
        }
        *value = blank;
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
[users]
u = { password = "hunter5", groups = [] }
[users.v]
password = { command = ["echo", "hunter6"] }
[management.tokens.t]
token = 'hunter7'
"#;
        let text = config(source);
        for n in 1..=7 {
            assert!(!text.contains(&format!("hunter{n}")), "{text}");
        }
        text.parse::<DocumentMut>().unwrap();
        assert!(text.contains("[connections.a]") && text.contains("host = \"db\""), "{text}");
    }
}
