//! A client that closes its side of the connection is answered, as it is directly; one that is gone is not waited for.

use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use super::differential::{arrive, normal, server, shown, through};
use super::house::{Pgusher, eventually, pair, warehouse};
use super::relay::one_connection;
use super::state::done;
use super::wire::{Message, Raw, bind, execute, message, parse, query, startup, sync};

/// What it is sent up to the end of the connection, but for settings told once more.
fn all(raw: &mut Raw) -> Vec<Message> {
    std::iter::from_fn(|| raw.next()).filter(|message| message.tag != 'S').map(normal).collect()
}

/// Sends it, closes its side, and reads.
fn half_closed(address: SocketAddr, user: &str, bytes: &[u8]) -> Vec<Message> {
    let mut raw = arrive(address, user);
    raw.send(bytes);
    raw.stream.shutdown(Shutdown::Write).unwrap();
    all(&mut raw)
}

#[test]
fn a_client_that_has_closed_its_side_gets_its_answers_as_directly() {
    let direct: SocketAddr = ([127, 0, 0, 1], server().port).into();
    arrive(direct, "app").ask(&query("CREATE TABLE IF NOT EXISTS halves (a int)"));
    let batch = |sql: &str| [parse("", sql), bind("", "", &[]), execute()].concat();
    let texts = [
        query("INSERT INTO halves VALUES (1)"),
        query("SELECT pg_sleep(0.4), 'late'"),
        query("BEGIN; INSERT INTO halves VALUES (2); SELECT 1"),
        query("SELECT 1; SELECT 2/0; SELECT 3"),
        [query("SELECT pg_sleep(0.3)"), query("SET work_mem = '5MB'"), query("SHOW work_mem")].concat(),
        query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 5000)) TO STDOUT"),
        [query("COPY halves FROM STDIN"), message('d', b"3\n"), message('c', b"")].concat(),
        [query("COPY halves FROM STDIN"), message('d', b"4\n")].concat(),
        [batch("SELECT pg_sleep(0.3)"), sync(), batch("INSERT INTO halves VALUES (5)"), sync()].concat(),
        [query("SELECT 7"), message('P', b"half")[..7].to_vec()].concat(),
        [query("BEGIN"), query(&"half".repeat(10_000))[..70].to_vec()].concat(),
        [b"Q\0\0\x75\x30SELECT".to_vec(), vec![b' '; 20_000]].concat(),
        [query("SELECT 8"), message('X', b"")].concat(),
        query("LISTEN halves; NOTIFY halves"),
        Vec::new(),
    ];
    let count = "SELECT count(*) FROM halves";
    let grown = |run: &dyn Fn() -> Vec<Vec<Message>>| {
        let before: u64 = arrive(direct, "app").value(count).parse().unwrap();
        let answers = run();
        let after: u64 = arrive(direct, "app").value(count).parse().unwrap();
        (answers, after - before)
    };
    let on = |address, user| texts.iter().map(|text| half_closed(address, user, text)).collect();
    let (expected, rows) = grown(&|| on(direct, "app"));
    assert_eq!(rows, 3, "the inserts that are not rolled back");
    for (mode, size) in [("transaction", 1), ("transaction", 2), ("session", 5)] {
        let pgusher = through(mode, size);
        let (got, rows) = grown(&|| on(pgusher.address(), "raw"));
        for ((text, got), expected) in texts.iter().zip(got).zip(&expected) {
            // A COPY that was cut short fails; that is not told.
            let broken =
                |message: &Message| message.tag == 'E' && ["08006", "08P01"].contains(&&*message.field('C'));
            let expected: Vec<_> = expected.iter().filter(|m| !broken(m)).cloned().collect();
            assert_eq!(shown(&got), shown(&expected), "{mode} mode: {}", text.escape_ascii());
        }
        assert_eq!(rows, 3, "{mode} mode");
    }
}

#[test]
fn a_client_that_has_closed_its_side_keeps_its_place_in_the_queue() {
    let pgusher = one_connection();
    let mut holder = Raw::login(pgusher.address(), "raw");
    done(&mut holder, "BEGIN");
    let mut waiting = Raw::login(pgusher.address(), "raw");
    waiting.send(&[query("SELECT 'waited'"), query("SELECT 'twice'")].concat());
    waiting.stream.shutdown(Shutdown::Write).unwrap();
    // Long enough for it to be asked whether it is there.
    assert!(waiting.answers_within(Duration::from_secs(5)), "it is told a setting once more");
    done(&mut holder, "COMMIT");
    let answers = all(&mut waiting);
    let rows: Vec<_> = answers.iter().filter(|m| m.tag == 'D').flat_map(Message::columns).collect();
    assert_eq!(rows, ["waited", "twice"]);
}

#[test]
fn what_a_client_that_is_gone_was_owed_is_cancelled() {
    let pgusher = one_connection();
    let running =
        "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(55)' AND state = 'active'";
    let runs = || pair().dev.sql("postgres", running);
    for half in [false, true] {
        let mut gone = Raw::login(pgusher.address(), "raw");
        gone.send(&query("SELECT pg_sleep(55)"));
        eventually("it runs", || runs() == "1");
        if half {
            // Gone only after it has closed its side, and was found to be there.
            gone.stream.shutdown(Shutdown::Write).unwrap();
            assert!(gone.answers_within(Duration::from_secs(5)));
            assert_eq!(runs(), "1");
        }
        // One that waits leaves the queue.
        let mut waiting = Raw::login(pgusher.address(), "raw");
        waiting.send(&query("INSERT INTO t VALUES ('gone')"));
        drop((gone, waiting));
        let since = Instant::now();
        eventually("it is cancelled", || runs() == "0");
        assert!(since.elapsed() < Duration::from_secs(30), "long before its end");
        let mut next = Raw::login(pgusher.address(), "raw");
        assert_eq!(next.value("SELECT 1"), "1");
    }
}

/// Whatever part of it the system has taken when its session is over.
#[test]
fn the_last_of_an_answer_reaches_a_client_that_reads_late() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 40", "", ""));
    let address = pgusher.address();
    std::thread::scope(|scope| {
        for rows in (200..4200).step_by(100) {
            scope.spawn(move || {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.set_recv_buffer_size(4096).unwrap();
                socket.connect(&address.into()).unwrap();
                let mut raw = Raw { stream: socket.into(), key: (0, Vec::new()), parameters: Vec::new() };
                raw.stream.set_read_timeout(Some(super::house::PATIENCE)).unwrap();
                raw.send(&startup(0x0003_0000, &[("user", "raw"), ("database", "warehouse")]));
                raw.until_ready();
                let text = format!("SELECT repeat('x', 1000) FROM generate_series(1, {rows})");
                raw.send(&[query(&text), message('X', b"")].concat());
                std::thread::sleep(Duration::from_secs(1));
                let got = all(&mut raw);
                assert_eq!(got.last().map(|m| m.tag), Some('Z'), "{rows} rows: cut after {}", got.len());
                assert_eq!(got.len(), rows + 3);
            });
        }
    });
}
