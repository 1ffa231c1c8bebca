//! What broken upstreams do, and what their clients may see of it.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use policy::verifier::ScramVerifier;

use super::fake::{
    Cut, Fake, Peer, Relay, complete, config, data, description, error, login, ready, refused, row, unharmed,
};
use super::house::{Pgusher, Postgres, WAREHOUSE, eventually, free_port, pair, run, size, warehouse};
use super::wire::{Message, Raw, bind, describe_statement, execute, message, parse, query, sync};

/// The usual warehouse, its servers behind other ports.
fn behind(dev: u16, prod: u16, server: &str, base: &str, environment: &str) -> String {
    WAREHOUSE
        .replace("@SERVER@", server)
        .replace("@BASE@", base)
        .replace("@ENVIRONMENT@", environment)
        .replace("@USERS@", "")
        .replace("@DEV@", &dev.to_string())
        .replace("@PROD@", &prod.to_string())
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|i| format!("{prefix}{i}")).collect()
}

/// Which of the cases a database name stands for.
fn case(database: &str) -> usize {
    database[1..].parse().unwrap()
}

fn with_length(tag: char, length: u32, body: &[u8]) -> Vec<u8> {
    [&[tag as u8][..], &length.to_be_bytes(), body].concat()
}

// ── TLS and login ──

