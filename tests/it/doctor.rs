//! The doctor, on systems that are well and on systems that are not.

use std::process::Command;

use serde_json::Value;

use super::fake::Fake;
use super::house::{Pgusher, free_port, pair, run, temporary_folder, warehouse};
use super::tls::certificates;
use super::wire::message;

/// Its exit status, and what it found.
fn doctor(config: &str, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let folder = temporary_folder("doctor");
    certificates(&folder);
    let path = folder.join("pgusher.toml");
    std::fs::write(&path, config.replace("@PORT@", "6432")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pgusher"))
        .args(["doctor", "--json"])
        .arg(&path)
        .args(arguments)
        .output()
        .unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code(), found.as_array().unwrap().clone())
}

/// What was found of something, with its grade.
fn of(found: &[Value], subject: &str) -> String {
    let lines = found.iter().filter(|f| f["subject"] == subject);
    lines.map(|f| format!("{} {}\n", f["grade"].as_str().unwrap(), f["text"].as_str().unwrap())).collect()
}

fn says(found: &[Value], subject: &str, what: &str) {
    let said = of(found, subject);
    assert!(said.lines().any(|line| line.contains(what)), "{subject}: {what}: {said}");
}

#[test]
fn a_system_that_is_well_has_no_error() {
    let (status, found) = doctor(&warehouse("max_client_conn = 100", "", ""), &[]);
    assert_eq!(status, Some(0), "{found:#?}");
    says(&found, "connection warehouse", "ok 127.0.0.1:");
    says(&found, "environment prod of warehouse", "ok another server than the base's");
    says(&found, &format!("server 127.0.0.1:{}", pair().dev.port), "our pools may open 20");
    says(&found, "grants_file", "ok ");
}

#[test]
fn what_is_wrong_is_found_before_users_find_it() {
    let pair = pair();
    pair.dev.sql("postgres", "CREATE DATABASE doctor_a");
    pair.dev.sql("postgres", "CREATE DATABASE doctor_b");
    pair.dev.sql("postgres", "CREATE DATABASE doctor_few CONNECTION LIMIT 3");
    pair.dev.sql(
        "doctor_a",
        "CREATE TABLE t (a int, b text); CREATE TABLE only_a (); CREATE SCHEMA s; CREATE EXTENSION IF NOT EXISTS plpgsql",
    );
    pair.dev.sql("doctor_b", "CREATE TABLE t (a bigint, b text, c int)");
    let (nobody, dev) = (free_port(), pair.dev.port);
    let connection = |name: &str, port: u16, more: &str| {
        format!("[connections.{name}]\nhost = \"127.0.0.1\"\nport = {port}\nusername = \"app\"\n{more}\n")
    };
    let config = [
        "[server]\nmax_client_conn = 100\naudit_file = \"nowhere/a.jsonl\"\n".to_owned(),
        "tls = { certificate = \"server.crt\", key = \"server.key\" }\n".to_owned(),
        connection(
            "base",
            dev,
            "database = \"doctor_a\"\nuser_attribute = \"e\"\ndefault_values = [\"a\"]\n\
             include_schemas = [\"public\", \"missing one\"]\n\
             environments = [{ connection = \"same\", values = [\"s\"] }, { connection = \"beside\", values = [\"b\"] }]",
        ),
        connection("same", dev, "database = \"doctor_a\"\npool_size = 5000"),
        connection("beside", dev, "database = \"doctor_b\""),
        connection("few", dev, "database = \"doctor_few\""),
        connection("dead", nobody, ""),
        connection("unnamed", dev, "").replace("127.0.0.1", "no-such-host.invalid"),
        connection("stranger", dev, "database = \"no_such_database\""),
        "[users.u]\nauth_type = \"trust\"\n".to_owned(),
    ];
    let (status, found) = doctor(&config.concat(), &["--parity"]);
    assert_eq!(status, Some(1), "{found:#?}");
    says(&found, "audit_file", "error ");
    says(&found, "[server.tls]", "ok its certificate holds until");
    says(&found, "connection base", "error include_schemas names the schema \"missing one\"");
    says(&found, "environment same of base", "error it is the base itself: database doctor_a");
    says(&found, "environment beside of base", "warning it is in the same server as the base");
    says(
        &found,
        "environment beside of base",
        "warning relations of the base that are missing there: public.only_a",
    );
    says(&found, "environment beside of base", "public.t (base: a integer; there: a bigint, c integer)");
    says(&found, "environment beside of base", "warning schemas of the base that are missing there: s");
    says(&found, &format!("server 127.0.0.1:{dev}"), "error it allows");
    says(&found, "connection few", "error its database allows 3 connections, and its pool may open 20");
    says(&found, "connection dead", "Connection refused");
    says(&found, "connection unnamed", "error could not translate host name \"no-such-host.invalid\"");
    says(&found, "connection unnamed", "warning sslmode = \"prefer\" does not find out");
    says(&found, "connection stranger", "(3D000)");
    // Each of them says what to do.
    assert!(found.iter().filter(|f| f["grade"] == "error").all(|f| f["hint"].is_string()), "{found:#?}");
    for name in ["doctor_a", "doctor_b", "doctor_few"] {
        pair.dev.sql("postgres", &format!("DROP DATABASE {name}"));
    }
}

#[test]
fn a_file_that_cannot_be_used_is_told_of_once_and_with_its_place() {
    let (status, found) = doctor(
        &warehouse(
            "tls = { certificate = \"server.crt\", key = \"server.key\", client_ca = \"ca.crt\", client_crl = \"no.crl\" }",
            "sslmode = \"verify-ca\"\nsslrootcert = \"ca.crt\"\nsslcrl = \"neither.crl\"",
            "",
        ),
        &[],
    );
    assert_eq!(status, Some(1), "{found:#?}");
    for file in ["/no.crl", "/neither.crl"] {
        let told: Vec<_> = found.iter().filter(|f| f["text"].as_str().unwrap().contains(file)).collect();
        assert!(told.len() == 1 && told[0]["text"].as_str().unwrap().contains("pgusher.toml:"), "{told:#?}");
    }
}

#[test]
fn it_examines_beside_a_process_that_runs_and_for_people() {
    let pgusher = Pgusher::start(&warehouse("max_client_conn = 100", "", ""));
    let file = pgusher.folder.join("pgusher.toml");
    let output = run(Command::new(env!("CARGO_BIN_EXE_pgusher")).arg("doctor").arg(file));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("\nok       connection warehouse: 127.0.0.1:"), "{text}");
    assert!(pgusher.psql("dana", "SELECT 1").is_ok());
}

#[test]
fn an_upstream_that_asks_for_the_password_is_found_and_told_what_to_write() {
    let fake = Fake::start(|peer| peer.send(&message('R', b"\0\0\0\x05salt")));
    let config = fake.config("", &["old".to_owned()], "");
    let (status, found) = doctor(&config, &[]);
    assert_eq!(status, Some(1));
    says(&found, "connection old", "asks for an MD5 hash of the password, which require_auth does not allow");
    let hint = found.iter().find(|f| f["subject"] == "connection old" && f["grade"] == "error").unwrap();
    assert!(hint["hint"].as_str().unwrap().contains("require_auth = \"md5\" there"), "{hint}");
    let elsewhere =
        config.replace("host = \"127.0.0.1\"", "host = \"192.0.2.1\"\nconnect_timeout = \"100ms\"");
    let (_, found) = doctor(&elsewhere.replace("username", "require_auth = \"md5\"\nusername"), &[]);
    says(&found, "connection old", "require_auth lets whoever answers at 192.0.2.1 have the password");
}
