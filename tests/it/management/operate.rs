//! What an operator does over HTTP: reading everything back, people, explaining, planning, sessions, grants, applying.

use std::process::Command;

use serde_json::{Value, json};

use super::{ADMIN, MANY, Managed, section};
use crate::house::{Pgusher, eventually, free_port, temporary_folder, warehouse, write_private};
use crate::wire::Raw;

/// What a write answers is what is read afterwards, of every kind and by every way.
#[test]
fn every_write_answers_with_the_whole_object_as_it_is_stored() {
    let api = Managed::start(&warehouse("", "", ""));
    for (kind, key, name, new, changed) in [
        (
            "connections",
            "connection",
            "c",
            json!({ "dialect": "postgres", "name": "c", "host": "h", "username": "u", "includeSchemas": "a, b", "aliases": ["x"] }),
            json!({ "host": "other", "queryTimeoutSeconds": 90, "includeSchemas": null, "aliases": "y,z", "sslMode": "require" }),
        ),
        (
            "groups",
            "group",
            "g",
            json!({ "name": "g", "attributes": { "environment": "prod" } }),
            json!({ "attributes": { "environment": "" } }),
        ),
        (
            "user-attributes",
            "userAttribute",
            "a",
            json!({ "name": "a", "defaultValues": "x" }),
            json!({ "defaultValues": ["x", "y"] }),
        ),
        (
            "users",
            "user",
            "u",
            json!({ "name": "u", "passwordUnencrypted": "p", "groups": "g", "attributes": { "environment": "dev" } }),
            json!({ "groups": [], "console": "stats", "disabled": true }),
        ),
    ] {
        let planned = api.send("POST", &format!("/{kind}?dry_run=true"), new.clone());
        assert_eq!((planned.status, &planned.json()["dryRun"]), (200, &json!(true)), "{kind}");
        let made = api.send("POST", &format!("/{kind}"), new.clone());
        assert_eq!(made.status, 201, "{made:?}");
        assert_eq!(planned.json()[key], made.json()[key], "{kind}");
        let id = made.json()["data"].as_str().unwrap().to_owned();
        let path = format!("/{kind}/{id}");
        let read = api.get(&path);
        assert_eq!((read.json(), read.tag()), (made.json()[key].clone(), made.tag()), "{kind}");
        assert_eq!(read.json()["id"], json!(id));
        let listed = api.get(&format!("/{kind}?name={name}")).ok();
        assert_eq!(listed.as_object().unwrap().values().find_map(Value::as_array).unwrap()[0], read.json());
        assert_eq!(api.send("POST", &format!("/{kind}"), new).status, 409, "{kind}");
        let planned = api.send("PATCH", &format!("{path}?dry_run=true"), changed.clone()).ok();
        assert_eq!(api.get(&path).json(), read.json(), "{kind}: asking has changed it");
        let answer = api.send("PATCH", &path, changed);
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(planned[key], answer.json()[key], "{kind}");
        assert_eq!(api.get(&path).json(), answer.json()[key], "{kind}");
        assert_ne!(answer.json()[key], read.json(), "{kind}");
        if kind == "users" {
            assert_eq!(answer.json()[key]["disabled"], json!(true));
        }
    }
    // The user is in the group no more, so all can go, and what is answered is what was there.
    for (kind, key, name) in [
        ("users", "user", "u"),
        ("groups", "group", "g"),
        ("user-attributes", "userAttribute", "a"),
        ("connections", "connection", "c"),
    ] {
        let path = format!("/{kind}/{}", api.id(kind, name));
        let was = api.get(&path).json();
        assert_eq!(api.delete(&format!("{path}?dry_run=true")).ok()[key], was);
        assert_eq!(api.delete(&path).ok()[key], was, "{kind}");
        assert_eq!(api.get(&path).status, 404);
        assert_eq!(api.delete(&path).status, 404);
    }
}

