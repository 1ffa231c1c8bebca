//! Configurations at random: who goes where is what the file says and nothing else, and whatever is done to a file's text, it is
//! refused with a place or is good as a whole.

use std::fmt::Write;
use std::path::Path;

use proptest::prelude::*;

use crate::attribute;
use crate::config::file::OnUnmatched;
use crate::config::problems::Severity;
use crate::config::{Config, Rejected, Surroundings, ValidatedConfig};
use crate::route;

const ATTRIBUTES: [&str; 2] = ["env", "tier"];
const VALUES: [&str; 5] = ["v0", "w1", "x2", "y3", "z4"];
/// One more than there are environments: that is requested, too.
const ENVIRONMENTS: [&str; 4] = ["blue", "green", "red", "grey"];
const USERS: usize = 4;

/// Values by attribute; `None`: the attribute is not there.
type Attributes = [Option<Vec<usize>>; 2];

/// What a file says about two databases and their users.
#[derive(Debug, Clone)]
struct World {
    bases: [Base; 2],
    /// Of each user: his own values, and his groups, the most important one first.
    users: Vec<(Attributes, Vec<usize>)>,
    groups: [Attributes; 2],
    defaults: Attributes,
}

#[derive(Debug, Clone)]
struct Base {
    attribute: Option<usize>,
    rejects: bool,
    /// Of each value: the environment that it leads to, or (3) the base itself; what leads nowhere is not there.
    leads: [Option<usize>; VALUES.len()],
    /// The environments that it has.
    has: [bool; 3],
}

fn attributes() -> impl Strategy<Value = Attributes> {
    prop::array::uniform2(prop::option::weighted(0.6, prop::collection::vec(0..VALUES.len(), 1..3)))
}

fn base() -> impl Strategy<Value = Base> {
    let leads = prop::array::uniform5(prop::option::weighted(0.8, 0..4_usize));
    let has = prop::array::uniform3(prop::bool::weighted(0.7));
    (prop::option::weighted(0.9, 0..2_usize), any::<bool>(), leads, has).prop_map(
        |(attribute, rejects, mut leads, mut has)| {
            if attribute.is_none() {
                (leads, has) = ([None; VALUES.len()], [false; 3]);
            }
            // An environment that nothing leads to is none, and nothing leads to one that is not there.
            for (at, has) in has.iter_mut().enumerate() {
                *has &= leads.contains(&Some(at));
            }
            leads.iter_mut().for_each(|lead| *lead = lead.filter(|at| *at == 3 || has[*at]));
            Base { attribute, rejects, leads, has }
        },
    )
}

fn world() -> impl Strategy<Value = World> {
    let user = (attributes(), prop::collection::vec(0..2_usize, 0..3)).prop_map(|(own, mut groups)| {
        groups.dedup();
        groups.truncate(if groups.first() == groups.last() { 1 } else { 2 });
        (own, groups)
    });
    let users = prop::collection::vec(user, USERS);
    (prop::array::uniform2(base()), users, prop::array::uniform2(attributes()), attributes())
        .prop_map(|(bases, users, groups, defaults)| World { bases, users, groups, defaults })
}

fn values(values: &[usize]) -> String {
    format!("[{}]", values.iter().map(|value| format!("{:?}", VALUES[*value])).collect::<Vec<_>>().join(", "))
}

fn said(attributes: &Attributes) -> String {
    let said = ATTRIBUTES
        .iter()
        .zip(attributes)
        .filter_map(|(name, list)| Some(format!("{name} = {}", values(list.as_ref()?))));
    format!("{{ {} }}", said.collect::<Vec<_>>().join(", "))
}

