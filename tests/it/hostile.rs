//! What somebody may write into a query, into a function of his own database, or send as an upstream, so that pgusher is busy
//! with it, or reads it otherwise than PostgreSQL does: the process lives, and everybody else is served.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::console::{OPERATORS, console};
use super::fake::{self, FAKE_KEY, Fake, Peer, complete, login, ready, refused, row, unharmed};
use super::house::{Pgusher, eventually, pair, warehouse};
use super::state::done;
use super::wire::{Message, Raw, bind, close_statement, execute, message, query, sync};

const VERSION: u32 = 0x0003_0000;
/// The longest text that pgusher looks into.
const LONGEST: usize = 64 << 10;
const SESSION_MODE: &str = "[users.sess]\nauth_type = \"trust\"\npool_mode = \"session\"\n";

// ── those who have nothing to do with it ──

/// Others who work meanwhile: each of their logins, queries and console commands must end, and rightly.
struct Others {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<usize>>,
}

impl Others {
    /// Of prod, as this user and by this database name, and of the console.
    fn start(pgusher: &Pgusher, user: &'static str, database: &'static str) -> Self {
        let (address, stop) = (pgusher.address(), Arc::new(AtomicBool::new(false)));
        let logs_in = move || work(&mut prod(address, user, database));
        let mut stays = prod(address, user, database);
        let mut operator = console(pgusher, "operator");
        let asks = move || assert!(!done(&mut operator, "SHOW POOLS").is_empty());
        let threads = vec![
            repeat(&stop, logs_in),
            repeat(&stop, move || work(&mut stays)),
            repeat(&stop, asks),
            repeat(&stop, move || drop(operator_login(address))),
        ];
        Self { stop, threads }
    }

    /// All of it has ended, and there was some of each.
    fn end(self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads {
            assert!(thread.join().expect("somebody else was not served") > 0);
        }
    }
}

/// Again and again on a thread of its own; answers how often.
fn repeat(stop: &Arc<AtomicBool>, mut work: impl FnMut() + Send + 'static) -> JoinHandle<usize> {
    let stop = stop.clone();
    std::thread::spawn(move || {
        let mut times = 0;
        while times == 0 || !stop.load(Ordering::Acquire) {
            work();
            times += 1;
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        times
    })
}

fn prod(address: SocketAddr, user: &str, database: &str) -> Raw {
    Raw::login_with(address, VERSION, &[("user", user), ("database", database)])
}

fn work(raw: &mut Raw) {
    assert_eq!(raw.value("SELECT name FROM whoami"), "prod");
    done(raw, "BEGIN; SELECT 1; COMMIT");
}

fn operator_login(address: SocketAddr) -> Raw {
    Raw::login_with(address, VERSION, &[("user", "operator"), ("database", "pgusher")])
}

// ── queries ──

/// A tag of a dollar quote for each number, all different and short.
fn tag(number: usize) -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789";
    let (first, rest) = (number % 53, number / 53);
    let mut tag = vec![LETTERS[first], LETTERS[rest % 63]];
    if rest >= 63 {
        tag.push(LETTERS[rest / 63 % 63]);
    }
    String::from_utf8(tag).unwrap()
}

/// Texts within texts, each quoted by a tag of its own, as many as fit.
fn nested(before: &str, most: usize, bytes: usize) -> String {
    let mut text = String::new();
    for number in 0..most {
        let next = format!("{before}${}$", tag(number));
        if text.len() + next.len() > bytes {
            break;
        }
        text += &next;
    }
    text
}

/// As one simple query, and as a named statement, which is looked at whole however it comes.
fn both_protocols(sql: &str) -> [Vec<u8>; 2] {
    let body = [b"n\0", sql.as_bytes(), b"\0\0\0"].concat();
    [query(sql), [close_statement("n"), message('P', &body), sync()].concat()]
}

