//! By what sockets are read and written: chosen at start, told to operators, and refused with a reason.

use std::process::Command;

use super::console::{cell, console};
use super::house::{Pgusher, free_port, temporary_folder, warehouse};

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
        assert!(
            shown == "epoll" || (io == "auto" && threads == 1 && shown == "io_uring"),
            "{io}, {threads}: {shown}"
        );
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
    assert_eq!(said(&plain, 3, "auto"), "ok: epoll, threads = 3");
    assert_eq!(said(&plain, 1, "epoll"), "ok: epoll, threads = 1");
    let here = said(&plain, 1, "auto");
    assert!(
        here == "ok: io_uring, with one thread" || here.starts_with("ok: epoll, as there is no io_uring"),
        "{here}"
    );
    let without = said(&forbidden(), 1, "auto");
    assert!(
        without.contains("ok: epoll, as there is no io_uring") && without.contains("seccomp"),
        "{without}"
    );
    assert!(said(&forbidden(), 1, "io_uring").starts_with("error: no io_uring"));
}
