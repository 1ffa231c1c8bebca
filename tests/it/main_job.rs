//! One address, one database name, every user in the right database.

use super::house::{Pgusher, pair, warehouse};
use super::wire::Raw;

#[test]
fn every_user_lands_in_the_right_database() {
    let pgusher = Pgusher::start(&warehouse("", "", ""));
    for (user, database, reason) in [
        ("dana", "dev", "environment = \"dev\" from user"),
        ("pete", "prod", "a value of environment prod"),
        ("nora", "dev", "no value for environment"),
    ] {
        assert_eq!(pgusher.psql(user, "SELECT name FROM whoami").unwrap(), database);
        let route = pgusher.psql(user, "SHOW pgusher.route").unwrap();
        assert!(route.contains(reason), "{route}");
        assert_eq!(pgusher.psql(user, "SHOW pgusher.environment").unwrap(), database);
        assert_eq!(pgusher.psql(user, "SHOW pgusher.user").unwrap(), user);
    }
}

#[test]
fn a_client_is_told_its_environment_at_login() {
    let pgusher = Pgusher::start(&warehouse("login_notice = true", "", ""));
    let raw = Raw::login(pgusher.address(), "rawprod");
    let told = raw.parameters.iter().find(|(name, _)| name == "pgusher.environment").unwrap();
    assert_eq!(told.1, "prod");
    let mut noticed = Raw::connect(pgusher.address());
    noticed.send(&super::wire::startup(0x0003_0000, &[("user", "rawprod"), ("database", "warehouse")]));
    let notice = noticed.until_ready().into_iter().find(|m| m.tag == 'N').unwrap();
    assert!(
        notice.field('M').contains("environment prod (connection warehouse_prod)"),
        "{}",
        notice.field('M')
    );
}

#[test]
fn a_requested_environment_is_granted_or_refused_and_never_ignored() {
    let config = warehouse("", "", "")
        + "[users.ann]\npassword = \"ann\"\nattributes = { environment = [\"prod\", \"x\"] }\n";
    let pgusher = Pgusher::start(&config);
    let request = |user: &str, name: &str| {
        let options = format!("-c pgusher.environment={name}");
        pgusher.psql_with(user, user, &[("PGOPTIONS", &options)], &["SELECT name FROM whoami"])
    };
    assert_eq!(request("pete", "prod").unwrap(), "prod");
    assert_eq!(request("ann", "prod").unwrap(), "prod");
    assert_eq!(request("nora", "dev").unwrap(), "dev");
    for (user, name, allowed) in [("dana", "prod", "dev"), ("pete", "dev", "prod"), ("dana", "Dev", "dev")] {
        let refusal = request(user, name).unwrap_err();
        assert!(refusal.contains(&format!("environment \"{name}\" is not permitted")), "{refusal}");
        assert!(refusal.contains(&format!("Environments this user may use: {allowed}.")), "{refusal}");
    }
}

#[test]
fn an_alias_means_its_base_and_an_environment_cannot_be_asked_for() {
    let pgusher = Pgusher::start(&warehouse("", "aliases = [\"dwh\"]", ""));
    let as_database = |name: &str| {
        let target = format!("host=127.0.0.1 port={} user=pete dbname={name}", pgusher.port);
        let psql = crate::house::psql()
            .args(["-XAtqd", &target, "-c", "SELECT name FROM whoami"])
            .env("PGPASSWORD", "pete")
            .output()
            .unwrap();
        (String::from_utf8(psql.stdout).unwrap(), String::from_utf8(psql.stderr).unwrap())
    };
    assert_eq!(as_database("dwh").0, "prod\n");
    for name in ["warehouse_prod", "nothing"] {
        let error = as_database(name).1;
        assert!(error.contains(&format!("FATAL:  database \"{name}\" does not exist")), "{error}");
    }
}

#[test]
fn on_unmatched_reject_names_the_attribute_the_value_and_what_to_do() {
    let config = warehouse("", "on_unmatched = \"reject\"", "")
        + "[users.olga]\npassword = \"olga\"\nattributes = { environment = \"Prod\" }\n";
    let pgusher = Pgusher::start(&config);
    let refusal = pgusher.psql("olga", "SELECT 1").unwrap_err();
    assert!(refusal.contains("User attribute \"environment\" is \"Prod\" (from user)"), "{refusal}");
    assert!(refusal.contains("HINT"), "{refusal}");
    let refusal = pgusher.psql("nora", "SELECT 1").unwrap_err();
    assert!(refusal.contains("has no value"), "{refusal}");
    assert!(
        pgusher.log().contains("did the operator mean \\\"prod\\\"")
            || pgusher.log().contains("did you mean")
    );
}

#[test]
fn application_name_reaches_the_upstream_with_the_user_if_asked() {
    let pgusher = Pgusher::start(&warehouse("application_name_add_user = true", "", ""));
    let seen = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let named = pgusher.psql_with("pete", "pete", &[("PGAPPNAME", "report")], &[seen]).unwrap();
    assert_eq!(named, "report [pete@prod]");
    let pgusher = Pgusher::start(&warehouse("", "", ""));
    let named = pgusher.psql_with("pete", "pete", &[("PGAPPNAME", "report")], &[seen]).unwrap();
    assert_eq!(named, "report");
}

#[test]
fn include_schemas_and_query_timeout_reach_the_session() {
    let pgusher = Pgusher::start(&warehouse(
        "",
        "include_schemas = [\"Mine\", \"public\"]\nquery_timeout = \"300ms\"",
        "",
    ));
    assert_eq!(pgusher.psql("dana", "SHOW search_path").unwrap(), "\"Mine\", \"public\"");
    let error = pgusher.psql("dana", "SELECT pg_sleep(5)").unwrap_err();
    assert!(error.contains("57014"), "{error}");
}

#[test]
fn a_statement_that_switched_its_timeout_off_is_cancelled_all_the_same() {
    let pgusher = Pgusher::start(&warehouse("", "query_timeout = \"200ms\"", ""));
    let error = pgusher.psql("dana", "SET statement_timeout = 0; SELECT pg_sleep(20)").unwrap_err();
    assert!(error.contains("57014"), "{error}");
}

#[test]
fn check_prints_the_routes_and_resolve_the_reasons() {
    let pgusher = Pgusher::start(&warehouse("", "", ""));
    let file = pgusher.folder.join("pgusher.toml");
    let run = |arguments: &[&str]| {
        let output =
            std::process::Command::new(env!("CARGO_BIN_EXE_pgusher")).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let file = file.to_str().unwrap();
    let (code, table) = run(&["check", file]);
    assert_eq!(code, Some(0));
    let row = table.lines().find(|l| l.starts_with("pete")).unwrap();
    assert!(row.contains("environment = prod (user)") && row.ends_with("warehouse_prod  value"), "{table}");
    let (code, reasons) = run(&["resolve", file, "--user", "pete", "--database", "warehouse"]);
    assert_eq!(code, Some(0));
    assert!(reasons.contains("environment = \"prod\" from user"), "{reasons}");
    let (code, _) =
        run(&["resolve", file, "--user", "dana", "--database", "warehouse", "--environment", "prod"]);
    assert_eq!(code, Some(1));
}

#[test]
fn the_servers_are_really_two() {
    let pair = pair();
    let id = "SELECT system_identifier FROM pg_control_system()";
    assert_ne!(pair.dev.sql("dev", id), pair.prod.sql("prod", id));
}
