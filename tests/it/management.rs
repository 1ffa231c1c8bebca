//! The management API: the guide's calls by real curl, what it refuses and how it says so, who may do what, and one file
//! that stays whole whoever writes.

mod access;
mod corners;
mod declared;
mod document;
mod file;
mod lists;
mod operate;
mod orders;
mod page;
mod secrets;
mod tokens;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::house::{PATIENCE, Pgusher, eventually, free_port, pair, run, warehouse};

pub(crate) const ADMIN: &str = "canary-admin-0123456789";
pub(crate) const READER: &str = "canary-reader-0123456789";

/// `[management]` on this port, with a token of each role.
pub(crate) fn section(port: u16, more: &str) -> String {
    format!(
        "\n[management]\nlisten = \"127.0.0.1:{port}\"\n{more}\n\
         [management.tokens.ops]\ntoken = \"{ADMIN}\"\nrole = \"admin\"\n\
         [management.tokens.looker]\ntoken = \"{READER}\"\n"
    )
}

pub(crate) const MANY: &str = "requests_per_minute = 1000000\nmax_failed_requests = 1000000";

/// A pgusher and its API.
pub(crate) struct Managed {
    pub pgusher: Pgusher,
    pub port: u16,
    agent: ureq::Agent,
}

/// A status, the headers, and the body.
#[derive(Debug)]
pub(crate) struct Said {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub text: String,
}

impl Said {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn detail(&self) -> String {
        let body = self.json();
        assert_eq!(body["status"], json!(self.status), "{self:?}");
        body["detail"].as_str().unwrap().to_owned()
    }

    pub(crate) fn tag(&self) -> &str {
        &self.headers["etag"]
    }

    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{self:?}");
        self.json()
    }
}

