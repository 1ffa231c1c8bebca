//! The core by itself, on a connection that says what the test says.

use super::position::MAX_REQUESTS;
use super::*;
use wire::error::SqlState;
use wire::{HEADER, cstr, message};

struct Bench {
    core: Core,
    backend: BackendState,
}

/// A message of this tag.
fn m(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    message(&mut out, tag, |out| out.extend_from_slice(body));
    out
}

/// The body of a `DataRow`.
pub(crate) fn row(columns: &[Option<&str>]) -> Vec<u8> {
    let mut row = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
    for column in columns {
        match column {
            None => row.extend((-1i32).to_be_bytes()),
            Some(text) => {
                row.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                row.extend(text.bytes());
            }
        }
    }
    row
}

fn parse(name: &str, sql: &str) -> Vec<u8> {
    m(b'P', format!("{name}\0{sql}\0\0\0").as_bytes())
}

fn bind(name: &str) -> Vec<u8> {
    m(b'B', format!("\0{name}\0\0\0\0\0\0\0").as_bytes())
}

/// The same with one parameter, a NULL.
fn bind_one(name: &str) -> Vec<u8> {
    m(b'B', &[format!("\0{name}\0\0\0\0\x01").as_bytes(), &[0xff, 0xff, 0xff, 0xff, 0, 0]].concat())
}

/// What a server says of a statement with these parameters, and a column of this name.
fn described(parameters: &[u32], column: Option<&str>) -> Vec<u8> {
    let mut types = u16::try_from(parameters.len()).unwrap().to_be_bytes().to_vec();
    parameters.iter().for_each(|oid| types.extend(oid.to_be_bytes()));
    let columns = match column {
        Some(name) => m(b'T', &[&[0, 1], name.as_bytes(), &[0; 19]].concat()),
        None => m(b'n', b""),
    };
    [m(b't', &types), columns].concat()
}

impl Bench {
    fn new() -> Self {
        Self::with(&Arc::new(Interner::new(7)), 1)
    }

    fn with(interner: &Arc<Interner>, id: u64) -> Self {
        Self::of(PoolMode::Transaction, interner, id)
    }

    fn of_mode(mode: PoolMode) -> Self {
        Self::of(mode, &Arc::new(Interner::new(7)), 1)
    }

    fn of(mode: PoolMode, interner: &Arc<Interner>, id: u64) -> Self {
        let facts = ["dev", "warehouse", "dana", "because"].map(str::to_owned);
        let [environment, connection, user, route] = facts;
        let facts =
            Arc::new(Facts { environment, connection, user: user.into(), route, memory: Arc::default() });
        let reported: Arc<Parameters> = Arc::default();
        let settings = SessionSettings::new(reported.clone(), Arc::default(), None);
        Self {
            core: Core::new(Own { id, pid: None }, mode, interner.clone(), facts, settings),
            backend: BackendState::new(reported, 100, Some(7)),
        }
    }

    /// What goes up, what goes back, and what next.
    fn client(&mut self, input: &[u8]) -> (Vec<u8>, Vec<u8>, Taken) {
        let (mut copy, mut down) = (Vec::new(), Vec::new());
        let mut up = OutputBuffer::new(input, &mut copy);
        let taken = self.core.client_sent(input, Some(&mut self.backend), &mut up, &mut down).unwrap();
        (up.bytes().to_vec(), down, taken)
    }

    /// The client names a statement of one column or none, and the server prepares it.
    fn names(&mut self, name: &str, sql: &str) {
        let (up, ..) = self.client(&[parse(name, sql), m(b'S', b"")].concat());
        assert_eq!(Self::tags(&up), "PDS");
        let columns = if sql.starts_with("SELECT") { Some("a") } else { None };
        let answer = [m(b'1', b""), described(&[], columns), m(b'Z', b"I")].concat();
        assert_eq!(Self::tags(&self.upstream(&answer)), "1Z");
    }

    fn upstream(&mut self, input: &[u8]) -> Vec<u8> {
        self.try_upstream(input).unwrap()
    }

    fn try_upstream(&mut self, input: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut copy = Vec::new();
        let mut down = OutputBuffer::new(input, &mut copy);
        let consumed = self.core.upstream_sent(input, &mut self.backend, &mut down)?;
        assert_eq!(consumed, input.len());
        Ok(down.bytes().to_vec())
    }

    fn tags(bytes: &[u8]) -> String {
        let mut tags = String::new();
        let mut rest = bytes;
        while let Some(Ok(header)) = wire::Header::read(rest) {
            tags.push(header.tag as char);
            rest = &rest[header.total..];
        }
        tags
    }
}

#[test]
fn a_query_passes_untouched_and_releases_when_it_is_answered() {
    let mut bench = Bench::new();
    let query = m(b'Q', b"SELECT 1\0");
    let (up, down, taken) = bench.client(&query);
    assert_eq!((up, down.len(), taken.consumed), (query.clone(), 0, query.len()));
    assert!(!bench.core.may_release());
    let answer = [m(b'T', b"\0\0"), m(b'D', b"\0\0"), m(b'C', b"SELECT 1\0"), m(b'Z', b"I")].concat();
    assert_eq!(bench.upstream(&answer), answer);
    assert!(bench.core.may_release());
}

#[test]
fn what_is_not_whole_is_shown_again_and_long_messages_stream() {
    let mut bench = Bench::new();
    let query = m(b'Q', b"SELECT 1\0");
    for end in 0..query.len() {
        let (up, _, taken) = bench.client(&query[..end]);
        assert_eq!((up.len(), taken.consumed), (0, 0), "{end}");
    }
    let long = m(b'Q', &vec![b'x'; 10 * GATHER]);
    let (up, _, taken) = bench.client(&long[..2 * GATHER]);
    assert_eq!((up.len(), taken.consumed), (2 * GATHER, 2 * GATHER));
    assert!(!bench.core.may_release());
    assert_eq!(bench.client(&long[2 * GATHER..]).0, &long[2 * GATHER..]);
}

#[test]
fn a_long_statement_with_a_suspicious_word_pins() {
    let mut bench = Bench::new();
    let text = format!("SELECT '{}', set_config('a.b','c',false)\0", "x".repeat(3 * GATHER));
    let long = m(b'Q', text.as_bytes());
    let cut = GATHER + 7;
    bench.client(&long[..cut]);
    assert_eq!(bench.core.pin(), None);
    bench.client(&long[cut..]);
    assert_eq!(bench.core.pin(), Some(Pin::Opaque));
}

/// The name under which the first message prepares or uses something.
fn upstream_name(up: &[u8], offset: usize) -> Vec<u8> {
    cstr(&up[HEADER + offset..]).unwrap().0.to_vec()
}

