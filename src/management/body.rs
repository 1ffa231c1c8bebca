//! What a request holds, field by field: no key unknown, every problem named; and the same fields for the document of the
//! API.

use std::collections::BTreeMap;

use axum::extract::{FromRequest, Request};
use secrecy::SecretString;
use serde_json::{Map, Value};
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{ArrayBuilder, KnownFormat, RefOr, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use super::answer::{self, Problem};
use super::json::{self, kind};

/// The longest name, in characters.
const MAX_NAME: usize = 255;
/// The longest other text.
const MAX_TEXT: usize = 4096;
/// The most items of a list.
const MAX_ITEMS: usize = 1000;

/// How many unknown keys are named.
const MAX_UNKNOWN: usize = 20;

/// The type of one field.
pub(super) trait Field: Sized {
    /// In the document.
    fn schema() -> RefOr<Schema>;
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong, without the field's name.
    fn read(value: Value) -> Result<Self, String>;
}

/// A field of a change: left out, taken away, or given.
#[derive(Debug, Clone, Default)]
pub(super) enum Patch<T> {
    /// It is not there: what was there stays.
    #[default]
    Absent,
    /// `null`: back to the default.
    Null,
    /// Given.
    Set(T),
}

impl<T> Patch<T> {
    /// What was given.
    pub(super) fn given(self) -> Option<T> {
        match self {
            Self::Set(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// What must be given.
    ///
    /// # Errors
    /// 400 `Bad Request: <field>: Required`
    pub(super) fn required(self, field: &str) -> Result<T, Problem> {
        self.given().ok_or_else(|| Problem::field(field, "Required"))
    }

    /// Another value.
    pub(super) fn map<U>(self, to: impl FnOnce(T) -> U) -> Patch<U> {
        match self {
            Self::Absent => Patch::Absent,
            Self::Null => Patch::Null,
            Self::Set(value) => Patch::Set(to(value)),
        }
    }

    /// Another value, if there can be one.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn try_map<U, E>(self, to: impl FnOnce(T) -> Result<U, E>) -> Result<Patch<U>, E> {
        Ok(match self {
            Self::Absent => Patch::Absent,
            Self::Null => Patch::Null,
            Self::Set(value) => Patch::Set(to(value)?),
        })
    }

    /// Whether it is there.
    pub(super) fn is_there(&self) -> bool {
        !matches!(self, Self::Absent)
    }
}

/// What a body is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyPurpose {
    /// It makes something: what is needed must be there.
    Create,
    /// It changes something: what is not there stays as it is.
    Change,
}

/// The fields of a body while they are read.
pub(super) struct Fields {
    map: Map<String, Value>,
    purpose: BodyPurpose,
    problems: Vec<String>,
}

impl Fields {
    /// Takes one.
    pub(super) fn take<T: Field>(&mut self, name: &str, need: Need) -> Patch<T> {
        self.take_by(name, need, T::read)
    }

    /// Takes one that is read so.
    pub(super) fn take_by<T>(
        &mut self,
        name: &str,
        need: Need,
        read: impl FnOnce(Value) -> Result<T, String>,
    ) -> Patch<T> {
        match self.map.remove(name) {
            None => {
                if need != Need::Optional && self.purpose == BodyPurpose::Create {
                    self.problems.push(format!("{name}: Required"));
                }
                Patch::Absent
            }
            Some(Value::Null) if need == Need::Optional => Patch::Null,
            Some(value) => read(value).map_or_else(
                |what| {
                    self.problems.push(format!("{name}: {what}"));
                    Patch::Absent
                },
                Patch::Set,
            ),
        }
    }

    /// What nobody took is unknown.
    ///
    /// # Errors
    /// 400 with almost everything that is wrong.
    pub(super) fn finish<T: Fielded>(mut self) -> Result<(), Problem> {
        let known = if self.map.is_empty() { Vec::new() } else { T::fields() };
        for name in self.map.keys().take(MAX_UNKNOWN) {
            let shown: String = name.chars().take(60).collect();
            let near = known.iter().map(|(k, ..)| (strsim::damerau_levenshtein(k, &shown), k.as_str())).min();
            self.problems.push(match near {
                Some((distance, near)) if distance <= 3 => {
                    format!("{shown}: Unrecognized key (did you mean {near}?)")
                }
                _ => format!("{shown}: Unrecognized key"),
            });
        }
        match self.problems.is_empty() {
            true => Ok(()),
            false => Err(Problem::bad(self.problems.join("; "))),
        }
    }
}

/// What is asked of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// It may be left out.
    Optional,
    /// A creation needs it.
    Required,
    /// A creation needs it, and then it stays.
    Fixed,
}

/// A body with named fields.
pub(super) trait Fielded: Sized {
    /// Its name in the document.
    const NAME: &'static str;
    /// Its fields: name, what is asked of it, schema with its description.
    fn fields() -> Vec<(String, Need, RefOr<Schema>)>;
    /// Reads them.
    ///
    /// # Errors
    /// 400
    fn read(fields: Fields) -> Result<Self, Problem>;
}

/// Declares a body: its own fields, and the options of a table of the file that it has as they are declared there.
macro_rules! body {
    ($(#[doc = $about:literal])* $Name:ident as $name:literal $(with the options of $Table:ty)? {
        $( $(#[doc = $doc:literal])* $field:ident: $Type:ty $(, $required:ident)?; )*
    }) => {
        $(#[doc = $about])*
        #[derive(Debug)]
        // The names are those on the wire.
        #[allow(non_snake_case)]
        pub(crate) struct $Name {
            $( $(#[doc = $doc])* pub(crate) $field: $crate::management::body::Patch<$Type>, )*
            $(
                /// Those that are as they are in the file.
                pub(super) options: $crate::management::declared::Options<$Table>,
            )?
        }

        impl $crate::management::body::Fielded for $Name {
            const NAME: &'static str = $name;
            fn fields() -> Vec<(String, $crate::management::body::Need, utoipa::openapi::RefOr<utoipa::openapi::Schema>)> {
                let own = [$( (
                    $crate::management::body::plain(stringify!($field)).to_owned(),
                    body!(@need $($required)?),
                    $crate::management::body::described(
                        <$Type as $crate::management::body::Field>::schema(),
                        &policy::config::manual::doc_text(&[$($doc),*]),
                        body!(@need $($required)?),
                    ),
                ), )*];
                own.into_iter()$(.chain($crate::management::declared::Options::<$Table>::fields()))?.collect()
            }
            fn read(mut fields: $crate::management::body::Fields) -> Result<Self, $crate::management::answer::Problem> {
                let read = Self {
                    $( $field: fields.take($crate::management::body::plain(stringify!($field)), body!(@need $($required)?)), )*
                    $( options: $crate::management::declared::Options::<$Table>::take(&mut fields), )?
                };
                fields.finish::<Self>()?;
                Ok(read)
            }
        }
    };
    (@need required) => { $crate::management::body::Need::Required };
    (@need fixed) => { $crate::management::body::Need::Fixed };
    (@need) => { $crate::management::body::Need::Optional };
}
pub(super) use body;

/// The name of a field on the wire: a keyword of Rust is written `r#for` here.
pub(super) fn plain(name: &'static str) -> &'static str {
    name.strip_prefix("r#").unwrap_or(name)
}

/// A schema with its description; one that is not required may be `null`.
pub(super) fn described(schema: RefOr<Schema>, text: &str, need: Need) -> RefOr<Schema> {
    let schema = match need {
        Need::Required | Need::Fixed => schema,
        Need::Optional => {
            let null = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Null));
            OneOfBuilder::new().item(schema).item(null).into()
        }
    };
    match schema {
        RefOr::T(Schema::Object(mut object)) => {
            object.description = Some(text.to_owned());
            RefOr::T(Schema::Object(object))
        }
        RefOr::T(Schema::Array(mut array)) => {
            array.description = Some(text.to_owned());
            RefOr::T(Schema::Array(array))
        }
        RefOr::T(Schema::OneOf(mut one_of)) => {
            one_of.description = Some(text.to_owned());
            RefOr::T(Schema::OneOf(one_of))
        }
        other => other,
    }
}

/// A body that makes something.
#[derive(Debug)]
pub(super) struct New<T>(pub T);

/// A body that changes something.
#[derive(Debug)]
pub(super) struct Changed<T>(pub T);

fn object_schema<T: Fielded>(purpose: BodyPurpose) -> RefOr<Schema> {
    let mut object = ObjectBuilder::new().additional_properties(Some(AdditionalProperties::FreeForm(false)));
    for (name, need, schema) in T::fields() {
        if purpose == BodyPurpose::Create || need != Need::Fixed {
            object = object.property(&name, schema);
        }
        if purpose == BodyPurpose::Create && need != Need::Optional {
            object = object.required(name);
        }
    }
    object.into()
}

macro_rules! bodies {
    ($($Name:ident, $prefix:literal, $purpose:expr;)*) => {$(
        impl<T: Fielded> PartialSchema for $Name<T> {
            fn schema() -> RefOr<Schema> {
                object_schema::<T>($purpose)
            }
        }

        impl<T: Fielded> ToSchema for $Name<T> {
            fn name() -> std::borrow::Cow<'static, str> {
                format!("{}{}", $prefix, T::NAME).into()
            }
        }

        impl<T: Fielded, S: Sync> FromRequest<S> for $Name<T> {
            type Rejection = Problem;
            async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
                if json::content_type(&request)? != "application/json" {
                    return Err(json::unsupported());
                }
                Self::read(&json::bytes(request.into_body()).await?)
            }
        }

        impl<T: Fielded> $Name<T> {
            /// Of a body's bytes.
            ///
            /// # Errors
            /// 400, 422: what is wrong with it.
            pub(super) fn read(bytes: &[u8]) -> Result<Self, Problem> {
                match json::read(bytes)? {
                    Value::Object(map) => {
                        T::read(Fields { map, purpose: $purpose, problems: Vec::new() }).map(Self)
                    }
                    other => Err(Problem::bad(format_args!("Expected object, received {}", kind(&other)))),
                }
            }
        }
    )*};
}
bodies! {
    New, "New", BodyPurpose::Create;
    Changed, "Changed", BodyPurpose::Change;
}

fn string() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::Type(Type::String))
}

fn text_of(value: Value, most: usize, least: usize) -> Result<String, String> {
    let Value::String(text) = value else {
        return Err(format!("Expected string, received {}", kind(&value)));
    };
    let length = text.chars().count();
    match () {
        () if length < least => Err(format!("String must contain at least {least} character(s)")),
        () if length > most => Err(format!("String must contain at most {most} character(s)")),
        () if text.chars().any(char::is_control) => Err("control characters are not allowed".into()),
        () => Ok(text),
    }
}

/// What PostgreSQL and a terminal can show: no control characters (C0, DEL, C1).
const SHOWN: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$";

/// A name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(pub String);

impl Name {
    /// For the document.
    pub(super) fn object() -> ObjectBuilder {
        string().min_length(Some(1)).max_length(Some(MAX_NAME)).pattern(Some(SHOWN))
    }
}

impl Field for Name {
    fn schema() -> RefOr<Schema> {
        Self::object().into()
    }
    fn read(value: Value) -> Result<Self, String> {
        text_of(value, MAX_NAME, 1).map(Self)
    }
}

impl Field for String {
    fn schema() -> RefOr<Schema> {
        string().max_length(Some(MAX_TEXT)).pattern(Some(SHOWN)).into()
    }
    fn read(value: Value) -> Result<Self, String> {
        text_of(value, MAX_TEXT, 0)
    }
}

/// A password; an empty one is none.
#[derive(Debug, Clone)]
pub(super) struct Password(pub SecretString);

impl Field for Password {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::KnownFormat(KnownFormat::Password);
        string()
            .format(Some(format))
            .write_only(Some(true))
            .min_length(Some(1))
            .max_length(Some(MAX_TEXT))
            .pattern(Some(SHOWN))
            .into()
    }
    fn read(value: Value) -> Result<Self, String> {
        text_of(value, MAX_TEXT, 1).map(|text| Self(text.into()))
    }
}

