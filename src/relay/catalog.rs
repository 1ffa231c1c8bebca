//! What the functions of a database may do to a session, and with them whatever calls them: triggers, defaults, views,
//! policies, other functions. It is known from the database's catalog, and found in a statement by the name alone.

use std::collections::{HashMap, HashSet};

use super::sql::{self, Effects, Pin, scan::WORD};

/// A function that is not PostgreSQL's own.
#[derive(Debug)]
pub struct Function {
    oid: u32,
    name: Box<[u8]>,
    effects: Effects,
    /// Of the words in its source: it may call or touch what is named so.
    words: HashSet<u64>,
    /// It runs by itself when something is defined.
    is_of_event: bool,
}

impl Function {
    /// As `pg_proc` has it: `prosrc`, the name of its language, and whether it returns `event_trigger`.
    pub fn new(oid: u32, name: &[u8], language: &[u8], source: &[u8], is_of_event: bool) -> Self {
        let mut words = HashSet::new();
        let mut all = Words::default();
        all.feed(source, |word| words.extend([word]));
        all.end(|word| words.extend([word]));
        let effects = sql::of_function(name, language, source);
        Self { oid, name: name.into(), effects, words, is_of_event }
    }

    /// Whether it does anything to its session by itself.
    pub fn matters(&self) -> bool {
        self.effects.matter()
    }
}

/// What can run a function without naming it, by oid.
#[derive(Debug, Default)]
pub struct Relations {
    /// Relations by name.
    pub names: Vec<(u32, Vec<u8>)>,
    /// Relations, and the functions that their triggers, defaults, rules, policies, constraints and indexes call.
    pub uses: Vec<(u32, u32)>,
    /// Functions, and others that they were made of (aggregates).
    pub calls: Vec<(u32, u32)>,
    /// Relations, and those that are touched with them: under a view, of a parent, by a foreign key.
    pub touches: Vec<(u32, u32)>,
    /// Relations whose expressions call functions of PostgreSQL's that matter; `true` if it cannot be asked what came
    /// of it.
    pub direct: Vec<(u32, bool)>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By the hash of a word in a statement, in order. Of two words with one hash both are suspected.
    names: Vec<(u64, Effects)>,
    /// A bit for each of them, so that most words of a statement need no search.
    filter: Filter,
    is_known: bool,
    /// While something is being defined: what anything may do.
    doubt: Option<Box<Effects>>,
}

impl Catalog {
    /// Of all functions and what runs them.
    pub fn new(functions: &[Function], relations: &Relations) -> Self {
        let mut names: HashMap<u64, Effects> = HashMap::new();
        let mut of_functions: HashMap<u32, Effects> = HashMap::new();
        let mut of_relations: HashMap<u32, Effects> = HashMap::new();
        for (oid, is_opaque) in &relations.direct {
            let pin = is_opaque.then_some(Pin::Setting);
            let effects = Effects {
                pin,
                makes_objects: true,
                notifies: true,
                reads_sequences: true,
                ..Effects::default()
            };
            of_relations.entry(*oid).or_default().add(&effects);
        }
        for function in functions {
            of_functions.insert(function.oid, function.effects.clone());
        }
        let relation_names: Vec<(u32, u64)> =
            relations.names.iter().map(|(oid, name)| (*oid, name_hash(name))).collect();
        // Each turn adds what the turn before has found out, one call further.
        let mut grows = true;
        while grows {
            grows = false;
            for (user, used) in &relations.calls {
                grows |= pass_on(&of_functions.get(used).cloned(), of_functions.entry(*user).or_default());
            }
            for (relation, function) in &relations.uses {
                grows |=
                    pass_on(&of_functions.get(function).cloned(), of_relations.entry(*relation).or_default());
            }
            for (relation, touched) in &relations.touches {
                grows |=
                    pass_on(&of_relations.get(touched).cloned(), of_relations.entry(*relation).or_default());
            }
            for (relation, name) in &relation_names {
                grows |= pass_on(&of_relations.get(relation).cloned(), names.entry(*name).or_default());
            }
            for function in functions {
                let effects = of_functions.entry(function.oid).or_default();
                for word in &function.words {
                    grows |= pass_on(&names.get(word).cloned(), effects);
                }
                let own = names.entry(name_hash(&function.name)).or_default();
                grows |= pass_on(&Some(effects.clone()), own);
                if function.is_of_event {
                    for word in [&b"create"[..], b"alter", b"drop"] {
                        grows |= pass_on(&Some(effects.clone()), names.entry(name_hash(word)).or_default());
                    }
                }
            }
        }
        Self::of_names(names)
    }

