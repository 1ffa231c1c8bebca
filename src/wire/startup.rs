//! The first packet of a client: what it asks for, and PostgreSQL's way of reading its `options`.

use crate::error::{Fault, Refusal, SqlState};

/// The longest startup packet (`MAX_STARTUP_PACKET_LENGTH`), its length field included.
pub const MAX_STARTUP_LENGTH: usize = 10_000;
/// The longest cancel key of protocol 3.2, in bytes.
pub const MAX_CANCEL_KEY: usize = 256;

const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// The newest minor version of protocol 3 that pgusher speaks.
pub const NEWEST_MINOR: u16 = 2;

/// What a client's first packet (or the one after TLS was agreed) can be.
#[derive(Debug, PartialEq, Eq)]
pub enum FirstPacket {
    /// `SSLRequest`
    Ssl,
    /// `GSSENCRequest`
    GssEnc,
    /// `CancelRequest`
    Cancel(CancelKey),
    /// `StartupMessage`
    Startup(Startup),
}

/// The key of a `CancelRequest`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CancelKey {
    /// The process ID of `BackendKeyData`.
    pub pid: u32,
    /// Its secret: 4 bytes in protocol 3.0, up to 256 in 3.2.
    pub secret: Box<[u8]>,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelKey({}, ***)", self.pid)
    }
}

/// A `StartupMessage`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// The minor version of protocol 3 that the client asked for.
    pub minor: u16,
    /// Who.
    pub user: String,
    /// For what; the user's name if it was not said.
    pub database: String,
    /// The environment it requests: `pgusher.environment`.
    pub environment: Option<String>,
    /// The settings of the session, in order, those of `options` first, as PostgreSQL applies them. Names as
    /// written.
    pub settings: Vec<(String, String)>,
    /// Protocol extensions (`_pq_.…`) that pgusher does not know.
    pub unknown_extensions: Vec<String>,
    /// Whether it asked for the replication protocol.
    pub replication: bool,
}

/// Reads a first packet without its length field.
///
/// # Errors
/// As PostgreSQL words them; always fatal.
pub fn parse(packet: &[u8]) -> Result<FirstPacket, Refusal> {
    let Some((code, rest)) = packet.split_first_chunk::<4>() else {
        return Err(Refusal::protocol("invalid length of startup packet"));
    };
    match u32::from_be_bytes(*code) {
        SSL_REQUEST if rest.is_empty() => Ok(FirstPacket::Ssl),
        GSSENC_REQUEST if rest.is_empty() => Ok(FirstPacket::GssEnc),
        CANCEL_REQUEST => match rest.split_first_chunk::<4>() {
            Some((pid, secret)) if (1..=MAX_CANCEL_KEY).contains(&secret.len()) => {
                Ok(FirstPacket::Cancel(CancelKey { pid: u32::from_be_bytes(*pid), secret: secret.into() }))
            }
            _ => Err(Refusal::protocol("invalid length of startup packet")),
        },
        version => startup(version, rest).map(FirstPacket::Startup),
    }
}

fn startup(version: u32, rest: &[u8]) -> Result<Startup, Refusal> {
    let [major, minor] = [(version >> 16) as u16, (version & 0xffff) as u16];
    if major != 3 {
        return Err(Refusal::new(
            Fault::Client,
            SqlState::NOT_SUPPORTED,
            format!("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{NEWEST_MINOR}"),
        ));
    }
    let terminator = || Refusal::protocol("invalid startup packet layout: expected terminator as last byte");
    let mut pairs = Vec::new();
    let mut rest = rest;
    loop {
        let (name, after) = super::cstr(rest).ok_or_else(terminator)?;
        if name.is_empty() {
            if !after.is_empty() {
                return Err(terminator());
            }
            break;
        }
        let (value, after) = super::cstr(after).ok_or_else(terminator)?;
        pairs.push((utf8(name)?, utf8(value)?));
        rest = after;
    }
    collect(minor, pairs)
}

fn utf8(bytes: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(bytes).map_err(|_| {
        Refusal::new(
            Fault::Client,
            SqlState("22021"),
            "invalid byte sequence for encoding \"UTF8\" in startup packet",
        )
    })
}

fn collect(minor: u16, pairs: Vec<(&str, &str)>) -> Result<Startup, Refusal> {
    let mut startup = Startup {
        minor,
        user: String::new(),
        database: String::new(),
        environment: None,
        settings: Vec::new(),
        unknown_extensions: Vec::new(),
        replication: false,
    };
    let mut direct = Vec::new();
    for (name, value) in pairs {
        match name {
            "user" => value.clone_into(&mut startup.user),
            "database" => value.clone_into(&mut startup.database),
            "options" => startup.settings.extend(options(value)?),
            "replication" => startup.replication = !matches!(value, "false" | "off" | "no" | "0"),
            _ if name.starts_with("_pq_.") => startup.unknown_extensions.push(name.to_owned()),
            _ => direct.push((name.to_owned(), value.to_owned())),
        }
    }
    startup.settings.extend(direct);
    let requested = |name: &str| name.eq_ignore_ascii_case("pgusher.environment");
    if let Some((_, value)) = startup.settings.iter().rfind(|(name, _)| requested(name)) {
        startup.environment = Some(value.clone());
    }
    startup.settings.retain(|(name, _)| !requested(name));
    if startup.user.is_empty() {
        return Err(Refusal::new(
            Fault::Client,
            SqlState::INVALID_AUTHORIZATION,
            "no PostgreSQL user name specified in startup packet",
        ));
    }
    if startup.database.is_empty() {
        startup.database = startup.user.clone();
    }
    Ok(startup)
}

