//! Statements that are about the number of a server process: `pg_backend_pid()`, and what cancels or ends one by its number. Only the
//! forms that tools send, each as the whole statement.

use super::lexer::Token;

/// What is done to whoever has a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `pg_cancel_backend`
    Cancel,
    /// `pg_terminate_backend`
    Terminate,
}

impl Signal {
    /// The function that does it.
    pub fn function(self) -> &'static str {
        match self {
            Self::Cancel => "pg_cancel_backend",
            Self::Terminate => "pg_terminate_backend",
        }
    }
}

/// What stands for a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// It is written out.
    Number(u32),
    /// The parameter of this number, from 1.
    Parameter(u16),
}

/// What a statement has to do with the number of a server process, and the name of its only column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PidUse {
    /// It asks for its own.
    Own {
        /// The column.
        column: String,
    },
    /// It signals one.
    Signals(Call),
}

/// See [`PidUse::Signals`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is done.
    pub signal: Signal,
    /// To whom.
    pub whom: Operand,
    /// For how long it is waited, in milliseconds, if that is a parameter: it must be there.
    pub timeout: Option<u16>,
    /// The column.
    pub column: String,
}

/// What a statement is, if it is one of these.
pub(super) fn pid_use(statement: &[Token<'_>]) -> Option<PidUse> {
    let mut rest = Rest(statement);
    rest.word("select")?;
    rest.qualified();
    let name = rest.any_word()?;
    rest.symbol(b'(')?;
    let signal = match name {
        "pg_backend_pid" => {
            rest.symbol(b')')?;
            let column = rest.alias(name);
            return rest.is_over().then_some(PidUse::Own { column });
        }
        "pg_cancel_backend" => Signal::Cancel,
        "pg_terminate_backend" => Signal::Terminate,
        _ => return None,
    };
    let given = rest.operand();
    if given.is_none() {
        rest.pid_column()?;
    }
    let mut timeout = None;
    if signal == Signal::Terminate && rest.symbol(b',').is_some() {
        timeout = match rest.operand()? {
            Operand::Parameter(number) => Some(number),
            Operand::Number(_) => None,
        };
    }
    rest.symbol(b')')?;
    let column = rest.alias(name);
    let whom = match given {
        Some(whom) => whom,
        None => rest.activity_where()?,
    };
    rest.is_over().then_some(PidUse::Signals(Call { signal, whom, timeout, column }))
}

/// What is left of a statement.
struct Rest<'t, 'a>(&'t [Token<'a>]);

