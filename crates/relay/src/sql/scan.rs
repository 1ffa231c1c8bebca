//! The byte scan: it tells in nanoseconds that a text cannot matter.

use super::outside::Outside;
use super::words::WORD;

const fn key(word: &[u8]) -> u64 {
    let mut key = 0;
    let mut i = 0;
    while i < word.len() && i < 8 {
        key = key << 8 | word[i] as u64;
        i += 1;
    }
    key
}

/// The byte scan; it can be fed a text in pieces.
#[derive(Debug, Clone)]
pub struct Scan {
    /// If it is known how the text is read: then what is data is passed over.
    outside: Option<Outside>,
    words: Words,
}

/// The words of a text, as far as they matter.
#[derive(Debug, Clone)]
struct Words {
    key: u64,
    length: usize,
    /// It is a number: up to PostgreSQL 14, a word may follow without a space.
    number: bool,
    at_start: bool,
    suspicious: bool,
    defines: bool,
    last: u8,
}

impl Default for Scan {
    /// Of a text of which it is not known where strings end: all of it is looked at.
    fn default() -> Self {
        Self { outside: None, words: Words::default() }
    }
}

impl Scan {
    /// Of a text that is read as the lexer reads it.
    pub fn of_statements() -> Self {
        Self { outside: Some(Outside::default()), ..Self::default() }
    }

    /// Looks at the next piece.
    pub fn feed(&mut self, text: &[u8]) {
        let words = &mut self.words;
        match &mut self.outside {
            None => text.iter().for_each(|byte| words.step(*byte)),
            Some(outside) => {
                words.suspicious |= outside.feed(text, &mut |byte| words.step(byte)).is_err();
            }
        }
    }

    /// Whether the text so far begins a statement with `CREATE` or `ALTER`, in which the lexer would see more.
    pub fn defines(mut self) -> bool {
        self.words.end_word();
        self.words.defines
    }

    /// Whether the text so far, as a whole, might matter.
    pub fn is_suspicious(mut self) -> bool {
        self.words.end_word();
        // What may be a tag still was not looked at.
        self.words.suspicious || self.outside.is_some_and(|outside| outside.is_within_tag())
    }
}

impl Default for Words {
    fn default() -> Self {
        Self { key: 0, length: 0, number: false, at_start: true, suspicious: false, defines: false, last: 0 }
    }
}

