//! What functions leave in a session, whatever runs them, in transaction mode: carried or kept as if the statement had
//! done it itself, and never seen by another.

use std::sync::OnceLock;

use super::house::{Pgusher, eventually, pair, warehouse};
use super::state::done;
use super::wire::{Raw, bind, execute, message, parse, sync};

const DEFINITIONS: &str = "
CREATE FUNCTION sets(v text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set_config('my.x', v, false); END $$;
CREATE FUNCTION sets_in_sql(v text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('work_mem', v, false) $$;
CREATE FUNCTION sets_atomic(v text) RETURNS text LANGUAGE sql BEGIN ATOMIC SELECT set_config('my.x', v, false); END;
CREATE FUNCTION sets_by_statement() RETURNS void LANGUAGE plpgsql AS $$ BEGIN IF true THEN SET work_mem = '9MB'; END IF; END $$;
CREATE FUNCTION \"Sets Quoted\"() RETURNS text LANGUAGE sql AS $$ SELECT sets('9MB') $$;
CREATE FUNCTION calls() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN \"Sets Quoted\"(); END $$;
CREATE FUNCTION runs(command text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN EXECUTE command; END $$;
CREATE FUNCTION locks() RETURNS void LANGUAGE sql AS $$ SELECT pg_advisory_lock(77) $$;
CREATE FUNCTION makes_temporary() RETURNS void LANGUAGE plpgsql AS $$ BEGIN CREATE TEMP TABLE made (a int); END $$;
CREATE FUNCTION local_only() RETURNS text LANGUAGE sql AS $$ SELECT set_config('work_mem', '9MB', true) $$;
CREATE FUNCTION notifies() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('own', 'news'); END $$;
CREATE PROCEDURE procedure() LANGUAGE plpgsql AS $$ BEGIN PERFORM sets('9MB'); COMMIT; END $$;
CREATE PROCEDURE harmless_procedure() LANGUAGE plpgsql AS $$ BEGIN NULL; END $$;
CREATE FUNCTION trigger_function() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM sets('9MB'); RETURN NEW; END $$;
CREATE TABLE triggered (a int);
CREATE TRIGGER t BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION trigger_function();
CREATE TABLE parent (a int) PARTITION BY LIST (a);
CREATE TABLE child PARTITION OF parent DEFAULT;
CREATE TRIGGER t BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION trigger_function();
CREATE TABLE referenced (a int PRIMARY KEY);
CREATE TABLE referencing (a int REFERENCES referenced ON DELETE CASCADE);
CREATE FUNCTION on_delete() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM sets('9MB'); RETURN OLD; END $$;
CREATE TRIGGER t BEFORE DELETE ON referencing FOR EACH ROW EXECUTE FUNCTION on_delete();
CREATE TABLE defaulted (a int, b text DEFAULT sets('9MB'));
CREATE VIEW viewed AS SELECT sets('9MB') AS a;
CREATE VIEW viewed_again AS SELECT * FROM viewed;
CREATE VIEW viewed_directly AS SELECT set_config('my.x', '9MB', false) AS a;
CREATE TABLE quiet (a int);
CREATE PROCEDURE \"Büro\"() LANGUAGE sql AS $$ SELECT sets('9MB') $$;";

/// A database of its own, because what can run by itself would run for all tests.
fn config(server: &str) -> String {
    static MADE: OnceLock<()> = OnceLock::new();
    MADE.get_or_init(|| {
        let dev = &pair().dev;
        dev.sql("postgres", "CREATE DATABASE functions OWNER app");
        dev.sql("functions", DEFINITIONS);
        dev.sql(
            "functions",
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO app; GRANT CREATE ON SCHEMA public TO app",
        );
    });
    let size = if server.contains("default_pool_size") { "" } else { "default_pool_size = 1" };
    let server = format!("{size}\n{server}");
    warehouse(&server, "", "").replacen("database = \"dev\"", "database = \"functions\"", 1)
}

const LOOK: &str = "SELECT coalesce(nullif(current_setting('my.x', true), ''), current_setting('work_mem'))";

/// Done by one session, it is that session's, and no other's on the same connection.
pub(super) fn is_carried(pgusher: &Pgusher, make: &str, pin: &str) {
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    assert_eq!(other.value(LOOK), "4MB", "before {make}");
    done(&mut one, make);
    assert_eq!(one.value("SHOW pgusher.pin"), pin, "{make}");
    for turn in 0..if pin.is_empty() { 2 } else { 0 } {
        assert_eq!(other.value(LOOK), "4MB", "{make}: another's, turn {turn}");
        assert_eq!(one.value(LOOK), "9MB", "{make}: its own, turn {turn}");
    }
    assert_eq!(one.value(LOOK), "9MB", "{make}");
    drop(one);
    assert_eq!(other.value(LOOK), "4MB", "after {make}");
}

#[test]
fn what_a_function_sets_is_carried_whatever_runs_it() {
    let pgusher = Pgusher::start(&config(""));
    for make in [
        "SELECT sets('9MB')",
        "SELECT sets_in_sql('9MB')",
        "SELECT SETS_ATOMIC('9MB')",
        "SELECT sets_by_statement()",
        "SELECT public.\"Sets Quoted\"()",
        "SELECT calls()",
        "BEGIN; SELECT 1; SELECT calls(); COMMIT",
        "CALL procedure()",
        "CALL \"Büro\"()",
        "INSERT INTO triggered VALUES (1)",
        "WITH x AS (INSERT INTO triggered VALUES (1) RETURNING a) SELECT 1",
        "INSERT INTO parent VALUES (1)",
        "INSERT INTO referenced VALUES (1); INSERT INTO referencing VALUES (1); DELETE FROM referenced",
        "INSERT INTO defaulted VALUES (1)",
        "SELECT * FROM viewed",
        "SELECT * FROM viewed_again",
        "DO $$ BEGIN SET work_mem = '9MB'; END $$",
        "DO $$ BEGIN PERFORM calls(); END $$",
        "SELECT runs('SET work_mem = ''9MB''')",
        "DO $$ BEGIN EXECUTE concat('SET wor', 'k_mem = ''9MB'''); END $$",
    ] {
        is_carried(&pgusher, make, "");
    }
    is_carried(&pgusher, "SELECT * FROM viewed_directly", "setting");
    let copied = [super::wire::query("COPY triggered FROM STDIN")].concat();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    one.send(&copied);
    while one.next().is_some_and(|m| m.tag != 'G') {}
    one.ask(&[message('d', b"1\n"), message('c', b"")].concat());
    assert_eq!((other.value(LOOK), one.value(LOOK)), ("4MB".into(), "9MB".into()));
}

#[test]
fn what_a_function_sets_for_a_transaction_or_does_not_set_costs_nothing() {
    let pgusher = Pgusher::start(&config(""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    for sql in [
        "SELECT local_only()",
        "CALL harmless_procedure()",
        "DO $$ BEGIN INSERT INTO quiet VALUES (1); END $$",
        "SELECT a FROM quiet",
    ] {
        done(&mut one, sql);
        assert_eq!(one.value("SHOW pgusher.pin"), "", "{sql}");
        assert_eq!((other.value(LOOK), one.value(LOOK)), ("4MB".into(), "4MB".into()), "{sql}");
    }
}

#[test]
fn what_a_function_sets_is_gone_when_its_transaction_is() {
    let pgusher = Pgusher::start(&config(""));
    let mut one = Raw::login(pgusher.address(), "raw");
    done(&mut one, "BEGIN; SELECT calls(); ROLLBACK");
    assert_eq!(one.value(LOOK), "4MB");
    assert!(one.ask(&super::wire::query("SELECT calls(), 1/0")).iter().any(|m| m.tag == 'E'));
    assert_eq!(one.value(LOOK), "4MB");
}

#[test]
fn what_else_a_function_leaves_keeps_the_connection_until_it_is_gone() {
    let pgusher = Pgusher::start(&config("default_pool_size = 2"));
    for (make, end, reason) in [
        ("SELECT locks()", "SELECT pg_advisory_unlock(77)", "advisory lock"),
        ("SELECT makes_temporary()", "DROP TABLE made", "temporary object"),
        ("SELECT runs('SELECT pg_advisory_lock(78)')", "SELECT pg_advisory_unlock(78)", "advisory lock"),
        ("SELECT runs('CREATE TEMP TABLE made (a int)')", "DROP TABLE made", "temporary object"),
        ("DO $$ BEGIN CREATE TEMP TABLE made (a int); END $$", "DROP TABLE made", "temporary object"),
        ("PREPARE p AS SELECT sets('9MB')", "DEALLOCATE p", "sql prepare"),
    ] {
        let mut one = Raw::login(pgusher.address(), "raw");
        done(&mut one, make);
        assert_eq!(one.value("SHOW pgusher.pin"), reason, "{make}");
        done(&mut one, end);
        assert_eq!(one.value("SHOW pgusher.pin"), "", "{make}");
    }
}

#[test]
fn what_a_prepared_statement_sets_each_time_it_is_run_is_not_left_behind() {
    let pgusher = Pgusher::start(&config(""));
    for text in ["SELECT sets('9MB')", "SELECT set_config('work_mem', '9MB', false)"] {
        let mut one = Raw::login(pgusher.address(), "raw");
        let mut other = Raw::login(pgusher.address(), "raw");
        done(&mut one, &format!("PREPARE p AS {text}"));
        done(&mut one, "EXECUTE p");
        done(&mut one, "DEALLOCATE p");
        assert_eq!((other.value(LOOK), one.value(LOOK)), ("4MB".into(), "9MB".into()), "{text}");
    }
}

fn definition(body: &str) -> String {
    format!("CREATE OR REPLACE FUNCTION fresh() RETURNS text LANGUAGE plpgsql AS $$ BEGIN {body}; END $$")
}

#[test]
fn a_function_is_known_as_soon_as_it_is_defined() {
    let pgusher = Pgusher::start(&config(""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut one, &definition("RETURN 1"));
    assert_eq!(one.tags(&[parse("s", "SELECT fresh()"), sync()].concat()), "1Z");
    let run = [bind("", "s", &[]), execute(), sync()].concat();
    assert_eq!(one.tags(&run), "2DCZ");
    // Another redefines it: the statement does something else now.
    done(&mut other, &definition("RETURN set_config('my.x', '9MB', false)"));
    assert_eq!(one.tags(&run), "2DCZ");
    for turn in 0..3 {
        assert_eq!((other.value(LOOK), one.value(LOOK)), ("4MB".into(), "9MB".into()), "turn {turn}");
    }
    drop(one);
    drop(other);
    in_the_transaction_that_defines_it(&pgusher, true);
    in_the_transaction_that_defines_it(&pgusher, false);
}

fn in_the_transaction_that_defines_it(pgusher: &Pgusher, in_one_query: bool) {
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut one, "DROP FUNCTION IF EXISTS fresh()");
    let body = "SET work_mem = '9MB'; RETURN 1";
    if in_one_query {
        done(&mut one, &format!("BEGIN; {}; SELECT fresh(); COMMIT", definition(body)));
    } else {
        for sql in ["BEGIN", &definition(body), "SELECT fresh()", "COMMIT"] {
            done(&mut one, sql);
        }
    }
    for turn in 0..3 {
        assert_eq!((other.value(LOOK), one.value(LOOK)), ("4MB".into(), "9MB".into()), "turn {turn}");
    }
    done(&mut one, "DROP FUNCTION fresh()");
}

#[test]
fn what_is_defined_behind_its_back_is_known_after_the_interval() {
    let pgusher = Pgusher::start(&config("catalog_interval = \"1s\""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    assert_eq!(one.value("SELECT 1"), "1");
    pair().dev.sql(
        "functions",
        "CREATE FUNCTION unseen() RETURNS text LANGUAGE sql AS $$ SELECT set_config('my.x', '9MB', false) $$",
    );
    eventually("the function is known", || {
        done(&mut one, "SELECT unseen()");
        let seen = other.value(LOOK) == "4MB" && one.value(LOOK) == "9MB";
        done(&mut one, "SELECT set_config('my.x', '', false)");
        seen
    });
    pair().dev.sql("functions", "DROP FUNCTION unseen()");
}

#[test]
fn what_a_function_notifies_its_own_session_of_comes_with_its_transaction() {
    let pgusher = Pgusher::start(&config(""));
    let mut one = Raw::login(pgusher.address(), "raw");
    done(&mut one, "LISTEN own");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    for _ in 0..3 {
        let answer = done(&mut one, "SELECT notifies()");
        assert!(answer.iter().any(|m| m.tag == 'A'), "{answer:?}");
    }
}

#[test]
fn large_objects_by_the_fast_path_keep_no_connection() {
    let pgusher = Pgusher::start(&config(""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let call = |oid: u32, argument: u32| {
        let mut body = oid.to_be_bytes().to_vec();
        body.extend([0, 1, 0, 1, 0, 1, 0, 0, 0, 4]);
        body.extend(argument.to_be_bytes());
        body.extend([0, 1]);
        message('F', &body)
    };
    let (lo_create, lo_unlink, pg_sleep_like) = (715, 964, 2621);
    let made = one.ask(&call(lo_create, 0));
    assert!(made.iter().any(|m| m.tag == 'V'), "{made:?}");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    let number = one.value("SELECT max(oid) FROM pg_largeobject_metadata").parse().unwrap();
    assert!(one.ask(&call(lo_unlink, number)).iter().any(|m| m.tag == 'V'));
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    one.ask(&call(pg_sleep_like, 0));
    assert_eq!(one.value("SHOW pgusher.pin"), "opaque statement");
}
