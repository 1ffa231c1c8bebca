//! Names of prepared statements: one name space for SQL and the protocol, as directly.

use std::net::SocketAddr;

use super::differential::{normal, shown};
use super::house::{Pgusher, pair, warehouse};
use super::wire::{Message, Raw, bind, close_statement, describe_statement, execute, parse, query, sync};

/// One step, and how many times it is told then that the server is ready.
type Step = (Vec<u8>, usize);

fn named(name: &str, text: &str) -> Step {
    ([parse(name, text), sync()].concat(), 1)
}

fn used(name: &str, parameters: &[&str]) -> Step {
    ([bind("", name, parameters), execute(), sync()].concat(), 1)
}

fn sql(text: &str) -> Step {
    (query(text), 1)
}

/// The same in the extended protocol, in one batch.
fn batch(texts: &[&str]) -> Step {
    let each = |text: &&str| [parse("", text), describe_statement(""), bind("", "", &[]), execute()].concat();
    ([texts.iter().map(each).collect::<Vec<_>>().concat(), sync()].concat(), 1)
}

fn together(steps: &[Step]) -> Step {
    let bytes: Vec<_> = steps.iter().map(|(bytes, _)| bytes.clone()).collect();
    (bytes.concat(), steps.iter().map(|(_, ends)| ends).sum())
}

/// What happens to the names `x` and `y` of the protocol, and then what they are.
fn conversations() -> Vec<Vec<Step>> {
    let texts = [
        "DEALLOCATE x",
        "DEALLOCATE x;DEALLOCATE y",
        "SELECT 1;DEALLOCATE x",
        "DEALLOCATE \"x\"; SELECT 1",
        "BEGIN;DEALLOCATE x",
        "SAVEPOINT s;DEALLOCATE \"x\";RELEASE s",
        "SAVEPOINT s;DEALLOCATE nosuch;RELEASE s",
        "DEALLOCATE x; SELECT 1/0; DEALLOCATE y",
        "PREPARE z AS SELECT 5; EXECUTE z; DEALLOCATE z",
        "EXECUTE x",
        "EXECUTE y(5)",
        "EXECUTE y('no number')",
        "EXPLAIN (COSTS OFF) EXECUTE x",
        "CREATE TEMP TABLE made_of AS EXECUTE x; SELECT * FROM made_of; DROP TABLE made_of",
        "SELECT 1; EXECUTE x; EXECUTE y(6)",
        "DO $$ BEGIN EXECUTE 'EXECUTE x'; END $$",
        "PREPARE x AS SELECT 7",
        "PREPARE x AS SELECT 7; SELECT 8",
        "SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY 1",
        "SELECT count(*) FROM pg_prepared_statements WHERE name = 'x'",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "EXECUTE nosuch",
    ];
    let begin: Vec<Step> = vec![named("x", "SELECT 1 AS one"), named("y", "SELECT $1::int + 1")];
    let end: Vec<Step> = vec![
        used("x", &[]),
        used("y", &["3"]),
        named("x", "SELECT 'new'"),
        used("x", &[]),
        (query("ROLLBACK"), 1),
        used("x", &[]),
        used("y", &["4"]),
        sql("SELECT name FROM pg_prepared_statements ORDER BY 1"),
        sql("DEALLOCATE ALL"),
        sql("SELECT count(*) FROM pg_prepared_statements"),
    ];
    let mut all = Vec::new();
    for text in texts {
        let several = text.contains(';');
        let is_last_of_batch = text.starts_with("DISCARD")
            || text.starts_with("SELECT name")
            || text.starts_with("SELECT count");
        let mut ways: Vec<Vec<Step>> = vec![
            vec![sql(text)],
            vec![sql("BEGIN"), sql(text)],
            vec![sql("BEGIN"), sql("SELECT 1/0"), sql(text)],
            vec![together(&[sql("BEGIN"), sql(text), sql("SELECT 'behind'")])],
            vec![together(&[sql(text), named("x", "SELECT 'behind'"), used("x", &[])])],
            // Skipped, as it stands in a batch that has failed; and so is what is behind it.
            vec![(
                [
                    parse("x", "SELECT 'again'"),
                    query(text),
                    parse("", "CREATE TABLE skipped ()"),
                    bind("", "", &[]),
                    execute(),
                    sync(),
                    sync(),
                ]
                .concat(),
                2,
            )],
            // Closed in the batch that has used it in SQL, and given again.
            vec![(
                [
                    parse("", "EXECUTE x"),
                    bind("", "", &[]),
                    execute(),
                    close_statement("x"),
                    parse("x", "SELECT 8 AS one"),
                    parse("", "EXECUTE x"),
                    bind("", "", &[]),
                    execute(),
                    sync(),
                ]
                .concat(),
                1,
            )],
            // With nothing before it but what is answered without the upstream.
            vec![([close_statement("y"), query(text), sync()].concat(), 2)],
        ];
        if !several {
            ways.push(vec![batch(&[text])]);
            ways.push(vec![sql("BEGIN"), batch(&[text])]);
            if !is_last_of_batch {
                ways.push(vec![batch(&["SELECT 1", text, "SELECT 2"])]);
            }
            // Under a name of its own, and used again.
            ways.push(vec![
                named("own", text),
                used("own", &[]),
                used("own", &[]),
                ([close_statement("own"), sync()].concat(), 1),
            ]);
            ways.push(vec![(
                [
                    parse("", text),
                    bind("", "", &[]),
                    execute(),
                    parse("x", "SELECT 'behind'"),
                    bind("", "x", &[]),
                    execute(),
                    sync(),
                ]
                .concat(),
                1,
            )]);
        }
        for way in ways {
            all.push([begin.clone(), way, end.clone()].concat());
        }
    }
    // A name that is closed behind what fails is there still.
    let close_fails = ([parse("x", "SELECT 'again'"), close_statement("x"), sync()].concat(), 1);
    for text in ["DEALLOCATE x", "EXECUTE x", "PREPARE x AS SELECT 7"] {
        for behind in [sql(text), batch(&[text])] {
            all.push([begin.clone(), vec![together(&[close_fails.clone(), behind])], end.clone()].concat());
        }
    }
    all.extend(of_sql(&end));
    all
}

