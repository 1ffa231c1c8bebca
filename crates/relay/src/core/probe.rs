//! What a session has left on its connection: found out by asking the connection itself.
//!
//! A lexer can tell that a statement may have changed something, but not what became of it: a transaction may have
//! been rolled back, a block may have failed in the middle. So the connection is asked, once, when it could go back.

use crate::reset::Proof;
use crate::sql::{Effects, Pin};
use wire::{columns, literal};

/// How many settings are asked for one by one: a session that has touched more keeps its connection.
const MAX_SETTINGS: usize = 256;

/// What may have been left, and is to be asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    /// Settings, in lower case, each once.
    pub settings: Vec<String>,
    /// Every setting of the session may have been reset.
    pub all_settings: bool,
    /// One of them may have: a session that keeps its connection is given its startup values again.
    pub resets: bool,
    /// Every setting that the session has changed is to be listed.
    pub everything: bool,
    /// Anything that is no setting: temporary objects, locks, channels, cursors, SQL-level statements.
    pub objects: bool,
    /// There are more settings than can be asked for.
    pub too_many: bool,
}

impl Touched {
    /// What a statement may leave that may do this.
    pub(crate) fn by(effects: &Effects) -> Self {
        let mut touched = Self {
            all_settings: effects.resets_all,
            resets: effects.resets,
            everything: effects.asks_all,
            objects: effects.makes_objects || effects.asks_all,
            ..Self::default()
        };
        touched.add_settings(effects.settings.iter().map(String::as_str));
        touched
    }

    /// True if there is nothing to be asked for.
    pub(crate) fn is_nothing(&self) -> bool {
        !self.objects && !self.all_settings && self.settings.is_empty()
    }

    /// All of another, too.
    pub(crate) fn add(&mut self, other: &Self) {
        self.add_settings(other.settings.iter().map(String::as_str));
        self.all_settings |= other.all_settings;
        self.resets |= other.resets;
        self.everything |= other.everything;
        self.objects |= other.objects;
        self.too_many |= other.too_many;
    }

    /// These too.
    pub(crate) fn add_settings<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        for name in names {
            if self.too_many || self.settings.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                continue;
            }
            if self.settings.len() < MAX_SETTINGS {
                self.settings.push(name.to_ascii_lowercase());
            } else {
                self.too_many = true;
            }
        }
    }
}

/// What a connection answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Left {
    /// Each setting that was asked for, and its value if the session has set it.
    pub settings: Vec<(String, Option<Box<[u8]>>)>,
    /// What keeps the session on the connection, if anything was asked for that could.
    pub pin: Option<Pin>,
    /// The channels that it listens to, if that was asked for; `None` if there are more than are listed.
    pub channels: Option<Vec<String>>,
    /// How many statements are prepared on it, if everything was asked for.
    pub prepared: Option<usize>,
}

/// What there may be beside settings, and how to find it. At an idle point the locks that are left are session-level
/// ones, and the cursors are those `WITH HOLD`. Everything is qualified: the session's `search_path` is the client's.
const OBJECTS: [(Pin, &str); 4] = [
    (
        Pin::Temporary,
        "pg_catalog.pg_depend AS d WHERE d.refclassid OPERATOR(pg_catalog.=) \
         'pg_catalog.pg_namespace'::pg_catalog.regclass::pg_catalog.oid \
         AND d.refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()",
    ),
    (
        Pin::AdvisoryLock,
        "pg_catalog.pg_locks AS l WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' \
         AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()",
    ),
    (Pin::HoldCursor, "pg_catalog.pg_cursors AS c WHERE c.is_holdable"),
    (Pin::Prepare, "pg_catalog.pg_prepared_statements AS p WHERE p.from_sql"),
];

/// In UTF-8, because a client's encoding can be any; a list that is longer than [`MAX_LISTED`] is cut, and then more than that.
const CHANNELS: &str = "(SELECT pg_catalog.substr(pg_catalog.string_agg(pg_catalog.encode(\
    pg_catalog.convert_to(c,'UTF8'),'hex'),','),1,32769) FROM pg_catalog.pg_listening_channels() AS c)";
/// The longest list of channels, in bytes: a session with more keeps its connection.
const MAX_LISTED: usize = 32_768;

/// Every setting that the session has set, with its value. (Of an application's own settings there is no list.)
const CHANGED: &str = "(SELECT pg_catalog.string_agg(pg_catalog.concat(\
    pg_catalog.encode(pg_catalog.convert_to(s.name,'UTF8'),'hex'),':',\
    pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting(s.name),\
    pg_catalog.getdatabaseencoding()),'hex')),',') FROM pg_catalog.pg_settings AS s \
    WHERE s.source OPERATOR(pg_catalog.=) 'session' AND s.name OPERATOR(pg_catalog.!~~) 'transaction_%')";

/// What SQL that cannot be seen may have deallocated is missing here.
const PREPARED: &str = "(SELECT pg_catalog.count(*) FROM pg_catalog.pg_prepared_statements AS p \
    WHERE NOT p.from_sql)";