/// Whatever others have prepared: what it gives now is what the client is told of it.
#[test]
fn what_a_client_names_is_prepared_anew_and_replaces_what_was_there() {
    let interner = Arc::new(Interner::new(7));
    let mut one = Bench::with(&interner, 1);
    let (up, down, _) = one.client(&[parse("a", "SELECT 1"), bind("a"), m(b'S', b"")].concat());
    assert_eq!((Bench::tags(&up).as_str(), down.len()), ("PDBS", 0));
    let first = upstream_name(&up, 0);
    assert!(interner.is_reserved(&first));
    let answer = [m(b'1', b""), described(&[], Some("a")), m(b'2', b""), m(b'Z', b"I")].concat();
    assert_eq!(Bench::tags(&one.upstream(&answer)), "12Z", "the description is not the client's");
    // The next session on the same connection prepares the same text under another name.
    let mut two = Bench::with(&interner, 2);
    std::mem::swap(&mut one.backend, &mut two.backend);
    let (up, ..) = two.client(&[parse("b", "SELECT 1"), m(b'S', b"")].concat());
    let second = upstream_name(&up, 0);
    assert!(Bench::tags(&up) == "PDS" && second != first);
    two.upstream(&[m(b'1', b""), described(&[], Some("a")), m(b'Z', b"I")].concat());
    // To whom they are the same use the newer one, and the older one goes when something else is prepared.
    std::mem::swap(&mut one.backend, &mut two.backend);
    let (up, ..) = one.client(&[bind("a"), m(b'S', b"")].concat());
    assert_eq!((Bench::tags(&up).as_str(), upstream_name(&up, 1)), ("BS", second));
    one.upstream(&[m(b'2', b""), m(b'Z', b"I")].concat());
    let (up, ..) = one.client(&[parse("c", "SELECT 2"), m(b'S', b"")].concat());
    assert_eq!(Bench::tags(&up), "PCDS");
    assert!(up.windows(first.len()).any(|bytes| bytes == first));
}

/// On another connection it must be what the client was told, or be refused before anything has run.
#[test]
fn what_is_prepared_again_has_the_types_that_were_told_and_is_compared_before_it_is_used() {
    for (column, expected) in [(Some("a"), "2Z"), (Some("b"), "EZ"), (None, "EZ")] {
        let mut bench = Bench::new();
        bench.client(&[parse("a", "SELECT 1 WHERE $1"), m(b'S', b"")].concat());
        bench.upstream(&[m(b'1', b""), described(&[16], Some("a")), m(b'Z', b"I")].concat());
        bench.backend = BackendState::new(Arc::default(), 100, Some(8));
        let batch = [bind_one("a"), m(b'S', b"")].concat();
        let (up, _, taken) = bench.client(&batch);
        assert_eq!((Bench::tags(&up).as_str(), taken.then, taken.consumed), ("PDH", Then::Defer, 0));
        assert!(up.windows(6).any(|bytes| bytes == b"\0\x01\0\0\0\x10"), "its type goes with it");
        assert_eq!(bench.client(&batch).2, Taken { consumed: 0, then: Then::Defer }, "nothing twice");
        assert!(bench.upstream(&m(b'1', b"")).is_empty() && !bench.core.may_go_on());
        assert!(bench.upstream(&described(&[16], column)).is_empty() && bench.core.may_go_on());
        let (up, mut down, taken) = bench.client(&batch);
        assert_eq!(taken.then, Then::More);
        let answer = match Bench::tags(&up).as_str() {
            "BS" => [m(b'2', b""), m(b'Z', b"I")].concat(),
            "DS" => [m(b'E', b"SERROR\0C26000\0Mnone\0\0"), m(b'Z', b"I")].concat(),
            other => panic!("{column:?}: {other}"),
        };
        down.extend(bench.upstream(&answer));
        assert_eq!(Bench::tags(&down), expected, "{column:?}");
        let refused = memchr::memmem::find(&down, b"Mcached plan must not change result type").is_some();
        assert_eq!(refused, expected == "EZ", "{column:?}");
        assert!(bench.core.may_release());
    }
}

/// Where the connection does not have it, and perhaps cannot be given it, as the transaction has failed.
#[test]
fn parameters_that_are_too_few_or_too_many_are_refused_as_postgresql_does() {
    for (bound, expected) in [
        (bind("a"), "Mbind message supplies 0 parameters, but prepared statement \"a\" requires 1\0"),
        (m(b'B', b"\0a\0\0\x02\0\0\0\0\0\0\0\0"), "Mbind message has 2 parameter formats but 0 parameters\0"),
    ] {
        let mut bench = Bench::new();
        bench.client(&[parse("a", "SELECT 1 WHERE $1"), m(b'S', b"")].concat());
        bench.upstream(&[m(b'1', b""), described(&[16], Some("a")), m(b'Z', b"I")].concat());
        bench.backend = BackendState::new(Arc::default(), 100, Some(8));
        let (up, ..) = bench.client(&[bound, m(b'S', b"")].concat());
        assert_eq!(Bench::tags(&up), "DS", "the upstream fails, too");
        let down = bench.upstream(&[m(b'E', b"SERROR\0C25P02\0Mno\0\0"), m(b'Z', b"E")].concat());
        assert_eq!(Bench::tags(&down), "EZ");
        assert!(memchr::memmem::find(&down, expected.as_bytes()).is_some(), "{}", down.escape_ascii());
    }
}

/// What is parsed where settings are others than its session's is known by them to nobody else.
#[test]
fn what_is_prepared_under_settings_of_a_transaction_is_shared_with_nobody() {
    let interner = Arc::new(Interner::new(7));
    let mut one = Bench::with(&interner, 1);
    for (sql, tag) in [("BEGIN", "BEGIN"), ("SET LOCAL TIME ZONE 'UTC'", "SET")] {
        one.client(&m(b'Q', format!("{sql}\0").as_bytes()));
        one.upstream(&[m(b'C', format!("{tag}\0").as_bytes()), m(b'Z', b"T")].concat());
    }
    one.client(&[parse("a", "SELECT 1"), m(b'S', b"")].concat());
    one.upstream(&[m(b'1', b""), described(&[], Some("a")), m(b'Z', b"T")].concat());
    one.client(&m(b'Q', b"COMMIT\0"));
    one.upstream(&[m(b'C', b"COMMIT\0"), m(b'Z', b"I")].concat());
    assert!(one.core.may_release());
    one.core.detach(&mut one.backend);
    // Who was told the same of the same text has it prepared again; and what was planned is planned anew.
    let mut two = Bench::with(&interner, 2);
    two.names("a", "SELECT 1");
    std::mem::swap(&mut one.backend, &mut two.backend);
    let mut up = Vec::new();
    two.core.attach(&mut two.backend, &mut up);
    assert_eq!(up, m(b'Q', b"DISCARD PLANS;\0"));
    two.upstream(&[m(b'C', b"DISCARD PLANS\0"), m(b'Z', b"I")].concat());
    let (up, ..) = two.client(&[bind("a"), m(b'S', b"")].concat());
    assert_eq!(Bench::tags(&up), "PDH");
    two.upstream(&[m(b'1', b""), described(&[], Some("a"))].concat());
    let (up, ..) = two.client(&[bind("a"), m(b'S', b"")].concat());
    assert_eq!(Bench::tags(&up), "BS");
    two.upstream(&[m(b'2', b""), m(b'Z', b"I")].concat());
    two.core.detach(&mut two.backend);
    // Its own session has it still.
    std::mem::swap(&mut one.backend, &mut two.backend);
    assert_eq!(Bench::tags(&one.client(&[bind("a"), m(b'S', b"")].concat()).0), "BS");
}

