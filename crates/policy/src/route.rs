//! Which connection a user gets for a database, and why. Pure: the login, the command line and every other
//! question "where does X go?" call [`resolve`].

use std::collections::BTreeSet;
use std::fmt;

use crate::attribute::{self, Attributes, Origin, Subject};
use crate::config::file::OnUnmatched;
use crate::config::{Base, Config, Connection, Draft, Environment, Rejected, ValidatedConfig};
use crate::grant::Grant;
use crate::names::{AttributeName, ConnectionName, EnvironmentName, UserName};
use wire::error::{Fault, Refusal, Shown, SqlState};

/// The connection chosen for a user. Made only by [`resolve`]; a session is served only by one whose subject has logged in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route<S> {
    subject: S,
    base: ConnectionName,
    connection: ConnectionName,
    environment: EnvironmentName,
    reasons: Vec<Reason>,
    warnings: Vec<String>,
}

/// One step of a decision, in the order in which it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The database name means this base.
    Database {
        /// What was asked for.
        database: String,
        /// What it means.
        base: ConnectionName,
    },
    /// The base has no `user_attribute`.
    NoAttribute,
    /// A value was found.
    Value {
        /// Of which attribute.
        attribute: AttributeName,
        /// The value that decided.
        value: String,
        /// Where it stood.
        origin: Origin,
    },
    /// The user has no value.
    NoValue(AttributeName),
    /// The user's values match nothing.
    Unmatched {
        /// Of which attribute.
        attribute: AttributeName,
        /// The values.
        values: Vec<String>,
        /// Where they stood.
        origin: Origin,
    },
    /// The client asked for this environment and may have it.
    Requested(EnvironmentName),
    /// An operator has granted it, for a while.
    Granted(Grant),
    /// A default value of the base: the base itself.
    MeansBase,
    /// A value of an environment.
    MeansEnvironment(EnvironmentName),
    /// Nothing matched, and `on_unmatched = "base"`.
    FallsBack,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database { database, base } if database == base.as_str() => {
                write!(f, "database {database}")
            }
            Self::Database { database, base } => write!(f, "database {database} is an alias of {base}"),
            Self::NoAttribute => f.write_str("the connection has no user_attribute"),
            Self::Value { attribute, value, origin } => write!(f, "{attribute} = {value:?} from {origin}"),
            Self::NoValue(attribute) => write!(f, "no value for {attribute}"),
            Self::Unmatched { attribute, values, origin } => {
                write!(f, "{attribute} = {} from {origin} matches nothing", quoted(values))
            }
            Self::Requested(name) => write!(f, "environment {name} requested"),
            Self::Granted(grant) => {
                let until = humantime::format_rfc3339_seconds(grant.until);
                write!(f, "granted until {until} by {} ({})", grant.by, grant.reason)
            }
            Self::MeansBase => f.write_str("a default value: the base connection"),
            Self::MeansEnvironment(name) => write!(f, "a value of environment {name}"),
            Self::FallsBack => f.write_str("on_unmatched = \"base\": the base connection"),
        }
    }
}

fn quoted(values: &[String]) -> String {
    values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", ")
}

impl<S> Route<S> {
    /// In a word, how it was found: by a value or a request, for want of an attribute, or because nothing matched.
    pub fn word(&self) -> &'static str {
        let has = |wanted: fn(&Reason) -> bool| self.reasons.iter().any(wanted);
        match () {
            () if has(|reason| matches!(reason, Reason::Requested(_) | Reason::Granted(_))) => "request",
            () if has(|reason| matches!(reason, Reason::FallsBack)) => "fallback",
            () if has(|reason| matches!(reason, Reason::NoAttribute)) => "no attribute",
            () => "value",
        }
    }

    /// Whose it is.
    pub fn subject(&self) -> &S {
        &self.subject
    }

    /// The base connection that was asked for.
    pub fn base(&self) -> &ConnectionName {
        &self.base
    }

    /// Where the session goes.
    pub fn connection(&self) -> &ConnectionName {
        &self.connection
    }

    /// What that is called.
    pub fn environment(&self) -> &EnvironmentName {
        &self.environment
    }

    /// Why, in order.
    pub fn reasons(&self) -> &[Reason] {
        &self.reasons
    }

    /// Near misses that somebody should look at.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl Route<()> {
    fn of<S>(self, subject: S) -> Route<S> {
        let Self { subject: (), base, connection, environment, reasons, warnings } = self;
        Route { subject, base, connection, environment, reasons, warnings }
    }
}

