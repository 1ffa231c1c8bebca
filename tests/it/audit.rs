//! The audit: what is told, that nothing can be changed or taken away unseen, full disks, killed processes, and who was
//! where.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use super::console::{OPERATORS, cell, console};
use super::house::{Pgusher, eventually, size, warehouse};
use super::state::done;
use super::wire::{Raw, query, startup};

fn config(server: &str) -> String {
    warehouse(&format!("audit_file = \"audit.jsonl\"\n{server}"), "", "") + OPERATORS
}

fn file(pgusher: &Pgusher) -> PathBuf {
    pgusher.folder.join("audit.jsonl")
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn of<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

fn audit(arguments: &[&str], file: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgusher"))
        .arg("audit")
        .args(arguments)
        .arg("--file")
        .arg(file)
        .output()
        .unwrap()
}

/// Whether it is whole, and what was said.
fn verify(file: &Path) -> (bool, String) {
    let output = audit(&["verify"], file);
    (
        output.status.success(),
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr),
    )
}

/// Ends it as an operator does, and waits for the end.
fn end(pgusher: &mut Pgusher) {
    pgusher.signal("TERM");
    assert!(pgusher.child.wait().unwrap().success());
}

#[test]
fn a_reload_is_told_with_what_it_changes_and_without_secrets() {
    let mut pgusher = Pgusher::start(&config(""));
    let path = file(&pgusher);
    let text = config("")
        .replace("password = \"nora\"", "password = \"a-new-secret\"")
        .replace("attributes = { environment = \"dev\" }", "attributes = { environment = \"prod\" }");
    pgusher.reload(&text);
    end(&mut pgusher);
    let all = lines(&path);
    let changes: Vec<_> = of(&all, "reload")[0]["changes"].as_array().unwrap().clone();
    let said = |what: &str| changes.iter().any(|line| line.as_str().unwrap().starts_with(what));
    assert!(
        said("production dana on warehouse: dev (") && said("secret password of user nora"),
        "{changes:?}"
    );
    assert!(!std::fs::read_to_string(&path).unwrap().contains("a-new-secret"));
}

#[test]
fn every_event_is_told_once_in_a_chain_without_secrets_or_sql() {
    let mut pgusher = Pgusher::start(&config(""));
    let path = file(&pgusher);
    let mut one = Raw::login(pgusher.address(), "raw");
    assert_eq!(one.value("SELECT 'a secret of the client'"), "a secret of the client");
    drop(one);
    assert!(pgusher.psql("pete", "SELECT 1").is_ok());
    let mut refused = Raw::connect(pgusher.address());
    refused.send(&startup(0x0003_0000, &[("user", "raw"), ("database", "nothing")]));
    assert_eq!(refused.next().unwrap().field('C'), "3D000");
    done(&mut console(&pgusher, "operator"), "RELOAD");
    assert_eq!(console(&pgusher, "operator").ask(&query("KILL_CLIENT 999999"))[0].field('C'), "42704");
    assert_eq!(console(&pgusher, "watcher").ask(&query("RELOAD"))[0].field('C'), "42501");
    end(&mut pgusher);
    let all = lines(&path);
    assert_eq!(of(&all, "start").len(), 1);
    assert_eq!(of(&all, "stop").len(), 1);
    assert_eq!((of(&all, "login").len(), of(&all, "route").len(), of(&all, "end").len()), (2, 2, 2));
    let route = of(&all, "route").into_iter().find(|line| line["user"] == "pete").unwrap();
    assert_eq!((&route["environment"], &route["connection"]), (&"prod".into(), &"warehouse_prod".into()));
    assert!(
        route["reasons"].as_array().unwrap().iter().any(|r| r.as_str().unwrap().contains("from")),
        "{route}"
    );
    let end = of(&all, "end").into_iter().find(|line| line["user"] == "raw").unwrap();
    assert_eq!((&end["transactions"], &end["cause"]), (&1.into(), &"the client left".into()), "{end}");
    assert_eq!(of(&all, "refusal")[0]["sqlstate"], "3D000");
    let commands: Vec<_> =
        of(&all, "console").iter().map(|l| (l["command"].clone(), l["outcome"].clone())).collect();
    assert_eq!(commands[0], ("RELOAD".into(), "done".into()));
    assert_eq!(commands[1], ("KILL_CLIENT 999999".into(), "42704".into()));
    assert_eq!(commands[2], ("RELOAD".into(), "42501".into()));
    assert_eq!((of(&all, "console_login").len(), of(&all, "console_end").len()), (3, 3));
    assert_eq!(of(&all, "reload")[0]["generation"], 2);
    let text = std::fs::read_to_string(&path).unwrap();
    for secret in ["a secret of the client", "SELECT", "SCRAM-SHA-256"] {
        assert!(!text.contains(secret), "{secret}");
    }
    let (whole, said) = verify(&path);
    assert!(whole && said.contains(&format!("whole: {} lines in one file", all.len())), "{said}");
}

