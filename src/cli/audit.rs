//! `pgusher audit`: whether it is whole, and who was where.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};

use super::{Format, Output, print_table};
use crate::audit::{self, AuditQuestion, Visits};
use crate::prepare;
use policy::config::{Draft, Outside};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Look at every line: a changed byte, or a line that is missing, is found and its place told. Exit status 1 then.
    Verify {
        #[command(flatten)]
        place: AuditFile,
        /// The last line must be this one: its SHA-256, as an earlier `verify` or SHOW AUDIT told it, or one behind it.
        #[arg(long, value_name = "SHA256")]
        head: Option<String>,
    },
    /// Print who was in an environment, by user.
    Who {
        #[command(flatten)]
        place: AuditFile,
        /// The environment.
        #[arg(long)]
        environment: String,
        /// From when on: a time span before now ("7d", "12h"), or a time ("2026-11-20T00:00:00Z").
        #[arg(long, default_value = "7d")]
        since: String,
        /// Only this user.
        #[arg(long)]
        user: Option<String>,
        #[command(flatten)]
        output: Output,
    },
}

/// Where the audit is.
#[derive(Debug, Args)]
pub(super) struct AuditFile {
    /// The audit's file. By default, the `audit_file` of the configuration.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The same, as it had to be said before.
    #[arg(long = "file", value_name = "FILE", hide = true, conflicts_with = "file")]
    file_said: Option<PathBuf>,
    /// The configuration, a TOML file.
    #[arg(long, env = "PGUSHER_CONFIG", default_value = "/etc/pgusher/pgusher.toml")]
    config: PathBuf,
}

impl AuditFile {
    fn find(&self) -> Result<PathBuf, String> {
        if let Some(file) = self.file.as_ref().or(self.file_said.as_ref()) {
            return Ok(file.clone());
        }
        let config = self.config.display();
        let draft =
            prepare::draft(&self.config, Outside::Leave).and_then(Draft::accept).map_err(|rejected| {
                format!("{rejected}cannot read {config}: give the audit's file, or --config")
            })?;
        draft.config().audit_file().ok_or_else(|| format!("{config} has no audit_file in [server]"))
    }
}

/// Does what was asked.
pub(super) fn run(command: &Command) -> ExitCode {
    let done = match command {
        Command::Verify { place, head } => place.find().and_then(|path| verify(&path, head.as_deref())),
        Command::Who { place, environment, since, user, output } => {
            place.find().and_then(|path| who(&path, environment, since, user.as_deref(), output.format()))
        }
    };
    done.unwrap_or_else(|why| {
        eprintln!("{why}");
        ExitCode::FAILURE
    })
}

fn verify(path: &Path, head: Option<&str>) -> Result<ExitCode, String> {
    let verified = audit::verify(path, head).map_err(|error| format!("{}: {error}", path.display()))?;
    verified.findings.iter().for_each(|finding| say!("{finding}"));
    let (lines, files, last) = (verified.lines, verified.files, &verified.head);
    let word = if verified.is_whole() { "whole" } else { "NOT WHOLE" };
    let files = if files == 1 { "one file".to_owned() } else { format!("{files} files") };
    say!("{word}: {lines} lines in {files}; the last is {}, SHA-256 {}", last.seq, last.hash);
    Ok(if verified.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn who(
    path: &Path,
    environment: &str,
    since: &str,
    user: Option<&str>,
    format: Format,
) -> Result<ExitCode, String> {
    let question = AuditQuestion { environment, since: time(since)?, user };
    let found = audit::who(path, &question).map_err(|error| format!("{}: {error}", path.display()))?;
    if format == Format::Json {
        let object = |(user, visits): (&String, &Visits)| {
            let mut object = serde_json::json!({ "user": user });
            if let (Some(object), Ok(serde_json::Value::Object(visits))) =
                (object.as_object_mut(), serde_json::to_value(visits))
            {
                object.extend(visits);
            }
            object
        };
        say!("{}", found.iter().map(object).collect::<serde_json::Value>());
        return Ok(ExitCode::SUCCESS);
    }
    if found.is_empty() {
        say!("Nobody was in {environment}, by the lines of {} since {since}.", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let head =
        ["USER", "SESSIONS", "OPEN", "FIRST", "LAST", "TRANSACTIONS", "BYTES IN", "BYTES OUT", "FROM", "WHY"];
    let row = |(user, v): (&String, &Visits)| {
        let peers = v.peers.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let numbers = [v.transactions, v.bytes_in, v.bytes_out].map(|n| n.to_string());
        let [transactions, bytes_in, bytes_out] = numbers;
        let (first, last) = (second(&v.first), second(&v.last));
        let (sessions, open) = (v.sessions.to_string(), v.open.to_string());
        [
            user.clone(),
            sessions,
            open,
            first,
            last,
            transactions,
            bytes_in,
            bytes_out,
            peers,
            v.reasons.join("; "),
        ]
    };
    print_table(&std::iter::once(head.map(str::to_owned)).chain(found.iter().map(row)).collect::<Vec<_>>());
    Ok(ExitCode::SUCCESS)
}

/// A time without the parts of its seconds.
fn second(at: &str) -> String {
    at.split_once('.').map_or_else(|| at.to_owned(), |(whole, _)| format!("{whole}Z"))
}

/// A time, or how long ago it was.
fn time(text: &str) -> Result<SystemTime, String> {
    let ago = |span: Duration| SystemTime::now().checked_sub(span);
    humantime::parse_duration(text)
        .ok()
        .and_then(ago)
        .or_else(|| humantime::parse_rfc3339_weak(text).ok())
        .ok_or_else(|| {
            format!("`{text}` is neither a time span (\"7d\", \"12h\") nor a time (\"2026-11-20T00:00:00Z\")")
        })
}
