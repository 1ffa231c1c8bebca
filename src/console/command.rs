//! What an operator typed, understood.

use std::fmt;
use std::time::Duration;

use crate::lifetime::Shutdown;
use policy::grant::LONGEST;
use wire::error::{Fault, Refusal, Shown, SqlState};

/// The longest command.
const MAX_COMMAND: usize = 64 << 10;

/// The longest reason of a grant: it stands in every line of the audit about a session that came by it.
const MAX_REASON: usize = 500;

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Nothing at all.
    Empty,
    /// `SHOW …`, in lower case.
    Show(String),
    /// `EXPLAIN ROUTE FOR user ON database [AS environment]`
    ExplainRoute {
        /// Who.
        user: String,
        /// What they ask for.
        database: String,
        /// The environment that they ask for.
        environment: Option<String>,
    },
    /// `RELOAD`
    Reload,
    /// `PAUSE [database]`
    Pause(Option<String>),
    /// `SUSPEND`
    Suspend,
    /// `RESUME [database]`
    Resume(Option<String>),
    /// `RECONNECT [database]`
    Reconnect(Option<String>),
    /// `DISABLE database`
    Disable(String),
    /// `ENABLE database`
    Enable(String),
    /// `KILL [database]`
    Kill(Option<String>),
    /// `KILL_CLIENT number`
    KillClient(u64),
    /// `WAIT_CLOSE [database]`
    WaitClose(Option<String>),
    /// `WAIT SETTLED ['time']`
    WaitSettled(Option<Duration>),
    /// `PLAN ['file']`
    Plan(Option<String>),
    /// `ROLLBACK CONFIG [TO generation]`
    RollBack(Option<u64>),
    /// `DRAIN ENVIRONMENT name`
    DrainEnvironment(String),
    /// `RESUME ENVIRONMENT name`
    ResumeEnvironment(String),
    /// `GRANT ENVIRONMENT name [ON database] TO user FOR 'time' REASON 'why'`
    Grant {
        /// What.
        environment: String,
        /// Of which database; `None`: of all.
        database: Option<String>,
        /// To whom.
        user: String,
        /// For how long.
        time: Duration,
        /// Why.
        reason: String,
    },
    /// `REVOKE ENVIRONMENT name [ON database] FROM user`
    Revoke {
        /// What.
        environment: String,
        /// Of which database; `None`: whichever it was granted of.
        database: Option<String>,
        /// From whom.
        user: String,
    },
    /// `SHUTDOWN …`
    Shutdown(Shutdown),
    /// `SET key = value`
    Set(String, String),
    /// `SELECT version()` and the like, as drivers and frameworks ask for them when they connect.
    Fact(Fact),
    /// `SELECT 1`, as pools and clients ask whether anybody is there.
    Ping(u32),
    /// `BEGIN`, `COMMIT`, `ROLLBACK`: drivers send them. The tag that answers it.
    Transaction(&'static str),
}

/// What everybody may ask who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
    /// `version()`
    Version,
    /// `current_schema()`
    Schema,
    /// `current_database()`
    Database,
}

impl Fact {
    fn of(word: &str) -> Option<Self> {
        let word = word.to_ascii_lowercase();
        match word.strip_prefix("pg_catalog.").unwrap_or(&word) {
            "version()" => Some(Self::Version),
            "current_schema()" | "current_schema" => Some(Self::Schema),
            "current_database()" => Some(Self::Database),
            _ => None,
        }
    }

    /// The name of its column.
    pub fn word(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Schema => "current_schema",
            Self::Database => "current_database",
        }
    }
}

/// Whether a word needs no quotes.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || "_-./:".contains(c))
}

/// A name as it may stand in a command: in quotes where it must.
struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match is_plain(self.0) {
            true => f.write_str(self.0),
            false => write!(f, "'{}'", self.0.replace('\'', "''")),
        }
    }
}

