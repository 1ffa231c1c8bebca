//! What comes at its edges: when it is not the usual one of two ways.

use super::*;
use crate::{Catalog, Function, Parameters, Relations, SessionSettings};

/// One error, and that the server is ready.
fn error(message: &str) -> Vec<u8> {
    [m(b'E', format!("SERROR\0VERROR\0C22023\0M{message}\0\0").as_bytes()), m(b'Z', b"I")].concat()
}

/// A session that was given this at its startup.
fn with_startup(name: &str, value: &str) -> Rig {
    let mut rig = Rig::new(PoolMode::Transaction);
    let mut own = session(PoolMode::Transaction, Arc::default());
    let extra = Parameters::new([(name.as_bytes().into(), value.as_bytes().into())]);
    own.settings = SessionSettings::new(Arc::default(), Arc::new(extra), None);
    rig.conductor = Conductor::new(own);
    rig.say(Event::FromClient(&[]));
    rig
}

fn resets(rig: &Rig) -> Vec<Resets> {
    rig.statistics.iter().filter_map(|statistics| statistics.reset).collect()
}

#[test]
fn a_session_whose_server_leaves_in_a_transaction_ends_and_tries_no_other() {
    let mut rig = Rig::started();
    rig.converse(&query("BEGIN"));
    rig.say(Event::UpstreamEnded(Box::default()));
    assert_eq!(rig.steps, ["lend", "close"]);
    let closing = rig.closed.unwrap();
    assert!(matches!(closing.cause, Cause::Refused(refusal) if refusal.fault == Fault::Upstream));
    assert_eq!(closing.connection, Leaving::Discard { running: false });
}

#[test]
fn who_waits_for_a_connection_is_ended_by_any_order_and_who_is_in_a_transaction_by_none_that_can_wait() {
    for (now, ends) in [(false, false), (true, true)] {
        let mut rig = Rig::started();
        rig.converse(&query("BEGIN"));
        rig.say(Event::Order { now, refusal: Box::new(refusal()) });
        assert_eq!(rig.closed.is_some(), ends);
        let mut rig = Rig::started();
        rig.dry = true;
        rig.client(&query("SELECT 1"), &[]);
        rig.say(Event::Order { now, refusal: Box::new(refusal()) });
        assert_eq!(rig.closed.unwrap().connection, Leaving::Nothing);
    }
}

#[test]
fn a_connection_that_is_given_settings_was_not_reset() {
    let mut rig = with_startup("work_mem", "4MB");
    rig.converse(&query("SELECT 1"));
    rig.upstream(&[]);
    assert_eq!((rig.tags(), rig.steps.as_slice()), ("DCZ".into(), &["lend", "release"][..]));
    assert_eq!(resets(&rig), []);
    assert_eq!(rig.ran()[1].iter().filter(|ran| ran.contains("set_config(")).count(), 1);
}

#[test]
fn after_another_user_a_connection_is_reset_once_and_then_given_settings() {
    let mut rig = with_startup("work_mem", "4MB");
    rig.idle = vec![fresh(Some("mallory"))];
    rig.converse(&query("SELECT 1"));
    rig.upstream(&[]);
    assert!(matches!(resets(&rig)[..], [Resets::Begun, Resets::Done(_)]));
    let ran = rig.ran()[0].iter().map(|ran| ran.split('(').next().unwrap()).collect::<Vec<_>>();
    assert_eq!(ran, ["DISCARD ALL", "SELECT pg_catalog.setseed", "SELECT pg_catalog.set_config", "SELECT 1"]);
}

#[test]
fn a_session_whose_settings_no_connection_takes_is_told_so_in_the_servers_words() {
    let mut rig = with_startup("work_mem", "huge");
    (rig.is_mute, rig.idle) = (true, (0..9).map(|_| fresh(None)).collect());
    rig.client(&query("SELECT 1"), &[]);
    for _ in 0..MAX_SETUPS {
        assert!(rig.closed.is_none());
        rig.say(Event::FromUpstream(&error("no such work_mem")));
    }
    assert_eq!(rig.steps, ["lend", "replace", "lend", "replace", "lend", "close"]);
    assert_eq!(resets(&rig), []);
    assert!(
        matches!(rig.closed.unwrap().cause, Cause::Refused(refusal) if refusal.message == "no such work_mem")
    );
}