impl Managed {
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(config, MANY)
    }

    pub(crate) fn start_with(config: &str, more: &str) -> Self {
        let port = free_port();
        Self::on(Pgusher::start(&(config.to_owned() + &section(port, more))), port)
    }

    pub(crate) fn on(pgusher: Pgusher, port: u16) -> Self {
        let config =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(PATIENCE)).build();
        eventually("the API listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { pgusher, port, agent: config.into() }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/api/v1{path}", self.port)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.pgusher.folder.join("pgusher.toml")
    }

    pub(crate) fn text(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    /// Any request.
    pub(crate) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Said {
        let mut request = ureq::http::Request::builder().method(method).uri(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = match method {
            "GET" => self.agent.run(request.body(()).unwrap()).unwrap(),
            _ => self.agent.run(request.body(body.to_owned()).unwrap()).unwrap(),
        };
        let headers = answer.headers().iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        Said { status: answer.status().as_u16(), headers, text: answer.body_mut().read_to_string().unwrap() }
    }

    /// As the administrator, with JSON.
    pub(crate) fn send(&self, method: &str, path: &str, body: Value) -> Said {
        self.send_with(method, path, body, &[])
    }

    pub(crate) fn send_with(&self, method: &str, path: &str, body: Value, more: &[(&str, &str)]) -> Said {
        let authorization = format!("Bearer {ADMIN}");
        let mut headers =
            vec![("authorization", authorization.as_str()), ("content-type", "application/json")];
        headers.extend(more);
        self.call(method, path, &headers, &body.to_string())
    }

    pub(crate) fn get(&self, path: &str) -> Said {
        self.call("GET", path, &[("authorization", &format!("Bearer {ADMIN}"))], "")
    }

    pub(crate) fn delete(&self, path: &str) -> Said {
        self.call("DELETE", path, &[("authorization", &format!("Bearer {ADMIN}"))], "")
    }

    /// The identifier of something that has a name.
    pub(crate) fn id(&self, kind: &str, name: &str) -> String {
        let all = self.get(&format!("/{kind}")).ok();
        let list = all.as_object().unwrap().values().find_map(Value::as_array).unwrap().clone();
        let found =
            list.iter().find(|one| one["name"] == json!(name)).unwrap_or_else(|| panic!("no {name}: {all}"));
        found["id"].as_str().unwrap().to_owned()
    }

    fn psql(&self, database: &str, user: &str, sql: &str) -> Result<String, String> {
        let target = format!(
            "host=127.0.0.1 port={} user={user} dbname='{database}' connect_timeout=15",
            self.pgusher.port
        );
        let output =
            crate::house::psql().args(["-XAtq", "-d", &target, "-c", sql]).env("PGPASSWORD", user).output();
        let output = output.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

/// Nothing but users: no connection.
fn empty() -> String {
    "[server]\nlisten = [\"127.0.0.1:@PORT@\"]\nthreads = 2\nlog_level = \"debug\"\naudit_file = \"audit.jsonl\"\n\
     \n# nothing yet\n[connections]\n\n[attributes.environment]\n"
        .to_owned()
}

/// The guide's calls, as they are written, with the quote that its extraction lost.
const GUIDE: [&str; 5] = [
    r#"curl -L -X POST 'https://myorg.omniapp.co/api/v1/connections' \
-H 'Authorization: Bearer <TOKEN>' \
-H 'Content-Type: application/json' \
-d '{
"dialect": "postgres",
"name": "Postgres (Development)",
"host": "postgres-dev.my-org.com",
"port": 5432,
"database": "dev",
"username": "dbuser",
"passwordUnencrypted": "mypassword",
"includeSchemas": "public",
"queryTimeoutSeconds": 900
}'"#,
    r#"curl -L -X POST 'https://myorg.omniapp.co/api/v1/connections' \
-H 'Authorization: Bearer <TOKEN>' \
-H 'Content-Type: application/json' \
-d '{
"dialect": "postgres",
"name": "Postgres (Production)",
"host": "postgres-prod.my-org.com",
"port": 5432,
"database": "prod",
"username": "dbuser",
"passwordUnencrypted": "mypassword",
"includeSchemas": "public",
"queryTimeoutSeconds": 900
}'"#,
    r#"curl -L -X POST 'https://myorg.omniapp.co/api/v1/connection-environments' \
-H 'Authorization: Bearer <TOKEN>' \
-H 'Content-Type: application/json' \
-d '{
"baseConnectionId": "c0f12353-4817-4398-bcc0-d501e6dd2f64",
"environmentConnectionIds": "b31f9c9f-208d-48a2-9ae3-ff80f2c79fed"
}'"#,
    r#"curl -L -X PATCH 'https://myorg.omniapp.co/api/v1/connections/c0f12353-4817-4398-bcc0-d501e6dd2f64' \
-H 'Authorization: Bearer <TOKEN>' \
-H 'Content-Type: application/json' \
-d '{
"userAttributeNameForConnectionEnvironments": "environment",
"userAttributeValuesForDefaultEnvironment": "dev"
}'"#,
    r#"curl -L -X PUT 'https://myorg.omniapp.co/api/v1/connection-environments/b31f9c9f-208d-48a2-9ae3-ff80f2c79fed' \
-H 'Authorization: Bearer <TOKEN>' \
-H 'Content-Type: application/json' \
-d '{
"userAttributeValues": "prod"
}'"#,
];

