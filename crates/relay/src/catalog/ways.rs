//! Who does what by whom: what functions do is passed on to whatever runs them, and to the names of all that.

use std::collections::HashMap;

use super::relations::Object;
use crate::sql::{Effects, Pin};

/// How many ways from one object to another are followed; a database that has more is not seen through.
pub(super) const MAX_WAYS: usize = 2_000_000;
/// How many settings one name may change before it is "some setting": what is passed on along the ways stays small.
const MAX_PASSED: usize = 16;

/// What functions, other objects and names do, and which of them does what another does.
#[derive(Debug, Default)]
struct Ways {
    effects: Vec<Effects>,
    /// To whom it is passed on what each does.
    to: Vec<Vec<u32>>,
    count: usize,
}

impl Ways {
    fn node(&mut self) -> u32 {
        self.effects.push(Effects::default());
        self.to.push(Vec::new());
        u32::try_from(self.to.len() - 1).unwrap_or(u32::MAX)
    }

    fn add(&mut self, from: u32, to: u32) {
        self.count += 1;
        if self.count <= MAX_WAYS {
            self.to[from as usize].push(to);
        }
    }

    fn at(&mut self, node: u32) -> &mut Effects {
        &mut self.effects[node as usize]
    }

    /// Passes on what each does until nothing is news. A node is looked at again only when it has changed, and can change
    /// only so often as it has flags and settings: the work is bounded by the number of ways.
    fn follow(&mut self) {
        let all = 0..u32::try_from(self.to.len()).unwrap_or(u32::MAX);
        let mut changed: Vec<u32> = all.filter(|node| self.at(*node).matter()).collect();
        let mut waits = vec![false; self.to.len()];
        changed.iter().for_each(|node| waits[*node as usize] = true);
        while let Some(node) = changed.pop() {
            waits[node as usize] = false;
            let effects = std::mem::take(&mut self.effects[node as usize]);
            for to in std::mem::take(&mut self.to[node as usize]) {
                if to != node
                    && pass_on(&effects, self.at(to))
                    && !std::mem::replace(&mut waits[to as usize], true)
                {
                    changed.push(to);
                }
                self.to[node as usize].push(to);
            }
            self.effects[node as usize] = effects;
        }
    }
}

/// The ways between objects, and to their names (each by the hash of a word).
#[derive(Debug, Default)]
pub(super) struct Graph {
    ways: Ways,
    objects: HashMap<Object, u32>,
    names: HashMap<u64, u32>,
    /// What any statement may do.
    anywhere: Option<u32>,
}

impl Graph {
    fn object(&mut self, object: Object) -> u32 {
        if let Some(node) = self.objects.get(&object) {
            return *node;
        }
        let node = self.ways.node();
        self.objects.insert(object, node);
        if object.may_run_unnamed() {
            self.runs_anywhere(node);
        }
        node
    }

    fn runs_anywhere(&mut self, node: u32) {
        let anywhere = *self.anywhere.get_or_insert_with(|| self.ways.node());
        self.ways.add(node, anywhere);
    }

    /// It does this by itself.
    pub(super) fn does(&mut self, object: Object, effects: &Effects) {
        let node = self.object(object);
        self.ways.at(node).add(effects);
    }

    /// Whoever names this word may run it; without a word, whoever says anything.
    pub(super) fn is_named(&mut self, object: Object, word: Option<u64>) {
        let node = self.object(object);
        let Some(word) = word else { return self.runs_anywhere(node) };
        let name = *self.names.entry(word).or_insert_with(|| self.ways.node());
        self.ways.add(node, name);
    }

    /// Who runs the first may run the second.
    pub(super) fn uses(&mut self, user: Object, used: Object) {
        let (user, used) = (self.object(user), self.object(used));
        self.ways.add(used, user);
    }

    /// It has this word, which may be a name.
    pub(super) fn mentions(&mut self, object: Object, word: u64) {
        if let Some(name) = self.names.get(&word).copied() {
            let user = self.object(object);
            self.ways.add(name, user);
        }
    }

    /// What each word does, in no order, and what any statement may do; `None` if there are too many ways.
    pub(super) fn follow(mut self) -> Option<(Vec<(u64, Effects)>, Effects)> {
        if self.ways.count > MAX_WAYS {
            return None;
        }
        self.ways.follow();
        let mut take = |node| std::mem::take(self.ways.at(node));
        let anywhere = self.anywhere.map(&mut take).unwrap_or_default();
        Some((self.names.into_iter().map(|(word, node)| (word, take(node))).collect(), anywhere))
    }
}

/// Adds what one does to what another does with it; true if that is news.
fn pass_on(from: &Effects, to: &mut Effects) -> bool {
    if !from.matter() {
        return false;
    }
    let before = to.clone();
    to.add(from);
    if to.settings.len() > MAX_PASSED {
        to.pin = to.pin.or(Some(Pin::Setting));
    }
    // Whoever keeps the connection for good need not be told which: so this only ever grows.
    if to.pin.is_some() {
        to.settings.clear();
    }
    *to != before
}