#[test]
fn what_is_referred_to_stays() {
    let api = Managed::start(&warehouse("", "", ""));
    api.send("POST", "/groups", json!({ "name": "g" })).ok();
    let dana = api.id("users", "dana");
    api.send("PATCH", &format!("/users/{dana}"), json!({ "groups": ["g"] })).ok();
    let refused = |path: String| {
        let said = api.delete(&path);
        assert_eq!(said.status, 409, "{said:?}");
        said.detail()
    };
    let group = api.id("groups", "g");
    assert_eq!(
        refused(format!("/groups/{group}")),
        format!("Group with id {group} is in use: user dana is in it")
    );
    let attribute = api.id("user-attributes", "environment");
    assert!(
        refused(format!("/user-attributes/{attribute}"))
            .ends_with("is in use: connection warehouse picks by it")
    );
    let (base, prod) = (api.id("connections", "warehouse"), api.id("connections", "warehouse_prod"));
    assert!(refused(format!("/connections/{base}")).contains("it has environments"));
    assert!(refused(format!("/connections/{prod}")).contains("it is an environment of warehouse"));
    // With sessions: not before they are told to leave.
    let body = json!({ "dialect": "postgres", "name": "other", "host": "127.0.0.1", "port": crate::house::pair().dev.port, "database": "dev", "username": "app" });
    let other = api.send("POST", "/connections", body).ok()["data"].as_str().unwrap().to_owned();
    let mut there =
        Raw::login_with(api.pgusher.address(), 0x0003_0000, &[("user", "raw"), ("database", "other")]);
    assert_eq!(there.value("SELECT current_database()"), "dev");
    assert!(refused(format!("/connections/{other}")).contains("it has 1 session(s)"));
    let planned = api.delete(&format!("/connections/{other}?drain=true&dry_run=true")).ok();
    assert!(planned["plan"].as_array().unwrap().iter().any(|row| row["change"] == "session"), "{planned}");
    api.delete(&format!("/connections/{other}?drain=true")).ok();
    assert_eq!(there.next().unwrap().field('C'), "57P01");
    // An environment that is drained away leaves its base, and its users fall back as the base says.
    api.delete(&format!("/connections/{prod}?drain=true")).ok();
    assert_eq!(api.get("/connection-environments").ok()["connectionEnvironments"], json!([]));
    assert_eq!(api.pgusher.psql("pete", "SELECT name FROM whoami").unwrap(), "dev");
}

#[test]
fn a_renamed_connection_keeps_its_identifier_its_environments_and_its_place() {
    let api = Managed::start(&warehouse("", "", ""));
    let (base, prod) = (api.id("connections", "warehouse"), api.id("connections", "warehouse_prod"));
    let association = api.get("/connection-environments").ok()["connectionEnvironments"][0]["id"].clone();
    api.send("PATCH", &format!("/connections/{prod}"), json!({ "name": "Production (new)" })).ok();
    api.send("PATCH", &format!("/connections/{base}"), json!({ "name": "lake", "aliases": ["warehouse"] }))
        .ok();
    assert_eq!(
        (api.id("connections", "lake"), api.id("connections", "Production (new)")),
        (base.clone(), prod)
    );
    assert_eq!(api.get("/connection-environments").ok()["connectionEnvironments"][0]["id"], association);
    assert_eq!(api.pgusher.psql("pete", "SELECT name FROM whoami").unwrap(), "prod");
    // Its old name is free, and another identifier is found for whoever takes it.
    let said = api.send(
        "POST",
        "/connections",
        json!({ "dialect": "postgres", "name": "warehouse", "host": "h", "username": "u" }),
    );
    assert_eq!(said.detail(), "the name `warehouse` is already in use");
    api.send("PATCH", &format!("/connections/{base}"), json!({ "aliases": null })).ok();
    let new = api
        .send(
            "POST",
            "/connections",
            json!({ "dialect": "postgres", "name": "warehouse", "host": "h", "username": "u" }),
        )
        .ok();
    assert_ne!(new["data"], json!(base));
    let said = api.send("PATCH", &format!("/connections/{base}"), json!({ "name": "warehouse" }));
    assert_eq!((said.status, said.detail().as_str()), (409, "Connection with name warehouse already exists"));
}

