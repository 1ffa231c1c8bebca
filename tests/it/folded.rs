//! What PostgreSQL computes when it parses or plans a statement is in the statement from then on: sessions that share one must not
//! share that where their settings differ. The texts are made from the server's own catalog: literals of each of its types, as its
//! input and output functions read and write them, and its functions of one argument that can be folded.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::house::{Pgusher, pair, warehouse};
use super::wire::{Message, Raw, bind, execute, parse, query, sync};

/// Settings that are in plans as constants (`crates/relay/src/bearing.rs`), with values that PostgreSQL takes everywhere.
const SETTINGS: [(&str, &[&str]); 13] = [
    ("TimeZone", &["UTC", "Asia/Tokyo", "America/New_York"]),
    ("DateStyle", &["ISO, MDY", "SQL, DMY", "German, YMD", "Postgres, MDY"]),
    ("IntervalStyle", &["postgres", "iso_8601", "sql_standard", "postgres_verbose"]),
    ("standard_conforming_strings", &["on", "off"]),
    ("bytea_output", &["hex", "escape"]),
    ("extra_float_digits", &["1", "0", "-4"]),
    ("xmloption", &["content", "document"]),
    ("xmlbinary", &["base64", "hex"]),
    ("array_nulls", &["on", "off"]),
    ("quote_all_identifiers", &["off", "on"]),
    ("default_text_search_config", &["pg_catalog.simple", "pg_catalog.english"]),
    ("timezone_abbreviations", &["Default", "Australia"]),
    ("transform_null_equals", &["off", "on"]),
];

/// Literals, of which each type takes some.
const LITERALS: [&str; 26] = [
    "2024-02-03 04:05:06",
    "2024-07-03 04:05:06+02",
    "2024-07-03 04:05 EST",
    "01/02/2003",
    "01/02/03 10:00",
    "10:11:12",
    "10:11:12 SAT",
    "1 day 2 hours",
    "P1DT2H",
    "-1 12:00:00",
    "1",
    "1.1",
    "0.1",
    "1e-7",
    "t",
    "(1,2)",
    "(1.1,2.2),(3.3,4.4)",
    "{1,2}",
    "{1,NULL}",
    "[1.1,2.2]",
    "<a>b</a>",
    "a<b/>c",
    "\\x41ff",
    "pg_class",
    "the cats ran",
    "10.1.2.3/24",
];

/// Texts that are none of a type's alone.
const MORE: [&str; 12] = [
    "SELECT 'a\\\\b'",
    "SELECT length('a\\\\n')",
    "SELECT to_tsvector('the cats ran')",
    "SELECT to_tsquery('cats')",
    "SELECT quote_ident('plain')",
    "SELECT pg_get_viewdef('pg_catalog.pg_user'::regclass) LIKE '%\"pg_shadow\"%'",
    "SELECT xmlelement(name a, '\\x41ff'::bytea)::text",
    "SELECT NULL = NULL, 1 = NULL",
    "SELECT count(*) FROM (VALUES (NULL::int), (1)) AS v (a) WHERE a = NULL",
    "SELECT make_timestamptz(2024, 2, 3, 4, 5, 6)::text",
    "SELECT date_trunc('day', '2024-02-03 04:05:06+00'::timestamptz)::text",
    "SELECT extract(hour FROM '2024-02-03 04:05:06+00'::timestamptz)",
];

fn direct(settings: &[(&str, &str)]) -> Raw {
    let address: SocketAddr = ([127, 0, 0, 1], pair().dev.port).into();
    let pairs = [&[("user", "app"), ("database", "dev")], settings].concat();
    Raw::login_with(address, 0x0003_0000, &pairs)
}

