//! `LISTEN` in transaction mode: one connection listens for everybody, and nobody can tell.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::house::{Pgusher, Random, eventually, pair, size, warehouse};
use super::relay::one_connection;
use super::wire::{Message, Raw, bind, execute, message, parse, query, sync};

/// Runs it; it must work. What was notified meanwhile is answered.
fn done(raw: &mut Raw, sql: &str) -> Vec<String> {
    notifications(&super::state::done(raw, sql))
}

fn notifications(answer: &[Message]) -> Vec<String> {
    answer.iter().filter(|m| m.tag == 'A').map(told).collect()
}

/// `channel payload`
fn told(message: &Message) -> String {
    assert_eq!(message.tag, 'A', "{message:?}");
    let text = String::from_utf8_lossy(&message.body[4..]).into_owned();
    let mut parts = text.split('\0');
    format!("{} {}", parts.next().unwrap(), parts.next().unwrap())
}

/// Nothing comes, for as long as it would take.
fn hears_nothing(raw: &mut Raw) {
    assert_eq!(raw.tags(&query("SELECT 1")), "TDCZ");
    raw.stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let error = std::io::Read::read(&mut raw.stream, &mut [0; 1]).expect_err("nothing comes");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    raw.stream.set_read_timeout(Some(super::house::PATIENCE)).unwrap();
}

#[test]
fn a_session_that_listens_keeps_no_connection() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    assert_eq!(one.tags(&query("LISTEN one_news")), "CZ");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    for i in 0..3 {
        assert_eq!(other.tags(&query(&format!("NOTIFY one_news, '{i}'"))), "CZ", "it is none of the other's");
        assert_eq!(told(&one.next().unwrap()), format!("one_news {i}"));
    }
    // In the extended protocol, and in a transaction with something else.
    let listen = [parse("", "LISTEN one_more"), bind("", "", &[]), execute(), sync()].concat();
    assert_eq!(one.tags(&listen), "12CZ");
    done(&mut one, "BEGIN; LISTEN one_third; SET work_mem = '9MB'; COMMIT");
    assert_eq!(one.value("SHOW work_mem"), "9MB");
    let channels = "SELECT string_agg(c, ' ' ORDER BY c) FROM pg_listening_channels() AS c";
    assert_eq!(one.value(channels), "one_more one_news one_third");
    let answer = one.ask(&[parse("", channels), bind("", "", &[]), execute(), sync()].concat());
    assert_eq!(answer[2].columns(), ["one_more one_news one_third"]);
    assert_eq!(other.value(channels), "");
    done(&mut other, "NOTIFY one_third, 'x'");
    assert_eq!(told(&one.next().unwrap()), "one_third x");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
}

#[test]
fn ones_own_notifications_come_with_the_transaction_that_sent_them() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    done(&mut one, "LISTEN own_news");
    assert_eq!(one.tags(&query("NOTIFY own_news, 'a'")), "CAZ");
    assert_eq!(one.tags(&query("SELECT pg_notify('own_news', 'b')")), "TDCAZ");
    let notify = [parse("s", "NOTIFY own_news, 'c'"), bind("", "s", &[]), execute(), sync()].concat();
    assert_eq!(one.tags(&notify), "12CAZ");
    assert_eq!(one.tags(&[bind("", "s", &[]), execute(), sync()].concat()), "2CAZ");
    let unnamed = [parse("", "NOTIFY own_news, 'd'"), sync()].concat();
    assert_eq!(one.tags(&unnamed), "1Z");
    assert_eq!(one.tags(&[bind("", "", &[]), execute(), sync()].concat()), "2CAZ");
    assert_eq!(done(&mut one, "BEGIN; NOTIFY own_news, 'e'"), [""; 0]);
    assert_eq!(one.tags(&query("COMMIT")), "CAZ");
    assert_eq!(done(&mut one, "BEGIN; NOTIFY own_news, 'f'; ROLLBACK"), [""; 0]);
    assert_eq!(
        done(&mut one, "BEGIN; NOTIFY own_news, 'g'; UNLISTEN own_news; LISTEN own_other; COMMIT"),
        [""; 0]
    );
    assert_eq!(done(&mut one, "NOTIFY own_news, 'h'"), [""; 0]);
    assert_eq!(done(&mut one, "NOTIFY own_other, 'i'"), ["own_other i"]);
    assert_eq!(one.value("SHOW pgusher.pin"), "");
}

