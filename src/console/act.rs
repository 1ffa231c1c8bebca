//! What commands do.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, timeout_at};

use super::Console;
use super::command::Command;
use super::show;
use super::table::{Kind, Table};
use crate::pool::{Admission, Halt, Pool};
use crate::proxy::{Generation, Intent, LoadError, SetError};
use policy::attribute;
use policy::grant::{Grant, Which};
use policy::names::{ConnectionName, UserName};
use policy::plan::Plan;
use policy::route::{self, Reason};
use wire::error::{Fault, Refusal, Shown, SqlState};

/// How often `WAIT SETTLED` looks at the most.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long `WAIT SETTLED` waits where nothing is said.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest that it waits.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The answer to a command.
#[derive(Debug)]
pub(crate) struct Reply {
    /// Rows, if it has any.
    pub table: Option<Table>,
    /// Said beside.
    pub notice: Option<String>,
    /// The command tag.
    pub tag: &'static str,
}

impl Reply {
    fn done(tag: &'static str) -> Self {
        Self { table: None, notice: None, tag }
    }
}

/// The table that a command only looks at. Its work grows with users and sessions: not on the thread that accepts, and few at
/// a time.
///
/// # Errors
/// As [`act`].
pub(crate) async fn table(console: &Arc<Console>, command: &Command) -> Result<Option<Table>, Refusal> {
    let (looked_at, command) = (console.clone(), command.clone());
    let table = console.tables.run(move || columns(&looked_at, &command)).await;
    table.unwrap_or_else(|error| {
        Err(Refusal::new(Fault::Ours, SqlState::INTERNAL, "the command was lost").caused_by(&error))
    })
}

/// The columns that a command's answer has, and its rows, if it only looks, without doing anything. Blocks.
fn columns(console: &Console, command: &Command) -> Result<Option<Table>, Refusal> {
    match command {
        Command::Show(what) if what == "help" => Ok(None),
        Command::Show(what) => show::show(console, what).map(Some),
        Command::ExplainRoute { user, database, environment } => {
            show::explain_route(console, user, database, environment.as_deref()).map(Some)
        }
        // Only its columns: nothing is read to describe it.
        Command::Plan(_) => Ok(Some(Table::new(&Plan::COLUMNS.map(|name| (name, Kind::Text))))),
        Command::Fact(fact) => Ok(Some(show::fact(*fact))),
        Command::Ping(number) => {
            let mut table = Table::new(&[("?column?", Kind::Int)]);
            table.push(vec![(*number).into()]);
            Ok(Some(table))
        }
        _ => Ok(None),
    }
}

