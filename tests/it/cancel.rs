//! Cancel requests in numbers (T-11 to T-14): they hit the query that their own session runs, and nothing else.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::fake::Relay;
use super::house::{Pgusher, Random, eventually, pair, size, warehouse};
use super::state::done;
use super::wire::{Message, Raw, cancel, query};

/// What a query that may have been cancelled was answered: itself, or that it was cancelled; never anything else.
fn answered_or_cancelled(answer: &[Message], expected: &str) -> bool {
    let ends = answer.iter().filter(|m| m.tag == 'Z').count();
    assert_eq!(ends, 1, "{answer:?}");
    if let Some(error) = answer.iter().find(|m| m.tag == 'E') {
        assert_eq!(error.field('C'), "57014", "{error:?}");
        assert!(error.field('M').contains("canceling statement due to user request"), "{error:?}");
        return false;
    }
    let row = answer.iter().find(|m| m.tag == 'D').unwrap_or_else(|| panic!("no row: {answer:?}"));
    assert_eq!(row.columns(), [expected]);
    true
}

#[test]
fn a_cancel_at_any_instant_hits_its_query_or_nothing() {
    const CLIENTS: usize = 12;
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 3", "", ""));
    let address = pgusher.address();
    let goal = size(6_000, 1_000_000);
    let (asked, cancelled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (asked, cancelled) = (&asked, &cancelled);
            scope.spawn(move || {
                let mut random = Random(0xca9c_e100 + client as u64);
                let mut raw = Raw::login(address, "raw");
                while asked.fetch_add(1, Ordering::Relaxed) < goal {
                    let nonce = format!("{client}-{}", random.next());
                    let sleep = random.of(&["0", "0.0005", "0.001", "0.002"]);
                    let after = Duration::from_micros(random.below(3000) as u64);
                    let (pid, secret) = raw.key.clone();
                    let canceller = std::thread::spawn(move || {
                        std::thread::sleep(after);
                        cancel(address, pid, &secret);
                    });
                    let answer = raw.ask(&query(&format!("SELECT '{nonce}' FROM pg_sleep({sleep})")));
                    let hit = !answered_or_cancelled(&answer, &nonce);
                    cancelled.fetch_add(usize::from(hit), Ordering::Relaxed);
                    // Half of the time it may meet the session idle, or its next query.
                    if random.chance(50) {
                        canceller.join().unwrap();
                    }
                }
                std::thread::sleep(Duration::from_millis(500));
                assert_eq!(raw.value("SELECT 'still in step'"), "still in step");
            });
        }
    });
    let (asked, cancelled) = (asked.load(Ordering::Relaxed), cancelled.load(Ordering::Relaxed));
    println!("{asked} queries, {cancelled} of them cancelled, each answered with its own nonce or 57014");
    assert!(cancelled > asked / 50 && cancelled < asked, "{cancelled} of {asked}");
}

/// Many clients on few servers; each fires its own key when it has just been answered.
fn late_cancels(pgusher: &Pgusher, clients: usize, queries: usize) {
    let address = pgusher.address();
    let fired = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let fired = &fired;
            scope.spawn(move || {
                let mut random = Random(0x1a7e_0001 + client as u64);
                let mut raw = Raw::login(address, "raw");
                for turn in 0..queries {
                    let nonce = format!("{client}-{turn}");
                    let answer = raw.ask(&query(&format!("SELECT '{nonce}' FROM pg_sleep(0.02)")));
                    assert!(answered_or_cancelled(&answer, &nonce), "a query of another's was cancelled");
                    if random.chance(50) {
                        raw.cancel(address);
                        fired.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    println!(
        "{} cancels of {clients} clients that had just been answered, no query cancelled",
        fired.load(Ordering::Relaxed)
    );
    assert!(fired.load(Ordering::Relaxed) > clients);
}

#[test]
fn a_cancel_that_comes_late_hits_nobody_who_has_the_connection_now() {
    let server = "default_pool_size = 3\nquery_wait_timeout = \"60s\"";
    let pgusher = Pgusher::start(&warehouse(server, "", ""));
    late_cancels(&pgusher, 100, size(8, 200));
}

#[test]
fn a_cancel_that_the_network_holds_up_hits_nobody_either() {
    let relay = Relay::to(pair().dev.port);
    relay.delay_cancels(Duration::from_millis(500));
    let server = "default_pool_size = 3\nquery_wait_timeout = \"60s\"";
    let config = warehouse(server, "", "");
    let pgusher =
        Pgusher::start(&config.replacen(&pair().dev.port.to_string(), &relay.port().to_string(), 1));
    let address = pgusher.address();
    let cancelled = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..24 {
            let cancelled = &cancelled;
            scope.spawn(move || {
                let mut random = Random(0xde1a_0001 + client as u64);
                let mut raw = Raw::login(address, "raw");
                for turn in 0..size(12, 200) {
                    let nonce = format!("{client}-{turn}");
                    let text = query(&format!("SELECT '{nonce}' FROM pg_sleep(0.02)"));
                    if !random.chance(30) {
                        assert!(answered_or_cancelled(&raw.ask(&text), &nonce), "another's was cancelled");
                        continue;
                    }
                    // On its way when the query ends: whoever gets the connection next must not feel it.
                    std::thread::scope(|both| {
                        let (pid, secret) = raw.key.clone();
                        both.spawn(move || {
                            std::thread::sleep(Duration::from_millis(10));
                            cancel(address, pid, &secret);
                        });
                        let hit = !answered_or_cancelled(&raw.ask(&text), &nonce);
                        cancelled.fetch_add(usize::from(hit), Ordering::Relaxed);
                    });
                }
            });
        }
    });
    println!("{} queries were cancelled by their own sessions", cancelled.load(Ordering::Relaxed));
}

#[test]
fn ten_thousand_cancels_of_an_exhausted_pool_take_no_time_and_leave_nothing() {
    const CANCELS: usize = 10_000;
    const THREADS: usize = 8;
    let server = "default_pool_size = 2\nquery_wait_timeout = \"120s\"";
    let pgusher = Pgusher::start(&warehouse(server, "", ""));
    let address = pgusher.address();
    let mut holders: Vec<Raw> = (0..2).map(|_| Raw::login(address, "raw")).collect();
    holders.iter_mut().for_each(|raw| drop(done(raw, "BEGIN")));
    let idle = Raw::login(address, "raw");
    let waiting: Vec<_> = (0..4).map(|_| Raw::login(address, "raw")).collect();
    let mut keys: Vec<_> = waiting.iter().map(|raw| raw.key.clone()).collect();
    keys.push(idle.key.clone());
    keys.push((4711, vec![1, 2, 3, 4]));
    let before = pgusher.descriptors();
    let (stop, refused, slowest) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        // They wait, are cancelled, and wait again.
        let clients: Vec<_> = waiting
            .into_iter()
            .map(|mut raw| {
                let (stop, refused) = (&stop, &refused);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let cancelled = !answered_or_cancelled(&raw.ask(&query("SELECT 'served'")), "served");
                        refused.fetch_add(usize::from(cancelled), Ordering::Relaxed);
                    }
                    raw
                })
            })
            .collect();
        std::thread::scope(|cancels| {
            for thread in 0..THREADS {
                let (keys, slowest) = (&keys, &slowest);
                cancels.spawn(move || {
                    for turn in 0..CANCELS / THREADS {
                        let (pid, secret) = &keys[(thread + turn) % keys.len()];
                        let begun = Instant::now();
                        cancel(address, *pid, secret);
                        slowest.fetch_max(begun.elapsed().as_micros() as usize, Ordering::Relaxed);
                    }
                });
            }
        });
        stop.store(true, Ordering::Relaxed);
        holders.iter_mut().for_each(|raw| drop(done(raw, "COMMIT")));
        for client in clients {
            assert_eq!(client.join().unwrap().value("SELECT 'served'"), "served");
        }
    });
    let (refused, slowest) = (refused.into_inner(), slowest.into_inner());
    println!("{CANCELS} cancels, {refused} waiting queries dequeued, the slowest took {slowest} µs");
    assert!(refused > 100, "{refused}");
    assert!(slowest < 1_000_000, "{slowest} µs");
    let upstream =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = 'dev' AND application_name LIKE '%'";
    assert_ne!(pair().dev.sql("postgres", upstream), "0");
    eventually("nothing is left open", || pgusher.descriptors() <= before);
}

