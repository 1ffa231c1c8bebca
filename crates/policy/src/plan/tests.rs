//! Whatever is changed in a file, a plan tells of it.

use std::path::Path;

use super::*;
use crate::config::Surroundings;
use crate::config::manual::OptionDoc;

/// Another value for each option, with what else it needs. `None`: what it would change, a plan does not have to tell.
type Others = &'static [(&'static str, Option<&'static str>)];

const SERVER: Others = &[
    ("listen", Some("listen = [\"127.0.0.1:7432\"]")),
    ("metrics_listen", Some("metrics_listen = \"127.0.0.1:9999\"")),
    ("so_reuseport", Some("so_reuseport = true")),
    ("tls", Some("tls = { certificate = \"a.crt\", key = \"a.key\" }")),
    ("threads", Some("threads = 7")),
    ("thread_full", Some("thread_full = 50")),
    ("io", Some("io = \"epoll\"")),
    ("auth_type", Some("auth_type = \"md5\"")),
    ("auth_key_file", Some("auth_key_file = \"other.key\"")),
    ("max_failed_logins", Some("max_failed_logins = 7")),
    ("max_client_conn", Some("max_client_conn = 777")),
    ("reserved_connections", Some("reserved_connections = 7")),
    ("max_user_client_connections", Some("max_user_client_connections = 7")),
    ("client_login_timeout", Some("client_login_timeout = \"7s\"")),
    ("client_idle_timeout", Some("client_idle_timeout = \"7s\"")),
    ("client_write_timeout", Some("client_write_timeout = \"7s\"")),
    ("idle_transaction_timeout", Some("idle_transaction_timeout = \"7s\"")),
    ("query_wait_timeout", Some("query_wait_timeout = \"7s\"")),
    ("query_wait_notify", Some("query_wait_notify = \"7s\"")),
    ("cancel_wait_timeout", Some("cancel_wait_timeout = \"7s\"")),
    ("pool_mode", Some("pool_mode = \"session\"")),
    ("default_pool_size", Some("default_pool_size = 7")),
    ("min_pool_size", Some("min_pool_size = 7")),
    ("reserve_pool_size", Some("reserve_pool_size = 7")),
    ("reserve_pool_timeout", Some("reserve_pool_timeout = \"7s\"")),
    ("max_pinned", Some("max_pinned = 7")),
    ("max_host_connections", Some("max_host_connections = 77")),
    ("server_connect_timeout", Some("server_connect_timeout = \"7s\"")),
    ("server_idle_timeout", Some("server_idle_timeout = \"7s\"")),
    ("server_lifetime", Some("server_lifetime = \"7s\"")),
    ("tcp_keepidle", Some("tcp_keepidle = \"7s\"")),
    ("tcp_user_timeout", Some("tcp_user_timeout = \"7s\"")),
    ("catalog_interval", Some("catalog_interval = \"7s\"")),
    ("max_prepared_statements", Some("max_prepared_statements = 7")),
    ("on_move", Some("on_move = \"keep\"")),
    ("shutdown_timeout", Some("shutdown_timeout = \"7s\"")),
    ("login_notice", Some("login_notice = true")),
    ("application_name_add_user", Some("application_name_add_user = true")),
    ("audit_file", Some("audit_file = \"a.jsonl\"")),
    ("audit_max_size", Some("audit_max_size = \"7MiB\"")),
    ("audit_failure", Some("audit_failure = \"refuse\"")),
    ("grants_file", Some("grants_file = \"other.grants\"")),
    ("log_format", Some("log_format = \"json\"")),
    ("log_level", Some("log_level = \"debug\"")),
];

const TLS: Others = &[
    ("mode", Some("mode = \"require\"")),
    ("certificate", Some("certificate = \"other.crt\"")),
    ("key", Some("key = \"other.key\"")),
    ("client_ca", Some("client_ca = \"ca.crt\"")),
    ("client_crl", Some("client_ca = \"ca.crt\"\nclient_crl = \"ca.crl\"")),
];