impl Field for bool {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new().schema_type(SchemaType::Type(Type::Boolean)).into()
    }
    fn read(value: Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| format!("Expected boolean, received {}", kind(&value)))
    }
}

/// A whole number within bounds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Whole<const LEAST: u32, const MOST: u32>(pub u32);

impl<const LEAST: u32, const MOST: u32> Field for Whole<LEAST, MOST> {
    fn schema() -> RefOr<Schema> {
        let number = ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer));
        number.minimum(Some(LEAST)).maximum(Some(MOST)).into()
    }
    fn read(value: Value) -> Result<Self, String> {
        whole(&value, LEAST, MOST).map(Self)
    }
}

/// Reads a whole number within these bounds.
///
/// # Errors
/// What is wrong, without the field's name.
pub(super) fn whole(value: &Value, least: u32, most: u32) -> Result<u32, String> {
    if !value.is_number() {
        return Err(format!("Expected number, received {}", kind(value)));
    }
    // 5432.0 is a whole number, too (JSON Schema, section 6.1.1).
    let whole =
        value.as_f64().filter(|number| number.fract() == 0.0).ok_or("Expected integer, received float")?;
    match whole {
        n if n < f64::from(least) => Err(format!("Number must be greater than or equal to {least}")),
        n if n > f64::from(most) => Err(format!("Number must be less than or equal to {most}")),
        // It is within the bounds of u32.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        n => Ok(n as u32),
    }
}

