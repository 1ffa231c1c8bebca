//! What a plan says is what then happens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::{Command, Output};

use super::house::{Pgusher, Random, eventually, pair, size, warehouse};
use super::state::done;
use super::tls::{certificates, with_tls};
use super::wire::{Message, Raw, bind, execute, parse, query, startup, sync};

const OPERATOR: &str = "\n[users.operator]\nauth_type = \"trust\"\nconsole = \"admin\"\n";
const USERS: usize = 6;

fn console(pgusher: &Pgusher) -> Raw {
    Raw::login_with(pgusher.address(), 0x0003_0000, &[("user", "operator"), ("database", "pgusher")])
}

fn rows(raw: &mut Raw, sql: &str) -> Vec<Vec<String>> {
    done(raw, sql).iter().filter(|m| m.tag == 'D').map(Message::columns).collect()
}

/// A configuration of the dice's making: users with values or without, in groups, disabled or gone; environments that
/// come, go, and change what leads to them.
fn random_config(random: &mut Random, port: u16) -> String {
    let (dev, prod) = (pair().dev.port, pair().prod.port);
    let mut text = format!(
        "[server]\nlisten = [\"127.0.0.1:{port}\"]\nlog_level = \"warn\"\ndefault_pool_size = {}\n{OPERATOR}",
        random.of(&[3, 4])
    );
    let mut environments = Vec::new();
    for (name, server) in [("prod", prod), ("qa", dev)] {
        if random.chance(75) {
            let values = random.some(&["prod", "qa", "live", "x"], 50);
            let values: Vec<_> = values.iter().filter(|v| name == "prod" || **v != "prod").collect();
            let values: Vec<_> = values
                .iter()
                .filter(|v| name != "prod" || **v != &"qa")
                .map(|v| format!("\"{v}\""))
                .collect();
            let mine = format!("\"{name}\"");
            let values = if values.is_empty() { mine } else { values.join(", ") };
            environments
                .push(format!("{{ connection = \"w_{name}\", name = \"{name}\", values = [{values}] }}"));
            let port = if random.chance(90) { server } else { dev };
            let _ = write!(
                text,
                "\n[connections.w_{name}]\nhost = \"127.0.0.1\"\nport = {port}\ndatabase = \"{}\"\nusername = \"app\"\n\
                 production = {}\npool_size = {}\n",
                if port == prod { "prod" } else { "dev" },
                port == prod,
                random.of(&[2, 3])
            );
        }
    }
    let _ = write!(
        text,
        "\n[connections.warehouse]\nhost = \"127.0.0.1\"\nport = {dev}\ndatabase = \"dev\"\nusername = \"app\"\n\
         user_attribute = \"environment\"\ndefault_values = [\"dev\"]\non_unmatched = \"{}\"\nenvironments = [{}]\n",
        random.of(&["base", "reject"]),
        environments.join(", ")
    );
    let _ = write!(
        text,
        "\n[groups.team]\nattributes = {{ environment = \"{}\" }}\n",
        random.of(&["prod", "qa", "dev"])
    );
    for user in 0..USERS {
        if random.chance(8) {
            continue;
        }
        let _ = write!(text, "\n[users.u{user}]\nauth_type = \"trust\"\n");
        if random.chance(8) {
            text.push_str("disabled = true\n");
        }
        if random.chance(30) {
            text.push_str("groups = [\"team\"]\n");
        }
        if random.chance(60) {
            let value = random.of(&["dev", "prod", "qa", "live", "nothing"]);
            let _ = writeln!(text, "attributes = {{ environment = \"{value}\" }}");
        }
    }
    text
}

/// The environment that a user gets to, or the SQLSTATE of the refusal.
fn log_in(pgusher: &Pgusher, user: &str) -> Result<Raw, String> {
    let mut raw = Raw::connect(pgusher.address());
    raw.send(&startup(0x0003_0000, &[("user", user), ("database", "warehouse")]));
    match raw.next().unwrap() {
        // Nobody of that name: he is asked for a password all the same.
        m if m.tag == 'R' && m.body[..] == [&[0, 0, 0, 10], &b"SCRAM-SHA-256\0\0"[..]].concat() => {
            Err("28P01".into())
        }
        m if m.tag == 'E' => Err(m.field('C')),
        _ => match raw.until_ready().iter().find(|m| m.tag == 'E') {
            Some(error) => Err(error.field('C')),
            None => Ok(raw),
        },
    }
}

fn load(pgusher: &Pgusher, console: &mut Raw, text: &str) -> bool {
    std::fs::write(pgusher.folder.join("pgusher.toml"), text).unwrap();
    console.ask(&query("RELOAD")).iter().any(|m| m.tag == 'C')
}

