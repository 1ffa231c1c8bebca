//! Settings whose values are words: each word is declared once, with what it means.

/// Declares an enum whose variants are written as words.
macro_rules! words {
    ($(#[doc = $about:literal])* $Name:ident { $( $(#[doc = $doc:literal])* $Variant:ident = $word:literal, )* }) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $Name { $( $(#[doc = $doc])* $Variant, )* }

        impl $Name {
            /// As each is written.
            pub const WORDS: &'static [&'static str] = &[$($word),*];

            /// What each means, as its doc comment says it.
            const MEANINGS: &'static [&'static [&'static str]] = &[$(&[$($doc),*]),*];

            /// As it is written.
            pub fn word(self) -> &'static str {
                match self { $( Self::$Variant => $word, )* }
            }

            /// The one that is written so.
            pub fn of_word(word: &str) -> Option<Self> {
                match word {
                    $( $word => Some(Self::$Variant), )*
                    _ => None,
                }
            }
        }

        $crate::config::words::word_value!($Name, Self::MEANINGS);
    };
}
pub(crate) use words;

/// Makes an enum whose variants are written as words the value of a setting.
macro_rules! word_value {
    ($Name:ident, $meanings:expr) => {
        impl $crate::config::read::Value for $Name {
            fn kind() -> String {
                let words: Vec<String> = Self::WORDS.iter().map(|word| format!("\"{word}\"")).collect();
                words.join(" or ")
            }
            fn meanings() -> Vec<(&'static str, String)> {
                let meanings: &[&[&str]] = $meanings;
                let meanings = meanings.iter().map(|lines| $crate::config::manual::doc_text(lines));
                Self::WORDS.iter().copied().zip(meanings).collect()
            }
            fn schema() -> serde_json::Value {
                serde_json::json!({ "type": "string", "enum": Self::WORDS })
            }
            fn read(
                node: &toml::Spanned<toml::de::DeValue<'_>>,
                problems: &mut $crate::config::problems::Problems,
            ) -> Option<Self> {
                let word = String::read(node, problems)?;
                let known = Self::of_word(&word);
                if known.is_none() {
                    problems
                        .error(Some(node.span()), format!("unknown value `{word}`"))
                        .nearest(&word, Self::WORDS.iter().copied());
                }
                known
            }
            fn show(&self) -> String {
                format!("\"{}\"", self.word())
            }
        }
    };
}
pub(crate) use word_value;
