//! Options of the file that a body and an answer have as they are declared there ([`policy::config::file`]): a new option is in the
//! API as soon as it is declared.

use std::marker::PhantomData;

use serde::Serialize;
use serde_json::{Map, Value as Json};
use toml_edit::TableLike;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::{PartialSchema, ToSchema};

use super::answer::Problem;
use super::body::{Field, Fields, List, Name, Need, Patch, described, whole, word_schema};
use super::edit;
use policy::config::manual::OptionDoc;
use policy::config::read::Value as _;
use policy::config::{self, file};

/// What is in force of an option, by the table as it was checked.
type InForce<T> = fn(&<T as Declared>::Checked) -> Json;

/// A table of the file that the API writes and shows.
pub(super) trait Declared: 'static {
    /// What its name begins with in the document of the API.
    const NAME: &'static str;
    /// The same table when it was checked.
    type Checked;
    /// Options that the API says in another form, or elsewhere.
    const OTHERWISE: &'static [&'static str];
    /// Options that, unset, follow another: what is in force.
    const IN_FORCE: &'static [(&'static str, InForce<Self>)];
    /// All its options.
    fn all() -> Vec<OptionDoc>;
    /// Those that the API shows.
    fn shown(&self) -> Vec<(&'static str, Json)>;
}

impl Declared for file::Connection {
    const NAME: &'static str = "Connection";
    type Checked = config::Connection;
    const OTHERWISE: &'static [&'static str] = &["id", "query_timeout", "user_attribute", "default_values"];
    const IN_FORCE: &'static [(&'static str, InForce<Self>)] = &[
        ("database", |it| it.target.database.json()),
        ("connect_timeout", |it| it.connect_timeout.json()),
        ("pool_mode", |it| it.pool_mode.json()),
        ("pool_size", |it| it.pool_size.json()),
        ("min_pool_size", |it| it.min_pool_size.json()),
        ("reserve_pool_size", |it| it.reserve_pool_size.json()),
        ("max_pinned", |it| it.max_pinned.json()),
        ("environment_name", |it| it.environment.to_string().into()),
    ];
    fn all() -> Vec<OptionDoc> {
        Self::manual().2
    }
    fn shown(&self) -> Vec<(&'static str, Json)> {
        self.in_api()
    }
}

impl Declared for file::User {
    const NAME: &'static str = "User";
    type Checked = config::User;
    const OTHERWISE: &'static [&'static str] = &["groups"];
    const IN_FORCE: &'static [(&'static str, InForce<Self>)] = &[
        ("auth_type", |it| it.auth_type.json()),
        ("max_client_connections", |it| it.max_client_connections.json()),
    ];
    fn all() -> Vec<OptionDoc> {
        Self::manual().2
    }
    fn shown(&self) -> Vec<(&'static str, Json)> {
        self.in_api()
    }
}

/// Whether the API has an option as it is declared.
fn is_here<T: Declared>(option: &OptionDoc) -> bool {
    option.in_api && !T::OTHERWISE.contains(&option.name)
}

fn options<T: Declared>() -> impl Iterator<Item = OptionDoc> {
    T::all().into_iter().filter(is_here::<T>)
}

/// An option's name in JSON: `poolSize` for `pool_size`.
fn wire_name(key: &str) -> String {
    // libpq writes its names in one word.
    let key = match key.strip_prefix("ssl") {
        Some(rest) => &format!("ssl_{rest}"),
        None => key,
    };
    let mut words = key.split('_');
    let mut name = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        name.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        name.extend(letters);
    }
    name
}

/// The words that an option may be; none if it is anything else.
fn choices(declared: &Json) -> Vec<&str> {
    declared["enum"].as_array().into_iter().flatten().filter_map(Json::as_str).collect()
}

/// What may be sent for an option.
fn schema(option: &OptionDoc) -> RefOr<Schema> {
    let declared = option.described();
    match declared["type"].as_str() {
        Some("boolean") => <bool as Field>::schema(),
        Some("integer") => {
            let number = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer));
            let bound = |key: &str| declared[key].as_u64().map(utoipa::Number::from);
            number.minimum(bound("minimum")).maximum(bound("maximum")).into()
        }
        Some("string") if !declared["enum"].is_null() => word_schema(&choices(&declared)),
        Some("string") => match declared["pattern"].as_str() {
            Some(pattern) => Name::object().pattern(Some(pattern)).into(),
            None => Name::schema(),
        },
        // A list, or what is one or a text.
        _ => List::schema(),
    }
}

