//! The value of a startup packet's `options`: whatever settings are written there are read again, and any other text is settings or
//! an error of bounded size.

use crate::input::Input;
use crate::measure::bounded;
use wire::startup::{Settings, options};

/// The longest error, whatever was said.
const MAX_ERROR: usize = 2048;

/// Each byte as a character, as whoever reads byte by byte has it.
fn as_characters(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Any settings: a line for each, its name up to the first tabulator.
fn settings(data: &[u8]) -> Option<Settings> {
    let mut input = Input(data);
    let mut list = Vec::new();
    while !input.0.is_empty() {
        let line = String::from_utf8_lossy(input.line()).into_owned();
        let (name, value) = line.split_once('\t').unwrap_or((&line, ""));
        list.push((name.to_owned(), value.to_owned()));
    }
    Settings::new(list).ok()
}

/// See the module.
pub(crate) fn holds(data: &[u8]) {
    if let Some(settings) = settings(data) {
        let mut words = Vec::new();
        settings.option_words(&mut words);
        assert!(words.iter().all(|byte| byte.is_ascii_graphic()
            || !byte.is_ascii()
            || words.contains(&b'\\')
            || *byte == b' '));
        let read = options(&as_characters(&words)).unwrap_or_else(|error| panic!("{error:?}"));
        let written =
            settings.iter().map(|(name, value)| [name, value].map(|text| as_characters(text.as_bytes())));
        assert_eq!(read, written.map(Into::into).collect::<Vec<(String, String)>>());
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = bounded(text.len(), 200, || options(text));
    assert_eq!(read, options(text), "the same text is other settings");
    match read {
        Ok(list) => {
            let length: usize = list.iter().map(|(name, value)| name.len() + value.len() + 3).sum();
            assert!(length <= text.len() + 1, "there is more in it than was said");
            assert!(list.iter().all(|(name, _)| !name.contains(['=', '-'])));
            // Read once, it is in the form that is written: no reading changes it any more.
            if let Ok(settings) = Settings::new(list.clone()) {
                let mut words = Vec::new();
                settings.option_words(&mut words);
                if words.is_ascii() {
                    assert_eq!(options(&as_characters(&words)).ok(), Some(list));
                }
            }
        }
        Err(refusal) => assert!(format!("{refusal:?}").len() <= MAX_ERROR, "{refusal:?}"),
    }
}
