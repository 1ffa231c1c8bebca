//! The byte scan: it tells in nanoseconds that a text cannot matter.

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
pub const WORD: [bool; 256] = {
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
    defines: bool,
    last: u8,
}

impl Default for Scan {
    fn default() -> Self {
        Self { key: 0, length: 0, at_start: true, suspicious: false, defines: false, last: 0 }
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
        const CREATE: u64 = key(b"create");
        const ALTER: u64 = key(b"alter");
        if self.length == 0 {
            return;
        }
        self.suspicious |= matters_anywhere(self.key) || (self.at_start && matters_first(self.key));
        self.defines |= self.at_start && matches!(self.key, CREATE | ALTER);
        (self.key, self.length, self.at_start) = (0, 0, false);
    }

    /// Whether the text so far begins a statement with `CREATE` or `ALTER`, in which the lexer would see more.
    pub fn defines(mut self) -> bool {
        self.end_word();
        self.defines
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
    super::budget::goes_through(text.len());
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
    const FOUR: [u64; 15] = [
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
        key(b"crea"),
        key(b"alte"),
    ];
    word >> 48 == DO || word >> 40 == SET || FOUR.contains(&(word >> 32))
}
