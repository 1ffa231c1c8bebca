//! Every kind of state, every way of leaving, both pool modes: what one client leaves behind, the next one on the same
//! connection never sees (T-50).

use std::time::Duration;

use super::house::{Pgusher, eventually, pair, warehouse};
use super::wire::{Message, Raw, bind, describe_statement, execute, message, parse, query, sync};

/// A kind of state: how it is made, and a look that answers `clean` where there is none.
#[derive(Clone)]
struct Kind {
    name: &'static str,
    make: &'static str,
    look: &'static str,
    clean: &'static str,
}

const fn kind(name: &'static str, make: &'static str, look: &'static str, clean: &'static str) -> Kind {
    Kind { name, make, look, clean }
}

// `random()` after `setseed(0.5)`: of PostgreSQL up to 14 and from 15 on.
const KINDS: [Kind; 33] = [
    kind("SET", "SET work_mem = '9MB'", "SHOW work_mem", "4MB"),
    kind("SET LOCAL", "BEGIN; SET LOCAL work_mem = '9MB'", "SHOW work_mem", "4MB"),
    kind("SET ROLE", "SET ROLE plain", "SELECT current_user", "app"),
    kind("SET SESSION AUTHORIZATION", "SET SESSION AUTHORIZATION plain", "SELECT session_user", "app"),
    kind(
        "set_config",
        "SELECT set_config('my.x', 'a', false)",
        "SELECT coalesce(current_setting('my.x', true), '')",
        "",
    ),
    kind("search_path", "SET search_path = pg_catalog", "SHOW search_path", "\"$user\", public"),
    kind("timezone", "SET timezone = 'Asia/Tokyo'", "SELECT current_setting('timezone') = 'Asia/Tokyo'", "f"),
    kind("statement_timeout", "SET statement_timeout = '77s'", "SHOW statement_timeout", "0"),
    kind("application_name", "SET application_name = 'a'", "SHOW application_name", ""),
    kind("client_encoding", "SET client_encoding = 'LATIN1'", "SHOW client_encoding", "UTF8"),
    kind("read only", "SET default_transaction_read_only = on", "SHOW transaction_read_only", "off"),
    kind("plan_cache_mode", "SET plan_cache_mode = force_generic_plan", "SHOW plan_cache_mode", "auto"),
    kind("temporary table", "CREATE TEMP TABLE cell (a int)", "SELECT to_regclass('cell') IS NULL", "t"),
    kind(
        "temporary view",
        "CREATE TEMP VIEW cellv AS SELECT 1 AS a",
        "SELECT to_regclass('cellv') IS NULL",
        "t",
    ),
    kind(
        "temporary function",
        "CREATE FUNCTION pg_temp.cellf() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT to_regproc('pg_temp.cellf') IS NULL",
        "t",
    ),
    kind(
        "advisory lock",
        "SELECT pg_advisory_lock(987654)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        "0",
    ),
    kind("LISTEN", "LISTEN cell", "SELECT count(*) FROM pg_listening_channels()", "0"),
    kind(
        "cursor WITH HOLD",
        "BEGIN; DECLARE cell CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "SELECT count(*) FROM pg_cursors WHERE name = 'cell'",
        "0",
    ),
    kind(
        "portal",
        "BEGIN; DECLARE cell CURSOR FOR SELECT 1",
        "SELECT count(*) FROM pg_cursors WHERE name = 'cell'",
        "0",
    ),
    kind(
        "SQL PREPARE",
        "PREPARE cell AS SELECT 1",
        "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
        "0",
    ),
    kind("named Parse", "\u{1}named", "\u{1}named", "26000"),
    kind("unnamed statement", "\u{1}unnamed", "\u{1}unnamed", "26000"),
    kind(
        "currval",
        "SELECT nextval('cell_seq')",
        "SELECT lastval()",
        "55000 lastval is not yet defined in this session",
    ),
    kind("seed", "SELECT setseed(0.5)", "SELECT random() IN (0.2499104186659835, 0.9851677175347999)", "f"),
    kind(
        "seed in a function",
        "SELECT cell_seed()",
        "SELECT random() IN (0.2499104186659835, 0.9851677175347999)",
        "f",
    ),
    kind("pending NOTIFY", "BEGIN; NOTIFY cell", "SELECT now() = statement_timestamp()", "t"),
    kind("open COPY", "COPY cell_copy FROM STDIN", "SELECT count(*) FROM cell_copy", "0"),
    kind("failed transaction", "BEGIN; SELECT 1/0", "SELECT 'not failed'", "not failed"),
    kind(
        "open transaction",
        "BEGIN; INSERT INTO cell_copy VALUES (1)",
        "SELECT count(*) FROM cell_copy",
        "0",
    ),
    kind(
        "large object",
        "BEGIN; SELECT lo_open(lo_create(0), 393216)",
        "SELECT lo_close(0)",
        "42704 invalid large-object descriptor: 0",
    ),
    kind(
        "snapshot of statistics",
        "BEGIN; SELECT pg_stat_get_snapshot_timestamp()",
        "SELECT pg_stat_get_snapshot_timestamp() IS NULL",
        "t",
    ),
    kind(
        "replication origin",
        "SELECT pg_replication_origin_session_setup('cell')",
        "SELECT pg_replication_origin_session_is_setup()",
        "f",
    ),
    kind(
        "loaded library",
        "LOAD 'auto_explain'",
        "SELECT count(*) FROM pg_settings WHERE name LIKE 'auto_explain.%'",
        "0",
    ),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leave {
    /// It stays, having ended its transaction.
    Stays,
    Terminate,
    Fin,
    Rst,
    /// In the middle of a message.
    Torn,
    /// While a query runs.
    Running,
}

/// How often a client comes that finds no connection free.
const PATIENT: usize = 20;

const WAYS: [Leave; 6] =
    [Leave::Stays, Leave::Terminate, Leave::Fin, Leave::Rst, Leave::Torn, Leave::Running];

fn make(raw: &mut Raw, kind: &Kind) {
    match kind.make {
        "\u{1}named" => assert_eq!(raw.tags(&[parse("cell", "SELECT 'foreign'"), sync()].concat()), "1Z"),
        "\u{1}unnamed" => assert_eq!(raw.tags(&[parse("", "SELECT 'foreign'"), sync()].concat()), "1Z"),
        copy if copy.starts_with("COPY") => {
            raw.send(&[query(copy), message('d', b"1\n")].concat());
            assert_eq!(raw.next().unwrap().tag, 'G');
        }
        sql => {
            let mut answer = raw.ask(&query(sql));
            eventually("the process that had the origin has ended", || {
                let busy = answer.iter().any(|m| m.tag == 'E' && m.field('C') == "55006");
                if busy {
                    answer = raw.ask(&query(sql));
                }
                !busy
            });
            let failed = answer.iter().find(|m| m.tag == 'E').map(|m| m.field('C'));
            assert!(failed.is_none() || failed.as_deref() == Some("22012"), "{sql}: {answer:?}");
        }
    }
}

fn look(raw: &mut Raw, kind: &Kind) -> String {
    let name = match kind.look {
        "\u{1}named" => "cell",
        "\u{1}unnamed" => "",
        sql => return raw.value(sql),
    };
    let answer = raw.ask(&[describe_statement(name), bind("", name, &[]), execute(), sync()].concat());
    let told = |error: &Message| error.field(if error.field('C') == "53300" { 'M' } else { 'C' });
    answer.iter().find(|m| m.tag == 'E').map_or_else(|| "it is there".into(), told)
}

fn leave(mut raw: Raw, way: Leave) -> Option<Raw> {
    match way {
        Leave::Stays => {
            // Whatever is open is ended: a COPY, a transaction, or nothing.
            raw.send(&[message('f', b"enough\0"), query("ROLLBACK"), query("SELECT 'ended'")].concat());
            while !raw.until_ready().iter().any(|m| m.tag == 'D' && m.columns() == ["ended"]) {}
            return Some(raw);
        }
        Leave::Terminate => raw.send(&message('X', b"")),
        Leave::Fin => {}
        Leave::Rst => socket2::SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).unwrap(),
        Leave::Torn => raw.send(&query("SELECT 'never read to its end'")[..9]),
        Leave::Running => {
            raw.send(&query("SELECT pg_sleep(30)"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    None
}

#[test]
fn nothing_that_a_client_leaves_is_seen_by_the_next_one() {
    let dev = &pair().dev;
    dev.sql(
        "dev",
        "CREATE SEQUENCE cell_seq; CREATE TABLE cell_copy (a int); GRANT ALL ON cell_copy, cell_seq TO plain;
         CREATE FUNCTION cell_seed() RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM setseed(0.5); END'",
    );
    dev.sql("dev", "SELECT pg_replication_origin_create('cell')");
    let mut kinds = KINDS.to_vec();
    // The state that a language of functions keeps, where the server has such a language.
    let has_plperl = "SELECT count(*) FROM pg_available_extensions WHERE name = 'plperl'";
    if dev.sql("dev", has_plperl) == "1" {
        dev.sql(
            "dev",
            "CREATE EXTENSION plperl;
             CREATE FUNCTION cell_set() RETURNS text LANGUAGE plperl AS '$_SHARED{cell} = 1; return 1';
             CREATE FUNCTION cell_get() RETURNS text LANGUAGE plperl AS 'return $_SHARED{cell}'",
        );
        kinds.push(kind("PL variables", "SELECT cell_set()", "SELECT coalesce(cell_get(), 'none')", "none"));
    }
    let (mut cleaned, mut discarded, mut kept) = (0, 0, 0);
    for mode in ["transaction", "session"] {
        // A client that stays in session mode keeps its connection: the other one waits, and not for long.
        let server = format!("default_pool_size = 1\npool_mode = \"{mode}\"\nquery_wait_timeout = \"150ms\"");
        let pgusher = Pgusher::start(&warehouse(&server, "", ""));
        for kind in &kinds {
            for way in WAYS {
                let cell = format!("{}, {way:?}, {mode}", kind.name);
                let mut one = arrive(&pgusher, PATIENT).unwrap_or_else(|| panic!("{cell}: no connection"));
                let before = one.value("SELECT 0 + pg_backend_pid()");
                make(&mut one, kind);
                let stays = leave(one, way);
                let tries = if stays.is_some() { 1 } else { PATIENT };
                if stays.is_none() {
                    // Whoever waits is given a new connection in session mode: the one that was left is to be met.
                    std::thread::sleep(Duration::from_millis(10));
                }
                let mut seen = arrive(&pgusher, tries).map(|mut other| (look(&mut other, kind), other));
                if stays.is_some() && seen.as_ref().is_none_or(|(saw, _)| saw.contains("query_wait_timeout"))
                {
                    kept += 1;
                    drop((stays, seen.take()));
                    seen = arrive(&pgusher, PATIENT).map(|mut other| (look(&mut other, kind), other));
                }
                let (mut saw, mut other) = seen.unwrap_or_else(|| panic!("{cell}: no connection"));
                eventually("a connection is free", || {
                    if saw.contains("query_wait_timeout") {
                        saw = look(&mut other, kind);
                    }
                    !saw.contains("query_wait_timeout")
                });
                assert_eq!(saw, kind.clean, "{cell}");
                if other.value("SELECT 0 + pg_backend_pid()") == before {
                    cleaned += 1;
                } else {
                    discarded += 1;
                }
            }
        }
    }
    eprintln!(
        "{} cells: {cleaned} cleaned, {discarded} discarded, none seen ({kept} were kept while their session stayed)",
        cleaned + discarded
    );
    assert_eq!(cleaned + discarded, kinds.len() * WAYS.len() * 2);
    dev.sql("dev", "DROP FUNCTION cell_seed; DROP TABLE cell_copy; DROP SEQUENCE cell_seq; DROP EXTENSION IF EXISTS plperl CASCADE");
}

/// A client, once there is a connection for it; `None` if another one keeps it.
fn arrive(pgusher: &Pgusher, tries: usize) -> Option<Raw> {
    for _ in 0..tries {
        let mut raw = Raw::connect(pgusher.address());
        raw.send(&super::wire::startup(0x0003_0000, &[("user", "raw"), ("database", "warehouse")]));
        match raw.until_ready().last() {
            Some(m) if m.tag == 'Z' => return Some(raw),
            _ => {}
        }
    }
    None
}