impl World {
    fn text(&self) -> String {
        let mut text = "[server]\nlisten = [\"127.0.0.1:6432\"]\n".to_owned();
        for (name, list) in ATTRIBUTES.iter().zip(&self.defaults) {
            let default = list.as_ref().map_or(String::new(), |list| format!("default = {}\n", values(list)));
            let _ = write!(text, "\n[attributes.{name}]\n{default}");
        }
        for (at, group) in self.groups.iter().enumerate() {
            let _ = write!(text, "\n[groups.g{at}]\nattributes = {}\n", said(group));
        }
        for (at, (own, groups)) in self.users.iter().enumerate() {
            let groups: Vec<String> = groups.iter().map(|group| format!("\"g{group}\"")).collect();
            let groups = groups.join(", ");
            let _ = write!(
                text,
                "\n[users.u{at}]\nauth_type = \"trust\"\ngroups = [{groups}]\nattributes = {}\n",
                said(own)
            );
        }
        for (at, base) in self.bases.iter().enumerate() {
            let connection = |name: &str| {
                format!(
                    "\n[connections.{name}]\nhost = \"db.example\"\ndatabase = \"{name}\"\nusername = \"app\"\npassword = \"x\"\n"
                )
            };
            text += &connection(&format!("b{at}"));
            let lead_to = |place: usize| {
                let leads = (0..VALUES.len()).filter(|value| base.leads[*value] == Some(place));
                values(&leads.collect::<Vec<_>>())
            };
            if let Some(attribute) = base.attribute {
                let environments: Vec<String> = (0..3)
                    .filter(|environment| base.has[*environment])
                    .map(|e| {
                        format!(
                            "{{ connection = \"b{at}e{e}\", name = \"{}\", values = {} }}",
                            ENVIRONMENTS[e],
                            lead_to(e)
                        )
                    })
                    .collect();
                let _ = write!(
                    text,
                    "environment_name = \"own\"\nuser_attribute = \"{}\"\ndefault_values = {}\non_unmatched = \"{}\"\nenvironments = [{}]\n",
                    ATTRIBUTES[attribute],
                    lead_to(3),
                    if base.rejects { OnUnmatched::Reject } else { OnUnmatched::Base }.word(),
                    environments.join(", "),
                );
            }
            (0..3).filter(|e| base.has[*e]).for_each(|e| text += &connection(&format!("b{at}e{e}")));
        }
        text
    }

    /// The values of a user for an attribute, as the documentation says.
    fn values_of(&self, user: usize, attribute: usize) -> &[usize] {
        let of_user = self.users.get(user).and_then(|(own, groups)| {
            let of_group = || groups.iter().find_map(|group| self.groups[*group][attribute].as_deref());
            own[attribute].as_deref().or_else(of_group)
        });
        of_user.or(self.defaults[attribute].as_deref()).unwrap_or_default()
    }

    /// Where a user goes: an environment, or (3) the base; `None`: nowhere.
    fn expected(&self, user: usize, base: usize, request: Option<&str>) -> Option<usize> {
        let of = &self.bases[base];
        let places: Vec<usize> = match of.attribute {
            None => vec![3],
            Some(attribute) => {
                let mut places: Vec<usize> =
                    self.values_of(user, attribute).iter().filter_map(|value| of.leads[*value]).collect();
                places.sort_unstable();
                places.dedup();
                if places.is_empty() && !of.rejects { vec![3] } else { places }
            }
        };
        let own = if of.attribute.is_some() { "own".to_owned() } else { format!("b{base}") };
        let name = |place: &usize| if *place == 3 { own.as_str() } else { ENVIRONMENTS[*place] };
        match request {
            Some(request) => places.iter().find(|place| name(place) == request).copied(),
            None => <[usize; 1]>::try_from(places).ok().map(|[place]| place),
        }
    }
}

fn checked(text: &str) -> Result<ValidatedConfig, Rejected> {
    let around = Surroundings { machine: None, commands: None, state_directory: None };
    route::review(Config::draft(Path::new("/nowhere/pgusher.toml"), text, around)?)
}

/// Where a user goes, and why; or the SQLSTATE with which he is refused.
fn resolved(
    config: &Config,
    user: usize,
    base: usize,
    request: Option<&str>,
) -> Result<(String, String), String> {
    let attributes = attribute::explain(config, &format!("u{user}"));
    let route = route::resolve(config, &attributes, &format!("b{base}"), request);
    route
        .map(|route| (route.connection().to_string(), route.to_string()))
        .map_err(|refusal| refusal.sqlstate.to_string())
}

