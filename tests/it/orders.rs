//! A login is decided by what is in force when it enters, and what an operator orders holds until it is taken back.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use super::console::cell;
use super::house::{Pgusher, Postgres, eventually, pair, warehouse};
use super::wire::{Raw, message, query, startup};

const VERSION: u32 = 0x0003_0000;
const OPERATORS: &str = "[users.ops]\nauth_type = \"trust\"\nconsole = \"admin\"\n\
    [users.sess]\nauth_type = \"trust\"\npool_mode = \"session\"\n";

fn config(server: &str, base: &str, environment: &str) -> String {
    format!("{}{OPERATORS}", warehouse(server, base, environment))
}

fn console(pgusher: &Pgusher) -> Raw {
    Raw::login_with(pgusher.address(), VERSION, &[("user", "ops"), ("database", "pgusher")])
}

/// The tag of a command's answer, or its error.
fn order(console: &mut Raw, command: &str) -> String {
    let answer = console.ask(&query(command));
    match answer.iter().find(|m| m.tag == 'E') {
        Some(error) => format!("{} {}", error.field('C'), error.field('M')),
        None => {
            let tag = answer.iter().find(|m| m.tag == 'C').map(|m| m.body.clone()).unwrap_or_default();
            String::from_utf8(tag).unwrap().trim_end_matches('\0').to_owned()
        }
    }
}

/// Runs SCRAM up to its last message: that, and the connection it is to be sent on.
fn nearly_in(address: SocketAddr, user: &str) -> (Raw, Vec<u8>) {
    let mut raw = Raw::connect(address);
    raw.send(&startup(VERSION, &[("user", user), ("database", "warehouse")]));
    assert_eq!(raw.next().unwrap().tag, 'R');
    let mut scram = ScramSha256::new(user.as_bytes(), ChannelBinding::unsupported());
    let mut initial = b"SCRAM-SHA-256\0".to_vec();
    initial.extend((scram.message().len() as u32).to_be_bytes());
    initial.extend_from_slice(scram.message());
    raw.send(&message('p', &initial));
    let challenge = raw.next().unwrap();
    scram.update(&challenge.body[4..]).unwrap();
    (raw, message('p', scram.message()))
}

#[test]
fn a_login_under_way_ends_by_the_configuration_that_is_in_force_then() {
    let mark = "CREATE TABLE IF NOT EXISTS entered (who text)";
    pair().prod.sql("prod", mark);
    pair().dev.sql("dev", mark);
    for on_move in ["finish", "terminate", "keep"] {
        let server = format!("on_move = \"{on_move}\"");
        let before = config(&server, "", "");
        let pete = "[users.pete]\npassword = \"pete\"\nattributes = { environment = \"prod\" }\n";
        for (what, now, expected) in [
            ("deleted", "", Err("28P01")),
            (
                "disabled",
                "[users.pete]\npassword = \"pete\"\ndisabled = true\nattributes = { environment = \"prod\" }\n",
                Err("28000"),
            ),
            (
                "another password",
                "[users.pete]\npassword = \"other\"\nattributes = { environment = \"prod\" }\n",
                Err("28P01"),
            ),
            (
                "moved",
                "[users.pete]\npassword = \"pete\"\nattributes = { environment = \"dev\" }\n",
                Ok("dev"),
            ),
            ("unchanged", pete, Ok("prod")),
        ] {
            let pgusher = Pgusher::start(&before);
            let (mut raw, last) = nearly_in(pgusher.address(), "pete");
            let after = before.replace(pete, now);
            assert!(what == "unchanged" || after != before);
            pgusher.reload(&after);
            assert_eq!(order(&mut console(&pgusher), "WAIT SETTLED"), "WAIT");
            let what = format!("{what} {on_move}");
            let insert = query(&format!("INSERT INTO entered SELECT '{what}' RETURNING current_database()"));
            raw.send(&[last, insert].concat());
            let mut answer = raw.until_ready();
            match expected {
                Err(state) => {
                    let error = answer.iter().find(|m| m.tag == 'E').unwrap();
                    assert_eq!(error.field('C'), state, "{what}");
                    assert!(raw.is_closed(), "{what}");
                }
                Ok(database) => {
                    answer.extend(raw.until_ready());
                    let row =
                        answer.iter().find(|m| m.tag == 'D').unwrap_or_else(|| panic!("{what}: {answer:?}"));
                    assert_eq!(row.columns(), [database], "{what}");
                }
            }
            let count = |server: &Postgres, database: &str| {
                server.sql(database, &format!("SELECT count(*) FROM entered WHERE who = '{what}'"))
            };
            let counts = [count(&pair().dev, "dev"), count(&pair().prod, "prod")];
            let here = |database: &str| if expected == Ok(database) { "1" } else { "0" };
            assert_eq!(counts, [here("dev"), here("prod")], "{what}");
        }
    }
}