#[test]
fn bytes_in_the_clear_behind_the_servers_yes_to_tls_end_the_login() {
    let welcome = [
        message('R', &[0; 4]),
        message('S', b"server_version\x0015.0\0"),
        message('K', &[0; 8]),
        ready(),
        row("injected"),
        ready(),
    ]
    .concat();
    let extras =
        [vec![0], b"Sorry".to_vec(), welcome, error(&[('S', "FATAL"), ('C', "57P01"), ('M', "injected")])];
    let in_clear = Arc::new(AtomicBool::new(false));
    let fakes: Vec<Fake> = extras
        .into_iter()
        .map(|extra| {
            let in_clear = in_clear.clone();
            Fake::start_raw(move |mut stream| {
                let mut asked = [0; 8];
                if stream.read_exact(&mut asked).is_err() {
                    return;
                }
                stream.write_all(&[b"S", &extra[..]].concat()).unwrap();
                let mut next = [0; 1];
                if let Ok(1) = stream.read(&mut next) {
                    in_clear.fetch_or(next[0] != 0x16 && next[0] != 0x15, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let bases: Vec<_> = fakes.iter().enumerate().map(|(i, fake)| (format!("t{i}"), fake.port())).collect();
    for mode in ["require", "prefer"] {
        let connection = format!("sslmode = \"{mode}\"\nconnect_timeout = \"2s\"");
        let pgusher = Pgusher::start(&config("", &bases, &connection));
        for (base, _) in &bases {
            let error = refused(&pgusher, "raw", base);
            assert_eq!(error.field('C'), "08001", "{mode} {base}");
            assert!(!String::from_utf8_lossy(&error.body).contains("injected"), "{mode} {base}");
        }
        assert!(!in_clear.load(Ordering::SeqCst), "the login went on in the clear");
        unharmed(&pgusher);
    }
}

#[test]
fn an_error_before_tls_is_not_passed_on_to_the_client() {
    let fake = Fake::start_raw(|mut stream| {
        let _ = stream.read_exact(&mut [0; 8]);
        let _ = stream.write_all(&error(&[('S', "FATAL"), ('C', "57P03"), ('M', "send your money to me")]));
    });
    let pgusher = Pgusher::start(&fake.config("", &names("t", 1), "sslmode = \"require\""));
    let error = refused(&pgusher, "raw", "t0");
    assert_eq!(error.field('C'), "08001");
    assert!(!String::from_utf8_lossy(&error.body).contains("money"), "{error:?}");
}

/// What a SCRAM server says in its first and its last message, and how it goes on.
struct FalseScram {
    what: &'static str,
    /// `NONCE` stands for the client's nonce.
    first: String,
    /// `None` is the right one.
    last: Option<Vec<u8>>,
}

fn scram_server(peer: &mut Peer, first: &str, last: Option<&[u8]>) {
    peer.send(&message('R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"));
    let Some(initial) = peer.next() else { return };
    let text = String::from_utf8_lossy(&initial.body).into_owned();
    let bare = &text[text.find("n=,r=").unwrap()..];
    let first = first.replace("NONCE", &bare["n=,r=".len()..]);
    peer.send(&message('R', &[&11u32.to_be_bytes(), first.as_bytes()].concat()));
    let Some(answer) = peer.next() else { return };
    let answer = String::from_utf8(answer.body).unwrap();
    let without_proof = answer.split(",p=").next().unwrap();
    let right = || {
        let salt = BASE64.decode(first.split(",s=").nth(1).unwrap().split(',').next().unwrap()).unwrap();
        let verifier = ScramVerifier::derive("secret", salt, 4096);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &verifier.server_key);
        let signature = hmac::sign(&key, format!("{bare},{first},{without_proof}").as_bytes());
        let last = format!("v={}", BASE64.encode(signature));
        message('R', &[&12u32.to_be_bytes(), last.as_bytes()].concat())
    };
    peer.send(&last.map_or_else(right, <[u8]>::to_vec));
    peer.welcome();
    peer.serve(|_| None);
}

#[test]
fn a_false_scram_server_gets_neither_proof_nor_clients() {
    let usual = "r=NONCEabcdefgh,s=AAAAAAAAAAAAAAAAAAAAAA==,i=4096";
    let last = |text: &str| Some(message('R', &[&12u32.to_be_bytes(), text.as_bytes()].concat()));
    let wrong = || last("v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let first = |what, first: &str| FalseScram { what, first: first.to_owned(), last: wrong() };
    let long = "n".repeat(1 << 20);
    let salt = BASE64.encode(vec![7; 1 << 20]);
    let mut cases = vec![
        FalseScram { what: "the right one", first: usual.into(), last: None },
        first("a foreign nonce", "r=abcdefgh,s=AAAA,i=4096"),
        first("no nonce", "s=AAAA,i=4096"),
        first("an empty nonce", "r=,s=AAAA,i=4096"),
        first("a nonce of a mebibyte", &format!("r=NONCE{long},s=AAAA,i=4096")),
        first("an empty salt", "r=NONCEx,s=,i=4096"),
        first("a salt of a mebibyte", &format!("r=NONCEx,s={salt},i=4096")),
        first("a salt that is no base64", "r=NONCEx,s=!!!!,i=4096"),
        first("no salt", "r=NONCEx,i=4096"),
        first("an extension", "m=what,r=NONCEx,s=AAAA,i=4096"),
        first("nothing", ""),
        first("commas", ",,,,"),
    ];
    for iterations in
        ["", "i=", "i=0", "i=1", "i=4095", "i=-4096", "i=2147483648", "i=9223372036854775808", "i=x"]
    {
        cases.push(first("iterations", &format!("r=NONCEx,s=AAAA,{iterations}")));
    }
    for text in ["", "v=", "v=AAAA", "v=!", "e=other-error", "e=", "x", "v"] {
        cases.push(FalseScram { what: "last message", first: usual.into(), last: last(text) });
    }
    cases.push(FalseScram { what: "no last message", first: usual.into(), last: Some(Vec::new()) });
    cases.push(FalseScram { what: "a wrong signature", first: usual.into(), last: wrong() });
    cases.push(FalseScram {
        what: "once more from the beginning",
        first: usual.into(),
        last: Some(message('R', b"\0\0\0\x0aSCRAM-SHA-256\0\0")),
    });
    cases.push(FalseScram {
        what: "a length of 2 GiB",
        first: usual.into(),
        last: Some(with_length('R', 0x7fff_ffff, &[0; 64])),
    });
    let all = names("s", cases.len());
    let texts: Vec<&'static str> = cases.iter().map(|case| case.what).collect();
    let fake = Fake::start(move |peer| {
        let case = &cases[case(&peer.database)];
        scram_server(peer, &case.first, case.last.as_deref());
    });
    let pgusher = Pgusher::start(&fake.config("", &all, "sslmode = \"disable\"\nconnect_timeout = \"10s\""));
    let before = pgusher.resident();
    for (name, what) in all.iter().zip(&texts).skip(1) {
        let error = refused(&pgusher, "raw", name);
        assert_eq!(error.field('C'), "08001", "{what}: {}", error.field('M'));
    }
    assert!(login(&pgusher, "s0").value("SELECT 1").parse::<u32>().is_ok());
    assert_eq!(pgusher.log().matches("cannot connect upstream").count(), all.len() - 1);
    assert!(pgusher.resident() < before + (32 << 10), "{} KiB", pgusher.resident() - before);
    unharmed(&pgusher);
}

#[test]
fn scram_iterations_that_cost_too_much_are_refused_before_they_are_done() {
    let fake = Fake::start(|peer| scram_server(peer, "r=NONCEx,s=AAAA,i=4294967295", None));
    let pgusher = Pgusher::start(&fake.config("", &names("s", 1), "sslmode = \"disable\""));
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pgusher.child.id())).unwrap();
        let fields: Vec<u64> = stat.split(' ').skip(13).take(2).map(|f| f.parse().unwrap()).collect();
        fields.iter().sum::<u64>()
    };
    let before = ticks();
    refused(&pgusher, "raw", "s0");
    std::thread::sleep(Duration::from_millis(300));
    assert!(ticks() - before < 20, "{} ticks of CPU", ticks() - before);
}

/// `ErrorResponse`s that are not as they should be.
fn odd_errors() -> Vec<(&'static str, Vec<u8>)> {
    let usual = [('S', "ERROR"), ('V', "ERROR"), ('C', "XX001"), ('M', "a message")];
    let mut cases: Vec<(&str, Vec<u8>)> = Vec::new();
    for missing in 0..usual.len() {
        let mut fields = usual.to_vec();
        fields.remove(missing);
        cases.push(("a field is missing", error(&fields)));
        let mut fields = usual.to_vec();
        fields[missing].1 = "";
        cases.push(("a field is empty", error(&fields)));
        cases.push(("a field is there twice", error(&[&usual[..], &usual[missing..=missing]].concat())));
    }
    let long = "x".repeat(1 << 20);
    cases.push(("unknown fields", error(&[&usual[..], &[('z', "z"), ('\x01', "?"), ('\x7f', "")]].concat())));
    cases.push(("a text of a mebibyte", error(&[('S', "ERROR"), ('C', "XX001"), ('M', &long)])));
    cases.push(("a SQLSTATE of six", error(&[('S', "ERROR"), ('C', "XX0011"), ('M', "m")])));
    cases.push(("no field", error(&[])));
    cases.push(("no body", message('E', b"")));
    cases.push(("no end", message('E', b"SERROR\0CXX001\0Mand then")));
    cases.push(("no last NUL", message('E', b"SERROR\0CXX001\0Mm\0")));
    cases.push(("not UTF-8", message('E', b"SERROR\0CXX001\0M\xff\xfe\0\0")));
    cases
}

#[test]
fn odd_errors_at_login_become_an_error_that_is_whole() {
    let cases = odd_errors();
    let all = names("e", cases.len());
    let texts: Vec<_> = cases.iter().map(|(what, _)| *what).collect();
    let fake = Fake::start(move |peer| peer.send(&cases[case(&peer.database)].1));
    let pgusher = Pgusher::start(&fake.config("", &all, "sslmode = \"disable\""));
    for (name, what) in all.iter().zip(texts) {
        let error = refused(&pgusher, "raw", name);
        assert_eq!(error.field('C').len(), 5, "{what}");
        assert!(!error.field('M').is_empty(), "{what}");
        assert!(error.body.len() < 10_000, "{what}");
    }
    unharmed(&pgusher);
}

#[test]
fn odd_errors_in_a_query_or_unasked_harm_nobody() {
    let cases = odd_errors();
    let all = names("e", cases.len());
    let texts: Vec<_> = cases.iter().map(|(what, _)| *what).collect();
    let fake = Fake::start(move |peer| {
        let odd = cases[case(&peer.database)].1.clone();
        peer.welcome();
        let stream = peer.stream.clone();
        let number = peer.number.to_string();
        peer.serve(|sql| match sql {
            "in a query" => Some([odd.clone(), ready()].concat()),
            "behind" => Some([row(&number), ready(), odd.clone()].concat()),
            "later" => {
                let (stream, odd) = (stream.clone(), odd.clone());
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(20));
                    let _ = (&*stream).write_all(&odd);
                });
                None
            }
            _ => None,
        });
    });
    let pgusher = Pgusher::start(&fake.config("default_pool_size = 1", &all, "sslmode = \"disable\""));
    for (name, what) in all.iter().zip(texts) {
        let mut raw = login(&pgusher, name);
        let answer = raw.ask(&query("in a query"));
        assert!(answer.iter().any(|m| m.tag == 'E'), "{what}: {answer:?}");
        let mut raw = login(&pgusher, name);
        assert!(raw.value("behind").parse::<u32>().is_ok(), "{what}");
        drop(raw);
        let mut raw = login(&pgusher, name);
        assert!(raw.value("later").parse::<u32>().is_ok(), "{what}");
        std::thread::sleep(Duration::from_millis(40));
        let next = raw.value("SELECT 1");
        assert!(next.parse::<u32>().is_ok(), "an unasked error ({what}) became the next answer: {next}");
    }
    unharmed(&pgusher);
}

// ── answers that are none ──

#[test]
fn an_upstream_that_breaks_the_protocol_is_left_and_the_next_query_works() {
    let zeros = [0; 300];
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("garbage".into(), vec![0xff; 100]),
        ("HTTP".into(), b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n".to_vec()),
        ("ReadyForQuery twice".into(), [row("x"), ready(), ready()].concat()),
        ("ReadyForQuery of no status".into(), [row("x"), message('Z', b"")].concat()),
        ("ReadyForQuery of an unknown status".into(), [row("x"), message('Z', b"?")].concat()),
        ("ReadyForQuery too long".into(), [row("x"), message('Z', b"II")].concat()),
        ("rows behind the end".into(), [row("x"), ready(), data("foreign")].concat()),
        (
            "a whole foreign answer behind the end".into(),
            [row("x"), ready(), row("foreign"), ready()].concat(),
        ),
    ];
    for tag in ['1', '2', '3', 't', 'n', 's', 'R', 'K', 'V', 'v', 'W', 'p', 'Q', '\0', '\x7f'] {
        cases.push((format!("an unasked {tag:?}"), [message(tag, &zeros[..8]), ready()].concat()));
    }
    for tag in ['D', 'T', 'C', 'E', 'Z', 'S', 'N', 'A', 'd', 'G'] {
        for length in [0, 3, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff] {
            cases.push((format!("{tag} of length {length}"), with_length(tag, length, &zeros)));
        }
    }
    let all = names("g", cases.len());
    let texts: Vec<_> = cases.iter().map(|(what, _)| what.clone()).collect();
    let fake = Fake::start(move |peer| {
        peer.welcome();
        let broken = cases[case(&peer.database)].1.clone();
        peer.serve(|sql| (sql == "break").then(|| broken.clone()));
    });
    let pgusher = Pgusher::start(&fake.config("default_pool_size = 1", &all, "sslmode = \"disable\""));
    let before = pgusher.resident();
    for (name, what) in all.iter().zip(texts) {
        let mut raw = login(&pgusher, name);
        let first = raw.value("SELECT 1");
        raw.send(&query("break"));
        let mut answer = Vec::new();
        answer.extend(std::iter::from_fn(|| raw.next()));
        let last = answer.last().unwrap_or_else(|| panic!("{what}: no word"));
        assert_eq!((last.tag, last.field('C').as_str()), ('E', "08P01"), "{what}: {answer:?}");
        assert!(!answer.iter().any(|m| m.tag == 'D' && m.columns() == ["foreign"]), "{what}");
        let next = login(&pgusher, name).value("SELECT 1");
        assert!(next.parse::<u32>().is_ok() && next != first, "{what}: {first} {next}");
    }
    assert!(pgusher.resident() < before + (32 << 10), "{} KiB", pgusher.resident() - before);
    unharmed(&pgusher);
}

/// Every place that reads what an upstream sends, and the same lengths for each of them (T-37). In an answer to a
/// query they are tried above.
/// The database cannot be asked for its functions: pgusher serves it all the same, and says so.
#[test]
fn a_server_that_does_not_tell_its_functions_is_served_with_a_warning() {
    let error = message('E', b"SERROR\0C42501\0Mpermission denied\0\0");
    let row_of_another_kind = [row("x"), ready()].concat();
    for answer in [[error, ready()].concat(), row_of_another_kind, message('D', b"\0\x09")] {
        let name = "silent".to_owned();
        let refusal = answer.clone();
        let fake = Fake::start(move |peer| {
            peer.welcome();
            peer.serve(|sql| sql.contains("pg_proc").then(|| refusal.clone()));
        });
        let pgusher = Pgusher::start(&fake.config(
            "default_pool_size = 1",
            std::slice::from_ref(&name),
            "sslmode = \"disable\"",
        ));
        assert_ne!(login(&pgusher, &name).value("SELECT 1"), "", "{answer:?}");
        assert!(pgusher.log().contains("cannot ask the database for its functions"), "{}", pgusher.log());
    }
}

#[test]
fn a_length_that_is_none_ends_the_connection_wherever_it_is_read() {
    #[derive(Clone, Copy, Debug)]
    enum At {
        Login,
        OurOwnQuery,
        Idle,
    }
    let mut cases = Vec::new();
    for at in [At::Login, At::OurOwnQuery, At::Idle] {
        for tag in ['S', 'N', 'Z', 'R', 'D'] {
            for length in [0, 1, 3, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff_u32] {
                cases.push((at, with_length(tag, length, &[0; 64])));
            }
        }
    }
    let all = names("l", cases.len());
    let expected = cases.clone();
    let seen = Mutex::new(HashSet::new());
    let fake = Fake::start(move |peer| {
        let (at, bad) = &cases[case(&peer.database)];
        // The first connection of each database is the broken one.
        let broken = seen.lock().unwrap().insert(peer.database.clone());
        match at {
            At::Login if broken => return peer.send(&[message('R', &[0; 4]), bad.clone()].concat()),
            _ => peer.welcome(),
        }
        peer.serve(|sql| match at {
            At::OurOwnQuery if broken && sql.starts_with("SET SESSION AUTHORIZATION") => Some(bad.clone()),
            At::Idle if broken && sql == "SELECT 1" => Some([row("first"), ready(), bad.clone()].concat()),
            _ => None,
        });
    });
    let pgusher = Pgusher::start(&fake.config("default_pool_size = 1", &all, "sslmode = \"disable\""));
    let before = pgusher.resident();
    for (name, (at, bad)) in all.iter().zip(expected) {
        match at {
            At::Login => assert_eq!(refused(&pgusher, "raw", name).field('C'), "08001", "{at:?} {bad:?}"),
            At::OurOwnQuery => {
                assert_eq!(refused(&pgusher, "raw", name).field('C'), "08006", "{at:?} {bad:?}");
            }
            At::Idle => assert_eq!(login(&pgusher, name).value("SELECT 1"), "first", "{at:?} {bad:?}"),
        }
        let next = login(&pgusher, name).value("SELECT 1");
        assert!(next.parse::<u32>().is_ok(), "{at:?} {bad:?}: {next}");
    }
    assert!(pgusher.resident() < before + (16 << 10), "{} KiB", pgusher.resident() - before);
    unharmed(&pgusher);
}

#[test]
fn what_is_wrong_inside_a_row_is_the_clients_to_judge() {
    let fields = |lengths: &[u32], tail: &[u8]| {
        let mut body = (lengths.len() as u16).to_be_bytes().to_vec();
        lengths.iter().for_each(|length| body.extend(length.to_be_bytes()));
        body.extend(tail);
        message('D', &body)
    };
    let mut wide = 0xffff_u16.to_be_bytes().to_vec();
    wide.extend(b"c\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0".repeat(0xffff));
    let cases = vec![
        fields(&[(-2i32) as u32], b""),
        fields(&[i32::MIN as u32], b"x"),
        fields(&[1000], b"short"),
        fields(&[1, 1, 1], b""),
        fields(&[], b"one too many"),
        message('D', b""),
        message('D', b"\xff\xff"),
        message('T', b""),
        message('T', b"\0\x05no end"),
        message('T', &wide),
        message('C', b""),
        message('C', b"no end"),
        message('S', b""),
        message('S', b"name\0"),
        message('S', b"no end"),
        message('N', b"no end"),
        message('A', b""),
        message('H', b""),
    ];
    let all = names("r", cases.len());
    let sent = cases.clone();
    let fake = Fake::start(move |peer| {
        peer.welcome();
        let odd = sent[case(&peer.database)].clone();
        peer.serve(|sql| {
            (sql == "odd").then(|| [description(), odd.clone(), complete("SELECT 1"), ready()].concat())
        });
    });
    let pgusher = Pgusher::start(&fake.config("default_pool_size = 1", &all, "sslmode = \"disable\""));
    for (name, odd) in all.iter().zip(cases) {
        let mut raw = login(&pgusher, name);
        let answer = raw.ask(&query("odd"));
        let tag = odd[0] as char;
        let passed = answer.iter().any(|m| m.tag == tag && m.body == odd[5..]);
        assert!(passed, "{tag} did not come through: {:?}", answer.iter().map(|m| m.tag).collect::<String>());
        assert_eq!(answer.last().map(|m| m.tag), Some('Z'), "{tag}");
        assert!(raw.value("SELECT 1").parse::<u32>().is_ok(), "{tag}");
    }
    unharmed(&pgusher);
}

#[test]
fn the_beginning_of_an_unasked_message_never_meets_the_next_answer() {
    let notice = message('N', b"SNOTICE\0C00000\0Mhello\0\0");
    for cut in [1, 3, 5, 9] {
        let begun = notice[..cut].to_vec();
        let fake = Fake::start(move |peer| {
            peer.welcome();
            let number = peer.number.to_string();
            peer.serve(|sql| (sql == "begin").then(|| [row(&number), ready(), begun.clone()].concat()));
        });
        let pgusher =
            Pgusher::start(&fake.config("default_pool_size = 2", &names("h", 1), "sslmode = \"disable\""));
        let mut one = login(&pgusher, "h0");
        let mut other = login(&pgusher, "h0");
        assert!(one.value("begin").parse::<u32>().is_ok());
        assert!(other.value("SELECT 1").parse::<u32>().is_ok(), "another client's answer, {cut} bytes");
        // The rest of the notice never comes: the session may wait for it, but must not mix it with an answer.
        one.send(&query("SELECT 1"));
        let answer = one.until_ready();
        let fine = answer.iter().any(|m| m.tag == 'D' && m.columns()[0].parse::<u32>().is_ok());
        assert!(fine, "{cut} bytes: {answer:?}");
    }
}

// ── upstreams that die ──

#[test]
fn a_terminated_backend_says_so_in_postgresqls_words_and_new_transactions_work() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 1", "", ""));
    for running in [false, true] {
        let mut raw = Raw::login(pgusher.address(), "raw");
        raw.value("BEGIN");
        let pid = raw.value("SELECT 0 + pg_backend_pid()");
        if running {
            raw.send(&query("SELECT pg_sleep(60)"));
            eventually("the query runs", || {
                pair().dev.sql("dev", &format!("SELECT state FROM pg_stat_activity WHERE pid = {pid}"))
                    == "active"
            });
        }
        pair().dev.sql("dev", &format!("SELECT pg_terminate_backend({pid})"));
        let answer: Vec<Message> = std::iter::from_fn(|| raw.next()).collect();
        let error = answer.iter().find(|m| m.tag == 'E').unwrap_or_else(|| panic!("{answer:?}"));
        assert_eq!(error.field('C'), "57P01");
        assert_eq!(error.field('M'), "terminating connection due to administrator command");
        assert!(!answer.iter().any(|m| m.tag == 'Z' || m.tag == 'C'), "{answer:?}");
        let mut next = Raw::login(pgusher.address(), "raw");
        assert_eq!(next.value("BEGIN"), "");
        assert_ne!(next.value("SELECT 0 + pg_backend_pid()"), pid);
        next.value("ROLLBACK");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_loses_no_acknowledged_write_and_is_used_again() {
    let server = Arc::new(Postgres::start("prod"));
    server.sql("prod", "CREATE TABLE written (id int)");
    let pgusher = Pgusher::start(&behind(pair().dev.port, server.port, "default_pool_size = 5", "", ""));
    let target = format!("host=127.0.0.1 port={} user=rawprod dbname=warehouse", pgusher.port);
    let (stop, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(1)));
    let writers: Vec<_> = (0..10)
        .map(|_| {
            let (target, stop, next) = (target.clone(), stop.clone(), next.clone());
            tokio::spawn(async move {
                let mut written = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let Ok((client, connection)) =
                        tokio_postgres::connect(&target, tokio_postgres::NoTls).await
                    else {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        continue;
                    };
                    let connection = tokio::spawn(connection);
                    for _ in 0..50 {
                        let id = next.fetch_add(1, Ordering::SeqCst);
                        if client.simple_query(&format!("INSERT INTO written VALUES ({id})")).await.is_err() {
                            break;
                        }
                        written.push(id);
                    }
                    drop(client);
                    let _ = connection.await;
                }
                written
            })
        })
        .collect();
    let some_more = |count: usize| {
        let (server, from) = (server.clone(), next.load(Ordering::SeqCst));
        tokio::task::spawn_blocking(move || {
            let sql = format!("SELECT count(*) >= {count} FROM written WHERE id > {from}");
            eventually("writes go on", || server.sql("prod", &sql) == "t");
        })
    };
    some_more(50).await.unwrap();
    for what in ["restart", "restart"] {
        let server = server.clone();
        tokio::task::spawn_blocking(move || server.ctl(what, &[])).await.unwrap();
        some_more(50).await.unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    let mut acknowledged = HashSet::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    let there = server.sql("prod", "SELECT id FROM written");
    let there: Vec<usize> = there.lines().map(|line| line.parse().unwrap()).collect();
    let once: HashSet<usize> = there.iter().copied().collect();
    assert_eq!(once.len(), there.len(), "a write was done twice");
    assert!(acknowledged.is_subset(&once), "an acknowledged write is lost");
    unharmed(&pgusher);
}

#[test]
fn a_connection_that_died_idle_is_not_lent() {
    let relay = Relay::to(pair().dev.port);
    let pgusher = Pgusher::start(&behind(
        relay.port(),
        pair().prod.port,
        "default_pool_size = 3",
        "sslmode = \"disable\"",
        "",
    ));
    let mut raw = Raw::login(pgusher.address(), "raw");
    let mut last = raw.value("SELECT 0 + pg_backend_pid()");
    for round in 0..40 {
        let how = if round % 2 == 0 { Cut::Fin } else { Cut::Rst };
        assert!(relay.cut_now(how) > 0);
        let pid = raw.value("SELECT 0 + pg_backend_pid()");
        assert!(pid.parse::<u32>().is_ok(), "round {round}, {how:?}: {pid}");
        assert_ne!(pid, last);
        last = pid;
    }
}

#[test]
fn a_connection_that_went_dark_idle_meets_one_query_and_is_given_up() {
    let relay = Relay::to(pair().dev.port);
    let pgusher = Pgusher::start(&behind(
        relay.port(),
        pair().prod.port,
        "default_pool_size = 1",
        "sslmode = \"disable\"\nquery_timeout = \"1s\"",
        "",
    ));
    let mut unlucky = Raw::login(pgusher.address(), "raw");
    let mut other = Raw::login(pgusher.address(), "raw");
    let pid = unlucky.value("SELECT 0 + pg_backend_pid()");
    assert!(relay.cut_now(Cut::Dark) > 0);
    unlucky.send(&query("SELECT 'never'"));
    std::thread::sleep(Duration::from_millis(50));
    // Waits for the same connection, and is given another.
    other.send(&query("SELECT 'served'"));
    let answer: Vec<_> = std::iter::from_fn(|| unlucky.next()).collect();
    assert_eq!(answer.len(), 1, "{answer:?}");
    assert_eq!((answer[0].tag, answer[0].field('C').as_str()), ('E', "08006"), "{answer:?}");
    assert!(answer[0].field('D').contains("timed out"), "{answer:?}");
    assert!(other.until_ready().iter().any(|m| m.tag == 'D' && m.columns() == ["served"]));
    let next = Raw::login(pgusher.address(), "raw").value("SELECT 0 + pg_backend_pid()");
    assert!(next.parse::<u32>().is_ok() && next != pid, "{next}");
    unharmed(&pgusher);
}

#[test]
fn an_answer_that_goes_dark_in_the_middle_ends_and_is_not_taken_for_a_whole_one() {
    let dark_after = |bytes: usize| {
        let relay = Relay::to(pair().dev.port);
        let base = "sslmode = \"disable\"\nquery_timeout = \"1s\"";
        let pgusher = Pgusher::start(&behind(relay.port(), pair().prod.port, "", base, ""));
        let mut raw = Raw::login(pgusher.address(), "raw");
        raw.value("SELECT 1");
        relay.cut_after(bytes, Cut::Dark);
        raw.send(&query("SELECT n, 'xxxxxxxxxxxxxxxx' FROM generate_series(1, 1000) AS n"));
        let answer: Vec<_> = std::iter::from_fn(|| raw.next()).collect();
        relay.mend();
        assert!(!answer.iter().any(|m| matches!(m.tag, 'C' | 'Z')), "{bytes}: {answer:?}");
        if bytes == 0 {
            assert_eq!(answer[0].field('C'), "08006");
        }
        assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT name FROM whoami"), "dev");
        unharmed(&pgusher);
    };
    std::thread::scope(|scope| {
        for bytes in [0, 3, 40, 5000] {
            scope.spawn(move || dark_after(bytes));
        }
    });
}

#[test]
fn an_answer_that_is_cut_anywhere_is_never_taken_for_a_whole_one() {
    let relay = Relay::to(pair().dev.port);
    let server = "default_pool_size = 1\nclient_login_timeout = \"10s\"";
    let pgusher =
        Pgusher::start(&behind(relay.port(), pair().prod.port, server, "sslmode = \"disable\"", ""));
    let batch = [
        query("SELECT 'row ' || i, 'x' FROM generate_series(1, 4) i"),
        parse("", "SELECT $1::text || i FROM generate_series(1, 3) i"),
        bind("", "", &["y"]),
        describe_statement(""),
        execute(),
        sync(),
    ]
    .concat();
    let ask = |raw: &mut Raw| {
        raw.send(&[&batch[..], &message('X', b"")].concat());
        let mut bytes = Vec::new();
        let _ = raw.stream.read_to_end(&mut bytes);
        bytes
    };
    let whole = ask(&mut Raw::login(pgusher.address(), "raw"));
    let boundaries: HashSet<usize> = std::iter::successors(Some(0), |at: &usize| {
        let length = whole.get(at + 1..at + 5)?;
        Some(at + 1 + u32::from_be_bytes(length.try_into().unwrap()) as usize)
    })
    .collect();
    assert!(boundaries.len() > 15 && boundaries.contains(&whole.len()));
    for offset in 0..whole.len() {
        let how = if offset % 2 == 0 { Cut::Fin } else { Cut::Rst };
        let mut raw = Raw::login(pgusher.address(), "raw");
        assert_eq!(raw.value("SELECT 'open'"), "open");
        relay.cut_after(offset, how);
        let got = ask(&mut raw);
        relay.mend();
        let same = got.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        let messages = *boundaries.iter().filter(|at| **at <= offset).max().unwrap();
        // A RST may overtake what was sent before it.
        assert!(same <= offset && (how == Cut::Rst || same >= messages), "{offset}: {same}");
        let behind = &got[same..];
        if !behind.is_empty() {
            assert!(boundaries.contains(&same), "{offset}: an error inside of a message");
            let error = u32::from_be_bytes(behind[1..5].try_into().unwrap()) as usize + 1;
            assert_eq!((behind[0], behind.len()), (b'E', error), "{offset}: more than an error");
        }
    }
    assert_eq!(ask(&mut Raw::login(pgusher.address(), "raw")), whole);
    unharmed(&pgusher);
}

/// Stopped until dropped.
struct Stopped(String);

impl Stopped {
    fn stop(pid: &str) -> Self {
        run(Command::new("kill").args(["-STOP", pid]));
        Self(pid.to_owned())
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0]).status();
    }
}

