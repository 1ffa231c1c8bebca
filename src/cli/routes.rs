//! `pgusher check` and `pgusher resolve`: who goes where by a file, and why.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Format, prepared, print_table, refused};
use crate::prepare;
use policy::attribute;
use policy::config::{Config, Outside};
use policy::route;

const COLUMNS: [&str; 6] = ["USER", "DATABASE", "ATTRIBUTE", "ENVIRONMENT", "CONNECTION", "BY"];

/// Checks a file, and prints each user's route.
pub(super) fn check(file: &Path, outside: Outside, format: Format) -> ExitCode {
    let checked = match prepared(file, outside) {
        Ok(prepared) => prepared.into_parts().0,
        Err(code) => return code,
    };
    eprint!("{}", checked.warnings());
    let rows = rows(checked.config());
    if format == Format::Json {
        let object = |row: &[String; COLUMNS.len()]| -> Value {
            let cells = COLUMNS.iter().zip(row);
            cells
                .map(|(name, cell)| (name.to_ascii_lowercase(), json!(cell)))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        say!("{}", rows.iter().map(object).collect::<Value>());
        return ExitCode::SUCCESS;
    }
    print_table(&std::iter::once(COLUMNS.map(str::to_owned)).chain(rows).collect::<Vec<_>>());
    ExitCode::SUCCESS
}

/// Users times databases.
fn rows(config: &Config) -> Vec<[String; COLUMNS.len()]> {
    let mut rows = Vec::new();
    for user in config.users.keys() {
        let attributes = attribute::explain(config, user.as_str());
        for (database, base_name) in &config.databases {
            if database.as_str() != base_name.as_str() {
                continue;
            }
            let attribute = config.base(database.as_str()).and_then(|(_, base)| base.attribute.clone());
            let values = attribute.map_or_else(
                || "-".to_owned(),
                |name| match attributes.values(&name) {
                    Some((values, origin)) => format!("{name} = {} ({origin})", values.join(", ")),
                    None => format!("{name}: none"),
                },
            );
            let [environment, connection, by] =
                match route::resolve(config, &attributes, database.as_str(), None) {
                    Ok(route) => [
                        route.environment().to_string(),
                        route.connection().to_string(),
                        route.word().to_owned(),
                    ],
                    Err(refusal) => ["refused".to_owned(), refusal.sqlstate.to_string(), "-".to_owned()],
                };
            rows.push([user.to_string(), database.to_string(), values, environment, connection, by]);
        }
    }
    rows
}

/// Prints where a user would go, and why.
pub(super) fn resolve(
    file: &Path,
    user: &str,
    (database, environment): (&str, Option<&str>),
    format: Format,
) -> ExitCode {
    // A route hangs on no secret.
    let checked = match prepare::draft(file, Outside::Leave).and_then(route::review) {
        Ok(checked) => checked,
        Err(rejected) => return refused(file, &rejected),
    };
    if !checked.config().users.contains_key(user) {
        eprintln!("there is no user `{user}` in {}: a login is refused", file.display());
        return ExitCode::FAILURE;
    }
    let attributes = attribute::explain(checked.config(), user);
    match (route::resolve(checked.config(), &attributes, database, environment), format) {
        (Ok(route), Format::Json) => {
            let reasons: Vec<_> = route.reasons().iter().map(ToString::to_string).collect();
            let answer = json!({
                "environment": route.environment().as_str(), "connection": route.connection().as_str(),
                "by": route.word(), "reasons": reasons, "warnings": route.warnings(),
            });
            say!("{answer}");
            ExitCode::SUCCESS
        }
        (Ok(route), Format::Text) => {
            say!("environment  {}\nconnection   {}", route.environment(), route.connection());
            route.reasons().iter().enumerate().for_each(|(i, reason)| {
                say!("{}{reason}", if i == 0 { "because      " } else { "             " });
            });
            route.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
            ExitCode::SUCCESS
        }
        (Err(refusal), Format::Json) => {
            let answer = json!({ "refused": {
                "sqlstate": refusal.sqlstate.as_str(), "message": refusal.message,
                "detail": refusal.detail, "hint": refusal.hint,
            } });
            say!("{answer}");
            ExitCode::FAILURE
        }
        (Err(refusal), Format::Text) => {
            say!("refused      {} ({})", refusal.message, refusal.sqlstate.as_str());
            refusal.detail.iter().for_each(|detail| say!("detail       {detail}"));
            refusal.hint.iter().for_each(|hint| say!("hint         {hint}"));
            ExitCode::FAILURE
        }
    }
}