#[test]
fn channels_follow_their_transactions() {
    let pgusher = one_connection();
    let mut other = Raw::login(pgusher.address(), "raw");
    // What a session that listens to `a` does, and what it listens to then.
    for (does, listens) in [
        ("BEGIN; LISTEN b; ROLLBACK", "a"),
        ("BEGIN; UNLISTEN a; ROLLBACK", "a"),
        ("BEGIN; UNLISTEN *; LISTEN b; COMMIT", "b"),
        ("BEGIN; UNLISTEN *; SELECT 1/0", "a"),
        ("BEGIN; SAVEPOINT s; LISTEN b; ROLLBACK TO s; LISTEN c; COMMIT", "ac"),
        ("BEGIN; UNLISTEN a; ROLLBACK;UNLISTEN a", ""),
        ("BEGIN; UNLISTEN a; COMMIT;LISTEN b", "b"),
        ("UNLISTEN a", ""),
        ("UNLISTEN nothing", "a"),
        ("UNLISTEN *", ""),
        ("DISCARD ALL", ""),
        ("SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL;", ""),
        ("LISTEN a; LISTEN a", "a"),
        ("LISTEN b", "ab"),
        ("BEGIN; NOTIFY c; LISTEN b; UNLISTEN a; COMMIT", "b"),
    ] {
        for (way, apart) in [("at once", false), ("one by one", true), ("pipelined", true)] {
            let mut one = Raw::login(pgusher.address(), "raw");
            done(&mut one, "LISTEN a");
            let statements: Vec<&str> = if apart { does.split(';').collect() } else { vec![does] };
            if way == "pipelined" {
                one.send(&statements.iter().map(|s| query(s)).collect::<Vec<_>>().concat());
                statements.iter().for_each(|_| drop(one.until_ready()));
            } else {
                statements.iter().for_each(|s| drop(one.ask(&query(s))));
            }
            one.ask(&query("ROLLBACK"));
            for channel in ["a", "b", "c"] {
                done(&mut other, &format!("NOTIFY {channel}"));
            }
            done(&mut other, "NOTIFY a, 'end'");
            for channel in listens.chars() {
                assert_eq!(told(&one.next().unwrap()), format!("{channel} "), "{does}, {way}");
            }
            if listens.contains('a') {
                assert_eq!(told(&one.next().unwrap()), "a end", "{does}, {way}");
            }
            hears_nothing(&mut one);
            let channels = one.value("SELECT string_agg(c, '' ORDER BY c) FROM pg_listening_channels() AS c");
            assert_eq!(channels, listens, "{does}, {way}");
            assert_eq!(one.value("SHOW pgusher.pin"), "", "{does}, {way}");
        }
    }
}

#[test]
fn notifications_wait_for_the_end_of_a_transaction() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut one, "LISTEN wait_news");
    done(&mut one, "BEGIN");
    for i in 0..3 {
        done(&mut other, &format!("NOTIFY wait_news, '{i}'"));
    }
    assert_eq!(done(&mut one, "SELECT 1"), [""; 0]);
    let mut heard = done(&mut one, "COMMIT");
    heard.extend((heard.len()..3).map(|_| told(&one.next().unwrap())));
    assert_eq!(heard, ["wait_news 0", "wait_news 1", "wait_news 2"]);
}

