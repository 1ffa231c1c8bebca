//! Where an upstream is, and when two spellings of that are one.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

/// Where an upstream is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A DNS name or an IP address.
    Name(String),
    /// The folder of a unix socket.
    Socket(PathBuf),
}

impl Host {
    /// As the file says it: a path is a folder.
    pub fn of(text: &str) -> Self {
        match text.starts_with('/') {
            true => Self::Socket(text.into()),
            false => Self::Name(text.to_owned()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Socket(folder) => write!(f, "{}", folder.display()),
        }
    }
}

/// The forms of an IPv4 address that `inet_aton` takes, and the resolver with it: fewer parts, octal and hexadecimal ones.
fn short_address(name: &str) -> Option<IpAddr> {
    let number = |part: &str| match part.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if part.len() > 1 && part.starts_with('0') => u32::from_str_radix(part, 8).ok(),
        None => part.parse().ok(),
    };
    let parts: Vec<u32> = name.split('.').map(number).collect::<Option<_>>()?;
    let (last, first) = parts.split_last()?;
    let room = 32_u32.checked_sub(8 * u32::try_from(first.len()).ok()?).filter(|room| *room > 0)?;
    if first.iter().any(|part| *part > 255) || u64::from(*last) >= 1_u64 << room {
        return None;
    }
    let high = first.iter().enumerate().map(|(i, part)| part << (24 - 8 * i)).sum::<u32>();
    Some(std::net::Ipv4Addr::from(high | last).into())
}

/// Upper case, a last dot and the ways to say loopback are no difference.
pub(super) fn one_spelling(name: &str) -> String {
    let name = name.trim_end_matches('.').to_lowercase();
    let address = name.parse().ok().or_else(|| short_address(&name));
    match address.map(|ip: IpAddr| ip.to_canonical()) {
        // Whoever connects to no address in particular reaches this machine.
        Some(ip) if ip.is_loopback() || ip.is_unspecified() => "localhost".into(),
        Some(ip) => ip.to_string(),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_the_same_in_every_spelling_of_its_address() {
        for name in [
            "localhost",
            "LOCALHOST.",
            "127.0.0.1",
            "127.1",
            "0",
            "0.0.0.0",
            "0x7f.1",
            "017700000001",
            "::1",
            "::",
        ] {
            assert_eq!(one_spelling(name), "localhost", "{name}");
        }
        for (name, expected) in [
            ("10.1", "10.0.0.1"),
            ("db.example", "db.example"),
            ("256.1", "256.1"),
            ("1.2.3.4.5", "1.2.3.4.5"),
        ] {
            assert_eq!(one_spelling(name), expected);
        }
    }
}