#[test]
fn a_session_that_keeps_its_connection_is_given_its_startup_values_again_behind_a_reset() {
    let mut rig = with_startup("work_mem", "4MB");
    rig.converse(&m(b'F', &[0; 12]));
    rig.upstream(&[]);
    assert_eq!(rig.steps, ["lend", "pin"]);
    let server = |rig: &Rig| rig.held.as_ref().unwrap().server.settings.get("work_mem").cloned();
    rig.held.as_mut().unwrap().server.settings.clear();
    rig.is_mute = true;
    rig.client(&query("RESET work_mem"), &[]);
    let reset = [m(b'C', b"RESET\0"), m(b'Z', b"I")].concat();
    rig.held.as_mut().unwrap().server.ran.clear();
    rig.is_mute = false;
    rig.say(Event::FromUpstream(&reset));
    rig.upstream(&[]);
    rig.upstream(&[]);
    assert_eq!(server(&rig).as_deref(), Some("4MB"), "{:?}", rig.ran());
    assert!(rig.wishes.from_client && rig.held.is_some() && rig.closed.is_none());
}

#[test]
fn nothing_is_shown_again_that_was_dealt_with() {
    let mut rig = Rig::started();
    rig.converse(&query("SELECT 1"));
    rig.converse(&query("BEGIN"));
    rig.converse(&query("COMMIT"));
    assert_eq!(rig.shown_again, 0);
}

#[test]
fn what_waits_for_an_answer_is_shown_again_when_that_is_there_and_not_before() {
    let mut rig = Rig::started();
    let parse = |name: &str| m(b'P', format!("{name}\0SELECT 1\0\0\0").as_bytes());
    let failing = m(b'P', b"a\0FAIL TO PARSE\0\0\0");
    // What `a` is depends on whether the first series fails.
    rig.client(&[failing, m(b'S', b""), m(b'D', b"Sa\0"), m(b'S', b"")].concat(), &[]);
    assert!(!rig.wishes.from_client && rig.shown_again == 0);
    let answers = std::mem::take(&mut rig.held.as_mut().unwrap().answers);
    let (first, rest) = answers.split_at(answers.len() - 6);
    rig.say(Event::FromUpstream(first));
    let before = rig.shown_again;
    rig.say(Event::FromUpstream(rest));
    assert!(rig.shown_again > before);
    rig.upstream(&[]);
    assert_eq!(rig.tags(), "EZEZ", "there is no `a`");
    rig.converse(&[parse("a"), m(b'S', b"")].concat());
    assert_eq!(rig.tags(), "EZEZ1Z");
}

/// A function that does what nobody can see.
fn opaque() -> Catalog {
    Catalog::new(&[Function::new(1, b"f", b"plperlu", b"")], &Relations::default())
}

#[test]
fn in_session_mode_what_the_database_has_is_known_anew_between_transactions() {
    for (catalog, connection) in
        [(Catalog::default(), Leaving::Clean), (opaque(), Leaving::Discard { running: true })]
    {
        let mut rig = Rig::new(PoolMode::Session);
        rig.held = rig.idle.pop();
        rig.say(Event::Lent(Condition::AsItIs, &[]));
        rig.converse(&query("SELECT 1"));
        rig.world.has(catalog);
        rig.converse(&query("SELECT 1"));
        rig.converse(&query("SELECT f()"));
        rig.say(Event::ClientEnded);
        assert_eq!(rig.closed.unwrap().connection, connection);
    }
}

#[test]
fn within_a_transaction_what_the_database_has_stays_what_it_was() {
    let mut rig = Rig::started();
    rig.converse(&query("BEGIN"));
    rig.world.has(opaque());
    rig.converse(&query("SELECT f()"));
    rig.converse(&query("COMMIT"));
    assert_eq!(rig.steps, ["lend", "release"], "it was not known to be opaque");
    rig.converse(&query("SELECT f()"));
    assert_eq!(rig.steps, ["lend", "release", "lend", "pin"]);
}