#[test]
fn what_a_plan_says_is_what_then_happens() {
    let edits = size(1000, 10_000);
    let pgusher = Pgusher::start(&(warehouse("", "", "") + OPERATOR));
    let mut random = Random(0x91a4_0001);
    let mut raw = console(&pgusher);
    let mut sessions: BTreeMap<String, (u64, Raw)> = BTreeMap::new();
    // Where each user gets to, as the plans have said so far.
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let first = loop {
        let text = random_config(&mut random, pgusher.port);
        if let Some(planned) = plan(&pgusher, &mut raw, &text) {
            planned.iter().for_each(|row| note(row, &mut known));
            break text;
        }
    };
    assert!(load(&pgusher, &mut raw, &first));
    let mut refused = 0;
    let (mut hit, mut kept, mut moved) = (0, 0, 0);
    let mut edit = 0;
    while edit < edits {
        // Everybody who can be is in.
        for user in (0..USERS).map(|user| format!("u{user}")) {
            let expected = known.get(&user).cloned().unwrap_or_else(|| "no such user".into());
            if let Some((_, session)) = sessions.get_mut(&user) {
                assert!(
                    expected.starts_with(&session.value("SHOW pgusher.environment")),
                    "{user}: {expected}"
                );
                continue;
            }
            match log_in(&pgusher, &user) {
                Ok(mut session) => {
                    let environment = session.value("SHOW pgusher.environment");
                    assert!(
                        expected.starts_with(&format!("{environment} (")),
                        "edit {edit}, {user}: {expected}"
                    );
                    let id =
                        rows(&mut raw, "SHOW SESSIONS").iter().find(|row| row[1] == user).unwrap()[0].parse();
                    sessions.insert(user, (id.unwrap(), session));
                }
                Err(state) => assert!(
                    expected == format!("refused ({state})")
                        || expected == "no such user" && state.starts_with("28")
                        || expected == "disabled" && state == "28000",
                    "edit {edit}, {user}: {expected}, and was refused with {state}"
                ),
            }
        }
        let next = random_config(&mut random, pgusher.port);
        let Some(planned) = plan(&pgusher, &mut raw, &next) else {
            assert!(!load(&pgusher, &mut raw, &next), "a plan is refused where the configuration is");
            refused += 1;
            continue;
        };
        let hits: BTreeSet<u64> = planned
            .iter()
            .filter(|row| row[0] == "session")
            .map(|row| row[1].split(' ').next().unwrap().parse().unwrap())
            .collect();
        for row in &planned {
            note(row, &mut known);
            moved += usize::from(["route", "production", "fallback"].contains(&row[0].as_str()));
        }
        assert!(load(&pgusher, &mut raw, &next), "{next}");
        edit += 1;
        done(&mut raw, "WAIT SETTLED '10s'");
        sessions.retain(|user, (id, session)| {
            let is_hit = hits.contains(id);
            if is_hit {
                let end = session.next().unwrap_or_else(|| panic!("edit {edit}: {user} was told nothing"));
                assert_eq!(end.field('C'), "57P01", "edit {edit}: {user}");
                hit += 1;
            } else {
                assert_eq!(
                    session.value("SELECT 'still here'"),
                    "still here",
                    "edit {edit}: {user} was not to be hit"
                );
                kept += 1;
            }
            !is_hit
        });
    }
    println!(
        "{edits} edits, {refused} others refused: {moved} routes moved, {hit} sessions ended and {kept} kept, all as planned"
    );
    assert!(hit > edits / 10 && kept > edits / 10);
}

/// The plan for a text, told by the running process; `None` if that is no configuration.
fn plan(pgusher: &Pgusher, raw: &mut Raw, text: &str) -> Option<Vec<Vec<String>>> {
    let path = pgusher.folder.join("new.toml");
    std::fs::write(&path, text).unwrap();
    let answer = raw.ask(&query(&format!("PLAN '{}'", path.display())));
    let planned = answer.iter().any(|m| m.tag == 'C');
    planned.then(|| answer.iter().filter(|m| m.tag == 'D').map(Message::columns).collect())
}

/// What a row says of a route.
fn note(row: &[String], known: &mut BTreeMap<String, String>) {
    if let Some((user, "warehouse")) = row[1].split_once(" on ")
        && ["route", "production", "fallback"].contains(&row[0].as_str())
    {
        known.insert(user.to_owned(), row[3].clone());
    }
}

