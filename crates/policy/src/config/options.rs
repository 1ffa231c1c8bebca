//! How a table of the file is declared.

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

            fn read_table(mut table: $crate::config::read::TableReader<'_, '_>, problems: &mut $crate::config::problems::Problems) -> Option<Self> {
                $( let $field = options!(@take table, problems, $field, $ty, ($($default)?), ($($low => $high)?)); )*
                table.finish(problems);
                Some(Self { $( $field: $field?, )* })
            }
        }

        impl $crate::config::read::Value for $Name {
            const IS_PUBLIC: bool = false;
            fn kind() -> String { concat!("a table (", $title, ")").into() }
            fn schema() -> serde_json::Value { $crate::config::manual::table_schema(Self::manual()) }
            fn read(node: &toml::Spanned<toml::de::DeValue<'_>>, problems: &mut $crate::config::problems::Problems) -> Option<Self> {
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