/// `environment prod (connection warehouse_prod): database warehouse; …`
impl<S> fmt::Display for Route<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "environment {} (connection {})", self.environment, self.connection)?;
        for (i, reason) in self.reasons.iter().enumerate() {
            write!(f, "{} {reason}", if i == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

/// A base connection or one of its environments.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place<'a> {
    Base,
    Environment(&'a Environment),
}

/// What one decision is about.
struct Question<'a> {
    connection: &'a Connection,
    base: &'a Base,
    user: &'a UserName,
}

/// How many of a user's values are looked at for slips, at a login.
const MAX_NEAR_MISSES: usize = 16;

/// The user's values for a base's attribute, and the distinct places that they lead to.
struct Values<'a> {
    values: &'a [String],
    origin: Option<Origin>,
    places: Vec<(Place<'a>, &'a String)>,
}

/// Decides (spec section 2). `request` is the environment that the client asked for.
///
/// # Errors
/// `3D000` for a database that is none; `28000` where the user's values, or a request, lead nowhere.
pub fn resolve<S: Subject>(
    config: &Config,
    attributes: &Attributes<'_, S>,
    database: &str,
    request: Option<&str>,
) -> Result<Route<S>, Refusal> {
    let Some((connection, base)) = config.base(database) else {
        return Err(Refusal::new(
            Fault::Client,
            SqlState::UNKNOWN_DATABASE,
            format!("database \"{}\" does not exist", Shown::name(database)),
        ));
    };
    let question = Question { connection, base, user: attributes.user() };
    let mut reasons = vec![Reason::Database { database: database.into(), base: connection.name.clone() }];
    let Some(attribute) = &base.attribute else {
        reasons.push(Reason::NoAttribute);
        let place = match request {
            Some(name) => question.requested(name, &[Place::Base], &mut reasons)?,
            None => Place::Base,
        };
        return Ok(question.route(place, reasons, Vec::new()).of(attributes.subject().clone()));
    };
    let found = question.values(attributes, attribute);
    let warnings = question.near_misses(&found);
    let granted = question.granted(attributes);
    let place = match (found.places.as_slice(), request) {
        // What is granted is there to be requested; it decides only for those whose values lead nowhere.
        ([], None) if !granted.is_empty() => question.only_granted(&granted, &mut reasons)?,
        (_, Some(name)) if granted.iter().any(|(place, _)| question.name(*place).as_str() == name) => {
            let allowed: Vec<_> = granted.iter().map(|(place, _)| *place).collect();
            let place = question.requested(name, &allowed, &mut reasons)?;
            let grant = granted.iter().find(|(p, _)| *p == place);
            reasons.extend(grant.map(|(_, grant)| Reason::Granted((*grant).clone())));
            place
        }
        ([], _) => question.unmatched(attribute, &found, request, &mut reasons)?,
        (places, Some(name)) => {
            let may = granted.iter().map(|(place, _)| *place);
            let allowed: Vec<Place<'_>> = places.iter().map(|(place, _)| *place).chain(may).collect();
            let place = question.requested(name, &allowed, &mut reasons)?;
            if let Some((_, value)) = places.iter().find(|(p, _)| *p == place) {
                reasons.push(found.reason(attribute, value));
            }
            reasons.push(question.meaning(place));
            place
        }
        ([(place, value)], None) => {
            reasons.push(found.reason(attribute, value));
            reasons.push(question.meaning(*place));
            *place
        }
        (places, None) => return Err(question.ambiguous(attribute, places)),
    };
    Ok(question.route(place, reasons, warnings).of(attributes.subject().clone()))
}

/// The base connections of which a grant opens an environment, in the order of their names.
pub fn opened_by<'a>(config: &'a Config, grant: &Grant) -> Vec<&'a ConnectionName> {
    let is_opened = |name: &ConnectionName| {
        config.base(name.as_str()).is_some_and(|(connection, base)| {
            let names = base.environments.iter().map(|environment| &environment.name);
            base.attribute.is_some()
                && std::iter::once(&connection.environment)
                    .chain(names)
                    .any(|name| *name == grant.environment)
        })
    };
    config.connections.keys().filter(|name| grant.is_on(name) && is_opened(name)).collect()
}

impl Values<'_> {
    fn reason(&self, attribute: &AttributeName, value: &str) -> Reason {
        let origin = self.origin.clone().unwrap_or(Origin::Default);
        Reason::Value { attribute: attribute.clone(), value: value.to_owned(), origin }
    }
}

impl<'a> Question<'a> {
    fn values<S: Subject>(&self, attributes: &'a Attributes<'_, S>, attribute: &AttributeName) -> Values<'a> {
        let Some((values, origin)) = attributes.values(attribute) else {
            return Values { values: &[], origin: None, places: Vec::new() };
        };
        let mut places: Vec<(Place<'a>, &String)> = Vec::new();
        for value in values {
            if let Some(place) = self.place_of(value)
                && !places.iter().any(|(known, _)| *known == place)
            {
                places.push((place, value));
            }
        }
        Values { values, origin: Some(origin), places }
    }

