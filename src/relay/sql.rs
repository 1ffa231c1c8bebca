//! What a statement may leave behind in its session. Two steps: a byte scan that tells in nanoseconds that a text
//! cannot matter, and a lexer for the rest. Neither understands SQL; both rather suspect too much.

/// Why a session keeps its upstream connection beyond its transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// A setting that PostgreSQL does not report was changed.
    Setting,
    /// `SET ROLE`, `SET SESSION AUTHORIZATION`
    Role,
    /// `LISTEN`
    Listen,
    /// A temporary table, view, sequence or function.
    Temporary,
    /// A session-level advisory lock.
    AdvisoryLock,
    /// A cursor `WITH HOLD`.
    HoldCursor,
    /// SQL-level `PREPARE`.
    Prepare,
    /// Something that cannot be seen through: `DO`, `CALL`, `LOAD`, a function call by the fast path, a very
    /// long statement with suspicious words.
    Opaque,
    /// A `COPY` that ended so that the two sides may disagree about the protocol's state.
    Copy,
}

impl Pin {
    /// As the log and `SHOW pgusher.pin` say it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::Role => "role",
            Self::Listen => "listen",
            Self::Temporary => "temporary object",
            Self::AdvisoryLock => "advisory lock",
            Self::HoldCursor => "cursor with hold",
            Self::Prepare => "sql prepare",
            Self::Opaque => "opaque statement",
            Self::Copy => "copy",
        }
    }
}

/// What a text may do to its session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Effects {
    /// It makes state that can neither be carried nor asked for.
    pub pin: Option<Pin>,
    /// It has a `SET`, `RESET` or the like, so that such a command tag is no surprise.
    pub foreseen: bool,
    /// Settings that it may change for longer than a transaction, and that PostgreSQL does not report; in lower case.
    pub settings: Vec<String>,
    /// It may make an object of the session that is no setting: a temporary table, a lock, a channel, ….
    pub makes_objects: bool,
    /// It may end one.
    pub ends_objects: bool,
    /// It asks for the channels that the session listens to, or changes them.
    pub channels: bool,
    /// It sends a notification, perhaps to its own session.
    pub notifies: bool,
    /// It asks for the last value of a sequence, which belongs to the server process.
    pub reads_sequences: bool,
    /// `DEALLOCATE ALL` or `DISCARD ALL`: no prepared statement is left.
    pub deallocates_all: bool,
    /// `RESET ALL` or `DISCARD ALL`: every setting goes back to its default.
    pub resets_all: bool,
    /// It has a `RESET`.
    pub resets: bool,
    /// `DEALLOCATE name`, as the only statement.
    pub deallocates: Option<Vec<u8>>,
    /// `SHOW pgusher.name`, as the only statement.
    pub shows: Option<String>,
}

/// Settings that every supported PostgreSQL reports: the upstream itself says what became of them.
const REPORTED: [&str; 6] = [
    "application_name",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "timezone",
    "standard_conforming_strings",
];

/// What `SET SESSION CHARACTERISTICS AS TRANSACTION` sets.
const CHARACTERISTICS: [&str; 3] =
    ["default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable"];

/// The longest text that the lexer looks at; a longer one that is suspicious pins.
const MAX_LEXED: usize = 64 << 10;

impl Effects {
    /// Of a text that cannot be seen through.
    pub fn opaque() -> Self {
        Self { pin: Some(Pin::Opaque), foreseen: true, ..Self::default() }
    }

    fn pin_for(&mut self, reason: Pin) {
        self.pin.get_or_insert(reason);
    }

    /// It may change this setting; one whose name depends on the client's encoding cannot be asked for.
    fn changes(&mut self, name: String) {
        if name.is_ascii() {
            self.settings.push(name);
        } else {
            self.pin_for(Pin::Setting);
        }
    }
}

const fn key(word: &[u8]) -> u64 {
    let mut key = 0;
    let mut i = 0;
    while i < word.len() && i < 8 {
        key = key << 8 | word[i] as u64;
        i += 1;
    }
    key
}

