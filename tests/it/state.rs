//! What a client does to its session in transaction mode: carried, or kept, and never another's.

use super::house::{Pgusher, Postgres, eventually, pair, warehouse};
use super::relay::{one_connection, unseen, with_options};
use super::wire::{Message, Raw, bind, execute, message, parse, query, sync};

/// Runs it; it must work.
pub(crate) fn done(raw: &mut Raw, sql: &str) -> Vec<Message> {
    let answer = raw.ask(&query(sql));
    assert!(!answer.iter().any(|m| m.tag == 'E'), "{sql}: {answer:?}");
    answer
}

#[test]
fn what_a_client_sets_is_carried_from_connection_to_connection_and_never_seen_by_another() {
    // One connection, handed over at each turn.
    let pgusher = one_connection();
    for (make, look, mine, others) in [
        ("SET work_mem = '9MB'", "SHOW work_mem", "9MB", "4MB"),
        (
            "SET SESSION search_path TO pg_catalog, public",
            "SHOW search_path",
            "pg_catalog, public",
            "\"$user\", public",
        ),
        ("SET statement_timeout = 12345", "SHOW statement_timeout", "12345ms", "0"),
        ("SELECT set_config('work_mem', '8MB', false)", "SHOW work_mem", "8MB", "4MB"),
        ("SET my.tenant = 'five'", "SELECT current_setting('my.tenant', true)", "five", ""),
        (
            "SELECT set_config('my.Other', 'it''s \\ ä', false)",
            "SELECT current_setting('my.other', true)",
            "it's \\ ä",
            "",
        ),
        (
            "DO $$ BEGIN PERFORM set_config('my.x', 'hidden', false); END $$",
            "SELECT current_setting('my.x', true)",
            "hidden",
            "",
        ),
        ("SET ROLE plain", "SELECT current_user", "plain", "app"),
        ("SET role = plain", "SHOW role", "plain", "none"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SHOW transaction_read_only", "on", "off"),
        ("SET DateStyle = 'German'", "SELECT '2026-12-31'::date", "31.12.2026", "2026-12-31"),
        ("BEGIN; SET work_mem = '7MB'; COMMIT", "SHOW work_mem", "7MB", "4MB"),
        ("BEGIN; SET work_mem = '7MB'; ROLLBACK", "SHOW work_mem", "4MB", "4MB"),
        ("BEGIN; SET LOCAL work_mem = '7MB'; COMMIT", "SHOW work_mem", "4MB", "4MB"),
        ("SET work_mem = '6MB'; SET work_mem = '5MB'", "SHOW work_mem", "5MB", "4MB"),
        ("SET work_mem = '6MB'; RESET work_mem", "SHOW work_mem", "4MB", "4MB"),
        (
            "BEGIN; SAVEPOINT s; SET work_mem = '7MB'; ROLLBACK TO s; SET my.x = 'y'; COMMIT",
            "SELECT current_setting('work_mem') || current_setting('my.x', true)",
            "4MBy",
            "4MB",
        ),
    ] {
        let mut one = Raw::login(pgusher.address(), "raw");
        let mut other = Raw::login(pgusher.address(), "raw");
        done(&mut one, make);
        assert_eq!(one.value("SHOW pgusher.pin"), "", "{make}");
        for turn in 0..3 {
            assert_eq!(other.value(look), others, "{make}: another, turn {turn}");
            assert_eq!(one.value(look), mine, "{make}: its own, turn {turn}");
        }
        drop(one);
        assert_eq!(other.value(look), others, "{make}: after it has left");
    }
}

#[test]
fn settings_are_carried_in_the_extended_protocol_too() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    let run = |raw: &mut Raw, name: &str, sql: &str| {
        raw.tags(&[parse(name, sql), bind("", name, &[]), execute(), sync()].concat())
    };
    assert_eq!(run(&mut one, "", "SET work_mem = '9MB'"), "12CZ");
    assert_eq!(other.value("SHOW work_mem"), "4MB");
    assert_eq!(one.value("SHOW work_mem"), "9MB");
    assert_eq!(run(&mut one, "named", "SET work_mem = '8MB'"), "12CZ");
    assert_eq!(other.value("SHOW work_mem"), "4MB");
    assert_eq!(one.value("SHOW work_mem"), "8MB");
    // A named one that was prepared long before, and a pipeline in which one fails.
    assert_eq!(one.tags(&[bind("", "named", &[]), execute(), sync()].concat()), "2CZ");
    let failing = [
        parse("", "SET work_mem = '1MB'"),
        bind("", "", &[]),
        execute(),
        parse("", "SELECT 1/0"),
        bind("", "", &[]),
        execute(),
        sync(),
    ];
    assert!(one.tags(&failing.concat()).ends_with("EZ"));
    assert_eq!(other.value("SHOW work_mem"), "4MB");
    assert_eq!(one.value("SHOW work_mem"), "8MB", "rolled back with the rest of its pipeline");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
}

