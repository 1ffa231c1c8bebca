//! The settings of a session, and how an upstream connection gets them and loses them again.

use std::fmt::Write;
use std::sync::Arc;

use crate::bearing::{Bearing, Customs};
use wire::{identifier, literal};

/// Settings that PostgreSQL reports and a client cannot set: they are what the connection and its server are.
const READ_ONLY: [&str; 6] = [
    "server_version",
    "server_encoding",
    "integer_datetimes",
    "is_superuser",
    "session_authorization",
    "in_hot_standby",
];
/// How many settings of a client are carried from connection to connection, and how many bytes of names and values.
const MAX_CARRIED: usize = 256;
const MAX_CARRIED_BYTES: usize = 1 << 20;
const ROLE: &[u8] = b"role";
pub(crate) const AUTHORIZATION: &[u8] = b"session_authorization";
/// Ends a connection that is idle, whoever is lent it next.
const IDLE_TIMEOUT: &[u8] = b"idle_session_timeout";
const APPLICATION_NAME: &str = "application_name";
/// PostgreSQL cuts names, and so `application_name`, to this many bytes.
const NAME_LENGTH: usize = 63;

/// A setting and its value, shared by all who know it.
pub type Parameter = (Arc<[u8]>, Arc<[u8]>);

/// How many settings a server may report, and how many bytes of names and values: PostgreSQL has some 15 of them.
pub const MAX_REPORTED: usize = 64;
/// See [`MAX_REPORTED`].
pub const MAX_REPORTED_BYTES: usize = 64 << 10;

/// Names with their values, in no particular order; names differ in more than case.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Parameters(Vec<Parameter>);

impl Parameters {
    /// Of a list; a later value of a name wins.
    pub fn new(list: impl IntoIterator<Item = Parameter>) -> Self {
        let mut parameters = Self::default();
        list.into_iter().for_each(|(name, value)| parameters.set(&name, &value));
        parameters
    }

    /// The value of a name.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.0.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| &**value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.iter_mut().find(|(n, _)| n.eq_ignore_ascii_case(name)) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((name.into(), value.into())),
        }
    }

    /// These with one value changed.
    #[must_use]
    pub fn with(&self, name: &[u8], value: &[u8]) -> Self {
        let mut changed = Self(self.0.clone());
        changed.set(name, value);
        changed
    }

    /// These without one name.
    #[must_use]
    pub fn without(&self, name: &[u8]) -> Self {
        Self(self.0.iter().filter(|(n, _)| !n.eq_ignore_ascii_case(name)).cloned().collect())
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    /// Whether there are more of them than a server reports.
    fn is_too_much(&self) -> bool {
        self.0.len() > MAX_REPORTED || self.bytes() > MAX_REPORTED_BYTES
    }
}

/// What a session's settings are to be on whatever connection it is lent.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    /// Reported ones.
    reported: Arc<Parameters>,
    /// What an upstream connection must report for that: the same, unless `application_name` is decorated.
    wanted: Arc<Parameters>,
    /// What the client was last told.
    told: Arc<Parameters>,
    /// What `RESET` goes back to: the reported ones at login.
    startup: Arc<Parameters>,
    /// What the client has set and PostgreSQL does not report.
    extra: Arc<Parameters>,
    /// Those of them that it set at startup.
    startup_extra: Arc<Parameters>,
    /// ` [alice@prod]`, if the upstream is to see that.
    suffix: Option<Arc<str>>,
    lexable: bool,
    limits_idle: bool,
}

/// What is set on an upstream connection now.
#[derive(Debug, Clone)]
pub struct BackendSettings {
    reported: Arc<Parameters>,
    /// Whose session it was when it logged in, if it said so.
    user: Option<Arc<[u8]>>,
    extra: Arc<Parameters>,
    /// There may be others.
    doubted: bool,
    /// Plans may have been made under others.
    plans_doubted: bool,
}

impl BackendSettings {
    /// Of a connection that has just logged in.
    pub fn new(reported: Arc<Parameters>) -> Self {
        let user = reported.get(AUTHORIZATION).map(Arc::from);
        Self { reported, user, extra: Arc::default(), doubted: false, plans_doubted: false }
    }

    /// Whether it is the session of whom it has logged in as.
    pub fn is_own_session(&self) -> bool {
        self.reported.get(AUTHORIZATION) == self.user.as_deref()
    }

    /// What it last reported.
    pub fn reported(&self) -> &Arc<Parameters> {
        &self.reported
    }