#[test]
fn a_thousand_listeners_need_one_connection() {
    let count = size(1000, 1000);
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 3", "", ""));
    let mut all: Vec<_> = (0..count).map(|_| Raw::login(pgusher.address(), "rawprod")).collect();
    all.iter_mut().for_each(|raw| drop(done(raw, "LISTEN thousand")));
    let connections = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
                       AND query ILIKE '%listen%' AND pid <> pg_backend_pid()";
    let used: usize = pair().prod.sql("prod", connections).parse().unwrap();
    assert!(used <= 4, "{used} connections");
    let mut other = Raw::login(pgusher.address(), "rawprod");
    for i in 0..20 {
        done(&mut other, &format!("NOTIFY thousand, '{i}'"));
    }
    for raw in &mut all {
        for i in 0..20 {
            assert_eq!(told(&raw.next().unwrap()), format!("thousand {i}"));
        }
    }
}

/// Each notification has a number. Whoever listens hears them without a gap and without a repetition, from the moment
/// its LISTEN is answered.
#[test]
fn none_is_lost_and_none_comes_twice_while_channels_move() {
    let rounds = size(60, 3000);
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let committed = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let notifier = scope.spawn(|| {
            let pairs = [("user", "app"), ("database", "dev")];
            let mut direct = Raw::login_with(([127, 0, 0, 1], pair().dev.port).into(), 0x0003_0000, &pairs);
            while !stop.load(Ordering::Relaxed) {
                let next = committed.load(Ordering::Relaxed) + 1;
                done(&mut direct, &format!("NOTIFY counted, '{next}'"));
                committed.store(next, Ordering::SeqCst);
            }
        });
        let listeners: Vec<_> = (0..6)
            .map(|number| {
                let (pgusher, committed) = (&pgusher, &committed);
                scope.spawn(move || {
                    let mut random = Random(0x1157 + number);
                    let mut raw = Raw::login(pgusher.address(), "raw");
                    let count = |text: &String| text.strip_prefix("counted ").unwrap().parse().unwrap();
                    for round in 0..rounds {
                        let before = committed.load(Ordering::SeqCst);
                        let mut heard: Vec<usize> =
                            done(&mut raw, "LISTEN counted").iter().map(count).collect();
                        let after = committed.load(Ordering::SeqCst);
                        let mine = format!("mine_{number}");
                        let mut did = Vec::new();
                        for _ in 0..random.below(6) {
                            let sql = match random.below(6) {
                                0 => "SELECT 1".into(),
                                1 => format!("NOTIFY {mine}, 'x'"),
                                2 => "BEGIN; UNLISTEN counted; ROLLBACK".into(),
                                3 => format!("LISTEN {mine}"),
                                4 => "BEGIN; NOTIFY nobody; SELECT 1; COMMIT".into(),
                                _ => "SELECT pg_listening_channels()".to_string(),
                            };
                            did.push(format!("{:?} {sql}", heard.last()));
                            heard.extend(
                                done(&mut raw, &sql).iter().filter(|t| !t.starts_with("mine")).map(count),
                            );
                        }
                        let until = after + 3;
                        while heard.last().is_none_or(|last| *last < until) {
                            let text = told(&raw.next().unwrap());
                            if !text.starts_with("mine") {
                                heard.push(count(&text));
                            }
                        }
                        // What was committed before is told, at the latest in front of the next answer.
                        let sure = committed.load(Ordering::SeqCst);
                        for sql in ["UNLISTEN *", "SELECT 1"] {
                            let last = done(&mut raw, sql);
                            heard.extend(last.iter().filter(|t| !t.starts_with("mine")).map(count));
                        }
                        assert!(heard.last() >= Some(&sure), "{:?} of {sure}", heard.last());
                        let jump = heard.windows(2).find(|w| w[1] != w[0] + 1);
                        let context =
                            format!("{before} to {after}; {did:?}; listener {number}, round {round}");
                        assert!(heard[0] > before && heard[0] <= after + 2, "{}: {context}", heard[0]);
                        assert_eq!(jump, None, "{context}");
                        hears_nothing(&mut raw);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = listeners.into_iter().map(|l| l.join()).collect();
        stop.store(true, Ordering::Relaxed);
        notifier.join().unwrap();
        ended.into_iter().for_each(|end| end.unwrap());
    });
    println!("{} notifications, {} changes of channels", committed.load(Ordering::Relaxed), 6 * rounds);
}

#[test]
fn a_session_whose_listener_is_lost_ends_and_says_why() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut busy = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut one, "LISTEN lost");
    done(&mut busy, "LISTEN lost");
    done(&mut busy, "BEGIN");
    let kill =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'LISTEN \"lost\"%'";
    eventually("it is killed", || pair().dev.sql("dev", kill) == "1");
    let end = one.next().unwrap();
    assert_eq!((end.tag, end.field('S').as_str(), end.field('C').as_str()), ('E', "FATAL", "08006"));
    assert!(end.field('D').contains("Notifications may be lost"), "{}", end.field('D'));
    assert!(one.is_closed());
    // One in a transaction may end it.
    assert_eq!(busy.value("SELECT 'still'"), "still");
    let answer = busy.ask(&query("COMMIT"));
    assert_eq!(answer[0].tag, 'C');
    assert!(answer.iter().any(|m| m.field('C') == "08006") || busy.next().unwrap().field('C') == "08006");
    // Nobody else notices, and one can listen again.
    assert_eq!(other.value("SELECT 'unharmed'"), "unharmed");
    let mut again = Raw::login(pgusher.address(), "raw");
    done(&mut again, "LISTEN lost");
    done(&mut other, "NOTIFY lost, 'found'");
    assert_eq!(told(&again.next().unwrap()), "lost found");
}

#[test]
fn any_name_and_any_text_is_told_as_it_is() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    for channel in ["\"Odd \"\"name\"\"; --\"", "été", "\"back\\slash\"", "\"😀\""] {
        done(&mut one, &format!("LISTEN {channel}"));
        let plain = channel.trim_matches('"').replace("\"\"", "\"");
        for payload in ["", "text", "ünïcode 😀", "it''s"] {
            done(&mut other, &format!("NOTIFY {channel}, '{payload}'"));
            assert_eq!(told(&one.next().unwrap()), format!("{plain} {}", payload.replace("''", "'")));
        }
        assert_eq!(done(&mut one, &format!("NOTIFY {channel}, 'own'")), [format!("{plain} own")]);
        done(&mut one, &format!("UNLISTEN {channel}"));
        assert_eq!(one.value("SELECT count(*) FROM pg_listening_channels()"), "0");
    }
    assert_eq!(one.value("SHOW pgusher.pin"), "");
}

