//! `SHOW ROUTES`, `SHOW ENVIRONMENTS` and `EXPLAIN ROUTE`: who gets where, and why.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::{Console, Overview, time};
use crate::console::table::Kind::Text;
use crate::console::table::{Table, table};
use crate::proxy::LiveSession;
use policy::attribute;
use policy::route;
use wire::error::{Fault, Refusal, Shown, SqlState};

/// How many rows `SHOW ROUTES` has at the most.
const MAX_ROUTES: usize = 250_000;

impl Overview<'_> {
    /// Users times databases.
    pub(super) fn routes(&self) -> Result<Table, Refusal> {
        let config = &self.generation.config;
        let bases: Vec<_> =
            config.databases.iter().filter(|(name, base)| name.as_str() == base.as_str()).collect();
        if config.users.len().saturating_mul(bases.len()) > MAX_ROUTES {
            let message =
                format!("{} users times {} databases are too many rows", config.users.len(), bases.len());
            return Err(Refusal::new(Fault::Client, SqlState::LIMIT_EXCEEDED, message)
                .hint("pgusher resolve says where one user gets to."));
        }
        let mut sessions: HashMap<_, Vec<_>> = HashMap::new();
        for session in &self.sessions {
            let key = (session.identity.user(), session.target.route.base());
            sessions.entry(key).or_default().push(session.target.route.connection());
        }
        let rows = config.users.values().flat_map(|user| {
            let granted = self.console.access.of(user.name.as_str());
            let attributes = Rc::new(attribute::explain(config, user.name.as_str()).with(granted));
            bases.iter().map(move |base| (user, attributes.clone(), base))
        });
        Ok(table!((user, attributes, (database, base)) in rows, {
            let grants = attributes.granted().iter().filter(|grant| grant.is_on(base));
            let granted: Vec<_> = grants
                .map(|grant| format!("{} until {} ({})", grant.environment, time(grant.until), grant.reason))
                .collect();
            let route = match route::resolve(config, &attributes, database.as_str(), None) {
                _ if user.disabled => Err("the user is disabled".to_owned()),
                route => route.map_err(|refusal| refusal.to_string()),
            };
            let own = sessions.get(&(&user.name, *base)).map_or(&[][..], Vec::as_slice);
            let to = route.as_ref().ok().and_then(|route| config.connections.get(route.connection()));
            let there = own.iter().filter(|at| to.is_some_and(|to| **at == &to.name)).count();
        }, {
            "user": Text = user.name.as_str(),
            "database": Text = database.as_str(),
            "environment": Text = route.as_ref().ok().map(|route| route.environment().as_str()),
            "connection": Text = route.as_ref().ok().map(|route| route.connection().as_str()),
            "production": Int = to.is_some_and(|to| to.production),
            "sessions": Int = there,
            "elsewhere": Int = own.len() - there,
            "reason": Text = route.as_ref().ok().map(|route| joined(route.reasons(), "; ")),
            "refused": Text = route.as_ref().err(),
            "granted": Text = Some(granted.join(", ")).filter(|granted| !granted.is_empty()),
        }))
    }

    pub(super) fn environments(&self) -> Table {
        let generation = &self.generation;
        let bases = generation.config.connections.values();
        let bases = bases.filter_map(|connection| Some((connection, connection.base.as_ref()?)));
        let rows = bases.flat_map(|(connection, base)| {
            let own = (&connection.name, &connection.environment, &base.default_values);
            let others = base.environments.iter().map(|e| (&e.connection, &e.name, &e.values));
            std::iter::once(own).chain(others).map(move |environment| (connection, environment))
        });
        table!((connection, (name, environment, values)) in rows, {
            let Some(pool) = generation.pools.get(name) else { continue };
            let (view, to) = (pool.view(), pool.connection());
            let (isolation, reason) = pool.isolation();
            let here = |s: &&Arc<LiveSession>| s.target.route.base() == &connection.name;
        }, {
            "base": Text = connection.name.as_str(),
            "environment": Text = environment.as_str(),
            "connection": Text = name.as_str(),
            "production": Int = to.production,
            "health": Text = view.health(),
            "host": Text = to.target.host.to_string(),
            "port": Int = to.target.port,
            "database": Text = to.target.database.as_str(),
            "sessions": Int = self.sessions_of(pool).filter(here).count(),
            "waiting": Int = view.waiting,
            "active": Int = view.active,
            "idle": Int = view.idle,
            "pinned": Int = view.pinned,
            "pool_size": Int = to.pool_size,
            "values": Text = values.join(", "),
            "generation": Long = pool.generation(),
            "isolation": Text = isolation.word(),
            "isolation_reason": Text = reason.unwrap_or_default(),
        })
    }
}

fn joined(parts: &[impl ToString], with: &str) -> String {
    parts.iter().map(ToString::to_string).collect::<Vec<_>>().join(with)
}

/// `EXPLAIN ROUTE`: the steps of the decision, one a line, as PostgreSQL shows a plan.
///
/// # Errors
/// The refusal that a login would get.
pub(crate) fn explain_route(
    console: &Console,
    user: &str,
    database: &str,
    environment: Option<&str>,
) -> Result<Table, Refusal> {
    let generation = console.current.generation();
    let config = &generation.config;
    let Some(known) = config.users.get(user) else {
        let message = format!("there is no user \"{}\"", Shown::name(user));
        return Err(Refusal::new(Fault::Client, SqlState::UNDEFINED_OBJECT, message));
    };
    let route = route::resolve(
        config,
        &attribute::explain(config, user).with(console.access.of(user)),
        database,
        environment,
    )?;
    let mut table = Table::new(&[("ROUTE", Text)]);
    let mut line = |text: String| table.push(vec![text.into()]);
    line(format!("Environment {} (connection {})", route.environment(), route.connection()));
    route.reasons().iter().for_each(|reason| line(format!("  ->  {reason}")));
    route.warnings().iter().for_each(|warning| line(format!("  Warning: {warning}")));
    if known.disabled {
        line("  Warning: the user is disabled, and may not log in".into());
    }
    if let Some(connection) = config.connections.get(route.connection()) {
        let target = &connection.target;
        line(format!(
            "  To: {}:{}, database {}, as {}{}",
            target.host,
            target.port,
            target.database,
            target.username,
            if connection.production { " (production)" } else { "" }
        ));
    }
    line(format!("  Generation: {}", generation.number));
    Ok(table)
}
