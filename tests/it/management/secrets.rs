//! A token of the API may set passwords, and not have those that are there sent where it likes.

use std::process::Command;

use serde_json::{Value, json};

use super::{ADMIN, MANY, Managed, Said, section};
use crate::console::{OPERATORS, console};
use crate::house::{Pgusher, free_port, temporary_folder, warehouse};
use crate::state::done;

/// Production's password is in a file of the machine, and TLS is a must.
fn start() -> Managed {
    let folder = temporary_folder("secrets");
    std::fs::write(folder.join("prod.pw"), "canary-prod").unwrap();
    std::fs::write(folder.join("user.pw"), "canary-user").unwrap();
    let port = free_port();
    let prod = "password = { file = \"prod.pw\" }\nsslmode = \"require\"";
    let user = "\n[users.filed]\npassword = { file = \"user.pw\" }\n";
    let config = warehouse("", "", prod) + OPERATORS + user + &section(port, MANY);
    Managed::on(Pgusher::start_in(folder, &config), port)
}

/// Production's password, as it is shown.
const HIDDEN: &str = "sslmode = \"require\"\npassword = \"***\"";

fn said_as(password: &str) -> String {
    format!("sslmode = \"require\"\npassword = {password}")
}

fn put_toml(api: &Managed, path: &str, toml: &str) -> Said {
    let authorization = format!("Bearer {ADMIN}");
    let headers = [("authorization", authorization.as_str()), ("content-type", "application/toml")];
    api.call("PUT", path, &headers, toml)
}

fn says_what_to_do(said: &Said, what: &str) {
    assert_eq!(said.status, 409, "{what}: {said:?}");
    let detail = said.detail();
    assert!(detail.contains("its password was given for another host or port"), "{what}: {detail}");
    assert!(detail.contains("send the password in the same call (passwordUnencrypted"), "{what}: {detail}");
}

#[test]
fn another_host_port_or_weaker_tls_needs_the_password_in_the_same_call() {
    let api = start();
    let (before, prod) = (api.text(), api.id("connections", "warehouse_prod"));
    let patch =
        |query: &str, body: &Value| api.send("PATCH", &format!("/connections/{prod}{query}"), body.clone());
    for body in [
        json!({ "port": 1 }),
        json!({ "port": null }),
        json!({ "host": "evil.example" }),
        json!({ "host": "localhost" }),
        json!({ "sslMode": "prefer" }),
        json!({ "sslMode": "disable" }),
        json!({ "sslMode": null }),
        json!({ "name": "other", "host": "evil.example" }),
        json!({ "name": "other", "port": 1, "database": "x", "username": "y" }),
    ] {
        for query in ["", "?dry_run=true"] {
            says_what_to_do(&patch(query, &body), &body.to_string());
        }
    }
    assert_eq!(api.text(), before);
    // What sends it nowhere else is free, and so is better TLS.
    for body in [
        json!({ "database": "other" }),
        json!({ "username": "other" }),
        json!({ "name": "renamed", "poolSize": 3 }),
        json!({ "sslMode": "verify-full", "requireAuth": "scram-sha-256, none" }),
    ] {
        patch("", &body).ok();
    }
    assert!(api.text().contains("password = { file = \"prod.pw\" }"), "{}", api.text());
    says_what_to_do(&patch("", &json!({ "sslMode": "require" })), "verify-full is not taken back");
    // With a password it may go there; that of the machine's file stays here, even if it is the same text.
    patch("", &json!({ "host": "elsewhere.example", "passwordUnencrypted": "canary-prod" })).ok();
    let file = api.text();
    assert!(!file.contains("prod.pw") && !file.contains("canary-prod") && file.contains(".secret"), "{file}");
    // A connection without a password has none to lose.
    let base = api.id("connections", "warehouse");
    api.send("PATCH", &format!("/connections/{base}"), json!({ "host": "localhost" })).ok();
    api.send("PATCH", &format!("/connections/{prod}"), json!({ "passwordUnencrypted": null })).ok();
    patch("", &json!({ "host": "anywhere.example", "sslMode": "disable" })).ok();
}

