//! Who may call what, how often, and what an attacker gets.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{ADMIN, MANY, Managed, READER, section};
use crate::house::{Pgusher, eventually, free_port, temporary_folder, warehouse};

/// Who may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum May {
    Admin,
    Both,
}
use May::{Admin, Both};

/// T-10: every call there is. One that is missing here fails.
const MATRIX: [(&str, &str, May); 49] = [
    ("get", "/api/v1/connections", Both),
    ("post", "/api/v1/connections", Admin),
    ("get", "/api/v1/connections/{id}", Both),
    ("patch", "/api/v1/connections/{id}", Admin),
    ("delete", "/api/v1/connections/{id}", Admin),
    ("get", "/api/v1/connection-environments", Both),
    ("post", "/api/v1/connection-environments", Admin),
    ("get", "/api/v1/connection-environments/{id}", Both),
    ("put", "/api/v1/connection-environments/{id}", Admin),
    ("delete", "/api/v1/connection-environments/{id}", Admin),
    ("get", "/api/v1/users", Both),
    ("post", "/api/v1/users", Admin),
    ("get", "/api/v1/users/{id}", Both),
    ("patch", "/api/v1/users/{id}", Admin),
    ("delete", "/api/v1/users/{id}", Admin),
    ("get", "/api/v1/groups", Both),
    ("post", "/api/v1/groups", Admin),
    ("get", "/api/v1/groups/{id}", Both),
    ("patch", "/api/v1/groups/{id}", Admin),
    ("delete", "/api/v1/groups/{id}", Admin),
    ("get", "/api/v1/user-attributes", Both),
    ("post", "/api/v1/user-attributes", Admin),
    ("get", "/api/v1/user-attributes/{id}", Both),
    ("patch", "/api/v1/user-attributes/{id}", Admin),
    ("delete", "/api/v1/user-attributes/{id}", Admin),
    ("get", "/api/v1/resolve", Both),
    ("post", "/api/v1/plan", Both),
    ("get", "/api/v1/config", Both),
    ("put", "/api/v1/config", Admin),
    ("post", "/api/v1/reload", Admin),
    ("get", "/api/v1/generations", Both),
    ("get", "/api/v1/generations/{number}", Both),
    ("post", "/api/v1/generations/{number}/rollback", Admin),
    ("get", "/api/v1/sessions", Both),
    ("delete", "/api/v1/sessions/{id}", Admin),
    ("get", "/api/v1/grants", Both),
    ("post", "/api/v1/grants", Admin),
    ("delete", "/api/v1/grants/{id}", Admin),
    ("post", "/api/v1/orders", Admin),
    ("get", "/api/v1/settings", Both),
    ("post", "/api/v1/settings", Admin),
    ("delete", "/api/v1/sessions", Admin),
    ("get", "/api/v1/tokens", Both),
    ("post", "/api/v1/tokens", Admin),
    ("delete", "/api/v1/tokens/{name}", Admin),
    ("post", "/api/v1/tokens/{name}/rotate", Admin),
    ("post", "/api/v1/doctor", Admin),
    ("get", "/api/v1/errors", Both),
    ("get", "/api/v1/overview", Both),
];
/// The audit is one more, and needs a file.
const AUDIT: (&str, &str, May) = ("get", "/api/v1/audit", Both);

