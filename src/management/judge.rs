//! What is wrong with a body, whatever it is for: for tests and fuzzers, which have no request around it.

use serde_json::Value;

use super::body::{Changed, Fielded, New};
use super::connections::ConnectionBody;
use super::environments::{EnvironmentsBody, ValuesBody};
use super::grants::GrantBody;
use super::json;
use super::people::{AttributeBody, GroupBody, UserBody};

/// The name of a kind of body, and what is wrong with one that is to make such a thing, and to change it.
type Judgement = (&'static str, Option<String>, Option<String>);

/// A body as JSON, if it is that.
pub fn strict_json(bytes: &[u8]) -> Option<Value> {
    json::read(bytes).ok()
}

/// A body judged as each of the kinds that there are.
pub fn judge_body(bytes: &[u8]) -> [Judgement; 7] {
    [
        of::<ConnectionBody>(bytes),
        of::<EnvironmentsBody>(bytes),
        of::<ValuesBody>(bytes),
        of::<UserBody>(bytes),
        of::<GroupBody>(bytes),
        of::<AttributeBody>(bytes),
        of::<GrantBody>(bytes),
    ]
}

fn of<T: Fielded>(bytes: &[u8]) -> Judgement {
    let problem = |read: Result<(), super::answer::Problem>| read.err().map(|problem| problem.detail);
    (T::NAME, problem(New::<T>::read(bytes).map(drop)), problem(Changed::<T>::read(bytes).map(drop)))
}
