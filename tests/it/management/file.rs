//! One file is the truth: edited where it stands, whole at every instant, never over somebody else's edit.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use super::{ADMIN, MANY, Managed, section};
use crate::house::{Pgusher, Random, eventually, free_port, size, warehouse};
use crate::state::done;

#[test]
fn what_is_not_meant_stays_byte_for_byte_and_the_write_is_in_force_when_it_is_answered() {
    let config = warehouse("# comment of the server", "# comment of the base", "# comment of prod")
        .replace("[users.pete]\n", "# about pete\n[users.pete] # here\n");
    let api = Managed::start(&config);
    let before = api.text();
    std::fs::set_permissions(api.file(), std::fs::Permissions::from_mode(0o640)).unwrap();
    let pete = api.id("users", "pete");
    // In force for a login that follows at once, each time.
    for (value, lands) in [("dev", "dev"), ("prod", "prod"), ("dev", "dev"), ("prod", "prod")] {
        api.send("PATCH", &format!("/users/{pete}"), json!({ "attributes": { "environment": value } })).ok();
        assert_eq!(api.pgusher.psql("pete", "SELECT name FROM whoami").unwrap(), lands);
    }
    assert_eq!(api.text(), before);
    assert_eq!(api.file().metadata().unwrap().permissions().mode() & 0o777, 0o640);
    let answer = api.send("PATCH", &format!("/users/{pete}"), json!({ "maxClientConnections": 5 })).ok();
    assert_eq!(answer["generation"], json!(6));
    let expected = before.replace(
        "attributes = { environment = \"prod\" }\n\n[users.nora]",
        "attributes = { environment = \"prod\" }\nmax_client_connections = 5\n\n[users.nora]",
    );
    assert_eq!(api.text(), expected);
    // What changes nothing makes no generation.
    let answer = api.send("PATCH", &format!("/users/{pete}"), json!({ "maxClientConnections": 5 })).ok();
    assert_eq!((&answer["generation"], &answer["changed"]), (&json!(6), &json!(false)));
}

#[test]
fn an_edit_by_hand_is_never_overwritten() {
    let api = Managed::start(&warehouse("", "", ""));
    let edited = api.text().replace("[users.nora]", "# by hand\n[users.nora]");
    std::fs::write(api.file(), &edited).unwrap();
    let body = json!({ "name": "new", "passwordUnencrypted": "p" });
    for path in ["/users", "/users?dry_run=true"] {
        let said = api.send("POST", path, body.clone());
        assert_eq!(said.status, 409);
        assert!(said.detail().contains("differs from the running configuration: it was edited"), "{said:?}");
    }
    assert_eq!(api.text(), edited);
    // What a reload would do may be asked before.
    let planned = api.send("POST", "/reload?dry_run=true", json!({})).ok();
    assert_eq!(
        (&planned["generation"], &planned["dryRun"], &planned["plan"]),
        (&json!(1), &json!(true), &json!([]))
    );
    assert_eq!(api.send("POST", "/reload", json!({})).ok()["generation"], json!(2));
    api.send("POST", "/users", body).ok();
    assert!(api.text().contains("# by hand") && api.text().contains("[users.new]"));
    // Of a file that is wrong, every place is told, and the one in force stays.
    let good = api.text();
    std::fs::write(api.file(), good.replace("[users.nora]", "[users.nora]\nx = 1")).unwrap();
    let said = api.send("POST", "/reload", json!({}));
    assert_eq!(said.status, 409);
    assert!(said.detail().contains("pgusher.toml:") && said.detail().contains("unknown key `x`"), "{said:?}");
    std::fs::write(api.file(), good).unwrap();
    assert_eq!(api.send("POST", "/reload", json!({})).ok()["generation"], json!(4));
}

#[test]
fn a_file_that_is_read_only_is_said_to_be() {
    let api = Managed::start(&warehouse("", "", ""));
    let before = api.text();
    std::fs::set_permissions(api.file(), std::fs::Permissions::from_mode(0o444)).unwrap();
    let body = json!({ "name": "new", "passwordUnencrypted": "p" });
    let said = api.send("POST", "/users", body.clone());
    assert_eq!(said.status, 409);
    assert!(said.detail().ends_with("pgusher.toml is read-only"), "{said:?}");
    // What would change may be asked all the same.
    assert_eq!(api.send("POST", "/users?dry_run=true", body).status, 200);
    assert_eq!(api.text(), before);
    assert_eq!(api.get("/generations").ok()["generations"][0]["number"], json!(1));
}