#[test]
fn texts_within_texts_as_deep_as_a_query_can_be_end_nobody() {
    let config = warehouse("", "", "") + SESSION_MODE + OPERATORS;
    let pgusher = Pgusher::start(&config);
    let others = Others::start(&pgusher, "rawprod", "warehouse");
    let deepest = nested("DO ", 8500, LONGEST);
    assert!(deepest.len() > 60_000 && deepest.matches("DO $").count() == 8500, "{}", deepest.len());
    let texts = [
        deepest,
        nested("DO $$ begin execute ", 8500, LONGEST),
        nested("DO $$ begin ", 8500, LONGEST) + "DO ",
        nested("CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS ", 8500, LONGEST),
        nested("DO language plpgsql ", 8500, LONGEST),
        "DO ".to_owned() + &nested("execute ", 8500, LONGEST - 3),
        "DO $x$".to_owned() + &nested("begin execute ", 8500, LONGEST - 6),
    ];
    for user in ["raw", "sess"] {
        for text in &texts {
            let what = format!("{user} {:?}", &text[..40]);
            for bytes in both_protocols(text) {
                let mut raw = Raw::login(pgusher.address(), user);
                let answer = raw.ask(&bytes);
                let error =
                    answer.iter().find(|m| m.tag == 'E').unwrap_or_else(|| panic!("{what}: {answer:?}"));
                assert_eq!(error.field('C'), "42601", "{what}: {}", error.field('M'));
                assert_eq!(raw.value("SELECT name FROM whoami"), "dev", "{what}");
            }
            unharmed(&pgusher);
        }
    }
    others.end();
    unharmed(&pgusher);
}

/// The time on a processor that a process has used, in ticks of the kernel.
fn ticks(pgusher: &Pgusher) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pgusher.child.id())).unwrap();
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 1..].split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// As much of a shape as a query may have.
fn full(before: &str, again: &str, after: &str) -> String {
    let times = (LONGEST - 64 - before.len() - after.len()) / again.len();
    [before, &again.repeat(times), after].concat()
}

/// Both relay threads have one of these to read, and somebody of prod asks for something behind it; the ticks of all.
fn cost(pgusher: &Pgusher, attackers: &mut [Raw], victims: &mut [Raw], text: &str) -> u64 {
    let before = ticks(pgusher);
    for _ in 0..3 {
        for bytes in both_protocols(text) {
            attackers.iter_mut().for_each(|raw| raw.send(&bytes));
            for victim in victims.iter_mut() {
                assert_eq!(victim.value("SELECT name FROM whoami"), "prod", "{:?}", &text[..60]);
            }
            for raw in attackers.iter_mut() {
                assert_eq!(raw.until_ready().last().unwrap().tag, 'Z');
            }
        }
    }
    ticks(pgusher) - before
}

#[test]
fn no_shape_of_a_text_costs_more_than_a_few_times_an_ordinary_one_of_its_length() {
    let pgusher = Pgusher::start(&warehouse("", "", ""));
    let logins = |user: &str, count: usize| -> Vec<Raw> {
        (0..count).map(|_| Raw::login(pgusher.address(), user)).collect()
    };
    let (mut attackers, mut victims) = (logins("raw", 2), logins("rawprod", 4));
    let ordinary = [
        full("DO $$ begin ", "perform 1, 'two', three from t where a = $1; ", " end $$"),
        full("SET LOCAL my.list = '", "an ordinary word, ", "'"),
        full("INSERT INTO t VALUES ", "(1, 'drop', now()), ", "(2)"),
    ];
    let costs = ordinary.map(|text| cost(&pgusher, &mut attackers, &mut victims, &text));
    println!("ticks for ordinary texts: {costs:?}");
    // Ticks are coarse: what costs next to nothing counts as ten of them.
    let bound = 10 * costs.into_iter().max().unwrap().max(10);
    let hostile = [
        full("DO $$", "begin set_config( ", "$$"),
        full("DO $$", "begin set_config(", ""),
        full("SELECT 1 ", "set_config(", ""),
        full("SELECT 1 ", "set_config('a.b',", ""),
        full("DO $$", "begin ", "$$"),
        full("DO $$", "begin execute ", "$$"),
        full("DO $$begin ", "execute 'begin' ", "$$"),
        full("DO $$", "begin execute 'begin execute ''begin''' ", "$$"),
        full("CREATE ", "into or ", ""),
        full("CREATE ", "into or replace ", ""),
        full("CREATE FUNCTION f() AS 'begin ", "loop ", "'"),
        full("", "CREATE FUNCTION f AS 'begin' ", ""),
        full("SET ", "$", ""),
        // Without the spaces, PostgreSQL itself takes seconds for so many of them: as the square of their number.
        full("SET ", "/* ", ""),
        "SET ".to_owned() + &"/*".repeat(4_000),
        full("SET ", "(", ""),
        full("SET ", "a.", ""),
        full("SET ", "$a", ""),
        full("", "SET a.b=1;", ""),
        full("DO ", "$$ do $$ ", ""),
        full("SELECT E'", "\\''\n'", ""),
        full("SELECT 'set_config' ", "'\n\n'", ""),
        (0..10_000).fold(String::new(), |text, i| text + &format!("SET a{i}=1;"))[..LONGEST - 64].to_owned(),
        nested("do ", 8500, LONGEST - 64),
    ];
    for text in hostile {
        let cost = cost(&pgusher, &mut attackers, &mut victims, &text);
        println!("{cost:5} ticks: {:?}", &text[..40]);
        assert!(cost <= bound, "{cost} ticks, not {bound}: {:?}…", &text[..60]);
    }
    unharmed(&pgusher);
}