/// Fires the keys of all sessions all the time, until told to stop.
fn storm(address: SocketAddr, keys: &[(u32, Vec<u8>)], stop: &AtomicBool, seed: u64) -> usize {
    let mut random = Random(seed);
    let mut fired = 0;
    while !stop.load(Ordering::Relaxed) {
        let (pid, secret) = &keys[random.below(keys.len())];
        cancel(address, *pid, secret);
        fired += 1;
    }
    fired
}

#[test]
fn a_storm_of_cancels_never_meets_what_pgusher_does_on_a_connection() {
    const CLIENTS: usize = 6;
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 2", "", ""));
    let address = pgusher.address();
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| Raw::login(address, "raw")).collect();
    // No two want the same settings: each time, the connection must be given its session's.
    for (i, raw) in clients.iter_mut().enumerate() {
        let sql = format!(
            "SET work_mem = '{}MB'; SET my.owner = '{i}'; SET DateStyle = '{}'",
            i + 1,
            ["ISO, DMY", "German, DMY", "SQL, MDY"][i % 3]
        );
        done(raw, &sql);
    }
    let keys: Vec<_> = clients.iter().map(|raw| raw.key.clone()).collect();
    let stop = AtomicBool::new(false);
    let turns = size(400, 20_000);
    std::thread::scope(|scope| {
        let storms: Vec<_> = (0..2u64)
            .map(|i| {
                let (keys, stop) = (&keys, &stop);
                scope.spawn(move || storm(address, keys, stop, 0x5707_4000 + i))
            })
            .collect();
        let workers: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(i, mut raw)| {
                scope.spawn(move || {
                    let date = ["2026-12-31", "31.12.2026", "12/31/2026"][i % 3];
                    let mut served = 0;
                    for turn in 0..turns {
                        let look = "current_setting('work_mem') || ' ' || current_setting('my.owner') || ' ' || '2026-12-31'::date";
                        let text = format!("SELECT {look} || ' {turn}'");
                        let expected = format!("{}MB {i} {date} {turn}", i + 1);
                        served += usize::from(answered_or_cancelled(&raw.ask(&query(&text)), &expected));
                        // What is asked of the connection after a statement like this must not be hit either.
                        if turn % 5 == 0 {
                            let set = format!("SELECT set_config('my.turn', '{turn}', false)");
                            if answered_or_cancelled(&raw.ask(&query(&set)), &turn.to_string()) {
                                let now = raw.ask(&query("SELECT current_setting('my.turn')"));
                                answered_or_cancelled(&now, &turn.to_string());
                            }
                        }
                    }
                    served
                })
            })
            .collect();
        let served: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
        stop.store(true, Ordering::Relaxed);
        let fired: usize = storms.into_iter().map(|storm| storm.join().unwrap()).sum();
        println!("{fired} cancels, {served} of {} queries served, the others cancelled", CLIENTS * turns);
        assert!(served > 0 && fired > 100, "{served} {fired}");
    });
}
