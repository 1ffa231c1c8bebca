//! Random walks over statements that a grammar makes, compared with PostgreSQL: settings, roles, schemas, tables, sequences, temporary
//! objects, locks, channels, functions, names of statements, cursors, transactions, in both protocols and in pipelines.
//!
//! Each walk has names of its own, so that what it is answered depends on nobody else. What docs/transaction-pooling.md says that cannot
//! be hidden is not in the grammar: a named statement is of a text that means the same under all settings, and no last value of a
//! sequence is asked for outside the transaction that has made it.

use std::net::SocketAddr;

use super::differential::{arrive, normal, server, shown, through};
use super::house::{Random, size};
use super::wire::{
    Message, Raw, bind, close_statement, describe_statement, execute, message, parse, query, sync,
};

/// Pool modes, and how many connections the walks of one test share.
const POOLS: [(&str, usize); 4] =
    [("transaction", 1), ("transaction", 2), ("transaction", 5), ("session", 5)];
const WALKS: usize = 5;

const SETTINGS: [(&str, &[&str]); 11] = [
    ("work_mem", &["'1MB'", "'3MB'", "'none'"]),
    ("search_path", &["w@, public", "pg_catalog", "public"]),
    ("datestyle", &["'German'", "'ISO, DMY'", "'SQL, MDY'"]),
    ("timezone", &["'Asia/Tokyo'", "'UTC'", "'Nowhere'"]),
    ("intervalstyle", &["'iso_8601'", "'postgres'"]),
    ("statement_timeout", &["'1min'", "'2min'"]),
    ("extra_float_digits", &["0", "3", "99"]),
    ("bytea_output", &["'escape'", "'hex'"]),
    ("enable_seqscan", &["off", "on"]),
    ("application_name", &["'walks'", "'walks @'"]),
    ("my@.x", &["'one'", "'two of @'"]),
];

/// Whatever the settings are, these mean the same.
const NAMED: [&str; 6] = [
    "SELECT 'own @'",
    "SELECT $1::text",
    "SELECT count(*) FROM public.kept_@",
    "SELECT current_user",
    "INSERT INTO public.kept_@ VALUES (@)",
    "SELECT generate_series(1, 3)",
];

