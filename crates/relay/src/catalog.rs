//! What the functions of a database may do to a session, and with them whatever calls them: triggers, defaults, views,
//! policies, other functions. It is known from the database's catalog, and found in a statement by the name alone.

mod relations;
mod ways;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::sql::budget::{MAX_LEXED, MAX_MENTIONS, goes_through};
use super::sql::{self, Effects, Pin, SettingChange, words::WORD};
use crate::bearing::Customs;
pub use relations::{Does, Object, Relations};
use ways::Graph;

/// Words of the commands that event triggers run with (PostgreSQL's manual, "Event Trigger Firing Matrix"; `INTO` of `SELECT INTO`).
const EVENT_WORDS: [&[u8]; 11] = [
    b"create",
    b"alter",
    b"drop",
    b"comment",
    b"grant",
    b"revoke",
    b"into",
    b"refresh",
    b"security",
    b"import",
    b"reindex",
];

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
    volatility: Volatility,
}

/// Whether the planner may call a function, and take what it answers for a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Volatility {
    Immutable,
    Other,
}

impl Function {
    /// As `pg_proc` has it: `prosrc` (of a long one, a beginning that is longer than [`MAX_LEXED`]), the name of its
    /// language.
    pub fn new(oid: u32, name: &[u8], language: &[u8], source: &[u8]) -> Self {
        let mut words = HashSet::new();
        // A longer one is opaque, whatever it calls.
        if source.len() <= MAX_LEXED {
            let mut all = Words::default();
            all.feed(source, |word| words.extend([word]));
            all.end(|word| words.extend([word]));
        }
        let mut effects = sql::of_function(name, language, source);
        effects.names.clear();
        let volatility = Volatility::Other;
        Self { oid, name: name.into(), effects, words, is_of_event: false, volatility }
    }

    /// The same if it returns `event_trigger`.
    #[must_use]
    pub fn of_event(self) -> Self {
        Self { is_of_event: true, ..self }
    }

    /// The same with the settings that it is run with (`pg_proc.proconfig`), a line for each.
    #[must_use]
    pub fn configured(mut self, settings: &[u8]) -> Self {
        for line in settings.split(|byte| *byte == b'\n') {
            let name = line.split(|byte| *byte == b'=').next().unwrap_or_default();
            if !name.is_empty() {
                self.effects.change(SettingChange::Set(String::from_utf8_lossy(name).to_lowercase()));
            }
        }
        self
    }

    /// The same if it is declared `IMMUTABLE`.
    #[must_use]
    pub fn immutable(self) -> Self {
        Self { volatility: Volatility::Immutable, ..self }
    }

