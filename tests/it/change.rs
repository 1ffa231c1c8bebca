//! Changing the configuration while clients work, and stopping.

use std::time::{Duration, Instant};

use super::house::{Pgusher, eventually, pair, warehouse};
use super::wire::{Raw, query};

/// raw, which is sent to dev for want of a value, gets one.
fn raw_moved_to_prod(config: &str) -> String {
    config.replace("[users.raw]\n", "[users.raw]\nattributes = { environment = \"prod\" }\n")
}

#[test]
fn a_broken_file_changes_nothing_and_says_where_it_is_broken() {
    let config = warehouse("", "", "");
    let pgusher = Pgusher::start(&config);
    let mut raw = Raw::login(pgusher.address(), "raw");
    raw.value("SELECT 1");
    for (broken, complaint) in [
        (config.replace("[users.nora]", "[users.nora"), "not TOML"),
        (config.replace("auth_type", "auth_tipe"), "did you mean `auth_type`?"),
        (config.replace("threads = 2", "threads = \"two\""), "expected a whole number"),
        (String::new(), "the file is empty"),
        (
            config.replace("connection = \"warehouse_prod\"", "connection = \"warehouse_prd\""),
            "did you mean `warehouse_prod`?",
        ),
    ] {
        pgusher.reload(&broken);
        assert!(pgusher.log().contains(complaint), "{complaint}");
        assert_eq!(raw.value("SELECT name FROM whoami"), "dev");
        assert_eq!(pgusher.psql("pete", "SELECT name FROM whoami").unwrap(), "prod");
        pgusher.reload(&config);
    }
    assert!(pgusher.log().contains("pgusher.toml:"), "line and column");
}

#[test]
fn a_user_who_is_moved_finishes_the_transaction_and_is_told_from_where_to_where() {
    let config = warehouse("", "", "");
    let pgusher = Pgusher::start(&config);
    let mut moved = Raw::login(pgusher.address(), "raw");
    let mut idle = Raw::login(pgusher.address(), "raw");
    let mut untouched = Raw::login(pgusher.address(), "rawprod");
    let pid = untouched.value("SELECT 0 + pg_backend_pid()");
    moved.value("BEGIN");
    pgusher.reload(&raw_moved_to_prod(&config));
    let told = idle.next().unwrap();
    assert_eq!(told.field('C'), "57P01");
    assert!(
        told.field('D').contains("From environment \"dev\" (connection \"warehouse\") to \"prod\""),
        "{}",
        told.field('D')
    );
    assert!(told.field('D').contains("generation 2"));
    assert_eq!(moved.value("SELECT name FROM whoami"), "dev", "never another database in a transaction");
    moved.send(&query("COMMIT"));
    assert_eq!(moved.until_ready().iter().map(|m| m.tag).collect::<String>(), "CZ");
    assert_eq!(moved.next().unwrap().field('C'), "57P01");
    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT name FROM whoami"), "prod");
    assert_eq!(untouched.value("SELECT 0 + pg_backend_pid()"), pid, "no upstream connection lost");
}

#[test]
fn on_move_terminate_ends_now_and_keep_keeps() {
    let config = warehouse("on_move = \"terminate\"", "", "");
    let pgusher = Pgusher::start(&config);
    let mut raw = Raw::login(pgusher.address(), "raw");
    raw.value("BEGIN");
    pgusher.reload(&raw_moved_to_prod(&config));
    assert_eq!(raw.next().unwrap().field('C'), "57P01");
    let config = warehouse("on_move = \"keep\"", "", "");
    let pgusher = Pgusher::start(&config);
    let mut raw = Raw::login(pgusher.address(), "raw");
    pgusher.reload(&raw_moved_to_prod(&config));
    assert_eq!(raw.value("SELECT name FROM whoami"), "dev");
    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT name FROM whoami"), "prod");
}

#[test]
fn a_user_who_is_gone_or_disabled_is_ended_and_cannot_come_back() {
    let config = warehouse("", "", "");
    let pgusher = Pgusher::start(&config);
    let mut raw = Raw::login(pgusher.address(), "raw");
    pgusher.reload(&config.replace("[users.raw]\nauth_type = \"trust\"", ""));
    assert!(raw.next().unwrap().field('D').contains("User \"raw\" is gone since generation 2"));
    pgusher.reload(&config);
    let mut raw = Raw::login(pgusher.address(), "raw");
    pgusher.reload(&config.replace("[users.raw]\n", "[users.raw]\ndisabled = true\n"));
    assert!(raw.next().unwrap().field('D').contains("disabled"));
    pgusher.reload(&config);
    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 1"), "1");
}

