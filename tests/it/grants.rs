//! Access for a while: given, seen, used, ended by its time or before, kept over restarts, told in the audit.

use std::time::{Duration, Instant};

use super::console::{OPERATORS, cell, console};
use super::house::{Pgusher, eventually, pair, warehouse};
use super::state::done;
use super::wire::{Raw, query, startup};

const DEVON: &str = "\n[users.devon]\nauth_type = \"trust\"\nattributes = { environment = \"dev\" }\n";

fn config(server: &str) -> String {
    warehouse(&format!("audit_file = \"audit.jsonl\"\n{server}"), "", "") + OPERATORS
}

/// Another database with the same environments.
fn hr() -> String {
    let (dev, prod) = (pair().dev.port, pair().prod.port);
    format!(
        "\n[connections.hr]\nhost = \"127.0.0.1\"\nport = {dev}\ndatabase = \"dev\"\nusername = \"app\"\naliases = [\"people\"]\n\
         user_attribute = \"environment\"\ndefault_values = [\"dev\"]\n\
         environments = [{{ connection = \"hr_prod\", name = \"prod\", values = [\"prod\"] }}]\n\
         \n[connections.hr_prod]\nhost = \"127.0.0.1\"\nport = {prod}\ndatabase = \"prod\"\nusername = \"app\"\nproduction = true\n"
    )
}

/// Where a user lands who requests this environment, or why not.
fn land(pgusher: &Pgusher, user: &str, environment: Option<&str>) -> Result<String, String> {
    land_on(pgusher, "warehouse", user, environment)
}

fn land_on(
    pgusher: &Pgusher,
    database: &str,
    user: &str,
    environment: Option<&str>,
) -> Result<String, String> {
    let mut pairs = vec![("user", user), ("database", database)];
    pairs.extend(environment.map(|name| ("pgusher.environment", name)));
    let mut raw = Raw::connect(pgusher.address());
    raw.send(&startup(0x0003_0000, &pairs));
    match raw.until_ready().iter().find(|m| m.tag == 'E') {
        Some(error) => Err(format!("{} {}", error.field('C'), error.field('D'))),
        None => Ok(raw.value("SELECT current_database()")),
    }
}

fn error(raw: &mut Raw, sql: &str) -> (String, String) {
    let answer = raw.ask(&query(sql));
    let error = answer.iter().find(|m| m.tag == 'E').unwrap_or_else(|| panic!("{sql}: {answer:?}"));
    (error.field('C'), error.field('M'))
}

fn audited(pgusher: &Pgusher, event: &str) -> usize {
    let text = std::fs::read_to_string(pgusher.folder.join("audit.jsonl")).unwrap();
    text.matches(&format!("\"event\":\"{event}\"")).count()
}

#[test]
fn an_environment_is_granted_until_its_time_is_over() {
    let pgusher = Pgusher::start(&(config("") + DEVON));
    let mut operator = console(&pgusher, "operator");
    assert!(land(&pgusher, "devon", Some("prod")).unwrap_err().starts_with("28000"));
    done(&mut operator, "GRANT ENVIRONMENT prod TO devon FOR '3s' REASON 'INC-7'");
    let granted = Instant::now();
    // Whoever asks for nothing stays where he was.
    assert_eq!(land(&pgusher, "devon", None).unwrap(), "dev");
    let mut there = Raw::login_with(
        pgusher.address(),
        0x0003_0000,
        &[("user", "devon"), ("database", "warehouse"), ("pgusher.environment", "prod")],
    );
    assert_eq!(there.value("SELECT current_database()"), "prod");
    let mut at_home = Raw::login(pgusher.address(), "devon");
    let shown = cell(&mut operator, "SHOW ROUTES", ("user", "devon"), "granted");
    assert!(shown.starts_with("prod until ") && shown.ends_with("(INC-7)"), "{shown}");
    assert_eq!(cell(&mut operator, "SHOW GRANTS", ("user", "devon"), "by"), "operator");
    let why = done(&mut operator, "EXPLAIN ROUTE FOR devon ON warehouse AS prod");
    assert!(why.iter().any(|m| m.tag == 'D' && m.columns()[0].contains("by operator (INC-7)")), "{why:?}");
    // Then it is over, within a second or so: for those who come, and for those who are there.
    let end = there.next().unwrap();
    let took = granted.elapsed();
    assert_eq!((end.tag, end.field('C')), ('E', "57P01".into()));
    assert!(took > Duration::from_millis(2900) && took < Duration::from_secs(6), "{took:?}");
    assert!(land(&pgusher, "devon", Some("prod")).unwrap_err().starts_with("28000"));
    assert_eq!(at_home.value("SELECT current_database()"), "dev");
    eventually("both ends are told", || audited(&pgusher, "grant") + audited(&pgusher, "grant_ended") == 2);
    assert_eq!(cell(&mut operator, "SHOW GRANTS", ("user", "devon"), "by"), "");
}