/// Does it. Some commands wait; dropped, they wait no longer, and what they have begun goes on.
///
/// # Errors
/// Why it was not done.
pub(crate) async fn act(console: &Arc<Console>, by: &UserName, command: &Command) -> Result<Reply, Refusal> {
    match command {
        Command::Show(what) if what == "help" => {
            let notice = Some(format!("Console usage{}", show::HELP));
            Ok(Reply { table: None, notice, tag: "SHOW" })
        }
        Command::Show(_) => {
            let table = table(console, command).await?;
            Ok(Reply { table, notice: None, tag: "SHOW" })
        }
        Command::ExplainRoute { .. } => {
            let table = table(console, command).await?;
            Ok(Reply { table, notice: None, tag: "EXPLAIN" })
        }
        Command::Ping(_) => {
            let table = table(console, command).await?;
            Ok(Reply { table, notice: None, tag: "SELECT 1" })
        }
        Command::Empty => Ok(Reply::done("")),
        Command::Transaction(tag) => Ok(Reply::done(tag)),
        Command::Reload => {
            let configuration = console.configuration.clone();
            let reloaded = tokio::task::spawn_blocking(move || configuration.reload_and_log()).await;
            in_force(reloaded, "RELOAD")
        }
        Command::Pause(None) => {
            not_halted(console)?;
            console.standing.halt_all(Halt::Paused);
            until_all(console, is_released).await?;
            Ok(Reply::done("PAUSE"))
        }
        Command::Suspend => {
            not_halted(console)?;
            if console.sessions.all_pools().iter().any(|pool| pool.view().halted.is_some()) {
                return Err(wrong_state("cannot suspend with paused databases"));
            }
            console.standing.halt_all(Halt::Suspended);
            until_all(console, |pool| pool.view().active == 0).await?;
            Ok(Reply::done("SUSPEND"))
        }
        Command::Resume(None) => match console.standing.resume_all() {
            true => Ok(Reply::done("RESUME")),
            false => Err(wrong_state("pooler is not paused/suspended")),
        },
        Command::Pause(Some(name)) => {
            not_halted(console)?;
            let pool = pool_of(console, name)?;
            console.standing.pause(&pool);
            until_halted(&pool, is_released).await?;
            Ok(Reply::done("PAUSE"))
        }
        Command::Resume(Some(name)) => match console.standing.resume(&pool_of(console, name)?) {
            true => Ok(Reply::done("RESUME")),
            false => Err(wrong_state(format!("database {name} is not paused"))),
        },
        Command::Reconnect(name) => {
            pools_of(console, name.as_deref())?.iter().for_each(Pool::reconnect);
            Ok(Reply::done("RECONNECT"))
        }
        Command::Disable(name) => {
            console.standing.admit(&pool_of(console, name)?, Admission::Disabled);
            Ok(Reply::done("DISABLE"))
        }
        Command::Enable(name) => {
            console.standing.admit(&pool_of(console, name)?, Admission::Open);
            Ok(Reply::done("ENABLE"))
        }
        Command::Kill(name) => {
            not_halted(console)?;
            for pool in pools_of(console, name.as_deref())? {
                console.standing.kill(&pool);
            }
            Ok(Reply::done("KILL"))
        }
        Command::KillClient(id) => match console.sessions.kill(*id) || console.presence.end(*id) {
            true => Ok(Reply::done("KILL_CLIENT")),
            false => Err(Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, "client not found")),
        },
        Command::WaitClose(name) => {
            let pools = pools_of(console, name.as_deref())?;
            for pool in pools {
                pool.until(|pool| !pool.has_outworn()).await;
            }
            Ok(Reply::done("WAIT_CLOSE"))
        }
        Command::Plan(path) => {
            let path = path.clone().map(std::path::PathBuf::from);
            let _turn = console.configuration.planning.acquire().await;
            let planned = blocking(console, move |console| {
                console.configuration.plan(path.as_deref()).map_err(|error| not_loaded(&error))
            });
            let mut table = table(console, command).await?;
            for row in planned.await?.rows() {
                table.iter_mut().for_each(|table| table.push(row.clone().map(Into::into).to_vec()));
            }
            Ok(Reply { table, notice: None, tag: "PLAN" })
        }
        Command::RollBack(number) => {
            let (configuration, number) = (console.configuration.clone(), *number);
            let rolled_back = tokio::task::spawn_blocking(move || configuration.roll_back(number)).await;
            in_force(rolled_back, "ROLLBACK CONFIG")
        }
        Command::DrainEnvironment(name) => {
            let pools = environment_of(console.standing.drain_environment(name), name)?;
            let is_resumed = || pools.iter().any(|pool| pool.admission() == Admission::Open);
            console.sessions.have_left(&pools, is_resumed).await;
            match is_resumed() {
                false => Ok(Reply::done("DRAIN")),
                true => Err(wrong_state(format!("environment {name} was resumed meanwhile"))),
            }
        }
        Command::ResumeEnvironment(name) => {
            environment_of(console.standing.resume_environment(name), name)?;
            Ok(Reply::done("RESUME"))
        }
        Command::Grant { environment, database, user, time, reason } => {
            let since = SystemTime::now();
            let grant = Grant {
                user: user.as_str().into(),
                environment: environment.as_str().into(),
                database: database.as_deref().map(|database| console.configuration.base_named(database)),
                since,
                until: since + *time,
                reason: reason.clone(),
                by: by.clone(),
            };
            let notice = Some(granted(console, &grant));
            blocking(console, move |console| console.access.grant(&grant)).await?;
            Ok(Reply { table: None, notice, tag: "GRANT" })
        }
        Command::Revoke { environment, database, user } => {
            let which = database.as_deref().map(|database| console.configuration.base_named(database));
            let which = which.map_or(Which::All, |database| Which::Of(Some(database)));
            let (of, from, by) = (environment.clone(), user.clone(), by.clone());
            blocking(console, move |console| console.access.revoke(&from, &of, &which, &by)).await?;
            Ok(Reply {
                table: None,
                notice: Some(left_after_revoking(console, environment, user)),
                tag: "REVOKE",
            })
        }
        Command::WaitSettled(time) => wait_settled(console, time.unwrap_or(PATIENCE).min(LONGEST)).await,
        Command::Shutdown(how) => {
            console.life.ask_to_end(*how);
            Ok(Reply::done("SHUTDOWN"))
        }
        Command::Set(key, _) if show::is_parameter(key) => Ok(Reply::done("SET")),
        Command::Set(key, value) => set(console, key, value).await,
        Command::Fact(_) => {
            let table = table(console, command).await?;
            Ok(Reply { table, notice: None, tag: "SELECT 1" })
        }
    }
}