/// A name that SQL has prepared, and the protocol uses.
fn of_sql(end: &[Step]) -> Vec<Vec<Step>> {
    let closed = || ([close_statement("x"), sync()].concat(), 1);
    let ways: Vec<Vec<Step>> = vec![
        vec![named("x", "SELECT 1")],
        vec![named("x", "SELEC")],
        vec![
            (
                [parse("x", "SELECT 1"), parse("", "DEALLOCATE x"), bind("", "", &[]), execute(), sync()]
                    .concat(),
                1,
            ),
            used("x", &[]),
            sql("EXECUTE x"),
        ],
        vec![named("x", "SELECT $1::int"), used("x", &[]), named("x", "SELECT 2"), named("z", "SELECT 3")],
        vec![used("x", &[]), closed(), named("x", "SELECT 2"), used("x", &[])],
        vec![sql("DEALLOCATE x"), named("x", "SELECT 2"), used("x", &[])],
        vec![sql("BEGIN"), named("x", "SELECT 2"), sql("ROLLBACK"), used("x", &[])],
        vec![together(&[sql("DEALLOCATE x"), named("x", "SELECT 2"), used("x", &[])])],
        vec![
            ([parse("y", "SELECT 1"), parse("x", "SELECT 2"), parse("z", "SELECT 3"), sync()].concat(), 1),
            used("y", &[]),
        ],
    ];
    let mut all = Vec::new();
    for make in [
        "PREPARE x AS SELECT 7",
        "SELECT 1; PREPARE x AS SELECT 7",
        "DO $$ BEGIN EXECUTE 'PREPARE x AS SELECT 7'; END $$",
        "DO $$ BEGIN EXECUTE concat('PREP', 'ARE x AS SELECT 7'); END $$",
        "PREPARE x AS SELECT 1/0 AS a, 7; SELECT 1/0",
    ] {
        for way in &ways {
            all.push([&[sql("SELECT 1"), sql(make)], &way[..], end].concat());
        }
        all.push(
            [&[sql("BEGIN"), together(&[sql(make), named("x", "SELECT 1"), sql("SELECT 2")])], end].concat(),
        );
        all.push([&[sql("BEGIN"), sql(make), sql("ROLLBACK"), named("x", "SELECT 1")], end].concat());
    }
    all
}

fn answers(raw: &mut Raw, steps: &[Step], elsewhere: &mut dyn FnMut()) -> Vec<Vec<Message>> {
    let mut answers = Vec::new();
    for (bytes, ends) in steps {
        elsewhere();
        raw.send(bytes);
        answers.extend((0..*ends).map(|_| raw.until_ready().into_iter().map(normal).collect::<Vec<_>>()));
    }
    answers
}

/// Wherever a setting may be shown; and nobody else has it.
#[test]
fn what_pgusher_says_of_a_session_is_shown_wherever_a_setting_is() {
    let users = "[users.keeps]\nauth_type = \"trust\"\npool_mode = \"session\"\n";
    let pgusher = Pgusher::start(&(warehouse("default_pool_size = 2", "", "") + users));
    for user in ["raw", "keeps"] {
        shows_what_pgusher_says(&pgusher, user);
    }
}

