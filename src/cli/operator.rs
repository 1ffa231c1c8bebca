//! What the command line says to a running pgusher: it is an operator on the console.

use std::process::ExitCode;

use clap::Args;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// The console of a running pgusher.
#[derive(Debug, Args)]
pub(super) struct Console {
    /// Where it is, as a connection string ("host=127.0.0.1 port=6432 user=operator"). What it does not say is taken from
    /// PGHOST, PGPORT, PGUSER and PGPASSWORD, as psql does.
    #[arg(long, value_name = "CONNINFO", default_value = "")]
    console: String,
}

/// Rows of an answer, each a text a column.
pub(super) type Rows = Vec<Vec<String>>;

impl Console {
    /// Says one command, and shows what is said beside its answer.
    ///
    /// # Errors
    /// Nobody answers, the login or the command is refused: in words for an operator.
    pub(super) fn say(&self, command: &str) -> Result<Rows, String> {
        let config = self.config()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        runtime.block_on(say(&config, command))
    }

    fn config(&self) -> Result<tokio_postgres::Config, String> {
        let mut config: tokio_postgres::Config =
            self.console.parse().map_err(|error| format!("--console: {error}"))?;
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if config.get_hosts().is_empty() {
            config.host(variable("PGHOST").unwrap_or_else(|| "127.0.0.1".into()));
        }
        if config.get_ports().is_empty() {
            let port = variable("PGPORT").map(|port| port.parse().map_err(|_| format!("PGPORT is {port}")));
            config.port(port.transpose()?.unwrap_or(6432));
        }
        if config.get_user().is_none() {
            let user = variable("PGUSER").or_else(|| variable("USER"));
            config.user(user.ok_or("--console names no user, and PGUSER is not set")?);
        }
        if let (None, Some(password)) = (config.get_password(), variable("PGPASSWORD")) {
            config.password(password);
        }
        config.dbname("pgusher").application_name("pgusher");
        Ok(config)
    }
}

async fn say(config: &tokio_postgres::Config, command: &str) -> Result<Rows, String> {
    let (client, mut connection) = config.connect(NoTls).await.map_err(|error| in_words(&error))?;
    let notices = async move {
        let mut notices = Vec::new();
        // An error is the end: who asked is told of it.
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let tokio_postgres::AsyncMessage::Notice(notice) = message {
                notices.push(notice.message().to_owned());
            }
        }
        notices
    };
    let answer = async move { client.simple_query(command).await };
    let (answer, notices) = tokio::join!(answer, notices);
    let messages = answer.map_err(|error| in_words(&error))?;
    notices.iter().for_each(|notice| eprintln!("{notice}"));
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    };
    Ok(messages.iter().filter_map(row).collect())
}

fn in_words(error: &tokio_postgres::Error) -> String {
    let Some(said) = error.as_db_error() else {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        return format!("the console does not answer: {text}");
    };
    let mut text = format!("{} ({})", said.message(), said.code().code());
    let more = [("DETAIL", said.detail()), ("HINT", said.hint())];
    for (what, said) in more {
        said.iter().for_each(|said| text = format!("{text}\n{what}: {said}"));
    }
    text
}

/// A word of a console command, whatever is in it.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "''"))
}

/// What is granted or revoked: an environment, of a database or of all.
pub(super) fn environment(name: &str, database: Option<&str>) -> String {
    let on = database.map(|database| format!(" ON {}", quoted(database)));
    format!("ENVIRONMENT {}{}", quoted(name), on.unwrap_or_default())
}

/// Says a command that has no rows.
pub(super) fn tell(console: &Console, command: &str) -> ExitCode {
    match console.say(command) {
        Ok(_) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
