//! What a database says of its functions and relations: any rows, and any statement that names some of them.

use crate::input::Input;
use crate::measure::bounded;
use relay::{Catalog, Does, Effects, Function, Object, Relations};

const LANGUAGES: [&[u8]; 6] = [b"sql", b"plpgsql", b"internal", b"c", b"plperl", b""];

/// Few numbers, so that they meet: of functions, relations, types and operators.
fn object(byte: u8) -> Object {
    let class = [1255, 1259, 1247, 2617][usize::from(byte >> 6)];
    Object { class, oid: u32::from(byte % 32) }
}

fn does(byte: u8) -> Does {
    [Does::Objects, Does::Settings, Does::Texts][usize::from(byte) % 3]
}

fn read(data: &[u8]) -> (Vec<Function>, Relations, Vec<u8>) {
    let mut input = Input(data);
    let statement = input.line().to_vec();
    let pairs = |line: &[u8]| line.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect::<Vec<_>>();
    let mut relations = Relations {
        uses: pairs(input.line()).into_iter().map(|(user, used)| (object(user), object(used))).collect(),
        direct: pairs(input.line()).into_iter().map(|(user, what)| (object(user), does(what))).collect(),
        ..Relations::default()
    };
    let named = |(i, name): (usize, &[u8])| (object(u8::try_from(i % 256).unwrap_or(0)), name.to_vec());
    relations.names = input.line().split(|byte| *byte == b' ').enumerate().map(named).collect();
    let mut functions = Vec::new();
    while !input.0.is_empty() {
        let (kind, oid) = (input.byte(), u32::from(input.byte() % 32));
        let language = LANGUAGES[usize::from(kind >> 1) % LANGUAGES.len()];
        let (name, source) = (input.line(), input.line());
        let function = bounded(source.len() + name.len(), 1024, || {
            let function = Function::new(oid, name, language, source);
            if kind & 1 == 1 { function.of_event() } else { function }
        });
        functions.push(function);
    }
    (functions, relations, statement)
}

/// See the module.
pub(crate) fn holds(data: &[u8]) {
    let (functions, relations, statement) = read(data);
    let catalog = bounded(data.len(), 256 << 10, || Catalog::new(&functions, &relations));
    assert!(catalog.count() <= data.len() + 11);
    let mentioned = bounded(statement.len(), 1024, || catalog.mentioned(&statement));
    if functions.iter().all(|function| !function.matters()) && relations.direct.is_empty() {
        assert_eq!(mentioned, None, "nothing does anything");
    }
    // Whatever is named beside others still does what it does alone, and in doubt everything is asked for.
    let twice = catalog.mentioned(&[&statement[..], b" , ", &statement].concat());
    assert_eq!(mentioned.is_some(), twice.is_some());
    let doubted = catalog.doubted(&Effects::default()).mentioned(&statement);
    assert!(doubted.is_some_and(|effects| effects.asks_all));
}
