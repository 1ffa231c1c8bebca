//! The number that stands for a session where PostgreSQL has that of a process, in transaction mode.

use std::net::SocketAddr;

use super::differential::{normal, shown};
use super::house::{Pgusher, eventually, pair, warehouse};
use super::state::done;
use super::wire::{Message, Raw, bind, describe_statement, execute, message, parse, query, sync};

const USERS: &str = "[users.other]\nauth_type = \"trust\"\n\
    [users.operator]\nauth_type = \"trust\"\nconsole = \"admin\"\n";
const LARGEST_PROCESS: u32 = 4_194_304;

fn start(pool_size: usize) -> Pgusher {
    let (server, port) = (format!("default_pool_size = {pool_size}"), pair().prod.port);
    let elsewhere = format!(
        "[connections.elsewhere]\nhost = \"127.0.0.1\"\nport = {port}\ndatabase = \"postgres\"\nusername = \"app\"\n"
    );
    Pgusher::start(&(warehouse(&server, "", "") + USERS + &elsewhere))
}

fn direct() -> Raw {
    let address: SocketAddr = ([127, 0, 0, 1], pair().dev.port).into();
    Raw::login_with(address, 0x0003_0000, &[("user", "app"), ("database", "dev")])
}

fn extended(text: &str, parameters: &[&str]) -> Vec<u8> {
    [parse("", text), describe_statement(""), bind("", "", parameters), execute(), sync()].concat()
}

/// With a parameter in binary.
fn binary(text: &str, pid: u32) -> Vec<u8> {
    let bound = [&b"\0\0\0\x01\0\x01\0\x01\0\0\0\x04"[..], &pid.to_be_bytes(), b"\0\0"].concat();
    [parse("", text), message('B', &bound), execute(), sync()].concat()
}

/// In a statement with a name, in a batch that is not the one that prepares it.
fn named(raw: &mut Raw, name: &str, text: &str, parameters: &[&str]) -> Vec<Message> {
    assert_eq!(raw.tags(&[parse(name, text), sync()].concat()), "1Z");
    raw.ask(&[bind("", name, parameters), execute(), sync()].concat())
}

fn row(answer: &[Message]) -> Option<Vec<String>> {
    answer.iter().find(|m| m.tag == 'D').map(Message::columns)
}

/// Its last words.
fn last_words(raw: &mut Raw) -> String {
    let said = std::iter::from_fn(|| raw.next()).find(|m| m.tag == 'E');
    said.map(|error| format!("{} {}", error.field('C'), error.field('M'))).unwrap_or_default()
}

const ENDED: &str = "57P01 terminating connection due to administrator command";

#[test]
fn one_number_stands_for_a_session_on_whatever_connection_it_is() {
    let pgusher = start(2);
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    let pid = one.key.0;
    assert!(pid > LARGEST_PROCESS && other.key.0 > LARGEST_PROCESS && other.key.0 != pid);
    for turn in 0..4 {
        other.ask(&query(if turn % 2 == 0 { "BEGIN" } else { "ROLLBACK" }));
        let expected = Some(vec![pid.to_string()]);
        assert_eq!(row(&one.ask(&query("SELECT pg_backend_pid()"))), expected);
        assert_eq!(row(&one.ask(&extended("select pg_catalog.pg_backend_pid()", &[]))), expected);
        assert_eq!(
            row(&named(&mut one, &format!("n{turn}"), "SELECT pg_backend_pid() AS pid;", &[])),
            expected
        );
        assert_eq!(row(&one.ask(&[bind("", "n0", &[]), execute(), sync()].concat())), expected);
    }
    assert_eq!(row(&other.ask(&query("SELECT pg_backend_pid()"))), Some(vec![other.key.0.to_string()]));
    // The column is what it is directly, in a transaction that has failed as well.
    let mut direct = direct();
    for before in ["", "BEGIN", "SELECT 1/0"] {
        for text in ["SELECT pg_backend_pid()", "SELECT pg_backend_pid() AS \"My Pid\""] {
            let asked = [query(text), extended(text, &[])];
            let [got, expected] = [&mut one, &mut direct].map(|raw| {
                raw.ask(&query(before));
                let mut all: Vec<_> = asked.iter().flat_map(|asked| raw.ask(asked)).map(normal).collect();
                all.retain(|message| message.tag != 'D');
                all
            });
            assert_eq!(shown(&got), shown(&expected), "{before}; {text}");
        }
    }
    one.ask(&query("ROLLBACK"));
    // Its own notifications are by it.
    done(&mut one, "LISTEN pids");
    for text in ["NOTIFY pids", "SELECT pg_notify('pids', 'x')"] {
        let answer = one.ask(&query(text));
        let told = answer.iter().find(|m| m.tag == 'A').unwrap_or_else(|| panic!("{answer:?}"));
        assert_eq!(told.body[..4], pid.to_be_bytes(), "{text}");
    }
    done(&mut other, "NOTIFY pids, 'of another'");
    let told = one.next().unwrap();
    assert_ne!(told.body[..4], pid.to_be_bytes());
}