#[test]
fn an_edition_that_was_changed_meanwhile_is_not_overwritten() {
    let api = Managed::start(&warehouse("", "", ""));
    let pete = format!("/users/{}", api.id("users", "pete"));
    let (first, all) = (api.get(&pete), api.get("/users"));
    let tag = first.tag().to_owned();
    assert_eq!(api.get(&pete).tag(), tag);
    assert_eq!(
        api.call("GET", &pete, &[("authorization", &format!("Bearer {ADMIN}")), ("if-none-match", &tag)], "")
            .status,
        304
    );
    let said = api.send_with("PATCH", &pete, json!({ "disabled": true }), &[("if-match", &tag)]);
    assert_eq!(said.status, 200);
    let second = said.tag().to_owned();
    assert_ne!(second, tag);
    assert_eq!(api.get(&pete).tag(), second);
    let said = api.send_with("PATCH", &pete, json!({ "disabled": false }), &[("if-match", &tag)]);
    assert_eq!(
        (said.status, said.detail().as_str()),
        (412, "it was changed meanwhile: read it again (If-Match)")
    );
    // A new password is a new edition, though nothing of it is shown.
    let said =
        api.send_with("PATCH", &pete, json!({ "passwordUnencrypted": "new" }), &[("if-match", &second)]);
    assert_eq!(said.status, 200);
    assert_ne!(said.tag(), second);
    for wrong in ["\"x\"", &format!("W/{}", said.tag()), ""] {
        assert_eq!(api.send_with("PATCH", &pete, json!({}), &[("if-match", wrong)]).status, 412, "{wrong}");
    }
    let both = format!("\"x\", {}", said.tag());
    assert_eq!(api.send_with("PATCH", &pete, json!({}), &[("if-match", &both)]).status, 200);
    assert_eq!(api.send_with("PATCH", &pete, json!({}), &[("if-match", "*")]).status, 200);
    // A collection has its tag, too: a creation by what was read.
    let body = json!({ "name": "new", "passwordUnencrypted": "p" });
    assert_eq!(api.send_with("POST", "/users", body.clone(), &[("if-match", all.tag())]).status, 412);
    assert_eq!(api.send_with("POST", "/users", body, &[("if-match", api.get("/users").tag())]).status, 201);
    let deleted =
        api.call("DELETE", &pete, &[("authorization", &format!("Bearer {ADMIN}")), ("if-match", &tag)], "");
    assert_eq!(deleted.status, 412);
}

/// A thousand writers at once: each is answered; of those who want the same one wins; none is lost, and the file is whole.
#[test]
fn a_thousand_writers_at_once_lose_nothing() {
    let api = Managed::start(&warehouse("", "", ""));
    let (won, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let pete = format!("/users/{}", api.id("users", "pete"));
    let tag = api.get(&pete).tag().to_owned();
    let (first, late) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let count = 1000;
    // Each of them is a caller of its own, and they come at the same time.
    let together = std::sync::Barrier::new(count);
    std::thread::scope(|scope| {
        for n in 0..count {
            let (won, lost, first, late, pete, tag) = (&won, &lost, &first, &late, &pete, &tag);
            let (together, port, patience) = (&together, api.port, Duration::from_secs(60));
            let work = move || {
                let config =
                    ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(patience));
                let agent: ureq::Agent = config.build().into();
                let authorization = format!("Bearer {ADMIN}");
                let url = |path: &str| format!("http://127.0.0.1:{port}/api/v1{path}");
                together.wait();
                // Ten each want the same name; every twentieth wants to change the same user.
                let body = json!({ "name": format!("g{}", n / 10), "attributes": { "environment": "dev" } });
                let made =
                    agent.post(&url("/groups")).header("authorization", &authorization).send_json(&body);
                match made.unwrap().status().as_u16() {
                    201 => won.fetch_add(1, Ordering::Relaxed),
                    409 => lost.fetch_add(1, Ordering::Relaxed),
                    other => panic!("{other}"),
                };
                if n % 20 == 0 {
                    let change = agent.patch(&url(pete)).header("authorization", &authorization);
                    let change =
                        change.header("if-match", tag).send_json(json!({ "maxClientConnections": n + 1 }));
                    match change.unwrap().status().as_u16() {
                        200 => first.fetch_add(1, Ordering::Relaxed),
                        412 => late.fetch_add(1, Ordering::Relaxed),
                        other => panic!("{other}"),
                    };
                }
            };
            std::thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work).unwrap();
        }
    });
    assert_eq!((won.into_inner(), lost.into_inner()), (count / 10, count - count / 10));
    assert_eq!((first.into_inner(), late.into_inner()), (1, 49));
    let groups = api.get("/groups").ok();
    let names: BTreeSet<_> =
        groups["groups"].as_array().unwrap().iter().map(|g| g["name"].to_string()).collect();
    assert_eq!(names.len(), count / 10);
    let check = Command::new(env!("CARGO_BIN_EXE_pgusher")).arg("check").arg(api.file()).output().unwrap();
    assert!(check.status.success());
    assert_eq!(api.get("/generations").ok()["generations"][0]["number"], json!(1 + count / 10 + 1));
}