    /// A `ParameterStatus` has come; false if the server has reported more than one does.
    #[must_use]
    pub fn report(&mut self, name: &[u8], value: &[u8]) -> bool {
        if self.reported.get(name) != Some(value) {
            self.reported = Arc::new(self.reported.with(name, value));
            return !self.reported.is_too_much();
        }
        true
    }

    /// The query that takes off it what ends it when it is idle, if that was set: it is off then.
    pub fn stay_when_idle(&mut self) -> Option<&'static str> {
        self.extra.get(IDLE_TIMEOUT)?;
        self.reset(IDLE_TIMEOUT);
        Some("RESET idle_session_timeout")
    }

    /// These beside the reported ones were set on it.
    pub fn extra_is(&mut self, extra: Arc<Parameters>) {
        self.extra = extra;
    }

    /// It may have settings that are not known of: all are reset before it is used again.
    pub fn doubt(&mut self) {
        self.doubted = true;
    }

    /// It may have plans that were made under other settings than its sessions': all are made anew before it is used again.
    pub fn doubt_plans(&mut self) {
        self.plans_doubted = true;
    }

    /// `DISCARD ALL`: nothing is left but what was set when it logged in.
    pub fn discard_all(&mut self) {
        (self.doubted, self.plans_doubted) = (false, false);
        self.extra = Arc::default();
    }

    /// A setting that is not reported has this value now.
    pub fn carry(&mut self, name: &[u8], value: &[u8]) {
        if self.extra.get(name) != Some(value) {
            self.extra = Arc::new(self.extra.with(name, value));
        }
    }

    /// A setting that is not reported is back at its default.
    pub fn reset(&mut self, name: &[u8]) {
        if self.extra.get(name).is_some() {
            self.extra = Arc::new(self.extra.without(name));
        }
    }
}

impl SessionSettings {
    /// At login: what is reported to the client, and what it set beside that.
    pub fn new(reported: Arc<Parameters>, extra: Arc<Parameters>, suffix: Option<Arc<str>>) -> Self {
        let wanted = decorated(&reported, suffix.as_deref());
        let (told, startup, startup_extra) = (reported.clone(), reported.clone(), extra.clone());
        let lexable = is_lexable(&reported);
        let limits_idle = extra.get(IDLE_TIMEOUT).is_some();
        Self { limits_idle, wanted, told, startup, reported, extra, startup_extra, suffix, lexable }
    }

    /// What the client is told at login.
    pub fn reported(&self) -> &Parameters {
        &self.reported
    }

    /// The settings that can tell in a prepared statement, with their values: part of its identity.
    pub fn scope(&self, customs: Customs) -> Parameters {
        scope(self.reported.iter().chain(self.extra.iter()), customs)
    }

    /// The role that it has taken, if it is to have one.
    pub fn role(&self) -> Option<&[u8]> {
        self.extra.get(ROLE).filter(|role| *role != b"none")
    }

    /// Whether it has taken a role.
    pub fn has_role(&self) -> bool {
        self.extra.get(ROLE).is_some()
    }

    /// Whether it has set, or had, a limit of its own for how long a session may be idle: no connection may keep that when nobody
    /// uses it.
    pub fn limits_idle(&self) -> bool {
        self.limits_idle
    }

    /// Its `search_path`, if it has set one.
    pub fn search_path(&self) -> Option<&[u8]> {
        self.extra.get(b"search_path")
    }

    /// Whether the lexer reads a text as the upstream does: not where a backslash escapes in every string, nor
    /// where the second byte of a character can be one.
    pub fn is_lexable(&self) -> bool {
        self.lexable
    }

    /// The reported settings have changed.
    fn report_all(&mut self, reported: Arc<Parameters>) {
        self.wanted = decorated(&reported, self.suffix.as_deref());
        // Once it was not, it is not again: a rolled back change is not reported before what stands behind it is read.
        self.lexable &= is_lexable(&reported);
        self.reported = reported;
    }

    /// A `ParameterStatus` of a connection that this session is lent; true if it is news to the client.
    pub fn report(&mut self, name: &[u8], value: &[u8]) -> bool {
        if self.reported.get(name) != Some(value) {
            self.report_all(Arc::new(self.reported.with(name, value)));
        }
        self.told(name, value)
    }

    /// The client has been told a value; true if that was news to it.
    pub fn told(&mut self, name: &[u8], value: &[u8]) -> bool {
        let news = self.told.get(name) != Some(value);
        if news {
            self.told = Arc::new(self.told.with(name, value));
        }
        news
    }

    /// A setting of which the client was told, with the value that it was told last.
    pub fn last_told(&self) -> Option<(&[u8], &[u8])> {
        self.told.iter().next()
    }