#[test]
fn a_session_is_ended_by_its_number_in_the_forms_that_tools_send() {
    let pgusher = start(3);
    let mut caller = Raw::login(pgusher.address(), "raw");
    let from = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid =";
    type Way = fn(&mut Raw, u32) -> Vec<Message>;
    let ways: [Way; 10] = [
        |raw, pid| raw.ask(&query(&format!("SELECT pg_terminate_backend({pid})"))),
        |raw, pid| raw.ask(&query(&format!("select pg_catalog.pg_terminate_backend('{pid}');"))),
        |raw, pid| raw.ask(&query(&format!("SELECT pg_terminate_backend({pid}, 1000)"))),
        |raw, pid| raw.ask(&extended(&format!("SELECT pg_terminate_backend({pid})"), &[])),
        |raw, pid| raw.ask(&extended("SELECT pg_terminate_backend($1)", &[&pid.to_string()])),
        |raw, pid| raw.ask(&extended("SELECT pg_terminate_backend($2, $1)", &["100", &pid.to_string()])),
        |raw, pid| raw.ask(&binary("SELECT pg_terminate_backend($1)", pid)),
        |raw, pid| {
            named(raw, &format!("p{pid}"), "SELECT pg_terminate_backend($1::int)", &[&pid.to_string()])
        },
        |raw, pid| {
            let text = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid='{pid}'");
            raw.ask(&query(&text))
        },
        |raw, pid| {
            let text = "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.pid = $1";
            raw.ask(&extended(text, &[&pid.to_string()]))
        },
    ];
    for (number, way) in ways.iter().enumerate() {
        for busy in ["", "BEGIN", "SELECT pg_sleep(60.15)"] {
            let mut victim = Raw::login(pgusher.address(), "raw");
            victim.send(&query(busy));
            if busy.is_empty() || busy == "BEGIN" {
                victim.until_ready();
            } else {
                let asleep = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60.15)%' AND state = 'active' \
                              AND pid <> pg_backend_pid()";
                eventually("it sleeps", || pair().dev.sql("dev", asleep) == "1");
            }
            let answer = way(&mut caller, victim.key.0);
            assert_eq!(row(&answer), Some(vec!["t".into()]), "{number}, {busy}: {answer:?}");
            assert_eq!(last_words(&mut victim), ENDED, "{number}, {busy}");
            let column = answer.iter().find(|m| m.tag == 'T').map(|m| m.body[2..].to_vec());
            assert!(column.is_none_or(|column| column.starts_with(b"pg_terminate_backend\0")), "{number}");
        }
    }
    // Again, it is of nobody.
    let gone = Raw::login(pgusher.address(), "raw").key.0;
    eventually("it is gone", || row(&caller.ask(&query(&format!("{from} {gone}")))).is_none());
    assert_eq!(caller.value("SHOW pgusher.pin"), "");
}

