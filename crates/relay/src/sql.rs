//! What a statement may leave behind in its session. Two steps: a byte scan that tells in nanoseconds that a text
//! cannot matter, and a lexer for the rest. Neither understands SQL; both rather suspect too much.

mod body;
pub mod budget;
mod change;
mod databases;
mod effects;
mod lexer;
mod names;
mod outside;
mod pids;
mod roles;
pub mod scan;
pub mod words;

use body::{Findings, Language};
pub use body::{RUN_TEXTS, names_temp_schema, of_function};
use budget::MAX_LEXED;
pub use change::SettingChange;
pub use effects::Effects;
use lexer::Token;
pub use names::NameUse;
pub use pids::{Call, Operand, PidUse, Signal};
pub use roles::gives_up_role;
pub use scan::{Scan, is_suspicious};

/// Why a session keeps its upstream connection beyond its transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// A setting that PostgreSQL does not report was changed.
    Setting,
    /// `SET SESSION AUTHORIZATION` of another role than the connection has logged in as.
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
    /// All there are.
    pub const ALL: [Self; 9] = [
        Self::Setting,
        Self::Role,
        Self::Listen,
        Self::Temporary,
        Self::AdvisoryLock,
        Self::HoldCursor,
        Self::Prepare,
        Self::Opaque,
        Self::Copy,
    ];

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

/// Settings that every supported PostgreSQL reports: the upstream itself says what became of them.
const REPORTED: [&str; 6] = [
    "application_name",
    "client_encoding",
    "datestyle",
    "intervalstyle",
    "timezone",
    "standard_conforming_strings",
];

/// What `SET TIME ZONE` sets.
const TIMEZONE: &str = "timezone";

/// What `SET SESSION CHARACTERISTICS AS TRANSACTION` sets.
const CHARACTERISTICS: [&str; 3] =
    ["default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable"];

/// What there can be behind `CREATE` or `ALTER` that runs SQL of its own, or decides when that is run.
const DEFINES: [&str; 11] = [
    "function",
    "procedure",
    "routine",
    "trigger",
    "rule",
    "extension",
    "aggregate",
    "operator",
    "policy",
    "cast",
    "domain",
];

/// What a text may do; `None`, mostly, is nothing.
pub fn effects(text: &[u8]) -> Option<Box<Effects>> {
    if is_suspicious(text) { suspected(text) } else { None }
}

/// Whether a text means the same whatever `standard_conforming_strings` and `client_encoding` are: it has neither strings nor
/// characters of more than a byte.
pub fn reads_alike(text: &[u8]) -> bool {
    text.is_ascii() && memchr::memchr2(b'\'', b'\\', text).is_none()
}

/// The same of a text that was found suspicious.
pub fn suspected(text: &[u8]) -> Option<Box<Effects>> {
    if text.len() > MAX_LEXED {
        let mut scan = Scan::of_statements();
        scan.feed(text);
        let defines = scan.clone().defines();
        return match scan.is_suspicious() {
            true => Some(Box::new(Effects::opaque())),
            false => defines.then(|| Box::new(Effects { defines, ..Effects::default() })),
        };
    }
    let effects = body::read(text, Language::Statements);
    (effects != Effects::default()).then(|| Box::new(effects))
}

/// Whether a statement is the only one of what a client has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    Alone,
    Others,
}