/// A table of that name may be another one now.
#[test]
fn among_temporary_objects_what_all_share_is_not_used() {
    let mut bench = Bench::new();
    bench.names("a", "SELECT a FROM t");
    bench.client(&m(b'Q', b"CREATE TEMP TABLE t (a int)\0"));
    bench.upstream(&[m(b'C', b"CREATE TABLE\0"), m(b'Z', b"I")].concat());
    let uses = [bind("a"), m(b'S', b"")].concat();
    assert_eq!(Bench::tags(&bench.client(&uses).0), "PDH");
    bench.upstream(&[m(b'1', b""), described(&[], Some("a"))].concat());
    for _ in 0..2 {
        assert_eq!(Bench::tags(&bench.client(&uses).0), "BS", "once");
        bench.upstream(&[m(b'2', b""), m(b'Z', b"I")].concat());
    }
}

/// In one pipeline, too, it is compared with what the client is about to be told.
#[test]
fn what_has_gone_before_it_was_described_is_waited_for() {
    let mut bench = Bench::new();
    bench.backend.max_prepared = 1;
    let batch =
        [parse("a", "INSERT INTO t VALUES ($1)"), parse("b", "SELECT 1"), bind_one("a"), m(b'S', b"")]
            .concat();
    let (up, _, taken) = bench.client(&batch);
    assert_eq!((Bench::tags(&up).as_str(), taken.then), ("PDPCDH", Then::Defer));
    let rest = &batch[taken.consumed..];
    bench.upstream(&[m(b'1', b""), described(&[23], None), m(b'1', b""), m(b'3', b"")].concat());
    bench.upstream(&described(&[], Some("a")));
    let (up, _, taken) = bench.client(rest);
    assert_eq!((Bench::tags(&up).as_str(), taken.then), ("PCDH", Then::Defer));
    assert!(up.windows(6).any(|bytes| bytes == b"\0\x01\0\0\0\x17"), "with the type that was told");
    bench.upstream(&[m(b'1', b""), m(b'3', b""), described(&[23], None)].concat());
    assert_eq!(Bench::tags(&bench.client(rest).0), "BS");
}

/// What a cursor or another statement answers is its own to say, each time.
#[test]
fn what_has_no_columns_of_its_own_is_not_compared() {
    for sql in ["fetch all from c", "EXECUTE x", "SHOW search_path"] {
        let mut bench = Bench::new();
        bench.client(&[parse("a", sql), m(b'S', b"")].concat());
        bench.upstream(&[m(b'1', b""), described(&[], None), m(b'Z', b"I")].concat());
        bench.backend = BackendState::new(Arc::default(), 100, Some(8));
        assert_eq!(Bench::tags(&bench.client(&[bind("a"), m(b'S', b"")].concat()).0), "PDBS", "{sql}");
        let answer = [m(b'1', b""), described(&[], Some("a")), m(b'2', b""), m(b'Z', b"I")].concat();
        assert_eq!(Bench::tags(&bench.upstream(&answer)), "2Z", "{sql}");
    }
}

/// A few bytes that name many, or list them, do not become more than a statement has.
#[test]
fn names_that_sql_uses_cost_bounded_bytes() {
    for (text, most) in [
        ("EXECUTE a; EXECUTE b; EXECUTE c; EXECUTE d", MAX_NAMED_PARSE),
        ("SELECT * FROM pg_prepared_statements", MAX_ADDED),
        ("DEALLOCATE a; DEALLOCATE b", 1 << 10),
    ] {
        let mut bench = Bench::new();
        for name in ["a", "b", "c", "d"] {
            bench.names(name, &format!("SELECT '{name}{}'", "x".repeat(MAX_NAMED_PARSE / 3)));
        }
        bench.names("e", "SELECT 1");
        let query = m(b'Q', format!("{text}\0").as_bytes());
        let (up, ..) = bench.client(&query);
        assert!(Bench::tags(&up).contains("PQ") && up.len() <= most + (1 << 10), "{text}: {}", up.len());
    }
    // One that lists them, and is not given its own name, is there to be run.
    let mut bench = Bench::new();
    bench.names("a", "SELECT 1");
    bench.names("b", &format!("SELECT * FROM pg_prepared_statements WHERE name <> '{}'", "x".repeat(60_000)));
    bench.names("c", &format!("SELECT '{}'", "x".repeat(MAX_ADDED)));
    bench.core.statements.put(b"a", None);
    bench.names("a", &format!("SELECT '{}'", "x".repeat(MAX_ADDED - 50_000)));
    let (up, ..) = bench.client(&[bind("b"), m(b'S', b"")].concat());
    let (mut closed, mut bound, mut rest) = (Vec::new(), Vec::new(), &up[..]);
    while let Some(Ok(header)) = wire::Header::read(rest) {
        match header.tag {
            b'C' => closed.push(upstream_name(rest, 1)),
            b'B' => bound = upstream_name(rest, 1),
            _ => {}
        }
        rest = &rest[header.total..];
    }
    assert!(bench.core.statements.interner().is_reserved(&bound) && !closed.contains(&bound));
}

/// It cannot be prepared: the client hears why, in place of an answer to what it has sent.
#[test]
fn what_cannot_be_prepared_again_is_refused_as_the_server_says() {
    let mut bench = Bench::new();
    bench.names("a", "SELECT a FROM t");
    bench.backend = BackendState::new(Arc::default(), 100, Some(8));
    let batch = [bind("a"), m(b'E', b"\0\0\0\0\0"), m(b'S', b"")].concat();
    bench.client(&batch);
    let error = m(b'E', b"SERROR\0C42P01\0Mno such table\0\0");
    assert_eq!(bench.upstream(&error), error);
    let (up, ..) = bench.client(&batch);
    assert_eq!(Bench::tags(&up), "BES", "what the server ignores");
    assert_eq!(Bench::tags(&bench.upstream(&m(b'Z', b"I"))), "Z");
    assert!(bench.core.may_release() && bench.backend.prepared() == 0);
}

#[test]
fn what_an_error_skipped_is_taken_back() {
    let mut bench = Bench::new();
    bench.client(&[bind("none"), parse("a", "SELECT 1"), m(b'S', b"")].concat());
    assert_eq!(Bench::tags(&bench.upstream(&[m(b'E', b"SERROR\0\0"), m(b'Z', b"I")].concat())), "EZ");
    assert!(bench.backend.prepared() == 0 && bench.core.may_release());
    let (up, ..) = bench.client(&[parse("a", "SELECT 2"), m(b'S', b"")].concat());
    assert_eq!(Bench::tags(&up), "PDS", "the name is free");
}