#[test]
fn a_query_is_cancelled_by_its_sessions_number() {
    let pgusher = start(2);
    let mut caller = Raw::login(pgusher.address(), "raw");
    let mut victim = Raw::login(pgusher.address(), "raw");
    for way in [
        query(&format!("SELECT pg_cancel_backend({})", victim.key.0)),
        extended("SELECT pg_cancel_backend($1)", &[&victim.key.0.to_string()]),
    ] {
        victim.send(&query("SELECT pg_sleep(61.15)"));
        let asleep = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(61.15)' AND state = 'active'";
        eventually("it sleeps", || pair().dev.sql("dev", asleep) == "1");
        assert_eq!(row(&caller.ask(&way)), Some(vec!["t".into()]));
        let answer = victim.until_ready();
        assert_eq!(answer[answer.len() - 2].field('C'), "57014", "{answer:?}");
    }
    assert_eq!(victim.value("SELECT 1"), "1");
    // Its own: as directly.
    let (mut direct, own) = (direct(), victim.key.0);
    for function in ["pg_cancel_backend", "pg_terminate_backend"] {
        let expected = direct.ask(&query(&format!("SELECT {function}(pg_backend_pid())")));
        let got = victim.ask(&query(&format!("SELECT {function}({own})")));
        let words = |answer: &[Message]| -> Vec<_> {
            answer.iter().filter(|m| m.tag == 'E').map(|m| m.field('C').to_owned()).collect()
        };
        assert_eq!(words(&got), words(&expected), "{function}");
    }
}

/// Whether there is such a session is nobody's business but its user's.
#[test]
fn who_may_not_signal_a_session_is_told_what_he_is_told_of_one_that_is_not_there() {
    let pgusher = start(3);
    let mut caller = Raw::login(pgusher.address(), "raw");
    let mut victim = Raw::login(pgusher.address(), "other");
    // The same user, on another connection of the configuration: another server, perhaps production.
    let pairs = [("user", "raw"), ("database", "elsewhere")];
    let mut elsewhere = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
    let mut direct = direct();
    let nobody = i32::MAX as u32;
    let told = |answer: Vec<Message>, pid: u32| {
        let answer: Vec<_> = answer.into_iter().map(normal).collect();
        shown(&answer).into_iter().map(|line| line.replace(&pid.to_string(), "PID")).collect::<Vec<_>>()
    };
    for text in ["SELECT pg_terminate_backend(PID)", "SELECT pg_cancel_backend(PID)"] {
        let ask = |raw: &mut Raw, pid: u32| {
            let simple = told(raw.ask(&query(&text.replace("PID", &pid.to_string()))), pid);
            let bound = told(raw.ask(&extended(&text.replace("PID", "$1"), &[&pid.to_string()])), pid);
            [simple, bound].concat()
        };
        let expected = ask(&mut direct, nobody);
        assert!(expected.iter().any(|line| line.contains("PID PID is not a PostgreSQL")), "{expected:?}");
        assert_eq!(ask(&mut caller, nobody), expected);
        assert_eq!(ask(&mut caller, victim.key.0), expected, "another user's");
        assert_eq!(ask(&mut caller, elsewhere.key.0), expected, "on another server");
        let pid = caller.key.0;
        assert_eq!(ask(&mut elsewhere, pid), expected, "on another server");
    }
    for raw in [&mut victim, &mut caller, &mut elsewhere] {
        assert_eq!(raw.value("SELECT 1"), "1");
    }
    let mut operator = Raw::login(pgusher.address(), "operator");
    let pid = elsewhere.key.0;
    assert_eq!(
        operator.value(&format!("SELECT pg_terminate_backend({pid})")),
        "f",
        "an operator, on another server"
    );
    assert_eq!(operator.value(&format!("SELECT pg_terminate_backend({})", victim.key.0)), "t", "an operator");
    assert_eq!(last_words(&mut victim), ENDED);
}

