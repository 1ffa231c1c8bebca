//! Prepared statements in transaction mode: whose they are, what they mean, and when they are prepared again.

use std::net::SocketAddr;

use super::differential::{normal, shown};
use super::house::{Pgusher, Random, pair, size, warehouse};
use super::relay::one_connection;
use super::state::done;
use super::wire::{
    Message, Raw, bind, close_statement, describe_statement, execute, message, parse, query, sync,
};

fn describe_portal() -> Vec<u8> {
    message('D', b"P\0")
}

fn tags(answer: &[Message]) -> String {
    answer.iter().map(|m| m.tag).collect()
}

fn rows(answer: &[Message]) -> Vec<Vec<String>> {
    answer.iter().filter(|m| m.tag == 'D').map(Message::columns).collect()
}

/// Bound, described and run.
fn described(name: &str) -> Vec<u8> {
    [bind("", name, &[]), describe_portal(), execute(), sync()].concat()
}

/// Bound and run by a client that believes to know the columns.
fn blind(name: &str) -> Vec<u8> {
    [bind("", name, &[]), execute(), sync()].concat()
}

/// Whoever deallocates all and sends more before that is answered has no statement of before.
#[test]
fn what_comes_behind_a_deallocation_of_all_finds_no_names() {
    let pgusher = one_connection();
    let direct = SocketAddr::from(([127, 0, 0, 1], pair().dev.port));
    let all = |sql| [parse("", sql), bind("", "", &[]), execute()].concat();
    let again = || [parse("n", "SELECT 2"), bind("", "n", &[]), execute(), sync()].concat();
    let deallocate = || query("DEALLOCATE n");
    let ways = ["DEALLOCATE ALL", "DISCARD ALL", "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$"].map(|sql| {
        [
            (2, [query(sql), again()].concat()),
            (2, [query(sql), blind("n")].concat()),
            (2, [query(sql), describe_statement("n"), sync()].concat()),
            (2, [query(sql), deallocate()].concat()),
            (2, [all(sql), sync(), again()].concat()),
            (2, [all(sql), sync(), blind("n")].concat()),
            (1, [all(sql), again()].concat()),
            (1, [all(sql), blind("n")].concat()),
            (1, [all(sql), parse("", "DEALLOCATE n"), bind("", "", &[]), execute(), sync()].concat()),
            // Bound in one batch, and executed in another.
            (
                4,
                [
                    query("BEGIN"),
                    [parse("", "DEALLOCATE ALL"), bind("p", "", &[]), sync()].concat(),
                    [message('E', b"p\0\0\0\0\0"), parse("n", "SELECT 3"), sync()].concat(),
                    query("ROLLBACK"),
                ]
                .concat(),
            ),
        ]
    });
    let told = ways.iter().take(2).flatten();
    for (ends, bytes) in told {
        let ask = |address, user, database: &str| {
            let pairs = [("user", user), ("database", database)];
            let mut raw = Raw::login_with(address, 0x0003_0000, &pairs);
            raw.ask(&[parse("n", "SELECT 1"), sync()].concat());
            raw.send(bytes);
            let answers = (0..*ends).flat_map(|_| raw.until_ready()).collect::<Vec<_>>();
            let code =
                |message: &Message| if message.tag == 'E' { message.field('C') } else { String::new() };
            (tags(&answers), rows(&answers), answers.iter().map(code).collect::<String>())
        };
        let (expected, got) = (ask(direct, "app", "dev"), ask(pgusher.address(), "raw", "warehouse"));
        assert_eq!(got, expected, "{}", bytes.escape_ascii());
    }
    // What a block deallocates keeps its name; and however that ends, the session goes on.
    for (ends, bytes) in ways.iter().skip(2).flatten() {
        let mut raw = Raw::login(pgusher.address(), "raw");
        raw.ask(&[parse("n", "SELECT 1"), sync()].concat());
        raw.send(bytes);
        for _ in 0..*ends {
            let last = raw.until_ready().last().map(|message| message.tag);
            assert_eq!(last, Some('Z'), "{}", bytes.escape_ascii());
        }
    }
}