/// Killed at any instant, the old file or the new one is there, whole, with its secrets; and what was answered is in it.
#[test]
fn a_kill_at_any_instant_leaves_a_whole_file() {
    let port = free_port();
    let mut random = Random(0x5eed_f11e);
    let mut api = Managed::on(Pgusher::start(&(warehouse("", "", "") + &section(port, MANY))), port);
    let rounds = size(12, 200);
    for round in 0..rounds {
        let answered = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let (answered, port) = (&answered, api.port);
                scope.spawn(move || {
                    for n in 0.. {
                        let name = format!("c{round}-{writer}-{n}");
                        let body = json!({ "dialect": "postgres", "name": name, "host": "h", "username": "u", "passwordUnencrypted": name });
                        let output = Command::new("curl")
                            .args(["-s", "-X", "POST", &format!("http://127.0.0.1:{port}/api/v1/connections")])
                            .args(["-H", &format!("Authorization: Bearer {ADMIN}"), "-H", "Content-Type: application/json"])
                            .args(["-d", &body.to_string()])
                            .output()
                            .unwrap();
                        match serde_json::from_slice::<serde_json::Value>(&output.stdout) {
                            Ok(answer) if answer["success"] == json!(true) => answered.lock().unwrap().push(name),
                            _ => return,
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_micros(random.below(200_000) as u64));
            api.pgusher.signal("KILL");
        });
        api.pgusher.child.wait().unwrap();
        let text = api.text();
        let check =
            Command::new(env!("CARGO_BIN_EXE_pgusher")).arg("check").arg(api.file()).output().unwrap();
        assert!(check.status.success(), "{}\n{text}", String::from_utf8_lossy(&check.stderr));
        let Managed { mut pgusher, port, .. } = api;
        pgusher.start_again(&text);
        api = Managed::on(pgusher, port);
        let there = api.get("/connections").text;
        for name in answered.into_inner().unwrap() {
            assert!(there.contains(&format!("\"{name}\"")), "{name} was answered, and is not there");
        }
    }
    // Secrets that no configuration knows, left by a kill, are gone with the next writes.
    for n in 0..12 {
        let body = json!({ "name": format!("g{n}") });
        api.send("POST", "/groups", body).ok();
    }
    let connections = api.get("/connections").ok()["connections"].as_array().unwrap().len() - 2;
    let secrets = api.pgusher.folder.join("pgusher.toml.secrets").read_dir().unwrap().count();
    assert_eq!(secrets, connections);
}

#[test]
fn a_rollback_writes_the_file_and_an_earlier_password_is_still_there() {
    let api = Managed::start(&warehouse("", "", "").replace(
        "[users.raw]",
        "[users.operator]\nauth_type = \"trust\"\nconsole = \"admin\"\n\n[users.raw]",
    ));
    let original = api.text();
    let body = json!({ "dialect": "postgres", "name": "c", "host": "h", "username": "u", "passwordUnencrypted": "one" });
    let id = api.send("POST", "/connections", body).ok()["data"].as_str().unwrap().to_owned();
    let second = api.text();
    api.send("PATCH", &format!("/connections/{id}"), json!({ "passwordUnencrypted": "two" })).ok();
    let list = api.get("/generations").ok();
    let states: Vec<_> = list["generations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| (g["number"].as_u64().unwrap(), g["state"].as_str().unwrap(), g["by"].as_str().unwrap()))
        .collect();
    assert_eq!(
        states,
        [(3, "in force", "token ops"), (2, "replaced", "token ops"), (1, "replaced", "start")]
    );
    let planned = api.send("POST", "/generations/2/rollback?dry_run=true", json!({})).ok();
    assert_eq!(planned["plan"][0]["subject"], json!("password of connection c"));
    assert_ne!(api.text(), second);
    assert_eq!(api.send("POST", "/generations/2/rollback", json!({})).ok()["generation"], json!(4));
    assert_eq!(api.text(), second);
    assert_eq!(api.send("POST", "/generations/1/rollback", json!({})).ok()["generation"], json!(5));
    assert_eq!(api.text(), original);
    // The console's goes back without the file; then the API wants the two to agree.
    done(&mut crate::console::console(&api.pgusher, "operator"), "ROLLBACK CONFIG");
    assert_eq!(api.send("POST", "/groups", json!({ "name": "g" })).status, 409);
    assert_eq!(api.send("POST", "/reload", json!({})).ok()["generation"], json!(7));
    api.send("POST", "/groups", json!({ "name": "g" })).ok();
    eventually("it is seen", || api.text().contains("[groups.g]"));
}

#[test]
fn secrets_may_stand_in_the_file_or_in_another_folder() {
    let body = json!({ "dialect": "postgres", "name": "c", "host": "h", "username": "u", "passwordUnencrypted": "secret" });
    let api = Managed::start_with(&warehouse("", "", ""), "secrets = \"inline\"");
    api.send("POST", "/connections", body.clone()).ok();
    assert!(
        api.text().contains("password = \"secret\"")
            && !api.pgusher.folder.join("pgusher.toml.secrets").exists()
    );
    let api = Managed::start_with(&warehouse("", "", ""), "secrets_folder = \"elsewhere/deep\"");
    api.send("POST", "/connections", body).ok();
    assert!(api.text().contains("password = { file = \"elsewhere/deep/"), "{}", api.text());
    let secret =
        api.pgusher.folder.join("elsewhere/deep").read_dir().unwrap().next().unwrap().unwrap().path();
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "secret");
    // A reload finds it where it is.
    assert_eq!(api.send("POST", "/reload", json!({})).ok()["generation"], json!(3));
}