#[test]
fn a_grant_is_kept_over_a_restart_and_can_be_revoked() {
    let mut pgusher = Pgusher::start(&config(""));
    done(&mut console(&pgusher, "operator"), "GRANT ENVIRONMENT prod TO raw FOR '1h' REASON 'INC-7'");
    pgusher.signal("TERM");
    assert!(pgusher.child.wait().unwrap().success());
    pgusher.start_again(&config(""));
    assert_eq!(land(&pgusher, "raw", Some("prod")).unwrap(), "prod");
    let mut there = Raw::login_with(
        pgusher.address(),
        0x0003_0000,
        &[("user", "raw"), ("database", "warehouse"), ("pgusher.environment", "prod")],
    );
    assert_eq!(there.value("SELECT current_database()"), "prod");
    let mut operator = console(&pgusher, "operator");
    done(&mut operator, "REVOKE ENVIRONMENT prod FROM raw");
    assert_eq!(there.next().unwrap().field('C'), "57P01");
    done(&mut operator, "WAIT SETTLED '5s'");
    assert!(land(&pgusher, "raw", Some("prod")).is_err());
    eventually("it is told", || audited(&pgusher, "revoke") == 1);
    assert_eq!(error(&mut operator, "REVOKE ENVIRONMENT prod FROM raw").0, "42704");
}

/// What is said beside the answer.
fn notice(raw: &mut Raw, sql: &str) -> String {
    done(raw, sql).iter().find(|m| m.tag == 'N').map(|m| m.field('M')).unwrap_or_default()
}

#[test]
fn a_grant_is_for_the_database_that_it_names() {
    let pgusher = Pgusher::start(&(config("") + DEVON + &hr()));
    let mut operator = console(&pgusher, "operator");
    let lands = |database: &str| land_on(&pgusher, database, "devon", Some("prod")).is_ok();
    // Which may be an alias; the notice says what is opened.
    let said = notice(&mut operator, "GRANT ENVIRONMENT prod ON people TO devon FOR '1h' REASON 'INC-7'");
    assert!(said.starts_with("devon may request environment prod of database hr until "), "{said}");
    assert_eq!((lands("hr"), lands("people"), lands("warehouse")), (true, true, false));
    let shown = |raw: &mut Raw, column: &str| cell(raw, "SHOW GRANTS", ("user", "devon"), column);
    assert_eq!((shown(&mut operator, "database"), shown(&mut operator, "opens")), ("hr".into(), "hr".into()));
    let routes = done(&mut operator, "SHOW ROUTES");
    let granted = |database: &str| {
        let row = routes.iter().filter(|m| m.tag == 'D').map(|m| m.columns());
        row.filter(|row| row[0] == "devon" && row[1] == database)
            .any(|row| row.last().unwrap().starts_with("prod until"))
    };
    assert_eq!((granted("hr"), granted("warehouse")), (true, false));
    // For all, and that is said; both are there, and each is ended by itself.
    let said = notice(&mut operator, "GRANT ENVIRONMENT prod TO devon FOR '1h' REASON 'INC-8'");
    assert!(said.contains("of every database that has it (hr, warehouse) until "), "{said}");
    assert!(lands("hr") && lands("warehouse"));
    let said = notice(&mut operator, "REVOKE ENVIRONMENT prod ON hr FROM devon");
    assert!(said.starts_with("another grant is left: devon may request environment prod of every"), "{said}");
    assert!(lands("hr") && lands("warehouse"));
    assert_eq!(error(&mut operator, "REVOKE ENVIRONMENT prod ON hr FROM devon").0, "42704");
    done(&mut operator, "GRANT ENVIRONMENT prod ON hr TO devon FOR '2h' REASON 'INC-7'");
    assert_eq!(
        notice(&mut operator, "REVOKE ENVIRONMENT prod FROM devon"),
        "devon has no grant of environment prod any more"
    );
    assert!(!lands("hr") && !lands("warehouse"));
    // A session that came by it is settled when its own ends.
    done(&mut operator, "GRANT ENVIRONMENT prod ON hr TO devon FOR '1h' REASON 'INC-7'");
    let pairs = [("user", "devon"), ("database", "hr"), ("pgusher.environment", "prod")];
    let mut there = Raw::login_with(pgusher.address(), 0x0003_0000, &pairs);
    assert_eq!(there.value("SELECT current_database()"), "prod");
    done(&mut operator, "REVOKE ENVIRONMENT prod ON hr FROM devon");
    assert_eq!(there.next().unwrap().field('C'), "57P01");
    for (sql, message) in [
        (
            "GRANT ENVIRONMENT prod ON nowhere TO devon FOR '1h' REASON 'x'",
            "there is no database \"nowhere\"",
        ),
        (
            "GRANT ENVIRONMENT prod ON hr_prod TO devon FOR '1h' REASON 'x'",
            "there is no database \"hr_prod\"",
        ),
        (
            "GRANT ENVIRONMENT staging ON hr TO devon FOR '1h' REASON 'x'",
            "database \"hr\" has no environment \"staging\"",
        ),
        (
            "REVOKE ENVIRONMENT prod ON hr FROM devon",
            "environment \"prod\" of database \"hr\" is not granted",
        ),
    ] {
        let (code, said) = error(&mut operator, sql);
        assert!(code == "42704" && said.starts_with(message), "{sql}: {said}");
    }
    // The command line, and the audit.
    let run = |arguments: &[&str]| {
        let console = format!("host=127.0.0.1 port={} user=operator", pgusher.port);
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_pgusher"))
            .args(arguments)
            .args(["--console", &console])
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stderr) + &text(output.stdout))
    };
    let (is_done, said) =
        run(&["grant", "prod", "--on", "hr", "--to", "devon", "--for", "1h", "--reason", "INC-9"]);
    assert!(is_done && said.contains("of database hr until"), "{said}");
    assert!(lands("hr") && !lands("warehouse"));
    // For programs, one object.
    let (is_done, said) = run(&["revoke", "prod", "--on", "hr", "--from", "devon", "--json"]);
    let object: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert!(is_done && object["notices"].is_array() && !lands("hr"), "{said}");
    eventually("it is told", || {
        let text = std::fs::read_to_string(pgusher.folder.join("audit.jsonl")).unwrap();
        let told = |event: &str| {
            let is_it = |line: &&str| line.contains(event) && line.contains("\"database\":\"hr\"");
            text.lines().filter(is_it).count()
        };
        told("\"event\":\"grant\"") == 4 && told("\"event\":\"revoke\"") == 4
    });
}