#[test]
fn a_session_that_keeps_its_connection_knows_between_transactions_what_the_database_has() {
    let mut rig = Rig::started();
    rig.converse(&query("LISTEN news"));
    rig.upstream(&[]);
    assert_eq!(rig.steps, ["lend", "ask the listener", "pin"], "there is no listener");
    rig.world.has(opaque());
    rig.converse(&query("SELECT 1"));
    rig.converse(&query("UNLISTEN *"));
    rig.upstream(&[]);
    rig.upstream(&[]);
    assert_eq!(rig.steps.last(), Some(&"release"));
    let mut rig = Rig::started();
    rig.converse(&query("LISTEN news"));
    rig.upstream(&[]);
    rig.world.has(opaque());
    rig.converse(&query("SELECT 1"));
    rig.converse(&query("SELECT f()"));
    rig.converse(&query("UNLISTEN *"));
    rig.upstream(&[]);
    rig.upstream(&[]);
    assert!(rig.held.is_some(), "it is kept for good: {:?}", rig.steps);
}

/// A session that listens to `news`, which the listener delivers.
fn carried() -> Rig {
    let mut rig = Rig::listening();
    rig.listener_listens();
    rig.listener_delivers();
    assert_eq!(rig.steps.last(), Some(&"release"));
    rig
}

#[test]
fn who_cannot_be_taken_by_the_listener_keeps_its_connection() {
    let mut rig = Rig::listening();
    rig.say(Event::Listener(Box::new(Err(refusal()))));
    assert_eq!((rig.steps.last(), rig.closed.is_none()), (Some(&"pin"), true));
    // It would deliver in another encoding than the client's.
    let mut rig = Rig::started();
    rig.listener = true;
    rig.converse(&query("LISTEN news"));
    rig.upstream(&[]);
    rig.listener_listens();
    assert_eq!((rig.steps.last(), rig.closed.is_none()), (Some(&"pin"), true));
}

#[test]
fn who_was_taken_by_the_listener_ends_when_that_fails() {
    let mut rig = carried();
    rig.converse(&query("LISTEN more"));
    rig.upstream(&[]);
    rig.upstream(&[]);
    assert_eq!(rig.steps.last(), Some(&"ask the listener"), "{:?}", rig.steps);
    rig.say(Event::Listener(Box::new(Err(refusal()))));
    assert!(matches!(rig.closed.unwrap().cause, Cause::Refused(told) if told == refusal()));
    let mut rig = Rig::listening();
    rig.listener_listens();
    rig.say(Event::Listener(Box::new(Err(refusal()))));
    assert!(rig.closed.is_some(), "nobody listens any more");
}

#[test]
fn notifications_that_the_client_cannot_read_end_its_session() {
    let mut rig = Rig::started();
    let news =
        |payload: &str| -> Arc<[u8]> { m(b'A', format!("\0\0\0\x07n\0{payload}\0").as_bytes()).into() };
    rig.say(Event::Notifications(Box::new(Ok(vec![news("plain")]))));
    assert_eq!(rig.tags(), "A");
    rig.say(Event::Notifications(Box::new(Ok(vec![news("\u{e9}")]))));
    assert!(matches!(
        rig.closed.unwrap().cause,
        Cause::Refused(refusal) if refusal.sqlstate == SqlState::UNTRANSLATABLE_CHARACTER
    ));
}

#[test]
fn an_order_that_can_wait_ends_a_session_that_keeps_its_connection_when_that_is_idle() {
    let mut rig = Rig::new(PoolMode::Session);
    rig.held = rig.idle.pop();
    rig.say(Event::Lent(Condition::AsItIs, &[]));
    rig.converse(&query("BEGIN"));
    rig.say(Event::Order { now: false, refusal: Box::new(refusal()) });
    assert!(rig.closed.is_none(), "a transaction is open");
    rig.converse(&query("COMMIT"));
    rig.say(Event::Order { now: false, refusal: Box::new(refusal()) });
    assert_eq!(rig.closed.unwrap().connection, Leaving::Clean);
}