#[test]
fn a_new_user_logs_in_at_once_and_a_new_password_holds_at_once() {
    let api = Managed::start(&warehouse("", "", ""));
    let body =
        json!({ "name": "new", "passwordUnencrypted": "first", "attributes": { "environment": "prod" } });
    let id = api.send("POST", "/users", body).ok()["data"].as_str().unwrap().to_owned();
    let lands = |password: &str| api.pgusher.psql_with("new", password, &[], &["SELECT name FROM whoami"]);
    assert_eq!(lands("first").unwrap(), "prod");
    api.send("PATCH", &format!("/users/{id}"), json!({ "passwordUnencrypted": "second" })).ok();
    assert!(
        lands("first").unwrap_err().contains("password authentication failed") && lands("second").is_ok()
    );
    api.send("PATCH", &format!("/users/{id}"), json!({ "authType": "md5", "passwordUnencrypted": "third" }))
        .ok();
    assert_eq!(lands("third").unwrap(), "prod");
    // A verifier is taken as it is.
    let verifier = policy::verifier::ScramVerifier::derive("fourth", vec![7; 16], 4096).to_string();
    api.send("PATCH", &format!("/users/{id}"), json!({ "authType": null, "passwordUnencrypted": verifier }))
        .ok();
    assert_eq!(lands("fourth").unwrap(), "prod");
    api.send("PATCH", &format!("/users/{id}"), json!({ "disabled": true })).ok();
    assert!(lands("fourth").is_err());
    api.delete(&format!("/users/{id}")).ok();
    assert!(lands("fourth").unwrap_err().contains("password authentication failed"));
}