fn shows_what_pgusher_says(pgusher: &Pgusher, user: &str) {
    let (mut raw, mut other) = (Raw::login(pgusher.address(), user), Raw::login(pgusher.address(), "raw"));
    raw.ask(&[parse("", "SELECT 'unnamed'"), sync()].concat());
    raw.ask(&[parse("named", "SHOW pgusher.environment"), sync()].concat());
    assert_eq!(raw.ask(&[bind("", "named", &[]), execute(), sync()].concat())[1].columns(), ["dev"]);
    assert_eq!(raw.ask(&[bind("", "", &[]), execute(), sync()].concat())[1].columns(), ["unnamed"]);
    let rows = |answer: &[Message]| -> Vec<String> {
        answer.iter().filter(|m| m.tag == 'D').flat_map(Message::columns).collect()
    };
    for (text, expected) in [
        ("BEGIN;SHOW pgusher.environment", &["dev"][..]),
        ("SELECT 1; SHOW pgusher.environment", &["1", "dev"]),
        ("SET application_name='a'; SHOW pgusher.connection", &["warehouse"]),
        ("SHOW pgusher.environment;SHOW pgusher.\"user\"", &["dev", user]),
        ("SELECT current_setting('pgusher.environment')", &["dev"]),
        ("SELECT current_setting('PGUSHER.user', true)", &[user]),
        ("SHOW \"pgusher.environment\"", &["dev"]),
        ("DO $$ BEGIN PERFORM 1; END $$; SHOW pgusher.pin", &[""]),
        ("SHOW pgusher.environment", &["dev"]),
    ] {
        let answer = raw.ask(&query(text));
        assert_eq!(rows(&answer), expected, "{text}: {answer:?}");
        if !text.contains(';') {
            for before in ["", "BEGIN"] {
                raw.ask(&query(before));
                let batch = [
                    parse("", "SELECT 'first'"),
                    bind("", "", &[]),
                    execute(),
                    parse("", text),
                    bind("", "", &[]),
                    execute(),
                    sync(),
                ];
                assert_eq!(rows(&raw.ask(&batch.concat())), [&["first"], expected].concat(), "{text}");
                raw.ask(&query("ROLLBACK"));
            }
        }
        raw.ask(&query("ROLLBACK"));
        // Nobody else has it, whatever name he asks by.
        assert_eq!(
            other.value("SELECT coalesce(current_setting('pgusher' || '.environment', true), '')"),
            ""
        );
    }
    for text in [
        "BEGIN; SET pgusher.environment = 'prod'",
        "SELECT 1; RESET pgusher.user",
        "SELECT set_config('pgusher.environment', 'prod', true)",
        "ALTER ROLE app SET pgusher.environment = 'prod'",
        "ALTER ROLE ALL IN DATABASE dev RESET pgusher.\"user\"",
        "ALTER DATABASE dev SET pgusher.environment TO 'prod'",
        "CREATE FUNCTION pretends() RETURNS int LANGUAGE sql SET pgusher.environment = 'prod' AS 'SELECT 1'",
    ] {
        assert_eq!(raw.value(text).split(' ').next(), Some("55P02"), "{text}");
        raw.ask(&query("ROLLBACK"));
    }
}

#[test]
fn names_in_sql_and_in_the_protocol_are_one_name_space() {
    let direct: SocketAddr = ([127, 0, 0, 1], pair().dev.port).into();
    let conversations = conversations();
    let expected: Vec<_> = conversations
        .iter()
        .map(|steps| {
            let mut raw = Raw::login_with(direct, 0x0003_0000, &[("user", "app"), ("database", "dev")]);
            answers(&mut raw, steps, &mut || ())
        })
        .collect();
    for pool_size in [1, 2] {
        let pgusher = Pgusher::start(&warehouse(&format!("default_pool_size = {pool_size}"), "", ""));
        let mut other = Raw::login(pgusher.address(), "raw");
        other.ask(&[parse("x", "SELECT 'of another'"), sync()].concat());
        let mut turn = 0;
        for (steps, expected) in conversations.iter().zip(&expected) {
            let mut raw = Raw::login(pgusher.address(), "raw");
            // With two, another has one of them by turns.
            let mut elsewhere = || {
                turn += 1;
                if pool_size > 1 {
                    let text = if turn % 2 == 0 { "BEGIN" } else { "COMMIT" };
                    other.ask(&query(text));
                    other.ask(&[bind("", "x", &[]), execute(), sync()].concat());
                }
            };
            let got = answers(&mut raw, steps, &mut elsewhere);
            for (number, (got, expected)) in got.iter().zip(expected).enumerate() {
                let sent: Vec<_> = steps.iter().map(|(bytes, _)| bytes.escape_ascii().to_string()).collect();
                assert_eq!(
                    shown(got),
                    shown(expected),
                    "{pool_size} connections, answer {number} to {sent:#?}"
                );
            }
            assert_eq!(raw.value("SHOW pgusher.pin"), "", "{:?}", steps[2].0.escape_ascii().to_string());
        }
    }
}

/// What stands in one batch with a `RESET ALL` is perhaps read otherwise, and keeps its connection; its names are lent all the same.
#[test]
fn names_are_lent_to_what_is_perhaps_read_otherwise() {
    for before in ["RESET ALL", "SET standard_conforming_strings = on"] {
        let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
        let mut raw = Raw::login(pgusher.address(), "raw");
        raw.ask(&[parse("x", "SELECT $1::text"), sync()].concat());
        let extended = |text: &str| [parse("", text), bind("", "", &[]), execute()].concat();
        let answer = raw.ask(&[extended(before), extended("EXECUTE x('a')"), sync()].concat());
        let rows: Vec<_> = answer.iter().filter(|m| m.tag == 'D').flat_map(Message::columns).collect();
        assert_eq!(rows, ["a"], "{before}: {answer:?}");
    }
}
