//! What a client says at startup is a setting of its session, or one of the packet's own words, and never becomes a part of
//! pgusher's login to an upstream.

use std::net::SocketAddr;

use super::differential::{normal, shown};
use super::house::{Pgusher, pair, warehouse};
use super::wire::{Message, Raw, bind, execute, parse, query, startup, sync};

const VERSION: u32 = 0x0003_0000;

/// Names that have a meaning in the packet, with values that would lead elsewhere.
const OWN_WORDS: [(&str, &str); 14] = [
    ("user", "postgres"),
    ("User", "postgres"),
    ("database", "postgres"),
    ("DATABASE", "postgres"),
    ("replication", "true"),
    ("replication", "database"),
    ("options", "-c\\ search_path=elsewhere"),
    ("options", "--database=postgres"),
    ("_pq_.x", "1"),
    ("_pq_", "1"),
    ("", "x"),
    ("-", "x"),
    ("user=postgres -c database", "postgres"),
    ("no_such_setting", "1"),
];

/// Every spelling of a setting within `options`.
fn spellings(name: &str, value: &str) -> Vec<String> {
    let escaped: String = name.chars().map(|c| format!("\\{c}")).collect();
    vec![
        format!("-c {name}={value}"),
        format!("-c{name}={value}"),
        format!("--{name}={value}"),
        format!("  -c\t{name}={value}\n"),
        format!("-c geqo=off -c {name}={value} --enable_sort=on"),
        format!("-c {escaped}={value}"),
        format!("-c geqo=off\\ -c\\ {name}={value}"),
    ]
}

fn server() -> Pgusher {
    let users = "[users.sess]\nauth_type = \"trust\"\npool_mode = \"session\"\n\
        [users.ops]\nauth_type = \"trust\"\nconsole = \"admin\"\n";
    Pgusher::start(&format!("{}{users}", warehouse("", "", "")))
}

/// The SQLSTATE with which a login was refused, or the connection.
fn log_in(address: SocketAddr, pairs: &[(&str, &str)]) -> Result<Raw, String> {
    let mut raw = Raw::connect(address);
    raw.send(&startup(VERSION, pairs));
    let answer = raw.until_ready();
    match answer.iter().find(|m| m.tag == 'E') {
        Some(error) => Err(error.field('C')),
        None if answer.last().map(|m| m.tag) == Some('Z') => Ok(raw),
        None => Err("closed".into()),
    }
}

const WHERE: &str = "SELECT concat_ws(' ', current_database(), session_user, current_user, name) FROM whoami";

/// Not a walsender: `IDENTIFY_SYSTEM` is no SQL.
fn assert_is_ordinary(raw: &mut Raw, what: &str) {
    let answer: Vec<Message> = raw.ask(&query("IDENTIFY_SYSTEM"));
    assert_eq!(answer[0].field('C'), "42601", "{what}: {answer:?}");
}

#[test]
fn no_word_of_the_packet_among_the_settings_becomes_a_part_of_our_login() {
    let pgusher = server();
    let direct = (std::net::Ipv4Addr::LOCALHOST, pair().dev.port).into();
    let (mut logged_in, mut refused) = (0, 0);
    for (name, value) in OWN_WORDS {
        for options in spellings(name, value) {
            let asked = [("database", "dev"), ("user", "app"), ("options", options.as_str())];
            let expected = log_in(direct, &asked).map(|mut raw| raw.value(WHERE));
            for user in ["raw", "sess"] {
                let what = format!("{user} {options:?}");
                let asked = [("database", "warehouse"), ("user", user), ("options", options.as_str())];
                match (log_in(pgusher.address(), &asked), &expected) {
                    (Ok(mut raw), Ok(expected)) => {
                        logged_in += 1;
                        assert_eq!(&raw.value(WHERE), expected, "{what}");
                        assert_eq!(raw.value(WHERE), "dev app app dev", "{what}");
                        assert_eq!(raw.value("SHOW pgusher.user"), user, "{what}");
                        assert_is_ordinary(&mut raw, &what);
                    }
                    (Err(state), Err(expected)) => {
                        refused += 1;
                        assert_eq!(&state, expected, "{what}");
                    }
                    (answer, expected) => panic!("{what}: {:?}, directly {expected:?}", answer.map(|_| "in")),
                }
            }
        }
    }
    assert!(logged_in >= 10 && refused > 100, "{logged_in} {refused}");
    // Whoever is next has none of it.
    for user in ["raw", "sess"] {
        assert_eq!(Raw::login(pgusher.address(), user).value(WHERE), "dev app app dev");
    }
}

