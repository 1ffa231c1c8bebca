//! What a `Bind` has beside names.

use wire::error::Shown;

/// The parameters of a `Bind`, of which this stands behind the statement's name (manual, "Message Formats").
pub(super) struct Bound<'a> {
    formats: &'a [u8],
    pub(super) count: u16,
    values: &'a [u8],
}

impl<'a> Bound<'a> {
    /// `None` if it is broken.
    pub(super) fn read(bound: &'a [u8]) -> Option<Self> {
        let (formats, rest) = bound.split_first_chunk()?;
        let (formats, rest) = rest.split_at_checked(2 * usize::from(u16::from_be_bytes(*formats)))?;
        let (count, values) = rest.split_first_chunk()?;
        Some(Self { formats, count: u16::from_be_bytes(*count), values })
    }

    /// Whether it is all there, and has neither parameters nor formats of them.
    pub(super) fn has_none(&self) -> bool {
        self.count == 0 && self.formats.is_empty() && matches!(self.values, [0, 0] | [0, 1, 0, _])
    }

    /// Whether the parameter at this place is in binary.
    fn is_binary(&self, at: usize) -> Option<bool> {
        let (all, _) = self.formats.as_chunks::<2>();
        match all {
            [] => Some(false),
            [one] => Some(*one == [0, 1]),
            all => all.get(at).map(|one| *one == [0, 1]),
        }
    }

    /// The parameter of this number, from 1, if it is a number that is not negative.
    pub(super) fn number(&self, number: u16) -> Option<u32> {
        if number > self.count {
            return None;
        }
        let mut rest = self.values;
        for at in 1..=number {
            let (length, behind) = rest.split_first_chunk()?;
            // A NULL has length -1.
            let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
            let (value, behind) = behind.split_at_checked(length)?;
            if at == number {
                return match (self.is_binary(usize::from(number) - 1)?, value.len()) {
                    (false, _) => str::from_utf8(value.trim_ascii()).ok()?.parse().ok(),
                    (true, 4) => Some(u32::from_be_bytes(*value.first_chunk()?)),
                    (true, 8) => u32::try_from(u64::from_be_bytes(*value.first_chunk()?)).ok(),
                    (true, _) => None,
                };
            }
            rest = behind;
        }
        None
    }

    /// Why PostgreSQL refuses it, before it looks at anything else (`exec_bind_message`): there are more or fewer parameters than
    /// the statement `name` has, or formats than parameters.
    pub(super) fn miscounted(&self, name: &[u8], parameters: u16) -> Option<String> {
        let (formats, count) = (self.formats.len() / 2, self.count);
        if formats > 1 && formats != usize::from(count) {
            return Some(format!("bind message has {formats} parameter formats but {count} parameters"));
        }
        (count != parameters).then(|| {
            let shown = Shown::bytes(name);
            format!("bind message supplies {count} parameters, but prepared statement \"{shown}\" requires {parameters}")
        })
    }
}
