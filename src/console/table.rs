//! What the console answers with: rows of a few types, in the text and the binary format.

/// The type of a column (its oid in `pg_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `text`
    Text,
    /// `int4`
    Int,
    /// `int8`
    Long,
    /// `numeric`, of which only natural numbers occur.
    Numeric,
}

impl Kind {
    fn oid(self) -> u32 {
        match self {
            Self::Text => 25,
            Self::Int => 23,
            Self::Long => 20,
            Self::Numeric => 1700,
        }
    }

    fn size(self) -> i16 {
        match self {
            Self::Text | Self::Numeric => -1,
            Self::Int => 4,
            Self::Long => 8,
        }
    }
}

/// A column's name and type.
pub(crate) type Column = (&'static str, Kind);

/// A table of which a column is one line: its name, its type, and its value in each row. What the values are made of stands
/// before: `table!(user in users, { let own = …; }, { "name": Text = user.name, … })`.
macro_rules! table {
    ($row:pat in $rows:expr, { $($before:tt)* }, { $($name:literal: $kind:ident = $value:expr),+ $(,)? }) => {{
        use $crate::console::table::{Kind, Table, Value};
        let mut table = Table::new(&[$(($name, Kind::$kind)),+]);
        for $row in $rows {
            $($before)*
            table.push(vec![$(Value::from($value)),+]);
        }
        table
    }};
}
pub(crate) use table;

/// One value; `None` is NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    /// NULL
    Null,
    /// Of a text column.
    Text(String),
    /// Of any of the others.
    Number(u64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Self::Text(text.clone())
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Number(u64::from(yes))
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Number(number.into())
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        Self::Number(number as u64)
    }
}

impl<T: Into<Self>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// Columns and rows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Table {
    /// What each row has.
    pub columns: Vec<Column>,
    /// The rows.
    pub rows: Vec<Vec<Value>>,
}

impl Table {
    /// About how many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        let of_value = |value: &Value| match value {
            Value::Text(text) => size_of::<Value>() + text.len(),
            Value::Null | Value::Number(_) => size_of::<Value>(),
        };
        self.rows.iter().map(|row| size_of::<Vec<Value>>() + row.iter().map(of_value).sum::<usize>()).sum()
    }

    /// Without rows.
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One row more.
    pub(crate) fn push(&mut self, row: Vec<Value>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a row has as many values as there are columns");
        self.rows.push(row);
    }

    /// `RowDescription`; `formats` as in `Bind`: none, one for all, or one for each column.
    pub(crate) fn describe(&self, formats: &[u16], out: &mut Vec<u8>) {
        wire::message(out, b'T', |out| {
            out.extend(u16::try_from(self.columns.len()).unwrap_or(0).to_be_bytes());
            for (i, (name, kind)) in self.columns.iter().enumerate() {
                wire::push_cstr(out, name);
                out.extend([0; 6]);
                out.extend(kind.oid().to_be_bytes());
                out.extend(kind.size().to_be_bytes());
                out.extend((-1i32).to_be_bytes());
                out.extend(format_of(formats, i).to_be_bytes());
            }
        });
    }

    /// `DataRow`
    pub(crate) fn row(&self, row: &[Value], formats: &[u16], out: &mut Vec<u8>) {
        wire::message(out, b'D', |out| {
            out.extend(u16::try_from(row.len()).unwrap_or(0).to_be_bytes());
            for (i, (value, (_, kind))) in row.iter().zip(&self.columns).enumerate() {
                let bytes = match value {
                    Value::Null => {
                        out.extend((-1i32).to_be_bytes());
                        continue;
                    }
                    Value::Text(text) => text.replace('\0', "").into_bytes(),
                    Value::Number(number) if format_of(formats, i) == 1 => binary(*number, *kind),
                    Value::Number(number) => number.to_string().into_bytes(),
                };
                out.extend(u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
                out.extend(bytes);
            }
        });
    }
}

fn format_of(formats: &[u16], column: usize) -> u16 {
    match formats {
        [] => 0,
        [one] => *one,
        all => all.get(column).copied().unwrap_or(0),
    }
}

fn binary(number: u64, kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Text => number.to_string().into_bytes(),
        Kind::Int => i32::try_from(number).unwrap_or(i32::MAX).to_be_bytes().to_vec(),
        Kind::Long => i64::try_from(number).unwrap_or(i64::MAX).to_be_bytes().to_vec(),
        Kind::Numeric => numeric(number),
    }
}

/// The binary form of `numeric` (`numeric_send`): digits to the base of 10,000.
fn numeric(mut number: u64) -> Vec<u8> {
    let mut digits = Vec::new();
    while number > 0 {
        digits.push(u16::try_from(number % 10_000).unwrap_or(0));
        number /= 10_000;
    }
    let count = u16::try_from(digits.len()).unwrap_or(0);
    let header = [count, count.saturating_sub(1), 0, 0];
    header.iter().chain(digits.iter().rev()).flat_map(|half| half.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numeric_is_sent_as_postgresql_sends_it() {
        assert_eq!(numeric(0), [0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(numeric(12_345), [0, 2, 0, 1, 0, 0, 0, 0, 0, 1, 0x09, 0x29]);
    }
}
