//! `/metrics`, `/healthz` and `/readyz`, asked with curl and by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use super::house::{Pgusher, eventually, free_port, warehouse};
use super::sources::sources;
use super::state::done;
use super::wire::{Raw, bind, execute, parse, query, startup, sync};

struct Watched {
    pgusher: Pgusher,
    port: u16,
}

fn start(server: &str) -> Watched {
    let port = free_port();
    let config = warehouse(&format!("metrics_listen = \"127.0.0.1:{port}\"\n{server}"), "", "");
    Watched { pgusher: Pgusher::start(&config), port }
}

/// The status, and the body.
fn curl(port: u16, path: &str, arguments: &[&str]) -> (u16, String) {
    let output = Command::new("curl")
        .args(["-sS", "-m", "10", "-w", "\n%{http_code}"])
        .args(arguments)
        .arg(format!("http://127.0.0.1:{port}{path}"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
    (status.parse().unwrap(), body.to_owned())
}

/// Every sample by its name and labels.
fn samples(port: u16) -> BTreeMap<String, f64> {
    let (status, text) = curl(port, "/metrics", &[]);
    assert_eq!(status, 200);
    assert!(text.trim_end().ends_with("# EOF"), "{text}");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
        })
        .collect()
}

#[test]
fn metrics_say_what_has_happened() {
    let watched = start("default_pool_size = 1");
    let pgusher = &watched.pgusher;
    let mut one = Raw::login(pgusher.address(), "raw");
    for _ in 0..3 {
        assert_eq!(one.value("SELECT pg_sleep(0.01), 1"), "");
    }
    for _ in 0..2 {
        one.ask(&[parse("", "SELECT 1"), bind("", "", &[]), execute(), sync()].concat());
    }
    done(&mut one, "CREATE TEMP TABLE t (a int)");
    let mut other = Raw::login(pgusher.address(), "raw");
    other.send(&query("SELECT 1"));
    let mut refused = Raw::connect(pgusher.address());
    refused.send(&startup(0x0003_0000, &[("user", "raw"), ("database", "nothing")]));
    assert_eq!(refused.next().unwrap().field('C'), "3D000");
    eventually("it waits", || samples(watched.port)[&dev("waiting")] >= 1.0);
    other.cancel(pgusher.address());
    assert!(other.until_ready().iter().any(|m| m.tag == 'E'));
    other.send(&query("SELECT 1"));
    eventually("it waits", || samples(watched.port)[&dev("waiting")] >= 1.0);
    let now = samples(watched.port);
    let at = |name: &str| *now.get(name).unwrap_or_else(|| panic!("{name}: {now:#?}"));
    assert!((at(&dev("transactions_total")) - 6.0).abs() < 0.5);
    assert!((at(&dev("queries_total")) - 6.0).abs() < 0.5);
    assert!((at(&dev("binds_total")) - 2.0).abs() < 0.5);
    assert!((at(&dev("logins_total")) - 2.0).abs() < 0.5);
    assert!((at(&dev("transaction_seconds_count")) - 6.0).abs() < 0.5);
    assert!(at(&dev("transaction_seconds_sum")) >= 0.03);
    assert!(at(&dev("received_bytes_total")) > 100.0 && at(&dev("sent_bytes_total")) > 100.0);
    assert!(
        (at("pgusher_pinned{connection=\"warehouse\",environment=\"dev\",reason=\"temporary object\"}")
            - 1.0)
            .abs()
            < 0.1
    );
    assert!((at("pgusher_refusals_total{sqlstate=\"3D000\",fault=\"client\"}") - 1.0).abs() < 0.1);
    assert!((at("pgusher_cancels_total") - 1.0).abs() < 0.1);
    assert!((at("pgusher_sessions") - 2.0).abs() < 0.1 && (at("pgusher_generation") - 1.0).abs() < 0.1);
    assert!(at("pgusher_login_seconds_count") >= 2.0 && at(&dev("connect_seconds_count")) >= 1.0);
    done(&mut one, "DROP TABLE t");
    assert!(other.until_ready().iter().any(|m| m.tag == 'D'));
    assert!(samples(watched.port)[&dev("wait_seconds_count")] >= 1.0);
    // Reloads, good and bad, are seen.
    let path = pgusher.folder.join("pgusher.toml");
    let written = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, "nonsense").unwrap();
    pgusher.signal("HUP");
    eventually("it is refused", || samples(watched.port)["pgusher_reloads_total{outcome=\"refused\"}"] > 0.5);
    std::fs::write(&path, written).unwrap();
    pgusher.signal("HUP");
    eventually("it is applied", || samples(watched.port)["pgusher_generation"] > 1.5);
    // Whoever scrapes learns no user's name: those are as many as there are users.
    let (_, text) = curl(watched.port, "/metrics", &[]);
    assert!(!text.contains("raw") && !text.contains("dana"), "{text}");
}