#[test]
fn a_move_is_told_with_its_reason() {
    let config = config("");
    let pgusher = Pgusher::start(&config);
    let mut one = Raw::login(pgusher.address(), "raw");
    assert_eq!(one.value("SELECT 1"), "1");
    let changed = config.replace("[users.raw]\n", "[users.raw]\ndisabled = true\n");
    assert_ne!(changed, config);
    pgusher.reload(&changed);
    eventually("the move is told", || of(&lines(&file(&pgusher)), "move").len() == 1);
    let all = lines(&file(&pgusher));
    assert!(of(&all, "move")[0]["why"].as_str().unwrap().contains("disabled since generation 2"));
}

#[test]
fn each_changed_byte_and_each_missing_line_is_found() {
    let mut pgusher = Pgusher::start(&config(""));
    let path = file(&pgusher);
    for _ in 0..3 {
        drop(Raw::login(pgusher.address(), "raw"));
    }
    end(&mut pgusher);
    let good = std::fs::read(&path).unwrap();
    let copy = pgusher.folder.join("copy.jsonl");
    let head =
        |to: &Path| std::fs::copy(pgusher.folder.join("audit.jsonl.head"), to.with_extension("jsonl.head"));
    head(&copy).unwrap();
    std::fs::write(&copy, &good).unwrap();
    assert!(verify(&copy).0);
    // Each byte of one line, and every 7th of all: by the library, which is the same code.
    let line_at =
        |n: usize| good.iter().enumerate().filter(|(_, b)| **b == b'\n').nth(n).map(|(at, _)| at + 1);
    let (from, to) = (line_at(2).unwrap(), line_at(3).unwrap());
    for at in (from..to).chain((0..good.len()).step_by(7)) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&copy, &bad).unwrap();
        let verified = pgusher::inside::verify(&copy, None).unwrap();
        assert!(!verified.is_whole(), "byte {at}");
    }
    let all: Vec<&[u8]> = good.split_inclusive(|b| *b == b'\n').collect();
    for missing in 0..all.len() {
        let rest: Vec<&[u8]> =
            all.iter().enumerate().filter(|(n, _)| *n != missing).map(|(_, l)| *l).collect();
        std::fs::write(&copy, rest.concat()).unwrap();
        let verified = pgusher::inside::verify(&copy, None).unwrap();
        // The first ones may have been put away.
        assert_eq!(verified.is_whole(), missing == 0, "line {missing}: {:?}", verified.findings);
        assert!(!verified.findings.is_empty(), "line {missing}");
    }
    let mut exchanged = all.clone();
    exchanged.swap(3, 4);
    std::fs::write(&copy, exchanged.concat()).unwrap();
    assert!(!verify(&copy).0);
    // With what an earlier look has said, also a rewritten chain is found.
    std::fs::write(&copy, &good).unwrap();
    let known = pgusher::inside::verify(&copy, None).unwrap().head.hash;
    assert!(audit(&["verify", "--head", &known], &copy).status.success());
    assert!(!audit(&["verify", "--head", &known.replace(&known[..4], "0000")], &copy).status.success());
}