#[test]
fn the_guides_five_calls_work_as_they_are_written() {
    let pair = pair();
    for server in [&pair.dev, &pair.prod] {
        let sql = "DO $$ BEGIN CREATE ROLE dbuser LOGIN PASSWORD 'mypassword'; EXCEPTION WHEN duplicate_object THEN NULL; END $$";
        server.sql("postgres", sql);
    }
    let api = Managed::start(&empty());
    for (name, value) in
        [("pete", json!("prod")), ("dana", json!(["dev"])), ("stray", json!("staging")), ("nora", json!(""))]
    {
        let body =
            json!({ "name": name, "passwordUnencrypted": name, "attributes": { "environment": value } });
        assert_eq!(api.send("POST", "/users", body).status, 201, "{name}");
    }
    let (mut base, mut environment) = (String::new(), String::new());
    let call = |text: &str, base: &str, environment: &str| -> Value {
        let command = text
            .replace("https://myorg.omniapp.co", &format!("http://127.0.0.1:{}", api.port))
            .replace("<TOKEN>", ADMIN)
            .replace(
                "\"postgres-dev.my-org.com\",\n\"port\": 5432",
                &format!("\"127.0.0.1\",\n\"port\": {}", pair.dev.port),
            )
            .replace(
                "\"postgres-prod.my-org.com\",\n\"port\": 5432",
                &format!("\"127.0.0.1\",\n\"port\": {}", pair.prod.port),
            )
            .replace("c0f12353-4817-4398-bcc0-d501e6dd2f64", base)
            .replace("b31f9c9f-208d-48a2-9ae3-ff80f2c79fed", environment);
        let output = run(Command::new("bash").args(["-c", &command]));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["success"], json!(true), "{answer}");
        answer
    };
    let lands = |user: &str| api.psql("Postgres (Development)", user, "SELECT name FROM whoami");
    // Every state on the way is a valid one, and everybody is where spec 2 says.
    for (step, text) in GUIDE.iter().enumerate() {
        let answer = call(text, &base, &environment);
        match step {
            0 => base = answer["data"].as_str().unwrap().to_owned(),
            1 => environment = answer["data"].as_str().unwrap().to_owned(),
            2 => {
                assert_eq!(answer["data"][0]["environmentConnectionId"], json!(environment));
                assert_eq!(answer["connectionEnvironments"][0]["baseConnectionId"], json!(base));
            }
            3 => {
                let picker = &answer["connection"]["environmentUserAttribute"];
                assert_eq!(*picker, json!({ "attributeName": "environment", "defaultValues": ["dev"] }));
            }
            _ => {
                let stored = api.get(&format!("/connection-environments/{environment}")).ok();
                assert_eq!(stored, answer["connectionEnvironment"]);
                assert_eq!(stored["userAttributeValues"], json!(["prod"]));
            }
        }
        for user in ["pete", "dana", "stray", "nora"] {
            let expected = if step == 4 && user == "pete" { "prod" } else { "dev" };
            assert_eq!(lands(user).unwrap(), expected, "{user} after step {}", step + 1);
        }
        let prod = api.psql("Postgres (Production)", "dana", "SELECT name FROM whoami");
        match step {
            0 => assert!(prod.unwrap_err().contains("does not exist")),
            // Nobody's environment yet: a base like any other.
            1 => assert_eq!(prod.unwrap(), "prod"),
            _ => assert!(prod.unwrap_err().contains("does not exist")),
        }
    }
    assert_eq!(
        api.psql("Postgres (Development)", "pete", "SHOW search_path; SHOW statement_timeout").unwrap(),
        "\"public\"\n15min"
    );
    assert_eq!(api.psql("Postgres (Development)", "pete", "SELECT current_user").unwrap(), "dbuser");
    // The same is there after a restart: the file is the truth, and holds no password.
    assert!(!api.text().contains("mypassword") && api.text().contains("# nothing yet"), "{}", api.text());
    let folder = api.pgusher.folder.join("pgusher.toml.secrets");
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let secrets: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(secrets.len(), 2);
    assert!(secrets.iter().all(|secret| secret.metadata().unwrap().permissions().mode() & 0o777 == 0o600));
    let Managed { mut pgusher, port, .. } = api;
    pgusher.signal("TERM");
    assert!(pgusher.child.wait().unwrap().success());
    let text = std::fs::read_to_string(pgusher.folder.join("pgusher.toml")).unwrap();
    pgusher.start_again(&text);
    let api = Managed::on(pgusher, port);
    assert_eq!(api.psql("Postgres (Development)", "pete", "SELECT name FROM whoami").unwrap(), "prod");
    assert_eq!(api.get(&format!("/connections/{base}")).ok()["name"], json!("Postgres (Development)"));
}

