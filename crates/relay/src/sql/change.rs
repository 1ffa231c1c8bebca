//! What a text says of settings.

/// What a text says of a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingChange {
    /// It gives this one a value; in lower case.
    Set(String),
    /// It takes this one back to its default: `RESET`, or `SET … TO DEFAULT`.
    Default(String),
    /// All of them.
    AllDefault,
}

impl SettingChange {
    /// The setting that it is of, if it is of one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Set(name) | Self::Default(name) => Some(name),
            Self::AllDefault => None,
        }
    }
}
