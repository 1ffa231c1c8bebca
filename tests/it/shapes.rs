//! Statements whose tables, types and functions change between their preparation and their use: behind a pool, with others who use
//! the same texts, a client gets what it gets directly. Never is a parameter or a row read as another type than it was told.

use std::net::SocketAddr;

use super::differential::{normal, shown};
use super::house::{Pgusher, pair, size, warehouse};
use super::state::done;
use super::wire::{Message, Raw, close_statement, describe_statement, execute, message, parse, query, sync};

/// What is prepared before something changes: its name, its text, and the parameters in binary.
const PREPARED: [(&str, &str, &[&[u8]]); 6] = [
    ("all", "SELECT * FROM shaped ORDER BY 1", &[]),
    ("one", "SELECT a FROM shaped WHERE a = $1 ORDER BY 1", &[&7_i32.to_be_bytes()]),
    ("add", "INSERT INTO shaped (a) VALUES ($1)", &[&1_078_530_011_i32.to_be_bytes()]),
    ("back", "INSERT INTO shaped (a) VALUES ($1) RETURNING a", &[&9_i32.to_be_bytes()]),
    ("call", "SELECT shaped_f()", &[]),
    ("mood", "SELECT m::text FROM shaped_moods WHERE m = $1 ORDER BY 1", &[b"sad"]),
];

/// What changes meanwhile.
const CHANGES: [&str; 12] = [
    "ALTER TABLE shaped ALTER a TYPE bigint",
    "ALTER TABLE shaped ALTER a TYPE float4",
    "ALTER TABLE shaped ALTER b TYPE varchar(20)",
    "ALTER TABLE shaped ADD c int DEFAULT 3",
    "ALTER TABLE shaped DROP b",
    "ALTER TABLE shaped RENAME b TO d",
    "DROP TABLE shaped; CREATE TABLE shaped (a int, b text); INSERT INTO shaped VALUES (7, 'remade')",
    "DROP TABLE shaped; CREATE TABLE shaped (a text, z date); INSERT INTO shaped VALUES ('7', '2026-01-01')",
    "DROP TABLE shaped",
    "ALTER TYPE shaped_mood ADD VALUE 'new' BEFORE 'sad'",
    "DROP FUNCTION shaped_f(); CREATE FUNCTION shaped_f() RETURNS bigint LANGUAGE sql AS 'SELECT 7::bigint'",
    "CREATE OR REPLACE FUNCTION shaped_f() RETURNS int LANGUAGE sql AS 'SELECT 8'",
];

/// The same by the session itself, in the session.
const OWN_CHANGES: [&str; 3] = [
    "CREATE TEMP TABLE shaped (a int, b text)",
    "CREATE TEMP TABLE shaped AS SELECT 'temporary'::text AS a, 1 AS b",
    "ALTER TABLE shaped ADD own int DEFAULT 5",
];

const MADE: &str = "DROP TABLE IF EXISTS shaped, shaped_moods; DROP TYPE IF EXISTS shaped_mood; \
    DROP FUNCTION IF EXISTS shaped_f(); CREATE TYPE shaped_mood AS ENUM ('sad', 'ok'); \
    CREATE TABLE shaped (a int, b text); ALTER TABLE shaped OWNER TO app; INSERT INTO shaped VALUES (7, 'seven'), (8, 'eight'); \
    CREATE TABLE shaped_moods (m shaped_mood); INSERT INTO shaped_moods VALUES ('ok'), ('sad'); GRANT ALL ON shaped_moods TO app; \
    CREATE FUNCTION shaped_f() RETURNS int LANGUAGE sql AS 'SELECT 7'";

/// A `Bind` of the unnamed portal, all of it in binary.
fn bind(name: &str, parameters: &[&[u8]]) -> Vec<u8> {
    let mut body = [b"\0", name.as_bytes(), &[0, 0, 1, 0, 1]].concat();
    body.extend(u16::try_from(parameters.len()).unwrap().to_be_bytes());
    for parameter in parameters {
        body.extend(u32::try_from(parameter.len()).unwrap().to_be_bytes());
        body.extend_from_slice(parameter);
    }
    body.extend([0, 1, 0, 1]);
    message('B', &body)
}

