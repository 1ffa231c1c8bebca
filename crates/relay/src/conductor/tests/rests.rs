//! A session that rests whenever it may is as one that never does.

use super::*;

impl Rig {
    /// Before whatever happens next, if it rests at all.
    pub(super) fn rest(&mut self) {
        if let Some(times) = &mut self.rests
            && self.conductor.may_rest()
        {
            *times += 1;
            let awake = Conductor::new(session(PoolMode::Transaction, Arc::default()));
            self.conductor = std::mem::replace(&mut self.conductor, awake).rest().wake();
        }
    }
}

fn have_resting(acts: &[Act]) -> Rig {
    let mut rig = Rig::started();
    rig.rests = Some(0);
    go_on(&mut rig, acts, &[], &[]);
    rig
}

#[test]
fn what_is_usual_ends_at_rest_with_what_is_to_be_kept() {
    let texts = ["SELECT 1", "BEGIN", "COMMIT", "FAIL", "SET work_mem TO 8MB"];
    let usual = texts.map(Act::Query).into_iter();
    let named = [Act::Parse(1, "SELECT 1"), Act::Parse(0, "SELECT 1"), Act::BindAndExecute(1), Act::Sync];
    let acts: Vec<Act> = usual.chain(named).flat_map(|act| [act, Act::Remainder]).collect();
    let mut rig = have_resting(&acts);
    assert!(rig.closed.is_none() && rig.conductor.may_rest(), "{:#?}", rig.conductor);
    assert!(rig.rests >= Some(5), "{:?}", rig.rests);
    // The statement that it has named, and its number of transactions.
    let before = rig.to_client.len();
    go_on(&mut rig, &[Act::BindAndExecute(1), Act::Sync], &[], &[]);
    assert_eq!(tags(&rig.to_client[before..]), "2DCZ");
    rig.say(Event::ClientEnded);
    assert_eq!(rig.closed.unwrap().transactions, 6);
}

#[test]
fn what_would_be_lost_keeps_it_awake() {
    for acts in [vec![Act::Query("BEGIN")], vec![Act::Parse(1, "SELECT 1"), Act::Flush]] {
        assert!(!have_resting(&acts).conductor.may_rest(), "{acts:?}");
    }
    let mut rig = Rig::listening();
    assert!(!rig.conductor.may_rest());
    rig.listener_listens();
    rig.listener_delivers();
    assert!(!rig.conductor.may_rest(), "its channels are the listener's");
}

proptest! {
    #[test]
    fn a_session_that_rests_is_as_one_that_does_not(acts in acts()) {
        let (awake, resting) = (have(&acts, &[], &[]), have_resting(&acts));
        prop_assert_eq!(&awake.to_client, &resting.to_client);
        prop_assert_eq!(&awake.to_upstream, &resting.to_upstream);
        prop_assert_eq!(&awake.steps, &resting.steps);
        prop_assert_eq!(awake.ran(), resting.ran());
        prop_assert_eq!(format!("{:?}", awake.statistics), format!("{:?}", resting.statistics));
        prop_assert_eq!(awake.wishes, resting.wishes);
        prop_assert!(resting.conductor.may_rest() && resting.rests >= Some(1), "{:#?}", resting.conductor);
    }
}