#[test]
fn resets_go_back_to_what_the_client_set_at_startup() {
    let pgusher = one_connection();
    let mut one = with_options(&pgusher, "-c work_mem=9MB -c datestyle=German -c my.x=mine");
    let mut other = Raw::login(pgusher.address(), "raw");
    let look = "SELECT current_setting('work_mem') || ' ' || current_setting('datestyle') || ' ' || current_setting('my.x', true)";
    let startup = "9MB German, DMY mine";
    assert_eq!(one.value(look), startup);
    for reset in [
        "RESET work_mem",
        "RESET ALL",
        "DISCARD ALL",
        "BEGIN; RESET ALL; COMMIT",
        "BEGIN; RESET datestyle; RESET my.x; COMMIT",
        "RESET work_mem; RESET DateStyle; RESET my.x",
        "BEGIN; RESET ALL; ROLLBACK",
    ] {
        if !reset.ends_with("ROLLBACK") {
            done(&mut one, "SET work_mem = '7MB'; SET datestyle = 'ISO'; SET my.x = 'other'");
            assert_eq!(one.value(look), "7MB ISO, DMY other");
        }
        done(&mut one, reset);
        assert_eq!(other.value("SHOW work_mem"), "4MB", "{reset}");
        let now = one.value(look);
        let expected = match reset {
            "RESET work_mem" => "9MB ISO, DMY other",
            "BEGIN; RESET datestyle; RESET my.x; COMMIT" => "7MB German, DMY mine",
            _ => startup,
        };
        assert_eq!(now, expected, "{reset}");
        assert_eq!(one.value("SHOW pgusher.pin"), "", "{reset}");
    }
}

#[test]
fn a_session_that_keeps_its_connection_goes_back_to_its_startup_values_too() {
    let pgusher = one_connection();
    let mut one = with_options(&pgusher, "-c work_mem=9MB -c application_name=started -c my.x=mine");
    let look = "SELECT current_setting('work_mem') || current_setting('application_name') || current_setting('my.x', true)";
    for keep in ["CREATE TEMP TABLE t (a int)", "LOAD 'plpgsql'"] {
        done(&mut one, keep);
        for reset in
            ["RESET work_mem; RESET application_name; RESET my.x", "RESET ALL", "BEGIN; RESET ALL; COMMIT"]
        {
            done(&mut one, "SET work_mem = '7MB'; SET application_name = 'other'; SET my.x = 'other'");
            assert_eq!(one.value(look), "7MBotherother");
            done(&mut one, reset);
            assert_eq!(one.value(look), "9MBstartedmine", "{keep}: {reset}");
        }
    }
    done(&mut one, "DISCARD ALL");
    assert_eq!(one.value(look), "9MBstartedmine");
}

#[test]
fn what_cannot_be_carried_pins_until_it_is_gone() {
    let pgusher = one_connection();
    for (make, reason, undo) in [
        ("CREATE TEMP TABLE t AS SELECT 1", "temporary object", "DROP TABLE t"),
        ("CREATE TEMP TABLE t AS SELECT 1", "temporary object", "DISCARD TEMP"),
        ("CREATE TEMP SEQUENCE s", "temporary object", "BEGIN; DROP SEQUENCE s; COMMIT"),
        (
            "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "temporary object",
            "DROP FUNCTION pg_temp.f()",
        ),
        (
            "SELECT pg_advisory_lock(42), pg_advisory_lock_shared(43)",
            "advisory lock",
            "SELECT pg_advisory_unlock_all()",
        ),
        ("SELECT pg_try_advisory_lock(42)", "advisory lock", "SELECT pg_advisory_unlock(42)"),
        ("PREPARE p AS SELECT 1", "sql prepare", "DEALLOCATE p"),
        ("PREPARE p AS SELECT 1", "sql prepare", "DEALLOCATE ALL"),
        ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", "cursor with hold", "CLOSE c"),
        ("CREATE TEMP TABLE t AS SELECT 1; LISTEN news", "temporary object", "DISCARD ALL"),
    ] {
        let mut one = Raw::login(pgusher.address(), "raw");
        done(&mut one, make);
        assert_eq!(one.value("SHOW pgusher.pin"), reason, "{make}");
        let mut other = Raw::login(pgusher.address(), "raw");
        other.send(&query("SELECT 'waited'"));
        // Settings that it changes meanwhile do not unpin it.
        done(&mut one, "SET work_mem = '9MB'");
        assert_eq!(one.value("SHOW pgusher.pin"), reason, "{make}");
        done(&mut one, undo);
        assert!(other.until_ready().iter().any(|m| m.tag == 'D' && m.columns() == ["waited"]), "{undo}");
        assert_eq!(one.value("SHOW pgusher.pin"), "", "{undo}");
        assert_eq!(other.value("SHOW work_mem"), "4MB", "{undo}");
    }
    for harmless in [
        "BEGIN; CREATE TEMP TABLE t (a int) ON COMMIT DROP; COMMIT",
        "BEGIN; CREATE TEMP TABLE t (a int); ROLLBACK",
        "BEGIN; LISTEN news; ROLLBACK",
        "BEGIN; SELECT pg_advisory_xact_lock(1); COMMIT",
        "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; ROLLBACK",
        "DROP TABLE IF EXISTS no_such_table",
    ] {
        let mut one = Raw::login(pgusher.address(), "raw");
        done(&mut one, harmless);
        assert_eq!(one.value("SHOW pgusher.pin"), "", "{harmless}");
        assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 'shared'"), "shared");
    }
}