#[test]
fn a_backend_that_hangs_makes_its_own_pool_wait_and_no_other() {
    let server = "default_pool_size = 1\nquery_wait_timeout = \"1s\"";
    let pgusher = Pgusher::start(&warehouse(server, "", ""));
    let mut first = Raw::login(pgusher.address(), "rawprod");
    let mut second = Raw::login(pgusher.address(), "rawprod");
    let stopped = Stopped::stop(&first.value("SELECT 0 + pg_backend_pid()"));
    first.send(&query("SELECT 'late'"));
    std::thread::sleep(Duration::from_millis(50));
    second.send(&query("SELECT 'never'"));
    let mut dev = Raw::login(pgusher.address(), "raw");
    for _ in 0..100 {
        assert_eq!(dev.value("SELECT name FROM whoami"), "dev");
    }
    let answer = second.until_ready();
    assert_eq!(answer.iter().map(|m| m.tag).collect::<String>(), "EZ");
    assert!(answer[0].field('M').contains("query_wait_timeout"), "{answer:?}");
    assert!(answer[0].field('D').contains("Environment \"prod\""), "{answer:?}");
    drop(stopped);
    assert!(first.until_ready().iter().any(|m| m.tag == 'D' && m.columns() == ["late"]));
    assert_eq!(second.value("SELECT name FROM whoami"), "prod");
}

