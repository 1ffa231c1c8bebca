//! The leak oracle: sessions that share few connections do random things to them, and a model knows what each of them
//! must see. Every look shows all of it, so that anything of another's would be seen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::house::{Pgusher, Random, pair, size, warehouse};
use super::wire::{Message, Raw, bind, close_statement, execute, parse, query, sync};

const SESSIONS: usize = 10;
const CONNECTIONS: usize = 4;
const SEED: u64 = 0x0ac1e;

/// The settings that are looked at, with values that differ from session to session or not (`@` is the session).
const SETTINGS: [(&str, &[&str]); 8] = [
    ("work_mem", &["1MB", "2MB", "3MB"]),
    ("search_path", &["pg_catalog", "public", "oracle_@, public"]),
    ("my.x", &["one of @", "it''s of @", "ü of @"]),
    ("DateStyle", &["ISO, DMY", "German, DMY", "SQL, MDY"]),
    ("TimeZone", &["UTC", "Asia/Tokyo", "America/New_York"]),
    ("application_name", &["app @", "other app @", "same"]),
    ("statement_timeout", &["1min", "2min"]),
    ("role", &["plain"]),
];
const ROLE: usize = 7;

type Values = [String; SETTINGS.len()];

/// What one session must see.
#[derive(Clone)]
struct Model {
    startup: Values,
    now: Values,
    temporary: BTreeSet<String>,
    locks: BTreeSet<usize>,
    channels: BTreeSet<String>,
    /// By SQL.
    prepared: BTreeSet<String>,
    cursors: BTreeSet<String>,
    /// By the protocol, with what they answer.
    named: BTreeMap<String, String>,
}

impl Model {
    fn new(startup: Values) -> Self {
        Self {
            now: startup.clone(),
            startup,
            temporary: BTreeSet::new(),
            locks: BTreeSet::new(),
            channels: BTreeSet::new(),
            prepared: BTreeSet::new(),
            cursors: BTreeSet::new(),
            named: BTreeMap::new(),
        }
    }

    fn is_pinned(&self) -> bool {
        let kept = [&self.temporary, &self.prepared, &self.cursors];
        !self.locks.is_empty() || kept.iter().any(|set| !set.is_empty())
    }

    fn expected(&self, all_of_it: bool) -> String {
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(",");
        let mut all = self.now.join("|");
        let user = if self.now[ROLE] == "none" { "app" } else { &self.now[ROLE] };
        let _ = write!(all, "|{user}|app");
        if !all_of_it {
            return all;
        }
        let _ = write!(all, "|{}|{}", list(&self.temporary), self.locks.len());
        let _ = write!(all, "|{}|{}|{}", list(&self.channels), list(&self.prepared), list(&self.cursors));
        all
    }
}

/// The look at everything, or at what is cheap to look at.
fn look(all_of_it: bool) -> String {
    let settings: Vec<_> =
        SETTINGS.iter().map(|(name, _)| format!("coalesce(current_setting('{name}', true), '')")).collect();
    let list = |what: &str, from: &str| {
        format!("coalesce((SELECT string_agg({what}, ',' ORDER BY {what} COLLATE \"C\") FROM {from}), '')")
    };
    let mut parts = vec![settings.join("||'|'||"), "current_user".into(), "session_user".into()];
    let objects = [
        list("relname::text", "pg_class WHERE relnamespace = pg_my_temp_schema() AND relkind = 'r'"),
        "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())".into(),
        list("c", "pg_listening_channels() AS c"),
        list("name", "pg_prepared_statements WHERE from_sql"),
        list("name", "pg_cursors WHERE is_holdable"),
    ];
    if all_of_it {
        parts.extend(objects);
    }
    format!("SELECT pg_backend_pid(), {}", parts.join("||'|'||"))
}

struct Session<'a> {
    number: usize,
    pgusher: &'a Pgusher,
    shared: &'a Shared,
    random: Random,
    raw: Raw,
    model: Model,
    may_pin: bool,
    history: Vec<String>,
    looks: usize,
}

/// What all sessions share.
#[derive(Default)]
struct Shared {
    defaults: Values,
    pins: AtomicUsize,
    last: Mutex<HashMap<String, usize>>,
    hand_overs: AtomicUsize,
}