#[test]
fn a_statement_of_sql_is_deallocated_in_both_protocols_and_keeps_nothing() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let extended = |sql: &str| [parse("", sql), bind("", "", &[]), execute(), sync()].concat();
    for deallocate in [query("DEALLOCATE p"), extended("DEALLOCATE p"), extended("DEALLOCATE PREPARE p")] {
        done(&mut one, "PREPARE p AS SELECT 1");
        assert_eq!(one.value("SHOW pgusher.pin"), "sql prepare");
        assert!(!one.tags(&deallocate).contains('E'));
        assert_eq!(one.value("SHOW pgusher.pin"), "");
        assert_eq!(one.value("EXECUTE p"), "26000 prepared statement \"p\" does not exist");
    }
    // One of the protocol is known to the upstream by another name.
    assert_eq!(one.tags(&[parse("p", "SELECT 1"), sync()].concat()), "1Z");
    let mut other = Raw::login(pgusher.address(), "raw");
    assert_eq!(other.tags(&[parse("o", "SELECT 1"), sync()].concat()), "1Z");
    let run = |name: &str| [bind("", name, &[]), execute(), sync()].concat();
    assert!(one.tags(&run("no such")).starts_with('E'));
    // What fails before it takes the name does not take it.
    let failing = [parse("", "SELECT 1/0"), bind("", "", &[]), execute(), extended("DEALLOCATE p")].concat();
    assert_eq!(one.tags(&failing), "1EZ");
    assert_eq!(one.tags(&run("p")), "2DCZ");
    assert_eq!(one.tags(&extended("DEALLOCATE p")), "12CZ");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    assert_eq!(other.tags(&run("o")), "2DCZ");
    let gone = one.ask(&run("p"));
    assert_eq!(gone[0].field('M'), "prepared statement \"p\" does not exist");
    // In order, in one pipeline.
    let again = [
        parse("p", "SELECT 'first'"),
        bind("", "p", &[]),
        execute(),
        extended("DEALLOCATE p")[..extended("DEALLOCATE p").len() - 5].to_vec(),
        parse("p", "SELECT 'second'"),
        run("p"),
    ];
    let answer = one.ask(&again.concat());
    let rows: Vec<_> = answer.iter().filter(|m| m.tag == 'D').map(|m| m.columns().remove(0)).collect();
    assert_eq!(rows, ["first", "second"], "{answer:?}");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    // Nobody can name what is pgusher's.
    let reserved = one.value(&unseen("max(name)"));
    assert!(reserved.starts_with("_pgusher"), "{reserved}");
    let answer = one.ask(&extended(&format!("DEALLOCATE \"{reserved}\"")));
    assert!(answer.iter().any(|m| m.tag == 'E' && m.field('C') == "26000"), "{answer:?}");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    assert_eq!(one.tags(&run("p")), "2DCZ");
}

#[test]
fn what_cannot_be_asked_for_pins_for_good_and_is_gone_with_its_session() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    for (make, reason, look, clean) in [
        ("SELECT setseed(0.5)", "opaque statement", "SELECT current_user", "app"),
        (
            "SELECT set_config(n, '9MB', false) FROM (VALUES ('work_mem')) AS v (n)",
            "setting",
            "SHOW work_mem",
            "4MB",
        ),
        (
            "CREATE TEMP TABLE kept_with_load AS SELECT 1; LOAD 'plpgsql'",
            "opaque statement",
            "SELECT count(*) FROM pg_class WHERE relname = 'kept_with_load'",
            "0",
        ),
    ] {
        let mut one = Raw::login(pgusher.address(), "raw");
        done(&mut one, make);
        let pid = one.value("SELECT 0 + pg_backend_pid()");
        assert_eq!(one.value("SHOW pgusher.pin"), reason, "{make}");
        done(&mut one, "DISCARD TEMP");
        assert_eq!(one.value("SHOW pgusher.pin"), reason, "{make}");
        let mut other = Raw::login(pgusher.address(), "raw");
        assert_ne!(other.value("SELECT 0 + pg_backend_pid()"), pid, "{make}");
        drop(one);
        eventually("the pinned connection is gone", || {
            let alive = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
            pair().dev.sql("dev", &alive) == "0"
        });
        assert_eq!(other.value(look), clean, "{make}");
    }
}

