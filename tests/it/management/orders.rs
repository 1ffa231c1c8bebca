//! What the console orders, ordered by the API; sessions that are found and ended there, however many there are.

use serde_json::{Value, json};

use super::Managed;
use crate::console::{cell, console};
use crate::house::{eventually, warehouse};
use crate::wire::{Raw, query};

const OPERATOR: &str = "\n[users.operator]\nauth_type = \"trust\"\nconsole = \"admin\"\n";

#[test]
fn an_environment_and_its_connections_are_closed_and_opened_again() {
    let api = Managed::start(&(warehouse("", "", "") + OPERATOR));
    let mut watcher = console(&api.pgusher, "operator");
    let mut health =
        |environment: &str| cell(&mut watcher, "SHOW ENVIRONMENTS", ("environment", environment), "health");
    let order = |body: Value| api.send("POST", "/orders", body);
    let address = api.pgusher.address();
    let mut pete = Raw::login(address, "rawprod");
    assert_eq!(pete.value("SELECT name FROM whoami"), "prod");
    // What would be, and what is.
    let drain = json!({ "action": "drain", "environment": "prod" });
    let planned = api.send("POST", "/orders?dry_run=true", drain.clone()).ok();
    assert_eq!((&planned["sessions"], &planned["changed"]), (&json!(1), &json!(false)));
    assert_eq!(health("prod"), "up");
    let done = order(drain.clone()).ok();
    assert_eq!((&done["connections"], &done["changed"]), (&json!(["warehouse_prod"]), &json!(true)));
    assert_eq!(pete.next().unwrap().field('C'), "57P01");
    assert_eq!(health("prod"), "drained");
    let refused = crate::fake::refused(&api.pgusher, "rawprod", "warehouse");
    assert_eq!(
        (refused.field('C'), refused.field('M')),
        ("57P03".into(), "environment \"prod\" is drained".into())
    );
    assert_eq!(order(drain).ok()["changed"], false, "it was so before");
    assert_eq!(Raw::login(address, "raw").value("SELECT name FROM whoami"), "dev", "nobody else notices");
    assert_eq!(order(json!({ "action": "resume", "environment": "prod" })).ok()["changed"], true);
    assert_eq!(Raw::login(address, "rawprod").value("SELECT name FROM whoami"), "prod");
    for (action, back, word) in [("pause", "resume", "paused"), ("disable", "enable", "disabled")] {
        let of = |action: &str| json!({ "action": action, "connection": "warehouse" });
        assert_eq!(order(of(action)).ok()["changed"], true);
        assert_eq!(health("dev"), word);
        assert_eq!(order(of(back)).ok()["changed"], true);
    }
    for (body, status, what) in [
        (json!({ "action": "drain" }), 400, "environment: Required"),
        (json!({ "action": "pause" }), 400, "connection: Required"),
        (json!({ "action": "pause", "environment": "prod" }), 400, "connection: Required"),
        (json!({ "action": "stop", "connection": "warehouse" }), 400, "Expected one of: pause"),
        (json!({ "action": "pause", "connection": "nothing" }), 404, "Connection nothing does not exist"),
        (json!({ "action": "drain", "environment": "nowhere" }), 404, "Environment nowhere does not exist"),
    ] {
        let answer = order(body.clone());
        assert_eq!(answer.status, status, "{body}");
        assert!(answer.json()["detail"].as_str().unwrap().contains(what), "{body}: {answer:?}");
    }
}

