//! Random configurations: a naive reading of the routing rules, the function that explains, and what a real login
//! decides must all say the same.

use std::fmt::Write;

use super::house::{Pgusher, Random, pair, size};
use super::wire::{Raw, startup};

const VALUES: [&str; 8] = ["dev", "prod", "Prod", "test", "eu", "us", "prod ", "x y"];
const ATTRIBUTES: [&str; 3] = ["environment", "region", "tier"];

#[derive(Debug, Default, Clone)]
struct Base {
    attribute: Option<&'static str>,
    defaults: Vec<&'static str>,
    environments: Vec<(String, Vec<&'static str>)>,
    rejects: bool,
}

#[derive(Debug, Default)]
struct Setup {
    bases: Vec<Base>,
    defaults: Vec<(&'static str, &'static str)>,
    groups: Vec<Vec<(&'static str, Vec<&'static str>)>>,
    users: Vec<User>,
}

type User = (Vec<usize>, Vec<(&'static str, Vec<&'static str>)>);

/// Values for a random part of the attributes.
fn facts(random: &mut Random, percent: usize) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut facts = Vec::new();
    for attribute in ATTRIBUTES {
        if random.chance(percent) {
            let count = 1 + usize::from(random.chance(25));
            facts.push((attribute, (0..count).map(|_| VALUES[random.below(VALUES.len())]).collect()));
        }
    }
    facts
}

fn generate(random: &mut Random) -> Setup {
    let mut setup = Setup::default();
    for _ in 0..3 {
        let mut free = VALUES.to_vec();
        let mut take = |random: &mut Random, percent| {
            let taken = random.some(&free, percent);
            free.retain(|v| !taken.contains(v));
            taken
        };
        let defaults = take(random, 20);
        let environments = (0..random.below(4)).map(|i| (format!("e{i}"), take(random, 30))).collect();
        let attribute = random.chance(85).then(|| ATTRIBUTES[random.below(ATTRIBUTES.len())]);
        setup.bases.push(Base { attribute, defaults, environments, rejects: random.chance(50) });
    }
    for attribute in ATTRIBUTES {
        if random.chance(30) {
            setup.defaults.push((attribute, VALUES[random.below(VALUES.len())]));
        }
    }
    setup.groups = (0..3).map(|_| facts(random, 40)).collect();
    for _ in 0..12 {
        let groups = (0..3).filter(|_| random.chance(40)).collect();
        setup.users.push((groups, facts(random, 40)));
    }
    // What is ambiguous is refused when it is loaded: not here.
    for u in 0..setup.users.len() {
        for b in 0..setup.bases.len() {
            if expected(&setup, u, b, None) == Err("ambiguous") {
                setup.users[u] = Default::default();
                for (_, values) in setup.groups.iter_mut().flatten() {
                    values.truncate(1);
                }
            }
        }
    }
    setup
}

/// Section 2, read naively: the environment's name, or why there is none.
fn expected(setup: &Setup, user: usize, base: usize, request: Option<&str>) -> Result<String, &'static str> {
    let base = &setup.bases[base];
    let base_name = base.defaults.first().map_or("base", |v| v).to_owned();
    let granted = |allowed: &[String]| match request {
        None => None,
        Some(name) if allowed.iter().any(|a| a == name) => Some(Ok(name.to_owned())),
        Some(_) => Some(Err("not permitted")),
    };
    let Some(attribute) = base.attribute else {
        return granted(std::slice::from_ref(&base_name)).unwrap_or(Ok(base_name));
    };
    let (groups, own) = &setup.users[user];
    let find = |facts: &[(&str, Vec<&'static str>)]| {
        facts.iter().find(|(name, _)| *name == attribute).map(|(_, values)| values.clone())
    };
    let values = find(own)
        .or_else(|| groups.iter().find_map(|g| find(&setup.groups[*g])))
        .or_else(|| setup.defaults.iter().find(|(name, _)| *name == attribute).map(|(_, v)| vec![*v]))
        .unwrap_or_default();
    let mut places = Vec::new();
    for value in values {
        let place = if base.defaults.contains(&value) {
            Some(base_name.clone())
        } else {
            base.environments.iter().find(|(_, values)| values.contains(&value)).map(|(name, _)| name.clone())
        };
        if let Some(place) = place
            && !places.contains(&place)
        {
            places.push(place);
        }
    }
    if places.is_empty() {
        if base.rejects {
            return Err(if request.is_some() { "not permitted" } else { "rejected" });
        }
        return granted(std::slice::from_ref(&base_name)).unwrap_or(Ok(base_name));
    }
    if let Some(answer) = granted(&places) {
        return answer;
    }
    if places.len() > 1 { Err("ambiguous") } else { Ok(places.remove(0)) }
}

fn list(values: &[&str]) -> String {
    format!("[{}]", values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", "))
}

fn table(facts: &[(&str, Vec<&str>)]) -> String {
    let entries = facts.iter().map(|(name, values)| format!("{name} = {}", list(values)));
    format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
}