    /// Whether it does anything to its session by itself.
    pub fn matters(&self) -> bool {
        self.effects.matter()
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Catalog {
    /// By the hash of a word in a statement, in order. Of two words with one hash both are suspected.
    names: Arc<[(u64, Effects)]>,
    /// A bit for each of them, so that most words of a statement need no search.
    filter: Filter,
    is_known: bool,
    customs: Customs,
    /// While something is being defined: what anything may do.
    doubt: Option<Box<Effects>>,
}

impl Catalog {
    /// Of all functions and what runs them. Takes a time that grows with their number and that of their words, whoever has
    /// chosen them: to be called where nobody waits.
    pub fn new(functions: &[Function], relations: &Relations) -> Self {
        let mut graph = Graph::default();
        for function in functions {
            let object = Object::function(function.oid);
            graph.does(object, &function.effects);
            graph.is_named(object, name_hash(&function.name));
            let words = EVENT_WORDS.iter().filter(|_| function.is_of_event);
            words.for_each(|word| graph.is_named(object, name_hash(word)));
        }
        relations.direct.iter().for_each(|(object, does)| graph.does(*object, &does.effects()));
        relations.names.iter().for_each(|(object, name)| graph.is_named(*object, name_hash(name)));
        relations.uses.iter().for_each(|(user, used)| graph.uses(*user, *used));
        for function in functions {
            function.words.iter().for_each(|word| graph.mentions(Object::function(function.oid), *word));
        }
        let Some((names, anywhere)) = graph.follow() else { return Self::unseen() };
        let known = Self { customs: customs(functions), ..Self::of_names(names) };
        // Some statement may run it that names nothing of it.
        if anywhere.matter() { known.doubted(&anywhere) } else { known }
    }

    /// Of a database that has too much to be looked through: whatever is named may do whatever can be asked for.
    pub fn unseen() -> Self {
        Self::default().doubted(&Effects::default())
    }

    fn of_names(mut names: Vec<(u64, Effects)>) -> Self {
        names.retain(|(_, effects)| effects.matter());
        names.sort_unstable_by_key(|(hash, _)| *hash);
        let mut filter = Filter::default();
        for (hash, effects) in &mut names {
            filter.add(*hash);
            effects.foreseen = true;
        }
        Self { names: names.into(), filter, is_known: true, customs: Customs::Unread, doubt: None }
    }

    /// The same, while something is being defined that will do this: until it is known under its name, anything may do
    /// that and whatever can be asked for.
    #[must_use]
    pub fn doubted(&self, defined: &Effects) -> Self {
        let mut doubt = self.doubt.clone().unwrap_or_default();
        doubt.add(defined);
        (doubt.asks_all, doubt.foreseen, doubt.relates) = (true, true, false);
        let (names, filter) = (self.names.clone(), self.filter.clone());
        let (is_known, customs) = (self.is_known, self.customs);
        Self { names, filter, is_known, customs, doubt: Some(doubt) }
    }

    /// Whether no more and no less is in doubt than in another that is the same otherwise.
    pub fn doubts_as(&self, other: &Self) -> bool {
        self.doubt == other.doubt
    }

    /// The same, where nobody is kept on his connection for good for the sake of what is in doubt for an instant.
    #[must_use]
    pub fn without_pin(mut self) -> Self {
        self.doubt.iter_mut().for_each(|doubt| (doubt.pin, doubt.rereads) = (None, false));
        self
    }

    /// Whether a text with these effects may change how the texts behind it are read. While something is in doubt, any text may do
    /// anything that can be asked for; but that counts only if what is being defined is seen to do it: else nobody could send two
    /// statements in one batch.
    pub fn may_reread(&self, effects: &Effects) -> bool {
        match self.doubt {
            None => effects.may_reread(),
            Some(_) => effects.rereads || effects.calls || effects.pin == Some(Pin::Opaque),
        }
    }

    /// True if no name matters and nothing is in doubt.
    pub fn is_plain(&self) -> bool {
        self.names.is_empty() && self.doubt.is_none()
    }

    /// Whether an application's own settings can be in plans.
    pub fn customs(&self) -> Customs {
        match self.is_known && self.doubt.is_none() {
            true => self.customs,
            false => Customs::Read,
        }
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
        let mut found = Found { effects: self.doubt.clone(), left: MAX_MENTIONS };
        goes_through(text.len());
        let mut words = Words::default();
        words.feed(text, |word| self.look_up(word, &mut found));
        words.end(|word| self.look_up(word, &mut found));
        found.effects
    }

    fn look_up(&self, word: u64, found: &mut Found) {
        let Some(effects) = self.get(word).filter(|_| found.left > 0) else { return };
        let all = found.effects.get_or_insert_default();
        all.add(effects);
        found.left -= 1;
        if found.left == 0 {
            all.add(&Effects::opaque());
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

/// Whether a function that is declared `IMMUTABLE` reads settings, itself or by another that it names. Each is looked at again only
/// when one that it names is news.
fn customs(functions: &[Function]) -> Customs {
    let readers = [&b"current_setting"[..], b"pg_settings", b"show"].map(name_hash);
    let is_unseen =
        |function: &Function| function.words.is_empty() || function.effects.pin == Some(Pin::Opaque);
    if !functions.iter().any(|function| function.volatility == Volatility::Immutable) {
        return Customs::Unread;
    }
    let names: HashSet<u64> = functions.iter().filter_map(|function| name_hash(&function.name)).collect();
    let mut users: HashMap<u64, Vec<usize>> = HashMap::new();
    for (at, function) in functions.iter().enumerate() {
        for word in function.words.intersection(&names) {
            users.entry(*word).or_default().push(at);
        }
    }
    let reads = |function: &Function| {
        is_unseen(function) || readers.iter().flatten().any(|word| function.words.contains(word))
    };
    let mut found: Vec<usize> = (0..functions.len()).filter(|at| reads(&functions[*at])).collect();
    let mut is_found = vec![false; functions.len()];
    while let Some(at) = found.pop() {
        if std::mem::replace(&mut is_found[at], true) {
            continue;
        }
        if functions[at].volatility == Volatility::Immutable {
            return Customs::Read;
        }
        let name = name_hash(&functions[at].name);
        found.extend(name.and_then(|name| users.remove(&name)).into_iter().flatten());
    }
    Customs::Unread
}

/// What a text's words do so far, and how many more of them are looked up.
struct Found {
    effects: Option<Box<Effects>>,
    left: usize,
}

/// A name can have characters that are none of a word's: its longest word stands for it. `None` if it has no word.
fn name_hash(name: &[u8]) -> Option<u64> {
    let words = name.split(|byte| !WORD[*byte as usize]);
    let longest = words.max_by_key(|word| word.len()).filter(|word| !word.is_empty())?;
    Some(longest.iter().fold(Words::START, |hash, byte| Words::step(hash, *byte)))
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
    use crate::bearing::Bearing;

    /// The oid of `pg_class`.
    const RELATION: u32 = 1259;

    fn plpgsql(oid: u32, name: &str, source: &str) -> Function {
        Function::new(oid, name.as_bytes(), b"plpgsql", source.as_bytes())
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
        let table = |oid| Object { class: RELATION, oid };
        let name = |oid, name: &str| (table(oid), name.as_bytes().to_vec());
        let uses = vec![(table(10), Object::function(1)), (table(11), table(10)), (table(12), table(11))];
        let names = vec![name(10, "child"), name(11, "parent"), name(12, "seen"), name(13, "other")];
        let relations = Relations { names, uses, ..Relations::default() };
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
        let functions = vec![Function::new(1, b"e", b"plpgsql", source).of_event()];
        let catalog = Catalog::new(&functions, &Relations::default());
        for text in
            ["CREATE TABLE x ()", "COMMENT ON TABLE x IS NULL", "SELECT 1 AS a INTO x", "REVOKE a FROM b"]
        {
            assert_eq!(of(&catalog, text).settings, ["work_mem"], "{text}");
        }
    }

    /// An operator has no word, nor has a function whose name is signs only: any statement may run it.
    #[test]
    fn what_runs_without_a_name_may_run_with_any_statement() {
        let sets = "begin return set_config('my.x', '1', false); end";
        let operator = Object { class: Object::OPERATOR, oid: 20 };
        let type_of = |oid| Object { class: Object::TYPE, oid };
        let of_uses = |user| {
            let relations = Relations { uses: vec![(user, Object::function(1))], ..Relations::default() };
            of(&Catalog::new(&[plpgsql(1, "sets", sets)], &relations), "SELECT 1")
        };
        for user in [operator, type_of(25)] {
            assert_eq!((of_uses(user).settings, of_uses(user).asks_all), (vec!["my.x".to_owned()], true));
        }
        assert_eq!(of_uses(type_of(20_000)), Effects::default());
        let signs = Catalog::new(&[plpgsql(1, "-+-", sets)], &Relations::default());
        assert!(of(&signs, "SELECT 1").asks_all);
        let harmless = Catalog::new(&[plpgsql(1, "-+-", "begin end")], &Relations::default());
        assert_eq!(harmless.mentioned(b"SELECT \"-+-\"()"), None);
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
    fn long_chains_and_rings_are_followed_and_too_many_ways_are_not() {
        let link = |i: u32, next: u32| plpgsql(i, &format!("f{i}"), &format!("begin perform f{next}(); end"));
        let count = 20_000;
        let mut functions: Vec<Function> = (1..count).map(|i| link(i, (i + 1) % count)).collect();
        functions.push(plpgsql(count, "f0", "begin perform f1(); set a.b = 1; end"));
        let catalog = Catalog::new(&functions, &Relations::default());
        assert_eq!((of(&catalog, "select f7()").settings, catalog.count()), (vec!["a.b".to_owned()], 20_000));
        // Each sets something else, and all are in a ring: they have too many settings to tell apart.
        let sets = |i: u32, next: u32| {
            plpgsql(i, &format!("f{i}"), &format!("begin set my.x{i} = 1; perform f{next}(); end"))
        };
        let functions: Vec<Function> = (0..2000).map(|i| sets(i, (i + 1) % 2000)).collect();
        let catalog = Catalog::new(&functions, &Relations::default());
        assert_eq!(of(&catalog, "select f7()").pin, Some(Pin::Setting));
        let table = |oid| Object { class: RELATION, oid };
        let all = 0..=u32::try_from(ways::MAX_WAYS).unwrap();
        let uses = all.map(|i| (table(i % 999), table(i))).collect();
        let crowded = Catalog::new(&[], &Relations { uses, ..Relations::default() });
        assert!(of(&crowded, "select 1").asks_all);
    }

    #[test]
    fn a_text_that_names_a_lot_is_opaque_before_all_of_it_is_looked_up() {
        let catalog = Catalog::new(&[plpgsql(1, "sets", "begin set a.b = 1; end")], &Relations::default());
        assert_eq!(of(&catalog, &"sets() ".repeat(MAX_MENTIONS - 1)).pin, None);
        assert_eq!(of(&catalog, &"sets() ".repeat(MAX_MENTIONS)).pin, Some(Pin::Opaque));
    }

    #[test]
    fn in_doubt_everything_is_asked_for() {
        let catalog = Catalog::default().doubted(&Effects::default());
        assert!(of(&catalog, "SELECT 1").asks_all && !catalog.is_plain());
        assert!(!Catalog::default().is_known());
    }

    #[test]
    fn settings_of_ones_own_are_in_plans_only_where_an_immutable_function_reads_them() {
        let of = |functions: &[Function]| Catalog::new(functions, &Relations::default()).customs();
        let function = |oid, name: &[u8], source: &[u8]| Function::new(oid, name, b"sql", source);
        let reads = || function(1, b"tenant", b"SELECT current_setting('app.tenant')");
        let calls = || function(2, b"other", b"SELECT tenant()");
        let last = || function(3, b"last", b"SELECT other() || 'x'");
        assert_eq!(of(&[reads(), calls()]), Customs::Unread);
        assert_eq!(of(&[reads(), function(2, b"one", b"SELECT 1").immutable()]), Customs::Unread);
        assert_eq!(of(&[reads().immutable()]), Customs::Read);
        assert_eq!(of(&[reads(), calls(), last().immutable()]), Customs::Read);
        let long = vec![b'x'; MAX_LEXED + 1];
        assert_eq!(of(&[function(1, b"long", &long).immutable()]), Customs::Read);
        assert_eq!(
            (Catalog::default().customs(), Catalog::unseen().customs()),
            (Customs::Read, Customs::Read)
        );
    }

    #[test]
    fn a_function_with_settings_of_its_own_mixes_what_its_callers_mean() {
        let of = |settings: &[u8]| {
            let function = Function::new(1, b"f", b"sql", b"SELECT 1").configured(settings);
            let catalog = Catalog::new(&[function], &Relations::default());
            catalog.mentioned(b"SELECT f()").map_or(Bearing::None, |effects| effects.mixes(Customs::Unread))
        };
        assert_eq!(of(b"TimeZone=UTC\nwork_mem=1MB"), Bearing::Constants);
        assert_eq!(
            (of(b"search_path=x"), of(b"app.x=1"), of(b"")),
            (Bearing::Plan, Bearing::None, Bearing::None)
        );
    }
}