const CONNECTION: Others = &[
    ("host", Some("host = \"other\"")),
    ("port", Some("port = 7777")),
    ("database", Some("database = \"other\"")),
    ("username", Some("username = \"other\"")),
    ("password", Some("password = \"other\"")),
    ("sslmode", Some("sslmode = \"require\"")),
    ("sslnegotiation", Some("sslmode = \"require\"\nsslnegotiation = \"direct\"")),
    ("sslrootcert", Some("sslrootcert = \"ca.crt\"")),
    ("sslcrl", Some("sslcrl = \"ca.crl\"")),
    ("sslcert", Some("sslcert = \"a.crt\"\nsslkey = \"a.key\"")),
    ("sslkey", Some("sslcert = \"a.crt\"\nsslkey = \"b.key\"")),
    ("channel_binding", Some("sslmode = \"require\"\nchannel_binding = \"require\"")),
    ("scram_min_iterations", Some("scram_min_iterations = 1000")),
    ("require_auth", Some("require_auth = \"scram-sha-256\"")),
    ("include_schemas", Some("include_schemas = [\"s\"]")),
    ("query_timeout", Some("query_timeout = \"7s\"")),
    ("connect_timeout", Some("connect_timeout = \"7s\"")),
    ("pool_mode", Some("pool_mode = \"session\"")),
    ("isolation", Some("isolation = \"strict\"")),
    ("pool_size", Some("pool_size = 7")),
    ("min_pool_size", Some("min_pool_size = 7")),
    ("reserve_pool_size", Some("reserve_pool_size = 7")),
    ("max_pinned", Some("max_pinned = 7")),
    ("max_client_connections", Some("max_client_connections = 7")),
    // What the API calls it: nobody goes elsewhere, and nothing is done otherwise.
    ("id", None),
    ("aliases", Some("aliases = [\"other\"]")),
    ("user_attribute", Some("user_attribute = \"tier\"")),
    ("default_values", Some("user_attribute = \"env\"\ndefault_values = [\"dev\"]")),
    ("environment_name", Some("user_attribute = \"env\"\nenvironment_name = \"other\"")),
    (
        "environments",
        Some("user_attribute = \"env\"\nenvironments = [{ connection = \"p\", values = [\"prod\"] }]"),
    ),
    ("on_unmatched", Some("user_attribute = \"env\"\non_unmatched = \"reject\"")),
    ("production", Some("production = true")),
    ("allow_production_fallback", Some("allow_production_fallback = true")),
];

const USER: Others = &[
    ("password", Some("password = \"other\"")),
    ("auth_type", Some("auth_type = \"password\"")),
    ("groups", Some("groups = [\"g\"]")),
    ("attributes", Some("attributes = { e = \"prod\" }")),
    ("pool_mode", Some("pool_mode = \"session\"")),
    ("max_client_connections", Some("max_client_connections = 7")),
    ("console", Some("console = \"admin\"")),
    ("disabled", Some("disabled = true")),
];

const MANAGEMENT: Others = &[
    ("listen", Some("listen = \"127.0.0.1:6444\"")),
    ("tokens", Some("tokens = { t = { token = \"0123456789abcdef-other\" } }")),
    ("requests_per_minute", Some("requests_per_minute = 7")),
    ("max_failed_requests", Some("max_failed_requests = 7")),
    ("secrets", Some("secrets = \"inline\"")),
    ("secrets_folder", Some("secrets_folder = \"other\"")),
];

/// A file with one of everything; each table without the options of `table` that are set anew.
fn file(table: &str, lines: &str) -> String {
    let tables = [
        ("server", "listen = [\"127.0.0.1:6432\"]"),
        ("connections.w", "host = \"h\"\nusername = \"u\"\npassword = \"p\""),
        (
            "connections.b",
            "host = \"b\"\nusername = \"u\"\npassword = \"p\"\nuser_attribute = \"e\"\ndefault_values = [\"dev\"]\non_unmatched = \"reject\"\nenvironments = [{ connection = \"q\", values = [\"prod\"] }]",
        ),
        ("connections.q", "host = \"q\"\nusername = \"u\"\npassword = \"p\""),
        ("connections.p", "host = \"x\"\nusername = \"u\"\npassword = \"p\""),
        ("attributes.env", "default = \"prod\""),
        ("groups.g", "attributes = { e = \"prod\" }"),
        ("users.alice", "password = \"p\"\nattributes = { env = \"prod\" }"),
        ("management", "listen = \"127.0.0.1:6433\"\ntokens = { t = { token = \"0123456789abcdef\" } }"),
    ];
    let set: BTreeSet<_> =
        lines.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
    let mut text = String::new();
    for (name, own) in tables {
        text += &format!("[{name}]\n");
        let is_kept = |line: &&str| {
            name != table || line.split_once(" = ").is_none_or(|(option, _)| !set.contains(option))
        };
        text += &own.lines().filter(is_kept).map(|line| format!("{line}\n")).collect::<String>();
        if name == table {
            text += &format!("{lines}\n");
        }
    }
    text
}