#[test]
fn a_whole_configuration_sends_no_known_password_elsewhere() {
    let api = start();
    let before = api.text();
    let toml = api.get("/config").ok()["toml"].as_str().unwrap().to_owned();
    let port = format!("port = {}", crate::house::pair().prod.port);
    assert!(toml.contains(HIDDEN), "{toml}");
    let known = "{ file = \"prod.pw\" }";
    let base = |password: &str| {
        format!(
            "{toml}\n[connections.mine]\nhost = \"evil.example\"\nusername = \"u\"\npassword = {password}\n"
        )
    };
    for (what, text) in [
        ("***, another port", toml.replace(&port, "port = 1")),
        ("***, weaker TLS", toml.replace("sslmode = \"require\"", "sslmode = \"prefer\"")),
        ("***, no TLS said", toml.replace("sslmode = \"require\"\n", "")),
        (
            "weaker proof",
            toml.replace("sslmode = \"require\"", "sslmode = \"require\"\nscram_min_iterations = 1"),
        ),
        (
            "the reference itself, another port",
            toml.replace(HIDDEN, &said_as(known)).replace(&port, "port = 1"),
        ),
        ("the reference, another connection", base(known)),
        (
            "the reference, the same server without TLS",
            base(known).replace("\"evil.example\"", &format!("\"127.0.0.1\"\n{port}")),
        ),
    ] {
        for path in ["/config", "/config?dry_run=true"] {
            says_what_to_do(&put_toml(&api, path, &text), what);
        }
        let desired = api.pgusher.folder.join("desired.toml");
        std::fs::write(&desired, &text).unwrap();
        let applied = Command::new(env!("CARGO_BIN_EXE_pgusher"))
            .args(["apply", "--url", &format!("http://127.0.0.1:{}", api.port)])
            .arg(&desired)
            .env("PGUSHER_TOKEN", ADMIN)
            .output()
            .unwrap();
        let said = String::from_utf8(applied.stderr).unwrap();
        assert!(!applied.status.success() && said.contains("refused (409)"), "{what}: {said}");
        assert!(said.contains("in a whole configuration, password"), "{what}: {said}");
    }
    // What belongs to a user belongs to no connection, and the other way round.
    for text in
        [base("{ file = \"user.pw\" }"), toml.clone() + "\n[users.x]\npassword = { file = \"prod.pw\" }\n"]
    {
        let said = put_toml(&api, "/config", &text);
        assert_eq!(said.status, 400, "{said:?}");
        assert!(said.detail().contains("a reference (file, env, command)"), "{said:?}");
    }
    assert_eq!(api.text(), before);
    // The same connection under another name, and a password that is said.
    let renamed = toml.replace("[connections.warehouse_prod]", "[connections.p]");
    let renamed = renamed.replace("connection = \"warehouse_prod\"", "connection = \"p\"");
    put_toml(&api, "/config", &renamed.replace(HIDDEN, &said_as(known))).ok();
    let said = renamed.replace(HIDDEN, &said_as("\"canary-new\"")).replace(&port, "port = 1");
    put_toml(&api, "/config", &said).ok();
    assert!(!api.text().contains("canary-new") && !api.text().contains("prod.pw"), "{}", api.text());
}

