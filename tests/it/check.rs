//! What `check` and `plan` accept, `serve` and a reload accept; what they refuse, they refuse with its place.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::house::{Pgusher, free_port, pair, run, temporary_folder, warehouse};
use super::tls::certificates;
use super::wire::{Raw, query};

const PGUSHER: &str = env!("CARGO_BIN_EXE_pgusher");
const OPERATOR: &str = "\n[users.operator]\nauth_type = \"trust\"\nconsole = \"admin\"\n";

/// A folder with certificates, and a configuration in it.
fn written(config: &str) -> (PathBuf, PathBuf) {
    let folder = temporary_folder("check");
    certificates(&folder);
    let file = folder.join("pgusher.toml");
    std::fs::write(&file, config.replace("@PORT@", "0")).unwrap();
    mode(&file, 0o600);
    (folder, file)
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The exit status of a command line, and what it said on standard error.
fn said(arguments: &[&str], file: &Path) -> (Option<i32>, String) {
    let (command, more) = arguments.split_first().unwrap();
    let output =
        Command::new(PGUSHER).arg(command).arg(file).args(more).stdin(Stdio::null()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn check(config: &str) -> (Option<i32>, String) {
    let (folder, file) = written(config);
    let said = said(&["check"], &file);
    std::fs::remove_dir_all(folder).unwrap();
    said
}

/// Lines of `[server]` and of the base connection that nobody can start with, and what is said of them.
fn refused() -> Vec<(String, String, &'static str)> {
    let tls = |certificate: &str, key: &str, more: &str| {
        format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\"{more} }}")
    };
    let server = |line: String, why| (line, String::new(), why);
    let base = |line: &str, why| (String::new(), line.to_owned(), why);
    let verified = "sslmode = \"verify-full\"";
    let mut all = vec![
        server(tls("missing.crt", "server.key", ""), "missing.crt: No such file"),
        server(tls("pgusher.toml", "server.key", ""), "pgusher.toml: no certificate in it"),
        server(tls("server.crt", "missing.key", ""), "missing.key: No such file"),
        server(tls("server.crt", "dana.key", ""), "does the key belong to the certificate?"),
        server(tls("server.crt", "server.key", ", client_ca = \"missing.crt\""), "missing.crt: No such file"),
        server(tls("server.crt", "server.key", ", client_ca = \"server.key\""), "no certificate in it"),
        server(
            tls("server.crt", "server.key", ", client_ca = \"ca.crt\", client_crl = \"missing.crl\""),
            "missing.crl: No such file",
        ),
        server(
            tls("server.crt", "server.key", ", client_ca = \"ca.crt\", client_crl = \"ca.crt\""),
            "ca.crt: no revocation list",
        ),
        server("audit_file = \"nowhere/audit.jsonl\"".into(), "cannot write the audit"),
        server(
            format!("metrics_listen = \"127.0.0.1:7\"\n{MANAGEMENT}"),
            "127.0.0.1:7 is listened on already",
        ),
        base(&format!("{verified}\nsslrootcert = \"missing.crt\""), "missing.crt: No such file"),
        base(&format!("{verified}\nsslrootcert = \"server.key\""), "no certificate in it"),
        base(
            &format!("{verified}\nsslrootcert = \"ca.crt\"\nsslcrl = \"missing.crl\""),
            "missing.crl: No such file",
        ),
        base(&format!("{verified}\nsslrootcert = \"ca.crt\"\nsslcrl = \"ca.crt\""), "no revocation list"),
        base("sslcert = \"dana.crt\"\nsslkey = \"pete.key\"", "pgusher.toml:"),
        base("sslcert = \"missing.crt\"\nsslkey = \"pete.key\"", "missing.crt: No such file"),
        base("password = { file = \"missing.pw\" }", "missing.pw: No such file"),
    ];
    all.extend(
        ["fe80::1%lo", "[::1]", "db:5432", "postgres://u:hunter2@db/x"]
            .map(|host| base(&format!("@HOST@{host}"), "is not a name or address that TLS can verify")),
    );
    all
}

const MANAGEMENT: &str = "@MANAGEMENT@";

fn config(server: &str, base: &str) -> String {
    let mut text = warehouse(&server.replace(MANAGEMENT, ""), "", "");
    if let Some(host) = base.strip_prefix("@HOST@") {
        text = text.replacen("host = \"127.0.0.1\"", &format!("host = \"{host}\""), 1);
    } else {
        text = text.replacen("username = \"app\"\n", &format!("username = \"app\"\n{base}\n"), 1);
    }
    if server.contains(MANAGEMENT) {
        text += "\n[management]\nlisten = \"127.0.0.1:7\"\n";
    }
    text + OPERATOR
}

#[test]
fn what_check_refuses_is_refused_everywhere_and_with_its_place() {
    let good = config("", "");
    let pgusher = Pgusher::start(&good);
    certificates(&pgusher.folder);
    let mut console =
        Raw::login_with(pgusher.address(), 0x0003_0000, &[("user", "operator"), ("database", "pgusher")]);
    let new = pgusher.folder.join("new.toml");
    for (server, base, why) in refused() {
        let text = config(&server, &base);
        let what = format!("{server}{base}");
        let (folder, file) = written(&text);
        for command in ["check", "serve"] {
            let (code, said) = said(&[command], &file);
            assert!(code == Some(1) && said.contains(why), "{command} {what}: {said}");
            assert!(said.contains("pgusher.toml:") && !said.contains("hunter2"), "{command} {what}: {said}");
        }
        let old = folder.join("old.toml");
        std::fs::write(&old, good.replace("@PORT@", "0")).unwrap();
        let (code, refusal) = said(&["plan", "--from", old.to_str().unwrap()], &file);
        assert!(code == Some(1) && refusal.contains(why), "plan {what}: {refusal}");
        // Of itself it is right: a machine that has none of the files may check that much.
        let (code, alone) = said(&["check", "--no-secrets"], &file);
        if ["No such file", "no certificate", "no revocation", "audit", "key belong"]
            .iter()
            .any(|of| why.contains(of))
        {
            assert_eq!(code, Some(0), "{what}: {alone}");
        }
        std::fs::remove_dir_all(folder).unwrap();
        // The running one.
        std::fs::write(&new, text.replace("@PORT@", &pgusher.port.to_string())).unwrap();
        let answer = console.ask(&query(&format!("PLAN '{}'", new.display())));
        assert!(answer.iter().any(|m| m.tag == 'E'), "PLAN {what}");
        pgusher.reload(&text);
        assert!(!pgusher.log().contains("configuration reloaded"), "{what}");
    }
    assert_eq!(pgusher.psql("dana", "SELECT name FROM whoami").unwrap(), "dev");
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let server = "listen = [\"127.0.0.1:7\", \"127.0.0.1:7\", \"unix:nowhere\"]\n\
         tls = { certificate = \"missing.crt\", key = \"missing.key\", client_ca = \"missing.ca\" }\naudit_file = \"gone/a\"";
    let text = config(
        server,
        "sslmode = \"verify-ca\"\nsslrootcert = \"missing.root\"\npassword = { env = \"PGUSHER_NOT_SET\" }",
    )
    .replace("listen = [\"127.0.0.1:@PORT@\"]\n", "")
    .replace("attributes = { environment = \"dev\" }", "groups = [\"nobody\"]");
    let (code, said) = check(&text);
    assert_eq!(code, Some(1), "{said}");
    for what in [
        "127.0.0.1:7 is listened on already (listen)",
        "there is no folder",
        "missing.crt",
        "missing.key",
        "missing.ca",
        "missing.root",
        "cannot write the audit",
        "PGUSHER_NOT_SET",
        "there is no group `nobody`",
    ] {
        assert!(said.contains(what), "{what}: {said}");
    }
}

/// What `serve` would stumble over, of files that are there.
#[test]
fn what_pgusher_writes_is_a_file_of_its_own_that_it_can_go_on_with() {
    let folder = temporary_folder("check-files");
    let (other, long) = (folder.join("other.jsonl"), folder.join("x".repeat(90)));
    std::fs::write(&other, "hello\n").unwrap();
    std::fs::create_dir_all(&long).unwrap();
    let (other, long, folder) = (other.display(), long.display(), folder.display());
    for (server, what) in [
        ("grants_file = \"pgusher.toml\"".to_owned(), "`grants_file` is this file itself"),
        ("audit_file = \"g.json\"\ngrants_file = \"./g.json\"".to_owned(), "`audit_file` is grants_file"),
        (format!("audit_file = \"{other}\""), "does not end with a line of an audit"),
        (format!("listen = [\"127.0.0.1:0\", \"unix:{long}\"]"), "is too long for a socket"),
        (
            format!("listen = [\"unix:{folder}\", \"unix:{folder}/../{}\"]", name_of(&folder.to_string())),
            "listened on already",
        ),
    ] {
        let text = config(&server, "");
        let text = match server.contains("listen") {
            true => text.replace("listen = [\"127.0.0.1:@PORT@\"]\n", ""),
            false => text,
        };
        let (code, said) = check(&text);
        assert!(code == Some(1) && said.contains(what), "{server}: {said}");
    }
}

fn name_of(folder: &str) -> &str {
    folder.rsplit('/').next().unwrap()
}

#[test]
fn a_check_without_secrets_reads_the_file_alone() {
    let text = config(
        "tls = { certificate = \"no.crt\", key = \"no.key\" }\naudit_file = \"nowhere/a.jsonl\"",
        "password = { command = [\"touch\", \"was-run\"] }\nsslmode = \"verify-full\"\nsslrootcert = \"no.ca\"",
    ) + "\n[users.env]\npassword = { env = \"PGUSHER_NOT_SET\" }\n[users.file]\npassword = { file = \"no.pw\" }\n";
    let (folder, file) = written(&text);
    let output = Command::new(PGUSHER)
        .args(["check", "--no-secrets"])
        .arg(&file)
        .current_dir(&folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!folder.join("was-run").exists());
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().any(|line| line.starts_with("pete") && line.contains("warehouse_prod")), "{table}");
    // What is wrong in the file is found all the same.
    let twice = text.replace("values = [\"prod\"]", "values = [\"dev\"]").replace("@PORT@", "0");
    std::fs::write(&file, twice).unwrap();
    assert_eq!(said(&["check", "--no-secrets"], &file).0, Some(1));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_is_not_a_regular_file_is_refused_and_nobody_waits_for_it() {
    let (folder, file) = written(&config("", "password = { file = \"fifo\" }"));
    let fifo = folder.join("fifo");
    run(Command::new("mkfifo").arg(&fifo));
    for (path, arguments) in [(&file, ["check"]), (&fifo, ["check"]), (&fifo, ["serve"]), (&fifo, ["doctor"])]
    {
        let (code, said) = said(&arguments, path);
        assert!(code == Some(1) && said.contains("it is not a regular file"), "{arguments:?}: {said}");
    }
    let pgusher = Pgusher::start(&config("", ""));
    let mut console =
        Raw::login_with(pgusher.address(), 0x0003_0000, &[("user", "operator"), ("database", "pgusher")]);
    for path in [fifo.to_str().unwrap(), "/dev/zero", "/tmp"] {
        let answer = console.ask(&query(&format!("PLAN '{path}'")));
        assert!(answer[0].field('D').contains("it is not a regular file"), "{path}: {answer:?}");
    }
    // One that never ends, or is too long, is not a secret either.
    std::fs::write(fifo.with_file_name("long"), vec![b'x'; 2 << 20]).unwrap();
    std::fs::write(&file, config("", "password = { file = \"long\" }").replace("@PORT@", "0")).unwrap();
    let (code, said) = said(&["check"], &file);
    assert!(code == Some(1) && said.contains("longer than 1048576 bytes"), "{said}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_production_database_is_so_under_every_name() {
    let (dev, prod) = (pair().dev.port, pair().prod.port);
    let pointed = |host: &str, more: &str| {
        warehouse("", more, "").replacen(
            &format!("host = \"127.0.0.1\"\nport = {dev}\ndatabase = \"dev\""),
            &format!("host = \"{host}\"\nport = {prod}\ndatabase = \"prod\""),
            1,
        )
    };
    for host in ["127.0.0.1", "localhost", "LocalHost.", "127.0.0.2", "::1", "::ffff:127.0.0.1"] {
        let (code, said) = check(&pointed(host, ""));
        assert!(
            code == Some(1) && said.contains("`warehouse` is the production database of `warehouse_prod`"),
            "{host}: {said}"
        );
    }
    let (code, said) = check(&pointed("127.0.0.1", "allow_production_fallback = true"));
    assert!(code == Some(0) && said.contains("warning: `warehouse` is the production database"), "{said}");
    let labelled = "production = true\non_unmatched = \"reject\"";
    let (code, said) = check(&pointed("127.0.0.1", labelled));
    assert!(code == Some(0) && !said.contains("under another name"), "{said}");
    // The same server and the same role, but another database: dev's users may end prod's sessions.
    let beside = warehouse("", "", "").replace(&format!("port = {prod}"), &format!("port = {dev}"));
    let (code, said) = check(&beside);
    assert!(code == Some(0) && said.contains("log in as one role"), "{said}");
    let other = beside.replacen("username = \"app\"", "username = \"plain\"", 1);
    assert!(!check(&other).1.contains("log in as one role"));
}

#[test]
fn names_that_differ_from_the_databases_are_warned_of() {
    let text = warehouse("", "", "");
    let (code, said) = check(&text);
    assert_eq!(code, Some(0));
    assert!(said.contains("clients ask for `warehouse`, and the database there is named `dev`"), "{said}");
    assert!(
        said.contains("in `warehouse_prod` the database is named `prod`") && said.contains("dbt"),
        "{said}"
    );
    let same =
        text.replace("database = \"dev\"", "").replace("database = \"prod\"", "database = \"warehouse\"");
    assert!(!check(&same).1.contains("clients ask for"));
}

#[test]
fn trust_on_an_address_that_others_reach_is_warned_of() {
    let said = |listen: &str| {
        let text = warehouse("", "", "").replacen("127.0.0.1:@PORT@", listen, 1);
        assert!(text.contains(listen) && text.contains("trust"), "{text}");
        check(&text).1
    };
    const WARNING: &str = "without a proof";
    assert!(!said("127.0.0.1:6432").contains(WARNING) && !said("[::1]:6432").contains(WARNING));
    for listen in ["0.0.0.0:6432", "[::]:6432", "192.0.2.1:6432"] {
        assert!(said(listen).contains(WARNING), "{listen}");
    }
}

#[test]
fn files_that_others_may_read_or_write_are_warned_of_and_keys_refused() {
    let text = config(
        "tls = { certificate = \"server.crt\", key = \"server.key\" }",
        "password = { file = \"pw\" }",
    );
    let (folder, file) = written(&text);
    let pw = folder.join("pw");
    std::fs::write(&pw, "secret").unwrap();
    mode(&pw, 0o600);
    mode(&folder, 0o700);
    let others = "others than its owner may";
    let (code, clean) = said(&["check"], &file);
    assert!(code == Some(0) && !clean.contains(others), "{clean}");
    for (path, bits, what) in [
        (&pw, 0o604, "may read this secret file"),
        (&file, 0o620, "may write to this file"),
        (&file, 0o602, "may write to this file"),
        (&folder, 0o777, "may write to the folder of this file"),
    ] {
        let before = std::fs::metadata(path).unwrap().permissions().mode();
        mode(path, bits);
        let (code, said) = said(&["check"], &file);
        assert!(code == Some(0) && said.contains(what) && said.contains("chmod"), "{what}: {said}");
        mode(path, before);
    }
    mode(&folder.join("server.key"), 0o644);
    for command in ["check", "serve"] {
        let (code, said) = said(&[command], &file);
        assert!(code == Some(1) && said.contains("may read the private key"), "{command}: {said}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_secret_under_a_wrong_key_is_not_printed() {
    for (from, to) in [
        ("[users.nora]\npassword = \"nora\"", "[users]\nnora = \"hunter2\""),
        ("password = \"nora\"", "verifier = \"hunter2\""),
        ("password = \"nora\"", "key = 'hunter2'"),
        ("password = \"nora\"", "password = [\"hunter2\"]"),
        ("password = \"nora\"", "password = hunter2"),
        ("[users.nora]", "[management.tokens]\nops = \"hunter2\"\n[users.nora]"),
        ("username = \"app\"", "dsn = \"postgres://u:hunter2@h/db\"\nusername = \"app\""),
    ] {
        let text = warehouse("", "", "").replacen(from, to, 1);
        assert_ne!(text, warehouse("", "", ""));
        let (code, said) = check(&text);
        assert!(code == Some(1) && !said.contains("hunter2"), "{said}");
        assert!(said.contains("pgusher.toml:"), "{said}");
    }
}

#[test]
fn listening_twice_is_refused_before_anything_is_opened() {
    let port = free_port();
    let listen = |list: &str, more: &str| {
        warehouse(more, "", "").replace("listen = [\"127.0.0.1:@PORT@\"]", &format!("listen = [{list}]"))
    };
    let address = format!("\"127.0.0.1:{port}\"");
    let any = format!("\"0.0.0.0:{port}\"");
    for (list, more, code) in [
        (format!("{address}, {address}"), String::new(), 1),
        (format!("{any}, {address}"), String::new(), 1),
        (format!("{any}, {address}"), "so_reuseport = true".into(), 0),
        (address.clone(), format!("metrics_listen = {address}"), 1),
        (format!("{address}, \"[::1]:{port}\""), String::new(), 0),
        ("\"unix:.\", \"unix:.\"".into(), String::new(), 1),
    ] {
        let (status, said) = check(&listen(&list, &more));
        assert_eq!(status, Some(code), "{list} {more}: {said}");
    }
}

/// The same command prints what shells and man(1) read.
#[test]
fn completions_and_man_pages_are_made_of_the_same_definition() {
    let program = env!("CARGO_BIN_EXE_pgusher");
    for shell in ["bash", "zsh", "fish"] {
        let output = run(Command::new(program).args(["completions", shell]));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("hash-password") && text.contains("no-secrets"), "{shell}");
    }
    let folder = temporary_folder("man");
    run(Command::new(program).arg("man-pages").arg(&folder));
    let pages: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for page in ["pgusher.1", "pgusher-serve.1", "pgusher-plan.1", "pgusher-audit-who.1"] {
        assert!(pages.iter().any(|name| name == page), "{page} in {pages:?}");
    }
    let text = std::fs::read_to_string(folder.join("pgusher-plan.1")).unwrap();
    assert!(text.contains("accept"), "{text}");
    std::fs::remove_dir_all(folder).unwrap();
}

/// What people read, programs can read as well.
#[test]
fn routes_are_printed_as_json_too() {
    let folder = temporary_folder("routes");
    let file = folder.join("pgusher.toml");
    std::fs::write(&file, warehouse("", "", "").replace("@PORT@", "1")).unwrap();
    let json = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_pgusher"))
            .arg(arguments[0])
            .arg(&file)
            .args(&arguments[1..])
            .arg("--json")
            .output()
            .unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let rows = json(&["check"]);
    let of = |user: &str| rows.as_array().unwrap().iter().find(|row| row["user"] == user).unwrap().clone();
    assert_eq!((&of("dana")["environment"], &of("dana")["by"]), (&"dev".into(), &"value".into()));
    assert_eq!((&of("nora")["environment"], &of("nora")["by"]), (&"dev".into(), &"fallback".into()));
    let pete = json(&["resolve", "--user", "pete", "--database", "warehouse"]);
    assert_eq!((&pete["connection"], &pete["by"]), (&"warehouse_prod".into(), &"value".into()));
    let refused = json(&["resolve", "--user", "pete", "--database", "warehouse", "--environment", "dev"]);
    assert_eq!(refused["refused"]["sqlstate"], "28000");
    std::fs::remove_dir_all(folder).unwrap();
}

/// `dbname=prod` must not look as if it led to prod.
#[test]
fn an_alias_that_is_called_as_an_environment_is_warned_of() {
    let text = warehouse("", "aliases = [\"prod\", \"sales\"]", "").replace("@PORT@", "1");
    let folder = temporary_folder("alias");
    let file = folder.join("pgusher.toml");
    std::fs::write(&file, text).unwrap();
    let output = Command::new(PGUSHER).arg("check").arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success()
            && said.contains("the alias `prod` of `warehouse` is the name of an environment"),
        "{said}"
    );
    assert!(!said.contains("alias `sales`"), "{said}");
    std::fs::remove_dir_all(folder).unwrap();
}
