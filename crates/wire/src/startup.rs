//! The first packet of a client: what it asks for, and PostgreSQL's way of reading its `options`.

use crate::error::{Fault, Refusal, Shown, SqlState};

/// The longest startup packet (`MAX_STARTUP_PACKET_LENGTH`), its length field included.
pub const MAX_STARTUP_LENGTH: usize = 10_000;
/// The longest cancel key of protocol 3.2, in bytes.
pub const MAX_CANCEL_KEY: usize = 256;

/// How many settings a client may have at startup: each is compared with those of connections at each checkout.
pub const MAX_SETTINGS: usize = 256;

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
    /// The settings of the session, in order, those of `options` first, as PostgreSQL applies them.
    pub settings: Settings,
    /// Protocol extensions (`_pq_.…`) that pgusher does not know.
    pub unknown_extensions: Vec<String>,
    /// Whether it asked for the replication protocol.
    pub replication: bool,
}

/// Settings of a session (`SET name = value`), in the order in which they are applied; names as written.
///
/// They are never the startup packet's own words (`user`, `database`, `replication`, `options`): what a client calls so
/// among its settings reaches an upstream as a setting of that name, which PostgreSQL does not have. The only way from
/// here into a packet is [`Settings::option_words`], the value of its one `options` field.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Settings(Vec<(String, String)>);

impl Settings {
    /// Of a list in which every name is one that `options` can carry.
    ///
    /// # Errors
    /// As PostgreSQL answers a name that it does not know (42704) or that cannot be one (42602); 54000 if there are more
    /// than [`MAX_SETTINGS`].
    pub fn new(list: Vec<(String, String)>) -> Result<Self, Refusal> {
        if list.len() > MAX_SETTINGS {
            let message = format!("more than {MAX_SETTINGS} settings at startup");
            return Err(Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message));
        }
        list.iter().try_for_each(|(name, _)| check_name(name))?;
        Ok(Self(list))
    }

    /// Of pgusher's own, whose names are PostgreSQL's.
    pub fn ours(list: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self(list.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Each with its value.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same without the settings of this name, in whatever case.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|(n, _)| !n.eq_ignore_ascii_case(name)).cloned().collect())
    }

    /// Appends `-c name=value` for each, parted by spaces, as `pg_split_opts` and `process_postgres_switches` read it
    /// again: whatever is not a visible ASCII character is escaped, byte by byte, as is the backslash.
    pub fn option_words(&self, out: &mut Vec<u8>) {
        for (name, value) in self.iter() {
            if !out.is_empty() {
                out.push(b' ');
            }
            out.extend_from_slice(b"-c ");
            for byte in name.bytes().chain([b'=']).chain(value.bytes()) {
                if !byte.is_ascii_graphic() || byte == b'\\' {
                    out.push(b'\\');
                }
                out.push(byte);
            }
        }
    }
}

/// A name that is empty or has a `=` or a `-` cannot be carried by `options` (which would read another name), and is none
/// of PostgreSQL's: its answer is given here.
fn check_name(name: &str) -> Result<(), Refusal> {
    if !name.is_empty() && !name.contains(['=', '-', '\0']) {
        return Ok(());
    }
    let shown = Shown::name(name);
    if name.contains('.') {
        let message = format!("invalid configuration parameter name \"{shown}\"");
        return Err(Refusal::new(Fault::Client, SqlState::INVALID_NAME, message)
            .detail("Custom parameter names must be two or more simple identifiers separated by dots."));
    }
    let message = format!("unrecognized configuration parameter \"{shown}\"");
    Err(Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, message))
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
        let (name, after) = crate::cstr(rest).ok_or_else(terminator)?;
        if name.is_empty() {
            if !after.is_empty() {
                return Err(terminator());
            }
            break;
        }
        let (value, after) = crate::cstr(after).ok_or_else(terminator)?;
        pairs.push((utf8(name)?, utf8(value)?));
        rest = after;
    }
    collect(minor, pairs)
}

fn utf8(bytes: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(bytes).map_err(|_| {
        Refusal::new(
            Fault::Client,
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            "invalid byte sequence for encoding \"UTF8\" in startup packet",
        )
    })
}

/// What a client may ask of pgusher itself at startup, as a parameter or in `options`.
const ENVIRONMENT: &str = "pgusher.environment";
const OURS: &str = "pgusher.";

fn collect(minor: u16, pairs: Vec<(&str, &str)>) -> Result<Startup, Refusal> {
    let mut startup = Startup {
        minor,
        user: String::new(),
        database: String::new(),
        environment: None,
        settings: Settings::default(),
        unknown_extensions: Vec::new(),
        replication: false,
    };
    let (mut settings, mut direct) = (Vec::new(), Vec::new());
    for (name, value) in pairs {
        match name {
            "user" => value.clone_into(&mut startup.user),
            "database" => value.clone_into(&mut startup.database),
            "options" => settings.extend(options(value)?),
            "replication" => startup.replication = !matches!(value, "false" | "off" | "no" | "0"),
            _ if name.starts_with("_pq_.") => startup.unknown_extensions.push(name.to_owned()),
            _ => direct.push((name.to_owned(), value.to_owned())),
        }
    }
    settings.extend(direct);
    let is_ours = |name: &str| name.get(..OURS.len()).is_some_and(|n| n.eq_ignore_ascii_case(OURS));
    for (name, value) in settings.iter().filter(|(name, _)| is_ours(name)) {
        if !name.eq_ignore_ascii_case(ENVIRONMENT) {
            return Err(unknown_request(name));
        }
        startup.environment = Some(value.clone());
    }
    settings.retain(|(name, _)| !is_ours(name));
    startup.settings = Settings::new(settings)?;
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

/// A request is never ignored: whoever mistypes it would believe to be where he is not.
fn unknown_request(name: &str) -> Refusal {
    let message = format!("unrecognized configuration parameter \"{}\"", Shown::name(name));
    Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, message).hint(
        "To request an environment, write pgusher.environment, as in options=-c pgusher.environment=NAME.",
    )
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
                SqlState::SYNTAX_ERROR,
                format!("{switch}{} requires a value", Shown::name(&setting)),
            ));
        };
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