/// Reads `options` as `pg_split_opts` and `process_postgres_switches` do: words are parted by white space, a
/// backslash makes the next character ordinary; `-c name=value`, `-cname=value` and `--name=value` are settings
/// (in a name, `-` means `_`).
///
/// # Errors
/// Any other switch: pgusher has no command line to pass it on to.
pub fn options(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut settings = Vec::new();
    let mut words = split(text).into_iter();
    while let Some(word) = words.next() {
        let setting = if let Some(rest) = word.strip_prefix("--") {
            rest.to_owned()
        } else if word == "-c" {
            words.next().ok_or_else(|| invalid(&word))?
        } else if let Some(rest) = word.strip_prefix("-c") {
            rest.to_owned()
        } else {
            return Err(invalid(&word));
        };
        let Some((name, value)) = setting.split_once('=') else {
            let switch = if word.starts_with("--") { "--" } else { "-c " };
            return Err(Refusal::new(
                Fault::Client,
                SqlState("42601"),
                format!("{switch}{setting} requires a value"),
            ));
        };
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

fn invalid(word: &str) -> Refusal {
    Refusal::new(
        Fault::Client,
        SqlState("42601"),
        format!("invalid command-line argument for server process: {word}"),
    )
    .hint("In options, pgusher takes settings: -c name=value or --name=value.")
}

fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut characters = text.chars().peekable();
    loop {
        while characters.next_if(|c| c.is_ascii_whitespace() || *c == '\x0b').is_some() {}
        if characters.peek().is_none() {
            return words;
        }
        let mut word = String::new();
        while let Some(c) = characters.next_if(|c| !(c.is_ascii_whitespace() || *c == '\x0b')) {
            if c == '\\' {
                word.extend(characters.next());
            } else {
                word.push(c);
            }
        }
        words.push(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = 0x0003_0000u32.to_be_bytes().to_vec();
        for (name, value) in pairs {
            super::super::push_cstr(&mut bytes, name);
            super::super::push_cstr(&mut bytes, value);
        }
        bytes.push(0);
        bytes
    }

    fn read(pairs: &[(&str, &str)]) -> Startup {
        match parse(&packet(pairs)) {
            Ok(FirstPacket::Startup(startup)) => startup,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_are_read_as_postgresql_does() {
        let cases: [(&str, &[(&str, &str)]); 8] = [
            ("", &[]),
            ("  -c a=b", &[("a", "b")]),
            ("-ca=b --c-d=e", &[("a", "b"), ("c_d", "e")]),
            ("-c a=b\\ c", &[("a", "b c")]),
            ("-c a=b\\\\c", &[("a", "b\\c")]),
            ("-c datestyle=German,\\ DMY\t--geqo=off", &[("datestyle", "German, DMY"), ("geqo", "off")]),
            ("-c a=", &[("a", "")]),
            ("-c a=b=c", &[("a", "b=c")]),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> = expected.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
            assert_eq!(options(text).unwrap(), expected, "{text}");
        }
        for text in ["-c", "-c a", "--a", "-x", "plain", "-c a=b c"] {
            assert!(options(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_direct_setting_wins_over_options() {
        let startup = read(&[("user", "u"), ("datestyle", "ISO"), ("options", "-c datestyle=German")]);
        assert_eq!(startup.settings.last().unwrap().1, "ISO");
        assert_eq!(startup.database, "u");
    }

    #[test]
    fn an_environment_is_requested_either_way_and_not_passed_on() {
        for pair in [("options", "-c pgusher.environment=prod"), ("pgusher.environment", "prod")] {
            let startup = read(&[("user", "u"), pair]);
            assert_eq!(startup.environment.as_deref(), Some("prod"));
            assert!(startup.settings.is_empty());
        }
    }

    #[test]
    fn every_prefix_and_every_tail_of_a_packet_is_an_error_or_a_startup() {
        let whole = packet(&[("user", "u"), ("database", "d")]);
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
        let mut long = whole.clone();
        long.push(b'x');
        assert!(parse(&long).is_err());
    }

    #[test]
    fn version_two_is_refused_and_a_grease_minor_is_not() {
        assert!(parse(&0x0002_0000u32.to_be_bytes()).is_err());
        let mut grease = packet(&[("user", "u")]);
        grease[..4].copy_from_slice(&0x0003_270fu32.to_be_bytes());
        assert!(matches!(parse(&grease), Ok(FirstPacket::Startup(s)) if s.minor == 9999));
    }
}
