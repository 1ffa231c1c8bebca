//! The console: PgBouncer's commands and tables, our own, in both protocols, and who may do what.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use pgusher::inside::Command;

use super::house::{Pgusher, eventually, warehouse};
use super::state::done;
use super::wire::{Message, Raw, bind, describe_statement, execute, message, parse, query, startup, sync};

pub(crate) const OPERATORS: &str = "\n[users.operator]\nauth_type = \"trust\"\nconsole = \"admin\"\n\
    \n[users.watcher]\nauth_type = \"trust\"\nconsole = \"stats\"\n";

fn config(server: &str, base: &str) -> String {
    warehouse(server, base, "") + OPERATORS
}

pub(crate) fn console(pgusher: &Pgusher, user: &str) -> Raw {
    Raw::login_with(pgusher.address(), 0x0003_0000, &[("user", user), ("database", "pgusher")])
}

/// The names of the columns, and the rows.
fn table(raw: &mut Raw, sql: &str) -> (Vec<String>, Vec<Vec<String>>) {
    let answer = done(raw, sql);
    let described = answer.iter().find(|m| m.tag == 'T').unwrap_or_else(|| panic!("{sql}: {answer:?}"));
    let mut rest = &described.body[2..];
    let mut names = Vec::new();
    while let Some(end) = rest.iter().position(|b| *b == 0) {
        names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        rest = &rest[end + 19..];
    }
    (names, answer.iter().filter(|m| m.tag == 'D').map(Message::columns).collect())
}

/// One value: of the row in which a column is this, another column.
pub(crate) fn cell(raw: &mut Raw, sql: &str, key: (&str, &str), column: &str) -> String {
    let (names, rows) = table(raw, sql);
    let at = |name: &str| names.iter().position(|n| n == name).unwrap_or_else(|| panic!("{sql}: no {name}"));
    let row = rows.iter().find(|row| row[at(key.0)] == key.1);
    row.map(|row| row[at(column)].clone()).unwrap_or_default()
}

fn error(raw: &mut Raw, sql: &str) -> String {
    let answer = raw.ask(&query(sql));
    let error = answer.iter().find(|m| m.tag == 'E').unwrap_or_else(|| panic!("{sql}: {answer:?}"));
    format!("{} {}", error.field('C'), error.field('M'))
}

/// PgBouncer 1.25's columns, in its order.
const PGBOUNCER: [(&str, &str); 21] = [
    ("VERSION", "version"),
    ("STATE", "key value"),
    (
        "STATS",
        "database total_server_assignment_count total_xact_count total_query_count total_received total_sent \
         total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count \
         total_bind_count total_client_login_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv \
         avg_sent avg_xact_time avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count \
         avg_bind_count avg_client_login_count",
    ),
    (
        "STATS_TOTALS",
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
         wait_time client_parse_count server_parse_count bind_count client_login_count",
    ),
    (
        "STATS_AVERAGES",
        "database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time \
         wait_time avg_client_parse_count avg_server_parse_count avg_bind_count avg_client_login_count",
    ),
    ("TOTALS", "name value"),
    (
        "POOLS",
        "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel \
         sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts",
    ),
    (
        "DATABASES",
        "name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode \
         load_balance_hosts max_connections current_connections max_client_connections current_client_connections \
         paused disabled",
    ),
    ("CLIENTS", SOCKETS),
    ("SERVERS", SOCKETS),
    ("SOCKETS", SOCKETS),
    ("ACTIVE_SOCKETS", SOCKETS),
    ("LISTS", "list items"),
    (
        "USERS",
        "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
         max_user_client_connections current_client_connections",
    ),
    ("CONFIG", "key value default changeable"),
    ("MEM", "name size used free memtotal"),
    ("DNS_HOSTS", "hostname ttl addrs"),
    ("DNS_ZONES", "zonename serial count"),
    (
        "FDS",
        "fd task user database addr port cancel link client_encoding std_strings datestyle timezone password \
         scram_client_key scram_server_key",
    ),
    ("PEERS", "peer_id host port pool_size"),
    ("PEER_POOLS", "peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login"),
];

const SOCKETS: &str = "type user database replication state addr port local_addr local_port connect_time request_time \
    wait wait_us close_needed ptr link remote_pid tls application_name prepared_statements id";

#[test]
fn every_show_of_pgbouncer_is_there_with_its_columns_first() {
    let pgusher = Pgusher::start(&config("", ""));
    let mut client = Raw::login(pgusher.address(), "raw");
    assert_eq!(client.value("SELECT 1"), "1");
    for user in ["operator", "watcher"] {
        for database in ["pgusher", "pgbouncer"] {
            let pairs = [("user", user), ("database", database)];
            let mut raw = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
            for (name, columns) in PGBOUNCER {
                let (names, rows) = table(&mut raw, &format!("SHOW {name};"));
                let expected: Vec<_> = columns.split_whitespace().collect();
                assert_eq!(names[..expected.len()], expected, "{name}");
                assert!(rows.iter().all(|row| row.len() == names.len()), "{name}");
                let may_be_empty = ["FDS", "DNS_HOSTS", "DNS_ZONES", "PEERS", "PEER_POOLS", "ACTIVE_SOCKETS"];
                assert!(!rows.is_empty() || may_be_empty.contains(&name), "{name} has no rows");
            }
            for ours in ["ROUTES", "ENVIRONMENTS", "SESSIONS", "GENERATIONS", "TIMES"] {
                assert!(!table(&mut raw, &format!("show {ours}")).1.is_empty(), "{ours}");
            }
        }
    }
}

