//! The first packet of a client, and the `options` in it.

use crate::measure::bounded;
use wire::startup::{FirstPacket, Settings, Startup, options, parse};

/// What is written as `options` is read again as it was, by those who read it byte by byte.
fn survives(settings: &Settings) {
    let mut words = Vec::new();
    settings.option_words(&mut words);
    let as_characters: String = words.iter().map(|byte| char::from(*byte)).collect();
    let read = options(&as_characters).unwrap_or_else(|error| panic!("{error:?}"));
    let expected: Vec<(String, String)> = settings.iter().map(|(n, v)| (bytes(n), bytes(v))).collect();
    assert_eq!(read, expected);
}

/// Each byte as a character.
fn bytes(text: &str) -> String {
    text.bytes().map(char::from).collect()
}

fn is_sound(startup: &Startup, packet: &[u8]) {
    assert!(!startup.user.is_empty() && !startup.database.is_empty());
    let all: usize = startup.settings.iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!(all + startup.user.len() <= packet.len());
    assert!(!startup.settings.iter().any(|(name, _)| name.to_ascii_lowercase().starts_with("pgusher.")));
    survives(&startup.settings);
}

/// See the module.
pub(crate) fn holds(packet: &[u8]) {
    if let Ok(FirstPacket::Startup(startup)) = bounded(packet.len(), 200, || parse(packet)) {
        is_sound(&startup, packet);
    }
    // As if it were the rest of a packet of version 3.0 and 3.2, and the value of its `options`.
    for version in [0x0003_0000_u32, 0x0003_0002] {
        let whole = [&version.to_be_bytes()[..], b"user\0u\0", packet, b"\0"].concat();
        if let Ok(FirstPacket::Startup(startup)) = parse(&whole) {
            is_sound(&startup, &whole);
        }
        let whole = [&version.to_be_bytes()[..], b"user\0u\0options\0", packet, b"\0\0"].concat();
        if let Ok(FirstPacket::Startup(startup)) = parse(&whole) {
            is_sound(&startup, &whole);
        }
    }
    if let Ok(text) = std::str::from_utf8(packet)
        && let Ok(list) = bounded(text.len(), 200, || options(text))
        && let Ok(settings) = Settings::new(list)
        && !settings.iter().any(|(_, value)| value.contains('\0'))
    {
        survives(&settings);
    }
}