fn dev(name: &str) -> String {
    format!("pgusher_{name}{{connection=\"warehouse\",environment=\"dev\"}}")
}

#[test]
fn health_and_readiness_tell_a_drain() {
    let mut watched = start("shutdown_timeout = \"20s\"");
    let mut one = Raw::login(watched.pgusher.address(), "raw");
    done(&mut one, "BEGIN");
    assert_eq!(curl(watched.port, "/healthz", &[]), (200, "ok\n".into()));
    assert_eq!(curl(watched.port, "/readyz", &[]), (200, "ok\n".into()));
    watched.pgusher.signal("TERM");
    eventually("it drains", || curl(watched.port, "/readyz", &[]) == (503, "draining\n".into()));
    assert_eq!(curl(watched.port, "/healthz", &[]).0, 200);
    done(&mut one, "COMMIT");
    eventually("it ends", || watched.pgusher.child.try_wait().unwrap().is_some());
}

#[test]
fn odd_requests_get_the_right_status_and_harm_nobody() {
    let watched = start("");
    let mut client = Raw::login(watched.pgusher.address(), "raw");
    for (path, arguments, status) in [
        ("/", &[][..], 404),
        ("/metrics/../../etc/passwd", &["--path-as-is"], 404),
        ("/metrics", &["-X", "POST", "-d", "x"], 405),
        ("/healthz", &["-X", "DELETE"], 405),
        ("/%00", &[], 404),
    ] {
        assert_eq!(curl(watched.port, path, arguments).0, status, "{path} {arguments:?}");
    }
    let huge = format!("X-Long: {}", "x".repeat(100_000));
    assert!([400, 431].contains(&curl(watched.port, "/metrics", &["-H", &huge]).0));
    // One that never ends its head, and garbage.
    let mut slow = TcpStream::connect((Ipv4Addr::LOCALHOST, watched.port)).unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ").unwrap();
    let mut garbage = TcpStream::connect((Ipv4Addr::LOCALHOST, watched.port)).unwrap();
    garbage.write_all(&[0xff; 512]).unwrap();
    assert_eq!(client.value("SELECT 1"), "1");
    slow.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let begun = Instant::now();
    let _ = slow.read_to_end(&mut Vec::new());
    assert!(begun.elapsed() < Duration::from_secs(14), "the slow one is still there");
    assert_eq!(client.value("SELECT 1"), "1");
    super::fake::unharmed(&watched.pgusher);
}

/// What the manual for operators, the alerts and the dashboard speak of is there, and what is there is spoken of.
#[test]
fn alerts_dashboard_and_manual_tell_of_what_there_is() {
    let read =
        |path: &str| std::fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let (alerts, dashboard, manual) =
        (read("docs/alerts.yml"), read("docs/grafana.json"), read("docs/operations.md"));
    let watched = start("audit_file = \"audit.jsonl\"");
    let mut refused = Raw::connect(watched.pgusher.address());
    refused.send(&startup(0x0003_0000, &[("user", "raw"), ("database", "nothing")]));
    assert_eq!(refused.next().unwrap().field('C'), "3D000");
    let known = samples(watched.port);
    let is_known = |name: &str| known.keys().any(|sample| sample.split('{').next() == Some(name));
    let mut names = 0;
    for text in [&alerts, &dashboard] {
        for (at, _) in text.match_indices("pgusher_") {
            let name: String =
                text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            assert!(is_known(&name), "{name}");
            names += 1;
        }
    }
    assert!(names >= 40);
    for line in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(manual.contains(&format!("| `{line}` |")), "{line}");
    }
    let (_, table) = manual.split_once("## By error").unwrap();
    let table = table.split_once("\n## ").map_or(table, |(table, _)| table);
    // Every SQLSTATE that our own code can say.
    let mut states = BTreeSet::new();
    let all = sources("src").into_iter().chain(sources("crates"));
    for (path, text) in all.filter(|(path, _)| !path.contains("/tests") && !path.contains("/benches")) {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for constructor in ["Self = Self::new(\"", "SqlState::new(\""] {
            let found = code.split(constructor).skip(1).map(|rest| rest[..5].to_owned());
            states.extend(found.map(|state| (state, path.clone())));
        }
    }
    assert!(states.len() > 25, "{states:?}");
    for (state, path) in states {
        assert!(table.contains(&format!("`{state}`")), "{state} of {path} has no row");
    }
    for command in pgusher::inside::HELP.split("\n\t").filter_map(|line| line.split_whitespace().next()) {
        assert!(manual.contains(command), "{command}");
    }
}
