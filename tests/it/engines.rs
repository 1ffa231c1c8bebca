//! By what sockets are read and written: chosen at start, told to operators, and refused with a reason.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::console::{cell, console};
use super::house::{Pgusher, eventually, free_port, pair, size, temporary_folder, warehouse};
use super::wire::{Raw, bind, execute, parse, query, sync};

/// Denies what sets io_uring up (system call 425 on every architecture), as containers do, and becomes what comes behind it.
const FORBIDDEN: &str = "import ctypes, os, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
text = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in code))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', len(code), ctypes.addressof(text)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
";

fn forbidden() -> [&'static str; 3] {
    ["python3", "-c", FORBIDDEN]
}

/// With an operator, who may see what the console shows.
fn config(threads: u32, io: &str) -> String {
    let config =
        warehouse(&format!("io = \"{io}\""), "", "").replace("threads = 2", &format!("threads = {threads}"));
    config + "[users.operator]\nauth_type = \"trust\"\nconsole = \"admin\"\n"
}

#[test]
fn where_io_uring_is_forbidden_auto_takes_epoll_and_says_why() {
    let pgusher = Pgusher::start_by(&config(1, "auto"), &forbidden());
    assert_eq!(pgusher.psql("raw", "SELECT 1").unwrap(), "1");
    let log = pgusher.log();
    assert!(
        log.contains("no io_uring") && log.contains("forbidden") && log.contains("io=\"epoll\""),
        "{log}"
    );
}

#[test]
fn where_io_uring_is_forbidden_and_wanted_nothing_starts() {
    let folder = temporary_folder("pgusher");
    let file = folder.join("pgusher.toml");
    let text = config(1, "io_uring").replace("@PORT@", &free_port().to_string());
    super::house::write_private(&file, &text);
    let program = env!("CARGO_BIN_EXE_pgusher");
    let words = forbidden();
    let ended =
        Command::new(words[0]).args(&words[1..]).args([program, "serve"]).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(
        said.contains("no io_uring") && said.contains("seccomp") && said.contains("io = \"auto\""),
        "{said}"
    );
}

#[test]
fn operators_are_told_which_it_is() {
    for (io, threads) in [("epoll", 1), ("auto", 3), ("auto", 1)] {
        let pgusher = Pgusher::start(&config(threads, io));
        let shown = cell(&mut console(&pgusher, "operator"), "SHOW STATE", ("key", "io"), "value");
        assert!(shown == "epoll" || (io == "auto" && shown == "io_uring"), "{io}, {threads}: {shown}");
        assert!(pgusher.log().contains(&format!("relaying io=\"{shown}\"")), "{}", pgusher.log());
        assert_eq!(pgusher.psql("raw", "SELECT 1").unwrap(), "1");
    }
}

#[test]
fn the_doctor_says_which_it_will_be() {
    let folder = temporary_folder("pgusher");
    let file = folder.join("pgusher.toml");
    let said = |words: &[&str], threads: u32, io: &str| {
        super::house::write_private(&file, &config(threads, io).replace("@PORT@", &free_port().to_string()));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        if words.len() > 1 {
            command.arg(env!("CARGO_BIN_EXE_pgusher"));
        }
        let ended = command.args(["doctor", "--json"]).arg(&file).output().unwrap();
        let found: Vec<serde_json::Value> = serde_json::from_slice(&ended.stdout).unwrap();
        let io = found.into_iter().find(|finding| finding["subject"] == "io").unwrap();
        format!("{}: {}", io["grade"].as_str().unwrap(), io["text"].as_str().unwrap())
    };
    let plain = [env!("CARGO_BIN_EXE_pgusher")];
    assert_eq!(said(&plain, 3, "epoll"), "ok: epoll, threads = 3");
    assert_eq!(said(&plain, 1, "epoll"), "ok: epoll, threads = 1");
    let here = said(&plain, 1, "auto");
    assert!(
        here == "ok: io_uring, threads = 1" || here.starts_with("ok: epoll, as there is no io_uring"),
        "{here}"
    );
    let without = said(&forbidden(), 1, "auto");
    assert!(
        without.contains("ok: epoll, as there is no io_uring") && without.contains("seccomp"),
        "{without}"
    );
    assert!(said(&forbidden(), 1, "io_uring").starts_with("error: no io_uring"));
}

/// What the system says of each thread that relays, behind its name (proc_pid_stat(5)).
fn relay_threads(pgusher: &Pgusher) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pgusher.child.id())).unwrap();
    let relays = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
        let (name, rest) = stat.rsplit_once(')')?;
        name.ends_with("(relay").then(|| rest.trim().to_owned())
    };
    tasks.filter_map(relays).collect()
}