#[test]
fn what_is_shown_is_what_happens() {
    let pgusher = Pgusher::start(&config("default_pool_size = 1\npool_mode = \"transaction\"", ""));
    let mut raw = console(&pgusher, "watcher");
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut prod = Raw::login(pgusher.address(), "rawprod");
    for _ in 0..3 {
        assert_eq!(one.value("SELECT 1"), "1");
    }
    done(&mut one, "CREATE TEMP TABLE t (a int)");
    let pid = one.value("SELECT 0 + pg_backend_pid()");
    assert_eq!(prod.value("SELECT 1"), "1");
    let totals = |raw: &mut Raw, column: &str| {
        cell(raw, "SHOW STATS_TOTALS", ("database", "warehouse"), column).parse::<u64>().unwrap()
    };
    // The relay counts on a thread of its own, perhaps after the client has its answer.
    eventually("all is counted", || totals(&mut raw, "xact_count") >= 5);
    assert_eq!((totals(&mut raw, "xact_count"), totals(&mut raw, "query_count")), (5, 5));
    assert_eq!(totals(&mut raw, "client_login_count"), 1);
    assert!(totals(&mut raw, "xact_time") >= totals(&mut raw, "query_time"));
    // A thread that is held up between sending a query and reading the clock begins late: on a busy machine now and then,
    // and not each time. Nothing takes longer than the client has seen.
    let counted = |raw: &mut Raw, one: &mut Raw| {
        let before = (totals(raw, "query_time"), totals(raw, "query_count"), Instant::now());
        done(one, "SELECT pg_sleep(0.2)");
        eventually("it is counted", || totals(raw, "query_count") > before.1);
        let counted = Duration::from_micros(totals(raw, "query_time") - before.0);
        assert!(counted <= before.2.elapsed(), "{counted:?}");
        counted
    };
    let mut times: Vec<Duration> = Vec::new();
    while times.last().is_none_or(|time| *time < Duration::from_millis(200)) {
        assert!(times.len() < 20, "{times:?}");
        times.push(counted(&mut raw, &mut one));
    }
    let mut session = |column: &str| cell(&mut raw, "SHOW SESSIONS", ("user", "raw"), column);
    assert_eq!(session("pin"), "temporary object");
    assert_eq!(session("upstream_pid"), pid);
    assert!(session("pid").parse::<u32>().unwrap() > 4_194_304, "the number that stands for the session");
    assert_eq!(session("environment"), "dev");
    assert_eq!(session("state"), "idle", "it keeps its connection, and nothing runs");
    assert!(session("route").contains("no value for environment"), "{}", session("route"));
    // Another waits for the connection that is kept.
    let mut other = Raw::login(pgusher.address(), "raw");
    other.send(&query("SELECT 'at last'"));
    eventually("it waits", || cell(&mut raw, "SHOW POOLS", ("database", "warehouse"), "cl_waiting") == "1");
    assert_eq!(cell(&mut raw, "SHOW POOLS", ("database", "warehouse"), "sv_active"), "1");
    assert_eq!(cell(&mut raw, "SHOW POOLS", ("database", "warehouse_prod"), "sv_idle"), "1");
    assert_eq!(cell(&mut raw, "SHOW CLIENTS", ("state", "waiting"), "user"), "raw");
    assert_eq!(cell(&mut raw, "SHOW SERVERS", ("remote_pid", &pid), "state"), "active");
    done(&mut one, "DROP TABLE t");
    assert!(other.until_ready().iter().any(|m| m.tag == 'D'));
    eventually("it is idle", || cell(&mut raw, "SHOW SERVERS", ("remote_pid", &pid), "state") == "idle");
    assert!(totals(&mut raw, "wait_time") > 0);
    assert_eq!(cell(&mut raw, "SHOW CONFIG", ("key", "default_pool_size"), "value"), "1");
    assert_eq!(cell(&mut raw, "SHOW CONFIG", ("key", "listen"), "changeable"), "no");
    assert_eq!(cell(&mut raw, "SHOW ENVIRONMENTS", ("environment", "prod"), "health"), "up");
    assert_eq!(cell(&mut raw, "SHOW ENVIRONMENTS", ("environment", "prod"), "sessions"), "1");
}