#[test]
fn files_rotate_and_the_chain_goes_on_over_restarts() {
    let config = config("audit_max_size = \"4KiB\"");
    let mut pgusher = Pgusher::start(&config);
    for _ in 0..30 {
        drop(Raw::login(pgusher.address(), "raw"));
    }
    end(&mut pgusher);
    let path = file(&pgusher);
    let files = pgusher::inside::files(&path).unwrap();
    assert!(files.len() > 3, "{files:?}");
    let (whole, before) = verify(&path);
    assert!(whole, "{before}");
    pgusher.start_again(&config);
    drop(Raw::login(pgusher.address(), "raw"));
    end(&mut pgusher);
    let (whole, said) = verify(&path);
    assert!(whole && said != before, "{said}");
    // One file in the middle is missing.
    std::fs::remove_file(&files[1]).unwrap();
    let (whole, said) = verify(&path);
    assert!(!whole && said.contains("are missing before this one"), "{said}");
}

#[test]
fn a_killed_process_loses_no_line_that_was_written_and_the_torn_one_is_told() {
    let config = config("");
    let mut pgusher = Pgusher::start(&config);
    let path = file(&pgusher);
    drop(Raw::login(pgusher.address(), "raw"));
    eventually("the end is written", || of(&lines(&path), "end").len() == 1);
    pgusher.signal("KILL");
    pgusher.child.wait().unwrap();
    assert!(verify(&path).0);
    // As if it had been killed while it wrote.
    let mut text = std::fs::read_to_string(&path).unwrap();
    let whole_lines = text.lines().count();
    let _ = write!(text, "{{\"seq\":{},\"at\":\"2026", whole_lines + 1);
    std::fs::write(&path, &text).unwrap();
    let (whole, said) = verify(&path);
    assert!(whole && said.contains("an unfinished line at the end"), "{said}");
    pgusher.start_again(&config);
    drop(Raw::login(pgusher.address(), "raw"));
    end(&mut pgusher);
    let (whole, said) = verify(&path);
    assert!(
        whole && said.contains(&format!("audit.jsonl:{}: note: an unfinished line", whole_lines + 1)),
        "{said}"
    );
    // Lines that were cut off are missed, also after a restart.
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> = text.split_inclusive('\n').collect();
    std::fs::write(&path, kept[..kept.len() - 2].concat()).unwrap();
    let (whole, said) = verify(&path);
    assert!(!whole && said.contains("are missing at the end"), "{said}");
    pgusher.start_again(&config);
    end(&mut pgusher);
    let (whole, said) = verify(&path);
    assert!(!whole && said.contains("are missing before this one"), "{said}");
}

/// What an attacker does who may write to both files: cuts lines off, and has `FILE.head` say that the rest is all.
fn cut_the_tail(path: &Path, lines: usize) {
    let text = std::fs::read_to_string(path).unwrap();
    let kept: Vec<&str> = text.split_inclusive('\n').collect();
    let kept = &kept[..kept.len() - lines];
    std::fs::write(path, kept.concat()).unwrap();
    let head = pgusher::inside::verify(path, None).unwrap().head;
    std::fs::write(pgusher::inside::beside(path, ".head"), format!("{:020} {}\n", head.seq, head.hash))
        .unwrap();
    assert!(verify(path).0, "nobody could tell by the files alone");
}

#[test]
fn a_running_process_notices_that_its_lines_are_gone() {
    let pgusher = Pgusher::start(&config(""));
    let path = file(&pgusher);
    drop(Raw::login(pgusher.address(), "raw"));
    eventually("the end is written", || of(&lines(&path), "end").len() == 1);
    let before = lines(&path).len() as u64;
    cut_the_tail(&path, 2);
    drop(Raw::login(pgusher.address(), "raw"));
    eventually("it goes on", || !of(&lines(&path), "end").is_empty());
    let all = lines(&path);
    let gap = of(&all, "audit_gap")[0];
    assert_eq!((&gap["seq"], &gap["known"]), (&(before + 1).into(), &before.into()), "{gap}");
    let (whole, said) = verify(&path);
    assert!(!whole && said.contains(&format!("lines {} to {before} are missing", before - 1)), "{said}");
    assert!(pgusher.log().contains("lines of the audit are missing or were changed"), "{}", pgusher.log());
    let tampered = cell(&mut console(&pgusher, "watcher"), "SHOW AUDIT", ("lost", "0"), "tampered");
    assert_eq!(tampered.parse::<u64>().map(|n| n > 0), Ok(true), "{tampered}");
}