/// Waits until one client waits for a connection of `warehouse_prod`.
fn somebody_waits(ops: &mut Raw) {
    eventually("it waits", || cell(ops, "SHOW POOLS", ("database", "warehouse_prod"), "cl_waiting") == "1");
}

#[test]
fn a_login_that_waits_for_a_connection_is_decided_anew_when_its_route_changes() {
    let before = config("on_move = \"keep\"", "", "pool_size = 1\nmax_pinned = 1");
    let pgusher = Pgusher::start(&before);
    let mut holder = Raw::login(pgusher.address(), "rawprod");
    assert_eq!(holder.tags(&query("BEGIN; SELECT 1")), "CTDCZ");
    // Its settings are not known yet: they are asked of a connection.
    let mut waiting = Raw::connect(pgusher.address());
    let pairs = [("user", "rawprod"), ("database", "warehouse"), ("my.own", "1")];
    waiting.send(&startup(VERSION, &pairs));
    let mut ops = console(&pgusher);
    somebody_waits(&mut ops);
    let moved = "[users.rawprod]\nauth_type = \"trust\"\nattributes = { environment = \"prod\" }";
    let after = before.replace(moved, &moved.replace("prod\" }", "dev\" }"));
    assert_ne!(before, after);
    pgusher.reload(&after);
    assert!(waiting.until_ready().iter().any(|m| m.tag == 'K'));
    assert_eq!(waiting.value("SELECT name FROM whoami"), "dev");
    // Who was in stays: on_move = "keep".
    assert_eq!(holder.value("SELECT name FROM whoami"), "prod");
}

#[test]
fn a_statement_that_waits_does_not_run_when_its_user_is_gone_or_moved() {
    pair().prod.sql("prod", "CREATE TABLE IF NOT EXISTS waited (who text)");
    let user = "[users.late]\nauth_type = \"trust\"\nattributes = { environment = \"prod\" }\n";
    for (what, now) in [("deleted", ""), ("moved", "[users.late]\nauth_type = \"trust\"\n")] {
        let common = config("", "", "pool_size = 1\nmax_pinned = 1");
        let pgusher = Pgusher::start(&format!("{common}{user}"));
        let mut late = Raw::login(pgusher.address(), "late");
        let mut holder = Raw::login(pgusher.address(), "rawprod");
        assert_eq!(holder.tags(&query("BEGIN; SELECT 1")), "CTDCZ");
        late.send(&query(&format!("INSERT INTO waited VALUES ('{what}')")));
        let mut ops = console(&pgusher);
        somebody_waits(&mut ops);
        pgusher.reload(&format!("{common}{now}"));
        let answer = late.until_ready();
        assert_eq!(answer.last().unwrap().field('C'), "57P01", "{what}: {answer:?}");
        assert_eq!(holder.tags(&query("COMMIT")), "CZ");
        assert_eq!(holder.value(&format!("SELECT count(*) FROM waited WHERE who = '{what}'")), "0");
    }
}

/// A moment, after which whoever was not served is held.
const MOMENT: Duration = Duration::from_millis(700);

/// What this user is served or told within a moment; the connection, if it still waits.
fn is_served(pgusher: &Pgusher, user: &str) -> Result<String, Raw> {
    is_served_within(pgusher, user, MOMENT)
}

/// What this user is served or told, however busy the machine is.
fn served(pgusher: &Pgusher, user: &str) -> Option<String> {
    is_served_within(pgusher, user, super::house::PATIENCE).ok()
}