// ── functions ──

/// How often a pool's database was asked for its functions, with an answer that could be used or with too long a one.
fn readings(pgusher: &Pgusher) -> usize {
    let is_one = |line: &&str| {
        line.contains("warehouse")
            && !line.contains("warehouse_prod")
            && (line.contains("functions of the database known") || line.contains("is looked through"))
    };
    pgusher.log().lines().filter(is_one).count()
}

/// The functions are there, read at least once from beginning to end, and nobody has noticed; dev itself works, too.
fn are_borne(pgusher: &Pgusher, what: &str) {
    let before = readings(pgusher);
    let mut raw = Raw::login(pgusher.address(), "raw");
    eventually(&format!("read twice: {what}"), || {
        assert_eq!(raw.value("SELECT name FROM whoami"), "dev", "{what}");
        readings(pgusher) >= before + 2
    });
    done(&mut raw, "BEGIN; SET LOCAL my.x = 'y'; SELECT name FROM whoami; COMMIT");
    done(&mut raw, "SET my.x = 'kept'");
    let mut other = Raw::login(pgusher.address(), "raw");
    assert_eq!(other.value("SELECT coalesce(current_setting('my.x', true), '')"), "", "{what}");
    assert_eq!(raw.value("SHOW my.x"), "kept", "{what}");
    assert_eq!(pgusher.psql("dana", "SELECT name FROM whoami").as_deref(), Ok("dev"), "{what}");
    unharmed(pgusher);
}

fn define(raw: &mut Raw, name: &str, body: &str) {
    done(raw, &format!("CREATE FUNCTION evil.{name}() RETURNS int LANGUAGE plpgsql AS $evil${body}$evil$"));
}

/// So many words of six letters, all different.
fn words(count: usize) -> String {
    let mut text = String::new();
    for i in 0..count {
        let mut number = i * 7919 % 26_usize.pow(6);
        for _ in 0..6 {
            text.push(char::from(b'a' + (number % 26) as u8));
            number /= 26;
        }
        text.push(' ');
    }
    text
}