#[test]
fn a_running_process_notices_a_removed_file_a_removed_head_and_a_rewritten_line() {
    let pgusher = Pgusher::start(&config(""));
    let path = file(&pgusher);
    let gaps = || of(&lines(&path), "audit_gap").len();
    let ends = || of(&lines(&path), "end").len();
    let one_more = |so_many: usize| {
        drop(Raw::login(pgusher.address(), "raw"));
        eventually("the end is written", || path.exists() && ends() == so_many);
    };
    one_more(1);
    assert_eq!(gaps(), 0);
    std::fs::remove_file(pgusher::inside::beside(&path, ".head")).unwrap();
    one_more(2);
    assert_eq!(gaps(), 1);
    let text = std::fs::read_to_string(&path).unwrap();
    let at = text.rfind("the client left").unwrap();
    let changed = format!("{}the client LEFT and more{}", &text[..at], &text[at + "the client left".len()..]);
    std::fs::write(&path, changed).unwrap();
    one_more(3);
    assert_eq!(gaps(), 2);
    std::fs::remove_file(&path).unwrap();
    one_more(1);
    assert_eq!(gaps(), 1, "in the new file");
}

#[test]
fn a_file_without_its_head_is_not_whole() {
    let config = config("");
    let mut pgusher = Pgusher::start(&config);
    let path = file(&pgusher);
    drop(Raw::login(pgusher.address(), "raw"));
    end(&mut pgusher);
    assert!(verify(&path).0);
    std::fs::remove_file(pgusher::inside::beside(&path, ".head")).unwrap();
    let (whole, said) = verify(&path);
    assert!(!whole && said.contains("audit.jsonl.head is not here"), "{said}");
    // The next process makes another, and says that there was none.
    pgusher.start_again(&config);
    end(&mut pgusher);
    assert_eq!(of(&lines(&path), "audit_gap").len(), 1);
}

/// A disk that is full, for whoever writes to this file: a limit on the length of files.
fn limited(config: &str, blocks: u32) -> Pgusher {
    Pgusher::start_by(
        config,
        &["sh", "-c", &format!("trap '' XFSZ; ulimit -S -f {blocks}; exec \"$0\" \"$@\"")],
    )
}

#[test]
fn a_full_disk_stops_no_session_and_is_loud() {
    let config = config("");
    // 8 KiB: the log goes through a pipe that has no length.
    let pgusher = limited(&config, 16);
    let path = file(&pgusher);
    for _ in 0..60 {
        assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 1"), "1");
    }
    let state = || cell(&mut console(&pgusher, "watcher"), "SHOW AUDIT", ("lost", "0"), "state");
    eventually("it fails", || state() == "failing");
    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 1"), "1");
    // What is there is whole.
    let (whole, said) = verify(&path);
    assert!(whole, "{said}");
    let before = lines(&path).len();
    // Somebody makes room.
    let limit = Command::new("prlimit")
        .args(["--fsize=unlimited:", "--pid", &pgusher.child.id().to_string()])
        .status();
    assert!(limit.unwrap().success());
    eventually("it is written again", || state() == "writing");
    let all = lines(&path);
    assert!(all.len() > before + 100, "{before} {}", all.len());
    assert_eq!((of(&all, "route").len(), of(&all, "lost").len()), (61, 0));
    let (whole, said) = verify(&path);
    assert!(whole, "{said}");
}

#[test]
fn a_full_disk_does_not_keep_the_process_from_ending() {
    let mut pgusher = limited(&config(""), 16);
    // More events than are written at once wait for room.
    for _ in 0..1500 {
        drop(Raw::login(pgusher.address(), "raw"));
    }
    pgusher.signal("TERM");
    let asked = Instant::now();
    assert!(pgusher.child.wait().unwrap().success());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    let (whole, said) = verify(&file(&pgusher));
    assert!(whole, "{said}");
}