#[test]
fn both_forms_and_both_identifiers_are_taken_and_what_is_ambiguous_is_refused() {
    let api = Managed::start(&warehouse("", "", ""));
    let (base, environment) = (api.id("connections", "warehouse"), api.id("connections", "warehouse_prod"));
    let association = api.get("/connection-environments").ok()["connectionEnvironments"][0]["id"].clone();
    let association = association.as_str().unwrap();
    let patch = |body: Value| api.send("PATCH", &format!("/connections/{base}"), body);
    let picker = |name: &str, values: Value| json!({ "attributeName": name, "defaultValues": values });
    for body in [
        json!({ "environmentUserAttribute": { "attributeName": "environment", "defaultValues": "dev, development" } }),
        json!({ "environmentUserAttribute": { "attributeName": "environment", "defaultValues": ["dev", "development"] } }),
        json!({ "userAttributeNameForConnectionEnvironments": "environment", "userAttributeValuesForDefaultEnvironment": "dev,development" }),
        json!({ "userAttributeValuesForDefaultEnvironment": ["dev", "development"] }),
        json!({}),
    ] {
        let answer = patch(body.clone()).ok();
        let expected = picker("environment", json!(["dev", "development"]));
        assert_eq!(answer["connection"]["environmentUserAttribute"], expected, "{body}");
    }
    let both =
        patch(json!({ "environmentUserAttribute": null, "userAttributeValuesForDefaultEnvironment": "dev" }));
    assert_eq!(both.status, 400);
    assert!(
        both.detail().starts_with("Bad Request: environmentUserAttribute: give either"),
        "{}",
        both.detail()
    );
    // Commas of a text part values, spaces around them do not count; in an array everything counts.
    for id in [association, environment.as_str()] {
        let put = |values: Value| {
            let answer = api.send(
                "PUT",
                &format!("/connection-environments/{id}"),
                json!({ "userAttributeValues": values }),
            );
            answer.ok()["connectionEnvironment"]["userAttributeValues"].clone()
        };
        assert_eq!(put(json!(" prod , live ")), json!(["prod", "live"]));
        assert_eq!(put(json!([" prod ", "a,b"])), json!([" prod ", "a,b"]));
        assert_eq!(put(json!("")), json!([]));
        assert_eq!(put(json!("prod")), json!(["prod"]));
        assert_eq!(api.get(&format!("/connection-environments/{id}")).ok()["id"], json!(association));
    }
    // Taken away: everybody goes to the base, and the users keep their values.
    let answer = patch(json!({ "environmentUserAttribute": null })).ok();
    assert_eq!(answer["connection"]["environmentUserAttribute"], Value::Null);
    assert_eq!(api.pgusher.psql("pete", "SELECT name FROM whoami").unwrap(), "dev");
    patch(json!({ "userAttributeNameForConnectionEnvironments": "environment" })).ok();
    assert_eq!(api.pgusher.psql("pete", "SELECT name FROM whoami").unwrap(), "prod");
}