/// Whatever another has deallocated: where it is seen that he may have, and where it is not.
#[test]
fn a_statement_that_its_connection_has_lost_is_prepared_again_unseen() {
    let body = "LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'DEAL' || 'LOCATE ALL'; RETURN 1; END $$";
    pair().dev.sql("dev", &format!("CREATE FUNCTION forget() RETURNS int {body}"));
    let forgets = "SELECT forget()";
    // Where the database is not asked for its functions, it is not seen.
    for (interval, is_seen) in [("60s", true), ("0s", false)] {
        let server = format!("default_pool_size = 1\ncatalog_interval = \"{interval}\"");
        let pgusher = Pgusher::start(&warehouse(&server, "", ""));
        let mut one = Raw::login(pgusher.address(), "raw");
        let mut other = Raw::login(pgusher.address(), "raw");
        one.ask(&[parse("s", "SELECT 'mine'"), sync()].concat());
        for batch in [blind("s"), described("s"), [describe_statement("s"), sync()].concat()] {
            other.value(forgets);
            let answer = one.ask(&batch);
            assert!(!answer.iter().any(|m| m.tag == 'E'), "{answer:?}");
            other.value(forgets);
            let answer = other.ask(&[parse("t", "SELECT 'mine'"), close_statement("t"), sync()].concat());
            assert_eq!(tags(&answer), "13Z", "{answer:?}");
        }
        // With more behind it than is kept, and in a transaction, it hears of it, once; if it was not seen.
        let long = parse("", &format!("SELECT '{}'", "x".repeat(30_000)));
        for begin in [Vec::new(), query("BEGIN")] {
            other.value(forgets);
            if !begin.is_empty() {
                one.ask(&begin);
            }
            let answer = one.ask(&[bind("", "s", &[]), execute(), long.clone(), sync()].concat());
            match is_seen {
                true => assert_eq!(tags(&answer), "2DC1Z"),
                false => {
                    assert_eq!(answer[0].field('C'), "26000", "{answer:?}");
                    assert_eq!(answer[0].field('M'), "prepared statement \"s\" does not exist");
                }
            }
            one.ask(&query("ROLLBACK"));
            assert_eq!(rows(&one.ask(&blind("s"))), [["mine"]]);
        }
    }
    pair().dev.sql("dev", "DROP FUNCTION forget()");
}

/// T-60
#[test]
fn sessions_with_the_same_names_get_their_own_statements_and_rights() {
    let rounds = size(150, 100_000);
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 4\nmax_prepared_statements = 20", "", ""));
    std::thread::scope(|scope| {
        for client in 0..32 {
            let address = pgusher.address();
            scope.spawn(move || {
                let mut raw = Raw::login(address, "raw");
                let role = if client % 2 == 0 { "plain" } else { "app" };
                done(&mut raw, &format!("SET ROLE {role}"));
                // Half of the texts are shared by sessions of both roles.
                let mark = client / 4;
                let text = format!("SELECT '{mark}', current_user, $1::text");
                let mut prepared = raw.ask(&[parse("s", &text), sync()].concat());
                for round in 0..rounds {
                    let nonce = format!("{client}-{round}");
                    let answer = raw.ask(&[bind("", "s", &[&nonce]), execute(), sync()].concat());
                    assert_eq!(rows(&answer), [[mark.to_string(), role.into(), nonce]], "{prepared:?}");
                    if round % 50 == 49 {
                        prepared = raw.ask(&[close_statement("s"), parse("s", &text), sync()].concat());
                    }
                }
            });
        }
    });
}

/// T-61
#[test]
fn equal_texts_mean_what_their_sessions_settings_say() {
    let pgusher = one_connection();
    for schema in ["left", "right"] {
        pair().dev.sql(
            "dev",
            &format!("CREATE SCHEMA t61{schema}; CREATE TABLE t61{schema}.t AS SELECT '{schema}'::text AS x"),
        );
    }
    let texts = [
        "SELECT x FROM t",
        "SELECT '\\x41'::bytea::text",
        "SELECT xmlserialize(CONTENT '2'::text::xml AS text)",
    ];
    let mut sessions: Vec<_> = ["left", "right"].map(|s| (s, Raw::login(pgusher.address(), "raw"))).into();
    for (schema, raw) in &mut sessions {
        done(raw, &format!("SET search_path = t61{schema}"));
        if *schema == "right" {
            done(raw, "SET bytea_output = 'escape'");
        }
    }
    for round in 0..6 {
        for (schema, raw) in &mut sessions {
            for (i, text) in texts.iter().take(2).enumerate() {
                if round == 0 {
                    assert_eq!(raw.tags(&[parse(&format!("s{i}"), text), sync()].concat()), "1Z");
                }
                let expected = match (i, *schema) {
                    (0, schema) => schema,
                    (_, "left") => "\\x41",
                    _ => "A",
                };
                assert_eq!(rows(&raw.ask(&blind(&format!("s{i}")))), [[expected]], "round {round}");
            }
        }
    }
    // The path that a statement is prepared with is that of its Parse, and the one it is run with that of its Bind.
    let (_, raw) = &mut sessions[0];
    let mut direct = Raw::login_with(
        SocketAddr::from(([127, 0, 0, 1], pair().dev.port)),
        0x0003_0000,
        &[("user", "app"), ("database", "dev")],
    );
    done(&mut direct, "SET search_path = t61left");
    direct.ask(&[parse("s0", texts[0]), sync()].concat());
    for raw in [&mut direct, raw] {
        done(raw, "SET search_path = t61right");
        assert_eq!(rows(&raw.ask(&blind("s0"))), [["right"]]);
    }
    pair().dev.sql("dev", "DROP SCHEMA t61left CASCADE; DROP SCHEMA t61right CASCADE");
}