/// One statement. What the functions in it do, [`functions`] says.
fn look_at<'a>(statement: &[Token<'a>], company: Company, findings: &mut Findings<'a>) {
    let alone = company == Company::Alone;
    let word = |i: usize| match statement.get(i) {
        Some(Token::Word(word)) => &**word,
        _ => "",
    };
    let effects = findings.here();
    match word(0) {
        "set" => {
            effects.foreseen = true;
            match set(statement, effects) {
                Set::Nothing => {}
                Set::Settings(names) => names.into_iter().for_each(|name| effects.changes(name)),
                Set::Opaque(reason) => effects.pin_for(reason),
            }
        }
        "reset" => {
            (effects.foreseen, effects.resets) = (true, true);
            match (word(1), word(2)) {
                ("session", "authorization") => effects.sets("session_authorization"),
                ("all", _) => {
                    (effects.resets_all, effects.rereads) = (true, true);
                    effects.change(SettingChange::AllDefault);
                }
                ("time", "zone") => {
                    effects.add_setting(TIMEZONE.into());
                    effects.change(SettingChange::Default(TIMEZONE.into()));
                }
                (_, _) => {
                    let name = dotted(&statement[1..]);
                    effects.sets(&name);
                    effects.change(SettingChange::Default(name.clone()));
                    effects.changes(name);
                }
            }
        }
        "discard" => {
            effects.foreseen = true;
            effects.ends_objects = true;
            if word(1) == "all" {
                (effects.deallocates_all, effects.resets_all, effects.channels) = (true, true, true);
                (effects.resets, effects.rereads) = (true, true);
                effects.change(SettingChange::AllDefault);
            }
        }
        "deallocate" => {
            effects.ends_objects = true;
            let name = if word(1) == "prepare" { 2 } else { 1 };
            effects.deallocates_all |= word(name) == "all";
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
        "do" => {
            effects.foreseen = true;
            body::block(statement, findings);
        }
        "call" => (effects.foreseen, effects.calls) = (true, true),
        "load" => effects.pin_for(Pin::Opaque),
        "create" | "alter" => {
            let defines = statement.iter().take(6).any(|t| DEFINES.iter().any(|word| t.is(word)));
            (effects.defines, effects.relates) = (effects.defines | defines, true);
            // `ALTER ROLE … SET pgusher.x`, and the same of a function.
            for words in statement.windows(4).filter(|words| words[0].is("set") || words[0].is("reset")) {
                if words[1].is("pgusher") && words[2] == Token::Symbol(b'.') {
                    effects.sets(&dotted(&words[1..]));
                }
            }
            if defines {
                body::definition(statement, findings);
            }
        }
        _ => {}
    }
    let place = findings.place();
    let effects = findings.here();
    if alone {
        effects.pid = pids::pid_use(statement).map(Box::new);
    }
    effects.needs_database = effects.needs_database.take().or_else(|| databases::needed(statement));
    names::names(statement, place, effects);
    let temporary = statement
        .iter()
        .enumerate()
        .any(|(i, token)| (token.is("create") || token.is("into")) && makes_temporary(&statement[i + 1..]));
    effects.makes_objects |= temporary;
    effects.temporary |= temporary;
    if statement.iter().any(|t| t.is("pg_settings")) && statement.iter().any(|t| t.is("update")) {
        effects.pin_for(Pin::Setting);
    }
}

