//! Tokens are made, rotated and taken away by the API itself; what they are is answered once, and kept nowhere.

use serde_json::{Value, json};

use super::{ADMIN, Managed, READER};
use crate::house::warehouse;

fn status(api: &Managed, method: &str, path: &str, token: &str) -> u16 {
    let headers = [("authorization", &*format!("Bearer {token}")), ("content-type", "application/json")];
    api.call(method, path, &headers, "{}").status
}

fn token(answer: &Value) -> String {
    answer["token"].as_str().unwrap().to_owned()
}

#[test]
fn tokens_are_made_rotated_and_taken_away_and_known_to_nobody_else() {
    let api = Managed::start(&warehouse("audit_file = \"audit.jsonl\"", "", ""));
    let listed = api.get("/tokens").ok();
    assert_eq!(
        listed["tokens"],
        json!([{ "name": "ops", "role": "admin", "yours": true }, { "name": "looker", "role": "read", "yours": false }])
    );
    // A look makes none.
    let planned = api.send("POST", "/tokens?dry_run=true", json!({ "name": "ci", "role": "admin" })).ok();
    assert_eq!(planned["token"], json!(null));
    let made = api.send("POST", "/tokens", json!({ "name": "ci", "role": "admin" }));
    assert_eq!(made.status, 201);
    let ci = token(&made.ok());
    assert_eq!(ci.len(), 64);
    assert_eq!(status(&api, "POST", "/reload", &ci), 200);
    assert_eq!(api.send("POST", "/tokens", json!({ "name": "ci" })).status, 409);
    // The file has the hash alone, and keeps the rest as it is.
    let text = api.text();
    assert!(text.contains("[management.tokens.ci]\ntoken = \"sha256:") && text.contains(ADMIN), "{text}");

    let rotated = token(&api.send("POST", "/tokens/ci/rotate", json!({})).ok());
    assert_eq!((status(&api, "GET", "/tokens", &ci), status(&api, "GET", "/tokens", &rotated)), (401, 200));
    // One may rotate one's own, and is answered.
    let headers = [("authorization", &*format!("Bearer {rotated}")), ("content-type", "application/json")];
    let own = token(&api.call("POST", "/tokens/ci/rotate", &headers, "{}").ok());
    assert_eq!((status(&api, "GET", "/tokens", &rotated), status(&api, "GET", "/tokens", &own)), (401, 200));

    // Without a role, one may look and nothing else.
    let viewer = token(&api.send("POST", "/tokens", json!({ "name": "viewer" })).ok());
    assert_eq!(status(&api, "GET", "/tokens", &viewer), 200);
    for (method, path) in [("POST", "/tokens"), ("POST", "/tokens/viewer/rotate"), ("DELETE", "/tokens/ops")]
    {
        assert_eq!(status(&api, method, path, &viewer), 403, "{method} {path}");
        assert_eq!(status(&api, method, path, READER), 403, "{method} {path}");
    }
    // The last that may change anything stays.
    assert_eq!(api.delete("/tokens/ops").status, 200);
    assert_eq!(status(&api, "GET", "/tokens", ADMIN), 401);
    let headers = [("authorization", &*format!("Bearer {own}"))];
    let refused = api.call("DELETE", "/tokens/ci", &headers, "");
    assert!(refused.status == 409 && refused.detail().contains("the last token"), "{refused:?}");
    assert_eq!(api.call("DELETE", "/tokens/nobody", &headers, "").status, 404);
    // Gone is gone, also when one goes back to an earlier configuration.
    assert_eq!(api.call("POST", "/generations/1/rollback", &headers, "").status, 200);
    assert_eq!((status(&api, "GET", "/tokens", ADMIN), status(&api, "GET", "/tokens", &own)), (401, 200));
    // Nowhere but in the answers.
    let files = std::fs::read_dir(&api.pgusher.folder).unwrap().flatten();
    let all: String = files.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect();
    for secret in [&ci, &rotated, &own, &viewer] {
        assert!(!all.contains(secret.as_str()) && !api.pgusher.log().contains(secret.as_str()));
    }
}

#[test]
fn tokens_within_braces_stay_within_braces() {
    let api = Managed::start(&warehouse("", "", ""));
    let (head, _) =
        api.text().split_once("[management.tokens.ops]").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    let text =
        format!("{head}tokens = {{ ops = {{ token = \"{ADMIN}\", role = \"admin\" }} }} # all of them\n");
    std::fs::write(api.file(), &text).unwrap();
    api.send("POST", "/reload", json!({})).ok();
    api.send("POST", "/tokens", json!({ "name": "a b", "role": "read" })).ok();
    assert!(api.text().contains(", \"a b\" = { token = \"sha256:"), "{}", api.text());
    assert!(api.text().ends_with("# all of them\n"), "{}", api.text());
    api.delete("/tokens/a%20b").ok();
    assert_eq!(api.text(), text);
}

/// What a token does to itself is answered, though the rest of the write takes longer than a token that is gone is waited for.
#[test]
fn a_token_that_rotates_itself_is_answered_however_long_that_takes() {
    let api = Managed::start(&warehouse("", "", ""));
    let path = "/connections/warehouse";
    api.send("PATCH", path, json!({ "passwordUnencrypted": "a new one" })).ok();
    let folder = api.pgusher.folder.join("pgusher.toml.secrets");
    let ours = || {
        std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap())
    };
    let known = ours().find(|name| name.ends_with(".secret")).unwrap();
    // As many files as thousands of changes would have left: whoever writes next removes them.
    let stem = known.rsplit_once('-').unwrap().0.to_owned();
    for n in 0..30_000_u64 {
        std::fs::write(folder.join(format!("{stem}-{n:016x}.secret")), "x").unwrap();
    }
    let rotated = token(&api.send("POST", "/tokens/ops/rotate", json!({})).ok());
    assert_eq!((status(&api, "GET", "/tokens", ADMIN), status(&api, "GET", "/tokens", &rotated)), (401, 200));
    assert_eq!(ours().filter(|name| name.ends_with(".secret")).collect::<Vec<_>>(), [known]);
}

#[test]
fn names_that_look_like_others_and_editions_that_are_not_in_force_are_refused() {
    let api = Managed::start(&warehouse("", "", ""));
    for name in ["..", ".", " ops", "ops ", "ops\u{202e}"] {
        assert_eq!(api.send("POST", "/tokens", json!({ "name": name })).status, 400, "{name:?}");
    }
    for (method, path) in
        [("POST", "/tokens"), ("POST", "/tokens/looker/rotate"), ("DELETE", "/tokens/looker")]
    {
        let answer = api.send_with(method, path, json!({ "name": "new" }), &[("if-match", "\"nope\"")]);
        assert_eq!(answer.status, 412, "{method} {path}: {answer:?}");
    }
    let tag = api.get("/config").tag().to_owned();
    assert_eq!(api.send_with("POST", "/tokens/looker/rotate", json!({}), &[("if-match", &tag)]).status, 200);
    assert_eq!(api.get("/tokens?x=1").status, 400);
    assert_eq!(api.get("/errors?x=1").status, 400);
}