/// T-62
#[test]
fn a_client_that_leaves_anywhere_in_its_batch_spoils_nobodys_statement() {
    let pgusher = one_connection();
    let text = "SELECT 'whole' WHERE $1::int > 0";
    let batch = [parse("s", text), bind("", "s", &["1"]), execute(), sync()].concat();
    let mut next = Raw::login(pgusher.address(), "raw");
    for end in 0..batch.len() {
        let mut leaver = Raw::login(pgusher.address(), "raw");
        leaver.send(&batch[..end]);
        drop(leaver);
        let answer = next.ask(&batch);
        assert_eq!(tags(&answer), "12DCZ", "{end}: {answer:?}");
        assert_eq!(next.tags(&[close_statement("s"), sync()].concat()), "3Z");
    }
}

/// T-63, T-64 and T-66 against PostgreSQL itself: the same random conversations, with room for two statements.
#[test]
fn names_of_any_length_and_evictions_anywhere_answer_as_postgresql_does() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 1\nmax_prepared_statements = 2", "", ""));
    let direct = SocketAddr::from(([127, 0, 0, 1], pair().dev.port));
    let long: Vec<String> = [62, 63, 64, 200, 8000, 9990].map(|n| "n".repeat(n)).into();
    let mut names = vec!["a", "b", "c", "d"];
    names.extend(long.iter().map(String::as_str));
    let texts = ["SELECT 1", "SELECT 2", "SELECT 3", "SELEC", "SELECT 1/0", "SELECT 4"];
    let seed = 63;
    let mut through = Raw::login(pgusher.address(), "raw");
    let mut itself = Raw::login_with(direct, 0x0003_0000, &[("user", "app"), ("database", "dev")]);
    let mut random = Random(seed);
    for round in 0..size(400, 20_000) {
        let mut batch = Vec::new();
        for _ in 0..=random.below(6) {
            let name = random.of(&names);
            batch.extend(match random.below(7) {
                0 | 1 => parse(name, random.of(&texts)),
                2 | 3 => [bind("", name, &[]), execute()].concat(),
                4 => describe_statement(name),
                5 => close_statement(name),
                _ => [parse("", random.of(&texts)), bind("", "", &[]), execute()].concat(),
            });
        }
        batch.extend(sync());
        if random.chance(10) {
            batch.extend(query(random.of(&["DEALLOCATE ALL", "DISCARD ALL", "DEALLOCATE a", "SELECT 'x'"])));
        }
        through.send(&batch);
        itself.send(&batch);
        for _ in 0..1 + batch.windows(5).filter(|w| w[0] == b'Q' && w[1] == 0 && w[2] == 0).count() {
            let plain = |raw: &mut Raw| -> Vec<(char, Vec<Vec<String>>, String, String)> {
                let answer = raw.until_ready();
                // In an error, PostgreSQL says a name as it was given, and pgusher as far as it counts.
                let text = |m: &Message| {
                    let mut text: Vec<char> = m.field('M').chars().collect();
                    text.dedup_by(|a, b| *a == 'n' && a == b);
                    String::from_iter(text)
                };
                let plain = |m: &Message| (m.tag, rows(std::slice::from_ref(m)), m.field('C'), text(m));
                answer.iter().map(plain).collect()
            };
            assert_eq!(plain(&mut through), plain(&mut itself), "seed {seed}, round {round}");
        }
    }
}