impl Words {
    fn step(&mut self, byte: u8) {
        if WORD[byte as usize] {
            let digit = byte.is_ascii_digit();
            if self.number && !digit {
                self.end_word();
            }
            self.number = digit && (self.number || self.length == 0);
            if self.length < 8 {
                self.key = self.key << 8 | u64::from(byte | 0x20);
            }
            self.length += 1;
            self.last = byte;
            return;
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

    fn end_word(&mut self) {
        const CREATE: u64 = key(b"create");
        const ALTER: u64 = key(b"alter");
        if self.length == 0 {
            return;
        }
        self.suspicious |= matters_anywhere(self.key) || (self.at_start && matters_first(self.key));
        self.defines |= self.at_start && matches!(self.key, CREATE | ALTER);
        (self.key, self.length, self.number, self.at_start) = (0, 0, false, false);
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
    const QUERY_TO_XML: u64 = scanned(b"query_to");
    const TABLE_TO_XML: u64 = scanned(b"table_to");
    const SCHEMA_TO_XML: u64 = scanned(b"schema_t");
    const DATABASE_TO_XML: u64 = key(b"database");
    const TS_STAT: u64 = scanned(b"ts_stat_") >> 8;
    const TS_REWRITE: u64 = scanned(b"ts_rewri");
    const PG_PREPARED: u64 = scanned(b"pg_prepa");
    const EXECUTE: u64 = key(b"execute");
    const PGUSHER: u64 = key(b"pgusher");
    const PG_BACKEND_PID: u64 = scanned(b"pg_backe");
    const PG_CANCEL_BACKEND: u64 = scanned(b"pg_cance");
    const PG_TERMINATE_BACKEND: u64 = scanned(b"pg_termi");
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
            | QUERY_TO_XML
            | TABLE_TO_XML
            | SCHEMA_TO_XML
            | DATABASE_TO_XML
            | TS_STAT
            | TS_REWRITE
            | PG_PREPARED
            | EXECUTE
            | PGUSHER
            | PG_BACKEND_PID
            | PG_CANCEL_BACKEND
            | PG_TERMINATE_BACKEND
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

/// The same for a text that is there whole, in a few instructions a byte: it looks at the beginnings of words only, and so
/// suspects all that [`Scan`] does and a little more.
pub fn is_suspicious(text: &[u8]) -> bool {
    super::budget::goes_through(text.len());
    let mut state = Automaton::START;
    let (pieces, rest) = text.as_chunks::<8>();
    for piece in pieces {
        for byte in piece {
            state = AUTOMATON.after(state, *byte);
        }
        if state == Automaton::SUSPICIOUS {
            return true;
        }
    }
    rest.iter().fold(state, |state, byte| AUTOMATON.after(state, *byte)) == Automaton::SUSPICIOUS
}

/// How words begin that matter anywhere, in lower case.
const ANYWHERE: [&[u8]; 24] = [
    b"temp",
    b"hold",
    b"curr",
    b"last",
    b"setse",
    b"set_c",
    b"dblink",
    b"pg_t",
    b"pg_a",
    b"pg_r",
    b"pg_s",
    b"pg_li",
    b"pg_no",
    b"pg_can",
    b"pg_bac",
    b"query_",
    b"table_",
    b"schema_",
    b"database",
    b"ts_s",
    b"ts_r",
    b"pg_p",
    b"execu",
    b"pgush",
];

/// How words begin that matter as the first of a statement.
const FIRST: [&[u8]; 17] = [
    b"do", b"set", b"noti", b"unli", b"clos", b"drop", b"rese", b"disc", b"list", b"prep", b"deal", b"load",
    b"call", b"show", b"secu", b"crea", b"alte",
];

static AUTOMATON: Automaton = Automaton::new();

/// Where the look at a text is, and where each kind of byte leads from there.
struct Automaton {
    class: [u16; 256],
    /// By state and class, both in one number.
    next: [u16; Self::SIZE],
}

impl Automaton {
    /// More than there are classes: what the numbers of states grow by.
    const STEP: u16 = 32;
    const SIZE: usize = 256 * 32;

    // States, as they stand in the table: in front of a statement's first word; ...
    const START: u16 = 0;
    // ... between two words; ...
    const BETWEEN: u16 = Self::STEP;
    // ... within one that does not matter; ...
    const WITHIN: u16 = 2 * Self::STEP;
    // ... behind an ampersand; and where it ends. The others are within words that may matter.
    const AMPERSAND: u16 = 3 * Self::STEP;
    const SUSPICIOUS: u16 = 4 * Self::STEP;

    // Classes of bytes; those from `LETTERS` on are of the letters that words that matter begin with.
    const OTHER: u16 = 0;
    const SPACE: u16 = 1;
    const SEMICOLON: u16 = 2;
    const AND: u16 = 3;
    const QUOTE: u16 = 4;
    const WORD: u16 = 5;
    const DIGIT: u16 = 6;
    const LETTERS: u16 = 7;

    #[inline]
    fn after(&self, state: u16, byte: u8) -> u16 {
        let at = usize::from(state | self.class[usize::from(byte)]);
        self.next[at % Self::SIZE]
    }

    const fn new() -> Self {
        let mut all = Self { class: Self::classes(), next: [0; Self::SIZE] };
        let mut class = 0;
        while class < Self::STEP {
            // A comment or a parenthesis before the first word: let the lexer look.
            let (outside, first) = match class {
                Self::OTHER | Self::QUOTE => (Self::BETWEEN, Self::SUSPICIOUS),
                Self::SPACE => (Self::BETWEEN, Self::START),
                Self::SEMICOLON => (Self::START, Self::START),
                // Behind a number a word may follow without a space.
                Self::DIGIT => (Self::BETWEEN, Self::BETWEEN),
                // An identifier with escapes (U&"…") can hide any name.
                Self::AND => (Self::AMPERSAND, Self::SUSPICIOUS),
                _ => (Self::WITHIN, Self::WITHIN),
            };
            all.next[(Self::START + class) as usize] = first;
            all.next[(Self::BETWEEN + class) as usize] = outside;
            all.next[(Self::WITHIN + class) as usize] =
                if class == Self::DIGIT { Self::WITHIN } else { outside };
            all.next[(Self::SUSPICIOUS + class) as usize] = Self::SUSPICIOUS;
            class += 1;
        }
        let mut states = Self::SUSPICIOUS + Self::STEP;
        let mut i = 0;
        while i < ANYWHERE.len() {
            states = all.learn(ANYWHERE[i], Self::START, states);
            states = all.learn(ANYWHERE[i], Self::BETWEEN, states);
            i += 1;
        }
        i = 0;
        while i < FIRST.len() {
            states = all.learn(FIRST[i], Self::START, states);
            i += 1;
        }
        class = 0;
        while class < Self::STEP {
            all.next[(Self::AMPERSAND + class) as usize] = all.next[(Self::BETWEEN + class) as usize];
            class += 1;
        }
        all.next[(Self::AMPERSAND + Self::QUOTE) as usize] = Self::SUSPICIOUS;
        all
    }

    /// A word that begins so, in this state, matters. `states` is the first number that is free; the same afterwards.
    const fn learn(&mut self, word: &[u8], from: u16, mut states: u16) -> u16 {
        let (mut state, mut i) = (from, 0);
        while i + 1 < word.len() {
            let at = (state + self.class[word[i] as usize]) as usize;
            if self.next[at] == Self::SUSPICIOUS {
                return states;
            }
            if self.next[at] == Self::WITHIN {
                let mut class = 0;
                while class < Self::STEP {
                    self.next[(states + class) as usize] = self.next[(Self::WITHIN + class) as usize];
                    class += 1;
                }
                self.next[at] = states;
                states += Self::STEP;
            }
            state = self.next[at];
            i += 1;
        }
        self.next[(state + self.class[word[i] as usize]) as usize] = Self::SUSPICIOUS;
        states
    }

    const fn classes() -> [u16; 256] {
        let mut class = [Self::OTHER; 256];
        let mut byte = 0;
        while byte < class.len() {
            if matches!(byte, 48..=57) {
                class[byte] = Self::DIGIT;
            } else if WORD[byte] {
                class[byte] = Self::WORD;
            }
            byte += 1;
        }
        let mut letters = Self::LETTERS;
        let mut i = 0;
        while i < ANYWHERE.len() + FIRST.len() {
            let word = if i < ANYWHERE.len() { ANYWHERE[i] } else { FIRST[i - ANYWHERE.len()] };
            let mut at = 0;
            while at < word.len() {
                if class[word[at] as usize] == Self::WORD {
                    class[word[at] as usize] = letters;
                    class[word[at].to_ascii_uppercase() as usize] = letters;
                    letters += 1;
                }
                at += 1;
            }
            i += 1;
        }
        assert!(letters <= Self::STEP, "each letter has a class of its own");
        (class[b';' as usize], class[b'&' as usize], class[b'"' as usize]) =
            (Self::SEMICOLON, Self::AND, Self::QUOTE);
        let spaces = b" \t\n\r\0";
        i = 0;
        while i < spaces.len() {
            class[spaces[i] as usize] = Self::SPACE;
            i += 1;
        }
        class
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same as it would be told somebody.
    fn in_plain_words(text: &[u8]) -> bool {
        let begins = |word: &[u8], with: &[&[u8]]| {
            with.iter().any(|with| word.get(..with.len()).is_some_and(|word| word.eq_ignore_ascii_case(with)))
        };
        let mut at_start = true;
        let pieces = text.chunk_by(|one, other| WORD[usize::from(*one)] && WORD[usize::from(*other)]);
        let mut before = 0;
        for piece in pieces {
            match piece[0] {
                byte if WORD[usize::from(byte)] => {
                    let digits = piece.iter().take_while(|byte| byte.is_ascii_digit()).count();
                    at_start &= digits == 0;
                    let piece = &piece[digits..];
                    if begins(piece, &ANYWHERE) || at_start && begins(piece, &FIRST) {
                        return true;
                    }
                    at_start = false;
                }
                b';' => at_start = true,
                b' ' | b'\t' | b'\n' | b'\r' | 0 => {}
                b'"' if before == b'&' => return true,
                _ if at_start => return true,
                _ => {}
            }
            before = piece[0];
        }
        false
    }

    proptest! {
        #[test]
        fn the_quick_look_sees_what_is_to_be_seen(
            pieces in prop::collection::vec(
                prop_oneof![
                    prop::sample::select(ANYWHERE.to_vec()).prop_map(<[u8]>::to_vec),
                    prop::sample::select(FIRST.to_vec()).prop_map(<[u8]>::to_vec),
                    prop::sample::select(b" ;&\"\t\n\r\0_$(-'1aSZ\x7f\x80\xff".to_vec()).prop_map(|b| vec![b]),
                    prop::collection::vec(any::<u8>(), 0..4),
                ],
                0..12,
            ),
            upper in any::<bool>(),
        ) {
            let mut text = pieces.concat();
            if upper {
                text.make_ascii_uppercase();
            }
            prop_assert_eq!(is_suspicious(&text), in_plain_words(&text));
        }
    }

    #[test]
    fn what_begins_words_that_matter_is_seen_in_every_place() {
        for (word, anywhere) in ANYWHERE.iter().map(|w| (w, true)).chain(FIRST.iter().map(|w| (w, false))) {
            let word = str::from_utf8(word).expect("text");
            for (before, seen) in [
                ("", true),
                ("; ", true),
                ("select ", anywhere),
                ("a & ", anywhere),
                ("x", false),
                ("select 1+", anywhere),
            ] {
                let text = format!("{before}{word}");
                assert_eq!(is_suspicious(text.as_bytes()), seen, "{text}");
            }
            let almost = &word[..word.len() - 1];
            let is_one = |other: &[u8]| almost.as_bytes().starts_with(other);
            let other = ANYWHERE.iter().chain(&FIRST).any(|other| is_one(other));
            assert_eq!(is_suspicious(format!("{almost} x").as_bytes()), other, "{almost}");
        }
    }
}