fn uses(name: &str, parameters: &[&[u8]]) -> Vec<u8> {
    [bind(name, parameters), execute()].concat()
}

/// How the victim uses its statements behind the change.
#[derive(Debug, Clone, Copy)]
enum Use {
    Alone,
    InTransaction,
    Pipelined,
    /// It asks what it is first.
    Described,
}

const USES: [Use; 4] = [Use::Alone, Use::InTransaction, Use::Pipelined, Use::Described];

/// The client's conversation: it prepares, something changes, it uses what it has prepared, twice, prepares it anew, and uses that.
/// `elsewhere` is called where another connection may be lent to it.
fn conversation(
    raw: &mut Raw,
    change: &mut dyn FnMut(&mut Raw),
    how: Use,
    elsewhere: &mut dyn FnMut(),
) -> Vec<Vec<Message>> {
    let mut answers = Vec::new();
    for (name, text, parameters) in PREPARED {
        answers.push(raw.ask(&[parse(name, text), describe_statement(name), sync()].concat()));
        elsewhere();
        if name != "add" && name != "back" {
            answers.push(raw.ask(&[uses(name, parameters), sync()].concat()));
        }
    }
    elsewhere();
    change(raw);
    for _ in 0..2 {
        for (name, _, parameters) in PREPARED {
            elsewhere();
            let used = uses(name, parameters);
            match how {
                Use::Alone => answers.push(raw.ask(&[used, sync()].concat())),
                Use::InTransaction => {
                    answers.push(raw.ask(&query("BEGIN")));
                    answers.push(raw.ask(&[used, sync()].concat()));
                    answers.push(raw.ask(&query("COMMIT")));
                }
                Use::Pipelined => {
                    raw.send(&[used.clone(), sync(), used, sync()].concat());
                    answers.extend([raw.until_ready(), raw.until_ready()]);
                }
                Use::Described => {
                    answers.push(raw.ask(&[describe_statement(name), used, sync()].concat()));
                }
            }
        }
    }
    for (name, text, _) in PREPARED {
        elsewhere();
        answers.push(
            raw.ask(&[close_statement(name), parse(name, text), describe_statement(name), sync()].concat()),
        );
    }
    for (name, _, parameters) in PREPARED.iter().filter(|(_, _, parameters)| parameters.is_empty()) {
        elsewhere();
        answers.push(raw.ask(&[uses(name, parameters), sync()].concat()));
    }
    answers.push(raw.ask(&query("SELECT * FROM shaped ORDER BY 1")));
    answers.into_iter().map(|answer| answer.into_iter().map(normal).map(of_any_number).collect()).collect()
}

/// A type that is made anew for each conversation has another number in each.
fn of_any_number(mut message: Message) -> Message {
    if message.tag == 't' {
        for oid in message.body[2..].chunks_mut(4) {
            if u32::from_be_bytes(oid.try_into().unwrap()) >= 16384 {
                oid.fill(0xff);
            }
        }
    }
    message
}

/// Seven who use the same texts: now these, now those hold connections, and each prepares anew what fails.
struct Others {
    raws: Vec<Raw>,
    turn: usize,
    holds: usize,
    holding: Vec<usize>,
}

impl Others {
    fn new(pgusher: &Pgusher, holds: usize) -> Self {
        let raws = (0..7).map(|_| Raw::login(pgusher.address(), "raw")).collect();
        Self { raws, turn: 0, holds, holding: Vec::new() }
    }

    fn turn(&mut self) {
        for held in self.holding.drain(..) {
            done(&mut self.raws[held], "COMMIT");
        }
        let count = self.raws.len();
        for _ in 0..self.holds {
            self.turn = (self.turn + 1) % count;
            if !self.holding.contains(&self.turn) {
                done(&mut self.raws[self.turn], "BEGIN");
                self.holding.push(self.turn);
            }
        }
        self.turn = (self.turn + 3) % count;
        let (name, text, parameters) = PREPARED[self.turn % PREPARED.len()];
        if self.holding.contains(&self.turn) || name == "add" || name == "back" {
            return;
        }
        let raw = &mut self.raws[self.turn];
        let answer = raw.ask(&[uses(name, parameters), sync()].concat());
        if answer.iter().any(|message| message.tag == 'E') {
            raw.ask(&[close_statement(name), parse(name, text), sync()].concat());
        }
    }
}