#[test]
fn going_back_sends_no_password_elsewhere() {
    let api = Managed::start(&(warehouse("", "", "") + OPERATORS));
    let body = json!({ "dialect": "postgres", "name": "c", "host": "a.example", "username": "u", "passwordUnencrypted": "one" });
    let id = api.send("POST", "/connections", body).ok()["data"].as_str().unwrap().to_owned();
    let second = api.text();
    let patch = |body: Value| api.send("PATCH", &format!("/connections/{id}"), body);
    patch(json!({ "host": "b.example", "passwordUnencrypted": "two" })).ok();
    let refused = |what: &str| {
        for query in ["", "?dry_run=true"] {
            let said = api.send("POST", &format!("/generations/2/rollback{query}"), json!({}));
            assert_eq!(said.status, 409, "{what}: {said:?}");
            assert!(said.detail().contains("ROLLBACK CONFIG on the console"), "{what}: {said:?}");
        }
    };
    refused("another host");
    // Nor by a way round.
    api.delete(&format!("/connections/{id}")).ok();
    refused("another host, and gone");
    let body = json!({ "dialect": "postgres", "name": "c", "host": "b.example", "username": "u", "passwordUnencrypted": "two" });
    let id = api.send("POST", "/connections", body).ok()["data"].as_str().unwrap().to_owned();
    refused("another host, and made again");
    // With the password it may be there, and then go back.
    let patch = |body: Value| api.send("PATCH", &format!("/connections/{id}"), body);
    patch(json!({ "host": "a.example", "passwordUnencrypted": "three" })).ok();
    api.send("POST", "/generations/2/rollback", json!({})).ok();
    assert_eq!(api.text(), second);
    // A deletion is taken back as before.
    api.delete(&format!("/connections/{id}")).ok();
    api.send("POST", "/generations/2/rollback", json!({})).ok();
    assert_eq!(api.text(), second);
    // An operator on the console is free.
    api.send(
        "PATCH",
        &format!("/connections/{id}"),
        json!({ "host": "b.example", "passwordUnencrypted": "two" }),
    )
    .ok();
    done(&mut console(&api.pgusher, "operator"), "ROLLBACK CONFIG");
}

/// Who edits the file on the machine may write what he likes.
#[test]
fn the_file_is_free() {
    let api = start();
    let edited = api.text().replace("sslmode = \"require\"", "sslmode = \"disable\"");
    std::fs::write(api.file(), edited.replace("host = \"127.0.0.1\"", "host = \"localhost\"")).unwrap();
    assert_eq!(api.send("POST", "/reload", json!({})).ok()["generation"], json!(2));
}

/// Whoever says a password is told whether it is the one that is there, but not for long.
#[test]
fn a_look_is_no_way_to_find_out_a_password() {
    let api = start();
    let prod = api.id("connections", "warehouse_prod");
    let look = |password: &str| {
        let path = format!("/connections/{prod}?dry_run=true");
        let said = api.send("PATCH", &path, json!({ "passwordUnencrypted": password })).ok();
        said["plan"].as_array().unwrap().iter().any(|row| row.to_string().contains("password of connection"))
    };
    assert!(!look("canary-prod"), "it is the same");
    let told: Vec<bool> = (0..40).map(|n| look(&format!("guess {n}"))).collect();
    assert!(told.iter().all(|changes| *changes));
    assert!(look("canary-prod"), "the right one is told from forty wrong ones");
    // Nor by anything else that an answer has.
    let answer = |password: &str| {
        let path = format!("/connections/{prod}?dry_run=true");
        let answer = api.send("PATCH", &path, json!({ "passwordUnencrypted": password }));
        (answer.headers.get("etag").cloned(), answer.ok()["changed"].clone())
    };
    assert_eq!(answer("canary-prod"), answer("another guess"));
}

/// The console goes back to what a configuration says, but not to its tokens.
#[test]
fn a_token_that_was_taken_away_stays_away() {
    let api = start();
    let without = api.text();
    let token = "[management.tokens.extra]\ntoken = \"a-token-to-be-taken-away\"\nrole = \"read\"\n";
    api.pgusher.reload(&format!("{without}\n{token}"));
    let status = || {
        let headers = [("authorization", "Bearer a-token-to-be-taken-away")];
        api.call("GET", "/config", &headers, "").status
    };
    assert_eq!(status(), 200);
    api.pgusher.reload(&without);
    assert_eq!(status(), 401);
    done(&mut console(&api.pgusher, "operator"), "ROLLBACK CONFIG");
    assert_eq!(status(), 401);
    api.get("/config").ok();
}