fn draft(text: &str) -> Config {
    match Config::draft(Path::new("pgusher.toml"), text, Surroundings::default()) {
        Ok(checked) => checked.config,
        Err(problems) => panic!("{text}\n{problems:?}"),
    }
}

fn notices(table: &str, options: &[OptionDoc], others: Others) {
    let names: BTreeSet<_> = options.iter().map(|option| option.name).collect();
    let listed: BTreeSet<_> = others.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, listed, "[{table}]: an option without another value here, or one that is none");
    for (name, other) in others {
        let Some(other) = other else { continue };
        // What it needs beside it is there before, too.
        let (needed, changed) = other.rsplit_once('\n').unwrap_or(("", other));
        let (before, after) = match table {
            "tls" => {
                let with = |lines: &str| {
                    let mut all = vec!["mode = \"prefer\"", "certificate = \"a.crt\"", "key = \"a.key\""];
                    let name = |line: &str| line.split(" = ").next().unwrap_or_default().to_owned();
                    all.retain(|line| !lines.lines().any(|new| name(new) == name(line)));
                    all.extend(lines.lines().filter(|line| !line.is_empty()));
                    file("server", &format!("tls = {{ {} }}", all.join(", ")))
                };
                (with(needed), with(&format!("{needed}\n{changed}")))
            }
            _ => (file(table, needed), file(table, other)),
        };
        let plan = Plan::between(&draft(&before), &draft(&after));
        assert!(!plan.rows().is_empty(), "[{table}] {name}: a plan does not tell of\n{other}");
        assert!(Plan::between(&draft(&after), &draft(&after)).rows().is_empty(), "[{table}] {name}");
    }
}

#[test]
fn every_option_that_is_changed_is_in_the_plan() {
    notices("server", &file::Server::manual().2, SERVER);
    notices("tls", &file::ClientTls::manual().2, TLS);
    notices("connections.w", &file::Connection::manual().2, CONNECTION);
    notices("users.alice", &file::User::manual().2, USER);
    notices("management", &file::Management::manual().2, MANAGEMENT);
}

fn config(users: &[String]) -> Config {
    let mut text = "[connections.w]\nhost = \"dev\"\nusername = \"u\"\n\
         user_attribute = \"environment\"\ndefault_values = [\"dev\"]\n\
         environments = [{ connection = \"p\", name = \"prod\", values = [\"prod\"] }]\n\
         [connections.p]\nhost = \"prod\"\nusername = \"u\"\nproduction = true\n\
         [attributes.environment]\n"
        .to_owned();
    for user in users {
        text += &format!("[users.{user}]\npassword = \"x\"\nattributes = {{ environment = \"prod\" }}\n");
    }
    match Config::draft(Path::new("pgusher.toml"), &text, Surroundings::default()) {
        Ok(checked) => checked.config,
        Err(problems) => panic!("{problems:?}"),
    }
}

/// However many others there are, in whatever order.
#[test]
fn who_reaches_production_is_told_first_and_a_plan_keeps_some_thousands_of_lines() {
    let none = config(&[]);
    let decoys: Vec<String> = (0..220).map(|n| format!("aa{n:03}")).collect();
    let with_one = config(&[&decoys[..], &["zed".to_owned()]].concat());
    let told = |plan: &Plan| plan.summary().concat().iter().filter(|l| l.contains("zed")).count();
    assert!(told(&Plan::between(&none, &with_one)) > 0);
    assert!(told(&Plan::between(&config(&decoys), &with_one)) > 0);
    assert!(Plan::between(&none, &with_one).summary().iter().all(|lines| lines.len() <= MAX_EVENT));
    let many = config(&(0..MAX_ROUTES + 7).map(|n| format!("u{n}")).collect::<Vec<_>>());
    let plan = Plan::between(&none, &many);
    assert_eq!(plan.routes.len(), MAX_ROUTES);
    let rows = plan.rows();
    assert!(rows.len() <= MAX_ROUTES + 10, "{}", rows.len());
    assert!(rows.iter().any(|row| row[0] == "production" && row[1] == "and 7 more"));
}