/// How many of its threads that relay have done something, in CPU time of theirs.
fn busy_threads(pgusher: &Pgusher) -> usize {
    let ticks = |stat: &String| -> u64 {
        stat.split_ascii_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
    };
    relay_threads(pgusher).iter().filter(|stat| ticks(stat) > 2).count()
}

/// What one client of many asks, of one row, of many, of nothing at first, and in one piece; and that the answers are its own.
fn converse(client: &mut Raw, nonce: u64, round: u64) {
    let number = (nonce * 100_000 + round).to_string();
    assert_eq!(client.value(&format!("SELECT {number}")), number);
    client.send(&query("BEGIN")[..3]);
    client.send(&query("BEGIN")[3..]);
    client.send(&[query(&format!("SELECT {number}")), query("COMMIT"), query("SELECT 'behind'")].concat());
    let answers: Vec<String> = (0..4)
        .flat_map(|_| client.until_ready())
        .filter(|message| message.tag == 'D')
        .map(|message| message.columns().concat())
        .collect();
    assert_eq!(answers, [number.clone(), "behind".to_owned()]);
    let named = [bind("", "own", &[&number]), execute(), sync()].concat();
    let answer = client.ask(&named);
    assert_eq!(answer.iter().find(|message| message.tag == 'D').unwrap().columns(), [number]);
    let rows = client.ask(&query("SELECT repeat('x', 1000) FROM generate_series(1, 100)"));
    assert_eq!(rows.iter().filter(|message| message.tag == 'D').count(), 100);
}

#[test]
fn sessions_go_from_a_full_thread_to_the_next_with_all_that_is_theirs() {
    let config =
        config(3, "auto").replace("threads = 3", "threads = 3\nthread_full = 1\ndefault_pool_size = 4");
    let pgusher = Pgusher::start(&config);
    let mut operator = console(&pgusher, "operator");
    let mut threads = || cell(&mut operator, "SHOW STATE", ("key", "threads"), "value");
    let is_on_ring = pgusher.log().contains("relaying io=\"io_uring\"");
    if is_on_ring {
        assert_eq!(threads(), "1 of 3");
    }
    // All come before there is anything to do: to the first thread.
    let clients: Vec<Raw> = (0..12).map(|_| Raw::login(pgusher.address(), "raw")).collect();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (nonce, mut client) in clients.into_iter().enumerate() {
            let over = &over;
            scope.spawn(move || {
                client.ask(&[parse("own", "SELECT $1::text"), sync()].concat());
                client.value(&format!("SET application_name = 'client {nonce}'"));
                for round in 0.. {
                    converse(&mut client, nonce as u64, round);
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
                assert_eq!(client.value("SHOW application_name"), format!("client {nonce}"));
            });
        }
        // Whatever comes of it, the clients come to their end.
        let deadline = Instant::now() + Duration::from_secs(60);
        while is_on_ring && busy_threads(&pgusher) < 3 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(Duration::from_secs(2));
        over.store(true, Ordering::Relaxed);
    });
    if is_on_ring {
        assert_eq!((threads(), busy_threads(&pgusher)), ("3 of 3".to_owned(), 3));
    }
}

#[test]
fn whoever_asks_or_logs_in_gets_no_connection_that_has_ended_meanwhile_on_whatever_thread() {
    let config = config(3, "auto").replace("threads = 3", "threads = 3\ndefault_pool_size = 4");
    let pgusher = Pgusher::start(&config);
    let mut clients: Vec<Raw> = (0..12).map(|_| Raw::login(pgusher.address(), "raw")).collect();
    for round in 0..size(15, 200) {
        clients.iter_mut().for_each(|client| {
            client.send(&query("SELECT pg_sleep(0.005)::text || 0 + pg_backend_pid()"));
        });
        let answers = clients.iter_mut().flat_map(Raw::until_ready).filter(|message| message.tag == 'D');
        let pids: std::collections::BTreeSet<String> = answers.map(|row| row.columns().concat()).collect();
        let list = pids.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        pair().dev.sql("dev", &format!("SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[{list}]) AS pid"));
        eventually("they have ended", || {
            pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists())
        });
        eventually("that has been seen", || relay_threads(&pgusher).iter().all(|stat| stat.starts_with('S')));
        if round % 2 == 0 {
            // With settings that nobody has had, so that a connection is asked.
            let path = format!("of_round_{round}");
            let pairs = [("user", "raw"), ("database", "warehouse"), ("search_path", &path)];
            let mut late = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
            assert_eq!(late.value("SHOW search_path"), path);
        }
        clients.iter_mut().for_each(|client| client.send(&query("SELECT 'here'")));
        for client in &mut clients {
            let answer = client.until_ready();
            let row = answer.iter().find(|message| message.tag == 'D');
            assert_eq!(row.map(|row| row.columns().concat()).as_deref(), Some("here"), "{round}: {answer:?}");
        }
    }
}
