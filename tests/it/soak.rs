//! Proofs in full size. Without `make soak` they are small, so that they are proved to run.

use std::process::Command;

use super::house::{Pgusher, eventually, pair, size, warehouse};

/// Thousands of clients on twenty connections, for a minute, without an error.
#[test]
fn thousands_of_clients_run_pgbench_on_twenty_connections_without_an_error() {
    let pair = pair();
    pair.dev.sql("postgres", "CREATE DATABASE bench OWNER app");
    let pgbench = |port: u16, database: &str, arguments: &[&str]| {
        let output = Command::new("pgbench")
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", "raw"])
            .args(arguments)
            .arg(database)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{text}");
        text
    };
    let config = warehouse("max_client_conn = 10000\nquery_wait_timeout = \"60s\"", "pool_size = 20", "")
        .replacen("database = \"dev\"", "database = \"bench\"", 1);
    let pgusher = Pgusher::start(&config);
    pgbench(pgusher.port, "warehouse", &["-i", "-q"]);
    let (clients, seconds) = (size(200, 5000).to_string(), size(3, 60).to_string());
    let before = pgusher.resident();
    let text = pgbench(pgusher.port, "warehouse", &["-S", "-n", "-j", "2", "-c", &clients, "-T", &seconds]);
    let grown = (pgusher.resident().saturating_sub(before)) * 1024 / clients.parse::<u64>().unwrap();
    eprintln!("{clients} clients: {grown} bytes each\n{text}");
    assert!(text.contains("number of failed transactions: 0 (0.000%)"), "{text}");
    assert!(!text.contains("aborted"), "{text}");
    let open = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'bench'";
    // One that was closed is seen until its process has ended.
    eventually("twenty connections", || pair.dev.sql("postgres", open).parse::<u32>().unwrap() <= 20);
}
