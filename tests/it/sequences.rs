//! Last values of sequences, as a session knows them that has the server to itself: `lastval()` and `currval()`.

use std::thread::scope;

use super::house::{Pgusher, pair, size, warehouse};
use super::state::done;
use super::wire::{Raw, bind, execute, parse, query, sync};

const UNKNOWN: &str = "55000 lastval is not yet defined in this session";

/// Tables whose rows are numbered, each from a thousand of its own.
fn tables(name: &str, count: usize) {
    for number in 1..=count {
        pair().dev.sql(
            "dev",
            &format!(
                "CREATE TABLE {name}_{number} (id serial, v text); GRANT ALL ON {name}_{number} TO public; \
                 GRANT ALL ON SEQUENCE {name}_{number}_id_seq TO public; \
                 ALTER SEQUENCE {name}_{number}_id_seq RESTART {number}0001"
            ),
        );
    }
}

fn drop_tables(name: &str, count: usize) {
    (1..=count).for_each(|number| drop(pair().dev.sql("dev", &format!("DROP TABLE {name}_{number}"))));
}

fn extended(raw: &mut Raw, sql: &str) -> String {
    let answer = raw.ask(&[parse("", sql), bind("", "", &[]), execute(), sync()].concat());
    let error = answer.iter().find(|m| m.tag == 'E').map(|m| format!("{} {}", m.field('C'), m.field('M')));
    let row = || answer.iter().find(|m| m.tag == 'D').map(|m| m.columns().remove(0));
    error.or_else(row).unwrap_or_default()
}

/// What a driver's `lastInsertId` does, in one transaction or one after the other, whatever the connection did before.
#[test]
fn whoever_inserts_is_told_its_own_last_value() {
    const SESSIONS: usize = 8;
    tables("told", SESSIONS);
    let rounds = size(10, 300);
    for pool_size in [1, 2, 5] {
        let pgusher = Pgusher::start(&warehouse(&format!("default_pool_size = {pool_size}"), "", ""));
        scope(|scope| {
            for number in 1..=SESSIONS {
                let address = pgusher.address();
                scope.spawn(move || {
                    let mut raw = Raw::login(address, "raw");
                    let table = format!("told_{number}");
                    let insert = format!("INSERT INTO {table} (v) VALUES ('x')");
                    let read = if number % 2 == 0 {
                        "SELECT lastval()".to_owned()
                    } else {
                        format!("SELECT currval('{table}_id_seq')")
                    };
                    for round in 0..rounds {
                        let what = format!("session {number}, round {round}, {pool_size} connections");
                        let told = match round % 3 {
                            0 => {
                                done(&mut raw, "BEGIN");
                                done(&mut raw, &insert);
                                let told = raw.value(&read);
                                done(&mut raw, "COMMIT");
                                told
                            }
                            1 => {
                                extended(&mut raw, "BEGIN");
                                extended(&mut raw, &insert);
                                let told = extended(&mut raw, &read);
                                extended(&mut raw, "COMMIT");
                                told
                            }
                            _ => {
                                let statement =
                                    |sql: &str| [parse("", sql), bind("", "", &[]), execute()].concat();
                                let batch = [statement(&insert), statement(&read), sync()].concat();
                                let answer = raw.ask(&batch);
                                answer
                                    .iter()
                                    .find(|m| m.tag == 'D')
                                    .map(|m| m.columns().remove(0))
                                    .unwrap_or_default()
                            }
                        };
                        let told: usize = told.parse().unwrap_or_else(|_| panic!("{what}: {told}"));
                        assert_eq!(told / 10_000, number, "{what}: another's");
                    }
                });
            }
        });
    }
    drop_tables("told", SESSIONS);
}

/// As long as nobody needs its connection, a session that asks has it again, though others come and go.
#[test]
fn a_later_transaction_is_told_as_well_where_there_are_connections_enough() {
    tables("later", 3);
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 4", "", ""));
    let mut sessions: Vec<Raw> = (0..3).map(|_| Raw::login(pgusher.address(), "raw")).collect();
    // All four are open.
    let mut more: Vec<Raw> = (0..4).map(|_| Raw::login(pgusher.address(), "raw")).collect();
    more.iter_mut().for_each(|raw| drop(done(raw, "BEGIN")));
    more.iter_mut().for_each(|raw| drop(done(raw, "COMMIT")));
    // That they ask is known from here on.
    sessions.iter_mut().for_each(|raw| drop(raw.value("SELECT lastval()")));
    for round in 1..20 {
        for (number, raw) in (1..).zip(&mut sessions) {
            done(raw, &format!("INSERT INTO later_{number} (v) VALUES ('x')"));
        }
        assert_eq!(more[round % 4].value("SELECT 'between'"), "between");
        for (number, raw) in (1..).zip(&mut sessions) {
            assert_eq!(raw.value("SELECT lastval()"), format!("{number}{round:04}"), "round {round}");
        }
    }
    drop_tables("later", 3);
}

/// Where somebody else had to have the connection, nothing is known; and never is another's value told.
#[test]
fn no_value_of_another_session_is_told() {
    tables("none", 2);
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 1", "", ""));
    let (mut one, mut other) = (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
    assert_eq!(one.value("SELECT lastval()"), UNKNOWN);
    for begin in ["", "BEGIN", "BEGIN; SELECT 1"] {
        done(&mut other, "INSERT INTO none_2 (v) VALUES ('x')");
        if begin.is_empty() {
            assert_eq!(one.value("SELECT lastval()"), UNKNOWN);
        } else {
            done(&mut one, begin);
            assert_eq!(one.value("SELECT lastval()"), UNKNOWN, "{begin}");
            one.ask(&query("ROLLBACK"));
        }
    }
    drop_tables("none", 2);
}
