//! Lists are searched, and cut into pages, by pgusher: thousands of users are no more to a page than three.

use serde_json::{Value, json};

use super::Managed;
use crate::house::warehouse;

fn names(list: &Value, kind: &str) -> Vec<String> {
    let all = list[kind].as_array().unwrap().iter();
    all.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn users_groups_attributes_and_connections_are_searched_and_cut_into_pages() {
    let many: String = (0..500)
        .map(|n| format!("\n[users.u{n:03}]\npassword = \"p\"\ngroups = [\"g{}\"]\n", n % 2))
        .collect();
    let groups = "\n[groups.g0]\nattributes = { environment = \"Prod\" }\n[groups.g1]\n";
    let api = Managed::start(&(warehouse("", "", "") + groups + &many));
    let all = api.get("/users").ok();
    assert_eq!(all["total"], json!(all["users"].as_array().unwrap().len()));
    assert!(all["total"].as_u64().unwrap() > 500);

    let page = api.get("/users?q=u0&offset=10&limit=3").ok();
    assert_eq!(
        (page["total"].clone(), names(&page, "users")),
        (json!(100), ["u010", "u011", "u012"].map(String::from).to_vec())
    );
    // All words, wherever they are, in whatever case.
    let found = api.get("/users?q=G1%20U00").ok();
    assert_eq!(names(&found, "users"), ["u001", "u003", "u005", "u007", "u009"]);
    assert_eq!(api.get("/users?q=nobody-at-all").ok()["total"], json!(0));
    assert_eq!(names(&api.get("/users?offset=5000").ok(), "users"), [""; 0]);
    assert_eq!(names(&api.get("/groups?q=prod").ok(), "groups"), ["g0"]);
    assert_eq!(names(&api.get("/user-attributes?q=environ").ok(), "userAttributes"), ["environment"]);
    let found = api.get("/connections?q=warehouse&limit=1&offset=1").ok();
    assert_eq!(
        (found["total"].clone(), names(&found, "connections")),
        (json!(2), vec!["warehouse_prod".to_owned()])
    );

    for path in ["/users", "/groups", "/user-attributes", "/connections", "/sessions"] {
        for (wrong, said) in [
            ("limit=0", "from 1 to 10000"),
            ("limit=10001", "from 1 to 10000"),
            ("offset=-1", "from 0 to 1000000"),
        ] {
            let answer = api.get(&format!("{path}?{wrong}"));
            assert!(answer.status == 400 && answer.detail().contains(said), "{path}?{wrong}: {answer:?}");
        }
    }
    // The edition of the whole list is what a creation compares with, whatever was searched before.
    let tag = api.get("/groups").tag().to_owned();
    let made = api.send_with("POST", "/groups", json!({ "name": "g2" }), &[("if-match", &tag)]);
    assert_eq!(made.status, 201, "{made:?}");
}