#[test]
fn an_environment_that_is_removed_is_left_and_its_connections_closed() {
    let config = warehouse("", "", "");
    let pgusher = Pgusher::start(&config);
    let mut raw = Raw::login(pgusher.address(), "rawprod");
    let pid = raw.value("SELECT 0 + pg_backend_pid()");
    let start = config.find("environments = [").unwrap();
    let end = start + config[start..].find('\n').unwrap();
    pgusher.reload(&config.replace(&config[start..end], ""));
    assert_eq!(raw.next().unwrap().field('C'), "57P01");
    // The pool of the connection that is now a base of its own is kept; that of one that is gone is not.
    let gone = config.replace(&config[start..end], "");
    let from = gone.find("[connections.warehouse_prod]").unwrap();
    let to = gone.find("[users.dana]").unwrap();
    pgusher.reload(&gone.replace(&gone[from..to], ""));
    eventually("the connections of the removed environment are closed", || {
        pair().prod.sql("prod", &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")) == "0"
    });
}

#[test]
fn queries_go_on_through_a_hundred_reloads() {
    let config = warehouse("", "", "");
    let pgusher = Pgusher::start(&config);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = ["raw", "rawprod"]
            .into_iter()
            .map(|user| {
                let (pgusher, done) = (&pgusher, &done);
                scope.spawn(move || {
                    let mut raw = Raw::login(pgusher.address(), user);
                    let expected = if user == "raw" { "dev" } else { "prod" };
                    let mut queries = 0;
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        assert_eq!(raw.value("SELECT name FROM whoami"), expected);
                        queries += 1;
                    }
                    queries
                })
            })
            .collect();
        for i in 0..100 {
            let next =
                if i % 2 == 0 { config.replace("dana\"\n", "dana\"\n# changed\n") } else { "broken".into() };
            std::fs::write(
                pgusher.folder.join("pgusher.toml"),
                next.replace("@PORT@", &pgusher.port.to_string()),
            )
            .unwrap();
            pgusher.signal("HUP");
            std::thread::sleep(Duration::from_millis(10));
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(clients.into_iter().map(|c| c.join().unwrap()).sum::<u32>() > 100);
    });
}

#[test]
fn sigterm_lets_transactions_end_and_exits_with_0() {
    let mut pgusher = Pgusher::start(&warehouse("shutdown_timeout = \"10s\"", "", ""));
    let mut idle = Raw::login(pgusher.address(), "raw");
    let mut busy = Raw::login(pgusher.address(), "raw");
    busy.value("BEGIN");
    pgusher.signal("TERM");
    assert_eq!(idle.next().unwrap().field('C'), "57P01");
    eventually("nobody is accepted any more", || std::net::TcpStream::connect(pgusher.address()).is_err());
    assert_eq!(busy.value("SELECT 'still here'"), "still here");
    busy.send(&query("COMMIT"));
    assert_eq!(busy.until_ready().iter().map(|m| m.tag).collect::<String>(), "CZ");
    assert_eq!(busy.next().unwrap().field('C'), "57P01");
    assert!(pgusher.child.wait().unwrap().success());
}

#[test]
fn shutdown_timeout_and_a_second_sigint_end_what_does_not_end_itself() {
    for (timeout, second) in [("300ms", false), ("60s", true)] {
        let mut pgusher = Pgusher::start(&warehouse(&format!("shutdown_timeout = \"{timeout}\""), "", ""));
        let mut busy = Raw::login(pgusher.address(), "raw");
        busy.value("BEGIN");
        let started = Instant::now();
        pgusher.signal("INT");
        if second {
            eventually("it drains", || pgusher.log().contains("draining"));
            pgusher.signal("INT");
        }
        assert!(pgusher.child.wait().unwrap().success());
        assert!(started.elapsed() < Duration::from_secs(15));
        if !second {
            assert_eq!(busy.next().unwrap().field('C'), "57P01");
        }
    }
}

#[test]
fn a_killed_pgusher_leaves_no_transaction_behind_and_starts_again() {
    let config = warehouse("", "", "");
    let mut pgusher = Pgusher::start(&config);
    let mut raw = Raw::login(pgusher.address(), "raw");
    raw.value("CREATE TABLE IF NOT EXISTS killed (a int)");
    raw.value("BEGIN");
    raw.value("INSERT INTO killed VALUES (1)");
    let pid = raw.value("SELECT 0 + pg_backend_pid()");
    pgusher.child.kill().unwrap();
    pgusher.child.wait().unwrap();
    eventually("the transaction is gone", || {
        pair().dev.sql("dev", &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")) == "0"
    });
    let again = Pgusher::start(&config);
    assert_eq!(Raw::login(again.address(), "raw").value("SELECT count(*) FROM killed"), "0");
    pair().dev.sql("dev", "DROP TABLE killed");
}

#[test]
fn json_logs_are_one_object_a_line_whatever_a_client_calls_itself() {
    let pgusher = Pgusher::start(&warehouse("log_format = \"json\"", "", ""));
    let hostile = "x\n{\"level\":\"ERROR\"}\x1b[31m\"";
    for user in [hostile, "raw"] {
        let mut raw = Raw::connect(pgusher.address());
        raw.send(&super::wire::startup(
            0x0003_0000,
            &[("user", user), ("database", "warehouse"), ("application_name", hostile)],
        ));
        assert!(raw.next().is_some());
    }
    eventually("the session's line", || pgusher.log().contains("session ended"));
    for line in pgusher.log().lines() {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"));
        assert!(object.get("level").is_some(), "{line}");
    }
    let log = pgusher.log();
    let ended: Vec<&str> = log.lines().filter(|l| l.contains("session ended")).collect();
    assert_eq!(ended.len(), 1);
    assert!(
        ended[0].contains("\"environment\":\"dev\"") && ended[0].contains("\"user\":\"raw\""),
        "{}",
        ended[0]
    );
}