#[test]
fn resolving_planning_sessions_and_grants() {
    let api = Managed::start(&warehouse("audit_file = \"audit.jsonl\"", "", ""));
    let resolve = |query: &str| api.get(&format!("/resolve?{query}")).ok();
    let pete = resolve("user=pete&database=warehouse");
    assert_eq!(
        (&pete["environment"], &pete["connection"], &pete["production"], &pete["permitted"]),
        (&json!("prod"), &json!("warehouse_prod"), &json!(true), &json!(true))
    );
    assert_eq!(pete["reasons"][1], json!("environment = \"prod\" from user"));
    let refused = resolve("user=dana&database=warehouse&environment=prod");
    assert_eq!((&refused["permitted"], &refused["refused"]["code"]), (&json!(false), &json!("28000")));
    assert_eq!(resolve("user=dana&database=nowhere")["refused"]["code"], json!("3D000"));
    // A session is seen, found, and ended.
    let mut there = Raw::login(api.pgusher.address(), "rawprod");
    assert_eq!(there.value("SELECT current_database()"), "prod");
    let sessions = api.get("/sessions?user=rawprod").ok();
    assert_eq!((&sessions["total"], &sessions["sessions"][0]["environment"]), (&json!(1), &json!("prod")));
    assert_eq!(api.get("/sessions?environment=dev").ok()["total"], json!(0));
    // What a plan says: who, from where to where, whose sessions.
    let planned = api.send("POST", "/plan", json!({ "users": { "rawprod": { "auth_type": "trust", "attributes": { "environment": "dev" } }, "raw": { "auth_type": "trust", "attributes": { "environment": "prod" } } } })).ok();
    let rows = planned["plan"].as_array().unwrap();
    assert_eq!((&rows[0]["change"], &rows[0]["subject"]), (&json!("production"), &json!("raw on warehouse")));
    assert!(rows.iter().any(|row| row["change"] == "session" && row["subject"].as_str().unwrap().ends_with("of rawprod")), "{planned}");
    assert!(
        rows.iter().any(|row| row["subject"] == "dana on warehouse" && row["to"] == "no such user"),
        "{planned}"
    );
    assert_eq!((&planned["dryRun"], &planned["generation"]), (&json!(true), &json!(1)));
    let id = sessions["sessions"][0]["id"].as_u64().unwrap();
    assert_eq!(api.delete(&format!("/sessions/{id}")).ok()["session"]["user"], json!("rawprod"));
    assert_eq!(there.next().unwrap().field('C'), "57P01");
    eventually("it is gone", || api.delete(&format!("/sessions/{id}")).status == 404);
    // Granted for a while, and taken back at once; asked before what that would change, and by what was read.
    let wanted = json!({ "user": "raw", "environment": "prod", "for": "1h", "reason": "INC-7" });
    let none = api.get("/grants");
    let planned = api.send("POST", "/grants?dry_run=true", wanted.clone());
    assert_eq!((planned.status, &planned.json()["dryRun"]), (200, &json!(true)));
    let rows = planned.json()["plan"].to_string();
    assert!(
        rows.contains("raw on warehouse requesting prod") && rows.contains("prod (warehouse_prod)"),
        "{rows}"
    );
    assert_eq!(api.get("/grants").ok()["grants"], json!([]));
    assert_eq!(api.send_with("POST", "/grants", wanted, &[("if-match", "\"x\"")]).status, 412);
    let wanted = json!({ "user": "raw", "environment": "prod", "for": "1h", "reason": "INC-7" });
    let given = api.send_with("POST", "/grants", wanted, &[("if-match", none.tag())]);
    assert_eq!(given.status, 201);
    let lands = || {
        let pairs = [("user", "raw"), ("database", "warehouse"), ("pgusher.environment", "prod")];
        let mut raw = Raw::connect(api.pgusher.address());
        raw.send(&crate::wire::startup(0x0003_0000, &pairs));
        let is_in = raw.until_ready().iter().all(|m| m.tag != 'E');
        (is_in, raw)
    };
    let (is_in, mut raw) = lands();
    assert!(is_in);
    assert_eq!(api.get("/grants").ok()["grants"][0], given.json()["grant"]);
    assert_eq!(given.json()["grant"]["by"], json!("token ops"));
    let grant = given.json()["data"].as_str().unwrap().to_owned();
    let planned = api.delete(&format!("/grants/{grant}?dry_run=true")).ok();
    assert!(planned["plan"].as_array().unwrap().iter().any(|row| row["change"] == "session"), "{planned}");
    assert_eq!(api.get("/grants").ok()["grants"][0]["id"], json!(grant));
    assert_eq!(api.delete(&format!("/grants/{grant}")).ok()["grant"], given.json()["grant"]);
    assert_eq!(raw.next().unwrap().field('C'), "57P01");
    assert!(!lands().0);
    assert_eq!(api.delete(&format!("/grants/{grant}")).status, 404);
    for (body, status) in [
        (json!({ "user": "nobody", "environment": "prod", "for": "1h", "reason": "x" }), 404),
        (json!({ "user": "raw", "environment": "nowhere", "for": "1h", "reason": "x" }), 404),
        (json!({ "user": "raw", "environment": "prod", "for": "1 century", "reason": "x" }), 400),
        (json!({ "user": "raw", "environment": "prod", "for": "0s", "reason": "x" }), 400),
        (json!({ "user": "raw", "environment": "prod", "for": "1h" }), 400),
    ] {
        assert_eq!(api.send("POST", "/grants", body.clone()).status, status, "{body}");
    }
    // Of one database: its own grant, beside the one for all.
    let one = |database: Value| json!({ "user": "raw", "environment": "prod", "database": database, "for": "1h", "reason": "x" });
    let made = api.send("POST", "/grants", one(json!("warehouse"))).ok();
    assert_eq!(
        (&made["grant"]["database"], &made["grant"]["opens"]),
        (&json!("warehouse"), &json!(["warehouse"]))
    );
    let other = api.send("POST", "/grants", one(Value::Null)).ok();
    assert_eq!((&other["grant"]["database"], &other["data"]), (&Value::Null, &json!(grant)));
    assert_eq!(api.get("/grants").ok()["grants"].as_array().unwrap().len(), 2);
    assert_eq!(api.send("POST", "/grants", one(json!("nowhere"))).status, 404);
    // What is left opens the same: nothing would change.
    let planned = api.delete(&format!("/grants/{}?dry_run=true", made["data"].as_str().unwrap())).ok();
    assert_eq!(planned["plan"], json!([]));
    for id in [&made["data"], &other["data"]] {
        api.delete(&format!("/grants/{}", id.as_str().unwrap())).ok();
    }
    assert_eq!(api.get("/grants").ok()["grants"], json!([]));
    // The audit can be searched.
    eventually("it is told", || {
        let found = api.get("/audit?event=grant&q=INC-7%20raw").ok();
        found["events"].as_array().unwrap().len() == 1 && found["complete"] == json!(true)
    });
    assert_eq!(api.get("/audit?limit=2").ok()["events"].as_array().unwrap().len(), 2);
    // All at a glance.
    let overview = api.get("/overview").ok();
    let flow = |value: &str| {
        overview["flows"].as_array().unwrap().iter().find(|f| f["value"] == value).cloned().unwrap()
    };
    assert_eq!(
        (&flow("environment = prod")["connection"], &flow("environment = prod")["userCount"]),
        (&json!("warehouse_prod"), &json!(2))
    );
    assert_eq!(overview["pools"].as_array().unwrap().len(), 2);
    eventually("there is history", || {
        !api.get("/overview").ok()["pools"][0]["history"].as_array().unwrap().is_empty()
    });
}