#[test]
fn in_session_mode_what_the_database_has_stays_what_it_was_within_a_transaction() {
    let mut rig = Rig::new(PoolMode::Session);
    rig.held = rig.idle.pop();
    rig.say(Event::Lent(Condition::AsItIs, &[]));
    rig.converse(&query("BEGIN"));
    rig.world.has(opaque());
    rig.converse(&query("SELECT f()"));
    rig.converse(&query("COMMIT"));
    rig.say(Event::ClientEnded);
    assert_eq!(rig.closed.unwrap().connection, Leaving::Clean);
}

#[test]
fn who_leaves_in_a_series_without_its_sync_is_not_waited_for() {
    let mut rig = Rig::started();
    rig.client(&[m(b'P', b"\0SELECT 1\0\0\0"), m(b'X', b"")].concat(), &[]);
    assert!(matches!(rig.closed.unwrap().cause, Cause::Client));
}

#[test]
fn why_no_connection_could_be_reset_is_not_said_in_the_words_of_one() {
    let mut rig = Rig::started();
    (rig.is_mute, rig.idle) = (true, vec![fresh(Some("mallory")), fresh(Some("mallory"))]);
    rig.client(&query("SELECT 1"), &[]);
    rig.say(Event::FromUpstream(&error("of mallory's making")));
    rig.say(Event::FromUpstream(&error("of mallory's making")));
    assert!(
        matches!(&rig.closed.as_ref().unwrap().cause, Cause::Refused(told) if told.message == not_reset().message)
    );
    assert!(matches!(resets(&rig)[..], [Resets::Begun, Resets::Failed, Resets::Begun, Resets::Failed]));
}

#[test]
fn a_reset_that_is_done_is_not_overdue() {
    let mut rig = Rig::started();
    rig.client(&query("SELECT 1"), &[]);
    rig.say(Event::Overdue(Overdue::Phase(Phase::Resetting { attempt: 0 })));
    rig.upstream(&[]);
    assert_eq!((rig.steps.as_slice(), rig.tags()), (&["lend", "release"][..], "DCZ".into()));
}

#[test]
fn no_notification_goes_to_the_client_while_its_channels_are_on_their_way() {
    assert!(!Rig::listening().wishes.takes_notifications);
    assert!(carried().wishes.takes_notifications);
}

#[test]
fn who_keeps_a_connection_and_does_nothing_is_idle() {
    let mut rig = Rig::new(PoolMode::Session);
    rig.held = rig.idle.pop();
    rig.say(Event::Lent(Condition::AsItIs, &[]));
    assert_eq!(rig.wishes.phase, Phase::Idle);
    rig.converse(&query("BEGIN"));
    assert_eq!(rig.wishes.phase, Phase::IdleInTransaction);
}

#[test]
fn each_transaction_is_counted_once() {
    let mut rig = Rig::started();
    (0..3).for_each(|_| rig.converse(&query("SELECT 1")));
    let ended: Vec<u64> = rig.statistics.iter().filter_map(|all| Some(all.ended?.transactions)).collect();
    assert_eq!(ended, [1, 1, 1]);
}

/// What is sent for a message must not be sent before the message itself can be: nobody would send a `Sync` behind it.
#[test]
fn a_parse_that_has_to_wait_sends_nothing_before() {
    let mut rig = carried();
    let parse = |name: &str| m(b'P', format!("{name}\0LISTEN x\0\0\0").as_bytes());
    rig.converse(&[parse("a"), m(b'S', b"")].concat());
    for _ in 0..4 {
        rig.upstream(&[]);
        if rig.steps.last() == Some(&"ask the listener") {
            rig.listener_listens();
            rig.listener_delivers();
        }
    }
    assert_eq!(rig.steps.last(), Some(&"release"), "{:?}", rig.steps);
    rig.converse(&query("BEGIN"));
    let before = rig.to_client.len();
    rig.client(&[query("DEALLOCATE a"), query("COMMIT"), parse("b"), m(b'S', b"")].concat(), &[]);
    (0..4).for_each(|_| rig.upstream(&[]));
    assert_eq!(tags(&rig.to_client[before..]), "CZCZ1Z", "{:?} {:?}", rig.steps, rig.wishes);
}