impl<'t> Rest<'t, '_> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn any_word(&mut self) -> Option<&'t str> {
        let (Token::Word(word), rest) = self.0.split_first()? else { return None };
        self.0 = rest;
        Some(word)
    }

    fn word(&mut self, expected: &str) -> Option<()> {
        let mut ahead = Rest(self.0);
        (ahead.any_word()? == expected).then(|| self.0 = ahead.0)
    }

    fn symbol(&mut self, expected: u8) -> Option<()> {
        let (first, rest) = self.0.split_first()?;
        (*first == Token::Symbol(expected)).then(|| self.0 = rest)
    }

    /// `pg_catalog.`, perhaps.
    fn qualified(&mut self) {
        if let [schema, Token::Symbol(b'.'), rest @ ..] = self.0
            && schema.is("pg_catalog")
        {
            self.0 = rest;
        }
    }

    /// A number, as a number, a string or a parameter, perhaps with a cast.
    fn operand(&mut self) -> Option<Operand> {
        let number = |digits: &str| digits.trim().parse().ok();
        let (operand, rest) = match self.0 {
            [Token::Symbol(b'$'), Token::Word(digits), rest @ ..] => {
                (Operand::Parameter(digits.parse().ok().filter(|number| *number > 0)?), rest)
            }
            [Token::Word(digits), rest @ ..] => (Operand::Number(number(digits)?), rest),
            [Token::Text(Some(digits)), rest @ ..] => (Operand::Number(number(digits)?), rest),
            _ => return None,
        };
        self.0 = match rest {
            [Token::Symbol(b':'), Token::Symbol(b':'), Token::Word(_), rest @ ..] => rest,
            rest => rest,
        };
        Some(operand)
    }

    /// The column `pid`, perhaps of something.
    fn pid_column(&mut self) -> Option<()> {
        if let [Token::Word(_), Token::Symbol(b'.'), rest @ ..] = self.0 {
            self.0 = rest;
        }
        self.word("pid")
    }

    /// What a column is called that is called so otherwise.
    fn alias(&mut self, otherwise: &str) -> String {
        let named = self.word("as").is_some();
        match self.0.first() {
            Some(Token::Word(word)) if named || word != "from" => {
                self.0 = &self.0[1..];
                word.to_string()
            }
            _ => otherwise.to_owned(),
        }
    }

    /// `FROM pg_stat_activity WHERE pid = …`: that.
    fn activity_where(&mut self) -> Option<Operand> {
        self.word("from")?;
        self.qualified();
        self.word("pg_stat_activity")?;
        let named = self.word("as").is_some();
        if named || !matches!(self.0.first(), Some(first) if first.is("where")) {
            self.any_word()?;
        }
        self.word("where")?;
        self.pid_column()?;
        self.symbol(b'=')?;
        self.operand()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::effects;

    fn of(text: &str) -> Option<PidUse> {
        effects(text.as_bytes()).and_then(|effects| effects.pid.map(|pid| *pid))
    }

    #[test]
    fn a_statement_that_asks_for_its_own_number_is_seen() {
        for (text, column) in [
            ("SELECT pg_backend_pid()", "pg_backend_pid"),
            ("select pg_catalog.pg_backend_pid ( ) ;", "pg_backend_pid"),
            ("/* x */ SELECT pg_backend_pid() AS pid -- y", "pid"),
            ("SELECT pg_backend_pid() \"My Pid\"", "My Pid"),
        ] {
            assert_eq!(of(text), Some(PidUse::Own { column: column.into() }), "{text}");
        }
        for text in [
            "SELECT pg_backend_pid(), 1",
            "SELECT 1; SELECT pg_backend_pid()",
            "SELECT pg_backend_pid() FROM t",
            "SELECT pg_backend_pid() + 0",
            "SELECT mine.pg_backend_pid()",
            "INSERT INTO t SELECT pg_backend_pid()",
            "DO $$ BEGIN PERFORM pg_backend_pid(); END $$",
            "SELECT 'pg_backend_pid()'",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn who_is_signalled_is_seen_in_the_forms_that_tools_send() {
        use Operand::{Number, Parameter};
        use Signal::{Cancel, Terminate};
        for (text, signal, whom, timeout) in [
            ("SELECT pg_cancel_backend(4194305)", Cancel, Number(4_194_305), None),
            ("select pg_catalog.pg_terminate_backend('4194305');", Terminate, Number(4_194_305), None),
            ("SELECT pg_terminate_backend($1)", Terminate, Parameter(1), None),
            ("SELECT pg_terminate_backend($2::int, $1) AS x", Terminate, Parameter(2), Some(1)),
            ("SELECT pg_terminate_backend(5000000, 100)", Terminate, Number(5_000_000), None),
            (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = '4194305'",
                Terminate,
                Number(4_194_305),
                None,
            ),
            (
                "SELECT pg_cancel_backend(a.pid) FROM pg_catalog.pg_stat_activity AS a WHERE a.pid=$1",
                Cancel,
                Parameter(1),
                None,
            ),
        ] {
            let Some(PidUse::Signals(call)) = of(text) else { panic!("{text}: {:?}", of(text)) };
            assert_eq!((call.signal, call.whom, call.timeout), (signal, whom, timeout), "{text}");
            let column = if text.contains("AS x") { "x" } else { signal.function() };
            assert_eq!(call.column, column, "{text}");
        }
        for text in [
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = 4194305 OR true",
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> 4194305",
            "SELECT pg_terminate_backend(pid) FROM mine.pg_stat_activity WHERE pid = 4194305",
            "SELECT pg_terminate_backend(-1)",
            "SELECT pg_terminate_backend(99999999999)",
            "SELECT pg_terminate_backend($0)",
            "SELECT pg_cancel_backend(5000000, 100)",
            "SELECT pg_terminate_backend(5000000) WHERE false",
            "SELECT pg_terminate_backend(5000000), 1",
        ] {
            assert_eq!(of(text), None, "{text}");
        }
    }
}