#[test]
fn syncs_in_front_of_copy_data_are_not_waited_for() {
    let mut bench = Bench::new();
    let copy = [parse("", "COPY t FROM STDIN"), bind(""), m(b'E', b"\0\0\0\0\0"), m(b'S', b"")].concat();
    bench.client(&copy);
    bench.upstream(&[m(b'1', b""), m(b'2', b""), m(b'G', b"\0\0\0")].concat());
    bench.client(&[m(b'd', b"1\n"), m(b'c', b""), m(b'S', b"")].concat());
    bench.upstream(&m(b'C', b"COPY 1\0"));
    assert!(!bench.core.may_release());
    bench.upstream(&m(b'Z', b"I"));
    assert!(bench.core.may_release());
}

#[test]
fn a_set_that_was_not_foreseen_pins() {
    let mut bench = Bench::new();
    bench.client(&m(b'Q', b"SELECT 1\0"));
    bench.upstream(&[m(b'C', b"SET\0"), m(b'Z', b"I")].concat());
    assert_eq!(bench.core.pin(), Some(Pin::Opaque));
}

#[test]
fn what_the_protocol_does_not_allow_breaks_the_connection() {
    for unasked in [
        m(b'Z', b"I"),
        m(b'D', b"\0\0"),
        m(b'1', b""),
        m(b'K', b"\0\0\0\0"),
        m(b'R', b"\0\0\0\0"),
        m(b'?', b""),
    ] {
        let mut bench = Bench::new();
        let mut copy = Vec::new();
        let mut down = OutputBuffer::new(&unasked, &mut copy);
        let broken = bench.core.upstream_sent(&unasked, &mut bench.backend, &mut down);
        assert!(matches!(broken, Err(Broken::Desync(_))), "{unasked:?}");
        assert!(down.bytes().is_empty());
    }
}

#[test]
fn without_a_connection_a_sync_is_answered_and_late_copy_data_ignored() {
    let mut bench = Bench::new();
    let input = [m(b'd', b"late"), m(b'c', b""), m(b'S', b""), m(b'Q', b"SELECT 1\0")].concat();
    let (mut copy, mut down) = (Vec::new(), Vec::new());
    let mut up = OutputBuffer::new(&input, &mut copy);
    let taken = bench.core.client_sent(&input, None, &mut up, &mut down).unwrap();
    assert_eq!(taken, Taken { consumed: 19, then: Then::Lease });
    assert_eq!(down, m(b'Z', b"I"));
}

/// Any bytes, in any pieces: an answer, an error or a wait, and never a panic or an endless loop.
#[test]
fn random_bytes_are_dealt_with() {
    let mut seed = 0x5eed_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..20_000 {
        let mut bench = Bench::new();
        for _ in 0..4 {
            let mut input = Vec::new();
            for _ in 0..random() % 6 {
                let tag = b"QPBDCESHFdcfXTZGKA123nIs"[(random() % 24) as usize];
                let body: Vec<u8> = (0..random() % 24)
                    .map(|_| if random() % 3 == 0 { 0 } else { random().to_le_bytes()[0] })
                    .collect();
                input.extend(m(tag, &body));
            }
            if random() % 4 == 0 {
                input.truncate(usize::try_from(random() % (input.len() as u64 + 1)).unwrap());
            }
            let (mut copy, mut down) = (Vec::new(), Vec::new());
            let mut sink = OutputBuffer::new(&input, &mut copy);
            let backend = (random() % 4 != 0).then_some(&mut bench.backend);
            let from_client = random() % 2 == 0;
            if from_client {
                if let Ok(taken) = bench.core.client_sent(&input, backend, &mut sink, &mut down) {
                    assert!(taken.consumed <= input.len());
                }
            } else if let Ok(consumed) = bench.core.upstream_sent(&input, &mut bench.backend, &mut sink) {
                assert!(consumed <= input.len());
            }
        }
    }
}

#[test]
fn a_pipeline_that_parses_anew_in_each_segment_is_not_held_back() {
    let mut bench = Bench::new();
    let segment = [parse("", "SELECT 1"), bind(""), m(b'E', b"\0\0\0\0\0"), m(b'S', b"")].concat();
    let (up, down, taken) = bench.client(&segment.repeat(3));
    assert_eq!((Bench::tags(&up).as_str(), down.len()), ("PBESPBESPBES", 0));
    assert_eq!(taken, Taken { consumed: 3 * segment.len(), then: Then::More });
    // What a segment takes over from one that may still fail is held back.
    let (up, _, taken) = bench.client(&[bind(""), m(b'S', b"")].concat());
    assert_eq!((up.len(), taken), (0, Taken { consumed: 0, then: Then::Defer }));
    let answer = [m(b'1', b""), m(b'2', b""), m(b'C', b"SELECT 1\0"), m(b'Z', b"I")].concat();
    bench.upstream(&answer.repeat(3));
    assert_eq!(Bench::tags(&bench.client(&[bind(""), m(b'S', b"")].concat()).0), "BS");
}

/// However many settings a transaction touches, they are not kept or looked through without bound.
#[test]
fn a_session_that_touches_very_many_settings_keeps_its_connection() {
    let mut bench = Bench::new();
    bench.client(&m(b'Q', b"BEGIN\0"));
    bench.upstream(&[m(b'C', b"BEGIN\0"), m(b'Z', b"T")].concat());
    for i in 0..300 {
        bench.client(&m(b'Q', format!("SET my.x{i} = 1\0").as_bytes()));
        bench.upstream(&[m(b'C', b"SET\0"), m(b'Z', b"T")].concat());
    }
    assert_eq!(bench.core.pin(), Some(Pin::Setting));
    assert!(!bench.core.residue.is_touched());
}

/// Before another user's statement is sent, the server has answered that nothing is left; what it says meanwhile is not the
/// client's.
#[test]
fn nothing_of_a_client_is_sent_before_the_server_has_reset_its_connection() {
    let mut bench = Bench::new();
    assert!(!bench.backend.is_foreign_to(bench.core.user()));
    bench.backend.serve(&"somebody else".into());
    assert!(bench.backend.is_foreign_to(bench.core.user()));
    let mut up = Vec::new();
    bench.core.reset(7, Proof::new(8), &mut up);
    assert_eq!(Bench::tags(&up), "QQ");
    assert!(up.is_ascii() && bench.core.holds_client() && bench.core.is_resetting());
    let first =
        [m(b'S', b"TimeZone\0UTC\0"), m(b'C', b"DISCARD ALL\0"), m(b'A', b"\0\0\0\x01c\0p\0"), m(b'Z', b"I")];
    assert_eq!(bench.upstream(&first.concat()), b"");
    assert!(bench.core.is_resetting() && bench.backend.is_foreign_to(bench.core.user()));
    let second = [m(b'T', b"\0\0"), m(b'D', PROOF_8), m(b'C', b"SELECT 1\0"), m(b'Z', b"I")];
    assert_eq!(bench.upstream(&second.concat()), b"");
    assert!(!bench.core.is_setting_up() && bench.backend.is_clean());
}