/// The query whose one row [`answer`] reads. Values come as hexadecimal digits of the server's encoding, which is what
/// they are set in again, whatever the client's is. The last one is the proof.
pub(crate) fn question(touched: &Touched, proof: Proof) -> String {
    let mut columns = Vec::new();
    for name in &touched.settings {
        let name = literal(name.as_bytes());
        columns.push(format!(
            "pg_catalog.encode(pg_catalog.convert_to(pg_catalog.current_setting({name},true),\
             pg_catalog.getdatabaseencoding()),'hex')"
        ));
        columns.push(format!(
            "(SELECT s.source OPERATOR(pg_catalog.=) 'session' FROM pg_catalog.pg_settings AS s \
             WHERE pg_catalog.lower(s.name) OPERATOR(pg_catalog.=) {name})"
        ));
    }
    if touched.everything {
        columns.extend([CHANGED, PREPARED].map(str::to_owned));
    }
    if touched.objects {
        columns.extend(OBJECTS.iter().map(|(_, rows)| format!("EXISTS(SELECT FROM {rows})")));
        columns.push(CHANNELS.to_owned());
    }
    columns.push(proof.column());
    format!("SELECT {}", columns.join(","))
}

/// Reads the `DataRow` (without its header) that answers [`question`] and holds its proof; `None` if it is none.
pub(crate) fn answer(touched: &Touched, row: &[u8]) -> Option<Left> {
    let mut columns = columns(row)?.into_iter();
    let mut settings = Vec::new();
    for name in &touched.settings {
        let (value, by_session) = (columns.next()?.map(unhex), columns.next()?);
        let is_set = match by_session {
            Some(by_session) => by_session == b"t",
            // Not in pg_settings: a setting of an application's own, which once it was set is never unknown again, or the role.
            None if name.contains('.') => value.is_some(),
            None => value.as_ref().is_some_and(|v| !v.is_empty() && (name != "role" || **v != *b"none")),
        };
        settings.push((name.clone(), value.filter(|_| is_set)));
    }
    let mut prepared = None;
    let changed = if touched.everything { columns.next()? } else { None };
    if touched.everything {
        prepared = Some(str::from_utf8(columns.next()??).ok()?.parse().ok()?);
    }
    if let Some(changed) = changed {
        for pair in changed.split(|b| *b == b',') {
            let colon = pair.iter().position(|b| *b == b':')?;
            let name = String::from_utf8(unhex(&pair[..colon]).into_vec()).ok()?.to_lowercase();
            if !touched.settings.contains(&name) {
                settings.push((name, Some(unhex(&pair[colon + 1..]))));
            }
        }
    }
    let (mut pin, mut channels) = (None, Some(Vec::new()));
    if touched.objects {
        for (reason, _) in OBJECTS {
            if columns.next()? == Some(b"t") {
                pin = pin.or(Some(reason));
            }
        }
        if let Some(listed) = columns.next()? {
            let name = |digits| String::from_utf8(unhex(digits).into_vec()).ok();
            channels = match listed.len() {
                0..=MAX_LISTED => Some(listed.split(|b| *b == b',').map(name).collect::<Option<_>>()?),
                _ => None,
            };
        }
    }
    let _proof = columns.next()?;
    columns.next().is_none().then_some(Left { settings, pin, channels, prepared })
}

/// The bytes of these hexadecimal digits.
fn unhex(digits: &[u8]) -> Box<[u8]> {
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    digits.chunks(2).map_while(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::row;

    #[test]
    fn an_answer_tells_what_is_set_and_what_is_left() {
        let mut touched = Touched { objects: true, ..Touched::default() };
        touched.add_settings(["work_mem", "WORK_MEM", "my.x", "role", "my.gone"]);
        let answered = row(&[
            Some("384d42"),
            Some("t"),
            Some("35"),
            None,
            Some("6e6f6e65"),
            None,
            Some(""),
            None,
            Some("f"),
            Some("f"),
            Some("t"),
            Some("f"),
            Some("61,622f63"),
            Some("proof"),
        ]);
        let left = answer(&touched, &answered).unwrap();
        let set: Vec<_> =
            left.settings.iter().filter(|(_, v)| v.is_some()).map(|(n, _)| n.as_str()).collect();
        assert_eq!(set, ["work_mem", "my.x", "my.gone"]);
        assert_eq!(left.settings[0].1.as_deref(), Some(&b"8MB"[..]));
        assert_eq!(left.pin, Some(Pin::HoldCursor));
        assert_eq!(left.channels.unwrap(), ["a", "b/c"]);
        for end in 0..answered.len() {
            assert_eq!(answer(&touched, &answered[..end]), None, "{end}");
        }
        assert_eq!(question(&touched, Proof::new(1)).matches("EXISTS").count(), 4);
    }

    #[test]
    fn where_everything_is_asked_it_tells_how_many_statements_are_prepared() {
        let touched = Touched { everything: true, ..Touched::default() };
        for (changed, count, expected) in [(None, Some("3"), Some(3)), (Some("61:62"), Some("0"), Some(0))] {
            let left = answer(&touched, &row(&[changed, count, Some("proof")])).unwrap();
            assert_eq!((left.prepared, left.settings.len()), (expected, usize::from(changed.is_some())));
        }
        assert_eq!(answer(&touched, &row(&[None, None, Some("proof")])), None);
    }

    #[test]
    fn more_channels_than_are_listed_are_too_many() {
        let touched = Touched { objects: true, ..Touched::default() };
        let none = [Some("f"); 4];
        for (length, listed) in [(MAX_LISTED, true), (MAX_LISTED + 1, false)] {
            let list = "61,".repeat(MAX_LISTED)[..length].to_owned();
            let left = answer(&touched, &row(&[&none[..], &[Some(&list), Some("proof")]].concat())).unwrap();
            assert_eq!(left.channels.is_some(), listed);
        }
        assert!(question(&touched, Proof::new(1)).contains(&format!(",1,{})", MAX_LISTED + 1)));
    }
}
