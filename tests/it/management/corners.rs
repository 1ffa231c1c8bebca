//! Corners: odd but valid files, what a reader may see of them, what a caller may not name, and who may hold up whom.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ADMIN, MANY, Managed, READER, section};
use crate::house::{Pgusher, eventually, free_port, warehouse};

fn as_reader(api: &Managed, path: &str) -> String {
    api.call("GET", path, &[("authorization", &format!("Bearer {READER}"))], "").text
}

#[test]
fn a_reader_sees_no_secret_in_whatever_form_it_stands() {
    let more = "\n# the old one: hunter1\n[connections.d] # hunter2\nhost = \"h\"\nusername = \"u\"\npassword.command = [\"echo\", \"hunter3\"]\n\
        \n[users.v]\n[users.v.password]\ncommand = [\"echo\", \"hunter4\"]\n\n[management.tokens.dotted]\ntoken.command = [\"echo\", \"hunter5-0123456789\"]\n";
    let port = free_port();
    let api = Managed::on(Pgusher::start(&(warehouse("", "", "") + &section(port, MANY) + more)), port);
    for path in ["/config", "/generations/1", "/connections", "/users", "/overview"] {
        let said = as_reader(&api, path);
        assert!(!said.contains("hunter") && said.len() > 100, "{path}: {said}");
    }
    // What is read so can be applied, and changes nothing.
    let toml = api.get("/config").ok()["toml"].as_str().unwrap().to_owned();
    let authorization = format!("Bearer {ADMIN}");
    let headers = [("authorization", authorization.as_str()), ("content-type", "application/toml")];
    assert_eq!(api.call("PUT", "/config", &headers, &toml).ok()["changed"], json!(false));
}

#[test]
fn files_of_the_machine_are_not_read_for_a_caller() {
    let api = Managed::start(&warehouse("", "", "sslrootcert = \"ca.pem\"\nsslmode = \"disable\""));
    for (key, path) in [("sslrootcert", "/etc/passwd"), ("sslcert", "/dev/zero"), ("sslkey", "/nowhere")] {
        let mut connection = json!({ "host": "h", "username": "u", "sslmode": "verify-full" });
        connection[key] = json!(path);
        let said = api.send("PUT", "/config?dry_run=true", json!({ "connections": { "x": connection } }));
        assert_eq!(said.status, 400);
        let expected =
            format!("Bad Request: connections.x.{key}: a file that the configuration does not name yet");
        assert!(said.detail().starts_with(&expected), "{said:?}");
    }
}