const PROOF_8: &[u8] = b"\0\x02\0\0\0\0\0\0\0\x100000000000000008";

#[test]
fn a_reset_that_fails_or_leaves_a_transaction_open_is_the_end_of_the_connection() {
    let discarded = || [m(b'C', b"DISCARD ALL\0"), m(b'Z', b"I")].concat();
    let selected = || [m(b'C', b"SELECT 1\0"), m(b'Z', b"I")].concat();
    for answer in [
        m(b'E', b"SERROR\0C57014\0Mcanceled\0\0"),
        [m(b'C', b"DISCARD ALL\0"), m(b'Z', b"T")].concat(),
        [m(b'C', b"DISCARD ALL\0"), m(b'Z', b"E")].concat(),
        // Answers to what somebody else has asked before: without the row, with another, with one too early.
        [discarded(), selected()].concat(),
        m(b'Z', b"I").repeat(2),
        [discarded(), m(b'D', b"\0\x01\0\0\0\x100000000000000009"), selected()].concat(),
        [m(b'D', PROOF_8), discarded(), selected()].concat(),
    ] {
        let mut bench = Bench::new();
        bench.backend.serve(&"somebody else".into());
        bench.core.reset(7, Proof::new(8), &mut Vec::new());
        let mut copy = Vec::new();
        let mut down = OutputBuffer::new(&answer, &mut copy);
        assert!(bench.core.upstream_sent(&answer, &mut bench.backend, &mut down).is_err());
        assert_eq!(down.bytes(), b"");
        assert!(!bench.backend.is_clean());
    }
}

/// What comes behind a change of how texts are read waits for the answer; in the same batch it is opaque.
#[test]
fn a_text_is_not_judged_before_it_is_known_how_it_is_read() {
    let mut bench = Bench::new();
    let change = m(b'Q', b"set standard_conforming_strings = off\0");
    let behind = m(b'Q', b"select '\\', set_config('search_path', 'evil', false), ''\0");
    let (up, _, taken) = bench.client(&[change.clone(), behind.clone()].concat());
    assert_eq!((up, taken.consumed, taken.then), (change.clone(), change.len(), Then::Defer));
    bench.upstream(
        &[m(b'S', b"standard_conforming_strings\0off\0"), m(b'C', b"SET\0"), m(b'Z', b"I")].concat(),
    );
    bench.client(&behind);
    assert_eq!(bench.core.pin(), Some(Pin::Opaque));

    let mut bench = Bench::new();
    let execute = || m(b'E', b"\0\0\0\0\0");
    let batch = [
        parse("", "set standard_conforming_strings = off"),
        bind(""),
        execute(),
        parse("", "select '\\', set_config('search_path', 'evil', false), ''"),
        bind(""),
        execute(),
        m(b'S', b""),
    ];
    bench.client(&batch.concat());
    assert_eq!(bench.core.pin(), Some(Pin::Opaque));
}
/// What an upstream answers to a statement that it does not have.
fn no_such(code: &str) -> Vec<u8> {
    m(b'E', format!("SERROR\0VERROR\0C{code}\0Mupstream's\0\0").as_bytes())
}

#[test]
fn setting_one_of_ours_is_refused_and_nothing_of_it_is_run() {
    for (sql, code, message) in [
        (
            "SET pgusher.environment = 'prod'",
            "55P02",
            "parameter \"pgusher.environment\" cannot be changed after connection start",
        ),
        ("SELECT 1; RESET pgusher.route", "55P02", "parameter \"pgusher.route\" cannot be changed"),
        (
            "SELECT set_config('pgusher.enviroment', 'prod', false)",
            "42704",
            "unrecognized configuration parameter \"pgusher.enviroment\"",
        ),
    ] {
        let is_refused = |body: &[u8]| {
            let field = |code| wire::error_field(body, code).unwrap();
            assert_eq!((field(b'C'), field(b'M')), (code.as_bytes(), message.as_bytes()), "{sql}");
            assert!(String::from_utf8_lossy(field(b'H')).contains("options=-c pgusher.environment=NAME"));
            assert!(String::from_utf8_lossy(field(b'D')).contains("environment \"dev\""));
        };
        // As a simple query: another, which fails as well; the state behind it is the upstream's.
        for status in [b"I", b"E"] {
            let mut bench = Bench::new();
            let (up, down, taken) = bench.client(&m(b'Q', format!("{sql}\0").as_bytes()));
            assert_eq!((Bench::tags(&up).as_str(), down.len(), taken.then), ("Q", 0, Then::More));
            assert!(up[5..].starts_with(b"DEALLOCATE \""), "{sql}");
            let answer = bench.upstream(&[no_such("26000"), m(b'Z', status)].concat());
            assert_eq!(Bench::tags(&answer), "EZ");
            is_refused(&answer[5..]);
            assert_eq!((bench.core.may_release(), bench.core.pin()), (status == b"I", None));
        }
        // A transaction that has failed before says so.
        let mut bench = Bench::new();
        bench.client(&m(b'Q', format!("{sql}\0").as_bytes()));
        let failed = [no_such("25P02"), m(b'Z', b"E")].concat();
        assert_eq!(bench.upstream(&failed), failed);
        // In the extended protocol, named or not: what is behind it up to the Sync is skipped.
        for name in ["", "s"] {
            let mut bench = Bench::new();
            let batch = [parse(name, sql), bind(name), m(b'E', b"\0\0\0\0\0"), m(b'S', b"")].concat();
            let (up, down, taken) = bench.client(&batch);
            assert_eq!((down.len(), taken.consumed), (0, batch.len()), "{name:?}");
            assert!(Bench::tags(&up).starts_with('D') && Bench::tags(&up).ends_with('S'), "{name:?}");
            assert!(!up.windows(3).any(|bytes| bytes.eq_ignore_ascii_case(b"set")), "{name:?}");
            let answer = bench.upstream(&[no_such("26000"), m(b'Z', b"I")].concat());
            assert_eq!(Bench::tags(&answer), "EZ");
            is_refused(&answer[5..]);
            assert_eq!((bench.core.may_release(), bench.core.pin()), (true, None));
            // The name is free.
            let (up, ..) = bench.client(&[parse("s", "SELECT 2"), m(b'S', b"")].concat());
            assert_eq!(Bench::tags(&up), "PDS");
        }
    }
}