#[test]
fn of_two_grants_of_one_environment_the_one_that_lasts_longer_holds() {
    let config =
        warehouse("", "on_unmatched = \"reject\"", "") + OPERATORS + "\n[users.new]\nauth_type = \"trust\"\n";
    let pgusher = Pgusher::start(&config);
    let mut operator = console(&pgusher, "operator");
    done(&mut operator, "GRANT ENVIRONMENT prod ON warehouse TO new FOR '2h' REASON 'longer'");
    done(&mut operator, "GRANT ENVIRONMENT prod TO new FOR '1h' REASON 'shorter'");
    // They are one environment, and not two between which nobody can choose.
    assert_eq!(land(&pgusher, "new", None).unwrap(), "prod");
    let why = done(&mut operator, "EXPLAIN ROUTE FOR new ON warehouse");
    assert!(why.iter().any(|m| m.tag == 'D' && m.columns()[0].contains("(longer)")), "{why:?}");
}

#[test]
fn whoever_leads_nowhere_goes_where_he_is_granted() {
    let config =
        warehouse("", "on_unmatched = \"reject\"", "") + OPERATORS + "\n[users.new]\nauth_type = \"trust\"\n";
    let pgusher = Pgusher::start(&config);
    assert!(land(&pgusher, "new", None).is_err());
    let mut operator = console(&pgusher, "operator");
    done(&mut operator, "GRANT ENVIRONMENT prod TO new FOR '1h' REASON 'trial'");
    assert_eq!(land(&pgusher, "new", None).unwrap(), "prod");
    done(&mut operator, "GRANT ENVIRONMENT dev TO new FOR '1h' REASON 'trial'");
    let why = land(&pgusher, "new", None).unwrap_err();
    assert!(why.starts_with("28000 Granted are"), "{why}");
    assert_eq!(land(&pgusher, "new", Some("dev")).unwrap(), "dev");
    done(&mut operator, "REVOKE ENVIRONMENT prod FROM new");
    assert_eq!(land(&pgusher, "new", None).unwrap(), "dev");
}