/// Npgsql sends `SET SESSION AUTHORIZATION DEFAULT` whenever a connection goes back to its pool.
#[test]
fn a_session_of_another_user_keeps_its_connection_until_it_is_its_own_again() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    let who = "SELECT concat(session_user, ' ', current_user)";
    for (make, end) in [
        ("SET SESSION AUTHORIZATION plain", "SET SESSION AUTHORIZATION DEFAULT"),
        (
            "DO $$ BEGIN EXECUTE concat('SET SESSION AUTH', 'ORIZATION plain'); END $$",
            "RESET SESSION AUTHORIZATION",
        ),
        ("SELECT set_config('session_authorization', 'plain', false)", "SET session_authorization = app"),
        ("SET SESSION AUTHORIZATION plain", "DISCARD ALL"),
    ] {
        done(&mut one, make);
        assert_eq!(
            (one.value("SHOW pgusher.pin"), one.value(who)),
            ("role".into(), "plain plain".into()),
            "{make}"
        );
        done(&mut one, end);
        assert_eq!(one.value("SHOW pgusher.pin"), "", "{end}");
        assert_eq!((other.value(who), one.value(who)), ("app app".into(), "app app".into()), "{make}; {end}");
    }
    for make in [
        "SET SESSION AUTHORIZATION DEFAULT",
        "RESET SESSION AUTHORIZATION",
        "SET SESSION AUTHORIZATION app",
        "BEGIN; SET LOCAL SESSION AUTHORIZATION plain; SELECT 1; COMMIT",
        "BEGIN; SET SESSION AUTHORIZATION plain; ROLLBACK",
    ] {
        done(&mut one, make);
        assert_eq!(one.value("SHOW pgusher.pin"), "", "{make}");
        assert_eq!((other.value(who), one.value(who)), ("app app".into(), "app app".into()), "{make}");
    }
    done(&mut one, "SET ROLE plain");
    assert_eq!(one.value(who), "app plain");
    done(&mut one, "SET SESSION AUTHORIZATION DEFAULT");
    assert_eq!((other.value(who), one.value(who)), ("app app".into(), "app app".into()));
    done(&mut one, "SET SESSION AUTHORIZATION plain");
    drop(one);
    assert_eq!(other.value(who), "app app");
}

#[test]
fn a_survey_trusts_no_name_of_the_client() {
    let pgusher = one_connection();
    pair().dev.sql(
        "dev",
        "CREATE SCHEMA trojan; \
         CREATE FUNCTION trojan.eq(text, text) RETURNS bool LANGUAGE plpgsql AS \
         $$ BEGIN CREATE TABLE IF NOT EXISTS trojan.ran (); RETURN true; END $$; \
         CREATE OPERATOR trojan.= (LEFTARG = text, RIGHTARG = text, FUNCTION = trojan.eq); \
         CREATE VIEW trojan.pg_settings AS SELECT 'work_mem'::text AS name, 'x'::text AS source; \
         CREATE FUNCTION trojan.current_setting(text, bool) RETURNS text LANGUAGE sql AS $$ SELECT 'stolen' $$",
    );
    let mut one = Raw::login(pgusher.address(), "raw");
    done(&mut one, "SET search_path = trojan, pg_catalog");
    done(&mut one, "SET work_mem = '9MB'");
    done(&mut one, "SELECT pg_catalog.pg_advisory_unlock_all()");
    let mut other = Raw::login(pgusher.address(), "raw");
    assert_eq!(other.value("SHOW work_mem"), "4MB");
    assert_eq!(one.value("SHOW work_mem"), "9MB");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    assert_eq!(pair().dev.sql("dev", "SELECT to_regclass('trojan.ran') IS NULL"), "t");
    pair().dev.sql("dev", "DROP SCHEMA trojan CASCADE");
}

#[test]
fn a_survey_that_fails_is_made_again_and_a_hopeless_one_pins() {
    let pgusher = Pgusher::start(&warehouse("", "", "pool_size = 1"));
    let mut one = Raw::login(pgusher.address(), "rawprod");
    one.value("SELECT 1");
    let pairs = [("user", "app"), ("database", "prod")];
    let mut direct = Raw::login_with(([127, 0, 0, 1], pair().prod.port).into(), 0x0003_0000, &pairs);
    // The lock that a state probe has to wait for, longer than the session's own timeout lets it.
    done(&mut direct, "BEGIN; LOCK pg_catalog.pg_depend IN ACCESS EXCLUSIVE MODE");
    done(&mut one, "SET statement_timeout = 100; PREPARE p AS SELECT 1");
    assert_eq!(one.value("SHOW pgusher.pin"), "opaque statement", "three surveys failed");
    done(&mut direct, "ROLLBACK");
    assert_eq!(one.value("SHOW statement_timeout"), "100ms", "and nothing is lost by it");
    let mut two = Raw::login(pgusher.address(), "rawprod");
    two.send(&query("SELECT name FROM whoami"));
    drop(one);
    assert!(two.until_ready().iter().any(|m| m.tag == 'D' && m.columns() == ["prod"]));
    done(&mut direct, "BEGIN; LOCK pg_catalog.pg_depend IN ACCESS EXCLUSIVE MODE");
    two.send(&query("SET statement_timeout = 400; PREPARE p AS SELECT 1"));
    assert_eq!(two.until_ready().last().unwrap().tag, 'Z');
    std::thread::sleep(std::time::Duration::from_millis(600));
    done(&mut direct, "ROLLBACK");
    assert_eq!(two.value("SHOW pgusher.pin"), "sql prepare", "one survey failed, the next did not");
}