fn invalid(word: &str) -> Refusal {
    Refusal::new(
        Fault::Client,
        SqlState::SYNTAX_ERROR,
        format!("invalid command-line argument for server process: {}", Shown::name(word)),
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
            crate::push_cstr(&mut bytes, name);
            crate::push_cstr(&mut bytes, value);
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
        assert_eq!(startup.settings.iter().last(), Some(("datestyle", "ISO")));
        assert_eq!(startup.database, "u");
    }

    #[test]
    fn an_environment_is_requested_either_way_and_not_passed_on() {
        for pair in [("options", "-c pgusher.environment=prod"), ("pgusher.environment", "prod")] {
            let startup = read(&[("user", "u"), pair]);
            assert_eq!(startup.environment.as_deref(), Some("prod"));
            assert!(startup.settings.is_empty());
        }
        for pair in [("options", "-c PGUSHER.env=prod"), ("pgusher.environmnt", "prod"), ("pgusher.", "x")] {
            let refusal = parse(&packet(&[("user", "u"), pair])).unwrap_err();
            assert_eq!(refusal.sqlstate, SqlState::UNDEFINED_OBJECT, "{pair:?}");
            assert!(refusal.hint.unwrap().contains("pgusher.environment"));
        }
    }

    #[test]
    fn the_packets_own_words_among_the_settings_are_settings() {
        let options = "-c user=a --database=b -creplication=true -c options=-cx=y -c _pq_.z=1";
        let startup = read(&[("user", "u"), ("database", "d"), ("options", options)]);
        assert_eq!((&*startup.user, &*startup.database, startup.replication), ("u", "d", false));
        let names: Vec<&str> = startup.settings.iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["user", "database", "replication", "options", "_pq_.z"]);
        for (pair, state) in [
            (("options", "-c =x"), "42704"),
            (("options", "--=x"), "42704"),
            (("a=b", "x"), "42704"),
            (("a-b", "x"), "42704"),
            (("a.b-c", "x"), "42602"),
        ] {
            assert_eq!(
                parse(&packet(&[("user", "u"), pair])).unwrap_err().sqlstate.as_str(),
                state,
                "{pair:?}"
            );
        }
    }

    #[test]
    fn what_is_written_as_options_is_read_again_as_it_was() {
        let mut seed = 0x5eed_u64;
        let alphabet: Vec<char> = " \\\t\n\r\x0b\x0c'\"=-c$ab,.é\u{a0}😀".chars().collect();
        for _ in 0..2000 {
            let mut random = |end: usize| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                usize::try_from(seed % end as u64).unwrap()
            };
            let value: String = (0..random(12)).map(|_| alphabet[random(alphabet.len())]).collect();
            let list = vec![("a.b".to_owned(), value), ("search_path".to_owned(), "x".to_owned())];
            let settings = Settings::new(list.clone()).unwrap();
            let mut words = Vec::new();
            settings.option_words(&mut words);
            // As PostgreSQL does, byte by byte: a character may be cut by an escape.
            assert_eq!(options_of_bytes(&words), list);
        }
    }

    fn options_of_bytes(words: &[u8]) -> Vec<(String, String)> {
        let as_characters: String = words.iter().map(|byte| char::from(*byte)).collect();
        let bytes = |text: String| String::from_utf8(text.chars().map(|c| c as u8).collect()).unwrap();
        options(&as_characters).unwrap().into_iter().map(|(n, v)| (bytes(n), bytes(v))).collect()
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

    #[test]
    fn more_settings_than_anybody_has_are_refused() {
        let options = |count: usize| (0..count).map(|i| format!("-c a.x{i}= ")).collect::<String>();
        assert_eq!(read(&[("user", "u"), ("options", &options(MAX_SETTINGS))]).settings.iter().count(), 256);
        let refusal = parse(&packet(&[("user", "u"), ("options", &options(MAX_SETTINGS + 1))])).unwrap_err();
        assert_eq!(refusal.sqlstate, SqlState::LIMIT_EXCEEDED);
    }

    /// What comes of a text is never more than the text, whatever is in it.
    #[test]
    fn words_are_never_more_than_the_text_that_they_are_read_from() {
        for shape in ["\\", " ", "-c ", "-", "-c a=", "\\ ", "'", "a ", "-ca=b\\ "] {
            for size in [1 << 10, MAX_STARTUP_LENGTH, 1 << 20] {
                let text = shape.repeat(size / shape.len());
                let words = split(&text);
                assert!(words.iter().map(String::len).sum::<usize>() <= text.len(), "{shape:?}");
                assert!(words.len() <= text.len());
                let _ = options(&text);
            }
        }
    }
}
