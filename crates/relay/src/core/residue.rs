//! What a session may have left on its connection: whether the connection is to be asked, and for how long it is kept.

use super::probe::{self, Left, Touched};
use crate::bearing::Bearing;
use crate::reset::Proof;
use crate::settings::SessionSettings;
use crate::sql::{Effects, Pin, SettingChange};

/// Of how many settings it is remembered what the statements under way say.
const MAX_CHANGES: usize = 64;

/// How often a connection may fail to say what is left on it before its session keeps it.
const MAX_PROBES: u8 = 3;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Residue {
    pinned: Pinned,
    /// Whether the lexer saw, in this lease, a statement whose effects are noted.
    noted: Noted,
    defaults: Defaults,
    changes: Changes,
    doubt: Doubt,
    tracking: Tracking,
    /// What may have been left on the connection: it is asked before it goes back.
    touched: Option<Box<Touched>>,
    /// What is to be asked for whenever something is, while the session has an object that may do it again: a statement
    /// of `PREPARE`, a temporary view.
    repeatable: Option<Box<Touched>>,
    asked: Option<Box<ProbeState>>,
    probes_failed: u8,
    mixed: Bearing,
    /// Whether the session may have temporary objects, and statements that SQL has prepared.
    temporary: Whether,
    sql_names: Whether,
    user: User,
}

/// Whose session the server says that it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum User {
    /// That of the connection's own user.
    #[default]
    Own,
    /// Another's (`SET SESSION AUTHORIZATION`): nobody else may have the connection meanwhile.
    Other,
}

/// Whether there may be something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Whether {
    #[default]
    No,
    Perhaps,
}

/// Whether the session keeps its connection, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Pinned {
    #[default]
    No,
    /// Until the connection, asked again, says that nothing is left.
    WhileLeft(Pin),
    /// It cannot be asked for what is left.
    ForGood(Pin),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Noted {
    #[default]
    No,
    Yes,
}

/// Whose the settings are that the session has gone back to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Defaults {
    /// Its startup values, which it was given.
    #[default]
    Sessions,
    /// A `RESET` is under way: what the upstream reports are defaults of its own. Whether it has reported any.
    Resetting { drifted: bool },
    /// The connection's own: it must be given its startup values again.
    Connections,
}

/// What the statements under way say of settings, each as the last of them does.
#[derive(Debug, Default)]
struct Changes {
    /// The last request that has any.
    by: u64,
    /// All were taken back to their defaults before these.
    all_default: bool,
    last: Vec<SettingChange>,
}

/// Whether a `DISCARD ALL` leaves nothing of the session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Doubt {
    #[default]
    None,
    /// What the upstream owes may be another number of answers than was counted: a state probe will tell.
    Miscounted,
    /// It may have left what `DISCARD ALL` does not take away, or has lost count of what the upstream owes.
    Dirty,
}

/// Whether all settings of the connection can be asked for by name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Tracking {
    #[default]
    Complete,
    Partial,
}

/// What the connection is being asked, and what it has answered.
#[derive(Debug)]
struct ProbeState {
    touched: Touched,
    proof: Proof,
    left: Option<Left>,
}

/// What a state probe has come to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Probed {
    /// It will be asked again.
    Again,
    /// It could not say, too often.
    Never,
    /// What was asked for, and what is left of it.
    Known(Touched, Left),
}

impl Residue {
    /// True if it is as of a session that has just logged in.
    pub(super) fn is_as_new(&self) -> bool {
        let Self {
            pinned: Pinned::No,
            noted: Noted::No,
            defaults: Defaults::Sessions,
            changes: Changes { by: _, all_default: false, last },
            doubt: Doubt::None,
            tracking: Tracking::Complete,
            touched: None,
            repeatable: None,
            asked: None,
            probes_failed: 0,
            mixed: Bearing::None,
            temporary: Whether::No,
            sql_names: Whether::No,
            user: User::Own,
        } = self
        else {
            return false;
        };
        last.is_empty()
    }

    /// Why the session keeps its connection.
    pub(super) fn pin(&self) -> Option<Pin> {
        match self.pinned {
            Pinned::No => (self.user == User::Other).then_some(Pin::Role),
            Pinned::WhileLeft(reason) | Pinned::ForGood(reason) => Some(reason),
        }
    }

