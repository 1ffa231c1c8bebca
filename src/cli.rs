//! The command line.

/// Prints a line; whoever reads no further (`| head`) is no error.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

mod apply;
mod audit;
mod conninfo;
mod init;
mod log;
mod operator;
mod password;
mod routes;
mod serve;
mod service;

use std::io::{BufRead, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};

use operator::Console;

use crate::doctor::{self, Comparison};
use crate::prepare::{self, PreparedConfig};
use crate::proxy::Intent;
use policy::config::problems::Severity;
use policy::config::{
    Draft, ListenAddress, MIN_TOKEN, Outside, Rejected, ValidatedConfig, file, hash_of_token,
};
use policy::plan::Plan;
use policy::route;

/// The longest cell of a table that is printed, in bytes.
const MAX_CELL: usize = 4096;

/// Routes every PostgreSQL client to the right database.
#[derive(Debug, Parser)]
#[command(name = "pgusher", version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy.
    Serve {
        /// The configuration, a TOML file.
        file: PathBuf,
    },
    /// Write a first configuration that passes `check`: from five answers, which are asked for at a terminal.
    Init {
        /// The file to write.
        #[arg(default_value_os_t = init::usual())]
        file: PathBuf,
        #[command(flatten)]
        answers: init::Answers,
    },
    /// Check a configuration, with all that a start needs but the sockets, and print each user's route. Exit status 1
    /// if it is refused.
    Check {
        /// The configuration, a TOML file.
        file: PathBuf,
        /// Look at nothing but this file: no secret, certificate, folder or permission. For a machine that has none of them.
        #[arg(long)]
        no_secrets: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Print where a user would go, and why.
    Resolve {
        /// The configuration, a TOML file.
        file: PathBuf,
        /// The user.
        #[arg(long)]
        user: String,
        /// The database name that they ask for.
        #[arg(long)]
        database: String,
        /// The environment that they request.
        #[arg(long)]
        environment: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Print what a configuration would change, in a running pgusher or against another file: which routes, sessions,
    /// pools and secrets. Exit status 0 if nothing, 2 if something, 1 if it is refused.
    Plan {
        /// The new configuration, a TOML file.
        new: PathBuf,
        /// The one that it is compared with. By default, what is in force in the running pgusher, on this machine.
        #[arg(long, value_name = "FILE", conflicts_with = "console")]
        from: Option<PathBuf>,
        #[command(flatten)]
        console: Console,
        /// Look at nothing but the two files: no secret, certificate, folder or permission.
        #[arg(long, requires = "from")]
        no_secrets: bool,
        #[command(flatten)]
        acceptance: Acceptance,
        #[command(flatten)]
        output: Output,
    },
    /// Examine what a running pgusher needs: names, logins, certificates, limits, whether environments are different
    /// databases, and what differs between them. Exit status 1 if something is wrong.
    Doctor {
        /// The configuration, a TOML file.
        file: PathBuf,
        /// Compare the relations and columns of each environment with its base's, too.
        #[arg(long)]
        parity: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Let a user into an environment for a while: GRANT ENVIRONMENT of a running pgusher.
    Grant {
        /// The environment.
        environment: String,
        /// The database; by default every one that has such an environment.
        #[arg(long, value_name = "DATABASE")]
        on: Option<String>,
        /// The user.
        #[arg(long)]
        to: String,
        /// For how long ("1h", "30min").
        #[arg(long, value_name = "TIME")]
        r#for: String,
        /// Why; the audit keeps it.
        #[arg(long)]
        reason: String,
        #[command(flatten)]
        console: Console,
        #[command(flatten)]
        output: Output,
    },
    /// End a grant early: REVOKE ENVIRONMENT of a running pgusher.
    Revoke {
        /// The environment.
        environment: String,
        /// The database; by default every one that it was granted of.
        #[arg(long, value_name = "DATABASE")]
        on: Option<String>,
        /// The user.
        #[arg(long)]
        from: String,
        #[command(flatten)]
        console: Console,
        #[command(flatten)]
        output: Output,
    },
    /// Make a running pgusher's configuration say what a file says, through the management API: of each kind of table that the
    /// file has (connections, attributes, groups, users), what it does not name goes. Prints the plan first. Exit status 1 if it
    /// is refused; with --dry-run, 2 if something would change.
    Apply {
        /// The configuration as it shall be, TOML, or JSON (`.json`).
        file: PathBuf,
        #[command(flatten)]
        target: apply::ApiAddress,
        /// Only print the plan.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        acceptance: Acceptance,
        #[command(flatten)]
        output: Output,
    },
    /// Look into the audit.
    #[command(subcommand)]
    Audit(audit::Command),
    /// Read a password and print the verifier to store in its place.
    HashPassword,
    /// Make a token for the management API and print it, with the hash to store in its place. With a token on standard input, print
    /// the hash of that one.
    HashToken,
    /// Ask a running pgusher whether it answers. Exit status 1 if it does not.
    Health {
        /// The configuration it runs with, or its address ("127.0.0.1:6432").
        target: String,
    },
    /// Print the manual of the configuration, in Markdown.
    Manual {
        /// Print a JSON Schema instead: editors complete and check a configuration by it.
        #[arg(long)]
        json_schema: bool,
    },
    /// Print completions for a shell, to be read by it at its start.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write a man page for each command.
    ManPages {
        /// The folder that they are written to.
        folder: PathBuf,
    },
}

/// Whether a fallback is accepted, as it is asked for.
#[derive(Debug, Clone, Copy, Args)]
struct Acceptance {
    /// Users may lose their environment and fall back to the base connection.
    #[arg(long)]
    accept_fallback: bool,
}

impl Acceptance {
    fn fallback(self) -> Fallback {
        if self.accept_fallback { Fallback::Accepted } else { Fallback::Refused }
    }
}

/// How an answer is printed, as it is asked for.
#[derive(Debug, Clone, Copy, Args)]
struct Output {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Output {
    fn format(self) -> Format {
        if self.json { Format::Json } else { Format::Text }
    }
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What becomes of a plan by which users lose their environment and fall back to the base connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fallback {
    /// It is carried out: that is meant (`--accept-fallback`).
    Accepted,
    /// It is refused.
    Refused,
}

/// Does what the arguments say.
pub fn run() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve { file } => serve::serve(&file),
        Command::Init { file, answers } => init::init(&file, answers),
        Command::Check { file, no_secrets, output } => {
            let outside = if no_secrets { Outside::Leave } else { Outside::Read };
            routes::check(&file, outside, output.format())
        }
        Command::Resolve { file, user, database, environment, output } => {
            routes::resolve(&file, &user, (&database, environment.as_deref()), output.format())
        }
        Command::Plan { new, from, console, no_secrets, acceptance, output } => {
            let outside = if no_secrets { Outside::Leave } else { Outside::Read };
            let rows = match from {
                Some(from) => planned(&from, &new, outside),
                None => planned_there(&console, &new),
            };
            rows.map_or_else(|code| code, |rows| plan(&rows, acceptance.fallback(), output.format()))
        }
        Command::Grant { environment, on, to, r#for, reason, console, output } => {
            let what = operator::environment(&environment, on.as_deref());
            let [to, time, reason] = [&to, &r#for, &reason].map(|word| operator::quoted(word));
            let command = format!("GRANT {what} TO {to} FOR {time} REASON {reason}");
            operator::tell(&console, &command, output.format())
        }
        Command::Revoke { environment, on, from, console, output } => {
            let what = operator::environment(&environment, on.as_deref());
            let command = format!("REVOKE {what} FROM {}", operator::quoted(&from));
            operator::tell(&console, &command, output.format())
        }
        Command::Doctor { file, parity, output } => {
            let comparison = if parity { Comparison::Relations } else { Comparison::Schemas };
            doctor(&file, comparison, output.format())
        }
        Command::Audit(command) => audit::run(&command),
        Command::HashPassword => password::hash(),
        Command::HashToken => hash_token(),
        Command::Apply { file, target, dry_run, acceptance, output } => {
            let intent = if dry_run { Intent::DryRun } else { Intent::Write };
            apply::apply(
                &target,
                &file,
                apply::How { intent, fallback: acceptance.fallback(), format: output.format() },
            )
        }
        Command::Health { target } => health(&target),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "pgusher", &mut text);
            let _ = std::io::stdout().write_all(&text);
            ExitCode::SUCCESS
        }
        Command::ManPages { folder } => man_pages(&folder),
        Command::Manual { json_schema } => {
            let _ = write!(
                std::io::stdout(),
                "{}",
                if json_schema { file::json_schema() } else { file::manual() }
            );
            ExitCode::SUCCESS
        }
    }
}

fn man_pages(folder: &Path) -> ExitCode {
    let made =
        std::fs::create_dir_all(folder).and_then(|()| clap_mangen::generate_to(Arguments::command(), folder));
    match made {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write to {}: {error}", folder.display());
            ExitCode::FAILURE
        }
    }
}