#[test]
fn whatever_functions_a_database_has_everybody_is_served() {
    let dev = &pair().dev;
    dev.sql("postgres", "CREATE DATABASE hostile OWNER app");
    dev.sql("hostile", "CREATE TABLE whoami AS SELECT 'dev' AS name; GRANT SELECT ON whoami TO public");
    let pairs = [("user", "app"), ("database", "hostile")];
    let mut evil = Raw::login_with(([127, 0, 0, 1], dev.port).into(), VERSION, &pairs);
    done(&mut evil, "CREATE SCHEMA evil; SET check_function_bodies = off");
    let config = warehouse("catalog_interval = \"2s\"", "", "").replacen(
        "database = \"dev\"",
        "database = \"hostile\"",
        1,
    ) + OPERATORS;
    let pgusher = Pgusher::start(&config);
    let before = pgusher.most_resident();
    let others = Others::start(&pgusher, "rawprod", "warehouse");

    for (name, bytes) in [("nests", 64_000), ("nests_more", 1 << 20)] {
        define(&mut evil, name, &nested("DO ", 150_000, bytes));
    }
    for (name, times) in [("sets", 3500), ("sets_more", 8000), ("sets_a_lot", 60_000)] {
        define(&mut evil, name, &"begin set_config( ".repeat(times));
        define(&mut evil, &format!("{name}_by_text"), &"begin execute 'begin' ".repeat(times));
    }
    are_borne(&pgusher, "nesting, and bodies that are cubic");

    let chain: String = (0..3000)
        .map(|i| {
            let body = format!("begin perform evil.f{}(); return 1; end", i + 1);
            format!("CREATE FUNCTION evil.f{i}() RETURNS int LANGUAGE plpgsql AS '{body}';")
        })
        .collect();
    done(&mut evil, &chain);
    define(&mut evil, "f3000", "begin perform set_config('my.chain', 'set', false); return 1; end");
    are_borne(&pgusher, "a chain of 3 000");
    // It is followed to its end: what the last of them sets is its session's, and no other's.
    let (mut one, mut other) = (Raw::login(pgusher.address(), "raw"), Raw::login(pgusher.address(), "raw"));
    done(&mut one, "SELECT evil.f2900()");
    assert_eq!(other.value("SELECT coalesce(current_setting('my.chain', true), '')"), "");
    assert_eq!(one.value("SHOW my.chain"), "set");
    drop((one, other));

    let body = words(280_000);
    for i in 0..60 {
        // Other words in each of them.
        define(&mut evil, &format!("words{i}"), &body.replace(' ', &format!("{i} ")));
    }
    are_borne(&pgusher, "60 functions of 2 MB");

    let body = &body[..56_000];
    for i in 0..400 {
        define(&mut evil, &format!("many{i}"), body);
    }
    are_borne(&pgusher, "more than is looked through");
    assert!(pgusher.log().contains("is looked through"), "more than 16 MiB of source");

    others.end();
    let grown = pgusher.most_resident().saturating_sub(before);
    println!("{grown} KiB more at most");
    assert!(grown < 512 << 10, "{grown} KiB");
    drop(pgusher);

    // They are still there when it starts.
    let pgusher = Pgusher::start(&config);
    let others = Others::start(&pgusher, "rawprod", "warehouse");
    are_borne(&pgusher, "at the start");
    others.end();
    drop(pgusher);
    done(&mut evil, "DROP SCHEMA evil CASCADE");
}

// ── texts that are read otherwise than PostgreSQL reads them ──

/// What is looked for on a connection: what a session could have left there.
const LEFT: &str = "SELECT concat_ws('|', current_setting('search_path'), current_setting('standard_conforming_strings'), \
    current_setting('client_encoding'), \
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
    (SELECT count(*) FROM pg_cursors WHERE is_holdable), \
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()))";
const NOTHING: &str = "\"$user\", public|on|UTF8|0|0|0";

/// Where one session of one user comes behind another on one connection: nobody resets it between them.
fn same_user() -> Pgusher {
    Pgusher::start(&warehouse("default_pool_size = 1", "", ""))
}

fn simple(sql: &[u8]) -> Vec<u8> {
    message('Q', &[sql, b"\0"].concat())
}

/// `Parse`, `Bind` and `Execute`.
fn extended(sql: &[u8]) -> Vec<u8> {
    [message('P', &[b"\0", sql, b"\0\0\0"].concat()), bind("", "", &[]), execute()].concat()
}

/// Several messages at once, or one after the other, and whether the hidden call must have been run.
struct Pipeline {
    what: &'static str,
    startup: &'static [(&'static str, &'static str)],
    /// Each with the number of its answers.
    steps: Vec<(Vec<u8>, usize)>,
    runs: bool,
}

