//! The README by its own commands: what it says is what happens, in its order.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use super::house::{eventually, free_port, psql, temporary_folder};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PGUSHER: &str = env!("CARGO_BIN_EXE_pgusher");

/// A process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn readme() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap()
}

/// A section of it.
fn section(title: &str) -> String {
    let text = readme();
    let (_, rest) = text.split_once(&format!("\n## {title}\n")).unwrap();
    rest.split("\n## ").next().unwrap().to_owned()
}

/// The lines behind `$` in its console blocks, without their comments.
fn commands(section: &str) -> Vec<String> {
    let line = |line: &str| Some(line.strip_prefix("$ ")?.split(" # ").next()?.trim().to_owned());
    section.lines().filter_map(line).collect()
}

/// What stands between backticks in the table, and begins so.
fn in_the_table(section: &str, beginning: &str) -> Vec<String> {
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let quoted =
        rows.flat_map(|row| row.split('`').skip(1).step_by(2)).filter(|text| text.starts_with(beginning));
    quoted.map(str::to_owned).collect()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn every_command_of_using_it_works_as_it_is_written() {
    let folder = temporary_folder("readme");
    std::fs::create_dir_all(folder.join("config")).unwrap();
    let port = free_port();
    // The addresses are somebody else's, and the port is taken at times: all else is as it is.
    let start = std::fs::read_to_string(Path::new(ROOT).join("config/pgusher.toml")).unwrap();
    let start = start.replace("127.0.0.1:6432", &format!("127.0.0.1:{port}"));
    std::fs::write(folder.join("config/pgusher.toml"), start).unwrap();
    let text = section("Use it");
    let mut environment: BTreeMap<String, String> = BTreeMap::new();
    let mut serving = None;
    let mut seen = Vec::new();
    for command in commands(&text) {
        seen.push(command.clone());
        match command.as_str() {
            "make build" => {}
            copy if copy.starts_with("cp ") => {
                let (copy, edit) = copy.split_once(" && ").unwrap();
                assert_eq!(edit, "$EDITOR my.toml");
                assert!(
                    Command::new("sh").args(["-c", copy]).current_dir(&folder).status().unwrap().success()
                );
            }
            export if export.starts_with("export ") => {
                for word in export.split(' ').skip(1) {
                    environment.insert(word.split_once('=').unwrap().0.to_owned(), "secret".to_owned());
                }
            }
            check if check.starts_with("target/release/pgusher check ") => {
                let output = run(&folder, &environment, check);
                assert!(output.status.success(), "{}", said(&output));
                for route in ["alice", "bob", "operator"] {
                    assert!(said(&output).lines().any(|line| line.starts_with(route)), "{}", said(&output));
                }
            }
            serve if serve.starts_with("target/release/pgusher serve ") => {
                let mut command = words(&folder, &environment, serve);
                let log = std::fs::File::create(folder.join("log")).unwrap();
                serving = Some(Running(command.stdin(Stdio::null()).stderr(log).spawn().unwrap()));
                eventually("it listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
            }
            ask if ask.starts_with("psql ") => {
                let (target, sql) = (ask.split('\'').nth(1).unwrap(), ask.split('\'').nth(3).unwrap());
                let target = target.replace("6432", &port.to_string());
                // "the password is in the file": in a comment beside the verifier.
                let output =
                    psql().args([&target, "-XAtc", sql]).env("PGPASSWORD", "operator").output().unwrap();
                assert!(
                    output.status.success() && said(&output).contains("warehouse_prod"),
                    "{}",
                    said(&output)
                );
            }
            other => panic!("no test knows what to do with this line of the README: {other}"),
        }
    }
    assert!(serving.is_some() && seen.len() == 6, "{seen:?}");
    // And every command that the table names can be run as it stands there.
    environment.extend(
        [
            ("PGHOST", "127.0.0.1"),
            ("PGPORT", &port.to_string()),
            ("PGUSER", "operator"),
            ("PGPASSWORD", "operator"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    std::fs::copy(folder.join("my.toml"), folder.join("new.toml")).unwrap();
    let mut done = Vec::new();
    for command in in_the_table(&text, "pgusher ") {
        let verb = command.split(' ').nth(1).unwrap().to_owned();
        let output = run(&folder, &environment, &command);
        let expected = match verb.as_str() {
            "resolve" => "environment  prod",
            "plan" => "Nothing changes.",
            "grant" => "bob may request environment prod",
            // Nothing of theirs is in this configuration, or runs here: they say so.
            "apply" => "there is no token",
            "audit" => "cannot read",
            "doctor" => "postgres-dev.my-org.com",
            other => panic!("no test knows pgusher {other}"),
        };
        assert!(said(&output).contains(expected), "{command}: {}", said(&output));
        done.push(verb);
    }
    for verb in ["resolve", "plan", "grant", "doctor", "audit", "apply"] {
        assert!(done.iter().any(|known| known == verb), "the table has no pgusher {verb}");
    }
    drop(serving);
    std::fs::remove_dir_all(folder).unwrap();
}

fn words(folder: &Path, environment: &BTreeMap<String, String>, line: &str) -> Command {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    assert!(["target/release/pgusher", "pgusher"].contains(&program), "{line}");
    let mut command = Command::new(PGUSHER);
    command.args(words).current_dir(folder).envs(environment);
    command
}

fn run(folder: &Path, environment: &BTreeMap<String, String>, line: &str) -> Output {
    words(folder, environment, line).stdin(Stdio::null()).output().unwrap()
}

/// Every file that the README links to is there, and so is every target of make that it names.
#[test]
fn what_it_refers_to_is_there() {
    let text = readme();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    for link in links.filter(|link| !link.starts_with("http") && !link.is_empty()) {
        assert!(Path::new(ROOT).join(link).exists(), "{link}");
    }
    let makefile = std::fs::read_to_string(Path::new(ROOT).join("Makefile")).unwrap();
    for target in text.split("make ").skip(1).filter_map(|rest| rest.split([' ', '`', '\n', ',', ';']).next())
    {
        let is_target = target.chars().all(|c| c.is_ascii_lowercase() || c == '-') && target.len() > 2;
        let is_word = ["sure", "them", "the", "its", "all"].contains(&target);
        assert!(!is_target || is_word || makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}

/// A first configuration passes `check`, keeps its secrets to itself, and takes nobody's file.
#[test]
fn a_first_configuration_passes_check_as_it_is() {
    let folder = temporary_folder("init");
    let init = |arguments: &[&str]| {
        let mut command = Command::new(PGUSHER);
        command.arg("init").args(arguments).current_dir(&folder).stdin(Stdio::null()).output().unwrap()
    };
    let output =
        init(&["my.toml", "--database", "my warehouse", "--dev", "127.0.0.1:5433", "--username", "o'neill"]);
    assert!(output.status.success(), "{}", said(&output));
    let (shown, file) = (said(&output), folder.join("my.toml"));
    let text = std::fs::read_to_string(&file).unwrap();
    for word in ["password ", "token "] {
        let secret = shown.split(word).nth(1).unwrap().split_whitespace().next().unwrap();
        assert!(secret.len() == 32 && !text.contains(secret), "{word}: {secret}");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let secrets = [("PGUSHER_DEV_PASSWORD", "x"), ("PGUSHER_PROD_PASSWORD", "x")];
    let output = Command::new(PGUSHER).arg("check").arg(&file).envs(secrets).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
    assert!(!init(&["my.toml"]).status.success(), "there is one already");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    assert!(init(&[]).status.success() && folder.join("pgusher.toml").exists());
    std::fs::remove_dir_all(folder).unwrap();
}