#[test]
fn a_grant_that_cannot_be_is_refused_and_changes_nothing() {
    let mut pgusher = Pgusher::start(&config("grants_file = \"nowhere/grants.json\""));
    let mut operator = console(&pgusher, "operator");
    for (sql, sqlstate) in [
        ("GRANT ENVIRONMENT prod TO nobody FOR '1h' REASON 'x'", "42704"),
        ("GRANT ENVIRONMENT nowhere TO raw FOR '1h' REASON 'x'", "42704"),
        ("GRANT ENVIRONMENT prod TO raw FOR '1h'", "42601"),
        ("GRANT ENVIRONMENT prod TO raw FOR '-1h' REASON 'x'", "42601"),
        ("GRANT ENVIRONMENT prod TO raw FOR '1h' REASON 'x'", "55000"),
    ] {
        assert_eq!(error(&mut operator, sql).0, sqlstate, "{sql}");
    }
    let stats = "GRANT ENVIRONMENT prod TO raw FOR '1h' REASON 'x'";
    assert_eq!(error(&mut console(&pgusher, "watcher"), stats).0, "42501");
    assert!(land(&pgusher, "raw", Some("prod")).is_err());
    // A file that is none gives nobody anything, and is put aside.
    pgusher.signal("TERM");
    assert!(pgusher.child.wait().unwrap().success());
    std::fs::write(pgusher.folder.join("pgusher-grants.json"), "[{\"user\": \"raw\"}]").unwrap();
    pgusher.start_again(&config(""));
    assert!(land(&pgusher, "raw", Some("prod")).is_err());
    assert!(
        pgusher.folder.join("pgusher-grants.broken").exists()
            && pgusher.log().contains("no grant is in effect")
    );
}

/// While one process takes over from another, what is granted and revoked in either holds in both.
#[test]
fn two_processes_share_their_grants() {
    let folder = super::house::temporary_folder("grants");
    let grants = folder.join("grants.json");
    let config = warehouse(&format!("grants_file = \"{}\"", grants.display()), "", "") + OPERATORS + DEVON;
    let (one, two) = (Pgusher::start(&config), Pgusher::start(&config));
    let lands = |pgusher: &Pgusher| land(pgusher, "devon", Some("prod")).is_ok();
    let mut operator = console(&one, "operator");
    done(&mut operator, "GRANT ENVIRONMENT prod TO devon FOR '1h' REASON 'x'");
    eventually("the other one knows", || lands(&two));
    done(&mut operator, "GRANT ENVIRONMENT prod TO raw FOR '2s' REASON 'short'");
    let mut there = Raw::login_with(
        two.address(),
        0x0003_0000,
        &[("user", "devon"), ("database", "warehouse"), ("pgusher.environment", "prod")],
    );
    assert_eq!(there.value("SELECT current_database()"), "prod");
    done(&mut console(&one, "operator"), "REVOKE ENVIRONMENT prod FROM devon");
    assert_eq!(there.next().unwrap().field('C'), "57P01");
    // What ends by itself meanwhile brings nothing back.
    eventually("the short one is over", || !std::fs::read_to_string(&grants).unwrap().contains("short"));
    std::thread::sleep(Duration::from_millis(1200));
    assert!(!lands(&one) && !lands(&two));
    assert!(!std::fs::read_to_string(&grants).unwrap().contains("devon"));
    std::fs::remove_dir_all(folder).unwrap();
}

/// A login that is under way when its grant ends is not left where it may not be.
#[test]
fn a_login_that_waits_while_its_grant_ends_does_not_stay() {
    let config = warehouse("pool_mode = \"session\"", "", "pool_size = 1") + OPERATORS + DEVON;
    let pgusher = Pgusher::start(&config);
    let mut operator = console(&pgusher, "operator");
    done(&mut operator, "GRANT ENVIRONMENT prod TO devon FOR '1h' REASON 'x'");
    // The only connection is taken.
    let first = Raw::login(pgusher.address(), "rawprod");
    let mut late = Raw::connect(pgusher.address());
    let pairs = [("user", "devon"), ("database", "warehouse"), ("pgusher.environment", "prod")];
    late.send(&startup(0x0003_0000, &pairs));
    std::thread::sleep(Duration::from_millis(300));
    done(&mut operator, "REVOKE ENVIRONMENT prod FROM devon");
    drop(first);
    let answer = late.until_ready();
    let ended =
        answer.last().is_some_and(|m| m.tag == 'E') || late.next().is_some_and(|m| m.field('C') == "57P01");
    assert!(ended, "{answer:?}");
}