#[test]
fn a_pool_is_never_starved_by_sessions_that_keep_their_connections() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    done(&mut one, "PREPARE p AS SELECT 1");
    for make in ["PREPARE p AS SELECT 1", "SELECT pg_advisory_lock(4711)", "LOAD 'plpgsql'"] {
        let mut another = Raw::login(pgusher.address(), "raw");
        another.send(&query(make));
        let answer: Vec<_> = std::iter::from_fn(|| another.next()).collect();
        let last = answer.last().unwrap();
        assert_eq!((last.tag, last.field('C').as_str()), ('E', "53300"), "{make}: {answer:?}");
        assert!(last.field('D').contains("max_pinned"), "{}", last.field('D'));
        assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 'served'"), "served");
    }
    eventually("its lock is gone", || {
        pair().dev.sql("dev", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711")
            == "0"
    });
    done(&mut one, "DEALLOCATE p");
    // Answered when its connection has been asked, and its place is free.
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    let mut another = Raw::login(pgusher.address(), "raw");
    done(&mut another, "PREPARE p AS SELECT 1");
    assert_eq!(another.value("SHOW pgusher.pin"), "sql prepare");
    drop(another);
    eventually("its place is free", || {
        let mut next = Raw::login(pgusher.address(), "raw");
        !next.ask(&query("PREPARE p AS SELECT 1")).iter().any(|m| m.tag == 'E')
            && next.value("SHOW pgusher.pin") == "sql prepare"
    });
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 3\nmax_pinned = 3", "", ""));
    let mut all: Vec<_> = (0..3).map(|_| Raw::login(pgusher.address(), "raw")).collect();
    all.iter_mut().for_each(|raw| drop(done(raw, "PREPARE p AS SELECT 1")));
    all.iter_mut().for_each(|raw| assert_eq!(raw.value("SHOW pgusher.pin"), "sql prepare"));
}