#[test]
fn a_session_that_cannot_be_listened_for_keeps_its_connection() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 3", "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut one, "SET client_encoding = 'LATIN1'");
    done(&mut one, "LISTEN enc_news");
    assert_eq!(one.value("SHOW pgusher.pin"), "listen");
    done(&mut other, "NOTIFY enc_news, 'é'");
    assert_eq!(one.next().unwrap().body[4..], *b"enc_news\0\xe9\0");
    done(&mut one, "UNLISTEN enc_news");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    // One that changes its encoding later hears what is the same in both, and ends with the first that is not.
    done(&mut one, "SET client_encoding = 'UTF8'; LISTEN enc_news");
    done(&mut one, "SET client_encoding = 'LATIN1'");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    done(&mut other, "NOTIFY enc_news, 'plain'");
    assert_eq!(told(&one.next().unwrap()), "enc_news plain");
    done(&mut other, "NOTIFY enc_news, 'é'");
    assert_eq!(one.next().unwrap().field('C'), "22P05");
    // No room for one more connection to that host.
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2\nmax_host_connections = 2", "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut one, "BEGIN");
    done(&mut other, "LISTEN enc_news");
    assert_eq!(other.value("SHOW pgusher.pin"), "listen");
    assert_eq!(done(&mut other, "NOTIFY enc_news, 'x'"), ["enc_news x"]);
    done(&mut one, "ROLLBACK");
    assert_eq!(one.value("SELECT 'served'"), "served");
}

