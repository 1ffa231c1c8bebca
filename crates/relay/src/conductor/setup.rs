//! A connection is made the session's own before anything of its client's is sent on it: reset, and given its settings.

use super::event::{Condition, Moment, UpstreamEnd, World};
use super::refusals::{at, no_random, not_reset};
use super::{Actions, Conductor, Loan, Next, Resets, Step, Turn};
use crate::PoolMode;
use crate::reset::Proof;
use wire::error::Refusal;

/// How many connections may fail to take a session's settings before it is told.
pub(super) const MAX_SETUPS: u32 = 3;

/// For how long a role that was refused is not asked for again.
const ROLE_IS_LOST_FOR: u64 = 1_000_000;

/// The upstream does not let the session have its role any more.
#[derive(Debug)]
pub(super) struct LostRole {
    /// In these words.
    refusal: Refusal,
    since: Moment,
}

impl Conductor {
    /// Has the connection that was just lent reset, if another user had it, and gives it the session's settings. Until that is
    /// done nothing of the client's is sent, so that nothing of it can run without them, and there is nothing to cancel.
    pub(super) fn lent<W: World>(
        &mut self,
        condition: Condition,
        input: &[u8],
        turn: &mut Turn<'_, '_, W>,
    ) -> Next {
        self.lease = Loan::Held;
        self.core.set_catalog(|known| turn.world.catalog(known));
        if self.core.mode() == PoolMode::Transaction {
            match condition {
                Condition::AsItIs => self.attach(turn),
                Condition::OfAnother => {
                    let random = || turn.world.random().ok_or_else(no_random);
                    let (seed, proof) = (random()?, Proof::new(random()?));
                    self.core.reset(seed, proof, turn.up.buffer());
                    turn.record(|all| all.reset = Some(Resets::Begun));
                    self.clock.reset = Some(turn.world.now());
                }
            }
        }
        if self.core.is_setting_up() { Ok(None) } else { self.client_sent(input, turn) }
    }

    pub(super) fn attach<W: World>(&mut self, turn: &mut Turn<'_, '_, W>) {
        let mut setup = Vec::new();
        if let Some(backend) = &mut turn.backend {
            self.core.attach(backend, &mut setup);
        }
        if !setup.is_empty() {
            turn.up.buffer().extend_from_slice(&setup);
        }
    }

    /// The connection could not be reset, or did not take the session's settings, perhaps because of what it had from
    /// another session (a short `statement_timeout`), or has ended: another one is tried before the client hears of it.
    pub(super) fn setup_failed<W: World>(
        &mut self,
        body: Option<Vec<u8>>,
        turn: &mut Turn<'_, '_, W>,
    ) -> Next {
        let resetting = self.core.is_resetting();
        self.setups_failed = self.setups_failed.saturating_add(1);
        let most = if resetting { turn.world.database().most_resets } else { MAX_SETUPS };
        if resetting {
            self.clock.reset = None;
            turn.record(|all| all.reset = Some(Resets::Failed));
        }
        let refused = body.as_deref().filter(|_| !resetting).map(Refusal::of_response);
        if let Some(refusal) = refused.filter(|refusal| self.core.is_refused_its_role(refusal)) {
            self.lost_role = Some(Box::new(LostRole { refusal: at(turn, refusal), since: turn.world.now() }));
            self.core.abandon_setup();
            (self.lease, self.deferred, self.setups_failed) = (Loan::None, false, 0);
            return Ok(Some(Step::Replace { running: false }));
        }
        if self.setups_failed >= most || self.core.pin().is_some() {
            return Err(match body {
                _ if resetting => at(turn, not_reset()).into(),
                Some(body) => at(turn, Refusal::of_response(&body)).into(),
                None => self.upstream_lost(UpstreamEnd::default(), turn).into(),
            });
        }
        self.core.abandon_setup();
        (self.lease, self.deferred) = (Loan::None, false);
        Ok(Some(Step::Replace { running: resetting }))
    }

    /// The session's role was dropped, or may not be its any more: without it a statement could do more than it may, so each is
    /// refused until one gives the role up. Now and then it is asked for again.
    pub(super) fn is_kept_from<W: World>(&mut self, lost: &LostRole, input: &[u8], world: &W) -> bool {
        !self.core.gives_up_role(input) && world.now().micros_since(lost.since) < ROLE_IS_LOST_FOR
    }

    /// Refuses what the client has asked for.
    pub(super) fn without_role<'a>(
        &mut self,
        lost: Box<LostRole>,
        input: &[u8],
        down: &'a mut Vec<u8>,
    ) -> Actions<'a> {
        down.clear();
        self.core.refuse(input, &lost.refusal, down);
        self.lost_role = Some(lost);
        Actions {
            consumed: 0,
            to_client: down,
            to_upstream: &[],
            step: Step::ShowClient,
            wishes: self.wishes(),
        }
    }
}
