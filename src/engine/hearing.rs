//! What the pool's listener says to a session that listens.

use std::task::Context;

use super::{Engine, Follow, Out, Progress};
use relay::conductor::{Event, Listening};

impl Engine {
    /// What the listener says, and what it delivers: between transactions.
    pub(super) fn hear_listener(&mut self, cx: &mut Context<'_>, out: &mut Out) -> Progress {
        let Some(subscription) = &self.subscription else { return Ok(false) };
        let event = match self.wishes.listening {
            // What came before that is the client's, though it listens to nothing any more.
            Listening::Answer if subscription.is_pending() && subscription.is_settled() => {
                match self.to_client.is_empty() {
                    true => Some(Event::Notifications(Box::new(subscription.take()))),
                    false => None,
                }
            }
            Listening::Answer => subscription.answer().map(Box::new).map(Event::Listener),
            Listening::Pause(_) if !self.to_client.is_empty() => None,
            Listening::Pause(recall) => match subscription.has_paused(recall) {
                Ok(false) => None,
                Ok(true) => Some(Event::Paused(Box::new(subscription.take()))),
                Err(refusal) => Some(Event::Paused(Box::new(Err(refusal)))),
            },
            _ if subscription.is_pending()
                && self.wishes.takes_notifications
                && self.to_client.is_empty() =>
            {
                Some(Event::Notifications(Box::new(subscription.take())))
            }
            _ => None,
        };
        match event {
            Some(event) => self.follow(Follow::Say(event), cx, out).map(|()| true),
            None => Ok(false),
        }
    }
}
