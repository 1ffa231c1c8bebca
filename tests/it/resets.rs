//! The reset between two users of a connection, in front of an upstream that hears all and answers as it likes.

use std::collections::{HashMap, HashSet};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::fake::{Fake, Peer, complete, error, probed, ready, row, seeded, unharmed};
use super::house::{PATIENCE, Pgusher, eventually};
use super::isolation::USERS;
use super::wire::{Raw, query, startup};

const VERSION: u32 = 0x0003_0000;

/// What an upstream has been asked, and by which of its connections.
#[derive(Default)]
struct Heard {
    all: Mutex<Vec<(usize, String)>>,
    closed: Mutex<Vec<usize>>,
    /// Something of the client's came while a reset was still to be answered.
    early: Mutex<Vec<String>>,
    /// On which connection a reset fails; one more than its number.
    fails: AtomicUsize,
    /// On which one it is cut off.
    cuts: AtomicUsize,
    /// Resets and statements take long.
    slow: AtomicBool,
}

const ON_EACH: usize = usize::MAX;

fn is_on(which: &AtomicUsize, number: usize) -> bool {
    [ON_EACH, number + 1].contains(&which.load(Ordering::SeqCst))
}

/// The beginning of a notice, of which the end never comes.
const HALF_A_NOTICE: &[u8] = b"N\0\0\x01\0SNOTICE\0";
/// How long what is slow takes, with a limit of `SLOW_LIMIT` and a second on it: twice that is too long.
const SLOW: Duration = Duration::from_millis(2500);
const SLOW_LIMIT: &str = "query_timeout = \"3s\"";

/// An upstream that answers with the number of the connection.
fn upstream(heard: &Arc<Heard>) -> Fake {
    let heard = heard.clone();
    Fake::start(move |peer| {
        peer.welcome();
        while let Some(message) = peer.next() {
            match message.tag {
                'X' => break,
                'S' => peer.send(&ready()),
                'Q' => answer(peer, &String::from_utf8_lossy(&message.body), &heard),
                _ => {}
            }
        }
        heard.closed.lock().unwrap().push(peer.number);
    })
}

fn answer(peer: &mut Peer, sql: &str, heard: &Heard) {
    heard.all.lock().unwrap().push((peer.number, sql.to_owned()));
    let is_slow =
        heard.slow.load(Ordering::SeqCst) && (sql.contains("DISCARD ALL") || sql.contains("'of ben'"));
    if is_slow {
        std::thread::sleep(SLOW);
    }
    if sql.contains("DISCARD ALL") {
        await_early(peer, heard);
        if is_on(&heard.cuts, peer.number) {
            let _ = peer.stream.shutdown(Shutdown::Both);
            return;
        }
        let answer = match is_on(&heard.fails, peer.number) {
            true => {
                error(&[('S', "ERROR"), ('V', "ERROR"), ('C', "0A000"), ('M', "there is no such thing here")])
            }
            false => complete("DISCARD ALL"),
        };
        return peer.send(&[answer, ready()].concat());
    }
    let answer = match sql {
        _ if sql.contains("pg_proc") => complete("SELECT 0"),
        _ if sql.contains("isolation_probe") && sql.contains("pg_backend_pid") => probed(),
        _ if sql.starts_with("RESET") => complete("RESET"),
        _ => seeded(sql).unwrap_or_else(|| row(&peer.number.to_string())),
    };
    let more: &[u8] = if sql.contains("and half a notice") { HALF_A_NOTICE } else { &[] };
    peer.send(&[&answer, &ready(), more].concat());
}

/// Waits a moment before a reset is answered, and looks at what comes meanwhile.
fn await_early(peer: &Peer, heard: &Heard) {
    std::thread::sleep(Duration::from_millis(200));
    let mut space = [0; 4096];
    peer.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let length = peer.stream.peek(&mut space).unwrap_or(0);
    peer.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let text = String::from_utf8_lossy(&space[..length]);
    if ["of ben", "7MB", "set_config"].iter().any(|word| text.contains(word)) {
        heard.early.lock().unwrap().push(text.into_owned());
    }
}