    fn place_of(&self, value: &str) -> Option<Place<'a>> {
        if self.base.default_values.iter().any(|v| v == value) {
            return Some(Place::Base);
        }
        let leads = |e: &&Environment| e.values.iter().any(|v| v == value);
        self.base.environments.iter().find(leads).map(Place::Environment)
    }

    /// The places that the user is granted; of two grants of the same place, the one that lasts longer.
    fn granted<'g, S: Subject>(&self, attributes: &'g Attributes<'_, S>) -> Vec<(Place<'a>, &'g Grant)> {
        let mut granted: Vec<(Place<'a>, &'g Grant)> = Vec::new();
        for grant in attributes.granted().iter().filter(|grant| grant.is_on(&self.connection.name)) {
            let environments = self.base.environments.iter().map(Place::Environment);
            let mut places = std::iter::once(Place::Base).chain(environments);
            let Some(place) = places.find(|p| *self.name(*p) == grant.environment) else { continue };
            match granted.iter_mut().find(|(known, _)| *known == place) {
                Some((_, known)) if known.until < grant.until => *known = grant,
                Some(_) => {}
                None => granted.push((place, grant)),
            }
        }
        granted
    }

    /// The user has no other place than those.
    fn only_granted(
        &self,
        granted: &[(Place<'a>, &Grant)],
        reasons: &mut Vec<Reason>,
    ) -> Result<Place<'a>, Refusal> {
        let [(place, grant)] = granted else {
            let names: Vec<_> = granted.iter().map(|(place, _)| self.name(*place).as_str()).collect();
            let refusal = self.refusal(format!("user \"{}\" has more than one environment", self.user));
            return Err(refusal
                .detail(format!("Granted are {}.", names.join(" and ")))
                .hint(format!("Request one of them: options='-c pgusher.environment={}'.", names[0])));
        };
        reasons.push(Reason::Granted((*grant).clone()));
        Ok(*place)
    }

    fn name(&self, place: Place<'a>) -> &'a EnvironmentName {
        match place {
            Place::Base => &self.connection.environment,
            Place::Environment(environment) => &environment.name,
        }
    }

    fn meaning(&self, place: Place<'_>) -> Reason {
        match place {
            Place::Base => Reason::MeansBase,
            Place::Environment(environment) => Reason::MeansEnvironment(environment.name.clone()),
        }
    }

    fn requested(
        &self,
        name: &str,
        allowed: &[Place<'a>],
        reasons: &mut Vec<Reason>,
    ) -> Result<Place<'a>, Refusal> {
        if let Some(place) = allowed.iter().find(|p| self.name(**p).as_str() == name) {
            reasons.push(Reason::Requested(self.name(*place).clone()));
            return Ok(*place);
        }
        let names: Vec<&str> = allowed.iter().map(|p| self.name(*p).as_str()).collect();
        let shown = Shown::name(name);
        let refusal =
            self.refusal(format!("environment \"{shown}\" is not permitted for user \"{}\"", self.user));
        Err(if names.is_empty() {
            refusal.detail("This user may use no environment of this database.")
        } else {
            refusal.detail(format!("Environments this user may use: {}.", names.join(", ")))
        })
    }

    /// No value, or none that matches.
    fn unmatched(
        &self,
        attribute: &AttributeName,
        found: &Values<'_>,
        request: Option<&str>,
        reasons: &mut Vec<Reason>,
    ) -> Result<Place<'a>, Refusal> {
        reasons.push(match &found.origin {
            Some(origin) => Reason::Unmatched {
                attribute: attribute.clone(),
                values: found.values.to_vec(),
                origin: origin.clone(),
            },
            None => Reason::NoValue(attribute.clone()),
        });
        if self.base.on_unmatched == OnUnmatched::Base {
            reasons.push(Reason::FallsBack);
            return match request {
                Some(name) => self.requested(name, &[Place::Base], reasons),
                None => Ok(Place::Base),
            };
        }
        if let Some(name) = request {
            return self.requested(name, &[], reasons);
        }
        let refusal = self.refusal(format!(
            "no environment of database \"{}\" is permitted for user \"{}\"",
            self.connection.name, self.user
        ));
        Err(match &found.origin {
            Some(origin) => refusal.detail(format!(
                "User attribute \"{attribute}\" is {} (from {origin}), which matches no environment.",
                quoted(found.values)
            )),
            None => refusal.detail(format!("User attribute \"{attribute}\" has no value.")),
        }
        .hint("Ask the operator to set the attribute to a value that an environment lists."))
    }

    fn ambiguous(&self, attribute: &AttributeName, places: &[(Place<'a>, &String)]) -> Refusal {
        let names: Vec<&str> = places.iter().map(|(p, _)| self.name(*p).as_str()).collect();
        let refusal = self.refusal(format!("user \"{}\" has more than one environment", self.user));
        refusal
            .detail(format!("User attribute \"{attribute}\" leads to {}.", self.leads(places)))
            .hint(format!("Request one of them: options='-c pgusher.environment={}'.", names[0]))
    }

    fn leads(&self, places: &[(Place<'a>, &String)]) -> String {
        let lead = |(place, value): &(Place<'a>, &String)| format!("{} (value {value:?})", self.name(*place));
        places.iter().map(lead).collect::<Vec<_>>().join(" and ")
    }

    fn near_misses(&self, found: &Values<'_>) -> Vec<String> {
        let near = |value: &String| {
            let meant = self.base.near_miss(value)?;
            Some(format!(
                "attribute value {value:?} matches no environment; did the operator mean {meant:?}?"
            ))
        };
        found.values.iter().take(MAX_NEAR_MISSES).filter_map(near).collect()
    }

    fn refusal(&self, message: String) -> Refusal {
        Refusal::new(Fault::Client, SqlState::INVALID_AUTHORIZATION, message)
    }

    fn route(&self, place: Place<'_>, reasons: Vec<Reason>, warnings: Vec<String>) -> Route<()> {
        let (connection, environment) = match place {
            Place::Base => (&self.connection.name, &self.connection.environment),
            Place::Environment(environment) => (&environment.connection, &environment.name),
        };
        Route {
            subject: (),
            base: self.connection.name.clone(),
            connection: connection.clone(),
            environment: environment.clone(),
            reasons,
            warnings,
        }
    }
}

/// The last check of what a file says: see [`reviewed`].
///
/// # Errors
/// All that is wrong with it, with line and column.
pub fn review(draft: Draft) -> Result<ValidatedConfig, Rejected> {
    reviewed(draft).accept()
}

/// Nobody's values in the file may be ambiguous; near misses are warned of.
#[must_use]
pub fn reviewed(draft: Draft) -> Draft {
    let Draft { config, file, mut problems, outside } = draft;
    for (name, user) in &file.users.0 {
        for (database, base_name) in &config.databases {
            let Some((connection, base)) = config.base(database.as_str()) else { continue };
            let Some(attribute) = base.attribute.as_ref().filter(|_| database.as_str() == base_name.as_str())
            else {
                continue;
            };
            let attributes = attribute::explain(&config, name);
            let question = Question { connection, base, user: attributes.user() };
            let found = question.values(&attributes, attribute);
            if found.places.len() > 1 {
                let own = user.attributes.0.iter().find(|(a, _)| a.as_str() == attribute.as_str());
                let span = own.map_or(name.span(), |(a, _)| a.span());
                let message = format!(
                    "user `{}` is ambiguous for `{}`: `{attribute}` leads to {}",
                    **name,
                    connection.name,
                    question.leads(&found.places)
                );
                problems.error(span, message).help("leave one value, or one environment for all of them");
            }
        }
    }
    warn_of_misses(&config, &file, &mut problems);
    Draft { config, file, problems, outside }
}

/// Values in the file that nearly are a known one, and those that no base knows; each once.
fn warn_of_misses(
    config: &Config,
    file: &crate::config::file::File,
    problems: &mut crate::config::problems::Problems,
) {
    let users = file.users.0.iter().flat_map(|(_, u)| u.attributes.0.iter().map(|(n, v)| (n.as_str(), v)));
    let groups = file.groups.0.iter().flat_map(|(_, g)| g.attributes.0.iter().map(|(n, v)| (n.as_str(), v)));
    let defaults = file.attributes.0.iter().filter_map(|(n, a)| Some((n.as_str(), a.default.as_ref()?)));
    let mut told = BTreeSet::new();
    for (attribute, values) in users.chain(groups).chain(defaults) {
        let bases = config.connections.values().filter_map(|c| Some((c, c.base.as_ref()?)));
        let picking = |base: &Base| base.attribute.as_ref().is_some_and(|a| a.as_str() == attribute);
        let bases: Vec<_> = bases.filter(|(_, base)| picking(base)).collect();
        for value in &values.0 {
            let is_known = bases.iter().any(|(_, base)| {
                base.known_values().any(|known| known == value.as_str()) || base.near_miss(value).is_some()
            });
            if !bases.is_empty() && !is_known && told.insert((attribute, value.as_str())) {
                let message = format!("attribute value {:?} matches no environment of any database", **value);
                problems
                    .warning(value.span(), message)
                    .help(format!("list it in `values` of an environment that {attribute} picks"));
            }
        }
        for (connection, base) in bases {
            for value in &values.0 {
                if let Some(known) = base.near_miss(value) {
                    let message = format!(
                        "attribute value {:?} matches no environment of `{}`",
                        **value, connection.name
                    );
                    problems.warning(value.span(), message).help(format!("did you mean {known:?}?"));
                }
            }
        }
    }
}