#[test]
fn the_api_speaks_tls_as_clients_do() {
    let folder = temporary_folder("api-tls");
    let key = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(folder.join("c.pem"), key.cert.pem()).unwrap();
    write_private(&folder.join("k.pem"), &key.signing_key.serialize_pem());
    let tls = |mode: &str| {
        format!(
            "tls = {{ mode = \"{mode}\", certificate = \"{f}/c.pem\", key = \"{f}/k.pem\" }}",
            f = folder.display()
        )
    };
    for (mode, plain) in [("prefer", true), ("require", false)] {
        let port = free_port();
        let pgusher = Pgusher::start(&(warehouse(&tls(mode), "", "") + &section(port, MANY)));
        let curl = |url: String| {
            let output = Command::new("curl")
                .args(["-s", "--cacert"])
                .arg(folder.join("c.pem"))
                .args(["-H", &format!("Authorization: Bearer {ADMIN}"), &url])
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        // It listens a moment later than for clients.
        eventually(mode, || curl(format!("https://localhost:{port}/api/v1/users")).contains("\"pete\""));
        assert_eq!(
            curl(format!("http://localhost:{port}/api/v1/users")).contains("\"pete\""),
            plain,
            "{mode}"
        );
        // The command line, too.
        let desired = folder.join("desired.json");
        std::fs::write(&desired, json!({ "groups": { "g": {} } }).to_string()).unwrap();
        let apply = Command::new(env!("CARGO_BIN_EXE_pgusher"))
            .args(["apply", "--url", &format!("https://localhost:{port}"), "--cacert"])
            .arg(folder.join("c.pem"))
            .arg(&desired)
            .env("PGUSHER_TOKEN", ADMIN)
            .output()
            .unwrap();
        assert!(apply.status.success(), "{apply:?}");
        drop(pgusher);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// What `pgusher apply` prints, and its exit status.
fn apply(api: &Managed, file: &std::path::Path, more: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pgusher"))
        .args(["apply", "--url", &format!("http://127.0.0.1:{}", api.port)])
        .args(more)
        .arg(file)
        .env("PGUSHER_TOKEN", ADMIN)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn applying_says_what_it_does_does_it_and_the_second_time_nothing() {
    let api = Managed::start(&warehouse("", "# ours", ""));
    let pair = crate::house::pair();
    let desired = api.pgusher.folder.join("desired.toml");
    let connections = |values: &str, password: &str| {
        format!(
            r#"
[connections.warehouse]
host = "127.0.0.1"
port = {dev}
database = "dev"
username = "app"
password = "{password}"
user_attribute = "environment"
default_values = ["dev"]
environments = [{{ connection = "warehouse_prod", name = "prod", values = {values} }}]

[connections.warehouse_prod]
host = "127.0.0.1"
port = {prod}
database = "prod"
username = "app"
production = true
"#,
            dev = pair.dev.port,
            prod = pair.prod.port
        )
    };
    let users = "\n[users.pete]\npassword = \"pete\"\nattributes = { environment = \"prod\" }\n\n[users.zoe]\npassword = \"zoe\"\nattributes = { environment = \"live\" }\n";
    std::fs::write(&desired, connections("[\"prod\", \"live\"]", "secret-1") + users).unwrap();
    let no_change = |file: &std::path::Path| {
        let (code, text) = apply(&api, file, &[]);
        assert!(code == 0 && text.starts_with("No change.\n"), "{text}");
    };
    let before = api.text();
    let (code, text) = apply(&api, &desired, &["--dry-run"]);
    assert_eq!(code, 2, "{text}");
    assert_eq!(api.text(), before);
    let (code, text) = apply(&api, &desired, &[]);
    assert_eq!(code, 0, "{text}");
    for line in [
        "production  zoe on warehouse",
        "route       dana on warehouse",
        "no such user",
        "Applied: generation 2 is in force.",
    ] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    assert!(!text.contains("secret-1"));
    let file = api.text();
    assert!(!file.contains("secret-1") && !file.contains("\"zoe\"") && !file.contains("dana"), "{file}");
    assert!(file.contains("# ours") && file.contains("[management.tokens.ops]"), "{file}");
    for _ in 0..2 {
        no_change(&desired);
    }
    assert_eq!(api.pgusher.psql("zoe", "SELECT name FROM whoami").unwrap(), "prod");
    // As JSON, and only one kind: the others stay.
    let json_file = api.pgusher.folder.join("desired.json");
    let groups = json!({ "groups": { "g": { "attributes": { "environment": ["prod"] } } } });
    std::fs::write(&json_file, groups.to_string()).unwrap();
    let (code, text) = apply(&api, &json_file, &[]);
    assert!(code == 0 && text.contains("generation 3"), "{text}");
    no_change(&json_file);
    no_change(&desired);
    // A password that is read back as *** stays as it is; another one is a change.
    let shown = api.get("/config").ok()["toml"].as_str().unwrap().to_owned();
    std::fs::write(&desired, &shown).unwrap();
    no_change(&desired);
    std::fs::write(&desired, connections("[\"prod\", \"live\"]", "secret-2") + users).unwrap();
    let (code, text) = apply(&api, &desired, &[]);
    assert!(code == 0 && text.contains("password of connection warehouse"), "{text}");
    // Whoever would fall back must be wanted to.
    std::fs::write(&desired, connections("[\"prod\"]", "secret-2") + users).unwrap();
    let (code, text) = apply(&api, &desired, &[]);
    assert!(code == 1 && text.contains("--accept-fallback"), "{text}");
    // For programs, one object, whatever comes of it.
    for (arguments, code, applied) in
        [(vec!["--json"], 1, false), (vec!["--json", "--dry-run", "--accept-fallback"], 2, false)]
    {
        let (was, text) = apply(&api, &desired, &arguments);
        let object: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(
            (was, &object["applied"], &object["changed"]),
            (code, &json!(applied), &json!(true)),
            "{text}"
        );
        assert!(object["plan"].as_array().unwrap().iter().any(|row| row["change"] == "fallback"), "{text}");
    }
    let (code, text) = apply(&api, &desired, &["--accept-fallback"]);
    assert!(code == 0 && text.contains("fallback    zoe on warehouse"), "{text}");
    let (code, text) = apply(&api, &desired, &["--json"]);
    let object: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((code, &object["applied"], &object["changed"]), (0, &json!(false), &json!(false)), "{text}");
    // What is wrong is said, and nothing is done.
    let before = api.text();
    for (text, why) in [
        ("[server]\nlisten = [\"127.0.0.1:1\"]\n", "server: it would change"),
        ("[management]\nlisten = \"127.0.0.1:1\"\n", "management: it would change"),
        ("[users.x]\npassword = \"***\"\n", "`***` stands for no password"),
        ("[users.x]\npasword = \"hunter2\"\n", "unknown key `pasword`"),
        ("[user.x]\n", "user: Unrecognized key"),
        ("[users.x\n", "Invalid TOML: line 1"),
        ("users = 5\n", "users: Expected tables"),
        ("", "Empty request body"),
    ] {
        std::fs::write(&desired, text).unwrap();
        let (code, said) = apply(&api, &desired, &[]);
        assert!(code == 1 && said.contains(why), "{text}: {said}");
        assert!(!said.contains("hunter2"));
    }
    assert_eq!(api.text(), before);
    let output = Command::new(env!("CARGO_BIN_EXE_pgusher"))
        .arg("apply")
        .arg(&desired)
        .env_remove("PGUSHER_TOKEN")
        .output();
    assert!(String::from_utf8_lossy(&output.unwrap().stderr).contains("there is no token"));
}

#[test]
fn the_doctor_says_by_the_api_what_it_says_on_the_command_line() {
    let api = Managed::start(&warehouse("", "", ""));
    let findings = api.send("POST", "/doctor", json!({})).ok();
    let said: Vec<String> = findings["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| format!("{} {}", one["subject"].as_str().unwrap(), one["text"].as_str().unwrap()))
        .collect();
    let output =
        Command::new(env!("CARGO_BIN_EXE_pgusher")).args(["doctor", "--json"]).arg(api.file()).output();
    let there: Vec<Value> = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    for one in &there {
        let subject = one["subject"].as_str().unwrap();
        assert!(said.iter().any(|line| line.starts_with(subject)), "no {subject} in {said:?}");
    }
    assert_eq!(said.len(), there.len());
    // One at a time, and what is wrong with the file is said as a reload says it.
    std::fs::write(api.file(), api.text() + "nothing = 1\n").unwrap();
    let refused = api.send("POST", "/doctor", json!({}));
    assert!(refused.status >= 400 && refused.detail().contains("unknown key `nothing`"), "{refused:?}");
}