#[test]
fn a_route_is_explained_without_a_login() {
    let pgusher = Pgusher::start(&config("", ""));
    let mut raw = console(&pgusher, "watcher");
    let (columns, rows) = table(&mut raw, "EXPLAIN ROUTE FOR pete ON warehouse");
    let text = rows.concat().join("\n");
    assert_eq!(columns, ["ROUTE"]);
    for part in
        ["Environment prod (connection warehouse_prod)", "environment = \"prod\" from user", "(production)"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(error(&mut raw, "EXPLAIN ROUTE FOR pete ON warehouse AS dev").starts_with("28000 "));
    assert!(error(&mut raw, "EXPLAIN ROUTE FOR pete ON nothing").starts_with("3D000 "));
    assert!(error(&mut raw, "EXPLAIN ROUTE FOR nobody ON warehouse").starts_with("42704 "));
    assert_eq!(cell(&mut raw, "SHOW ROUTES", ("user", "pete"), "environment"), "prod");
    assert_eq!(cell(&mut raw, "SHOW ROUTES", ("user", "pete"), "production"), "1");
    assert_eq!(cell(&mut raw, "SHOW ROUTES", ("user", "dana"), "connection"), "warehouse");
}

#[derive(Debug, PartialEq)]
enum Needs {
    Stats,
    Admin,
}

/// Every command, and who may say it. A new one that has no place here does not compile; one without a text here fails.
fn matrix() -> Vec<(&'static str, Needs)> {
    let texts = [
        "",
        "SHOW POOLS",
        "EXPLAIN ROUTE FOR raw ON warehouse",
        "SELECT 1",
        "SELECT version()",
        "BEGIN",
        "COMMIT",
        "WAIT SETTLED '1s'",
        "RELOAD",
        "PAUSE",
        "PAUSE warehouse",
        "RESUME",
        "RESUME warehouse",
        "SUSPEND",
        "DISABLE warehouse",
        "ENABLE warehouse",
        "RECONNECT",
        "KILL",
        "KILL warehouse",
        "KILL_CLIENT 1",
        "WAIT_CLOSE",
        "PLAN",
        "PLAN '/etc/passwd'",
        "ROLLBACK CONFIG",
        "DRAIN ENVIRONMENT prod",
        "RESUME ENVIRONMENT prod",
        "GRANT ENVIRONMENT prod TO raw FOR '1h' REASON 'x'",
        "REVOKE ENVIRONMENT prod FROM raw",
        "SHUTDOWN",
        "SHUTDOWN WAIT_FOR_CLIENTS",
        "SET max_client_conn = 1",
    ];
    let needs = |command: &Command| match command {
        Command::Empty
        | Command::Show(_)
        | Command::ExplainRoute { .. }
        | Command::Ping(_)
        | Command::Fact(_)
        | Command::Transaction(_)
        | Command::WaitSettled(_) => Needs::Stats,
        Command::Reload
        | Command::Pause(_)
        | Command::Suspend
        | Command::Resume(_)
        | Command::Reconnect(_)
        | Command::Disable(_)
        | Command::Enable(_)
        | Command::Kill(_)
        | Command::KillClient(_)
        | Command::WaitClose(_)
        | Command::Plan(_)
        | Command::RollBack(_)
        | Command::DrainEnvironment(_)
        | Command::ResumeEnvironment(_)
        | Command::Grant { .. }
        | Command::Revoke { .. }
        | Command::Shutdown(_)
        | Command::Set(..) => Needs::Admin,
    };
    let commands: Vec<Command> = texts.iter().map(|text| Command::parse(text).unwrap()).collect();
    let kinds: BTreeSet<String> = commands
        .iter()
        .map(|command| format!("{command:?}").split(['(', ' ']).next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(kinds.len(), 25, "{kinds:?}");
    texts.into_iter().zip(commands.iter().map(needs)).collect()
}

#[test]
fn whoever_may_only_look_changes_nothing_and_others_do_not_get_in() {
    let pgusher = Pgusher::start(&config("", ""));
    let mut raw = console(&pgusher, "watcher");
    let mut client = Raw::login(pgusher.address(), "raw");
    assert_eq!(client.value("SELECT 1"), "1");
    for (command, needs) in matrix() {
        if needs == Needs::Admin {
            assert_eq!(error(&mut raw, command), "42501 admin access needed", "{command}");
            let extended = [parse("", command), bind("", "", &[]), execute(), sync()].concat();
            assert_eq!(raw.tags(&extended), "12EZ", "{command}");
        } else {
            let answer = raw.ask(&query(command));
            assert!(!answer.iter().any(|m| m.tag == 'E' && m.field('C') == "42501"), "{command}");
        }
    }
    assert_eq!(client.value("SELECT 1"), "1");
    // No right, no user, no password: the ordinary refusals, and no default anything.
    for (user, expected) in [
        ("raw", "user \"raw\" may not use the console"),
        ("pgbouncer", "password authentication failed for user \"pgbouncer\""),
        ("pgusher", "password authentication failed for user \"pgusher\""),
    ] {
        let target =
            format!("host=127.0.0.1 port={} user={user} password={user} dbname=pgusher", pgusher.port);
        let psql = crate::house::psql().args(["-XAtc", "SHOW VERSION", &target]).output().unwrap();
        let said = String::from_utf8_lossy(&psql.stderr).into_owned();
        assert!(!psql.status.success() && said.contains(expected), "{said}");
    }
}

#[test]
fn both_protocols_and_a_real_driver_are_served() {
    let pgusher = Pgusher::start(&config("", ""));
    let mut raw = console(&pgusher, "operator");
    let batch = [
        parse("s", "SHOW LISTS"),
        describe_statement("s"),
        bind("", "s", &[]),
        message('D', b"P\0"),
        message('E', b"\0\0\0\0\x02"),
        message('E', b"\0\0\0\0\0"),
        sync(),
    ];
    assert_eq!(raw.tags(&batch.concat()), format!("1tT2TDDs{}CZ", "D".repeat(12)));
    assert_eq!(raw.tags(&[parse("", ""), bind("", "", &[]), execute(), sync()].concat()), "12IZ");
    assert_eq!(raw.tags(&query("")), "IZ");
    assert_eq!(raw.tags(&[parse("", "SELECT now()"), sync()].concat()), "EZ");
    assert_eq!(raw.tags(&[bind("", "no", &[]), execute(), sync()].concat()), "EZ");
    assert_eq!(raw.tags(&[message('C', b"Ss\0"), message('H', b""), sync()].concat()), "3Z");
    assert_eq!(raw.tags(&query("SHOW HELP")), "NCZ");
    for (sql, tag) in [("BEGIN", "BEGIN"), ("SHOW TIMEZONE", "SHOW"), ("COMMIT", "COMMIT")] {
        let answer = done(&mut raw, sql);
        let complete = answer.iter().find(|m| m.tag == 'C').unwrap();
        assert_eq!(String::from_utf8_lossy(&complete.body).trim_end_matches('\0'), tag);
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let parameters =
            format!("host=127.0.0.1 port={} user=operator dbname=pgbouncer sslmode=disable", pgusher.port);
        let (client, connection) = tokio_postgres::connect(&parameters, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        // The extended protocol, with binary results.
        let rows = client.query("SHOW LISTS", &[]).await.unwrap();
        let users = rows.iter().find(|row| row.get::<_, String>(0) == "users").unwrap();
        assert_eq!(users.get::<_, i32>(1), 7);
        assert!(client.simple_query("SHOW POOLS").await.is_ok());
    });
    let target = format!("host=127.0.0.1 port={} user=operator dbname=pgusher", pgusher.port);
    let psql = crate::house::psql().args(["-XAtc", "SHOW VERSION", &target]).output().unwrap();
    assert!(String::from_utf8_lossy(&psql.stdout).starts_with("pgusher "), "{psql:?}");
}

#[test]
fn pause_waits_for_transactions_and_resume_lets_everybody_go_on() {
    let pgusher = Pgusher::start(&config("", ""));
    let mut raw = console(&pgusher, "operator");
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut two = Raw::login(pgusher.address(), "raw");
    for database in ["", " warehouse"] {
        done(&mut one, "BEGIN");
        assert_eq!(cell(&mut raw, "SHOW SERVERS", ("database", "warehouse"), "state"), "active");
        raw.send(&query(&format!("PAUSE{database}")));
        std::thread::sleep(Duration::from_millis(200));
        two.send(&query("SELECT 'after'"));
        std::thread::sleep(Duration::from_millis(200));
        one.ask(&query("COMMIT"));
        // Now it is paused: no connection is left, and the other waits.
        assert!(raw.until_ready().iter().any(|m| m.tag == 'C'), "PAUSE{database}");
        assert_eq!(cell(&mut raw, "SHOW SERVERS", ("database", "warehouse"), "state"), "");
        assert_eq!(cell(&mut raw, "SHOW POOLS", ("database", "warehouse"), "cl_waiting"), "1");
        assert_eq!(cell(&mut raw, "SHOW DATABASES", ("name", "warehouse"), "paused"), "1");
        let paused = if database.is_empty() { "yes" } else { "no" };
        assert_eq!(cell(&mut raw, "SHOW STATE", ("key", "paused"), "value"), paused);
        done(&mut raw, &format!("RESUME{database}"));
        assert!(two.until_ready().iter().any(|m| m.tag == 'D'));
        assert!(error(&mut raw, &format!("RESUME{database}")).starts_with("55000 "));
    }
    // Whoever leaves while he waits for a pause holds nothing up.
    done(&mut one, "BEGIN");
    let mut impatient = console(&pgusher, "operator");
    impatient.send(&query("PAUSE warehouse"));
    std::thread::sleep(Duration::from_millis(100));
    drop(impatient);
    done(&mut one, "COMMIT");
    done(&mut raw, "RESUME warehouse");
    done(&mut raw, "SUSPEND");
    assert!(error(&mut raw, "PAUSE").starts_with("55000 already suspended/paused"));
    done(&mut raw, "RESUME");
    assert_eq!(two.value("SELECT 1"), "1");
}

#[test]
fn databases_are_disabled_reconnected_and_killed() {
    let pgusher = Pgusher::start(&config("default_pool_size = 1", ""));
    let mut raw = console(&pgusher, "operator");
    let mut one = Raw::login(pgusher.address(), "raw");
    let mut prod = Raw::login(pgusher.address(), "rawprod");
    assert_eq!(prod.value("SELECT 1"), "1");
    let before = one.value("SELECT 0 + pg_backend_pid()");
    done(&mut raw, "RECONNECT warehouse");
    done(&mut raw, "WAIT_CLOSE warehouse");
    assert_ne!(one.value("SELECT 0 + pg_backend_pid()"), before);
    done(&mut one, "BEGIN");
    done(&mut raw, "RECONNECT");
    raw.send(&query("WAIT_CLOSE"));
    std::thread::sleep(Duration::from_millis(200));
    done(&mut one, "COMMIT");
    assert!(raw.until_ready().iter().any(|m| m.tag == 'C'));
    done(&mut raw, "DISABLE warehouse");
    let mut refused = Raw::connect(pgusher.address());
    refused.send(&startup(0x0003_0000, &[("user", "raw"), ("database", "warehouse")]));
    let answer = refused.next().unwrap();
    assert_eq!((answer.tag, answer.field('C').as_str()), ('E', "57P03"));
    assert_eq!(one.value("SELECT 'those who are in stay'"), "those who are in stay");
    done(&mut raw, "ENABLE warehouse");
    let mut late = Raw::login(pgusher.address(), "raw");
    done(&mut raw, "KILL warehouse");
    for raw in [&mut one, &mut late] {
        assert_eq!(raw.next().unwrap().field('C'), "57P01");
        assert!(raw.is_closed());
    }
    assert_eq!(prod.value("SELECT 'another database'"), "another database");
    done(&mut raw, "RESUME warehouse");
    let mut again = Raw::login(pgusher.address(), "raw");
    assert_eq!(again.value("SELECT 1"), "1");
    let id = cell(&mut raw, "SHOW CLIENTS", ("user", "raw"), "id");
    done(&mut raw, &format!("KILL_CLIENT {id}"));
    assert_eq!(again.next().unwrap().field('C'), "57P01");
    for (command, expected) in [
        ("KILL_CLIENT 999999", "42704 client not found"),
        ("PAUSE nothing", "3D000 no such database: nothing"),
        ("KILL pgusher", "55000 pgusher is the console itself"),
        ("SET listen = x", "55P02 parameter \"listen\" cannot be changed without restarting pgusher"),
        ("SET tls = x", "55P02 parameter \"tls\" can only be changed in the file"),
        ("SET nothing = x", "42704 unrecognized configuration parameter \"nothing\""),
        ("SET default_pool_size = many", "22023 invalid value for parameter \"default_pool_size\": \"many\""),
        ("SET default_pool_size = 0", "22023 invalid value for parameter \"default_pool_size\": \"0\""),
        ("SELECT oid FROM pg_class", "0A000 the console has no SQL, and no catalogs"),
    ] {
        assert_eq!(error(&mut raw, command), expected);
    }
}

#[test]
fn reload_says_what_is_wrong_and_wait_settled_waits_for_those_who_must_leave() {
    let pgusher = Pgusher::start(&config("", ""));
    let path = pgusher.folder.join("pgusher.toml");
    let written = std::fs::read_to_string(&path).unwrap();
    let mut raw = console(&pgusher, "operator");
    let mut moved = Raw::login(pgusher.address(), "rawprod");
    let mut stays = Raw::login(pgusher.address(), "raw");
    assert_eq!(stays.value("SELECT 1"), "1");
    std::fs::write(&path, written.replace("[users.rawprod]", "[users.rawprod]\nnonsense = 1")).unwrap();
    let answer = raw.ask(&query("RELOAD"));
    let refused = answer.iter().find(|m| m.tag == 'E').unwrap();
    assert!(refused.field('D').contains("unknown key `nonsense`"), "{refused:?}");
    assert!(refused.field('D').contains("pgusher.toml:"), "{refused:?}");
    done(&mut moved, "BEGIN");
    let to_dev = "[users.rawprod]\nauth_type = \"trust\"\nattributes = { environment = \"dev\" }\n";
    let from = written.find("[users.rawprod]").unwrap();
    let to = from + written[from..].find("\n\n").unwrap();
    std::fs::write(&path, format!("{}{to_dev}{}", &written[..from], &written[to..])).unwrap();
    let answer = done(&mut raw, "RELOAD");
    assert!(answer.iter().any(|m| m.tag == 'N' && m.field('M').contains("generation 2")), "{answer:?}");
    assert!(error(&mut raw, "WAIT SETTLED '100ms'").contains("1 sessions are still on a route"));
    assert!(cell(&mut raw, "SHOW SESSIONS", ("user", "rawprod"), "moved").contains("by generation 2"));
    assert_eq!(cell(&mut raw, "SHOW ROUTES", ("user", "rawprod"), "elsewhere"), "1");
    let begun = Instant::now();
    raw.send(&query("WAIT SETTLED '20s'"));
    std::thread::sleep(Duration::from_millis(100));
    moved.ask(&query("COMMIT"));
    assert!(raw.until_ready().iter().any(|m| m.tag == 'C'));
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(stays.value("SELECT 'untouched'"), "untouched");
    let (_, rows) = table(&mut raw, "SHOW GENERATIONS");
    let states: Vec<_> = rows.iter().map(|row| (row[0].as_str(), row[2].as_str())).collect();
    assert_eq!(states, [("1", "replaced"), ("2", "refused"), ("2", "in force")]);
}

#[test]
fn shutdown_ends_it_as_was_asked() {
    for (command, leaves) in
        [("SHUTDOWN", false), ("SHUTDOWN WAIT_FOR_SERVERS", false), ("SHUTDOWN WAIT_FOR_CLIENTS", true)]
    {
        let mut pgusher = Pgusher::start(&config("", ""));
        let mut raw = console(&pgusher, "operator");
        let mut one = Raw::login(pgusher.address(), "raw");
        done(&mut one, "BEGIN");
        raw.send(&query(command));
        std::thread::sleep(Duration::from_millis(200));
        if command != "SHUTDOWN" {
            assert!(pgusher.child.try_wait().unwrap().is_none(), "{command}: a transaction is under way");
            done(&mut one, "COMMIT");
        }
        if leaves {
            std::thread::sleep(Duration::from_millis(200));
            assert!(pgusher.child.try_wait().unwrap().is_none(), "{command}: a client is there");
            assert_eq!(one.value("SELECT 'still served'"), "still served");
            drop(one);
        }
        eventually("it ends", || pgusher.child.try_wait().unwrap().is_some());
        assert!(pgusher.child.wait().unwrap().success(), "{command}");
    }
}

#[test]
fn garbage_on_the_console_ends_its_session_and_nothing_else() {
    let pgusher = Pgusher::start(&config("", ""));
    let mut client = Raw::login(pgusher.address(), "raw");
    let megabyte = "x".repeat(1 << 20);
    let mut raw = console(&pgusher, "watcher");
    assert!(error(&mut raw, &format!("SHOW {megabyte}")).starts_with("42601 "));
    assert!(error(&mut raw, &megabyte).starts_with("42601 "));
    assert!(error(&mut raw, "SHOW \u{1}POOLS").starts_with("42601 "));
    assert_eq!(raw.value("SHOW TIMEZONE"), "GMT");
    for bytes in [
        vec![0xff; 64],
        message('Q', b"no end"),
        message('B', b"\0"),
        message('P', b"\0SHOW POOLS\0"),
        message('D', b""),
        message('Z', b""),
        message('Q', b"SHOW \xff\xfe\0"),
        [&b"Q"[..], &0xffff_ffff_u32.to_be_bytes()].concat(),
        [&b"Q"[..], &3_u32.to_be_bytes()].concat(),
        vec![b'Q', 0x40, 0, 0, 0],
    ] {
        let mut raw = console(&pgusher, "watcher");
        raw.send(&bytes);
        raw.send(&sync());
        let _ = raw.stream.shutdown(std::net::Shutdown::Write);
        assert!(raw.is_closed(), "{bytes:?}");
    }
    // One that never asks costs nobody anything.
    let idle = console(&pgusher, "watcher");
    assert_eq!(client.value("SELECT 1"), "1");
    drop(idle);
    super::fake::unharmed(&pgusher);
}

/// Whatever is said to the console, no secret is shown, and nothing of it breaks (T-22, T-32).
#[test]
fn random_commands_are_answered_and_no_secret_is_ever_shown() {
    const CANARIES: [&str; 3] = ["canary-of-the-upstream", "canary-of-the-user", "canary-that-is-new"];
    let port = super::house::free_port();
    let text = config(
        &format!("metrics_listen = \"127.0.0.1:{port}\"\naudit_file = \"audit.jsonl\""),
        "password = \"canary-of-the-upstream\"",
    ) + "\n[users.secretive]\npassword = \"canary-of-the-user\"\n";
    let pgusher = Pgusher::start(&text);
    let written = std::fs::read_to_string(pgusher.folder.join("pgusher.toml")).unwrap();
    let new = pgusher.folder.join("new.toml");
    std::fs::write(&new, written.replace("canary-of-the-user", "canary-that-is-new")).unwrap();
    let broken = pgusher.folder.join("broken.toml");
    std::fs::write(&broken, written.replace("\"canary-of-the-user\"", "\"canary-of-the-user")).unwrap();
    let mut client = Raw::login(pgusher.address(), "raw");
    let mut raw = console(&pgusher, "operator");
    let mut said: Vec<u8> = Vec::new();
    let check = |said: &[u8]| {
        let said = String::from_utf8_lossy(said);
        CANARIES.iter().for_each(|canary| assert!(!said.contains(canary), "{canary} was shown"));
    };
    let mut say = |raw: &mut Raw, sql: &str| {
        let answer = raw.ask(&query(sql));
        assert_eq!(answer.last().map(|m| m.tag), Some('Z'), "{sql}");
        if said.len() > 16 << 20 {
            check(&said);
            said.clear();
        }
        answer.iter().for_each(|m| said.extend(&m.body));
        answer
    };
    for (name, _) in PGBOUNCER {
        say(&mut raw, &format!("SHOW {name}"));
    }
    for ours in ["ROUTES", "ENVIRONMENTS", "SESSIONS", "GENERATIONS", "TIMES", "AUDIT", "GRANTS", "HELP"] {
        say(&mut raw, &format!("SHOW {ours}"));
    }
    let planned = say(&mut raw, &format!("PLAN '{}'", new.display()));
    assert!(planned.iter().any(|m| m.tag == 'D' && m.columns()[0] == "secret"), "{planned:?}");
    let refused = say(&mut raw, &format!("PLAN '{}'", broken.display()));
    assert!(refused.iter().any(|m| m.tag == 'E'), "{refused:?}");
    // The words of the grammar in any order, with names and rubbish between; nothing that ends the process.
    let words = [
        "SHOW",
        "POOLS",
        "EXPLAIN",
        "ROUTE",
        "FOR",
        "ON",
        "AS",
        "raw",
        "warehouse",
        "warehouse_prod",
        "prod",
        "PLAN",
        "RELOAD",
        "PAUSE",
        "RESUME",
        "RECONNECT",
        "ENABLE",
        "KILL_CLIENT",
        "9999",
        "WAIT",
        "SETTLED",
        "'1ms'",
        "SET",
        "=",
        "TO",
        "BEGIN",
        "COMMIT",
        "SELECT",
        "17",
        "DRAIN",
        "ENVIRONMENT",
        "nowhere",
        "\"",
        "'",
        ";",
        "--",
        "\u{fc}",
        "%s%n",
        "GRANT",
        "REVOKE",
        "FROM",
        "REASON",
        "'1h'",
        "(",
        "\\",
        "stats",
        "version",
        "",
    ];
    let mut random = super::house::Random(0xc000_501e);
    for _ in 0..super::house::size(3000, 10_000_000) {
        let sql: Vec<_> = (0..1 + random.below(9)).map(|_| random.of(&words)).collect();
        let sql = sql.join(" ");
        let upper = sql.to_ascii_uppercase();
        // These wait for others, or shut the door: they have tests of their own.
        if ["PAUSE", "DRAIN"].iter().any(|word| upper.trim_start().starts_with(word)) {
            continue;
        }
        say(&mut raw, &sql);
    }
    assert_eq!(client.value("SELECT 'unharmed'"), "unharmed");
    let metrics = std::process::Command::new("curl")
        .args(["-sS", &format!("http://127.0.0.1:{port}/metrics")])
        .output()
        .unwrap();
    said.extend(metrics.stdout);
    said.extend(pgusher.log().into_bytes());
    for file in pgusher::inside::files(&pgusher.folder.join("audit.jsonl")).unwrap() {
        said.extend(std::fs::read(file).unwrap());
    }
    check(&said);
    // Nor can others on this machine see them, or find them in a picture of the memory.
    let of_process = |what: &str| std::fs::read(format!("/proc/{}/{what}", pgusher.child.id())).unwrap();
    check(&[of_process("cmdline"), of_process("environ")].concat());
    let limits = String::from_utf8(of_process("limits")).unwrap();
    let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert!(cores.split_whitespace().nth(4) == Some("0"), "{cores}");
    super::fake::unharmed(&pgusher);
}

/// What one session of the console holds is one table, and what it may wait for is a day.
#[test]
fn a_console_session_holds_one_table_and_its_refusals_fill_no_audit() {
    let text = warehouse("audit_file = \"audit.jsonl\"", "", "")
        + OPERATORS
        + "\n[users.stats]\nauth_type = \"trust\"\nconsole = \"stats\"\n";
    let pgusher = Pgusher::start(&text);
    let mut raw = console(&pgusher, "stats");
    let some = |portal: &str| [portal.as_bytes(), &[0, 0, 0, 0, 1]].concat();
    let asked = [
        parse("s", "SHOW ROUTES"),
        bind("p", "s", &[]),
        bind("q", "s", &[]),
        message('E', &some("p")),
        message('E', &some("q")),
        sync(),
    ];
    let answer = raw.ask(&asked.concat());
    assert_eq!(answer.iter().map(|m| m.tag).collect::<String>(), "122DsEZ", "{answer:?}");
    let error = answer.iter().find(|m| m.tag == 'E').unwrap();
    assert_eq!(error.field('C'), "54000");
    // Closed, it makes room; and the rest of the other can be fetched.
    let asked = [
        message('C', b"Pp\0"),
        message('E', &some("q")),
        message('E', &[b"q\0".as_slice(), &[0; 4]].concat()),
        sync(),
    ];
    let answer = raw.ask(&asked.concat());
    assert!(answer.iter().map(|m| m.tag).collect::<String>().starts_with("3DsD"), "{answer:?}");
    let mut operator = console(&pgusher, "operator");
    assert!(operator.tags(&query("WAIT SETTLED '300000000000y'")).ends_with("CZ"));
    for _ in 0..300 {
        assert!(raw.tags(&query("PAUSE")).starts_with('E'));
    }
    let audit = std::fs::read_to_string(pgusher.folder.join("audit.jsonl")).unwrap();
    let told = audit.lines().filter(|line| line.contains("42501")).count();
    assert!((1..=20).contains(&told), "{told} of 300 are told one by one");
    super::fake::unharmed(&pgusher);
}

/// However many sessions they open, those who may only look leave operators theirs.
#[test]
fn whoever_may_only_look_takes_no_place_of_an_operator() {
    let watcher = "[users.watcher]\nauth_type = \"trust\"\nconsole = \"stats\"\n";
    let limited = watcher.replace("watcher", "limited") + "max_client_connections = 2\n";
    let pgusher = Pgusher::start(&(config("", "") + "\n" + &limited));
    let ask = |user: &str| {
        let mut raw = Raw::connect(pgusher.address());
        raw.send(&startup(0x0003_0000, &[("user", user), ("database", "pgusher")]));
        let refused = raw.until_ready().iter().find(|m| m.tag == 'E').map(|m| m.field('C'));
        (refused, raw)
    };
    let both = [ask("limited"), ask("limited")];
    assert!(both.iter().all(|(refused, _)| refused.is_none()));
    assert_eq!(ask("limited").0.as_deref(), Some("53300"));
    let others: Vec<_> = (0..98).map(|_| ask("watcher")).collect();
    assert!(others.iter().all(|(refused, _)| refused.is_none()));
    assert_eq!(ask("watcher").0.as_deref(), Some("53300"));
    assert_eq!(ask("operator").0, None);
    drop(others);
    eventually("places that are given back are there again", || ask("watcher").0.is_none());
}

/// Users times databases: a table of any size would be made before it is known that nobody may have it.
#[test]
fn too_many_routes_for_a_table_are_refused() {
    use std::fmt::Write;
    let mut text = config("", "");
    for n in 0..502 {
        write!(text, "\n[users.u{n}]\nauth_type = \"trust\"\n").unwrap();
        write!(text, "\n[connections.c{n}]\nhost = \"127.0.0.1\"\nusername = \"u\"\ndatabase = \"c{n}\"\n")
            .unwrap();
    }
    let pgusher = Pgusher::start(&text);
    let mut ops = console(&pgusher, "operator");
    assert!(error(&mut ops, "SHOW ROUTES").starts_with("54000 "));
    assert!(!table(&mut ops, "SHOW USERS").1.is_empty());
}

/// What is set holds at once, over other settings too, and until the file is read again; the file stays as it is.
#[test]
fn settings_are_set_at_run_time_and_a_reload_takes_them_back() {
    let pgusher =
        Pgusher::start(&config("audit_file = \"audit.jsonl\"", "").replace("log_level = \"debug\"", ""));
    let path = pgusher.folder.join("pgusher.toml");
    let written = std::fs::read_to_string(&path).unwrap();
    let mut raw = console(&pgusher, "operator");
    let value = |raw: &mut Raw, key: &str| cell(raw, "SHOW CONFIG", ("key", key), "value");
    let before = value(&mut raw, "query_wait_timeout");
    let answer = raw.ask(&query("SET query_wait_timeout = 7"));
    let notice = answer.iter().find(|m| m.tag == 'N').unwrap();
    assert!(notice.field('M').contains("until the file is read again"), "{notice:?}");
    done(&mut raw, "SET default_pool_size = 3");
    assert_eq!(value(&mut raw, "query_wait_timeout"), "7s");
    assert_eq!(cell(&mut raw, "SHOW DATABASES", ("name", "warehouse"), "pool_size"), "3");
    // The log follows: a statement of a client's is told of only when it is to be.
    let opened = || pgusher.log().contains("upstream connection opened");
    done(&mut raw, "SET log_level = debug");
    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 1"), "1");
    eventually("the level is another", opened);
    // What is wrong changes nothing of what was set.
    assert!(error(&mut raw, "SET query_wait_timeout = soon").starts_with("22023 "));
    assert_eq!(value(&mut raw, "query_wait_timeout"), "7s");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), written, "the file is as it was");
    done(&mut raw, "RELOAD");
    assert_eq!(value(&mut raw, "query_wait_timeout"), before);
    assert_eq!(value(&mut raw, "log_level"), "info");
    let audit = || std::fs::read_to_string(pgusher.folder.join("audit.jsonl")).unwrap();
    eventually("it is audited as it was said", || {
        audit().contains("\"command\":\"SET query_wait_timeout = 7\"")
    });
}