// ── bytes in pieces ──

#[test]
fn pieces_of_any_size_make_the_same_conversation() {
    let far = Relay::to(pair().dev.port);
    let pgusher = Pgusher::start(&behind(
        far.port(),
        pair().prod.port,
        "default_pool_size = 1",
        "sslmode = \"disable\"",
        "",
    ));
    let client_side = Relay::to(pgusher.port);
    let long = "z".repeat(3000);
    let conversation: Vec<Vec<u8>> = vec![
        query("SELECT i, repeat('a', 30 * i) FROM generate_series(1, 20) i; SELECT 2"),
        query(&format!("SELECT '{long}'")),
        query("SELECT 1/0"),
        [parse("s", "SELECT $1::text"), bind("", "s", &[&long]), describe_statement("s"), execute(), sync()]
            .concat(),
        [parse("t", "SELEC"), bind("", "t", &[]), execute(), sync()].concat(),
        [bind("", "s", &["again"]), execute(), sync()].concat(),
        query("CREATE TEMP TABLE piece (a text)"),
        [
            query("COPY piece FROM STDIN"),
            message('d', b"one\n"),
            message('d', b"two\nthree\n"),
            message('c', b""),
        ]
        .concat(),
        query("COPY piece TO STDOUT"),
        [query("COPY piece FROM STDIN"), message('f', b"no\0")].concat(),
        query("DROP TABLE piece"),
        message('X', b""),
    ];
    let talk = |address: SocketAddr, user: &str, database: &str| {
        let mut raw = Raw::login_with(address, 0x0003_0000, &[("user", user), ("database", database)]);
        let mut heard = Vec::new();
        for part in &conversation {
            raw.send(part);
            heard.extend(raw.until_ready().into_iter().filter(|m| m.tag != 'S'));
        }
        heard
    };
    let expected = talk((Ipv4Addr::LOCALHOST, pair().dev.port).into(), "app", "dev");
    for (pieces, upstream) in [(0, 0), (1, 0), (0, 1), (1, 1), (2, 3), (7, 5), (64, 1000)] {
        client_side.split(pieces);
        far.split(upstream);
        let heard = talk(client_side.address(), "raw", "warehouse");
        assert_eq!(heard.len(), expected.len(), "pieces of {pieces} and {upstream}");
        for (ours, theirs) in heard.iter().zip(&expected) {
            assert_eq!(ours, theirs, "pieces of {pieces} and {upstream}");
        }
    }
}