/// As it would be typed: what was said, in the audit and in the log.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with = |f: &mut fmt::Formatter<'_>, verb: &str, name: &Option<String>| match name {
            Some(name) => write!(f, "{verb} {}", Word(name)),
            None => f.write_str(verb),
        };
        let on = |database: &Option<String>| {
            database.as_ref().map_or_else(String::new, |database| format!(" ON {}", Word(database)))
        };
        match self {
            Self::Empty => Ok(()),
            Self::Show(what) if what.split(' ').all(is_plain) => {
                write!(f, "SHOW {}", what.to_ascii_uppercase())
            }
            Self::Show(what) => write!(f, "SHOW {}", Word(what)),
            Self::ExplainRoute { user, database, environment } => {
                write!(f, "EXPLAIN ROUTE FOR {} ON {}", Word(user), Word(database))?;
                environment.iter().try_for_each(|name| write!(f, " AS {}", Word(name)))
            }
            Self::Reload => f.write_str("RELOAD"),
            Self::Pause(name) => with(f, "PAUSE", name),
            Self::Suspend => f.write_str("SUSPEND"),
            Self::Resume(name) => with(f, "RESUME", name),
            Self::Reconnect(name) => with(f, "RECONNECT", name),
            Self::Disable(name) => write!(f, "DISABLE {}", Word(name)),
            Self::Enable(name) => write!(f, "ENABLE {}", Word(name)),
            Self::Kill(name) => with(f, "KILL", name),
            Self::KillClient(id) => write!(f, "KILL_CLIENT {id}"),
            Self::WaitClose(name) => with(f, "WAIT_CLOSE", name),
            Self::WaitSettled(None) => f.write_str("WAIT SETTLED"),
            Self::WaitSettled(Some(time)) => {
                write!(f, "WAIT SETTLED '{}'", humantime::format_duration(*time))
            }
            Self::Plan(file) => with(f, "PLAN", file),
            Self::RollBack(None) => f.write_str("ROLLBACK CONFIG"),
            Self::RollBack(Some(number)) => write!(f, "ROLLBACK CONFIG TO {number}"),
            Self::DrainEnvironment(name) => write!(f, "DRAIN ENVIRONMENT {}", Word(name)),
            Self::ResumeEnvironment(name) => write!(f, "RESUME ENVIRONMENT {}", Word(name)),
            Self::Grant { environment, database, user, time, reason } => write!(
                f,
                "GRANT ENVIRONMENT {}{} TO {} FOR '{}' REASON '{}'",
                Word(environment),
                on(database),
                Word(user),
                humantime::format_duration(*time),
                reason.replace('\'', "''")
            ),
            Self::Revoke { environment, database, user } => {
                write!(f, "REVOKE ENVIRONMENT {}{} FROM {}", Word(environment), on(database), Word(user))
            }
            Self::Shutdown(Shutdown::Immediate) => f.write_str("SHUTDOWN"),
            Self::Shutdown(Shutdown::WaitForServers) => f.write_str("SHUTDOWN WAIT_FOR_SERVERS"),
            Self::Shutdown(Shutdown::WaitForClients) => f.write_str("SHUTDOWN WAIT_FOR_CLIENTS"),
            Self::Set(key, value) => {
                // `SET SESSION = 1` would be a value of nothing.
                let scope = if ["session", "local"].contains(&key.as_str()) { "SESSION " } else { "" };
                write!(f, "SET {scope}{} = {}", Word(key), Word(value))
            }
            Self::Fact(fact) => write!(f, "SELECT {}()", fact.word()),
            Self::Ping(number) => write!(f, "SELECT {number}"),
            Self::Transaction(tag) => f.write_str(tag),
        }
    }
}

