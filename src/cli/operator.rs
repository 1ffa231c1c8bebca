//! What the command line says to a running pgusher: it is an operator on the console.

use std::process::ExitCode;

use clap::Args;
use tokio_postgres::config::{Host, SslMode as Want};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{NoTls, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::Format;
use super::conninfo::TlsWords;
use crate::tls;
use policy::config::UpstreamTls;
use policy::config::file::{SslMode, SslNegotiation};

/// The console of a running pgusher.
#[derive(Debug, Args)]
pub(super) struct Console {
    /// Where it is, as a connection string ("host=127.0.0.1 port=6432 user=operator sslmode=verify-full sslrootcert=ca.crt"). What
    /// it does not say is taken from PGHOST, PGPORT, PGUSER, PGPASSWORD, PGSSLMODE, PGSSLROOTCERT, PGSSLCERT and PGSSLKEY, as psql
    /// does.
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
        let (rows, notices) = self.ask(command)?;
        notices.iter().for_each(|notice| eprintln!("{notice}"));
        Ok(rows)
    }

    fn ask(&self, command: &str) -> Result<(Rows, Vec<String>), String> {
        let (words, left) = TlsWords::take(&self.console).map_err(|error| format!("--console: {error}"))?;
        let (config, words) = (self.config(&left)?, words.or_of(variable));
        let mut config = config;
        let is_local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        config.ssl_mode(match words.mode()? {
            _ if is_local => Want::Disable,
            SslMode::Disable => Want::Disable,
            SslMode::Allow | SslMode::Prefer => Want::Prefer,
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => Want::Require,
        });
        let connector = connector(&config, &words)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        match connector {
            Some(tls) => runtime.block_on(say(&config, tls, command)),
            None => runtime.block_on(say(&config, NoTls, command)),
        }
    }

    fn config(&self, said: &str) -> Result<tokio_postgres::Config, String> {
        let mut config: tokio_postgres::Config =
            said.parse().map_err(|error| format!("--console: {error}"))?;
        if config.get_hosts().is_empty() {
            config.host(variable("PGHOST").unwrap_or_else(|| "127.0.0.1".into()));
        }
        if config.get_ports().is_empty() {
            let port = variable("PGPORT").map(|port| port.parse().map_err(|_| format!("PGPORT is {port}")));
            config.port(port.transpose()?.unwrap_or(6432));
        }
        if config.get_user().is_none() {
            let user = variable("PGUSER").or_else(|| variable("USER"));
            config.user(user.ok_or(
                "which pgusher? say --console 'host=… port=… user=…', or set PGHOST, PGPORT and PGUSER",
            )?);
        }
        if let (None, Some(password)) = (config.get_password(), variable("PGPASSWORD")) {
            config.password(password);
        }
        config.dbname("pgusher").application_name("pgusher");
        Ok(config)
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// TLS towards it, as libpq would have it; `None` if there is to be none.
///
/// # Errors
/// A word or a file is wrong.
fn connector(config: &tokio_postgres::Config, words: &TlsWords) -> Result<Option<MakeRustlsConnect>, String> {
    let tcp = |host: &Host| match host {
        Host::Tcp(host) => Some(policy::config::Host::Name(host.clone())),
        Host::Unix(_) => None,
    };
    // A unix socket has no TLS, whatever is said, as with libpq.
    let Some(host) = config.get_hosts().iter().find_map(tcp) else { return Ok(None) };
    let identity = match (&words.certificate, &words.key) {
        (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
        (None, None) => None,
        _ => return Err("sslcert and sslkey belong together".into()),
    };
    let tls = UpstreamTls {
        mode: words.mode()?,
        negotiation: SslNegotiation::Postgres,
        root_cert: words.root.clone(),
        revoked: None,
        identity,
    };
    let client = tls::upstream(&tls, &host).map_err(|error| error.to_string())?;
    Ok(client.map(|client| MakeRustlsConnect::new((*client.config).clone())))
}

async fn say<T>(config: &tokio_postgres::Config, tls: T, command: &str) -> Result<(Rows, Vec<String>), String>
where
    T: MakeTlsConnect<Socket>,
{
    let (client, mut connection) = config.connect(tls).await.map_err(|error| in_words(&error))?;
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
    let row = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|i| row.get(i).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    };
    Ok((messages.iter().filter_map(row).collect(), notices))
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
pub(super) fn tell(console: &Console, command: &str, format: Format) -> ExitCode {
    match console.ask(command) {
        Ok((_, notices)) => {
            match format {
                Format::Json => say!("{}", serde_json::json!({ "notices": notices })),
                Format::Text => notices.iter().for_each(|notice| eprintln!("{notice}")),
            }
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}