#[test]
fn a_temporary_table_keeps_its_connection_and_channels_do_not() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut one, "LISTEN temp_news; CREATE TEMP TABLE t (a int)");
    assert_eq!(one.value("SHOW pgusher.pin"), "temporary object");
    done(&mut other, "NOTIFY temp_news, 'pinned'");
    assert_eq!(told(&one.next().unwrap()), "temp_news pinned");
    assert_eq!(done(&mut one, "NOTIFY temp_news, 'own'"), ["temp_news own"]);
    done(&mut one, "DROP TABLE t");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    done(&mut other, "NOTIFY temp_news, 'free'");
    assert_eq!(told(&one.next().unwrap()), "temp_news free");
    // And one that is pinned for good may still begin and end to listen.
    done(&mut one, "SELECT setseed(0.5)");
    assert_eq!(one.value("SHOW pgusher.pin"), "opaque statement");
    done(&mut one, "LISTEN temp_more");
    assert_eq!(
        done(&mut one, "NOTIFY temp_more, 'x'; NOTIFY temp_news, 'y'"),
        ["temp_more x", "temp_news y"]
    );
    done(&mut one, "UNLISTEN temp_news");
    done(&mut other, "NOTIFY temp_news, 'gone'");
    done(&mut other, "NOTIFY temp_more, 'there'");
    assert_eq!(told(&one.next().unwrap()), "temp_more there");
    // A session that leaves takes its channels with it.
    drop(one);
    assert_eq!(done(&mut other, "NOTIFY temp_more"), [""; 0]);
    assert_eq!(other.tags(&message('S', b"")), "Z");
}

#[test]
fn what_is_done_unseen_for_a_session_that_listens_leaves_no_portal_and_takes_none() {
    let pgusher = one_connection();
    let mut one = Raw::login(pgusher.address(), "raw");
    done(&mut one, "LISTEN unseen_portal");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    let describe = message('D', b"P\0");
    // Parsing a NOTIFY recalls the channels: PostgreSQL has no portal then.
    let batch = [parse("", "NOTIFY unseen_portal"), describe.clone(), sync()].concat();
    let answer = one.ask(&batch);
    assert!(answer.iter().any(|m| m.tag == 'E' && m.field('C') == "34000"), "{answer:?}");
    // And one that the client has stays its own.
    let suspended = [
        parse("", "SELECT generate_series(1, 3)"),
        bind("", "", &[]),
        message('E', b"\0\0\0\0\x01"),
        parse("", "NOTIFY unseen_portal"),
        message('E', b"\0\0\0\0\0"),
        sync(),
    ];
    assert_eq!(one.tags(&suspended.concat()), "12Ds1DDCZ");
}

/// In a failed transaction nothing is done unseen: what is wrong with the text is said first, as directly; and once it has ended, in
/// the same pipeline, the channels are there again.
#[test]
fn what_names_channels_in_a_failed_transaction_is_answered_as_directly() {
    let pgusher = one_connection();
    let batch = |sql: &str| [parse("", sql), bind("", "", &[]), execute(), sync()].concat();
    let state = |answer: &[Message]| answer.iter().find(|m| m.tag == 'E').map(|m| m.field('C'));
    let mut one = Raw::login(pgusher.address(), "raw");
    done(&mut one, "LISTEN failed_news");
    assert_eq!(one.value("SHOW pgusher.pin"), "");
    for ahead in ["", "SELECT 1"] {
        one.ask(&query("BEGIN; SELECT 1/0"));
        let mut sent = batch("DISCARD ALL; SELECT 1");
        if !ahead.is_empty() {
            sent = [batch(ahead), sent].concat();
            one.send(&sent);
            assert_eq!(state(&one.until_ready()).as_deref(), Some("25P02"));
            assert_eq!(state(&one.until_ready()).as_deref(), Some("42601"));
        } else {
            assert_eq!(state(&one.ask(&sent)).as_deref(), Some("42601"));
        }
        assert_eq!(state(&one.ask(&batch("LISTEN more_news"))).as_deref(), Some("25P02"));
        // Behind its end, in one pipeline; and in one batch.
        if ahead.is_empty() {
            one.send(&[batch("ROLLBACK"), batch("LISTEN more_news")].concat());
            assert_eq!((state(&one.until_ready()), state(&one.until_ready())), (None, None));
        } else {
            let ends = batch("ROLLBACK");
            let listens = [&ends[..ends.len() - sync().len()], &batch("LISTEN more_news")].concat();
            assert_eq!(state(&one.ask(&listens)), None);
        }
        let mut other = Raw::login(pgusher.address(), "raw");
        done(&mut other, "NOTIFY failed_news, '1'; NOTIFY more_news, '2'");
        let mut heard = Vec::new();
        while heard.len() < 2 {
            heard.push(told(&one.next().expect("what was notified")));
        }
        assert_eq!(heard, ["failed_news 1", "more_news 2"]);
        done(&mut one, "UNLISTEN more_news");
    }
}