fn toml(setup: &Setup) -> String {
    let mut text = String::from(
        "[server]\nlisten = [\"127.0.0.1:@PORT@\"]\nauth_type = \"trust\"\nlog_level = \"error\"\n",
    );
    let target =
        format!("host = \"127.0.0.1\"\nport = {}\ndatabase = \"dev\"\nusername = \"app\"\n", pair().dev.port);
    let _ = write!(text, "[connections.probe]\n{target}[users.probe]\n");
    for (i, base) in setup.bases.iter().enumerate() {
        let _ = write!(text, "[connections.b{i}]\n{target}");
        if let Some(attribute) = base.attribute {
            let _ = writeln!(text, "user_attribute = \"{attribute}\"");
        }
        let _ = writeln!(text, "default_values = {}", list(&base.defaults));
        let _ = writeln!(text, "on_unmatched = \"{}\"", if base.rejects { "reject" } else { "base" });
        let environments = base.environments.iter().map(|(name, values)| {
            format!("{{ connection = \"b{i}{name}\", name = \"{name}\", values = {} }}", list(values))
        });
        let _ = writeln!(text, "environments = [{}]", environments.collect::<Vec<_>>().join(", "));
        for (name, _) in &base.environments {
            let _ = write!(text, "[connections.b{i}{name}]\n{target}");
        }
    }
    for attribute in ATTRIBUTES {
        let _ = writeln!(text, "[attributes.{attribute}]");
        if let Some((_, value)) = setup.defaults.iter().find(|(name, _)| *name == attribute) {
            let _ = writeln!(text, "default = {value:?}");
        }
    }
    for (i, group) in setup.groups.iter().enumerate() {
        let _ = writeln!(text, "[groups.g{i}]\nattributes = {}", table(group));
    }
    for (i, (groups, own)) in setup.users.iter().enumerate() {
        let names: Vec<String> = groups.iter().map(|g| format!("g{g}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let _ = writeln!(text, "[users.u{i}]\ngroups = {}\nattributes = {}", list(&names), table(own));
    }
    text
}

/// What the function that explains says: the environment, or the SQLSTATE.
fn explained(
    config: &policy::config::Config,
    user: &str,
    base: &str,
    request: Option<&str>,
) -> Result<String, String> {
    let attributes = policy::attribute::explain(config, user);
    policy::route::resolve(config, &attributes, base, request)
        .map(|route| route.environment().to_string())
        .map_err(|refusal| refusal.sqlstate.as_str().to_owned())
}

fn load(text: &str) -> policy::config::Config {
    let draft = pgusher::inside::draft_of(std::path::Path::new("random.toml"), text);
    let checked = draft.and_then(policy::route::review);
    checked.unwrap_or_else(|e| panic!("{e}\n{text}")).into_parts().0
}

fn questions(random: &mut Random) -> (usize, usize, Option<&'static str>) {
    let request = random.chance(40).then(|| ["e0", "e1", "base", "dev", "prod", "nothing"][random.below(6)]);
    (random.below(12), random.below(3), request)
}

fn assert_agreed(
    setup: &Setup,
    asked: (usize, usize, Option<&str>),
    answer: &Result<String, String>,
    who: &str,
) {
    let expected = expected(setup, asked.0, asked.1, asked.2);
    let agreed = match (&expected, answer) {
        (Ok(one), Ok(other)) => one == other,
        (Err(_), Err(state)) => state == "28000",
        _ => false,
    };
    assert!(agreed, "{who} says {answer:?}, expected {expected:?} for {asked:?} in\n{}", toml(setup));
}

#[test]
fn fifty_thousand_random_questions_are_explained_as_the_rules_say() {
    let mut random = Random(0x5eed_0000_0001);
    for _ in 0..500 {
        let setup = generate(&mut random);
        let config = load(&toml(&setup).replace("@PORT@", "1"));
        for _ in 0..100 {
            let asked = questions(&mut random);
            let answer = explained(&config, &format!("u{}", asked.0), &format!("b{}", asked.1), asked.2);
            assert_agreed(&setup, asked, &answer, "resolve");
        }
    }
}

#[test]
fn ten_thousand_real_logins_decide_as_the_function_explains() {
    let mut random = Random(0x5eed_0000_0002);
    let mut setup = generate(&mut random);
    let pgusher = Pgusher::start(&toml(&setup));
    for round in 0..size(50, 500) {
        if round > 0 {
            setup = generate(&mut random);
            std::fs::write(
                pgusher.folder.join("pgusher.toml"),
                toml(&setup).replace("@PORT@", &pgusher.port.to_string()),
            )
            .unwrap();
            pgusher.signal("HUP");
            let number = format!("generation {}", round + 1);
            super::house::eventually("the new generation", || {
                let mut probe = Raw::login_with(
                    pgusher.address(),
                    0x0003_0000,
                    &[("user", "probe"), ("database", "probe")],
                );
                probe.value("SHOW pgusher.route").ends_with(&number)
            });
        }
        let config = load(&toml(&setup).replace("@PORT@", "1"));
        for _ in 0..200 {
            let asked = questions(&mut random);
            let decided = login(&pgusher, asked);
            assert_agreed(&setup, asked, &decided, "a login");
            let said = explained(&config, &format!("u{}", asked.0), &format!("b{}", asked.1), asked.2);
            assert_eq!(decided, said);
        }
    }
}

/// What a login decides.
fn login(pgusher: &Pgusher, (user, base, request): (usize, usize, Option<&str>)) -> Result<String, String> {
    let (user, base) = (format!("u{user}"), format!("b{base}"));
    let mut pairs = vec![("user", user.as_str()), ("database", base.as_str())];
    pairs.extend(request.map(|name| ("pgusher.environment", name)));
    let mut raw = Raw::connect(pgusher.address());
    raw.send(&startup(0x0003_0000, &pairs));
    let answer = raw.until_ready();
    if let Some(error) = answer.iter().find(|m| m.tag == 'E') {
        return Err(error.field('C'));
    }
    let told = answer.iter().find_map(|m| m.body.strip_prefix(b"pgusher.environment\0")).expect("a status");
    Ok(String::from_utf8_lossy(told).trim_end_matches('\0').to_owned())
}