#[test]
fn a_client_that_waits_is_told_what_for() {
    let server = "default_pool_size = 1\nquery_wait_notify = \"200ms\"\nquery_wait_timeout = \"2s\"";
    let pgusher = Pgusher::start(&warehouse(server, "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    for _ in 0..2 {
        done(&mut one, "BEGIN");
        other.send(&query("SELECT 'at last'"));
        let notice = other.next().unwrap();
        assert_eq!((notice.tag, notice.field('S').as_str()), ('N', "NOTICE"));
        assert_eq!(
            notice.field('M'),
            "waiting for one of the 1 connections to environment \"dev\" (connection \"warehouse\"): all are in use"
        );
        done(&mut one, "COMMIT");
        assert_eq!(other.until_ready().iter().map(|m| m.tag).collect::<String>(), "TDCZ");
    }
    done(&mut one, "BEGIN");
    let answer = other.ask(&query("SELECT 'never'"));
    assert_eq!(
        answer.iter().map(|m| m.tag).collect::<String>(),
        "NEZ",
        "told once, and then that it was too long"
    );
    assert!(answer[1].field('M').contains("query_wait_timeout"));
}

#[test]
fn an_unnamed_statement_of_any_length_can_be_bound() {
    let pgusher = one_connection();
    for length in [10, 10_000, 16_300, 20_000, 60_000, 70_000, 300_000, 2_000_000, 3_000_000] {
        let mut raw = Raw::login(pgusher.address(), "raw");
        let sql = format!("SELECT length('{}')", "x".repeat(length));
        let answer = raw.ask(&[parse("", &sql), bind("", "", &[]), execute(), sync()].concat());
        assert_eq!(answer.iter().map(|m| m.tag).collect::<String>(), "12DCZ", "{length}: {answer:?}");
        assert_eq!(answer[2].columns(), [length.to_string()]);
        // It keeps no connection, but where it is very long.
        if length < 3_000_000 {
            assert_eq!(raw.value("SHOW pgusher.pin"), "", "{length}");
            continue;
        }
        assert_eq!(raw.value("SHOW pgusher.pin"), "opaque statement", "{length}");
    }
    for length in [10, 70_000, 300_000, 2_000_000, 3_000_000] {
        let mut other = Raw::login(pgusher.address(), "raw");
        let mut raw = Raw::login(pgusher.address(), "raw");
        let sql = format!("SELECT length('{}')", "x".repeat(length));
        assert_eq!(raw.tags(&[parse("", &sql), sync()].concat()), "1Z", "{length}");
        if length < 3_000_000 {
            assert_eq!(other.value("SELECT 'between'"), "between", "{length}");
        }
        // And again, in another transaction.
        let answer = raw.ask(&[bind("", "", &[]), execute(), sync()].concat());
        assert_eq!(answer.iter().map(|m| m.tag).collect::<String>(), "2DCZ", "{length}: {answer:?}");
    }
}

#[test]
fn an_unnamed_statement_that_comes_in_pieces_keeps_no_connection() {
    let pgusher = one_connection();
    let mut raw = Raw::login(pgusher.address(), "raw");
    for (length, cut) in [(15_000, 5000), (20_000, 5000), (60_000, 5000), (60_000, 40_000), (400_000, 70_000)]
    {
        let sql = format!("SELECT length('{}')", "x".repeat(length));
        let batch = [parse("", &sql), bind("", "", &[]), execute(), sync()].concat();
        raw.send(&batch[..cut]);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(raw.tags(&batch[cut..]), "12DCZ", "{length} cut at {cut}");
        assert_eq!(raw.value("SHOW pgusher.pin"), "", "{length} cut at {cut}");
    }
}

#[test]
fn idle_connections_make_way_for_another_pool_of_the_same_host() {
    let dev = pair().dev.port;
    let second = format!(
        "[connections.second]\nhost = \"127.0.0.1\"\nport = {dev}\ndatabase = \"dev\"\nusername = \"app\"\n"
    );
    let start = |limit: u32| {
        Pgusher::start(&(warehouse(&format!("max_host_connections = {limit}"), "", "") + &second))
    };
    let log_in = |pgusher: &Pgusher, database: &str| {
        Raw::login_with(pgusher.address(), 0x0003_0000, &[("user", "raw"), ("database", database)])
    };
    let pgusher = start(4);
    let mut first: Vec<Raw> = (0..3).map(|_| log_in(&pgusher, "warehouse")).collect();
    first.iter_mut().for_each(|raw| drop(done(raw, "BEGIN")));
    first.iter_mut().for_each(|raw| drop(done(raw, "COMMIT")));
    // Three connections are idle in the first pool: the fourth was kept for the second, and then one makes way.
    let mut others = [log_in(&pgusher, "second"), log_in(&pgusher, "second")];
    others.iter_mut().for_each(|raw| drop(done(raw, "BEGIN")));
    assert_eq!(others[1].value("SELECT 'made way'"), "made way");
    // All four are used: a client of the first pool has to wait until one is free.
    first[..2].iter_mut().for_each(|raw| drop(done(raw, "BEGIN")));
    first[2].send(&query("SELECT 'waited'"));
    std::thread::sleep(std::time::Duration::from_millis(50));
    others.iter_mut().for_each(|raw| drop(done(raw, "COMMIT")));
    assert!(first[2].until_ready().iter().any(|m| m.tag == 'D' && m.columns() == ["waited"]));
    // However long transactions of one pool are idle, another has a place.
    let pgusher = start(2);
    let mut first = [log_in(&pgusher, "warehouse"), log_in(&pgusher, "warehouse")];
    drop(done(&mut first[0], "BEGIN"));
    first[1].send(&query("BEGIN"));
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(log_in(&pgusher, "second").value("SELECT 'served'"), "served");
    drop(done(&mut first[0], "COMMIT"));
    assert!(first[1].until_ready().iter().any(|m| m.tag == 'C'));
    drop(first);
    let login = |database: &str| log_in(&pgusher, database);
    // A pool whose clients never leave it a connection gives up its share all the same.
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut busy = login("warehouse");
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(busy.value("SELECT pg_sleep(0.002)"), "");
                }
            });
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        let mut second = login("second");
        for _ in 0..20 {
            assert_eq!(second.value("SELECT 'served'"), "served");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_connection_that_grows_old_is_replaced_before_it_must_go() {
    // Opening a connection takes a second here.
    let slow = Postgres::start_with("dev", &["-c post_auth_delay=1"]);
    let config = warehouse("default_pool_size = 1\nserver_lifetime = \"6s\"", "", "")
        .replace(&format!("port = {}", pair().dev.port), &format!("port = {}", slow.port));
    let pgusher = Pgusher::start(&config);
    let mut one = Raw::login(pgusher.address(), "raw");
    let first = one.value("SELECT 0 + pg_backend_pid()");
    let begun = std::time::Instant::now();
    let mut longest = std::time::Duration::ZERO;
    let mut pids = std::collections::BTreeSet::from([first]);
    while begun.elapsed() < std::time::Duration::from_secs(14) {
        let asked = std::time::Instant::now();
        pids.insert(one.value("SELECT 0 + pg_backend_pid()"));
        longest = longest.max(asked.elapsed());
        let open = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
        assert!(one.value(open).parse::<u32>().unwrap() <= 2);
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(pids.len() >= 3, "{pids:?}");
    assert!(longest < std::time::Duration::from_millis(700), "a query waited {longest:?}");
}

#[test]
fn in_session_mode_a_connection_that_cannot_be_cleaned_is_closed() {
    let pgusher = Pgusher::start(&warehouse("pool_mode = \"session\"", "", ""));
    let stays = |sql: &str| {
        let mut one = Raw::login(pgusher.address(), "raw");
        let pid = one.value("SELECT 0 + pg_backend_pid()");
        if let Some(sql) = sql.strip_prefix("extended ") {
            one.ask(&[parse("", sql), bind("", "", &[]), execute(), sync()].concat());
        } else {
            done(&mut one, sql);
        }
        drop(one);
        let alive = format!("SELECT state FROM pg_stat_activity WHERE pid = {pid}");
        let cleaned = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND query LIKE '%pg_catalog.setseed(%'"
        );
        let mut stays = false;
        eventually("it is cleaned or gone", || {
            stays = pair().dev.sql("dev", &cleaned) == "1";
            stays || pair().dev.sql("dev", &alive).is_empty()
        });
        stays
    };
    for sql in
        ["SELECT 1", "SET work_mem = '9MB'", "CREATE TEMP TABLE t (a int)", "LISTEN news", "DO 'begin end'"]
    {
        assert!(stays(sql), "{sql}");
    }
    for sql in [
        "LOAD 'auto_explain'",
        "extended LOAD 'auto_explain'",
        "SELECT setseed(0.5)",
        "DO 'begin perform setseed(0.5); end'",
    ] {
        assert!(!stays(sql), "{sql}");
    }
}

#[test]
fn a_setting_is_carried_in_whatever_encoding_the_client_speaks() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut one, "SET client_encoding = 'LATIN1'");
    let tags = |raw: &mut Raw, sql: &[u8]| raw.tags(&message('Q', &[sql, b"\0"].concat()));
    assert_eq!(tags(&mut one, b"SET my.x = 'caf\xe9'"), "CZ");
    assert_eq!(other.value("SELECT coalesce(current_setting('my.x', true), '')"), "");
    assert_eq!(one.value("SELECT current_setting('my.x') = 'caf' || chr(233)"), "t");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    // Which setting this is, the lexer cannot say in the server's encoding: it is not carried, and not another's.
    assert_eq!(tags(&mut one, b"SET my.\xe9 = 'mine'"), "CZ");
    assert_eq!(one.value("SHOW pgusher.pin"), "setting");
    drop(one);
    assert_eq!(other.value("SELECT coalesce(current_setting('my.é', true), '')"), "");
}