/// What PostgreSQL's own catalog makes of the literals: those that it takes, in whatever settings.
fn texts() -> Vec<String> {
    let mut raw = direct(&[]);
    let rows = |raw: &mut Raw, sql: &str| -> Vec<Vec<String>> {
        let answer = raw.ask(&query(sql));
        assert!(!answer.iter().any(|m| m.tag == 'E'), "{answer:?}");
        answer.iter().filter(|m| m.tag == 'D').map(Message::columns).collect()
    };
    let types = rows(
        &mut raw,
        "SELECT format_type(oid, NULL) FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace \
         AND typtype IN ('b', 'r') AND typname !~ '^(_?pg_|_?reg|any|aclitem|_aclitem|_|txid_snapshot|cid|xid|tid|gtsvector|refcursor)' \
         ORDER BY oid",
    );
    let mut texts: Vec<String> = MORE.map(str::to_owned).to_vec();
    for name in types.iter().map(|row| &row[0]) {
        texts.extend(LITERALS.iter().map(|literal| format!("SELECT '{literal}'::{name}::text")));
        texts.extend(["{1,NULL}", "{2024-02-03 04:05:06}"].map(|l| format!("SELECT '{l}'::{name}[]::text")));
    }
    // Functions of one argument of a type whose value depends on settings, or can be written in several ways.
    for (argument, literal) in [
        ("timestamptz", "2024-07-03 04:05:06+02"),
        ("timestamp", "01/02/2003 04:05"),
        ("date", "01/02/2003"),
        ("interval", "1 day 2:03:04.5"),
        ("float8", "0.1"),
        ("float4", "1.1"),
        ("bytea", "\\x41ff"),
        ("text", "the cats ran"),
    ] {
        let functions = rows(
            &mut raw,
            &format!(
                "SELECT DISTINCT quote_ident(proname) FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace \
                 AND pronargs = 1 AND proargtypes[0] = '{argument}'::regtype AND provolatile IN ('i', 's') AND prokind = 'f' \
                 AND prorettype NOT IN ('internal'::regtype, 'void'::regtype, 'cstring'::regtype) AND NOT proretset \
                 AND proname !~ '^(pg_|has_|age|query_|table_|schema_|database_|cursor_|to_reg|row_sec|current_setting|currtid)' \
                 ORDER BY 1"
            ),
        );
        texts.extend(functions.iter().map(|row| format!("SELECT {}('{literal}'::{argument})::text", row[0])));
    }
    // What fails under the defaults says nothing.
    texts.retain(|text| !raw.ask(&query(text)).iter().any(|m| m.tag == 'E'));
    texts
}

/// Whether statements are prepared before they are run.
#[derive(Clone, Copy, PartialEq)]
enum Round {
    First,
    Again,
}

/// What each is answered, prepared under a name and run, or run again, in one write.
fn answers(raw: &mut Raw, texts: &[String], round: Round) -> Vec<String> {
    let mut bytes = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let name = format!("s{number}");
        if round == Round::First {
            bytes.extend([parse(&name, text), sync()].concat());
        }
        bytes.extend([bind("", &name, &[]), execute(), sync()].concat());
    }
    let mut sender = raw.stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || std::io::Write::write_all(&mut sender, &bytes).unwrap());
        texts
            .iter()
            .map(|_| {
                let mut all = if round == Round::First { raw.until_ready() } else { Vec::new() };
                all.extend(raw.until_ready());
                let told = |m: &Message| match m.tag {
                    'D' => Some(m.columns().join("|")),
                    'E' => Some(format!("{} {}", m.field('C'), m.field('M'))),
                    _ => None,
                };
                all.iter().filter_map(told).collect::<Vec<_>>().join(";")
            })
            .collect()
    })
}

#[test]
fn what_is_folded_under_one_sessions_settings_is_no_others() {
    let texts = texts();
    assert!(texts.len() >= 200, "{} texts", texts.len());
    println!(
        "{} texts of the server's types and functions; prepared on one connection by a session of each value",
        texts.len()
    );
    println!("{:30} {:>7} {:>18} {:>18}", "setting", "values", "texts that differ", "differences");
    for (name, values) in SETTINGS {
        let (expected, again): (Vec<_>, Vec<_>) = values
            .iter()
            .map(|value| {
                let mut raw = direct(&[(name, value)]);
                (answers(&mut raw, &texts, Round::First), answers(&mut raw, &texts, Round::Again))
            })
            .unzip();
        for (i, one) in expected.iter().enumerate() {
            for (j, other) in expected.iter().enumerate().skip(i + 1) {
                assert_ne!(one, other, "{name}: {} and {} tell in no text", values[i], values[j]);
            }
        }
        let differ: BTreeSet<usize> = (0..texts.len())
            .filter(|at| expected.iter().any(|answers| answers[*at] != expected[0][*at]))
            .collect();
        // Where backslashes escape in every string, what looks suspicious keeps its connection.
        let pool_size = if name == "standard_conforming_strings" { 2 } else { 1 };
        let server = format!("default_pool_size = {pool_size}\nmax_prepared_statements = 5000");
        let pgusher = Pgusher::start(&warehouse(&server, "", ""));
        let mut sessions: Vec<_> = values
            .iter()
            .map(|value| {
                let pairs = [("user", "raw"), ("database", "warehouse"), (name, *value)];
                Raw::login_with(pgusher.address(), 0x0003_0000, &pairs)
            })
            .collect();
        let mut differences = 0;
        for (round, expected) in [(Round::First, &expected), (Round::Again, &again), (Round::Again, &again)] {
            for ((raw, value), expected) in sessions.iter_mut().zip(values).zip(expected) {
                let got = answers(raw, &texts, round);
                for (text, (got, expected)) in texts.iter().zip(got.iter().zip(expected)) {
                    if got != expected {
                        println!("{name} = {value}: {text}: {got} and not {expected}");
                        differences += 1;
                    }
                }
            }
        }
        println!("{name:30} {:>7} {:>18} {differences:>18}", values.len(), differ.len());
        assert_eq!(differences, 0, "{name}");
    }
}