/// Each `Bind` has its statement prepared on a connection that does not have it: one after the other, as the upstream answers.
#[test]
fn a_few_bytes_that_become_many_wait_for_the_upstream() {
    let mut bench = Bench::new();
    let length = MAX_ADDED / 2;
    let names = ["a", "b", "c", "d", "e", "f", "g"];
    for name in names {
        bench.names(name, &format!("SELECT '{}'", name.repeat(length)));
    }
    bench.backend.prepared = PreparedStatements::default();
    let binds = names.map(bind).concat();
    let mut rest = &binds[..];
    for _ in names {
        let (up, down, taken) = bench.client(rest);
        let tags = Bench::tags(&up);
        assert!(tags.ends_with("PDH") && down.is_empty() && taken.then == Then::Defer, "{tags}");
        assert!(up.len() < MAX_ADDED, "{} bytes for {}", up.len(), taken.consumed);
        rest = &rest[taken.consumed..];
        if tags.starts_with('B') {
            bench.upstream(&m(b'2', b""));
        }
        // Not before all of it is answered.
        assert_eq!(bench.client(rest).2, Taken { consumed: 0, then: Then::Defer });
        bench.upstream(&m(b'1', b""));
        assert_eq!(bench.client(rest).2, Taken { consumed: 0, then: Then::Defer });
        bench.upstream(&described(&[], Some("a")));
    }
    assert_eq!(bench.client(rest).2, Taken { consumed: rest.len(), then: Then::More });
}

/// During a COPY the upstream answers nothing: whoever sends such a thing then is ended.
#[test]
fn many_bytes_during_a_copy_end_the_session() {
    let mut bench = Bench::new();
    bench.names("a", &format!("SELECT '{}'", "x".repeat(MAX_ADDED)));
    bench.client(&m(b'Q', b"COPY t FROM STDIN\0"));
    bench.upstream(&m(b'G', b"\0\0\0"));
    bench.core.statements.note_effects(&Effects { deallocates_all: true, ..Effects::default() }, 0);
    let input = bind("a").repeat(3000);
    let (mut copy, mut down) = (Vec::new(), Vec::new());
    let mut up = OutputBuffer::new(&input, &mut copy);
    let refusal = bench.core.client_sent(&input, Some(&mut bench.backend), &mut up, &mut down).unwrap_err();
    assert_eq!(refusal.sqlstate, SqlState::LIMIT_EXCEEDED);
    assert!(up.bytes().len() < 3 * MAX_ADDED);
}

#[test]
fn what_is_remembered_of_a_pipeline_is_bounded_in_bytes() {
    let mut bench = Bench::new();
    let text = format!("SELECT '{}'", "x".repeat(MAX_UNNAMED - 100));
    let input = parse("", &text).repeat(3 * MAX_NOTED / MAX_UNNAMED);
    let (up, _, taken) = bench.client(&input);
    assert_eq!(taken.then, Then::Defer);
    assert!(
        bench.core.position.requests().bytes() < MAX_NOTED + MAX_UNNAMED,
        "{}",
        bench.core.position.requests().bytes()
    );
    let tags = Bench::tags(&up);
    assert!(tags.ends_with("PH"), "{tags}");
    bench.upstream(&m(b'1', b"").repeat(tags.len() - 1));
    assert_eq!(bench.core.position.requests().bytes(), 0);
    assert!(bench.client(&input[taken.consumed..]).2.consumed > MAX_NOTED / 2);
}

/// The text of a statement is kept as long as the request that took its name away may fail.
#[test]
fn statements_that_lost_their_names_count_until_that_is_answered() {
    let mut bench = Bench::new();
    let long = |name: &str| parse(name, &format!("SELECT '{name}{}'", "x".repeat(MAX_NOTED)));
    let close = m(b'C', b"Sa\0");
    let (up, _, taken) = bench.client(&[long("a"), close.clone(), long("a")].concat());
    assert_eq!((Bench::tags(&up).as_str(), taken.then), ("PDH", Then::Defer));
    assert_eq!(taken.consumed, long("a").len() + close.len());
    assert_eq!(Bench::tags(&bench.upstream(&[m(b'1', b""), described(&[], Some("a"))].concat())), "13");
    assert_eq!(bench.core.position.requests().bytes(), 0);
}

#[test]
fn references_to_reserved_names_cost_bounded_memory() {
    let mut bench = Bench::new();
    bench.client(&m(b'Q', b"SELECT pg_sleep(10)\0"));
    let name = format!("{}zz{}", bench.core.statements.interner().name(7), "x".repeat(9_000));
    for _ in 0..MAX_REQUESTS {
        bench.client(&bind(&name));
    }
    assert!(bench.core.position.requests().bytes() < 4 << 20, "{}", bench.core.position.requests().bytes());
    bench.client(&bind(&name));
    assert!(bench.core.is_full());
}

#[test]
fn a_session_with_very_many_channels_keeps_its_connection() {
    let channels = |count: usize| (0..count).map(|i| format!("c{i}")).collect::<Vec<_>>();
    let mut bench = Bench::new();
    bench.core.found_channels(channels(1000));
    assert!(bench.core.is_transferring() && bench.core.pin().is_none());
    let mut bench = Bench::new();
    bench.core.found_channels(channels(1001));
    assert!(!bench.core.is_transferring() && !bench.core.has_channels());
    assert_eq!(bench.core.pin(), Some(Pin::Listen));
}

/// A pipeline in which everything is taken in, whatever its messages say, keeps no more requests than the core says.
#[test]
fn no_more_requests_are_kept_than_are_read() {
    for message in
        [m(b'Q', b"SELECT 1\0"), m(b'S', b""), bind("none"), m(b'E', b"\0\0\0\0\0"), m(b'F', b"\0\0\0\0")]
    {
        let mut bench = Bench::new();
        let mut sent = 0;
        while !bench.core.is_full() && sent < 2 * MAX_REQUESTS {
            bench.client(&message.repeat(100));
            sent += 100;
        }
        assert!(bench.core.position.requests().len() <= MAX_REQUESTS + 100, "{message:?}");
    }
}

/// Whether a COPY that fails has read the `Sync`s that were sent behind it, nobody can tell.
#[test]
fn a_connection_of_a_copy_that_failed_with_syncs_behind_it_is_nobody_elses() {
    for syncs in 0..4 {
        for mode in [PoolMode::Transaction, PoolMode::Session] {
            let mut bench = Bench::of_mode(mode);
            let asked =
                [m(b'Q', b"copy t from stdin\0"), m(b'd', b"abc\n"), m(b'S', b"").repeat(syncs)].concat();
            bench.client(&asked);
            let failed =
                [m(b'G', b"\0\0\x01\0\0"), m(b'E', b"SERROR\0C22P02\0Mno\0\0"), m(b'Z', b"I")].concat();
            bench.upstream(&failed);
            let free = bench.core.may_release() || bench.core.is_cleanable();
            // Data that comes before the server asks for it is in doubt by itself.
            assert_eq!(free, syncs == 0 && mode == PoolMode::Session, "{syncs} in {mode:?}");
        }
    }
}