// ── upstreams that say no ──

#[test]
fn an_upstream_that_refuses_the_login_is_told_to_the_client_at_once() {
    let options = ["-c max_connections=4", "-c superuser_reserved_connections=0", "-c max_wal_senders=0"];
    let server = Postgres::start_with("prod", &options);
    let environment = "password = \"right\"\nsslmode = \"disable\"";
    let pgusher = Pgusher::start(&behind(pair().dev.port, server.port, "", "", environment));
    let direct = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port));
    let postgres = [("user", "postgres"), ("database", "prod")];
    // Others have all the connections.
    let mut others: Vec<Raw> = (0..4).map(|_| Raw::login_with(direct, 0x0003_0000, &postgres)).collect();
    let started = Instant::now();
    let error = refused(&pgusher, "rawprod", "warehouse");
    assert_eq!(error.field('C'), "53300");
    assert_eq!(error.field('M'), "sorry, too many clients already");
    assert!(error.field('D').contains("Environment \"prod\""), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(5));
    // The password is wrong: our login's failure, not the client's.
    let hba = server.folder.join("data/pg_hba.conf");
    std::fs::write(&hba, "host all postgres 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\n")
        .unwrap();
    others[0].value("ALTER ROLE app PASSWORD 'other'");
    others[0].value("SELECT pg_reload_conf()");
    others.truncate(1);
    eventually("the connections are free", || {
        others[0].value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") == "1"
    });
    let mut error = refused(&pgusher, "rawprod", "warehouse");
    eventually("the new rules hold", || {
        error = refused(&pgusher, "rawprod", "warehouse");
        error.field('C') == "08001"
    });
    assert!(
        error.field('D').contains("28P01") && error.field('D').contains("Environment \"prod\""),
        "{error:?}"
    );
    // Healed, it is used again.
    others[0].value("ALTER ROLE app PASSWORD 'right'");
    assert_eq!(pgusher.psql("dana", "SELECT name FROM whoami").unwrap(), "dev");
    eventually("prod is back", || pgusher.psql("pete", "SELECT name FROM whoami").as_deref() == Ok("prod"));
}