/// Letters, digits, `_`, `$` and every byte of a multi-byte character.
const WORD: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0u8;
    loop {
        table[b as usize] = b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80;
        if b == u8::MAX {
            break table;
        }
        b += 1;
    }
};

/// The byte scan; it can be fed a text in pieces.
#[derive(Debug, Clone)]
pub struct Scan {
    key: u64,
    length: usize,
    at_start: bool,
    suspicious: bool,
    last: u8,
}

impl Default for Scan {
    fn default() -> Self {
        Self { key: 0, length: 0, at_start: true, suspicious: false, last: 0 }
    }
}

impl Scan {
    /// Looks at the next piece.
    pub fn feed(&mut self, text: &[u8]) {
        for &byte in text {
            if WORD[byte as usize] {
                if self.length < 8 {
                    self.key = self.key << 8 | u64::from(byte | 0x20);
                }
                self.length += 1;
                self.last = byte;
                continue;
            }
            self.end_word();
            match byte {
                b';' => self.at_start = true,
                b' ' | b'\t' | b'\n' | b'\r' | 0 => {}
                b'"' if self.last == b'&' => self.suspicious = true,
                // A comment or a parenthesis before the first word: let the lexer look.
                _ if self.at_start => self.suspicious = true,
                _ => {}
            }
            self.last = byte;
        }
    }

    fn end_word(&mut self) {
        if self.length == 0 {
            return;
        }
        self.suspicious |= matters_anywhere(self.key) || (self.at_start && matters_first(self.key));
        (self.key, self.length, self.at_start) = (0, 0, false);
    }

    /// Whether the text so far, as a whole, might matter.
    pub fn is_suspicious(mut self) -> bool {
        self.end_word();
        self.suspicious
    }
}

// `_` is 0x7f here, because the scan sets bit 0x20 of every byte.
const fn scanned(word: &[u8; 8]) -> u64 {
    let mut bytes = *word;
    let mut i = 0;
    while i < 8 {
        bytes[i] |= 0x20;
        i += 1;
    }
    key(&bytes)
}

fn matters_anywhere(word: u64) -> bool {
    const SET_CONFIG: u64 = scanned(b"set_conf");
    const TEMPORARY: u64 = scanned(b"temporar");
    const PG_TEMP: u64 = scanned(b"pg_temp_");
    const PG_ADVISORY: u64 = scanned(b"pg_advis");
    const PG_TRY_ADVISORY: u64 = scanned(b"pg_try_a");
    const PG_REPLICATION: u64 = scanned(b"pg_repli");
    const PG_SETTINGS: u64 = scanned(b"pg_setti");
    const PG_LISTENING: u64 = scanned(b"pg_liste");
    const PG_NOTIFY: u64 = scanned(b"pg_notif");
    const DBLINK: u64 = scanned(b"dblink__") >> 16;
    const PG_TEMP_ALONE: u64 = PG_TEMP >> 8;
    const TEMP: u64 = key(b"temp");
    const HOLD: u64 = key(b"hold");
    const SETSEED: u64 = key(b"setseed");
    const CURRVAL: u64 = key(b"currval");
    const LASTVAL: u64 = key(b"lastval");
    matches!(
        word,
        SET_CONFIG
            | TEMPORARY
            | PG_TEMP
            | PG_ADVISORY
            | PG_TRY_ADVISORY
            | PG_REPLICATION
            | PG_SETTINGS
            | PG_LISTENING
            | PG_NOTIFY
            | PG_TEMP_ALONE
            | TEMP
            | HOLD
            | SETSEED
            | CURRVAL
            | LASTVAL
            | DBLINK
    ) || word >> 16 == DBLINK
}