fn pipelines() -> Vec<Pipeline> {
    // With `standard_conforming_strings` off, the backslash escapes the quote; in SJIS, the two bytes before the quote are
    // one character.
    let evil: &[u8] = b"select '\\'', set_config('search_path','evil',false)::text, ''";
    let in_sjis: &[u8] = b"select E'\x83\\', set_config('search_path','evil',false)::text, E''";
    let off: &[u8] = b"set standard_conforming_strings=off";
    let sjis: &[u8] = b"set client_encoding='SJIS'";
    let by_call: &[u8] = b"select set_config('standard_conforming_strings','off',false)";
    let by_block: &[u8] = b"do $$ begin execute 'set standard_conforming_' || 'strings = off'; end $$";
    let at_once = |what, parts: &[Vec<u8>], answers| Pipeline {
        what,
        startup: &[],
        steps: vec![(parts.concat(), answers)],
        runs: true,
    };
    let prepared = [message('P', &[b"n\0", evil, b"\0\0\0"].concat()), sync()].concat();
    let run = [bind("", "n", &[]), execute(), sync()].concat();
    vec![
        at_once("one extended batch", &[extended(off), extended(evil), sync()], 1),
        at_once("two simple queries", &[simple(off), simple(evil)], 2),
        at_once("a call", &[simple(by_call), simple(evil)], 2),
        at_once("a block", &[simple(by_block), simple(evil)], 2),
        at_once("a call in a batch", &[extended(by_call), extended(evil), sync()], 1),
        at_once("two batches", &[extended(off), sync(), extended(evil), sync()], 2),
        at_once("a batch and a query", &[extended(off), sync(), simple(evil)], 2),
        at_once(
            "a transaction",
            &[simple(b"begin; set standard_conforming_strings=off"), simple(evil), simple(b"commit")],
            3,
        ),
        at_once(
            "for a transaction",
            &[simple(b"begin; set local standard_conforming_strings=off"), simple(evil), simple(b"commit")],
            3,
        ),
        at_once(
            "a transaction in one batch",
            &[extended(b"begin"), extended(off), extended(evil), extended(b"commit"), sync()],
            1,
        ),
        at_once("another encoding", &[simple(sjis), simple(in_sjis)], 2),
        at_once("another encoding by its other name", &[simple(b"set names 'SJIS'"), simple(in_sjis)], 2),
        at_once("another encoding in one batch", &[extended(sjis), extended(in_sjis), sync()], 1),
        at_once("with a named statement", &[extended(off), sync(), prepared.clone(), run.clone()], 3),
        Pipeline {
            what: "at startup",
            startup: &[("standard_conforming_strings", "off")],
            steps: vec![(simple(evil), 1)],
            runs: true,
        },
        Pipeline {
            what: "another encoding at startup",
            startup: &[("client_encoding", "SJIS")],
            steps: vec![(simple(in_sjis), 1)],
            runs: true,
        },
        Pipeline {
            what: "with the answers awaited",
            startup: &[],
            steps: vec![(simple(off), 1), (simple(evil), 1)],
            runs: true,
        },
        Pipeline {
            what: "another encoding with the answers awaited",
            startup: &[],
            steps: vec![(simple(sjis), 1), (simple(in_sjis), 1)],
            runs: true,
        },
        Pipeline {
            what: "prepared before, run after",
            startup: &[],
            steps: vec![(prepared, 1), (simple(off), 1), (run, 1)],
            runs: false,
        },
    ]
}

#[test]
fn what_is_pipelined_behind_a_change_of_how_texts_are_read_leaves_nothing() {
    let pgusher = same_user();
    for Pipeline { what, startup, steps, runs } in pipelines() {
        let pairs = [&[("user", "raw"), ("database", "warehouse")], startup].concat();
        let mut one = Raw::login_with(pgusher.address(), VERSION, &pairs);
        let mut heard: Vec<Message> = Vec::new();
        for (bytes, answers) in steps {
            one.send(&bytes);
            (0..answers).for_each(|_| heard.extend(one.until_ready()));
        }
        let set = heard.iter().any(|m| m.tag == 'D' && m.columns().iter().any(|column| column == "evil"));
        assert!(set || !runs, "{what}: PostgreSQL has not run the call: {heard:?}");
        drop(one);
        let mut other = Raw::login(pgusher.address(), "raw");
        assert_eq!(other.value(LEFT), NOTHING, "{what}");
    }
    unharmed(&pgusher);
}