#[test]
fn an_upstream_that_is_starting_says_so_in_its_own_words() {
    let fake = Fake::start(|peer| {
        let fields =
            [('S', "FATAL"), ('V', "FATAL"), ('C', "57P03"), ('M', "the database system is starting up")];
        peer.send(&error(&fields));
    });
    let pgusher = Pgusher::start(&fake.config("", &names("f", 1), ""));
    let error = refused(&pgusher, "raw", "f0");
    assert_eq!(error.field('C'), "57P03");
    assert_eq!(error.field('M'), "the database system is starting up");
    assert!(error.field('D').contains("f0"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_prod_is_down_its_users_are_told_and_dev_notices_nothing() {
    let server = Postgres::start("prod");
    let environment = "connect_timeout = \"3s\"";
    let pgusher = Arc::new(Pgusher::start(&behind(pair().dev.port, server.port, "", "", environment)));
    assert_eq!(pgusher.psql("pete", "SELECT name FROM whoami").unwrap(), "prod");
    let held = tokio::task::spawn_blocking({
        let address = pgusher.address();
        move || Raw::login(address, "rawprod")
    });
    let mut held = held.await.unwrap();
    server.ctl("stop", &[]);
    let dev: Vec<_> = (0..4)
        .map(|_| {
            let pgusher = pgusher.clone();
            tokio::task::spawn_blocking(move || {
                for _ in 0..size(100, 2500) {
                    assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT name FROM whoami"), "dev");
                }
            })
        })
        .collect();
    tokio::task::block_in_place(|| {
        for _ in 0..10 {
            let started = Instant::now();
            let refusal = pgusher.psql("pete", "SELECT name FROM whoami").unwrap_err();
            assert!(
                refusal.contains("Environment \"prod\"") || refusal.contains("environment \"prod\""),
                "{refusal}"
            );
            assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
        }
        let error = held.value("SELECT name FROM whoami");
        assert!(error.starts_with("08") || error.starts_with("57P0"), "{error}");
    });
    for login in dev {
        login.await.unwrap();
    }
    server.ctl("start", &[]);
    tokio::task::block_in_place(|| {
        eventually("prod is back", || {
            pgusher.psql("pete", "SELECT name FROM whoami").as_deref() == Ok("prod")
        });
    });
    unharmed(&pgusher);
}

// ── clients that leave their upstream alone ──

#[test]
fn a_client_that_stops_reading_loses_its_connection_to_those_who_wait() {
    let server = "default_pool_size = 1\nclient_write_timeout = \"1s\"";
    let pgusher = Pgusher::start(&warehouse(server, "", ""));
    let mut other = Raw::login(pgusher.address(), "raw");
    other.value("SELECT 1");
    let before = pgusher.resident();
    let mut deaf = Raw::login(pgusher.address(), "raw");
    deaf.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)"));
    deaf.stream.read_exact(&mut [0; 1000]).unwrap();
    let pid = other.value("SELECT 0 + pg_backend_pid()");
    assert!(pid.parse::<u32>().is_ok(), "{pid}");
    assert!(pgusher.resident() < before + (16 << 10), "{} KiB", pgusher.resident() - before);
    let mut rest = Vec::new();
    let _ = deaf.stream.read_to_end(&mut rest);
    assert!(rest.len() < 500_000_000 && !rest.ends_with(&ready()), "its answer is no whole one");
    assert_eq!(other.value("SELECT name FROM whoami"), "dev");
}

#[test]
fn a_slow_client_that_goes_on_reading_is_not_cut() {
    let pgusher = Pgusher::start(&warehouse("client_write_timeout = \"1s\"", "", ""));
    let mut slow = Raw::login(pgusher.address(), "raw");
    let socket = socket2::SockRef::from(&slow.stream);
    socket.set_recv_buffer_size(64 << 10).unwrap();
    slow.send(&query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)"));
    let (mut bytes, mut piece) = (0, vec![0; 256 << 10]);
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(20));
        let read = slow.stream.read(&mut piece).unwrap();
        assert!(read > 0, "cut after {:?} and {bytes} bytes", started.elapsed());
        bytes += read;
    }
    let mut rest = Vec::new();
    slow.send(&message('X', b""));
    let _ = slow.stream.read_to_end(&mut rest);
    assert!(rest.ends_with(&ready()) && bytes + rest.len() > 100_000_000, "{} bytes", bytes + rest.len());
}