    /// A setting is back at the upstream's default; the session goes back to what it set at startup. The next
    /// connection is given that, and the client told.
    pub fn reset(&mut self, name: &[u8]) {
        if let Some(value) = self.startup.get(name) {
            self.report_all(Arc::new(self.reported.with(name, value)));
        } else if let Some(value) = self.startup_extra.get(name) {
            self.extra = Arc::new(self.extra.with(name, value));
        } else if self.extra.get(name).is_some() {
            self.extra = Arc::new(self.extra.without(name));
        }
    }

    /// A reported setting is back at the upstream's default; what the client is to be told of that, if anything.
    pub fn reset_reported(&mut self, name: &[u8]) -> Option<Arc<[u8]>> {
        let value: Arc<[u8]> = self.startup.get(name)?.into();
        self.reset(name);
        self.told(name, &value).then_some(value)
    }

    /// The client has set this, and PostgreSQL does not report it. False if there is more of it than is carried.
    #[must_use]
    pub fn carry(&mut self, name: &[u8], value: &[u8]) -> bool {
        if self.extra.get(name) == Some(value) {
            return true;
        }
        let extra = self.extra.with(name, value);
        self.limits_idle |= name.eq_ignore_ascii_case(IDLE_TIMEOUT);
        let may = extra.0.len() <= MAX_CARRIED && extra.bytes() <= MAX_CARRIED_BYTES;
        if may {
            self.extra = Arc::new(extra);
        }
        may
    }

    /// Whether it has set one at startup that PostgreSQL does not report.
    pub fn has_from_startup(&self, name: &[u8]) -> bool {
        self.startup_extra.get(name).is_some()
    }

    /// Whether PostgreSQL reports a setting.
    pub fn reports(&self, name: &[u8]) -> bool {
        self.startup.get(name).is_some()
    }

    /// Whether a client can change a setting that is reported; the others are as the connection is, and have no defaults.
    pub fn is_settable(name: &[u8]) -> bool {
        !READ_ONLY.iter().any(|read_only| read_only.as_bytes().eq_ignore_ascii_case(name))
    }

    /// The names of everything that a client can set and this session has: what `RESET ALL` may change.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let settable = |name: &&str| Self::is_settable(name.as_bytes());
        let names = self.startup.iter().chain(self.extra.iter()).chain(self.startup_extra.iter());
        names.filter_map(|(name, _)| str::from_utf8(name).ok()).filter(settable)
    }

    /// The names of what PostgreSQL does not report and is given to every connection.
    pub fn carried_names(&self) -> impl Iterator<Item = &str> {
        self.extra.iter().filter_map(|(name, _)| str::from_utf8(name).ok())
    }

    /// Whether a name is one whose decorated value the client must not be told.
    pub fn hides(&self, name: &[u8]) -> bool {
        self.suffix.is_some() && name == APPLICATION_NAME.as_bytes()
    }

    /// The statements that give a connection this session's settings, and have it plan anew where they tell in plans; `None`, at
    /// the cost of two comparisons of pointers, if it has them.
    pub fn setup(&self, backend: &mut BackendSettings, customs: Customs) -> Option<String> {
        let same_reported = Arc::ptr_eq(&self.wanted, &backend.reported);
        let same_extra = Arc::ptr_eq(&self.extra, &backend.extra);
        let in_doubt = backend.doubted || backend.plans_doubted;
        if same_reported && same_extra && !in_doubt {
            return None;
        }
        if !in_doubt && self.wanted == backend.reported && self.extra == backend.extra {
            (backend.reported, backend.extra) = (self.wanted.clone(), self.extra.clone());
            return None;
        }
        let mut sql = String::new();
        let is_role = |(name, _): &(&[u8], &[u8])| name.eq_ignore_ascii_case(ROLE);
        // Who may set a setting depends on the role: another one's is left first, and the own one taken last.
        if backend.extra.get(ROLE).is_some() {
            sql.push_str("RESET ROLE;");
        }
        let all = std::mem::take(&mut backend.doubted);
        let mut replans = std::mem::take(&mut backend.plans_doubted) || all;
        let mut tells = |name: &[u8]| replans |= Bearing::of(name, customs) == Bearing::Constants;
        if all {
            sql.push_str("RESET ALL;");
            backend.extra = Arc::default();
        }
        // One of an application's own that is empty is as good as reset.
        let is_nothing = |(name, value): &(&[u8], &[u8])| value.is_empty() && name.contains(&b'.');
        let foreign = backend.extra.iter().filter(|(name, _)| self.extra.get(name).is_none());
        let foreign = foreign.filter(|pair| !is_nothing(pair));
        for (name, _) in foreign.filter(|pair| !is_role(pair)) {
            tells(name);
            let _ = write!(sql, "RESET {};", dotted_identifier(&String::from_utf8_lossy(name)));
        }
        let changed = self.extra.iter().filter(|(name, value)| backend.extra.get(name) != Some(value));
        let reported = self.wanted.iter().filter(|(name, wanted)| {
            Self::is_settable(name) && backend.reported.get(name).is_some_and(|now| all || now != *wanted)
        });
        let settings = changed.filter(|pair| !is_role(pair)).chain(reported);
        let role = self.extra.get(ROLE).map(|role| (ROLE, role));
        let calls: Vec<String> =
            settings.chain(role).inspect(|(name, _)| tells(name)).map(set_config).collect();
        if replans {
            sql.push_str("DISCARD PLANS;");
        }
        if !calls.is_empty() {
            let _ = write!(sql, "SELECT {}", calls.join(","));
        }
        backend.extra = self.extra.clone();
        if sql.is_empty() {
            // Equal in all that matters: next time the pointers say so.
            backend.reported = self.wanted.clone();
            return None;
        }
        Some(sql)
    }

    /// After a setup: remembers, by the pointer, that the connection has what this session wants.
    pub fn settled(&self, backend: &mut BackendSettings) {
        if *self.wanted == *backend.reported {
            backend.reported = self.wanted.clone();
        }
    }
}