/// For the document: one of some words.
pub(super) fn word_schema(words: &[&str]) -> RefOr<Schema> {
    string().enum_values(Some(words.iter().copied())).into()
}

/// Reads one of some words.
///
/// # Errors
/// What is wrong, without the field's name.
pub(super) fn word<T>(value: Value, words: &[&str], of_word: fn(&str) -> Option<T>) -> Result<T, String> {
    let text = text_of(value, MAX_TEXT, 0)?;
    of_word(&text).ok_or_else(|| format!("Expected one of: {}", words.join(", ")))
}

/// Several texts: an array, or one text with commas between them (then spaces around each do not count).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct List(pub Vec<String>);

impl Field for List {
    fn schema() -> RefOr<Schema> {
        let item = string().min_length(Some(1)).max_length(Some(MAX_NAME)).pattern(Some(SHOWN));
        let array = ArrayBuilder::new().items(item).max_items(Some(MAX_ITEMS));
        let text = string().max_length(Some(MAX_TEXT)).pattern(Some(SHOWN));
        OneOfBuilder::new().item(text).item(array).into()
    }
    fn read(value: Value) -> Result<Self, String> {
        match value {
            Value::String(_) => {
                let text = text_of(value, MAX_TEXT, 0)?;
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                items.map(|item| text_of(item.into(), MAX_NAME, 1)).collect::<Result<_, _>>().map(Self)
            }
            Value::Array(items) if items.len() > MAX_ITEMS => {
                Err(format!("Array must contain at most {MAX_ITEMS} element(s)"))
            }
            Value::Array(items) => {
                items.into_iter().map(|item| text_of(item, MAX_NAME, 1)).collect::<Result<_, _>>().map(Self)
            }
            other => Err(format!("Expected string or array, received {}", kind(&other))),
        }
    }
}