/// `SET`: until the file is read again.
async fn set(console: &Arc<Console>, key: &str, value: &str) -> Result<Reply, Refusal> {
    let (named, said) = (key.to_owned(), value.to_owned());
    let set = blocking(console, move |console| {
        console.configuration.set(&named, &said, Intent::Write).map_err(|error| {
            let (fault, state, why) = match &error {
                SetError::Unknown(_) => (Fault::Client, SqlState::UNDEFINED_OBJECT, None),
                SetError::Restart(_) | SetError::File(_) => {
                    (Fault::Client, SqlState::CANT_CHANGE_PARAMETER, None)
                }
                SetError::Value { why, .. } => {
                    (Fault::Client, SqlState::INVALID_PARAMETER, Some(format!("{why}.")))
                }
                SetError::Broken(_) => (Fault::Operator, SqlState::CONFIG_FILE_ERROR, None),
            };
            let refusal = Refusal::new(fault, state, Shown::sentence(&error.to_string()).to_string());
            let refusal = refusal.hint("SHOW CONFIG lists settings, and says which can be changed.");
            why.into_iter().fold(refusal, Refusal::detail)
        })
    });
    let (value, _) = set.await?;
    let notice = format!("{key} is {value} until the file is read again (RELOAD), or the API writes it");
    Ok(Reply { table: None, notice: Some(notice), tag: "SET" })
}

/// What a grant opens, by name.
fn granted(console: &Console, grant: &Grant) -> String {
    let generation = console.current.generation();
    let opened: Vec<_> =
        route::opened_by(&generation.config, grant).into_iter().map(ConnectionName::as_str).collect();
    let of = match (&grant.database, opened.as_slice()) {
        (Some(database), _) => format!("of database {database}"),
        (None, []) => "of every database that will have it (none has it now)".to_owned(),
        (None, opened) => format!("of every database that has it ({})", opened.join(", ")),
    };
    let until = humantime::format_rfc3339_seconds(grant.until);
    // Whoever has no value that matches is routed there also without a request.
    let mut grants = console.access.of(grant.user.as_str());
    grants.push(grant.clone());
    let attributes = attribute::explain(&generation.config, grant.user.as_str()).with(grants);
    let is_rerouted = |base: &&str| {
        let route = route::resolve(&generation.config, &attributes, base, None);
        route.is_ok_and(|route| route.reasons().iter().any(|reason| matches!(reason, Reason::Granted(_))))
    };
    let rerouted: Vec<_> = opened.iter().copied().filter(is_rerouted).collect();
    let also = match rerouted.as_slice() {
        [] => String::new(),
        rerouted => format!(
            ". WITHOUT a request {} is routed there as well for {}, having no value that matches: sessions elsewhere end",
            grant.user,
            rerouted.join(", ")
        ),
    };
    format!("{} may request environment {} {of} until {until}{also}", grant.user, grant.environment)
}

/// What a revocation leaves to a user: another grant of the same environment, or none.
fn left_after_revoking(console: &Console, environment: &str, user: &str) -> String {
    let left = console.access.of(user);
    match left.iter().find(|grant| grant.environment.as_str() == environment) {
        Some(left) => format!("another grant is left: {}", granted(console, left)),
        None => format!("{user} has no grant of environment {environment} any more"),
    }
}

/// What has to do with files.
async fn blocking<T: Send + 'static>(
    console: &Arc<Console>,
    what: impl FnOnce(&Console) -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let console = console.clone();
    let done = tokio::task::spawn_blocking(move || what(&console)).await;
    done.unwrap_or_else(|error| {
        Err(Refusal::new(Fault::Ours, SqlState::INTERNAL, "the command was lost").caused_by(&error))
    })
}

/// What became of a configuration.
fn in_force(
    applied: Result<Result<Arc<Generation>, LoadError>, tokio::task::JoinError>,
    tag: &'static str,
) -> Result<Reply, Refusal> {
    match applied {
        Ok(Ok(generation)) => {
            let back = match tag {
                "ROLLBACK CONFIG" => {
                    ". The file is as it was: correct it, or the next RELOAD or restart undoes this"
                }
                _ => "",
            };
            let notice = Some(format!("generation {} is in force{back}", generation.number));
            Ok(Reply { table: None, notice, tag })
        }
        Ok(Err(error)) => Err(not_loaded(&error)),
        Err(error) => {
            Err(Refusal::new(Fault::Ours, SqlState::INTERNAL, "the reload was lost").caused_by(&error))
        }
    }
}