#[test]
fn last_values_of_sequences_are_ones_own_in_both_protocols() {
    let pgusher = one_connection();
    pair().dev.sql("dev", "CREATE SEQUENCE own_seq");
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    let unknown = "55000 lastval is not yet defined in this session";
    let extended = |raw: &mut Raw, name: &str| {
        let answer = raw.ask(&[bind("", name, &[]), execute(), sync()].concat());
        match answer.iter().find(|m| m.tag == 'E') {
            Some(error) => format!("{} {}", error.field('C'), error.field('M')),
            None => answer.iter().find(|m| m.tag == 'D').unwrap().columns().remove(0),
        }
    };
    assert_eq!(one.tags(&[parse("named", "SELECT lastval()"), sync()].concat()), "1Z");
    for way in ["simple", "unnamed", "named"] {
        other.value("SELECT nextval('own_seq')");
        assert_eq!(
            match way {
                "simple" => one.value("SELECT lastval()"),
                "named" => extended(&mut one, "named"),
                _ => {
                    let unnamed = [parse("", "SELECT lastval()"), bind("", "", &[]), execute(), sync()];
                    one.ask(&unnamed.concat())
                        .iter()
                        .find(|m| m.tag == 'E')
                        .map_or("a value".into(), |m| format!("{} {}", m.field('C'), m.field('M')))
                }
            },
            unknown,
            "{way}"
        );
    }
    // Within a transaction it knows its own, and is told it in the middle of a pipeline as well.
    other.value("SELECT nextval('own_seq')");
    let pipeline = [
        parse("", "SELECT nextval('own_seq')"),
        bind("", "", &[]),
        execute(),
        parse("", "SELECT lastval() = currval('own_seq')"),
        bind("", "", &[]),
        execute(),
        sync(),
    ];
    done(&mut one, "BEGIN");
    one.value("SELECT lastval()");
    done(&mut one, "ROLLBACK");
    let answer = one.ask(&pipeline.concat());
    assert_eq!(answer.iter().map(|m| m.tag).collect::<String>(), "12DC12DCZ", "{answer:?}");
    assert_eq!(answer[6].columns(), ["t"]);
    pair().dev.sql("dev", "DROP SEQUENCE own_seq");
}

/// Whoever looks for a primary (`target_session_attrs`) reads what he is told at login, and asks nothing.
#[test]
fn later_logins_are_told_that_a_standby_was_promoted() {
    let server = Postgres::start("standby");
    server.ctl("stop", &[]);
    std::fs::write(server.folder.join("data/standby.signal"), "").unwrap();
    server.ctl("start", &[]);
    let base =
        format!("[connections.standby]\nhost = \"127.0.0.1\"\nport = {}\nusername = \"app\"\n", server.port);
    let pgusher = Pgusher::start(&(warehouse("", "", "") + &base));
    let told = || {
        let pairs = [("user", "raw"), ("database", "standby")];
        let raw = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
        raw.parameters.iter().find(|(name, _)| name == "in_hot_standby").map(|(_, value)| value.clone())
    };
    assert_eq!(told().as_deref(), Some("on"));
    assert_eq!(server.sql("standby", "SELECT pg_promote()"), "t");
    eventually("it is known", || told().as_deref() == Some("off"));
}

/// What the first client of a pool was told at login is not what later ones are told when the database has other defaults,
/// and least of all is it set for them.
#[test]
fn later_logins_have_the_databases_defaults_of_then() {
    let dev = &pair().dev;
    dev.sql("postgres", "CREATE DATABASE defaults");
    let base = format!(
        "[connections.defaults]\nhost = \"127.0.0.1\"\nport = {}\nusername = \"app\"\n[users.ops]\nauth_type = \"trust\"\nconsole = \"admin\"\n",
        dev.port
    );
    let pgusher = Pgusher::start(&(warehouse("", "", "") + &base));
    let login = |user: &str, database: &str| {
        Raw::login_with(pgusher.address(), 0x0003_0000, &[("user", user), ("database", database)])
    };
    let mut first = login("raw", "defaults");
    assert_eq!(first.value("SHOW TimeZone"), dev.sql("defaults", "SHOW TimeZone"));
    assert_eq!(first.value("SHOW default_transaction_read_only"), "off");
    drop(first);
    dev.sql("postgres", "ALTER DATABASE defaults SET timezone = 'Europe/Lisbon'");
    dev.sql("postgres", "ALTER DATABASE defaults SET default_transaction_read_only = on");
    let mut ops = login("ops", "pgusher");
    assert_eq!(ops.tags(&query("RECONNECT defaults")), "CZ");
    let mut later = login("raw", "defaults");
    let told = later.parameters.iter().find(|(name, _)| name == "TimeZone").map(|(_, value)| value.clone());
    assert_eq!(told.as_deref(), Some("Europe/Lisbon"));
    assert_eq!(later.value("SHOW TimeZone"), "Europe/Lisbon");
    assert_eq!(later.value("CREATE TABLE x ()").split(' ').next(), Some("25006"));
}