    fn of_names(names: HashMap<u64, Effects>) -> Self {
        let mut names: Vec<_> = names.into_iter().filter(|(_, effects)| effects.matter()).collect();
        names.sort_unstable_by_key(|(hash, _)| *hash);
        let mut filter = Filter::default();
        for (hash, effects) in &mut names {
            filter.add(*hash);
            effects.foreseen = true;
        }
        Self { names, filter, is_known: true, doubt: None }
    }

    /// The same, while something is being defined that will do this: until it is known under its name, anything may do
    /// that and whatever can be asked for.
    #[must_use]
    pub fn doubted(&self, defined: &Effects) -> Self {
        let mut doubt = self.doubt.clone().unwrap_or_default();
        doubt.add(defined);
        (doubt.asks_all, doubt.foreseen, doubt.relates) = (true, true, false);
        let (names, filter) = (self.names.clone(), self.filter.clone());
        Self { names, filter, is_known: self.is_known, doubt: Some(doubt) }
    }

    /// True if no name matters and nothing is in doubt.
    pub fn is_plain(&self) -> bool {
        self.names.is_empty() && self.doubt.is_none()
    }

    /// True if the database was asked.
    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// How many words of a statement matter.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// What a text may do by what it names.
    pub fn mentioned(&self, text: &[u8]) -> Option<Box<Effects>> {
        let mut found = self.doubt.clone();
        let mut words = Words::default();
        words.feed(text, |word| self.look_up(word, &mut found));
        words.end(|word| self.look_up(word, &mut found));
        found
    }

    fn look_up(&self, word: u64, found: &mut Option<Box<Effects>>) {
        if let Some(effects) = self.get(word) {
            found.get_or_insert_default().add(effects);
        }
    }

    fn get(&self, word: u64) -> Option<&Effects> {
        if !self.filter.has(word) {
            return None;
        }
        let at = self.names.binary_search_by_key(&word, |(hash, _)| *hash).ok()?;
        Some(&self.names[at].1)
    }

    /// Whether a piece of a text names something that matters; `words` remembers where the piece before ended.
    pub fn is_mentioned_in(&self, piece: &[u8], words: &mut Words) -> bool {
        let mut found = self.doubt.is_some();
        words.feed(piece, |word| found |= self.get(word).is_some());
        found
    }
}

/// Adds what one does to what another does with it; true if that is news.
fn pass_on(from: &Option<Effects>, to: &mut Effects) -> bool {
    let Some(from) = from.as_ref().filter(|from| from.matter()) else { return false };
    let before = to.clone();
    to.add(from);
    *to != before
}

/// A name can have characters that are none of a word's: its longest word stands for it.
fn name_hash(name: &[u8]) -> u64 {
    let words = name.split(|byte| !WORD[*byte as usize]);
    let longest = words.max_by_key(|word| word.len()).unwrap_or_default();
    longest.iter().fold(Words::START, |hash, byte| Words::step(hash, *byte))
}

/// The words of a text, each as the hash of its lower case; the text may come in pieces.
#[derive(Debug, Clone, Default)]
pub struct Words {
    hash: Option<u64>,
}

impl Words {
    /// FNV-1a.
    const START: u64 = 0xcbf2_9ce4_8422_2325;

    fn step(hash: u64, byte: u8) -> u64 {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0100_0000_01b3)
    }

    /// Takes a piece, and shows each word that ends in it.
    fn feed(&mut self, text: &[u8], mut each: impl FnMut(u64)) {
        for &byte in text {
            if WORD[byte as usize] {
                self.hash = Some(Self::step(self.hash.unwrap_or(Self::START), byte));
            } else if let Some(word) = self.hash.take() {
                each(word);
            }
        }
    }

    /// Shows the word that the text ends with.
    fn end(&mut self, mut each: impl FnMut(u64)) {
        if let Some(word) = self.hash.take() {
            each(word);
        }
    }
}