#[test]
fn what_is_not_run_signals_nobody() {
    let pgusher = start(2);
    let mut caller = Raw::login(pgusher.address(), "raw");
    let mut victim = Raw::login(pgusher.address(), "raw");
    let pid = victim.key.0;
    let text = format!("SELECT pg_terminate_backend({pid})");
    done(&mut caller, "BEGIN");
    caller.ask(&query("SELECT 1/0"));
    assert_eq!(caller.value(&text).split(' ').next(), Some("25P02"));
    let answer = caller.ask(&extended(&text, &[]));
    assert_eq!(answer[0].field('C'), "25P02");
    done(&mut caller, "ROLLBACK");
    let fails = [parse("", "SELECT 1/0"), bind("", "", &[]), execute()].concat();
    let skipped = [parse("", &text), bind("", "", &[]), execute(), sync()].concat();
    assert_eq!(caller.tags(&[fails.clone(), skipped].concat()), "1EZ");
    // Two queries in one write, of which the first opens a transaction that fails.
    caller.send(&[query("BEGIN; SELECT 1/0"), query(&text), query("ROLLBACK")].concat());
    (0..3).for_each(|_| drop(caller.until_ready()));
    assert_eq!(victim.value("SELECT 1"), "1");
    // Bound and not executed, or bound otherwise than PostgreSQL takes it, or by somebody who may not.
    let with = "SELECT pg_terminate_backend($1)";
    let bound = |pid: u32| [parse("", with), bind("p", "", &[&pid.to_string()])].concat();
    for batch in [
        [bound(pid), sync()].concat(),
        [bound(pid), message('D', b"Pp\0"), message('H', b""), message('C', b"Pp\0"), sync()].concat(),
        [bound(pid), fails.clone(), message('E', b"p\0\0\0\0\0"), sync()].concat(),
        [parse("", with), bind("", "", &[]), execute(), sync()].concat(),
        [parse("", with), bind("", "", &[&pid.to_string(), "1"]), execute(), sync()].concat(),
        [parse("", with), bind("", "", &[&format!("\u{a0}{pid}")]), execute(), sync()].concat(),
        extended("SELECT pg_terminate_backend($1, $2)", &[&pid.to_string(), "zz"]),
        extended("SELECT pg_terminate_backend($1, $2)", &[&pid.to_string(), "-1"]),
    ] {
        caller.ask(&batch);
        assert_eq!(victim.value("SELECT 1"), "1", "{}", batch.escape_ascii());
    }
    // During a COPY it is no execution, and is answered as directly.
    pair().dev.sql("dev", "CREATE TABLE IF NOT EXISTS signalled (a int)");
    let copy = [parse("", "COPY signalled FROM STDIN"), bind("", "", &[]), execute()].concat();
    let within = [bound(pid), copy, message('E', b"p\0\0\0\0\0"), sync()].concat();
    let mut ends = [Raw::login(pgusher.address(), "raw"), direct()].map(|mut copier| {
        copier.send(&within);
        std::iter::from_fn(|| copier.next().filter(|m| m.tag != 'Z'))
            .find(|m| m.tag == 'E')
            .map(|m| m.field('C').to_owned())
    });
    let expected = ends[1].take();
    assert!(expected.is_some() && ends[0] == expected, "{ends:?}, {expected:?}");
    assert_eq!(victim.value("SELECT 1"), "1");
    for (before, after) in [("SET ROLE plain", "RESET ROLE"), ("BEGIN; SET LOCAL ROLE plain", "ROLLBACK")] {
        done(&mut caller, before);
        caller.ask(&query(&text));
        caller.ask(&extended(&text, &[]));
        done(&mut caller, after);
        assert_eq!(victim.value("SELECT 1"), "1", "{before}");
    }
    // Behind others it is done in its turn, and answered there.
    let batch = [
        parse("", "SELECT 'first'"),
        bind("", "", &[]),
        execute(),
        parse("", &text),
        bind("", "", &[]),
        execute(),
    ];
    let behind = [parse("", "SELECT 'behind'"), bind("", "", &[]), execute(), sync()];
    let answer = caller.ask(&[batch.concat(), behind.concat()].concat());
    let rows: Vec<_> = answer.iter().filter(|m| m.tag == 'D').flat_map(Message::columns).collect();
    assert_eq!(rows, ["first", "t", "behind"]);
    assert_eq!(last_words(&mut victim), ENDED);
    assert_eq!(caller.value("SHOW pgusher.pin"), "");
}