/// Those of these settings that can tell in a prepared statement, in order.
fn scope<'a>(settings: impl Iterator<Item = (&'a [u8], &'a [u8])>, customs: Customs) -> Parameters {
    let mut telling: Vec<(&[u8], &[u8])> =
        settings.filter(|(name, _)| Bearing::of(name, customs) > Bearing::None).collect();
    telling.sort_unstable();
    Parameters::new(telling.into_iter().map(|(name, value)| (name.into(), value.into())))
}

/// The call that gives a setting a value for the session.
pub fn set_config((name, value): (&[u8], &[u8])) -> String {
    format!("pg_catalog.set_config({},{},false)", literal(name), literal(value))
}

fn is_lexable(reported: &Parameters) -> bool {
    let is = |name: &[u8], values: &[&[u8]]| {
        reported.get(name).is_some_and(|v| values.iter().any(|known| v.eq_ignore_ascii_case(known)))
    };
    !is(b"standard_conforming_strings", &[b"off"])
        && !is(
            b"client_encoding",
            &[b"SJIS", b"BIG5", b"GBK", b"UHC", b"GB18030", b"JOHAB", b"SHIFT_JIS_2004"],
        )
}

fn dotted_identifier(name: &str) -> String {
    name.split('.').map(identifier).collect::<Vec<_>>().join(".")
}