/// Whoever sits in a transaction is seen while it lasts, on the console, by the API's words, and in the metrics.
#[test]
fn what_is_under_way_is_seen_while_it_lasts() {
    let metrics = super::house::free_port();
    let pgusher = Pgusher::start(&config(&format!("metrics_listen = \"127.0.0.1:{metrics}\""), ""));
    let mut watcher = console(&pgusher, "watcher");
    let mut sits = Raw::login(pgusher.address(), "raw");
    let state = |watcher: &mut Raw, column: &str| cell(watcher, "SHOW SESSIONS", ("user", "raw"), column);
    assert_eq!(
        (state(&mut watcher, "state"), state(&mut watcher, "transaction_us")),
        ("idle".into(), String::new())
    );
    // What ends without a connection of the session's own has ended as well.
    done(&mut sits, "LISTEN news");
    done(&mut sits, "UNLISTEN news");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        (state(&mut watcher, "state"), state(&mut watcher, "transaction_us")),
        ("idle".into(), String::new())
    );
    assert_eq!(cell(&mut watcher, "SHOW TIMES", ("connection", "warehouse"), "under_way"), "0");
    sits.ask(&query("BEGIN; SELECT 1"));
    let begun = Instant::now();
    assert_eq!(state(&mut watcher, "state"), "idle in transaction");
    std::thread::sleep(Duration::from_millis(1200));
    let micros = |text: String| text.parse::<u128>().unwrap();
    let lasts = micros(state(&mut watcher, "transaction_us"));
    // To a tenth of a second.
    assert!(lasts >= 1_000_000 && lasts <= begun.elapsed().as_micros() + 200_000, "{lasts}");
    let at = ("connection", "warehouse");
    assert_eq!(cell(&mut watcher, "SHOW TIMES", at, "idle_in_transaction"), "1");
    assert!(micros(cell(&mut watcher, "SHOW TIMES", at, "longest_transaction_us")) >= 1_000_000);
    let text = super::house::run(
        std::process::Command::new("curl").args(["-sS", &format!("http://127.0.0.1:{metrics}/metrics")]),
    );
    let text = String::from_utf8(text.stdout).unwrap();
    let line = "pgusher_clients_by_state{connection=\"warehouse\",environment=\"dev\",state=\"idle in transaction\"} 1";
    assert!(text.contains(line), "{text}");
    sits.send(&query("SELECT pg_sleep(1)"));
    eventually("a statement runs", || state(&mut watcher, "state") == "active");
    assert!(micros(state(&mut watcher, "transaction_us")) >= lasts, "the transaction goes on");
    sits.until_ready();
    done(&mut sits, "COMMIT");
    eventually("nothing is under way", || state(&mut watcher, "state") == "idle");
    assert_eq!(cell(&mut watcher, "SHOW TIMES", at, "under_way"), "0");
}

