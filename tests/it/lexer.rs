//! What pgusher reads in a text, beside what PostgreSQL itself does with it: random texts are run on a server, and of each that has
//! left something in its session, the lexer must have seen that it may. PostgreSQL is the only judge of where a comment or a
//! string ends.

use relay::sql::{Effects, effects};

use super::house::{Random, pair, size};
use super::state::done;
use super::wire::{Message, Raw, message, query};

const VERSION: u32 = 0x0003_0000;
/// How many texts are sent before their answers are read: both sides' buffers hold so much.
const AT_ONCE: usize = 100;

/// A session on the server itself.
fn direct() -> Raw {
    let pairs = [("user", "app"), ("database", "dev"), ("options", "-c statement_timeout=5s")];
    let mut raw = Raw::login_with(([127, 0, 0, 1], pair().dev.port).into(), VERSION, &pairs);
    done(&mut raw, "SET client_min_messages = error");
    raw
}

fn simple(text: &[u8]) -> Vec<u8> {
    message('Q', &[text, b"\0"].concat())
}

fn one_of<'a>(random: &mut Random, all: &[&'a [u8]]) -> &'a [u8] {
    all[random.below(all.len())]
}

/// What a call has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ran {
    Setting,
    Lock,
}

/// Whether that was to be seen in what a text may do.
fn is_seen(ran: Ran, effects: Option<&Effects>) -> bool {
    effects.is_some_and(|effects| {
        let named = match ran {
            Ran::Setting => effects.settings.iter().any(|name| name == "my.ran"),
            Ran::Lock => effects.makes_objects,
        };
        named || effects.pin.is_some() || effects.asks_all
    })
}

/// Those of the texts of which it was not, judged by the effects that `of` gives.
fn missed(ran: &[(Vec<u8>, Ran)], of: impl Fn(&[u8]) -> Option<Box<Effects>>) -> Vec<&[u8]> {
    let missed = ran.iter().filter(|(text, ran)| !is_seen(*ran, of(text).as_deref()));
    missed.map(|(text, _)| text.as_slice()).collect()
}

// ── calls within a text ──

/// The lock is a shared one: these tests run beside one another.
const CALLS: [&[u8]; 9] = [
    b"set_config('my.ran','x',false)",
    b"set_config($$my.ran$$,$$x$$,false)",
    b"set_config(E'my.ran',N'x'::text,false)",
    b"pg_catalog . set_config('my.ran','x',false)",
    b"\"set_config\"('my.ran','x',false)",
    b"set_config ( /* ' */ 'my.ran' , 'x' , false )",
    b"SET_CONFIG('my.ran', 'x', 1 = 2)",
    b"pg_advisory_lock_shared(77007700)::text",
    b"pg_catalog.Pg_Advisory_Lock_Shared /**/ (77007700)::text",
];

/// What is valid for itself.
const PIECES: [&[u8]; 33] = [
    b"'a'",
    b"'a'\n'b'",
    b"'a'\r'b'",
    b"E'\\''",
    b"E'a\\\\'",
    b"E'a'\n'\\''",
    b"E'a' -- x\n 'b\\''",
    b"E'a'\n\n'\\''",
    b"e''''",
    b"''''",
    b"N'a'",
    b"b'1'",
    b"x'1'",
    b"U&'a'",
    b"U&'!0041' uescape '!'",
    b"'\\'",
    b"'a' /* x */",
    b"$$a$$",
    b"$x$ ' $x$",
    "$\u{e9}$ ' $\u{e9}$".as_bytes(),
    b"1 as \"a\"",
    b"1 as \"a\"\"'\"",
    "1 as \u{e9}".as_bytes(),
    b"1 as a$b$",
    b"/* a */",
    b"/* /* */ */",
    b"-- a\n",
    b"-- a\r",
    b"1.",
    b".5",
    b"1 - -1",
    b"2 *-1",
    b"null",
];

/// What may stand anywhere, valid or not.
const TOKENS: [&[u8]; 74] = [
    b"'",
    b"'",
    b"'",
    b"''",
    b"\\",
    b"\\'",
    b"'\\'",
    b"E'",
    b"e'",
    b"N'",
    b"B'",
    b"X'",
    b"U&'",
    b"U&\"",
    b"\"",
    b"\"",
    b"\"\"",
    b"$$",
    b"$$",
    b"$a$",
    b"$a",
    b"$1",
    b"--",
    b"--",
    b"--",
    b"/*",
    b"*/",
    b"/*/",
    b"/**/",
    b"\n",
    b"\n",
    b"\r",
    b"\r",
    b"\t",
    b"\x0b",
    b"\x0c",
    b" ",
    b" ",
    b",",
    b",",
    b";",
    b"||",
    b"+",
    b"-",
    b"<",
    b"@",
    b"a",
    b"as ",
    b"1",
    b"1.",
    b"1e",
    b"0x",
    b".",
    b"(",
    b")",
    b"[",
    b"]",
    b"\xc3\xa9",
    b"\xc2\xa0",
    b"uescape '!'",
    b"::text",
    b":",
    b"::",
    b"null",
    b"select ",
    b"+--",
    b"*",
    b"%",
    b"#",
    b"?",
    b"|",
    b"~",
    b"&",
    b"=",
];