/// A set that may say yes too often, and never no.
#[derive(Debug, Clone, Default)]
struct Filter(Option<Box<[u64; 64]>>);

impl Filter {
    fn add(&mut self, hash: u64) {
        let bits = self.0.get_or_insert_with(|| Box::new([0; 64]));
        bits[(hash >> 6) as usize % 64] |= 1 << (hash % 64);
    }

    fn has(&self, hash: u64) -> bool {
        self.0.as_ref().is_some_and(|bits| bits[(hash >> 6) as usize % 64] & 1 << (hash % 64) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plpgsql(oid: u32, name: &str, source: &str) -> Function {
        Function::new(oid, name.as_bytes(), b"plpgsql", source.as_bytes(), false)
    }

    fn of(catalog: &Catalog, text: &str) -> Effects {
        catalog.mentioned(text.as_bytes()).map(|e| *e).unwrap_or_default()
    }

    #[test]
    fn a_name_does_what_its_function_does_and_what_that_calls() {
        let functions = vec![
            plpgsql(1, "sets", "begin perform set_config('my.x', '1', false); end"),
            plpgsql(2, "Calls it", "begin return sets(); end"),
            plpgsql(3, "calls_that", "begin return \"Calls it\"(); end"),
            plpgsql(4, "harmless", "begin update t set a = 1; end"),
        ];
        let catalog = Catalog::new(&functions, &Relations::default());
        for text in ["SELECT SETS()", "select a.sets ( )", "select \"Calls it\"()", "select calls_that()"] {
            assert_eq!(of(&catalog, text).settings, ["my.x"], "{text}");
        }
        for text in ["SELECT harmless()", "select sets1()", "", "select 1 from t"] {
            assert_eq!(catalog.mentioned(text.as_bytes()), None, "{text}");
        }
        assert!(catalog.is_known() && !catalog.is_plain());
    }

    #[test]
    fn a_relation_does_what_its_triggers_do_and_those_of_what_is_touched_with_it() {
        let functions = vec![
            plpgsql(1, "t", "begin perform pg_advisory_lock(1); return new; end"),
            plpgsql(2, "f", "insert into child"),
        ];
        let name = |oid, name: &str| (oid, name.as_bytes().to_vec());
        let relations = Relations {
            names: vec![name(10, "child"), name(11, "parent"), name(12, "seen"), name(13, "other")],
            uses: vec![(10, 1)],
            touches: vec![(11, 10), (12, 11)],
            ..Relations::default()
        };
        let catalog = Catalog::new(&functions, &relations);
        for text in
            ["INSERT INTO child", "COPY parent FROM STDIN", "UPDATE x.\"seen\" SET a = 1", "SELECT f()"]
        {
            assert!(of(&catalog, text).makes_objects, "{text}");
        }
        assert_eq!(catalog.mentioned(b"INSERT INTO other"), None);
    }

    #[test]
    fn what_runs_when_something_is_defined_belongs_to_the_words_that_define() {
        let source = b"begin set work_mem = 1; end";
        let functions = vec![Function::new(1, b"e", b"plpgsql", source, true)];
        let catalog = Catalog::new(&functions, &Relations::default());
        assert_eq!(of(&catalog, "CREATE TABLE x ()").settings, ["work_mem"]);
    }

    #[test]
    fn a_text_in_pieces_is_seen_as_one() {
        let catalog = Catalog::new(&[plpgsql(1, "sets", "begin set a.b = 1; end")], &Relations::default());
        let text = b"SELECT sets() ";
        for cut in 0..=text.len() {
            let mut words = Words::default();
            let first = catalog.is_mentioned_in(&text[..cut], &mut words);
            assert!(first | catalog.is_mentioned_in(&text[cut..], &mut words), "{cut}");
        }
    }

    #[test]
    fn in_doubt_everything_is_asked_for() {
        let catalog = Catalog::default().doubted(&Effects::default());
        assert!(of(&catalog, "SELECT 1").asks_all && !catalog.is_plain());
        assert!(!Catalog::default().is_known());
    }
}