#[test]
fn no_setting_of_a_libpq_client_changes_the_login_either() {
    let pgusher = server();
    for user in ["raw", "sess"] {
        for (name, value) in OWN_WORDS.iter().filter(|(name, _)| !name.is_empty() && *name != "_pq_.x") {
            let options = format!("-c {name}={value}");
            let answer = pgusher.psql_with(user, "", &[("PGOPTIONS", options.as_str())], &[WHERE]);
            let error = answer.expect_err(&options);
            let words =
                ["unrecognized configuration parameter", "invalid configuration parameter", "requires"];
            assert!(words.iter().any(|word| error.contains(word)), "{options}: {error}");
        }
        let there =
            pgusher.psql_with(user, "", &[("PGOPTIONS", "-c _pq_.x=1 -c geqo=off")], &[WHERE, "SHOW geqo"]);
        assert_eq!(there.unwrap(), "dev app app dev\noff");
    }
}

#[test]
fn what_is_asked_of_the_console_leads_nowhere_else() {
    let pgusher = server();
    for (name, value) in OWN_WORDS.iter().filter(|(name, _)| !name.is_empty()) {
        let options = format!("-c {name}={value}");
        let pairs = [("user", "ops"), ("database", "pgusher"), ("options", options.as_str())];
        let Ok(mut console) = log_in(pgusher.address(), &pairs) else { continue };
        assert_eq!(console.value("SHOW VERSION").split(' ').next(), Some("pgusher"), "{options}");
        let pairs = [("user", "raw"), ("database", "pgusher"), ("options", options.as_str())];
        assert!(log_in(pgusher.address(), &pairs).is_err(), "{options}");
    }
}

#[test]
fn settings_arrive_as_they_were_said_and_win_over_the_connections_own() {
    let own = "include_schemas = [\"public\", \"a b\"]\nquery_timeout = \"33s\"";
    let users = "[users.sess]\nauth_type = \"trust\"\npool_mode = \"session\"\n";
    let pgusher = Pgusher::start(&format!("{}{users}", warehouse("", own, "")));
    let odd = " a\\b\t'\"=-c é\u{a0}😀 ";
    for user in ["raw", "sess"] {
        let mut plain = Raw::login(pgusher.address(), user);
        assert_eq!(plain.value("SHOW search_path"), "\"public\", \"a b\"");
        assert_eq!(plain.value("SHOW statement_timeout"), "33s");
        let pairs = [
            ("user", user),
            ("database", "warehouse"),
            ("search_path", "pg_catalog, public"),
            ("my.odd", odd),
            ("application_name", "a b"),
        ];
        let mut raw = Raw::login_with(pgusher.address(), VERSION, &pairs);
        assert_eq!(raw.value("SHOW my.odd"), odd, "{user}");
        assert_eq!(raw.value("SHOW search_path"), "pg_catalog, public", "{user}");
        assert_eq!(raw.value("SHOW application_name"), "a b", "{user}");
    }
}

#[test]
fn settings_that_are_too_long_for_an_upstreams_packet_are_refused() {
    let pgusher = server();
    let long = " ".repeat(6000);
    let pairs = [("user", "sess"), ("database", "warehouse"), ("my.long", long.as_str())];
    assert_eq!(log_in(pgusher.address(), &pairs).err().as_deref(), Some("54000"));
}