fn before(fake: &Fake) -> Pgusher {
    before_with(fake, "")
}

fn before_with(fake: &Fake, connection: &str) -> Pgusher {
    let connection = format!("sslmode = \"disable\"\npool_size = 1\n{connection}");
    Pgusher::start(&(fake.config("", &["k0".into()], &connection) + USERS))
}

fn log_in(pgusher: &Pgusher, user: &str, settings: &[(&str, &str)]) -> Raw {
    let pairs = [&[("user", user), ("database", "k0")], settings].concat();
    Raw::login_with(pgusher.address(), VERSION, &pairs)
}

#[test]
fn nothing_of_the_next_user_is_sent_before_the_reset_is_answered() {
    let heard = Arc::new(Heard::default());
    let fake = upstream(&heard);
    let pgusher = before(&fake);
    let mut ann = log_in(&pgusher, "ann", &[]);
    let mut ben = log_in(&pgusher, "ben", &[("work_mem", "7MB")]);
    let number = ann.value("SELECT 'of ann'");
    ben.send(&[query("SELECT 'of ben'"), query("SELECT 'of ben again'")].concat());
    for _ in 0..2 {
        let answer = ben.until_ready();
        assert!(answer.iter().any(|m| m.tag == 'D' && m.columns() == [number.as_str()]), "{answer:?}");
    }
    let all = heard.all.lock().unwrap().clone();
    let at = |word: &str| {
        all.iter().position(|(_, sql)| sql.contains(word)).unwrap_or_else(|| panic!("{word}: {all:?}"))
    };
    let hers = at("of ann");
    let reset = hers + all[hers..].iter().position(|(_, sql)| sql.contains("DISCARD ALL")).expect("no reset");
    assert!(reset < at("of ben") && all[reset..].iter().any(|(_, sql)| sql.contains("7MB")), "{all:?}");
    // A new seed behind it, and nothing in that message but ASCII.
    let seed = all[reset..].iter().position(|(_, sql)| sql.contains("setseed")).expect("no new seed");
    assert!(reset + seed < at("of ben") && all[reset + seed].1.is_ascii(), "{all:?}");
    assert_eq!(heard.early.lock().unwrap().as_slice(), [""; 0]);
    unharmed(&pgusher);
}

#[test]
fn a_connection_whose_reset_fails_is_closed_and_another_is_taken() {
    let heard = Arc::new(Heard::default());
    let fake = upstream(&heard);
    let pgusher = before(&fake);
    let (mut ann, mut ben) = (log_in(&pgusher, "ann", &[]), log_in(&pgusher, "ben", &[]));
    let hers: usize = ann.value("SELECT 'of ann'").parse().unwrap();
    heard.fails.store(hers + 1, Ordering::SeqCst);
    let his: usize = ben.value("SELECT 'of ben'").parse().unwrap();
    assert_ne!(his, hers);
    eventually("hers is closed", || heard.closed.lock().unwrap().contains(&hers));
    let of_ben = |(number, sql): &(usize, String)| *number == hers && sql.contains("of ben");
    assert!(!heard.all.lock().unwrap().iter().any(of_ben), "sent on a connection that was not reset");
    // And all goes on.
    heard.fails.store(0, Ordering::SeqCst);
    assert_eq!(ann.value("SELECT 'of ann'"), his.to_string());
    unharmed(&pgusher);
}