/// Whoever runs pgusher is never locked out: by the unix socket, without a password, as long as no user has that name. Nobody else is let
/// in so, nor by TCP.
#[test]
fn the_user_who_runs_it_comes_in_by_the_unix_socket() {
    let folder = super::house::temporary_folder("peer");
    let listen = format!("listen = [\"127.0.0.1:@PORT@\", \"unix:{}\"]", folder.display());
    let config = config("", "").replace("listen = [\"127.0.0.1:@PORT@\"]", &listen);
    let pgusher = Pgusher::start(&config);
    let path = pgusher.folder.join("pgusher.toml");
    let ask = |before: &[&str], host: &str, user: &str, database: &str| {
        let target = format!("host={host} port={} user={user} dbname={database}", pgusher.port);
        let program = crate::house::psql().get_program().to_owned();
        let mut words: Vec<std::ffi::OsString> = before.iter().map(Into::into).collect();
        words.extend([program, "-XAtwc".into(), "SHOW VERSION".into(), target.into()]);
        let output = std::process::Command::new(&words[0]).args(&words[1..]).output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.success(), said.concat())
    };
    let socket = folder.display().to_string();
    for (user, database) in [("pgusher", "pgusher"), ("pgbouncer", "pgbouncer"), ("pgbouncer", "pgusher")] {
        let (is_in, said) = ask(&[], &socket, user, database);
        assert!(is_in && said.starts_with("pgusher "), "{user}: {said}");
    }
    assert!(!ask(&[], "127.0.0.1", "pgusher", "pgusher").0, "by TCP");
    assert!(!ask(&[], &socket, "pgusher", "warehouse").0, "a database");
    assert!(!ask(&[], &socket, "nobody", "pgusher").0, "another name");
    // As another user of the system, who may use the socket. (PostgreSQL's tests run so, too: there is one.)
    let is_root =
        std::fs::metadata("/proc/self").map(|about| std::os::unix::fs::MetadataExt::uid(&about)).unwrap()
            == 0;
    if is_root {
        let other = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];
        let (is_in, said) = ask(&other, &socket, "pgusher", "pgusher");
        assert!(!is_in && said.contains("no password supplied"), "{said}");
    }
    // Once a user has the name, it is that user's, as its own rules have it.
    let written = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("{written}\n[users.pgusher]\npassword = \"x\"\n")).unwrap();
    let mut operator = console(&pgusher, "operator");
    done(&mut operator, "RELOAD");
    assert!(!ask(&[], &socket, "pgusher", "pgusher").0, "the name is taken");
    assert!(ask(&[], &socket, "pgbouncer", "pgbouncer").0);
    std::fs::remove_dir_all(folder).unwrap();
}