fn junk(random: &mut Random) -> Vec<u8> {
    match random.below(20) {
        0..9 => one_of(random, &PIECES).to_vec(),
        9..13 => {
            let mut piece = one_of(random, &PIECES).to_vec();
            let at = random.below(piece.len() + 1);
            piece.splice(at..at, one_of(random, &TOKENS).iter().copied());
            piece
        }
        _ => (0..1 + random.below(5)).flat_map(|_| one_of(random, &TOKENS).to_vec()).collect(),
    }
}

/// A list of junk with one call among it.
fn text_around_a_call(random: &mut Random) -> Vec<u8> {
    let mut parts: Vec<Vec<u8>> = (0..1 + random.below(3)).map(|_| junk(random)).collect();
    parts.insert(random.below(parts.len() + 1), one_of(random, &CALLS).to_vec());
    let between =
        one_of(random, &[b", ", b", ", b",", b" , ", b",\n", b"\n,", b"\r,", b",--\n", b",--\r", b" "]);
    let behind = one_of(
        random,
        &[b"", b"", b"", b" --'", b" --$$", b"/*'*/", b", ''", b"\n'", b"\n''", b"\"", b" as a", b";"],
    );
    [b"select ", &parts.join(between)[..], behind].concat()
}

/// What was left by the text before, if anything; and it is left no more.
const ASK: &str = "COMMIT; SELECT coalesce(current_setting('my.ran', true), ''), \
    pg_advisory_unlock_shared(77007700), set_config('my.ran', '', false)";

fn what_ran(answer: &[Message]) -> Option<Ran> {
    let row = answer.iter().find(|m| m.tag == 'D').unwrap_or_else(|| panic!("it is not told: {answer:?}"));
    let columns = row.columns();
    match (columns[0].is_empty(), columns[1].as_str()) {
        (false, _) => Some(Ran::Setting),
        (true, "t") => Some(Ran::Lock),
        (true, _) => None,
    }
}

#[test]
fn no_call_that_postgresql_runs_is_hidden_by_comments_or_strings() {
    let mut random = Random(0x1e7e4);
    let mut raw = direct();
    let (mut accepted, mut ran) = (0, Vec::new());
    let all = size(20_000, 1_000_000);
    for _ in 0..all / AT_ONCE {
        let texts: Vec<Vec<u8>> = (0..AT_ONCE).map(|_| text_around_a_call(&mut random)).collect();
        let asked: Vec<Vec<u8>> = texts.iter().map(|text| [simple(text), query(ASK)].concat()).collect();
        raw.send(&asked.concat());
        for text in texts {
            accepted += usize::from(!raw.until_ready().iter().any(|m| m.tag == 'E'));
            if let Some(how) = what_ran(&raw.until_ready()) {
                ran.push((text, how));
            }
        }
    }
    let missed_now: Vec<_> = missed(&ran, effects).into_iter().map(String::from_utf8_lossy).collect();
    let (total, count) = (ran.len(), missed_now.len());
    println!(
        "{all} texts, {accepted} accepted by PostgreSQL, {total} of them ran the call, {count} not seen"
    );
    assert!(missed_now.is_empty(), "not seen: {:#?}", &missed_now[..count.min(20)]);
    // Enough of them ran it, of both kinds, and in company that matters.
    let with =
        |piece: &[u8]| ran.iter().filter(|(text, _)| memchr::memmem::find(text, piece).is_some()).count();
    let of = |kind: Ran| ran.iter().filter(|(_, ran)| *ran == kind).count();
    let counts =
        [of(Ran::Setting), of(Ran::Lock), with(b"--"), with(b"\r"), with(b"'\n'"), with(b"E'"), with(b"$")];
    println!("settings, locks, and with --, CR, a string that goes on, E'', $$: {counts:?}");
    assert!(total > all / 20 && counts.iter().all(|count| *count > all / 1000), "{total}: {counts:?}");
    // And whoever sees nothing, or sees another text, is found out.
    let blind = missed(&ran, |_| effects(b"select 1"));
    assert_eq!(blind.len(), total, "a miss that was planted is not found");
    let other = missed(&ran, |_| effects(b"select set_config('my.other', 'x', false)"));
    assert_eq!(other.len(), total, "another's effects are taken for its own");
}

