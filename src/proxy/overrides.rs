//! What operators set on the console (`SET`): settings of `[server]` that differ from the file until it is read again.

use std::collections::BTreeMap;

use thiserror::Error;
use toml_edit::{DocumentMut, Item, Table, Value};

use super::LoadError;
use policy::config::file::Server;
use policy::config::manual::Applies;
use policy::config::problems::Severity;

/// Why a setting was not set.
#[derive(Debug, Error)]
pub(crate) enum SetError {
    /// There is none of this name.
    #[error("unrecognized configuration parameter \"{0}\"")]
    Unknown(String),
    /// Its change needs a restart.
    #[error("parameter \"{0}\" cannot be changed without restarting pgusher")]
    Restart(String),
    /// It is a list or a table, which only a file can say.
    #[error("parameter \"{0}\" can only be changed in the file")]
    File(String),
    /// The configuration in force cannot be loaded any more, whatever is set.
    #[error("the configuration in force cannot be loaded any more: {0}")]
    Broken(String),
    /// The value cannot be used.
    #[error("invalid value for parameter \"{key}\": \"{value}\"")]
    Value {
        /// The setting.
        key: String,
        /// What was said.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

impl SetError {
    /// Of a configuration that is wrong by it.
    pub(super) fn value(key: &str, value: &str, error: &LoadError) -> Self {
        Self::Value { key: key.to_owned(), value: value.to_owned(), why: Self::why(error) }
    }

    /// Of one that is wrong without it.
    pub(super) fn broken(error: &LoadError) -> Self {
        Self::Broken(Self::why(error))
    }

    fn why(error: &LoadError) -> String {
        match error {
            LoadError::Rejected(rejected) => {
                let first = rejected.0.iter().find(|problem| problem.severity == Severity::Error);
                first.map_or_else(String::new, |problem| problem.message.clone())
            }
            other => other.to_string(),
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Overrides(BTreeMap<&'static str, Value>);

impl Overrides {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One more, as the kind of the setting has it: a number for a time is of seconds, as PgBouncer's are.
    pub(super) fn set(&mut self, key: &str, value: &str) -> Result<(), SetError> {
        let (_, _, options) = Server::manual();
        let option = options.into_iter().find(|option| option.name == key);
        let option = option.ok_or_else(|| SetError::Unknown(key.to_owned()))?;
        if option.applies == Applies::Restart {
            return Err(SetError::Restart(key.to_owned()));
        }
        let schema = (option.schema)();
        let is_time = schema["pattern"].is_string();
        let is_text = schema["type"] == "string" || schema["enum"].is_array();
        let plain = match value.to_ascii_lowercase().as_str() {
            "on" => Some(true.into()),
            "off" => Some(false.into()),
            word => word.parse::<Value>().ok().filter(|value| value.is_integer() || value.is_bool()),
        };
        let value = match (plain, value.parse::<f64>()) {
            (_, Ok(seconds)) if is_time && (0.0..1e9).contains(&seconds) => {
                let time = std::time::Duration::from_secs_f64(seconds);
                humantime::format_duration(time).to_string().into()
            }
            (Some(plain), _) if !is_text => plain,
            _ if is_text => value.into(),
            (None, _) if schema["type"] == "array" || schema["type"] == "object" => {
                return Err(SetError::File(key.to_owned()));
            }
            _ => value.into(),
        };
        self.0.insert(option.name, value);
        Ok(())
    }

    /// A text with all of them in its `[server]`.
    pub(super) fn over(&self, source: &str) -> String {
        let Ok(mut document) = source.parse::<DocumentMut>() else { return source.to_owned() };
        let server = document.entry("server").or_insert_with(|| Item::Table(Table::new()));
        if let Some(server) = server.as_table_like_mut() {
            for (key, value) in &self.0 {
                server.insert(key, Item::Value(value.clone()));
            }
        }
        document.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_set_as_their_setting_has_them() {
        let mut overrides = Overrides::default();
        for (key, value) in [
            ("query_wait_timeout", "5"),
            ("client_idle_timeout", "0.5"),
            ("server_lifetime", "2h"),
            ("default_pool_size", "30"),
            ("login_notice", "on"),
            ("log_level", "debug"),
        ] {
            overrides.set(key, value).unwrap();
        }
        let text =
            overrides.over("# mine\n[server]\ndefault_pool_size = 3 # few\n[users.a]\npassword = \"x\"\n");
        for line in [
            "# mine",
            "default_pool_size = 30",
            "query_wait_timeout = \"5s\"",
            "client_idle_timeout = \"500ms\"",
            "server_lifetime = \"2h\"",
            "login_notice = true",
            "log_level = \"debug\"",
            "[users.a]",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(matches!(overrides.set("listen", "x"), Err(SetError::Restart(_))));
        assert!(matches!(overrides.set("tls", "x"), Err(SetError::File(_))));
        assert!(matches!(overrides.set("nothing", "x"), Err(SetError::Unknown(_))));
    }
}