    pub(super) fn is_pinned_for_good(&self) -> bool {
        matches!(self.pinned, Pinned::ForGood(_))
    }

    /// From now on the session keeps its connection; why it did so first counts.
    pub(super) fn pin_for_good(&mut self, reason: Pin) {
        if !self.is_pinned_for_good() {
            self.pinned = Pinned::ForGood(reason);
        }
    }

    /// It keeps its connection until that says that nothing is left.
    pub(super) fn pin_while_left(&mut self, reason: Pin) {
        if self.pinned == Pinned::No {
            self.pinned = Pinned::WhileLeft(reason);
        }
    }

    /// Nothing is asked any more of a connection that is kept, but for whether it has the session's startup values.
    pub(super) fn ask_only_for_resets(&mut self) {
        if !self.touched.as_ref().is_some_and(|touched| touched.resets) {
            self.touched = None;
        }
    }

    /// True if a `RESET` was sent, or a `SET … TO DEFAULT`, and the connection has not been given the session's startup values since.
    pub(super) fn owes_values(&self) -> bool {
        let is_default = |change: &SettingChange| matches!(change, SettingChange::Default(_));
        self.has_drifted()
            || self.changes.all_default
            || self.changes.last.iter().any(is_default)
            || self.touched.as_ref().is_some_and(|touched| touched.resets)
    }

    /// True if something may have been left, and the connection can be asked.
    pub(super) fn is_touched(&self) -> bool {
        self.touched.is_some()
    }

    /// True if nothing is left, as far as is known, and nothing is to be asked.
    pub(super) fn is_nothing(&self) -> bool {
        self.pinned == Pinned::No && self.user == User::Own && self.touched.is_none()
    }

    /// What a statement does was seen before it ran.
    pub(super) fn mark_effects_noted(&mut self) {
        self.noted = Noted::Yes;
    }

    /// True if the lexer saw it coming.
    pub(super) fn are_effects_noted(&self) -> bool {
        self.noted == Noted::Yes
    }

    /// This may be left, too.
    pub(super) fn touch(&mut self, touched: &Touched) {
        self.touched.get_or_insert_default().add(touched);
    }

    /// What may be left now may be left again by an object of the session.
    pub(super) fn mark_repeatable(&mut self) {
        if let Some(touched) = &self.touched {
            self.repeatable.get_or_insert_default().add(touched);
        }
    }

    /// True if there is more than can be asked for.
    pub(super) fn is_too_much(&self) -> bool {
        let too_many = |touched: &Option<Box<Touched>>| touched.as_ref().is_some_and(|t| t.too_many);
        too_many(&self.touched) || too_many(&self.repeatable)
    }

    /// The query that asks the connection, if there is anything to ask for.
    pub(super) fn ask(&mut self, proof: Proof, settings: &SessionSettings) -> Option<String> {
        let mut touched = *self.touched.take()?;
        touched.objects |= self.pinned != Pinned::No;
        if let Some(repeatable) = &self.repeatable {
            touched.add(repeatable);
        }
        if touched.all_settings {
            touched.add_settings(settings.names());
        }
        if touched.everything {
            touched.add_settings(settings.carried_names().chain(["role"]));
        }
        let question = probe::question(&touched, proof);
        self.asked = Some(Box::new(ProbeState { touched, proof, left: None }));
        Some(question)
    }

    /// A row in answer to the question; false if it answers something else.
    pub(super) fn answer(&mut self, row: &[u8]) -> bool {
        let Some(question) = &mut self.asked else { return true };
        let is_answer = question.proof.is_in(row);
        if is_answer {
            question.left = probe::answer(&question.touched, row);
        }
        is_answer
    }

    /// The connection has said all that it has to say to the question; `None` if there was none.
    pub(super) fn probed(&mut self) -> Option<Probed> {
        let ProbeState { touched, left, .. } = *self.asked.take()?;
        let Some(left) = left else {
            self.probes_failed += 1;
            if self.probes_failed >= MAX_PROBES {
                return Some(Probed::Never);
            }
            self.touch(&touched);
            return Some(Probed::Again);
        };
        self.probes_failed = 0;
        if self.doubt == Doubt::Miscounted {
            self.doubt = Doubt::None;
        }
        // It may have settings whose names nobody can list.
        if touched.everything {
            self.tracking = Tracking::Partial;
        }
        if touched.objects && !self.is_pinned_for_good() {
            self.pinned = left.pin.map_or(Pinned::No, Pinned::WhileLeft);
        }
        if touched.objects && self.pinned == Pinned::No {
            self.repeatable = None;
            (self.temporary, self.sql_names) = (Whether::No, Whether::No);
        }
        Some(Probed::Known(touched, left))
    }