#[test]
fn a_request_that_is_not_known_is_refused_with_what_to_write() {
    let pgusher = server();
    for (user, pair) in [
        ("raw", ("options", "-c pgusher.env=prod")),
        ("raw", ("pgusher.environmnt", "prod")),
        ("sess", ("options", "--PGUSHER.Environments=prod")),
    ] {
        let mut raw = Raw::connect(pgusher.address());
        raw.send(&startup(VERSION, &[("user", user), ("database", "warehouse"), pair]));
        let error = raw.until_ready().pop().unwrap();
        assert_eq!((error.tag, error.field('C').as_str()), ('E', "42704"), "{pair:?}");
        assert!(error.field('H').contains("pgusher.environment"), "{pair:?}");
    }
}

/// What only a login decides cannot be set afterwards, and nobody is left in the belief that it was.
#[test]
fn setting_one_of_our_names_in_a_session_is_refused_with_what_to_do() {
    let pgusher = server();
    for user in ["raw", "sess"] {
        let pairs = [("user", user), ("database", "warehouse")];
        let mut raw = log_in(pgusher.address(), &pairs).unwrap();
        let login = "parameter \"pgusher.environment\" cannot be changed after connection start";
        let unknown = "unrecognized configuration parameter \"pgusher.enviroment\"";
        for (sql, code, message) in [
            ("SET pgusher.environment = 'prod'", "55P02", login),
            ("set local PgUsher.Environment to 'prod'", "55P02", login),
            ("RESET pgusher.environment", "55P02", login),
            ("SELECT set_config('pgusher.environment', 'prod', false)", "55P02", login),
            ("SET pgusher.enviroment = 'prod'", "42704", unknown),
        ] {
            let is_refused = |answer: &[Message]| {
                let error =
                    answer.iter().find(|m| m.tag == 'E').unwrap_or_else(|| panic!("{sql}: {answer:?}"));
                assert_eq!((error.field('C').as_str(), error.field('M').as_str()), (code, message), "{sql}");
                assert!(error.field('H').contains("options=-c pgusher.environment=NAME"), "{error:?}");
                assert!(!answer.iter().any(|m| m.tag == 'C'), "{sql}: {answer:?}");
            };
            is_refused(&raw.ask(&query(sql)));
            is_refused(&raw.ask(&[parse("", sql), bind("", "", &[]), execute(), sync()].concat()));
            is_refused(&raw.ask(&[parse("named", sql), bind("", "named", &[]), execute(), sync()].concat()));
            assert_eq!(raw.value("SHOW pgusher.environment"), "dev", "{sql}");
            // A transaction in which it was tried has failed, and then says so.
            assert!(!raw.ask(&query("BEGIN")).iter().any(|m| m.tag == 'E'));
            is_refused(&raw.ask(&query(&format!("SELECT 1; {sql}"))));
            assert!(raw.value(sql).starts_with("25P02"), "{sql}");
            assert_eq!(raw.tags(&query("ROLLBACK")), "CZ");
        }
        if user == "raw" {
            assert_eq!(raw.value("SHOW pgusher.pin"), "");
        }
        assert_eq!(raw.value("SET my.environment = 'x'; SHOW my.environment"), "x");
    }
}

/// PostgreSQL says that it cuts a name; in session mode, whatever else it says at a login.
#[test]
fn what_the_upstream_says_at_a_login_is_told() {
    let long = "x".repeat(70);
    let told = |address: SocketAddr, user: &str, database: &str| {
        let mut raw = Raw::connect(address);
        let pairs = [("user", user), ("database", database), ("application_name", &long)];
        raw.send(&startup(VERSION, &pairs));
        let answer = raw.until_ready();
        assert_eq!(answer.last().map(|message| message.tag), Some('Z'), "{answer:?}");
        answer.into_iter().filter(|m| m.tag == 'N').map(normal).collect::<Vec<_>>()
    };
    let direct: SocketAddr = ([127, 0, 0, 1], pair().dev.port).into();
    let expected = shown(&told(direct, "app", "dev"));
    assert!(expected.len() == 1 && expected[0].contains("will be truncated"), "{expected:?}");
    let pgusher = Pgusher::start(
        &(warehouse("", "", "") + "[users.keeps]\nauth_type = \"trust\"\npool_mode = \"session\"\n"),
    );
    for user in ["raw", "raw", "keeps"] {
        assert_eq!(shown(&told(pgusher.address(), user, "warehouse")), expected, "{user}");
    }
}