/// Not before it has answered a state probe with its own row: then nothing else is under way.
#[test]
fn a_connection_whose_answers_may_have_been_miscounted_is_asked_before_it_goes_back() {
    let row = |word: &str| {
        let length = u32::try_from(word.len()).unwrap().to_be_bytes();
        m(b'D', &[&[0, 1][..], &length, word.as_bytes()].concat())
    };
    let whole = |row: &[u8]| [&m(b'T', b"\0\0"), row, &m(b'C', b"SELECT 1\0"), &m(b'Z', b"I")].concat();
    let failed = || {
        let mut bench = Bench::new();
        bench.client(&[m(b'Q', b"copy t from stdin\0"), m(b'd', b"abc\n"), m(b'S', b"")].concat());
        bench.upstream(
            &[m(b'G', b"\0\0\x01\0\0"), m(b'E', b"SERROR\0C22P02\0Mno\0\0"), m(b'Z', b"I")].concat(),
        );
        assert!(bench.core.wants_probe() && !bench.core.may_release() && bench.core.may_be_busy());
        bench
    };
    let ask = |bench: &mut Bench, number| {
        let mut asked = Vec::new();
        bench.core.probe(Proof::new(number), &mut bench.backend, &mut asked);
        assert!(asked.ends_with(b"::pg_catalog.text\0") && !bench.core.wants_probe());
    };
    let own = whole(&row("0000000000000001"));
    let mut bench = failed();
    ask(&mut bench, 1);
    assert_eq!(bench.upstream(&own), b"");
    assert!(bench.core.may_release() && !bench.core.may_be_busy(), "it was counted right");
    // What was still under way ends the connection: a row at once, a bare ending with the row behind it.
    let ended = [m(b'C', b"COPY 1\0"), m(b'Z', b"I")].concat();
    for late in [whole(&row("forged")), whole(&row("0000000000000002")), m(b'Z', b"I"), ended] {
        let mut bench = failed();
        ask(&mut bench, 1);
        let mut is_broken = bench.try_upstream(&late).is_err();
        if !is_broken {
            assert!(bench.core.wants_probe() && !bench.core.may_release());
            ask(&mut bench, 2);
            is_broken = bench.try_upstream(&own).is_err();
        }
        assert!(is_broken, "{late:?}");
    }
}

/// In a failed transaction nothing can be prepared; but what has no columns is described as it was told, also there.
#[test]
fn in_a_failed_transaction_a_statement_that_another_connection_has_is_described() {
    let interner = Arc::new(Interner::new(7));
    for (sql, parameters, expected) in [
        ("CREATE TABLE t (a int)", &[][..], "tnZ"),
        ("insert into t values (1)", &[], "tnZ"),
        ("", &[], "tnZ"),
        ("insert into t values ($1)", &[23], "tnZ"),
        ("SELECT 1", &[], "EZ"),
        ("insert into t values (1) returning a", &[], "EZ"),
    ] {
        let mut bench = Bench::with(&interner, 1);
        bench.client(&[parse("a", sql), m(b'S', b"")].concat());
        let column = (expected == "EZ").then_some("a");
        bench.upstream(&[m(b'1', b""), described(parameters, column), m(b'Z', b"I")].concat());
        // Another connection, and a transaction that fails, of which the answer is still to come.
        bench.backend = BackendState::new(Arc::default(), 100, Some(8));
        let describe = [m(b'D', b"Sa\0"), m(b'S', b"")].concat();
        let asked = [m(b'Q', b"BEGIN\0"), m(b'Q', b"SELECT 1/0\0"), describe.clone()].concat();
        let (_, _, taken) = bench.client(&asked);
        bench.upstream(&[m(b'C', b"BEGIN\0"), m(b'Z', b"T")].concat());
        let failed = bench.upstream(&[m(b'E', b"SERROR\0C22012\0Mno\0\0"), m(b'Z', b"E")].concat());
        let mut down = failed[failed.len().min(m(b'E', b"SERROR\0C22012\0Mno\0\0").len() + 6)..].to_vec();
        if expected == "tnZ" {
            assert_eq!((taken.then, taken.consumed), (Then::More, asked.len()), "{sql}");
            assert!(memchr::memmem::find(&down, &described(parameters, None)).is_some(), "{sql}");
        } else {
            assert_eq!((taken.then, asked.len() - taken.consumed), (Then::Defer, describe.len()), "{sql}");
            assert!(bench.core.may_go_on());
            assert_eq!(Bench::tags(&bench.client(&describe).0), "PDH");
            down.extend(bench.upstream(&m(b'E', b"SERROR\0C25P02\0Maborted\0\0")));
            bench.client(&describe);
        }
        down.extend(bench.upstream(&m(b'Z', b"E")));
        assert_eq!(Bench::tags(&down), expected, "{sql}");
    }
}

/// However often a statement is bound or waits, it is gone through a few times.
#[test]
fn a_long_statement_is_gone_through_once_and_not_at_each_use() {
    use crate::sql::budget::GONE_THROUGH;
    let text = format!("SELECT 1 /* {} */", "set ".repeat(50_000));
    let gone_through = |bench: &mut Bench, messages: &[u8]| {
        let before = GONE_THROUGH.get();
        bench.client(messages);
        GONE_THROUGH.get() - before
    };
    // Bound a thousand times in a later batch: the unnamed one, and a named one where texts are read otherwise.
    for (name, settings) in [("", "on"), ("a", "off"), ("a", "on")] {
        let mut bench = Bench::new();
        let setting = format!("standard_conforming_strings\0{settings}\0");
        bench.client(&m(b'Q', b"select 1\0"));
        bench.upstream(&[m(b'S', setting.as_bytes()), m(b'C', b"SELECT 1\0"), m(b'Z', b"I")].concat());
        let once = gone_through(&mut bench, &[parse(name, &text), m(b'S', b"")].concat());
        let learned = if name.is_empty() { Vec::new() } else { described(&[], Some("a")) };
        bench.upstream(&[m(b'1', b""), learned, m(b'Z', b"I")].concat());
        let times = gone_through(&mut bench, &bind(name).repeat(1000));
        assert!(
            once + times <= 6 * text.len(),
            "{name:?}, {settings}: {once}, then {times} of {}",
            text.len()
        );
    }
}

/// What was never sent upstream stands in no COPY's way: behind it the server has read its end already.
#[test]
fn what_is_answered_here_does_not_hide_the_end_of_a_copy() {
    let mut bench = Bench::new();
    bench.names("n", "SELECT 1");
    let asked = [m(b'Q', b"copy t from stdin\0"), m(b'C', b"Sn\0"), m(b'd', b"1\n"), m(b'c', b"")].concat();
    bench.client(&asked);
    bench.upstream(&m(b'G', b"\0\0\x01\0\0"));
    // This one is answered.
    bench.client(&m(b'S', b""));
    bench.upstream(&[m(b'C', b"COPY 1\0"), m(b'Z', b"I")].concat());
    assert!(!bench.core.is_idle(), "an answer is owed");
    bench.upstream(&m(b'Z', b"I"));
    assert!(bench.core.is_idle());
}