impl Field for Uuid {
    fn schema() -> RefOr<Schema> {
        string().format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid))).into()
    }
    fn read(value: Value) -> Result<Self, String> {
        let text = text_of(value, MAX_TEXT, 0)?;
        answer::as_uuid(&text).ok_or_else(|| "Invalid uuid".to_owned())
    }
}

/// Several identifiers, as a [`List`].
#[derive(Debug, Clone)]
pub(super) struct Ids(pub Vec<Uuid>);

impl Field for Ids {
    fn schema() -> RefOr<Schema> {
        let array = ArrayBuilder::new().items(Uuid::schema()).min_items(Some(1)).max_items(Some(MAX_ITEMS));
        let one = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";
        let text = string().max_length(Some(MAX_TEXT)).pattern(Some(format!("^ *{one}( *, *{one})* *$")));
        OneOfBuilder::new().item(text).item(array).into()
    }
    fn read(value: Value) -> Result<Self, String> {
        let List(texts) = List::read(value)?;
        if texts.is_empty() {
            return Err("Required".into());
        }
        let ids = texts.iter().map(|text| answer::as_uuid(text).ok_or_else(|| "Invalid uuid".to_owned()));
        ids.collect::<Result<_, _>>().map(Self)
    }
}

/// Values of attributes, by name.
#[derive(Debug, Clone)]
pub(super) struct Values(pub BTreeMap<String, Vec<String>>);