/// What stands behind `CREATE` or `INTO`.
fn makes_temporary(rest: &[Token<'_>]) -> bool {
    let filler = |t: &&Token<'_>| ["or", "replace", "local", "global"].iter().any(|word| t.is(word));
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

fn set(statement: &[Token<'_>], effects: &mut Effects) -> Set {
    // Behind a dot it is no such word, but the name of somebody's own settings: `session.x`.
    let first = |rest: &[Token<'_>], word: &str| {
        rest.first().is_some_and(|t| t.is(word)) && rest.get(1) != Some(&Token::Symbol(b'.'))
    };
    let mut rest = &statement[1..];
    let is_default = statement.last().is_some_and(|last| last.is("default"));
    let change = |name: &str| match is_default {
        true => SettingChange::Default(name.to_owned()),
        false => SettingChange::Set(name.to_owned()),
    };
    if first(rest, "local") {
        let name = dotted(&rest[1..]);
        effects.sets(if name == "session" { "session_authorization" } else { &name });
        effects.change(SettingChange::Set(if name == "time" { TIMEZONE.to_owned() } else { name }));
        return Set::Nothing;
    }
    if first(rest, "transaction") || first(rest, "constraints") {
        return Set::Nothing;
    }
    if first(rest, "session") {
        rest = &rest[1..];
        if first(rest, "authorization") {
            effects.sets("session_authorization");
            return Set::Nothing;
        }
        if first(rest, "characteristics") {
            CHARACTERISTICS.iter().for_each(|name| effects.change(change(name)));
            return Set::Settings(CHARACTERISTICS.map(str::to_owned).to_vec());
        }
    }
    let name = dotted(rest);
    effects.sets(&name);
    effects.change(match name.as_str() {
        "time" if statement.last().is_some_and(|last| last.is("local")) => {
            SettingChange::Default(TIMEZONE.into())
        }
        "time" => change(TIMEZONE),
        "names" => change("client_encoding"),
        name => change(name),
    });
    let name = match name.as_str() {
        // SET TIME ZONE, SET NAMES
        "time" | "names" => return Set::Nothing,
        "xml" => "xmloption".to_owned(),
        "schema" => "search_path".to_owned(),
        "" => return Set::Opaque(Pin::Setting),
        "seed" => return Set::Opaque(Pin::Opaque),
        "session_authorization" => return Set::Nothing,
        name if REPORTED.contains(&name) => return Set::Nothing,
        name => name.to_owned(),
    };
    Set::Settings(vec![name])
}

/// A name with its dots, in lower case.
fn dotted(tokens: &[Token<'_>]) -> String {
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

/// For each opening parenthesis, the place of the one that closes it: one pass.
fn closing(tokens: &[Token<'_>]) -> Vec<(usize, usize)> {
    let (mut open, mut pairs) = (Vec::new(), Vec::new());
    for (i, token) in tokens.iter().enumerate() {
        match token {
            Token::Symbol(b'(') => open.push(i),
            Token::Symbol(b')') => pairs.extend(open.pop().map(|at| (at, i))),
            _ => {}
        }
    }
    pairs.sort_unstable();
    pairs
}

/// What the functions leave behind that are called in these tokens.
fn functions(tokens: &[Token<'_>], effects: &mut Effects) {
    let mut pairs = None;
    for (i, token) in tokens.iter().enumerate() {
        let Token::Word(word) = token else { continue };
        if &**word != "set_config" {
            function(word, effects);
            continue;
        }
        let pairs = pairs.get_or_insert_with(|| closing(tokens));
        let end = pairs.binary_search_by_key(&(i + 1), |(open, _)| *open).ok().map(|at| pairs[at].1);
        // The last of its arguments is `true`: then it sets for a transaction.
        let is_local = end.is_some_and(|end| {
            end > i + 3 && tokens[end - 1].is("true") && tokens[end - 2] == Token::Symbol(b',')
        });
        let scope = if is_local { Scope::Transaction } else { Scope::Session };
        set_config(&tokens[i + 1..tokens.len().min(i + 5)], scope, effects);
    }
}

/// For how long a setting is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Transaction,
    Session,
}

/// `arguments` begin with the parenthesis, if it is called, and end behind what the second one begins with: only where the first is
/// over, or is cast, it is known what is set.
fn set_config(arguments: &[Token<'_>], scope: Scope, effects: &mut Effects) {
    match arguments {
        [Token::Symbol(b'('), Token::Text(Some(name)), Token::Symbol(b',' | b':' | b')'), value @ ..] => {
            let name = name.to_lowercase();
            effects.sets(&name);
            effects.change(match value.first().is_some_and(|value| value.is("null")) {
                true => SettingChange::Default(name.clone()),
                false => SettingChange::Set(name.clone()),
            });
            match name.as_str() {
                "seed" => effects.pin_for(Pin::Opaque),
                "session_authorization" => {}
                _ if scope == Scope::Transaction => {}
                name if REPORTED.contains(&name) => {}
                _ => effects.changes(name),
            }
        }
        [Token::Symbol(b'('), ..] => {
            effects.rereads = true;
            if scope == Scope::Session {
                effects.pin_for(Pin::Setting);
            }
        }
        _ => {}
    }
}

/// What a function of this name may leave behind.
fn function(word: &str, effects: &mut Effects) {
    match word {
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
        _ if word.starts_with("pg_temp") => (effects.makes_objects, effects.temporary) = (true, true),
        _ if word.starts_with("dblink") || word.starts_with("pg_replication_origin_") => {
            effects.pin_for(Pin::Opaque);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::budget::MAX_SETTINGS;
    use super::*;
    use crate::bearing::{Bearing, Customs};

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
    fn a_default_is_told_from_a_value_in_the_order_in_which_they_are_said() {
        use SettingChange::{AllDefault, Default, Set};
        for (text, expected) in [
            (
                "SET datestyle TO iso; RESET work_mem",
                vec![Set("datestyle".into()), Default("work_mem".into())],
            ),
            ("RESET ALL; SET TIME ZONE 'UTC'", vec![AllDefault, Set("timezone".into())]),
            ("RESET ALL; SELECT set_config('a.b', 'c', false)", vec![AllDefault, Set("a.b".into())]),
            ("SELECT set_config('a.b', 'c', false); RESET ALL", vec![Set("a.b".into()), AllDefault]),
            ("SET TIME ZONE DEFAULT", vec![Default("timezone".into())]),
            (
                "SET TIME ZONE LOCAL; SET TIME ZONE INTERVAL '1' HOUR",
                vec![Default("timezone".into()), Set("timezone".into())],
            ),
            ("SET SESSION x.Y = DEFAULT", vec![Default("x.y".into())]),
            ("SET NAMES 'UTF8'; DISCARD ALL", vec![Set("client_encoding".into()), AllDefault]),
            (
                "RESET TIME ZONE; SET LOCAL TIME ZONE 'UTC'",
                vec![Default("timezone".into()), Set("timezone".into())],
            ),
            (
                "SELECT set_config('DateStyle', NULL, false), set_config('a.b', 'null', true)",
                vec![Default("datestyle".into()), Set("a.b".into())],
            ),
            ("DO $$ BEGIN RESET datestyle; END $$", vec![Default("datestyle".into())]),
        ] {
            assert_eq!(of(text).changes, expected, "{text}");
        }
        assert!(!of("SET application_name TO x").matter() && of("SET LOCAL datestyle TO iso").matter());
    }

    /// From then on, to the end of the transaction, statements may mean something else than the session's settings say.
    #[test]
    fn settings_that_are_set_for_however_long_mix_what_statements_mean() {
        for (text, expected) in [
            ("SET LOCAL TIME ZONE 'UTC'", Bearing::Constants),
            ("SELECT set_config('datestyle', 'iso', true)", Bearing::Constants),
            ("SELECT set_config($1, $2, true)", Bearing::Constants),
            ("RESET ALL", Bearing::Constants),
            ("SET LOCAL search_path = a", Bearing::Plan),
            ("SET LOCAL ROLE bob", Bearing::Plan),
            ("RESET work_mem", Bearing::Plan),
            ("SET LOCAL statement_timeout = 5", Bearing::None),
            ("SET app.tenant = 5", Bearing::None),
            ("SELECT 1", Bearing::None),
        ] {
            assert_eq!(of(text).mixes(Customs::Unread), expected, "{text}");
        }
        assert_eq!(of("SET LOCAL app.tenant = 5").mixes(Customs::Read), Bearing::Constants);
    }

    #[test]
    fn a_name_that_is_put_together_is_not_known() {
        for text in [
            "SELECT set_config('tenant' || '.id', '5', false)",
            "SELECT set_config('my'\n'.x', '5', false)",
            "SELECT set_config(lower('my.x'), '5', false)",
            "SELECT set_config($1, '5', false)",
        ] {
            assert_eq!(of(text).pin, Some(Pin::Setting), "{text}");
        }
    }

    #[test]
    fn a_text_that_a_function_runs_is_read_and_what_else_it_may_do_is_asked_for() {
        // One with escapes is not read: it is asked for everything.
        for (text, settings, pin) in [
            (
                "SELECT query_to_xml($$SELECT set_config('a.b', 'c', false)$$, true, true, '')",
                &["a.b"][..],
                None,
            ),
            (
                "SELECT xmlelement(name x, QUERY_TO_XML('SET LOCAL x = 1; SELECT setseed(1)', true, true, ''))",
                &[],
                Some(Pin::Opaque),
            ),
            (
                "SELECT * FROM ts_stat('SELECT set_config(''search_path'', ''x'', false)::tsvector')",
                &[],
                None,
            ),
            ("SELECT ts_rewrite('a'::tsquery, 'SELECT 1')", &[], None),
            ("SELECT schema_to_xml('s', true, true, ''), database_to_xml(true, true, '')", &[], None),
            ("SELECT table_to_xml('some_view', true, true, '')", &[], None),
        ] {
            let effects = of(text);
            assert_eq!(
                (effects.asks_all, &effects.settings[..], effects.pin),
                (true, &settings.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()[..], pin),
                "{text}"
            );
        }
        assert!(!of("SELECT query_text, table_name, schema_name, database FROM ts_config").asks_all);
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
            ("SELECT set_config('a.B'::text, 'c', false)", "a.b"),
            ("SET session.x = 5", "session.x"),
            ("SET LOCAL.x = 5", "local.x"),
            ("SET SESSION local.x TO 5", "local.x"),
            ("SET transaction.x TO 5; SET x.y = 1", "transaction.x"),
            ("RESET session.x", "session.x"),
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
    fn who_the_sessions_user_is_is_reported_and_the_role_is_asked_for() {
        for text in [
            "SET SESSION AUTHORIZATION bob",
            "SET SESSION AUTHORIZATION DEFAULT",
            "SET LOCAL SESSION AUTHORIZATION bob",
            "RESET SESSION AUTHORIZATION",
            "SET session_authorization = bob",
            "RESET session_authorization",
            "SELECT set_config('session_authorization', 'bob', false)",
            "DO $$ BEGIN SET SESSION AUTHORIZATION bob; END $$",
        ] {
            let effects = of(text);
            assert!(effects.authorizes && effects.pin.is_none(), "{text}: {effects:?}");
            assert!(effects.settings.contains(&"role".to_owned()), "{text}: {effects:?}");
            assert_eq!(effects.mixes(Customs::Unread), Bearing::Constants, "{text}");
        }
    }

    #[test]
    fn what_can_neither_be_carried_nor_asked_for_pins() {
        for (text, expected) in [
            ("SELECT set_config(name, 'c', false) FROM names", Pin::Setting),
            ("SELECT set_config(E'a\\x2eb', 'c', false)", Pin::Setting),
            ("SELECT set_config('a''b', 'c', false)", Pin::Setting),
            ("SELECT set_config($1, $2, false)", Pin::Setting),
            ("SELECT set_config('my.é', 'c', false)", Pin::Setting),
            ("SET my.é = 1", Pin::Setting),
            ("RESET my.é", Pin::Setting),
            ("SET seed TO 0.5", Pin::Opaque),
            ("SELECT set_config('seed', '0.5', false)", Pin::Opaque),
            ("DO E'begin end'", Pin::Opaque),
            ("DO $$ begin perform setseed(0.5); end $$", Pin::Opaque),
            ("DO LANGUAGE plperl $$ $_SHARED{x} = 1 $$", Pin::Opaque),
            ("DO $$ begin execute 'set ' || name || ' = 1'; end $$", Pin::Setting),
            ("DO $$ begin execute format('set my.%I = 1', name); end $$", Pin::Setting),
            ("LOAD 'auto_explain'", Pin::Opaque),
            ("SELECT U&\"\\0073et_config\"('a', 'b', false)", Pin::Opaque),
            ("SELECT dblink_connect('x')", Pin::Opaque),
            ("UPDATE pg_settings SET setting = 'x' WHERE name = 'search_path'", Pin::Setting),
        ] {
            assert_eq!(of(text).pin, Some(expected), "{text}");
        }
    }

    #[test]
    fn a_block_does_what_its_statements_do() {
        for harmless in [
            "DO $$ begin end $$",
            "DO $$ declare set int; begin update t set a = 1; insert into t select 1; end $$",
            "DO $$ begin perform set_config('my.x', f(a, b), true); set local work_mem = '1MB'; end $$",
            "DO $$ begin execute 'insert into t values ($1)' using 1; end $$ language plpgsql",
        ] {
            let effects = of(harmless);
            let changes = effects.changes.clone();
            assert_eq!(effects, Effects { foreseen: true, changes, ..Effects::default() }, "{harmless}");
        }
        for (text, setting) in [
            ("DO $$ begin if a then set work_mem = 1; end if; end $$", "work_mem"),
            ("DO language plpgsql 'begin perform set_config(''my.x'', a, false); end'", ""),
            ("DO $_$ begin execute 'set search_path = a'; end $_$", "search_path"),
            ("DO $$ begin execute 'set my.x = ' || quote_literal(a); end $$", "my.x"),
            ("DO $$ begin loop perform set_config('my.x', (a), b); end loop; end $$", "my.x"),
        ] {
            let effects = of(text);
            assert_eq!(effects.settings.join(","), setting, "{text}");
            assert_eq!(effects.pin.is_some(), setting.is_empty(), "{text}");
        }
        assert!(of("DO $$ begin create temp table t (a int); end $$").makes_objects);
        assert!(of("DO $$ begin perform pg_notify('a', 'b'); end $$").notifies);
        for dynamic in ["execute a", "execute 'select ' || a", "return query execute format('select %s', a)"]
        {
            assert!(of(&format!("DO $$ begin {dynamic}; end $$")).asks_all, "{dynamic}");
        }
        assert!(of("CALL p()").calls && of("CREATE OR REPLACE FUNCTION f()").defines);
        assert!(!of("CREATE TABLE function_of (a int)").defines && of("CREATE TABLE t (a int)").relates);
        assert!(of("DO $$ begin create function f() returns int language sql as 'select 1'; end $$").defines);
    }

    #[test]
    fn names_of_statements_are_told_in_their_order() {
        use NameUse::{Deallocates, Executes, Prepares};
        for (text, expected) in [
            ("DEALLOCATE \"My Stmt\"", &[(Deallocates, "My Stmt")][..]),
            ("SAVEPOINT s;DEALLOCATE \"P1\";RELEASE s", &[(Deallocates, "P1")]),
            ("deallocate prepare A; EXECUTE b(1)", &[(Deallocates, "a"), (Executes, "b")]),
            ("EXPLAIN (ANALYZE) EXECUTE x", &[(Executes, "x")]),
            ("CREATE TEMP TABLE t AS EXECUTE x", &[(Executes, "x")]),
            ("PREPARE x AS SELECT 1", &[(Prepares, "x")]),
            ("DO $$ begin execute 'deallocate x'; end $$", &[(Executes, "x")]),
            ("DEALLOCATE ALL; PREPARE TRANSACTION 'x'", &[]),
        ] {
            let names = of(text).names;
            let names: Vec<_> =
                names.iter().map(|(what, name)| (*what, str::from_utf8(name).unwrap())).collect();
            assert_eq!(names, expected, "{text}");
            assert_eq!(of(text).pin, None, "{text}");
        }
        assert!(of("SELECT name FROM pg_prepared_statements").lists_names);
    }

    #[test]
    fn resets_and_deallocations_are_told() {
        assert!(of("DISCARD ALL").deallocates_all && of("DISCARD ALL").resets_all);
        assert!(of("deallocate prepare all;").deallocates_all);
        assert_eq!(of("RESET pg_x.y").settings, ["pg_x.y"]);
        assert!(of("reset all").resets_all);
        assert_eq!(of("show PGUSHER.route ;").shows.as_deref(), Some("route"));
        assert_eq!(of("show pgusher.route; select 1").shows, None);
    }

    #[test]
    fn what_would_set_one_of_ours_is_told_and_what_another_does_with_it_is_not() {
        for text in [
            "SET pgusher.environment = 'prod'",
            "set session PgUsher.Environment to prod",
            "SET LOCAL pgusher.environment = 'prod'",
            "SET \"pgusher\".\"environment\" = 'prod'",
            "SELECT 1; /* x */ SET pgusher . environment = DEFAULT",
            "RESET pgusher.environment",
            "SELECT set_config('pgusher.environment', 'prod', false)",
            "SELECT pg_catalog.set_config('PGUSHER.environment', $1, true)",
            "DO $$ begin perform set_config('pgusher.environment', 'prod', false); end $$",
        ] {
            assert_eq!(of(text).sets_ours.as_deref(), Some("pgusher.environment"), "{text}");
        }
        for text in [
            "SHOW pgusher.environment",
            "SELECT current_setting('pgusher.environment')",
            "SELECT 'SET pgusher.environment = 1', $$ set_config('pgusher.environment','',true) $$",
            "SET pgushers.environment = 'prod'",
            "SET my.pgusher = 1",
            "RESET ALL",
            "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ begin perform set_config('pgusher.x', '', true); end $$",
        ] {
            assert_eq!(of(text).sets_ours, None, "{text}");
        }
        let source = b"begin perform set_config('pgusher.x', '', true); end";
        assert_eq!(of_function(b"f", b"plpgsql", source).sets_ours, None);
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
    fn texts_within_texts_are_read_as_deep_as_people_write_and_then_opaque() {
        let nested = |depth: usize| {
            (0..depth)
                .fold("begin set work_mem = 1; end".to_owned(), |text, i| format!("do $t{i}$ {text} $t{i}$"))
        };
        for depth in 1..4 {
            let effects = of(&nested(depth));
            assert_eq!((effects.pin, effects.settings.len()), (None, 1), "{depth}");
        }
        for depth in [9, 100, 3_000] {
            assert_eq!(of(&nested(depth)).pin, Some(Pin::Opaque), "{depth}");
        }
        let unterminated: String = (0..8_000).map(|i| format!("DO $x{i:x}$")).collect();
        assert_eq!(of(&unterminated[..MAX_LEXED.min(unterminated.len())]).pin, Some(Pin::Opaque));
    }

    /// Of each text, what is read is a fixed multiple of its length: counted, not timed.
    #[test]
    fn no_text_is_read_more_often_than_a_few_times() {
        let shapes: [fn(usize) -> String; 9] = [
            |n| format!("DO $$ {} $$", "begin set_config( ".repeat(n / 18)),
            |n| format!("DO $$ {} $$", "execute ".repeat(n / 8)),
            |n| format!("DO $$ {} $$", "begin execute 'begin' ".repeat(n / 22)),
            |n| format!("DO $$ {} $$", "do execute $a$ do execute $a$ ".repeat(n / 30)),
            |n| "set a=1;".repeat(n / 8),
            |n| "create function f as 'select 1' ".repeat(n / 32),
            |n| (0..n / 12).fold(String::new(), |text, i| format!("do ${i:x}x${text}")),
            |n| "into or replace ".repeat(n / 16),
            |n| "select '\n'".repeat(n / 10),
        ];
        for (i, shape) in shapes.iter().enumerate() {
            for size in [1 << 10, 8 << 10, (64 << 10) - 64] {
                let text = shape(size);
                let read = body::bytes_read(text.as_bytes());
                assert!(read <= 4 * text.len(), "shape {i}: {read} of {}", text.len());
                let _ = of(&text);
            }
        }
    }

    #[test]
    fn more_settings_than_can_be_told_apart_pin() {
        let text: String = (0..10_000).map(|i| format!("set a{i}=1;")).collect();
        let effects = of(&text[..MAX_LEXED]);
        assert_eq!((effects.pin, effects.settings.len()), (Some(Pin::Setting), MAX_SETTINGS));
    }

    #[test]
    fn what_changes_how_texts_are_read_is_said() {
        for text in [
            "set standard_conforming_strings = off",
            "set local standard_conforming_strings to off",
            "SET NAMES 'SJIS'",
            "set session client_encoding = 'SJIS'",
            "reset client_encoding",
            "reset all",
            "discard all",
            "select set_config('Client_Encoding', 'SJIS', true)",
            "select set_config($1, $2, true)",
            "do $$ begin execute x; end $$",
            "do $$ begin set standard_conforming_strings = off; end $$",
            "call p()",
        ] {
            assert!(of(text).may_reread(), "{text}");
        }
        for text in
            ["set work_mem = 1", "set datestyle = iso", "reset work_mem", "listen x", "set local a.b = 1"]
        {
            assert!(!of(text).may_reread(), "{text}");
        }
    }

    #[test]
    fn texts_without_strings_read_alike_in_every_encoding() {
        for text in ["set work_mem = 1", "show pgusher.pin", "select $$x$$, \"a\""] {
            assert!(reads_alike(text.as_bytes()), "{text}");
        }
        for text in ["select 'x'", "select \\", "set my.é = 1"] {
            assert!(!reads_alike(text.as_bytes()), "{text}");
        }
    }

    /// Where PostgreSQL ends a comment and goes on with a string.
    #[test]
    fn comments_and_strings_end_where_postgresql_ends_them() {
        for text in [
            "select 1 --\r, set_config('a.b','x',false)",
            "select 1 +--'\r set_config('a.b','x',false)",
            "select E'a'\n'\\'', set_config('a.b','x',false)::text, ''",
            "select e'a' -- c\n  -- d\r\x0c'\\'', set_config('a.b','x',false)::text, ''",
            "select 'a'\n'''', set_config('a.b','x',false)",
        ] {
            assert_eq!(of(text).settings, ["a.b"], "{text:?}");
        }
        for text in ["select E'a'\n'\\', set_config('", "select 'a'\n'set_config('"] {
            assert_eq!(of(text), Effects::default(), "{text:?}");
        }
        assert!(of("select 1into temp t").makes_objects);
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