impl Command {
    /// Understands a text.
    ///
    /// # Errors
    /// `42601` for what is no command.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let words = words(text)?;
        let word = |i: usize| words.get(i).map(|word| word.to_ascii_uppercase()).unwrap_or_default();
        let argument = |i: usize| words.get(i).cloned();
        let most = |count: usize| if words.len() > count { Err(no_command(text)) } else { Ok(()) };
        let database = |make: fn(Option<String>) -> Self| most(2).map(|()| make(argument(1)));
        let named = |make: fn(String) -> Self| match (most(2), argument(1)) {
            (Ok(()), Some(name)) => Ok(make(name)),
            _ => Err(syntax("a database is required")),
        };
        match word(0).as_str() {
            "" => Ok(Self::Empty),
            "SHOW" if words.len() > 1 => {
                let rest: Vec<_> = words[1..].iter().map(|word| word.to_ascii_lowercase()).collect();
                Ok(Self::Show(rest.join(" ")))
            }
            "EXPLAIN" if word(1) == "ROUTE" => explain_route(&words)
                .ok_or_else(|| no_command(text).hint("EXPLAIN ROUTE FOR user ON database [AS environment]")),
            "GRANT" => grant(&words),
            "REVOKE" => revoke(&words)
                .ok_or_else(|| no_command(text).hint("REVOKE ENVIRONMENT name [ON database] FROM user")),
            "RELOAD" => most(1).map(|()| Self::Reload),
            "PAUSE" => database(Self::Pause),
            "SUSPEND" => most(1).map(|()| Self::Suspend),
            "RESUME" if word(1) == "ENVIRONMENT" && words.len() == 3 => {
                Ok(Self::ResumeEnvironment(words[2].clone()))
            }
            "DRAIN" if word(1) == "ENVIRONMENT" && words.len() == 3 => {
                Ok(Self::DrainEnvironment(words[2].clone()))
            }
            "DRAIN" => Err(no_command(text).hint("DRAIN ENVIRONMENT name")),
            "HELP" => Ok(Self::Show("help".to_owned())),
            "PLAN" => database(Self::Plan),
            "RESUME" => database(Self::Resume),
            "RECONNECT" => database(Self::Reconnect),
            "KILL" => database(Self::Kill),
            "WAIT_CLOSE" => database(Self::WaitClose),
            "DISABLE" => named(Self::Disable),
            "ENABLE" => named(Self::Enable),
            "KILL_CLIENT" => match argument(1).map(|id| id.parse()) {
                Some(Ok(id)) => most(2).map(|()| Self::KillClient(id)),
                _ => Err(syntax("invalid client id supplied")),
            },
            "WAIT" if word(1) == "SETTLED" => {
                most(3)?;
                let time = argument(2).map(|time| humantime::parse_duration(&time)).transpose();
                time.map(Self::WaitSettled).map_err(|error| syntax(format!("not a time: {error}")))
            }
            "SHUTDOWN" => match (words.len(), word(1).as_str()) {
                (1, _) => Ok(Self::Shutdown(Shutdown::Immediate)),
                (2, "WAIT_FOR_SERVERS") => Ok(Self::Shutdown(Shutdown::WaitForServers)),
                (2, "WAIT_FOR_CLIENTS") => Ok(Self::Shutdown(Shutdown::WaitForClients)),
                _ => Err(no_command(text)),
            },
            "SET" => {
                let rest = if ["SESSION", "LOCAL"].contains(&word(1).as_str()) { 2 } else { 1 };
                let value: Vec<_> = words
                    .iter()
                    .skip(rest + 1)
                    .filter(|word| !["=", "TO", "to"].contains(&word.as_str()))
                    .collect();
                match argument(rest) {
                    Some(key) if !value.is_empty() => {
                        let value = value.into_iter().cloned().collect::<Vec<_>>().join(" ");
                        Ok(Self::Set(key.to_ascii_lowercase(), value))
                    }
                    _ => Err(no_command(text).hint("SET key = value")),
                }
            }
            "SELECT" if words.len() == 2 && word(1).parse::<u32>().is_ok() => {
                Ok(Self::Ping(word(1).parse().unwrap_or(1)))
            }
            "SELECT" if words.len() == 2 && Fact::of(&words[1]).is_some() => {
                Ok(Fact::of(&words[1]).map_or(Self::Empty, Self::Fact))
            }
            "SELECT" | "WITH" | "INSERT" | "UPDATE" | "DELETE" | "CREATE" | "TABLE" | "VALUES" => {
                Err(Refusal::new(Fault::Client, SqlState::NOT_SUPPORTED, "the console has no SQL, and no catalogs")
                    .hint("SHOW HELP lists its commands: SHOW DATABASES, SHOW POOLS and so on in place of \\l and \\d."))
            }
            "BEGIN" | "START" => Ok(Self::Transaction("BEGIN")),
            "COMMIT" | "END" => Ok(Self::Transaction("COMMIT")),
            "ROLLBACK" => {
                match (words.len(), word(1).as_str()) {
                    (2, "CONFIG" | "CONFIGURATION") => Ok(Self::RollBack(None)),
                    (4, "CONFIG" | "CONFIGURATION") if word(2) == "TO" => match word(3).parse() {
                        Ok(number) => Ok(Self::RollBack(Some(number))),
                        Err(_) => Err(syntax("the number of a generation is expected behind TO")),
                    },
                    (1, _) | (2, "WORK" | "TRANSACTION") => Ok(Self::Transaction("ROLLBACK")),
                    _ => Err(no_command(text)
                        .hint("ROLLBACK CONFIG [TO generation] puts an earlier configuration back in force.")),
                }
            }
            "ABORT" => Ok(Self::Transaction("ROLLBACK")),
            _ => Err(no_command(text)),
        }
    }

    /// Whether a user who may only look may say it.
    pub fn only_looks(&self) -> bool {
        matches!(
            self,
            Self::Empty
                | Self::Show(_)
                | Self::ExplainRoute { .. }
                | Self::Ping(_)
                | Self::Fact(_)
                | Self::Transaction(_)
                | Self::WaitSettled(_)
        )
    }
}