impl Field for Values {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .property_names(Some(Schema::Object(
                string().min_length(Some(1)).max_length(Some(MAX_NAME)).pattern(Some(SHOWN)).build(),
            )))
            .additional_properties(Some(List::schema()))
            .max_properties(Some(MAX_ITEMS))
            .into()
    }
    fn read(value: Value) -> Result<Self, String> {
        let Value::Object(map) = value else {
            return Err(format!("Expected object, received {}", kind(&value)));
        };
        if map.len() > MAX_ITEMS {
            return Err(format!("Object must contain at most {MAX_ITEMS} keys"));
        }
        let mut values = BTreeMap::new();
        for (name, list) in map {
            let name = text_of(Value::String(name), MAX_NAME, 1)?;
            let list = List::read(list).map_err(|what| format!("{name}: {what}"))?.0;
            values.insert(name, list);
        }
        Ok(Self(values))
    }
}

/// `{ "attributeName": …, "defaultValues": … }`
#[derive(Debug, Clone)]
pub(super) struct Picker {
    /// Which attribute picks the environment.
    pub attribute: Option<String>,
    /// The values that mean the base.
    pub values: Option<Vec<String>>,
}

impl Field for Picker {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .property(
                "attributeName",
                described(Name::schema(), "The attribute; `null`: none.", Need::Optional),
            )
            .property("defaultValues", List::schema())
            .required("attributeName")
            .additional_properties(Some(AdditionalProperties::FreeForm(false)))
            .into()
    }
    fn read(value: Value) -> Result<Self, String> {
        let Value::Object(mut map) = value else {
            return Err(format!("Expected object, received {}", kind(&value)));
        };
        let name = map.remove("attributeName").ok_or("attributeName: Required")?;
        let attribute = match name {
            Value::Null => None,
            name => Some(Name::read(name).map_err(|what| format!("attributeName: {what}"))?.0),
        };
        let values = map.remove("defaultValues").map(List::read).transpose();
        let values = values.map_err(|what| format!("defaultValues: {what}"))?.map(|list| list.0);
        match map.keys().next() {
            Some(key) => Err(format!("{}: Unrecognized key", key.chars().take(60).collect::<String>())),
            None => Ok(Self { attribute, values }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    body! {
        /// Nothing but a name.
        Nothing as "Nothing" {
            /// A name.
            name: Name;
        }
    }

    #[test]
    fn of_many_unknown_keys_some_are_named() {
        let map: Map<String, Value> =
            (0..50_000).map(|i| (format!("k{i}{}", "x".repeat(99)), 1.into())).collect();
        let fields = Fields { map, purpose: BodyPurpose::Change, problems: Vec::new() };
        let problem = format!("{:?}", Nothing::read(fields).map(|nothing| nothing.name).unwrap_err());
        assert!(problem.matches("Unrecognized").count() <= MAX_UNKNOWN, "{problem}");
    }
}