/// However often something is set, the way back to an earlier text stays; and a way that was not meant can be taken back.
#[test]
fn what_is_set_leaves_the_way_back_as_it_is() {
    let pgusher = Pgusher::start(&config("", ""));
    let path = pgusher.folder.join("pgusher.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    let mut raw = console(&pgusher, "operator");
    let value = |raw: &mut Raw, key: &str| cell(raw, "SHOW CONFIG", ("key", key), "value");
    let usual = value(&mut raw, "max_client_conn");
    std::fs::write(&path, good.replace("[server]", "[server]\nmax_client_conn = 4000")).unwrap();
    done(&mut raw, "RELOAD");
    for i in 1..=15 {
        done(&mut raw, &format!("SET max_pinned = {i}"));
    }
    // Generation 1 is the good one; 2 to 17 have one text.
    done(&mut raw, "ROLLBACK CONFIG TO 1");
    assert_eq!(
        (value(&mut raw, "max_client_conn"), value(&mut raw, "max_pinned")),
        (usual.clone(), "0".into())
    );
    done(&mut raw, "ROLLBACK CONFIG TO 9");
    assert_eq!(value(&mut raw, "max_client_conn"), "4000", "what was left is there again");
    done(&mut raw, "ROLLBACK CONFIG");
    assert_eq!(value(&mut raw, "max_client_conn"), usual);
    let answer = raw.ask(&query("ROLLBACK CONFIG TO 999"));
    let refused = answer.iter().find(|m| m.tag == 'E').unwrap();
    assert!(refused.field('C') == "42704" && refused.field('H').contains("SHOW GENERATIONS"), "{refused:?}");
}

/// Whoever waits for a pause or a drain that somebody else takes back is told so.
#[test]
fn whoever_waits_for_a_pause_or_a_drain_that_is_taken_back_is_told() {
    let pgusher = Pgusher::start(&config("", ""));
    let mut busy = Raw::login(pgusher.address(), "raw");
    busy.ask(&query("BEGIN; SELECT 1"));
    let (mut waits, mut other) = (console(&pgusher, "operator"), console(&pgusher, "operator"));
    for (order, back, said) in [
        ("PAUSE warehouse", "RESUME warehouse", "database warehouse was resumed meanwhile"),
        ("PAUSE", "RESUME", "database warehouse was resumed meanwhile"),
        ("DRAIN ENVIRONMENT dev", "RESUME ENVIRONMENT dev", "environment dev was resumed meanwhile"),
    ] {
        waits.send(&query(order));
        eventually("it holds", || {
            let health = cell(&mut other, "SHOW ENVIRONMENTS", ("environment", "dev"), "health");
            ["paused", "drained"].contains(&health.as_str())
        });
        assert!(!waits.answers_within(Duration::from_millis(200)), "{order} does not wait");
        done(&mut other, back);
        let answer = waits.until_ready();
        let error = answer.iter().find(|m| m.tag == 'E').unwrap_or_else(|| panic!("{order}: {answer:?}"));
        assert_eq!((error.field('C'), error.field('M')), ("55000".into(), said.into()));
    }
}

/// Operators see each other, and can end a session that was forgotten.
#[test]
fn who_is_on_the_console_is_seen_and_can_be_ended() {
    let pgusher = Pgusher::start(&config("", ""));
    let (mut one, mut other) = (console(&pgusher, "operator"), console(&pgusher, "watcher"));
    assert_eq!(cell(&mut one, "SHOW CONSOLE", ("user", "watcher"), "right"), "stats");
    assert_eq!(cell(&mut other, "SHOW CONSOLE", ("user", "operator"), "proof"), "login");
    let id = cell(&mut one, "SHOW CONSOLE", ("user", "watcher"), "id");
    assert!(error(&mut other, &format!("KILL_CLIENT {id}")).starts_with("42501 "));
    done(&mut one, &format!("KILL_CLIENT {id}"));
    assert_eq!(other.next().unwrap().field('C'), "57P01");
    eventually("it is gone", || one.ask(&query("SHOW CONSOLE")).iter().filter(|m| m.tag == 'D').count() == 1);
    drop(one);
    let mut third = console(&pgusher, "operator");
    eventually("nobody stays in the table", || {
        third.ask(&query("SHOW CONSOLE")).iter().filter(|m| m.tag == 'D').count() == 1
    });
}
