//! Types of settings: an address, a size, a host.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;

use serde_json::{Value as Json, json};
use toml::Spanned;
use toml::de::DeValue;

use super::problems::Problems;
use super::read::{Setting, Value};
use super::words::words;

/// Where pgusher listens: an IP address with a port, or a folder for a unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddress {
    /// `"127.0.0.1:6432"`, `"[::]:6432"`
    Tcp(SocketAddr),
    /// `"unix:/run/pgusher"`: the socket is `.s.PGSQL.PORT` in it, with the port of the first TCP address, or 6432.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(folder) => write!(f, "unix:{}", folder.display()),
        }
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

impl Size {
    const UNITS: [(&'static str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

    pub(super) const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, shift): &&(&str, u32)| self.0 > 0 && self.0.trailing_zeros() >= *shift;
        let (unit, shift) = Self::UNITS.iter().find(fits).unwrap_or(&Self::UNITS[3]);
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

impl Value for Size {
    fn kind() -> String {
        "a size with its unit, such as \"64MiB\" or \"1GiB\"".into()
    }
    fn schema() -> Json {
        json!({ "type": "string", "pattern": r"^\d+\s*(GiB|MiB|KiB|B)$" })
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        let text = String::read(node, problems)?;
        let parse = || {
            let (unit, shift) = Self::UNITS.iter().find(|(unit, _)| text.ends_with(unit))?;
            let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
            number.checked_mul(1 << shift).map(Self)
        };
        let size = parse();
        if size.is_none() {
            problems
                .error(Some(node.span()), format!("`{text}` is not a size"))
                .help("write \"64MiB\", \"512KiB\" or \"1GiB\"");
        }
        size
    }
    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Value for SocketAddr {
    fn kind() -> String {
        "\"ADDRESS:PORT\"".into()
    }
    fn schema() -> Json {
        String::schema()
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        let text = String::read(node, problems)?;
        let address = text.parse();
        if address.is_err() {
            problems
                .error(Some(node.span()), format!("`{text}` is not an address to listen on"))
                .help("write \"127.0.0.1:9127\" or \"[::1]:9127\"");
        }
        address.ok()
    }
    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

impl Value for ListenAddress {
    fn kind() -> String {
        "\"ADDRESS:PORT\" or \"unix:FOLDER\"".into()
    }
    fn schema() -> Json {
        String::schema()
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        let text = String::read(node, problems)?;
        if let Some(folder) = text.strip_prefix("unix:") {
            return Some(Self::Unix(problems.folder().join(folder)));
        }
        match text.parse() {
            Ok(address) => Some(Self::Tcp(address)),
            Err(_) => {
                problems
                    .error(Some(node.span()), format!("`{text}` is not an address to listen on"))
                    .help("write an address, not a name: \"127.0.0.1:6432\", \"[::]:6432\" or \"unix:/run/pgusher\"");
                None
            }
        }
    }
    fn show(&self) -> String {
        format!("\"{self}\"")
    }
}

/// Where a database is: a host name, an IP address, or the folder of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

impl Deref for HostName {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Value for HostName {
    fn kind() -> String {
        String::kind()
    }
    fn schema() -> Json {
        json!({ "type": "string", "pattern": "^(/.*|[!-~]+)$" })
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        let text = String::read(node, problems)?;
        if text.starts_with('/') || !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Some(Self(text));
        }
        problems
            .error(Some(node.span()), "a host name or an IP address has only ASCII characters and no spaces")
            .help("write \"db.example.com\", \"10.0.0.7\", or the folder of a unix socket");
        None
    }
    fn show(&self) -> String {
        self.0.show()
    }
    fn json(&self) -> Json {
        self.0.json()
    }
}

words! {
    /// A proof that an upstream may ask for (as in libpq's `require_auth`).
    UpstreamMethod {
        /// SCRAM-SHA-256, with channel binding or without: the server does not learn the password, and proves itself, too.
        ScramSha256 = "scram-sha-256",
        /// A salted MD5 hash, which serves whoever has it to log in elsewhere or to guess the password.
        Md5 = "md5",
        /// The password in clear text.
        Password = "password",
        /// None: the server trusts us, or our certificate is enough for it.
        None = "none",
    }
}

/// The proofs that an upstream may ask for: `"scram-sha-256, none"`, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequireAuth(pub Vec<UpstreamMethod>);

impl Value for RequireAuth {
    fn kind() -> String {
        format!("a list, each {}, or a string of them with commas between", UpstreamMethod::kind())
    }
    fn schema() -> Json {
        json!({ "anyOf": [String::schema(), Vec::<Setting<UpstreamMethod>>::schema()] })
    }
    fn read(node: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Self> {
        if node.get_ref().as_str().is_none() {
            let methods = Vec::<Setting<UpstreamMethod>>::read(node, problems)?;
            return Self::of(methods.into_iter().map(Setting::into_inner).collect(), node, problems);
        }
        let text = String::read(node, problems)?;
        let mut methods = Vec::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let Some(method) = UpstreamMethod::of_word(word) else {
                problems
                    .error(Some(node.span()), format!("unknown value `{word}`"))
                    .nearest(word, UpstreamMethod::WORDS.iter().copied());
                return None;
            };
            methods.push(method);
        }
        Self::of(methods, node, problems)
    }
    fn show(&self) -> String {
        let words: Vec<_> = self.0.iter().map(|method| method.word()).collect();
        format!("\"{}\"", words.join(", "))
    }
    fn json(&self) -> Json {
        self.0.iter().map(|method| method.word()).collect()
    }
}

impl RequireAuth {
    fn of(
        methods: Vec<UpstreamMethod>,
        node: &Spanned<DeValue<'_>>,
        problems: &mut Problems,
    ) -> Option<Self> {
        let nothing = "`require_auth` allows nothing";
        if methods.is_empty() {
            problems.error(Some(node.span()), nothing).help("leave the key out, or write \"scram-sha-256\"");
            return None;
        }
        Some(Self(methods))
    }
}