fn matters_first(word: u64) -> bool {
    const WORDS: [u64; 15] = [
        key(b"notify"),
        key(b"unlisten"),
        key(b"close"),
        key(b"drop"),
        key(b"set"),
        key(b"reset"),
        key(b"discard"),
        key(b"listen"),
        key(b"prepare"),
        key(b"deallocate"),
        key(b"load"),
        key(b"do"),
        key(b"call"),
        key(b"show"),
        key(b"security"),
    ];
    WORDS.contains(&word)
}

/// The same for a text that is there whole, in a fifth of the instructions: it looks at the beginnings of words
/// only, and so suspects all that [`Scan`] does and a little more.
pub fn is_suspicious(text: &[u8]) -> bool {
    let mut at_start = true;
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        if WORD[byte as usize] {
            let begins = beginning(&text[at..]);
            if INITIAL[byte as usize] && begins_suspiciously(begins) || at_start && begins_a_statement(begins)
            {
                return true;
            }
            at_start = false;
            while at < text.len() && WORD[text[at] as usize] {
                at += 1;
            }
            continue;
        }
        match byte {
            b';' => at_start = true,
            b' ' | b'\t' | b'\n' | b'\r' | 0 => {}
            // An identifier with escapes (U&"…") can hide any name.
            b'&' if text.get(at + 1) == Some(&b'"') => return true,
            _ if at_start => return true,
            _ => {}
        }
        at += 1;
    }
    false
}

/// The first letters of the words that matter anywhere.
const INITIAL: [bool; 256] = {
    let mut table = [false; 256];
    let letters = b"sStTpPdDhHcClL";
    let mut i = 0;
    while i < letters.len() {
        table[letters[i] as usize] = true;
        i += 1;
    }
    table
};

/// Eight bytes from the beginning of a word, in lower case (`_` as 0x7f, see `scanned`).
fn beginning(text: &[u8]) -> u64 {
    let bytes = match text.first_chunk::<8>() {
        Some(bytes) => *bytes,
        None => {
            let mut bytes = [0; 8];
            bytes[..text.len()].copy_from_slice(text);
            bytes
        }
    };
    u64::from_be_bytes(bytes) | 0x2020_2020_2020_2020
}

fn begins_suspiciously(word: u64) -> bool {
    const TEMP: u64 = key(b"temp");
    const HOLD: u64 = key(b"hold");
    const CURR: u64 = key(b"curr");
    const LAST: u64 = key(b"last");
    const SETSE: u64 = key(b"setse");
    const SET_C: u64 = scanned(b"set_conf") >> 24;
    const DBLINK: u64 = key(b"dblink");
    const PG_T: u64 = scanned(b"pg_temp_") >> 32;
    const PG_A: u64 = scanned(b"pg_advis") >> 32;
    const PG_R: u64 = scanned(b"pg_repli") >> 32;
    const PG_S: u64 = scanned(b"pg_setti") >> 32;
    const PG_L: u64 = scanned(b"pg_liste") >> 24;
    const PG_N: u64 = scanned(b"pg_notif") >> 24;
    matches!(word >> 32, TEMP | HOLD | CURR | LAST | PG_T | PG_A | PG_R | PG_S)
        || matches!(word >> 24, SETSE | SET_C | PG_L | PG_N)
        || word >> 16 == DBLINK
}

fn begins_a_statement(word: u64) -> bool {
    const DO: u64 = key(b"do");
    const SET: u64 = key(b"set");
    const FOUR: [u64; 13] = [
        key(b"noti"),
        key(b"unli"),
        key(b"clos"),
        key(b"drop"),
        key(b"rese"),
        key(b"disc"),
        key(b"list"),
        key(b"prep"),
        key(b"deal"),
        key(b"load"),
        key(b"call"),
        key(b"show"),
        key(b"secu"),
    ];
    word >> 48 == DO || word >> 40 == SET || FOUR.contains(&(word >> 32))
}

/// What a text may do; `None`, mostly, is nothing.
pub fn effects(text: &[u8]) -> Option<Box<Effects>> {
    if is_suspicious(text) { suspected(text) } else { None }
}