#[test]
fn a_session_whose_role_was_dropped_is_refused_until_it_gives_it_up() {
    let pgusher = one_connection();
    let dev = &pair().dev;
    let opened = || pgusher.log().matches("upstream connection opened").count();
    let batch = |sql: &str| [parse("", sql), bind("", "", &[]), execute(), sync()].concat();
    for way in ["simple", "extended"] {
        let bytes = |sql: &str| if way == "simple" { query(sql) } else { batch(sql) };
        for give_up in ["RESET ROLE", "SET ROLE NONE", "DISCARD ALL", "SET SESSION AUTHORIZATION DEFAULT"] {
            dev.sql("dev", "CREATE ROLE brief; GRANT brief TO app");
            let mut raw = Raw::login(pgusher.address(), "raw");
            done(&mut raw, "SET ROLE brief; SET work_mem = '7MB'");
            assert_eq!(raw.value("SELECT current_user"), "brief");
            dev.sql("dev", "DROP ROLE brief");
            // The connection serves another session.
            assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT current_user"), "app");
            let before = opened();
            for _ in 0..20 {
                let answer = raw.ask(&bytes("SELECT current_user"));
                assert_eq!(answer.iter().map(|m| m.tag).collect::<String>(), "EZ", "{way}, {give_up}");
                assert_eq!((answer[0].field('S'), answer[0].field('C')), ("ERROR".into(), "22023".into()));
                assert!(answer[0].field('M').contains("brief"), "{answer:?}");
            }
            assert!(opened() - before <= 3, "a connection is not given up for each statement");
            // Nor is it given up by what may not be run, or not by itself.
            let name = [parse("x", "RESET ROLE"), sync()].concat();
            let reset = batch("RESET ROLE");
            let rolled_back = [&reset[..reset.len() - sync().len()], &batch("SELECT 1/0")].concat();
            let miscounted = [parse("", "RESET ROLE"), bind("", "", &["1"]), execute(), sync()].concat();
            let two = query("RESET ROLE; SELECT 1");
            for text in [name, rolled_back, miscounted, two, query("RESET; ROLE"), query("DISCARD \"all\"")] {
                raw.ask(&text);
                assert_eq!(raw.ask(&query("SELECT 1"))[0].field('C'), "22023", "{}", text.escape_ascii());
            }
            let answer = raw.ask(&bytes(give_up));
            assert!(!answer.iter().any(|m| m.tag == 'E'), "{way}, {give_up}: {answer:?}");
            assert_eq!(raw.value("SELECT current_user"), "app");
            let work_mem = if give_up == "DISCARD ALL" { "4MB" } else { "7MB" };
            assert_eq!(raw.value("SHOW work_mem"), work_mem, "{way}, {give_up}");
        }
    }
}

/// It would go back to the role that it came with.
#[test]
fn a_session_whose_startup_role_was_dropped_is_refused_whatever_it_asks() {
    let pgusher = one_connection();
    let dev = &pair().dev;
    dev.sql("dev", "CREATE ROLE brief_at_startup; GRANT brief_at_startup TO app");
    let mut raw = with_options(&pgusher, "-c role=brief_at_startup");
    assert_eq!(raw.value("SELECT current_user"), "brief_at_startup");
    dev.sql("dev", "DROP ROLE brief_at_startup");
    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT current_user"), "app");
    let opened = || pgusher.log().matches("upstream connection opened").count();
    let before = opened();
    for text in ["SELECT 1", "RESET ROLE", "DISCARD ALL", "SET ROLE NONE"] {
        assert_eq!(raw.ask(&query(text))[0].field('C'), "22023", "{text}");
    }
    assert!(opened() - before <= 2, "it is asked for again now and then");
}

/// Whatever else it is that cannot be set again is not called a lost role.
#[test]
fn a_setting_that_cannot_be_taken_is_no_role() {
    let pgusher = one_connection();
    let dev = &pair().dev;
    dev.sql("dev", "CREATE ROLE steady; GRANT steady TO app");
    let mut raw = Raw::login(pgusher.address(), "raw");
    done(&mut raw, "SET ROLE steady; SET temp_buffers = '2MB'");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut other, "CREATE TEMP TABLE fills (a int); INSERT INTO fills VALUES (1); DROP TABLE fills");
    assert_eq!(raw.value("SELECT current_user"), "steady", "on another connection");
    drop((raw, other, pgusher));
    dev.sql("dev", "DROP ROLE steady");
}