/// What was committed before an `UNLISTEN` is told, with it or behind it: its commit comes later.
#[test]
fn what_was_notified_before_an_unlisten_is_told() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    for unlisten in ["UNLISTEN last_news", "UNLISTEN *", "DISCARD ALL"] {
        let mut one = Raw::login(pgusher.address(), "raw");
        let mut other = Raw::login(pgusher.address(), "raw");
        for round in 0..size(60, 1000) {
            done(&mut one, "LISTEN last_news");
            // Until it is handed over, and at once.
            if round % 2 == 0 {
                done(&mut one, "SELECT 1");
            }
            done(&mut other, &format!("NOTIFY last_news, '{round}'"));
            let mut heard = done(&mut one, unlisten);
            while heard.is_empty() {
                heard.push(told(&one.next().expect("what was notified")));
            }
            assert_eq!(heard, [format!("last_news {round}")], "{unlisten}");
        }
        hears_nothing(&mut one);
    }
}

/// A rollback to a savepoint takes back whatever was listened to behind it.
#[test]
fn what_is_notified_behind_a_rollback_to_a_savepoint_comes_with_its_transaction() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 1", "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    done(&mut one, "LISTEN savepoints");
    assert_eq!(other.value("SELECT 1"), "1");
    let extended = |text: &str| [parse("", text), bind("", "", &[]), execute(), sync()].concat();
    for way in [|text: &str| query(text), extended] {
        for text in [
            "BEGIN",
            "SAVEPOINT s",
            "NOTIFY savepoints, 'undone'",
            "ROLLBACK TO s",
            "NOTIFY savepoints, 'one'",
        ] {
            assert_eq!(notifications(&one.ask(&way(text))), [""; 0], "{text}");
        }
        one.ask(&way("SAVEPOINT s"));
        one.ask(&way("NOTIFY savepoints, 'two'"));
        assert_eq!(notifications(&one.ask(&way("COMMIT"))), ["savepoints one", "savepoints two"]);
        assert_eq!(other.value("SELECT 1"), "1");
        hears_nothing(&mut one);
    }
}

/// As many as nobody can list in one answer: the session keeps its connection.
#[test]
fn a_thousand_channels_with_long_names_are_told_as_a_few() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let mut one = Raw::login(pgusher.address(), "raw");
    let listen = |from: usize, to: usize| {
        let names: Vec<_> = (from..to).map(|i| format!("LISTEN \"{i:04}_{}\"", "x".repeat(50))).collect();
        names.join(";")
    };
    for (from, to) in [(0, 200), (200, 500), (500, 900), (900, 1500)] {
        done(&mut one, &listen(from, to));
        for i in [0, to - 1] {
            let channel = format!("{i:04}_{}", "x".repeat(50));
            let told = one.ask(&query(&format!("NOTIFY \"{channel}\", 'own'")));
            assert_eq!(notifications(&told), [format!("{channel} own")], "{to}");
        }
        assert_eq!(one.value("SELECT count(*) FROM pg_listening_channels()"), to.to_string());
    }
    done(&mut one, "UNLISTEN *");
    assert_eq!((one.value("SHOW pgusher.pin"), one.value("SELECT 1")), (String::new(), "1".into()));
}