#[test]
fn whoever_wants_it_refuses_logins_that_cannot_be_told() {
    let config = config("audit_failure = \"refuse\"");
    let pgusher = limited(&config, 16);
    let mut refused = false;
    for _ in 0..100 {
        let mut raw = Raw::connect(pgusher.address());
        raw.send(&startup(0x0003_0000, &[("user", "raw"), ("database", "warehouse")]));
        let answer = raw.until_ready();
        refused |=
            answer.last().is_some_and(|m| m.tag == 'E' && m.field('M') == "the audit cannot be written");
        if refused {
            break;
        }
        raw.send(&query("SELECT 1"));
    }
    assert!(refused);
    // Of every one that was let in there is a line.
    let (whole, said) = verify(&file(&pgusher));
    assert!(whole, "{said}");
}

#[test]
fn a_file_that_cannot_be_written_is_said_at_the_start() {
    let folder = super::house::temporary_folder("audit");
    let config = warehouse("audit_file = \"nowhere/audit.jsonl\"", "", "").replace("@PORT@", "0");
    let path = folder.join("pgusher.toml");
    std::fs::write(&path, config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pgusher")).arg("serve").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot write the audit"), "{said}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn who_was_in_prod_is_answered_at_once() {
    let folder = super::house::temporary_folder("who");
    let path = folder.join("audit.jsonl");
    let audit_file = pgusher::inside::Audit::open(&path, 64 << 20).unwrap();
    drop(audit_file);
    // Written by hand, because what counts is reading: three lines a session, a third of them in prod.
    let mut text = String::new();
    let now = SystemTime::now();
    // A million events in full; a build without optimizations is some ten times slower.
    let sessions = size(33_334, 333_334) as u64;
    // Over a fortnight.
    let step = 1_333_336 / sessions;
    let at = |ago: u64| humantime(now - Duration::from_secs(ago));
    let mut expected = 0;
    for n in 0..sessions {
        let environment = if n % 3 == 0 { "prod" } else { "dev" };
        let user = format!("user{}", n % 100);
        let began = (sessions - n) * step + 2;
        expected += u64::from(n % 3 == 0 && began - 1 <= 7 * 86_400 && user == "user42");
        let common = format!(
            "\"session\":\"5f3a9c1e-{n}\",\"user\":\"{user}\",\"database\":\"warehouse\",\"environment\":\"{environment}\",\
             \"connection\":\"warehouse_{environment}\",\"peer\":\"10.0.0.{}:5{n}\",\"generation\":1",
            n % 7
        );
        let hash = "0".repeat(64);
        for (event, more, ago) in [
            ("login", "\"application_name\":\"psql\"".to_owned(), began),
            (
                "route",
                "\"reasons\":[\"database warehouse\",\"environment = \\\"prod\\\" from user\"]".to_owned(),
                began,
            ),
            (
                "end",
                format!("\"began\":\"{}\",\"transactions\":2,\"bytes_in\":10,\"bytes_out\":20", at(began)),
                began - 1,
            ),
        ] {
            let _ = writeln!(
                text,
                "{{\"seq\":1,\"at\":\"{}\",\"event\":\"{event}\",{common},{more},\"prev\":\"{hash}\"}}",
                at(ago)
            );
        }
    }
    std::fs::write(&path, text).unwrap();
    let mut took = Duration::MAX;
    let mut answer = Value::Null;
    for _ in 0..3 {
        let began = Instant::now();
        let output = audit(&["who", "--environment", "prod", "--since", "7d", "--json"], &path);
        took = took.min(began.elapsed());
        assert!(output.status.success(), "{output:?}");
        answer = serde_json::from_slice(&output.stdout).unwrap();
    }
    let rows = answer.as_array().unwrap();
    let row = rows.iter().find(|row| row["user"] == "user42").unwrap();
    assert_eq!((row["sessions"].as_u64(), row["open"].as_u64()), (Some(expected), Some(0)), "{row}");
    assert_eq!(row["transactions"].as_u64(), Some(expected * 2));
    assert_eq!(row["reasons"][1], "environment = \"prod\" from user");
    eprintln!("who, of {} events: {} users in {took:?}", sessions * 3, rows.len());
    assert!(took < Duration::from_secs(1) || cfg!(debug_assertions), "{took:?}");
    std::fs::remove_dir_all(folder).unwrap();
}

fn humantime(at: SystemTime) -> String {
    ::humantime::format_rfc3339_micros(at).to_string()
}