/// The same of a text that was found suspicious.
pub fn suspected(text: &[u8]) -> Option<Box<Effects>> {
    if text.len() > MAX_LEXED {
        return Some(Box::new(Effects::opaque()));
    }
    let effects = lexed(text);
    (effects != Effects::default()).then(|| Box::new(effects))
}

/// A token, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// A word or a quoted identifier: a word in lower case, an identifier as it is.
    Word(String),
    /// A string; what is in it, if that can be read without an escape.
    Text(Option<String>),
    /// Anything else.
    Symbol(u8),
}

impl Token {
    fn is(&self, word: &str) -> bool {
        matches!(self, Self::Word(w) if w == word)
    }
}

fn lexed(text: &[u8]) -> Effects {
    let mut effects = Effects::default();
    let tokens = tokens(text);
    let statements: Vec<&[Token]> =
        tokens.split(|t| *t == Token::Symbol(b';')).filter(|statement| !statement.is_empty()).collect();
    let alone = statements.len() == 1;
    for statement in statements {
        look_at(statement, alone, &mut effects);
    }
    effects
}

fn look_at(statement: &[Token], alone: bool, effects: &mut Effects) {
    let word = |i: usize| match statement.get(i) {
        Some(Token::Word(word)) => word.as_str(),
        _ => "",
    };
    match word(0) {
        "set" => {
            effects.foreseen = true;
            match set(statement) {
                Set::Nothing => {}
                Set::Settings(names) => names.into_iter().for_each(|name| effects.changes(name)),
                Set::Opaque(reason) => effects.pin_for(reason),
            }
        }
        "reset" => {
            (effects.foreseen, effects.resets) = (true, true);
            match (word(1), word(2)) {
                ("session", "authorization") => effects.pin_for(Pin::Role),
                ("all", _) => effects.resets_all = true,
                ("time", "zone") => effects.settings.push("timezone".into()),
                (_, _) => effects.changes(dotted(&statement[1..])),
            }
        }
        "discard" => {
            effects.foreseen = true;
            effects.ends_objects = true;
            if word(1) == "all" {
                (effects.deallocates_all, effects.resets_all, effects.channels) = (true, true, true);
                effects.resets = true;
            }
        }
        "deallocate" => {
            effects.ends_objects = true;
            let name = if word(1) == "prepare" { 2 } else { 1 };
            match word(name) {
                "all" => effects.deallocates_all = true,
                name if alone => effects.deallocates = Some(name.as_bytes().to_vec()),
                _ => effects.pin_for(Pin::Prepare),
            }
        }
        "show" if alone && word(1) == "pgusher" && statement.get(2) == Some(&Token::Symbol(b'.')) => {
            effects.shows = Some(word(3).to_owned());
        }
        "notify" => effects.notifies = true,
        "listen" => (effects.makes_objects, effects.channels) = (true, true),
        "unlisten" => (effects.ends_objects, effects.channels) = (true, true),
        "prepare" if word(1) != "transaction" => effects.makes_objects = true,
        "declare" if statement.windows(2).any(|w| w[0].is("with") && w[1].is("hold")) => {
            effects.makes_objects = true;
        }
        "close" | "drop" => effects.ends_objects = true,
        "do" | "call" | "load" => effects.pin_for(Pin::Opaque),
        _ => {}
    }
    effects.makes_objects |= statement
        .iter()
        .enumerate()
        .any(|(i, token)| (token.is("create") || token.is("into")) && makes_temporary(&statement[i + 1..]));
    if statement.iter().any(|t| t.is("pg_settings")) && statement.iter().any(|t| t.is("update")) {
        effects.pin_for(Pin::Setting);
    }
    for (i, token) in statement.iter().enumerate() {
        if let Token::Word(word) = token {
            function(word, &statement[i + 1..], effects);
        }
    }
}