/// What PostgreSQL makes of a text when it parses it depends on settings that it reports: who shares a text does not share
/// their meaning.
#[test]
fn a_shared_statement_means_what_it_means_in_its_own_session() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 1", "", ""));
    let text = "SELECT '2026-03-01 00:00'::timestamptz = '2026-02-28 15:00Z', '05/06/2026'::date = '2026-06-05', \
                length('a\\nb'), '\\x41'::bytea::text";
    for at_login in [false, true] {
        let settings = [
            [
                ("TimeZone", "Asia/Tokyo"),
                ("DateStyle", "ISO,DMY"),
                ("bytea_output", "escape"),
                ("standard_conforming_strings", "off"),
            ],
            [
                ("TimeZone", "UTC"),
                ("DateStyle", "ISO,MDY"),
                ("bytea_output", "hex"),
                ("standard_conforming_strings", "on"),
            ],
        ];
        let mut sessions = settings.map(|settings| {
            let mut pairs = vec![("user", "raw"), ("database", "warehouse")];
            if at_login {
                pairs.extend(settings);
            }
            let mut raw = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
            for (name, value) in settings.iter().filter(|_| !at_login) {
                assert_eq!(raw.tags(&query(&format!("SET {name} = '{value}'"))).replace('S', ""), "CZ");
            }
            raw
        });
        for round in 0..3 {
            for (raw, expected) in sessions.iter_mut().zip([["t", "t", "3", "A"], ["f", "f", "4", "\\x41"]]) {
                let mut bytes = if round == 0 { parse("shared", text) } else { Vec::new() };
                bytes.extend([bind("", "shared", &[]), execute(), sync()].concat());
                let answer = raw.ask(&bytes);
                let row = answer.iter().find(|m| m.tag == 'D').unwrap_or_else(|| panic!("{answer:?}"));
                assert_eq!(row.columns(), expected, "at login: {at_login}, round {round}");
            }
        }
    }
}

/// A name, and a message made of a text.
type Kind = (&'static str, fn(&str) -> Vec<u8>);

/// Two batches in one write, of which any part may fail: what the unnamed statement is then, PostgreSQL decides.
#[test]
fn whatever_fails_in_two_batches_the_unnamed_statement_is_the_same_as_directly() {
    let kinds: [Kind; 6] = [
        ("parse", |text| parse("", &format!("SELECT '{text}'"))),
        ("bad", |_| parse("", "SELEC")),
        ("run", |_| [bind("", "", &[]), execute()].concat()),
        ("fail", |_| bind("", "nosuch", &[])),
        ("query", |text| query(&format!("SELECT 'query {text}'"))),
        ("sync", |_| sync()),
    ];
    let direct = ([127, 0, 0, 1], pair().dev.port).into();
    let mut direct = Raw::login_with(direct, 0x0003_0000, &[("user", "app"), ("database", "dev")]);
    let pgusher = one_connection();
    let mut pooled = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    for number in 0..kinds.len().pow(4) {
        let chosen: Vec<_> = (0..4).map(|i| kinds[number / kinds.len().pow(i) % kinds.len()]).collect();
        let part = |i: usize| chosen[i].1(&format!("part {i}"));
        let end =
            [parse("e", "SELECT 'the end'"), bind("", "e", &[]), execute(), close_statement("e"), sync()];
        let conversation = [part(0), part(1), sync(), part(2), part(3), sync(), end.concat()].concat();
        let names: Vec<_> = chosen.iter().map(|(name, _)| *name).collect();
        let mut answers = [&mut direct, &mut pooled].map(|raw| {
            let mut got = raw.ask(&[parse("", "SELECT 'before'"), sync()].concat());
            raw.send(&conversation);
            while !rows(&got[got.len() - 1..]).contains(&vec!["the end".to_owned()]) {
                got.push(raw.next().unwrap());
            }
            got.extend(raw.until_ready());
            got
        });
        assert_eq!(other.value("SELECT 1"), "1");
        for (raw, got) in [&mut direct, &mut pooled].into_iter().zip(&mut answers) {
            got.extend(raw.ask(&[bind("", "", &[]), execute(), sync()].concat()));
        }
        let [expected, got] = answers.map(|answer| answer.into_iter().map(normal).collect::<Vec<_>>());
        assert_eq!(shown(&got), shown(&expected), "{names:?}");
    }
}