#[test]
fn an_upstream_that_cannot_be_reset_is_served_as_strict() {
    let heard = Arc::new(Heard::default());
    heard.fails.store(ON_EACH, Ordering::SeqCst);
    let fake = upstream(&heard);
    let pgusher = before(&fake);
    let (mut ann, mut ben) = (log_in(&pgusher, "ann", &[]), log_in(&pgusher, "ben", &[]));
    let hers = ann.value("SELECT 'of ann'");
    let his = ben.value("SELECT 'of ben'");
    assert!(hers.parse::<usize>().is_ok() && his.parse::<usize>().is_ok(), "{hers} {his}");
    assert_ne!(hers, his);
    assert_ne!(ann.value("SELECT 'of ann'"), his);
    let mut owners: HashMap<usize, HashSet<&str>> = HashMap::new();
    for (number, sql) in heard.all.lock().unwrap().iter() {
        for user in ["of ann", "of ben"].into_iter().filter(|user| sql.contains(user)) {
            owners.entry(*number).or_default().insert(user);
        }
    }
    assert!(owners.values().all(|users| users.len() == 1), "{owners:?}");
    assert!(pgusher.log().contains("strict"), "the operator is not told");
    unharmed(&pgusher);
}

/// A connection that ends while it is asked says nothing about the others.
#[test]
fn an_upstream_is_asked_again_whether_it_can_be_reset_when_its_answer_was_cut_off() {
    let heard = Arc::new(Heard::default());
    heard.cuts.store(1, Ordering::SeqCst);
    let fake = upstream(&heard);
    let pgusher = before(&fake);
    let mut first = Raw::connect(pgusher.address());
    first.send(&startup(VERSION, &[("user", "ann"), ("database", "k0")]));
    let told = first.until_ready();
    assert_eq!(told.last().map(|m| m.tag), Some('E'), "{told:?}");
    eventually("the first connection is cut off", || heard.closed.lock().unwrap().contains(&0));
    let (mut ann, mut ben) = (log_in(&pgusher, "ann", &[]), log_in(&pgusher, "ben", &[]));
    // An answer is there before its connection is back: at times the other one gets another.
    let are_shared = || ann.value("SELECT 'of ann'") == ben.value("SELECT 'of ben'");
    eventually("they share, and are not served as strict for good", are_shared);
    assert!(!pgusher.log().contains("strict"), "{}", pgusher.log());
    unharmed(&pgusher);
}

/// A reset has its own time, and so has the statement behind it.
#[test]
fn a_slow_reset_takes_no_time_from_the_statement_behind_it() {
    let heard = Arc::new(Heard::default());
    let fake = upstream(&heard);
    let pgusher = before_with(&fake, SLOW_LIMIT);
    let (mut ann, mut ben) = (log_in(&pgusher, "ann", &[]), log_in(&pgusher, "ben", &[]));
    let hers = ann.value("SELECT 'of ann'");
    heard.slow.store(true, Ordering::SeqCst);
    assert_eq!(ben.value("SELECT 'of ben'"), hers);
    assert_eq!(fake.others(), 0, "it was cancelled");
    unharmed(&pgusher);
}

/// What the server had begun to say is not over: its end would be taken for an answer to the reset.
#[test]
fn a_session_that_leaves_in_the_middle_of_a_message_leaves_no_connection() {
    let heard = Arc::new(Heard::default());
    let fake = upstream(&heard);
    let pgusher = before_with(&fake, "pool_mode = \"session\"");
    let mut ann = log_in(&pgusher, "ann", &[]);
    let hers: usize = ann.value("SELECT 'of ann', 'and half a notice'").parse().unwrap();
    ann.send(b"X\0\0\0\x04");
    drop(ann);
    eventually("hers is closed", || heard.closed.lock().unwrap().contains(&hers));
    let all = heard.all.lock().unwrap().clone();
    let left = all.iter().position(|(_, sql)| sql.contains("half a notice")).unwrap();
    let behind = |(number, sql): &&(usize, String)| *number == hers && sql.contains("DISCARD");
    assert_eq!(all[left..].iter().find(behind), None);
    assert_ne!(log_in(&pgusher, "ben", &[]).value("SELECT 'of ben'"), hers.to_string());
    unharmed(&pgusher);
}
