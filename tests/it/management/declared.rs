//! What the file can say of connections and users, the API can say and show: an option is declared once.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};

use super::Managed;
use crate::examples::PGUSHER;
use crate::house::warehouse;

/// What the API says in another form, elsewhere, or never: secrets, and files of the machine.
const OTHERWISE: [(&str, &[&str]); 2] = [
    (
        "connections",
        &[
            "default_values",
            "environments",
            "id",
            "password",
            "query_timeout",
            "sslcert",
            "sslcrl",
            "sslkey",
            "sslrootcert",
            "user_attribute",
        ],
    ),
    ("users", &["password"]),
];

fn declared(kind: &str) -> Value {
    let output = Command::new(PGUSHER).args(["manual", "--json-schema"]).output().unwrap();
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    schema["properties"][kind]["additionalProperties"]["properties"].clone()
}

fn wire_name(key: &str) -> String {
    let mut words = key.split('_');
    let first = words.next().unwrap().to_owned();
    let rest = words.map(|word| word[..1].to_uppercase() + &word[1..]);
    rest.fold(first, |name, word| name + &word)
        .replace("sslmode", "sslMode")
        .replace("sslnegotiation", "sslNegotiation")
}

#[test]
fn every_option_is_in_the_api_but_secrets_files_and_what_has_a_form_of_its_own() {
    let api = Managed::start(&warehouse("", "", ""));
    let document = api.get("/openapi.json").ok();
    for ((kind, otherwise), object) in OTHERWISE.into_iter().zip(["Connection", "User"]) {
        let body = document["components"]["schemas"][format!("Changed{object}")]["properties"].clone();
        let known = |key: &String| body.get(wire_name(key)).is_some();
        let missing: BTreeSet<String> =
            declared(kind).as_object().unwrap().keys().filter(|key| !known(key)).cloned().collect();
        assert_eq!(missing, otherwise.iter().map(ToString::to_string).collect(), "{kind}");
    }
}

/// A value that the option does not have by default, as an answer shows it.
fn example(key: &str, schema: &Value) -> Value {
    match (key, schema["type"].as_str()) {
        (_, Some("boolean")) => json!(true),
        (_, Some("integer")) => json!(schema["minimum"].as_u64().unwrap() + 1),
        (_, Some("array")) => json!(["x7"]),
        ("require_auth", _) => json!(["md5", "scram-sha-256"]),
        ("connect_timeout", _) => json!("7s"),
        (_, Some("string")) if schema["enum"].is_array() => {
            schema["enum"].as_array().unwrap().last().unwrap().clone()
        }
        _ => json!("x7"),
    }
}

fn change_pool_size(api: &Managed, path: &str, to: &Value) {
    api.send("PATCH", path, json!({ "poolSize": null })).ok();
    let tag = api.get(path).tag().to_owned();
    let headers = [("if-match", &*tag)];
    assert_eq!(api.send_with("PATCH", path, json!({ "poolSize": to }), &headers).status, 200);
    assert_eq!(api.send_with("PATCH", path, json!({ "poolSize": 3 }), &headers).status, 412);
}

#[test]
fn every_option_of_a_connection_can_be_said_shown_and_taken_back() {
    let api = Managed::start(&warehouse("", "", ""));
    let spare = json!({ "dialect": "postgres", "name": "spare", "host": "127.0.0.1", "port": 1, "username": "u",
        "onUnmatched": "reject", "sslMode": "require" });
    let id = api.send("POST", "/connections", spare).ok()["data"].as_str().unwrap().to_owned();
    let path = format!("/connections/{id}");
    let before = api.get(&path).ok();
    let table = declared("connections");
    let declared = table.as_object().unwrap().iter();
    for (key, schema) in declared.filter(|(key, _)| !OTHERWISE[0].1.contains(&key.as_str())) {
        let (name, value) = (wire_name(key), example(key, schema));
        let change = |value: &Value| {
            let answer = api.send("PATCH", &path, json!({ name.as_str(): value }));
            answer.ok()["connection"][&name].clone()
        };
        assert_eq!(change(&value), value, "{name}");
        assert_eq!(api.get(&path).ok()[&name], value, "{name}");
        // The file has it, and an answer can be sent back as it is.
        let section = |text: String| text.split("[connections.spare]").nth(1).unwrap().to_owned();
        assert!(section(api.text()).contains(&format!("\n{key} = ")), "{name}: {}", api.text());
        if !["host", "username"].contains(&key.as_str()) {
            change(&Value::Null);
            let now = section(api.text());
            assert!(!now.split("\n[").next().unwrap().contains(&format!("\n{key} = ")), "{name}: {now}");
        }
        assert_eq!(change(&before[&name]), before[&name], "{name}");
    }
    // An edition differs also where what is in force does not.
    change_pool_size(&api, &path, &before["poolSize"]);
    // What is answered can be sent as it is, with a password that is known to go there.
    let secret = json!({ "passwordUnencrypted": "of the spare", "requireAuth": "scram-sha-256, none" });
    api.send("PATCH", &path, secret).ok();
    let answered = api.get(&path).ok()["requireAuth"].clone();
    api.send("PATCH", &path, json!({ "requireAuth": answered })).ok();
    api.send("PATCH", &path, json!({ "requireAuth": ["scram-sha-256"] })).ok();
    assert_eq!(api.send("PATCH", &path, json!({ "requireAuth": ["scram-sha-256", "md5"] })).status, 409);
    let named = api.send("PATCH", "/connections/warehouse_prod", json!({ "environmentName": "other" }));
    assert!(named.status == 400 && named.detail().contains("it is an environment of warehouse"), "{named:?}");
    // What cannot be is said as the file's reader says it, of the field.
    for (name, value, said) in [
        ("connectTimeout", json!("7"), "time unit needed, for example 7sec or 7ms"),
        ("connectTimeout", json!(7), "Expected string, received number"),
        ("host", json!("a b"), "a host name or an IP address has only ASCII characters and no spaces"),
        ("requireAuth", json!(["kerberos"]), "unknown value `kerberos`"),
        ("sslNegotiation", json!("tls"), "Expected one of: postgres, direct"),
        ("connectTimeout", json!("584000000000years"), "a time cannot be longer than 100 years"),
        ("connectTimeout", json!("25h"), "`connect_timeout` must be between"),
        ("maxPinned", json!(100_001), "Number must be less than or equal to 100000"),
        ("aliases", json!("y".repeat(256)), "String must contain at most 255 character(s)"),
        ("maxPinned", json!(-1), "Number must be greater than or equal to 0"),
        ("sslkey", json!("/etc/shadow"), "Unrecognized key"),
        ("password", json!({ "command": ["id"] }), "Unrecognized key"),
    ] {
        let answer = api.send("PATCH", &path, json!({ name: value }));
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert!(
            answer.detail().contains(&format!("{name}: ")) && answer.detail().contains(said),
            "{answer:?}"
        );
    }
}

#[test]
fn a_user_has_a_pool_mode_by_the_api_as_by_the_file() {
    let api = Managed::start(&warehouse("", "", ""));
    let path = format!("/users/{}", api.id("users", "dana"));
    assert_eq!(api.get(&path).ok()["poolMode"], json!(null));
    assert_eq!(
        api.send("PATCH", &path, json!({ "poolMode": "session" })).ok()["user"]["poolMode"],
        json!("session")
    );
    assert!(api.text().contains("pool_mode = \"session\""), "{}", api.text());
    assert_eq!(api.send("PATCH", &path, json!({ "poolMode": null })).ok()["user"]["poolMode"], json!(null));
}
