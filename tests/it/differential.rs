//! The same conversations, direct and through pgusher in both pool modes, with few connections shared by several
//! sessions at once: byte for byte the same answers.

use std::io::Write;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::OnceLock;

use super::house::{Pgusher, Postgres, Random, WAREHOUSE, pair, size};
use super::wire::{Message, Raw, bind, describe_statement, execute, message, parse, query, sync};

/// A server with two-phase commit, for these alone.
pub(crate) fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::start_with("dev", &["-c max_prepared_transactions=20"]))
}

/// Statements, one a line, over the ground of PostgreSQL's regression files of these names. `@` is the session's
/// number. A line that begins with `>` is sent together with those above it, before any answer is read.
pub(crate) const SCRIPTS: [(&str, &str); 15] = [
    (
        "guc",
        "SHOW datestyle
         SET vacuum_cost_delay TO 40
         SET datestyle = 'ISO, YMD'
         SHOW vacuum_cost_delay
         SELECT '2006-08-13 12:34:56'::timestamptz
         SET LOCAL vacuum_cost_delay TO 50
         SHOW vacuum_cost_delay
         BEGIN
         SET LOCAL vacuum_cost_delay TO 50
         SET datestyle = 'SQL'
         SHOW datestyle
         COMMIT
         SHOW vacuum_cost_delay
         SHOW datestyle
         BEGIN
         SET vacuum_cost_delay TO 60
         SET datestyle = 'German'
         SELECT '2006-08-13 12:34:56'::timestamptz
         ROLLBACK
         SHOW vacuum_cost_delay
         SELECT '2006-08-13 12:34:56'::timestamptz
         BEGIN
         SET vacuum_cost_delay TO 70
         SAVEPOINT first_sp
         SET vacuum_cost_delay TO 80
         ROLLBACK TO first_sp
         SHOW vacuum_cost_delay
         SAVEPOINT second_sp
         SET LOCAL vacuum_cost_delay TO 90
         RELEASE second_sp
         COMMIT
         SHOW vacuum_cost_delay
         SET nonsense.setting_@ TO 'x@'
         SHOW nonsense.setting_@
         SET no_such_setting = 1
         SET work_mem = 'nonsense'
         SET seq_page_cost TO 'NaN'
         SELECT set_config('work_mem', '123kB', true), current_setting('work_mem')
         SELECT set_config('work_mem', '@00kB', false), current_setting('work_mem')
         SHOW work_mem
         SET TimeZone TO 'UTC'
         SHOW TimeZone
         SET SESSION search_path TO pg_catalog, \"$user\"
         SELECT current_schemas(false)
         SET search_path TO DEFAULT
         SHOW search_path
         RESET datestyle
         SHOW datestyle
         SELECT '2006-08-13 12:34:56'::timestamptz
         RESET vacuum_cost_delay
         SHOW vacuum_cost_delay
         SET extra_float_digits = -3
         SELECT 1::float8 / 3
         SET bytea_output = escape
         SELECT '\\x00ff41'::bytea
         RESET ALL
         SHOW extra_float_digits
         SHOW work_mem
         SET statement_timeout = 50
         SELECT pg_sleep(5)
         SELECT 'after the timeout'
         SET statement_timeout = 0; SET lock_timeout = '7s'; SHOW lock_timeout
         BEGIN; SET work_mem = '1MB'; SELECT 1/0; COMMIT
         SHOW work_mem
         ROLLBACK
         SHOW work_mem
         DISCARD ALL
         SHOW lock_timeout",
    ),
    (
        "values and defaults",
        "SET TIME ZONE 'UTC'; RESET ROLE
         SHOW timezone
         SET timezone TO 'America/New_York'; RESET work_mem
         SHOW timezone
         SELECT '2026-12-31 12:00'::timestamptz
         RESET timezone; SET work_mem = '5MB'
         SHOW timezone
         SET application_name = 'one @'; RESET ALL
         SHOW application_name
         RESET ALL; SET application_name = 'two @'
         SHOW application_name
         SET application_name TO DEFAULT
         SHOW application_name
         SET datestyle = 'German'
         SET TIME ZONE 'Asia/Tokyo'
         SET TIME ZONE LOCAL
         SHOW timezone
         SELECT set_config('datestyle', 'SQL, DMY', false)
         SET application_name = 'three @'
         >RESET application_name
         >SET application_name = 'four @'
         SHOW application_name
         RESET datestyle
         >SET intervalstyle = 'iso_8601'
         SHOW datestyle
         SELECT interval '1 day'
         BEGIN; SET application_name = 'five'; ROLLBACK; RESET intervalstyle
         SHOW application_name
         BEGIN
         RESET application_name
         SET timezone = 'Asia/Tokyo'
         COMMIT
         SHOW timezone
         SHOW application_name
         DISCARD ALL
         >SET application_name = 'six @'
         SHOW application_name
         DO $$ BEGIN RESET timezone; SET datestyle = 'ISO'; END $$
         SHOW application_name
         RESET ALL
         SHOW application_name",
    ),
    (
        "role",
        "SELECT current_user, session_user
         SET ROLE plain
         SELECT current_user, session_user
         CREATE TABLE not_permitted_@ (a int)
         RESET ROLE
         SELECT current_user
         BEGIN
         SET LOCAL ROLE plain
         SELECT current_user
         COMMIT
         SELECT current_user
         BEGIN
         SET ROLE plain
         ROLLBACK
         SELECT current_user
         SET ROLE no_such_role
         SET work_mem = '3MB'
         SET ROLE plain
         SHOW work_mem
         SELECT current_user
         SET ROLE NONE
         SELECT current_user
         SET SESSION AUTHORIZATION plain
         SELECT current_user, session_user
         RESET SESSION AUTHORIZATION
         SELECT current_user, session_user",
    ),
    (
        "prepare",
        "PREPARE q1_@ AS SELECT 1 AS a
         EXECUTE q1_@
         PREPARE q1_@ AS SELECT 2
         DEALLOCATE q1_@
         EXECUTE q1_@
         PREPARE q2_@(text) AS SELECT $1 || '@'
         SELECT name, parameter_types FROM pg_prepared_statements WHERE from_sql
         BEGIN
         EXECUTE q2_@('postgres')
         COMMIT
         EXECUTE q2_@('a', 'b')
         PREPARE q3_@ AS SELECT no_such_column
         DEALLOCATE PREPARE q2_@
         PREPARE q4_@ AS SELECT 4; EXECUTE q4_@
         DEALLOCATE ALL
         SELECT count(*) FROM pg_prepared_statements WHERE from_sql
         EXECUTE q4_@",
    ),
    (
        "prepared_xacts",
        "CREATE TABLE pxtest_@ (a text)
         INSERT INTO pxtest_@ VALUES ('aaa')
         BEGIN
         UPDATE pxtest_@ SET a = 'bbb'
         PREPARE TRANSACTION 'foo_@'
         SELECT * FROM pxtest_@
         SELECT gid FROM pg_prepared_xacts WHERE gid = 'foo_@'
         ROLLBACK PREPARED 'foo_@'
         SELECT * FROM pxtest_@
         BEGIN; INSERT INTO pxtest_@ VALUES ('ccc'); PREPARE TRANSACTION 'bar_@'
         COMMIT PREPARED 'bar_@'
         SELECT * FROM pxtest_@ ORDER BY 1
         COMMIT PREPARED 'no_such_@'
         BEGIN
         CREATE TEMP TABLE t_@ (a int)
         PREPARE TRANSACTION 'temp_@'
         DROP TABLE pxtest_@",
    ),
    (
        "portals",
        "BEGIN
         DECLARE foo1 SCROLL CURSOR FOR SELECT * FROM generate_series(1, 10) ORDER BY 1
         DECLARE foo2 CURSOR FOR SELECT @
         FETCH 1 IN foo1
         FETCH 3 IN foo1
         FETCH BACKWARD 1 IN foo1
         FETCH ALL IN foo2
         CLOSE foo1
         FETCH 1 IN foo1
         ROLLBACK
         FETCH 1 IN foo2
         DECLARE outside CURSOR FOR SELECT 1
         BEGIN
         DECLARE foo25 SCROLL CURSOR WITH HOLD FOR SELECT * FROM generate_series(1, 20)
         FETCH FROM foo25
         COMMIT
         FETCH FROM foo25
         FETCH BACKWARD FROM foo25
         FETCH ABSOLUTE -1 FROM foo25
         SELECT name, is_holdable FROM pg_cursors
         CLOSE foo25
         FETCH FROM foo25
         SELECT count(*) FROM pg_cursors
         BEGIN; DECLARE a CURSOR WITH HOLD FOR SELECT 1; DECLARE b CURSOR WITH HOLD FOR SELECT 2; COMMIT
         FETCH a
         CLOSE ALL
         FETCH b",
    ),
    (
        "transactions",
        "BEGIN
         SELECT 1 AS one
         SAVEPOINT one
         SELECT 1/0
         SELECT 2
         ROLLBACK TO one
         SELECT 3
         COMMIT
         COMMIT
         ROLLBACK
         BEGIN; BEGIN
         ROLLBACK
         BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE
         SHOW transaction_isolation
         CREATE TABLE read_only_@ (a int)
         COMMIT
         SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ
         SHOW transaction_isolation
         BEGIN
         SHOW transaction_isolation
         COMMIT AND CHAIN
         SHOW transaction_isolation
         ROLLBACK
         SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED
         SHOW default_transaction_isolation
         SELECT 1; SELECT 1/0; SELECT 3
         SELECT 1; BEGIN; SELECT 2
         SELECT 3; COMMIT; SELECT 4
         SET TRANSACTION ISOLATION LEVEL SERIALIZABLE
         SAVEPOINT outside",
    ),
    (
        "temp",
        "CREATE TABLE temptest_@ (tcol int)
         CREATE TEMP TABLE temptest_@ (col int, t text)
         SELECT * FROM temptest_@
         INSERT INTO temptest_@ VALUES (@, 'mine')
         SELECT * FROM temptest_@
         DROP TABLE temptest_@
         SELECT * FROM temptest_@
         CREATE TEMP TABLE gone_@ (a int) ON COMMIT DROP
         SELECT * FROM gone_@
         BEGIN
         CREATE TEMP TABLE kept_@ (a int) ON COMMIT DELETE ROWS
         INSERT INTO kept_@ VALUES (1)
         SELECT count(*) FROM kept_@
         COMMIT
         SELECT count(*) FROM kept_@
         CREATE TEMP VIEW v_@ AS SELECT 'view @' AS a
         SELECT * FROM v_@
         CREATE FUNCTION pg_temp.whoami_@() RETURNS text LANGUAGE sql AS 'SELECT ''me @''::text'
         SELECT pg_temp.whoami_@()
         SELECT 1 AS a INTO TEMP into_@
         SELECT * FROM into_@
         DISCARD TEMP
         SELECT * FROM v_@
         DROP TABLE temptest_@",
    ),
    (
        "advisory_lock",
        "SELECT pg_advisory_xact_lock(@), pg_try_advisory_xact_lock_shared(@, 1)
         SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
         BEGIN
         SELECT pg_advisory_xact_lock(10@), pg_advisory_lock(20@)
         SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY 1
         ROLLBACK
         SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY 1
         SELECT pg_advisory_unlock(20@)
         SELECT pg_advisory_unlock(20@)
         SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
         SELECT pg_advisory_lock(30@), pg_advisory_lock(30@)
         SELECT pg_advisory_unlock(30@)
         SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()
         SELECT pg_advisory_unlock_all()
         SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    ),
    (
        "async",
        "NOTIFY ignored_@, 'nobody listens'
         LISTEN heard_@
         NOTIFY heard_@
         SELECT pg_notify('heard_@', 'payload @')
         BEGIN
         NOTIFY heard_@, 'in a transaction'
         SELECT 'not yet'
         COMMIT
         BEGIN
         NOTIFY heard_@, 'never'
         ROLLBACK
         SELECT pg_listening_channels()
         LISTEN other_@
         UNLISTEN heard_@
         NOTIFY heard_@
         SELECT pg_listening_channels()
         UNLISTEN *
         SELECT count(*) FROM pg_listening_channels()
         SELECT pg_notify('', 'x')",
    ),
    (
        "plpgsql",
        "DO $$ BEGIN RAISE NOTICE 'from a block of %', '@'; END $$
         CREATE FUNCTION adds_@(a int) RETURNS int LANGUAGE plpgsql AS $f$ BEGIN RAISE NOTICE 'adding'; RETURN a + @; END $f$
         SELECT adds_@(1)
         CREATE FUNCTION sets_@() RETURNS text LANGUAGE plpgsql SET work_mem = '2MB' AS $f$ BEGIN RETURN current_setting('work_mem'); END $f$
         SELECT sets_@(), current_setting('work_mem')
         CREATE PROCEDURE commits_@() LANGUAGE plpgsql AS $f$ BEGIN COMMIT; ROLLBACK; END $f$
         CALL commits_@()
         BEGIN; CALL commits_@()
         ROLLBACK
         DO $$ BEGIN PERFORM 1/0; END $$
         DROP FUNCTION adds_@(int), sets_@()
         DROP PROCEDURE commits_@",
    ),
    (
        "date and time",
        "SET datestyle = 'Postgres, MDY'
         SELECT '1997-02-10 17:32:01-08'::timestamptz
         SET TimeZone = 'America/New_York'
         SELECT '1997-02-10 17:32:01-08'::timestamptz
         SET intervalstyle = 'sql_standard'
         SELECT interval '1 year 2 months 3 days 04:05:06'
         SET TIME ZONE INTERVAL '-03:30' HOUR TO MINUTE
         SELECT '1997-02-10 17:32:01-08'::timestamptz
         SET TIME ZONE 'Europe/Berlin'
         SHOW TimeZone
         SET datestyle = 'no such style'
         SHOW datestyle
         SET TIME ZONE LOCAL
         SHOW TimeZone
         RESET TIME ZONE
         SET SESSION intervalstyle TO DEFAULT
         SHOW intervalstyle
         SET client_encoding = 'LATIN1'
         SELECT 'encoded', chr(228)
         SET NAMES 'UTF8'
         SELECT 'encoded', chr(228)
         SET application_name = 'application @'
         SHOW application_name
         SET standard_conforming_strings = off
         SELECT 'a\\nb'
         SET standard_conforming_strings = on
         SELECT 'a\\nb'",
    ),
    (
        "pipelined",
        "CREATE TABLE piped_@ (a int)
         >INSERT INTO piped_@ VALUES (1)
         >SET work_mem = '@MB'
         >SHOW work_mem
         >BEGIN
         >SET work_mem = '9MB'
         >SELECT 1/0
         >SHOW work_mem
         >ROLLBACK
         >SHOW work_mem
         >CREATE TEMP TABLE piped_temp_@ AS SELECT @ AS a
         >SELECT * FROM piped_temp_@
         >LISTEN piped_@
         >SELECT pg_listening_channels()
         >UNLISTEN *
         >DROP TABLE piped_temp_@
         >RESET work_mem
         >SHOW work_mem
         SELECT * FROM piped_@
         DROP TABLE piped_@",
    ),
    (
        "odd",
        "
         ;
         ; ; SELECT 1 ; ;
         -- a comment alone
         /* one */ SET /* two */ work_mem /* three */ = '5MB' -- four
         SHOW work_mem
         SELECT 'SET work_mem = 1'
         SELECT E'\\'; SET work_mem = ''1MB'''
         SHOW work_mem
         SELECT $$SET x$$, $tag$ LISTEN y $tag$
         SET \"work_mem\" TO '6MB'
         SHOW work_mem
         EXPLAIN (COSTS OFF) SELECT 1
         VALUES (1), (2)
         TABLE no_such_table
         SELEKT
         SELECT \"unterminated
         SELECT 'unterminated",
    ),
    (
        "own",
        "CREATE SCHEMA own_@
         CREATE TABLE own_@.here AS SELECT 'own @' AS a
         SET search_path = own_@
         SELECT * FROM here
         BEGIN
         SET search_path = public
         SELECT * FROM here
         ROLLBACK
         SELECT * FROM here
         SET my.number = '@'
         CREATE TABLE seen AS SELECT current_setting('my.number') AS a, current_setting('search_path') AS b
         SELECT * FROM seen
         DROP SCHEMA own_@ CASCADE
         SELECT * FROM here",
    ),
];

/// What may differ: the process ID of a notification, the number of the table that a column is from, and where in
/// PostgreSQL's source an error was raised, because some of them pgusher raises in its place.
pub(crate) fn normal(mut message: Message) -> Message {
    match message.tag {
        'A' => message.body[..4].fill(0),
        'E' | 'N' => {
            let fields =
                message.body.split(|b| *b == 0).filter(|f| !matches!(f.first(), Some(b'F' | b'L' | b'R')));
            message.body = fields.collect::<Vec<_>>().join(&0);
            // Which of the messages that break a COPY comes first: the connection is lost in any case.
            let broken = b"unexpected message type 0x";
            if let Some(at) = message.body.windows(broken.len()).position(|w| w == broken) {
                message.body[at + broken.len()..][..2].fill(b'?');
            }
        }
        'T' => {
            let mut at = 2;
            while let Some(end) = message.body[at..].iter().position(|b| *b == 0) {
                message.body[at + end + 1..at + end + 5].fill(0);
                at += end + 19;
            }
        }
        _ => {}
    }
    message
}

/// What a client sends before it reads, and how many times it is told then that the server is ready.
pub(crate) type Burst = (Vec<u8>, usize);

/// A script in the simple protocol.
pub(crate) fn simple(script: &str, number: usize) -> Vec<Burst> {
    let mut bursts: Vec<Burst> = Vec::new();
    for line in script.lines().map(str::trim_start) {
        let sql = query(&line.trim_start_matches('>').replace('@', &number.to_string()));
        match bursts.last_mut() {
            Some((bytes, answers)) if line.starts_with('>') => {
                bytes.extend(sql);
                *answers += 1;
            }
            _ => bursts.push((sql, 1)),
        }
    }
    bursts
}

/// The same in the extended protocol, unnamed and named by turns; what is no single statement is an error there, and
/// must be the same error.
pub(crate) fn extended(script: &str, number: usize) -> Vec<Burst> {
    let burst = |(i, line): (usize, &str)| {
        let sql = line.trim_start_matches('>').replace('@', &number.to_string());
        let name = if i % 2 == 0 { String::new() } else { format!("s{i}") };
        let messages =
            [parse(&name, &sql), describe_statement(&name), bind("", &name, &[]), execute(), sync()];
        (messages.concat(), 1)
    };
    script.lines().map(str::trim_start).enumerate().map(burst).collect()
}

/// The answers to a script, one list for each time that the server is ready.
fn answers(address: SocketAddr, user: &str, script: &[Burst]) -> Vec<Vec<Message>> {
    let mut raw = arrive(address, user);
    let mut answers = Vec::new();
    for (bytes, ready) in script {
        raw.send(bytes);
        answers.extend((0..*ready).map(|_| raw.until_ready().into_iter().map(normal).collect()));
    }
    answers
}

pub(crate) fn arrive(address: SocketAddr, user: &str) -> Raw {
    Raw::login_with(
        address,
        0x0003_0000,
        &[("user", user), ("database", "dev"), ("application_name", "differential")],
    )
}

/// Pool modes, each with how many connections the eight sessions share.
const POOLS: [(&str, usize); 4] =
    [("transaction", 1), ("transaction", 2), ("transaction", 5), ("session", 8)];

/// Whose the sessions are, by turns: all of them are one user upstream, and share the pool.
const USERS: [&str; 2] = ["raw", "walks"];

pub(crate) fn through(pool_mode: &str, pool_size: usize) -> Pgusher {
    let config =
        ["@BASE@", "@ENVIRONMENT@", "@USERS@"].iter().fold(WAREHOUSE.to_owned(), |c, p| c.replace(p, ""));
    let config = config
        .replace(
            "@SERVER@",
            &format!("pool_mode = \"{pool_mode}\"\ndefault_pool_size = {pool_size}\nmax_pinned = 10"),
        )
        .replace("[connections.warehouse]\n", "[connections.warehouse]\naliases = [\"dev\"]\n")
        .replace("@DEV@", &server().port.to_string())
        .replace("@PROD@", &pair().prod.port.to_string());
    Pgusher::start(&(config + "[users.walks]\nauth_type = \"trust\"\n"))
}

pub(crate) type Way = fn(&str, usize) -> Vec<Burst>;

/// `numbers` are the sessions': the tests run at the same time, on the same server.
fn compare(way: Way, numbers: Range<usize>) {
    let direct: SocketAddr = ([127, 0, 0, 1], server().port).into();
    let run = |address: SocketAddr, user: &'static str, number: usize| {
        SCRIPTS.map(|(_, script)| answers(address, user, &way(script, number)))
    };
    let expected: Vec<_> = numbers.clone().map(|number| run(direct, "app", number)).collect();
    for (pool_mode, pool_size) in POOLS {
        let pgusher = through(pool_mode, pool_size);
        let address = pgusher.address();
        std::thread::scope(|scope| {
            let sessions: Vec<_> = numbers
                .clone()
                .map(|number| scope.spawn(move || run(address, USERS[number % 2], number)))
                .collect();
            for (expected, (number, session)) in expected.iter().zip(numbers.clone().zip(sessions)) {
                let got = session.join().unwrap();
                for ((name, script), (got, expected)) in SCRIPTS.iter().zip(got.iter().zip(expected)) {
                    for (line, (got, expected)) in script.lines().zip(got.iter().zip(expected)) {
                        assert_eq!(
                            shown(got),
                            shown(expected),
                            "{name}, session {number}, {pool_mode} mode, {pool_size} connections: {}",
                            line.trim()
                        );
                    }
                }
            }
        });
    }
}

/// Readable in a failure, and nothing lost.
pub(crate) fn shown(messages: &[Message]) -> Vec<String> {
    messages.iter().map(|m| format!("{} {}", m.tag, m.body.escape_ascii())).collect()
}

#[test]
fn scripts_in_the_simple_protocol_answer_as_they_do_directly() {
    compare(simple, 1..9);
}

#[test]
fn scripts_in_the_extended_protocol_answer_as_they_do_directly() {
    compare(extended, 11..19);
}

const STATEMENTS: [&str; 43] = [
    "SELECT 1",
    "SELECT $1::text",
    "SELECT generate_series(1, 3)",
    "SELECT 'own @'",
    "SELECT 1/0",
    "SELEKT",
    "",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "ROLLBACK TO s",
    "SET work_mem = '@MB'",
    "SET work_mem = '9MB'",
    "SET LOCAL work_mem = '8MB'",
    "SHOW work_mem",
    "RESET work_mem",
    "SET datestyle = 'German'",
    "SELECT '2026-12-31'::date::text",
    "RESET ALL",
    "DISCARD ALL",
    "DEALLOCATE ALL",
    "SET datestyle TO DEFAULT",
    "RESET datestyle; SET work_mem = '7MB'",
    "SET datestyle = 'SQL, DMY'; RESET work_mem",
    "SET TIME ZONE 'Asia/Tokyo'; RESET ROLE",
    "SELECT '2026-12-31 12:00'::timestamptz::text",
    "SET ROLE plain",
    "RESET ROLE",
    "SELECT current_user",
    "COPY walked_@ FROM STDIN",
    "COPY (SELECT generate_series(1, 2)) TO STDOUT",
    "SELECT count(*) FROM walked_@",
    "CREATE TEMP TABLE walk_temp (a int)",
    "DROP TABLE walk_temp",
    "SELECT * FROM walk_temp",
    "LISTEN walk_@",
    "UNLISTEN *",
    "NOTIFY walk_@",
    "PREPARE sqlp AS SELECT 7",
    "EXECUTE sqlp",
    "DEALLOCATE sqlp",
    "SELECT pg_try_advisory_lock(77@), pg_advisory_unlock(77@)",
];

/// A few messages, as a client that has lost its way may send them, up to a `Sync` or a query.
fn walk(random: &mut Random, number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + random.below(7) {
        let name = random.of(&["", "a", "b"]);
        let portal = random.of(&["", "", "p"]);
        let sql = random.of(&STATEMENTS).replace('@', &number.to_string());
        // What a named EXECUTE gives is decided when it is prepared, which pgusher may do again.
        let name = if sql.starts_with("EXECUTE") { "" } else { name };
        bytes.extend(match random.below(14) {
            0..4 => query(&sql),
            4..6 => parse(name, &sql),
            6 => bind(portal, name, if random.below(4) == 0 { &["x"] } else { &[] }),
            7 => message('D', format!("{}{name}\0", random.of(&["S", "P"])).as_bytes()),
            8 => [message('E', &[portal.as_bytes(), &[0, 0, 0, 0, random.below(2) as u8]].concat()), sync()]
                .concat(),
            9 => message('C', format!("{}{name}\0", random.of(&["S", "P"])).as_bytes()),
            10 => [parse("", &sql), bind("", "", &[]), execute()].concat(),
            11 => {
                let (tag, body) =
                    random.of(&[('d', &b"1\n"[..]), ('c', b""), ('f', b"enough\0"), ('H', b"")]);
                message(tag, body)
            }
            12 => [parse(name, &sql), bind("", name, &[]), message('D', b"P\0"), execute(), sync()].concat(),
            _ => sync(),
        });
    }
    bytes
}

/// What a walk is answered with, one list for each step. Behind each step come messages after which it is over: the
/// first of them may be swallowed by a COPY, or by an error; the last one is answered.
fn walked(address: SocketAddr, user: &str, number: usize, steps: usize) -> Vec<Vec<Message>> {
    let mut random = Random(0x5eed_0000 + number as u64);
    let mut raw = arrive(address, user);
    let table = format!("walked_{number}");
    raw.ask(&query(&format!("CREATE TABLE IF NOT EXISTS {table} (a int); TRUNCATE {table}")));
    let mut answers = Vec::new();
    for step in 0..steps {
        let end = format!("end of step {step}");
        let last = [query("SELECT 'nearly'"), sync(), query("ROLLBACK"), query(&format!("SELECT '{end}'"))];
        let _ = raw.stream.write_all(&[walk(&mut random, number), sync(), last.concat()].concat());
        let mut answer: Vec<Message> = Vec::new();
        while !answer.iter().any(|m| m.tag == 'D' && m.columns() == [end.as_str()]) {
            let some = raw.until_ready();
            let lost = some.last().is_none_or(|m| m.tag != 'Z');
            answer.extend(some.into_iter().map(normal));
            if lost {
                // What PostgreSQL does to whoever sends anything but data during a COPY.
                raw = arrive(address, user);
                break;
            }
        }
        answers.push(answer);
    }
    answers
}

#[test]
fn random_walks_through_the_protocol_are_answered_as_they_are_directly() {
    let steps = size(400, 1000);
    let direct: SocketAddr = ([127, 0, 0, 1], server().port).into();
    let numbers = 11..15;
    let expected: Vec<_> = numbers.clone().map(|number| walked(direct, "app", number, steps)).collect();
    for (pool_mode, pool_size) in POOLS {
        let pgusher = through(pool_mode, pool_size);
        let address = pgusher.address();
        std::thread::scope(|scope| {
            let sessions: Vec<_> = numbers
                .clone()
                .map(|number| scope.spawn(move || walked(address, "raw", number, steps)))
                .collect();
            for (expected, (number, session)) in expected.iter().zip(numbers.clone().zip(sessions)) {
                for (step, (got, expected)) in session.join().unwrap().iter().zip(expected).enumerate() {
                    assert_eq!(
                        shown(got),
                        shown(expected),
                        "session {number}, step {step}, {pool_mode} mode, {pool_size} connections"
                    );
                }
            }
        });
    }
}