/// What stands behind `CREATE` or `INTO`.
fn makes_temporary(rest: &[Token]) -> bool {
    let filler = |t: &&Token| ["or", "replace", "local", "global"].iter().any(|word| t.is(word));
    rest.iter().find(|t| !filler(t)).is_some_and(|t| t.is("temp") || t.is("temporary"))
}

/// What a `SET …` does.
enum Set {
    /// The upstream reports what became of it, or it ends with the transaction.
    Nothing,
    /// Changes these.
    Settings(Vec<String>),
    /// What cannot be carried.
    Opaque(Pin),
}

fn set(statement: &[Token]) -> Set {
    let first = |rest: &[Token], word: &str| rest.first().is_some_and(|t| t.is(word));
    let mut rest = &statement[1..];
    if first(rest, "local") || first(rest, "transaction") || first(rest, "constraints") {
        return Set::Nothing;
    }
    if first(rest, "session") {
        rest = &rest[1..];
        if first(rest, "authorization") {
            return Set::Opaque(Pin::Role);
        }
        if first(rest, "characteristics") {
            return Set::Settings(CHARACTERISTICS.map(str::to_owned).to_vec());
        }
    }
    let name = match dotted(rest).as_str() {
        // SET TIME ZONE, SET NAMES
        "time" | "names" => return Set::Nothing,
        "xml" => "xmloption".to_owned(),
        "schema" => "search_path".to_owned(),
        "" => return Set::Opaque(Pin::Setting),
        "seed" => return Set::Opaque(Pin::Opaque),
        "session_authorization" => return Set::Opaque(Pin::Role),
        name if REPORTED.contains(&name) => return Set::Nothing,
        name => name.to_owned(),
    };
    Set::Settings(vec![name])
}

/// A name with its dots, in lower case.
fn dotted(tokens: &[Token]) -> String {
    let mut name = String::new();
    for token in tokens {
        match token {
            Token::Word(word) if name.is_empty() || name.ends_with('.') => {
                name.push_str(&word.to_lowercase());
            }
            Token::Symbol(b'.') => name.push('.'),
            _ => break,
        }
    }
    name
}

/// What a function may leave behind; `rest` is what stands behind its name.
fn function(word: &str, rest: &[Token], effects: &mut Effects) {
    match word {
        "set_config" => match rest {
            [Token::Symbol(b'('), Token::Text(Some(name)), ..] => match name.to_lowercase().as_str() {
                "seed" => effects.pin_for(Pin::Opaque),
                "session_authorization" => effects.pin_for(Pin::Role),
                name if REPORTED.contains(&name) => {}
                name => effects.changes(name.to_owned()),
            },
            _ => effects.pin_for(Pin::Setting),
        },
        "pg_advisory_lock"
        | "pg_advisory_lock_shared"
        | "pg_try_advisory_lock"
        | "pg_try_advisory_lock_shared" => effects.makes_objects = true,
        "pg_advisory_unlock" | "pg_advisory_unlock_shared" | "pg_advisory_unlock_all" => {
            effects.ends_objects = true;
        }
        "pg_notify" => effects.notifies = true,
        "pg_listening_channels" => effects.channels = true,
        "setseed" => effects.pin_for(Pin::Opaque),
        "currval" | "lastval" => effects.reads_sequences = true,
        _ if word.starts_with("pg_temp") => effects.makes_objects = true,
        _ if word.starts_with("dblink") || word.starts_with("pg_replication_origin_") => {
            effects.pin_for(Pin::Opaque);
        }
        _ => {}
    }
}

fn tokens(text: &[u8]) -> Vec<Token> {
    let mut lexer = Lexer { text, at: 0, tokens: Vec::new() };
    while lexer.at < text.len() {
        lexer.step();
    }
    lexer.tokens
}

struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    tokens: Vec<Token>,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn step(&mut self) {
        match (self.peek(0), self.peek(1)) {
            (b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c | 0, _) => self.at += 1,
            (b'-', b'-') => self.skip_to(b'\n'),
            (b'/', b'*') => self.block_comment(),
            (b'\'', _) => self.string(false),
            (b'e' | b'E', b'\'') => {
                self.at += 1;
                self.string(true);
            }
            (b'"', _) => self.quoted_identifier(),
            // An identifier with escapes can hide any name.
            (b'u' | b'U', b'&') if self.peek(2) == b'"' => {
                self.tokens.push(Token::Word("setseed".into()));
                self.at += 2;
                self.quoted_identifier();
            }
            (b'$', _) => self.dollar(),
            (byte, _) if WORD[byte as usize] => self.word(),
            (byte, _) => {
                self.tokens.push(Token::Symbol(byte));
                self.at += 1;
            }
        }
    }

    fn skip_to(&mut self, end: u8) {
        let rest = &self.text[self.at..];
        self.at += memchr::memchr(end, rest).map_or(rest.len(), |i| i + 1);
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    fn string(&mut self, escapes: bool) {
        self.at += 1;
        let from = self.at;
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'\\', _) if escapes => self.at += 2,
                (b'\'', b'\'') => self.at += 2,
                (b'\'', _) => {
                    self.at += 1;
                    break;
                }
                _ => self.at += 1,
            }
        }
        let inside = self.text.get(from..self.at.saturating_sub(1)).unwrap_or_default();
        let plain = !escapes && !inside.contains(&b'\'');
        let inside = str::from_utf8(inside).ok().filter(|_| plain);
        self.tokens.push(Token::Text(inside.map(str::to_owned)));
    }

    fn quoted_identifier(&mut self) {
        self.at += 1;
        let mut name = Vec::new();
        while self.at < self.text.len() {
            match (self.peek(0), self.peek(1)) {
                (b'"', b'"') => {
                    name.push(b'"');
                    self.at += 2;
                }
                (b'"', _) => {
                    self.at += 1;
                    break;
                }
                (byte, _) => {
                    name.push(byte);
                    self.at += 1;
                }
            }
        }
        self.tokens.push(Token::Word(String::from_utf8_lossy(&name).into_owned()));
    }

    /// `$tag$…$tag$`, or a parameter, or nothing.
    fn dollar(&mut self) {
        let rest = &self.text[self.at..];
        let tag = rest[1..].iter().position(|b| *b == b'$').map(|end| &rest[..end + 2]);
        let is_tag = |tag: &&[u8]| {
            let name = &tag[1..tag.len() - 1];
            name.iter().all(|b| WORD[*b as usize]) && !name.first().is_some_and(u8::is_ascii_digit)
        };
        match tag.filter(is_tag) {
            Some(tag) => {
                let body = &rest[tag.len()..];
                let end = memchr::memmem::find(body, tag).map_or(body.len(), |i| i + tag.len());
                self.at += tag.len() + end;
                self.tokens.push(Token::Text(None));
            }
            None => {
                self.tokens.push(Token::Symbol(b'$'));
                self.at += 1;
            }
        }
    }

    fn word(&mut self) {
        let from = self.at;
        while self.at < self.text.len() && WORD[self.text[self.at] as usize] {
            self.at += 1;
        }
        let word = String::from_utf8_lossy(&self.text[from..self.at]).to_lowercase();
        self.tokens.push(Token::Word(word));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Effects {
        effects(text.as_bytes()).map(|e| *e).unwrap_or_default()
    }

    #[test]
    fn ordinary_statements_leave_nothing() {
        for text in [
            "",
            "SELECT 1",
            "select abalance from pgbench_accounts where aid = 5;",
            "UPDATE t SET a = 1, b = 'SET x' WHERE c",
            "BEGIN; INSERT INTO t VALUES ('LISTEN'); COMMIT",
            "SELECT temp FROM weather",
            "SELECT hold FROM t",
            "-- set x = 1\nSELECT 1",
            "/* set x = 1 /* nested */ */ SELECT 1",
            "SELECT $$ set_config $$, $a$ pg_advisory_lock $a$",
            "SELECT 'it''s; SET x = 1'",
            "SELECT E'\\'; SET x = 1 --'",
            "CREATE TABLE t (temporary_until date, holds int)",
            "PREPARE TRANSACTION 'x'",
            "SELECT pg_advisory_xact_lock(1), pg_advisory_unlock_all()",
            "DECLARE c CURSOR FOR SELECT 1",
            "SET LOCAL work_mem = '1MB'",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET TIME ZONE 'UTC'; SET NAMES 'UTF8'; SET datestyle = 'ISO'; set session DateStyle to iso",
        ] {
            let effects = of(text);
            assert_eq!(
                (effects.pin, effects.settings, effects.makes_objects),
                (None, vec![], false),
                "{text}"
            );
        }
    }

    #[test]
    fn what_can_be_asked_for_is_named() {
        for (text, expected) in [
            ("SET work_mem = '1MB'", "work_mem"),
            ("  set Search_Path to x", "search_path"),
            ("SET SCHEMA 'x'", "search_path"),
            ("/* app */ SET work_mem = 1", "work_mem"),
            ("SELECT 1; SET myapp.User = '5'", "myapp.user"),
            ("SET \"MyApp\".\"x\" TO 1", "myapp.x"),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "default_transaction_read_only"),
            ("SELECT set_config('a.B', 'c', false)", "a.b"),
            ("SELECT pg_catalog.\"set_config\"('a.b', 'c', false)", "a.b"),
            ("SET ROLE bob", "role"),
            ("SET SESSION ROLE bob", "role"),
            ("SET role = bob", "role"),
            ("RESET role", "role"),
            ("RESET work_mem; SELECT 1", "work_mem"),
            ("SET XML OPTION DOCUMENT", "xmloption"),
        ] {
            let effects = of(text);
            assert!(effects.settings.iter().any(|s| s == expected), "{text}: {effects:?}");
            assert_eq!((effects.pin, effects.makes_objects), (None, false), "{text}");
        }
        for text in [
            "LISTEN x",
            "CREATE TEMP TABLE t (a int)",
            "create or replace local temporary view v as select 1",
            "SELECT 1 INTO TEMP t",
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'select 1'",
            "SELECT pg_try_advisory_lock(1)",
            "WITH x AS (SELECT pg_advisory_lock_shared(1)) SELECT 1",
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            "PREPARE p AS SELECT 1",
            "EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1",
            "SELECT 1 AS a INTO LOCAL TEMPORARY t",
        ] {
            let effects = of(text);
            assert!(effects.makes_objects && effects.pin.is_none(), "{text}: {effects:?}");
        }
        for text in ["UNLISTEN *", "DROP TABLE t", "CLOSE ALL", "DEALLOCATE p", "DISCARD TEMP", "discard all"]
        {
            assert!(of(text).ends_objects && !of(text).makes_objects, "{text}");
        }
        assert!(of("SELECT pg_advisory_unlock(1)").ends_objects);
        for text in ["LISTEN x", "unlisten x", "DISCARD ALL", "SELECT pg_listening_channels()"] {
            assert!(of(text).channels, "{text}");
        }
        assert!(!of("DISCARD PLANS").channels);
        assert!(of("NOTIFY x, 'y'").notifies && of("SELECT 1, pg_notify('x', 'y')").notifies);
    }

    #[test]
    fn what_can_neither_be_carried_nor_asked_for_pins() {
        for (text, expected) in [
            ("SET SESSION AUTHORIZATION bob", Pin::Role),
            ("SET session_authorization = bob", Pin::Role),
            ("SELECT set_config('session_authorization', 'bob', false)", Pin::Role),
            ("SELECT set_config(name, 'c', false) FROM names", Pin::Setting),
            ("SELECT set_config(E'a\\x2eb', 'c', false)", Pin::Setting),
            ("SELECT set_config('a''b', 'c', false)", Pin::Setting),
            ("SELECT set_config($1, $2, false)", Pin::Setting),
            ("SELECT set_config('my.é', 'c', false)", Pin::Setting),
            ("SET my.é = 1", Pin::Setting),
            ("RESET my.é", Pin::Setting),
            ("SET seed TO 0.5", Pin::Opaque),
            ("SELECT set_config('seed', '0.5', false)", Pin::Opaque),
            ("DO $$ begin end $$", Pin::Opaque),
            ("CALL p()", Pin::Opaque),
            ("LOAD 'auto_explain'", Pin::Opaque),
            ("SELECT U&\"\\0073et_config\"('a', 'b', false)", Pin::Opaque),
            ("SELECT dblink_connect('x')", Pin::Opaque),
            ("UPDATE pg_settings SET setting = 'x' WHERE name = 'search_path'", Pin::Setting),
            ("DEALLOCATE a; SELECT 1", Pin::Prepare),
        ] {
            assert_eq!(of(text).pin, Some(expected), "{text}");
        }
    }

    #[test]
    fn resets_and_deallocations_are_told() {
        assert!(of("DISCARD ALL").deallocates_all && of("DISCARD ALL").resets_all);
        assert!(of("deallocate prepare all;").deallocates_all);
        assert_eq!(of("DEALLOCATE \"My Stmt\"").deallocates.as_deref(), Some(&b"My Stmt"[..]));
        assert_eq!(of("RESET pg_x.y").settings, ["pg_x.y"]);
        assert!(of("reset all").resets_all);
        assert_eq!(of("show PGUSHER.route ;").shows.as_deref(), Some("route"));
        assert_eq!(of("show pgusher.route; select 1").shows, None);
    }

    #[test]
    fn a_scan_in_pieces_sees_what_a_scan_at_once_sees() {
        for text in ["select 1; set x=1", "select temp", "select attempt", "select pg_advisory_lock(1)"] {
            let mut whole = Scan::default();
            whole.feed(text.as_bytes());
            for cut in 0..=text.len() {
                let mut scan = Scan::default();
                scan.feed(&text.as_bytes()[..cut]);
                scan.feed(&text.as_bytes()[cut..]);
                assert_eq!(scan.is_suspicious(), whole.clone().is_suspicious(), "{text} cut at {cut}");
            }
        }
    }

    #[test]
    fn the_quick_look_suspects_all_that_the_scan_suspects() {
        let words = [
            "select",
            "set",
            "SET",
            "reset",
            "temp",
            "TEMPORARY",
            "pg_temp_3",
            "pg_temp",
            "hold",
            "set_config",
            "setseed",
            "pg_advisory_lock",
            "PG_TRY_ADVISORY_LOCK",
            "pg_replication_origin_x",
            "pg_listening_channels",
            "pg_notify",
            "notify",
            "dblink",
            "dblink_connect",
            "do",
            "call",
            "load",
            "listen",
            "discard",
            "deallocate",
            "prepare",
            "show",
            "security",
            "currval",
            "LASTVAL",
            "current_user",
            "unlisten",
            "close",
            "DROP",
            "attempt",
            "x",
            "'set'",
            ";",
            "(",
            "--",
            "\n",
            "update",
            "1",
            "\"temp\"",
        ];
        let mut seed = 0x5eed_u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..4 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                text.push_str(words[usize::try_from(seed % words.len() as u64).unwrap()]);
                text.push_str(if seed & 0x100 == 0 { " " } else { "" });
            }
            let mut scan = Scan::default();
            scan.feed(text.as_bytes());
            assert!(!scan.is_suspicious() || is_suspicious(text.as_bytes()), "{text}");
        }
        assert!(!is_suspicious(b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;"));
    }

    #[test]
    fn a_deep_or_broken_text_is_an_answer_and_not_a_crash() {
        for text in
            ["(".repeat(1 << 20), "/*".repeat(1 << 19), "set ".repeat(1 << 16), "$a$".into(), "'".into()]
        {
            let _ = effects(text.as_bytes());
        }
    }
}