fn between(old: &str, new: &str, arguments: &[&str]) -> Output {
    let folder = super::house::temporary_folder("plan");
    let (from, to) = (folder.join("old.toml"), folder.join("new.toml"));
    std::fs::write(&from, old).unwrap();
    std::fs::write(&to, new).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pgusher"))
        .arg("plan")
        .arg(&to)
        .arg("--from")
        .arg(&from)
        .args(arguments)
        .output()
        .unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    output
}

#[test]
fn a_plan_between_two_files_says_by_its_status_whether_anything_changes() {
    let old = warehouse("", "", "").replace("@PORT@", "6432");
    let nothing = between(&old, &old, &[]);
    assert_eq!((nothing.status.code(), &*nothing.stdout), (Some(0), &b"Nothing changes.\n"[..]));
    let to_prod =
        old.replace("attributes = { environment = \"dev\" }", "attributes = { environment = \"prod\" }");
    let changes = between(&old, &to_prod, &[]);
    let text = String::from_utf8_lossy(&changes.stdout).into_owned();
    assert_eq!(changes.status.code(), Some(2), "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with("production  dana on warehouse"), "{text}");
    let secret = old.replace("password = \"pete\"", "password = \"the new one\"");
    let changes = between(&old, &secret, &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&changes.stdout).unwrap();
    assert_eq!(json[0]["change"], "secret");
    assert_eq!(json[0]["subject"], "password of user pete");
    assert!(!String::from_utf8_lossy(&changes.stdout).contains("the new one"));
    // What a user may do, and whether users are isolated, are changes, too.
    let stronger = old.replacen("[users.dana]\n", "[users.dana]\nconsole = \"admin\"\n", 1).replacen(
        "\n[connections.warehouse]\n",
        "\n[connections.warehouse]\nisolation = \"shared\"\n",
        1,
    );
    let changes = between(&old, &stronger, &["--json"]);
    let json: Vec<serde_json::Value> = serde_json::from_slice(&changes.stdout).unwrap();
    let rows = ["dana console", "warehouse"].map(|subject| {
        let row = json.iter().find(|row| row["subject"] == subject);
        row.unwrap_or_else(|| panic!("{subject}: {json:#?}")).clone()
    });
    assert_eq!((&rows[0]["from"], &rows[0]["to"]), (&"none".into(), &"admin".into()));
    assert!(rows[1].to_string().contains("isolation"), "{}", rows[1]);
    // What waits for a restart is said to.
    let other = old.replacen("threads = 2\n", "threads = 3\nmax_client_conn = 77\n", 1);
    let text = String::from_utf8_lossy(&between(&old, &other, &[]).stdout).into_owned();
    let note = |name: &str| text.lines().find(|l| l.contains(name)).map(|l| l.contains("after a restart"));
    assert_eq!((note("threads"), note("max_client_conn")), (Some(true), Some(false)), "{text}");
    // A database that was production is so in the plan, also where the same edit takes the label away.
    let (dev, prod) = (pair().dev.port, pair().prod.port);
    let pointed = old
        .replacen(
            &format!("port = {dev}\ndatabase = \"dev\""),
            &format!("port = {prod}\ndatabase = \"prod\""),
            1,
        )
        .replace("production = true\n", "");
    let text = String::from_utf8_lossy(&between(&old, &pointed, &[]).stdout).into_owned();
    for user in ["dana", "nora", "raw"] {
        assert!(
            text.lines()
                .any(|l| l.starts_with("production  ") && l.contains(&format!("{user} on warehouse"))),
            "{text}"
        );
    }
    assert!(!text.lines().any(|l| l.starts_with("production  ") && l.contains("pete on")), "{text}");
    let label = text.lines().find(|l| l.contains("connection warehouse_prod")).unwrap();
    assert!(label.contains("production: true") && label.contains("production: false"), "{label}");
    // Whoever removes an environment must say that he knows where its users go then.
    let start = old.find("environments = [").unwrap();
    let end = start + old[start..].find('\n').unwrap();
    let without = format!("{}on_unmatched = \"base\"\n{}", &old[..start], &old[end..]);
    let refused = between(&old, &without, &[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--accept-fallback"), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stdout).contains("fallback"), "{refused:?}");
    assert_eq!(between(&old, &without, &["--accept-fallback"]).status.code(), Some(2));
    assert_eq!(between(&old, "nonsense", &[]).status.code(), Some(1));
}

#[test]
fn rollback_brings_the_earlier_configuration_back_and_drain_empties_an_environment() {
    let pgusher = Pgusher::start(&(warehouse("", "", "") + OPERATOR));
    let written = std::fs::read_to_string(pgusher.folder.join("pgusher.toml")).unwrap();
    let mut raw = console(&pgusher);
    assert!(
        raw.ask(&query("ROLLBACK CONFIG")).iter().any(|m| m.tag == 'E'),
        "nothing is there to go back to"
    );
    let start = written.find("[users.rawprod]").unwrap();
    let without = &written[..start];
    assert!(load(&pgusher, &mut raw, &format!("{without}{OPERATOR}")));
    assert!(log_in(&pgusher, "rawprod").is_err());
    // A driver's own ROLLBACK is about its transaction, and so is one of a pool that gives its connection back.
    let warned = |raw: &mut Raw, sql: &str| {
        let answer = done(raw, sql);
        let warning =
            answer.iter().find(|m| m.tag == 'N').map(|m| (m.field('S'), m.field('C'), m.field('M')));
        warning.map_or_else(String::new, |(severity, code, text)| format!("{severity} {code} {text}"))
    };
    for (sql, warning) in [
        ("BEGIN", ""),
        ("BEGIN", "WARNING 25001 there is already a transaction in progress"),
        ("ROLLBACK", ""),
        ("ROLLBACK", "WARNING 25P01 there is no transaction in progress"),
        ("ABORT", "WARNING 25P01 there is no transaction in progress"),
        ("COMMIT", "WARNING 25P01 there is no transaction in progress"),
    ] {
        assert_eq!(warned(&mut raw, sql), warning, "{sql}");
    }
    assert_eq!(raw.tags(&[parse("", "ROLLBACK"), bind("", "", &[]), execute(), sync()].concat()), "12NCZ");
    assert!(log_in(&pgusher, "rawprod").is_err());
    done(&mut raw, "ROLLBACK CONFIG");
    let mut prod = log_in(&pgusher, "rawprod").unwrap();
    let mut dev = log_in(&pgusher, "raw").unwrap();
    let generations: Vec<_> = rows(&mut raw, "SHOW GENERATIONS").iter().map(|row| row[2].clone()).collect();
    assert_eq!(generations, ["replaced", "replaced", "in force"]);
    done(&mut prod, "BEGIN");
    raw.send(&query("DRAIN ENVIRONMENT prod"));
    eventually("nobody is let in", || log_in(&pgusher, "rawprod").is_err());
    assert_eq!(prod.value("SELECT 'transactions end first'"), "transactions end first");
    prod.send(&query("COMMIT"));
    assert!(raw.until_ready().iter().any(|m| m.tag == 'C'));
    assert_eq!(dev.value("SELECT 'others stay'"), "others stay");
    done(&mut raw, "RESUME ENVIRONMENT prod");
    assert!(log_in(&pgusher, "rawprod").is_ok());
    assert!(raw.ask(&query("DRAIN ENVIRONMENT nothing")).iter().any(|m| m.tag == 'E'));
}

/// What the command line says to a running pgusher.
fn operate(pgusher: &Pgusher, user: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let console = format!("host=127.0.0.1 port={} user={user}", pgusher.port);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgusher"));
    let output = command.args(arguments).args(["--console", &console]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_command_line_asks_the_running_process_what_a_file_would_change() {
    let pgusher = with_tls("prefer", "", super::console::OPERATORS);
    let file = pgusher.folder.join("pgusher.toml");
    let (old, path) = (std::fs::read_to_string(&file).unwrap(), pgusher.folder.join("new.toml"));
    let path = path.to_str().unwrap();
    let plan = |text: &str, more: &[&str]| {
        std::fs::write(path, text).unwrap();
        operate(&pgusher, "operator", &[&["plan", path], more].concat())
    };
    let nothing = plan(&old, &[]);
    assert_eq!((nothing.0, &*nothing.1), (Some(0), "Nothing changes.\n"), "{nothing:?}");
    // A session that lives is among what changes.
    let mut raw = Raw::login(pgusher.address(), "raw");
    assert_eq!(raw.value("SELECT 1"), "1");
    let gone = plan(&old.replace("[users.raw]\n", "[users.raw]\ndisabled = true\n"), &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&gone.1).unwrap();
    assert_eq!(gone.0, Some(2));
    assert!(json.as_array().unwrap().iter().any(|row| row["change"] == "session"), "{json}");
    assert_eq!(plan("nonsense", &[]).0, Some(1));
    // A certificate in its old place that is another one now; nothing of it is shown.
    certificates(&pgusher.folder);
    let changed = plan(&old, &[]);
    assert_eq!(changed.0, Some(2));
    for what in ["certificate of [server.tls]", "key of [server.tls]", "client_ca of [server.tls]"] {
        assert!(changed.1.contains(&format!("secret  {what}")), "{changed:?}");
    }
    assert!(!changed.1.contains("PRIVATE"));
    let stats = operate(&pgusher, "watcher", &["plan", path]);
    assert!(stats.0 == Some(1) && stats.2.contains("admin access needed (42501)"), "{stats:?}");
    let nobody = operate(&pgusher, "nobody password=x", &["plan", path]);
    assert!(nobody.0 == Some(1) && nobody.2.contains("28P01"), "{nobody:?}");
    // And it grants and revokes.
    let granted = operate(
        &pgusher,
        "operator",
        &["grant", "prod", "--to", "raw", "--for", "1h", "--reason", "it's INC-7"],
    );
    assert!(
        granted.0 == Some(0)
            && granted
                .2
                .contains("raw may request environment prod of every database that has it (warehouse) until"),
        "{granted:?}"
    );
    assert_eq!(operate(&pgusher, "operator", &["revoke", "prod", "--from", "raw"]).0, Some(0));
    let again = operate(&pgusher, "operator", &["revoke", "prod", "--from", "raw"]);
    assert!(again.0 == Some(1) && again.2.contains("SHOW GRANTS"), "{again:?}");
}

/// Whoever may name a file makes pgusher run nothing that it does not run anyway.
#[test]
fn a_plan_of_a_file_runs_no_command_that_is_not_in_force() {
    let known = "\n[users.known]\npassword = { command = [\"echo\", \"of the command\"] }\n";
    let pgusher = Pgusher::start(&(warehouse("", "", "") + OPERATOR + known));
    let mut raw = console(&pgusher);
    let written = std::fs::read_to_string(pgusher.folder.join("pgusher.toml")).unwrap();
    let flag = pgusher.folder.join("ran");
    let foreign = format!(
        "{written}\n[users.x]\npassword = {{ command = [\"sh\", \"-c\", \"touch {0}; echo x\"] }}\n\
         [management.tokens.t]\ntoken = {{ command = [\"touch\", \"{0}\"] }}\nrole = \"admin\"\n",
        flag.display()
    );
    let file = pgusher.folder.join("foreign.toml");
    std::fs::write(&file, &foreign).unwrap();
    let rows = plan(&pgusher, &mut raw, &foreign).expect("it can be planned");
    assert!(rows.iter().any(|row| row[1].starts_with("x on ")), "{rows:?}");
    assert!(
        !rows.iter().any(|row| row.join(" ").contains("known")),
        "a command in force is another: {rows:?}"
    );
    assert!(!flag.exists(), "the file's command was run");
}

#[test]
fn what_concerns_production_is_planned_whatever_the_names() {
    let old = warehouse("", "", "").replace("@PORT@", "6432");
    let lines = |new: &str| {
        let output = between(&old, new, &[]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let renamed = old.replace("warehouse_prod", "wp2").replace("production = true\n", "");
    let text = lines(&renamed);
    assert!(text.lines().any(|l| l.starts_with("production") && l.contains("connection wp2")), "{text}");
    let text = lines(&old.replacen(
        "production = true\n",
        "production = true\nallow_production_fallback = true\n",
        1,
    ));
    assert!(text.contains("allow_production_fallback"), "{text}");
    let text = lines(&format!("{old}\n[management]\nsecrets_folder = \"elsewhere\"\n"));
    assert!(text.contains("management.secrets_folder"), "{text}");
}

#[test]
fn a_grant_whose_environment_becomes_another_database_is_planned() {
    let pgusher = Pgusher::start(&(warehouse("", "", "") + OPERATOR));
    let mut raw = console(&pgusher);
    let written = std::fs::read_to_string(pgusher.folder.join("pgusher.toml")).unwrap();
    let stage = written.replacen("name = \"prod\"", "name = \"stage\"", 1);
    assert!(load(&pgusher, &mut raw, &stage));
    done(&mut raw, "GRANT ENVIRONMENT dev TO pete FOR '1h' REASON 'x'");
    // What is called dev is now what was called stage, and the other way round.
    let swapped = stage.replacen("name = \"stage\"", "name = \"dev\"", 1).replacen(
        "default_values = [\"dev\"]",
        "default_values = [\"dev\"]\nenvironment_name = \"stage\"",
        1,
    );
    let rows = plan(&pgusher, &mut raw, &swapped).expect("it can be planned");
    let granted = rows.iter().find(|row| row[1].contains("pete on warehouse (granted dev)"));
    assert!(granted.is_some_and(|row| row[0] == "production"), "{rows:#?}");
}