    /// Settings may be others than the session's, as far as this has to do with prepared statements.
    pub(super) fn mix(&mut self, bearing: Bearing) {
        self.mixed = self.mixed.max(bearing);
    }

    /// What they have to do with them, if they may.
    pub(super) fn mixed(&self) -> Bearing {
        self.mixed
    }

    /// They are not any more; what they had to do with them.
    pub(super) fn unmix(&mut self) -> Bearing {
        std::mem::take(&mut self.mixed)
    }

    /// The server says whose session it is.
    pub(super) fn belongs_to(&mut self, user: User) {
        self.user = user;
    }

    /// A statement that may make temporary objects is about to be under way.
    pub(super) fn note_temporary(&mut self) {
        self.temporary = Whether::Perhaps;
    }

    /// True if the session may have any.
    pub(super) fn has_temporary(&self) -> bool {
        self.temporary == Whether::Perhaps
    }

    /// A statement that may prepare others by SQL is about to be under way.
    pub(super) fn note_sql_names(&mut self) {
        self.sql_names = Whether::Perhaps;
    }

    /// True if the session may have any of those.
    pub(super) fn has_sql_names(&self) -> bool {
        self.sql_names == Whether::Perhaps
    }

    /// A lease ends; true if the connection may have settings that cannot be asked for.
    pub(super) fn end_lease(&mut self) -> bool {
        (self.noted, self.temporary, self.sql_names) = (Noted::No, Whether::No, Whether::No);
        self.user = User::Own;
        self.give_defaults();
        std::mem::take(&mut self.tracking) == Tracking::Partial
    }

    /// The connection is given the session's startup values.
    pub(super) fn give_defaults(&mut self) {
        self.defaults = match self.defaults {
            Defaults::Resetting { .. } => Defaults::Resetting { drifted: false },
            Defaults::Sessions | Defaults::Connections => Defaults::Sessions,
        };
    }

    /// Statements that say this of settings are about to be under way.
    pub(super) fn note_changes(&mut self, changes: &[SettingChange], request: u64) {
        self.changes.by = request;
        for change in changes {
            let Some(name) = change.name() else {
                self.changes = Changes { by: request, all_default: true, last: Vec::new() };
                continue;
            };
            let last = &mut self.changes.last;
            match last.iter().position(|known| known.name() == Some(name)) {
                Some(at) => last[at] = change.clone(),
                None if last.len() < MAX_CHANGES => last.push(change.clone()),
                None => {}
            }
        }
    }

    /// True if any do.
    pub(super) fn has_changes(&self) -> bool {
        self.changes.all_default || !self.changes.last.is_empty()
    }

    /// The query of this request has ended, and what was sent before it.
    pub(super) fn is_answered(&mut self, request: u64) {
        if self.has_changes() && self.changes.by <= request {
            self.changes = Changes::default();
        }
    }

    /// Of these requests the first has failed, and the others are skipped: what they say of settings is not done, and what was done
    /// before them in their transaction is undone.
    pub(super) fn have_failed(&mut self, requests: std::ops::RangeInclusive<u64>) {
        if requests.contains(&self.changes.by) {
            self.changes = Changes::default();
        }
    }

    /// Whether what the upstream reports of this setting is a default of its own: by what the statements under way say, else by
    /// whether the last of them was a `RESET`.
    pub(super) fn is_default(&self, name: &[u8]) -> bool {
        let is_it = |change: &&SettingChange| {
            change.name().is_some_and(|known| known.as_bytes().eq_ignore_ascii_case(name))
        };
        match self.changes.last.iter().find(is_it) {
            Some(change) => matches!(change, SettingChange::Default(_)),
            None => self.changes.all_default || self.is_resetting(),
        }
    }

    /// A `RESET` was run.
    pub(super) fn begin_reset(&mut self) {
        self.defaults = Defaults::Resetting { drifted: self.has_drifted() };
    }