fn compare(change: &str, own: bool, how: Use) {
    let dev = &pair().dev;
    let direct: SocketAddr = ([127, 0, 0, 1], dev.port).into();
    dev.sql("dev", MADE);
    let mut raw = Raw::login_with(direct, 0x0003_0000, &[("user", "app"), ("database", "dev")]);
    let by_whom = |raw: &mut Raw| match own {
        true => drop(done(raw, change)),
        false => drop(dev.sql("dev", change)),
    };
    let expected = conversation(&mut raw, &mut { by_whom }, how, &mut || ());
    drop(raw);
    for pool_size in [1, 2, 5] {
        dev.sql("dev", MADE);
        let pgusher =
            Pgusher::start(&warehouse(&format!("default_pool_size = {pool_size}\nmax_pinned = 1"), "", ""));
        // Who has a temporary table keeps its connection, and with only one nobody else has any.
        let left = pool_size - usize::from(own);
        let mut others = Others::new(&pgusher, left.saturating_sub(1));
        let mut raw = Raw::login(pgusher.address(), "raw");
        let mut elsewhere = || {
            if left > 0 {
                others.turn();
            }
        };
        let got = conversation(&mut raw, &mut { by_whom }, how, &mut elsewhere);
        for (number, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_eq!(
                shown(got),
                shown(expected),
                "{change}, {how:?}, {pool_size} connections: answer {number} of {}",
                expected.len()
            );
        }
        assert_eq!(got.len(), expected.len());
    }
}

/// One after the other, as all are about the same tables.
#[test]
fn a_statement_keeps_its_types_whatever_changes_behind_it() {
    let changes =
        CHANGES.map(|change| (change, false)).into_iter().chain(OWN_CHANGES.map(|change| (change, true)));
    for (number, (change, own)) in changes.enumerate() {
        // Each in another way, or each in all of them.
        (0..size(1, USES.len())).for_each(|way| compare(change, own, USES[(number + way) % USES.len()]));
    }
    pair().dev.sql("dev", &MADE[..MADE.find("CREATE").unwrap()]);
}

/// In one pipeline, behind so many others that the connection has it no more.
#[test]
fn a_type_is_kept_within_a_pipeline_that_changes_it() {
    let dev = &pair().dev;
    let direct: SocketAddr = ([127, 0, 0, 1], dev.port).into();
    let batch = |others: usize| {
        let others = (0..others).map(|n| parse(&format!("b{n}"), "SELECT 1")).collect::<Vec<_>>().concat();
        [
            parse("add", "INSERT INTO piped VALUES ($1)"),
            parse("all", "SELECT * FROM piped"),
            others,
            parse("", "ALTER TABLE piped ALTER w TYPE float4"),
            message('B', &[0; 8]),
            execute(),
            uses("add", &[&1_i32.to_be_bytes()]),
            uses("all", &[]),
            sync(),
            query("SELECT * FROM piped"),
        ]
        .concat()
    };
    let run = |raw: &mut Raw, others: usize| -> Vec<Vec<String>> {
        dev.sql(
            "dev",
            "DROP TABLE IF EXISTS piped; CREATE TABLE piped (w int); ALTER TABLE piped OWNER TO app",
        );
        raw.send(&batch(others));
        let answers = [raw.until_ready(), raw.until_ready()];
        raw.ask(&query("DEALLOCATE ALL"));
        answers.map(|answer| shown(&answer.into_iter().map(normal).collect::<Vec<_>>())).into()
    };
    for (limit, others) in [(1, 1), (2, 5), (200, 205), (200, 3)] {
        let server = format!("default_pool_size = 1\nmax_prepared_statements = {limit}");
        let pgusher = Pgusher::start(&warehouse(&server, "", ""));
        let mut raw = Raw::login_with(direct, 0x0003_0000, &[("user", "app"), ("database", "dev")]);
        let expected = run(&mut raw, others);
        assert_eq!(run(&mut Raw::login(pgusher.address(), "raw"), others), expected, "{limit}, {others}");
    }
    dev.sql("dev", "DROP TABLE piped");
}