/// Everybody's every question: of each user, one who is not in the file among them, each database, and each environment.
fn questions() -> impl Iterator<Item = (usize, usize, Option<&'static str>)> {
    let requests = || std::iter::once(None).chain(ENVIRONMENTS.into_iter().chain(["own"]).map(Some));
    (0..=USERS).flat_map(move |user| {
        (0..2).flat_map(move |base| requests().map(move |request| (user, base, request)))
    })
}

proptest! {
    /// A route is what the file says: never an environment that the user's values do not name, nor the base where that is
    /// refused; the same file says the same again.
    #[test]
    fn everybody_goes_where_the_file_says_and_nowhere_else(world in world()) {
        let text = world.text();
        let checked_once = match checked(&text) {
            Ok(checked) => checked,
            Err(rejected) => {
                // Of what is made here, only this can be wrong.
                prop_assert!(rejected.to_string().contains("is ambiguous for"), "{rejected}\n{text}");
                return Ok(());
            }
        };
        let again = checked(&text).unwrap();
        for (user, base, request) in questions() {
            let found = resolved(checked_once.config(), user, base, request);
            let expected = world.expected(user, base, request);
            let connection = expected.map(|place| if place == 3 { format!("b{base}") } else { format!("b{base}e{place}") });
            let went = found.as_ref().ok().map(|(connection, _)| connection);
            prop_assert_eq!(went, connection.as_ref(), "u{} b{} {:?}: {:?}\n{}", user, base, request, found, text);
            prop_assert_eq!(found, resolved(again.config(), user, base, request));
        }
    }

    /// Whoever is taken out of the file, and an environment that none of one's values name, changes nobody else's route.
    #[test]
    fn what_is_taken_away_changes_the_route_of_nobody_else(
        world in world(), gone in 0..USERS, base in 0..2_usize, environment in 0..3_usize,
    ) {
        let Ok(before) = checked(&world.text()) else { return Ok(()) };
        let text = world.text();
        let mut without = text.clone();
        let begin = without.find(&format!("\n[users.u{gone}]")).unwrap();
        let end = without[begin + 1..].find("\n[").map_or(without.len(), |at| begin + 1 + at);
        without.replace_range(begin..end, "");
        let after = checked(&without).unwrap();
        for (user, base, request) in questions().filter(|(user, ..)| *user != gone) {
            prop_assert_eq!(
                resolved(before.config(), user, base, request),
                resolved(after.config(), user, base, request)
            );
        }
        let mut smaller = world.clone();
        smaller.bases[base].has[environment] = false;
        smaller.bases[base].leads.iter_mut().for_each(|lead| *lead = lead.filter(|place| *place != environment));
        let Ok(after) = checked(&smaller.text()) else { return Ok(()) };
        for (user, asked, request) in questions() {
            let of = &world.bases[base];
            let names_it = of.attribute.is_some_and(|attribute| {
                world.values_of(user, attribute).iter().any(|value| of.leads[*value] == Some(environment))
            });
            if asked == base && (names_it || request == Some(ENVIRONMENTS[environment])) {
                continue;
            }
            prop_assert_eq!(
                resolved(before.config(), user, asked, request),
                resolved(after.config(), user, asked, request)
            );
        }
    }

    /// Any edit of a good file is refused with the place of each error, or is good as a whole: the same each time, and what is
    /// taken says of itself what it said before.
    #[test]
    fn an_edited_file_is_refused_with_a_place_or_is_good(world in world(), edits in edits()) {
        let mut text = world.text();
        edits.iter().for_each(|edit| edit.apply(&mut text));
        match checked(&text) {
            Ok(good) => {
                prop_assert_eq!(good.warnings().count(Severity::Error), 0);
                let again = checked(&text).unwrap();
                prop_assert_eq!(format!("{:?}", good.config()), format!("{:?}", again.config()));
                prop_assert_eq!(good.warnings().to_string(), again.warnings().to_string());
                // Comments and empty lines mean nothing.
                let spaced = checked(&format!("# one more line\n\n{text}\n# and another")).unwrap();
                prop_assert_eq!(without_source(good.config()), without_source(spaced.config()));
            }
            Err(rejected) => {
                prop_assert!(rejected.0.count(Severity::Error) > 0);
                for problem in rejected.0.iter() {
                    prop_assert!(!problem.message.is_empty());
                    let Some(span) = &problem.span else {
                        prop_assert!(text.trim().is_empty(), "{} has no place", problem.message);
                        continue;
                    };
                    prop_assert!(span.start <= span.end && span.end <= text.len(), "{span:?} of {}", text.len());
                    prop_assert!(text.is_char_boundary(span.start) && text.is_char_boundary(span.end));
                }
                prop_assert_eq!(rejected.to_string(), checked(&text).unwrap_err().to_string());
            }
        }
    }
}