    /// What the upstream reports from now on is no default of its own.
    pub(super) fn end_reset(&mut self) {
        self.defaults = if self.has_drifted() { Defaults::Connections } else { Defaults::Sessions };
    }

    /// True if what the upstream reports are defaults of its own.
    pub(super) fn is_resetting(&self) -> bool {
        matches!(self.defaults, Defaults::Resetting { .. })
    }

    /// The connection has a default of its own where the session has gone back to its startup value.
    pub(super) fn drift(&mut self) {
        self.defaults = match self.defaults {
            Defaults::Resetting { .. } => Defaults::Resetting { drifted: true },
            Defaults::Sessions | Defaults::Connections => Defaults::Connections,
        };
    }

    /// True if it has any.
    pub(super) fn has_drifted(&self) -> bool {
        matches!(self.defaults, Defaults::Connections | Defaults::Resetting { drifted: true })
    }

    /// Something is left that `DISCARD ALL` does not take away, or nobody knows how many answers are still to come.
    pub(super) fn mark_dirty(&mut self) {
        self.doubt = Doubt::Dirty;
    }

    /// The same, if a statement in session mode may do so.
    pub(super) fn mark_dirty_by(&mut self, effects: &Effects) {
        if effects.pin == Some(Pin::Opaque) || effects.asks_all {
            self.mark_dirty();
        }
    }

    /// Perhaps other answers are still to come than were counted: nobody else may have this connection before a state probe has
    /// got its own.
    pub(super) fn doubt_count(&mut self) {
        self.doubt = self.doubt.max(Doubt::Miscounted);
        self.touched.get_or_insert_default();
    }