/// What stands behind `GRANT` or `REVOKE`: the environment, the database, and the rest.
fn environment_of(words: &[String]) -> Option<(String, Option<String>, &[String])> {
    let (_, [kind, environment, rest @ ..]) = words.split_first()? else { return None };
    let (database, rest) = match rest {
        [on, database, rest @ ..] if on.eq_ignore_ascii_case("ON") => (Some(database.clone()), rest),
        rest => (None, rest),
    };
    kind.eq_ignore_ascii_case("ENVIRONMENT").then(|| (environment.clone(), database, rest))
}

fn revoke(words: &[String]) -> Option<Command> {
    let (environment, database, rest) = environment_of(words)?;
    match rest {
        [from, user] if from.eq_ignore_ascii_case("FROM") => {
            Some(Command::Revoke { environment, database, user: user.clone() })
        }
        _ => None,
    }
}

fn grant(words: &[String]) -> Result<Command, Refusal> {
    let incomplete = || {
        let refusal = syntax("a grant needs an environment, a user, a time and a reason");
        refusal.hint("GRANT ENVIRONMENT name [ON database] TO user FOR '1h' REASON 'why'")
    };
    let (environment, database, rest) = environment_of(words).ok_or_else(incomplete)?;
    let [to, user, r#for, time, because, reason] = rest else { return Err(incomplete()) };
    let keywords = [(to, "TO"), (r#for, "FOR"), (because, "REASON")];
    if !keywords.iter().all(|(said, word)| said.eq_ignore_ascii_case(word)) || reason.trim().is_empty() {
        return Err(incomplete());
    }
    if reason.len() > MAX_REASON {
        return Err(syntax(format!("the reason of a grant is longer than {MAX_REASON} bytes")));
    }
    match humantime::parse_duration(time) {
        Ok(time) if !time.is_zero() && time <= LONGEST => {
            Ok(Command::Grant { environment, database, user: user.clone(), time, reason: reason.clone() })
        }
        Ok(_) => Err(syntax("FOR must be greater than zero and at most one year")),
        Err(error) => Err(syntax(format!("not a time: {error}"))),
    }
}

fn explain_route(words: &[String]) -> Option<Command> {
    let is = |i: usize, word: &str| words.get(i).is_some_and(|w| w.eq_ignore_ascii_case(word));
    if !(is(2, "FOR") && is(4, "ON")) {
        return None;
    }
    let environment = match words.len() {
        6 => None,
        8 if is(6, "AS") => Some(words[7].clone()),
        _ => return None,
    };
    Some(Command::ExplainRoute { user: words[3].clone(), database: words[5].clone(), environment })
}

fn syntax(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(Fault::Client, SqlState::SYNTAX_ERROR, message)
}

fn no_command(text: &str) -> Refusal {
    let text = text.trim();
    let shown = Shown::name(text);
    let dots = if shown.as_str().len() < text.len() { "…" } else { "" };
    syntax(format!("invalid command \"{shown}{dots}\"")).hint("SHOW HELP lists the commands.")
}

/// The words of a command: what stands in quotes is one word, whatever is in it.
fn words(text: &str) -> Result<Vec<String>, Refusal> {
    if text.len() > MAX_COMMAND {
        return Err(syntax("the command is too long"));
    }
    let mut words = Vec::new();
    let mut chars = text.trim_end_matches(|c: char| c == ';' || c.is_whitespace()).chars().peekable();
    while let Some(&c) = chars.peek() {
        match c {
            c if c.is_whitespace() => {
                chars.next();
            }
            '\'' | '"' => {
                chars.next();
                let mut word = String::new();
                loop {
                    match chars.next() {
                        Some(end) if end == c && chars.peek() == Some(&c) => {
                            chars.next();
                            word.push(c);
                        }
                        Some(end) if end == c => break,
                        Some(other) => word.push(other),
                        None => return Err(syntax("unterminated quoted string")),
                    }
                }
                words.push(word);
            }
            ';' => return Err(syntax("one command at a time, please")),
            '=' | ',' => {
                chars.next();
                words.push(c.to_string());
            }
            _ => {
                let mut word = String::new();
                while let Some(&c) = chars.peek() {
                    if c.is_whitespace() || ['\'', '"', ';', '=', ','].contains(&c) {
                        break;
                    }
                    word.push(c);
                    chars.next();
                }
                words.push(word);
            }
        }
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Command {
        Command::parse(text).unwrap()
    }

    #[test]
    fn commands_are_understood_as_pgbouncer_does() {
        let some = |name: &str| Some(name.to_owned());
        for (text, command) in [
            ("", Command::Empty),
            (" ; ", Command::Empty),
            ("reload; ;\n", Command::Reload),
            ("show POOLS;", Command::Show("pools".into())),
            ("SHOW stats_totals", Command::Show("stats_totals".into())),
            ("Pause", Command::Pause(None)),
            ("PAUSE \"My DB\"", Command::Pause(some("My DB"))),
            ("resume MyDb", Command::Resume(some("MyDb"))),
            ("kill_client 17", Command::KillClient(17)),
            ("shutdown wait_for_clients", Command::Shutdown(Shutdown::WaitForClients)),
            ("WAIT SETTLED '30s'", Command::WaitSettled(Some(Duration::from_secs(30)))),
            ("set a = 'b'", Command::Set("a".into(), "b".into())),
            ("SET SESSION a TO b, c", Command::Set("a".into(), "b , c".into())),
            ("BEGIN", Command::Transaction("BEGIN")),
            ("rollback;", Command::Transaction("ROLLBACK")),
            ("ROLLBACK WORK", Command::Transaction("ROLLBACK")),
            ("rollback config", Command::RollBack(None)),
            ("ROLLBACK configuration to 7", Command::RollBack(Some(7))),
            ("select pg_catalog.version();", Command::Fact(Fact::Version)),
            ("SET SESSION session = 1", Command::Set("session".into(), "1".into())),
            ("SHOW 'a  b'", Command::Show("a  b".into())),
            (
                "grant environment prod to alice for '1h' reason 'INC-7: it''s down'",
                Command::Grant {
                    environment: "prod".into(),
                    database: None,
                    user: "alice".into(),
                    time: Duration::from_secs(3600),
                    reason: "INC-7: it's down".into(),
                },
            ),
            (
                "GRANT ENVIRONMENT prod on \"The Warehouse\" to alice for '1h' reason 'on call'",
                Command::Grant {
                    environment: "prod".into(),
                    database: some("The Warehouse"),
                    user: "alice".into(),
                    time: Duration::from_secs(3600),
                    reason: "on call".into(),
                },
            ),
            (
                "REVOKE ENVIRONMENT prod FROM alice;",
                Command::Revoke { environment: "prod".into(), database: None, user: "alice".into() },
            ),
            (
                "revoke environment on on on from from",
                Command::Revoke { environment: "on".into(), database: some("on"), user: "from".into() },
            ),
        ] {
            assert_eq!(of(text), command, "{text}");
            assert_eq!(of(&command.to_string()), command, "{command} is written so in the audit");
        }
        assert_eq!(
            of("explain route for \"al\"\"ice\" on w as prod"),
            Command::ExplainRoute { user: "al\"ice".into(), database: "w".into(), environment: some("prod") }
        );
    }

    #[test]
    fn there_is_no_sql() {
        for text in
            ["SELECT 1 + 1", "select oid from pg_class", "WITH a AS (SELECT 1) SELECT 1", "create table a ()"]
        {
            let refusal = Command::parse(text).unwrap_err();
            assert_eq!(refusal.sqlstate, SqlState::NOT_SUPPORTED, "{text}");
        }
    }

    #[test]
    fn what_is_no_command_is_said_to_be_none() {
        for text in [
            "SHOW",
            "PAUSE a b",
            "DISABLE",
            "KILL_CLIENT x",
            "RELOAD now",
            "ROLLBACK TO s",
            "ROLLBACK CONFIG 1",
            "ROLLBACK CONFIG TO x",
            "EXPLAIN ROUTE FOR a",
            "PAUSE 'x",
            "RELOAD; RELOAD",
            "SET a",
            "WAIT SETTLED soon",
            "SHUTDOWN later",
            "GRANT prod TO alice",
            "GRANT ENVIRONMENT prod TO alice FOR '1h'",
            "GRANT ENVIRONMENT prod TO alice FOR '0s' REASON 'x'",
            "GRANT ENVIRONMENT prod TO alice FOR '2y' REASON 'x'",
            "GRANT ENVIRONMENT prod TO alice FOR soon REASON 'x'",
            "GRANT ENVIRONMENT prod TO alice FOR '1h' REASON ' '",
            "GRANT ENVIRONMENT prod ON TO alice FOR '1h' REASON 'x'",
            "GRANT ENVIRONMENT prod TO alice FOR '1h' REASON 'x' ON warehouse",
            "GRANT",
            "GRANT ENVIRONMENT",
            "REVOKE ENVIRONMENT prod",
            "REVOKE ENVIRONMENT prod ON FROM alice",
            "REVOKE ENVIRONMENT prod ON warehouse",
        ] {
            assert_eq!(Command::parse(text).unwrap_err().sqlstate, SqlState::SYNTAX_ERROR, "{text}");
        }
        assert!(Command::parse(&"x".repeat(1 << 20)).is_err());
    }
}