fn is_served_within(pgusher: &Pgusher, user: &str, moment: Duration) -> Result<String, Raw> {
    let mut raw = Raw::connect(pgusher.address());
    raw.send(&startup(VERSION, &[("user", user), ("database", "warehouse")]));
    raw.send(&query("SELECT name FROM whoami"));
    raw.stream.set_read_timeout(Some(moment)).unwrap();
    let mut byte = [0; 1];
    let mut served = String::new();
    loop {
        match raw.stream.peek(&mut byte) {
            Ok(0) => return Ok("closed".into()),
            Err(_) => {
                raw.stream.set_read_timeout(Some(super::house::PATIENCE)).unwrap();
                return Err(raw);
            }
            Ok(_) => {
                let message = raw.next().unwrap();
                match message.tag {
                    'E' => return Ok(message.field('C')),
                    'D' => served = message.columns().remove(0),
                    'Z' if !served.is_empty() => return Ok(served),
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn orders_hold_logins_and_sessions_of_both_modes() {
    let pgusher = Pgusher::start(&config("", "", ""));
    let mut ops = console(&pgusher);
    for user in ["raw", "sess"] {
        assert_eq!(served(&pgusher, user).as_deref(), Some("dev"));
    }
    for (command, back) in [
        ("PAUSE warehouse", "RESUME warehouse"),
        ("PAUSE", "RESUME"),
        ("SUSPEND", "RESUME"),
        ("KILL warehouse", "RESUME warehouse"),
    ] {
        assert!(!order(&mut ops, command).contains(' '), "{command}");
        let waiting: Vec<Raw> = ["raw", "sess"]
            .iter()
            .map(|user| is_served(&pgusher, user).expect_err(&format!("{command}: {user} is served")))
            .collect();
        assert_eq!(order(&mut ops, back), "RESUME", "{command}");
        for mut raw in waiting {
            let mut served = false;
            while !served {
                served = raw.until_ready().iter().any(|m| m.tag == 'D' && m.columns() == ["dev"]);
            }
        }
    }
    for (command, back) in
        [("DISABLE warehouse", "ENABLE warehouse"), ("DRAIN ENVIRONMENT dev", "RESUME ENVIRONMENT dev")]
    {
        assert!(!order(&mut ops, command).contains(' '), "{command}");
        for user in ["raw", "sess"] {
            assert_eq!(served(&pgusher, user).as_deref(), Some("57P03"), "{command} {user}");
        }
        order(&mut ops, back);
        for user in ["raw", "sess"] {
            assert_eq!(served(&pgusher, user).as_deref(), Some("dev"), "{back} {user}");
        }
    }
}

/// Another database on the server of prod, which is not production.
fn elsewhere() -> u16 {
    static MADE: std::sync::Once = std::sync::Once::new();
    MADE.call_once(|| {
        pair().prod.sql("postgres", "CREATE DATABASE moved");
        pair().prod.sql("moved", "CREATE TABLE whoami AS SELECT 'moved'::text AS name");
    });
    pair().prod.port
}

#[test]
fn orders_survive_reloads_that_change_where_a_database_is() {
    let before = config("", "", "");
    let dev = format!("port = {}\ndatabase = \"dev\"", pair().dev.port);
    let moved = before.replace(&dev, &format!("port = {}\ndatabase = \"moved\"", elsewhere()));
    assert_ne!(before, moved);
    for (command, back, waits) in [
        ("PAUSE warehouse", "RESUME warehouse", true),
        ("PAUSE", "RESUME", true),
        ("KILL warehouse", "RESUME warehouse", true),
        ("DISABLE warehouse", "ENABLE warehouse", false),
        ("DRAIN ENVIRONMENT dev", "RESUME ENVIRONMENT dev", false),
    ] {
        let pgusher = Pgusher::start(&before);
        let mut ops = console(&pgusher);
        let mut held = Raw::login(pgusher.address(), "raw");
        assert_eq!(held.value("SELECT name FROM whoami"), "dev");
        assert!(!order(&mut ops, command).contains(' '), "{command}");
        let is_there = !command.starts_with("KILL") && !command.starts_with("DRAIN");
        if waits && is_there {
            held.send(&query("SELECT name FROM whoami"));
        }
        pgusher.reload(&moved);
        if waits && is_there {
            // It waited for a database that is elsewhere now: never is one swapped under a session.
            assert_eq!(held.until_ready().last().unwrap().field('C'), "57P01", "{command}");
        }
        for user in ["raw", "sess"] {
            match waits {
                true => assert!(is_served(&pgusher, user).is_err(), "{command} {user}"),
                false => assert_eq!(served(&pgusher, user).as_deref(), Some("57P03"), "{command} {user}"),
            }
        }
        // Once more, and back: it still holds.
        pgusher.reload(&format!("{moved}# again\n"));
        if command == "PAUSE warehouse" {
            assert_eq!(order(&mut ops, "ROLLBACK CONFIG"), "ROLLBACK CONFIG");
            pgusher.reload(&moved);
        }
        if waits {
            assert!(is_served(&pgusher, "raw").is_err(), "{command}");
        } else {
            assert_eq!(served(&pgusher, "raw").as_deref(), Some("57P03"), "{command}");
        }
        order(&mut ops, back);
        for user in ["raw", "sess"] {
            assert_eq!(served(&pgusher, user).as_deref(), Some("moved"), "{back} {user}");
        }
    }
}

/// The recipe of docs/operations.md for a switch-over: pause, change, reload, resume. No statement runs on the old server
/// behind it, and none that was acknowledged is lost.
#[test]
fn a_switch_over_with_writers_writes_to_one_server_and_then_to_the_other() {
    let (old, new) = (&pair().dev, &pair().prod);
    elsewhere();
    for (server, database) in [(old, "dev"), (new, "moved")] {
        server.sql(database, "CREATE TABLE switched (at int, n int)");
    }
    let before = config("", "", "");
    let dev = format!("port = {}\ndatabase = \"dev\"", old.port);
    let after = before.replace(&dev, &format!("port = {}\ndatabase = \"moved\"", new.port));
    let pgusher = Pgusher::start(&before);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..8)
        .map(|at| {
            let (stop, address) = (stop.clone(), pgusher.address());
            let user = if at % 2 == 0 { "raw" } else { "sess" };
            std::thread::spawn(move || {
                let (mut acknowledged, mut n) = (Vec::new(), 0);
                while !stop.load(Ordering::Relaxed) {
                    let mut raw = Raw::login(address, user);
                    // A session in session mode keeps its connection: it writes a while, and leaves.
                    for _ in 0..20 {
                        n += 1;
                        let insert = query(&format!("INSERT INTO switched VALUES ({at}, {n})"));
                        // The other side may have ended the session meanwhile.
                        if raw.stream.write_all(&insert).is_err() {
                            break;
                        }
                        match raw.until_ready().last() {
                            Some(last) if last.tag == 'Z' => acknowledged.push(n),
                            _ => break,
                        }
                    }
                }
                (at, acknowledged)
            })
        })
        .collect();
    let count = |server: &Postgres, database: &str| server.sql(database, "SELECT count(*) FROM switched");
    eventually("they write", || count(old, "dev").parse::<u32>().unwrap() > 200);
    let mut ops = console(&pgusher);
    assert_eq!(order(&mut ops, "PAUSE warehouse"), "PAUSE");
    let paused = count(old, "dev");
    pgusher.reload(&after);
    assert_eq!(count(new, "moved"), "0", "written while it was paused");
    assert_eq!(order(&mut ops, "RESUME warehouse"), "RESUME");
    eventually("they write to the new one", || count(new, "moved").parse::<u32>().unwrap() > 200);
    stop.store(true, Ordering::Relaxed);
    let mut all = 0;
    for writer in writers {
        let (at, acknowledged) = writer.join().unwrap();
        all += acknowledged.len();
        for (server, database) in [(old, "dev"), (new, "moved")] {
            let doubled =
                "SELECT count(*) FROM (SELECT FROM switched GROUP BY at, n HAVING count(*) > 1) AS d";
            assert_eq!(server.sql(database, doubled), "0");
        }
        let rows = |server: &Postgres, database: &str| {
            let listed = server.sql(database, &format!("SELECT n FROM switched WHERE at = {at} ORDER BY n"));
            listed.lines().map(|n| n.parse::<i32>().unwrap()).collect::<Vec<_>>()
        };
        let there = [rows(old, "dev"), rows(new, "moved")].concat();
        assert!(acknowledged.iter().all(|n| there.contains(n)), "an acknowledged write of {at} is lost");
    }
    assert_eq!(count(old, "dev"), paused, "written to the old server behind the pause");
    println!("{all} acknowledged writes, {paused} of them before");
}

#[test]
fn a_console_session_has_the_rights_that_are_in_force_now() {
    let before = config("", "", "");
    let pgusher = Pgusher::start(&before);
    let (mut busy, mut idle, mut waiting) = (console(&pgusher), console(&pgusher), console(&pgusher));
    assert_eq!(order(&mut busy, "RELOAD"), "RELOAD");
    let stats = before.replace("console = \"admin\"", "console = \"stats\"");
    pgusher.reload(&stats);
    assert!(order(&mut busy, "PAUSE").starts_with("42501"));
    assert_eq!(order(&mut busy, "SHOW POOLS"), "SHOW");
    pgusher.reload(&before);
    assert_eq!(order(&mut busy, "RELOAD"), "RELOAD");
    // It waits for ever: a transaction keeps its connection.
    let mut holder = Raw::login(pgusher.address(), "raw");
    assert_eq!(holder.tags(&query("BEGIN; SELECT 1")), "CTDCZ");
    waiting.send(&query("PAUSE warehouse"));
    eventually("it is paused", || {
        let answer = busy.ask(&query("SHOW DATABASES"));
        answer.iter().any(|m| m.tag == 'D' && m.columns()[0] == "warehouse" && m.columns()[15] == "1")
    });
    for gone in [
        before.replace("console = \"admin\"", ""),
        before.replace("[users.ops]\nauth_type", "[users.ops]\ndisabled = true\nauth_type"),
        before.replace("[users.ops]", "[users.other]"),
    ] {
        assert_ne!(gone, before);
        pgusher.reload(&gone);
        for raw in [&mut idle, &mut waiting, &mut busy] {
            let answer = raw.until_ready();
            assert_eq!(answer.last().map(|m| m.field('C')).as_deref(), Some("57P01"), "{answer:?}");
            assert!(raw.is_closed());
        }
        pgusher.reload(&before);
        (idle, waiting, busy) = (console(&pgusher), console(&pgusher), console(&pgusher));
    }
    assert_eq!(order(&mut busy, "RESUME warehouse"), "RESUME");
}

/// An order is of a database and not of its name.
#[test]
fn an_order_holds_when_what_it_was_given_for_has_another_name() {
    let id = "id = \"7f3c9d2e-1111-4222-8333-444455556666\"";
    let text = config("", "", id);
    let pgusher = Pgusher::start(&text);
    let mut ops = console(&pgusher);
    let refused = |what: &str| {
        let error = super::fake::refused(&pgusher, "rawprod", "warehouse");
        assert_eq!(error.field('C'), "57P03", "{what}: {error:?}");
    };
    assert_eq!(order(&mut ops, "DRAIN ENVIRONMENT prod"), "DRAIN");
    refused("drained");
    let renamed = text.replacen("name = \"prod\"", "name = \"production\"", 1);
    pgusher.reload(&renamed);
    refused("the environment has another name");
    assert_eq!(order(&mut ops, "RESUME ENVIRONMENT production"), "RESUME");
    assert_eq!(order(&mut ops, "DISABLE warehouse_prod"), "DISABLE");
    refused("disabled");
    // Another name and another login, and the same id.
    let again = renamed
        .replace("warehouse_prod", "wp3")
        .replace("database = \"prod\"\nusername = \"app\"", "database = \"prod\"\nusername = \"postgres\"");
    assert_ne!(again, renamed);
    pgusher.reload(&again);
    refused("the connection has another name");
    assert_eq!(order(&mut ops, "ENABLE wp3"), "ENABLE");
}

/// Two names of one database that both become others in one edit: nobody can tell which is which.
#[test]
fn an_order_holds_when_two_connections_to_one_database_have_other_names() {
    let first = config("", "", "");
    let another = |name: &str| {
        let port = pair().dev.port;
        format!(
            "\n[connections.{name}]\nhost = \"127.0.0.1\"\nport = {port}\ndatabase = \"postgres\"\nusername = \"app\"\n"
        )
    };
    let text = first.clone() + &another("second") + &another("third");
    let pgusher = Pgusher::start(&text);
    let mut ops = console(&pgusher);
    assert_eq!(order(&mut ops, "DISABLE third"), "DISABLE");
    assert_eq!(super::fake::refused(&pgusher, "raw", "third").field('C'), "57P03");
    pgusher.reload(&(first + &another("one") + &another("two")));
    assert_eq!(super::fake::refused(&pgusher, "raw", "two").field('C'), "57P03");
    assert_eq!(order(&mut ops, "ENABLE two"), "ENABLE");
    let pairs = [("user", "raw"), ("database", "two")];
    assert_eq!(Raw::login_with(pgusher.address(), VERSION, &pairs).value("SELECT 1"), "1");
}