/// A `Sync` in front of the data is swallowed by the COPY: the transaction ends with the one behind it.
#[test]
fn a_copy_goes_on_until_a_sync_that_is_answered() {
    let begin = [parse("", "copy t from stdin"), bind(""), m(b'E', b"\0\0\0\0\0"), m(b'S', b"")].concat();
    let begun = [m(b'1', b""), m(b'2', b""), m(b'G', b"\0\0\x01\0\0")].concat();
    for late in [false, true] {
        let mut bench = Bench::new();
        match late {
            // The `Sync` comes when the COPY has begun, or before.
            true => {
                bench.client(&begin[..begin.len() - 5]);
                bench.upstream(&begun);
                bench.client(&m(b'S', b""));
            }
            false => {
                bench.client(&begin);
                bench.upstream(&begun);
            }
        }
        bench.client(&[m(b'd', b"1\n"), m(b'c', b""), m(b'H', b"")].concat());
        bench.upstream(&m(b'C', b"COPY 1\0"));
        assert!(!bench.core.is_idle() && bench.core.awaits_client(), "nothing is committed yet");
        let (up, down, _) = bench.client(&m(b'S', b""));
        assert_eq!((Bench::tags(&up).as_str(), down.len()), ("S", 0));
        bench.upstream(&m(b'Z', b"I"));
        assert!(bench.core.may_release());
    }
}

/// PostgreSQL answers COPY data outside a COPY if `statement_timeout` fires just then.
#[test]
fn data_that_nobody_waits_for_puts_in_doubt_what_is_answered() {
    for data in [m(b'd', b"1\n"), m(b'c', b""), m(b'f', b"no\0")] {
        let mut bench = Bench::new();
        bench.client(&[parse("", "select 1"), bind(""), m(b'H', b"")].concat());
        bench.upstream(&[m(b'1', b""), m(b'2', b"")].concat());
        bench.client(&[data, m(b'S', b""), m(b'Q', b"select 1\0")].concat());
        let timed_out = [m(b'E', b"SERROR\0C57014\0Mtimeout\0\0"), m(b'Z', b"I"), m(b'Z', b"I")].concat();
        bench.upstream(&timed_out);
        assert!(bench.core.is_idle() && bench.core.wants_probe() && !bench.core.may_release());
    }
}

/// What only a server that has lost its place says.
#[test]
fn an_end_of_a_command_that_nothing_has_begun_breaks_the_connection() {
    let mut bench = Bench::new();
    bench.client(&[parse("", "select 1"), m(b'S', b"")].concat());
    assert!(bench.try_upstream(&[m(b'1', b""), m(b'C', b"SELECT 1\0")].concat()).is_err());
}

/// Such a statement may be long, and be bound a thousand times over.
#[test]
fn a_statement_that_defines_something_is_gone_through_once_however_often_it_is_bound() {
    use crate::sql::budget::GONE_THROUGH;
    let text = format!("CREATE TABLE x (a int) /* {} */", "a ".repeat(100_000));
    for name in ["", "a"] {
        let mut bench = Bench::new();
        bench.client(&[parse(name, &text), m(b'S', b"")].concat());
        let learned = if name.is_empty() { Vec::new() } else { described(&[], None) };
        bench.upstream(&[m(b'1', b""), learned, m(b'Z', b"I")].concat());
        let before = GONE_THROUGH.get();
        let binds = bind(name).repeat(4000);
        bench.client(&binds);
        let after = GONE_THROUGH.get() - before;
        assert!(after <= 5 * text.len(), "{name:?}: {after}");
    }
}

/// What costs more than the bytes that ask for it: sixty long names are compared with each other at each use.
#[test]
fn after_much_work_for_few_bytes_the_servers_answer_is_waited_for() {
    let settings: Vec<String> =
        (0..60).map(|n| format!("set_config('my.{}{n}', 'x', false)", "x".repeat(900))).collect();
    let mut bench = Bench::new();
    bench.names("a", &format!("SELECT {}", settings.join(", ")));
    let binds = bind("a").repeat(100);
    let (.., taken) = bench.client(&binds);
    assert_eq!(taken.then, Then::Defer);
    assert!(taken.consumed <= 2 * bind("a").len(), "{}", taken.consumed);
    // Then it goes on.
    bench.upstream(&m(b'2', b""));
    assert!(bench.core.may_go_on() && bench.client(&binds[taken.consumed..]).2.consumed > 0);
}

/// However many settings it may change, a pool's doubt keeps nobody on his connection for good.
#[test]
fn what_is_in_doubt_for_a_pool_pins_nobody() {
    let mut many = Effects { defines: true, ..Effects::default() };
    for n in 0..100 {
        many.add(&Effects { settings: vec![format!("my.s{n}")], ..Effects::default() });
    }
    assert_eq!(many.pin, Some(Pin::Setting));
    let catalog = Catalog::default().doubted(&many).without_pin();
    assert_eq!(catalog.mentioned(b"select 1").and_then(|effects| effects.pin), None);
}

/// A function may raise the very code that says that a statement is not there.
#[test]
fn a_statement_is_prepared_again_only_if_the_server_itself_misses_it() {
    for (place, again) in [("FetchPreparedStatement", true), ("exec_stmt_raise", false)] {
        let mut bench = Bench::new();
        bench.names("a", "SELECT f()");
        bench.client(&[bind("a"), m(b'E', b"\0\0\0\0\0"), m(b'S', b"")].concat());
        let error = format!("SERROR\0C26000\0Mgone\0R{place}\0\0");
        let answer = bench.upstream(&[m(b'E', error.as_bytes()), m(b'Z', b"I")].concat());
        assert_eq!(answer.is_empty(), again, "{place}");
    }
}

#[test]
fn a_copy_that_is_over_before_the_client_has_ended_it_costs_the_connection() {
    let mut bench = Bench::new();
    bench.client(&m(b'Q', b"copy t from stdin\0"));
    bench.upstream(&[m(b'G', b"\0\0\x01\0\0"), m(b'C', b"COPY 0\0"), m(b'Z', b"I")].concat());
    assert!(!bench.core.may_release() && !bench.core.is_cleanable());
}

#[test]
fn an_error_that_answers_nothing_costs_the_connection() {
    let mut bench = Bench::new();
    bench.upstream(&m(b'E', b"SERROR\0VERROR\0C08P01\0Mno\0\0"));
    assert!(!bench.core.may_release() && !bench.core.is_cleanable());
    // And the message that would bring one about is refused.
    let mut bench = Bench::new();
    let (mut copy, mut down, flush) = (Vec::new(), Vec::new(), m(b'H', b"x"));
    let mut up = OutputBuffer::new(&flush, &mut copy);
    assert!(bench.core.client_sent(&flush, Some(&mut bench.backend), &mut up, &mut down).is_err());
    assert_eq!(up.bytes(), b"");
}