#[test]
fn comments_and_strings_that_go_on_hide_nothing() {
    let pgusher = same_user();
    let pairs = [("user", "app"), ("database", "dev")];
    let direct = || Raw::login_with(([127, 0, 0, 1], pair().dev.port).into(), VERSION, &pairs);
    for text in [
        "select 1 --\r, set_config('search_path','evil',false)",
        "select 1 +--'\r length(set_config('search_path','evil',false)) --'",
        "select 1 /* --\r*/, 2 -- '\r, set_config('search_path','evil',false)",
        "select E'a'\n'\\'', set_config('search_path','evil',false)::text, ''",
        "select e'a'\n'\\'', set_config('search_path','evil',false)::text, ''",
        "select E'a'\r'\\'', set_config('search_path','evil',false)::text, ''",
        "select E'a' --x\n'\\'', set_config('search_path','evil',false)::text, ''",
        "select E'a' --x\r --y\n  '\\'', set_config('search_path','evil',false)::text, ''",
        "select E'a'\x0c\n\t'\\'', set_config('search_path','evil',false)::text, ''",
        "select E'a'\n'\\''\n'\\'', set_config('search_path','evil',false)::text, ''",
        "select E'a'\n'\\'', pg_advisory_lock(350035)::text, ''",
        "select 1 --\r, pg_advisory_lock(350035)",
        "begin; select E'a'\n'\\''; declare held cursor with hold for select 'x'; commit",
        "select E'a'\n'\\''; create temp table whoami as select text 'TEMP' as name",
        "--\rcreate temp table whoami as select text 'TEMP' as name",
    ] {
        let mut there = direct();
        done(&mut there, text);
        assert_ne!(there.value(LEFT), NOTHING, "PostgreSQL has not run it: {text:?}");
        drop(there);
        eventually("the lock is free", || {
            let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 350035";
            pair().dev.sql("dev", locks) == "0"
        });
        let extended = [extended(text.as_bytes()), sync()].concat();
        for bytes in [simple(text.as_bytes()), extended] {
            let mut one = Raw::login(pgusher.address(), "raw");
            one.ask(&bytes);
            drop(one);
            let mut other = Raw::login(pgusher.address(), "raw");
            assert_eq!(other.value(LEFT), NOTHING, "{text:?}");
            assert_eq!(other.value("SELECT name FROM whoami"), "dev", "{text:?}");
        }
    }
    unharmed(&pgusher);
}

// ── upstreams ──

fn reported(name: &str, value: &str) -> Vec<u8> {
    message('S', format!("{name}\0{value}\0").as_bytes())
}

fn many_reported(count: usize, value: &str) -> Vec<u8> {
    (0..count).map(|i| reported(&format!("p{i}"), value)).collect::<Vec<_>>().concat()
}

fn notice() -> Vec<u8> {
    message('N', b"SNOTICE\0C00000\0Mhi\0\0")
}

/// A login in which this comes before its end.
fn with(peer: &mut Peer, odd: &[u8]) {
    peer.send(&[message('R', &[0; 4]), odd.to_vec(), message('K', &FAKE_KEY), ready()].concat());
    peer.serve(|_| None);
}

/// Sends this until the other side has closed.
fn without_end(peer: &mut Peer, odd: &[u8]) {
    use std::io::Write;
    peer.send(&message('R', &[0; 4]));
    let piece = odd.repeat(1 + (64 << 10) / odd.len());
    while (&*peer.stream).write_all(&piece).is_ok() {}
}

type Script = fn(&mut Peer);