/// All but the text.
fn without_source(config: &Config) -> String {
    format!("{:?}", config.users) + &format!("{:?}", config.databases) + &format!("{:?}", config.groups)
}

/// A change of a text.
#[derive(Debug, Clone)]
enum Edit {
    Delete(usize, usize),
    Insert(usize, &'static str),
    Repeat(usize, usize),
    /// What a line says is another value.
    Value(usize, &'static str),
    /// A line's key is another one.
    Key(usize),
    /// A line is not there.
    Line(usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let pieces = &[
        "\"",
        "[",
        "]",
        "{",
        "}",
        "=",
        "\n",
        "#",
        "'''",
        "\\",
        "é",
        "0",
        "-1",
        "true",
        "[users.u0]",
        "\nx = 1\n",
        "\u{feff}",
    ][..];
    let values = &["1", "-1", "\"x\"", "\"\"", "true", "[]", "{}", "[1]", "\"1h\"", "0.5"][..];
    let edit = prop_oneof![
        (any::<usize>(), 1..30_usize).prop_map(|(at, length)| Edit::Delete(at, length)),
        (any::<usize>(), prop::sample::select(pieces)).prop_map(|(at, piece)| Edit::Insert(at, piece)),
        (any::<usize>(), 1..60_usize).prop_map(|(at, length)| Edit::Repeat(at, length)),
        (any::<usize>(), prop::sample::select(values)).prop_map(|(at, value)| Edit::Value(at, value)),
        any::<usize>().prop_map(Edit::Key),
        any::<usize>().prop_map(Edit::Line),
    ];
    prop::collection::vec(edit, 0..4)
}

impl Edit {
    fn apply(&self, text: &mut String) {
        let boundary =
            |at: usize| (0..=at % (text.len() + 1)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        let lines: Vec<usize> = text.match_indices(" = ").map(|(at, _)| at).collect();
        let line = |at: usize| lines.get(at % lines.len().max(1)).copied().unwrap_or(0);
        let end = |at: usize| text[at..].find('\n').map_or(text.len(), |end| at + end);
        let begin = |at: usize| text[..at].rfind('\n').map_or(0, |begin| begin + 1);
        match self {
            Self::Delete(at, length) => {
                let at = boundary(*at);
                let end =
                    (at + length..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
                text.replace_range(at..end, "");
            }
            Self::Insert(at, piece) => {
                let at = boundary(*at);
                text.insert_str(at, piece);
            }
            Self::Value(at, value) if !lines.is_empty() => {
                let at = line(*at);
                text.replace_range(at + 3..end(at), value);
            }
            Self::Key(at) => text.insert(line(*at), 'x'),
            Self::Line(at) => {
                let at = line(*at);
                text.replace_range(begin(at)..end(at), "");
            }
            Self::Value(..) => {}
            Self::Repeat(at, length) => {
                let at = boundary(*at);
                let end =
                    (at + length..=text.len()).find(|end| text.is_char_boundary(*end)).unwrap_or(text.len());
                let piece = text[at..end].to_owned();
                text.insert_str(end, &piece);
            }
        }
    }
}
