//! The TLS settings of a connection string (libpq's `sslmode`, `sslrootcert`, `sslcert`, `sslkey`), which tokio-postgres does not know.

use std::path::PathBuf;

use policy::config::file::SslMode;

/// What a connection string, or the environment (PGSSLMODE and so on), says of TLS.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TlsWords {
    /// `sslmode`, if it is said.
    pub mode: Option<String>,
    /// `sslrootcert`
    pub root: Option<PathBuf>,
    /// `sslcert`
    pub certificate: Option<PathBuf>,
    /// `sslkey`
    pub key: Option<PathBuf>,
}

impl TlsWords {
    /// Takes them out of a connection string; what is left of it is for tokio-postgres.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn take(text: &str) -> Result<(Self, String), String> {
        let mut words = Self::default();
        let left = match text.split_once("://").filter(|(scheme, _)| scheme.starts_with("postgres")) {
            Some(_) => words.take_of_url(text),
            None => words.take_of_pairs(text)?,
        };
        Ok((words, left))
    }

    /// With what the environment says where the string says nothing.
    pub(super) fn or_of(mut self, variable: impl Fn(&str) -> Option<String>) -> Self {
        self.mode = self.mode.or_else(|| variable("PGSSLMODE"));
        let path = |own: Option<PathBuf>, name: &str| own.or_else(|| variable(name).map(PathBuf::from));
        self.root = path(self.root, "PGSSLROOTCERT");
        self.certificate = path(self.certificate, "PGSSLCERT");
        self.key = path(self.key, "PGSSLKEY");
        self
    }

    /// As libpq: `prefer` where nothing is said.
    ///
    /// # Errors
    /// It is no mode.
    pub(super) fn mode(&self) -> Result<SslMode, String> {
        let word = self.mode.as_deref().unwrap_or("prefer");
        SslMode::of_word(word)
            .ok_or_else(|| format!("sslmode={word}: there are {}", SslMode::WORDS.join(", ")))
    }

    /// Whether a setting is one of these, and then takes it.
    fn takes(&mut self, key: &str, value: &str) -> bool {
        match key {
            "sslmode" => self.mode = Some(value.to_owned()),
            "sslrootcert" => self.root = Some(value.into()),
            "sslcert" => self.certificate = Some(value.into()),
            "sslkey" => self.key = Some(value.into()),
            _ => return false,
        }
        true
    }

    fn take_of_url(&mut self, text: &str) -> String {
        let Some((before, query)) = text.split_once('?') else { return text.to_owned() };
        let others = query.split('&').filter(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            !self.takes(key, &decoded(value))
        });
        let others: Vec<_> = others.collect();
        if others.is_empty() { before.to_owned() } else { format!("{before}?{}", others.join("&")) }
    }

    /// `key = value`, with quotes and backslashes as in libpq.
    fn take_of_pairs(&mut self, text: &str) -> Result<String, String> {
        let mut left = String::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=').ok_or_else(|| format!("`{rest}` is no key = value"))?;
            let (value, after) = value(after.trim_start()).ok_or("a quote is not closed")?;
            if !self.takes(key.trim(), &value) {
                let value = value.replace('\\', "\\\\").replace('\'', "\\'");
                left.push_str(&format!("{}='{value}' ", key.trim()));
            }
            rest = after.trim_start();
        }
        Ok(left)
    }
}

/// `%2F` and the like (RFC 3986, 2.1); what is none stays.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, after @ ..] = rest {
        let hex = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(16 * high + low).unwrap_or(b'%'));
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A value, and what stands behind it.
fn value(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    let is_quoted = text.starts_with('\'');
    if is_quoted {
        chars.next();
    }
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            '\'' if is_quoted => return Some((value, &text[at + 1..])),
            c if !is_quoted && c.is_whitespace() => return Some((value, &text[at..])),
            c => value.push(c),
        }
    }
    (!is_quoted).then_some((value, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_tls_are_taken_out_of_every_form_of_a_connection_string() {
        let (words, left) =
            TlsWords::take(r"host=a sslmode = verify-full user='it\'s me' sslrootcert='/a b/ca.crt'")
                .unwrap();
        assert_eq!((words.mode().unwrap(), words.root), (SslMode::VerifyFull, Some("/a b/ca.crt".into())));
        let config: tokio_postgres::Config = left.parse().unwrap();
        assert_eq!(config.get_user(), Some("it's me"));
        let (words, left) = TlsWords::take(
            "postgresql://me@host:6432/pgusher?sslmode=require&connect_timeout=3&sslcert=a%2Fb%20c%",
        )
        .unwrap();
        assert_eq!((words.mode.as_deref(), words.certificate), (Some("require"), Some("a/b c%".into())));
        assert_eq!(left, "postgresql://me@host:6432/pgusher?connect_timeout=3");
        assert_eq!(TlsWords::take("").unwrap(), (TlsWords::default(), String::new()));
        assert!(TlsWords::take("host").is_err() && TlsWords::take("host='a").is_err());
        let words = TlsWords::take("sslmode=never").unwrap().0;
        assert!(words.mode().unwrap_err().contains("verify-full"));
        let environment = |name: &str| (name == "PGSSLMODE").then(|| "disable".to_owned());
        assert_eq!(TlsWords::default().or_of(environment).mode().unwrap(), SslMode::Disable);
    }
}