/// A lexer that ends a comment only at a line feed, and a string at its first quote, as ours once did: the texts are good enough to
/// find it.
#[test]
fn a_lexer_with_other_rules_would_be_found_out() {
    let mut random = Random(0x1e7e5);
    let mut raw = direct();
    let mut found = [0, 0];
    let rules: [(&[u8], &[u8]); 2] = [(b"\r", b" "), (b"'\n'", b"' '")];
    for _ in 0..200 {
        let texts: Vec<Vec<u8>> = (0..AT_ONCE).map(|_| text_around_a_call(&mut random)).collect();
        let asked: Vec<Vec<u8>> = texts.iter().map(|text| [simple(text), query(ASK)].concat()).collect();
        raw.send(&asked.concat());
        for text in texts {
            raw.until_ready();
            let Some(ran) = what_ran(&raw.until_ready()) else { continue };
            for ((from, to), found) in rules.iter().zip(&mut found) {
                let as_read = replaced(&text, from, to);
                *found += usize::from(!is_seen(ran, effects(&as_read).as_deref()));
            }
        }
    }
    println!("found by texts with a carriage return, and with strings that go on: {found:?}");
    assert!(found.iter().all(|count| *count > 0), "{found:?}");
}

fn replaced(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = memchr::memmem::find(rest, from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

// ── whole statements ──

/// Statements that leave something, or look as if.
const STATEMENTS: [&str; 50] = [
    "set my.ran = x",
    "set session my.ran to 'x'",
    "set local my.ran = 'x'",
    "reset my.ran",
    "set schema 'pg_catalog'",
    "set search_path to pg_catalog",
    "set session characteristics as transaction read only",
    "set xml option document",
    "set role plain",
    "create temp table t (a int)",
    "create table pg_temp.t (a int)",
    "create temporary view t as select 1",
    "create or replace temp view t as select 1",
    "create temp recursive view t(a) as select 1",
    "create local temp sequence t",
    "create global temp table t (a int)",
    "create temp table t as select 1",
    "select 1 as a into temp t",
    "select 1 as a into local temporary table t",
    "create schema if not exists lexed create temp table t(a int)",
    "create function pg_temp.f() returns int language sql as 'select 1'",
    "create type pg_temp.ty as (a int)",
    "create domain pg_temp.dd as int",
    "create view pg_temp.t as select 1",
    "create materialized view pg_temp.m as select 1",
    "create operator pg_temp.+++ (function=int4pl, leftarg=int4, rightarg=int4)",
    "create collation pg_temp.co from \"C\"",
    "create text search dictionary pg_temp.di (template=simple)",
    "create aggregate pg_temp.ag(int) (sfunc=int4pl, stype=int4)",
    "create conversion pg_temp.cv for 'UTF8' to 'LATIN1' from utf8_to_iso8859_1",
    "declare c cursor with hold for select 1",
    "declare c insensitive no scroll cursor with hold for select 1",
    "declare c cursor for select 1",
    "select set_config('my.ran','x',false)",
    "select set_config('my.ran','x',true)",
    "values (set_config('my.ran','x',false))",
    "with a as (select set_config('my.ran','x',false)) select * from a",
    "select pg_advisory_lock(77007701)",
    "select pg_try_advisory_lock_shared(77007702)",
    "select pg_advisory_xact_lock(77007703)",
    "prepare p as select 1",
    "listen lexed",
    "do $$ begin perform set_config('my.ran','x',false); end $$",
    "do 'begin perform pg_advisory_lock_shared(77007704); end'",
    "do language plpgsql $z$ begin set my.ran = 'x'; end $z$",
    "do $$ begin execute 'create temp ' || 'table t (a int)'; end $$",
    "explain analyze create temp table t as select 1",
    "explain analyze select set_config('my.ran','x',false)",
    "copy (select set_config('my.ran','x',false)) to stdout",
    "load 'plpgsql'",
];

const BEFORE: [&str; 17] = [
    "",
    "",
    "begin;",
    "begin; commit;",
    "begin; rollback;",
    "begin; savepoint a;",
    "select 1;",
    "select 'a';",
    "select E'\\'';",
    "select E'a'\n'\\'';",
    ";",
    "/* c */",
    "-- c\n",
    "-- c\r",
    "select $$;$$;",
    "(select 1);",
    "explain select 1;",
];
const BEHIND: [&str; 11] = [
    "",
    "",
    ";",
    "; commit",
    "; select 1",
    "; end",
    " --",
    " -- '\r; select ''",
    "; rollback",
    "; begin; commit",
    "; select E'a'\n'\\''",
];
const SPACES: [&str; 11] =
    [" ", "\n", "\t", "\x0c", "\r", "/**/", "--x\n", "--x\r", "/*/**/*/", " /*'*/ ", " --'\n "];

/// All of a session's state; a text of several lines, so that an assertion shows what differs.
const STATE: &str = "SELECT concat_ws(E'\\n', coalesce(current_setting('my.ran', true), ''), current_setting('search_path'), \
    current_setting('role'), current_setting('default_transaction_read_only'), current_setting('xmloption'), \
    (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), \
    (SELECT count(*) FROM pg_cursors WHERE is_holdable), \
    (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()), \
    (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()) \
    + (SELECT count(*) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()) \
    + (SELECT count(*) FROM pg_type WHERE typnamespace = pg_my_temp_schema()) \
    + (SELECT count(*) FROM pg_operator WHERE oprnamespace = pg_my_temp_schema()) \
    + (SELECT count(*) FROM pg_collation WHERE collnamespace = pg_my_temp_schema()) \
    + (SELECT count(*) FROM pg_ts_dict WHERE dictnamespace = pg_my_temp_schema()) \
    + (SELECT count(*) FROM pg_conversion WHERE connamespace = pg_my_temp_schema()))";

/// The same words with other white space and comments between them, and some in other case, where no string is.
fn respelled(random: &mut Random, statement: &str) -> String {
    let mut text = String::new();
    let mut quoted = false;
    for word in statement.split(' ') {
        if !text.is_empty() {
            text += if quoted || random.chance(60) { " " } else { random.of(&SPACES) };
        }
        let has_quote = word.contains(['\'', '$', '"']);
        let upper = !quoted && !has_quote && random.chance(30);
        text += &if upper { word.to_uppercase() } else { word.to_owned() };
        let marks = word.matches('\'').count() + word.matches("$$").count() + word.matches("$z$").count();
        quoted ^= marks % 2 == 1;
    }
    text
}

#[test]
fn no_statement_that_leaves_something_is_taken_for_one_that_does_not() {
    let mut random = Random(0x1e7e6);
    let mut raw = direct();
    let clean = raw.value(STATE);
    let mut left = vec![0; STATEMENTS.len()];
    let mut unseen = Vec::new();
    let all = size(2_000, 40_000);
    for _ in 0..all / 20 {
        let texts: Vec<(usize, String)> = (0..20)
            .map(|_| {
                let number = random.below(STATEMENTS.len());
                let statement = respelled(&mut random, STATEMENTS[number]);
                (number, [random.of(&BEFORE), &statement, random.of(&BEHIND)].concat())
            })
            .collect();
        let tidy = "DISCARD ALL";
        let quiet = "SET client_min_messages = error";
        let ask = [query("COMMIT"), query(STATE), query(tidy), query(quiet)].concat();
        let asked: Vec<Vec<u8>> = texts.iter().map(|(_, text)| [query(text), ask.clone()].concat()).collect();
        raw.send(&asked.concat());
        for (number, text) in texts {
            raw.until_ready();
            raw.until_ready();
            let answer = raw.until_ready();
            let row = answer.iter().find(|m| m.tag == 'D').unwrap_or_else(|| panic!("{text:?}: {answer:?}"));
            let state = row.columns().remove(0);
            assert!(!raw.until_ready().iter().any(|m| m.tag == 'E'), "{text:?}: not tidied");
            raw.until_ready();
            if state != clean {
                left[number] += 1;
                if !effects(text.as_bytes()).is_some_and(|effects| matters(&effects)) {
                    unseen.push((text, state));
                }
            }
        }
    }
    done(&mut raw, "DROP SCHEMA IF EXISTS lexed");
    let total: usize = left.iter().sum();
    println!("{all} texts, {total} left something, {} of them not seen", unseen.len());
    assert!(unseen.is_empty(), "{:#?}", &unseen[..unseen.len().min(20)]);
    let some = left.iter().filter(|count| **count > 0).count();
    assert!(total > all / 4 && some > STATEMENTS.len() / 2, "{total} of {some} kinds: {left:?}");
    assert!(!effects(b"select 1").is_some_and(|effects| matters(&effects)), "everything is suspected");
}

/// Something that makes a session keep its connection, or ask it.
fn matters(effects: &Effects) -> bool {
    effects.pin.is_some()
        || !effects.settings.is_empty()
        || effects.makes_objects
        || effects.asks_all
        || effects.calls
        || effects.channels
}