/// By kind, so that a kind with few forms is met as often as one with many.
const SENTENCES: [&[&str]; 11] = [
    &[
        "SET ROLE plain",
        "RESET ROLE",
        "SET LOCAL ROLE plain",
        "SET ROLE none",
        "SELECT current_user, session_user",
        "SET SESSION AUTHORIZATION plain",
        "SET SESSION AUTHORIZATION DEFAULT",
        "RESET SESSION AUTHORIZATION",
    ],
    &[
        "CREATE TABLE w@.made (a int, b text)",
        "DROP TABLE IF EXISTS w@.made CASCADE",
        "ALTER TABLE w@.made ADD COLUMN c int DEFAULT 5",
        "ALTER TABLE w@.made DROP COLUMN c",
        "ALTER TABLE w@.made ALTER COLUMN a TYPE bigint",
        "CREATE VIEW w@.seen AS SELECT * FROM w@.made",
        "INSERT INTO w@.made (a) VALUES (1), (2) RETURNING *",
        "SELECT * FROM w@.made ORDER BY 1",
        "SELECT count(*) FROM w@.seen",
        "CREATE INDEX ON w@.made (a)",
        "TRUNCATE w@.made",
    ],
    &[
        "INSERT INTO public.kept_@ VALUES (1), (2)",
        "SELECT count(*), sum(a) FROM public.kept_@",
        "DELETE FROM public.kept_@ WHERE a = 2",
        "COPY (SELECT generate_series(1, 2)) TO STDOUT",
        "WITH same AS (UPDATE public.kept_@ SET a = a RETURNING a) SELECT count(*), sum(a) FROM same",
        "WITH gone AS (DELETE FROM public.kept_@ RETURNING a) SELECT count(*) FROM gone",
    ],
    &[
        "SELECT nextval('public.counts_@')",
        "SELECT nextval('public.counts_@'), currval('public.counts_@')",
        "SELECT setval('public.counts_@', 5)",
        "BEGIN; SELECT nextval('public.counts_@'); SELECT lastval(); COMMIT",
    ],
    &[
        "CREATE TEMP TABLE passing_@ (a int)",
        "CREATE TEMP TABLE passing_@ ON COMMIT DROP AS SELECT 1 AS a",
        "INSERT INTO passing_@ VALUES (1)",
        "SELECT count(*) FROM passing_@",
        "DROP TABLE IF EXISTS passing_@",
        "CREATE TEMP VIEW passing_view_@ AS SELECT 1 AS a",
        "DROP VIEW IF EXISTS passing_view_@",
        "CREATE FUNCTION pg_temp.passing_@() RETURNS int LANGUAGE sql AS 'SELECT 1'; SELECT pg_temp.passing_@()",
        "DISCARD TEMP",
    ],
    &[
        "SELECT pg_advisory_lock(88@)",
        "SELECT pg_try_advisory_lock(89@)",
        "SELECT pg_advisory_unlock(88@)",
        "SELECT pg_advisory_unlock_all()",
        "SELECT pg_advisory_xact_lock(88@)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ],
    &[
        "LISTEN walk_@_a",
        "LISTEN \"Walk @ b\"",
        "UNLISTEN walk_@_a",
        "UNLISTEN *",
        "NOTIFY walk_@_a, 'told'",
        "SELECT pg_notify('Walk @ b', 'told')",
        "BEGIN; SAVEPOINT n; NOTIFY walk_@_a, 'gone'; ROLLBACK TO n; NOTIFY walk_@_a, 'kept'; COMMIT",
    ],
    &[
        "CREATE OR REPLACE FUNCTION w@.f() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set_config('work_mem', '5MB', false); END $$",
        "CREATE OR REPLACE FUNCTION w@.f() RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_lock(88@); RETURN 'locked'; END $$",
        "CREATE OR REPLACE FUNCTION w@.f() RETURNS text LANGUAGE plpgsql AS $$ BEGIN EXECUTE concat('SET wor', 'k_mem = ''6MB'''); RETURN 'set'; END $$",
        "CREATE OR REPLACE FUNCTION w@.f() RETURNS text LANGUAGE sql AS 'SELECT current_user::text'",
        "SELECT w@.f()",
        "DROP FUNCTION IF EXISTS w@.f()",
        "DO $$ BEGIN PERFORM w@.f(); END $$",
        "DO $$ BEGIN SET work_mem = '7MB'; END $$",
        "DO $$ BEGIN RAISE NOTICE 'said by @'; END $$",
    ],
    &[
        "PREPARE sqlp AS SELECT 7",
        "EXECUTE sqlp",
        "DEALLOCATE sqlp",
        "DEALLOCATE a",
        "EXECUTE a",
        "DEALLOCATE ALL",
        "DECLARE held CURSOR WITH HOLD FOR SELECT generate_series(1, 5)",
        "FETCH 2 FROM held",
        "CLOSE held",
        "CLOSE ALL",
        "DISCARD PLANS",
    ],
    &[
        "BEGIN",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT s",
        "ROLLBACK TO s",
        "RELEASE s",
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
        "COMMIT AND CHAIN",
        "SELECT 1/0",
        "SELEKT",
    ],
    &["RESET ALL", "DISCARD ALL", "DISCARD SEQUENCES", "SHOW pgusher_none.x"],
];

fn setting(random: &mut Random) -> String {
    let (name, values) = SETTINGS[random.below(SETTINGS.len())];
    let value = random.of(values);
    let quoted = if value.starts_with('\'') { value.to_owned() } else { format!("'{value}'") };
    match random.below(9) {
        0 | 1 => format!("SET {name} = {value}"),
        2 => format!("SET LOCAL {name} TO {value}"),
        3 => format!("SELECT set_config('{name}', {quoted}, false)"),
        4 => format!("SELECT set_config('{name}', {quoted}, true)"),
        5 => format!("RESET {name}"),
        6 => format!("SET {name} TO DEFAULT"),
        7 => format!("SELECT nullif(current_setting('{name}', true), '')"),
        _ => "SELECT '2026-12-31 12:00'::timestamptz::text, '1.5 days'::interval::text, '\\x00'::bytea::text"
            .into(),
    }
}

fn sentence(random: &mut Random) -> String {
    match random.below(SENTENCES.len() + 3) {
        kind @ 0..11 => random.of(SENTENCES[kind]).to_owned(),
        _ => setting(random),
    }
}

/// One or several, in one query.
fn text(random: &mut Random, number: usize) -> String {
    let count = if random.chance(15) { 2 + random.below(2) } else { 1 };
    let texts: Vec<_> = (0..count).map(|_| sentence(random)).collect();
    let is_local = |text: &String| text.contains("LOCAL") || text.contains(", true)");
    let is_reset = |text: &String| ["RESET", "DEFAULT", "DISCARD"].iter().any(|word| text.contains(word));
    // What a default is behind a `SET LOCAL` in the same query is told as it is within it.
    let count = if texts.iter().any(is_local) && texts.iter().any(is_reset) { 1 } else { texts.len() };
    texts[..count].join("; ").replace('@', &number.to_string())
}

/// What a client sends before it reads.
fn burst(random: &mut Random, number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + random.below(4) {
        let name = random.of(&["a", "b", "c"]);
        bytes.extend(match random.below(10) {
            // As drivers do, not within a batch: what becomes of that, the walks through the protocol ask.
            0..4 => [sync(), query(&text(random, number))].concat(),
            4..6 => {
                let text = text(random, number);
                // What stands in one batch with what may change how it is read keeps its connection for good.
                let may_reread =
                    ["f()", "DO ", "RESET ALL", "DISCARD ALL"].iter().any(|part| text.contains(part));
                let end = if may_reread { sync() } else { Vec::new() };
                [parse("", &text), describe_statement(""), bind("", "", &[]), execute(), end].concat()
            }
            6 | 7 => {
                let text = random.of(&NAMED).replace('@', &number.to_string());
                let parameters: &[&str] = if text.contains('$') { &["x"] } else { &[] };
                [parse(name, &text), bind("", name, parameters), message('D', b"P\0"), execute()].concat()
            }
            8 => [bind("", name, &[]), execute()].concat(),
            _ => close_statement(name),
        });
        if random.chance(60) {
            bytes.extend(sync());
        }
    }
    bytes
}

/// A setting may be told anywhere: it comes last here.
fn in_order(answer: Vec<Message>) -> Vec<Message> {
    let (told, mut others): (Vec<_>, Vec<_>) = answer.into_iter().partition(|message| message.tag == 'S');
    let end = others.len() - 1;
    others.splice(end..end, told);
    others
}

/// A walk is over when it is told so; then it begins anew, as whoever is lost.
fn begin(address: SocketAddr, user: &str, number: usize) -> Raw {
    let mut raw = arrive(address, user);
    let remake = format!(
        "DROP SCHEMA IF EXISTS w{number} CASCADE; DROP TABLE IF EXISTS public.kept_{number}; \
         DROP SEQUENCE IF EXISTS public.counts_{number}; CREATE SCHEMA w{number}; GRANT ALL ON SCHEMA w{number} TO PUBLIC; \
         CREATE TABLE public.kept_{number} (a int); CREATE SEQUENCE public.counts_{number}; \
         GRANT ALL ON public.kept_{number}, public.counts_{number} TO PUBLIC"
    );
    let answer = raw.ask(&query(&remake));
    assert!(!answer.iter().any(|m| m.tag == 'E'), "{answer:?}");
    raw
}

/// What was sent, and what came.
type Step = (Vec<u8>, Vec<Message>);

/// A walk, step by step.
fn walked(address: SocketAddr, user: &str, number: usize, seed: u64, steps: usize) -> Vec<Step> {
    let mut random = Random(seed + number as u64);
    let mut raw = begin(address, user, number);
    let (mut answers, mut notified) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let mut bytes = [burst(&mut random, number), sync()].concat();
        // A transaction may go on; what keeps a connection is given back now and then.
        if random.chance(70) {
            bytes.extend(query("ROLLBACK"));
        }
        if random.chance(25) {
            bytes.extend([query("ROLLBACK"), query("DISCARD ALL")].concat());
        }
        // Nothing else is empty; and this is answered in a transaction that has failed, too.
        bytes.extend(query(""));
        raw.send(&bytes);
        let mut answer: Vec<Message> = Vec::new();
        while !answer.iter().any(|message| message.tag == 'I') {
            let some = raw.until_ready();
            let is_lost = some.last().is_none_or(|message| message.tag != 'Z');
            assert!(!is_lost, "seed {seed:#x}, walk {number}, step {step}: {some:?}");
            answer.extend(in_order(some.into_iter().map(normal).collect()));
        }
        // What it has notified itself PostgreSQL tells it later, while somebody else's is being committed.
        let (told, answer): (Vec<_>, Vec<_>) = answer.into_iter().partition(|message| message.tag == 'A');
        notified.extend(told);
        answers.push((bytes, answer));
        if step % 20 == 19 {
            // Nothing keeps a connection any more, whatever was done.
            raw.ask(&query("ROLLBACK"));
            raw.ask(&query("DISCARD ALL"));
            if user != "app" {
                let pin = raw.value("SHOW pgusher.pin");
                assert_eq!(pin, "", "seed {seed:#x}, walk {number}, step {step}");
            }
        }
    }
    raw.ask(&query("DISCARD ALL"));
    answers.push((b"what it was notified of".to_vec(), notified));
    answers
}

