//! `pgusher init`: a first configuration, from five answers, that passes `check`.

use std::fs::OpenOptions;
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::password;
use crate::prepare;
use policy::config::hash_of_token;

/// What a first configuration is made of. At a terminal, what is not said is asked for.
#[derive(Debug, Args)]
pub(super) struct Answers {
    /// The database name that clients ask for, and that the database has on each server.
    #[arg(long)]
    database: Option<String>,
    /// The server of the base environment, as HOST or HOST:PORT.
    #[arg(long, value_name = "HOST[:PORT]")]
    dev: Option<String>,
    /// The server of production, as HOST or HOST:PORT.
    #[arg(long, value_name = "HOST[:PORT]")]
    prod: Option<String>,
    /// The role that pgusher logs in as, on each of them.
    #[arg(long)]
    username: Option<String>,
    /// The address that clients connect to.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
}

const QUESTIONS: [(&str, &str); 5] = [
    ("The database name that clients use", "warehouse"),
    ("The dev server (HOST or HOST:PORT)", "postgres-dev.example.com"),
    ("The prod server (HOST or HOST:PORT)", "postgres-prod.example.com"),
    ("The role that pgusher logs in as on them", "pgusher"),
    ("The address that clients connect to", "127.0.0.1:6432"),
];

/// Writes it, unless there is a file already, and prints what is nowhere else: the operator's password and token.
pub(super) fn init(file: &Path, answers: Answers) -> ExitCode {
    match write(file, answers) {
        Ok(said) => {
            print!("{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn write(file: &Path, answers: Answers) -> Result<String, String> {
    // Before anything is asked; whoever makes it meanwhile keeps it.
    if file.exists() {
        return Err(format!("{} is there already: say another file, or remove it", file.display()));
    }
    let Answers { database, dev, prod, username, listen } = answers;
    let mut said = Vec::new();
    for ((question, usual), given) in QUESTIONS.into_iter().zip([database, dev, prod, username, listen]) {
        said.push(match given {
            Some(given) => given,
            None if io::stdin().is_terminal() => ask(question, usual)?,
            None => {
                eprintln!("{question}: {usual}");
                usual.to_owned()
            }
        });
    }
    let [database, dev, prod, username, listen] = said.try_into().map_err(|_| "an answer is missing")?;
    let (password, token) = (random()?, random()?);
    let verifier = password::verifier(&password)?;
    let hash = hash_of_token(&token);
    let quoted = |text: &str| toml_edit::Value::from(text).to_string().trim().to_owned();
    let (base, environment) = (quoted(&database), quoted(&format!("{database}_prod")));
    let connection = |name: &str, server: &str, variable: &str| {
        let (host, port) = match server.rsplit_once(':') {
            Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
                (host, port)
            }
            _ => (server, "5432"),
        };
        format!(
            "[connections.{name}]\nhost = {}\nport = {port}\ndatabase = {base}\nusername = {}\n\
             password = {{ env = \"{variable}\" }}     # or {{ file = \"…\" }}, {{ command = [\"…\"] }}\nsslmode = \"prefer\"\n",
            quoted(host),
            quoted(&username)
        )
    };
    let text = format!(
        "# Made by `pgusher init`. docs/configuration.md describes every setting.\n\n[server]\nlisten = [{}]\n\
         audit_file = \"pgusher-audit.jsonl\"\n\n\
         # The page and the API: http://127.0.0.1:6433/\n[management]\nlisten = \"127.0.0.1:6433\"\n\
         [management.tokens.operator]\ntoken = \"{hash}\"\nrole = \"admin\"\n\n\
         # Clients ask for dbname={database}.\n{}user_attribute = \"environment\"\ndefault_values = [\"dev\"]\n\
         on_unmatched = \"base\"                # \"reject\" refuses users without a value that is listed\n\
         environments = [{{ connection = {environment}, name = \"prod\", values = [\"prod\"] }}]\n\n\
         {}production = true\n\n[attributes.environment]\n\n\
         # One of each kind; `pgusher hash-password` makes verifiers.\n# [users.dana]\n# password = \"SCRAM-SHA-256$…\"\n\
         # attributes = {{ environment = \"dev\" }}\n\n[users.operator]\npassword = \"{verifier}\"\nconsole = \"admin\"\n",
        quoted(&listen),
        connection(&base, &dev, "PGUSHER_DEV_PASSWORD"),
        connection(&environment, &prod, "PGUSHER_PROD_PASSWORD"),
    );
    prepare::review_text(file, &text)
        .map_err(|rejected| format!("{rejected}These answers make no configuration: nothing is written"))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(file).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    Ok(format!(
        "{} is written. These are shown once:\n\n  user operator   password {password}\n  token           {token}\n\n\
         Next: export PGUSHER_DEV_PASSWORD=… PGUSHER_PROD_PASSWORD=…, then `pgusher check {0}` and `pgusher serve {0}`.\n",
        file.display()
    ))
}

fn ask(question: &str, usual: &str) -> Result<String, String> {
    print!("{question} [{usual}]: ");
    let _ = io::stdout().flush();
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())?;
    Ok(Some(line.trim()).filter(|line| !line.is_empty()).unwrap_or(usual).to_owned())
}

/// 128 random bits.
fn random() -> Result<String, String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| format!("no random bytes: {error}"))?;
    Ok(wire::hex(&bytes))
}

/// Where it is written if nothing is said.
pub(super) fn usual() -> PathBuf {
    "pgusher.toml".into()
}