#[test]
fn settings_are_set_and_things_are_addressed_by_their_names() {
    let api = Managed::start(&warehouse("", "", ""));
    let setting = |key: &str| {
        let all = api.get("/settings").ok();
        all["settings"].as_array().unwrap().iter().find(|one| one["key"] == key).unwrap().clone()
    };
    assert_eq!(setting("listen")["changeable"], false);
    let set = api.send("POST", "/settings", json!({ "key": "query_wait_timeout", "value": "9" })).ok();
    assert_eq!(set["value"], "9s");
    assert_eq!(setting("query_wait_timeout")["value"], "9s");
    let planned = api
        .send("POST", "/settings?dry_run=true", json!({ "key": "QUERY_WAIT_TIMEOUT", "value": "11" }))
        .ok();
    assert_eq!((&planned["value"], &planned["dryRun"]), (&json!("11s"), &json!(true)));
    assert_eq!(setting("query_wait_timeout")["value"], "9s", "it was only asked");
    for (body, why) in [
        (json!({ "key": "query_wait_timeout", "value": "soon" }), "value: invalid value"),
        (json!({ "key": "default_pool_size", "value": "0" }), "must be between 1 and 100000"),
        (json!({ "key": "nothing", "value": "1" }), "key: unrecognized"),
    ] {
        let refused = api.send("POST", "/settings", body);
        assert!(refused.status == 400 && refused.detail().contains(why), "{refused:?}");
    }
    // A write that leaves the text as it is takes it back as well, as its plan says.
    let dana = json!({ "disabled": false });
    api.send("PATCH", "/users/dana", dana.clone()).ok();
    api.send("POST", "/settings", json!({ "key": "query_wait_timeout", "value": "9" })).ok();
    let same = api.send("PATCH", "/users/dana", dana).ok();
    assert_eq!(
        (&same["changed"], &setting("query_wait_timeout")["value"] != "9s"),
        (&json!(true), true),
        "{same}"
    );
    api.send("POST", "/settings", json!({ "key": "query_wait_timeout", "value": "9" })).ok();
    // A write of the file takes it back, and is of the file as it is.
    let user = api.get("/users/dana").ok();
    assert_eq!(user["name"], "dana");
    api.send("PATCH", "/users/dana", json!({ "console": "stats" })).ok();
    assert_eq!(api.get(&format!("/users/{}", user["id"].as_str().unwrap())).ok()["console"], "stats");
    assert_ne!(setting("query_wait_timeout")["value"], "9s");
    assert_eq!(api.get("/connections/warehouse").ok()["name"], "warehouse");
    assert_eq!(
        api.get("/connection-environments/warehouse_prod").ok()["connectionEnvironmentName"],
        Value::Null
    );
    assert_eq!((api.get("/users/nobody").status, api.get("/connections/nothing").status), (404, 404));
}

#[test]
fn sessions_are_found_sorted_and_ended_on_the_server() {
    let api = Managed::start(&warehouse("", "", ""));
    let address = api.pgusher.address();
    let mut all: Vec<Raw> =
        (0..6).map(|i| Raw::login(address, if i % 3 == 0 { "rawprod" } else { "raw" })).collect();
    all[1].ask(&query("BEGIN; SELECT 1"));
    let list = |what: &str| api.get(&format!("/sessions?{what}")).ok();
    let ids = |answer: &Value| -> Vec<u64> {
        answer["sessions"].as_array().unwrap().iter().map(|one| one["id"].as_u64().unwrap()).collect()
    };
    assert_eq!(list("")["total"], 6);
    assert_eq!(list("q=rawprod%20PROD")["total"], 2);
    assert_eq!(list("state=idle%20in%20transaction")["total"], 1);
    let page = list("sort=-id&offset=1&limit=2");
    assert_eq!((ids(&page).len(), &page["total"]), (2, &json!(6)));
    assert!(ids(&page)[0] > ids(&page)[1]);
    let longest = list("sort=-transactionSeconds&limit=1");
    assert_eq!(longest["sessions"][0]["state"], "idle in transaction");
    assert_eq!(api.get("/sessions?sort=nothing").status, 400);
    assert_eq!(api.delete("/sessions").status, 400, "which?");
    assert_eq!(api.delete("/sessions?user=&q=%20").status, 400, "which?");
    let planned = api.delete("/sessions?environment=prod&dry_run=true").ok();
    assert_eq!((&planned["ended"], &list("")["total"]), (&json!(2), &json!(6)));
    assert_eq!(api.delete("/sessions?environment=prod").ok()["ended"], 2);
    eventually("they have left", || list("")["total"] == 4);
    assert_eq!(all[3].next().unwrap().field('C'), "57P01");
    assert_eq!(all[2].value("SELECT 1"), "1");
}