fn compare(pool_mode: &str, pool_size: usize, seed: u64, steps: usize) {
    let direct: SocketAddr = ([127, 0, 0, 1], server().port).into();
    let pgusher = through(pool_mode, pool_size);
    let address = pgusher.address();
    // Two users, who share the pool.
    let users = ["raw", "walks"];
    let numbers = (seed as usize % 50 + 1) * 10..(seed as usize % 50 + 1) * 10 + WALKS;
    let expected: Vec<_> = std::thread::scope(|scope| {
        let walks: Vec<_> = numbers
            .clone()
            .map(|number| scope.spawn(move || walked(direct, "app", number, seed, steps)))
            .collect();
        walks.into_iter().map(|walk| walk.join().unwrap()).collect()
    });
    std::thread::scope(|scope| {
        let walks: Vec<_> = numbers
            .clone()
            .map(|number| scope.spawn(move || walked(address, users[number % 2], number, seed, steps)))
            .collect();
        for (expected, (number, walk)) in expected.iter().zip(numbers.zip(walks)) {
            for (step, ((sent, got), (_, expected))) in walk.join().unwrap().iter().zip(expected).enumerate()
            {
                assert_eq!(
                    shown(got),
                    shown(expected),
                    "seed {seed:#x}, walk {number}, step {step}, {pool_mode} mode, {pool_size} connections, to {}",
                    sent.escape_ascii()
                );
            }
        }
    });
    println!(
        "seed {seed:#x}: {WALKS} walks of {steps} steps, {pool_mode} mode, {pool_size} connections: no difference"
    );
}

#[test]
fn walks_over_a_grammar_are_answered_as_they_are_directly() {
    let steps = size(250, 20_000);
    for (seed, (pool_mode, pool_size)) in POOLS.into_iter().enumerate() {
        compare(pool_mode, pool_size, 0x5eed_1500 + seed as u64, steps);
    }
}