/// What is enough to say who goes where.
fn load(file: &Path) -> Result<ValidatedConfig, ExitCode> {
    prepare::reviewed(file).map_err(|rejected| refused(file, &rejected))
}

/// What a start needs.
fn prepared(file: &Path, outside: Outside) -> Result<PreparedConfig, ExitCode> {
    prepare::load(file, outside).map_err(|rejected| refused(file, &rejected))
}

fn refused(file: &Path, rejected: &Rejected) -> ExitCode {
    eprint!("{rejected}");
    let errors = rejected.0.count(Severity::Error);
    eprintln!("{}: {errors} error{}", file.display(), if errors == 1 { "" } else { "s" });
    ExitCode::FAILURE
}

fn shown(cell: &str) -> String {
    wire::error::Shown::within(cell, MAX_CELL).to_string()
}

fn print_table<const N: usize>(rows: &[[String; N]]) {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(shown(cell).chars().count());
        }
    }
    for row in rows {
        // What a terminal would obey is escaped.
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{:width$}", shown(cell)));
        say!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

fn planned(from: &Path, to: &Path, outside: Outside) -> Result<Vec<[String; 5]>, ExitCode> {
    // Of what is in force, only what it says is of interest.
    let old = prepare::draft(from, outside).and_then(route::review);
    let old = old.map_err(|rejected| refused(from, &rejected))?;
    Ok(Plan::between(old.config(), prepared(to, outside)?.checked().config()).rows())
}

/// What the running pgusher says of a file.
fn planned_there(console: &Console, new: &Path) -> Result<Vec<[String; 5]>, ExitCode> {
    let said = std::path::absolute(new)
        .map_err(|error| error.to_string())
        .and_then(|path| console.say(&format!("PLAN {}", operator::quoted(&path.display().to_string()))))
        .and_then(|rows| {
            let rows = rows.into_iter().map(<[String; 5]>::try_from).collect::<Result<Vec<_>, _>>();
            rows.map_err(|row| {
                format!("this pgusher's plan has {} columns: is it of another version?", row.len())
            })
        });
    said.map_err(|why| {
        eprintln!("{why}");
        ExitCode::FAILURE
    })
}

/// Users would end where nobody may have wanted them.
const FALLBACK: &str = "Users would lose their environment and fall back to the base connection: see the changes of kind \
    fallback. If that is meant, say --accept-fallback.";

fn print_plan(rows: &[[String; 5]]) {
    let head = Plan::COLUMNS.map(str::to_uppercase);
    print_table(&std::iter::once(head).chain(rows.iter().cloned()).collect::<Vec<_>>());
}

/// A list of objects whose keys are the columns.
fn plan_as_json(rows: &[[String; 5]]) -> serde_json::Value {
    let object = |row: &[String; 5]| -> serde_json::Value {
        let cells = Plan::COLUMNS.iter().zip(row);
        cells
            .map(|(name, cell)| ((*name).to_owned(), cell.clone().into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    rows.iter().map(object).collect()
}

fn plan(rows: &[[String; 5]], fallback: Fallback, format: Format) -> ExitCode {
    if format == Format::Json {
        say!("{}", plan_as_json(rows));
    } else if rows.is_empty() {
        say!("Nothing changes.");
    } else {
        print_plan(rows);
    }
    match () {
        () if rows.is_empty() => ExitCode::SUCCESS,
        () if rows.iter().any(|row| row[0] == Plan::FALLBACK) && fallback == Fallback::Refused => {
            eprintln!("{FALLBACK}");
            ExitCode::FAILURE
        }
        () => ExitCode::from(2),
    }
}

fn doctor(file: &Path, comparison: Comparison, format: Format) -> ExitCode {
    let checked = match load(file) {
        Ok(checked) => checked,
        Err(code) => return code,
    };
    let findings = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(doctor::examine(&checked, comparison)),
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    if format == Format::Json {
        say!("{}", serde_json::json!(findings));
    } else {
        for finding in &findings {
            say!("{:8} {}: {}", finding.grade.word(), finding.subject, finding.text);
            finding.hint.iter().for_each(|hint| say!("{:8}   {hint}", ""));
        }
    }
    match findings.iter().any(|finding| finding.grade == doctor::Grade::Error) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

/// The hash of the token on standard input, or, where somebody sits there, of a new one.
fn hash_token() -> ExitCode {
    let mut line = zeroize::Zeroizing::new(String::new());
    let is_given = !std::io::stdin().is_terminal() && std::io::stdin().lock().read_line(&mut line).is_ok();
    let mut random = [0; 32];
    let token = match line.trim() {
        "" if getrandom::fill(&mut random).is_ok() => {
            let token = wire::hex(&random);
            say!("token  {token}");
            token
        }
        "" => return ExitCode::FAILURE,
        token if token.len() < MIN_TOKEN => {
            eprintln!("a token has at least {MIN_TOKEN} characters");
            return ExitCode::FAILURE;
        }
        token => token.to_owned(),
    };
    let hash = hash_of_token(&token);
    say!("{}{hash}", if is_given && !line.trim().is_empty() { "" } else { "hash   " });
    ExitCode::SUCCESS
}

/// Asks for TLS, which every PostgreSQL server answers with one byte.
fn health(target: &str) -> ExitCode {
    match probe(target) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{target}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn probe(target: &str) -> Result<(), String> {
    let address: SocketAddr = match target.parse() {
        Ok(address) => address,
        Err(_) => {
            let draft = prepare::draft(Path::new(target), Outside::Leave)
                .and_then(Draft::accept)
                .map_err(|_| "not an address, and not a configuration that can be loaded")?;
            let tcp = |a: &ListenAddress| match a {
                ListenAddress::Tcp(address) => Some(*address),
                ListenAddress::Unix(_) => None,
            };
            let mut address =
                draft.config().server.listen.iter().find_map(|a| tcp(a)).ok_or("it has no TCP address")?;
            if address.ip().is_unspecified() {
                let loopback: std::net::IpAddr = if address.is_ipv6() {
                    std::net::Ipv6Addr::LOCALHOST.into()
                } else {
                    std::net::Ipv4Addr::LOCALHOST.into()
                };
                address.set_ip(loopback);
            }
            address
        }
    };
    let limit = Duration::from_secs(3);
    let ask = || -> std::io::Result<u8> {
        use std::io::Read;
        let mut stream = std::net::TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47])?;
        let mut answer = [0];
        stream.read_exact(&mut answer)?;
        Ok(answer[0])
    };
    match ask() {
        Ok(b'S' | b'N') => Ok(()),
        Ok(other) => Err(format!("it answers {other:#x}, which is not PostgreSQL")),
        Err(error) => Err(error.to_string()),
    }
}