#[test]
fn who_may_call_what_is_written_down_and_complete() {
    let api = Managed::start(&warehouse("audit_file = \"audit.jsonl\"", "", ""));
    let document = api.call("GET", "/openapi.json", &[], "").ok();
    let mut there = BTreeSet::new();
    for (path, calls) in document["paths"].as_object().unwrap() {
        for method in calls.as_object().unwrap().keys() {
            there.insert((method.clone(), path.clone()));
        }
    }
    let table: Vec<_> = MATRIX.iter().copied().chain([AUDIT]).collect();
    let known: BTreeSet<_> = table.iter().map(|(m, p, _)| ((*m).to_owned(), (*p).to_owned())).collect();
    assert_eq!(there, known, "a call without a row, or a row without a call");
    let before = api.text();
    let wrong = "Bearer canary-admin-012345678X";
    let (admin, reader) = (format!("Bearer {ADMIN}"), format!("Bearer {READER}"));
    for (method, path, may) in table {
        let path = path.strip_prefix("/api/v1").unwrap();
        let path = path.replace("{id}", "11111111-2222-4333-8444-555555555555").replace("{number}", "999");
        let method = method.to_uppercase();
        let status = |authorization: Option<&str>| {
            let mut headers = vec![("content-type", "application/json")];
            headers.extend(authorization.map(|value| ("authorization", value)));
            let said = api.call(&method, &path, &headers, "{\"nothing\": 1}");
            // What is documented is routed.
            assert_ne!(said.status, 405, "{method} {path}");
            if said.status >= 400 {
                assert!(!said.detail().starts_with("there is no such path"), "{method} {path}");
            }
            if said.status == 401 {
                assert!(said.headers["www-authenticate"].starts_with("Bearer"));
            }
            said.status
        };
        for nobody in [None, Some(wrong), Some("Basic b3BzOm9wcw=="), Some("Bearer "), Some("")] {
            assert_eq!(status(nobody), 401, "{method} {path} as {nobody:?}");
        }
        let is_let_in = |status: u16| status != 401 && status != 403;
        let read = status(Some(&reader));
        assert_eq!(is_let_in(read), may == Both, "{method} {path} as the reader: {read}");
        if path != "/reload" {
            assert!(is_let_in(status(Some(&admin))), "{method} {path} as the administrator");
        }
    }
    // A reader may not write by asking for a plan either.
    let said = api.call(
        "POST",
        "/users?dry_run=true",
        &[("authorization", &reader), ("content-type", "application/json")],
        "{}",
    );
    assert_eq!((said.status, said.detail().as_str()), (403, "Permission denied"));
    assert_eq!(api.text(), before);
    // Each call is in the audit: who, what, and what came of it.
    let lines = std::fs::read_to_string(api.pgusher.folder.join("audit.jsonl")).unwrap();
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |token: Value, status: &str| {
        events
            .iter()
            .filter(|e| e["event"] == "api" && e["token"] == token && e["status"] == json!(status))
            .count()
    };
    // Of those who have no token, the first few, and then how many there were.
    assert_eq!(count(Value::Null, "401"), 10);
    let writes = MATRIX.iter().filter(|(_, _, may)| *may == Admin).count() + 1;
    eventually("all is told", || {
        let lines = std::fs::read_to_string(api.pgusher.folder.join("audit.jsonl")).unwrap();
        lines.matches("\"status\":\"403\"").count() == writes
    });
    assert!(!lines.contains("canary"), "the audit shows a token");
}

#[test]
fn the_pages_need_no_token_and_say_nothing_of_this_pgusher() {
    let api = Managed::start(&warehouse("", "", ""));
    for path in ["/", "/api/v1/docs", "/api/v1/openapi.json"] {
        let output = Command::new("curl")
            .args(["-si", &format!("http://127.0.0.1:{}{path}", api.port)])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{path}: {text}");
        assert!(text.contains("content-security-policy: default-src 'none'"), "{path}");
        for known in ["warehouse", "dana", "pete", "canary"] {
            assert!(!text.contains(known), "{path} tells of {known}");
        }
    }
}