impl<'a> Session<'a> {
    fn new(number: usize, pgusher: &'a Pgusher, shared: &'a Shared) -> Self {
        let mut random = Random(SEED + number as u64);
        let (raw, startup) = arrive(number, pgusher, shared, &mut random);
        let (model, history) = (Model::new(startup), Vec::new());
        Self { number, pgusher, shared, random, raw, model, may_pin: false, history, looks: 0 }
    }

    fn value(&mut self, setting: usize) -> String {
        self.random.of(SETTINGS[setting].1).replace('@', &self.number.to_string())
    }

    fn ask(&mut self, sql: &str) -> Vec<Message> {
        self.history.push(sql.to_owned());
        let extended = !sql.contains(';') && self.random.chance(40);
        let bytes = if extended {
            [parse("", sql), bind("", "", &[]), execute(), sync()].concat()
        } else {
            query(sql)
        };
        self.raw.ask(&bytes)
    }

    /// It must work.
    fn run(&mut self, sql: &str) -> Vec<Message> {
        let answer = self.ask(sql);
        let error = answer.iter().find(|m| m.tag == 'E').map(|m| m.field('M'));
        assert_eq!(error, None, "{}", self.context());
        answer
    }

    fn context(&self) -> String {
        let recent = &self.history[self.history.len().saturating_sub(12)..];
        format!("seed {SEED:#x}, session {}, after:\n{}", self.number, recent.join("\n"))
    }

    /// True if it may do what keeps its connection: one connection must be left to the others.
    fn take_pin(&mut self) -> bool {
        if !self.may_pin {
            let free = |pins| (pins < CONNECTIONS - 1).then_some(pins + 1);
            self.may_pin = self.shared.pins.fetch_update(Ordering::SeqCst, Ordering::SeqCst, free).is_ok();
        }
        self.may_pin
    }

