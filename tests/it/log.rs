//! The log and the audit belong to pgusher: what strangers send forges no line, reaches no terminal, and fills no disk.

use serde_json::Value;

use super::house::{Pgusher, eventually, warehouse};
use super::wire::{Message, Raw, message, startup};

const VERSION: u32 = 0x0003_0000;
/// A line that looks like ours, behind a line end, and what a terminal obeys.
const FORGED: &str = "x\"\n2026-11-27T00:00:00.000000Z  INFO FORGED\u{1b}[2J\r\u{9b}\u{2028} session ended session=1 user=alice";

/// The first answer to these pairs; a password follows if one is asked for.
fn try_login(pgusher: &Pgusher, pairs: &[(&str, &str)]) -> Message {
    let mut raw = Raw::connect(pgusher.address());
    raw.send(&startup(VERSION, pairs));
    let mut answer = raw.next().unwrap();
    if answer.tag == 'R' && answer.body[..4] == [0, 0, 0, 3] {
        raw.send(&message('p', b"wrong\0"));
        answer = raw.next().unwrap();
    }
    answer
}

fn is_clean(text: &str) -> bool {
    !text.chars().any(|c| c != '\n' && (c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}')))
}

/// Everybody who may not come in, with something forged wherever there is room for it.
fn attack(pgusher: &Pgusher) {
    let escaped = FORGED.replace('\\', "\\\\").replace([' ', '\n', '\r'], "\\ ");
    let options = |name: &str| format!("-c {name}={escaped}");
    let (environment, setting) = (options("pgusher.environment"), options(&format!("work_mem{escaped}")));
    for pairs in [
        &[("user", FORGED), ("database", "warehouse")][..],
        &[("user", "raw"), ("database", FORGED)],
        &[("user", FORGED), ("database", FORGED)],
        &[("user", FORGED), ("database", "pgusher")],
        &[("user", "raw"), ("database", "warehouse"), ("pgusher.environment", FORGED)],
        &[("user", "raw"), ("database", "warehouse"), ("options", &environment)],
        &[("user", "raw"), ("database", "warehouse"), ("options", &setting)],
        &[("user", "raw"), ("database", "warehouse"), ("options", FORGED)],
        &[("user", "raw"), ("database", "warehouse"), ("work_mem", FORGED)],
        &[("user", "raw"), ("database", "warehouse"), (FORGED, "1")],
        &[("user", "raw"), ("database", "warehouse"), (&format!("pgusher.{FORGED}"), "1")],
    ] {
        let answer = try_login(pgusher, pairs);
        assert_eq!(answer.tag, 'E', "{pairs:?}");
    }
    // And one who comes in, by a name that the file has, with a name for its application.
    let pairs = [("user", "bad\nname"), ("database", "warehouse"), ("application_name", FORGED)];
    drop(Raw::login_with(pgusher.address(), VERSION, &pairs));
}

fn config(format: &str) -> String {
    let server = format!("auth_type = \"password\"\nlog_format = \"{format}\"\naudit_file = \"audit.jsonl\"");
    warehouse(&server, "", "") + "\n[users.\"bad\\nname\"]\nauth_type = \"trust\"\n"
}

#[test]
fn every_line_of_the_log_begins_with_our_time_stamp_whatever_strangers_send() {
    let pgusher = Pgusher::start(&config("text"));
    attack(&pgusher);
    eventually("the session has ended", || pgusher.log().contains("session ended"));
    let log = pgusher.log();
    assert!(log.contains("FORGED"), "what was sent is told, but escaped: {log}");
    assert!(is_clean(&log), "{log:?}");
    for line in log.lines() {
        let stamp = line.split(' ').next().unwrap();
        assert!(::humantime::parse_rfc3339(stamp).is_ok(), "{line}");
        assert!(!line.starts_with("2026-11-27T00:00:00.000000Z"), "{line}");
    }
}

#[test]
fn every_line_of_the_json_log_and_of_the_audit_is_one_object() {
    let pgusher = Pgusher::start(&config("json"));
    attack(&pgusher);
    eventually("the session has ended", || pgusher.log().contains("session ended"));
    let audit = || std::fs::read_to_string(pgusher.folder.join("audit.jsonl")).unwrap();
    eventually("the audit has its end", || audit().contains("\"event\":\"end\""));
    for text in [pgusher.log(), audit()] {
        assert!(text.contains("FORGED") && is_clean(&text), "{text:?}");
        for line in text.lines() {
            assert!(serde_json::from_str::<Value>(line).is_ok_and(|line| line.is_object()), "{line}");
        }
    }
}

#[test]
fn a_refused_login_costs_as_much_log_and_audit_as_any_other() {
    let pgusher = Pgusher::start(&config("text"));
    let length = |name: &str| std::fs::metadata(pgusher.folder.join(name)).unwrap().len();
    let (log, audit) = (pgusher.log().len() as u64, length("audit.jsonl"));
    let long = "\u{1}".repeat(4_900);
    assert_eq!(try_login(&pgusher, &[("user", &long), ("database", &long)]).field('C'), "28P01");
    eventually("it is told", || pgusher.log().contains("login refused"));
    eventually("it is audited", || length("audit.jsonl") > audit);
    let (log, audit) = (pgusher.log().len() as u64 - log, length("audit.jsonl") - audit);
    assert!(log < 2_000 && audit < 2_000, "{log} bytes of log, {audit} of audit");
}

#[test]
fn refusals_without_end_are_counted_and_the_count_is_told() {
    let mut pgusher = Pgusher::start(&config("text"));
    let tries = 60;
    for _ in 0..tries {
        assert_eq!(try_login(&pgusher, &[("user", "raw"), ("database", "nowhere")]).field('C'), "3D000");
    }
    pgusher.signal("TERM");
    assert!(pgusher.child.wait().unwrap().success());
    let audit = std::fs::read_to_string(pgusher.folder.join("audit.jsonl")).unwrap();
    let lines: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = lines.iter().filter(|line| line["event"] == "refusal").count() as u64;
    let counted: u64 = lines
        .iter()
        .filter(|line| line["event"] == "refusals")
        .map(|line| line["more"].as_u64().unwrap())
        .sum();
    // A minute may have ended meanwhile: then there are ten more of each.
    assert!(told <= 20 && told + counted == tries, "{told} told, {counted} counted");
    let log = pgusher.log();
    assert!(log.contains("more=50") || told > 10, "{log}");
}