/// T-23: no door without a lock.
#[test]
fn an_open_address_without_a_token_is_refused() {
    let folder = temporary_folder("open");
    let file = folder.join("p.toml");
    let check = |listen: &str, more: &str| {
        std::fs::write(&file, format!("[management]\nlisten = \"{listen}\"\n{more}")).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_pgusher")).arg("check").arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let token = "[management.tokens.t]\ntoken = \"0123456789abcdef\"\n";
    for open in ["0.0.0.0:6433", "[::]:6433", "192.0.2.1:6433"] {
        let (is_good, said) = check(open, "");
        assert!(!is_good && said.contains("there is no token"), "{said}");
        let (is_good, said) = check(open, token);
        assert!(is_good && said.contains("in the clear"), "{said}");
    }
    let (is_good, said) = check("127.0.0.1:6433", "");
    assert!(is_good && said.contains("nobody can use the API"), "{said}");
    for (bad, why) in [
        ("token = \"short\"", "at least 16 characters"),
        ("token = \"sha256:abc\"", "64 hexadecimal digits"),
        ("token = \"white space 0123456789\"", "visible ASCII"),
        ("token = \"0123456789abcdef\"\nrole = \"root\"", "unknown value"),
        ("role = \"admin\"", "missing key `token`"),
    ] {
        let (is_good, said) = check("127.0.0.1:6433", &format!("[management.tokens.t]\n{bad}\n"));
        assert!(!is_good && said.contains(why), "{bad}: {said}");
        assert!(!said.contains("short") && !said.contains("white"), "{said}");
    }
    let twice = format!("{token}[management.tokens.u]\ntoken = \"0123456789abcdef\"\n");
    assert!(check("127.0.0.1:6433", &twice).1.contains("the token of `t`, too"));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_token_may_be_kept_as_its_hash_or_in_a_file_and_changes_by_a_reload() {
    let hash = {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pgusher"))
            .arg("hash-token")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"hashed-0123456789").unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert!(hash.starts_with("sha256:") && hash.trim().len() == 71, "{hash}");
    let folder = temporary_folder("token");
    std::fs::write(folder.join("token"), "in-a-file-0123456789\n").unwrap();
    let config = warehouse("", "", "");
    let tokens = format!(
        "[management.tokens.h]\ntoken = \"{}\"\n[management.tokens.f]\ntoken = {{ file = \"{}\" }}\n",
        hash.trim(),
        folder.join("token").display()
    );
    let port = free_port();
    let api = Managed::on(Pgusher::start(&(config.clone() + &section(port, MANY) + &tokens)), port);
    let status =
        |token: &str| api.call("GET", "/users", &[("authorization", &format!("Bearer {token}"))], "").status;
    assert_eq!((status("hashed-0123456789"), status("in-a-file-0123456789"), status(ADMIN)), (200, 200, 200));
    // The hash is not a token.
    assert_eq!((status(hash.trim()), status(hash.trim().trim_start_matches("sha256:"))), (401, 401));
    std::fs::write(folder.join("token"), "another-0123456789\n").unwrap();
    api.pgusher.reload(&(config + &section(port, MANY) + &tokens));
    assert_eq!((status("in-a-file-0123456789"), status("another-0123456789")), (401, 200));
    std::fs::remove_dir_all(folder).unwrap();
}

/// Whoever is out is out at once, also with the calls that he has begun.
#[test]
fn a_token_that_is_gone_or_has_lost_its_right_ends_with_its_calls() {
    let port = free_port();
    let refuse = "audit_file = \"audit.jsonl\"\naudit_failure = \"refuse\"";
    let config = warehouse(refuse, "", "") + &section(port, MANY);
    let old = |role: &str| {
        format!("\n[management.tokens.old]\ntoken = \"old-0123456789abcdef\"\nrole = \"{role}\"\n")
    };
    let api = Managed::on(Pgusher::start(&(config.clone() + &old("admin"))), port);
    let audit = || std::fs::read_to_string(api.pgusher.folder.join("audit.jsonl")).unwrap();
    let begun = || audit().matches("\"status\":\"begun\"").count();
    // Begun, so far as it is sent.
    let send = |body: &str, is_whole: bool| {
        let before = begun();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        let sent = if is_whole { body } else { &body[..1] };
        let head = format!(
            "POST /api/v1/groups HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer old-0123456789abcdef\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{sent}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        eventually("the call is let in", || begun() > before);
        stream
    };
    let is_refused = |mut stream: TcpStream, status: &str| {
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text:?}");
        assert!(audit().contains("\"token\":\"old\""), "{}", audit());
    };
    let body = "{\"name\":\"late\"}";
    let waits = send(body, false);
    api.pgusher.reload(&(config.clone() + &old("read")));
    is_refused(waits, "403");
    api.pgusher.reload(&(config.clone() + &old("admin")));
    let waits = send(body, false);
    api.pgusher.reload(&config);
    is_refused(waits, "401");
    // What waits for the file does not write it afterwards.
    api.pgusher.reload(&(config.clone() + &old("admin")));
    let mut lock = Command::new("flock")
        .arg("--no-fork")
        .arg(api.pgusher.folder.join("pgusher.toml.lock"))
        .args(["sleep", "30"])
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let waits = send(body, true);
    api.pgusher.reload(&config);
    is_refused(waits, "401");
    lock.kill().unwrap();
    lock.wait().unwrap();
    for _ in 0..20 {
        assert!(!api.text().contains("late"), "{}", api.text());
        std::thread::sleep(Duration::from_millis(50));
    }
    api.send("POST", "/groups", json!({ "name": "g" })).ok();
    assert!(!api.text().contains("late"));
}

#[test]
fn a_token_has_so_many_requests_and_is_told_how_many_are_left() {
    let api = Managed::start_with(&warehouse("", "", ""), "requests_per_minute = 5");
    for left in (0..5).rev() {
        let said = api.get("/users");
        assert_eq!(said.status, 200);
        assert_eq!(said.headers["ratelimit-policy"], "\"minute\";q=5;w=60");
        assert!(said.headers["ratelimit"].starts_with(&format!("\"minute\";r={left};t=")), "{said:?}");
    }
    let said = api.get("/users");
    assert_eq!(said.status, 429);
    let after: u64 = said.headers["retry-after"].parse().unwrap();
    assert!((1..=12).contains(&after), "{after}");
    assert!(said.detail().starts_with("Too Many Requests: "));
    // Another token has its own; and then there is one more.
    let reader = format!("Bearer {READER}");
    assert_eq!(api.call("GET", "/users", &[("authorization", &reader)], "").status, 200);
    std::thread::sleep(Duration::from_secs(after));
    assert_eq!(api.get("/users").status, 200);
    assert_eq!(api.get("/users").status, 429);
}

#[test]
fn whoever_guesses_tokens_learns_nothing_after_a_few() {
    let api =
        Managed::start_with(&warehouse("audit_file = \"audit.jsonl\"", "", ""), "max_failed_requests = 3");
    for guess in 0..3 {
        let said = api.call("GET", "/users", &[("authorization", &format!("Bearer guess-{guess}"))], "");
        assert_eq!(said.status, 401);
    }
    for guess in 0..50 {
        let said = api.call("GET", "/users", &[("authorization", &format!("Bearer guess-{guess}"))], "");
        assert_eq!(said.status, 429);
    }
    let said = api.call("GET", "/users", &[("authorization", "Bearer guess")], "");
    let after: u64 = said.headers["retry-after"].parse().unwrap();
    assert!((1..=20).contains(&after), "{after}");
    // Whoever has a token is let in all the same: nobody keeps another out.
    assert_eq!(api.get("/users").status, 200);
    // A flood fills nothing. (What is answered is written by another thread.)
    let lines = || std::fs::read_to_string(api.pgusher.folder.join("audit.jsonl")).unwrap();
    let count = |lines: &str| lines.matches("\"event\":\"api\"").count();
    eventually("the calls are in the audit", || count(&lines()) >= 4);
    assert_eq!(count(&lines()), 4, "{}", lines());
}

/// Bytes as they are, and what comes back until the end.
fn raw(port: u16, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let _ = stream.write_all(bytes);
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn what_an_attacker_sends_is_refused_in_our_form_and_harms_nothing() {
    let api = Managed::start(&warehouse("", "", ""));
    let before = api.text();
    let close = "Connection: close\r\n";
    let head = |method: &str, path: &str, more: &str| {
        format!("{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n{close}{more}\r\n")
    };
    let post = |body: &str| {
        let more = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        head("POST", "/api/v1/connections", &more) + body
    };
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_object = format!("{}1{}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    let long_name = format!(
        "{{\"dialect\":\"postgres\",\"name\":\"{}\",\"host\":\"h\",\"username\":\"u\"}}",
        "n".repeat(10 << 20)
    );
    let nul = "{\"dialect\":\"postgres\",\"name\":\"a\\u0000b\",\"host\":\"h\",\"username\":\"u\"}";
    let surrogate = "{\"dialect\":\"postgres\",\"name\":\"\\ud800\",\"host\":\"h\",\"username\":\"u\"}";
    let crlf_host = "{\"dialect\":\"postgres\",\"name\":\"a\",\"host\":\"h\\r\\nX: y\",\"username\":\"u\"}";
    let proto =
        "{\"__proto__\":{\"a\":1},\"dialect\":\"postgres\",\"name\":\"a\",\"host\":\"h\",\"username\":\"u\"}";
    for (what, bytes, status) in [
        ("deep array", post(&deep), "400"),
        ("deep object", post(&deep_object), "400"),
        ("a name of 10 MB", post(&long_name), "413"),
        ("NUL", post(nul), "400"),
        ("half a surrogate", post(surrogate), "400"),
        ("CRLF in a host", post(crlf_host), "400"),
        ("__proto__", post(proto), "400"),
        ("number beyond all", post("{\"port\":1e999}"), "400"),
        ("path traversal", head("GET", "/api/v1/connections/../../../../etc/passwd", ""), "404"),
        ("encoded traversal", head("GET", "/api/v1/connections/%2e%2e%2f%2e%2e%2fetc", ""), "404"),
        ("NUL in a path", head("GET", "/api/v1/users/%00", ""), "400"),
        ("a method nobody knows", head("FROB", "/api/v1/users", ""), "405"),
        ("a long head", head("GET", "/api/v1/users", &format!("X: {}\r\n", "x".repeat(40_000))), "431"),
        ("many headers", head("GET", "/api/v1/users", &"X: y\r\n".repeat(5000)), "431"),
        ("a header that is split", head("GET", "/api/v1/users", "X: a\r\n b\r\n"), "400"),
        (
            "two lengths",
            head("POST", "/api/v1/users", "Content-Length: 2\r\nContent-Length: 3\r\n") + "{}",
            "400",
        ),
        (
            "a chunk that is none",
            head("POST", "/api/v1/users", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n")
                + "zz\r\n",
            "4",
        ),
        ("two tokens", head("GET", "/api/v1/users", &format!("Authorization: Bearer {READER}\r\n")), "401"),
        ("another's page", head("GET", "/api/v1/users", "Origin: https://evil.example\r\n"), "403"),
        ("no origin", head("GET", "/api/v1/users", "Origin: null\r\n"), "403"),
        ("our own page", head("GET", "/api/v1/users", "Origin: http://x\r\n"), "200"),
    ] {
        let said = raw(api.port, bytes.as_bytes());
        let first = said.lines().next().unwrap_or_default();
        assert!(first.contains(&format!(" {status}")), "{what}: {first:?}");
        assert!(!said.contains("X: y"), "{what}");
    }
    let reader =
        format!("GET /api/v1/users HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {READER}\r\n{close}\r\n");
    assert!(raw(api.port, reader.as_bytes()).starts_with("HTTP/1.1 200"));
    assert_eq!(api.text(), before);
    // Names are names, whatever they look like: none of them is a path.
    let outside = api.pgusher.folder.parent().unwrap().join("pgusher-outside");
    for name in [
        "../../pgusher-outside",
        "/etc/passwd",
        "a\"]\n[users.evil]".replace('\n', " ").as_str(),
        "[x]",
        "a.b.c",
        "ключ 🗝",
        "'\"\\",
        "${HOME}",
        "%s%n",
    ] {
        let body = json!({ "dialect": "postgres", "name": name, "host": "h", "username": "u", "passwordUnencrypted": "p" });
        let made = api.send("POST", "/connections", body).ok();
        assert_eq!(made["connection"]["name"], json!(name));
        assert_eq!(
            api.get(&format!("/connections/{}", made["data"].as_str().unwrap())).ok()["name"],
            json!(name)
        );
        api.delete(&format!("/connections/{}", made["data"].as_str().unwrap())).ok();
    }
    assert!(!outside.exists());
    assert_eq!(api.text(), before);
}

/// A host is only ever dialled for a client: the API itself opens nothing.
#[test]
fn hosts_are_never_fetched_by_the_api() {
    let api = Managed::start(&warehouse("", "", ""));
    let bait = TcpListener::bind("127.0.0.1:0").unwrap();
    bait.set_nonblocking(true).unwrap();
    let port = bait.local_addr().unwrap().port();
    for (i, host) in [
        "127.0.0.1",
        "localhost",
        "::1",
        "169.254.169.254",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "metadata.google.internal",
    ]
    .iter()
    .enumerate()
    {
        let body = json!({ "dialect": "postgres", "name": format!("bait{i}"), "host": host, "port": port, "username": "u", "sslMode": "disable" });
        let answer = api.send("POST", "/connections", body).ok();
        let id = answer["data"].as_str().unwrap();
        api.send("PATCH", &format!("/connections/{id}"), json!({ "database": "other" })).ok();
        api.get("/overview").ok();
        api.get(&format!("/resolve?user=dana&database=bait{i}")).ok();
        api.send("POST", "/plan", json!({ "groups": {} })).ok();
    }
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(bait.accept().map(drop).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    // Nor does it read files, variables or commands that a caller names.
    let marker = api.pgusher.folder.join("was-run");
    for reference in
        [json!({ "command": ["touch", marker] }), json!({ "file": "/etc/passwd" }), json!({ "env": "HOME" })]
    {
        let body = json!({ "connections": { "x": { "host": "h", "username": "u", "password": reference } } });
        for (method, path) in [("POST", "/plan"), ("PUT", "/config"), ("PUT", "/config?dry_run=true")] {
            let said = api.send(method, path, body.clone());
            assert_eq!(said.status, 400, "{said:?}");
            assert!(said.detail().contains("connections.x.password: a reference"), "{said:?}");
        }
    }
    assert!(!marker.exists());
}

/// P13: whatever is done to the API, clients of PostgreSQL do not notice.
#[test]
fn slow_and_many_callers_do_not_hold_up_clients_of_postgresql() {
    let api = Managed::start(&warehouse("", "", ""));
    let query = || {
        let begun = Instant::now();
        assert_eq!(api.pgusher.psql("pete", "SELECT name FROM whoami").unwrap(), "prod");
        begun.elapsed()
    };
    let quiet = (0..10).map(|_| query()).max().unwrap();
    // More than there are places for: heads that never end, and bodies.
    let slow: Vec<TcpStream> = (0..200)
        .map(|i| {
            let mut stream = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
            let more = "Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{";
            let head = format!("POST /api/v1/users HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            if i % 2 == 0 {
                stream.write_all(more.as_bytes()).unwrap();
            }
            stream
        })
        .collect();
    let loud = (0..20).map(|_| query()).max().unwrap();
    assert!(loud < quiet * 5 + Duration::from_millis(200), "{quiet:?} before, {loud:?} with slow callers");
    assert!(api.pgusher.descriptors() < 200, "{} descriptors", api.pgusher.descriptors());
    // Those that are in have 10 seconds; then it is the next ones' turn.
    let begun = Instant::now();
    let mut first = &slow[0];
    first.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut text = String::new();
    let _ = first.read_to_string(&mut text);
    assert!(text.starts_with("HTTP/1.1 408") && begun.elapsed() < Duration::from_secs(15), "{text}");
    drop(slow);
    eventually("the API answers again", || {
        raw(api.port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").starts_with("HTTP/1.1 200")
    });
}

/// Whoever may only look has called once on each connection there is, and goes on with what needs no token.
#[test]
fn connections_that_a_reader_keeps_make_room_for_others() {
    let api = Managed::start(&warehouse("", "", ""));
    let answered = |stream: &mut TcpStream, request: &str| {
        let mut byte = [0; 4096];
        stream.write_all(request.as_bytes()).is_ok() && matches!(stream.read(&mut byte), Ok(1..))
    };
    let first =
        format!("GET /api/v1/environments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {READER}\r\n\r\n");
    let mut kept: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", api.port)).unwrap();
            assert!(answered(&mut stream, &first));
            stream
        })
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                kept.retain_mut(|stream| answered(stream, "HEAD /api/v1/docs HTTP/1.1\r\nHost: x\r\n\r\n"));
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| api.get("/config").status));
        stop.store(true, Ordering::Relaxed);
        assert_eq!(status.unwrap(), 200);
    });
}