    fn give_pin(&mut self) {
        if self.may_pin && !self.model.is_pinned() {
            self.may_pin = false;
            self.shared.pins.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn step(&mut self) {
        match self.random.below(26) {
            0..=4 => self.set(),
            5..=7 => self.transaction(),
            8 | 9 => self.reset(),
            10 => self.reset_all(),
            11 | 12 => self.temporary(),
            13 | 14 => self.lock(),
            15 | 16 => self.channel(),
            17..=19 => self.protocol_statement(),
            20 => self.sql_statement(),
            21 => self.cursor(),
            22 | 23 => self.sequence(),
            24 => self.leave(),
            _ => self.unnamed(),
        }
        self.look();
        self.give_pin();
    }

    fn look(&mut self) {
        let all_of_it = self.random.chance(20);
        let sql = look(all_of_it);
        let answer = if self.random.chance(30) {
            let messages = [parse("", &sql), bind("", "", &[]), execute(), sync()];
            self.raw.ask(&messages.concat())
        } else {
            self.raw.ask(&query(&sql))
        };
        let Some(row) = answer.iter().find(|m| m.tag == 'D') else {
            panic!("{answer:?} {}", self.context());
        };
        let columns = row.columns();
        let expected = self.model.expected(all_of_it);
        if columns[1] != expected {
            let pin = self.raw.value("SHOW pgusher.pin");
            assert_eq!(columns[1], expected, "pinned by {pin:?}, {}", self.context());
        }
        let last = self.shared.last.lock().unwrap().insert(columns[0].clone(), self.number);
        if last.is_some_and(|last| last != self.number) {
            self.shared.hand_overs.fetch_add(1, Ordering::Relaxed);
        }
        self.looks += 1;
    }

    /// One `SET` of the session, in some form; answers the statement.
    fn a_set(&mut self) -> (usize, String, String) {
        let setting = self.random.below(SETTINGS.len());
        let value = self.value(setting);
        let name = SETTINGS[setting].0;
        let sql = match (setting, self.random.below(5)) {
            (ROLE, 0) => format!("SET ROLE {value}"),
            (1, 0 | 1) => format!("SET SESSION {name} TO {value}"),
            (_, 0 | 1) => format!("SET {name} = '{value}'"),
            // A function does it, by itself or by SQL that it is given: only of the latter is no list of names like my.x.
            (_, 2) => format!("SELECT public.oracle_set_{setting}('{value}')"),
            (_, 3) if name != "my.x" => {
                let command = format!("SELECT set_config('{name}', '{value}', false)");
                format!("SELECT public.oracle_run('{}')", command.replace('\'', "''"))
            }
            _ => format!("SELECT set_config('{name}', '{value}', false)"),
        };
        (setting, value.replace("''", "'"), sql)
    }

    fn set(&mut self) {
        let (setting, value, sql) = self.a_set();
        self.run(&sql);
        self.model.now[setting] = value;
    }

    fn transaction(&mut self) {
        let before = self.model.now.clone();
        self.run("BEGIN");
        for _ in 0..=self.random.below(3) {
            if self.random.chance(30) {
                self.run("SET LOCAL work_mem = '77MB'");
                self.run("SELECT set_config('my.local', 'x', true)");
            }
            let (setting, value, sql) = self.a_set();
            self.run(&sql);
            self.model.now[setting] = value;
            if self.random.chance(20) {
                // What was set in the savepoint's time is taken back with it.
                let kept = self.model.now.clone();
                self.run("SAVEPOINT s");
                let (_, _, sql) = self.a_set();
                self.run(&sql);
                self.run("ROLLBACK TO s");
                self.model.now = kept;
            }
        }
        // SET LOCAL of the end was the last of its setting.
        let work_mem = self.model.now[0].clone();
        self.run(&format!("SET work_mem = '{work_mem}'"));
        match self.random.below(3) {
            0 => drop(self.run("COMMIT")),
            1 => {
                self.run("ROLLBACK");
                self.model.now = before;
            }
            _ => {
                self.ask("SELECT 1/0");
                self.run("COMMIT");
                self.model.now = before;
            }
        }
    }

    fn reset(&mut self) {
        let setting = self.random.below(SETTINGS.len());
        self.run(&format!("RESET {}", SETTINGS[setting].0));
        self.model.now[setting] = self.model.startup[setting].clone();
    }

    fn reset_all(&mut self) {
        let role = self.model.now[ROLE].clone();
        if self.random.chance(50) {
            self.run("RESET ALL");
            self.model.now = self.model.startup.clone();
            self.model.now[ROLE] = role;
        } else {
            self.run("DISCARD ALL");
            self.model = Model::new(self.model.startup.clone());
        }
    }

    fn temporary(&mut self) {
        let name = format!("t_{}_{}", self.number, self.random.below(2));
        if self.model.now[ROLE] != "none" {
            // What it has made as another it may not drop.
            return;
        }
        if self.model.temporary.remove(&name) {
            self.run(&format!("DROP TABLE pg_temp.{name}"));
        } else if self.take_pin() {
            match self.random.below(3) {
                0 => {
                    self.run(&format!("BEGIN; CREATE TEMP TABLE {name} (a int) ON COMMIT DROP; COMMIT"));
                }
                1 => drop(self.run(&format!("BEGIN; CREATE TEMP TABLE {name} (a int); ROLLBACK"))),
                _ => {
                    self.run(&format!("CREATE TEMP TABLE {name} AS SELECT 1 AS a"));
                    self.model.temporary.insert(name);
                }
            }
        }
    }

    fn lock(&mut self) {
        let key = self.number * 100 + self.random.below(3);
        if self.random.chance(20) {
            self.run("SELECT pg_advisory_unlock_all()");
            self.model.locks.clear();
        } else if self.model.locks.remove(&key) {
            self.run(&format!("SELECT pg_advisory_unlock({key})"));
        } else if self.take_pin() {
            self.run(&format!("SELECT pg_advisory_lock({key})"));
            self.model.locks.insert(key);
        }
    }

    fn channel(&mut self) {
        let name = format!("c_{}_{}", self.number, self.random.below(3));
        if self.random.chance(15) {
            self.run("UNLISTEN *");
            self.model.channels.clear();
        } else if self.model.channels.remove(&name) {
            self.run(&format!("UNLISTEN {name}"));
        } else {
            self.run(&format!("LISTEN {name}"));
            self.model.channels.insert(name.clone());
            let answer = self.run(&format!("NOTIFY {name}, 'mine'"));
            let heard: Vec<_> = answer.iter().filter(|m| m.tag == 'A').collect();
            assert_eq!(heard.len(), 1, "{answer:?} {}", self.context());
        }
    }

    fn protocol_statement(&mut self) {
        let name = format!("s{}", self.random.below(4));
        let nonce = format!("{}-{}", self.number, self.looks);
        let known = self.model.named.get(&name).cloned();
        let run = [bind("", &name, &[]), execute(), sync()].concat();
        let first = |answer: &[Message]| answer.iter().find(|m| m.tag == 'D').map(|m| m.columns().remove(0));
        match (known, self.random.below(4)) {
            (Some(_), 0) => {
                assert_eq!(self.raw.tags(&[close_statement(&name), sync()].concat()), "3Z");
                self.model.named.remove(&name);
            }
            (Some(text), _) => {
                let answer = self.raw.ask(&run);
                assert_eq!(first(&answer), Some(text), "{name}: {answer:?} {}", self.context());
            }
            (None, 0) => {
                let answer = self.raw.ask(&run);
                assert_eq!(answer[0].field('C'), "26000", "{name}: {answer:?} {}", self.context());
            }
            (None, _) => {
                // Some texts are everybody's.
                let nonce = if self.random.chance(50) { "everybody".into() } else { nonce };
                let answer = self.raw.ask(&[parse(&name, &format!("SELECT '{nonce}'")), sync()].concat());
                assert_eq!(answer[0].tag, '1', "{answer:?} {}", self.context());
                self.model.named.insert(name, nonce);
            }
        }
    }

    fn sql_statement(&mut self) {
        let name = format!("p_{}", self.random.below(2));
        if self.model.prepared.remove(&name) {
            let answer = self.run(&format!("EXECUTE {name}"));
            assert!(answer.iter().any(|m| m.tag == 'D' && m.columns() == [self.number.to_string()]));
            self.run(&format!("DEALLOCATE {name}"));
        } else if self.take_pin() {
            self.run(&format!("PREPARE {name} AS SELECT '{}'", self.number));
            self.model.prepared.insert(name);
        }
    }

    fn cursor(&mut self) {
        let name = format!("h_{}", self.random.below(2));
        if self.model.cursors.remove(&name) {
            self.run(&format!("CLOSE {name}"));
        } else if self.take_pin() {
            self.run(&format!("DECLARE {name} CURSOR WITH HOLD FOR SELECT '{}'", self.number));
            self.model.cursors.insert(name);
        }
    }

    /// Each has its own sequence, in a range of its own: a last value of another's would be seen.
    fn sequence(&mut self) {
        let sql = if self.random.chance(50) {
            format!("SELECT nextval('public.oracle_seq_{}')", self.number)
        } else {
            "SELECT lastval()".to_owned()
        };
        let answer = self.ask(&sql);
        match answer.iter().find(|m| m.tag == 'D') {
            Some(row) => {
                let value: usize = row.columns()[0].parse().unwrap();
                assert_eq!(value / 1_000_000_000, self.number + 1, "{}", self.context());
            }
            None => {
                let unknown = answer.iter().any(|m| m.tag == 'E' && m.field('C') == "55000");
                assert!(unknown, "{answer:?} {}", self.context());
            }
        }
    }

    fn leave(&mut self) {
        self.history.push("left".into());
        match self.random.below(3) {
            0 => self.raw.send(&super::wire::message('X', b"")),
            1 => drop(self.run("BEGIN; SET work_mem = '66MB'")),
            _ => {}
        }
        // Before the next login, which may have to wait for the connection that this one keeps.
        let _ = self.raw.stream.shutdown(std::net::Shutdown::Both);
        let (raw, startup) = arrive(self.number, self.pgusher, self.shared, &mut self.random);
        self.raw = raw;
        self.model = Model::new(startup);
    }

    fn unnamed(&mut self) {
        let nonce = format!("{}-{}", self.number, self.looks);
        let parse = [parse("", &format!("SELECT '{nonce}'")), sync()].concat();
        assert_eq!(self.raw.tags(&parse), "1Z");
        let answer = self.raw.ask(&[bind("", "", &[]), execute(), sync()].concat());
        assert!(answer.iter().any(|m| m.tag == 'D' && m.columns() == [nonce.clone()]), "{answer:?}");
    }
}

/// Logs in, with some settings of its own at startup.
fn arrive(number: usize, pgusher: &Pgusher, shared: &Shared, random: &mut Random) -> (Raw, Values) {
    let mut startup = shared.defaults.clone();
    let mut options = String::new();
    for setting in [0, 2, 3, 6] {
        if random.chance(30) {
            let value = random.of(SETTINGS[setting].1).replace('@', &number.to_string()).replace("''", "'");
            let _ = write!(options, " -c {}={}", SETTINGS[setting].0, value.replace(' ', "\\ "));
            startup[setting] = value;
        }
    }
    startup[5] = format!("started {number}");
    let pairs = [
        ("user", "raw"),
        ("database", "warehouse"),
        ("application_name", &startup[5]),
        ("client_encoding", "UTF8"),
        ("options", &options),
    ];
    (Raw::login_with(pgusher.address(), 0x0003_0000, &pairs), startup)
}

#[test]
fn nobody_ever_sees_what_another_session_has_done() {
    let goal = size(12_000, 1_000_000);
    // One that has left may still be counted when its place is taken.
    let dev = &pair().dev;
    for (number, (name, _)) in SETTINGS.iter().enumerate() {
        let body = format!("BEGIN RETURN set_config('{name}', v, false); END");
        let function = format!("oracle_set_{number}(v text) RETURNS text LANGUAGE plpgsql AS $${body}$$");
        dev.sql("dev", &format!("CREATE FUNCTION {function}"));
    }
    let body = "BEGIN EXECUTE command; END";
    dev.sql(
        "dev",
        &format!("CREATE FUNCTION oracle_run(command text) RETURNS void LANGUAGE plpgsql AS $${body}$$"),
    );
    let server = format!(
        "default_pool_size = {CONNECTIONS}\nmax_prepared_statements = 20\nmax_pinned = {SESSIONS}\nquery_wait_notify = \"0s\""
    );
    let pgusher = Pgusher::start(&warehouse(&server, "", ""));
    for number in 0..SESSIONS {
        let sequence = format!(
            "CREATE SEQUENCE oracle_seq_{number} START {start} MINVALUE {start}; GRANT ALL ON oracle_seq_{number} TO public",
            start = (number + 1) * 1_000_000_000
        );
        pair().dev.sql("dev", &sequence);
    }
    let mut shared = Shared::default();
    let mut raw = Raw::login(pgusher.address(), "raw");
    // The first question that ever comes from a user may be answered with another's value, if its transaction has run something else
    // (docs/transaction-pooling.md): here it is asked before.
    raw.value("SELECT lastval()");
    for (i, (name, _)) in SETTINGS.iter().enumerate() {
        shared.defaults[i] = raw.value(&format!("SELECT coalesce(current_setting('{name}', true), '')"));
    }
    drop(raw);
    let begun = Instant::now();
    let looks: usize = std::thread::scope(|scope| {
        let shared = &shared;
        let pgusher = &pgusher;
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|number| {
                scope.spawn(move || {
                    let mut session = Session::new(number, pgusher, shared);
                    while shared.hand_overs.load(Ordering::Relaxed) < goal {
                        session.step();
                    }
                    session.looks
                })
            })
            .collect();
        sessions.into_iter().map(|session| session.join().unwrap()).sum()
    });
    let hand_overs = shared.hand_overs.load(Ordering::Relaxed);
    println!(
        "seed {SEED:#x}: {hand_overs} hand-overs, {looks} looks in {:?}, nothing of another's",
        begun.elapsed()
    );
    assert!(hand_overs >= goal, "{hand_overs} hand-overs");
    for number in 0..SESSIONS {
        dev.sql("dev", &format!("DROP SEQUENCE oracle_seq_{number}"));
    }
    for number in 0..SETTINGS.len() {
        dev.sql("dev", &format!("DROP FUNCTION oracle_set_{number}"));
    }
    dev.sql("dev", "DROP FUNCTION oracle_run");
}