#[test]
fn a_client_killed_in_a_transaction_leaves_nothing_behind() {
    let pgusher = Pgusher::start(&warehouse("default_pool_size = 1", "", ""));
    let dev = &pair().dev;
    dev.sql("dev", "CREATE TABLE killed (a int)");
    let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'dev' AND query LIKE '%killed%' \
                AND pid <> pg_backend_pid() AND state <> 'idle'";
    for (how, begun) in [
        (Cut::Fin, vec!["BEGIN", "INSERT INTO killed VALUES (1)"]),
        (Cut::Rst, vec!["BEGIN", "INSERT INTO killed VALUES (2)"]),
        (Cut::Rst, vec!["BEGIN", "INSERT INTO killed VALUES (3)", "SELECT 1/0"]),
        (Cut::Fin, vec!["BEGIN", "LOCK killed", "SELECT pg_sleep(60) AS killed"]),
        (Cut::Rst, vec!["BEGIN", "LOCK killed", "SELECT pg_sleep(60) AS killed"]),
        (Cut::Rst, vec!["BEGIN", "COPY killed FROM STDIN"]),
    ] {
        let mut raw = Raw::login(pgusher.address(), "raw");
        for sql in &begun[..begun.len() - 1] {
            raw.value(sql);
        }
        raw.send(&query(begun[begun.len() - 1]));
        std::thread::sleep(Duration::from_millis(30));
        if how == Cut::Rst {
            socket2::SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(raw);
        let mut next = Raw::login(pgusher.address(), "raw");
        assert_eq!(
            next.ask(&query("SELECT 1")).last().map(|m| m.body.clone()),
            Some(b"I".to_vec()),
            "{begun:?}"
        );
        assert_eq!(next.value("SELECT count(*) FROM killed"), "0", "{begun:?}");
        eventually("its transaction is gone", || dev.sql("dev", left) == "0");
    }
    dev.sql("dev", "DROP TABLE killed");
}

/// A log that nobody reads, that cannot be written, or that has no end: clients do not notice, and lines are counted.
#[test]
fn a_log_that_is_not_taken_holds_up_nobody() {
    // A pipe that is held open and never read.
    let unread = "import os, sys
r, w = os.pipe(); os.set_inheritable(r, True); os.dup2(w, 2)
os.execv(sys.argv[1], sys.argv[1:])";
    let port = free_port();
    let metrics = format!("metrics_listen = \"127.0.0.1:{port}\"\nlog_level = \"trace\"");
    let config = warehouse(&metrics, "", "").replacen("log_level = \"debug\"\n", "", 1);
    let closed: &[&str] = &["sh", "-c", "exec \"$0\" \"$@\" 2>&-"];
    let full: &[&str] = &["sh", "-c", "exec \"$0\" \"$@\" 2>/dev/full"];
    for by in [&["python3", "-c", unread][..], closed, full] {
        let pgusher = Pgusher::start_by(&config, by);
        let dropped = || {
            let url = format!("http://127.0.0.1:{port}/metrics");
            let output = run(Command::new("curl").args(["-sS", &url]));
            let text = String::from_utf8(output.stdout).unwrap();
            let line = text.lines().find(|line| line.starts_with("pgusher_log_lines_dropped_total"));
            line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        let mut logins = 0;
        let enough = |logins: usize| if by[0] == "python3" { dropped() > 0 } else { logins >= 300 };
        while logins % 100 != 0 || !enough(logins) {
            assert_eq!(Raw::login(pgusher.address(), "raw").value("SELECT 1"), "1");
            logins += 1;
            assert!(logins < 20_000, "no line was dropped");
        }
    }
}

/// A process that was stopped for a while, and goes on: no session is ended for that.
#[test]
fn a_process_that_stood_still_ends_nobody() {
    let server =
        "client_idle_timeout = \"60s\"\nclient_login_timeout = \"60s\"\nserver_idle_timeout = \"60s\"";
    let pgusher = Pgusher::start(&warehouse(server, "", ""));
    let mut raws: Vec<Raw> = (0..20).map(|_| Raw::login(pgusher.address(), "raw")).collect();
    raws.iter_mut().for_each(|raw| assert_eq!(raw.value("SELECT 1"), "1"));
    raws[0].ask(&query("BEGIN"));
    pgusher.signal("STOP");
    std::thread::sleep(Duration::from_secs(5));
    raws.iter_mut().for_each(|raw| raw.send(&query("SELECT 'on'")));
    pgusher.signal("CONT");
    for raw in &mut raws {
        assert!(raw.until_ready().iter().any(|m| m.tag == 'D' && m.columns() == ["on"]));
    }
}