fn decorated(reported: &Arc<Parameters>, suffix: Option<&str>) -> Arc<Parameters> {
    let Some(suffix) = suffix else { return reported.clone() };
    let name = reported.get(APPLICATION_NAME.as_bytes()).unwrap_or_default();
    let room = NAME_LENGTH.saturating_sub(suffix.len());
    let mut value = name[..name.len().min(room)].to_vec();
    value.extend_from_slice(suffix.as_bytes());
    value.truncate(NAME_LENGTH);
    let start = usize::from(name.is_empty());
    Arc::new(reported.with(APPLICATION_NAME.as_bytes(), &value[start.min(value.len())..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(list: &[(&str, &str)]) -> Arc<Parameters> {
        let pair = |(n, v): &(&str, &str)| (n.as_bytes().into(), v.as_bytes().into());
        Arc::new(Parameters::new(list.iter().map(pair)))
    }

    #[test]
    fn an_equal_connection_needs_nothing_and_is_remembered() {
        let session = SessionSettings::new(parameters(&[("TimeZone", "UTC")]), Arc::default(), None);
        let mut backend = BackendSettings::new(parameters(&[("TimeZone", "UTC")]));
        assert_eq!(session.setup(&mut backend, Customs::Unread), None);
        assert!(Arc::ptr_eq(&session.wanted, &backend.reported));
    }

    #[test]
    fn extra_settings_come_and_go() {
        let base = parameters(&[("TimeZone", "UTC")]);
        let with = SessionSettings::new(base.clone(), parameters(&[("work_mem", "1MB")]), None);
        let without = SessionSettings::new(base.clone(), Arc::default(), None);
        let mut backend = BackendSettings::new(base);
        let sql = with.setup(&mut backend, Customs::Unread).unwrap();
        assert_eq!(sql, "SELECT pg_catalog.set_config(E'work_mem',E'1MB',false)");
        assert_eq!(with.setup(&mut backend, Customs::Unread), None);
        assert_eq!(without.setup(&mut backend, Customs::Unread).as_deref(), Some("RESET \"work_mem\";"));
    }

    #[test]
    fn a_connection_in_doubt_is_reset_and_given_everything() {
        let base = parameters(&[("TimeZone", "UTC"), ("server_version", "17")]);
        let session = SessionSettings::new(base.clone(), parameters(&[("my.x", "1")]), None);
        let mut backend = BackendSettings::new(base);
        backend.carry(b"my.x", b"1");
        backend.doubt();
        let sql = session.setup(&mut backend, Customs::Unread).unwrap();
        let calls =
            "pg_catalog.set_config(E'my.x',E'1',false),pg_catalog.set_config(E'TimeZone',E'UTC',false)";
        assert_eq!(sql, format!("RESET ALL;DISCARD PLANS;SELECT {calls}"));
        assert_eq!(session.setup(&mut backend, Customs::Unread), None);
    }

    #[test]
    fn a_scope_is_the_same_in_whatever_order_its_settings_were_set() {
        let one = [("work_mem", "1MB"), ("application_name", "x"), ("TimeZone", "UTC"), ("a.b", "c")];
        let scoped = |order: &[usize], customs| {
            let pairs = order.iter().map(|at| (one[*at].0.as_bytes(), one[*at].1.as_bytes()));
            scope(pairs, customs)
        };
        assert_eq!(scoped(&[0, 1, 2, 3], Customs::Unread), scoped(&[3, 2, 1, 0], Customs::Unread));
        let names = |customs| {
            let scope = scoped(&[0, 1, 2, 3], customs);
            scope.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(Customs::Unread), ["TimeZone", "work_mem"]);
        assert_eq!(names(Customs::Read), ["TimeZone", "a.b", "work_mem"]);
    }

    /// What is in plans as a constant is not another session's.
    #[test]
    fn plans_are_made_anew_where_a_setting_that_tells_in_them_is_another() {
        let base = parameters(&[("TimeZone", "UTC"), ("application_name", "x")]);
        let session = |reported: &[(&str, &str)], extra: &[(&str, &str)]| {
            SessionSettings::new(parameters(reported), parameters(extra), None)
        };
        for (reported, extra, customs, replans) in [
            (&[("TimeZone", "Asia/Tokyo"), ("application_name", "x")], &[][..], Customs::Unread, true),
            (&[("TimeZone", "UTC"), ("application_name", "y")], &[], Customs::Unread, false),
            (
                &[("TimeZone", "UTC"), ("application_name", "x")],
                &[("work_mem", "1MB")],
                Customs::Unread,
                false,
            ),
            (&[("TimeZone", "UTC"), ("application_name", "x")], &[("my.x", "1")], Customs::Unread, false),
            (&[("TimeZone", "UTC"), ("application_name", "x")], &[("my.x", "1")], Customs::Read, true),
            (
                &[("TimeZone", "UTC"), ("application_name", "x")],
                &[("xmloption", "document")],
                Customs::Unread,
                true,
            ),
        ] {
            let (one, other) =
                (session(reported, extra), SessionSettings::new(base.clone(), Arc::default(), None));
            let mut backend = BackendSettings::new(base.clone());
            let sql = one.setup(&mut backend, customs).unwrap();
            assert_eq!(sql.contains("DISCARD PLANS;"), replans, "{sql}");
            // And on the way back.
            backend.reported = one.wanted.clone();
            let sql = other.setup(&mut backend, customs).unwrap();
            assert_eq!(sql.contains("DISCARD PLANS;"), replans, "{sql}");
        }
        let mut backend = BackendSettings::new(base.clone());
        let session = SessionSettings::new(base, Arc::default(), None);
        backend.doubt_plans();
        assert_eq!(session.setup(&mut backend, Customs::Unread).as_deref(), Some("DISCARD PLANS;"));
        assert_eq!(session.setup(&mut backend, Customs::Unread), None);
    }

    #[test]
    fn a_decorated_name_is_cut_to_63_bytes() {
        let name = "x".repeat(80);
        let session = SessionSettings::new(
            parameters(&[("application_name", &name)]),
            Arc::default(),
            Some(" [a@b]".into()),
        );
        let value = session.wanted.get(b"application_name").unwrap();
        assert_eq!(value.len(), 63);
        assert!(value.ends_with(b"x [a@b]"));
        let unnamed = SessionSettings::new(
            parameters(&[("application_name", "")]),
            Arc::default(),
            Some(" [a@b]".into()),
        );
        assert_eq!(unnamed.wanted.get(b"application_name"), Some(&b"[a@b]"[..]));
    }
}
