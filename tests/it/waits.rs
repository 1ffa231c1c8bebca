//! Who waits for a connection and for how long, where the places at a host are few or a configuration has changed them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::house::{Pgusher, pair, warehouse};
use super::state::done;
use super::wire::{Raw, bind, execute, parse, query, sync};

/// Connections to the same database beside `warehouse`, so many.
fn others(count: usize) -> String {
    let dev = pair().dev.port;
    (0..count)
        .map(|number| {
            format!(
                "[connections.other{number}]\nhost = \"127.0.0.1\"\nport = {dev}\ndatabase = \"dev\"\nusername = \"app\"\n"
            )
        })
        .collect()
}

fn log_in(pgusher: &Pgusher, database: &str) -> Raw {
    Raw::login_with(pgusher.address(), 0x0003_0000, &[("user", "raw"), ("database", database)])
}

/// So many connections are open and idle, and their clients are there or not.
fn idle(pgusher: &Pgusher, count: usize) -> Vec<Raw> {
    let mut clients: Vec<Raw> = (0..count).map(|_| log_in(pgusher, "warehouse")).collect();
    clients.iter_mut().for_each(|raw| drop(done(raw, "BEGIN")));
    clients.iter_mut().for_each(|raw| drop(done(raw, "COMMIT")));
    clients
}

/// Two clients of another pool are served, the second one by connections that make way.
fn is_served(pgusher: &Pgusher, what: &str) {
    let (mut first, mut second) = (log_in(pgusher, "other0"), log_in(pgusher, "other0"));
    done(&mut first, "BEGIN");
    assert_eq!(second.value("SELECT 'made way'"), "made way", "{what}");
}

#[test]
fn as_many_idle_connections_make_way_as_it_takes() {
    let config = |limit: u32, count: usize| {
        let server = format!("max_host_connections = {limit}\nquery_wait_timeout = \"20s\"");
        warehouse(&server, "", "") + &others(count)
    };
    for (what, pools, reload) in [
        ("nothing changes", 1, None),
        ("a pool comes", 1, Some(config(8, 2))),
        ("the limit is lowered", 1, Some(config(4, 1))),
        ("more pools than the limit", 12, None),
    ] {
        let pgusher = Pgusher::start(&config(8, pools));
        let most = if pools > 8 { 4 } else { 7 };
        let clients = idle(&pgusher, most);
        if let Some(reload) = reload {
            pgusher.reload(&reload);
        }
        is_served(&pgusher, what);
        drop(clients);
    }
}

/// The connection that listens when nobody listens any more is kept for whoever comes next, but not while others wait.
#[test]
fn a_listener_that_nobody_uses_makes_way() {
    let server = "max_host_connections = 3\nquery_wait_timeout = \"20s\"";
    let pgusher = Pgusher::start(&(warehouse(server, "", "") + &others(1)));
    let mut listens = log_in(&pgusher, "warehouse");
    done(&mut listens, "LISTEN waits_news");
    done(&mut listens, "UNLISTEN *");
    drop(listens);
    let since = Instant::now();
    is_served(&pgusher, "nobody listens");
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
}

/// What came together has not lasted together.
#[test]
fn each_statement_of_a_pipeline_has_its_own_time() {
    let pgusher = Pgusher::start(&warehouse("", "query_timeout = \"2s\"", ""));
    let mut raw = Raw::login(pgusher.address(), "raw");
    let simple = query("SELECT pg_sleep(0.9)");
    let extended = [parse("", "SELECT pg_sleep(0.9)"), bind("", "", &[]), execute(), sync()].concat();
    done(&mut raw, "BEGIN");
    for one in [simple, extended] {
        raw.send(&one.repeat(4));
        for number in 0..4 {
            let answer = raw.until_ready();
            assert!(answer.iter().all(|m| m.tag != 'E'), "{number}: {answer:?}");
        }
    }
}

#[test]
fn each_batch_that_waits_has_its_own_time() {
    let server = "default_pool_size = 1\nquery_wait_timeout = \"2s\"";
    let pgusher = Pgusher::start(&warehouse(server, "", ""));
    let (mut holds, mut waits) = (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
    done(&mut holds, "BEGIN");
    waits.send(&query("SELECT 1"));
    sleep(Duration::from_millis(1500));
    waits.send(&query("SELECT 'in time'"));
    assert_eq!(waits.until_ready()[0].field('C'), "53300");
    done(&mut holds, "COMMIT");
    let answer = waits.until_ready();
    assert!(answer.iter().any(|m| m.tag == 'D' && m.columns() == ["in time"]), "{answer:?}");
}

/// The pool of a connection that leads elsewhere now is looked after as long as sessions keep it.
#[test]
fn a_pool_that_is_only_kept_has_its_reserve_too() {
    let server = "on_move = \"keep\"\ndefault_pool_size = 1\nreserve_pool_size = 1\n\
                  reserve_pool_timeout = \"500ms\"\nquery_wait_timeout = \"20s\"";
    let config = warehouse(server, "", "");
    let pgusher = Pgusher::start(&config);
    let (mut one, mut other) = (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
    assert_eq!(one.value("SELECT 1"), "1");
    pgusher.reload(&config.replacen("host = \"127.0.0.1\"", "host = \"localhost\"", 1));
    done(&mut one, "BEGIN");
    assert_eq!(other.value("SELECT 'reserve'"), "reserve");
}
