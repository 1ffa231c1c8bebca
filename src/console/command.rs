//! What an operator typed, understood.

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
    /// `ROLLBACK CONFIG`
    RollBack,
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
    /// `SELECT 1`, as pools and clients ask whether anybody is there.
    Ping(u32),
    /// `BEGIN`, `COMMIT`, `ROLLBACK`: drivers send them. The tag that answers it.
    Transaction(&'static str),
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
            "BEGIN" | "START" => Ok(Self::Transaction("BEGIN")),
            "COMMIT" | "END" => Ok(Self::Transaction("COMMIT")),
            "ROLLBACK" => {
                match (words.len(), word(1).as_str()) {
                    (2, "CONFIG") => Ok(Self::RollBack),
                    (1, _) | (2, "WORK" | "TRANSACTION") => Ok(Self::Transaction("ROLLBACK")),
                    _ => Err(no_command(text)
                        .hint("ROLLBACK CONFIG puts the previous configuration back in force.")),
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
            ("rollback config", Command::RollBack),
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
        }
        assert_eq!(
            of("explain route for \"al\"\"ice\" on w as prod"),
            Command::ExplainRoute { user: "al\"ice".into(), database: "w".into(), environment: some("prod") }
        );
    }

    #[test]
    fn what_is_no_command_is_said_to_be_none() {
        for text in [
            "SELECT 1 + 1",
            "SHOW",
            "PAUSE a b",
            "DISABLE",
            "KILL_CLIENT x",
            "RELOAD now",
            "ROLLBACK TO s",
            "ROLLBACK CONFIG 1",
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