/// T-22: secrets go in, and come out nowhere.
#[test]
fn no_answer_no_log_and_no_audit_shows_a_secret() {
    let api =
        Managed::start(&warehouse("audit_file = \"audit.jsonl\"\nlog_level = \"trace\"", "", "").replacen(
            "log_level = \"debug\"",
            "",
            1,
        ));
    let mut said = String::new();
    let mut keep = |answer: super::Said| said.push_str(&answer.text);
    let connection = json!({ "dialect": "postgres", "name": "c", "host": "h", "username": "u", "passwordUnencrypted": "canary-password-1" });
    keep(api.send("POST", "/connections", connection));
    let id = api.id("connections", "c");
    keep(api.send(
        "PATCH",
        &format!("/connections/{id}"),
        json!({ "passwordUnencrypted": "canary-password-2" }),
    ));
    keep(api.send(
        "PATCH",
        &format!("/connections/{id}?dry_run=true"),
        json!({ "passwordUnencrypted": "canary-password-3", "poolSize": 3 }),
    ));
    keep(api.send("POST", "/users", json!({ "name": "canned", "passwordUnencrypted": "canary-password-4" })));
    keep(api.send(
        "POST",
        "/users",
        json!({ "name": "md5", "authType": "md5", "passwordUnencrypted": "canary-password-5" }),
    ));
    keep(api.send(
        "POST",
        "/users",
        json!({ "name": "bad", "passwordUnencrypted": "SCRAM-SHA-256$canary-broken" }),
    ));
    keep(api.send(
        "POST",
        "/connections",
        json!({ "passwordUnencrypted": ["canary-password-6"], "canary": 1 }),
    ));
    keep(api.send(
        "PUT",
        "/config",
        json!({ "users": { "x": { "password": "canary-password-7", "typo": 1 } } }),
    ));
    let toml = "[connections.c]\nhost = \"h\"\npassword = \"canary-password-8\nusername = 1";
    let authorization = format!("Bearer {ADMIN}");
    keep(api.call(
        "PUT",
        "/config",
        &[("authorization", &authorization), ("content-type", "application/toml")],
        toml,
    ));
    let mut all = vec![
        "/connections".to_owned(),
        "/users".into(),
        "/config".into(),
        "/generations".into(),
        "/overview".into(),
        "/sessions".into(),
        "/audit?limit=500".into(),
    ];
    all.extend((1..9).map(|n| format!("/generations/{n}")));
    all.iter().for_each(|path| keep(api.get(path)));
    let audit = std::fs::read_to_string(api.pgusher.folder.join("audit.jsonl")).unwrap();
    for (what, text) in [("an answer", &said), ("the log", &api.pgusher.log()), ("the audit", &audit)] {
        // The one that is a field's name is only named.
        let found: Vec<_> =
            text.match_indices("canary").map(|(at, _)| &text[at..(at + 24).min(text.len())]).collect();
        assert!(
            found.iter().all(|found| found.starts_with("canary: Unrecognized")),
            "{what} shows {found:?}"
        );
    }
    // Only a hash of the user's password is kept; the connection's is in a file, and the older one, too, to be gone back to.
    let file = api.text();
    assert!(!file.contains("canary-password") && file.contains("SCRAM-SHA-256$4096:"), "{file}");
    let folder = api.pgusher.folder.join("pgusher.toml.secrets");
    let kept: BTreeSet<String> =
        folder.read_dir().unwrap().map(|e| std::fs::read_to_string(e.unwrap().path()).unwrap()).collect();
    assert_eq!(
        kept,
        ["canary-password-1", "canary-password-2", "canary-password-5"].map(str::to_owned).into()
    );
}