#[test]
fn somebody_who_locks_the_folder_holds_up_nobody_and_another_writer_only_a_while() {
    let api = Managed::start(&warehouse("", "", ""));
    let lock = |path: &std::path::Path| {
        let mut child = Command::new("flock").arg(path).args(["sleep", "30"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none());
        child
    };
    let end = |mut child: std::process::Child| {
        let _ = Command::new("pkill").args(["-P", &child.id().to_string()]).status();
        let _ = child.kill();
        let _ = child.wait();
    };
    let folder = lock(&api.pgusher.folder);
    api.send("POST", "/groups", json!({ "name": "a" })).ok();
    end(folder);
    let writer = lock(&api.pgusher.folder.join("pgusher.toml.lock"));
    let begun = Instant::now();
    let said = api.send("POST", "/groups", json!({ "name": "b" }));
    assert_eq!(said.status, 409);
    assert!(
        said.detail().ends_with("is being written by another process")
            && begun.elapsed() < Duration::from_secs(10)
    );
    // A reload, and a grant, do not wait for it.
    let grant = json!({ "user": "raw", "environment": "prod", "for": "1h", "reason": "x" });
    assert_eq!(api.send("POST", "/grants", grant).status, 201);
    assert_eq!(api.send("POST", "/reload", json!({})).ok()["generation"], json!(3));
    end(writer);
    api.send("POST", "/groups", json!({ "name": "b" })).ok();
}

#[test]
fn what_else_stands_in_the_folder_of_secrets_stays() {
    let api = Managed::start(&warehouse("", "", ""));
    let folder = api.pgusher.folder.join("pgusher.toml.secrets");
    std::fs::create_dir(&folder).unwrap();
    let others = ["mine.secret", "0bad0bad-11111111-2222-4333-8444-555555555555-0123456789abcdef.secret"];
    others.iter().for_each(|name| std::fs::write(folder.join(name), "x").unwrap());
    for n in 0..15 {
        let body = json!({ "dialect": "postgres", "name": format!("c{n}"), "host": "h", "username": "u", "passwordUnencrypted": "p" });
        let id = api.send("POST", "/connections", body).ok()["data"].as_str().unwrap().to_owned();
        api.delete(&format!("/connections/{id}")).ok();
    }
    assert!(others.iter().all(|name| folder.join(name).exists()));
    // Of ours, those that can still be gone back to.
    assert!(folder.read_dir().unwrap().count() <= 2 + 6);
}

#[test]
fn going_back_does_not_bring_back_a_token() {
    let port = free_port();
    let config = warehouse("", "", "") + &section(port, MANY);
    let old = "\n[management.tokens.old]\ntoken = \"stolen-0123456789\"\nrole = \"admin\"\n";
    let api = Managed::on(Pgusher::start(&(config.clone() + old)), port);
    api.send("POST", "/groups", json!({ "name": "g" })).ok();
    let with_group = api.text();
    let without = with_group.replace(old, "");
    std::fs::write(api.file(), &without).unwrap();
    api.send("POST", "/reload", json!({})).ok();
    let status = || api.call("GET", "/users", &[("authorization", "Bearer stolen-0123456789")], "").status;
    assert_eq!(status(), 401);
    let wrong = api.send_with("POST", "/generations/1/rollback", json!({}), &[("if-match", "\"nope\"")]);
    assert_eq!(wrong.status, 412);
    assert_eq!(api.send_with("POST", "/reload", json!({}), &[("if-match", "\"nope\"")]).status, 412);
    let tag = api.get("/config").tag().to_owned();
    api.send_with("POST", "/generations/1/rollback", json!({}), &[("if-match", &tag)]).ok();
    assert_eq!((status(), api.get("/groups").ok()["groups"].clone()), (401, json!([])));
    assert!(!api.text().contains("stolen"));
}

#[test]
fn those_who_say_nothing_make_room() {
    let api = Managed::start(&warehouse("", "", ""));
    let idle: Vec<_> = (0..150).map(|_| TcpStream::connect(("127.0.0.1", api.port)).unwrap()).collect();
    let mut asked: Vec<_> = (0..150).map(|_| TcpStream::connect(("127.0.0.1", api.port)).unwrap()).collect();
    for stream in &mut asked {
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    let begun = Instant::now();
    for _ in 0..5 {
        assert_eq!(api.get("/users").status, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop((idle, asked));
}

#[test]
fn production_is_opened_to_nobody_by_pointing_another_connection_at_it() {
    let api = Managed::start(&warehouse("", "", ""));
    let base = api.id("connections", "warehouse");
    let before = api.text();
    let pointed = json!({ "port": crate::house::pair().prod.port, "database": "prod" });
    let said = api.send("PATCH", &format!("/connections/{base}"), pointed);
    assert_eq!(said.status, 400, "{said:?}");
    assert!(said.detail().contains("`warehouse` is the production database of `warehouse_prod`"), "{said:?}");
    assert_eq!(api.text(), before);
    // To take the label away is said, and in which direction.
    let prod = api.id("connections", "warehouse_prod");
    let planned =
        api.send("PATCH", &format!("/connections/{prod}?dry_run=true"), json!({ "production": false })).ok();
    let row =
        planned["plan"].as_array().unwrap().iter().find(|row| row["subject"] == "connection warehouse_prod");
    let row = row.unwrap_or_else(|| panic!("{planned}"));
    assert_eq!(
        (&row["change"], &row["from"], &row["to"]),
        (&json!("production"), &json!("production: true"), &json!("production: false"))
    );
}

#[test]
fn production_is_opened_to_nobody_by_a_deletion() {
    let api = Managed::start(&warehouse("", "", ""));
    let prod = api.id("connections", "warehouse_prod");
    let resolve = || api.get("/resolve?user=dana&database=warehouse_prod").ok()["permitted"].clone();
    assert_eq!(resolve(), json!(false));
    let base = api.id("connections", "warehouse");
    for path in [format!("/connection-environments/{prod}"), format!("/connections/{base}?drain=true")] {
        let said = api.delete(&path);
        assert_eq!(said.status, 409, "{said:?}");
        assert!(
            said.detail().contains("would newly reach a production database (allow_production=true"),
            "{said:?}"
        );
    }
    assert_eq!(resolve(), json!(false));
    let said = api.delete(&format!("/connection-environments/{prod}?allow_production=true"));
    assert_eq!(said.status, 200, "{said:?}");
    assert_eq!(resolve(), json!(true));
}

#[test]
fn applying_twice_changes_once_whatever_the_password_and_keeps_identifiers() {
    let api = Managed::start(&warehouse("", "", ""));
    let mut users = json!({
        "scram": { "password": "secret-1" },
        "md5": { "password": "secret-2", "auth_type": "md5" },
        "clear": { "password": "secret-3", "auth_type": "password" },
        "raw": { "auth_type": "trust" },
    });
    let apply = |users: &Value| {
        let answer = api.send("PUT", "/config", json!({ "users": users })).ok();
        (answer["changed"].as_bool().unwrap(), answer["generation"].as_u64().unwrap())
    };
    assert_eq!((apply(&users), apply(&users), apply(&users)), ((true, 2), (false, 2), (false, 2)));
    let file = api.text();
    assert!(!file.contains("secret-"), "{file}");
    // Without its auth_type, a user is a user of SCRAM: a verifier is enough, at once.
    users["md5"].as_object_mut().unwrap().remove("auth_type");
    assert_eq!((apply(&users), apply(&users)), ((true, 3), (false, 3)));
    let clear = api.id("users", "clear");
    api.send(
        "PATCH",
        &format!("/users/{clear}"),
        json!({ "authType": null, "passwordUnencrypted": "secret-4" }),
    )
    .ok();
    assert_eq!(api.text().matches("SCRAM-SHA-256$").count(), 3);
    // Connections that were renamed stay who they are.
    let connection = |host: &str| json!({ "host": host, "username": "u" });
    api.send("PUT", "/config", json!({ "connections": { "a": connection("one") } })).ok();
    let first = api.id("connections", "a");
    api.send("PATCH", &format!("/connections/{first}"), json!({ "name": "z" })).ok();
    let both = json!({ "connections": { "a": connection("two"), "z": connection("one") } });
    assert_eq!(api.send("PUT", "/config", both.clone()).ok()["changed"], json!(true));
    assert_eq!(api.send("PUT", "/config", both).ok()["changed"], json!(false));
    assert_eq!(api.id("connections", "z"), first);
    assert_ne!(api.id("connections", "a"), first);
    // The same password again is no change.
    let patch = |password: &str| {
        api.send("PATCH", &format!("/connections/{first}"), json!({ "passwordUnencrypted": password })).ok()["changed"].clone()
    };
    assert_eq!((patch("p"), patch("p"), patch("q")), (json!(true), json!(false), json!(true)));
    // What the API does not change it does not seem to change.
    let toml = format!(
        "[management.tokens.ops]\ntoken = \"brand-new-0123456789\"\nrole = \"admin\"\n[management.tokens.looker]\ntoken = \"***\"\n[management]\nlisten = \"127.0.0.1:{}\"\n{MANY}\n",
        api.port
    );
    let authorization = format!("Bearer {ADMIN}");
    let headers = [("authorization", authorization.as_str()), ("content-type", "application/toml")];
    let said = api.call("PUT", "/config", &headers, &toml);
    assert!(said.detail().starts_with("Bad Request: management: it would change"), "{said:?}");
    assert_eq!(
        api.call("PUT", "/config", &headers, &toml.replace("brand-new-0123456789", "***")).ok()["changed"],
        json!(false)
    );
}

#[test]
fn line_ends_stay_and_the_machines_mistakes_are_not_the_callers() {
    let api = Managed::start(&warehouse("", "", ""));
    let windows = format!("\u{feff}{}", api.text().replace('\n', "\r\n"));
    std::fs::write(api.file(), &windows).unwrap();
    api.send("POST", "/reload", json!({})).ok();
    let group = api.send("POST", "/groups", json!({ "name": "g" })).ok()["data"].as_str().unwrap().to_owned();
    assert!(api.text().contains("\r\n[groups.g]\r\n") && api.text().starts_with('\u{feff}'));
    assert!(!api.text().replace("\r\n", "").contains('\n'));
    api.delete(&format!("/groups/{group}")).ok();
    assert_eq!(api.text().trim_end(), windows.trim_end());
    // A word of a message decides nothing.
    let said =
        api.send("POST", "/users", json!({ "name": "u", "passwordUnencrypted": "p", "groups": ["already"] }));
    assert_eq!((said.status, said.detail().contains("there is no group `already`")), (400, true));
    // A secret that has gone missing is nobody's bad request.
    let body = json!({ "dialect": "postgres", "name": "c", "host": "h", "username": "u", "passwordUnencrypted": "p" });
    api.send("POST", "/connections", body).ok();
    let secrets = api.pgusher.folder.join("pgusher.toml.secrets");
    secrets.read_dir().unwrap().for_each(|entry| std::fs::remove_file(entry.unwrap().path()).unwrap());
    let said = api.send("POST", "/groups", json!({ "name": "h" }));
    assert_eq!(said.status, 409);
    assert!(said.detail().starts_with("the configuration in force cannot be loaded any more"), "{said:?}");
}

/// Also of a large audit, with little memory.
#[test]
fn the_audit_is_searched_from_its_end() {
    let api = Managed::start(&warehouse("audit_file = \"audit.jsonl\"", "", ""));
    eventually("there is an audit", || api.pgusher.folder.join("audit.jsonl").exists());
    let line = format!(
        "{{\"at\":\"2026-11-27T00:00:00Z\",\"event\":\"filler\",\"user\":\"x\",\"text\":\"{}\"}}\n",
        "y".repeat(300)
    );
    let mut text = "{\"at\":\"2026-11-27T00:00:00Z\",\"event\":\"first\",\"user\":\"needle\"}\n".to_owned();
    text.push_str(&line.repeat(100_000));
    std::fs::write(api.pgusher.folder.join("audit.jsonl.1"), text).unwrap();
    let before = api.pgusher.resident();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let found = api.get("/audit?q=needle%20FIRST&event=first").ok();
                assert_eq!(
                    (found["events"].as_array().unwrap().len(), &found["complete"]),
                    (1, &json!(true))
                );
            });
        }
    });
    let grown = api.pgusher.most_resident() - before;
    assert!(grown < 60_000, "{grown} KiB");
    assert_eq!(api.get("/audit?event=filler&limit=500").ok()["events"].as_array().unwrap().len(), 500);
}