    /// True if nothing is owed beside what was counted, and a `DISCARD ALL` leaves nothing of the session.
    pub(super) fn is_cleanable(&self) -> bool {
        self.doubt == Doubt::None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::tests::row;
    use crate::settings::Parameters;

    fn settings() -> SessionSettings {
        SessionSettings::new(Parameters::new([]).into(), Parameters::new([]).into(), None)
    }

    fn proved(columns: &[Option<&str>], proof: Proof) -> Vec<u8> {
        let question = proof.question();
        let mut columns = columns.to_vec();
        columns.push(question.split('\'').nth(1));
        row(&columns)
    }

    /// Nothing is left of what was asked for.
    fn nothing_left(residue: &mut Residue) -> Option<Probed> {
        let proof = Proof::new(7);
        residue.ask(proof, &settings())?;
        let no = Some("f");
        assert!(residue.answer(&proved(&[no, no, no, no, None], proof)));
        residue.probed()
    }

    fn objects() -> Touched {
        Touched { objects: true, ..Touched::default() }
    }

    #[test]
    fn a_session_keeps_its_connection_until_that_says_that_nothing_is_left() {
        let mut residue = Residue::default();
        assert!(residue.is_nothing());
        residue.touch(&objects());
        assert!(residue.is_touched() && !residue.is_nothing());
        let proof = Proof::new(7);
        residue.ask(proof, &settings()).expect("something is asked");
        assert!(!residue.is_touched());
        let (yes, no) = (Some("t"), Some("f"));
        assert!(residue.answer(&proved(&[yes, no, no, no, None], proof)));
        assert!(matches!(residue.probed(), Some(Probed::Known(..))));
        assert_eq!(residue.pin(), Some(Pin::Temporary));
        // Asked again for something else, it is asked for objects, too.
        residue.touch(&Touched { all_settings: true, ..Touched::default() });
        assert!(matches!(nothing_left(&mut residue), Some(Probed::Known(..))));
        assert!(residue.is_nothing());
    }

    #[test]
    fn who_keeps_a_connection_for_good_does_so_for_the_first_reason() {
        let mut residue = Residue::default();
        residue.pin_while_left(Pin::Listen);
        residue.pin_while_left(Pin::Copy);
        assert_eq!((residue.pin(), residue.is_pinned_for_good()), (Some(Pin::Listen), false));
        residue.pin_for_good(Pin::Opaque);
        residue.pin_for_good(Pin::Copy);
        residue.touch(&objects());
        nothing_left(&mut residue).expect("asked");
        assert_eq!((residue.pin(), residue.is_pinned_for_good()), (Some(Pin::Opaque), true));
        residue.touch(&objects());
        residue.ask_only_for_resets();
        assert!(!residue.is_touched());
        residue.touch(&Touched { resets: true, ..Touched::default() });
        residue.ask_only_for_resets();
        assert!(residue.is_touched());
    }

    #[test]
    fn a_connection_that_cannot_say_is_asked_three_times() {
        let mut residue = Residue::default();
        residue.touch(&objects());
        for last in [Probed::Again, Probed::Again, Probed::Never] {
            residue.ask(Proof::new(7), &settings()).expect("something is asked");
            assert!(!residue.answer(&row(&[Some("something else")])), "an answer without its proof is none");
            assert_eq!(residue.probed(), Some(last));
        }
        assert_eq!((residue.ask(Proof::new(7), &settings()), residue.probed()), (None, None));
    }

    #[test]
    fn what_an_object_may_do_again_is_asked_for_again_while_there_is_one() {
        let mut residue = Residue::default();
        let set = Touched { settings: vec!["work_mem".into()], objects: true, ..Touched::default() };
        residue.touch(&set);
        residue.mark_repeatable();
        residue.pin_while_left(Pin::Prepare);
        let asks = |residue: &mut Residue| {
            residue.touch(&objects());
            residue.ask(Proof::new(7), &settings()).expect("asked").contains("work_mem")
        };
        assert!(asks(&mut residue));
        assert!(asks(&mut residue));
        let proof = Proof::new(7);
        let no = Some("f");
        assert!(residue.answer(&proved(&[None, None, no, no, no, no, None], proof)));
        assert!(matches!(residue.probed(), Some(Probed::Known(..))));
        assert!(!asks(&mut residue), "the object is gone");
    }

    #[test]
    fn what_is_said_last_of_a_setting_tells_a_default_from_a_value() {
        let (set, default) =
            (|name: &str| SettingChange::Set(name.into()), |name: &str| SettingChange::Default(name.into()));
        let mut residue = Residue::default();
        residue.note_changes(&[set("timezone"), default("datestyle")], 1);
        assert!(!residue.is_default(b"TimeZone") && residue.is_default(b"DateStyle"));
        // Another's `RESET` does not count.
        residue.begin_reset();
        assert!(!residue.is_default(b"TimeZone") && residue.is_default(b"application_name"));
        residue.end_reset();
        assert!(!residue.is_default(b"application_name"));
        residue.note_changes(&[SettingChange::AllDefault, set("datestyle")], 2);
        assert!(residue.is_default(b"TimeZone") && !residue.is_default(b"DateStyle"));
        residue.note_changes(&[default("datestyle")], 3);
        assert!(residue.is_default(b"DateStyle") && residue.has_changes());
        residue.is_answered(2);
        assert!(residue.has_changes());
        residue.is_answered(3);
        assert!(!residue.is_default(b"DateStyle") && !residue.has_changes());
    }

    #[test]
    fn a_count_that_is_doubted_is_right_when_a_state_probe_was_answered_and_dirt_stays() {
        let mut residue = Residue::default();
        residue.doubt_count();
        assert!(!residue.is_cleanable() && residue.is_touched());
        let proof = Proof::new(7);
        residue.ask(proof, &settings()).expect("asked");
        assert!(residue.answer(&proved(&[], proof)));
        residue.probed().expect("answered");
        assert!(residue.is_cleanable());
        residue.mark_dirty();
        residue.doubt_count();
        residue.ask(proof, &settings()).expect("asked");
        assert!(residue.answer(&proved(&[], proof)));
        residue.probed().expect("answered");
        assert!(!residue.is_cleanable());
    }

    proptest! {
        /// The connection drifts by what it reports within a reset and by nothing else, until it is given the session's values.
        #[test]
        fn a_connection_drifts_until_it_is_given_the_startup_values(steps in prop::collection::vec(0..4u8, 0..20)) {
            let (mut residue, mut resetting, mut drifted) = (Residue::default(), false, false);
            for step in steps {
                match step {
                    0 => (residue.begin_reset(), resetting = true).0,
                    1 => (residue.end_reset(), resetting = false).0,
                    2 => (residue.drift(), drifted = true).0,
                    _ => (residue.give_defaults(), drifted = false).0,
                }
                prop_assert_eq!((residue.is_resetting(), residue.has_drifted()), (resetting, drifted));
            }
        }
    }
}