/// Reads what was sent for an option, as JSON that the file could hold.
fn read(option: &OptionDoc, value: Json) -> Result<Json, String> {
    let declared = option.described();
    let value: Json = match declared["type"].as_str() {
        Some("boolean") => <bool as Field>::read(value)?.into(),
        Some("integer") => {
            let bound = |key: &str| declared[key].as_u64().and_then(|bound| u32::try_from(bound).ok());
            whole(&value, bound("minimum").unwrap_or(0), bound("maximum").unwrap_or(u32::MAX))?.into()
        }
        Some("string") => {
            let Name(text) = Name::read(value)?;
            let words = choices(&declared);
            if !words.is_empty() && !words.contains(&text.as_str()) {
                return Err(format!("Expected one of: {}", words.join(", ")));
            }
            text.into()
        }
        _ => List::read(value)?.0.into(),
    };
    if value.as_array().is_some_and(Vec::is_empty) {
        return Ok(value);
    }
    let item = edit::from_json(&value)?;
    option.check(item.to_string().trim())?;
    Ok(value)
}

/// The options of a table as a body says them.
pub(super) struct Options<T> {
    said: Vec<(&'static str, Patch<Json>)>,
    of: PhantomData<T>,
}

impl<T> std::fmt::Debug for Options<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.said.iter().map(|(name, _)| name)).finish()
    }
}

impl<T: Declared> Options<T> {
    /// For the document: name, what is asked of it, and what may be sent.
    pub(super) fn fields() -> Vec<(String, Need, RefOr<Schema>)> {
        let field = |option: OptionDoc| {
            let need = need(&option);
            (wire_name(option.name), need, described(schema(&option), &option.text, need))
        };
        options::<T>().map(field).collect()
    }

    /// Takes each from a body.
    pub(super) fn take(fields: &mut Fields) -> Self {
        let said = options::<T>().map(|option| {
            let said = fields.take_by(&wire_name(option.name), need(&option), |value| read(&option, value));
            (option.name, said)
        });
        Self { said: said.collect(), of: PhantomData }
    }

    /// What is said of one of them.
    pub(super) fn said(&self, option: &str) -> Patch<&Json> {
        match self.said.iter().find(|(name, _)| *name == option) {
            Some((_, Patch::Set(value))) => Patch::Set(value),
            Some((_, Patch::Null)) => Patch::Null,
            _ => Patch::Absent,
        }
    }

    /// Puts all that is said into the table; a list without items is none.
    pub(super) fn write(self, table: &mut dyn TableLike) -> Result<(), Problem> {
        for (name, said) in self.said {
            let said = match said {
                Patch::Set(Json::Array(items)) if items.is_empty() => Patch::Null,
                said => said,
            };
            let value = said.try_map(|value| edit::from_json(&value).map_err(Problem::bad))?;
            edit::put(table, name, value.map(|item| item.into_value().unwrap_or_else(|_| "".into())));
        }
        Ok(())
    }
}

fn need(option: &OptionDoc) -> Need {
    match option.default {
        None => Need::Required,
        Some(_) => Need::Optional,
    }
}

/// The options of a table as an answer shows them: as they are written, and by what they follow where they are not.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct OptionValues<T> {
    options: Map<String, Json>,
    #[serde(skip)]
    of: PhantomData<T>,
}

impl<T: Declared> OptionValues<T> {
    /// Of a table as it is written and as it was checked.
    pub(super) fn of(written: &T, checked: &T::Checked) -> Self {
        let in_force = |name| T::IN_FORCE.iter().find(|(known, _)| *known == name);
        let shown = written.shown().into_iter().filter(|(name, _)| !T::OTHERWISE.contains(name));
        let value = |(name, written)| {
            let value = in_force(name).map_or(written, |(_, of)| of(checked));
            (wire_name(name), value)
        };
        Self { options: shown.map(value).collect(), of: PhantomData }
    }

    /// One of them.
    pub(super) fn get(&self, name: &str) -> &Json {
        self.options.get(name).unwrap_or(&Json::Null)
    }
}

impl<T: Declared> PartialSchema for OptionValues<T> {
    fn schema() -> RefOr<Schema> {
        let mut object = ObjectBuilder::new();
        for option in options::<T>() {
            let name = wire_name(option.name);
            let is_there =
                !option.is_optional() || T::IN_FORCE.iter().any(|(known, _)| *known == option.name);
            let need = if is_there { Need::Required } else { Need::Optional };
            let is_list = matches!(schema(&option), RefOr::T(Schema::OneOf(_)));
            let shown = match is_list {
                true => <Vec<String> as PartialSchema>::schema(),
                false => schema(&option),
            };
            object = object.property(&name, described(shown, &option.text, need)).required(name);
        }
        object.into()
    }
}

impl<T: Declared> ToSchema for OptionValues<T> {
    fn name() -> std::borrow::Cow<'static, str> {
        format!("{}Options", T::NAME).into()
    }
}