/// Of what is written alone: no secret is read, and none compared.
#[test]
fn who_may_only_look_may_plan_and_learns_no_secret_by_it() {
    let ran = temporary_folder("ran").join("ran");
    let command =
        format!("password = {{ command = [\"sh\", \"-c\", \"echo x >> {}; echo hunter2\"] }}", ran.display());
    let api = Managed::start(&warehouse("", "", "").replacen(
        "username = \"app\"\n",
        &format!("username = \"app\"\n{command}\n"),
        1,
    ));
    let runs = || std::fs::read_to_string(&ran).unwrap().len();
    let (before, first) = (api.text(), runs());
    let plan = |text: &str| {
        let headers = [("authorization", &*format!("Bearer {READER}")), ("content-type", "application/toml")];
        api.call("POST", "/plan", &headers, text)
    };
    let users = |dana: &str| {
        format!(
            "[users.dana]\n{dana}\nattributes = {{ environment = \"prod\" }}\n[users.new]\npassword = \"fresh\"\n"
        )
    };
    let planned = plan(&users("password = \"***\"")).ok();
    let rows = planned["plan"].as_array().unwrap();
    let has = |change: &str, subject: &str| {
        rows.iter()
            .any(|row| row["change"] == change && row["subject"].as_str().unwrap().starts_with(subject))
    };
    assert!(has("production", "dana on warehouse") && has("route", "pete on warehouse"), "{planned}");
    assert_eq!(
        (&planned["dryRun"], &planned["changed"], &planned["generation"]),
        (&json!(true), &json!(true), &json!(1))
    );
    assert!(!rows.iter().any(|row| row["change"] == "secret"), "{planned}");
    // No guess is told from another.
    let guess = |word: &str| plan(&users(&format!("password = \"{word}\""))).detail();
    assert_eq!(guess("dana"), guess("nobody"));
    for (text, why) in [
        (users("password = \"dana\""), "users.dana.password: a token with role read can only say `***`"),
        ("[connections.warehouse]\nhost = \"h\"\nusername = \"u\"\npassword = { file = \"/etc/shadow\" }\n".into(), "can only say `***`"),
        ("[connections.new]\nhost = \"h\"\nusername = \"u\"\nsslrootcert = \"/etc/shadow\"\n".into(), "does not name yet"),
        ("[server]\nlog_level = \"debug\"\n".into(), "server: a token with role read plans"),
        (format!("[management.tokens.ops]\ntoken = \"{ADMIN}\"\n"), "management: a token with role read plans"),
        ("[users.x]\nnothing = 1\n".into(), "unknown key `nothing`"),
    ] {
        let said = plan(&text);
        assert!(said.status >= 400 && said.detail().contains(why), "{text}: {said:?}");
    }
    assert_eq!(plan("[groups.g]\n").ok()["plan"], json!([]));
    assert_eq!((api.text(), runs()), (before, first), "something was written, or run");
}