/// Every error text of spec 8, and those of its neighbours.
#[test]
fn every_error_says_what_is_wrong_with_what() {
    let api = Managed::start(&warehouse("", "", ""));
    let base = api.id("connections", "warehouse");
    let nobody = "11111111-2222-4333-8444-555555555555";
    let create = json!({ "dialect": "postgres", "name": "n", "host": "h", "username": "u" });
    let with = |key: &str, value: Value| {
        let mut body = create.clone();
        body[key] = value;
        body.to_string()
    };
    let without = |key: &str| {
        let mut body = create.clone();
        body.as_object_mut().unwrap().remove(key);
        body.to_string()
    };
    let connections = "/connections".to_owned();
    let one = format!("/connections/{base}");
    let environments = "/connection-environments".to_owned();
    let long = "x".repeat(256);
    let table: Vec<(&str, String, String, u16, String)> = vec![
        ("POST", connections.clone(), without("host"), 400, "Bad Request: host: Required".into()),
        ("POST", connections.clone(), without("name"), 400, "Bad Request: name: Required".into()),
        ("POST", connections.clone(), without("username"), 400, "Bad Request: username: Required".into()),
        ("POST", connections.clone(), without("dialect"), 400, "Bad Request: dialect: Required".into()),
        ("POST", connections.clone(), "{}".into(), 400, "Bad Request: dialect: Required; name: Required; host: Required; username: Required".into()),
        ("POST", connections.clone(), "{".into(), 400, "Bad Request: Invalid JSON".into()),
        ("POST", connections.clone(), String::new(), 400, "Bad Request: Empty request body".into()),
        ("POST", connections.clone(), " \n".into(), 400, "Bad Request: Empty request body".into()),
        ("POST", connections.clone(), "[]".into(), 400, "Bad Request: Expected object, received array".into()),
        ("POST", connections.clone(), with("dialect", json!("mysql")), 400, "Invalid connection dialect".into()),
        ("POST", connections.clone(), with("host", json!(5)), 400, "Bad Request: host: Expected string, received number".into()),
        ("POST", connections.clone(), with("port", json!("5432")), 400, "Bad Request: port: Expected number, received string".into()),
        ("POST", connections.clone(), with("port", json!(65536)), 400, "Bad Request: port: Number must be less than or equal to 65535".into()),
        ("POST", connections.clone(), with("port", json!(0)), 400, "Bad Request: port: Number must be greater than or equal to 1".into()),
        ("POST", connections.clone(), with("port", json!(1.5)), 400, "Bad Request: port: Expected integer, received float".into()),
        ("POST", connections.clone(), with("queryTimeoutSeconds", json!(3601)), 400, "Bad Request: queryTimeoutSeconds: Number must be less than or equal to 3600".into()),
        ("POST", connections.clone(), with("name", json!("")), 400, "Bad Request: name: String must contain at least 1 character(s)".into()),
        ("POST", connections.clone(), with("name", json!(long)), 400, "Bad Request: name: String must contain at most 255 character(s)".into()),
        ("POST", connections.clone(), with("name", json!("a\u{1b}[31mb")), 400, "Bad Request: name: control characters are not allowed".into()),
        ("POST", connections.clone(), with("hosst", json!("h")), 400, "Bad Request: hosst: Unrecognized key (did you mean host?)".into()),
        ("POST", connections.clone(), with("sslMode", json!("on")), 400, "Bad Request: sslMode: Expected one of: disable, allow, prefer, require, verify-ca, verify-full".into()),
        ("POST", connections.clone(), with("name", json!("pgbouncer")), 400, "Bad Request: `pgbouncer` is the name of the console".into()),
        ("POST", connections.clone(), "{\"name\": \"a\", \"name\": \"b\"}".into(), 400, "Bad Request: Invalid JSON: a key stands twice, in line 1".into()),
        ("POST", connections.clone(), with("name", json!("warehouse")), 409, "Connection with name warehouse already exists".into()),
        ("PATCH", "/connections/1".into(), "{}".into(), 404, "Connection 1 does not exist".into()),
        ("PATCH", "/connections/%ff".into(), "{}".into(), 400, "Bad Request: id: Invalid uuid".into()),
        ("PATCH", "/connections/..%2f..%2fetc%2fpasswd".into(), "{}".into(), 404, "Connection ../../etc/passwd does not exist".into()),
        ("PATCH", format!("/connections/{{{base}}}"), "{}".into(), 400, "Bad Request: id: Invalid uuid".into()),
        ("PATCH", format!("/connections/{nobody}"), "{}".into(), 404, format!("Connection with id {nobody} does not exist")),
        ("GET", format!("/connections/{nobody}"), String::new(), 404, format!("Connection with id {nobody} does not exist")),
        ("DELETE", format!("/connections/{nobody}"), String::new(), 404, format!("Connection with id {nobody} does not exist")),
        ("PATCH", one.clone(), json!({ "host": null }).to_string(), 400, "Bad Request: host: Expected string, received null".into()),
        ("PATCH", one.clone(), json!({ "dialect": "snowflake" }).to_string(), 400, "Invalid connection dialect".into()),
        ("PATCH", one.clone(), json!({ "production": true }).to_string(), 400,
            "Bad Request: users that match nothing would reach this production database (set on_unmatched = \"reject\", or allow_production_fallback = true if that is meant)".into()),
        ("PATCH", one.clone(), json!({ "userAttributeValuesForDefaultEnvironment": "prod", "environmentName": "dev" }).to_string(), 409, "User attribute value \"prod\" is already in use".into()),
        ("DELETE", one.clone(), String::new(), 409, format!("Connection with id {base} is in use: it has environments (drain=true deletes it all the same)")),
        ("POST", environments.clone(), json!({ "environmentConnectionIds": nobody }).to_string(), 400, "Bad Request: baseConnectionId: Required".into()),
        ("POST", environments.clone(), json!({ "baseConnectionId": base }).to_string(), 400, "Bad Request: environmentConnectionIds: Required".into()),
        ("POST", environments.clone(), json!({ "baseConnectionId": base, "environmentConnectionIds": "" }).to_string(), 400, "Bad Request: environmentConnectionIds: Required".into()),
        ("POST", environments.clone(), json!({ "baseConnectionId": "x", "environmentConnectionIds": nobody }).to_string(), 400, "Bad Request: baseConnectionId: Invalid uuid".into()),
        ("POST", environments.clone(), json!({ "baseConnectionId": base, "environmentConnectionIds": [nobody] }).to_string(), 404, format!("Connection with id {nobody} does not exist")),
        ("POST", environments.clone(), json!({ "baseConnectionId": base, "environmentConnectionIds": [base] }).to_string(), 400, "Bad Request: a connection cannot be its own environment".into()),
        ("PUT", format!("/connection-environments/{nobody}"), json!({ "userAttributeValues": "a" }).to_string(), 404, format!("Connection environment with id {nobody} does not exist")),
        ("DELETE", format!("/connection-environments/{nobody}"), String::new(), 404, format!("Connection environment with id {nobody} does not exist")),
        ("GET", "/connection-environments/zzz".into(), String::new(), 404, "Connection zzz does not exist".into()),
        ("GET", "/connections?sortField=password".into(), String::new(), 400, "Bad Request: sortField: Expected one of: name, database, host, username".into()),
        ("GET", "/connections?nmae=x".into(), String::new(), 400, "Bad Request: nmae: Unrecognized key (there are: name, database, dialect, q, sortField, sortDirection, offset, limit)".into()),
        ("POST", "/connections?dry_run=1".into(), create.to_string(), 400, "Bad Request: dry_run: Expected true or false".into()),
        ("GET", format!("/users/{nobody}"), String::new(), 404, format!("User with id {nobody} does not exist")),
        ("GET", format!("/groups/{nobody}"), String::new(), 404, format!("Group with id {nobody} does not exist")),
        ("GET", format!("/user-attributes/{nobody}"), String::new(), 404, format!("User attribute with id {nobody} does not exist")),
        ("POST", "/users".into(), json!({ "name": "x" }).to_string(), 400, "Bad Request: user `x` has no password (set `password`; `pgusher hash-password` makes a verifier)".into()),
        ("GET", "/resolve?user=pete".into(), String::new(), 400, "Bad Request: database: Required".into()),
        ("GET", "/resolve?user=who&database=warehouse".into(), String::new(), 404, "User with name who does not exist".into()),
        ("DELETE", "/sessions/99999".into(), String::new(), 404, "Session with id 99999 does not exist".into()),
        ("GET", "/generations/77".into(), String::new(), 404, "Generation with id 77 does not exist".into()),
        ("GET", "/audit".into(), String::new(), 409, "there is no audit: set [server] audit_file".into()),
        ("GET", "/nothing".into(), String::new(), 404, "there is no such path: see /api/v1/openapi.json".into()),
        ("PUT", "/connections".into(), "{}".into(), 405, "this path does not take that method".into()),
    ];
    let before = api.text();
    for (method, path, body, status, detail) in table {
        let authorization = format!("Bearer {ADMIN}");
        let headers = [("authorization", authorization.as_str()), ("content-type", "application/json")];
        let said = api.call(method, &path, &headers, &body);
        assert_eq!((said.status, said.detail()), (status, detail), "{method} {path} {body}");
    }
    // None of them has changed anything.
    assert_eq!(api.text(), before);
    assert_eq!(api.get("/generations").ok()["generations"].as_array().unwrap().len(), 1);
    for (kind, body) in [("text/plain", "{}"), ("application/x-www-form-urlencoded", "name=x"), ("", "{}")] {
        let authorization = format!("Bearer {ADMIN}");
        let said = api.call(
            "POST",
            "/connections",
            &[("authorization", &authorization), ("content-type", kind)],
            body,
        );
        assert_eq!(
            (said.status, said.detail().as_str()),
            (415, "Content-Type must be application/json"),
            "{kind}"
        );
    }
}