/// What an upstream does while pgusher logs in.
const LOGINS: [(&str, Script); 9] = [
    ("65 settings", |peer| with(peer, &many_reported(65, "x"))),
    ("1000 settings", |peer| with(peer, &many_reported(1000, "x"))),
    ("70 kB of settings", |peer| with(peer, &many_reported(7, &"x".repeat(10_000)))),
    ("a long setting", |peer| with(peer, &many_reported(1, &"x".repeat(70_000)))),
    ("1001 notices", |peer| with(peer, &notice().repeat(1001))),
    ("settings without end", |peer| without_end(peer, &reported("p", "x"))),
    ("big settings without end", |peer| without_end(peer, &reported("p", &"x".repeat(1 << 20)))),
    ("notices without end", |peer| without_end(peer, &notice())),
    ("big notices without end", |peer| without_end(peer, &message('N', &vec![b'x'; 60_000]))),
];

/// What it answers a query with.
fn answers() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("65 more settings", [many_reported(65, "x"), row("x"), ready()].concat()),
        ("10 000 settings", [many_reported(10_000, "x"), complete("SELECT 0"), ready()].concat()),
        ("70 kB of settings", [many_reported(7, &"x".repeat(10_000)), row("x"), ready()].concat()),
        ("40 MB of settings", [many_reported(640, &"x".repeat(64 << 10)), row("x"), ready()].concat()),
    ]
}

#[test]
fn what_an_upstream_reports_is_bounded_and_harms_nobody_else() {
    let answers = answers();
    let names: Vec<String> = (0..LOGINS.len() + answers.len()).map(|i| format!("h{i}")).collect();
    let broken: Vec<Vec<u8>> = answers.iter().map(|(_, bytes)| bytes.clone()).collect();
    let fake = Fake::start(move |peer| {
        let case: usize = peer.database[1..].parse().unwrap();
        match LOGINS.get(case) {
            Some((_, script)) => script(peer),
            None => {
                peer.welcome();
                let broken = &broken[case - LOGINS.len()];
                peer.serve(|sql| (sql == "break").then(|| broken.clone()));
            }
        }
    });
    let mut bases = vec![("prod".to_owned(), pair().prod.port)];
    bases.extend(names.iter().map(|name| (name.clone(), fake.port())));
    let connection = "sslmode = \"disable\"\nconnect_timeout = \"15s\"";
    let pgusher = Pgusher::start(&(fake::config("", &bases, connection) + OPERATORS));
    let before = pgusher.resident();
    let others = Others::start(&pgusher, "raw", "prod");
    for ((what, _), name) in LOGINS.iter().zip(&names) {
        let error = refused(&pgusher, "raw", name);
        assert_eq!(error.field('C'), "08001", "{what}: {}", error.field('M'));
    }
    for ((what, _), name) in answers.iter().zip(&names[LOGINS.len()..]) {
        let mut raw = login(&pgusher, name);
        let first = raw.value("SELECT 1");
        raw.send(&query("break"));
        let answer: Vec<Message> = std::iter::from_fn(|| raw.next()).collect();
        let last = answer.last().unwrap_or_else(|| panic!("{what}: no word"));
        assert_eq!((last.tag, last.field('C').as_str()), ('E', "08P01"), "{what}");
        let next = login(&pgusher, name).value("SELECT 1");
        assert!(next.parse::<u32>().is_ok() && next != first, "{what}: {first} {next}");
    }
    others.end();
    let grown = pgusher.most_resident().saturating_sub(before);
    println!("{grown} KiB more at most");
    assert!(grown < 64 << 10, "{grown} KiB");
    unharmed(&pgusher);
}

#[test]
fn an_upstream_may_report_as_much_as_servers_do() {
    let fake = Fake::start(|peer| with(peer, &many_reported(60, &"x".repeat(100))));
    let pgusher = Pgusher::start(&fake.config("", &["h0".into()], "sslmode = \"disable\""));
    let mut raw = login(&pgusher, "h0");
    assert!(raw.value("SELECT 1").parse::<u32>().is_ok());
    assert!(raw.parameters.iter().filter(|(name, _)| name.starts_with('p')).count() >= 60);
}
