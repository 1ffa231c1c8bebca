//! The examples in `config/` are good, and the JSON Schema of a configuration says the same of them as pgusher itself.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::house::temporary_folder;
use super::tls::certificates;

pub(crate) const PGUSHER: &str = env!("CARGO_BIN_EXE_pgusher");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What the examples read from the environment.
const SECRETS: [&str; 6] = [
    "WAREHOUSE_PASSWORD",
    "DASHBOARDS_PASSWORD",
    "DEV_PASSWORD",
    "STAGING_PASSWORD",
    "PROD_PASSWORD",
    "PGUSHER_DEV_PASSWORD",
];

/// Every example, and the file to start from.
fn examples() -> Vec<PathBuf> {
    let folder = Path::new(ROOT).join("config/examples");
    let mut found: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    found.push(Path::new(ROOT).join("config/pgusher.toml"));
    found.sort();
    assert!(found.len() > 8, "{found:?}");
    found
}

#[test]
fn every_example_is_a_configuration_that_pgusher_accepts() {
    let folder = temporary_folder("examples");
    certificates(&folder);
    let password = folder.join("password");
    std::fs::write(&password, "secret\n").unwrap();
    std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
    for example in examples() {
        let file = folder.join(example.file_name().unwrap());
        std::fs::copy(&example, &file).unwrap();
        let mut check = Command::new(PGUSHER);
        check.arg("check").arg(&file).env("PGUSHER_PROD_PASSWORD", "secret");
        check.envs(SECRETS.map(|name| (name, "secret")));
        let output = check.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", example.display());
        // The file to start from sends users without a value to the development database, and is told so.
        let may_warn = example.ends_with("config/pgusher.toml");
        assert!(may_warn || !said.contains("warning"), "{}: {said}", example.display());
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Reads TOML and says of each file whether the schema accepts it.
const JUDGE: &str = "
import json, sys, tomllib
import jsonschema_rs
judge = jsonschema_rs.validator_for(json.load(open(sys.argv[1])))
for path in sys.argv[2:]:
    with open(path, 'rb') as file:
        found = list(judge.iter_errors(tomllib.load(file)))
    print('good' if not found else 'bad: ' + found[0].message)
";

fn judged(schema: &Path, files: &[PathBuf]) -> Vec<String> {
    let python = Path::new(ROOT).join("target/schemathesis/bin/python");
    let output = Command::new(python).args(["-c", JUDGE]).arg(schema).args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn an_editor_that_has_the_schema_accepts_the_examples_and_refuses_what_pgusher_refuses() {
    let folder = temporary_folder("schema");
    let schema = folder.join("schema.json");
    let output = Command::new(PGUSHER).args(["manual", "--json-schema"]).output().unwrap();
    std::fs::write(&schema, &output.stdout).unwrap();
    let examples = examples();
    for (verdict, example) in judged(&schema, &examples).iter().zip(&examples) {
        assert_eq!(verdict, "good", "{}", example.display());
    }
    let wrong: Vec<PathBuf> = [
        "[server]\nlisten_addr = [\"127.0.0.1:1\"]\n",
        "[server]\nmax_client_conn = \"many\"\n",
        "[server]\nmax_client_conn = 0\n",
        "[server]\nquery_wait_timeout = 15\n",
        "[server]\non_move = \"now\"\n",
        "[server]\ntls = { mode = \"prefer\" }\n",
        "[connections.w]\nusername = \"u\"\n",
        "[connections.w]\nhost = \"h\"\nusername = \"u\"\npassword = { fiel = \"x\" }\n",
        "[connections.w]\nhost = \"h\"\nusername = \"u\"\nenvironments = [{ name = \"prod\" }]\n",
        "[users.a]\nattributes = { environment = 1 }\n",
        "[unknown]\n",
    ]
    .iter()
    .enumerate()
    .map(|(number, text)| {
        let file = folder.join(format!("wrong-{number}.toml"));
        std::fs::write(&file, text).unwrap();
        file
    })
    .collect();
    for (verdict, file) in judged(&schema, &wrong).iter().zip(&wrong) {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(verdict.starts_with("bad"), "{text}");
        let refused = !Command::new(PGUSHER).arg("check").arg(file).output().unwrap().status.success();
        assert!(refused, "pgusher itself accepts {text}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}