fn environment_of(pools: Vec<Arc<Pool>>, name: &str) -> Result<Vec<Arc<Pool>>, Refusal> {
    if pools.is_empty() {
        let message = format!("there is no environment \"{name}\"");
        return Err(Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, message)
            .hint("SHOW ENVIRONMENTS lists them."));
    }
    Ok(pools)
}

/// A configuration that was refused: every problem with its place, none of its values.
fn not_loaded(error: &LoadError) -> Refusal {
    if let LoadError::NothingEarlier | LoadError::Forgotten(_) = error {
        let refusal = Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, error.to_string());
        return refusal
            .hint("SHOW GENERATIONS lists those that there were; the last ten texts are remembered.");
    }
    let detail = match error {
        LoadError::Rejected(rejected) => {
            let lines: Vec<_> = rejected.0.iter().map(|problem| rejected.0.line(problem)).collect();
            lines.join("\n")
        }
        other => other.to_string(),
    };
    Refusal::new(Fault::Operator, SqlState::CONFIG_FILE_ERROR, "the configuration is refused")
        .detail(detail)
        .hint("The old configuration stays in force. Correct the file and RELOAD again.")
}

fn wrong_state(message: impl Into<std::borrow::Cow<'static, str>>) -> Refusal {
    Refusal::new(Fault::Client, SqlState::NOT_IN_PREREQUISITE_STATE, message)
}

fn not_halted(console: &Console) -> Result<(), Refusal> {
    match console.standing.halted() {
        None => Ok(()),
        Some(_) => Err(wrong_state("already suspended/paused")),
    }
}

/// The pool of a connection.
fn pool_of(console: &Console, name: &str) -> Result<Arc<Pool>, Refusal> {
    if super::is_database(name) {
        return Err(wrong_state(format!("{name} is the console itself")));
    }
    console.current.generation().pools.get(name).cloned().ok_or_else(|| {
        let message = format!("no such database: {}", Shown::name(name));
        Refusal::new(Fault::Client, SqlState::UNKNOWN_DATABASE, message)
            .hint("It is the name of a connection: see SHOW DATABASES.")
    })
}

fn pools_of(console: &Console, name: Option<&str>) -> Result<Vec<Arc<Pool>>, Refusal> {
    match name {
        Some(name) => Ok(vec![pool_of(console, name)?]),
        None => Ok(console.sessions.all_pools()),
    }
}

fn is_released(pool: &Pool) -> bool {
    let view = pool.view();
    view.active + view.idle == 0
}

/// Waits for something that comes about while the pool lends nothing.
async fn until_halted(pool: &Pool, is_done: impl Fn(&Pool) -> bool) -> Result<(), Refusal> {
    pool.until(|pool| pool.view().halted.is_none() || is_done(pool)).await;
    match pool.view().halted {
        Some(_) => Ok(()),
        None => Err(wrong_state(format!("database {} was resumed meanwhile", pool.connection().name))),
    }
}

/// A reload may bring others meanwhile.
async fn until_all(console: &Console, is_done: impl Fn(&Pool) -> bool) -> Result<(), Refusal> {
    while let Some(pool) = console.sessions.all_pools().into_iter().find(|pool| !is_done(pool)) {
        until_halted(&pool, &is_done).await?;
    }
    Ok(())
}

/// Waits until no session stands on a connection that its user would not get now.
async fn wait_settled(console: &Arc<Console>, patience: Duration) -> Result<Reply, Refusal> {
    let deadline = Instant::now() + patience;
    loop {
        let mut stirred = std::pin::pin!(console.sessions.stirred());
        // Before the look: what happens behind it is heard.
        stirred.as_mut().enable();
        let Some(left) = console.sessions.unsettled_since(std::time::Instant::now()).await else {
            return Err(Refusal::new(
                Fault::Ours,
                SqlState::INTERNAL,
                "the sessions were not looked through",
            ));
        };
        if left.is_empty() {
            return Ok(Reply::done("WAIT"));
        }
        if Instant::now() >= deadline {
            let message =
                format!("{} sessions are still on a route that their user no longer has", left.len());
            let ids: Vec<_> = left.iter().take(20).map(ToString::to_string).collect();
            return Err(Refusal::new(Fault::Operator, SqlState::QUERY_CANCELED, message)
                .detail(format!("Sessions: {}.", ids.join(", ")))
                .hint("SHOW SESSIONS says why; KILL_CLIENT ends one."));
        }
        let _ = timeout_at(deadline, stirred).await;
        // Many may leave at once, and each look goes through all that are left.
        sleep(LOOK_AGAIN).await;
    }
}
